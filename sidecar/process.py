"""One child and the signals of its parent: spawn, forward, reap, status; and which process is which. What an init does, no more.

Signals are queued by Python's handlers, not read from a descriptor: the interpreter remembers a tripped signal per number, so
none is lost however many come at once; the descriptor only wakes whoever polls. (A one-slot mailbox, as in Go's signal.Notify
with capacity one, loses SIGTERM in a burst.) All signals are blocked around fork, so one that comes meanwhile is delivered
afterwards and forwarded. There is one waitpid loop and it owns every child: nothing else in the process may wait for one.

The child gets a process group of its own, the terminal if it is ours, default dispositions (those that were ignored when we
started stay ignored, as with nohup), the original mask and environment, none of our descriptors, and SIGKILL should we die.
"""

from __future__ import annotations

import errno
import os
import sys

from sidecar import linux
from sidecar.errors import NOT_EXECUTABLE, NOT_FOUND, UNKNOWN, SidecarError
from sidecar.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signals
    from collections.abc import Mapping, Sequence
    from typing import Any
else:
    # What `signal` stands on: its enums cost 4 ms of import.
    import _signal as _signals

SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGPIPE, SIGTERM, SIGCHLD, SIGTTOU, SIGXFSZ = 1, 2, 3, 9, 13, 15, 17, 22, 25
# Not caught: what cannot be (9, 19), what tells of a fault of this very process (4 ILL, 5 TRAP, 6 ABRT, 7 BUS, 8 FPE, 11 SEGV,
# 13 PIPE, 25 XFSZ, 31 SYS), the terminal's (20 TSTP, 21 TTIN, 22 TTOU), and the C library's own (32, 33).
_NOT_CAUGHT = {4, 5, 6, 7, 8, 9, 11, 13, 19, 20, 21, 22, 25, 31, 32, 33}
CAUGHT = tuple(n for n in range(1, 65) if n not in _NOT_CAUGHT)


class NotStarted(SidecarError):
    """The command could not be begun: 127 it was not found, 126 it cannot be executed."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class SignalQueue:
    """The signals that came to this process, in a queue; `fd` can be read when there may be some."""

    def __init__(self, caught: Sequence[int] = CAUGHT) -> None:
        self.fd, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._queue: list[int] = []
        self._was: dict[int, Any] = {}
        self._wake_was = _signals.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in caught:
            was = _signals.getsignal(number)
            if was != _signals.SIG_IGN or number == SIGCHLD:
                _signals.signal(number, self._came)
                self._was[number] = was

    def _came(self, number: int, _frame: object) -> None:
        self._queue.append(number)

    def drain(self) -> list[int]:
        """Return the signals that came since the last time, oldest first."""
        try:
            while len(os.read(self.fd, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        came, self._queue = self._queue, []
        return came

    def put_back(self, numbers: Sequence[int]) -> None:
        """Have the next drain return `numbers` first."""
        self._queue[:0] = numbers

    def wake(self) -> None:
        """Wake whoever polls, although no signal came; from any thread."""
        try:
            os.write(self._wake, b"!")
        except OSError:
            pass  # It is full: then whoever polls wakes anyway.

    def close(self) -> None:
        """Restore the dispositions that were there before."""
        _signals.set_wakeup_fd(self._wake_was)
        for number, was in self._was.items():
            _signals.signal(number, was if was is not None else _signals.SIG_DFL)
        os.close(self.fd)
        os.close(self._wake)


@value
class Identity:
    """Which process it is, also after its id was given to another: with when it was begun, in ticks since the machine was.

    `boot` names the machine's life, `namespace` that in which `pid` counts: containers of one pod have one each.
    """

    pid: int
    ticks: int
    boot: str
    namespace: int


def identity(pid: int) -> Identity | None:
    """Return who process `pid` is; None where there is none, or no /proc to ask.

    Not the time of day at which it was begun: that is counted from ticks, and moves when the clock is set.
    """
    try:
        ticks = int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19])
        return Identity(pid, ticks, boot(), os.stat("/proc/self/ns/pid").st_ino)
    except (OSError, ValueError, IndexError):
        return None


_own: Identity | None = None
_boot = ""


def own_identity() -> Identity | None:
    """Return who this process is, as `identity` does; it stays so, and is asked for once, and again in what was forked."""
    global _own
    if _own is None or _own.pid != os.getpid():
        _own = identity(os.getpid())
    return _own


def boot() -> str:
    """Return the id of this life of the machine; "" where there is no /proc. Asked for once."""
    global _boot
    if not _boot:
        try:
            _boot = _read("/proc/sys/kernel/random/boot_id").decode().strip()
        except OSError:
            return ""
    return _boot


def _read(path: str) -> bytes:
    # Not open(), which takes half as long again: each claim of `once` waits for this.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


class Child:
    """A child in a process group of its own. `code` and `signal` are None until it has ended and was reaped."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended = False
        self.code = 0
        self.signal = 0

    def send(self, number: int) -> None:
        """Send a signal to the child's whole group; to the child where it has left it."""
        if self.ended:
            return
        try:
            os.killpg(self.pid, number)
        except OSError:
            try:
                os.kill(self.pid, number)
            except OSError:
                pass


