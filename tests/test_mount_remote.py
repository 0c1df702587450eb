"""Bundles in buckets are read where they lie, through a Reader and through a real mount, also while the service fails."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import emulators
import pandas as pd
import pytest
from emulators import Emulator, Faults
from mounts import Mounted, cat, nothing_left_below
from processes import HANG, until

from sidecar.mount import Mount, is_mounted
from sidecar.store import Bundle, Patience, Store, open_store
from sidecar.store.cache import Cache
from sidecar.store.format import MIB
from sidecar.store.reader import open_reader
from sidecar.testing import read_tree

LARGE = random.Random(1).randbytes(18 * MIB + 777)  # three chunks
TABLE = pd.DataFrame({"a": range(10_000), "b": ["x", "y"] * 5000})
SMALL = {f"small/{number:03}": random.Random(number).randbytes(3000) for number in range(100)}
# `slowest`: else a chunk of 8 MiB would be given half a minute more.
SHORT = Patience(request=0.5, slowest=1 << 30, whole=30.0, pause=0.05, longest_pause=0.1)
SOON_OVER = Patience(request=0.3, slowest=1 << 30, whole=2.0, pause=0.05, longest_pause=0.1)


class Saved(NamedTuple):
    """A bundle in a bucket, and the tree that it was made of."""

    emulator: Emulator
    store: Store
    bundle: Bundle
    tree: Path


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Every test: there is FUSE, and afterwards no mount."""
    with nothing_left_below(tmp_path):
        yield


