"""`sidecar run`: the main job with nothing but local processes.

The fuse battery and the application's wrapper are started as the same programs that run in containers, around a fresh
coordination directory. This command only watches them and says in the end where the output went.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence

import click

from sidecar import process
from sidecar.cli.arguments import Seconds
from sidecar.cli.entry import complain
from sidecar.cli.start import program
from sidecar.cli.store_option import store_option
from sidecar.cli.view import View
from sidecar.coordination import protocol
from sidecar.coordination.protocol import APPLICATION
from sidecar.coordination.report import Report, look
from sidecar.coordination.signals import Directory
from sidecar.errors import IO, UNAVAILABLE, ParametersError, Unreachable, UsageError
from sidecar.figures import amount, counted, duration
from sidecar.session import foreground
from sidecar.store import Reference, parse_reference

LIMITS = ("appear-timeout", "ready-timeout", "run-timeout", "save-timeout", "grace")


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Exit status: the command's own, exactly. Where it did not fail: 2 usage; 65, 66, 74, 78 as the battery
ended (malformed, no such source, store unreachable, contradiction); 69 the battery died; 73 the output was
not saved; 75 a deadline passed; 125 a run in the same -c DIR was begun before, and its end is not known.
Example:  sidecar run --source weather@latest:in --dest out:results@daily -- python3 analyse.py in out""",
)
@click.option("--source", "sources", multiple=True, metavar="REPO[@LABEL]:DIR", help="Have this bundle in DIR before CMD starts.")
@click.option("--dest", "dests", multiple=True, metavar="DIR:REPO[@LABEL]", help="Keep DIR as a bundle after CMD has ended.")
@click.option("-m", "--message", help="What the bundles are said to be.  [default: output of CMD]")
@store_option
@click.option(
    "--save", type=click.Choice(protocol.POLICIES), default=protocol.ON_SUCCESS, show_default=True, help="When to keep them."
)
@click.option(
    "--appear-timeout",
    type=Seconds(),
    metavar="T",
    help="How long the battery may take to appear (90, 90s, 15m, 2h).  [default: 600]",
)
@click.option("--ready-timeout", type=Seconds(), metavar="T", help="How long the sources may take.")
@click.option("--run-timeout", type=Seconds(), metavar="T", help="How long CMD may run.")
@click.option("--save-timeout", type=Seconds(), metavar="T", help="How long saving may take.")
@click.option("--grace", type=Seconds(), metavar="T", help="What is left after SIGTERM.  [default: 25]")
@click.option("-c", "--coordination", metavar="DIR", help="Coordinate there and keep it.  [default: temporary, kept on failure]")
@click.option("--report", metavar="FILE", help="Write what `sidecar status --json` prints to FILE in the end.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="CMD [ARG]...")
def run(
    sources: tuple[str, ...],
    dests: tuple[str, ...],
    message: str | None,
    store: str,
    save: str,
    coordination: str | None,
    report: str | None,
    quiet: bool,
    command: tuple[str, ...],
    **limits: float | None,
) -> int:
    """Run CMD with its inputs before and its outputs saved after, on this machine.

    Shows who waits for whom while it goes on, ends with CMD's status, and says where the output went.
    """
    asked = [flag for source in sources for flag in _mount(source)]
    asked += [flag for dest in dests for flag in _upload(dest, message or f"output of {os.path.basename(command[0])}")]
    if not asked:
        raise UsageError("nothing to bring and nothing to keep: --source REPO@LABEL:DIR or --dest DIR:REPO[@LABEL] is needed")
    given = [f"--{name}={value}" for name in LIMITS if (value := limits[name.replace("-", "_")]) is not None]
    place = _place(coordination)
    _tell_earlier(place)
    battery = [*program("wrap_datamon"), "-c", place, "--populate", "--store", store, *_own(given), *asked]
    wrapper = [*program("wrap_application"), "-c", place, "-b", "fuse", "-q", f"--save={save}", *given, "--", *command]
    status, last = _run(place, {"fuse": battery}, wrapper, View(quiet=quiet))
    status = _status(status, last)
    if report is not None:
        written = _write_report(report, last)
        status = status or written
    if not quiet:
        _tell_saved(last)
    if status == 0 and coordination is None:
        shutil.rmtree(place, ignore_errors=True)
    elif status != 0:
        complain("sidecar", f"what happened: sidecar status --events {shlex.quote(place)}")
    return status


def _run(place: str, batteries: dict[str, list[str]], wrapper: list[str], view: View) -> tuple[int, Report]:
    signals = process.SignalQueue()
    with Directory(place) as directory:
        try:
            status = foreground.run(directory, batteries, wrapper, place, signals, lambda: view.show(look(directory)))
        finally:
            view.close()
            signals.close()
        return status, look(directory)


def _place(coordination: str | None) -> str:
    try:
        if coordination is None:
            return tempfile.mkdtemp(prefix="sidecar-")
        os.makedirs(coordination, exist_ok=True)
    except OSError as error:
        raise Unreachable(f"the coordination directory {coordination or tempfile.gettempdir()}: {error.strerror}") from None
    return os.path.abspath(coordination)


def _tell_earlier(place: str) -> None:
    """Tell whoever expects another run in a directory that it has served one."""
    with Directory(place) as directory:
        record = directory.record(APPLICATION)
    if record is not None and record.exit is not None:
        complain(
            "sidecar",
            f"in {place} a command has run already and ended with status {record.exit.status}; it is not run again "
            "(for another run, use an empty directory)",
        )


def _write_report(path: str, report: Report) -> int:
    """Write the report as JSON; return the exit status of that."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(report.as_json(), file)
    except OSError as error:
        complain("sidecar", f"the report cannot be written: {path}: {error.strerror}")
        return IO
    return 0


def _own(limits: Sequence[str]) -> list[str]:
    """Return what of `limits` also bounds the battery itself."""
    return [flag for flag in limits if not flag.startswith("--run-timeout")]


def _mount(source: str) -> list[str]:
    """Return the flags for one --source; UsageError where it is not of its form."""
    reference, colon, folder = source.partition(":")
    if not colon or not folder or not reference:
        raise UsageError(f"--source expects REPO:DIR or REPO@LABEL:DIR, not {source!r}")
    found = _reference("--source", source, reference)
    at = ["--bundle", found.bundle] if found.bundle else ["--label", found.label] if found.label else []
    return ["-d", shlex.join(["bundle", "mount", "--repo", found.repo, *at, "--mount", os.path.realpath(folder)])]


def _upload(dest: str, message: str) -> list[str]:
    """Return the flags for one --dest; UsageError where it is not of its form."""
    folder, colon, reference = dest.rpartition(":")
    if not colon or not folder or not reference:
        raise UsageError(f"--dest expects DIR:REPO or DIR:REPO@LABEL, not {dest!r}")
    found = _reference("--dest", dest, reference)
    if found.bundle:
        raise UsageError(f"--dest {dest!r} names a bundle that exists; a new one can be given a label")
    at = ["--label", found.label] if found.label else []
    words = ["bundle", "upload", "--path", os.path.realpath(folder), "--message", message, "--repo", found.repo]
    return ["-d", shlex.join([*words, *at])]


def _reference(flag: str, given: str, reference: str) -> Reference:
    try:
        return parse_reference(reference)
    except ParametersError as error:
        raise UsageError(f"{flag} {given!r}: {error}") from None


def _status(status: int, report: Report) -> int:
    """Return the exit status: the wrapper's, or why the battery failed where that is what the wrapper says."""
    application = report.participant(APPLICATION)
    fuse = report.participant("fuse")
    error = application.record.error if application and application.record else None
    if status == UNAVAILABLE and error is not None and error.culprit == "fuse" and fuse and fuse.record and fuse.record.error:
        return fuse.record.error.status
    return status


def _tell_saved(report: Report) -> None:
    fuse = report.participant("fuse")
    if fuse is None or fuse.record is None or not fuse.record.saved:
        return
    took = sum(phase.seconds for phase in fuse.phases if phase.state == protocol.SAVING)
    for each in (fuse.record.payload or {}).get("destinations", ()):
        label = f"@{each['label']}" if each["label"] else ""
        complain(
            "sidecar",
            f"{each['path']} is saved as {each['repo']}{label}: bundle {each['bundle']}, {counted(each['files'], 'file')}, "
            f"{amount(each['bytes'])}, in {duration(took)}",
        )
