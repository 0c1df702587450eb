"""The page of the whole server, in a real browser: what it shows of images, sessions and runs, and what nobody may do to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from browser import PHONE, Tab, contrast
from playwright.sync_api import Locator, Page, expect
from processes import BIN, HANG, HOST, LONG, WRAP, processes_that_say, until
from registries import Registry, registry
from session_contract import POLITE, container, mount, pod

from sidecar.errors import SidecarError, SourceMissing
from sidecar.factory.buildah import Buildah
from sidecar.factory.factory import Factory
from sidecar.functions.service import Service
from sidecar.once.ledger import Ledger
from sidecar.session.local import LocalRunner
from sidecar.session.machine import Machine
from sidecar.session.runner import Manifest
from sidecar.web.overview import PAGE
from sidecar.web.server import Parts, application

Opened = Callable[..., Tab]
TESTS = Path(__file__).parent
WIDE = {"width": 1280, "height": 900}
expect.set_options(timeout=HANG * 1000)
TOKEN = "a-token-of-the-tests"
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script></pre><b>bold</b>&amp;\u202e"
NAME = HOSTILE.rstrip("\u202e")


class Served:
    """The whole server with real parts, in `folder`; it answers in a thread, and may end and come back on its port."""

    def __init__(self, folder: Path, token: str = "", *, images: bool = False, functions: bool = False) -> None:
        self.folder, self.token = folder, token
        self.runner = LocalRunner(str(folder / "pods"), backoff=0.05)
        self.state, self.definition = str(folder / "state"), folder / "images" / "factory.yaml"
        self._images, self._service = images, Service([]) if functions else None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.begin()

    def factory(self) -> Factory:
        return Factory(str(self.definition), self.state)

    def begin(self) -> None:
        machine = Machine(self.runner.folder)
        opened = self.factory if self._images else None
        app = application(Parts(self.state, machine, lambda: self.runner, opened, self._service), self.token)
        config = uvicorn.Config(app, port=self.port, log_config=None, timeout_graceful_shutdown=1)
        self._server = server = uvicorn.Server(config)
        app.state.ending = lambda: server.should_exit
        self._thread = threading.Thread(target=server.run)
        self._thread.start()
        until(lambda: server.started or not self._thread.is_alive(), "it answers")
        assert server.started

    def end(self) -> None:
        self._server.should_exit = True
        self._thread.join(HANG)
        assert not self._thread.is_alive()

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=HANG)

    def start(self, manifest: Manifest) -> str:
        self.runner.start(manifest)
        return str(manifest["metadata"]["name"])

    def volume(self, name: str, volume: str = "v") -> Path:
        return Path(self.runner.folder, name, "volumes", volume)

    def open(self, name: str, gate: str = "open") -> None:
        """Let a container of a pod go on, that waits for a file of that name."""
        (self.volume(name) / gate).touch()

    def close(self) -> None:
        self.end()
        for each in self.runner.list():
            with suppress(SourceMissing):
                self.runner.stop(each.name, 0)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    begun: list[Served] = []

    def begin(token: str = "", **parts: bool) -> Served:
        begun.append(Served(tmp_path / f"served-{len(begun)}", token, **parts))
        return begun[-1]

    yield begin
    for each in begun:
        each.close()


def waiting(gate: str) -> str:
    """Return a script that waits until a test opens a gate: see Served.open."""
    return f"until [ -e /v/{gate} ]; do sleep 0.02; done"


def handshake(name: str = "", *, prepare: str = ":", command: str = ":", keep: str = ":", wrap: str = "") -> Manifest:
    """Return a pod of an application and a battery, that meet as real ones do; each step is a shell command."""
    # Wherever the checkout is: a container has a /tmp of its own.
    top = {"name": "top", "hostPath": {"path": str(TESTS.parent)}}
    volumes = [*({"name": each, "emptyDir": {}} for each in ("coord", "v")), top]
    mounts = {"volumeMounts": [mount("coord", "/coord"), mount("v", "/v"), mount("top", str(TESTS.parent), readOnly=True)]}
    path = {"env": [{"name": "PYTHONPATH", "value": f"{TESTS}:{TESTS.parent}"}]}
    # A reference in a command is a kubelet's.
    host = [sys.executable, "-c", HOST.replace("$(", "$$("), "/coord", "fuse", prepare, keep, "{}"]
    words = [WRAP, "-c", "/coord", "-b", "fuse", *wrap.split(), "--", "/bin/sh", "-c", command]
    return pod(
        {"name": "app", "image": "host", "command": words, **mounts},
        {"name": "fuse", "image": "host", "command": host, **path, **mounts},
        name=name or f"pod-{uuid.uuid4()}",
        volumes=volumes,
    )


def live(tab: Tab) -> Page:
    """Return the page once it is told what happens."""
    expect(tab.page.locator("#connection")).to_have_text("Live")
    return tab.page


def session(page: Page, name: str) -> Locator:
    return page.locator("article").filter(has=page.get_by_role("heading", name=name, exact=True))


def lane(page: Page, name: str, participant: str) -> Locator:
    return session(page, name).locator(".lanes li").filter(has=page.locator("b").get_by_text(participant, exact=True))


def news(page: Page) -> Locator:
    return page.get_by_role("log")


# --- sessions ----------------------------------------------------------------------------------------------------------


def test_a_session_is_shown_as_it_goes_on_with_who_waits_for_whom(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    opened = tab(here.url, viewport=WIDE)
    page = live(opened)
    expect(page.locator("#no-sessions")).to_be_visible()
    name = here.start(handshake(prepare=waiting("prepared"), command=waiting("open"), keep=waiting("kept")))
    its = session(page, name)
    expect(its.locator(".word").first).to_have_text("Running")
    expect(lane(page, name, "application")).to_contain_text(re.compile("waiting.*waits for fuse to say mountdone"))
    expect(its.locator("[data-wait='application for fuse']")).to_have_count(1)
    here.open(name, "prepared")
    expect(lane(page, name, "fuse")).to_contain_text("waits for application to end")
    expect(lane(page, name, "application")).to_contain_text("running")
    assert hands(its) == ["fuse to application"]
    assert waits(its) == ["fuse for application"]
    here.open(name)
    expect(lane(page, name, "application")).to_contain_text("waits for fuse to say uploaddone")
    assert hands(its) == ["fuse to application", "application to fuse"]
    assert waits(its) == ["application for fuse"]
    here.open(name, "kept")
    expect(its.locator(".word").first).to_have_text("Succeeded")
    assert sorted(hands(its)) == ["application to fuse", "fuse to application", "fuse to application"]
    assert waits(its) == []
    for participant, phases in (("application", "waiting running exited"), ("fuse", "preparing ready saving")):
        told = lane(page, name, participant).locator(".phase").all_inner_texts()
        assert [each.split()[0] for each in told] == phases.split()
        assert all(re.fullmatch(r"\w+ [\d.]+ (ms|s)", each) for each in told)
    assert (opened.trouble, opened.elsewhere) == ([], [])


def hands(its: Locator) -> list[str]:
    """Return who went on at whose word, as drawn."""
    return [each.get_attribute("data-hand") or "" for each in its.locator("[data-hand]").all()]


def waits(its: Locator) -> list[str]:
    return [each.get_attribute("data-wait") or "" for each in its.locator("[data-wait]").all()]


def drawn(its: Locator) -> list[tuple[str, float, float]]:
    """Return the bars of a timeline: what they are called, and from where to where they go."""
    found = its.locator("svg rect").evaluate_all(
        "all => all.map(each => [each.textContent, +each.getAttribute('x'), +each.getAttribute('width')])"
    )
    return [(text, x, x + width) for text, x, width in found]


def test_bars_are_as_long_as_their_phases_and_stand_where_these_were(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    name = here.start(handshake(prepare="sleep 0.2", command="sleep 0.3", keep="sleep 0.1"))
    assert here.runner.wait(name, HANG).phase == "Succeeded"
    with here.client() as client:
        told = client.get(f"/v1/sessions/{name}/coordination").json()
    page = live(tab(here.url, viewport=WIDE))
    bars = drawn(session(page, name))
    phases = [each for participant in told["participants"] for each in participant["phases"] if each["state"] != "done"]
    assert [each["state"] for each in phases] == [text.split()[0] for text, _, _ in bars]
    start = min(each["since"] for each in phases)
    left = min(x for _, x, _ in bars)
    longest = max(zip(phases, bars, strict=True), key=lambda pair: pair[0]["seconds"])
    scale = (longest[1][2] - longest[1][1]) / longest[0]["seconds"]
    for phase, (_, begins, ends) in zip(phases, bars, strict=True):
        assert begins == pytest.approx(left + scale * (phase["since"] - start), abs=1.5)
        assert ends == pytest.approx(max(begins + 2, begins + scale * phase["seconds"]), abs=1.5)


def test_what_goes_on_grows_though_nothing_is_told(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    name = here.start(handshake(command=waiting("open")))
    page = live(tab(here.url))
    running = lane(page, name, "application").locator(".phase").last
    expect(running).to_contain_text("running")
    was = running.inner_text()
    expect(running).not_to_have_text(was)
    assert running.inner_text().startswith("running")


def test_a_battery_that_fails_is_shown_with_its_reason_and_who_failed_of_it(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    name = here.start(handshake(prepare="exit 7"))
    page = live(tab(here.url))
    expect(session(page, name).locator(".word").first).to_have_text("Failed")
    expect(lane(page, name, "fuse")).to_contain_text("'exit 7' ended with status 7")
    expect(lane(page, name, "application")).to_contain_text("fuse failed")
    assert hands(session(page, name)) == ["fuse to application"]
    assert session(page, name).locator("svg .end.failed").count() == 2


def test_a_participant_that_is_killed_has_died_where_its_time_ended(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    token = f"killed-{uuid.uuid4()}"
    name = here.start(handshake(prepare=f": {token}; sleep {LONG}", wrap="--rejoin-timeout 600"))
    page = live(tab(here.url))
    expect(lane(page, name, "fuse")).to_contain_text("preparing")
    for process in processes_that_say(token):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    expect(lane(page, name, "fuse")).to_contain_text("died")
    expect(session(page, name).locator("svg .died")).to_have_count(1)
    expect(session(page, name).locator(".containers li").filter(has_text="fuse")).to_contain_text("exited 137")


def test_a_session_without_a_coordination_directory_has_no_timeline(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    name = here.start(pod(container("one", "host", "exit 3"), container("two", "host", POLITE)))
    page = live(tab(here.url))
    its = session(page, name)
    expect(its.locator(".containers li").first).to_have_text(re.compile("one exited 3"))
    expect(its.locator(".containers li").last).to_have_text(re.compile("two running"))
    assert its.locator("svg").count() == 0


def test_what_a_container_writes_is_asked_for_when_it_is_opened_and_goes_on(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    name = here.start(
        pod(container("one", "host", f"echo begun; {waiting('open')}; echo ended", volumeMounts=[mount("v", "/v")]))
    )
    opened = tab(here.url)
    page = live(opened)
    summary = session(page, name).locator("summary")
    expect(summary).to_contain_text("running")
    assert not [each for each in opened.asked if "/logs/" in each]
    summary.click()
    log = page.get_by_role("group", name="Log of one")
    expect(log).to_have_text("begun\n")
    here.open(name)
    expect(log).to_have_text("begun\nended\n")


def test_of_much_that_a_container_writes_the_end_is_asked_for_and_then_what_comes(
    tab: Opened, served: Callable[..., Served]
) -> None:
    here = served()
    script = f"seq 200000; {waiting('more')}; echo more; {waiting('open')}; seq 200001 400000"
    name = here.start(pod(container("one", "host", script, volumeMounts=[mount("v", "/v")])))
    written = Path(here.runner.folder, name, "logs", "one.log")
    until(lambda: written.stat().st_size == 1_288_895, "it has written")
    opened = tab(here.url)
    page = live(opened)
    session(page, name).locator("summary").click()
    log = page.get_by_role("group", name="Log of one")
    expect(log).to_have_text(re.compile("200000\n$"))
    here.open(name, "more")
    expect(log).to_have_text(re.compile("200000\nmore\n$"))
    # Of what comes as well there may be more than is shown.
    here.open(name)
    expect(log).to_have_text(re.compile("400000\n$"))
    text = log.text_content() or ""
    assert text.startswith("… (only the end is shown)\n")
    assert "more" not in text
    assert 60_000 < len(text) < 70_000
    asked = [each.partition("?")[2] for each in opened.asked if "/logs/" in each]
    assert asked[:2] == ["offset=0&last=65536", "offset=1288895&last=65536"]
    assert all(each.endswith("&last=65536") for each in asked)


def test_a_session_is_stopped_by_whoever_is_sure(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    name, other = (here.start(pod(container("one", "host", POLITE), name=each)) for each in ("one", "two"))
    opened = tab(here.url)
    page = live(opened)
    stop = page.get_by_role("button", name=f"Stop {name}")
    stop.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"Stop {name}, and remove all that is of it?")
    # The first that Enter does is nothing.
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(stop).to_be_focused()
    stop.press("Enter")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert {each.name for each in here.runner.list()} == {name, other}
    stop.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(session(page, name)).to_have_count(0)
    assert {each.name for each in here.runner.list()} == {other}
    expect(news(page)).to_contain_text(f"Session {name} was stopped: ")
    expect(page.get_by_role("heading", name="Sessions")).to_be_focused()
    expect(session(page, other)).to_be_visible()


def test_a_session_that_cannot_be_stopped_says_why(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    name = here.start(pod(container("one", "host", POLITE)))
    page = live(tab(here.url))
    page.get_by_role("button", name=f"Stop {name}").click()
    here.end()
    page.get_by_role("dialog").get_by_role("button", name="Stop it").click()
    expect(session(page, name).get_by_role("alert")).to_have_text("The server cannot be reached.")
    here.begin()


# --- runs --------------------------------------------------------------------------------------------------------------


def once(here: Served, name: str, script: str, **how: Any) -> None:
    with Ledger(here.state) as ledger:
        ledger.run_once(name, ["/bin/sh", "-c", script], instance=how.pop("instance", "host/of-the-tests"), **how)


def run_of(page: Page, name: str) -> Locator:
    return page.locator("#runs tbody").filter(has=page.locator("th div").get_by_text(name, exact=True))


def test_runs_are_shown_the_newest_first_with_how_long_they_took_and_how_they_ended(
    tab: Opened, served: Callable[..., Served]
) -> None:
    here = served()
    once(here, "good", "exit 0")
    once(here, "bad", "exit 4")
    once(here, "killed", "kill -9 $$")
    with Ledger(here.state) as ledger, suppress(SidecarError):
        ledger.run_once("not there", ["/no/such/program"], instance="host/of-the-tests")
    page = live(tab(here.url))
    rows = page.locator("#runs tbody")
    expect(rows).to_have_count(4)
    assert rows.locator("th div:first-child").all_inner_texts() == ["not there", "killed", "bad", "good"]
    for name, state, ended in (
        ("good", "finished", "0"),
        ("bad", "finished", "4"),
        ("killed", "finished", "signal 9"),
        ("not there", "failed-to-start", "127"),
    ):
        cells = run_of(page, name).locator("td[data-head]").all_inner_texts()
        assert cells[0] == state
        assert re.fullmatch(r"[\d.]+ (ms|s)", cells[2])
        assert cells[3].startswith(ended)


def test_runs_whose_names_are_alike_when_they_are_said_at_once_are_two(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    with Ledger(here.state) as ledger:
        for instance, name in (("a", "b c"), ("a b", "c")):
            ledger.run_once(name, ["true"], instance=instance)
    page = live(tab(here.url))
    expect(page.locator("#runs tbody")).to_have_count(2)


def test_a_run_is_shown_from_its_beginning_to_its_end(tab: Opened, served: Callable[..., Served], tmp_path: Path) -> None:
    here = served()
    page = live(tab(here.url))
    gate = tmp_path / "gate"
    thread = threading.Thread(
        target=once, args=(here, "long", f"echo begun; until [ -e {gate} ]; do sleep 0.02; done; echo ended")
    )
    thread.start()
    row = run_of(page, "long")
    expect(row).to_contain_text("running")
    row.get_by_text("Output of long").click()
    output = page.get_by_role("group", name="Output of long")
    expect(output).to_have_text("begun\n")
    gate.touch()
    thread.join(HANG)
    expect(row).to_contain_text("finished")
    expect(output).to_have_text("begun\nended\n")
    expect(news(page)).to_contain_text("Run long: finished")


def test_of_much_output_the_end_is_shown(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    once(here, "much", "seq 200000")
    opened = tab(here.url, viewport=PHONE)
    page = live(opened)
    page.get_by_text("Output of much").click()
    output = page.get_by_role("group", name="Output of much")
    expect(output).to_contain_text("199999\n200000\n")
    text = output.text_content() or ""
    assert text.startswith("… (only the end is shown)\n")
    assert len(text) < 70_000
    assert opened.overflowing() == []
    # The end is what is seen of it.
    assert output.evaluate("each => each.scrollTop + each.clientHeight >= each.scrollHeight - 4")
    asked = [each for each in opened.asked if "/runs/log" in each]
    assert asked
    assert all(each.endswith("&last=65536") for each in asked)


# --- what it is told with ----------------------------------------------------------------------------------------------


def test_what_the_server_has_not_is_not_shown(tab: Opened, served: Callable[..., Served]) -> None:
    opened = tab(served().url)
    page = live(opened)
    for name in ("Images", "Check a manifest"):
        expect(page.get_by_text(name, exact=True).first).to_be_hidden()
    expect(page.get_by_text("Functions")).to_be_hidden()
    assert [urlsplit(each).path for each in opened.asked] == ["/", "/openapi.json", "/v1/events"]
    page = live(tab(served(functions=True).url))
    expect(page.get_by_text("Functions: no language is installed.")).to_be_visible()


def test_a_token_is_asked_for_where_one_is_needed_and_kept_nowhere(tab: Opened, served: Callable[..., Served]) -> None:
    here = served(TOKEN)
    name = here.start(pod(container("one", "host", POLITE)))
    opened = tab(here.url)
    page = opened.page
    said = page.locator("#connection")
    expect(said).to_have_text("A token is needed.")
    assert opened.focused() == "token"
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(said).to_have_text("This token is not known here.")
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    live(opened)
    page.get_by_role("button", name=f"Stop {name}").click()
    page.get_by_role("button", name="Stop it").click()
    expect(session(page, name)).to_have_count(0)
    assert TOKEN not in "".join(opened.asked)
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    # The browser itself notes what is 401; nothing else is wrong.
    assert all("401" in each for each in opened.trouble)


def test_a_server_that_is_gone_is_told_and_when_it_is_back_all_is_as_it_is_then(
    tab: Opened, served: Callable[..., Served]
) -> None:
    here = served()
    gone, stays = (here.start(pod(container("one", "host", POLITE), name=each)) for each in ("gone", "stays"))
    opened = tab(here.url)
    page = live(opened)
    session(page, stays).locator("summary").focus()
    here.end()
    expect(page.locator("#connection")).to_contain_text("Not connected")
    expect(session(page, gone)).to_be_visible()
    here.runner.stop(gone, 0)
    new = here.start(pod(container("one", "host", POLITE), name="new"))
    here.begin()
    live(opened)
    expect(session(page, gone)).to_have_count(0)
    expect(session(page, new)).to_be_visible()
    expect(session(page, stays).locator("summary")).to_be_focused()


def test_what_happens_is_announced_and_what_was_there_before_is_not(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    here.start(pod(container("one", "host", POLITE), name="old"))
    opened = tab(here.url)
    page = live(opened)
    name = here.start(pod(container("one", "host", "true"), name="fresh"))
    expect(news(page)).to_contain_text(f"Session {name}: Succeeded")
    assert "old" not in news(page).inner_text()
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    found = {each["role"]["value"]: each for each in nodes if each["role"]["value"] in ("log", "status")}
    for role in ("log", "status"):
        assert {each["name"]: each["value"].get("value") for each in found[role]["properties"]}["live"] == "polite"


# --- for everybody, and against some -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A bit of everything, and of what others may write as hostile as it can be; it is looked at, and nothing of it changed."""
    here = Served(tmp_path_factory.mktemp("crowded"))
    try:
        _crowd(here)
        yield here
    finally:
        here.close()


