"""What it costs that a program runs at most once, beside the bare cost of its parts and beside a shell: `make bench-once`.

    claim       Ledger.claim and Claim.finish in one process, beside two commits with `synchronous=FULL` of a row like theirs
    replay      `sidecar once run` of what has run, beside starting the command line (`sidecar --version`)
    first       `sidecar once run` of `true`, to its end, beside spawning `true`
    throughput  64 MiB through `sidecar once run`, then and again, beside cat(1) through a pipe

The peer for the same job is what people write: a shell script with flock, a flag and three files (SCRIPT). It keeps no times, no
order of the two streams and no arguments. Without `sync` a power cut takes its flag back, so it is measured with and without.

It is a benchmark, no test: it prints whether each target was met, and ends with 0 either way.

What one must know to change it safely. What is compared takes turns, sample by sample, each time another one first, in one
directory of a disk: on a memory file system a commit costs nothing. Everything that is timed to its end is waited for without a
timeout, for subprocess polls then.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from coordination import MS, Target, Times, end_on_sigterm, machine, print_rows, progress, read

from sidecar.exits import Exit
from sidecar.once import Ledger
from sidecar.once.asked import ask
from sidecar.once.claim import Claim
from sidecar.state import MIGRATIONS

SIDECAR = os.path.join(os.path.dirname(sys.executable), "sidecar")
SMALL = ("sh", "-c", "echo a line; echo another >&2; exit 3")
LARGE = 64 << 20
# once.sh DIRECTORY COMMAND…: with SYNC=: nothing is forced to the disk.
SCRIPT = """
mkdir -p "$1" && cd "$1" && shift || exit 74
exec 9>lock
flock 9
if ! [ -e claimed ]; then
    : >claimed
    ${SYNC:-sync} claimed . || exit 74
    "$@" >stdout 2>stderr 9>&-
    echo $? >status.new
    ${SYNC:-sync} stdout stderr status.new
    mv status.new status
