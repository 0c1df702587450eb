"""A battery's container in a pod that is composed: what a kind of battery makes of its parameters. Pure.

    companion(document, name, around) -> Companion

The parameters are the YAML document that the battery reads itself; in the pod they travel in its environment, so that nothing
but the manifest is needed: those of ours as serialized dictionaries, those of others (`hosted`) as they were written. Whoever
composes adds what all containers have: the coordination directory, and the volumes of the paths that the battery shares with the
application.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sidecar.errors import Fault, ParametersError
from sidecar.parameters.document import is_inline
from sidecar.parameters.exports import fuse_variables, postgres_variables
from sidecar.parameters.fuse import FuseFlags, fuse_options
from sidecar.parameters.postgres import PostgresFlags, postgres_options

Manifest = dict[str, Any]

UNPRIVILEGED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
HARDENED = {**UNPRIVILEGED, "readOnlyRootFilesystem": True}
# Kubernetes passes mounts on to other containers from privileged ones only, and mount(2) is root's.
MOUNTING = {"privileged": True, "runAsUser": 0, "runAsNonRoot": False, "readOnlyRootFilesystem": True}
# Where `wrap_battery` finds the parameters, as they were written.
PARAMETERS = "SIDECAR_PARAMETERS"

_SMALLER = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
_LARGER = {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}}


@dataclass(frozen=True)
class Around:
    """What a battery finds in the pod: where participants meet, the store's URL and, for one below /, the claim of its volume.

    `mount`: bundles are to be mounted, not downloaded. `native`: the battery is to be a native sidecar, an initContainer with
    restartPolicy Always, which is what makes it one for the composer, too.
    """

    coordination: str
    store: str = ""
    claim: str = ""
    images: str = "localhost/sidecar"
    tag: str = "latest"
    pull: str = "IfNotPresent"
    grace: int = 50
    mount: bool = False
    native: bool = False


@dataclass(frozen=True)
class Companion:
    """A battery's container in a session: its manifest, the volumes that are its own, the paths that it shares with the
    application (which, like the coordination directory, need no volume of its own), and what the wrapper is told of it.

    `mounted` are those of the shared paths below which it mounts something that the application is to see."""

    container: Manifest
    volumes: tuple[Manifest, ...] = ()
    shared: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    mounted: tuple[str, ...] = ()


def literal(text: str) -> str:
    """Return what Kubernetes makes `text` of, in a command, an argument or the value of a variable."""
    return text.replace("$", "$$")


def hosted(
    kind: str,
    document: str,
    around: Around,
    *,
    image: str,
    security: Manifest = HARDENED,
    resources: Manifest = _SMALLER,
    shared: Sequence[str] = (),
) -> Companion:
    """Return the container of a battery of any kind: `wrap_battery` in `image`, with the `document` in its environment."""
    container = _container(kind, "", ["wrap_battery", kind], {PARAMETERS: document}, around, resources)
    container |= {"image": image, "securityContext": security}
    return Companion(container, shared=tuple(shared), flags=("-b", kind))


def fuse(document: str, name: str, around: Around) -> Companion:
    """Return the fuse battery whose parameters `document` says; ParametersError, in which it is called `name`.

    Bundles are downloaded, unless they are to be mounted: a mount that other containers see needs a privileged container.
    """
    configured = fuse_options(FuseFlags(coordination=around.coordination), {"dm_fuse_params": _path(name)}, lambda _: document)
    options = configured.options
    sources, outputs = [each.path for each in options.sources], [each.path for each in options.destinations]
    mounted: list[str] = []
    # Root's files in the store, too, can be written by the group that fsGroup gives the volume to.
    command = ["sh", "-c", 'umask 0002 && exec wrap_datamon "$@"', "wrap_datamon"]
    if around.mount and sources:
        sources = mounted = _above(sources, name)
    else:
        command = ["wrap_datamon", "--populate"]
    container = _container("fuse", "fuse-sidecar", command, fuse_variables(configured), around, _SMALLER)
    if mounted:
        container["securityContext"] = MOUNTING
    companion = Companion(container, shared=(*sources, *outputs), flags=("-b", "fuse"), mounted=tuple(mounted))
    return _with_store(companion, around)


def _above(sources: Sequence[str], name: str) -> list[str]:
    """Return the folders in which there are mounts; ParametersError where one would be that of the container.

    Not a mount on the volume itself: a container that begins later would be given what is mounted there, not the volume, and see
    nothing of the next life's mount.
    """
    faults = [
        Fault(name, "srcPath", f"a bundle is mounted in a folder of a volume: expected a path like /input{each}, not {each!r}")
        for each in sources
        if posixpath.dirname(each) == "/"
    ]
    if faults:
        raise ParametersError(faults)
    return list(dict.fromkeys(map(posixpath.dirname, sources)))


def postgres(document: str, name: str, around: Around) -> Companion:
    """Return the postgres battery whose parameters `document` says; ParametersError, in which it is called `name`."""
    flags = PostgresFlags(coordination=around.coordination, config=_path(name))
    configured = postgres_options(flags, {}, lambda _: document)
    databases = configured.options.databases
    folders = dict.fromkeys(posixpath.dirname(each.data_dir) for each in databases)
    container = _container("postgres", "pg-sidecar", ["wrap_datamon_pg"], postgres_variables(configured), around, _LARGER)
    names = {folder: f"databases-{number}" for number, folder in enumerate(folders, 1)}
    mounts = [{"name": names[folder], "mountPath": folder} for folder in folders]
    volumes = tuple({"name": each, "emptyDir": {}} for each in names.values())
    flagged = ("-b", "postgres", "-d", " ".join(each.name for each in databases))
    return _with_store(Companion({**container, "volumeMounts": mounts}, volumes, flags=flagged), around)


def _path(name: str) -> str:
    """Return what the document is called, where that could not be taken for the document itself."""
    return "parameters" if is_inline(name) else name


def _container(
    name: str, image: str, command: Sequence[str], variables: Mapping[str, str], around: Around, resources: Manifest
) -> Manifest:
    store = {"SIDECAR_STORE": around.store} if around.store else {}
    native = ["--native"] if around.native else []
    container: Manifest = {
        "name": name,
        "image": f"{around.images}/{image}:{around.tag}",
        "imagePullPolicy": around.pull,
        "command": [*command, "-c", around.coordination, "--grace", f"{around.grace}s", *native],
        "env": [{"name": key, "value": literal(value)} for key, value in {**variables, **store}.items()],
        "resources": resources,
        "securityContext": HARDENED,
    }
    return {**container, "restartPolicy": "Always"} if around.native else container


def _with_store(companion: Companion, around: Around) -> Companion:
    """Return a companion that has the volume of a store below /."""
    if not around.claim:
        return companion
    path = around.store.removeprefix("file://")
    if not path.startswith("/"):
        problem = f"the claim {around.claim} is for a store that is a directory, such as file:///store, not {around.store!r}"
        raise ParametersError([Fault("session", "store", problem)])
    mounts = [*companion.container.get("volumeMounts", ()), {"name": "store", "mountPath": path}]
    volume = {"name": "store", "persistentVolumeClaim": {"claimName": around.claim}}
    return replace(companion, container={**companion.container, "volumeMounts": mounts}, volumes=(*companion.volumes, volume))
