"""One PostgreSQL server as a child of ours: begun, ready, told to reload, stopped; whoever dies, no one is left behind.

The postmaster is our direct child, begun and waited for by a thread of its own. That thread lives as long as it does, for the
signal that the kernel sends when a parent dies (PDEATHSIG) goes by the *thread* that forked. It is SIGINT: a server whose
battery was killed shuts down by itself, and its cluster is clean.

A lock (flock) on a file beside the cluster is held by the postmaster and every process it forks, and by nobody else: the
descriptor is inherited, and we close ours. So a lock that is free means that no process of this cluster lives, which a pid in
postmaster.pid never does: another process may bear it by now. A pid file that is then still there is stale whatever lives under
its pid; the server is told so with PG_GRANDPARENT_PID, with which it passes over that pid, and still looks at the shared memory
itself. (A pid file in a bundle is never restored.)

Ready is what the eighth line of the pid file says, looked at every 2 ms, and then an answered, authenticated query. Measured
beside pg_ctl -w: 0.38 of its time; a connection tried every 10 ms took 0.50. The log is only read for what people are told.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from sidecar.batteries.postgres.configuration import ADMIN, Places, network_arguments, server_arguments, session_options
from sidecar.batteries.postgres.control import Control, Malformed, decode_control
from sidecar.batteries.postgres.installations import Installation
from sidecar.batteries.postgres.programs import Account, Cancelled, Tail, end_with_parent, environment
from sidecar.errors import ConfigurationError, Corrupt, PeerFailed, Unreachable
from sidecar.store import Stopped
from sidecar.values import value

if TYPE_CHECKING:
    import psycopg

LOOK = 0.002  # seconds between two looks at the pid file
_QUIT = 5.0  # seconds that SIGQUIT may take until it is SIGKILL
_RELOAD = 10.0  # seconds until a configuration counts as read, whatever the server says: a broken one never does
_STUCK = 60.0  # seconds until a server that shuts down begins its last checkpoint, at the latest
_HURRY = 20  # looks at a lock, one each 10 ms, between two looks at who holds it
_LOOKED = 20  # seconds until a look at all processes is given up; it takes milliseconds
_FULL = "No space left on device"


@value
class Server:
    """What a server is: its program, its places, whose account, its port, and the operator's settings.

    `password` is ADMIN's. `listen`: also on the loopback.
    """

    installation: Installation
    places: Places
    account: Account
    port: int
    password: str
    settings: Mapping[str, str]
    listen: bool = True


class Postmaster:
    """One life of a server. `ended` is set once it is gone, whatever the reason. Methods are for one thread at a time."""

    def __init__(self, server: Server, hear: Callable[[str], None]) -> None:
        """Nothing is begun yet. `hear` is called with each line of the server's log."""
        self.server = server
        self.ended = threading.Event()
        self.status: int | None = None
        self.pid = 0
        self._loaded = ""
        self._tail = Tail(hear)
        self._begun = threading.Event()
        self._error: OSError | None = None

    def start(self, cancelled: Cancelled) -> psycopg.Connection[Any]:
        """Begin the server and return an answered connection of ADMIN's.

        However long a recovery takes it is waited for, until `cancelled`: Stopped, and the server is gone. ConfigurationError
        where the port is taken, Unreachable where the disk is full, else PeerFailed with what the server said last.
        """
        try:
            self._begin(cancelled)
        except BaseException:
            if not self._begun.is_set():
                self.ended.set()  # or whoever has it would take it for one that runs
            raise
        try:
            if self._error is not None:
                raise ConfigurationError(f"{self.server.installation.program('postgres')}: {self._error.strerror}")
            while not self._is_ready():
                if self.ended.wait(LOOK):
                    raise self._failed("ended before it was ready")
                if cancelled():
                    raise Stopped("the server was told to stop before it was ready")
            connection = self.connect()
            self._loaded = _when_loaded(connection)
        except BaseException:
            self.kill()
            raise
        return connection

    def _begin(self, cancelled: Cancelled) -> None:
        lock = hold(self.server.places, cancelled)
        try:
            if self.server.listen:
                # Not before: an earlier server of this cluster has the port until it is gone.
                _check_port(self.server.port)
            _remove_sockets(self.server)
            threading.Thread(target=self._keep, args=(lock,), daemon=True, name="postmaster").start()
            self._begun.wait()
        finally:
            os.close(lock)

    def connect(self, database: str = "postgres", *, timeout: int = 60) -> psycopg.Connection[Any]:
        """Return a connection of ADMIN's that commits each statement; PeerFailed.

        A server that recovers, since one of its processes was killed, is waited for.
        """
        import psycopg

        while True:
            try:
                return self._connect(database, timeout)
            except psycopg.Error as error:
                said = _line(error)
            if "the database system is" not in said or "shutting down" in said or self.ended.wait(10 * LOOK):
                break
        if database == "postgres" and '"postgres"' in said:
            # Its owner may have dropped or closed it. This one is the server's own, but it is not made a database of meanwhile.
            return self.connect("template1", timeout=timeout)
        raise PeerFailed(f"the server does not let its own battery in: {said}")

    def _connect(self, database: str, timeout: int) -> psycopg.Connection[Any]:
        import psycopg

        return psycopg.connect(
            host=self.server.places.socket,
            port=self.server.port,
            user=ADMIN,
            password=self.server.password,
            dbname=database,
            application_name="sidecar",
            client_encoding="utf8",  # of a cluster without an encoding names would come as bytes
            options=session_options(self.server.installation.major),
            connect_timeout=timeout,
            autocommit=True,
        )

    def reload(self) -> None:
        """Have the server read its configuration again; return when it holds for whoever connects from now on."""
        self._send(signal.SIGHUP)
        end = time.monotonic() + _RELOAD
        while not self.ended.is_set() and time.monotonic() < end:
            with closing(self.connect()) as connection:
                loaded = _when_loaded(connection)
            if loaded != self._loaded:
                self._loaded = loaded
                return

    def stop(self, timeout: float) -> None:
        """Shut the server down and return when it is gone. PeerFailed where it took too long, and was made to end: it is unclean.

        SIGINT: clients are cut off, what they committed is written. SIGTERM would wait for them.
        """
        self._send(signal.SIGINT)
        asked = time.monotonic()
        while not self.ended.wait(min(timeout, 0.01 * _HURRY)):
            waited = time.monotonic() - asked
            if waited >= timeout or _is_stuck(self.server.places.data, waited):
                self.kill()
                raise PeerFailed(f"the server did not shut down within {waited:.1f} s, and was made to end")
        if self.status:
            raise self._failed("did not shut down as it should")

    def kill(self) -> None:
        """Make the server end, clean or not, and return when it is gone."""
        if not self._begun.is_set() or self._error is not None:
            return
        self._send(signal.SIGQUIT)
        if not self.ended.wait(_QUIT):
            self._send(signal.SIGKILL)
            self.ended.wait()

    def _keep(self, lock: int) -> None:
        """Begin the postmaster, and reap it when it has ended."""
        server = self.server
        program = server.installation.program("postgres")
        argv = [
            program,
            *server_arguments(server.places, server.installation.major, server.settings),
            *network_arguments(server.places, server.port, listen=server.listen),
        ]
        stale = _pid_said(server.places.data)
        env = environment(server.installation.bindir, server.places.home, {"PG_GRANDPARENT_PID": str(stale)} if stale else None)
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env,
                cwd="/",
                umask=0o077,
                start_new_session=True,
                preexec_fn=end_with_parent(signal.SIGINT),
                pass_fds=(lock,),
                **server.account.popen,
            )
        except OSError as error:
            self._error = error
            self.ended.set()
            self._begun.set()
            return
        self.pid = process.pid
        assert process.stdout is not None
        self._tail.follow(process.stdout)
        self._begun.set()
        self.status = process.wait()
        self._tail.finish()
        self.ended.set()

    def _send(self, number: int) -> None:
        # Not reaped before `ended` is set, so the pid is still its own.
        if self.pid and not self.ended.is_set():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _is_ready(self) -> bool:
        lines = _pid_file(self.server.places.data)
        return len(lines) > 7 and lines[7].strip() == "ready" and lines[0].strip() == str(self.pid)

    def _failed(self, what: str) -> Exception:
        said = self._tail.told("PANIC:", "FATAL:", "ERROR:")
        if _FULL in "\n".join(self._tail.lines):
            return Unreachable(f"the volume of {self.server.places.data} is full: {said}")
        status = "" if self.status is None else f" (status {self.status})"
        return PeerFailed(f"the server {what}{status}: {said or 'it said nothing'}")


