"""What every way of configuring shares: fields, where a value came from, which one counts, and what a value may be.

A *field* is one thing that can be set; it has a spelling in each way of configuring. A *section* is the settings of one thing
(the pod, one bundle, one database) as one way gives them. Sections of one thing are merged field by field, the strongest first:
flags, environment, file, defaults. An empty value is the same as none: the writers of old wrote every key. Label and bundle id
are one choice: who gives either is not completed with the other from a weaker place.

A value is one text in each of the ways. A list, or a mapping, is words as a POSIX shell splits them, with quotes and without
anything that a shell would do besides; those of YAML become that text. It counts as one value: a stronger list replaces a
weaker one.

A fault never stops the reading. It is appended to a list, so that a user sees all of them at once.
"""

from __future__ import annotations

import difflib
import posixpath
import re
import shlex
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Generic, Literal, TypeVar

from sidecar.errors import Fault, ParametersError

Options = TypeVar("Options")
Dialect = Literal["flag", "code", "key"]
Kind = Literal["one", "words", "pairs"]

# What Linux takes, in bytes.
PATH_LIMIT = 4095
# Of a list, in characters: what Linux takes of one variable. YAML could ask for any number of them by few aliases.
WORDS_LIMIT = 1 << 17
CHOICES = (frozenset({"srcLabel", "srcBundle"}),)


@dataclass(frozen=True)
class Setting:
    """One value and where it came from: `key` as --print-config shows it, `where` a flag, variable, or file and line."""

    key: str
    value: str
    where: str
    spelled: str = ""


@dataclass(frozen=True)
class Configured(Generic[Options]):
    """Options that are valid, the origin of each value, and what a user should know although nothing is wrong."""

    options: Options
    settings: tuple[Setting, ...]
    notes: tuple[str, ...] = ()


def explain(configured: Configured[Any]) -> list[tuple[str, str, str]]:
    """Return (key, value, origin) of every value that counts, globals first; what --print-config prints."""
    return [(setting.key, setting.value, setting.where) for setting in configured.settings]


@dataclass(frozen=True)
class Field:
    """One thing that can be set.

    `key` is its name in YAML (dotted where it lies deeper), `code` in a serialized dictionary, `flag` on a command line.
    `read` returns the value that a text stands for, or raises ValueError saying what was expected. `kind`: it is that text, or a
    list of "words", each of them different, or of "pairs", words NAME=VALUE of which `read` makes (name, value).
    """

    key: str
    code: str
    read: Callable[[str], Any]
    flag: str = ""
    default: str = ""
    # It is true where a dictionary has it without a value.
    switch: bool = False
    # What is read and does nothing here; the note says why.
    ignored: str = ""
    kind: Kind = "one"

    def spelled(self, dialect: Dialect) -> str:
        """Return its name in `dialect`."""
        return {"flag": self.flag, "code": self.code, "key": self.key}[dialect] or self.key

    def value(self, text: str) -> Any:
        """Return the value that a text stands for: a tuple of the words in their order, or of the pairs in that of their names.

        ValueError with an argument for each thing that was expected.
        """
        if self.kind == "one":
            return self.read(text)
        items = _read_words(text, self.read)
        return tuple(sorted(items) if self.kind == "pairs" else items)


@dataclass
class Section:
    """What one way of configuring says of one thing; `where` and `dialect` tell a user where to add what is missing."""

    where: str
    dialect: Dialect
    given: dict[str, Setting] = field(default_factory=dict)
    # It could not be read at all, which is a fault already: what it lacks is not another.
    torn: bool = False
    # Names that keys have here alone, and not in all of the dialect: --destination is --mount in another command.
    spelled: Mapping[str, str] = field(default_factory=dict)

    def put(self, setting: Setting, faults: list[Fault]) -> None:
        """Add a setting; a fault where it says something else than what is there. An empty value says nothing."""
        if not setting.value:
            return
        old = self.given.setdefault(setting.key, setting)
        if old.value != setting.value:
            problem = f"{setting.value!r} contradicts {old.value!r} of {old.where}: expected one of the two"
            faults.append(Fault(setting.where, setting.spelled, problem))


