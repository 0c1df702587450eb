"""What a runner of this machine keeps of a pod, in a folder of the pod's name:

    pod.json          what was asked for: the manifest, and what its engine is to know
    status.json       how it stands; replaced as a whole, by its supervisor alone
    lease             held (flock) by whoever begins the pod, and then by its supervisor for as long as it lives; says who that is
    supervisor.log    empty, or why the supervisor died
    logs/NAME.log     what a container wrote, in all its lives; nothing bounds it
    volumes/NAME/     one for each emptyDir
    layer/            empty; each container sees its own layer there, or nothing, and nobody else does
    parts/N           podman's: what of a volume is mounted by itself, a link

A folder comes and goes by being renamed, so that there is all of it or nothing; those whose name begins with a dot are on their
way. The kernel lets go of a lease however its holder ends: then whatever status.json says is the last that was known.

A name may be another pod's a moment later. Whoever ends a pod holds its folder open (`opened`), and removes it while nobody else
does (`alone`). What is mounted in a folder is never removed: it is somebody else's.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import select
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

from sidecar import linux
from sidecar.errors import Corrupt, SourceMissing, Unreachable
from sidecar.process import Identity, identity, own_identity
from sidecar.session.runner import ENDED, Container, Status

KILLED = 128 + 9
_IN_MODIFY = 0x2
# Whoever closes a lease tells of it a little before the lock is free: then nothing else will wake us.
_LOOK_AGAIN = 0.25
# What is on its way, and nobody holds, was left by one that was killed: nobody is on the way for so long, in seconds.
_FORGOTTEN = 3600.0


class Folder:
    """The folder of one pod."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = os.path.basename(path)
        self.layer = os.path.join(path, "layer")

    def log(self, container: str) -> str:
        """Return the path of a container's log."""
        return os.path.join(self.path, "logs", f"{container}.log")

    def volume(self, name: str) -> str:
        """Return the path of an emptyDir."""
        return os.path.join(self.path, "volumes", name)

    # --- what was asked for, and how it stands

    def write(self, name: str, data: object, *, held: int | None = None) -> None:
        """Replace one of the files by `data`; SourceMissing where the pod is gone: the one whose folder is `held`, if any."""
        # Of this thread alone, and the same again after a failure: a full disk is not filled with what is left over.
        partial = f".{name}.{threading.get_native_id()}"
        try:
            place = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if held is None else os.dup(held)
            try:
                with open(
                    os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=place), "w"
                ) as file:
                    json.dump(data, file)
                os.replace(partial, name, src_dir_fd=place, dst_dir_fd=place)
            finally:
                os.close(place)
        except FileNotFoundError:
            raise self.missing() from None

    def read(self, name: str) -> Any:
        """Return what one of the files holds; SourceMissing where the pod is gone."""
        try:
            with open(os.path.join(self.path, name)) as file:
                return json.load(file)
        except (FileNotFoundError, NotADirectoryError):
            raise self.missing() from None
        except (IsADirectoryError, ValueError):
            raise self.odd(name) from None

    def missing(self) -> SourceMissing:
        """Return what is raised where the pod is gone."""
        return SourceMissing(f"there is no pod {self.name}")

    def odd(self, name: str) -> Corrupt:
        """Return what is raised where one of the files does not say what it is to say."""
        return Corrupt(f"{os.path.join(self.path, name)} is no record of a pod; look into {self.path}, and remove it by hand")

    def publish(self, status: Status) -> None:
        """Tell how the pod stands."""
        self.write("status.json", asdict(status))

    def status(self, unled: Callable[[Container], Container] | None = None) -> Status:
        """Return how the pod stands; one whose supervisor died has failed.

        Of that, `unled` tells what became of each container; unless it is given, they died with it.
        """
        alive = self.is_led()
        # Read after asking: a supervisor says how it ended, and then lets go.
        said = self.read("status.json")
        try:
            status = Status(**{**said, "containers": tuple(Container(**each) for each in said["containers"])})
        except (TypeError, KeyError):
            raise self.odd("status.json") from None
        if alive or status.phase in ENDED:
            return status
        return replace(status, phase="Failed", reason=self.why(), containers=tuple(map(unled or _dead, status.containers)))

    def why(self) -> str:
        """Return why its supervisor died."""
        try:
            with open(os.path.join(self.path, "supervisor.log"), errors="replace") as file:
                said = file.read().strip().rpartition("\n")[2]
        except OSError:
            said = ""
        died = "its supervisor died" if self._supervised() else "what began it died before it was begun"
        return died + (f": {said}" if said else "")

    # --- who leads it

    def take_lease(self) -> int:
        """Return a descriptor that holds the lease of a folder that is new; whoever inherits it holds it, too."""
        fd = os.open(os.path.join(self.path, "lease"), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd

    def is_led(self) -> bool:
        """Tell whether the pod's supervisor lives, or whoever begins it."""
        try:
            fd = os.open(os.path.join(self.path, "lease"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # Shared: those who ask do not take each other for the supervisor.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def supervisor(self, deadline: float = math.inf) -> int | None:
        """Return a descriptor of the supervisor's process (a pidfd), which is readable once that is over; None where it is.

        TimeoutError where, at a time of the monotonic clock, there is none yet: what begins it may be pulling images. Unreachable
        where it is in another PID namespace, whose processes cannot be known from here.
        """
        changes = linux.inotify_init()
        try:
            # Watched before it is looked at: what changes in between is not lost.
            with suppress(FileNotFoundError):
                lease = os.fsencode(os.path.join(self.path, "lease"))
                linux.inotify_add_watch(changes, lease, _IN_MODIFY | linux.IN_ATTRIB | linux.IN_CLOSE_WRITE)
            while self.is_led():
                if (fd := self._opened_supervisor()) is not None:
                    return fd
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                select.select([changes], [], [], min(left, _LOOK_AGAIN))
                with suppress(BlockingIOError):
                    os.read(changes, 4096)
        finally:
            os.close(changes)
        return None

    def _opened_supervisor(self) -> int | None:
        """Return a descriptor of the supervisor's process; None where it is being begun, or ends."""
        who = self._supervised()
        if who is None:
            return None
        here = own_identity()
        if here is not None and who.namespace != here.namespace:
            raise Unreachable(
                f"pod {self.name} is led in another PID namespace ({who.namespace}; this is {here.namespace}): "
                "wait for it, follow and stop it from there"
            )
        try:
            fd = os.pidfd_open(who.pid)
        except OSError:
            return None
        if identity(who.pid) == who:
            return fd  # It was alive after its process was opened: the number is nobody else's.
        os.close(fd)
        return None

    def _supervised(self) -> Identity | None:
        """Return who the supervisor is, or was; None where there has been none yet."""
        try:
            with open(os.path.join(self.path, "lease")) as file:
                pid, ticks, boot, namespace = file.read().split()
                return Identity(int(pid), int(ticks), boot, int(namespace))
        except (OSError, ValueError):
            return None

    def wait(self, timeout: float | None = None) -> bool:
        """Return when the supervisor has ended; tell whether it has within `timeout` seconds."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        try:
            fd = self.supervisor(deadline)
        except TimeoutError:
            return False
        if fd is None:
            return True
        try:
            left = None if timeout is None else max(0.0, deadline - time.monotonic())
            return bool(select.select([fd], [], [], left)[0])
        finally:
            os.close(fd)

    # --- its end

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Hold the folder open: a descriptor of this very pod's, whoever has its name later."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self.missing() from None
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def alone(self, held: int) -> Iterator[None]:
        """Have nobody else end or remove the pod whose folder is `held` meanwhile; SourceMissing where one has already."""
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            there, own = os.lstat(self.path), os.fstat(held)
        except FileNotFoundError:
            raise self.missing() from None
        if (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino):
            raise self.missing()
        try:
            yield
        finally:
            fcntl.flock(held, fcntl.LOCK_UN)

    def remove(self) -> None:
        """Remove the folder, for all others at once, whatever is in it; Unreachable where anything is mounted there."""
        refuse_mounts(self.path)
        gone = on_its_way(os.path.dirname(self.path))
        try:
            os.rename(self.path, gone)
        except FileNotFoundError:
            raise self.missing() from None
        discard(gone)


def write_supervisor(lease: int, who: Identity) -> None:
    """Say who holds a lease from now on."""
    os.pwrite(lease, f"{who.pid} {who.ticks} {who.boot} {who.namespace}\n".encode(), 0)


def on_its_way(folder: str) -> str:
    """Return a path that nobody else has, for a pod's folder that comes or goes. A pod's own name may be too long for more."""
    return os.path.join(folder, f".{uuid.uuid4()}")


def tidy(folder: str) -> None:
    """Remove what was on its way in `folder` when whoever saw to it was killed."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        with suppress(OSError, ValueError, Unreachable):
            about = os.lstat(path)
            if not name.startswith(".") or time.time() - about.st_ctime < _FORGOTTEN or Folder(path).is_led():
                continue
            if str(uuid.UUID(name[1:])) == name[1:]:
                discard(path)


def discard(path: str) -> None:
    """Remove a folder, directories that a program left closed among it; Unreachable where anything is mounted in it."""
    refuse_mounts(path)
    try:
        shutil.rmtree(path)
        return
    except OSError:
        pass
    for place, folders, _ in os.walk(path):
        for folder in folders:
            inner = os.path.join(place, folder)
            if not os.path.islink(inner):
                os.chmod(inner, 0o700)
    shutil.rmtree(path)


def refuse_mounts(path: str) -> None:
    """Raise Unreachable where anything is mounted below `path`: to remove that would be to empty what is mounted."""
    with open("/proc/self/mountinfo", "rb") as file:
        left = mounted(path, file.readlines())
    if left:
        raise Unreachable(f"{path} is not removed, for {left[-1]} is mounted: umount it, and try again")


def mounted(path: str, mounts: Sequence[bytes]) -> list[str]:
    """Return what is mounted at `path` and below, last mounted first; `mounts` are the lines of a mountinfo."""
    # The kernel tells paths without links.
    real = os.fsencode(os.path.realpath(path))
    points = [re.sub(rb"\\([0-7]{3})", lambda digits: bytes([int(digits[1], 8)]), line.split(b" ")[4]) for line in mounts]
    return [os.fsdecode(each) for each in reversed(points) if each == real or each.startswith(real.rstrip(b"/") + b"/")]


def _dead(container: Container) -> Container:
    return replace(container, state="exited", exit=KILLED) if container.state == "running" else container
