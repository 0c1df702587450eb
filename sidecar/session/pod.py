"""A pod's manifest as a runner reads it: what of it is honoured, and every fault of it. Pure.

Nothing is passed over in silence: a field that is neither honoured nor named in _WITHOUT_EFFECT is a fault. Those change nothing
for the programs of a pod that runs on one machine, without a kubelet's limits, or are the affair of the engine that runs it. What
one runner honours and another does not, its Terms say.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sidecar.errors import Fault, ParametersError
from sidecar.session.place import clashes
from sidecar.session.runner import Manifest

Kind = Literal["empty", "image", "host"]
Restart = Literal["Never", "OnFailure", "Always"]

SESSION = "app.kubernetes.io/instance"
GRACE = 30
# What an image says when it says nothing, in all engines.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
# Of the machine, as it is: what may be asked of the file system, no more than can be kept; other types are refused.
_HOST_TYPES = ("", "Directory", "DirectoryOrCreate", "File")
_PROPAGATION = ("", "None", "HostToContainer", "Bidirectional")
_SECCOMP = ("RuntimeDefault", "Unconfined")
# Where the sandbox puts what is its own.
_TAKEN = ("/proc", "/dev")
_WITHOUT_EFFECT = {
    "spec": {"automountServiceAccountToken", "enableServiceLinks"},
    "spec.securityContext": {"fsGroup", "fsGroupChangePolicy", "seccompProfile"},
    "container": {"imagePullPolicy", "ports", "resources"},
    "container.securityContext": {"seccompProfile"},
    "metadata": {"annotations", "labels", "namespace"},
}


@dataclass(frozen=True)
class Terms:
    """What a runner honours of what not all do.

    `privileges` that a container asks for, and mounts that it passes on to others; volumes that are `images`; that it runs what
    its image says, `own_command`, where it says nothing itself; `claims` are the directories on the machine that stand for
    persistent volume claims, by name. `user` is who a container runs as that does not say; None leaves that to its image.
    """

    privileges: bool = False
    images: bool = True
    own_command: bool = False
    claims: Mapping[str, str] = field(default_factory=dict)
    user: int | None = None


@dataclass(frozen=True)
class Volume:
    """One volume: `source` is the image's reference, or the path on the machine, where there is to be what `of_type` says."""

    kind: Kind
    source: str = ""
    of_type: str = ""


@dataclass(frozen=True)
class Mount:
    """A volume, or what is below `part` of it, at `path`."""

    volume: str
    path: str
    part: str = ""
    read_only: bool = False
    propagation: str = ""


@dataclass(frozen=True)
class Program:
    """One container: what it runs, in which image, and as whom; None leaves that to the runner. `sidecar` is a native one."""

    name: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/"
    mounts: tuple[Mount, ...] = ()
    user: int | None = None
    group: int | None = None
    read_only: bool = False
    sidecar: bool = False


@dataclass(frozen=True)
class Pod:
    """A pod: `inits` are begun in turn, then all `programs`."""

    name: str
    session: str
    inits: tuple[Program, ...]
    programs: tuple[Program, ...]
    volumes: Mapping[str, Volume]
    restart: Restart = "Always"
    grace: float = GRACE


def read_pod(manifest: Manifest, terms: Terms | None = None) -> Pod:
    """Return the pod that a manifest describes; ParametersError with everything in it that is not honoured."""
    return _Reader(terms or Terms()).pod(manifest)


def is_name(text: str) -> bool:
    """Tell whether `text` may be a pod's name (and so that of a folder): one of DNS, as Kubernetes has it."""
    return len(text) <= 253 and all(_is_label(part) for part in text.split("."))


def expand(text: str, known: Mapping[str, str]) -> str:
    """Return `text` with each $(NAME) that is known replaced, as a kubelet does; $$ is a dollar, anything else stays."""
    found, at = [], 0
    while 0 <= (dollar := text.find("$", at)) < len(text) - 1:
        found.append(text[at:dollar])
        after, at = text[dollar + 1], dollar + 2
        end = text.find(")", at) if after == "(" else -1
        if after == "$":
            found.append("$")
        elif end >= 0:
            found.append(known.get(text[at:end], text[dollar : end + 1]))
            at = end + 1
        else:
            found.append(f"${after}")
    return "".join([*found, text[at:]])


def _is_label(text: str) -> bool:
    return len(text) <= 63 and _NAME.fullmatch(text) is not None


