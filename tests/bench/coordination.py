"""How fast the containers of a pod hear each other, beside the peers, in one run: `make bench-coordination`.

    signal      a signal is said -> the waiting process has read it and decided to go on
    death       a battery is killed with SIGKILL -> the waiting process knows
    start       `wrap_application` is spawned, every signal being there -> its command runs
    waiting     memory and processor time of a `wrap_application` that waits for a battery that has appeared

The last two also of the static executable that runs in any image (`make wrapper`), of which the size is told as well.

It is a benchmark, no test: it prints whether each target was met, and ends with 0 either way.

What one must know to change it safely. This file is three programs: the benchmark; `waiter`, a process that waits with the very
`follow`, `Watch` and `Directory.look` of the wrapper; and `battery`, one that holds a lease until it is killed. They talk through
pipes: a waiter says `armed` when it is about to wait and then the CLOCK_MONOTONIC time at which it knew; that clock is the same
in all processes of a machine. The clock starts before the signal is written, so the writing counts, and all are signalled by the
same call. Kinds that are compared take turns, sample by sample, so noise of the machine hits all of them alike. Delays before a
signal are spread over whole poll periods; otherwise a poll would be measured at one phase only. Every process that is started
here dies with the benchmark, however that ends. Nothing that is timed to its end may be waited for with a timeout: subprocess
polls then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from sidecar import linux
from sidecar.coordination import protocol
from sidecar.coordination.signals import Directory, Watch, follow, new_incarnation

FUSE = protocol.batteries_of(["fuse"])[0]
AUTHOR = protocol.Record("fuse", "fuse", new_incarnation())
HERE = os.path.abspath(__file__)
BIN = os.path.dirname(sys.executable)
WRAPPER = os.path.join(BIN, "wrap_application")
STATIC = os.path.join(HERE.rpartition("/tests/")[0], "build", "wrap_application")
PYTHON = os.path.join(BIN, "python3")
SHELL_LOOP = 'while [ ! -f "$1" ]; do sleep 1; done; echo'
LONG = 30.0  # seconds after which something that was to happen soon has not
MS = 1e6
MIB = 1024  # in KiB, which is what /proc counts in


@dataclass
class Sizes:
    """How many samples are taken, and for how many seconds a waiting wrapper is looked at."""

    signals: int = 1000
    forced: int = 100
    shell: int = 20
    deaths: int = 240
    starts: int = 100
    waiting: float = 30.0


QUICK = Sizes(signals=60, forced=10, shell=3, deaths=30, starts=15, waiting=5.0)


@dataclass
class Times:
    """What was measured of one kind, in ns."""

    what: str
    taken: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.taken) / MS

    @property
    def p99(self) -> float:
        """The smallest sample that 99 % of them do not exceed."""
        return sorted(self.taken)[-(len(self.taken) // 100) - 1] / MS


@dataclass
class Cost:
    """What a process that waits takes: KiB of memory, and processor time in % of one core."""

    what: str
    rss: int
    pss: int
    cpu: float
    ticks: int


@dataclass
class Target:
    """What was promised, and what came of it."""

    what: str
    limit: float
    unit: str
    found: float

    @property
    def met(self) -> bool:
        return self.found <= self.limit


# --- the other two programs --------------------------------------------------------------------------------------------


def reply(text: object) -> None:
    os.write(1, f"{text}\n".encode())


def waiter(path: str, how: str) -> None:
    """For each standing read from stdin, wait until the battery has it, and say when that was known."""
    with Directory(path) as directory:
        directory.make([FUSE.ready])
        for line in iter(sys.stdin.readline, ""):
            wait = wait_by_stat if how == "stat" else wait_as_wrapper
            reply(wait(directory, line.strip(), forced=how == "forced"))


def wait_as_wrapper(directory: Directory, wanted: str, *, forced: bool) -> int:
    """Wait as `sidecar.coordination.application` does: the same watch, the same look, the same decision."""
    knew: list[int] = []
    armed: list[bool] = []

    def step(watch: Watch) -> float | None:
        seen = directory.look(FUSE.name, FUSE)
        if protocol.battery_standing(FUSE, seen, over=False)[0] == wanted:
            knew.append(time.monotonic_ns())
            return None
        watch.guard(FUSE.name, seen.alive)
        if not armed:
            armed.append(True)
            reply("armed")
        return 3600.0

    follow(directory, {""}, step, forced_polling=forced)
    return knew[0]


def wait_by_stat(directory: Directory, _wanted: str, *, forced: bool) -> int:
    """Wait as one does who knows no better: look every 10 ms."""
    path = os.path.join(directory.path, FUSE.ready)
    reply("armed")
    while True:
        try:
            os.stat(path)
        except FileNotFoundError:
            time.sleep(0.01)
        else:
            return time.monotonic_ns()


def battery(path: str) -> None:
    """Appear as a battery does, and be there until killed."""
    with Directory(path) as directory:
        directory.make([FUSE.ready])
        directory.lease(FUSE.name)
        born = protocol.battery_born(directory.record(FUSE.name), FUSE.name, FUSE.kind, new_incarnation(), "")
        directory.publish_record(born)
        reply("armed")
        sys.stdin.read()


# --- processes ---------------------------------------------------------------------------------------------------------


class Peer:
    """A process that was started, and its end of the two pipes."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, preexec_fn=die_with_parent
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        self.pid = self.process.pid

    def ask(self, text: str) -> None:
        self.input.write(f"{text}\n".encode())

    def hear(self) -> str:
        """Return the next line it says; RuntimeError where it says none for long."""
        if not select.select([self.output], [], [], LONG)[0]:
            raise RuntimeError(f"{self.process.args!r} said nothing for {LONG:g} s")
        line = os.read(self.output.fileno(), 4096)
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended with status {self.process.wait()}")
        return line.decode().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.input.close()
        self.output.close()


