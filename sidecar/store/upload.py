"""A directory tree becomes objects in the store, and the entries of a manifest.

Nothing here makes a bundle visible: when `upload` returns, the bytes are in the store, durable, and no one refers to them.
Content is cut and packed the same way from the same tree, so an upload that begins again after a kill finds its objects by name.
A file is read through one descriptor, and counted as read only if size, mtime and ctime are the same before and after.

Threads read, hash, compress and store; one thread, the caller's, has the order in which chunks go into packs. A pack has a
name only once it is full, so until the end a chunk in it lies in `#0`, `#1`, ...: see _Pack. In memory at once: for each
thread a chunk or 4 MiB of small ones, and what it is compressed to; a few packs; 52 bytes for each chunk of the files whose
chunks lie in those.
"""

from __future__ import annotations

import errno
import logging
import marshal
import mmap
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from typing import NamedTuple

from blake3 import blake3

from sidecar.errors import Fault, NotSaved, ParametersError
from sidecar.store.compress import compress, compress_each
from sidecar.store.format import CHUNK, FILE, LINK, MIB, SMALL, SMALLEST_CUT, Entry, Piece, Segment, object_name
from sidecar.store.objects import Objects
from sidecar.store.places import Known, Places, Run
from sidecar.store.second import LOOK, Caller, Second, begin_second, is_worth_it
from sidecar.store.table import INLINE, SEGMENT, Chunks, Pieces
from sidecar.store.tree import SPECIAL, Directories, Found, Seen, kind, seen_of, split, walk
from sidecar.store.work import Buffers, Meter, Window, memory
from sidecar.values import value

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: a pipe put there since must not hold us
_BLOCK = 4 * MIB  # small chunks of a large file are read so many bytes at a time: a call for each would cost more than its work
_LARGEST_CUT = 16 * MIB  # each thread holds one, and what it is compressed to
_BATCH = 256  # small files that one of two processes reads at a time, of at most SMALL bytes together
_SLOTS = 8  # batches that the second process is ahead
_IN_VAIN = 16  # chunks; of 20,000 files of random bytes trying each took a tenth of the time
_THREADS = 4  # a request to store waits for little else than the network; each has a chunk in memory up to four times
_logger = logging.getLogger(__name__)

ChunkSize = Callable[[str, int], int]
"""Given path and size of a file: how it is to be cut, in bytes; 0 as usual. The same every time, or nothing is found again."""

LeaveOut = Callable[[str], bool]
"""Given the path of an entry: whether it, and of a directory what is below it, is not to be in the bundle."""

Inspect = Callable[[str, int, memoryview], None]
"""Given the path of a file, an offset and the bytes that are kept of it from there on: raises a SidecarError to end the save.

Called in several threads, but in one at a time.
"""


@value
class How:
    """What the caller of Store.save, whose docstring says what each means, may choose."""

    chunk_size: ChunkSize | None = None
    leave_out: LeaveOut | None = None
    inspect: Inspect | None = None
    inspected: Callable[[], None] | None = None
    skip_errors: bool = False
    shared: bool = False


@value
class Uploaded:
    """The entries of a tree, ascending; how many bytes of objects were added for them, how many entries left out."""

    entries: tuple[Entry, ...]
    stored: int
    skipped: int


def upload(objects: Objects, path: str, known: Known, meter: Meter, how: How) -> Uploaded:
    """Put the content of directory `path` into `objects`, but for chunks that are known.

    NotSaved where something cannot be kept as it is: a special file, one that cannot be read, or one that keeps changing while it
    is read (twice; one of a single chunk three times). With `skip_errors` such entries are left out, counted and logged.
    Unreachable where the store fails. `shared`: see tree.open_shared. What `inspect` and `inspected` raise ends it.
    """
    try:
        tree = Directories(path, shared=how.shared)
    except OSError as error:
        raise NotSaved(f"{path}: {error.strerror}") from error
    try:
        # Packs are stored beside what is read: both together are what the store allows, and one more.
        threads = min(objects.parallel + 1 - objects.sealing, _THREADS)
        with Window[_Read](threads) as window, ThreadPoolExecutor(objects.sealing) as sealing:
            return _Upload(objects, tree, known, meter, window, sealing, how).run()
    finally:
        tree.close()


class _Changed(Exception):
    """The file is not what it was when its reading began."""


