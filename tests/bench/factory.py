"""What it costs that images are built by the factory, beside plain `buildah build`: `make bench-factory`.

    overhead    a build by Factory.build, until its end is recorded, beside buildah told the same
    reads       a build that `sidecar serve` was asked for, its status read 100 times a second over HTTP, beside nobody reading:
                one whose steps are a process each, and one whose steps are two each, with a pipe between them

The overhead is all that the factory adds: the digest of the context, before and after; a builder, which is a process that has to
begin; records on the disk; and namespaces around buildah.

It is a benchmark, no test: it prints whether each target was met, and ends with 0 either way. It needs root, as building does.

What one must know to change it safely. Each build has a store of its own, made and empty, in which nothing is that it could take
instead of building. Ways that are compared take turns, each time another one first. When a build was over is told by its record,
for which nobody looks more often than 20 times a second: whoever looks takes time of the machine's. The steps compute and do not
sleep, for what goes on beside them shall slow them; those of two processes want more than one processor, and wait for each other.
Reads are due at fixed times, and made up for when they are late; how many there were is told, for a busy machine has fewer.
Who reads is elsewhere, as a rule: so it takes as little of this machine as it can, a socket and no client's library.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from coordination import Target, Times, end_on_sigterm, machine, print_rows, progress, read

from sidecar.factory.buildah import Buildah
from sidecar.factory.context import open_definition
from sidecar.factory.factory import Factory
from sidecar.factory.records import open_records

SIDECAR = os.path.join(os.path.dirname(sys.executable), "sidecar")
BUSYBOX = "/bin/busybox"
IMAGE = "steps"
STEPS, STEP = 5, 0.3  # of so many seconds each, about
# What a step does, {} being how much of it, and with how much it is tried how long that takes.
ONE, TWO = (
    (f"{BUSYBOX} awk 'BEGIN {{{{ while (i < {{}}0000) i++ }}}}'", 100),
    (f"{BUSYBOX} dd if=/dev/zero bs=1M count={{}} 2>/dev/null | {BUSYBOX} sha256sum", 64),
)
MOST, RATE = 1.05, 100
LOOK = 0.05
LONG = 120.0
WAYS = ("read 100 times a second", "not read")


class Place:
    """A folder with a factory.yaml, the context of one image, a store of images that is made and empty, and records."""

    def __init__(self, folder: Path, step: str) -> None:
        self.definition, self.state = folder / "images" / "factory.yaml", folder / "state"
        context = self.definition.parent / IMAGE
        context.mkdir(parents=True)
        self.definition.write_text("repository: bench/{image}\n")
        shutil.copy(BUSYBOX, context)
        steps = [f'RUN ["{BUSYBOX}", "sh", "-c", {json.dumps(f"{step} >/{number}")}]' for number in range(STEPS)]
        (context / "Containerfile").write_text("\n".join(["FROM scratch", "COPY busybox /bin/", *steps, ""]))
        self.state.mkdir(mode=0o700)
        self.buildah = Buildah(str(self.state / "images"))
        self.buildah.prepare()

    def plain(self) -> int:
        """Return how long buildah takes in ns, told what the factory tells it."""
        definition = open_definition(str(self.definition))
        labels = {"sidecar.build": "1", "sidecar.content-digest": f"blake3:{'0' * 64}"}
        id_file = str(self.state / "id")
        told = self.buildah.build(
            definition, definition.image(IMAGE), target="oci", ignore="", base="", labels=labels, id_file=id_file
        )
        environment = self.buildah.environment(str(self.state))
        # It would leave the store mounted on itself here.
        command = ["unshare", "--mount", *told[told.index("buildah") :]]
        begun = time.time_ns()
        ended = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        taken = time.time_ns() - begun
        assert ended.returncode == 0, ended.stderr
        return taken

    def ours(self) -> int:
        """Return how long the factory takes in ns, from its being asked to the end that it records."""
        with Factory(str(self.definition), str(self.state)) as factory:
            begun = time.time_ns()
            return self.over(factory.build(IMAGE).id) - begun

    def over(self, number: int) -> int:
        """Return when a build was over, in ns, once it is."""
        with open_records(str(self.state)) as records:
            until = time.monotonic() + LONG
            while not (work := records.get(number)).over:
                assert time.monotonic() < until, "it is not over"
                time.sleep(LOOK)
        assert work.status == "COMPLETE", work.error
        return work.finished * 1000

    def served(self, rate: int) -> tuple[int, list[int]]:
        """Return how long a build takes in ns that a server is asked for, and how long each read of its status took."""
        taken: list[int] = []
        with self.server() as port:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
            begun = time.time_ns()
            client.request("POST", f"/v1/images/{IMAGE}/builds", "{}", {"Content-Type": "application/json"})
            answer = client.getresponse()
            told = json.load(answer)
            assert answer.status == 202, told
            where = urlsplit(answer.headers["Location"]).path
            over = threading.Event()
            reader = threading.Thread(target=read_status, args=(client.sock, where, rate, over, taken))
            if rate:
                reader.start()
            try:
                finished = self.over(told["id"])
            finally:
                over.set()
                if rate:
                    reader.join()
                client.close()
        seconds = (finished - begun) / 1e9
        assert len(taken) >= rate * seconds / 2, f"of {rate} reads a second for {seconds:.1f} s there were {len(taken)}"
        return finished - begun, taken

    @contextmanager
    def server(self) -> Iterator[int]:
        """Yield the port of a server that is gone at the end."""
        words = [SIDECAR, "serve", "--port", "0", "--factory", str(self.definition), "--folder", str(self.state / "sessions")]
        environment = {**os.environ, "SIDECAR_STATE": str(self.state)}
        said = self.state / "said"
        # A file: it has a line for each read, by which a pipe would be full.
        with said.open("w") as told, subprocess.Popen(words, env=environment, stderr=told) as server:
            try:
                while "\n" not in said.read_text():
                    assert server.poll() is None, said.read_text()
                    time.sleep(LOOK)
                yield int(said.read_text().partition("\n")[0].rstrip("/").rpartition(":")[2])
            finally:
                server.terminate()


def read_status(connected: socket.socket, where: str, rate: int, over: threading.Event, taken: list[int]) -> None:
    """Read the status of a build `rate` times a second until it is over, and keep how long each read took."""
    asked, first = f"GET {where} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(), time.monotonic()
    while not over.wait(max(0.0, first + len(taken) / rate - time.monotonic())):
        begun = time.monotonic_ns()
        connected.sendall(asked)
        answer = connected.recv(1 << 16)
        while answer and not answer.endswith(b"}"):
            answer += connected.recv(1 << 16)
        if not answer.startswith(b"HTTP/1.1 200 "):
            return  # nobody is told anything any more: who began this sees that reads are missing
        taken.append(time.monotonic_ns() - begun)


def step(kind: tuple[str, int]) -> str:
    """Return the command of a step that takes STEP here."""
    command, tried = kind
    taken = []
    for _ in range(5):
        begun = time.monotonic()
        subprocess.run([BUSYBOX, "sh", "-c", command.format(tried)], stdout=subprocess.DEVNULL, check=True)
        taken.append(time.monotonic() - begun)
    return command.format(max(1, round(tried * STEP / min(taken))))


def take_turns(top: Path, pairs: int, step: str, what: str, ways: Sequence[tuple[str, Callable[[Place], int]]]) -> list[Times]:
    """Measure each of two ways as often, each time the other one first. The first turn reads the files from disk."""
    found = [Times(name) for name, _ in ways]
    for turn in range(-1, pairs):
        for which in (0, 1)[:: 1 if turn % 2 else -1]:
            with tempfile.TemporaryDirectory(dir=top) as folder:
                taken = ways[which][1](Place(Path(folder), step))
            if turn >= 0:
                found[which].taken.append(taken)
        if turn >= 0:
            progress(what, turn + 1, pairs)
    return found


class Watched(NamedTuple):
    """Builds of one kind of step, with their status read and without, and how long each read took."""

    what: str
    builds: list[Times]
    reads: Times


def measure_reads(top: Path, pairs: int, step: str, what: str) -> Watched:
    """Measure builds whose status is read."""
    each_time: list[list[int]] = []

    def watched(place: Place) -> int:
        taken, each = place.served(RATE)
        each_time.append(each)
        return taken

    builds = take_turns(top, pairs, step, f"reads, {what}", [(WAYS[0], watched), (WAYS[1], lambda place: place.served(0)[0])])
    # Without those of the first turn.
    return Watched(what, builds, Times("one read", [one for each in each_time[-pairs:] for one in each]))


def compared(what: str, kinds: Sequence[Times]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of two ways."""
    for number, kind in enumerate(kinds):
        row = (kind.what, str(len(kind.taken)), f"{kind.median:.0f} ms", f"{kind.p99:.0f} ms")
        yield ("" if number else what, *row, "" if number else f"{ratio(kinds):.3f}")


