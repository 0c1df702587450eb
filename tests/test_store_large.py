"""Files of many chunks, holes, bounded memory, and what is in the way: full disks, names at their limit, files that vanish."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import Corrupt, NotSaved, ParametersError, SidecarError, Unreachable
from sidecar.store import Bundle, Entry, Store, open_store
from sidecar.store import upload as upload_module
from sidecar.store.format import Table
from sidecar.store.tree import walk
from sidecar.testing import read_tree

MIB = 1 << 20
PAGE = 8 << 10


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    top.mkdir()
    return top


def paged(path: str, size: int) -> int:
    return PAGE


def entry_of(store: Store, bundle: Bundle, path: str) -> Entry:
    return next(entry for entry in store.manifest(bundle) if entry.path == path)


def check_same(store: Store, bundle: Bundle, tree: Path, tmp_path: Path) -> None:
    back = tmp_path / f"back-{bundle.id}"
    store.populate(bundle, back)
    assert read_tree(str(back)) == read_tree(str(tree))


# --- files in pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressible", [True, False])
def test_of_a_file_in_pages_only_those_that_changed_are_stored_again(
    compressible: bool, store: Store, tree: Path, tmp_path: Path
) -> None:
    chance = random.Random(3)

    def page() -> bytes:
        return ((b"%d" % chance.getrandbits(99)) * 300)[:PAGE].ljust(PAGE) if compressible else chance.randbytes(PAGE)

    (tree / "table").write_bytes(b"".join(page() for _ in range(4200)) + b"and a rest")
    (tree / "short").write_bytes(b"".join(page() for _ in range(20)))
    first = store.save(tree, "data", chunk_size=paged)
    entry = entry_of(store, first, "table")
    assert isinstance(entry.pieces, Table)
    assert (len(entry.pieces), len(entry.pieces.segments)) == (4201, 2)
    assert sum(piece.length for piece in entry.pieces) == entry.size
    assert entry.pieces[-1].length == 10
    assert not isinstance(entry_of(store, first, "short").pieces, Table)
    assert (first.stored < first.bytes / 5) is compressible
    check_same(store, first, tree, tmp_path)

    with (tree / "table").open("r+b") as file:
        for number in range(0, 4000, 400):
            file.seek(number * PAGE)
            file.write(b"changed %d" % number)
    second = store.save(tree, "data", chunk_size=paged)
    assert second.stored < 10 * PAGE + 4096 * 52
    check_same(store, second, tree, tmp_path)
    assert store.verify(second) == second.bytes
    assert store.check(read_data=True).faults == ()

    os.utime(tree / "table", ns=(0, 1))
    third = store.save(tree, "data", chunk_size=paged)
    assert third.stored == 0, "its table, too, is where it was"


def test_a_file_that_is_cut_otherwise_than_in_the_parent_is_stored_again_and_whole(
    store: Store, tree: Path, tmp_path: Path
) -> None:
    (tree / "file").write_bytes(random.Random(5).randbytes(3 * MIB + 5))
    for cut in (4096, 1 << 20, 16 << 20, 0, 12_345):
        bundle = store.save(tree, "data", chunk_size=lambda path, size, cut=cut: cut)  # type: ignore[misc]
        check_same(store, bundle, tree, tmp_path)


@pytest.mark.parametrize("cut", [1, 4095, (16 << 20) + 1, -1])
def test_a_chunk_size_that_no_one_could_hold_is_refused(cut: int, store: Store, tree: Path) -> None:
    (tree / "file").write_bytes(b"x")
    with pytest.raises(ParametersError, match="chunk size"):
        store.save(tree, "data", chunk_size=lambda path, size: cut)
    assert store.bundles("data") == []


def test_a_parent_whose_table_is_damaged_does_not_keep_a_new_bundle_from_being_saved(
    store: Store, tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tree / "table").write_bytes(random.Random(6).randbytes(200 * PAGE))
    first = store.save(tree, "data", chunk_size=paged)
    segments: Any = entry_of(store, first, "table").pieces
    piece = segments.segments[0].piece
    path = tmp_path / "store" / "objects" / piece.object[:2] / piece.object
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(piece.offset)
        file.write(b"damaged")
    for read in (store.verify, lambda bundle: store.populate(bundle, tmp_path / "back")):
        with pytest.raises(Corrupt, match=f"bundle {first.id}, file 'table': objects/.*{piece.object}"):
            read(first)
    with (tree / "table").open("r+b") as file:
        file.write(b"changed")
    second = store.save(tree, "data", chunk_size=paged)
    assert "nothing of it is used again" in caplog.text
    assert store.verify(second) == second.bytes
    check_same(store, second, tree, tmp_path)


def test_what_can_be_compressed_takes_less_room_and_what_cannot_is_stored_as_it_is(store: Store, tree: Path) -> None:
    (tree / "text").write_bytes(b"".join(b"%d,%d\n" % (n, n * n) for n in range(300_000)))
    (tree / "noise").write_bytes(random.Random(7).randbytes(9 * MIB))
    bundle = store.save(tree, "data")
    assert all(piece.stored for piece in entry_of(store, bundle, "text").pieces)
    assert not any(piece.stored for piece in entry_of(store, bundle, "noise").pieces)
    assert bundle.stored < bundle.bytes - 2 * MIB


# --- holes -----------------------------------------------------------------------------------------------------------


def check_sparse(size: int, store: Store, tree: Path, tmp_path: Path) -> None:
    with (tree / "sparse").open("wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"in the middle")
    bundle = store.save(tree, "data")
    assert bundle.bytes == size
    assert bundle.stored < 64 << 10
    assert store.verify(bundle) == size
    store.populate(bundle, tmp_path / "back")
    seen = (tmp_path / "back" / "sparse").stat()
    assert seen.st_size == size
    assert seen.st_blocks * 512 <= 16 * MIB, "holes are holes again"
    with (tmp_path / "back" / "sparse").open("rb") as file:
        file.seek(size // 2 - 2)
        assert file.read(17) == b"\0\0in the middle\0\0"


def test_a_file_with_holes_takes_no_room_and_comes_back_with_holes(store: Store, tree: Path, tmp_path: Path) -> None:
    check_sparse(200 * MIB + 1, store, tree, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_file_of_five_gib_is_saved_verified_and_populated(store: Store, tree: Path, tmp_path: Path) -> None:
    check_sparse((5 << 30) + 3, store, tree, tmp_path)


# --- memory ----------------------------------------------------------------------------------------------------------

# Not ru_maxrss: a child that was forked off begins with its parent's.
MEASURED = """
import re, sys
from sidecar.store import open_store
cut = int(sys.argv[3])
store = open_store(sys.argv[1])
bundle = store.save(sys.argv[2], "data", chunk_size=lambda path, size: cut)
bundle = store.save(sys.argv[2], "data", chunk_size=lambda path, size: cut, message="again")
store.populate(bundle, sys.argv[2] + "-back")
store.verify(bundle)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) >> 10)
"""


def peak(store: Path, tree: Path, cut: int) -> int:
    """Return how many MiB it takes to save a tree twice, populate and verify it."""
    command = [sys.executable, "-c", MEASURED, str(store), str(tree), str(cut)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout)


@pytest.mark.parametrize("cut", [PAGE, 16 << 20])
def test_memory_stays_bounded_whatever_the_size(cut: int, tree: Path, tmp_path: Path) -> None:
    for number in range(2):
        with (tree / str(number)).open("wb") as file:
            for _ in range(16):
                file.write(os.urandom(4 * MIB))
    assert peak(tmp_path / "store", tree, cut) <= 300


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cut", [0, PAGE])
def test_memory_stays_bounded_for_gibibytes(cut: int, tree: Path, tmp_path: Path) -> None:
    for number in range(2):
        with (tree / str(number)).open("wb") as file:
            for _ in range(256):
                file.write(os.urandom(4 * MIB))
    assert peak(tmp_path / "store", tree, cut) <= 300


# --- in the way ------------------------------------------------------------------------------------------------------


def test_a_full_disk_below_the_store_is_told_and_what_was_there_stays(tiny: Path, tree: Path) -> None:
    store = open_store(f"file://{tiny}/store")
    (tree / "small").write_bytes(b"small")
    first = store.save(tree, "data", label="main")
    (tree / "big").write_bytes(os.urandom(30 * MIB))
    with pytest.raises(Unreachable, match=r"store: .*(No space|too large)"):
        store.save(tree, "data", label="main")
    assert store.bundles("data") == [first]
    assert store.verify(first) == 5
    assert list((tiny / "store" / "tmp").iterdir()) == [], "what could not be finished is gone"
    (tree / "big").write_bytes(b"no longer")
    second = store.save(tree, "data", label="main")
    assert store.verify(second) == second.bytes


def test_a_full_disk_at_the_destination_is_told_and_nothing_half_there_has_a_name(store: Store, tiny: Path, tree: Path) -> None:
    (tree / "a").write_bytes(b"a")
    (tree / "big").write_bytes(os.urandom(30 * MIB))
    bundle = store.save(tree, "data")
    with pytest.raises(Unreachable, match=r"big: (No space|File too large)"):
        store.populate(bundle, tiny / "back")
    assert "big" not in os.listdir(tiny / "back")
    assert ".sidecar-populating" not in os.listdir(tiny / "back")


def test_names_of_255_bytes_and_paths_longer_than_any_call_takes_survive(store: Store, tree: Path, tmp_path: Path) -> None:
    (tree / ("x" * 255)).write_bytes(b"long")
    (tree / os.fsdecode(b"\xff\n" * 127 + b"\xfe")).write_bytes(b"odd")
    here = os.getcwd()
    try:
        os.chdir(tree)
        for _ in range(20):
            os.mkdir("y" * 250)
            os.chdir("y" * 250)
        Path("deep").write_bytes(b"deep")
    finally:
        os.chdir(here)
    bundle = store.save(tree, "data")
    paths = [entry.path for entry in store.manifest(bundle)]
    assert max(map(len, paths)) > 4096
    store.populate(bundle, tmp_path / "back")
    again = store.save(tmp_path / "back", "data", reuse=True)
    assert again == bundle, "what was populated is what was saved"


@pytest.mark.parametrize("size", [10, 3 * MIB])
@pytest.mark.parametrize("how", ["vanishes", "shrinks", "grows"])
def test_a_file_that_changes_under_our_hands_is_never_silently_torn(
    how: str, size: int, store: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "kept").write_bytes(b"kept")
    (tree / "victim").write_bytes(os.urandom(size))
    acts: dict[str, Callable[[], object]] = {
        "vanishes": (tree / "victim").unlink,
        "shrinks": lambda: os.truncate(tree / "victim", size // 2),
        "grows": lambda: os.truncate(tree / "victim", 2 * size),
    }

    def walked(*arguments: Any) -> Any:
        found = walk(*arguments)
        acts[how]()
        return found

    monkeypatch.setattr(upload_module, "walk", walked)
    if how == "vanishes":
        with pytest.raises(NotSaved, match="'victim' cannot be read: No such file"):
            store.save(tree, "data")
        (tree / "victim").write_bytes(b"again")
        bundle = store.save(tree, "data", skip_errors=True)
        assert ([entry.path for entry in store.manifest(bundle)], bundle.skipped) == (["kept"], 1)
    else:
        check_same(store, store.save(tree, "data"), tree, tmp_path)


def test_every_flipped_byte_of_every_object_is_told(store: Store, tree: Path, tmp_path: Path) -> None:
    (tree / "a").write_bytes(b"as it is: 8b7df143d91c")
    (tree / "b").write_bytes(b"compressed " * 20)
    (tree / "c").write_bytes(os.urandom(PAGE) * 3)
    bundle = store.save(tree, "data", chunk_size=paged)
    chance = random.Random(8)
    for path in (tmp_path / "store" / "objects").glob("*/*"):
        path.chmod(0o644)
        whole = path.read_bytes()
        for at in chance.sample(range(len(whole)), min(60, len(whole))):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
            with pytest.raises(SidecarError, match=f"'data', bundle {bundle.id}, file '[abc]': objects/.*/{path.name}") as caught:
                store.populate(bundle, tmp_path / "back" / str(at))
            assert caught.value.status == 65
        path.write_bytes(whole)
    assert store.verify(bundle) == bundle.bytes