class _Reader:
    """Reads one manifest, and collects its faults; what is at fault is read as if it were not there."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.faults: list[Fault] = []

    def pod(self, manifest: Any) -> Pod:
        top = self._mapping(manifest, "", ("apiVersion", "kind", "metadata", "spec"))
        for key, said in (("apiVersion", "v1"), ("kind", "Pod")):
            if top.get(key) != said:
                self._fault(key, f"expected {said}, not {top.get(key)!r}")
        metadata = self._mapping(top.get("metadata"), "metadata", ("name", *_WITHOUT_EFFECT["metadata"]))
        labels = self._mapping(metadata.get("labels"), "metadata.labels")
        spec = self._mapping(
            top.get("spec"),
            "spec",
            (
                "containers", "initContainers", "restartPolicy", "securityContext", "terminationGracePeriodSeconds", "volumes",
                *_WITHOUT_EFFECT["spec"],
            ),
        )  # fmt: skip
        if spec.get("automountServiceAccountToken"):
            self._fault("spec.automountServiceAccountToken", "not honoured here: there is no service account")
        security = self._mapping(
            spec.get("securityContext"),
            "spec.securityContext",
            ("runAsUser", "runAsGroup", "runAsNonRoot", *_WITHOUT_EFFECT["spec.securityContext"]),
        )
        self._seccomp(security, "spec.securityContext")
        volumes = self._volumes(spec.get("volumes"))
        inits = self._programs(spec.get("initContainers"), "spec.initContainers", security, volumes, init=True)
        programs = self._programs(spec.get("containers"), "spec.containers", security, volumes, init=False)
        if not programs and not self.faults:
            self._fault("spec.containers", "expected at least one container")
        for _, repeated in clashes(f"/{each.name}" for each in (*inits, *programs)):
            self._fault("spec", f"two containers are called {(*inits, *programs)[repeated].name}")
        restart = spec.get("restartPolicy", "Always")
        if restart not in ("Never", "OnFailure", "Always"):
            self._fault("spec.restartPolicy", f"expected Never, OnFailure or Always, not {restart!r}")
        name = metadata.get("name")
        if not isinstance(name, str) or not is_name(name):
            self._fault("metadata.name", f"expected a name of lower-case letters, digits, '-' and '.', not {name!r}")
        grace = spec.get("terminationGracePeriodSeconds", GRACE)
        if not _is_number(grace):
            self._fault("spec.terminationGracePeriodSeconds", f"expected a number of seconds, not {grace!r}")
        if self.faults:
            raise ParametersError(self.faults)
        return Pod(str(name), str(labels.get(SESSION, "")), inits, programs, volumes, restart, float(grace))

    # --- volumes

    def _volumes(self, given: Any) -> dict[str, Volume]:
        found: dict[str, Volume] = {}
        for number, each in enumerate(self._sequence(given, "spec.volumes")):
            where = f"spec.volumes[{number}]"
            kinds_known = ("emptyDir", "hostPath", *(("image",) if self.terms.images else ()))
            one = self._mapping(each, where, ("name", *kinds_known, *(("persistentVolumeClaim",) if self.terms.claims else ())))
            name = one.get("name")
            kinds = [key for key in one if key != "name"]
            if not isinstance(name, str) or not _is_label(name):
                self._fault(f"{where}.name", f"expected a name of lower-case letters, digits and '-', not {name!r}")
            elif name in found:
                self._fault(f"{where}.name", f"two volumes are called {name}")
            elif len(kinds) != 1:
                self._fault(where, f"expected one of {', '.join(kinds_known)}")
            else:
                found[name] = self._volume(kinds[0], one[kinds[0]], f"{where}.{kinds[0]}")
        return found

    def _volume(self, kind: str, given: Any, where: str) -> Volume:
        if kind == "emptyDir":
            self._mapping(given, where, ("medium", "sizeLimit"))
            return Volume("empty")
        if kind == "image":
            one = self._mapping(given, where, ("reference", "pullPolicy"))
            return Volume("image", self._text(one, "reference", where, needed=True))
        if kind == "persistentVolumeClaim":
            return self._claim(self._mapping(given, where, ("claimName", "readOnly")), where)
        one = self._mapping(given, where, ("path", "type"))
        path, of_type = self._text(one, "path", where, needed=True), self._text(one, "type", where)
        if path and (not path.startswith("/") or "\0" in path):
            self._fault(f"{where}.path", f"expected an absolute path, not {path!r}")
        if of_type not in _HOST_TYPES:
            self._fault(f"{where}.type", f"{of_type} is not honoured here; expected Directory, DirectoryOrCreate or File")
        return Volume("host", path, of_type)

    def _claim(self, given: Mapping[str, Any], where: str) -> Volume:
        name = self._text(given, "claimName", where, needed=True)
        if given.get("readOnly"):
            self._fault(f"{where}.readOnly", "not honoured here; say so where it is mounted")
        if name and name not in self.terms.claims:
            self._fault(f"{where}.claimName", f"no directory stands for {name}; there are {', '.join(self.terms.claims)}")
        return Volume("host", self.terms.claims.get(name, ""), "Directory")

    # --- containers

    def _programs(
        self, given: Any, where: str, security: Mapping[str, Any], volumes: Mapping[str, Volume], *, init: bool
    ) -> tuple[Program, ...]:
        listed = self._sequence(given, where)
        return tuple(
            self._program(each, f"{where}[{number}]", security, volumes, init=init) for number, each in enumerate(listed)
        )

    def _program(
        self, given: Any, where: str, security: Mapping[str, Any], volumes: Mapping[str, Volume], *, init: bool
    ) -> Program:
        one = self._mapping(
            given,
            where,
            (
                "name", "image", "command", "args", "env", "workingDir", "volumeMounts", "securityContext",
                *_WITHOUT_EFFECT["container"], *(("restartPolicy",) if init else ()),
            ),
        )  # fmt: skip
        name = one.get("name")
        if not isinstance(name, str) or not _is_label(name):
            self._fault(f"{where}.name", f"expected a name of lower-case letters, digits and '-', not {name!r}")
        own = self._mapping(
            one.get("securityContext"),
            f"{where}.securityContext",
            (
                "runAsUser", "runAsGroup", "runAsNonRoot", "readOnlyRootFilesystem", "allowPrivilegeEscalation", "capabilities",
                "privileged", *_WITHOUT_EFFECT["container.securityContext"],
            ),
        )  # fmt: skip
        self._privileges(own, f"{where}.securityContext")
        self._seccomp(own, f"{where}.securityContext")
        user, group = (self._id(own.get(key, security.get(key)), f"{where}.{key}") for key in ("runAsUser", "runAsGroup"))
        if own.get("runAsNonRoot", security.get("runAsNonRoot")) and (self.terms.user if user is None else user) == 0:
            said = "is 0" if user == 0 else "is missing, and so root's"
            self._fault(f"{where}.runAsUser", f"{said}, where runAsNonRoot is said too")
        restart = one.get("restartPolicy")
        if restart not in (None, "Always"):
            self._fault(f"{where}.restartPolicy", f"expected Always, of a native sidecar, not {restart!r}")
        environment = self._environment(one.get("env"), f"{where}.env")
        command = self._words(one.get("command"), f"{where}.command")
        if not command and one.get("command") in (None, []) and not self.terms.own_command:
            self._fault(f"{where}.command", "expected a command: which one an image has is not known here")
        words = (*command, *self._words(one.get("args"), f"{where}.args"))
        directory = self._text(one, "workingDir", where) or "/"
        if not directory.startswith("/") or "\0" in directory:
            self._fault(f"{where}.workingDir", f"expected an absolute path, not {directory!r}")
        return Program(
            str(name),
            self._text(one, "image", where, needed=True),
            tuple(expand(each, environment) for each in words),
            environment,
            directory,
            self._mounts(one.get("volumeMounts"), f"{where}.volumeMounts", volumes, privileged=bool(own.get("privileged"))),
            user,
            group,
            bool(own.get("readOnlyRootFilesystem")),
            restart == "Always",
        )

    def _privileges(self, own: Mapping[str, Any], where: str) -> None:
        added = self._mapping(own.get("capabilities"), f"{where}.capabilities", ("add", "drop")).get("add")
        if self.terms.privileges:
            return
        for key in ("privileged", "allowPrivilegeEscalation"):
            if own.get(key):
                self._fault(f"{where}.{key}", "not honoured here: a sandbox gives no privileges")
        if added:
            self._fault(f"{where}.capabilities.add", "not honoured here: a sandbox gives no privileges")

    def _seccomp(self, security: Mapping[str, Any], where: str) -> None:
        # What an engine does unasked, or what asks for nothing; a profile of one's own would not be kept.
        given = self._mapping(security.get("seccompProfile"), f"{where}.seccompProfile", ("type",))
        if given.get("type", _SECCOMP[0]) not in _SECCOMP:
            self._fault(f"{where}.seccompProfile.type", f"expected {' or '.join(_SECCOMP)}, not {given['type']!r}")

    def _environment(self, given: Any, where: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for number, each in enumerate(self._sequence(given, where)):
            one = self._mapping(each, f"{where}[{number}]", ("name", "value"))
            name, value = (
                self._text(one, "name", f"{where}[{number}]", needed=True),
                self._text(one, "value", f"{where}[{number}]"),
            )
            if "=" in name or "\0" in name + value:
                self._fault(f"{where}[{number}]", f"cannot be a variable: {name!r}")
            elif name:
                found[name] = expand(value, found)
        return found

    def _mounts(self, given: Any, where: str, volumes: Mapping[str, Volume], *, privileged: bool) -> tuple[Mount, ...]:
        found = []
        for number, each in enumerate(self._sequence(given, where)):
            at = f"{where}[{number}]"
            known = ("name", "mountPath", "subPath", "readOnly", *(("mountPropagation",) if self.terms.privileges else ()))
            one = self._mapping(each, at, known)
            name, path = self._text(one, "name", at, needed=True), self._text(one, "mountPath", at, needed=True)
            part = self._text(one, "subPath", at)
            if name and name not in volumes:
                self._fault(f"{at}.name", f"there is no volume {name}")
            propagation = self._text(one, "mountPropagation", at)
            if propagation not in _PROPAGATION or (propagation == _PROPAGATION[-1] and not privileged):
                expected = ", ".join(filter(None, _PROPAGATION))
                self._fault(
                    f"{at}.mountPropagation", f"expected {expected}, the last of a privileged container, not {propagation}"
                )
            if part.startswith("/") or ".." in part.split("/") or "\0" in part:
                self._fault(f"{at}.subPath", f"expected a path below the volume, not {part!r}")
            elif problem := _mount_problem(path):
                self._fault(f"{at}.mountPath", problem)
            elif name in volumes:
                # The file system of an image is never written.
                read_only = bool(one.get("readOnly")) or volumes[name].kind == "image"
                found.append(Mount(name, "/" + posixpath.normpath(path).lstrip("/"), part, read_only, propagation))
        for outer, inner in clashes(each.path for each in found):
            # To mount in a volume is to make a directory in it first, wherever a link leads that a program left there.
            self._fault(where, f"{found[inner].path} is, or lies in, {found[outer].path}: not honoured here")
        return tuple(found)

    # --- plain data

    def _mapping(self, given: Any, where: str, known: Sequence[str] | None = None) -> Mapping[str, Any]:
        if given is None:
            return {}
        if not isinstance(given, dict):
            self._fault(where or "manifest", f"expected a mapping, not {type(given).__name__}")
            return {}
        for key in given:
            if known is not None and key not in known:
                self._fault(f"{where}.{key}".lstrip("."), f"not honoured here; expected {', '.join(sorted(known))}")
        return {key: value for key, value in given.items() if value is not None and (known is None or key in known)}

    def _sequence(self, given: Any, where: str) -> Sequence[Any]:
        if given is None:
            return ()
        if not isinstance(given, list | tuple):
            self._fault(where, f"expected a list, not {type(given).__name__}")
            return ()
        return given

    def _words(self, given: Any, where: str) -> tuple[str, ...]:
        words = self._sequence(given, where)
        if not all(isinstance(each, str) and "\0" not in each for each in words):
            self._fault(where, "expected texts, without the character NUL")
            return ()
        return tuple(words)

    def _text(self, given: Mapping[str, Any], key: str, where: str, *, needed: bool = False) -> str:
        value: object = given.get(key, "")
        if not isinstance(value, str):
            self._fault(f"{where}.{key}", f"expected a text, not {value!r}")
            return ""
        if needed and not value:
            self._fault(f"{where}.{key}", "expected, it is missing")
        return value

    def _id(self, value: Any, where: str) -> int | None:
        if value is not None and not (_is_number(value) and value == int(value) and value < 2**31):
            self._fault(where, f"expected a number, not {value!r}")
            return None
        return None if value is None else int(value)

    def _fault(self, key: str, problem: str) -> None:
        self.faults.append(Fault("pod", key, problem))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _mount_problem(path: str) -> str:
    if not path:
        return ""
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        return f"expected an absolute path, not {path!r}"
    plain = "/" + posixpath.normpath(path).strip("/")
    if plain in ("/", *_TAKEN) or plain.startswith("/proc/"):
        return f"{plain} is the sandbox's own"
    return ""
