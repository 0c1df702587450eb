"""What Store.save offers to who archives a directory in place: leaving out, looking at every byte, building on any bundle."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard
from processes import forked

from sidecar.errors import Corrupt, NotSaved, SourceMissing, Unreachable
from sidecar.store import Bundle, Entry, Stopped, Store, durable, open_store
from sidecar.store import compress as compress_module
from sidecar.store import places as places_module
from sidecar.store import upload as upload_module
from sidecar.store.compress import compress, compress_each
from sidecar.store.download import _parts
from sidecar.store.format import FILE, Piece, Segment, Table
from sidecar.store.objects import Objects
from sidecar.store.places import Known, Places
from sidecar.store.table import Chunks, Pieces
from sidecar.store.tree import walk
from sidecar.testing import read_tree

MIB = 1 << 20
PAGE = 8 << 10


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store" if request.param == "file" else f"memory://{os.urandom(8).hex()}")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Empty, small, of some pages, of many, of pages that compress, each with a rest that is no page; and a link."""
    top = tmp_path / "tree"
    (top / "base" / "1").mkdir(parents=True)
    chance = random.Random(1)
    (top / "empty").write_bytes(b"")
    (top / "small").write_bytes(b"small")
    (top / "base" / "1" / "some").write_bytes(chance.randbytes(20 * PAGE + 7))
    (top / "base" / "1" / "many").write_bytes(chance.randbytes(9 * MIB + 3))
    (top / "base" / "text").write_bytes(b"".join(b"%d,%d\n" % (n, n * n) for n in range(150_000)))
    (top / "link").symlink_to("small")
    return top


def paged(path: str, size: int) -> int:
    return PAGE


def paths(store: Store, bundle: Bundle) -> list[str]:
    return [entry.path for entry in store.manifest(bundle)]


def nothing_is_visible(store: Store, repo: str = "data") -> bool:
    return store.bundles(repo) == [] and store.labels(repo) == {}


def check_same(store: Store, bundle: Bundle, tree: Path, tmp_path: Path) -> None:
    back = tmp_path / f"back-{bundle.id}"
    store.populate(bundle, back)
    assert read_tree(str(back)) == read_tree(str(tree))
    assert store.check(read_data=True).faults == ()


# --- leaving out -----------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_not_in_the_bundle_nor_counted_and_nothing_below_it_is_walked(store: Store, tree: Path) -> None:
    (tree / "pg_wal" / "deep").mkdir(parents=True)
    (tree / "pg_wal" / "deep" / "segment").write_bytes(b"x")
    (tree / "base" / "pg_wal").write_bytes(b"of another name, as its path is another")
    asked: list[str] = []

    def leave_out(path: str) -> bool:
        asked.append(path)
        return path in ("pg_wal", "base/1/some")

    bundle = store.save(tree, "data", leave_out=leave_out)
    assert paths(store, bundle) == ["base", "base/1", "base/1/many", "base/pg_wal", "base/text", "empty", "link", "small"]
    assert bundle.skipped == 0
    assert "pg_wal" in asked
    assert not any(path.startswith("pg_wal/") for path in asked)


