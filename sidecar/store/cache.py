"""A directory that keeps what was read of bundles, up to a limit, for all processes that read them.

    <directory>/<hh>/<key>           bytes; a hole where nothing was kept yet. The key is made of the hashes of what belongs there
    <directory>/<hh>/<key>.whole     says that all of it was verified, and what the file's inode was then; its mtime: the last use

Nothing here is trusted: whoever loads bytes compares them with their hash. So there is nothing to lock: two processes that keep
the same bytes write the same, one that is killed leaves a hole or bytes that do not hash, and those are fetched again. Only a
file that is handed over whole, to the kernel, is not read here: it has a `.whole`, which counts only while inode, size, mtime
and ctime are as they were when it had been verified, and only until the machine is booted again, for a power cut may lose what
was never synced. A later change by a program changes the ctime. (A disk that alters bytes by itself goes unnoticed in what is
handed over.)

A disk that is full, or a directory that cannot be written, ends the keeping for a while, and never the reading.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from sidecar.errors import Unreachable

_STEP = 16  # the directory is measured again whenever a 16th of its limit was written
_SETTLED = 0.05  # seconds; a file may change twice in one tick of its ctime (at most 10 ms), so a younger one is not vouched for
_LONGEST_WAIT = 0.1  # seconds for room
_AGAIN = 60.0  # seconds without keeping anything, whenever that has failed: a full disk is for others, too
_SEEN = 3600.0  # seconds after which a use is noted again
_logger = logging.getLogger(__name__)


class Cache:
    """See the module. Safe in several threads and processes."""

    def __init__(self, directory: str, limit: int) -> None:
        """Keep up to about `limit` bytes in `directory`, which is made, for this user alone. Unreachable where that cannot be."""
        self.directory, self._limit = directory, limit
        self._lock, self._making_room = threading.Lock(), threading.Lock()
        self._since = limit  # bytes since the directory was measured: do so before the first one
        self._under_way = 0  # bytes that were given room and are not written yet
        self._resting = 0.0  # nothing is kept before; 0: keeping did not fail the last time
        self._made: set[str] = set()
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                self._boot = file.read().strip()
        except OSError as error:
            raise Unreachable(f"the cache {directory} cannot be made: {error.strerror}") from error

    def load(self, key: str, at: int, view: memoryview) -> bool:
        """Fill `view` with what was kept there, or was to be: it is the caller's to compare with its hash. False: nothing was."""
        try:
            with self._opened(key, os.O_RDONLY) as fd:
                # A hole would be read as zeros, and hashed, for nothing.
                end = at + len(view)
                if os.fstat(fd).st_size < end or os.lseek(fd, at, os.SEEK_HOLE) < end:
                    return False
                return os.preadv(fd, [view], at) == len(view)
        except OSError:
            return False

    def keep(self, key: str, whole: int, at: int, data: memoryview) -> bool:
        """Put `data` at `at` of the file `key`, which is to have `whole` bytes; say whether that was done."""
        resting = self._resting
        if time.monotonic() < resting or not self._make_room(len(data)):
            return False
        try:
            with self._opened(key, os.O_RDWR | os.O_CREAT) as fd:
                if os.fstat(fd).st_size != whole:
                    os.ftruncate(fd, whole)
                done = 0
                while done < len(data):
                    done += os.pwrite(fd, data[done:], at + done)
        except OSError as error:
            self._rest(error)
            return False
        finally:
            with self._lock:
                self._under_way -= len(data)
        with self._lock:
            if self._resting == resting:  # and not of a failure since we began
                self._resting = 0.0
        return True

    def _rest(self, error: OSError) -> None:
        """Keep nothing for a while; that is told once, until something is kept again."""
        with self._lock:
            first = not self._resting
            self._resting = time.monotonic() + _AGAIN
            self._made.clear()  # who made room may have removed the folders
        if first:
            _logger.warning("the cache %s cannot be written: %s; it is read without", self.directory, error.strerror)

    def vouch(self, key: str, whole: int, holds: Callable[[Callable[[int, memoryview], None]], bool]) -> None:
        """Have `open_whole` hand a file over, if `holds` finds in it what belongs there; it is given a way to read it.

        All of it is read once more: since it was filled it may have been evicted, and filled again by one that was killed.
        """
        try:
            with self._opened(key, os.O_RDONLY) as fd:
                before = os.fstat(fd)
                if (young := before.st_ctime + _SETTLED - time.time()) > 0:
                    time.sleep(min(young, _SETTLED))
                if before.st_size != whole or not holds(partial(_read, fd)):
                    return
                if self._signature(os.fstat(fd)) == self._signature(before):
                    self._sign(key, self._signature(before))
        except OSError:
            return

    def open_whole(self, key: str, whole: int) -> int | None:
        """Return a descriptor of a file that was vouched for and has not changed since; None where there is none."""
        path = self._path(key)
        try:
            with open(path + ".whole", encoding="ascii") as file:
                said = file.read(1000)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (OSError, ValueError):
            return None
        seen = os.fstat(fd)
        if seen.st_size != whole or said != self._signature(seen):
            os.close(fd)
            return None
        with suppress(OSError):
            if time.time() - os.stat(path + ".whole").st_mtime > _SEEN:
                os.utime(path + ".whole")
        return fd

    def _sign(self, key: str, signature: str) -> None:
        path = self._path(key)
        temporary = f"{path}.{os.getpid()}.{threading.get_ident():x}"
        try:
            with open(temporary, "w", encoding="ascii") as file:
                file.write(signature)
            os.replace(temporary, path + ".whole")
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _signature(self, seen: os.stat_result) -> str:
        return f"{self._boot} {seen.st_dev} {seen.st_ino} {seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns}\n"

    def _path(self, key: str) -> str:
        return os.path.join(self.directory, key[:2], key)

    @contextmanager
    def _opened(self, key: str, flags: int) -> Iterator[int]:
        path = self._path(key)
        if flags & os.O_CREAT and key[:2] not in self._made:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            self._made.add(key[:2])
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)

    # --- the limit -------------------------------------------------------------------------------------------------

    def _make_room(self, size: int) -> bool:
        """Give room to so many bytes, which are then under way; False where there is none.

        Now and then that removes what was not used for longest, down to 15/16 of the limit. What is under way counts: it is not
        in the directory yet when that is measured. What other processes have under way is not seen, so much the limit may be
        exceeded by.
        """
        # A directory of many files takes a while: rather than wait for that, whoever fetches goes on fetching.
        if not self._making_room.acquire(timeout=_LONGEST_WAIT):
            return False
        try:
            with self._lock:
                if self._under_way + size > self._limit:
                    return False
                self._under_way += size
                self._since += size
                due, used = self._since >= self._limit // _STEP, self._under_way
            if due and self._evicted(used):
                self._since = 0
        finally:
            self._making_room.release()
        return True

    def _evicted(self, used: int) -> bool:
        """Remove what has to go; False where another process is at that, or the directory cannot be read."""
        with suppress(OSError):
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # one process does it for all
                self._evict(used)
                return True
            finally:
                os.close(fd)
        return False

    def _evict(self, used: int) -> None:
        """Remove files until they and `used` bytes more leave a 16th of the limit."""
        found: list[tuple[float, int, str]] = []
        for folder in os.listdir(self.directory):
            with suppress(OSError), os.scandir(os.path.join(self.directory, folder)) as entries:
                for entry in entries:
                    with suppress(OSError):
                        if "." not in entry.name:
                            found.append((_last_use(entry), entry.stat().st_blocks * 512, entry.path))
        used += sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used <= self._limit - self._limit // _STEP:
                break
            # Who has it open reads on; who would keep more of it begins anew.
            for each in (path + ".whole", path):
                with suppress(OSError):
                    os.unlink(each)
            used -= size


def _read(fd: int, at: int, view: memoryview) -> None:
    os.preadv(fd, [view], at)


def _last_use(entry: os.DirEntry[str]) -> float:
    """Return when a file was used last, as far as that is noted: setting its own times would change its ctime."""
    seen = entry.stat(follow_symlinks=False)
    used = max(seen.st_mtime, seen.st_atime)
    with suppress(OSError):
        used = max(used, os.stat(entry.path + ".whole").st_mtime)
    return used
