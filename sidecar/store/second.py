"""A second process for a part of the work on many small files, which threads would do in turns: Python runs one of them.

It is a copy of this one, so it is told nothing but to go on. It is made where that is safe only: where this process has a single
thread, nobody holds a lock that the copy would wait for. It is never needed. Where it could not be made, fails or is killed, its
part is done by the caller, who then meets what it met; so it tells no errors, says nothing to anyone else, and ends when the
caller does.
"""

from __future__ import annotations

import gc
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress

from sidecar import linux

_MANY = 2000  # files; of fewer, what is won is less than 30 ms
LOOK = 0.1  # seconds between two looks at whether whoever waits for it is to go on
_LENGTH = 4  # bytes before each message that say how long it is


def is_worth_it(files: int) -> bool:
    """Say whether a second process is safe, and soon done with more than it costs."""
    if files < _MANY or len(os.sched_getaffinity(0)) == 1:
        return False
    # Ignored, the kernel would reap it before we ask how it ended, and its id could be another's.
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        return False
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:  # no /proc: there is no telling
        return False


class Caller:
    """The way from the second process to the first."""

    def __init__(self, to: int, go: int) -> None:
        """Write to `to`, and be let go on through `go`."""
        self._to, self._go = to, go

    def send(self, message: bytes) -> None:
        """Send a message; OSError where the first process is gone."""
        view = memoryview(len(message).to_bytes(_LENGTH, "little") + message)
        while view:
            view = view[os.write(self._to, view) :]

    def wait(self) -> None:
        """Return when the first process has let us go on once more. OSError where it is gone."""
        if not os.read(self._go, 1):
            raise BrokenPipeError


class Second:
    """See the module."""

    def __init__(self, work: Callable[[Caller], None]) -> None:
        """Have `work` done in a copy of this process. OSError where there can be none."""
        self._from, to = os.pipe2(os.O_CLOEXEC)
        try:
            go, self._go = os.pipe2(os.O_CLOEXEC)
        except OSError:
            os.close(self._from)
            os.close(to)
            raise
        first, self._pid = os.getpid(), 0
        try:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                self._pid = os.fork()
                if not self._pid:
                    os.close(self._from)
                    os.close(self._go)
                    _be_second(first, work, Caller(to, go), mask)
            finally:
                os.close(to)
                os.close(go)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        except BaseException:  # no process; or a signal that came meanwhile, and whose handler raises
            self.end()
            raise
        self._poll = select.poll()
        self._poll.register(self._from, select.POLLIN)

    def is_ready(self, seconds: float) -> bool:
        """Say whether there is a message or none will come, or so it is within so many seconds."""
        return bool(self._poll.poll(seconds * 1000))

    def receive(self) -> bytes | None:
        """Return the next message; None where none will come, for it has ended."""
        head = self._read(_LENGTH)
        length = int.from_bytes(head, "little")
        message = self._read(length)
        return message if len(head) == _LENGTH and len(message) == length else None

    def go_on(self) -> None:
        """Let it go on once more."""
        with suppress(BrokenPipeError):
            os.write(self._go, b".")

    def end(self) -> None:
        """Have it end at once."""
        os.close(self._from)
        os.close(self._go)
        if self._pid:
            with suppress(ProcessLookupError, ChildProcessError):  # somebody else of this process has waited for it
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length and (more := os.read(self._from, length - len(data))):
            data += more
        return data


def begin_second(work: Callable[[Caller], None]) -> Second | None:
    """Return a second process that does `work`; None where there can be none."""
    try:
        return Second(work)
    except OSError:
        return None


def _be_second(first: int, work: Callable[[Caller], None], caller: Caller, mask: set[int | signal.Signals]) -> None:
    """In the second process. Never returns."""
    status = 1
    try:
        # Signals are the first one's affair, which ends us; its handlers are not to run here.
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        gc.disable()  # it would touch, and so copy, all that was there before
        if linux.end_with(first):
            work(caller)
            status = 0
    finally:
        os._exit(status)
