"""Where works are done: by one definition, with the images that one folder of one machine holds.

    <folder>/                         of this machine alone; where records are kept in a folder, that one
        builders/site                 what the folder is called: the host's name when it was first used, and chance
        builders/slot-<digest>-<n>    see sidecar.factory.builder
        images                        the store of images, where the definition names no other

Records may be shared, by machines that have a database in common and by definitions that have a folder in common. Contexts and
images are not: so a work is recorded with the name of the place where it was asked for, and only builders of that place do it.

A machine id alone does not tell places apart: a container may have none, or the one of its image, which all containers of it
have; and the id of a boot is another after the next, by when works wait and images lie there. So the folder has an id of its
own, which goes where it goes: with a volume from one container to the next. The machine's id counts too, where there is one: a
machine that was copied with its disk has the folder's. Paths count because contexts are found by them.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass

from sidecar.errors import Unreachable
from sidecar.factory.buildah import Buildah
from sidecar.factory.definition import Definition

SLOTS = 2
FOLDER = "builders"
_CALLED = re.compile(r"[A-Za-z0-9.-]{1,64} [0-9a-f]{32}")
_MACHINE = re.compile(r"[0-9a-f]{32}")
# How much of a definition's path a name shows, its end, and how much of a digest, by which nobody meets another's by chance.
_SHOWN = 60
_DIGITS = 16


@dataclass(frozen=True)
class Site:
    """Where building takes place: where records are kept, the path of the definition, the folder of this machine, how many may
    build at once, and which machine it is; "" is the one that this runs on."""

    state: str
    definition: str
    folder: str
    slots: int = SLOTS
    machine: str = ""

    def __repr__(self) -> str:
        return f"Site({self.definition!r}, {self.folder!r})"  # a state's URL may hold a password

    def buildah(self, definition: Definition) -> Buildah:
        """Return buildah with the images of this place."""
        return Buildah(definition.store or os.path.join(self.folder, "images"))

    def builders(self) -> str:
        """Return the folder of those who build here, which is made where it is missing. Unreachable where it is another's."""
        folder = os.path.join(self.folder, FOLDER)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            if os.stat(self.folder).st_uid != os.geteuid():
                raise Unreachable(f"{self.folder} is another user's: builders need one of their own")
        except OSError as error:
            raise Unreachable(f"builders cannot be counted in {folder}: {error.strerror}") from None
        return folder

    def name(self) -> str:
        """Return what this place is called in records: HOST:DEFINITION#DIGEST. People know it by the first, the digest counts."""
        host, _, own = _called(self.builders()).partition(" ")
        above, file = os.path.split(self.definition)
        # The definition itself is not resolved: contexts lie beside the link.
        definition = os.path.join(os.path.realpath(above), file)
        told = (self.machine or machine_id(), own, os.path.realpath(self.folder), definition)
        digest = hashlib.sha256(b"\0".join(map(os.fsencode, told))).hexdigest()[:_DIGITS]
        shown = "".join(each if each.isprintable() else "?" for each in definition)
        return f"{host}:{shown if len(shown) <= _SHOWN else '…' + shown[1 - _SHOWN :]}#{digest}"

    def slot(self, number: int) -> str:
        """Return the path of a slot of those who build here."""
        return os.path.join(self.builders(), f"slot-{self.name().rpartition('#')[2]}-{number}")


def machine_id(path: str = "/etc/machine-id") -> str:
    """Return what this machine is called by itself, "" where it does not say."""
    try:
        with open(path, "rb") as file:
            said = file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return ""
    return said if _MACHINE.fullmatch(said) else ""


def _called(folder: str) -> str:
    """Return what a folder of builders is called, which is decided by the first who asks."""
    path = os.path.join(folder, "site")
    try:
        with suppress(FileNotFoundError):
            return _read(path)
        fresh = f"{path}.{os.urandom(8).hex()}"
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                file.write(f"{_host()} {os.urandom(16).hex()}\n")
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(fresh, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(fresh)
        return _read(path)
    except OSError as error:
        raise Unreachable(f"builders cannot be told apart in {folder}: {error.strerror}") from None


def _read(path: str) -> str:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        said = file.read(256).decode("ascii", "replace").strip()
    if not _CALLED.fullmatch(said):
        raise Unreachable(f"{path} does not tell what this folder is called: remove it, if nothing is built here")
    return said


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname())[:64] or "unknown"
