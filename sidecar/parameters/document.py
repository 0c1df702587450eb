"""A YAML document as sections, each value with its file and line.

Values are read as they are written, whatever YAML would make of them: the label `1.10` stays `1.10`, the message `on` stays
`on`. `null`, `~` and nothing are "not given", in lists and mappings too. Only the nodes are composed, nothing is constructed and
nothing is expanded, so a document costs what its text costs: aliases are worth one node each. Documents above LIMIT characters
are refused unread. libyaml, which is five times as fast, is not used: it dies of what is nested a hundred thousand deep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import yaml

from sidecar.errors import Fault
from sidecar.parameters.settings import Field, Section, Setting, Values, join, raise_any, read, unknown

ReadFile = Callable[[str], str]
"""Returns the text of the file at a path; OSError or UnicodeDecodeError where it cannot."""

LIMIT = 1 << 20
_PREFIX = "tag:yaml.org,2002:"
_PLAIN = frozenset(_PREFIX + kind for kind in ("str", "int", "float", "bool", "timestamp"))

Entries = dict[str, yaml.Node]


class Document:
    """A document that is being read; `name` is what faults call it. Faults go to the list it was made with."""

    def __init__(self, text: str, name: str, faults: list[Fault]) -> None:
        """Compose `text`; a fault, and an empty document that is `torn`, where it is no YAML or too long."""
        self._name = name
        self._faults = faults
        before = len(faults)
        self._root = next(compose_all(text, name, faults, single=True), None)
        self.torn = len(faults) > before

    def top(self, known: Sequence[str]) -> Entries:
        """Return the entries of the document's top, all of them among `known`."""
        return {} if self._root is None else self.known(self._root, known)

    def whole(self, fields: Sequence[Field]) -> Section:
        """Return the section that the document is, where it holds the settings of one thing."""
        section = Section(self._name, "key", torn=self.torn)
        if self._root is not None:
            self._fill(section, self._root, fields, "")
        return section

    def sequence(self, node: yaml.Node, key: str) -> list[yaml.Node]:
        """Return the items of a list."""
        if _is_null(node):
            return []
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        self.fault(node, key, "expected a list, each item beginning with '- '")
        return []

    def section(self, node: yaml.Node, fields: Sequence[Field]) -> Section:
        """Return the section that a mapping is."""
        section = Section(self.where(node), "key")
        self._fill(section, node, fields, "")
        return section

    def where(self, node: yaml.Node) -> str:
        """Return the place of a node: file and line."""
        return f"{self._name} line {node.start_mark.line + 1}"

    def _fill(self, section: Section, node: yaml.Node, fields: Sequence[Field], prefix: str) -> None:
        inner = {each.key.removeprefix(prefix): each for each in fields if each.key.startswith(prefix)}
        known = list(dict.fromkeys(key.partition(".")[0] for key in inner))
        for name, value in self.known(node, known).items():
            if name not in inner:
                self._fill(section, value, fields, f"{prefix}{name}.")
            else:
                key = prefix + name
                section.put(Setting(key, self._text(value, inner[name]), self.where(value), key), self._faults)

    def _text(self, node: yaml.Node, field: Field) -> str:
        """Return a value as the other ways have it."""
        if field.kind == "words":
            return join(self.words(node, field.key))
        if field.kind == "pairs":
            return join(self.pairs(node, field.key))
        return self.scalar(node, field.key) or ""

    def words(self, node: yaml.Node, key: str) -> Iterator[str]:
        """Yield the items of a list of single values; a single value is a list of one."""
        if isinstance(node, yaml.SequenceNode):
            words = (self.scalar(item, key) for item in node.value)
            yield from (word for word in words if word is not None)
        elif isinstance(node, yaml.MappingNode):
            self.fault(node, key, "expected a list, or a single value")
        elif word := self.scalar(node, key):
            yield word

    def pairs(self, node: yaml.Node, key: str) -> Iterator[str]:
        """Yield NAME=VALUE of each entry of a mapping."""
        for at, name, value in self.entries(node, key, "expected a mapping, each line of it NAME: VALUE"):
            if not name or "=" in name:
                self.fault(at, key, f"expected a name without '=', not {name!r}" if name else "expected a name")
            elif (text := self.scalar(value, f"{key}.{name}")) is not None:
                yield f"{name}={text}"

    def known(self, node: yaml.Node, known: Sequence[str]) -> Entries:
        """Return the entries of a mapping whose keys are known; a fault for each other."""
        found: Entries = {}
        for at, name, value in self.entries(node, "", f"expected a mapping with the keys {', '.join(known)}"):
            if name not in known:
                self.fault(at, name, unknown("key", name, known))
            else:
                found[name] = value
        return found

    def entries(self, node: yaml.Node, key: str, expected: str) -> Iterator[tuple[yaml.Node, str, yaml.Node]]:
        """Yield each key of a mapping, its name ("" where it has none), and its value; a fault for one that comes twice."""
        if _is_null(node):
            return
        if not isinstance(node, yaml.MappingNode):
            self.fault(node, key, expected)
            return
        lines: dict[str, int] = {}
        for at, value in node.value:
            name = str(at.value) if isinstance(at, yaml.ScalarNode) else ""
            if name in lines:
                self.fault(at, name, f"given twice, first in line {lines[name]}")
            elif name == "<<":
                self.fault(at, name, "merging is not supported: expected the keys themselves")
            else:
                yield at, name, value
            lines.setdefault(name, at.start_mark.line + 1)

    def scalar(self, node: yaml.Node, key: str) -> str | None:
        """Return a single value, None where it is not given; a fault, and None, where it is no single one."""
        if isinstance(node, yaml.ScalarNode) and node.tag in _PLAIN:
            return str(node.value)
        if not _is_null(node):
            self.fault(node, key, "expected a single value")
        return None

    def fault(self, node: yaml.Node, key: str, problem: str) -> None:
        """Note that something is wrong with what stands at `node`."""
        self._faults.append(Fault(self.where(node), key, problem))