@pytest.fixture(scope="module")
def saved(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    tree = tmp_path_factory.mktemp("saved") / "tree"
    (tree / "small").mkdir(parents=True)
    for name, data in SMALL.items():
        (tree / name).write_bytes(data)
    (tree / "large").write_bytes(LARGE)
    (tree / "nothing").write_bytes(b"")
    (tree / "pages").write_bytes(LARGE[:MIB])
    (tree / "link").symlink_to("small/007")
    TABLE.to_csv(tree / "table.csv", index=False)
    connection = sqlite3.connect(tree / "table.db")
    TABLE.to_sql("t", connection)
    connection.commit()
    connection.close()
    store = open_store(emulator.new_url(), **emulator.options)
    return Saved(emulator, store, store.save(tree, "r", chunk_size=lambda path, _: 8192 if path == "pages" else 0), tree)


def leading_there(emulator: Emulator, host: str = "") -> dict[str, str]:
    """Return the environment in which any program finds the emulator, by way of `host` if need be."""
    options = emulator.through(host) if host else emulator.options
    return {f"FSSPEC_{emulator.scheme.upper()}": json.dumps(options)}


# --- what is there -----------------------------------------------------------------------------------------------------


def test_a_reader_has_any_range_of_any_file_of_a_bucket(saved: Saved) -> None:
    reader = open_reader(saved.store, saved.bundle)
    files = {"large": LARGE, "nothing": b"", "pages": LARGE[:MIB]} | SMALL
    for path, data in files.items():
        assert reader.read(reader.tree.find(path.encode()), 0, 1 << 40) == data
    reader.close()
    reader = open_reader(saved.store, saved.bundle, memory=4 * MIB)  # less than one chunk: nothing is here from before
    choose = random.Random(2)
    for path in ("large", "pages", "small/050"):
        node, data = reader.tree.find(path.encode()), files[path]
        for _ in range(10):
            offset, length = choose.randrange(len(data)), choose.randrange(2 * MIB)
            assert reader.read(node, offset, length) == data[offset : offset + length]
    assert reader.read(reader.tree.find(b"large"), 8 * MIB - 1, 2) == LARGE[8 * MIB - 1 : 8 * MIB + 1]
    reader.close()


def test_small_files_of_a_bucket_come_with_one_request_for_all(saved: Saved) -> None:
    with emulators.failing(saved.emulator.host) as (host, planned):
        reader = open_reader(open_store(saved.store.url, **saved.emulator.through(host)), saved.bundle)
        before = planned.seen.total()
        for path, data in SMALL.items():
            assert reader.read(reader.tree.find(path.encode()), 0, 1 << 40) == data
        reader.close()
        assert planned.seen.total() - before == 1


def test_a_mounted_bundle_of_a_bucket_is_the_tree_that_was_saved(saved: Saved, tmp_path: Path) -> None:
    with Mounted(saved.store, tmp_path / "in", environment=leading_there(saved.emulator)) as mounted:
        assert mounted.told["id"] == saved.bundle.id
        assert read_tree(str(tmp_path / "in")) == read_tree(str(saved.tree))


def test_any_range_of_a_mounted_file_of_a_bucket_is_read(saved: Saved, tmp_path: Path) -> None:
    choose = random.Random(3)
    with Mounted(saved.store, tmp_path / "in", environment=leading_there(saved.emulator)):
        for path in ("large", "pages"):
            data = (saved.tree / path).read_bytes()
            with (tmp_path / "in" / path).open("rb", buffering=0) as file:
                for offset in [8 * MIB - 1, *(choose.randrange(len(data)) for _ in range(20))]:
                    assert os.pread(file.fileno(), 70_000, offset) == data[offset : offset + 70_000]


def test_pandas_and_sqlite_read_a_mounted_bundle_of_a_bucket(saved: Saved, tmp_path: Path) -> None:
    with Mounted(saved.store, tmp_path / "in", environment=leading_there(saved.emulator)):
        assert pd.read_csv(tmp_path / "in" / "table.csv").equals(TABLE)
        connection = sqlite3.connect(f"file:{tmp_path}/in/table.db?mode=ro", uri=True)
        assert connection.execute("select sum(a) from t where b = 'x'").fetchall() == [(sum(range(0, 10_000, 2)),)]
        connection.close()


def test_what_the_cache_has_of_a_bucket_is_read_while_the_service_is_away(saved: Saved, tmp_path: Path) -> None:
    with emulators.failing(saved.emulator.host) as (host, planned):
        store = open_store(saved.store.url, patience=SOON_OVER, **saved.emulator.through(host))
        for fault in ("", "503"):
            reader = open_reader(store, saved.bundle, cache=Cache(str(tmp_path / "cache"), 100 * MIB))
            with Mount(reader, tmp_path / "in"):
                planned.always = fault
                assert cat(tmp_path / "in" / "large") == LARGE
                assert cat(tmp_path / "in" / "small" / "007") == SMALL["small/007"]
                reader._threads.finish()  # what was read is in the cache


# --- faults ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def faults(saved: Saved) -> Iterator[tuple[str, Faults]]:
    """A proxy before the service: its address, and what it does."""
    with emulators.failing(saved.emulator.host) as (host, planned):
        yield host, planned


def can_be_read(path: Path) -> bool:
    return subprocess.run(["cat", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize("fault", ["503", "429", "close", "cut", "stall"])
def test_a_mounted_file_is_read_whole_although_the_service_fails_now_and_then(
    fault: str, saved: Saved, faults: tuple[str, Faults], tmp_path: Path
) -> None:
    host, planned = faults
    store = open_store(saved.store.url, patience=SHORT, **saved.emulator.through(host))
    with Mount(open_reader(store, saved.bundle), tmp_path / "in"):
        planned.plan = deque([fault, fault, "", fault])
        assert cat(tmp_path / "in" / "large") == LARGE
        assert not planned.plan, "all of it was met"
        planned.plan = deque([fault])
        assert cat(tmp_path / "in" / "small" / "007") == SMALL["small/007"]
        assert not planned.plan


@pytest.mark.parametrize("fault", ["503", "close", "stall"])
def test_who_reads_what_the_service_does_not_give_is_told_in_time_and_reads_on_once_it_is_back(
    fault: str, saved: Saved, faults: tuple[str, Faults], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host, planned = faults
    # Who comes first loads its client meanwhile: on a busy machine all the patience there is may be over by then.
    assert open_store(saved.store.url, **saved.emulator.through(host)).repos()
    store = open_store(saved.store.url, patience=SOON_OVER, **saved.emulator.through(host))
    with Mount(open_reader(store, saved.bundle), tmp_path / "in"):
        assert cat(tmp_path / "in" / "table.csv") == (saved.tree / "table.csv").read_bytes()
        planned.always = fault
        began = time.monotonic()
        names = ("large", "pages")
        reading = [subprocess.Popen(["cat", tmp_path / "in" / name], stdout=-1, stderr=-1, text=True) for name in names]
        assert sorted(os.listdir(tmp_path / "in")) == sorted(os.listdir(saved.tree)), "names are there without the service"
        for process in reading:
            assert "Input/output error" in process.communicate(timeout=HANG)[1]
        # The kernel asks twice before it tells a program that something cannot be read; that must not double the wait.
        assert time.monotonic() - began < 1.85 * SOON_OVER.whole
        assert f"{saved.store.url}: objects/" in caplog.text
        assert cat(tmp_path / "in" / "table.csv") == (saved.tree / "table.csv").read_bytes(), "it is here"
        planned.always = ""
        until(lambda: all(can_be_read(tmp_path / "in" / name) for name in names), "what was refused can be read again")
        assert cat(tmp_path / "in" / "pages") == LARGE[:MIB]
        assert cat(tmp_path / "in" / "large") == LARGE
    assert not is_mounted(str(tmp_path / "in"))


def test_a_mount_of_a_service_that_stalls_is_ended_at_once_by_sigterm(
    saved: Saved, faults: tuple[str, Faults], tmp_path: Path
) -> None:
    host, planned = faults
    with Mounted(saved.store, tmp_path / "in", environment=leading_there(saved.emulator, host)) as mounted:
        planned.always = "stall"
        before = planned.seen.total()
        reading = subprocess.Popen(["cat", tmp_path / "in" / "large"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while planned.seen.total() == before:
            assert reading.poll() is None
            time.sleep(0.005)  # nobody tells when a request has come
        began = time.monotonic()
        assert mounted.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < HANG / 4, "an answer is waited for a minute and more"
        assert reading.wait(HANG) == 1
    assert not is_mounted(str(tmp_path / "in"))
