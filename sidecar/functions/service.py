"""Functions: source code that was just handed over is run, by more than one worker, and the best of them answers.

A Service belongs to one event loop, and to the thread that runs it. Each worker that runs at a time has a user of its own, from
`first_user` on, if the caller is root: limits on processes count those of a user. Who has which is decided by names of sockets,
which nobody on this machine has twice, and which the kernel takes back from the dead.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sidecar.errors import DEADLINE, UNAVAILABLE, ConfigurationError, ParametersError, SidecarError
from sidecar.functions.answer import MOST, MOST_WORKERS, Answer, Asked, Limits, Ran, faults
from sidecar.functions.hedge import Bucket, Hedge
from sidecar.functions.runtimes import Runtime, choose
from sidecar.functions.worker import Worker, machine

FIRST_USER = 60_000
USERS = 5_000
_PROGRAMS = {"bwrap": "bubblewrap", "setpriv": "util-linux", "prlimit": "util-linux"}


class Full(SidecarError):
    """As many calls as may run at a time do; another one may be tried in `seconds`."""

    status = DEADLINE

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"as many calls as may run at a time do; try again in {seconds:g} s")


class NobodyAnswered(SidecarError):
    """All workers of a call failed, none of which is the program's doing; `workers` says how each did."""

    status = UNAVAILABLE

    def __init__(self, workers: Sequence[Ran]) -> None:
        self.workers = tuple(workers)
        super().__init__("no worker could run it: " + "; ".join(f"{each.worker}: {each.reason}" for each in workers))


class Service:
    """Runs what is asked for in `runtimes`, at most `most` calls at a time (0: as many as come), under `limits` at most.

    ConfigurationError where this machine lacks what confines workers: nothing is ever run unconfined.
    """

    def __init__(self, runtimes: Sequence[Runtime], most: int = 0, limits: Limits = MOST, first_user: int = FIRST_USER) -> None:
        missing = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
        if missing:
            raise ConfigurationError(f"functions need what is missing here: apt-get install {' '.join(dict.fromkeys(missing))}")
        self.runtimes = tuple(runtimes)
        self.most, self.limits = most, limits
        self.running = 0
        self._machine = machine(str(shutil.which("bwrap")), None if os.geteuid() else first_user)
        self._bucket = Bucket()
        self._first_user = first_user
        self._next_user = os.getpid() % USERS

    async def call(self, runtime: str, asked: Asked) -> Answer:
        """Return what came of running a source in `runtime`, `language` or `language:version`.

        SourceMissing where there is no such runtime; ParametersError with all that is wrong with what is asked; Full;
        NobodyAnswered.
        """
        found = choose(self.runtimes, runtime)
        if wrong := faults(asked, self.limits):
            raise ParametersError(wrong)
        if self.most and self.running >= self.most:
            raise Full(1.0)
        self.running += 1
        try:
            return await self._hedged(found, asked)
        finally:
            self.running -= 1

    async def _hedged(self, runtime: Runtime, asked: Asked) -> Answer:
        hedge = Hedge(min(asked.workers, MOST_WORKERS), asked.delay, lambda: self._bucket.take(time.monotonic()))
        workers: list[Worker] = []
        tasks: set[asyncio.Task[Ran]] = set()
        try:
            while not (now := hedge.next(time.monotonic())).done:
                for _ in range(now.begin):
                    workers.append(self._worker(len(workers) + 1, runtime, asked))
                    tasks.add(asyncio.create_task(self._run(workers[-1])))
                if now.begin:
                    continue
                wait = None if now.until is None else max(0.0, now.until - time.monotonic())
                ended, tasks = await asyncio.wait(tasks, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                for each in ended:
                    hedge.ended(each.result())
        finally:
            # Before anything is answered, nothing is left of those who lost.
            for worker in workers:
                worker.end()
            lost = await asyncio.gather(*tasks)
        ran = sorted((*hedge.ran, *lost), key=lambda each: each.worker)
        if now.won is None:
            raise NobodyAnswered(ran)
        return Answer(runtime.language, runtime.version, now.won, tuple(ran))

    async def _run(self, worker: Worker) -> Ran:
        with self._user() as user:
            worker.user = user
            return await worker.run()

    def _worker(self, number: int, runtime: Runtime, asked: Asked) -> Worker:
        return Worker(number, asked, runtime.script, self._machine)

    @contextmanager
    def _user(self) -> Iterator[int | None]:
        """Give a user that no other worker of this machine has meanwhile; None where the caller has no say in that."""
        if os.geteuid() != 0:
            yield None
            return
        with socket.socket(socket.AF_UNIX) as name:
            for _ in range(USERS):
                self._next_user = (self._next_user + 1) % USERS
                user = self._first_user + self._next_user
                try:
                    name.bind(f"\0sidecar-function-{user}")
                    break
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
            else:
                raise Full(1.0)
            yield user
