"""A bundle as a read-only file system of the kernel, by FUSE, without a library.

protocol.py is what the kernel and a server say to each other (pure), server.py answers, mount.py mounts and unmounts.
"""

from sidecar.mount.mount import CannotMount, Mount, is_mounted, is_private, may_allow_other, take_away

__all__ = ["CannotMount", "Mount", "is_mounted", "is_private", "may_allow_other", "take_away"]
