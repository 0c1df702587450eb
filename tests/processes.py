"""Real processes around a real coordination directory, for the tests: start them, wait for what they say, end them.

    with Pod(tmp_path) as pod:
        battery = pod.shell_battery("sh")             # a peer as the original scripts were: touch, and [ -f … ]
        wrapper = pod.wrap("-b", "fuse", "--", "true")
        pod.hear("mountdone")
        assert wrapper.wait() == 0

Nothing here sleeps for a fixed time: whatever is waited for is looked at until it is so, and HANG seconds later it is a failure.
Every process is a session of its own. What a test leaves is killed at its end, session by session; it dies with the test process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sidecar import linux
from sidecar.coordination.protocol import APPLICATION, Battery, Record, batteries_of
from sidecar.coordination.signals import Directory
from sidecar.store.format import CHUNK

# After this many seconds something hangs. Never a measure of speed: the machine may be busy.
HANG = 60.0
# How long a command `sleep`s that is to be ended by something else: longer than any test, shorter than for ever.
LONG = "300"

BIN = Path(sys.executable).parent
# SIDECAR_WRAP names another wrap_application that is to pass the same tests: the portable one.
WRAP = os.environ.get("SIDECAR_WRAP", str(BIN / "wrap_application"))

FUSE = batteries_of(["fuse"])[0]


def signals_of(name: str) -> Battery:
    """Return the battery called `name` (fuse, postgres-DB, or a plugin's) with its signals."""
    kind, _, db = name.partition("-")
    return batteries_of([kind], [db])[0] if kind == "postgres" else batteries_of([name])[0]


# --- shell peers -------------------------------------------------------------------------------------------------------

# As datamon's scripts spoke: a battery touches READY, waits for SAVE, keeps the output, touches SAVED. For fuse these are
# mountdone, initupload, uploaddone; for a database DB/dbstarted, DB/initdbupload, DB/dbuploaddone. PREPARE and KEEP are commands.
SH_BATTERY = """\
#!/bin/sh
# usage: battery COORD READY SAVE SAVED [PREPARE [KEEP]]
set -e
COORD_POINT=$1 READY=$2 SAVE=$3 SAVED=$4
mkdir -p "$(dirname "$COORD_POINT/$READY")"
eval "${5:-:}"
touch "$COORD_POINT/$READY"
while ! [ -f "$COORD_POINT/$SAVE" ]; do
    sleep 0.02
done
eval "${6:-:}"
touch "$COORD_POINT/$SAVED"
"""

ZSH_BATTERY = """\
#!/usr/bin/zsh
# usage: battery COORD READY SAVE SAVED [PREPARE [KEEP]]
setopt ERR_EXIT NO_UNSET PIPE_FAIL
typeset -r COORD_POINT=$1 READY=$2 SAVE=$3 SAVED=$4
await_event() {
    while true; do
        if [[ -f $COORD_POINT/$1 ]]; then
            return 0
        fi
        sleep 0.02
    done
}
mkdir -p ${${:-$COORD_POINT/$READY}:h}
eval ${5:-:}
touch $COORD_POINT/$READY
await_event $SAVE
eval ${6:-:}
touch $COORD_POINT/$SAVED
"""

# As datamon's wrap_application spoke: wait for each battery, run the command, tell each, wait for each. Where the command failed
# it said nothing at all.
SH_APPLICATION = """\
#!/bin/sh
# usage: application COORD "READY …" "SAVE …" "SAVED …" CMD [ARG …]
COORD_POINT=$1 READY=$2 SAVE=$3 SAVED=$4
shift 4
await_event() {
    while ! [ -f "$COORD_POINT/$1" ]; do
        sleep 0.02
    done
}
for event in $READY; do await_event "$event"; done
"$@" || exit $?
for event in $SAVE; do touch "$COORD_POINT/$event"; done
for event in $SAVED; do await_event "$event"; done
"""

ZSH_APPLICATION = """\
#!/usr/bin/zsh
# usage: application COORD "READY …" "SAVE …" "SAVED …" CMD [ARG …]
setopt NO_UNSET
typeset -r COORD_POINT=$1
typeset -a ready save saved
ready=(${=2}) save=(${=3}) saved=(${=4})
shift 4
await_event() {
    until [[ -f $COORD_POINT/$1 ]]; do
        sleep 0.02
    done
}
for event in $ready; do await_event $event; done
$@ || exit $?
for event in $save; do touch $COORD_POINT/$event; done
for event in $saved; do await_event $event; done
"""

SHELLS = ("sh", "zsh")
_SCRIPTS = {
    ("sh", "battery"): SH_BATTERY,
    ("zsh", "battery"): ZSH_BATTERY,
    ("sh", "application"): SH_APPLICATION,
    ("zsh", "application"): ZSH_APPLICATION,
}

# A battery driven by `coordination.host`, as a container runs it. Its `ready` and `save` run a shell command and fail with it.
HOST = """\
import os, subprocess, sys
from sidecar import process
from sidecar.coordination import host
from sidecar.coordination.protocol import Limits
from sidecar.coordination.signals import Directory
from sidecar.errors import PeerFailed, SidecarError
from processes import signals_of

coord, name, prepare, keep, options = sys.argv[1:]

class Shell:
    def __init__(self, progress):
        pass
    def run(self, command):
        status = subprocess.run(["/bin/sh", "-c", command]).returncode
        if status:
            raise PeerFailed(f"{command!r} ended with status {status}")
        return {"ran": command}
    def ready(self):
        return self.run(prepare)
    def save(self):
        return self.run(keep)
    def close(self):
        pass

def tell(line):
    print(f"{name}: {line}", file=sys.stderr, flush=True)

signals = process.SignalQueue([n for n in process.CAUGHT if n != process.SIGCHLD])
given = eval(options)
limits = Limits(**given.pop("limits", {}))
try:
    with Directory(coord) as directory:
        ending = host.serve(directory, signals_of(name), Shell, host.Options(limits=limits, **given), signals, tell)
    status = ending.status
    if ending.problem is not None:
        tell(ending.problem.reason)
except SidecarError as error:
    tell(str(error))
    status = error.status
os._exit(status)
"""


def make_long_to_save(path: Path) -> None:
    """Make a file that takes long to save and little room: a page in each chunk of a large hole, for holes are not read."""
    with path.open("wb") as file:
        for number in range(16384):
            os.pwrite(file.fileno(), b"page", number * CHUNK)


def forked(work: Callable[[], object]) -> int:
    """Begin `work` in a process of its own, and return its id; its exit status is 0 where nothing was raised."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


# --- processes ---------------------------------------------------------------------------------------------------------


class Started:
    """A process that a test started; its output goes to files, so that nobody waits for the end of a pipe."""

    def __init__(self, popen: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.popen, self._out, self._err = popen, out, err
        self.pid = popen.pid

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def out_bytes(self) -> bytes:
        return self._out.read_bytes()

    @property
    def err_bytes(self) -> bytes:
        return self._err.read_bytes()

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self, seconds: float = HANG) -> int:
        """Return the exit status, negative where a signal ended it; an AssertionError where it does not come to its end."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"process {self.pid} {self.popen.args!r} does not end; it said:\n{self.err}") from None

    def kill(self) -> int:
        """End it with SIGKILL, as the OOM killer does, and return once it is gone."""
        self.popen.kill()
        return self.popen.wait(HANG)


class Pod:
    """A coordination directory `coord` and the processes that a test starts around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.coord = folder / "coord"
        self.coord.mkdir(exist_ok=True)
        self.started: list[Started] = []

    def __enter__(self) -> Pod:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill whatever is left of the processes that were started, and of their sessions."""
        sessions = {process.pid for process in self.started}
        while left := [pid for pid in processes() if session_of(pid) in sessions and state_of(pid) not in ("Z", "")]:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.002)
        for process in self.started:
            process.popen.wait(HANG)
        self.started.clear()

    # --- starting

    def start(
        self,
        *argv: str | Path,
        env: Mapping[str, str] | None = None,
        prepare: Callable[[], object] | None = None,
        **popen: Any,
    ) -> Started:
        """Start `argv` in a session of its own. `env` is added to the environment; `prepare` runs in the child before it."""
        number = len(self.started)
        name = Path(str(argv[0])).name
        out, err = self.folder / f"{number}.{name}.out", self.folder / f"{number}.{name}.err"
        parent = os.getpid()

        def become() -> None:
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            # As a container starts: whoever runs the tests may ignore or block signals (nohup, a job in the background).
            for number in range(1, 65):
                if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            if prepare is not None:
                prepare()

        with open(out, "wb") as stdout, open(err, "wb") as stderr:
            popen = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr, "start_new_session": True, **popen}
            started = subprocess.Popen(
                [str(word) for word in argv], env={**os.environ, **(env or {})}, preexec_fn=become, **popen
            )
        self.started.append(Started(started, out, err))
        return self.started[-1]

    def wrap(self, *arguments: str | Path, prefix: Sequence[str] = (), coord: Path | None = None, **how: Any) -> Started:
        """Start `wrap_application -c COORD ARGUMENTS…`, behind `prefix`."""
        if "SIDECAR_WRAP" in os.environ:
            prefix = [word for word in prefix if word != sys.executable]  # it is no script
        return self.start(*prefix, WRAP, "-c", coord or self.coord, *arguments, **how)

    def python(self, code: str, *arguments: str | Path, prefix: Sequence[str] = (), **how: Any) -> Started:
        """Start the Python program `code`."""
        path = f"{Path(__file__).parent}:{Path(__file__).parent.parent}"
        return self.start(*prefix, sys.executable, "-c", code, *arguments, env={"PYTHONPATH": path}, **how)

    def battery(self, name: str = "fuse", prepare: str = ":", keep: str = ":", **options: Any) -> Started:
        """Start a battery driven by `coordination.host`, its `ready` and `save` being the shell commands `prepare` and `keep`.

        `options` are those of `host.Options`; `limits` is a dictionary.
        """
        return self.python(HOST, self.coord, name, prepare, keep, repr(options))

    def shell_battery(self, shell: str = "sh", name: str = "fuse", prepare: str = ":", keep: str = ":") -> Started:
        """Start a battery as the original scripts were, in POSIX sh or zsh."""
        b = signals_of(name)
        return self.start(shell, self._script(shell, "battery"), self.coord, b.ready, b.save, b.saved, prepare, keep)

    def shell_application(self, shell: str, names: Iterable[str], *command: str) -> Started:
        """Start an application wrapper as the original script was, in POSIX sh or zsh."""
        found = [signals_of(name) for name in names]
        said = (" ".join(b.ready for b in found), " ".join(b.save for b in found), " ".join(b.saved for b in found))
        return self.start(shell, self._script(shell, "application"), self.coord, *said, *command)

    def _script(self, shell: str, side: str) -> Path:
        path = self.folder / f"{side}.{shell}"
        if not path.exists():  # one that runs is still being read
            path.write_text(_SCRIPTS[shell, side])
        return path

    # --- saying and hearing

    def say(self, *signals: str) -> None:
        """Say `signals` as a shell script does: touch."""
        for name in signals:
            (self.coord / name).parent.mkdir(exist_ok=True)
            (self.coord / name).touch()

    def hear(self, *signals: str) -> None:
        """Return when all of `signals` are there."""
        for name in signals:
            until(lambda path=self.coord / name: is_regular(path), f"{name} is said", self)  # type: ignore[misc]

    def record(self, name: str = APPLICATION) -> Record | None:
        """Return what participant `name` says of itself; None where it says nothing."""
        with Directory(str(self.coord)) as directory:
            return directory.record(name)

    def hear_state(self, state: str, name: str = APPLICATION) -> Record:
        """Return the record of `name` once it is in `state`."""

        def there() -> bool:
            record = self.record(name)
            return record is not None and record.state == state

        until(there, f"{name} is {state}", self)
        record = self.record(name)
        assert record is not None
        return record

    def alive(self, name: str = APPLICATION) -> bool | None:
        """Tell whether the lease of `name` is held; None where there is none."""
        with Directory(str(self.coord)) as directory:
            return directory.alive(name)

    def events(self) -> list[dict[str, Any]]:
        """Return the lines of the event log."""
        path = self.coord / ".sidecar" / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def file(self, name: str) -> Path:
        """Return the path of a file of the test's own, outside the coordination directory."""
        return self.folder / name

    def hear_file(self, name: str) -> Path:
        """Return the path of such a file once it is there."""
        until(self.file(name).exists, f"{name} is there", self)
        return self.file(name)


