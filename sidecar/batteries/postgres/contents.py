"""What of a cluster's directory belongs in an archive, and how its files are best cut. Pure.

What is left out is what a cleanly shut down cluster does without: pg_basebackup's list, and of the write-ahead log all but the
segment with the last checkpoint. The latter would be a silent loss for any other cluster, so `leave_out` takes none (see
control.py). Directories stay, empty: the server does not make them again.

Not left out, though it may look like it: unlogged relations, which are emptied by a crash only and hold their rows after a clean
end; pg_twophase, the prepared transactions; pg_stat, the statistics of a clean end; pg_logical, as pg_basebackup does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from sidecar.batteries.postgres.control import Control

RESERVED_NAMES = frozenset({"postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal"})
"""What has a server take itself for another's: for one that runs already, or for a standby, which would wait for its primary."""

# Of a backup that was made of this cluster, or that it was restored from. backup_label would have it recover from a log that is
# not there; a backup_manifest would be taken for that of the next backup.
_OF_BACKUPS = {"backup_label", "backup_label.old", "tablespace_map", "tablespace_map.old", "backup_manifest"}
_OF_ITS_RUN = {"current_logfiles", "current_logfiles.tmp", "postgresql.auto.conf.tmp"}
_AT_THE_TOP = RESERVED_NAMES | _OF_BACKUPS | _OF_ITS_RUN
_EMPTIED = {"pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"}
_LOG_FOLDERS = {"pg_wal/archive_status", "pg_wal/summaries"}
_HISTORY = re.compile(r"pg_wal/[0-9A-F]{8}\.history")
_SOCKET_OR_CORE = re.compile(r"\.s\.PGSQL\..*|core(\.[0-9]+)?")
_INIT = re.compile(r"pg_internal\.init(\.[0-9]+)?")  # a cache; with a number, one that was being written
_DATABASE = r"(?:base/[0-9]{1,10}|pg_tblspc/[0-9]{1,10}/PG_[0-9]{1,3}_[0-9]{1,10}/[0-9]{1,10})"
_TEMPORARY = re.compile(rf"{_DATABASE}/t[0-9]+_[0-9]+(_[a-z]+)?(\.[0-9]+)?")
_RELATION = re.compile(rf"(?:global|{_DATABASE})/[0-9]{{1,10}}(?:_(?:fsm|vm|init))?(?:\.([0-9]{{1,6}}))?")
_SIMPLE = re.compile(r"pg_(?:xact|commit_ts|multixact/offsets|multixact/members)/[0-9A-F]{4,}")  # arrays in pages

# Measured with a table of 100 MB of which a row changes: from 8 to 128 KiB a save stores and takes the same within a tenth.
_WORTH_PAGES = 32 << 10
_PAGE = 8192  # as good as every cluster's
# A segment is filled from front to back: after a short session most of it is what it was. A server that was only read adds some
# records: in pieces of 16 to 32 KiB, with their table, 90 kB more are stored; of 64, 145; of 256, 260; cut as usual, 2.4 MB.
_OF_LOG = 32 << 10


def leave_out(control: Control) -> Callable[[str], bool]:
    """Return what says of a path below the cluster whether an archive is to do without it. Only for a clean cluster."""
    if not control.is_clean:
        raise ValueError(f"a cluster that is {control.condition} needs all of its log")
    kept = {f"pg_wal/{name}" for name in control.log_segments} | _LOG_FOLDERS

    def leaves_out(path: str) -> bool:
        top, _, below = path.partition("/")
        if not below:
            return top in _AT_THE_TOP or _SOCKET_OR_CORE.fullmatch(top) is not None or top.startswith("pgsql_tmp")
        if top == "pg_wal":
            return path not in kept and _HISTORY.fullmatch(path) is None
        return top in _EMPTIED or _is_of_the_moment(path)

    return leaves_out


def _is_of_the_moment(path: str) -> bool:
    """Say whether a server makes it anew: sorts and temporary tables that a crash has left, and the cache of the catalogues."""
    name = path.rpartition("/")[2]
    return "/pgsql_tmp" in path or _INIT.fullmatch(name) is not None or _TEMPORARY.fullmatch(path) is not None


def chunk_size(path: str, size: int, block: int = _PAGE) -> int:
    """Return into what pieces a file is cut, as few of them will change: pages, of the log more; 0 where it is not worth it."""
    if path.startswith("pg_wal/"):
        return _OF_LOG
    if size < _WORTH_PAGES or not (_RELATION.fullmatch(path) or _SIMPLE.fullmatch(path)):
        return 0
    return max(block, _PAGE)


def relation_block(path: str, per_segment: int = (1 << 30) // _PAGE) -> int | None:
    """Return the number of the first block in a file of a relation, None where the file is none.

    Relations are kept in files of `per_segment` blocks: `16384` begins with block 0, `16384.3` with 3 * 131072.
    """
    match = _RELATION.fullmatch(path)
    return int(match[1] or 0) * per_segment if match else None


def tablespaces(names: Iterable[str]) -> list[str]:
    """Return which names in pg_tblspc are of tablespaces: links that lead out of the cluster, so that it is not whole without."""
    return sorted(name for name in names if name.isdecimal())
