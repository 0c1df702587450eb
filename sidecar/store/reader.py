"""Random access into one bundle: what lies where in its tree, and any bytes of any file, verified before anyone gets them.

    reader = open_reader(store, store.resolve("weather"))
    node = reader.tree.find(b"2026/january.csv")
    reader.read(node, 1000, 50)

A bundle is read in *blocks*: one large chunk of a file, or small chunks up to a MiB that belong together, be it in one file or,
as the whole of many small files, in the order of the packs. A block is verified chunk by chunk when it comes and is kept in
memory up to a limit, the least recently used going first; with a Cache also in a directory, from where it is verified again when
it comes back. A block that several ask for is fetched once. Who reads on where he stopped is read ahead of, in threads; one
thread is always left for what somebody waits for.

A *layout* says which blocks a stretch of the bundle has: all small files, a large file, or one segment of a file whose list of
chunks is a table of its own, which is fetched when it is first looked into and forgotten again, as it may be large.

Safe in several threads. Nothing is fetched before it is asked for.
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from blake3 import blake3

from sidecar.errors import Unreachable
from sidecar.store import download
from sidecar.store.bundles import Store
from sidecar.store.cache import Cache
from sidecar.store.format import CHUNK, DIRECTORY, FILE, MIB, Bundle, Entry, Piece, Table
from sidecar.store.work import memory

MEMORY = 128 * MIB
TOGETHER = 1 * MIB  # small chunks come in blocks of so many bytes: a request costs as much as some 5 MiB, a wait as 1
LOCAL, REMOTE = 4, 8  # requests at once: a service's waits more than it works
ROOT = 1
_SET_ASIDE = 6  # buffers of a size; more are in use only while many wait for the store
_LAYOUTS = 64  # of segments of tables: 2 GiB of a file in pages of 8 KiB, some 2 MiB of memory each

Done = Callable[[Sequence[memoryview] | None, BaseException | None], None]


class Tree:
    """The entries of a bundle as numbered nodes: 1 is the top directory, the others follow in the order of their paths.

    Names are bytes, as the kernel has them. That no path leaves the top was seen to when the manifest was decoded.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Index `entries`, ascending by the bytes of their paths, every parent directory among them."""
        self.children: dict[int, dict[bytes, int]] = {ROOT: {}}
        self.parents = [0, 0]  # the top has none
        top = Entry("", DIRECTORY, 0o755, max((entry.mtime for entry in entries), default=0))
        self.entries = [top, top, *entries]
        folders = {"": ROOT}
        for number, entry in enumerate(entries, ROOT + 1):
            parent, _, name = entry.path.rpartition("/")
            folder = folders[parent]
            self.parents.append(folder)
            self.children[folder][name.encode("utf-8", "surrogateescape")] = number
            if entry.type == DIRECTORY:
                folders[entry.path] = number
                self.children[number] = {}

    @property
    def nodes(self) -> range:
        """All nodes, the top first."""
        return range(ROOT, len(self.entries))

    def entry(self, node: int) -> Entry:
        """Return the entry of a node; that of the top has the path ""."""
        return self.entries[node]

    def find(self, path: bytes) -> int:
        """Return the node at a path below the top, "" being the top itself; 0 where there is none. Links are not followed."""
        node = ROOT
        for name in path.split(b"/") if path else ():
            node = self.children.get(node, {}).get(name, 0)
        return node


class Buffers:
    """Memory for blocks, used again once nobody looks at it any more: fresh pages cost more than what is done with them.

    (Measured: 0.8 s of the kernel's time for each GiB that goes through new buffers, 0.4 s through old ones.)
    """

    def __init__(self) -> None:
        """Nothing is set aside yet."""
        self._lock = threading.Lock()
        self._old: dict[int, list[memoryview]] = {TOGETHER: [], CHUNK: []}

    def view(self, length: int) -> memoryview:
        """Return `length` bytes of memory that nobody else uses."""
        class_ = next((size for size in self._old if length <= size), 0)
        with self._lock:
            old = self._old.get(class_, [])
            # Referred to by the one view in the list, and by the call that asks: then nobody else has one.
            index = next((i for i in range(len(old)) if sys.getrefcount(old[i].obj) == 2), -1)
            if index >= 0:
                return old.pop(index)[:length]
        return memory(class_ or length)[:length]

    def retire(self, view: memoryview) -> None:
        """Use the memory again when the last view of it is gone."""
        whole = memoryview(view.obj)
        if len(whole) in self._old:
            with self._lock:
                old = self._old[len(whole)]
                old.append(whole)
                del old[:-_SET_ASIDE]


class _Threads:
    """Runs calls, at most some at once. Unlike those of concurrent.futures, its threads do not keep a program from ending."""

    def __init__(self, limit: int) -> None:
        """Begin no thread before there is something to do."""
        self._limit, self._free, self._over = limit, 0, False
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def submit(self, call: Callable[[], None]) -> bool:
        """Have `call` run; False where it never will be."""
        with self._changed:
            if self._over:
                return False
            self._calls.append(call)
            if self._free < len(self._calls) and len(self._threads) < self._limit:
                self._threads.append(threading.Thread(target=self._run, daemon=True))
                self._threads[-1].start()
            self._changed.notify()
            return True

    def end(self) -> list[Callable[[], None]]:
        """Begin nothing more; return the calls that were submitted and are not begun."""
        with self._changed:
            self._over = True
            dropped = [*self._calls]
            self._calls.clear()
            self._changed.notify_all()
        return dropped

    def finish(self) -> None:
        """Return when all that was submitted is done; nothing more is."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._free += 1
                self._changed.wait_for(lambda: self._calls or self._over)
                self._free -= 1
                if not self._calls:
                    return
                call = self._calls.popleft()
            call()


class _Block(NamedTuple):
    """Chunks that are fetched and verified together, each with the file it is of. It lies at `at` in the cache's file `home`."""

    parts: tuple[tuple[str, Piece], ...]
    size: int
    home: str
    at: int


class _Layout(NamedTuple):
    """Blocks that follow one another; they have the numbers from `first` on, and begin at `starts` in their file."""

    first: int
    starts: Sequence[int]
    blocks: Sequence[_Block]


class _File(NamedTuple):
    """Where a file's bytes are: from `starts[i]` on in the layout whose first block is `layouts[i]`."""

    size: int
    home: str
    starts: tuple[int, ...]
    layouts: tuple[int, ...]


class _Small(NamedTuple):
    """A file that is one chunk of a block of small files."""

    size: int
    block: int
    at: int


class _Want(NamedTuple):
    """Bytes of one block, from `start` to `end`."""

    layout: _Layout
    place: int
    start: int
    end: int

    @property
    def number(self) -> int:
        return self.layout.first + self.place


class Reader:
    """Reads one bundle; see the module. Errors of reading are Corrupt, which names file and object, and Unreachable."""

    def __init__(
        self,
        entries: Sequence[Entry],
        chunks: download.Reader,
        parallel: int,
        *,
        memory: int = MEMORY,
        cache: Cache | None = None,
    ) -> None:
        """Read what `entries` refer to through `chunks`, at most `parallel` requests at once, keeping `memory` bytes."""
        self.tree = Tree(entries)
        self.closed = False
        self._chunks, self._parallel, self._limit, self._cache = chunks, max(2, parallel), memory, cache
        self._buffers = Buffers()
        self._lock = threading.Lock()
        self._memory: OrderedDict[int, memoryview] = OrderedDict()
        self._used = 0
        self._coming: dict[int, Future[memoryview]] = {}
        self._ahead = 0
        self._touched: OrderedDict[int, None] = OrderedDict()
        self._latest = -1
        self._seen: dict[str, dict[int, int]] = {}  # what of large files the cache was seen to have: where, how much
        self._threads = _Threads(self._parallel)
        self._small = self._lay_out_small()
        self._files: dict[int, _File] = {}
        self._lay_out_files()
        self._layouts: dict[int, _Layout] = {}
        self._segments: OrderedDict[int, _Layout] = OrderedDict()

    @property
    def has_cache(self) -> bool:
        """Whether a directory keeps what is read."""
        return self._cache is not None

    def close(self) -> None:
        """Fetch nothing any more; whoever waits for something is told Unreachable."""
        self.closed = True
        with self._lock:
            waiting = list(self._coming.values())
        dropped = self._threads.end()
        for future in waiting:
            _answer(future, None, Unreachable("the bundle was closed"))
        for call in dropped:
            call()  # they see that we are closed, and tell whoever waits

    def read(self, node: int, offset: int, length: int) -> bytes:
        """Return `length` bytes of a file from `offset` on, fewer only at its end."""
        views = self.ready(node, offset, length)
        if views is None:
            done: Future[Sequence[memoryview]] = Future()
            self.fetch(node, offset, length, partial(_settle, done))
            views = done.result()
        return b"".join(views)

    def ready(self, node: int, offset: int, length: int) -> Sequence[memoryview] | None:
        """Return the same in pieces where that can be done at once, without waiting for anything; else None."""
        small = self._small.get(node)
        if small is not None:
            view = self._at_hand(self._small_layout, small.block)
            end = min(offset + length, small.size)
            return None if view is None else (view[small.at + offset : small.at + end],) if offset < end else ()
        file = self._files.get(node)
        if file is None or offset >= file.size:
            return ()
        wants = self._wants(file, offset, min(offset + length, file.size), self._known_layout)
        views = []
        for want in wants or ():
            view = self._at_hand(want.layout, want.place)
            if view is None:
                return None
            views.append(view[want.start : want.end])
        return views if wants is not None else None

    def fetch(self, node: int, offset: int, length: int, done: Done) -> None:
        """Have `done` called with the same, or with the error, once it is here: in another thread, or before this returns.

        For bytes that `ready` has returned None for.
        """
        small = self._small.get(node)
        if small is not None:
            end = small.at + min(offset + length, small.size)
            _gather(self, [_Want(self._small_layout, small.block, small.at + offset, end)], done)
            return
        file = self._files[node]
        end = min(offset + length, file.size)
        wants = self._wants(file, offset, end, self._known_layout)
        if wants is not None:
            _gather(self, wants, done)
            return
        if not self._threads.submit(partial(self._lay_out_and_fetch, node, offset, end, done)):
            done(None, Unreachable("the bundle was closed"))

    def whole(self, node: int) -> int | None:
        """Return a descriptor, the caller's to close, of a local file with the same, verified content; None: there is none."""
        file = self._files.get(node)
        if self._cache is None or file is None:
            return None
        return self._cache.open_whole(file.home, file.size)

    # --- laying out ------------------------------------------------------------------------------------------------

    def _lay_out_small(self) -> dict[int, _Small]:
        """Put small files that lie together into blocks; content that several files share is in a block once."""
        entries = {node: self.tree.entry(node) for node in self.tree.nodes}
        packed = {node: entry for node, entry in entries.items() if entry.type == FILE and download.is_packed(entry)}
        nodes = {entry.path: node for node, entry in packed.items()}
        small: dict[int, _Small] = {}
        blocks: list[_Block] = []
        parts: dict[Piece, int] = {}
        paths: list[str] = []
        size = 0

        def seal() -> None:
            nonlocal size
            if parts:
                blocks.append(_Block(tuple(zip(paths, parts, strict=True)), size, self._home(parts), 0))
            parts.clear()
            paths.clear()
            size = 0

        for group in download.runs(packed.values()):
            for entry in group:
                piece = entry.pieces[0]
                if piece not in parts:
                    if size + piece.length > TOGETHER:
                        seal()
                    parts[piece] = size
                    paths.append(entry.path)
                    size += piece.length
                small[nodes[entry.path]] = _Small(piece.length, len(blocks), parts[piece])
            seal()
        self._small_layout = _Layout(0, (), blocks)
        return small

    def _lay_out_files(self) -> None:
        """Give every other file numbers for its blocks, as many as there may be; what they are is found out on reading."""
        free = len(self._small_layout.blocks)
        for node in self.tree.nodes:
            entry = self.tree.entry(node)
            if entry.type != FILE or not entry.size or node in self._small:
                continue
            layouts: list[int] = []
            starts = [0]
            if isinstance(entry.pieces, Table):
                segments = entry.pieces.segments
                starts = list(accumulate((segment.size for segment in segments[:-1]), initial=0))
                layouts = list(accumulate((segment.chunks for segment in segments[:-1]), initial=free))
                free += len(entry.pieces)
                home = self._home(segment.piece for segment in segments)
            else:
                layouts.append(free)
                free += len(entry.pieces)
                home = self._home(entry.pieces)
            free += 1  # so that nobody is taken to read on into the next file
            self._files[node] = _File(entry.size, home, tuple(starts), tuple(layouts))

    def _home(self, pieces: Iterable[Piece]) -> str:
        """Return what the cache calls the bytes of these chunks in a row."""
        if self._cache is None:
            return ""
        return blake3("".join(f"{piece.hash}{piece.length:x}," for piece in pieces).encode()).hexdigest()

    def _known_layout(self, file: _File, index: int) -> _Layout | None:
        number = file.layouts[index]
        return self._layouts.get(number) or self._segments.get(number)

    def _lay_out(self, node: int, index: int) -> _Layout:
        """Return one layout of a file; where that is a segment of a table, it may have to be fetched."""
        file, pieces = self._files[node], self.tree.entry(node).pieces
        known = self._known_layout(file, index)
        if known is not None:
            return known
        path, at, blocks = self.tree.entry(node).path, file.starts[index], []
        if isinstance(pieces, Table):
            first = sum(segment.chunks for segment in pieces.segments[:index])
            pieces = pieces[first : first + pieces.segments[index].chunks]
        for group in _groups(pieces):
            size = sum(piece.length for piece in group)
            blocks.append(_Block(tuple((path, piece) for piece in group), size, file.home, at))
            at += size
        layout = _Layout(file.layouts[index], [block.at for block in blocks], blocks)
        with self._lock:
            if len(file.layouts) == 1:
                self._layouts[layout.first] = layout
            else:
                self._segments[layout.first] = layout
                if len(self._segments) > _LAYOUTS:
                    self._segments.popitem(last=False)
        return layout

    def _wants(self, file: _File, offset: int, end: int, layout_of: Callable[[_File, int], _Layout | None]) -> list[_Want] | None:
        """Return which parts of which blocks are a file's bytes from `offset` to `end`; None where a layout is not there yet."""
        wants = []
        index = bisect_right(file.starts, offset) - 1
        while index < len(file.starts) and file.starts[index] < end:
            layout = layout_of(file, index)
            if layout is None:
                return None
            number = max(bisect_right(layout.starts, offset) - 1, 0)
            while number < len(layout.starts) and (start := layout.starts[number]) < end:
                stop = min(end - start, layout.blocks[number].size)
                wants.append(_Want(layout, number, max(offset - start, 0), stop))
                number += 1
            index += 1
        return wants

    def _lay_out_and_fetch(self, node: int, offset: int, end: int, done: Done) -> None:
        try:
            self._check()
            wants = self._wants(self._files[node], offset, end, lambda _, index: self._lay_out(node, index))
        except BaseException as error:
            done(None, error)
        else:
            _gather(self, wants or [], done)

    # --- blocks ----------------------------------------------------------------------------------------------------

    def _at_hand(self, layout: _Layout, index: int) -> memoryview | None:
        """Return a block that is in memory, and see to it that those that come next are."""
        number = layout.first + index
        view = self._memory.get(number)
        if view is not None and number != self._latest:
            with self._lock:
                if number in self._memory:
                    self._memory.move_to_end(number)
                self._read_ahead(layout, index)
        return view

    def demand(self, want: _Want) -> Future[memoryview]:
        """Have a block fetched, unless it is here or on its way."""
        with self._lock:
            view = self._memory.get(want.number)
            if view is not None:
                future: Future[memoryview] = Future()
                future.set_result(view)
            else:
                future = self._coming.get(want.number) or self._begin(want.number, want.layout.blocks[want.place], ahead=False)
            self._read_ahead(want.layout, want.place)
        return future

    def _read_ahead(self, layout: _Layout, index: int) -> None:
        """Begin to fetch the blocks that follow where somebody reads on from the one before. Called with the lock."""
        number = layout.first + index
        if number == self._latest:
            return
        self._latest = number
        goes_on = number - 1 in self._touched
        self._touched[number] = None
        self._touched.move_to_end(number)
        if len(self._touched) > 256:
            self._touched.popitem(last=False)
        if not goes_on:
            return
        if len(layout.blocks[index].parts) == 1:
            # The kernel's cache, or the program, has what was read in passing; the memory is wanted for what comes.
            self._drop(number - 2)
        room = self._limit // 2
        for next_ in range(index + 1, min(index + 1 + self._parallel, len(layout.blocks))):
            room -= layout.blocks[next_].size
            if self._ahead >= self._parallel - 1 or room < 0:
                break
            if layout.first + next_ not in self._memory and layout.first + next_ not in self._coming:
                self._begin(layout.first + next_, layout.blocks[next_], ahead=True)

    def _begin(self, number: int, block: _Block, *, ahead: bool) -> Future[memoryview]:
        """Have a block fetched. Called with the lock."""
        future: Future[memoryview] = Future()
        self._coming[number] = future
        self._ahead += ahead
        if not self._threads.submit(partial(self._bring, number, block, future, ahead)):
            del self._coming[number]
            self._ahead -= ahead
            future.set_exception(Unreachable("the bundle was closed"))
        return future

    def _bring(self, number: int, block: _Block, future: Future[memoryview], ahead: bool) -> None:
        try:
            self._check()
            data = self._load_cached(block)
            fresh = data is None
            if data is None:
                data = self._load(block)
        except BaseException as error:
            self._arrived(number, None, ahead)
            _answer(future, None, error)
            return
        self._arrived(number, data, ahead)
        _answer(future, data, None)
        # Whoever waited is served by now: the cache's disk slows down nobody but this thread.
        if self._cache is not None:
            self._keep(self._cache, block, data, fresh=fresh)

    def _check(self) -> None:
        if self.closed:
            raise Unreachable("the bundle was closed")

    def _arrived(self, number: int, data: memoryview | None, ahead: bool) -> None:
        with self._lock:
            del self._coming[number]
            self._ahead -= ahead
            if data is None:
                return
            self._memory[number] = data
            self._used += _weight(data)
            while self._used > self._limit and len(self._memory) > 1:
                self._drop(next(iter(self._memory)))

    def _drop(self, number: int) -> None:
        data = self._memory.pop(number, None)
        if data is not None:
            self._used -= _weight(data)
            self._buffers.retire(data)

    def _load(self, block: _Block) -> memoryview:
        data = self._buffers.view(block.size)
        if len(block.parts) == 1:
            self._chunks.read(*block.parts[0], data)
            return data
        starts = list(accumulate((piece.length for _, piece in block.parts), initial=0))
        for number, view in self._chunks.many(block.parts):
            data[starts[number] : starts[number + 1]] = view
        return data

    # --- the cache -------------------------------------------------------------------------------------------------

    def _load_cached(self, block: _Block) -> memoryview | None:
        """Return a block that the cache has; None where it has not, or what it has is not what was put there."""
        if self._cache is None:
            return None
        data = self._buffers.view(block.size)
        return data if self._cache.load(block.home, block.at, data) and _is_right(block, data) else None

    def _keep(self, cache: Cache, block: _Block, data: memoryview, *, fresh: bool) -> None:
        """Have a block in the cache; where it was the last one of a file that was missing, have that file vouched for."""
        node = self.tree.find(block.parts[0][0].encode("utf-8", "surrogateescape"))
        file = self._files.get(node)
        if fresh and not cache.keep(block.home, file.size if file is not None else block.size, block.at, data):
            return
        if file is None:
            return
        with self._lock:
            seen = self._seen.setdefault(file.home, {})
            seen[block.at] = block.size
            if sum(seen.values()) < file.size:
                return
            del self._seen[file.home]
        cache.vouch(file.home, file.size, partial(self._holds, node, len(file.layouts)))

    def _holds(self, node: int, layouts: int, read: Callable[[int, memoryview], None]) -> bool:
        """Say whether what `read(at, view)` puts into a view is what belongs there: what was seen may be gone by now."""
        for index in range(layouts):
            for block in self._lay_out(node, index).blocks:
                data = self._buffers.view(block.size)
                read(block.at, data)
                right = not self.closed and _is_right(block, data)
                self._buffers.retire(data)
                if not right:
                    return False
        return True


def open_reader(store: Store, bundle: Bundle, *, memory: int = MEMORY, cache: Cache | None = None) -> Reader:
    """Return a reader of a bundle; its manifest is read. Corrupt, Unreachable."""
    parallel = LOCAL if store.url.startswith("file://") else REMOTE
    return Reader(store.manifest(bundle), store.reader(bundle), parallel, memory=memory, cache=cache)


def _gather(reader: Reader, wants: Sequence[_Want], done: Done) -> None:
    """Call `done` when all blocks have come, in the thread that brings the last one."""
    futures = [reader.demand(want) for want in wants]
    left = len(futures)
    lock = threading.Lock()

    def came(_: Future[memoryview]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        error = next((error for each in futures if (error := each.exception()) is not None), None)
        if error is not None:
            done(None, error)
        else:
            done([each.result()[want.start : want.end] for each, want in zip(futures, wants, strict=True)], None)

    for future in futures:
        future.add_done_callback(came)


def _groups(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield the chunks of a file in groups of at most TOGETHER bytes, or single ones."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        if group and size + piece.length > TOGETHER:
            yield group
            group, size = [], 0
        group.append(piece)
        size += piece.length
    if group:
        yield group


def _weight(data: memoryview) -> int:
    return len(memoryview(data.obj))


def _is_right(block: _Block, data: memoryview) -> bool:
    """Say whether `data` are the bytes of a block."""
    at = 0
    for _, piece in block.parts:
        if blake3(data[at : at + piece.length]).hexdigest() != piece.hash:
            return False
        at += piece.length
    return len(data) == at


def _answer(future: Future[memoryview], data: memoryview | None, error: BaseException | None) -> None:
    """Set a result or an error, whichever comes first: when the reader is closed, what is under way is answered early."""
    with suppress(InvalidStateError):
        if error is not None:
            future.set_exception(error)
        elif data is not None:
            future.set_result(data)


def _settle(future: Future[Sequence[memoryview]], views: Sequence[memoryview] | None, error: BaseException | None) -> None:
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(views or ())
