"""A program runs at most once, and whoever asks again gets what came of it: by the command and by the library alike.

The programs are real, and so are their callers, their deaths, the full disks and the namespaces. What a program does before a
test lets it go on is awaited by a fifo that it reads from.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import BIN, HANG, LONG, PID_1, Pod, Started, children_of, forked, gone, parent_of, state_of, unshare, until

from sidecar import process
from sidecar.errors import DeadlinePassed, OutcomeUnknown, SourceMissing, Unreachable, UsageError
from sidecar.once import Ledger
from sidecar.once.asked import ask, expand
from sidecar.once.claim import Claim
from sidecar.once.facts import RUNNING, UNKNOWN, OtherRun, Piece, Run, moment
from sidecar.once.instance import instance_of
from sidecar.once.recorder import OFTEN, Recorder
from sidecar.once.run import follow
from sidecar.state import FILE, State
from sidecar.values import replace

SIDECAR = str(BIN / "sidecar")
INSTANCE = "here"


class Answer(NamedTuple):
    """What a caller gets: the exit status, stdout and stderr."""

    status: int
    out: bytes
    err: bytes


class Asking:
    """Callers of `sidecar once`, on one state folder, in one instance."""

    def __init__(self, pod: Pod) -> None:
        self.pod, self.state = pod, pod.file("state")
        self.env = {"SIDECAR_STATE": str(self.state), "POD_UID": "", "CONTAINER_NAME": ""}

    def words(self, name: str, *command: str, options: Sequence[str] = ()) -> list[str]:
        """Return the words of `sidecar once run`."""
        return [SIDECAR, "once", "run", "--name", name, "--instance", INSTANCE, *options, "--", *command]

    def run(self, name: str, *command: str, options: Sequence[str] = (), **how: Any) -> Answer:
        """Return the answer to `sidecar once run`."""
        return self.answer(*self.words(name, *command, options=options), **how)

    def tell(self, what: str, *words: str) -> Answer:
        """Return the answer to another command of `sidecar once`."""
        where = () if what in ("list", "prune") else ("--instance", INSTANCE)
        return self.answer(SIDECAR, "once", what, *where, *words)

    def answer(self, *words: str, env: dict[str, str] | None = None, **how: Any) -> Answer:
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": HANG, **how}
        if "input" not in how:
            how["stdin"] = subprocess.DEVNULL
        ran = subprocess.run(words, env={**os.environ, **self.env, **(env or {})}, **how)
        return Answer(ran.returncode, ran.stdout, ran.stderr)

    def show(self, name: str) -> dict[str, Any]:
        """Return what `show --json` tells."""
        found: dict[str, Any] = json.loads(self.tell("show", name, "--json").out)
        return found

    def start(self, name: str, *command: str, options: Sequence[str] = (), **how: Any) -> Started:
        """Start `sidecar once run`."""
        return self.pod.start(*self.words(name, *command, options=options), env=self.env, **how)

    def start_held(self, name: str, script: str = "echo one", after: str = "echo two; exit 7", **how: Any) -> Started:
        """Start a program that does `script`, is held until `let_go`, and does what comes `after`; return when it is held."""
        started = self.start(name, "sh", "-c", self.held(name, script, after), **how)
        self.pod.hear_file(f"{name}.held")
        return started

    def held(self, name: str, script: str = "echo one", after: str = "echo two; exit 7") -> str:
        fifo = self.pod.file(f"{name}.fifo")
        if not fifo.exists():
            os.mkfifo(fifo)
        return f"{script}; : > {self.pod.file(name)}.held; read line < {fifo}; {after}"

    def let_go(self, name: str) -> None:
        with self.pod.file(f"{name}.fifo").open("w") as file:
            file.write("\n")

    def follow_advice(self, told: str) -> None:
        """Do what a refusal says is to be done for another run."""
        advice = re.search(r"\(for another run: (sidecar once forget .*)\)", told)
        assert advice is not None, told
        done = self.answer("sh", "-c", advice[1], env={"PATH": f"{BIN}:{os.environ['PATH']}"})
        assert done.status == 0, done.err

    def kill_owner(self, name: str, **how: Any) -> None:
        """Have a run under way whose owner was killed."""
        self.start_held(name, **how).kill()

    def count(self, name: str = "count") -> int:
        """Return how many bytes programs have appended."""
        path = self.pod.file(name)
        return path.stat().st_size if path.exists() else 0

    def append(self, name: str = "count") -> str:
        """Return what a shell does to append a byte."""
        return f"printf x >> {self.pod.file(name)}"

    def ledger(self) -> Ledger:
        return Ledger(self.state)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with Pod(tmp_path) as pod:
        yield pod


@pytest.fixture
def once(pod: Pod) -> Asking:
    return Asking(pod)


@pytest.fixture
def ledger(once: Asking) -> Iterator[Ledger]:
    with once.ledger() as ledger:
        yield ledger


# --- once --------------------------------------------------------------------------------------------------------------


# As many callers as it is told, each a process of its own: they call at once, and leave what they got in a file each.
CALLERS = """
import os, sys
from pathlib import Path
from sidecar.once import Ledger
state, folder, first, last, script = sys.argv[1:]
waiting, release = os.pipe()
for number in range(int(first), int(last)):
    if os.fork() == 0:
        os.close(release)
        os.read(waiting, 1)
        with Ledger(state) as ledger:
            got = ledger.run_once("n", ["sh", "-c", script], instance="here")
            answer = ((got.status, got.stdout, got.stderr), got.started_at, got.finished_at)
        Path(folder, f"answer-{number}").write_text(repr(answer))
        os._exit(0)