fi
[ -e status ] || { echo "its outcome is unknown" >&2; exit 125; }
cat stdout
cat stderr >&2
read -r status <status
exit "$status"
"""


@dataclass
class Sizes:
    """How many samples are taken of each kind."""

    claims: int = 1000
    processes: int = 100
    floods: int = 9


QUICK = Sizes(claims=50, processes=10, floods=3)


@dataclass
class Kinds:
    """Kinds that took turns, the first being ours; the ratios are medians of those of pairs."""

    what: str
    kinds: list[Times] = field(default_factory=list)

    def ratio(self, other: int) -> float:
        """Return how many times as long ours takes as the other."""
        pairs = zip(self.kinds[0].taken, self.kinds[other].taken, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


def take_turns(what: str, wanted: int, ways: Sequence[tuple[str, Callable[[int], int]]], warm: int = 2) -> Kinds:
    """Measure each of some ways as often, each time beginning with another. The first turns read the files from disk."""
    found = Kinds(what, [Times(name) for name, _ in ways])
    for turn in range(-warm, wanted):
        for i in range(len(ways)):
            which = (i + turn) % len(ways)
            taken = ways[which][1](turn)
            if turn >= 0:
                found.kinds[which].taken.append(taken)
        if turn >= 0:
            progress(what, turn + 1, wanted)
    return found


# --- claim and finish --------------------------------------------------------------------------------------------------


def measure_claims(top: str, sizes: Sizes) -> Kinds:
    bare = sqlite3.connect(os.path.join(top, "bare.sqlite3"), isolation_level=None)
    bare.execute("PRAGMA journal_mode=WAL")
    for statement in MIGRATIONS[0]:
        bare.execute(statement)
    bare.execute("PRAGMA synchronous=FULL")
    with Ledger(os.path.join(top, "claims")) as ledger:

        def ours(turn: int) -> int:
            asked = ask("instance", f"run {turn}", SMALL, "/", {}, {})
            begun = time.monotonic_ns()
            claim = ledger.claim(asked)
            assert isinstance(claim, Claim)
            claim.finish(Exit(3))
            return time.monotonic_ns() - begun

        found = take_turns(
            "claim and finish, in one process",
            sizes.claims,
            [("ours", ours), ("two commits, `synchronous=FULL`", lambda turn: two_commits(bare, turn))],
            warm=20,
        )
    bare.close()
    return found


def two_commits(bare: sqlite3.Connection, turn: int) -> int:
    begun = time.monotonic_ns()
    bare.execute("BEGIN IMMEDIATE")
    number = bare.execute(
        "INSERT INTO run (lease, instance, name, state, command, directory, pid, ticks, boot, namespace, claimed) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ("l" * 32, "instance", f"run {turn}", "running", "\0".join(SMALL).encode(), b"/", 1, 1, "b" * 36, 1, begun),
    ).lastrowid
    bare.execute("COMMIT")
    bare.execute("BEGIN IMMEDIATE")
    bare.execute("UPDATE run SET state = ?, finished = ?, code = ? WHERE id = ?", ("finished", begun, 3, number))
    bare.execute("COMMIT")
    return time.monotonic_ns() - begun


# --- whole processes ---------------------------------------------------------------------------------------------------


def measure_replays(top: str, sizes: Sizes) -> Kinds:
    script = script_in(top)
    ours = (SIDECAR, "once", "run", "--state", os.path.join(top, "replays"), "--name", "small", "--", *SMALL)
    theirs = ("sh", script, os.path.join(top, "replays.sh"), *SMALL)
    said = [subprocess.run(command, capture_output=True) for command in (ours, ours, theirs, theirs)]
    assert {(s.stdout, s.stderr, s.returncode) for s in said} == {(b"a line\n", b"another\n", 3)}
    return take_turns(
        "a small run is replayed, whole processes",
        sizes.processes,
        [
            ("ours", lambda _: whole_life(*ours)),
            ("`sidecar --version`", lambda _: whole_life(SIDECAR, "--version")),
            ("sh, flock and files", lambda _: whole_life(*theirs)),
        ],
    )


def measure_first(top: str, sizes: Sizes) -> Kinds:
    script, state = script_in(top), os.path.join(top, "first")
    return take_turns(
        "`true` is run for the first time, whole processes",
        sizes.processes,
        [
            ("ours", lambda turn: whole_life(SIDECAR, "once", "run", "--state", state, "--name", f"n{turn}", "--", "true")),
            ("`true`", lambda _: whole_life("true")),
            ("`sidecar --version`", lambda _: whole_life(SIDECAR, "--version")),
            ("sh, flock, files and sync", lambda turn: whole_life("sh", script, os.path.join(top, f"n{turn}"), "true")),
            (
                "sh, flock and files, no sync",
                lambda turn: whole_life("sh", script, os.path.join(top, f"u{turn}"), "true", SYNC=":"),
            ),
        ],
    )


def script_in(top: str) -> str:
    path = os.path.join(top, "once.sh")
    with open(path, "w") as file:
        file.write(SCRIPT)
    return path


def whole_life(*command: str, **environment: str) -> int:
    """Return how long a command takes whose output nobody wants."""
    begun = time.monotonic_ns()
    subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
        check=False,
    )
    return time.monotonic_ns() - begun


# --- throughput --------------------------------------------------------------------------------------------------------


def measure_throughput(top: str, sizes: Sizes) -> Kinds:
    source, state, script = os.path.join(top, "source"), os.path.join(top, "floods"), script_in(top)
    with open(source, "wb") as file:
        file.write(os.urandom(LARGE))

    def ours(turn: int, name: str) -> int:
        return drained(SIDECAR, "once", "run", "--state", state, "--name", name.format(turn), "--", "cat", source)

    ours(0, "again")
    return take_turns(
        f"{LARGE >> 20} MiB to stdout, read through a pipe",
        sizes.floods,
        [
            ("ours, run and kept", lambda turn: ours(turn, "n{}")),
            ("ours, replayed", lambda turn: ours(turn, "again")),
            ("`cat`", lambda _: drained("cat", source)),
            ("sh, flock, files and sync", lambda turn: drained("sh", script, os.path.join(top, f"f{turn}"), "cat", source)),
        ],
    )


def drained(*command: str) -> int:
    """Return how long a command takes whose output is read as fast as it comes."""
    buffer, size = [bytearray(1 << 20)], 0
    begun = time.monotonic_ns()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        while got := os.readv(process.stdout.fileno(), buffer):
            size += got
    taken = time.monotonic_ns() - begun
    assert (size, process.returncode) == (LARGE, 0), command
    return taken


# --- what came of it ---------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """Everything that was measured in one run."""

    machine: dict[str, str]
    claims: Kinds
    replays: Kinds
    first: Kinds
    throughput: Kinds

    def targets(self) -> list[Target]:
        return [
            Target("claim + finish", 2.0, "times two commits", self.claims.ratio(1)),
            Target("replay of a small run", 1.5, "times `sidecar --version`", self.replays.ratio(1)),
        ]


def measure(sizes: Sizes, folder: str | None) -> Found:
    with tempfile.TemporaryDirectory(prefix="bench-once-", dir=folder) as top:
        about = machine(os.path.realpath(top))
        about["SQLite"] = sqlite3.sqlite_version
        parts = {name: os.path.join(top, name) for name in ("claims", "replays", "first", "throughput")}
        for path in parts.values():
            os.mkdir(path)
        found = Found(
            about,
            measure_claims(parts["claims"], sizes),
            measure_replays(parts["replays"], sizes),
            measure_first(parts["first"], sizes),
            measure_throughput(parts["throughput"], sizes),
        )
        about["load after"] = read("/proc/loadavg").split()[0]
        return found


def print_table(found: Found) -> None:
    print(", ".join(f"{what} {how}" for what, how in found.machine.items()) + "\n")
    rows: list[tuple[str, ...]] = [("", "", "n", "median", "p99", "ours / this"), ("---", "---", "---:", "---:", "---:", "---:")]
    for kinds in (found.claims, found.replays, found.first):
        rows += [
            (*head(kinds, i), str(len(kind.taken)), f"{kind.median:.3g} ms", f"{kind.p99:.3g} ms", ratio(kinds, i))
            for i, kind in enumerate(kinds.kinds)
        ]
    print_rows(rows)
    rows = [("", "", "n", "median", "MiB/s", "ours / this"), ("---", "---", "---:", "---:", "---:", "---:")]
    rows += [
        (
            *head(found.throughput, i),
            str(len(kind.taken)),
            f"{kind.median:.3g} ms",
            f"{speed(kind):.0f}",
            ratio(found.throughput, i),
        )
        for i, kind in enumerate(found.throughput.kinds)
    ]
    print_rows(rows)
    print_rows(
        [
            ("target", "at most", "found", "met"),
            ("---", "---:", "---:", "---"),
            *((t.what, f"{t.limit:g} {t.unit}", f"{t.found:.3g}", "yes" if t.met else "**no**") for t in found.targets()),
        ]
    )


def head(kinds: Kinds, number: int) -> tuple[str, str]:
    return ("" if number else kinds.what), kinds.kinds[number].what


def ratio(kinds: Kinds, number: int) -> str:
    return f"{kinds.ratio(number):.3g}" if number else ""


def speed(kind: Times) -> float:
    """Return MiB a second."""
    return (LARGE >> 20) / (kind.median / 1000)


def as_json(found: Found) -> dict[str, Any]:
    def times(kinds: Kinds) -> list[dict[str, Any]]:
        return [
            {
                "what": k.what,
                "n": len(k.taken),
                "median_ms": k.median,
                "p99_ms": k.p99,
                "max_ms": max(k.taken) / MS,
                "ours_is": kinds.ratio(i),
            }
            for i, k in enumerate(kinds.kinds)
        ]

    parts = {name: times(getattr(found, name)) for name in ("claims", "replays", "first", "throughput")}
    return {"machine": found.machine, **parts, "targets": [{**asdict(t), "met": t.met} for t in found.targets()]}


def main() -> None:
    parser = argparse.ArgumentParser(description="What it costs that a program runs at most once.")
    parser.add_argument("--quick", action="store_true", help="few samples: to see that it runs, not how fast it is")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--directory", metavar="DIR", help="where it writes: a folder of a disk, not of memory")
    said = parser.parse_args()
    signal.signal(signal.SIGTERM, end_on_sigterm)
    found = measure(QUICK if said.quick else Sizes(), said.directory)
    if said.json:
        print(json.dumps(as_json(found), indent=2, ensure_ascii=False))
    else:
        print_table(found)


if __name__ == "__main__":
    main()
