"""The runner of containers on this machine: podman makes those of a pod, and the process that leads the pod begins and ends them.

`podman kube play` is what reads the manifest: images, users, capabilities, limits. It starts nothing. When each container begins,
is begun again, asked to end and killed, `Lead` decides, as for every pod that is led by a process here; podman does not restart.

What podman, since 4.3, does otherwise than a kubelet is made good before it is given the manifest:

- an emptyDir is a directory in the pod's folder, which all may write, and which belongs to `fsGroup`: podman's volumes belong to
  whoever comes first, hold what the image had at that place, and those in memory are emptied when no container runs;
- `$(NAME)` is expanded here. Newer ones expand commands as well: what podman made of them is compared, and where it differs they
  are handed over once more, in a way that survives that;
- what a container listens on is no wish to publish it; annotations would be podman's options;
- podman ends a pod's network when none of its containers runs or may yet: one that is never started keeps it;
- what a volume's part is a link leads to, which is made when the container begins (see _race and root.in_volume).

To podman a pod has a name of its own, so that it is never mistaken for another's. All that podman is asked for it is asked by
this name, and nothing secret is on a command line. A container keeps its own root from one life to the next.

podman may fail, or not answer at all. Whoever waits for it does so for a bounded time, and what it does not tell is told as not
known: never as absent. What a supervisor asks of it while containers run, a process beside it does, one for each (see _beside).

A container does not end with the process that leads it. Where that died its containers go on, and are asked and ended when the
pod is stopped; what they write meanwhile is not kept. podman itself does end with whoever called it: else it would go on to make
a pod that nobody knows.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from sidecar import linux
from sidecar.errors import (
    NOT_EXECUTABLE,
    NOT_FOUND,
    UNKNOWN,
    ConfigurationError,
    Fault,
    ParametersError,
    SidecarError,
    Unreachable,
)
from sidecar.process import CAUGHT, SIGKILL, Child, spawn
from sidecar.session import root
from sidecar.session.folder import Folder, mounted
from sidecar.session.led import BACKOFF, LedRunner, absolute, missing_paths
from sidecar.session.pod import SESSION, Mount, Pod, Program, Terms, expand, read_pod
from sidecar.session.runner import Container, Manifest, Status
from sidecar.session.supervisor import NOT_BEGUN, appended

# When a container began that never has.
_NEVER = "0001-01-01T00:00:00Z"
_INFRA = "--format={{.InfraContainerID}}"
_LINE = 4096
# How long, in seconds, is waited for the end of what was killed.
_PATIENCE = 10.0
# How long podman may take to answer, in seconds: thousands of times what it takes where it works.
_ANSWER = 60.0
# How often it is asked again how a container stands, and how long after it failed, or did not find whom to signal.
_TRIES = 3
_PAUSE = 0.1
# As a kubelet: what the kernel takes for the name of a machine.
_HOSTNAME = 63
_PAIR = re.compile(r"\\u(d[89ab]..)\\u(d[c-f]..)")
_CONTAINER = (
    "name", "image", "imagePullPolicy", "command", "args", "env", "workingDir", "resources", "securityContext",
)  # fmt: skip


class PodmanRunner(LedRunner):
    """Runs pods in containers of podman; what there is besides them is kept in `folder`, which is made, for this user alone.

    `podman` is how it is called; `network` what its option of that name says, unless it is the default; `claims` are the
    directories that stand for persistent volume claims, by name. A container that ends waits `backoff` seconds for its second
    life.
    """

    ENGINE = __name__

    def __init__(
        self,
        folder: str,
        podman: Sequence[str] = ("podman",),
        network: str = "",
        claims: Mapping[str, str] | None = None,
        backoff: float = BACKOFF,
    ) -> None:
        super().__init__(folder)
        self.podman = tuple(podman)
        self.network = network
        self.claims = absolute(claims)
        self.backoff = backoff

    def start(self, pod: Manifest) -> None:
        """Begin the pod, and return (see runner.Runner). Images that are missing are pulled, where the pod says so."""
        terms = Terms(privileges=True, images=self.image_volumes, own_command=True, claims=self.claims)
        asked = read_pod(pod, terms)
        if faults := [*missing_paths(asked), *_race(asked)]:
            raise ParametersError(faults)
        found = shutil.which(self.podman[0])
        if found is None:
            raise ConfigurationError(f"{self.podman[0]} is needed to run a pod in containers: apt-get install podman")
        own = {"podman": [found, *self.podman[1:]], "network": self.network, "called": f"{asked.name}-{uuid.uuid4().hex[:8]}"}
        # One that cannot even tell its pods would not remove what it has not made.
        Podman(own).ask("pod", "ps", "--quiet")
        self._begin(asked, {"pod": pod, "terms": asdict(terms), "backoff": self.backoff, **own})

    # --- what is podman's of a pod

    def _prepare(self, folder: Folder, pod: Pod, asked: Mapping[str, Any]) -> None:
        _make_volumes(folder, pod, asked["pod"]["spec"])
        podman = Podman(asked)
        for dollar in ("$", "$$"):
            played = play(folder, pod, asked, dollar)
            network = [f"--network={asked['network']}"] if asked["network"] else []
            words = ["kube", "play", "--start=false", "--log-driver=none", *network, "-"]
            # As long as that takes: it may pull images.
            told = podman.run(*words, given=_as_yaml(played), within=None)
            if told.returncode:
                raise Unreachable(f"pod {pod.name} cannot be begun: {_last(told.stderr)}")
            made = podman.inspect(*(each.name for each in (*pod.inits, *pod.programs)))
            if faults := _roots(asked["pod"]["spec"], made):
                raise ParametersError(faults)
            if _is_as_asked(pod, made):
                break
            podman.remove()
        else:
            raise ConfigurationError(f"pod {pod.name} cannot be begun: this podman does not keep the words of its commands")
        # Before all others: they would each do so, at once.
        infra = podman.ask("pod", "inspect", _INFRA, podman.called).strip()
        podman.ask("start", infra)

    def _status(self, folder: Folder) -> Status:
        def unled(container: Container) -> Container:
            if container.state != "running":
                return container
            try:
                found = _podman(folder).states(container.name)
            except Unreachable as error:
                return replace(container, reason=f"whether it runs is not known: {error}")
            if not found:
                return replace(container, state="exited", exit=128 + SIGKILL)
            (state,) = found
            return container if state["Running"] else replace(container, state="exited", exit=state["ExitCode"])

        return folder.status(unled)

    def _end(self, folder: Folder, grace: float) -> None:
        # Where it was led to its end there is nothing to end, and podman would take seconds for that.
        if any(each.state == "running" for each in self._status(folder).containers):
            podman = _podman(folder)
            podman.run("pod", "stop", f"--time={int(grace)}", podman.called, within=grace + _ANSWER)

    def _let_go(self, folder: Folder) -> None:
        podman = _podman(folder)
        podman.remove()
        _unmount(folder, [])
        if os.geteuid():
            # What other users of the containers made there is not the caller's to remove, but in podman's namespace.
            volumes = os.path.join(folder.path, "volumes")
            _unmount(folder, [*podman.words, "unshare"])
            podman.run("unshare", "rm", "-rf", "--one-file-system", "--", volumes, within=None)


def _podman(folder: Folder) -> Podman:
    """Return podman, as it is asked about the pod in `folder`."""
    try:
        return Podman(folder.read("pod.json"))
    except KeyError:
        raise folder.odd("pod.json") from None


class Podman:
    """podman, as it is asked about one pod; `asked` is what pod.json says."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self.words: list[str] = asked["podman"]
        self.called: str = asked["called"]

    def of(self, container: str) -> str:
        """Return what a container is called."""
        return f"{self.called}-{container}"

    def run(self, *words: str, given: bytes = b"", within: float | None = _ANSWER) -> subprocess.CompletedProcess[bytes]:
        """Return what podman says; Unreachable where it does not `within` so many seconds."""
        return _run([*self.words, *words], given, within)

    def wait(self, container: str) -> None:
        """Return when a container that was killed has ended; where the kernel does not let it, a little later."""
        with suppress(Unreachable):
            self.run("wait", "--interval=20ms", container, within=_PATIENCE)

    def ask(self, *words: str) -> str:
        """Return what podman says; Unreachable where it cannot do so."""
        ran = self.run(*words)
        if ran.returncode:
            raise Unreachable(f"podman {words[0]}: {_last(ran.stderr)}")
        return ran.stdout.decode(errors="replace")

    def remove(self) -> None:
        """Remove the pod and its containers, if there are any."""
        found = self.run("pod", "inspect", _INFRA, self.called)
        if found.returncode == 0:
            # Killed first, and waited for: to remove it while it runs takes podman seconds, at times.
            self.run("pod", "kill", self.called)
            self.wait(found.stdout.decode().strip())
        self.ask("pod", "rm", "--force", "--time=0", "--ignore", self.called)

    def inspect(self, *containers: str) -> dict[str, Any]:
        """Return what podman knows of containers, by their names in the pod."""
        names = {self.of(each): each for each in containers}
        return {names[each["Name"]]: each for each in json.loads(self.ask("container", "inspect", *names))}

    def states(self, container: str) -> list[dict[str, Any]]:
        """Return how a container stands; nothing where there is none. Unreachable where podman does not tell."""
        told = b""
        for _ in range(_TRIES):
            ran = self.run("container", "inspect", self.of(container))
            if ran.returncode == 0:
                return [json.loads(ran.stdout)[0]["State"]]
            if self.run("container", "exists", self.of(container)).returncode == 1:
                return []
            told = ran.stderr
            time.sleep(_PAUSE)
        raise Unreachable(f"podman inspect: {_last(told)}")