def die_with_parent() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def started(*command: str) -> Iterator[Peer]:
    peer = Peer(*command)
    try:
        yield peer
    finally:
        peer.end()


def role(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs one of the other two programs of this file."""
    return (sys.executable, HERE, "--role", name, *arguments)


def progress(what: str, done: int, total: int) -> None:
    step = max(1, total // 5)
    if done % step == 0 or done == total:
        print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)


# --- signal and death --------------------------------------------------------------------------------------------------


def measure_signals(top: str, sizes: Sizes, chance: random.Random) -> list[Times]:
    kinds = [
        Times("ours"),
        Times("ours, polling forced (every 50 ms)"),
        Times("10 ms poll (Python, os.stat)"),
        Times("sleep 1 loop (sh)"),
    ]
    with contextlib.ExitStack() as stack:
        waiters = [stack.enter_context(started(*role("waiter", top, how))) for how in ("wrapper", "forced", "stat")]
        directory = stack.enter_context(Directory(top))
        directory.make([FUSE.ready])
        for i in range(sizes.signals):
            kinds[0].taken.append(wake(directory, waiters[0], chance.uniform(0.005, 0.025)))
            kinds[2].taken.append(wake(directory, waiters[2], chance.uniform(0.005, 0.025)))
            if due(i, sizes.signals, sizes.forced):
                kinds[1].taken.append(wake(directory, waiters[1], chance.uniform(0.005, 0.105)))
            if due(i, sizes.signals, sizes.shell):
                phase = (len(kinds[3].taken) + 0.5) / sizes.shell
                kinds[3].taken.append(wake_shell(directory, phase))
            progress("signals", i + 1, sizes.signals)
    return kinds


def due(i: int, total: int, wanted: int) -> bool:
    """Tell whether turn `i` of `total` is one of `wanted` that are spread evenly over them."""
    return i * wanted // total != (i - 1) * wanted // total


def wake(directory: Directory, peer: Peer, delay: float) -> int:
    peer.ask(protocol.THERE)
    assert peer.hear() == "armed"
    time.sleep(delay)
    begin = say_ready(directory)
    knew = int(peer.hear())
    directory.unsay(FUSE.ready)
    return knew - begin


def wake_shell(directory: Directory, delay: float) -> int:
    """As `wake`. The shell has no clock to read without a spawn, so it says a line and the time is taken here: 0.1 ms more."""
    with started("sh", "-c", SHELL_LOOP, "sh", os.path.join(directory.path, FUSE.ready)) as peer:
        time.sleep(0.02 + delay)
        begin = say_ready(directory)
        peer.hear()
        knew = time.monotonic_ns()
    directory.unsay(FUSE.ready)
    return knew - begin


def say_ready(directory: Directory) -> int:
    begin = time.monotonic_ns()
    directory.say(FUSE.ready, AUTHOR)
    return begin


def measure_deaths(top: str, sizes: Sizes, chance: random.Random) -> list[Times]:
    kinds = [Times("ours"), Times("ours, polling forced (every 50 ms)")]
    with started(*role("waiter", top, "wrapper")) as guarded, started(*role("waiter", top, "forced")) as forced:
        for i in range(sizes.deaths):
            kinds[0].taken.append(kill(top, guarded, chance.uniform(0.005, 0.025)))
            if i % 4 == 0:
                kinds[1].taken.append(kill(top, forced, chance.uniform(0.005, 0.105)))
            progress("deaths", i + 1, sizes.deaths)
    return kinds


def kill(top: str, peer: Peer, delay: float) -> int:
    with started(*role("battery", top)) as victim:
        assert victim.hear() == "armed"
        peer.ask(protocol.LOST)
        assert peer.hear() == "armed"
        time.sleep(delay)
        begin = time.monotonic_ns()
        os.kill(victim.pid, signal.SIGKILL)
        return int(peer.hear()) - begin


# --- start -------------------------------------------------------------------------------------------------------------


def measure_starts(top: str, sizes: Sizes) -> list[Times]:
    kinds = [
        Times("ours"),
        Times("python3 -IS -c pass, to its end"),
        Times("python3 -c pass, to its end (not promised against)"),
        Times("ours, static"),
        Times("ours, static, around /bin/true, to its end"),
    ]
    for i in range(sizes.starts + 2):
        found = [
            start_of_command(WRAPPER, os.path.join(top, str(i))),
            whole_life(PYTHON, "-IS", "-c", "pass"),
            whole_life(PYTHON, "-c", "pass"),
            start_of_command(STATIC, os.path.join(top, f"{i}-static")),
            whole_life(*around(STATIC, os.path.join(top, f"{i}-true"), "/bin/true")),
        ]
        if i >= 2:  # the first two read the files from disk
            for kind, taken in zip(kinds, found, strict=True):
                kind.taken.append(taken)
            progress("starts", i - 1, sizes.starts)
    return kinds


def around(wrapper: str, path: str, *command: str) -> list[str]:
    """Return what runs a command in a directory that holds nothing but the signal, as a shell's battery leaves it."""
    os.mkdir(path)
    with open(os.path.join(path, FUSE.ready), "w"):
        pass
    # Nothing is saved, so that it ends by itself afterwards; before the command begins that makes no difference.
    return [wrapper, "-c", path, "-b", "fuse", "--save", "never", "-q", "--", *command]


def start_of_command(wrapper: str, path: str) -> int:
    """Return the time until `date` reads the clock."""
    command = around(wrapper, path, "/bin/date", "+%s%N")
    begin = time.time_ns()
    ended = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True, timeout=LONG)
    return int(ended.stdout) - begin


