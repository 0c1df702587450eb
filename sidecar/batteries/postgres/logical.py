"""Bundles that hold what a cluster means, not its files (`archive: logical`), and how one is taken and becomes a cluster again.

    sidecar.json     which databases there are, and which version can read this; see archive.py
    globals.sql      the roles, as pg_dumpall writes them, without the battery's own
    databases/<n>/   one database, as pg_dump -Fd writes it, uncompressed, so that the store finds what it has already

A dump holds SQL, and whoever loads it does what it says, as a superuser of a server that runs as an ordinary account; a physical
bundle may do as much. What it does not get is our shell: psql, whose commands (\\!) a dump may contain, is not used. The roles
go to the server as one statement, which refuses what is no SQL.

Whoever dumps has ended the clients before, so that the databases are of one moment. All of pg_dump's versions write for servers
of their own major or later ones. So it is the *program's* major that a bundle is of.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from psycopg import sql

from sidecar.batteries import Progress
from sidecar.batteries.postgres import closed, clusters, sessions
from sidecar.batteries.postgres.archive import LOGICAL, Described, write_record
from sidecar.batteries.postgres.closed import Closed, Tools
from sidecar.batteries.postgres.configuration import ADMIN, conninfo, scram_verifier
from sidecar.batteries.postgres.installations import Installation
from sidecar.batteries.postgres.postmaster import Server
from sidecar.batteries.postgres.programs import Account, Cancelled, environment, run
from sidecar.batteries.postgres.sessions import Connect, Connection
from sidecar.batteries.postgres.stage import Stage, Task
from sidecar.errors import ConfigurationError, Corrupt, PeerFailed
from sidecar.parameters.fuse import Destination
from sidecar.store import Accept, Bundle, Entry, Store
from sidecar.store.format import LINK

GLOBALS = "globals.sql"
JOBS = "2"
_FOLDER = "dump"  # in the stage's own directory
_LONGEST = 64 << 20  # bytes of globals.sql: some hundred thousand roles
_TEMPLATE = ("encoding", "lc-collate", "lc-ctype")

# What newer minors have psql do around a script, and the battery's own role, which every life makes anew. pg_dumpall has each
# of these statements on a line of its own.
_NOT_OURS_TO_LOAD = re.compile(rf"^(\\(un)?restrict [A-Za-z0-9]+|(CREATE|ALTER) ROLE {ADMIN}( [^\n]*)?;)\n", re.MULTILINE)
_CREATE = re.compile(r'^CREATE ROLE ("(?:[^"\n]|"")*"|[a-z_][a-z0-9_$]*);\n', re.MULTILINE)


# --- taking one --------------------------------------------------------------------------------------------------------


def dump(
    task: Task,
    server: Server,
    connect: Connect,
    installed: Sequence[Installation],
    record: Mapping[str, Any],
) -> None:
    """Have all that a running server holds in files beside its cluster; nobody else is connected. `keep` makes them a bundle.

    ConfigurationError where a dump would lose what was prepared, or no installation has the programs.
    """
    installation = dumper(installed, server.installation.major)
    folder = folder_of(task.stage)
    closed.make_folder(folder, task.who)
    with closed.room(task.stage), sessions.told("dumping"), connect("postgres") as connection:
        refuse_prepared(connection, "a dump leaves them out; commit them or roll them back first, or say archive: physical")
        with closed.tools(task, server) as programs:
            found = take(task, programs, connection, connect, installation, folder)
        facts = {name: {**record["databases"].get(name, {}), **how} for name, how in found.items()}
        told = {"kind": LOGICAL, "major": installation.major, "databases": facts}
        told |= {"bootstrap": superuser(connection), "template": template(connection)}
    write_record(folder, {**record, **told}, task.who)
    clusters.sync(folder)


def folder_of(stage: Stage) -> str:
    """Return where `dump` has its files; they may be removed once they are in a bundle."""
    return f"{stage.home}/{_FOLDER}"


def dumper(installed: Sequence[Installation], major: int) -> Installation:
    """Return the oldest installation whose programs dump servers of `major`. ConfigurationError."""
    able = [each for each in installed if each.major >= major and all(map(each.has, ("pg_dump", "pg_dumpall")))]
    if not able:
        problem = f"no installation of PostgreSQL {major} or later has pg_dump and pg_dumpall"
        raise ConfigurationError(f"{problem} (Debian: apt-get install postgresql-client-{major})")
    # Of the minors of that major the newest.
    return max((each for each in able if each.major == able[0].major), key=able.index)


def keep(
    stage: Stage,
    store: Store,
    destination: Destination,
    label: str,
    *,
    contributor: str,
    base: Bundle | None,
    accept: Accept | None = None,
    progress: Progress,
    cancelled: Cancelled,
) -> Bundle:
    """Keep what was dumped as a bundle, and return it; again the same one if a killed life did it already."""
    return store.save(
        folder_of(stage),
        destination.repo,
        label=label,
        message=destination.message,
        contributor=contributor,
        progress=progress,
        reuse=True,
        base=base,
        accept=accept,
        cancelled=cancelled,
    )


def take(
    task: Task,
    programs: Tools,
    connection: Connection,
    connect: Connect,
    installation: Installation,
    folder: str,
) -> dict[str, dict[str, Any]]:
    """Dump a server into a directory; return what is in it: by the name of each database, its number and whether it is shut."""
    closed.make_folder(f"{folder}/databases", task.who)
    task.say("dumping roles")
    programs.run(installation, "pg_dumpall", "--globals-only", "--file", f"{folder}/{GLOBALS}")
    write_script(f"{folder}/{GLOBALS}", without_admin(read_script(f"{folder}/{GLOBALS}")), task.who)
    found: dict[str, dict[str, Any]] = {}
    with reachable(connection) as shut:
        for name in sessions.databases(connection):
            if name == "template1" and not _has_objects(connect):
                continue
            task.say(f"dumping database {name!r}")
            found[name] = {"dump": len(found), **({"shut": True} if name in shut else {})}
            how = [
                "--format",
                "directory",
                "--compress",
                "0",
                "--jobs",
                JOBS,
                "--file",
                f"{folder}/databases/{found[name]['dump']}",
            ]
            programs.run(installation, "pg_dump", *how, "--dbname", conninfo({"dbname": name}))
    return found


@contextmanager
def reachable(connection: Connection) -> Iterator[list[str]]:
    """Within it, databases that let nobody in let ADMIN in; yield their names."""
    shut = shut_databases(connection)
    for name in shut:
        set_reachable(connection, name, True)
    try:
        yield shut
    finally:
        if not connection.broken:
            for name in shut:
                set_reachable(connection, name, False)


def shut_databases(connection: Connection) -> list[str]:
    """Return the databases that let nobody in, less template0, which is the same in every cluster."""
    query = "SELECT datname FROM pg_database WHERE NOT datallowconn AND datname <> 'template0' ORDER BY datname COLLATE \"C\""
    return [row[0] for row in connection.execute(query)]


def set_reachable(connection: Connection, name: str, whether: bool) -> None:
    """Have a database let connections in, or not."""
    connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(sql.Identifier(name), sql.Literal(whether)))


def refuse_prepared(connection: Connection, remedy: str) -> None:
    """ConfigurationError where there are prepared transactions, which no dump or upgrade carries over."""
    prepared = sessions.prepared(connection)
    if prepared:
        named = ", ".join(map(repr, prepared[:3]))
        raise ConfigurationError(f"there are {len(prepared)} prepared transactions ({named}), and {remedy}")


def superuser(connection: Connection) -> str:
    """Return the name of the superuser that a cluster was made with: what roles were granted by it, only such a one can grant."""
    row = connection.execute("SELECT rolname FROM pg_authid WHERE oid = 10").fetchone()
    return row[0] if row else ADMIN


def template(connection: Connection) -> dict[str, str]:
    """Return what initdb is told so that a new template0 is like this one. ConfigurationError where there is none."""
    row = connection.execute(
        "SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database WHERE datname = 'template0'"
    ).fetchone()
    if row is None:
        raise ConfigurationError("the cluster has no template0, which pg_dump and pg_upgrade need")
    return dict(zip(_TEMPLATE, row, strict=True))


def _has_objects(connect: Connect) -> bool:
    """Say whether somebody put something into template1."""
    with connect("template1") as connection:
        return connection.execute(_OBJECTS).fetchone() is not None


# 16384 is FirstNormalObjectId: what initdb makes has lower ones.
_OBJECTS = """
SELECT FROM pg_namespace WHERE oid >= 16384 UNION ALL SELECT FROM pg_class WHERE oid >= 16384
UNION ALL SELECT FROM pg_proc WHERE oid >= 16384 UNION ALL SELECT FROM pg_type WHERE oid >= 16384
UNION ALL SELECT FROM pg_extension WHERE oid >= 16384"""


def read_script(path: str) -> str:
    """Return a file of SQL that the server's account, or a bundle, has written. Corrupt where it is none."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            data = file.read(_LONGEST + 1)
        if len(data) > _LONGEST:
            raise Corrupt(f"{path} has more than {_LONGEST >> 20} MiB")
        return data.decode()
    except OSError as error:
        raise Corrupt(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Corrupt(f"{path} is not in UTF-8") from None


def write_script(path: str, text: str, who: Account) -> None:
    """Put a file of SQL in the place of the one that was there."""
    os.unlink(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        who.own(fd)
        file.write(text)


def without_admin(text: str) -> str:
    """Return pg_dumpall's script of roles without the battery's own role, and without what only psql understands. Pure."""
    return _NOT_OURS_TO_LOAD.sub("", text)


# --- becoming a cluster again ------------------------------------------------------------------------------------------


def load(
    task: Task,
    store: Store,
    bundle: Bundle,
    described: Described,
    installation: Installation,
) -> None:
    """Have a cluster with what a logical bundle holds in the stage's `partial`, clean and on its disk."""
    dumps = dumps_of(bundle, described, store.manifest(bundle))
    if installation.major < described.major:
        problem = f"{bundle.reference} was dumped with PostgreSQL {described.major}, which {installation.version} cannot read"
        raise ConfigurationError(f"{problem} (Debian: apt-get install postgresql-{described.major})")
    partial = task.stage.partial
    with closed.room(task.stage), closed.scratch(task) as folder:
        store.populate(bundle, folder, task.progress, cancelled=task.cancelled)
        clusters.own(folder, task.who)
        closed.make_folder(partial, task.who)
        initdb(task, partial, installation, *_like(described.record))
        how = {**closed.of_libraries(task.settings), **closed.LOADING}
        with closed.serve(task, partial, installation, how) as server:
            put(task, server, installation, folder, dumps)
    clusters.sync(partial)


def _like(record: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return which superuser and which template0 a dumped cluster had."""
    said = record.get("template")
    said = said if isinstance(said, dict) else {}
    return str(record.get("bootstrap") or ADMIN), {name: str(said[name]) for name in _TEMPLATE if name in said}


def dumps_of(bundle: Bundle, described: Described, entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """Return what a bundle says that it holds, as `take` does. Corrupt where it does not hold that, or links."""
    links = [entry.path for entry in entries if entry.type == LINK]
    if links:
        raise Corrupt(f"{bundle.reference} holds links ({', '.join(map(repr, links[:3]))}), as no dump does; it is refused")
    paths = {entry.path for entry in entries}
    said = described.record.get("databases")
    found = {}
    for name, facts in said.items() if isinstance(said, dict) else ():
        number = facts.get("dump") if isinstance(facts, dict) else None
        if number is None:
            continue
        if type(number) is not int or f"databases/{number}/toc.dat" not in paths:
            raise Corrupt(f"{bundle.reference} says that it holds database {name!r}, and holds no dump of it")
        found[name] = {"dump": number, "shut": facts.get("shut") is True}
    if not found or GLOBALS not in paths:
        raise Corrupt(f"{bundle.reference} says that it is a dump, and holds no {GLOBALS if found else 'database'}")
    return found


def initdb(
    task: Task,
    data: str,
    installation: Installation,
    superuser: str,
    options: Mapping[str, str],
    *,
    checksums: bool = True,
) -> None:
    """Make a cluster in an empty directory of the account's, whose superuser is called like that. Nothing is synced yet."""
    argv = [installation.program("initdb"), "-D", data, "-U", superuser, "-N", "-A", "scram-sha-256", "--auth-local=peer"]
    argv += [f"--{name}={text}" for name, text in {"encoding": "UTF8", "locale": clusters.DEFAULT_LOCALE, **options}.items()]
    if checksums:
        argv.append("--data-checksums")
    elif installation.major >= 18:
        argv.append("--no-data-checksums")
    try:
        run(argv, task.who, environment(installation.bindir, data), cancelled=task.cancelled)
    except PeerFailed as error:
        raise PeerFailed(f"a cluster of PostgreSQL {installation.version} cannot be made: {error}") from None


def put(task: Task, server: Closed, installation: Installation, folder: str, dumps: Mapping[str, Mapping[str, Any]]) -> None:
    """Load what `take` has dumped into a new cluster: roles, databases, and what planners want to know of them."""
    with sessions.told("loading roles"):
        task.say("loading roles")
        put_roles(server.connection, read_script(f"{folder}/{GLOBALS}"), server.server.password)
    with sessions.told("loading databases"):
        with server.elsewhere():
            for name, how in dumps.items():
                task.say(f"loading database {name!r}")
                _restore(server, installation, name, f"{folder}/databases/{how['dump']}")
        task.say("analyzing")
        analyze(server, installation)
        for name in (name for name, how in dumps.items() if how.get("shut")):
            set_reachable(server.connection, name, False)


def _restore(server: Closed, installation: Installation, name: str, path: str) -> None:
    """Make a database of a dump, with its owner, locale and settings; template1 there is already, and nobody can do without."""
    if name == "postgres":
        server.connection.execute("DROP DATABASE postgres")
    create = [] if name == "template1" else ["--create"]
    how = ["--format", "directory", "--jobs", JOBS, "--exit-on-error", *create, "--dbname", "template1", path]
    server.tools.run(installation, "pg_restore", *how)


def put_roles(connection: Connection, text: str, password: str) -> None:
    """Have the roles of a script; those that are there already keep what they have besides. All of them, or none.

    Sent as one statement: the server says of a command to psql that it is no SQL.
    """
    there = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles")}
    text = _CREATE.sub(lambda match: "" if _name(match[1]) in there else match[0], without_admin(text))
    verifier = scram_verifier(password, secrets.token_bytes(16), 1)
    # Whatever it made of ADMIN, whose lines it could have written otherwise.
    mine = f"ALTER ROLE {ADMIN} WITH SUPERUSER LOGIN VALID UNTIL 'infinity' CONNECTION LIMIT -1 PASSWORD '{verifier}'"
    connection.execute(f"{text}\n;{mine}".encode())


def _name(identifier: str) -> str:
    return identifier[1:-1].replace('""', '"') if identifier.startswith('"') else identifier


def analyze(server: Closed, installation: Installation, *options: str) -> None:
    """Have planners know what is in all databases. Not in stages: nobody waits for the first one."""
    server.tools.run(installation, "vacuumdb", "--all", "--analyze-only", "--jobs", JOBS, "--quiet", *options)


def forget(stage: Stage) -> None:
    """Remove what was dumped."""
    shutil.rmtree(folder_of(stage), ignore_errors=True)
