"""What servers and clients are told: nothing in it can be more than it is."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from sidecar.batteries.postgres.configuration import (
    ADMIN,
    CLOSED,
    Places,
    conninfo,
    network_arguments,
    open_hba,
    passfile,
    postgresql_conf,
    scram_verifier,
    server_arguments,
    socket_fits,
)
from sidecar.batteries.postgres.handover import Way, hand_over

PLACES = Places("/pg/db", "/pg/db.sidecar", "/pg/db.sidecar/s", "/coord/db")


def said(arguments: list[str]) -> dict[str, str]:
    """Return the settings among a server's arguments."""
    return dict(each.split("=", 1) for each in arguments if "=" in each)


@pytest.mark.parametrize(
    "name",
    [
        "shared_preload_libraries",
        "session_preload_libraries",
        "local_preload_libraries",
        "archive_command",
        "restore_command",
        "archive_cleanup_command",
        "recovery_end_command",
        "ssl_passphrase_command",
        "primary_conninfo",
    ],
)
def test_what_loads_or_runs_something_is_not_for_a_bundle_to_say(name: str) -> None:
    assert said(server_arguments(PLACES, 15, {}))[name] == ""


def test_the_files_that_say_who_may_come_are_ours(tmp_path: Path) -> None:
    found = said(server_arguments(PLACES, 15, {"hba_file": "/tmp/theirs", "data_directory": "/elsewhere"}))
    assert found["hba_file"] == "/pg/db.sidecar/pg_hba.conf"
    assert found["data_directory"] == "/pg/db"


def test_the_operator_may_load_a_library() -> None:
    found = said(server_arguments(PLACES, 15, {"shared_preload_libraries": "pg_stat_statements"}))
    assert found["shared_preload_libraries"] == "pg_stat_statements"


@pytest.mark.parametrize(("major", "known"), [(12, False), (14, False), (15, True), (18, True)])
def test_a_version_is_told_what_it_knows(major: int, known: bool) -> None:
    assert ("archive_library" in said(server_arguments(PLACES, major, {}))) == known


def test_a_server_listens_on_the_loopback_and_two_sockets() -> None:
    found = said(network_arguments(PLACES, 5430, listen=True))
    assert (found["port"], found["listen_addresses"]) == ("5430", "127.0.0.1")
    assert found["unix_socket_directories"] == '"/pg/db.sidecar/s","/coord/db"'
    assert said(network_arguments(PLACES, 5430, listen=False))["listen_addresses"] == ""


def test_a_directory_may_have_any_name_in_a_list_of_them() -> None:
    places = Places("/d", "/h", '/a, "b"')
    assert said(network_arguments(places, 1, listen=False))["unix_socket_directories"] == '"/a, ""b"""'


def test_only_the_battery_comes_before_and_after_the_application() -> None:
    let_in = [line.split() for line in CLOSED.splitlines() if not line.startswith("#") and not line.endswith("reject")]
    assert let_in == [["local", "all", ADMIN, "scram-sha-256"]]


@pytest.mark.parametrize("trust", [True, False])
def test_the_battery_itself_never_comes_without_a_password_or_over_the_network(trust: bool) -> None:
    lines = [line.split() for line in open_hba(trust=trust).splitlines() if not line.startswith("#")]
    assert lines[0] == ["local", "all", ADMIN, "scram-sha-256"]
    network = [line for line in lines if line[0] == "host"]
    assert network[0] == ["host", "all", ADMIN, "all", "reject"]
    assert {line[3] for line in network if line[-1] != "reject"} == {"127.0.0.1/32", "::1/128"}


def test_trust_is_only_where_it_is_asked_for() -> None:
    assert "trust" not in open_hba(trust=False)
    assert "trust" in open_hba(trust=True)


def test_parallel_queries_do_without_a_small_dev_shm() -> None:
    assert "mmap" in postgresql_conf(shared_memory=False)
    assert "mmap" not in postgresql_conf(shared_memory=True)


def test_a_verifier_is_that_of_the_standard() -> None:
    """The example of RFC 7677, section 3: its server key and stored key, computed by others."""
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    verifier = scram_verifier("pencil", salt, 4096)
    assert verifier == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


@pytest.mark.parametrize("text", ["plain", "with space", "quo'te", "back\\slash", "$(touch x)", "a=b", ""])
def test_a_connection_string_says_what_was_meant(text: str) -> None:
    assert conninfo_to_dict(conninfo({"dbname": text, "port": 5430})) == {"dbname": text, "port": "5430"}


def test_a_line_of_a_password_file_may_hold_colons() -> None:
    assert passfile([("h", 1, "a:b", "c\\d")]) == "h:1:*:a\\:b:c\\\\d\n"


def test_a_path_that_is_too_long_for_a_socket_is_known_before() -> None:
    assert socket_fits("/x" * 40, 5432)
    assert not socket_fits("/x" * 50, 5432)


# --- handing over


def way(folder: Path, password: str = "secret") -> Way:
    return Way(str(folder), 5430, "", "dbuser", password, "my db")


def test_the_password_is_in_a_file_that_only_its_reader_may_read(tmp_path: Path) -> None:
    hand_over(way(tmp_path), None)
    assert stat.S_IMODE((tmp_path / "pgpass").stat().st_mode) == 0o600
    found = conninfo_to_dict((tmp_path / "dsn").read_text())
    assert found == {"host": "127.0.0.1", "port": "5430", "user": "dbuser", "dbname": "my db", "passfile": f"{tmp_path}/pgpass"}
    assert "secret" not in (tmp_path / "dsn").read_text()


def test_where_nobody_needs_a_password_there_is_no_file_with_one(tmp_path: Path) -> None:
    hand_over(way(tmp_path, ""), None)
    assert os.listdir(tmp_path) == ["dsn"]
    assert "passfile" not in conninfo_to_dict((tmp_path / "dsn").read_text())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_another_user_may_be_the_reader(tmp_path: Path) -> None:
    hand_over(way(tmp_path), 65532)
    assert (tmp_path / "pgpass").stat().st_uid == 65532
    assert (tmp_path / "dsn").stat().st_uid == 0


def test_a_planted_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    folder = tmp_path / "db"
    folder.mkdir()
    (folder / "pgpass").symlink_to(target)
    hand_over(way(folder), None)
    assert target.read_text() == "precious"
    assert not (folder / "pgpass").is_symlink()