def _crowd(here: Served) -> None:
    here.start(handshake("long-" + "x" * 50, command=waiting("open")))
    done = here.start(handshake("done", prepare="sleep 0.05", command="sleep 0.1", keep="sleep 0.05"))
    failed = here.start(handshake("failed", prepare=f"exit 3 # {HOSTILE}"))
    odd = container("odd", "host", f"printf %s '{HOSTILE.replace(chr(39), chr(34))}'")
    lost = {"name": "lost", "image": "host", "command": [f"/no/such/{HOSTILE}{'y' * 300}"]}
    ended = here.start(pod(odd, lost, name="odd"))
    for each in (done, failed, ended):
        here.runner.wait(each, HANG)
    once(here, f"run {NAME}", 'printf %s "$0" >&2; exit 5', instance=f"host/{NAME}{'z' * 100}")
    with Ledger(here.state) as ledger, suppress(SidecarError):
        ledger.run_once("lost", [f"/no/such/{HOSTILE}{'z' * 300}", "a b", HOSTILE], instance="host/lost")


def open_all(page: Page) -> None:
    """Open whatever can be opened, and see that it is filled."""
    for summary in page.locator("summary:visible").all():
        summary.press("Enter")  # a mouse might miss it, for what is filled above moves it
    for box in page.locator("article pre, #runs pre").all():
        expect(box).not_to_be_empty()


