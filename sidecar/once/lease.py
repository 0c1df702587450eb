"""Who lives: a file for each run that is under way, locked by whoever runs it, with room for the run's last words.

    <state>/runs/<id>    flock(LOCK_EX) from before the claim is committed until after the end is; then it is removed

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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sidecar.process import Identity

FOLDER = "runs"
ROOM = 4096
# Ends the last words: those that were cut off do not.
_STOP = b" .\n"


def take(state: int, number: int) -> int:
    """Return the locked file of run `number` below the folder `state`; OSError where there is no room for it."""
    # It may be there: of one who died before the claim was committed, which gave the number back.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(_path(number), flags, 0o600, dir_fd=state)
    except FileNotFoundError:
        try:
            os.mkdir(FOLDER, 0o700, dir_fd=state)
        except FileExistsError:
            pass
        fd = os.open(_path(number), flags, 0o600, dir_fd=state)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.posix_fallocate(fd, 0, ROOM)
    except BaseException:
        drop(state, number)
        os.close(fd)
        raise
    return fd


def drop(state: int, number: int) -> None:
    """Remove the file of a run that has come to its end, or was not to be."""
    try:
        os.unlink(_path(number), dir_fd=state)
    except OSError:
        pass  # It lies there for nothing until the run is forgotten.


def lives(state: int, number: int, owner: Identity) -> bool:
    """Tell whether the owner of run `number` is alive."""
    if owner.boot != process.boot():
        return False
    try:
        fd = os.open(_path(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=state)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        me = process.identity(os.getpid())
        return me is None or me.namespace != owner.namespace or process.identity(owner.pid) == owner
    finally:
        os.close(fd)


def write_words(fd: int, words: str) -> None:
    """Leave the last words of a run in its file; OSError."""
    data = words.encode(errors="replace")[: ROOM - len(_STOP)] + _STOP
    os.pwrite(fd, data, 0)
    os.fsync(fd)


def read_words(state: int, number: int) -> str:
    """Return the last words of run `number`; "" where there are none."""
    try:
        fd = os.open(_path(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=state)
    except OSError:
        return ""
    try:
        said, stop, _ = os.pread(fd, ROOM, 0).partition(_STOP)
    except OSError:
        return ""
    finally:
        os.close(fd)
    return said.decode(errors="replace") if stop else ""


def _path(number: int) -> str:
    return f"{FOLDER}/{number}"
