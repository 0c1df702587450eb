"""Figures for people: amounts of data and of time, the same in every command. Pure."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def amount(count: float) -> str:
    """Return a number of bytes in powers of 1000, as disks and object stores count: 999 B, 1.2 MB, 340 GB."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if not unit or value >= 99.95 else f"{value:.1f} {_UNITS[unit]}"


def share(done: int, total: int) -> str:
    """Return how much of it is done: 1.2 MB of 4.8 MB (25 %); a total of 0 is not known."""
    return f"{amount(done)} of {amount(total)} ({100 * done // total} %)" if total > 0 else amount(done)


def counted(count: int, what: str) -> str:
    """Return a number of things: 1 file, 2 files."""
    return f"{count} {what}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """Return a length of time: 4 ms, 1.2 s, 3 min 4 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
