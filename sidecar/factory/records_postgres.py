"""Works in a database of PostgreSQL, for a service that several machines share, and who does them: locks of sessions.

    sidecar.work, sidecar.work_log    as in SQLite
    sidecar.lease                     of each worker: in which life of the server it took its lock
    sidecar.version                   how many of MIGRATIONS were carried out: never edit one that was published, append one

A worker holds an advisory lock, in a session of its own, which the server ends when it does not hear the worker any more. So no
pooler may stand between that hands one session to several: it would keep the locks, or drop them.

A server that is started again has forgotten all locks. Those who held one take it again, as soon as they can; so for GRACE
seconds after its start nobody is held for dead whose lock is of an earlier life of the server.

The URL may hold a password, and so may what libpq says of a URL that is not well-formed, a part of the password being taken for
a port or a name. Nothing of it is repeated but host, port and database, and no message that holds the password.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from sidecar.errors import ConfigurationError, SidecarError, Unreachable
from sidecar.factory.records_sql import Execute, Row, SqlRecords, check_worker, is_worker

Connection = psycopg.Connection[Row]

GRACE = 30.0
# How often a worker whose session is lost tries to have another, in seconds.
_AGAIN = 0.2

# Locks of transactions: while the schema is made, and while somebody looks before writing. Any numbers that others do not use.
_SCHEMA, _ALONE = 0x5EC7_0000, 0x5EC7_0001

# How long one waits for another, as in SQLite; and how long a session may have begun a transaction and say nothing, as that of a
# machine that has stopped.
_SETTINGS = (
    "SET search_path = sidecar",
    "SET statement_timeout = '60s'",
    "SET idle_in_transaction_session_timeout = '30s'",
)
# Who was not heard for about half a minute is gone; both sides see that.
_OF_LEASES = (
    "SET search_path = sidecar",
    "SET statement_timeout = '20s'",
    "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'",  # of 14 and later
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
)
_KEEPALIVES = {"connect_timeout": "10", "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3"}

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE work (
            id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            same TEXT NOT NULL,
            site TEXT NOT NULL,
            kind TEXT NOT NULL,
            image TEXT NOT NULL,
            target TEXT NOT NULL,
            content TEXT NOT NULL,
            status TEXT NOT NULL,
            percent INTEGER NOT NULL DEFAULT 0,
            activity TEXT NOT NULL DEFAULT '',
            error TEXT NOT NULL DEFAULT '',
            provider TEXT NOT NULL DEFAULT '',
            build BIGINT NOT NULL DEFAULT 0,
            digest TEXT NOT NULL DEFAULT '',
            reference TEXT NOT NULL DEFAULT '',
            labels TEXT NOT NULL DEFAULT '{}',
            worker TEXT NOT NULL DEFAULT '',
            asked BIGINT NOT NULL,
            started BIGINT NOT NULL DEFAULT 0,
            finished BIGINT NOT NULL DEFAULT 0,
            said BIGINT NOT NULL DEFAULT 0
        )""",
        "CREATE INDEX work_same ON work USING hash (same)",
        "CREATE INDEX work_status ON work (status)",
        "CREATE INDEX work_image ON work USING hash (image)",
        "CREATE TABLE work_log (work BIGINT NOT NULL, at BIGINT NOT NULL, bytes BYTEA NOT NULL, PRIMARY KEY (work, at))",
        "CREATE TABLE lease (worker TEXT PRIMARY KEY, server TIMESTAMPTZ NOT NULL)",
    ),
)