os.close(release)
sys.exit(any(os.wait()[1] for _ in range(int(first), int(last))))
"""


def test_two_hundred_callers_have_it_run_once_and_get_one_answer(once: Asking, pod: Pod) -> None:
    """Forty by the command and a hundred and sixty by the library, which call at once."""
    script = once.held("n", f"{once.append()}; printf 'out\\377\\n'; echo err >&2", "exit 3")
    by_command = [once.start("n", "sh", "-c", script) for _ in range(10)]
    by_library = [
        pod.python(CALLERS, once.state, pod.folder, first, last, script) for first, last in (("0", "80"), ("80", "160"))
    ]
    by_command += [once.start("n", "sh", "-c", script) for _ in range(30)]
    pod.hear_file("n.held")
    once.let_go("n")
    one = (3, b"out\xff\n", b"err\n")
    assert [each.wait() for each in by_library] == [0, 0]
    assert {(each.wait(), each.out_bytes, each.err_bytes) for each in by_command} == {one}
    answers = {pod.file(f"answer-{number}").read_text() for number in range(160)}
    assert len(answers) == 1
    assert answers.pop().startswith(repr((one,))[:-2])
    assert once.count() == 1


def test_another_instance_and_another_name_are_other_runs(once: Asking) -> None:
    command = ("sh", "-c", once.append())
    for name, instance in (("a", "i"), ("a", "j"), ("b", "i"), ("a", "i")):
        assert once.run(name, *command, options=["--instance", instance]).status == 0
    assert once.count() == 3


@pytest.mark.parametrize(
    ("environment", "coordination", "expected"),
    [
        ({"POD_UID": "p", "CONTAINER_NAME": "c"}, "", "p/c"),
        ({"POD_UID": "p", "CONTAINER_NAME": "c"}, "id", "p/c"),
        ({"POD_UID": "p"}, "id", "coordination:id"),
        ({"CONTAINER_NAME": "c"}, "id", "coordination:id"),
        ({"POD_UID": "", "CONTAINER_NAME": "c"}, "id", "coordination:id"),
    ],
)
def test_the_instance_is_the_container_of_a_pod_else_the_coordination_directory(
    environment: dict[str, str], coordination: str, expected: str
) -> None:
    assert instance_of(environment, coordination) == expected


def test_the_instance_is_the_host_where_nothing_else_is_known() -> None:
    assert re.fullmatch(r"host:.+", instance_of({}))
    assert instance_of({}) == instance_of({"POD_UID": "p"})


def test_the_command_takes_the_instance_from_the_same_places(once: Asking, pod: Pod) -> None:
    command = [SIDECAR, "once", "run", "--json", "--name", "n"]
    in_pod = {"POD_UID": "uid", "CONTAINER_NAME": "main"}
    said = [
        json.loads(once.answer(*command, *words, "--", "true", env=env).out)["instance"]
        for words, env in (((), in_pod), ((), {}), (("-c", str(pod.coord)), {}), (("-c", str(pod.coord)), {}))
    ]
    assert said[0] == "uid/main"
    assert said[1] == instance_of({})
    assert said[2].startswith("coordination:")
    assert said[3] == said[2]


@pytest.mark.parametrize("name", ["", "x" * 251, "line\nfeed", "esc\x1b[0m", "nul\x00"])
def test_what_is_no_name_is_misuse(ledger: Ledger, name: str) -> None:
    for instance, run in ((INSTANCE, name), (name, "n")):
        with pytest.raises(UsageError, match="is no name for"):
            ledger.run_once(run, ["true"], instance=instance)
    assert ledger.runs() == []


# --- while it runs -----------------------------------------------------------------------------------------------------


def test_a_second_caller_follows_what_it_writes_as_it_comes_and_ends_as_it_does(once: Asking, pod: Pod) -> None:
    first = once.start_held("n", f"{once.append()}; echo one; echo two >&2", "echo three; exit 7")
    second = once.start("n", "sh", "-c", once.held("n", f"{once.append()}; echo one; echo two >&2", "echo three; exit 7"))
    for caller in (first, second):
        until(lambda caller=caller: (caller.out, caller.err) == ("one\n", "two\n"), "it is passed on", pod)  # type: ignore[misc]
    assert second.running
    once.let_go("n")
    assert [(each.wait(), each.out, each.err) for each in (first, second)] == [(7, "one\nthree\n", "two\n")] * 2
    assert once.count() == 1


def test_whoever_does_not_wait_is_told_that_it_is_running(once: Asking, ledger: Ledger) -> None:
    once.start_held("n")
    command = ("sh", "-c", once.held("n"))
    found = once.run("n", *command, options=["--no-wait"])
    assert found.status == 75
    assert found.out == b""
    assert b"n is running (process " in found.err
    with pytest.raises(DeadlinePassed):
        ledger.run_once("n", command, instance=INSTANCE, wait=False)
    once.let_go("n")
    assert ledger.run_once("n", command, instance=INSTANCE).status == 7
    assert once.run("n", *command, options=["--no-wait"]) == Answer(7, b"one\ntwo\n", b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_whoever_follows_ends_nobody_else(once: Asking, pod: Pod, number: int) -> None:
    first = once.start_held("n")
    second = once.start("n", "sh", "-c", once.held("n"))
    until(lambda: second.out == "one\n", "it follows", pod)
    second.send(number)
    assert second.wait() in (-number, 128 + number)
    assert first.running
    once.let_go("n")
    assert (first.wait(), first.out) == (7, "one\ntwo\n")


@pytest.mark.parametrize("what", ["run", "logs"])
def test_whoever_follows_as_the_init_of_a_container_ends_with_the_signal_that_it_gets(once: Asking, pod: Pod, what: str) -> None:
    """To PID 1 signals do nothing by themselves."""
    first = once.start_held("n")
    words = once.words("n", "sh", "-c", once.held("n"))
    if what == "logs":
        words = [SIDECAR, "once", "logs", "n", "--instance", INSTANCE, "--follow"]
    second = pod.start(*PID_1, *words, env=once.env)
    until(lambda: second.out == "one\n", "it follows", pod)
    (init,) = children_of(second.pid)
    os.kill(init, signal.SIGTERM)
    assert second.wait() == 128 + signal.SIGTERM
    assert first.running
    once.let_go("n")
    assert (first.wait(), first.out) == (7, "one\ntwo\n")


def test_whoever_follows_a_run_whose_owner_is_killed_is_told_that_its_outcome_is_unknown(once: Asking, pod: Pod) -> None:
    first = once.start_held("n")
    second = once.start("n", "sh", "-c", once.held("n"))
    until(lambda: second.out == "one\n", "it follows", pod)
    first.kill()
    assert second.wait() == 125
    assert "its outcome is unknown" in second.err


def test_a_run_that_is_forgotten_while_it_is_followed_is_unknown_to_whoever_follows(ledger: Ledger) -> None:
    claim = claimed(ledger)
    claim.withdraw()
    with pytest.raises(OutcomeUnknown, match="was forgotten while it was followed"):
        follow(ledger, claim.run, None)
    assert ledger.runs() == []


def test_whoever_follows_by_the_command_is_told_that_the_run_was_forgotten(once: Asking, pod: Pod, ledger: Ledger) -> None:
    first = once.start_held("n")
    second = once.start("n", "sh", "-c", once.held("n"))
    until(lambda: second.out == "one\n", "it follows", pod)
    with ledger.state.write() as transaction:  # `forget` refuses what is running
        transaction.execute("DELETE FROM run")
    assert second.wait() == 125
    assert "n was forgotten while it was followed" in second.err
    assert first.running
    once.let_go("n")
    assert first.wait() == 7


def test_a_run_that_is_forgotten_while_it_is_replayed_does_not_look_whole(once: Asking, ledger: Ledger) -> None:
    script = "for i in $(seq 200); do echo $i; echo $i >&2; sleep 0.001; done"
    run = ledger.run_once("n", ["sh", "-c", script], instance=INSTANCE).run
    pieces: list[Piece] = []

    def forget_and_keep(piece: Piece) -> None:
        if not pieces:
            with once.ledger() as another:
                another.forget(INSTANCE, "n")
        pieces.append(piece)

    with pytest.raises(OutcomeUnknown, match="was forgotten while it was followed"):
        follow(ledger, run, forget_and_keep)
    assert 0 < sum(len(piece.bytes) for piece in pieces) < run.stdout.kept + run.stderr.kept


def test_a_reader_that_goes_away_ends_whoever_follows_and_nobody_else(once: Asking, pod: Pod) -> None:
    first = once.start_held("n", after="head -c 1000000 /dev/zero; exit 7")
    read, write = os.pipe()
    second = once.start("n", "sh", "-c", once.held("n", after="head -c 1000000 /dev/zero; exit 7"), stdout=write)
    os.close(write)
    assert os.read(read, 100) == b"one\n"
    os.close(read)
    once.let_go("n")
    assert second.wait() == 141
    assert (first.wait(), len(first.out_bytes)) == (7, 1_000_004)


# --- what is given back: how it ended ----------------------------------------------------------------------------------


ENDS = [
    (("true",), 0, 0, 0),
    (("sh", "-c", "exit 3"), 3, 3, 0),
    (("sh", "-c", "exit 255"), 255, 255, 0),
    (("sh", "-c", "kill -TERM $$"), 143, None, 15),
    (("sh", "-c", "kill -KILL $$"), 137, None, 9),
    (("sh", "-c", "kill -SEGV $$"), 139, None, 11),
    (("sh", "-c", "kill -34 $$"), 162, None, 34),
]


@pytest.mark.parametrize(("command", "status", "code", "number"), ENDS, ids=[str(end[1]) for end in ENDS])
def test_how_it_ended_is_given_back(ledger: Ledger, command: tuple[str, ...], status: int, code: int | None, number: int) -> None:
    for restored in (False, True):
        result = ledger.run_once("n", command, instance=INSTANCE)
        assert (result.status, result.exit_code, result.signal, result.state) == (status, code, number, "finished")
        assert result.restored is restored


@pytest.mark.parametrize(("command", "status"), [(("sh", "-c", "exit 3"), 3), (("sh", "-c", "kill -KILL $$"), 137)])
def test_the_command_ends_as_it_did(once: Asking, command: tuple[str, ...], status: int) -> None:
    assert [once.run("n", *command).status for _ in range(2)] == [status] * 2


@pytest.mark.parametrize("status", [126, 127])
def test_what_could_not_be_begun_is_not_tried_again(once: Asking, pod: Pod, ledger: Ledger, status: int) -> None:
    command = pod.file("program")
    if status == 126:
        command.write_text("#!/bin/sh\nexit 0\n")
    answers = [once.run("n", str(command))]
    command.write_text(f"#!/bin/sh\n{once.append()}\n")
    command.chmod(0o755)
    answers.append(once.run("n", str(command)))
    assert answers[0] == answers[1]
    assert answers[0].status == status
    assert (b"not found" if status == 127 else b"cannot be executed") in answers[0].err
    result = ledger.run_once("n", [str(command)], instance=INSTANCE)
    assert (result.state, result.status, result.started_at, result.stdout) == ("failed-to-start", status, None, b"")
    assert once.count() == 0


def test_a_directory_in_which_it_cannot_run_is_no_start(ledger: Ledger, tmp_path: Path) -> None:
    result = ledger.run_once("n", ["true"], instance=INSTANCE, directory=str(tmp_path / "missing"))
    assert (result.state, result.status) == ("failed-to-start", 126)
    assert "cannot be the working directory" in result.run.exit.reason


@pytest.mark.parametrize(
    ("options", "command", "status"),
    [((), b"/nowhere\xff", 127), (("--directory", b"/nowhere\xff"), b"true", 126)],
    ids=["the command", "the directory"],
)
def test_what_cannot_be_begun_is_told_each_time_also_where_its_name_is_no_unicode(
    once: Asking, options: tuple[Any, ...], command: bytes, status: int
) -> None:
    words = [os.fsdecode(word) for word in options]
    answers = [once.run("n", os.fsdecode(command), options=words) for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0].status == status
    assert b"sidecar: /nowhere" in answers[0].err
    assert once.show("n")["state"] == "failed-to-start"
    where = words[1] if words else None
    with once.ledger() as ledger:
        results = [ledger.run_once("m", [os.fsdecode(command)], instance=INSTANCE, directory=where) for _ in range(2)]
    assert len({result.run.exit for result in results}) == 1


def test_the_directory_is_the_same_however_the_library_is_told_it(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "place" / "place").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    first = ledger.run_once("n", ["pwd"], instance=INSTANCE, directory="place")
    assert (first.directory, first.stdout.decode()) == (str(tmp_path / "place"), f"{tmp_path}/place\n")
    monkeypatch.chdir("place")
    assert ledger.run_once("n", ["pwd"], instance=INSTANCE, directory=str(tmp_path / "place")).restored
    with pytest.raises(OtherRun, match="the working directory is"):
        ledger.run_once("n", ["pwd"], instance=INSTANCE, directory="place")


def test_nothing_stays_open_of_runs_that_are_over(ledger: Ledger) -> None:
    for number, command in enumerate((["true"], ["/nowhere"], ["true"], ["/nowhere"])):
        ledger.run_once(str(number), command, instance=INSTANCE)
        if number == 1:
            before = os.listdir("/proc/self/fd")
    assert os.listdir("/proc/self/fd") == before


# --- what is given back: what it wrote ---------------------------------------------------------------------------------

# Writes its seed's bytes: a MiB to stdout and less to stderr, in pieces of any size, one after the other.
INTERLEAVED = """
import os, random, sys
chance = random.Random(int(sys.argv[1]))
out = chance.randbytes(1 << 20)
err = chance.randbytes(1 << 18)
while out or err:
    if out and (not err or chance.random() < 0.7):
        out = out[os.write(1, out[: chance.choice((1, 7, 4096, 5000, 65536, 100000))]) :]
    else:
        err = err[os.write(2, err[: chance.choice((1, 3, 4096, 10000))]) :]
