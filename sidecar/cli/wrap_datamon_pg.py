"""`wrap_datamon_pg`: hear signals, then import what the battery needs, then run it.

The imports take a quarter of a second. A container's first process that has no handler yet never gets a SIGTERM, so the handlers
come first.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from sidecar import process


def main() -> NoReturn:
    """The command `wrap_datamon_pg`."""
    signals = process.SignalQueue()
    from sidecar.cli.datamon_pg import NAME, command
    from sidecar.cli.entry import run

    status = run(command, NAME, obj=signals)
    if sys.stdout is not None:  # as where it was closed when we started
        sys.stdout.flush()
    # At once: a transfer that does not end must not keep a container that has said its last word.
    os._exit(status)


if __name__ == "__main__":
    main()
