"""`sidecar bundle mount`: a bundle at a directory, until this process is told to end or somebody else unmounts it.

Until there is a mount, signals end the process as they end any; from just before it on they are queued, so none leaves it behind.
"""

from __future__ import annotations

import json
import os
import select
import threading
from typing import TYPE_CHECKING

import click

from sidecar import process
from sidecar.cli.arguments import parse_ref, parse_size
from sidecar.cli.entry import printable
from sidecar.cli.store_option import store_option
from sidecar.figures import amount, counted
from sidecar.store import Bundle, Reference, open_store

if TYPE_CHECKING:
    from sidecar.mount import Mount

_ENDS = (process.SIGTERM, process.SIGINT, process.SIGHUP, process.SIGQUIT)


@click.command(
    epilog="\b\nExit status: 0; 66 no such bundle; 65 it is damaged; 2 usage; 74 no way to the store, or to mount there.\n"
    "Example:  sidecar bundle mount weather@latest in --cache /var/cache/bundles"
)
@click.argument("ref", type=parse_ref)
@click.argument("directory", metavar="DIR", type=click.Path())
@store_option
@click.option("--cache", metavar="DIR", default="", help="Keep what is read in DIR, also for later mounts.")
@click.option("--cache-size", metavar="SIZE", type=parse_size, default="10G", show_default=True, help="How much is kept there.")
@click.option("--allow-other", is_flag=True, help="Let other users in, as far as the files' modes do.")
@click.option("--foreground", is_flag=True, help="Stay in the foreground; this is what it does anyway.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, for programs.")
def mount(
    ref: Reference,
    directory: str,
    store: str,
    cache: str,
    cache_size: int,
    allow_other: bool,
    foreground: bool,  # noqa: ARG001  # for scripts that say so aloud
    as_json: bool,
) -> None:
    """Have the bundle REF in DIR for reading, without downloading it, until SIGTERM or Ctrl-C. Python: sidecar.mount.Mount.

    Prints one line once it can be read. DIR is made where it is missing, and must be empty. Every byte is verified; one that is
    damaged cannot be read (EIO), and is told on stderr.
    """
    from sidecar.mount import Mount
    from sidecar.store.cache import Cache
    from sidecar.store.reader import open_reader

    opened = open_store(store)
    bundle = opened.resolve(ref.repo, label=ref.label, bundle=ref.bundle)
    reader = open_reader(opened, bundle, cache=Cache(os.path.abspath(cache), cache_size) if cache else None)
    signals = process.SignalQueue(_ENDS)
    with Mount(reader, directory, allow_other=allow_other) as mounted:
        _announce(bundle, mounted.path, as_json)
        _wait(mounted, signals)


def _announce(bundle: Bundle, path: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(bundle.as_json() | {"path": path}))
    else:
        click.echo(printable(f"{bundle.reference} is mounted at {path}: {counted(bundle.files, 'file')}, {amount(bundle.bytes)}"))


def _wait(mounted: Mount, signals: process.SignalQueue) -> None:
    """Return when a signal came that ends us, or the mount is gone."""
    gone, tell = os.pipe2(os.O_CLOEXEC)

    def watch() -> None:
        mounted.wait()
        os.write(tell, b"!")

    threading.Thread(target=watch, daemon=True).start()
    poll = select.poll()
    poll.register(gone, select.POLLIN)
    poll.register(signals.fd, select.POLLIN)
    while not signals.drain():
        if any(fd == gone for fd, _ in poll.poll()):
            return
