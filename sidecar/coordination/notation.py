"""JSON without the import of `json`.

`json` imports `re` and `enum`, 7 ms, a third of what the wrapper's whole start may take. The accelerators that `json` itself
stands on are imported instead; where an interpreter has none, `json` is. Numbers, text and structure are those of `json`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# A record nests three deep; what nests deeper than this was not written by us, and what can be read can be written again.
DEEPEST = 50


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), -float("inf")):
        raise ValueError(f"{text} is too large a number")
    return number


def _depth(thing: Any, left: int) -> None:
    if isinstance(thing, (list, dict)):
        if left == 0:
            raise ValueError("nested too deeply")
        for part in thing.values() if isinstance(thing, dict) else thing:
            _depth(part, left - 1)


try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    class _Context:
        strict = True
        object_hook = None
        object_pairs_hook = None
        parse_float = staticmethod(_finite)
        parse_int = int
        parse_constant = staticmethod(_refuse_constant)
        memo: dict[str, str] = {}  # noqa: RUF012

    def _refuse(thing: object) -> Any:
        raise TypeError(f"{type(thing).__name__} is no JSON")

    _scan = make_scanner(_Context())  # type: ignore[arg-type]
    _encode = make_encoder({}, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, False)

    def encode(thing: Any) -> str:
        """Return `thing` as one line of JSON; TypeError or ValueError where it is none."""
        return "".join(_encode(thing, 0))

    def _decode(text: str) -> Any:
        # A syntax error is raised as json.decoder.JSONDecodeError, which the scanner looks for among the modules that are loaded
        # already and, not finding it, raises nothing: the interpreter makes a SystemError of that.
        try:
            thing, end = _scan(text, 0)
        except (StopIteration, SystemError):
            raise ValueError("no JSON") from None
        if end != len(text):
            raise ValueError(f"something stands behind the JSON value, at {end}")
        return thing

except ImportError:
    import json

    def encode(thing: Any) -> str:
        """Return `thing` as one line of JSON; TypeError or ValueError where it is none."""
        return json.dumps(thing, allow_nan=False)

    def _decode(text: str) -> Any:
        return json.loads(text, parse_float=_finite, parse_constant=_refuse_constant)


def decode(data: bytes) -> Any:
    """Return the value that `data` holds; ValueError where it is no JSON in UTF-8, or nested too deeply."""
    try:
        thing = _decode(data.decode().strip(" \t\r\n"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _depth(thing, DEEPEST)
    return thing
