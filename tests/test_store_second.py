"""A second process for small files: only the time tells whether there was one, also where it is killed or meets a fault."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import forked

from sidecar.errors import Corrupt, NotSaved, Unreachable
from sidecar.store import Bundle, Stopped, Store, open_store
from sidecar.store import download as download_module
from sidecar.store import second as second_module
from sidecar.store import upload as upload_module
from sidecar.store.second import Caller, Second, begin_second, is_worth_it
from sidecar.testing import read_tree

FILES = 700  # three batches, the first and the last of which the second process reads
FOLDERS = 7


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Small files: some that cannot be made smaller, some that can, some twice there, some empty."""
    top = tmp_path / "tree"
    for number in range(FILES):
        folder = top / f"{number % FOLDERS}"
        folder.mkdir(parents=True, exist_ok=True)
        chance = random.Random(number % 600)
        text = b"" if number % 50 == 0 else b"line\n" * 700 if number % 9 == 0 else chance.randbytes(chance.randrange(1, 6000))
        (folder / f"{number:04}").write_bytes(text)
    (top / "large").write_bytes(random.Random(1).randbytes(3 << 20))
    return top


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    before = set(psutil.Process().children())  # other tests' servers
    yield
    assert set(psutil.Process().children()) <= before


def use_it(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have a second process used, however few the files; return a list of those that were, as they begin."""
    begun: list[int] = []

    def begin(work: Callable[[Caller], None]) -> Second | None:
        second = begin_second(work)
        assert second is not None
        begun.append(second._pid)
        return second

    for module in (upload_module, download_module):
        monkeypatch.setattr(module, "is_worth_it", lambda files: files > 1)
        monkeypatch.setattr(module, "begin_second", begin)
    monkeypatch.setattr(download_module, "_RUN", 100_000)  # so that there are groups for both
    return begun


def objects(store: Store) -> set[str]:
    folder = Path(store.url.removeprefix("file://"), "objects")
    return {path.name for path in folder.rglob("*") if path.is_file()}


def in_the_second(monkeypatch: pytest.MonkeyPatch, what: str, act: Callable[[str], None]) -> None:
    """Have `act` called in the second process before each `what` (a function of os), with the path that is given."""
    first, real = os.getpid(), getattr(os, what)

    def acting(path: Any, *arguments: Any, **options: Any) -> Any:
        if os.getpid() != first:
            act(str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, what, acting)


def after(count: int, act: Callable[[], None]) -> Callable[[str], None]:
    """Return a function that acts when it is called for the `count`th time."""
    left = [count]

    def counting(_: str) -> None:
        left[0] -= 1
        if not left[0]:
            act()

    return counting


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def alone(tmp_path: Path, tree: Path) -> tuple[Store, Bundle]:
    """The tree as one process saves it."""
    store = open_store(f"file://{tmp_path}/alone")
    return store, store.save(tree, "data")


# --- saving ------------------------------------------------------------------------------------------------------------


def test_what_two_processes_save_is_what_one_saves(
    alone: tuple[Store, Bundle], store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = use_it(monkeypatch)
    bundle = store.save(tree, "data")
    assert len(begun) == 1
    assert bundle.manifest == alone[1].manifest
    assert bundle.stored == alone[1].stored
    assert objects(store) == objects(alone[0])
    assert store.verify(bundle) == bundle.bytes


def test_content_that_is_there_again_and_again_makes_no_difference_either(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be made smaller has what follows not even tried; that must not depend on who knows that it is there already."""
    random_, text = random.Random(3), iter(range(10**6))
    again = [random_.randbytes(100) for _ in range(10)]
    for number in range(1500):
        folder = tmp_path / "twice" / str(number % FOLDERS)
        folder.mkdir(parents=True, exist_ok=True)
        content = again[number % 10] if number % 3 else b"".join(b"line %d of text\n" % next(text) for _ in range(20))
        (folder / f"{number:04}").write_bytes(content)
    alone = open_store(f"file://{tmp_path}/alone")
    expected = alone.save(tmp_path / "twice", "data")
    use_it(monkeypatch)
    assert store.save(tmp_path / "twice", "data").manifest == expected.manifest
    assert objects(store) == objects(alone)


@pytest.mark.parametrize("opened", [1, 100, 300, 400])
def test_a_second_process_that_is_killed_while_it_reads_is_done_without(
    opened: int, alone: tuple[Store, Bundle], store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = use_it(monkeypatch)
    in_the_second(monkeypatch, "open", after(opened, die))
    assert store.save(tree, "data").manifest == alone[1].manifest
    assert len(begun) == 1
    assert objects(store) == objects(alone[0])


def test_where_there_can_be_no_second_process_one_does_it(
    alone: tuple[Store, Bundle], store: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> int:
        raise BlockingIOError("no more processes")

    for module in (upload_module, download_module):
        monkeypatch.setattr(module, "is_worth_it", lambda files: files > 1)
    monkeypatch.setattr(os, "fork", refused)
    descriptors = len(os.listdir("/proc/self/fd"))
    bundle = store.save(tree, "data")
    store.populate(bundle, tmp_path / "back")
    assert bundle.manifest == alone[1].manifest
    assert read_tree(str(tmp_path / "back")) == read_tree(str(tree))
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_of_a_tree_that_is_known_nothing_is_stored_again(store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_it(monkeypatch)
    store.save(tree, "data")
    (tree / "0" / "0007").write_bytes(b"other")
    assert store.save(tree, "data").stored < 1000


def test_a_file_that_changed_since_it_was_found_is_read_again_whoever_read_it(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_it(monkeypatch)
    victim = tree / "0" / "0007"
    preadv, changed = os.preadv, threading.Event()

    def changing(fd: int, buffers: Any, offset: int) -> int:
        count = preadv(fd, buffers, offset)
        if not changed.is_set() and os.fstat(fd).st_ino == victim.stat().st_ino:
            changed.set()
            victim.write_bytes(b"what it is now")
        return count

    monkeypatch.setattr(os, "preadv", changing)
    bundle = store.save(tree, "data")
    (entry,) = [entry for entry in store.manifest(bundle) if entry.path == "0/0007"]
    assert entry.size == len(b"what it is now")
    assert store.verify(bundle) == bundle.bytes


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("number", range(3, FILES, 100))
def test_a_file_that_cannot_be_read_is_told_of_once_whoever_was_to_read_it(
    number: int, skip: bool, store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"{number:04}"
    path, real = f"{number % FOLDERS}/{name}", os.open

    def refusing(path: Any, *arguments: Any, **options: Any) -> int:
        if path == name:
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    use_it(monkeypatch)
    monkeypatch.setattr(os, "open", refusing)
    if skip:
        bundle = store.save(tree, "data", skip_errors=True)
        assert bundle.skipped == 1
        assert path not in {entry.path for entry in store.manifest(bundle)}
        assert caplog.text.count(path) == 1
    else:
        with pytest.raises(NotSaved, match=f"'{path}' cannot be read: Permission denied"):
            store.save(tree, "data")


@pytest.mark.parametrize("calls", [1, 3, 5])
def test_told_to_stop_it_ends_and_so_does_the_second_process(
    calls: int, store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, left = use_it(monkeypatch), [calls]

    def cancelled() -> bool:
        left[0] -= bool(begun)
        return left[0] <= 0

    with pytest.raises(Stopped):
        store.save(tree, "data", cancelled=cancelled)
    assert len(begun) == 1


def test_told_to_stop_it_ends_also_where_the_second_process_is_stuck(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = use_it(monkeypatch)
    in_the_second(monkeypatch, "open", lambda _: os.kill(os.getpid(), signal.SIGSTOP))

    def is_stuck() -> bool:
        return bool(begun) and psutil.Process(begun[0]).status() == psutil.STATUS_STOPPED

    with pytest.raises(Stopped):
        store.save(tree, "data", cancelled=is_stuck)


# --- fetching ----------------------------------------------------------------------------------------------------------


def test_what_two_processes_fetch_is_what_was_saved(
    alone: tuple[Store, Bundle], tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = use_it(monkeypatch)
    said: list[tuple[int, int]] = []
    store, bundle = alone
    assert store.populate(bundle, tmp_path / "back", progress=lambda _, done, total: said.append((done, total))) == ()
    assert len(begun) == 1
    assert read_tree(str(tmp_path / "back")) == read_tree(str(tree))
    assert said[-1] == (bundle.bytes, bundle.bytes)


@pytest.mark.parametrize("renamed", [1, 50, 200])
def test_a_second_process_that_is_killed_while_it_writes_is_done_without(
    renamed: int, alone: tuple[Store, Bundle], tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = use_it(monkeypatch)
    in_the_second(monkeypatch, "rename", after(renamed, die))
    alone[0].populate(alone[1], tmp_path / "back")
    assert len(begun) == 1
    assert read_tree(str(tmp_path / "back")) == read_tree(str(tree))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_damaged_file_is_told_of_once_whoever_was_to_write_it(
    part: float,
    skip: bool,
    alone: tuple[Store, Bundle],
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, bundle = alone
    packed = [entry for entry in store.manifest(bundle) if entry.size and entry.pieces[0].pack and not entry.pieces[0].stored]
    (pack,) = {entry.pieces[0].pack for entry in packed}
    packed.sort(key=lambda entry: entry.pieces[0].offset)
    victim = packed[int(len(packed) * part)]
    piece = victim.pieces[0]
    lost = {entry.path for entry in packed if entry.pieces[0].hash == piece.hash}
    path = next(Path(store.url.removeprefix("file://")).rglob(pack))
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(piece.offset)
        byte = file.read(1)
        file.seek(piece.offset)
        file.write(bytes([byte[0] ^ 1]))
    use_it(monkeypatch)
    if not skip:
        with pytest.raises(Corrupt, match=piece.hash):
            store.populate(bundle, tmp_path / "back")
        return
    assert set(store.populate(bundle, tmp_path / "back", skip_errors=True)) == lost
    there, expected = read_tree(str(tmp_path / "back")), read_tree(str(tree))
    assert expected.keys() - there.keys() == lost
    assert sum("it is left out" in record.getMessage() for record in caplog.records) == len(lost)


def test_a_full_disk_is_told_of_whoever_met_it(
    alone: tuple[Store, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_it(monkeypatch)
    write = os.write

    def full(fd: int, data: Any) -> int:
        if len(data) > 3000:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Unreachable, match="No space left"):
        alone[0].populate(alone[1], tmp_path / "back")


# --- the process itself ------------------------------------------------------------------------------------------------


def test_it_is_used_for_many_files_on_two_processors_in_a_process_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_a_copy(threads: int, processors: int, files: int, sigchld: signal.Handlers = signal.SIG_DFL) -> bool:
        """Ask in a process of one thread, or of more."""
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, sigchld)
            hold = threading.Event()
            for _ in range(threads - 1):
                threading.Thread(target=hold.wait, daemon=True).start()
            monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
            os._exit(is_worth_it(files))
        return bool(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    many = second_module._MANY
    assert in_a_copy(1, 2, many)
    assert not in_a_copy(2, 2, many)
    assert not in_a_copy(1, 1, many)
    assert not in_a_copy(1, 2, many - 1)
    assert not in_a_copy(1, 2, many, signal.SIG_IGN)  # as some are started, and then nobody learns how a child has ended


def test_messages_come_whole_and_in_order_and_then_the_end() -> None:
    messages = [b"", b"one", b"\0" * 300_000, b"last"]

    def work(first: Caller) -> None:
        for message in messages:
            first.send(message)

    second = Second(work)
    assert [second.receive() for _ in messages] == messages
    assert second.receive() is None
    second.end()


def test_it_goes_on_when_it_is_let_and_ends_when_the_first_is_gone() -> None:
    def work(first: Caller) -> None:
        first.wait()
        first.send(b"went on")
        first.wait()  # for ever: nobody lets it

    second = Second(work)
    second.go_on()
    assert second.receive() == b"went on"
    assert not second.is_ready(0)
    second.end()


def test_a_signal_that_comes_while_it_is_begun_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    fork = os.fork

    def interrupted() -> int:
        pid = fork()
        if pid:
            os.kill(os.getpid(), signal.SIGUSR1)
        return pid

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def begin() -> None:
        signal.signal(signal.SIGUSR1, stop)
        monkeypatch.setattr(os, "fork", interrupted)
        descriptors = len(os.listdir("/proc/self/fd"))
        with pytest.raises(KeyboardInterrupt):
            Second(lambda first: first.wait())
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert psutil.Process().children() == []

    # In a copy, which has one thread, as every process that begins a second one: with more, another takes the signal at once.
    assert os.waitpid(forked(begin), 0)[1] == 0


def test_it_is_heard_whatever_the_number_of_its_descriptor() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard == resource.RLIM_INFINITY else min(hard, 4096), hard))
    high = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    second = Second(lambda first: first.send(b"here"))
    for fd in high:
        os.close(fd)
    assert second.is_ready(60)
    assert second.receive() == b"here"
    second.end()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_dies_with_the_first() -> None:
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        second = Second(lambda first: first.wait())
        os.write(write, str(second._pid).encode())
        die()
    os.waitpid(pid, 0)
    os.close(write)
    assert int(os.read(read, 100)) > 0
    assert os.read(read, 1) == b""  # it had the other end, too
    os.close(read)