def ratio(kinds: Sequence[Times]) -> float:
    """Return the median of how many times as long the first takes, pair by pair."""
    return statistics.median(ours / theirs for ours, theirs in zip(kinds[0].taken, kinds[1].taken, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="What it costs that images are built by the factory.")
    parser.add_argument("--quick", action="store_true", help="few samples: to see that it runs, not how fast it is")
    pairs = 2 if parser.parse_args().quick else 15
    signal.signal(signal.SIGTERM, end_on_sigterm)
    with tempfile.TemporaryDirectory(prefix="bench-factory-") as name:
        top = Path(name)
        about, one, two = machine(os.path.realpath(name)), step(ONE), step(TWO)
        about["buildah"] = subprocess.run(["buildah", "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
        overhead = take_turns(
            top, pairs, two, "overhead", [("the factory", Place.ours), ("`buildah build`, the same arguments", Place.plain)]
        )
        watched = [
            measure_reads(top, pairs, *each) for each in ((one, "a step is one process"), (two, "a step is two and a pipe"))
        ]
        about["load after"] = read("/proc/loadavg").split()[0]
    print(", ".join(f"{what} {how}" for what, how in about.items()) + "\n")
    rows: list[tuple[str, ...]] = [("", "", "n", "median", "p99", "ratio"), ("---", "---", "---:", "---:", "---:", "---:")]
    rows += compared("an image of five steps is built", overhead)
    for each in watched:
        rows += compared(f"asked of `sidecar serve`; {each.what}", each.builds)
        rate = len(each.reads.taken) / (sum(each.builds[0].taken) / 1e9)
        read_ = (f"one read, of {rate:.0f} a second", str(len(each.reads.taken)))
        rows.append(("", *read_, f"{each.reads.median:.1f} ms", f"{each.reads.p99:.1f} ms", ""))
    print_rows(rows)
    for target in (
        Target("a build beside plain buildah", MOST, "times", ratio(overhead)),
        *(
            Target(f"a build whose status is read 100 times a second, {each.what}", MOST, "times", ratio(each.builds))
            for each in watched
        ),
    ):
        print(f"{target.what}: {target.found:.3f} {target.unit}, target {target.limit:g}: {'met' if target.met else 'missed'}")


if __name__ == "__main__":
    main()
