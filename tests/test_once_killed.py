"""Killed at any moment, whoever runs a program and the program itself: it has run at most once, and everyone is told the same.

Two ways of killing. At every step of the promise: before each statement that is given to the ledger, and before each other call
that changes what there is. And at random moments: the tool, the program, or both, as `sidecar once run` has them.

The short form of the second kills thirty times; the long form, `make test-long`, three hundred. A failure tells the seed.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from processes import BIN, Pod, children_of, forked

from sidecar import process
from sidecar.cli.main import COMMANDS, main
from sidecar.errors import OutcomeUnknown
from sidecar.once import Ledger, lease
from sidecar.state import Transaction

SIDECAR = str(BIN / "sidecar")
# Appends a byte, writes to both streams what is as large as several lots, and ends with 3.
PROGRAM = """\
printf x >> "$1"
echo begun
head -c 300000 /dev/zero
echo ended >&2
exit 3
"""
OUT, ERR = b"begun\n" + bytes(300_000), b"ended\n"
TOOL, CHILD, BOTH = "the tool", "the program", "both"


class Told(NamedTuple):
    """What a later caller is told; the status alone where nobody knows more."""

    status: int
    out: bytes = b""
    err: bytes = b""


class Trial:
    """One run that is killed: the state, the byte, and whoever asks later."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.state, self.byte = folder, folder / "state", folder / "byte"
        self.command = ["sh", "-c", PROGRAM, "sh", str(self.byte)]

    def call(self) -> None:
        """Run it as the command does, in this process."""
        os.environ["SIDECAR_STATE"] = str(self.state)
        for fd, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT, 0o600), fd)
        sys.argv = ["sidecar", "once", "run", "--name", "n", "--instance", "i", "--", *self.command]
        main()

    def ask(self) -> Told:
        """Ask later by the library; where nothing was claimed this runs it."""
        with Ledger(self.state) as ledger:
            try:
                got = ledger.run_once("n", self.command, instance="i")
                return Told(got.status, got.stdout, got.stderr)
            except OutcomeUnknown as error:
                return Told(error.status)

    def ask_by_command(self, pod: Pod) -> Told:
        """Ask later by the command, which has to answer before it hangs."""
        words = ("--name", "n", "--instance", "i", "--state", str(self.state), "--", *self.command)
        asked = pod.start(SIDECAR, "once", "run", *words)
        status = asked.wait()
        return Told(status) if status == 125 else Told(status, asked.out_bytes, asked.err_bytes)

    def bytes(self) -> int:
        return self.byte.stat().st_size if self.byte.exists() else 0

    def check(self, pod: Pod, statuses: tuple[int, ...], by_command: bool) -> int:
        """Check all that must hold after a kill, and return the status that everybody is told."""
        first = self.ask()
        told = {first, self.ask(), *([self.ask_by_command(pod)] if by_command else [])}
        assert told == {first}, [(each.status, len(each.out), each.err) for each in told]
        assert first.status in statuses
        if first.status == 3:
            assert first == Told(3, OUT, ERR)
            assert self.bytes() == 1
        else:
            assert OUT.startswith(first.out)
            assert self.bytes() <= 1
        return first.status


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with Pod(tmp_path) as pod:
        yield pod


# --- at every step -----------------------------------------------------------------------------------------------------


