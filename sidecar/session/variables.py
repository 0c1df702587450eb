"""`%NAME%` in what artifacts say: its value is the last artifact's, whoever asks. Pure.

`%%` is a percent sign. A value may hold variables itself, but not its own; what comes of it all has an end, for a few values that
hold each other twice could ask for any amount.
"""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.parameters.settings import unknown

# Of what a text may become, in characters: what Linux takes of one argument.
LIMIT = 1 << 17


class Variables:
    """The variables that there are, each looked into once."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self._known = known
        self._values: dict[str, str] = {}
        self._within: list[str] = []

    def expand(self, text: str) -> str:
        """Return `text` with the values of the variables that it holds; ValueError where that cannot be."""
        if "%" not in text:
            return text
        parts = text.split("%")
        # Text and names in turn; an even number of parts means a percent sign without its like.
        if not len(parts) % 2:
            raise ValueError(f"a percent sign stands alone in {text!r}: expected %NAME%, or %% for the sign itself")
        found, length = [parts[0]], len(parts[0])
        for name, behind in zip(parts[1::2], parts[2::2], strict=True):
            found += [self._value(name) if name else "%", behind]
            length += len(found[-1]) + len(found[-2])
            if length > LIMIT:
                raise ValueError(f"{text[:40]!r} becomes too long: expected at most {LIMIT} characters")
        return "".join(found)

    def _value(self, name: str) -> str:
        if name not in self._known:
            raise ValueError(f"%{name}%: {unknown('variable', name, [*self._known])}")
        if name in self._within:
            raise ValueError(f"%{name}% refers to itself by way of {', '.join(f'%{each}%' for each in self._within)}")
        if name not in self._values:
            self._within.append(name)
            try:
                self._values[name] = self.expand(self._known[name])
            finally:
                self._within.pop()
        return self._values[name]
