"""Run it or, where that was done, give back what came of it.

Whoever gets the claim runs the program and writes its end; everybody else finds the run and follows it to its end, or has it
replayed, which is the same thing with nothing to wait for.
"""

from __future__ import annotations

import os
import select
import time

from sidecar import process
from sidecar.errors import NOT_EXECUTABLE, DeadlinePassed, Interrupted, OutcomeUnknown
from sidecar.exits import Exit
from sidecar.once.facts import FAILED_TO_START, LIMIT, RUNNING, STDERR, STDOUT, UNKNOWN, Piece, Run, unknown
from sidecar.once.recorder import Recorder, not_written, writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from typing import Protocol

    from sidecar.once.asked import Asked
    from sidecar.once.claim import Claim
    from sidecar.once.ledger import Ledger

    class AnyLedger(Protocol):
        """Who tells of runs: a ledger.Ledger, or a server. `folder` is where the ledger is, "" where that is not known."""

        folder: str

        def get(self, instance: str, name: str) -> Run: ...

        def again(self, run: Run) -> Run | None: ...

        def runs(self, latest: int = ..., before: int = ..., name: str = ...) -> list[Run]: ...

        def pieces(self, run: Run, after: int = ...) -> list[Piece]: ...

        def output(self, run: Run) -> Iterator[Piece]: ...


ENDING = (process.SIGHUP, process.SIGINT, process.SIGQUIT, process.SIGTERM)
# How often a run that is under way is looked at by those who follow it, in seconds: 20 us each time.
LOOK = 0.02


class Result:
    """What came of a run. `restored` tells that it was run before, or by another, and not by this call; `lost`, why not all it
    wrote was passed on, where that is so."""

    def __init__(self, ledger: Ledger, run: Run, *, restored: bool, lost: str = "") -> None:
        self._ledger, self.run, self.restored, self.lost = ledger, run, restored, lost

    def __repr__(self) -> str:
        return f"Result({self.run.name!r}, {self.run.state}, status {self.status}, restored={self.restored})"

    @property
    def state(self) -> str:
        """finished, or failed-to-start."""
        return self.run.state

    @property
    def status(self) -> int:
        """The exit status that a shell would give: 128 + n where signal n ended it, 126 and 127 where it did not start."""
        return self.run.exit.status

    @property
    def exit_code(self) -> int | None:
        """The exit code; None where a signal ended it."""
        return None if self.run.exit.signal else self.run.exit.code

    @property
    def signal(self) -> int:
        """The signal that ended it, 0 where none did."""
        return self.run.exit.signal

    @property
    def started_at(self) -> datetime | None:
        """When it was begun, to the microsecond, in UTC; None where it failed to start."""
        return _datetime(self.run.started) if self.run.started else None

    @property
    def finished_at(self) -> datetime:
        """When it had ended, to the microsecond, in UTC."""
        return _datetime(self.run.finished)

    @property
    def effective_args(self) -> tuple[str, ...]:
        """The command and its arguments as they were run; references to redacted variables stand."""
        return self.run.command

    @property
    def effective_env(self) -> dict[str, str | None]:
        """The variables that were given to it, with their values as they were; None where only a hash is kept."""
        return {each.name: None if each.hash else each.value for each in self.run.variables}

    @property
    def directory(self) -> str:
        """The working directory."""
        return self.run.directory

    @property
    def stdout(self) -> bytes:
        """What it wrote to stdout, as far as that is kept (see run.stdout and run.cut)."""
        return self._of(STDOUT)

    @property
    def stderr(self) -> bytes:
        """What it wrote to stderr, as far as that is kept."""
        return self._of(STDERR)

    def _of(self, stream: int) -> bytes:
        return b"".join(piece.bytes for piece in self._ledger.output(self.run) if piece.stream == stream)


def _datetime(at: int) -> datetime:
    from datetime import UTC, datetime, timedelta

    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=at)


def run_once(
    ledger: Ledger,
    asked: Asked,
    *,
    wait: bool = True,
    limit: int = LIMIT,
    targets: tuple[int, int] | None = None,
    signals: Callable[[], process.SignalQueue] | None = None,
    found: Callable[[Run], None] | None = None,
) -> Result:
    """Run what is asked for unless it has run, and return what came of it, then or now.

    Its output goes to `targets` (stdout, stderr) where there are some. With `signals`, which makes the queue, this process is the
    program's init: signals are forwarded to it and orphans reaped. `found` is called with a run that is there already, before it
    is followed. Raises OtherRun, OutcomeUnknown, DeadlinePassed where it is running and is not to be waited for, Unreachable,
    Interrupted.
    """
    # Before any claim: a signal that comes between claim and spawn is the program's, not the end of whoever claimed.
    queue = signals() if signals is not None and ledger.find(asked.instance, asked.name) is None else None
    try:
        claimed = ledger.claim(asked)
        if not isinstance(claimed, Run):
            run, lost = _execute(claimed, targets, limit, queue)
            return Result(ledger, run, restored=False, lost=lost)
    finally:
        if queue is not None:
            left = [number for number in queue.drain() if number in ENDING]
            queue.close()
    if queue is not None and left:
        raise Interrupted(left[0], f"signal {left[0]} came before anything was run")
    if claimed.state == RUNNING and not wait:
        raise DeadlinePassed(f"{asked.name} is running (process {claimed.owner.pid})", asked.name)
    if found is not None:
        found(claimed)
    run, lost = _pass_on(ledger, claimed, targets) if targets else (follow(ledger, claimed, None), "")
    return Result(ledger, run, restored=True, lost=lost)


