"""What of a cluster an archive holds: judged by servers that are started on no more, and by what pg_basebackup takes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Cluster, give, installation, new_cluster, new_folder

from sidecar.batteries.postgres.contents import RESERVED_NAMES, chunk_size, leave_out, relation_block, tablespaces
from sidecar.batteries.postgres.control import IN_PRODUCTION, Control, decode_control
from sidecar.values import replace

ROWS = [(20000, 200010000)]
SUM = "select count(*), sum(i) from one"


def control_of(cluster: Cluster) -> Control:
    return decode_control((cluster.data / "global" / "pg_control").read_bytes())


def paths(data: Path) -> Iterator[str]:
    """Yield every path below a cluster, directories before what they hold."""
    for folder, names, files in os.walk(data):
        for name in (*names, *files):
            yield os.path.relpath(os.path.join(folder, name), data)


def kept(cluster: Cluster) -> list[str]:
    """Return what an archive holds: below a directory that is left out, nothing."""
    leaves_out = leave_out(control_of(cluster))
    out = {path for path in paths(cluster.data) if leaves_out(path)}
    return [path for path in paths(cluster.data) if not any(str(each) in out for each in (path, *Path(path).parents))]


@contextlib.contextmanager
def archived(cluster: Cluster) -> Iterator[Cluster]:
    """Yield a cluster that has only what an archive of another one holds."""
    with new_folder() as folder:
        copy = Cluster(cluster.installed, folder / "data")
        for path in ("", *kept(cluster)):
            if (cluster.data / path).is_dir():
                (copy.data / path).mkdir(0o700)
            else:
                shutil.copyfile(cluster.data / path, copy.data / path)
            give(copy.data / path)
        try:
            yield copy
        finally:
            copy.end()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster with all that there is in one, stopped cleanly."""
    with new_cluster(installation(), "--wal-segsize=1") as made:
        with made.running("max_prepared_transactions=5", "wal_keep_size=100MB"):
            fill(made)
            made.query("begin; insert into one values (7); prepare transaction 'later'")
        yield made


def fill(cluster: Cluster) -> None:
    cluster.query("create table one as select i from generate_series(1, 20000) i")
    cluster.query("create unlogged table two as select i from generate_series(1, 10) i")
    for _ in range(4):
        cluster.query("insert into one select i from generate_series(1, 20000) i")
        cluster.query("delete from one where ctid not in (select min(ctid) from one group by i)")
    cluster.query("checkpoint")


@pytest.mark.parametrize("major", [12, 14, 0, 17, 18])
def test_a_server_starts_on_it_without_recovery_and_nothing_is_missing(major: int) -> None:
    with new_cluster(installation(major), "--wal-segsize=1") as made:
        with made.running():
            fill(made)
        with archived(made) as copy:
            assert len(list((copy.data / "pg_wal").glob("0*"))) == 1
            assert control_of(copy).is_clean
            with copy.running():
                assert copy.query(SUM) == ROWS
                assert copy.query("select count(*) from two") == [(10,)]
            assert "recovery" not in copy.log
            assert control_of(copy).is_clean


def test_of_a_large_log_one_segment_is_kept(cluster: Cluster) -> None:
    assert len(list((cluster.data / "pg_wal").glob("0*"))) > 5
    log = [path for path in kept(cluster) if path.startswith("pg_wal/")]
    assert sorted(log) == ["pg_wal/" + control_of(cluster).redo_segment, "pg_wal/archive_status"]


def test_prepared_transactions_are_kept(cluster: Cluster) -> None:
    with archived(cluster) as copy, copy.running("max_prepared_transactions=5"):
        assert copy.query("select gid from pg_prepared_xacts") == [("later",)]
        copy.query("commit prepared 'later'")
        assert copy.query("select count(*) from one where i = 7") == [(2,)]


def test_where_the_last_record_goes_on_in_the_next_segment_that_is_kept_too() -> None:
    """The record of the checkpoint begins 40 bytes before the end of a segment."""
    with new_cluster(installation(), "--wal-segsize=1") as made:
        with made.running(
            "autovacuum=off", "archive_mode=off", "bgwriter_lru_maxpages=0", "wal_level=minimal", "max_wal_senders=0"
        ):
            made.query("create table one as select i from generate_series(1, 20000) i")
            made.query("checkpoint")
            until(made, 1 << 20, 40)
        control = control_of(made)
        assert control.redo % control.segment == control.segment - 40
        assert len(control.log_segments) == 2
        with archived(made) as copy:
            with copy.running():
                assert copy.query(SUM) == ROWS
            assert "recovery" not in copy.log
        with archived(made) as copy:
            (copy.data / "pg_wal" / control.log_segments[1]).unlink()
            with pytest.raises(AssertionError, match="could not locate a valid checkpoint record"):
                copy.start()


