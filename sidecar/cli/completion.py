"""`sidecar completion`: the script that a shell reads to complete what follows `sidecar`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(epilog='Example:  eval "$(sidecar completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL."""
    from sidecar.cli.main import cli  # main names this module

    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(cli, {}, "sidecar", "_SIDECAR_COMPLETE").source())
