"""A session as a Job: a pod that fails is replaced by another, which begins with empty directories. Pure.

What the pod was told wrongly, or what is not there, is so the next time, too: where a battery ends for that the Job has failed. A
pod that a node's drain has ended does not count. The application's own statuses mean what it wants, so none of them ends the Job.
"""

from __future__ import annotations

from sidecar.errors import CONFIG, DATA, NO_INPUT
from sidecar.session.compose import APPLICATION, Manifest, Session

# As often as a pod is replaced, and how long the Job is there to be looked at, in seconds.
_BACKOFF, _KEPT = 3, 86400


def job(session: Session) -> Manifest:
    """Return the Job whose pod is the session's."""
    metadata, spec = session.pod["metadata"], session.pod["spec"]
    hopeless = sorted({DATA, NO_INPUT, CONFIG})
    rules = [
        {"action": "FailJob", "onExitCodes": {"containerName": each["name"], "operator": "In", "values": hopeless}}
        for each in spec["containers"]
        if each["name"] != APPLICATION
    ]
    drained = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": _BACKOFF,
            "ttlSecondsAfterFinished": _KEPT,
            "podFailurePolicy": {"rules": [*rules, drained]},
            "template": {"metadata": {"labels": metadata["labels"]}, "spec": spec},
        },
    }
