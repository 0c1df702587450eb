"""The facts that outlive a process, in one SQLite file: where it is, who may read it, its schema, its transactions.

    <folder>/             0700, this user's, on a file system of this host's own
        state.sqlite3     0600, with -wal and -shm beside it
        runs/<lease>      see sidecar.once.lease
        builders/         see sidecar.factory.site and records_sqlite

What one must know to change it. Whatever must not be lost is written with `write()`: one transaction, begun IMMEDIATE so that it
never fails half-way for a lock, and on the disk when it returns (`synchronous=FULL`; with NORMAL a power cut takes the last
commits back, and a claim taken back is a second run). The schema is the list MIGRATIONS: never edit an entry that was published,
append one. Each is applied with its number in one transaction, so a store is of the one version or of the other.

WAL needs one kernel: its index is mapped memory, and the locks of network file systems lie. So those are refused.

`_sqlite3` is what `sqlite3` stands on. That imports datetime and more, which the static `wrap_application` does not have.
"""

from __future__ import annotations

import _sqlite3
import errno
import fcntl
import os
import stat

from sidecar.errors import ConfigurationError, Corrupt, SourceMissing, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Self, TypeAlias

    Row: TypeAlias = tuple[Any, ...]

FILE = "state.sqlite3"
# How long a writer waits for another, in seconds. Two hundred that claim at once take some seconds on two cores.
PATIENCE = 60.0

# What output that is kept leaves free on the disk, or a quarter of a small one: for ends, for tidying up, and for others there.
RESERVE = 8 << 20

