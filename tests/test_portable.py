"""The portable wrapper: one static file that installs itself, and does in any root what the one of the venv does.

`make test` runs tests/test_init.py and tests/test_directory.py with it as well, by SIDECAR_WRAP. Here is what only it does, and
where only it can run: roots that hold no Python, no shell, nothing at all; read-only, without /proc, /tmp and /dev; as uid 65532
without capabilities, as PID 1, with 32 MiB of addresses.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from processes import Pod, Started, children_of, state_of, unshare, until

from sidecar import linux
from sidecar.coordination import notation
from sidecar.coordination.protocol import DONE, RUNNING, WAITING

TOP = Path(__file__).parent.parent
SOURCES = TOP / "wrappers" / "portable"
NAME = "wrap_application"
ALONE = ("-b", "fuse", "--save", "never")
# Whoever runs what distroless images hold, and what the issue asks of memory.
NONROOT = 65532
MEMORY = 32 << 20

# The application of an image that holds nothing else. What it is to do is its first word.
APPLICATION = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    char *what = argv[1];
    if (!strcmp(what, "exit"))
        return atoi(argv[2]);
    if (!strcmp(what, "die"))
        return kill(getpid(), atoi(argv[2]));
    if (!strcmp(what, "write")) {
        FILE *file = fopen(argv[2], "w");
        return !file || fputs(argv[3], file) < 0 || fclose(file);
    }
    if (!strcmp(what, "environment")) {
        extern char **environ;
        for (char **each = environ; *each; each++)
            puts(*each);
        return 0;
    }
    if (!strcmp(what, "orphan")) {
        if (fork() == 0) {
            if (fork() == 0)
                usleep(1000);
            _exit(0);
        }
        wait(NULL);
    }
    fclose(fopen("/coord/up", "w"));
    for (;;)
        pause();
}
"""


@pytest.fixture(scope="session")
def built() -> Path:
    """The executable, as `make wrapper` leaves it."""
    subprocess.run(["make", "--silent", "-C", TOP, "wrapper"], check=True, stdout=subprocess.DEVNULL)
    return TOP / "build" / NAME


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("application")
    (folder / "main.c").write_text(APPLICATION)
    subprocess.run(["gcc", "-static", "-Os", "-s", folder / "main.c", "-o", folder / "app"], check=True)
    return folder / "app"


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with Pod(tmp_path) as pod:
        pod.coord.chmod(0o777)
        yield pod


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """What the containers share: an emptyDir."""
    volume = tmp_path / "shared"
    volume.mkdir()
    volume.chmod(0o777)
    return volume


# --- what it is --------------------------------------------------------------------------------------------------------


def test_it_is_one_static_executable_of_at_most_10_megabytes(built: Path) -> None:
    assert built.stat().st_size <= 10_000_000
    read = subprocess.run(["readelf", "--program-headers", "--dynamic", built], check=True, capture_output=True, text=True)
    assert "INTERP" not in read.stdout
    assert "NEEDED" not in read.stdout


def test_it_tells_the_version_of_its_source(built: Path) -> None:
    said = subprocess.run([built, "--version"], check=True, capture_output=True, text=True).stdout
    assert said == subprocess.run([TOP / "wrappers" / NAME, "--version"], check=True, capture_output=True, text=True).stdout


def test_it_reads_no_module_from_anywhere(built: Path, tmp_path: Path) -> None:
    (tmp_path / "os.py").write_text("raise SystemExit('os was imported from here')")
    (tmp_path / "encodings.py").write_text("raise SystemExit('encodings was imported from here')")
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": str(tmp_path), "PYTHONSTARTUP": str(tmp_path / "os.py")}
    assert not subprocess.run([built, "--version"], cwd=tmp_path, env=environment, capture_output=True).returncode


