"""How fast bundles are kept and fetched, and how small, beside the peers, in one run: `make bench-data`.

    A   20,000 files of 4 KiB of random bytes: saved, fetched
    B   8 files of 256 MiB of random bytes: saved, fetched
    C   A again, after 1 % of its files were changed in place: saved
    D   a stopped Postgres cluster again, after an update of 0.01 % of its rows, drawn at random: saved
    E   the same, of 1 %: half of its pages have changed then
    G   1,000 files of 64 KiB, to an emulated Google Cloud Storage (fake-gcs-server, loopback)

It is a benchmark, no test: it prints whether each target was met, and ends with 0 either way.

What one must know to change it safely. Whole processes are timed, from their start to their end, as a user has them. Those that
are compared take turns, round by round, so noise of the machine hits all alike; medians are of the rounds. Sources are in the
page cache; each round has a new, empty store and destination. The peers differ: restic encrypts, restic, borg and sidecar verify
what they read and sync what they write, cp, tar and rclone do not, so `sync -f` follows them. Everything is below one directory
(--at), on one file system; the table names it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import emulators

SIDECAR = str(Path(sys.executable).parent / "sidecar")
HERE = str(Path(__file__).resolve())
PAGE = 8 << 10
KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Sizes:
    """How much work there is."""

    rounds: int = 5
    small: int = 20_000
    large: int = 8
    large_bytes: int = 256 * MIB
    scale: int = 20
    objects: int = 1000


QUICK = Sizes(rounds=2, small=2000, large=4, large_bytes=16 * MIB, scale=2, objects=100)


@dataclass
class Taken:
    """What one program took for one kind of work, round by round."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    rss: int = 0
    growth: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


Results = dict[tuple[str, str], Taken]


@dataclass(frozen=True)
class Peer:
    """A program, and how it is told to do something; `store` and `to` are new directories, `source` is one that is there."""

    name: str
    save: Callable[[str, str], list[str]]
    load: Callable[[str, str], list[str]] | None = None
    begin: Callable[[str], list[str]] | None = None


def synced(command: str) -> Callable[[str, str], list[str]]:
    """Return a shell's command with $1 and $2, after which what is at $2 is durable."""
    return lambda one, other: ["sh", "-ec", command + '; sync -f "$2"', "sh", one, other]


def sidecar(source: str, store: str) -> list[str]:
    return [SIDECAR, "bundle", "upload", source, "--repo", "bench", "--store", store]


PEERS = [
    Peer("sidecar", sidecar, lambda store, to: [SIDECAR, "bundle", "download", "bench", to, "--store", store]),
    Peer("cp + sync", synced('cp -a "$1" "$2"'), synced('cp -a "$1" "$2"')),
    Peer(
        "tar + sync",
        synced('mkdir -p "$2"; tar cf "$2"/t -C "$1" .'),
        synced('mkdir -p "$2"; tar xf "$1"/t -C "$2"'),
    ),
    Peer(
        "restic",
        lambda source, store: ["restic", "-q", "-r", store, "backup", source],
        lambda store, to: ["restic", "-q", "-r", store, "restore", "latest", "--target", to],
        lambda store: ["restic", "-q", "-r", store, "init"],
    ),
    Peer(
        "rclone + sync",
        synced('rclone copy --transfers 8 "$1" "$2"'),
        synced('rclone copy --transfers 8 "$1" "$2"'),
    ),
    Peer(
        "borg",
        lambda source, store: ["borg", "create", f"{store}::{time.time_ns()}", source],
        lambda store, to: [
            "sh",
            "-ec",
            'mkdir -p "$2"; cd "$2"; borg extract "$1::$(borg list --last 1 --short "$1")"',
            "sh",
            store,
            to,
        ],
        lambda store: ["borg", "init", "-e", "none", store],
    ),
]


