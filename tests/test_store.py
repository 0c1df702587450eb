"""What the store promises (sidecar/store/README.md), on real files."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import forked

from sidecar.errors import ConfigurationError, Corrupt, NotSaved, SourceMissing, Unreachable
from sidecar.store import Bundle, Stopped, Store, open_store
from sidecar.store import upload as upload_module
from sidecar.store.format import Manifest, encode_manifest, encode_record
from sidecar.store.tree import walk
from sidecar.testing import check_store, read_tree

MIB = 1 << 20


# --- contract ------------------------------------------------------------------------------------------------------


def test_a_directory_keeps_the_contract_of_a_store(tmp_path: Path) -> None:
    numbers = iter(range(100))
    check_store(lambda: open_store(f"file://{tmp_path}/{next(numbers)}"))


def test_memory_keeps_the_contract_of_a_store() -> None:
    check_store(lambda: open_store(f"memory://{os.urandom(8).hex()}"))


def test_a_plain_path_is_a_store(tmp_path: Path, tree: Path) -> None:
    bundle = open_store(str(tmp_path / "store")).save(tree, "data")
    assert open_store(f"file://{tmp_path}/store").resolve("data") == bundle


# --- any tree survives ---------------------------------------------------------------------------------------------

NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not {*b"/\0"} & {*name} and name not in (b".", b".."))
MTIMES = st.integers(min_value=-(10**18), max_value=4 * 10**18)
NODES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.tuples(st.just("file"), st.binary(max_size=200), st.integers(0, 0o777), MTIMES),
        st.tuples(st.just("link"), NAMES, MTIMES),
    ),
    lambda inner: st.tuples(st.just("dir"), st.dictionaries(NAMES, inner, max_size=5), st.integers(0, 0o777), MTIMES),
    max_leaves=12,
)


def build(top: bytes, nodes: dict[bytes, Any]) -> None:
    for name, node in nodes.items():
        path = top + b"/" + name
        if node[0] == "link":
            os.symlink(node[1], path)
            os.utime(path, ns=(0, node[2]), follow_symlinks=False)
            continue
        if node[0] == "dir":
            os.mkdir(path)
            build(path, node[1])
        else:
            Path(os.fsdecode(path)).write_bytes(node[1])
        os.chmod(path, node[2] | 0o400 | (0o300 if node[0] == "dir" else 0))
        os.utime(path, ns=(0, node[3]))


@given(st.dictionaries(NAMES, NODES, max_size=6))
@settings(max_examples=60, deadline=None)
def test_whatever_the_names_modes_times_and_contents_what_is_populated_is_what_was_saved(nodes: dict[bytes, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(f"{folder}/tree")
        build(os.fsencode(f"{folder}/tree"), nodes)
        store = open_store(f"{folder}/store")
        bundle = store.save(f"{folder}/tree", "data")
        store.populate(bundle, f"{folder}/back")
        assert read_tree(f"{folder}/back") == read_tree(f"{folder}/tree")
        assert os.listdir(f"{folder}/store/tmp") == []


def test_a_name_with_a_newline_a_percent_sign_and_bytes_that_are_no_text_survives(store: Store, tmp_path: Path) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    name = b"a\nb%41\xff\xc3\xa9"
    with open(os.path.join(os.fsencode(top), name), "wb"):
        pass
    bundle = store.save(top, "data")
    assert [os.fsencode(entry.path) for entry in store.manifest(bundle)] == [name]
    store.populate(bundle, tmp_path / "back")
    assert os.listdir(os.fsencode(tmp_path / "back")) == [name]


def test_set_user_id_does_not_come_back(store: Store, tmp_path: Path) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    (top / "x").write_bytes(b"#!")
    (top / "x").chmod(0o4755)
    bundle = store.save(top, "data")
    assert store.manifest(bundle)[0].mode == 0o4755
    store.populate(bundle, tmp_path / "back")
    assert (tmp_path / "back" / "x").stat().st_mode & 0o7777 == 0o755


# --- saving --------------------------------------------------------------------------------------------------------


def test_a_fifo_in_the_source_is_named_and_nothing_is_saved(store: Store, tree: Path) -> None:
    os.mkfifo(tree / "sub" / "pipe")
    with pytest.raises(NotSaved, match="sub/pipe"):
        store.save(tree, "data")
    assert store.bundles("data") == []


def test_a_socket_is_left_out_and_counted_where_errors_are_to_be_skipped(store: Store, tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        folder = os.open(tree, os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{folder}/socket")
        os.close(folder)
        bundle = store.save(tree, "data", skip_errors=True)
    assert bundle.skipped == 2
    assert {entry.path for entry in store.manifest(bundle)} == {"big", "link", "sub", "sub/one", "two"}


@pytest.mark.parametrize("name", ["two", "big"])
def test_a_file_that_changes_once_while_it_is_read_is_read_again(
    name: str, store: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_while_reading(tree / name, 1, monkeypatch)
    bundle = store.save(tree, "data")
    store.populate(bundle, tmp_path / "back")
    assert read_tree(str(tmp_path / "back")) == read_tree(str(tree))


def test_a_small_file_that_changed_before_it_was_read_and_once_while_it_was_is_saved(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_while_reading(tree / "two", 2, monkeypatch)
    bundle = store.save(tree, "data")
    assert [entry.size for entry in store.manifest(bundle) if entry.path == "two"] == [3008]


@pytest.mark.parametrize("name", ["two", "big"])
def test_a_file_that_keeps_changing_while_it_is_read_is_not_saved(
    name: str, store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_while_reading(tree / name, 9, monkeypatch)
    with pytest.raises(NotSaved, match=f"'{name}' changes while it is read"):
        store.save(tree, "data")
    assert store.bundles("data") == []


def change_while_reading(path: Path, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Append to `path` after each of the first `times` reads of its beginning."""
    inode, left, preadv = path.stat().st_ino, [times], os.preadv

    def changing(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        count = preadv(fd, buffers, offset)
        if left[0] and offset == 0 and os.fstat(fd).st_ino == inode:
            left[0] -= 1
            with path.open("ab") as file:
                file.write(b"more")
        return count

    monkeypatch.setattr(os, "preadv", changing)


def test_a_directory_that_is_swapped_for_a_link_while_it_is_saved_is_not_followed(
    store: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "one").write_bytes(b"hidden")

    def swapping(*arguments: Any) -> Any:
        found = walk(*arguments)
        shutil.rmtree(tree / "sub")
        (tree / "sub").symlink_to(secret)
        arguments[0].close()
        arguments[0].__init__(str(tree))  # as if no descriptor had been open
        return found

    monkeypatch.setattr(upload_module, "walk", swapping)
    with pytest.raises(NotSaved, match="sub/one"):
        store.save(tree, "data")


def test_a_directory_that_does_not_exist_is_not_saved(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotSaved, match="nowhere"):
        store.save(tmp_path / "nowhere", "data")


def test_two_who_save_to_one_label_at_once_make_two_bundles_and_two_moves(store: Store, tmp_path: Path) -> None:
    children = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "file").write_text(str(number))
        children.append(forked(partial(store.save, tmp_path / str(number), "data", label="main")))
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    moves = [move.bundle for move in store.label_history("data", "main")]
    assert sorted(moves) == [bundle.id for bundle in store.bundles("data")]
    assert len(moves) == 2


