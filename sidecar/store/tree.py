"""A directory tree that others may be writing to, walked and opened without ever following a symbolic link below its top.

The application that owns the tree may be less trusted than we are: a directory that it swaps for a link between our looking and
our opening must not lead us to a secret to save, or to a file to overwrite. So every part of a path is opened relative to the
descriptor of the one before, with O_NOFOLLOW; no path below the top is ever handed to the kernel whole.

The way to the top is another matter: a person's own links are to be followed, those that an application left in a volume are
not. See `open_shared`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from sidecar.store.format import DIRECTORY, FILE, LINK, RESERVED

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PASSED = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # a directory on the way may be one that we cannot list
SPECIAL = "special"
_LINKS = 40  # as many as the kernel follows
_OPEN_AT_ONCE = 128  # descriptors; the usual limit of a process is 1024


class Seen(NamedTuple):
    """What a look at something told, a fifth of a stat_result: an upload keeps one of each entry. Times are in nanoseconds.

    Two that are the same say that a file was not touched meanwhile: its ctime cannot be set, but by setting the clock.
    """

    mode: int
    size: int
    mtime: int
    ctime: int
    inode: int


class Found(NamedTuple):
    """What stands at `path` below the top, and what was seen of it. `type`: an entry's, or SPECIAL: a socket, pipe or device."""

    path: str
    type: str
    seen: Seen
    target: str = ""


class Directories:
    """Descriptors of the directories of a tree, the most recently used kept open. Not for several threads."""

    def __init__(self, top: str, *, shared: bool = False, make: bool = False) -> None:
        """Open the tree at `top`, which may be reached through links (see `open_shared`); OSError where that cannot be.

        With `make`, it and the directories on the way to it are made where they are missing.
        """
        if shared:
            self.top = open_shared(top, make=make)
        else:
            if make:
                os.makedirs(top, exist_ok=True)
            self.top = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: OrderedDict[str, int] = OrderedDict()

    def fd(self, path: str) -> int:
        """Return a descriptor of directory `path` ("" is the top), good until the next call. OSError where there is none."""
        missing = []
        while path and path not in self._open:
            path, _, name = path.rpartition("/")
            missing.append(name)
        fd = self.top
        if path:
            self._open.move_to_end(path)
            fd = self._open[path]
        for name in reversed(missing):
            fd = os.open(name, FOLDER, dir_fd=fd)
            path = f"{path}/{name}" if path else name
            self._open[path] = fd
            if len(self._open) > _OPEN_AT_ONCE:
                os.close(self._open.popitem(last=False)[1])
        return fd

    def close(self) -> None:
        """Close every descriptor."""
        for fd in (*self._open.values(), self.top):
            os.close(fd)
        self._open.clear()


def open_shared(path: str, *, make: bool = False) -> int:
    """Return a descriptor of the directory at `path`, which leads into a volume that others write to.

    Links are followed on the file system of `/` only: the image is its maker's, and it needs /var/run -> /run. A link anywhere
    else may have been put there by the application to have us read or write what only we may: OSError.
    """
    fd = os.open("/", _PASSED)
    try:
        trusted = os.fstat(fd).st_dev
        waiting = _parts(os.path.abspath(path))
        links = 0
        while waiting:
            name = waiting.pop()
            target = _link_at(name, fd)
            if target is not None:
                links += 1
                # The directory's device: on an overlay that of other files may be a layer's.
                if links > _LINKS or os.fstat(fd).st_dev != trusted:
                    problem = f"{name!r} is a symbolic link that others may have put there; name the directory that it leads to"
                    raise OSError(errno.ELOOP, problem)
                waiting += _parts(target)
                name = "/" if target.startswith("/") else "."
            elif make:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=fd)
            passed = os.open(name, _PASSED, dir_fd=fd)
            os.close(fd)
            fd = passed
        return os.open(".", FOLDER, dir_fd=fd)
    finally:
        os.close(fd)


def _parts(path: str) -> list[str]:
    """Return the parts of a path, the last one first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _link_at(name: str, fd: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=fd)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):  # no link; nothing at all
            return None
        raise


def split(path: str) -> tuple[str, str]:
    """Return the directory that holds `path`, and the last part."""
    parent, _, name = path.rpartition("/")
    return parent, name


def kind(mode: int) -> str:
    """Return the entry type of a stat mode."""
    if stat.S_ISREG(mode):
        return FILE
    if stat.S_ISDIR(mode):
        return DIRECTORY
    return LINK if stat.S_ISLNK(mode) else SPECIAL


def seen_of(told: os.stat_result) -> Seen:
    """Return what a stat told."""
    return Seen(told.st_mode, told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino)


def walk(
    tree: Directories,
    failed: Callable[[str, OSError], None],
    check: Callable[[], None],
    leave_out: Callable[[str], bool] | None = None,
) -> list[Found]:
    """Return everything below the top, ascending by the bytes of the paths, but what `leave_out`, given its path, is true for.

    `failed` is told of what cannot be looked at, and raises or returns; `check` is called now and then, and may raise.
    What is left out is not looked at, and of a directory nothing below it.
    """
    found: list[Found] = []
    waiting = [""]
    while waiting:
        check()
        folder = waiting.pop()
        try:
            fd = tree.fd(folder)
            with os.scandir(fd) as entries:
                names = list(entries)
        except OSError as error:
            failed(folder, error)
            continue
        for entry in names:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if path == RESERVED or (leave_out is not None and leave_out(path)):
                continue
            try:
                found.append(_look(path, entry, fd))
            except OSError as error:
                failed(path, error)
                continue
            if found[-1].type == DIRECTORY:
                waiting.append(path)
    return sorted(found, key=lambda each: os.fsencode(each.path))


def _look(path: str, entry: os.DirEntry[str], fd: int) -> Found:
    seen = seen_of(entry.stat(follow_symlinks=False))
    type_ = kind(seen.mode)
    target = os.readlink(entry.name, dir_fd=fd) if type_ == LINK else ""
    return Found(path, type_, seen, target)