def test_whatever_others_write_is_text_and_nothing_of_it_is_run_or_asked(tab: Opened, crowded: Served) -> None:
    opened = tab(crowded.url)
    page = live(opened)
    open_all(page)
    expect(page.get_by_role("group", name="Log of odd")).to_contain_text("<b>bold</b>&amp;")
    for where in ("article", "#runs tbody"):
        assert page.locator(where).filter(has_text="<b>bold</b>").count() >= 2
    assert page.locator("main :is(img, script, iframe)").count() == 0
    assert page.locator("article b b, pre *").count() == 0
    assert page.title() == "sidecar"
    assert (opened.trouble, opened.elsewhere) == ([], [])


def test_records_that_make_no_sense_break_nothing(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    name = here.start(handshake(command=waiting("open"), keep=waiting("kept")))
    page = live(tab(here.url))
    expect(lane(page, name, "application")).to_contain_text("running")
    folder = here.volume(name, "coord") / ".sidecar" / "participants"
    true = json.loads((folder / "fuse.json").read_text())
    for number, times in enumerate(([[HOSTILE, 0]], [["ready", 1e308], ["constructor", -5]], [["x" * 5000, 1]] * 70, [])):
        told = {**true, "name": f"odd-{number}", "kind": "odd", "state": HOSTILE, "times": times, "peers": [[HOSTILE, HOSTILE]]}
        (folder / f"odd-{number}.json").write_text(json.dumps(told))
    expect(session(page, name).locator(".lanes li")).to_have_count(6)
    expect(lane(page, name, "odd-0")).to_contain_text("died")
    # And it goes on.
    here.open(name)
    expect(lane(page, name, "application")).to_contain_text("waits for fuse to say uploaddone")
    assert page.locator("svg *").count() < 2000
    assert page.title() == "sidecar"


def test_were_there_a_way_in_the_pages_policy_would_let_nothing_out(tab: Opened, served: Callable[..., Served]) -> None:
    opened = tab(served().url)
    live(opened)
    ask = "url => fetch(url).then(() => 'answered', () => 'refused')"
    assert opened.page.evaluate(ask, "http://127.0.0.2:9/") == "refused"
    assert any("Content Security Policy" in each for each in opened.trouble)


def test_the_focus_stays_where_it_is_whatever_is_drawn_around_it(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    name = here.start(handshake("middle", command=waiting("open")))
    opened = tab(here.url)
    page = live(opened)
    summary = session(page, name).locator("summary").first
    summary.focus()
    page.evaluate("document.activeElement.mark = 1")
    for other in ("after", "before"):
        here.start(pod(container("one", "host", "true"), name=other))
        expect(session(page, other)).to_contain_text("Succeeded")
    here.open(name)
    expect(session(page, name).locator(".word").first).to_have_text("Succeeded")
    assert page.locator("article h3").all_inner_texts() == ["after", "before", "middle"]
    assert page.evaluate("document.activeElement.mark") == 1
    # Where what has it goes, the heading above has it.
    button = page.get_by_role("button", name="Stop before")
    button.focus()
    here.runner.stop("before", 0)
    expect(page.get_by_role("heading", name="Sessions")).to_be_focused()


def test_all_of_it_is_used_by_keyboard_in_the_order_that_is_seen(tab: Opened, served: Callable[..., Served]) -> None:
    here = served()
    here.start(pod(container("one", "host", "echo it"), name="only"))
    once(here, "run", "echo it")
    opened = tab(here.url, viewport=WIDE)
    page = live(opened)
    expect(session(page, "only")).to_contain_text("Succeeded")
    visited, places = [], []
    for _ in range(7):
        page.keyboard.press("Tab")
        visited.append(opened.focused())
        places.append(page.evaluate("document.activeElement.getBoundingClientRect().top + scrollY"))
        if visited[-1] == "summary":
            page.keyboard.press("Enter")
            expect(page.locator("details[open]").last.locator("pre")).to_have_text("it\n")
    assert visited == ["button", "summary", "pre", "summary", "pre", "news", "a"]
    assert places == sorted(places)


def test_everything_that_can_be_used_has_a_name_for_assistive_technology(tab: Opened, crowded: Served) -> None:
    opened = tab(crowded.url)
    page = live(opened)
    open_all(page)
    assert opened.nameless() == []
    assert page.locator("html").get_attribute("lang") == "en"
    for name in ("Sessions", "Runs", "What happened"):
        assert page.get_by_role("region", name=name).count() == 1
    expect(page.get_by_role("img", name="Timeline of done")).to_be_visible()
    expect(page.get_by_role("list", name="Participants of done")).to_contain_text("application")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_by_day_and_by_night(tab: Opened, crowded: Served, scheme: str) -> None:
    opened = tab(crowded.url, color_scheme=scheme, viewport=WIDE)
    page = live(opened)
    open_all(page)
    assert opened.unreadable() == []
    # What stands in a bar is read on the bar, whichever of them it is.
    parts = page.evaluate(
        """() => [...document.querySelectorAll(".swatch")].map((each) => [
          getComputedStyle(document.body).color, getComputedStyle(each).backgroundColor])"""
    )
    colours = {tuple(tuple(map(int, re.findall(r"\d+", each)[:3])) for each in pair) for pair in parts}
    assert len(colours) == 6
    assert [pair for pair in colours if contrast([*pair[0]], [*pair[1]]) < 4.5] == []
    page.get_by_role("button", name="Stop done").click()
    assert opened.unreadable() == []
    (red, *_) = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (red < 128) == (scheme == "dark")


@pytest.mark.parametrize("viewport", [PHONE, {"width": 320, "height": 600}, WIDE], ids=["phone", "small", "wide"])
def test_nothing_is_wider_than_the_window(tab: Opened, crowded: Served, viewport: dict[str, int]) -> None:
    opened = tab(crowded.url, viewport=viewport)
    page = live(opened)
    assert opened.overflowing() == []
    open_all(page)
    assert opened.overflowing() == []
    page.get_by_role("button", name="Stop done").click()
    assert opened.overflowing() == []
    # And where the window is made another, so is the timeline.
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 360, "height": 720} if viewport == WIDE else {"width": 1280, "height": 900})
    page.wait_for_function(
        """() => [...document.querySelectorAll("article svg")].every(
          (each) => each.viewBox.baseVal.width === each.parentElement.clientWidth)"""
    )


