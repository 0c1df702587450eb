"""What is said to a running server, as ADMIN: before clients are let in, while they are, and before it is shut down for good.

Every connection here is ADMIN's own, commits each statement, and insists on its settings (configuration.session_options). Names
are quoted by psycopg; nothing that a user or a bundle says becomes part of a statement as it is.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import sql

from sidecar.batteries.postgres.configuration import ADMIN
from sidecar.batteries.postgres.programs import Cancelled
from sidecar.batteries.postgres.visibility import all_frozen, all_visible
from sidecar.errors import ConfigurationError, PeerFailed
from sidecar.store import Stopped
from sidecar.values import value

Connection = psycopg.Connection[Any]
Connect = Callable[[str], Connection]

# What roles and databases may have set for themselves that loads a library, or reads past damage.
_DISARMED = (
    "session_preload_libraries",
    "local_preload_libraries",
    "dynamic_library_path",
    "extension_control_path",
    "jit_provider",
    "synchronous_commit",
    "zero_damaged_pages",
    "ignore_checksum_failure",
)
_LOOK = 0.05


@contextmanager
def told(what: str) -> Iterator[None]:
    """Within it, what the server refuses is PeerFailed and says at what. Never with the statement, which may hold a secret."""
    try:
        yield
    except psycopg.Error as error:
        problem = error.diag.message_primary or " ".join(str(error).split())
        raise PeerFailed(f"{what}: {problem}") from None


# --- before clients are let in -----------------------------------------------------------------------------------------


def disarm(connection: Connection) -> list[str]:
    """Take away what roles and databases of a bundle have set that loads libraries; return what it was."""
    rows = connection.execute(
        "SELECT d.datname, r.rolname, split_part(s.setting, '=', 1) FROM pg_db_role_setting c"
        " LEFT JOIN pg_database d ON d.oid = c.setdatabase LEFT JOIN pg_roles r ON r.oid = c.setrole,"
        " unnest(c.setconfig) AS s(setting) WHERE split_part(s.setting, '=', 1) = ANY(%s) OR r.rolname = %s",
        [list(_DISARMED), ADMIN],
    ).fetchall()
    for database, role, name in rows:
        connection.execute(sql.SQL("ALTER {} RESET {}").format(_whose(database, role), sql.Identifier(name)))
    return [f"{name} of {' in '.join(filter(None, (role, database))) or 'all roles'}" for database, role, name in rows]


def _whose(database: str | None, role: str | None) -> sql.Composable:
    if role is None and database is not None:
        return sql.SQL("DATABASE {}").format(sql.Identifier(database))
    whose = sql.Identifier(role) if role is not None else sql.SQL("ALL")
    if database is None:
        return sql.SQL("ROLE {}").format(whose)
    return sql.SQL("ROLE {} IN DATABASE {}").format(whose, sql.Identifier(database))


def own(connection: Connection, owner: str, verifier: str | None, *, superuser: bool) -> None:
    """Have the role that the application comes as: it may make databases; it is a superuser only where that is asked for.

    Not CREATEROLE, which before version 16 is as good as a superuser: it may make itself a member of pg_execute_server_program.
    `verifier` is what is kept of its password, None for none. ConfigurationError where it cannot be made an ordinary role.
    """
    name = sql.Identifier(owner)
    row = connection.execute("SELECT oid, rolsuper FROM pg_roles WHERE rolname = %s", [owner]).fetchone()
    if row is None:
        connection.execute(sql.SQL("CREATE ROLE {}").format(name))
    elif row[0] == 10 and not superuser:
        problem = f"{owner!r} is the superuser that the bundle's cluster was made with"
        raise ConfigurationError(f"{problem}; name another owner, or say superuser: true, for code it runs is the server's")
    power = sql.SQL("SUPERUSER" if superuser else "NOSUPERUSER NOCREATEROLE NOREPLICATION NOBYPASSRLS")
    # A bundle may have it that the role's time is over.
    statement = sql.SQL("ALTER ROLE {} WITH LOGIN CREATEDB {} VALID UNTIL 'infinity' CONNECTION LIMIT -1 PASSWORD {}").format(
        name, power, sql.Literal(verifier)
    )
    # Settings, of a bundle also, may have every statement written into the log; what is kept of a password has no place there.
    connection.execute("SET log_min_messages = 'panic'")
    connection.execute(statement)
    connection.execute("RESET log_min_messages")
    if not superuser:
        _check_ordinary(connection, owner)


def _check_ordinary(connection: Connection, owner: str) -> None:
    """ConfigurationError where the role, as a bundle has it, may become a superuser, or run programs, by other roles' right."""
    row = connection.execute(
        "SELECT rolname FROM pg_roles WHERE rolname <> %(owner)s AND pg_has_role(%(owner)s, oid, 'MEMBER')"
        " AND (rolsuper OR rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files'))",
        {"owner": owner},
    ).fetchone()
    if row:
        problem = f"{owner!r} is a member of {row[0]!r} in the bundle, and could have the server run anything"
        raise ConfigurationError(f"{problem}; name another owner, or say superuser: true, for code it runs is the server's")


