"""Pods in real containers: what their tests share. `make test-pods` builds the images that they run."""

import re
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from containers import TOP, Machine

LOGS = TOP / "build" / "pods"
# A pod takes seconds to begin on a busy machine, and a test waits for several things, each for as long as anything may take.
SECONDS = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(SECONDS))


@pytest.fixture(scope="session")
def workers_machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


@pytest.fixture
def machine(workers_machine: Machine, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """podman, empty; what a test leaves is removed, and where it failed, what all containers said is kept in build/pods."""
    yield workers_machine
    failed = request.node.stash.get(FAILED, False)
    folder = LOGS / re.sub(r"[^\w.-]+", "-", request.node.name)
    shutil.rmtree(folder, ignore_errors=True)
    for pod in list(workers_machine.pods):
        if failed:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{pod.name}.log").write_text(pod.told())
            shutil.copy(pod.manifest, folder / f"{pod.name}.yaml")
        pod.remove()


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and report.when == "call":
        item.stash[FAILED] = True
        machine = getattr(item, "funcargs", {}).get("machine")
        for pod in machine.pods if machine else ():
            report.sections.append((f"pod {pod.name}", pod.told()))
    return report


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The directory of a claim that holds a store; not made yet by anyone."""
    path = tmp_path / "store"
    path.mkdir()
    path.chmod(0o777)
    return path
