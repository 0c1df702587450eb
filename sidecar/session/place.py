"""Where things may be in a session's container: what a path means below its mount, and which mounts do not get along. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from sidecar.parameters.settings import path

# What a mount would take away from the container: these and all below them; and these, below which there is room.
CLOSED = ("/bin", "/boot", "/dev", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys")
HOLDING = (
    "/etc", "/home", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/local",
    "/usr/local/bin", "/usr/local/lib", "/usr/sbin", "/usr/share", "/var", "/var/lib", "/var/log", "/var/run", "/var/tmp",
)  # fmt: skip


def mount_path(text: str) -> str:
    """Return the path of a mount, normalized; ValueError where nothing may be mounted."""
    found = path(text)
    if ":" in found:
        raise ValueError(f"expected a path without ':', which Kubernetes refuses, not {text!r}")
    if any(found == each or found.startswith(f"{each}/") for each in CLOSED) or found in HOLDING:
        raise ValueError(f"{found} is the system's: expected a directory of its own, such as /opt/tool")
    return found


def below(mount: str, text: str) -> str:
    """Return the path that `text` means below `mount`, or the absolute one that it is; ValueError where it leaves the mount."""
    if "\0" in text:
        raise ValueError("expected a path without the character NUL")
    if text.startswith("/"):
        return text
    found = posixpath.normpath(posixpath.join(mount, text))
    if found != mount and not found.startswith(f"{mount}/"):
        raise ValueError(f"{text!r} leaves the mount: expected a path below {mount}")
    # A slash at the end says that a directory is meant.
    return f"{found}/" if text.endswith("/") and found != mount else found


def clashes(paths: Iterable[str]) -> list[tuple[int, int]]:
    """Return which of normalized paths are equal to, or lie in, another: pairs of positions, the outer one first.

    In linear time: each looks for its own ancestors among all.
    """
    known: dict[str, int] = {}
    listed = list(paths)
    found = []
    for position, each in enumerate(listed):
        if each in known:
            found.append((known[each], position))
        else:
            known[each] = position
    for position, each in enumerate(listed):
        outer = posixpath.dirname(each)
        while len(outer) > 1:
            if outer in known:
                found.append((known[outer], position))
                break
            outer = posixpath.dirname(outer)
    return found
