"""Works in the SQLite store of a folder, and who does them: a file for each worker, locked by it.

    <state>/builders/<worker>    flock(LOCK_EX) for the worker's whole life, and who that is; removed when it lets go

The kernel drops the lock when its holder dies. The lock alone will not do, for a process that the holder has forked shares it
until it executes something else; so where the process ids of the holder mean anything to whoever asks, the process must be there.

Whoever takes a lease removes those that lie there unlocked. It may find one that was just made and is not locked yet: so whoever
makes one sees, once it has the lock, whether the file is still in its place, and makes it again where it is not.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sidecar import process
from sidecar.errors import Unreachable
from sidecar.factory.records_sql import Execute, Row, SqlRecords, check_worker, is_worker
from sidecar.state import State

FOLDER = "builders"


class SqliteRecords(SqlRecords):
    """The records in `folder`, which is made where it is missing. Raises what State raises."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.state = State(folder)

    def __repr__(self) -> str:
        return f"SqliteRecords({self.state.folder!r})"

    def close(self) -> None:
        """Let go of the store."""
        with self._mine:
            self.state.close()

    def _read(self, sql: str, *parameters: object) -> list[Row]:
        return self.state.read(sql, parameters)

    @contextmanager
    def _writing(self, *, durable: bool, alone: bool) -> Iterator[Execute]:  # noqa: ARG002  SQLite has one writer
        with self.state.write(durable=durable) as transaction:
            yield lambda sql, *parameters: transaction.execute(sql, parameters).fetchall()

    def _check_room(self, size: int) -> None:
        with self._mine:
            self.state.connection  # noqa: B018  Unreachable once it was closed
            if size > self.state.room():
                raise Unreachable(f"the disk that {self.state.folder} is on is nearly full")

    # --- who is alive

    @contextmanager
    def lease(self, worker: str) -> Iterator[None]:
        """Hold a lease until the end of the block."""
        check_worker(worker)
        try:
            with suppress(FileExistsError):
                os.mkdir(FOLDER, 0o700, dir_fd=self.state.fd)
            folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.state.fd)
        except OSError as error:
            raise self._cannot(error) from None
        try:
            try:
                _sweep(folder)
                fd = _take(folder, worker)
            except OSError as error:
                raise self._cannot(error) from None
            try:
                yield
            finally:
                _remove(folder, worker)
                os.close(fd)
        finally:
            os.close(folder)

    def alive(self, worker: str) -> bool:
        """Tell whether somebody holds a lease; Unreachable where that cannot be told."""
        if not is_worker(worker):
            return False
        try:
            fd = os.open(f"{FOLDER}/{worker}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.state.fd)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._cannot(error) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return _may_be_there(os.pread(fd, 4096, 0))
        except OSError as error:
            raise self._cannot(error) from None
        finally:
            os.close(fd)

    def _drop(self, worker: str) -> None:
        if is_worker(worker):
            with suppress(OSError):
                os.unlink(f"{FOLDER}/{worker}", dir_fd=self.state.fd)

    def _cannot(self, error: OSError) -> Unreachable:
        return Unreachable(f"nobody can tell in {self.state.folder}/{FOLDER} who is alive: {error.strerror}")


def _take(folder: int, worker: str) -> int:
    """Return the locked file of a lease, which tells whose it is."""
    while True:
        fd = os.open(worker, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                os.pwrite(fd, _who(process.own_identity()).encode(), 0)
                return fd
        except BaseException:
            _remove(folder, worker)
            os.close(fd)
            raise
        os.close(fd)


def _sweep(folder: int) -> None:
    """Remove the leases that nobody holds."""
    for name in os.listdir(folder):
        if not is_worker(name):
            continue
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder, name)
        except OSError:
            pass  # somebody holds it
        finally:
            os.close(fd)


def _remove(folder: int, name: str) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=folder)


def _who(identity: process.Identity | None) -> str:
    return f"{identity.pid} {identity.ticks} {identity.boot} {identity.namespace} ." if identity is not None else ""


def _may_be_there(said: bytes) -> bool:
    """Tell whether the process that a locked lease names may be alive, as one of another namespace may be, or one not named."""
    parts = said.decode(errors="replace").split(" ")
    me = process.own_identity()
    if me is None or len(parts) != 5 or parts[3] != str(me.namespace):
        return True
    found = process.identity(int(parts[0]))
    return found is not None and _who(found) == " ".join(parts)
