"""Which entries of a bundle are wanted, where that is a part of it: files and directories by their paths, and a name filter.

An entry is wanted if it is one of the paths or lies in one of them, where there are any, and if the expression is found in its
path, where there is one. The directories that lead to an entry need not be wanted: whoever populates makes them anyway.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sidecar.store.format import Entry

Select = Callable[[Entry], bool]
"""Says whether an entry is wanted."""


def selection(paths: Sequence[str], pattern: re.Pattern[str] | None) -> Select | None:
    """Return what says whether an entry is wanted; None where all are. `/2026/` is the same path as `2026`."""
    wanted = tuple(path.strip("/") for path in paths)
    if not wanted and pattern is None:
        return None
    exact, inside = frozenset(wanted), tuple(f"{path}/" for path in wanted)

    def select(entry: Entry) -> bool:
        named = not wanted or entry.path in exact or entry.path.startswith(inside)
        return named and (pattern is None or pattern.search(entry.path) is not None)

    return select
