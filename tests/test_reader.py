"""Reading anywhere in a bundle: the tree, any range of any file, each byte verified; what is kept, and how it is lost."""

from __future__ import annotations

import errno
import os
import queue
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import HANG

from sidecar.errors import Corrupt, Unreachable
from sidecar.store import Bundle, Store, download, open_store
from sidecar.store.cache import Cache
from sidecar.store.format import FILE, MIB, Piece
from sidecar.store.objects import LocalObjects
from sidecar.store.reader import ROOT, Reader, Tree, open_reader

SIZES = {"empty": 0, "one": 1, "small": 4096, "edge": MIB, "packed-end": 8 * MIB + 5, "large": 20 * MIB + 12345}


def content(name: str) -> bytes:
    """Bytes that no program makes smaller."""
    return random.Random(name).randbytes(SIZES[name])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Bundle]:
    """A store with one bundle: files of all kinds of sizes, and 600 small ones."""
    top = tmp_path_factory.mktemp("reader")
    tree = top / "tree"
    (tree / "many").mkdir(parents=True)
    for name in SIZES:
        (tree / name).write_bytes(content(name))
    for number in range(600):
        (tree / "many" / f"{number:03}").write_bytes(b"%d," % number * 1500)
    (tree / "text").write_bytes(b"the same line again\n" * 200_000)
    (tree / "pages").write_bytes(b"".join(random.Random(n).randbytes(8192) for n in range(700)))
    os.symlink("one", tree / "link")
    (tree / os.fsdecode(b"caf\xe9\n")).write_bytes(b"latin")
    store = open_store(f"file://{top}/store")
    return store.url, store.save(tree, "r", chunk_size=lambda path, _size: 8192 if path == "pages" else 0)


@pytest.fixture
def store(made: tuple[str, Bundle]) -> Store:
    return open_store(made[0])


@pytest.fixture
def bundle(made: tuple[str, Bundle]) -> Bundle:
    return made[1]


@pytest.fixture
def reader(store: Store, bundle: Bundle) -> Iterator[Reader]:
    reader = open_reader(store, bundle)
    yield reader
    reader.close()


def read(reader: Reader, path: str, offset: int = 0, length: int = 1 << 40) -> bytes:
    return reader.read(reader.tree.find(os.fsencode(path)), offset, length)


def own_store(tmp_path: Path, **files: bytes) -> tuple[Store, Bundle]:
    """A store that a test may damage."""
    for name, data in files.items():
        (tmp_path / "tree").mkdir(exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(data)
    store = open_store(f"file://{tmp_path}/store")
    return store, store.save(tmp_path / "tree", "r")


def objects(store: Store) -> list[Path]:
    found = [path for path in Path(store.url.removeprefix("file://"), "objects").rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: path.stat().st_size)


def flip(path: Path, offset: int) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


# --- the tree ----------------------------------------------------------------------------------------------------------


def test_every_entry_is_found_by_its_path_and_has_its_parent(store: Store, bundle: Bundle) -> None:
    entries = store.manifest(bundle)
    tree = Tree(entries)
    assert len(tree.nodes) == len(entries) + 1
    for entry in entries:
        node = tree.find(os.fsencode(entry.path))
        assert tree.entry(node) == entry
        assert tree.children[tree.parents[node]][os.fsencode(entry.path).rpartition(b"/")[2]] == node
    assert tree.find(b"") == ROOT
    assert not tree.parents[ROOT]


@pytest.mark.parametrize("path", [b"nope", b"one/x", b"many/nope", b"..", b"many/..", b"./one", b"/", b"link/x", b"one/"])
def test_what_is_no_path_of_the_bundle_is_not_found(path: bytes, reader: Reader) -> None:
    assert not reader.tree.find(path)


def test_names_are_bytes(reader: Reader) -> None:
    assert reader.read(reader.tree.find(b"caf\xe9\n"), 0, 10) == b"latin"


# --- bytes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_a_file_is_read_whole(name: str, reader: Reader) -> None:
    assert read(reader, name) == content(name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(SIZES)), offset=st.integers(0, 21 * MIB), length=st.integers(0, 3 * MIB))
def test_any_range_of_any_file_is_what_the_file_has_there(name: str, offset: int, length: int, reader: Reader) -> None:
    assert read(reader, name, offset, length) == content(name)[offset : offset + length]


def test_every_small_file_is_its_own_content_in_any_order(reader: Reader) -> None:
    numbers = list(range(600))
    random.Random(1).shuffle(numbers)
    for number in numbers:
        assert read(reader, f"many/{number:03}") == b"%d," % number * 1500