class PostgresRecords(SqlRecords):
    """The records in the database that a URL names, whose schema `sidecar` is made where it is missing.

    Raises Unreachable where the server cannot be reached or refuses, and ConfigurationError where the URL is none, or a newer
    version wrote them.
    """

    def __init__(self, url: str, grace: float = GRACE) -> None:
        super().__init__()
        self._server = _Server(url)
        self._grace = grace
        self._connection: Connection | None = None
        self._closed = False
        with self._mine:
            self._connected()

    def __repr__(self) -> str:
        return f"PostgresRecords({self._server.name!r})"

    def close(self) -> None:
        """Let go of the session."""
        with self._mine:
            self._closed = True
            self._lose()

    # --- statements

    def _read(self, sql: str, *parameters: object) -> list[Row]:
        for again in (True, False):
            connection = self._connected()
            try:
                return _execute(connection, sql, *parameters)
            except psycopg.Error as error:
                if not self._lost(connection) or not again:
                    raise self._server.cannot("read", error) from None
        raise AssertionError

    @contextmanager
    def _writing(self, *, durable: bool, alone: bool) -> Iterator[Execute]:
        connection = self._begun()

        def execute(sql: str, *parameters: object) -> list[Row]:
            try:
                return _execute(connection, sql, *parameters)
            except psycopg.Error as error:
                raise self._server.cannot("write", error) from None

        try:
            if not durable:
                execute("SET LOCAL synchronous_commit = off")
            if alone:
                execute("SELECT pg_advisory_xact_lock(?)", _ALONE)
            yield execute
            execute("COMMIT")
        except BaseException:
            if not self._lost(connection):
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
                self._lost(connection)
            raise

    def _begun(self) -> Connection:
        """Return a session in which a transaction has begun; a new one where the last was lost meanwhile, as nothing was done."""
        for again in (True, False):
            connection = self._connected()
            try:
                connection.execute("BEGIN")
                return connection
            except psycopg.Error as error:
                if not self._lost(connection) or not again:
                    raise self._server.cannot("write", error) from None
        raise AssertionError

    def _check_room(self, size: int) -> None:
        """It is the server's affair."""

    # --- the session

    def _connected(self) -> Connection:
        if self._closed:
            raise Unreachable(f"{self._server.name} was closed")
        if self._connection is None:
            connection = self._server.connect()
            try:
                _upgrade(connection, self._server.name)
                for setting in _SETTINGS:
                    _execute(connection, setting)
            except psycopg.Error as error:
                connection.close()
                raise self._server.cannot("open", error) from None
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _lost(self, connection: Connection) -> bool:
        """Tell whether a session is over; then the next who asks has a new one."""
        if not connection.closed:
            return False
        self._lose()
        return True

    def _lose(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- who is alive

    @contextmanager
    def lease(self, worker: str) -> Iterator[None]:
        """Hold a lease until the end of the block, also when the server was away meanwhile."""
        check_worker(worker)
        held = _Lease(self._server, worker)
        try:
            yield
        finally:
            held.release()

    def alive(self, worker: str) -> bool:
        """Tell whether somebody holds a lease, or may take it again soon."""
        if not is_worker(worker):
            return False
        rows = self._reading(
            "SELECT server <> pg_postmaster_start_time() AND pg_postmaster_start_time() > now() - make_interval(secs => ?), "
            "pg_try_advisory_xact_lock_shared(?) FROM lease WHERE worker = ?",
            *(self._grace, _key(worker), worker),
        )
        # A lease without a row was let go of: that is done after the end was recorded.
        return bool(rows) and (bool(rows[0][0]) or not rows[0][1])

    def _drop(self, worker: str) -> None:
        with self._changing(durable=False) as execute:
            execute("DELETE FROM lease WHERE worker = ?", worker)


class _Server:
    """Where the database is, and what may be said of it."""

    def __init__(self, url: str) -> None:
        try:
            given = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
        except psycopg.Error:
            given = {}
        told = [given.get(key, "") for key in ("host", "port", "dbname")]
        if not given or any("@" in part for part in told) or not all(part.isdigit() for part in told[1].split(",") if part):
            raise ConfigurationError(
                "the postgresql:// URL of the records cannot be read: postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with each "
                "character of a name or a password that is no letter or digit written as %XX"
            )
        self._parameters: dict[str, Any] = _KEEPALIVES | {"application_name": "sidecar"} | given
        self._secrets = [given[key] for key in ("password", "sslpassword") if given.get(key)]
        host, port, database = told
        self.name = f"postgresql://{host}{':' if port else ''}{port}/{database}"

    def __repr__(self) -> str:
        return f"_Server({self.name!r})"

    def connect(self) -> Connection:
        """Return a new session. Unreachable."""
        try:
            return psycopg.connect(**self._parameters, autocommit=True)
        except psycopg.Error as error:
            raise self.cannot("reach", error) from None

    def cannot(self, do: str, error: psycopg.Error) -> Unreachable:
        """Return what cannot be done, and why, unless that would tell a secret."""
        why = " ".join(str(error).split()) or type(error).__name__
        if any(secret in why for secret in self._secrets):
            why = f"the server cannot be reached, or refuses ({type(error).__name__})"
        return Unreachable(f"cannot {do} {self.name}: {why}")


class _Lease:
    """A lock in a session of its own, and a thread that takes it again where the session is lost."""

    def __init__(self, server: _Server, worker: str) -> None:
        self._server, self._worker = server, worker
        connection = self._take()
        if connection is None:
            raise Unreachable(f"somebody holds the lease {worker} in {server.name}")
        self._over, self._tell = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._keep, args=(connection,), name=f"lease {worker}", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let go of it. Where the server cannot be reached it has been let go of, and a row is left that means nothing."""
        os.close(self._tell)
        self._thread.join()
        os.close(self._over)

    def _take(self) -> Connection | None:
        """Return the session that holds the lock; None where another does: a lost one of ours that the server has not missed."""
        connection = self._server.connect()
        try:
            for setting in _OF_LEASES:
                _execute(connection, setting)
            if _execute(connection, "SELECT pg_try_advisory_lock(?)", _key(self._worker))[0][0]:
                _execute(
                    connection,
                    "INSERT INTO lease VALUES (?, pg_postmaster_start_time()) "
                    "ON CONFLICT (worker) DO UPDATE SET server = excluded.server",
                    self._worker,
                )
                return connection
        except psycopg.Error as error:
            connection.close()
            raise self._server.cannot("write", error) from None
        connection.close()
        return None

    def _keep(self, connection: Connection | None) -> None:
        while True:
            poll = select.poll()
            poll.register(self._over, select.POLLIN)
            if connection is not None:
                # Nothing comes in it but that it has ended; the server says nothing of itself.
                poll.register(connection.fileno(), select.POLLIN)
            if any(fd == self._over for fd, _ in poll.poll(None if connection is not None else _AGAIN * 1000)):
                break
            if connection is None:
                with suppress(SidecarError):
                    connection = self._take()
            elif not _answers(connection):
                connection.close()
                connection = None
        if connection is not None:
            with suppress(psycopg.Error):
                _execute(connection, "DELETE FROM lease WHERE worker = ?", self._worker)
            connection.close()


def _answers(connection: Connection) -> bool:
    try:
        _execute(connection, "SELECT 1")
    except psycopg.Error:
        return False
    return True


def _execute(connection: Connection, sql: str, *parameters: object) -> list[Row]:
    cursor = connection.execute(sql.replace("?", "%s").encode(), parameters)
    return cursor.fetchall() if cursor.description else []


def _key(worker: str) -> int:
    """Return the number of the lock of a worker, whose name is random; 63 bits of it."""
    return int(worker[:16], 16) >> 1


def _upgrade(connection: Connection, name: str) -> None:
    """Bring the schema to the version that is known: wholly, or not at all."""
    if _version(connection) < len(MIGRATIONS):
        with connection.transaction():
            _execute(connection, "SELECT pg_advisory_xact_lock(?)", _SCHEMA)
            if not _execute(connection, "SELECT 1 FROM pg_namespace WHERE nspname = 'sidecar'"):
                _execute(connection, "CREATE SCHEMA sidecar")
            _execute(connection, "SET LOCAL search_path = sidecar")
            _execute(connection, "CREATE TABLE IF NOT EXISTS version (version INTEGER NOT NULL)")
            for number, statements in enumerate(MIGRATIONS, 1):
                if _version(connection) < number:
                    for statement in statements:
                        _execute(connection, statement)
                    _execute(connection, "INSERT INTO version VALUES (?)", number)
    if (found := _version(connection)) > len(MIGRATIONS):
        raise ConfigurationError(
            f"the records in {name} are of version {found}, and this sidecar knows {len(MIGRATIONS)}: a newer one wrote them; "
            "use that, or another database"
        )


def _version(connection: Connection) -> int:
    if not _execute(connection, "SELECT 1 FROM pg_tables WHERE schemaname = 'sidecar' AND tablename = 'version'"):
        return 0
    return int(_execute(connection, "SELECT coalesce(max(version), 0) FROM sidecar.version")[0][0])
