"""Puts a bundle at a directory, and takes it away again: mount(2) where that is allowed, fusermount3 where it is not.

    with Mount(open_reader(store, bundle), "in") as mount:
        mount.wait()

The server is a thread of this process. A child process would not be faster (the thread has the interpreter to itself wherever
this process only waits, as the commands and the battery do) and could die without anyone being told; as it is, the mount dies
with the battery, which its peers notice by its lease. The price: this very process must not read what it mounts by anything that
holds the interpreter's lock, such as memory maps and os.DirEntry.stat, for the server would wait for the lock and the lock for
the server. A Python program reads a bundle by itself with `bundle://` or sidecar.store.reader; a mount is for other processes.

Read-only, nosuid, nodev. Owners are not kept in bundles: everything is this user's, with the modes that were saved, as if it
were populated; `allow_other` lets others in as far as those modes do.

A server that is killed leaves a mount point where everything fails with ENOTCONN; the next Mount there takes it away first. It
is not unmounted automatically (fusermount3's auto_unmount): an application would then read an empty directory as its input.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import subprocess
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

from sidecar.errors import Unreachable
from sidecar.mount import protocol
from sidecar.mount.server import Server
from sidecar.store.format import FILE
from sidecar.store.reader import Reader
from sidecar.store.tree import open_shared

TYPE = "fuse.sidecar"
_DEVICE = "/dev/fuse"
_RDONLY, _NOSUID, _NODEV = 1, 2, 4  # of mount(2)
_DETACH, _NOFOLLOW = 2, 8  # of umount2(2)
_STALE = (errno.ENOTCONN, errno.ECONNABORTED)
_LONGEST_NAME = 255
_PATIENCE = 1.0  # seconds
_AHEAD = protocol.LARGEST_READ >> 10  # KiB that the kernel reads ahead: one READ
# OPEN and RELEASE cost some 25 us a file, and passing through saves some 250 us a MiB: it pays from this size on.
_WORTH_PASSING = 128 << 10

_libc = ctypes.CDLL(None, use_errno=True)
_mounts: weakref.WeakSet[Mount] = weakref.WeakSet()


class CannotMount(Unreachable):
    """A bundle cannot be mounted there: no FUSE, no permission, or the directory will not do. Populating may still work."""


class Mount:
    """A bundle that can be read below `path` until it is closed, or until somebody else unmounts it."""

    def __init__(self, reader: Reader, path: str | os.PathLike[str], *, allow_other: bool = False, shared: bool = False) -> None:
        """Mount on the directory `path`, which is made where it is missing, and must be empty; `reader` is closed at the end.

        `shared`: as in Store.populate. CannotMount.
        """
        self.path = os.path.abspath(path)
        self._reader = reader
        self._closing = threading.Lock()
        self._closed = False
        try:
            _check_names(reader)
            self._parent = self._open_parent(shared)
            try:
                self._mount(allow_other)
            except BaseException:
                os.close(self._parent)
                raise
        except BaseException:
            reader.close()
            raise

    def __enter__(self) -> Mount:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def passthrough(self) -> bool:
        """Whether the kernel reads files that are whole in the cache by itself."""
        return self.server.passthrough

    def wait(self, timeout: float | None = None) -> bool:
        """Return True once it is unmounted, by whomever; False after `timeout` seconds."""
        return self.server.over.wait(timeout)

    def close(self) -> None:
        """Unmount, also where files are open: who reads on is told ENOTCONN. May be called again, and from any thread."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._reader.close()
            root = self._unmount()
            self.server.stop()  # only now: unmounting asks, too
            if root is not None:
                # The serving thread sits in read(2) and lets go of the connection only when something is asked; this asks.
                with suppress(OSError):
                    os.fstatvfs(root)
                os.close(root)
            # Where another has detached it and somebody still reads, there is no way to ask: it ends with this process.
            self._thread.join(None if root is not None else _PATIENCE)
            os.close(self._parent)
            _mounts.discard(self)

    def _open_parent(self, shared: bool) -> int:
        """Return a descriptor of the directory that holds the mount point, which is there, empty and with nothing stale on it."""
        try:
            if not shared:
                self.path = os.path.realpath(self.path)
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
            parent, self._name = os.path.split(self.path)
            fd = open_shared(parent, make=True) if shared else os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if shared and _is_link(self._name, fd):
                os.close(fd)
                return self._open_behind_link()
        except OSError as error:
            raise CannotMount(f"{self.path}: {error.strerror}") from error
        try:
            with suppress(FileExistsError):
                os.mkdir(self._name, dir_fd=fd)
            _clear(fd, self._name, self.path)
        except OSError as error:
            os.close(fd)
            raise CannotMount(f"{self.path}: {error.strerror}") from error
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _open_behind_link(self) -> int:
        """Return the same where the mount point is a link, if it is one that may be followed: see open_shared."""
        fd = open_shared(self.path)
        self.path = os.readlink(f"/proc/self/fd/{fd}")
        os.close(fd)
        return self._open_parent(shared=False)

    def _mount(self, allow_other: bool) -> None:
        point = os.open(self._name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._parent)
        try:
            before = os.fstat(point).st_dev
            self._fd = _mount(point, self.path, allow_other)
        finally:
            os.close(point)
        self.server = Server(self._reader, self._fd, passthrough=_is_worth_passing(self._reader))
        try:
            self._thread = threading.Thread(target=self.server.run, name=f"mount {self.path}", daemon=True)
            self._thread.start()
            _mounts.add(self)
            self.server.initialised.wait()
            self._device = self._look(before)
        except BaseException:
            _unmount(self.path, self._parent, self._name)
            self.server.disconnect()
            raise
        device = f"{os.major(self._device)}:{os.minor(self._device)}"
        # Root alone may: for others the kernel reads 128 KiB ahead.
        with suppress(OSError), open(f"/sys/class/bdi/{device}/read_ahead_kb", "w", encoding="ascii") as file:
            file.write(str(_AHEAD))

    def _look(self, before: int) -> int:
        """Return the device of what is mounted now, which is not the one that was there `before`."""
        try:
            device = os.stat(self._name, dir_fd=self._parent, follow_symlinks=False).st_dev
        except OSError:
            device = before
        if self.server.over.is_set() or device == before:
            raise CannotMount(f"{self.path}: the kernel and this program do not understand each other")
        return device

    def _unmount(self) -> int | None:
        """Take the mount away; return a descriptor of its top, None where it was not there any more."""
        try:
            root = os.open(self._name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._parent)
        except OSError:
            return None
        try:
            ours = os.fstat(root).st_dev == self._device  # not what another has mounted there since
        except OSError as error:
            ours = error.errno in _STALE
        if not ours:
            os.close(root)
            return None
        _unmount(self.path, self._parent, self._name)
        return root


