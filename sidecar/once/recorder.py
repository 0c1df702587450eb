"""What a program writes: read from its stdout and stderr, passed on at once, and kept.

Two pipes. Each stream is kept exactly; between the two the order is that in which they were read, which whoever watched saw, too
(the kernel does not tell in which order two pipes were written). What is passed on is written as it comes; what is kept goes to
the ledger in lots, for each costs a transaction.

`pump` does all of it, in a thread of its own where the caller has signals to hear: it blocks where the reader of our own output
does. The claim is the pump's until it is done; whoever gives up waiting for it calls `close` first.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import select
import sys
import time

from sidecar.errors import SidecarError
from sidecar.once.facts import LIMIT, STDERR, STDOUT, Heard, Piece, Written, now
from sidecar.state import Busy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.once.claim import Claim

# When what was read goes to the ledger: so many seconds after the first of it, for whoever follows; so many bytes at the latest.
OFTEN = 0.05
LOT = 256 << 10
_PIPE = 64 << 10
# How much waits here while another process writes to the ledger.
_MOST = 16 << 20
_FIONREAD = 0x541B  # of termios, which is not at hand in the static wrapper


class Recorder:
    """Reads what a program writes to `streams`, writes it to `targets` (stdout, stderr) where there are some, and keeps it."""

    def __init__(self, claim: Claim, targets: tuple[int, int] | None = None, limit: int = LIMIT) -> None:
        self._claim, self._limit = claim, limit
        self._targets = dict(zip((STDOUT, STDERR), targets, strict=True)) if targets else {}
        self._reads: dict[int, int] = {}
        writes = []
        for stream in (STDOUT, STDERR):
            read, write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(read, False)
            self._reads[read] = stream
            writes.append(write)
        self.streams = (writes[0], writes[1])
        self._total = {STDOUT: 0, STDERR: 0}
        self._kept = {STDOUT: 0, STDERR: 0}
        self._cut = ""
        self._number = 0
        self._lot: list[Piece] = []
        self._size = 0
        self._due = 0.0
        # Held for whatever changes what is kept.
        self._mine = _thread.allocate_lock()
        self._closed = False
        self._tell = -1
        self.done = False
        # Why not all was passed on, though it could be read.
        self.lost = ""

    def start(self, done: Callable[[], None]) -> None:
        """Pump in a thread, until `ended` is called; call `done` from there when all is read. OSError; RuntimeError, no thread.

        Before the program is begun, so that there is nobody to end where there can be no thread.
        """
        over, self._tell = os.pipe2(os.O_CLOEXEC)
        try:
            _thread.start_new_thread(self._pump_and_tell, (over, done))
        except BaseException:
            for fd in (over, self._tell):
                os.close(fd)
            self._tell = -1
            raise

    def begun(self) -> None:
        """Let go of the program's ends: when it lets go of them too, there is no more to read."""
        for fd in self.streams:
            os.close(fd)

    def note_begun(self) -> None:
        """Note that the program has begun: here, for the thread may be keeping what it wrote by now, through the same store."""
        with self._mine:
            self._claim.begun()

    def abort(self) -> None:
        """Nothing was begun."""
        if self._tell >= 0:
            self.ended()
        else:
            self._discard()

    def ended(self) -> None:
        """Tell the thread that the program has ended."""
        os.close(self._tell)

    def _discard(self) -> None:
        for fd in self._reads:
            os.close(fd)
        self._reads.clear()

    def _pump_and_tell(self, over: int, done: Callable[[], None]) -> None:
        try:
            self.pump(over)
        finally:
            os.close(over)
            with self._mine:
                self.done = True
                if not self._closed:  # or whoever was to be told has gone
                    done()

    def pump(self, over: int) -> None:
        """Read, pass on and keep until the program is over, which `over` tells by being readable, and nothing is left to read.

        What processes that it left behind write later is not read.
        """
        poll = select.poll()
        for fd in (*self._reads, over):
            poll.register(fd, select.POLLIN)
        ended = False
        while not ended:
            came = {fd for fd, _ in poll.poll(self._until_due())}
            ended = over in came
            for fd in list(self._reads):
                if (fd in came or ended) and not self._read(fd, to_the_end=ended):
                    poll.unregister(fd)
                    del self._reads[fd]
                    os.close(fd)
            if self._lot and (self._size >= LOT or time.monotonic() >= self._due):
                self._keep()
        self._discard()

    def close(self) -> Heard:
        """Stop keeping, and return what was heard."""
        with self._mine:
            self._closed = True
            lot, self._lot = self._lot, []
        if self._reads:
            self._cut = self._cut or "whoever reads our own output did so too slowly"
        return Heard(
            tuple(lot),
            Written(self._total[STDOUT], self._kept[STDOUT]),
            Written(self._total[STDERR], self._kept[STDERR]),
            self._cut,
        )

    # --- one piece

    def _until_due(self) -> float | None:
        return max(0.0, self._due - time.monotonic()) * 1000 if self._lot else None

    def _read(self, fd: int, *, to_the_end: bool) -> bool:
        """Read what there is, once or `to_the_end`; False where there will be no more."""
        stream = self._reads[fd]
        # No more than there is now: what was left behind may write as fast as we read.
        left = _held(fd) if to_the_end else 0
        while True:
            try:
                data = os.read(fd, _PIPE)
            except BlockingIOError:
                return True
            if not data:
                return False
            at = now()
            self._pass_on(stream, data)
            self._note(stream, at, data)
            if self._size >= LOT:
                self._keep()
            left -= len(data)
            if left <= 0:
                return True

    def _pass_on(self, stream: int, data: bytes) -> None:
        if stream not in self._targets:
            return
        try:
            write_all(self._targets[stream], data)
        except OSError as error:
            # Nobody reads it any more, or it cannot be written: the program goes on, and what it writes is kept.
            del self._targets[stream]
            if not isinstance(error, BrokenPipeError):
                self.lost = self.lost or not_written(stream, error)

    def _note(self, stream: int, at: int, data: bytes) -> None:
        with self._mine:
            if self._closed:
                return
            self._total[stream] += len(data)
            room = self._limit - self._kept[stream]
            if len(data) > room:
                self._cut = self._cut or f"no more than {self._limit} bytes of a stream are kept"
                data = data[:room]
            if not data:
                return
            if not self._lot:
                self._size, self._due = 0, time.monotonic() + OFTEN
            self._number += 1
            self._lot.append(Piece(self._number, stream, at, data))
            self._size += len(data)
            self._kept[stream] += len(data)

    def _keep(self) -> None:
        with self._mine:
            if self._closed:
                return
            try:
                self._claim.keep(self._lot)
            except Busy:
                if self._size < _MOST:
                    self._due = time.monotonic() + OFTEN
                    return
                self._drop_lot("the ledger was held by another process for too long")
            except SidecarError as error:
                self._drop_lot(str(error))
            # Last: where Ctrl-C comes in between, they are kept again.
            self._lot, self._size = [], 0

    def _drop_lot(self, why: str) -> None:
        # The program is not stopped for it. Nothing behind a gap is kept: it would look whole.
        self._cut = why
        self._limit = 0
        for piece in self._lot:
            self._kept[piece.stream] -= len(piece.bytes)


def _held(fd: int) -> int:
    """Return how many bytes a pipe holds."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, _FIONREAD, bytes(4)), sys.byteorder)
    except OSError:  # some emulators: what a pipe may hold at most
        return 1 << 20


def not_written(stream: int, error: OSError) -> str:
    """Return what is told of a stream that cannot be passed on, by whoever runs the program and whoever comes later."""
    return f"{'stdout' if stream == STDOUT else 'stderr'} cannot be written: {error.strerror}"


def writer(targets: tuple[int, int]) -> Callable[[Piece], None]:
    """Return what writes each piece to the one of two descriptors (stdout, stderr) that its stream is."""
    return lambda piece: write_all(targets[piece.stream - 1], piece.bytes)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`; OSError. A descriptor that does not block, as others leave them behind, is waited for."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
