"""Images over HTTP, of `sidecar serve` in a process of its own, with real builds and a real registry.

Whoever asks gets the same answer: the command here, the command that asks the server, and a program that speaks HTTP itself.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from factory_places import Place, gated, new_place, pod
from hypothesis import HealthCheck, settings
from processes import BIN, HANG, until
from registries import Registry, registry
from schemathesis.specs.openapi.checks import positive_data_acceptance

from sidecar.factory.factory import Factory
from sidecar.factory.records import open_records
from sidecar.session.local import LocalRunner
from sidecar.session.machine import Machine
from sidecar.web.server import Parts, application

# A step that takes so long, in milliseconds, that whoever looks sees it.
STEPS = tuple(f'RUN ["/bin/busybox", "usleep", "{50_000 + n}"]' for n in range(6))


class Server:
    """`sidecar serve` in a place's folder."""

    def __init__(self, place: Place, port: int = 0) -> None:
        words: list[str | Path] = [BIN / "sidecar", "serve", "--port", str(port), "--folder", place.folder / "sessions"]
        self.process = subprocess.Popen(words, cwd=place.folder, env=place.environment, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.url = self.process.stderr.readline().rpartition(" ")[2].strip().rstrip("/")
        # What is said after that fills no pipe.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.client = httpx.Client(base_url=self.url, trust_env=False, timeout=HANG)

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def end(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(HANG)
        self.client.close()

    def over(self, where: str) -> Any:
        """Return a work when it is over."""
        until(lambda: self.get(where)["status"] in ("COMPLETE", "FAILED"), f"{where} is over")
        return self.get(where)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with new_place(tmp_path / "place") as found:
        yield found


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Registry]:
    with registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def serve(place: Place) -> Iterator[Callable[..., Server]]:
    begun: list[Server] = []

    def begin(**more: int) -> Server:
        begun.append(Server(place, **more))
        return begun[-1]

    yield begin
    for each in begun:
        if each.process.poll() is None:
            each.end()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()


def asked(server: Server, name: str, **body: Any) -> str:
    """Ask for a build, and return where it is."""
    answer = server.client.post(f"/v1/images/{name}/builds", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.headers["Location"])


# --- how far it is -----------------------------------------------------------------------------------------------------


def test_percent_never_falls_has_values_in_between_and_is_100_of_what_is_complete_alone(place: Place, server: Server) -> None:
    context = place.image("steps", "FROM scratch", "COPY busybox /bin/", *STEPS)
    shutil.copy("/bin/busybox", context)
    where = asked(server, "steps")
    seen = []
    while True:
        told = server.get(where)
        seen.append((told["percent_complete"], told["status"], told["status_detail"]["activity"]))
        if told["status"] in ("COMPLETE", "FAILED"):
            break
    percents = [percent for percent, *_ in seen]
    assert percents == sorted(percents)
    assert {status for percent, status, _ in seen if percent == 100} == {"COMPLETE"} == {seen[-1][1]}
    assert len({percent for percent in percents if 0 < percent < 100}) >= 3
    steps = [activity for _, status, activity in seen if status == "BUILDING" and "RUN" in activity]
    assert steps == sorted(steps)
    assert all(each.startswith("STEP ") for each in steps)


def test_a_builder_that_is_killed_has_failed_at_the_next_look_and_the_next_build_succeeds(place: Place, server: Server) -> None:
    opened = gated(place)
    where = asked(server, "slow")
    until(lambda: "RUN" in server.get(where)["status_detail"]["activity"], "it is under way")
    (builder,) = place.builders()
    os.kill(builder, signal.SIGKILL)
    until(lambda: builder not in place.builders(), "the builder is dead")
    told = server.get(where)
    assert (told["status"], told["percent_complete"] < 100) == ("FAILED", True)
    assert "the builder died at STEP 3/" in told["status_detail"]["error"]
    assert place.type("status", where.rpartition("/")[2], "--json").json == told
    opened.touch()
    again = asked(server, "slow")
    assert server.over(again)["status"] == "COMPLETE"
    assert server.get(where) == told
    left = subprocess.run(["buildah", "containers", "-q"], env=place.stored(), capture_output=True, text=True, check=True)
    assert left.stdout == ""


def test_a_server_that_is_killed_has_lost_nothing_and_what_was_asked_for_goes_on(
    place: Place, serve: Callable[..., Server]
) -> None:
    opened = gated(place)
    first = serve()
    done, slow = asked(first, "app", labels={"a": "b"}), asked(first, "slow")
    complete = first.over(done)
    until(lambda: "RUN" in first.get(slow)["status_detail"]["activity"], "it is under way")
    first.end(signal.SIGKILL)
    second = serve()
    assert second.get(done) == complete
    assert second.get(slow)["status"] == "BUILDING"
    opened.touch()
    assert second.over(slow)["status"] == "COMPLETE"


# --- one answer --------------------------------------------------------------------------------------------------------


def test_fifty_that_ask_at_once_for_a_build_are_given_one(server: Server) -> None:
    with ThreadPoolExecutor(50) as many:
        found = set(many.map(lambda _: asked(server, "app"), range(50)))
    (where,) = found
    assert server.over(where)["status"] == "COMPLETE"
    assert len(server.get("/v1/builds")["builds"]) == 1


def test_the_command_here_the_command_that_asks_and_the_server_tell_the_same(
    place: Place, here: Registry, serve: Callable[..., Server]
) -> None:
    place.define(host=here.host)
    place.image("other", "FROM scratch", "COPY missing /")
    place.image("third")
    server = serve()
    works = [server.over(asked(server, name)) for name in ("app", "other")]
    pushed = server.client.post(f"/v1/builds/{works[0]['id']}/pushes", json={"provider": "here"})
    assert server.over(pushed.headers["Location"])["status"] == "COMPLETE"
    (place.images / "app" / "file").write_text("touched")

    def both(*words: str, given: str = "") -> Any:
        """Return what the command says, which is the same of a server."""
        alone = place.type(*words, given=given)
        there = place.type(*words, given=given, SIDECAR_SERVER=server.url)
        assert there == alone
        return alone

    listed = both("list", "--json").json
    assert [(each["name"], each["status"]) for each in listed] == [("app", "STALE"), ("other", "FAILED"), ("third", "NEW")]
    told = server.get("/v1/images")["images"]
    offered = ("method", "href", "body")
    stripped = [
        {**each, "actions": [{k: v for k, v in act.items() if k not in offered} for act in each["actions"]]} for each in told
    ]
    assert stripped == listed
    both("list")
    both("status")
    for each in (*works, json.loads(pushed.text)):
        assert both("status", str(each["id"]), "--json").json["id"] == each["id"]
        both("log", str(each["id"]))
    checked = both("check", "-f", "-", "--json", given=pod("localhost/sidecar/app:0.1.0", "elsewhere/x:1"))
    assert [bool(each["image"]) for each in checked.json] == [True, False]
    both("check", "-f", "-", given=pod("localhost/sidecar/app:0.1.0"))
    for wrong in (("status", "99"), ("build", "nothing"), ("push", "app", "nowhere"), ("push", "third", "here")):
        alone, there = place.type(*wrong), place.type(*wrong, SIDECAR_SERVER=server.url)
        assert (alone.status, alone.out) == (there.status, there.out)
        assert alone.err == there.err


def test_what_is_on_offer_can_be_asked_for_as_it_is_told_until_nothing_is(
    place: Place, here: Registry, serve: Callable[..., Server]
) -> None:
    place.define(host=here.host)
    server = serve()
    done = []
    while actions := server.get("/v1/images/app")["actions"]:
        for action in actions:
            answer = server.client.request(action["method"], action["href"], json=action["body"])
            assert answer.status_code == 202
            assert server.over(answer.headers["Location"])["status"] == "COMPLETE"
            done.append((action["do"], action["provider"]))
    assert done == [("build", ""), ("push", "here"), ("push", "archive")]
    at = {each["provider"]: each for each in server.get("/v1/images/app")["providers"]}
    assert {each["presence"] for each in at.values()} == {"pushed"}
    assert at["here"]["digest"] == here.digest("sidecar/app", "0.1.0")
    here.delete("sidecar/app", at["here"]["digest"])
    told = server.get("/v1/images/app")
    assert [(each["provider"], each["presence"]) for each in told["providers"]] == [("here", "absent"), ("archive", "pushed")]
    assert [(each["do"], each["provider"]) for each in told["actions"]] == [("push", "here")]
    here.stop()
    told = server.get("/v1/images/app")
    assert next(each["presence"] for each in told["providers"] if each["provider"] == "here") == "unreachable"
    assert told["actions"] == []


def test_a_build_that_hangs_is_stopped_by_whoever_asks_and_all_are_told_the_same(
    place: Place, serve: Callable[..., Server]
) -> None:
    opened = gated(place)
    server = serve()
    ways: list[Callable[[str], Any]] = [
        lambda number: server.client.delete(f"/v1/builds/{number}").json(),
        lambda number: place.type("stop", number, "--json").json,
        lambda number: place.type("stop", number, "--json", SIDECAR_SERVER=server.url).json,
    ]
    for stop in ways:
        where = asked(server, "slow")
        until(lambda where=where: "RUN" in server.get(where)["status_detail"]["activity"], "it is under way")  # type: ignore[misc]
        told = stop(where.rpartition("/")[2])
        assert (told["status"], told["status_detail"]["error"]) == ("FAILED", "stopped")
        # It is over now, and stays so whoever stops it again.
        assert [each(where.rpartition("/")[2]) for each in ways] == [told] * len(ways)
        assert server.get(where) == told
    opened.touch()
    assert server.over(asked(server, "slow"))["status"] == "COMPLETE"


def test_a_push_is_stopped_where_pushes_are_and_nothing_is_stopped_where_builds_are(
    place: Place, here: Registry, serve: Callable[..., Server]
) -> None:
    place.define(host=here.host)
    server = serve()
    build = asked(server, "app")
    server.over(build)
    # Its providers are asked before it is pushed: who does not answer them is not waited for.
    here.hang()
    push = server.client.post(f"{build}/pushes", json={"provider": "here"}).headers["Location"]
    elsewhere = server.client.delete(push.replace("pushes", "builds"))
    assert (elsewhere.status_code, elsewhere.headers["Location"]) == (307, push)
    assert server.get(push)["status"] in ("PENDING", "PUSHING")
    told = server.client.delete(push)
    assert (told.status_code, told.json()["status_detail"]["error"]) == (200, "stopped")
    assert server.client.delete("/v1/pushes/99").status_code == 404


def test_what_waits_where_no_builder_can_begin_is_stopped_by_whoever_asks(
    place: Place, serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(broken))
    server = serve()
    (broken / "sidecar").mkdir()
    (broken / "sidecar" / "__init__.py").write_text("raise RuntimeError('not installed')\n")
    ways: list[Callable[[str], Any]] = [
        lambda number: server.client.delete(f"/v1/builds/{number}").json(),
        lambda number: place.type("stop", number, "--json", PYTHONPATH="", SIDECAR_SERVER=server.url).json,
    ]
    for stop in ways:
        # It is recorded, whether somebody has seen already that no builder can begin or not.
        server.client.post("/v1/images/app/builds", json={})
        with open_records(str(place.state)) as records:
            number = str(records.find(limit=1)[0].id)
        until(lambda number=number: server.client.get(f"/v1/builds/{number}").status_code == 503, "none begins")  # type: ignore[misc]
        elsewhere = server.client.delete(f"/v1/pushes/{number}")
        assert (elsewhere.status_code, elsewhere.headers["Location"]) == (307, f"/v1/builds/{number}")
        told = stop(number)
        assert (told["status"], told["status_detail"]["error"], told["id"]) == ("FAILED", "stopped", int(number))


# --- what is refused ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_asked_for_is_refused_with_the_field_or_with_what_there_is(place: Place, server: Server) -> None:
    missing = server.client.post("/v1/images/nothing/builds", json={})
    assert (missing.status_code, missing.json()["exist"]) == (404, ["app"])
    assert server.client.get("/v1/builds/99").status_code == 404
    for body, field in (({"target": 1}, "target"), ({"target": "tar"}, "target"), ({"labels": {"a": 1}}, "labels.a")):
        refused = server.client.post("/v1/images/app/builds", json=body)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, field), refused.text
    place.image("onbuild", "FROM scratch", "ONBUILD COPY . /")
    place.define(onbuild="{target: docker}")
    assert server.client.post("/v1/images/onbuild/builds", json={"target": "oci"}).status_code in (400, 409)
    place.image("broken", "FROM scratch", "COPY missing /")
    broken = asked(server, "broken")
    assert server.over(broken)["status"] == "FAILED"
    assert server.client.post(f"{broken}/pushes", json={"provider": "archive"}).status_code == 409
    assert server.client.post(f"{broken}/pushes", json={"provider": "nowhere"}).status_code == 404
    assert server.client.post(f"{broken}/pushes", json={}).json()["errors"][0]["field"] == "provider"
    yaml = server.client.post("/v1/catalog/check", content=b"kind: Pod\nspec: [\n")
    assert yaml.status_code == 400
    assert [each["field"] for each in yaml.json()["errors"]] == ["request line 3"]
    assert server.client.post("/v1/catalog/check", content=b"kind: Pod\n").json() == {"images": []}


