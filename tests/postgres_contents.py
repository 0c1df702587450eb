"""What clusters are filled with that tests move about, a digest of it, and the directory of a database that they are put into.

    with made(installation()) as data, staged(data) as stage: ...

Nothing of it is made by initdb alone: tables of pgbench, jsonb with a GIN index, unlogged and partitioned ones, a
materialized view, a large object, roles that are members of each other, and names that a shell or SQL would take apart.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import memory
import psycopg
import pytest
import servers
from psycopg import sql
from servers import Cluster, new_folder

from sidecar.batteries.postgres import closed, logical, sessions
from sidecar.batteries.postgres.installations import Installation
from sidecar.batteries.postgres.programs import Account, account
from sidecar.batteries.postgres.stage import Stage, Task

ODD = 'o\'dd "$(touch /tmp/pwned)" `x` \\ ünd'
_ROLES = [
    "CREATE ROLE \"wri ter$(id)\" LOGIN PASSWORD 'SCRAM-SHA-256$4096:c2FsdA==$YQ==:Yg=='",
    "CREATE ROLE readers",
    'GRANT readers TO "wri ter$(id)"',
    "ALTER ROLE readers SET work_mem = '7MB'",
    "COMMENT ON ROLE readers IS 'more\n\\! touch /tmp/pwned\nthan a line; and more'",
]
_TABLES = [
    "CREATE TABLE accounts (aid int PRIMARY KEY, bid int, balance int NOT NULL, filler char(84) DEFAULT '')",
    "INSERT INTO accounts SELECT i, 1, i % 97 FROM generate_series(1, 20000) i",
    "CREATE INDEX by_balance ON accounts (balance)",
    'CREATE TABLE docs (id serial PRIMARY KEY, doc jsonb, words text COLLATE "C")',
    "CREATE INDEX by_doc ON docs USING gin (doc)",
    "CREATE INDEX by_words ON docs (words)",
    "INSERT INTO docs (doc, words) SELECT jsonb_build_object('n', i, 'tags', array['a' || i % 7]), md5(i::text)"
    " FROM generate_series(1, 500) i",
    "INSERT INTO docs (doc, words) VALUES (to_jsonb(repeat('long ', 40000)), 'toasted')",
    "CREATE UNLOGGED TABLE unlogged AS SELECT i FROM generate_series(1, 1000) i",
    "CREATE TABLE events (at date, what text) PARTITION BY RANGE (at)",
    "CREATE TABLE events_a PARTITION OF events FOR VALUES FROM ('2020-01-01') TO ('2021-01-01')",
    "CREATE TABLE events_b PARTITION OF events FOR VALUES FROM ('2021-01-01') TO ('2022-01-01')",
    "CREATE INDEX by_at ON events (at)",
    "INSERT INTO events SELECT '2020-01-01'::date + i, 'event ' || i FROM generate_series(1, 700) i",
    "CREATE MATERIALIZED VIEW totals AS SELECT balance, count(*) FROM accounts GROUP BY balance",
    "CREATE MATERIALIZED VIEW never AS SELECT 1 AS one WITH NO DATA",
    "SELECT lo_from_bytea(0, repeat('large', 10000)::bytea)",
    "CREATE EXTENSION hstore",
    "CREATE TABLE pairs (h hstore)",
    "INSERT INTO pairs VALUES ('a => 1')",
    "GRANT SELECT ON docs TO readers",
]
_DATABASES = [
    f"CREATE DATABASE {sql.Identifier(ODD).as_string()} OWNER \"wri ter$(id)\" TEMPLATE template0 ENCODING 'UTF8'",
    f"ALTER DATABASE {sql.Identifier(ODD).as_string()} SET search_path = 'o dd', public",
    "CREATE DATABASE shut",
    'CREATE DATABASE "a=b dbname=postgres"',
]
_IN_ODD = [
    'CREATE SCHEMA "o dd"',
    f'CREATE TABLE {sql.Identifier("o dd", ODD).as_string()} ("col \'umn" text)',
    f"INSERT INTO {sql.Identifier('o dd', ODD).as_string()} SELECT 'row ' || i FROM generate_series(1, 100) i",
]


def fill(cluster: Cluster) -> None:
    """Have all of it in a cluster that runs."""
    for statement in (*_ROLES, *_TABLES, *_DATABASES):
        cluster.query(statement)
    for statement in _IN_ODD:
        cluster.query(statement, ODD)
    cluster.query("CREATE TABLE secret AS SELECT 'kept' AS what", "shut")
    cluster.query("ALTER DATABASE shut ALLOW_CONNECTIONS false")
    cluster.query("CREATE TABLE everywhere AS SELECT 1 AS one", "template1")


@contextmanager
def made(
    installed: Installation,
    *statements: str,
    clean: bool = True,
    options: Iterable[str] = (),
    settings: Iterable[str] = (),
    checksums: bool = True,
) -> Iterator[Path]:
    """Yield the data directory of a new cluster in which `statements` were carried out; without any, it has all of the above."""
    with new_folder() as folder:
        cluster = Cluster(installed, folder / "data")
        servers.run(["cp", "-a", _template(installed, checksums, *options), cluster.data])
        cluster.start(*settings)
        for statement in statements:
            cluster.query(statement)
        if not statements:
            fill(cluster)
        cluster.stop(*([] if clean else [signal.SIGQUIT]))
        yield cluster.data


_FOLDERS: list[Path] = []


@pytest.fixture(scope="session", autouse=True)
def templates() -> Iterator[None]:
    """Remove the clusters that others were copied from, once all tests are over."""
    yield
    _template.cache_clear()
    while _FOLDERS:
        shutil.rmtree(_FOLDERS.pop())


@cache
def _template(installed: Installation, checksums: bool, *options: str) -> Path:
    """Return a new cluster, which is made once: initdb takes longer than most tests."""
    folder = Path(tempfile.mkdtemp(prefix="pg", dir=memory.PLACE))
    _FOLDERS.append(folder)
    servers.give(folder)
    without = ["--no-data-checksums"] if installed.major >= 18 else []
    new = [installed.program("initdb"), "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale"]
    servers.run([*new, "--no-sync", *(["-k"] if checksums else without), *options])
    return folder / "data"


@contextmanager
def staged(data: Path | None = None, name: str = "db1", *, copy: bool = False) -> Iterator[Stage]:
    """Yield the directory of a database, which is owned, with a cluster, or a copy of it, that is not accepted yet."""
    with new_folder() as folder:
        (folder / "stage").mkdir(mode=0o711)
        stage = Stage(f"{folder}/stage/{name}", "a session")
        stage.own(who())
        if data is not None:
            if copy:
                servers.run(["cp", "-a", data, folder / "copy"])
                data = folder / "copy"
            os.rename(data, stage.partial)
        try:
            yield stage
        finally:
            stage.release()


def who() -> Account:
    """Return whom servers run as."""
    return account(servers.ACCOUNT)


def never() -> bool:
    return False


def task(stage: Stage, tell: Callable[[str], object] | None = None, cancelled: Callable[[], bool] = never) -> Task:
    """Return what the battery would say of the database whose directory this is, and have it told what goes on."""

    def progress(what: str, done: int, size: int) -> None:
        if tell is not None:
            tell(what)

    return Task(stage, who(), {}, progress, cancelled)


@contextmanager
def serving(stage: Stage, installed: Installation, data: str = "") -> Iterator[closed.Closed]:
    """Have a server run on what was made."""
    with closed.serve(task(stage), data or stage.partial, installed, {}) as server:
        yield server


# --- what there is -----------------------------------------------------------------------------------------------------


def digest(server: closed.Closed) -> dict[str, Any]:
    """Return what a server holds: the same before and after, whatever its version; the battery's own role apart."""
    found: dict[str, Any] = {}
    with logical.reachable(server.connection) as shut:
        for name in sessions.databases(server.connection):
            with server.connect(name) as connection:
                found |= {f"{name}: {what}": held for what, held in _held(connection).items()}
    found["shut"] = shut
    for what, query in _OF_ALL.items():
        found[what] = [tuple(map(str, row)) for row in server.connection.execute(query.encode())]
    return found


