"""The command `wrap_datamon`: see datamon.py, and start.py for why that is not imported here."""

from __future__ import annotations

from typing import NoReturn

from sidecar.cli.start import start


def main() -> NoReturn:
    """The command `wrap_datamon`."""
    start("datamon")


if __name__ == "__main__":
    main()
