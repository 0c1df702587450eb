"""`sidecar session start --runner podman`: a session in real containers, from the shell."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import Machine, image
from processes import BIN, until

PROGRAM = r"""#!/bin/bash
printf '%s\n' "$PWD" "$SERVER_CONFIG" "$(cat /opt/viewer/text)" "$@"
[ "$1" != wait ] || sleep 600 & wait
exit 7
"""


class Shell:
    """The command, which finds the machine's podman where it looks for podman."""

    def __init__(self, machine: Machine, top: Path) -> None:
        self.top = top
        self.environment = machine.shell(top / "bin")
        (top / "text").write_text("of the viewer")
        (top / "run").write_text(PROGRAM)
        (top / "run").chmod(0o755)
        viewer = machine.build(f"viewer-{top.name}", {"text": top / "text"})
        app = machine.build(f"app-{top.name}", {"bin/run": top / "run"})
        (top / "catalog.yaml").write_text(f"""artifacts:
  viewer: {{image: "{viewer}", mountPath: /opt/viewer, serverConfig: {{title: demo}}}}
  app: {{image: "{app}", mountPath: /opt/app, executable: bin/run, args: [two words, "it's $(x)"]}}
  waits: {{image: "{app}", mountPath: /opt/app, executable: bin/run, args: [wait]}}
""")

    def tell(self, *words: str) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [BIN / "sidecar", "session", words[0], "--folder", self.top / "pods", *words[1:]]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=self.top, env=self.environment)

    def start(self, last: str, *words: str) -> subprocess.CompletedProcess[str]:
        listed = ["--catalog", "catalog.yaml", "--artifact", "viewer", "--artifact", last, "--image", image("demo-app")]
        return self.tell("start", "--runner", "podman", "--network", "none", *listed, *words)


@pytest.fixture
def shell(machine: Machine, tmp_path: Path) -> Iterator[Shell]:
    made = Shell(machine, tmp_path)
    yield made
    for each in json.loads(made.tell("list", "--json").stdout):
        made.tell("stop", each["name"], "--grace", "0")
    assert machine.podman("pod", "ps", "--quiet").stdout == ""


def test_a_session_runs_in_containers_and_its_output_and_end_are_the_commands(shell: Shell) -> None:
    ran = shell.start("app", "--wait")
    assert (ran.returncode, ran.stderr) == (7, "")
    assert ran.stdout.splitlines() == ["/opt/app", ";:title:demo", "of the viewer", "two words", "it's $(x)"]
    assert shell.tell("list").stdout == ""


def test_a_session_in_containers_is_one_of_this_machines(shell: Shell) -> None:
    started = shell.start("waits", "--id", "6f1c")
    assert started.returncode == 0, started.stderr
    assert json.loads(started.stdout)["pod"] == "session-6f1c"
    until(lambda: "application running" in shell.tell("list").stdout, "it is listed")
    until(lambda: "of the viewer" in shell.tell("logs", "session-6f1c").stdout, "it has written")
    # Nor can another one be begun of its name, wherever.
    again = shell.tell("start", "--image", "host", "--id", "6f1c", "--", "true")
    assert again.returncode == 78
    assert "there is a pod session-6f1c already" in again.stderr
    assert json.loads(shell.tell("show", "session-6f1c", "--json").stdout)["phase"] == "Running"
    assert shell.tell("stop", "session-6f1c", "--grace", "0").stdout.startswith("session-6f1c: Failed: ")
    assert shell.tell("list", "--json").stdout == "[]\n"