def until(cluster: Cluster, segment: int, before: int) -> None:
    """Have the next record of the log begin so many bytes before the end of a segment."""

    def left() -> int:
        ((now,),) = cluster.query("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        return segment - before - int(now) % segment

    def emit(size: int) -> int:
        """Write a record with so many bytes in it, and return how many it took besides."""
        was = left()
        cluster.query(f"select pg_logical_emit_message(false, '', repeat('x', {size}))")
        return was - left() - size

    while left() > 12000:
        emit(min(left() - 10000, 200_000))
    # Inside a page, where no header is in between, the same size takes the same room.
    while left() > 7000:
        emit(300)
    besides = emit(1000)
    emit(left() - besides)
    assert left() == 0, left()


def test_it_is_what_pg_basebackup_takes_but_for_what_a_clean_end_allows(cluster: Cluster) -> None:
    with new_folder() as folder:
        with cluster.running("max_prepared_transactions=5"):
            ((unlogged,),) = cluster.query("select pg_relation_filepath('two')")
            backup = folder / "backup"
            cluster.take(
                "pg_basebackup", "-D", str(backup), "-X", "none", "-h", str(cluster.socket), "-U", "postgres", "-c", "fast"
            )
        ours, theirs = set(kept(cluster)), set(paths(backup))
    log = {path for path in ours if path.startswith("pg_wal/0")}
    assert ours - theirs == {"pg_stat/pgstat.stat", unlogged} | log
    assert theirs - ours == {"backup_label", "backup_manifest"}


@pytest.mark.parametrize("state", [0, 2, 3, 4, 5, IN_PRODUCTION])
def test_of_a_cluster_that_was_not_shut_down_nothing_may_be_left_out(cluster: Cluster, state: int) -> None:
    with pytest.raises(ValueError, match="needs all of its log"):
        leave_out(replace(control_of(cluster), state=state))


def words(text: str) -> list[str]:
    return text.split()


SEGMENT = "000000010000000000000003"
OUT = words("""
postmaster.pid postmaster.opts standby.signal recovery.signal backup_label backup_label.old tablespace_map tablespace_map.old
backup_manifest current_logfiles current_logfiles.tmp postgresql.auto.conf.tmp core core.4711 .s.PGSQL.5432 .s.PGSQL.5432.lock
pg_wal/000000010000000000000002 pg_wal/000000010000000000000004 pg_wal/000000020000000000000003
pg_wal/000000010000000000000003.partial pg_wal/000000010000000000000003.00000028.backup pg_wal/xlogtemp.5
pg_wal/archive_status/000000010000000000000003.done pg_wal/summaries/0000000100000000010000280000000001000100.summary
pg_wal/summaries/temp.summary pg_wal/anything
pg_dynshmem/mmap.1 pg_notify/0000 pg_replslot/slot pg_replslot/slot/state pg_serial/0000 pg_snapshots/1-1 pg_stat_tmp/db_0.stat
pg_subtrans/0000
base/5/pg_internal.init global/pg_internal.init base/5/pg_internal.init.77 pg_tblspc/16400/PG_15_202209061/5/pg_internal.init
base/pgsql_tmp base/pgsql_tmp/pgsql_tmp77.0 base/pgsql_tmp/pgsql_tmp77.0.fileset/0.0 pg_tblspc/16400/PG_15_202209061/pgsql_tmp
base/5/t3_16384 base/5/t3_16384.1 base/5/t12_16384_fsm base/5/t3_16384_vm.2
""")
IN = words(f"""
PG_VERSION postgresql.conf postgresql.auto.conf pg_hba.conf pg_ident.conf sidecar.json
base base/5 base/5/16384 base/5/16384.1 base/5/16384_fsm base/5/16384_vm base/5/16384_init base/5/PG_VERSION
base/5/pg_filenode.map global global/pg_control global/pg_filenode.map global/1262
pg_wal pg_wal/{SEGMENT} pg_wal/00000002.history pg_wal/archive_status pg_wal/summaries
pg_dynshmem pg_notify pg_replslot pg_serial pg_snapshots pg_stat_tmp pg_subtrans pg_tblspc
pg_twophase pg_twophase/000002F1 pg_stat pg_stat/pgstat.stat pg_xact/0000 pg_commit_ts/0000 pg_multixact/offsets/0000
pg_multixact/members/0000 pg_logical pg_logical/replorigin_checkpoint pg_logical/snapshots/0-1.snap pg_logical/mappings/map-1
base/5/core log/core.log base/5/postmaster.pid log/postgresql.log corefile t3_16384
""")


@pytest.mark.parametrize("path", OUT)
def test_left_out(cluster: Cluster, path: str) -> None:
    assert leave_out(replace(control_of(cluster), redo=3 << 20, segment=1 << 20))(path)


@pytest.mark.parametrize("path", IN)
def test_kept(cluster: Cluster, path: str) -> None:
    assert not leave_out(replace(control_of(cluster), redo=3 << 20, segment=1 << 20))(path)


def test_what_has_a_server_take_itself_for_anothers_is_never_in_an_archive() -> None:
    assert set(OUT) >= RESERVED_NAMES


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("base/5/16384", 0),
        ("base/5/16384.3", 3 * 131072),
        ("base/5/16384_fsm", 0),
        ("base/5/16384_vm.1", 131072),
        ("base/5/16384_init", 0),
        ("global/1262", 0),
        ("global/1262_vm", 0),
        ("pg_tblspc/16400/PG_15_202209061/5/16384.32767", 32767 * 131072),
    ],
)
def test_the_first_block_of_a_file_of_a_relation(path: str, block: int) -> None:
    assert relation_block(path) == block


