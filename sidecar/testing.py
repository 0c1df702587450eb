"""Contracts that every store and every battery keeps, to be run by whoever writes one: each is a function that asserts.

No test framework is imported, so it can be called from any. An AssertionError tells which obligation is not met.

    def test_my_battery_keeps_the_contract(tmp_path):
        check_battery(lambda: KIND.open(MyOptions(tmp_path), lambda what, done, total: None))
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sidecar.batteries import Battery
from sidecar.errors import ParametersError, SidecarError, SourceMissing
from sidecar.store import Stopped, Store

_LONG = 30.0  # seconds after which something that was to end soon has not


def check_store(make_store: Callable[[], Store]) -> None:
    """Assert the contract of a store. `make_store` returns a new, empty one each time."""
    with tempfile.TemporaryDirectory() as folder:
        for check in _STORE:
            place = os.path.join(folder, check.__name__)
            os.mkdir(place)
            check(make_store(), place)


def check_battery(make: Callable[[], Battery]) -> None:
    """Assert the contract of a battery. `make` returns a new one each time, all of the same options."""
    battery = make()
    try:
        _told("ready", battery.ready())
        _told("save", battery.save())
    finally:
        battery.close()
    battery.close()
    _watches(make)

    unused = make()
    unused.close()
    unused.close()

    battery = make()
    ended: list[BaseException | None] = []
    begun = threading.Event()

    def run() -> None:
        begun.set()
        try:
            battery.ready()
        except BaseException as error:
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    begun.wait(_LONG)
    battery.close()
    thread.join(_LONG)
    assert not thread.is_alive(), "close() while ready() runs must make it end"
    error = ended[0]
    assert error is None or isinstance(error, SidecarError), f"a ready() that was closed raised {error!r}, not a SidecarError"


def _watches(make: Callable[[], Battery]) -> None:
    """Where a battery has `watch`, it returns once the battery is closed."""
    battery = make()
    watch = getattr(battery, "watch", None)
    if watch is None:
        return
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            watch()
        except BaseException as error:
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=run, daemon=True)
    try:
        battery.ready()
        thread.start()
    finally:
        battery.close()
    thread.join(_LONG)
    assert not thread.is_alive(), "close() while watch() runs must make it end"
    assert ended == [None], f"a watch() that was closed raised {ended[0]!r}"


def _told(method: str, payload: Mapping[str, Any]) -> None:
    assert isinstance(payload, Mapping), f"{method}() must return a mapping, not {payload!r}"
    try:
        again = json.loads(json.dumps(dict(payload), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"what {method}() returns must be JSON: {error}") from error
    assert isinstance(again, dict)


def _write(folder: str, path: str, data: bytes) -> None:
    path = os.path.join(folder, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def _tree(folder: str) -> str:
    tree = os.path.join(folder, "tree")
    _write(tree, "a/small", b"small")
    _write(tree, "a/same", b"small")
    _write(tree, "a/empty", b"")
    _write(tree, "large", random.Random(1).randbytes(9 << 20))  # two chunks, which no one can compress
    os.mkdir(os.path.join(tree, "nothing"))
    os.symlink("../nowhere", os.path.join(tree, "a/link"))
    os.utime(os.path.join(tree, "a/small"), ns=(1, 1234567890123456789))
    os.chmod(os.path.join(tree, "a/small"), 0o640)
    return tree


def read_tree(top: str) -> dict[str, tuple[Any, ...]]:
    """Return what a bundle keeps of the tree below `top`: by path, the type, mode, mtime in ns and content or target."""
    found: dict[str, tuple[Any, ...]] = {}
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            seen = os.lstat(path)
            if os.path.islink(path):
                said: tuple[Any, ...] = ("link", seen.st_mtime_ns, os.readlink(path))
            elif os.path.isdir(path):
                said = ("directory", oct(seen.st_mode & 0o1777), seen.st_mtime_ns)
            else:
                with open(path, "rb") as file:
                    said = ("file", oct(seen.st_mode & 0o1777), seen.st_mtime_ns, file.read())
            found[os.path.relpath(path, top)] = said
    return found


def _keeps_a_tree(store: Store, folder: str) -> None:
    tree = _tree(folder)
    bundle = store.save(tree, "data", message="first", contributor="someone")
    assert (bundle.files, bundle.directories, bundle.links) == (4, 2, 1), bundle
    assert bundle.bytes == 10 + (9 << 20)
    assert (bundle.repo, bundle.message, bundle.contributor, bundle.parent) == ("data", "first", "someone", "")
    json.dumps(bundle.as_json())
    assert store.resolve("data") == bundle, "the latest bundle is the one just saved"
    assert store.resolve("data", bundle=bundle.id) == bundle
    assert store.verify(bundle) == bundle.bytes
    back = os.path.join(folder, "back")
    store.populate(bundle, back)
    assert read_tree(back) == read_tree(tree), "what is populated is what was saved"
    store.populate(bundle, back)
    assert read_tree(back) == read_tree(tree), "populating again changes nothing"


def _has_labels(store: Store, folder: str) -> None:
    tree = _tree(folder)
    first = store.save(tree, "data", label="main")
    second = store.save(tree, "data", label="main")
    third = store.save(tree, "data")
    assert [bundle.id for bundle in store.bundles("data")] == [first.id, second.id, third.id], "ids sort by time"
    assert [bundle.parent for bundle in (first, second, third)] == ["", first.id, second.id]
    assert store.resolve("data", label="main") == second, "a label moves with each save"
    store.set_label("data", "main", first.id)
    store.set_label("data", "main", first.id)
    assert store.labels("data") == {"main": first.id}
    history = [move.bundle for move in store.label_history("data", "main")]
    assert history == [first.id, second.id, first.id], "every move is kept, and a move to where it is, is none"


def _stores_once(store: Store, folder: str) -> None:
    tree = _tree(folder)
    first = store.save(tree, "data", message="m")
    assert first.stored == 5 + (9 << 20), "equal files are stored once"
    _write(tree, "new", b"new")
    second = store.save(tree, "data", message="m")
    assert second.stored == 3, f"only what is new is stored, not {second.stored} bytes"
    assert store.save(tree, "data", message="m", reuse=True).id == second.id
    assert store.save(tree, "data", message="other", reuse=True).id != second.id


def _tells_what_is_missing(store: Store, folder: str) -> None:
    _expect(SourceMissing, lambda: store.resolve("data"))
    assert store.repos() == []
    store.create_repo("data", "for tests")
    store.create_repo("data")
    assert [(repo.name, repo.description) for repo in store.repos()] == [("data", "for tests")]
    _expect(SourceMissing, lambda: store.resolve("data"))
    bundle = store.save(_tree(folder), "data", label="main")
    assert "main" in str(_expect(SourceMissing, lambda: store.resolve("data", label="mian")))
    assert "data" in str(_expect(SourceMissing, lambda: store.resolve("date")))
    assert bundle.id in str(_expect(SourceMissing, lambda: store.resolve("data", bundle="0" * 26)))


def _refuses_names(store: Store, folder: str) -> None:
    for name in ("", ".", "..", "a/b", ".a", "a..b", "a\nb", "a@b", "x" * 101):
        _expect(ParametersError, lambda name=name: store.create_repo(name))  # type: ignore[misc]
        if name:
            _expect(ParametersError, lambda name=name: store.save(folder, "data", label=name))  # type: ignore[misc]


def _lets_many_save(store: Store, folder: str) -> None:
    trees = []
    for number in range(4):
        trees.append(os.path.join(folder, str(number)))
        _write(trees[-1], "file", str(number).encode())
    with ThreadPoolExecutor(4) as pool:
        saved = list(pool.map(lambda tree: store.save(tree, "data", label="main"), trees))
    assert {bundle.id for bundle in store.bundles("data")} == {bundle.id for bundle in saved}
    assert {move.bundle for move in store.label_history("data", "main")} == {bundle.id for bundle in saved}
    assert store.labels("data")["main"] in {bundle.id for bundle in saved}


def _stops(store: Store, folder: str) -> None:
    tree = _tree(folder)
    _expect(Stopped, lambda: store.save(tree, "data", cancelled=lambda: True))
    assert store.bundles("data") == [], "what was stopped is not visible"
    bundle = store.save(tree, "data")
    back = os.path.join(folder, "back")
    _expect(Stopped, lambda: store.populate(bundle, back, cancelled=lambda: True))
    assert os.listdir(back) == [], "what was stopped leaves nothing half there"


def _cut(path: str, size: int) -> int:
    return 64 << 10 if path == "large" and size else 0


def _is_looked_after(store: Store, folder: str) -> None:
    assert (store.check().faults, store.prune().objects) == ((), 0), "of a store that was never written to, too"
    tree = _tree(folder)
    first = store.save(tree, "data", label="main", chunk_size=_cut)
    _write(tree, "new", b"new")
    second = store.save(tree, "data", label="main", chunk_size=_cut)
    assert second.stored == 3, f"what is cut otherwise is stored once as well, not {second.stored} bytes"
    assert [change.path for change in store.diff(first, second) if change.what == "added"] == ["new"]
    found = store.check(read_data=True)
    assert (found.faults, found.bundles, found.unneeded) == ((), 2, 0), found
    assert (store.prune().objects, store.prune().manifests) == (0, 0), "what bundles refer to is no garbage"
    assert store.verify(first) == first.bytes
    back = os.path.join(folder, "back")
    store.populate(second, back)
    assert read_tree(back) == read_tree(tree), "what is populated is what was saved"


_STORE = (
    *(_keeps_a_tree, _has_labels, _stores_once, _tells_what_is_missing, _refuses_names),
    *(_lets_many_save, _stops, _is_looked_after),
)


def _expect(kind: type[SidecarError], call: Callable[[], object]) -> SidecarError:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was to be raised")
