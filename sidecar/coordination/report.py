"""What a coordination directory tells somebody who looks at it: who is how far, who waits for whom, how long each phase took.

`look` reads, `report_of` decides and is pure. What a participant waits for is not guessed: the protocol's own decision is taken
again, from the same facts, on the wall clock that records carry. Looking changes nothing in the directory and needs no
participant to be alive.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.coordination import protocol
from sidecar.coordination.notation import encode
from sidecar.coordination.protocol import (
    APPLICATION,
    DONE,
    EXITED,
    FAILED,
    FOREVER,
    PREPARING,
    READY,
    SAVING,
    Battery,
    Record,
    Seen,
    Since,
)
from sidecar.coordination.signals import Directory, record_to_json
from sidecar.errors import UsageError
from sidecar.figures import amount, counted, duration, share

# Standings for people, in the place of the record's state where that says less.
DIED, SCRIPT, EXPECTED = "died", "script", "expected"
_ENDED = (DONE, FAILED)
# What is shown is bounded, for whoever can write to the directory can write anything: how many phases (as many as records keep),
# how many characters of the name of a state and of what is explained, the last moment that has a date, and the largest amount.
_PHASES, _STATE, _LINE = 64, 40, 1000
_LATEST = 253370764800.0  # the year 9999
_LARGEST = 1 << 63


@dataclass(frozen=True)
class Waits:
    """Somebody waits for `name` to do `what`, since and until these times (seconds since the epoch; until may be infinite)."""

    name: str
    what: str
    since: float
    until: float


@dataclass(frozen=True)
class Phase:
    """A state that a participant was in, since when, and for how many seconds (until now, where it still is)."""

    state: str
    since: float
    seconds: float


@dataclass(frozen=True)
class Participant:
    """One participant. `standing` is its record's state, or died, script (it speaks by signals alone) or expected."""

    name: str
    kind: str
    standing: str
    alive: bool | None
    record: Record | None
    last: float
    signals: tuple[str, ...]
    phases: tuple[Phase, ...]
    waits: tuple[Waits, ...]
    progress: Mapping[str, Any] | None


@dataclass(frozen=True)
class Report:
    """All of it, at the time `now`. `over` tells that nobody does anything any more."""

    directory: str
    now: float
    participants: tuple[Participant, ...]
    events: tuple[Mapping[str, Any], ...]

    @property
    def over(self) -> bool:
        ended: tuple[str, ...] = (*_ENDED, DIED)
        if any(p.name == APPLICATION and p.standing in ended for p in self.participants):
            ended = (*ended, SCRIPT, EXPECTED)  # nobody would hear them any more
        return bool(self.participants) and all(p.standing in ended or _script_has_saved(p) for p in self.participants)

    def participant(self, name: str) -> Participant | None:
        """Return the participant called `name`, None where nothing is known of it."""
        return next((p for p in self.participants if p.name == name), None)

    def as_json(self) -> dict[str, Any]:
        """Return what `sidecar status --json` prints."""
        return {
            "directory": self.directory,
            "time": self.now,
            "over": self.over,
            "participants": [_participant_as_json(p) for p in self.participants],
            "events": [dict(event) for event in self.events],
        }


def look(directory: Directory) -> Report:
    """Return the report of a directory; Unreachable where it was deleted meanwhile."""
    names = set(directory.names())
    batteries = {name: b for name in names if (b := _battery(name, directory)) is not None}
    application = directory.record(APPLICATION)
    for name, kind in application.peers if application else ():
        if name not in batteries and (b := _known(name, kind)) is not None:
            batteries[name] = b
    for name, kind in ("fuse", "fuse"), *((f"postgres-{db}", "postgres") for db in directory.databases()):
        b = _known(name, kind)
        if b is not None and name not in batteries and any(directory.said(s) for s in (b.ready, b.save, b.saved)):
            batteries[name] = b
    seen = {name: directory.look(name, batteries.get(name)) for name in {*names, *batteries}}
    progress = {name: p for name in seen if (p := directory.progress(name)) is not None}
    return report_of(directory.path, time.time(), batteries, seen, progress, directory.events())


