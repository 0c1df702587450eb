"""A battery's side: make it ready, say so, wait until the application is over, keep what it made, say so.

`protocol.battery_next` decides; this module looks, does what it was told, and looks again. `ready` and `save` of the battery run
in a thread of their own, so that meanwhile signals are heard, deadlines kept, and the application's death noticed. One thread at
a time, but for the one of `watch`, which a battery may have; and only the main thread publishes records.

Order matters in two places. The record is published before the signal that says the same, and a later life says again what the
record of an earlier one holds: a life that dies between the two has kept its promise to a shell script as well. What an earlier
life left and is not true of this one (`ready`) is taken away before the work begins.
"""

from __future__ import annotations

import os
import select
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from sidecar import batteries, errors, process
from sidecar.coordination import protocol
from sidecar.coordination.application import ENDING, Ending, entered
from sidecar.coordination.protocol import (
    APPLICATION,
    DONE,
    FAILED,
    PREPARING,
    READY,
    SAVING,
    Battery,
    Limits,
    Problem,
    Seen,
    Since,
)
from sidecar.coordination.signals import Directory, Watch, follow, new_incarnation
from sidecar.errors import SidecarError
from sidecar.values import replace, value

# How often the progress of `ready` and `save` is published, in seconds.
PROGRESS = 0.25
# How long a battery may take to let go of everything, in seconds; the process ends then, whatever still runs.
CLOSING = 5.0


@value
class Options:
    """What may be said of a battery's life: its own policy ("" follows the application's), how long things may take."""

    save: str = ""
    limits: Limits = Limits()
    native: bool = False
    forced_polling: bool = False
    stay: float = 0.0


def serve(
    directory: Directory,
    battery: Battery,
    make: Callable[[batteries.Progress], batteries.Battery],
    options: Options,
    signals: process.SignalQueue,
    tell: Callable[[str], None],
) -> Ending:
    """Drive the battery that `make` returns through one life, and return how to end.

    Raises Unreachable where the directory cannot be read or written, ConfigurationError where another living participant goes by
    the battery's name. `tell` is called with one line for each thing that people may want to know.
    """
    return _Host(directory, battery, make, options, signals, tell).serve()


class _Work(threading.Thread):
    """One method of a battery under way; `wake` is written to when it is over."""

    def __init__(self, what: Callable[[], Mapping[str, Any]], wake: int) -> None:
        super().__init__(daemon=True)
        self._what, self._wake = what, wake
        self.payload: Mapping[str, Any] = {}
        self.error: BaseException | None = None
        self.over = False

    def run(self) -> None:
        try:
            self.payload = self._what() or {}
        except BaseException as error:  # also what is no Exception must reach the peers
            self.error = error
        self.over = True
        os.write(self._wake, b"!")


