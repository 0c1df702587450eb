"""Memory in place of a disk, for what tests make by the hundred megabytes and throw away: clusters, bundles of them, images.

Each test process that may have one gets a tmpfs of its own over /dev/shm, in a mount namespace of its own: nobody else sees it,
no two workers share it, and it ends with the last process in there, whoever is killed; so does whatever else a test mounts and
leaves. /dev/shm, because it is there everywhere, its path is short enough for sockets, and nothing has to be made or removed for
it. Where nothing may be mounted, `PLACE` is a directory of the disk.

To be called before anything is mounted, and before threads are started that should see it: others stay where they are.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = "2g"  # a bound for what runs away
CLONE_NEWNS = 0x20000
MS_NOSUID, MS_NODEV, MS_REC, MS_SLAVE = 0x2, 0x4, 0x4000, 0x80000

PLACE = "/tmp"


def take() -> None:
    """Have this process, and what it starts from now on, be in a mount namespace of its own, with a `PLACE` in memory."""
    global PLACE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        return
    # Not private: what is unmounted outside would stay mounted in here, and whoever serves it would wait for that.
    if libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if not libc.mount(b"tests", b"/dev/shm", b"tmpfs", MS_NOSUID | MS_NODEV, f"size={SIZE},mode=1777".encode()):
        PLACE = "/dev/shm"


@contextmanager
def folder() -> Iterator[Path]:
    """Yield a folder of `PLACE`: what tmp_path is, for those who would wait for a disk. It is closed to other users."""
    path = Path(tempfile.mkdtemp(prefix="sidecar-", dir=PLACE))
    try:
        yield path
    finally:
        shutil.rmtree(path)