def die_at(step: int, work: Callable[[], object]) -> int:
    """Do `work`, but be killed before its step number `step`; return how many steps there are."""
    done = [0]

    def counted(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if done[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        done[0] += 1
        return call(*arguments, **named)

    execute = Transaction.execute
    Transaction.execute = lambda *arguments: counted(execute, *arguments)  # type: ignore[method-assign]
    for module, name in (
        *((os, name) for name in ("mkdir", "unlink", "pwrite", "ftruncate", "posix_fallocate", "fork", "open", "close")),
        (process, "spawn"),
        (lease, "take"),
        (lease, "drop"),
    ):
        setattr(module, name, partial(counted, getattr(module, name)))
    work()
    return done[0]


def ask_once(trial: Trial) -> None:
    """Run it by the library, without a thread, so that its steps are the same each time."""
    assert trial.ask().status == 3


def steps_of(trial: Trial) -> int:
    hear, tell = os.pipe()
    pid = forked(lambda: os.write(tell, str(die_at(-1, partial(ask_once, trial))).encode()))
    assert os.waitpid(pid, 0)[1] == 0
    found = int(os.read(hear, 100))
    os.close(hear)
    os.close(tell)
    return found


def check_every_step(pod: Pod, tmp_path: Path, some: Callable[[int], list[int]]) -> None:
    steps, ends = steps_of(Trial(tmp_path / "measured")), Counter[int]()
    assert steps > 20
    for step in some(steps):
        trial = Trial(tmp_path / f"step-{step}")
        pid = forked(partial(die_at, step, partial(ask_once, trial)))
        # What is read at once differs from time to time, and with it how many steps there are in the end.
        assert os.waitpid(pid, 0)[1] in (signal.SIGKILL, 0)
        ends[trial.check(pod, (3, 125), by_command=False)] += 1
    # Before the claim it is run by whoever asks later; between claim and end nobody knows.
    assert set(ends) == {3, 125}, ends


def test_killed_before_any_step_it_runs_at_most_once_and_everyone_is_told_the_same(pod: Pod, tmp_path: Path) -> None:
    check_every_step(pod, tmp_path, lambda steps: list(range(0, steps, max(1, steps // 25))))


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_killed_before_each_step_it_runs_at_most_once_and_everyone_is_told_the_same(pod: Pod, tmp_path: Path) -> None:
    check_every_step(pod, tmp_path, lambda steps: list(range(steps)))


# --- at random moments -------------------------------------------------------------------------------------------------


def program_of(tool: int) -> int | None:
    """Return the process that the tool has begun, where there is one by now."""
    return next(iter(children_of(tool)), None)


def kill(tool: int, what: str) -> None:
    """Kill the tool, the program, or both, as they are now."""
    program = program_of(tool) if what != TOOL else None
    if what in (TOOL, BOTH):
        os.kill(tool, signal.SIGKILL)
    if program is not None:
        try:
            os.killpg(program, signal.SIGKILL) if os.getpgid(program) == program else os.kill(program, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended by itself


# So that none that is forked is killed while it imports this.
importlib.import_module(COMMANDS["once"][0].partition(":")[0])


def length_of(trial: Trial) -> float:
    """Return how many seconds it takes when nobody is killed, from when the tool has been started on."""
    begun = time.monotonic()
    pid = forked(trial.call)
    os.waitpid(pid, 0)
    return time.monotonic() - begun


def run_campaign(pod: Pod, tmp_path: Path, kills: int, seed: int) -> Counter[str]:
    """Kill so many times, and return what callers were told how often."""
    whole, ends = length_of(Trial(tmp_path / "measured")), Counter[str]()
    for number in range(kills):
        chance = random.Random(f"{seed}/{number}")
        what, moment = chance.choice((TOOL, CHILD, BOTH)), whole * 1.2 * chance.random()
        print(f"seed {seed}/{number}: {what} after {moment:.4f} s of {whole:.4f}")
        trial = Trial(tmp_path / f"{number}")
        tool = forked(trial.call)
        time.sleep(moment)  # the moment is what is tried, not an event
        kill(tool, what)
        status = os.waitpid(tool, 0)[1]
        assert what == CHILD or os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL
        told = trial.check(pod, (3, 125, 137), by_command=number % 10 == 0)
        assert told != 125 or what != CHILD, "whoever runs it lived, and knows how it ended"
        ends[f"{what}: {told}"] += 1
    print(ends)
    return ends


def test_killed_at_some_moments_it_runs_at_most_once_and_everyone_is_told_the_same(pod: Pod, tmp_path: Path) -> None:
    run_campaign(pod, tmp_path, 30, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_killed_at_three_hundred_moments_it_runs_at_most_once_and_everyone_is_told_the_same(pod: Pod, tmp_path: Path) -> None:
    ends = run_campaign(pod, tmp_path, 300, seed=random.SystemRandom().randrange(1 << 32))
    # Else the moments were not those that matter.
    assert set(ends) >= {f"{TOOL}: 125", f"{BOTH}: 125", f"{TOOL}: 3", f"{CHILD}: 137"}, ends
