"""What the participants of a pod tell each other, and what each does next.

They share a directory. Each participant keeps a *record* there (its state and what it knows for certain), holds a *lease*
that the kernel drops when it dies, and says each thing once by leaving a *signal*. What to do next depends on nothing but
what stands there, so whoever restarts reads it again and carries on.

Rule 1: whatever decides what happens next stands in this module.
Rule 2: this module knows no file, clock, process or environment; time comes in as an argument.

The participants. One application; any number of batteries. Where a participant has a record, the record is the truth and
its signals are for others to see. Where it has none (a shell script that says everything with `touch`) its signals are all
there is, and it is simply waited for.

        application                          battery
        waiting ── every battery ready ──┐   preparing ── ready() returned ── says ready
        running    claimed, then begun <─┘   ready     ── waits for the application to be over
        exited     with this status      ──> saving    ── the policy says so
        done       <── every battery saved   done      ── says saved (or keeps nothing, by policy)
        failed     for a reason              failed    ── for a reason

Lives. A restarted container is a new *incarnation* of the same participant; its record counts its lives and carries on what
is certain: that the command was begun (`started`), how it ended (`exit`), that a battery is done. A command that was begun
and whose end is not known is never begun again.

The dead. A participant that is gone without a last word is dead at once for whoever waits for it. One case is different: in a
later life of one's own the pod evidently restarts its containers, so an end that a peer came to *before* this life is an old
story, and its next life is waited for (bounded by the appear timeout). Without that, two crash-looping containers would each
take the other's last failure for news, for ever.
"""

from __future__ import annotations

from sidecar import errors
from sidecar.exits import Exit as Exit
from sidecar.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, TypeAlias

# The states of a record.
WAITING, RUNNING, EXITED = "waiting", "running", "exited"
PREPARING, READY, SAVING = "preparing", "ready", "saving"
DONE, FAILED = "done", "failed"

# When a battery keeps what the application made.
ON_SUCCESS, ALWAYS, NEVER = "on-success", "always", "never"
POLICIES = (ON_SUCCESS, ALWAYS, NEVER)

APPLICATION = "application"
FOREVER = float("inf")
# A second SIGTERM leaves at most this long, in seconds: whoever sends it does not want to wait, and a last word takes no longer.
SECOND_GRACE = 2.0


@value
class Battery:
    """A battery as the application knows it: its name, its kind, and the signals between the two of them.

    The signals are paths below the coordination directory. Those of fuse and postgres are datamon's; every other kind has a
    folder of its own name. A database is a participant of its own, `postgres-NAME`.
    """

    name: str
    kind: str
    ready: str
    save: str
    saved: str


def batteries_of(kinds: Sequence[str], databases: Sequence[str] = ()) -> tuple[Battery, ...]:
    """Return the batteries that `-b KIND …` and `-d "DB …"` name, each once, in order.

    Raises UsageError for names that are no names, for databases without `postgres`, and for `postgres` without any.
    """
    found: list[Battery] = []
    for kind in dict.fromkeys(kinds):
        check_name(kind, "kind of battery")
        if kind == "fuse":
            found.append(Battery("fuse", kind, "mountdone", "initupload", "uploaddone"))
        elif kind == "postgres":
            if not databases:
                raise errors.UsageError('-b postgres needs -d "DB [DB …]": the names of its databases')
            found.extend(battery_of_database(db) for db in dict.fromkeys(databases))
        elif kind == APPLICATION:
            raise errors.UsageError(f"{APPLICATION!r} is no kind of battery")
        else:
            found.append(Battery(kind, kind, f"{kind}/ready", f"{kind}/save", f"{kind}/saved"))
    if databases and "postgres" not in kinds:
        raise errors.UsageError("-d names databases, which need -b postgres")
    for i, b in enumerate(found):
        for a in found[:i]:
            if a.name == b.name or _tops(a) & _tops(b):
                raise errors.UsageError(f"{a.name} and {b.name} would take each other's place in the coordination directory")
    return tuple(found)


