"""A pod in the foreground: its containers are plain processes of the caller's, without sandboxes and without a folder.

They are the very programs that containers run, led as those of any pod are (see supervisor); each has the caller's files,
network, environment and working directory, the application the terminal as well. Nothing here takes part in their coordination.
Whoever dies, the others hear it from the directory; where it died too early to have left a trace there, this module leaves that
trace. Signals are passed on as they come, and nobody is killed, for each participant keeps to its own `--grace`; unless the pod
cannot be led on. Should this process be killed, the kernel takes all of them along.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence

from sidecar import process
from sidecar.coordination.application import ENDING
from sidecar.coordination.protocol import APPLICATION, FAILED
from sidecar.coordination.signals import Directory, Watch, follow
from sidecar.errors import NOT_EXECUTABLE, SidecarError, Unreachable
from sidecar.session.lead import Lead, Life
from sidecar.session.pod import Pod, Program
from sidecar.session.supervisor import NOT_BEGUN, Supervisor, appended

# How often `looked` is called at least, in seconds: a live view counts seconds.
TICK = 0.25
# What they have for their end where the pod cannot be led on.
_BRIEF = 5.0


def run(
    directory: Directory,
    batteries: Mapping[str, Sequence[str]],
    application: Sequence[str],
    logs: str,
    signals: process.SignalQueue,
    looked: Callable[[], None],
) -> int:
    """Run the application's wrapper and the batteries, by name, until all have ended; return the wrapper's exit status.

    What a battery prints goes to `<logs>/<name>.log`. `looked` is called whenever something was said, and every TICK seconds.
    Raises process.NotStarted where one of them cannot be begun; the others are ended then.
    """
    directory.make(())
    process.adopt_orphans()
    commands = {**batteries, APPLICATION: application}
    programs = tuple(Program(name, "", tuple(command)) for name, command in commands.items())
    lead = Lead(Pod("run", "", (), programs, {}, "Never"), 0)
    supervisor = Supervisor(lead, _Processes(), lambda name: os.path.join(logs, f"{name}.log"), signals, _pass_on)
    wrapper = lead.programs[-1]

    def step(watch: Watch) -> float | None:
        watch.add(signals.fd)
        within = supervisor.step()
        _refuse_what_is_not_begun(lead)
        for each in lead.lives:
            if each.state == "exited" and directory.alive(each.program.name) is None:
                # It died before it took its lease. One that is free is what the others take for a death.
                os.close(directory.lease(each.program.name))
        if not lead.ending and wrapper.state == "exited" and _gave_up(directory):
            # Nobody waits for the batteries any more: they are sent what the kubelet sends them.
            lead.end(time.monotonic(), math.inf)
            within = 0
        looked()
        return TICK if within is None else None if within < 0 else min(within, TICK)

    try:
        follow(directory, (), step)
    except Unreachable:
        # It was deleted. Each participant notices, and a command that runs is let run to its end.
        supervisor.run()
    finally:
        lead.end(time.monotonic(), _BRIEF)
        supervisor.run()
        signals.drain()
    return _status(wrapper)


def _pass_on(supervisor: Supervisor, number: int) -> None:
    if number not in ENDING:
        return
    if not any(each.lives for each in supervisor.lead.lives):
        # It came before there was anybody to be sent it.
        supervisor.signals.put_back([number])
    for begun in supervisor.running.values():
        begun.child.send(number)


def _refuse_what_is_not_begun(lead: Lead) -> None:
    for each in lead.lives:
        if each.exit == NOT_BEGUN and each.reason:
            raise process.NotStarted(NOT_EXECUTABLE, f"{each.program.name} {each.reason}")


def _gave_up(directory: Directory) -> bool:
    record = directory.record(APPLICATION)
    return record is not None and record.state == FAILED


def _status(wrapper: Life) -> int:
    assert wrapper.exit is not None
    return wrapper.exit


class _Processes:
    """The engine: a container is a process. Once one could not be begun, none is."""

    def __init__(self) -> None:
        self._failed: OSError | SidecarError | None = None

    def begin(self, program: Program, log: str) -> _Process:
        """Begin one; the application has the streams that we have."""
        if self._failed is not None:
            raise self._failed
        try:
            return _Process(self._spawn(program, log))
        except (OSError, SidecarError) as error:
            self._failed = error
            raise

    def _spawn(self, program: Program, log: str) -> process.Child:
        if program.name == APPLICATION:
            return process.spawn(program.command)
        out = appended(log)
        try:
            return process.spawn(program.command, streams=(out, out), background=True)
        finally:
            os.close(out)


class _Process:
    fds: tuple[int, ...] = ()

    def __init__(self, child: process.Child) -> None:
        self.child = child

    def listen(self) -> None:
        pass

    def ask(self) -> bool:
        self.child.send(process.SIGTERM)
        return True

    def kill(self) -> None:
        self.child.send(process.SIGKILL)

    def outcome(self) -> tuple[int, str]:
        return 128 + self.child.signal if self.child.signal else self.child.code, ""
