"""All five parts at once, as somebody uses them, and what dies in between.

Images are checked, built and pushed; a session of them is composed and begun; its application has code run by a battery, is
killed and restarted, and does not run again; what it made is saved; a page shows it. Everything is asked of `sidecar serve`, by
the command with `--server`, and looked at in a browser.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import Tab
from containers import Machine, image
from playwright.sync_api import expect
from processes import BIN, HANG, until
from registries import Registry, registry

from sidecar.store import Store, open_store

# The last artifact's program: says that it has begun, has code run, and keeps the answer beside what takes a while to save.
STREAMER = r"""#!/usr/bin/python3
import json, os, pathlib, urllib.request
coordination, output = pathlib.Path("/sidecar/coordination"), pathlib.Path("/output")
with open(output / "lives", "a") as lives:
    lives.write("once\n")
told = json.loads((coordination / "function" / "ready").read_text())["payload"]
token = pathlib.Path(told["tokenFile"]).read_text().strip()
source = pathlib.Path("/opt/viewer/source.sh").read_text()
request = urllib.request.Request(told["url"] + "/v1/functions/bash/invocations", source.encode())
request.add_header("Authorization", "Bearer " + token)
request.add_header("Content-Type", "text/plain")
with urllib.request.urlopen(request, timeout=60) as answer:
    said = json.load(answer)["stdout"]
read = pathlib.Path("/input/weather/week.csv").read_text()
(output / "answer").write_text(said + read + pathlib.Path("/opt/debugger/tool").read_text())
with open(output / "large", "wb") as large:
    for number in range(400):
        os.pwrite(large.fileno(), b"page", number << 21)
print("answered", said, end="", flush=True)
"""
FACTORY = """\
repository: team/{{image}}
tag: "1"
images: {{}}
providers:
  here: {{registry: "{host}", plain: true}}
  archive: {{layout: ../archive}}
"""
CATALOG = """\
artifacts:
  viewer: {{image: "{host}/team/viewer:1", mountPath: /opt/viewer}}
  debugger: {{image: "{host}/team/debugger:1", mountPath: /opt/debugger}}
  streamer: {{image: "{host}/team/streamer:1", mountPath: /opt/streamer, executable: bin/stream}}
"""
FUSE = """\
bundles:
  - {name: in, srcPath: /input/weather, srcRepo: weather, srcLabel: latest}
  - {name: out, destPath: /output, destRepo: results, destMessage: answers, destLabel: latest}
"""
# podman 4.3 knows no procMount.
FUNCTION = "privileged: true\natOnce: 4\n"
INSECURE = '[[registry]]\nlocation = "{host}"\ninsecure = true\n'


class Desk:
    """A folder with all that is asked for, and a server of it, which runs sessions in the machine's containers."""

    def __init__(self, machine: Machine, top: Path, store: Path, host: str) -> None:
        self.machine, self.top = machine, top
        for name, files in {
            "viewer": {"source.sh": ("echo $((6*7))\n", 0o644)},
            "debugger": {"tool": ("of the debugger\n", 0o644)},
            "streamer": {"bin/stream": (STREAMER, 0o755)},
        }.items():
            for path, (text, mode) in files.items():
                file = top / "images" / name / path
                file.parent.mkdir(parents=True)
                file.write_text(text)
                file.chmod(mode)
            top.joinpath("images", name, "Containerfile").write_text("FROM scratch\nCOPY . /\n")
        for name, text in {
            "images/factory.yaml": FACTORY.format(host=host),
            "catalog.yaml": CATALOG.format(host=host),
            "fuse.yaml": FUSE,
            "function.yaml": FUNCTION,
            "registries.conf": INSECURE.format(host=host),
        }.items():
            (top / name).write_text(text)
        self.environment = {
            **{key: value for key, value in machine.shell(top / "bin").items() if not key.startswith("SIDECAR_")},
            "CONTAINERS_REGISTRIES_CONF": str(top / "registries.conf"),
            "SIDECAR_STATE": str(top / "state"),
        }
        where: list[str | Path] = [
            "--runner",
            "podman",
            "--network",
            "none",
            "--claim-dir",
            f"store={store}",
            "--folder",
            top / "sessions",
        ]
        words: list[str | Path] = [BIN / "sidecar", "serve", "--port", "0", *where]
        self.server = subprocess.Popen(words, cwd=top, env=self.environment, stderr=subprocess.PIPE, text=True)
        assert self.server.stderr is not None
        self.url = self.server.stderr.readline().rpartition(" ")[2].strip()
        threading.Thread(target=self.server.stderr.read, daemon=True).start()

    def tell(self, *words: str, given: str = "", status: int = 0) -> str:
        """Return what the command prints that asks the server."""
        ran = subprocess.run(
            [BIN / "sidecar", "--server", self.url, *words],
            input=given, capture_output=True, text=True, cwd=self.top, env=self.environment, timeout=HANG,
        )  # fmt: skip
        assert ran.returncode == status, (words, ran.returncode, ran.stdout, ran.stderr)
        return ran.stdout

    def ask(self, *words: str, given: str = "", status: int = 0) -> Any:
        return json.loads(self.tell(*words, "--json", given=given, status=status))

    def close(self) -> None:
        for each in self.ask("session", "list"):
            self.tell("session", "stop", each["name"], "--grace", "0")
        self.server.terminate()
        assert self.server.wait(HANG) == 0


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Registry]:
    with registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def kept(store: Path, tmp_path: Path) -> Store:
    """The store of the claim, with what the application reads; the images' user may write to it."""
    found = open_store(f"file://{store}")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "week.csv").write_text("mon,12\n")
    found.save(tmp_path / "in", "weather", label="latest")
    for path in (store, *store.rglob("*")):
        os.chown(path, -1, 10001)
        path.chmod(path.stat().st_mode | 0o060)
    return found


