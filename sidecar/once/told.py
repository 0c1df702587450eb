"""A run as others are told of it, by `--json` and over HTTP: plain data."""

from __future__ import annotations

from typing import Any

from sidecar.once.facts import RUNNING, UNKNOWN, Run, moment


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