def _run(command: Sequence[str], given: bytes, within: float | None) -> subprocess.CompletedProcess[bytes]:
    """Return what a command says. It is ended where it takes too long, where we are interrupted, and where we are killed."""
    us, name = os.getpid(), command[0]

    def become() -> None:
        if not linux.end_with(us):
            os._exit(NOT_EXECUTABLE)

    pipe = subprocess.PIPE
    try:
        ran = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd="/", start_new_session=True, preexec_fn=become)
    except OSError as error:
        raise Unreachable(f"{name} cannot be run: {error.strerror}") from None
    with ran:
        try:
            out, err = ran.communicate(given, within)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(ran.pid, SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Unreachable(f"{' '.join(command)} has not answered within {within:g} s") from None
            raise
    return subprocess.CompletedProcess(command, ran.returncode, out, err)


# --- what begins a container -------------------------------------------------------------------------------------------


class Attached:
    """One life of a container: a podman that starts it and writes what it writes, until it ends."""

    fds: tuple[int, ...] = ()

    def __init__(self, podman: Podman, name: str, child: Child, log: str, at: int, before: str) -> None:
        self.podman, self.name, self.child, self.log, self.at, self.before = podman, name, child, log, at, before
        self.began = before

    def listen(self) -> None:
        """There is nothing to hear but its end."""

    def ask(self) -> bool:
        """Send SIGTERM to the container, as soon as it is there."""
        self._beside(lambda over: self._send("TERM", over))
        return True

    def kill(self) -> None:
        """End the container, whatever it does; where it is only on its way, once it is there."""

        def end(over: Callable[[float], bool]) -> None:
            self._send("KILL", over)
            if not over(_PATIENCE):
                self.child.send(SIGKILL)

        self._beside(end)

    def _beside(self, work: Callable[[Callable[[float], bool]], None]) -> None:
        """Have a process of its own do `work`, which asks whether this life is over, and waits so many seconds for that.

        Not this one: a podman that does not answer would keep it from all others. Nor a thread: what it begins is reaped here.
        """
        us = os.getpid()
        child = os.pidfd_open(self.child.pid)
        try:
            if os.fork():
                return
            try:
                signal.set_wakeup_fd(-1)
                for number in CAUGHT:
                    signal.signal(number, signal.SIG_DFL)
                if linux.end_with(us):
                    work(lambda within: bool(select.select([child], [], [], within)[0]))
            finally:
                os._exit(0)
        finally:
            os.close(child)

    def _send(self, name: str, over: Callable[[float], bool]) -> None:
        """Send a signal, as soon as there is whom to send it to, and podman does so."""
        end = time.monotonic() + _PATIENCE
        while not over(0) and (name != "KILL" or time.monotonic() < end):
            with suppress(Unreachable):
                if self.podman.run("kill", f"--signal={name}", self.podman.of(self.name), within=_PATIENCE).returncode == 0:
                    return
            over(_PAUSE)

    def outcome(self) -> tuple[int, str]:
        """Return the status of one that has ended, and why it could not be begun, if so."""
        try:
            return self._outcome()
        except (OSError, SidecarError) as error:
            # What it ended with is what podman ended with, but for what it says of itself.
            told = not self.child.signal and self.child.code not in (UNKNOWN, NOT_EXECUTABLE, NOT_FOUND)
            return (self.child.code, "") if told else (UNKNOWN, f"how it ended is not known: {error}")

    def _outcome(self) -> tuple[int, str]:
        found = self.podman.states(self.name)
        if found and found[0]["Running"]:
            # Whoever ended that podman: a life that nobody follows is none.
            self.podman.run("kill", "--signal=KILL", self.podman.of(self.name))
            self.podman.wait(self.podman.of(self.name))
            return 128 + SIGKILL, "podman ended while it ran"
        self.began = found[0]["StartedAt"] if found else self.before
        if self.began == self.before:
            return (128 + self.child.signal, "") if self.child.signal else (NOT_BEGUN, self._problem())
        return found[0]["ExitCode"], "OOMKilled" if found[0]["OOMKilled"] else ""

    def _problem(self) -> str:
        with open(self.log, "rb") as file:
            file.seek(self.at)
            return f"could not be begun: {_last(file.read(_LINE))}"


class Containers:
    """Begins the containers of one pod, whose folder is `folder`; `asked` is what pod.json says."""

    def __init__(self, folder: Folder, pod: Pod, asked: Mapping[str, Any]) -> None:
        self.folder, self.pod = folder, pod
        self.podman = Podman(asked)
        self.lives: dict[str, Attached] = {}

    def begin(self, program: Program, log: str) -> Attached:
        """Begin a container; OSError, ValueError or SidecarError where that cannot be."""
        for number, mount in _parts(self.pod, program):
            self._lead_to(number, mount)
        before = self.lives[program.name].began if program.name in self.lives else _NEVER
        # Less than an error is not the container's to say.
        command = [*self.podman.words, "--log-level=error", "start", "--attach", self.podman.of(program.name)]
        out = appended(log)
        try:
            at = os.fstat(out).st_size
            child = spawn(command, streams=(out, out), background=True, directory="/", called="podman")
        finally:
            os.close(out)
        life = self.lives[program.name] = Attached(self.podman, program.name, child, log, at, before)
        return life

    def _lead_to(self, number: int, mount: Mount) -> None:
        """Have the link that a container mounts lead to what is a volume's part by now."""
        volume = self.pod.volumes[mount.volume]
        empty = volume.kind == "empty"
        # As a kubelet: what it makes in a volume is as open as that.
        was = os.umask(0)
        try:
            source = root.in_volume(self.folder.volume(mount.volume) if empty else volume.source, mount.part, make=empty)
        finally:
            os.umask(was)
        link = _part(self.folder, number)
        os.unlink(link) if os.path.islink(link) else os.rmdir(link)
        os.symlink(source, link)


def engine(folder: Folder, pod: Pod, asked: Mapping[str, Any]) -> Containers:
    """Return what begins the containers of a pod."""
    return Containers(folder, pod, asked)


# --- what podman is given ----------------------------------------------------------------------------------------------


def play(folder: Folder, pod: Pod, asked: Mapping[str, Any], dollar: str = "$") -> Manifest:
    """Return the manifest that podman is given, in whose commands a dollar is `dollar`."""
    given = asked["pod"]["spec"]
    volumes: list[Manifest] = []
    for name, volume in pod.volumes.items():
        path = folder.volume(name) if volume.kind == "empty" else volume.source
        volumes.append({"name": f"v-{len(volumes)}", "hostPath": {"path": path}})
    names = {name: each["name"] for name, each in zip(pod.volumes, volumes, strict=True)}
    containers = []
    programs = (*pod.inits, *pod.programs)
    for program, each in zip(programs, (*(given.get("initContainers") or ()), *given["containers"]), strict=True):
        parts = {mount.path: number for number, mount in _parts(pod, program)}
        volumes += [{"name": f"part-{n}", "hostPath": {"path": _part(folder, n)}} for n in parts.values()]
        mounts = [
            {
                "name": f"part-{parts[mount.path]}" if mount.path in parts else names[mount.volume],
                "mountPath": mount.path,
                "readOnly": mount.read_only,
                **({"mountPropagation": mount.propagation} if mount.propagation else {}),
            }
            for mount in program.mounts
        ]
        made = {key: each[key] for key in _CONTAINER if each.get(key) is not None}
        made["env"] = [{"name": name, "value": value} for name, value in program.environment.items()]
        for key in {"command", "args"} & set(made):
            made[key] = [expand(word, program.environment).replace("$", dollar) for word in made[key]]
        containers.append({**made, "volumeMounts": mounts})
    keeper = {"name": uuid.uuid4().hex, "image": programs[0].image, "command": ["/"]}
    if "imagePullPolicy" in containers[0]:
        keeper["imagePullPolicy"] = containers[0]["imagePullPolicy"]
    context = {key: value for key, value in (given.get("securityContext") or {}).items() if key in ("runAsUser", "runAsGroup")}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": asked["called"], "labels": {SESSION: pod.session}},
        "spec": {
            "hostname": pod.name[:_HOSTNAME].rstrip("-."),
            "restartPolicy": "Never",
            "securityContext": context,
            "volumes": volumes,
            "containers": [*containers, keeper],
        },
    }


