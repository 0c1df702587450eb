"""`sidecar session start` and its like: a session that runs on this machine, from the shell."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes_api import Api, Late, Refusal
from processes import BIN, until
from session_contract import POLITE

from sidecar.session.local import LocalRunner

# Of the last artifact: tells what it was given, and what the others brought.
PROGRAM = """#!/bin/bash
printf '%s\\n' "$PWD" "$SERVER_CONFIG" "$(cat /opt/viewer/text)" "$(cat /opt/gdb/tool)" "$@"
echo kept >/var/log/session/app/log
case $1 in wait) until [ -e /opt/viewer/go ]; do sleep 0.02; done;; esac
exit 7
"""


class Machine:
    """A folder of pods, a catalog, and the command."""

    def __init__(self, top: Path) -> None:
        self.top, self.folder = top, top / "pods"
        for name, file, text in (
            ("viewer", "text", "of the viewer"),
            ("gdb", "tool", "of the debugger"),
            ("app", "run", PROGRAM),
        ):
            (top / name).mkdir()
            (top / name / file).write_text(text)
        (top / "app" / "run").chmod(0o755)
        (top / "catalog.yaml").write_text(f"""artifacts:
  viewer: {{image: "{top}/viewer", mountPath: /opt/viewer, serverConfig: {{title: demo}}, ports: [8000]}}
  gdb: {{image: example/gdb, mountPath: /opt/gdb}}
  app: {{image: "{top}/app", executable: ./run, args: [two words, "it's $(x)"], logDirectories: [app], serverConfig: {{hdr: }}}}
  waits: {{image: "{top}/app", executable: ./run, args: [wait], logDirectories: [app]}}
