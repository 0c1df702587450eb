"""What a pod with a database survives, one fault a test: nothing is lost, nothing hangs, who waits is told, and what to do.

Real servers, batteries and wrappers. A wrapper whose battery failed ends with 69 or 73 and says what the battery said.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres_pods import LABEL, REPO, DatabasePod, free_port, library_options, new_place
from processes import BIN, HANG, LONG, children_of, forked, gone, processes, state_of, until
from servers import account, give

from sidecar import errors, linux
from sidecar.batteries.postgres import battery as battery_module
from sidecar.batteries.postgres import sessions
from sidecar.batteries.postgres.battery import PostgresBattery
from sidecar.batteries.postgres.configuration import Places
from sidecar.batteries.postgres.postmaster import hold
from sidecar.errors import Unreachable
from sidecar.parameters.fuse import Destination, Source
from sidecar.store import Stopped

SEED = (
    "CREATE TABLE stock AS SELECT n, md5(n::text) AS text FROM generate_series(1, 20000) AS n",
    "CREATE UNLOGGED TABLE scratch AS SELECT n FROM generate_series(1, 1000) AS n",
)
RESTORED: dict[str, Any] = {"srcRepo": REPO, "srcLabel": LABEL}


@pytest.fixture(scope="session")
def seeded() -> Iterator[Path]:
    """A directory with templates of clusters, and a store with a bundle of SEED: each test has its own copy."""
    with new_place() as place, DatabasePod(place, place / "templates") as pod:
        pod.run(*SEED)
        yield place


@pytest.fixture
def pod(seeded: Path) -> Iterator[DatabasePod]:
    with new_place() as top:
        shutil.copytree(seeded / "store", top / "store")
        with DatabasePod(top, seeded / "templates") as pod:
            yield pod


class Session:
    """A battery and a wrapper that runs around it, of a pod whose database is started."""

    def __init__(self, pod: DatabasePod, *arguments: str, how: dict[str, Any] | None = None, **more: Any) -> None:
        self.pod, self.before = pod, pod.bundles()
        self.arguments, self.more = arguments, more
        self.battery = pod.serve(*arguments, how=how, **more)
        self.wrapper = pod.application()
        pod.started_up()

    def finish(self) -> tuple[int, int]:
        """Have the application end; return the wrapper's and the battery's status."""
        return self.pod.finish(self.wrapper, self.battery)

    def succeed(self) -> None:
        assert self.finish() == (0, 0), self.said
        self.check_one_more()

    def fail(self, said: str) -> None:
        """See that the save fails, both say why, nothing is published, and what is kept is told."""
        assert self.finish() == (errors.NOT_SAVED, errors.NOT_SAVED), self.said
        assert said in self.battery.err, self.said
        assert said in self.wrapper.err, self.said
        assert self.pod.bundles() == self.before
        assert not (self.pod.coord / "db1" / "dbuploaddone").exists()
        self.pod.check()

    def again(self, **more: Any) -> None:
        """Have battery and wrapper live again, as a restart policy would: they finish what was begun."""
        self.battery = self.pod.serve(*self.arguments, **{**self.more, **more})
        self.wrapper = self.pod.application("--rejoin-timeout", "60")

    def check_one_more(self) -> None:
        assert len(self.pod.bundles()) == len(self.before) + 1
        assert (self.pod.coord / "db1" / "dbuploaddone").exists()
        self.pod.check()

    @property
    def said(self) -> str:
        return "\n".join(each.err for each in self.pod.started)


def refused(pod: DatabasePod, status: int, *said: str, **more: Any) -> None:
    """See that no server comes to be, that the battery ends with a status, and that both say why."""
    before = pod.bundles()
    battery, wrapper = pod.serve(**more), pod.application()
    assert (battery.wait(), wrapper.wait()) == (status, errors.UNAVAILABLE), battery.err + wrapper.err
    for each in said:
        assert each in battery.err
        assert each in wrapper.err
    assert pod.bundles() == before
    assert not (pod.coord / "db1" / "dbstarted").exists()


def changed(pod: DatabasePod, change: Callable[[Path], object]) -> None:
    """Have the latest bundle be another one, in whose files something was changed by hand."""
    with new_place() as place:
        pod.store.populate(pod.bundle(), place / "data")
        change(place / "data")
        pod.store.save(place / "data", REPO, label=LABEL)


def checkpointer_of(pod: DatabasePod) -> int:
    for pid in children_of(pod.postmaster()):
        if b"checkpointer" in title_of(pid):
            return pid
    raise AssertionError("the server has no checkpointer")


def title_of(pid: int) -> bytes:
    """Return what a process of a server says that it does."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid), f"process {pid} is gone")


