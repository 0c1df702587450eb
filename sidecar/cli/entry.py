"""How a click command is entered from the shell and left again: one line for each fault, and the exit status that it has.

`wrap_application` is not entered here: it cannot afford click.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from typing import NoReturn, TextIO

import click
from click.shell_completion import shell_complete

from sidecar.errors import IO, USAGE, ParametersError, SidecarError

INTERRUPTED = 130
# Of 20,000 entries, that are made and kept, the collector made a tenth of the time of saving them and half of that of reading
# their manifest: it looks at all of them again and again. Most of what we make is no cycle.
_COLLECT_EACH = 50_000
BROKEN_PIPE = 141  # 128 + SIGPIPE


def enter(command: click.Command, name: str) -> NoReturn:
    """Run `command` with the arguments of this process, and exit."""
    gc.freeze()
    gc.set_threshold(_COLLECT_EACH)
    status = run(command, name)
    if sys.stderr is not None:
        try:
            sys.stderr.flush()
        except OSError:
            _drop(sys.stderr)
    sys.exit(status)


def run(command: click.Command, name: str, obj: object = None) -> int:
    """Run `command` with the arguments of this process and return the exit status. What it returns itself is one; None is 0."""
    try:
        # Not command.main, which makes a status of its own, 1, of a pipe that nobody reads.
        if instruction := os.environ.get(variable := f"_{name.upper()}_COMPLETE"):
            return shell_complete(command, {}, name, variable, instruction)
        with command.make_context(name, sys.argv[1:], obj=obj) as context:
            status = command.invoke(context)
        if sys.stdout is not None:  # as where it was closed when we started
            sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        _say(error.format_message())
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
        status = _dropped(BROKEN_PIPE)
    except SystemExit as error:
        # What rich makes of a broken pipe.
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        status = _dropped(BROKEN_PIPE)
    except OSError as error:
        # What cannot be read or written elsewhere, the library tells; this is where our output goes.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO) or error.filename is not None:
            raise
        complain(name, f"the output cannot be written: {error.strerror}")
        status = _dropped(IO)
    return status or 0


def _dropped(status: int) -> int:
    """Return `status`, all output being dropped from now on."""
    _drop(sys.stdout)
    return status


def _drop(stream: TextIO) -> None:
    """Send what a stream still holds nowhere: Python would try once more while it exits, and end with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def complain(name: str, message: str) -> None:
    """Say one line on stderr on behalf of the command `name`; that nobody can hear it is no failure."""
    _say(f"{name}: {printable(message)}")


def _say(text: str) -> None:
    try:
        click.echo(text, err=True)
    except OSError:
        pass


def printable(text: str) -> str:
    """Return `text` in one line, without what a terminal would obey: much of what is shown was written by others."""
    return "".join(c if c.isprintable() else "\ufffd" if c != "\n" else " " for c in text)
