"""A catalog: what the ids of artifacts mean, as a YAML file says. Pure.

    artifacts:
      streamer@7:
        image: registry.example/streamer:7
        workingDirectory: share
        executable: bin/stream
        args: [--port, "%port stream%"]
        ports: [{name: stream, port: 9000}]
        serverConfig: {bitrate: 20, hdr: }

An artifact that is added to a session's container is an entry here and nothing else. Values are read as they are written (see
parameters.document); a key of serverConfig without a value is an option that is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from sidecar.errors import Fault
from sidecar.parameters.document import Document
from sidecar.parameters.settings import raise_any, unknown
from sidecar.session.artifact import Artifact, Port

KEYS = (
    "image", "path", "mountPath", "mountPaths", "workingDirectory", "executable", "args", "ports", "serverConfig",
    "logDirectories", "environment",
)  # fmt: skip
PORT_KEYS = ("name", "port", "protocol")
_PROTOCOLS: Mapping[str, Any] = {"": "TCP", "TCP": "TCP", "UDP": "UDP", "SCTP": "SCTP"}


def read_catalog(text: str, name: str = "catalog") -> dict[str, Artifact]:
    """Return the artifacts of a catalog by id; ParametersError with every fault and its line. `name` is what faults call it."""
    faults: list[Fault] = []
    document = Document(text, name, faults)
    top = document.top(("artifacts",))
    entries = (
        document.entries(top["artifacts"], "artifacts", "expected a mapping from ids to artifacts") if "artifacts" in top else ()
    )
    found = {}
    for at, key, node in entries:
        if not key:
            document.fault(at, "artifacts", "expected an id")
        else:
            found[key] = _artifact(document, node, f"artifacts.{key}")
    raise_any(faults)
    return found


def find(catalog: Mapping[str, Artifact], ids: Sequence[str]) -> list[Artifact]:
    """Return the artifacts with these ids, in their order; ParametersError with every id that is not in the catalog."""
    faults = [
        Fault(f"artifact {number}", each, unknown("artifact", each, [*catalog]) if catalog else "unknown: the catalog is empty")
        for number, each in enumerate(ids, 1)
        if each not in catalog
    ]
    raise_any(faults)
    return [catalog[each] for each in ids]


def _artifact(document: Document, node: yaml.Node, key: str) -> Artifact:
    given = document.known(node, KEYS)

    def scalar(name: str) -> str:
        return (document.scalar(given[name], f"{key}.{name}") or "") if name in given else ""

    def words(name: str) -> tuple[str, ...]:
        return tuple(document.words(given[name], f"{key}.{name}")) if name in given else ()

    if "image" not in given:
        document.fault(node, f"{key}.image", "expected the image that holds it, it is missing")
    return Artifact(
        scalar("image"),
        scalar("mountPath"),
        scalar("path"),
        scalar("workingDirectory"),
        scalar("executable"),
        words("args"),
        tuple(_ports(document, given, f"{key}.ports")),
        _options(document, given.get("serverConfig"), f"{key}.serverConfig"),
        tuple(_mounts(document, given, f"{key}.mountPaths")),
        words("logDirectories"),
        {
            name: value
            for name, value in _options(document, given.get("environment"), f"{key}.environment").items()
            if value is not True
        },
    )


def _options(document: Document, node: yaml.Node | None, key: str) -> dict[str, str | Literal[True]]:
    found: dict[str, str | Literal[True]] = {}
    if node is not None:
        for at, name, value in document.entries(node, key, "expected a mapping, each line of it NAME: VALUE"):
            text = document.scalar(value, f"{key}.{name}")
            if not name:
                document.fault(at, key, "expected a name")
            found[name] = True if text is None else text
    return found


def _ports(document: Document, given: Mapping[str, yaml.Node], key: str) -> list[Port]:
    found = []
    for node in document.sequence(given["ports"], key) if "ports" in given else ():
        # A number alone is a port without a name.
        if isinstance(node, yaml.ScalarNode):
            said = {"port": document.scalar(node, key) or ""}
        else:
            said = {
                name: document.scalar(value, f"{key}.{name}") or "" for name, value in document.known(node, PORT_KEYS).items()
            }
        number, protocol = said.get("port", ""), said.get("protocol", "").upper()
        if not (number.isascii() and number.isdecimal() and len(number) < 8):
            document.fault(node, key, f"expected a port number from 1 to 65535, not {number!r}")
        elif protocol not in _PROTOCOLS:
            document.fault(node, key, f"expected the protocol TCP, UDP or SCTP, not {protocol!r}")
        else:
            found.append(Port(int(number), said.get("name", ""), _PROTOCOLS[protocol]))
    return found


def _mounts(document: Document, given: Mapping[str, yaml.Node], key: str) -> list[tuple[str, str]]:
    """Return the further mounts: a list of paths, or a mapping from paths to the directories that are shown there."""
    node = given.get("mountPaths")
    if node is None:
        return []
    if isinstance(node, yaml.MappingNode):
        return [(path, "" if inner is True else inner) for path, inner in _options(document, node, key).items()]
    return [(path, "") for path in document.words(node, key)]
