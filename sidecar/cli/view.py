"""The live view of a pod that runs here: who is how far and who waits for whom; plain lines where there is no terminal.

On a terminal it is there while participants wait and save, and steps aside while the command runs: the terminal is the command's
then. When exactly the command begins nobody here can know, so the view keeps to the last lines of the terminal, and has all else
scroll above them meanwhile: whatever another process writes, at any time, stays whole.
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

# What a terminal is told, as VT100 and all that came after it understand.
_SAVE_CURSOR, _RESTORE_CURSOR, _DOWN_OR_SCROLL = "\x1b7", "\x1b8", "\x1bD"
_SCROLL_ALL, _ERASE_LINE, _ERASE_BELOW = "\x1b[r", "\x1b[K", "\x1b[J"


class View:
    """Shows one report after the other on stderr."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._draws = self._console.is_terminal and not self._console.is_dumb_terminal
        self._drawn: tuple[tuple[str, str], ...] | None = None
        self._size = (0, 0)
        self._lines = 0
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
            first = self._size[1] - self._lines + 1
            self._lines = 0
            try:
                _write(f"{_SAVE_CURSOR}{_SCROLL_ALL}\x1b[{first};1H{_ERASE_BELOW}{_RESTORE_CURSOR}")
            except OSError:
                self._quiet = True

    def _draw(self, report: Report) -> None:
        if report.over or _is_the_commands(report):
            self.close()
            return
        if self._size != self._console.size:
            self.close()
            self._size = self._console.size
        states = tuple((p.name, p.standing) for p in report.participants)
        now = time.monotonic()
        if states == self._drawn and now < self._next_drawing:
            return
        self._drawn, self._next_drawing = states, now + OFTEN
        with self._console.capture() as capture:
            self._console.print(table(report))
        self._put(capture.get().splitlines()[: max(1, self._size[1] - 2)])

    def _put(self, lines: list[str]) -> None:
        """Write into the last lines of the terminal; have more of them where these do not suffice, and the cursor above them."""
        more = max(0, len(lines) - self._lines)
        self._lines += more
        room = _DOWN_OR_SCROLL * more + f"\x1b[{more}A" if more else ""
        above = self._size[1] - self._lines
        lines = lines + [""] * (self._lines - len(lines))
        drawn = "".join(f"\x1b[{above + number};1H{_ERASE_LINE}{line}" for number, line in enumerate(lines, 1))
        _write(f"{room}{_SAVE_CURSOR}\x1b[1;{above}r{drawn}{_RESTORE_CURSOR}")

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
        # Where it waits no more by now, it did until now: a line is told of each state, however soon it is over.
        return f"{p.name}: waits for {', '.join([w.name for w in p.waits] or [name for name, _ in p.record.peers])}"
    if p.standing == EXITED and p.record.exit is not None:
        why = f": {p.record.exit.reason}" if p.record.exit.reason else ""
        return f"{p.name}: the command ended with status {p.record.exit.status}{took}{why}"
    if p.standing == READY:
        return f"{p.name}: ready{took}: {payload_line(p.record.payload, 'sources')}"
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
