"""A server that nobody but the battery gets to: on a cluster that is being made, moved to another version, or looked through.

It has the configuration, the private socket and the lock of the database that it works for (see stage.py), whose own server
does not run meanwhile; so whoever comes after a killed life waits for what that left running, whichever server it was.

PostgreSQL's client programs read the password from a file, and insist on our settings (PGOPTIONS), which are stronger than what
roles and databases of a bundle have of their own. No shell is between us and them.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress

import psycopg

from sidecar.batteries.postgres.clusters import adopt
from sidecar.batteries.postgres.configuration import ADMIN, CLOSED, Places, passfile, postgresql_conf, session_options
from sidecar.batteries.postgres.installations import Installation
from sidecar.batteries.postgres.postmaster import Postmaster, Server, read_control
from sidecar.batteries.postgres.programs import Account, Cancelled, environment, run
from sidecar.batteries.postgres.sessions import Connection
from sidecar.batteries.postgres.stage import Stage, Task
from sidecar.errors import PeerFailed, SidecarError, Unreachable
from sidecar.store import Stopped

PORT = 5432  # of no network: a part of the socket's name
LOADING = {
    # What is lost if the machine dies now is made again from the bundle. Whoever uses this syncs everything in the end.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "archive_mode": "off",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "1h",
}
_QUIET = {
    "autovacuum": "off",
    # A dump takes a lock for each table of a database in one transaction. 256 times a hundred connections, in 8 MB.
    "max_locks_per_transaction": "256",
}
_OF_LIBRARIES = {"shared_preload_libraries", "dynamic_library_path", "extension_control_path"}
_SHUTDOWN = 3600.0  # seconds; what ends it sooner is `cancelled`
_KEPT, _TOLD = 200, 600  # lines of what a program says, characters of an error
_LOOK = 0.05  # seconds between two looks at `cancelled`
FULL = "No space left on device"
_logger = logging.getLogger(__name__)


class Tools:
    """PostgreSQL's client programs, run against one server, as ADMIN."""

    def __init__(self, server: Server, passwords: str, cancelled: Cancelled) -> None:
        """`passwords` is the path of the password file, which the server's account may read."""
        self._server, self._cancelled = server, cancelled
        self._environment = {
            "PGHOST": server.places.socket,
            "PGPORT": str(server.port),
            "PGUSER": ADMIN,
            "PGPASSFILE": passwords,
            "PGOPTIONS": session_options(server.installation.major),
            "PGAPPNAME": "sidecar",
            "PGCONNECT_TIMEOUT": "60",
        }

    def run(self, installation: Installation, program: str, *arguments: str) -> None:
        """Run a program of an installation. PeerFailed with the first thing that went wrong; ConfigurationError without it."""
        said = self.hear(installation, program, *arguments)
        if said is not None:
            raise PeerFailed(f"{program} failed: {_first_error(said)}")

    def hear(self, installation: Installation, program: str, *arguments: str) -> list[str] | None:
        """Run a program of an installation; return what it said where it failed, of that the beginning. None where it did not."""
        env = environment(installation.bindir, self._server.places.home, self._environment)
        argv = [installation.program(program), "--no-password", *arguments]
        lines: list[str] = []
        try:
            run(argv, self._server.account, env, cancelled=self._cancelled, hear=lambda line: keep_first(lines, line))
        except PeerFailed as error:
            return lines or [str(error)]
        return None


def keep_first(lines: list[str], line: str) -> None:
    """Add a line, where there are not too many already."""
    if len(lines) < _KEPT:
        lines.append(line)


def _first_error(said: list[str]) -> str:
    """Return the first error of what a program said, with its details. With several processes, the last one is that one died."""
    at = next((number for number, line in enumerate(said) if "error:" in line.lower()), len(said) - 1)
    details = [line for line in said[at + 1 : at + 3] if line.startswith(("DETAIL:", "HINT:"))]
    return " ".join([said[at], *details]).strip()[:_TOLD]


@contextmanager
def tools(task: Task, server: Server) -> Iterator[Tools]:
    """Yield what runs client programs against a server; their password file is gone afterwards."""
    stage, name = task.stage, "pgpass"
    text = passfile([(server.places.socket, server.port, ADMIN, server.password)])
    stage.write(name, text, 0o600, server.account)
    try:
        yield Tools(server, f"{stage.home}/{name}", task.cancelled)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(f"{stage.home}/{name}")


