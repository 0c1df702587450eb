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


def program(name: str) -> list[str]:
    """Return the words that run a command of this package, whatever the working directory holds, installed or not."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = f"import sys; sys.path.insert(0, {root!r}); from sidecar.cli.{name} import main; main()"
    return [sys.executable, "-P", "-c", code]


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
