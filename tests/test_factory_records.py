"""The records of builds and pushes, kept in a folder and on a PostgreSQL server, and what is of one of these alone."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest
import servers
from factory_contract import APP, HERE, OTHER, Place, RecordsContract, killed, told_by
from processes import until
from servers import Cluster

from sidecar import process
from sidecar.errors import ConfigurationError, SidecarError, Unreachable
from sidecar.factory.records import Records, new_worker, open_records, state_of
from sidecar.factory.records_postgres import MIGRATIONS as TABLES
from sidecar.factory.records_postgres import PostgresRecords
from sidecar.factory.records_sqlite import FOLDER, SqliteRecords
from sidecar.once import Ledger
from sidecar.state import MIGRATIONS, State

SECRET = "kEy:/@ %41?#"
PART = SECRET[:3]


# --- in a folder -------------------------------------------------------------------------------------------------------


class Folder(Place):
    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> Records:
        return open_records(str(self.path))

    def empty(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class TestInAFolder(RecordsContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Folder:
        return Folder(tmp_path / "state")


def test_a_store_of_before_there_were_builds_keeps_its_runs(tmp_path: Path) -> None:
    folder = str(tmp_path / "state")
    old = Ledger.__new__(Ledger)
    old.state = State(folder, MIGRATIONS[:1])
    with old:
        assert old.run_once("n", ["echo", "said"], instance="i").stdout == b"said\n"
    with open_records(folder) as records, Ledger(folder) as ledger:
        assert records.ask(APP, 1).status == "PENDING"
        assert ledger.get("i", "n").exit.code == 0
        assert ledger.run_once("n", ["echo", "said"], instance="i").stdout == b"said\n"


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    State(str(tmp_path / "state"), (*MIGRATIONS, ("CREATE TABLE later (x)",))).close()
    with pytest.raises(ConfigurationError, match="a newer one wrote it"):
        open_records(str(tmp_path / "state"))


def test_a_log_fills_a_disk_only_so_far_that_the_end_can_be_recorded(tiny: Path) -> None:
    worker = new_worker()
    with SqliteRecords(str(tiny / "state")) as records, records.lease(worker):
        work = records.ask(APP, 1)
        records.claim(worker, 2, HERE)
        assert times(lambda _: records.say(work.id, bytes(200_000))) >= 5
        left = os.statvfs(tiny)
        assert left.f_bavail * left.f_frsize > 1 << 20
        assert records.progress(work.id, 50, "STEP 1/2")
        assert records.finish(work.id, "d", "r", 3)
    with SqliteRecords(str(tiny / "state")) as records:
        assert records.get(work.id).status == "COMPLETE"


def test_on_a_full_disk_nothing_is_half_recorded_and_what_was_can_be_read(tiny: Path) -> None:
    with SqliteRecords(str(tiny / "state")) as records:
        first = records.ask(APP, 1)
        fill(tiny)
        # Room that the store had already may do for some.
        asked = times(lambda number: records.ask(replace(OTHER, image="x" * 1000, content=str(number)), 2))
        assert len(records.find(limit=10**6)) == asked + 1
        assert records.get(first.id) == first
        (tiny / "fill").unlink()
        assert records.ask(OTHER, 3).status == "PENDING"
    with SqliteRecords(str(tiny / "state")) as records:
        assert len(records.find(limit=10**6)) == asked + 2


def times(call: Callable[[int], object]) -> int:
    """Return how often something can be called until it is Unreachable."""
    for number in count():
        try:
            call(number)
        except Unreachable as error:
            assert "disk" in str(error), error  # noqa: PT017
            return number
    raise AssertionError


def fill(where: Path) -> None:
    """Leave no room on a disk, or in a file."""
    with (where / "fill").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_leases_of_the_dead_are_removed_by_the_next_who_takes_one(tmp_path: Path) -> None:
    folder = tmp_path / "state"

    def hold(stay: Callable[[], None]) -> None:
        with open_records(str(folder)) as records, records.lease(new_worker()):
            stay()

    with killed(hold), killed(hold):
        (folder / FOLDER / "slot-1").touch()
        (dead, other) = {path.name for path in (folder / FOLDER).iterdir()} - {"slot-1"}
    with open_records(str(folder)) as records:
        assert not records.alive(dead)
        assert not records.alive(other)
        mine = new_worker()
        with records.lease(mine):
            assert {path.name for path in (folder / FOLDER).iterdir()} == {mine, "slot-1"}
        assert [path.name for path in (folder / FOLDER).iterdir()] == ["slot-1"]


def test_a_lease_that_is_removed_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, worker = tmp_path / "state" / FOLDER, new_worker()
    flock = fcntl.flock
    removed: list[Path] = []

    def remove_first(fd: int, how: int) -> None:
        if not removed:
            removed.append(folder / worker)
            removed[0].unlink()
        flock(fd, how)

    with open_records(str(tmp_path / "state")) as records:
        monkeypatch.setattr(fcntl, "flock", remove_first)
        with records.lease(worker):
            assert removed
            assert records.alive(worker)


def test_twenty_that_take_leases_at_once_are_all_alive(tmp_path: Path) -> None:
    folder = str(tmp_path / "state")
    open_records(folder).close()

    def take(tell: int) -> None:
        with open_records(folder) as records:
            for _ in range(20):
                worker = new_worker()
                with records.lease(worker):
                    assert records.alive(worker)
        os.write(tell, b"!")

    assert told_by(20, take) == [b"!"] * 20


def test_what_a_killed_builder_forked_and_has_its_lock_does_not_keep_it_alive(tmp_path: Path) -> None:
    folder = str(tmp_path / "state")
    hear, tell = os.pipe()

    def build(stay: Callable[[], None]) -> None:
        worker = new_worker()
        with open_records(folder) as records, records.lease(worker):
            records.claim(worker, 2, HERE)
            child = os.fork()
            if not child:
                signal.pause()
            os.write(tell, b"%d" % child)
            stay()

    with open_records(folder) as records:
        records.ask(APP, 1)
    with killed(build):
        child = int(os.read(hear, 20))
    try:
        assert process.identity(child) is not None
        with open_records(folder) as records:
            assert len(records.bury(3)) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(hear)
        os.close(tell)


def test_a_link_in_the_place_of_leases_is_not_followed(tmp_path: Path) -> None:
    with open_records(str(tmp_path / "state")) as records:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "state" / FOLDER).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(Unreachable), records.lease(new_worker()):
            pass
        assert list((tmp_path / "elsewhere").iterdir()) == []


# --- on a server -------------------------------------------------------------------------------------------------------

numbers = count(1)


class Database(Place):
    at_once = False  # the server hears of it

    def __init__(self, cluster: Cluster, user: str = "postgres") -> None:
        self.cluster = cluster
        self.name = f"records{next(numbers)}"
        cluster.query(f"CREATE DATABASE {self.name}")
        self.url = f"postgresql://{user}:{quote(SECRET, safe='')}@/{self.name}?host={quote(str(cluster.socket), safe='')}"

    def open(self) -> Records:
        return open_records(self.url)

    def empty(self) -> None:
        self.cluster.query("DROP SCHEMA IF EXISTS sidecar CASCADE", self.name)

    def query(self, sql: str) -> list[tuple[object, ...]]:
        return self.cluster.query(sql, self.name)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with servers.new_cluster(servers.installation()) as cluster:
        # Whoever is called so needs a password.
        hba = cluster.data / "pg_hba.conf"
        hba.write_text("local all guarded scram-sha-256\n" + hba.read_text())
        with cluster.running():
            cluster.query("CREATE ROLE guarded LOGIN SUPERUSER PASSWORD 'right'")
            yield cluster


@pytest.fixture
def database(cluster: Cluster) -> Database:
    return Database(cluster)


class TestOnAServer(RecordsContract):
    @pytest.fixture
    def place(self, database: Database) -> Database:
        return database


def test_a_server_that_is_away_is_unreachable_and_back_all_is_as_it_was(cluster: Cluster, database: Database) -> None:
    with database.open() as records:
        work = records.ask(APP, 1)
        cluster.stop()
        try:
            for call in (records.find, lambda: records.ask(OTHER, 2), lambda: records.bury(3), database.open):
                with pytest.raises(Unreachable, match=f"postgresql://.*{database.name}") as told:
                    call()
                assert told.value.status == 74
        finally:
            cluster.start()
        assert records.find() == [work]
        assert records.ask(OTHER, 4).status == "PENDING"


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGQUIT], ids=["in order", "at once"])
def test_a_server_that_was_started_again_is_not_noticed_by_who_said_nothing_meanwhile(
    cluster: Cluster, database: Database, way: signal.Signals
) -> None:
    with database.open() as reader, database.open() as writer:
        cluster.stop(way)
        cluster.start()
        assert writer.ask(APP, 1).status == "PENDING"
        assert len(reader.find()) == 1


def test_a_builder_outlives_a_server_that_is_started_again(cluster: Cluster, database: Database) -> None:
    worker = new_worker()
    with database.open() as records, records.lease(worker), PostgresRecords(database.url, grace=0) as strict:
        work = records.ask(APP, 1)
        records.claim(worker, 2, HERE)
        cluster.stop(signal.SIGQUIT)
        cluster.start()
        assert database.open().bury(3) == []  # within the grace
        until(lambda: strict.alive(worker), "the lease to be taken again")
        assert strict.bury(4) == []
        assert records.finish(work.id, "d", "r", 5)
    with database.open() as records:
        assert not records.alive(worker)
        assert database.query("SELECT * FROM sidecar.lease") == []


def test_a_builder_that_died_while_the_server_was_away_is_buried_after_the_grace(cluster: Cluster, database: Database) -> None:
    with database.open() as records:
        records.ask(APP, 1)

    def build(stay: Callable[[], None]) -> None:
        worker = new_worker()
        with database.open() as records, records.lease(worker):
            records.claim(worker, 2, HERE)
            stay()

    with killed(build):
        cluster.stop()
    cluster.start()
    with database.open() as records, PostgresRecords(database.url, grace=0) as later:
        assert records.bury(3) == []
        assert [work.status for work in later.bury(4)] == ["FAILED"]


def test_a_lease_whose_session_was_ended_is_taken_again(database: Database) -> None:
    worker = new_worker()
    holder = "FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND objid <> 0"
    with database.open() as records, records.lease(worker):
        ((first,),) = database.query(f"SELECT pid {holder}")
        database.query(f"SELECT pg_terminate_backend({first})")
        until(lambda: database.query(f"SELECT pid {holder}") not in ([], [(first,)]), "another session to hold it")
        assert records.alive(worker)


def test_records_of_a_newer_version_on_a_server_are_refused_and_left_as_they_are(database: Database) -> None:
    database.open().close()
    database.query(f"INSERT INTO sidecar.version VALUES ({len(TABLES) + 1})")
    with pytest.raises(ConfigurationError, match="a newer one wrote them") as told:
        database.open()
    assert SECRET not in str(told.value)
    assert database.query("SELECT count(*) FROM sidecar.version") == [(2,)]


def test_a_schema_that_could_not_be_made_wholly_is_not_there(database: Database) -> None:
    database.query("CREATE SCHEMA sidecar")
    database.query("CREATE TABLE sidecar.lease (another text)")  # the last that is made
    with pytest.raises(Unreachable, match="already exists"):
        database.open()
    assert database.query("SELECT tablename FROM pg_tables WHERE schemaname = 'sidecar'") == [("lease",)]
    database.query("DROP TABLE sidecar.lease")
    with database.open() as records:
        assert records.ask(APP, 1).status == "PENDING"


def test_tables_of_others_in_the_same_database_are_left_alone(database: Database) -> None:
    database.query("CREATE TABLE work (theirs text)")
    with database.open() as records:
        records.ask(APP, 1)
    assert database.query("SELECT * FROM public.work") == []


def test_who_may_make_a_schema_needs_no_more_rights(database: Database) -> None:
    database.query(f"CREATE ROLE owner_of_{database.name} LOGIN")
    database.query(f"ALTER DATABASE {database.name} OWNER TO owner_of_{database.name}")
    worker = new_worker()
    with open_records(database.url.replace("postgres:", f"owner_of_{database.name}:", 1)) as records, records.lease(worker):
        work = records.ask(APP, 1)
        assert records.claim(worker, 2, HERE) is not None
        assert records.alive(worker)
        assert records.finish(work.id, "d", "r", 3)


# --- passwords, and where records are ----------------------------------------------------------------------------------


def told_of(call: Callable[[], object]) -> str:
    """Return all that is told of an error: by itself, by a traceback."""
    import traceback

    with pytest.raises(SidecarError) as told:
        call()
    return f"{told.value} {told.value!r} " + "".join(traceback.format_exception(told.value))


def test_a_password_is_in_no_error_and_in_nothing_that_is_shown(cluster: Cluster) -> None:
    database = Database(cluster)
    with database.open() as records:
        assert repr(records) == f"PostgresRecords('postgresql://{cluster.socket}/{database.name}')"
        shown = [repr(records), str(records), repr(vars(records)["_server"])]
        database.query("DROP SCHEMA sidecar CASCADE")
        shown.append(told_of(records.find))
    guarded = database.url.replace("postgres:", "guarded:", 1)
    shown.append(told_of(lambda: open_records(guarded)))
    assert "password authentication failed" in shown[-1]
    shown.append(told_of(lambda: open_records(database.url.replace(database.name, "nowhere"))))
    cluster.stop()
    try:
        shown.append(told_of(database.open))
    finally:
        cluster.start()
    for text in shown:
        assert SECRET not in text
        assert quote(SECRET, safe="") not in text
        assert PART not in text


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:kEy/more@host/db", "postgresql://user:12/kEy@host/db", "postgresql://us@er:kEy@host/db",
        "postgresql://user:kEy%zz@host/db", "postgresql://user:kEy@host:port/db", "postgresql://user:kEy@ho st:1x/db",
        "postgresql://", "postgres://user:kEy@host/db?sslmode", "mysql://user:kEy@host/db", "file://kEy",
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_and_not_repeated(url: str) -> None:
    assert PART not in told_of(lambda: open_records(url))
    with pytest.raises(ConfigurationError, match="postgresql://"):
        open_records(url)


@pytest.mark.parametrize("password", ["kEy", "kEy?more", "12?kEy", "[kEy", "kEy%41", "12:kEy"])
def test_a_server_that_there_is_not_is_told_of_without_the_password(password: str) -> None:
    told = told_of(lambda: open_records(f"postgresql://user:{password}@127.0.0.1:1/db"))
    assert "cannot reach postgresql://127.0.0.1:1/db: connection failed" in told
    assert PART not in told


def test_a_message_that_happens_to_hold_the_password_is_not_passed_on(cluster: Cluster) -> None:
    url = f"postgresql://guarded:guarded@/postgres?host={quote(str(cluster.socket), safe='')}"
    assert "refuses" in told_of(lambda: open_records(url))
    assert "guarded" not in told_of(lambda: open_records(url)).partition("Traceback")[0]


def test_records_are_where_it_is_said_else_where_state_is() -> None:
    for url in ("postgresql://h/db", "postgres://h/db"):
        assert state_of({"SIDECAR_STATE": url, "HOME": "/h"}) == url
    assert state_of({"SIDECAR_STATE": "/s"}) == "/s"
    assert state_of({"HOME": "/h"}) == "/h/.local/state/sidecar"
