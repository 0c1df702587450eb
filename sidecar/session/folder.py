"""What a runner of this machine keeps of a pod, in a folder of the pod's name:

    pod.json          what was asked for: the manifest, and what its engine is to know
    status.json       how it stands; replaced as a whole, by its supervisor alone
    lease             held (flock) by the supervisor for as long as it lives; says its process id
    supervisor.log    empty, or why the supervisor died
    logs/NAME.log     what a container wrote, in all its lives; nothing bounds it
    volumes/NAME/     one for each emptyDir
    layer/            empty; each container sees its own layer there, or nothing, and nobody else does
    parts/N           podman's: what of a volume is mounted by itself, a link

A folder comes and goes by being renamed, so that there is all of it or nothing; those whose name begins with a dot are on their
way. The kernel lets go of a lease however its holder ends: then whatever status.json says is the last that was known.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import select
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from sidecar.errors import Corrupt, SourceMissing
from sidecar.session.runner import ENDED, Container, Status

KILLED = 128 + 9


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

    def write(self, name: str, data: object) -> None:
        """Replace one of the files by `data`."""
        partial = os.path.join(self.path, f".{name}.{os.getpid()}")
        with open(partial, "w", opener=_for_us_alone) as file:
            json.dump(data, file)
        os.replace(partial, os.path.join(self.path, name))

    def read(self, name: str) -> Any:
        """Return what one of the files holds; SourceMissing where the pod is gone."""
        try:
            with open(os.path.join(self.path, name)) as file:
                return json.load(file)
        except FileNotFoundError:
            raise SourceMissing(f"there is no pod {self.name}") from None
        except ValueError:
            raise Corrupt(f"{os.path.join(self.path, name)} is no record of a pod") from None

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
        status = Status(**{**said, "containers": tuple(Container(**each) for each in said["containers"])})
        if alive or status.phase in ENDED:
            return status
        return replace(status, phase="Failed", reason=self._why(), containers=tuple(map(unled or _dead, status.containers)))

    def _why(self) -> str:
        try:
            with open(os.path.join(self.path, "supervisor.log"), errors="replace") as file:
                said = file.read().strip().rpartition("\n")[2]
        except OSError:
            said = ""
        return "its supervisor died" + (f": {said}" if said else "")

    # --- who leads it

    def take_lease(self) -> int:
        """Return a descriptor that holds the lease of a folder that is new; whoever inherits it holds it, too."""
        fd = os.open(os.path.join(self.path, "lease"), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd

    def is_led(self) -> bool:
        """Tell whether the pod's supervisor lives."""
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

        TimeoutError where, at a time of the monotonic clock, there is none yet: what begins it may be pulling images.
        """
        while self.is_led():
            if time.monotonic() > deadline:
                raise TimeoutError
            try:
                with open(os.path.join(self.path, "lease")) as file:
                    fd = os.pidfd_open(int(file.read()))
            except (ValueError, OSError):
                time.sleep(0.005)  # It is being begun, or ends: a matter of milliseconds.
                continue
            if self.is_led():
                return fd  # It was alive after its process was opened: the number is nobody else's.
            os.close(fd)
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

    def remove(self) -> None:
        """Remove the folder, whatever is in it: at once for all others, by its name."""
        gone = on_its_way(os.path.dirname(self.path))
        try:
            os.rename(self.path, gone)
        except FileNotFoundError:
            raise SourceMissing(f"there is no pod {self.name}") from None
        discard(gone)


def on_its_way(folder: str) -> str:
    """Return a path that nobody else has, for a pod's folder that comes or goes. A pod's own name may be too long for more."""
    return os.path.join(folder, f".{uuid.uuid4()}")


def discard(path: str) -> None:
    """Remove a folder, directories that a program left closed among it."""
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


def _dead(container: Container) -> Container:
    return replace(container, state="exited", exit=KILLED) if container.state == "running" else container


def _for_us_alone(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