COUNT = "SELECT count(*) FROM stock"


# --- what the original lost ------------------------------------------------------------------------------------------


def test_rows_of_an_unlogged_table_are_in_the_bundle(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED)
    assert pod.query("SELECT count(*) FROM scratch") == [(1000,)]
    pod.query("INSERT INTO scratch SELECT 0")
    session.succeed()
    assert pod.rows("SELECT count(*) FROM scratch") == [(1001,)]


def test_a_server_that_was_killed_is_not_archived_as_it_is_but_recovers_first(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED)
    pod.query("INSERT INTO stock SELECT n, 'more' FROM generate_series(1, 5000) AS n")
    os.kill(pod.postmaster(), signal.SIGKILL)
    session.succeed()
    assert pod.rows(COUNT) == [(25000,)]
    record = pod.record("postgres-db1")
    assert record is not None
    assert record.payload is not None
    assert record.payload["destinations"][0]["recovered"] == 1


def test_a_restart_that_finds_it_was_asked_to_save_never_publishes_the_source_again(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED)
    pod.query("INSERT INTO stock SELECT n, 'more' FROM generate_series(1, 5000) AS n")
    pod.release()
    pod.hear("db1/initdbupload")
    session.battery.kill()
    session.wrapper.kill()
    session.again()
    assert (session.battery.wait(), session.wrapper.wait()) == (0, 0), session.said
    session.check_one_more()
    assert pod.rows(COUNT) == [(25000,)]


# --- the end of processes --------------------------------------------------------------------------------------------


def test_sigterm_in_the_middle_of_an_archive_publishes_nothing_and_the_next_life_finishes_it(pod: DatabasePod) -> None:
    session = Session(pod, "--grace", "0", **RESTORED)
    pod.query("INSERT INTO stock SELECT n, md5(random()::text) || md5(random()::text) FROM generate_series(1, 150000) AS n")
    pod.release()
    until(lambda: pod.journal()["step"] == "stopped", "the server is stopped", pod)
    session.battery.send(signal.SIGTERM)
    session.fail("SIGTERM came")
    session.again()
    session.succeed()
    assert pod.rows(COUNT) == [(170000,)]


def test_a_server_that_dies_while_the_application_runs_is_begun_again(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED)
    first = pod.postmaster()
    kill(first)
    until(lambda: pod.postmaster() not in (0, first), "another server runs", pod)

    def answers() -> bool:
        with suppress(psycopg.OperationalError):
            return pod.query(COUNT) == [(20000,)]
        return False

    until(answers, "clients are let in again", pod)
    session.succeed()


CAP_SYS_PTRACE, PR_CAPBSET_DROP = 19, 24


def be_contained() -> None:
    """Where it is root who begins a program, have it lack what root lacks in a container by default: to look at others."""
    if os.getuid() == 0:
        linux.prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE)


def test_a_query_that_outlives_its_server_does_not_keep_it_from_being_begun_again(pod: DatabasePod) -> None:
    session = Session(pod, how={"prepare": be_contained}, **RESTORED)
    with suppress(psycopg.OperationalError), closing(pod.connect()) as connection:
        busy = connection.info.backend_pid
        work = threading.Thread(target=_ignored, args=(connection, "SELECT count(*) FROM generate_series(1, 2000000000)"))
        work.start()
        until(lambda: b"SELECT" in title_of(busy), "a query runs", pod)
        os.kill(busy, signal.SIGSTOP)  # as one that is deep in a computation: it notices nothing
        first = pod.postmaster()
        kill(first)
        session.succeed()
        work.join(HANG)
    assert gone(busy)
    assert pod.rows(COUNT) == [(20000,)]


def _ignored(connection: psycopg.Connection[Any], sql: str) -> None:
    with suppress(psycopg.Error):
        connection.execute(sql.encode())


@pytest.fixture
def places() -> Iterator[Places]:
    """The places of a server that there is none of."""
    with new_place() as home:
        (home / "s").mkdir()
        yield Places(str(home / "data"), str(home), str(home / "s"))


