"""The command behind `wrap_datamon`: the fuse battery, configured as the datamon sidecar was: flags, environment, YAML."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NoReturn

import click

from sidecar import __version__, batteries, process
from sidecar.batteries.fuse import FuseBatteryOptions
from sidecar.cli.arguments import Seconds, parse_size
from sidecar.cli.entry import complain, printable
from sidecar.cli.store_option import store_url
from sidecar.cli.wrap_application import STAY, write_termination_message
from sidecar.coordination import host, protocol
from sidecar.coordination.application import Ending
from sidecar.coordination.signals import Directory
from sidecar.errors import SidecarError
from sidecar.parameters import dictionary
from sidecar.parameters.fuse import FuseFlags, FuseOptions, fuse_options
from sidecar.parameters.settings import Configured, explain
from sidecar.values import replace

NAME = "wrap_datamon"
FUSE = protocol.batteries_of(["fuse"])[0]
DEFAULT = protocol.Limits()
# What is read of a file of parameters; more was not written by a person.
LONGEST = 1 << 20


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
T is in seconds, or with a unit: 90, 90s, 15m, 2h.
bundle mount and bundle download take --name-filter REGEX (it is found in the path) and --files PATH (a file or
directory in the bundle; repeated): that part of it is downloaded, never mounted. bundle upload takes --skip-on-error.
Exit status: 0 saved, or nothing to save; 2 usage; 65 malformed parameters or corrupt data; 66 a source does
not exist; 69 the application died before it ran; 73 the output was not saved; 74 the store or the
directory cannot be reached or written; 75 a deadline passed; 78 contradictory configuration.
Example:
  wrap_datamon -c /tmp/coord -d 'config create' \\
    -d 'bundle mount --repo weather --label latest --mount /tmp/mount' \\
    -d 'bundle upload --path /tmp/upload --message "result of a demo" --repo results --label demo'""",
)
@click.version_option(__version__, "--version", message="%(prog)s %(version)s")
@click.option(
    "-c",
    "coordination",
    metavar="DIR",
    default="",
    help="The coordination directory, on a volume that the pod's containers share.",
)
@click.option(
    "-d",
    "commands",
    metavar="COMMAND",
    multiple=True,
    help="A datamon command: config create, bundle mount, bundle download or bundle upload; repeated.",
)
@click.option("-i", "bundle_id_file", metavar="FILE", default="", help="Write the id of the uploaded bundle to FILE.")
@click.option("-b", "config_bucket", metavar="BUCKET", default="", help="datamon's configuration bucket; accepted, see --store.")
@click.option("-a", "context", metavar="CONTEXT", default="", help="datamon's context; accepted, see --store.")
@click.option("-s", "stay", is_flag=True, help=f"Stay {STAY:g} s instead of exiting (for debugging); a signal ends it.")
@click.option(
    "--store",
    metavar="URL",
    default="",
    help="Where bundles are: file:///srv/store, a plain path, or any URL that fsspec knows.  "
    "[default: $SIDECAR_STORE, else sidecar/store in the user's data directory]",
)
@click.option("--cache", metavar="DIR", default="", help="Keep what is read of mounted sources in DIR; without it, in memory.")
@click.option("--cache-size", metavar="SIZE", type=parse_size, default="10G", show_default=True, help="How much is kept in DIR.")
@click.option("--populate", is_flag=True, help="Download sources before the application starts instead of mounting them.")
@click.option(
    "--save", type=click.Choice(protocol.POLICIES), help="When to keep destinations.  [default: as the application says]"
)
@click.option(
    "--native", is_flag=True, help="This is a native sidecar (an initContainer with restartPolicy Always): stay until SIGTERM."
)
@click.option(
    "--appear-timeout",
    type=Seconds(),
    default=DEFAULT.appear,
    help="How long until the application appears.  [default: 600]",
)
@click.option(
    "--ready-timeout", type=Seconds(), default=protocol.FOREVER, help="How long the sources may take.  [default: no limit]"
)
@click.option("--save-timeout", type=Seconds(), default=protocol.FOREVER, help="How long saving may take.  [default: no limit]")
@click.option(
    "--rejoin-timeout",
    type=Seconds(),
    default=0.0,
    help="How long an application that died before it ran may take to come back.  [default: 0]",
)
@click.option("--grace", type=Seconds(), default=DEFAULT.grace, help="What is left after SIGTERM.  [default: 25]")
@click.option("--poll", is_flag=True, help="Read the directory every 50 ms and do without inotify.")
@click.option("--termination-log", metavar="FILE", default="/dev/termination-log", help="Where the reason of a failure goes.")
@click.option("--print-config", is_flag=True, help="Print every value and where it came from, and end.")
@click.pass_obj
def command(
    signals: process.SignalQueue,
    coordination: str,
    commands: tuple[str, ...],
    bundle_id_file: str,
    config_bucket: str,
    context: str,
    stay: bool,
    store: str,
    cache: str,
    cache_size: int,
    populate: bool,
    save: str | None,
    native: bool,
    appear_timeout: float,
    ready_timeout: float,
    save_timeout: float,
    rejoin_timeout: float,
    grace: float,
    poll: bool,
    termination_log: str,
    print_config: bool,
) -> int:
    """Have bundles in place before the application starts, and keep directories as bundles after it has ended.

    The same can be said in dm_fuse_opts and dm_fuse_bd_NAME, and in YAML (the file or its text in dm_fuse_params). What is said
    twice counts by its place: flags, environment, file, defaults.
    """
    flags = FuseFlags(coordination, stay, config_bucket, context, bundle_id_file, commands)
    limits = protocol.Limits(appear=appear_timeout, ready=ready_timeout, save=save_timeout, rejoin=rejoin_timeout, grace=grace)
    how = host.Options(save or "", limits, native, poll, STAY if stay else 0.0)
    try:
        try:
            configured = fuse_options(flags, os.environ, _read_file)
            store, store_from = _store(store)
        except SidecarError as error:
            place = coordination or _meeting_point(os.environ)
            if os.path.isabs(place) and not print_config:
                _say_failed(error, place, how, signals)
            raise
        if print_config:
            _print_config(configured, store, store_from)
            return 0
        for note in configured.notes:
            complain(NAME, note)
        options = configured.options
        mounting = {"populate": populate, "cache": os.path.abspath(cache) if cache else "", "cache_size": cache_size}
        ending = _serve(options, mounting, store, replace(how, stay=STAY if options.stay else 0.0), signals)
    except SidecarError as error:
        write_termination_message(termination_log, str(error))
        raise
    if ending.problem is not None:
        complain(NAME, ending.problem.reason)
        write_termination_message(termination_log, ending.problem.reason)
    return ending.status


