"""How the application gets at a database: files beside its signals, on the volume that is shared.

    pgpass   the owner's password, for libpq, 0600; none where anyone may come in (`trust`)
    dsn      how to connect, as libpq's connection string: psql "$(cat /tmp/coord/db1/dsn)"

Others write to that volume. A file is made under a name that nobody knows, and renamed; no link is followed.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress

from sidecar.batteries.postgres.configuration import conninfo, passfile
from sidecar.errors import Unreachable
from sidecar.store import open_shared
from sidecar.values import value

PASSFILE, DSN = "pgpass", "dsn"


@value
class Way:
    """How to connect: the loopback and a port, a directory with a socket ("" for none), who, to which database, with what."""

    folder: str
    port: int
    socket: str
    user: str
    password: str
    database: str

    @property
    def passfile(self) -> str:
        """The path of the password file, "" where there is none."""
        return f"{self.folder}/{PASSFILE}" if self.password else ""

    @property
    def dsn(self) -> str:
        """The path of the file with the connection string."""
        return f"{self.folder}/{DSN}"


def hand_over(way: Way, reader: int | None) -> None:
    """Write the files; the one with the password is for `reader`, a uid, alone (None: for ourselves). Unreachable."""
    hosts = ["127.0.0.1", "localhost", *([way.socket] if way.socket else [])]
    try:
        folder = open_shared(way.folder, make=True)
        try:
            if way.password:
                text = passfile((host, way.port, way.user, way.password) for host in hosts)
                _write(folder, PASSFILE, text, 0o600, reader)
            _write(folder, DSN, _dsn(way) + "\n", 0o644, None)
        finally:
            os.close(folder)
    except OSError as error:
        problem = f"{way.folder}: how to connect cannot be told there: {error.strerror}"
        raise Unreachable(problem) from None


def _dsn(way: Way) -> str:
    parameters: dict[str, str | int] = {"host": "127.0.0.1", "port": way.port, "user": way.user}
    parameters["dbname"] = way.database
    if way.passfile:
        parameters["passfile"] = way.passfile
    return conninfo(parameters)


def _write(folder: int, name: str, text: str, mode: int, reader: int | None) -> None:
    temporary = f".{name}.{secrets.token_hex(8)}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(fd, mode)
            if reader is not None:
                os.fchown(fd, reader, -1)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
