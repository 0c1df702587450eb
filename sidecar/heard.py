"""What somebody else has told, looked at: whether it is of the kind that it is to be. Pure, and imports nothing of ours.

Whoever asks a server has its answers from elsewhere: maybe from no server of ours, or from one of another version. Each function
raises KeyError where something is missing, TypeError or ValueError where it is something else: so nothing of another kind comes
further than where it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")
# What databases have as a number.
_LARGEST = (1 << 63) - 1


def text(told: Mapping[str, Any], name: str) -> str:
    """Return a text that can be printed, or be bytes of this system's (surrogateescape)."""
    return _text(told[name])


def texts(told: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a list of texts."""
    found = told[name]
    if not isinstance(found, list):
        raise TypeError(f"{name} is no list")
    return tuple(map(_text, found))


def whole(told: Mapping[str, Any], name: str) -> int:
    """Return a whole number that is not negative, and that a database has."""
    found = told[name]
    if isinstance(found, bool) or not isinstance(found, int):
        raise TypeError(f"{name} is no whole number")
    if not 0 <= found <= _LARGEST:
        raise ValueError(f"{name} is negative, or very large")
    return found


def whole_or_none(told: Mapping[str, Any], name: str) -> int | None:
    """Return the same, or None where that is told."""
    return None if told[name] is None else whole(told, name)


def seconds(told: Mapping[str, Any], name: str) -> float:
    """Return a number that is not negative, and that a clock may have measured."""
    found = told[name]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise TypeError(f"{name} is no number")
    if not 0 <= found <= _LARGEST:
        raise ValueError(f"{name} is negative, or very large")
    return float(found)


def made(kind: type[Kind], told: Mapping[str, Any]) -> Kind:
    """Return the dataclass that was told as an object of its fields, each of which is of the type that it has there.

    A field that has a default may be missing; what is no field is left out: a later version may tell more.
    """
    if not isinstance(told, Mapping):
        raise TypeError(f"{told!r} is no object")
    # Of what is missing and has no default, the constructor tells.
    return kind(**{name: _of(type_, told, name) for name, type_ in get_type_hints(kind).items() if name in told})


def _of(type_: Any, told: Mapping[str, Any], name: str) -> Any:
    """Return a field that is of a type: one of those that dataclasses which are told have."""
    found, origin, parts = told[name], get_origin(type_), get_args(type_)
    if type_ is str:
        return text(told, name)
    if type_ is int:
        return whole(told, name)
    if type_ is bool:
        if not isinstance(found, bool):
            raise TypeError(f"{name} is neither true nor false")
        return found
    if origin is Literal:
        if text(told, name) not in parts:
            raise ValueError(f"{found!r} is no {name}")
        return found
    if origin is tuple:
        if not isinstance(found, list):
            raise TypeError(f"{name} is no list")
        return tuple(_of(parts[0], {name: each}, name) for each in found)
    if origin is Mapping:
        if not isinstance(found, dict):
            raise TypeError(f"{name} is no object")
        return {_text(key): _of(parts[1], found, key) for key in found}
    if type(None) in parts:
        return None if found is None else _of(parts[0], told, name)
    return made(type_, found)


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise TypeError(f"{found!r} is no text")
    found.encode(errors="surrogateescape")
    return found