def _make_volumes(folder: Folder, pod: Pod, spec: Manifest) -> None:
    group = (spec.get("securityContext") or {}).get("fsGroup")
    for name, volume in pod.volumes.items():
        if volume.kind == "empty":
            # Behind the pod's folder, which is the caller's alone.
            os.chmod(folder.volume(name), 0o777)  # noqa: S103
            if group is not None:
                with suppress(PermissionError):  # who is not root has to do without: all may write there
                    os.chown(folder.volume(name), -1, group)
                    os.chmod(folder.volume(name), 0o2777)  # noqa: S103
    os.mkdir(os.path.join(folder.path, "parts"), 0o700)
    for program in (*pod.inits, *pod.programs):
        for number, _ in _parts(pod, program):
            os.mkdir(_part(folder, number))


def _unmount(folder: Folder, inside: Sequence[str]) -> None:
    """Have nothing mounted in a pod's folder, or it would be emptied: a container that was killed leaves what it passed on.

    `inside` are the words that run a command where it is removed. Unreachable where anything stays.
    """

    def mounts() -> list[str]:
        if not inside:
            with open("/proc/self/mountinfo", "rb") as file:
                return mounted(folder.path, file.readlines())
        ran = _run([*inside, "cat", "/proc/self/mountinfo"], b"", _ANSWER)
        if ran.returncode:
            raise Unreachable(f"{inside[0]} does not tell what is mounted in {folder.path}: {_last(ran.stderr)}")
        return mounted(folder.path, ran.stdout.splitlines())

    if left := mounts():
        with suppress(Unreachable):
            _run([*inside, "umount", "--lazy", *left], b"", _ANSWER)
        if left := mounts():
            raise Unreachable(f"{folder.path} is not removed, for {left[-1]} is mounted: umount it, and try again")