def test_the_page_is_one_document_that_needs_nothing_else() -> None:
    assert re.findall(r"""(?:src|href)\s*=\s*["']?([^"'>\s]+)""", PAGE) == ["openapi.json"]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|@import|url\((?!#)", PAGE)


# --- images ------------------------------------------------------------------------------------------------------------

# A step that a test lets go on: its gate is mounted where images are built, and no part of them.
BUSY = "/bin/busybox"
WAITS = f'RUN ["{BUSY}", "sh", "-c", "until [ -e /gates/%s ]; do {BUSY} sleep 0.02; done"]'
FAILS = f'RUN ["{BUSY}", "sh", "-c", "{BUSY} cat /why >&2; exit 7"]'
MANIFEST = """\
kind: Pod
spec:
  initContainers: [{{name: a, image: {ours}}}]
  containers:
  - {{name: b, image: {ours}}}
  - {{name: c, image: of/others}}
"""


class Made(Served):
    """With images that each hold busybox; `steps` are the lines of their Containerfiles behind that, by their names."""

    def __init__(self, folder: Path, providers: str, steps: dict[str, str]) -> None:
        top = folder / "images"
        self.gates = top / "gates"
        self.gates.mkdir(parents=True)
        for name, lines in steps.items():
            (top / name).mkdir()
            shutil.copy(BUSY, top / name)
            (top / name / "why").write_text(HOSTILE)
            (top / name / "Containerfile").write_text(f"FROM scratch\nCOPY busybox {BUSY}\nCOPY why /why\n{lines}\n")
        (top / "factory.yaml").write_text(
            f"repository: here/{{image}}\ntag: 1\nvolumes: {{gates: /gates}}\nproviders: {{{providers}}}\n"
        )
        super().__init__(folder, images=True)

    def pass_gate(self, name: str) -> None:
        (self.gates / name).touch()

    def close(self) -> None:
        """End it once no builder works any more: each lives on as long as there is something to do."""
        for name in GATES:
            self.pass_gate(name)
        with self.factory() as factory:
            until(lambda: all(each.over for each in factory.works()), "nothing is built any more")
        super().close()


GATES = ("one", "two")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Made]]:
    begun: list[Made] = []

    def begin(providers: str = "", **steps: str) -> Made:
        begun.append(Made(tmp_path / f"made-{len(begun)}", providers, steps))
        return begun[-1]

    yield begin
    for each in begun:
        each.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