def create_databases(connection: Connection, names: Sequence[str], owner: str) -> list[str]:
    """Have these databases; return those that are new."""
    there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
    new = [name for name in dict.fromkeys(names) if name not in there]
    for name in new:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(owner)))
    return new


def give_default(connection: Connection, owner: str) -> None:
    """Give the database `postgres` of a new cluster to the owner, who could make no table there otherwise (since 15)."""
    connection.execute(sql.SQL("ALTER DATABASE postgres OWNER TO {}").format(sql.Identifier(owner)))


def databases(connection: Connection) -> list[str]:
    """Return the databases that can be connected to, by name."""
    # One whose removal was cut off has a limit of -2, and lets in nobody.
    found = connection.execute(
        'SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname COLLATE "C"'
    )
    return [row[0] for row in found]


def renew_collations(connect: Connect, major: int, names: Sequence[str], tell: Callable[[str], None]) -> list[str]:
    """Build indexes again whose order is that of another version of a collation; return the collations, by database.

    Where the library that sorts is another than the one that a bundle was made with, its indexes may not find what they hold.
    """
    renewed = []
    for database in names:
        with connect(database) as connection:
            for oid, name in _moved(connection, major):
                tell(f"database {database!r}: collation {name} has another version here; its indexes are built again")
                _reindex(connection, oid)
                if oid == _DEFAULT_COLLATION:
                    refresh = sql.SQL("ALTER DATABASE {} REFRESH COLLATION VERSION").format(sql.Identifier(database))
                else:
                    refresh = sql.SQL("ALTER COLLATION {} REFRESH VERSION").format(sql.SQL(name))
                connection.execute(refresh)
                renewed.append(f"{database}: {name}")
    return renewed


_DEFAULT_COLLATION = 100  # the database's own


def _moved(connection: Connection, major: int) -> list[tuple[int, str]]:
    """Return the collations that are of another version than they were, by oid, with their quoted names."""
    query = (
        "SELECT oid, quote_ident(collnamespace::regnamespace::text) || '.' || quote_ident(collname) FROM pg_collation"
        " WHERE collversion IS NOT NULL AND collversion IS DISTINCT FROM pg_collation_actual_version(oid)"
        " AND oid IN (SELECT unnest(indcollation) FROM pg_index)"
    )
    found = list(connection.execute(query).fetchall())
    if major >= 15:
        query = (
            "SELECT 1 FROM pg_database WHERE datname = current_database() AND datcollversion IS NOT NULL"
            " AND datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid)"
        )
        if connection.execute(query).fetchone():
            found.append((_DEFAULT_COLLATION, "default"))
    return found


def _reindex(connection: Connection, collation: int) -> None:
    query = (
        "SELECT n.nspname, c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE %s = ANY(i.indcollation::oid[]) AND c.relkind = 'i' AND c.relpersistence <> 't'"
    )
    for schema, name in connection.execute(query, [collation]).fetchall():
        connection.execute(sql.SQL("REINDEX INDEX {}").format(sql.Identifier(schema, name)))


# --- while clients are in ----------------------------------------------------------------------------------------------


@value
class Activity:
    """How a server is doing: clients connected, bytes of all databases, and where its log is (bytes since it was made)."""

    clients: int
    size: int
    log: int


def activity(connection: Connection) -> Activity:
    """Return how a server is doing."""
    row = connection.execute(
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename <> %s),"
        " (SELECT sum(pg_database_size(oid))::bigint FROM pg_database), (pg_current_wal_insert_lsn() - '0/0')::bigint",
        [ADMIN],
    ).fetchone()
    assert row is not None
    return Activity(*row)


def began(connection: Connection) -> str:
    """Return what is another one each time that all processes of a server begin anew, after one of them was killed."""
    never = threading.Event()
    while True:
        found = connection.execute(
            "SELECT pid, backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
        ).fetchone()
        if found is not None:
            return f"{found[0]} {found[1]}"
        never.wait(_LOOK / 10)  # a server that has just begun takes connections before all of its own are there


# --- before it is shut down for good -----------------------------------------------------------------------------------


