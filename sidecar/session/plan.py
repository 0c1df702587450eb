"""What becomes of a list of artifacts in one container, decided whole before anything is written: paths, ports, configuration,
commands. Every fault of a request is found at once. Pure.

One rule for references between artifacts: variables are the last one's, in whatever text they stand. So its own configuration is
expanded first (it may name its mount path, its ports and its other configuration), then where and what it runs (which may name
its configuration), and then everybody else's.
"""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sidecar.errors import Fault, ParametersError
from sidecar.parameters.dictionary import encode
from sidecar.parameters.settings import raise_any
from sidecar.session.artifact import Artifact, Port
from sidecar.session.place import below, clashes, mount_path
from sidecar.session.variables import Variables

Launch = Literal["last", "each"]
LAUNCHES: tuple[Launch, ...] = ("last", "each")

CONFIG = "SERVER_CONFIG"
LOGS = "/var/log/session"
# What Kubernetes takes as the name of a port (IANA_SVC_NAME), and of a variable.
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Placed:
    """One artifact in its place: the id that its volume goes by, and its paths, absolute; `part`, of its image, is relative."""

    where: str
    id: str
    artifact: Artifact
    part: str
    mount: str
    mounts: tuple[tuple[str, str], ...]
    directory: str
    executable: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Opened:
    """A port, and which artifact opens it, counted from 1."""

    port: Port
    artifact: int


@dataclass(frozen=True)
class Log:
    """A log directory, the id that its volume goes by, and which artifact writes there, counted from 1."""

    id: str
    path: str
    artifact: int


@dataclass(frozen=True)
class Plan:
    """The container of a session: what is where in it, and what it runs: `command` as it is, or `script` as bash reads it."""

    placed: tuple[Placed, ...]
    ports: tuple[Opened, ...]
    environment: tuple[tuple[str, str], ...]
    logs: tuple[Log, ...]
    script: str
    warnings: tuple[str, ...]
    command: tuple[str, ...] = ()


def plan(
    session: str,
    artifacts: Sequence[Artifact],
    *,
    launch: Launch = "last",
    taken: Iterable[tuple[str, str]] = (),
    names: Sequence[str] = (),
    command: Sequence[str] = (),
) -> Plan:
    """Return what becomes of `artifacts` in the session with this id; ParametersError with every fault and its place.

    `taken` are mounts that are there besides: the path and whose it is. `names` are what whoever asked calls the artifacts, for
    messages alone. `command` is what a session without artifacts runs.
    """
    faults: list[Fault] = []
    if artifacts and command:
        problem = "expected none where there are artifacts: the last one says what runs"
        raise_any([Fault("session", "command", problem)])
    if command:
        return _of_command(command, taken)
    if not artifacts:
        raise_any([Fault("session", "artifacts", "expected at least one artifact, or a command")])
    labels = [names[i] if i < len(names) else each.reference for i, each in enumerate(artifacts)]
    wheres = [f"artifact {number} ({label})" for number, label in enumerate(labels, 1)]
    placing = _Placing(session, faults)
    last = len(artifacts) - 1
    mounts = [placing.mount(number, each, wheres[number]) for number, each in enumerate(artifacts)]
    variables = Variables(_raw(artifacts[last], mounts[last]))
    finished = placing.place(last, artifacts[last], wheres[last], mounts[last], variables)
    known = Variables(
        {
            **_raw(artifacts[last], mounts[last]),
            "working directory": finished.directory.replace("%", "%%"),
            "executable": finished.executable.replace("%", "%%"),
            "args": shlex.join(finished.arguments).replace("%", "%%"),
        }
    )
    placed = [placing.place(i, each, wheres[i], mounts[i], known) for i, each in enumerate(artifacts[:last])] + [finished]
    if not finished.executable:
        faults.append(Fault(wheres[last], "executable", "expected the program that the session runs: the last artifact's"))
    logs = _logs(session, artifacts, wheres, faults)
    _check_mounts(placed, logs, taken, faults)
    ports = _ports(artifacts, wheres, faults)
    environment = _environment(artifacts, wheres, [known] * last + [variables], known, faults)
    raise_any(faults)
    ignored = [each.where for each in placed[:-1] if each.executable] if launch == "last" else []
    warnings = tuple(
        f"{where}: its executable is not run; only the last artifact's is (launch: each runs all)" for where in ignored
    )
    return Plan(tuple(placed), ports, environment, logs, script(placed, launch), warnings)


