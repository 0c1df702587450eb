"""`wrap_application` is a correct init: exact statuses, no signal lost, no zombie left, and a child that does not notice it."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import stat
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from processes import BIN, LONG, PID_1, WRAP, Pod, Started, children_of, gone, parent_of, session_of, state_of, until

from sidecar.coordination.protocol import DONE, FAILED, RUNNING, WAITING

# A battery that is ready already and keeps nothing, so that the command is all there is.
ALONE = ("-b", "fuse", "--save", "never")
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGRTMIN + 3)

# Says which signals come: listener FILE. SIGTERM ends it with status 7.
# It takes signals by sigwait: with handlers and pause, one that comes just before pause would be heard at the next one only.
LISTENER = """
import os, signal, sys
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
all = {number for number in signal.valid_signals() if number not in (9, 17, 19)}
signal.pthread_sigmask(signal.SIG_BLOCK, all)
os.write(log, b"ready\\n")
while True:
    number = signal.sigwait(all)
    os.write(log, b"%d\\n" % number)
    if number == signal.SIGTERM:
        os._exit(7)
"""
PYTHON = (sys.executable, "-ISc")


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with Pod(tmp_path) as pod:
        pod.say("mountdone")
        yield pod


@pytest.fixture(params=["as_subreaper", "as_pid_1"])
def prefix(request: pytest.FixtureRequest) -> Sequence[str]:
    return PID_1 if request.param == "as_pid_1" else ()


def wrapper_of(started: Started, prefix: Sequence[str]) -> int:
    """Return the id of the wrapper itself, which is not the process that was started where it is PID 1 of a namespace."""
    if not prefix:
        return started.pid
    until(lambda: bool(children_of(started.pid)), "the namespace has its PID 1")
    return children_of(started.pid)[0]


# --- statuses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 2, 42, 64, 66, 69, 73, 74, 75, 78, 125, 126, 127, 128, 137, 143, 254, 255])
def test_the_status_of_the_command_passes_through_exactly(pod: Pod, status: int) -> None:
    assert pod.wrap(*ALONE, "--", "sh", "-c", f"exit {status}").wait() == status
    record = pod.record()
    assert record is not None
    assert record.exit is not None
    assert (record.state, record.exit.code, record.exit.signal) == (DONE, status, 0)


@pytest.mark.parametrize("status", [0, 42, 255])
def test_as_pid_1_the_status_of_the_command_passes_through_exactly(pod: Pod, status: int) -> None:
    assert pod.wrap(*ALONE, "--", "sh", "-c", f"exit {status}", prefix=PID_1).wait() == status


@pytest.mark.parametrize("number", [1, 2, 3, 6, 9, 10, 11, 13, 14, 15, 34, 37, 64])
def test_a_command_that_signal_n_ended_ends_with_128_plus_n(pod: Pod, number: int) -> None:
    assert pod.wrap(*ALONE, "--", "sh", "-c", f"kill -{number} $$", cwd=pod.folder).wait() == 128 + number
    record = pod.record()
    assert record is not None
    assert record.exit is not None
    assert (record.exit.code, record.exit.signal) == (0, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGKILL])
def test_as_pid_1_a_command_that_signal_n_ended_ends_with_128_plus_n(pod: Pod, number: int) -> None:
    command = ("sh", "-c", f"kill -{int(number)} $$")
    assert pod.wrap(*ALONE, "--", *command, prefix=PID_1).wait() == 128 + number


def test_a_command_that_is_not_found_is_127(pod: Pod, prefix: Sequence[str]) -> None:
    started = pod.wrap(*ALONE, "--", "no-such-command", prefix=prefix)
    assert started.wait() == 127
    assert "no-such-command: not found" in started.err


@pytest.mark.parametrize("command", ["/no/such/path", "./missing", "/dev/null/below", "interpreter-is-missing"])
def test_a_path_that_leads_nowhere_is_127(pod: Pod, command: str) -> None:
    if command == "interpreter-is-missing":
        script = pod.file("script")
        script.write_text("#!/no/such/interpreter\n")
        script.chmod(0o755)
        command = str(script)
    assert pod.wrap(*ALONE, "--", command).wait() == 127


@pytest.mark.parametrize("kind", ["not executable", "a folder", "no program", "not executable along PATH"])
def test_a_command_that_cannot_be_executed_is_126(pod: Pod, kind: str) -> None:
    command = pod.file("command")
    if kind == "a folder":
        command.mkdir()
    else:
        command.write_bytes(b"\x7fno program")
        command.chmod(0o755 if kind == "no program" else 0o644)
    name = "command" if "PATH" in kind else str(command)
    started = pod.wrap(*ALONE, "--", name, env={"PATH": str(pod.folder)}, prefix=(sys.executable,))
    assert started.wait() == 126
    assert "cannot be executed" in started.err


def test_a_command_is_looked_up_along_path_past_what_cannot_be_executed(pod: Pod) -> None:
    for folder, mode in (("first", 0o644), ("second", 0o755)):
        (pod.folder / folder).mkdir()
        (pod.folder / folder / "command").write_text(f"#!/bin/sh\necho {folder}\n")
        (pod.folder / folder / "command").chmod(mode)
    path = f"/no/such/folder:{pod.folder}/first:{pod.folder}/second"
    started = pod.wrap(*ALONE, "--", "command", env={"PATH": path}, prefix=(sys.executable,))
    assert started.wait() == 0
    assert started.out == "second\n"


def test_a_status_is_kept_also_where_the_parent_ignores_the_end_of_children(pod: Pod) -> None:
    started = pod.wrap(*ALONE, "--", "sh", "-c", "exit 3", prepare=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert started.wait() == 3


# --- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_reaches_the_whole_process_group_of_the_command(pod: Pod, prefix: Sequence[str], number: int) -> None:
    script = f"""
        {sys.executable} -ISc "$LISTENER" {pod.file("one")} &
        exec {sys.executable} -ISc "$LISTENER" {pod.file("two")}"""
    started = pod.wrap(*ALONE, "--", "sh", "-c", script, env={"LISTENER": LISTENER}, prefix=prefix)
    logs = [pod.hear_file(name) for name in ("one", "two")]
    until(lambda: all("ready" in log.read_text() for log in logs), "both processes listen", pod)
    os.kill(wrapper_of(started, prefix), number)
    until(lambda: all(f"{number}\n" in log.read_text() for log in logs), f"signal {number} reaches both", pod)
    if number != signal.SIGTERM:
        os.kill(wrapper_of(started, prefix), signal.SIGTERM)
    assert started.wait() == 7


def test_the_default_action_of_a_forwarded_sigterm_is_143(pod: Pod, prefix: Sequence[str]) -> None:
    started = pod.wrap(*ALONE, "--", "sh", "-c", f": > {pod.file('up')}; exec sleep {LONG}", prefix=prefix)
    pod.hear_file("up")
    os.kill(wrapper_of(started, prefix), signal.SIGTERM)
    assert started.wait() == 143


def test_a_signal_that_comes_while_waiting_reaches_the_command_once_it_has_begun(tmp_path: Path) -> None:
    with Pod(tmp_path) as pod:
        started = pod.wrap(*ALONE, "--", "sleep", LONG)
        pod.hear_state(WAITING)
        started.send(signal.SIGUSR1)
        pod.say("mountdone")
        assert started.wait() == 128 + signal.SIGUSR1


def burst(folder: Path) -> None:
    with Pod(folder) as pod:
        pod.say("mountdone")
        started = pod.wrap(*ALONE, "-q", "--", *PYTHON, LISTENER, str(pod.file("log")))
        until(lambda: pod.file("log").exists() and pod.file("log").read_text() == "ready\n", "the command listens", pod)
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTERM):
            started.send(number)
        assert started.wait() == 7, "SIGTERM was lost"


def test_in_a_burst_of_five_signals_sigterm_is_never_lost(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / str(number)).mkdir()
        burst(tmp_path / str(number))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_in_a_burst_of_five_signals_sigterm_is_never_lost_in_the_long_run(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / str(number)).mkdir()
        burst(tmp_path / str(number))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_the_wait_for_a_battery_with_128_plus_n(tmp_path: Path, prefix: Sequence[str], number: int) -> None:
    with Pod(tmp_path) as pod:
        started = pod.wrap("-b", "fuse", "--", "touch", str(pod.file("ran")), prefix=prefix)
        pod.hear_state(WAITING)
        os.kill(wrapper_of(started, prefix), number)
        assert started.wait() == 128 + number
        record = pod.record()
        assert record is not None
        assert record.error is not None
        assert (record.state, record.error.status, record.started) == (FAILED, 128 + number, False)
        assert f"signal {int(number)} came before the command was begun" in record.error.reason
        assert record.error.reason in started.err
        assert pod.alive() is False
        assert not pod.file("ran").exists()


def test_the_batteries_are_told_that_a_signal_ended_the_wait(tmp_path: Path) -> None:
    with Pod(tmp_path) as pod:
        battery = pod.battery("fuse", prepare=f"until [ -e {tmp_path}/go ]; do sleep 0.01; done")
        started = pod.wrap("-b", "fuse", "--", "true")
        pod.hear_state(WAITING)
        started.send(signal.SIGTERM)
        assert started.wait() == 143
        pod.file("go").touch()
        assert battery.wait() == 69
        assert "the application failed: signal 15 came before the command was begun" in battery.err


def stubborn(pod: Pod, *options: str, prefix: Sequence[str] = ()) -> tuple[Started, list[int]]:
    """Start a wrapper around two processes that ignore SIGTERM."""
    script = f'trap "" TERM; sleep {LONG} & echo $$ $! > {pod.folder}/new; mv {pod.folder}/new {pod.folder}/pids; wait'
    started = pod.wrap(*ALONE, *options, "--", "sh", "-c", script, prefix=prefix)
    return started, [int(word) for word in pod.hear_file("pids").read_text().split()]


def test_a_command_that_ignores_sigterm_is_killed_with_its_group_after_the_grace(pod: Pod) -> None:
    started, pids = stubborn(pod, "--grace", "0.2")
    started.send(signal.SIGTERM)
    assert started.wait() == 137
    until(lambda: all(gone(pid) for pid in pids), "the group is gone", pod)


def test_as_pid_1_a_command_that_ignores_sigterm_is_killed_after_the_grace(pod: Pod) -> None:
    started, _ = stubborn(pod, "--grace", "0.2", prefix=PID_1)
    os.kill(wrapper_of(started, PID_1), signal.SIGTERM)
    assert started.wait() == 137


def test_a_second_sigterm_shortens_the_grace(pod: Pod) -> None:
    started, _ = stubborn(pod, "--grace", "1h")
    started.send(signal.SIGTERM)
    until(lambda: any("was sent SIGTERM" in event["what"] for event in pod.events()), "the first is noticed", pod)
    started.send(signal.SIGTERM)
    assert started.wait() == 137


def test_sigterm_while_the_output_is_being_saved_leaves_the_grace_and_then_73(pod: Pod) -> None:
    started = pod.wrap("-b", "fuse", "--grace", "0.2", "--", "true")
    pod.hear("initupload")
    started.send(signal.SIGTERM)
    assert started.wait() == 73
    assert "the grace after SIGTERM ran out" in started.err


def test_sigterm_leaves_the_time_to_save_what_the_command_made(tmp_path: Path, prefix: Sequence[str]) -> None:
    with Pod(tmp_path) as pod:
        battery = pod.battery(keep=f"cat {pod.file('made')}")
        script = f"trap 'echo made > {pod.file('made')}; exit 0' TERM; : > {pod.file('up')}; while :; do sleep 0.01; done"
        started = pod.wrap("-b", "fuse", "--", "sh", "-c", script, prefix=prefix)
        pod.hear_file("up")
        os.kill(wrapper_of(started, prefix), signal.SIGTERM)
        assert (started.wait(), battery.wait()) == (0, 0)
        assert battery.out == "made\n"


def test_a_command_that_runs_too_long_is_ended_with_75(pod: Pod) -> None:
    started = pod.wrap(*ALONE, "--run-timeout", "0.1", "--", "sleep", LONG)
    assert started.wait() == 75
    assert "the command ran longer than 0.1 s" in started.err


def test_a_command_that_runs_too_long_and_ignores_sigterm_is_killed_with_75(pod: Pod) -> None:
    started, pids = stubborn(pod, "--run-timeout", "0.3", "--grace", "0.1")
    assert started.wait() == 75
    until(lambda: all(gone(pid) for pid in pids), "the group is gone", pod)


# --- orphans -----------------------------------------------------------------------------------------------------------

# Makes orphans, ends them, and ends itself once none is left, not even as a zombie.
ORPHANS = """
import os, signal, sys, time
init, pids = os.getppid(), []
for _ in range(5):
    r, w = os.pipe()
    if (middle := os.fork()) == 0:
        if (orphan := os.fork()) == 0:
            signal.pause()
        os.write(w, b"%d" % orphan)
        os._exit(0)
    os.waitpid(middle, 0)
    pids.append(int(os.read(r, 20)))
