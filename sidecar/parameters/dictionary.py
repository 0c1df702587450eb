"""The serialized dictionary: `;:a;b:c` is {'a': True, 'b': 'c'}.

    dictionary = separator pair-separator [entry {separator entry} [separator]]
    entry      = option | option pair-separator value

The first character separates entries, the second an option from its value: two different characters, neither of them `.`.
A value reaches to the end of its entry, so it may hold the pair separator; it may be empty (`b:` is {'b': ''}). An option is
never empty and never given twice. `;:` is the dictionary without options. One separator behind the last entry is allowed, as the
shell scripts that read this form allowed it; anywhere else it would leave an entry without a name, which is an error.
Positions in messages count characters from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Literal

from sidecar.errors import Fault, ParametersError

# Characters that mean nothing within quotes and stand in few values come first, then all of Unicode that is no surrogate.
# Not '.', which the form forbids; nor quotes, '$', '`' and '\\', which a person who edits a line by hand would have to escape.
_PREFERRED = ";:|,#%~^/@+=&!?*_-<>()[]{}"
_RANGES = (range(0x21, 0xD800), range(0xE000, 0x110000))
_NEVER = frozenset(".'\"$`\\")


def decode(text: str, where: str = "dictionary") -> dict[str, str | Literal[True]]:
    """Return the options of `text`, True where one has no value.

    ParametersError with every fault, its position and `where`, where `text` is not of the form.
    """
    faults = _separator_faults(text, where)
    if faults:
        raise ParametersError(faults)
    pair = text[1]
    options: dict[str, str | Literal[True]] = {}
    positions: dict[str, int] = {}
    for position, entry in _entries(text):
        name, separator, value = entry.partition(pair)
        if not name:
            faults.append(Fault(where, "", f"the option at character {position} has no name"))
        elif name in options:
            faults.append(Fault(where, name, f"given at character {positions[name]} and again at character {position}"))
        else:
            options[name], positions[name] = value if separator else True, position
    if faults:
        raise ParametersError(faults)
    return options


def encode(options: Mapping[str, str | Literal[True]], where: str = "dictionary") -> str:
    """Return `options` as a serialized dictionary, `decode`'s inverse.

    The separators occur in no option; the entry separator occurs in no value, and the pair separator neither where there is a
    character left, because older readers cut a value at it. ParametersError, with `where`, where an option has no name or no
    character is left to separate with.
    """
    if "" in options:
        raise ParametersError([Fault(where, "", "an option has no name")])
    names = set().union(*options)
    values = set().union(*(value for value in options.values() if value is not True))
    entry = _unused(names | values)
    pair = _unused(names | values | {entry}) or _unused(names | {entry})
    if not entry or not pair:
        raise ParametersError([Fault(where, "", "cannot be serialized: its options and values use every character")])
    return entry + pair + entry.join(name if value is True else name + pair + value for name, value in options.items())


def _separator_faults(text: str, where: str) -> list[Fault]:
    if len(text) < 2:
        missing = "entry separator" if not text else "key-value separator"
        return [Fault(where, "", f"the {missing} is missing at character {len(text) + 1}: expected something like ';:a;b:c'")]
    if "." in text[:2]:
        return [Fault(where, "", f"'.' at character {text.index('.') + 1} cannot be a separator")]
    if text[0] == text[1]:
        return [Fault(where, "", f"both separators are {text[0]!r}: expected another one at character 2")]
    return []


def _entries(text: str) -> Iterator[tuple[int, str]]:
    """Yield each entry behind the separators and the position of its first character."""
    if len(text) == 2:
        return
    entries = text[2:].split(text[0])
    if not entries[-1] and len(entries) > 1 and entries[-2]:
        entries.pop()
    position = 3
    for entry in entries:
        yield position, entry
        position += len(entry) + 1


def _unused(used: set[str]) -> str:
    """Return the first character that may separate and is not used; "" where there is none."""
    candidates: Iterable[str] = chain(_PREFERRED, (chr(code) for codes in _RANGES for code in codes))
    return next((c for c in candidates if c not in used and c not in _NEVER and not c.isspace()), "")