def test_a_socket_that_is_left_out_is_no_error(store: Store, tree: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(tree, os.O_PATH)  # a socket's path may be 107 bytes long
        try:
            listening.bind(f"/proc/self/fd/{here}/.s.PGSQL.5432")
        finally:
            os.close(here)
        with pytest.raises(NotSaved, match="socket"):
            store.save(tree, "data")
        bundle = store.save(tree, "data", leave_out=lambda path: path == ".s.PGSQL.5432")
    assert bundle.skipped == 0
    assert ".s.PGSQL.5432" not in paths(store, bundle)


def test_a_name_that_is_no_text_is_asked_about_as_the_system_gives_it(store: Store, tree: Path) -> None:
    name = os.fsdecode(b"\xff\n")
    (tree / name).write_bytes(b"x")
    assert name not in paths(store, store.save(tree, "data", leave_out=lambda path: path == name))


# --- looking at every byte -------------------------------------------------------------------------------------------


class Inspector:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.blocks: defaultdict[str, list[tuple[int, bytes]]] = defaultdict(list)

    def __call__(self, path: str, offset: int, view: memoryview) -> None:
        assert view.readonly
        self.blocks[path].append((offset, bytes(view)))

    def content(self, path: str, size: int) -> bytes:
        """Return what a file is according to what was inspected of it, each byte at most once; what was not, is zeros."""
        content, end = bytearray(size), 0
        for offset, data in sorted(self.blocks[path]):
            assert offset >= end
            end = offset + len(data)
            content[offset:end] = data
        return bytes(content)


@pytest.mark.parametrize("cut", [0, PAGE, 12_345, MIB, 3 * MIB])
def test_every_byte_of_every_file_is_inspected_in_blocks_that_begin_at_chunks(cut: int, store: Store, tree: Path) -> None:
    for _ in range(2):  # also what is known from the parent
        inspector = Inspector()
        bundle = store.save(tree, "data", chunk_size=lambda path, size: cut, inspect=inspector)
        files = [entry for entry in store.manifest(bundle) if entry.type == FILE]
        assert {*inspector.blocks} == {entry.path for entry in files if entry.size}
        for entry in files:
            assert inspector.content(entry.path, entry.size) == (tree / entry.path).read_bytes()
        chunk = cut or 8 * MIB
        blocks = [block for each in inspector.blocks.values() for block in each]
        assert all(offset % chunk == 0 for offset, _ in blocks)
        assert all(0 < len(data) <= max(chunk, 4 * MIB) for _, data in blocks)


@pytest.mark.parametrize("cut", [0, PAGE])
def test_of_what_is_not_inspected_of_a_sparse_file_there_is_nothing_but_zeros(cut: int, store: Store, tree: Path) -> None:
    with (tree / "sparse").open("wb") as file:
        file.truncate(30 * MIB)
        file.seek(17 * MIB)
        file.write(b"in the middle")
    inspector = Inspector()
    store.save(tree, "data", chunk_size=lambda path, size: cut, inspect=inspector)
    assert inspector.content("sparse", 30 * MIB) == (tree / "sparse").read_bytes()


def test_one_block_at_a_time_is_inspected_though_several_threads_read(store: Store, tree: Path) -> None:
    busy, never, threads = threading.Lock(), threading.Event(), set()

    def inspect(path: str, offset: int, view: memoryview) -> None:
        assert busy.acquire(blocking=False), "another is being inspected"
        threads.add(threading.get_ident())
        never.wait(0.05)  # the time for another to come
        busy.release()

    store.save(tree, "data", chunk_size=paged, inspect=inspect)
    assert len(threads - {threading.get_ident()}) > 1


def test_who_inspects_is_told_once_that_all_was_given_and_may_end_the_save_yet(store: Store, tree: Path) -> None:
    inspector, told = Inspector(), []

    def inspected() -> None:
        told.append(sum(len(data) for blocks in inspector.blocks.values() for _, data in blocks))
        if len(told) == 2:
            raise NotSaved("a page that was seen before is torn")

    bundle = store.save(tree, "data", chunk_size=paged, inspect=inspector, inspected=inspected)
    assert told == [bundle.bytes]
    with pytest.raises(NotSaved, match="seen before"):
        store.save(tree, "other", chunk_size=paged, inspect=inspector, inspected=inspected)
    assert nothing_is_visible(store, "other")


@pytest.mark.parametrize("skip_errors", [False, True])
@pytest.mark.parametrize("victim", ["small", "base/1/some", "base/1/many"])
def test_what_inspecting_raises_ends_the_save_and_nothing_is_visible(
    victim: str, skip_errors: bool, store: Store, tree: Path
) -> None:
    def inspect(path: str, offset: int, view: memoryview) -> None:
        if path == victim and offset + len(view) == (tree / victim).stat().st_size:
            raise NotSaved(f"{path}: page {offset // PAGE} is torn")

    with pytest.raises(NotSaved, match="is torn"):
        store.save(tree, "data", label="main", chunk_size=paged, inspect=inspect, skip_errors=skip_errors)
    assert nothing_is_visible(store)
    store.prune()
    assert store.check().objects == 0


@pytest.mark.parametrize("victim", ["small", "base/1/some", "base/1/many"])
def test_what_fails_in_the_callers_own_code_is_not_taken_for_a_file_that_cannot_be_read(
    victim: str, store: Store, tree: Path
) -> None:
    def inspect(path: str, offset: int, view: memoryview) -> None:
        if path == victim:
            raise FileNotFoundError("its own affair")

    with pytest.raises(FileNotFoundError, match="its own affair"):
        store.save(tree, "data", chunk_size=paged, skip_errors=True, inspect=inspect)
    assert nothing_is_visible(store)


def test_a_file_that_changes_while_it_is_read_is_inspected_again_from_its_beginning(
    store: Store, tree: Path, tmp_path: Path
) -> None:
    inspector = Inspector()

    def inspect(path: str, offset: int, view: memoryview) -> None:
        if path == "base/1/many" and offset == 4 * MIB and not inspector.blocks["changed"]:
            inspector.blocks["changed"].append((0, b""))
            with (tree / path).open("r+b") as file:
                file.write(b"changed")
        inspector(path, offset, view)

    bundle = store.save(tree, "data", chunk_size=paged, inspect=inspect)
    assert sorted(offset for offset, _ in inspector.blocks["base/1/many"]) == [0, 0, 4 * MIB, 4 * MIB, 8 * MIB, 8 * MIB]
    assert (0, (tree / "base/1/many").read_bytes()[: 4 * MIB]) in inspector.blocks["base/1/many"]
    check_same(store, bundle, tree, tmp_path)


@pytest.mark.parametrize("size", [10, 20 * PAGE])
def test_a_small_file_is_inspected_as_it_is_kept_where_it_changed_since_it_was_found(
    size: int, store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "victim").write_bytes(b"a" * size)

    def walked(*arguments: object) -> object:
        found = walk(*arguments)  # type: ignore[arg-type]
        (tree / "victim").write_bytes(b"b" * size * 2)
        return found

    monkeypatch.setattr(upload_module, "walk", walked)
    inspector = Inspector()
    store.save(tree, "data", chunk_size=paged, inspect=inspector)
    assert inspector.content("victim", 2 * size) == b"b" * size * 2


def test_with_who_inspects_there_is_no_second_process(store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []
    monkeypatch.setattr(upload_module, "is_worth_it", lambda files: True)
    monkeypatch.setattr(upload_module, "begin_second", begun.append)  # and there is none
    store.save(tree, "data", inspect=Inspector())
    assert begun == []
    store.save(tree, "data")
    assert len(begun) == 1


def test_a_save_that_is_stopped_while_it_is_inspected_leaves_nothing_visible(store: Store, tree: Path) -> None:
    stopped = threading.Event()
    with pytest.raises(Stopped):
        store.save(
            tree,
            "data",
            label="main",
            chunk_size=paged,
            inspect=lambda path, offset, view: stopped.set(),
            cancelled=stopped.is_set,
        )
    assert nothing_is_visible(store)


# --- building on a bundle of another repository ------------------------------------------------------------------------


@pytest.fixture
def source(store: Store, tree: Path) -> Bundle:
    """The tree in repository `source`, from where it is restored, and then changed a little in the places that matter."""
    bundle = store.save(tree, "source", chunk_size=paged)
    with (tree / "base" / "1" / "many").open("r+b") as file:
        file.seek(100 * PAGE)
        file.write(b"changed")
    (tree / "new").write_bytes(b"new")
    return bundle


def entry_of(store: Store, bundle: Bundle, path: str) -> Entry:
    return next(entry for entry in store.manifest(bundle) if entry.path == path)


LITTLE = 3 * PAGE + 1153 * 52  # the page that changed, `new`, some rests, and the table of `many`


def test_what_the_base_holds_is_not_stored_again_in_another_repository(
    store: Store, source: Bundle, tree: Path, tmp_path: Path
) -> None:
    bundle = store.save(tree, "target", chunk_size=paged, base=source)
    assert isinstance(entry_of(store, bundle, "base/1/many").pieces, Table)
    assert bundle.stored < LITTLE
    assert bundle.parent == "", "it is of another repository"
    check_same(store, bundle, tree, tmp_path)


def test_without_a_base_all_of_it_is_stored_again(store: Store, source: Bundle, tree: Path) -> None:
    assert store.save(tree, "target", chunk_size=paged).stored > 5 * MIB


def test_a_base_is_used_beside_a_parent(store: Store, source: Bundle, tree: Path, tmp_path: Path) -> None:
    kept = (tree / "base" / "1" / "many").read_bytes()
    (tree / "other").write_bytes(random.Random(9).randbytes(3 * MIB))
    for path in ("base/1/many", "base/text"):
        (tree / path).write_bytes(b"not what the base holds")
    parent = store.save(tree, "target", chunk_size=paged)
    (tree / "base" / "1" / "many").write_bytes(kept)
    bundle = store.save(tree, "target", chunk_size=paged, base=source)
    assert bundle.stored < LITTLE, "`other` is the parent's, `many` the base's"
    assert bundle.parent == parent.id
    check_same(store, bundle, tree, tmp_path)


def test_a_file_of_pages_some_of_which_are_the_parents_and_some_the_bases_is_put_together(
    store: Store, source: Bundle, tree: Path, tmp_path: Path
) -> None:
    many = tree / "base" / "1" / "many"
    original = many.read_bytes()
    many.write_bytes(random.Random(10).randbytes(300 * PAGE) + original[300 * PAGE :])
    store.save(tree, "target", chunk_size=paged)
    many.write_bytes(many.read_bytes()[: 150 * PAGE] + original[150 * PAGE :])
    bundle = store.save(tree, "target", chunk_size=paged, base=source)
    assert bundle.stored < LITTLE
    check_same(store, bundle, tree, tmp_path)


def test_a_base_that_is_the_parent_changes_nothing(store: Store, source: Bundle, tree: Path) -> None:
    one = store.save(tree, "source", chunk_size=paged, base=source)
    assert one.stored < LITTLE
    two = store.save(tree, "source", chunk_size=paged, base=one, message="again")
    assert (two.stored, two.manifest) == (0, one.manifest)


def test_the_same_tree_in_another_repository_has_the_same_manifest(store: Store, tree: Path, tmp_path: Path) -> None:
    base = store.save(tree, "source", chunk_size=paged)
    bundle = store.save(tree, "target", chunk_size=paged, base=base)
    assert (bundle.stored, bundle.manifest) == (0, base.manifest)
    assert bundle.repo == "target"
    check_same(store, bundle, tree, tmp_path)


def test_a_bundle_outlives_the_base_that_it_was_built_on(store: Store, tree: Path, tmp_path: Path) -> None:
    for number in range(300):
        (tree / f"relation-{number}").write_bytes(b"%d" % number)
    base = store.save(tree, "source", chunk_size=paged)
    (tree / "new").write_bytes(b"new")
    bundle = store.save(tree, "target", chunk_size=paged, base=base)
    assert bundle.manifest_bytes < base.manifest_bytes / 2, "it is told as a difference"
    store._objects.remove(f"repos/source/bundles/{base.id}")
    store.prune()
    check_same(store, bundle, tree, tmp_path)
    (tree / "newer").write_bytes(b"newer")
    check_same(store, store.save(tree, "target", chunk_size=paged), tree, tmp_path)


def test_saving_again_after_a_kill_returns_the_bundle_that_was_complete(store: Store, source: Bundle, tree: Path) -> None:
    first = store.save(tree, "target", label="main", chunk_size=paged, base=source, reuse=True)
    assert store.save(tree, "target", label="main", chunk_size=paged, base=source, reuse=True) == first


def damage_manifest(store: Store, bundle: Bundle) -> None:
    store._objects.put(f"manifests/{bundle.manifest[:2]}/{bundle.manifest}", b"damaged", anew=True)


def lose_manifest(store: Store, bundle: Bundle) -> None:
    store._objects.remove(f"manifests/{bundle.manifest[:2]}/{bundle.manifest}")


@pytest.mark.parametrize("harm", [damage_manifest, lose_manifest])
def test_a_base_that_is_missing_or_damaged_is_logged_and_not_used(
    harm: Callable[[Store, Bundle], None],
    store: Store,
    source: Bundle,
    tree: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    harm(store, source)
    bundle = store.save(tree, "target", chunk_size=paged, base=source)
    assert f"repository 'source', bundle {source.id}: manifests/" in caplog.text
    assert "nothing of it is used again" in caplog.text
    assert bundle.stored > 5 * MIB
    store.populate(bundle, tmp_path / "back")
    assert read_tree(str(tmp_path / "back")) == read_tree(str(tree))


def test_a_bundle_of_another_store_is_a_base_that_is_missing(
    store: Store, tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = open_store(f"file://{tmp_path}/elsewhere").save(tree, "data", chunk_size=paged)
    bundle = store.save(tree, "data", chunk_size=paged, base=elsewhere)
    assert "is missing; nothing of it is used again" in caplog.text
    check_same(store, bundle, tree, tmp_path)


@pytest.mark.parametrize("with_parent", [False, True])
def test_objects_that_a_base_has_lost_are_stored_again(
    with_parent: bool, store: Store, source: Bundle, tree: Path, tmp_path: Path
) -> None:
    if with_parent:
        store.save(tree, "target", chunk_size=paged, leave_out=lambda path: path != "small")
    pieces = entry_of(store, source, "base/1/many").pieces
    assert isinstance(pieces, Table)
    for object_ in {piece.object for piece in pieces}:
        store._objects.remove(f"objects/{object_[:2]}/{object_}")
    bundle = store.save(tree, "target", chunk_size=paged, base=source)
    store.populate(bundle, tmp_path / "back")
    assert read_tree(str(tmp_path / "back")) == read_tree(str(tree))
    assert store.verify(bundle) == bundle.bytes


def test_a_base_in_a_store_that_was_never_written_to_is_missing(store: Store, tree: Path, tmp_path: Path) -> None:
    base = open_store(f"file://{tmp_path}/elsewhere").save(tree, "data")
    with pytest.raises(SourceMissing):
        store.resolve("data")
    assert store.save(tree, "data", base=base).bytes == base.bytes


# --- files of very many chunks -----------------------------------------------------------------------------------------

CUT = 4100  # neither a segment of a table nor a block is so many of these


def cut_oddly(path: str, size: int) -> int:
    return CUT


def write_at(path: Path, *chunks: int) -> None:
    with path.open("r+b") as file:
        for chunk in chunks:
            file.seek(chunk * CUT)
            file.write(os.urandom(20))


@pytest.fixture
def relation(tree: Path) -> Path:
    """A file of two segments, every third chunk of which can be made smaller; the first and the last are there twice."""
    chance = random.Random(12)
    chunks = [(b"%d " % number * CUT)[:CUT] if number % 3 == 0 else chance.randbytes(CUT) for number in range(5000)]
    (tree / "relation").write_bytes(b"".join([*chunks, chunks[0], chunks[-1], b"rest"]))
    return tree / "relation"


def test_of_a_file_whose_blocks_end_anywhere_only_what_changed_is_stored_again(
    store: Store, relation: Path, tree: Path, tmp_path: Path
) -> None:
    first = store.save(tree, "data", chunk_size=cut_oddly)
    lengths = [piece.length for piece in entry_of(store, first, "relation").pieces]
    assert lengths == [CUT] * 5002 + [4]
    check_same(store, first, tree, tmp_path)
    changed = (0, 510, 511, 4094, 4095, 4096, 4097, 4999, 5001)
    write_at(relation, *changed)
    second = store.save(tree, "data", chunk_size=cut_oddly)
    assert second.stored < len(changed) * CUT + 5003 * 52
    check_same(store, second, tree, tmp_path)
    os.utime(relation, ns=(0, 1))
    assert store.save(tree, "data", chunk_size=cut_oddly).stored == 0, "its table, too, is where it was"


def test_a_file_that_grew_or_became_short_has_of_its_chunks_what_was_there(
    store: Store, relation: Path, tree: Path, tmp_path: Path
) -> None:
    store.save(tree, "data", chunk_size=cut_oddly)
    whole = relation.read_bytes()
    for size in (5000 * CUT, 20 * CUT + 1, 4097 * CUT, 5002 * CUT):
        relation.write_bytes(whole[:size])
        bundle = store.save(tree, "data", chunk_size=cut_oddly, base=store.bundles("data")[0])
        assert bundle.stored <= CUT + 5003 * 52
        check_same(store, bundle, tree, tmp_path)


def test_of_an_object_that_was_lost_only_the_chunks_in_it_are_stored_again(
    store: Store, relation: Path, tree: Path, tmp_path: Path
) -> None:
    store.save(tree, "data", chunk_size=cut_oddly)
    write_at(relation, 7, 300, 4200)
    second = store.save(tree, "data", chunk_size=cut_oddly)
    pieces = entry_of(store, second, "relation").pieces
    lost = pieces[300].object
    assert lost not in (pieces[299].object, pieces[301].object)
    store._objects.remove(f"objects/{lost[:2]}/{lost}")
    os.utime(relation, ns=(0, 1))
    third = store.save(tree, "data", chunk_size=cut_oddly)
    assert 0 < third.stored <= 3 * CUT, "as it was, under its name; so the table is where it was"
    assert store.verify(third) == third.bytes


def test_a_table_that_is_damaged_is_told_once_however_many_look_into_it(
    store: Store, relation: Path, tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = store.save(tree, "data", chunk_size=cut_oddly)
    pieces = entry_of(store, first, "relation").pieces
    assert isinstance(pieces, Table)
    object_ = pieces.segments[1].piece.object
    store._objects.put(f"objects/{object_[:2]}/{object_}", bytes(pieces.segments[1].piece.end + 1000), anew=True)
    bundle = store.save(tree, "data", chunk_size=cut_oddly)
    assert 1 <= caplog.text.count("file 'relation'") <= 4, "once for each thread, at worst"
    segment = 4096 * CUT
    assert bundle.stored < bundle.bytes - segment / 2, "what its first segment says is used"


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("cut", [PAGE, 12_345, MIB // 2])
def test_chunks_compressed_in_one_call_are_what_they_are_each_compressed_alone(
    cut: int, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(3)
    view = memoryview(b"".join(chance.choice((b"text %d " % n * 2000, chance.randbytes(15_000))) for n in range(90)))
    monkeypatch.setattr(compress_module, "_AT_ONCE", at_once and compress_module._AT_ONCE)
    starts = [start for start in range(0, len(view), cut) if chance.random() < 0.8]
    alone = [compress(view[start : start + cut]) for start in starts]
    assert compress_each(view, cut, starts) == alone
    assert compress_each(view, cut, starts[-1:]) == alone[-1:]
    assert compress_each(view, cut, []) == []
    assert cut > PAGE or None in alone


# --- fetching small chunks ---------------------------------------------------------------------------------------------


@pytest.fixture
def scattered(store: Store, tree: Path) -> Bundle:
    """Files whose chunks lie in several packs, in no order, some as frames, some not, some in many places of a file."""
    chance = random.Random(3)
    pages = [chance.randbytes(PAGE) if number % 3 else chance.randbytes(PAGE // 8) * 8 for number in range(400)] + [bytes(PAGE)]
    store.save(tree, "data", chunk_size=paged)
    (tree / "first").write_bytes(b"".join(pages))
    store.save(tree, "data", chunk_size=paged)
    some = [*chance.choices(pages, k=900), *(chance.randbytes(PAGE) for _ in range(100))]
    chance.shuffle(some)
    (tree / "scattered").write_bytes(b"".join(some) + b"rest")
    (tree / "few").write_bytes(b"".join(chance.choices(pages, k=30)))
    return store.save(tree, "data", chunk_size=paged)


@pytest.mark.parametrize("at_once", [True, False])
def test_chunks_that_lie_anywhere_come_to_their_places(
    at_once: bool, store: Store, scattered: Bundle, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compress_module, "_AT_ONCE", at_once and compress_module._AT_ONCE)
    check_same(store, scattered, tree, tmp_path)


def test_what_is_written_in_part_is_written_to_its_end(
    store: Store, scattered: Bundle, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, pwritev, pwrite = random.Random(5), os.pwritev, os.pwrite

    def some_of(fd: int, views: Sequence[memoryview], offset: int) -> int:
        return pwritev(fd, [*views[: len(views) // 2], views[len(views) // 2][: chance.randrange(5)]], offset)

    monkeypatch.setattr(os, "pwritev", some_of)
    monkeypatch.setattr(os, "pwrite", lambda fd, view, offset: pwrite(fd, view[: chance.randrange(1, 2 * len(view))], offset))
    check_same(store, scattered, tree, tmp_path)


def test_what_is_to_be_durable_is_on_its_disk_when_the_populate_is_over(
    store: Store, scattered: Bundle, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, synced = [0], []
    begin, finish = durable.begin, durable.finish

    def began(fd: int, offset: int, size: int) -> None:
        begun[0] += size
        begin(fd, offset, size)

    def finished(fd: int) -> None:
        synced.append(read_tree(os.readlink(f"/proc/self/fd/{fd}")) == read_tree(str(tree)))
        finish(fd)

    monkeypatch.setattr(durable, "begin", began)
    monkeypatch.setattr(durable, "finish", finished)
    store.populate(scattered, tmp_path / "scratch")
    assert (begun, synced) == ([0], [])
    store.populate(scattered, tmp_path / "kept", durable=True)
    assert begun[0] > 9 * MIB
    assert synced == [True], "once, when all of it is there"


def test_what_cannot_come_to_its_disk_is_told(
    store: Store, scattered: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def syncfs(fd: int) -> int:
        assert os.path.isdir(f"/proc/self/fd/{fd}")
        ctypes.set_errno(errno.EIO)
        return -1

    libc = SimpleNamespace(syncfs=syncfs, sync_file_range=durable._libc.sync_file_range)
    monkeypatch.setattr(durable, "_libc", libc)
    with pytest.raises(Unreachable, match="Input/output error"):
        store.populate(scattered, tmp_path / "kept", durable=True)


def test_a_table_of_very_many_chunks_is_divided_in_time_that_grows_with_them() -> None:
    """Of 64 Ki chunks, each a part alone: with the square of them it took two minutes."""
    chunks = Chunks()
    chunks.extend([Piece("ab" * 32, 4 * MIB)] * 65_536)
    pieces = Pieces((Segment(65_536, 65_536 * 4 * MIB, Piece("cd" * 32, 52)),), lambda segment: chunks)
    assert [(len(some), size) for some, size in _parts(pieces)] == [(1, 4 * MIB)] * 65_536


def without_content_size(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_content_size=False).compress(data)


def with_more(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(data) + b"trailing"


def with_another_frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(data) + zstandard.ZstdCompressor().compress(b"")


def with_a_checksum(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)


def of_many_blocks(data: bytes) -> bytes:
    compressor, parts = zstandard.ZstdCompressor(level=1).compressobj(size=len(data)), list[bytes]()
    for at in range(0, len(data), 1000):
        parts += [compressor.compress(data[at : at + 1000]), compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join(parts) + compressor.flush()


@pytest.mark.parametrize("framed", [without_content_size, with_more, with_another_frame, with_a_checksum, of_many_blocks])
def test_a_frame_is_as_the_format_says_whoever_reads_it_and_however_many_at_once(
    framed: Callable[[bytes], bytes], store: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def framed_each(view: memoryview, cut: int, starts: Sequence[int]) -> list[bytes | None]:
        chunks = [bytes(view[start : start + cut]) for start in starts]
        return [frame if len(frame := framed(chunk)) < len(chunk) else None for chunk in chunks]

    data = b"".join(bytes([number % 251]) * 4000 + random.Random(number).randbytes(4192) for number in range(200))
    (tree / "victim").write_bytes(data)
    monkeypatch.setattr(upload_module, "compress_each", framed_each)
    bundle = store.save(tree, "data", chunk_size=paged)
    pieces = entry_of(store, bundle, "victim").pieces
    assert isinstance(pieces, Table)
    assert all(piece.stored for piece in pieces)
    readers: list[Callable[[], object]] = [
        lambda: store.populate(bundle, tmp_path / "back", select=lambda entry: entry.path == "victim"),
        lambda: store.verify(bundle),
        lambda: store.chunk(bundle, "victim", pieces[3]),
    ]
    for read in readers:
        if framed in (with_a_checksum, of_many_blocks):
            read()
        else:
            with pytest.raises(Corrupt):
                read()


def test_of_very_many_chunks_a_bounded_number_is_remembered_and_all_come_back(
    store: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places_module, "_REMEMBERED", 100)
    made: list[Places] = []

    class Watched(Places):
        def __init__(self, objects: Objects, known: Known) -> None:
            super().__init__(objects, known)
            made.append(self)

    monkeypatch.setattr(upload_module, "Places", Watched)
    chance = random.Random(8)
    pages = [chance.randbytes(PAGE) for _ in range(300)]
    (tree / "pages").write_bytes(b"".join([*pages, *pages[:50], *pages[250:]]))
    (tree / "base" / "1" / "many").unlink()
    bundle = store.save(tree, "data", chunk_size=paged)
    small = sum(len(entry.pieces) for entry in store.manifest(bundle) if not isinstance(entry.pieces, Table))
    assert len(made[0]._placed) <= 100 + small + 2, "of the large files a hundred, and their tables"
    assert 350 * PAGE < bundle.stored < 351 * PAGE + bundle.bytes - 400 * PAGE, "the first fifty were known, the last were not"
    check_same(store, bundle, tree, tmp_path)


@pytest.mark.parametrize("kind", ["frame", "plain"])
@pytest.mark.parametrize("skip_errors", [False, True])
def test_one_flipped_bit_among_many_chunks_is_told_with_its_file_and_object(
    skip_errors: bool, kind: str, tree: Path, local: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(6)
    pages = [chance.randbytes(PAGE) if number % 3 else chance.randbytes(PAGE // 8) * 8 for number in range(700)]
    (tree / "victim").write_bytes(b"".join(pages))
    bundle = local.save(tree, "data", chunk_size=paged)
    piece = entry_of(local, bundle, "victim").pieces[300 if kind == "frame" else 301]
    assert bool(piece.stored) == (kind == "frame")
    pack = next((tmp_path / "local").rglob(piece.pack))
    for at in (piece.offset, (piece.offset + piece.end) // 2, piece.end - 1):
        flip(pack, at)
        back = tmp_path / f"back-{at}"
        if skip_errors:
            assert local.populate(bundle, back, skip_errors=True) == ("victim",)
            assert not (back / "victim").exists()
            assert (back / "base/1/many").read_bytes() == (tree / "base/1/many").read_bytes()
            assert f"does not hold {piece.hash} at {piece.offset}" in caplog.text
        else:
            with pytest.raises(Corrupt, match=rf"'victim': \S*{piece.pack} does not hold {piece.hash} at {piece.offset}"):
                local.populate(bundle, back)
            assert [*back.glob("victim")] == []
        with pytest.raises(Corrupt, match=rf"'victim': \S*{piece.pack} does not hold {piece.hash}"):
            local.verify(bundle)
        flip(pack, at)
    check_same(local, bundle, tree, tmp_path)


def flip(path: Path, at: int) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 16]))


# --- killed ----------------------------------------------------------------------------------------------------------


def killed(work: Callable[[], object]) -> bool:
    return os.WIFSIGNALED(os.waitpid(forked(work), 0)[1])


def die_at(call: int) -> Callable[..., None]:
    counted = iter(range(call))

    def inspect(path: str, offset: int, view: memoryview) -> None:
        if next(counted, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    return inspect


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """A store that outlives the process that writes to it."""
    return open_store(f"file://{tmp_path}/local")


@pytest.mark.parametrize("call", range(6))
def test_killed_while_it_inspects_an_archive_leaves_nothing_visible_and_begins_again(
    call: int, local: Store, tree: Path, tmp_path: Path
) -> None:
    base = local.save(tree, "source", chunk_size=paged)
    (tree / "base" / "1" / "many").write_bytes(random.Random(4).randbytes(9 * MIB))

    def save(inspect: Callable[..., None]) -> Bundle:
        return local.save(
            tree, "target", label="main", chunk_size=paged, base=base, inspect=inspect, leave_out=lambda path: False
        )

    assert killed(lambda: save(die_at(call)))
    assert nothing_is_visible(local, "target")
    check_same(local, save(Inspector()), tree, tmp_path)


def test_killed_before_its_record_an_archive_is_not_visible(
    local: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = local.save(tree, "source", chunk_size=paged)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "_commit", lambda self, bundle: os.kill(os.getpid(), signal.SIGKILL))
        assert killed(lambda: local.save(tree, "target", label="main", base=base, inspect=Inspector()))
    assert nothing_is_visible(local, "target")
    check_same(local, local.save(tree, "target", label="main", base=base), tree, tmp_path)


# --- a last look -------------------------------------------------------------------------------------------------------


def test_who_accepts_a_bundle_can_read_all_of_it_while_nobody_else_sees_it(store: Store, tree: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def accept(bundle: Bundle, to_end: Callable[[], bool]) -> None:
        assert store.bundles("results") == []
        store.populate(bundle, tmp_path / "again", cancelled=to_end)
        seen.append(bundle.id)

    saved = store.save(tree, "results", label="latest", accept=accept)
    assert seen == [saved.id]
    assert read_tree(str(tmp_path / "again")) == read_tree(str(tree))


def test_a_bundle_that_is_not_accepted_is_seen_by_nobody(store: Store, tree: Path) -> None:
    before = store.save(tree, "results", label="latest")
    (tree / "small").write_bytes(b"other")

    def refuse(_: Bundle, __: Callable[[], bool]) -> None:
        raise NotSaved("it is not good enough")

    with pytest.raises(NotSaved, match="not good enough"):
        store.save(tree, "results", label="latest", accept=refuse)
    assert store.bundles("results") == [before]
    assert store.labels("results") == {"latest": before.id}
    assert store.check(read_data=True).faults == ()


def test_a_bundle_that_was_accepted_before_is_not_asked_for_again(store: Store, tree: Path) -> None:
    before = store.save(tree, "results", reuse=True)
    assert store.save(tree, "results", reuse=True, accept=lambda *_: pytest.fail("it is there already")) == before
