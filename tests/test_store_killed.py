"""Killed at any step, or with the power cut, a store holds what it promised: real processes, SIGKILLed before a system call.

The short form kills at steps spread over the whole; the long form, `make test-long`, at every one.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from processes import forked

from sidecar.errors import SourceMissing, Unreachable
from sidecar.store import Store, open_store
from sidecar.store import objects as objects_module
from sidecar.store.objects import LocalObjects
from sidecar.testing import read_tree

# Every way in which the store changes a file system, and the reads in between.
CALLS = (
    *("open", "write", "pwrite", "fsync", "link", "symlink", "unlink", "rename"),
    *("replace", "mkdir", "rmdir", "utime", "fchmod"),
)
STEPS = 12  # of the short form, for each kind of work


def child(work: Callable[[], object]) -> int:
    """Do `work` in a process of its own, and return the wait status."""
    return os.waitpid(forked(work), 0)[1]


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process that is killed before its system call number `step`; say whether it came so far."""
    status = child(partial(die_at, step, work))
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def die_at(step: int, work: Callable[[], object]) -> int:
    done = [0]

    def counted(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if done[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        done[0] += 1
        return call(*arguments, **named)

    for name in CALLS:
        setattr(os, name, partial(counted, getattr(os, name)))
    work()
    return done[0]


def steps_of(work: Callable[[], object]) -> int:
    """Return how many system calls `work` makes, give or take what its threads leave open."""
    reading, writing = os.pipe()
    assert child(lambda: os.write(writing, str(die_at(-1, work)).encode())) == 0
    os.close(writing)
    with open(reading) as pipe:
        return int(pipe.read())


def some_of(steps: int) -> list[int]:
    """Return the first and the last step, and others spread over all of them."""
    return sorted({0, steps - 1, *random.Random(steps).sample(range(steps), min(STEPS, steps))})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files in a pack, one of two chunks, directories, a link."""
    top = tmp_path / "tree"
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "sub" / "deep" / "one").write_bytes(b"one")
    (top / "big").write_bytes(random.Random(1).randbytes(10 << 20))
    (top / "link").symlink_to("big")
    for number in range(5):
        (top / f"more-{number}").write_bytes(random.Random(number).randbytes(100_000))
    return top


def look(where: Path) -> list[str]:
    """Ask a store everything that a reader may ask, whatever was left there; return the ids of its bundles, each verified."""
    store = open_store(str(where))
    repos = [repo.name for repo in store.repos()]
    assert set(repos) <= {"data"}
    if not repos:
        with pytest.raises(SourceMissing):
            store.resolve("data", label="main")
        return []
    bundles = store.bundles("data")
    for bundle in bundles:
        assert store.verify(bundle) == bundle.bytes
    for label in store.labels("data"):
        assert store.resolve("data", label=label) in bundles
        store.label_history("data", label)
    return [bundle.id for bundle in bundles]


# --- saving ----------------------------------------------------------------------------------------------------------


def save(where: Path, tree: Path) -> str:
    return open_store(str(where)).save(tree, "data", label="main", message="m", reuse=True).id


def check_saving_killed(where: Path, tree: Path, step: int) -> None:
    killed_at(step, lambda: save(where, tree))
    visible = look(where)
    assert len(visible) <= 1
    stored = sum(path.stat().st_size for path in where.glob("objects/*/*"))
    id_ = save(where, tree)
    store = open_store(str(where))
    bundle = store.resolve("data", label="main")
    assert bundle.id == id_
    if visible:
        assert visible == [id_], "a bundle that was complete is not made twice"
    else:
        assert bundle.stored == bundle.bytes - stored, "what was there is not stored again"
    store.populate(bundle, where / "back")
    assert read_tree(str(where / "back")) == read_tree(str(tree))


def test_an_upload_that_is_killed_is_not_visible_and_the_next_one_stores_only_the_rest(tmp_path: Path, tree: Path) -> None:
    for step in some_of(steps_of(lambda: save(tmp_path / "counted", tree))):
        check_saving_killed(tmp_path / f"killed-{step}", tree, step)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_an_upload_that_is_killed_at_any_step_is_not_visible_and_the_next_one_stores_only_the_rest(
    tmp_path: Path, tree: Path
) -> None:
    for step in range(steps_of(lambda: save(tmp_path / "counted", tree)) + 3):
        check_saving_killed(tmp_path / "killed", tree, step)
        shutil.rmtree(tmp_path / "killed")


def test_an_upload_that_is_killed_again_and_again_comes_to_its_end(tmp_path: Path, tree: Path) -> None:
    step, store = 3, tmp_path / "store"
    while killed_at(step, lambda: save(store, tree)):
        step += 7
    assert len(look(store)) == 1
    temporary = list((store / "tmp").iterdir())
    for path in temporary:
        os.utime(path, (0, 0))
    save(store, tree)
    assert list((store / "tmp").iterdir()) == [], "what the dead left is swept a day later"


# --- moving a label --------------------------------------------------------------------------------------------------


def test_a_label_that_is_moved_by_one_who_is_killed_points_at_the_one_or_the_other(tmp_path: Path, tree: Path) -> None:
    where = tmp_path / "store"
    (tree / "big").unlink()
    store = open_store(str(where))
    ids = [store.save(tree, "data", label="main", message=message).id for message in ("first", "second")]
    for step in range(steps_of(lambda: open_store(str(where)).set_label("data", "main", ids[0])) + 1):
        now = store.labels("data")["main"]
        other = next(each for each in ids if each != now)
        killed_at(step, partial(open_store(str(where)).set_label, "data", "main", other))
        assert store.labels("data")["main"] in ids
        store.label_history("data", "main")
        store.set_label("data", "main", other)
        assert store.labels("data")["main"] == other


# --- populating ------------------------------------------------------------------------------------------------------


def check_populating_killed(store: Store, back: Path, tree: dict[str, tuple[Any, ...]], step: int) -> None:
    bundle = store.resolve("data")
    killed_at(step, lambda: open_store(store.url).populate(bundle, back))
    for path, said in read_tree(str(back)).items() if back.exists() else ():
        if said[0] != "directory" and not path.startswith(".sidecar-populating"):
            assert said == tree[path], "what has its name is whole"
    store.populate(bundle, back)
    assert read_tree(str(back)) == tree


@pytest.fixture
def populated(tmp_path: Path, tree: Path) -> Iterator[tuple[Store, Path, dict[str, tuple[Any, ...]], int]]:
    """A store, where to populate, what will then be there, and how many steps that takes."""
    store = open_store(str(tmp_path / "store"))
    (tree / "sub").chmod(0o550)
    bundle = store.save(tree, "data")
    steps = steps_of(lambda: open_store(store.url).populate(bundle, tmp_path / "counted"))
    yield store, tmp_path / "back", read_tree(str(tree)), steps
    for path in tmp_path.rglob("sub"):
        path.chmod(0o700)


def test_a_populating_that_was_killed_leaves_nothing_half_there_and_is_taken_up(
    populated: tuple[Store, Path, dict[str, tuple[Any, ...]], int],
) -> None:
    store, back, tree, steps = populated
    for step in some_of(steps):
        check_populating_killed(store, back / str(step), tree, step)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_populating_that_was_killed_at_any_step_leaves_nothing_half_there_and_is_taken_up(
    populated: tuple[Store, Path, dict[str, tuple[Any, ...]], int],
) -> None:
    store, back, tree, steps = populated
    for step in range(steps + 3):
        check_populating_killed(store, back / str(step), tree, step)


# --- killed at any moment, by the clock ------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_savers_that_are_killed_while_others_save_lose_nothing_of_theirs(tmp_path: Path, tree: Path) -> None:
    where, chance = tmp_path / "store", random.Random(7)
    copies = [shutil.copytree(tree, tmp_path / f"copy-{number}", symlinks=True) for number in range(3)]
    seen: set[str] = set()
    for _ in range(40):
        saving = []
        for copy in copies:
            (copy / "more-0").write_bytes(chance.randbytes(100_000))
            saving.append(forked(partial(open_store(str(where)).save, copy, "data", label="main")))
        time.sleep(chance.random() * 0.1)  # any moment will do: this is when the kill comes, not what is waited for
        for pid in saving[:2]:
            os.kill(pid, signal.SIGKILL)
        assert [os.waitpid(pid, 0)[1] for pid in saving][2] == 0
        now = set(look(where))
        assert seen < now, "what was there stays, and who was not killed has saved"
        seen = now


def check_killed_at_some_moment(where: Path, tree: Path, after: float) -> None:
    """Have a saver killed after so many seconds, or when it is done."""
    pid = forked(lambda: save(where, tree))
    time.sleep(after)  # any moment will do: this is when the kill comes, not what is waited for
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(look(where)) <= 1, "nobody sees a part"
    there = sum(path.stat().st_size for path in where.glob("objects/*/*"))
    before = {bundle.id for bundle in open_store(str(where)).bundles("data")} if (where / "repos/data/repo").exists() else set()
    id_ = save(where, tree)
    bundle = open_store(str(where)).resolve("data", label="main")
    assert bundle.id == id_
    if id_ not in before:
        again = bundle.stored - (bundle.bytes - there)
        assert again <= 0.1 * there, "of what was there less than a tenth is stored again"


@pytest.mark.parametrize("moments", [5, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_whenever_an_upload_is_killed_nobody_sees_a_part_and_the_next_one_stores_little_again(
    moments: int, tmp_path: Path, tree: Path
) -> None:
    for number in range(10):
        (tree / f"large-{number}").write_bytes(random.Random(number).randbytes(3 << 20))
    begun = time.monotonic()
    save(tmp_path / "measured", tree)
    whole, chance = time.monotonic() - begun, random.Random(11)
    for _ in range(moments):
        check_killed_at_some_moment(tmp_path / "store", tree, whole * chance.random())
        shutil.rmtree(tmp_path / "store")


# --- power cuts ------------------------------------------------------------------------------------------------------


def calls_of(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return what `work` synced and linked, in order."""
    seen: list[tuple[str, str]] = []
    fsync, link = os.fsync, os.link

    def fsynced(fd: int) -> None:
        fsync(fd)
        seen.append(("synced", os.readlink(f"/proc/self/fd/{fd}")))

    def linked(source: str, target: str) -> None:
        assert ("synced", source) in seen, "bytes are durable before they have a name"
        seen.append(("linked", target))
        link(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsynced)
        patched.setattr(os, "link", linked)
        work()
    return seen


def ancestors(path: str, root: Path) -> list[str]:
    """Return the directories that lead to `path`, from the root of the store on."""
    parts = os.path.relpath(path, root).split("/")[:-1]
    return [str(root.joinpath(*parts[:depth])) for depth in range(len(parts) + 1)]


@pytest.mark.parametrize("left", ["nothing", "objects", "all but the record", "all but the label", "a parent"])
def test_what_a_bundle_needs_is_durable_before_its_record_and_that_before_its_label(
    left: str, tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    if left != "nothing":
        # Another process wrote it, and who knows whether it lived to sync what it wrote.
        assert child(lambda: save(root, tree)) == 0
        gone = {
            "objects": ["repos/*/*/*", "manifests/*"],
            "all but the record": ["repos/*/*/*"],
            "all but the label": ["repos/*/labels/*"],
            "a parent": [],
        }
        for lost in [lost for pattern in gone[left] for lost in root.glob(pattern)]:
            shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
        if left == "a parent":
            (tree / "new").write_bytes(b"new")
    store = open_store(str(root))
    seen = calls_of(lambda: store.save(tree, "data", label="other", message="m", reuse=True), monkeypatch)
    bundle = store.resolve("data", label="other")
    labelled = seen.index(("linked", str(root / "repos/data/labels/other/00000001")))
    record = str(root / f"repos/data/bundles/{bundle.id}")
    # Where the record was there, what leads to it must be durable before the label is.
    committed = seen.index(("linked", record)) if left != "all but the label" else labelled
    objects = {piece.object for entry in store.manifest(bundle) for piece in entry.pieces}
    needed = [f"{root}/objects/{name[:2]}/{name}" for name in objects]
    for path in [*needed, f"{root}/manifests/{bundle.manifest[:2]}/{bundle.manifest}"]:
        named = seen.index(("linked", path)) if ("linked", path) in seen else 0
        for folder in ancestors(path, root):
            assert ("synced", folder) in seen[named:committed], f"{folder} leads to {path}"
    for folder in ancestors(record, root):
        assert ("synced", folder) in seen[committed if committed < labelled else 0 : labelled]
    for folder in ancestors(seen[labelled][1], root):
        assert ("synced", folder) in seen[labelled:]


def test_a_flush_is_over_only_when_what_another_thread_is_flushing_is_durable_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = LocalObjects(str(tmp_path / "store"))
    objects.put("objects/aa/one", b"one")
    reached, released, over = threading.Event(), threading.Event(), []
    sync = objects_module._sync_directory

    def slow(path: str) -> None:
        reached.set()
        assert released.wait(60)
        sync(path)

    monkeypatch.setattr(objects_module, "_sync_directory", slow)

    def flush(who: str) -> None:
        objects.flush()
        over.append(who)

    first, second = (threading.Thread(target=flush, args=(who,)) for who in ("first", "second"))
    first.start()
    assert reached.wait(60)
    second.start()
    second.join(0.1)  # it has time to go wrong, and none is needed to go right
    assert over == []
    released.set()
    first.join()
    second.join()
    assert over[0] == "first"


def test_what_could_not_be_synced_is_synced_by_the_next_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = LocalObjects(str(tmp_path / "store"))
    objects.put("objects/aa/one", b"one")

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(Unreachable, match="Input/output error"):
            objects.flush()
    synced = [path for what, path in calls_of(objects.flush, monkeypatch) if what == "synced"]
    assert {str(tmp_path / folder) for folder in ("store", "store/objects", "store/objects/aa")} <= set(synced)
