"""Times and sizes as people write them; the same in every command. Imports next to nothing: see wrap_application."""

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


def size(text: str, flag: str) -> int:
    """Return the number of bytes that `text` names: 5000, 500M, 10GB in powers of 1000, 10GiB in powers of 1024; UsageError."""
    said = text.strip().lower().removesuffix("b").rstrip()
    step = 1024 if said.endswith("i") else 1000
    said = said.removesuffix("i")
    power = " kmgt".find(said[-1:] or " ")
    number = said[:-1].rstrip() if power > 0 else said
    whole, _, rest = number.partition(".")
    if not (whole + rest).isdecimal() or not whole or len(number) > 15 or (step == 1024 and power <= 0):
        raise UsageError(f"{flag} expects a size like 500M, 10G or 10GiB, not {text!r}")
    return int(float(number) * step ** max(power, 0))