@dataclass
class Layer:
    """All that one way of configuring says: of the pod, and of each bundle or database by name."""

    pod: Section
    named: dict[str, Section] = field(default_factory=dict)


def merge(sections: Sequence[Section]) -> Section:
    """Return the sections of one thing as one, the strongest first; it is found where the strongest stands."""
    first, torn = sections[0], any(section.torn for section in sections)
    merged = Section(first.where, first.dialect, torn=torn, spelled=first.spelled)
    for section in sections:
        closed = {key for choice in CHOICES if choice & merged.given.keys() for key in choice}
        for key, setting in section.given.items():
            if key not in closed:
                merged.given.setdefault(key, setting)
    return merged


def merge_named(layers: Sequence[Layer], faults: list[Fault]) -> dict[str, Section]:
    """Return the merged section of each bundle or database: those of commands in their order, then the others by name."""
    commands = [name for layer in layers for name, section in layer.named.items() if section.dialect == "flag"]
    others = {name for layer in layers for name, section in layer.named.items() if section.dialect != "flag"}
    for layer in layers:
        for name, section in layer.named.items():
            if name in commands and section.dialect != "flag":
                faults.append(Fault(section.where, "name", f"the name {name!r} is that of a -d command: expected another"))
    return {
        name: merge([layer.named[name] for layer in layers if name in layer.named])
        for name in (*commands, *sorted(others - set(commands)))
    }


def by_name(sections: Iterable[Section], faults: list[Fault]) -> dict[str, Section]:
    """Return sections under the names that they give themselves; a fault for each that has none or another's."""
    named: dict[str, Section] = {}
    for number, section in enumerate(sections, 1):
        setting = section.given.get("name")
        if setting is None:
            faults.append(Fault(section.where, "name", "expected a name, it is missing"))
            # The rest of it is checked all the same.
            named[f"#{number}"] = section
        elif setting.value in named:
            problem = f"the name {setting.value!r} is given twice, first at {named[setting.value].given['name'].where}"
            faults.append(Fault(setting.where, "name", problem))
        else:
            check_name(setting.value, setting.where, faults)
            named[setting.value] = section
    return named


def check_name(name: str, where: str, faults: list[Fault]) -> None:
    """Append a fault where `name` cannot be that of a bundle or database."""
    try:
        thing_name(name)
    except ValueError as error:
        faults.append(Fault(where, "name", str(error)))


def read(section: Section, fields: Iterable[Field], prefix: str, notes: list[str], faults: list[Fault]) -> Values:
    """Return the section's values, read and with defaults, and their settings with keys that begin with `prefix`.

    A value that cannot be read is a fault, and stands as its text: it is malformed, not missing.
    """
    values: dict[str, Any] = {}
    settings = []
    for each in fields:
        setting = section.given.get(each.key) or Setting(each.key, each.default, "default", each.key)
        values[each.key] = value = setting.value
        if not value:
            continue
        try:
            values[each.key] = value = each.value(setting.value)
        except ValueError as error:
            faults.extend(Fault(setting.where, setting.spelled, str(problem)) for problem in error.args)
        if each.ignored:
            notes.append(f"{setting.where}: {setting.spelled} is ignored: {each.ignored}")
        settings.append(Setting(prefix + each.key, _shown(value), setting.where, setting.spelled))
    return Values(section, {each.key: each for each in fields}, values, tuple(settings))


@dataclass(frozen=True)
class Values:
    """The values of one thing: "" is not given."""

    section: Section
    fields: dict[str, Field]
    values: dict[str, Any]
    settings: tuple[Setting, ...]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def require(self, key: str, what: str, faults: list[Fault]) -> None:
        """Append a fault, at the place where `key` could be given, where it is not."""
        if not self.values[key] and not self.section.torn:
            faults.append(self.wrong(key, f"expected {what}, it is missing"))

    def wrong(self, key: str, problem: str) -> Fault:
        """Return the fault that the value of `key` cannot stay, at the place where it is, or could be, given."""
        setting = self.section.given.get(key)
        if setting:
            return Fault(setting.where, setting.spelled, problem)
        spelled = self.section.spelled.get(key) or self.fields[key].spelled(self.section.dialect)
        return Fault(self.section.where, spelled, problem)

    def given(self, keys: Iterable[str]) -> list[str]:
        """Return those of `keys` that are given."""
        return [key for key in keys if key in self.section.given]


