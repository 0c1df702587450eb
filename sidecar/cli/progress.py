"""How far something is, for people, on stderr: bars where that is a terminal, else a line every few seconds.

What is over before the first line is due is not mentioned, so a log of quick commands stays empty. rich is imported only once
there is a bar to draw.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

from sidecar.cli.entry import printable
from sidecar.figures import share

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

INTERVAL = 5.0  # seconds between two lines of a log


class Progress:
    """Shows what it is called with: what is going on, bytes done, bytes in all (0: not known yet). From any thread.

    A context manager; on leaving it, bars are drawn a last time and stay.
    """

    def __init__(self, *, terminal: bool | None = None, interval: float = INTERVAL) -> None:
        """Draw bars where `terminal`, which by default is what stderr is; else write a line every `interval` seconds."""
        drawable = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._terminal = drawable if terminal is None else terminal
        self._interval = interval
        self._said = time.monotonic()
        self._lock = threading.Lock()
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` bytes of `what` are done."""
        with self._lock:
            if self._terminal:
                self._draw(what, done, total)
            elif time.monotonic() - self._said >= self._interval:
                self._said = time.monotonic()
                click.echo(printable(f"{what}: {share(done, total)}"), err=True)

    def _draw(self, what: str, done: int, total: int) -> None:
        if self._bars is None:
            self._bars = _bars()
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(printable(what), total=None)
        self._bars.update(self._tasks[what], completed=done, total=total or None)


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    # rich itself honours NO_COLOR. Descriptions hold names from a store: no markup may be read out of them.
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Bars(TextColumn("{task.description}", markup=False), *columns, console=Console(stderr=True))