class _Host:
    def __init__(
        self,
        directory: Directory,
        battery: Battery,
        make: Callable[[batteries.Progress], batteries.Battery],
        options: Options,
        signals: process.SignalQueue,
        tell: Callable[[str], None],
    ) -> None:
        self.directory, self.battery, self.make, self.options = directory, battery, make, options
        self.signals, self.tell = signals, tell
        self.made: batteries.Battery | None = None
        self.work: _Work | None = None
        self.watched: _Work | None = None
        self.ending: Ending | None = None
        self.told: object = None
        self.last_progress, self.last_what = 0.0, ""
        self.over, self.wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def serve(self) -> Ending:
        b = self.battery
        self.directory.make((b.ready, b.save, b.saved))
        lease = self.directory.lease(b.name)
        try:
            try:
                self._be_born()
                follow(self.directory, [b.ready.rpartition("/")[0]], self._step, forced_polling=self.options.forced_polling)
            except errors.Unreachable as error:
                self._lost_directory(error)
            finally:
                self._close()
            assert self.ending is not None
            self._stay()
            return self.ending
        finally:
            os.close(lease)

    def _be_born(self) -> None:
        b, now = self.battery, time.monotonic()
        previous = self.directory.record(b.name)
        self.me = replace(
            protocol.battery_born(previous, b.name, b.kind, new_incarnation(), self.options.save),
            born=time.time(),
            limits=self.options.limits,
            peers=((APPLICATION, APPLICATION),),
        )
        self.since = Since(born=now, phase=now)
        if self.me.state == DONE:
            self.tell(f"{b.name} was done in an earlier life")
        else:
            if previous is not None:
                self.tell(f"life {self.me.life} of {b.name}; an earlier one left it {previous.state}")
            # A first life has been asked nothing yet: the question was left by an earlier use of the directory.
            for signal in (b.ready, b.saved) if previous is not None else (b.ready, b.saved, b.save):
                if self.directory.said(signal):
                    self.directory.unsay(signal)
        self.since = replace(self.since, old=protocol.old_story(self.me, self.directory.look_at_application(b)))
        self._enter(self.me.state)
        if self.me.state == DONE:
            self._say_done(self.directory.look_at_application(b))

    def _enter(self, state: str, error: Problem | None = None, **changes: object) -> None:
        self.me = entered(replace(self.me, **changes), state, error)
        self.directory.publish_record(self.me)
        self.since = replace(self.since, phase=time.monotonic())
        self.directory.tell(self.me, f"is {state}" + (f": {error.reason}" if error else ""))

    def _say_done(self, application: Seen) -> None:
        """Say `saved` where something was kept, or where somebody asked and would wait for ever."""
        if (self.me.saved or application.save) and not self.directory.said(self.battery.saved):
            self.directory.say(self.battery.saved, self.me, {"saved": self.me.saved, **(self.me.payload or {})})

    # --- the loop

    def _step(self, watch: Watch) -> float | None:
        if self.told is None:
            watch.add(self.signals.fd)
            watch.add(self.over)
            self.told = ()
        while True:
            self._hear_signals()
            try:
                os.read(self.over, 4096)
            except BlockingIOError:
                pass
            if self.work is not None and self.work.over:
                self._worked(self.work)
            if self.watched is not None and self.watched.over:
                self._watched(self.watched)
            if self.ending is not None:
                return None
            now = time.monotonic()
            seen = self.directory.look_at_application(self.battery)
            lost = ((APPLICATION, now),) if protocol.application_standing(seen)[0] == protocol.NEVER_RAN else ()
            if bool(lost) != bool(self.since.lost):
                self.since = replace(self.since, lost=lost)
            step = protocol.battery_next(
                self.me,
                seen,
                now=now,
                since=self.since,
                limits=self.options.limits,
                working=self.work is not None,
                native=self.options.native,
            )
            match step:
                case protocol.Wait(on, until):
                    self._tell_waits(on)
                    watch.guard(APPLICATION, seen.alive)
                    return until - now
                case protocol.Prepare():
                    self._begin("ready")
                case protocol.Save():
                    if self.me.state != SAVING:
                        self._enter(SAVING)
                    self._begin("save")
                case protocol.Finish(reason):
                    self.tell(reason)
                    self._enter(DONE, saved=False, save=self.me.save or (seen.record.save if seen.record else ""))
                    self._say_done(seen)
                case protocol.Fail(problem):
                    self._fail(problem)
                case protocol.Leave(status, problem):
                    self.ending = Ending(status, problem, self.me)

    def _tell_waits(self, on: tuple[protocol.Waiting, ...]) -> None:
        waits = tuple((w.name, w.what) for w in on)
        if waits != self.told:
            for name, what in waits:
                self.tell(f"waiting for {name} {what}")
        self.told = waits

    def _begin(self, method: str) -> None:
        def work() -> Mapping[str, Any]:
            if self.made is None:
                self.made = self.make(self._progress)
            found: Mapping[str, Any] = getattr(self.made, method)()
            return found

        self.work = _Work(work, self.wake)
        self.work.start()

    def _progress(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last_progress >= PROGRESS or (total and done >= total) or what != self.last_what:
            self.last_progress, self.last_what = now, what
            self.directory.publish_progress(self.battery.name, what, done, total)

    def _worked(self, work: _Work) -> None:
        self.work = None
        if self.me.state not in (PREPARING, SAVING):
            return  # It was given up meanwhile, and that has been said.
        saving = self.me.state == SAVING
        if work.error is not None:
            self._fail(self._problem_of(work.error, saving))
        elif saving:
            # What `ready` told stays true, and a later life may ask for it.
            self._enter(DONE, saved=True, payload={**(self.me.payload or {}), **work.payload})
            self._say_done(self.directory.look_at_application(self.battery))
        else:
            self._enter(READY, payload=dict(work.payload))
            self.directory.say(self.battery.ready, self.me, work.payload)
            self._watch()

    def _watch(self) -> None:
        """Have a battery that can tell that it failed do so."""
        watch: Callable[[], None] | None = getattr(self.made, "watch", None)
        if watch is not None:
            self.watched = _Work(lambda: watch() or {}, self.wake)
            self.watched.start()

    def _watched(self, watched: _Work) -> None:
        self.watched = None
        # Once it saves, or has ended, that is what tells how it went.
        if watched.error is not None and self.me.state == READY:
            self._fail(self._problem_of(watched.error, saving=False))

    def _problem_of(self, error: BaseException, saving: bool) -> Problem:
        if isinstance(error, SidecarError):
            return Problem(errors.NOT_SAVED if saving else error.status, self.battery.name, str(error))
        self.tell("".join(traceback.format_exception(error)).rstrip())
        text = f"{type(error).__name__}: {error}"
        return Problem(errors.NOT_SAVED if saving else errors.UNAVAILABLE, self.battery.name, text)

    def _fail(self, problem: Problem) -> None:
        self._enter(FAILED, problem)

    # --- signals and ends

    def _hear_signals(self) -> None:
        for number in self.signals.drain():
            if number not in ENDING:
                continue
            grace = self.options.limits.grace
            if self.since.terminated is None:
                self.directory.tell(self.me, f"was sent signal {number} and has {grace:g} s")
                self.tell(f"signal {number}: {grace:g} s are left")
            self.since = protocol.terminated(self.since, time.monotonic(), grace)

    def _lost_directory(self, error: errors.Unreachable) -> None:
        problem = Problem(error.status, self.battery.name, str(error))
        try:
            self._enter(FAILED, problem)
        except SidecarError:
            pass
        self.ending = Ending(error.status, problem, getattr(self, "me", None))

    def _close(self) -> None:
        """Let the battery go, also while its work is still under way; the process ends soon, whatever it does."""
        if self.made is None:
            return
        closing = threading.Thread(target=self.made.close, daemon=True)
        closing.start()
        closing.join(CLOSING)
        if self.work is not None:
            self.work.join(CLOSING)

    def _stay(self) -> None:
        until = time.monotonic() + self.options.stay
        poll = select.poll()
        poll.register(self.signals.fd, select.POLLIN)
        while (left := until - time.monotonic()) > 0 and self.since.terminated is None:
            poll.poll(left * 1000)
            self._hear_signals()
