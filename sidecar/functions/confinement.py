"""What a worker is confined by: the sandbox that it sees, and the limits that it has. Pure.

The words in front of bwrap are programs of util-linux, not code between fork and exec, which is unsafe in a server with threads.
Limits on processes count those of a user, in all of its sandboxes, and do not count for root: so each worker that runs at a time
has a user of its own. RLIMIT_DATA bounds memory, not RLIMIT_AS: Node reserves far more addresses than it uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.functions.answer import Asked, Limits
from sidecar.sandbox import Bind, Data, Entry, Link, Sandbox, Scratch

SCRIPT, SOURCE = "/opt/runtime.sh", "/code/source"
_PATH = "/usr/local/bin:/usr/bin:/bin"
_NOBODY = 65534
# Of two seconds: the first tells the program, the second ends it.
_SECONDS_TO_HEAR = 1


def confined(limits: Limits, user: int | None, command: Sequence[str]) -> list[str]:
    """Return the command line of bwrap, `command`, under limits, and as `user` where the caller may choose (None: it may not)."""
    who = ["--reuid", str(user), "--regid", str(user), "--clear-groups"] if user is not None else []
    return [
        "setpriv", *who, "--no-new-privs", "--inh-caps=-all",
        "prlimit", f"--cpu={limits.cpu}:{limits.cpu + _SECONDS_TO_HEAR}", f"--data={limits.data}", f"--nproc={limits.processes}",
        f"--nofile={limits.files}", f"--fsize={limits.file}", "--core=0",
        *command,
    ]  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """What workers have of a machine: `bwrap`, the `system` that they see, and `filter`, which says what calls of the kernel they
    make. In a container, the engine may keep them from a host name of their own.
    """

    bwrap: str
    system: tuple[Entry, ...]
    filter: bytes
    hostname: str = "function"


def sandbox(asked: Asked, machine: Machine, script: int, source: int, calls: int) -> Sandbox:
    """Return what a worker sees; the descriptors hold the runtime's script, the source, and the filter."""
    return Sandbox(
        (
            *machine.system,
            Data(script, SCRIPT, executable=True),
            Data(source, SOURCE),
            Scratch("/dev/shm", size=asked.limits.scratch),
            Scratch("/tmp", size=asked.limits.scratch),
        ),
        {"PATH": _PATH, "HOME": "/tmp", "LANG": "C.UTF-8", "CONTEXT": asked.context},
        "/tmp",
        _NOBODY,
        _NOBODY,
        machine.hostname,
        first=False,
        alone=True,
        filter=calls,
    )


def command(asked: Asked) -> list[str]:
    """Return what runs in the sandbox."""
    return [SCRIPT, SOURCE, *asked.arguments]


def links(found: Sequence[tuple[str, str]]) -> tuple[Entry, ...]:
    """Return the system: programs and libraries, read-only, and none of the machine's own files; `found` says where the links
    lead that /bin and its like are, "" being a directory."""
    return (Bind("/usr", "/usr"), *(Link(text, path) if text else Bind(path, path) for path, text in found))
