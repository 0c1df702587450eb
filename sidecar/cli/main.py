"""`sidecar`: the commands, each imported only when it is named, so that starting one does not pay for all."""

from __future__ import annotations

import importlib
from typing import NoReturn

import click
from click.core import ParameterSource

from sidecar import __version__
from sidecar.cli.entry import enter
from sidecar.cli.server import SPEAK

# By name: where the command is, and what it does in a few words (asking the command itself would import it).
COMMANDS = {
    "run": ("sidecar.cli.run:run", "Run a command with its inputs before and its outputs saved after, on this machine."),
    "status": ("sidecar.cli.status:status", "Explain a running or finished pod from its coordination directory."),
    "once": ("sidecar.cli.once:once", "Run a program at most once, and give back what came of it."),
    "session": ("sidecar.cli.session:session", "Compose a pod from a base image and any number of artifacts."),
    "function": ("sidecar.cli.function:function", "Run source code that was just handed over, in a sandbox."),
    "image": ("sidecar.cli.image:image", "Tell which images are built and pushed, and build and push them."),
    "serve": ("sidecar.cli.serve:serve", "Serve all that goes on here over HTTP, with a page that shows it."),
    "bundle": ("sidecar.cli.bundle:bundle", "Keep, fetch and look at bundles of files."),
    "repo": ("sidecar.cli.bundle:repo", "Make and list repositories of bundles."),
    "label": ("sidecar.cli.bundle:label", "Move and list the labels of bundles."),
    "store": ("sidecar.cli.store:store", "Check a store, and remove what no bundle needs."),
    "parameters": ("sidecar.cli.parameters:parameters", "Turn parameter files into exports for a shell."),
    "completion": ("sidecar.cli.completion:completion", "Print the completion script of a shell."),
}


class Commands(click.Group):
    """A group whose commands are imported when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, said) for name, (_, said) in COMMANDS.items()])


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nExample:  sidecar run --source weather@latest:in --dest out:results -- python3 analyse.py in out",
)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
@click.option(
    "--server",
    metavar="URL",
    envvar="SIDECAR_SERVER",
    show_envvar=True,
    help=f"Ask a `sidecar serve` instead, with the token in SIDECAR_TOKEN: {', '.join(SPEAK)}.",
)
@click.pass_context
def cli(ctx: click.Context, server: str | None) -> None:
    """Get an application its input before it starts, run it, and see its output safe before it ends.

    The two commands that stand in containers are wrap_application and wrap_datamon.
    """
    if server and ctx.get_parameter_source("server") is ParameterSource.COMMANDLINE and ctx.invoked_subcommand not in SPEAK:
        raise click.UsageError(f"--server: {ctx.invoked_subcommand} is done here; a server is asked by {', '.join(SPEAK)}.")


def main() -> NoReturn:
    """The command `sidecar`."""
    enter(cli, "sidecar")


if __name__ == "__main__":
    main()
