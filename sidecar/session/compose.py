"""The pod of a session, as the plain data that Kubernetes takes: from a base image, artifacts, batteries and options. Pure.

    the artifacts' volumes    each filled by an initContainer, which is the artifact's own image, or each an image volume
    application               the base image, the artifacts mounted, and `/bin/bash -c` with what they run; or, where there are
                              none, a command, which needs no bash
    the batteries             beside it, or as native sidecars; the application's command is wrapped then, and waits for them

An artifact's image need hold no shell and no `cp`: the portable wrapper, which the first initContainer leaves on a volume, copies
the image's files. Kubernetes expands `$(NAME)` in commands and environments, so every `$` of ours is doubled there.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sidecar.batteries.companion import HARDENED, UNPRIVILEGED, Companion, literal
from sidecar.errors import Fault, ParametersError
from sidecar.session.artifact import Artifact
from sidecar.session.place import clashes, mount_path
from sidecar.session.plan import Launch, Log, Opened, Placed, Plan, plan
from sidecar.session.pod import is_name

Manifest = dict[str, Any]
Delivery = Literal["copy", "image"]
DELIVERIES: tuple[Delivery, ...] = ("copy", "image")

APPLICATION = "application"
WRAPPER, COORDINATION = "/sidecar/wrapper", "/sidecar/coordination"
_TARGET = "/sidecar/artifact"
# What the wrapper needs to copy whatever there is; and what it occupies, and what is said in a coordination directory.
_SMALL = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}}
_WRAPPER_SIZE, _COORDINATION_SIZE = "32Mi", "16Mi"
# How long the application waits for the next life of a battery that the kubelet restarts.
_REJOIN = "60s"
# A pod's name may be longer; that of a Job, or of a template of Argo's, is a label of its pods as well.
_NAME_LIMIT = 63
_VOLUME_OF_OURS = re.compile(r"wrapper|coordination|(artifact|log|shared)-.*")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?")


@dataclass(frozen=True)
class Options:
    """What may be said of a session besides what is in it. All containers run as `user`; None leaves that to the images.

    `grace` is the pod's, ten seconds of which are not the containers'. `read_only`: the application's root is. `cpu` and `memory`
    are what the application asks for, `memory` also what it gets at most, `disk` what each volume may hold that is nobody else's
    to bound; "" says nothing of them.
    """

    launch: Launch = "last"
    delivery: Delivery = "copy"
    user: int | None = 10001
    grace: int = 60
    pull: str = "IfNotPresent"
    wrapper: str = "localhost/sidecar/wrapper:latest"
    read_only: bool = False
    cpu: str = ""
    memory: str = ""
    disk: str = ""


@dataclass(frozen=True)
class Session:
    """A composed session: its id, its pod, and what whoever asked for it is told."""

    id: str
    pod: Manifest
    ports: tuple[Opened, ...]
    logs: tuple[Log, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the response: all but the pod."""
        return {
            "session": self.id,
            "pod": self.pod["metadata"]["name"],
            "ports": [
                {"name": o.port.name, "port": o.port.number, "protocol": o.port.protocol, "artifact": o.artifact}
                for o in self.ports
            ],
            "logDirectories": [{"path": log.path, "artifact": log.artifact} for log in self.logs],
            "warnings": list(self.warnings),
        }


def compose(
    image: str,
    artifacts: Sequence[Artifact],
    batteries: Sequence[Companion] = (),
    options: Options = Options(),
    *,
    session: str = "",
    names: Sequence[str] = (),
    command: Sequence[str] = (),
) -> Session:
    """Return the session of `artifacts`, in their order, on the base `image`; ParametersError with every fault.

    Where there are no artifacts the `image` runs `command`, each word as it is.

    Without an id a `session` has one that follows from what is in it, so the same request is the same pod, byte by byte.
    """
    session = session or session_id(image, artifacts, batteries, options, command)
    taken = [(WRAPPER, "the wrapper"), (COORDINATION, "the coordination directory")]
    taken += [(path, f"the battery {each.container['name']}") for each in batteries for path in each.shared]
    faults = [] if image else [Fault("session", "image", "expected the base image, it is missing")]
    if len(_pod_name(session)) > _NAME_LIMIT or not is_name(_pod_name(session)):
        at_most = _NAME_LIMIT - len(_pod_name(""))
        problem = f"expected at most {at_most} lower-case letters, digits, '-' and '.', as in a name of DNS, not {session!r}"
        faults.append(Fault("session", "id", problem))
    faults += [
        Fault("session", key, f"expected a quantity such as 100m or 10Gi, not {value!r}")
        for key, value in (("cpu", options.cpu), ("memory", options.memory), ("disk", options.disk))
        if value and not _QUANTITY.fullmatch(value)
    ]
    faults += _wrong(batteries)
    try:
        found = plan(session, artifacts, launch=options.launch, taken=taken, names=names, command=command)
    except ParametersError as error:
        raise ParametersError([*faults, *error.faults]) from None
    if faults:
        raise ParametersError(faults)
    return Session(session, _pod(session, image, found, batteries, options), found.ports, found.logs, found.warnings)