def is_regular(path: Path) -> bool:
    """Tell whether a regular file is there, not a link to one."""
    return path.is_file() and not path.is_symlink()


def until(condition: Callable[[], bool], what: str, pod: Pod | None = None) -> None:
    """Return when `condition` holds; an AssertionError, with what everybody said, where it does not come to hold."""
    end, pause = time.monotonic() + HANG, 0.001
    while not condition():
        if time.monotonic() > end:
            said = [f"{p.popen.args!r} ({p.popen.poll()}):\n{p.err}" for p in (pod.started if pod else ())]
            raise AssertionError("\n".join([f"it does not come to be that {what}", *said]))
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)


# --- what the kernel tells of processes --------------------------------------------------------------------------------


def processes() -> list[int]:
    """Return the ids of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def state_of(pid: int) -> str:
    """Return a process's state (R, S, Z, …), "" where it is gone."""
    return (_stat(pid) or [""])[0]


def parent_of(pid: int) -> int:
    return int((_stat(pid) or ["", "0"])[1])


def session_of(pid: int) -> int:
    return int((_stat(pid) or ["", "", "", "0"])[3])


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children, zombies among them."""
    return [each for each in processes() if parent_of(each) == pid]


def gone(pid: int) -> bool:
    """Tell whether a process has ended (a zombie has)."""
    return state_of(pid) in ("", "Z", "X")


# --- namespaces --------------------------------------------------------------------------------------------------------


def unshare(*what: str) -> list[str]:
    """Return the words that run a command in new namespaces, as root there: also where the tests do not run as root."""
    return ["unshare", *(["--user", "--map-root-user"] if os.getuid() else []), *what]


# The command behind these words is PID 1 of a namespace; the process that is started is its parent.
PID_1 = unshare("--pid", "--fork", "--kill-child", "--mount-proc")


def processes_that_say(token: str) -> list[int]:
    """Return the processes of this machine whose command line has `token` in it."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            if token.encode() in Path("/proc", name, "cmdline").read_bytes():
                found.append(int(name))
    return found
