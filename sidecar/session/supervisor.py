"""What leads one pod: begins its containers, begins them again, ends them, and tells how they do.

What decides is `Lead`; what a container is to the machine, an `Engine` knows, of which there is one for each kind of runner. Each
container has a child process of ours, whose end is the container's. Whoever runs a Supervisor calls `step` whenever one of its
`fds` can be read, or a time has come.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable
from typing import Protocol

from sidecar.errors import SidecarError
from sidecar.process import SIGCHLD, Child, SignalQueue, reap
from sidecar.session.lead import Lead, Life
from sidecar.session.pod import Program
from sidecar.session.runner import Status

# That of a container which could not be begun, as Kubernetes tells it.
NOT_BEGUN = 128
# No more than that is waited at once: the kernel counts milliseconds in 31 bits, and a grace may be longer.
_LONGEST_WAIT = 3600.0
# When what could not be told is told again.
_AGAIN = 1.0
# How often is looked whether a container that is to be ended can be asked yet: a matter of milliseconds.
_SOON = 0.01


_logger = logging.getLogger(__name__)


class Begun(Protocol):
    """One life of a container: `child` ends with it. `fds` may be read when there is something to `listen` to."""

    child: Child

    @property
    def fds(self) -> tuple[int, ...]:
        """What is to be waited for besides the child's end."""

    def listen(self) -> None:
        """Take in what there is to read."""

    def ask(self) -> bool:
        """Send SIGTERM to the container; tell whether it was there to be sent one."""

    def kill(self) -> None:
        """End the container, whatever it does."""

    def outcome(self) -> tuple[int, str]:
        """Return the status of one whose child has ended, and why it could not be begun, if so; called once."""


class Engine(Protocol):
    """What begins a container."""

    def begin(self, program: Program, log: str) -> Begun:
        """Begin a container; what it writes is appended to the file `log`. What is raised is why that cannot be."""


class Supervisor:
    """Leads a pod. `log` is the path of a container's log; `heard` is told each signal that comes, `publish` how the pod stands
    whenever that is otherwise than before."""

    def __init__(
        self,
        lead: Lead,
        engine: Engine,
        log: Callable[[str], str],
        signals: SignalQueue,
        heard: Callable[[Supervisor, int], None],
        publish: Callable[[Status], None] = lambda _: None,
    ) -> None:
        self.lead, self.engine, self.signals = lead, engine, signals
        self.running: dict[str, Begun] = {}
        self._log, self._heard, self._publish = log, heard, publish
        self._last: Status | None = None

    @property
    def fds(self) -> tuple[int, ...]:
        """What wakes a supervisor."""
        return (self.signals.fd, *(fd for begun in self.running.values() for fd in begun.fds))

    def run(self) -> None:
        """Return when the pod is over."""
        while (within := self.step()) is None or within >= 0:
            poll = select.poll()
            for fd in self.fds:
                poll.register(fd, select.POLLIN)
            poll.poll(None if within is None else int(min(within, _LONGEST_WAIT) * 1000) + 1)

    def step(self) -> float | None:
        """Take note of what happened and do what is to be done; return within how many seconds to do so again, though nothing
        happens: None is never, and a negative number says that the pod is over."""
        self._notice()
        now = time.monotonic()
        begun = [self._begin(life, now) for life in self.lead.to_begin(now)]
        unheard = self._end(now)
        told = self._tell()
        if self.lead.over:
            return -1
        # What could not be begun has ended already: of that, nothing will wake us.
        again = [now] if not all(begun) else [now + _SOON] if unheard else []
        again += [] if told else [now + _AGAIN]
        wakes = [*self.lead.wakes(), *again]
        return max(0.0, min(wakes) - time.monotonic()) if wakes else None

    def _notice(self) -> None:
        came = self.signals.drain()
        for number in came:
            self._heard(self, number)
        for begun in self.running.values():
            begun.listen()
        if SIGCHLD in came:
            reap(*(each.child for each in self.running.values()))
        now = time.monotonic()
        for life in self.lead.lives:
            name = life.program.name
            if name in self.running and self.running[name].child.ended:
                self.lead.ended(life, *self.running.pop(name).outcome(), now)

    def _end(self, now: float) -> bool:
        """Ask and kill whoever is to be; tell whether one could not be asked yet."""
        for life in self.lead.to_kill(now):
            self.running[life.program.name].kill()
            life.killed = True
        asked = self.lead.to_end()
        for life in asked:
            life.asked = self.running[life.program.name].ask()
        return not all(each.asked for each in asked)

    def _begin(self, life: Life, now: float) -> bool:
        """Begin a container; tell whether that could be done."""
        name = life.program.name
        self.lead.begun(life, now)
        try:
            self.running[name] = self.engine.begin(life.program, self._log(name))
            return True
        except (OSError, ValueError, SidecarError) as error:
            self.lead.ended(life, NOT_BEGUN, f"could not be begun: {error}", now)
            return False

    def _tell(self) -> bool:
        """Tell how the pod stands, if that is new; tell whether that could be done: a full disk ends no pod."""
        status = self.lead.status()
        if status == self._last:
            return True
        try:
            self._publish(status)
        except OSError as error:
            _logger.warning("how the pod stands cannot be told: %s", error.strerror)
            return False
        self._last = status
        return True


def appended(log: str) -> int:
    """Return a descriptor that appends to the file `log`; OSError."""
    return os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