def whole_life(*command: str) -> int:
    begin = time.monotonic_ns()
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
    return time.monotonic_ns() - begin


# --- waiting -----------------------------------------------------------------------------------------------------------


def measure_waiting(top: str, sizes: Sizes) -> list[Cost]:
    """All of them wait during the same seconds, each in a directory of its own."""
    never = os.path.join(top, "never")
    with contextlib.ExitStack() as stack:
        kinds = {
            "ours": wrapper_that_waits(stack, WRAPPER, os.path.join(top, "inotify")),
            "ours, polling forced (every 50 ms)": wrapper_that_waits(stack, WRAPPER, os.path.join(top, "poll"), "--poll"),
            "ours, static": wrapper_that_waits(stack, STATIC, os.path.join(top, "static")),
            "10 ms poll (Python, os.stat)": stack.enter_context(started(*role("waiter", top, "stat"))),
            "sleep 1 loop (sh, with its children)": stack.enter_context(started("sh", "-c", SHELL_LOOP, "sh", never)),
        }
        kinds["10 ms poll (Python, os.stat)"].ask(protocol.THERE)
        time.sleep(2)
        before = {what: (running_ns(peer.pid), ticks(peer.pid)) for what, peer in kinds.items()}
        begin = time.monotonic()
        print(f"waiting: looking at it for {sizes.waiting:g} s", file=sys.stderr, flush=True)
        time.sleep(sizes.waiting)
        seconds = time.monotonic() - begin
        return [cost(what, peer.pid, *before[what], seconds) for what, peer in kinds.items()]


