"""The battery `function`, a distribution of its own: an application has code run by a service that it alone may ask."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Self

import httpx
import kubernetes_validate
import pytest
import yaml
from processes import BIN, HANG, PID_1, Pod, Started, children_of, processes_that_say, until
from sidecar_function_battery import KIND, FunctionBatteryOptions
from sidecar_function_battery.battery import FunctionBattery
from sidecar_function_battery.options import companion, read

from sidecar.batteries import Place, find
from sidecar.batteries.companion import Around
from sidecar.coordination.protocol import DONE, FAILED, READY, RUNNING
from sidecar.errors import ConfigurationError, ParametersError, PeerFailed, Unreachable
from sidecar.session.compose import Options, compose
from sidecar.testing import check_battery

TOP = Path(__file__).parent.parent
RUNTIMES = TOP / "images" / "runtimes"
DOCUMENT = f"runtimes: {RUNTIMES}\n"
INVOKE = "/v1/functions/{}/invocations"
# An application in Python, of the standard library alone: asks for what a language is handed, by what the battery's signal says.
ASK = r"""import json, sys, urllib.request
with open(sys.argv[1]) as file:
    told = json.load(file)["payload"]
with open(told["tokenFile"]) as file:
    token = file.read().strip()
def ask(language, source, **headers):
    request = urllib.request.Request(f"{told['url']}/v1/functions/{language}/invocations", source.encode(), headers)
    request.add_header("Content-Type", "text/plain")
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            return answer.status, json.load(answer)["stdout"]
    except urllib.error.HTTPError as error:
        return error.code, ""