def _tops(battery: Battery) -> set[str]:
    """Return what a battery has at the top of the coordination directory."""
    return {signal.partition("/")[0] for signal in (battery.ready, battery.save, battery.saved)}


def battery_of_database(db: str) -> Battery:
    """Return the battery that runs the database called `db`."""
    check_name(db, "database")
    return Battery(f"postgres-{db}", "postgres", f"{db}/dbstarted", f"{db}/initdbupload", f"{db}/dbuploaddone")


def check_name(name: str, what: str) -> str:
    """Return `name`, or raise UsageError: it becomes the name of a file in a directory that others write to."""
    if not name or len(name.encode(errors="replace")) > 128:
        raise errors.UsageError(f"the name of a {what} has 1 to 128 bytes, not {len(name)} characters")
    if name.startswith(".") or "/" in name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise errors.UsageError(f"{name!r} is no name for a {what}: no '/', leading '.', or control character")
    return name


@value
class Problem:
    """What went wrong: the exit status it ends with, who is to blame, and a sentence."""

    status: int
    culprit: str
    reason: str


@value
class Limits:
    """How long each thing may take, in seconds; `grace` is what is left after SIGTERM."""

    appear: float = 600.0
    ready: float = FOREVER
    run: float = FOREVER
    save: float = FOREVER
    rejoin: float = 0.0
    grace: float = 25.0


@value
class Record:
    """What one participant has published of itself.

    `times` holds, for each state it has been in, when it entered it (seconds since the epoch). `save` is the policy it goes
    by ("" for a battery that follows the application's). `saved` tells, of a battery that is done, whether it kept anything.
    `born`, `limits` and `peers` (name and kind of whom it waits for) let others say what it waits for, since and until when.
    """

    name: str
    kind: str
    incarnation: str
    life: int = 1
    state: str = ""
    started: bool = False
    exit: Exit | None = None
    error: Problem | None = None
    save: str = ""
    saved: bool = False
    times: tuple[tuple[str, float], ...] = ()
    payload: Mapping[str, Any] | None = None
    born: float = 0.0
    limits: Limits = Limits()
    peers: tuple[tuple[str, str], ...] = ()

    @property
    def last(self) -> float:
        """When it last said anything, in seconds since the epoch; 0 where it never did."""
        return max((time for _, time in self.times), default=0.0)


@value
class Seen:
    """What one participant sees of another: its signals, its record, and whether its lease is held.

    `alive` is None where there is no lease at all: it has not appeared, or it is a shell script.
    """

    record: Record | None = None
    alive: bool | None = None
    ready: bool = False
    save: bool = False
    saved: bool = False


NOTHING = Seen()


def application_born(previous: Record | None, incarnation: str, save: str) -> Record:
    """Return the record with which a life of the application begins: what is certain is kept, a failure is not."""
    if previous is None:
        return Record(APPLICATION, APPLICATION, incarnation, state=WAITING, save=save)
    state = previous.state if previous.state == DONE else EXITED if previous.exit else RUNNING if previous.started else WAITING
    return replace(previous, incarnation=incarnation, life=previous.life + 1, state=state, save=save, error=None)


def battery_born(previous: Record | None, name: str, kind: str, incarnation: str, save: str) -> Record:
    """Return the record with which a life of a battery begins: one that was done stays so, any other begins again."""
    if previous is None:
        return Record(name, kind, incarnation, state=PREPARING, save=save)
    state = DONE if previous.state == DONE else PREPARING
    return replace(previous, incarnation=incarnation, life=previous.life + 1, state=state, save=save, error=None)


@value
class Since:
    """The times a decision depends on, on one clock: when this life began, when its phase did, when SIGTERM came, and when
    each peer was first seen to be lost. `old` holds, by participant, the incarnation whose end is an old story."""

    born: float = 0.0
    phase: float = 0.0
    terminated: float | None = None
    lost: tuple[tuple[str, float], ...] = ()
    old: tuple[tuple[str, str], ...] = ()


def terminated(since: Since, now: float, grace: float) -> Since:
    """Return the times after SIGTERM came at `now`: the first begins the grace, any later one leaves SECOND_GRACE of it."""
    if since.terminated is None:
        return replace(since, terminated=now)
    return replace(since, terminated=min(since.terminated, now - max(0.0, grace - SECOND_GRACE)))