def test_a_number_of_the_other_kind_says_where_it_is(server: Server) -> None:
    where = asked(server, "app")
    server.over(where)
    elsewhere = server.client.get(where.replace("builds", "pushes"))
    assert (elsewhere.status_code, elsewhere.headers["Location"]) == (307, where)


def test_a_log_is_read_in_pieces_by_their_offset(server: Server) -> None:
    where = asked(server, "app")
    server.over(where)
    whole = server.client.get(f"{where}/log")
    assert "STEP 1/" in whole.text
    assert int(whole.headers["X-Next-Offset"]) == len(whole.content)
    rest = server.client.get(f"{where}/log", params={"offset": 5})
    assert rest.content == whole.content[5:]
    assert server.client.get(f"{where}/log", params={"offset": "-1"}).status_code == 400


def test_where_credentials_are_is_nobodys_affair_but_the_servers(place: Place, serve: Callable[..., Server]) -> None:
    (place.folder / "auth.json").write_text("{}")
    place.define(
        "repository: sidecar/{image}\nproviders:\n  closed: {registry: '127.0.0.1:9', plain: true, authfile: ../auth.json}\n"
    )
    told = serve().client.get("/v1/providers").text
    assert "closed" in told
    assert "auth" not in told


# --- the description ---------------------------------------------------------------------------------------------------

