"""A restored cluster of one major version of PostgreSQL becomes one of another, before anybody is let in.

    link    pg_upgrade --link: the catalogues are made anew, the files of tables and indexes get a second name. Seconds.
    dump    dump and restore, where pg_upgrade does not agree: an old installation without its tools, an extension whose
            library has another name by now, a type that changed. Minutes, and room for the data twice.

The cluster is a private copy of a bundle. So nothing has to be kept for a way back: a life that is killed here leaves a
directory that is thrown away.

pg_upgrade starts servers with the configuration that lies in the data directory, for which ours is put there first. They are
daemons, which outlive it: whoever ends it has to end them. They inherit the lock of this database (postmaster.hold), so it is
known when they are gone. pg_upgrade hands paths to a shell, and therefore gets none that would mean something there.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import cycle
from typing import Any

import psycopg
from psycopg import sql

from sidecar.batteries.postgres import closed, clusters, logical, sessions
from sidecar.batteries.postgres.closed import Closed
from sidecar.batteries.postgres.configuration import Places, postgresql_conf, server_arguments, session_options
from sidecar.batteries.postgres.installations import Installation
from sidecar.batteries.postgres.postmaster import hold, read_control
from sidecar.batteries.postgres.programs import Account, environment, run
from sidecar.batteries.postgres.sessions import Connect
from sidecar.batteries.postgres.stage import Stage, Task
from sidecar.errors import PeerFailed, SidecarError, Unreachable
from sidecar.store import Stopped
from sidecar.values import value

LINK, DUMP = "link", "dump"
_AUTO = "postgresql.auto.conf"
_FILES = ("postgresql.conf", _AUTO, "pg_hba.conf", "pg_ident.conf")
_HBA = "# For pg_upgrade alone: whoever gets to the socket, in a directory that nobody else may enter.\nlocal all all trust\n"
_SETTING = re.compile(r"\s*([A-Za-z_][\w.$]*)\s*(?:=|\s)\s*('(?:[^'\\\n]|''|\\.)*'|[^\s'#]+)\s*(?:#.*)?", re.ASCII)
# Means nothing to a shell between double quotes, nor between single ones within those.
_PLAIN = re.compile(r"[\w./ +:@%=-]+")
_FILE = re.compile(r"/(\w+\.(?:txt|log))\b")
# Which are gone by the time that somebody reads this.
_NAMED = re.compile(r"A list of [^/]*/.*?/\w+\.txt|Consult the last .*? of the failure\.|Failure, exiting")
_LONGEST = 4 << 20  # bytes of a file of settings
_TOLD = 800  # characters of what pg_upgrade says


@value
class Before:
    """What a cluster is, before: its superuser, what template0 is like, which databases let nobody in, and its relations."""

    superuser: str
    template: Mapping[str, str]
    shut: Sequence[str]
    relations: Mapping[str, int]


def upgrade(task: Task, old: Installation, new: Installation) -> dict[str, Any]:
    """Have the cluster in the stage's `partial` be one of another major, clean and on its disk; return what it was, and how.

    ConfigurationError where only a person can decide; PeerFailed with what either way says; Unreachable where the disk is full.
    """
    with closed.room(task.stage), closed.scratch(task) as work:
        return _Upgrade(task, old, new, work).run()


def check(task: Task, old: Installation, new: Installation) -> str:
    """Return why pg_upgrade would not do it, "" where it would. The cluster stays of its version, and what it holds the same.

    It is clean afterwards, for an unclean one recovers.
    """
    with closed.room(task.stage), closed.scratch(task) as work:
        return _Upgrade(task, old, new, work).check()


class _Upgrade:
    """One upgrade. `work` is a directory beside the cluster, on the same file system."""

    def __init__(self, task: Task, old: Installation, new: Installation, work: str) -> None:
        self.task, self.old, self.new, self.work = task, old, new, work
        self.stage, self.who = task.stage, task.who
        self.libraries = closed.of_libraries(task.settings)
        self.data, self.made = task.stage.partial, f"{work}/new"
        self.control = read_control(self.data)

    def run(self) -> dict[str, Any]:
        kept = disarm(self.data)
        before = self.look()
        self.task.say(f"upgrading from PostgreSQL {self.old.version} to {self.new.version}")
        problem = self.unfit() or self.by_link(before)
        if problem:
            self.task.say(f"upgrading by dump and restore: {problem}")
            self.by_dump(before, problem)
        self.take_over(kept)
        method = DUMP if problem else LINK
        return {"major": self.old.major, "version": self.old.version, "system": str(self.control.system), "method": method}

    def check(self) -> str:
        kept = disarm(self.data)
        before = self.look()
        problem = self.unfit() or self.refused(before, "--check")
        if before.shut:
            with self.serve(self.old, self.data) as server:
                _shut(server, before)
        put_back(self.data, kept, self.who)
        clusters.sync(self.data)
        return problem

    # --- what it is

    def look(self) -> Before:
        """Learn what the cluster is, and have nobody shut out, which pg_upgrade refuses."""
        with self.serve(self.old, self.data) as server, sessions.told("looking at what is to be upgraded"):
            connection = server.connection
            remedy = f"no upgrade carries them over; commit them or roll them back with PostgreSQL {self.old.major}"
            logical.refuse_prepared(connection, remedy)
            shut = logical.shut_databases(connection)
            for name in shut:
                logical.set_reachable(connection, name, True)
            relations = count(server.connect, sessions.databases(connection), rows=False)
            return Before(logical.superuser(connection), logical.template(connection), shut, relations)

    def serve(self, installation: Installation, data: str) -> AbstractContextManager[Closed]:
        """Have a server run, closed, on a cluster."""
        settings = {**self.libraries, **closed.LOADING, "max_prepared_transactions": str(self.control.max_prepared)}
        return closed.serve(self.task, data, installation, settings)

    def initdb(self, before: Before, *, checksums: bool) -> None:
        closed.make_folder(self.made, self.who)
        options = {**before.template, "wal-segsize": str(self.control.segment >> 20)}
        logical.initdb(self.task, self.made, self.new, before.superuser, options, checksums=checksums)

    # --- by link

    def unfit(self) -> str:
        """Return why pg_upgrade cannot be used here, "" where it can."""
        missing = [each for each in ("pg_ctl", "pg_controldata", "pg_resetwal") if not self.old.has(each)]
        if missing:
            return f"PostgreSQL {self.old.version} in {self.old.bindir} has no {' and no '.join(missing)}"
        if not self.new.has("pg_upgrade"):
            return f"PostgreSQL {self.new.version} in {self.new.bindir} has no pg_upgrade"
        odd = [path for path in (self.stage.home, self.old.bindir, self.new.bindir) if not _PLAIN.fullmatch(path)]
        if odd:
            return f"the path {odd[0]!r} holds what a shell would not take as it is"
        return ""

    def refused(self, before: Before, *options: str) -> str:
        """Have pg_upgrade do it, as far as `options` say; return why it does not, where the old cluster is still what it was.

        It checks first, in any case, so it is not run for a check before: that would take a fifth of the time.
        """
        self.initdb(before, checksums=self.control.checksums)
        try:
            self.pg_upgrade(before, *options)
        except PeerFailed as error:
            # It takes this away before it gives away the first file.
            if closed.FULL in str(error) or not os.path.lexists(f"{self.data}/global/pg_control"):
                raise
            return str(error)
        return ""

    def pg_upgrade(self, before: Before, *options: str) -> None:
        """Run it; PeerFailed with what it says and writes. None of the servers that it has begun is left."""
        places = [_places(self.stage, data) for data in (self.data, self.made)]
        argv = [
            self.new.program("pg_upgrade"), "--link", "--old-bindir", self.old.bindir, "--new-bindir", self.new.bindir,
            "--old-datadir", self.data, "--new-datadir", self.made, "--username", before.superuser, "--jobs", logical.JOBS,
            "--socketdir", places[0].socket, "--old-port", str(closed.PORT), "--new-port", str(closed.PORT - 1),
        ]  # fmt: skip
        argv += [*options, *(["--no-sync"] if self.new.major >= 15 else [])]
        lines = list[str]()
        with self.configured(), self.lock(places) as lock:
            try:
                env = environment(self.new.bindir, self.work, {"PGOPTIONS": session_options(self.old.major)})
                run(argv, self.who, env, cancelled=self.task.cancelled, cwd=self.work, hear=lines.append, pass_fds=(lock,))
            except PeerFailed:
                raise PeerFailed(f"pg_upgrade: {self.reason(lines)}") from None

    @contextmanager
    def configured(self) -> Iterator[None]:
        """Within it, both clusters have a configuration for pg_upgrade; afterwards the new one has its own again."""
        locks = {"max_locks_per_transaction": str(min(max(256, self.control.max_locks), 4096))}
        settings = {**self.libraries, **closed.LOADING, **locks}
        lines = [
            postgresql_conf(shared_memory=False),
            *(f"{name} = {_literal(text)}\n" for name, text in settings.items()),
        ]
        ours = {"postgresql.conf": "".join(lines).encode(), "pg_hba.conf": _HBA.encode(), "pg_ident.conf": b""}
        kept = disarm(self.made)
        try:
            put_back(self.data, ours, self.who)
            put_back(self.made, ours, self.who)
            yield
        finally:
            put_back(self.made, kept, self.who)

    @contextmanager
    def lock(self, places: Sequence[Places]) -> Iterator[int]:
        """Hold the lock for a program that begins servers; afterwards none of them is left, and nobody holds it."""
        lock = hold(places[0], self.task.cancelled)
        try:
            yield lock
        finally:
            os.close(lock)
            end_servers(places)

    def reason(self, lines: Sequence[str]) -> str:
        """Return what pg_upgrade said after the last thing that was as it should be, and what stands in the files it names."""
        fine = [number for number, line in enumerate(lines) if line.rstrip().endswith(" ok")]
        said = " ".join(" ".join(lines[fine[-1] + 1 if fine else 0 :]).split())
        files = [told for name in dict.fromkeys(_FILE.findall(said)) if (told := self.written(name))]
        return " ".join([" ".join(_NAMED.sub("", said).split()), *files])[:_TOLD]

    def written(self, name: str) -> str:
        """Return the beginning of a list, or the end of a log, that pg_upgrade has written; "" where there is none."""
        for folder, _, names in os.walk(self.work):
            if name in names:
                with suppress(SidecarError):
                    lines = logical.read_script(f"{folder}/{name}").splitlines()
                    if name.endswith(".log"):
                        lines = [line for line in lines if "ERROR:" in line or "FATAL:" in line] or lines[-3:]
                    return f"({name}) {' '.join(' '.join(lines).split())[: _TOLD // 2]}"
        return ""

    def by_link(self, before: Before) -> str:
        """Have the new cluster by pg_upgrade; return why it refuses, "" where it did it."""
        problem = self.refused(before)
        if problem:
            return problem
        shutil.rmtree(self.data)
        with self.serve(self.new, self.made) as server, sessions.told("finishing the upgrade"):
            compare(before.relations, count(server.connect, sessions.databases(server.connection), rows=False))
            update_extensions(self.task, server)
            self.task.say("analyzing")
            logical.analyze(server, self.new, *(["--missing-stats-only"] if self.new.major >= 18 else []))
            _shut(server, before)
        return ""

    # --- by dump

    def by_dump(self, before: Before, problem: str) -> None:
        folder = f"{self.work}/dump"
        closed.make_folder(folder, self.who)
        try:
            with self.serve(self.old, self.data) as server, sessions.told("dumping"):
                names = sessions.databases(server.connection)
                rows = count(server.connect, names, rows=True)
                dumps = logical.take(self.task, server.tools, server.connection, server.connect, self.new, folder)
            # Room for what is loaded; the bundle still has it.
            shutil.rmtree(self.data)
            self.initdb(before, checksums=True)
            with self.serve(self.new, self.made) as server, sessions.told("loading"):
                logical.put(self.task, server, self.new, folder, dumps)
                compare(rows, count(server.connect, names, rows=True))
                _shut(server, before)
        except PeerFailed as error:
            raise PeerFailed(f"{error} (by dump and restore; otherwise, {problem})") from None

    # --- the end

    def take_over(self, kept: Mapping[str, bytes]) -> None:
        """Have the new cluster in the old one's place, with page checksums and what ALTER SYSTEM has set there."""
        self.enable_checksums()
        self.keep_settings(kept.get(_AUTO, b""))
        shutil.rmtree(f"{self.made}/pg_upgrade_output.d", ignore_errors=True)
        try:
            os.rename(self.made, self.data)
        except OSError as error:
            raise Unreachable(f"{self.data} cannot be made: {error.strerror}") from None
        clusters.sync(self.data)

    def enable_checksums(self) -> None:
        """Every page of this cluster is new to the store in any case, or is written once: now it can be verified."""
        if read_control(self.made).checksums or not self.new.has("pg_checksums"):
            return
        self.task.say("computing page checksums")
        argv = [self.new.program("pg_checksums"), "--enable", "--no-sync", "-D", self.made]
        run(argv, self.who, environment(self.new.bindir, self.work), cancelled=self.task.cancelled)

    def keep_settings(self, said: bytes) -> None:
        """Keep the settings of ALTER SYSTEM, less those that the new major does not know, or not with that value."""
        settings = parse_settings(said.decode(errors="replace"))
        while settings:
            put_back(self.made, {_AUTO: "".join(f"{name} = {text}\n" for name, text in settings.items()).encode()}, self.who)
            refused = self.refuses()
            if refused is None:
                return
            names = {name for name in settings if any(f'"{name}"' in line.lower() for line in refused)} or set(settings)
            for name in sorted(names):
                self.task.say(f"what ALTER SYSTEM has set is left out, for PostgreSQL {self.new.major} does not take it: {name}")
                del settings[name]
        put_back(self.made, {_AUTO: b""}, self.who)

    def refuses(self) -> list[str] | None:
        """Return what a new server says of the settings that it would not start with, None where it would."""
        places = _places(self.stage, self.made)
        argv = [self.new.program("postgres"), *server_arguments(places, self.new.major, self.libraries), "-C", "max_connections"]
        lines = list[str]()
        try:
            run(argv, self.who, environment(self.new.bindir, self.work), cancelled=self.task.cancelled, hear=lines.append)
        except PeerFailed:
            return lines
        return None


