"""What may be said of the battery, as a YAML document, and the container that it is in a pod that is composed. Pure.

runtimes      directories with runtimes, each LANGUAGE-VERSION with a runtime.sh; /opt/runtimes
port          of the loopback; 0, which is any that is free
atOnce        how many calls may run at a time; 0, which is two for each processor
timeout       the most seconds that a call may ask for; 60
clientUid     who may read the token, where that is not the battery's own user; only root can give it to others
image         in a composed pod: the image, with runtimes and this battery; `function-battery` beside our own images
privileged    in a composed pod: the container is, for an engine that knows no `procMount`; false
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sidecar.batteries import Place
from sidecar.batteries.companion import HARDENED, Around, Companion, hosted
from sidecar.parameters import settings as of
from sidecar.parameters.document import read_document
from sidecar.parameters.settings import Field

_MOST_SECONDS = 3600


def _up_to(most: int, least: int = 0, what: str = "a number") -> Callable[[str], int]:
    def one(value: str) -> int:
        if not (value.isascii() and value.isdecimal() and len(value) < 11 and least <= int(value) <= most):
            raise ValueError(f"expected {what} from {least} to {most}, not {value!r}")
        return int(value)

    return one


FIELDS = (
    Field("runtimes", "", of.path, default="/opt/runtimes", kind="words"),
    Field("port", "", _up_to(65535, what="a port"), default="0"),
    Field("atOnce", "", _up_to(10_000), default="0"),
    Field("timeout", "", _up_to(_MOST_SECONDS, 1, "a number of seconds"), default="60"),
    Field("clientUid", "", _up_to(2**32 - 2, what="a user's id")),
    Field("image", "", of.text),
    Field("privileged", "", of.boolean, default="false"),
)
# A sandbox needs namespaces, which the default profile refuses to whoever has no privileges, and a /proc of its own, which the
# kernel gives only where nothing of the container's is hidden.
_UNMASKED = {**HARDENED, "procMount": "Unmasked", "seccompProfile": {"type": "Unconfined"}}
# The user stays the pod's, who has none of the privileges.
_PRIVILEGED = {"privileged": True, "readOnlyRootFilesystem": True}
_RESOURCES = {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}}


@dataclass(frozen=True)
class FunctionBatteryOptions:
    """What is served, and to whom: see the document above. `folder` is where the application is told; `client` may read it."""

    folder: str
    runtimes: tuple[str, ...] = ("/opt/runtimes",)
    port: int = 0
    at_once: int = 0
    timeout: int = 60
    client: int | None = None


def read(document: str, name: str, place: Place) -> FunctionBatteryOptions:
    """Return what a document says; ParametersError with every fault, in which it is called `name`."""
    said = read_document(document, name, FIELDS)
    client = None if said["clientUid"] == "" else said["clientUid"]
    return FunctionBatteryOptions(place.folder, said["runtimes"], said["port"], said["atOnce"], said["timeout"], client)


def companion(document: str, name: str, around: Around) -> Companion:
    """Return the battery's container; ParametersError with every fault."""
    said = read_document(document, name, FIELDS)
    image = said["image"] or f"{around.images}/function-battery:{around.tag}"
    security = _PRIVILEGED if said["privileged"] else _UNMASKED
    return hosted("function", document, around, image=image, security=security, resources=_RESOURCES)
