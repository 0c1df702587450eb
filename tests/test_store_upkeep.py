"""A store that is looked after: what `check` finds, what `prune` removes, and what it never does."""

from __future__ import annotations

import json
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import Corrupt, DeadlinePassed, NotSaved
from sidecar.store import Bundle, Store, open_store, upkeep
from sidecar.store import upload as upload_module
from sidecar.store.upkeep import Announcement
from sidecar.testing import read_tree

MIB = 1 << 20
PAGE = 8 << 10


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A file in a pack, one that is an object of its own, one in pages with a table."""
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "one").write_bytes(b"one")
    (top / "big").write_bytes(random.Random(1).randbytes(2 * MIB))
    (top / "pages").write_bytes(random.Random(2).randbytes(100 * PAGE))
    return top


def paged(path: str, size: int) -> int:
    return PAGE if path == "pages" else 0


def names(tmp_path: Path, *folders: str) -> set[str]:
    where = tmp_path / "store"
    return {str(path.relative_to(where)) for folder in folders for path in (where / folder).rglob("*") if path.is_file()}


def flip(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def leave_garbage(store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save a tree up to the commit, as one does who is killed there."""

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Store, "_commit", killed)
        with pytest.raises(Killed):
            store.save(tree, "data", chunk_size=paged)


# --- check -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_data", [False, True])
def test_a_store_that_is_whole_has_no_faults(read_data: bool, store: Store, tree: Path) -> None:
    assert store.check().faults == ()
    store.save(tree, "data", label="main", chunk_size=paged)
    (tree / "sub" / "one").write_bytes(b"two")
    bundle = store.save(tree, "data", label="main", chunk_size=paged)
    said: list[tuple[str, int, int]] = []
    found = store.check(lambda *what: said.append(what), read_data=read_data)
    assert (found.faults, found.repositories, found.bundles, found.unneeded) == ((), 1, 2, 0)
    assert found.bytes == sum(each.stored for each in store.bundles("data"))
    assert not read_data or said[-1] == ("checking", found.bytes, found.bytes)
    json.dumps(found.as_json())
    assert bundle.bytes == store.verify(bundle)


@pytest.mark.parametrize(
    "kind", ["objects/*/*", "manifests/*/*", "repos/*/bundles/*", "repos/*/labels/*/*", "repos/*/repo", "format"]
)
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_each_thing_that_is_damaged_is_told_with_what_it_belongs_to(
    damage: str, kind: str, store: Store, tree: Path, tmp_path: Path
) -> None:
    bundle = store.save(tree, "data", label="main", chunk_size=paged)
    for path in (tmp_path / "store").glob(kind):
        whole = path.read_bytes()
        if damage == "flipped":
            flip(path)
        else:
            path.unlink()
        found = open_store(store.url).check(read_data=True)
        if damage == "missing" and kind in ("format", "repos/*/repo", "repos/*/labels/*/*", "repos/*/bundles/*"):
            # A store, repository, label or bundle exactly when its record is there: of a bundle, its label tells.
            assert "bundles" not in kind or bundle.id in "\n".join(found.faults)
        else:
            name = str(path.relative_to(tmp_path / "store"))
            assert name in found.faults[0]
            assert kind == "format" or "data" in found.faults[0]
            if kind.startswith(("objects", "manifests")):
                assert bundle.id in found.faults[0]
            assert not kind.startswith("objects") or ", file '" in found.faults[0]
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
    assert store.check(read_data=True).faults == ()


# --- prune -----------------------------------------------------------------------------------------------------------