sys.exit(3)
"""


def test_a_mebibyte_of_any_bytes_on_both_streams_is_given_back_as_it_was_read(once: Asking, ledger: Ledger) -> None:
    command = (sys.executable, "-ISc", INTERLEAVED, "5")
    chance = random.Random(5)
    out, err = chance.randbytes(1 << 20), chance.randbytes(1 << 18)
    first = once.run("n", *command, stderr=subprocess.STDOUT)
    assert first.status == 3
    assert len(first.out) == len(out) + len(err)
    # Where both go to one place, they come in the order in which they did the first time.
    assert once.run("n", *command, stderr=subprocess.STDOUT) == first
    assert once.run("n", *command) == Answer(3, out, err)
    run = ledger.get(INSTANCE, "n")
    pieces = list(ledger.output(run))
    assert b"".join(piece.bytes for piece in pieces) == first.out
    assert len({piece.stream for piece in pieces}) == 2
    assert [piece.at for piece in pieces] == sorted(piece.at for piece in pieces)
    assert run.started <= pieces[0].at <= pieces[-1].at <= run.finished
    assert (run.stdout.total, run.stdout.kept) == (len(out), len(out))
    assert run.cut == ""
    for stream, expected in (("--stdout", out), ("--stderr", err)):
        logged = once.tell("logs", "n", stream)
        assert (logged.out if stream == "--stdout" else logged.err) == expected
        assert not (logged.err if stream == "--stdout" else logged.out)


def test_what_is_written_line_by_line_on_both_streams_keeps_its_order(once: Asking, ledger: Ledger) -> None:
    # Each line is awaited before the next is written, so that there is one order.
    script = "for i in 1 2 3 4 5; do echo out $i; sleep 0.02; echo err $i >&2; sleep 0.02; done"
    once.run("n", "sh", "-c", script)
    lines = b"".join(piece.bytes for piece in ledger.output(ledger.get(INSTANCE, "n"))).decode().splitlines()
    assert lines == [f"{stream} {i}" for i in range(1, 6) for stream in ("out", "err")]


def test_what_is_kept_of_a_stream_is_capped_and_that_is_said(once: Asking) -> None:
    command = ("sh", "-c", "head -c 5000 /dev/zero; echo all >&2; exit 3")
    assert once.run("n", *command, options=["--keep", "1000B"]) == Answer(3, bytes(5000), b"all\n")
    again = once.run("n", *command)
    assert (again.status, again.out) == (3, bytes(1000))
    assert again.err.startswith(b"all\n")
    assert b"not all that n wrote is kept" in again.err
    shown = once.show("n")
    assert shown["stdout"] == {"bytes": 5000, "kept": 1000}
    assert shown["stderr"] == {"bytes": 4, "kept": 4}
    assert "1000 bytes" in shown["cut"]
    assert b"not all" in once.tell("logs", "n").err


def test_the_cap_is_on_each_stream_to_the_byte(ledger: Ledger) -> None:
    command = ["sh", "-c", "for i in 1 2 3; do printf 12345; printf 678 >&2; done"]
    result = ledger.run_once("n", command, instance=INSTANCE, limit=9)
    assert (result.stdout, result.stderr) == (b"123451234", b"678678678")
    assert (result.run.stdout.total, result.run.stdout.kept) == (15, 9)
    whole = ledger.run_once("m", command, instance=INSTANCE, limit=15)
    assert (whole.stdout, whole.run.cut) == (b"12345" * 3, "")


def test_a_program_left_behind_that_never_stops_writing_is_not_read_for_ever(once: Asking, pod: Pod) -> None:
    script = f"yes & echo $! > {pod.file('yes')}; head -c 100000 /dev/zero; exit 4"
    first = once.run("n", "sh", "-c", script)
    assert first.status == 4
    assert first.out.count(b"\0") == 100_000
    assert once.run("n", "sh", "-c", script) == first
    until(lambda: gone(int(pod.file("yes").read_text())), "nobody reads what it writes", pod)


def test_what_a_program_left_behind_writes_later_is_not_waited_for(ledger: Ledger) -> None:
    result = ledger.run_once("n", ["sh", "-c", f"sleep {LONG} & echo $!; exit 4"], instance=INSTANCE)
    os.kill(int(result.stdout), signal.SIGKILL)
    assert result.status == 4


# --- what is given back: when, and with what ---------------------------------------------------------------------------


def test_its_times_are_given_back_to_the_microsecond(once: Asking, ledger: Ledger) -> None:
    before = datetime.now(UTC)
    first = json.loads(once.run("n", "true", options=["--json"]).out)
    after = datetime.now(UTC)
    again = json.loads(once.run("n", "true", options=["--json"]).out)
    shown = once.show("n")
    assert (first["restored"], again["restored"]) == (False, True)
    times = ("claimed_at", "started_at", "finished_at")
    for each in times:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first[each])
        assert first[each] == again[each] == shown[each]
    claimed, started, finished = (datetime.fromisoformat(first[each]) for each in times)
    assert before <= claimed <= started <= finished <= after
    result = ledger.run_once("n", ["true"], instance=INSTANCE)
    assert (result.started_at, result.finished_at) == (started, finished)


@pytest.mark.parametrize(
    ("at", "text"),
    [(0, "1970-01-01T00:00:00.000000Z"), (1_000_001, "1970-01-01T00:00:01.000001Z"),
     (1_795_225_442_118_233, "2026-11-21T01:44:02.118233Z")],
)  # fmt: skip
def test_a_time_is_written_as_rfc_3339_has_it(at: int, text: str) -> None:
    assert moment(at) == text


def test_its_effective_arguments_environment_and_directory_are_kept(once: Asking, pod: Pod, ledger: Ledger) -> None:
    place = pod.file("place")
    place.mkdir()
    options = ["-e", "A=1", "-e", "B=$(A)2-$(INHERITED)", "-e", "INHERITED", "--directory", str(place)]
    script = 'echo "$A $B $INHERITED $1"; pwd'
    command = ("sh", "-c", script, "sh", "$(B) $$(B) $(NOBODY)")
    found = once.run("n", *command, options=options, env={"INHERITED": "i"})
    assert found == Answer(0, f"1 12-i i 12-i $(B) $(NOBODY)\n{place}\n".encode(), b"")
    shown = once.show("n")
    assert shown["command"] == ["sh", "-c", script, "sh", "12-i $(B) $(NOBODY)"]
    assert shown["environment"] == {"A": "1", "B": "12-i", "INHERITED": "i"}
    assert shown["directory"] == str(place)
    result = ledger.get(INSTANCE, "n")
    assert result.command == tuple(shown["command"])


def test_what_is_inherited_is_there_for_it_but_does_not_count(once: Asking) -> None:
    command = ("sh", "-c", "echo $INHERITED")
    assert once.run("n", *command, env={"INHERITED": "one"}).out == b"one\n"
    assert once.run("n", *command, env={"INHERITED": "two"}).out == b"one\n"
    assert once.show("n")["environment"] == {}


def test_arguments_and_values_are_any_bytes(once: Asking) -> None:
    argument = os.fsdecode(b"\xff \n'\"")
    command = ("sh", "-c", 'printf "%s|%s" "$1" "$A"', "sh", argument)
    for _ in range(2):
        assert once.run("n", *command, options=["-e", f"A={argument}"]).out == os.fsencode(f"{argument}|{argument}")


@pytest.mark.parametrize("given_", ["=x", "A"], ids=["without a name", "without a value to inherit"])
def test_a_variable_that_is_none_is_misuse(once: Asking, given_: str) -> None:
    found = once.run("n", "true", options=["-e", given_])
    assert (found.status, found.out) == (2, b"")
    assert json.loads(once.tell("list", "--json").out) == []


KNOWN = {"A": "1", "B": "$(A)", "EMPTY": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"), ("x$(A)y$(A)z", "x1y1z"), ("$(EMPTY)", ""), ("$(NOBODY)", "$(NOBODY)"), ("$(B)", "$(A)"),
        ("$$(A)", "$(A)"), ("$$$(A)", "$1"), ("$$$$(A)", "$$(A)"), ("$$(NOBODY)", "$(NOBODY)"), ("$$$(NOBODY)", "$$(NOBODY)"),
        ("$A", "$A"), ("${A}", "${A}"), ("$$", "$$"), ("$", "$"), ("$(", "$("), ("$(A", "$(A"), ("A)", "A)"), ("$()", "$()"),
        ("$(A$(A)", "$(A$(A)"), ("a$$b $(A)", "a$$b 1"),
    ],
)  # fmt: skip
def test_references_are_put_in_as_kubernetes_does(text: str, expected: str) -> None:
    assert expand(text, KNOWN.get) == expected


@given(st.text(), st.text())
def test_text_without_references_is_as_it_was(before: str, after: str) -> None:
    text = before.replace("(", "") + "$(" + after.replace(")", "")
    assert expand(text.replace("$(", "("), lambda _: "wrong") == text.replace("$(", "(")
    assert expand(text, lambda _: "wrong") == text  # one that is not closed is none


@given(st.text(alphabet="$A b)", max_size=20), st.text(st.characters(exclude_characters="$()"), max_size=5))
def test_a_reference_that_is_doubled_is_the_reference(rest: str, name: str) -> None:
    assert expand(f"$$({name}){rest}", lambda _: "wrong") == f"$({name}){rest}"
    assert expand(f"$({name}){rest}", lambda _: "right") == f"right{rest}"


@given(st.text(alphabet="$()A b", max_size=30))
def test_what_is_put_in_is_not_looked_at_again(text: str) -> None:
    assert expand(text, lambda name: f"$({name})") == expand(text, lambda _: None)


def test_a_value_may_refer_to_what_was_given_before_it_and_to_what_is_inherited_under_its_own_name() -> None:
    given_ = {"PATH": "/opt:$(PATH)", "A": "$(PATH)", "EARLY": "$(LATE)", "LATE": "x"}
    asked = ask("i", "n", ["c", "$(PATH)", "$(HOME)"], "/", given_, {"PATH": "/bin", "HOME": "/h"})
    assert dict(asked.environment) == {"PATH": "/opt:/bin", "A": "/opt:/bin", "EARLY": "$(LATE)", "LATE": "x"}
    assert asked.command == ("c", "/opt:/bin", "/h")


# --- secrets -----------------------------------------------------------------------------------------------------------

SECRET = "s3cr3t-hunter2"
WITH_SECRET = ["-e", "KEY", "-e", "URL=db://u:$(KEY)@h", "--redact", "KEY"]
KNOWS = ("sh", "-c", 'test "$KEY" = "$1" && test "$URL" = "db://u:$1@h" && test "$2" = "x$1" || exit 9; exit 5')


def test_a_redacted_value_is_nowhere_in_the_folder_whoever_refers_to_it(once: Asking) -> None:
    command = (*KNOWS, "sh", "$(KEY)", "x$(KEY)")
    with once.ledger():  # so that the log of the database is not tidied away
        assert once.run("n", *command, options=WITH_SECRET, env={"KEY": SECRET}) == Answer(5, b"", b"")
        files = [path for path in once.state.rglob("*") if path.is_file()]
        assert {FILE, f"{FILE}-wal"} <= {path.name for path in files}
        assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert not [path for path in once.state.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    shown = once.show("n")
    assert shown["environment"] == {"KEY": None, "URL": "db://u:$(KEY)@h"}
    assert shown["command"][-2:] == ["$(KEY)", "x$(KEY)"]
    assert b"KEY (redacted)" in once.tell("show", "n").out


def test_a_secret_that_is_no_program_is_not_told(once: Asking) -> None:
    found = once.run("n", "$(KEY)/x", options=["-e", "KEY", "--redact", "KEY"], env={"KEY": SECRET})
    assert found == Answer(127, b"", b"sidecar: $(KEY)/x: not found\n")
    assert not [path for path in once.state.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("secret", ["", "n"], ids=["empty", "a letter"])
def test_where_a_secret_is_short_nothing_else_that_is_told_is_changed(once: Asking, secret: str) -> None:
    answers = [once.run("n", "$(KEY)", options=["-e", f"KEY={secret}", "--redact", "KEY"]) for _ in range(2)]
    assert answers[0] == answers[1]
    assert re.fullmatch(r"sidecar: \$\(KEY\): (not found|cannot be executed: .*)\n", answers[0].err.decode())


def test_a_reference_to_a_secret_and_the_text_of_one_are_not_the_same(once: Asking) -> None:
    options = ["-e", "KEY", "--redact", "KEY"]
    assert once.run("n", "echo", "$$(KEY)", options=options, env={"KEY": SECRET}).out == b"$(KEY)\n"
    other = once.run("n", "test", "$(KEY)", options=options, env={"KEY": SECRET})
    assert other.status == 125
    found = once.run("n", "echo", "$(KEY)", options=options, env={"KEY": SECRET})
    assert (found.status, found.out) == (125, b"")
    assert b"argument 1 is another" in found.err


@pytest.mark.parametrize("reference", ["$(KEY)", "$$$(KEY)"])
def test_a_secret_that_is_referred_to_before_it_is_given_is_misuse_and_kept_nowhere(once: Asking, reference: str) -> None:
    options = ["-e", f"URL=db://{reference}@h", "-e", "KEY", "--redact", "KEY"]
    found = once.run("n", "true", options=options, env={"KEY": SECRET})
    assert found.status == 2
    assert b"KEY is to be redacted, and URL refers to it before it is given: expected -e KEY first" in found.err
    assert SECRET.encode() not in found.err
    assert not once.state.exists()


def test_a_text_that_only_looks_like_a_secret_s_name_may_come_before_it(once: Asking) -> None:
    options = ["-e", "URL=$$(KEY) KEY (KEY)", "-e", "KEY", "--redact", "KEY"]
    assert once.run("n", "sh", "-c", 'echo "$URL"', options=options, env={"KEY": SECRET}).out == b"$(KEY) KEY (KEY)\n"


def test_with_the_same_secret_it_is_the_same_run_and_with_another_it_is_not(once: Asking) -> None:
    command = (*KNOWS, "sh", "$(KEY)", "x$(KEY)")
    for _ in range(2):
        assert once.run("n", *command, options=WITH_SECRET, env={"KEY": SECRET}).status == 5
    other = once.run("n", *command, options=WITH_SECRET, env={"KEY": "another-one"})
    assert other.status == 125
    assert b"the environment is another in KEY" in other.err
    assert SECRET.encode() not in other.err
    assert b"another-one" not in other.err
    shown = once.run("n", *command, options=WITH_SECRET[:-2], env={"KEY": SECRET})
    assert shown.status == 125
    assert SECRET.encode() not in shown.err


def test_equal_secrets_of_two_runs_cannot_be_told_from_their_hashes(ledger: Ledger) -> None:
    for name in ("a", "b"):
        ledger.run_once(name, ["true"], instance=INSTANCE, env={"KEY": SECRET}, redact=["KEY"])
    first, second = (run.variables[0] for run in ledger.runs())
    assert first.hash != second.hash
    assert (first.value, first.is_of(SECRET), first.is_of("x")) == ("", True, False)


def test_what_is_to_be_redacted_has_to_be_given(once: Asking) -> None:
    found = once.run("n", "true", options=["--redact", "KEY"], env={"KEY": SECRET})
    assert found.status == 2
    assert b"KEY is to be redacted, but is not given" in found.err


# --- something else under the same name --------------------------------------------------------------------------------

USED: dict[str, Any] = {"command": ["sh", "-c", "exit 3", "a"], "env": {"A": "1", "B": "2"}, "directory": "/"}
OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"command": ["dash", "-c", "exit 3", "a"]}, "the command is dash, and was sh"),
    ({"command": ["sh", "-c", "exit 3", "b"]}, "argument 3 is another"),
    ({"command": ["sh", "-x", "exit 3", "b"]}, "argument 1, 3 is another"),
    ({"command": ["sh", "-c", "exit 3"]}, "there are 2 arguments, and were 3"),
    ({"command": ["sh", "-c", "exit 3", "a", "b"]}, "there are 4 arguments, and were 3"),
    ({"directory": "/usr"}, "the working directory is /usr, and was /"),
    ({"env": {"A": "1", "B": "3"}}, "the environment is another in B"),
    ({"env": {"A": "1"}}, "the environment is another in B"),
    ({"env": {}}, "the environment is another in A, B"),
    ({"env": {"A": "1", "B": "2", "C": ""}}, "the environment is another in C"),
    ({"redact": ["A"]}, "the environment is another in A"),
]


@pytest.mark.parametrize(("change", "part"), OTHERS, ids=[part for _, part in OTHERS])
def test_something_else_under_its_name_is_refused_and_the_part_is_named(
    once: Asking, ledger: Ledger, change: dict[str, Any], part: str
) -> None:
    ledger.run_once("n", **USED, instance=INSTANCE)
    before = ledger.get(INSTANCE, "n")
    with pytest.raises(OtherRun) as refused:
        ledger.run_once("n", **USED | change, instance=INSTANCE)
    assert refused.value.status == 125
    assert refused.value.parts == (part,)
    assert part in str(refused.value)
    assert ledger.get(INSTANCE, "n") == before
    # The order in which variables are given is no difference.
    assert ledger.run_once("n", **USED | {"env": {"B": "2", "A": "1"}}, instance=INSTANCE).restored
    once.follow_advice(str(refused.value))
    assert not ledger.run_once("n", **USED | change, instance=INSTANCE).restored


def test_of_something_else_under_its_name_nothing_is_run_also_while_it_runs(once: Asking) -> None:
    once.start_held("n")
    found = once.run("n", "sh", "-c", once.append())
    assert (found.status, found.out) == (125, b"")
    assert b"argument 2 is another" in found.err
    once.let_go("n")
    assert once.count() == 0


# --- unknown -----------------------------------------------------------------------------------------------------------


def claimed(ledger: Ledger, name: str = "n") -> Claim:
    """Return a claim of this very process."""
    claim = ledger.claim(ask(INSTANCE, name, ["true"], os.getcwd(), {}, {}))
    assert isinstance(claim, Claim)
    return claim


def forge(ledger: Ledger, **owner: object) -> None:
    with ledger.state.write() as transaction:
        for column, to in owner.items():
            transaction.execute(f"UPDATE run SET {column} = ?", (to,))


def test_a_run_whose_owner_lives_is_running(ledger: Ledger, once: Asking) -> None:
    claim = claimed(ledger)
    assert ledger.get(INSTANCE, "n").state == RUNNING
    assert once.show("n")["state"] == RUNNING
    claim.withdraw()


FORGED: dict[str, Callable[[Run], dict[str, object]]] = {
    "its id was given to another process": lambda run: {"ticks": run.owner.ticks + 1},
    "its id is that of another process": lambda run: {"pid": 1},
    "there is no process of its id": lambda run: {"pid": 4_194_305},
    "the machine was started again": lambda run: {"boot": "00000000-0000-0000-0000-000000000000"},
    "the machine was started again, and it was in a container": lambda run: {"boot": "00000000", "namespace": 1},
}


@pytest.mark.parametrize("what", FORGED)
def test_a_run_whose_owner_is_not_who_it_was_is_unknown_although_its_lock_is_held(
    ledger: Ledger, once: Asking, what: str
) -> None:
    claim = claimed(ledger)
    forge(ledger, **FORGED[what](claim.run))
    assert ledger.get(INSTANCE, "n").state == UNKNOWN
    with pytest.raises(OutcomeUnknown, match="its outcome is unknown and it is not run again"):
        ledger.run_once("n", ["true"], instance=INSTANCE)
    found = once.run("n", "true")
    assert found.status == 125
    once.follow_advice(found.err.decode())
    assert ledger.runs() == []
    claim.withdraw()


def test_a_run_whose_lock_is_held_by_nobody_is_unknown_although_a_process_of_its_id_lives(ledger: Ledger) -> None:
    claim = claimed(ledger)
    os.close(claim._fd)
    assert process.identity(os.getpid()) == claim.run.owner
    assert ledger.get(INSTANCE, "n").state == UNKNOWN


def test_a_run_of_another_pid_namespace_is_running_as_long_as_its_lock_is_held(ledger: Ledger) -> None:
    claim = claimed(ledger)
    forge(ledger, namespace=1, pid=1, ticks=1)
    assert ledger.get(INSTANCE, "n").state == RUNNING
    os.close(claim._fd)
    assert ledger.get(INSTANCE, "n").state == UNKNOWN


@pytest.mark.parametrize("inside", ["caller", "owner"])
def test_containers_that_do_not_see_each_others_processes_know_who_lives(once: Asking, pod: Pod, inside: str) -> None:
    prefix = {"caller": [], "owner": PID_1}[inside]
    script = once.held("n")
    owner = pod.start(*prefix, *once.words("n", "sh", "-c", script), env=once.env)
    pod.hear_file("n.held")
    show = [SIDECAR, "once", "show", "n", "--instance", INSTANCE, "--json"]
    if inside == "caller":
        show = [*PID_1, *show]
    assert json.loads(once.answer(*show).out)["state"] == RUNNING
    owner.kill()
    if inside == "owner":
        until(lambda: once.show("n")["state"] == UNKNOWN, "the namespace is gone", pod)
    assert json.loads(once.answer(*show).out)["state"] == UNKNOWN
    again = once.run("n", "sh", "-c", script)
    assert again.status == 125


# Asks with so few descriptors left, and having asked before or not.
FEW = """
import os, resource, sys
from sidecar import process
from sidecar.errors import SidecarError
from sidecar.once import Ledger
from sidecar.once.asked import ask

