"""What was written comes to its disk: begun while there is more to write, and waited for in the end.

The kernel begins by itself when pages have been dirty for some seconds. To begin at once and have the disk work meanwhile took
0.16 of 0.7 s off a populate of 345 MiB. Through ctypes: the standard library has neither call. tests/test_store_archive.py
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_WRITE = 2  # SYNC_FILE_RANGE_WRITE, linux/fs.h


def begin(fd: int, offset: int, size: int) -> None:
    """Have the kernel begin to write a part of a file. It is but a hint: where it is not known, as in gVisor, nothing happens."""
    _libc.sync_file_range(fd, ctypes.c_longlong(offset), ctypes.c_longlong(size), _WRITE)


def finish(fd: int) -> None:
    """Return when all that was written to a file's file system is on its disk. OSError where any of it could not be.

    `fd` should be open since before the first write: of those that have failed before it was, it tells nothing. syncfs(2)
    """
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