def plain(name: str, at: Registry) -> str:
    return f'{name}: {{registry: "{at.host}/{uuid.uuid4().hex}", plain: true}}'


def row(page: Page, image: str) -> Locator:
    return page.locator("#image-table tbody").filter(has=page.locator("th div").get_by_text(image, exact=True))


def at(page: Page, image: str, column: str = "Built") -> Locator:
    """Return how an image is: built, or at a provider."""
    return row(page, image).locator(f"td[data-head='{column}']")


def word(page: Page, image: str, column: str = "Built") -> Locator:
    return at(page, image, column).locator(".word")


def test_an_image_is_built_and_pushed_by_the_buttons_that_are_on_offer_and_only_by_these(
    tab: Opened, made: Callable[..., Made], store: Registry
) -> None:
    here = made(plain("near", store) + ", archive: {layout: kept}", app="")
    opened = tab(here.url, viewport=WIDE)
    page = live(opened)
    expect(word(page, "app")).to_have_text("NEW")
    assert page.locator("#heads th").all_inner_texts() == ["Image", "Built", "near", "archive"]
    assert row(page, "app").get_by_role("button").all_inner_texts() == ["Build"]
    page.get_by_role("button", name="Build app").press("Enter")
    expect(word(page, "app")).to_have_text("COMPLETE")
    expect(word(page, "app", "near")).to_have_text("absent")
    # Its button has gone, and the image that it is of has the focus.
    expect(row(page, "app").locator("th")).to_be_focused()
    page.get_by_role("button", name="Push app to near").click()
    expect(word(page, "app", "near")).to_have_text("pushed")
    expect(word(page, "app", "archive")).to_have_text("absent")
    page.get_by_role("button", name="Push app to archive").click()
    expect(word(page, "app", "archive")).to_have_text("pushed")
    expect(row(page, "app").get_by_role("button")).to_have_count(0)
    for said in ("Build of app: COMPLETE", "Push of app to near: COMPLETE", "Push of app to archive: COMPLETE"):
        expect(news(page)).to_contain_text(said)
    assert (opened.trouble, opened.elsewhere) == ([], [])