def _serve(
    options: FuseOptions, mounting: Mapping[str, Any], store: str, how: host.Options, signals: process.SignalQueue
) -> Ending:
    kind = batteries.find("fuse")
    with Directory(options.coordination) as directory:
        battery = FuseBatteryOptions(
            store, options.sources, options.destinations, options.contributor, earlier=_earlier(directory), **mounting
        )
        return host.serve(
            directory, FUSE, lambda progress: kind.open(battery, progress), how, signals, lambda line: complain(NAME, line)
        )


def _earlier(directory: Directory) -> Mapping[str, Any] | None:
    """Return what an earlier life was ready with, None where there was none."""
    record = directory.record(FUSE.name)
    return record.payload if record is not None else None


def _say_failed(error: SidecarError, coordination: str, how: host.Options, signals: process.SignalQueue) -> None:
    """Have the application hear at once that there will be no battery, and why, where the place to meet is known."""

    def make(_: batteries.Progress) -> NoReturn:
        raise error

    try:
        with Directory(coordination) as directory:
            host.serve(directory, FUSE, make, how, signals, lambda _: None)
    except SidecarError:
        pass  # It is not there, or another battery lives in it: what is wrong with the configuration is what counts.


def _meeting_point(environment: Mapping[str, str]) -> str:
    """Return the coordination directory that the environment names, whatever else is wrong with it; "" where it names none."""
    try:
        return str(dictionary.decode(environment.get("dm_fuse_opts", "")).get("c", ""))
    except SidecarError:
        return ""


def _store(given: str) -> tuple[str, str]:
    """Return the URL of the store, and where it comes from."""
    if given:
        return given, "--store"
    return store_url(os.environ), "SIDECAR_STORE" if os.environ.get("SIDECAR_STORE") else "default"


def _read_file(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read(LONGEST + 1)


def _print_config(configured: Configured[FuseOptions], store: str, store_from: str) -> None:
    lines = [*explain(configured), ("store", store, store_from)]
    keys, values = max(len(line[0]) for line in lines), min(60, max(len(line[1]) for line in lines))
    for key, value, where in lines:
        click.echo(f"{key:<{keys}}  {printable(value):<{values}}  {printable(where)}")
