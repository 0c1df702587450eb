"""Which images a manifest names, and where. Pure.

A container of Kubernetes is the same thing wherever it stands: in a Pod, in the template of a Job, a Deployment or a CronJob, in
the templates of Argo's workflows, in a List of any of those. So nobody asks of which kind a document is. Looked for are the
places that hold containers, at any depth: the items of `containers`, `initContainers`, `ephemeralContainers` and `sidecars`, what
`container` and `script` are, and the images that are volumes. An `image` anywhere else is something else: a label, a
setting of a ConfigMap, a property in a schema.

Documents are composed and not constructed (see parameters.document), and each node is looked at once for what it may be: what
aliases would expand to costs nothing. JSON is read as the YAML that it is, but for tabs, which YAML does not take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import yaml

from sidecar.errors import Fault
from sidecar.factory.model import Named
from sidecar.parameters.document import compose_all
from sidecar.parameters.settings import raise_any

# Under which keys a list of containers stands, and a single one.
_LISTS = ("containers", "initContainers", "ephemeralContainers", "sidecars")
_SINGLE = ("container", "script")
# What a node may be: anything, a container, a list of them, a volume, a list of them.
_ANY, _CONTAINER, _CONTAINERS, _VOLUME, _VOLUMES = range(5)


@dataclass(frozen=True)
class Parts:
    """What a reference consists of; "" for what it does not say. `repository` is without the host."""

    host: str
    repository: str
    tag: str
    digest: str


def read_manifest(text: str, name: str = "manifest") -> tuple[Named, ...]:
    """Return the images that a manifest names, in their order, none twice in one line; ParametersError where it is no YAML.

    `name` is what faults call it.
    """
    faults: list[Fault] = []
    found = {each for root in compose_all(_spaced(text), name, faults) for each in _images(root)}
    raise_any(faults)
    return tuple(sorted(found, key=lambda named: (named.line, named.reference)))


def parts(reference: str) -> Parts:
    """Return what a reference consists of. As everywhere, its first part is a host if it has a dot or a port, or is localhost."""
    name, _, digest = reference.partition("@")
    first, slash, rest = name.partition("/")
    host = first if slash and (first == "localhost" or "." in first or ":" in first) else ""
    repository, colon, tag = (rest if host else name).rpartition(":")
    if not colon:
        repository, tag = tag, ""
    return Parts(host, repository, tag, digest)


def ours(reference: str, repositories: Mapping[str, str]) -> str:
    """Return the name of our image that a reference means, "" for none: `repositories` are those of our images, by name.

    It is ours if its repository is, or ends with it below some folder: registries put ours where they like. The longest counts.
    """
    names = {repository: name for name, repository in repositories.items()}
    below = parts(reference).repository
    while below not in names:
        _, slash, below = below.partition("/")
        if not slash:
            return ""
    return names[below]


def _spaced(text: str) -> str:
    # The strings of JSON hold no tabs.
    return text.replace("\t", " ") if text.lstrip()[:1] in ("{", "[") else text


def _images(root: yaml.Node) -> Iterator[Named]:
    seen: set[tuple[int, int]] = set()
    left = [(root, _ANY)]
    while left:
        node, what = left.pop()
        if (id(node), what) in seen:
            continue
        seen.add((id(node), what))
        if isinstance(node, yaml.SequenceNode):
            inner = {_CONTAINERS: _CONTAINER, _VOLUMES: _VOLUME}.get(what, _ANY)
            left += [(each, inner) for each in node.value]
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                said = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
                image = value
                if what == _VOLUME and said == "image" and isinstance(value, yaml.MappingNode):
                    image = next((each for at, each in value.value if at.value == "reference"), value)
                if said == "image" and what in (_CONTAINER, _VOLUME) and isinstance(image, yaml.ScalarNode):
                    if image.value and image.tag != "tag:yaml.org,2002:null":
                        yield Named(str(image.value), image.start_mark.line + 1)
                else:
                    left.append((value, _below(said, value)))


def _below(key: str, value: yaml.Node) -> int:
    if isinstance(value, yaml.SequenceNode):
        return _CONTAINERS if key in _LISTS else _VOLUMES if key == "volumes" else _ANY
    return _CONTAINER if key in _SINGLE else _ANY