ledger, left = Ledger(sys.argv[1]), int(sys.argv[2])
if sys.argv[3] == "again":
    ledger.find("here", "n")
taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(left + 1)]
for fd in taken:
    os.close(fd)
resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1], taken[-1]))
for call in (lambda: ledger.get("here", "n").state, lambda: ledger.forget("here", "n").state):
    try:
        print(call())
    except SidecarError as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("asked", ["first", "again"])
@pytest.mark.parametrize("left", [0, 1, 2])
def test_whoever_has_too_few_descriptors_to_look_does_not_take_an_owner_for_dead(
    once: Asking, pod: Pod, left: int, asked: str
) -> None:
    first = once.start_held("n")
    asking = pod.python(FEW, once.state, str(left), asked)
    assert asking.wait() == 0, asking.err
    told = asking.out.split()
    assert told in (["Unreachable", "Unreachable"], [RUNNING, "DeadlinePassed"]), told
    assert told[0] == "Unreachable" or left > 0
    once.let_go("n")
    assert first.wait() == 7
    assert once.show("n")["status"] == 7


def test_where_a_store_is_moved_away_the_runs_of_the_next_are_none_of_the_first_s(once: Asking) -> None:
    first = once.start_held("a")
    for path in once.state.glob(f"{FILE}*"):
        path.rename(once.pod.file(path.name))
    second = once.start_held("b")
    assert len(list((once.state / "runs").iterdir())) == 2
    once.let_go("a")
    assert first.wait() == 7
    assert once.show("b")["state"] == RUNNING
    assert once.tell("forget", "b").status == 75
    once.let_go("b")
    assert second.wait() == 7
    assert once.show("b")["state"] == "finished"


