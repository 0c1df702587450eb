"""What a cluster's `global/pg_control` says: whose it is, and whether it was shut down as it should be. Pure.

Nothing may be archived before this says `SHUT_DOWN`: a cluster that was not shut down cleanly needs its write-ahead log, and
looks whole without it. (Measured: one that was stopped with `immediate` and archived without its log started without an error and
had lost 19,705 of 20,923 commits.) It is decoded here so that no pg_controldata of the right version is needed.

The layout is `ControlFileData` of src/include/catalog/pg_control.h, whose fields that matter lie at the same places from
PostgreSQL 12 to 18; the checksum at the end moved once. What is read is not trusted: a file of another length, version or
checksum is Malformed, and so is what says something impossible.
"""

from __future__ import annotations

import struct

from sidecar.values import value

SIZE = 8192  # PG_CONTROL_FILE_SIZE
SHUT_DOWN, IN_PRODUCTION = 1, 6
STATES = (
    "starting up",
    "shut down",
    "shut down in recovery",
    "shutting down",
    "in crash recovery",
    "in archive recovery",
    "in production",
)  # DBState

# pg_control_version of 12, of 13 to 16, of 17, of 18, and where the checksum is: 18 has a field more before it.
_CHECKSUM_AT = {1201: 288, 1300: 288, 1700: 288, 1800: 292}
_CASTAGNOLI = 0x82F63B78  # reversed, as pg_crc32c has it


class Malformed(ValueError):
    """Bytes that are no control file, or a damaged one; the message tells what is wrong, not where it was read."""


@value
class Control:
    """What a control file says, as far as it matters here. `checksums`: whether pages carry any."""

    system: int
    version: int
    catalog: int
    state: int
    redo: int
    timeline: int
    block: int
    segment: int
    checksums: bool

    @property
    def is_clean(self) -> bool:
        """Whether the cluster needs nothing of its log but the segment with its last checkpoint."""
        return self.state == SHUT_DOWN

    @property
    def condition(self) -> str:
        """The state in pg_controldata's words."""
        return STATES[self.state]

    @property
    def redo_segment(self) -> str:
        """The name of the file in pg_wal that holds the last checkpoint: the one that a clean cluster needs to start."""
        number = self.redo // self.segment
        each = (1 << 32) // self.segment
        return f"{self.timeline:08X}{number // each:08X}{number % each:08X}"


def decode_control(data: bytes) -> Control:
    """Return what the bytes of pg_control say. Malformed."""
    if len(data) != SIZE:
        raise Malformed(f"it has {len(data)} bytes, not {SIZE}")
    system, version, catalog, state = struct.unpack_from("<QIII", data)
    if version not in _CHECKSUM_AT:
        raise Malformed(f"its version {version} is not one of PostgreSQL 12 to 18")
    at = _CHECKSUM_AT[version]
    (said,) = struct.unpack_from("<I", data, at)
    if said != crc32c(data[:at]):
        raise Malformed("its checksum is not that of its content")
    redo, timeline = struct.unpack_from("<QI", data, 40)
    block, segment = (struct.unpack_from("<I", data, offset)[0] for offset in (216, 228))
    (checksums,) = struct.unpack_from("<I", data, 252)
    if state >= len(STATES):
        raise Malformed(f"its state {state} is none")
    if segment & (segment - 1) or not 1 << 20 <= segment <= 1 << 30:
        raise Malformed(f"segments of {segment} bytes are impossible")
    if block & (block - 1) or not 1 << 10 <= block <= 1 << 15:
        raise Malformed(f"blocks of {block} bytes are impossible")
    return Control(system, version, catalog, state, redo, timeline, block, segment, bool(checksums))


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of some hundred bytes; it is too slow for more."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _table() -> tuple[int, ...]:
    entries = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (_CASTAGNOLI if entry & 1 else 0)
        entries.append(entry)
    return tuple(entries)


_TABLE = _table()