_FOLDER = tempfile.TemporaryDirectory(prefix="sidecar-described-")
atexit.register(_FOLDER.cleanup)


def _described() -> Any:
    place = Place(Path(_FOLDER.name) / "place")
    place.image("app")
    place.define()
    factory = Factory(str(place.images / "factory.yaml"), str(place.state))
    runner = LocalRunner(str(place.folder / "sessions"))
    parts = Parts(str(place.state), Machine(runner.folder), lambda: runner, _Kept(factory))
    return application(parts, "token")


class _Kept:
    """A factory that stays open."""

    def __init__(self, factory: Factory) -> None:
        self.factory = factory

    def __call__(self) -> Any:
        return self

    def __enter__(self) -> Factory:
        return self.factory

    def __exit__(self, *_: object) -> None:
        pass


_WHOM = {"Authorization": "Bearer token"}
schema = schemathesis.openapi.from_asgi("/openapi.json", _described(), headers=_WHOM)


@schema.include(path_regex="^/v1/(images|builds|pushes|providers|catalog)").parametrize()
@settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_what_is_described_is_so_whatever_is_asked(case: schemathesis.Case[Any]) -> None:
    # What a manifest may be, and what labels may be called, no schema says: it is refused in parts, with each fault.
    refused: Any = [positive_data_acceptance] if case.method == "POST" else []
    case.call_and_validate(headers=_WHOM, excluded_checks=refused)


def test_a_hundred_looks_at_a_time_are_answered(server: Server) -> None:
    where = asked(server, "app")
    with ThreadPoolExecutor(16) as many:
        told = list(many.map(lambda _: server.get(where)["status"], range(100)))
    assert {*told} <= {"PENDING", "BUILDING", "COMPLETE"}
    assert server.over(where)["status"] == "COMPLETE"


def test_events_tell_of_a_build_as_it_goes_on(server: Server) -> None:
    heard: list[Any] = []
    asking = threading.Event()

    def listen() -> None:
        with httpx.stream("GET", f"{server.url}/v1/events", trust_env=False, timeout=HANG) as stream:
            kind = ""
            for line in stream.iter_lines():
                kind = line.removeprefix("event: ") if line.startswith("event: ") else kind
                if kind == "ready":
                    asking.set()
                if kind == "work" and line.startswith("data: "):
                    heard.append(json.loads(line.removeprefix("data: ")))
                    if heard[-1]["status"] == "COMPLETE":
                        return

    listener = threading.Thread(target=listen)
    listener.start()
    assert asking.wait(HANG)
    where = asked(server, "app")
    listener.join(HANG)
    assert not listener.is_alive()
    assert heard[-1] == server.get(where)
