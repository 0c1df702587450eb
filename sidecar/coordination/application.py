"""The application's side: wait for the batteries, run the command once, tell them, wait until its output is safe.

`protocol.application_next` decides; this module looks, does what it was told, and looks again. It is the init of its container,
so there is one loop with one place to wait, for what peers say, for signals and for the end of the command alike.

Order matters in two places. The claim (`started`) is published before the command begins, so that no later life begins it
again. The end (`exit`) is published before any battery is asked to save, so that a life that dies in between asks again.
"""

from __future__ import annotations

import os
import select
import time

from sidecar import errors, process
from sidecar.coordination import protocol
from sidecar.coordination.memory import Memory, Once
from sidecar.coordination.protocol import APPLICATION, DONE, EXITED, FAILED, RUNNING, Exit, Limits, Problem, Record, Seen, Since
from sidecar.coordination.signals import Directory, follow, new_incarnation
from sidecar.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.coordination.protocol import Battery
    from sidecar.coordination.signals import Watch

# What ends a wait: the signals whose default action ends a process and that people and kubelets send.
ENDING = (process.SIGHUP, process.SIGINT, process.SIGQUIT, process.SIGTERM)
# A record keeps the last times at which states were entered; more lives than these are no help to anyone.
TIMES = 64


@value
class Options:
    """What may be said of a run: the pod's policy, how long things may take, and how it listens."""

    save: str = protocol.ON_SUCCESS
    limits: Limits = Limits()
    fail_fast: bool = False
    forced_polling: bool = False
    stay: float = 0.0
    once: Once | None = None


@value
class Ending:
    """How a participant's life ended: the exit status, and the reason where it is not the command's own (not yet told)."""

    status: int
    problem: Problem | None = None
    record: Record | None = None


def entered(record: Record, state: str, error: Problem | None = None) -> Record:
    """Return the record of a participant that has just entered `state`."""
    return replace(record, state=state, error=error, times=(*record.times, (state, time.time()))[-TIMES:])


def run(
    directory: Directory,
    batteries: Sequence[Battery],
    command: Sequence[str],
    options: Options,
    signals: process.SignalQueue,
    tell: Callable[[str], None],
) -> Ending:
    """Run `command` once between its batteries' `ready` and `saved`, and return how to end.

    Raises Unreachable where the directory cannot be read or written before the command begins, ConfigurationError where another
    living wrapper uses the directory. `tell` is called with one line for each thing that people may want to know.
    """
    return _Application(directory, batteries, command, options, signals, tell).run()