def test_what_a_killed_upload_left_is_removed_and_nothing_else(
    store: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = store.save(tree, "data", label="main", chunk_size=paged)
    before = names(tmp_path, "objects", "manifests", "repos")
    (tree / "more").write_bytes(os.urandom(3 * MIB))
    leave_garbage(store, tree, monkeypatch)
    garbage = names(tmp_path, "objects", "manifests") - before
    assert len(garbage) == 2
    for dry_run in (True, False):
        pruned = store.prune(dry_run=dry_run)
        assert (pruned.objects, pruned.manifests, pruned.dry_run) == (1, 1, dry_run)
        assert pruned.bytes > 3 * MIB
        assert (names(tmp_path, "objects") >= {name for name in garbage if name.startswith("objects")}) is dry_run
    assert names(tmp_path, "objects", "manifests", "repos") == before
    assert names(tmp_path, "uploads") == set()
    assert store.verify(bundle) == bundle.bytes
    assert store.prune() == upkeep.Pruned(0, 0, 0, False)


def test_nothing_is_removed_where_a_bundle_cannot_be_read(
    store: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = store.save(tree, "data", chunk_size=paged)
    segments: Any = next(entry.pieces for entry in store.manifest(bundle) if entry.path == "pages")
    table = segments.segments[0].piece.object
    (tree / "more").write_bytes(os.urandom(3 * MIB))
    leave_garbage(store, tree, monkeypatch)
    for name in (
        f"manifests/{bundle.manifest[:2]}/{bundle.manifest}",
        f"repos/data/bundles/{bundle.id}",
        f"objects/{table[:2]}/{table}",
    ):
        path = tmp_path / "store" / name
        whole = path.read_bytes()
        before = names(tmp_path, "objects", "manifests")
        path.chmod(0o644)
        path.write_bytes(b"x" * len(whole))
        with pytest.raises(Corrupt, match="nothing was removed"):
            store.prune()
        assert names(tmp_path, "objects", "manifests") == before
        path.write_bytes(whole)


def test_a_prune_during_an_upload_removes_nothing_and_names_the_upload(
    store: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_garbage(store, tree, monkeypatch)
    before = names(tmp_path, "objects")
    reached, pruned = threading.Event(), threading.Event()
    upload = upload_module.upload

    def slow(*arguments: Any, **named: Any) -> Any:
        uploaded = upload(*arguments, **named)  # it has found what the killed one left
        reached.set()
        assert pruned.wait(60)
        return uploaded

    monkeypatch.setattr("sidecar.store.bundles.upload", slow)
    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(store.save, tree, "data", chunk_size=paged)
        assert reached.wait(60)
        with pytest.raises(DeadlinePassed, match=r"to repository 'data'.*nothing was removed"):
            store.prune()
        assert store.prune(dry_run=True).objects == len(before)
        assert names(tmp_path, "objects") == before
        pruned.set()
        bundle = saving.result()
    assert bundle.stored == 0
    assert store.verify(bundle) == bundle.bytes
    assert store.prune() == upkeep.Pruned(0, 0, 0, False)


def test_an_upload_that_begins_during_a_prune_waits_until_it_is_over(store: Store, tree: Path) -> None:
    store.create_repo("data")
    asked = threading.Event()

    def ask() -> bool:
        asked.set()
        return False

    with ThreadPoolExecutor(1) as pool:
        with Announcement(store._objects, "prune"):
            saving = pool.submit(store.save, tree, "data", cancelled=ask)
            assert asked.wait(60)
            assert store.bundles("data") == []
        bundle = saving.result(60)
    assert store.verify(bundle) == bundle.bytes


def test_an_upload_that_was_killed_keeps_others_from_pruning_until_its_announcement_expires(
    store: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(tree, "data")
    killed = Announcement(store._objects, "upload", "data")
    killed.__enter__()
    with pytest.raises(DeadlinePassed):
        store.prune()
    now = upkeep._now
    monkeypatch.setattr(upkeep, "_now", lambda: now() + int((upkeep.LIFE + 3 * upkeep._MARGIN) * 1000))
    store.prune()
    assert names(tmp_path, "uploads") == set(), "what has expired is removed"


def test_an_announcement_that_cannot_be_read_counts_as_an_upload(store: Store, tree: Path, tmp_path: Path) -> None:
    store.save(tree, "data")
    Announcement(store._objects, "upload").__enter__()
    (path,) = (tmp_path / "store" / "uploads").iterdir()
    flip(path)
    with pytest.raises(DeadlinePassed, match="someone unknown"):
        store.prune()


def test_an_upload_whose_announcement_has_expired_does_not_commit(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, now = upload_module.upload, upkeep._now

    def suspended(*arguments: Any, **named: Any) -> Any:
        uploaded = upload(*arguments, **named)
        monkeypatch.setattr(upkeep, "_now", lambda: now() + 7_200_000)
        return uploaded

    monkeypatch.setattr("sidecar.store.bundles.upload", suspended)
    with pytest.raises(NotSaved, match="begin again"):
        store.save(tree, "data")
    assert store.bundles("data") == []


def test_who_takes_long_announces_it_anew(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create_repo("data")
    with Announcement(store._objects, "upload") as announcement:
        (first,) = names(tmp_path, "uploads")
        announcement.renew()
        assert names(tmp_path, "uploads") == {first}
        monkeypatch.setattr(announcement, "_due", 0.0)
        announcement.renew()
        (second,) = names(tmp_path, "uploads")
        assert second != first
    assert names(tmp_path, "uploads") == set()


def test_uploads_and_prunes_that_take_turns_as_they_like_lose_nothing(store: Store, tmp_path: Path) -> None:
    trees = []
    for number in range(3):
        top = tmp_path / f"tree-{number}"
        top.mkdir()
        (top / "file").write_bytes(random.Random(number).randbytes(100_000))
        trees.append(top)
    over = threading.Event()

    def prune() -> int:
        done = 0
        while not over.is_set():
            try:
                store.prune()
                done += 1
            except DeadlinePassed:
                pass
        return done

    def save(top: Path) -> list[Bundle]:
        return [store.save(top, top.name) for _ in range(6)]

    with ThreadPoolExecutor(4) as pool:
        pruning = pool.submit(prune)
        try:
            saved = [bundle for bundles in pool.map(save, trees) for bundle in bundles]
        finally:
            over.set()
        pruning.result()
    for bundle in saved:
        assert store.verify(bundle) == bundle.bytes


# --- diff ------------------------------------------------------------------------------------------------------------


def test_a_diff_tells_what_was_added_removed_changed_and_touched(store: Store, tree: Path) -> None:
    before = store.save(tree, "data", chunk_size=paged)
    assert store.diff(before, store.save(tree, "data", chunk_size=paged)) == []
    (tree / "sub" / "one").unlink()
    (tree / "new").write_bytes(b"")
    with (tree / "pages").open("r+b") as file:
        file.seek(70 * PAGE)
        file.write(b"changed")
    os.utime(tree / "sub", ns=(0, 1))
    (tree / "big").chmod(0o600)
    changes = store.diff(before, store.save(tree, "data", chunk_size=paged))
    told = {change.path: change.what for change in changes}
    assert told == {"big": "touched", "new": "added", "pages": "changed", "sub": "touched", "sub/one": "removed"}
    json.dumps([change.as_json() for change in changes])


# --- populating a part, or what is left ------------------------------------------------------------------------------


def test_only_what_is_selected_is_populated_and_the_directories_that_lead_there(store: Store, tree: Path, tmp_path: Path) -> None:
    bundle = store.save(tree, "data")
    store.populate(bundle, tmp_path / "back", select=lambda entry: entry.path == "sub/one")
    assert set(read_tree(str(tmp_path / "back"))) == {"sub", "sub/one"}


@pytest.mark.parametrize("file", ["sub/one", "big", "pages"])
def test_where_errors_are_skipped_the_files_that_are_damaged_are_left_out_and_told(
    file: str, store: Store, tree: Path, tmp_path: Path
) -> None:
    (tree / "sub" / "two").write_bytes(b"another of the same pack")
    bundle = store.save(tree, "data", chunk_size=paged)
    entry = next(entry for entry in store.manifest(bundle) if entry.path == file)
    piece = entry.pieces[-1]
    path = tmp_path / "store" / "objects" / piece.object[:2] / piece.object
    path.chmod(0o644)
    with path.open("r+b") as damaged:
        damaged.seek(piece.offset)
        damaged.write(b"XX")
    with pytest.raises(Corrupt, match=file):
        store.populate(bundle, tmp_path / "back")
    assert store.populate(bundle, tmp_path / "back", skip_errors=True) == (file,)
    whole = read_tree(str(tree))
    del whole[file]
    assert read_tree(str(tmp_path / "back")) == whole
