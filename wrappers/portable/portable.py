"""What the portable wrapper runs: `wrap_application`; and `--install` and `--copy`, which only it has, for it is one file.

    wrap_application --install DIR     or, by the name `install`:     install DIR

puts it into DIR, which is made where it is missing, as the initContainer does with a volume that the pod's containers share. It
may be killed at any moment and run again: what bears the name is whole, and what an earlier one left half-way is removed.

    wrap_application --copy SRC DIR

puts what is below SRC into DIR, in an image that may hold nothing else: see copy_tree.py.
"""

from __future__ import annotations

import _signal
import _thread
import fcntl
import os
import stat
import sys

from copy_tree import copy_tree

from sidecar.cli import wrap_application
from sidecar.errors import SidecarError, Unreachable, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

NAME = wrap_application.NAME
MODE = 0o555
# Under which name it is written. One will do: who installs holds a lock on the folder.
HALF_WAY = f".{NAME}.new"
PIECE = 1 << 18
# Where addresses are limited, each wait for a death would ask for 8 MiB of them.
STACK = 1 << 18

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NEW = os.O_WRONLY | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def main() -> NoReturn:
    """Be `wrap_application`, or install it."""
    _thread.stack_size(STACK)
    called, words = os.path.basename(sys.argv[0]), sys.argv[1:]
    if called == "install":
        words = ["--install", *words]
    if words[:1] not in (["--install"], ["--copy"]):
        wrap_application.main()
    try:
        if words[0] == "--install":
            install(_folder_of(words[1:]))
        else:
            copy(*_folders_of(words[1:]))
    except SidecarError as error:
        _tell(str(error))
        os._exit(error.status)
    os._exit(0)


def _tell(line: str) -> None:
    os.write(2, f"{NAME}: {line}\n".encode(errors="replace"))


def _folder_of(words: list[str]) -> str:
    if words[:1] == ["--"]:
        words = words[1:]
    if len(words) != 1 or not words[0] or words[0].startswith("-"):
        raise UsageError("--install expects one DIR: where to put wrap_application, on a volume that the pod's containers share")
    return words[0]


def _folders_of(words: list[str]) -> list[str]:
    if words[:1] == ["--"]:
        words = words[1:]
    if len(words) != 2 or not words[0].startswith("/") or not words[1] or words[1].startswith("-"):
        raise UsageError("--copy expects SRC and DIR: an absolute directory, and where to put what is below it")
    return words


def copy(source: str, folder: str) -> None:
    """Put what is below `source` into `folder`, see copy_tree; a signal that ends processes ends it, as PID 1 too."""
    for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
        _signal.signal(number, lambda number, _: os._exit(128 + number))
    try:
        at = _opened(folder)
    except OSError as error:
        raise Unreachable(f"{folder!r} cannot be written: {error.strerror}") from None
    copy_tree(source, folder, at, _tell)


def install(folder: str) -> None:
    """Put this executable into `folder` as NAME, unless it is there; Unreachable where that cannot be."""
    try:
        source = _this_executable()
    except OSError as error:
        raise Unreachable(f"{sys.executable}, this executable, cannot be read: {error.strerror}") from None
    try:
        at = _opened(folder)
        if os.fstatvfs(at).f_flag & os.ST_NOEXEC:
            raise Unreachable(f"{folder} is mounted noexec: nothing in it can be executed")
        if not _is_there(at, source):
            _put(at, source)
    except OSError as error:
        raise Unreachable(f"{NAME} cannot be put into {folder}: {error.strerror}") from None


def _this_executable() -> int:
    try:
        return os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return os.open(sys.executable, os.O_RDONLY | os.O_CLOEXEC)


def _opened(folder: str) -> int:
    """Return `folder`, which is made where it is missing, open and ours alone: two at once wait for each other."""
    os.makedirs(folder, exist_ok=True)
    at = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        fcntl.flock(at, fcntl.LOCK_EX)
    except OSError:
        pass  # No locks here, and then hardly two at once.
    return at


def _is_there(at: int, source: int) -> bool:
    """Tell whether NAME in the folder `at` is ours, may be executed and nothing else, and holds what `source` holds."""
    try:
        found = os.open(NAME, _READ, dir_fd=at)
    except OSError:
        return False
    try:
        about = os.fstat(found)
        return (
            stat.S_ISREG(about.st_mode)
            and stat.S_IMODE(about.st_mode) == MODE
            and about.st_uid == os.geteuid()
            and about.st_size == os.fstat(source).st_size
            and _same(found, source)
        )
    finally:
        os.close(found)


def _same(one: int, other: int) -> bool:
    place = 0
    while piece := os.pread(one, PIECE, place):
        if piece != os.pread(other, PIECE, place):
            return False
        place += len(piece)
    return True


def _put(at: int, source: int) -> None:
    try:
        os.unlink(HALF_WAY, dir_fd=at)
    except FileNotFoundError:
        pass
    try:
        target = os.open(HALF_WAY, _NEW, 0o600, dir_fd=at)
        try:
            _copy(source, target)
            os.fchmod(target, MODE)
        finally:
            os.close(target)  # before it bears its name: what is open for writing cannot be executed
        os.rename(HALF_WAY, NAME, src_dir_fd=at, dst_dir_fd=at)
    except OSError:
        try:
            os.unlink(HALF_WAY, dir_fd=at)
        except OSError:
            pass
        raise


def _copy(source: int, target: int) -> None:
    place = 0
    while piece := os.pread(source, PIECE, place):
        while piece:
            written = os.write(target, piece)
            piece, place = piece[written:], place + written