def test_an_unknown_run_is_told_the_same_to_everyone_and_never_run_again(once: Asking) -> None:
    command = ("sh", "-c", once.held("n", f"{once.append()}; echo one"))
    once.kill_owner("n", script=f"{once.append()}; echo one")
    first, second = (once.run("n", *command) for _ in range(2))
    assert first == second
    assert (first.status, once.count()) == (125, 1)
    assert b"which died before it said how it ended" in first.err
    assert once.run("n", *command, options=["--json"]).status == 125
    shown = once.show("n")
    assert (shown["state"], shown["status"], shown["finished_at"]) == ("unknown", None, None)
    assert b"its outcome is unknown" in once.tell("show", "n").out
    assert once.tell("logs", "n", "--follow").status == 125


def test_a_process_is_known_by_its_id_and_by_when_it_was_begun() -> None:
    me = process.identity(os.getpid())
    assert me is not None
    assert process.identity(os.getpid()) == me
    assert process.identity(os.getpid()) != replace(me, ticks=me.ticks + 1)
    assert process.identity(4_194_305) is None  # more than any kernel has


def test_the_program_dies_with_whoever_runs_it(once: Asking, pod: Pod) -> None:
    started = once.start_held("n", f"echo $$ > {pod.file('pid')}")
    program = int(pod.file("pid").read_text())
    started.kill()
    until(lambda: gone(program), "the program has died, too", pod)


