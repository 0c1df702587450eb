"""Pods in real containers, for the tests: play a manifest, look at what becomes of each container, end some of them.

    with Machine() as machine:
        pod = machine.play(manifest, claims={"store": tmp_path / "store"})
        assert pod.wait() == {"application": 0, "fuse": 0}

A Machine is podman with containers of its own: a store that is removed with it, which only reads the images that `make images`
has built; and namespaces of its own (mounts, processes), which end with the test process, of whatever. So nothing is left of any
test, nothing is shared by two workers, and mounts that containers propagate stay in there. Nothing outside is touched.

podman plays manifests; where a kubelet does otherwise than podman 4.3, this module does as the kubelet:

- a volume is a directory of the pod's own, for `emptyDir` (0777, or a tmpfs of its `sizeLimit` where its medium is Memory) and
  for claims, which the test has to name; podman's volumes are shared by pods, belong to whoever came first, are never in memory;
- `fsGroup` is the group of the directories; podman ignores it, and has no supplementary groups, so they are the user's as well;
- every container has its termination message file; a Job is its pod;
- `$(NAME)` and `$$` are expanded in commands, arguments and the values of variables;
- `ports` tell what a container listens on, and map nothing;
- `terminate` signals all containers at once, and kills after the grace period.

What podman cannot do is not made up for: an initContainer with `restartPolicy: Always` is refused.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from processes import HANG

from sidecar import __version__, linux
from sidecar.session.pod import expand

TOP = Path(__file__).parent.parent.parent
# Where `make images` has put what it built.
IMAGES = TOP / "build" / "containers"
TERMINATION_LOG = "/dev/termination-log"
# Where a manifest says nothing, as in Kubernetes.
GRACE = 30

Manifest = dict[str, Any]


def image(name: str) -> str:
    """Return the full name of one of our images, such as `fuse-sidecar`."""
    return f"localhost/sidecar/{name}:{__version__}"


def documents(text: str) -> list[Manifest]:
    """Return the objects of a manifest."""
    return [each for each in yaml.safe_load_all(text) if each]


class Machine:
    """podman in namespaces of its own, with a store of its own."""

    def __init__(self) -> None:
        if not IMAGES.is_dir():
            raise AssertionError("there are no images to run; `make images` builds them")
        # Short, for podman refuses a longer one than 50 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="pods-"))
        subprocess.run([TOP / "images" / "configure", self.folder, self.folder / "store", IMAGES], check=True)
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
        }
        self._numbers = itertools.count(1)
        self.pods: list[Pod] = []
        parent = os.getpid()

        def become() -> None:
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        # Mounts made in there are shared with containers, and never with the machine around it: on most, `/` is shared as well.
        # The first process reaps what containers' monitors leave.
        script = "mount --make-rshared / && mount -t proc proc /proc && exec catatonit -P"
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c", script]
        self._unshare = subprocess.Popen(words, preexec_fn=become, start_new_session=True, stdin=subprocess.DEVNULL)
        self.pid = self._first_process()

    def _first_process(self) -> int:
        """Return the id, as seen from here, of the first process in there, once its mounts are made."""
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        end = time.monotonic() + HANG
        while time.monotonic() < end and self._unshare.poll() is None:
            found = children.read_text().split()
            if found and Path(f"/proc/{found[0]}/comm").read_text() == "catatonit\n":
                return int(found[0])
            time.sleep(0.002)
        raise AssertionError("no namespaces could be made; this needs root")

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove all pods, end every process in there, and remove the store."""
        for pod in list(self.pods):
            pod.remove()
        self._unshare.kill()
        # It is gone when all of its namespace are.
        self._unshare.wait(HANG)
        shutil.rmtree(self.folder)

    # --- commands

    def run(self, *words: str | Path, check: bool = True, seconds: float = HANG) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespaces, and return what it said; an AssertionError where it fails."""
        inside = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--", *map(str, words)]
        try:
            ran = subprocess.run(
                inside, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired as error:
            raise AssertionError(
                f"{' '.join(map(str, words))} does not end; it said:\n{error.stdout!r}\n{error.stderr!r}"
            ) from None
        assert not check or ran.returncode == 0, f"{' '.join(map(str, words))}: {ran.returncode}\n{ran.stdout}{ran.stderr}"
        return ran

    def podman(self, *words: str | Path, check: bool = True, seconds: float = HANG) -> subprocess.CompletedProcess[str]:
        return self.run("podman", *words, check=check, seconds=seconds)

    def shell(self, folder: Path) -> dict[str, str]:
        """Return the environment of commands that look for podman and are to find this one, by a program made in `folder`."""
        podman = folder / "podman"
        folder.mkdir()
        podman.write_text(f'#!/bin/sh\nexec nsenter --target={self.pid} --mount --pid -- {shutil.which("podman")} "$@"\n')
        podman.chmod(0o755)
        return {**self.environment, "PATH": f"{folder}:{self.environment['PATH']}"}

    def seen(self, path: str | Path) -> Path:
        """Return where this process finds a path in there, with what is mounted on it in there."""
        return Path(f"/proc/{self.pid}/root{path}")

    def build(
        self, name: str, files: Mapping[str, Path], *config: str, links: Mapping[str, str] | None = None, base: str = "scratch"
    ) -> str:
        """Make an image that holds `files` (a path in the image to a file here) on top of `base`; return its name."""
        tree = self.folder / f"image-{name}"
        tree.mkdir()
        for path, source in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tree / path)
        for path, target in (links or {}).items():
            (tree / path).symlink_to(target)
        container = self.run("buildah", "from", "--pull-never", base).stdout.strip()
        self.run("buildah", "add", container, tree, "/")
        self.run("buildah", "config", *config, container)
        self.run("buildah", "commit", "--quiet", "--rm", container, f"localhost/test/{name}")
        shutil.rmtree(tree)
        return f"localhost/test/{name}"

    # --- pods

    def play(
        self,
        manifest: str | Iterable[Manifest],
        *,
        claims: Mapping[str, Path] | None = None,
        volumes: Mapping[str, Path] | None = None,
        check: bool = True,
    ) -> Pod:
        """Start the one pod of a manifest, and return it once its containers run: its initContainers have ended.

        `claims` are the directories behind persistent volume claims, by the claim's name; `volumes` those of other volumes, by
        the volume's name, where two pods are to share one. Both are the test's own.

        An initContainer that fails is an AssertionError, unless `check` is false: then it is `pod.problem`, and no other
        container was started.
        """
        pod = Pod(self, manifest, claims or {}, volumes or {}, next(self._numbers))
        self.pods.append(pod)
        pod.play(check)
        return pod


@dataclass(frozen=True)
class Status:
    """What has become of a container, as its pod's status tells it."""

    running: bool
    exit: int  # of its last life; 128+n where signal n ended it
    oom: bool
    restarts: int


