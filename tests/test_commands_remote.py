"""Every command against an object store, each a process of its own: what works on a disk works there. So does a whole job."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from emulators import Emulator
from mounts import nothing_left_below
from processes import BIN, HANG

from sidecar.testing import read_tree


@pytest.fixture(params=["google", pytest.param("amazon", marks=pytest.mark.long)])
def emulator(request: pytest.FixtureRequest) -> Emulator:
    """One of them in the short form: commands know no store but by its contract, which both keep, see test_store_remote.py."""
    found: Emulator = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def sidecar(emulator: Emulator) -> Callable[..., Any]:
    """Run `sidecar WORDS --json` with the store in a bucket, and return what it said."""
    environment = os.environ | {
        "SIDECAR_STORE": emulator.new_url(),
        f"FSSPEC_{emulator.scheme.upper()}": json.dumps(emulator.options),
    }

    def run(*words: str | Path, plain: bool = False) -> Any:
        command = [str(BIN / "sidecar"), *map(str, words), *([] if plain else ["--json"])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout if plain else json.loads(done.stdout)

    return run


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "weather"
    (tree / "2026").mkdir(parents=True)
    (tree / "2026" / "week.csv").write_text("day,celsius\nmon,12\ntue,19\n")
    (tree / "large").write_bytes(os.urandom(9 << 20))
    (tree / "link").symlink_to("large")
    return tree


def test_bundles_are_kept_found_compared_fetched_and_checked(sidecar: Callable[..., Any], tree: Path, tmp_path: Path) -> None:
    sidecar("repo", "create", "weather", "--description", "daily")
    assert [each["name"] for each in sidecar("repo", "list")] == ["weather"]
    first = sidecar("bundle", "upload", tree, "--repo", "weather", "--label", "latest", "--message", "one")
    (tree / "2026" / "week.csv").write_text("day,celsius\nmon,12\ntue,20\n")
    second = sidecar("bundle", "upload", tree, "--repo", "weather", "--label", "latest")
    assert second["parent"] == first["id"]
    assert second["stored"] < 1000
    assert [each["id"] for each in sidecar("bundle", "list", "weather")] == [first["id"], second["id"]]
    assert sidecar("bundle", "show", "weather@latest")["id"] == second["id"]
    assert {each["path"] for each in sidecar("bundle", "files", "weather")} == {"2026", "2026/week.csv", "large", "link"}
    changed = sidecar("bundle", "diff", f"weather@{first['id']}", "weather")
    assert [each["path"] for each in changed if each["what"] == "changed"] == ["2026/week.csv"]
    sidecar("bundle", "verify", "weather")
    sidecar("bundle", "download", "weather", tmp_path / "back")
    assert read_tree(str(tmp_path / "back")) == read_tree(str(tree))
    sidecar("label", "set", "weather", "good", f"weather@{first['id']}")
    sidecar("label", "set", "weather", "good", "weather@latest")
    assert sidecar("label", "list", "weather") == {
        "good": second["id"],
        "latest": second["id"],
    }
    assert sidecar("label", "show", "weather", "good")["bundle"] == second["id"]
    assert [each["bundle"] for each in sidecar("label", "history", "weather", "good")] == [first["id"], second["id"]]
    checked = sidecar("store", "check", "--read-data")
    assert (checked["bundles"], checked["faults"]) == (2, [])
    pruned = sidecar("store", "prune")
    assert pruned["objects"] == 0
    assert sidecar("repo", "show", "weather")["name"] == "weather"


def test_a_job_has_its_input_from_a_bucket_and_its_output_saved_there(
    sidecar: Callable[..., Any], tree: Path, tmp_path: Path
) -> None:
    sidecar("bundle", "upload", tree, "--repo", "weather", "--label", "latest")
    with nothing_left_below(tmp_path):
        source, dest = f"weather@latest:{tmp_path}/in", f"{tmp_path}/out:results@daily"
        script = f"sort -t, -nk2 {tmp_path}/in/2026/week.csv | tail -1 > {tmp_path}/out/warmest"
        sidecar("run", "--source", source, "--dest", dest, "--", "sh", "-c", script, plain=True)
    sidecar("bundle", "download", "results@daily", tmp_path / "here")
    assert (tmp_path / "here" / "warmest").read_text() == "tue,19\n"
