"""`sidecar once`: a program that runs at most once, and what came of it.

Each command parses, makes one call of sidecar.once, and prints. What a program wrote comes out as it went in, byte for byte, on
the stream that it went to; that it is a replay is said to people at a terminal only, so that programs get the same answer always.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from sidecar import process
from sidecar.cli.arguments import Seconds, parse_size
from sidecar.cli.entry import complain, printable
from sidecar.cli.listing import json_option, print_json, print_table
from sidecar.cli.server import done_here, is_named, server_named
from sidecar.errors import IO, Interrupted, SidecarError, SourceMissing, UsageError
from sidecar.figures import amount, counted, duration
from sidecar.once.asked import ask
from sidecar.once.facts import FAILED_TO_START, LIMIT, RUNNING, STDERR, STDOUT, UNKNOWN, Piece, Run, moment, quoted, unknown
from sidecar.once.instance import instance_of
from sidecar.once.ledger import Ledger
from sidecar.once.recorder import writer
from sidecar.once.run import ENDING, LOOK, Result, follow, run_once
from sidecar.once.told import as_json as told
from sidecar.once.told import piece_as_json
from sidecar.state import state_folder
from sidecar.values import replace

if TYPE_CHECKING:
    from sidecar.once.run import AnyLedger
    from sidecar.web.client import Client

Function = TypeVar("Function", bound=Callable[..., Any])
TARGETS = (1, 2)
# How many runs are told to whoever asks for one that is not there.
_SHOWN = 10


def _names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    if is_named(ctx):
        return []  # who completes a word is not made to wait for a server
    try:
        with _where(ctx.params.get("state"), ctx.params.get("coordination")).open() as ledger:
            return [CompletionItem(run.name, help=run.instance) for run in ledger.runs() if run.name.startswith(incomplete)]
    except SidecarError:
        return []


_name = click.argument("name", metavar="NAME", shell_complete=_names)


def _state(function: Function) -> Function:
    """Give a command --state and -c: where the ledger is."""
    function = click.option(
        "-c", "--coordination", metavar="DIR", help="The coordination directory of a pod, whose wrapper keeps its ledger there."
    )(function)
    return click.option(
        "--state",
        metavar="DIR",
        envvar="SIDECAR_STATE",
        show_envvar=True,
        help="Where it is kept that something ran: a directory of yours alone, which is made.  "
        "[default: in -c DIR, else sidecar in the user's state directory]",
    )(function)


_instance = click.option(
    "--instance",
    metavar="I",
    help="Where NAME is one and the same.  "
    "[default: $POD_UID/$CONTAINER_NAME, else -c DIR, else this host; at a server whichever has NAME]",
)


class _Where(NamedTuple):
    """Where a ledger is, and the id of the coordination directory, "" where none is named."""

    folder: str
    coordination: str
    look: float = LOOK

    def open(self, *, make: bool = False) -> Ledger:
        return Ledger(self.folder, make=make)

    def instance(self, named: str | None) -> str:
        return instance_of(os.environ, self.coordination) if named is None else named

    def run(self, ledger: AnyLedger, name: str, named: str | None) -> Run:
        return ledger.get(self.instance(named), name)


class _There(NamedTuple):
    """A server, to which it is of no account where this runs: without an instance, whichever has a run of that name is meant."""

    client: Client
    look: float = 0.5

    def open(self) -> AbstractContextManager[AnyLedger]:
        return self.client.runs

    def run(self, ledger: AnyLedger, name: str, named: str | None) -> Run:
        if named is not None:
            return ledger.get(named, name)
        found = ledger.runs(name=name)
        if not found:
            known = [run.name for run in ledger.runs(_SHOWN)]
            raise SourceMissing(f"no run {name!r} there; runs there: {', '.join(known) or 'none'}", known)
        if len(found) > 1:
            raise UsageError(f"{name!r} is several runs there: --instance {' or '.join(quoted(run.instance) for run in found)}")
        return found[0]


def _where(state: str | None, coordination: str | None) -> _Where:
    if coordination is None:
        return _Where(state or state_folder(os.environ), "")
    from sidecar.coordination.signals import Directory  # most have POD_UID, or need none

    with Directory(coordination) as directory:
        return _Where(state or directory.ledger(), directory.identity())


def _looked_at(state: str | None, coordination: str | None) -> _Where | _There:
    """Return where runs are looked at: here, or at the server that the command line names."""
    client = server_named()
    if client is None:
        return _where(state, coordination)
    context = click.get_current_context()
    for key, flag in (("state", "--state"), ("coordination", "-c")):
        if context.get_parameter_source(key) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{flag}: a server has a ledger of its own; expected one of --server and {flag}")
    return _There(client)


def _ending(statuses: str, example: str) -> str:
    return f"\b\nExit status: {statuses} 2 usage; 74 the state cannot be read or written.\nExample:  {example}"


@click.group(epilog="Example:  sidecar once run --name migrate -- ./migrate --to 42")
def once() -> None:
    """Run a program at most once, whoever asks and however often, and give everyone the same answer.

    A run is known by its NAME within an instance: a container, which may be restarted, a pod's directory, or a host.
    """


@once.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Exit status: the program's own, now or then; 126 it cannot be executed; 127 it was not found; 125 nothing was run: something
else ran under NAME, or nobody knows what became of it; 75 it is running (--no-wait); 2 usage; 74 the state cannot be read or
written, and nothing was run.
Example:  sidecar once run --name migrate -e DSN --redact DSN -- ./migrate --to 42 '$(DSN)'""",
)
@click.option("--name", metavar="NAME", required=True, help="What it is called, within the instance.")
@click.option(
    "-e", "--env", "given", metavar="K[=V]", multiple=True, help="A variable for it; without =V, as it is here. Counts."
)
@click.option("--redact", metavar="K", multiple=True, help="Keep a hash of this variable only, wherever it is put in.")
@click.option("--directory", metavar="DIR", help="Where it runs.  [default: here]")
@_instance
@_state
@click.option("--no-wait", is_flag=True, help="Where it is running: end with 75, instead of following it to its end.")
@click.option("--keep", metavar="SIZE", type=parse_size, help="How much of each stream is kept.  [default: 64MiB]")
@click.option("--json", "as_json", is_flag=True, help="Print what came of it, as `show --json` does, in the place of its output.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say at a terminal that it is a replay.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="CMD [ARG]...")
def run(
    name: str,
    given: tuple[str, ...],
    redact: tuple[str, ...],
    directory: str | None,
    instance: str | None,
    coordination: str | None,
    state: str | None,
    no_wait: bool,
    keep: int | None,
    as_json: bool,
    quiet: bool,
    command: tuple[str, ...],
) -> int:
    """Run CMD unless it has run, and end as it did, now or then, with what it wrote. Python: Ledger.run_once.

    $(K) in CMD and in the values stands for the variable K, given or inherited; $$(K) for $(K) itself. The same NAME with another
    command, directory or given variable is refused. While it runs, whoever asks again follows it.
    """
    done_here()
    process.fill_streams()
    where = _where(state, coordination)
    asked = ask(
        where.instance(instance),
        name,
        command,
        os.path.realpath(directory or _here()),
        dict(map(_variable, given)),
        os.environ,
        redact,
    )

    def found(run: Run) -> None:
        if not quiet and sys.stderr is not None and sys.stderr.isatty():
            what = "is running" if run.state == RUNNING else f"ran {moment(run.started or run.claimed)}, {_end(run)}"
            complain("sidecar", f"{name} {what}; this is what it wrote")

    _hear_signals()
    with where.open(make=True) as ledger:
        result = run_once(
            ledger,
            asked,
            wait=not no_wait,
            limit=LIMIT if keep is None else keep,
            targets=None if as_json else TARGETS,
            signals=process.SignalQueue,
            found=found,
        )
    if as_json:
        print_json({**told(result.run), "restored": result.restored})
    else:
        _tell_problem(result)
    return result.status or (IO if result.lost else 0)


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise UsageError("the working directory is gone; name another with --directory DIR") from None


def _hear_signals() -> None:
    """Have the signals that end a process end this one where it is PID 1, too, to which they do nothing by themselves."""
    if os.getpid() != 1:
        return
    import signal

    def end(number: int, _: object) -> None:
        raise Interrupted(number, f"ended by signal {number}")

    for number in ENDING:
        signal.signal(number, end)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        if name not in os.environ:
            raise UsageError(f"-e {name} expects {name} to be set, or -e {name}=VALUE")
        value = os.environ[name]
    return name, value


def _tell_problem(result: Result) -> None:
    run = result.run
    if result.lost:
        complain("sidecar", result.lost)
    if run.exit.reason:
        complain("sidecar", run.exit.reason)
    if run.cut and result.restored:
        complain("sidecar", f"not all that {run.name} wrote is kept: {_kept(run)}: {run.cut}")


@once.command(epilog=_ending("0; 66 there is no such run;", "sidecar once show migrate --json"))
@_name
@_instance
@_state
@json_option
def show(name: str, instance: str | None, coordination: str | None, state: str | None, as_json: bool) -> None:
    """Tell what is known of a run: when, what, in which environment, and how it ended. Python: Ledger.get."""
    where = _looked_at(state, coordination)
    with where.open() as ledger:
        run = where.run(ledger, name, instance)
    if as_json:
        print_json(told(run))
    else:
        print_table(_described(run, ledger.folder))


@once.command("list", epilog=_ending("0;", "sidecar once list"))
@_state
@json_option
def list_(state: str | None, coordination: str | None, as_json: bool) -> None:
    """List all runs, in the order in which they were claimed. Python: Ledger.runs."""
    where = _looked_at(state, coordination)
    try:
        with where.open() as ledger:
            runs = ledger.runs()
    except SourceMissing:
        # Nothing has run here yet; who is no server of ours has nothing to tell.
        if isinstance(where, _There):
            raise
        runs = []
    if as_json:
        print_json([told(run) for run in runs])
    elif runs:
        rows = ((run.name, _end(run), _when(run.claimed), _took(run), run.instance) for run in runs)
        print_table([("NAME", "END", "CLAIMED", "TOOK", "INSTANCE"), *rows])


@once.command(
    epilog=_ending("0; 66 there is no such run; 125 its outcome is unknown (--follow);", "sidecar once logs migrate --stderr")
)
@_name
@click.option("--stdout", "stream", flag_value=str(STDOUT), help="Only what it wrote to stdout.")
@click.option("--stderr", "stream", flag_value=str(STDERR), help="Only what it wrote to stderr.")
@click.option("--timestamps", is_flag=True, help="In lines, each with when its beginning was read.")
@click.option("--follow", "following", is_flag=True, help="Until it has ended.")
@_instance
@_state
@click.option("--json", "as_json", is_flag=True, help="Print each piece as a line of JSON: stream, at, and text or base64.")
def logs(
    name: str,
    stream: str | None,
    timestamps: bool,
    following: bool,
    instance: str | None,
    coordination: str | None,
    state: str | None,
    as_json: bool,
) -> None:
    """Print what a run wrote, its stdout on stdout, its stderr on stderr, in the order in which it was read.

    Python: Ledger.output."""
    process.fill_streams()
    shown = {int(stream)} if stream else {STDOUT, STDERR}
    _hear_signals()
    printer = _Printer(shown, timestamps=timestamps, as_json=as_json)
    where = _looked_at(state, coordination)
    with where.open() as ledger:
        found = where.run(ledger, name, instance)
        last = follow(ledger, found, printer.print, where.look) if following else _print_so_far(ledger, found, printer)
    printer.close()
    if last.cut:
        complain("sidecar", f"not all that {name} wrote is kept: {_kept(last)}: {last.cut}")


def _print_so_far(ledger: AnyLedger, run: Run, printer: _Printer) -> Run:
    for piece in ledger.output(run):
        printer.print(piece)
    return run


class _Printer:
    """Writes pieces to the streams they went to; with timestamps, in lines; or each as a line of JSON."""

    def __init__(self, shown: set[int], *, timestamps: bool, as_json: bool) -> None:
        self._shown, self._timestamps, self._as_json = shown, timestamps, as_json
        self._unended: set[int] = set()
        self._write = writer(TARGETS)

    def print(self, piece: Piece) -> None:
        if piece.stream not in self._shown:
            return
        if self._as_json:
            print_json(piece_as_json(piece))
            return
        if self._timestamps:
            data = piece.bytes
            head = moment(piece.at).encode() + b" "
            begun = piece.stream in self._unended
            data = b"".join((b"" if begun and not i else head) + line for i, line in enumerate(_lines(data)))
            (self._unended.discard if data.endswith(b"\n") else self._unended.add)(piece.stream)
            piece = replace(piece, bytes=data)
        self._write(piece)

    def close(self) -> None:
        """End the last line, where it has no end of its own."""
        for stream in self._unended:
            self._write(Piece(0, stream, 0, b"\n"))


def _lines(data: bytes) -> Iterator[bytes]:
    """Yield lines with their line feeds; bytes.splitlines would take a carriage return for the end of one."""
    at = 0
    while at < len(data):
        end = data.find(b"\n", at) + 1 or len(data)
        yield data[at:end]
        at = end


@once.command(epilog=_ending("0; 66 there is no such run; 75 it is running;", "sidecar once forget migrate"))
@_name
@_instance
@_state
@json_option
def forget(name: str, instance: str | None, coordination: str | None, state: str | None, as_json: bool) -> None:
    """Forget a run, so that it may run again. Python: Ledger.forget."""
    done_here()
    where = _where(state, coordination)
    with where.open() as ledger:
        gone = ledger.forget(where.instance(instance), name)
    if as_json:
        print_json(told(gone))
    else:
        click.echo(f"{printable(gone.name)} of {printable(gone.instance)} is forgotten: {_end(gone)}")


@once.command(epilog=_ending("0;", "sidecar once prune --older-than 30d"))
@click.option("--older-than", type=Seconds(), metavar="T", required=True, help="Those that ended longer ago: 90s, 15m, 2h, 30d.")
@click.option("--dry-run", is_flag=True, help="Forget nothing; say what would be.")
@_state
@json_option
def prune(older_than: float, dry_run: bool, state: str | None, coordination: str | None, as_json: bool) -> None:
    """Forget the runs that ended long ago, and give back their room; they may run again then. Python: Ledger.prune.

    A run whose outcome is unknown is kept, whatever its age, until somebody forgets it by its name.
    """
    done_here()
    try:
        with _where(state, coordination).open() as ledger:
            gone = ledger.prune(int((time.time() - older_than) * 1e6), dry_run=dry_run)
    except SourceMissing:
        gone = []
    if as_json:
        print_json([told(run) for run in gone])
    else:
        kept = sum(run.stdout.kept + run.stderr.kept for run in gone)
        click.echo(f"{'would forget' if dry_run else 'forgot'} {counted(len(gone), 'run')}, {amount(kept)} of output")


# --- a run, told -------------------------------------------------------------------------------------------------------


def _described(run: Run, folder: str) -> Iterable[tuple[str, str]]:
    yield "name", run.name
    yield "instance", run.instance
    yield "end", _end(run)
    yield "command", shlex.join(run.command)
    yield "directory", run.directory
    for each in run.variables:
        yield "environment", f"{each.name} (redacted)" if each.hash else f"{each.name}={each.value}"
    yield "claimed", moment(run.claimed)
    if run.started:
        yield "started", moment(run.started)
    if run.finished:
        yield "finished", f"{moment(run.finished)}{', after ' + _took(run) if run.started else ''}"
        yield "output", _kept(run)
    if run.cut:
        yield "cut", run.cut
    if run.state == UNKNOWN:
        yield "why", str(unknown(run, folder))
    elif run.exit.reason:
        yield "why", run.exit.reason


def _end(run: Run) -> str:
    if run.state == FAILED_TO_START:
        return f"failed to start: {run.exit.reason}"
    if run.state in (RUNNING, UNKNOWN):
        return run.state
    how = f"signal {run.exit.signal}" if run.exit.signal else f"exit {run.exit.code}"
    return f"{how}, given as {run.exit.instead}" if run.exit.instead else how


def _kept(run: Run) -> str:
    streams = (("stdout", run.stdout), ("stderr", run.stderr))
    return ", ".join(
        f"{name} {amount(w.total)}" if w.kept == w.total else f"{name} {amount(w.kept)} of {amount(w.total)}"
        for name, w in streams
    )


def _took(run: Run) -> str:
    return duration(max(0, run.finished - run.started) / 1e6) if run.started and run.finished else ""


def _when(at: int) -> str:
    return moment(at)[:19] + "Z"