def load(name: str) -> ModuleType:
    """Import a file of wrappers/portable, which is no package."""
    spec = importlib.util.spec_from_file_location(name, SOURCES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_the_wrappers_own_modules_are_in_it_and_what_they_need() -> None:
    found = set(load("build").modules_needed())
    assert {"sidecar.cli.wrap_application", "sidecar.coordination.application", "sidecar.process", "sidecar.linux"} <= found
    others = {name for name in found if not name.startswith(("sidecar", "encodings"))}
    assert others == {"portable", "copy_tree", "_json", "_sqlite3", "__future__"}
    assert not {name for name in found if name.startswith(("sidecar.store", "sidecar.batteries", "sidecar.parameters"))}


def test_the_kernel_is_asked_by_the_functions_that_linux_py_asks_for() -> None:
    asked = set(re.findall(r"from _sidecar_linux import (\w+)", (TOP / "sidecar" / "linux.py").read_text()))
    there = set(re.findall(r'^ +\{"(\w+)", \w+, METH', (SOURCES / "linux.c").read_text(), re.MULTILINE))
    assert asked == there


# --- JSON in Python ----------------------------------------------------------------------------------------------------


def notation_in_python() -> ModuleType:
    """Return sidecar.coordination.notation as it is where `_json` is the one of the portable wrapper."""
    spec = importlib.util.spec_from_file_location("notation_in_python", notation.__file__)
    assert spec is not None
    assert spec.loader is not None
    module, was = importlib.util.module_from_spec(spec), sys.modules["_json"]
    sys.modules["_json"] = load("json_in_python")
    try:
        spec.loader.exec_module(module)
    finally:
        sys.modules["_json"] = was
    return module


IN_PYTHON = notation_in_python()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
# What is like JSON and mostly none: pieces of it in any order.
PIECES = st.lists(
    st.sampled_from([*'{}[]:,"\\ \t\n-+.eE019aux', '"a"', "null", "true", "NaN", "-Infinity", '"\\u00e9"', "\\ud83d", "\\ude00"])
).map("".join)


def outcome(function: Callable[[Any], Any], thing: object) -> object:
    """Return what `function` makes of `thing`, told by its type too; or that it refuses it."""
    try:
        return repr(function(thing))
    except (ValueError, TypeError):
        return "refused"


@settings(max_examples=500, deadline=None)
@given(data=PIECES | st.text(max_size=30) | JSON.map(json.dumps) | JSON.map(lambda thing: json.dumps(thing, indent=1)))
@example(data='"\\ud83d\\ude00 \\ud83d \\ude00 \\ud83d\\u0041"')
@example(data="[-0, -0.0, 1e5, 1E+5, 1.5e-3, 01, 1., .5, -, 1e, 1.e5]")
@example(data="1e999")
@example(data="[" * 100 + "]" * 100)
@example(data="[" * 100_000)
@example(data='{"a":' * 100_000)
@example(data="9" * 5000)
@example(data='"\x1f"')
@example(data='"\x7f\u2028"')
@example(data='{"a": 1, "a": 2}')
@example(data='{"a": 1,}')
@example(data="[1,]")
@example(data='"\\u00zz"')
@example(data='"\\u\u0660\u0660\u0660\u0660"')
@example(data="\u0663")
def test_json_is_read_in_python_as_it_is_elsewhere(data: str) -> None:
    encoded = data.encode(errors="surrogatepass")
    assert outcome(IN_PYTHON.decode, encoded) == outcome(notation.decode, encoded)


@settings(max_examples=500, deadline=None)
@given(thing=JSON | st.characters())
@example(thing={2: 2, None: 3, True: 4, 1.5: 6})
@example(thing={(1, 2): 3})
@example(thing=(1, "\x7f\ud800\U0001f600"))
@example(thing=b"bytes")
@example(thing=float("nan"))
@example(thing=[float("-inf")])
def test_json_is_written_in_python_as_it_is_elsewhere(thing: object) -> None:
    assert outcome(IN_PYTHON.encode, thing) == outcome(notation.encode, thing)


@pytest.mark.parametrize(
    "text", ['"' + "\\\\" * 130_000 + '"', '"' + '\\"' * 130_000 + '"', "[" + "0," * 130_000 + "0]", " " * 260_000]
)
def test_what_is_long_is_read_in_a_time_that_grows_with_its_length(text: str) -> None:
    begun = time.process_time()
    outcome(IN_PYTHON.decode, text.encode())
    assert time.process_time() - begun < 5  # 0.2 s; some minutes, did it grow with the square


# --- installing --------------------------------------------------------------------------------------------------------


def install(built: Path, folder: Path | str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([built, "--install", folder], capture_output=True, text=True, timeout=60, **how)


def is_whole(built: Path, folder: Path) -> bool:
    """Tell whether `folder` holds the wrapper and nothing else, and the wrapper can be run."""
    path = folder / NAME
    return (
        os.listdir(folder) == [NAME]
        and stat.S_ISREG(path.lstat().st_mode)
        and stat.S_IMODE(path.lstat().st_mode) == 0o555
        and path.read_bytes() == built.read_bytes()
        and not subprocess.run([path, "--version"], capture_output=True).returncode
    )


def test_it_installs_itself_into_a_folder_that_need_not_be_there(built: Path, tmp_path: Path) -> None:
    installed = install(built, tmp_path / "new" / "bin")
    assert (installed.returncode, installed.stdout, installed.stderr) == (0, "", "")
    assert is_whole(built, tmp_path / "new" / "bin")


def test_what_was_installed_installs_itself_further(built: Path, tmp_path: Path) -> None:
    install(built, tmp_path / "one")
    assert not install(tmp_path / "one" / NAME, tmp_path / "two").returncode
    assert is_whole(built, tmp_path / "two")


def test_by_the_name_install_it_installs(built: Path, tmp_path: Path) -> None:
    shutil.copy(built, tmp_path / "install")
    subprocess.run([tmp_path / "install", tmp_path / "bin"], check=True)
    assert is_whole(built, tmp_path / "bin")


def test_a_checkout_installs_it(built: Path, tmp_path: Path) -> None:
    subprocess.run([TOP / "wrappers" / "install", tmp_path / "bin"], check=True, cwd="/")
    assert is_whole(built, tmp_path / "bin")


def test_where_it_is_installed_it_is_left_alone(built: Path, volume: Path) -> None:
    install(built, volume)
    before = (volume / NAME).stat()
    assert not install(built, volume).returncode
    assert (volume / NAME).stat() == before


def put_a_part(path: Path, whole: bytes) -> None:
    path.write_bytes(whole[:1_000_000])
    path.chmod(0o555)


def put_another_version(path: Path, whole: bytes) -> None:
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    path.chmod(0o555)


def put_one_that_all_may_write(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)
    path.chmod(0o777)


def put_one_that_cannot_be_executed(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)
    path.chmod(0o444)


def put_a_link(path: Path, whole: bytes) -> None:
    path.symlink_to("/bin/sh")


def put_a_dangling_link(path: Path, whole: bytes) -> None:
    path.symlink_to("nowhere")


def put_a_fifo(path: Path, whole: bytes) -> None:
    os.mkfifo(path)


OTHERS = (
    put_a_part,
    put_another_version,
    put_one_that_all_may_write,
    put_one_that_cannot_be_executed,
    put_a_link,
    put_a_dangling_link,
    put_a_fifo,
)


@pytest.mark.parametrize("put", OTHERS)
def test_what_stands_in_its_place_is_replaced(built: Path, volume: Path, put: Callable[[Path, bytes], None]) -> None:
    put(volume / NAME, built.read_bytes())
    assert not install(built, volume).returncode
    assert is_whole(built, volume)


@pytest.mark.skipif(os.getuid() != 0, reason="files can be given away by root only")
def test_one_that_is_another_users_is_replaced(built: Path, volume: Path) -> None:
    install(built, volume)
    os.chown(volume / NAME, NONROOT, NONROOT)
    assert not install(built, volume).returncode
    assert (volume / NAME).stat().st_uid == 0


def test_one_that_runs_is_replaced(built: Path, pod: Pod, volume: Path) -> None:
    put_another_version(volume / NAME, built.read_bytes())
    pod.say("mountdone")
    started = pod.start(
        volume / NAME, "-c", pod.coord, *ALONE, "--", "sh", "-c", f": > {pod.file('up')}; read line; exit 4", stdin=-1
    )
    pod.hear_file("up")
    assert not install(built, volume).returncode
    assert is_whole(built, volume)
    assert started.popen.stdin is not None
    started.popen.stdin.close()
    assert started.wait() == 4


def test_killed_at_any_moment_it_leaves_nothing_that_bears_the_name_and_is_not_whole(built: Path, volume: Path) -> None:
    for number in range(40):
        (volume / NAME).unlink(missing_ok=True)
        process = subprocess.Popen([built, "--install", volume])
        until(lambda: bool(os.listdir(volume)) or process.poll() is not None, "it has begun")  # noqa: B023
        time.sleep(number * 0.0006)  # the moment is what differs
        process.kill()
        process.wait()
        assert not (volume / NAME).exists() or (volume / NAME).read_bytes() == built.read_bytes()
        assert not (volume / NAME).exists() or (volume / NAME).stat().st_mode & 0o777 == 0o555
    assert not install(built, volume).returncode
    assert is_whole(built, volume)


def test_many_that_install_at_once_leave_one(built: Path, volume: Path) -> None:
    processes = [subprocess.Popen([built, "--install", volume]) for _ in range(8)]
    assert [process.wait(60) for process in processes] == [0] * 8
    assert is_whole(built, volume)


def test_on_a_full_disk_it_is_74_and_nothing_is_left(built: Path, tiny: Path) -> None:
    (tiny / "fill").write_bytes(bytes(5 << 20))

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))

    installed = install(built, tiny, preexec_fn=None if os.path.ismount(tiny) else prepare)
    assert installed.returncode == 74
    assert installed.stderr.startswith(f"{NAME}: {NAME} cannot be put into {tiny}: ")
    assert os.listdir(tiny) == ["fill"]


