"""The ways that a database can be asked to take: upgrades, logical archives, verification, scripts, passwords, versions.

Each through `wrap_datamon_pg` and a client, as containers run them; what is under them has tests of its own.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres_pods import REPO, SERVE, DatabasePod, free_port, library_options, new_place
from processes import BIN, until
from psycopg.conninfo import conninfo_to_dict
from servers import SERVERS, installation, new_cluster
from test_postgres_faults import refused

from sidecar import errors
from sidecar.batteries.postgres.battery import PostgresBattery
from sidecar.coordination.protocol import READY
from sidecar.store import Bundle
from sidecar.store.format import FILE
from sidecar.testing import check_battery

OURS = installation()
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def templates() -> Iterator[Path]:
    with new_place() as top:
        yield top


@pytest.fixture
def pod(templates: Path) -> Iterator[DatabasePod]:
    with new_place() as top, DatabasePod(top, templates) as pod:
        yield pod


def said(pod: DatabasePod) -> dict[str, Any]:
    """Return the payload of the signal that the database was started."""
    found: dict[str, Any] = json.loads((pod.coord / "db1" / "dbstarted").read_text())["payload"]
    return found


def session(pod: DatabasePod, *statements: str, bindir: str = "", **more: Any) -> str:
    """Run one whole session that does this, archived; return what its battery printed."""
    arguments = ["--bindir", bindir] if bindir else []
    battery, application = pod.serve(*arguments, **more), pod.application()
    pod.hear("db1/dbstarted")
    with closing(pod.connect()) as connection:
        for statement in statements:
            connection.execute(statement.encode())
    assert pod.finish(application, battery) == (0, 0), battery.err + application.err
    return battery.err


def source(label: str = "latest") -> dict[str, Any]:
    return {"srcRepo": REPO, "srcLabel": label}


def other(major: int) -> str:
    return str(SERVERS / str(major) / "bin")


def files(pod: DatabasePod, bundle: Bundle) -> dict[str, int]:
    return {entry.path: entry.size for entry in pod.store.manifest(bundle) if entry.type == FILE}


# --- versions ----------------------------------------------------------------------------------------------------------


def test_a_bundle_of_an_older_major_is_upgraded_where_that_is_asked_for(pod: DatabasePod) -> None:
    session(pod, "CREATE TABLE t AS SELECT generate_series(1, 1000) n", bindir=other(14), pgVersion=14, locale="C")
    before = pod.bundle()
    assert said(pod)["version"].startswith("14.")
    later = pod.next("later")
    with later:
        session(later, "INSERT INTO t VALUES (1001)", bindir=f"{other(14)}:{other(17)}", upgrade="auto", pgVersion=17, **source())
        told = said(later)
    assert told["version"].startswith("17.")
    assert told["upgraded_from"]["bundle"] == before.reference
    assert told["upgraded_from"]["major"] == 14
    after = pod.bundle()
    assert after.id != before.id
    assert pod.store.resolve(REPO, bundle=before.id) == before
    again = pod.next("again")
    with again:
        again.serve("--bindir", other(17), **source())
        again.application()
        again.hear("db1/dbstarted")
        assert again.query("SELECT count(*) FROM t") == [(1001,)]


def test_whether_an_upgrade_would_do_is_told_and_nothing_is_upgraded(pod: DatabasePod) -> None:
    session(pod, "CREATE TABLE t AS SELECT 1 AS n", bindir=other(14), pgVersion=14, locale="C")
    later = pod.next("later")
    with later:
        session(later, bindir=f"{other(14)}:{other(17)}", upgrade="check", pgVersion=17, **source())
        told = said(later)
    assert told["version"].startswith("14.")
    assert told["upgradable"]["to"].startswith("17.")
    assert told["upgradable"]["problem"] == ""


def test_a_new_cluster_is_of_the_major_that_is_asked_for_or_it_is_refused(pod: DatabasePod) -> None:
    refused(pod, errors.CONFIG, "PostgreSQL 12 is not installed", pgVersion=12)


# --- logical archives --------------------------------------------------------------------------------------------------


def test_a_logical_archive_is_small_and_is_restored_with_its_roles_and_databases(pod: DatabasePod) -> None:
    session(
        pod,
        "CREATE TABLE t AS SELECT generate_series(1, 1000) n",
        "CREATE INDEX ON t (n)",
        "CREATE DATABASE \"other 'one'\"",
        archive="logical",
    )
    bundle = pod.bundle()
    assert "PG_VERSION" not in files(pod, bundle)
    assert bundle.bytes < 1 << 20
    later = pod.next("later")
    with later:
        session(later, "INSERT INTO t VALUES (1001)", **source())
        assert "other 'one'" in said(later)["databases"]
    assert pod.rows("SELECT count(*) FROM t") == [(1001,)]
    assert "PG_VERSION" in files(pod, pod.bundle())


def test_a_logical_archive_is_tried_before_its_label_moves_too(pod: DatabasePod) -> None:
    session(pod, "CREATE TABLE t AS SELECT 1 AS n", archive="logical", verify="restore")
    assert pod.rows("SELECT n FROM t") == [(1,)]


# --- verification ------------------------------------------------------------------------------------------------------


def test_an_archive_is_tried_before_its_label_moves(pod: DatabasePod) -> None:
    session(pod, "CREATE TABLE t AS SELECT generate_series(1, 1000) n", "CREATE INDEX ON t (n)", verify="restore")
    assert pod.rows("SELECT count(*) FROM t") == [(1000,)]
    assert [path for path in (pod.folder / "pg").iterdir() if path.name.endswith(".partial")] == []


def test_an_archive_that_does_not_pass_moves_no_label(pod: DatabasePod) -> None:
    session(pod, "CREATE TABLE t AS SELECT 1 AS n")
    before = pod.bundle()
    later = pod.next("later")
    with later:
        # An index that says of rows that they are ordered as they are not: its pages are right, what is in them is not.
        battery, application = later.serve(verify="restore", superuser=True, **source()), later.application()
        later.hear("db1/dbstarted")
        later.query("CREATE TABLE words AS SELECT chr(64 + n % 50) || n AS word FROM generate_series(1, 2000) n")
        later.query("CREATE INDEX words_word ON words (word)")
        later.query("UPDATE pg_index SET indoption = '3' WHERE indexrelid = 'words_word'::regclass")
        assert later.finish(application, battery) == (errors.NOT_SAVED, errors.NOT_SAVED)
        assert "does not pass its verification" in battery.err
        assert "words_word" in battery.err
    assert pod.bundle() == before


# --- who, and with what ------------------------------------------------------------------------------------------------


def test_scripts_run_once_where_the_cluster_is_created(pod: DatabasePod) -> None:
    script = pod.folder / "first $(touch x).sql"
    script.write_text(
        "CREATE TABLE made (n int);\n\\echo a line for the log\nCREATE EXTENSION pg_trgm;\nGRANT ALL ON made TO dbuser;\n"
    )
    printed = session(pod, "INSERT INTO made VALUES (1)", initScripts=[str(script)])
    assert "a line for the log" in printed
    later = pod.next("later")
    with later:
        session(later, "INSERT INTO made VALUES (2)", initScripts=[str(script)], **source())
    assert pod.rows("SELECT count(*) FROM made") == [(2,)]


def test_a_script_that_fails_is_told_with_its_line(pod: DatabasePod) -> None:
    script = pod.folder / "first.sql"
    script.write_text("SELECT 1;\nCREATE TABEL made (n int);\n")
    refused(pod, errors.UNAVAILABLE, str(script), ":2: ERROR:  syntax error", initScripts=[str(script)])


def test_the_password_may_come_from_a_file(pod: DatabasePod) -> None:
    (pod.folder / "secret").write_text("correct horse: battery\\staple\n")
    battery, application = pod.serve(passwordFile=str(pod.folder / "secret")), pod.application()
    pod.hear("db1/dbstarted")
    parameters: dict[str, Any] = conninfo_to_dict((pod.coord / "db1" / "dsn").read_text())
    del parameters["passfile"]
    with closing(psycopg.connect(**parameters, password="correct horse: battery\\staple")):
        pass
    assert pod.query("SELECT current_user") == [("dbuser",)]
    assert pod.finish(application, battery) == (0, 0)


@pytest.mark.parametrize("text", ["", "two\nlines\n", "umläut"])
def test_a_password_that_clients_could_not_send_is_refused(pod: DatabasePod, text: str) -> None:
    (pod.folder / "secret").write_text(text)
    refused(pod, errors.CONFIG, "expected one line of printable ASCII", passwordFile=str(pod.folder / "secret"))


def test_trust_lets_everybody_of_the_pod_in_where_it_is_asked_for_by_name(pod: DatabasePod) -> None:
    battery, application = pod.serve("--trust"), pod.application()
    pod.hear("db1/dbstarted")
    assert not (pod.coord / "db1" / "pgpass").exists()
    with closing(psycopg.connect(host="127.0.0.1", port=pod.port, user="dbuser", dbname="postgres")):
        pass
    assert pod.finish(application, battery) == (0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_the_password_may_be_for_another_user_to_read(pod: DatabasePod) -> None:
    battery, application = pod.serve("--client-uid", "65532"), pod.application()
    pod.hear("db1/dbstarted")
    told = (pod.coord / "db1" / "pgpass").stat()
    assert (told.st_uid, stat.S_IMODE(told.st_mode)) == (65532, 0o600)
    assert pod.finish(application, battery) == (0, 0)


def test_a_superuser_is_one_where_that_is_asked_for_and_no_more_where_it_is_not(pod: DatabasePod) -> None:
    query = "SELECT rolsuper FROM pg_roles WHERE rolname = 'dbuser'"
    battery, application = pod.serve(superuser=True), pod.application()
    pod.hear("db1/dbstarted")
    assert pod.query(query) == [(True,)]
    assert pod.finish(application, battery) == (0, 0)
    assert pod.rows(query) == [(False,)]


def test_settings_are_the_servers(pod: DatabasePod) -> None:
    battery, application = pod.serve(settings={"work_mem": "64MB", "search_path": '"a b", public'}), pod.application()
    pod.hear("db1/dbstarted")
    assert pod.query("SHOW work_mem") == [("64MB",)]
    assert pod.query("SHOW search_path") == [('"a b", public',)]
    assert pod.finish(application, battery) == (0, 0)


def test_an_application_hears_at_once_that_the_configuration_is_malformed(pod: DatabasePod) -> None:
    refused(pod, errors.DATA, "expected a port number", pgPort="many")


# --- the rest ----------------------------------------------------------------------------------------------------------


def test_reading_alone_stores_next_to_nothing(pod: DatabasePod) -> None:
    rows = "CREATE TABLE t AS SELECT n, md5(n::text) AS text FROM generate_series(1, 200000) n"
    session(pod, rows, "CREATE INDEX ON t (n)", "UPDATE t SET text = 'x' WHERE n % 7 = 0")
    first = pod.bundle()
    later = pod.next("later")
    with later:
        session(later, "SELECT count(text) FROM t", **source())
    again = pod.bundle()
    assert again.id != first.id
    assert again.stored < first.bytes / 100


def test_a_foreign_bundle_needs_nothing_of_ours(pod: DatabasePod) -> None:
    """As the datamon sidecar made them: of another superuser, with the files of its own, crashed."""
    with new_cluster(OURS) as cluster:
        with cluster.running():
            cluster.query("CREATE ROLE dbuser LOGIN")
            cluster.query("CREATE DATABASE shop OWNER dbuser")
            cluster.query("CREATE TABLE t AS SELECT generate_series(1, 10) n", "shop")
            cluster.query("ALTER TABLE t OWNER TO dbuser", "shop")
            cluster.query("DROP DATABASE IF EXISTS template9")
        cluster.start()
        cluster.query("INSERT INTO t VALUES (11)", "shop")
        cluster.end()
        (cluster.data / "postmaster.pid").unlink(missing_ok=True)
        pod.store.save(cluster.data, REPO, label="foreign", leave_out=lambda path: path.startswith("postmaster."))
    battery, application = pod.serve(**source("foreign")), pod.application()
    pod.hear("db1/dbstarted")
    assert said(pod)["unclean"] is True
    with closing(pod.connect(dbname="shop")) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchall() == [(11,)]
    assert pod.finish(application, battery) == (0, 0), battery.err


def test_a_superuser_of_a_foreign_bundle_is_owner_only_where_that_is_asked_for(pod: DatabasePod) -> None:
    with new_cluster(OURS) as cluster:
        pod.store.save(cluster.data, REPO, label="foreign")
    refused(pod, errors.CONFIG, "superuser: true", owner="postgres", **source("foreign"))
    later = pod.next("later")
    with later:
        battery, application = later.serve(owner="postgres", superuser=True, **source("foreign")), later.application()
        later.hear("db1/dbstarted")
        assert later.query("SELECT current_user") == [("postgres",)]
        assert later.finish(application, battery) == (0, 0), battery.err


def test_the_battery_passes_the_contract_of_batteries(templates: Path) -> None:
    number = 0
    with new_place() as top, DatabasePod(top, templates) as pod:

        def make() -> PostgresBattery:
            nonlocal number
            number += 1
            place = top / f"battery{number}"
            os.makedirs(place / "coord")
            place.chmod(0o711)
            (place / "coord").chmod(0o777)
            return PostgresBattery(library_options(place, pod), lambda *_: None)

        check_battery(make)


# --- what is easily forgotten ------------------------------------------------------------------------------------------


def test_a_container_that_was_killed_with_its_server_tells_that_rows_of_unlogged_tables_are_gone(pod: DatabasePod) -> None:
    battery, application = pod.serve(), pod.application("--rejoin-timeout", "60")
    pod.hear("db1/dbstarted")
    pod.query("CREATE UNLOGGED TABLE scratch AS SELECT 1 AS n")
    pod.query("CREATE TABLE kept AS SELECT 1 AS n")
    # As a container dies: all of it at once.
    postmaster = pod.postmaster()
    os.kill(postmaster, signal.SIGSTOP)
    battery.kill()
    os.kill(postmaster, signal.SIGKILL)
    again = pod.serve()
    until(lambda: (record := pod.record("postgres-db1")) is not None and record.life == 2, "it lives again", pod)
    pod.hear_state(READY, "postgres-db1")
    assert pod.finish(application, again) == (0, 0), again.err
    record = pod.record("postgres-db1")
    assert record is not None
    assert record.payload is not None
    assert record.payload["destinations"][0]["recovered"] == 1
    assert pod.rows("SELECT count(*) FROM kept") == [(1,)]


def test_a_destination_that_is_configured_later_makes_what_is_there_worth_keeping(pod: DatabasePod) -> None:
    battery, application = pod.serve(destRepo=None, destLabel=None, destMessage=None), pod.application("--rejoin-timeout", "60")
    pod.hear("db1/dbstarted")
    battery.kill()
    again = pod.serve()
    until(lambda: pod.journal()["notes"].get("kept") is True, "it is to be kept", pod)
    assert pod.finish(application, again) == (0, 0), again.err


@pytest.mark.parametrize("name", ["db1.partial", "db1.sidecar"])
def test_a_name_that_is_the_place_of_something_of_ours_is_refused(pod: DatabasePod, name: str) -> None:
    battery = pod.serve(name=name)
    assert battery.wait() == errors.DATA
    assert "does not end in .partial or .sidecar" in battery.err


def test_a_link_in_the_clusters_directory_is_told_and_not_archived(pod: DatabasePod) -> None:
    battery, application = pod.serve(), pod.application()
    pod.hear("db1/dbstarted")
    (pod.data / "elsewhere").symlink_to("/etc")
    assert pod.finish(application, battery) == (errors.NOT_SAVED, errors.NOT_SAVED)
    assert "a link, 'elsewhere'" in battery.err
    assert pod.bundles() == []
    (pod.data / "elsewhere").unlink()
    again, application = pod.serve(), pod.application("--rejoin-timeout", "60")
    assert (application.wait(), again.wait()) == (0, 0)


def test_settings_of_the_database_do_not_bind_the_battery(pod: DatabasePod) -> None:
    session(
        pod,
        "ALTER DATABASE shop SET role = 'dbuser'",
        "ALTER DATABASE shop SET statement_timeout = '1ms'",
        "CREATE TABLE t AS SELECT n FROM generate_series(1, 100000) n",
        databases=["shop"],
        settings={"idle_session_timeout": "50ms", "statement_timeout": "0"},
    )
    assert pod.bundles()


def test_an_owner_whose_time_is_over_in_the_bundle_comes_in(pod: DatabasePod) -> None:
    session(pod, "ALTER ROLE dbuser VALID UNTIL '2020-01-01' CONNECTION LIMIT 0", superuser=True)
    assert pod.rows("SELECT 1") == [(1,)]


def test_what_gives_up_durability_in_a_bundle_is_overruled(pod: DatabasePod) -> None:
    session(
        pod,
        "ALTER SYSTEM SET synchronous_commit = off",
        "ALTER SYSTEM SET data_sync_retry = on",
        "ALTER ROLE dbuser SET synchronous_commit = off",
        superuser=True,
    )
    with pod.restored() as connection:
        for name, value in (("synchronous_commit", "on"), ("data_sync_retry", "off"), ("fsync", "on")):
            assert connection.execute(f"SHOW {name}".encode()).fetchall() == [(value,)]


def test_templates_that_cannot_be_kept_keep_no_database_from_being_made(pod: DatabasePod) -> None:
    (pod.folder / "file").write_text("")
    battery = pod.serve(env={"SIDECAR_TEMPLATES": f"{pod.folder}/file/templates"})
    application = pod.application()
    pod.hear("db1/dbstarted")
    assert pod.finish(application, battery) == (0, 0)


@pytest.mark.parametrize("program", [BIN / "wrap_datamon_pg", ROOT / "wrappers" / "wrap_datamon_pg"])
def test_nothing_of_the_working_directory_is_run(pod: DatabasePod, program: Path) -> None:
    (pod.folder / "sidecar").mkdir()
    (pod.folder / "sidecar" / "__init__.py").write_text(f"open({str(pod.folder / 'ran')!r}, 'w')")
    configured = [pod.configured("one", pgPort=free_port()), pod.configured("two", pgPort=free_port())]
    (pod.folder / "two.yaml").write_text(json.dumps({"databases": configured}))
    words: list[str | Path] = [sys.executable, "-P", program, "-c", pod.coord, "--config", pod.folder / "two.yaml"]
    battery = pod.start(*words, env=pod.environment, cwd=pod.folder)
    application = pod.application(names="one two")
    assert pod.finish(application, battery) == (0, 0), battery.err
    assert not (pod.folder / "ran").exists()


def test_of_several_databases_the_status_is_that_of_the_one_that_failed_for_itself(pod: DatabasePod) -> None:
    """The other one failed because the application never ran, and that because of this one."""
    missing = pod.configured("two", pgPort=free_port(), srcRepo="nowhere", srcLabel="v1")
    (pod.folder / "two.yaml").write_text(json.dumps({"databases": [pod.configured("one", pgPort=free_port()), missing]}))
    battery = pod.start(SERVE, "-c", pod.coord, "--config", pod.folder / "two.yaml", env=pod.environment)
    application = pod.application(names="one two")
    assert (application.wait(), battery.wait()) == (69, 66), battery.err
