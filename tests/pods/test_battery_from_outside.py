"""The function battery in real containers: composed into a session, run by podman, asked by its application alone."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import Machine, image
from processes import BIN
from sidecar_function_battery.options import companion
from test_function_battery import ASK

from sidecar.batteries.companion import Around
from sidecar.session.compose import COORDINATION, Options, Session, compose

TAG = image("x").rpartition(":")[2]
# What podman 4.3 knows: it plays no `procMount`. The container's user has none of the privileges all the same.
DOCUMENT = "privileged: true\natOnce: 4\n"
READY = f"{COORDINATION}/function/ready"
ANSWERS = ["(200, '42\\n')", "(200, '42\\n')", "(401, '')", "(401, '')"]


def session(*command: str, document: str = DOCUMENT) -> Session:
    battery = companion(document, "function.yaml", Around(COORDINATION, tag=TAG, grace=20))
    options = Options(wrapper=image("wrapper"), read_only=True, grace=30)
    return compose(image("runtime-python-3.11"), (), [battery], options, command=command)


def test_an_application_in_a_container_has_code_run_by_the_battery_in_another(machine: Machine) -> None:
    pod = machine.play([session("python3", "-c", ASK, READY).pod])
    assert pod.wait() == {"application": 0, "function": 0}, pod.told()
    assert pod.out("application").splitlines() == ANSWERS
    said = pod.err("function")
    assert "POST /v1/functions/bash/invocations 200" in said
    assert "POST /v1/functions/bash/invocations 401" in said


def test_the_token_is_the_applications_alone_and_killed_it_is_told(machine: Machine) -> None:
    go = f"{COORDINATION}/go"
    pod = machine.play([session("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.01; done").pod])
    token = pod.file("coordination", "function/token")
    pod.until(lambda: "running" in pod.execute("function", "sidecar", "status", COORDINATION).stdout, "the application runs")
    about, text = token.stat(), token.read_text().strip()
    assert (stat.S_IMODE(about.st_mode), about.st_uid) == (0o600, 10001)
    shown = pod.execute("function", "sidecar", "status", COORDINATION, "--json").stdout
    assert json.loads(shown)["participants"]
    assert text not in shown + pod.told() + json.dumps(pod.inspect("function"))
    # Another user of the pod's finds the address, and no way in.
    told = pod.machine.podman("exec", "--user=20002", pod.of("application"), "cat", f"{COORDINATION}/function/url").stdout
    assert told.startswith("http://127.0.0.1:")
    denied = pod.machine.podman(
        "exec", "--user=20002", pod.of("application"), "cat", f"{COORDINATION}/function/token", check=False
    )
    assert (denied.returncode, "Permission denied" in denied.stderr) == (1, True)
    pod.crash("function")
    assert pod.wait("function") == {"function": 128 + signal.SIGKILL}
    pod.file("coordination", "go").touch()
    assert pod.wait("application") == {"application": 73}
    assert "function died without a word" in pod.termination_message("application")


def test_where_parts_of_proc_are_hidden_nothing_is_run_and_the_application_hears_why(machine: Machine) -> None:
    made = session("true").pod
    made["spec"]["containers"][1]["securityContext"] = {"readOnlyRootFilesystem": True}
    pod = machine.play([made])
    assert pod.wait() == {"application": 69, "function": 78}, pod.told()
    assert "functions cannot be confined here: bwrap: " in pod.termination_message("application")


def test_its_image_is_not_roots_and_holds_what_it_says(machine: Machine) -> None:
    (about,) = json.loads(machine.podman("image", "inspect", image("function-battery")).stdout)
    assert (about["Config"]["User"], about["Config"]["Entrypoint"]) == ("10001:10001", ["wrap_battery", "function"])
    asked = ("--read-only", "--network=none", "--entrypoint=sidecar", image("function-battery"), "function", "list", "--json")
    listed = json.loads(machine.podman("run", "--rm", *asked).stdout)
    assert [each["language"] for each in listed] == ["bash", "perl", "python"]


class Shell:
    """The command, which finds the machine's podman where it looks for podman."""

    def __init__(self, machine: Machine, top: Path) -> None:
        self.top = top
        self.environment = machine.shell(top / "bin")

    def tell(self, *words: str) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [BIN / "sidecar", "session", words[0], "--folder", self.top / "pods", *words[1:]]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=self.top, env=self.environment)


@pytest.fixture
def shell(machine: Machine, tmp_path: Path) -> Iterator[Shell]:
    made = Shell(machine, tmp_path)
    yield made
    for each in json.loads(made.tell("list", "--json").stdout):
        made.tell("stop", each["name"], "--grace", "0")


def test_a_session_with_it_is_started_from_the_shell(shell: Shell) -> None:
    (shell.top / "function.yaml").write_text(DOCUMENT)
    asked = ("--image", image("runtime-python-3.11"), "--battery", "function=function.yaml", "--read-only", "--wait")
    ran = shell.tell("start", "--runner", "podman", "--network", "none", *asked, "--", "python3", "-c", ASK, READY)
    answers = [line for line in ran.stdout.splitlines() if not line.startswith("wrap_application: ")]
    assert (ran.returncode, answers) == (0, ANSWERS), ran.stderr
