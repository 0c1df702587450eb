"""How long something may take, as people write it; the same in every command. Imports next to nothing: see wrap_application."""

from __future__ import annotations

from sidecar.errors import UsageError


def seconds(text: str, flag: str) -> float:
    """Return the seconds that `text` names: 90, 90s, 15m, 2h, 7d; UsageError where it names none."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("s", "m", "h", "d") else (text, "s")
    try:
        found = float(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e9:
        raise UsageError(f"{flag} expects a time like 90, 90s, 15m or 2h, not {text!r}")
    return found
