"""Every interleaving of the pure protocol: one application, up to three batteries, each able to crash or restart at any step.

What one participant does is cut into single operations (take the lease, publish a record, say a signal, begin the command),
each a step of its own, and a crash may come between any two of them. A look is one step, what is decided by it comes later: so
decisions are taken on facts that are stale by then. Whoever waits with a deadline may find it passed at any moment.

Checked in every state: the command is begun at most once; the application ends in success only where every battery has saved
after its end; whoever is up can always go on in the end, without any restart (no deadlock, nobody waits for the dead).

Millions of worlds are made of few different places (a participant and what stands of it), and what a participant does depends
on its own place and on what it sees of the others'. So places have numbers, a world is made of these, and each participant's
moves are computed once for all worlds that look alike to it. For that, whatever a move reads must stand in what is seen. No
decision depends on why a participant failed: records do not tell it here, which would make many places of one.
"""

from collections import deque
from collections.abc import Hashable
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

import pytest

from sidecar.coordination import protocol
from sidecar.coordination.protocol import (
    DONE,
    EXITED,
    FAILED,
    READY,
    RUNNING,
    SAVING,
    Exit,
    Limits,
    Record,
    Seen,
    Since,
)
from sidecar.values import replace

# Seconds alone on a machine, more beside others.
pytestmark = pytest.mark.timeout(900)

LIMITS = Limits(appear=1.0, grace=1.0)
KINDS = ("one", "two", "three")
ANY = "battery"  # what all of them are called in their own records, so that those who stand alike are equal

Operation = tuple[Any, ...]
T = TypeVar("T", bound=Hashable)


class Up(NamedTuple):
    """A participant that is up: its record, what it has still to do of its last decision, and what runs on its behalf.

    `old` is the battery's; what the application has taken for an old story stands with the batteries.
    """

    me: Record
    todo: tuple[Operation, ...]
    old: tuple[tuple[str, str], ...] = ()
    working: bool = False
    leased: bool = False


class Place(NamedTuple):
    """A participant, up or not, and what stands of it: of a battery its signals, and whether it has kept the output.

    What the application that is up has to do with this battery first, and whose end is an old story to it, stands here as well:
    so batteries can change their order.
    """

    up: Up | None = None
    lives: int = 0
    record: Record | None = None
    signals: frozenset[str] = frozenset()
    kept: bool = False
    asked: tuple[Operation, ...] = ()
    old: str | None = None


class World(NamedTuple):
    """Everything there is. `places[0]` is the application's."""

    places: tuple[int, ...]
    runs: int
    status: int | None
    faults: int


class Move(NamedTuple):
    """What one participant may do next, its place after it, and what the application does to batteries and to the world."""

    name: str
    place: int
    changes: tuple[tuple[int, dict[str, Any]], ...] = ()
    runs: int = 0
    status: int | None = None


class Numbers(Generic[T]):
    """Things that are equal have one number, counted from 0."""

    def __init__(self) -> None:
        self.numbers: dict[T, int] = {}
        self.things: list[T] = []

    def of(self, thing: T) -> int:
        number = self.numbers.setdefault(thing, len(self.things))
        if number == len(self.things):
            self.things.append(thing)
        return number

    def __getitem__(self, number: int) -> T:
        return self.things[number]


