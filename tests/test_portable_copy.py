"""`wrap_application --copy SRC DIR` of the portable wrapper: an image's files, put onto a volume by the image's own container.

Copies are compared with those of `cp -a`, names, contents, modes, times, owners and links; in roots that hold nothing but their
files, read-only, with and without /proc, as uid 65532 without capabilities, as PID 1, with 32 MiB of addresses.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Pod, Started, children_of, forked, unshare, until

from sidecar import linux

TOP = Path(__file__).parent.parent
NAME = "wrap_application"
HALF_WAY = ".wrap_application.copy"
NONROOT = 65532
MEMORY = 32 << 20
# 2001-02-03 and some nanoseconds: what is copied has not been made just now.
LONG_AGO = 981_173_106_123_456_789


@pytest.fixture(scope="session")
def built() -> Path:
    """The executable, as `make wrapper` leaves it."""
    subprocess.run(["make", "--silent", "-C", TOP, "wrapper"], check=True, stdout=subprocess.DEVNULL)
    return TOP / "build" / NAME


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with Pod(tmp_path) as pod:
        yield pod


def make_tree(top: Path) -> Path:
    """Make one of everything that is copied."""
    (top / "usr" / "lib" / "deep" / "er").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "usr" / "nothing").touch()
    (top / "usr" / "lib" / "code").write_bytes(random.Random(1).randbytes(700_000))
    (top / "usr" / "lib" / "deep" / "er" / "text").write_text("text\n")
    os.link(top / "usr" / "lib" / "code", top / "usr" / "lib" / "deep" / "same code")
    os.link(top / "usr" / "lib" / "code", top / "a third name")
    with (top / "usr" / "holes").open("wb") as file:
        for place in (1 << 20, 9 << 20):
            os.pwrite(file.fileno(), b"page", place)
        file.truncate(20 << 20)
    (top / "usr" / "only a hole").touch()
    os.truncate(top / "usr" / "only a hole", 5 << 20)
    for name in ("-rf", "new\nline", "back\\slash", "sp ace", "é", os.fsdecode(b"\xff\xfe"), "n" * 255):
        (top / name).write_bytes(os.fsencode(name))
    (top / "to a folder").symlink_to("usr/lib")
    (top / "to nowhere").symlink_to("/no/where\n" * 50)
    (top / "out of it").symlink_to("/etc/passwd")
    os.link(top / "out of it", top / "usr" / "out of it", follow_symlinks=False)
    for number, mode in enumerate((0o444, 0o755, 0o4755, 0o2755, 0o777, 0o1644)):
        (top / f"mode {number}").write_text(oct(mode))
        (top / f"mode {number}").chmod(mode)
    for number, mode in enumerate((0o555, 0o1777, 0o2755)):
        (top / f"folder {number}").mkdir()
        (top / f"folder {number}" / "file").write_text(oct(mode))
        (top / f"folder {number}").chmod(mode)
    for number, (folder, folders, files) in enumerate(os.walk(top, topdown=False)):
        for name in [*folders, *files]:
            times = (LONG_AGO, LONG_AGO + number * 1_000_000_007)
            os.utime(os.path.join(folder, name), ns=times, follow_symlinks=False)
    return top


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return make_tree(tmp_path / "source")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """An emptyDir, as a kubelet makes it."""
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    return volume


def tree_of(top: Path, owners: bool = True, modes: int = 0o7777) -> dict[str, tuple[Any, ...]]:
    """Return what is below `top`: of each path what it is, with its mode, time, owner, contents, and its first other name."""
    found: dict[str, tuple[Any, ...]] = {}
    first: dict[int, str] = {}
    for folder, folders, files in os.walk(top):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = os.path.join(folder, name)
            about, below = os.lstat(path), os.path.relpath(path, top)
            held: object = None
            if stat.S_ISREG(about.st_mode):
                held = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            elif stat.S_ISLNK(about.st_mode):
                held = os.readlink(path)
            also = first.setdefault(about.st_ino, below)
            owner = (about.st_uid, about.st_gid) if owners else None
            found[below] = (stat.S_IFMT(about.st_mode), about.st_mode & modes, about.st_mtime_ns, owner, held, also)
    return found


def copy(built: Path, source: Path | str, folder: Path | str, **how: Any) -> subprocess.CompletedProcess[str]:
    words: list[str | Path] = [built, "--copy", source, folder]
    return subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=100, **how)


def copied(built: Path, source: Path, folder: Path) -> str:
    """Copy, and return the last line that was said."""
    ran = copy(built, source, folder)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    return ran.stderr.splitlines()[-1]


# --- what a copy is ----------------------------------------------------------------------------------------------------


def test_a_copy_is_what_cp_makes(built: Path, source: Path, tmp_path: Path) -> None:
    if os.getuid() == 0:
        os.chown(source / "mode 2", NONROOT, NONROOT)
        (source / "mode 2").chmod(0o4755)  # which chown takes away
        os.chown(source / "to nowhere", NONROOT, NONROOT, follow_symlinks=False)
        os.chown(source / "empty", NONROOT, 7)
    copied(built, source, tmp_path / "new" / "ours")
    subprocess.run(["cp", "-a", f"{source}/.", tmp_path / "theirs"], check=True)
    assert tree_of(tmp_path / "new" / "ours") == tree_of(tmp_path / "theirs") == tree_of(source)


def test_holes_stay_holes(built: Path, source: Path, volume: Path) -> None:
    copied(built, source, volume)
    assert (volume / "usr" / "holes").stat().st_blocks <= (source / "usr" / "holes").stat().st_blocks
    assert (volume / "usr" / "only a hole").stat().st_blocks == 0


def test_the_folder_itself_is_left_as_it_is(built: Path, source: Path, volume: Path) -> None:
    (volume / "something else").touch()
    copied(built, source, volume)
    assert stat.S_IMODE(volume.stat().st_mode) == 0o777
    assert (volume / "something else").exists()


def test_a_source_that_is_a_link_is_followed(built: Path, source: Path, volume: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("source")
    copied(built, tmp_path / "link", volume)
    assert tree_of(volume) == tree_of(source)


def test_between_file_systems_the_copy_is_the_same(built: Path, source: Path, tiny: Path) -> None:
    copied(built, source, tiny / "copy")
    assert tree_of(tiny / "copy") == tree_of(source)


def test_the_last_line_tells_how_much_it_was(built: Path, tmp_path: Path, volume: Path) -> None:
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "one").write_text("one")
    (tmp_path / "source" / "sub" / "four").write_text("four")
    (tmp_path / "source" / "link").symlink_to("one")
    line = f"{NAME}: '{tmp_path}/source' is in '{volume}': 3 files, 7 bytes"
    assert copied(built, tmp_path / "source", volume) == line
    assert copied(built, tmp_path / "source", volume) == f"{line}, 3 of them there already"


def test_what_is_no_file_is_named_counted_and_left_out(built: Path, tmp_path: Path, volume: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").touch()
    for number in range(30):
        os.mkfifo(tmp_path / "source" / f"{number} fi\nfo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "source" / "socket"))
        ran = copy(built, tmp_path / "source", volume)
    assert ran.returncode == 0
    assert os.listdir(volume) == ["file"]
    lines = ran.stderr.splitlines()
    assert len(lines) == 21
    assert all(line.endswith(" is left out: it is a socket, a FIFO or a device") for line in lines[:-1])
    assert lines[-1].endswith(": 1 files, 0 bytes; 31 sockets, FIFOs or devices left out")


def test_a_root_with_few_ids_keeps_what_it_cannot_give_away_without_set_id_bits(built: Path, source: Path, volume: Path) -> None:
    other = os.getuid() == 0
    if other:
        os.chown(source / "mode 2", NONROOT, NONROOT)
        (source / "mode 2").chmod(0o4755)
    words: list[str | Path] = ["unshare", "--user", "--map-root-user", built, "--copy", source, volume]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    about = (volume / "mode 2").stat()
    assert (about.st_uid, stat.S_IMODE(about.st_mode)) == (os.getuid(), 0o755 if other else 0o4755)


# --- again -------------------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_copied_again(built: Path, source: Path, volume: Path) -> None:
    def files() -> dict[str, tuple[int, int]]:
        every = (path for path in volume.rglob("*") if path.is_symlink() or not path.is_dir())
        return {str(path): (path.lstat().st_ino, path.lstat().st_ctime_ns) for path in every}

    copied(built, source, volume)
    before = files()
    copied(built, source, volume)
    assert files() == before
    assert tree_of(volume) == tree_of(source)


def spoil_contents(volume: Path) -> None:
    (volume / "usr" / "lib" / "deep" / "er" / "text").write_text("text\n, and more")


def spoil_size(volume: Path) -> None:
    path = volume / "usr" / "nothing"
    about = path.stat()
    path.write_text("something")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def spoil_time(volume: Path) -> None:
    (volume / "usr" / "lib" / "deep" / "er" / "text").write_text("TEXT\n")


def spoil_mode(volume: Path) -> None:
    (volume / "mode 1").chmod(0o777)


def spoil_owner(volume: Path) -> None:
    """Which root alone can."""
    if os.getuid() == 0:
        os.chown(volume / "usr" / "nothing", NONROOT, 0)
        os.chown(volume / "out of it", 0, NONROOT, follow_symlinks=False)
    else:
        spoil_mode(volume)


def spoil_modes_of_folders(volume: Path) -> None:
    (volume / "folder 0").chmod(0o700)
    (volume / "usr").chmod(0o777)


def spoil_by_removing(volume: Path) -> None:
    (volume / "folder 0").chmod(0o700)
    (volume / "folder 0" / "file").unlink()
    (volume / "folder 0").chmod(0o555)
    shutil.rmtree(volume / "usr" / "lib")


def spoil_links(volume: Path) -> None:
    about = (volume / "to a folder").lstat()
    (volume / "to a folder").unlink()
    (volume / "to a folder").symlink_to("usr")
    os.utime(volume / "to a folder", ns=(about.st_atime_ns, about.st_mtime_ns), follow_symlinks=False)
    (volume / "to nowhere").unlink()
    (volume / "to nowhere").write_text("a file")


def spoil_names(volume: Path) -> None:
    """A file that has two names less, which have become files of their own."""
    whole = (volume / "a third name").read_bytes()
    for name in ("a third name", "usr/lib/deep/same code"):
        (volume / name).unlink()
        (volume / name).write_bytes(whole)


def spoil_folders(volume: Path) -> None:
    """A file in the place of a folder."""
    (volume / "empty").rmdir()
    (volume / "empty").write_text("no folder")


def leave_half_way(volume: Path) -> None:
    (volume / HALF_WAY).write_text("half")


SPOILED: tuple[Callable[[Path], None], ...] = (
    spoil_contents,
    spoil_size,
    spoil_time,
    spoil_mode,
    spoil_owner,
    spoil_modes_of_folders,
    spoil_by_removing,
    spoil_links,
    spoil_names,
    spoil_folders,
    leave_half_way,
)


@pytest.mark.parametrize("spoil", SPOILED)
def test_what_is_not_as_its_original_is_copied_again(
    built: Path, source: Path, volume: Path, spoil: Callable[[Path], None]
) -> None:
    copied(built, source, volume)
    spoil(volume)
    assert tree_of(volume) != tree_of(source)
    copied(built, source, volume)
    assert tree_of(volume) == tree_of(source)


def test_killed_at_any_moment_and_run_again_it_gives_the_whole(built: Path, source: Path, tmp_path: Path) -> None:
    for number in range(300):
        (source / "usr" / f"file {number:03}").write_bytes(random.Random(number).randbytes(20_000))
    os.link(source / "usr" / "file 000", source / "again")
    whole, halves = tree_of(source), 0
    for start in range(4):  # in each of four folders it is killed ten times, later and later
        volume = tmp_path / f"volume {start}"
        volume.mkdir()
        for number in range(10):
            process = subprocess.Popen([built, "--copy", source, volume], stderr=subprocess.DEVNULL)
            until(lambda: bool(os.listdir(volume)) or process.poll() is not None, "it has begun")  # noqa: B023
            time.sleep(0.0007 * start + 0.005 * number)  # the moment is what differs
            process.kill()
            process.wait()
            there = tree_of(volume)
            there.pop(HALF_WAY, None)
            halves += len(there) < len(whole)
            for path, about in there.items():
                # What has a file's name has its contents, mode and time; folders are dressed last. The first name may differ.
                assert about[:5] == whole[path][:5] or stat.S_ISDIR(about[0]), path
        copied(built, source, volume)
        assert tree_of(volume) == whole
    assert halves >= 4


def test_two_at_once_leave_one_copy(built: Path, source: Path, volume: Path) -> None:
    started = [subprocess.Popen([built, "--copy", source, volume], stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert tree_of(volume) == tree_of(source)


def test_sigterm_ends_it_as_pid_1_too(built: Path, pod: Pod, source: Path, volume: Path) -> None:
    held = os.open(volume, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)  # so that it is not over before
    try:
        started = pod.start(*unshare("--pid", "--fork", "--kill-child"), built, "--copy", source, volume)
        until(lambda: waits_for_a_lock(children_of(started.pid)), "it waits for the lock")
        os.kill(children_of(started.pid)[0], signal.SIGTERM)
        assert started.wait() == 128 + signal.SIGTERM
    finally:
        os.close(held)
    assert os.listdir(volume) == []


def waits_for_a_lock(pids: list[int]) -> bool:
    waiting = [line.split()[5] for line in Path("/proc/locks").read_text().splitlines() if " -> FLOCK" in line]
    return any(str(pid) in waiting for pid in pids)


# --- hostile neighbours ------------------------------------------------------------------------------------------------


def test_links_in_the_folder_are_not_followed(built: Path, source: Path, volume: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "file").write_text("mine")
    before = tree_of(outside), outside.stat().st_mode, outside.stat().st_mtime_ns
    (volume / "usr").mkdir()
    for name in ("usr/lib", "folder 0", "empty"):
        (volume / name).symlink_to(outside)
    for name in ("usr/nothing", "mode 1", "-rf", HALF_WAY):
        (volume / name).symlink_to(outside / "file")
    os.mkfifo(volume / "mode 2")
    copied(built, source, volume)
    assert tree_of(volume) == tree_of(source)
    assert (tree_of(outside), outside.stat().st_mode, outside.stat().st_mtime_ns) == before


def test_nothing_outside_is_written_while_folders_are_moved_and_links_are_planted(
    built: Path, source: Path, volume: Path, tmp_path: Path
) -> None:
    outside, over = tmp_path / "outside", threading.Event()
    (outside / "deep" / "er").mkdir(parents=True)
    (outside / "lib" / "deep" / "er").mkdir(parents=True)
    before = tree_of(outside)

    planted = 0

    def plant() -> None:
        nonlocal planted
        while not over.is_set():
            for folder, name in ((".", "usr"), ("usr", "lib"), (".", HALF_WAY)):
                try:
                    at = os.open(volume / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                except OSError:
                    continue
                try:
                    os.rename(name, tmp_path / f"moved {planted}", src_dir_fd=at)
                    os.symlink(outside, name, dir_fd=at)
                    planted += 1
                except OSError:
                    pass
                finally:
                    os.close(at)

    planting = threading.Thread(target=plant)
    planting.start()
    try:
        ended = {copy(built, source, volume).returncode for _ in range(40)}
    finally:
        over.set()
        planting.join()
    assert ended <= {0, 74}
    assert planted >= 40
    assert tree_of(outside) == before
    assert {name.split()[0] for name in os.listdir(tmp_path)} == {"source", "volume", "outside", "moved"}


def test_a_folder_for_which_a_link_is_put_at_the_last_moment_is_not_the_links(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("copy_tree", TOP / "wrappers" / "portable" / "copy_tree.py")
    assert spec is not None
    assert spec.loader is not None
    copy_tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy_tree)
    (tmp_path / "outside").mkdir()
    (tmp_path / "volume" / "folder").mkdir(parents=True)
    outside = (tmp_path / "outside").stat().st_ino
    at = os.open(tmp_path / "volume", os.O_RDONLY)

    def plant() -> None:
        while True:
            try:
                os.rename("folder", "aside", src_dir_fd=at, dst_dir_fd=at)
                os.symlink(tmp_path / "outside", "folder", dir_fd=at)
                os.unlink("folder", dir_fd=at)
                os.rename("aside", "folder", src_dir_fd=at, dst_dir_fd=at)
            except OSError:
                pass

    planting = forked(plant)
    opened = 0
    try:
        for _ in range(20_000):
            try:
                found = copy_tree._folder("folder", at)
            except OSError:
                continue
            opened += 1
            assert os.fstat(found).st_ino != outside
            os.close(found)
    finally:
        os.kill(planting, signal.SIGKILL)
        os.waitpid(planting, 0)
        os.close(at)
    assert opened


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["missing", "missing/below", "file", "file/below"])
def test_a_source_that_is_no_folder_is_66(built: Path, tmp_path: Path, volume: Path, missing: str) -> None:
    (tmp_path / "file").touch()
    ran = copy(built, tmp_path / missing, volume)
    assert ran.returncode == 66
    assert ran.stderr.startswith(f"{NAME}: '{tmp_path / missing}' cannot be copied: ")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [[], ["/usr"], ["/usr", ""], ["", "here"], ["usr", "here"], ["/usr", "here", "there"], ["/usr", "-x"], ["-x"]],
    ids=repr,
)
def test_without_an_absolute_source_and_a_folder_it_is_2(built: Path, tmp_path: Path, words: list[str]) -> None:
    ran = subprocess.run([built, "--copy", *words], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "--copy expects SRC and DIR" in ran.stderr
    assert os.listdir(tmp_path) == []


def test_a_folder_into_itself_is_2(built: Path, source: Path) -> None:
    assert copy(built, source, source).returncode == 2


def test_a_file_in_the_place_of_the_folder_is_74(built: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        ran = copy(built, source, folder)
        assert ran.returncode == 74
        assert ran.stderr.startswith(f"{NAME}: '{folder}' cannot be written: ")


def test_a_folder_in_the_place_of_a_file_is_74_and_left(built: Path, source: Path, volume: Path) -> None:
    (volume / "mode 1" / "sub").mkdir(parents=True)
    ran = copy(built, source, volume)
    assert ran.returncode == 74
    assert f"'{source}/mode 1' cannot be copied to '{volume}/mode 1': " in ran.stderr
    assert (volume / "mode 1" / "sub").is_dir()


def test_a_read_only_volume_is_74(built: Path, source: Path, volume: Path) -> None:
    script = 'mount -t tmpfs -o ro none "$3" && exec "$1" --copy "$2" "$3"'
    words: list[str | Path] = [*unshare("--mount"), "sh", "-c", script, "sh", built, source, volume]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 74
    assert "Read-only file system" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_on_a_full_disk_it_is_74_names_the_file_and_leaves_no_half(built: Path, tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "sub" / "large").write_bytes(bytes(9 << 20))
    ran = copy(built, tmp_path / "source", tiny)
    assert ran.returncode == 74
    assert ran.stderr.startswith(f"{NAME}: '{tmp_path}/source/sub/large' cannot be copied to '{tiny}/sub/large': ")
    assert os.listdir(tiny) == ["sub"]
    assert os.listdir(tiny / "sub") == []


# --- containers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An artifact's image that holds nothing but its files."""
    (tmp_path / "image").mkdir()
    return make_tree(tmp_path / "image")