class _Chunk(NamedTuple):
    """A chunk that was read. Where it lies; or what is to be packed of it: `data`, a frame where that is shorter than it."""

    hash: str
    length: int
    piece: Piece | None
    data: bytes = b""
    stored: int = 0


def _frame(chunk: _Chunk) -> int:
    """Return how long the frame is that is to be packed of a chunk; 0 where that is the chunk as it is."""
    return len(chunk.data) if len(chunk.data) < chunk.length else 0


_Read = list[list[_Chunk] | Run] | OSError | None
"""What comes of reading a block. None: the file has become too short for it. An error is no exception: the upload may go on."""


class _Reading:
    """One file being read: its descriptor, its stat before, how it is cut, and the chunks that have come back."""

    def __init__(self, found: Found, fd: int, cut: int) -> None:
        self.path, self.fd, self.cut = found.path, fd, cut
        self.seen = seen_of(os.fstat(fd))
        self.block = cut if cut > SMALL else max(cut, _BLOCK // cut * cut)
        size = self.seen.size
        self.pieces: list[Piece] | Chunks = [] if size <= cut * INLINE else Chunks()
        self.missing = -(-size // self.block)
        self.changed = kind(self.seen.mode) != FILE  # since it was found
        self.error: OSError | None = None

    def check(self) -> None:
        """Raise what reading it raised; _Changed where it was not one file from beginning to end."""
        if self.error is not None:
            raise self.error
        if self.changed or seen_of(os.fstat(self.fd)) != self.seen:
            raise _Changed


class _Pack:
    """The pack being filled. Its buffers are made once; files are read right into the one while others are stored.

    It is called `#n` until it is full; `names` then has its name.
    """

    def __init__(self, objects: Objects, sealing: ThreadPoolExecutor) -> None:
        self._objects, self._sealing = objects, sealing
        self._buffers: deque[memoryview] = deque([memoryview(b"")] * (objects.sealing + 1))
        self._used = 0
        self._storing: deque[tuple[Future[bool], int]] = deque()
        self.names: dict[str, str] = {}
        self.stored = 0

    def room(self, length: int) -> memoryview:
        """Return where the next chunk goes; what is written there counts only once it is kept."""
        if not self._buffers[0]:
            self._buffers[0] = memory(self._objects.pack)
        if self._used + length > self._objects.pack:
            self.seal()
            return self.room(length)
        return self._buffers[0][self._used : self._used + length]

    def keep(self, hash_: str, length: int, stored: int) -> Piece:
        """Keep what was put into `room`: a chunk of `length` bytes, as a frame of `stored` bytes unless that is 0."""
        piece = Piece(hash_, length, f"#{len(self.names)}", self._used, stored)
        self._used += stored or length
        return piece

    def keep_all(self, chunks: Sequence[_Chunk]) -> list[Piece]:
        """Put chunks into the pack, one after the other, and return where they lie; none where there is not room for all."""
        data = b"".join([chunk.data for chunk in chunks])
        if self._used + len(data) > self._objects.pack:
            return []
        self.room(len(data))[:] = data
        # As `keep` does, in a third of the time: this is done for each page of a database, and holds up those who read.
        pieces, pack, at = [], f"#{len(self.names)}", self._used
        for hash_, length, _, packed, _ in chunks:
            size = len(packed)
            pieces.append(Piece(hash_, length, pack, at, size if size < length else 0))
            at += size
        self._used = at
        return pieces

    def seal(self) -> None:
        """Have what was kept stored, and begin anew."""
        if not self._used:
            return
        self.wait(self._objects.sealing - 1)
        view = self._buffers[0][: self._used]
        name = blake3(view).hexdigest()
        self.names[f"#{len(self.names)}"] = name
        self._storing.append((self._sealing.submit(self._objects.put, object_name(name), view), self._used))
        self._buffers.rotate(-1)
        self._used = 0

    def wait(self, most: int = 0) -> None:
        """Return when all that was sealed but the last `most` are stored; the error, where they could not be."""
        while len(self._storing) > most:
            future, size = self._storing.popleft()
            if future.result():
                self.stored += size

    def named(self, piece: Piece) -> Piece:
        """Return a piece with the name of its pack, which has been sealed."""
        hash_, length, pack, offset, stored = piece  # not by _replace, which takes four times as long, for each file
        return Piece(hash_, length, self.names[pack], offset, stored) if pack[:1] == "#" else piece

    def name(self, pack: str) -> str:
        """Return the name of a pack, which has been sealed or had it before."""
        return self.names.get(pack, pack)


def _batches(files: list[Found]) -> Iterator[list[Found]]:
    """Yield small files in lists of at most _BATCH, and of at most SMALL bytes."""
    batch: list[Found] = []
    size = 0
    for found in files:
        if batch and (len(batch) == _BATCH or size + found.seen.size > SMALL):
            yield batch
            batch, size = [], 0
        batch.append(found)
        size += found.seen.size
    if batch:
        yield batch


def _is_seconds(number: int) -> bool:
    """Say whether a batch is for the second process: three of five are, as the first has the packs to see to."""
    return number % 5 in (0, 2, 4)


class _Upload:
    def __init__(
        self,
        objects: Objects,
        tree: Directories,
        known: Known,
        meter: Meter,
        window: Window[_Read],
        sealing: ThreadPoolExecutor,
        how: How,
    ) -> None:
        self._objects, self._tree, self._meter, self._window = objects, tree, meter, window
        self._how = how
        self._placed = Places(objects, known)
        self._pack = _Pack(objects, sealing)
        self._buffers = Buffers()
        self._open: set[int] = set()
        self._done: dict[str, tuple[Seen, list[Piece] | tuple[Segment, ...]]] = {}
        self._tables: deque[tuple[_Reading, Chunks]] = deque()
        self._in_turn = threading.Lock()
        self._stored = self._in_vain = 0
        self._shared: list[memoryview] = []
        self.skipped: dict[str, str] = {}

    def run(self) -> Uploaded:
        found = walk(self._tree, self._unreadable, self._meter.check, self._how.leave_out)
        files = [each for each in found if each.type == FILE]
        self._meter.total = sum(each.seen.size for each in files)
        for each in found:
            if each.type == SPECIAL:
                self._refuse(each.path, "is a socket, pipe or device, which no bundle can hold")
        small = list(_batches([each for each in files if each.seen.size <= SMALL]))
        second = None
        # Who inspects may be anything but safe in a copy of the process, and what it learns there would be lost.
        if self._how.inspect is None and is_worth_it(sum(map(len, small))):
            self._shared = [memoryview(mmap.mmap(-1, SMALL)) for _ in range(_SLOTS)]
            theirs = [batch for number, batch in enumerate(small) if _is_seconds(number)]
            second = begin_second(partial(self._read_as_second, theirs))
        try:
            self._read_large([each for each in files if each.seen.size > SMALL])
            self._read_small(small, second)
            if self._how.inspected is not None:
                self._how.inspected()
        finally:
            if second is not None:
                second.end()
            # The threads may still read: descriptors are closed when they have ended.
            self._window.end()
            for fd in self._open:
                os.close(fd)
        self._pack.seal()
        self._store_tables()
        self._pack.seal()
        self._pack.wait()
        self._objects.flush()
        self._meter.finish()
        entries = tuple(filter(None, map(self._entry, found)))
        return Uploaded(entries, self._stored + self._pack.stored, len(self.skipped))

    def _entry(self, found: Found) -> Entry | None:
        """Return the entry of what was found, None where it was left out."""
        if found.type == FILE:
            if found.path not in self._done:
                return None
            seen, said = self._done[found.path]
            pieces: Sequence[Piece]
            if isinstance(said, list):
                pieces = tuple(map(self._pack.named, said))
            else:
                pieces = Pieces(tuple(each._replace(piece=self._pack.named(each.piece)) for each in said), _unread)
            return Entry(found.path, FILE, stat.S_IMODE(seen.mode), seen.mtime, seen.size, pieces)
        if found.type == SPECIAL:
            return None
        mode = 0 if found.type == LINK else stat.S_IMODE(found.seen.mode)  # as it is read again: a link has no mode of its own
        return Entry(found.path, found.type, mode, found.seen.mtime, 0, (), found.target)

    # --- reading ---------------------------------------------------------------------------------------------------

    def _read_large(self, files: list[Found]) -> None:
        for found in files:
            try:
                reading = self._begin(found)
            except OSError as error:
                self._unreadable(found.path, error)
                continue
            self._read_in_threads(found, reading)
            self._meter.add(0)
        self._window.drain()

    def _read_small(self, batches: list[list[Found]], second: Second | None) -> None:
        """Read small files into packs. Whoever reads them, and whether in one process or two, the packs come out the same."""
        slots = 0
        for number, batch in enumerate(batches):
            self._in_vain = 0
            message = self._hear(second) if second is not None and _is_seconds(number) else None
            if second is None or message is None:
                for found in batch:
                    self._read_one(found)
            else:
                self._take_over(batch, marshal.loads(message), self._shared[slots % _SLOTS])  # noqa: S302 - of our own copy
                second.go_on()
                slots += 1
            self._meter.add(sum(found.seen.size for found in batch))

    def _hear(self, second: Second) -> bytes | None:
        while not second.is_ready(LOOK):
            self._meter.check()
        return second.receive()

    def _read_one(self, found: Found) -> None:
        size = found.seen.size
        if not size or size > self._cut(found):
            self._read(found)
            return
        view = self._pack.room(size)
        try:
            hash_ = self._read_into(view, found)
        except OSError as error:
            self._unreadable(found.path, error)
            return
        if not hash_:
            self._read(found)
            return
        self._inspect(found.path, 0, view)
        piece = self._placed.get(hash_)
        # Also where this upload has placed it, which a second process would not know: what is compressed must not depend on that.
        frame = self._compress(view) if not self._placed.is_known(hash_) else None
        if piece is None:
            if frame is not None:
                view[: len(frame)] = frame
            piece = self._pack.keep(hash_, size, len(frame or b""))
            self._placed.add(piece)
        self._done[found.path] = found.seen, [piece]

    def _read_into(self, view: memoryview, found: Found) -> str:
        """Fill `view` with a file and return its hash; "" where it is not any more what was found. OSError."""
        # The store's hottest path: this is done for each of 20,000 files, and a microsecond more is felt.
        parent, _, name = found.path.rpartition("/")
        fd = os.open(name, _READ, dir_fd=self._tree.fd(parent))
        try:
            count = os.preadv(fd, (view,), 0)
            now = os.fstat(fd)
        finally:
            os.close(fd)
        return blake3(view).hexdigest() if count == len(view) and seen_of(now) == found.seen else ""

    def _read_as_second(self, batches: list[list[Found]], first: Caller) -> None:
        """Read small files in a second process. What was read of a batch goes into a slot, what there is to say of it is sent:

        of each file its hash and the length of the frame that it is in the slot as, 0 if as it is, -1 if it is known already and
        not there; or nothing, where the first process is to see for itself.
        """
        for number, batch in enumerate(batches):
            if number >= _SLOTS:
                first.wait()
            slot, at = self._shared[number % _SLOTS], 0
            self._in_vain = 0
            said: list[tuple[str, int] | None] = []
            for found in batch:
                size = found.seen.size
                view = slot[at : at + size]
                try:
                    hash_ = self._read_into(view, found) if 0 < size <= self._cut(found) else ""
                except OSError:
                    hash_ = ""
                if not hash_:
                    said.append(None)
                elif self._placed.is_known(hash_):
                    said.append((hash_, -1))
                else:
                    frame = self._compress(view)
                    if frame is not None:
                        view[: len(frame)] = frame
                    stored = len(frame or b"")
                    said.append((hash_, stored))
                    at += stored or size
            first.send(marshal.dumps(said))

    def _take_over(self, batch: list[Found], said: list[tuple[str, int] | None], slot: memoryview) -> None:
        """Have in the pack what the second process has read."""
        at = 0
        for found, each in zip(batch, said, strict=True):
            if each is None:
                self._read_one(found)
                continue
            hash_, stored = each
            size = found.seen.size
            length = 0 if stored < 0 else stored or size
            piece = self._placed.get(hash_)
            if piece is None and not length:
                self._read_one(found)  # it was lost from the store this very moment
                continue
            if piece is None:
                self._pack.room(length)[:] = slot[at : at + length]
                piece = self._pack.keep(hash_, size, stored)
                self._placed.add(piece)
            at += length
            self._done[found.path] = found.seen, [piece]

    def _begin(self, found: Found) -> _Reading:
        parent, name = split(found.path)
        fd = os.open(name, _READ, dir_fd=self._tree.fd(parent))
        self._open.add(fd)
        return _Reading(found, fd, self._cut(found))

    def _cut(self, found: Found) -> int:
        cut = self._how.chunk_size(found.path, found.seen.size) if self._how.chunk_size is not None else 0
        if cut and not SMALLEST_CUT <= cut <= _LARGEST_CUT:
            raise ParametersError([Fault("chunk size", found.path, f"{cut} is not from {SMALLEST_CUT} to {_LARGEST_CUT}")])
        return cut or CHUNK

    def _read_in_threads(self, found: Found, reading: _Reading) -> None:
        self._meter.check()

        def took(length: int, block: _Read) -> None:
            self._take(reading, block)
            self._meter.add(length if isinstance(block, list) else 0)
            if not reading.missing:
                self._end(found, reading)

        for offset in range(0, reading.seen.size, reading.block):
            length = min(reading.block, reading.seen.size - offset)
            self._window.give(partial(self._block, reading, offset), partial(took, length))

    def _compress(self, view: memoryview) -> bytes | None:
        """Compress a small chunk; where several in a row could not be, only now and then, until one can."""
        self._in_vain += 1
        if self._in_vain > _IN_VAIN and self._in_vain % _IN_VAIN:
            return None
        frame = compress(view)
        if frame is not None:
            self._in_vain = 0
        return frame

    def _block(self, reading: _Reading, offset: int) -> _Read:
        """Read some chunks of a file, and store those that are large and new."""
        self._meter.check()
        length = min(reading.block, reading.seen.size - offset)
        if _is_hole(reading.fd, offset, length):
            return [[self._zeros(min(reading.cut, length - start)) for start in range(0, length, reading.cut)]]
        view = self._buffers.view(length)
        try:
            if not _fill(reading.fd, offset, view):
                return None
        except OSError as error:
            return error
        cut, at = reading.cut, 0
        hashes = self._hashes(reading, offset, view)
        read: list[list[_Chunk] | Run] = []
        for run, count in self._placed.runs(reading.path, offset // cut, hashes):
            end = at + count
            read.append(run or self._chunks(cut, hashes[at:end], view[at * cut : end * cut]))
            at = end
        return read

    def _hashes(self, reading: _Reading, offset: int, view: memoryview) -> list[str]:
        """Have a block inspected, and return the hashes of its chunks."""
        starts = range(0, len(view), reading.cut)
        if self._how.inspect is None and len(starts) == 1:
            return [blake3(view).hexdigest()]
        # To hash a page takes 3 us, for which the GIL is given up; a row of pages is checked in as much. Two threads that do
        # so at a time mostly wake each other: a save of 345 MiB of pages took 2.0 s of the processors, and 1.3 s in turns.
        with self._in_turn:
            self._inspect(reading.path, offset, view)
            return [blake3(view[start : start + reading.cut]).hexdigest() for start in starts]

    def _inspect(self, path: str, offset: int, view: memoryview) -> None:
        if self._how.inspect is not None:
            self._how.inspect(path, offset, view.toreadonly())

    def _chunks(self, cut: int, hashes: Sequence[str], view: memoryview) -> list[_Chunk]:
        pieces = list(map(self._placed.get, hashes))
        starts = range(0, len(view), cut)
        frames = iter(compress_each(view, cut, [start for start, piece in zip(starts, pieces, strict=True) if piece is None]))
        return [
            _Chunk(hash_, piece.length, piece) if piece else self._chunk(hash_, view[start : start + cut], next(frames))
            for hash_, start, piece in zip(hashes, starts, pieces, strict=True)
        ]

    def _chunk(self, hash_: str, view: memoryview, frame: bytes | None) -> _Chunk:
        """Return a new chunk, which is stored where it is large."""
        length = len(view)
        if frame is not None and len(frame) <= SMALL:
            return _Chunk(hash_, length, None, frame)
        if length <= SMALL:
            return _Chunk(hash_, length, None, bytes(view))
        data: bytes | memoryview = view if frame is None else frame
        piece = Piece(hash_, length)
        if frame is not None:
            piece = Piece(hash_, length, blake3(frame).hexdigest(), 0, len(frame))
        new = self._objects.put(object_name(piece.object), data)
        return _Chunk(hash_, length, piece, stored=len(data) if new else 0)

    def _zeros(self, length: int) -> _Chunk:
        hash_, frame = _zeros(length)
        return _Chunk(hash_, length, self._placed.get(hash_), frame)

    def _take(self, reading: _Reading, block: _Read) -> None:
        reading.missing -= 1
        if isinstance(block, OSError):
            reading.error = block
            return
        if block is None:
            reading.changed = True
            return
        many = isinstance(reading.pieces, Chunks)
        for each in block:
            if isinstance(each, Run):
                self._take_run(reading, each)
            else:
                reading.pieces.extend(self._place(each, many=many))

    def _place(self, chunks: Sequence[_Chunk], *, many: bool) -> list[Piece]:
        """Return where chunks lie; what is new is in the pack then."""
        new = {chunk.hash for chunk in chunks if chunk.piece is None}
        if len(new) == len(chunks) and self._placed.are_new(new) and (pieces := self._pack.keep_all(chunks)):
            self._placed.add_new(pieces, many=many)
            return pieces
        return [self._place_one(chunk, many=many) for chunk in chunks]

    def _place_one(self, chunk: _Chunk, *, many: bool) -> Piece:
        self._stored += chunk.stored
        piece = chunk.piece or self._placed.get(chunk.hash)
        if piece is None:
            piece = self._keep(chunk)
        if not chunk.piece or not many:
            self._placed.add(piece, many=many)
        return piece

    def _take_run(self, reading: _Reading, run: Run) -> None:
        if isinstance(reading.pieces, Chunks):
            reading.pieces.copy(*run)
            return
        for number in range(run.start, run.stop):  # the file has become short
            self._placed.add(run.chunks[number])
            reading.pieces.append(run.chunks[number])

    def _keep(self, chunk: _Chunk) -> Piece:
        self._pack.room(len(chunk.data))[:] = chunk.data
        return self._pack.keep(chunk.hash, chunk.length, _frame(chunk))

    def _end(self, found: Found, reading: _Reading, *, again: bool = False) -> None:
        try:
            reading.check()
            if isinstance(reading.pieces, Chunks):
                self._tables.append((reading, reading.pieces))
                self._store_tables()
            else:
                self._done[found.path] = reading.seen, reading.pieces
        except _Changed:
            if again:
                self._refuse(found.path, "changes while it is read")
            else:
                self._read(found, again=True)
        except OSError as error:
            self._unreadable(found.path, error)
        finally:
            self._close(reading)

    def _read(self, found: Found, *, again: bool = False) -> None:
        """Read a file here, in no other thread."""
        try:
            reading = self._begin(found)
        except OSError as error:
            self._unreadable(found.path, error)
            return
        for offset in range(0, reading.seen.size, reading.block):
            self._take(reading, self._block(reading, offset))
        self._end(found, reading, again=again)

    def _close(self, reading: _Reading) -> None:
        self._open.discard(reading.fd)
        os.close(reading.fd)

    def _unreadable(self, path: str, error: OSError) -> None:
        self._refuse(path, f"cannot be read: {error.strerror}")

    def _refuse(self, path: str, problem: str) -> None:
        if not self._how.skip_errors:
            raise NotSaved(f"{path or 'the top directory'!r} {problem}")
        _logger.warning("%r %s; it is left out", path, problem)
        self.skipped[path] = problem

    # --- tables ----------------------------------------------------------------------------------------------------

    def _store_tables(self) -> None:
        """Store the tables of files all of whose packs have names by now, so that they need not stay in memory."""
        while self._tables:
            reading, chunks = self._tables[0]
            if any(name.startswith("#") and name not in self._pack.names for name in chunks.objects):
                return
            self._tables.popleft()
            segments = (self._segment(chunks, start) for start in range(0, len(chunks), SEGMENT))
            self._done[reading.path] = reading.seen, tuple(segments)

    def _segment(self, chunks: Chunks, start: int) -> Segment:
        some = Chunks()
        some.copy(chunks, start, min(start + SEGMENT, len(chunks)), self._pack.name)
        data = some.encode()
        hash_ = blake3(data).hexdigest()
        piece = self._placed.get(hash_)
        if piece is None:
            frame = compress(data)
            piece = self._keep(_Chunk(hash_, len(data), None, data if frame is None else frame))
            self._placed.add(piece)
        return Segment(len(some), sum(some.lengths), piece)


def _unread(segment: Segment) -> Chunks:
    raise AssertionError(f"{segment} is only written")


@lru_cache(maxsize=64)
def _zeros(length: int) -> tuple[str, bytes]:
    """Return hash and frame of so many zero bytes."""
    data = bytes(length)
    return blake3(data).hexdigest(), compress(data) or data


def _is_hole(fd: int, offset: int, length: int) -> bool:
    """Say whether nothing was ever written there; where the file system cannot tell, it is not so."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) >= offset + length
    except OSError as error:
        # ENXIO: there is no data up to the end. Is that still where it was? What was cut off is found by the stat afterwards.
        return error.errno == errno.ENXIO


def _fill(fd: int, offset: int, view: memoryview) -> bool:
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if not count:
            return False
        done += count
    return True