def compose_all(text: str, name: str, faults: list[Fault], *, single: bool = False) -> Iterator[yaml.Node]:
    """Yield each document of a text, as far as it is YAML; a fault where it is none, or too long, or more than a `single` one."""
    if len(text) > LIMIT:
        faults.append(Fault(name, "", f"{len(text)} characters: expected at most {LIMIT}"))
        return
    try:
        roots = [yaml.compose(text, Loader=yaml.SafeLoader)] if single else yaml.compose_all(text, Loader=yaml.SafeLoader)
        yield from (root for root in roots if root is not None)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name} line {mark.line + 1}" if mark else name
        faults.append(Fault(where, "", f"no YAML: {error.problem or error.context}"))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        faults.append(Fault(f"{name} line {line}", "", f"no YAML: the character U+{error.character:04X} is not allowed"))
    except RecursionError:
        faults.append(Fault(name, "", "no YAML that is meant: nested too deeply"))


def read_document(text: str, name: str, fields: Sequence[Field]) -> Values:
    """Return the values of a document that holds the settings of one thing; ParametersError with every fault."""
    faults: list[Fault] = []
    values = read(Document(text, name, faults).whole(fields), fields, "", [], faults)
    raise_any(faults)
    return values


def is_inline(parameters: str) -> bool:
    """Tell whether a text is a YAML document, not the path of one: it has more than a line, or a key."""
    stripped = parameters.strip()
    return "\n" in stripped or stripped.startswith("{") or (":" in stripped and not stripped.startswith("/"))


def read_text(path: str, where: str, read_file: ReadFile, faults: list[Fault]) -> str:
    """Return the text of a file; "" and a fault where it cannot be read."""
    try:
        return read_file(path)
    except OSError as error:
        faults.append(Fault(where, path, f"cannot be read: {error.strerror or error}"))
    except UnicodeDecodeError:
        faults.append(Fault(where, path, "expected text in UTF-8"))
    return ""


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _PREFIX + "null"
