"""What a cluster says of a pod, as a runner tells it: the API's objects and a kubelet's log lines. Pure.

Of a container, a cluster keeps the present life and the one before: `state` and `lastState`. Of those before it knows how many
there were.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sidecar.session.pod import SESSION
from sidecar.session.runner import ENDED, Container, Manifest, Phase, Status

_PHASES: tuple[Phase, ...] = ("Pending", "Running", "Succeeded", "Failed")
# Of a container that has ended, a kubelet always gives a reason; these two say no more than its status does.
_PLAIN = ("Completed", "Error")
_WRITTEN = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ")
# A line that is longer than this is told in parts.
_LONG = 1 << 20


def status_of(pod: Manifest) -> Status:
    """Return how a pod stands, by the API's object."""
    said, metadata = pod.get("status", {}), pod["metadata"]
    phase = said.get("phase", "Pending")
    return Status(
        metadata["name"],
        metadata.get("labels", {}).get(SESSION, ""),
        phase if phase in _PHASES else "Unknown",
        tuple(_container(name, _said_of(pod, name)) for name in containers(pod)),
        _reason(pod),
    )


def end_of(pod: Manifest) -> Status:
    """Return how a pod ended that was removed, by the last that was said of it."""
    status = status_of(pod)
    if status.phase in ENDED:
        return status
    if any(each.state == "running" for each in status.containers):
        return replace(status, phase="Unknown", reason="it was removed before its node had told how its containers ended")
    # Kubelets before 1.27 do not say the phase of a pod that is being deleted.
    programs = status.containers[-len(pod["spec"]["containers"]) :]
    well = all(each.state == "exited" and each.exit == 0 for each in programs)
    return replace(status, phase="Succeeded" if well else "Failed")


def containers(pod: Manifest) -> list[str]:
    """Return the names of a pod's containers: init containers first, all in the manifest's order."""
    return [each["name"] for key in ("initContainers", "containers") for each in pod["spec"].get(key) or ()]


def why_waiting(status: Status) -> str:
    """Return what is said of a pod that has not ended: its own reason, or those of its containers."""
    waiting = [f"{each.name} waits: {each.reason}" for each in status.containers if each.state == "waiting" and each.reason]
    return status.reason or "; ".join(waiting) or f"it is {status.phase}"


# --- lives -------------------------------------------------------------------------------------------------------------


def lives(pod: Manifest, container: str) -> int:
    """Return how many lives of a container have begun."""
    said = _said_of(pod, container)
    began = any(_began(said, key, each) for key in ("state", "lastState") for each in ("running", "terminated"))
    return int(said.get("restartCount", 0)) + began


def keeps_former(pod: Manifest, container: str) -> bool:
    """Tell whether the cluster keeps what the life before the last one wrote."""
    said = _said_of(pod, container)
    return _began(said, "lastState", "terminated") and "waiting" not in said.get("state", {})


def is_running(pod: Manifest, container: str) -> bool:
    """Tell whether a container is said to run."""
    return "running" in _said_of(pod, container).get("state", {})


def is_over(pod: Manifest, container: str) -> bool:
    """Tell whether a container will have no further life."""
    if pod.get("status", {}).get("phase") in ENDED:
        return True
    ended = _said_of(pod, container).get("state", {}).get("terminated")
    if ended is None:
        return False
    if "deletionTimestamp" in pod["metadata"]:
        return True
    spec = pod["spec"]
    init = [each for each in spec.get("initContainers") or () if each["name"] == container]
    (asked,) = init or [each for each in spec["containers"] if each["name"] == container]
    if "restartPolicyRules" in asked:
        return False  # They decide, until the pod has ended.
    restart = asked.get("restartPolicy") or spec.get("restartPolicy", "Always")
    if init and restart == "Always" and "restartPolicy" not in asked:
        restart = "OnFailure"
    return bool(restart == "Never" or (restart == "OnFailure" and ended.get("exitCode") == 0))