class Bench:
    """The directory that everything is in, the sizes, and what came of it."""

    def __init__(self, top: str, sizes: Sizes) -> None:
        self.top, self.sizes = top, sizes
        self.results: Results = {}
        self.peers = [peer for peer in PEERS if peer.name == "sidecar" or shutil.which(peer.name.split()[0])]
        self.environment = os.environ | {
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": f"{top}/cache",
            "BORG_BASE_DIR": f"{top}/borg",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
            "RCLONE_CONFIG": f"{top}/rclone.conf",
            "LC_ALL": "C.UTF-8",
        }
        Path(top, "rclone.conf").touch()

    def run(self, work: str, who: str, command: list[str]) -> Taken:
        """Run a command, and note what it took."""
        begin = time.perf_counter()
        with subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            said = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            taken = time.perf_counter() - begin
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command} ended with {process.returncode}: {said.decode()[-2000:]}")
        found = self.results.setdefault((work, who), Taken())
        found.seconds.append(taken)
        found.cpu.append(usage.ru_utime + usage.ru_stime)
        found.rss = max(found.rss, usage.ru_maxrss)
        return found

    def quietly(self, command: list[str]) -> None:
        subprocess.run(command, env=self.environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @contextmanager
    def fresh(self, peer: Peer) -> Iterator[str]:
        """Yield a new store for a peer."""
        store = f"{self.top}/store"
        if peer.begin is not None:
            self.quietly(peer.begin(store))
        try:
            yield store
        finally:
            shutil.rmtree(store, ignore_errors=True)
            shutil.rmtree(f"{self.top}/cache", ignore_errors=True)
            shutil.rmtree(f"{self.top}/borg", ignore_errors=True)

    def save_and_load(self, work: str, source: str, *, again: Callable[[int], None] | None = None) -> None:
        """Have each peer save `source`, fetch it, and, where `again` changes it, save it again into the same store."""
        for number in range(self.sizes.rounds):
            for peer in self.peers:
                self.say(f"{work}, round {number + 1}: {peer.name}")
                with self.fresh(peer) as store:
                    self.run(work + " save", peer.name, peer.save(source, store))
                    if peer.load is not None:
                        self.run(work + " fetch", peer.name, peer.load(store, f"{self.top}/to"))
                        shutil.rmtree(f"{self.top}/to")
            if again is not None:
                self.second(again, source, number)

    def second(self, change: Callable[[int], None], source: str, number: int) -> None:
        """Have each peer that keeps versions save `source`, then, once it was changed, save it again."""
        keeping = [peer for peer in self.peers if peer.name in ("sidecar", "restic", "borg")]
        before = f"{self.top}/before"
        shutil.copytree(source, before, symlinks=True)
        for peer in keeping:
            with self.fresh(peer) as store:
                self.quietly(peer.save(source, store))
                size = bytes_of(store)
                change(number)
                self.run("C save", peer.name, peer.save(source, store)).growth.append(bytes_of(store) - size)
                shutil.rmtree(source)
                shutil.copytree(before, source, symlinks=True)
        shutil.rmtree(before)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def bytes_of(folder: str) -> int:
    """Return how many bytes the files below a folder have; 0 where there is none."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def write_files(folder: str, count: int, size: int, per_folder: int) -> None:
    for number in range(count):
        where = Path(folder, str(number // per_folder))
        where.mkdir(parents=True, exist_ok=True)
        with (where / str(number)).open("wb") as file:
            for done in range(0, size, 4 * MIB):
                file.write(os.urandom(min(4 * MIB, size - done)))


# --- the kinds of work -------------------------------------------------------------------------------------------------


def small_files(bench: Bench) -> None:
    source = f"{bench.top}/a"
    write_files(source, bench.sizes.small, 4 * KIB, 100)

    def change(number: int) -> None:
        chance = random.Random(number)
        for each in chance.sample(range(bench.sizes.small), bench.sizes.small // 100):
            Path(source, str(each // 100), str(each)).write_bytes(os.urandom(4 * KIB))

    bench.save_and_load("A", source, again=change)
    shutil.rmtree(source)


def large_files(bench: Bench) -> None:
    source = f"{bench.top}/b"
    write_files(source, bench.sizes.large, bench.sizes.large_bytes, 100)
    bench.save_and_load("B", source)
    shutil.rmtree(source)


def postgres(bench: Bench) -> None:
    """Save a stopped cluster, have rows updated at random, save it again, and so once more; ours is cut in pages."""
    cluster = Cluster(f"{bench.top}/pg", bench)
    keeping = [peer for peer in bench.peers if peer.name in ("restic", "borg")]
    cut = [sys.executable, HERE, "--save-pages", cluster.data]
    ours = Peer("sidecar", lambda _, store: [*cut, store])
    cluster.make(bench.sizes.scale)
    # Each round begins with the same cluster: what one update leaves to be tidied up is work of the next.
    bench.quietly(["cp", "-a", cluster.data, cluster.data + "-new"])
    for number in range(min(3, bench.sizes.rounds)):
        stores = {peer.name: f"{bench.top}/store-{peer.name}" for peer in (ours, *keeping)}
        for peer in (ours, *keeping):
            if peer.begin is not None:
                bench.quietly(peer.begin(stores[peer.name]))
        shutil.rmtree(cluster.data)
        bench.quietly(["cp", "-a", cluster.data + "-new", cluster.data])
        for work, share in (("D first", 0.0), ("D again", 0.0001), ("E again", 0.01)):
            if share:
                cluster.update(share)
            for peer in (ours, *keeping):
                bench.say(f"{work}, round {number + 1}: {peer.name}")
                size = bytes_of(stores[peer.name])
                taken = bench.run(work, peer.name, peer.save(cluster.data, stores[peer.name]))
                taken.growth.append(bytes_of(stores[peer.name]) - size)
        for store in stores.values():
            shutil.rmtree(store)
    shutil.rmtree(f"{bench.top}/pg")


class Cluster:
    """A Postgres cluster with the tables of pgbench, stopped but while it is worked on."""

    def __init__(self, top: str, bench: Bench) -> None:
        self.top, self.data, self._bench = top, f"{top}/data", bench
        self._bin = str(max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name)))
        os.mkdir(top)
        self._as = [] if os.getuid() else ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        if self._as:
            shutil.chown(top, "postgres", "postgres")

    def make(self, scale: int) -> None:
        self._run("initdb", "-D", self.data, "-A", "trust", "-U", "bench", "--no-sync")
        self._working(lambda: self._run("pgbench", "-q", "-i", "-s", str(scale), *self._connection()))

    def update(self, share: float) -> None:
        """Update a share of the rows, drawn at random."""
        change = f"update pgbench_accounts set abalance = abalance + 1 where random() < {share}"
        self._working(lambda: self._run("psql", "-q", "-c", change, *self._connection()))

    def _connection(self) -> list[str]:
        return ["-h", self.top, "-U", "bench", "postgres"]

    def _working(self, work: Callable[[], None]) -> None:
        options = (
            f"-c listen_addresses='' -c unix_socket_directories={self.top} -c fsync=off -c max_wal_size=64MB -c min_wal_size=32MB"
        )
        self._run("pg_ctl", "-D", self.data, "-w", "-l", f"{self.top}/log", "-o", options, "start")
        try:
            work()
        finally:
            self._run("pg_ctl", "-D", self.data, "-w", "-m", "fast", "stop")

    def _run(self, name: str, *arguments: str) -> None:
        self._bench.quietly([*self._as, f"{self._bin}/{name}", *arguments])


def save_pages(data: str, store: str) -> None:
    """The other program that this file is: what a battery does that knows which files are made of pages."""
    from sidecar.store import open_store

    def cut(path: str, size: int) -> int:
        if path.startswith("pg_wal/"):
            return 32 * PAGE  # few enough to be found again under the name that a recycled segment gets
        return PAGE if path.startswith(("base/", "global/")) and size >= PAGE else 0

    open_store(store).save(data, "bench", chunk_size=cut)


def google(bench: Bench) -> None:
    """Save to an emulated object store, beside gcsfs itself; in both, gcsfs is imported before the clock starts."""
    source = f"{bench.top}/g"
    write_files(source, bench.sizes.objects, 64 * KIB, 100)
    with emulators.google() as emulator:
        for number in range(bench.sizes.rounds):
            for who in ("sidecar", "gcsfs.put"):
                bench.say(f"G, round {number + 1}: {who}")
                told = json.dumps([who, source, emulator.url(f"{who}-{number}"), emulator.options])
                done = subprocess.run([sys.executable, HERE, "--save-google", told], check=True, capture_output=True, text=True)
                bench.results.setdefault(("G save", who), Taken()).seconds.append(float(done.stdout))
    shutil.rmtree(source)


def save_google(told: str) -> None:
    who, source, url, options = json.loads(told)
    import gcsfs

    from sidecar.store import open_store

    filesystem = gcsfs.GCSFileSystem(**options)
    filesystem.ls(emulators.BUCKET)
    begin = time.perf_counter()
    if who == "sidecar":
        open_store(url, **options).save(source, "bench")
    else:
        filesystem.put(source, url, recursive=True)
    print(time.perf_counter() - begin)


# --- what came of it ---------------------------------------------------------------------------------------------------


def ratio(results: Results, work: str, peer: str) -> float | None:
    ours, theirs = results.get((work, "sidecar")), results.get((work, peer))
    return ours.median / theirs.median if ours and theirs else None


def growth(results: Results, work: str, who: str) -> float | None:
    taken = results.get((work, who))
    return statistics.median(taken.growth) if taken and taken.growth else None


def targets(results: Results, sizes: Sizes) -> Iterator[tuple[str, float, float | None]]:
    """Yield what was promised, the limit, and what was found."""
    yield "A save / rclone", 0.4, ratio(results, "A save", "rclone + sync")
    yield "A save / restic", 0.35, ratio(results, "A save", "restic")
    yield "A fetch / restic", 0.3, ratio(results, "A fetch", "restic")
    yield "B save / cp + sync", 1.3, ratio(results, "B save", "cp + sync")
    yield "B fetch / cp + sync", 1.3, ratio(results, "B fetch", "cp + sync")
    yield "C save / restic", 0.3, ratio(results, "C save", "restic")
    grown, changed = growth(results, "C save", "sidecar"), sizes.small // 100 * 4 * KIB
    yield "C growth / bytes changed", 1.05, grown / changed if grown else None
    grown, theirs = growth(results, "D again", "sidecar"), growth(results, "D again", "restic")
    yield "D growth / restic's", 0.6, grown / theirs if grown and theirs else None
    rss = [taken.rss / KIB for (_, who), taken in results.items() if who == "sidecar" and taken.rss]
    yield "peak memory, MiB", 300, max(rss, default=None)
    yield "G save / gcsfs.put", 0.2, ratio(results, "G save", "gcsfs.put")


def report(bench: Bench, *, as_json: bool) -> None:
    if as_json:
        keyed = {f"{work}: {who}": vars(taken) | {"median": taken.median} for (work, who), taken in bench.results.items()}
        print(json.dumps(keyed))
        return
    told = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in told if line.startswith("model name")), "")
    kind = subprocess.run(["stat", "-f", "-c", "%T", bench.top], capture_output=True, text=True, check=True).stdout.strip()
    machine = f"{os.cpu_count()} x {cpu}, Linux {platform.release()}, Python {platform.python_version()}"
    print(f"{machine}; on {kind}; load {os.getloadavg()[0]:.1f}\n")
    print("| work | who | s | CPU s | MiB of memory | store grew by MiB |\n|---|---|---|---|---|---|")
    for (work, who), taken in sorted(bench.results.items(), key=lambda each: each[0][0]):
        cpu_s = f"{statistics.median(taken.cpu):.2f}" if taken.cpu else ""
        grown = f"{statistics.median(taken.growth) / MIB:.2f}" if taken.growth else ""
        print(f"| {work} | {who} | {taken.median:.2f} | {cpu_s} | {taken.rss // KIB or ''} | {grown} |")
    print("\n| target | at most | found | |\n|---|---|---|---|")
    for what, limit, found in targets(bench.results, bench.sizes):
        if found is not None:
            print(f"| {what} | {limit:g} | {found:.2f} | {'met' if found <= limit else 'missed'} |")


KINDS: dict[str, Callable[[Bench], None]] = {"A": small_files, "B": large_files, "D": postgres, "G": google}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less of everything: does it run?")
    parser.add_argument("--rounds", type=int, help="how often each is measured")
    parser.add_argument("--only", default="ABDG", help="which kinds of work; C goes with A")
    parser.add_argument("--peers", metavar="NAME,...", help="beside these alone, as in cp,restic")
    parser.add_argument("--at", default="/dev/shm" if os.path.isdir("/dev/shm") else None, help="the directory to work in")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save-pages", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--save-google", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save_pages:
        save_pages(*arguments.save_pages)
        return
    if arguments.save_google:
        save_google(arguments.save_google)
        return
    sizes = QUICK if arguments.quick else Sizes()
    if arguments.rounds:
        sizes = Sizes(**{**vars(sizes), "rounds": arguments.rounds})
    with tempfile.TemporaryDirectory(dir=arguments.at, prefix="bench-") as top:
        os.chmod(top, 0o755)
        bench = Bench(top, sizes)
        if arguments.peers:
            wanted = {"sidecar", *arguments.peers.split(",")}
            bench.peers = [peer for peer in bench.peers if peer.name.split()[0] in wanted]
        for kind in arguments.only.replace("C", ""):
            KINDS[kind](bench)
        report(bench, as_json=arguments.json)


if __name__ == "__main__":
    main()
