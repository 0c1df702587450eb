"""The command `wrap_datamon_pg`: see datamon_pg.py, and start.py for why that is not imported here."""

from __future__ import annotations

from typing import NoReturn

from sidecar.cli.start import start


def main() -> NoReturn:
    """The command `wrap_datamon_pg`."""
    start("datamon_pg")


if __name__ == "__main__":
    main()