def session_id(
    image: str, artifacts: Sequence[Artifact], batteries: Sequence[Companion], options: Options, command: Sequence[str] = ()
) -> str:
    """Return the id that follows from what is in a session."""
    said = json.dumps([image, artifacts, batteries, options, command], default=lambda each: vars(each), sort_keys=True)
    return str(uuid.uuid5(uuid.NAMESPACE_OID, said))


def _wrong(batteries: Sequence[Companion]) -> list[Fault]:
    """Return what is wrong with batteries; how the paths that they share get along with all others is found by `plan`."""
    faults = []
    containers = {APPLICATION: "the application", "wrapper": "the wrapper"}
    volumes: dict[str, Manifest] = {}
    for each in batteries:
        name, whose = each.container["name"], f"the battery {each.container['name']}"
        if name in containers:
            problem = f"{name!r} is the container of {containers[name]} already: expected one battery of a kind"
            faults.append(Fault(whose, "name", problem))
        containers[name] = whose
        for volume in each.volumes:
            at, claim = f"volumes.{volume['name']}", volume.get("persistentVolumeClaim", {}).get("claimName")
            if _VOLUME_OF_OURS.fullmatch(volume["name"]) or volumes.setdefault(volume["name"], volume) != volume:
                faults.append(Fault(whose, at, "is the name of another volume already"))
            if claim is not None and not is_name(claim):
                faults.append(Fault(whose, at, f"expected a claim's name, of lower-case letters, digits, - and ., not {claim!r}"))
        faults += _wrong_mounts(each, whose)
    return faults


def _wrong_mounts(battery: Companion, whose: str) -> list[Fault]:
    faults, known = [], [(COORDINATION, "the coordination directory")]
    own = [(mount["mountPath"], f"volumeMounts.{mount['name']}") for mount in battery.container.get("volumeMounts", ())]
    for path, key in [*((path, "shared") for path in battery.shared), *own]:
        try:
            known.append((mount_path(path), key))
        except ValueError as error:
            faults.append(Fault(whose, key, str(error)))
    for pair in clashes(path for path, _ in known):
        (first, other), (path, key) = (known[position] for position in sorted(pair))
        # The others' are found where they meet the artifacts', in the application.
        if key != "shared":
            faults.append(Fault(whose, key, f"{path} and {first}, {other}, are equal, or one lies in the other"))
    return faults


# --- the pod -----------------------------------------------------------------------------------------------------------


def _pod(session: str, image: str, found: Plan, batteries: Sequence[Companion], options: Options) -> Manifest:
    wrapped, shared = bool(batteries), _shared(batteries)
    copied = bool(found.placed) and options.delivery == "copy"
    volumes = [_empty("wrapper", sizeLimit=_WRAPPER_SIZE)] if wrapped or copied else []
    if wrapped:
        volumes.append(_empty("coordination", medium="Memory", sizeLimit=_COORDINATION_SIZE))
    volumes += [_volume(each, options) for each in found.placed]
    volumes += [_empty(_log_name(log)) for log in found.logs]
    volumes += [_empty(name) for name in shared.values()]
    # Two batteries may have one of the same name, such as the store's.
    volumes += {volume["name"]: volume for each in batteries for volume in each.volumes}.values()
    # What is mounted in a volume is not held by it.
    mounted = {shared[path] for each in batteries for path in each.mounted}
    if options.disk:
        bound = {"emptyDir": {"sizeLimit": options.disk}}
        volumes = [each | bound if each.get("emptyDir") == {} and each["name"] not in mounted else each for each in volumes]
    inits = [_install(options)] if wrapped or copied else []
    if copied:
        inits += [_copy(each, options) for each in found.placed]
    beside = [_companion(each, shared) for each in batteries]
    spec: Manifest = {
        # Kubernetes shows a container all of /proc in such a pod alone.
        **({"hostUsers": False} if any(_is_unmasked(each) for each in beside) else {}),
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _security(options),
        "volumes": volumes,
        "initContainers": inits + [each for each in beside if _is_native(each)],
        "containers": [_application(image, found, batteries, options)] + [each for each in beside if not _is_native(each)],
    }
    labels = {
        "app.kubernetes.io/name": "session",
        "app.kubernetes.io/instance": session,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _pod_name(session), "labels": labels},
        "spec": {key: value for key, value in spec.items() if value != []},
    }


def _pod_name(session: str) -> str:
    return f"session-{session}"


def _security(options: Options) -> Manifest:
    found: Manifest = {"seccompProfile": {"type": "RuntimeDefault"}}
    if options.user is not None:
        who = {"runAsUser": options.user, "runAsGroup": options.user, "fsGroup": options.user}
        found |= {"runAsNonRoot": options.user != 0, **who, "fsGroupChangePolicy": "OnRootMismatch"}
    return found


