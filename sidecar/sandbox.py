"""A sandbox for one command, and the options of bubblewrap that make it. Pure.

The root is an empty tmpfs that everything is put into, or a layer: a tmpfs over a directory, as an overlay. Never is a directory
of the machine's bound as the root, because bwrap makes what it mounts on where that is missing, which would be in that very
directory. For the same reason whoever describes a sandbox sees to it that each target lies in a layer, or on a `Scratch` of the
sandbox, or is there already, and that no link leads to it.

The options go to bwrap through a descriptor (--args), not its command line, which everybody on the machine can read: there are
secrets among the variables. The command stands on the command line, as does that of any process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

HOSTNAME_LONGEST = 63
# Begins bwrap in namespaces where the folder $1 holds a layer over the directory $2; for bwrap 0.8 knows no overlays. What is
# mounted is seen there and in the sandbox alone, and gone with them. Paths are no options of an overlay: a comma may be in them.
_LAYER = """\
set -e
mount -t tmpfs -o mode=0755 none "$1"
cd "$1"
mkdir lower upper work root
mount --rbind "$2" lower
mount -t overlay -o userxattr,lowerdir=lower,upperdir=upper,workdir=work none root
cd /
shift 2
exec "$@"
"""


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
    """An empty directory in memory, which is gone with the sandbox; one that is `sealed` holds what is put there, and no more.

    It takes `size` bytes, or half of the machine's memory where that is 0.
    """

    target: str
    sealed: bool = False
    size: int = 0


@dataclass(frozen=True)
class Data:
    """A file at `target` that can be read alone, or run too; it holds what the descriptor `fd`, which bwrap inherits, holds."""

    fd: int
    target: str
    executable: bool = False


Entry = Bind | Link | Scratch | Data


@dataclass(frozen=True)
class Sandbox:
    """What one command sees: the entries of its root in the order in which they are put there, and who it is.

    Its user is the caller, under the number `user`: without privileges, and without a way to any. It has PID namespace, IPC and
    name of its own, and the machine's network unless it is `alone`. /proc and /dev are there by themselves. The root is the layer
    whose path is `layer`, or else holds nothing but the entries; nothing can be written in it where it is `sealed`. The command
    is PID 1 where it is to be `first`; otherwise signals mean to it what they mean anywhere, and bwrap reaps what it leaves.

    Who is alone has no terminal, no network, not even that of a loopback, cannot make namespaces of its own, and writes nothing
    in /dev but in the entries there. `filter` is a descriptor that says which calls of the kernel may be made (seccomp).
    """

    entries: tuple[Entry, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: int = 0
    group: int = 0
    hostname: str = ""
    layer: str = ""
    sealed: bool = True
    first: bool = True
    alone: bool = False
    filter: int = -1


def options(sandbox: Sandbox) -> list[str]:
    """Return what bwrap is told through --args: all but the command, which dies with bwrap's parent."""
    said = ["--unshare-user", "--uid", str(sandbox.user), "--gid", str(sandbox.group), "--unshare-pid"]
    said += ["--as-pid-1"] if sandbox.first else []
    said += ["--die-with-parent", "--unshare-ipc", "--cap-drop", "ALL"]
    if sandbox.alone:
        said += ["--unshare-net", "--unshare-cgroup-try", "--disable-userns", "--new-session"]
    if sandbox.hostname:
        said += ["--unshare-uts", "--hostname", sandbox.hostname[:HOSTNAME_LONGEST].rstrip("-.")]
    if sandbox.layer:
        said += ["--bind", sandbox.layer, "/"]
    said += ["--proc", "/proc", "--dev", "/dev"]
    for entry in sandbox.entries:
        said += _entry(entry)
    for entry in sandbox.entries:
        if isinstance(entry, Scratch) and entry.sealed:
            said += ["--remount-ro", entry.target]
    if sandbox.alone:
        said += ["--remount-ro", "/dev"]
    if sandbox.sealed:
        said += ["--remount-ro", "/"]
    if sandbox.filter >= 0:
        said += ["--seccomp", str(sandbox.filter)]
    said += ["--chdir", sandbox.directory, "--clearenv"]
    for name, value in sandbox.environment.items():
        said += ["--setenv", name, value]
    return said


def command_line(program: str, options: int, status: int, command: Sequence[str], gate: int = -1) -> list[str]:
    """Return bwrap's command line: options are read from one descriptor, and how the command does is written to another.

    Before it does anything bwrap reads `gate` to its end, if there is one.
    """
    wait = ["--args", str(gate)] if gate >= 0 else []
    return [program, *wait, "--args", str(options), "--json-status-fd", str(status), "--", *command]


def in_layer(folder: str, directory: str, command: Sequence[str]) -> list[str]:
    """Return the command line of bwrap, `command`, with a layer over `directory`, which is `layer_of(folder)` there."""
    return ["unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c", _LAYER, "layer", folder, directory, *command]


def layer_of(folder: str) -> str:
    """Return where the layer is that is made in `folder`."""
    return f"{folder}/root"


def _entry(entry: Entry) -> list[str]:
    match entry:
        case Bind(source, target, read_only):
            return ["--ro-bind" if read_only else "--bind", source, target]
        case Link(text, target):
            return ["--symlink", text, target]
        case Data(fd, target, executable):
            return ["--perms", "0555" if executable else "0444", "--ro-bind-data", str(fd), target]
        case Scratch(target):
            size = ["--size", str(entry.size)] if entry.size else []
            # Anybody may write in it, as in a container's own layer; but for what it holds, and where it is sealed.
            return [*size, "--perms", "0755" if entry.sealed else "1777", "--tmpfs", target]