def test_a_folder_in_its_place_is_74(built: Path, volume: Path) -> None:
    (volume / NAME).mkdir()
    assert install(built, volume).returncode == 74
    assert os.listdir(volume) == [NAME]


def test_a_file_in_the_place_of_the_folder_is_74(built: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert install(built, tmp_path / "file").returncode == 74
    assert install(built, tmp_path / "file" / "below").returncode == 74


@pytest.mark.parametrize(("options", "why"), [("ro", "Read-only file system"), ("noexec", "is mounted noexec")])
def test_a_volume_that_cannot_be_used_is_74(built: Path, volume: Path, options: str, why: str) -> None:
    script = f'mount -t tmpfs -o {options} none "$2" && exec "$1" --install "$2"'
    words = [*unshare("--mount"), "sh", "-c", script, "sh", str(built), str(volume)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 74
    assert why in ran.stderr
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [[], [""], ["one", "two"], ["--help"], ["-x"]], ids=repr)
def test_without_one_folder_it_is_2(built: Path, tmp_path: Path, words: list[str]) -> None:
    ran = subprocess.run([built, "--install", *words], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "--install expects one DIR" in ran.stderr
    assert os.listdir(tmp_path) == []


# --- roots -------------------------------------------------------------------------------------------------------------


def with_nothing(root: Path) -> None:
    pass


def with_busybox(root: Path) -> None:
    (root / "bin").mkdir()
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    for name in ("sh", "cat", "sleep"):
        (root / "bin" / name).symlink_to("busybox")


def with_debian(root: Path) -> None:
    """As an image of Debian's without Python: dash, and the C library."""
    for program in ("dash", "cat", "sleep"):
        path = shutil.which(program)
        assert path is not None
        needed = subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout
        for file in [path, *re.findall(r"(/\S+) \(0x", needed)]:
            there = root / file.lstrip("/").removeprefix("usr/")
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.realpath(file), there)
    (root / "usr").mkdir()
    for folder in ("bin", "lib"):
        (root / "usr" / folder).symlink_to(f"../{folder}")
    (root / "bin" / "sh").symlink_to("dash")


ROOTS = {"nothing": with_nothing, "busybox": with_busybox, "debian": with_debian}
WITH_A_SHELL = ("busybox", "debian")


@pytest.fixture(params=ROOTS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def root(kind: str, tmp_path: Path, application: Path, built: Path, volume: Path) -> Path:
    """The root of an image, and the volume with the wrapper that its initContainer has installed in a root of its own."""
    root = tmp_path / "root"
    for folder in ("coord", "shared"):
        (root / folder).mkdir(parents=True)
    shutil.copy(application, root / "app")
    ROOTS[kind](root)
    image = tmp_path / "image"
    for folder in ("coord", "shared"):
        (image / folder).mkdir(parents=True)
    shutil.copy(built, image / NAME)
    with Pod(tmp_path / "image") as pod:
        installing = contained(pod, image, volume, f"/{NAME}", "--install", "/shared", read_only="coord")
        assert installing.wait() == 0, installing.err
    assert is_whole(built, volume)
    return root


def contained(pod: Pod, root: Path, volume: Path, *command: str, read_only: str = "shared", **how: Any) -> Started:
    """Start `command` as a hardened container does; the process that is started is the parent of its PID 1.

    The root is read-only; so is `read_only`, one of the two volumes `shared` and `coord`.
    """
    mounts = f"""
        set -e
        mount --bind "$0" "$0"
        mount -o remount,ro,bind "$0"
        mount --bind "{volume}" "$0/shared"
        mount --bind "{pod.coord}" "$0/coord"
        mount -o remount,ro,bind "$0/{read_only}"
        exec env -i PATH=/bin:/usr/bin:/sbin "$@"
        """
    user = [f"--map-user={NONROOT}", f"--map-group={NONROOT}"] if os.getuid() else ["-S", str(NONROOT), "-G", str(NONROOT)]
    inner = ["unshare", *(["--user"] if os.getuid() else []), *user, "--pid", "--fork", "--kill-child", "--root", str(root)]

    def prepare() -> None:
        linux.prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    words = [*unshare("--mount"), "sh", "-c", mounts, str(root), *inner]
    return pod.start(*words, *command, prepare=prepare, **how)


def wrap(pod: Pod, root: Path, volume: Path, *arguments: str, **how: Any) -> Started:
    return contained(pod, root, volume, f"/shared/{NAME}", "-c", "/coord", *arguments, **how)


def pid_1_of(started: Started) -> int:
    until(lambda: bool(children_of(started.pid)), "the container has its PID 1")
    return children_of(started.pid)[0]


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_in_any_root_a_whole_run_ends_well(pod: Pod, root: Path, volume: Path) -> None:
    battery = pod.battery("fuse", keep=f"cat {pod.coord}/made")
    started = wrap(pod, root, volume, "-b", "fuse", "--", "/app", "write", "/coord/made", "something")
    assert started.wait() == 0, started.err
    assert battery.wait() == 0
    assert battery.out == "something"
    record = pod.record()
    assert record is not None
    assert (record.state, record.saved) == (DONE, False)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("/app", "exit", "42"), 42),
        (("/app", "die", "9"), 137),
        (("/app", "die", "15"), 143),
        (("/missing",), 127),
        (("missing",), 127),
        (("/coord",), 126),
    ],
    ids=repr,
)
def test_in_any_root_the_status_is_the_commands(
    pod: Pod, root: Path, volume: Path, command: tuple[str, ...], status: int
) -> None:
    pod.say("mountdone")
    started = wrap(pod, root, volume, *ALONE, "--", *command)
    assert started.wait() == status, started.err


