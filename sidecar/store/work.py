"""What saving and populating share: saying how far they are, ending when told to, and keeping several chunks under way."""

from __future__ import annotations

import mmap
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

from sidecar.errors import SidecarError
from sidecar.store.format import CHUNK

Progress = Callable[[str, int, int], None]
"""What is going on, bytes done, bytes in all (0: not known yet); the same as sidecar.batteries.Progress."""

Cancelled = Callable[[], bool]

Result = TypeVar("Result")

_HUGE = 2 << 20  # bytes of a huge page
_INTERVAL = 0.1  # seconds between two calls of a Progress: a person sees no more, a log wants far less


class Stopped(SidecarError):
    """It was told to end before it was done. Whoever told it knows why."""


class Meter:
    """Tells a Progress how far something is, at a bounded rate, and raises Stopped once it was cancelled.

    `add` is for one thread, `check` for any.
    """

    def __init__(
        self, what: str, progress: Progress | None, cancelled: Cancelled | None, often: Callable[[], None] | None = None
    ) -> None:
        """Nothing is said before `total` is set. `often` is called whenever it is checked, from any thread."""
        self._often = often
        self._what = what
        self._progress = progress
        self._cancelled = cancelled
        self._said = 0.0
        self._done = 0
        self.total = 0

    def check(self) -> None:
        """Raise Stopped where `cancelled` says so."""
        if self._often is not None:
            self._often()
        if self._cancelled is not None and self._cancelled():
            raise Stopped(f"{self._what}: told to stop")

    def add(self, count: int) -> None:
        """Count bytes as done."""
        self.check()
        self._done += count
        now = time.monotonic()
        if self._progress is not None and now - self._said >= _INTERVAL:
            self._said = now
            self._progress(self._what, self._done, self.total)

    def finish(self) -> None:
        """Say the last figures."""
        if self._progress is not None:
            self._progress(self._what, self._done, self.total)


class Window(Generic[Result]):
    """Runs calls in threads, a bounded number at once, and hands their results over in the order they were given.

    Leaving it waits for the calls under way and drops the others, so that no thread touches a closed descriptor.
    """

    def __init__(self, parallel: int) -> None:
        """Have at most `parallel` threads, and twice as many calls given but not handed over."""
        self._threads = ThreadPoolExecutor(parallel)
        self._waiting: deque[tuple[Future[Result], Callable[[Result], None]]] = deque()
        self._limit = 2 * parallel

    def give(self, call: Callable[[], Result], done: Callable[[Result], None]) -> None:
        """Run `call` in a thread, and `done` with its result in this one, here or in a later call of give or drain."""
        while len(self._waiting) >= self._limit:
            self._take()
        self._waiting.append((self._threads.submit(call), done))

    def drain(self) -> None:
        """Return when every `done` has been called."""
        while self._waiting:
            self._take()

    def __enter__(self) -> Window[Result]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """Return when no thread works any more; what was given and not begun is dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _take(self) -> None:
        future, done = self._waiting.popleft()
        done(future.result())


def memory(length: int) -> memoryview:
    """Return `length` bytes that nobody else uses, in huge pages where the kernel gives them.

    The first touch of 32 MiB costs 3 ms in huge pages, and in others, as a bytearray, 20: as much as copying them three times.
    """
    if length < _HUGE:
        return memoryview(bytearray(length))
    buffer = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(buffer)


class Buffers(threading.local):
    """A buffer of one chunk for each thread, made when first asked for and used again."""

    _buffer = memoryview(b"")

    def view(self, length: int) -> memoryview:
        """Return `length` bytes of this thread's buffer; they hold whatever they held before."""
        if len(self._buffer) < length:
            self._buffer = memoryview(bytearray(max(length, CHUNK)))
        return self._buffer[:length]
