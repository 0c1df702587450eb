"""What a runner is: whatever begins the pod of a session somewhere, tells how it stands, and ends it.

A runner knows no artifacts, only the pod that was composed of them, as plain data. All honour the same of it: initContainers in
turn, of which one that fails ends the pod; native sidecars; containers with their commands, environments, mounts and users;
volumes; restartPolicy; the grace period; `$(NAME)` as a kubelet expands it. What a runner does not honour it refuses by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Manifest = dict[str, Any]
State = Literal["waiting", "running", "exited"]
Phase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]
ENDED: tuple[Phase, ...] = ("Succeeded", "Failed")


@dataclass(frozen=True)
class Container:
    """One container of a pod, as it stands.

    `exit` is the status of its last life, 128 + n where signal n ended it; `reason` why it waits, or could not be begun.
    """

    name: str
    state: State
    exit: int | None = None
    restarts: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Status:
    """One pod, as it stands; init containers come first, all in the manifest's order. `phase` is as Kubernetes counts.

    It is Unknown where a cluster's node does not tell.
    """

    name: str
    session: str
    phase: Phase
    containers: tuple[Container, ...]
    reason: str = ""


class Runner(Protocol):
    """Where pods run. A name belongs to one pod, until that is stopped, also after it has ended."""

    @property
    def image_volumes(self) -> bool:
        """Whether a volume may be an image wherever there is such a runner."""

    def start(self, pod: Manifest) -> None:
        """Begin the pod, and return.

        ConfigurationError where there is one of its name already, which is left alone; ParametersError, with every fault, where
        the manifest has what this runner does not honour.
        """

    def list(self) -> list[Status]:
        """Return the pods that are there, by name."""

    def status(self, name: str) -> Status:
        """Return how a pod stands; SourceMissing where there is none of that name."""

    def wait(self, name: str, timeout: float | None = None) -> Status:
        """Return when a pod has ended; DeadlinePassed where it has not within `timeout` seconds."""

    def logs(self, name: str, container: str, *, follow: bool = False) -> Iterator[bytes]:
        """Yield what a container wrote in all its lives, as written; to `follow` is to go on until it has ended for good."""

    def stop(self, name: str, grace: float | None = None) -> Status:
        """End a pod, remove all that is of it, its volumes too, and return how it ended.

        Its containers are sent SIGTERM, and SIGKILL after `grace` seconds: those of the pod, unless given here.
        """
