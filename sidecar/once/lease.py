"""Who lives: a file for each run that is under way, locked by whoever runs it, with room for the run's last words.

    <state>/runs/<lease>    flock(LOCK_EX) from before the claim is committed until after the end is; then it is removed

Its name is random and stands in the run's row: numbers are given again, to whoever comes after a claim that was not committed,
and where somebody has moved a store away or brought one back; one would then remove another's.

The kernel drops the lock when its holder dies, whatever it dies of, and for all containers of a pod, of which each counts its own
processes. The lock alone will not do, for a process that the holder forked without exec shares it; so where the process ids of
the holder mean anything to whoever asks, the holder's identity must be right as well.

The room is allocated before the program begins, so that how it ended can be told where the disk is full by then and the ledger
takes no more. Whoever finds such words carries them into the ledger.
"""

from __future__ import annotations

import fcntl
import os

from sidecar import process
from sidecar.errors import Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sidecar.process import Identity

FOLDER = "runs"
ROOM = 4096
# Ends the last words: those that were cut off do not.
_STOP = b" .\n"


def new_name() -> str:
    """Return a name that no other lease has."""
    return os.urandom(16).hex()


def take(state: int, name: str) -> int:
    """Return the locked file of the lease `name` below the folder `state`; OSError where there is no room for it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(_path(name), flags, 0o600, dir_fd=state)
    except FileNotFoundError:
        try:
            os.mkdir(FOLDER, 0o700, dir_fd=state)
        except FileExistsError:
            pass
        fd = os.open(_path(name), flags, 0o600, dir_fd=state)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.posix_fallocate(fd, 0, ROOM)
    except BaseException:
        drop(state, name)
        os.close(fd)
        raise
    return fd


def drop(state: int, name: str) -> None:
    """Remove the file of a run that has come to its end, or was not to be."""
    try:
        os.unlink(_path(name), dir_fd=state)
    except OSError:
        pass  # It lies there for nothing.


def lives(state: int, name: str, owner: Identity) -> bool:
    """Tell whether the owner of the lease `name` is alive; Unreachable where that cannot be told: a guess may be a second run."""
    boot = process.boot()
    if not boot:
        raise Unreachable("without /proc nobody can tell whether a run's owner is alive")
    if owner.boot != boot:
        return False
    try:
        fd = os.open(_path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=state)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Unreachable(f"nobody can tell whether process {owner.pid} is alive: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        me = process.own_identity()
        return me is None or me.namespace != owner.namespace or _is(owner)
    except OSError as error:
        raise Unreachable(f"nobody can tell whether process {owner.pid} is alive: {error.strerror}") from None
    finally:
        os.close(fd)


def _is(owner: Identity) -> bool:
    """Tell whether the process of that id is the owner; where it cannot be looked at, as without descriptors, it is."""
    found = process.identity(owner.pid)
    if found is not None:
        return found == owner
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def write_words(fd: int, words: str) -> None:
    """Leave the last words of a run in its file; OSError."""
    data = words.encode(errors="replace")[: ROOM - len(_STOP)] + _STOP
    os.pwrite(fd, data, 0)
    os.fsync(fd)


def read_words(state: int, name: str) -> str:
    """Return the last words in the lease `name`; "" where there are none."""
    try:
        fd = os.open(_path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=state)
    except OSError:
        return ""
    try:
        said, stop, _ = os.pread(fd, ROOM, 0).partition(_STOP)
    except OSError:
        return ""
    finally:
        os.close(fd)
    return said.decode(errors="replace") if stop else ""


def _path(name: str) -> str:
    return f"{FOLDER}/{name}"
