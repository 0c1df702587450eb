"""PostgreSQL's programs, run as the account that servers run as: initdb, pg_dump, psql, a server in single-user mode.

Root never runs any of them, for they read what a bundle says. They get an environment of their own, never ours, in which secrets
may stand; what they print is bounded. Where the battery dies, they do.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from sidecar import linux
from sidecar.errors import ConfigurationError, PeerFailed
from sidecar.store import Stopped
from sidecar.values import value

Cancelled = Callable[[], bool]

_KEPT = 40  # lines of what a program said last, each of at most _LINE characters
_LINE = 400
_LOOK = 0.05  # seconds between two looks at whether it was cancelled


@value
class Account:
    """Who runs servers and owns their files."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    @property
    def popen(self) -> dict[str, Any]:
        """What Popen needs to have a program run as this account; nothing where we are it."""
        if os.geteuid() != 0:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": list(self.groups)}

    def own(self, path: str | int, folder: int | None = None) -> None:
        """Give a file or directory, by path (from `folder`, a descriptor) or descriptor, to this account; no link is followed."""
        if os.geteuid() == 0:
            if isinstance(path, int):
                os.fchown(path, self.uid, self.gid)
            else:
                os.chown(path, self.uid, self.gid, dir_fd=folder, follow_symlinks=False)


def account(user: str) -> Account:
    """Return ourselves; where we are root, the account called `user`. ConfigurationError where there is none, or it is root's."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        raise ConfigurationError(
            f"servers are to run as {user!r}, and there is no such account; name another with --user"
        ) from None
    if found.pw_uid == 0:
        raise ConfigurationError(f"servers never run as root, and {user!r} is root's account; name another with --user")
    return Account(found.pw_uid, found.pw_gid, tuple(os.getgrouplist(user, found.pw_gid)))


def environment(bindir: str, home: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a program: messages in English, for what is told of a failure; nothing of ours."""
    return {"PATH": f"{bindir}:/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "HOME": home, **(more or {})}


class Tail:
    """What a program said last, and whoever wants to hear each line."""

    def __init__(self, hear: Callable[[str], None] | None = None) -> None:
        self._lines: list[str] = []
        self._hear = hear
        self._thread: threading.Thread | None = None

    def follow(self, stream: IO[bytes]) -> None:
        """Read a program's output to its end, in a thread of its own, and close it."""
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream, suppress(ValueError):  # it was closed meanwhile
            while raw := stream.readline(_LINE * 4):
                self.add(raw.decode(errors="replace").rstrip("\n"))

    def add(self, line: str) -> None:
        """Have said a line."""
        self._lines = [*self._lines[1 - _KEPT :], line[:_LINE]]
        if self._hear is not None:
            self._hear(line)

    def finish(self, seconds: float = 1.0) -> bool:
        """Return whether everything was read; not later than in so many seconds, should a grandchild hold the pipe."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    @property
    def lines(self) -> list[str]:
        return self._lines

    def told(self, *marks: str) -> str:
        """Return the last line that holds one of `marks`, from the mark on; else the last line; "" where there is none."""
        marked = [line[line.index(mark) :] for line in self._lines for mark in marks if mark in line]
        return (marked or self._lines or [""])[-1].strip()


def end_with_parent(number: int) -> Callable[[], None]:
    """Return what Popen is to call in the child, so that signal `number` comes when the thread dies that began it."""
    parent = os.getpid()

    def call() -> None:
        # After Popen has changed to the account: a change of credentials would undo it.
        linux.prctl(linux.PR_SET_PDEATHSIG, number)
        if os.getppid() not in (parent, 0):
            os._exit(1)

    return call


def run(
    argv: Sequence[str],
    who: Account,
    env: Mapping[str, str],
    *,
    text: str = "",
    cancelled: Cancelled | None = None,
    cwd: str = "/",
    hear: Callable[[str], None] | None = None,
    pass_fds: Sequence[int] = (),
) -> list[str]:
    """Run a program with `text` as its input, and return its last lines. PeerFailed, with the line that says why; Stopped."""
    tail = Tail(hear)
    with subprocess.Popen(
        list(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd=cwd,
        umask=0o077,
        start_new_session=True,
        preexec_fn=end_with_parent(signal.SIGKILL),
        pass_fds=list(pass_fds),
        **who.popen,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        tail.follow(process.stdout)
        try:
            with process.stdin as stdin:
                stdin.write(text.encode())
        except BrokenPipeError:
            pass  # it ended before it had read all of it; why, its status says
        while not _has_ended(process, tail):
            if cancelled is not None and cancelled():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                tail.finish()
                raise Stopped(f"{os.path.basename(argv[0])}: told to stop")
    if process.returncode:
        why = tail.told("FATAL:", "PANIC:", "ERROR:", "error:", "fatal:", "psql:") or f"status {process.returncode}"
        raise PeerFailed(f"{os.path.basename(argv[0])} failed: {why}")
    return tail.lines


def _has_ended(process: subprocess.Popen[bytes], tail: Tail) -> bool:
    """Return whether a program has ended, _LOOK later at most. Its output ends first; Popen.wait would look every 50 ms."""
    if not tail.finish(_LOOK):
        if process.poll() is None:
            return False
        tail.finish()
    try:
        process.wait(_LOOK)
        return True
    except subprocess.TimeoutExpired:
        return False
