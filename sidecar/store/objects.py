"""Bytes by name, below one URL: what the store needs of a file system, and the two ways to have it.

`LocalObjects` serves file:// with system calls: fsspec's local file system is some five times slower for a small file, cannot
create only where nothing stands, and does not sync. remote.py serves every other fsspec URL.

Obligations of both: a name appears with all of its bytes or not at all; `create` never replaces; what was written is durable
when `flush` has returned; every method may be called from several threads. What is absent is FileNotFoundError, whatever else
goes wrong is Unreachable, and names the URL.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from sidecar.errors import ConfigurationError, Unreachable
from sidecar.store.format import PACK

if TYPE_CHECKING:
    from sidecar.store.remote import Patience

_LITTER_AGE = 24 * 3600.0  # no upload keeps one temporary file open for a day
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Objects(Protocol):
    """A flat store of immutable bytes. Names are relative, joined with `/`."""

    url: str
    parallel: int
    """How many chunks are worth having under way at once."""
    pack: int
    """How long a pack may be, in bytes."""
    sealing: int
    """How many packs are worth storing at once."""

    def put(self, name: str, data: bytes | memoryview, *, anew: bool = False) -> bool:
        """Have `data` under a name that its content determines; False where it was there with this size, unless `anew`."""

    def create(self, name: str, data: bytes, *, durable: bool = True) -> bool:
        """Write `data` where nothing stands; False where something does. `durable`: once this returns, else once flushed."""

    def size(self, name: str) -> int:
        """Return how many bytes there are; FileNotFoundError where there is none."""

    def get(self, name: str, limit: int) -> bytes:
        """Return all bytes of a small file, or its first `limit`; FileNotFoundError where there is none."""

    def read(self, name: str, offset: int, view: memoryview) -> int:
        """Fill `view` from `offset` on; return how much there was. FileNotFoundError where there is none."""

    def names(self, folder: str) -> list[str]:
        """Return the last parts of the names below `folder`, sorted; none where there is no such folder."""

    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield names and sizes of all files below `folder`, however deep."""

    def remove(self, name: str) -> None:
        """Have nothing under a name."""

    def flush(self) -> None:
        """Return when all that was put before is durable."""

    def sweep(self) -> None:
        """Remove what killed writers left behind long ago."""


def open_objects(url: str, *, patience: Patience | None = None, **options: Any) -> Objects:
    """Return the objects below a URL or plain path; `options` go to fsspec. Nothing is read or written yet.

    `patience` is how long a store that is not on this machine is waited for.

    ConfigurationError where no file system is installed for the URL, Unreachable where its client cannot be made.
    """
    if not url:
        raise ConfigurationError("the store's URL is empty")
    if "://" not in url and "::" not in url:
        return LocalObjects(os.path.abspath(url))
    scheme, _, path = url.partition("://")
    if scheme in ("file", "local"):
        if not path.startswith("/"):
            raise ConfigurationError(f"{url}: a file:// URL holds an absolute path, as in file:///srv/store")
        if options:
            # fsspec's own local files appear half written and are not synced.
            raise ConfigurationError(f"{url}: a store of files takes no options, such as {next(iter(options))}")
        return LocalObjects(path)
    from sidecar.store.remote import Patience, open_remote

    return open_remote(url, patience or Patience(), options)


