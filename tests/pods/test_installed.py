"""The wrapper that an initContainer installs does in any image what the one of the venv does here.

Every test runs four times: with the wrapper of the venv, as PID 1 of a namespace; and with the one that the image `wrapper` has
put into an emptyDir, as PID 1 of a container whose image holds nothing but a static binary, busybox, or Debian without Python.
The containers are hardened: uid 65532, no capability, a read-only root, 32 MiB of memory.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import processes
import pytest
from composed import MEMORY, NONROOT, application, fuse, pod
from containers import TOP, Machine, image
from manifests import content
from processes import PID_1, children_of, until

from sidecar.store import open_store

BUSYBOX = ("sh", "cat", "sleep", "ls")
ALONE = ("-b", "fuse", "--save", "never")


class Wrapped(Protocol):
    """A wrapper around the application, as PID 1 of wherever it is. What is started is started in `start`, once."""

    app: str  # where the application is, for the wrapper
    coord: str  # the same of the coordination directory
    seen: Path  # the same of the coordination directory, for the test

    def start(self, *arguments: str) -> None: ...
    def send(self, number: int) -> None: ...
    def wait(self) -> int: ...
    def out(self) -> str: ...
    def err(self) -> str: ...
    def children(self) -> list[str]:
        """Return the states (S, Z, …) of its children."""


class Here:
    """The wrapper of the venv."""

    def __init__(self, folder: Path, app: Path) -> None:
        self.pod = processes.Pod(folder)
        self.app, self.coord, self.seen = str(app), str(self.pod.coord), self.pod.coord

    def start(self, *arguments: str) -> None:
        self.started = self.pod.start(*PID_1, processes.BIN / "wrap_application", "-c", self.coord, *arguments)

    def pid(self) -> int:
        until(lambda: bool(children_of(self.started.pid)), "there is a PID 1", self.pod)
        return children_of(self.started.pid)[0]

    def send(self, number: int) -> None:
        os.kill(self.pid(), number)

    def wait(self) -> int:
        return self.started.wait()

    def out(self) -> str:
        return self.started.out

    def err(self) -> str:
        return self.started.err

    def children(self) -> list[str]:
        return [processes.state_of(each) for each in children_of(self.pid())]


class There:
    """The wrapper that was installed, in a container."""

    app = "/app"
    coord = "/coord"

    def __init__(self, machine: Machine, image: str, folder: Path) -> None:
        self.machine, self.image = machine, image
        # Made before the pod, as tests speak first.
        self.seen, self.store = folder / "coord", folder / "store"
        for each in (self.seen, self.store):
            each.mkdir()
            each.chmod(0o777)

    def start(self, *arguments: str) -> None:
        manifest = pod(application(self.image, *arguments, user=NONROOT))
        self.pod = self.machine.play([manifest], claims={"store": self.store}, volumes={"coord": self.seen})

    def send(self, number: int) -> None:
        self.pod.kill("application", number)

    def wait(self) -> int:
        return self.pod.wait("application")["application"]

    def out(self) -> str:
        return self.pod.out("application")

    def err(self) -> str:
        return self.pod.err("application")

    def children(self) -> list[str]:
        proc = self.machine.seen("/proc")
        pid = self.pod.pid("application")
        found = (proc / f"{pid}/task/{pid}/children").read_text().split()
        return [(proc / each / "stat").read_text().rpartition(")")[2].split()[0] for each in found]


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("application") / "app"
    subprocess.run(["gcc", "-static", "-Os", "-s", Path(__file__).parent / "application.c", "-o", path], check=True)
    return path


@pytest.fixture(scope="session")
def images(workers_machine: Machine, app: Path) -> dict[str, str]:
    """The images of three kinds, with the application in each."""
    paths = ["--env", "PATH=/bin"]
    shell = {f"bin/{name}": "busybox" for name in BUSYBOX}
    return {
        "nothing": workers_machine.build("nothing", {"app": app}),
        "busybox": workers_machine.build("busybox", {"app": app, "bin/busybox": Path("/bin/busybox")}, *paths, links=shell),
        "debian": workers_machine.build("debian", {"app": app}, base=image("demo-app")),
    }


KINDS = ("nothing", "busybox", "debian")


@pytest.fixture(params=("venv", *KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def wrapped(kind: str, machine: Machine, images: dict[str, str], app: Path, tmp_path: Path) -> Iterator[Wrapped]:
    if kind == "venv":
        here = Here(tmp_path, app)
        with here.pod:
            yield here
    else:
        yield There(machine, images[kind], tmp_path)


def heard(path: Path) -> None:
    until(path.exists, f"{path.name} is there")


def record(wrapped: Wrapped) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((wrapped.seen / ".sidecar" / "participants" / "application.json").read_text())
    return found


def is_in(wrapped: Wrapped, state: str) -> Callable[[], bool]:
    path = wrapped.seen / ".sidecar" / "participants" / "application.json"
    return lambda: path.exists() and record(wrapped)["state"] == state


@pytest.mark.parametrize(
    ("words", "status"),
    [(("exit", "0"), 0), (("exit", "42"), 42), (("exit", "255"), 255), (("die", "9"), 137), (("die", "15"), 143)],
    ids=repr,
)
def test_the_status_is_the_commands(wrapped: Wrapped, words: tuple[str, ...], status: int) -> None:
    (wrapped.seen / "mountdone").touch()
    wrapped.start(*ALONE, "--", wrapped.app, *words)
    assert wrapped.wait() == status, wrapped.err()


@pytest.mark.parametrize(("command", "status"), [("/missing", 127), ("missing", 127), ("/proc", 126)])
def test_a_command_that_cannot_be_run_has_the_status_that_a_shell_gives_it(wrapped: Wrapped, command: str, status: int) -> None:
    (wrapped.seen / "mountdone").touch()
    wrapped.start(*ALONE, "--", command)
    assert wrapped.wait() == status, wrapped.err()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMIN + 3])
def test_signals_reach_the_command(wrapped: Wrapped, number: int) -> None:
    (wrapped.seen / "mountdone").touch()
    wrapped.start(*ALONE, "--", wrapped.app, "wait", f"{wrapped.coord}/up")
    heard(wrapped.seen / "up")
    wrapped.send(number)
    assert wrapped.wait() == 128 + number


def test_sigterm_ends_the_wait_and_is_told(wrapped: Wrapped) -> None:
    wrapped.start("-b", "fuse", "--", wrapped.app, "exit", "0")
    until(is_in(wrapped, "waiting"), "it waits")
    wrapped.send(signal.SIGTERM)
    assert wrapped.wait() == 143
    assert record(wrapped)["state"] == "failed"


def test_orphans_are_reaped(wrapped: Wrapped) -> None:
    (wrapped.seen / "mountdone").touch()
    wrapped.start(*ALONE, "--", wrapped.app, "orphan", f"{wrapped.coord}/up")
    heard(wrapped.seen / "up")
    until(lambda: wrapped.children() == ["S"], "only the command is left")


def test_a_shell_scripts_signals_are_a_handshake(wrapped: Wrapped) -> None:
    wrapped.start("-b", "fuse", "--", wrapped.app, "write", f"{wrapped.coord}/made", "something")
    until(is_in(wrapped, "waiting"), "it waits")
    assert not (wrapped.seen / "made").exists()
    (wrapped.seen / "mountdone").touch()
    heard(wrapped.seen / "initupload")
    assert (wrapped.seen / "made").read_text() == "something"
    (wrapped.seen / "uploaddone").touch()
    assert wrapped.wait() == 0
    assert record(wrapped)["state"] == "done"


def test_the_environment_is_the_containers(wrapped: Wrapped, kind: str) -> None:
    (wrapped.seen / "mountdone").touch()
    wrapped.start(*ALONE, "--", wrapped.app, "environment")
    assert wrapped.wait() == 0
    names = {line.partition("=")[0] for line in wrapped.out().splitlines()}
    # What podman sets; nothing of ours, of Python's or of a shell's.
    given = set(os.environ) if kind == "venv" else {"PATH", "HOSTNAME", "HOME", "TERM", "container"}
    assert "HOME" in names
    assert names <= given


# --- what only containers have -----------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def there(request: pytest.FixtureRequest, machine: Machine, images: dict[str, str], tmp_path: Path) -> There:
    return There(machine, images[request.param], tmp_path)


def test_it_is_pid_1_of_nobody_with_no_right_and_little_memory(there: There) -> None:
    (there.seen / "mountdone").touch()
    there.start(*ALONE, "--", "/app", "wait", "/coord/up")
    heard(there.seen / "up")
    lines = (there.machine.seen("/proc") / str(there.pod.pid("application")) / "status").read_text().splitlines()
    about = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert about["NSpid"].split()[-1] == "1"
    assert set(about["Uid"].split()) == {str(NONROOT)}
    assert {int(about[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert about["NoNewPrivs"] == "1"
    assert int(about["VmHWM"].split()[0]) <= 12 << 10
    configured = there.pod.inspect("application")["HostConfig"]
    assert (configured["Memory"], configured["ReadonlyRootfs"]) == (MEMORY, True)


def test_what_was_installed_is_the_executable_that_was_built(there: There) -> None:
    (there.seen / "mountdone").touch()
    there.start(*ALONE, "--", "/app", "exit", "0")
    assert there.wait() == 0
    installed = there.pod.file("wrapper", "wrap_application")
    assert installed.read_bytes() == (TOP / "build" / "wrap_application").read_bytes()
    assert stat.S_IMODE(installed.stat().st_mode) == 0o555
    assert os.listdir(installed.parent) == ["wrap_application"]


def test_a_command_that_takes_all_memory_is_137_and_the_wrapper_lives_to_tell(there: There) -> None:
    (there.seen / "mountdone").touch()
    there.start(*ALONE, "--", "/app", "eat")
    assert there.wait() == 137
    assert record(there)["exit"]["signal"] == signal.SIGKILL


def test_with_the_fuse_battery_what_was_written_is_a_bundle(there: There, tmp_path: Path) -> None:
    command = ("-b", "fuse", "--", "/app", "write", "/out/made", "something")
    battery = fuse("bundle upload --path /out --repo results --label latest --message made")
    played = there.machine.play([pod(application(there.image, *command, user=NONROOT), battery)], claims={"store": there.store})
    assert played.wait() == {"application": 0, "fuse": 0}, played.told()
    assert content(open_store(f"file://{there.store}"), "results@latest", tmp_path / "here") == {"made": b"something"}


def test_an_init_container_that_cannot_install_keeps_the_pod_from_starting(
    machine: Machine, images: dict[str, str], store: Path
) -> None:
    manifest = pod(application(images["nothing"], *ALONE, "--", "/app", "exit", "0", user=NONROOT))
    manifest["spec"]["volumes"][0]["emptyDir"]["sizeLimit"] = "1Mi"
    played = machine.play([manifest], claims={"store": store}, check=False)
    assert "exited with code 74" in played.problem
    assert "No space left on device" in played.err("wrapper")
