"""What is asked of a function, what its workers come to, and what is answered. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from sidecar.errors import Fault
from sidecar.heard import seconds, text, whole, whole_or_none

Status = Literal["ok", "error", "timeout", "output-limit", "file-limit", "signalled", "worker-failed", "lost"]

MOST_WORKERS = 5
KIB, MIB = 1 << 10, 1 << 20
# Half of what the kernel takes as one text (MAX_ARG_STRLEN), of arguments and of context.
WORDS = 64 * KIB


@dataclass(frozen=True)
class Limits:
    """What one worker may use: seconds, bytes and counts. `output` is of each stream, `scratch` of each place it may write to,
    `data` of each process."""

    wall: float = 3.0
    cpu: int = 3
    data: int = 512 * MIB
    processes: int = 64
    files: int = 64
    file: int = 10 * MIB
    output: int = 64 * KIB
    scratch: int = 64 * MIB


# The most that whoever serves calls lets them ask for, unless it says otherwise.
MOST = Limits(wall=60.0)


@dataclass(frozen=True)
class Asked:
    """One call: the source as it was handed over, and what its program is given. `context` is text, JSON as a rule.

    `workers` run it at once, or each `delay` seconds after the one before.
    """

    source: bytes
    arguments: tuple[str, ...] = ()
    stdin: bytes = b""
    context: str = ""
    limits: Limits = Limits()
    workers: int = 2
    delay: float = 0.0


def faults(asked: Asked, most: Limits) -> list[Fault]:
    """Return all that is wrong with a call whose limits may be `most`; arguments and context become those of a process, which the
    kernel bounds."""
    found = []
    if not asked.source:
        found.append(Fault("call", "source", "expected, it is empty"))
    if any("\0" in each for each in asked.arguments):
        found.append(Fault("call", "args", "expected texts without the character NUL"))
    if sum(len(each.encode(errors="surrogatepass")) + 1 for each in asked.arguments) > WORDS:
        found.append(Fault("call", "args", f"expected at most {WORDS} bytes of them"))
    if "\0" in asked.context or len(asked.context.encode(errors="surrogatepass")) > WORDS:
        found.append(Fault("call", "context", f"expected at most {WORDS} bytes, without the character NUL"))
    if not 0 < asked.limits.wall <= most.wall:
        found.append(Fault("call", "timeout", f"expected more than 0 and at most {most.wall:g} seconds"))
    if not 1 <= asked.workers <= MOST_WORKERS:
        found.append(Fault("call", "workers", f"expected 1 to {MOST_WORKERS}"))
    if not 0 <= asked.delay <= most.wall:
        found.append(Fault("call", "delay", f"expected 0 to {most.wall:g} seconds"))
    return found


@dataclass(frozen=True)
class Ran:
    """What one worker came to. `code` is that of a program that ended by itself, `signal` what ended it; of a worker that failed
    `reason` says why; one that `lost` was ended because another had won. `wall` is in seconds."""

    worker: int
    status: Status
    code: int | None = None
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    wall: float = 0.0
    reason: str = ""

    @property
    def answers(self) -> bool:
        """Whether this is the program's doing, and so an answer."""
        return self.status not in ("worker-failed", "lost")

    def agrees(self, other: Ran) -> bool:
        """Tell whether two programs ended alike."""
        return (self.status, self.code, self.signal) == (other.status, other.code, other.signal)


@dataclass(frozen=True)
class Answer:
    """What a call came to: the worker that won, and all of them, in the order in which they were begun."""

    language: str
    version: str
    won: Ran
    workers: tuple[Ran, ...] = field(default_factory=tuple)

    def as_json(self) -> dict[str, Any]:
        """Return the answer as plain data; what is no UTF-8 in the streams is replaced, and told as it is beside that."""
        won = self.won
        return {
            "language": self.language,
            "version": self.version,
            "status": won.status,
            "code": won.code,
            "signal": won.signal,
            "stdout": won.stdout.decode(errors="replace"),
            "stderr": won.stderr.decode(errors="replace"),
            **_exact("stdout", won.stdout),
            **_exact("stderr", won.stderr),
            "wall_ms": _milliseconds(won.wall),
            "worker": won.worker,
            "workers": [
                {"worker": each.worker, "status": each.status, "wall_ms": _milliseconds(each.wall), "reason": each.reason}
                for each in self.workers
            ],
        }

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> Self:
        """Return the answer that others were told, without the output of who lost; KeyError or TypeError where it is none."""
        won = Ran(
            whole(told, "worker"),
            _status(told),
            whole_or_none(told, "code"),
            whole_or_none(told, "signal"),
            _bytes(told, "stdout"),
            _bytes(told, "stderr"),
            seconds(told, "wall_ms") / 1000,
        )
        ran = (
            won
            if each["worker"] == won.worker
            else Ran(whole(each, "worker"), _status(each), wall=seconds(each, "wall_ms") / 1000, reason=text(each, "reason"))
            for each in told["workers"]
        )
        return cls(text(told, "language"), text(told, "version"), won, tuple(ran))


def _status(told: Mapping[str, Any]) -> Status:
    found = told["status"]
    if found not in get_args(Status):
        raise ValueError(f"{found!r} is no status of a worker")
    status: Status = found
    return status


def _bytes(told: Mapping[str, Any], name: str) -> bytes:
    exact = f"{name}_base64"
    return base64.b64decode(text(told, exact), validate=True) if exact in told else text(told, name).encode()


def _exact(name: str, data: bytes) -> dict[str, str]:
    """Return the field that tells a stream which is no UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}
    return {}


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