class Closed:
    """A closed server that runs: a connection to it, more of them, and programs."""

    def __init__(self, postmaster: Postmaster, connection: Connection, programs: Tools) -> None:
        self.connection, self.tools = connection, programs
        self.server, self.connect = postmaster.server, postmaster.connect

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Within it, `connection` is to template1, so that the database it was to may be made anew."""
        self.connection.close()
        self.connection = self.connect("template1")
        yield
        self.connection.close()
        self.connection = self.connect()

    def close(self) -> None:
        """Let go of the connection; the server goes on."""
        self.connection.close()


@contextmanager
def serve(task: Task, data: str, installation: Installation, settings: Mapping[str, str]) -> Iterator[Closed]:
    """Have a server run on the cluster in `data`, with nobody let in; an unclean one recovers first. It is clean afterwards.

    The settings are these, not the task's: some are for those alone who come in from outside.

    Stopped, once it is cancelled, whatever is being asked of the server then. Where anything fails within, the server is
    made to end, and the cluster is unclean.
    """
    stage, cancelled = task.stage, task.cancelled
    places = Places(data, stage.home, stage.socket(PORT))
    password = secrets.token_urlsafe(24)
    server = Server(installation, places, task.who, PORT, password, {**_QUIET, **settings}, listen=False)
    _configure(stage)
    adopt(server, _logger.debug, cancelled)
    postmaster = Postmaster(server, _logger.debug)
    with _ended_by(postmaster, cancelled):
        connection = postmaster.start(cancelled)
        with tools(task, server) as programs, closing(Closed(postmaster, connection, programs)) as running:
            yield running
        postmaster.stop(_SHUTDOWN)
        # Within, for whoever cancels just now makes it end unclean.
        control = read_control(data)
        if not control.is_clean:
            raise PeerFailed(f"{data} says of itself that it is {control.condition!r}, though it was shut down")


def of_libraries(settings: Mapping[str, str]) -> dict[str, str]:
    """Return which of the operator's settings a closed server needs: whatever extensions are loaded with or by."""
    return {name: text for name, text in settings.items() if name in _OF_LIBRARIES or "." in name}


def _configure(stage: Stage) -> None:
    texts = {"postgresql.conf": postgresql_conf(shared_memory=False), "pg_hba.conf": CLOSED, "pg_ident.conf": ""}
    for name, text in texts.items():
        if not text or stage.read(name) != text:
            stage.write(name, text, 0o644)


@contextmanager
def _ended_by(postmaster: Postmaster, cancelled: Cancelled) -> Iterator[None]:
    """Within it, the server is made to end as soon as it is cancelled, for a statement may take hours; Stopped then."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK):
            if cancelled():
                postmaster.kill()

    watcher = threading.Thread(target=watch, daemon=True, name="cancel")
    watcher.start()
    try:
        yield
    except BaseException as error:
        postmaster.kill()
        if cancelled() and isinstance(error, SidecarError | psycopg.Error | OSError):
            raise Stopped("the server was told to stop") from None
        raise
    finally:
        done.set()
        watcher.join()


@contextmanager
def scratch(task: Task) -> Iterator[str]:
    """Yield a new directory beside the cluster, the account's alone; it is gone afterwards. One of a killed life goes first."""
    path = f"{task.stage.home}/scratch"
    make_folder(path, task.who)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def make_folder(path: str, who: Account) -> None:
    """Have an empty directory, the account's alone, in the place of whatever was there."""
    try:
        if os.path.lexists(path):
            shutil.rmtree(path)
        os.mkdir(path, 0o700)
        who.own(path)
    except OSError as error:
        raise Unreachable(f"{path} cannot be made: {error.strerror}") from None


@contextmanager
def room(stage: Stage) -> Iterator[None]:
    """Within it, whoever fails because the disk is full says so: Unreachable."""
    try:
        yield
    except PeerFailed as error:
        if FULL not in str(error):
            raise
        raise Unreachable(_full(stage, error)) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Unreachable(_full(stage, error)) from None


def _full(stage: Stage, error: Exception) -> str:
    return f"the volume of {stage.data} is full ({error}); make it larger"