def _is_worth_passing(reader: Reader) -> bool:
    """Say whether files are large enough on average that passing them through pays, and whether there is where from."""
    sizes = [entry.size for entry in map(reader.tree.entry, reader.tree.nodes) if entry.type == FILE]
    return reader.has_cache and os.geteuid() == 0 and sum(sizes) > _WORTH_PASSING * len(sizes)


def may_allow_other() -> bool:
    """Say whether this user may mount with `allow_other`: root, and where /etc/fuse.conf says so, others."""
    if os.geteuid() == 0:
        return True
    try:
        with open("/etc/fuse.conf", encoding="utf-8", errors="replace") as file:
            return any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        return False


def take_away(path: str) -> None:
    """Unmount what killed servers of ours left at `path`; nothing else, and no failure where that cannot be."""
    parent, name = os.path.split(os.path.abspath(path))
    with suppress(OSError, CannotMount):
        fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _clear(fd, name, path)
        finally:
            os.close(fd)


def is_private(path: str) -> bool:
    """Say whether what is mounted at `path` stays unknown to other mount namespaces that see the directory: other containers.

    It lies on a volume, then, that is not shared: in Kubernetes, `mountPropagation: Bidirectional` is missing. What lies on the
    file system of `/` is no other container's either way.
    """
    folder, name = os.path.split(os.path.abspath(path))
    # With its name: it may be the top of the volume, under what a killed life has left there.
    real = os.fsencode(os.path.join(os.path.realpath(folder), name))
    left = (real, TYPE.encode())
    holding = [each for each in _mount_points() if _is_below(real, each.point) and (each.point, each.type) != left]
    found = max(reversed(holding), key=lambda each: len(each.point))  # of several on one point, the last is on top
    return found.point != b"/" and not found.shared


def _check_names(reader: Reader) -> None:
    for children in reader.tree.children.values():
        for name in children:
            if len(name) > _LONGEST_NAME:
                raise CannotMount(f"a name in the bundle is longer than {_LONGEST_NAME} bytes: {name[:40]!r}…")


def _clear(parent: int, name: str, path: str) -> None:
    """Take away what killed servers left on the mount point. OSError, CannotMount where the directory is not empty then."""
    while True:
        try:
            names = _names(name, parent)
            break
        except OSError as error:
            if error.errno not in _STALE or not _take_away(path, parent, name):
                raise
    if names:
        raise CannotMount(f"{path} is not empty: what is in it would be hidden")
    if is_mounted(os.path.join(os.readlink(f"/proc/self/fd/{parent}"), name)):
        raise CannotMount(f"{path}: a bundle is mounted there already")


