"""`sidecar parameters`: a configuration of the datamon sidecars as shell variables. Parse, one library call, print.

Faults are raised as ParametersError; whoever runs the command prints them and ends with their status.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

import click

from sidecar.errors import Fault, ParametersError

FUSE_EPILOG = """\b
Python: sidecar.parameters.fuse.fuse_document, sidecar.parameters.exports.fuse_variables
Exit status: 0; 65 it is malformed, every fault with its place.
Example:
  eval "$(sidecar parameters fuse < fuse-params.yaml)"
"""
POSTGRES_EPILOG = """\b
Python: sidecar.parameters.postgres.postgres_document, sidecar.parameters.exports.postgres_variables
Exit status: 0; 65 it is malformed, every fault with its place.
Example:
  eval "$(sidecar parameters postgres < pgparams.yaml)"
"""


@click.group(epilog='Example:  eval "$(sidecar parameters fuse < fuse-params.yaml)"')
def parameters() -> None:
    """Print a YAML configuration as variables for a shell."""


@parameters.command(epilog=FUSE_EPILOG)
@click.argument("file", type=click.File(encoding="utf-8"), default="-")
def fuse(file: TextIO) -> None:
    """Print the fuse configuration in FILE (default: stdin) as lines export dm_fuse_...='...'."""
    from sidecar.parameters.exports import fuse_variables
    from sidecar.parameters.fuse import fuse_document

    _print(fuse_variables(fuse_document(_read(file), _name(file))))


@parameters.command(epilog=POSTGRES_EPILOG)
@click.argument("file", type=click.File(encoding="utf-8"), default="-")
def postgres(file: TextIO) -> None:
    """Print the postgres configuration in FILE (default: stdin) as lines export dm_pg_...='...'."""
    from sidecar.parameters.exports import postgres_variables
    from sidecar.parameters.postgres import postgres_document

    _print(postgres_variables(postgres_document(_read(file), _name(file))))


def _read(file: TextIO) -> str:
    """Return the text of `file`, one character above the limit where it is longer."""
    from sidecar.parameters.document import LIMIT

    try:
        return file.read(LIMIT + 1)
    except UnicodeDecodeError:
        raise ParametersError([Fault(_name(file), "", "expected text in UTF-8")]) from None


def _name(file: TextIO) -> str:
    return "stdin" if file.name in ("<stdin>", "-") else str(file.name)


def _print(variables: dict[str, str]) -> None:
    from sidecar.parameters.exports import export_lines

    lines: Iterable[str] = export_lines(variables)
    for line in lines:
        click.echo(line)