def test_what_was_stored_compressed_is_read_as_it_was(reader: Reader) -> None:
    assert read(reader, "text", 3_000_000, 40) == (b"the same line again\n" * 200_000)[3_000_000:3_000_040]


def test_a_file_whose_list_of_chunks_is_a_table_is_read_anywhere(reader: Reader) -> None:
    for page in (0, 699, 300, 301, 302, 5):
        assert read(reader, "pages", page * 8192, 8192) == random.Random(page).randbytes(8192)
    assert len(read(reader, "pages", 8000, 700 * 8192)) == 700 * 8192 - 8000


def test_directories_and_links_have_no_bytes(reader: Reader) -> None:
    assert read(reader, "many") == read(reader, "link") == read(reader, "") == b""


def test_many_readers_at_once_get_what_each_asked_for(store: Store, bundle: Bundle) -> None:
    reader = open_reader(store, bundle, memory=4 * MIB)  # less than one chunk: everything is thrown out at once
    wrong = []

    def look(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(40):
            name = choose.choice(sorted(SIZES))
            offset = choose.randrange(SIZES[name] + 1)
            if read(reader, name, offset, 70_000) != content(name)[offset : offset + 70_000]:
                wrong.append((name, offset))

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader.close()
    assert not wrong


def test_what_is_at_hand_is_had_without_waiting_and_without_a_thread(reader: Reader) -> None:
    node = reader.tree.find(b"many/007")
    assert reader.ready(node, 0, 10) is None
    read(reader, "many/007")
    views = reader.ready(node, 0, 10)
    assert views is not None
    assert b"".join(views) == b"7,7,7,7,7,"
    beside = reader.ready(reader.tree.find(b"many/008"), 0, 2)
    assert beside is not None, "one request brings neighbours together"


def test_memory_is_bounded(store: Store, bundle: Bundle) -> None:
    code = (
        "import resource, sys; from sidecar.store import open_store; from sidecar.store.reader import open_reader\n"
        "store = open_store(sys.argv[1]); reader = open_reader(store, store.resolve('r'), memory=1 << 24)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for _ in range(3):\n"
        "    for node in reader.tree.nodes:\n"
        "        for offset in range(0, reader.tree.entry(node).size, 1 << 20):\n"
        "            reader.read(node, offset, 1 << 20)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, store.url], capture_output=True, text=True, check=True)
    # 16 MiB that are kept, and what four threads have under way.
    assert int(done.stdout) < 120 << 10


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read of objects in stores of files, by name, as it happens."""
    asked: list[str] = []
    ask = LocalObjects.read

    def read(self: LocalObjects, name: str, offset: int, view: memoryview) -> int:
        asked.append(name)
        return ask(self, name, offset, view)

    monkeypatch.setattr(LocalObjects, "read", read)
    return asked


def half(seed: int, length: int) -> bytes:
    """Bytes that are stored as half of them."""
    return random.Random(seed).randbytes(length // 2) + bytes(length // 2)


def test_chunks_that_lie_compressed_beside_one_another_come_with_one_request_a_block(tmp_path: Path, requests: list[str]) -> None:
    (tmp_path / "tree").mkdir()
    pages = b"".join(half(number, 1 << 18) for number in range(16))
    (tmp_path / "tree" / "pages").write_bytes(pages)
    store = open_store(f"file://{tmp_path}/store")
    bundle = store.save(tmp_path / "tree", "r", chunk_size=lambda _path, _size: 1 << 18)
    pieces = store.manifest(bundle)[0].pieces
    assert len({piece.pack for piece in pieces}) == 1
    # Where each ends in the pack, not in the file, begins the next one. What is stored of one is more than is read over.
    assert [piece.end for piece in pieces[:-1]] == [piece.offset for piece in pieces[1:]]
    assert all(piece.end - piece.offset > 2 * download._GAP for piece in pieces)
    reader = open_reader(store, bundle)
    requests.clear()
    assert read(reader, "pages") == pages
    assert len(requests) == 4, "of 1 MiB each"
    reader.close()


def test_files_that_are_small_once_compressed_are_fetched_together_however_long_they_are(
    tmp_path: Path, requests: list[str]
) -> None:
    store, bundle = own_store(tmp_path, **{f"f{number}": b"%d" % number * (5 * MIB) for number in range(8)})
    requests.clear()
    store.populate(bundle, tmp_path / "back")
    assert len(requests) == 1
    assert (tmp_path / "back" / "f7").read_bytes() == b"7" * (5 * MIB)


class Recorded:
    """Chunks, each of which can be waited for to be asked for."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.asked: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read(self, path: str, piece: Piece, view: memoryview) -> None:
        self.asked.put(piece.hash)
        self.reader.read(path, piece, view)

    def many(self, pieces: Any) -> Any:
        return self.reader.many(pieces)


def test_who_reads_on_is_read_ahead_of_and_who_jumps_is_not(tmp_path: Path) -> None:
    store, bundle = own_store(tmp_path, large=random.Random(2).randbytes(48 * MIB))
    chunks = Recorded(store.reader(bundle))
    reader = Reader(store.manifest(bundle), chunks, 4)  # type: ignore[arg-type]
    hashes = [piece.hash for piece in store.manifest(bundle)[0].pieces]
    for jump in (4, 1):
        read(reader, "large", jump * 8 * MIB, 10)
        assert chunks.asked.get(timeout=60) == hashes[jump]
    assert chunks.asked.empty()
    read(reader, "large", 2 * 8 * MIB, 10)
    assert {chunks.asked.get(timeout=60) for _ in range(3)} == {hashes[2], hashes[3], hashes[5]}, "and what is here is not asked"
    reader.close()


def test_a_chunk_that_many_wait_for_is_asked_for_once(tmp_path: Path) -> None:
    store, bundle = own_store(tmp_path, large=content("large"))
    chunks = Recorded(store.reader(bundle))
    reader = Reader(store.manifest(bundle), chunks, 4)  # type: ignore[arg-type]
    node = reader.tree.find(b"large")
    came: queue.SimpleQueue[object] = queue.SimpleQueue()
    for _ in range(20):
        reader.fetch(node, 0, 10, lambda views, _: came.put(bytes((views or ())[0])))
    assert [came.get(timeout=60) for _ in range(20)] == [content("large")[:10]] * 20
    assert chunks.asked.qsize() == 1
    reader.close()


def test_any_store_is_read(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for name in SIZES:
        (tmp_path / "tree" / name).write_bytes(content(name))
    store = open_store(f"memory://{tmp_path.name}")
    reader = open_reader(store, store.save(tmp_path / "tree", "r"))
    for name in SIZES:
        assert read(reader, name) == content(name)
    reader.close()


# --- faults ------------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_is_told_with_file_and_object_and_is_never_handed_out(tmp_path: Path) -> None:
    store, bundle = own_store(tmp_path, large=content("large"), small=b"x" * 100)
    damaged = objects(store)[-1]
    flip(damaged, 1000)
    reader = open_reader(store, bundle)
    with pytest.raises(Corrupt, match=f"repository 'r', bundle {bundle.id}, file 'large': objects/../{damaged.name}"):
        read(reader, "large")
    assert read(reader, "small") == b"x" * 100
    flip(damaged, 1000)
    assert read(reader, "large") == content("large"), "a failure is not remembered"
    reader.close()


def test_an_object_that_is_missing_is_told(tmp_path: Path) -> None:
    store, bundle = own_store(tmp_path, large=content("large"))
    objects(store)[-1].unlink()
    reader = open_reader(store, bundle)
    with pytest.raises(Corrupt, match="is missing"):
        read(reader, "large")
    reader.close()


def test_who_waits_when_the_reader_is_closed_is_told(store: Store, bundle: Bundle) -> None:
    reader = open_reader(store, bundle)
    reader.close()
    with pytest.raises(Unreachable):
        read(reader, "large")


# --- the cache ---------------------------------------------------------------------------------------------------------


def test_what_was_read_once_is_read_again_without_the_store(tmp_path: Path) -> None:
    store, bundle = own_store(tmp_path, large=content("large"), small=b"x" * 100)
    first = open_reader(store, bundle, cache=Cache(str(tmp_path / "cache"), 100 * MIB))
    assert read(first, "large") == content("large")
    assert read(first, "small") == b"x" * 100
    settle(first)
    for each in objects(store):
        each.unlink()
    again = open_reader(store, bundle, cache=Cache(str(tmp_path / "cache"), 100 * MIB))
    assert read(again, "large") == content("large")
    assert read(again, "small") == b"x" * 100
    again.close()


def test_a_damaged_file_of_the_cache_is_noticed_and_fetched_again(tmp_path: Path) -> None:
    store, bundle = own_store(tmp_path, large=content("large"))
    cache = Cache(str(tmp_path / "cache"), 100 * MIB)
    first = open_reader(store, bundle, cache=cache)
    read(first, "large")
    settle(first)
    for kept in cached(tmp_path):
        flip(kept, 9 * MIB)
    again = open_reader(store, bundle, cache=cache)
    assert again.whole(again.tree.find(b"large")) is None
    assert read(again, "large") == content("large")
    settle(again)
    assert all(kept.read_bytes() == content("large") for kept in cached(tmp_path)), "and is whole again"


def test_a_file_of_the_cache_that_was_torn_is_noticed(tmp_path: Path) -> None:
    store, bundle = own_store(tmp_path, large=content("large"))
    cache = Cache(str(tmp_path / "cache"), 100 * MIB)
    first = open_reader(store, bundle, cache=cache)
    read(first, "large")
    settle(first)
    for kept in cached(tmp_path):
        os.truncate(kept, 10 * MIB)
    again = open_reader(store, bundle, cache=cache)
    assert read(again, "large") == content("large")
    again.close()


def test_a_file_that_is_whole_in_the_cache_can_be_handed_over(tmp_path: Path) -> None:
    store, bundle = own_store(tmp_path, large=content("large"))
    reader = open_reader(store, bundle, cache=Cache(str(tmp_path / "cache"), 100 * MIB))
    node = reader.tree.find(b"large")
    read(reader, "large", 0, 10)
    assert reader.whole(node) is None
    read(reader, "large")
    settle(reader)
    fd = reader.whole(node)
    assert fd is not None
    assert os.pread(fd, 1 << 30, 0) == content("large")
    os.close(fd)


def test_the_cache_keeps_to_its_limit_and_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    names = [f"f{number}" for number in range(12)]
    store, bundle = own_store(tmp_path, **{name: random.Random(name).randbytes(2 * MIB) for name in names})
    reader = open_reader(store, bundle, cache=Cache(str(tmp_path / "cache"), 8 * MIB))
    for name in names:
        read(reader, name)
    settle(reader)
    assert sum(kept.stat().st_blocks * 512 for kept in cached(tmp_path)) <= 9 * MIB


def test_what_several_threads_keep_at_once_is_counted_before_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(str(tmp_path / "cache"), 8 * MIB)
    together = threading.Barrier(4)
    truncate = os.ftruncate

    def all_have_room_and_none_has_written(fd: int, size: int) -> None:
        together.wait(timeout=HANG)
        truncate(fd, size)

    monkeypatch.setattr(os, "ftruncate", all_have_room_and_none_has_written)
    for turn in range(3):
        keys = [f"{turn}{thread}" * 32 for thread in range(4)]
        threads = [threading.Thread(target=cache.keep, args=(key, MIB, 0, memoryview(bytes(MIB)))) for key in keys]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 4 * MIB <= sum(kept.stat().st_size for kept in cached(tmp_path)) <= 8 * MIB


def test_who_fetches_does_not_wait_for_a_directory_that_takes_long_to_be_measured(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), MIB)
    with cache._making_room:  # as whoever measures it has it
        assert not cache.keep("aa", 10, 0, memoryview(bytes(10)))
    assert cache.keep("aa", 10, 0, memoryview(bytes(10)))


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), MIB)
    assert cache.keep("aa", MIB, 0, memoryview(bytes(MIB)))
    assert not cache.keep("bb", MIB + 1, 0, memoryview(bytes(MIB + 1)))


