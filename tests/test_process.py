"""One child and the signals of its parent: the small units under the wrapper. What they do together stands in test_init.py."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import HANG, LONG, Pod, gone, until

from sidecar import linux, process
from sidecar.process import CAUGHT, Child, SignalQueue

SOME = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


@pytest.fixture
def queue() -> Iterator[SignalQueue]:
    queue = SignalQueue(SOME)
    yield queue
    queue.close()


def readable(fd: int, seconds: float) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


# --- the queue ---------------------------------------------------------------------------------------------------------


def test_a_signal_wakes_and_is_drained_once(queue: SignalQueue) -> None:
    signal.raise_signal(signal.SIGUSR1)
    assert readable(queue.fd, HANG)
    assert queue.drain() == [signal.SIGUSR1]
    assert not readable(queue.fd, 0)
    assert queue.drain() == []


def test_signals_of_different_numbers_are_all_kept(queue: SignalQueue) -> None:
    for number in SOME:
        signal.raise_signal(number)
    assert sorted(queue.drain()) == sorted(SOME)


def test_signals_that_come_while_blocked_are_kept(queue: SignalQueue) -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SOME)
    for number in SOME:
        signal.raise_signal(number)
    assert queue.drain() == []
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert sorted(queue.drain()) == sorted(SOME)


def test_what_is_put_back_comes_first(queue: SignalQueue) -> None:
    signal.raise_signal(signal.SIGUSR1)
    queue.put_back([signal.SIGWINCH, signal.SIGUSR2])
    assert queue.drain() == [signal.SIGWINCH, signal.SIGUSR2, signal.SIGUSR1]


def test_a_queue_survives_more_signals_than_its_pipe_holds(queue: SignalQueue) -> None:
    for _ in range(70_000):
        signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR2)
    came = queue.drain()
    assert came[-1] == signal.SIGUSR2
    assert not readable(queue.fd, 0)


def test_a_queue_restores_what_was_there_before() -> None:
    was = {number: signal.getsignal(number) for number in SOME}
    SignalQueue(SOME).close()
    assert {number: signal.getsignal(number) for number in SOME} == was


def test_a_queue_leaves_alone_what_is_ignored() -> None:
    was = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        queue = SignalQueue(SOME)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
        queue.close()
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, was)


def test_a_queue_leaves_no_descriptor_open() -> None:
    before = os.listdir("/proc/self/fd")
    SignalQueue(SOME).close()
    assert os.listdir("/proc/self/fd") == before


def test_what_tells_of_a_fault_of_the_wrapper_itself_is_not_caught() -> None:
    faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}
    assert faults.isdisjoint(CAUGHT)
    assert {signal.SIGKILL, signal.SIGSTOP}.isdisjoint(CAUGHT)
    assert {1, 2, 3, 10, 12, 14, 15, 17, 18, 28, 34, 64} <= set(CAUGHT)


# --- a child -----------------------------------------------------------------------------------------------------------

# Spawning forks and reaping owns every child of its process, so each is tried in a process of its own.
ALONE = """
import os, select, signal, sys
from sidecar import process
from sidecar.process import *

def end(child, signals):
    while not child.ended:
        select.select([signals.fd], [], [], 60)
        signals.drain()
        reap(child)
    return child.code, child.signal

signals = SignalQueue()
"""


def alone(folder: Path, code: str, *arguments: str) -> str:
    with Pod(folder) as pod:
        started = pod.python(ALONE + code, *arguments)
        assert started.wait() == 0, started.err
        return started.out.strip()


def test_a_child_that_ended_has_its_code_and_no_signal(tmp_path: Path) -> None:
    assert alone(tmp_path, "print(end(spawn(['sh', '-c', 'exit 7']), signals))") == "(7, 0)"


def test_a_child_that_was_ended_has_its_signal_and_no_code(tmp_path: Path) -> None:
    assert alone(tmp_path, "print(end(spawn(['sh', '-c', 'kill -9 $$']), signals))") == "(0, 9)"


def test_a_child_has_the_environment_it_is_given_and_its_path_is_searched(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text('#!/bin/sh\necho "$A"\n')
    (tmp_path / "tool").chmod(0o755)
    code = "child = spawn(['tool'], {'PATH': sys.argv[1], 'A': 'é'}); end(child, signals)"
    assert alone(tmp_path, code, str(tmp_path)) == "é"


def test_without_a_path_the_systems_is_searched(tmp_path: Path) -> None:
    assert alone(tmp_path, "end(spawn(['echo', 'found'], {}), signals)") == "found"


def test_an_empty_entry_of_the_path_is_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\necho here\n")
    (tmp_path / "tool").chmod(0o755)
    assert alone(tmp_path, "os.chdir(sys.argv[1]); end(spawn(['tool'], {'PATH': ''}), signals)", str(tmp_path)) == "here"


def test_a_signal_sent_right_after_the_spawn_reaches_the_child(tmp_path: Path) -> None:
    code = f"""
