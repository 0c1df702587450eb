"""The live view of a pod that runs here: who is how far and who waits for whom; plain lines where there is no terminal.

On a terminal it is there while participants wait and save, and steps aside while the command runs: the terminal is the command's
then. It stops when the last battery is ready, some milliseconds before the command can print anything. Nobody can promise that,
so the cursor always stands above what is drawn, in an empty line, and what is taken away is only what lies behind the cursor:
whatever another process writes meanwhile stays.
"""

from __future__ import annotations

import sys
import time

from rich.console import Console

from sidecar.cli.entry import complain
from sidecar.cli.status import table
from sidecar.coordination.protocol import APPLICATION, EXITED, FAILED, READY, RUNNING, WAITING
from sidecar.coordination.report import Participant, Report, explanation, payload_line
from sidecar.figures import duration

# Without a terminal: how often a line tells how far something is, in seconds.
SELDOM = 5.0
# On a terminal: how often it is drawn anew although nobody's state has changed, in seconds.
OFTEN = 0.2

_ERASE_BEHIND_CURSOR, _HIDE_CURSOR, _SHOW_CURSOR = "\x1b[J", "\x1b[?25l", "\x1b[?25h"


class View:
    """Shows one report after the other on stderr."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._draws = self._console.is_terminal and not self._console.is_dumb_terminal
        self._drawn: tuple[tuple[str, str], ...] | None = None
        self._next_drawing = 0.0
        self._told: dict[str, tuple[str, int]] = {}
        self._next_progress = 0.0

    def show(self, report: Report) -> None:
        """Show how things stand now. Where nobody can be shown anything any more, the job goes on all the same."""
        if self._quiet:
            return
        try:
            if self._draws:
                self._draw(report)
            else:
                self._tell(report)
        except OSError:
            self._quiet = True

    def close(self) -> None:
        """Leave the terminal to others."""
        if self._drawn is not None:
            self._drawn = None
            try:
                _write(_ERASE_BEHIND_CURSOR + _SHOW_CURSOR)
            except OSError:
                self._quiet = True

    def _draw(self, report: Report) -> None:
        if report.over or _is_the_commands(report):
            self.close()
            return
        states = tuple((p.name, p.standing) for p in report.participants)
        now = time.monotonic()
        # Not at each word: drawing takes far longer than looking, and who draws does not see that the command is to begin.
        if states == self._drawn and now < self._next_drawing:
            return
        self._next_drawing = now + OFTEN
        self._drawn = states
        with self._console.capture() as capture:
            self._console.print(table(report))
        lines = capture.get().splitlines()[: max(1, self._console.height - 2)]
        # Behind what another wrote without a newline, so many blanks reach into the next line; else they do nothing.
        fresh_line = " " * (self._console.width - 1) + "\r"
        frame = "".join(f"\n{line}" for line in lines)
        _write(f"{_HIDE_CURSOR}{fresh_line}{_ERASE_BEHIND_CURSOR}{frame}\r\x1b[{len(lines)}A")

    def _tell(self, report: Report) -> None:
        for p in report.participants:
            if p.record is None:
                continue
            state = (p.standing, p.record.life)
            if self._told.get(p.name) != state:
                self._told[p.name] = state
                complain("sidecar", _line(p))
        now = time.monotonic()
        if now >= self._next_progress:
            self._next_progress = now + SELDOM
            for p in report.participants:
                if p.progress is not None:
                    complain("sidecar", f"{p.name} is {p.standing}: {explanation(p, report)}")


def _write(text: str) -> None:
    """Write at once, so that what others write comes before or behind it."""
    sys.stderr.write(text)
    sys.stderr.flush()


def _line(p: Participant) -> str:
    """Return the line that tells, once, what a participant has come to."""
    assert p.record is not None
    took = f" after {duration(p.phases[-2].seconds)}" if len(p.phases) > 1 else ""
    if p.standing == WAITING:
        return f"{p.name}: waits for {', '.join(w.name for w in p.waits)}" if p.waits else f"{p.name}: waiting"
    if p.standing == EXITED and p.record.exit is not None:
        why = f": {p.record.exit.reason}" if p.record.exit.reason else ""
        return f"{p.name}: the command ended with status {p.record.exit.status}{took}{why}"
    if p.standing == READY:
        return f"{p.name}: ready{took}: {payload_line(p.record.payload)}"
    if p.standing == FAILED and p.record.error is not None and p.name != APPLICATION:  # it says so itself
        return f"{p.name}: failed{took}: {p.record.error.reason}"
    return f"{p.name}: {p.standing}{took}"


def _is_the_commands(report: Report) -> bool:
    """Tell whether the command runs or is about to: it was begun, or nothing keeps it from it any more."""
    application = report.participant(APPLICATION)
    if application is None or application.record is None:
        return False
    if application.standing == RUNNING:
        return True
    others = [p for p in report.participants if p.name != APPLICATION]
    return application.standing == WAITING and all(p.record is not None and p.record.state == READY for p in others)