# --- what it holds -----------------------------------------------------------------------------------------------------

_RELATIONS = """
SELECT c.relkind::text, n.nspname, c.relname, pg_relation_size(c.oid), c.relispopulated
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_index i ON i.indexrelid = c.oid
WHERE c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_toast'
AND NOT EXISTS (
    SELECT FROM pg_depend d
    WHERE d.classid = 'pg_class'::regclass AND d.objid = coalesce(i.indrelid, c.oid) AND d.deptype = 'e'
)"""


def count(connect: Connect, names: Sequence[str], *, rows: bool) -> dict[str, int]:
    """Return the size of every relation that is no extension's, or how many `rows` it has; by kind and full name."""
    found: dict[str, int] = {}
    for database in names:
        with connect(database) as connection:
            for kind, schema, name, size, populated in connection.execute(_RELATIONS).fetchall():
                found[f"{kind} {database}.{schema}.{name}"] = size
                if rows:
                    counted = kind in ("r", "m") and populated
                    found[f"{kind} {database}.{schema}.{name}"] = (
                        _rows(connection, sql.Identifier(schema, name)) if counted else 0
                    )
            found[f"large objects {database}"] = _rows(connection, sql.SQL("pg_largeobject_metadata"))
    return found


def _rows(connection: sessions.Connection, table: sql.Composable) -> int:
    row = connection.execute(sql.SQL("SELECT count(*) FROM ONLY {}").format(table)).fetchone()
    assert row is not None
    return int(row[0])