def _is_link(name: str, parent: int) -> bool:
    try:
        os.readlink(name, dir_fd=parent)
    except OSError:
        return False
    return True


def _names(name: str, parent: int) -> list[str]:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


# --- the system --------------------------------------------------------------------------------------------------------


def _mount(point: int, path: str, allow_other: bool) -> int:
    """Mount on the directory with the descriptor `point`; return the descriptor of the connection. CannotMount."""
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if not isinstance(error, PermissionError):
            raise CannotMount(f"{path}: there is no FUSE here: {_DEVICE}: {error.strerror}") from error
        return _mount_by_helper(point, path, allow_other, error)
    try:
        options = f"fd={fd},rootmode=40755,user_id={os.geteuid()},group_id={os.getegid()},default_permissions"
        options += ",allow_other" if allow_other else ""
        # By its descriptor: whoever writes to the volume may have put a link there since we looked.
        target = f"/proc/self/fd/{point}".encode()
        if _libc.mount(b"sidecar", target, TYPE.encode(), ctypes.c_ulong(_RDONLY | _NOSUID | _NODEV), options.encode()) == 0:
            return fd
        number = ctypes.get_errno()
        os.close(fd)
    except BaseException:
        os.close(fd)
        raise
    refused = OSError(number, os.strerror(number))
    if number != errno.EPERM:
        raise CannotMount(f"{path}: {refused.strerror}") from refused
    return _mount_by_helper(point, path, allow_other, refused)


def _mount_by_helper(point: int, path: str, allow_other: bool, refused: OSError) -> int:
    """Have fusermount3, which is set-user-id root, mount on `point` and pass us the connection."""
    helper = shutil.which("fusermount3")
    if helper is None:
        raise CannotMount(f"{path}: mounting needs CAP_SYS_ADMIN, or fusermount3 (apt-get install fuse3)") from refused
    ours, theirs = socket.socketpair()
    with ours, theirs:
        options = "ro,nosuid,nodev,default_permissions,fsname=sidecar,subtype=sidecar" + (",allow_other" if allow_other else "")
        target = os.readlink(f"/proc/self/fd/{point}")
        done = subprocess.run(
            [helper, "-o", options, "--", target],
            env={"_FUSE_COMMFD": str(theirs.fileno()), "PATH": os.defpath},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().removeprefix("fusermount3: ")
            raise CannotMount(f"{path}: fusermount3: {said or f'status {done.returncode}'}") from refused
        theirs.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        raise CannotMount(f"{path}: fusermount3 passed no connection") from refused
    os.set_inheritable(fds[0], False)
    return fds[0]


def _unmount(path: str, parent: int, name: str) -> bool:
    """Detach what is mounted there, at once, whoever uses it; say whether that was done."""
    if _libc.umount2(os.fsencode(f"/proc/self/fd/{parent}/{name}"), _DETACH | _NOFOLLOW) == 0:
        return True
    helper = shutil.which("fusermount3")
    if ctypes.get_errno() != errno.EPERM or helper is None:
        return False
    return not subprocess.run([helper, "-u", "-z", "-q", "--", path], stderr=subprocess.DEVNULL, check=False).returncode


def _take_away(path: str, parent: int, name: str) -> bool:
    """Unmount what a killed server of ours left at `path`; say whether there was such a thing."""
    real = os.path.join(os.readlink(f"/proc/self/fd/{parent}"), name)
    return is_mounted(real) and _unmount(real if os.path.lexists(real) else path, parent, name)


def is_mounted(path: str) -> bool:
    """Say whether a bundle is mounted, or was and its server is gone, exactly at `path`, which holds no links."""
    return any(each.type == TYPE.encode() and each.point == os.fsencode(path) for each in _mount_points())


class _Point(NamedTuple):
    """A line of /proc/self/mountinfo: see proc(5)."""

    point: bytes
    type: bytes
    shared: bool


def _mount_points() -> Iterator[_Point]:
    """Yield what is mounted in our namespace; what lies on top comes later."""
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields, _, rest = line.partition(b" - ")
            _, _, _, _, point, _, *optional = fields.split()
            yield _Point(_unescape(point), rest.split()[0], any(each.startswith(b"shared:") for each in optional))


def _is_below(path: bytes, top: bytes) -> bool:
    return top == b"/" or path == top or path.startswith(top + b"/")


def _unescape(field: bytes) -> bytes:
    """Return a path of mountinfo, in which blanks, tabs, line feeds and backslashes are octal."""
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def _forget_in_child() -> None:
    """A forked child must not hold the connection: it would keep readers waiting for a server that has died."""
    for mount in list(_mounts):
        mount.server.disconnect()


os.register_at_fork(after_in_child=_forget_in_child)
