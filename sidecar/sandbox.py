"""A sandbox for one command, and the options of bubblewrap that make it. Pure.

The root is an empty tmpfs that everything is put into: never is a directory of the machine's bound as the root, because bwrap
makes what it mounts on where that is missing, which would be in that very directory. For the same reason whoever describes a
sandbox sees to it that each target lies on a `Scratch` of the sandbox, or is there already, and that no link leads to it.

The options go to bwrap through a descriptor (--args), not its command line, which everybody on the machine can read: there are
secrets among the variables. The command stands on the command line, as does that of any process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

HOSTNAME_LONGEST = 63


@dataclass(frozen=True)
class Bind:
    """A directory or file of the machine's that is seen at `target`, with all that is mounted below it."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class Link:
    """A symbolic link at `target` that says `text`."""

    text: str
    target: str


@dataclass(frozen=True)
class Scratch:
    """An empty directory in memory, which is gone with the sandbox; one that is `sealed` holds what is put there, and no more."""

    target: str
    sealed: bool = False


Entry = Bind | Link | Scratch


@dataclass(frozen=True)
class Sandbox:
    """What one command sees: the entries of its root in the order in which they are put there, and who it is.

    Its user is the caller, under the number `user`: without privileges, and without a way to any. It has PID namespace, IPC and
    name of its own, and the machine's network. /proc and /dev are there by themselves; the root itself is read-only.
    """

    entries: tuple[Entry, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: int = 0
    group: int = 0
    hostname: str = ""


def options(sandbox: Sandbox) -> list[str]:
    """Return what bwrap is told through --args: all but the command, which becomes PID 1 and dies with bwrap's parent."""
    said = ["--unshare-user", "--uid", str(sandbox.user), "--gid", str(sandbox.group)]
    said += ["--unshare-pid", "--as-pid-1", "--die-with-parent", "--unshare-ipc", "--cap-drop", "ALL"]
    if sandbox.hostname:
        said += ["--unshare-uts", "--hostname", sandbox.hostname[:HOSTNAME_LONGEST].rstrip("-.")]
    said += ["--proc", "/proc", "--dev", "/dev"]
    for entry in sandbox.entries:
        said += _entry(entry)
    for entry in sandbox.entries:
        if isinstance(entry, Scratch) and entry.sealed:
            said += ["--remount-ro", entry.target]
    said += ["--remount-ro", "/", "--chdir", sandbox.directory, "--clearenv"]
    for name, value in sandbox.environment.items():
        said += ["--setenv", name, value]
    return said


def command_line(program: str, options: int, status: int, command: Sequence[str]) -> list[str]:
    """Return bwrap's command line: options are read from one descriptor, and how the command does is written to the other."""
    return [program, "--args", str(options), "--json-status-fd", str(status), "--", *command]


def _entry(entry: Entry) -> list[str]:
    match entry:
        case Bind(source, target, read_only):
            return ["--ro-bind" if read_only else "--bind", source, target]
        case Link(text, target):
            return ["--symlink", text, target]
        case Scratch(target):
            # Anybody may write in it, as in a container's own layer; but for what it holds, and where it is sealed.
            return ["--perms", "0755" if entry.sealed else "1777", "--tmpfs", target]