@pytest.fixture
def desk(machine: Machine, tmp_path: Path, store: Path, here: Registry) -> Iterator[Desk]:
    tmp_path.chmod(0o755)
    made = Desk(machine, tmp_path, store, here.host)
    yield made
    made.close()
    # They came from the registry, and are nobody else's.
    machine.podman("rmi", *(f"{here.host}/team/{name}:1" for name in ("viewer", "debugger", "streamer")), check=False)


def composed(desk: Desk) -> dict[str, Any]:
    """Return the pod, in which what dies comes back, and the application knows then what it has done."""
    listed = [word for name in ("viewer", "debugger", "streamer") for word in ("--artifact", name)]
    batteries = ["--battery", "fuse=fuse.yaml", "--battery", "function=function.yaml"]
    store = ["--store", "file:///store", "--store-claim", "store"]
    words = ["--image", image("runtime-python-3.11"), "--catalog", "catalog.yaml", *listed, *batteries, *store, "-o", "json"]
    made = subprocess.run(
        [BIN / "sidecar", "session", "compose", *words], capture_output=True, text=True, cwd=desk.top, check=True
    )
    pod: dict[str, Any] = json.loads(made.stdout)
    pod["spec"]["restartPolicy"] = "OnFailure"
    pod["spec"]["containers"][0]["command"][1:1] = ["--once", "application"]
    return pod


def test_from_images_to_a_saved_bundle_whatever_dies_in_between(
    machine: Machine, desk: Desk, kept: Store, here: Registry, tab: Callable[..., Tab], tmp_path: Path
) -> None:
    pod = composed(desk)
    name, manifest = pod["metadata"]["name"], json.dumps(pod)

    # The images that it names, of which three are made here: none is built, then all are, and pushed.
    checked = {each["reference"]: each["image"] for each in desk.ask("image", "check", "-f", "-", given=manifest, status=1)}
    ours = {reference: each for reference, each in checked.items() if each}
    assert {each["name"]: each["status"] for each in ours.values()} == dict.fromkeys(("viewer", "debugger", "streamer"), "NEW")
    assert image("fuse-sidecar") in checked
    desk.tell("image", "check", "-f", "-", "--push", "here", "--apply", given=manifest)
    for each in desk.ask("image", "list"):
        (at,) = (at for at in each["providers"] if at["provider"] == "here")
        assert (each["status"], at["presence"]) == ("COMPLETE", "pushed")
        assert at["digest"] == here.digest(f"team/{each['name']}", "1")

    # Started, with what was pushed. The battery keeps the output; meanwhile the application is killed.
    page = tab(desk.url, viewport={"width": 1280, "height": 900}).page
    server = httpx.Client(base_url=desk.url, trust_env=False, timeout=HANG)
    assert server.post("/v1/sessions", json={"pod": pod}).json()["name"] == name

    def participants() -> dict[str, Any]:
        told = server.get(f"/v1/sessions/{name}/coordination").json()
        return {each["name"]: each for each in told.get("participants", ())}

    until(lambda: participants().get("fuse", {}).get("standing") == "saving", "the output is being saved")
    (container,) = machine.podman("ps", "--format={{.Names}}", "--filter=name=application").stdout.split()
    pid = machine.podman("inspect", "--format={{.State.Pid}}", container).stdout.strip()
    machine.run("kill", "-KILL", pid)
    until(lambda: desk.ask("session", "show", name)["phase"] in ("Succeeded", "Failed"), "it has ended")
    status = desk.ask("session", "show", name)
    written = desk.tell("session", "logs", name)
    assert status["phase"] == "Succeeded", (status, written)
    lives = {each["name"]: each["restarts"] for each in status["containers"]}
    assert lives["application"] >= 1

    # It ran once, was answered once, and said the same again; one bundle was saved.
    assert re.findall(r"answered \d+", written) == ["answered 42"] * (1 + lives["application"])
    (bundle,) = kept.bundles("results")
    kept.populate(bundle, tmp_path / "out")
    assert (tmp_path / "out" / "lives").read_text() == "once\n"
    assert (tmp_path / "out" / "answer").read_text() == "42\nmon,12\nof the debugger\n"

    # All of that is on the page, which was open all the time.
    for each in ("viewer", "debugger", "streamer"):
        row = page.locator("#image-table tbody").filter(has=page.locator("th div").get_by_text(each, exact=True))
        expect(row.locator("td[data-head='Built'] .word")).to_have_text("COMPLETE")
        expect(row.locator("td[data-head='here'] .word")).to_have_text("pushed")
        expect(row.locator("td[data-head='archive'] .word")).to_have_text("absent")
    shown = page.locator("article").filter(has=page.get_by_role("heading", name=name, exact=True))
    expect(shown.locator(".word").first).to_have_text("Succeeded")
    timeline = shown.get_by_role("img", name=f"Timeline of {name}")
    for participant in ("application", "fuse", "function"):
        expect(timeline.get_by_text(participant, exact=True).first).to_be_attached()