# --- what to do next ---------------------------------------------------------------------------------------------------


@value
class Waiting:
    """Somebody who is waited for: what it is to say, since when, and until when at the latest (on the decision's clock)."""

    name: str
    what: str
    since: float
    until: float


@value
class Wait:
    """Nothing to do until somebody says something, or `until` comes."""

    on: tuple[Waiting, ...]
    until: float = FOREVER


@value
class Run:
    """Claim the command and begin it."""


@value
class Stop:
    """End the command: SIGTERM, grace, SIGKILL."""

    problem: Problem


@value
class Ask:
    """Say to this battery that the application is over. `fresh` where a `saved` that stands there can only be stale."""

    battery: Battery
    fresh: bool


@value
class Prepare:
    """Make the battery ready."""


@value
class Save:
    """Keep what the application made."""


@value
class Finish:
    """A battery is done; nothing is kept, for this reason."""

    reason: str


@value
class Fail:
    """Say that it failed, and why."""

    problem: Problem


@value
class Leave:
    """It is over: end with this status."""

    status: int
    problem: Problem | None = None


if TYPE_CHECKING:
    ApplicationStep: TypeAlias = Wait | Run | Stop | Ask | Fail | Leave
    BatteryStep: TypeAlias = Wait | Prepare | Save | Finish | Fail | Leave


# --- the application ---------------------------------------------------------------------------------------------------

ABSENT, COMING, THERE, LOST = "absent", "coming", "there", "lost"


def battery_standing(battery: Battery, seen: Seen, *, over: bool) -> tuple[str, Problem | None]:
    """Return how a battery stands: absent, coming, there (ready; or saved, the application being `over`), or lost and why."""
    record, name = seen.record, battery.name
    if record is None:
        if seen.alive is False:
            return LOST, Problem(errors.UNAVAILABLE, name, f"{name} died before it said anything")
        if seen.alive is None and (seen.saved if over else seen.ready):
            return THERE, None
        return (COMING if seen.alive or over or seen.ready else ABSENT), None
    if record.state == FAILED:
        problem = record.error or Problem(errors.UNAVAILABLE, name, "it did not say why")
        return LOST, Problem(problem.status, name, f"{name} failed: {problem.reason}")
    if record.state == DONE:
        if over and (record.saved or record.save == NEVER):
            return THERE, None
        return LOST, Problem(errors.UNAVAILABLE, name, f"{name} has finished without keeping the output")
    if not seen.alive:
        return LOST, Problem(errors.UNAVAILABLE, name, f"{name} died without a word; the last it said was {record.state!r}")
    if not over and record.state in (READY, SAVING):
        return THERE, None
    return COMING, None


def incarnation_of(seen: Seen) -> str:
    return seen.record.incarnation if seen.record else ""


def old_stories(me: Record, peers: Mapping[str, Seen], batteries: Sequence[Battery]) -> tuple[tuple[str, str], ...]:
    """Return the ends that the batteries came to before this life began, to be taken once, at its beginning."""
    if me.life == 1:
        return ()
    seen = ((b, peers.get(b.name, NOTHING)) for b in batteries)
    return tuple((b.name, incarnation_of(s)) for b, s in seen if battery_standing(b, s, over=me.exit is not None)[0] == LOST)


