"""`verify: restore`: what a bundle is good for is seen by using it, before anybody is told that it is there.

The bundle is restored beside the cluster, as any later session would, every byte verified; a server starts on that copy, looks
through all tables and indexes (pg_amcheck), and shuts down cleanly. The copy is thrown away. A dump is loaded instead.

amcheck's extension is needed, which is made in the copy alone. pg_amcheck knows servers since 14; of older ones the indexes are
looked through by amcheck itself, and the tables are read.
"""

from __future__ import annotations

import shutil

from psycopg import sql

from sidecar.batteries.postgres import archive, closed, clusters, logical, sessions
from sidecar.batteries.postgres.archive import LOGICAL
from sidecar.batteries.postgres.closed import Closed
from sidecar.batteries.postgres.installations import Installation
from sidecar.batteries.postgres.sessions import Connection
from sidecar.batteries.postgres.stage import Task
from sidecar.errors import ConfigurationError, Corrupt, NotSaved, PeerFailed, SourceMissing, Unreachable
from sidecar.store import Bundle, Store

_NAMED = 3  # findings in one message
_SINCE = 14  # the first major with pg_amcheck


def verify(task: Task, store: Store, bundle: Bundle, installation: Installation) -> None:
    """Restore a bundle beside the cluster, look through it, and throw the copy away. NotSaved with what was found; Stopped.

    The cluster's own server does not run meanwhile. `installation` is of the bundle's major.
    """
    shutil.rmtree(task.stage.partial, ignore_errors=True)
    try:
        with closed.room(task.stage):
            _look_through(task, store, bundle, installation)
    except (PeerFailed, Corrupt, ConfigurationError, SourceMissing, Unreachable) as error:
        raise NotSaved(f"{bundle.reference} does not pass its verification: {error}; nobody gets it") from None
    finally:
        shutil.rmtree(task.stage.partial, ignore_errors=True)


def _look_through(task: Task, store: Store, bundle: Bundle, installation: Installation) -> None:
    described = archive.describe(store, bundle)
    if described.kind == LOGICAL:
        logical.load(task, store, bundle, described, installation)
    else:
        clusters.restore(task, store, bundle)
    task.say("looking through a restored copy")
    with closed.serve(task, task.stage.partial, installation, task.settings) as server, logical.reachable(server.connection):
        if installation.major < _SINCE or not installation.has("pg_amcheck"):
            _look_without(server, sessions.databases(server.connection))
        else:
            _amcheck(server, installation)


def _amcheck(server: Closed, installation: Installation) -> None:
    """PeerFailed with what pg_amcheck finds; it looks at all of every database."""
    said = server.tools.hear(installation, "pg_amcheck", "--all", "--install-missing", "--jobs", logical.JOBS)
    if said is not None:
        raise PeerFailed(_told(said))


def _told(lines: list[str]) -> str:
    """Return the first things that pg_amcheck found: a line with the place, and below it what is wrong there."""
    said = [" ".join(line.split()) for line in lines if line.strip()]
    found = [number for number, line in enumerate(said) if line.endswith(":")]
    told = [" ".join(said[number : number + 2]) for number in found[:_NAMED]]
    return "; ".join(told or said[:_NAMED]) + (f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else "")


def _look_without(server: Closed, names: list[str]) -> None:
    """Do what can be done without pg_amcheck: read every table, and have amcheck look through every index of a B-tree."""
    for name in names:
        with sessions.told(f"looking through database {name!r}"), server.connect(name) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS amcheck SCHEMA pg_catalog")
            check = sql.SQL("SELECT {}.bt_index_check(%s)").format(sql.Identifier(_schema(connection)))
            for (index,) in connection.execute(_INDEXES).fetchall():
                connection.execute(check, [index])
            for schema, table in connection.execute(_TABLES).fetchall():
                read = sql.SQL("COPY (SELECT * FROM ONLY {}) TO '/dev/null'").format(sql.Identifier(schema, table))
                connection.execute(read)


def _schema(connection: Connection) -> str:
    query = "SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'amcheck'"
    row = connection.execute(query).fetchone()
    assert row is not None
    return str(row[0])


_INDEXES = """
SELECT c.oid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence <> 't' AND i.indisready AND i.indisvalid"""
_TABLES = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND c.relispopulated"""
