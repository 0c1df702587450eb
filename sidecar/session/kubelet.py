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

_STATES = ("waiting", "running", "terminated")
_PHASES: tuple[Phase, ...] = ("Pending", "Running", "Succeeded", "Failed")
# Of a container that has ended, a kubelet always gives a reason; these two say no more than its status does.
_PLAIN = ("Completed", "Error")
_WRITTEN = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ")
# What may be left of such a time where an answer is cut in it.
_CUT = re.compile(rb"[0-9T:.Z+-]{1,35}")
_SECOND = 10**9
# By how much one stream of a container may overtake the other, in ns.
_MOMENT = _SECOND
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


# --- what an answer has to be ------------------------------------------------------------------------------------------

# Of a pod, all that is looked at here: what of it is there, is so. `...` stands for any key.
_STATE = {each: {"reason": str, "message": str, "exitCode": int, "signal": int, "containerID": str} for each in _STATES}
_STATUSES = [{"name": str, "restartCount": int, "state": _STATE, "lastState": _STATE}]
_CONTAINERS = [{"name": str, "restartPolicy": str}]
_POD = {
    "metadata": {
        "name": str,
        "uid": str,
        "resourceVersion": str,
        "deletionTimestamp": str,
        "labels": {...: str},
        "annotations": {...: str},
    },
    "spec": {
        "containers": _CONTAINERS,
        "initContainers": _CONTAINERS,
        "restartPolicy": str,
        "terminationGracePeriodSeconds": int,
    },
    "status": {
        "phase": str,
        "reason": str,
        "message": str,
        "initContainerStatuses": _STATUSES,
        "containerStatuses": _STATUSES,
        "conditions": [{"type": str, "status": str, "reason": str, "message": str}],
    },
}
_LIST = {"metadata": {"continue": str}, "items": list}
# Wherever one of these may stand, it does.
_NEEDED = {"metadata", "name", "uid", "resourceVersion", "spec", "containers", "type", "object"}


def read_pod(found: object) -> Manifest:
    """Return a pod of which all may be read that is looked at; ValueError where an answer is none. What is null is left out."""
    pod: Manifest = _shaped(found, _POD)
    names = containers(pod)
    if len({*names}) < len(names):
        raise ValueError
    return pod


def read_list(found: object) -> tuple[list[Manifest], str]:
    """Return the pods of a page, and what the next one is asked for by, "" where there is none; ValueError."""
    page = _shaped(found, _LIST)
    if not isinstance(found, dict) or "items" not in found:  # which may be null
        raise ValueError
    return [read_pod(each) for each in page.get("items", ())], page["metadata"].get("continue", "")


def read_object(found: object) -> Manifest:
    """Return an object of the API's, whatever it is; ValueError."""
    made: Manifest = _shaped(found, {})
    return made


def read_event(found: object) -> tuple[str, Manifest]:
    """Return what a watch tells: the type, and its object; of a bookmark, that has a resourceVersion alone. ValueError."""
    event = _shaped(found, {"type": str, "object": dict})
    kind, told = event["type"], event["object"]
    if kind == "ERROR":
        return kind, told
    if kind == "BOOKMARK":
        told = _shaped(told, {"metadata": {"resourceVersion": str}})
        return kind, {"metadata": {"resourceVersion": told["metadata"]["resourceVersion"]}}
    return kind, read_pod(told)


def causes_of(answer: Manifest) -> list[tuple[str, str]]:
    """Return the fields that an answer finds fault with, and what is wrong with each."""
    details = answer.get("details")
    found = details.get("causes") if isinstance(details, dict) else None
    causes = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    return [(str(each.get("field") or ""), str(each.get("message") or answer.get("message") or "")) for each in causes]


def _shaped(found: Any, shape: Any) -> Any:
    """Return what is found without what is null in it; ValueError where it is of another shape."""
    if isinstance(shape, dict):
        given = {key: each for key, each in _typed(found, dict).items() if each is not None}
        if any(key in shape and key not in given for key in _NEEDED):
            raise ValueError
        of = {key: shape.get(key, shape.get(...)) for key in given}
        return {key: each if of[key] is None else _shaped(each, of[key]) for key, each in given.items()}
    if isinstance(shape, list):
        return [_shaped(each, shape[0]) for each in _typed(found, list)]
    return _typed(found, shape)


