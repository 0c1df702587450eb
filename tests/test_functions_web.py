"""The function service over HTTP: what is asked, what is answered, who may ask; of a server in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from processes import BIN, HANG, processes_that_say, until

from sidecar.functions.answer import Limits
from sidecar.functions.runtimes import find_runtimes
from sidecar.functions.service import Service
from sidecar.web.functions import application

RUNTIMES = Path(__file__).parent.parent / "images" / "runtimes"
TOKEN = "a token of the tests"
INVOKE = "/v1/functions/{}/invocations"
ANYTHING = {"timeout": 60}


class Server:
    """`sidecar function serve`, in a process of its own."""

    def __init__(self, *words: str, **variables: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        environment = {**os.environ, "SIDECAR_RUNTIMES": str(RUNTIMES), **variables}
        command: list[str | Path] = [BIN / "sidecar", "function", "serve", "--port", str(self.port), *words]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        self.url = f"http://127.0.0.1:{self.port}"
        until(self._answers, "it answers")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
        try:
            return httpx.get(f"{self.url}/healthz", trust_env=False).status_code == 204
        except httpx.TransportError:
            return False

    def client(self, token: str = "") -> httpx.Client:
        """Return a client of it, that waits as long as anything may take."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=HANG)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(HANG)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client of a server that all tests of a module share."""
    begun = Server("--most", "100")
    with begun.client() as client:
        yield client
    assert begun.end() == 0


@pytest.fixture
def server() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def begin(*words: str, **variables: str) -> Server:
        servers.append(Server(*words, **variables))
        return servers[-1]

    yield begin
    for each in servers:
        if each.process.poll() is None:
            each.end()


def call(client: Any, function: str, source: str, **more: Any) -> Any:
    return client.post(INVOKE.format(function), json={"source": source, **ANYTHING, **more})


def fields(response: Any) -> list[str]:
    return [each["field"] for each in response.json()["errors"]]


# --- what is answered --------------------------------------------------------------------------------------------------


