"""A pod whose source is mounted: the application reads it in place, whatever becomes of the battery."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from processes import BIN, HANG, LONG, Pod, Started, until

from sidecar.coordination.protocol import READY
from sidecar.mount import is_mounted
from sidecar.store import Store, open_store


class Job(Pod):
    """A pod around a store of files: `weather` is mounted at `in`, `out` is kept as `results`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.source, self.out = folder / "in", folder / "out"
        self.out.mkdir()
        self.store: Store = open_store(f"file://{folder}/store")
        made = folder / "made"
        made.mkdir()
        (made / "january.csv").write_text("1,2\n")
        self.store.save(made, "weather", label="latest")

    def __enter__(self) -> Self:
        return self

    def datamon(self, *more: str) -> Started:
        bring = f"bundle mount --repo weather --label latest --mount {self.source}"
        keep = f"bundle upload --path {self.out} --message m --repo results --label daily"
        return self.start(BIN / "wrap_datamon", "-c", self.coord, "--store", self.store.url, "-d", bring, "-d", keep, *more)

    def wrap_shell(self, command: str, *options: str) -> Started:
        return self.wrap("-b", "fuse", *options, "--", "sh", "-c", command)

    def hear_life(self, life: int) -> None:
        """Return when the battery is ready in this life."""
        record = self.record("fuse")
        until(
            lambda: (record := self.record("fuse")) is not None and (record.life, record.state) == (life, READY),
            f"life {life} is ready, after {record}",
            self,
        )


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    with Job(tmp_path) as job:
        yield job
    left = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(tmp_path) in line]
    for line in left:
        os.system(f"umount -l {line.split()[4]}")
    assert not left


def test_the_application_reads_a_mount_that_is_there_before_it_starts_and_gone_after_it_has_ended(job: Job) -> None:
    application = job.wrap_shell(f"cat {job.source}/january.csv > {job.out}/copy && grep -c {job.source} /proc/self/mountinfo")
    battery = job.datamon()
    assert application.wait() == 0
    assert battery.wait() == 0
    assert application.out == "1\n"
    assert not is_mounted(str(job.source))
    job.store.populate(job.store.resolve("results", label="daily"), job.folder / "again")
    assert (job.folder / "again" / "copy").read_text() == "1,2\n"


def test_the_signal_says_what_is_mounted_where(job: Job) -> None:
    job.datamon("--grace", "0")
    job.hear("mountdone")
    told: Any = json.loads((job.coord / "mountdone").read_text())["payload"]["sources"][0]
    bundle = job.store.resolve("weather")
    assert (told["mode"], told["path"], told["bundle"]) == ("mount", str(job.source), bundle.id)
    assert (told["files"], told["bytes"]) == (1, 4)
    job.started[-1].send(signal.SIGTERM)
    job.started[-1].wait()


def test_a_battery_that_is_killed_mounts_again_in_its_next_life_and_the_application_reads_on(job: Job) -> None:
    go = job.folder / "go"
    command = f"cat {job.source}/january.csv; until [ -e {go} ]; do sleep 0.05; done; cat {job.source}/january.csv"
    application = job.wrap_shell(command, "--rejoin-timeout", str(HANG))
    battery = job.datamon()
    until(lambda: application.out == "1,2\n", "the first reading", job)
    battery.kill()
    job.datamon()
    job.hear_life(2)
    go.touch()
    assert application.wait() == 0
    assert application.out == "1,2\n1,2\n"
    assert job.started[-1].wait() == 0


@pytest.mark.parametrize("state", ["before it is ready", "ready", "while the application runs"])
def test_sigterm_leaves_no_mount(state: str, job: Job) -> None:
    battery = job.datamon("--grace", "0")
    match state:
        case "ready":
            job.hear("mountdone")
        case "while the application runs":
            job.wrap_shell(f"sleep {LONG}")
            job.hear_state("running")
    battery.send(signal.SIGTERM)
    battery.wait()
    assert not is_mounted(str(job.source))