def _when_loaded(connection: psycopg.Connection[Any]) -> str:
    """Return when the configuration was read that this connection was let in under. PeerFailed."""
    import psycopg

    try:
        row = connection.execute("SELECT pg_conf_load_time()::text").fetchone()
    except psycopg.Error as error:
        raise PeerFailed(f"the server does not answer: {_line(error)}") from None
    return str(row[0]) if row else ""


def hold(places: Places, cancelled: Cancelled) -> int:
    """Return a descriptor with the lock that only processes of this cluster hold, as soon as none of them lives; Stopped."""
    fd = os.open(f"{places.home}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    never = threading.Event()
    looks, begun = 0, time.monotonic()
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                os.close(fd)
                raise Unreachable(f"{places.home}: files cannot be locked there: {error.strerror}") from None
        if cancelled():
            os.close(fd)
            raise Stopped(f"{places.data}: told to stop while processes of an earlier server still lived")
        if looks % _HURRY == 0:
            _hurry(fd, places, time.monotonic() - begun if looks else 0.0)
        looks += 1
        never.wait(0.01)


def _hurry(lock: int, places: Places, waited: float) -> None:
    """Have what an earlier battery left come to its end: see `_end_earlier`.

    Done by a copy of this process that is the account's, as the directory of the socket is: root may not see what others have
    open where it lacks CAP_SYS_PTRACE, as it does in most containers. It becomes no program, for the account may have none of
    ours to run.
    """
    path = os.readlink(f"/proc/self/fd/{lock}")

    def look() -> None:
        try:
            signal.alarm(_LOOKED)
            _end_earlier(path, places.data, waited)
        finally:
            os._exit(0)

    with suppress(OSError):  # there can be no process: later there may
        told = os.stat(places.socket)
        who = Account(told.st_uid, told.st_gid)
        subprocess.Popen(["look"], cwd="/", start_new_session=True, preexec_fn=look, **who.popen).wait()


def _end_earlier(path: str, data: str, waited: float) -> None:
    """Ask a server that has the lock to shut down, at first, should it not know that it is to.

    Where there is none any more, its processes are killed: one that is busy with a query would not notice before its end that
    its server is gone, and keep it from being begun again.
    """
    holders = {pid: _arguments(pid) for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _holds(pid, path)}
    servers = [pid for pid, arguments in holders.items() if b"-D" in arguments[1:3]]
    ours = [pid for pid in servers if os.fsencode(data) in holders[pid][1:3]]
    if not servers:
        _signal(holders, signal.SIGKILL, path)
    elif not waited:
        _signal(ours, signal.SIGINT, path)
    elif _is_stuck(data, waited):
        _signal(ours, signal.SIGQUIT, path)


def _signal(pids: Iterable[int], number: int, path: str) -> None:
    for pid in pids:
        with suppress(OSError):
            process = os.pidfd_open(pid)
            try:
                if _holds(pid, path):  # it is still the one that was looked at
                    signal.pidfd_send_signal(process, number)
            finally:
                os.close(process)


def _is_stuck(data: str, waited: float) -> bool:
    """Say whether a server that was asked to shut down, `waited` seconds ago, never will.

    One that is asked while it recovers from the end of one of its processes may wait for its checkpointer for ever, which waits
    for it (15.18 does). It has nothing to write that the next recovery would not.
    """
    try:
        state = read_control(data).condition
    except Corrupt:
        return False
    return state == "in crash recovery" or (state == "in production" and waited > _STUCK)


def _holds(pid: int, path: str) -> bool:
    """Say whether a process has a file open, and is not the battery, nor a copy of it that is about to become a program."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as found:
            return any(_link(each.path) == path for each in found) and not _is_battery(pid)
    except OSError:  # it is gone, or not for us to look at
        return False


def _is_battery(pid: int) -> bool:
    """Say whether a process is our parent, or a child of that with the same command line, as we are ourselves.

    By its program alone, what a server began with our Python would be one. By its parent alone, so would a server's processes:
    in a container, whose first process the battery is, the kernel gives it whoever lost its parent.
    """
    battery = os.getppid()
    return pid == battery or (_parent(pid) == battery and _arguments(pid) == _arguments(os.getpid()))


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read(4096).rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # it was closed meanwhile
        return ""


def _arguments(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(4096).split(b"\0")
    except OSError:
        return []


def read_control(data: str) -> Control:
    """Return what a cluster says of itself; Corrupt where it cannot be read."""
    path = f"{data}/global/pg_control"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            return decode_control(file.read(1 << 16))
    except OSError as error:
        raise Corrupt(f"{path}: {error.strerror}; {data} is no cluster of PostgreSQL") from None
    except Malformed as error:
        raise Corrupt(f"{path}: {error}") from None


def _pid_file(data: str) -> list[str]:
    try:
        fd = os.open(f"{data}/postmaster.pid", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            return file.read(4096).decode(errors="replace").split("\n")
    except OSError:
        return []


def _pid_said(data: str) -> int:
    """Return the pid in the pid file; 0 where there is none."""
    lines = _pid_file(data)
    try:
        return abs(int(lines[0])) if lines else 0
    except ValueError:
        return 0


def _remove_sockets(server: Server) -> None:
    """Remove what a server left that was killed: the pid in a socket's lock file may be another's by now, and it would count.

    In another container that is likely, for there they begin at 1 again.
    """
    for folder in filter(None, (server.places.socket, server.places.clients)):
        for name in (f".s.PGSQL.{server.port}", f".s.PGSQL.{server.port}.lock"):
            with suppress(OSError):  # what is somebody else's, the server itself tells of
                os.unlink(f"{folder}/{name}")


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            problem = f"port {port} of the pod cannot be had: {error.strerror}; give the database another with pgPort"
            raise ConfigurationError(problem) from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
