"""`sidecar function`: source code that was just handed over, run in a sandbox by more than one worker.

Each command parses, makes one call of sidecar.functions, and prints; what the program wrote is written byte by byte.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from sidecar.cli.arguments import Seconds
from sidecar.cli.entry import complain
from sidecar.cli.listing import json_option, print_json, print_table
from sidecar.cli.server import done_here, is_named, server, token_of, token_option
from sidecar.errors import DEADLINE, ConfigurationError, UsageError
from sidecar.functions.answer import MOST, MOST_WORKERS, Answer, Asked, Limits
from sidecar.functions.runtimes import Runtime, find_runtimes
from sidecar.functions.service import Service

if TYPE_CHECKING:
    from sidecar.web.client import Client

# Where an image of ours has its runtimes.
INSTALLED = "/opt/runtimes"
# 128 + n, as where a signal ended the program: of what it wrote too much of, that is what did.
_SIGNALLED = 128

runtimes_option = click.option(
    "--runtimes",
    "folders",
    metavar="DIR",
    multiple=True,
    help="Where runtimes are, directories LANGUAGE-VERSION with a runtime.sh; repeatable.  "
    f"[default: $SIDECAR_RUNTIMES, {INSTALLED}]",
)


@click.group(epilog="Example:  sidecar function run php:8.2 hello.php -- a b")
def function() -> None:
    """Run source code that was just handed over, in the runtime of its language: in a sandbox, and twice for safety."""


@function.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Exit status: the program's own, that of SIGKILL where it wrote too much; 75 it took too long; 2 usage, or FILE cannot be read;
65 it is empty, or the arguments are too much; 66 there is no such runtime; 69 no worker could run it; 74 a runtime cannot be
read; 78 this machine cannot confine programs.
Example:  sidecar function run --timeout 10s python:3.11 sum.py -- 1 2 3""",
)
@click.argument("runtime")
@click.argument("file", metavar="FILE")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARG...]")
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    default=2,
    show_default=True,
    help="How many run it; the first that succeeds answers.",
)
@click.option("--delay", type=Seconds(), metavar="T", default="0s", show_default=True, help="Begin each so long after the last.")
@click.option("--timeout", type=Seconds(), metavar="T", default="3s", show_default=True, help="How long it may take.")
@click.option(
    "--context",
    metavar="TEXT",
    default="",
    help="What the program finds in $CONTEXT: JSON as a rule, at a server always, as that writes it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer, with the workers.")
@runtimes_option
def run(
    runtime: str,
    file: str,
    arguments: tuple[str, ...],
    workers: int,
    delay: float,
    timeout: float,
    context: str,
    as_json: bool,
    folders: tuple[str, ...],
) -> int:
    """Run the source FILE (- is standard input) in RUNTIME, LANGUAGE or LANGUAGE:VERSION. Python: functions.service.Service.call.

    Standard input is the program's, its output and status are the command's. It has no network and sees no file of this machine.
    """
    source = _read(file)
    limits = replace(Limits(), wall=timeout, cpu=max(Limits().cpu, int(timeout)))
    given = arguments[1:] if arguments[:1] == ("--",) else arguments
    asked = Asked(source, given, b"" if file == "-" else _stdin(), context, limits, workers, delay)
    there = _there(folders)
    answer = _called_here(folders, runtime, asked) if there is None else there.functions.call(runtime, asked)
    if as_json:
        print_json(answer.as_json())
    else:
        _write(answer)
    return _status(answer)


@function.command(
    "list",
    epilog="\b\nExit status: 0; 2 usage; 74 a folder cannot be read; 78 none is named.\nExample:  sidecar function list --json",
)
@runtimes_option
@json_option
def list_(folders: tuple[str, ...], as_json: bool) -> None:
    """List the runtimes. Python: functions.runtimes.find_runtimes."""
    there = _there(folders)
    found = [(each.language, each.version) for each in found_runtimes(folders)] if there is None else there.functions.runtimes
    if as_json:
        print_json([{"language": language, "version": version} for language, version in found])
    elif found:
        print_table([("LANGUAGE", "VERSION"), *found])


@function.command(
    epilog="""\b
Exit status: 0 when it was asked to end; 2 usage, or a file cannot be read; 74 the address cannot be listened to; 78 others can
reach it and there is no token, this machine cannot confine programs, or the extra [server] is not installed.
Example:  sidecar function serve --port 8080 --runtimes images/runtimes""",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens; beyond the loopback it needs a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Which port it listens to.")
@token_option
@click.option(
    "--most", type=click.IntRange(1), metavar="N", help="How many calls may run at a time.  [default: two for each processor]"
)
@click.option(
    "--timeout", type=Seconds(), metavar="T", default="60s", show_default=True, help="The most that a call may ask for."
)
@runtimes_option
def serve(host: str, port: int, token_file: str | None, most: int | None, timeout: float, folders: tuple[str, ...]) -> None:
    """Run what is posted, over HTTP. Python: web.functions.application.

    GET / is a page to try it, /openapi.json its description, /metrics what is measured.
    """
    done_here()
    try:
        from sidecar.web.functions import application
        from sidecar.web.serve import serve as serve_web
    except ImportError:
        raise ConfigurationError("the server is not installed: pip install 'sidecar-toolkit[server]'") from None
    token = token_of(token_file)
    service = Service(found_runtimes(folders), most or 2 * (os.cpu_count() or 1), replace(MOST, wall=timeout))
    serve_web(application(service, token), host, port, token, lambda url: complain("sidecar", f"functions at {url}"))


def found_runtimes(folders: Sequence[str]) -> tuple[Runtime, ...]:
    """Return the runtimes in the folders that are named, or else in those of the environment or of an image of ours."""
    asked = list(folders) or list(filter(None, os.environ.get("SIDECAR_RUNTIMES", "").split(":")))
    if not asked and not os.path.isdir(INSTALLED):
        raise ConfigurationError("no runtimes are installed here: expected --runtimes DIR, such as images/runtimes")
    return find_runtimes(asked or [INSTALLED])


def _there(folders: Sequence[str]) -> Client | None:
    """Return the server that is to run it, None for this machine, as where its runtimes are named; UsageError where both are."""
    if not folders:
        return server()
    if is_named():
        raise UsageError("--runtimes: a server has its own; expected one of --server and --runtimes")
    return None


def _called_here(folders: Sequence[str], runtime: str, asked: Asked) -> Answer:
    # Here whoever asks decides how long.
    service = Service(found_runtimes(folders), limits=replace(MOST, wall=max(MOST.wall, asked.limits.wall)))
    return asyncio.run(service.call(runtime, asked))


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        with open(file, "rb") as source:
            return source.read()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None


def _stdin() -> bytes:
    """Return what the program is to read; a terminal has nothing to say to a program that is run twice."""
    return b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()


def _write(answer: Answer) -> None:
    for stream, data in ((sys.stdout, answer.won.stdout), (sys.stderr, answer.won.stderr)):
        stream.buffer.write(data)
        stream.buffer.flush()
    if answer.won.status not in ("ok", "error", "signalled"):
        complain("sidecar", f"the program was ended: {answer.won.status}")


def _status(answer: Answer) -> int:
    won = answer.won
    if won.status == "timeout":
        return DEADLINE
    return won.code if won.code is not None else _SIGNALLED + (won.signal or 0)
