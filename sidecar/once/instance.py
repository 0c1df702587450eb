"""Where a run is one and the same: the container that persists, and whoever takes its place when it is restarted."""

from __future__ import annotations

import os

from sidecar.errors import Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def instance_of(environment: Mapping[str, str], coordination: str = "") -> str:
    """Return the instance: $POD_UID/$CONTAINER_NAME where both are set; else the `coordination` directory's id; else the host.

    A pod that is made anew has another uid, and runs again. A host goes by its machine-id, which outlasts a change of its name;
    where it has none, as most containers, by its name.
    """
    if found := pod_and_container(environment):
        return found
    return f"coordination:{coordination}" if coordination else f"host:{_machine() or os.uname().nodename}"


def pod_and_container(environment: Mapping[str, str]) -> str:
    """Return $POD_UID/$CONTAINER_NAME, which a manifest sets by the downward API; "" where they are not both set."""
    pod, container = environment.get("POD_UID"), environment.get("CONTAINER_NAME")
    return f"{pod}/{container}" if pod and container else ""


def working_directory() -> str:
    """Return the working directory, which is part of what a run is; Unreachable where it was deleted."""
    try:
        return os.getcwd()
    except OSError as error:
        raise Unreachable(f"the working directory is gone: {error.strerror}") from None


def _machine() -> str:
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            found = file.read(64).strip()
    except (OSError, ValueError):
        return ""
    return found if len(found) == 32 and all(c in "0123456789abcdef" for c in found) else ""