class Model:
    def __init__(self, batteries: int, lives: int, faults: int, policy: str = protocol.ON_SUCCESS) -> None:
        self.batteries = protocol.batteries_of(KINDS[:batteries])
        self.lives, self.faults, self.policy = lives, faults, policy
        self.places: Numbers[Place] = Numbers()
        self.views: Numbers[tuple[Seen, tuple[Operation, ...], str | None]] = Numbers()
        self.views_of_application: Numbers[tuple[Seen, bool]] = Numbers()
        self.first = World((self.places.of(Place()),) * (batteries + 1), 0, None, 0)
        self.view = cache(self._view)
        self.view_of_application = cache(self._view_of_application)
        self.started = cache(self._started)
        self.crashed = cache(self._crashed)
        self.forgotten = cache(self._forgotten)
        self.battery_moves = cache(self._battery_moves)
        self.application_moves = cache(self._application_moves)

    def seen(self, place: Place) -> Seen:
        alive = place.up.leased if place.up else None
        if not alive:
            # A lease that was ever taken stays as a file that is free.
            alive = False if place.lives and (place.record or place.lives > 1 or place.up is None) else None
        return Seen(place.record, alive, *(signal in place.signals for signal in ("ready", "save", "saved")))

    def _view(self, number: int) -> int:
        """Return the number of what the application sees of a battery's place."""
        place = self.places[number]
        return self.views.of((self.seen(place), place.asked, place.old))

    def _view_of_application(self, number: int) -> int:
        """Return the number of what a battery sees of the application's place, and whether the command runs: that is checked."""
        place = self.places[number]
        return self.views_of_application.of((self.seen(place), place.up is not None and place.up.working))

    # --- what may happen next

    def moves(self, w: World) -> tuple[list[tuple[str, World]], bool]:
        """Return the worlds that may come after this one, by what has happened, and whether anybody can go on by himself."""
        found: list[tuple[str, World]] = []
        goes_on = False
        application = self.view_of_application(w.places[0])
        for i, number in enumerate(w.places):
            up = self.places[number].up
            if up is None:
                lives = self.places[number].lives
                if lives == 0 or (lives < self.lives and w.faults < self.faults):
                    after = w._replace(faults=w.faults + (lives > 0))
                    found.append((f"start {i}", self.put(after, i, self.started(number))))
                continue
            if w.faults < self.faults:
                found.append((f"crash {i}", self.gone(w._replace(faults=w.faults + 1), i)))
            if i:
                moves = self.battery_moves(number, application)
            else:
                moves = self.application_moves(number, tuple(map(self.view, w.places[1:])))
            goes_on |= bool(moves)
            found += [(f"{i} {move.name}", self.after(w, i, move)) for move in moves]
        return found, goes_on

    def after(self, w: World, i: int, move: Move) -> World:
        places = list(w.places)
        places[i] = move.place
        for j, changes in move.changes:
            places[j] = self.places.of(self.places[places[j]]._replace(**changes))
        if i == 0 and self.places[move.place].up is None:
            places[1:] = map(self.forgotten, places[1:])
        return World(tuple(places), w.runs + move.runs, w.status if move.status is None else move.status, w.faults)

    def put(self, w: World, i: int, number: int) -> World:
        return w._replace(places=(*w.places[:i], number, *w.places[i + 1 :]))

    def gone(self, w: World, i: int) -> World:
        w = self.put(w, i, self.crashed(w.places[i]))
        return w if i else w._replace(places=(w.places[0], *map(self.forgotten, w.places[1:])))

    def _started(self, number: int) -> int:
        place = self.places[number]
        return self.places.of(place._replace(lives=place.lives + 1, up=Up(Record("", "", ""), (("lease",), ("born",)))))

    def _crashed(self, number: int) -> int:
        return self.places.of(self.places[number]._replace(up=None))

    def _forgotten(self, number: int) -> int:
        """Return a battery's place after the application that had to do with it is gone."""
        return self.places.of(self.places[number]._replace(asked=(), old=None))

    # --- a battery's own moves

    def _battery_moves(self, number: int, view: int) -> list[Move]:
        place = self.places[number]
        up = place.up
        assert up is not None
        application, running = self.views_of_application[view]
        application = replace(application, **{each: each in place.signals for each in ("ready", "save", "saved")})
        if up.todo:
            return [self.move(str(up.todo[0][0]), self.perform(place, up, application))]
        found = self.battery_results(place, up, running, application) if up.working else []
        for now in (0.0, 1.0):
            since = Since(old=up.old)
            step = protocol.battery_next(up.me, application, now=now, since=since, limits=LIMITS, working=up.working)
            todo = self.battery_todo(place, up.me, step)
            if todo:
                return [*found, self.decided(place, up, todo)]
        return found

    def battery_todo(self, place: Place, me: Record, step: Any) -> tuple[Operation, ...]:
        match step:
            case protocol.Wait():
                return ()
            case protocol.Fail():
                return (("publish", replace(me, state=FAILED)),)
            case protocol.Leave():
                return (("exit",),)
            case protocol.Prepare():
                return (("begin",),)
            case protocol.Save():
                return (("publish", replace(me, state=SAVING), "and begin"),)
            case protocol.Finish():
                done = replace(me, state=DONE, save=self.policy)
                return (("publish", done), *((("say", "saved"),) if "save" in place.signals else ()))
        raise AssertionError(step)

    def perform(self, place: Place, up: Up, application: Seen) -> Place:
        """Return the place of a battery that has done the first of what it has to do."""
        (op, *args), rest = up.todo[0], up.todo[1:]
        up = up._replace(todo=rest)
        match op:
            case "lease":
                return place._replace(up=up._replace(leased=True))
            case "born":
                return place._replace(up=self.battery_born(place, up, application))
            case "publish":
                return place._replace(record=args[0], up=up._replace(me=args[0], working=len(args) > 1))
            case "say":
                return place._replace(signals=place.signals | {args[0]}, up=up)
            case "unsay":
                return place._replace(signals=place.signals - {args[0]}, up=up)
            case "begin":
                return place._replace(up=up._replace(working=True))
        assert op == "exit"
        return place._replace(up=None)

    def battery_born(self, place: Place, up: Up, application: Seen) -> Up:
        previous = place.record
        me = protocol.battery_born(previous, ANY, ANY, str(place.lives), "")
        old = protocol.old_story(me, application)
        if me.state == DONE:
            say = me.saved or "save" in place.signals
            return up._replace(me=me, old=old, todo=(("publish", me), *((("say", "saved"),) if say else ())))
        stale = ("ready", "saved") if previous else ("ready", "saved", "save")
        return up._replace(me=me, old=old, todo=(*(("unsay", s) for s in stale if s in place.signals), ("publish", me)))

    def battery_results(self, place: Place, up: Up, running: bool, application: Seen) -> list[Move]:
        """Both ends of what runs for a battery: it goes well, or it does not."""
        up = up._replace(working=False)
        me = up.me
        bad = place._replace(up=up._replace(todo=(("publish", replace(me, state=FAILED)),)))
        if me.state == SAVING:
            assert application.record is not None
            assert not running, "output was saved while the application was running"
            done = replace(me, state=DONE, saved=True)
            kept = place._replace(kept=True, up=up._replace(todo=(("publish", done), ("say", "saved"))))
            return [self.move("saved", kept), self.move("could not save", bad)]
        if me.state != protocol.PREPARING:
            return [self.move("given up", place._replace(up=up))]
        good = place._replace(up=up._replace(todo=(("publish", replace(me, state=READY)), ("say", "ready"))))
        return [self.move("ready", good), self.move("could not be ready", bad)]

    # --- the application's own moves

    def _application_moves(self, number: int, views: tuple[int, ...]) -> list[Move]:
        place = self.places[number]
        up = place.up
        assert up is not None
        for i, (seen, asked, _) in enumerate(map(self.views.__getitem__, views), 1):
            if asked:
                return [self.do_asked(number, i, seen, asked)]
        peers = {b.name: self.views[view][0] for b, view in zip(self.batteries, views, strict=True)}
        if up.todo:
            return [self.do(place, up, peers)]
        found = []
        if up.working:
            idle = up._replace(working=False)
            for n in (0, 1):
                exited = replace(up.me, state=EXITED, exit=Exit(n))
                found.append(self.move(f"command ends {n}", place._replace(up=idle._replace(todo=(("publish", exited),)))))
        old = tuple((b.name, self.views[view][2]) for b, view in zip(self.batteries, views, strict=True))
        since = Since(old=tuple((name, incarnation) for name, incarnation in old if incarnation is not None))
        for now in (0.0, 1.0):
            step = protocol.application_next(
                up.me, peers, self.batteries, now=now, since=since, limits=LIMITS, running=up.working
            )
            match step:
                case protocol.Wait():
                    continue
                case protocol.Run():
                    todo: tuple[Operation, ...] = (("publish", replace(up.me, state=RUNNING, started=True)), ("spawn",))
                case protocol.Ask(battery, fresh):
                    asked = (*((("unsay", "saved"),) if fresh else ()), ("say", "save"))
                    return [*found, Move("decides ask", number, ((self.batteries.index(battery) + 1, {"asked": asked}),))]
                case protocol.Fail():
                    todo = (("publish", replace(up.me, state=FAILED)),)
                case protocol.Leave(status):
                    last = () if up.me.state in (FAILED, DONE) else (("publish", replace(up.me, state=DONE)),)
                    todo = (*last, ("exit", status))
                case _:
                    raise AssertionError(step)
            return [*found, self.decided(place, up, todo)]
        return found

    def do_asked(self, number: int, i: int, seen: Seen, asked: tuple[Operation, ...]) -> Move:
        """Say a signal to the battery, or take one back."""
        op, signal = asked[0]
        there = {each for each in ("ready", "save", "saved") if getattr(seen, each)}
        signals = frozenset(there | {signal} if op == "say" else there - {signal})
        return Move(f"{op} {signal} {i}", number, ((i, {"signals": signals, "asked": asked[1:]}),))

    def do(self, place: Place, up: Up, peers: dict[str, Seen]) -> Move:
        (op, *args), rest = up.todo[0], up.todo[1:]
        up = up._replace(todo=rest)
        match op:
            case "lease":
                return self.move(op, place._replace(up=up._replace(leased=True)))
            case "born":
                me = protocol.application_born(place.record, str(place.lives), self.policy)
                old = dict(protocol.old_stories(me, peers, self.batteries)) if place.record else {}
                changes = []
                for i, b in enumerate(self.batteries, 1):
                    stale = not place.record and peers[b.name].save
                    changes.append((i, {"old": old.get(b.name), "asked": (("unsay", "save"),) if stale else ()}))
                born = self.move(op, place._replace(up=up._replace(me=me, todo=(("publish", me),))))
                return born._replace(changes=tuple(changes))
            case "publish":
                return self.move(op, place._replace(record=args[0], up=up._replace(me=args[0])))
            case "spawn":
                return self.move(op, place._replace(up=up._replace(working=True)))._replace(runs=1)
        assert op == "exit"
        return self.move(op, place._replace(up=None))._replace(status=args[0])

    def move(self, name: str, place: Place) -> Move:
        return Move(name, self.places.of(place))

    def decided(self, place: Place, up: Up, todo: tuple[Operation, ...]) -> Move:
        return self.move(f"decides {[op[0] for op in todo]}", place._replace(up=up._replace(todo=todo)))

    # --- the search

    def explore(self) -> int:
        """Return how many worlds there are. Batteries are alike: worlds that differ in their order alone are one."""
        known = {self.first}
        queue = deque([self.first])
        parents: dict[World, tuple[World, str]] = {}
        while queue:
            w = queue.popleft()
            try:
                moves, goes_on = self.moves(w)
                self.check(w, goes_on)
            except AssertionError as problem:
                raise AssertionError(f"{problem}\n" + "\n".join(self.story(parents, w))) from None
            for name, after in moves:
                key = after._replace(places=(after.places[0], *sorted(after.places[1:])))
                if key not in known:
                    known.add(key)
                    parents[after] = (w, name)
                    queue.append(after)
        return len(known)

    def story(self, parents: dict[World, tuple[World, str]], w: World) -> list[str]:
        steps = []
        while w in parents:
            w, name = parents[w]
            steps.append(name)
        return steps[::-1]

    def check(self, w: World, goes_on: bool) -> None:
        assert w.runs <= 1, "the command was begun twice"
        places = [self.places[number] for number in w.places]
        if w.status == 0:
            assert w.runs == 1, "success without a run"
            application = places[0].record
            assert application is not None
            assert application.exit is not None
            assert application.exit.success
            missing = [i for i, place in enumerate(places) if i and not place.kept]
            assert not missing or self.policy == protocol.NEVER, f"success, and battery {missing} never saved"
        ups = [(i, place.up) for i, place in enumerate(places) if place.up is not None]
        assert not ups or goes_on, f"deadlock: {ups}"