def compare(before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """PeerFailed where a relation is missing, new, or holds more or less."""
    differ = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if differ:
        told = ", ".join(f"{name}: {before.get(name, 'not there')} → {after.get(name, 'not there')}" for name in differ[:3])
        raise PeerFailed(f"the upgrade has lost something: {len(differ)} relations are not what they were ({told})")


def update_extensions(task: Task, server: Closed) -> None:
    """Have extensions be of the version that comes with the new major, as pg_upgrade leaves to its user."""
    for database in sessions.databases(server.connection):
        with server.connect(database) as connection:
            query = "SELECT name, installed_version FROM pg_available_extensions WHERE installed_version <> default_version"
            for name, version in connection.execute(query).fetchall():
                try:
                    connection.execute(sql.SQL("ALTER EXTENSION {} UPDATE").format(sql.Identifier(name)))
                except psycopg.DatabaseError as error:
                    problem = f"stays at version {version}: {error.diag.message_primary}"
                    task.say(f"extension {name!r} of database {database!r} {problem}")


def _shut(server: Closed, before: Before) -> None:
    for name in before.shut:
        logical.set_reachable(server.connection, name, False)


# --- files -------------------------------------------------------------------------------------------------------------


def disarm(data: str) -> dict[str, bytes]:
    """Take the configuration out of a cluster, and return it: pg_upgrade begins servers that would obey it."""
    kept = {}
    with _opened(data) as folder:
        for name in _FILES:
            with suppress(FileNotFoundError):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
                with open(fd, "rb") as file:
                    kept[name] = file.read(_LONGEST)
                os.unlink(name, dir_fd=folder)
    return kept


def put_back(data: str, files: Mapping[str, bytes], who: Account) -> None:
    """Have these files of configuration in a cluster. Whatever lies there, no link is followed."""
    with _opened(data) as folder:
        for name, content in files.items():
            temporary = f".{name}.{secrets.token_hex(4)}"
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=folder)
            with open(fd, "wb") as file:
                who.own(fd)
                file.write(content)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)