# --- forgetting --------------------------------------------------------------------------------------------------------


def test_what_is_forgotten_runs_again(once: Asking) -> None:
    command = ("sh", "-c", f"{once.append()}; exit 3")
    assert once.run("n", *command).status == 3
    gone_ = once.tell("forget", "n")
    assert gone_ == Answer(0, b"n of here is forgotten: exit 3\n", b"")
    assert once.tell("show", "n").status == 66
    assert once.run("n", *command).status == 3
    assert once.count() == 2


def test_what_is_running_cannot_be_forgotten_and_what_is_unknown_can(once: Asking) -> None:
    script = f"{once.append()}; echo one"
    started = once.start_held("n", script)
    found = once.tell("forget", "n")
    assert found.status == 75
    assert b"is running" in found.err
    started.kill()
    assert b"is forgotten: unknown" in once.tell("forget", "n").out
    once.pod.file("n.held").unlink()
    again = once.start_held("n", script)
    once.let_go("n")
    assert again.wait() == 7
    assert once.count() == 2
    assert list((once.state / "runs").iterdir()) == []


def test_what_was_never_run_cannot_be_forgotten_and_what_there_is_is_told(once: Asking, ledger: Ledger) -> None:
    ledger.run_once("one", ["true"], instance=INSTANCE)
    ledger.run_once("two", ["true"], instance="there")
    for what in ("forget", "show", "logs"):
        found = once.tell(what, "nothing")
        assert found.status == 66
        assert b"no run 'nothing' of here; runs there: one, two of there" in found.err
    with pytest.raises(SourceMissing) as missing:
        ledger.forget(INSTANCE, "nothing")
    assert missing.value.exist == ("one", "two of there")


def test_prune_forgets_what_ended_long_ago_and_nothing_that_runs_or_is_unknown(once: Asking) -> None:
    once.kill_owner("unknown")
    once.start_held("running")
    once.run("failed", "/nowhere")
    once.run("large", "head", "-c", "3000000", "/dev/urandom")
    names = ["unknown", "running", "failed", "large"]

    def size() -> int:
        return sum(path.stat().st_size for path in (once.state / FILE, once.state / f"{FILE}-wal"))

    large = size()

    def listed() -> list[str]:
        return [run["name"] for run in json.loads(once.tell("list", "--json").out)]

    assert once.tell("prune", "--older-than", "1d").out == b"forgot 0 runs, 0 B of output\n"
    assert once.tell("prune", "--older-than", "0s", "--dry-run").out.startswith(b"would forget 2 runs, ")
    assert listed() == names
    pruned = json.loads(once.tell("prune", "--older-than", "0s", "--json").out)
    assert [run["name"] for run in pruned] == ["failed", "large"]
    assert listed() == names[:2]
    assert size() < large / 10
    once.let_go("running")


@pytest.mark.parametrize("age", ["", "x", "-1s", "1y"])
def test_an_age_that_is_none_is_misuse(once: Asking, age: str) -> None:
    assert once.tell("prune", "--older-than", age).status == 2


# --- looking -----------------------------------------------------------------------------------------------------------


def test_runs_are_listed_in_the_order_in_which_they_were_claimed(once: Asking) -> None:
    assert once.tell("list") == Answer(0, b"", b"")
    assert once.tell("list", "--json").out == b"[]\n"
    once.run("z", "sh", "-c", "exit 3")
    once.run("a", "/nowhere")
    once.run("k", "sh", "-c", "kill -9 $$", options=["--instance", "there"])
    once.start_held("r")
    rows = [re.split("  +", line) for line in once.tell("list").out.decode().splitlines()]
    assert [(row[0], row[1]) for row in rows] == [
        ("NAME", "END"), ("z", "exit 3"), ("a", "failed to start: /nowhere: not found"), ("k", "signal 9"), ("r", "running"),
    ]  # fmt: skip
    listed = json.loads(once.tell("list", "--json").out)
    assert [(run["name"], run["instance"], run["state"], run["status"]) for run in listed] == [
        ("z", "here", "finished", 3), ("a", "here", "failed-to-start", 127), ("k", "there", "finished", 137),
        ("r", "here", "running", None),
    ]  # fmt: skip
    once.let_go("r")


def test_a_run_is_shown_with_all_that_is_known_of_it(once: Asking) -> None:
    once.run("n", "sh", "-c", "echo out; kill -15 $$", options=["-e", "A=1\x1b", "--directory", "/"])
    shown = dict(line.split(None, 1) for line in once.tell("show", "n").out.decode().splitlines())
    assert shown["end"] == "signal 15"
    assert shown["command"] == "sh -c 'echo out; kill -15 $$'"
    assert shown["directory"] == "/"
    assert shown["environment"] == "A=1\ufffd"
    assert shown["output"] == "stdout 4 B, stderr 0 B"
    as_json = once.show("n")
    assert (as_json["status"], as_json["exit_code"], as_json["signal"]) == (143, None, 15)
    assert as_json["owner"]["boot"] == process.boot()
    assert shown["started"] == as_json["started_at"]


def test_where_the_clock_was_set_back_nothing_took_less_than_no_time(once: Asking, ledger: Ledger) -> None:
    run = ledger.run_once("n", ["true"], instance=INSTANCE).run
    forge(ledger, finished=run.started - 3_600_000_000)
    assert re.search(rb"^finished +\S+Z, after 0 ms$", once.tell("show", "n").out, re.MULTILINE)
    assert once.tell("list").out.splitlines()[1].split()[4:6] == [b"0", b"ms"]


def test_a_run_that_was_ended_is_shown_with_the_reason_and_the_status_that_was_given(once: Asking, ledger: Ledger) -> None:
    ledger.run_once("n", ["sh", "-c", "kill -15 $$"], instance=INSTANCE)
    forge(ledger, instead=75, reason="fuse was not ready in time")
    shown = dict(line.split(None, 1) for line in once.tell("show", "n").out.decode().splitlines())
    assert shown["end"] == "signal 15, given as 75"
    assert shown["why"] == "fuse was not ready in time"
    as_json = once.show("n")
    assert (as_json["status"], as_json["signal"], as_json["reason"]) == (75, 15, "fuse was not ready in time")
    assert b"signal 15, given as 75" in once.tell("list").out


LOOKS: dict[str, tuple[tuple[str, ...], int, bytes]] = {
    "list": (("list",), 0, b""),
    "list as json": (("list", "--json"), 0, b"[]\n"),
    "show": (("show", "n"), 66, b""),
    "logs": (("logs", "n"), 66, b""),
    "logs followed": (("logs", "n", "--follow"), 66, b""),
    "forget": (("forget", "n"), 66, b""),
    "prune": (("prune", "--older-than", "0s"), 0, b"forgot 0 runs, 0 B of output\n"),
    "prune as json": (("prune", "--older-than", "0s", "--json"), 0, b"[]\n"),
}


@pytest.mark.parametrize("there", [False, True], ids=["no folder", "an empty one"])
@pytest.mark.parametrize("what", LOOKS)
def test_looking_makes_nothing(once: Asking, what: str, there: bool) -> None:
    if there:
        once.state.mkdir(0o700)
    words, status, out = LOOKS[what]
    found = once.tell(*words)
    assert (found.status, found.out) == (status, out)
    assert (f"there is nothing in {once.state} yet".encode() in found.err) == (status == 66)
    assert list(once.state.iterdir()) == [] if there else not once.state.exists()


def test_completing_a_name_makes_nothing(once: Asking) -> None:
    pressed = {"_SIDECAR_COMPLETE": "bash_complete", "COMP_WORDS": "sidecar once show ", "COMP_CWORD": "3"}
    assert once.answer(SIDECAR, env=pressed).out.strip() == b""
    assert not once.state.exists()
    once.run("name", "true")
    assert b"name" in once.answer(SIDECAR, env=pressed).out


def test_logs_are_printed_as_they_were_written_or_in_lines_with_their_times(once: Asking, ledger: Ledger) -> None:
    once.run("n", "sh", "-c", "printf 'one\\r\\ntwo'; echo err >&2")
    assert once.tell("logs", "n") == Answer(0, b"one\r\ntwo", b"err\n")
    assert once.tell("logs", "n", "--stdout") == Answer(0, b"one\r\ntwo", b"")
    assert once.tell("logs", "n", "--stderr") == Answer(0, b"", b"err\n")
    at = {piece.stream: moment(piece.at).encode() for piece in ledger.output(ledger.get(INSTANCE, "n"))}
    stamped = once.tell("logs", "n", "--timestamps")
    assert stamped.out == b"%s one\r\n%s two\n" % (at[1], at[1])
    assert stamped.err == b"%s err\n" % at[2]


