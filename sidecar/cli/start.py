"""How the commands of batteries begin: hear signals, then import what the battery needs, then run it.

The imports take a quarter of a second. A container's first process that has no handler yet never gets a SIGTERM, so the handlers
come first.
"""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from sidecar import process


def program(name: str) -> list[str]:
    """Return the words that run a command of this package, whatever the working directory holds, installed or not."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = f"import sys; sys.path.insert(0, {root!r}); from sidecar.cli.{name} import main; main()"
    return [sys.executable, "-P", "-c", code]


def start(module: str, command: str = "") -> NoReturn:
    """Run the click command `command` of a module of this package, under the name that the module has for it, and exit.

    A container's first process begins the `command` that is named, this very one, once more, and is its init.
    """
    signals = process.SignalQueue()
    if command and os.getpid() == 1:
        os._exit(_lead([*program(command), *sys.argv[1:]], signals))
    found = import_module(f"sidecar.cli.{module}")
    from sidecar.cli.entry import run

    status = run(found.command, found.NAME, obj=signals)
    if sys.stdout is not None:  # as where it was closed when we started
        sys.stdout.flush()
    # At once: a transfer that does not end must not keep a container that has said its last word.
    os._exit(status)


def _lead(command: list[str], signals: process.SignalQueue) -> int:
    """Run a command, pass signals on to it alone, reap what is left to us by whom we do not know, and return its status."""
    child = process.spawn(command, background=True)
    poll = select.poll()
    poll.register(signals.fd, select.POLLIN)
    while not child.ended:
        for number in signals.drain():
            if number != process.SIGCHLD:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, number)
        process.reap(child)
        if not child.ended:
            poll.poll(1000)
    return 128 + child.signal if child.signal else child.code