def test_a_program_that_a_server_left_is_ended_though_it_is_our_own_interpreters(places: Places) -> None:
    lock = hold(places, lambda: False)
    left = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({LONG})"], pass_fds=[lock])
    os.close(lock)
    try:
        os.close(hold(places, lambda: False))
        assert left.wait(HANG) == -signal.SIGKILL
    finally:
        left.kill()
        left.wait()


def test_a_copy_of_ourselves_that_has_yet_to_become_a_program_is_waited_for_and_not_ended(places: Places) -> None:
    lock = hold(places, lambda: False)
    go, end = os.pipe()

    def wait() -> None:
        os.close(end)
        os.read(go, 1)

    copy = forked(wait)
    os.close(lock)
    looks = iter(range(30))
    with pytest.raises(Stopped):
        hold(places, lambda: next(looks, None) is None)
    os.close(end)
    assert os.waitpid(copy, 0)[1] == 0
    os.close(hold(places, lambda: False))
    os.close(go)


@contextmanager
def port_taken_from(session: Session) -> Iterator[None]:
    """Have the server be gone and its port another's, within it, when its battery comes to begin it again."""
    pod, battery = session.pod, session.battery
    battery.send(signal.SIGSTOP)
    until(lambda: state_of(battery.pid) == "T", "the battery does nothing", pod)
    server = pod.postmaster()
    os.kill(server, signal.SIGKILL)
    until(lambda: state_of(server) in ("Z", ""), "the server is gone", pod)
    with socket.create_server(("127.0.0.1", pod.port)):
        battery.send(signal.SIGCONT)
        until(lambda: "cannot be begun again" in battery.err, "the battery has tried", pod)
        yield


def test_a_server_whose_port_was_taken_when_it_died_is_recovered_for_the_save_once_it_is_free(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED)
    pod.query("INSERT INTO stock SELECT 0, 'more'")
    with port_taken_from(session):
        pass
    session.succeed()
    assert pod.rows(COUNT) == [(20001,)]


def test_a_server_whose_port_stays_taken_fails_the_save_at_once_and_tells_what_to_do(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED)
    with port_taken_from(session):
        session.fail("give the database another with pgPort")
    session.again()
    session.succeed()
    assert pod.rows(COUNT) == [(20000,)]