def application_next(
    me: Record,
    peers: Mapping[str, Seen],
    batteries: Sequence[Battery],
    *,
    now: float = 0.0,
    since: Since = Since(),  # noqa: B008
    limits: Limits = Limits(),  # noqa: B008
    running: bool = False,
    fail_fast: bool = False,
) -> ApplicationStep:
    """Return what the application's wrapper does, its own record and the batteries being these.

    `running` tells that the command is a child of this very process. The times of `since` are on the clock of `now`.
    """
    if me.state == DONE and me.exit is not None:
        return Leave(me.exit.status)
    if me.exit is None and me.started:
        if not running:
            reason = "the command was begun in an earlier life and its end is not known; it is not begun again"
            return Fail(Problem(errors.UNKNOWN, APPLICATION, reason)) if me.state != FAILED else _left(me)
        return _while_running(peers, batteries, now, since, limits, fail_fast)
    if me.state == FAILED:
        return _left(me)
    over = me.exit is not None
    if me.exit is not None and (me.save == NEVER or (me.save != ALWAYS and not me.exit.success)):
        return Leave(me.exit.status)
    if over:
        for b in batteries:
            seen = peers.get(b.name, NOTHING)
            if not seen.save:
                return Ask(b, fresh=seen.record is None)
    waits: list[Waiting] = []
    for b in batteries:
        seen = peers.get(b.name, NOTHING)
        standing, problem = battery_standing(b, seen, over=over)
        if problem is not None:
            until = _patience(b.name, seen, now, since, limits)
            if until <= now:
                return Fail(Problem(errors.NOT_SAVED if over else errors.UNAVAILABLE, b.name, problem.reason))
            waits.append(Waiting(b.name, f"to come back ({problem.reason})", since.phase, until))
        elif standing == ABSENT:
            waits.append(Waiting(b.name, f"to appear and say {b.ready}", since.phase, since.phase + limits.appear))
        elif standing == COMING and over:
            waits.append(Waiting(b.name, f"to say {b.saved}", since.phase, since.phase + limits.save))
        elif standing == COMING:
            waits.append(Waiting(b.name, f"to say {b.ready}", since.phase, since.phase + limits.ready))
    if over and since.terminated is not None:
        end = since.terminated + limits.grace
        waits = [Waiting(w.name, w.what, w.since, min(w.until, end)) for w in waits]
    late = [w for w in waits if w.until <= now]
    if late:
        who = ", ".join(w.name for w in late)
        why = "the grace after SIGTERM ran out" if since.terminated is not None else "the time ran out"
        said = "; ".join(f"{w.name} was {w.what}" for w in late)
        reason = f"waited for {now - late[0].since:.1f} s, then {why}: {said}"
        return Fail(Problem(errors.NOT_SAVED if over else errors.DEADLINE, who, reason))
    if waits:
        return Wait(tuple(waits), min(w.until for w in waits))
    return Leave(me.exit.status) if me.exit is not None else Run()


def _while_running(
    peers: Mapping[str, Seen], batteries: Sequence[Battery], now: float, since: Since, limits: Limits, fail_fast: bool
) -> ApplicationStep:
    """The command runs. A battery's end does not stop it (its next life may still save) unless failing fast was asked for."""
    until = since.phase + limits.run
    if now >= until:
        return Stop(Problem(errors.DEADLINE, APPLICATION, f"the command ran longer than {limits.run:g} s"))
    if fail_fast:
        for b in batteries:
            seen = peers.get(b.name, NOTHING)
            _, problem = battery_standing(b, seen, over=False)
            if problem is not None and _patience(b.name, seen, now, since, limits) <= now:
                return Stop(Problem(errors.UNAVAILABLE, b.name, f"stopped, to fail fast: {problem.reason}"))
    return Wait((Waiting(APPLICATION, "to end", since.phase, until),), until)


def _patience(name: str, seen: Seen, now: float, since: Since, limits: Limits) -> float:
    """Return until when a lost peer may come back as a new incarnation."""
    if (name, incarnation_of(seen)) in since.old:
        return since.phase + limits.appear
    return dict(since.lost).get(name, now) + limits.rejoin


def _left(me: Record) -> Leave:
    problem = me.error or Problem(errors.UNAVAILABLE, me.name, "it did not say why")
    if me.exit is not None and me.exit.status != 0:
        return Leave(me.exit.status, problem)
    return Leave(problem.status, problem)


# --- a battery ---------------------------------------------------------------------------------------------------------

NOT_OVER, NEVER_RAN, OVER = "not over", "never ran", "over"


