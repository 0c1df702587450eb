"""Which PostgreSQL is there, and what is said where it is not."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from servers import SERVERS

from sidecar.batteries.postgres import installations
from sidecar.batteries.postgres.installations import Installation, choose, find_installations
from sidecar.errors import ConfigurationError


def program(folder: Path, name: str, code: str = "exit 0") -> str:
    """Make a program in a folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{code}\n")
    (folder / name).chmod(0o755)
    return str(folder)


def server(folder: Path, version: str) -> str:
    return program(folder, "postgres", f"echo 'postgres (PostgreSQL) {version}'")


def found(*folders: str) -> list[Installation]:
    return find_installations(folders, usual=())


def test_debians_is_found_where_it_usually_is() -> None:
    there = find_installations()
    assert there, "these tests need PostgreSQL: make debian"
    assert there[-1].bindir == f"/usr/lib/postgresql/{there[-1].major}/bin"
    assert Path(there[-1].program("initdb")).is_file()


def test_what_others_publish_is_found_in_the_folders_that_are_named() -> None:
    there = found(*(str(SERVERS / major / "bin") for major in ("18", "12", "17", "14")))
    assert [each.version for each in there] == ["12.22", "14.23", "17.11", "18.6"]
    assert [each.major for each in there] == [12, 14, 17, 18]


@pytest.mark.parametrize(
    ("said", "version", "major"),
    [
        ("15.18 (Debian 15.18-0+deb12u1)", "15.18", 15),
        ("12.22", "12.22", 12),
        ("19devel", "19devel", 19),
        ("18beta2 (Debian 18~beta2-1)", "18beta2", 18),
        ("17rc1", "17rc1", 17),
    ],
)
def test_its_version_is_what_it_says(tmp_path: Path, said: str, version: str, major: int) -> None:
    assert found(server(tmp_path, said)) == [Installation(str(tmp_path), version, major)]


def test_the_newest_is_last_and_what_is_not_released_before_what_is(tmp_path: Path) -> None:
    versions = ["17.2", "9.6", "17.11", "18beta1", "12.22", "18.0"]
    there = found(*(server(tmp_path / version, version) for version in versions))
    assert [each.version for each in there] == ["9.6", "12.22", "17.2", "17.11", "18beta1", "18.0"]
    assert choose(there, 17).version == "17.11"
    assert choose(there, 18).version == "18.0"


def test_of_one_version_twice_the_folder_that_was_named_first_is_chosen(tmp_path: Path) -> None:
    there = found(server(tmp_path / "mine", "17.11"), server(tmp_path / "other", "17.11"))
    assert choose(there, 17).bindir == str(tmp_path / "mine")


def test_a_link_leads_to_the_folder_with_the_other_programs_and_counts_once(tmp_path: Path) -> None:
    """Such as /usr/local/bin/postgres; other programs are not linked there."""
    real = server(tmp_path / "real", "15.18")
    links = tmp_path / "links"
    links.mkdir()
    (links / "postgres").symlink_to(Path(real, "postgres"))
    (tmp_path / "folder").symlink_to(real)
    assert found(str(links), real, str(tmp_path / "folder"), real) == [Installation(real, "15.18", 15)]


def test_a_folder_without_a_server_is_none_and_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "directory" / "postgres").mkdir(parents=True)
    client = program(tmp_path / "client", "psql")
    assert found("", client, str(tmp_path / "missing"), str(tmp_path / "directory")) == []
    assert not caplog.records


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("echo 'error while loading shared libraries: libxml2.so.2' >&2; exit 127", "with 127: .*libxml2"),
        ("echo 'postgres (PostgreSQL) 15.18'; exit 3", "with 3"),
        ("echo 'postgres (EnterpriseDB) 15.3.0'", "EnterpriseDB"),
        ("echo 'psql (PostgreSQL) 15.18'", "psql"),
        ("true", "with 0: ''"),
        ("head -c 300000 /dev/zero", "with 0"),
        ("kill -9 $$", "with -9"),
    ],
)
def test_a_server_that_cannot_be_run_is_told_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: str, why: str
) -> None:
    folder = program(tmp_path / "bad", "postgres", code)
    assert found(folder, server(tmp_path / "good", "15.1")) == [Installation(str(tmp_path / "good"), "15.1", 15)]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{folder}/postgres is left out")
    assert len(record.getMessage()) < 2000
    assert re.search(why, caplog.text)


def test_what_is_no_program_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = server(tmp_path, "15.1")
    (tmp_path / "postgres").chmod(0o644)
    assert found(folder) == []
    assert "Permission denied" in caplog.text


def test_a_server_that_says_nothing_is_not_waited_for_long(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installations, "_PATIENCE", 0.2)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert found(program(tmp_path / "bad", "postgres", f"exec cat {pipe}")) == []
    assert "timed out" in caplog.text


def test_it_is_asked_in_english_and_told_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")
    code = f"env > {tmp_path}/environment; echo 'postgres (PostgreSQL) 15.1'"
    assert found(program(tmp_path / "bin", "postgres", code))
    told = (tmp_path / "environment").read_text()
    assert "LC_ALL=C\n" in told
    assert "secret" not in told


def test_programs_are_beside_the_server(tmp_path: Path) -> None:
    (installed,) = found(server(tmp_path, "15.1"))
    program(tmp_path, "psql")
    (tmp_path / "initdb").write_text("no program")
    assert installed.has("psql")
    assert installed.program("psql") == f"{tmp_path}/psql"
    assert not installed.has("initdb")
    assert not installed.has("pg_dump")


@pytest.mark.parametrize(
    ("missing", "package"),
    [
        ("pg_dump", "postgresql-client-15"),
        ("psql", "postgresql-client-15"),
        ("pg_upgrade", "postgresql-15"),
        ("initdb", "postgresql-15"),
    ],
)
def test_a_program_that_is_missing_is_told_with_its_package(tmp_path: Path, missing: str, package: str) -> None:
    (installed,) = found(server(tmp_path, "15.1"))
    with pytest.raises(ConfigurationError) as raised:
        installed.program(missing)
    assert str(raised.value) == (
        f"PostgreSQL 15.1 in {tmp_path} has no {missing}: install all of it (Debian: apt-get install {package})"
    )


def test_the_packages_that_are_named_are_those_that_have_the_programs() -> None:
    if not shutil.which("dpkg-query"):
        pytest.skip("this is not Debian")
    major = find_installations()[-1].major
    bindir = f"/usr/lib/postgresql/{major}/bin/"
    command = ["dpkg-query", "-L", f"postgresql-client-{major}"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    programs = {path.removeprefix(bindir) for path in listed if path.startswith(bindir)} - {"pg_config"}
    newer = {"pg_combinebackup", "pg_createsubscriber"}
    assert programs - newer == installations._OF_THE_CLIENT - newer


def test_a_major_that_is_missing_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    there = found(server(tmp_path / "a", "15.1"), server(tmp_path / "b", "17.2"))
    with pytest.raises(ConfigurationError) as raised:
        choose(there, 14)
    assert str(raised.value) == (
        "PostgreSQL 14 is not installed (Debian: apt-get install postgresql-14); "
        f"there is 15.1 in {tmp_path}/a, 17.2 in {tmp_path}/b"
    )
    with pytest.raises(ConfigurationError, match="there is no other either"):
        choose([], 14)
