"""The visibility map says what the server says; and what was vacuumed before it is archived is changed by no reader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import servers
from psycopg import sql

from sidecar.batteries.postgres import sessions
from sidecar.batteries.postgres.visibility import all_frozen, all_visible


@pytest.fixture(scope="module")
def cluster() -> Iterator[servers.Cluster]:
    with servers.new_cluster(servers.installation()) as cluster, cluster.running("autovacuum=off"):
        yield cluster


def connect(cluster: servers.Cluster, database: str = "postgres") -> sessions.Connection:
    return psycopg.connect(host=str(cluster.socket), dbname=database, user="postgres", autocommit=True)


def fork(cluster: servers.Cluster, table: str) -> bytes:
    cluster.query("CHECKPOINT")
    ((path,),) = cluster.query(f"SELECT pg_relation_filepath('{table}')")
    found = Path(cluster.data, f"{path}_vm")
    return found.read_bytes() if found.exists() else b""


@pytest.mark.parametrize("rows", [1, 100_000, 3_000_000])
def test_the_pages_are_those_that_the_server_counts(cluster: servers.Cluster, rows: int) -> None:
    cluster.query("CREATE EXTENSION IF NOT EXISTS pg_visibility")
    table = f"counted{rows}"
    cluster.query(f"CREATE TABLE {table} WITH (fillfactor = 10) AS SELECT 1 AS i FROM generate_series(1, {rows // 10 + 1})")
    for change in (f"VACUUM (FREEZE) {table}", f"UPDATE {table} SET i = 2 WHERE ctid < '(7,1)'", f"VACUUM {table}"):
        cluster.query(change)
        found = fork(cluster, table)
        assert cluster.query(f"SELECT all_visible, all_frozen FROM pg_visibility_map_summary('{table}')") == [
            (all_visible(found), all_frozen(found))
        ]


def test_a_map_that_is_not_there_says_nothing() -> None:
    assert (all_visible(b""), all_frozen(b"")) == (0, 0)


def test_a_reader_changes_nothing_of_what_was_vacuumed(cluster: servers.Cluster) -> None:
    cluster.query("CREATE TABLE read (n int PRIMARY KEY, t text)")
    cluster.query("INSERT INTO read SELECT n, repeat('x', 50) FROM generate_series(1, 50000) n")
    cluster.query("UPDATE read SET t = 'y' WHERE n % 97 = 0")
    cluster.query("DELETE FROM read WHERE n % 101 = 0")
    assert frozen(cluster, "auto") > 0
    assert frozen(cluster, "auto") <= 3  # what vacuuming itself changed of the catalogues
    before = digest(cluster, "read", "read_pkey")
    cluster.query("SELECT count(t) FROM read")
    cluster.query("SET enable_seqscan = off; SELECT count(n) FROM read WHERE n > 0")
    cluster.query("SET enable_seqscan = off; SELECT count(t) FROM read WHERE n BETWEEN 1 AND 40000")
    assert digest(cluster, "read", "read_pkey") == before


def test_who_does_not_want_it_has_nothing_vacuumed(cluster: servers.Cluster) -> None:
    cluster.query("CREATE TABLE kept AS SELECT 1 AS i")
    assert frozen(cluster, "never") == 0
    assert all_visible(fork(cluster, "kept")) == 0


def test_always_freezes_what_is_only_visible(cluster: servers.Cluster) -> None:
    cluster.query("CREATE TABLE visible AS SELECT n FROM generate_series(1, 1000) n")
    cluster.query("VACUUM visible")
    frozen(cluster, "always")
    ((pages,),) = cluster.query("SELECT pg_relation_size('visible') / 8192")
    assert all_frozen(fork(cluster, "visible")) == pages


def test_tables_of_any_name_are_vacuumed(cluster: servers.Cluster) -> None:
    cluster.query('CREATE SCHEMA "a ""b"; CREATE TABLE "a ""b"."$(touch x); DROP" AS SELECT 1 AS i')
    frozen(cluster, "auto")
    assert all_visible(fork(cluster, '"a ""b"."$(touch x); DROP"')) == 1


def frozen(cluster: servers.Cluster, policy: str) -> int:
    return sessions.freeze(lambda name: connect(cluster, name), ["postgres"], policy, lambda _: None, lambda: False)


def digest(cluster: servers.Cluster, *relations: str) -> list[str]:
    """Return a digest of each relation as it is on disk."""
    cluster.query("CHECKPOINT")
    with connect(cluster) as connection:
        paths = [
            connection.execute(sql.SQL("SELECT pg_relation_filepath({})").format(sql.Literal(each))).fetchone()
            for each in relations
        ]
    return [hashlib.sha256(Path(cluster.data, str(path[0])).read_bytes()).hexdigest() for path in paths if path]