class _Application:
    def __init__(
        self,
        directory: Directory,
        batteries: Sequence[Battery],
        command: Sequence[str],
        options: Options,
        signals: process.SignalQueue,
        tell: Callable[[str], None],
    ) -> None:
        self.directory, self.batteries, self.command, self.options = directory, batteries, command, options
        self.signals, self.tell = signals, tell
        self.child: process.Child | None = None
        self.stopped: Problem | None = None
        self.kill_at = protocol.FOREVER
        self.told: object = None
        self.ending: Ending | None = None
        self.lost = False
        # That what the command wrote is read to its end: whoever reads our own output does not.
        self.gave_up = False
        self.memory = Memory(options.once, directory, command, tell, signals.wake) if options.once is not None else None
        self.names = [s for b in batteries for s in (b.ready, b.save, b.saved)]

    def run(self) -> Ending:
        self.directory.make(self.names)
        lease = self.directory.lease(APPLICATION)
        try:
            self._be_born()
            folders = {s.rpartition("/")[0] for s in self.names}
            try:
                follow(self.directory, folders, self._step, forced_polling=self.options.forced_polling)
            except errors.Unreachable as error:
                self._lost_directory(error)
            assert self.ending is not None
            self._finish_replay()
            self._stay()
            return self.ending
        finally:
            # The last record is published by now: whoever finds the lease free reads it.
            os.close(lease)

    def _be_born(self) -> None:
        previous = self.directory.record(APPLICATION)
        now = time.monotonic()
        self.me = replace(
            protocol.application_born(previous, new_incarnation(), self.options.save),
            born=time.time(),
            limits=self.options.limits,
            peers=tuple((b.name, b.kind) for b in self.batteries),
            # Not its arguments: they may hold what is nobody else's business.
            payload={**((previous.payload or {}) if previous is not None else {}), "command": os.path.basename(self.command[0])},
        )
        self.since = Since(born=now, phase=now)
        if previous is None:
            # Nobody can have been asked to save what has not run: left by an earlier use of the directory.
            for b in self.batteries:
                if self.directory.said(b.save):
                    self.directory.unsay(b.save)
        else:
            self.since = replace(self.since, old=protocol.old_stories(self.me, self._look(), self.batteries))
            self.tell(f"life {self.me.life} of this container; an earlier one left it {previous.state}")
            if self.me.exit is not None:
                self.tell(
                    f"the command has run already and ended with status {self.me.exit.status}; it is not run again "
                    "(for another run, use an empty coordination directory)"
                )
        found = self.memory.recall(self.me) if self.memory is not None else self.me
        if isinstance(found, Problem):
            self._enter(self.me.state)
            self._fail(found)
        else:
            self.me = found
            self._enter(self.me.state)

    def _look(self) -> dict[str, Seen]:
        return {b.name: self.directory.look(b.name, b) for b in self.batteries}

    def _enter(self, state: str, error: Problem | None = None, **changes: object) -> None:
        """Publish that this participant is in `state` now."""
        self.me = entered(replace(self.me, **changes), state, error)
        try:
            self.directory.publish_record(self.me)
        except errors.Unreachable:
            if not self.lost:  # then that has been noticed, and the end must come all the same
                raise
        self.since = replace(self.since, phase=time.monotonic())
        self.directory.tell(self.me, f"is {state}" + (f": {error.reason}" if error else ""))

    # --- the loop

    def _step(self, watch: Watch) -> float | None:
        if self.told is None:
            watch.add(self.signals.fd)
            self.told = ()
        while True:
            self._hear_signals()
            if self.ending is not None:
                return None
            now = time.monotonic()
            self._kill_if_due(now)
            seen = self._look()
            self._note_lost(seen, now)
            step = protocol.application_next(
                self.me,
                seen,
                self.batteries,
                now=now,
                since=self.since,
                limits=self.options.limits,
                running=self.child is not None,
                fail_fast=self.options.fail_fast,
            )
            match step:
                case protocol.Wait(on, until):
                    self._tell_waits(on)
                    if self.child is None or self.options.fail_fast:
                        for name, peer in seen.items():
                            watch.guard(name, peer.alive)
                    return min(until, self.kill_at) - now
                case protocol.Run():
                    self._begin()
                case protocol.Stop(problem):
                    self._stop(problem, now)
                    return self.kill_at - now
                case protocol.Ask(battery, fresh):
                    if fresh:
                        # A script says `saved` after it was asked, so one that stands there before is an earlier life's.
                        self.directory.unsay(battery.saved)
                    exit_ = self.me.exit
                    assert exit_ is not None
                    self.directory.say(battery.save, self.me, {"status": exit_.status})
                case protocol.Fail(problem):
                    self._fail(problem)
                case protocol.Leave(status, problem):
                    if self.me.state != FAILED:
                        self._enter(DONE)
                    self.ending = Ending(status, problem or self.me.error or self._own_problem(), self.me)

    def _own_problem(self) -> Problem | None:
        """Return why it was not the command itself that came to its end, where that is so."""
        exit_ = self.me.exit
        return Problem(exit_.status, APPLICATION, exit_.reason) if exit_ is not None and exit_.reason else None

    def _tell_waits(self, on: tuple[protocol.Waiting, ...]) -> None:
        waits = tuple((w.name, w.what) for w in on)
        if waits != self.told and self.child is None:
            for name, what in waits:
                self.tell(f"waiting for {name} {what}")
        self.told = waits

    def _note_lost(self, seen: dict[str, Seen], now: float) -> None:
        over = self.me.exit is not None
        known = dict(self.since.lost)
        lost = tuple(
            (b.name, known.get(b.name, now))
            for b in self.batteries
            if protocol.battery_standing(b, seen[b.name], over=over)[0] == protocol.LOST
        )
        if lost != self.since.lost:
            self.since = replace(self.since, lost=lost)

    def _begin(self) -> None:
        payload = dict(self.me.payload or {})
        if self.memory is not None:
            found = self.memory.claim()
            if isinstance(found, Problem):
                self._fail(found)
                return
            if found is not None:
                self._enter(EXITED, started=True, exit=found)
                return
            payload["run"] = self.memory.claimed
        try:
            self._enter(RUNNING, started=True, payload=payload)
        except errors.Unreachable:
            if self.memory is not None:
                self.memory.withdraw()
            raise
        process.adopt_orphans()
        try:
            self.child = process.spawn(self.command) if self.memory is None else self.memory.begin()
        except process.NotStarted as error:
            self._over(Exit(error.status, reason=str(error)))
        except (OSError, RuntimeError) as error:  # no more processes, descriptors or threads
            reason = f"{self.command[0]}: cannot be begun: {getattr(error, 'strerror', None) or error}"
            self._over(Exit(errors.NOT_EXECUTABLE, reason=reason))

    def _over(self, exit_: Exit) -> None:
        begun = self.child is not None
        self.child = None
        self.kill_at = protocol.FOREVER
        if self.memory is not None:
            self.memory.keep_last()
        try:
            self._enter(EXITED, exit=exit_)
        finally:
            if self.memory is not None:
                self.memory.finish(exit_, begun=begun)

    def _fail(self, problem: Problem) -> None:
        self._enter(FAILED, problem)

    # --- signals

    def _hear_signals(self) -> None:
        kept: list[int] = []
        for number in self.signals.drain():
            if number == process.SIGCHLD:
                self._reap()
            elif self.child is not None:
                if number == process.SIGTERM:
                    self._terminated()
                self.child.send(number)
            elif number in ENDING:
                self._terminated()
                if self.me.exit is None and not self.me.started and self.me.state != FAILED:
                    self._fail(Problem(128 + number, APPLICATION, f"signal {number} came before the command was begun"))
                    self.ending = Ending(128 + number, self.me.error, self.me)
            elif self.me.exit is None:
                kept.append(number)  # For the command, once it has begun.
        if kept:
            self.signals.put_back(kept)
        self._note_end()

    def _terminated(self) -> None:
        """SIGTERM: one budget, `grace`, for the command and for the saving. A second one shortens it."""
        grace = self.options.limits.grace
        if self.since.terminated is None:
            self.directory.tell(self.me, f"was sent SIGTERM and has {grace:g} s")
        self.since = protocol.terminated(self.since, time.monotonic(), grace)
        assert self.since.terminated is not None
        self.kill_at = min(self.kill_at, self.since.terminated + grace)

    def _reap(self) -> None:
        was = self.child is None or self.child.ended
        process.reap(self.child)
        if self.child is not None and self.child.ended and not was and self.memory is not None:
            self.memory.ended()

    def _note_end(self) -> None:
        """Where the command has ended, and all that it wrote is read: so it ended."""
        child = self.child
        if child is None or not child.ended or (self.memory is not None and not self.memory.heard and not self.gave_up):
            return
        if self.stopped is not None:
            self._over(Exit(child.code, child.signal, self.stopped.reason, self.stopped.status))
        else:
            self._over(Exit(child.code, child.signal))

    # --- ends

    def _stop(self, problem: Problem, now: float) -> None:
        """End the command: SIGTERM, grace, SIGKILL. Said again, it changes nothing."""
        if self.stopped is None and self.child is not None:
            self.kill_at = min(self.kill_at, now + self.options.limits.grace)
            if not self.child.ended:  # or nobody reads what it wrote
                self.stopped = problem
                self.child.send(process.SIGTERM)

    def _kill_if_due(self, now: float) -> None:
        if now < self.kill_at or self.child is None:
            return
        if self.child.ended:
            self.gave_up = True
            self._note_end()
        else:
            self.child.send(process.SIGKILL)
            self.kill_at = protocol.FOREVER if self.memory is None else now + protocol.SECOND_GRACE

    def _lost_directory(self, error: errors.Unreachable) -> None:
        """The directory went away or is full. A command that runs is let run to its end: nobody is served by losing that too."""
        self.lost = True
        self._mind_the_command()
        problem = Problem(error.status, APPLICATION, str(error))
        self._enter(FAILED, problem)
        own = self.me.exit.status if self.me.exit is not None else 0
        self.ending = Ending(own or error.status, problem, self.me)

    def _mind_the_command(self) -> None:
        """Be its init to its end: signals, its limit, SIGKILL when the grace is over."""
        poll = select.poll()
        poll.register(self.signals.fd, select.POLLIN)
        while True:
            self._hear_signals()
            if self.child is None:
                return
            now = time.monotonic()
            self._kill_if_due(now)
            step = protocol.application_next(self.me, {}, (), now=now, since=self.since, limits=self.options.limits, running=True)
            until = self.kill_at
            if isinstance(step, protocol.Stop):
                self._stop(step.problem, now)
                until = self.kill_at
            elif isinstance(step, protocol.Wait):
                until = min(until, step.until)
            poll.poll(max(0.0, min(60.0, until - now) * 1000 + 1))

    def _finish_replay(self) -> None:
        """Return when what an earlier life wrote is written again; where nobody reads it, SIGTERM leaves that its grace."""
        poll = select.poll()
        poll.register(self.signals.fd, select.POLLIN)
        while self.memory is not None and not self.memory.replayed:
            until = protocol.FOREVER
            if self.since.terminated is not None:
                until = self.since.terminated + self.options.limits.grace
            if (left := until - time.monotonic()) <= 0:
                return
            poll.poll(min(60.0, left) * 1000)
            for number in self.signals.drain():
                if number in ENDING:
                    self._terminated()
            process.reap(None)

    def _stay(self) -> None:
        """Stay a while after the end, for somebody to look around; a signal ends it, also one that came before the end."""
        if self.since.terminated is not None:
            return
        until = time.monotonic() + self.options.stay
        poll = select.poll()
        poll.register(self.signals.fd, select.POLLIN)
        while (left := until - time.monotonic()) > 0:
            poll.poll(left * 1000)
            came = self.signals.drain()
            process.reap(None)
            if any(number in ENDING for number in came):
                return