def contributor(pod: Values, faults: list[Fault]) -> str:
    """Return "Name <email>", "" where neither is given; a fault where only one is."""
    name, email = pod["contributor.name"], pod["contributor.email"]
    if name and email:
        return f"{name} <{email}>"
    if name or email:
        given, missing = ("name", "email") if name else ("email", "name")
        faults.append(pod.wrong(f"contributor.{given}", f"the contributor's {missing} is missing: expected both or neither"))
    return ""


def raise_any(faults: Iterable[Fault]) -> None:
    """Raise ParametersError with all faults, each once, where there are any."""
    found = tuple(dict.fromkeys(faults))
    if found:
        raise ParametersError(found)


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """Return the problem that `name` is not among `known`, with the one that was probably meant."""
    folded = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), folded, n=1)
    if close:
        return f"unknown {what}; did you mean {folded[close[0]]!r}?"
    return f"unknown {what}; expected {', '.join(known)}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return shlex.join(each if isinstance(each, str) else "=".join(each) for each in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- lists and mappings --------------------------------------------------------------------------------------------


def join(words: Iterable[str]) -> str:
    """Return words as one text, as a shell splits it; of too many, no more than make it too long."""
    taken, length = [], 0
    for word in words:
        taken.append(word)
        length += len(word)
        if length > WORDS_LIMIT:
            break
    return shlex.join(taken)


def split(value: str) -> list[str]:
    """Return the words of a text as a POSIX shell splits it. Nothing is evaluated."""
    if len(value) > WORDS_LIMIT:
        raise ValueError(f"expected at most {WORDS_LIMIT} characters, not {len(value)}")
    try:
        return shlex.split(value)
    except ValueError as error:
        raise ValueError(f"cannot be split into words: {str(error).lower()} in {value!r}") from None


def pair(value: str) -> tuple[str, str]:
    """Return the two sides of NAME=VALUE."""
    name, equals, text = value.partition("=")
    if not name or not equals:
        raise ValueError(f"expected NAME=VALUE, not {value!r}")
    return name, text


def _read_words(text: str, read: Callable[[str], Any]) -> list[Any]:
    found: dict[str, Any] = {}
    problems = []
    for word in split(text):
        try:
            item = read(word)
        except ValueError as error:
            problems.append(str(error))
            continue
        name = item if isinstance(item, str) else item[0]
        if name in found:
            problems.append(f"{name!r} is given twice: expected it once")
        found[name] = item
    if problems:
        raise ValueError(*problems)
    return list(found.values())


# --- what a value may be: each returns it, or raises ValueError saying what was expected ----------------------------


def text(value: str) -> str:
    """Return a text of one line."""
    bad = next((c for c in value if unicodedata.category(c) == "Cc"), "")
    if bad:
        raise ValueError(f"expected a text without control characters, not {bad!r}")
    return message(value)


def message(value: str) -> str:
    """Return a text of any number of lines."""
    if "\0" in value:
        raise ValueError("expected a text without the character NUL")
    if not _is_unicode(value):
        raise ValueError("expected a text in UTF-8")
    return value


def email(value: str) -> str:
    """Return an address as it stands between angle brackets."""
    if "@" not in value or any(c.isspace() or c in "<>" for c in value):
        raise ValueError(f"expected an e-mail address, not {value!r}")
    return text(value)


def path(value: str) -> str:
    """Return an absolute path, normalized."""
    if any(unicodedata.category(c) == "Cc" for c in value):
        raise ValueError(f"expected a path without control characters, not {value!r}")
    if any("\ud800" <= c < "\udc80" or "\udcff" < c <= "\udfff" for c in value):
        # Others of these stand for the bytes of a path that is no UTF-8.
        raise ValueError(f"expected a path that a file may have, not {value!r}")
    if len(value) > PATH_LIMIT:
        raise ValueError(f"expected a path of at most {PATH_LIMIT} characters, not {len(value)}")
    if not value.startswith("/"):
        raise ValueError(f"expected an absolute path, one that begins with '/', not {value!r}")
    if ".." in value.split("/"):
        raise ValueError(f"expected a path without '..', not {value!r}")
    normal = "/" + posixpath.normpath(value).lstrip("/")
    if normal == "/":
        raise ValueError("expected a directory below '/', not '/' itself")
    return normal