""")

    def tell(self, *words: str) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [BIN / "sidecar", "session", words[0], "--folder", self.folder, *words[1:]]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=self.top)

    def until_listed(self, line: str) -> None:
        until(lambda: line in self.tell("list").stdout, f"{line} is listed")

    def start(self, last: str, *words: str) -> subprocess.CompletedProcess[str]:
        listed = [word for each in ("viewer", "gdb", last) for word in ("--artifact", each)]
        image = f"example/gdb={self.top}/gdb"
        return self.tell("start", "--image", "host", "--catalog", "catalog.yaml", *listed, "--image-dir", image, *words)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    runner = LocalRunner(str(made.folder))
    for each in runner.list():
        runner.stop(each.name, 0)


def test_three_artifacts_run_as_one_session_whose_output_and_end_are_the_commands(machine: Machine) -> None:
    ran = machine.start("app", "--wait")
    assert (ran.returncode, ran.stderr) == (7, "")
    cwd, config, viewer, gdb, *arguments = ran.stdout.splitlines()
    assert cwd.startswith("/artifacts/")
    assert config == ";:title:demo;hdr"
    assert (viewer, gdb) == ("of the viewer", "of the debugger")
    assert arguments == ["two words", "it's $(x)"]
    assert machine.tell("list").stdout == ""


def test_a_session_that_was_started_can_be_listed_looked_at_followed_and_stopped(machine: Machine) -> None:
    started = machine.start("waits", "--id", "6f1c")
    assert started.returncode == 0, started.stderr
    response = json.loads(started.stdout)
    assert (response["session"], response["pod"]) == ("6f1c", "session-6f1c")
    assert response["ports"] == [{"name": "", "port": 8000, "protocol": "TCP", "artifact": 1}]
    assert response["logDirectories"] == [{"path": "/var/log/session/app", "artifact": 3}]
    machine.until_listed("session-6f1c  Running  application running")
    (told,) = json.loads(machine.tell("list", "--json").stdout)
    assert (told["name"], told["session"], told["phase"]) == ("session-6f1c", "6f1c", "Running")
    until(lambda: "of the viewer" in machine.tell("logs", "session-6f1c").stdout, "it has written")
    (machine.top / "viewer" / "go").touch()
    followed = machine.tell("logs", "session-6f1c", "application", "--follow")
    assert followed.stdout.splitlines()[-1] == "wait"
    until(lambda: json.loads(machine.tell("show", "session-6f1c", "--json").stdout)["phase"] == "Failed", "it has ended")
    assert "application  application exit 7" in machine.tell("show", "session-6f1c").stdout
    assert machine.tell("stop", "session-6f1c").stdout == "session-6f1c: Failed: application exit 7\n"
    assert machine.tell("list", "--json").stdout == "[]\n"


def test_who_interrupts_once_more_does_not_wait_for_a_program_that_does_not_hear(machine: Machine) -> None:
    words = ["start", "--folder", str(machine.folder), "--image", "host", "--id", "deaf", "--grace", "300s", "--wait"]
    with subprocess.Popen(
        [
            BIN / "sidecar",
            "session",
            *words,
            "--",
            "sh",
            "-c",
            "trap 'echo asked' TERM; echo ready; while :; do sleep 0.02; done",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "ready\n"
        waiting.send_signal(signal.SIGINT)
        until(lambda: "asked" in machine.tell("logs", "session-deaf").stdout, "it is asked to end")
        waiting.send_signal(signal.SIGINT)
        _, told = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert "pod session-deaf is killed" in told
    assert machine.tell("list").stdout == ""


def test_a_session_that_is_there_is_left_alone_by_another_of_its_id(machine: Machine) -> None:
    assert machine.start("waits", "--id", "6f1c").returncode == 0
    again = machine.start("waits", "--id", "6f1c")
    assert again.returncode == 78
    assert "there is a pod session-6f1c already" in again.stderr
    machine.until_listed("session-6f1c  Running  application running")


def test_two_sessions_of_one_request_are_two(machine: Machine) -> None:
    assert [machine.start("waits").returncode for _ in range(2)] == [0, 0]
    assert len(machine.tell("list").stdout.splitlines()) == 3  # with the heading


@pytest.mark.parametrize("words", [("show", "session-x"), ("logs", "session-x"), ("stop", "session-x"), ("show", "../x")])
def test_a_session_that_is_not_there_is_66(machine: Machine, words: tuple[str, ...]) -> None:
    ran = machine.tell(*words)
    assert (ran.returncode, ran.stdout) == (66, "")
    assert "there is no pod" in ran.stderr
    assert not machine.folder.exists()


def test_an_image_that_is_no_directory_is_told_with_what_there_is(machine: Machine) -> None:
    ran = machine.start("app", "--image-dir", "example/gdb=missing")
    assert ran.returncode == 65
    assert "example/gdb is no directory" in ran.stderr
    assert machine.tell("list").stdout == ""


@pytest.mark.parametrize("text", ["x", "=dir", "image="])
def test_an_image_dir_that_is_none_is_2(machine: Machine, text: str) -> None:
    assert machine.start("app", "--image-dir", text).returncode == 2


# --- elsewhere ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A cluster that the kubeconfig leads to."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "cluster").mkdir()
    with Api(tmp_path / "cluster", "a token") as api:
        monkeypatch.setenv("KUBECONFIG", api.kubeconfig(tmp_path / "config"))
        yield api
        for each in json.loads(tell_cluster(machine, "list", "--json").stdout):
            tell_cluster(machine, "stop", each["name"], "--grace", "0")
    assert api.wrong == []


def tell_cluster(machine: Machine, *words: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [BIN / "sidecar", "session", words[0], "--runner", "kubernetes", "--context", "here", *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=machine.top)


def test_a_session_runs_in_a_cluster_and_its_output_and_end_are_the_commands(machine: Machine, cluster: Api) -> None:
    listed = ["--catalog", "catalog.yaml", "--artifact", "viewer", "--artifact", "app", "--image", "host", "--delivery", "image"]
    ran = tell_cluster(machine, "start", *listed, "--wait")
    assert (ran.returncode, ran.stderr) == (7, "")
    assert ran.stdout.splitlines()[-2:] == ["two words", "it's $(x)"]
    assert tell_cluster(machine, "list").stdout == ""


def test_a_session_in_a_cluster_can_be_listed_looked_at_followed_and_stopped(machine: Machine, cluster: Api) -> None:
    started = tell_cluster(machine, "start", "--image", "host", "--id", "6f1c", "--", "sh", "-c", "echo ready; sleep 600")
    assert started.returncode == 0, started.stderr
    until(lambda: "ready" in tell_cluster(machine, "logs", "session-6f1c").stdout, "it has written")
    until(lambda: "Running  application running" in tell_cluster(machine, "list").stdout, "it is listed")
    assert json.loads(tell_cluster(machine, "show", "session-6f1c", "--json").stdout)["phase"] == "Running"
    again = tell_cluster(machine, "start", "--image", "host", "--id", "6f1c", "--", "true")
    assert (again.returncode, "session-6f1c" in again.stderr) == (78, True)
    assert tell_cluster(machine, "stop", "session-6f1c", "--grace", "1").returncode == 0
    assert tell_cluster(machine, "show", "session-6f1c").returncode == 66


class Waiting:
    """`sidecar session start --wait` in a cluster, of a pod that runs a script: until it is asked to end, unless another."""

    def __init__(self, machine: Machine, script: str = POLITE) -> None:
        words = ["--runner", "kubernetes", "--context", "here", "--image", "host", "--id", "6f1c", "--grace", "1s", "--wait"]
        self.process = subprocess.Popen(
            [BIN / "sidecar", "session", "start", *words, "--", "sh", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def is_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_is_ended_while_a_session_is_waited_for_takes_it_along(machine: Machine, cluster: Api, number: int) -> None:
    with Waiting(machine) as waiting:
        waiting.is_ready()
        waiting.process.send_signal(number)
        assert waiting.process.wait(60) == 128 + number
    assert cluster.pods == {}


def test_a_session_whose_log_cannot_be_read_goes_on_and_its_end_is_the_commands(machine: Machine, cluster: Api) -> None:
    cluster.fail("LOG", Refusal(403, "Forbidden", "cannot get pods/log"))
    with Waiting(machine, "sleep 1; exit 7") as waiting:
        out, warned = waiting.process.communicate(timeout=60)
    assert "warning: what the application writes cannot be told" in warned
    assert "pods/log" in warned
    assert (waiting.process.returncode, out) == (7, "")
    assert cluster.pods == {}


@pytest.mark.parametrize("ended", [True, False], ids=["interrupted", "waiting on"])
def test_a_pod_that_took_the_name_is_neither_followed_nor_removed(machine: Machine, cluster: Api, ended: bool) -> None:
    with Waiting(machine) as waiting:
        waiting.is_ready()
        was = cluster.asked("POST")[0].body
        if ended:
            waiting.process.send_signal(signal.SIGSTOP)
        cluster.remove("session-6f1c")
        with cluster._changed:
            cluster.create(was)
        uid = cluster.pods["session-6f1c"]["metadata"]["uid"]
        if ended:
            waiting.process.send_signal(signal.SIGINT)
            waiting.process.send_signal(signal.SIGCONT)
        out, _ = waiting.process.communicate(timeout=60)
    assert (waiting.process.returncode, out) == (130 if ended else 66, "")
    assert cluster.pods["session-6f1c"]["metadata"]["uid"] == uid
    assert not cluster.asked("DELETE")


def test_a_session_that_is_interrupted_while_it_is_begun_is_named(machine: Machine, cluster: Api) -> None:
    cluster.fail("POST", Late(2))
    with Waiting(machine) as waiting:
        cluster.await_request("POST")
        waiting.process.send_signal(signal.SIGINT)
        _, err = waiting.process.communicate(timeout=60)
    assert waiting.process.returncode == 130
    assert "whether pod session-6f1c was begun is not known" in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("start", "--runner", "podman", "--image-dir", "a=b"), "--image-dir is not an option of podman"),
        (("start", "--runner", "kubernetes", "--claim-dir", "a=b"), "--claim-dir is not an option of kubernetes"),
        (("start", "--network", "none"), "--network is not an option of local"),
        (("start", "--namespace", "x"), "--namespace is not an option of local"),
        (("list", "--context", "x"), "--context is not an option of this machine"),
        (("list", "--runner", "kubernetes", "--folder", "x"), "--folder is not an option of kubernetes"),
        (("start", "--claim-dir", "x"), "--claim-dir expects CLAIM=DIR"),
    ],
)
def test_an_option_that_a_runner_has_not_is_2(tmp_path: Path, words: tuple[str, ...], named: str) -> None:
    more = ["--image", "host", "--", "true"] if words[0] == "start" else []
    ran = subprocess.run([BIN / "sidecar", "session", *words, *more], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 2
    assert named in ran.stderr


def test_a_directory_stands_for_the_claim_that_the_store_is_on(machine: Machine) -> None:
    words = ["--store", "file:///store", "--store-claim", "s", "--claim-dir", "s=viewer", "--battery", "fuse=fuse.yaml"]
    (machine.top / "fuse.yaml").write_text("bundles: [{name: in, srcPath: /input, srcRepo: weather, srcLabel: latest}]")
    ran = machine.start("app", *words)
    assert ran.returncode == 65
    # All but the images of the battery and of the wrapper, which are no directories here.
    assert "claim" not in ran.stderr
    assert "persistentVolumeClaim" in machine.start("app", *words[:4], *words[6:]).stderr


def test_sessions_and_runs_are_kept_beside_each_other_whichever_was_first(tmp_path: Path) -> None:
    for first in ("session", "once"):
        home = tmp_path / first
        home.mkdir()
        environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
        commands = {
            "session": ["session", "start", "--image", "host", "--wait", "--", "true"],
            "once": ["once", "run", "--name", "it", "--", "true"],
        }
        for name in sorted(commands, key=lambda each, first=first: each != first):  # type: ignore[misc]
            subprocess.run([BIN / "sidecar", *commands[name]], env=environment, check=True, timeout=60)
        assert stat.S_IMODE((home / ".local" / "state" / "sidecar").stat().st_mode) == 0o700