def _part(folder: Folder, number: int) -> str:
    return os.path.join(folder.path, "parts", str(number))


def _parts(pod: Pod, program: Program) -> Iterator[tuple[int, Mount]]:
    """Yield what a container mounts of volumes' parts, each with its number in the pod."""
    number = 0
    for each in (*pod.inits, *pod.programs):
        for mount in each.mounts:
            if mount.part:
                if each.name == program.name:
                    yield number, mount
                number += 1


def _race(pod: Pod) -> list[Fault]:
    """Return a fault for each part of a volume above which another container can write while this one begins.

    It could put a link there just before podman mounts what it leads to, anywhere on the machine.
    """
    everybody = (*pod.inits, *pod.programs)
    ordinary = {each.name for each in pod.inits if not each.sidecar}
    faults = []
    for each in everybody:
        for mount in each.mounts:
            above = [mount.part.split("/")[:n] for n in range(len(mount.part.split("/")))]
            for other in everybody:
                apart = (other.name in ordinary and not each.sidecar) or (each.name in ordinary and not other.sidecar)
                if other is each or apart:
                    continue
                writes = [its.part.split("/") if its.part else [] for its in other.mounts if its.volume == mount.volume]
                if mount.part and any(path in above for path in writes):
                    problem = f"not honoured here, where {other.name} runs at the same time and has all of {mount.volume}"
                    faults.append(Fault("pod", f"container {each.name}", f"subPath {mount.part}: {problem}"))
    return faults


