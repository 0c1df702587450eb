"""Every interleaving of the pure protocol: one application, up to three batteries, each able to crash or restart at any step.

What one participant does is cut into single operations (take the lease, publish a record, say a signal, begin the command),
each a step of its own, and a crash may come between any two of them. A look is one step, what is decided by it comes later: so
decisions are taken on facts that are stale by then. Whoever waits with a deadline may find it passed at any moment.

Checked in every state: the command is begun at most once; the application ends in success only where every battery has saved
after its end; whoever is up can always go on in the end, without any restart (no deadlock, nobody waits for the dead).
"""

from collections import deque
from typing import Any, NamedTuple

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

# A minute alone on a machine, more beside others.
pytestmark = pytest.mark.timeout(900)

LIMITS = Limits(appear=1.0, grace=1.0)
KINDS = ("one", "two", "three")


class Up(NamedTuple):
    """A participant that is up: its record, what it has still to do of its last decision, and what runs on its behalf."""

    me: Record
    todo: tuple[tuple[Any, ...], ...]
    old: tuple[tuple[str, str], ...] = ()
    working: bool = False
    leased: bool = False


class World(NamedTuple):
    """Everything there is. `ups[0]` is the application; None is one that is not up."""

    ups: tuple[Up | None, ...]
    lives: tuple[int, ...]
    records: tuple[Record | None, ...]
    signals: frozenset[str]
    runs: int
    kept: frozenset[int]
    status: int | None
    faults: int