def contained(pod: Pod, image: Path, volume: Path, built: Path, *words: str, mounts: str = "", **limits: int) -> Started:
    """Run the wrapper in the artifact's image as the session's initContainer does, with what the runtime mounts besides.

    The root is an overlay, as runtimes make it: what they make to mount something on is none of the image's. `mounts` is more of
    the script, run in the root.
    """
    script = """
        set -e
        image=$1 volume=$2 built=$3 work=$4
        shift 4
        mount -t tmpfs none "$work"
        mkdir "$work/upper" "$work/work" "$work/root" "$work/wrapper"
        cp "$built" "$work/wrapper/wrap_application"
        mount -t overlay -o "lowerdir=$image,upperdir=$work/upper,workdir=$work/work" none "$work/root"
        cd "$work/root"
        mkdir -p sidecar/wrapper sidecar/artifact etc
        mount --bind "$work/wrapper" sidecar/wrapper
        mount --bind "$volume" sidecar/artifact
        MOUNTS
        mount -o remount,ro,bind sidecar/wrapper
        mount -o remount,ro "$work/root"
        exec env -i "$@"
        """.replace("MOUNTS", mounts)
    user = [f"--map-user={NONROOT}", f"--map-group={NONROOT}"] if os.getuid() else ["-S", str(NONROOT), "-G", str(NONROOT)]
    work = pod.file("work")
    work.mkdir(exist_ok=True)
    inner = ["unshare", *(["--user"] if os.getuid() else []), *user, "--pid", "--fork", "--kill-child", "--root"]

    def prepare() -> None:
        linux.prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for name, limit in limits.items():
            resource.setrlimit(getattr(resource, name), (limit, limit))

    command = words or ("/sidecar/wrapper/wrap_application", "--copy", "/", "/sidecar/artifact")
    outer: list[str | Path] = [*unshare("--mount"), "sh", "-c", script, "sh", image, volume, built, work]
    return pod.start(*outer, *inner, f"{work}/root", *command, prepare=prepare)