def _pass_on(ledger: Ledger, run: Run, targets: tuple[int, int]) -> tuple[Run, str]:
    """Write what a run has written, and writes, to `targets`; return it when it has ended, and why not all was passed on.

    As whoever runs it does, so that the answer is the same; but where nobody reads any more there is nothing to stay for.
    """
    write, lost = writer(targets), dict[int, str]()

    def pass_on(piece: Piece) -> None:
        if piece.stream not in lost:
            try:
                write(piece)
            except BrokenPipeError:
                raise
            except OSError as error:
                lost[piece.stream] = not_written(piece.stream, error)

    return follow(ledger, run, pass_on), next(iter(lost.values()), "")


def follow(ledger: AnyLedger, run: Run, write: Callable[[Piece], None] | None, look: float = LOOK) -> Run:
    """Hand every piece that a run has written, and writes, to `write`; return it when it has ended. OutcomeUnknown.

    It is looked for what there is anew every `look` seconds.
    """
    after, seen = 0, 0
    while True:
        current = ledger.again(run)  # first: what it wrote is there before its end is
        if current is None:
            raise OutcomeUnknown(f"{run.name} was forgotten while it was followed")
        if write is not None:
            while pieces := ledger.pieces(run, after):
                for piece in pieces:
                    write(piece)
                    seen += len(piece.bytes)
                after = pieces[-1].number
        if current.state == UNKNOWN:
            raise unknown(current, ledger.folder)
        if current.state != RUNNING:
            if write is not None and seen < current.stdout.kept + current.stderr.kept and ledger.again(run) is None:
                raise OutcomeUnknown(f"{run.name} was forgotten while it was followed")
            return current
        time.sleep(look)


# --- running -----------------------------------------------------------------------------------------------------------


def _execute(claim: Claim, targets: tuple[int, int] | None, limit: int, queue: process.SignalQueue | None) -> tuple[Run, str]:
    """Run what was claimed; return what came of it, and why not all of its output was passed on."""
    asked = claim.asked
    if queue is not None:
        process.adopt_orphans()
    try:
        recorder = Recorder(claim, targets, limit)
        try:
            if queue is not None:
                recorder.start(queue.wake)
            environment = {**process.environment_given(), **dict(asked.environment)}
            # As it is kept: a secret that was put in does not come back by its being no program.
            called = asked.kept_command[0]
            child = process.spawn(asked.command, environment, streams=recorder.streams, directory=asked.directory, called=called)
        except BaseException:
            recorder.abort()
            raise
        finally:
            recorder.begun()
    except process.NotStarted as error:
        return claim.finish(Exit(error.status, reason=str(error)), state=FAILED_TO_START), ""
    except (OSError, RuntimeError) as error:  # no more processes, descriptors or threads
        reason = f"{asked.kept_command[0]}: cannot be begun: {getattr(error, 'strerror', None) or error}"
        return claim.finish(Exit(NOT_EXECUTABLE, reason=reason), state=FAILED_TO_START), ""
    try:
        recorder.note_begun()
        if queue is not None:
            _be_its_init(child, recorder, queue)
        else:
            _wait(child, recorder)
    finally:
        if not child.ended:  # no more threads or descriptors: nobody would be there to tell how it ends
            child.send(process.SIGKILL)
            process.wait(child)
        run = claim.finish(Exit(child.code, child.signal), recorder.close())
    return run, recorder.lost


def _be_its_init(child: process.Child, recorder: Recorder, queue: process.SignalQueue) -> None:
    """Forward signals and reap until the program has ended and all that it wrote is read and passed on.

    Where that last does not come to its end, because nobody reads our output, a signal ends the wait.
    """
    poll = select.poll()
    poll.register(queue.fd, select.POLLIN)
    while not recorder.done:
        poll.poll()
        for number in queue.drain():
            was = child.ended
            if number == process.SIGCHLD:
                process.reap(child)
            elif was and number in ENDING:
                return
            else:
                child.send(number)
            if child.ended and not was:
                recorder.ended()


def _wait(child: process.Child, recorder: Recorder) -> None:
    over = os.pidfd_open(child.pid)
    try:
        recorder.pump(over)
    except BaseException as error:
        # Whoever called is to end, and then nobody would be there to tell how the program did.
        child.send(process.SIGINT if isinstance(error, KeyboardInterrupt) else process.SIGTERM)
        recorder.pump(over)
        raise
    finally:
        os.close(over)
        process.wait(child)