class Told:
    """What of a container's log has been told: all up to the last line, by the time at which its kubelet got each.

    So it does not matter which life is asked for and which answers, nor where a connection broke: nothing is told twice. Where a
    node's clock is put back between two answers, what was written in that time is lost.
    """

    def __init__(self) -> None:
        self._last = self._since = -1
        self._telling = self._within = False

    @property
    def since(self) -> str:
        """The second of the last line, as the API is told it; "" where none was told."""
        return "" if self._last < 0 else f"{datetime.fromtimestamp(self._last // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}"

    def fresh(self, data: Iterable[bytes]) -> Iterator[bytes]:
        """Yield what of a log has not been told, without the times; `data` is one answer, from its beginning."""
        self._since, self._telling, self._within = self._last, self._last < 0, False
        rest = b""
        for part in data:
            *lines, rest = (rest + part).split(b"\n")
            pieces = [line + b"\n" for line in lines]
            if len(rest) > _LONG:
                pieces, rest = [*pieces, rest], b""
            if found := b"".join(map(self._piece, pieces)):
                yield found
        # Of an answer that came to its end, the last line may lack its own. Of one that broke off, it will come again.
        if found := self._piece(rest) if rest else b"":
            yield found

    def _piece(self, piece: bytes) -> bytes:
        """Return what is to be told of a line, or of a part of it."""
        begins, self._within = not self._within, not piece.endswith(b"\n")
        written = _WRITTEN.match(piece) if begins else None
        if written is not None:
            at = _time(written)
            # Two streams may overtake each other by less than a moment: after the first line that is new, all are.
            self._telling = self._telling or at > self._since
            self._last = max(self._last, at) if self._telling else self._last
            piece = piece[written.end() :]
        return piece if self._telling else b""


def _time(written: re.Match[bytes]) -> int:
    """Return when a line was written, in ns."""
    second, fraction, zone = (each.decode() for each in written.groups(b""))
    return int(datetime.fromisoformat(second + zone.replace("Z", "+00:00")).timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


# --- what is said of one -----------------------------------------------------------------------------------------------


def _said_of(pod: Manifest, container: str) -> dict[str, Any]:
    status = pod.get("status", {})
    for key in ("initContainerStatuses", "containerStatuses"):
        for each in status.get(key) or ():
            if each["name"] == container:
                return dict(each)
    return {}


def _began(said: dict[str, Any], key: str, state: str) -> bool:
    """Tell whether there was a container: one that could not be made has no id."""
    found = said.get(key, {}).get(state)
    return found is not None and bool(state == "running" or found.get("containerID"))


def _container(name: str, said: dict[str, Any]) -> Container:
    state, restarts = said.get("state", {}), int(said.get("restartCount", 0))
    before = said.get("lastState", {}).get("terminated")
    ended = None if before is None else _exit(before)
    if "running" in state:
        return Container(name, "running", ended, restarts)
    if "terminated" in state:
        return Container(name, "exited", _exit(state["terminated"]), restarts, _words(state["terminated"]))
    return Container(name, "waiting", ended, restarts, _words(state.get("waiting", {})))


def _exit(ended: dict[str, Any]) -> int:
    status, number = int(ended.get("exitCode", 0)), int(ended.get("signal", 0))
    return 128 + number if number and not status else status


def _words(said: dict[str, Any]) -> str:
    reason, message = said.get("reason", ""), said.get("message", "").strip()
    return ": ".join(filter(None, ("" if reason in _PLAIN else reason, message)))


def _reason(pod: Manifest) -> str:
    status = pod.get("status", {})
    if found := _words(status):
        return found
    if "deletionTimestamp" in pod["metadata"]:
        return "it is being deleted"
    for each in status.get("conditions") or ():
        if each.get("type") == "PodScheduled" and each.get("status") == "False":
            return _words(each)
    return ""
