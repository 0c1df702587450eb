"""A store that is not on this machine: the same contract, and what happens while it does not answer as it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import emulators
import pytest
from emulators import Emulator, Faults

from sidecar.errors import ConfigurationError, Corrupt, Unreachable
from sidecar.store import Patience, Store, open_store
from sidecar.testing import check_store, read_tree

MIB = 1 << 20
SHORT = Patience(request=1.0, whole=60.0, pause=0.05, longest_pause=0.2)


def new_store(emulator: Emulator, patience: Patience | None = None, **options: Any) -> Store:
    return open_store(emulator.new_url(), patience=patience, **(emulator.options | options))


@pytest.fixture
def faults(emulator: Emulator) -> Iterator[tuple[Store, Faults]]:
    """A store that is reached through a proxy, and what the proxy does."""
    with emulators.failing(emulator.host) as (host, planned):
        yield open_store(emulator.new_url(), patience=SHORT, **emulator.through(host)), planned


# --- contract ------------------------------------------------------------------------------------------------------


def test_a_bucket_keeps_the_contract_of_a_store(emulator: Emulator) -> None:
    check_store(lambda: new_store(emulator))


def test_of_many_who_create_one_record_at_once_one_alone_does(emulator: Emulator) -> None:
    store = new_store(emulator)
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda n: store._objects.create("repos/x/repo", b"%d" % n), range(8)))
    assert created.count(True) == 1
    assert store._objects.get("repos/x/repo", 9) == b"%d" % created.index(True)


def test_what_another_process_has_saved_is_seen_at_once(emulator: Emulator, tree: Path) -> None:
    first = new_store(emulator)
    second = open_store(first.url, **emulator.options)
    for number in range(3):
        (tree / "two").write_bytes(b"%d" % number)
        bundle = first.save(tree, "data", label="main")
        assert second.resolve("data", label="main") == bundle


def test_an_object_that_is_missing_or_cut_short_is_told_with_its_file(emulator: Emulator, tree: Path, tmp_path: Path) -> None:
    store = new_store(emulator)
    bundle = store.save(tree, "data")
    entry = next(entry for entry in store.manifest(bundle) if entry.path == "big")
    name = f"objects/{entry.pieces[1].object[:2]}/{entry.pieces[1].object}"
    for damage in (b"x", b"", None):
        if damage is None:
            store._objects.remove(name)
        else:
            store._objects.put(name, damage, anew=True)
        with pytest.raises(Corrupt, match=f"repository 'data', bundle {bundle.id}, file 'big': {name}"):
            store.populate(bundle, tmp_path / "back")


def test_what_no_bundle_refers_to_is_pruned_and_what_is_damaged_is_found(emulator: Emulator, tree: Path) -> None:
    store = new_store(emulator)
    bundle = store.save(tree, "data")
    garbage = f"objects/ab/ab{'0' * 62}"
    store._objects.put(garbage, b"garbage")
    assert store.check().unneeded == 1
    assert store.prune().bytes == 7
    assert store.check(read_data=True).faults == ()
    piece = next(entry for entry in store.manifest(bundle) if entry.path == "two").pieces[0]
    name = f"objects/{piece.object[:2]}/{piece.object}"
    store._objects.put(name, bytes(store._objects.size(name)), anew=True)
    (fault,) = store.check(read_data=True).faults
    assert f"bundle {bundle.id}, file '" in fault
    assert name in fault
    assert store._objects.names("uploads") == []


# --- what is tried again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["503", "429", "close", "cut", "lost", "stall"])
def test_what_fails_now_and_then_is_tried_again_and_what_is_saved_is_whole(
    fault: str, faults: tuple[Store, Faults], tree: Path, tmp_path: Path
) -> None:
    store, planned = faults
    planned.plan = deque(["", "", fault] * (2 if fault == "stall" else 8))
    bundle = store.save(tree, "data", label="main")
    planned.plan = deque(["", fault] * (2 if fault == "stall" else 4))
    store.populate(store.resolve("data", label="main"), tmp_path / "back")
    assert read_tree(str(tmp_path / "back")) == read_tree(str(tree))
    assert store.bundles("data") == [bundle]
    assert [move.bundle for move in store.label_history("data", "main")] == [bundle.id]


def test_an_answer_that_was_lost_makes_no_second_bundle_and_no_second_move(faults: tuple[Store, Faults], tree: Path) -> None:
    store, planned = faults
    planned.methods = frozenset(("POST", "PUT"))
    planned.plan = deque(["lost", ""] * 10)
    bundle = store.save(tree, "data", label="main")
    assert store.bundles("data") == [bundle]
    assert [move.bundle for move in store.label_history("data", "main")] == [bundle.id]


# --- and what is not -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["503", "close", "stall"])
def test_a_store_that_goes_on_failing_is_unreachable_and_the_error_names_it_and_the_last_failure(
    fault: str, emulator: Emulator, tree: Path
) -> None:
    with emulators.failing(emulator.host) as (host, planned):
        url = emulator.new_url()
        # Who comes first loads its client meanwhile: on a busy machine all the patience there is may be over by then.
        assert open_store(url, **emulator.through(host)).repos() == []
        planned.seen.clear()
        planned.always = fault
        patience = Patience(request=1.0, whole=5.0, pause=0.05, longest_pause=0.1)
        store = open_store(url, patience=patience, **emulator.through(host))
        with pytest.raises(Unreachable, match=r"(?s)://bucket/store-\d+: .*attempts in \d s, the last one: ") as caught:
            store.save(tree, "data")
        assert sum(planned.seen.values()) > 1
    if fault == "503":
        assert "503" in str(caught.value) or "as planned" in str(caught.value) or "Unavailable" in str(caught.value)


def test_what_is_forbidden_is_not_tried_again(faults: tuple[Store, Faults], tree: Path) -> None:
    store, planned = faults
    planned.always = "403"
    with pytest.raises(Unreachable, match=r"(?i)forbidden|denied|403"):
        store.save(tree, "data")
    assert sum(planned.seen.values()) == 1


def test_nobody_listening_is_unreachable(emulator: Emulator) -> None:
    patience = Patience(request=0.5, whole=0.5, pause=0.05)
    with pytest.raises(Unreachable, match="x: "):
        open_store(emulator.url("x"), patience=patience, **emulator.through(f"127.0.0.1:{emulators.free_port()}")).repos()


def test_a_scheme_whose_client_is_not_installed_is_told() -> None:
    with pytest.raises(ConfigurationError, match="nosuch"):
        open_store("nosuch://bucket/x")


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_no_more_requests_are_under_way_than_the_store_allows(faults: tuple[Store, Faults], tmp_path: Path) -> None:
    store, planned = faults
    (tmp_path / "many").mkdir()
    for number in range(10):
        (tmp_path / "many" / str(number)).write_bytes(os.urandom(2 * MIB))
    bundle = store.save(tmp_path / "many", "data")
    store.populate(bundle, tmp_path / "back")
    assert 1 < planned.most_under_way <= store._objects.parallel + 1


MEASURED = """
import json, resource, sys
from sidecar.store import open_store
url, options, tree = json.loads(sys.argv[1])
store = open_store(url, **options)
store.populate(store.save(tree, "data"), tree + "-back")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_memory_stays_bounded_whatever_the_size(emulator: Emulator, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree" / "large").open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(4 * MIB))
    for number in range(500):
        (tmp_path / "tree" / str(number)).write_bytes(os.urandom(100_000))
    told = json.dumps([emulator.url("large"), emulator.options, str(tmp_path / "tree")])
    done = subprocess.run([sys.executable, "-c", MEASURED, told], check=True, capture_output=True, text=True)
    assert int(done.stdout) <= 300