# As a runtime: hosts, from a file of the same file system as other files; and a volume.
WITH_PROC = """
    mkdir proc dev 'a volume'; mount -t tmpfs none dev; echo > dev/null
    echo hosts > "$work/hosts"; : > etc/hosts; mount --bind "$work/hosts" etc/hosts
    mkdir "$work/other"; echo other > "$work/other/file"; mount --bind "$work/other" 'a volume'
    mount --bind "$work/other" usr/lib/deep/er
    mount --rbind /proc proc
    """
WITHOUT_PROC = "mkdir dev; mount -t tmpfs none dev; echo > dev/null; mount -t tmpfs none usr/lib/deep/er;"


@pytest.mark.parametrize("mounts", [WITH_PROC, WITHOUT_PROC], ids=["with /proc", "without /proc"])
def test_from_an_image_that_holds_nothing_else_its_files_are_copied_and_no_mounts(
    pod: Pod, image: Path, volume: Path, built: Path, mounts: str
) -> None:
    started = contained(pod, image, volume, built, mounts=mounts)
    assert started.wait() == 0, started.err
    copied, whole = (tree_of(top, owners=False, modes=0o1777) for top in (volume, image))
    for path in ("usr/lib/deep/er", "usr/lib/deep/er/text"):  # on which something was mounted
        del whole[path]
    if mounts is WITHOUT_PROC:
        assert copied.pop("etc")  # empty: nothing was mounted there
    assert copied == whole
    assert stat.S_IMODE((volume / "mode 2").stat().st_mode) == (0o755 if os.getuid() == 0 else 0o4755)