def test_a_cache_on_a_full_disk_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, bundle = own_store(tmp_path, large=content("large"))
    cache = Cache(str(tmp_path / "cache"), 100 * MIB)
    for number in range(256):  # where its files would go stands something else
        (tmp_path / "cache" / f"{number:02x}").write_text("")
    reader = open_reader(store, bundle, cache=cache)
    assert read(reader, "large") == content("large")
    settle(reader)
    assert "cannot be written" in caplog.text


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "sidecar.store.cache"]


def test_a_disk_that_is_smaller_than_the_cache_may_be_is_read_past_and_told_once(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, bundle = own_store(tmp_path, large=content("large"), small=b"x" * 100, edge=content("edge"))
    for _ in range(2):  # the second time beside what is left there of the first
        caplog.clear()
        reader = open_reader(store, bundle, memory=MIB, cache=Cache(str(tiny / "cache"), 100 * MIB))
        for _ in range(2):
            assert read(reader, "large") == content("large")
            assert read(reader, "edge") == content("edge")
            assert read(reader, "small") == b"x" * 100
        settle(reader)
        assert reader.whole(reader.tree.find(b"large")) is None
        (told,) = warnings(caplog)
        assert f"{tiny}/cache cannot be written" in told


def test_of_threads_that_find_the_disk_full_together_one_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(str(tmp_path / "cache"), 100 * MIB)
    together = threading.Barrier(4)

    def full(*_: object) -> int:
        together.wait(timeout=HANG)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    threads = [threading.Thread(target=cache.keep, args=(f"{n}" * 64, MIB, 0, memoryview(bytes(MIB)))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings(caplog) == [f"the cache {tmp_path}/cache cannot be written: No space left on device; it is read without"]


def test_what_was_being_kept_while_the_disk_filled_does_not_have_it_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sidecar.store.cache._AGAIN", 0.0)
    cache = Cache(str(tmp_path / "cache"), 100 * MIB)
    writing, filled, write = threading.Event(), threading.Event(), os.pwrite

    def slow_or_full(fd: int, data: memoryview, at: int) -> int:
        if len(data) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        writing.set()
        filled.wait(HANG)
        return write(fd, data, at)

    monkeypatch.setattr(os, "pwrite", slow_or_full)
    thread = threading.Thread(target=cache.keep, args=("aa", 1, 0, memoryview(b"1")))
    thread.start()
    assert writing.wait(HANG)
    assert not cache.keep("bb", 2, 0, memoryview(b"22"))
    filled.set()
    thread.join()
    assert not cache.keep("bb", 2, 0, memoryview(b"22"))
    assert len(warnings(caplog)) == 1


def test_keeping_resumes_when_there_is_room_again_and_the_next_full_disk_is_told_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, bundle = own_store(tmp_path, **{name: random.Random(name).randbytes(2 * MIB) for name in "abcd"})
    cache = Cache(str(tiny / "cache"), 100 * MIB)

    def is_kept(name: str) -> bool:
        reader = open_reader(store, bundle, cache=cache)
        assert read(reader, name) == random.Random(name).randbytes(2 * MIB)
        settle(reader)
        return reader.whole(reader.tree.find(name.encode())) is not None

    fill(tiny)
    assert not is_kept("a")
    (tiny / "fill").unlink()
    assert not is_kept("b"), "it rests"
    monkeypatch.setattr(cache, "_resting", time.monotonic())
    monkeypatch.setattr("sidecar.store.cache._AGAIN", 0.0)
    assert len(warnings(caplog)) == 1
    assert is_kept("b")
    fill(tiny)
    assert not is_kept("c")
    assert not is_kept("d")
    assert len(warnings(caplog)) == 2
    assert is_kept("b"), "and is still there"
    (tiny / "fill").unlink()
    assert is_kept("c")


def test_a_cache_that_was_emptied_to_make_room_is_filled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sidecar.store.cache._AGAIN", 0.0)
    cache = Cache(str(tmp_path / "cache"), MIB)
    assert cache.keep("aa", 1, 0, memoryview(b"1"))
    shutil.rmtree(tmp_path / "cache")
    assert not cache.keep("aa", 1, 0, memoryview(b"1"))
    assert cache.keep("aa", 1, 0, memoryview(b"1"))
    assert len(warnings(caplog)) == 1


def test_where_there_is_no_room_to_vouch_for_a_file_nothing_is_left(tiny: Path) -> None:
    cache = Cache(str(tiny / "cache"), MIB)
    assert cache.keep("aa", 1, 0, memoryview(b"1"))
    fill(tiny)
    cache.vouch("aa", 1, lambda _: True)
    assert os.listdir(tiny / "cache" / "aa") == ["aa"]
    assert cache.open_whole("aa", 1) is None


def test_the_cache_is_for_its_user_alone(tmp_path: Path) -> None:
    Cache(str(tmp_path / "cache"), MIB)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_two_processes_share_one_cache(tmp_path: Path) -> None:
    store, bundle = own_store(tmp_path, large=content("large"))
    code = (
        "import sys; from sidecar.store import open_store; from sidecar.store.cache import Cache\n"
        "from sidecar.store.reader import open_reader\n"
        "store = open_store(sys.argv[1]); bundle = store.resolve('r')\n"
        "reader = open_reader(store, bundle, cache=Cache(sys.argv[2], 1 << 24))\n"
        "node = reader.tree.find(b'large')\n"
        "for n in range(5): sys.stdout.buffer.write(reader.read(node, 0, 1 << 30))"
    )
    command = [sys.executable, "-c", code, store.url, str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        out, _ = process.communicate()
        assert process.returncode == 0
        assert out == content("large") * 5
    assert bundle.files == 1


def fill(folder: Path) -> None:
    """Fill the file system that is mounted at `folder`."""
    assert folder.is_mount(), "this test fills a disk of its own: run it as root"
    with (folder / "fill").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


def settle(reader: Reader) -> None:
    """Return when what was read is in the cache."""
    reader._threads.finish()


def cached(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and "." not in path.name]


def test_no_file_of_a_bundle_is_left_out(reader: Reader) -> None:
    for node in reader.tree.nodes:
        entry = reader.tree.entry(node)
        assert len(reader.read(node, 0, 1 << 40)) == (entry.size if entry.type == FILE else 0)
