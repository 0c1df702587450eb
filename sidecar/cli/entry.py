"""How a click command is entered from the shell and left again: one line for each fault, and the exit status that it has.

`wrap_application` is not entered here: it cannot afford click.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from sidecar.errors import USAGE, ParametersError, SidecarError

INTERRUPTED = 130
BROKEN_PIPE = 141  # 128 + SIGPIPE


def enter(command: click.Command, name: str) -> NoReturn:
    """Run `command` with the arguments of this process, and exit."""
    sys.exit(run(command, name))


def run(command: click.Command, name: str, obj: object = None) -> int:
    """Run `command` with the arguments of this process and return the exit status. What it returns itself is one; None is 0."""
    try:
        status = command.main(prog_name=name, standalone_mode=False, obj=obj)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        status = USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else name
        complain(name, f"{error.format_message()} See {where} --help.")
        status = USAGE
    except click.exceptions.Exit as error:
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except click.ClickException as error:
        complain(name, error.format_message())
        status = error.exit_code
    except ParametersError as error:
        for fault in error.faults:
            complain(name, str(fault))
        status = error.status
    except SidecarError as error:
        complain(name, str(error))
        status = error.status
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = BROKEN_PIPE
    return status or 0


def complain(name: str, message: str) -> None:
    """Say one line on stderr on behalf of the command `name`."""
    click.echo(f"{name}: {printable(message)}", err=True)


def printable(text: str) -> str:
    """Return `text` in one line, without what a terminal would obey: much of what is shown was written by others."""
    return "".join(c if c.isprintable() else "\ufffd" if c != "\n" else " " for c in text)
