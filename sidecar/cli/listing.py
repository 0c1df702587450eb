"""What commands print that look something up: JSON for programs, and columns for people.

What is printed for people was written by others, so it goes through `printable`; the keys of JSON are stable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from sidecar.cli.entry import printable

json_option = click.option("--json", "as_json", is_flag=True, help="Print it as JSON, for programs.")


def print_json(document: object) -> None:
    """Print a document on stdout, in one line."""
    import json  # 2 ms, which a replay of `once` would pay for nothing

    click.echo(json.dumps(document))


def print_table(rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print rows in columns as wide as what they hold; those numbered in `right` are flush right, the last is not padded."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = (cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row))
        click.echo("  ".join(cells).rstrip())