def _typed(found: Any, kind: type) -> Any:
    if not isinstance(found, kind):
        raise ValueError  # noqa: TRY004 - json's kind: an answer is none
    return found


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
    """What of a container's log has been told: of each time at which its kubelet got lines, how many, and how much of a next.

    So it does not matter which life is asked for and which answers, nor where a connection broke: nothing is told twice, and
    nothing left out. Many lines may have one time, and one stream may overtake the other by less than a moment: what is older
    than that is forgotten. Where a node's clock is put back between two answers, what was written in that time is lost.
    """

    def __init__(self) -> None:
        self._last = -1
        # By the second, and by the time: whole lines, and bytes of the line after them.
        self._told: dict[int, dict[int, tuple[int, int]]] = {}

    @property
    def since(self) -> str:
        """The second from which a log is asked for again, as the API is told it; "" where nothing was told."""
        return "" if self._last < 0 else f"{datetime.fromtimestamp(self._oldest, UTC):%Y-%m-%dT%H:%M:%SZ}"

    @property
    def _oldest(self) -> int:
        return max(0, self._last - _MOMENT) // _SECOND

    def fresh(self, data: Iterable[bytes]) -> Iterator[bytes]:
        """Yield what of a log has not been told, without the times; `data` is one answer, from its beginning."""
        rest, answer = b"", _Answer(self._oldest if self._last >= 0 else -1)
        for part in data:
            *lines, rest = (rest + part).split(b"\n")
            pieces = [line + b"\n" for line in lines]
            if len(rest) > _LONG:
                pieces, rest = [*pieces, rest], b""
            if found := b"".join(self._piece(piece, answer) for piece in pieces):
                yield found
        # Of an answer that came to its end, the last line may lack its own, or have been cut in its time. Of one that broke off,
        # it will come again.
        if rest and (answer.within or not _CUT.fullmatch(rest)) and (found := self._piece(rest, answer)):
            yield found

    def _piece(self, piece: bytes, answer: _Answer) -> bytes:
        """Return what is to be told of a line, or of a part of it."""
        if not answer.within:
            at, text = _timed(piece)
            lines, told = self._told.get(at // _SECOND, {}).get(at, (0, 0))
            if at < 0:
                answer.begins(at, 0 if answer.telling else None)
            elif at // _SECOND < answer.since or answer.count(at) <= lines:
                answer.begins(at, None)
            else:
                answer.begins(at, told)
            piece, answer.within = text, True
        ends = piece.endswith(b"\n")
        found = answer.told_of(piece)
        if answer.telling and answer.at >= 0:
            self._note(answer.at, ends=ends, upto=answer.passed)
        answer.within = not ends
        return found

    def _note(self, at: int, *, ends: bool, upto: int) -> None:
        if at > self._last:
            self._last = at
            for second in [each for each in self._told if each < self._oldest]:
                del self._told[second]
        if at // _SECOND >= self._oldest:
            same = self._told.setdefault(at // _SECOND, {})
            lines, told = same.get(at, (0, 0))
            same[at] = (lines + 1, 0) if ends else (lines, max(told, upto))


class _Answer:
    """One answer, as far as it was read: the line that it is at, and how many lines it had of each time."""

    def __init__(self, since: int) -> None:
        self.since, self.within, self.telling = since, False, since < 0
        self.at = -1
        self.passed = self._known = 0
        self._seen: dict[int, int] = {}

    def count(self, at: int) -> int:
        """Count a line of that time; return how many there were."""
        self._seen[at] = self._seen.get(at, 0) + 1
        return self._seen[at]

    def begins(self, at: int, known: int | None) -> None:
        """Note that a line begins of which so many bytes were told before; None: all."""
        self.at, self.telling, self._known, self.passed = at, known is not None, known or 0, 0

    def told_of(self, text: bytes) -> bytes:
        """Return what is new of the next part of the line."""
        found = text[max(0, self._known - self.passed) :] if self.telling else b""
        self.passed += len(text)
        return found


def _timed(line: bytes) -> tuple[int, bytes]:
    """Return when a line was written, in ns, and its text; -1 where that is not said."""
    written = _WRITTEN.match(line)
    if written is None:
        return -1, line
    second, fraction, zone = (each.decode() for each in written.groups(b""))
    try:
        whole = int(datetime.fromisoformat(second + zone.replace("Z", "+00:00")).timestamp())
    except ValueError:  # such as a 31st of February
        return -1, line
    return max(0, whole) * _SECOND + int(fraction.ljust(9, "0")), line[written.end() :]


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
