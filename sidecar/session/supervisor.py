"""The process that leads one pod on this machine: begins its containers, begins them again, ends them, and tells how they do.

It holds the lease of the pod's folder, alone writes status.json, and each container dies with it. What decides is `Lead`, which
is told what happened and when; what does is `_Supervisor`. SIGTERM asks for the end of the pod; `grace.json` may say how long its
programs have for that.

A container is bwrap and, below it, the command, which is PID 1 of a PID namespace. A signal goes to the latter, by a pidfd. It
must not come before the command has taken bwrap's place: the kernel hands a PID 1 no signal that it has no handler for.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from dataclasses import dataclass, field

from sidecar.errors import SidecarError
from sidecar.process import SIGCHLD, SIGKILL, SIGTERM, Child, SignalQueue, reap, spawn
from sidecar.sandbox import Bind, Sandbox, command_line, in_layer, layer_of, options
from sidecar.session import root
from sidecar.session.folder import Folder
from sidecar.session.pod import PATH, Pod, Program, read_pod
from sidecar.session.runner import Container, Phase, State, Status

# As a kubelet: the time between two lives of a container doubles up to five minutes, and begins anew after ten that went well.
LONGEST, WENT_WELL = 300.0, 600.0
# That of a container which could not be begun, as Kubernetes tells it.
NOT_BEGUN = 128
# How often is looked whether bwrap has made room for a command that is to be ended: a matter of milliseconds.
_SOON = 0.01
_MONITOR = "bwrap"
_LINE = 4096


@dataclass
class Life:
    """One container: its present life, if it has one, and what is left of those before."""

    program: Program
    init: bool
    state: State = "waiting"
    exit: int | None = None
    restarts: int = 0
    reason: str = ""
    due: float = 0.0
    lives: int = 0
    began: float = 0.0
    failures: int = 0
    asked: bool = False
    killed: bool = False

    @property
    def done(self) -> bool:
        """Whether it is an init container that did what it was to."""
        return self.state == "exited" and self.exit == 0


@dataclass
class Lead:
    """What becomes of a pod. `next` says what to do now, `ended` is told how a container did; both are told the time."""

    pod: Pod
    backoff: float
    ending: bool = False
    deadline: float = 0.0
    reason: str = ""
    inits: list[Life] = field(default_factory=list)
    programs: list[Life] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inits = [Life(each, init=True) for each in self.pod.inits]
        self.programs = [Life(each, init=False) for each in self.pod.programs]

    @property
    def lives(self) -> list[Life]:
        """All containers, in the manifest's order."""
        return [*self.inits, *self.programs]

    @property
    def over(self) -> bool:
        """Whether nothing runs, and nothing will."""
        return self.ending and not any(each.state == "running" for each in self.lives)

    def end(self, now: float, grace: float) -> None:
        """Begin the end of the pod; a second time, do so sooner."""
        deadline = now + grace
        self.deadline = min(self.deadline, deadline) if self.ending else deadline
        self.ending = True
        for each in self.lives:
            if each.state == "waiting" and each.lives:
                each.state, each.reason = "exited", ""

    def to_begin(self, now: float) -> list[Life]:
        """Return the containers whose time has come; where the pod is at its end by itself, begin that."""
        if self.ending:
            return []
        found = []
        for each in self.inits:
            if each.program.sidecar:
                found += self._due(each, now)
                continue
            if each.done:
                continue
            if each.state == "exited":
                self.reason = f"init container {each.program.name} ended with status {each.exit}"
                self.end(now, self.pod.grace)
                return []
            return [*found, *self._due(each, now)]
        found += [due for each in self.programs for due in self._due(each, now)]
        if all(each.state == "exited" for each in self.programs):
            self.end(now, self.pod.grace)
            return []
        return found

    def to_end(self) -> list[Life]:
        """Return the containers to be sent SIGTERM: native sidecars come last, in reverse, for the others may need them."""
        if not self.ending:
            return []
        running = [each for each in self.lives if each.state == "running"]
        others = [each for each in running if not each.program.sidecar]
        return [each for each in others or running[-1:] if not each.asked]

    def to_kill(self, now: float) -> list[Life]:
        """Return the containers whose time is over."""
        return self._unkilled() if self.ending and now >= self.deadline else []

    def begun(self, life: Life, now: float) -> None:
        """Note that a container runs."""
        life.restarts += life.lives > 0
        life.lives += 1
        life.state, life.reason, life.began = "running", "", now

    def ended(self, life: Life, status: int, reason: str, now: float) -> None:
        """Note how a container did; it is begun again, later, where the pod says so."""
        life.exit, life.reason = status, reason
        restart = "Always" if life.program.sidecar else self.pod.restart
        if life.init and restart == "Always" and not life.program.sidecar:
            restart = "OnFailure"
        if self.ending or restart == "Never" or (restart == "OnFailure" and status == 0):
            life.state = "exited"
            return
        life.failures = 0 if now - life.began >= WENT_WELL else life.failures
        life.due = now + min(self.backoff * 2.0**life.failures, LONGEST)
        life.failures = min(life.failures + 1, 32)
        life.state, life.reason = "waiting", reason or "CrashLoopBackOff"

    def wakes(self) -> list[float]:
        """Return when there may be something to do though nothing happens."""
        if self.ending:
            return [self.deadline] if self._unkilled() else []
        return [each.due for each in self.lives if each.state == "waiting" and each.lives]

    def status(self) -> Status:
        """Return how the pod stands."""
        containers = tuple(Container(each.program.name, each.state, each.exit, each.restarts, each.reason) for each in self.lives)
        return Status(self.pod.name, self.pod.session, self._phase(), containers, self.reason)

    def _phase(self) -> Phase:
        if self.over:
            return "Succeeded" if all(each.lives and each.exit == 0 for each in self.programs) else "Failed"
        return "Running" if any(each.lives for each in self.programs) else "Pending"

    def _unkilled(self) -> list[Life]:
        return [each for each in self.lives if each.state == "running" and not each.killed]

    def _due(self, life: Life, now: float) -> list[Life]:
        return [life] if life.state == "waiting" and now >= life.due else []