def test_that_a_program_has_begun_is_noted_while_nothing_of_its_output_is() -> None:
    """One store, two threads: a transaction within another would be refused, and the output be cut."""
    noting, met = [False], []

    class Kept:
        def begun(self) -> None:
            noting[0] = True
            time.sleep(4 * OFTEN)  # a window, no wait: what was written is due to be kept within it
            noting[0] = False

        def keep(self, pieces: object) -> None:
            met.append(noting[0])

    recorder = Recorder(cast(Claim, Kept()))
    over = threading.Event()
    recorder.start(over.set)
    os.write(recorder.streams[0], b"written at once")
    recorder.note_begun()
    until(lambda: bool(met), "it is kept")
    recorder.begun()
    recorder.ended()
    assert over.wait(HANG)
    assert met == [False]


def test_logs_are_json_for_programs_whatever_was_written(once: Asking, ledger: Ledger) -> None:
    script = "printf 'one\\n'; printf '\\377' >&2"
    ledger.run_once("n", ["sh", "-c", script], instance=INSTANCE)
    pieces = [json.loads(line) for line in once.tell("logs", "n", "--json").out.splitlines()]
    assert {(piece["stream"], piece.get("text"), piece.get("base64")) for piece in pieces} == {
        ("stdout", "one\n", None),
        ("stderr", None, "/w=="),
    }
    assert [piece["at"] for piece in pieces] == [moment(piece.at) for piece in ledger.output(ledger.get(INSTANCE, "n"))]


def test_logs_are_followed_to_the_end(once: Asking, pod: Pod) -> None:
    first = once.start_held("n")
    until(lambda: once.tell("logs", "n") == Answer(0, b"one\n", b""), "it is kept", pod)
    follower = pod.start(SIDECAR, "once", "logs", "n", "--instance", INSTANCE, "--follow", env=once.env)
    until(lambda: follower.out == "one\n", "it follows", pod)
    once.let_go("n")
    assert first.wait() == 7
    assert (follower.wait(), follower.out) == (0, "one\ntwo\n")


def test_what_came_of_it_can_be_had_as_json_in_the_place_of_its_output(once: Asking) -> None:
    for restored in (False, True):
        found = once.run("n", "sh", "-c", "echo out; echo err >&2; exit 3", options=["--json"])
        assert (found.status, found.err) == (3, b"")
        said = json.loads(found.out)
        assert (said["restored"], said["status"], said["stdout"]["bytes"]) == (restored, 3, 4)


def test_that_it_is_a_replay_is_said_at_a_terminal_only(once: Asking) -> None:
    def at_terminal(*options: str) -> bytes:
        ours, its = os.openpty()
        answer = once.run("n", "sh", "-c", "echo out; exit 3", options=options, stderr=its)
        assert (answer.status, answer.out) == (3, b"out\n")
        os.close(its)
        try:
            return os.read(ours, 4096)
        except OSError:  # nothing was written
            return b""
        finally:
            os.close(ours)

    assert at_terminal() == b""
    assert b"exit 3; this is what it wrote" in at_terminal()
    assert at_terminal("-q") == b""


# --- the library -------------------------------------------------------------------------------------------------------


def test_the_library_gives_what_the_command_does(once: Asking, pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_STATE", str(once.state))
    monkeypatch.chdir(pod.folder)
    script = f'{once.append()}; echo "$A"; echo err >&2; exit 3'
    with Ledger() as ledger:
        result = ledger.run_once("n", ["sh", "-c", script], env={"KEY": "k", "A": "$(KEY)x"}, redact=["KEY"], instance=INSTANCE)
        assert (result.exit_code, result.stdout, result.stderr, result.restored) == (3, b"kx\n", b"err\n", False)
        assert result.effective_args == ("sh", "-c", script)
        assert result.effective_env == {"A": "$(KEY)x", "KEY": None}
        assert result.directory == str(pod.folder)
        assert result.started_at is not None
        assert result.started_at <= result.finished_at
        assert "status 3" in repr(result)
    options = ["-e", "KEY=k", "-e", "A=$(KEY)x", "--redact", "KEY"]
    found = once.run("n", "sh", "-c", script, options=options, cwd=pod.folder)
    assert found == Answer(3, b"kx\n", b"err\n")
    assert once.count() == 1


def test_the_library_passes_nothing_on_and_leaves_signals_alone(ledger: Ledger, capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    assert ledger.run_once("n", ["sh", "-c", "echo out; echo err >&2"], instance=INSTANCE).stdout == b"out\n"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)] == before
    assert capfd.readouterr() == ("", "")


def test_what_is_asked_of_a_ledger_that_was_closed_is_refused(once: Asking) -> None:
    with once.ledger() as ledger:
        result = ledger.run_once("n", ["echo", "out"], instance=INSTANCE)
        assert result.stdout == b"out\n"
    for ask_ in (lambda: result.stdout, ledger.runs, lambda: ledger.run_once("m", ["true"], instance=INSTANCE)):
        with pytest.raises(Unreachable, match="was closed"):
            ask_()
    assert result.status == 0


IN_LIBRARY = """
import sys
from sidecar.once import Ledger
try:
    Ledger(sys.argv[1]).run_once("n", ["sh", "-c", sys.argv[2]], instance="here")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_in_the_library_ends_the_program_and_how_it_ended_is_kept(once: Asking, pod: Pod) -> None:
    script = once.held("n")
    caller = pod.python(IN_LIBRARY, once.state, script)
    pod.hear_file("n.held")
    caller.send(signal.SIGINT)
    assert (caller.wait(), caller.out) == (0, "interrupted\n")
    found = once.run("n", "sh", "-c", script)
    assert (found.status, found.out) == (130, b"one\n")
    assert once.show("n")["signal"] == 2


# --- signals and streams of the first caller ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trap", "status"), [("trap 'echo got; exit 9' TERM", 9), (":", 143), ("trap '' TERM", 7)], ids=["hears", "dies", "ignores"]
)
def test_sigterm_reaches_the_program_and_how_it_ended_is_kept(once: Asking, pod: Pod, trap: str, status: int) -> None:
    script = f"{trap}; echo one"
    first = once.start_held("n", script)
    first.send(signal.SIGTERM)
    if status == 7:
        once.let_go("n")
    assert first.wait() == status
    found = once.run("n", "sh", "-c", once.held("n", script))
    assert (found.status, found.out.decode()) == (status, first.out)
    assert found.out == {9: b"one\ngot\n", 143: b"one\n", 7: b"one\ntwo\n"}[status]


def test_its_stdin_is_that_of_whoever_runs_it(once: Asking, pod: Pod) -> None:
    for given_, expected in ((b"one", b"one"), (b"two", b"one")):
        assert once.run("n", "cat", input=given_).out == expected


def test_a_working_directory_that_is_gone_is_told(once: Asking, pod: Pod) -> None:
    pod.file("gone").mkdir()
    found = once.answer("sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *once.words("n", "true"), cwd=pod.file("gone"))
    assert (found.status, found.err) == (2, b"sidecar: the working directory is gone; name another with --directory DIR\n")
    assert once.run("n", "true", options=["--directory", "/"]).status == 0


def test_without_a_home_it_is_asked_where_state_is_to_be(once: Asking) -> None:
    nowhere = {"SIDECAR_STATE": "", "XDG_STATE_HOME": "", "HOME": ""}
    found = once.answer(SIDECAR, "once", "run", "--name", "n", "--", "echo", "ran", env=nowhere)
    assert (found.status, found.out) == (78, b"")
    assert b"--state DIR or SIDECAR_STATE" in found.err


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_were_closed_corrupt_nothing(once: Asking, closed: str) -> None:
    command = ("sh", "-c", "echo out; echo err >&2; exit 3")
    shell = ("sh", "-c", f'exec "$@" {closed}', "sh")
    for _ in range(2):
        found = once.answer(*shell, *once.words("n", *command))
        assert found.status == 3
        assert found.out == (b"" if ">&-" in closed.replace("2>&-", "") else b"out\n")
        assert found.err == (b"" if "2>&-" in closed else b"err\n")
    assert once.run("n", *command) == Answer(3, b"out\n", b"err\n")


def test_a_reader_that_goes_away_does_not_stop_the_program(once: Asking, pod: Pod) -> None:
    large = "head -c 1000000 /dev/zero"
    read, write = os.pipe()
    first = once.start_held("n", after=f"{large}; {once.append()}; exit 4", stdout=write)
    os.close(write)
    assert os.read(read, 100) == b"one\n"
    os.close(read)
    once.let_go("n")
    assert first.wait() == 4
    assert once.count() == 1
    assert once.run("n", "sh", "-c", once.held("n", after=f"{large}; {once.append()}; exit 4")).out == b"one\n" + bytes(1000000)


def test_all_that_it_writes_arrives_where_our_stdout_does_not_block(once: Asking, pod: Pod) -> None:
    command = ("sh", "-c", "head -c 1000000 /dev/zero; exit 4")
    for _ in range(2):
        ours, its = os.pipe()
        os.set_blocking(its, False)
        caller = once.start("n", *command, stdout=its)
        os.close(its)
        until(lambda ours=ours: is_full(ours), "the pipe is full", pod)  # type: ignore[misc]
        with open(ours, "rb") as file:
            assert file.read() == bytes(1_000_000)
        assert (caller.wait(), caller.err) == (4, "")


@pytest.mark.parametrize(("own", "status"), [(0, 74), (3, 3)])
def test_what_cannot_be_written_on_is_told_and_is_no_success(once: Asking, own: int, status: int) -> None:
    command = ("sh", "-c", f"echo out; echo err >&2; exit {own}")
    with open("/dev/full", "wb") as full:
        answers = [once.run("n", *command, stdout=full) for _ in range(2)]
    told = b"err\nsidecar: stdout cannot be written: No space left on device\n"
    assert answers == [Answer(status, None, told)] * 2  # type: ignore[arg-type]
    assert once.run("n", *command) == Answer(own, b"out\n", b"err\n")


# Writes until it is told to end.
WRITER = f"""
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
open(sys.argv[1], "w").write(str(os.getpid()))
while True:
    os.write(1, bytes({1 << 16}))
