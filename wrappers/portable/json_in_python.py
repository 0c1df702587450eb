"""`_json` in Python: the three of its functions that `sidecar.coordination.notation` stands on, for where it is not compiled in.

Debian's static libpython has no `_json`, and Python's own `json` would bring `re` and `enum`, as much as the rest of the start
takes. What is read and written is what `json` reads and writes (tests/test_portable.py compares them); of its options there are
those that notation sets. What is read may come from anyone: StopIteration or ValueError where it is no JSON, RecursionError where
it nests too deeply.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SPACE = " \t\n\r"
_DIGITS = "0123456789"
_HEXADECIMAL = "0123456789abcdefABCDEF"
_WORDS = (("null", None), ("true", True), ("false", False))
_CONSTANTS = ("NaN", "Infinity", "-Infinity")
_UNESCAPED = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_ESCAPED = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


# --- writing -----------------------------------------------------------------------------------------------------------


def encode_basestring_ascii(text: str) -> str:
    """Return `text` as a JSON string of ASCII."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(character: str) -> str:
    if " " <= character <= "~" and character not in '"\\':
        return character
    if character in _ESCAPED:
        return _ESCAPED[character]
    number = ord(character)
    if number < 0x10000:
        return f"\\u{number:04x}"
    number -= 0x10000
    return f"\\u{0xD800 | number >> 10:04x}\\u{0xDC00 | number & 0x3FF:04x}"


def make_encoder(
    _markers: object,
    default: Callable[[object], Any],
    encode_text: Callable[[str], str],
    _indent: None,
    after_key: str,
    after_item: str,
    _sort_keys: bool,
    _skip_keys: bool,
    _allow_nan: bool,
) -> Callable[[Any, int], tuple[str]]:
    """Return what writes a value as JSON; numbers that are none in JSON are a ValueError."""

    def key(thing: Any) -> str:
        return encode_text(thing if isinstance(thing, str) else scalar(thing))

    def scalar(thing: Any) -> str:
        for word, value in _WORDS:
            if thing is value:
                return word
        if isinstance(thing, int):
            return int.__repr__(thing)
        if isinstance(thing, float):
            if thing - thing != 0:
                raise ValueError(f"{thing!r} is no number in JSON")
            return float.__repr__(thing)
        written: str = write(default(thing))
        return written

    def write(thing: Any) -> str:
        if isinstance(thing, str):
            return encode_text(thing)
        if isinstance(thing, dict):
            return "{" + after_item.join([key(k) + after_key + write(v) for k, v in thing.items()]) + "}"
        if isinstance(thing, (list, tuple)):
            return "[" + after_item.join([write(each) for each in thing]) + "]"
        return scalar(thing)

    return lambda thing, _level: (write(thing),)


# --- reading -----------------------------------------------------------------------------------------------------------


def make_scanner(context: Any) -> Callable[[str, int], tuple[Any, int]]:
    """Return what reads the JSON value that stands at a place of a text: the value, and the place behind it."""

    def scan(text: str, at: int) -> tuple[Any, int]:
        match text[at : at + 1]:
            case '"':
                return _text(text, at + 1)
            case "{":
                return structure(text, at, "}", {})
            case "[":
                return structure(text, at, "]", [])
        for word, value in _WORDS:
            if text.startswith(word, at):
                return value, at + len(word)
        for word in _CONSTANTS:
            if text.startswith(word, at):
                return context.parse_constant(word), at + len(word)
        return number(text, at)

    def structure(text: str, at: int, closing: str, found: Any) -> tuple[Any, int]:
        at = _past(text, at + 1, _SPACE)
        if text.startswith(closing, at):
            return found, at + 1
        while True:
            if closing == "}":
                name, at = _text(text, _behind(text, at, '"'))
                found[name], at = scan(text, _past(text, _behind(text, _past(text, at, _SPACE), ":"), _SPACE))
            else:
                value, at = scan(text, at)
                found.append(value)
            at = _past(text, at, _SPACE)
            if text.startswith(closing, at):
                return found, at + 1
            at = _past(text, _behind(text, at, ","), _SPACE)

    def number(text: str, at: int) -> tuple[Any, int]:
        whole = at + text.startswith("-", at)
        end = whole + 1 if text.startswith("0", whole) else _digits(text, whole)
        if end == whole:
            raise StopIteration(at)
        fraction = _digits(text, end + 1) if text.startswith(".", end) else end
        end_of_float = _exponent(text, fraction if fraction > end + 1 else end)
        if end_of_float > end:
            return context.parse_float(text[at:end_of_float]), end_of_float
        return context.parse_int(text[at:end]), end

    return scan


def _past(text: str, at: int, characters: str) -> int:
    while text[at : at + 1] and text[at] in characters:
        at += 1
    return at


def _digits(text: str, at: int) -> int:
    return _past(text, at, _DIGITS)


def _exponent(text: str, at: int) -> int:
    """Return the place behind the exponent that stands at `at`; `at` where none does."""
    if text[at : at + 1] not in ("e", "E"):
        return at
    digits = at + 2 if text[at + 1 : at + 2] in ("+", "-") else at + 1
    end = _digits(text, digits)
    return end if end > digits else at


def _behind(text: str, at: int, character: str) -> int:
    if not text.startswith(character, at):
        raise StopIteration(at)
    return at + 1


def _text(text: str, at: int) -> tuple[str, int]:
    """Return the string whose first character stands at `at`, and the place behind its closing quote."""
    parts, quote = [], -1
    while True:
        if quote < at:  # not at each escape: a text of nothing else would be gone through as often as it is long
            quote = text.find('"', at)
        if quote < 0:
            raise StopIteration(at)
        escape = text.find("\\", at, quote)
        plain = text[at : quote if escape < 0 else escape]
        if min(plain, default=" ") < " ":
            raise StopIteration(at)
        parts.append(plain)
        if escape < 0:
            return "".join(parts), quote + 1
        character, at = _unescaped(text, escape + 1)
        parts.append(character)


def _unescaped(text: str, at: int) -> tuple[str, int]:
    if not text.startswith("u", at):
        if text[at : at + 1] not in _UNESCAPED:
            raise StopIteration(at)
        return _UNESCAPED[text[at]], at + 1
    number, at = _four_digits(text, at + 1), at + 5
    if 0xD800 <= number < 0xDC00 and text.startswith("\\u", at):
        low = _four_digits(text, at + 2)
        if 0xDC00 <= low < 0xE000:
            return chr(0x10000 + ((number - 0xD800) << 10) + (low - 0xDC00)), at + 6
    return chr(number), at


def _four_digits(text: str, at: int) -> int:
    digits = text[at : at + 4]
    if len(digits) < 4 or not all(digit in _HEXADECIMAL for digit in digits):
        raise StopIteration(at)
    return int(digits, 16)