def test_how_far_a_build_is_never_falls_and_is_not_announced(tab: Opened, made: Callable[..., Made]) -> None:
    here = made(app=f"{WAITS % 'one'}\n{WAITS % 'two'}")
    page = live(tab(here.url))
    page.get_by_role("button", name="Build app").click()
    bar = page.get_by_role("progressbar", name="Build app progress")
    seen = []
    for step, gate in (("4/", "one"), ("5/", "two")):
        expect(at(page, "app")).to_contain_text(f"STEP {step}")
        seen.append(int(bar.get_attribute("aria-valuenow") or ""))
        assert at(page, "app").locator(".track").inner_text() == f"{seen[-1]} %"
        said = news(page).inner_text()
        assert "%" not in said
        assert "STEP" not in said
        here.pass_gate(gate)
    expect(word(page, "app")).to_have_text("COMPLETE")
    assert 0 < seen[0] < seen[1] < 100
    expect(bar).to_be_hidden()


def test_a_build_that_fails_shows_the_step_its_log_and_offers_another(tab: Opened, made: Callable[..., Made]) -> None:
    here = made(app=FAILS)
    opened = tab(here.url, viewport=PHONE)
    page = live(opened)
    page.get_by_role("button", name="Build app").click()
    expect(word(page, "app")).to_have_text("FAILED")
    expect(at(page, "app")).to_contain_text("exit status 7")
    expect(page.get_by_role("button", name="Build app")).to_be_visible()
    assert not [each for each in opened.asked if "/log" in each]
    page.get_by_text("Log of app").click()
    expect(page.get_by_role("group", name=re.compile("^Error of Build "))).to_contain_text("exit status 7")
    expect(page.get_by_role("group", name=re.compile("^Log of Build "))).to_contain_text("<b>bold</b>&amp;")
    assert page.locator("main :is(img, script), pre *").count() == 0
    assert page.title() == "sidecar"
    assert (opened.overflowing(), opened.unreadable(), opened.nameless(), opened.trouble) == ([], [], [], [])


def test_a_log_goes_on_while_it_is_read_and_the_focus_stays(tab: Opened, made: Callable[..., Made]) -> None:
    here = made(app=f"{WAITS % 'one'}\n{WAITS % 'two'}")
    page = live(tab(here.url))
    page.get_by_role("button", name="Build app").click()
    expect(at(page, "app")).to_contain_text("STEP 4/")
    page.get_by_text("Log of app").focus()
    page.keyboard.press("Enter")
    log = page.get_by_role("group", name=re.compile("^Log of Build "))
    expect(log).to_contain_text("STEP 4/")
    assert "STEP 5/" not in log.inner_text()
    here.pass_gate("one")
    expect(log).to_contain_text("STEP 5/")
    here.pass_gate("two")
    expect(word(page, "app")).to_have_text("COMPLETE")
    expect(page.get_by_text("Log of app")).to_be_focused()