def test_who_is_not_root_goes_on_in_folders_that_nobody_may_write_to(pod: Pod, image: Path, volume: Path, built: Path) -> None:
    assert contained(pod, image, volume, built, mounts=WITH_PROC).wait() == 0
    whole = tree_of(volume)
    spoil_by_removing(volume)
    started = contained(pod, image, volume, built, mounts=WITH_PROC)
    assert started.wait() == 0, started.err
    assert tree_of(volume) == whole
    assert stat.S_IMODE((volume / "folder 0").stat().st_mode) == 0o555


def test_without_volumes_and_proc_the_wrapper_and_the_target_are_left_out(image: Path, built: Path) -> None:
    whole = tree_of(image, owners=False)
    for folder in ("wrapper", "artifact"):
        (image / "sidecar" / folder).mkdir(parents=True)
    shutil.copy(built, image / "sidecar" / "wrapper")
    words = ["--root", str(image), f"/sidecar/wrapper/{NAME}", "--copy", "/", "/sidecar/artifact"]
    subprocess.run([*unshare("--mount"), *words], check=True, capture_output=True, timeout=60)
    assert tree_of(image / "sidecar" / "artifact", owners=False) == whole


def test_a_target_below_the_source_is_left_out(built: Path, source: Path) -> None:
    whole = tree_of(source)
    copied(built, source, source / "below" / "target")
    assert tree_of(source / "below" / "target") == whole