def test_in_any_root_it_is_pid_1_of_nobody_with_no_right_and_little_memory(pod: Pod, root: Path, volume: Path) -> None:
    pod.say("mountdone")
    started = wrap(pod, root, volume, *ALONE, "--", "/app", "wait")
    pod.hear("up")
    about = status_of(pid_1_of(started))
    assert about["NSpid"].split()[-1] == "1"
    assert {int(about[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")} == {0}
    assert about["NoNewPrivs"] == "1"
    assert os.getuid() or set(about["Uid"].split()) == {str(NONROOT)}
    assert int(about["VmHWM"].split()[0]) <= 12 << 10


def test_in_any_root_three_batteries_are_waited_for_within_the_memory(pod: Pod, root: Path, volume: Path) -> None:
    batteries = [pod.battery(name, prepare=f"until [ -e {pod.file('go')} ]; do sleep 0.01; done") for name in ("fuse", "a", "b")]
    started = wrap(pod, root, volume, "-b", "fuse", "-b", "a", "-b", "b", "--", "/app", "exit", "0")
    pod.hear_state(WAITING)
    wrapper = pid_1_of(started)
    # A thread for each, which waits for its death.
    until(lambda: len(os.listdir(f"/proc/{wrapper}/task")) == 4, "each is guarded", pod)
    assert int(status_of(wrapper)["VmHWM"].split()[0]) <= 12 << 10
    pod.file("go").touch()
    assert started.wait() == 0, started.err
    assert [battery.wait() for battery in batteries] == [0, 0, 0]


def test_in_any_root_the_death_of_a_battery_is_noticed(pod: Pod, root: Path, volume: Path) -> None:
    battery = pod.battery("fuse", prepare="sleep 300")
    started = wrap(pod, root, volume, "-b", "fuse", "--", "/app", "exit", "0")
    pod.hear_state("preparing", "fuse")
    pod.hear_state(WAITING)
    battery.kill()
    assert started.wait() == 69
    assert "fuse" in started.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_in_any_root_signals_reach_the_command(pod: Pod, root: Path, volume: Path, number: int) -> None:
    pod.say("mountdone")
    started = wrap(pod, root, volume, *ALONE, "--", "/app", "wait")
    pod.hear("up")
    os.kill(pid_1_of(started), number)
    assert started.wait() == 128 + number


def test_in_any_root_sigterm_ends_the_wait(pod: Pod, root: Path, volume: Path) -> None:
    started = wrap(pod, root, volume, "-b", "fuse", "--", "/app", "exit", "0")
    pod.hear_state(WAITING)
    os.kill(pid_1_of(started), signal.SIGTERM)
    assert started.wait() == 143


def test_in_any_root_orphans_are_reaped(pod: Pod, root: Path, volume: Path) -> None:
    pod.say("mountdone")
    started = wrap(pod, root, volume, *ALONE, "--", "/app", "orphan")
    pod.hear("up")
    wrapper = pid_1_of(started)
    until(lambda: len(children_of(wrapper)) == 1, "only the command is left", pod)
    assert state_of(children_of(wrapper)[0]) == "S"


def test_in_any_root_the_environment_is_the_one_that_was_given(pod: Pod, root: Path, volume: Path) -> None:
    pod.say("mountdone")
    started = wrap(pod, root, volume, *ALONE, "--", "/app", "environment")
    assert started.wait() == 0
    assert started.out.splitlines() == ["PATH=/bin:/usr/bin:/sbin"]


@pytest.mark.parametrize("kind", WITH_A_SHELL, indirect=True)
def test_where_there_is_a_shell_it_is_found_along_path(pod: Pod, root: Path, volume: Path) -> None:
    battery = pod.shell_battery("sh")
    started = wrap(pod, root, volume, "-b", "fuse", "--", "sh", "-c", "echo in $PATH; exit 5")
    assert started.wait() == 5
    assert started.out == "in /bin:/usr/bin:/sbin\n"
    battery.kill()


@pytest.mark.parametrize("kind", ["nothing"], indirect=True)
@pytest.mark.parametrize("moment", [WAITING, RUNNING])
def test_the_container_that_is_killed_and_started_again_goes_on_as_any(pod: Pod, root: Path, volume: Path, moment: str) -> None:
    first = wrap(pod, root, volume, *ALONE, "--", "/app", "wait")
    pod.hear_state(WAITING)
    if moment == RUNNING:
        pod.say("mountdone")
        pod.hear("up")
    os.kill(pid_1_of(first), signal.SIGKILL)
    first.wait()
    pod.say("mountdone")
    second = wrap(pod, root, volume, *ALONE, "--", "/app", "exit", "3")
    assert second.wait() == (125 if moment == RUNNING else 3)


# --- signals in a burst ------------------------------------------------------------------------------------------------


def test_in_a_burst_of_signals_sigterm_is_never_lost(built: Path, tmp_path: Path) -> None:
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        with Pod(folder) as pod:
            pod.say("mountdone")
            script = f"trap 'exit 7' TERM; trap : HUP USR1 USR2; : > {pod.file('up')}; while :; do sleep 0.01; done"
            started = pod.start(built, "-c", pod.coord, "-q", *ALONE, "--", "sh", "-c", script)
            pod.hear_file("up")
            for each in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTERM):
                started.send(each)
            assert started.wait() == 7