print(ask("bash", "echo $((6*7))", Authorization=f"Bearer {token}"))
print(ask("python", "print(6*7)", Authorization=f"Bearer {token}"))
print(ask("bash", "echo it"))
print(ask("bash", "echo it", Authorization="Bearer guessed"))
"""


class Functions(Pod):
    """A pod with the battery."""

    def __enter__(self) -> Self:
        return self

    def battery(self, *words: str | Path, document: str = DOCUMENT, **how: Any) -> Started:
        return self.start(
            *how.pop("prefix", ()), BIN / "wrap_battery", "function", "-c", self.coord, *words,
            env={"SIDECAR_PARAMETERS": document}, **how,
        )  # fmt: skip

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.coord / "function" / "ready").read_text())["payload"]
        return found

    @property
    def token(self) -> str:
        return Path(self.told["tokenFile"]).read_text().strip()

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.told["url"], headers=headers, trust_env=False, timeout=HANG)

    def everything_said(self) -> str:
        """Return all that the battery has said where others may read it."""
        files = [path for path in self.coord.rglob("*") if path.is_file() and path.name != "token"]
        said = [path.read_text() for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077]
        for words in ((), ("--json",), ("--events",)):
            ran = subprocess.run([BIN / "sidecar", "status", self.coord, *words], capture_output=True, text=True, timeout=60)
            said.append(ran.stdout + ran.stderr)
        return "\n".join([*said, *(each.out + each.err for each in self.started)])


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Functions]:
    with Functions(tmp_path) as pod:
        yield pod


def battery(folder: Path, **more: Any) -> FunctionBattery:
    return FunctionBattery(FunctionBatteryOptions(str(folder), (str(RUNTIMES),), **more))


def marked() -> str:
    """Return a number of seconds, more than any test takes, that no other process sleeps."""
    return f"1000.{os.getpid()}{time.monotonic_ns()}"


# --- a battery as any other -------------------------------------------------------------------------------------------


def test_it_is_of_a_distribution_of_its_own_and_found_by_its_name() -> None:
    assert find("function") is KIND
    (entry,) = distribution("sidecar-function-battery").entry_points.select(group="sidecar.batteries")
    assert (entry.name, entry.value) == ("function", "sidecar_function_battery:KIND")


def test_it_keeps_the_contract_of_a_battery(tmp_path: Path) -> None:
    check_battery(lambda: battery(tmp_path / "function"))


def test_a_document_says_what_it_serves() -> None:
    place = Place("/coord/function")
    assert read("", "it", place) == FunctionBatteryOptions("/coord/function", ("/opt/runtimes",), 0, 0, 60, None)
    document = "runtimes: [/a, /b]\nport: 8080\natOnce: 3\ntimeout: 90\nclientUid: 0\nimage: x\nprivileged: yes\n"
    assert read(document, "it", place) == FunctionBatteryOptions("/coord/function", ("/a", "/b"), 8080, 3, 90, 0)


def test_every_fault_of_a_document_is_told_with_its_place() -> None:
    document = "runtimes: [x]\nport: 65536\natOnce: -1\ntimeout: 0\nclientUid: root\nprivileged: 2\nhost: 0.0.0.0\n"
    with pytest.raises(ParametersError) as refused:
        read(document, "it.yaml", Place("/coord/function"))
    assert [str(each) for each in refused.value.faults] == [
        "it.yaml line 7: host: unknown key; expected runtimes, port, atOnce, timeout, clientUid, image, privileged",
        "it.yaml line 1: runtimes: expected an absolute path, one that begins with '/', not 'x'",
        "it.yaml line 2: port: expected a port from 0 to 65535, not '65536'",
        "it.yaml line 3: atOnce: expected a number from 0 to 10000, not '-1'",
        "it.yaml line 4: timeout: expected a number of seconds from 1 to 3600, not '0'",
        "it.yaml line 5: clientUid: expected a user's id from 0 to 4294967294, not 'root'",
        "it.yaml line 6: privileged: expected true or false, not '2'",
    ]


def test_where_there_is_no_runtime_or_no_port_it_is_never_ready(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no runtime in"):
        FunctionBattery(FunctionBatteryOptions(str(tmp_path / "function"), (str(tmp_path),))).ready()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unreachable, match=f"127.0.0.1:{port} cannot be listened to"):
            battery(tmp_path / "function", port=port).ready()
    assert not (tmp_path / "function" / "token").exists()


def test_who_watches_hears_that_the_server_ended_by_itself(tmp_path: Path) -> None:
    ours = battery(tmp_path / "function")
    ours.ready()
    try:
        (serving,) = [each for each in threading.enumerate() if each.name == "function server"]
        loop = serving._loop  # type: ignore[attr-defined]
        loop.call_soon_threadsafe(loop.stop)
        with pytest.raises(PeerFailed, match="the function server ended: RuntimeError: Event loop stopped"):
            ours.watch()
    finally:
        ours.close()


def test_closed_while_calls_run_it_ends_them_and_their_workers_at_once(tmp_path: Path) -> None:
    ours = battery(tmp_path / "function")
    told = ours.ready()
    token = Path(told["tokenFile"]).read_text().strip()
    mark = marked()
    answers: list[object] = []

    def call() -> None:
        asked = {"source": f"exec sleep {mark}", "timeout": 60, "workers": 2}
        headers = {"Authorization": f"Bearer {token}"}
        url = told["url"] + INVOKE.format("bash")
        try:
            answers.append(httpx.post(url, json=asked, headers=headers, timeout=HANG, trust_env=False))
        except httpx.TransportError as error:
            answers.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for each in threads:
        each.start()
    until(lambda: len(processes_that_say(mark)) >= 4, "four workers run")
    ours.close()
    assert processes_that_say(mark) == []
    for each in threads:
        each.join(HANG)
    assert len(answers) == 2
    assert all(isinstance(each, httpx.TransportError) for each in answers)
    assert list((tmp_path / "function").iterdir()) == []


# --- who learns the token ---------------------------------------------------------------------------------------------


def test_the_token_is_in_a_file_of_its_readers_alone(tmp_path: Path) -> None:
    ours = battery(tmp_path / "function", client=os.getuid() or 10001)
    ours.ready()
    try:
        about = (tmp_path / "function" / "token").stat()
        assert (stat.S_IMODE(about.st_mode), about.st_uid) == (0o600, os.getuid() or 10001)
        assert stat.S_IMODE((tmp_path / "function" / "url").stat().st_mode) == 0o644
    finally:
        ours.close()


def test_what_others_have_planted_where_it_is_told_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "function").mkdir()
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / "function" / "token").symlink_to(tmp_path / "victim")
    ours = battery(tmp_path / "function")
    told = ours.ready()
    try:
        assert not Path(told["tokenFile"]).is_symlink()
        assert (tmp_path / "victim").read_text() == "theirs"
    finally:
        ours.close()
    (tmp_path / "function" / "token").mkdir()
    ours = battery(tmp_path / "function")
    with pytest.raises(Unreachable, match="how to call functions cannot be told there"):
        ours.ready()
    ours.close()


# --- a whole pod ------------------------------------------------------------------------------------------------------


def test_an_application_has_code_run_by_the_service_beside_it_and_whoever_has_no_token_has_not(pod: Functions) -> None:
    application = pod.wrap("-b", "function", "--", "python3", "-c", ASK, pod.coord / "function" / "ready")
    functions = pod.battery()
    assert (application.wait(), functions.wait()) == (0, 0), functions.err
    assert application.out.splitlines() == ["(200, '42\\n')", "(200, '42\\n')", "(401, '')", "(401, '')"]
    record = pod.record("function")
    assert record is not None
    assert (record.state, record.saved) == (DONE, True)
    # Nothing of it is left but what was said.
    assert {path.name for path in (pod.coord / "function").iterdir()} == {"ready", "save", "saved"}


def test_what_everybody_may_read_has_no_token_and_each_life_has_another(pod: Functions) -> None:
    functions = pod.battery()
    pod.wrap("-b", "function", "--", "sleep", "1000")
    pod.hear_state(RUNNING)
    first = pod.token
    with pod.client() as client:
        assert client.post(INVOKE.format("bash"), content=b"echo it").json()["stdout"] == "it\n"
        assert client.post(INVOKE.format("bash"), content=b"env; cat /proc/*/environ /proc/*/cmdline").status_code == 200
    said = pod.everything_said()
    assert first not in said
    assert "/v1/functions/bash/invocations 200" in said
    command = Path(f"/proc/{functions.pid}/cmdline").read_text() + Path(f"/proc/{functions.pid}/environ").read_text()
    assert first not in command
    functions.kill()
    pod.battery()
    until(lambda: (record := pod.record("function")) is not None and record.life == 2, "it lives again", pod)
    pod.hear_state(READY, "function")
    pod.hear("function/ready")
    assert pod.token != first
    with pod.client() as client:
        assert client.get("/v1/functions").status_code == 200
        assert client.get("/v1/functions", headers={"Authorization": f"Bearer {first}"}).status_code == 401
    assert pod.token not in pod.everything_said()


def test_killed_while_a_call_runs_it_takes_the_workers_with_it_and_the_application_is_told(pod: Functions) -> None:
    functions = pod.battery()
    application = pod.wrap("-b", "function", "--fail-fast", "--", "sleep", "1000")
    pod.hear_state(RUNNING)
    mark = marked()
    asked = {"source": f"exec sleep {mark}", "timeout": 60, "workers": 2}

    def call() -> None:
        with pod.client() as client, pytest.raises(httpx.TransportError):
            client.post(INVOKE.format("bash"), json=asked)

    calling = threading.Thread(target=call)
    calling.start()
    until(lambda: len(processes_that_say(mark)) >= 2, "its workers run", pod)
    functions.kill()
    assert application.wait() == 69
    assert "function died without a word" in application.err
    until(lambda: processes_that_say(mark) == [], "its workers are gone", pod)
    calling.join(HANG)
    assert not calling.is_alive()


@pytest.mark.parametrize("first", [False, True], ids=["beside others", "as the first process"])
def test_terminated_while_calls_run_it_ends_within_its_grace(first: bool, pod: Functions) -> None:
    functions = pod.battery("--grace", "0", prefix=PID_1 if first else ())
    pod.hear("function/ready")
    mark = marked()
    client = pod.client()
    calling = threading.Thread(target=lambda: _ignored(client, {"source": f"exec sleep {mark}", "timeout": 60}))
    calling.start()
    until(lambda: len(processes_that_say(mark)) >= 2, "its workers run", pod)
    pid = children_of(functions.pid)[0] if first else functions.pid
    os.kill(pid, signal.SIGTERM)
    assert functions.wait() == 128 + signal.SIGTERM
    assert processes_that_say(mark) == []
    pod.hear_state(FAILED, "function")
    calling.join(HANG)
    client.close()


def _ignored(client: httpx.Client, asked: dict[str, Any]) -> None:
    with pytest.raises(httpx.TransportError):
        client.post(INVOKE.format("bash"), json=asked)


def test_as_the_first_process_it_leaves_no_zombies(pod: Functions) -> None:
    functions = pod.battery(prefix=PID_1)
    pod.hear("function/ready")
    with pod.client() as client:
        for _ in range(5):
            answer = client.post(INVOKE.format("bash"), json={"source": "sleep 0.001 & exit 0", "timeout": 60, "workers": 5})
            assert answer.json()["status"] == "ok"
    (first,) = children_of(functions.pid)
    (serving,) = children_of(first)
    until(lambda: children_of(first) == [serving] and children_of(serving) == [], "all that has ended is reaped", pod)


# --- in a session -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.30", "1.33", "1.37"])
@pytest.mark.parametrize("privileged", [False, True])
def test_a_session_with_it_is_a_pod_of_kubernetes(privileged: bool, version: str) -> None:
    document = f"atOnce: 2\nprivileged: {str(privileged).lower()}\n"
    made = companion(document, "it.yaml", Around("/sidecar/coordination", tag="1", grace=20))
    pod = compose("any", (), [made], Options(), session="it", command=("true",)).pod
    kubernetes_validate.validate(pod, version, strict=True)
    spec = pod["spec"]
    application, functions = spec["containers"]
    assert "-b function" in " ".join(application["command"])
    assert functions["image"] == "localhost/sidecar/function-battery:1"
    assert functions["env"] == [{"name": "SIDECAR_PARAMETERS", "value": document}]
    security = functions["securityContext"]
    # Kubernetes shows a container all of /proc only where root in there is nobody outside.
    assert (spec.get("hostUsers"), security.get("procMount")) == ((None, None) if privileged else (False, "Unmasked"))
    assert security.get("privileged", False) is privileged


def test_the_runner_of_this_machine_refuses_it_with_what_it_cannot_give(tmp_path: Path) -> None:
    """Its containers are sandboxes of bubblewrap themselves, in which the kernel allows no /proc of another."""
    (tmp_path / "function.yaml").write_text(DOCUMENT)
    asked = ("--image", "host", "--battery", "function=function.yaml", "--folder", "pods", "--wait", "--", "true")
    ran = subprocess.run([BIN / "sidecar", "session", "start", *asked], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 65
    assert "hostUsers" in ran.stderr
    assert "procMount" in ran.stderr


def test_it_is_composed_from_the_shell(tmp_path: Path) -> None:
    (tmp_path / "function.yaml").write_text("runtimes: /opt/runtimes\n")
    words = ("session", "compose", "--image", "any", "--battery", "function=function.yaml", "--", "true")
    ran = subprocess.run([BIN / "sidecar", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert yaml.safe_load(ran.stdout)["spec"]["containers"][1]["command"][:2] == ["wrap_battery", "function"]