def _application(image: str, found: Plan, batteries: Sequence[Companion], options: Options) -> Manifest:
    command, arguments = ([], list(found.command)) if found.command else (["/bin/bash", "-c"], [found.script])
    mounts = []
    if batteries:
        flags = [flag for each in batteries for flag in each.flags]
        if any(_is_native(each.container) for each in batteries):
            flags += ["--rejoin-timeout", _REJOIN]
        command = [f"{WRAPPER}/wrap_application", "-c", COORDINATION, *flags, "--grace", f"{options.grace - 10}s", "--", *command]
        mounts += [_mount("wrapper", WRAPPER, readOnly=True), _mount("coordination", COORDINATION)]
    elif found.command:
        command, arguments = arguments, []
    mounts += [mount for each in found.placed for mount in _mounts(each, options)]
    mounts += [_mount(_log_name(log), log.path) for log in found.logs]
    mounted = {path for each in batteries for path in each.mounted}
    mounts += [
        _mount(name, path, **({"mountPropagation": "HostToContainer"} if path in mounted else {}))
        for path, name in _shared(batteries).items()
    ]
    container: Manifest = {
        "name": APPLICATION,
        "image": image,
        "imagePullPolicy": options.pull,
        "command": [literal(word) for word in command],
        "args": [literal(word) for word in arguments],
        "env": [{"name": name, "value": literal(value)} for name, value in found.environment],
        "ports": [
            {**({"name": o.port.name} if o.port.name else {}), "containerPort": o.port.number, "protocol": o.port.protocol}
            for o in found.ports
        ],
        "resources": _resources(options),
        "securityContext": HARDENED if options.read_only else UNPRIVILEGED,
        "volumeMounts": mounts,
    }
    return {key: value for key, value in container.items() if value not in ([], {})}


def _resources(options: Options) -> Manifest:
    asked = {key: value for key, value in (("cpu", options.cpu), ("memory", options.memory)) if value}
    return {**({"requests": asked} if asked else {}), **({"limits": {"memory": options.memory}} if options.memory else {})}


def _is_native(container: Manifest) -> bool:
    return container.get("restartPolicy") == "Always"


def _is_unmasked(container: Manifest) -> bool:
    return bool(container.get("securityContext", {}).get("procMount") == "Unmasked")


def _companion(battery: Companion, shared: Mapping[str, str]) -> Manifest:
    mounts = [_mount("coordination", COORDINATION)]
    for path in battery.shared:
        passed_on = {"mountPropagation": "Bidirectional"} if path in battery.mounted else {}
        mounts.append(_mount(shared[path], path, **passed_on))
    return {**battery.container, "volumeMounts": [*mounts, *battery.container.get("volumeMounts", ())]}


def _mounts(each: Placed, options: Options) -> list[Manifest]:
    name = _artifact_name(each)
    # An image volume shows the whole image; what is copied is what is below `path` already.
    at = each.part if options.delivery == "image" else ""
    found = []
    for path, inner in ((each.mount, ""), *each.mounts):
        part = "/".join(filter(None, (at, inner)))
        found.append(_mount(name, path, readOnly=True, **({"subPath": part} if part else {})))
    return found


def _volume(each: Placed, options: Options) -> Manifest:
    if options.delivery == "image":
        return {"name": _artifact_name(each), "image": {"reference": each.artifact.reference, "pullPolicy": options.pull}}
    return _empty(_artifact_name(each))


def _install(options: Options) -> Manifest:
    return {
        "name": "wrapper",
        "image": options.wrapper,
        "imagePullPolicy": options.pull,
        "command": ["/wrap_application", "--install", WRAPPER],
        "resources": _SMALL,
        "securityContext": HARDENED,
        "volumeMounts": [_mount("wrapper", WRAPPER)],
    }


def _copy(each: Placed, options: Options) -> Manifest:
    name = _artifact_name(each)
    return {
        "name": name,
        "image": each.artifact.reference,
        "imagePullPolicy": options.pull,
        "command": [f"{WRAPPER}/wrap_application", "--copy", literal(f"/{each.part}"), _TARGET],
        "resources": _SMALL,
        "securityContext": HARDENED,
        "volumeMounts": [_mount("wrapper", WRAPPER, readOnly=True), _mount(name, _TARGET)],
    }


def _artifact_name(each: Placed) -> str:
    return f"artifact-{each.id}"


def _log_name(log: Log) -> str:
    return f"log-{log.id}"


def _shared(batteries: Sequence[Companion]) -> dict[str, str]:
    """Return the paths that batteries share with the application, and the names of their volumes."""
    paths = dict.fromkeys(path for each in batteries for path in each.shared)
    return {path: f"shared-{number}" for number, path in enumerate(paths, 1)}


def _empty(name: str, **options: str) -> Manifest:
    return {"name": name, "emptyDir": options}


def _mount(name: str, path: str, **more: Any) -> Manifest:
    return {"name": name, "mountPath": path, **more}