def _held(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    tables = connection.execute(_READABLE).fetchall()
    for schema, table in tables:
        rows = sql.SQL("SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text COLLATE \"C\")) FROM ONLY {} t")
        found[f"{schema}.{table}"] = connection.execute(rows.format(sql.Identifier(schema, table))).fetchone()
    for what, query in _OF_ONE.items():
        found[what] = connection.execute(query.encode()).fetchall()
    return found


_USERS = "n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_toast'"
_READABLE = f"""
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relispopulated AND {_USERS} ORDER BY 1, 2""".encode()
_OF_ONE = {
    "large objects": "SELECT loid, md5(string_agg(data, ''::bytea ORDER BY pageno)) FROM pg_largeobject GROUP BY loid",
    "relations": "SELECT n.nspname, c.relname, c.relkind::text, c.relpersistence::text, pg_get_userbyid(c.relowner),"
    " (SELECT has_table_privilege(r.oid, c.oid, 'SELECT') FROM pg_roles r WHERE rolname = 'readers')"
    f" FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_USERS} ORDER BY 1, 2",
    "indexes": "SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
    f" JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_USERS} ORDER BY 1",
    "sequences": "SELECT sequencename, last_value FROM pg_sequences ORDER BY 1",
    "extensions": "SELECT extname FROM pg_extension ORDER BY 1",
}
_OF_ALL = {
    "databases": "SELECT datname, pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype, datallowconn"
    " FROM pg_database WHERE datname <> 'template1' ORDER BY 1",
    "roles": "SELECT rolname, rolsuper, rolcanlogin, rolpassword, shobj_description(oid, 'pg_authid') FROM pg_authid"
    " WHERE oid >= 16384 AND rolname <> 'sidecar' ORDER BY 1",
    "members": "SELECT roleid::regrole, member::regrole FROM pg_auth_members WHERE member >= 16384 ORDER BY 1, 2",
    "settings": "SELECT d.datname, setrole::regrole, setconfig FROM pg_db_role_setting"
    " LEFT JOIN pg_database d ON d.oid = setdatabase ORDER BY 1, 2",
}