def _of_command(command: Sequence[str], taken: Iterable[tuple[str, str]]) -> Plan:
    faults = [
        Fault("session", f"command[{number}]", "expected a text without the character NUL")
        for number, word in enumerate(command)
        if "\0" in word
    ]
    if not command[0]:
        faults.append(Fault("session", "command[0]", "expected the program that the session runs"))
    _check_mounts([], [], taken, faults)
    raise_any(faults)
    return Plan((), (), (), (), "", (), tuple(command))


def script(placed: Sequence[Placed], launch: Launch) -> str:
    """Return what `/bin/bash -c` runs: into each artifact's directory in turn, and there its program, or that of the last alone.

    The last takes the shell's place, so that signals reach it, and its end is the container's.
    """
    lines = ["set -e"]
    for number, each in enumerate(placed, 1):
        lines.append(f"cd {shlex.quote(each.directory)}")
        if number == len(placed) or (launch == "each" and each.executable):
            words = shlex.join([each.executable, *each.arguments])
            lines.append(f"exec {words}" if number == len(placed) else words)
    return "\n".join(lines)


class _Placing:
    """Finds where artifacts are; what cannot be is a fault, and something harmless is returned in its place."""

    def __init__(self, session: str, faults: list[Fault]) -> None:
        self._session, self._faults = session, faults

    def mount(self, number: int, artifact: Artifact, where: str) -> str:
        if not artifact.reference:
            self._faults.append(Fault(where, "image", "expected the image that holds it, it is missing"))
        default = f"/artifacts/{volume_id(self._session, number, artifact.reference)}"
        return self._try(where, "mountPath", default, lambda: mount_path(artifact.mount_path)) if artifact.mount_path else default

    def place(self, number: int, artifact: Artifact, where: str, mount: str, known: Variables) -> Placed:
        def merged(key: str, text: str, *, always: bool) -> str:
            def found() -> str:
                expanded = known.expand(text)
                if "\0" in expanded:
                    raise ValueError("expected a text without the character NUL")
                return below(mount, expanded) if always or expanded.startswith(("./", "../")) or expanded == ".." else expanded

            return self._try(where, key, mount, found)

        executable = artifact.executable
        return Placed(
            where,
            volume_id(self._session, number, artifact.reference),
            artifact,
            self._inside(where, "path", artifact.path),
            mount,
            tuple((self._extra(where, path), self._inside(where, "mountPaths", inner)) for path, inner in artifact.mounts),
            merged("workingDirectory", artifact.directory or ".", always=True),
            merged("executable", executable, always="/" in executable) if executable else "",
            tuple(merged(f"args[{i}]", each, always=False) for i, each in enumerate(artifact.arguments)),
        )

    def _extra(self, where: str, path: str) -> str:
        return self._try(where, "mountPaths", "", lambda: mount_path(path))

    def _inside(self, where: str, key: str, path: str) -> str:
        return self._try(where, key, "", lambda: below("/part", path.lstrip("/") or ".").removeprefix("/part").strip("/"))

    def _try(self, where: str, key: str, instead: str, find: Callable[[], str]) -> str:
        try:
            return find()
        except ValueError as error:
            self._faults.append(Fault(where, key, str(error)))
            return instead


