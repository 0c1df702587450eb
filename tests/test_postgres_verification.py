"""A bundle is tried before anybody is told of it: what is wrong with it is found, and the copy that it was tried on is gone."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable
from pathlib import Path

import postgres_contents
import pytest
from postgres_contents import made, never, serving, staged, task
from servers import installation
from test_postgres_logical import changed, dumped

from sidecar.batteries.postgres import archive, logical, verification
from sidecar.batteries.postgres.installations import Installation
from sidecar.batteries.postgres.postmaster import read_control
from sidecar.batteries.postgres.stage import Stage
from sidecar.errors import NotSaved
from sidecar.parameters.fuse import Destination
from sidecar.store import Bundle, Stopped, Store

DEBIAN = installation().major
templates = postgres_contents.templates
PAGE = 8192
TABLE = [
    "CREATE TABLE t (n int PRIMARY KEY, words text)",
    "INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 5000) i",
]
PATHS = "SELECT pg_relation_filepath('t'), pg_relation_filepath('t_pkey')"


def keep(store: Store, data: Path) -> Bundle:
    """Archive a cluster that was shut down, whatever was done to it since."""
    told = Destination("db1", str(data), "results", "archived")
    return archive.keep(
        store, str(data), read_control(str(data)), told, "", contributor="", base=None, progress=lambda *_: None, cancelled=never
    )


def verify(
    stage: Stage, store: Store, bundle: Bundle, installed: Installation, cancelled: Callable[[], bool] = never
) -> list[str]:
    """Try a bundle; return what it said it was doing. Whatever comes of it, nothing is left of the copy."""
    said: list[str] = []
    try:
        verification.verify(task(stage, said.append, cancelled), store, bundle, installed)
    finally:
        assert not os.path.lexists(stage.partial)
        assert os.listdir(f"{stage.home}/s") == []
        assert not {"pgpass", "scratch"} & set(os.listdir(stage.home))
    return said


def files_of(data: Path, installed: Installation) -> tuple[Path, Path]:
    """Return the files of the table and of its index."""
    with staged(data, copy=True) as stage, serving(stage, installed) as server:
        server.connection.execute("SET search_path = public")
        row = server.connection.execute(PATHS).fetchone()
    assert row is not None
    return data / row[0], data / row[1]


def misplace_key(index: Path) -> None:
    """Have an item in the middle of the first leaf of an index be larger than what follows it."""
    content = bytearray(index.read_bytes())
    (pointer,) = struct.unpack_from("<I", content, PAGE + 24 + 4 * 100)
    struct.pack_into("<i", content, PAGE + (pointer & 0x7FFF) + 8, 1 << 30)
    index.write_bytes(content)


def test_a_healthy_bundle_passes_also_where_a_killed_life_has_left_a_copy(store: Store) -> None:
    database = 'CREATE DATABASE "o\'dd $(id)" ALLOW_CONNECTIONS false'
    with made(installation(), *TABLE, database) as data, staged(data, copy=True) as stage:
        said = verify(stage, store, keep(store, data), installation())
        assert said[-1] == "looking through a restored copy"


@pytest.mark.long
@pytest.mark.parametrize("major", [12, 14, 17, 18])
def test_healthy_bundles_of_all_majors_pass(major: int, store: Store) -> None:
    with made(installation(major)) as data, staged() as stage:
        verify(stage, store, keep(store, data), installation(major))


@pytest.mark.parametrize("major", [DEBIAN, 12])
def test_an_index_that_does_not_find_what_it_holds_is_found(major: int, store: Store) -> None:
    """Of a cluster without page checksums: such a page is one as good as any to whoever only reads it."""
    found = r'does not pass its verification: .* invariant violated for index "t_pkey"'
    with made(installation(major), *TABLE, checksums=False) as data, staged() as stage:
        misplace_key(files_of(data, installation(major))[1])
        with pytest.raises(NotSaved, match=found):
            verify(stage, store, keep(store, data), installation(major))


def test_a_row_that_says_what_cannot_be_is_found(store: Store) -> None:
    with made(installation(), *TABLE, checksums=False) as data, staged() as stage:
        table, _ = files_of(data, installation())
        content = bytearray(table.read_bytes())
        (pointer,) = struct.unpack_from("<I", content, 24 + 4 * 10)
        struct.pack_into("<I", content, pointer & 0x7FFF, 1 << 30)  # xmin: a transaction that has not been
        table.write_bytes(content)
        with pytest.raises(NotSaved, match=r'heap table "postgres\.public\.t", block 0, offset 11.*xmin 1073741824'):
            verify(stage, store, keep(store, data), installation())


@pytest.mark.parametrize("major", [DEBIAN, pytest.param(12, marks=pytest.mark.long)])
def test_a_file_that_is_missing_is_found(major: int, store: Store) -> None:
    with made(installation(major), *TABLE) as data, staged() as stage:
        files_of(data, installation(major))[0].unlink()
        with pytest.raises(NotSaved, match="No such file or directory"):
            verify(stage, store, keep(store, data), installation(major))


def test_a_bundle_that_no_server_starts_on_does_not_pass(store: Store) -> None:
    with made(installation(), *TABLE) as data, staged() as stage:
        next((data / "pg_wal").glob("0*")).unlink()
        with pytest.raises(NotSaved, match="could not locate a valid checkpoint record"):
            verify(stage, store, keep(store, data), installation())


def test_a_dump_is_loaded(store: Store) -> None:
    with made(installation(), *TABLE) as data, dumped(data, DEBIAN) as source, staged() as stage:
        said = verify(stage, store, store.save(logical.folder_of(source), "dumps"), installation())
        assert said[-1] == "looking through a restored copy"


def test_a_dump_that_cannot_be_loaded_does_not_pass(store: Store) -> None:
    with made(installation(), *TABLE) as data, dumped(data, DEBIAN) as source, staged() as stage:
        with changed(Path(logical.folder_of(source)), stage) as folder:
            next((folder / "databases").glob("*/[0-9]*.dat")).unlink()
            bundle = store.save(folder, "dumps")
        with pytest.raises(NotSaved, match="pg_restore failed"):
            verify(stage, store, bundle, installation())


@pytest.mark.parametrize("looks", [1, 15])
def test_a_verification_ends_when_it_is_told_to(looks: int, store: Store) -> None:
    count = itertools.count()
    with made(installation(), *TABLE) as data, staged() as stage:
        bundle = keep(store, data)
        with pytest.raises(Stopped):
            verify(stage, store, bundle, installation(), lambda: next(count) >= looks)