class Model:
    def __init__(self, batteries: int, lives: int, faults: int, policy: str = protocol.ON_SUCCESS) -> None:
        self.batteries = protocol.batteries_of(KINDS[:batteries])
        self.lives, self.faults, self.policy = lives, faults, policy
        self.first = World(
            (None,) * (batteries + 1), (0,) * (batteries + 1), (None,) * (batteries + 1), frozenset(), 0, frozenset(), None, 0
        )

    def seen(self, w: World, i: int) -> Seen:
        up = w.ups[i]
        alive = up.leased if up else None
        if not alive:
            # A lease that was ever taken stays as a file that is free.
            alive = False if w.lives[i] and (w.records[i] or w.lives[i] > 1 or up is None) else None
        if i == 0:
            return Seen(w.records[0], alive)
        b = self.batteries[i - 1]
        return Seen(w.records[i], alive, b.ready in w.signals, b.save in w.signals, b.saved in w.signals)

    def peers(self, w: World) -> dict[str, Seen]:
        return {b.name: self.seen(w, i + 1) for i, b in enumerate(self.batteries)}

    def application(self, w: World, i: int) -> Seen:
        b = self.batteries[i - 1]
        return replace(self.seen(w, 0), ready=b.ready in w.signals, save=b.save in w.signals, saved=b.saved in w.signals)

    # --- one participant's next moves, each a function of the world

    def moves(self, w: World) -> list[tuple[str, World]]:
        found: list[tuple[str, World]] = []
        for i, up in enumerate(w.ups):
            if up is None:
                if w.lives[i] == 0 or (w.lives[i] < self.lives and w.faults < self.faults):
                    found.append((f"start {i}", self.start(w, i)))
                continue
            if w.faults < self.faults:
                found.append((f"crash {i}", self.gone(w, i)._replace(faults=w.faults + 1)))
            found += self.own_moves(w, i, up)
        return found

    def own_moves(self, w: World, i: int, up: Up) -> list[tuple[str, World]]:
        if up.todo:
            return [(f"{i} {up.todo[0][0]}", self.perform(w, i, up))]
        found: list[tuple[str, World]] = []
        if up.working:
            found += self.results(w, i, up)
        for now in (0.0, 1.0):
            todo = self.decide(w, i, up, now)
            if todo is not None:
                found.append((f"{i} decides {[t[0] for t in todo]}", self.put(w, i, up._replace(todo=todo))))
                break
        return found

    def put(self, w: World, i: int, up: Up | None) -> World:
        return w._replace(ups=(*w.ups[:i], up, *w.ups[i + 1 :]))

    def gone(self, w: World, i: int) -> World:
        return self.put(w, i, None)

    def start(self, w: World, i: int) -> World:
        lives = (*w.lives[:i], w.lives[i] + 1, *w.lives[i + 1 :])
        restart = w.lives[i] > 0
        up = Up(Record("", "", ""), (("lease",), ("born",)))
        return self.put(w._replace(lives=lives, faults=w.faults + restart), i, up)

    def perform(self, w: World, i: int, up: Up) -> World:
        (op, *args), rest = up.todo[0], up.todo[1:]
        up = up._replace(todo=rest)
        if op == "lease":
            return self.put(w, i, up._replace(leased=True))
        if op == "born":
            return self.put(w, i, self.born(w, i, up))
        if op == "publish":
            records = (*w.records[:i], args[0], *w.records[i + 1 :])
            return self.put(w._replace(records=records), i, up._replace(me=args[0], working=len(args) > 1))
        if op == "say":
            return self.put(w._replace(signals=w.signals | {args[0]}), i, up)
        if op == "unsay":
            return self.put(w._replace(signals=w.signals - {args[0]}), i, up)
        if op == "spawn":
            return self.put(w._replace(runs=w.runs + 1), i, up._replace(working=True))
        if op == "begin":
            return self.put(w, i, up._replace(working=True))
        assert op == "exit"
        w = self.gone(w, i)
        return w._replace(status=args[0]) if i == 0 else w

    def born(self, w: World, i: int, up: Up) -> Up:
        previous, incarnation = w.records[i], str(w.lives[i])
        if i == 0:
            me = protocol.application_born(previous, incarnation, self.policy)
            old = protocol.old_stories(me, self.peers(w), self.batteries) if previous else ()
            stale = () if previous else tuple(("unsay", b.save) for b in self.batteries if b.save in w.signals)
            return up._replace(me=me, old=old, todo=(*stale, ("publish", me)))
        b = self.batteries[i - 1]
        me = protocol.battery_born(previous, b.name, b.kind, incarnation, "")
        old = protocol.old_story(me, self.application(w, i))
        if me.state == DONE:
            say = me.saved or b.save in w.signals
            return up._replace(me=me, old=old, todo=(("publish", me), *((("say", b.saved),) if say else ())))
        stale_signals = (b.ready, b.saved) if previous else (b.ready, b.saved, b.save)
        return up._replace(me=me, old=old, todo=(*(("unsay", s) for s in stale_signals if s in w.signals), ("publish", me)))

    def decide(self, w: World, i: int, up: Up, now: float) -> tuple[tuple[Any, ...], ...] | None:
        since = Since(old=up.old)
        me = up.me
        step: Any
        if i == 0:
            step = protocol.application_next(
                me, self.peers(w), self.batteries, now=now, since=since, limits=LIMITS, running=up.working
            )
        else:
            step = protocol.battery_next(me, self.application(w, i), now=now, since=since, limits=LIMITS, working=up.working)
        match step:
            case protocol.Wait():
                return None
            case protocol.Run():
                return (("publish", replace(me, state=RUNNING, started=True)), ("spawn",))
            case protocol.Ask(battery, fresh):
                return (*((("unsay", battery.saved),) if fresh else ()), ("say", battery.save))
            case protocol.Fail(problem):
                return (("publish", replace(me, state=FAILED, error=problem)),)
            case protocol.Leave(status):
                last = () if i or me.state in (FAILED, DONE) else (("publish", replace(me, state=DONE)),)
                return (*last, ("exit", status))
            case protocol.Prepare():
                return (("begin",),)
            case protocol.Save():
                return (("publish", replace(me, state=SAVING), "and begin"),)
            case protocol.Finish():
                b = self.batteries[i - 1]
                done = replace(me, state=DONE, save=self.policy)
                return (("publish", done), *((("say", b.saved),) if b.save in w.signals else ()))
        raise AssertionError(step)

    def results(self, w: World, i: int, up: Up) -> list[tuple[str, World]]:
        """Both ends of what runs for `up`: it goes well, or it does not."""
        up = up._replace(working=False)
        me = up.me
        if i == 0:
            return [
                (f"command ends {n}", self.put(w, i, up._replace(todo=(("publish", replace(me, state=EXITED, exit=Exit(n))),))))
                for n in (0, 1)
            ]
        b = self.batteries[i - 1]
        error = protocol.Problem(69, b.name, "it failed")
        failed = self.put(w, i, up._replace(todo=(("publish", replace(me, state=FAILED, error=error)),)))
        if me.state == SAVING:
            application = w.records[0]
            assert application is not None
            running = w.ups[0] is not None and w.ups[0].working
            assert not running, "output was saved while the application was running"
            done = replace(me, state=DONE, saved=True)
            kept = w._replace(kept=w.kept | {i})
            return [
                (f"{i} saved", self.put(kept, i, up._replace(todo=(("publish", done), ("say", b.saved))))),
                (f"{i} could not save", failed),
            ]
        if me.state != protocol.PREPARING:
            return [(f"{i} given up", self.put(w, i, up))]
        ready = replace(me, state=READY)
        return [
            (f"{i} ready", self.put(w, i, up._replace(todo=(("publish", ready), ("say", b.ready))))),
            (f"{i} could not be ready", failed),
        ]

    # --- the search

    def key(self, w: World) -> Any:
        """Batteries are alike: worlds that differ in their order alone are one."""
        application = w.ups[0]
        old = dict(application.old) if application else {}
        todo = tuple(self.rest(t) for t in application.todo) if application else ()
        rows = []
        for i, b in enumerate(self.batteries, 1):
            up = w.ups[i]
            state = up and (self.shape(up.me), tuple(self.rest(t) for t in up.todo), up.old, up.working, up.leased)
            said = (b.ready in w.signals, b.save in w.signals, b.saved in w.signals)
            meant = tuple(t[1].startswith(b.kind) for t in application.todo if t[0] in ("say", "unsay")) if application else ()
            rows.append((state, w.lives[i], self.shape(w.records[i]), said, i in w.kept, old.get(b.name), meant))
        rows.sort(key=hash)
        first = application and (self.shape(application.me), todo, application.working, application.leased)
        return (first, w.lives[0], self.shape(w.records[0]), tuple(rows), w.runs, w.status, w.faults)

    def rest(self, op: tuple[Any, ...]) -> Any:
        """An operation without the battery's name."""
        return tuple(self.shape(a) if isinstance(a, Record) else str(a).rpartition("/")[2] for a in op)

    def shape(self, r: Record | None) -> Any:
        """What decisions depend on in a record, without the battery's name."""
        return r and (r.incarnation, r.life, r.state, r.started, r.exit and r.exit.code, r.saved, r.save)

    def explore(self) -> int:
        known = {self.key(self.first)}
        queue = deque([self.first])
        parents: dict[Any, tuple[Any, str]] = {}
        while queue:
            w = queue.popleft()
            here = self.key(w)
            try:
                self.check(w)
                moves = self.moves(w)
            except AssertionError as problem:
                raise AssertionError(f"{problem}\n" + "\n".join(self.story(parents, here))) from None
            for name, after in moves:
                key = self.key(after)
                if key not in known:
                    known.add(key)
                    parents[key] = (here, name)
                    queue.append(after)
        return len(known)

    def story(self, parents: dict[Any, tuple[Any, str]], key: Any) -> list[str]:
        steps = []
        while key in parents:
            key, name = parents[key]
            steps.append(name)
        return steps[::-1]

    def check(self, w: World) -> None:
        assert w.runs <= 1, "the command was begun twice"
        if w.status == 0:
            assert w.runs == 1, "success without a run"
            application = w.records[0]
            assert application is not None
            assert application.exit is not None
            assert application.exit.success
            missing = [i for i in range(1, len(self.batteries) + 1) if i not in w.kept]
            assert not missing or self.policy == protocol.NEVER, f"success, and battery {missing} never saved"
        ups = [(i, up) for i, up in enumerate(w.ups) if up is not None]
        assert not ups or any(self.own_moves(w, i, up) for i, up in ups), f"deadlock: {ups}"


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
