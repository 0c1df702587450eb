"""`sidecar serve`: one server for images, runs, sessions and functions, with a page that shows them."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sidecar.cli.entry import complain
from sidecar.cli.function import INSTALLED, found_runtimes, runtimes_option
from sidecar.cli.image import factory_option, open_factory
from sidecar.cli.runners import to_start_here, which_runs
from sidecar.cli.server import token_of, token_option
from sidecar.errors import ConfigurationError, UsageError
from sidecar.functions.service import Service
from sidecar.session.led import LedRunner
from sidecar.session.machine import Machine
from sidecar.state import state_folder

if TYPE_CHECKING:
    from sidecar.factory.factory import Factory


@click.command(
    epilog="""\b
Exit status: 0 when it was asked to end; 2 usage, or a file cannot be read; 74 the address cannot be listened to, or state cannot
be kept; 78 others can reach it and there is no token, this machine cannot confine functions, or the extra [server] is missing.
Example:  sidecar serve --port 8080 --factory images/factory.yaml --runtimes images/runtimes""",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens; beyond the loopback it needs a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Which port it listens to.")
@token_option
@factory_option
@runtimes_option
@which_runs
def serve(host: str, port: int, token_file: str | None, factory: str, folders: tuple[str, ...], **where: Any) -> None:
    """Serve all that goes on here, over HTTP. Python: web.server.application.

    GET / is a page that shows it, /openapi.json its description. Images are there if there is a FILE that defines them, functions
    if there are runtimes. Without a token only processes of the same user may ask, from this machine.
    """
    try:
        from sidecar.web.serve import serve as serve_web
        from sidecar.web.server import Parts, application
    except ImportError:
        raise ConfigurationError("the server is not installed: pip install 'sidecar-toolkit[server]'") from None
    runner = to_start_here(**where)
    if not isinstance(runner, LedRunner):
        raise UsageError("--runner: sessions in a cluster are its API server's to tell; expected local or podman")
    token = token_of(token_file)
    images, functions = _images(factory), _functions(folders)
    state = state_folder({name: value for name, value in os.environ.items() if "://" not in value})
    opened = None if images is None else (lambda: nullcontext(images))
    parts = Parts(state, Machine(runner.folder), lambda: runner, opened, functions)
    serve_web(application(parts, token), host, port, token, lambda url: complain("sidecar", f"all that goes on here at {url}"))


def _images(file: str) -> Factory | None:
    """Return the factory of a file; None where there is none, and nobody has named one."""
    source = click.get_current_context().get_parameter_source("factory")
    if source is ParameterSource.DEFAULT and not os.path.exists(file):
        return None
    return open_factory(file)


def _functions(folders: tuple[str, ...]) -> Service | None:
    """Return the service of the runtimes that are named, or installed; None where there are none."""
    if not (folders or os.environ.get("SIDECAR_RUNTIMES") or os.path.isdir(INSTALLED)):
        return None
    return Service(found_runtimes(folders), 2 * (os.cpu_count() or 1))
