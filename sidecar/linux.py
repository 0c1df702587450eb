"""What Linux offers and Python's standard library does not reach: inotify, and two options of prctl.

Through ctypes (2 ms of import). Where there is no ctypes, as in a static build, a module `_sidecar_linux` with the same three
functions stands in. Everything raises OSError, nothing else.
"""

from __future__ import annotations

import os

IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_TO, IN_CREATE = 0x4, 0x8, 0x80, 0x100
IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF = 0x200, 0x400, 0x800
IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED = 0x2000, 0x4000, 0x8000
IN_ONLYDIR, IN_DONT_FOLLOW = 0x1000000, 0x2000000
IN_NONBLOCK, IN_CLOEXEC = 0o4000, 0o2000000

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

try:
    from _sidecar_linux import inotify_add_watch as inotify_add_watch  # type: ignore[import-not-found]
    from _sidecar_linux import inotify_init as inotify_init
    from _sidecar_linux import prctl as prctl
except ImportError:
    import ctypes

    _libc = ctypes.CDLL(None, use_errno=True)

    def _checked(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def inotify_init() -> int:  # type: ignore[no-redef,unused-ignore]
        """Return a new inotify descriptor, non-blocking, closed on exec."""
        return _checked(_libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC))

    def inotify_add_watch(fd: int, path: bytes, mask: int) -> int:
        """Watch `path` for `mask`; return the watch's number."""
        return _checked(_libc.inotify_add_watch(fd, path, mask))

    def prctl(option: int, argument: int) -> None:
        """Set one option of this process (one that takes one number)."""
        _checked(_libc.prctl(option, ctypes.c_ulong(argument), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def end_with(parent: int) -> bool:
    """Have this process, a child of `parent`, killed when that dies; False where it has died already."""
    try:
        prctl(PR_SET_PDEATHSIG, 9)
    except OSError:
        pass  # refused by some emulators
    return os.getppid() in (parent, 0)  # 0: the parent is in another PID namespace
