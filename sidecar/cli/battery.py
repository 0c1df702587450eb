"""The command behind `wrap_battery`: a battery of any kind whose parameters are a document that it reads itself.

Nothing here knows which kinds there are: a third party's is found as ours are, and told the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any

import click

from sidecar import __version__, batteries, process
from sidecar.batteries import Kind, Place
from sidecar.batteries.companion import PARAMETERS
from sidecar.cli.entry import complain
from sidecar.cli.hosting import finish, host_options, life, print_config, read_parameters, say_failed
from sidecar.cli.wrap_application import write_termination_message
from sidecar.coordination import host, protocol
from sidecar.coordination.application import Ending
from sidecar.coordination.signals import Directory
from sidecar.errors import ConfigurationError, SidecarError, UsageError

NAME = "wrap_battery"


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
T is in seconds, or with a unit: 90, 90s, 15m, 2h.
Exit status: 0 saved, or nothing to save; 2 usage; 65 malformed parameters; 69 the battery could not be run, or the
application died before it ran; 73 the output was not saved; 74 the directory cannot be reached or written; 75 a
deadline passed; 78 there is no such battery, or contradictory configuration. A battery may end with others.
Example:  wrap_battery function -c /tmp/coord --parameters function.yaml""",
)
@click.version_option(__version__, "--version", message="%(prog)s %(version)s")
@click.argument("kind")
@click.option(
    "-c",
    "coordination",
    metavar="DIR",
    required=True,
    help="The coordination directory, on a volume that the pod's containers share.",
)
@click.option(
    "--parameters",
    metavar="FILE",
    default="",
    help=f"What the battery is told, a document of its own form.  [default: the text of ${PARAMETERS}]",
)
@host_options
@click.pass_obj
def command(signals: process.SignalQueue, /, kind: str, coordination: str, parameters: str, **given: Any) -> int:
    """Run a battery of KIND: have something ready before the application starts, and keep what it made after it has ended.

    Kinds are installed as Python distributions, by the entry points of the group sidecar.batteries.
    """
    how = life(given, stay=False)
    # As it stands at the beginning of a line that people read; the application's wrapper refuses a kind that is no name as well.
    protocol.check_name(kind, "kind of battery")
    logging.basicConfig(format=f"{kind}: %(message)s", level=logging.INFO)
    place = os.path.abspath(coordination)
    try:
        try:
            found = batteries.find(kind)
            document, name = _document(parameters)
            options = _read(found, document, name, Place(os.path.join(place, kind), _earlier(place, kind)))
        except SidecarError as error:
            if not given["print_config"]:
                with suppress(UsageError):  # a kind that has a command of its own
                    say_failed(protocol.batteries_of([kind])[0], error, place, how, signals)
            raise
        if given["print_config"]:
            print_config(_settings(options, name))
            return 0
        ending = _serve(found, options, place, how, signals)
    except SidecarError as error:
        write_termination_message(given["termination_log"], str(error))
        raise
    return finish(f"{NAME} {kind}", ending, given["termination_log"])


def _read(kind: Kind[Any], document: str, name: str, place: Place) -> Any:
    if kind.read is None:
        raise ConfigurationError(f"the battery {kind.name!r} has a command of its own, and reads no document")
    return kind.read(document, name, place)


def _serve(kind: Kind[Any], options: Any, coordination: str, how: host.Options, signals: process.SignalQueue) -> Ending:
    participant = protocol.batteries_of([kind.name])[0]
    with Directory(coordination) as directory:
        return host.serve(
            directory,
            participant,
            lambda progress: kind.open(options, progress),
            how,
            signals,
            lambda line: complain(f"{NAME} {kind.name}", line),
        )


def _document(path: str) -> tuple[str, str]:
    """Return the parameters, and what they are called."""
    if not path:
        return os.environ.get(PARAMETERS, ""), PARAMETERS
    try:
        return read_parameters(path), path
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected text in UTF-8") from None


def _earlier(coordination: str, kind: str) -> Mapping[str, Any] | None:
    """Return what an earlier life was ready with, None where there was none, or nowhere to look."""
    with suppress(SidecarError), Directory(coordination) as directory:
        record = directory.record(kind)
        return record.payload if record is not None else None
    return None


def _settings(options: Any, name: str) -> list[tuple[str, str, str]]:
    keys = [each.name for each in fields(options)] if is_dataclass(options) else list(vars(options))
    return [(key, str(getattr(options, key)), name) for key in keys]
