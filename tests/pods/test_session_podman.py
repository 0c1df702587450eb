"""The runner of containers: what every runner owes, in real containers; and what is its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from containers import Machine, image
from session_contract import Contract

from sidecar.errors import SourceMissing
from sidecar.session.podman import PodmanRunner


def left(machine: Machine) -> list[str]:
    """Return what podman has: containers, pods, volumes."""
    asked = (["ps", "--all", "--external", "--format={{.Names}}"], ["pod", "ps", "--quiet"], ["volume", "ls", "--quiet"])
    return [line for words in asked for line in machine.podman(*words).stdout.splitlines()]


@pytest.fixture
def runner(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PodmanRunner]:
    """Of each test's own; what it leaves is found."""
    for key in ("CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF"):
        monkeypatch.setenv(key, machine.environment[key])
    # The images' user is not root, and is to find what a test puts there.
    tmp_path.chmod(0o755)
    words = ("nsenter", f"--target={machine.pid}", "--mount", "--pid", "--", "podman")
    runner = PodmanRunner(str(tmp_path / "pods"), words, network="none", backoff=0.05)
    yield runner
    for each in runner.list():
        with suppress(SourceMissing):
            runner.stop(each.name, 0)
    assert left(machine) == []
    assert not os.path.exists(runner.folder) or os.listdir(runner.folder) == []


@pytest.fixture
def base() -> str:
    return image("demo-app")


class TestInContainers(Contract):
    """What every runner owes."""
