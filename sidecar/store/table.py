"""The list of a file's chunks in bytes, for files of so many that a manifest could not hold them. README.md: *Tables*.

A table is cut into segments, each of which is a chunk of its own, stored and verified like any other. A reader has only a few of
them in memory, whatever the size of the file; columns of numbers take 52 bytes for a chunk where objects would take 400.
"""

from __future__ import annotations

import sys
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from operator import ge, le
from typing import overload

from sidecar.store.format import LARGEST_CHUNK, LARGEST_OBJECT, Malformed, Piece, Segment, Table

INLINE = 64  # files of up to so many chunks have them in the manifest: one request less
SEGMENT = 4096  # chunks: 32 MiB of a file in pages of 8 KiB, and a segment of at most 213 kB
_OWN = 0xFFFFFFFF  # in the column of objects: the chunk is an object of its own
_KEPT = 4  # segments in memory for each file; who reads on needs one


def _numbers(kind: str, data: bytes | memoryview) -> array[int]:
    numbers = array(kind, bytes(data))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _bytes(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = array(numbers.typecode, numbers)
        numbers.byteswap()
    return numbers.tobytes()


class Chunks:
    """Some chunks of one file, in columns. Reads like a sequence of Piece, grows by `append`."""

    def __init__(self) -> None:
        """Hold none yet."""
        self.objects: list[str] = []
        self.numbers: dict[str, int] = {}
        self.lengths, self.stored, self.object_of, self.offsets = array("I"), array("I"), array("I"), array("Q")
        self.hashes = bytearray()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Piece:
        name = self.hashes[32 * number : 32 * number + 32].hex()
        object_ = self.object_of[number]
        if object_ == _OWN:
            return Piece(name, self.lengths[number])
        return Piece(name, self.lengths[number], self.objects[object_], self.offsets[number], self.stored[number])

    def append(self, piece: Piece) -> None:
        """Have `piece` at the end."""
        hash_, length, pack, offset, stored = piece
        self.object_of.append(self._number(pack) if pack else _OWN)
        self.lengths.append(length)
        self.stored.append(stored)
        self.offsets.append(offset)
        self.hashes += bytes.fromhex(hash_)

    def extend(self, pieces: Sequence[Piece]) -> None:
        """Have `pieces`, of which there is one at least, at the end."""
        hashes, lengths, packs, offsets, stored = zip(*pieces, strict=True)
        numbers = {each: self._number(each) if each else _OWN for each in dict.fromkeys(packs)}
        self.object_of.extend(map(numbers.__getitem__, packs))
        self.lengths.extend(lengths)
        self.stored.extend(stored)
        self.offsets.extend(offsets)
        self.hashes += bytes.fromhex("".join(hashes))

    def copy(self, other: Chunks, start: int, stop: int, named: Callable[[str], str] = str) -> None:
        """Have some of another's chunks at the end, whose objects `named` has a name for."""
        # Whole columns at a time: a Piece for each of the pages of a database took as long as reading and hashing them.
        objects = other.object_of[start:stop]
        numbers = {each: self._number(named(other.objects[each])) for each in dict.fromkeys(objects) if each != _OWN}
        numbers[_OWN] = _OWN
        self.object_of.extend(map(numbers.__getitem__, objects))
        self.lengths += other.lengths[start:stop]
        self.stored += other.stored[start:stop]
        self.offsets += other.offsets[start:stop]
        self.hashes += other.hashes[32 * start : 32 * stop]

    def digests(self, numbers: Sequence[int]) -> bytes:
        """Return the hashes of some chunks, one after the other."""
        if isinstance(numbers, range) and numbers.step == 1:
            return bytes(self.hashes[32 * numbers.start : 32 * numbers.stop])
        return b"".join([self.hashes[32 * number : 32 * number + 32] for number in numbers])

    def end(self, number: int) -> int:
        """Return where a chunk ends in its object."""
        return self.offsets[number] + (self.stored[number] or self.lengths[number])

    def is_one_run(self) -> bool:
        """Say whether the chunks lie in one pack in this very order, none of them twice."""
        ends = map(self.end, range(len(self)))
        return len({*self.object_of}) == 1 and self.object_of[0] != _OWN and all(map(le, ends, self.offsets[1:]))

    def ends(self, start: int, stop: int) -> dict[str, int]:
        """Return the objects that some of the chunks lie in, and how long each is at least."""
        ends: dict[str, int] = {}
        columns = (self.object_of, self.offsets, self.stored, self.lengths)
        for number, (object_, offset, stored, length) in enumerate(
            zip(*(each[start:stop] for each in columns), strict=True), start
        ):
            name = self.hashes[32 * number : 32 * number + 32].hex() if object_ == _OWN else self.objects[object_]
            end = offset + (stored or length)
            if end > ends.get(name, 0):
                ends[name] = end
        return ends

    def _number(self, object_: str) -> int:
        number = self.numbers.setdefault(object_, len(self.objects))
        if number == len(self.objects):
            self.objects.append(object_)
        return number

    def encode(self) -> bytes:
        """Return the bytes of a segment."""
        head = _bytes(array("I", (len(self), len(self.objects))))
        columns = (self.lengths, self.stored, self.object_of, self.offsets)
        return b"".join([head, *map(bytes.fromhex, self.objects), *map(_bytes, columns), self.hashes])


def decode(data: bytes, segment: Segment) -> Chunks:
    """Return the chunks of a segment; Malformed where they are not what a manifest could say or what `segment` says."""
    if len(data) < 8:
        raise Malformed("it is no table")
    count, packs = _numbers("I", data[:8])
    at = 8 + 32 * packs
    if count != segment.chunks or len(data) != at + 52 * count:
        raise Malformed("it is no table of so many chunks")
    chunks = Chunks()
    chunks.objects = [data[start : start + 32].hex() for start in range(8, at, 32)]
    chunks.lengths, chunks.stored, chunks.object_of = (_numbers("I", data[at + 4 * n * count :][: 4 * count]) for n in range(3))
    chunks.offsets = _numbers("Q", data[at + 12 * count :][: 8 * count])
    chunks.hashes = bytearray(data[at + 20 * count :])
    _check(chunks, segment)
    return chunks


def _check(chunks: Chunks, segment: Segment) -> None:
    if min(chunks.lengths) < 1 or max(chunks.lengths) > LARGEST_CHUNK or sum(chunks.lengths) != segment.size:
        raise Malformed("its chunks do not add up")
    if max(chunks.offsets) > LARGEST_OBJECT - LARGEST_CHUNK:
        raise Malformed("a chunk lies beyond the end of any object")
    if any(map(ge, chunks.stored, chunks.lengths)):
        raise Malformed("a chunk is longer compressed than not")
    objects = {*chunks.object_of}
    if _OWN in objects:
        for number, object_ in enumerate(chunks.object_of):
            if object_ == _OWN and (chunks.offsets[number] or chunks.stored[number]):
                raise Malformed("a chunk that is an object of its own does not begin there")
    if max(objects - {_OWN}, default=-1) >= len(chunks.objects):
        raise Malformed("a chunk lies in an object that the table does not name")


class Pieces(Table):
    """A table whose segments are read when they are looked into. Safe in several threads."""

    def __init__(self, segments: tuple[Segment, ...], load: Callable[[Segment], Chunks]) -> None:
        """`load` returns a segment's chunks; what it raises, looking into the table raises."""
        self.segments = segments
        self._load = load
        self._counts = [0, *accumulate(segment.chunks for segment in segments)]
        self._kept: OrderedDict[int, Chunks] = OrderedDict()
        self._lock = threading.Lock()

    def __eq__(self, other: object) -> bool:
        return self.segments == other.segments if isinstance(other, Table) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.segments)

    def __len__(self) -> int:
        return self._counts[-1]

    @overload
    def __getitem__(self, number: int) -> Piece: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Piece]: ...
    def __getitem__(self, number: int | slice) -> Piece | Sequence[Piece]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if number < 0:
            number += len(self)
        if not 0 <= number < len(self):
            raise IndexError(number)
        segment = bisect_right(self._counts, number) - 1
        return self.chunks(segment)[number - self._counts[segment]]

    def __iter__(self) -> Iterator[Piece]:
        for number, segment in enumerate(self.segments):
            chunks = self.chunks(number)
            for each in range(segment.chunks):
                yield chunks[each]

    def parts(self, start: int, stop: int) -> Iterator[tuple[Chunks, int, int]]:
        """Yield the columns that hold the chunks from `start` on, up to `stop` or the last; and from where to where in each."""
        stop = min(stop, len(self))
        while start < stop:
            segment = bisect_right(self._counts, start) - 1
            begin, end = self._counts[segment], min(stop, self._counts[segment + 1])
            yield self.chunks(segment), start - begin, end - begin
            start = end

    def chunks(self, number: int) -> Chunks:
        """Return the chunks of a segment."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        chunks = self._load(self.segments[number])
        with self._lock:
            self._kept[number] = chunks
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return chunks
