"""Random access into one bundle: what lies where in its tree, and any bytes of any file, verified before anyone gets them.

    reader = open_reader(store, store.resolve("weather"))
    node = reader.tree.find(b"2026/january.csv")
    reader.read(node, 1000, 50)

A bundle is read in *blocks*: one large chunk of a file, or neighbouring small chunks of a pack up to a MiB, which one request
brings together. A block is verified as a whole, chunk by chunk, when it comes, and is kept in memory up to a limit, the least
recently used going first; with a Cache also in a directory, from where it is verified again when it comes back. A block that
several ask for is fetched once. Who reads on where he stopped is read ahead of, in threads; one thread is always left for what
somebody waits for.

Safe in several threads. Nothing is fetched before it is asked for.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from blake3 import blake3

from sidecar.errors import Unreachable
from sidecar.store import download
from sidecar.store.bundles import Store
from sidecar.store.cache import Cache
from sidecar.store.format import DIRECTORY, FILE, MIB, Bundle, Entry, Piece

MEMORY = 128 * MIB
TOGETHER = 1 * MIB  # small chunks come in blocks of so many bytes: a request costs as much as some 5 MiB, a wait as 1
ROOT = 1


class Tree:
    """The entries of a bundle as numbered nodes: 1 is the top directory, the others follow in the order of their paths.

    Names are bytes, as the kernel has them. That no path leaves the top was seen to when the manifest was decoded.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Index `entries`, ascending by the bytes of their paths, every parent directory among them."""
        self._entries = entries
        self.children: dict[int, dict[bytes, int]] = {ROOT: {}}
        self.parents = [0, ROOT]
        folders = {"": ROOT}
        top = Entry("", DIRECTORY, 0o755, max((entry.mtime for entry in entries), default=0))
        self._nodes = [top, top, *entries]
        for number, entry in enumerate(entries, ROOT + 1):
            parent, _, name = entry.path.rpartition("/")
            folder = folders[parent]
            self.parents.append(folder)
            self.children[folder][name.encode("utf-8", "surrogateescape")] = number
            if entry.type == DIRECTORY:
                folders[entry.path] = number
                self.children[number] = {}

    def __len__(self) -> int:
        """How many nodes there are, the top among them."""
        return len(self._nodes) - 1

    def entry(self, node: int) -> Entry:
        """Return the entry of a node; that of the top has the path ""."""
        return self._nodes[node]

    def find(self, path: bytes) -> int:
        """Return the node at a path below the top, "" being the top itself; 0 where there is none. Links are not followed."""
        node = ROOT
        for name in path.split(b"/") if path else ():
            node = self.children.get(node, {}).get(name, 0)
        return node


class _Block(NamedTuple):
    """Chunks that are fetched and verified together. `at` is where the block lies in the cache's file `home`."""

    parts: tuple[tuple[str, Piece], ...]
    size: int
    home: str
    at: int
    last: int  # the number of the last block that may be read ahead of from here


class _File(NamedTuple):
    """Where a file is: from the block `first` on; its blocks begin at `starts` in it. In the first one, it begins at `skip`."""

    first: int
    skip: int
    starts: tuple[int, ...]
    home: str


