"""Pods with a database, for the tests: `wrap_datamon_pg` and `wrap_application` as containers run them, and clients with psycopg.

    with DatabasePod(templates) as pod:
        battery = pod.serve()                    # db1, new, archived as results:latest
        application = pod.application()          # runs until `pod.release()`
        pod.query("CREATE TABLE t (n int)")
        assert pod.finish(application, battery) == (0, 0)
        assert pod.rows("SELECT * FROM t") == []  # of the bundle, restored elsewhere

Everything lies in a directory that the account `postgres` may enter, for servers run as that where the tests are root's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import memory
import psycopg
from processes import BIN, Pod, Started, processes
from servers import give

from sidecar.batteries.postgres.battery import PostgresBattery, PostgresBatteryOptions
from sidecar.coordination.protocol import Record
from sidecar.parameters.fuse import Source
from sidecar.parameters.postgres import Database
from sidecar.store import Bundle, Store, open_store

REPO, LABEL = "results", "latest"
SERVE = str(BIN / "wrap_datamon_pg")
Row = tuple[Any, ...]


@contextmanager
def new_place() -> Iterator[Path]:
    """Yield a directory that the account may enter; pytest's own are closed to it. Its path is short enough for sockets."""
    top = Path(tempfile.mkdtemp(prefix="sidecar-", dir=memory.PLACE))
    top.chmod(0o711)
    try:
        yield top
    finally:
        # A process of a server that was killed may still write a last file.
        while top.exists():
            shutil.rmtree(top, ignore_errors=True)


