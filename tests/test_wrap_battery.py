"""`wrap_battery`: a battery that somebody else has written, found by its entry point, beside an application as ours are."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from processes import BIN, PID_1, Pod, Started, until

from sidecar.coordination.protocol import DONE, FAILED, READY, RUNNING
from sidecar.errors import PeerFailed
from sidecar.testing import check_battery

# A distribution as pip leaves one: a module, and what its entry points are. It looks for a file, and fails when that goes away.
MODULE = """
import os, time
from dataclasses import dataclass
from sidecar.batteries import Kind
from sidecar.batteries.companion import hosted
from sidecar.errors import NotSaved, PeerFailed
from sidecar.parameters import settings
from sidecar.parameters.document import read_document
from sidecar.parameters.settings import Field

FIELDS = (Field("path", "", settings.path), Field("word", "", settings.text, default="it"))

@dataclass(frozen=True)
class Options:
    path: str
    word: str
    folder: str
    earlier: object

class Lamp:
    def __init__(self, options, progress):
        self.options, self.closed = options, False

    def ready(self):
        with open(self.options.path, "x") as file:
            file.write(self.options.word)
        return {"path": self.options.path, "folder": self.options.folder, "earlier": self.options.earlier}

    def watch(self):
        while not self.closed:
            if not os.path.exists(self.options.path):
                raise PeerFailed("somebody took it away")
            time.sleep(0.005)

    def save(self):
        with open(self.options.path) as file:
            word = file.read()
        if word != self.options.word:
            raise NotSaved("it is another")
        os.unlink(self.options.path)
        time.sleep(0.05)  # as long as watching takes to see that, which is no failure any more
        return {"word": word}

    def close(self):
        self.closed = True

def read(document, name, place):
    values = read_document(document, name, FIELDS)
    return Options(values["path"], values["word"], place.folder, place.earlier)

def companion(document, name, around):
    read_document(document, name, FIELDS)
    return hosted("lamp", document, around, image="localhost/lamp:1", shared=("/light",))

