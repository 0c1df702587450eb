"""The images of runtimes, in real containers: each runs its language by the same proxy, under s6; hostile programs fail in it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from containers import TOP, Machine, image
from function_attacks import ATTACKS, STUBS
from processes import until

RUNTIMES = {folder.name: folder for folder in sorted((TOP / "images" / "runtimes").iterdir())}
# What a container is trusted with: to give each worker a user of its own, and to end it.
TRUSTED = (
    "--read-only", "--tmpfs=/run", "--tmpfs=/tmp", "--tmpfs=/var/log/functions", "--network=none",
    "--security-opt=no-new-privileges", "--cap-drop=all", "--cap-add=SETUID", "--cap-add=SETGID", "--cap-add=KILL",
)  # fmt: skip
IMAGE = image("runtime-bash-5.2")
# Else workers cannot have a /proc of their own, and there is none without.
UNMASKED = "--security-opt=unmask=ALL"
HELLO = {
    "bash": "echo $((6*7)) $1",
    "node": "console.log(6*7, process.argv[2])",
    "perl": 'print 6*7, " $ARGV[0]\\n"',
    "php": '<?php echo 6*7, " $argv[1]\\n";',
    "python": "import sys; print(6*7, sys.argv[1])",
    "ruby": 'puts "#{6*7} #{ARGV[0]}"',
}
# Asks the service of a container for what it is handed, one after another, and prints what is answered.
ASK = """
import json, sys, urllib.request
for asked in json.load(sys.stdin):
    request = urllib.request.Request(asked.pop("url"), json.dumps(asked).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            print(json.dumps([answer.status, json.load(answer)]))
    except urllib.error.HTTPError as error:
        print(json.dumps([error.code, json.load(error)]))
"""


class Container:
    """One container of a runtime's image; its service listens to its own loopback."""

    def __init__(self, machine: Machine, runtime: str, *options: str) -> None:
        self.machine, self.runtime = machine, runtime
        self.language = runtime.partition("-")[0]
        self.name = f"runtime-{secrets.token_hex(4)}"
        machine.podman("run", "--detach", "--name", self.name, *TRUSTED, *options, image(f"runtime-{runtime}"))
        until(lambda: self.call("print", check=False) is not None, f"{runtime} answers")

    def call(self, source: str, check: bool = True, **more: Any) -> Any:
        return self.calls([{"source": source, **more}], check)[0]

    def calls(self, asked: list[dict[str, Any]], check: bool = True) -> list[Any]:
        url = f"http://127.0.0.1:8080/v1/functions/{self.language}/invocations"
        given = json.dumps([{"url": url, "timeout": 60, **each} for each in asked])
        command = ["sh", "-c", 'printf %s "$1" | /opt/sidecar/bin/python -c "$2"', "ask", given, ASK]
        ran = self.machine.podman("exec", self.name, *command, check=check)
        return [json.loads(line) for line in ran.stdout.splitlines()] or [None]

    def sh(self, script: str) -> str:
        return self.machine.podman("exec", self.name, "sh", "-c", script).stdout

    def remove(self) -> None:
        self.machine.podman("rm", "--force", "--time=0", self.name)


@pytest.fixture(params=RUNTIMES)
def container(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Container]:
    begun = Container(machine, request.param, UNMASKED)
    yield begun
    begun.remove()


@pytest.fixture
def one(machine: Machine) -> Iterator[Container]:
    begun = Container(machine, "bash-5.2", UNMASKED, "--env=LOG_SIZE=4096", "--env=LOG_FILES=3")
    yield begun
    begun.remove()


def test_every_runtime_runs_its_language_by_the_same_proxy_and_hostile_programs_fail_in_it(
    container: Container, tmp_path: Path
) -> None:
    status, answer = container.call(HELLO[container.language], args=["it's"])
    assert (status, answer["stdout"], answer["status"]) == (200, "42 it's\n", "ok")
    # The proxy is the same file in all, and a runtime is nothing but a script.
    assert container.sh("cat /opt/function_proxy") == (TOP / "wrappers" / "function_proxy").read_text()
    runtime = RUNTIMES[container.runtime]
    assert container.sh("cat /opt/runtimes/*/runtime.sh") == (runtime / "runtime.sh").read_text()
    assert {path.name for path in runtime.iterdir()} == {"Dockerfile", "runtime.sh"}
    proxied = f"printf '%s' '{HELLO[container.language]}' | /opt/function_proxy it"
    assert container.sh(proxied) == "42 it\n"
    # Each attack, and after each somebody who wants nothing but an answer.
    container.sh("echo secret >/tmp/secret; chmod 666 /tmp/secret")
    asked = []
    for script, _ in ATTACKS.values():
        asked.append({"source": STUBS[container.language], "args": [script, "8080", "/tmp/secret"], "workers": 1})
        asked.append({"source": HELLO[container.language], "args": ["next"]})
    answers = container.calls(asked)
    for number, (attack, (_, prints)) in enumerate(ATTACKS.items()):
        (status, hostile), (after, friendly) = answers[2 * number : 2 * number + 2]
        assert (status, hostile["stdout"]) == (200, prints), (attack, hostile)
        assert (after, friendly["stdout"]) == (200, "42 next\n"), attack
    assert container.sh("cat /tmp/secret") == "secret\n"


def test_a_server_that_is_killed_is_begun_again(one: Container) -> None:
    before = one.sh("s6-svstat -o pid /run/services/functions")
    one.sh(f"kill -9 {before}")
    until(lambda: one.sh("s6-svstat -o pid /run/services/functions") not in (before, "-1\n"), "it is begun again")
    until(lambda: one.call("echo it", check=False) is not None, "it answers again")


def test_logs_are_rotated_and_the_containers_own_log_has_them_too(one: Container) -> None:
    one.calls([{"source": "true", "workers": 1}] * 60)
    files = one.sh("cd /var/log/functions && ls *.s *.u 2>/dev/null | wc -l; wc -c current").split()
    assert 1 <= int(files[0]) <= 3
    assert int(files[1]) <= 4096 + 200
    assert "/v1/functions/bash/invocations 200" in one.machine.podman("logs", one.name).stdout


def test_where_the_engine_hides_parts_of_proc_no_sandbox_can_be_made_and_nothing_runs(machine: Machine) -> None:
    name = f"runtime-{secrets.token_hex(4)}"
    ran = machine.podman("run", "--rm", "--name", name, *TRUSTED, "--entrypoint=/opt/function_proxy", IMAGE, check=False)
    assert (ran.returncode, ran.stdout) == (78, "")
    assert "functions cannot be confined here: bwrap: " in ran.stderr