def test_a_part_of_an_image_is_copied(pod: Pod, image: Path, volume: Path, built: Path) -> None:
    words = ("/sidecar/wrapper/wrap_application", "--copy", "/usr/lib", "/sidecar/artifact")
    started = contained(pod, image, volume, built, *words)
    assert started.wait() == 0, started.err
    part = tree_of(image / "usr" / "lib", owners=False)
    assert tree_of(volume, owners=False) == part


@pytest.mark.parametrize("name", ["sp ace", "back\\slash", "new\nline", "é", "tab\t#"], ids=repr)
def test_a_mount_is_known_by_any_name(built: Path, tmp_path: Path, volume: Path, name: str) -> None:
    """Of the same file system, which st_dev does not tell."""
    for folder in (f"source/{name}/{name}", "source/other", "elsewhere/below"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "source" / name / "file").touch()
    script = 'mount --bind "$4" "$2/$5/$5" && exec "$1" --copy "$2" "$3"'
    words: list[str | Path] = [
        *unshare("--mount"),
        "sh",
        "-c",
        script,
        "sh",
        built,
        tmp_path / "source",
        volume,
        tmp_path / "elsewhere",
        name,
    ]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    assert set(tree_of(volume)) == {name, f"{name}/file", "other"}


def test_a_mount_that_is_hidden_by_the_source_hides_nothing_of_it(
    built: Path, source: Path, volume: Path, tmp_path: Path
) -> None:
    under = tmp_path / "under"
    (under / "usr" / "lib").mkdir(parents=True)
    script = 'mount -t tmpfs none "$4/usr/lib" && mount --bind "$2" "$4" && exec "$1" --copy "$4" "$3"'
    words: list[str | Path] = [*unshare("--mount"), "sh", "-c", script, "sh", built, source, volume, under]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    assert tree_of(volume) == tree_of(source)


