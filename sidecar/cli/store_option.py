"""The option `--store`, the same in every command that reads or writes bundles, and where bundles are when nobody says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from sidecar.errors import ConfigurationError

Function = TypeVar("Function", bound=Callable[..., Any])


def store_url(environment: Mapping[str, str]) -> str:
    """Return the URL of the store: SIDECAR_STORE, else `sidecar/store` in the user's data directory, as XDG finds that.

    ConfigurationError where neither SIDECAR_STORE, XDG_DATA_HOME nor HOME is set.
    """
    if environment.get("SIDECAR_STORE"):
        return environment["SIDECAR_STORE"]
    data = environment.get("XDG_DATA_HOME", "")
    # Relative paths in it are to be ignored, says the XDG base directory specification.
    if not os.path.isabs(data):
        home = environment.get("HOME", "")
        if not os.path.isabs(home):
            raise ConfigurationError("there is no HOME to keep a store in; name one with --store URL or SIDECAR_STORE")
        data = os.path.join(home, ".local", "share")
    return "file://" + os.path.join(data, "sidecar", "store")


def store_option(function: Function) -> Function:
    """Give a click command the option --store URL; its argument `store` is the URL."""
    return click.option(
        "--store",
        metavar="URL",
        default=lambda: store_url(os.environ),
        show_default="$SIDECAR_STORE, else sidecar/store in the user's data directory",
        help="Where bundles are: file:///srv/store, a plain path, or any URL that fsspec knows.",
    )(function)
