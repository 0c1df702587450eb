"""The directory of one database: who owns it, what was done in it so far, and what stands beside it.

    <dataDir>/<name>            the cluster; it has this name only once it is whole
    <dataDir>/<name>.partial    a cluster being made
    <dataDir>/<name>.sidecar/   ours: owner, lock (see postmaster), journal.json, secret, configuration, s/ (the private socket)

The journal is why a restart never wipes anything. It names the session (one use of a coordination directory) and the step that
was reached, and is written, durably, *before* a step whose repetition would lose something:

    making     nothing but what can be made again is in the directory
    begun      a server runs or ran: there may be rows that are nowhere else. Whoever comes now recovers and goes on.
    stopped    the server was shut down for good and is clean; what is left is to archive it
    over       it is in a bundle, or was not to be kept

What another session left, and is not over, is refused and not touched: nobody can know whether it may be thrown away.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sidecar.batteries import Progress
from sidecar.batteries.postgres.configuration import Places, socket_fits
from sidecar.batteries.postgres.programs import Account, Cancelled
from sidecar.errors import ConfigurationError, Corrupt, Unreachable
from sidecar.values import value

MAKING, BEGUN, STOPPED, OVER = "making", "begun", "stopped", "over"
_STEPS = (MAKING, BEGUN, STOPPED, OVER)
_LONGEST = 1 << 20


class Stage:
    """The directory of one database, ours alone from `own` to `release`."""

    def __init__(self, data: str, session: str) -> None:
        """Nothing is made or read yet. `session` names the use of a coordination directory that this life belongs to."""
        self.data, self.session = data, session
        self.partial, self.home = f"{data}.partial", f"{data}.sidecar"
        self.step = MAKING
        self.notes: dict[str, Any] = {}
        self._owner = -1

    def own(self, who: Account) -> None:
        """Make this directory ours and learn what was done in it.

        ConfigurationError where another battery lives in it, another session left something there that was not archived, or
        the account cannot get there; Unreachable where it cannot be written.
        """
        try:
            os.makedirs(os.path.dirname(self.data), mode=0o711, exist_ok=True)
            _check_way(os.path.dirname(self.data), who)
            with suppress(FileExistsError):
                os.mkdir(self.home, 0o711)
            fd = os.open(f"{self.home}/owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            problem = f"{error.filename}: {error.strerror}; mount a writable volume there, or choose another dataDir"
            raise Unreachable(problem) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            problem = f"{self.data} belongs to another battery that runs; give each database a name or dataDir of its own"
            raise ConfigurationError(problem) from None
        self._owner = fd
        try:
            self._learn()
            self._make(who)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let another own it."""
        if self._owner >= 0:
            os.close(self._owner)
            self._owner = -1

    def reach(self, step: str, **notes: Any) -> None:
        """Write down, durably, that a step is reached, and what is to be remembered of it."""
        self.step = step
        self.notes |= notes
        text = json.dumps({"session": self.session, "step": step, "notes": self.notes})
        self.write("journal.json", text, 0o600)

    def note(self, **notes: Any) -> None:
        """Write down what is to be remembered, durably."""
        self.reach(self.step, **notes)

    def write(self, name: str, text: str, mode: int, who: Account | None = None) -> None:
        """Write one of our files, whole and durable."""
        path = f"{self.home}/{name}"
        temporary = f"{path}.{secrets.token_hex(4)}"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if who is not None:
                    who.own(fd)
                os.fchmod(fd, mode)
                os.fsync(fd)
            os.rename(temporary, path)
            _sync(self.home)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            raise Unreachable(f"{path} cannot be written: {error.strerror}") from None

    def read(self, name: str) -> str:
        """Return one of our files; "" where there is none."""
        try:
            fd = os.open(f"{self.home}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(fd, encoding="utf-8") as file:
                return file.read(_LONGEST)
        except OSError:
            return ""

    def remove(self, name: str) -> None:
        """Remove one of our files, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(f"{self.home}/{name}")

    def keep_ballast(self, size: int) -> None:
        """Keep so many bytes of the volume in reserve, where there is room for four times that."""
        path = f"{self.home}/ballast"
        told = os.statvfs(self.home)
        if os.path.exists(path) or told.f_bavail * told.f_frsize < 4 * size:
            return
        with suppress(OSError), open(path, "xb") as file:
            os.posix_fallocate(file.fileno(), 0, size)

    def drop_ballast(self) -> bool:
        """Give the reserve back; say whether there was any."""
        try:
            os.unlink(f"{self.home}/ballast")
        except FileNotFoundError:
            return False
        return True

    def accept(self) -> None:
        """Have what was made under its name, durably; `partial` is whole and synced."""
        try:
            os.rename(self.partial, self.data)
            _sync(os.path.dirname(self.data))
        except OSError as error:
            raise Unreachable(f"{self.data} cannot be made: {error.strerror}") from None

    def begin_anew(self) -> None:
        """Remove what a life left that was killed while it made a cluster: nobody was let in, so it can be made again."""
        assert self.step == MAKING
        for path in (self.partial, self.data):
            _remove(path)

    def places(self, port: int, clients: str) -> Places:
        """Return where a server has things; `clients` is the directory of the clients' socket, "" for none."""
        return Places(self.data, self.home, self.socket(port), clients)

    def socket(self, port: int) -> str:
        """Return the directory of the private socket. Where its path is too long for a socket it is told."""
        folder = f"{self.home}/s"
        if not socket_fits(folder, port):
            top = os.path.dirname(self.data)
            raise ConfigurationError(f"{folder} is too long for the path of a socket; choose a shorter dataDir than {top}")
        return folder

    @property
    def exists(self) -> bool:
        """Whether there is a cluster."""
        return os.path.lexists(self.data)

    def _learn(self) -> None:
        journal = self._journal()
        if not journal:
            if self.exists:
                raise ConfigurationError(f"{self.data} holds something that is not this battery's; {_REMEDY}")
            return
        if journal["session"] == self.session:
            self.step, self.notes = journal["step"], dict(journal["notes"])
            if self.step != MAKING and not self.exists:
                raise Corrupt(f"{self.data} is gone, and rows that were only there with it")
            return
        if journal["step"] in (BEGUN, STOPPED) and journal["notes"].get("kept") is not False:
            begun = "was not archived" if journal["step"] == STOPPED else "was in use and was not archived"
            raise ConfigurationError(f"{self.data} holds a database of another session that {begun}; {_REMEDY}")
        # It is in a bundle, was declared worthless, or was never used.
        _remove(self.data)

    def _journal(self) -> Mapping[str, Any]:
        path = f"{self.home}/journal.json"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                journal = json.loads(file.read(_LONGEST))
            if journal["step"] not in _STEPS or not isinstance(journal["notes"], dict) or not isinstance(journal["session"], str):
                raise ValueError("it is none of ours")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise Corrupt(f"{path}: it cannot be read ({error}); {_REMEDY}") from None
        found: Mapping[str, Any] = journal
        return found

    def _make(self, who: Account) -> None:
        """Have the directory of the private socket, which is the server's and nobody else's."""
        folder = f"{self.home}/s"
        try:
            with suppress(FileExistsError):
                os.mkdir(folder, 0o700)
            who.own(folder)
            for name in os.listdir(folder):
                # Of a server that is gone, for we own the directory; the lock file's pid may be another's by now.
                os.unlink(f"{folder}/{name}")
        except OSError as error:
            raise Unreachable(f"{folder}: {error.strerror}") from None


@value
class Task:
    """What whoever works on a database has to know: where, as which account, with the operator's settings, and for whom.

    `progress` is told what is going on, and `cancelled` is asked whether it is to end.
    """

    stage: Stage
    who: Account
    settings: Mapping[str, str]
    progress: Progress
    cancelled: Cancelled

    def say(self, what: str) -> None:
        """Tell what is going on now, of which nobody knows how long it takes."""
        self.progress(what, 0, 0)


_REMEDY = "move it (and the directory .sidecar beside it) away, or choose another dataDir"


def _check_way(path: str, who: Account) -> None:
    """ConfigurationError where an account that we are not cannot enter a directory on the way to `path`, or itself."""
    if os.geteuid() != 0:
        return
    folder = os.path.realpath(path)
    while folder != "/":
        told = os.stat(folder)
        owned = 6 if told.st_uid == who.uid else 3 if told.st_gid in (who.gid, *who.groups) else 0
        if not told.st_mode >> owned & 1:
            problem = f"servers run as uid {who.uid}, which may not enter {folder}; chmod o+x it, or choose another dataDir"
            raise ConfigurationError(problem)
        folder = os.path.dirname(folder)


def _remove(path: str) -> None:
    try:
        if os.path.lexists(path):
            shutil.rmtree(path)
    except OSError as error:
        raise Unreachable(f"{path} cannot be removed: {error.strerror}; {_REMEDY}") from None


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