def fill_streams() -> None:
    """Open nothing in the place of each standard stream that was closed when we started, before another file takes it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_RDWR)


def adopt_orphans() -> None:
    """Have orphaned descendants come to this process, to be reaped, also where it is not PID 1."""
    if os.getpid() != 1:
        try:
            linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        except OSError:
            pass  # Refused by some emulators: then orphans go to whoever is the init there.


def reap(*children: Child | None) -> None:
    """Reap every child that has ended; remember how `children` did. Where one was stopped at the terminal, stop with it."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return
        if pid == 0:
            return
        for child in children:
            if child is not None and pid == child.pid and not child.ended:
                _note(child, status)


def wait(child: Child) -> None:
    """Return when `child` has ended and was reaped; leave other children alone, as where this process is nobody's init."""
    while not child.ended:
        try:
            _note(child, os.waitpid(child.pid, os.WUNTRACED)[1])
        except ChildProcessError:  # where SIGCHLD is ignored, or another waits for every child: how it ended is lost
            child.ended, child.code = True, UNKNOWN


def _note(child: Child, status: int) -> None:
    if os.WIFSTOPPED(status):
        _stop_with(child)
        return
    child.ended = True
    _take_terminal_back(child.pid)
    if os.WIFSIGNALED(status):
        child.signal = os.WTERMSIG(status)
    else:
        child.code = os.WEXITSTATUS(status)


def spawn(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    streams: tuple[int, int] = (1, 2),
    background: bool = False,
    directory: str | None = None,
    called: str = "",
) -> Child:
    """Begin `command` in `directory` and return it; raises NotStarted. The caller's SignalQueue forwards to it and reaps it.

    `streams` are the descriptors that are its stdout and stderr. In the `background` its stdin is empty, and the terminal stays
    where it is. What is raised names it as it is `called`, or by its name.
    """
    if environment is None:
        environment = environment_given()
    place = _opened(directory) if directory is not None else -1
    try:
        return _spawn(command, environment, streams, background, place, called or command[0])
    finally:
        if place >= 0:
            os.close(place)


def _opened(directory: str) -> int:
    # Here and not in the child, where its errno would be taken for the command's.
    try:
        return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotStarted(NOT_EXECUTABLE, f"{directory}: cannot be the working directory: {error.strerror}") from None


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], streams: tuple[int, int], background: bool, place: int, called: str
) -> Child:
    problem, tell = os.pipe2(os.O_CLOEXEC)
    parent, group = os.getpid(), os.getpgrp()
    mask = _signals.pthread_sigmask(_signals.SIG_BLOCK, _signals.valid_signals())
    try:
        if sys.stdout is not None:  # as where it was closed when we started
            sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _become(command, environment, mask, parent, group, tell, streams, background, place)
        try:
            # Here too, so that a signal forwarded right away finds the group; whoever comes first, the other is told EACCES.
            os.setpgid(pid, pid)
        except OSError:
            pass
    finally:
        os.close(tell)
        _signals.pthread_sigmask(_signals.SIG_SETMASK, mask)
    try:
        said = os.read(problem, 64)
    finally:
        os.close(problem)
    if not said:
        return Child(pid)
    os.waitpid(pid, 0)
    number = int(said)
    if number == errno.ENOENT:
        raise NotStarted(NOT_FOUND, f"{called}: not found")
    raise NotStarted(NOT_EXECUTABLE, f"{called}: cannot be executed: {os.strerror(number)}")