for _ in range(50):
    child = spawn(['sleep', '{LONG}'])
    child.send(15)
    assert end(child, signals) == (0, 15)
"""
    assert alone(tmp_path, code) == ""


def test_a_child_that_left_its_group_is_still_sent_to(tmp_path: Path) -> None:
    code = f"""
r, w = os.pipe()
os.set_inheritable(w, True)
leave = f"import os, time; os.setpgid(0, os.getpgid(os.getppid())); os.write({{w}}, b'!'); time.sleep({LONG})"
child = spawn([sys.executable, '-ISc', leave])
os.read(r, 1)
child.send(15)
print(end(child, signals))
"""
    assert alone(tmp_path, code) == "(0, 15)"


def test_sending_to_a_child_that_has_ended_does_nothing() -> None:
    child = Child(2**22)
    child.ended = True
    child.send(signal.SIGKILL)


def test_sending_to_a_child_that_is_not_there_does_nothing() -> None:
    Child(2**22 + 1).send(signal.SIGTERM)


def test_reaping_without_children_returns() -> None:
    process.reap(None)


def test_a_child_that_cannot_be_begun_leaves_neither_process_nor_descriptor(tmp_path: Path) -> None:
    code = """
before = os.listdir('/proc/self/fd')
for name, status in (('no-such-command', 127), ('/', 126), ('/etc/passwd', 126), ('/dev/null/x', 127), ('x' * 5000, 126)):
    try:
        spawn([name])
    except NotStarted as error:
        assert error.status == status, (name, error.status)
        assert name in str(error)
    else:
        raise AssertionError(name)
assert os.listdir('/proc/self/fd') == before
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print('no child')
"""
    assert alone(tmp_path, code) == "no child"


@pytest.mark.parametrize("environment", [{"A": "b\0c"}, {"": "x"}])
def test_an_environment_that_is_none_is_told(tmp_path: Path, environment: dict[str, str]) -> None:
    code = f"""
try:
    end(spawn(['true'], {environment!r}), signals)
    print(126)
except (NotStarted, ValueError) as error:
    print(126 if isinstance(error, ValueError) else error.status)
"""
    assert alone(tmp_path, code) == "126"


def test_arguments_that_are_too_long_are_126(tmp_path: Path) -> None:
    code = "\ntry:\n    spawn(['true', 'x' * (1 << 22)])\nexcept NotStarted as error:\n    print(error.status, error)"
    assert alone(tmp_path, code) == "126 true: cannot be executed: Argument list too long"


def test_the_mask_is_restored_also_where_the_child_cannot_be_begun(tmp_path: Path) -> None:
    code = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
try:
    spawn(['no-such-command'])
except NotStarted:
    print(signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGUSR2})
"""
    assert alone(tmp_path, code) == "True"


def test_a_child_in_the_background_writes_where_it_is_told_and_reads_nothing(tmp_path: Path) -> None:
    code = """
out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
print(end(spawn(['sh', '-c', 'cat; echo out; echo err >&2'], streams=(out, out), background=True), signals))
"""
    assert alone(tmp_path, code, str(tmp_path / "log")) == "(0, 0)"
    assert (tmp_path / "log").read_text() == "out\nerr\n"


def test_several_children_are_reaped_each_with_its_own_end(tmp_path: Path) -> None:
    code = """
children = [spawn(['sh', '-c', f'exit {n}']) for n in range(5)]
while not all(child.ended for child in children):
    select.select([signals.fd], [], [], 60)
    signals.drain()
    reap(*children)
print([child.code for child in children])
"""
    assert alone(tmp_path, code) == "[0, 1, 2, 3, 4]"


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    with Pod(tmp_path) as pod:
        code = ALONE + f"child = spawn(['sleep', '{LONG}']); print(child.pid, flush=True); signal.pause()"
        started = pod.python(code)
        until(lambda: started.out.endswith("\n"), "the child runs", pod)
        started.kill()
        until(lambda: gone(int(started.out)), "the child is gone", pod)


def test_what_linux_refuses_is_an_os_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        linux.inotify_add_watch(-1, b"/", linux.IN_CREATE)
    with pytest.raises(OSError, match="Invalid argument"):
        linux.prctl(-1, 0)