# --- doing it ----------------------------------------------------------------------------------------------------------


class Processes:
    """A container's processes: bwrap, what it says of the command, and the command."""

    def __init__(self, child: Child, said: int, log: str, at: int) -> None:
        self.child, self.said, self.log, self.at = child, said, log, at
        self.command = -1
        self.pid = 0
        self.exit: int | None = None
        self._text = b""

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
        try:
            with open(f"/proc/{self.pid}/comm") as file:
                if file.read().strip() == _MONITOR:
                    return False
        except OSError:
            return True
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
        with open(self.log, "rb") as file:
            file.seek(self.at)
            said = file.read(_LINE).decode(errors="replace").strip().rpartition("\n")[2]
        return f"could not be begun: {said.removeprefix('bwrap: ')}"


class _Supervisor:
    def __init__(self, folder: Folder) -> None:
        asked = folder.read("pod.json")
        self.folder = folder
        self.images: dict[str, str] = asked["images"]
        self.bwrap: str = asked["bwrap"]
        self.lead = Lead(read_pod(asked["pod"]), asked["backoff"])
        self.signals = SignalQueue()
        self.running: dict[str, Processes] = {}
        self.last: Status | None = None

    def run(self) -> None:
        """Return when the pod is over."""
        while True:
            now = time.monotonic()
            begun = [self._begin(life, now) for life in self.lead.to_begin(now)]
            unheard = self._end(now)
            self._publish()
            if self.lead.over:
                return
            # What could not be begun has ended already: of that, nothing will wake us.
            again = [now] if not all(begun) else [now + _SOON] if unheard else []
            self._wait([*self.lead.wakes(), *again])
            self._notice()

    def _publish(self) -> None:
        status = self.lead.status()
        if status != self.last:
            self.folder.publish(status)
            self.last = status

    def _wait(self, wakes: list[float]) -> None:
        poll = select.poll()
        poll.register(self.signals.fd, select.POLLIN)
        for process in self.running.values():
            if process.said >= 0:
                poll.register(process.said, select.POLLIN)
        timeout = max(0.0, min(wakes) - time.monotonic()) if wakes else None
        poll.poll(None if timeout is None else int(timeout * 1000) + 1)

    def _notice(self) -> None:
        came = self.signals.drain()
        if SIGTERM in came:
            self.lead.end(time.monotonic(), self._grace())
        for process in self.running.values():
            process.listen()
        if SIGCHLD in came:
            reap(*(each.child for each in self.running.values()))
        now = time.monotonic()
        for life in self.lead.lives:
            name = life.program.name
            if name in self.running and self.running[name].child.ended:
                self.lead.ended(life, *self.running.pop(name).outcome(), now)

    def _grace(self) -> float:
        try:
            return float(self.folder.read("grace.json"))
        except SidecarError:
            return self.lead.pod.grace

    def _end(self, now: float) -> bool:
        """Ask and kill whoever is to be; tell whether one could not be asked yet."""
        for life in self.lead.to_kill(now):
            self.running[life.program.name].kill()
            life.killed = True
        asked = self.lead.to_end()
        for life in asked:
            life.asked = self.running[life.program.name].ask()
        return not all(each.asked for each in asked)

    def _begin(self, life: Life, now: float) -> bool:
        """Begin a container; tell whether that could be done."""
        name = life.program.name
        log = self.folder.log(name)
        self.lead.begun(life, now)
        out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self.running[name] = self._spawn(life.program, out, log)
            return True
        except (OSError, ValueError, SidecarError) as error:
            self.lead.ended(life, NOT_BEGUN, f"could not be begun: {error}", now)
            return False
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
            return Processes(child, status, log, at)
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
        name = self.lead.pod.name
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
        volume = self.lead.pod.volumes[name]
        if volume.kind == "image":
            image = self._image(volume.source)
            return image.rstrip("/") + root.resolve(image, part) if part else image
        folder = self.folder.volume(name) if volume.kind == "empty" else os.path.realpath(volume.source)
        return root.in_volume(folder, part, make=volume.kind == "empty") if part else folder


def supervise(path: str, lease: int) -> None:
    """Return when a process of its own leads the pod in the folder `path`; in that, which takes `lease` over, when it is over.

    What is raised there is told to stderr, which is the folder's supervisor.log.
    """
    # Else each container would hold it, and a supervisor be thought alive that is dead.
    os.set_inheritable(lease, False)
    pid = os.fork()
    if pid:
        os.pwrite(lease, str(pid).encode(), 0)
        return
    _Supervisor(Folder(path)).run()
