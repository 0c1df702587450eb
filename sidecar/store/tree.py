"""A directory tree that others may be writing to, walked and opened without ever following a symbolic link below its top.

The application that owns the tree may be less trusted than we are: a directory that it swaps for a link between our looking and
our opening must not lead us to a secret to save, or to a file to overwrite. So every part of a path is opened relative to the
descriptor of the one before, with O_NOFOLLOW; no path below the top is ever handed to the kernel whole.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from sidecar.store.format import DIRECTORY, FILE, LINK, RESERVED

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
SPECIAL = "special"
_OPEN_AT_ONCE = 128  # descriptors; the usual limit of a process is 1024


class Found(NamedTuple):
    """What stands at `path` below the top: see format.Entry. `type` may be SPECIAL: a socket, pipe or device."""

    path: str
    type: str
    mode: int
    mtime: int
    size: int
    target: str = ""


class Directories:
    """Descriptors of the directories of a tree, the most recently used kept open. Not for several threads."""

    def __init__(self, top: str) -> None:
        """Open the tree at `top`, which may itself be reached through links; OSError where that cannot be."""
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


def walk(tree: Directories, failed: Callable[[str, OSError], None], check: Callable[[], None]) -> list[Found]:
    """Return everything below the top, ascending by the bytes of the paths.

    `failed` is told of what cannot be looked at, and raises or returns; `check` is called now and then, and may raise.
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
            if path == RESERVED:
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
    seen = entry.stat(follow_symlinks=False)
    type_ = kind(seen.st_mode)
    target = os.readlink(entry.name, dir_fd=fd) if type_ == LINK else ""
    return Found(path, type_, stat.S_IMODE(seen.st_mode), seen.st_mtime_ns, seen.st_size, target)