def test_a_session_that_looks_at_no_interrupt_does_not_hold_the_save(pod: DatabasePod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_PATIENCE", 0.5)
    with new_place() as top:
        (top / "coord").mkdir()
        give(top / "coord")
        destination = Destination("db1", str(top), REPO, message="what came of it", label=LABEL)
        options = library_options(top, pod, source=Source("db1", "", REPO, LABEL), destination=destination)
        battery = PostgresBattery(options, lambda *_: None)
        try:
            battery.ready()
            with closing(psycopg.connect((top / "coord" / "dsn").read_text(), autocommit=True)) as connection:
                connection.execute("INSERT INTO stock SELECT 0, 'more'")
                connection.execute("BEGIN")
                connection.execute("LOCK TABLE stock")
                os.kill(connection.info.backend_pid, signal.SIGSTOP)
                [told] = battery.save()["destinations"]
        finally:
            battery.close()
    assert told["recovered"] == 1
    assert pod.rows(COUNT) == [(20001,)]


def test_a_server_whose_battery_was_killed_while_it_recovered_does_not_keep_the_next_life_waiting(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED)
    pod.query("INSERT INTO stock SELECT n, 'more' FROM generate_series(1, 30000) AS n")
    server = pod.postmaster()
    with closing(pod.connect()) as connection:
        os.kill(connection.info.backend_pid, signal.SIGKILL)
    until(lambda: any(b"startup" in title_of(pid) for pid in children_of(server)), "the server recovers", pod)
    session.battery.kill()
    session.battery = pod.serve(**RESTORED)
    until(lambda: (record := pod.record("postgres-db1")) is not None and record.life == 2, "another life begins", pod)
    pod.hear_state("ready", "postgres-db1")
    assert gone(server)
    session.succeed()
    assert pod.rows(COUNT) == [(50000,)]


def test_a_bundle_tells_that_a_process_of_the_server_was_killed(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED)
    with closing(pod.connect()) as connection:
        os.kill(connection.info.backend_pid, signal.SIGKILL)
    session.succeed()
    record = pod.record("postgres-db1")
    assert record is not None
    assert record.payload is not None
    assert record.payload["destinations"][0]["recovered"] == 1
    assert pod.rows("SELECT (SELECT count(*) FROM stock), (SELECT count(*) FROM scratch)") == [(20000, 0)]


def test_a_stale_pid_file_whose_pid_lives_is_no_server(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED)
    pod.query("INSERT INTO stock SELECT 0, 'more'")
    server = pod.postmaster()
    session.battery.kill()
    with suppress(ProcessLookupError):
        os.kill(server, signal.SIGKILL)
    until(lambda: gone(server), "the server is gone", pod)
    sleeper = subprocess.Popen(["sleep", "300"], **account(), cwd="/")
    try:
        path = pod.data / "postmaster.pid"
        lines = path.read_text().splitlines() if path.exists() else ["", str(pod.data), "1", str(pod.port), "", "", "", "ready"]
        path.write_text("\n".join([str(sleeper.pid), *lines[1:]]) + "\n")
        session.again()
        session.succeed()
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()
    assert pod.rows(COUNT) == [(20001,)]


# --- the disk --------------------------------------------------------------------------------------------------------


def limit_files(pid: int, size: int) -> None:
    """Have no file that a process writes become larger: for whoever writes, as good as a full disk."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_volume_with_too_little_room_is_told_before_anything_is_restored(
    pod: DatabasePod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(battery_module, "_free", lambda _: 80 << 20)
    with new_place() as top:
        battery = PostgresBattery(library_options(top, pod, source=Source("db1", "", REPO, LABEL)), lambda *_: None)
        with pytest.raises(Unreachable, match=r"80 MiB free, and \d+ MiB are needed; make it larger"):
            battery.ready()
        battery.close()
        assert not (top / "pg" / "db1").exists()


def test_a_disk_that_fills_up_during_a_restore_is_told_and_the_next_life_restores(pod: DatabasePod) -> None:
    battery = pod.serve(how={"prepare": lambda: limit_files(0, 4 << 20)}, **RESTORED)
    wrapper = pod.application()
    assert (battery.wait(), wrapper.wait()) == (errors.IO, errors.UNAVAILABLE), battery.err + wrapper.err
    assert "File too large" in wrapper.err
    assert not pod.data.exists()
    battery, wrapper = pod.serve(**RESTORED), pod.application("--rejoin-timeout", "60")
    assert pod.finish(wrapper, battery) == (0, 0), battery.err + wrapper.err
    assert pod.rows(COUNT) == [(20000,)]


@contextmanager
def little_room(pod: DatabasePod, size: int) -> Iterator[None]:
    """Have the volume of the databases be small where one may be mounted; else it is for `limit_files` to do."""
    where = pod.folder / "pg"
    where.mkdir(mode=0o711)
    if os.getuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "none", where], check=True)
    try:
        yield
    finally:
        if os.getuid() == 0:
            pod.close()
            subprocess.run(["umount", "-l", where], check=True)


def fill(pod: DatabasePod, rows: int = 20000) -> int:
    """Insert rows until no more will go in; return how many were acknowledged."""
    inserted = 0
    with suppress(psycopg.Error), closing(pod.connect()) as connection:
        while True:
            connection.execute("INSERT INTO stock SELECT n, repeat(md5(n::text), 4) FROM generate_series(1, %s) AS n", [rows])
            inserted += rows
    return inserted


def test_a_disk_that_is_filled_while_the_application_runs_costs_no_acknowledged_row(pod: DatabasePod) -> None:
    with little_room(pod, 300 << 20):
        session = Session(pod, **RESTORED, settings={"max_wal_size": "64MB", "min_wal_size": "32MB"})
        if os.getuid():
            limit_files(pod.postmaster(), 24 << 20)
        inserted = fill(pod)
        assert inserted
        session.succeed()
        assert pod.rows(COUNT) == [(20000 + inserted,)]


def test_a_store_that_is_full_is_told_and_the_next_life_archives(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED)
    pod.query("INSERT INTO stock SELECT n, md5(random()::text) FROM generate_series(1, 20000) AS n")
    limit_files(session.battery.pid, 64 << 10)
    session.fail("File too large")
    session.again()
    session.succeed()
    assert pod.rows(COUNT) == [(40000,)]


@pytest.mark.parametrize("freeze", ["auto", "always"])
def test_a_page_that_is_not_what_was_written_is_in_no_bundle(freeze: str, pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED, freeze=freeze)
    [(path,)] = pod.query("SELECT pg_relation_filepath('stock')")
    with open(pod.data / path, "r+b") as file:
        file.seek(3 * 8192 + 5000)
        file.write(b"rot!")
    session.fail("3 of ")
    assert Path(path).name in session.wrapper.err
    assert pod.data.exists()


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["flipped", "removed"])
def test_a_source_that_is_damaged_in_the_store_is_refused_and_named(harm: str, pod: DatabasePod) -> None:
    largest = max((pod.folder / "store" / "objects").glob("*/*"), key=lambda path: path.stat().st_size)
    if harm == "removed":
        largest.unlink()
    else:
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 0xFF
        largest.chmod(0o600)
        largest.write_bytes(data)
    refused(pod, errors.DATA, largest.name, REPO, **RESTORED)


def test_a_source_of_another_major_is_refused_and_both_are_named(pod: DatabasePod) -> None:
    changed(pod, lambda data: (data / "PG_VERSION").write_text("11\n"))
    refused(pod, errors.CONFIG, "is of PostgreSQL 11", "there is 15.", **RESTORED)


def test_a_source_without_the_file_that_says_what_it_is_is_refused(pod: DatabasePod) -> None:
    changed(pod, lambda data: (data / "global" / "pg_control").unlink())
    refused(pod, errors.DATA, "pg_control", **RESTORED)


def test_a_source_with_links_is_refused(pod: DatabasePod) -> None:
    changed(pod, lambda data: (data / "pg_tblspc" / "16999").symlink_to("/etc"))
    refused(pod, errors.DATA, "holds links ('pg_tblspc/16999')", **RESTORED)


def test_a_source_that_says_it_is_a_standby_or_runs_is_restored_as_neither(pod: DatabasePod) -> None:
    def change(data: Path) -> None:
        for name in ("standby.signal", "recovery.signal"):
            (data / name).touch()
        (data / "postmaster.pid").write_text(f"{os.getppid()}\n{data}\n1\n5432\n/tmp\nlocalhost\n0 0\nready\n")

    changed(pod, change)
    session = Session(pod, **RESTORED)
    assert pod.query("SELECT pg_is_in_recovery()") == [(False,)]
    session.succeed()
    assert not {"standby.signal", "recovery.signal", "postmaster.pid"} & {e.path for e in pod.store.manifest(pod.bundle())}


def test_what_a_sources_configuration_would_have_done_is_not_done(pod: DatabasePod) -> None:
    mark, port = pod.folder / "mark", free_port()
    dangerous = [
        "listen_addresses = '0.0.0.0'",
        f"port = {port}",
        "shared_preload_libraries = 'evil'",
        "session_preload_libraries = 'evil'",
        "local_preload_libraries = 'evil'",
        "archive_mode = on",
        f"archive_command = 'touch {mark}'",
        f"restore_command = 'touch {mark}'",
        f"archive_cleanup_command = 'touch {mark}'",
        f"recovery_end_command = 'touch {mark}'",
        f"ssl_passphrase_command = 'touch {mark}'",
        "ssl = on",
        "fsync = off",
        "full_page_writes = off",
        "unix_socket_directories = '/tmp'",
        "superuser_reserved_connections = 0",
        "log_statement = 'all'",
        f"hba_file = '{pod.folder}/hba'",
    ]

    def change(data: Path) -> None:
        for name in ("postgresql.conf", "postgresql.auto.conf"):
            (data / name).write_text("\n".join(dangerous) + "\n")
        (data / "pg_hba.conf").write_text("local all all trust\nhost all all 0.0.0.0/0 trust\n")

    changed(pod, change)
    session = Session(pod, **RESTORED)
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        pod.connect(passfile="/nonexistent")
    assert listened(pod.port) == {"0100007F"}
    assert listened(port) == set()
    assert pod.query("SELECT name FROM pg_settings WHERE setting LIKE '%evil%' OR setting LIKE '%touch%'") == []
    assert pod.query("SELECT current_setting('fsync'), current_setting('full_page_writes')") == [("on", "on")]
    pod.query("INSERT INTO stock SELECT 0, 'more'")
    session.succeed()
    assert not mark.exists()
    assert "SCRAM-SHA-256$" not in session.said


def listened(port: int) -> set[str]:
    """Return the addresses, as the kernel writes them, on which somebody listens to a port."""
    lines = [*Path("/proc/net/tcp").read_text().splitlines()[1:], *Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    found = [line.split()[1].split(":") for line in lines if line.split()[3] == "0A"]
    return {address for address, number in found if int(number, 16) == port}


def test_what_a_sources_roles_and_databases_have_set_to_load_libraries_is_taken_away(pod: DatabasePod) -> None:
    pod.next("made").run(
        "ALTER ROLE dbuser SET session_preload_libraries = 'evil'",
        "ALTER ROLE ALL SET local_preload_libraries = 'evil'",
        "ALTER DATABASE postgres SET session_preload_libraries = 'evil'",
        'CREATE ROLE "o\'brien $(touch x)"',
        "ALTER ROLE \"o'brien $(touch x)\" IN DATABASE postgres SET dynamic_library_path = '/tmp'",
        superuser=True,
    )
    session = Session(pod, **RESTORED)
    assert pod.query("SELECT count(*) FROM pg_db_role_setting") == [(0,)]
    assert session.battery.err.count("is taken away") == 4
    session.succeed()


def test_an_owner_that_a_source_lets_become_a_superuser_is_refused(pod: DatabasePod) -> None:
    pod.next("made").run(
        "CREATE ROLE boss SUPERUSER", "CREATE ROLE between", "GRANT boss TO between", "GRANT between TO dbuser", superuser=True
    )
    refused(pod, errors.CONFIG, "'dbuser'", "'boss'", "superuser: true", **RESTORED)


# --- what is configured ----------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_told_with_what_to_do(pod: DatabasePod) -> None:
    with socket.create_server(("127.0.0.1", pod.port)):
        refused(pod, errors.CONFIG, f"port {pod.port}", "pgPort")


HOSTILE = ("host=1.2.3.4 user=x", "my db", "o'clock", 'say "hi" $(touch pwned)', "-d", "ümlaut \\ ☃%s{}")


def test_databases_may_be_called_anything(pod: DatabasePod) -> None:
    script = pod.file("make a 'table'; $(touch pwned).sql")
    script.write_text("CREATE TABLE made AS SELECT current_database();\nGRANT SELECT ON made TO PUBLIC;\n")
    session = Session(pod, databases=HOSTILE, initScripts=[str(script)], owner='o\'wner "of" $(touch pwned)')
    assert pod.query("SELECT * FROM made") == [(HOSTILE[0],)]
    for name in HOSTILE:
        pod.query("CREATE TABLE named AS SELECT current_database()", dbname=name)
    session.succeed()
    found = pod.rows("SELECT datname FROM pg_database WHERE datname !~ '^(template|postgres)'")
    assert {name for (name,) in found} == set(HOSTILE)
    assert_nothing_ran(pod)


def assert_nothing_ran(pod: DatabasePod) -> None:
    places = [pod.folder, Path("/"), Path("/tmp"), Path.cwd()]
    assert not [place for place in places if (place / "pwned").exists()]
    assert not list(pod.folder.rglob("pwned"))


PWN = "x$(touch pwned)`touch pwned`;touch pwned #"


def test_no_parameter_is_evaluated(pod: DatabasePod) -> None:
    secret = pod.file(f"secret {PWN}")
    secret.write_text(PWN + "\n")
    session = Session(
        pod,
        how={"cwd": pod.folder},
        **RESTORED,
        owner=PWN,
        destMessage=PWN,
        destBundleID=str(pod.file(f"id {PWN}")),
        dataDir=f"{pod.folder}/p$(touch pwned)",
        databases=[PWN],
        settings={"cluster_name": PWN},
        passwordFile=str(secret),
    )
    assert pod.query("SELECT current_user, current_database(), current_setting('cluster_name')") == [(PWN, PWN, PWN)]
    session.succeed()
    assert pod.bundle().message == PWN
    assert pod.file(f"id {PWN}").read_text().strip() == pod.bundle().id
    assert_nothing_ran(pod)


def test_no_variable_is_evaluated(pod: DatabasePod) -> None:
    variables = {
        "SIDECAR_DATABASE_NAME": "db1",
        "SIDECAR_DATABASE_OWNER": PWN,
        "SIDECAR_DATABASE_PGPORT": str(pod.port),
        "SIDECAR_DATABASE_DATADIR": f"{pod.folder}/p$(touch pwned)",
        "SIDECAR_DATABASE_DESTREPO": REPO,
        "SIDECAR_DATABASE_DESTMESSAGE": PWN,
        "SIDECAR_DATABASE_DESTBUNDLEID": str(pod.file(f"id {PWN}")),
    }
    battery = pod.start(BIN / "wrap_datamon_pg", "-c", pod.coord, env={**pod.environment, **variables}, cwd=pod.folder)
    wrapper = pod.application()
    pod.started_up()
    assert pod.query("SELECT current_user") == [(PWN,)]
    assert pod.finish(wrapper, battery) == (0, 0), battery.err
    assert_nothing_ran(pod)


def test_what_would_be_evaluated_and_means_nothing_is_refused(pod: DatabasePod) -> None:
    keys = ("srcRepo", "srcLabel", "srcBundle", "destRepo", "destLabel", "locale", "pgVersion", "archive", "upgrade", "freeze")
    values: dict[str, Any] = dict.fromkeys(keys, "$(touch pwned)")
    battery = pod.serve(how={"cwd": pod.folder}, **values)
    assert battery.wait() == errors.DATA
    for key in keys:
        assert key in battery.err
    assert_nothing_ran(pod)


def test_a_second_battery_of_the_same_name_is_refused_and_the_first_goes_on(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED)
    second = pod.serve(**RESTORED, pgPort=free_port(), dataDir=f"{pod.folder}/other")
    assert second.wait() == errors.CONFIG, second.err
    assert "postgres-db1" in second.err
    assert pod.query(COUNT) == [(20000,)]
    session.succeed()


def test_a_second_battery_with_the_same_directory_is_refused_and_the_first_goes_on(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED)
    with pod.next("other") as other:
        refused(other, errors.CONFIG, "belongs to another battery", "dataDir", dataDir=f"{pod.folder}/pg", pgPort=free_port())
    assert pod.query(COUNT) == [(20000,)]
    session.succeed()


# --- clients ---------------------------------------------------------------------------------------------------------


def test_clients_that_will_not_disconnect_are_disconnected(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED)
    over = threading.Event()

    def come_back() -> None:
        while not over.is_set():
            with suppress(psycopg.Error), closing(pod.connect()) as connection:
                connection.execute("SELECT pg_sleep(60)")

    threads = [threading.Thread(target=come_back, daemon=True) for _ in range(3)]
    with ExitStack() as stack:
        idle = [stack.enter_context(closing(pod.connect())) for _ in range(30)]
        idle[0].execute("BEGIN")
        idle[0].execute("INSERT INTO stock SELECT -1, 'never committed'")
        idle[1].execute("BEGIN")
        idle[1].execute("LOCK TABLE scratch IN ACCESS EXCLUSIVE MODE")
        query = "SELECT count(*) FROM generate_series(1, 2000000000)"
        threads.append(threading.Thread(target=_ignored, args=(idle[2], query), daemon=True))
        for thread in threads:
            thread.start()
        session.succeed()
        over.set()
    for thread in threads:
        thread.join(HANG)
    assert pod.rows("SELECT count(*), min(n) FROM stock") == [(20000, 1)]


def test_superusers_that_take_every_connection_do_not_keep_the_database_from_being_archived(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED, superuser=True, settings={"max_connections": "8", "max_wal_senders": "0"})
    with ExitStack() as stack:
        with suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(closing(pod.connect()))
        session.succeed()
    assert pod.rows(COUNT) == [(20000,)]


def test_a_superuser_that_takes_the_batterys_password_does_not_keep_the_database_from_being_archived(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED, superuser=True)
    pod.query("ALTER ROLE sidecar PASSWORD 'another' NOSUPERUSER")
    session.succeed()
    assert pod.rows(COUNT) == [(20000,)]


def test_an_owner_may_drop_the_database_that_everybody_has(pod: DatabasePod) -> None:
    session = Session(pod, databases=["shop"])
    pod.query("DROP DATABASE postgres")
    pod.query("CREATE TABLE stock AS SELECT 1")
    session.succeed()
    assert pod.rows("SELECT count(*) FROM pg_database WHERE datname = 'postgres'") == [(0,)]


def test_a_transaction_that_was_prepared_and_holds_locks_is_archived_as_it_is(pod: DatabasePod) -> None:
    settings = {"max_prepared_transactions": "5"}
    session = Session(pod, **RESTORED, settings=settings, freeze="always")
    with closing(pod.connect()) as connection:
        for each in ("BEGIN", "ALTER TABLE stock ADD COLUMN more int", "PREPARE TRANSACTION 'it''s mine'"):
            connection.execute(each.encode())
    session.succeed()
    with pod.next("later") as later:
        session = Session(later, **RESTORED, settings=settings)
        later.query("COMMIT PREPARED 'it''s mine'")
        assert later.query("SELECT count(more) FROM stock") == [(0,)]
        session.succeed()


def test_a_checkpoint_that_is_slow_is_waited_for(pod: DatabasePod) -> None:
    session = Session(pod, **RESTORED)
    checkpointer = checkpointer_of(pod)
    os.kill(checkpointer, signal.SIGSTOP)
    pod.release()
    server = pod.postmaster()
    until(lambda: any(b"CHECKPOINT" in title_of(pid) for pid in children_of(server)), "a checkpoint is under way", pod)
    assert session.wrapper.running
    os.kill(checkpointer, signal.SIGCONT)
    session.succeed()


def test_a_checkpoint_that_does_not_end_in_time_publishes_nothing_and_the_next_life_archives(pod: DatabasePod) -> None:
    session = Session(pod, "--save-timeout", "1", **RESTORED)
    pod.query("INSERT INTO stock SELECT 0, 'more'")
    os.kill(checkpointer_of(pod), signal.SIGSTOP)
    session.fail("was not done saving within 1 s")
    session.arguments = ()
    session.again()
    session.succeed()
    assert pod.rows(COUNT) == [(20001,)]


# --- who may do what -------------------------------------------------------------------------------------------------


def test_clients_need_the_password_over_the_network_and_over_the_socket(pod: DatabasePod) -> None:
    Session(pod, **RESTORED)
    socket_of = {"127.0.0.1": "127.0.0.1", "socket": str(pod.coord / "db1")}
    for host in socket_of.values():
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            pod.connect(host=host, passfile="/nonexistent")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            pod.connect(host=host, password="guessed")
        assert pod.query(COUNT, host=host) == [(20000,)]


def test_the_owner_cannot_run_programs_read_files_or_make_itself_more(pod: DatabasePod) -> None:
    Session(pod)
    assert pod.query("SELECT rolsuper, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = 'dbuser'") == [
        (False, False, False, False)
    ]
    for statement in (
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "COPY (SELECT 1) TO '/tmp/x'",
        "SELECT pg_read_file('/etc/passwd')",
        "ALTER ROLE dbuser SUPERUSER",
        "CREATE ROLE more SUPERUSER",
        "GRANT pg_execute_server_program TO dbuser",
        "SET ROLE sidecar",
        "ALTER SYSTEM SET archive_command = 'id'",
        "LOAD '/tmp/x.so'",
        "SELECT * FROM pg_authid",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            pod.query(statement)


def test_the_batterys_own_role_cannot_come_over_the_network(pod: DatabasePod) -> None:
    Session(pod)
    secret = (pod.folder / "pg" / "db1.sidecar" / "secret").read_text()
    with pytest.raises(psycopg.OperationalError, match="rejects connection"):
        pod.connect(user="sidecar", password=secret)
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        pod.connect(user="sidecar", host=str(pod.coord / "db1"))


def test_replication_is_for_nobody(pod: DatabasePod) -> None:
    Session(pod)
    with pytest.raises(psycopg.OperationalError, match="replication connection"):
        pod.connect(replication="true")


def test_no_secret_is_in_an_argument_a_log_a_record_or_an_event(pod: DatabasePod) -> None:
    given = pod.file("password")
    given.write_text("correct horse battery\n")
    script = pod.file("script.sql")
    script.write_text("SELECT pg_sleep(0.05);\n")
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for pid in processes():
                with suppress(OSError):
                    seen.add(Path(f"/proc/{pid}/cmdline").read_bytes())
            over.wait(0.01)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    session = Session(pod, passwordFile=str(given), initScripts=[str(script)], settings={"log_statement": "all"})
    secrets = {"correct horse battery", (pod.folder / "pg" / "db1.sidecar" / "secret").read_text()}
    passfile = pod.coord / "db1" / "pgpass"
    assert passfile.stat().st_mode & 0o777 == 0o600
    assert "correct horse battery" in passfile.read_text()
    status = subprocess.run([BIN / "sidecar", "status", "-c", pod.coord, "--json"], capture_output=True, text=True)
    session.succeed()
    over.set()
    looking.join(HANG)
    told = [each.read_text() for each in pod.coord.rglob("*") if each.is_file() and each.name != "pgpass"]
    told += [status.stdout, status.stderr, session.said, *(each.decode(errors="replace") for each in seen)]
    for secret in (*secrets, "SCRAM-SHA-256$"):
        assert len(secret) > 10
        assert not [text for text in told if secret in text]
    for path in (pod.folder / "pg").rglob("*secret*"):
        raise AssertionError(f"{path} is left")