def test_saving_ends_when_it_is_told_to(store: Store, tree: Path) -> None:
    asked = iter([False] * 5)
    with pytest.raises(Stopped):
        store.save(tree, "data", cancelled=lambda: next(asked, True))
    assert store.bundles("data") == []


def test_progress_ends_with_all_bytes_done(store: Store, tree: Path, tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    bundle = store.save(tree, "data", progress=lambda *what: said.append(what))
    assert said[-1] == ("saving to data", bundle.bytes, bundle.bytes)
    store.populate(bundle, tmp_path / "back", lambda *what: said.append(what))
    assert said[-1] == ("populating from data", bundle.bytes, bundle.bytes)
    assert len(said) < 50


def test_a_second_bundle_of_the_same_content_stores_nothing(store: Store, tree: Path, tmp_path: Path) -> None:
    first = store.save(tree, "data")
    shutil.copytree(tree, tmp_path / "copy", symlinks=True)
    (tmp_path / "copy" / "two").rename(tmp_path / "copy" / "three")
    second = store.save(tmp_path / "copy", "data")
    assert (first.stored, second.stored) == (first.bytes, 0)


def test_after_a_small_change_the_manifest_tells_only_what_differs(store: Store, tmp_path: Path) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    for number in range(200):
        (top / f"{number:03}").write_bytes(b"%d" % number)
    bundles = [store.save(top, "data")]
    trees = [read_tree(str(top))]
    for number in range(0, 150, 10):
        (top / f"{number:03}").write_bytes(b"changed")
        (top / f"{number + 1:03}").unlink()
        (top / f"new-{number}").touch()
        bundles.append(store.save(top, "data"))
        trees.append(read_tree(str(top)))
    assert bundles[1].manifest_bytes < bundles[0].manifest_bytes / 40
    assert max(bundle.manifest_bytes for bundle in bundles) == bundles[0].manifest_bytes
    for number, (bundle, tree) in enumerate(zip(bundles, trees, strict=True)):
        store.populate(bundle, tmp_path / "back" / str(number))
        assert read_tree(str(tmp_path / "back" / str(number))) == tree
    assert store.save(top, "data").manifest == bundles[-1].manifest, "of the same tree it is the same"
    (tmp_path / "store" / "manifests" / bundles[0].manifest[:2] / bundles[0].manifest).unlink()
    with pytest.raises(Corrupt, match=f"bundle {bundles[5].id}.*{bundles[0].manifest} is missing"):
        store.manifest(bundles[5])
    assert store.verify(store.save(top, "data")) == bundles[-1].bytes


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_damaged_parent_does_not_keep_a_new_bundle_from_being_saved(
    damage: str, reuse: bool, store: Store, tree: Path, tmp_path: Path
) -> None:
    store.save(tree, "data")
    for path in (tmp_path / "store" / "manifests").glob("*/*"):
        if damage == "missing":
            path.unlink()
        else:
            flip(path, 30)
    bundle = store.save(tree, "data", reuse=reuse)
    store.verify(bundle)


def test_a_child_sorts_after_its_parent_even_where_the_clock_goes_back(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.save(tree, "data")
    monkeypatch.setattr("sidecar.store.bundles._now", lambda: 1_000_000)
    second = store.save(tree, "data")
    assert second.id > first.id
    assert store.resolve("data") == second


# --- populating ----------------------------------------------------------------------------------------------------


def test_what_is_there_already_is_left_alone_and_what_differs_is_put_right(store: Store, tree: Path, tmp_path: Path) -> None:
    bundle = store.save(tree, "data")
    back = tmp_path / "back"
    store.populate(bundle, back)
    inodes = {path: path.lstat().st_ino for path in back.rglob("*")}
    (back / "two").write_bytes(b"changed")
    (back / "extra").write_bytes(b"mine")
    store.populate(bundle, back)
    rewritten = {path.name for path, inode in inodes.items() if path.lstat().st_ino != inode}
    assert rewritten == {"two"}
    assert (back / "two").read_bytes() == (tree / "two").read_bytes()
    assert (back / "extra").read_bytes() == b"mine"


@pytest.mark.parametrize("planted", ["sub", "two"])
def test_a_link_planted_in_the_destination_is_refused(planted: str, store: Store, tree: Path, tmp_path: Path) -> None:
    bundle = store.save(tree, "data")
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / planted).symlink_to(victim)
    with pytest.raises(Unreachable, match=f"{planted}' is a link where the bundle has a"):
        store.populate(bundle, tmp_path / "back")
    assert list(victim.iterdir()) == []


def test_a_directory_is_not_replaced_by_a_file(store: Store, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "back" / "two").mkdir(parents=True)
    with pytest.raises(Unreachable, match="is a directory where the bundle has a file"):
        store.populate(store.save(tree, "data"), tmp_path / "back")


def test_two_who_populate_one_directory_at_once_both_succeed(store: Store, tree: Path, tmp_path: Path) -> None:
    bundle = store.save(tree, "data")
    threads = [threading.Thread(target=store.populate, args=(bundle, tmp_path / "back")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_tree(str(tmp_path / "back")) == read_tree(str(tree))


def forge(where: Path, bundle: Bundle, manifest: bytes) -> Bundle:
    """Put a bundle of the manifest given beside `bundle`; every hash is right."""
    name = blake3(manifest).hexdigest()
    path = where / "manifests" / name[:2] / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zstandard.compress(manifest))
    record = bundle.as_json() | {"id": "7" + bundle.id[1:], "manifest": name, "manifest_bytes": len(manifest)}
    (where / "repos" / "data" / "bundles" / str(record["id"])).write_bytes(encode_record(record))
    return open_store(str(where)).resolve("data")


@pytest.mark.parametrize("path", ["../out", "/out", "a/../../out", "%2E%2E/out", ".", "", "a//b", "link/out", "no/parent"])
def test_a_path_that_leaves_the_destination_is_refused(path: str, store: Store, tree: Path, tmp_path: Path) -> None:
    bundle = store.save(tree, "data")
    entries = [
        {"mode": 493, "mtime": 0, "path": "..", "type": "directory"},
        {"mtime": 0, "path": "link", "target": str(tmp_path), "type": "link"},
        {"data": [], "mode": 420, "mtime": 0, "path": path, "size": 0, "type": "file"},
    ]
    for some in (entries[1:], entries, entries[2:], [entries[0], entries[2]]):
        some.sort(key=lambda entry: str(entry["path"]))
        forged = forge(tmp_path / "store", bundle, json.dumps({"entries": some, "packs": [], "version": 1}).encode())
        with pytest.raises(Corrupt):
            store.populate(forged, tmp_path / "back")
        assert not (tmp_path / "out").exists()
        os.unlink(tmp_path / "store" / "repos" / "data" / "bundles" / forged.id)


def test_populating_ends_when_it_is_told_to(store: Store, tree: Path, tmp_path: Path) -> None:
    bundle = store.save(tree, "data")
    asked = iter([False] * 3)
    with pytest.raises(Stopped):
        store.populate(bundle, tmp_path / "back", cancelled=lambda: next(asked, True))
    assert not (tmp_path / "back" / ".sidecar-populating").exists()


def test_a_chunk_is_given_verified_or_told_with_its_file_and_object(store: Store, tree: Path, tmp_path: Path) -> None:
    bundle = store.save(tree, "data")
    entry = next(entry for entry in store.manifest(bundle) if entry.path == "big")
    assert b"".join(store.chunk(bundle, "big", piece) for piece in entry.pieces) == (tree / "big").read_bytes()
    piece, reader = entry.pieces[0], store.reader(bundle)
    view = memoryview(bytearray(piece.length))
    reader.read("big", piece, view)
    assert view == (tree / "big").read_bytes()[: piece.length]
    flip(tmp_path / "store" / "objects" / piece.object[:2] / piece.object, 5)
    for read in (lambda: store.chunk(bundle, "big", piece), lambda: reader.read("big", piece, view)):
        with pytest.raises(Corrupt, match=f"repository 'data', bundle {bundle.id}, file 'big': objects/.*{piece.object}"):
            read()


# --- what was written is what is read ------------------------------------------------------------------------------


def cut(path: Path, length: int) -> None:
    path.chmod(0o644)
    os.truncate(path, length)


def flip(path: Path, at: int) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def objects_of(store: Store, bundle: Bundle, file: str) -> list[str]:
    return [piece.object for entry in store.manifest(bundle) if entry.path == file for piece in entry.pieces]


@pytest.mark.parametrize("file", ["two", "big"])
def test_one_flipped_bit_in_a_pack_or_a_chunk_is_told_with_its_file_and_object(
    file: str, store: Store, tree: Path, tmp_path: Path
) -> None:
    bundle = store.save(tree, "data")
    object_ = objects_of(store, bundle, file)[0]
    path = tmp_path / "store" / "objects" / object_[:2] / object_
    flip(path, path.stat().st_size - 1)
    for read in (lambda: store.populate(bundle, tmp_path / "back"), lambda: store.verify(bundle)):
        with pytest.raises(Corrupt) as caught:
            read()
        for said in (repr("data"), bundle.id, repr(file), f"objects/{object_[:2]}/{object_}"):
            assert said in str(caught.value)
    assert caught.value.status == 65
    assert not (tmp_path / "back" / file).exists()


@pytest.mark.parametrize("file", ["two", "big"])
@pytest.mark.parametrize("damage", ["missing", "short"])
def test_an_object_that_is_missing_or_cut_short_is_told_with_its_file(
    damage: str, file: str, store: Store, tree: Path, tmp_path: Path
) -> None:
    bundle = store.save(tree, "data")
    object_ = objects_of(store, bundle, file)[-1]
    path = tmp_path / "store" / "objects" / object_[:2] / object_
    if damage == "missing":
        path.unlink()
    else:
        cut(path, 1)
    for read in (lambda: store.populate(bundle, tmp_path / "back"), lambda: store.verify(bundle)):
        with pytest.raises(Corrupt, match=object_) as caught:
            read()
        # A pack is blamed with the first of the files that need it.
        assert "file 'sub/one'" in str(caught.value) or f"file {file!r}" in str(caught.value)


def test_an_object_that_was_cut_short_is_written_again_by_the_next_who_needs_it(store: Store, tree: Path, tmp_path: Path) -> None:
    bundle = store.save(tree, "data")
    for file in ("two", "big"):
        object_ = objects_of(store, bundle, file)[0]
        cut(tmp_path / "store" / "objects" / object_[:2] / object_, 1)
    store.save(tree, "other")
    store.verify(bundle)


@pytest.mark.parametrize("kind", ["manifests/*/*", "repos/*/bundles/*", "repos/*/labels/*/*", "repos/*/repo", "format"])
def test_one_flipped_bit_in_a_manifest_or_record_is_told_with_its_repository_and_name(
    kind: str, store: Store, tree: Path, tmp_path: Path
) -> None:
    bundle = store.save(tree, "data", label="main")
    (path,) = (tmp_path / "store").glob(kind)
    flip(path, path.stat().st_size // 2)
    store = open_store(store.url)
    with pytest.raises(Corrupt) as caught:
        store.populate(store.resolve("data", label="main"), tmp_path / "back")
    said = str(caught.value)
    assert str(path.relative_to(tmp_path / "store")) in said
    if kind != "format":
        assert "data" in said
    if "bundles" in kind or "manifests" in kind:
        assert bundle.id in said


def test_a_record_that_was_moved_to_another_name_is_a_lie(store: Store, tree: Path, tmp_path: Path) -> None:
    bundle = store.save(tree, "data")
    other = "7" + bundle.id[1:]
    shutil.copy(tmp_path / f"store/repos/data/bundles/{bundle.id}", tmp_path / f"store/repos/data/bundles/{other}")
    with pytest.raises(Corrupt, match=other):
        store.resolve("data")


def test_a_manifest_that_inflates_without_end_is_refused(store: Store, tree: Path, tmp_path: Path) -> None:
    bundle = store.save(tree, "data")
    forged = forge(tmp_path / "store", bundle, encode_manifest(Manifest(())) + b" " * MIB)
    path = tmp_path / "store" / "manifests" / forged.manifest[:2] / forged.manifest
    path.write_bytes(zstandard.compress(b" " * 100 * MIB))
    with pytest.raises(Corrupt, match=forged.manifest):
        store.manifest(forged)


# --- what cannot be reached ----------------------------------------------------------------------------------------


def test_a_store_that_cannot_be_read_is_unreachable(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(f"file://{tmp_path}/file")
    with pytest.raises(Unreachable, match="file"):
        store.save(tree, "data")
    with pytest.raises(Unreachable):
        store.resolve("data")


def test_a_store_of_a_later_version_is_not_touched(store: Store, tree: Path, tmp_path: Path) -> None:
    store.create_repo("data")
    (tmp_path / "store" / "format").chmod(0o644)
    (tmp_path / "store" / "format").write_bytes(encode_record({"format": "sidecar-store", "version": 2}))
    with pytest.raises(ConfigurationError, match="version 2"):
        open_store(store.url).save(tree, "data")


def test_a_url_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="nosuch"):
        open_store("nosuch://x")
    with pytest.raises(ConfigurationError, match="absolute"):
        open_store("file://relative/path")


def test_a_repository_is_created_twice_only_where_that_is_allowed(store: Store) -> None:
    assert store.create_repo("data", "one") == store.create_repo("data", "two")
    with pytest.raises(ConfigurationError, match="data"):
        store.create_repo("data", exist_ok=False)


def test_an_id_and_a_label_that_contradict_each_other_are_refused(store: Store, tree: Path) -> None:
    first, second = store.save(tree, "data", label="main"), store.save(tree, "data", label="main")
    assert store.resolve("data", label="main", bundle=second.id) == second
    with pytest.raises(ConfigurationError, match="main"):
        store.resolve("data", label="main", bundle=first.id)


# --- what was lost before is no reason to lose what is new -----------------------------------------------------------


def test_the_latest_bundles_record_being_damaged_does_not_keep_a_new_bundle_from_being_saved(
    store: Store, tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = store.save(tree, "data", label="main")
    flip(tmp_path / f"store/repos/data/bundles/{first.id}", 10)
    second = store.save(tree, "data", label="main")
    assert store.resolve("data", label="main") == second
    assert first.id in caplog.text


@pytest.mark.parametrize("record", ["labels/main/00000001", "repo"])
def test_a_damaged_label_or_repository_record_does_not_keep_a_new_bundle_from_being_saved(
    record: str, store: Store, tree: Path, tmp_path: Path
) -> None:
    store.save(tree, "data", label="main")
    flip(tmp_path / "store/repos/data" / record, 10)
    second = store.save(tree, "data", label="main", reuse=True)
    assert (tmp_path / f"store/repos/data/bundles/{second.id}").exists()
    if record != "repo":
        assert store.resolve("data", label="main") == second


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_chunks_whose_object_was_lost_are_stored_again_although_the_parent_holds_them(
    damage: str, store: Store, tree: Path, tmp_path: Path
) -> None:
    first = store.save(tree, "data")
    for path in (tmp_path / "store").glob("objects/*/*"):
        if damage == "missing":
            path.unlink()
        else:
            cut(path, path.stat().st_size - 1)
    second = store.save(tree, "data")
    assert second.stored == first.stored
    store.verify(second)
    store.verify(first)


def test_litter_that_cannot_be_removed_does_not_keep_a_bundle_from_being_saved(store: Store, tree: Path, tmp_path: Path) -> None:
    store.create_repo("data")
    (tmp_path / "store/tmp/a directory").mkdir()
    os.utime(tmp_path / "store/tmp/a directory", (0, 0))
    store.save(tree, "data")


# --- what else may lie in a store ------------------------------------------------------------------------------------


def test_what_a_killed_writer_half_made_is_no_repository_and_no_label(store: Store, tree: Path, tmp_path: Path) -> None:
    bundle = store.save(tree, "data", label="main")
    for folder in ("repos/half", "repos/lost+found", "repos/.hidden", "repos/data/labels/half", "repos/data/labels/.x"):
        (tmp_path / "store" / folder).mkdir()
    for file in ("repos/data/bundles/README", "repos/data/labels/main/1", "repos/data/labels/main/٣", "repos/file"):
        (tmp_path / "store" / file).write_text("stray")
    assert [repo.name for repo in store.repos()] == ["data"]
    assert store.labels("data") == {"main": bundle.id}
    assert len(store.label_history("data", "main")) == 1
    with pytest.raises(SourceMissing) as caught:
        store.resolve("data", label="half")
    assert list(caught.value.exist) == ["main"]
    with pytest.raises(SourceMissing) as caught:
        store.resolve("half")
    assert list(caught.value.exist) == ["data"]


def test_an_id_from_a_future_that_has_no_name_is_not_the_latest_bundle(store: Store, tree: Path, tmp_path: Path) -> None:
    bundle = store.save(tree, "data")
    shutil.copy(tmp_path / f"store/repos/data/bundles/{bundle.id}", tmp_path / f"store/repos/data/bundles/7{'z' * 25}")
    second = store.save(tree, "data", message="second")
    assert store.resolve("data") == second


def test_a_pipe_in_the_place_of_a_record_or_an_object_holds_no_one(store: Store, tree: Path, tmp_path: Path) -> None:
    bundle = store.save(tree, "data")
    for path in [*(tmp_path / "store").glob("objects/*/*"), tmp_path / f"store/repos/data/bundles/{bundle.id}"]:
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(Corrupt):
        store.resolve("data")
    with pytest.raises((Corrupt, Unreachable)):
        store.populate(bundle, tmp_path / "back")


def test_a_label_is_set_to_the_latest_bundle_where_no_id_is_given(store: Store, tree: Path) -> None:
    bundle = store.save(tree, "data")
    assert store.set_label("data", "main", "").bundle == bundle.id
    with pytest.raises(SourceMissing):
        store.set_label("data", "main", "0" * 26)


def test_a_label_with_many_moves_is_resolved_by_its_last_record_alone(store: Store, tree: Path, tmp_path: Path) -> None:
    ids = [store.save(tree, "data", label="main").id for _ in range(3)]
    flip(tmp_path / "store/repos/data/labels/main/00000001", 10)
    assert store.resolve("data", label="main").id == ids[-1]
    with pytest.raises(Corrupt, match="00000001"):
        store.label_history("data", "main")


def test_a_label_whose_moves_have_outgrown_eight_digits_still_moves(store: Store, tree: Path, tmp_path: Path) -> None:
    first, second = store.save(tree, "data"), store.save(tree, "data")
    (tmp_path / "store/repos/data/labels/main").mkdir(parents=True)
    last = {"repo": "data", "label": "main", "number": 99999999, "bundle": first.id, "contributor": "", "time": "x"}
    (tmp_path / "store/repos/data/labels/main/99999999").write_bytes(encode_record(last))
    store.set_label("data", "main", second.id)
    store.set_label("data", "main", first.id)
    assert [move.number for move in store.label_history("data", "main")] == [99999999, 100000000, 100000001]


def test_a_store_that_is_taken_away_while_it_is_written_is_unreachable(
    store: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: str, target: str) -> None:
        shutil.rmtree(tmp_path / "store")
        raise FileNotFoundError(2, "No such file or directory")

    store.create_repo("data")
    monkeypatch.setattr(os, "link", link)
    with pytest.raises(Unreachable, match="No such file"):
        store.save(tree, "data")


def test_a_store_of_files_takes_no_options_and_no_empty_url(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="auto_mkdir"):
        open_store(f"file://{tmp_path}", auto_mkdir=True)
    with pytest.raises(ConfigurationError, match="empty"):
        open_store("")
    assert open_store(f"local://{tmp_path}").url == f"file://{tmp_path}"


def test_a_process_that_reads_file_names_as_other_than_utf_8_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "iso8859-1")
    with pytest.raises(ConfigurationError, match="PYTHONUTF8=1"):
        open_store(str(tmp_path))


def test_a_file_system_without_hard_links_will_do(store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    first = store.save(tree, "data", label="main")
    assert store.create_repo("data").name == "data"
    assert store.save(tree, "data", label="main", reuse=True) == first
    store.verify(first)
