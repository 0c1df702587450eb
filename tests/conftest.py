"""What the tests share: stores, a tree to save in them, a small disk, and signals that are heard."""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import emulators
import memory
import pytest
from emulators import Emulator

from sidecar.store import Store, open_store

if TYPE_CHECKING:
    from browser import Browser, Tab
    from factory_places import Place

# The asserts of contracts tell what they found, as those of tests do.
pytest.register_assert_rewrite("session_contract", "factory_contract")

# What is collected stays to the end: who looks through all of it again and again for garbage takes a fifth of the time that
# collecting takes, and every process that is forked from there copies what that has touched.
gc.disable()


def pytest_configure() -> None:
    memory.take()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


# A shell that puts the tests into the background has SIGINT and SIGQUIT ignored, nohup has SIGHUP; every child inherits that.
for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of files, not made yet."""
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two small files in a pack, one of two chunks, a link. Modules that look at other things have a tree of their own."""
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "one").write_bytes(b"one")
    (top / "two").write_bytes(random.Random(2).randbytes(3000))
    (top / "big").write_bytes(random.Random(1).randbytes(10 << 20))
    (top / "link").symlink_to("two")
    return top


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB where one may be mounted; else the limit of a file's size, which fails alike."""
    where = tmp_path / "tiny"
    where.mkdir()
    mounted = os.getuid() == 0 and not subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", where]).returncode
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, limits[1]))
    try:
        yield where
    finally:
        if mounted:
            subprocess.run(["umount", "-l", where], check=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="session")
def google() -> Iterator[Emulator]:
    with emulators.google() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def amazon() -> Iterator[Emulator]:
    with emulators.amazon() as emulator:
        yield emulator


@pytest.fixture(params=["google", "amazon"], scope="session")
def emulator(request: pytest.FixtureRequest) -> Emulator:
    """An object store that serves all tests, each in stores of its own: see Emulator.new_url."""
    found: Emulator = request.getfixturevalue(request.param)
    return found


# Imported by those alone who look at a page: Playwright is a fifth of a second of each process's start.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    import browser

    with browser.chromium() as found:
        yield found


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens a page as somebody does who was never there; as many as a test wants, each alone."""
    from browser import Tab

    tabs: list[Tab] = []

    def show(url: str, **options: Any) -> Tab:
        tabs.append(Tab(chromium, url, **options))
        return tabs[-1]

    yield show
    for each in tabs:
        each.close()


@pytest.fixture
def place() -> Iterator[Place]:
    """A folder with a factory.yaml and the context of an image, in memory."""
    from factory_places import new_place

    with memory.folder() as top, new_place(top / "place") as found:
        yield found
