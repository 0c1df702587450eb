"""What it costs that source code which was just handed over is run, beside bwrap and the interpreter: `make bench-functions`.

    overhead    one call of one worker, beside bwrap around the interpreter: in a sandbox of the same namespaces, and in the
                worker's own, with its filter of calls and its places of bounded size
    stalled     with 5 % of workers stalled for a second, the p99 of calls by two workers beside those by one
    sustained   calls in a second of a server over HTTP by one worker, beside bwrap and the interpreter, as many at a time

It is a benchmark, no test: it prints whether each target was met, and ends with 0 either way.

What one must know to change it safely. What is compared takes turns, sample by sample, each time another one first. The stall is
put in front of bwrap, by a script that stands in its place, for both alike.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from coordination import Target, machine, print_rows

from sidecar.functions.answer import Asked, Limits
from sidecar.functions.confinement import Machine, sandbox
from sidecar.functions.runtimes import Runtime, find_runtimes
from sidecar.functions.service import Service
from sidecar.functions.worker import machine as machine_of_workers
from sidecar.sandbox import options

RUNTIMES = str(Path(__file__).parent.parent.parent / "images" / "runtimes")
SIDECAR = os.path.join(os.path.dirname(sys.executable), "sidecar")
SOURCES = {"bash": ("echo 42\n", ["bash"]), "perl": ("print 42", ["perl"]), "python": ("print(42)", ["python3.11", "-I"])}
OVERHEAD, TAIL, RATE = 1.3, 0.3, 0.8
SAMPLES, CALLS, SECONDS, AT_A_TIME = 60, 300, 8.0, 4
LIMITS = Limits(wall=30, cpu=30)
# Stalls a twentieth of those who call it.
STALLING = """#!/bin/sh
n=$(od -An -N2 -tu2 /dev/urandom)
[ $((n % 20)) != 0 ] || sleep 1
exec {bwrap} "$@"
"""


def bare(source: str, interpreter: list[str]) -> list[str]:
    """Return the command of bwrap and an interpreter: the namespaces, the system and the places to write of a worker."""
    return [
        "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--ro-bind", "/usr", "/usr",
        "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--proc", "/proc",
        "--dev", "/dev", "--tmpfs", "/tmp", "--ro-bind", source, "/code/source", "--remount-ro", "/", "--chdir", "/tmp",
        "--clearenv", "--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin", *interpreter, "/code/source",
    ]  # fmt: skip


def with_its_sandbox(here: Machine, source: bytes, interpreter: list[str]) -> None:
    """Run an interpreter in the sandbox of a worker, without anything else of one."""
    held = [os.memfd_create(name) for name in ("script", "source", "filter", "options")]
    try:
        script, code, calls, told = held
        said = options(sandbox(Asked(source), here, script, code, calls))
        for fd, data in zip(held, (b"", source, here.filter, b"".join(os.fsencode(word) + b"\0" for word in said)), strict=True):
            os.pwrite(fd, data, 0)
        words = [here.bwrap, "--args", str(told), "--", *interpreter, "/code/source"]
        ran = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, pass_fds=held, check=True)
        assert ran.stdout.strip() == b"42"
    finally:
        for fd in held:
            os.close(fd)


def milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def overhead(service: Service, loop: asyncio.AbstractEventLoop, folder: Path) -> list[Target]:
    """Compare a call with the bare command, for each language."""
    rows = [("one worker, p50 (ms)", "sidecar", "bwrap", "ratio", "bwrap, the same sandbox", "ratio"), ("---", *["---:"] * 5)]
    targets = []
    here = machine_of_workers(str(shutil.which("bwrap")), None)
    for language, (source, interpreter) in SOURCES.items():
        file = folder / language
        file.write_text(source)
        asked = Asked(source.encode(), limits=LIMITS, workers=1)
        words = bare(str(file), interpreter)
        ours: list[float] = []
        theirs: list[float] = []
        alike: list[float] = []

        def call(language: str = language, asked: Asked = asked) -> None:
            assert loop.run_until_complete(service.call(language, asked)).won.status == "ok"

        def run(words: list[str] = words) -> None:
            assert subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, check=True).stdout.strip() == b"42"

        def run_alike(source: bytes = source.encode(), interpreter: list[str] = interpreter) -> None:
            with_its_sandbox(here, source, interpreter)

        for number in range(SAMPLES):
            for kept, work in ((ours, call), (theirs, run), (alike, run_alike))[:: 1 if number % 2 else -1]:
                kept.append(milliseconds(work))
        p50, bare_p50, alike_p50 = map(statistics.median, (ours, theirs, alike))
        shown = (f"{p50:.1f}", f"{bare_p50:.1f}", f"{p50 / bare_p50:.2f}", f"{alike_p50:.1f}", f"{p50 / alike_p50:.2f}")
        rows.append((language, *shown))
        targets.append(Target(f"a call in {language} beside bwrap and the bare interpreter", OVERHEAD, "times", p50 / bare_p50))
        what = f"a call in {language} beside the bare interpreter in the same sandbox"
        targets.append(Target(what, OVERHEAD, "times", p50 / alike_p50))
    print_rows(rows)
    return targets


def stalled(runtimes: tuple[Runtime, ...], loop: asyncio.AbstractEventLoop, folder: Path) -> list[Target]:
    """Compare the tails of calls by one and by two workers, of which a twentieth stall."""
    script, was = folder / "bwrap", os.environ["PATH"]
    script.write_text(STALLING.format(bwrap=shutil.which("bwrap")))
    script.chmod(0o755)
    os.environ["PATH"] = f"{folder}:{was}"
    service = Service(runtimes)
    os.environ["PATH"] = was
    kinds = {"one worker": Asked(b"echo 42\n", limits=LIMITS, workers=1), "two workers": Asked(b"echo 42\n", limits=LIMITS)}
    kinds["two, the second after 100 ms"] = Asked(b"echo 42\n", limits=LIMITS, delay=0.1)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    spawned = dict.fromkeys(kinds, 0)
    for number in range(CALLS):
        for name in list(kinds)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            spawned[name] += len(loop.run_until_complete(service.call("bash", kinds[name])).workers)
            times[name].append((time.perf_counter() - began) * 1000)
    rows = [("5 % of workers stalled", "p50 (ms)", "p99 (ms)", "workers a call"), ("---", "---:", "---:", "---:")]
    tails = {}
    for name, taken in times.items():
        taken.sort()
        tails[name] = taken[int(len(taken) * 0.99) - 1]
        rows.append((name, f"{statistics.median(taken):.1f}", f"{tails[name]:.1f}", f"{spawned[name] / CALLS:.2f}"))
    print_rows(rows)
    return [Target("p99 of two workers beside that of one", TAIL, "times", tails["two workers"] / tails["one worker"])]


def sustained(folder: Path) -> list[Target]:
    """Compare how many calls a server answers with how many bare commands are run, as many at a time."""
    rows = [("a second, four at a time", "over HTTP", "bwrap and the interpreter", "ratio"), ("---", "---:", "---:", "---:")]
    targets = []
    words = [SIDECAR, "function", "serve", "--port", "0"]
    with subprocess.Popen(words, env={**os.environ, "SIDECAR_RUNTIMES": RUNTIMES}, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        port = int(server.stderr.readline().rstrip("/\n").rpartition(":")[2])
        # It tells of each call, and would wait for whoever does not read that.
        threading.Thread(target=server.stderr.read, daemon=True).start()
        try:
            for language, (source, interpreter) in SOURCES.items():
                command = bare(str(folder / language), interpreter)

                def ask(source: str = source, language: str = language) -> Callable[[], None]:
                    client = http.client.HTTPConnection("127.0.0.1", port)
                    body = f'{{"source": {source!r}, "workers": 1}}'.replace("'", '"')

                    def once() -> None:
                        path, kind = f"/v1/functions/{language}/invocations", {"Content-Type": "application/json"}
                        client.request("POST", path, body, kind)
                        answer = client.getresponse()
                        assert (answer.status, b'"ok"' in answer.read()) == (200, True)

                    return once

                def run(command: list[str] = command) -> Callable[[], None]:
                    def once() -> None:
                        subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=True)

                    return once

                bare_rate, our_rate = rate(run), rate(ask)
                ratio = our_rate / bare_rate
                rows.append((language, f"{our_rate:.0f}", f"{bare_rate:.0f}", f"{ratio:.2f}"))
                targets.append(Target(f"calls a second in {language} beside bare ones, at least", RATE, "times", ratio))
        finally:
            server.terminate()
    print_rows(rows)
    return targets


def rate(worker: Callable[[], Callable[[], None]]) -> float:
    """Return how often in a second `AT_A_TIME` of them do their work."""
    counts = [0] * AT_A_TIME
    until = time.monotonic() + SECONDS

    def work(number: int) -> None:
        once = worker()
        while time.monotonic() < until:
            once()
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(AT_A_TIME)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return sum(counts) / SECONDS


def main() -> None:
    print(", ".join(f"{key} {value}" for key, value in machine(os.getcwd()).items()), end="\n\n")
    runtimes = find_runtimes([RUNTIMES])
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        below = overhead(Service(runtimes), loop, folder)
        print()
        below += stalled(runtimes, loop, folder)
        print()
        above = sustained(folder)
    loop.close()
    print()
    for target in below:
        print(f"{target.what}: {target.found:.2f} {target.unit}, target {target.limit:g}: {'met' if target.met else 'missed'}")
    for target in above:
        met = target.found >= target.limit
        print(f"{target.what}: {target.found:.2f} {target.unit}, target {target.limit:g}: {'met' if met else 'missed'}")


if __name__ == "__main__":
    main()
