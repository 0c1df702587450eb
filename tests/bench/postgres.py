"""How fast databases come and go, and how small they are kept, beside PostgreSQL's own programs: `make bench-postgres`, one run.

    S   a server starts until it has answered, and stops, beside pg_ctl
    N   a new cluster that lets its superuser in, beside initdb
    A   a cluster that pgbench (TPC-B) has worked on: archived, beside pg_dump; restored until it has answered, beside pg_restore
    D   that bundle restored and archived again: after an update of 0.01 % of its rows, and after it was only read
    I   the same update, beside the incremental backup of PostgreSQL 17
    U   the cluster of an older major version under a newer one: linked, beside dumped and loaded

It is a benchmark, no test: it prints whether each target was met, and ends with 0 either way.

What one must know to change it safely. Those that are compared take turns, and change places every round, so noise of the machine
hits all alike; medians are of the rounds, ratios are of medians. Ours run in this process, as they do in a battery, whose imports
were paid for when it was opened; the peers are whole processes. Both sides' servers have the same settings (fsync and page
checksums on), and what is timed on either side is durable when the clock stops: initdb, pg_dump, the store and `clusters` sync
what they write, and what pg_restore writes is in the log that a server has synced. The file system is synced before each clock
starts, so nobody pays for what others wrote. All that is read is in the page cache. Everything is below one directory (--dir), on
one file system; the table names it.

D goes through the battery as a whole, passwords and all. Bytes are counted twice there, for pgbench's rows can be compressed to a
tenth: as they are in the store, the peer's chunks then compressed by the same code, and as they are in the cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import secrets
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import psycopg
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import servers

from sidecar.batteries.postgres import archive, clusters, sessions, upgrade
from sidecar.batteries.postgres.battery import PostgresBattery, PostgresBatteryOptions
from sidecar.batteries.postgres.configuration import (
    ADMIN,
    CLOSED,
    network_arguments,
    passfile,
    postgresql_conf,
    server_arguments,
)
from sidecar.batteries.postgres.contents import relation_block
from sidecar.batteries.postgres.installations import Installation
from sidecar.batteries.postgres.postmaster import Postmaster, Server, read_control
from sidecar.batteries.postgres.programs import account, environment
from sidecar.batteries.postgres.stage import Stage, Task
from sidecar.parameters.fuse import Destination, Source
from sidecar.parameters.postgres import Database
from sidecar.store import Bundle, Entry, Piece, Store, open_store
from sidecar.store.compress import compress
from sidecar.store.format import FILE

MIB = 1 << 20
BLOCK = 8192
FIXED = 2 * MIB  # bytes of datamon's chunks
PATIENCE = 60.0  # seconds for a server to stop
REPO = "bench"
OURS = "sidecar"
ACCOUNTS = "public.pgbench_accounts"
BALANCES = {
    ACCOUNTS: "abalance",
    "public.pgbench_branches": "bbalance",
    "public.pgbench_history": "delta",
    "public.pgbench_tellers": "tbalance",
}
Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class Sizes:
    """How much work there is, and how batteries freeze. Starts take so little time that there are three times as many."""

    rounds: int = 9
    scale: int = 20
    seconds: int = 30
    memory: int = 1024  # MiB that are touched before each clock
    freeze: str = "auto"

    @property
    def updated(self) -> int:
        """How many rows 0.01 % are; a unit of pgbench's scale has 100,000 accounts."""
        return self.scale * 10


QUICK = Sizes(rounds=2, scale=2, seconds=3, memory=128)


def never() -> bool:
    return False


def silent(what: str, done: int, whole: int) -> None:
    """Hear of progress."""


def unheard(line: str) -> None:
    """Hear what a server says."""