def environment_given() -> dict[str, str]:
    """Return the environment that we were given: in the C locale, Python puts an LC_CTYPE of its own into it (PEP 538)."""
    environment = dict(os.environ)
    if environment.get("LC_CTYPE") in ("C.UTF-8", "C.utf8", "UTF-8"):
        try:
            with open("/proc/self/environ", "rb", buffering=0) as file:
                given = [entry[9:] for entry in file.readall().split(b"\0") if entry.startswith(b"LC_CTYPE=")]
        except OSError:
            return environment  # No /proc: there is no telling.
        if given:
            environment["LC_CTYPE"] = os.fsdecode(given[0])
        else:
            del environment["LC_CTYPE"]
    return environment


def _become(
    command: Sequence[str],
    environment: Mapping[str, str],
    mask: set[Any],
    parent: int,
    group: int,
    tell: int,
    streams: tuple[int, int],
    background: bool,
    place: int,
) -> None:
    """In the child: become `command`. Never returns."""
    try:
        os.setpgid(0, 0)
        _signals.signal(SIGTTOU, _signals.SIG_IGN)
        if background:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        else:
            _give_terminal(os.getpid(), group)  # Not from the background: it is somebody else's then.
        if streams != (1, 2):
            _take_streams(streams)
        if place >= 0:
            os.fchdir(place)
        for number in (*CAUGHT, SIGPIPE, SIGXFSZ, SIGTTOU):
            if number in (SIGPIPE, SIGXFSZ, SIGTTOU) or _signals.getsignal(number) != _signals.SIG_IGN:
                _signals.signal(number, _signals.SIG_DFL)
        if not linux.end_with(parent):
            os._exit(NOT_EXECUTABLE)
        _signals.pthread_sigmask(_signals.SIG_SETMASK, mask)
        _execute(command, environment)
    except OSError as error:
        os.write(tell, str(error.errno).encode())
    except ValueError:  # a NUL, or an environment that is none
        os.write(tell, str(errno.EINVAL).encode())
    finally:
        os._exit(NOT_EXECUTABLE)


def _give_terminal(group: int, taken_from: int) -> bool:
    """Have the terminal, if there is one, send its signals to `group`, where they went to `taken_from`; tell whether they did."""
    for fd in (0, 1, 2):
        try:
            if os.isatty(fd):
                if os.tcgetpgrp(fd) != taken_from:
                    return False
                os.tcsetpgrp(fd, group)
                return True
        except OSError:
            pass
    return False


def _take_terminal_back(child: int) -> bool:
    """Ctrl-C would go nowhere, had the ended child's group kept the terminal while its output is saved."""
    was = _signals.pthread_sigmask(_signals.SIG_BLOCK, [SIGTTOU])
    had_it = _give_terminal(os.getpgrp(), child)
    _signals.pthread_sigmask(_signals.SIG_SETMASK, was)
    return had_it


def _stop_with(child: Child) -> None:
    """A child was stopped that has the terminal (Ctrl-Z): stop too, or the shell never gets it back; later go on together.

    Not as PID 1, which cannot be stopped. One that has not the terminal was stopped by somebody for reasons of his own.
    """
    if os.getpid() == 1 or not _take_terminal_back(child.pid):
        return
    os.kill(os.getpid(), _signals.SIGSTOP)
    # Here again after SIGCONT. After `fg` the terminal is ours to hand on, after `bg` it is not.
    _give_terminal(child.pid, os.getpgrp())
    child.send(_signals.SIGCONT)


def _take_streams(streams: tuple[int, int]) -> None:
    # By copies: one of the two may be where the other goes.
    for fd, target in [(os.dup(fd), target) for target, fd in enumerate(streams, 1)]:
        os.dup2(fd, target)


def _execute(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Become `command`, looked up along PATH as a shell does; os.execvp imports `warnings` on the way."""
    name = command[0]
    refused: OSError = FileNotFoundError(errno.ENOENT, "")
    folders = [""] if "/" in name else environment.get("PATH", os.defpath).split(":")
    for folder in folders:
        path = os.path.join(folder, name)
        try:
            os.execve(path, list(command), dict(environment))  # noqa: S606
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            # Also what a folder answers that this user may not search, /root/bin say: the command is not found there.
            if "/" in name or os.path.exists(path):
                refused = error
    raise refused
