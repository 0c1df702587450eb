"""The server that commands speak to (`sidecar --server URL …`), and the token that is said to one, or asked for by one.

A token never stands on a command line, which everybody on the machine can read.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from sidecar.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from sidecar.web.client import Client

# The commands that have the same answers there as here; of `once` and `function` those that need nothing of this machine.
SPEAK = ("image", "session", "once", "function")

token_option = click.option(
    "--token-file", metavar="FILE", help="The bearer token that is asked for.  [default: $SIDECAR_TOKEN, if any]"
)


def token_of(file: str | None) -> str:
    """Return the token that a file holds, or else the environment; "" where there is none. It is never shown."""
    if file is None:
        return _checked("SIDECAR_TOKEN", os.environ.get("SIDECAR_TOKEN", ""))
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            token = opened.read().strip()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    if not token:
        raise ConfigurationError(f"{file} is empty: expected a token")
    return _checked(file, token)


def _checked(where: str, token: str) -> str:
    # With the end of the line that whoever wrote it has put there.
    token = token.strip()
    if not (token.isascii() and token.isprintable()):
        raise ConfigurationError(f"the token in {where} has characters that no header can say")
    return token


def server() -> Client | None:
    """Return the server that this command is to speak to; None where it is to do itself what it does."""
    context = click.get_current_context(silent=True)
    url = context and context.find_root().params.get("server")
    if not url:
        return None
    from sidecar.web.client import Client

    return Client(url, token_of(None))


def server_named() -> Client | None:
    """Return the server that the command line names: what runs once runs here, where SIDECAR_SERVER is set as well, and whoever
    looks for it then is not sent elsewhere."""
    return server() if is_named() else None


def done_here() -> None:
    """Refuse the server that the command line names: UsageError."""
    if is_named():
        raise UsageError(f"--server: {click.get_current_context().info_name} is done here, and asked of no server")


def is_named(context: click.Context | None = None) -> bool:
    """Tell whether a server is named on the command line, and not by the environment alone."""
    context = context or click.get_current_context(silent=True)
    if context is None or not (root := context.find_root()).params.get("server"):
        return False
    return root.get_parameter_source("server") is ParameterSource.COMMANDLINE
