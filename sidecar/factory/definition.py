"""What images there are to build and where they go, as a file `factory.yaml` and the folders below it say. Pure.

    repository: sidecar/{image}        what an image is called, below the name of a registry
    tag: 0.1.0                         latest, where none is given
    images:
      fuse-sidecar: {context: .., base: debian:12, arguments: {LEVEL: 3}, target: docker, directory: runtimes/php-8.2}
    providers:
      here: {registry: "localhost:5000", plain: true, authfile: path}
      archive: {layout: some/folder}

Each folder below with a Containerfile or a Dockerfile is an image, called by its path with - for /; an entry of `images` says of
one what cannot be seen, or gives the folder that is its `directory` another name, also one that is elsewhere. Paths are relative
to the folder of the file.

`base` is an image of ours or any other reference, and becomes the argument BASE. Ours are built first, and what they hold is a
part of what is built on them: so `bases` are never a circle.

`timestamp`, seconds since 1970, is the time of all that is built: the same context then gives the same layers. `volumes` are
mounted read-only at each build and are in no image, so they are no part of its content; `store` is where images are kept.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from sidecar.errors import Fault, SourceMissing
from sidecar.factory.model import TARGETS, Provider, Target
from sidecar.parameters.document import Document
from sidecar.parameters.settings import raise_any

CONTAINERFILES = ("Containerfile", "Dockerfile")
# Below this name images are in the place where they are built: it is no registry's.
LOCAL = "localhost"
KEYS = ("repository", "tag", "timestamp", "store", "volumes", "images", "providers")
_IMAGE_KEYS = ("directory", "context", "base", "arguments", "target")
_PROVIDER_KEYS = ("registry", "layout", "plain", "authfile")
_ARGUMENT = "BASE"

# As registries have them: parts of a repository's name, its tag, and a host with its port and maybe a path.
_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_NAME = re.compile(_PART)
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9A-Fa-f:.]+\]"
_REGISTRY = re.compile(rf"(?:{_HOST})(?::[0-9]{{1,5}})?(?:/{_PART})*")
_REFERENCE = re.compile(r"[A-Za-z0-9\[][\w.:/@\[\]-]*", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST = 255

# Returns what the Containerfile of a folder is called, given by its path relative to the definition; "" where it has none.
Look = Callable[[str], str]


@dataclass(frozen=True)
class Recipe:
    """How one image is made. Paths are whole; `base` is a reference, or the name of an image of ours, which `of_ours` tells."""

    name: str
    file: str
    context: str
    base: str = ""
    of_ours: bool = False
    arguments: Mapping[str, str] = field(default_factory=dict)
    target: Target = "oci"


@dataclass(frozen=True)
class Definition:
    """All that a factory is told. `volumes` are pairs of a path here and the one where a build finds it."""

    repository: str = "{image}"
    tag: str = "latest"
    images: Mapping[str, Recipe] = field(default_factory=dict)
    providers: Mapping[str, Provider] = field(default_factory=dict)
    timestamp: int | None = None
    volumes: tuple[tuple[str, str], ...] = ()
    store: str = ""

    def image(self, name: str) -> Recipe:
        """Return how an image is made; SourceMissing, with those that there are, where it is none of ours."""
        if name not in self.images:
            raise _none("image", name, self.images)
        return self.images[name]

    def provider(self, name: str) -> Provider:
        """Return a provider; SourceMissing, with those that there are, where there is none of that name."""
        if name not in self.providers:
            raise _none("provider", name, self.providers)
        return self.providers[name]

    def of(self, name: str) -> str:
        """Return the repository of an image, below the name of a registry."""
        return self.repository.replace("{image}", name)

    def local(self, name: str) -> str:
        """Return what an image is called where images are kept."""
        return f"{LOCAL}/{self.of(name)}:{self.tag}"

    def reference(self, name: str, provider: Provider) -> str:
        """Return what an image is called at a provider; in a layout, by which name it is found there."""
        return f"{provider.registry}/{self.of(name)}:{self.tag}" if provider.registry else f"{self.of(name)}:{self.tag}"

    def bases(self, name: str) -> list[str]:
        """Return the images of ours that one is built on, the one to be built first first."""
        found: list[str] = []
        while (recipe := self.images[name]).of_ours:
            name = recipe.base
            found.insert(0, name)
        return found


def read_definition(
    text: str, folder: str, found: Mapping[str, str], name: str = "factory.yaml", look: Look = lambda _: ""
) -> Definition:
    """Return what a file in `folder` defines; ParametersError with every fault and its line.

    `found` are the folders below with a Containerfile, by their path relative to `folder`, and what that is called; of any other
    folder `look` tells it.
    """
    faults: list[Fault] = []
    document = Document(text, name, faults)
    top = document.top(KEYS)

    def scalar(key: str, default: str = "") -> str:
        return (document.scalar(top[key], key) or default) if key in top else default

    repository, tag = scalar("repository", "{image}"), scalar("tag", "latest")
    if repository.count("{image}") != 1 or not _is_repository(repository.replace("{image}", "image")):
        document.fault(top["repository"], "repository", f"expected a repository with {{image}} in it, not {repository!r}")
    if not _TAG.fullmatch(tag):
        document.fault(top["tag"], "tag", f"expected a tag: letters, digits, . _ and -, not {tag!r}")
    timestamp = scalar("timestamp")
    if timestamp and not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) < 13):
        document.fault(top["timestamp"], "timestamp", f"expected seconds since 1970, not {timestamp!r}")
        timestamp = ""
    store = scalar("store")
    definition = Definition(
        repository,
        tag,
        _images(document, top.get("images"), folder, found, look),
        _providers(document, top.get("providers"), folder),
        int(timestamp) if timestamp else None,
        tuple(_volumes(document, top.get("volumes"), folder)),
        _path(folder, store) if store else "",
    )
    raise_any(faults)
    return definition


def _none(what: str, name: str, there: Mapping[str, object]) -> SourceMissing:
    return SourceMissing(f"there is no {what} {name}; there is {', '.join(there) or 'none at all'}", there)


def _is_repository(name: str) -> bool:
    return len(name) <= _LONGEST and _REPOSITORY.fullmatch(name) is not None


def _path(folder: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(folder, path))


def _images(document: Document, node: yaml.Node | None, folder: str, found: Mapping[str, str], look: Look) -> dict[str, Recipe]:
    given: dict[str, tuple[yaml.Node, dict[str, yaml.Node]]] = {}
    taken: dict[str, str] = {}
    if node is not None:
        for at, name, value in document.entries(node, "images", "expected a mapping from names of images"):
            if not _NAME.fullmatch(name) or len(name) > 128:
                document.fault(at, f"images.{name}", "expected a name of small letters and digits, with . _ and - between them")
            else:
                given[name] = at, document.known(value, _IMAGE_KEYS)
    names: dict[str, list[str]] = {}
    for path in found:
        names.setdefault(path.replace("/", "-"), []).append(path)
    elsewhere = {posixpath.normpath(said) for said in map(_directory, (entry for _, entry in given.values())) if said}
    recipes = {}
    for name, (at, entry) in given.items():
        paths = names.get(name, [])
        if len(paths) > 1:
            # Of several folders of this name it is the one that is called nothing else.
            paths = [path for path in paths if path not in elsewhere]
        if "directory" not in entry and len(paths) > 1:
            document.fault(at, f"images.{name}", f"expected its directory: {' and '.join(paths)} have this name")
            taken.update(dict.fromkeys(paths, name))
            continue
        where = document.scalar(entry["directory"], f"images.{name}.directory") if "directory" in entry else "".join(paths)
        path = posixpath.normpath(where or "")
        file = found.get(path) or (look(path) if where else "")
        if not where or not file:
            problem = (
                f"there is no Containerfile in {path}" if where else f"expected its directory: none of the name {name} has one"
            )
            document.fault(at, f"images.{name}", problem)
            continue
        taken[path] = name
        recipes[name] = _recipe(document, name, entry, folder, path, file)
    for name, paths in names.items():
        left = [path for path in paths if path not in taken]
        if len(left) > 1:
            problem = f"the folders {' and '.join(left)} have the same name: give them others, with `directory`"
            document.fault(_somewhere(node), "images", problem)
        elif left and name in recipes:
            document.fault(given[name][0], f"images.{name}", f"{left[0]} has this name too: give that another one")
        elif left and (not _NAME.fullmatch(name) or len(name) > 128):
            problem = f"the folder {left[0]!r} has no name that an image may have: give it one, with `directory`"
            document.fault(_somewhere(node), "images", problem)
        elif left:
            recipes[name] = Recipe(name, _path(folder, f"{left[0]}/{found[left[0]]}"), _path(folder, left[0]))
    for name, recipe in recipes.items():
        if recipe.base in recipes or recipe.base in given:
            recipes[name] = replace(recipe, of_ours=True)
        elif called := [taken[path] for path in names.get(recipe.base, []) if path in taken]:
            document.fault(given[name][1]["base"], f"images.{name}.base", f"{recipe.base} is called {' and '.join(called)} here")
    _check_bases(document, recipes, given)
    return dict(sorted(recipes.items()))


def _directory(entry: Mapping[str, yaml.Node]) -> str:
    node = entry.get("directory")
    return node.value if isinstance(node, yaml.ScalarNode) else ""


def _somewhere(node: yaml.Node | None) -> yaml.Node:
    """Return where a fault is that no line has: that of all images, or the first line."""
    return node if node is not None else yaml.ScalarNode("", "", yaml.Mark("", 0, 0, 0, None, 0))


def _recipe(document: Document, name: str, entry: Mapping[str, yaml.Node], folder: str, path: str, file: str) -> Recipe:
    key = f"images.{name}"

    def scalar(part: str, default: str) -> str:
        return (document.scalar(entry[part], f"{key}.{part}") or default) if part in entry else default

    arguments = dict(_pairs(document, entry.get("arguments"), f"{key}.arguments"))
    for argument in arguments:
        if not _VARIABLE.fullmatch(argument):
            document.fault(entry["arguments"], f"{key}.arguments", f"expected the name of an argument, not {argument!r}")
    base, target = scalar("base", ""), scalar("target", "oci")
    if target not in TARGETS:
        document.fault(entry["target"], f"{key}.target", f"expected {' or '.join(TARGETS)}, not {target!r}")
    if base and not _REFERENCE.fullmatch(base):
        document.fault(entry["base"], f"{key}.base", f"expected an image of ours or a reference, not {base!r}")
    if base and _ARGUMENT in arguments:
        document.fault(entry["base"], f"{key}.base", f"given twice: it is the argument {_ARGUMENT}")
    checked: Any = target
    return Recipe(
        name,
        _path(folder, f"{path}/{file}"),
        _path(folder, scalar("context", path)),
        base,
        arguments=arguments,
        target=checked,
    )


def _check_bases(document: Document, recipes: Mapping[str, Recipe], given: Mapping[str, tuple[yaml.Node, Any]]) -> None:
    """Find those that are built on themselves: what hangs on a circle is none, and only its members are at fault."""
    for name in recipes:
        seen, at = [name], name
        while recipes[at].of_ours and recipes[at].base in recipes:
            at = recipes[at].base
            if at == name:
                document.fault(given[name][0], f"images.{name}.base", f"built on itself: {' on '.join([*seen, name])}")
            if at in seen:
                break
            seen.append(at)


def _providers(document: Document, node: yaml.Node | None, folder: str) -> dict[str, Provider]:
    found = {}
    entries = () if node is None else document.entries(node, "providers", "expected a mapping from names of providers")
    for at, name, value in entries:
        key = f"providers.{name}"
        if not _NAME.fullmatch(name):
            document.fault(at, key, "expected a name of small letters and digits, with . _ and - between them")
        entry = document.known(value, _PROVIDER_KEYS)
        said = {part: document.scalar(inner, f"{key}.{part}") or "" for part, inner in entry.items()}
        registry, layout = said.get("registry", ""), said.get("layout", "")
        if bool(registry) == bool(layout):
            document.fault(at, key, "expected one of registry and layout")
        if registry and not _REGISTRY.fullmatch(registry):
            document.fault(entry["registry"], f"{key}.registry", f"expected HOST[:PORT][/PATH], not {registry!r}")
        plain = said.get("plain", "false")
        if plain not in ("true", "false", ""):
            document.fault(entry["plain"], f"{key}.plain", f"expected true or false, not {plain!r}")
        # buildah parts the path of a layout from the image's name at the first colon.
        if layout and ":" in f"{folder}{layout}":
            document.fault(entry["layout"], f"{key}.layout", "expected a path without a colon")
        if layout and (plain == "true" or said.get("authfile")):
            document.fault(at, key, "plain and authfile are for a registry")
        authfile = said.get("authfile", "")
        found[name] = Provider(
            name, registry, _path(folder, layout) if layout else "", plain == "true", _path(folder, authfile) if authfile else ""
        )
    return found


def _volumes(document: Document, node: yaml.Node | None, folder: str) -> list[tuple[str, str]]:
    found = []
    for path, inside in _pairs(document, node, "volumes"):
        if node is not None and (":" in path + inside or not inside.startswith("/")):
            document.fault(node, f"volumes.{path}", "expected PATH: /PATH/IN/THE/BUILD, without colons")
        found.append((_path(folder, path), inside))
    return found


def _pairs(document: Document, node: yaml.Node | None, key: str) -> list[tuple[str, str]]:
    if node is None:
        return []
    entries = document.entries(node, key, "expected a mapping, each line of it NAME: VALUE")
    return [(name, document.scalar(value, f"{key}.{name}") or "") for _, name, value in entries]
