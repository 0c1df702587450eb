"""A run, and what it wrote, as others are told of it, by `--json` and over HTTP: plain data; and what they make of that again.

What is told is less than what the ledger has: whoever is told of a run cannot claim, change or forget it. A variable that was
redacted is only known to have been there.

`sidecar once` imports this at every start, a replay's as well: what only some of it needs is imported where it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.exits import Exit
from sidecar.heard import text, texts, whole, whole_or_none
from sidecar.once.asked import Variable
from sidecar.once.facts import FAILED_TO_START, FINISHED, RUNNING, STDERR, STDOUT, UNKNOWN, Piece, Run, Written, moment
from sidecar.process import Identity

_STATES = (RUNNING, FINISHED, FAILED_TO_START, UNKNOWN)
_STREAMS = {"stdout": STDOUT, "stderr": STDERR}
# In the place of a hash, which nobody is told.
_REDACTED = b"redacted"


def as_json(run: Run) -> dict[str, Any]:
    """Return all that is known of a run but what it wrote; of a variable that was redacted only that there was one."""
    ended = run.state not in (RUNNING, UNKNOWN)
    return {
        "name": run.name,
        "instance": run.instance,
        "state": run.state,
        "claimed_at": moment(run.claimed),
        "started_at": moment(run.started) if run.started else None,
        "finished_at": moment(run.finished) if ended else None,
        "status": run.exit.status if ended else None,
        "exit_code": run.exit.code if ended and not run.exit.signal else None,
        "signal": run.exit.signal or None,
        "reason": run.exit.reason,
        "command": list(run.command),
        "directory": run.directory,
        "environment": {each.name: None if each.hash else each.value for each in run.variables},
        "stdout": {"bytes": run.stdout.total, "kept": run.stdout.kept},
        "stderr": {"bytes": run.stderr.total, "kept": run.stderr.kept},
        "cut": run.cut,
        "owner": {"pid": run.owner.pid, "ticks": run.owner.ticks, "boot": run.owner.boot},
    }


def of_json(told: Mapping[str, Any]) -> Run:
    """Return the run that others were told of; KeyError, TypeError or ValueError where it is none."""
    state, owner = text(told, "state"), told["owner"]
    if state not in _STATES:
        raise ValueError(f"{state!r} is no state of a run")
    signal, status, code = (whole_or_none(told, name) or 0 for name in ("signal", "status", "exit_code"))
    return Run(
        id=whole(told, "id") if "id" in told else 0,
        lease="",
        instance=text(told, "instance"),
        name=text(told, "name"),
        state=state,
        command=texts(told, "command"),
        directory=text(told, "directory"),
        owner=Identity(whole(owner, "pid"), whole(owner, "ticks"), text(owner, "boot"), 0),
        claimed=_at(told["claimed_at"]),
        started=_at(told["started_at"]),
        finished=_at(told["finished_at"]),
        exit=Exit(code, signal, text(told, "reason"), 0 if status == (128 + signal if signal else code) else status),
        stdout=_written(told["stdout"]),
        stderr=_written(told["stderr"]),
        cut=text(told, "cut"),
        variables=tuple(
            Variable(name, hash=_REDACTED) if value is None else Variable(name, text(told["environment"], name))
            for name, value in told["environment"].items()
        ),
    )


def _written(told: Mapping[str, Any]) -> Written:
    return Written(whole(told, "bytes"), whole(told, "kept"))


def piece_as_json(piece: Piece) -> dict[str, Any]:
    """Return what a run wrote at one moment: `text`, or `base64` where that is no UTF-8, as where a character was cut in two."""
    about = {"number": piece.number, "stream": "stdout" if piece.stream == STDOUT else "stderr", "at": moment(piece.at)}
    try:
        return {**about, "text": piece.bytes.decode()}
    except UnicodeDecodeError:
        import base64  # which a replay does without

        return {**about, "base64": base64.b64encode(piece.bytes).decode()}


def piece_of_json(told: Mapping[str, Any]) -> Piece:
    """Return the piece that others were told of; KeyError, TypeError or ValueError where it is none."""
    import base64

    data = text(told, "text").encode() if "text" in told else base64.b64decode(text(told, "base64"), validate=True)
    return Piece(whole(told, "number"), _STREAMS[told["stream"]], _at(told["at"]), data)


def _at(moment: str | None) -> int:
    """Return microseconds since the epoch, 0 where it has not been yet."""
    if moment is None:
        return 0
    from datetime import UTC, datetime, timedelta

    return (datetime.fromisoformat(moment) - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