def wrapper_that_waits(stack: contextlib.ExitStack, wrapper: str, path: str, *options: str) -> Peer:
    os.mkdir(path)
    assert stack.enter_context(started(*role("battery", path))).hear() == "armed"
    return stack.enter_context(started(wrapper, "-c", path, "-b", "fuse", "-q", *options, "--", "true"))


def cost(what: str, pid: int, ns_before: int, ticks_before: int, seconds: float) -> Cost:
    used_ticks = ticks(pid) - ticks_before
    # A tick is 10 ms, too coarse for what we look for; but only ticks tell of children that have ended.
    used = used_ticks / os.sysconf("SC_CLK_TCK") if what.startswith("sleep") else (running_ns(pid) - ns_before) / 1e9
    return Cost(what, kib(pid, "status", "VmRSS"), kib(pid, "smaps_rollup", "Pss"), 100 * used / seconds, used_ticks)


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def kib(pid: int, file: str, key: str) -> int:
    return next(int(line.split()[1]) for line in read(f"/proc/{pid}/{file}").splitlines() if line.startswith(f"{key}:"))


def running_ns(pid: int) -> int:
    """Return for how long all threads of a process have been running."""
    return sum(int(read(f"/proc/{pid}/task/{task}/schedstat").split()[0]) for task in os.listdir(f"/proc/{pid}/task"))


def ticks(pid: int) -> int:
    """Return the ticks that a process and its children that have ended were running."""
    return sum(int(part) for part in read(f"/proc/{pid}/stat").rpartition(")")[2].split()[11:15])


# --- what came of it ---------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """Everything that was measured in one run."""

    machine: dict[str, str]
    signals: list[Times]
    deaths: list[Times]
    starts: list[Times]
    waiting: list[Cost]

    def targets(self) -> list[Target]:
        return [
            Target("signal -> awake, median", 0.5, "ms", self.signals[0].median),
            Target("signal -> awake, p99", 5.0, "ms", self.signals[0].p99),
            Target("SIGKILL -> known, p99", 50.0, "ms", self.deaths[0].p99),
            Target(
                "start of the command, median", 3.0, "times python3 -IS -c pass", self.starts[0].median / self.starts[1].median
            ),
            Target("memory while waiting (RSS)", 16.0, "MiB", self.waiting[0].rss / MIB),
            Target("processor while waiting", 0.1, "% of a core", self.waiting[0].cpu),
            Target("static: start, median", 0.6, "times the other's", self.starts[3].median / self.starts[0].median),
            Target("static: memory while waiting (RSS)", 12.0, "MiB", self.waiting[2].rss / MIB),
            Target("static: size", 10.0, "MB", os.path.getsize(STATIC) / 1e6),
        ]