"""


def is_full(pipe: int) -> bool:
    """Tell whether a pipe holds all that it can."""
    held: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    return held == fcntl.fcntl(pipe, 1032)  # F_GETPIPE_SZ


@pytest.mark.parametrize("read_later", [True, False], ids=["read later", "never read"])
def test_a_program_whose_output_nobody_reads_is_held_up_and_sigterm_reaches_it_all_the_same(
    once: Asking, pod: Pod, read_later: bool
) -> None:
    command = (sys.executable, "-ISc", WRITER, str(pod.file("pid")))
    ours, its = os.pipe()
    first = once.start("n", *command, stdout=its)
    os.close(its)
    program = int(pod.hear_file("pid").read_text() or "0")
    until(lambda: is_full(ours), "the pipe is full", pod)
    program = program or int(pod.file("pid").read_text())
    first.send(signal.SIGTERM)
    until(lambda: state_of(program) == "", "the program has ended and was reaped", pod)
    if read_later:
        with open(ours, "rb") as file:
            got = file.read()
        assert first.wait() == 9
        assert once.run("n", *command) == Answer(9, got, b"")
    else:
        first.send(signal.SIGTERM)
        assert first.wait() == 9
        os.close(ours)
        again = once.run("n", *command)
        assert again.status == 9
        assert b"not all that n wrote is kept" in again.err
        assert b"too slowly" in again.err


def test_orphans_of_the_program_come_to_whoever_runs_it_and_are_reaped(once: Asking, pod: Pod) -> None:
    first = once.start_held("n", f"(sleep {LONG} & echo $! > {pod.file('orphan')})")
    orphan = int(pod.file("orphan").read_text())
    until(lambda: parent_of(orphan) == first.pid, "it has come", pod)
    os.kill(orphan, signal.SIGKILL)
    until(lambda: state_of(orphan) == "", "it is reaped", pod)
    assert first.running
    once.let_go("n")
    assert first.wait() == 7


def stop_while_writing(folder: Path) -> None:
    with State(str(folder)) as state, state.write() as transaction:
        transaction.execute("UPDATE run SET cut = cut")
        os.kill(os.getpid(), signal.SIGSTOP)


def test_a_program_ends_although_somebody_was_stopped_while_he_wrote_to_the_ledger(once: Asking) -> None:
    first = once.start_held("n")
    holder = forked(lambda: stop_while_writing(once.state))
    try:
        assert os.WIFSTOPPED(os.waitpid(holder, os.WUNTRACED)[1])
        once.let_go("n")
        assert (first.wait(), first.out) == (7, "one\ntwo\n")
        shown = once.show("n")
        assert (shown["state"], shown["status"]) == ("finished", 7)
        assert state_of(holder) == "T"
        with once.ledger() as ledger:
            assert ledger.state.read("SELECT state FROM run") == [(RUNNING,)]
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    assert once.show("n") == shown
    with once.ledger() as ledger:
        assert ledger.state.read("SELECT state, code FROM run") == [("finished", 7)]
    assert list((once.state / "runs").iterdir()) == []


def test_a_program_ends_as_it_does_although_the_ledger_was_damaged_meanwhile(once: Asking) -> None:
    first = once.start_held("n", after="head -c 1000000 /dev/zero; exit 7")
    for path in once.state.glob(f"{FILE}*"):  # the index of the log too, or whoever has it open does not look again
        with path.open("r+b") as file:
            file.write(b"\xa5" * path.stat().st_size)
    once.let_go("n")
    assert (first.wait(), len(first.out_bytes), first.err) == (7, 1_000_004, "")
    for found in (once.tell("show", "n"), once.run("n", "true"), once.tell("list")):
        assert found.status == 65
        assert b"move " + os.fsencode(once.state) + b" away, or use another --state" in found.err
        assert b"Traceback" not in found.err


# --- full disks --------------------------------------------------------------------------------------------------------

# $1 is where a small file system is mounted, and the state is in there. Filled to the last block; then `more` as a name for what
# is done with it.
SMALL = """
mount -t tmpfs -o size={size} none "$1" && cd "$1" || exit 99
export SIDECAR_STATE="$1/state"
fill() {{ dd if=/dev/zero of="$1" bs=4096; dd if=/dev/zero of="$1.more" bs=1; }} 2>/dev/null
once() {{ {sidecar} once run --name n --instance here -- sh -c "$SCRIPT"; echo "status $?"; }}
{script}
"""


def on_small(once: Asking, size: str, script: str, program: str) -> Answer:
    """Return the answer of a shell `script` on a file system of its own, in which `once` runs `program`."""
    where = once.pod.file("small")
    where.mkdir()
    text = SMALL.format(size=size, sidecar=SIDECAR, script=script)
    return once.answer(*unshare("--mount"), "sh", "-c", text, "sh", str(where), env={"SCRIPT": program})


@pytest.mark.parametrize("first", ["", f"{SIDECAR} once run --name other -- true;"], ids=["new", "used"])
def test_where_it_cannot_be_claimed_because_the_disk_is_full_nothing_is_run(once: Asking, first: str) -> None:
    found = on_small(once, "1m", f"{first} fill fill; once; rm fill*; once", f"{once.append()}; echo ran")
    assert found.out.decode() == "status 74\nran\nstatus 0\n"
    assert b"cannot " in found.err
    assert once.count() == 1


FILLS = "(dd if=/dev/zero of=fill bs=4096; dd if=/dev/zero of=fill.more bs=1) 2>/dev/null"


def test_where_the_disk_fills_up_meanwhile_how_it_ended_is_kept_and_that_output_is_not(once: Asking) -> None:
    program = f"{FILLS}; head -c 300000 /dev/zero | tr '\\0' x; echo e >&2; exit 5"
    asked = "once > first; once; once; rm fill*; once"
    found = on_small(once, "2m", f"{asked}; {SIDECAR} once show n --instance here --json", program)
    *answers, shown = found.out.decode().splitlines()
    assert [answer.lstrip("x") for answer in answers] == ["status 5"] * 3  # the first did not fit into its file
    assert found.err.count(b"not all that n wrote is kept") == 3
    said = json.loads(shown)
    assert (said["state"], said["status"]) == ("finished", 5)
    assert said["stdout"]["bytes"] == 300000
    assert said["stdout"]["kept"] == len(answers[-1]) - len("status 5")
    assert "full" in said["cut"]


def test_the_end_is_kept_where_the_disk_is_full_and_nothing_was_written(once: Asking) -> None:
    found = on_small(once, "1m", "once; once; rm fill*; once; once", f"{FILLS}; kill -9 $$")
    assert found.out.decode().split("\n") == ["status 137"] * 4 + [""]
    assert found.err == b""


def test_on_a_small_disk_what_is_kept_leaves_the_room_to_forget_it(once: Asking) -> None:
    script = f"""
        once | tail -c 9; {SIDECAR} once show n --instance here --json; {SIDECAR} once forget n --instance here
        once | tail -c 9; {SIDECAR} once prune --older-than 0s; once | tail -c 9"""
    found = on_small(once, "3m", script, "head -c 10000000 /dev/zero; exit 5")
    first, shown, forgotten, second, pruned, third = found.out.decode().splitlines()
    assert [first, second, third] == ["status 5"] * 3
    said = json.loads(shown)
    assert "nearly full" in said["cut"]
    assert (said["stdout"]["bytes"], said["status"]) == (10_000_000, 5)
    assert said["stdout"]["kept"] > 0
    assert forgotten == "n of here is forgotten: exit 5"
    assert pruned.startswith("forgot 1 run, ")
    assert found.err == b""
