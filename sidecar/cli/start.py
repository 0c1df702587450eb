"""How the commands of batteries begin: hear signals, then import what the battery needs, then run it.

The imports take a quarter of a second. A container's first process that has no handler yet never gets a SIGTERM, so the handlers
come first.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import NoReturn

from sidecar import process


def start(module: str) -> NoReturn:
    """Run the click command `command` of a module of this package, under the name that the module has for it, and exit."""
    signals = process.SignalQueue()
    found = import_module(f"sidecar.cli.{module}")
    from sidecar.cli.entry import run

    status = run(found.command, found.NAME, obj=signals)
    if sys.stdout is not None:  # as where it was closed when we started
        sys.stdout.flush()
    # At once: a transfer that does not end must not keep a container that has said its last word.
    os._exit(status)
