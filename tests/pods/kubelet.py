"""Pods whose containers begin and end as the kubelet, or Argo, has them begin and end; both are simulated here.

podman plays no native sidecars and knows nothing of Argo. So it is only asked to make a pod's containers (real ones, of the real
images, with all that the manifest says), and this module starts, signals and restarts them in the order that is documented:

The kubelet (KEP-753, Kubernetes 1.29). initContainers are started one after another; the next follows when an ordinary one has
ended with 0, or when a native sidecar (`restartPolicy: Always`) has started: it runs, and its startupProbe has succeeded where it
has one. The containers follow, all at once. A native sidecar that ends is started again whatever the pod's policy, others by that
policy. When the containers are over the sidecars get SIGTERM, the last one first, each when the one behind it has ended. When the
pod is deleted the containers get SIGTERM, and the sidecars, in that order, when these have ended. All of that has the pod's grace
period; at its end everyone gets SIGTERM who has not yet, and SIGKILL, but not within two seconds of it. Statuses of sidecars
count for nothing.

Argo. A node's `main` and its sidecars are begun together. When `main` has ended the sidecars get SIGTERM, and SIGKILL half a
minute later; only main's status counts. In a containerSet each container is begun when its dependencies have ended with 0; where
one fails all others are ended, and all statuses count. Output parameters are read when `main` has ended. A node is begun when
those that it depends on have succeeded.

What is not simulated: back-off between restarts (they come at once), probes but startup probes, Argo's own containers.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from containers import GRACE, Machine, Manifest, Pod, documents, image, pod_of
from manifests import pod_of as pod_of_template
from manifests import steps
from processes import HANG, until

from sidecar.coordination.protocol import SAVING, Record
from sidecar.coordination.signals import Directory

# What each has at least between SIGTERM and SIGKILL, in seconds.
LEAST = 2.0
ARGO_GRACE = 30.0
SANDBOX = "sandbox"


class State(NamedTuple):
    """A container as podman sees it."""

    running: bool
    over: bool
    exit: int


class Ordered(Pod):
    """A pod whose containers podman has made and not started. `step`, of the kinds below, does what is next, if anything is."""

    def __init__(self, machine: Machine, manifest: str | Iterable[Manifest], claims: Mapping[str, Path]) -> None:
        objects = copy.deepcopy(documents(manifest) if isinstance(manifest, str) else list(manifest))
        (index,) = [number for number, each in enumerate(objects) if each["kind"] in ("Pod", "Job")]
        objects[index] = pod_of(objects[index])
        spec = objects[index]["spec"]
        self.policy: str = spec.get("restartPolicy", "Always")
        self.grace: float = spec.get("terminationGracePeriodSeconds", GRACE)
        self.first: list[Manifest] = copy.deepcopy(spec.get("initContainers", []))
        self.main: list[Manifest] = copy.deepcopy(spec["containers"])
        # To podman they are all alike, and none is ever restarted by it.
        spec["restartPolicy"] = "Never"
        spec["containers"] = [*spec.pop("initContainers", ()), *spec["containers"]]
        for each in spec["containers"]:
            for key in ("restartPolicy", "startupProbe", "dependencies"):
                each.pop(key, None)
        # podman ends a pod of which no container runs, and cannot start one in it meanwhile.
        spec["containers"].append({"name": SANDBOX, "image": image("demo-app"), "command": ["sleep", "infinity"]})
        super().__init__(machine, objects, claims, {}, 0)
        self.containers.remove(SANDBOX)
        machine.pods.append(self)
        self.begun: dict[str, int] = {}  # how often each was started
        self.signals: list[tuple[int, str]] = []  # what was sent to whom, in that order
        ran = machine.podman("kube", "play", "--start=false", "--network=none", self.manifest, check=False)
        assert ran.returncode == 0, ran.stderr
        machine.podman("start", self.of(SANDBOX))

    def step(self) -> bool:
        """Do what is next; return whether the pod is over."""
        raise NotImplementedError

    def until(self, condition: Callable[[], bool], what: str, seconds: float = HANG) -> None:
        """As Pod.until; meanwhile what is next is done."""

        def met() -> bool:
            self.step()
            return condition()

        super().until(met, what, seconds)

    def wait(self, *containers: str, seconds: float = HANG) -> dict[str, int]:
        """Return the exit statuses once the pod is over."""
        super().until(self.step, "the pod is over", seconds)
        found = self.look()
        return {each: found[each].exit for each in containers or self.containers if each in self.begun}

    def record(self, name: str) -> Record | None:
        """Return what a participant says of itself; None where it has said nothing yet."""
        with Directory(str(self.file("coordination"))) as directory:
            return directory.record(name)

    def place(self, path: str) -> Path:
        """Return where this process finds what the application has at `path`, on one of its volumes."""
        (application,) = [each for each in self.main if each["name"] in ("application", "main")]
        mount = next(each for each in application["volumeMounts"] if path.startswith(f"{each['mountPath']}/"))
        return self.file(mount["name"], path.removeprefix(f"{mount['mountPath']}/"))

    def until_it_saves(self, name: str) -> None:
        """Return when a battery is saving. Nothing else is done meanwhile, or one that is fast would have saved by then."""
        until(lambda: (record := self.record(name)) is not None and record.state == SAVING, f"{name} is saving")

    def look(self) -> dict[str, State]:
        """Return what has become of each container."""
        names = {self.of(each): each for each in self.containers}
        told = json.loads(self.machine.podman("container", "inspect", *names).stdout)
        found = {}
        for each in told:
            state = each["State"]
            found[names[each["Name"]]] = State(state["Running"], state["Status"] == "exited", state["ExitCode"])
        return found

    def begin(self, container: str) -> None:
        """Start a container, once more where it has ended."""
        self.begun[container] = self.begun.get(container, 0) + 1
        self.machine.podman("start", self.of(container))

    def send(self, number: int, containers: Iterable[str], found: Mapping[str, State]) -> None:
        """Send a signal to those of the containers that run."""
        for each in containers:
            if found[each].running:
                self.signals.append((number, each))
                # It may have ended since.
                self.machine.podman("kill", "--signal", str(int(number)), self.of(each), check=False)


class KubeletPod(Ordered):
    """A pod as the kubelet runs it."""

    def __init__(self, machine: Machine, manifest: str | Iterable[Manifest], claims: Mapping[str, Path]) -> None:
        super().__init__(machine, manifest, claims)
        self.native = [each["name"] for each in self.first if each.get("restartPolicy") == "Always"]
        self._next = 0
        self._since: float | None = None  # when ending began
        self._groups: list[list[str]] = []  # who is to be ended, group by group
        self._told: dict[int, float] = {}  # when a group got SIGTERM

    @property
    def names(self) -> list[str]:
        """The containers whose statuses count."""
        return [each["name"] for each in self.main]

    @property
    def phase(self) -> str:
        """What `kubectl get pod` would tell of a pod that is over."""
        found = self.look()
        ended = all(found[each].over and found[each].exit == 0 for each in self.names)
        return "Succeeded" if ended else "Failed"

    def delete(self) -> None:
        """Have the pod end, as `kubectl delete` does; `wait` returns when it has."""
        self._end([self.names, *([each] for each in reversed(self.native))])

    def step(self) -> bool:
        found = self.look()
        if self._since is not None:
            return self._shut_down(found)
        for each in self.native:
            if each in self.begun and found[each].over:
                self.begin(each)
        if self._next < len(self.first):
            return self._initialise(self.first[self._next], found)
        for each in self.names:
            if each not in self.begun or (found[each].over and self._comes_back(found[each].exit)):
                self.begin(each)
        if all(found[each].over for each in self.names):
            self._end([[each] for each in reversed(self.native)])
        return False

    def _comes_back(self, status: int) -> bool:
        return self.policy == "Always" or (self.policy == "OnFailure" and status != 0)

    def _initialise(self, container: Manifest, found: Mapping[str, State]) -> bool:
        name = container["name"]
        if name not in self.begun:
            self.begin(name)
        elif name in self.native:
            probe = container.get("startupProbe")
            if found[name].running and (probe is None or self._answers(name, probe["exec"]["command"])):
                self._next += 1
        elif found[name].over and found[name].exit == 0:
            self._next += 1
        elif found[name].over and self.policy == "Never":
            self._end([[each] for each in reversed(self.native)])
        elif found[name].over:
            self.begin(name)
        return False

    def _answers(self, name: str, command: Sequence[str]) -> bool:
        return self.execute(name, *command, check=False).returncode == 0

    def _end(self, groups: list[list[str]]) -> None:
        if self._since is None:
            self._since, self._groups = time.monotonic(), groups

    def _shut_down(self, found: Mapping[str, State]) -> bool:
        assert self._since is not None
        now, end = time.monotonic(), self._since + self.grace
        earlier = False
        for number, group in enumerate(self._groups):
            left = [each for each in group if found[each].running]
            if left and number not in self._told and (not earlier or now >= end):
                self._told[number] = now
                self.send(signal.SIGTERM, left, found)
            elif left and number in self._told and now >= max(end, self._told[number] + LEAST):
                self.send(signal.SIGKILL, left, found)
            earlier = earlier or bool(left)
        return not earlier


class ArgoStep(Ordered):
    """A node of an Argo Workflow: `template` is what it is made of, `arguments` what it is given."""

    def __init__(
        self,
        machine: Machine,
        workflow: Manifest,
        template: Manifest,
        arguments: Mapping[str, str],
        claims: Mapping[str, Path],
    ) -> None:
        spec = pod_of_template(workflow, template, arguments)
        made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": template["name"]}, "spec": spec}
        super().__init__(machine, [made], claims)
        self.template = template
        self.is_set = "containerSet" in template
        self.sidecars = [each["name"] for each in template.get("sidecars", ())]
        self._next = 0
        self._ended_at: float | None = None

    @property
    def names(self) -> list[str]:
        """The containers whose statuses count."""
        return [each["name"] for each in self.main if each["name"] not in self.sidecars]

    @property
    def phase(self) -> str:
        """What the workflow's controller would tell of a node that is over."""
        found = self.look()
        ended = all(found[each].over and found[each].exit == 0 for each in self.names)
        return "Succeeded" if ended else "Failed"

    def step(self) -> bool:
        found = self.look()
        if self._ended_at is not None:
            return self._shut_down(found)
        if self._next < len(self.first):
            name = self.first[self._next]["name"]
            if name not in self.begun:
                self.begin(name)
            elif found[name].over and found[name].exit == 0:
                self._next += 1
            elif found[name].over:
                self._end(found)
            return False
        for each in self.main:
            needed = [found[name] for name in each.get("dependencies", ())]
            if each["name"] not in self.begun and all(need.over and need.exit == 0 for need in needed):
                self.begin(each["name"])
        over = [found[each] for each in self.names if found[each].over]
        if len(over) == len(self.names) or any(each.exit for each in over):
            self._end(found)
        return False

    def _end(self, found: Mapping[str, State]) -> None:
        self._ended_at = time.monotonic()
        self.send(signal.SIGTERM, found, found)

    def _shut_down(self, found: Mapping[str, State]) -> bool:
        assert self._ended_at is not None
        if time.monotonic() - self._ended_at >= ARGO_GRACE:
            self.send(signal.SIGKILL, found, found)
        return not any(each.running for each in found.values())

    def outputs(self) -> dict[str, str]:
        """Return the node's output parameters, read from the volumes that `main` has them on."""
        declared = self.template.get("outputs", {}).get("parameters", ())
        return {each["name"]: self.place(each["valueFrom"]["path"]).read_text().removesuffix("\n") for each in declared}


def run_workflow(machine: Machine, workflow: Manifest, claims: Mapping[str, Path]) -> dict[str, ArgoStep]:
    """Run a workflow's nodes to their end, or to the first one that fails; return them by name."""
    outputs: dict[str, str] = {}
    ran: dict[str, ArgoStep] = {}
    for step, template, arguments in steps(workflow, outputs):
        made = ran[step["name"]] = ArgoStep(machine, workflow, template, arguments, claims)
        made.wait()
        if made.phase != "Succeeded":
            break
        outputs |= {f"tasks.{step['name']}.outputs.parameters.{name}": value for name, value in made.outputs().items()}
    return ran


def make_long_to_save(path: Path) -> None:
    """Make a file that takes seconds to save and little room: a page in each MiB of a large hole, for holes are not read."""
    with path.open("wb") as file:
        for number in range(4096):
            os.pwrite(file.fileno(), b"page", number << 20)