def lineage(path: str) -> list[str]:
    """Return the directories that a normalized path lies in, the outermost first, and itself; nothing of what is no path."""
    if len(path) > 2 * PATH_LIMIT:
        return []
    return list(accumulate((f"/{part}" for part in path.split("/")[1:]), str.__add__))


def file_path(value: str) -> str:
    """Return an absolute path of a file, normalized."""
    if value.endswith("/"):
        raise ValueError(f"expected the path of a file, not of a directory, {value!r}")
    return path(value)


def bundle_paths(value: str) -> tuple[str, ...]:
    """Return the paths of files and directories in a bundle, given a list of them as a shell writes one."""
    paths = shlex.split(value)
    bad = next((path for path in paths if {"", ".", ".."} & {*path.strip("/").split("/")}), None)
    if bad is not None:
        raise ValueError(f"expected a path in the bundle, such as 2026/january.csv, not {bad!r}")
    return tuple(path.strip("/") for path in paths)


def regular_expression(value: str) -> str:
    """Return a regular expression of Python's, which `re.compile` takes."""
    # datamon's are RE2's. Most others mean the same here, or do not compile; this compiles and means any of these letters.
    foreign = re.search(r"\[:\^?[a-z]+:\]", value)
    if foreign:
        raise ValueError(f"{foreign[0]} is no class of characters here: expected [0-9], [A-Za-z] or the like in {value!r}")
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{value!r} is no regular expression: {error}") from None
    return value


def boolean(value: str) -> bool:
    """Return a truth value."""
    known = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    try:
        return known[value.lower()]
    except KeyError:
        raise ValueError(f"expected true or false, not {value!r}") from None


def port(value: str) -> int:
    """Return a port number."""
    if not (value.isascii() and value.isdecimal() and len(value) < 8 and 0 < int(value) < 65536):
        raise ValueError(f"expected a port number from 1 to 65535, not {value!r}")
    return int(value)


def choice(*known: str) -> Callable[[str], str]:
    """Return what reads one of the words `known`."""

    def one(value: str) -> str:
        if value not in known:
            raise ValueError(f"expected {', '.join(known[:-1])} or {known[-1]}, not {value!r}")
        return value

    return one


def seconds(value: str) -> int:
    """Return a number of seconds, at most ten years of them."""
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise ValueError(f"expected a whole number of seconds, not {value!r}")
    return int(value)


def thing_name(value: str) -> str:
    """Return the name of a bundle or database in a configuration: it becomes part of paths and messages."""
    _check_part(value)
    if any(unicodedata.category(c) == "Cc" for c in value):
        raise ValueError(f"expected a name without control characters, not {value!r}")
    if "/" in value:
        raise ValueError(f"expected a name without '/', not {value!r}")
    return value


def store_name(value: str) -> str:
    """Return the name of a repository or label, or a bundle id, as a store takes it."""
    _check_part(value)
    bad = next((c for c in value if not (c.isalnum() or c in "-_.+")), "")
    if bad:
        raise ValueError(f"expected a name of letters, digits and - _ . +, not {value!r} with {bad!r}")
    if not unicodedata.is_normalized("NFC", value):
        raise ValueError(f"expected a name in Unicode form NFC, not {value!r}")
    return value


def _check_part(value: str) -> None:
    if value[:1] in ("", ".", "-"):
        raise ValueError(f"expected a name that begins with neither '.' nor '-', not {value!r}")
    if ".." in value:
        raise ValueError(f"expected a name without '..', not {value!r}")
    if not _is_unicode(value):
        raise ValueError("expected a name in UTF-8")
    if len(value.encode()) > 100:
        raise ValueError(f"expected a name of at most 100 bytes, not {len(value.encode())}")


def _is_unicode(value: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in value)