NO_RELATIONS = words("""
PG_VERSION global/pg_control global/pg_filenode.map base/5/PG_VERSION base/5/pg_filenode.map base/5/pg_internal.init
base/16384 16384 pg_xact/0000 base/5/t3_16384 base/5/16384_other base/5/16384. base/5/16384.x base/5/16384.1.1 base/5/sub/16384
base/5/\u0661 base/x/16384 pg_tblspc/16400/16384 pg_tblspc/16400/PG_15_202209061/16384 global/16384/1 base/5/163841638416384
xbase/5/16384
""")


@pytest.mark.parametrize("path", [*NO_RELATIONS, "", "global/1262\n"])
def test_what_is_no_file_of_a_relation_has_none(path: str) -> None:
    assert relation_block(path) is None


def test_where_files_have_fewer_blocks_the_numbers_are_others() -> None:
    assert relation_block("base/5/16384.3", 16384) == 3 * 16384


def test_every_file_of_a_relation_is_known_for_one(cluster: Cluster) -> None:
    files = {path for path in paths(cluster.data) if (cluster.data / path).is_file()}
    relations = {path for path in files if re.fullmatch(r"(base/[0-9]+|global)/[0-9].*", path)}
    assert len(relations) > 800
    assert {path for path in files if relation_block(path) is not None} == relations


@pytest.mark.parametrize(
    ("path", "size", "cut"),
    [
        ("base/5/16384", 32 << 10, 8192),
        ("base/5/16384.3", 1 << 30, 8192),
        ("base/5/16384_fsm", 1 << 20, 8192),
        ("pg_xact/0000", 256 << 10, 8192),
        ("pg_multixact/offsets/0A00", 256 << 10, 8192),
        ("base/5/16384", (32 << 10) - 8192, 0),
        ("global/pg_control", 8192, 0),
        (f"pg_wal/{SEGMENT}", 16 << 20, 32 << 10),
        ("log/postgresql.log", 16 << 20, 0),
        ("base/5/16384", 0, 0),
    ],
)
def test_what_will_change_by_pages_is_cut_into_pages(path: str, size: int, cut: int) -> None:
    assert chunk_size(path, size) == cut


def test_blocks_of_another_size_are_not_cut_through() -> None:
    assert chunk_size("base/5/16384", 1 << 20, 32768) == 32768
    assert chunk_size("base/5/16384", 1 << 20, 1024) == 8192


def test_tablespaces_are_told() -> None:
    assert tablespaces(["16401", ".keep", "16400", "pgsql_tmp"]) == ["16400", "16401"]
    assert tablespaces([]) == []
