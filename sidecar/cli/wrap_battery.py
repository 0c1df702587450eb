"""The command `wrap_battery`: see battery.py, and start.py for why that is not imported here.

What a battery begins, and whether that leaves processes behind, is not known here; so the container's first process only reaps.
"""

from __future__ import annotations

from typing import NoReturn

from sidecar.cli.start import start


def main() -> NoReturn:
    """The command `wrap_battery`."""
    start("battery", "wrap_battery")


if __name__ == "__main__":
    main()
