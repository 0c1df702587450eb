"""The chunks of a bundle become files in a directory, or are only looked at; each is hashed before anyone gets it.

The destination is shared with containers that may be less trusted: see tree.py. Files come into being in RESERVED at the top of
the destination and are renamed into place, so nothing half written ever has its name. A lock on the destination makes
two who populate it at once take turns; the second finds everything there and leaves it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import accumulate
from types import TracebackType
from typing import NamedTuple, TypeVar

from blake3 import blake3

from sidecar.errors import Corrupt, Unreachable
from sidecar.store import durable, table
from sidecar.store.compress import decompress, decompress_each
from sidecar.store.format import DIRECTORY, FILE, LINK, RESERVED, Entry, Malformed, Piece, Segment, Table, object_name
from sidecar.store.objects import Objects
from sidecar.store.second import LOOK, Caller, Second, begin_second, is_worth_it
from sidecar.store.table import Chunks, Pieces
from sidecar.store.tree import FOLDER, Directories, kind, split
from sidecar.store.work import Buffers, Meter, Window

_logger = logging.getLogger(__name__)
_RESTORED = 0o1777  # a bundle must not be able to bring a set-user-id program into a pod
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_RUN = 4 << 20  # chunks that lie together in a pack are read with one request of up to this many bytes
_IOV = min(1024, os.sysconf("SC_IOV_MAX"))  # buffers that one write takes
_HOT = 512 << 10  # bytes that are decompressed, hashed and written while the processor has them in its cache: 1.9 GB/s, else 0.9
_GAP = 64 << 10  # reading over a small gap is cheaper than asking again


class Reader:
    """Reads the chunks of one bundle. `where` begins every complaint: the store, the repository and the bundle."""

    def __init__(self, objects: Objects, where: str) -> None:
        """Read from `objects`; safe in several threads."""
        self._objects, self._where = objects, where
        self._buffers = Buffers()
        self._in_turn = threading.Lock()

    def chunk(self, path: str, piece: Piece) -> memoryview:
        """Return the verified bytes of a chunk of file `path`, in this thread's buffer. Corrupt where they are others."""
        view = self._buffers.view(piece.end - piece.offset)
        self._fill(path, piece.object, piece.offset, view)
        return self._plain(path, piece, view)

    def read(self, path: str, piece: Piece, view: memoryview) -> None:
        """Fill `view`, as long as the chunk, with its verified bytes. Corrupt where they are others; it then holds anything."""
        raw = memoryview(bytearray(piece.stored)) if piece.stored else view
        self._fill(path, piece.object, piece.offset, raw)
        plain = self._plain(path, piece, raw)
        if piece.stored:
            view[:] = plain

    def run(self, pieces: Sequence[tuple[str, Piece]]) -> Iterator[memoryview]:
        """Yield the verified bytes of chunks that lie together in one object, in ascending order; see `runs`."""
        view = self._buffers.view(_end(pieces) - pieces[0][1].offset)
        return self.split(pieces, view[: self.fetch(pieces, view)])

    def fetch(self, pieces: Sequence[tuple[str, Piece]], view: memoryview) -> int:
        """Read what such chunks lie in, not verified yet, to the beginning of `view`; return how much there is."""
        path, first = pieces[0]
        return self._fill(path, first.object, first.offset, view, short=True)

    def split(self, pieces: Sequence[tuple[str, Piece]], view: memoryview) -> Iterator[memoryview]:
        """Yield the verified bytes of such chunks, given what was fetched."""
        begin = pieces[0][1].offset
        for path, piece in pieces:
            if piece.end - begin > len(view):
                raise self.damaged(path, piece.object, "ends early")
            yield self._plain(path, piece, view[piece.offset - begin : piece.end - begin])

    def each(self, path: str, chunks: Chunks) -> Iterator[tuple[Sequence[int], list[memoryview]]]:
        """Yield the verified bytes of chunks of file `path`, some at a time, with their numbers, as they lie in the store.

        They are to be used before the next ones are asked for. Corrupt where a chunk is not what it was.
        """
        if len(chunks) == 1:
            yield range(1), [self.chunk(path, chunks[0])]
            return
        step = min(_IOV, max(1, _HOT // max(chunks.lengths)))
        for numbers in _in_order(chunks):
            object_, begin = chunks[numbers[0]].object, chunks.offsets[numbers[0]]
            view = self._buffers.view(max(map(chunks.end, numbers)) - begin)
            self._fill(path, object_, begin, view)
            for start in range(0, len(numbers), step):
                some = numbers[start : start + step]
                yield some, self._verified(path, chunks, some, view, begin)

    def _verified(self, path: str, chunks: Chunks, numbers: Sequence[int], view: memoryview, begin: int) -> list[memoryview]:
        """Return the verified bytes of some chunks, given what lies in the store from `begin` on."""
        # One call for all frames, and one write, where one for each was: 40,000 pages took the processors 3 s, and take 1.
        there = {number: view[chunks.offsets[number] - begin : chunks.end(number) - begin] for number in numbers}
        framed = [number for number in there if chunks.stored[number]]
        there.update(zip(framed, self._frames(path, chunks, framed, view, begin), strict=True))
        found = [there[number] for number in numbers]
        # In turns: to hash a page takes 3 us, for which the GIL is given up; threads that do so at a time mostly wake each other.
        with self._in_turn:
            hashes = b"".join([blake3(each).digest() for each in found])
        if hashes != chunks.digests(numbers):
            for number, plain in there.items():
                self._check(path, chunks[number], plain)
        return found

    def _frames(self, path: str, chunks: Chunks, numbers: Sequence[int], view: memoryview, begin: int) -> list[memoryview]:
        frames = [(chunks.offsets[number] - begin, chunks.stored[number]) for number in numbers]
        try:
            return decompress_each(view, frames, [chunks.lengths[number] for number in numbers])
        except Malformed:  # somewhere: one by one, that is told with its place
            lies = zip(numbers, frames, strict=True)
            return [self._plain(path, chunks[number], view[at : at + size]) for number, (at, size) in lies]

    def many(self, pieces: Sequence[tuple[str, Piece]]) -> Iterator[tuple[int, memoryview]]:
        """Yield the number and the verified bytes of each of these chunks, in the order in which they lie in the store."""
        order = sorted(range(len(pieces)), key=lambda number: (pieces[number][1].object, pieces[number][1].offset))
        for group in _together(order, lambda number: pieces[number][1]):
            yield from zip(group, self.run([pieces[number] for number in group]), strict=True)

    def table(self, path: str, segment: Segment) -> Chunks:
        """Return a part of the list of the chunks of file `path`."""
        view = memoryview(bytearray(segment.piece.length))  # not this thread's buffer: what that holds may be in use
        self.read(path, segment.piece, view)
        try:
            return table.decode(bytes(view), segment)
        except Malformed as error:
            raise self.damaged(path, segment.piece.object, f"holds a list of chunks, but {error}") from None

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

    def _plain(self, path: str, piece: Piece, view: memoryview) -> memoryview:
        """Return a chunk, given what lies in the store of it."""
        if piece.stored:
            try:
                view = memoryview(decompress(view, piece.length))
            except Malformed as error:
                raise self.damaged(path, piece.object, f"does not hold {piece.hash} at {piece.offset}: {error}") from None
        self._check(path, piece, view)
        return view

    def _check(self, path: str, piece: Piece, view: memoryview) -> None:
        if blake3(view).hexdigest() != piece.hash:
            raise self.damaged(path, piece.object, f"does not hold {piece.hash} at {piece.offset}")


Item = TypeVar("Item")


def _together(items: Iterable[Item], piece_of: Callable[[Item], Piece]) -> Iterator[list[Item]]:
    """Yield groups of items, in the order of where they lie, such that each is one read of at most _RUN bytes, or one chunk."""
    group: list[Item] = []
    object_, start, end = "", 0, 0
    for item in items:
        piece = piece_of(item)
        near = piece.offset <= end + _GAP
        if group and (piece.object != object_ or not near or piece.end - start > _RUN):
            yield group
            group = []
        if not group:
            object_, start, end = piece.object, piece.offset, piece.offset
        group.append(item)
        end = max(end, piece.end)
    if group:
        yield group


def _end(pieces: Sequence[tuple[str, Piece]]) -> int:
    return max(piece.end for _, piece in pieces)


def runs(files: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield files of one packed chunk each, grouped so that every group is one read of at most _RUN bytes, or one file."""
    order = sorted(files, key=lambda each: (each.pieces[0].pack, each.pieces[0].offset))
    return _together(order, lambda each: each.pieces[0])


def is_packed(entry: Entry) -> bool:
    """Say whether a file is one chunk in a pack."""
    return len(entry.pieces) == 1 and bool(entry.pieces[0].pack)


def _in_order(chunks: Chunks) -> Iterator[Sequence[int]]:
    """Yield the numbers of chunks in the order of where they lie, together those that are one read."""
    last = len(chunks) - 1
    if chunks.is_one_run() and chunks[last].end - chunks.offsets[0] <= _RUN:
        yield range(len(chunks))
        return
    pieces = [chunks[number] for number in range(len(chunks))]
    order = sorted(range(len(pieces)), key=lambda number: (pieces[number].object, pieces[number].offset))
    yield from _together(order, pieces.__getitem__)


def _parts(pieces: Sequence[Piece]) -> Iterator[tuple[Chunks, int]]:
    """Yield the chunks of a file in columns of at most _RUN bytes, or of one chunk, and how many: what a thread does at once."""
    whole: Iterable[tuple[Chunks, int, int]] = ()
    if isinstance(pieces, Pieces):
        whole = pieces.parts(0, len(pieces))
    elif pieces:
        columns = Chunks()
        columns.extend(pieces)
        whole = [(columns, 0, len(pieces))]
    for columns, start, stop in whole:
        ends = [0, *accumulate(columns.lengths[start:stop])]
        at = 0
        while at < stop - start:
            end = max(at + 1, bisect_right(ends, ends[at] + _RUN) - 1)
            some = Chunks()
            some.copy(columns, start + at, start + end)
            yield some, ends[end] - ends[at]
            at = end


Batch = list[tuple[str, Piece]]


def _batches(pieces: Iterable[tuple[str, Piece]]) -> Iterator[Batch]:
    """Yield the same in lists of at most _RUN bytes, or of one chunk: what a thread does at once."""
    batch: Batch = []
    size = 0
    for path, piece in pieces:
        if batch and size + piece.length > _RUN:
            yield batch
            batch, size = [], 0
        batch.append((path, piece))
        size += piece.length
    if batch:
        yield batch


def verify(reader: Reader, entries: Sequence[Entry], meter: Meter, parallel: int) -> None:
    """Read every chunk that `entries` refer to. Corrupt, naming up to twenty files, where any is not what it was."""
    faults: dict[str, None] = {}
    meter.total = sum(entry.size for entry in entries)
    # Of files of many chunks, those that are the same are read again: they are too many to be remembered.
    large = [entry for entry in entries if isinstance(entry.pieces, Table)]

    def pieces() -> Iterator[tuple[str, Piece]]:
        seen: set[str] = set()
        for entry in entries:
            if isinstance(entry.pieces, Table):
                continue
            for piece in entry.pieces:
                if piece.hash not in seen:
                    yield entry.path, piece
                else:
                    meter.add(piece.length)
                seen.add(piece.hash)

    def look(batch: Batch) -> tuple[int, list[str]]:
        meter.check()
        size = sum(piece.length for _, piece in batch)
        try:
            for _ in reader.many(batch):
                pass
        except Corrupt:
            return size, [problem for path, piece in batch if (problem := _problem(reader, path, piece))]
        return size, []

    def look_at_columns(path: str, chunks: Chunks, size: int) -> tuple[int, list[str]]:
        meter.check()
        try:
            for _ in reader.each(path, chunks):
                pass
        except Corrupt:
            return size, [problem for number in range(len(chunks)) if (problem := _problem(reader, path, chunks[number]))]
        return size, []

    def took(result: tuple[int, list[str]]) -> None:
        meter.add(result[0])
        faults.update(dict.fromkeys(result[1]))

    with Window[tuple[int, list[str]]](parallel) as window:
        for batch in _batches(pieces()):
            window.give(partial(look, batch), took)
        for entry in large:
            try:
                for chunks, size in _parts(entry.pieces):
                    window.give(partial(look_at_columns, entry.path, chunks, size), took)
            except Corrupt as error:
                faults[str(error)] = None
        window.drain()
    meter.finish()
    if faults:
        more = [f"and {len(faults) - 20} more"] if len(faults) > 20 else []
        raise Corrupt("\n".join([*list(faults)[:20], *more]))


def _problem(reader: Reader, path: str, piece: Piece) -> str:
    try:
        reader.chunk(path, piece)
    except Corrupt as error:
        return str(error)
    return ""


@lru_cache(maxsize=64)
def _hash_of_zeros(length: int) -> str:
    return blake3(bytes(length)).hexdigest()


def _is_zeros(piece: Piece) -> bool:
    """Say whether a chunk is nothing but zero bytes, without reading it: those of a hole become a hole again."""
    return 0 < piece.stored < piece.length >> 6 and piece.hash == _hash_of_zeros(piece.length)


class How(NamedTuple):
    """How a directory is populated: so many chunks at once; `shared`: see tree.open_shared; `durable`: on its disk in the end."""

    parallel: int
    shared: bool = False
    durable: bool = False
    skip_errors: bool = False


def populate(reader: Reader, entries: Sequence[Entry], path: str, meter: Meter, how: How) -> tuple[str, ...]:
    """Have `entries` below directory `path`, which is made where it is missing; return the paths of files that were left out.

    What is there with the same type, size, mtime and mode is left alone. Corrupt where a chunk is not what it was, unless such
    files are to be left out; Unreachable where the directory cannot be written or something of another type stands in the way.
    """
    with _Guard(path, ""):
        tree = Directories(path, shared=how.shared, make=True)
    try:
        with _turn(tree.top, meter.check), Window[Fetched](how.parallel) as window:
            populating = _Populate(reader, tree, path, meter, window, how)
            populating.run(entries)
            if how.durable:
                with _Guard(path, ""):
                    durable.finish(tree.top)
            return tuple(populating.left_out)
    finally:
        tree.close()


class _Guard:
    """Within it, what the file system refuses is Unreachable and names the path. (A generator would take four times as long.)"""

    __slots__ = ("_path", "_top")

    def __init__(self, top: str, path: str) -> None:
        self._top, self._path = top, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, OSError):
            raise Unreachable(f"{os.path.join(self._top, self._path)}: {error.strerror or error}") from error


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
        self.error: Corrupt | None = None
        self.in_turn = threading.Lock()
        self.missing = 1  # what is under way, and one until all of it is


def _runs_of(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield from where to where numbers follow one another."""
    start = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1:
            yield start, at
            start = at


Fetched = int | memoryview | Corrupt
"""What a thread has done: so many bytes written, or these read; or why it could not, where such files are left out."""


class _Populate:
    def __init__(self, reader: Reader, tree: Directories, top: str, meter: Meter, window: Window[Fetched], how: How) -> None:
        self._reader, self._tree, self._top, self._meter, self._window = reader, tree, top, meter, window
        self._skip_errors, self._durable = how.skip_errors, how.durable
        self.left_out: list[str] = []
        self._temporary = -1
        self._open: set[int] = set()
        self._made: set[str] = set()
        self._prefix, self._number = os.urandom(8).hex(), 0

    def run(self, entries: Sequence[Entry]) -> None:
        self._meter.total = sum(entry.size for entry in entries)
        with _Guard(self._top, RESERVED):
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
        with _Guard(self._top, entry.path):
            fd = self._tree.fd(parent)
            try:
                os.mkdir(name, 0o700, dir_fd=fd)
                self._made.add(entry.path)
            except FileExistsError:
                seen = os.stat(name, dir_fd=fd, follow_symlinks=False)
                self._same_type(entry, seen)
                if seen.st_mode & 0o700 != 0o700:
                    _permit(name, fd)

    def _is_there(self, entry: Entry) -> bool:
        parent, name = split(entry.path)
        if parent in self._made:
            return False  # whoever puts something there meanwhile has it replaced, as between a look and a write
        with _Guard(self._top, entry.path):
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
        with _Guard(self._top, entry.path):
            name = self._temporary_name()
            os.symlink(entry.target, name, dir_fd=self._temporary)
            os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=self._temporary, follow_symlinks=False)
            self._publish(entry, name)

    def _files(self, entries: Sequence[Entry]) -> None:
        ours, theirs = list(runs(entry for entry in entries if is_packed(entry))), deque[list[Entry]]()
        if is_worth_it(sum(map(len, ours))):
            ours, theirs = ours[::2], deque(ours[1::2])
        second = begin_second(partial(self._write_as_second, tuple(theirs))) if theirs else None
        try:
            for entry in entries:
                if not is_packed(entry):
                    self._write_in_threads(entry)
            for group in ours:
                # Two processes have enough to do without waiting; a thread that reads ahead would only hold this one up.
                self._write_together(group, here=second is not None)
                self._count(second, theirs, 0)
            self._window.drain()
            while theirs and self._count(second, theirs, LOOK):
                self._meter.check()
        finally:
            if second is not None:
                second.end()
        for group in theirs:  # what it has not done
            self._write_together(group)
        self._window.drain()

    def _write_as_second(self, groups: Sequence[list[Entry]], first: Caller) -> None:
        """Write small files in a second process, and tell the first one of each group that is done."""
        self._meter = Meter("", None, None)
        self._prefix = os.urandom(8).hex()
        for group in groups:
            pieces = [(entry.path, entry.pieces[0]) for entry in group]
            for entry, plain in zip(group, self._reader.run(pieces), strict=True):
                self._write_whole(entry, plain)
            first.send(b"")

    def _count(self, second: Second | None, theirs: deque[list[Entry]], seconds: float) -> bool:
        """Take from `theirs` what the second process has done, or does within so many seconds; False where it is over."""
        while second is not None and second.is_ready(seconds):
            if second.receive() is None:
                return False
            self._meter.add(sum(entry.size for entry in theirs.popleft()))
            seconds = 0
        return second is not None

    def _write_together(self, group: list[Entry], *, here: bool = False) -> None:
        """Write small files that lie together, in this thread: several would wait for each other. Read them `here`, or in one."""
        pieces = [(entry.path, entry.pieces[0]) for entry in group]

        def fetch() -> Fetched:
            self._meter.check()
            view = memoryview(bytearray(_end(pieces) - pieces[0][1].offset))
            try:
                return view[: self._reader.fetch(pieces, view)]
            except Corrupt as error:
                return self._excused(error)

        def took(view: Fetched) -> None:
            if isinstance(view, Corrupt):
                self._write_each(group)
                return
            assert isinstance(view, memoryview)
            done = 0
            try:
                for entry, plain in zip(group, self._reader.split(pieces, view), strict=True):
                    self._write_whole(entry, plain)
                    done += 1
            except Corrupt as error:
                self._excused(error)
                self._write_each(group[done:])

        if here:
            took(fetch())
        else:
            self._window.give(fetch, took)

    def _write_each(self, group: list[Entry]) -> None:
        """Write what can be had of files that lie together."""
        for entry in group:
            try:
                self._write_whole(entry, self._reader.chunk(entry.path, entry.pieces[0]))
            except Corrupt as error:
                self._leave_out(entry, error)

    def _write_whole(self, entry: Entry, plain: memoryview) -> None:
        # The store's hottest path beside upload._read_one, and as plain as that.
        temporary = self._temporary_name()
        parent, _, name = entry.path.rpartition("/")
        with _Guard(self._top, entry.path):
            fd = os.open(temporary, _NEW, 0o600, dir_fd=self._temporary)
            try:
                count = os.write(fd, plain)
                while count < len(plain):
                    count += os.write(fd, plain[count:])
                os.fchmod(fd, entry.mode & _RESTORED)
                os.utime(fd, ns=(entry.mtime, entry.mtime))
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=self._temporary, dst_dir_fd=self._tree.fd(parent))
        self._meter.add(entry.size)

    def _excused(self, error: Corrupt) -> Corrupt:
        """Return an error where files may be left out; else raise it."""
        if not self._skip_errors:
            raise error
        return error

    def _leave_out(self, entry: Entry, error: Corrupt) -> None:
        _logger.warning("%s; it is left out", error)
        self.left_out.append(entry.path)

    def _write_in_threads(self, entry: Entry) -> None:
        writing = self._create(entry)
        if entry.pieces:
            with _Guard(self._top, entry.path):
                os.truncate(writing.fd, entry.size)

        def fetch(chunks: Chunks, offset: int) -> Fetched:
            self._meter.check()
            starts = list(accumulate(chunks.lengths, initial=offset))
            try:
                for numbers, views in self._reader.each(entry.path, chunks):
                    for first, stop in _runs_of(numbers):
                        self._write(writing, starts[numbers[first]], views[first:stop])
            except Corrupt as error:
                return self._excused(error)
            if self._durable:
                durable.begin(writing.fd, offset, starts[-1] - offset)
            return starts[-1] - offset

        def took(done: Fetched) -> None:
            if isinstance(done, Corrupt):
                writing.error = done
            elif isinstance(done, int):
                self._meter.add(done)
            writing.missing -= 1
            if not writing.missing:
                self._end(writing)

        try:
            self._give_parts(entry, writing, fetch, took)
        except Corrupt as error:  # of its table
            writing.error = self._excused(error)
        took(0)

    def _give_parts(
        self, entry: Entry, writing: _Writing, fetch: Callable[[Chunks, int], Fetched], took: Callable[[Fetched], None]
    ) -> None:
        offset = 0
        for chunks, size in _parts(entry.pieces):
            if len(chunks) == 1 and _is_zeros(chunks[0]):
                self._meter.add(size)
            else:
                writing.missing += 1
                self._window.give(partial(fetch, chunks, offset), took)
            offset += size

    def _create(self, entry: Entry) -> _Writing:
        name = self._temporary_name()
        with _Guard(self._top, entry.path):
            fd = os.open(name, _NEW, 0o600, dir_fd=self._temporary)
        self._open.add(fd)
        return _Writing(entry, name, fd)

    def _temporary_name(self) -> str:
        self._number += 1
        return f"{self._prefix}-{self._number}"

    def _write(self, writing: _Writing, offset: int, views: Sequence[memoryview]) -> None:
        """Write what belongs together from an offset on."""
        # In turns: the kernel has one write to a file at a time, and those who wait for it do so on a processor.
        with writing.in_turn, _Guard(self._top, writing.entry.path):
            done, size = os.pwritev(writing.fd, views, offset), sum(map(len, views))
            if done < size:
                rest = memoryview(b"".join(views))
                while done < size:
                    done += os.pwrite(writing.fd, rest[done:], offset + done)

    def _end(self, writing: _Writing) -> None:
        entry = writing.entry
        if writing.error is not None:
            self._open.discard(writing.fd)
            os.close(writing.fd)
            self._leave_out(entry, writing.error)
            return  # what is there of it goes with the temporary directory
        with _Guard(self._top, entry.path):
            os.fchmod(writing.fd, entry.mode & _RESTORED)
            os.utime(writing.fd, ns=(entry.mtime, entry.mtime))
            self._open.discard(writing.fd)
            os.close(writing.fd)
            self._publish(entry, writing.name)

    def _publish(self, entry: Entry, temporary: str) -> None:
        parent, name = split(entry.path)
        os.rename(temporary, name, src_dir_fd=self._temporary, dst_dir_fd=self._tree.fd(parent))

    def _finish_directory(self, entry: Entry) -> None:
        with _Guard(self._top, entry.path):
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
