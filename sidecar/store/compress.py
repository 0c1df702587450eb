"""Chunks and manifests as zstd frames, where that saves enough; both ways bounded by what the format says.

What does not get smaller by a sixteenth is stored as it is: reading it is then one copy less. Whether it may get smaller is found
on a sample: trying costs 4 us for 4 KiB of random bytes and 14 us for 64 KiB, yet 9 ms for 8 MiB, as long as it takes to write
them. Level 1: level 3 took twice as long for text, which it made 6 % larger, and forty times as long for pages of 8 KiB. Frames
differ between releases of zstd, so nothing but the names of objects may depend on them.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from itertools import chain

import zstandard

from sidecar.store.format import Malformed

LEVEL = 1
_SAMPLE = 64 << 10
_GAIN = 16
_AT_ONCE = {"multi_compress_to_buffer", "multi_decompress_to_buffer"} <= set(zstandard.backend_features)


class _Contexts(threading.local):
    """Contexts are costly to make, and not for several threads."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def compress(data: memoryview | bytes) -> bytes | None:
    """Return `data` as a zstd frame, None where that saves too little."""
    length = len(data)
    if length > 4 * _SAMPLE:
        middle = length // 2
        if not _saves(len(_contexts.compressor.compress(data[middle : middle + _SAMPLE])), _SAMPLE):
            return None
    frame = _contexts.compressor.compress(data)
    return frame if _saves(len(frame), length) else None


def compress_each(view: memoryview, cut: int, starts: Sequence[int]) -> list[bytes | None]:
    """Return of each chunk of `view` that begins at one of `starts`, and is of `cut` bytes or the last, what `compress` would."""
    chunks = [view[start : start + cut] for start in starts]
    if cut > 4 * _SAMPLE or len(chunks) < 2 or not _AT_ONCE:
        return [compress(chunk) for chunk in chunks]
    # One call: with one for each, around which threads wait for each other, a save of pages of 8 KiB took a fifth longer.
    segments = array("Q", chain.from_iterable((start, len(chunk)) for start, chunk in zip(starts, chunks, strict=True)))
    frames = _contexts.compressor.multi_compress_to_buffer(zstandard.BufferWithSegments(view, segments.tobytes()))
    return [frames[number].tobytes() if _saves(len(frames[number]), len(chunk)) else None for number, chunk in enumerate(chunks)]


def _saves(compressed: int, length: int) -> bool:
    return compressed < length - length // _GAIN


def pack_whole(data: bytes) -> bytes:
    """Return `data` as a zstd frame, whether it gets smaller or not."""
    return _contexts.compressor.compress(data)


def decompress_each(view: memoryview, frames: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[memoryview]:
    """Return what `decompress` would of frames in `view`: each begins somewhere and has a length, and one of what it holds.

    Malformed where one of them is not what it should be; which one is not told.
    """
    told = zip(frames, lengths, strict=True)
    if len(frames) < 2 or not _AT_ONCE:
        return [memoryview(decompress(view[at : at + size], length)) for (at, size), length in told]
    if not all(_is_one_frame(view[at : at + size], length) for (at, size), length in told):
        raise Malformed("it is no frame of the length that is said")
    segments = zstandard.BufferWithSegments(view, array("Q", chain.from_iterable(frames)).tobytes())
    try:
        plain = _contexts.decompressor.multi_decompress_to_buffer(segments, decompressed_sizes=array("Q", lengths).tobytes())
    except zstandard.ZstdError as error:
        raise Malformed(f"it cannot be decompressed: {error}") from None
    return [memoryview(plain[number]) for number in range(len(frames))]  # type: ignore[arg-type]  # before 3.12 no type says "buffer"


def _is_one_frame(frame: memoryview, length: int) -> bool:
    """Say whether a frame states that it holds `length` bytes, and ends where its last block does: RFC 8878, 3.1.1.

    zstandard looks at neither where it decompresses many at once. It takes 0.7 us for a page.
    """
    try:
        if zstandard.frame_content_size(frame) != length:
            return False
        at, last = zstandard.frame_header_size(frame), False
        while not last:
            header = int.from_bytes(frame[at : at + 3], "little")
            last, repeated = bool(header & 1), header >> 1 & 3 == 1
            at += 3 + (1 if repeated else header >> 3)
            if at > len(frame):
                return False
        return at + (4 if frame[4] & 4 else 0) == len(frame)  # a checksum, where the header's flag is set
    except zstandard.ZstdError:
        return False


def decompress(frame: memoryview | bytes, length: int) -> bytes:
    """Return the `length` bytes of a frame. Malformed where it is no single frame that says it holds as many."""
    try:
        said = zstandard.get_frame_parameters(frame)
        if said.content_size != length:
            raise Malformed(f"its frame does not say that it holds {length} bytes")
        data: bytes = _contexts.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Malformed(f"it cannot be decompressed: {error}") from None
    if len(data) != length:
        raise Malformed(f"it holds {len(data)} bytes, not {length}")
    return data
