"""The project's own images, as `make images` has built them: pushed to two registries and a layout, and found there.

Records are of one place, and images/factory.yaml names no provider. So each command has a mount namespace, in which that file is
one that does and the records are a copy: nothing is built a second time, and what is recorded here is gone with the test. The
store is that of all pods, and only read.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from containers import TOP
from processes import BIN, until
from registries import registry
from workshop import free

from sidecar import __version__

EXAMPLES = TOP / "k8s-examples"
DEFINITION, RECORDS = TOP / "images" / "factory.yaml", TOP / "build" / "factory"

# Runs a command where two files or folders are in the place of others.
BOUND = 'mount --bind "$1" "$2" && mount --bind "$3" "$4" && shift 4 && exec "$@"'


class Images:
    """The folder images/ and what `make images` knows of it, in namespaces where providers are named and records a copy."""

    def __init__(self, folder: Path, providers: dict[str, Any]) -> None:
        definition, records = folder / "factory.yaml", folder / "records"
        definition.write_text(DEFINITION.read_text() + yaml.safe_dump({"providers": providers}))
        records.mkdir(0o700)
        records.joinpath("state.sqlite3").touch(0o600)
        source, copy = f"file:{quote(str(RECORDS))}/state.sqlite3?mode=ro", records / "state.sqlite3"
        with closing(sqlite3.connect(source, uri=True)) as theirs, closing(sqlite3.connect(copy)) as ours:
            theirs.backup(ours)
        shutil.copytree(RECORDS / "builders", records / "builders")
        binds: list[str | Path] = [definition, DEFINITION, records, RECORDS]
        self._before: list[str | Path] = ["unshare", "--mount", "--propagation", "private", "sh", "-c", BOUND, "sh", *binds]
        self._slots = records / "builders"

    def __enter__(self) -> Images:
        return self

    def __exit__(self, *_: object) -> None:
        until(self.idle, "nobody builds any more")

    def type(self, *words: str | Path) -> Any:
        """Return what `sidecar image WORDS --json` prints."""
        command = [*self._before, BIN / "sidecar", "image", *words, "--factory", DEFINITION, "--json"]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=TOP, env={**os.environ, "SIDECAR_STATE": str(RECORDS)})
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def idle(self) -> bool:
        """Tell whether nobody builds: all slots are free."""
        for slot in self._slots.glob("slot-*"):
            with slot.open("rb") as file:
                if not free(file.fileno()):
                    return False
        return True


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for what is pushed, which is a gigabyte."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_every_image_of_the_project_is_pushed_to_two_registries_and_a_layout_with_the_digests_that_these_have(
    folder: Path,
) -> None:
    layout = folder / "layout"
    with registry(folder / "first") as first, registry(folder / "second") as second:
        registries = {"first": first, "second": second}
        providers: dict[str, Any] = {name: {"registry": each.host, "plain": True} for name, each in registries.items()}
        with Images(folder, providers | {"layout": {"layout": str(layout)}}) as images:
            before = {each["name"]: each for each in images.type("list")}
            assert len(before) >= len([*(TOP / "images").glob("**/Containerfile")]) > 0
            assert {each["status"] for each in before.values()} == {"COMPLETE"}, "`make images` builds them"

            works = images.type("build", "--all", *(f"--push={name}" for name in (*registries, "layout")))
            assert {each["status"] for each in works} == {"COMPLETE"}
            built = {each["image"]: each["id"] for each in works if each["kind"] == "build"}
            assert built == {name: each["build"]["id"] for name, each in before.items()}
            pushes = {(each["provider"], each["image"]): each["digest"] for each in works if each["kind"] == "push"}
            assert len(pushes) == 3 * len(before)

            index = json.loads((layout / "index.json").read_text())["manifests"]
            listed = {each["annotations"]["org.opencontainers.image.ref.name"]: each["digest"] for each in index}
            for name in before:
                said = {to: each.digest(f"sidecar/{name}", __version__) for to, each in registries.items()}
                said["layout"] = listed[f"sidecar/{name}:{__version__}"]
                assert said == {to: pushes[to, name] for to in said}, name
            for each in images.type("list"):
                assert {at["provider"]: at["presence"] for at in each["providers"]} == dict.fromkeys(said, "pushed"), each["name"]
                assert each["actions"] == []

            named = images.type("check", "-f", EXAMPLES)
            ours = [each for each in named if each["reference"].startswith("localhost/sidecar/")]
            assert len({each["image"]["name"] for each in ours}) >= 5
            assert {at["presence"] for each in ours for at in each["image"]["providers"]} == {"pushed"}
