"""What the commands that run a battery share: options of its life, how failures are told, how a configuration is shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import click

from sidecar import batteries, process
from sidecar.cli.arguments import Seconds
from sidecar.cli.entry import complain, printable
from sidecar.cli.store_option import store_url
from sidecar.cli.wrap_application import STAY, write_termination_message
from sidecar.coordination import host, protocol
from sidecar.coordination.application import Ending
from sidecar.coordination.signals import Directory
from sidecar.errors import SidecarError

Function = TypeVar("Function", bound=Callable[..., Any])

DEFAULT = protocol.Limits()
# What is read of a file of parameters; more was not written by a person.
LONGEST = 1 << 20

_OPTIONS = (
    click.option(
        "--save", type=click.Choice(protocol.POLICIES), help="When to keep destinations.  [default: as the application says]"
    ),
    click.option(
        "--native",
        is_flag=True,
        help="This is a native sidecar (an initContainer with restartPolicy Always): stay until SIGTERM.",
    ),
    click.option(
        "--appear-timeout",
        type=Seconds(),
        default=DEFAULT.appear,
        help="How long until the application appears.  [default: 600]",
    ),
    click.option(
        "--ready-timeout", type=Seconds(), default=protocol.FOREVER, help="How long the sources may take.  [default: no limit]"
    ),
    click.option(
        "--save-timeout", type=Seconds(), default=protocol.FOREVER, help="How long saving may take.  [default: no limit]"
    ),
    click.option(
        "--rejoin-timeout",
        type=Seconds(),
        default=0.0,
        help="How long an application that died before it ran may take to come back.  [default: 0]",
    ),
    click.option("--grace", type=Seconds(), default=DEFAULT.grace, help="What is left after SIGTERM.  [default: 25]"),
    click.option("--poll", is_flag=True, help="Read the directory every 50 ms and do without inotify."),
    click.option("--termination-log", metavar="FILE", default="/dev/termination-log", help="Where the reason of a failure goes."),
    click.option("--print-config", is_flag=True, help="Print every value and where it came from, and end."),
)


def battery_store_option(function: Function) -> Function:
    """Give a click command --store URL, "" where it is not given: a battery tells where its URL comes from."""
    return click.option(
        "--store",
        metavar="URL",
        default="",
        help="Where bundles are: file:///srv/store, a plain path, or any URL that fsspec knows.  "
        "[default: $SIDECAR_STORE, else sidecar/store in the user's data directory]",
    )(function)


def host_options(function: Function) -> Function:
    """Give a click command the options of a battery's life; `life` makes of their values what `host.serve` takes."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def life(given: Mapping[str, Any], *, stay: bool) -> host.Options:
    """Return what the values of `host_options` say of a battery's life."""
    limits = protocol.Limits(
        appear=given["appear_timeout"],
        ready=given["ready_timeout"],
        save=given["save_timeout"],
        rejoin=given["rejoin_timeout"],
        grace=given["grace"],
    )
    return host.Options(given["save"] or "", limits, given["native"], given["poll"], STAY if stay else 0.0)


def finish(name: str, ending: Ending, termination_log: str) -> int:
    """Tell why a battery failed, if it did, and return its exit status."""
    if ending.problem is not None:
        complain(name, ending.problem.reason)
        write_termination_message(termination_log, ending.problem.reason)
    return ending.status


def say_failed(
    battery: protocol.Battery, error: SidecarError, coordination: str, how: host.Options, signals: process.SignalQueue
) -> None:
    """Have the application hear at once that there will be no battery, and why, where the place to meet is known."""

    def make(_: batteries.Progress) -> NoReturn:
        raise error

    try:
        with Directory(coordination) as directory:
            host.serve(directory, battery, make, how, signals, lambda _: None)
    except SidecarError:
        pass  # It is not there, or another battery lives in it: what is wrong with the configuration is what counts.


def store_of(given: str) -> tuple[str, str]:
    """Return the URL of the store, and where it comes from."""
    if given:
        return given, "--store"
    return store_url(os.environ), "SIDECAR_STORE" if os.environ.get("SIDECAR_STORE") else "default"


def read_parameters(path: str) -> str:
    """Return a file of parameters, or a little more than is accepted of it."""
    with open(path, encoding="utf-8") as file:
        return file.read(LONGEST + 1)


def print_config(lines: Sequence[tuple[str, str, str]]) -> None:
    """Print settings: key, value, and where it came from."""
    keys, values = max(len(line[0]) for line in lines), min(60, max(len(line[1]) for line in lines))
    for key, value, where in lines:
        click.echo(f"{key:<{keys}}  {printable(value):<{values}}  {printable(where)}")
