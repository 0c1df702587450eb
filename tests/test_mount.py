"""`sidecar bundle mount`: a real mount, read by real programs, ended in every way.

The server is another process, so this one may read the mount by anything. Nothing is left mounted below `tmp_path`.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mounts import SIDECAR, Mounted, cat, nothing_left_below
from processes import HANG

from sidecar.mount import CannotMount, Mount, is_mounted
from sidecar.mount import protocol as fuse
from sidecar.mount.server import Server
from sidecar.store import Bundle, Store
from sidecar.store.cache import Cache
from sidecar.store.format import MIB, Entry
from sidecar.store.reader import Reader, open_reader
from sidecar.testing import read_tree

LARGE = random.Random(1).randbytes(20 * MIB + 777)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Every test: there is FUSE, and afterwards no mount."""
    with nothing_left_below(tmp_path):
        yield


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "deep" / "empty").mkdir(parents=True)
    (tree / "large").write_bytes(LARGE)
    (tree / "nothing").write_bytes(b"")
    (tree / "deep" / "note").write_text("hello")
    (tree / "deep" / "note").chmod(0o640)
    (tree / "deep").chmod(0o751)
    os.symlink("deep/note", tree / "link")
    os.utime(tree / "deep" / "note", ns=(1, 1_234_567_890_123_456_789))
    return tree


@pytest.fixture
def bundle(store: Store, tree: Path) -> Bundle:
    return store.save(tree, "r", label="latest")


# --- what is there -----------------------------------------------------------------------------------------------------


def test_a_mounted_bundle_is_the_tree_that_was_saved(store: Store, bundle: Bundle, tree: Path, tmp_path: Path) -> None:
    with Mounted(store, tmp_path / "in") as mounted:
        assert mounted.told["id"] == bundle.id
        assert mounted.told["path"] == str(tmp_path / "in")
        assert read_tree(str(tmp_path / "in")) == read_tree(str(tree))
        assert subprocess.run(["diff", "-r", tree, tmp_path / "in"], check=False).returncode == 0
    assert os.listdir(tmp_path / "in") == []


def test_names_are_bytes_up_to_255_of_them(store: Store, tmp_path: Path) -> None:
    names = [b"caf\xe9", b"line\nfeed", b"%41", "日本".encode(), b"x" * 255, b"back\\slash", b" ", b"-", b"..."]
    os.mkdir(tmp_path / "tree")
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path / "tree") + b"/" + name)).write_bytes(name)
    store.save(tmp_path / "tree", "r")
    with Mounted(store, tmp_path / "in"):
        top = os.fsencode(tmp_path / "in")
        assert sorted(os.listdir(top)) == sorted(names)
        assert all(Path(os.fsdecode(top + b"/" + name)).read_bytes() == name for name in names)


