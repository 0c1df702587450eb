"""How fast a mounted bundle is, beside the plain directory that was saved: a table in Markdown, on stdout.

    python tests/bench/mount.py [DIRECTORY]        # where the trees and the store go; by default a temporary one in /dev/shm

Each figure is the median of ROUNDS. In every round the mount is new, and the plain directory is measured right before or after
by the same means, so only their ratio counts. *Cold*: this mount has read nothing yet; with a cache directory, the file is whole
in that. *Warm*: the second time. What lies below the mount, the store's objects, and the plain files are in the page cache, which
is the hardest to compare with; in the row *from disk* neither is (on a memory file system that row is left out).
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sidecar.store import open_store

ROUNDS = 5
FOLDERS, FILES, SMALL = 200, 100, 4096
LARGE = 512 << 20
SIDECAR = str(Path(sys.executable).parent / "sidecar")


def main() -> None:
    """Make the trees, measure, print."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else "/dev/shm") as folder:
        top = Path(folder)
        make_trees(top)
        store = open_store(f"file://{top}/store")
        for name in ("small", "large"):
            store.verify(store.save(top / name, name))
        rows = [*measure_small(top), *measure_large(top, "without a cache")]
        rows += measure_large(top, "whole in the cache", cache=True)
        if on_disk(top):
            cold, plain, _ = medians(top, "large", lambda point: read_large(point, evicted=top))
            rows.append(("sequential, without a cache, cold, from disk", "MiB/s", cold, plain))
    print("| | mount | plain | ratio |\n|---|---:|---:|---:|")
    for name, unit, mount, plain in rows:
        print(f"| {name} | {mount:,.0f} {unit} | {plain:,.0f} {unit} | {mount / plain:.2f} |")


def make_trees(top: Path) -> None:
    """20,000 files of 4 KiB, and one of half a GiB, of bytes that cannot be made smaller."""
    for folder in range(FOLDERS):
        (top / "small" / f"{folder:03}").mkdir(parents=True)
        for file in range(FILES):
            (top / "small" / f"{folder:03}" / f"{file:03}").write_bytes(os.urandom(SMALL))
    (top / "large").mkdir()
    with (top / "large" / "file").open("wb") as large:
        for _ in range(LARGE >> 23):
            large.write(random.randbytes(8 << 20))


Row = tuple[str, str, float, float]


def measure_small(top: Path) -> Iterator[Row]:
    """find(1), and opening, reading and closing every file."""
    yield ("`find -size` over 20,000 files, cold", "ms", *medians(top, "small", find)[:2])
    cold, plain, warm = medians(top, "small", read_small)
    yield "open + read 20,000 of 4 KiB, cold", "/s", cold, plain
    yield "open + read 20,000 of 4 KiB, warm", "/s", warm, plain


def measure_large(top: Path, how: str, *, cache: bool = False) -> Iterator[Row]:
    """Reading one large file from its beginning to its end."""
    if cache:
        fill(top)
    options = ("--cache", str(top / "cache")) if cache else ()
    cold, plain, warm = medians(top, "large", read_large, *options)
    yield f"sequential, {how}, cold", "MiB/s", cold, plain
    yield f"sequential, {how}, warm", "MiB/s", warm, plain


def medians(top: Path, name: str, measure: Callable[[Path], float], *options: str) -> tuple[float, float, float]:
    """Return the medians of the mount cold, of the plain directory, and of the mount warm."""
    cold, plain, warm = [], [], []
    for round_ in range(ROUNDS):
        with mounted(top, name, *options) as point:
            if round_ % 2:
                plain.append(measure(top / name))
            cold.append(measure(point))
            if not round_ % 2:
                plain.append(measure(top / name))
            warm.append(measure(point))
    return statistics.median(cold), statistics.median(plain), statistics.median(warm)


@contextmanager
def mounted(top: Path, name: str, *options: str) -> Iterator[Path]:
    """Mount a bundle with the command that users have."""
    point = top / "in"
    command = [SIDECAR, "bundle", "mount", name, str(point), "--store", f"file://{top}/store", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    if not process.stdout.readline():
        raise SystemExit(f"{name} could not be mounted")
    try:
        yield point
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def fill(top: Path) -> None:
    """Read everything once, so that it is whole in the cache, and return when that is vouched for."""
    with mounted(top, "large", "--cache", str(top / "cache")) as point:
        read_large(point)
        while not list((top / "cache").rglob("*.whole")):
            time.sleep(0.01)


def find(top: Path) -> float:
    """Return how many milliseconds it takes."""
    begun = time.perf_counter()
    subprocess.run(["find", top, "-type", "f", "-size", "+100"], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begun) * 1000


def read_small(top: Path) -> float:
    """Return how many files a second."""
    paths = [entry.path for folder in os.scandir(top) for entry in os.scandir(folder.path)]
    buffer = [bytearray(2 * SMALL)]
    begun = time.perf_counter()
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.readv(fd, buffer)
        os.close(fd)
    return len(paths) / (time.perf_counter() - begun)


def on_disk(top: Path) -> bool:
    """Say whether the page cache can be without what is in a directory."""
    return subprocess.run(["stat", "-fc", "%T", top], check=True, capture_output=True).stdout.strip() not in (b"tmpfs", b"ramfs")


def evict(top: Path) -> None:
    """Have nothing below a directory in the page cache, save what is mounted there."""
    os.sync()
    for path in (*(top / "store").rglob("*"), *(top / "large").rglob("*")):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def read_large(top: Path, *, evicted: Path | None = None) -> float:
    """Return how many MiB a second; `evicted` is what the page cache is to be without."""
    if evicted is not None:
        evict(evicted)
    buffer = [bytearray(1 << 20)]
    begun = time.perf_counter()
    fd = os.open(top / "file", os.O_RDONLY)
    while os.readv(fd, buffer):
        pass
    os.close(fd)
    return (LARGE >> 20) / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
