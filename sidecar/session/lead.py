"""What becomes of a pod: which container is begun now, which is to end, and how the whole stands. Pure.

Whoever leads a pod asks `Lead` what to do and tells it what happened, and when. Its rules are the kubelet's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sidecar.session.pod import Pod, Program
from sidecar.session.runner import Container, Phase, State, Status

# As a kubelet: the time between two lives of a container doubles up to five minutes, and begins anew after ten that went well.
LONGEST, WENT_WELL = 300.0, 600.0


@dataclass
class Life:
    """One container: its present life, if it has one, and what is left of those before."""

    program: Program
    init: bool
    state: State = "waiting"
    exit: int | None = None
    restarts: int = 0
    reason: str = ""
    due: float = 0.0
    lives: int = 0
    began: float = 0.0
    failures: int = 0
    asked: bool = False
    killed: bool = False

    @property
    def done(self) -> bool:
        """Whether it is an init container that did what it was to."""
        return self.state == "exited" and self.exit == 0


@dataclass
class Lead:
    """What becomes of a pod. `next` says what to do now, `ended` is told how a container did; both are told the time."""

    pod: Pod
    backoff: float
    ending: bool = False
    deadline: float = 0.0
    reason: str = ""
    inits: list[Life] = field(default_factory=list)
    programs: list[Life] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inits = [Life(each, init=True) for each in self.pod.inits]
        self.programs = [Life(each, init=False) for each in self.pod.programs]

    @property
    def lives(self) -> list[Life]:
        """All containers, in the manifest's order."""
        return [*self.inits, *self.programs]

    @property
    def over(self) -> bool:
        """Whether nothing runs, and nothing will."""
        return self.ending and not any(each.state == "running" for each in self.lives)

    def end(self, now: float, grace: float) -> None:
        """Begin the end of the pod; a second time, do so sooner."""
        deadline = now + grace
        self.deadline = min(self.deadline, deadline) if self.ending else deadline
        self.ending = True
        for each in self.lives:
            if each.state == "waiting" and each.lives:
                each.state, each.reason = "exited", ""

    def to_begin(self, now: float) -> list[Life]:
        """Return the containers whose time has come; where the pod is at its end by itself, begin that."""
        if self.ending:
            return []
        found = []
        for each in self.inits:
            if each.program.sidecar:
                found += self._due(each, now)
                continue
            if each.done:
                continue
            if each.state == "exited":
                self.reason = f"init container {each.program.name} ended with status {each.exit}"
                self.end(now, self.pod.grace)
                return []
            return [*found, *self._due(each, now)]
        found += [due for each in self.programs for due in self._due(each, now)]
        if all(each.state == "exited" for each in self.programs):
            self.end(now, self.pod.grace)
            return []
        return found

    def to_end(self) -> list[Life]:
        """Return the containers to be sent SIGTERM: native sidecars come last, in reverse, for the others may need them."""
        if not self.ending:
            return []
        running = [each for each in self.lives if each.state == "running"]
        others = [each for each in running if not each.program.sidecar]
        return [each for each in others or running[-1:] if not each.asked]

    def to_kill(self, now: float) -> list[Life]:
        """Return the containers whose time is over."""
        return self._unkilled() if self.ending and now >= self.deadline else []

    def begun(self, life: Life, now: float) -> None:
        """Note that a container runs."""
        life.restarts += life.lives > 0
        life.lives += 1
        life.state, life.reason, life.began = "running", "", now

    def ended(self, life: Life, status: int, reason: str, now: float) -> None:
        """Note how a container did; it is begun again, later, where the pod says so."""
        life.exit, life.reason = status, reason
        restart = "Always" if life.program.sidecar else self.pod.restart
        if life.init and restart == "Always" and not life.program.sidecar:
            restart = "OnFailure"
        if self.ending or restart == "Never" or (restart == "OnFailure" and status == 0):
            life.state = "exited"
            return
        life.failures = 0 if now - life.began >= WENT_WELL else life.failures
        life.due = now + min(self.backoff * 2.0**life.failures, LONGEST)
        life.failures = min(life.failures + 1, 32)
        life.state, life.reason = "waiting", reason or "CrashLoopBackOff"

    def wakes(self) -> list[float]:
        """Return when there may be something to do though nothing happens."""
        if self.ending:
            return [self.deadline] if self._unkilled() else []
        return [each.due for each in self.lives if each.state == "waiting" and each.lives]

    def status(self) -> Status:
        """Return how the pod stands."""
        containers = tuple(Container(each.program.name, each.state, each.exit, each.restarts, each.reason) for each in self.lives)
        return Status(self.pod.name, self.pod.session, self._phase(), containers, self.reason)

    def _phase(self) -> Phase:
        if self.over:
            return "Succeeded" if all(each.lives and each.exit == 0 for each in self.programs) else "Failed"
        return "Running" if any(each.lives for each in self.programs) else "Pending"

    def _unkilled(self) -> list[Life]:
        return [each for each in self.lives if each.state == "running" and not each.killed]

    def _due(self, life: Life, now: float) -> list[Life]:
        return [life] if life.state == "waiting" and now >= life.due else []
