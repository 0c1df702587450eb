"""Bundles that are dumps: what comes out is what went in, whatever it is called, and what a hostile one says runs nowhere."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import postgres_contents
import pytest
from postgres_contents import digest, made, never, serving, staged, task, who
from servers import installation, installations

from sidecar.batteries.postgres import archive, closed, logical, programs, sessions
from sidecar.batteries.postgres.archive import Described
from sidecar.batteries.postgres.installations import Installation
from sidecar.batteries.postgres.postmaster import read_control
from sidecar.batteries.postgres.stage import Stage
from sidecar.errors import ConfigurationError, Corrupt, PeerFailed
from sidecar.parameters.fuse import Destination
from sidecar.store import Bundle, Store

DEBIAN = installation().major
templates = postgres_contents.templates
DESTINATION = Destination("db1", "", "dumps", "a dump", "latest")


def dump(stage: Stage, server: closed.Closed, installed: list[Installation] | None = None) -> None:
    names = sessions.databases(server.connection)
    record = sessions.facts(server.connect, server.server.installation.major, names)
    logical.dump(task(stage), server.server, server.connect, installed or installations(), record)


def keep(stage: Stage, store: Store) -> Bundle:
    return logical.keep(
        stage, store, DESTINATION, "latest", contributor="", base=None, progress=lambda *told: None, cancelled=never
    )


def load(stage: Stage, store: Store, bundle: Bundle, installed: Installation) -> None:
    described = archive.describe(store, bundle)
    logical.load(task(stage), store, bundle, described, installed)


@contextmanager
def dumped(data: Path, major: int) -> Iterator[Stage]:
    """Yield the directory of a database whose cluster was dumped."""
    with staged(data) as stage:
        with serving(stage, installation(major)) as server:
            dump(stage, server)
        yield stage


def saved(stage: Stage, store: Store) -> Bundle:
    """Keep what lies in the directory of a dump, with whatever was made of it."""
    return store.save(logical.folder_of(stage), "dumps")


@pytest.fixture(scope="module")
def small() -> Iterator[Path]:
    """The dump of a small cluster."""
    with made(installation(), "CREATE TABLE t AS SELECT 1 AS n", "CREATE ROLE somebody") as data, dumped(data, DEBIAN) as stage:
        yield Path(logical.folder_of(stage))


# --- what is in it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [(DEBIAN, DEBIAN), pytest.param(12, 18, marks=pytest.mark.long)])
def test_what_is_loaded_is_what_was_dumped(old: int, new: int, store: Store) -> None:
    with made(installation(old)) as data, staged(data) as source, staged() as target:
        with serving(source, installation(old)) as server:
            before = digest(server)
            dump(source, server)
            assert digest(server) == before
        bundle = keep(source, store)
        load(target, store, bundle, installation(new))
        control = read_control(target.partial)
        assert (control.is_clean, control.checksums) == (True, True)
        assert not {"scratch", "pgpass"} & set(os.listdir(target.home))
        with serving(target, installation(new)) as server:
            assert digest(server) == before
            assert not os.path.lexists("/tmp/pwned")
            analyzed = server.connection.execute("SELECT count(*) FROM pg_stats WHERE tablename = 'accounts'").fetchone()
            assert analyzed == (4,)


def test_a_bundle_says_what_it_holds_and_which_version_reads_it(small: Path, store: Store) -> None:
    described = archive.describe(store, store.save(small, "dumps"))
    assert (described.kind, described.major, described.record["bootstrap"]) == ("logical", DEBIAN, "postgres")
    assert list(described.record["databases"]) == ["postgres"]
    assert described.record["databases"]["postgres"]["encoding"] == "UTF8"
    assert sorted(os.listdir(small)) == ["databases", "globals.sql", "sidecar.json"]


def test_a_dump_is_its_owners_alone_and_says_nothing_of_the_batterys_role(small: Path) -> None:
    assert stat.S_IMODE(small.stat().st_mode) == 0o700
    text = (small / "globals.sql").read_text()
    assert "sidecar" not in text
    assert "CREATE ROLE somebody;" in text


def test_a_dump_takes_the_place_of_one_that_a_killed_life_began_and_makes_one_bundle_however_often_it_is_kept(
    store: Store,
) -> None:
    with made(installation(), "CREATE TABLE t AS SELECT 1 AS n") as data, staged(data) as stage:
        folder = Path(logical.folder_of(stage))
        (folder / "databases" / "7").mkdir(parents=True)
        with serving(stage, installation()) as server:
            dump(stage, server)
        assert os.listdir(folder / "databases") == ["0"]
        assert keep(stage, store) == keep(stage, store)
        logical.forget(stage)
        assert not folder.exists()


@pytest.mark.long
def test_a_role_is_created_once_whichever_superuser_there_is(store: Store) -> None:
    """Grants by the superuser of the source are his in the target, too."""
    roles = "CREATE ROLE a; CREATE ROLE b; GRANT a TO b WITH ADMIN OPTION"
    with made(installation(17), roles) as data, dumped(data, 17) as source, staged() as target:
        load(target, store, saved(source, store), installation(17))
        with serving(target, installation(17)) as server:
            grants = server.connection.execute(
                "SELECT roleid::regrole::text, grantor::regrole::text FROM pg_auth_members"
            ).fetchall()
            assert ("a", "postgres") in grants


def test_passwords_are_in_no_argument_and_their_file_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []

    def look(argv: list[str], *rest: Any, **more: Any) -> list[str]:
        path = rest[1]["PGPASSFILE"]
        told = os.stat(path)
        seen.append((" ".join(argv), stat.S_IMODE(told.st_mode), told.st_uid))
        return programs.run(argv, *rest, **more)

    monkeypatch.setattr(closed, "run", look)
    with made(installation(), "CREATE TABLE t AS SELECT 1 AS n") as data, staged(data) as stage:
        with serving(stage, installation()) as server:
            dump(stage, server)
            assert seen
            assert all(server.server.password not in line and mode == 0o600 for line, mode, _ in seen)
            assert {owner for _, _, owner in seen} == {who().uid}
        assert "pgpass" not in os.listdir(stage.home)


# --- pure --------------------------------------------------------------------------------------------------------------


def test_of_a_script_of_roles_only_the_batterys_lines_and_those_for_psql_are_left_out() -> None:
    text = (
        "\\restrict a8Kx\nSET client_encoding = 'UTF8';\nCREATE ROLE sidecar;\nALTER ROLE sidecar WITH SUPERUSER PASSWORD 'x';\n"
        'CREATE ROLE sidecar2;\nALTER ROLE "sidecar x" WITH LOGIN;\n\\! id\n\\unrestrict a8Kx\n'
    )
    assert logical.without_admin(text) == (
        "SET client_encoding = 'UTF8';\nCREATE ROLE sidecar2;\nALTER ROLE \"sidecar x\" WITH LOGIN;\n\\! id\n"
    )


def test_the_oldest_programs_that_know_a_server_dump_it() -> None:
    def has(self: Installation, name: str) -> bool:
        return not self.bindir.endswith("-server")

    class Known(Installation):
        __slots__ = ()

    Known.has = has  # type: ignore[method-assign]
    known = [Known("12-server", "12.1", 12), Known("14", "14.1", 14), Known("14", "14.2", 14), Known("15", "15.1", 15)]
    assert logical.dumper(known, 12).version == "14.2"
    assert logical.dumper(known, 15).version == "15.1"
    with pytest.raises(ConfigurationError, match="no installation of PostgreSQL 16 or later has pg_dump"):
        logical.dumper(known, 16)


# --- what is refused ---------------------------------------------------------------------------------------------------


def test_a_dump_would_lose_prepared_transactions_and_is_refused() -> None:
    prepared = ["CREATE TABLE t (n int)", "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'this one'"]
    settings = {"max_prepared_transactions": "3"}
    with made(installation(), *prepared, settings=["max_prepared_transactions=3"]) as data, staged(data) as stage:
        serving = closed.serve(task(stage), stage.partial, installation(), settings)
        with serving as server, pytest.raises(ConfigurationError, match=r"'this one'.*archive: physical"):
            dump(stage, server)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("\\! touch {folder}/touched", "syntax error"),
        pytest.param("\\copy t from program 'x'", "syntax error", marks=pytest.mark.long),
        ("DROP ROLE nobody_there;", "not exist"),
    ],
)
def test_what_is_no_sql_in_the_roles_of_a_bundle_never_runs(line: str, told: str, small: Path, store: Store) -> None:
    with staged() as target, changed(small, target) as folder:
        with open(folder / "globals.sql", "a") as file:
            file.write(line.format(folder=folder) + "\n")
        with pytest.raises(PeerFailed, match=f"(?s)loading roles.*{told}"):
            load(target, store, store.save(folder, "dumps"), installation())
        assert not (folder / "touched").exists()


def test_a_bundle_that_takes_the_batterys_role_away_is_loaded_all_the_same(small: Path, store: Store) -> None:
    with staged() as target, changed(small, target) as folder:
        with open(folder / "globals.sql", "a") as file:
            file.write('ALTER ROLE "sidecar" WITH NOLOGIN PASSWORD NULL CONNECTION LIMIT 0;\n')
        load(target, store, store.save(folder, "dumps"), installation())
        with serving(target, installation()) as server:
            assert server.connection.execute("SELECT n FROM public.t").fetchall() == [(1,)]


@contextmanager
def changed(folder: Path, target: Stage) -> Iterator[Path]:
    """Yield a copy of a dump, to be made into a hostile one."""
    copy = Path(target.home, "hostile")
    shutil.copytree(folder, copy)
    copy.chmod(0o755)
    yield copy


def test_links_in_a_bundle_are_refused(small: Path, store: Store) -> None:
    with staged() as target, changed(small, target) as folder:
        (folder / "databases" / "1").symlink_to("/etc")
        with pytest.raises(Corrupt, match="holds links"):
            load(target, store, store.save(folder, "dumps"), installation())


def test_a_dump_that_is_cut_short_is_no_cluster(small: Path, store: Store) -> None:
    with staged() as target, changed(small, target) as folder:
        for path in (folder / "databases" / "0").glob("[0-9]*.dat"):
            path.unlink()
        with pytest.raises(PeerFailed, match=r"pg_restore failed: .*could not open"):
            load(target, store, store.save(folder, "dumps"), installation())


@pytest.mark.parametrize(
    "databases",
    [None, [], {}, {"x": 1}, {"x": {"dump": "0"}}, {"x": {"dump": True}}, {"x": {"dump": 1}}, {"x": {"dump": "../../etc"}}],
)
def test_a_record_that_says_what_is_not_there_is_refused(databases: Any, small: Path, store: Store) -> None:
    bundle = store.save(small, "dumps")
    with pytest.raises(Corrupt):
        logical.dumps_of(bundle, Described("logical", 15, {"databases": databases}), store.manifest(bundle))


def test_a_dump_of_later_programs_is_refused_with_what_reads_it(small: Path, store: Store) -> None:
    with staged() as target, pytest.raises(ConfigurationError, match=f"dumped with PostgreSQL {DEBIAN}.*postgresql-{DEBIAN}"):
        load(target, store, store.save(small, "dumps"), installation(12))
