"""`sidecar status`: what a coordination directory tells. Read only, so it can be run at any time and by anyone."""

from __future__ import annotations

import json
import logging
import sys
import threading
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

import click

from sidecar.cli.entry import printable
from sidecar.coordination.report import Participant, Report, explanation, look
from sidecar.coordination.signals import Directory
from sidecar.figures import duration

if TYPE_CHECKING:
    from rich.columns import Columns
    from rich.table import Table
    from rich.text import Text

# How often the view is drawn anew although nothing was said, in seconds: waits are counted in it.
REDRAW = 1.0
PLAIN_WIDTH = 160  # columns, where there is no terminal
SCALE = 60  # columns of the timeline
NOBODY = "nobody has said anything"
COLOURS = {"failed": "red", "died": "red", "done": "green", "running": "cyan", "expected": "yellow", "saving": "green"}
GLYPHS = {"waiting": "·", "preparing": "░", "ready": "─", "running": "█", "exited": "▒", "saving": "▓"}


@click.command(
    epilog="""\b
Exit status: 0; 74 the directory cannot be read.
Example:  sidecar status /tmp/coord --watch""",
)
@click.argument("directory", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print everything that is known, for programs.")
@click.option("--watch", is_flag=True, help="Show it anew whenever something is said, until all is over.")
@click.option("--events", is_flag=True, help="Also print the log of what was said.")
def status(directory: str, as_json: bool, watch: bool, events: bool) -> None:
    """Explain a running or finished pod from the files in DIRECTORY alone.

    For each participant: its state, whom it waits for and since when, its last sign of life, how long each phase took.
    """
    if watch and events:
        raise click.UsageError("--events is for one look; --watch tells what is said as it is said.")
    with Directory(directory) as opened:
        if watch:
            _watch(opened, as_json)
            return
        report = look(opened)
    if as_json:
        click.echo(json.dumps(report.as_json()))
        return
    print_report(report, events=events)


def print_report(report: Report, *, events: bool = False) -> None:
    """Print a report for people on stdout."""
    from rich.console import Console

    terminal = sys.stdout is not None and sys.stdout.isatty()  # None where it was closed when we started
    console = Console(highlight=False, width=None if terminal else PLAIN_WIDTH)
    for each in (table(report), *timeline(report, console.width)):
        console.print(each)
    if events:
        for event in report.events:
            click.echo(f"{clock(event['time'])}  {printable(event['by']):<16} {printable(event['what'])}")


def table(report: Report) -> Table | Text:
    """Return a line for each participant, as rich draws it: its state, since when, whom it waits for or how it ended."""
    from rich.table import Table
    from rich.text import Text

    if not report.participants:
        return Text(f"{NOBODY} in {printable(report.directory)}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("PARTICIPANT", "STATE", "SINCE", "WHAT"):
        table.add_column(title, no_wrap=title in ("STATE", "SINCE"), overflow="fold")
    for p in report.participants:
        life = f" (life {p.record.life})" if p.record and p.record.life > 1 else ""
        state = Text(printable(p.standing), style=COLOURS.get(p.standing, ""))
        table.add_row(Text(printable(p.name) + life), state, _since(p, report), _what(p, report))
    return table


def _what(p: Participant, report: Report) -> Columns | Text:
    from rich.columns import Columns
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    said = Text(printable(explanation(p, report)))
    if p.progress is None or p.progress["total"] <= 0:
        return said
    return Columns([ProgressBar(total=p.progress["total"], completed=p.progress["done"], width=20), said])


def _since(p: Participant, report: Report) -> str:
    return duration(max(0.0, report.now - p.phases[-1].since)) if p.phases else ""


def timeline(report: Report, width: int) -> list[Text]:
    """Return the phases of each participant drawn to one scale, in lines of at most `width`, and how long each state lasted."""
    from rich.cells import cell_len
    from rich.text import Text

    drawn = [p for p in report.participants if p.phases]
    if not drawn:
        return []
    begin = min(p.phases[0].since for p in drawn)
    end = max(x.since + x.seconds for p in drawn for x in p.phases)
    names = min(max(cell_len(printable(p.name)) for p in drawn), max(16, width // 4))
    scale = max(24, min(SCALE, width - names - 64))
    title = f"{'':{names}}  {clock(begin)} {duration(end - begin):>{scale - 13}}"
    lines = [Text(""), Text(title, style="dim", no_wrap=True, overflow="ellipsis")]
    for p in drawn:
        line = Text(printable(p.name), no_wrap=True, overflow="ellipsis")
        line.truncate(names, overflow="ellipsis", pad=True)
        line.append_text(_bar(p, begin, max(end - begin, 1e-3), scale))
        for said in _took(p, width - names - scale - 4):
            lines.append(line.append(f"  {said}", style="dim"))
            line = Text(" " * (names + 2 + scale), no_wrap=True, overflow="ellipsis")
    return lines


def _bar(p: Participant, begin: float, length: float, scale: int) -> Text:
    from rich.text import Text

    bar, at = Text("  "), 0
    for phase in p.phases:
        # By the ends, not the lengths, so that roundings do not add up. A phase that took any time at all is seen.
        start, stop = (round((when - begin) / length * scale) for when in (phase.since, phase.since + phase.seconds))
        start, stop = max(start, at), min(scale, max(stop, start + (phase.seconds > 0)))
        bar.append(" " * (start - at))
        bar.append(GLYPHS.get(phase.state, " ") * (stop - start), style=COLOURS.get(phase.state, ""))
        at = max(at, stop)
    return bar.append(" " * (scale - at))


def _took(p: Participant, width: int) -> list[str]:
    """Return how long a participant was in each state, in all its lives, in lines of at most `width` where that can be."""
    took: dict[str, float] = {}
    for phase in p.phases:
        took[phase.state] = took.get(phase.state, 0.0) + phase.seconds
    lines: list[str] = []
    for said in (
        f"{GLYPHS.get(state, ' ')} {printable(state)} {duration(seconds)}" for state, seconds in took.items() if seconds
    ):
        if lines and len(lines[-1]) + len(said) + 2 <= width:
            lines[-1] += f"  {said}"
        else:
            lines.append(said)
    return lines or [""]


def clock(seconds: float) -> str:
    """Return the local time of day of a moment, with milliseconds."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S.%f")[:-3]


def _watch(directory: Directory, as_json: bool) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    # A watch that is stopped while it starts, as where all is over already, is an error in watchdog's log, which is stderr.
    logging.getLogger("watchdog").addHandler(logging.NullHandler())
    said = threading.Event()

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if event.event_type not in ("opened", "closed_no_write"):  # our own reading, or we would wake ourselves for ever
                said.set()

    observer = Observer()
    observer.schedule(Handler(), directory.path, recursive=True)
    # Where inotify is not to be had, the redraws alone must do.
    with suppress(OSError):
        observer.start()
    console = Console(highlight=False)
    plain = as_json or not console.is_terminal
    live = Live(console=console, auto_refresh=False)
    last: str | None = None
    try:
        with suppress(KeyboardInterrupt):
            if not plain:
                live.start()
            while True:
                said.clear()
                report = look(directory)
                if as_json:
                    click.echo(json.dumps(report.as_json()))
                elif not plain:
                    live.update(Group(table(report), *timeline(report, console.width)), refresh=True)
                elif (line := "; ".join(f"{p.name} {p.standing}" for p in report.participants) or NOBODY) != last:
                    click.echo(f"{clock(report.now)}  {printable(line)}")
                    last = line
                if report.over or not directory.exists():
                    return
                said.wait(REDRAW)
    finally:
        live.stop()
        if observer.is_alive():
            observer.stop()
            observer.join()