def test_a_build_that_hangs_is_stopped_by_keyboard_by_whoever_is_sure(tab: Opened, made: Callable[..., Made]) -> None:
    here = made(app=WAITS % "one", other="")
    opened = tab(here.url, viewport=WIDE)
    page = live(opened)
    page.get_by_role("button", name="Build app").press("Enter")
    expect(at(page, "app")).to_contain_text("STEP 4/")
    assert row(page, "app").get_by_role("button").all_inner_texts() == ["Stop"]
    stop = page.get_by_role("button", name="Stop the build of app")
    stop.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Stop the build of app?")
    # The first that Enter does is nothing.
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(stop).to_be_focused()
    expect(word(page, "app")).to_have_text("BUILDING")
    stop.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(word(page, "app")).to_have_text("FAILED")
    expect(at(page, "app")).to_contain_text("stopped")
    expect(news(page)).to_contain_text("Build of app: FAILED, stopped")
    assert news(page).inner_text().count("FAILED") == 1
    # Its button has gone, and the image that it is of has the focus.
    expect(row(page, "app").locator("th")).to_be_focused()
    assert row(page, "app").get_by_role("button").all_inner_texts() == ["Build"]
    here.pass_gate("one")
    page.get_by_role("button", name="Build app").click()
    expect(word(page, "app")).to_have_text("COMPLETE")
    assert (opened.overflowing(), opened.unreadable(), opened.nameless(), opened.trouble) == ([], [], [], [])


def test_a_push_that_hangs_is_stopped_and_where_that_cannot_be_it_is_told(
    tab: Opened, made: Callable[..., Made], tmp_path: Path
) -> None:
    with registry(tmp_path / "near") as near:
        here = made(plain("near", near), app="")
        opened = tab(here.url, viewport=PHONE)
        page = live(opened)
        page.get_by_role("button", name="Build app").click()
        push = page.get_by_role("button", name="Push app to near")
        expect(push).to_be_visible()
        near.hang()
        push.click()
        stop = page.get_by_role("button", name="Stop the push of app to near")
        expect(stop).to_be_visible()
        assert (opened.overflowing(), opened.unreadable(), opened.nameless()) == ([], [], [])
        here.end()
        stop.click()
        page.get_by_role("dialog").get_by_role("button", name="Stop it").click()
        expect(page.locator("#pressed-said")).to_have_text("The server cannot be reached.")
        here.begin()
        live(opened)
        stop.click()
        page.get_by_role("dialog").get_by_role("button", name="Stop it").click()
        expect(news(page)).to_contain_text("Push of app to near: FAILED, stopped")
        expect(page.locator("#pressed-said")).to_have_text("")
        expect(stop).to_be_hidden()


def test_what_providers_say_is_shown_as_it_is(tab: Opened, made: Callable[..., Made], store: Registry, tmp_path: Path) -> None:
    with registry(tmp_path / "far") as far:
        here = made(f"{plain('near', store)}, {plain('far', far)}", app="")
        with here.factory() as factory:
            work = factory.build("app").id
            until(lambda: factory.work(work).status == "COMPLETE", "it is built")
            pushes = [factory.push(work, provider).id for provider in ("near", "far")]
            until(lambda: all(factory.work(each).status == "COMPLETE" for each in pushes), "it is pushed")
            reference = factory.work(pushes[0]).reference
        page = live(tab(here.url))
        for provider in ("near", "far"):
            expect(word(page, "app", provider)).to_have_text("pushed")
        far.stop()
        repository, _, tag = reference.partition("/")[2].rpartition(":")
        store.delete(repository, tag)
        (here.folder / "images" / "app" / "why").write_text("another")
        page.get_by_role("button", name="Look again").click()
        expect(word(page, "app", "near")).to_have_text("absent")
        # Nobody knows what is there, and nobody says that there is nothing.
        expect(word(page, "app", "far")).to_have_text("unreachable")
        expect(word(page, "app")).to_have_text("STALE")
        assert row(page, "app").get_by_role("button").all_inner_texts() == ["Build"]


def test_the_page_the_commands_and_the_server_tell_the_same_of_the_same(
    tab: Opened, made: Callable[..., Made], store: Registry
) -> None:
    here = made(f"{plain('near', store)}, archive: {{layout: kept}}", app="", fails="COPY missing /", gone="", new="", touched="")
    with here.factory() as factory:
        works = {name: factory.build(name).id for name in ("app", "fails", "gone", "touched")}
        until(lambda: all(factory.work(each).over for each in works.values()), "they are built, or not")
        push = factory.push(works["app"], "near").id
        until(lambda: factory.work(push).over, "it is pushed")
        images = Buildah(os.path.join(here.state, "images"))
        images.run("rmi", factory.work(works["gone"]).digest)
    (here.folder / "images" / "touched" / "why").write_text("another")

    def listed(**variables: str) -> Any:
        """Return what the command says of each image: its status, how it is at each provider, and what is on offer."""
        command: list[str | Path] = [BIN / "sidecar", "image", "list", "--json"]
        environment = {**os.environ, **variables}
        ran = subprocess.run(command, capture_output=True, timeout=HANG, check=True, env=environment)
        return told(json.loads(ran.stdout))

    def told(images: Any) -> Any:
        return {
            each["name"]: (
                {"Built": each["status"], **{at["provider"]: at["presence"] for at in each["providers"]}},
                sorted((action["do"], action["provider"] or "Built") for action in each["actions"]),
            )
            for each in images
        }

    alone = listed(SIDECAR_STATE=here.state, SIDECAR_FACTORY=str(here.definition))
    page = live(tab(here.url, viewport=WIDE))
    shown = {}
    for name in alone:
        expect(word(page, name)).not_to_have_text("")
        cells = {column: word(page, name, column).inner_text() for column in ("Built", "near", "archive")}
        buttons = [(at(page, name, column).get_by_role("button").all_inner_texts(), column) for column in cells]
        shown[name] = (cells, sorted((text.lower(), column) for texts, column in buttons for text in texts))
    assert {name: cells["Built"] for name, (cells, _) in shown.items()} == {
        "app": "COMPLETE", "fails": "FAILED", "gone": "MISSING", "new": "NEW", "touched": "STALE",
    }  # fmt: skip
    with here.client() as client:
        assert shown == alone == listed(SIDECAR_SERVER=here.url) == told(client.get("/v1/images").json()["images"])


