"""Runtimes: what runs source code of one language in one version. A runtime is a directory `<language>-<version>` with a
`runtime.sh` in it, and no code of ours knows which there are.

`runtime.sh SOURCE [ARG]…` runs the file SOURCE, which is read-only; its stdin is the program's, and $CONTEXT what was said
besides.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sidecar.errors import SourceMissing, Unreachable

SCRIPT = "runtime.sh"
_NAME = re.compile(r"([a-z][a-z0-9+_]*)-([0-9][0-9A-Za-z.]*)")


@dataclass(frozen=True)
class Runtime:
    """One runtime: `script` is what its runtime.sh holds, for a worker's user may be unable to go where that is."""

    language: str
    version: str
    script: bytes

    @property
    def name(self) -> str:
        """What it is asked for by."""
        return f"{self.language}:{self.version}"


def find_runtimes(folders: Iterable[str]) -> tuple[Runtime, ...]:
    """Return the runtimes in folders, by language, the highest version first; of two of a name the former folder's.

    Unreachable where a folder, or a runtime in it, cannot be read.
    """
    found: dict[tuple[str, str], Runtime] = {}
    for folder in folders:
        try:
            for name in os.listdir(folder):
                path = os.path.join(folder, name, SCRIPT)
                said = _NAME.fullmatch(name)
                if said and (said[1], said[2]) not in found and os.path.isfile(path):
                    with open(path, "rb") as file:
                        found[said[1], said[2]] = Runtime(said[1], said[2], file.read())
        except OSError as error:
            raise Unreachable(f"runtimes cannot be read in {folder}: {error.strerror}") from None
    return tuple(sorted(sorted(found.values(), key=_height, reverse=True), key=lambda each: each.language))


def choose(runtimes: Sequence[Runtime], asked: str) -> Runtime:
    """Return the runtime that `asked` means: `language`, or `language:version`, which may be the beginning of a version.

    SourceMissing where there is none; the highest version counts.
    """
    language, colon, version = asked.partition(":")
    for each in runtimes:
        if each.language == language and (not colon or f"{each.version}.".startswith(f"{version}.")):
            return each
    names = [each.name for each in runtimes]
    raise SourceMissing(f"there is no runtime {asked!r}; there are: {', '.join(names) or 'none'}", names)


def _height(runtime: Runtime) -> list[tuple[int, int | str]]:
    parts = re.findall(r"[0-9]+|[A-Za-z]+", runtime.version)
    # A release comes after what leads to it: 1.10 after 1.10rc1.
    return [*((1, int(each)) if each.isdecimal() else (0, each) for each in parts), (1, 0)]