class Bench:
    """The directory that everything is in, who runs servers, the sizes, and what came of it."""

    def __init__(self, top: str, sizes: Sizes, stack: ExitStack) -> None:
        """`stack` is closed in the end: what is entered there lasts until then."""
        self.top, self.sizes, self._stack = top, sizes, stack
        self.installation = servers.installation()
        self.account = account(servers.ACCOUNT)
        self.templates, self.work = f"{top}/templates", f"{top}/work"
        self.found: dict[tuple[str, str, str], list[float]] = {}
        self.notes: list[str] = []
        self.gone = f"{top}/gone"
        os.mkdir(self.gone)
        os.mkdir(self.work, 0o700)
        self.account.own(self.work)

    def note(self, what: str, who: str, value: float, unit: str = "s") -> None:
        """Have a figure in the table."""
        self.found.setdefault((what, who, unit), []).append(value)

    @contextmanager
    def clock(self, what: str, who: str) -> Iterator[None]:
        """Have in the table how long what is done within it takes."""
        clusters.sync(self.top)
        _ = b"x" * (self.sizes.memory << 20)
        del _
        begin = time.perf_counter()
        yield
        self.note(what, who, time.perf_counter() - begin)

    def turns(self, what: str, rounds: int, *works: Callable[[], None]) -> None:
        """Do each work once in a round; every other round, the last one first."""
        for number in range(rounds):
            self.say(f"{what}, round {number + 1} of {rounds}")
            for work in works[:: -1 if number % 2 else 1]:
                work()

    def run(self, command: Iterable[str], env: Mapping[str, str] | None = None) -> None:
        """Run a program of PostgreSQL's as the account; RuntimeError with what it said where it fails."""
        command = list(command)
        ran = subprocess.run(
            command,
            env=env or environment(os.path.dirname(command[0]), self.work),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            **self.account.popen,
        )
        if ran.returncode:
            raise RuntimeError(f"{command} ended with {ran.returncode}: {ran.stdout.decode(errors='replace')[-2000:]}")

    @contextmanager
    def folder(self, name: str) -> Iterator[str]:
        """Yield the path of something below `work` that a program makes; it is gone afterwards."""
        path = f"{self.work}/{name}"
        try:
            yield path
        finally:
            self.discard(path)

    def discard(self, path: str) -> None:
        """Have what is at a path out of the way, if there is anything: without its bytes, but not removed before the end."""
        if not os.path.lexists(path):
            return
        for folder, _, names in os.walk(path):
            for name in names:
                if os.path.isfile(file := f"{folder}/{name}") and not os.path.islink(file):
                    os.chmod(file, 0o600)
                    os.truncate(file, 0)
        os.rename(path, f"{self.gone}/{len(os.listdir(self.gone))}")

    @cached_property
    def worked(self) -> Worked:
        """The cluster that pgbench has worked on: made once, and here until the end."""
        return self._stack.enter_context(worked(self))

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Cluster:
    """One cluster and its server, as a battery has them, in steps that can be timed one by one. Gone after `with`."""

    def __init__(
        self,
        bench: Bench,
        name: str,
        installation: Installation | None = None,
        settings: Mapping[str, str] | None = None,
        hba: str = CLOSED,
    ) -> None:
        self.bench, self.installation, self.settings, self._hba = bench, installation or bench.installation, settings or {}, hba
        self.stage = Stage(f"{bench.top}/{name}", name)
        self.stage.own(bench.account)
        self.port = free_port()
        self.password = secrets.token_urlsafe(24)
        self.places = self.stage.places(self.port, "")
        self.postmaster: Postmaster | None = None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.stage.release()
        remove(self.bench, self.stage)

    @property
    def data(self) -> str:
        return self.stage.data

    def make(self) -> None:
        """Have a new cluster that lets ADMIN in, from the template, which is prepared where it is missing."""
        clusters.create(self.task, self.installation, "", self.bench.templates)
        self.stage.accept()
        self.adopt()

    def restore(self, store: Store, bundle: Bundle) -> None:
        """Have the cluster of a bundle, every byte verified and synced, that lets ADMIN in."""
        clusters.restore(self.task, store, bundle)
        self.stage.accept()
        self.adopt()

    @property
    def server(self) -> Server:
        return Server(self.installation, self.places, self.bench.account, self.port, self.password, self.settings)

    @property
    def task(self) -> Task:
        return Task(self.stage, self.bench.account, self.settings, silent, never)

    def adopt(self) -> None:
        """Have ADMIN let in."""
        self.stage.write("postgresql.conf", postgresql_conf(shared_memory=True), 0o644)
        self.stage.write("pg_hba.conf", self._hba, 0o644)
        self.stage.write("pg_ident.conf", "", 0o644)
        text = passfile([(self.places.socket, self.port, ADMIN, self.password)])
        self.stage.write("passfile", text, 0o600, self.bench.account)
        clusters.adopt(self.server, unheard, never)

    def start(self) -> Connection:
        """Begin the server and return a connection of ADMIN's that was answered."""
        self.postmaster = Postmaster(self.server, unheard)
        return self.postmaster.start(never)

    def connect(self, database: str = "postgres") -> Connection:
        assert self.postmaster is not None
        return self.postmaster.connect(database)

    def stop(self) -> None:
        """Shut the server down."""
        assert self.postmaster is not None
        self.postmaster.stop(PATIENCE)

    def kill(self) -> None:
        if self.postmaster is not None:
            self.postmaster.kill()

    @contextmanager
    def running(self) -> Iterator[Connection]:
        """Have the server run meanwhile."""
        with closing(self.start()) as connection:
            yield connection
        self.stop()

    def freeze(self, connection: Connection) -> None:
        """Do what a battery does before it shuts a server down for good."""
        sessions.freeze(self.connect, sessions.databases(connection), self.bench.sizes.freeze, unheard, never)
        sessions.checkpoint(connection)

    def client(self, program: str, *options: str) -> None:
        """Run a client of PostgreSQL's as ADMIN."""
        more = {"PGHOST": self.places.socket, "PGPORT": str(self.port), "PGUSER": ADMIN, "PGDATABASE": "postgres"}
        more["PGPASSFILE"] = f"{self.stage.home}/passfile"
        self.bench.run(
            [self.installation.program(program), *options], environment(self.installation.bindir, self.stage.home, more)
        )

    def work(self) -> None:
        """Have pgbench work on it."""
        sizes = self.bench.sizes
        self.client("pgbench", "-i", "-q", "-s", str(sizes.scale))
        self.client("pgbench", "-n", "-c", "4", "-j", "2", "-T", str(sizes.seconds), "--random-seed=1")

    def keep(self, store: Store, base: Bundle | None = None) -> Bundle:
        """Archive the cluster."""
        destination = Destination("bench", self.data, REPO, "a benchmark")
        control = read_control(self.data)
        return archive.keep(
            store, self.data, control, destination, "", contributor="", base=base, progress=silent, cancelled=never
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def remove(bench: Bench, stage: Stage) -> None:
    for path in (stage.data, stage.partial, stage.home):
        bench.discard(path)


# --- S and N: servers and clusters come and go ------------------------------------------------------------------------


def starting(bench: Bench) -> None:
    """Time a server of an empty cluster, and its shutdown after one client."""
    with Cluster(bench, "started") as cluster:
        cluster.make()
        bench.turns("S", 3 * bench.sizes.rounds, partial(our_life, cluster), partial(a_life_by_pg_ctl, cluster))


def our_life(cluster: Cluster) -> None:
    with cluster.bench.clock("start to accepting", OURS):
        connection = cluster.start()
    connection.close()
    with cluster.bench.clock("stop", OURS):
        cluster.stop()


def a_life_by_pg_ctl(cluster: Cluster) -> None:
    """Let pg_ctl start the server, with the same arguments, and stop it. It waits for less: it asks the server nothing."""
    bench, installation = cluster.bench, cluster.installation
    arguments = server_arguments(cluster.places, installation.major, cluster.settings)[2:]  # less -D, which pg_ctl gives itself
    arguments += network_arguments(cluster.places, cluster.port, listen=True)
    pg_ctl = [installation.program("pg_ctl"), "-D", cluster.data, "-w"]
    with bench.clock("start to accepting", "pg_ctl -w start"):
        bench.run([*pg_ctl, "-l", f"{bench.work}/log", "-o", shlex.join(arguments), "start"])
    try:
        with closing(cluster.connect()) as connection:
            connection.execute("SELECT 1")
        with bench.clock("stop", "pg_ctl -m fast -w stop"):
            bench.run([*pg_ctl, "-m", "fast", "stop"])
    except BaseException:
        bench.run([*pg_ctl, "-m", "immediate", "stop"])
        raise


def creating(bench: Bench) -> None:
    with Cluster(bench, "template") as cluster:
        cluster.make()
    bench.turns("N", bench.sizes.rounds, partial(our_cluster, bench), partial(a_cluster_by_initdb, bench))


def our_cluster(bench: Bench) -> None:
    with Cluster(bench, "new") as cluster, bench.clock("new cluster", OURS):
        cluster.make()


def a_cluster_by_initdb(bench: Bench) -> None:
    """Let initdb make the same cluster: with checksums, in UTF-8, whose superuser has a password."""
    password = Path(bench.work, "password")
    password.write_text(secrets.token_urlsafe(24))
    bench.account.own(str(password))
    with bench.folder("initdb") as data:
        initdb = [bench.installation.program("initdb"), "-D", data, "-U", ADMIN, "-E", "UTF8", "-k", "-A", "scram-sha-256"]
        with bench.clock("new cluster", "initdb"):
            bench.run([*initdb, f"--locale={clusters.DEFAULT_LOCALE}", f"--pwfile={password}"])
    password.unlink()


# --- the cluster that pgbench has worked on -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Worked:
    """That cluster, stopped; the store with the bundle that the battery made of it; and its chunks of datamon's size."""

    cluster: Cluster
    store: str
    bundle: Bundle
    chunks: frozenset[bytes]


@contextmanager
def worked(bench: Bench) -> Iterator[Worked]:
    """Have a battery make a cluster, pgbench fill and change it, and the battery archive it."""
    bench.say(f"pgbench, scale {bench.sizes.scale}, {bench.sizes.seconds} s")
    store = f"{bench.top}/first"
    with serving(bench, "worked", store, kept=True) as (battery, told):
        pgbench(bench, told, "-i", "-q", "-s", str(bench.sizes.scale))
        pgbench(bench, told, "-n", "-c", "4", "-j", "2", "-T", str(bench.sizes.seconds), "--random-seed=1")
        battery.checkpoint()
        whole = bytes_of(f"{bench.top}/worked")
        battery.save()
    bundle = open_store(store).resolve(REPO)
    # Of the session that made it, so it is not in anybody's way.
    with Cluster(bench, "worked") as cluster:
        cluster.adopt()
        entries = open_store(store).manifest(bundle)
        chunks = frozenset(blake3(chunk).digest() for chunk in fixed_chunks(cluster.data, entries))
        bench.note("bytes archived", "the whole directory", whole / MIB, "MiB")
        bench.note("bytes archived", OURS, sum(entry.size for entry in entries) / MIB, "MiB")
        yield Worked(cluster, store, bundle, chunks)


class Battery(PostgresBattery):
    """A battery whose server can be told to write all it has, for its directory to be looked at."""

    def checkpoint(self) -> None:
        with closing(self._connect("postgres")) as connection:
            sessions.checkpoint(connection)


@contextmanager
def serving(
    bench: Bench, name: str, store: str, source: Bundle | None = None, *, kept: bool = False
) -> Iterator[tuple[Battery, Mapping[str, Any]]]:
    """Yield a battery that is ready, and what it told; its cluster is gone afterwards unless it is to be `kept`."""
    data = f"{bench.top}/{name}"
    database = Database(
        name,
        free_port(),
        data,
        owner="bench",
        source=Source(name, data, source.repo, bundle=source.id) if source else None,
        destination=Destination(name, data, REPO, "a benchmark"),
        major=bench.installation.major,
        freeze=bench.sizes.freeze,
    )
    options = PostgresBatteryOptions(
        store,
        database,
        session=name,
        clients=f"{bench.top}/{name}.clients",
        reader=bench.account.uid,
        user=servers.ACCOUNT,
        folders=(bench.installation.bindir,),
        templates=bench.templates,
    )
    battery = Battery(options, silent)
    os.mkdir(options.clients, 0o700)
    bench.account.own(options.clients)
    try:
        with bench.clock(f"ready(), all of it, {'restored' if source else 'new'}", OURS):
            told = battery.ready()
        yield battery, told
    finally:
        battery.close()
        bench.discard(options.clients)
        if not kept:
            remove(bench, Stage(data, name))


def pgbench(bench: Bench, told: Mapping[str, Any], *options: str) -> None:
    """Run pgbench as the owner of a battery's database."""
    more = {"PGHOST": told["host"], "PGPORT": str(told["port"]), "PGUSER": told["user"], "PGPASSFILE": told["passfile"]}
    env = environment(bench.installation.bindir, bench.work, {**more, "PGDATABASE": told["dbname"]})
    bench.run([bench.installation.program("pgbench"), *options], env)


@contextmanager
def owner(told: Mapping[str, Any]) -> Iterator[Connection]:
    """Yield a connection of the owner's, made as an application would."""
    with closing(psycopg.connect(Path(told["dsn"]).read_text(), autocommit=True)) as connection:
        yield connection


def sums_of(connection: Connection) -> tuple[Any, ...]:
    """Return what tells one state of pgbench's tables from another: rows and balances.

    To read is to tidy up: never before the first archive, which is to be of what a user leaves.
    """
    queries = [f"(SELECT (count(*), sum({column}))::text FROM {table})" for table, column in BALANCES.items()]
    row = connection.execute(f"SELECT {', '.join(queries)}".encode()).fetchone()
    assert row is not None
    return tuple(row)


def check(connection: Connection, expected: tuple[Any, ...]) -> None:
    """See that nothing was lost: what is quick and wrong is to be in no table."""
    found = sums_of(connection)
    if found != expected:
        raise RuntimeError(f"the rows are others: {found}, not {expected}")


def bytes_of(folder: str) -> int:
    """Return how many bytes the files below a folder have."""
    return sum(os.lstat(f"{where}/{name}").st_size for where, _, names in os.walk(folder) for name in names)


def fixed_chunks(data: str, entries: Iterable[Entry]) -> Iterator[bytes]:
    """Yield the chunks of those of a cluster's files that were archived, cut as datamon does."""
    for entry in entries:
        if entry.type == FILE:
            with open(f"{data}/{entry.path}", "rb") as file:
                while chunk := file.read(FIXED):
                    yield chunk


# --- A: archived, and restored --------------------------------------------------------------------------------------


def archiving(bench: Bench) -> None:
    """Time both ways to keep a cluster, and the ways back."""
    source = bench.worked.cluster
    for path in Path(source.data).rglob("*"):
        if path.is_file():
            path.read_bytes()  # from here on it is in the page cache
    with bench.folder("dump") as dump:
        works = Archiving(bench, source, dump, f"{bench.top}/store")
        for number in range(bench.sizes.rounds):
            bench.say(f"A, round {number + 1} of {bench.sizes.rounds}")
            order = -1 if number % 2 else 1
            for work in (works.keep, works.dump)[::order]:
                work()
            for work in (works.restore, works.load)[::order]:
                work()
            works.clear()


class Archiving:
    """The four kinds of work. What a round has kept it restores, and then it is gone."""

    def __init__(self, bench: Bench, source: Cluster, dump: str, store: str) -> None:
        self._bench, self._source, self._dump, self._store = bench, source, dump, store
        self._bundle: Bundle | None = None
        self._expected: tuple[Any, ...] = ()

    def keep(self) -> None:
        store = open_store(self._store)
        with self._bench.clock("archive", OURS):
            self._bundle = self._source.keep(store)

    def dump(self) -> None:
        with self._source.running() as connection:
            with self._bench.clock("archive", "pg_dump -Fd -j2 -Z0"):
                self._source.client("pg_dump", "-Fd", "-j2", "-Z0", "-f", self._dump)
            self._expected = sums_of(connection)

    def restore(self) -> None:
        assert self._bundle is not None
        with Cluster(self._bench, "restored") as cluster:
            with self._bench.clock("restore to accepting", OURS):
                cluster.restore(open_store(self._store), self._bundle)
                connection = cluster.start()
            with closing(connection):
                check(connection, self._expected)
            cluster.stop()

    def load(self) -> None:
        """Load the dump into a new cluster that runs already and knows the owner; then the planner knows the rows, as in ours."""
        with Cluster(self._bench, "loaded") as cluster:
            cluster.make()
            with cluster.running() as connection:
                connection.execute("CREATE ROLE bench")
                with self._bench.clock("restore to accepting", "pg_restore -j2, ANALYZE"):
                    cluster.client("pg_restore", "-j2", "-d", "postgres", self._dump)
                    cluster.client("psql", "-q", "-c", "ANALYZE")
                check(connection, self._expected)

    def clear(self) -> None:
        self._bench.discard(self._dump)
        self._bench.discard(self._store)


# --- D: archived again ----------------------------------------------------------------------------------------------


def again(bench: Bench) -> None:
    """Count what a second archive adds to the store of the first."""
    first = bench.worked
    chance = random.Random(1)
    changes: dict[str, Callable[[Connection], None]] = {
        "0.01 % updated": partial(update, chance, bench.sizes),
        "only read": scan,
        "only read by index": look_up,
    }
    bench.turns("D", bench.sizes.rounds, *(partial(second, bench, first, what, change) for what, change in changes.items()))


def update(chance: random.Random, sizes: Sizes, connection: Connection) -> None:
    """Update rows drawn at random, found by their keys."""
    keys = chance.sample(range(1, sizes.scale * 100_000 + 1), sizes.updated)
    changed = connection.execute(f"UPDATE {ACCOUNTS} SET abalance = abalance + 1 WHERE aid = ANY(%s)".encode(), [keys])
    assert changed.rowcount == sizes.updated


def scan(connection: Connection) -> None:
    """Read all there is, the catalogues too."""
    catalogues = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'pg_catalog'::regnamespace"
    allowed = connection.execute(f"{catalogues} AND has_table_privilege(oid, 'SELECT')".encode()).fetchall()
    for table in (*BALANCES, *(name for (name,) in allowed)):
        connection.execute(f"SELECT count(t.*) FROM {table} AS t".encode())


def look_up(connection: Connection) -> None:
    """Read the rows of the largest table by way of its index, which notes what it finds to be dead."""
    connection.execute("SET enable_seqscan = off")
    connection.execute(f"SELECT count(filler) FROM (SELECT filler FROM {ACCOUNTS} ORDER BY aid) AS all_of_them".encode())


def second(bench: Bench, first: Worked, what: str, change: Callable[[Connection], None]) -> None:
    """Restore the first bundle, change something, archive it, and count what is new."""
    url = f"{bench.top}/again.store"
    shutil.copytree(first.store, url)
    try:
        with serving(bench, "again", url, first.bundle) as (battery, told):
            with owner(told) as connection:
                change(connection)
            before = bytes_of(url)
            with bench.clock(f"save(), all of it, {what}", OURS):
                battery.save()
            store = open_store(url)
            count_new(bench, what, store, first, f"{bench.top}/again", bytes_of(url) - before)
    finally:
        bench.discard(url)


def count_new(bench: Bench, what: str, store: Store, first: Worked, data: str, grown: int) -> None:
    """Note what a second bundle has added, and what fixed chunks would have."""
    bundle = store.resolve(REPO)
    entries = store.manifest(bundle)
    pieces = new_pieces(store.manifest(first.bundle), entries)
    told_of_them = grown - sum(piece.stored or piece.length for _, piece in pieces)  # tables, manifest and record
    chunks = {blake3(chunk).digest(): chunk for chunk in fixed_chunks(data, entries)}
    new = [chunk for digest, chunk in chunks.items() if digest not in first.chunks]
    found = {
        OURS: (sum(piece.length for _, piece in pieces) + told_of_them, grown),
        "chunks of 2 MiB": (sum(map(len, new)), sum(len(compress(chunk) or chunk) for chunk in new)),
        "the bundle": (first.bundle.bytes, first.bundle.stored),
    }
    for who, (bytes_, compressed) in found.items():
        bench.note(f"{what}: new bytes", who, bytes_ / MIB, "MiB")
        bench.note(f"{what}: new bytes, compressed", who, compressed / MIB, "MiB")


def new_pieces(before: Iterable[Entry], after: Iterable[Entry]) -> list[tuple[str, Piece]]:
    """Return the chunks of one manifest that are not in another, each once, with a path of theirs."""
    known = {piece.hash for entry in before for piece in entry.pieces}
    found = {piece.hash: (entry.path, piece) for entry in after for piece in entry.pieces if piece.hash not in known}
    return list(found.values())


# --- I: beside incremental backups ----------------------------------------------------------------------------------

INCREMENTAL = "INCREMENTAL."  # what the name of a file begins with of which a backup holds some blocks only
REPLICATION = f"local replication {ADMIN} scram-sha-256\n"


def incrementing(bench: Bench) -> None:
    """Count the blocks that each takes of a change, backup upon backup.

    Free space maps (_fsm) count on neither side: they are not in the log, so pg_basebackup takes them whole each time.
    """
    installation = next((each for each in servers.installations() if each.major == 17), None)
    if installation is None:
        bench.notes.append("I was left out: there is no PostgreSQL 17 (make servers)")
        return
    settings = {"summarize_wal": "on", "autovacuum": "off"}
    with Cluster(bench, "incremental", installation, settings, REPLICATION + CLOSED) as cluster:
        cluster.make()
        with cluster.running() as connection:
            cluster.work()
            cluster.freeze(connection)
            cluster.client("pg_basebackup", "-c", "fast", "-X", "none", "-D", f"{bench.work}/0")
        store = open_store(f"{bench.top}/incremental.store")
        bundle = cluster.keep(store)
        chance = random.Random(1)
        for number in range(1, bench.sizes.rounds + 1):
            bench.say(f"I, round {number} of {bench.sizes.rounds}")
            bundle = increment(cluster, number, store, bundle, chance)
        bench.discard(f"{bench.work}/{bench.sizes.rounds}")
    bench.discard(f"{bench.top}/incremental.store")


def increment(cluster: Cluster, number: int, store: Store, base: Bundle, chance: random.Random) -> Bundle:
    """Change something and have each take it; return our bundle."""
    bench = cluster.bench
    earlier, backup = f"{bench.work}/{number - 1}", f"{bench.work}/{number}"
    with cluster.running() as connection:
        update(chance, bench.sizes, connection)
        cluster.freeze(connection)
        cluster.client("pg_basebackup", "-c", "fast", "-X", "none", "-D", backup, f"--incremental={earlier}/backup_manifest")
    bench.discard(earlier)
    bundle = cluster.keep(store, base)
    ours = new_pieces(store.manifest(base), store.manifest(bundle))
    blocks = sum(-(-piece.length // BLOCK) for path, piece in ours if counts(path))
    bench.note("0.01 % updated: blocks", OURS, blocks, "blocks")
    bench.note("0.01 % updated: blocks", "pg_basebackup --incremental", blocks_of(backup), "blocks")
    return bundle


def counts(path: str) -> bool:
    """Say whether the blocks of a file count: it is of a relation, and no free space map."""
    return relation_block(path) is not None and "_fsm" not in path


def blocks_of(backup: str) -> int:
    """Return how many blocks of relations an incremental backup holds."""
    found = 0
    for path in Path(backup).rglob("*"):
        within = path.relative_to(backup)
        if path.is_file() and counts(str(within.with_name(path.name.removeprefix(INCREMENTAL)))):
            found += blocks_in(path)
    return found


def blocks_in(path: Path) -> int:
    """Return how many blocks a file of an incremental backup holds; it says so in its header where it does not hold all."""
    if not path.name.startswith(INCREMENTAL):
        return -(-path.stat().st_size // BLOCK)
    with path.open("rb") as file:
        magic, blocks = (int.from_bytes(file.read(4), sys.byteorder) for _ in range(2))
    assert magic == 0xD3AE1F0D, f"{path} is no incremental file"  # INCREMENTAL_MAGIC
    return blocks


# --- U: from one major version to another -----------------------------------------------------------------------------

OLD, NEW = (12, 14), 18


def upgrading(bench: Bench) -> None:
    """Time both ways that an upgrade may go, on copies of one cluster."""
    found = {each.major: each for each in servers.installations()}
    whole = [each for major, each in sorted(found.items()) if major in OLD and each.has("pg_resetwal")]
    if NEW not in found or not whole:
        bench.notes.append(f"U was left out: PostgreSQL {NEW} and one of {OLD}, with pg_resetwal, are needed (make servers)")
        return
    old = whole[0]
    if old.major != OLD[0]:
        bench.notes.append(f"U is from {old.version} to {found[NEW].version}: of {OLD[0]} there are no tools here to link with")
    with Cluster(bench, "old", old) as cluster:
        cluster.make()
        with cluster.running() as connection:
            cluster.work()
            expected = sums_of(connection)
        limited = without_tools(bench, old)
        ways = [partial(an_upgrade, cluster, each, found[NEW], way, expected) for way, each in (("link", old), ("dump", limited))]
        bench.turns("U", bench.sizes.rounds, *ways)


def without_tools(bench: Bench, whole: Installation) -> Installation:
    """Return an installation as it is where only the server was packaged, so that pg_upgrade cannot be used."""
    bindir = f"{bench.top}/{whole.major}"
    os.mkdir(bindir, 0o755)
    for name in ("initdb", "pg_ctl", "postgres"):
        os.symlink(whole.program(name), f"{bindir}/{name}")
    return Installation(bindir, whole.version, whole.major)


def an_upgrade(source: Cluster, old: Installation, new: Installation, way: str, expected: tuple[Any, ...]) -> None:
    """Upgrade a copy of a cluster one way."""
    bench = source.bench
    with Cluster(bench, "upgraded", new) as cluster:
        partial_ = cluster.stage.partial
        os.mkdir(partial_, 0o700)
        bench.account.own(partial_)
        clusters.copy(source.data, partial_, bench.account)
        with bench.clock("upgrade", way):
            told = upgrade.upgrade(cluster.task, old, new)
        if told["method"] != way:
            raise RuntimeError(f"the upgrade went another way: {told}")
        cluster.stage.accept()
        cluster.adopt()
        with cluster.running() as connection:
            check(connection, expected)


# --- what came of it ---------------------------------------------------------------------------------------------------

# What was measured, of whom, beside whom, and the ratio that is promised; 0 where none is, and it is told for what it says.
TARGETS = (
    ("start to accepting", OURS, "pg_ctl -w start", 0.45),
    ("stop", OURS, "pg_ctl -m fast -w stop", 0.35),
    ("new cluster", OURS, "initdb", 0.45),
    ("bytes archived", OURS, "the whole directory", 0.65),
    ("archive", OURS, "pg_dump -Fd -j2 -Z0", 0.5),
    ("restore to accepting", OURS, "pg_restore -j2, ANALYZE", 0.25),
    ("0.01 % updated: new bytes", OURS, "chunks of 2 MiB", 0.03),
    ("0.01 % updated: new bytes, compressed", OURS, "chunks of 2 MiB", 0.0),
    ("only read: new bytes", OURS, "the bundle", 0.001),
    ("only read: new bytes, compressed", OURS, "the bundle", 0.0),
    ("only read by index: new bytes", OURS, "the bundle", 0.001),
    ("only read by index: new bytes, compressed", OURS, "the bundle", 0.0),
    ("0.01 % updated: blocks", OURS, "pg_basebackup --incremental", 1.3),
    ("upgrade", "link", "dump", 0.6),
)


def met(bench: Bench) -> Iterator[tuple[str, float, float]]:
    """Yield what was promised, the limit, and what was found, of what was measured."""
    medians = {(what, who): statistics.median(values) for (what, who, _), values in bench.found.items()}
    for what, ours, theirs, limit in TARGETS:
        if (what, ours) in medians and (what, theirs) in medians:
            yield f"{what}: {ours} / {theirs}", limit, medians[what, ours] / medians[what, theirs]


def machine(bench: Bench) -> str:
    told = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in told if line.startswith("model name")), "")
    kind = subprocess.run(["stat", "-f", "-c", "%T", bench.top], capture_output=True, text=True, check=True).stdout.strip()
    versions = f"Linux {platform.release()}, Python {platform.python_version()}, PostgreSQL {bench.installation.version}"
    sizes = (
        f"scale {bench.sizes.scale}, {bench.sizes.seconds} s of TPC-B, {bench.sizes.rounds} rounds, freeze: {bench.sizes.freeze}"
    )
    return f"{os.cpu_count()} x {cpu}, {versions}; {sizes}; on {kind}; load {os.getloadavg()[0]:.1f}"


def report(bench: Bench, *, as_json: bool) -> None:
    targets = [{"target": what, "at most": limit, "found": found} for what, limit, found in met(bench)]
    if as_json:
        keyed = {
            f"{what}: {who}": {"unit": unit, "values": values, "median": statistics.median(values)}
            for (what, who, unit), values in bench.found.items()
        }
        print(json.dumps({"machine": machine(bench), "notes": bench.notes, "found": keyed, "targets": targets}))
        return
    print(machine(bench), *bench.notes, sep="\n\n", end="\n\n")
    print("| what | who | median | from | to | |\n|---|---|---:|---:|---:|---|")
    for (what, who, unit), values in sorted(bench.found.items(), key=lambda each: each[0][0]):
        figures = " | ".join(f"{each:.4g}" for each in (statistics.median(values), min(values), max(values)))
        print(f"| {what} | {who} | {figures} | {unit} |")
    print("\n| target | at most | found | |\n|---|---:|---:|---|")
    for what, limit, found in met(bench):
        verdict = "" if not limit else "met" if found <= limit else "missed"
        print(f"| {what} | {limit or ''} | {found:.3g} | {verdict} |")


KINDS: dict[str, Callable[[Bench], None]] = {
    "S": starting,
    "N": creating,
    "A": archiving,
    "D": again,
    "I": incrementing,
    "U": upgrading,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less of everything: does it run?")
    parser.add_argument("--rounds", type=int, help="how often each is measured")
    parser.add_argument("--scale", type=int, help="of pgbench: 100,000 rows each")
    parser.add_argument("--freeze", choices=("auto", "always", "never"), help="what batteries do before they archive")
    parser.add_argument("--only", default="".join(KINDS), help="which kinds of work")
    parser.add_argument("--dir", default="/tmp", help="the directory to work in")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes()
    given = {name: getattr(arguments, name) for name in ("rounds", "scale", "freeze") if getattr(arguments, name)}
    sizes = Sizes(**{**vars(sizes), **given})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(dir=os.path.abspath(arguments.dir), prefix="bench-") as top, ExitStack() as stack:
        os.chmod(top, 0o711)
        bench = Bench(top, sizes, stack)
        for kind in arguments.only:
            KINDS[kind](bench)
        report(bench, as_json=arguments.json)


if __name__ == "__main__":
    main()