@contextmanager
def _opened(data: str) -> Iterator[int]:
    try:
        folder = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield folder
        finally:
            os.close(folder)
    except OSError as error:
        raise Unreachable(f"{data}: its configuration cannot be written: {error.strerror}") from None


def parse_settings(text: str) -> dict[str, str]:
    """Return the settings in a file that ALTER SYSTEM has written, as they stand there, by name. Pure."""
    found = {}
    for line in text.splitlines():
        match = _SETTING.fullmatch(line)
        if match and not match[1].lower().startswith("include"):
            found[match[1].lower()] = match[2]
    return found


def _literal(text: str) -> str:
    return "'{}'".format(text.replace("\\", "\\\\").replace("'", "''"))


# --- servers that pg_upgrade has begun ---------------------------------------------------------------------------------


def forget(stage: Stage) -> None:
    """Have nothing left of an upgrade whose life was killed: no servers, no directory."""
    end_servers([_places(stage, data) for data in (stage.partial, f"{stage.home}/scratch/new")])
    shutil.rmtree(f"{stage.home}/scratch", ignore_errors=True)


def _places(stage: Stage, data: str) -> Places:
    return Places(data, stage.home, stage.socket(closed.PORT))


def end_servers(places: Sequence[Places]) -> None:
    """Return when no process of any of these clusters lives; those that do are asked to shut down."""
    for each in cycle(places):
        looks = iter((False, True))
        with suppress(Stopped):
            os.close(hold(each, partial(next, looks)))
            return
