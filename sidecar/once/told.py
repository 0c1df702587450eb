"""A run, and what it wrote, as others are told of it, by `--json` and over HTTP: plain data; and what they make of that again.

What is told is less than what the ledger has: whoever is told of a run cannot claim, change or forget it. A variable that was
redacted is only known to have been there.

`sidecar once` imports this at every start, a replay's as well: what only some of it needs is imported where it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar.exits import Exit
from sidecar.once.asked import Variable
from sidecar.once.facts import RUNNING, STDERR, STDOUT, UNKNOWN, Piece, Run, Written, moment
from sidecar.process import Identity

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
    signal, status = told["signal"] or 0, told["status"] or 0
    code = told["exit_code"] or 0
    owner = told["owner"]
    return Run(
        id=0,
        lease="",
        instance=told["instance"],
        name=told["name"],
        state=told["state"],
        command=tuple(told["command"]),
        directory=told["directory"],
        owner=Identity(owner["pid"], owner["ticks"], owner["boot"], 0),
        claimed=_at(told["claimed_at"]),
        started=_at(told["started_at"]),
        finished=_at(told["finished_at"]),
        exit=Exit(code, signal, told["reason"], 0 if status == (128 + signal if signal else code) else status),
        stdout=Written(told["stdout"]["bytes"], told["stdout"]["kept"]),
        stderr=Written(told["stderr"]["bytes"], told["stderr"]["kept"]),
        cut=told["cut"],
        variables=tuple(
            Variable(name, hash=_REDACTED) if value is None else Variable(name, value)
            for name, value in told["environment"].items()
        ),
    )


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

    data = told["text"].encode() if "text" in told else base64.b64decode(told["base64"], validate=True)
    return Piece(told["number"], _STREAMS[told["stream"]], _at(told["at"]), data)


def _at(moment: str | None) -> int:
    """Return microseconds since the epoch, 0 where it has not been yet."""
    if moment is None:
        return 0
    from datetime import UTC, datetime, timedelta

    return (datetime.fromisoformat(moment) - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