# File systems that more than one kernel writes to, or whose locks are known to hold within one process or mount only.
ELSEWHERE = (
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
    "orangefs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs",
)  # fmt: skip
# FUSE is refused whatever stands behind it, but for these.
HERE_BY_FUSE = ("fuse.fuse-overlayfs",)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE run (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            lease TEXT NOT NULL,
            instance TEXT NOT NULL,
            name TEXT NOT NULL,
            state TEXT NOT NULL,
            command BLOB NOT NULL,
            directory BLOB NOT NULL,
            pid INTEGER NOT NULL,
            ticks INTEGER NOT NULL,
            boot TEXT NOT NULL,
            namespace INTEGER NOT NULL,
            claimed INTEGER NOT NULL,
            started INTEGER NOT NULL DEFAULT 0,
            finished INTEGER NOT NULL DEFAULT 0,
            code INTEGER NOT NULL DEFAULT 0,
            signal INTEGER NOT NULL DEFAULT 0,
            reason TEXT NOT NULL DEFAULT '',
            instead INTEGER NOT NULL DEFAULT 0,
            stdout INTEGER NOT NULL DEFAULT 0,
            stdout_kept INTEGER NOT NULL DEFAULT 0,
            stderr INTEGER NOT NULL DEFAULT 0,
            stderr_kept INTEGER NOT NULL DEFAULT 0,
            cut TEXT NOT NULL DEFAULT '',
            UNIQUE (instance, name)
        )""",
        """CREATE TABLE variable (
            run INTEGER NOT NULL,
            name BLOB NOT NULL,
            value BLOB,
            salt BLOB,
            hash BLOB,
            PRIMARY KEY (run, name)
        ) WITHOUT ROWID""",
        """CREATE TABLE output (
            run INTEGER NOT NULL,
            number INTEGER NOT NULL,
            stream INTEGER NOT NULL,
            at INTEGER NOT NULL,
            bytes BLOB NOT NULL,
            PRIMARY KEY (run, number)
        )""",
    ),
    # What sidecar.factory records.
    (
        """CREATE TABLE work (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
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
            build INTEGER NOT NULL DEFAULT 0,
            digest TEXT NOT NULL DEFAULT '',
            reference TEXT NOT NULL DEFAULT '',
            labels TEXT NOT NULL DEFAULT '{}',
            worker TEXT NOT NULL DEFAULT '',
            asked INTEGER NOT NULL,
            started INTEGER NOT NULL DEFAULT 0,
            finished INTEGER NOT NULL DEFAULT 0,
            said INTEGER NOT NULL DEFAULT 0
        )""",
        "CREATE INDEX work_same ON work (same)",
        "CREATE INDEX work_status ON work (status)",
        "CREATE INDEX work_image ON work (image)",
        """CREATE TABLE work_log (
            work INTEGER NOT NULL,
            at INTEGER NOT NULL,
            bytes BLOB NOT NULL,
            PRIMARY KEY (work, at)
        )""",
    ),
)

# No database is smaller than its smallest page.
_SMALLEST = 512
# Result codes of SQLite's.
_BUSY, _LOCKED, _READONLY, _CORRUPT, _FULL, _NOTADB = 5, 6, 8, 11, 13, 26


def state_folder(environment: Mapping[str, str]) -> str:
    """Return where state is when nobody says: SIDECAR_STATE, else `sidecar` in the user's state directory, as XDG finds that.

    ConfigurationError where neither SIDECAR_STATE, XDG_STATE_HOME nor HOME is set, and where the first is a URL: what is of one
    host is kept on it, and a directory of that name would tell the password.
    """
    if "://" in environment.get("SIDECAR_STATE", ""):
        raise ConfigurationError("SIDECAR_STATE is a URL, and this is kept on this host; name a directory with --state DIR")
    if environment.get("SIDECAR_STATE"):
        return environment["SIDECAR_STATE"]
    state = environment.get("XDG_STATE_HOME", "")
    # Relative paths in it are to be ignored, says the XDG base directory specification.
    if not os.path.isabs(state):
        home = environment.get("HOME", "")
        if not os.path.isabs(home):
            raise ConfigurationError("there is no HOME to keep state in; name a directory with --state DIR or SIDECAR_STATE")
        state = os.path.join(home, ".local", "state")
    return os.path.join(state, "sidecar")


class Busy(Unreachable):
    """Another process has been writing for longer than one was ready to wait."""


class State:
    """The store of facts in `folder`, which is made where it is missing, unless told not to (SourceMissing).

    Raises Unreachable where it cannot be kept there (not this user's alone, another host's, full), ConfigurationError where a
    newer version wrote it, Corrupt where it is no such store. May be used by several threads, not at once.
    """

    def __init__(self, folder: str, migrations: Sequence[Sequence[str]] = MIGRATIONS, *, make: bool = True) -> None:
        if "://" in folder:  # not named: a database's URL holds a password
            raise ConfigurationError("state is kept in a directory of this host, and a URL names none; name one with --state DIR")
        self.folder = os.path.abspath(folder)
        self.path = os.path.join(self.folder, FILE)
        self._connection: _sqlite3.Connection | None = None
        # What the connection was told last.
        self._durable: bool | None = None
        self._patience = PATIENCE
        if not make:
            self._check_there()
        self.fd = self._open_folder()
        try:
            fresh = self._check_file()
            self._connect()
            self._check_folder()
            if fresh or self._version() < len(migrations):
                self._upgrade(migrations)
            elif self._version() > len(migrations):
                raise ConfigurationError(
                    f"{self.path} is of version {self._version()}, and this sidecar knows {len(migrations)}: "
                    "a newer one wrote it; use that, or another --state"
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            try:
                self._connection.close()
            except _sqlite3.Error:
                pass  # a full disk: what was to be tidied stays for the next
            self._connection = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # --- asking and saying

    def read(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Return the rows that a statement finds."""
        try:
            return self.connection.execute(sql, parameters).fetchall()
        except _sqlite3.Error as error:
            raise self._cannot("read", error) from None

    def write(self, *, durable: bool = True, patience: float = PATIENCE) -> Transaction:
        """Return a transaction to write in; it is on the disk when it is over, unless it need not be `durable`.

        Busy where others have been writing for more than `patience` seconds.
        """
        return Transaction(self, durable, patience)

    def room(self) -> int:
        """Return how many bytes there is room for, beyond those that are left for what must not fail."""
        about = os.fstatvfs(self.fd)
        try:
            # A checkpoint writes as much again, and takes nothing away from here.
            log = os.stat(f"{FILE}-wal", dir_fd=self.fd).st_size
        except FileNotFoundError:
            log = 0
        return (about.f_bavail - min(RESERVE // about.f_frsize, about.f_blocks // 4)) * about.f_frsize - log

    @property
    def connection(self) -> _sqlite3.Connection:
        """What all goes through; Unreachable once it was closed."""
        if self._connection is None:
            raise Unreachable(f"{self.path} was closed")
        return self._connection

    # --- opening

    def _check_there(self) -> None:
        """SourceMissing where there is no store; what cannot be looked at for another reason is opened, and refused there."""
        try:
            os.lstat(self.path)
        except FileNotFoundError:
            raise SourceMissing(f"there is nothing in {self.folder} yet") from None
        except OSError:
            pass

    def _open_folder(self) -> int:
        try:
            os.makedirs(os.path.dirname(self.folder), exist_ok=True)
            made = True
            try:
                os.mkdir(self.folder, 0o700)
            except FileExistsError:
                made = False
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            why = "it is no directory, or a link" if error.errno in (errno.ENOTDIR, errno.ELOOP) else error.strerror
            raise Unreachable(f"state cannot be kept in {self.folder}: {why}; name another directory with --state") from None
        try:
            if made:
                os.fchmod(fd, 0o700)  # whatever the umask took
            about = os.fstat(fd)
            if about.st_uid != os.geteuid():
                raise Unreachable(f"state cannot be kept in {self.folder}: it is user {about.st_uid}'s; name one of your own")
            if stat.S_IMODE(about.st_mode) & 0o077:
                raise Unreachable(
                    f"state cannot be kept in {self.folder}: others may enter it (mode {stat.S_IMODE(about.st_mode):04o}); "
                    f"name a directory in it, which is made, or chmod 700 {self.folder}"
                )
            if of_more_hosts(found := file_system(fd)):
                raise Unreachable(
                    f"state cannot be kept in {self.folder}: locks on {found} do not hold; name a directory on a disk of this "
                    "host's, or an emptyDir"
                )
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check_file(self) -> bool:
        """Tell whether there is no store yet; refuse what is none of ours.

        By name: whoever closes a descriptor of the file drops the locks that SQLite holds on it in this process (POSIX).
        """
        try:
            about = os.stat(FILE, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return True
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077:
            raise Unreachable(f"{self.path} is not a file of this user's alone (mode 0600)")
        if 0 < about.st_size < _SMALLEST:  # which SQLite takes for an empty one, and writes over
            raise Corrupt(f"{self.path} is no store of sidecar's; move {self.folder} away, or use another --state")
        return about.st_size == 0

    def _connect(self) -> None:
        try:
            try:
                made = os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
                os.fchmod(made, 0o600)
                os.close(made)
            except FileExistsError:
                pass
            self._connection = _sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        except (OSError, _sqlite3.Error) as error:
            raise self._cannot("open", error) from None

    def _check_folder(self) -> None:
        """Refuse a folder that was moved away while it was checked: SQLite has opened the file by its path."""
        try:
            about, now = os.fstat(self.fd), os.stat(self.folder, follow_symlinks=False)
        except OSError as error:
            raise self._cannot("open", error) from None
        if (about.st_dev, about.st_ino) != (now.st_dev, now.st_ino):
            raise Unreachable(f"{self.folder} was moved away while it was opened")

    def _version(self) -> int:
        return int(self.read("PRAGMA user_version")[0][0])

    def _upgrade(self, migrations: Sequence[Sequence[str]]) -> None:
        # One at a time: a file that is becoming WAL answers others with "busy" at once, however long they would wait.
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        try:
            if self._version() == 0:
                self.read("PRAGMA auto_vacuum=FULL")  # before the first table, or never
                self.read("PRAGMA journal_mode=WAL")
            for number, statements in enumerate(migrations, 1):
                with self.write() as transaction:
                    if self._version() < number:
                        for statement in statements:
                            transaction.execute(statement)
                        transaction.execute(f"PRAGMA user_version={number}")
            # Into the file itself, whose name is to outlast a power cut, too.
            self.read("PRAGMA wal_checkpoint(TRUNCATE)")
            os.fsync(self.fd)
        except OSError as error:
            raise self._cannot("make", error) from None
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def _cannot(self, do: str, error: OSError | _sqlite3.Error) -> Corrupt | Unreachable:
        if isinstance(error, OSError):
            return Unreachable(f"cannot {do} {self.path}: {error.strerror}")
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (_NOTADB, _CORRUPT):
            return Corrupt(
                f"{self.path} is no store of sidecar's, or damaged ({error}); move {self.folder} away, or use another --state"
            )
        if code in (_BUSY, _LOCKED):
            return Busy(f"cannot {do} {self.path}: another process held it for more than {self._patience:g} s")
        remedy = {_FULL: "; the disk is full", _READONLY: "; it is read-only"}.get(code, "")
        return Unreachable(f"cannot {do} {self.path}: {error}{remedy}")


class Transaction:
    """One transaction: whole when it is over, or, where anything was raised in it, not at all."""

    def __init__(self, state: State, durable: bool, patience: float) -> None:
        self._state, self._durable, self._patience = state, durable, patience

    def __enter__(self) -> Self:
        if self._state._patience != self._patience:
            self.execute(f"PRAGMA busy_timeout={int(self._patience * 1000)}")
            self._state._patience = self._patience
        if self._state._durable is not self._durable:
            self.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'NORMAL'}")
            self._state._durable = self._durable
        self.execute("BEGIN IMMEDIATE")
        return self

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> _sqlite3.Cursor:
        """Carry out one statement."""
        try:
            return self._state.connection.execute(sql, parameters)
        except _sqlite3.Error as error:
            raise self._state._cannot("write", error) from None

    def __exit__(self, kind: object, *_: object) -> None:
        connection = self._state.connection
        try:
            if kind is None:
                self.execute("COMMIT")
        finally:
            if connection.in_transaction:  # a full disk ends one by itself
                connection.execute("ROLLBACK")


# --- file systems ------------------------------------------------------------------------------------------------------


def of_more_hosts(kind: str) -> bool:
    """Tell whether a file system of this kind may be written by more than one kernel, or does not keep locks as a disk does."""
    return kind in ELSEWHERE or (kind.startswith("fuse") and kind not in ("fuseblk", *HERE_BY_FUSE))


def file_system(fd: int) -> str:
    """Return the kind of the file system that an open file is on, as mount(8) names it; "" where /proc does not tell."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb", buffering=0) as file:
            about = dict(line.split(b":", 1) for line in file.readall().splitlines() if b":" in line)
        mount = about[b"mnt_id"].strip()
        with open("/proc/self/mountinfo", "rb", buffering=0) as file:
            for line in file.readall().splitlines():
                if line.split(b" ", 1)[0] == mount:
                    return line.partition(b" - ")[2].split()[0].decode()
    except (OSError, KeyError, ValueError, IndexError):
        pass
    return ""
