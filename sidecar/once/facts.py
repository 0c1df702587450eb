"""What is known of a run, as whoever asks is told it; where it stands is sidecar.once.ledger's.

    running ──> finished            it ran, and ended so
            ──> failed-to-start     it was not found, or cannot be executed
            ··> unknown             its owner is dead and said no end: it may have run, and never does again by itself

Times are in microseconds since the epoch.
"""

from __future__ import annotations

import time

from sidecar.errors import OutcomeUnknown
from sidecar.exits import Exit
from sidecar.once.asked import Variable
from sidecar.process import Identity
from sidecar.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

RUNNING, FINISHED, FAILED_TO_START, UNKNOWN = "running", "finished", "failed-to-start", "unknown"
STDOUT, STDERR = 1, 2
# How much of each stream is kept, in bytes.
LIMIT = 64 << 20


@value
class Written:
    """How much a run wrote to one stream, and how much of that is kept, in bytes."""

    total: int = 0
    kept: int = 0


@value
class Run:
    """One run, as the ledger has it. `cut` tells why not all that it wrote is kept, "" where it is."""

    id: int
    lease: str
    instance: str
    name: str
    state: str
    command: tuple[str, ...]
    directory: str
    owner: Identity
    claimed: int
    started: int = 0
    finished: int = 0
    exit: Exit = Exit(0)
    stdout: Written = Written()
    stderr: Written = Written()
    cut: str = ""
    variables: tuple[Variable, ...] = ()


@value
class Piece:
    """What a run wrote at one moment: the stream (1 stdout, 2 stderr) and the bytes, in the order in which they were read."""

    number: int
    stream: int
    at: int
    bytes: bytes


@value
class Heard:
    """What a program wrote, to be told with its end: the pieces not kept yet, how much in all, and why not all is kept."""

    pieces: tuple[Piece, ...] = ()
    stdout: Written = Written()
    stderr: Written = Written()
    cut: str = ""


class OtherRun(OutcomeUnknown):
    """Something else ran under this name; `parts` are the sentences that tell in what it differs."""

    def __init__(self, message: str, parts: Sequence[str]) -> None:
        self.parts = tuple(parts)
        super().__init__(message)


def now() -> int:
    return time.time_ns() // 1000


def remedy(run: Run, folder: str) -> str:
    """Return how to have another run, the ledger being in `folder`: the command to copy. "" is a ledger that is elsewhere."""
    where = ("--state", folder) if folder else ()
    words = ("sidecar", "once", "forget", *where, "--instance", run.instance, "--", run.name)
    return f"for another run{'' if folder else ', where its ledger is'}: {' '.join(map(quoted, words))}"


def quoted(text: str) -> str:
    """Return `text` as a word of a shell; shlex would cost an import of `re`."""
    plain = text and all(c.isalnum() or c in "@%+=:,./-_" for c in text)
    return text if plain else "'" + text.replace("'", "'\"'\"'") + "'"


def unknown(run: Run, folder: str) -> OutcomeUnknown:
    """Return the error that tells that nobody knows what became of a run, the ledger being in `folder`."""
    return OutcomeUnknown(
        f"{run.name} was claimed by process {run.owner.pid} at {moment(run.claimed)}, which died before it said how it ended; "
        f"its outcome is unknown and it is not run again ({remedy(run, folder)})"
    )


def moment(at: int) -> str:
    """Return a time as RFC 3339 has it, to the microsecond, in UTC."""
    seconds, rest = divmod(at, 1_000_000)
    t = time.gmtime(seconds)
    return f"{t.tm_year:04}-{t.tm_mon:02}-{t.tm_mday:02}T{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}.{rest:06}Z"