for pid in pids:
    parent = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
    assert parent == init, (parent, init)
    os.kill(pid, signal.SIGKILL)
while any(os.path.exists(f"/proc/{pid}") for pid in pids):
    time.sleep(0.001)
print("none is left")
"""


def test_orphans_are_adopted_and_reaped_and_no_zombie_is_left(pod: Pod, prefix: Sequence[str]) -> None:
    started = pod.wrap(*ALONE, "--", *PYTHON, ORPHANS, prefix=prefix)
    assert started.wait() == 0, started.err
    assert started.out == "none is left\n"


def test_orphans_are_reaped_also_after_the_command_has_ended(pod: Pod) -> None:
    script = f"(sleep {LONG} & echo $! > {pod.folder}/new); mv {pod.folder}/new {pod.folder}/pid"
    started = pod.wrap("-b", "fuse", "--", "sh", "-c", script)
    pod.hear("initupload")
    orphan = int(pod.file("pid").read_text())
    assert parent_of(orphan) == started.pid
    os.kill(orphan, signal.SIGKILL)
    until(lambda: state_of(orphan) == "", "the orphan is reaped", pod)
    pod.say("uploaddone")
    assert started.wait() == 0


def test_a_grandchild_in_the_background_that_holds_stdout_does_not_hold_the_end(pod: Pod) -> None:
    r, w = os.pipe()
    script = f"sleep {LONG} & echo $! > {pod.file('pid')}; exit 5"
    started = pod.wrap(*ALONE, "--", "sh", "-c", script, stdout=w, stderr=w)
    os.close(w)
    assert started.wait() == 5
    assert not gone(int(pod.file("pid").read_text()))
    os.close(r)


def test_the_command_dies_when_the_wrapper_is_killed(pod: Pod) -> None:
    started = pod.wrap(
        *ALONE, "--", "sh", "-c", f"echo $$ > {pod.folder}/new; mv {pod.folder}/new {pod.folder}/pid; exec sleep {LONG}"
    )
    pid = int(pod.hear_file("pid").read_text())
    assert started.kill() == -signal.SIGKILL
    until(lambda: gone(pid), "the command is gone", pod)
    assert pod.alive() is False


# --- what the command is given -----------------------------------------------------------------------------------------


def test_the_command_has_the_very_descriptors_of_the_wrapper(pod: Pod) -> None:
    started = pod.wrap(*ALONE, "-q", "--", "readlink", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2")
    assert started.wait() == 0
    assert started.out.splitlines() == [
        "/dev/null",
        str(pod.folder / "0.wrap_application.out"),
        str(pod.folder / "0.wrap_application.err"),
    ]


def test_the_command_is_given_no_descriptor_of_the_wrapper_and_all_of_its_parent(pod: Pod) -> None:
    code = "import os; print([f for f in os.listdir('/proc/self/fd') if os.path.lexists(f'/proc/self/fd/{f}')])"
    r, w = os.pipe()
    started = pod.wrap(*ALONE, "--", *PYTHON, code, pass_fds=(w,))
    assert started.wait() == 0
    assert sorted(eval(started.out), key=int) == ["0", "1", "2", str(w)]
    os.close(r)
    os.close(w)


def signals_in(line: str) -> int:
    """Return the signals of a line of /proc/PID/status, without the C library's own, 32 and 33.

    Whoever is begun by posix_spawn, as make begins things, has those ignored, and nobody can change that through the C library.
    """
    return int(line.split()[1], 16) & ~(0b11 << 31)


def status_lines(text: str) -> dict[str, int]:
    return {line.split(":")[0]: signals_in(line) for line in text.splitlines() if line.startswith(("Sig", "Shd"))} | {"SigQ": 0}


def test_the_command_has_default_dispositions_and_an_empty_mask(pod: Pod, prefix: Sequence[str]) -> None:
    started = pod.wrap(*ALONE, "--", "grep", "-E", "^(Sig(Blk|Ign|Pnd)|ShdPnd)", "/proc/self/status", prefix=prefix)
    assert started.wait() == 0
    assert set(status_lines(started.out).values()) == {0}, started.out


def test_the_command_catches_nothing(pod: Pod) -> None:
    started = pod.wrap(*ALONE, "--", "cat", "/proc/self/status")
    assert started.wait() == 0
    assert "SigCgt:\t0000000000000000" in started.out


def test_the_command_is_ended_by_a_broken_pipe(pod: Pod) -> None:
    started = pod.wrap(
        *ALONE, "--", "sh", "-c", "kill -PIPE $$; echo survived", prepare=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    )
    assert started.wait() == 128 + signal.SIGPIPE
    assert started.out == ""


def test_the_command_has_the_mask_that_the_wrapper_was_started_with(pod: Pod) -> None:
    started = pod.wrap(
        *ALONE,
        "--",
        "grep",
        "^SigBlk",
        "/proc/self/status",
        prepare=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]),
    )
    assert started.wait() == 0
    assert int(started.out.split()[1], 16) == 1 << (signal.SIGUSR2 - 1)


def test_a_sighup_that_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    with Pod(tmp_path) as pod:
        started = pod.wrap(
            *ALONE, "--", "sh", "-c", "kill -HUP $PPID; kill -HUP $$; grep ^SigIgn /proc/self/status", prefix=("nohup",)
        )
        pod.hear_state(WAITING)
        started.send(signal.SIGHUP)
        pod.say("mountdone")
        assert started.wait() == 0
        assert signals_in(started.out) == 1


def test_arguments_environment_and_folder_reach_the_command_as_they_are(pod: Pod) -> None:
    words = ["", " ", "-c", "--", "a\nb", "$HOME", "é", os.fsdecode(b"\xff\xfe")]
    code = "import os, sys; os.write(1, b'\\0'.join(map(os.fsencode, [os.getcwd(), *sys.argv[1:]])))"
    started = pod.wrap(*ALONE, "--", *PYTHON, code, *words, cwd=pod.folder)
    assert started.wait() == 0
    assert started._out.read_bytes().split(b"\0") == [os.fsencode(pod.folder), *map(os.fsencode, words)]


@pytest.mark.parametrize("given", [["A=b"], ["A=b", "LC_CTYPE=C.UTF-8"], ["A=b", "LC_ALL=C"], ["A=\udcff", "B=x=y"], []])
def test_the_environment_of_the_command_is_the_one_the_wrapper_was_given(pod: Pod, given: list[str]) -> None:
    started = pod.wrap(*ALONE, "--", "/usr/bin/env", "-0", prefix=("env", "-i", *given))
    assert started.wait() == 0
    assert sorted(started._out.read_bytes().split(b"\0")[:-1]) == sorted(map(os.fsencode, given))


def test_the_wrapper_runs_without_any_standard_descriptor(pod: Pod) -> None:
    command = f"exec {WRAP} -c {pod.coord} -b fuse --save never -- sh -c ': > {pod.file('ran')}; exit 6' <&- >&- 2>&-"
    assert pod.start("sh", "-c", command).wait() == 6
    assert pod.file("ran").exists()


def test_the_wrapper_runs_where_nobody_reads_its_messages(tmp_path: Path) -> None:
    with Pod(tmp_path) as pod:
        r, w = os.pipe()
        started = pod.wrap(*ALONE, "--", "sh", "-c", "exit 6", stderr=w)
        os.close(w)
        pod.hear_state(WAITING)
        os.close(r)
        pod.say("mountdone")
        assert started.wait() == 6


# --- the terminal ------------------------------------------------------------------------------------------------------


class Terminal:
    """A terminal, and what was written to it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        os.set_blocking(self.master, False)
        self.shown = ""

    def control(self) -> None:
        """In a child: be the one that the terminal controls."""
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def shows(self, text: str) -> bool:
        try:
            self.shown += os.read(self.master, 65536).decode()
        except OSError:  # nothing more now, or nobody holds the other side
            pass
        return text in self.shown

    def close(self) -> None:
        for fd in (self.master, self.slave):
            os.close(fd)

    def start(self, pod: Pod, *argv: str) -> Started:
        return pod.start(*argv, prepare=self.control, stdin=self.slave, stdout=self.slave, stderr=self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_a_terminal_stays_one(pod: Pod, terminal: Terminal) -> None:
    started = terminal.start(
        pod, WRAP, "-c", str(pod.coord), *ALONE, "--", "sh", "-c", "test -t 0 && test -t 1 && test -t 2 && tty"
    )
    until(lambda: terminal.shows(os.ttyname(terminal.slave)), "the command tells the name of its terminal", pod)
    assert started.wait() == 0


def test_the_command_is_in_the_foreground_of_the_terminal(pod: Pod, terminal: Terminal) -> None:
    code = "import os; print('in front' if os.tcgetpgrp(0) == os.getpgrp() != os.getpgid(os.getppid()) else 'not', input())"
    started = terminal.start(pod, WRAP, "-c", str(pod.coord), *ALONE, "--", *PYTHON, code)
    pod.hear_state(RUNNING)
    os.write(terminal.master, b"and reads\n")
    until(lambda: terminal.shows("in front and reads"), "the command is in front", pod)
    assert started.wait() == 0


def test_control_c_ends_the_command(pod: Pod, terminal: Terminal) -> None:
    started = terminal.start(pod, WRAP, "-c", str(pod.coord), *ALONE, "--", "sh", "-c", f"echo up; exec sleep {LONG}")
    until(lambda: terminal.shows("up"), "the command is up", pod)
    os.write(terminal.master, b"\x03")
    assert started.wait() == 130


def test_control_c_while_the_output_is_being_saved_leaves_the_grace(pod: Pod, terminal: Terminal) -> None:
    started = terminal.start(pod, WRAP, "-c", str(pod.coord), "-b", "fuse", "--grace", "0.2", "--", "true")
    pod.hear("initupload")
    os.write(terminal.master, b"\x03")
    assert started.wait() == 73


def test_a_wrapper_in_the_background_leaves_the_terminal_alone(pod: Pod, terminal: Terminal) -> None:
    code = "import os; print('behind' if os.tcgetpgrp(0) == os.getsid(0) else 'in front')"
    wrap = f'{WRAP} -c {pod.coord} {" ".join(ALONE)} -- {" ".join(PYTHON)} "$CODE"'
    started = pod.start(
        "sh",
        "-c",
        f"set -m; {wrap} & wait $!",
        env={"CODE": code},
        prepare=terminal.control,
        stdin=terminal.slave,
        stdout=terminal.slave,
        stderr=terminal.slave,
    )
    until(lambda: terminal.shows("behind") or terminal.shows("in front"), "the command tells where it is", pod)
    assert "behind" in terminal.shown
    assert started.wait() == 0


# --- staying, and the last message -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("flags", [["-s"], ["--stay", "1h"]])
def test_a_wrapper_that_stays_is_ended_by_a_signal_with_the_status_of_the_command(
    pod: Pod, flags: list[str], number: int
) -> None:
    started = pod.wrap(*ALONE, *flags, "--", "sh", "-c", "exit 9")
    pod.hear_state(DONE)
    assert started.running
    started.send(number)
    assert started.wait() == 9


def test_a_wrapper_that_was_sent_sigterm_does_not_stay(pod: Pod) -> None:
    started = pod.wrap(*ALONE, "-s", "--", "sh", "-c", f": > {pod.file('up')}; exec sleep {LONG}")
    pod.hear_file("up")
    started.send(signal.SIGTERM)
    assert started.wait(20) == 143


def test_a_wrapper_stays_also_where_it_failed(tmp_path: Path) -> None:
    with Pod(tmp_path) as pod:
        started = pod.wrap("-b", "fuse", "-s", "--appear-timeout", "0", "--", "true")
        pod.hear_state(FAILED)
        assert started.running
        started.send(signal.SIGTERM)
        assert started.wait() == 75


def test_the_reason_of_a_failure_goes_to_the_termination_message(tmp_path: Path) -> None:
    with Pod(tmp_path) as pod:
        log = pod.file("log")
        log.write_text("x" * 9000)
        assert pod.wrap("-b", "fuse", "--appear-timeout", "0", "--termination-log", log, "--", "true").wait() == 75
        assert "fuse was to appear and say mountdone" in log.read_text()
        assert "x" * 100 not in log.read_text()


def test_a_termination_message_has_at_most_4096_bytes_and_is_whole_characters(tmp_path: Path) -> None:
    with Pod(tmp_path) as pod:
        log = pod.file("log")
        log.touch()
        databases = " ".join(f"{'é' * 50}{number}" for number in range(60))
        flags = ("-b", "postgres", "-d", databases, "--appear-timeout", "0", "--termination-log", log)
        assert pod.wrap(*flags, "--", "true").wait() == 75
        said = log.read_bytes()
        assert 4000 < len(said) <= 4096
        assert "postgres-é" in said.decode()[:200]
        assert said.decode().endswith("…")


def test_a_usage_error_of_the_directory_goes_to_the_termination_message(tmp_path: Path) -> None:
    with Pod(tmp_path) as pod:
        log = pod.file("log")
        log.touch()
        started = pod.wrap("-b", "fuse", "--termination-log", log, "--", "true", coord=tmp_path / "missing")
        assert started.wait() == 74
        assert "cannot be opened" in log.read_text()


def test_success_leaves_no_termination_message(pod: Pod) -> None:
    log = pod.file("log")
    log.touch()
    assert pod.wrap(*ALONE, "--termination-log", log, "--", "true").wait() == 0
    assert log.read_text() == ""


@pytest.mark.parametrize("kind", ["missing", "a link", "a dangling link", "a FIFO", "a folder", "a device"])
def test_a_termination_message_goes_only_to_a_file_that_is_there(tmp_path: Path, kind: str) -> None:
    with Pod(tmp_path) as pod:
        log, other = pod.file("log"), pod.file("other")
        match kind:
            case "a link":
                other.write_text("mine")
                log.symlink_to(other)
            case "a dangling link":
                log.symlink_to(other)
            case "a FIFO":
                os.mkfifo(log)
            case "a folder":
                log.mkdir()
            case "a device":
                log = Path("/dev/full")
        assert pod.wrap("-b", "fuse", "--appear-timeout", "0", "--termination-log", log, "--", "true").wait() == 75
        assert kind == "a device" or not stat.S_ISREG(os.lstat(log).st_mode if os.path.lexists(log) else 0)
        assert (other.read_text() if other.exists() else "") == ("mine" if kind == "a link" else "")


# --- the command line --------------------------------------------------------------------------------------------------

WRONG = {
    "nothing at all": ([], "-c DIR is missing"),
    "no directory": (["-b", "fuse", "--", "true"], "-c DIR is missing"),
    "an empty directory": (["-c", "", "-b", "fuse", "--", "true"], "-c expects a directory"),
    "no value for the directory": (["-b", "fuse", "-c"], "-c expects a value"),
    "no kind": (["-c", ".", "--", "true"], "-b KIND is missing"),
    "an empty kind": (["-c", ".", "-b", "", "--", "true"], "1 to 128 bytes"),
    "a kind that is a path": (["-c", ".", "-b", "../x", "--", "true"], "no name for a kind of battery"),
    "a hidden kind": (["-c", ".", "-b", ".sidecar", "--", "true"], "no name for a kind of battery"),
    "a kind with a control character": (["-c", ".", "-b", "a\nb", "--", "true"], "no name for a kind of battery"),
    "a kind that is too long": (["-c", ".", "-b", "x" * 129, "--", "true"], "1 to 128 bytes"),
    "the application as a kind": (["-c", ".", "-b", "application", "--", "true"], "no kind of battery"),
    "postgres without a database": (["-c", ".", "-b", "postgres", "--", "true"], "-b postgres needs -d"),
    "postgres with an empty list": (["-c", ".", "-b", "postgres", "-d", " ", "--", "true"], "-b postgres needs -d"),
    "a database without postgres": (["-c", ".", "-b", "fuse", "-d", "db", "--", "true"], "need -b postgres"),
    "a database that is a path": (["-c", ".", "-b", "postgres", "-d", "db /x", "--", "true"], "no name for a database"),
    "a database that is above": (["-c", ".", "-b", "postgres", "-d", "..", "--", "true"], "no name for a database"),
    "a database with an escape": (["-c", ".", "-b", "postgres", "-d", "a\x1b[2J", "--", "true"], "no name for a database"),
    "a database that is a signal": (["-c", ".", "-b", "fuse", "-b", "postgres", "-d", "mountdone", "--", "true"], "each other"),
    "no command": (["-c", ".", "-b", "fuse"], "CMD is missing"),
    "no command behind --": (["-c", ".", "-b", "fuse", "--"], "CMD is missing"),
    "an empty command": (["-c", ".", "-b", "fuse", "--", ""], "CMD is missing"),
    "an unknown option": (["-c", ".", "-b", "fuse", "--fast", "--", "true"], "there is no option --fast"),
    "an unknown letter": (["-c", ".", "-b", "fuse", "-x", "--", "true"], "there is no option -x"),
    "an unknown letter behind a known one": (["-c", ".", "-b", "fuse", "-sx", "--", "true"], "there is no option -x"),
    "a value for a plain option": (["-c", ".", "-b", "fuse", "--poll=yes", "--", "true"], "there is no option --poll"),
    "an unknown policy": (["-c", ".", "-b", "fuse", "--save", "sometimes", "--", "true"], "on-success, always, never"),
    "a time that is none": (["-c", ".", "-b", "fuse", "--grace", "soon", "--", "true"], "--grace expects a time like"),
    "an empty time": (["-c", ".", "-b", "fuse", "--grace=", "--", "true"], "--grace expects a time like"),
    "a negative time": (["-c", ".", "-b", "fuse", "--appear-timeout", "-1", "--", "true"], "--appear-timeout expects a time"),
    "a time that is no number": (["-c", ".", "-b", "fuse", "--ready-timeout", "nan", "--", "true"], "--ready-timeout expects"),
    "an endless time": (["-c", ".", "-b", "fuse", "--run-timeout", "inf", "--", "true"], "--run-timeout expects a time"),
    "a unit that is none": (["-c", ".", "-b", "fuse", "--save-timeout", "3w", "--", "true"], "--save-timeout expects a time"),
    "no value for the last option": (["-c", ".", "-b", "fuse", "--rejoin-timeout"], "--rejoin-timeout expects a value"),
    "a stay that is none": (["-c", ".", "-b", "fuse", "--stay", "x", "--", "true"], "--stay expects a time"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_command_line_is_one_line_that_says_what_was_expected_and_2(tmp_path: Path, wrong: str) -> None:
    arguments, expected = WRONG[wrong]
    with Pod(tmp_path) as pod:
        started = pod.start(WRAP, *arguments, cwd=pod.coord)
        assert started.wait() == 2
        assert started.out == ""
        assert started.err.startswith("wrap_application: ")
        assert expected in started.err
        assert started.err.count("\n") == 1
        assert os.listdir(pod.coord) == []


@pytest.mark.parametrize("flags", [["-h"], ["--help"], ["-c", ".", "--help"], ["-qh"]])
def test_help_is_0_and_ends_in_an_example(tmp_path: Path, flags: list[str]) -> None:
    with Pod(tmp_path) as pod:
        started = pod.start(WRAP, *flags)
        assert started.wait() == 0
        assert started.err == ""
        example = started.out.splitlines()[-1].strip()
        assert started.out.splitlines()[-2] == "EXAMPLE"
        assert example.startswith("wrap_application -c ")


def test_what_help_shows_as_an_example_is_understood(tmp_path: Path) -> None:
    with Pod(tmp_path) as pod:
        shown = pod.start(WRAP, "--help")
        shown.wait()
        example = (
            shown.out.splitlines()[-1]
            .replace("/tmp/coord", str(pod.coord))
            .replace("python3 train.py --epochs 3", "echo trained")
        )
        started = pod.start("sh", "-c", f"exec {BIN}/{example.strip()}")
        for name in ("fuse", "postgres-db1", "postgres-db2"):
            pod.shell_battery("sh", name)
        assert started.wait() == 0
        assert started.out == "trained\n"


def test_quiet_says_nothing_but_errors(pod: Pod) -> None:
    quiet = pod.wrap(*ALONE, "-q", "--", "true")
    assert quiet.wait() == 0
    assert quiet.err == ""


def test_options_may_be_joined_to_their_values_and_to_each_other(pod: Pod) -> None:
    started = pod.start(WRAP, f"-c{pod.coord}", "-bfuse", "-qs", "--stay=0", "--save=never", "sh", "-c", "exit 4")
    assert started.wait() == 4


def test_the_version_is_told(tmp_path: Path) -> None:
    said = subprocess.run([WRAP, "--version"], check=True, capture_output=True, text=True)
    assert said.stdout.startswith("wrap_application ")


def test_nothing_of_a_test_stays(tmp_path: Path) -> None:
    with Pod(tmp_path) as pod:
        started = pod.start("sh", "-c", f"sleep {LONG} & sleep {LONG}")
        until(lambda: len(children_of(started.pid)) == 2, "both run", pod)
        children = children_of(started.pid)
        assert {session_of(pid) for pid in children} == {started.pid}
    assert all(gone(pid) for pid in [started.pid, *children])


# --- a shell that stops and goes on ------------------------------------------------------------------------------------

# What a shell of job control runs: the wrapper alone, and a whole pod of local processes, which has one more process in between.
STOPPED = {
    "wrap_application": "wrap_application -q -c {coord} -b fuse --save never --",
    "sidecar run": "sidecar run -q -c {coord} --store {store} --save never --dest {out}:results --",
}


@pytest.mark.parametrize("command", STOPPED.values(), ids=STOPPED)
def test_control_z_gives_the_shell_its_prompt_and_fg_goes_on_with_the_command(pod: Pod, terminal: Terminal, command: str) -> None:
    places = {"coord": pod.coord, "store": pod.file("store"), "out": pod.file("out")}
    shell = terminal.start(pod, "bash", "--norc", "--noprofile", "-i")
    script = 'echo up $((40 + 2)); read line; echo "got $line"'
    os.write(terminal.master, f"{BIN}/{command.format(**places)} sh -c '{script}'\n".encode())
    until(lambda: terminal.shows("up 42"), "the command is up", pod)
    os.write(terminal.master, b"\x1a")
    until(lambda: terminal.shows("Stopped"), "the shell says that it was stopped", pod)
    os.write(terminal.master, b"echo back $((50 + 5))\n")
    until(lambda: terminal.shows("back 55"), "the shell is back", pod)
    os.write(terminal.master, b"fg\nhello\n")
    until(lambda: terminal.shows("got hello"), "the command goes on, with the terminal", pod)
    os.write(terminal.master, b"exit $?\n")
    assert shell.wait() == 0