def test_a_manifest_is_checked_and_all_that_is_on_offer_is_done_by_one_button(
    tab: Opened, made: Callable[..., Made], store: Registry
) -> None:
    here = made(plain("near", store), app="", other="")
    opened = tab(here.url, viewport=WIDE)
    page = live(opened)
    page.get_by_text("Check a manifest").first.click()
    page.get_by_role("textbox").fill(MANIFEST.format(ours="localhost/here/app:1"))
    page.get_by_role("button", name="Check").click()
    named = page.get_by_role("table", name="Images of the manifest").locator("tbody tr")
    expect(named).to_have_count(3)
    assert named.first.inner_text().split("\t")[1:] == ["localhost/here/app:1", "app: NEW, near: absent", "build app"]
    assert named.last.inner_text().split("\t")[:3] == ["line 6", "of/others", "none of ours"]
    every = page.get_by_role("button", name=re.compile("^Do all"))
    assert every.inner_text() == "Do all: build app"
    every.click()
    expect(page.locator("#checked")).to_have_text("All of it is done.")
    # What was on offer once it was built, too.
    expect(named.first).to_contain_text("app: COMPLETE, near: pushed")
    expect(every).to_be_hidden()
    expect(word(page, "other")).to_have_text("NEW")
    assert (opened.overflowing(), opened.unreadable(), opened.nameless(), opened.trouble) == ([], [], [], [])


def test_what_of_a_manifest_fails_is_told_and_not_done_again_and_again(tab: Opened, made: Callable[..., Made]) -> None:
    here = made(app=FAILS)
    page = live(tab(here.url))
    page.get_by_text("Check a manifest").first.click()
    page.get_by_role("textbox").fill(MANIFEST.format(ours="here/app:1"))
    page.get_by_role("button", name="Check").click()
    page.get_by_role("button", name=re.compile("^Do all")).click()
    expect(page.locator("#checked")).to_have_text("Failed: build app.")
    with here.factory() as factory:
        assert [each.status for each in factory.works()] == ["FAILED"]


@pytest.mark.parametrize("text", ["{", "a: [", HOSTILE + ": {"])
def test_what_is_no_manifest_is_told_with_its_line(tab: Opened, made: Callable[..., Made], text: str) -> None:
    page = live(tab(made(app="").url))
    page.get_by_text("Check a manifest").first.click()
    page.get_by_role("textbox").fill(text)
    page.get_by_role("button", name="Check").click()
    expect(page.locator("#checked")).to_contain_text(re.compile("request|line|expected"))
    assert page.get_by_role("table", name="Images of the manifest").count() == 0
    assert page.title() == "sidecar"


def test_what_another_has_built_meanwhile_is_seen_without_asking(tab: Opened, made: Callable[..., Made]) -> None:
    here = made(app="")
    page = live(tab(here.url))
    expect(word(page, "app")).to_have_text("NEW")
    with here.factory() as factory:
        factory.build("app")
    expect(word(page, "app")).to_have_text("COMPLETE")


def test_a_definition_that_cannot_be_read_is_told_and_once_it_can_be_all_is_there(tab: Opened, made: Callable[..., Made]) -> None:
    here = made(app="")
    good = here.definition.read_text()
    here.definition.write_text("providers: [")
    page = tab(here.url).page
    expect(page.locator("#images-said")).to_contain_text("no YAML")
    here.definition.write_text(good)
    page.get_by_role("button", name="Look again").click()
    expect(word(page, "app")).to_have_text("NEW")
    expect(page.locator("#images-said")).to_have_text("")


def test_what_cannot_be_done_any_more_is_told_and_stays_told(tab: Opened, made: Callable[..., Made]) -> None:
    here = made("archive: {layout: kept}", app="")
    page = live(tab(here.url))
    page.get_by_role("button", name="Build app").click()
    push = page.get_by_role("button", name="Push app to archive")
    expect(push).to_be_visible()
    # Another removes what was built, of which the page has heard nothing.
    shutil.rmtree(Path(here.state, "images"))
    push.click()
    expect(page.locator("#pressed-said")).to_contain_text("is not there any more")
    expect(word(page, "app")).to_have_text("MISSING")
    expect(page.locator("#pressed-said")).to_contain_text("is not there any more")
    page.get_by_role("button", name="Build app").click()
    expect(page.locator("#pressed-said")).to_have_text("")
    expect(word(page, "app")).to_have_text("COMPLETE")


def test_a_server_that_ends_during_a_build_has_forgotten_nothing_when_it_is_back(tab: Opened, made: Callable[..., Made]) -> None:
    here = made(app=WAITS % "one")
    page = live(tab(here.url))
    page.get_by_role("button", name="Build app").click()
    expect(at(page, "app")).to_contain_text("STEP 4/")
    here.end()
    expect(page.locator("#connection")).to_contain_text("Not connected")
    here.pass_gate("one")
    with here.factory() as factory:
        until(lambda: all(each.over for each in factory.works()), "it is built")
    here.begin()
    expect(word(page, "app")).to_have_text("COMPLETE")
