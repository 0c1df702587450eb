"""What begins a container in a sandbox of bubblewrap: the engine of the local runner.

A container is bwrap and, below it, the command, which is PID 1 of a PID namespace. A signal goes to the latter, by a pidfd. It
must not come before the command has taken bwrap's place: the kernel hands a PID 1 no signal that it has no handler for.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from typing import Any

from sidecar.process import SIGKILL, SIGTERM, Child, spawn
from sidecar.sandbox import Bind, Sandbox, command_line, in_layer, layer_of, options
from sidecar.session import root
from sidecar.session.folder import Folder
from sidecar.session.pod import PATH, Pod, Program
from sidecar.session.supervisor import NOT_BEGUN, appended

_LINE = 4096
# How long, in seconds, a command that is bwrap itself is taken for one that has not taken bwrap's place yet.
_PATIENCE = 5.0


class Processes:
    """A container's processes: bwrap, what it says of the command, and the command."""

    def __init__(self, child: Child, said: int, log: str, at: int, bwrap: str) -> None:
        self.child, self.said, self.log, self.at, self.bwrap = child, said, log, at, bwrap
        self.asked = math.inf
        self.command = -1
        self.pid = 0
        self.exit: int | None = None
        self._text = b""

    @property
    def fds(self) -> tuple[int, ...]:
        """What bwrap says is read there, until it has said all."""
        return (self.said,) if self.said >= 0 else ()

    def listen(self) -> None:
        """Read what bwrap says."""
        while self.said >= 0:
            try:
                data = os.read(self.said, _LINE)
            except BlockingIOError:
                return
            *lines, self._text = (self._text + data).split(b"\n")
            for line in filter(None, lines):
                record = json.loads(line)
                if "child-pid" in record:
                    self.pid = int(record["child-pid"])
                    try:
                        self.command = os.pidfd_open(self.pid)
                    except OSError:
                        pass  # It is over already.
                self.exit = record.get("exit-code", self.exit)
            if not data:
                os.close(self.said)
                self.said = -1

    def ask(self) -> bool:
        """Send SIGTERM to the command; tell whether it was there to be sent one."""
        if self.command < 0:
            return self.said < 0
        self.asked = min(self.asked, time.monotonic())
        try:
            # By its file: its name is anybody's.
            still = os.path.samefile(f"/proc/{self.pid}/exe", self.bwrap)
        except FileNotFoundError:
            return True  # It is over.
        except OSError:
            still = True
        if still and time.monotonic() - self.asked < _PATIENCE:
            return False
        self._send(SIGTERM)
        return True

    def kill(self) -> None:
        """End the container, whatever it does; the kernel ends all its processes with the first."""
        self._send(SIGKILL) if self.command >= 0 else self.child.send(SIGKILL)

    def _send(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self.command, number)
        except ProcessLookupError:
            pass

    def outcome(self) -> tuple[int, str]:
        """Return the status of one that has ended, and why it could not be begun, if so."""
        self.listen()
        if self.command >= 0:
            os.close(self.command)
        if self.exit is not None:
            return self.exit, ""
        if self.child.signal:
            return 128 + self.child.signal, ""
        return NOT_BEGUN, self._problem()

    def _problem(self) -> str:
        try:
            with open(self.log, "rb") as file:
                file.seek(self.at)
                said = file.read(_LINE).decode(errors="replace").strip().rpartition("\n")[2]
        except OSError as error:  # as where the pod's folder is gone
            said = f"{self.log}: {error.strerror}"
        return f"could not be begun: {said.removeprefix('bwrap: ')}"


class Sandboxes:
    """Begins the containers of one pod, whose folder is `folder`; `asked` is what pod.json says."""

    def __init__(self, folder: Folder, pod: Pod, asked: Any) -> None:
        self.folder, self.pod = folder, pod
        self.images: dict[str, str] = asked["images"]
        self.bwrap: str = asked["bwrap"]

    def begin(self, program: Program, log: str) -> Processes:
        """Begin a container; OSError, ValueError or SidecarError where that cannot be."""
        out = appended(log)
        try:
            return self._spawn(program, out, log)
        finally:
            os.close(out)

    def _spawn(self, program: Program, out: int, log: str) -> Processes:
        said = b"".join(each.encode(errors="surrogateescape") + b"\0" for each in options(self._sandbox(program)))
        told = os.memfd_create("sandbox", os.MFD_CLOEXEC)
        status, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.pwrite(told, said, 0)
            # Descriptors are handed on one at a time, and nobody else begins processes here.
            for fd in (told, tell):
                os.set_inheritable(fd, True)
            command = command_line(self.bwrap, told, tell, program.command)
            image = self._image(program.image)
            if root.layered(image):
                command = in_layer(self.folder.layer, image, command)
            at = os.fstat(out).st_size
            child = spawn(command, {"PATH": PATH}, streams=(out, out), background=True, directory="/", called=command[0])
            return Processes(child, status, log, at, self.bwrap)
        except BaseException:
            os.close(status)
            raise
        finally:
            os.close(told)
            os.close(tell)

    def _sandbox(self, program: Program) -> Sandbox:
        mounts = [Bind(self._source(each.volume, each.part), each.path, each.read_only) for each in program.mounts]
        image = self._image(program.image)
        layered = root.layered(image)
        user = os.getuid() if program.user is None else program.user
        group = os.getgid() if program.group is None else program.group
        name = self.pod.name
        return Sandbox(
            root.entries(image, mounts, read_only=program.read_only),
            {"PATH": PATH, "HOSTNAME": name, "HOME": "/", **program.environment},
            program.directory,
            user,
            group,
            name,
            layer_of(self.folder.layer) if layered else "",
            sealed=program.read_only or not layered,
        )

    def _image(self, reference: str) -> str:
        return os.path.realpath(self.images[reference])

    def _source(self, name: str, part: str) -> str:
        volume = self.pod.volumes[name]
        if volume.kind == "image":
            image = self._image(volume.source)
            return image.rstrip("/") + root.resolve(image, part) if part else image
        folder = self.folder.volume(name) if volume.kind == "empty" else os.path.realpath(volume.source)
        return root.in_volume(folder, part, make=volume.kind == "empty") if part else folder


def engine(folder: Folder, pod: Pod, asked: Any) -> Sandboxes:
    """Return what begins the containers of a pod."""
    return Sandboxes(folder, pod, asked)
