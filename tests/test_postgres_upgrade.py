"""Clusters of one major become ones of another: what they hold is the same, and nothing of theirs is obeyed on the way."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import postgres_contents
import psutil
import pytest
from postgres_contents import digest, made, never, serving, staged, task, who
from servers import installation, new_folder

from sidecar.batteries.postgres import closed, upgrade
from sidecar.batteries.postgres.clusters import version_of
from sidecar.batteries.postgres.installations import Installation
from sidecar.batteries.postgres.postmaster import read_control
from sidecar.batteries.postgres.stage import Stage
from sidecar.errors import ConfigurationError, PeerFailed, Unreachable
from sidecar.store import Stopped

DEBIAN = installation().major
templates = postgres_contents.templates


def upgraded(stage: Stage, old: int | Installation, new: int, tell: Any = None, cancelled: Any = never) -> dict[str, Any]:
    source = installation(old) if isinstance(old, int) else old
    return upgrade.upgrade(task(stage, tell, cancelled), source, installation(new))


def checked(stage: Stage, old: int, new: int) -> str:
    return upgrade.check(task(stage), installation(old), installation(new))


def processes_of(stage: Stage) -> list[str]:
    """Return the command lines of what runs and names the directory of a database."""
    folder = os.path.dirname(stage.data)
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if folder in line:
            found.append(line)
    return found


def contents(stage: Stage, installed: Installation) -> dict[str, Any]:
    with serving(stage, installed) as server:
        return digest(server)


# --- what it holds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new", "method"), [(12, DEBIAN, "dump"), (DEBIAN, 18, "link")])
def test_what_a_cluster_holds_is_the_same_after_an_upgrade(old: int, new: int, method: str) -> None:
    if old == new:
        pytest.skip("of this machine's major there is no upgrade to 18")
    # Without page checksums, as clusters are by default before 18.
    with made(installation(old), checksums=False) as data, staged(data) as stage:
        before = contents(stage, installation(old))
        system = read_control(stage.partial).system
        facts = upgraded(stage, old, new)
        assert facts == {"major": old, "version": installation(old).version, "system": str(system), "method": method}
        assert (version_of(stage.partial), os.listdir(f"{stage.home}/s")) == (new, [])
        assert not {"scratch", "pgpass"} & set(os.listdir(stage.home))
        control = read_control(stage.partial)
        assert control.is_clean
        assert control.checksums
        assert "trust" not in Path(stage.partial, "pg_hba.conf").read_text().split()
        with serving(stage, installation(new)) as server:
            assert digest(server) == before
            assert not os.path.lexists("/tmp/pwned")
            analyzed = server.connection.execute("SELECT count(*) FROM pg_stats WHERE tablename = 'accounts'").fetchone()
            assert analyzed == (4,)


@pytest.mark.long
@pytest.mark.parametrize(("old", "new"), [(12, 14), (12, 18), (14, 17), (14, 18), (17, 18)])
def test_so_it_is_between_other_majors(old: int, new: int) -> None:
    test_what_a_cluster_holds_is_the_same_after_an_upgrade(old, new, "dump" if old == 12 else "link")


@pytest.mark.long
@pytest.mark.parametrize("new", [14, 17, 18])
def test_an_old_installation_that_has_its_tools_after_all_is_upgraded_by_link(new: int) -> None:
    with made(installation(12)) as data, staged(data) as stage, with_tools(installation(12)) as old:
        before = contents(stage, installation(12))
        assert upgraded(stage, old, new)["method"] == "link"
        with serving(stage, installation(new)) as server:
            assert digest(server) == before


@contextmanager
def with_tools(server_only: Installation) -> Iterator[Installation]:
    """Yield an installation of 12 with what pg_upgrade asks of one: its control file is like that of 14."""
    with new_folder() as folder:
        for name in ("postgres", "pg_ctl", "initdb"):
            (folder / name).symlink_to(server_only.program(name))
        said = installation(14).program("pg_controldata")
        (folder / "pg_controldata").write_text(
            f'#!/bin/sh\n[ "$1" = -V ] && exec echo "pg_controldata (PostgreSQL) {server_only.version}"\nexec {said} "$@"\n'
        )
        (folder / "pg_resetwal").write_text(
            f'#!/bin/sh\n[ "$1" = -V ] && exec echo "pg_resetwal (PostgreSQL) {server_only.version}"\n'
            f"{said} \"$2\" | sed -n 'p; s/.*REDO WAL file: *\\(.*\\)/First log segment after reset: \\1/p'\n"
        )
        for name in ("pg_controldata", "pg_resetwal"):
            (folder / name).chmod(0o755)
        yield Installation(str(folder), server_only.version, server_only.major)


def test_a_cluster_that_was_not_shut_down_recovers_first_with_its_own_version() -> None:
    rows = "INSERT INTO t SELECT generate_series(1, 1000)"
    with made(installation(14), "CREATE TABLE t (n int)", rows, clean=False) as data, staged(data) as stage:
        assert not read_control(stage.partial).is_clean
        upgraded(stage, 14, 18)
        with serving(stage, installation(18)) as server:
            assert server.connection.execute("SELECT count(*) FROM public.t").fetchone() == (1000,)


def test_what_pg_upgrade_refuses_is_dumped_and_restored() -> None:
    regs = ["CREATE TABLE regs (a regprocedure)", "INSERT INTO regs VALUES ('now()')"]
    said: list[str] = []
    with made(installation(14), *regs) as data, staged(data) as stage:
        assert upgraded(stage, 14, 17, said.append)["method"] == "dump"
        assert any("public.regs.a" in line for line in said)
        with serving(stage, installation(17)) as server:
            assert server.connection.execute("SELECT a::text FROM public.regs").fetchall() == [("now()",)]


def test_what_alter_system_has_set_stays_less_what_the_new_major_does_not_know() -> None:
    settings = [
        "ALTER SYSTEM SET work_mem = '9MB'",
        "ALTER SYSTEM SET vacuum_defer_cleanup_age = 3",
        "ALTER SYSTEM SET old_snapshot_threshold = 5",
    ]
    said: list[str] = []
    with made(installation(14), *settings) as data, staged(data) as stage:
        upgraded(stage, 14, 18, said.append)
        assert Path(stage.partial, "postgresql.auto.conf").read_text() == "work_mem = '9MB'\n"
        assert len([line for line in said if "vacuum_defer_cleanup_age" in line or "old_snapshot_threshold" in line]) == 2


def test_settings_are_read_as_alter_system_writes_them() -> None:
    text = (
        "# Do not edit\nwork_mem = '9MB'\na.b = 'it''s = # \\n'\nPort=5\nfsync off # said\ninclude '/x'\ninclude_dir = 'y'\n= 3\n"
    )
    assert upgrade.parse_settings(text) == {"work_mem": "'9MB'", "a.b": "'it''s = # \\n'", "port": "5", "fsync": "off"}


# --- what is refused ---------------------------------------------------------------------------------------------------


def test_an_extension_whose_library_is_missing_is_named() -> None:
    with made(installation(14), "CREATE EXTENSION adminpack") as data, staged(data) as stage:
        both = r'(?s)extension "adminpack" is not available.*could not load library "\$libdir/adminpack"'
        with pytest.raises(PeerFailed, match=both):
            upgraded(stage, 14, 18)
        assert processes_of(stage) == []


@pytest.mark.long
def test_a_view_that_the_new_major_does_not_know_is_told_with_what_is_wrong_with_it() -> None:
    view = "CREATE VIEW v AS SELECT buffers_backend FROM pg_stat_bgwriter"
    both = r"column pg_stat_bgwriter.buffers_backend does not exist.*pg_upgrade: Restoring database schemas"
    with made(installation(14), view) as data, staged(data) as stage, pytest.raises(PeerFailed, match=both):
        upgraded(stage, 14, 18)


def test_prepared_transactions_are_not_left_behind_unsaid() -> None:
    prepared = ["CREATE TABLE t (n int)", "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'this one'"]
    told = r"1 prepared transactions \('this one'\).*with PostgreSQL 14"
    allowed = ["max_prepared_transactions=3"]
    with (
        made(installation(14), *prepared, settings=allowed) as data,
        staged(data) as stage,
        pytest.raises(ConfigurationError, match=told),
    ):
        upgraded(stage, 14, 18)


@pytest.mark.parametrize("old", [12, 14])
def test_nothing_that_a_bundle_configures_is_obeyed_on_the_way(old: int, tmp_path: Path) -> None:
    """A library that is not there would keep each server, or each session, from beginning."""
    with new_folder() as folder, made(installation(old), SETS) as data, staged(data) as stage:
        (folder / "touched").mkdir(mode=0o777)
        (folder / "touched").chmod(0o777)
        for name in ("postgresql.conf", "postgresql.auto.conf"):
            Path(stage.partial, name).write_text(_evil(folder))
        Path(stage.partial, "pg_hba.conf").write_text("local all all reject\n")
        if old != 12:
            assert checked(stage, old, 17) == ""
            assert Path(stage.partial, "postgresql.auto.conf").read_text() == _evil(folder)
        upgraded(stage, old, 17)
        with serving(stage, installation(17)) as server:
            assert server.connection.execute("SELECT * FROM public.t").fetchall() == [(1,)]
        assert os.listdir(folder / "touched") == []


def _evil(folder: Path) -> str:
    touch = f"touch {folder}/touched/it"
    return (
        "shared_preload_libraries = '/evil'\nsession_preload_libraries = '/evil'\narchive_mode = on\n"
        f"archive_command = '{touch}'\nrestore_command = '{touch}'\narchive_cleanup_command = '{touch}'\n"
        f"ssl = on\nssl_passphrase_command = '{touch}'\nlisten_addresses = '*'\nlog_directory = '{folder}/touched'\n"
        "logging_collector = on\n"
    )


# Of one statement, for no session begins after the second one.
SETS = """\
CREATE TABLE t AS SELECT 1 AS n;
ALTER ROLE postgres SET session_preload_libraries = '/evil';
ALTER DATABASE template1 SET local_preload_libraries = '/evil';
ALTER ROLE ALL SET default_transaction_read_only = on;
ALTER ROLE postgres SET statement_timeout = '1ms'"""


# --- a check -----------------------------------------------------------------------------------------------------------


def test_a_check_leaves_the_cluster_as_it_was() -> None:
    with (
        made(installation(14), "CREATE TABLE t AS SELECT 1 AS n", "CREATE DATABASE shut ALLOW_CONNECTIONS false") as data,
        staged(data) as stage,
    ):
        before = contents(stage, installation(14))
        files = {
            name: Path(stage.partial, name).read_bytes() for name in ("postgresql.conf", "pg_hba.conf", "postgresql.auto.conf")
        }
        system = read_control(stage.partial).system
        assert checked(stage, 14, 18) == ""
        assert {name: Path(stage.partial, name).read_bytes() for name in files} == files
        assert read_control(stage.partial).system == system
        assert read_control(stage.partial).is_clean
        with serving(stage, installation(14)) as server:
            assert digest(server) == before


def test_a_check_says_what_pg_upgrade_says() -> None:
    with made(installation(14), "CREATE TABLE regs (a regprocedure)") as data, staged(data) as stage:
        assert "(tables_using_reg.txt) In database: postgres public.regs.a" in checked(stage, 14, 18)
        assert version_of(stage.partial) == 14


def test_a_check_says_which_tools_are_missing() -> None:
    with made(installation(12), "SELECT 1") as data, staged(data) as stage:
        assert "has no pg_controldata and no pg_resetwal" in checked(stage, 12, 18)


# --- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("looks", [6, 16, 30])
def test_a_cancelled_upgrade_ends_soon_and_leaves_nothing_running(looks: int) -> None:
    count = itertools.count()
    with made(installation(14), "SELECT 1") as data, staged(data) as stage:
        with pytest.raises(Stopped):
            upgraded(stage, 14, 18, cancelled=lambda: next(count) >= looks)
        assert processes_of(stage) == []
        assert "scratch" not in os.listdir(stage.home)


@pytest.mark.long
@pytest.mark.parametrize("looks", range(1, 80, 3))
@pytest.mark.parametrize("old", [12, 14])
def test_so_it_does_whenever_it_is_cancelled(old: int, looks: int) -> None:
    count = itertools.count()
    with made(installation(old), "SELECT 1") as data, staged(data) as stage:
        try:
            upgraded(stage, old, 18, cancelled=lambda: next(count) >= looks)
        except Stopped:
            assert "scratch" not in os.listdir(stage.home)
        assert processes_of(stage) == []


def test_the_next_life_ends_the_servers_that_a_killed_upgrade_has_left() -> None:
    """They are daemons of pg_upgrade's, and no child of the battery's."""
    with made(installation(14), "SELECT 1") as data, staged(data) as stage:
        stage.release()
        code = (
            "import json, sys\nfrom sidecar.batteries.postgres import upgrade\n"
            "from sidecar.batteries.postgres.installations import Installation\n"
            "from sidecar.batteries.postgres.programs import account\nfrom sidecar.batteries.postgres.stage import Stage, Task\n"
            "data, *both = json.loads(sys.argv[1])\nwho = account('postgres')\nstage = Stage(data, 'a session')\nstage.own(who)\n"
            "task = Task(stage, who, {}, print, lambda: False)\n"
            "upgrade.upgrade(task, *(Installation(*each) for each in both))\n"
        )
        both = [[each.bindir, each.version, each.major] for each in (installation(14), installation(18))]
        life = subprocess.Popen([sys.executable, "-c", code, json.dumps([stage.data, *both])])
        daemon = f"-D {stage.partial} -p"
        while not any(daemon in line and "pg_ctl" not in line for line in processes_of(stage)):
            assert life.poll() is None
        life.send_signal(signal.SIGKILL)
        life.wait()
        stage.own(who())
        upgrade.forget(stage)
        assert processes_of(stage) == []
        assert "scratch" not in os.listdir(stage.home)


def test_a_path_that_a_shell_would_take_apart_never_reaches_one() -> None:
    with made(installation(14), "SELECT 1") as data, staged(data, name='$(touch x) `id` "x') as stage:
        assert "a shell would not take" in checked(stage, 14, 18)


@pytest.mark.long
def test_such_a_cluster_is_dumped_and_restored() -> None:
    with made(installation(14), "CREATE TABLE t AS SELECT 1 AS n") as data, staged(data, name='$(touch x) `id` "x') as stage:
        assert upgraded(stage, 14, 18)["method"] == "dump"
        with serving(stage, installation(18)) as server:
            assert server.connection.execute("SELECT n FROM public.t").fetchall() == [(1,)]


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted")
@pytest.mark.parametrize("old", [12, pytest.param(14, marks=pytest.mark.long)])
def test_a_full_disk_is_told_as_that(old: int) -> None:
    rows = "CREATE TABLE t AS SELECT i, repeat(md5(i::text), 30) AS filler FROM generate_series(1, 30000) i"
    with made(installation(old), rows) as data, staged() as stage:
        top = os.path.dirname(stage.data)
        stage.release()
        size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file()) + (24 << 20)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "none", top], check=True)
        try:
            stage.own(who())
            shutil.copytree(data, stage.partial)
            subprocess.run(["chown", "-R", "--reference", data, stage.partial], check=True)
            with pytest.raises(Unreachable, match="is full"):
                upgraded(stage, old, 17)
            assert processes_of(stage) == []
        finally:
            stage.release()
            subprocess.run(["umount", "-l", top], check=True)


def test_a_closed_server_lets_nobody_in_and_ends_when_it_is_told_to_whatever_it_does() -> None:
    told: list[str] = []

    def sleep(stage: Stage) -> None:
        with closed.serve(task(stage, cancelled=lambda: bool(told)), stage.partial, installation(14), {}) as server:
            told.append("to stop")
            server.connection.execute("SELECT pg_sleep(3600)")

    with made(installation(14), "SELECT 1") as data, staged(data) as stage:
        with pytest.raises(Stopped):
            sleep(stage)
        assert processes_of(stage) == []
