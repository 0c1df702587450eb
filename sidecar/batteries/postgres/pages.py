"""Whether the pages of relations are what was written: each carries a checksum, which is compared while it is archived.

A page that went bad on its disk or in memory looks like any other in an archive, and lives on in every bundle after it. The
server notices when it reads such a page; pages that no query has read since, it has not seen.

The checksum is PostgreSQL's (src/include/storage/checksum_impl.h): the page is 64 rows of 32 numbers of 32 bits. Each column
is hashed from a start of its own (FNV-1a with a shift besides) over the 64 rows and two of zeros; the columns' hashes and the
number of the block are put together with XOR, and folded to 1 to 65535. pd_checksum, where it stands, counts as 0.

numpy does a row of all pages at a time: measured over 4 MiB, 2.6 GB/s of a core, about as fast as the hash that each page is
known by in the store. (Copied first so that rows lie together: 2.1 GB/s. Fewer pages at a time: 0.9 GB/s at 64, and at one, as
most files of a new database are, 0.05 GB/s; so these are gathered, see Pages.) To import this is to import numpy.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from sidecar.batteries.postgres.contents import relation_block
from sidecar.batteries.postgres.control import Control
from sidecar.errors import NotSaved

_PRIME = np.uint32(16777619)
_SHIFT = np.uint32(17)
_STARTS = np.array(
    [
        0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
        0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
        0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
        0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
    ],
    np.uint32,
)  # fmt: skip
_COLUMNS = len(_STARTS)
_AT_ONCE = 512  # pages; their sums and what they come to next are to stay in the processor's cache
_FEW = 64  # pages; so few are gathered, as to copy them costs less than it saves
_NAMED = 5  # pages in one message; of a file that was cut short or overwritten, all of them may be wrong

Numbers = NDArray[np.uint32]


def check(view: memoryview, first_block: int, block: int = 8192) -> list[int]:
    """Return the numbers of the pages in `view` that are not what was written; it begins with page `first_block` of a relation.

    A page of nothing but zeros is one that was allocated and never written. A part of a page at the end is left by a full disk,
    and no server looks at it.
    """
    pages = _pages(view, block)
    wrong = []
    for start in range(0, len(pages), _AT_ONCE):
        some = pages[start : start + _AT_ONCE]
        numbers = np.arange(first_block + start, first_block + start + len(some), dtype=np.uint64).astype(np.uint32)
        wrong += numbers[_wrong(some, numbers)].tolist()
    return wrong


def _pages(view: memoryview, block: int) -> Numbers:
    """Return the whole pages of `view`, each an array of rows."""
    assert sys.byteorder == "little", "pages are in the byte order of their machine, and so are numpy's numbers"
    whole = view[: len(view) // block * block]
    return np.frombuffer(whole, np.uint32).reshape(-1, block // (4 * _COLUMNS), _COLUMNS)


def _wrong(pages: Numbers, numbers: Numbers) -> NDArray[np.intp]:
    """Return which of some pages, whose blocks have these numbers, are wrong."""
    computed = (_hashes(pages) ^ numbers) % np.uint32(65535) + np.uint32(1)
    said = pages[:, 0, 2] & np.uint32(0xFFFF)
    differ = np.flatnonzero(computed != said)
    # The server takes a page for new where pd_upper is 0, and refuses it unless all the rest is, too.
    return differ[[bool(pages[page].any()) for page in differ]] if len(differ) else differ


def _hashes(pages: Numbers) -> Numbers:
    """Return the hash of each page, without the number of its block."""
    first = pages[:, 0].copy()
    first[:, 2] &= np.uint32(0xFFFF0000)
    sums = np.broadcast_to(_STARTS, first.shape).copy()
    mixed = np.empty_like(sums)
    _mix(sums, first, mixed)
    for row in range(1, pages.shape[1]):
        _mix(sums, pages[:, row], mixed)
    zeros = np.zeros_like(_STARTS)
    for _ in range(2):
        _mix(sums, zeros, mixed)
    hashes: Numbers = np.bitwise_xor.reduce(sums, axis=1)
    return hashes


def _mix(sums: Numbers, row: Numbers, mixed: Numbers) -> None:
    """Have a row in the sums: `sums` times the prime, after and with what the row makes of them. `mixed` is room."""
    np.bitwise_xor(sums, row, out=mixed)
    np.multiply(mixed, _PRIME, out=sums)
    np.right_shift(mixed, _SHIFT, out=mixed)
    np.bitwise_xor(sums, mixed, out=sums)


class Pages:
    """Checks what is read of a cluster; to be given to Store.save as `inspect`. Files of no relation have no checksums.

    Pages of small files are copied and checked together, when there are enough of them and in the end: `finish`. Not for several
    threads at once; Store.save sees to that.
    """

    def __init__(self, control: Control) -> None:
        """Check nothing where the cluster has no checksums."""
        self._control = control
        self._gathered = np.empty((_AT_ONCE, control.block // (4 * _COLUMNS), _COLUMNS), np.uint32)
        self._numbers = np.empty(_AT_ONCE, np.uint32)
        self._paths: list[str] = []

    def __call__(self, path: str, offset: int, view: memoryview) -> None:
        """NotSaved, naming them, where pages are not what was written; of others, perhaps, that were given before."""
        first = relation_block(path, self._control.relation_segment) if self._control.checksums else None
        if first is None:
            return
        block = self._control.block
        first += offset // block
        if len(view) // block > _FEW:
            wrong = check(view, first, block)
            if wrong:
                raise NotSaved(_problem(path, wrong))
            return
        pages = _pages(view, block)
        if len(self._paths) + len(pages) > _AT_ONCE:
            self.finish()
        start, end = len(self._paths), len(self._paths) + len(pages)
        self._gathered[start:end] = pages
        self._numbers[start:end] = np.arange(first, first + len(pages), dtype=np.uint64)
        self._paths += [path] * len(pages)

    def finish(self) -> None:
        """Check what was gathered. NotSaved, as above."""
        paths, self._paths = self._paths, []
        numbers = self._numbers[: len(paths)]
        wrong = _wrong(self._gathered[: len(paths)], numbers)
        if len(wrong):
            path = paths[wrong[0]]
            raise NotSaved(_problem(path, [int(numbers[each]) for each in wrong if paths[each] == path]))


def _problem(path: str, wrong: list[int]) -> str:
    pages = ", ".join(map(str, wrong[:_NAMED])) + (f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else "")
    problem = f"page{'s' if len(wrong) > 1 else ''} {pages} of {path} {'are' if len(wrong) > 1 else 'is'} corrupt"
    remedy = "the bundle that was there before may have it whole, and pg_dump gets out what can still be read"
    return f"{problem}: not what PostgreSQL wrote, so this node's disk or memory is not to be trusted; {remedy}"
