"""`sidecar store`: whether a store is sound, and what it need not hold.

Each command parses, makes one call of sidecar.store.Store, and prints: see bundle.py, whose habits these are.
"""

from __future__ import annotations

import click

from sidecar.cli.bundle import counted, ending
from sidecar.cli.listing import json_option, print_json
from sidecar.cli.progress import Progress
from sidecar.cli.store_option import store_option
from sidecar.errors import Corrupt
from sidecar.figures import amount
from sidecar.store import open_store


@click.group(epilog="Example:  sidecar store check --read-data")
def store() -> None:
    """Look after a store: check that it is sound, remove what no bundle refers to."""


@store.command(epilog=ending("65 something is damaged or missing", "sidecar store check --read-data"))
@click.option("--read-data", is_flag=True, help="Read every object, too, and compare it with its hash.")
@store_option
@json_option
def check(read_data: bool, store: str, as_json: bool) -> None:
    """Check that every record and manifest is whole and all that they refer to is there. Python: Store.check."""
    with Progress() as progress:
        found = open_store(store).check(progress, read_data=read_data)
    if as_json:
        print_json(found.as_json())
    else:
        held = (counted(found.repositories, "repository"), counted(found.bundles, "bundle"), counted(found.objects, "object"))
        click.echo(", ".join([*filter(None, held), amount(found.bytes)]))
        if found.unneeded:
            unneeded = f"{counted(found.unneeded, 'object')}, {amount(found.unneeded_bytes)}"
            click.echo(f"no bundle refers to {unneeded}; see sidecar store prune")
    if found.faults:
        raise Corrupt("\n".join(found.faults))


@store.command(epilog=ending("75 uploads are under way; 65 a bundle is damaged", "sidecar store prune --dry-run"))
@click.option("--dry-run", is_flag=True, help="Remove nothing; say what would be.")
@store_option
@json_option
def prune(dry_run: bool, store: str, as_json: bool) -> None:
    """Remove what no bundle refers to, such as what killed uploads left. Python: Store.prune.

    Nothing is removed while uploads are under way; one that was killed counts as such for an hour.
    """
    with Progress() as progress:
        removed = open_store(store).prune(progress, dry_run=dry_run)
    if as_json:
        print_json(removed.as_json())
        return
    what = [counted(removed.objects, "object"), counted(removed.manifests, "manifest")]
    verb = "would remove" if dry_run else "removed"
    click.echo(f"{verb} {', '.join([*filter(None, what), amount(removed.bytes)])}")
