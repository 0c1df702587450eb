"""Where chunks lie that need not be stored again: by their hash or, of files of very many, by their place in the file.

Those of other bundles count only while their objects are there and long enough. An object that was lost since must not take a new
bundle with it, so each is looked for once, when it is first needed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from sidecar.errors import Corrupt
from sidecar.store.format import Piece, object_name
from sidecar.store.objects import Objects
from sidecar.store.table import Chunks, Pieces
from sidecar.values import value

_REMEMBERED = 1 << 17  # chunks of large files whose equals are found in this upload: some 50 MiB, however large the files
_HASH = 32  # bytes
_logger = logging.getLogger(__name__)


@value
class Known:
    """What other bundles hold: chunks by hash, and by path the lists of those too many to be remembered."""

    chunks: Mapping[str, Piece]
    tables: Mapping[str, tuple[Pieces, ...]]


class Run(NamedTuple):
    """Chunks that were read, and that another bundle has at this very place: from where to where in its columns."""

    chunks: Chunks
    start: int
    stop: int


class Places:
    """Where chunks lie: those that this upload stored, and the known ones whose objects are still there."""

    def __init__(self, objects: Objects, known: Known) -> None:
        """Look for the objects of what is `known` in `objects`."""
        self._objects, self._known, self._tables = objects, known.chunks, known.tables
        self._placed: dict[str, Piece] = {}
        self._damaged: list[Pieces] = []
        self._sizes: dict[str, int] = {}
        self._needed: dict[str, int] = {}
        self._remembered = 0
        for piece in known.chunks.values():
            self._needed[piece.object] = max(piece.end, self._needed.get(piece.object, 0))

    def get(self, hash_: str) -> Piece | None:
        """Return where a chunk lies, None where it is new. Safe in threads: at worst two of them ask for the same size."""
        return self._placed.get(hash_) or (self._known[hash_] if self.is_known(hash_) else None)

    def is_known(self, hash_: str) -> bool:
        """Say whether a chunk is known from another bundle, and its object is whole."""
        piece = self._known.get(hash_)
        return piece is not None and self._is_whole(piece.object, piece.end)

    def are_new(self, hashes: Collection[str]) -> bool:
        """Say whether none of these chunks was ever heard of."""
        return self._placed.keys().isdisjoint(hashes) and self._known.keys().isdisjoint(hashes)

    def add(self, piece: Piece, *, many: bool = False) -> None:
        """Have a chunk found by those that come later; those of files of `many` only as far as there is room."""
        if many:
            if self._remembered >= _REMEMBERED:
                return
            self._remembered += 1
        self._placed.setdefault(piece.hash, piece)

    def add_new(self, pieces: Sequence[Piece], *, many: bool = False) -> None:
        """Have chunks found as `add` has; none of them was ever heard of, nor is twice among them."""
        if many:
            pieces = pieces[: _REMEMBERED - self._remembered]
            self._remembered += len(pieces)
        self._placed.update((piece.hash, piece) for piece in pieces)

    def runs(self, path: str, first: int, hashes: Sequence[str]) -> Iterator[tuple[Run | None, int]]:
        """Divide chunks of a file, of which `first` is the first, into runs that others have at this place, and those between.

        Yields each run, or None, and how many chunks it is: what is too many to be known by its hash is found here alone. Safe in
        threads: at worst two of them warn of the same table.
        """
        return self._divided(self._tables.get(path, ()), first, bytes.fromhex("".join(hashes)))

    def _divided(self, tables: Sequence[Pieces], first: int, hashes: bytes) -> Iterator[tuple[Run | None, int]]:
        if not hashes:
            return
        if not tables:
            yield None, len(hashes) // _HASH
            return
        done = 0
        for start, run in self._same(tables[0], first, hashes):
            yield from self._divided(tables[1:], first + done, hashes[_HASH * done : _HASH * start])
            yield run, run.stop - run.start
            done = start + run.stop - run.start
        yield from self._divided(tables[1:], first + done, hashes[_HASH * done :])

    def _same(self, table: Pieces, first: int, hashes: bytes) -> Iterator[tuple[int, Run]]:
        """Yield the runs of chunks that a table has at the same place and that are whole, and where in `hashes` each begins."""
        if table in self._damaged:
            return
        at = 0
        try:
            for chunks, start, stop in table.parts(first, first + len(hashes) // _HASH):
                mine = hashes[_HASH * at : _HASH * (at + stop - start)]
                for begin, end in _equal(mine, bytes(chunks.hashes[_HASH * start : _HASH * stop])):
                    for run in self._whole(Run(chunks, start + begin, start + end)):
                        yield at + run.start - start, run
                at += stop - start
        except Corrupt as error:
            _logger.warning("%s; nothing of it is used again", error)
            self._damaged.append(table)

    def _whole(self, run: Run) -> Iterator[Run]:
        """Yield a run or, where an object is lost that some of its chunks lie in, the others one by one."""
        chunks, start, stop = run
        if all(self._is_whole(object_, end) for object_, end in chunks.ends(start, stop).items()):
            yield run
        elif stop - start > 1:
            for number in range(start, stop):
                yield from self._whole(Run(chunks, number, number + 1))

    def _is_whole(self, object_: str, end: int) -> bool:
        # A pack that is cut short is given up as a whole: cut the same way from the same files, it is made good under its name.
        if object_ not in self._sizes:
            try:
                self._sizes[object_] = self._objects.size(object_name(object_))
            except FileNotFoundError:
                self._sizes[object_] = -1
        return self._sizes[object_] >= max(end, self._needed.get(object_, 0))


def _equal(mine: bytes, theirs: bytes) -> Iterator[tuple[int, int]]:
    """Yield from where to where two lists of as many hashes are equal, in numbers of hashes."""
    if mine == theirs:
        yield 0, len(mine) // _HASH
        return
    start = 0
    for same, group in groupby(mine[at : at + _HASH] == theirs[at : at + _HASH] for at in range(0, len(mine), _HASH)):
        stop = start + len(list(group))
        if same:
            yield start, stop
        start = stop