def application_standing(seen: Seen) -> tuple[str, bool, str]:
    """Return how the application stands for a battery, whether it succeeded, and why not.

    A shell script says `save` after its command succeeded, and never otherwise.
    """
    record = seen.record
    if record is None:
        if seen.alive is False:
            return NEVER_RAN, False, "the application died before it said anything"
        return (OVER, True, "") if seen.save and seen.alive is None else (NOT_OVER, False, "")
    if record.exit is not None:
        return OVER, record.exit.success, record.exit.reason or f"the application ended with status {record.exit.status}"
    if record.state == FAILED:
        reason = record.error.reason if record.error else "it did not say why"
        return (OVER if record.started else NEVER_RAN), False, f"the application failed: {reason}"
    if not seen.alive:
        reason = f"the application died without a word; the last it said was {record.state!r}"
        return (OVER if record.started else NEVER_RAN), False, reason
    return NOT_OVER, False, ""


def old_story(me: Record, application: Seen) -> tuple[tuple[str, str], ...]:
    """Return the end that the application came to, without having begun its command, before this life of the battery."""
    if me.life > 1 and application_standing(application)[0] == NEVER_RAN:
        return ((APPLICATION, incarnation_of(application)),)
    return ()


def battery_next(
    me: Record,
    application: Seen,
    *,
    now: float = 0.0,
    since: Since = Since(),  # noqa: B008
    limits: Limits = Limits(),  # noqa: B008
    working: bool = False,
    native: bool = False,
) -> BatteryStep:
    """Return what a battery does, its own record and the application being these.

    `working` tells that `ready` or `save` is under way. `native` is a native sidecar: it stays until SIGTERM.
    """
    end = FOREVER if since.terminated is None else since.terminated + limits.grace
    if me.state == FAILED:
        return _left(me)
    if me.state == DONE:
        return Wait((), FOREVER) if native and since.terminated is None else Leave(errors.OK)
    if now >= end:
        doing = {PREPARING: "ready", READY: "told that the application is over", SAVING: "done saving"}.get(me.state, "done")
        status = errors.NOT_SAVED if me.state == SAVING else 128 + 15
        return Fail(Problem(status, me.name, f"SIGTERM came, and {me.name} was not {doing} within {limits.grace:g} s"))
    if me.state == SAVING:
        until = min(end, since.phase + limits.save)
        if now >= until:
            return Fail(Problem(errors.NOT_SAVED, me.name, f"{me.name} was not done saving within {limits.save:g} s"))
        return Wait((Waiting(me.name, "to be done saving", since.phase, until),), until) if working else Save()

    standing, success, reason = application_standing(application)
    if standing == NEVER_RAN:
        until = min(_patience(APPLICATION, application, now, since, limits), end)
        # SIGTERM is the pod's end, or comes to a native sidecar when the application is over: nobody begins it again.
        if until <= now or since.terminated is not None:
            return Fail(Problem(errors.UNAVAILABLE, APPLICATION, reason))
        waiting = Waiting(APPLICATION, f"to come back ({reason})", since.phase, until)
    elif standing == OVER:
        policy = me.save or (application.record.save if application.record else "") or ON_SUCCESS
        if policy == NEVER or (policy != ALWAYS and not success):
            return Finish("nothing is kept, by policy" if policy == NEVER else f"nothing is kept: {reason}")
        if me.state == READY:
            return Save()
        waiting = Waiting(me.name, "to be ready, and then to save", since.phase, end)
    else:
        appeared = application.record is not None or application.alive is not None
        what = "to end" if appeared else "to appear"
        # From this life's beginning: an application that did not appear while all was made ready is late already.
        until = end if appeared else min(end, since.born + limits.appear)
        if until <= now and me.state == READY:
            return Fail(Problem(errors.DEADLINE, APPLICATION, f"the application did not appear within {limits.appear:g} s"))
        waiting = Waiting(APPLICATION, what, since.phase, until)

    if me.state == PREPARING:
        until = min(end, since.phase + limits.ready)
        if now >= until:
            return Fail(Problem(errors.DEADLINE, me.name, f"{me.name} was not ready within {limits.ready:g} s"))
        return Wait((Waiting(me.name, "to be ready", since.phase, until),), until) if working else Prepare()
    return Wait((waiting,), waiting.until)