KIND = Kind("lamp", Options, Lamp, companion, read)
NONE = 5
"""
METADATA = "Metadata-Version: 2.1\nName: lamp-battery\nVersion: 1\n"
ENTRY_POINTS = """\
[sidecar.batteries]
lamp = lamp_battery:KIND
not_one = lamp_battery:NONE
torn = lamp_battery:MISSING
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the distribution is installed."""
    place = tmp_path_factory.mktemp("installed")
    (place / "lamp_battery.py").write_text(MODULE)
    about = place / "lamp_battery-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(METADATA)
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    return place


class Lit(Pod):
    """A pod with a lamp, which is the file `path`."""

    def __init__(self, folder: Path, installed: Path) -> None:
        super().__init__(folder)
        self.installed = installed
        self.path = folder / "lamp"

    def __enter__(self) -> Self:
        return self

    def lamp(self, *words: str | Path, document: str | None = None, kind: str = "lamp", **how: Any) -> Started:
        """Start `wrap_battery KIND`; the document is in the environment."""
        document = f"path: {self.path}\n" if document is None else document
        environment = {"PYTHONPATH": str(self.installed), "SIDECAR_PARAMETERS": document}
        prefix = how.pop("prefix", ())
        return self.start(*prefix, BIN / "wrap_battery", kind, "-c", self.coord, *words, env=environment, **how)


@pytest.fixture
def pod(tmp_path: Path, installed: Path) -> Iterator[Lit]:
    with Lit(tmp_path, installed) as pod:
        yield pod


def test_it_is_ready_before_the_application_runs_and_saves_after_it_has_ended(pod: Lit) -> None:
    application = pod.wrap("-b", "lamp", "--", "cat", pod.path)
    lamp = pod.lamp()
    assert (application.wait(), lamp.wait()) == (0, 0), lamp.err
    assert application.out == "it"
    told = json.loads((pod.coord / "lamp" / "ready").read_text())["payload"]
    assert told == {"path": str(pod.path), "folder": str(pod.coord / "lamp"), "earlier": None}
    record = pod.record("lamp")
    assert record is not None
    assert (record.state, record.saved, dict(record.payload or {})["word"]) == (DONE, True, "it")
    assert not pod.path.exists()


def test_its_parameters_may_be_a_file(pod: Lit) -> None:
    (pod.folder / "lamp.yaml").write_text(f"path: {pod.path}\nword: another\n")
    application = pod.wrap("-b", "lamp", "--", "cat", pod.path)
    lamp = pod.lamp("--parameters", pod.folder / "lamp.yaml", document="path: /nowhere\n")
    assert (application.wait(), application.out, lamp.wait()) == (0, "another", 0)


def test_one_that_fails_while_the_application_runs_tells_it(pod: Lit) -> None:
    lamp = pod.lamp()
    application = pod.wrap("-b", "lamp", "--fail-fast", "--", "sleep", "1000")
    pod.hear_state(RUNNING)
    pod.path.unlink()
    assert (application.wait(), lamp.wait()) == (69, 69)
    assert "lamp failed: somebody took it away" in application.err
    record = pod.hear_state(FAILED, "lamp")
    assert record.error is not None
    assert record.error.reason == "somebody took it away"


def test_one_that_failed_meanwhile_keeps_the_pod_from_ending_in_success(pod: Lit) -> None:
    lamp = pod.lamp()
    application = pod.wrap("-b", "lamp", "--", "sh", "-c", f"rm {pod.path}; while [ ! -e {pod.folder}/go ]; do sleep 0.01; done")
    pod.hear_state(FAILED, "lamp")
    pod.file("go").touch()
    assert (application.wait(), lamp.wait()) == (73, 69)
    assert "somebody took it away" in application.err


def test_a_next_life_is_told_what_the_one_before_was_ready_with(pod: Lit) -> None:
    lamp = pod.lamp()
    pod.hear("lamp/ready")
    lamp.kill()
    pod.path.unlink()
    pod.lamp()
    until(lambda: (record := pod.record("lamp")) is not None and (record.life, record.state) == (2, READY), "it lives again", pod)
    pod.hear("lamp/ready")
    told = json.loads((pod.coord / "lamp" / "ready").read_text())["payload"]
    assert told["earlier"] == {"path": str(pod.path), "folder": str(pod.coord / "lamp"), "earlier": None}


def test_what_is_wrong_with_its_parameters_is_told_to_the_application_at_once(pod: Lit, tmp_path: Path) -> None:
    (tmp_path / "reason").touch()  # as the kubelet makes it
    application = pod.wrap("-b", "lamp", "--", "true")
    lamp = pod.lamp("--termination-log", tmp_path / "reason", document="path: lamp\nwort: x\n")
    assert (lamp.wait(), application.wait()) == (65, 69)
    told = [
        "SIDECAR_PARAMETERS line 1: path: expected an absolute path, one that begins with '/', not 'lamp'",
        "SIDECAR_PARAMETERS line 2: wort: unknown key; did you mean 'word'?",
    ]
    for each in told:
        assert f"wrap_battery: {each}" in lamp.err
        assert each in (tmp_path / "reason").read_text()
        assert each in application.err


@pytest.mark.parametrize(
    ("kind", "status", "told"),
    [
        ("nosuch", 78, "there is no battery 'nosuch'; installed: "),
        ("not_one", 78, "the entry point lamp_battery:NONE of battery 'not_one' is not a Kind"),
        ("torn", 78, "the battery 'torn' cannot be loaded from lamp_battery:MISSING: "),
        ("fuse", 78, "the battery 'fuse' has a command of its own, and reads no document"),
        ("../x", 2, "is no name for a kind of battery"),
    ],
)
def test_a_kind_that_cannot_be_run_is_told_by_its_name(kind: str, status: int, told: str, pod: Lit) -> None:
    lamp = pod.lamp(kind=kind)
    assert lamp.wait() == status
    assert told in lamp.err
    assert not pod.path.exists()


def test_a_kind_that_is_not_installed_is_told_to_the_application(pod: Lit) -> None:
    application = pod.wrap("-b", "nosuch", "--", "true")
    pod.lamp(kind="nosuch")
    assert application.wait() == 69
    assert "there is no battery 'nosuch'" in application.err


@pytest.mark.parametrize("words", [("--parameters", "missing.yaml"), ("-c", "missing")])
def test_what_is_not_there_is_told(words: tuple[str, str], pod: Lit) -> None:
    lamp = pod.lamp(*words, cwd=pod.folder)
    assert lamp.wait() == {"--parameters": 2, "-c": 74}[words[0]]
    assert "missing" in lamp.err


def test_every_value_is_printed(pod: Lit) -> None:
    lamp = pod.lamp("--print-config")
    assert lamp.wait() == 0, lamp.err
    rows = [line.split() for line in lamp.out.splitlines()]
    assert rows[:2] == [["path", str(pod.path), "SIDECAR_PARAMETERS"], ["word", "it", "SIDECAR_PARAMETERS"]]
    assert list(pod.coord.iterdir()) == []


def test_as_the_first_process_it_hears_sigterm_at_any_moment(pod: Lit) -> None:
    lamp = pod.lamp("--grace", "0", prefix=PID_1)
    pod.hear("lamp/ready")
    (first,) = map(int, Path(f"/proc/{lamp.pid}/task/{lamp.pid}/children").read_text().split())
    subprocess.run(["kill", "-TERM", str(first)], check=True)
    pod.hear_state(FAILED, "lamp")
    assert lamp.wait() == 128 + signal.SIGTERM


class Torn:
    """A battery that holds what it gave for lost, although nothing happened but that it was closed."""

    def ready(self) -> dict[str, Any]:
        return {}

    def watch(self) -> None:
        raise PeerFailed("it is gone")

    def save(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def test_the_contract_wants_of_a_battery_that_watches_that_being_closed_is_no_failure() -> None:
    with pytest.raises(AssertionError, match="a watch\\(\\) that was closed raised PeerFailed"):
        check_battery(Torn)


# --- in a pod that is composed -----------------------------------------------------------------------------------------


def compose(installed: Path, folder: Path, document: str) -> subprocess.CompletedProcess[str]:
    (folder / "lamp.yaml").write_text(document)
    words = ("session", "compose", "--image", "any", "--battery", "lamp=lamp.yaml", "--grace", "20s", "--", "true")
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, BIN / "sidecar", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


def test_it_is_woven_into_a_session_with_its_parameters_as_they_were_written(installed: Path, tmp_path: Path) -> None:
    document = "# $(HOME) is no variable here\npath: /light/lamp\nword: it's $5\n"
    ran = compose(installed, tmp_path, document)
    assert ran.returncode == 0, ran.stderr
    application, lamp = yaml.safe_load(ran.stdout)["spec"]["containers"]
    assert application["command"][:5] == [
        "/sidecar/wrapper/wrap_application", "-c", "/sidecar/coordination", "-b", "lamp",
    ]  # fmt: skip
    assert (lamp["name"], lamp["image"]) == ("lamp", "localhost/lamp:1")
    assert lamp["command"] == ["wrap_battery", "lamp", "-c", "/sidecar/coordination", "--grace", "20s"]
    # Kubernetes makes one dollar of two.
    assert lamp["env"] == [{"name": "SIDECAR_PARAMETERS", "value": document.replace("$", "$$")}]
    assert lamp["securityContext"]["readOnlyRootFilesystem"] is True
    mounted = [
        [mount["name"] for mount in each["volumeMounts"] if mount["mountPath"] == "/light"] for each in (application, lamp)
    ]
    assert mounted[0] == mounted[1] != []


def test_faults_of_its_parameters_are_told_when_it_is_composed(installed: Path, tmp_path: Path) -> None:
    ran = compose(installed, tmp_path, "path: lamp\n")
    assert (ran.returncode, ran.stdout) == (65, "")
    assert "lamp.yaml line 1: path: expected an absolute path" in ran.stderr