class LocalObjects:
    """A directory. Files are written in tmp/, synced, and linked to their names."""

    parallel = 4
    pack = PACK
    sealing = 1

    def __init__(self, root: str) -> None:
        """Serve the directory `root`, an absolute path; it is made when something is written."""
        self.url = "file://" + root
        self._root = root
        self._unsynced: set[str] = set()
        self._lock = threading.Lock()
        self._flushing = threading.Lock()

    def put(self, name: str, data: bytes | memoryview, *, anew: bool = False) -> bool:
        """See Objects."""
        target = os.path.join(self._root, name)
        with self._writing(name):
            try:
                there = os.stat(target).st_size
            except FileNotFoundError:
                self._write(name, data, self._publish)
                return True
            # Whoever wrote it may have died before it synced the directories.
            self._note(name)
            if there == len(data) and not anew:
                return False
            # Cut short behind our back, by a file system that lost power: its name says what belongs there.
            self._write(name, data, self._replace)
            return True

    def create(self, name: str, data: bytes, *, durable: bool = True) -> bool:
        """See Objects."""
        with self._writing(name):
            created = self._write(name, data, self._publish)
            if durable:
                self.flush()
            return created

    def size(self, name: str) -> int:
        """See Objects."""
        with self._reaching(name):
            size = os.stat(os.path.join(self._root, name)).st_size
        # It is referred to by what is about to be written, and whoever wrote it may have died before it synced.
        self._note(name)
        return size

    def get(self, name: str, limit: int) -> bytes:
        """See Objects."""
        with self._reaching(name), open(os.path.join(self._root, name), "rb", opener=_open) as file:
            return file.read(limit)

    def read(self, name: str, offset: int, view: memoryview) -> int:
        """See Objects."""
        with self._reaching(name):
            fd = _open(os.path.join(self._root, name))
            try:
                done = 0
                while done < len(view):
                    count = os.preadv(fd, [view[done:]], offset + done)
                    if not count:
                        break
                    done += count
                return done
            finally:
                os.close(fd)

    def names(self, folder: str) -> list[str]:
        """See Objects."""
        with self._reaching(folder):
            try:
                return sorted(os.listdir(os.path.join(self._root, folder)))
            except FileNotFoundError:
                return []
            except NotADirectoryError:
                # Someone left a file there; or the store itself is one.
                if os.path.isdir(self._root):
                    return []
                raise

    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        """See Objects."""
        with self._reaching(folder):
            try:
                entries = sorted(os.scandir(os.path.join(self._root, folder)), key=lambda entry: entry.name)
            except (FileNotFoundError, NotADirectoryError):
                return
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from self.sizes(f"{folder}/{entry.name}")
                    continue
                with suppress(FileNotFoundError):
                    yield f"{folder}/{entry.name}", entry.stat(follow_symlinks=False).st_size

    def remove(self, name: str) -> None:
        """See Objects."""
        with self._writing(name), suppress(FileNotFoundError):
            os.unlink(os.path.join(self._root, name))

    def flush(self) -> None:
        """See Objects."""
        # One at a time: a second thread's is over only when what the first one took is durable, too.
        with self._flushing, self._writing(""):
            with self._lock:
                folders = tuple(self._unsynced)
                self._unsynced.clear()
            try:
                for folder in folders:
                    _sync_directory(folder)
            except OSError:
                with self._lock:
                    self._unsynced.update(folders)
                raise

    def sweep(self) -> None:
        """Remove what killed writers left in tmp/ a day ago or earlier."""
        folder = os.path.join(self._root, "tmp")
        # Litter that cannot be removed, because it is someone else's, say, is no reason not to save.
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < time.time() - _LITTER_AGE:
                        os.unlink(entry.path)

    def _write(self, name: str, data: bytes | memoryview, publish: Callable[[str, str], bool]) -> bool:
        target = os.path.join(self._root, name)
        temporary = os.path.join(self._root, "tmp", os.urandom(8).hex())
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(temporary, flags, 0o444)
        except FileNotFoundError:
            self._make(os.path.dirname(temporary))
            fd = os.open(temporary, flags, 0o444)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                # Before the name exists: else a power cut could leave the name with other bytes behind it.
                os.fsync(fd)
            finally:
                os.close(fd)
            self._make(os.path.dirname(target))
            self._note(name)
            return publish(temporary, target)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def _replace(self, temporary: str, target: str) -> bool:
        os.replace(temporary, target)
        return True

    def _publish(self, temporary: str, target: str) -> bool:
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # No hard links here (vfat, many FUSE file systems). A rename would replace, so writers take turns.
            fd = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.path.lexists(target):
                    return False
                os.rename(temporary, target)
            finally:
                os.close(fd)
        return True

    def _make(self, folder: str) -> None:
        missing = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for each in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(each)
            with self._lock:
                self._unsynced.add(os.path.dirname(each))

    def _note(self, name: str) -> None:
        """Have every directory from the root down to `name` synced by the next flush: another may have made them, and died."""
        parts = name.split("/")[:-1]
        with self._lock:
            self._unsynced.update(os.path.join(self._root, *parts[:depth]) for depth in range(len(parts) + 1))

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unreachable(name, error) from error

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Something that is absent while we write is no answer to anyone: it was taken away under our hands."""
        try:
            yield
        except OSError as error:
            raise self._unreachable(name, error) from error

    def _unreachable(self, name: str, error: OSError) -> Unreachable:
        return Unreachable(f"{self.url}: {name or 'directories'}: {error.strerror or error}")


def _open(path: str, flags: int = os.O_RDONLY) -> int:
    """Open for reading; a pipe that was put there must not hold us."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
