"""What a relation's visibility map says: of which pages everybody sees every row, so that reading changes nothing. Pure.

The first who reads a page after a change prunes it, sets hint bits, and marks dead entries of indexes: a bundle of which somebody
only read would be stored again in large part. pg_class.relallvisible tells no more than what was so at the last VACUUM or
ANALYZE.

The map is the fork `_vm`: pages of a header of 24 bytes, then two bits for each page of the relation, all-visible and
all-frozen (src/include/access/visibilitymapdefs.h, the same in PostgreSQL 12 to 18).
"""

from __future__ import annotations

_HEADER = 24
_VISIBLE, _FROZEN = 0x55, 0xAA  # the lower and the upper bit of each pair


def all_visible(fork: bytes, block: int = 8192) -> int:
    """Return of how many pages every row is seen by everybody."""
    return _count(fork, block, _VISIBLE)


def all_frozen(fork: bytes, block: int = 8192) -> int:
    """Return how many pages need never be frozen again."""
    return _count(fork, block, _FROZEN)


def _count(fork: bytes, block: int, bits: int) -> int:
    mask = int.from_bytes(bytes([bits]) * (block - _HEADER))
    pages = (fork[start + _HEADER : start + block] for start in range(0, len(fork), block))
    return sum((int.from_bytes(page.ljust(block - _HEADER, b"\0")) & mask).bit_count() for page in pages)
