"""What a container sees of an image that is a directory: the entries of its sandbox's root.

Rule 1: an image is never written, not even for a place to mount something in. One that is the caller's gets a layer, as of an
engine: what is written goes there, and is gone with the container. Of another's, the machine's own root for one, a caller without
privileges can have none. There everything is read-only but /tmp and /run; and where a place to mount something in is missing, the
directory that lacks it is opened: an empty one is put there, and in it each entry of the image's own.
Rule 2: bwrap follows links while it mounts, out of the sandbox too. So no path goes to it that has one: those of an image are
followed here, as the container would see them; one in a volume, which a program of the pod may have left there, is refused.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress

from sidecar.sandbox import Bind, Entry, Link, Scratch
from sidecar.session.place import clashes

# Of an image these are not seen: the sandbox has its own, or what is in there is the machine's.
OWN = ("dev", "proc", "run", "sys", "tmp")
SCRATCH = ("/run", "/tmp")
# What an engine gives each container, so that names of the network mean there what they mean on the machine.
NETWORK = ("/etc/hosts", "/etc/resolv.conf")
_LINKS = 40


def layered(image: str) -> bool:
    """Tell whether an image gets a layer."""
    # An overlay does not show what is mounted below; of the machine's root, that may be much.
    return image != "/" and os.stat(image).st_uid == os.geteuid()


def entries(image: str, mounts: Sequence[Bind], *, read_only: bool = False) -> tuple[Entry, ...]:
    """Return the root of a container: the image in the directory `image`, and `mounts`; ValueError where one cannot be there.

    Of an image with a layer, no more than what is mounted in it.
    """
    found = [Bind(each.source, resolve(image, each.target), each.read_only) for each in mounts]
    for outer, inner in clashes(each.target for each in found):
        raise ValueError(f"{mounts[inner].target} is, or lies in, {mounts[outer].target} in this image")
    found += _network(image, {each.target for each in found})
    if layered(image):
        return tuple(found)
    opened = sorted({place for each in found for place in _lacking(image, each)})
    root: list[Entry] = list(_listed(image, "/"))
    root += [Scratch(each, sealed=read_only) for each in SCRATCH]
    for place in opened:
        root.append(Scratch(place, sealed=True))
        root += _listed(image, place)
    return (*root, *found)


def resolve(image: str, path: str) -> str:
    """Return where `path` leads in a container of an image: without links, for nothing below it but its own root."""
    todo, found, links = path.split("/")[::-1], [""], 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            found[1:] = found[1:-1]
            continue
        try:
            own = [*found, part][1] in OWN
            text = "" if own else os.readlink(_in(image, "/".join([*found, part])))
        except OSError:
            text = ""
        if not text:
            found.append(part)
            continue
        links += 1
        if links > _LINKS:
            raise ValueError(f"{path} leads through too many links in this image")
        if text.startswith("/"):
            found = [""]
        todo += text.split("/")[::-1]
    return "/".join(found) or "/"


def in_volume(folder: str, part: str, *, make: bool) -> str:
    """Return the path of what is below `part` of a volume, which is made where it is to be; ValueError where there is none.

    Between this and its mounting a program of the same pod could still put a link in its place: programs of one pod are as
    trustworthy as whoever composed it.
    """
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in filter(None, part.split("/")):
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=fd)
            try:
                inner = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            except OSError as error:
                raise ValueError(f"subPath {part}: {error.strerror}") from None
            os.close(fd)
            fd = inner
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                raise ValueError(f"subPath {part} leads through a link, {name}")
    finally:
        os.close(fd)
    return os.path.join(folder, part)


def _in(image: str, path: str) -> str:
    return image.rstrip("/") + path


def _listed(image: str, place: str) -> Iterator[Entry]:
    """Yield what puts the entries of one directory of an image there."""
    for name in sorted(os.listdir(_in(image, place))):
        target = f"{place.rstrip('/')}/{name}"
        if place == "/" and name in OWN:
            continue
        source = _in(image, target)
        yield Link(os.readlink(source), target) if os.path.islink(source) else Bind(source, target)


def _lacking(image: str, mount: Bind) -> Iterator[str]:
    """Yield the directory of an image that is to be opened, so that there can be what is mounted, if any is."""
    if mount.target.split("/")[1] in OWN:
        return
    is_directory = os.path.isdir(mount.source)
    try:
        there = os.lstat(_in(image, mount.target)).st_mode
        if stat.S_ISDIR(there) != is_directory:
            raise ValueError(f"{mount.target}: one of the image's and the volume's is a directory, the other is none")
        return
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
    place = os.path.dirname(mount.target)
    while not os.path.isdir(_in(image, place)):
        if os.path.lexists(_in(image, place)):
            raise ValueError(f"{mount.target}: {place} is no directory in this image")
        place = os.path.dirname(place)
    if place != "/":
        yield place


def _network(image: str, taken: set[str]) -> list[Bind]:
    """Return what makes the names of the network those of the machine. Of its own root only what lies in /run is missing."""
    found = []
    for path in NETWORK:
        source, target = os.path.realpath(path), resolve(image, path)
        covered = any(target == each or target.startswith(f"{each}/") for each in taken)
        if os.path.isfile(source) and not covered and (image != "/" or target.startswith("/run/")):
            found.append(Bind(source, target))
    return found
