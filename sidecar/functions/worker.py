"""One worker: one program in a sandbox, under limits, and what comes of it.

    bwrap   itself is the child; as which user, and under which limits, is said by the programs in front of it
    PID 1   bwrap again, in the sandbox, which reaps what the program leaves
    runtime.sh, which becomes the program

What bwrap says on a descriptor (`--json-status-fd`) tells a program that failed from a worker that did: it says `exit-code` only
of a program that ended. The source is handed over by a descriptor, and is never a file of the machine's.

A worker is over when the kernel has ended PID 1 of its sandbox, and so everything in there: until then nobody is told its end.
Workers are begun by the thread that runs the loop, with which they would die.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from sidecar.errors import ConfigurationError
from sidecar.functions.answer import Asked, Limits, Ran, Status
from sidecar.functions.confinement import Machine, command, confined, links, sandbox
from sidecar.functions.syscalls import refusals
from sidecar.sandbox import command_line, options

_CHUNK = 1 << 16
_SHELLS = 128
# What the kernel ends a program by whose limit is passed, and what that is called.
_LIMITS: dict[int, Status] = {signal.SIGXCPU: "timeout", signal.SIGXFSZ: "file-limit"}
# The kernel is to end a worker before whoever serves them, where memory is short.
_OF_ALL_FIRST = "1000"
_WHY = 500


def machine(bwrap: str, user: int | None) -> Machine:
    """Return what workers have of this machine; ConfigurationError where it cannot confine them, tried as `user`."""
    found = []
    for path in ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin"):
        if os.path.islink(path):
            found.append((path, os.readlink(path)))
        elif os.path.isdir(path):
            found.append((path, ""))
    # Nothing but links to programs in /usr.
    found += [("/etc/alternatives", "")] if os.path.isdir("/etc/alternatives") else []
    try:
        calls = refusals(os.uname().machine)
    except ValueError as error:
        raise ConfigurationError(f"functions cannot be confined here: {error}") from None
    for hostname in ("function", ""):
        made = Machine(bwrap, links(found), calls, hostname)
        why = _try(made, user)
        if not why:
            return made
    raise ConfigurationError(f"functions cannot be confined here: {why}")


def _try(machine: Machine, user: int | None) -> str:
    """Return why no sandbox can be made of a machine, "" where one can."""
    given: list[int] = []
    try:
        script, source, calls = (_held("data", data, given) for data in (b"", b"", machine.filter))
        said = options(sandbox(Asked(b""), machine, script, source, calls))
        words = [machine.bwrap, "--args", str(_held("options", _joined(said), given)), "--", "/usr/bin/true"]
        line = confined(Limits(), user, words)
        ran = subprocess.run(line, pass_fds=given, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    finally:
        for fd in given:
            os.close(fd)
    return (ran.stderr.strip().rpartition("\n")[2] or f"bwrap ended with {ran.returncode}") if ran.returncode else ""


class Worker:
    """Runs one program; `number` is what it is called in the answer, `user` the one that it runs as, if the caller may choose.

    It begins with `run`, which returns what came of it; `end` makes an end of it before that.
    """

    def __init__(self, number: int, asked: Asked, script: bytes, machine: Machine) -> None:
        self.number = number
        self._asked, self._script, self._machine = asked, script, machine
        self.user: int | None = None
        self._streams = (bytearray(), bytearray())
        self._said = b""
        self._code: int | None = None
        self._ended: Status | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._ending = self._first = -1
        self._open: set[int] = set()
        self._over: asyncio.Future[None] | None = None

    def end(self, status: Status = "lost") -> None:
        """Have the program ended, and all that it began; `run` returns when they are."""
        self._ended = self._ended or status
        if self._first in self._open:
            _kill(self._first)
        elif self._first < 0 and self._ending in self._open:
            self._halt()

    async def run(self) -> Ran:
        """Return what came of it, once nothing of it is left."""
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        if self._ended is not None:
            return Ran(self.number, self._ended)
        self._over = loop.create_future()
        try:
            self._begin()
        except OSError as error:
            return Ran(self.number, "worker-failed", reason=f"could not be begun: {error.strerror}")
        timer = loop.call_later(self._asked.limits.wall, self.end, "timeout")
        try:
            await asyncio.shield(self._over)
        except asyncio.CancelledError:
            self.end()
            await self._over
            raise
        finally:
            timer.cancel()
        return self._outcome(time.monotonic() - began)

    # --- beginning

    def _begin(self) -> None:
        asked = self._asked
        given: list[int] = []
        kept: list[int] = []
        try:
            source, stdin = _held("source", asked.source, given), _held("stdin", asked.stdin, given)
            script, calls = _held("script", self._script, given), _held("calls", self._machine.filter, given)
            said = options(sandbox(asked, self._machine, script, source, calls))
            told = _held("options", _joined(said), given)
            for _ in range(3):
                read, write = os.pipe2(os.O_CLOEXEC)
                kept.append(read)
                given.append(write)
                os.set_blocking(read, False)
            out, err, tell = given[-3:]
            gate, opened = os.pipe2(os.O_CLOEXEC)
            given += (gate, opened)
            words = command_line(self._machine.bwrap, told, tell, command(asked), gate)
            self._child = subprocess.Popen(
                confined(asked.limits, self.user, words),
                stdin=stdin,
                stdout=out,
                stderr=err,
                pass_fds=(script, source, calls, told, tell, gate),
                cwd="/",
                env={"PATH": os.defpath},
                start_new_session=True,
            )
            try:
                self._ending = os.pidfd_open(self._child.pid)
            except OSError:
                # The gate is shut: a child of bwrap's would wait for ever for a parent that ends so early.
                self._child.kill()
                self._child.wait()
                raise
            with suppress(OSError), open(f"/proc/{self._child.pid}/oom_score_adj", "w") as file:
                file.write(_OF_ALL_FIRST)
        except BaseException:
            for fd in kept:
                os.close(fd)
            raise
        finally:
            for fd in given:
                os.close(fd)
        self._watch(kept[0], self._hear, self._streams[0])
        self._watch(kept[1], self._hear, self._streams[1])
        self._watch(kept[2], self._listen)
        self._watch(self._ending, self._close)

    def _watch(self, fd: int, do: Callable[..., None], *more: object) -> None:
        self._open.add(fd)
        asyncio.get_running_loop().add_reader(fd, do, fd, *more)

    def _close(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        self._open.discard(fd)
        os.close(fd)
        if not self._open and self._over is not None and not self._over.done():
            self._over.set_result(None)

    # --- while it runs

    def _hear(self, fd: int, stream: bytearray) -> None:
        """Keep what the program writes, as far as that goes."""
        data = os.read(fd, _CHUNK)
        if not data:
            self._close(fd)
            return
        room = self._asked.limits.output - len(stream)
        stream += data[:room]
        if len(data) > room:
            self.end("output-limit")

    def _listen(self, fd: int) -> None:
        """Hear from bwrap which process is the first of the sandbox, and how the program ended."""
        data = os.read(fd, _CHUNK)
        *lines, self._said = (self._said + data).split(b"\n")
        for line in filter(None, lines):
            record = json.loads(line)
            self._code = record.get("exit-code", self._code)
            if "child-pid" in record:
                self._meet(record["child-pid"])
        if not data:
            self._close(fd)

    def _meet(self, pid: int) -> None:
        """Wait for the first process of the sandbox as well: the kernel ends it after all others in there."""
        assert self._child is not None
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        # It is bwrap's child, which nobody else's can be until we have waited for that: or it is gone, and the number another's.
        if _parent(pid) != self._child.pid:
            os.close(fd)
            return
        if self._first < 0:
            self._first = fd
            self._watch(fd, self._close)
            if self._ended is not None:
                _kill(fd)
        else:
            os.close(fd)

    def _halt(self) -> None:
        """End bwrap, which has not said yet that it has a child.

        A child whose parent ends so early waits for it for ever. So bwrap is stopped, gets no more children then, and those that
        it has end with it.
        """
        assert self._child is not None
        pid = self._child.pid
        self._child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        try:
            with open(f"/proc/{pid}/task/{pid}/children") as file:
                children = [int(each) for each in file.read().split()]
        except OSError:
            children = []
        for child in children:
            self._meet(child)
        _kill(self._ending)

    # --- afterwards

    def _outcome(self, wall: float) -> Ran:
        assert self._child is not None
        self._child.wait()
        out, err = map(bytes, self._streams)
        code, number, status = self._code, None, self._ended
        if code is not None and code > _SHELLS:
            number = code - _SHELLS
        if status is None and code is None:
            why = err[-_WHY:].decode(errors="replace").strip().rpartition("\n")[2]
            return Ran(self.number, "worker-failed", wall=wall, reason=why or f"bwrap ended with {self._child.returncode}")
        if status == "lost":
            return Ran(self.number, "lost", wall=wall)
        if status is None:
            status = _LIMITS.get(number or 0, "signalled" if number else "error" if code else "ok")
        elif code is None:
            number = int(signal.SIGKILL)
        return Ran(self.number, status, None if number else code, number, out, err, wall)


def _joined(words: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(each) + b"\0" for each in words)


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, signal.SIGKILL)


def _held(name: str, data: bytes, given: list[int]) -> int:
    """Return a descriptor of memory that holds `data`, to be read from its beginning."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    given.append(fd)
    os.pwrite(fd, data, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0
