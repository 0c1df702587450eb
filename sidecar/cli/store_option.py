"""The option `--store`, the same in every command that reads or writes bundles, whose default is sidecar.store.place."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from sidecar.store.place import store_url as store_url

Function = TypeVar("Function", bound=Callable[..., Any])


def store_option(function: Function) -> Function:
    """Give a click command the option --store URL; its argument `store` is the URL."""
    return click.option(
        "--store",
        metavar="URL",
        default=lambda: store_url(os.environ),
        show_default="$SIDECAR_STORE, else sidecar/store in the user's data directory",
        help="Where bundles are: file:///srv/store, a plain path, or any URL that fsspec knows.",
    )(function)
