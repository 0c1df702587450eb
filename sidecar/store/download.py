"""The chunks of a bundle become files in a directory, or are only looked at; each is hashed before anyone gets it.

The destination is shared with containers that may be less trusted: see tree.py. Files come into being in RESERVED at the top of
the destination and are renamed into place, so nothing half written ever has its name. A lock on the destination makes
two who populate it at once take turns; the second finds everything there and leaves it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from blake3 import blake3

from sidecar.errors import Corrupt, Unreachable
from sidecar.store.format import DIRECTORY, FILE, LINK, RESERVED, Entry, Piece, object_name
from sidecar.store.objects import Objects
from sidecar.store.tree import FOLDER, Directories, kind, split
from sidecar.store.work import Buffers, Meter, Window

_RESTORED = 0o1777  # a bundle must not be able to bring a set-user-id program into a pod
_RUN = 4 << 20  # small files that lie together in a pack are read with one request of up to this many bytes


class Reader:
    """Reads the chunks of one bundle. `where` begins every complaint: the store, the repository and the bundle."""

    def __init__(self, objects: Objects, where: str) -> None:
        """Read from `objects`; safe in several threads."""
        self._objects, self._where = objects, where
        self._buffers = Buffers()

    def chunk(self, path: str, piece: Piece) -> memoryview:
        """Return the verified bytes of a chunk of file `path`, in this thread's buffer. Corrupt where they are others."""
        view = self._buffers.view(piece.length)
        self._fill(path, piece.object, piece.offset, view)
        return self._verified(path, piece, view)

    def read(self, path: str, piece: Piece, view: memoryview) -> None:
        """Fill `view`, as long as the chunk, with its verified bytes. Corrupt where they are others; `view` then holds anything."""
        self._fill(path, piece.object, piece.offset, view)
        self._verified(path, piece, view)

    def run(self, pieces: Sequence[tuple[str, Piece]]) -> Iterator[memoryview]:
        """Yield the verified bytes of chunks that lie together in one pack, in ascending order; see `runs`."""
        path, first = pieces[0]
        end = max(piece.offset + piece.length for _, piece in pieces)
        view = self._buffers.view(end - first.offset)
        have = self._fill(path, first.object, first.offset, view, short=True)
        for path, piece in pieces:
            start = piece.offset - first.offset
            if start + piece.length > have:
                raise self.damaged(path, piece.object, "ends early")
            yield self._verified(path, piece, view[start : start + piece.length])

    def damaged(self, path: str, object_: str, problem: str) -> Corrupt:
        """Return the error that says which file cannot be had, and which object is to blame."""
        return Corrupt(f"{self._where}, file {path!r}: {object_name(object_)} {problem}")

    def _fill(self, path: str, object_: str, offset: int, view: memoryview, *, short: bool = False) -> int:
        try:
            have = self._objects.read(object_name(object_), offset, view)
        except FileNotFoundError:
            raise self.damaged(path, object_, "is missing") from None
        if have < len(view) and not short:
            raise self.damaged(path, object_, "ends early")
        return have

    def _verified(self, path: str, piece: Piece, view: memoryview) -> memoryview:
        if blake3(view).hexdigest() != piece.hash:
            raise self.damaged(path, piece.object, f"does not hold {piece.hash} at {piece.offset}")
        return view


