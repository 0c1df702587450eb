"""The command behind `wrap_datamon`: the fuse battery, configured as the datamon sidecar was: flags, environment, YAML."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click

from sidecar import __version__, batteries, process
from sidecar.batteries.fuse import FuseBatteryOptions
from sidecar.cli.arguments import parse_size
from sidecar.cli.entry import complain
from sidecar.cli.hosting import (
    battery_store_option,
    finish,
    host_options,
    life,
    print_config,
    read_parameters,
    say_failed,
    store_of,
)
from sidecar.cli.wrap_application import STAY, write_termination_message
from sidecar.coordination import host, protocol
from sidecar.coordination.application import Ending
from sidecar.coordination.signals import Directory
from sidecar.errors import SidecarError
from sidecar.parameters import dictionary
from sidecar.parameters.fuse import FuseFlags, FuseOptions, fuse_options
from sidecar.parameters.settings import explain
from sidecar.values import replace

NAME = "wrap_datamon"
FUSE = protocol.batteries_of(["fuse"])[0]


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
@battery_store_option
@click.option("--cache", metavar="DIR", default="", help="Keep what is read of mounted sources in DIR; without it, in memory.")
@click.option("--cache-size", metavar="SIZE", type=parse_size, default="10G", show_default=True, help="How much is kept in DIR.")
@click.option("--populate", is_flag=True, help="Download sources before the application starts instead of mounting them.")
@host_options
@click.pass_obj
def command(
    signals: process.SignalQueue,
    /,
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
    **given: Any,
) -> int:
    """Have bundles in place before the application starts, and keep directories as bundles after it has ended.

    The same can be said in dm_fuse_opts and dm_fuse_bd_NAME, and in YAML (the file or its text in dm_fuse_params). What is said
    twice counts by its place: flags, environment, file, defaults.
    """
    flags = FuseFlags(coordination, stay, config_bucket, context, bundle_id_file, commands)
    how = life(given, stay=stay)
    try:
        try:
            configured = fuse_options(flags, os.environ, read_parameters)
            store, store_from = store_of(store)
        except SidecarError as error:
            place = coordination or _meeting_point(os.environ)
            if os.path.isabs(place) and not given["print_config"]:
                say_failed(FUSE, error, place, how, signals)
            raise
        if given["print_config"]:
            print_config([*explain(configured), ("store", store, store_from)])
            return 0
        for note in configured.notes:
            complain(NAME, note)
        options = configured.options
        mounting = {"populate": populate, "cache": os.path.abspath(cache) if cache else "", "cache_size": cache_size}
        ending = _serve(options, mounting, store, replace(how, stay=STAY if options.stay else 0.0), signals)
    except SidecarError as error:
        write_termination_message(given["termination_log"], str(error))
        raise
    return finish(NAME, ending, given["termination_log"])


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


def _meeting_point(environment: Mapping[str, str]) -> str:
    """Return the coordination directory that the environment names, whatever else is wrong with it; "" where it names none."""
    try:
        return str(dictionary.decode(environment.get("dm_fuse_opts", "")).get("c", ""))
    except SidecarError:
        return ""