def machine(folder: str) -> dict[str, str]:
    models = [line.partition(":")[2].strip() for line in read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return {
        "CPU": models[0] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "directory": file_system(folder),
        "load before": read("/proc/loadavg").split()[0],
    }


def file_system(folder: str) -> str:
    """Return the type of the file system that `folder` is on."""
    mounts = [line.split()[1:3] for line in read("/proc/mounts").splitlines()]
    over = [(len(point), kind) for point, kind in mounts if os.path.commonpath([point, folder]) == point]
    return max(over)[1] if over else "unknown"


def measure(sizes: Sizes) -> Found:
    with tempfile.TemporaryDirectory(prefix="bench-coordination-") as top:
        about = machine(os.path.realpath(top))
        chance = random.Random(1)
        parts = {name: os.path.join(top, name) for name in ("signals", "deaths", "starts", "waiting")}
        for path in parts.values():
            os.mkdir(path)
        found = Found(
            about,
            measure_signals(parts["signals"], sizes, chance),
            measure_deaths(parts["deaths"], sizes, chance),
            measure_starts(parts["starts"], sizes),
            measure_waiting(parts["waiting"], sizes),
        )
        about["load after"] = read("/proc/loadavg").split()[0]
        return found


def print_table(found: Found) -> None:
    print(", ".join(f"{what} {how}" for what, how in found.machine.items()) + "\n")
    rows: list[tuple[str, ...]] = [("", "", "n", "median", "p99", "times ours"), ("---", "---", "---:", "---:", "---:", "---:")]
    for title, kinds in (
        ("signal said → waiting process awake", found.signals),
        ("peer killed with SIGKILL → waiting process knows", found.deaths),
        ("started, all signals there → command runs", found.starts),
    ):
        rows += [times_row(title if kind is kinds[0] else "", kind, kinds[0]) for kind in kinds]
    print_rows(rows)
    print_rows(
        [
            ("waiting", "RSS", "PSS", "of a core"),
            ("---", "---:", "---:", "---:"),
            *((c.what, f"{c.rss / MIB:.1f} MiB", f"{c.pss / MIB:.1f} MiB", f"{c.cpu:.3f} %") for c in found.waiting),
        ]
    )
    print_rows(
        [
            ("target", "at most", "found", "met"),
            ("---", "---:", "---:", "---"),
            *((t.what, f"{t.limit:g} {t.unit}", f"{t.found:.3g}", "yes" if t.met else "**no**") for t in found.targets()),
        ]
    )


def times_row(title: str, kind: Times, ours: Times) -> tuple[str, ...]:
    ratio = f"{kind.median / ours.median:.3g}"
    return (title, kind.what, str(len(kind.taken)), f"{kind.median:.3g} ms", f"{kind.p99:.3g} ms", ratio)


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def as_json(found: Found) -> dict[str, Any]:
    def times(kinds: list[Times]) -> list[dict[str, Any]]:
        return [
            {"what": k.what, "n": len(k.taken), "median_ms": k.median, "p99_ms": k.p99, "max_ms": max(k.taken) / MS}
            for k in kinds
        ]

    return {
        "machine": found.machine,
        "signals": times(found.signals),
        "deaths": times(found.deaths),
        "starts": times(found.starts),
        "waiting": [asdict(c) for c in found.waiting],
        "targets": [{**asdict(t), "met": t.met} for t in found.targets()],
    }


def end_on_sigterm(_number: int, _frame: object) -> NoReturn:
    """Let every `finally` run, so that no process and no folder is left."""
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    roles: dict[str, Callable[..., None]] = {"waiter": waiter, "battery": battery}
    if sys.argv[1:2] == ["--role"]:
        roles[sys.argv[2]](*sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description="How fast the containers of a pod hear each other, beside the peers.")
    parser.add_argument("--quick", action="store_true", help="few samples: to see that it runs, not how fast it is")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    said = parser.parse_args()
    if not os.path.exists(WRAPPER):
        parser.error("run it with the Python of the virtual environment that wrap_application is installed in")
    if not os.path.exists(STATIC):
        parser.error(f"{STATIC} is missing: make wrapper")
    signal.signal(signal.SIGTERM, end_on_sigterm)
    found = measure(QUICK if said.quick else Sizes())
    if said.json:
        print(json.dumps(as_json(found), indent=2, ensure_ascii=False))
    else:
        print_table(found)


if __name__ == "__main__":
    main()
