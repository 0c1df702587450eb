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

# pg_control_version of 12, of 13 to 16, of 17, of 18, and where the nonce and the checksum are: 18 has a byte more before them.
_PLACES = {1201: (256, 288), 1300: (256, 288), 1700: (256, 288), 1800: (257, 292)}
_NONCE = 32  # bytes
_LOG_PAGE = 8192  # XLOG_BLCKSZ; its pages begin with XLogPageHeaderData, the first one of a segment with XLogLongPageHeaderData
_LONG_HEADER = 0x0002
_CASTAGNOLI = 0x82F63B78  # reversed, as pg_crc32c has it


class Malformed(ValueError):
    """Bytes that are no control file, or a damaged one; the message tells what is wrong, not where it was read."""


@value
class Control:
    """What a control file says, as far as it matters here. `checksums`: whether pages carry any.

    `relation_segment`: how many blocks there are in each file of a relation. `nonce` is what a server makes up a salt with for
    users that there are not. `max_*` are the settings of its last run: max_connections, max_worker_processes,
    max_wal_senders, max_prepared_transactions, max_locks_per_transaction. A standby, or recovery from an archive, wants as many.
    """

    system: int
    version: int
    catalog: int
    state: int
    redo: int
    timeline: int
    block: int
    segment: int
    checksums: bool
    relation_segment: int
    max_connections: int
    max_workers: int
    max_senders: int
    max_prepared: int
    max_locks: int
    nonce: bytes

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
        return self._segment_name(self.redo // self.segment)

    @property
    def log_segments(self) -> tuple[str, ...]:
        """The names of all the files in pg_wal that a clean cluster needs: that one, and the next where its record may go on.

        A checkpoint's record takes some hundred bytes, so it does that only from the last page of a segment.
        """
        number, offset = divmod(self.redo, self.segment)
        goes_on = offset >= self.segment - _LOG_PAGE
        return tuple(map(self._segment_name, range(number, number + 1 + goes_on)))

    def _segment_name(self, number: int) -> str:
        each = (1 << 32) // self.segment
        return f"{self.timeline:08X}{number // each:08X}{number % each:08X}"


def decode_control(data: bytes) -> Control:
    """Return what the bytes of pg_control say. Malformed."""
    if len(data) != SIZE:
        raise Malformed(f"it has {len(data)} bytes, not {SIZE}")
    system, version, catalog, state = struct.unpack_from("<QIII", data)
    if version not in _PLACES:
        raise Malformed(f"its version {version} is not one of PostgreSQL 12 to 18")
    nonce_at, checksum_at = _PLACES[version]
    (said,) = struct.unpack_from("<I", data, checksum_at)
    if said != crc32c(data[:checksum_at]):
        raise Malformed("its checksum is not that of its content")
    redo, timeline = struct.unpack_from("<QI", data, 40)
    limits = struct.unpack_from("<5i", data, 180)
    block, relation_segment, _, segment = struct.unpack_from("<4I", data, 216)
    (checksums,) = struct.unpack_from("<I", data, 252)
    if state >= len(STATES):
        raise Malformed(f"its state {state} is none")
    if segment & (segment - 1) or not 1 << 20 <= segment <= 1 << 30:
        raise Malformed(f"segments of {segment} bytes are impossible")
    if block & (block - 1) or not 1 << 10 <= block <= 1 << 15:
        raise Malformed(f"blocks of {block} bytes are impossible")
    if not relation_segment or min(limits) < 0:
        raise Malformed(f"{relation_segment} blocks in a file, or limits of {limits}, are impossible")
    connections, workers, senders, prepared, locks = limits
    return Control(
        system=system,
        version=version,
        catalog=catalog,
        state=state,
        redo=redo,
        timeline=timeline,
        block=block,
        segment=segment,
        checksums=bool(checksums),
        relation_segment=relation_segment,
        max_connections=connections,
        max_workers=workers,
        max_senders=senders,
        max_prepared=prepared,
        max_locks=locks,
        nonce=data[nonce_at : nonce_at + _NONCE],
    )


def with_identity(data: bytes, system: int, nonce: bytes) -> bytes:
    """Return a pg_control that is another cluster's: of another system identifier and nonce, else the same. Malformed.

    The segments of its log say the identifier, too: see wal_with_identity.
    """
    version = decode_control(data).version
    nonce_at, checksum_at = _PLACES[version]
    changed = bytearray(data)
    struct.pack_into("<Q", changed, 0, system)
    struct.pack_into(f"{_NONCE}s", changed, nonce_at, nonce)
    struct.pack_into("<I", changed, checksum_at, crc32c(bytes(changed[:checksum_at])))
    return bytes(changed)


def wal_with_identity(first_page: bytes, system: int) -> bytes:
    """Return the first page of a segment of the log with another system identifier. Malformed where it is none.

    Nowhere else in a segment does it stand, and no checksum covers it.
    """
    if len(first_page) < _LOG_PAGE:
        raise Malformed(f"the first page of a segment of the log has {len(first_page)} bytes, not {_LOG_PAGE}")
    magic, flags = struct.unpack_from("<2H", first_page)
    if magic >> 8 != 0xD1 or not flags & _LONG_HEADER:  # XLOG_PAGE_MAGIC is 0xD101 for PostgreSQL 12, and counts up
        raise Malformed("this is not the first page of a segment of the log")
    changed = bytearray(first_page)
    struct.pack_into("<Q", changed, 24, system)
    return bytes(changed)


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
