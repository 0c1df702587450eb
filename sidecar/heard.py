"""What somebody else has told, looked at: whether it is of the kind that it is to be. Pure, and imports nothing of ours.

Whoever asks a server has its answers from elsewhere: maybe from no server of ours, or from one of another version. Each function
takes an object of JSON and the name of a field, and raises KeyError where that is missing, TypeError or ValueError where it is
something else: so nothing of another kind comes further than where it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise TypeError(f"{found!r} is no text")
    found.encode(errors="surrogateescape")
    return found