@pytest.mark.parametrize(
    ("batteries", "lives", "faults"),
    [(1, 3, 4), (2, 2, 2), (3, 2, 1)],
    ids=["one battery, four faults", "two batteries, two faults", "three batteries, one fault"],
)
def test_no_interleaving_deadlocks_runs_twice_or_succeeds_without_the_save(batteries: int, lives: int, faults: int) -> None:
    assert Model(batteries, lives, faults).explore() > 1000


@pytest.mark.parametrize("policy", [protocol.ALWAYS, protocol.NEVER])
def test_the_same_holds_under_the_other_policies(policy: str) -> None:
    assert Model(1, 2, 3, policy).explore() > 500


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ("a claim that is not seen by the next life", "begun twice"),
        ("a battery that is taken for saved when it is ready", "never saved"),
        ("a dead battery that is waited for", "deadlock"),
    ],
)
def test_the_search_finds_a_protocol_that_is_broken(monkeypatch: pytest.MonkeyPatch, broken: str, found: str) -> None:
    born, standing = protocol.application_born, protocol.battery_standing
    if "claim" in broken:
        monkeypatch.setattr(
            protocol, "application_born", lambda p, i, s: replace(born(p, i, s), started=False, state=protocol.WAITING)
        )
    elif "saved" in broken:
        monkeypatch.setattr(protocol, "battery_standing", lambda b, seen, over: standing(b, seen, over=False))
    else:
        monkeypatch.setattr(protocol, "battery_standing", lambda b, seen, over: standing(b, replace(seen, alive=True), over=over))
    with pytest.raises(AssertionError, match=found):
        Model(1, 2, 3).explore()


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("batteries", "lives", "faults"), [(2, 3, 3), (3, 2, 2)])
def test_no_interleaving_of_the_long_campaign_does_either(batteries: int, lives: int, faults: int) -> None:
    assert Model(batteries, lives, faults).explore() > 100000