class _Home:
    """A file of the cache that is to hold a file of the bundle: its blocks, and those that were seen in it, a hint only."""

    def __init__(self, size: int, blocks: range) -> None:
        self.size, self.blocks = size, blocks
        self.seen: set[int] = set()


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
        self._chunks, self._parallel, self._limit, self._cache = chunks, max(2, parallel), memory, cache
        self._blocks: list[_Block] = []
        self._files: dict[int, _File] = {}
        self._homes: dict[str, _Home] = {}
        self._lay_out()
        self._lock = threading.Lock()
        self._memory: OrderedDict[int, memoryview] = OrderedDict()
        self._used = 0
        self._coming: dict[int, Future[memoryview]] = {}
        self._ahead = 0
        self._touched: OrderedDict[int, None] = OrderedDict()
        self._latest = -1
        self._threads = ThreadPoolExecutor(self._parallel, thread_name_prefix="bundle")
        self.closed = False

    @property
    def has_cache(self) -> bool:
        """Whether a directory keeps what is read."""
        return self._cache is not None

    def close(self) -> None:
        """Fetch nothing any more; who waits for something that was not begun is told Unreachable."""
        self.closed = True
        with self._lock:
            waiting = list(self._coming.values())
        self._threads.shutdown(wait=False, cancel_futures=True)
        for future in waiting:
            _answer(future, None, Unreachable("the bundle was closed"))

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
        file = self._files.get(node)
        size = self.tree.entry(node).size
        if file is None or offset >= size:
            return ()
        end = min(offset + length, size)
        if len(file.starts) == 1:
            view = self._at_hand(file.first)
            return None if view is None else (view[file.skip + offset : file.skip + end],)
        views = []
        for number, start, stop in _spans(file, offset, end):
            view = self._at_hand(file.first + number)
            if view is None:
                return None
            views.append(view[start:stop])
        return views

    def fetch(
        self, node: int, offset: int, length: int, done: Callable[[Sequence[memoryview] | None, BaseException | None], None]
    ) -> None:
        """Have `done` called with the same, or with the error, once it is here: in another thread, or before this returns."""
        file = self._files[node]
        spans = list(_spans(file, offset, min(offset + length, self.tree.entry(node).size)))
        futures = [self._demand(file.first + number) for number, _, _ in spans]
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
                done([each.result()[start:stop] for each, (_, start, stop) in zip(futures, spans, strict=True)], None)

        for future in futures:
            future.add_done_callback(came)

    def whole(self, node: int) -> int | None:
        """Return a descriptor, the caller's to close, of a local file with the same, verified content; None: there is none."""
        file = self._files.get(node)
        if self._cache is None or file is None or file.home not in self._homes:
            return None
        return self._cache.open_whole(file.home, self.tree.entry(node).size)

    # --- laying out ------------------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        """Cut every file into blocks: large ones each for itself, small ones as they lie in the packs."""
        small: dict[int, Entry] = {}
        numbers: dict[str, int] = {}
        for node in range(ROOT + 1, len(self.tree) + 1):
            entry = self.tree.entry(node)
            if entry.type != FILE or not entry.pieces:
                continue
            if download.is_packed(entry):
                small[node] = entry
                numbers[entry.path] = node
            else:
                self._lay_out_large(node, entry)
        first = len(self._blocks)
        for group in download.runs(small.values()):
            self._lay_out_small(group, numbers)
        last = len(self._blocks) - 1
        self._blocks[first:] = [block._replace(last=last) for block in self._blocks[first:]]

    def _lay_out_large(self, node: int, entry: Entry) -> None:
        groups = list(_together(entry.pieces))
        home = _key(entry.pieces) if self._cache is not None else ""
        first, at, starts = len(self._blocks), 0, []
        for group in groups:
            size = sum(piece.length for piece in group)
            parts = tuple((entry.path, piece) for piece in group)
            self._blocks.append(_Block(parts, size, home, at, first + len(groups) - 1))
            starts.append(at)
            at += size
        self._files[node] = _File(first, 0, tuple(starts), home)
        if home:
            self._homes[home] = _Home(entry.size, range(first, first + len(groups)))

    def _lay_out_small(self, group: Iterable[Entry], numbers: dict[str, int]) -> None:
        """Put small files that lie together into blocks; content that several files share is in a block once."""
        parts: dict[Piece, int] = {}
        paths: list[str] = []
        size = 0

        def seal() -> None:
            nonlocal size
            home = _key(parts) if self._cache is not None and parts else ""
            if parts:
                self._blocks.append(_Block(tuple(zip(paths, parts, strict=True)), size, home, 0, 0))
            parts.clear()
            paths.clear()
            size = 0

        for entry in group:
            piece = entry.pieces[0]
            if piece not in parts:
                if size + piece.length > TOGETHER:
                    seal()
                parts[piece] = size
                paths.append(entry.path)
                size += piece.length
            self._files[numbers[entry.path]] = _File(len(self._blocks), parts[piece], (0,), "")
        seal()

    # --- blocks ----------------------------------------------------------------------------------------------------

    def _at_hand(self, number: int) -> memoryview | None:
        """Return a block that is in memory, and see to it that those that come next are."""
        view = self._memory.get(number)
        if view is not None and number != self._latest:
            with self._lock:
                if number in self._memory:
                    self._memory.move_to_end(number)
                self._read_ahead(number)
        return view

    def _demand(self, number: int) -> Future[memoryview]:
        with self._lock:
            view = self._memory.get(number)
            if view is not None:
                future: Future[memoryview] = Future()
                future.set_result(view)
            else:
                future = self._coming.get(number) or self._begin(number, ahead=False)
            self._read_ahead(number)
        return future

    def _read_ahead(self, number: int) -> None:
        """Begin to fetch the blocks after `number` where somebody reads on from the one before it. Called with the lock."""
        if number == self._latest:
            return
        self._latest = number
        goes_on = number - 1 in self._touched
        self._touched[number] = None
        self._touched.move_to_end(number)
        if len(self._touched) > 256:
            self._touched.popitem(last=False)
        block = self._blocks[number]
        room = self._limit // 2
        for next_ in range(number + 1, min(number + (self._parallel if goes_on else 0), block.last) + 1):
            room -= self._blocks[next_].size
            if self._ahead >= self._parallel - 1 or room < 0:
                break
            if next_ not in self._memory and next_ not in self._coming:
                self._begin(next_, ahead=True)

    def _begin(self, number: int, *, ahead: bool) -> Future[memoryview]:
        """Have a block fetched. Called with the lock."""
        future: Future[memoryview] = Future()
        self._coming[number] = future
        self._ahead += ahead
        try:
            self._threads.submit(self._bring, number, future, ahead)
        except RuntimeError:
            del self._coming[number]
            self._ahead -= ahead
            future.set_exception(Unreachable("the bundle was closed"))
        return future

    def _bring(self, number: int, future: Future[memoryview], ahead: bool) -> None:
        block = self._blocks[number]
        try:
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
            self._keep(self._cache, number, data, fresh=fresh)

    def _arrived(self, number: int, data: memoryview | None, ahead: bool) -> None:
        with self._lock:
            del self._coming[number]
            self._ahead -= ahead
            if data is None:
                return
            self._memory[number] = data
            self._used += len(data)
            while self._used > self._limit and len(self._memory) > 1:
                _, dropped = self._memory.popitem(last=False)
                self._used -= len(dropped)

    def _load(self, block: _Block) -> memoryview:
        if len(block.parts) == 1:
            return memoryview(bytes(self._chunks.chunk(*block.parts[0])))
        data = bytearray(block.size)
        at = 0
        for view in self._chunks.run(block.parts):
            data[at : at + len(view)] = view
            at += len(view)
        return memoryview(data).toreadonly()

    # --- the cache -------------------------------------------------------------------------------------------------

    def _load_cached(self, block: _Block) -> memoryview | None:
        """Return a block that the cache has; None where it has not, or what it has is not what was put there."""
        if self._cache is None:
            return None
        data = self._cache.load(block.home, block.at, block.size)
        return data if data is not None and _is_right(block, data) else None

    def _keep(self, cache: Cache, number: int, data: memoryview, *, fresh: bool) -> None:
        """Have a block in the cache; where it was the last one of a file that was missing, have that file vouched for."""
        block = self._blocks[number]
        home = self._homes.get(block.home)
        if fresh and not cache.keep(block.home, home.size if home is not None else block.size, block.at, data):
            return
        if home is None:
            return
        with self._lock:
            home.seen.add(number)
            if len(home.seen) < len(home.blocks):
                return
            home.seen.clear()
        cache.vouch(block.home, home.size, partial(self._holds, home))

    def _holds(self, home: _Home, read: Callable[[int, int], memoryview]) -> bool:
        """Say whether what `read(at, size)` returns is what belongs in `home`: what was seen there may be gone by now."""
        return all(
            not self.closed and _is_right(block, read(block.at, block.size))
            for block in map(self._blocks.__getitem__, home.blocks)
        )