def runs(files: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield files of one packed chunk each, grouped so that every group is one read of at most _RUN bytes, or one file."""
    group: list[Entry] = []
    start = end = 0
    for entry in sorted(files, key=lambda each: (each.pieces[0].pack, each.pieces[0].offset)):
        piece = entry.pieces[0]
        near = piece.offset <= end + (64 << 10)  # reading over a small gap is cheaper than asking again
        if group and (piece.pack != group[-1].pieces[0].pack or not near or piece.offset + piece.length - start > _RUN):
            yield group
            group = []
        if not group:
            start = piece.offset
            end = start
        group.append(entry)
        end = max(end, piece.offset + piece.length)
    if group:
        yield group


def is_packed(entry: Entry) -> bool:
    """Say whether a file is one chunk in a pack."""
    return len(entry.pieces) == 1 and bool(entry.pieces[0].pack)


def verify(reader: Reader, entries: Iterable[Entry], meter: Meter, parallel: int) -> None:
    """Read every chunk that `entries` refer to. Corrupt, naming up to twenty files, where any is not what it was."""
    faults: dict[str, None] = {}
    pieces: dict[Piece, str] = {}
    for entry in entries:
        for piece in entry.pieces:
            pieces.setdefault(piece, entry.path)
    meter.total = sum(piece.length for piece in pieces)

    def look(path: str, piece: Piece) -> tuple[int, str]:
        meter.check()
        try:
            reader.chunk(path, piece)
        except Corrupt as error:
            return piece.length, str(error)
        return piece.length, ""

    def took(result: tuple[int, str]) -> None:
        meter.add(result[0])
        if result[1]:
            faults[result[1]] = None

    with Window[tuple[int, str]](parallel) as window:
        for piece, path in pieces.items():
            window.give(partial(look, path, piece), took)
        window.drain()
    meter.finish()
    if faults:
        more = [f"and {len(faults) - 20} more"] if len(faults) > 20 else []
        raise Corrupt("\n".join([*list(faults)[:20], *more]))


def populate(
    reader: Reader, entries: Sequence[Entry], path: str, meter: Meter, parallel: int, *, shared: bool = False
) -> None:
    """Have `entries` below directory `path`, which is made where it is missing.

    What is there with the same type, size, mtime and mode is left alone. Corrupt where a chunk is not what it was, Unreachable
    where the directory cannot be written or something of another type stands in the way. `shared`: see tree.open_shared.
    """
    with _writing(path, ""):
        tree = Directories(path, shared=shared, make=True)
    try:
        with _turn(tree.top, meter.check), Window[int](parallel) as window:
            _Populate(reader, tree, path, meter, window).run(entries)
    finally:
        tree.close()


@contextmanager
def _writing(top: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unreachable(f"{os.path.join(top, path)}: {error.strerror or error}") from error


@contextmanager
def _turn(fd: int, check: Callable[[], None]) -> Iterator[None]:
    never = threading.Event()
    while True:
        check()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            never.wait(0.05)
        except OSError:  # no locks on this file system: then only one may populate it, as everywhere else
            break
    yield  # the lock goes with the descriptor


class _Writing:
    """One file of several chunks, or of large ones, being written."""

    def __init__(self, entry: Entry, name: str, fd: int) -> None:
        self.entry, self.name, self.fd = entry, name, fd
        self.missing = len(entry.pieces)


class _Populate:
    def __init__(self, reader: Reader, tree: Directories, top: str, meter: Meter, window: Window[int]) -> None:
        self._reader, self._tree, self._top, self._meter, self._window = reader, tree, top, meter, window
        self._temporary = -1
        self._open: set[int] = set()

    def run(self, entries: Sequence[Entry]) -> None:
        self._meter.total = sum(entry.size for entry in entries)
        with _writing(self._top, RESERVED):
            self._clean()
        try:
            for entry in entries:
                if entry.type == DIRECTORY:
                    self._directory(entry)
            missing = [entry for entry in entries if entry.type == FILE and not self._is_there(entry)]
            for entry in entries:
                if entry.type == LINK and not self._is_there(entry):
                    self._link(entry)
            self._files(missing)
            for entry in reversed(entries):
                if entry.type == DIRECTORY:
                    self._finish_directory(entry)
        finally:
            self._window.end()
            for fd in self._open:
                os.close(fd)
            with suppress(OSError):
                self._clean(remove=True)
        self._meter.finish()

    def _clean(self, *, remove: bool = False) -> None:
        """Empty the temporary directory of what a killed one left, and open it anew; or remove it. We hold the lock."""
        if self._temporary < 0:
            with suppress(FileExistsError):
                os.mkdir(RESERVED, 0o700, dir_fd=self._tree.top)
            self._temporary = os.open(RESERVED, FOLDER, dir_fd=self._tree.top)
        for name in os.listdir(self._temporary):
            os.unlink(name, dir_fd=self._temporary)
        if remove:
            os.close(self._temporary)
            os.rmdir(RESERVED, dir_fd=self._tree.top)

    def _directory(self, entry: Entry) -> None:
        parent, name = split(entry.path)
        with _writing(self._top, entry.path):
            fd = self._tree.fd(parent)
            try:
                os.mkdir(name, 0o700, dir_fd=fd)
            except FileExistsError:
                seen = os.stat(name, dir_fd=fd, follow_symlinks=False)
                self._same_type(entry, seen)
                if seen.st_mode & 0o700 != 0o700:
                    _permit(name, fd)

    def _is_there(self, entry: Entry) -> bool:
        parent, name = split(entry.path)
        with _writing(self._top, entry.path):
            fd = self._tree.fd(parent)
            try:
                seen = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                return False
            self._same_type(entry, seen)
            if entry.type == LINK:
                return seen.st_mtime_ns == entry.mtime and os.readlink(name, dir_fd=fd) == entry.target
            same = (seen.st_size, seen.st_mtime_ns, seen.st_mode & _RESTORED) == (
                entry.size,
                entry.mtime,
                entry.mode & _RESTORED,
            )
        if same:
            self._meter.add(entry.size)
        return same

    def _same_type(self, entry: Entry, seen: os.stat_result) -> None:
        if kind(seen.st_mode) != entry.type:
            path = os.path.join(self._top, entry.path)
            raise Unreachable(
                f"{path!r} is a {kind(seen.st_mode)} where the bundle has a {entry.type}; "
                "it is neither followed nor replaced: remove it, or choose another directory"
            )

    def _link(self, entry: Entry) -> None:
        with _writing(self._top, entry.path):
            name = secrets.token_hex(8)
            os.symlink(entry.target, name, dir_fd=self._temporary)
            os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=self._temporary, follow_symlinks=False)
            self._publish(entry, name)

    def _files(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if not is_packed(entry):
                self._write_in_threads(entry)
        self._window.drain()
        for group in runs(entry for entry in entries if is_packed(entry)):
            views = self._reader.run([(entry.path, entry.pieces[0]) for entry in group])
            for entry, view in zip(group, views, strict=True):
                writing = self._create(entry)
                self._write(writing, 0, view)
                self._end(writing)
                self._meter.add(entry.size)

    def _write_in_threads(self, entry: Entry) -> None:
        writing = self._create(entry)
        if not entry.pieces:
            self._end(writing)

        def fetch(piece: Piece, offset: int) -> int:
            self._meter.check()
            self._write(writing, offset, self._reader.chunk(entry.path, piece))
            return piece.length

        def took(length: int) -> None:
            self._meter.add(length)
            writing.missing -= 1
            if not writing.missing:
                self._end(writing)

        offset = 0
        for piece in entry.pieces:
            self._window.give(partial(fetch, piece, offset), took)
            offset += piece.length

    def _create(self, entry: Entry) -> _Writing:
        name = secrets.token_hex(8)
        with _writing(self._top, entry.path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=self._temporary)
        self._open.add(fd)
        return _Writing(entry, name, fd)

    def _write(self, writing: _Writing, offset: int, view: memoryview) -> None:
        with _writing(self._top, writing.entry.path):
            while view:
                count = os.pwrite(writing.fd, view, offset)
                offset, view = offset + count, view[count:]

    def _end(self, writing: _Writing) -> None:
        entry = writing.entry
        with _writing(self._top, entry.path):
            os.fchmod(writing.fd, entry.mode & _RESTORED)
            os.utime(writing.fd, ns=(entry.mtime, entry.mtime))
            self._open.discard(writing.fd)
            os.close(writing.fd)
            self._publish(entry, writing.name)

    def _publish(self, entry: Entry, temporary: str) -> None:
        parent, name = split(entry.path)
        os.rename(temporary, name, src_dir_fd=self._temporary, dst_dir_fd=self._tree.fd(parent))

    def _finish_directory(self, entry: Entry) -> None:
        with _writing(self._top, entry.path):
            fd = self._tree.fd(entry.path)
            seen = os.fstat(fd)
            # Set-group-id is what a volume's fsGroup put there, not the bundle: it stays.
            if seen.st_mode & _RESTORED != entry.mode & _RESTORED:
                os.fchmod(fd, entry.mode & _RESTORED | seen.st_mode & stat.S_ISGID)
            if seen.st_mtime_ns != entry.mtime:
                os.utime(fd, ns=(entry.mtime, entry.mtime))


def _permit(name: str, parent: int) -> None:
    """Let its owner into a directory that we are to write into; its own mode comes back at the end."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{fd}", 0o700)
    finally:
        os.close(fd)