def volume_id(session: str, number: int, reference: str) -> str:
    """Return the id of what an artifact's volume goes by: a guid, the same for the same place of the same session."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{session}\n{number}\n{reference}"))


def _raw(artifact: Artifact, mount: str) -> dict[str, str]:
    known = {"mount path": mount.replace("%", "%%")}
    known |= {f"port {port.name}": str(port.number) for port in artifact.ports if port.name}
    return known | {f"config {key}": "" if value is True else value for key, value in artifact.server_config.items()}


def _logs(session: str, artifacts: Sequence[Artifact], wheres: Sequence[str], faults: list[Fault]) -> tuple[Log, ...]:
    found: list[Log] = []
    for number, artifact in enumerate(artifacts):
        for text in artifact.logs:
            try:
                path = mount_path(text if text.startswith("/") else below(LOGS, text or ".."))
            except ValueError as error:
                faults.append(Fault(wheres[number], "logDirectories", str(error)))
            else:
                found.append(Log(volume_id(session, number, f"log {path}"), path, number + 1))
    return tuple(found)


def _check_mounts(placed: Sequence[Placed], logs: Sequence[Log], taken: Iterable[tuple[str, str]], faults: list[Fault]) -> None:
    mounts = [(path, whose, "mountPath") for path, whose in taken]
    mounts += [(each.mount, each.where, "mountPath") for each in placed]
    mounts += [(path, each.where, "mountPaths") for each in placed for path, _ in each.mounts]
    mounts += [(log.path, placed[log.artifact - 1].where, "logDirectories") for log in logs]
    mounts = [each for each in mounts if each[0]]  # without those that are a fault already
    for outer, inner in clashes(path for path, _, _ in mounts):
        path, whose, _ = mounts[outer]
        how = "is also" if mounts[inner][0] == path else f"lies in {path},"
        # At an artifact's, where one of the two is.
        at = inner if mounts[inner][1].startswith("artifact") else outer
        faults.append(
            Fault(
                mounts[at][1], mounts[at][2], f"{mounts[inner][0]} {how} a mount of {whose if at == inner else mounts[inner][1]}"
            )
        )


def _ports(artifacts: Sequence[Artifact], wheres: Sequence[str], faults: list[Fault]) -> tuple[Opened, ...]:
    found: list[Opened] = []
    numbers: dict[tuple[int, str], str] = {}
    names: dict[str, str] = {}
    for number, artifact in enumerate(artifacts):
        where = wheres[number]
        for port in artifact.ports:
            if not 0 < port.number < 65536:
                faults.append(Fault(where, "ports", f"expected a port number from 1 to 65535, not {port.number}"))
            if port.name and not _PORT_NAME.fullmatch(port.name):
                faults.append(Fault(where, "ports", f"expected a name of 1 to 15 of a-z, 0-9 and -, not {port.name!r}"))
            key = (port.number, port.protocol)
            if key in numbers:
                faults.append(Fault(where, "ports", f"{port.number}/{port.protocol} is opened by {numbers[key]} already"))
            elif port.name in names:
                faults.append(Fault(where, "ports", f"the name {port.name!r} is that of a port of {names[port.name]} already"))
            numbers.setdefault(key, where)
            if port.name:
                names.setdefault(port.name, where)
            found.append(Opened(port, number + 1))
    return tuple(found)


def _environment(
    artifacts: Sequence[Artifact],
    wheres: Sequence[str],
    of_config: Sequence[Variables],
    known: Variables,
    faults: list[Fault],
) -> tuple[tuple[str, str], ...]:
    found, config = _Merged("environment", faults), _Merged("serverConfig", faults)
    for number, artifact in enumerate(artifacts):
        for name, value in artifact.environment.items():
            if not _VARIABLE.fullmatch(name) or name == CONFIG:
                why = "is where the server's configuration goes" if name == CONFIG else "is no name of a variable"
                faults.append(Fault(wheres[number], "environment", f"{name!r} {why}"))
            found.add(wheres[number], name, value, known)
        for key, setting in artifact.server_config.items():
            config.add(wheres[number], key, setting, of_config[number])
    if config.values:
        try:
            found.values[CONFIG] = encode(config.values, CONFIG)
        except ParametersError as error:
            faults.extend(error.faults)
    return tuple((name, str(value)) for name, value in found.values.items())


class _Merged:
    """Values by name of all artifacts; two that say different things of one name are a fault."""

    def __init__(self, key: str, faults: list[Fault]) -> None:
        self._key, self._faults = key, faults
        self.values: dict[str, str | Literal[True]] = {}
        self._whose: dict[str, str] = {}

    def add(self, where: str, name: str, value: str | Literal[True], known: Variables) -> None:
        try:
            said = value if value is True else known.expand(value)
            if said is not True and "\0" in said:
                raise ValueError("expected a text without the character NUL")
        except ValueError as error:
            self._faults.append(Fault(where, f"{self._key}.{name}", str(error)))
            return
        if self.values.setdefault(name, said) != said:
            problem = f"{said!r} contradicts {self.values[name]!r} of {self._whose[name]}: expected one of the two"
            self._faults.append(Fault(where, f"{self._key}.{name}", problem))
        self._whose.setdefault(name, where)