def report_of(
    path: str,
    now: float,
    batteries: Mapping[str, Battery],
    seen: Mapping[str, Seen],
    progress: Mapping[str, Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
) -> Report:
    """Return the report of what was `seen` of each participant, by name, at the time `now` in seconds since the epoch."""
    found = []
    log = [{**event, "time": _moment(event["time"])} for event in events]
    for name in sorted(seen, key=lambda n: (n != APPLICATION, n)):
        its, battery = seen[name], batteries.get(name)
        heard = [e["time"] for e in log if e["by"] == name]
        last = max(0.0, *map(_moment, (its.record.last if its.record else 0.0, progress.get(name, {}).get("time", 0.0))), *heard)
        said = [s for s, there in _signals(battery, its) if there]
        phases = _phases(its, now)
        waits = _waits(name, now, batteries, seen)
        kind = its.record.kind if its.record else battery.kind if battery else APPLICATION
        standing = _standing(its)
        found.append(
            Participant(
                name, kind, standing, its.alive, its.record, last, tuple(said), phases, waits, _current(progress.get(name), its)
            )
        )
    return Report(path, now, tuple(found), tuple(log))


def _moment(seconds: float) -> float:
    """Return the moment that has a date and is the nearest to `seconds`; 0 for what is no number."""
    return min(_LATEST, max(0.0, seconds))  # in this order: max(0.0, nan) is 0.0


def _known(name: str, kind: str) -> Battery | None:
    """Return the battery that goes by this name; None where none can (a record may hold anything)."""
    try:
        if kind == "postgres":
            battery = protocol.battery_of_database(name.removeprefix("postgres-"))
        else:
            battery = protocol.batteries_of([kind])[0]
    except UsageError:
        return None
    return battery if battery.name == name else None


def _battery(name: str, directory: Directory) -> Battery | None:
    record = directory.record(name)
    kind = record.kind if record else "postgres" if name.startswith("postgres-") else name
    return None if name == APPLICATION else _known(name, kind)


def _signals(battery: Battery | None, seen: Seen) -> list[tuple[str, bool]]:
    if battery is None:
        return []
    return [(battery.ready, seen.ready), (battery.save, seen.save), (battery.saved, seen.saved)]


def _standing(seen: Seen) -> str:
    if seen.record is None:
        # Its `save` is not of its own saying.
        return DIED if seen.alive is False else SCRIPT if seen.ready or seen.saved else EXPECTED
    if seen.alive or seen.record.state in _ENDED:
        return seen.record.state[:_STATE]
    return DIED


def _phases(seen: Seen, now: float) -> tuple[Phase, ...]:
    if seen.record is None:
        return ()
    times = [(state[:_STATE], _moment(when)) for state, when in seen.record.times[-_PHASES:]]
    ends = [when for _, when in times[1:]]
    last = now if seen.alive and seen.record.state not in _ENDED else times[-1][1] if times else 0.0
    return tuple(Phase(state, when, max(0.0, end - when)) for (state, when), end in zip(times, [*ends, last], strict=False))


def _current(progress: Mapping[str, Any] | None, seen: Seen) -> Mapping[str, Any] | None:
    """Return how far a participant is, where it is at it: what it published before its present phase is over."""
    record = seen.record
    if progress is None or record is None or record.state not in (PREPARING, READY, SAVING) or not record.times:
        return None
    sensible = all(0 <= progress[key] < _LARGEST for key in ("done", "total"))
    return progress if sensible and progress["time"] >= record.times[-1][1] else None


def _waits(name: str, now: float, batteries: Mapping[str, Battery], seen: Mapping[str, Seen]) -> tuple[Waits, ...]:
    """Return whom a living participant waits for, by the protocol's own decision."""
    its = seen[name]
    record = its.record
    if record is None or not its.alive or not record.times:
        return ()
    since = Since(born=_moment(record.born), phase=_moment(record.times[-1][1]))
    if name == APPLICATION:
        mine = [batteries[n] for n, _ in record.peers if n in batteries]
        step: Any = protocol.application_next(record, seen, mine, now=now, since=since, limits=record.limits, running=True)
    else:
        # What a battery sees of the application: its record, its life, and its own signals.
        application = seen.get(APPLICATION, Seen())
        view = Seen(application.record, application.alive, its.ready, its.save, its.saved)
        step = protocol.battery_next(record, view, now=now, since=since, limits=record.limits, working=True)
    if not isinstance(step, protocol.Wait):
        return ()
    return tuple(Waits(w.name, w.what, w.since, w.until) for w in step.on)


# --- for programs and for people ---------------------------------------------------------------------------------------


def _participant_as_json(p: Participant) -> dict[str, Any]:
    return {
        "name": p.name,
        "kind": p.kind,
        "standing": p.standing,
        "alive": p.alive,
        "last": p.last or None,
        "signals": list(p.signals),
        "phases": [{"state": x.state, "since": x.since, "seconds": round(x.seconds, 6)} for x in p.phases],
        "waits": [
            {"for": w.name, "what": w.what, "since": w.since, "until": None if w.until == FOREVER else w.until} for w in p.waits
        ],
        "progress": None if p.progress is None else dict(p.progress),
        "record": None if p.record is None else record_to_json(p.record),
    }


def far(progress: Mapping[str, Any]) -> str:
    """Return how far something is, for people."""
    return f"{progress['what']}: {share(progress['done'], progress['total'])}"


def explanation(p: Participant, report: Report) -> str:
    """Return in one line what a participant is at, or how it ended."""
    return _cut(_explanation(p, report))


def _explanation(p: Participant, report: Report) -> str:
    record = p.record
    if p.standing == SCRIPT:
        battery = _known(p.name, p.kind)
        said = [s for s in p.signals if battery is None or s != battery.save]
        asked = f"; it was told {battery.save}" if battery is not None and battery.save in p.signals else ""
        return f"a script; it has said {', '.join(said)}{asked}"
    if p.standing == EXPECTED:
        return "has not appeared"
    if p.standing == DIED:
        last = f"; the last it said was {record.state!r}" if record else " before it said anything"
        return f"died without a word{last}, {_ago(p.last, report)}" if p.last else f"died{last}"
    assert record is not None
    if record.state == FAILED:
        problem = record.error
        return f"{problem.reason} (exit status {problem.status})" if problem else "failed"
    if record.state in (DONE, EXITED) and p.name == APPLICATION and record.exit is not None:
        what = f"the command ended with status {record.exit.status}"
        return "; ".join([what, *_waiting(p, report)])
    if record.state == DONE:
        return "saved: " + payload_line(record.payload, "destinations") if record.saved else "done; nothing was kept"
    if p.progress and record.state == READY:
        return "; ".join([far(p.progress), *_waiting(p, report)])
    return far(p.progress) if p.progress else "; ".join(_waiting(p, report))


def _waiting(p: Participant, report: Report) -> list[str]:
    others = {q.name: q for q in report.participants}
    said = []
    for w in p.waits:
        limit = "" if w.until == FOREVER else f" and at most {duration(max(0.0, w.until - report.now))} more"
        if w.name == p.name:
            said.append(f"{w.what} for {duration(max(0.0, report.now - w.since))}{limit}")
            continue
        other = others.get(w.name)
        sign = f"; its last sign of life was {_ago(other.last, report)}" if other and other.last else ""
        said.append(f"waits for {w.name} {w.what}, for {duration(max(0.0, report.now - w.since))}{limit}{sign}")
    return said


def _script_has_saved(p: Participant) -> bool:
    battery = _known(p.name, p.kind) if p.standing == SCRIPT else None
    return battery is not None and battery.saved in p.signals


def _ago(when: float, report: Report) -> str:
    return f"{duration(max(0.0, report.now - when))} ago"


def _cut(text: str) -> str:
    return text if len(text) <= _LINE else text[: _LINE - 2] + " …"


def payload_line(payload: Mapping[str, Any] | None, key: str) -> str:
    """Return the gist of what a battery told: which bundles its `key` (sources, destinations) names and how much of them.

    Of a battery of another kind, the beginning of what it told.
    """
    told = (payload or {}).get(key)
    if not isinstance(told, Sequence):
        return encode(dict(payload))[:200] if payload else "nothing to tell"
    bundles = [each for each in told if isinstance(each, Mapping) and {"repo", "bundle", "files", "bytes"} <= each.keys()]
    return _cut("; ".join(_bundle_line(each) for each in bundles)) or f"no {key}"


def _bundle_line(bundle: Mapping[str, Any]) -> str:
    label = f"@{bundle['label']}" if bundle.get("label") else ""
    files, size = bundle["files"], bundle["bytes"]
    sensible = all(type(each) is int and 0 <= each < _LARGEST for each in (files, size))
    held = f", {counted(files, 'file')}, {amount(size)}" if sensible else ""
    return f"{bundle['repo']}{label} = {bundle['bundle']}{held}"