def free_port() -> int:
    """Return a port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class DatabasePod(Pod):
    """A pod with one database, unless a test serves more, and a store of its own."""

    def __init__(self, top: Path, templates: Path, store: Store | None = None) -> None:
        super().__init__(top)
        self.templates = templates
        self.store = store or open_store(f"file://{top}/store")
        self.port = free_port()

    def __enter__(self) -> DatabasePod:
        return self

    def next(self, name: str) -> DatabasePod:
        """Return another pod, with the same store: another use of it, in a directory of its own."""
        top = self.folder / name
        top.mkdir(mode=0o711)
        return DatabasePod(top, self.templates, self.store)

    def close(self) -> None:
        """Kill whatever is left; servers, sessions of their own, end as `immediate` does: killed, they leave shared memory."""
        super().close()
        end, number = time.monotonic() + 10, signal.SIGQUIT
        while left := [pid for pid in processes() if any(word.startswith(f"{self.folder}/") for word in arguments_of(pid))]:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, number if time.monotonic() < end else signal.SIGKILL)
            time.sleep(0.01)

    # --- containers

    @property
    def environment(self) -> dict[str, str]:
        return {"SIDECAR_STORE": self.store.url, "SIDECAR_TEMPLATES": str(self.templates)}

    def configured(self, name: str = "db1", **more: Any) -> dict[str, Any]:
        """Return what is configured of a database: by default a new one, of `dbuser`, archived. None takes a key away."""
        told: dict[str, Any] = {
            "name": name,
            "pgPort": self.port,
            "dataDir": f"{self.folder}/pg",
            "owner": "dbuser",
            "destRepo": REPO,
            "destLabel": LABEL,
            "destMessage": "what came of it",
            **more,
        }
        return {key: value for key, value in told.items() if value is not None}

    def serve(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, how: Mapping[str, Any] | None = None, **more: Any
    ) -> Started:
        """Start `wrap_datamon_pg` with one database; `more` is configured of it, `how` goes to Pod.start."""
        path = self.folder / f"pg-{len(self.started)}.yaml"
        path.write_text(json.dumps({"databases": [self.configured(**more)]}))  # JSON is YAML
        words = [SERVE, "-c", self.coord, "--config", path, *arguments]
        return self.start(*words, env={**self.environment, **(env or {})}, **(how or {}))

    def application(self, *arguments: str, names: str = "db1") -> Started:
        """Start the application's wrapper around a command that runs until `release`."""
        wait = f"until [ -e '{self.folder}/released' ]; do sleep 0.02; done"
        return self.wrap(*arguments, "-b", "postgres", "-d", names, "--", "sh", "-c", wait)

    def release(self) -> None:
        """Have the application end, with success."""
        self.file("released").touch()

    def finish(self, application: Started, battery: Started) -> tuple[int, int]:
        """Have the application end; return both statuses."""
        self.release()
        return application.wait(), battery.wait()

    def run(self, *statements: str, **more: Any) -> Record:
        """Run one whole session that does this, archived; return what the battery said of itself."""
        battery = self.serve(**more)
        application = self.application()
        self.started_up()
        with closing(self.connect()) as connection:
            for statement in statements:
                connection.execute(statement.encode())
        assert self.finish(application, battery) == (0, 0), battery.err + application.err
        record = self.record("postgres-db1")
        assert record is not None
        return record

    # --- its server

    def started_up(self, name: str = "db1", **_: Any) -> None:
        """Return when the database was said to be started."""
        self.hear(f"{name}/dbstarted")

    def connect(self, name: str = "db1", **more: Any) -> psycopg.Connection[Any]:
        """Return a client's connection, as the application makes one, which commits each statement."""
        dsn = (self.coord / name / "dsn").read_text()
        return psycopg.connect(dsn, autocommit=True, **{"connect_timeout": 10, **more})

    def query(self, sql: str, name: str = "db1", **more: Any) -> list[Row]:
        with closing(self.connect(name, **more)) as connection:
            return fetched(connection, sql)

    @property
    def data(self) -> Path:
        return self.folder / "pg" / "db1"

    def postmaster(self, name: str = "db1") -> int:
        """Return the pid of the server that runs; 0 where none does."""
        for pid in processes():
            words = arguments_of(pid)
            if words[:2] == ["-D", str(self.folder / "pg" / name)] and "--single" not in words:
                return pid
        return 0

    def journal(self, name: str = "db1") -> dict[str, Any]:
        """Return what the battery has written down of the directory; nothing where there is none yet."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "pg" / f"{name}.sidecar" / "journal.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    # --- its bundles

    def bundles(self) -> list[str]:
        """Return the ids of the bundles there are."""
        return [each.id for each in self.store.bundles(REPO)] if any(each.name == REPO for each in self.store.repos()) else []

    def bundle(self) -> Bundle:
        return self.store.resolve(REPO, label=LABEL)

    def check(self) -> None:
        """See that what the store holds is whole."""
        assert self.store.check(read_data=True).faults == ()

    def rows(self, sql: str, bundle: str = "") -> list[Row]:
        """Return what a query finds in a bundle: a server is restored from it, elsewhere, and thrown away."""
        with self.restored(bundle) as connection:
            return fetched(connection, sql)

    @contextmanager
    def restored(self, bundle: str = "", **more: Any) -> Iterator[psycopg.Connection[Any]]:
        """Yield a connection of dbuser's to a server that was restored from a bundle; `more` is how to connect."""
        with new_place() as top:
            (top / "coord").mkdir()
            give(top / "coord")
            options = library_options(
                top, self, source=Source("db1", str(top), REPO, label="" if bundle else LABEL, bundle=bundle)
            )
            battery = PostgresBattery(options, lambda *_: None)
            try:
                told = battery.ready()
                with closing(psycopg.connect((top / "coord" / "dsn").read_text(), autocommit=True, **more)) as connection:
                    assert told["port"] == options.database.port
                    yield connection
            finally:
                battery.close()


def library_options(top: Path, pod: DatabasePod, **more: Any) -> PostgresBatteryOptions:
    """Return the options of a battery that runs in this process, in `top`; `more` is of the database."""
    database = Database("db1", free_port(), str(top / "pg" / "db1"), owner="dbuser", **more)
    return PostgresBatteryOptions(pod.store.url, database, "session", str(top / "coord"), templates=str(pod.templates))


def fetched(connection: psycopg.Connection[Any], sql: str) -> list[Row]:
    cursor = connection.execute(sql.encode())
    return cursor.fetchall() if cursor.description else []


def arguments_of(pid: int) -> list[str]:
    """Return the command line of a process, without its program."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[1:]
    except OSError:
        return []