def test_a_source_is_posted_as_it_is_and_its_output_comes_back(client: httpx.Client) -> None:
    answer = client.post(INVOKE.format("bash"), content=b"echo $((6*7)); exit 3", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 200
    said = answer.json()
    assert (said["language"], said["version"], said["status"], said["code"], said["stdout"]) == (
        "bash",
        "5.2",
        "error",
        3,
        "42\n",
    )
    assert len(answer.headers["X-Call-Id"]) == 36
    assert float(answer.headers["X-Duration-Seconds"]) > 0


def test_arguments_input_and_context_are_said_in_json(client: httpx.Client) -> None:
    source = 'printf "[%s]" "$@"; cat; printf "%s" "$CONTEXT"'
    answer = call(client, "bash:5", source, args=["a b", "é"], stdin="in", context={"x": [1, "é"]}, workers=1)
    assert answer.json()["stdout"] == '[a b][é]in{"x": [1, "é"]}'
    assert [each["worker"] for each in answer.json()["workers"]] == [1]


def test_functions_are_listed(client: httpx.Client) -> None:
    listed = {each["language"]: each["versions"] for each in client.get("/v1/functions").json()["functions"]}
    assert listed["bash"] == ["5.2"]


def test_it_lives_and_is_ready_when_there_are_runtimes(
    client: httpx.Client, server: Callable[..., Server], tmp_path: Path
) -> None:
    assert [client.get(path).status_code for path in ("/healthz", "/readyz")] == [204, 204]
    with server("--runtimes", str(tmp_path)).client() as empty:
        assert [empty.get(path).status_code for path in ("/healthz", "/readyz")] == [204, 503]


def test_calls_and_workers_are_measured(server: Callable[..., Server]) -> None:
    with server().client() as client:
        call(client, "bash", "exit 0")
        call(client, "cobol", "exit 0")
        lines = client.get("/metrics").text.splitlines()
    assert 'sidecar_function_calls_total{language="bash",status="ok",version="5.2"} 1.0' in lines
    assert 'sidecar_function_refused_total{code="404"} 1.0' in lines
    assert 'sidecar_function_seconds_count{language="bash",version="5.2"} 1.0' in lines


# --- what is refused ---------------------------------------------------------------------------------------------------


def test_a_function_that_is_not_there_is_404_with_those_that_are(client: httpx.Client) -> None:
    answer = call(client, "cobol", "x")
    assert (answer.status_code, fields(answer)) == (404, ["function"])
    assert {each["language"] for each in answer.json()["functions"]} >= {"bash", "perl", "python"}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, ["source"]),
        ({"source": 1, "args": "x", "stdin": [], "timeout": "1", "workers": 1.5, "colour": 1},
         ["colour", "source", "stdin", "args", "timeout", "workers"]),
        ({"source": "x", "timeout": 0}, ["timeout"]),
        ({"source": "x", "timeout": 61}, ["timeout"]),
        ({"source": "x", "timeout": True}, ["timeout"]),
        ({"source": "x", "workers": 0}, ["workers"]),
        ({"source": "x", "workers": 6, "delay": -1}, ["workers", "delay"]),
        ({"source": "x", "args": ["\0"]}, ["args"]),
        ({"source": "x", "args": ["x" * 70000]}, ["args"]),
        ({"source": "x", "context": "x" * 70000}, ["context"]),
        ({"source": ""}, ["source"]),
        ({"source": None, "args": None, "stdin": None, "timeout": None, "context": None},
         ["source", "stdin", "args", "timeout"]),
        ([], ["body"]),
    ],
)  # fmt: skip
def test_what_is_not_of_its_form_is_400_with_each_field(client: httpx.Client, body: Any, named: list[str]) -> None:
    answer = client.post(INVOKE.format("bash"), json=body)
    assert (answer.status_code, fields(answer)) == (400, named)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"NaN", b'{"source": "\xff"}', b'{"source": "\\ud800"}', b"[" * 100_000, b'{"timeout": 1e999}']
)
def test_what_is_no_json_is_400(client: httpx.Client, body: bytes) -> None:
    answer = client.post(INVOKE.format("bash"), content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def test_what_is_neither_text_nor_json_is_415_and_what_is_too_large_413(client: httpx.Client) -> None:
    url = INVOKE.format("bash")
    assert client.post(url, content=b"x", headers={"Content-Type": "image/png"}).status_code == 415
    assert client.post(url, content=b"#" * ((1 << 20) + 1), headers={"Content-Type": "text/plain"}).status_code == 413
    chunks = (b"#" * 65536 for _ in range(17))
    assert client.post(url, content=chunks, headers={"Content-Type": "text/plain"}).status_code == 413
    assert client.post(url, content=b"#" * (1 << 20), headers={"Content-Type": "text/plain"}).status_code == 200


def test_what_is_to_run_once_is_409_for_it_is_run_twice_on_purpose(client: httpx.Client) -> None:
    answer = client.post(INVOKE.format("bash"), content=b"x", headers={"Idempotency-Key": "1"})
    assert (answer.status_code, fields(answer)) == (409, ["Idempotency-Key"])


def test_what_another_page_has_a_browser_ask_is_refused(client: httpx.Client) -> None:
    url = INVOKE.format("bash")
    plain = {"Content-Type": "text/plain"}
    assert client.post(url, content=b"", headers={**plain, "Origin": "http://evil.example"}).status_code == 403
    assert client.post(url, content=b"", headers={**plain, "Origin": "null"}).status_code == 403
    assert client.post(url, content=b"", headers={**plain, "Origin": "http://[evil"}).status_code == 403
    for host in ("evil.example", "[", "[::1", "localhost.evil.example", ""):
        assert client.post(url, content=b"", headers={**plain, "Host": host}).status_code == 403
    assert client.post(url, content=b"true", headers={**plain, "Origin": str(client.base_url).rstrip("/")}).status_code == 200


def test_who_does_not_know_the_token_is_401_everywhere_but_where_nothing_is_told(server: Callable[..., Server]) -> None:
    with server(SIDECAR_TOKEN=TOKEN).client() as client:
        asked: tuple[Callable[[dict[str, str]], httpx.Response], ...] = (
            lambda headers: client.get("/v1/functions", headers=headers),
            lambda headers: client.get("/metrics", headers=headers),
            lambda headers: client.post(INVOKE.format("bash"), content=b"true", headers=headers),
        )
        for ask in asked:
            for wrong in ("", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN):
                answer = ask({"Authorization": wrong, "Host": "far.example"} if wrong else {})
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert ask({"Authorization": f"bearer {TOKEN}", "Host": "far.example"}).status_code == 200
        assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/openapi.json", "/")] == [204, 204, 200, 200]


def test_who_sends_much_and_does_not_know_the_token_is_told_why(server: Callable[..., Server]) -> None:
    begun = server(SIDECAR_TOKEN=TOKEN)
    with socket.create_connection(("127.0.0.1", begun.port), timeout=HANG) as connection:
        head = f"POST {INVOKE.format('bash')} HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n"
        connection.sendall(head.encode())
        # Two thirds are sent long after it was refused, if it was refused at once.
        for _ in range(3):
            connection.sendall(b"#" * 166_000)
            time.sleep(0.05)
        connection.sendall(b"#" * 2000)
        assert connection.recv(4096).startswith(b"HTTP/1.1 401")


def test_the_page_lets_nothing_be_asked_of_others(client: httpx.Client) -> None:
    page = client.get("/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "innerHTML" not in page.text
    assert "://" not in page.text


# --- the description ---------------------------------------------------------------------------------------------------

_APPLICATION = application(Service(find_runtimes([str(RUNTIMES)]), limits=Limits(wall=1.0)))
_WHOM = {"Host": "localhost"}
schema = schemathesis.openapi.from_asgi("/openapi.json", _APPLICATION, headers=_WHOM)


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_described_is_so_whatever_is_asked(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(headers=_WHOM)


# --- a server ----------------------------------------------------------------------------------------------------------


def test_a_server_answers_and_ends_when_it_is_asked_to(server: Callable[..., Server]) -> None:
    begun = server()
    with begun.client() as client:
        assert call(client, "bash", "echo it").json()["stdout"] == "it\n"
    assert begun.end() == 0


def test_a_call_whose_client_has_gone_is_ended(server: Callable[..., Server]) -> None:
    begun = server()
    token = f"attacked-{os.getpid()}-{os.urandom(4).hex()}"
    body = json.dumps({"source": f"exec -a {token} sleep 600", **ANYTHING}).encode()
    with socket.create_connection(("127.0.0.1", begun.port)) as client:
        head = f"POST {INVOKE.format('bash')} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: len(processes_that_say(token)) >= 2, "both workers run")
    until(lambda: processes_that_say(token) == [], "they are ended")
    # That is nobody's fault, and no error of the server's.
    with begun.client() as client:
        until(lambda: 'sidecar_function_refused_total{code="499"} 1.0' in client.get("/metrics").text, "it is counted")
    begun.process.send_signal(signal.SIGTERM)
    assert begun.process.stderr is not None
    told = begun.process.stderr.read()
    assert b"499" in told
    assert b"Traceback" not in told
    assert begun.process.wait(HANG) == 0


def test_when_as_many_calls_run_as_may_another_one_is_429(server: Callable[..., Server]) -> None:
    begun = server("--most", "1")
    token = f"attacked-{os.getpid()}-{os.urandom(4).hex()}"
    body = json.dumps({"source": f"exec -a {token} sleep 600", **ANYTHING}).encode()
    with socket.create_connection(("127.0.0.1", begun.port)) as client:
        head = f"POST {INVOKE.format('bash')} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: bool(processes_that_say(token)), "it runs")
        answer = httpx.post(begun.url + INVOKE.format("bash"), content=b"true", trust_env=False)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    until(
        lambda: httpx.post(begun.url + INVOKE.format("bash"), content=b"true", trust_env=False).status_code == 200,
        "there is room again",
    )


def test_a_server_that_others_can_reach_needs_a_token(tmp_path: Path) -> None:
    environment = {**os.environ, "SIDECAR_RUNTIMES": str(RUNTIMES)}
    environment.pop("SIDECAR_TOKEN", None)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.com"):
        ran = subprocess.run(
            [BIN / "sidecar", "function", "serve", "--host", host], env=environment, capture_output=True, timeout=HANG
        )
        assert (ran.returncode, b"expected a token" in ran.stderr) == (78, True)
    (tmp_path / "empty").write_text("\n")
    words: list[str | Path] = [BIN / "sidecar", "function", "serve", "--token-file", tmp_path / "empty"]
    assert subprocess.run(words, env=environment, capture_output=True, timeout=HANG).returncode == 78


def test_the_token_is_asked_for_and_stands_on_no_command_line(server: Callable[..., Server], tmp_path: Path) -> None:
    secret = f"token-{os.urandom(8).hex()}"
    (tmp_path / "token").write_text(secret + "\n")
    begun = server("--host", "127.0.0.1", "--token-file", str(tmp_path / "token"))
    assert httpx.get(f"{begun.url}/v1/functions", trust_env=False).status_code == 401
    known = {"Authorization": f"Bearer {secret}"}
    assert httpx.get(f"{begun.url}/v1/functions", headers=known, trust_env=False).status_code == 200
    assert processes_that_say(secret) == []


def test_an_address_that_is_taken_is_74(server: Callable[..., Server]) -> None:
    begun = server()
    environment = {**os.environ, "SIDECAR_RUNTIMES": str(RUNTIMES)}
    words: list[str | Path] = [BIN / "sidecar", "function", "serve", "--port", str(begun.port)]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=HANG)
    assert ran.returncode == 74
    assert f"127.0.0.1:{begun.port} cannot be listened to" in ran.stderr


def test_many_calls_at_once_are_answered_each_with_its_own(client: httpx.Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: call(client, "bash", f"echo {number}").json()["stdout"], range(24)))
    assert answers == [f"{number}\n" for number in range(24)]
