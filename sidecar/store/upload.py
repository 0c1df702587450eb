"""A directory tree becomes objects in the store, and the entries of a manifest.

Nothing here makes a bundle visible: when `upload` returns, the bytes are in the store, durable, and no one refers to them.
Content is cut and packed the same way from the same tree, so an upload that begins again after a kill finds its objects by name.
A file is read through one descriptor, and counted as read only if size, mtime and ctime are the same before and after.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from blake3 import blake3

from sidecar.errors import NotSaved
from sidecar.store.format import CHUNK, FILE, PACK, SMALL, Entry, Piece, object_name
from sidecar.store.objects import Objects
from sidecar.store.tree import SPECIAL, Directories, Found, kind, split, walk
from sidecar.store.work import Buffers, Meter, Window

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: a pipe put there since must not hold us
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Uploaded:
    """The entries of a tree, ascending; how many bytes of objects were added for them, how many entries left out."""

    entries: tuple[Entry, ...]
    stored: int
    skipped: int


def upload(
    objects: Objects, path: str, known: Mapping[str, Piece], meter: Meter, *, skip_errors: bool = False, shared: bool = False
) -> Uploaded:
    """Put the content of directory `path` into `objects`, but for chunks that lie where `known`, a map by hash, says.

    NotSaved where something cannot be kept as it is: a special file, one that cannot be read, or one that changes while it is
    read, twice. With `skip_errors` such entries are left out, counted and logged. Unreachable where the store fails. `shared`:
    see tree.open_shared.
    """
    try:
        tree = Directories(path, shared=shared)
    except OSError as error:
        raise NotSaved(f"{path}: {error.strerror}") from error
    try:
        with Window[_Read](objects.parallel) as window:
            return _Upload(objects, tree, known, meter, window, skip_errors).run()
    finally:
        tree.close()


class _Changed(Exception):
    """The file is not what it was when its reading began."""


@dataclass(frozen=True)
class _Chunk:
    """A chunk that was read. `data` is given where it is small, and so still to be packed."""

    hash: str
    length: int
    data: bytes | None
    stored: int


_Read = _Chunk | OSError | None
"""What comes of reading a chunk. None: the file has become too short for it. An error is no exception: the upload may go on."""


class _Reading:
    """One file being read: its descriptor, its stat before, and the hashes of the chunks that have come back."""

    def __init__(self, found: Found, fd: int) -> None:
        self.path, self.fd = found.path, fd
        self.seen = os.fstat(fd)
        self.hashes: list[str] = []
        self.missing = -(-self.seen.st_size // CHUNK)
        self.changed = kind(self.seen.st_mode) != FILE
        self.error: OSError | None = None

    def entry(self) -> Entry:
        """Return the entry, without its pieces; _Changed where it was not one file from beginning to end."""
        if self.error is not None:
            raise self.error
        now, seen = os.fstat(self.fd), self.seen
        if self.changed or (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (
            seen.st_size,
            seen.st_mtime_ns,
            seen.st_ctime_ns,
        ):
            raise _Changed
        return Entry(self.path, FILE, stat.S_IMODE(seen.st_mode), seen.st_mtime_ns, seen.st_size)


class _Places:
    """Where chunks lie: those that this upload stored, and those of the parent whose objects are still there.

    An object that was lost since must not take a new bundle with it, so each is looked for once, when it is first needed.
    """

    def __init__(self, objects: Objects, known: Mapping[str, Piece]) -> None:
        self._objects, self._known = objects, known
        self._placed: dict[str, Piece] = {}
        self._whole: dict[str, bool] = {}
        self._needed: dict[str, int] = {}
        for piece in known.values():
            self._needed[piece.object] = max(piece.offset + piece.length, self._needed.get(piece.object, 0))

    def __contains__(self, hash_: str) -> bool:
        """Safe in several threads: at worst two of them ask for the same size."""
        if hash_ not in self._placed and (piece := self._known.get(hash_)) is not None and self._is_whole(piece.object):
            self.add(piece)
        return hash_ in self._placed

    def __getitem__(self, hash_: str) -> Piece:
        return self._placed[hash_]

    def add(self, piece: Piece) -> None:
        self._placed.setdefault(piece.hash, piece)

    def _is_whole(self, object_: str) -> bool:
        # A pack that is cut short is given up as a whole: cut the same way from the same files, it is made good under its name.
        if object_ not in self._whole:
            try:
                size = self._objects.size(object_name(object_))
            except FileNotFoundError:
                size = -1
            self._whole[object_] = size >= self._needed[object_]
        return self._whole[object_]


class _Pack:
    """The pack being filled. Its buffer is made once; files are read right into it."""

    def __init__(self, objects: Objects, placed: _Places) -> None:
        self._objects, self._placed = objects, placed
        self._buffer = memoryview(b"")
        self._used = 0
        self._chunks: dict[str, tuple[int, int]] = {}
        self.stored = 0

    def room(self, length: int) -> memoryview:
        """Return where the next chunk goes; what is written there counts only once it is kept."""
        if not self._buffer:
            self._buffer = memoryview(bytearray(PACK))
        if self._used + length > PACK:
            self.seal()
        return self._buffer[self._used : self._used + length]

    def keep(self, hash_: str, length: int) -> None:
        """Keep the chunk that was put into `room`, unless it is in the store or in this pack."""
        if hash_ not in self._placed and hash_ not in self._chunks:
            self._chunks[hash_] = (self._used, length)
            self._used += length

    def seal(self) -> None:
        """Store what was kept, and begin anew."""
        if not self._chunks:
            return
        view = self._buffer[: self._used]
        name = blake3(view).hexdigest()
        if self._objects.put(object_name(name), view):
            self.stored += self._used
        for hash_, (offset, length) in self._chunks.items():
            self._placed.add(Piece(hash_, length, name, offset))
        self._chunks.clear()
        self._used = 0


class _Upload:
    def __init__(
        self,
        objects: Objects,
        tree: Directories,
        known: Mapping[str, Piece],
        meter: Meter,
        window: Window[_Read],
        skip_errors: bool,
    ) -> None:
        self._objects, self._tree, self._meter, self._window = objects, tree, meter, window
        self._skip_errors = skip_errors
        self._placed = _Places(objects, known)
        self._pack = _Pack(objects, self._placed)
        self._buffers = Buffers()
        self._open: set[int] = set()
        self._done: dict[str, tuple[Entry, list[str]]] = {}
        self._stored = 0
        self.skipped: dict[str, str] = {}

    def run(self) -> Uploaded:
        found = walk(self._tree, self._unreadable, self._meter.check)
        files = [each for each in found if each.type == FILE]
        self._meter.total = sum(each.size for each in files)
        for each in found:
            if each.type == SPECIAL:
                self._refuse(each.path, "is a socket, pipe or device, which no bundle can hold")
            elif each.type != FILE:
                entry = Entry(each.path, each.type, each.mode, each.mtime, 0, (), each.target)
                self._done[each.path] = entry, []
        try:
            self._read_all([each for each in files if each.size > SMALL])
            self._read_all([each for each in files if each.size <= SMALL])
        finally:
            # The threads may still read: descriptors are closed when they have ended.
            self._window.end()
            for fd in self._open:
                os.close(fd)
        self._pack.seal()
        self._objects.flush()
        self._meter.finish()
        entries = (self._done[each.path] for each in found if each.path in self._done)
        placed = tuple(
            entry._replace(pieces=tuple(self._placed[hash_] for hash_ in hashes)) if hashes else entry
            for entry, hashes in entries
        )
        return Uploaded(placed, self._stored + self._pack.stored, len(self.skipped))

    def _read_all(self, files: list[Found]) -> None:
        for found in files:
            self._meter.check()
            try:
                reading = self._begin(found)
            except OSError as error:
                self._unreadable(found.path, error)
                continue
            if reading.seen.st_size > SMALL:
                self._read_in_threads(found, reading)
            else:
                self._read_here(found, reading)
            self._meter.add(0)
        self._window.drain()

    def _begin(self, found: Found) -> _Reading:
        parent, name = split(found.path)
        fd = os.open(name, _READ, dir_fd=self._tree.fd(parent))
        self._open.add(fd)
        return _Reading(found, fd)

    def _read_in_threads(self, found: Found, reading: _Reading) -> None:
        def took(chunk: _Read) -> None:
            self._take(reading, chunk)
            self._meter.add(chunk.length if isinstance(chunk, _Chunk) else 0)
            if not reading.missing:
                self._end(found, reading)

        for offset in range(0, reading.seen.st_size, CHUNK):
            length = min(CHUNK, reading.seen.st_size - offset)
            self._window.give(partial(self._chunk, reading.fd, offset, length), took)

    def _read_here(self, found: Found, reading: _Reading) -> None:
        length = reading.seen.st_size
        if length:
            view = self._pack.room(length)
            try:
                if _fill(reading.fd, 0, view):
                    hash_ = blake3(view).hexdigest()
                    self._pack.keep(hash_, length)
                    reading.hashes.append(hash_)
                else:
                    reading.changed = True
            except OSError as error:
                reading.error = error
        self._end(found, reading)
        self._meter.add(length)

    def _chunk(self, fd: int, offset: int, length: int) -> _Read:
        """Read one chunk, and store it where it is large and new."""
        self._meter.check()
        view = self._buffers.view(length)
        try:
            if not _fill(fd, offset, view):
                return None
        except OSError as error:
            return error
        hash_ = blake3(view).hexdigest()
        if length <= SMALL:
            return _Chunk(hash_, length, bytes(view), 0)
        new = hash_ not in self._placed and self._objects.put(object_name(hash_), view)
        return _Chunk(hash_, length, None, length if new else 0)

    def _take(self, reading: _Reading, chunk: _Read) -> None:
        reading.missing -= 1
        if isinstance(chunk, OSError):
            reading.error = chunk
            return
        if chunk is None:
            reading.changed = True
            return
        self._stored += chunk.stored
        reading.hashes.append(chunk.hash)
        if chunk.data is None:
            self._placed.add(Piece(chunk.hash, chunk.length))
        else:
            self._pack.room(chunk.length)[:] = chunk.data
            self._pack.keep(chunk.hash, chunk.length)

    def _end(self, found: Found, reading: _Reading, *, again: bool = False) -> None:
        try:
            self._done[found.path] = reading.entry(), reading.hashes
        except _Changed:
            if again:
                self._refuse(found.path, "changes while it is read")
            else:
                self._read_again(found)
        except OSError as error:
            self._unreadable(found.path, error)
        finally:
            self._close(reading)

    def _read_again(self, found: Found) -> None:
        try:
            reading = self._begin(found)
            for offset in range(0, reading.seen.st_size, CHUNK):
                self._take(reading, self._chunk(reading.fd, offset, min(CHUNK, reading.seen.st_size - offset)))
        except OSError as error:
            self._unreadable(found.path, error)
            return
        self._end(found, reading, again=True)

    def _close(self, reading: _Reading) -> None:
        self._open.discard(reading.fd)
        os.close(reading.fd)

    def _unreadable(self, path: str, error: OSError) -> None:
        self._refuse(path, f"cannot be read: {error.strerror}")

    def _refuse(self, path: str, problem: str) -> None:
        if not self._skip_errors:
            raise NotSaved(f"{path or 'the top directory'!r} {problem}")
        _logger.warning("%r %s; it is left out", path, problem)
        self.skipped[path] = problem


def _fill(fd: int, offset: int, view: memoryview) -> bool:
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if not count:
            return False
        done += count
    return True