class Pod:
    """A pod that was played. Its containers are called as in the manifest."""

    def __init__(
        self,
        machine: Machine,
        manifest: str | Iterable[Manifest],
        claims: Mapping[str, Path],
        volumes: Mapping[str, Path],
        number: int,
    ) -> None:
        self.machine = machine
        objects = documents(manifest) if isinstance(manifest, str) else copy.deepcopy(list(manifest))
        others = [each for each in objects if each["kind"] in ("ConfigMap", "Secret")]
        (pod,) = [pod_of(each) for each in objects if each["kind"] in ("Pod", "Job")]
        # Two pods of a machine never have the same name, nor has one that comes after another.
        self.name = pod["metadata"]["name"] = f"{pod['metadata'].get('name', 'pod')}-{number}-{secrets.token_hex(2)}"
        self.spec: Manifest = pod["spec"]
        self.inits = [each["name"] for each in self.spec.get("initContainers", ())]
        self.containers = [each["name"] for each in self.spec["containers"]]
        self.folder = machine.folder / self.name
        self.folder.mkdir()
        # The tests' user alone looks in here; the containers are given what is below.
        self.volumes: dict[str, Path] = {}
        self.problem = ""
        self._named: list[str] = []
        self._shared: list[str] = []
        self._make_volumes(claims, volumes)
        self._make_termination_logs()
        self._expand_variables()
        self._keep_init_containers(pod)
        for each in (*self.spec.get("initContainers", ()), *self.spec["containers"]):
            assert each.get("restartPolicy") is None, f"{each['name']} is a native sidecar, which podman cannot run"
        self.manifest = self.folder / "pod.yaml"
        # JSON is YAML that all parsers agree on.
        self.manifest.write_text("\n---\n".join(json.dumps(each, indent=1) for each in (*others, pod)))

    # --- what a kubelet prepares

    def _make_volumes(self, claims: Mapping[str, Path], volumes: Mapping[str, Path]) -> None:
        context = self.spec.get("securityContext", {})
        group = context.get("fsGroup")
        for volume in self.spec.get("volumes", ()):
            name, empty, claim = volume["name"], volume.get("emptyDir"), volume.get("persistentVolumeClaim")
            if name in volumes:
                path = volumes[name]
            elif claim is not None:
                path = claims[claim["claimName"]]
            elif empty is not None:
                path = self.folder / "volumes" / name
                path.mkdir(parents=True)
                if empty.get("medium") == "Memory":
                    size = f",size={in_bytes(empty['sizeLimit'])}" if "sizeLimit" in empty else ""
                    self.machine.run("mount", "-t", "tmpfs", "-o", f"mode=1777{size}", "tmpfs", path)
                else:
                    path.chmod(0o777)
            else:
                # Those of a ConfigMap are podman's; their names are shared by all pods there.
                self._shared += [each["name"] for key, each in volume.items() if key == "configMap"]
                volume["name"] = f"{self.name}-{name}"
                self._named.append(volume["name"])
                self._rename_mounts(name, volume["name"])
                continue
            if group is not None and name not in volumes:
                self._belong_to(path, context.get("runAsUser", -1), group)
            self.volumes[name] = path
            for key in [key for key in volume if key != "name"]:
                del volume[key]
            volume["hostPath"] = {"path": str(path), "type": "Directory"}

    def _belong_to(self, path: Path, user: int, group: int) -> None:
        self.machine.run("chown", "-R", f"{user if user >= 0 else ''}:{group}", path)
        self.machine.run("chmod", "-R", "ug+rwX,g+s", path)

    def _rename_mounts(self, old: str, new: str) -> None:
        for container in (*self.spec.get("initContainers", ()), *self.spec["containers"]):
            for mount in container.get("volumeMounts", ()):
                if mount["name"] == old:
                    mount["name"] = new

    def _make_termination_logs(self) -> None:
        for container in (*self.spec.get("initContainers", ()), *self.spec["containers"]):
            path = self._termination_log(container["name"])
            path.touch()
            path.chmod(0o666)
            name = f"termination-log-{container['name']}"
            self.spec.setdefault("volumes", []).append({"name": name, "hostPath": {"path": str(path), "type": "File"}})
            where = container.get("terminationMessagePath", TERMINATION_LOG)
            container.setdefault("volumeMounts", []).append({"name": name, "mountPath": where})

    def _termination_log(self, container: str) -> Path:
        return self.folder / f"{container}.termination-log"

    def _expand_variables(self) -> None:
        for container in (*self.spec.get("initContainers", ()), *self.spec["containers"]):
            known: dict[str, str] = {}
            for each in container.get("env", ()):
                known[each["name"]] = each["value"] = expand(each.get("value", ""), known)
            for key in ("command", "args"):
                if key in container:
                    container[key] = [expand(word, known) for word in container[key]]
            container.pop("ports", None)

    def _keep_init_containers(self, pod: Manifest) -> None:
        """Have podman keep them when they have ended, for their logs."""
        pod["metadata"].setdefault("annotations", {})["io.podman.annotations.init.container.type"] = "always"

    # --- its life

    def play(self, check: bool = True) -> None:
        ran = self.machine.podman("kube", "play", "--network=none", self.manifest, check=False)
        if ran.returncode:
            self.problem = ran.stderr.strip()
        assert not check or not self.problem, self.told()

    def of(self, container: str) -> str:
        """Return podman's name of a container."""
        return f"{self.name}-{container}"

    def inspect(self, container: str) -> dict[str, Any]:
        """Return all that podman knows of a container."""
        found: dict[str, Any] = json.loads(self.machine.podman("container", "inspect", self.of(container)).stdout)[0]
        return found

    def status(self, container: str) -> Status:
        about = self.inspect(container)
        state = about["State"]
        return Status(state["Running"], state["ExitCode"], state["OOMKilled"], about["RestartCount"])

    def pid(self, container: str) -> int:
        """Return the id, among the machine's processes, of a container's first process; 0 where it does not run."""
        found: int = self.inspect(container)["State"]["Pid"]
        return found

    def wait(self, *containers: str, seconds: float = HANG) -> dict[str, int]:
        """Return the exit statuses once `containers` (all of them, where none is named) have ended for good."""
        names = containers or tuple(self.containers)
        if self.spec.get("restartPolicy", "Always") == "Never":
            self.machine.podman("wait", "--interval=20ms", *map(self.of, names), seconds=seconds)
        else:
            self.until(lambda: all(self._is_over(each) for each in names), f"{', '.join(names)} are over", seconds)
        return {each: self.status(each).exit for each in names}

    def _is_over(self, container: str) -> bool:
        status = self.status(container)
        return not status.running and self.spec["restartPolicy"] == "OnFailure" and status.exit == 0

    def until(self, condition: Callable[[], bool], what: str, seconds: float = HANG) -> None:
        """Return when `condition` holds; an AssertionError with all that the containers said where it does not come to."""
        end, pause = time.monotonic() + seconds, 0.002
        while not condition():
            assert time.monotonic() < end, f"it does not come to be that {what}\n{self.told()}"
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)

    def kill(self, container: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a container's first process with `podman kill`: what it ends so stays ended."""
        self.machine.podman("kill", "--signal", str(int(number)), self.of(container))

    def crash(self, container: str) -> None:
        """End a container's first process as the kernel does where memory is short; the restart policy decides what follows."""
        self.machine.run("kill", "-KILL", str(self.pid(container)))

    def terminate(self, grace: float | None = None) -> dict[str, int]:
        """End the pod as its deletion does: SIGTERM to all at once, after the grace period SIGKILL. Return the statuses.

        podman's own stop does the same, in parallel; its restart policy rests then.
        """
        seconds = int(self.spec.get("terminationGracePeriodSeconds", GRACE) if grace is None else grace)
        self.machine.podman("pod", "stop", "--time", str(seconds), self.name, seconds=seconds + HANG)
        return {each: self.status(each).exit for each in self.containers}

    def remove(self) -> None:
        """Remove it, with all of its volumes that are not the test's. It is no error that it is gone."""
        if self not in self.machine.pods:
            return
        self.machine.pods.remove(self)
        # Killed first, and waited for: removing them while they run takes podman four seconds more.
        ids = self.machine.podman("ps", "--all", "--quiet", f"--filter=pod={self.name}", check=False).stdout.split()
        self.machine.podman("pod", "kill", self.name, check=False)
        if ids:
            self.machine.podman("wait", "--interval=20ms", *ids, check=False)
        self.machine.podman("pod", "rm", "--force", "--time=0", "--ignore", self.name)
        if self._named:
            self.machine.podman("volume", "rm", "--force", *self._named, check=False)
        for each in self._shared:
            # podman keeps what a ConfigMap says by the ConfigMap's name: another pod may be using it.
            self.machine.podman("volume", "rm", each, check=False)
        # What a battery that was killed has left mounted, and what is in memory; the deepest first.
        below = [str(path) for path in (self.folder, *self.volumes.values())]
        mounts = [line.split()[1] for line in Path(f"/proc/{self.machine.pid}/mounts").read_text().splitlines()]
        left = [each for each in reversed(mounts) if any(f"{each}/".startswith(f"{path}/") for path in below)]
        if left:
            self.machine.run("umount", "-l", *left)
        shutil.rmtree(self.folder)

    # --- what it tells

    def execute(self, container: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in a container, and return what it said."""
        return self.machine.podman("exec", self.of(container), *command, check=check)

    def out(self, container: str) -> str:
        """Return what a container wrote to its standard output, in all its lives."""
        return self.machine.podman("logs", self.of(container), check=False).stdout

    def err(self, container: str) -> str:
        """Return what a container wrote to its standard error, in all its lives."""
        return self.machine.podman("logs", self.of(container), check=False).stderr

    def termination_message(self, container: str) -> str:
        return self._termination_log(container).read_text(errors="replace")

    def file(self, volume: str, path: str = "") -> Path:
        """Return where this process finds a file of a volume."""
        return self.machine.seen(self.volumes[volume] / path)

    def told(self) -> str:
        """Return the statuses and logs of all containers."""
        lines = [f"pod {self.name}: {self.problem or 'played'}"]
        for name in (*self.inits, *self.containers):
            found = self.machine.podman("container", "inspect", self.of(name), check=False)
            state = json.loads(found.stdout)[0]["State"] if found.returncode == 0 else {}
            about = {key: state.get(key) for key in ("Status", "ExitCode", "OOMKilled", "Error")}
            lines += [f"--- {name}: {about}, {self.termination_message(name)!r}", self.out(name), self.err(name)]
        return "\n".join(lines)


def pod_of(thing: Manifest) -> Manifest:
    """Return the pod of a Pod or of a Job."""
    if thing["kind"] == "Pod":
        return thing
    template = thing["spec"]["template"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template.get("metadata", {}), "name": thing["metadata"]["name"]},
        "spec": template["spec"],
    }


def in_bytes(quantity: str | int) -> int:
    """Return a quantity of memory, as Kubernetes writes it, in bytes."""
    text = str(quantity)
    units = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "K": 10**3, "k": 10**3, "M": 10**6, "G": 10**9}
    for unit, size in units.items():
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * size)
    return int(text)