def open_reader(store: Store, bundle: Bundle, *, memory: int = MEMORY, cache: Cache | None = None) -> Reader:
    """Return a reader of a bundle; its manifest is read. Corrupt, Unreachable."""
    objects = store._objects
    chunks = download.Reader(objects, store._where(bundle))
    return Reader(store.manifest(bundle), chunks, objects.parallel, memory=memory, cache=cache)


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


def _spans(file: _File, offset: int, end: int) -> Iterable[tuple[int, int, int]]:
    """Yield which blocks of a file hold its bytes from `offset` to `end`, and from where to where in each."""
    number = bisect_right(file.starts, offset) - 1
    while number < len(file.starts) and file.starts[number] < end:
        begin = file.starts[number]
        next_ = file.starts[number + 1] if number + 1 < len(file.starts) else end
        yield number, max(offset - begin, 0) + file.skip, min(end, next_) - begin + file.skip
        number += 1


def _together(pieces: Sequence[Piece]) -> Iterable[list[Piece]]:
    """Yield the chunks of a file in groups that one request brings: those that follow one another in a pack, or one."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        if group:
            before = group[-1]
            follows = piece.pack and piece.pack == before.pack and piece.offset == before.offset + before.length
            if not follows or size + piece.length > TOGETHER:
                yield group
                group, size = [], 0
        group.append(piece)
        size += piece.length
    yield group


def _key(pieces: Iterable[Piece]) -> str:
    """Return what the cache calls the bytes of these chunks in a row."""
    return blake3("".join(f"{piece.hash}{piece.length:x}," for piece in pieces).encode()).hexdigest()