def end_clients(connection: Connection, cancelled: Cancelled) -> int:
    """End every session but ADMIN's, and return, once there is none, how many there were. New ones are not let in by now.

    One that looks at no interrupt, whatever keeps it from that, is killed after _PATIENCE. The server then ends all its processes
    and recovers, and we are cut off, too. Were it only passed over, what it has locked would hold the vacuum for ever.
    """
    ended: set[int] = set()
    never, begun = threading.Event(), time.monotonic()
    while True:
        rows = connection.execute(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchall()
        if not rows:
            return len(ended)
        ended |= {row[0] for row in rows}
        if cancelled():
            raise Stopped("told to stop while clients were ended")
        if time.monotonic() - begun > _PATIENCE:
            _kill(row[0] for row in rows)
        never.wait(_LOOK)


# Seconds. It ends what it does within milliseconds, or hangs; a slow disk may take some tens of seconds for a single write.
_PATIENCE = 60.0


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def prepared(connection: Connection) -> list[str]:
    """Return the transactions that were prepared and neither committed nor rolled back. They are archived as they are."""
    return [row[0] for row in connection.execute("SELECT gid FROM pg_prepared_xacts ORDER BY gid")]


def slots(connection: Connection) -> list[str]:
    """Return the replication slots. No archive holds them: what they wait for is log that none holds either."""
    return [row[0] for row in connection.execute("SELECT slot_name FROM pg_replication_slots ORDER BY slot_name")]


def freeze(connect: Connect, names: Sequence[str], policy: str, tell: Callable[[str], None], cancelled: Cancelled) -> int:
    """Vacuum tables by policy (`auto`, `always`, `never`), so that reading them later changes no page; return how many.

    `auto` takes those with a page that a reader would change: such a page was changed itself, and is stored again anyway.
    `always` freezes, too, which changes every page that never was.
    """
    if policy == "never":
        return 0
    vacuum = sql.SQL("VACUUM (FREEZE, INDEX_CLEANUP TRUE) {}" if policy == "always" else "VACUUM (INDEX_CLEANUP TRUE) {}")
    count = all_frozen if policy == "always" else all_visible
    frozen = 0
    for database in names:
        with connect(database) as connection:
            checkpoint(connection)  # the maps are read as they are on disk
            for schema, table, pages, block, fork in connection.execute(_TABLES).fetchall():
                if count(fork or b"", block) >= pages:
                    continue
                if cancelled():
                    raise Stopped("told to stop while tables were vacuumed")
                tell(f"vacuuming {schema}.{table} of database {database!r}")
                connection.execute(vacuum.format(sql.Identifier(schema, table)))
                frozen += 1
    return frozen


# Of each table its pages, and its visibility map, of which 64 MiB stand for 2 TiB.
_TABLES = """
SELECT n.nspname, c.relname, pg_relation_size(c.oid) / s.block, s.block,
    pg_read_binary_file(pg_relation_filepath(c.oid) || '_vm', 0, 67108864, true)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, (SELECT current_setting('block_size')::int AS block) s
WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't' AND pg_relation_size(c.oid) > 0
ORDER BY pg_relation_size(c.oid) DESC"""


def checkpoint(connection: Connection) -> None:
    """Have all that is in memory written: what is left for the shutdown is little."""
    connection.execute("CHECKPOINT")


def facts(connect: Connect, major: int, names: Sequence[str]) -> dict[str, Any]:
    """Return what a bundle records of its cluster: the same for the same content, whenever it is asked."""
    with connect(names[0]) as connection:
        version = connection.execute("SHOW server_version").fetchone()
    told: dict[str, Any] = {"version": str(version[0]).split()[0] if version else "", "databases": {}}
    for database in names:
        with connect(database) as connection:
            row = connection.execute(
                "SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database WHERE datname = current_database()"
            ).fetchone()
            assert row is not None
            extensions = connection.execute(
                'SELECT extname, extversion FROM pg_extension ORDER BY extname COLLATE "C"'
            ).fetchall()
            told["databases"][database] = {
                "encoding": row[0],
                "collate": row[1],
                "ctype": row[2],
                "extensions": dict(extensions),
                "collations": _versions(connection, major),
            }
    return told


def _versions(connection: Connection, major: int) -> dict[str, str]:
    """Return the versions of the collations that indexes are ordered by."""
    found = dict(
        connection.execute(
            "SELECT collname, collversion FROM pg_collation"
            " WHERE collversion IS NOT NULL AND oid IN (SELECT unnest(indcollation) FROM pg_index)"
            ' ORDER BY collname COLLATE "C"'
        ).fetchall()
    )
    if major >= 15:
        row = connection.execute("SELECT datcollversion FROM pg_database WHERE datname = current_database()").fetchone()
        if row and row[0]:
            found["default"] = row[0]
    return found
