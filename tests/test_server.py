"""One server for all that goes on, and its client: sessions keep a runner's contract through both; runs, events; who may ask."""

from __future__ import annotations

import atexit
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from processes import BIN, HANG, until
from schemathesis.specs.openapi.checks import positive_data_acceptance
from served import served
from session_contract import DEAF, POLITE, Contract, container, mount, pod
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from sidecar.errors import ConfigurationError, Corrupt, ParametersError, SourceMissing, Unreachable
from sidecar.once import Ledger
from sidecar.session.folder import Folder
from sidecar.session.local import LocalRunner
from sidecar.session.machine import Machine
from sidecar.session.podman import PodmanRunner
from sidecar.session.runner import Runner
from sidecar.web.client import Client
from sidecar.web.serve import listen
from sidecar.web.server import Parts, application

TOKEN = "a token of the tests"


class Here:
    """A server of the sessions and runs of a folder."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.state, self.sessions, self.url = str(folder / "state"), str(folder / "sessions"), url
        self.runner = LocalRunner(self.sessions, backoff=0.05)

    def application(self, token: str = "") -> Any:
        return application(Parts(self.state, Machine(self.sessions), lambda: self.runner), token)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    found = Here(tmp_path)
    with served(found.application()) as found.url:
        yield found
    for each in found.runner.list():
        with suppress(SourceMissing, Corrupt):
            found.runner.stop(each.name, 0)


@pytest.fixture
def client(here: Here) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=here.url, trust_env=False, timeout=HANG) as client:
        yield client


class TestSessionsOverHttp(Contract):
    """Who asks a server has a runner as any other."""

    @pytest.fixture
    def runner(self, here: Here) -> Runner:
        return Client(here.url).sessions

    @pytest.fixture
    def base(self) -> str:
        return "host"


# --- sessions ----------------------------------------------------------------------------------------------------------


def begun(client: httpx.Client, script: str, **more: Any) -> Any:
    answer = client.post("/v1/sessions", json={"pod": pod(container("application", "host", script, **more))})
    assert answer.status_code == 201, answer.text
    return answer


def test_a_session_is_begun_shown_and_ended(client: httpx.Client) -> None:
    answer = begun(client, "echo it; exec sleep 300")
    where = answer.headers["Location"]
    until(lambda: client.get(where).json()["phase"] == "Running", "it runs")
    assert [each["name"] for each in client.get("/v1/sessions").json()["sessions"]] == [answer.json()["name"]]
    until(lambda: client.get(f"{where}/logs/application").content == b"it\n", "it has written")
    (stop,) = client.get(where).json()["actions"]
    ended = client.request(stop["method"], stop["href"], params={"grace": 0})
    assert (ended.status_code, ended.json()["actions"]) == (200, [])
    assert client.get(where).status_code == 404


def test_a_manifest_that_is_none_is_refused_with_each_fault(client: httpx.Client) -> None:
    answer = client.post("/v1/sessions", json={"pod": {"kind": "Pod"}})
    assert answer.status_code == 400
    assert all(each["message"] for each in answer.json()["errors"])
    assert client.post("/v1/sessions", json={}).json()["errors"] == [
        {"field": "pod", "message": "expected a manifest, it is missing"}
    ]
    assert client.post("/v1/sessions", content=b"{").status_code == 400
    assert client.post("/v1/sessions", content=rb'{"pod": 1, "\ud800": ["\udfff"]}').status_code == 400


def test_what_is_missing_is_told_with_what_there_is(client: httpx.Client) -> None:
    name = begun(client, "true").json()["name"]
    answer = client.get("/v1/sessions/nobody")
    assert (answer.status_code, answer.json()["exist"]) == (404, [name])
    assert client.get(f"/v1/sessions/{name}/coordination").status_code == 404


def test_who_is_how_far_and_waits_for_whom_is_told_of_a_session(client: httpx.Client) -> None:
    words = [sys.executable, "-m", "sidecar.cli.wrap_application", "-c", "/coord", "-b", "fuse", "--", "true"]
    # Wherever the checkout is: a container has a /tmp of its own.
    top = str(Path(__file__).parent.parent)
    volumes = [{"name": "meeting", "emptyDir": {}}, {"name": "top", "hostPath": {"path": top}}]
    mounts = [mount("meeting", "/coord"), mount("top", top, readOnly=True)]
    waits = {"name": "application", "image": "host", "command": words, "volumeMounts": mounts}
    where = client.post("/v1/sessions", json={"pod": pod(waits, volumes=volumes)}).headers["Location"]
    until(lambda: client.get(f"{where}/coordination").status_code == 200, "somebody has said something")

    def waited() -> Any:
        told = client.get(f"{where}/coordination").json()["participants"]
        return [(each["name"], wait["for"]) for each in told for wait in each["waits"]]

    until(lambda: waited() == [("application", "fuse")], "the application waits for its battery")


def test_whoever_ends_many_sessions_keeps_nobody_from_asking(here: Here, client: httpx.Client) -> None:
    where = begun(client, DEAF).headers["Location"]
    until(lambda: client.get(f"{where}/logs/application").content == b"ready\n", "it does not hear")
    answers: Queue[int] = Queue()

    def end() -> None:
        answers.put(httpx.delete(f"{here.url}{where}", params={"grace": 3600}, trust_env=False, timeout=None).status_code)

    # One more than the threads that answer all else.
    enders = [threading.Thread(target=end) for _ in range(41)]
    try:
        for each in enders:
            each.start()
        assert [answers.get(timeout=HANG) for _ in range(9)] == [429] * 9
        assert client.get(where).status_code == 200
    finally:
        with suppress(SourceMissing):  # one of those that ended it was sooner
            here.runner.stop(where.rpartition("/")[2], 0)
        for each in enders:
            each.join(HANG)
    assert {answers.get_nowait() for _ in range(32)} <= {200, 404}
    # Whoever was waited for is done: another may be ended.
    where = begun(client, "true").headers["Location"]
    assert client.delete(where).status_code == 200


def test_a_grace_that_nobody_waits_for_is_refused_before_anything_is_ended(client: httpx.Client) -> None:
    where = begun(client, "exec sleep 300").headers["Location"]
    until(lambda: client.get(where).json()["phase"] == "Running", "it runs")
    for grace in ("3601", "1000000000000", "-1", "1.5", "soon"):
        answer = client.delete(where, params={"grace": grace})
        assert (answer.status_code, [each["field"] for each in answer.json()["errors"]]) == (400, ["grace"])
    assert client.get(where).json()["phase"] == "Running"


def test_of_two_who_end_a_session_at_once_one_is_told_how_it_ended_and_the_other_that_there_is_none(
    here: Here, client: httpx.Client
) -> None:
    where = begun(client, POLITE).headers["Location"]
    until(lambda: client.get(f"{where}/logs/application").content == b"ready\n", "it hears")
    with ThreadPoolExecutor(2) as two:
        answers = list(two.map(lambda _: client.delete(where, params={"grace": 60}).status_code, range(2)))
    assert sorted(answers) == [200, 404]
    assert client.get("/v1/sessions").json()["sessions"] == []


def test_of_what_a_container_wrote_any_piece_is_told_and_where_the_next_begins(client: httpx.Client) -> None:
    where = begun(client, "printf 0123456789").headers["Location"]
    until(lambda: client.get(where).json()["phase"] == "Succeeded", "it has written")

    def told(**query: int) -> tuple[bytes, str]:
        answer = client.get(f"{where}/logs/application", params=query)
        return answer.content, answer.headers["X-Next-Offset"]

    assert told() == (b"0123456789", "10")
    assert told(offset=4) == (b"456789", "10")
    assert told(last=3) == told(offset=7) == told(offset=4, last=3) == (b"789", "10")
    assert told(offset=8, last=3) == (b"89", "10")
    assert told(last=11) == (b"0123456789", "10")
    assert told(last=0) == told(offset=10) == told(offset=2**63 - 1) == (b"", "10")
    for query in ({"last": "-1"}, {"last": "all"}, {"offset": "-1"}):
        answer = client.get(f"{where}/logs/application", params=query)
        assert (answer.status_code, [each["field"] for each in answer.json()["errors"]]) == (400, list(query))


def test_what_stands_before_a_piece_is_not_read(here: Here, client: httpx.Client) -> None:
    answer = begun(client, "true")
    name, where = answer.json()["name"], answer.headers["Location"]
    until(lambda: client.get(where).json()["phase"] == "Succeeded", "it has ended")
    # To read as much would take longer than anybody waits; it takes no room.
    size = 1 << 40
    with open(Folder(os.path.join(here.sessions, name)).log("application"), "r+b") as log:
        log.truncate(size)
        log.seek(size - 3)
        log.write(b"end")
    for query in ({"offset": size - 3}, {"last": 3}):
        piece = client.get(f"{where}/logs/application", params=query)
        assert (piece.content, piece.headers["X-Next-Offset"]) == (b"end", str(size))
    piece = client.get(f"{where}/logs/application")
    assert (len(piece.content), piece.headers["X-Next-Offset"]) == (1 << 20, str(1 << 20))


def test_a_server_is_sent_what_its_runner_takes_whichever_that_is(here: Here, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "run").write_text("#!/bin/sh\necho it runs\nexit 7\n")
    (artifact / "run").chmod(0o755)
    (tmp_path / "catalog.yaml").write_text(f'artifacts: {{it: {{image: "{artifact}", mountPath: /it, executable: ./run}}}}\n')
    words = ["--image", "host", "--catalog", str(tmp_path / "catalog.yaml"), "--artifact", "it", "--wait"]

    def start(url: str) -> tuple[int, str, str]:
        command: list[str | Path] = [BIN / "sidecar", "--server", url, "session", "start", *words]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG)
        return ran.returncode, ran.stdout, ran.stderr

    assert start(here.url) == (7, "it runs\n", "")
    # It looks for its podman once it takes the pod.
    podman = PodmanRunner(here.sessions, podman=("no-such-podman",))
    with served(application(Parts(here.state, Machine(here.sessions), lambda: podman))) as url:
        status, out, told = start(url)
        assert (status, out) == (78, "")
        assert "no-such-podman is needed" in told
        assert (Client(url).sessions.image_volumes, Client(here.url).sessions.image_volumes) == (False, True)


# --- runs --------------------------------------------------------------------------------------------------------------


def test_what_ran_once_is_told_with_what_it_wrote(here: Here, client: httpx.Client) -> None:
    assert client.get("/v1/runs").json() == {"runs": [], "before": 0}
    with Ledger(here.state) as ledger:
        ledger.run_once("a/b", ["sh", "-c", "echo out; echo err >&2; exit 3"], instance="here/there")
    (run,) = client.get("/v1/runs").json()["runs"]
    assert (run["name"], run["instance"], run["exit_code"]) == ("a/b", "here/there", 3)
    named = {"name": "a/b", "instance": "here/there"}
    assert client.get("/v1/runs/one", params=named).json() == run
    assert client.get("/v1/runs/log", params={**named, "source": "stderr"}).content == b"err\n"
    assert sorted(client.get("/v1/runs/log", params=named).content.splitlines()) == [b"err", b"out"]
    assert client.get("/v1/runs/one", params={**named, "name": "c"}).status_code == 404
    assert client.get("/v1/runs/log", params={**named, "source": "both"}).status_code == 400
    assert [each["field"] for each in client.get("/v1/runs/one").json()["errors"]] == ["instance", "name"]


def test_of_what_a_run_wrote_any_piece_is_told_and_where_the_next_begins(here: Here, client: httpx.Client) -> None:
    script = "import os\nfor each in ((1, b'012'), (2, b'ab'), (1, b'345'), (2, b'cd')): os.write(*each)"
    with Ledger(here.state) as ledger:
        ledger.run_once("it", [sys.executable, "-c", script], instance="here")

    def told(**query: Any) -> tuple[bytes, str]:
        answer = client.get("/v1/runs/log", params={"instance": "here", "name": "it", **query})
        return answer.content, answer.headers["X-Next-Offset"]

    whole, _ = told()
    assert (len(whole), told(source="stdout"), told(source="stderr")) == (10, (b"012345", "6"), (b"abcd", "4"))
    for offset in range(11):
        assert told(offset=offset) == (whole[offset:], "10")
        assert told(last=offset) == (whole[10 - offset :], "10")
    assert told(offset=8, last=4) == (whole[8:], "10")
    assert told(offset=3, last=4, source="stdout") == (b"345", "6")
    assert told(offset=2**63 - 1) == told(last=0) == (b"", "10")
    assert told(last=2**63 - 1) == (whole, "10")
    for query in ({"last": "-1"}, {"offset": "all"}):
        answer = client.get("/v1/runs/log", params={"instance": "here", "name": "it", **query})
        assert (answer.status_code, [each["field"] for each in answer.json()["errors"]]) == (400, list(query))


def test_of_much_that_a_run_wrote_a_piece_is_told(here: Here, client: httpx.Client) -> None:
    with Ledger(here.state) as ledger:
        ledger.run_once("it", ["sh", "-c", "seq 400000"], instance="here")
    written, offset = b"", 0
    while piece := client.get("/v1/runs/log", params={"instance": "here", "name": "it", "offset": offset}).content:
        assert len(piece) <= 1 << 20
        written, offset = written + piece, offset + len(piece)
    assert written.split() == [str(number).encode() for number in range(1, 400_001)]


def test_bytes_that_are_no_characters_are_told_all_the_same(here: Here, client: httpx.Client) -> None:
    with Ledger(here.state) as ledger:
        ledger.run_once("odd", ["true", "\udcff"], instance="here")
    answer = client.get("/v1/runs")
    assert (answer.status_code, answer.json()["runs"][0]["command"]) == (200, ["true", "\udcff"])


@pytest.mark.parametrize("number", ["0" * 20 + "9" * 40, "9" * 5000, "9223372036854775808", "-1", "1.5", "٣"])
def test_a_number_that_is_none_is_refused(client: httpx.Client, number: str) -> None:
    assert client.get("/v1/sessions/x/logs/y", params={"offset": number}).status_code == 400


# --- events ------------------------------------------------------------------------------------------------------------


class Listener:
    """Listens to the events in a thread, from the first on."""

    def __init__(self, url: str) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.over = threading.Event()
        self._url = url
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        with httpx.stream("GET", f"{self._url}/v1/events", trust_env=False, timeout=HANG) as stream:
            kind = ""
            for line in stream.iter_lines():
                word, _, said = line.partition(": ")
                kind = said if word == "event" else kind
                if word == "data":
                    self.heard.append((kind, json.loads(said)))
                if self.over.is_set():
                    return

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.heard]

    def join(self) -> None:
        self._thread.join(HANG)
        assert not self._thread.is_alive()


def test_what_changes_is_told_as_it_changes(here: Here) -> None:
    with Ledger(here.state) as ledger:
        ledger.run_once("first", ["true"], instance="here")
    listener = Listener(here.url)
    until(lambda: listener.kinds() == ["run", "ready"], "what there was is told")
    with Ledger(here.state) as ledger:
        ledger.run_once("second", ["true"], instance="here")
    until(lambda: listener.kinds()[2:] == ["run"], "the other is told, and the first is not told again")
    with httpx.Client(base_url=here.url, trust_env=False, timeout=HANG) as client:
        name = begun(client, "true").json()["name"]
        until(lambda: ("session", "Succeeded") in [(kind, told.get("phase")) for kind, told in listener.heard], "it has ended")
        client.delete(f"/v1/sessions/{name}")
    until(lambda: listener.heard[-1] == ("gone", {"kind": "session", "id": name}), "it is gone")
    listener.over.set()
    with Ledger(here.state) as ledger:
        ledger.run_once("third", ["true"], instance="here")
    listener.join()


def test_a_session_whose_directory_cannot_be_read_hides_no_other(here: Here) -> None:
    with httpx.Client(base_url=here.url, trust_env=False, timeout=HANG) as client:
        script = "mkdir -p /coord/.sidecar/participants; mkfifo /coord/.sidecar/participants/application.json; exec sleep 300"
        names = [
            begun(client, script, volumeMounts=[mount("c", "/coord")]).json()["name"],
            begun(client, "exec sleep 300").json()["name"],
        ]
        broken = Path(here.sessions, names[0], "volumes", "c")
        until(lambda: (broken / ".sidecar" / "participants" / "application.json").exists(), "it has made it")
        (broken / ".sidecar").rename(broken / "kept")
        (broken / ".sidecar").mkdir()
        (broken / ".sidecar" / "participants").write_text("no directory")
        listener = Listener(here.url)
        until(lambda: "ready" in listener.kinds(), "all is told")
        assert {told["name"] for kind, told in listener.heard if kind == "session"} == {*names}
        for each in names:
            client.delete(f"/v1/sessions/{each}", params={"grace": 0})
        listener.over.set()
        listener.join()


def test_who_listens_does_not_keep_a_server_from_ending(tmp_path: Path) -> None:
    with served(Here(tmp_path).application()) as url:
        listener = Listener(url)
        until(lambda: listener.kinds() == ["ready"], "it listens")
    listener.join()


# --- who may ask -------------------------------------------------------------------------------------------------------

ASK = "import urllib.request as u; print(u.urlopen(u.Request('{}/v1/runs')).status)"


def ask_as(user: int, url: str) -> subprocess.CompletedProcess[str]:
    """Ask as another user of this machine, in a process of theirs."""
    words = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups", "/usr/bin/python3", "-I", "-c"]
    return subprocess.run([*words, ASK.format(url)], capture_output=True, text=True, check=False, env={"no_proxy": "*"}, cwd="/")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes others")
def test_without_a_token_other_users_of_the_machine_may_not_ask(here: Here) -> None:
    assert ask_as(0, here.url).stdout == "200\n"
    refused = ask_as(60_000, here.url)
    assert "403" in refused.stderr
    assert httpx.get(f"{here.url}/healthz", trust_env=False).status_code == 204


# Whoever closes at once hears no answer, and need not: what they asked for would be begun.
CLOSE = """
import socket, sys
for _ in range(200):
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
        connection.sendall(sys.argv[2].encode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes others")
@pytest.mark.parametrize("header", ["", "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n"])
def test_another_user_who_closes_at_once_has_nothing_begun(here: Here, client: httpx.Client, header: str) -> None:
    body = json.dumps({"pod": pod(container("application", "host", "true"), name="planted")})
    head = f"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}Content-Length: {len(body)}\r\n\r\n"
    words = ["setpriv", "--reuid", "60000", "--regid", "60000", "--clear-groups", "/usr/bin/python3", "-I", "-c", CLOSE]
    subprocess.run([*words, here.url.rpartition(":")[2], head + body], check=True, cwd="/")
    assert client.get("/v1/sessions").json()["sessions"] == []


def test_what_is_in_a_sandbox_of_a_session_may_not_ask(here: Here, client: httpx.Client) -> None:
    asks = f"/usr/bin/python3 -I -c {shlex.quote(ASK.format(here.url))}"
    where = begun(client, asks, env=[{"name": "no_proxy", "value": "*"}]).headers["Location"]
    until(lambda: client.get(where).json()["phase"] == "Failed", "it was refused")
    assert "403" in client.get(f"{where}/logs/application").text


def test_a_program_whose_sockets_are_of_both_kinds_may_ask(here: Here) -> None:
    with socket.socket(socket.AF_INET6) as both:
        both.connect(("::ffff:127.0.0.1", int(here.url.rpartition(":")[2])))
        both.sendall(b"GET /v1/runs HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        assert both.recv(4096).startswith(b"HTTP/1.1 200")


def test_any_address_of_the_loopback_is_a_host_of_its_own(here: Here) -> None:
    asked = [
        httpx.get(f"{here.url}/v1/runs", headers={"Host": host}, trust_env=False) for host in ("127.0.0.2:80", "far.example")
    ]
    assert [each.status_code for each in asked] == [200, 403]


def test_with_a_token_it_is_asked_for(tmp_path: Path) -> None:
    with served(Here(tmp_path).application(TOKEN)) as url:
        assert httpx.get(f"{url}/v1/runs", trust_env=False).status_code == 401
        assert httpx.get(f"{url}/", trust_env=False).status_code == 200
        with pytest.raises(ConfigurationError, match="SIDECAR_TOKEN"):
            Client(url).sessions.list()
        assert Client(url, TOKEN).sessions.list() == []


# --- the client --------------------------------------------------------------------------------------------------------


def test_what_a_server_refuses_is_raised_as_the_library_would(here: Here) -> None:
    client = Client(here.url)
    with pytest.raises(SourceMissing) as missing:
        client.sessions.status("nobody")
    assert list(missing.value.exist) == []
    with pytest.raises(ParametersError):
        client.sessions.start({"kind": "Pod"})
    with pytest.raises(SourceMissing, match="/v1/images is not served there"):
        client.images.images()


@pytest.mark.parametrize("name", ["\udcff", "a\nb", "é", "..", "a b", "%2e"])
def test_whatever_a_session_is_called_it_is_asked_for_by_that_name(here: Here, name: str) -> None:
    with pytest.raises(SourceMissing):
        Client(here.url).sessions.status(name)


@pytest.mark.parametrize(("token", "url"), [("a\nb", ""), ("☃", ""), ("", "http://.example:80")])
def test_what_no_request_can_say_is_told_without_the_token(here: Here, token: str, url: str) -> None:
    with pytest.raises((ConfigurationError, Unreachable)) as told:
        Client(url or here.url, token).sessions.list()
    assert not token or token not in str(told.value)


def test_a_token_with_the_end_of_its_line_is_the_token(tmp_path: Path) -> None:
    environment = {**os.environ, "SIDECAR_TOKEN": f"{TOKEN.replace(' ', '-')}\n"}
    with served(Here(tmp_path).application(TOKEN.replace(" ", "-"))) as url:
        words: list[str | Path] = [BIN / "sidecar", "--server", url, "session", "list", "--json"]
        ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr
        ran = subprocess.run(words, env={**environment, "SIDECAR_TOKEN": "a\nb"}, capture_output=True, text=True, check=False)
    assert ran.returncode == 78
    assert "a\nb" not in ran.stderr


def test_what_is_no_server_of_ours_is_told() -> None:
    with pytest.raises(ConfigurationError, match="is no address"):
        Client("ftp://x")
    with pytest.raises(Unreachable, match="Connection refused"):
        Client("http://127.0.0.1:1").sessions.list()
    odd = ["", "null", "[]", "{}", '{"sessions": 1}', '{"sessions": [{}]}', "<html>", '{"sessions": [{"containers": [1]}]}']
    for body in odd:
        other = Starlette(routes=[Route("/v1/sessions", lambda _, body=body: Response(body))])
        with served(other) as url, pytest.raises(Corrupt, match="is that a server of this version"):
            Client(url).sessions.list()


# --- the description ---------------------------------------------------------------------------------------------------

_FOLDER = tempfile.TemporaryDirectory(prefix="sidecar-described-")
atexit.register(_FOLDER.cleanup)
_DESCRIBED = Here(Path(_FOLDER.name)).application(TOKEN)
_WHOM = {"Authorization": f"Bearer {TOKEN}"}
schema = schemathesis.openapi.from_asgi("/openapi.json", _DESCRIBED, headers=_WHOM)


# What has no end is not asked for: what it tells is looked at above.
@schema.exclude(path="/v1/events").parametrize()
@settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_what_is_described_is_so_whatever_is_asked(case: schemathesis.Case[Any]) -> None:
    # What a pod's manifest may be no schema says: Kubernetes' own is refused in parts, with each fault.
    refused: Any = [positive_data_acceptance] if case.path == "/v1/sessions" else []
    case.call_and_validate(headers=_WHOM, excluded_checks=refused)


def test_an_answer_is_sent_at_once_and_waits_for_no_acknowledgement() -> None:
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