def test_a_directory_of_thousands_is_listed_once_each_and_from_anywhere(store: Store, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for number in range(3000):
        (tmp_path / "tree" / f"{number:04}").write_bytes(b"%d" % number)
    store.save(tmp_path / "tree", "r")
    with Mounted(store, tmp_path / "in"):
        assert sorted(os.listdir(tmp_path / "in")) == [f"{number:04}" for number in range(3000)]
        listed = subprocess.run(["find", tmp_path / "in", "-type", "f", "-size", "-5c"], capture_output=True, check=True)
        assert listed.stdout.count(b"\n") == 3000
        assert (tmp_path / "in" / "2999").read_bytes() == b"2999"


def test_any_range_is_read_by_any_number_of_readers(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    wrong: list[int] = []

    def read(seed: int) -> None:
        choose = random.Random(seed)
        with (tmp_path / "in" / "large").open("rb", buffering=0) as file:
            for _ in range(50):
                offset = choose.randrange(len(LARGE))
                if os.pread(file.fileno(), 70_000, offset) != LARGE[offset : offset + 70_000]:
                    wrong.append(offset)

    with Mounted(store, tmp_path / "in"):
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_it_can_be_mapped_and_run_from(store: Store, tree: Path, tmp_path: Path) -> None:
    (tree / "run").write_text('#!/bin/sh\ncat "${0%/*}/deep/note"\n')
    (tree / "run").chmod(0o755)
    store.save(tree, "r")
    with Mounted(store, tmp_path / "in"):
        with (tmp_path / "in" / "large").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[10 * MIB : 10 * MIB + 100] == LARGE[10 * MIB : 10 * MIB + 100]
        assert subprocess.run([tmp_path / "in" / "run"], capture_output=True, check=True).stdout == b"hello"


def test_pandas_and_sqlite_read_it(store: Store, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    table = pd.DataFrame({"a": range(10_000), "b": ["x", "y"] * 5000})
    table.to_csv(tmp_path / "tree" / "table.csv", index=False)
    with sqlite3.connect(tmp_path / "tree" / "table.db") as connection:
        table.to_sql("t", connection)
    connection.close()
    store.save(tmp_path / "tree", "r")
    with Mounted(store, tmp_path / "in"):
        assert pd.read_csv(tmp_path / "in" / "table.csv").equals(table)
        connection = sqlite3.connect(f"file:{tmp_path}/in/table.db?mode=ro", uri=True)
        assert connection.execute("select sum(a) from t where b = 'x'").fetchall() == [(sum(range(0, 10_000, 2)),)]
        connection.close()


@pytest.mark.parametrize("write", ["create", "append", "remove", "mkdir", "chmod", "rename", "link", "utime"])
def test_it_cannot_be_written(write: str, store: Store, bundle: Bundle, tmp_path: Path) -> None:
    def attempt(top: Path) -> None:
        note = top / "deep" / "note"
        match write:
            case "create":
                (top / "new").write_text("")
            case "append":
                note.open("a")
            case "remove":
                note.unlink()
            case "mkdir":
                (top / "new").mkdir()
            case "chmod":
                note.chmod(0o777)
            case "rename":
                note.rename(top / "new")
            case "link":
                os.link(note, top / "new")
            case "utime":
                os.utime(note)

    with Mounted(store, tmp_path / "in"), pytest.raises(OSError, match="Read-only") as caught:
        attempt(tmp_path / "in")
    assert caught.value.errno == errno.EROFS


def test_no_bundle_brings_a_set_user_id_program(store: Store, tree: Path, tmp_path: Path) -> None:
    (tree / "tool").write_text("")
    (tree / "tool").chmod(0o6755)
    store.save(tree, "r")
    with Mounted(store, tmp_path / "in"):
        assert stat.S_IMODE((tmp_path / "in" / "tool").stat().st_mode) == 0o755
        options = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{tmp_path}/in " in line)
        assert {"ro", "nosuid", "nodev"} <= set(options.split()[5].split(","))


def test_what_is_asked_of_the_whole_is_answered(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    with Mounted(store, tmp_path / "in"):
        told = os.statvfs(tmp_path / "in")
        assert told.f_blocks * told.f_frsize >= bundle.bytes
        assert told.f_bfree == 0
        with pytest.raises(FileNotFoundError):
            (tmp_path / "in" / "nope").stat()
        with pytest.raises(NotADirectoryError):
            (tmp_path / "in" / "large" / "x").stat()


# --- faults ------------------------------------------------------------------------------------------------------------


def test_a_damaged_chunk_cannot_be_read_and_is_told(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    objects = [path for path in (tmp_path / "store" / "objects").rglob("*") if path.is_file()]
    damaged = next(path for path in objects if path.read_bytes() == LARGE[: 8 * MIB])
    damaged.chmod(0o600)
    with damaged.open("r+b") as file:
        file.write(bytes([LARGE[0] ^ 1]))
    with Mounted(store, tmp_path / "in") as mounted:
        with (tmp_path / "in" / "large").open("rb", buffering=0) as file, pytest.raises(OSError, match="Input/output"):
            file.read(10)
        with (tmp_path / "in" / "large").open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 100, 9 * MIB) == LARGE[9 * MIB : 9 * MIB + 100], "the rest is whole"
        assert mounted.end() == 0
        assert f"bundle {bundle.id}, file 'large': objects/{damaged.parent.name}/{damaged.name}" in mounted.err


def test_a_directory_that_is_not_empty_is_not_hidden(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "mine").write_text("")
    with pytest.raises(CannotMount, match="not empty"):
        Mount(open_reader(store, bundle), tmp_path / "in")
    assert os.listdir(tmp_path / "in") == ["mine"]


def test_where_a_bundle_is_mounted_no_second_one_is(store: Store, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    bundle = store.save(tmp_path / "tree", "r")
    with Mounted(store, tmp_path / "in"), pytest.raises(CannotMount, match="mounted there already"):
        Mount(open_reader(store, bundle), tmp_path / "in")


@pytest.mark.parametrize("what", ["file", "below a file"])
def test_what_is_no_directory_is_not_mounted_on(what: str, store: Store, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotMount):
        Mount(open_reader(store, bundle), tmp_path / {"file": "file", "below a file": "file/x"}[what])


def test_a_users_own_link_is_mounted_behind(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in").symlink_to("elsewhere")
    with Mounted(store, tmp_path / "in") as mounted:
        assert mounted.told["path"] == str(tmp_path / "elsewhere")
        assert (tmp_path / "in" / "deep" / "note").read_text() == "hello"


def test_names_that_no_directory_can_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotMount, match="longer than 255"):
        Mount(Reader([Entry("x" * 256, "file")], None, 2), tmp_path / "in")  # type: ignore[arg-type]


def test_links_as_long_as_none_can_be_and_times_before_1970_do_no_harm(tmp_path: Path) -> None:
    entries = [Entry("long", "link", 0, 0, 0, (), "x" * 5000), Entry("old", "file", 0o644, -1_500_000_000)]
    with Mount(Reader(entries, None, 2), tmp_path / "in"):  # type: ignore[arg-type]
        with pytest.raises(OSError, match="too long"):
            os.readlink(tmp_path / "in" / "long")
        assert os.lstat(tmp_path / "in" / "old").st_mtime_ns == -1_500_000_000


def test_a_kernel_that_speaks_another_protocol_is_told_so() -> None:
    assert fuse.out_header.unpack(fuse.refusal(7, errno.EPROTO)) == (16, -errno.EPROTO, 7)


# --- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_unmounts_also_while_files_are_open(number: int, store: Store, bundle: Bundle, tmp_path: Path) -> None:
    with Mounted(store, tmp_path / "in") as mounted:
        fd = os.open(tmp_path / "in" / "large", os.O_RDONLY)
        os.read(fd, 10)
        assert mounted.end(number) == 0
        assert not is_mounted(str(tmp_path / "in"))
        with pytest.raises(OSError, match="not connected"):
            os.pread(fd, 10, 15 * MIB)
        with suppress(OSError):
            os.close(fd)


@pytest.mark.parametrize("delay", [n * 0.04 for n in range(1, 16)])
def test_whenever_sigterm_comes_nothing_stays_mounted(delay: float, store: Store, bundle: Bundle, tmp_path: Path) -> None:
    command = [SIDECAR, "bundle", "mount", "r", str(tmp_path / "in"), "--store", store.url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.terminate()
    assert process.wait(HANG) in (0, -signal.SIGTERM)
    assert not is_mounted(str(tmp_path / "in"))


def test_whoever_unmounts_it_ends_the_command(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    with Mounted(store, tmp_path / "in") as mounted:
        subprocess.run(["umount", tmp_path / "in"], check=True)
        mounted.process.communicate(timeout=HANG)
        assert mounted.process.returncode == 0


def test_readers_of_a_killed_server_are_told_and_the_next_mount_recovers(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    told: list[int] = []
    reading = threading.Event()

    def read() -> None:
        fd = os.open(tmp_path / "in" / "large", os.O_RDONLY)
        try:
            while True:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.pread(fd, MIB, 0)
                reading.set()
        except OSError as error:
            told.append(error.errno or 0)
        with suppress(OSError):
            os.close(fd)

    mounted = Mounted(store, tmp_path / "in")
    thread = threading.Thread(target=read)
    thread.start()
    reading.wait(HANG)
    assert mounted.end(signal.SIGKILL) == -signal.SIGKILL
    thread.join(HANG)
    # ECONNABORTED: it was being asked at that moment.
    assert told
    assert told[0] in (errno.ENOTCONN, errno.ECONNABORTED)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(tmp_path / "in")
    with Mounted(store, tmp_path / "in"):
        assert (tmp_path / "in" / "deep" / "note").read_text() == "hello"


def test_a_mount_that_was_buried_under_another_is_recovered_too(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    for _ in range(3):
        Mounted(store, tmp_path / "in").end(signal.SIGKILL)
    with Mounted(store, tmp_path / "in"):
        points = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{tmp_path}/in " in line]
        assert len(points) == 1


class Stalled:
    """Chunks of a store that does not answer before it is told to."""

    def __init__(self, reader: Any) -> None:
        self.reader, self.asked, self.answer = reader, threading.Event(), threading.Event()

    def read(self, *arguments: Any) -> None:
        self.asked.set()
        self.answer.wait(HANG)
        self.reader.read(*arguments)

    def many(self, *arguments: Any) -> Any:
        self.asked.set()
        self.answer.wait(HANG)
        return self.reader.many(*arguments)


@pytest.fixture
def stalled(store: Store, bundle: Bundle) -> Iterator[tuple[Reader, Stalled]]:
    chunks = Stalled(store.reader(bundle))
    reader = Reader(store.manifest(bundle), chunks, 2)  # type: ignore[arg-type]
    yield reader, chunks
    chunks.answer.set()


def test_a_reader_is_killed_at_once_although_the_store_stalls(stalled: tuple[Reader, Stalled], tmp_path: Path) -> None:
    reader, chunks = stalled
    with Mount(reader, tmp_path / "in"):
        waiting = subprocess.Popen(["cat", tmp_path / "in" / "large"], stdout=subprocess.DEVNULL)
        assert chunks.asked.wait(HANG)
        listed = subprocess.run(["ls", tmp_path / "in"], capture_output=True, check=True)
        assert listed.stdout.split() == [b"deep", b"large", b"link", b"nothing"], "others are served meanwhile"
        waiting.kill()
        assert waiting.wait(HANG) == -signal.SIGKILL
        chunks.answer.set()
        done = subprocess.run(["cat", tmp_path / "in" / "large"], capture_output=True, check=True)
        assert done.stdout == LARGE, "and the next one is served"


def test_who_waits_for_a_stalled_store_is_told_when_it_is_unmounted(stalled: tuple[Reader, Stalled], tmp_path: Path) -> None:
    reader, chunks = stalled
    mount = Mount(reader, tmp_path / "in")
    waiting = subprocess.Popen(["cat", tmp_path / "in" / "large"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert chunks.asked.wait(HANG)
    mount.close()
    assert waiting.wait(HANG) == 1
    waiting.communicate()
    mount.close()


def test_a_forked_child_does_not_keep_readers_waiting(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    code = (
        "import os, sys, signal\n"
        "from sidecar.mount import Mount\nfrom sidecar.store import open_store\nfrom sidecar.store.reader import open_reader\n"
        "store = open_store(sys.argv[1])\n"
        "mount = Mount(open_reader(store, store.resolve('r')), sys.argv[2])\n"
        "child = os.fork()\n"
        "if not child: signal.pause()\n"
        "print(child, flush=True)\nsignal.pause()"
    )
    server = subprocess.Popen([sys.executable, "-c", code, store.url, tmp_path / "in"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    child = int(server.stdout.readline())
    try:
        server.kill()
        server.wait(HANG)
        assert subprocess.run(["cat", tmp_path / "in" / "large"], capture_output=True, check=False).returncode == 1
    finally:
        os.kill(child, signal.SIGKILL)
        server.stdout.close()
        subprocess.run(["umount", tmp_path / "in"], check=False)


# --- the cache, and passing through ------------------------------------------------------------------------------------


def test_what_is_whole_in_the_cache_is_read_by_the_kernel_itself(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), 100 * MIB)
    first = open_reader(store, bundle, cache=cache)
    with Mount(first, tmp_path / "in") as mount:
        open_before = subprocess.Popen(["sh", "-c", f"exec 3<{tmp_path}/in/large; cat <&3; read _"], **PIPES)
        assert open_before.stdout is not None
        assert open_before.stdout.read(len(LARGE)) == LARGE
        first._threads.finish()
        # Open in the other way, by somebody else: it must not matter.
        assert cat(tmp_path / "in" / "large") == LARGE
        assert not mount.server.passed
        open_before.communicate(b"\n")
    with Mount(open_reader(store, bundle, cache=cache), tmp_path / "in") as mount:
        assert cat(tmp_path / "in" / "large") == LARGE
        assert cat(tmp_path / "in" / "deep" / "note") == b"hello"
        assert mount.server.passed == mount.passthrough, "where the kernel can do it at all"


def test_a_file_of_the_cache_that_somebody_changed_is_not_passed_through(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), 100 * MIB)
    first = open_reader(store, bundle, cache=cache)
    first.read(first.tree.find(b"large"), 0, len(LARGE))
    first._threads.finish()
    (kept,) = (path for path in (tmp_path / "cache").rglob("*") if path.stat().st_size == len(LARGE))
    with kept.open("r+b") as file:
        file.write(b"?")
    with Mount(open_reader(store, bundle, cache=cache), tmp_path / "in") as mount:
        assert cat(tmp_path / "in" / "large") == LARGE
        assert not mount.server.passed


PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


def test_a_cache_on_a_disk_that_is_too_small_is_read_past_and_told_once(
    store: Store, bundle: Bundle, tiny: Path, tmp_path: Path
) -> None:
    for _ in range(2):  # the second time beside what is left there of the first
        with Mounted(store, tmp_path / "in", "--cache", str(tiny / "cache"), "--cache-size", "100M") as mounted:
            assert cat(tmp_path / "in" / "large") == LARGE
            assert cat(tmp_path / "in" / "deep" / "note") == b"hello"
            assert mounted.end() == 0
            assert mounted.err.count(f"the cache {tiny}/cache cannot be written") == 1
            assert mounted.err.count("\n") == 1, mounted.err


def test_a_mount_keeps_again_when_there_is_room_again(
    store: Store, bundle: Bundle, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.store.cache._AGAIN", 0.0)
    with (tiny / "fill").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 8 * MIB)
    reader = open_reader(store, bundle, memory=MIB, cache=Cache(str(tiny / "cache"), 100 * MIB))
    with Mount(reader, tmp_path / "in"):
        assert cat(tmp_path / "in" / "large") == LARGE
        (tiny / "fill").unlink()
        assert cat(tmp_path / "in" / "deep" / "note") == b"hello"
        reader._threads.finish()
    kept = [path for path in (tiny / "cache").rglob("*") if path.is_file() and path.stat().st_size == len("hello")]
    assert [path.read_bytes() for path in kept] == [b"hello"]


# --- other users, other namespaces -------------------------------------------------------------------------------------

# Run in a mount namespace of its own: /dev/fuse as udev would have it, the fuse.conf that is given, and a way to the directory
# that leads through none that is root's alone, as pytest's are.
AS_NOBODY = """
set -e
mkdir -p {top}/dev
mknod {top}/dev/fuse c 10 229
chmod 666 {top}/dev/fuse
mount --bind {top}/dev/fuse /dev/fuse
printf '{conf}' > {top}/dev/conf
mount --bind {top}/dev/conf /etc/fuse.conf
mount --bind {top} /mnt
exec {python} -c "$CODE" file:///mnt/store /mnt/mine/in
"""
# Everything is imported before the user is changed: the interpreter may lie where only root can read.
NOBODY = """
import os, subprocess, sys
from sidecar.mount import CannotMount, Mount, may_allow_other
from sidecar.store import open_store
from sidecar.store.reader import open_reader
import sidecar.mount.server, encodings.idna
os.setgroups([]); os.setgid(65534); os.setuid(65534)
store = open_store(sys.argv[1])
def mount(**options):
    return Mount(open_reader(store, store.resolve("r")), sys.argv[2], **options)
child = os.fork()
if not child:
    kept = mount()
    os.kill(os.getpid(), 9)
os.waitpid(child, 0)
try:
    os.listdir(sys.argv[2])
except OSError as error:
    print("after the kill:", error.strerror)
with mount() as mounted:
    print("read:", subprocess.run(["cat", sys.argv[2] + "/deep/note"], capture_output=True).stdout.decode())
    print("mounted:", [line.split()[8] for line in open("/proc/self/mountinfo") if sys.argv[2] in line])
print("left:", [line for line in open("/proc/self/mountinfo") if sys.argv[2] in line])
try:
    with mount(allow_other=True):
        print("allow_other:", may_allow_other())
except CannotMount as error:
    print("allow_other:", may_allow_other(), error)
"""


@pytest.mark.parametrize("conf", ["", "user_allow_other\\n"], ids=["plain", "user_allow_other"])
def test_an_unprivileged_user_mounts_through_fusermount3(conf: str, store: Store, tree: Path, tmp_path: Path) -> None:
    assert os.geteuid() == 0, "this test changes users: run it as root"
    assert Path("/usr/bin/fusermount3").exists(), "apt-get install fuse3"
    (tree / "deep" / "note").chmod(0o644)
    (tree / "deep").chmod(0o755)
    store.save(tree, "r")
    (tmp_path / "mine").mkdir()
    os.chown(tmp_path / "mine", 65534, 65534)
    tmp_path.chmod(0o755)
    script = AS_NOBODY.format(top=tmp_path, conf=conf, python=sys.executable)
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", script]
    done = subprocess.run(command, env=os.environ | {"CODE": NOBODY}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "after the kill: Transport endpoint is not connected"
    assert lines[1] == "read: hello"
    assert lines[2].startswith("mounted: ['fuse.sidecar'") or "sidecar" in lines[2]
    assert lines[3] == "left: []"
    if conf:
        assert lines[4] == "allow_other: True"
    else:
        assert lines[4].startswith("allow_other: False")
        assert "user_allow_other" in lines[4]


def test_other_users_see_it_only_where_they_are_let_in(store: Store, tree: Path, tmp_path: Path) -> None:
    (tree / "deep" / "note").chmod(0o644)
    (tree / "deep").chmod(0o755)
    store.save(tree, "r")
    tmp_path.chmod(0o755)

    def read(path: str) -> bytes:
        # From where the directories of pytest, which are root's alone, need not be passed.
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", path]
        return subprocess.run(command, capture_output=True, check=False, cwd=tmp_path).stdout

    with Mounted(store, tmp_path / "in"):
        assert read("in/deep/note") == b""
    with Mounted(store, tmp_path / "in", "--allow-other"):
        assert read("in/deep/note") == b"hello"
        assert read("in/large") == LARGE
    (tree / "large").chmod(0o600)
    store.save(tree, "r")
    with Mounted(store, tmp_path / "in", "--allow-other"):
        assert read("in/large") == b"", "modes count"


PROPAGATION = """
set -e
mount --bind {top}/volume {top}/volume
mount --make-rshared {top}/volume
unshare -m --propagation {server} {sidecar} bundle mount r {top}/volume/in --store {store} > {top}/told &
server=$!
trap 'kill $server; wait $server; umount -l {top}/volume' EXIT
while ! [ -s {top}/told ]; do kill -0 $server; sleep 0.02; done
unshare -m --propagation {reader} cat {top}/volume/in/deep/note
"""


@pytest.mark.parametrize(
    ("server", "reader", "seen"), [("shared", "unchanged", True), ("slave", "unchanged", False), ("private", "slave", False)]
)
def test_other_containers_see_it_where_the_volume_is_shared(
    server: str, reader: str, seen: bool, store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "volume").mkdir()
    script = PROPAGATION.format(top=tmp_path, sidecar=SIDECAR, store=store.url, server=server, reader=reader)
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout == "hello") is seen, done.stderr
    assert (done.returncode == 0) is seen


@pytest.mark.parametrize("propagation", ["shared", "slave", "private"])
@pytest.mark.parametrize("place", ["", "/in"])
def test_a_volume_that_is_not_shared_is_private_below_it_and_at_its_very_top(
    place: str, propagation: str, store: Store, tmp_path: Path
) -> None:
    volume, look = tmp_path / "volume", "import sys; from sidecar.mount import is_private; print(is_private(sys.argv[1]))"
    volume.mkdir()
    script = (
        f"mount --bind {volume} {volume}; mount --make-rshared {volume}; mkdir {volume}/in;"
        f"exec unshare -m --propagation {propagation} {sys.executable} -c '{look}' {volume}{place}"
    )
    told = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-ec", script], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == str(propagation != "shared")


def test_a_large_directory_is_not_listed_before_anyone_asks(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "folders" / name).mkdir(parents=True)
    for number in range(5):
        (tmp_path / "folders" / "b" / str(number)).touch()
    server = Server(open_reader(store, store.save(tmp_path / "folders", "r")), -1, passthrough=False)
    monkeypatch.setattr("sidecar.mount.server._LIST_AHEAD", 4)
    listed: list[int] = []

    def names(node: int) -> list[tuple[bytes, int]]:
        listed.append(node)
        return []

    monkeypatch.setattr(server, "_names", names)
    a, b, c = (server._tree.find(name) for name in (b"a", b"b", b"c"))
    server._list_ahead(a)
    assert listed == []
    server._list_ahead(b)
    assert listed == [c]
