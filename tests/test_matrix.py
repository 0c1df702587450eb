"""Each fault at each step of each participant, with real processes; the test plays the kubelet.

A step is one thing that a participant does to the world: taking its lease, publishing a record, saying or taking back a signal,
beginning the command, doing the battery's work. A participant under test stops before and after each step, tells the kubelet,
which sends the fault (SIGKILL, SIGTERM, SIGTERM to the whole pod) and lets it go on. Then containers are restarted, or not.

That the list of steps is complete is a test of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sidecar import process
from sidecar.batteries import Progress
from sidecar.coordination import application, host
from sidecar.coordination.protocol import APPLICATION, ON_SUCCESS, Limits, Record, batteries_of
from sidecar.coordination.signals import Directory

FUSE = batteries_of(["fuse"])
HANG = 60.0
LIVES = 4
# Nobody has to wait for these but where somebody never comes back.
LIMITS = Limits(appear=2.5, grace=10.0)

STEPS = {
    APPLICATION: (
        "take the lease",
        "publish waiting",
        "publish running",
        "begin the command",
        "publish exited",
        "say initupload",
        "publish done",
    ),
    "fuse": (
        "take the lease",
        "publish preparing",
        "make ready",
        "publish ready",
        "say mountdone",
        "publish saving",
        "save",
        "publish done",
        "say uploaddone",
    ),
}
SIDES = ("before", "after")
FAULTS = ("SIGKILL", "SIGTERM", "SIGTERM to the pod")
RESTARTS = ("never", "on failure")


class Place(NamedTuple):
    """Where a pod of the test is: its coordination directory, its volume, its archive."""

    coordination: str
    volume: str
    archive: str

    @property
    def runs(self) -> int:
        """How often the command was begun."""
        with suppress(FileNotFoundError):
            return Path(self.volume, "runs").read_text().count("run\n")
        return 0

    @property
    def kept(self) -> str | None:
        """What is in the archive."""
        with suppress(FileNotFoundError):
            return Path(self.archive, "kept").read_text()
        return None


class Fault(NamedTuple):
    """What happens to whom, and where: in the first life of a participant, at one of its stops."""

    name: str
    stop: str
    kind: str

    @property
    def catches_the_command(self) -> bool:
        """Whether SIGTERM comes to the application while its command runs, or may run: it must not have ended by itself then."""
        if self.name == APPLICATION:
            return "SIGTERM" in self.kind and self.between("before publish running", "after begin the command")
        return self.kind == "SIGTERM to the pod" and self.between("after publish ready", "after say mountdone")

    def between(self, first: str, last: str) -> bool:
        stops = [f"{side} {step}" for step in STEPS[self.name] for side in SIDES]
        return stops.index(first) <= stops.index(self.stop) <= stops.index(last)

    def before(self, stop: str) -> bool:
        return self.stop != stop and self.between(f"before {STEPS[self.name][0]}", stop)


class Stage:
    """Inside a participant: stops it before and after each step, until the kubelet lets it go on."""

    def __init__(self, kubelet: Connection) -> None:
        self.kubelet = kubelet
        self.one_at_a_time = threading.Lock()  # a battery's work has a thread of its own

    def step(self, what: str, call: Any, *arguments: Any, **named: Any) -> Any:
        self._stop(f"before {what}")
        found = call(*arguments, **named)
        self._stop(f"after {what}")
        return found

    def _stop(self, where: str) -> None:
        with self.one_at_a_time:
            self.kubelet.send(where)
            self.kubelet.recv()


class StagedDirectory(Directory):
    """A directory in which each step is announced."""

    stage: Stage

    def lease(self, name: str) -> int:
        fd: int = self.stage.step("take the lease", super().lease, name)
        return fd

    def publish_record(self, record: Record) -> None:
        self.stage.step(f"publish {record.state}", super().publish_record, record)

    def say(self, signal: str, record: Record, payload: Mapping[str, Any] | None = None) -> None:
        self.stage.step(f"say {signal}", super().say, signal, record, payload)

    def unsay(self, signal: str) -> None:
        self.stage.step(f"unsay {signal}", super().unsay, signal)


class Copy:
    """A battery: the input is there, the output is copied to the archive, atomically as a battery must."""

    def __init__(self, stage: Stage, place: Place) -> None:
        self.stage, self.place = stage, place

    def ready(self) -> Mapping[str, Any]:
        self.stage.step("make ready", Path(self.place.volume, "input").write_text, "input")
        return {}

    def save(self) -> Mapping[str, Any]:
        self.stage.step("save", self._save)
        return {"kept": self.place.archive}

    def _save(self) -> None:
        shutil.copy(Path(self.place.volume, "output"), Path(self.place.archive, "partial"))
        os.replace(Path(self.place.archive, "partial"), Path(self.place.archive, "kept"))

    def close(self) -> None:
        pass


def be_application(place: Place, kubelet: Connection) -> None:
    stage = Stage(kubelet)
    spawn = process.spawn
    process.spawn = lambda *a, **k: stage.step("begin the command", spawn, *a, **k)
    script = "cd $0 && echo run >>runs && cp input output && until [ -e go ]; do sleep 0.01; done"
    with StagedDirectory(place.coordination) as directory:
        directory.stage = stage
        command = ["/bin/sh", "-c", script, place.volume]
        options = application.Options(ON_SUCCESS, LIMITS)
        ending = application.run(directory, FUSE, command, options, process.SignalQueue(), lambda _: None)
    os._exit(ending.status)


def be_battery(place: Place, kubelet: Connection) -> None:
    stage = Stage(kubelet)
    with StagedDirectory(place.coordination) as directory:
        directory.stage = stage

        def make(_progress: Progress) -> Copy:
            return Copy(stage, place)

        ending = host.serve(directory, FUSE[0], make, host.Options("", LIMITS), process.SignalQueue(), lambda _: None)
    os._exit(ending.status)


ROLES = {APPLICATION: be_application, "fuse": be_battery}


class Container:
    """One container of the pod as the kubelet sees it."""

    def __init__(self, context: Any, place: Place, name: str) -> None:
        self.context, self.place, self.name = context, place, name
        self.life = 0
        self.steps: list[str] = []
        self.start()

    def start(self) -> None:
        self.life += 1
        self.conn, theirs = self.context.Pipe()
        self.process = self.context.Process(target=ROLES[self.name], args=(self.place, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    @property
    def status(self) -> int | None:
        code: int | None = self.process.exitcode
        return code if code is None or code >= 0 else 128 - code


class Kubelet:
    """Starts the containers, sends the fault, restarts or not, and keeps how each life ended."""

    def __init__(self, place: Place, fault: Fault | None, restarts: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["test_matrix"])
        self.fault, self.restarts, self.happened = fault, restarts, fault is None
        self.pod = [Container(context, place, name) for name in ROLES]
        self.statuses: dict[str, list[int]] = {name: [] for name in ROLES}

    def run(self) -> None:
        """Run until no container is to be started any more."""
        until = time.monotonic() + HANG
        try:
            while any(container.process is not None for container in self.pod):
                assert time.monotonic() < until, f"somebody waits for ever: {self.statuses} {[c.steps for c in self.pod]}"
                self._turn()
        finally:
            for container in self.pod:
                if container.process is not None:
                    container.process.kill()
                    container.process.join()

    def _turn(self) -> None:
        up = [c for c in self.pod if c.process is not None]
        ready = wait([c.conn for c in up if not c.conn.closed] + [c.process.sentinel for c in up], 1.0)
        for container in up:
            if not container.conn.closed and container.conn in ready:
                self._stopped(container)
            if container.process.sentinel in ready:
                self._ended(container)

    def _stopped(self, container: Container) -> None:
        try:
            stop = container.conn.recv()
            container.steps.append(stop)
            if self.fault is not None and not self.happened and (container.name, stop) == self.fault[:2]:
                self._strike(container)
            container.conn.send("go on")
        except (EOFError, OSError):
            container.conn.close()

    def _strike(self, container: Container) -> None:
        assert self.fault is not None
        self.happened = True
        number = signal.SIGKILL if self.fault.kind == "SIGKILL" else signal.SIGTERM
        for victim in self.pod if self.fault.kind.endswith("pod") else [container]:
            victim.send(number)

    def _ended(self, container: Container) -> None:
        container.process.join()
        status = container.status
        assert status is not None
        self.statuses[container.name].append(status)
        if status != 0 and self.restarts == "on failure" and container.life < LIVES:
            container.conn.close()
            if container.name == APPLICATION:
                Path(container.place.volume, "go").touch()  # it was caught while it waited: the next life's command may end
            container.start()
        else:
            container.process = None


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(*(str(tmp_path / name) for name in ("coordination", "volume", "archive")))
    for folder in found:
        os.mkdir(folder)
    return found


def play(place: Place, fault: Fault | None, restarts: str) -> Kubelet:
    if fault is None or not fault.catches_the_command:
        Path(place.volume, "go").touch()
    kubelet = Kubelet(place, fault, restarts)
    kubelet.run()
    return kubelet


def test_the_matrix_knows_every_step(place: Place) -> None:
    kubelet = play(place, None, "never")
    assert kubelet.statuses == {APPLICATION: [0], "fuse": [0]}
    for container in kubelet.pod:
        stops = [f"{side} {step}" for step in STEPS[container.name] for side in SIDES]
        assert container.steps == stops
    assert (place.runs, place.kept) == (1, "input")


@pytest.mark.parametrize("restarts", RESTARTS)
@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("name", "step"), [(name, step) for name, steps in STEPS.items() for step in steps])
def test_whatever_happens_to_whomever_wherever(place: Place, name: str, step: str, side: str, kind: str, restarts: str) -> None:
    fault = Fault(name, f"{side} {step}", kind)
    kubelet = play(place, fault, restarts)

    assert kubelet.happened
    last = kubelet.statuses[APPLICATION][-1]
    assert place.runs <= 1, "the command is begun at most once"
    if last == 0:
        assert (place.runs, place.kept) == (1, "input"), "success only with the output saved"
    with Directory(place.coordination) as directory:
        fuse = directory.record("fuse")
    if fuse is not None and fuse.saved:
        assert place.kept == "input", "a battery says saved only where it has saved"
    expected = of_the_application(fault, restarts) if name == APPLICATION else of_the_battery(fault, restarts)
    assert last in expected, kubelet.statuses


def of_the_application(fault: Fault, restarts: str) -> set[int]:
    """Return how the application's last life may end where the fault came to itself."""
    again = restarts == "on failure"
    if fault.kind == "SIGKILL":
        if not again:
            return {137}
        # Claimed, and its end not published: whether the command did its work nobody can know.
        return {125} if fault.between("after publish running", "before publish exited") else {0}
    if fault.before("before publish running"):
        return {0} if again else {143}
    return {143} if fault.catches_the_command else {0}


def of_the_battery(fault: Fault, restarts: str) -> set[int]:
    """Return how the application's last life may end where the fault came to the battery."""
    again = restarts == "on failure"
    if fault.kind == "SIGTERM":
        return {0}  # it has its grace, and the command is short
    if fault.kind == "SIGTERM to the pod":
        if fault.before("after publish ready"):
            return {0} if again else {143}
        # SIGTERM finds the application still waiting, and a later life begins; or the command running.
        return ({0, 143} if again else {143}) if fault.catches_the_command else {0}
    if again or not fault.before("after publish done"):
        return {0}
    if fault.stop == "before take the lease":
        return {75}  # it never appeared
    if fault.before("after publish ready"):
        return {69}
    # Its death comes before the application begins its command, or after.
    return {69, 73} if fault.before("before publish saving") else {73}