def _roots(spec: Manifest, made: Mapping[str, Any]) -> list[Fault]:
    """Return a fault for each container that must not run as root and whose image does not say a number of another user."""
    of_pod = (spec.get("securityContext") or {}).get("runAsNonRoot")
    faults = []
    for each in (*(spec.get("initContainers") or ()), *spec["containers"]):
        user = made[each["name"]]["Config"]["User"].partition(":")[0]
        # As a kubelet: who a name is cannot be known, and a number may be written in many ways.
        is_number = user.isascii() and user.isdecimal()
        if (each.get("securityContext") or {}).get("runAsNonRoot", of_pod) and not (is_number and int(user)):
            who = "root" if is_number or not user else f"{user!r}, which is no number above 0"
            faults.append(Fault("pod", f"container {each['name']}", f"runAsNonRoot, and the user of {each['image']} is {who}"))
    return faults


def _is_as_asked(pod: Pod, made: Mapping[str, Any]) -> bool:
    """Tell whether podman made of each command what it says; what the image says comes before."""
    for each in (*pod.inits, *pod.programs):
        words = [made[each.name]["Path"], *made[each.name]["Args"]]
        if tuple(words[len(words) - len(each.command) :]) != each.command:
            return False
    return True


def _as_yaml(manifest: Manifest) -> bytes:
    """Return a manifest as all parsers of YAML read it: as JSON, but for what lies beyond four digits of it."""

    def whole(pair: re.Match[str]) -> str:
        return f"\\U{0x10000 + ((int(pair[1], 16) - 0xD800) << 10) + int(pair[2], 16) - 0xDC00:08x}"

    return _PAIR.sub(whole, json.dumps(manifest)).encode()


def _last(said: bytes) -> str:
    """Return the last line of what podman said."""
    return said.decode(errors="replace").strip().rpartition("\n")[2].removeprefix("Error: ")