def test_of_an_image_with_an_unreadable_file_that_is_named(pod: Pod, image: Path, volume: Path, built: Path) -> None:
    (image / "usr" / "secret").touch(mode=0)
    started = contained(pod, image, volume, built)
    assert started.wait() == 74
    assert f"{NAME}: '/usr/secret' cannot be copied to '/sidecar/artifact/usr/secret': Permission denied" in started.err


def test_a_tree_of_1000_levels_takes_a_few_descriptors(pod: Pod, tmp_path: Path, volume: Path, built: Path) -> None:
    image, depth = tmp_path / "image", 1000
    image.mkdir()
    at = os.open(image, os.O_RDONLY)
    for number in range(depth):
        os.mkdir("folder", dir_fd=at)
        below = os.open("folder", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
        os.close(os.open(f"file {number}", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=at))
    os.close(at)
    try:
        for again in range(2):
            started = contained(pod, image, volume, built, RLIMIT_NOFILE=16)
            assert started.wait() == 0, started.err
            assert f": {depth} files, 0 bytes" in started.err
            assert ("there already" in started.err) == bool(again)
        found = subprocess.run(["find", volume, "-type", "f", "-printf", "."], check=True, capture_output=True)
        assert len(found.stdout) == depth
    finally:
        for top in (image, volume):  # deeper than Python's own walks go
            subprocess.run(["rm", "-rf", f"{top}/folder"], check=True)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir], ids=["files", "folders"])
def test_a_folder_of_many_entries_fits_into_the_memory(
    pod: Pod, tmp_path: Path, volume: Path, built: Path, make: Callable[[Path], None], count: int
) -> None:
    (tmp_path / "image" / "many").mkdir(parents=True)
    for number in range(count):
        make(tmp_path / "image" / "many" / f"of a name that is not short {number}")
    try:
        started = contained(pod, tmp_path / "image", volume, built)
        assert started.wait(600) == 0, started.err
        assert len(os.listdir(volume / "many")) == count
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "image" / "many", volume / "many"], check=True)
