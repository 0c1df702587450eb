"""Answers the kernel's questions about one bundle, read from /dev/fuse, in one thread.

Why the raw protocol and one thread: DESIGN.md has the figures. What makes it quick: attributes travel with listings
(READDIRPLUS); names and attributes hold for ever, also that a name is absent, for a bundle never changes; OPEN and OPENDIR are
refused once with ENOSYS, whereupon the kernel opens files without asking and keeps their pages; content goes from the buffer
where it was verified to the kernel without a copy. The serving thread never waits for a store: what is not at hand is answered
by the thread that brings it.

Where files are large on average and the kernel can do it (Linux 6.9, CAP_SYS_ADMIN), OPEN is answered instead, and a file that
is whole in the cache is passed through: the kernel reads the cache's file itself. An inode that is open in one way cannot be
opened in the other (the kernel answers EIO), so the first open decides until the last one is closed.

Whatever ends this thread, the connection is closed: who reads is told ENOTCONN and does not hang.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import stat
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from sidecar.errors import SidecarError, Unreachable
from sidecar.mount import protocol as fuse
from sidecar.store.format import DIRECTORY, FILE, LINK, Entry
from sidecar.store.reader import ROOT, Reader

_KINDS = {DIRECTORY: stat.S_IFDIR, LINK: stat.S_IFLNK}
_RESTORED = 0o1777  # as when populating: no set-user-id, no set-group-id
_LONGEST_TARGET = 4095  # what the kernel takes as a link's target
_TOLD = 1000  # different complaints; a damaged store must not fill the log's disk
# Before the kernel tells a program that something cannot be read, it asks again, at once, for the pages the program waits for.
# For so many seconds it gets the same answer: else who reads would wait for an absent store twice as long as was meant.
_ASKED_AGAIN = 1.0
# SETATTR SYMLINK MKNOD MKDIR UNLINK RMDIR RENAME LINK WRITE SETXATTR REMOVEXATTR CREATE FALLOCATE RENAME2 TMPFILE: they come only
# where somebody has remounted the file system for writing.
_WRITING = {4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 51}
_SIGKILL = 1 << 8
# Seconds to look for the next request before going to sleep, as long as requests come that fast. Sleeping and waking again took
# 40 microseconds here: for each of 20,000 small files, as long as all else that was done for it.
_SPIN = 200e-6
_LIST_AHEAD = 300  # entries: half a millisecond for which nobody else is answered
_U64 = (1 << 64) - 1
_NOTHING = (0,) * 22

_logger = logging.getLogger(__name__)


class Server:
    """Serves a reader's bundle on a descriptor of /dev/fuse that is mounted, or about to be."""

    def __init__(self, reader: Reader, fd: int, *, passthrough: bool) -> None:
        """Serve until told to stop; `passthrough` only asks for it."""
        self._reader, self._tree, self._fd = reader, reader.tree, fd
        self._wanted = passthrough
        self._owner = os.geteuid(), os.getegid()
        self._stopping = False
        self._unread: dict[int, int] = {}  # READs that wait for the store: request, process
        self._refused: deque[tuple[int, int, int, float]] = deque(maxlen=64)  # what it did not give: node, from, to, until when
        self._open: dict[
            int, list[int]
        ] = {}  # nodes that are open: how often, and the kernel's id of what is passed through, or 0
        self._listing: tuple[int, list[tuple[bytes, int]]] = 0, []
        self._encoded: tuple[int, list[bytes]] = 0, []  # of a directory, what a listing says of its entries, made in advance
        self._folders = list(self._tree.children)
        self._spin = _SPIN if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._quick = False  # whether the last request came while we looked, or would have
        self._poll = select.poll()
        self._told: set[str] = set()
        self._content = sum(entry.size for entry in self._tree.entries)
        self.passthrough = False
        self.passed = 0  # files that were passed through; for tests and figures
        self.initialised = threading.Event()
        self.over = threading.Event()
        self._answers: dict[int, Callable[[int, int, memoryview], bytes | None]] = {
            fuse.INIT: self._init,
            fuse.LOOKUP: self._lookup,
            fuse.GETATTR: self._getattr,
            fuse.READLINK: self._readlink,
            fuse.READDIR: self._readdir,
            fuse.READDIRPLUS: self._readdirplus,
            fuse.OPEN: self._opened,
            fuse.RELEASE: self._released,
            fuse.RELEASEDIR: lambda unique, _node, _body: fuse.reply(unique),
            fuse.STATFS: self._statfs,
            fuse.INTERRUPT: self._interrupt,
            fuse.FORGET: lambda *_: None,
            fuse.BATCH_FORGET: lambda *_: None,
            fuse.DESTROY: lambda *_: None,
        }

    def stop(self) -> None:
        """End with the next request, whatever it is; the caller sees to it that there is one."""
        self._stopping = True

    def run(self) -> None:
        """Serve until the file system is unmounted, or `stop`."""
        try:
            os.set_blocking(self._fd, False)
            self._poll.register(self._fd, select.POLLIN)
            self._serve()
        finally:
            self.disconnect()
            self.over.set()
            self.initialised.set()

    def _serve(self) -> None:
        buffer = bytearray(fuse.BUFFER)
        view = memoryview(buffer)
        header = fuse.in_header.unpack_from
        while not self._stopping:
            size = self._receive(buffer)
            if not size:
                return
            _, opcode, unique, node, _, _, pid, _, _ = header(buffer)
            if opcode == fuse.READ:
                self._read(unique, node, pid, buffer)
                continue
            answer = self._answers.get(opcode)
            if answer is not None:
                data = answer(unique, node, view[fuse.in_header.size : size])
            else:
                data = fuse.refusal(unique, errno.EROFS if opcode in _WRITING else errno.ENOSYS)
            if data is not None:
                self._send((data,))
            if opcode == fuse.READDIRPLUS:
                self._list_ahead(node)
            elif opcode == fuse.INIT:
                self.initialised.set()

    def _receive(self, buffer: bytearray) -> int:
        """Return how long the next request is, which is now in `buffer`; 0 where there is none any more."""
        fd, into, readv, clock = self._fd, [buffer], os.readv, time.perf_counter
        since = 0.0
        while True:
            try:
                size = readv(fd, into)
            except BlockingIOError:
                # A program that reads asks again at once, and waking us costs it more than the whole answer.
                now = clock()
                if not since:
                    since = now
                elif not self._quick or now - since > self._spin:
                    self._poll.poll()
                    self._quick = clock() - since < self._spin
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted, or aborted
                    return 0
                if error.errno not in (errno.ENOENT, errno.EINTR):  # the request was withdrawn meanwhile
                    raise
            else:
                return size

    def disconnect(self) -> None:
        """Let the kernel know that nobody answers any more; ENOTCONN from now on."""
        # Not closed: threads that still bring something will answer to this number, which must not be another file's by then.
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nothing, self._fd, inheritable=False)
        os.close(nothing)

    def _send(self, parts: Sequence[bytes | memoryview]) -> None:
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            # ENOENT: nobody waits for it any more. ENODEV: nor for anything else. Refused otherwise, the kernel has answered EIO.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                _logger.warning("an answer was refused: %s", error)

    # --- the connection --------------------------------------------------------------------------------------------

    def _init(self, unique: int, _node: int, body: memoryview) -> bytes:
        major, minor, readahead, flags, more = fuse.init_in.unpack_from(bytes(body).ljust(fuse.init_in.size, b"\0"))
        if major != fuse.MAJOR:
            return fuse.refusal(unique, errno.EPROTO)
        offered = flags | (more << 32 if flags & fuse.INIT_EXT else 0)
        wanted = (
            fuse.ASYNC_READ | fuse.DO_READDIRPLUS | fuse.PARALLEL_DIROPS | fuse.MAX_PAGES | fuse.CACHE_SYMLINKS | fuse.INIT_EXT
        )
        wanted |= fuse.NO_OPENDIR_SUPPORT
        self.passthrough = self._wanted and bool(offered & fuse.PASSTHROUGH)
        wanted |= fuse.PASSTHROUGH if self.passthrough else fuse.NO_OPEN_SUPPORT
        return fuse.init_reply(unique, minor, max(readahead, fuse.LARGEST_READ), offered & wanted)

    def _statfs(self, unique: int, _node: int, _body: memoryview) -> bytes:
        return fuse.reply(
            unique, fuse.statfs_out.pack(-(-self._content // 4096), 0, 0, len(self._tree.nodes), 0, 4096, 255, 4096, 0)
        )

    def _interrupt(self, _unique: int, _node: int, body: memoryview) -> bytes | None:
        """Let a reader go that was killed. Other signals wait: programs do not expect read(2) of a file to fail with EINTR."""
        (asked,) = fuse.interrupt_in.unpack_from(body)
        pid = self._unread.get(asked, 0)
        if pid and _is_killed(pid) and self._unread.pop(asked, 0):
            return fuse.refusal(asked, errno.EINTR)
        return None

    # --- names and attributes --------------------------------------------------------------------------------------

    def _attributes(self, node: int, entry: Entry) -> tuple[int, ...]:
        size = entry.size
        if entry.type == LINK:
            size = len(os.fsencode(entry.target))
            mode = stat.S_IFLNK | 0o777
        else:
            mode = _KINDS.get(entry.type, stat.S_IFREG) | entry.mode & _RESTORED
        seconds, rest = divmod(entry.mtime, 1_000_000_000)
        seconds &= _U64
        # One link also for directories, which tells find(1) that there is nothing to be concluded from it.
        return (node, size, -(-size // 512), seconds, seconds, seconds, rest, rest, rest, mode, 1, *self._owner, 0, 4096, 0)

    def _lookup(self, unique: int, node: int, body: memoryview) -> bytes:
        found = self._tree.children.get(node, {}).get(bytes(body).partition(b"\0")[0], 0)
        if not found:  # a negative answer that holds for ever, which ENOENT does not
            return fuse.reply(unique, fuse.entry_out.pack(0, 0, fuse.FOREVER, 0, 0, 0, *_NOTHING[:16]))
        attributes = self._attributes(found, self._tree.entry(found))
        return fuse.reply(unique, fuse.entry_out.pack(found, 0, fuse.FOREVER, fuse.FOREVER, 0, 0, *attributes))

    def _getattr(self, unique: int, node: int, _body: memoryview) -> bytes:
        return fuse.reply(unique, fuse.attr_out.pack(fuse.FOREVER, 0, 0, *self._attributes(node, self._tree.entry(node))))

    def _readlink(self, unique: int, node: int, _body: memoryview) -> bytes:
        target = os.fsencode(self._tree.entry(node).target)
        if len(target) > _LONGEST_TARGET:
            return fuse.refusal(unique, errno.ENAMETOOLONG)
        return fuse.reply(unique, target)

    def _readdirplus(self, unique: int, node: int, body: memoryview) -> bytes:
        return self._list(unique, node, body, self._plus)

    def _plus(self, name: bytes, child: int, next_: int) -> bytes:
        entry = self._tree.entry(child)
        length = len(name)
        if entry.type == FILE:  # the hot one, by itself: half the time
            pack = fuse.direntplus.pack
            seconds, rest = divmod(entry.mtime, 1_000_000_000)
            seconds &= _U64
            size, mode = entry.size, stat.S_IFREG | entry.mode & _RESTORED
            uid, gid = self._owner
            blocks = (size + 511) >> 9
            # fmt: off
            head = pack(
                child, 0, fuse.FOREVER, fuse.FOREVER, 0, 0,
                child, size, blocks, seconds, seconds, seconds, rest, rest, rest, mode, 1, uid, gid, 0, 4096, 0,
                child, next_, length, 8,
            )
            # fmt: on
        elif name in (b".", b".."):  # the kernel knows those; to it, node 0 says so
            head = fuse.direntplus.pack(*_NOTHING, child, next_, length, 4)
        else:
            attributes = self._attributes(child, entry)
            head = fuse.direntplus.pack(
                child, 0, fuse.FOREVER, fuse.FOREVER, 0, 0, *attributes, child, next_, length, attributes[9] >> 12
            )
        return head + name + fuse.PADDING[length & 7]

    def _readdir(self, unique: int, node: int, body: memoryview) -> bytes:
        def plain(name: bytes, child: int, next_: int) -> bytes:
            kind = _KINDS.get(self._tree.entry(child).type, stat.S_IFREG) >> 12
            return fuse.dirent.pack(child, next_, len(name), kind) + name + fuse.PADDING[len(name) & 7]

        return self._list(unique, node, body, plain)

    def _list(self, unique: int, node: int, body: memoryview, encode: Callable[[bytes, int, int], bytes]) -> bytes:
        """Answer with as many entries as there is room for, from the one asked for on; none: that was all."""
        _, offset, room = fuse.read_in.unpack_from(body)
        if self._listing[0] != node:
            self._listing = node, self._names(node)
        parts = []
        names = self._listing[1]
        encoded = self._encoded[1] if self._encoded[0] == node and encode == self._plus else ()
        for next_ in range(offset + 1, len(names) + 1):
            part = encoded[next_ - 1] if encoded else encode(*names[next_ - 1], next_)
            room -= len(part)
            if room < 0:
                break
            parts.append(part)
        return fuse.reply(unique, b"".join(parts))

    def _names(self, node: int) -> list[tuple[bytes, int]]:
        return [(b".", node), (b"..", self._tree.parents[node] or ROOT), *self._tree.children[node].items()]

    def _list_ahead(self, node: int) -> None:
        """Prepare the listing of the directory that whoever walks the tree asks for next, while he looks at what he was told."""
        index = bisect_right(self._folders, node)
        if index == len(self._folders) or self._encoded[0] == self._folders[index]:
            return
        next_ = self._folders[index]
        if len(self._tree.children[next_]) <= _LIST_AHEAD:
            names = enumerate(self._names(next_), 1)
            self._encoded = next_, [self._plus(name, child, number) for number, (name, child) in names]

    # --- content ---------------------------------------------------------------------------------------------------

    def _read(self, unique: int, node: int, pid: int, buffer: bytearray) -> None:
        _, offset, size = fuse.read_in.unpack_from(buffer, fuse.in_header.size)
        views = self._reader.ready(node, offset, size)
        if views is not None:
            self._send_content(unique, views)
        elif self._refused and self._was_refused(node, offset, offset + size):
            self._send((fuse.refusal(unique, errno.EIO),))
        else:
            self._unread[unique] = pid
            self._reader.fetch(node, offset, size, partial(self._fetched, unique, node, offset, offset + size))

    def _was_refused(self, node: int, offset: int, end: int) -> bool:
        now = time.monotonic()
        return any(
            refused == node and first <= offset and end <= last and now < until
            for refused, first, last, until in tuple(self._refused)
        )

    def _fetched(
        self, unique: int, node: int, offset: int, end: int, views: Sequence[memoryview] | None, error: BaseException | None
    ) -> None:
        if self._unread.pop(unique, None) is None:
            return  # its reader was killed
        if views is not None:
            self._send_content(unique, views)
            return
        if isinstance(error, Unreachable):
            self._refused.append((node, offset, end, time.monotonic() + _ASKED_AGAIN))
        self._send((fuse.refusal(unique, errno.EIO),))
        self._tell(str(error) if isinstance(error, SidecarError) else f"{type(error).__name__}: {error}")

    def _send_content(self, unique: int, views: Iterable[memoryview]) -> None:
        views = list(views)
        self._send([fuse.out_header.pack(16 + sum(map(len, views)), 0, unique), *views])

    def _tell(self, problem: str) -> None:
        if problem not in self._told and len(self._told) < _TOLD:
            self._told.add(problem)
            _logger.error("%s; who reads it is told EIO", problem)

    # --- passing through -------------------------------------------------------------------------------------------

    def _opened(self, unique: int, node: int, _body: memoryview) -> bytes:
        if not self.passthrough:
            return fuse.refusal(unique, errno.ENOSYS)  # never asked again: the kernel opens by itself, and keeps pages
        known = self._open.setdefault(node, [0, 0])
        if not known[0]:
            known[1] = self._pass_through(node)
        known[0] += 1
        flags = fuse.OPEN_PASSTHROUGH if known[1] else fuse.KEEP_CACHE
        return fuse.reply(unique, fuse.open_out.pack(0, flags | fuse.NOFLUSH, known[1]))

    def _pass_through(self, node: int) -> int:
        """Have the kernel read a file's content from the cache; return its id of that, 0 where that cannot be."""
        fd = self._reader.whole(node)
        if fd is None:
            return 0
        try:
            id_ = int(fcntl.ioctl(self._fd, fuse.BACKING_OPEN, bytearray(fuse.backing_map.pack(fd, 0, 0)), True))
        except OSError as error:
            # EPERM: no CAP_SYS_ADMIN. ELOOP: the cache lies on an overlay.
            self._tell(f"files of the cache cannot be passed through: {error.strerror}")
            return 0
        finally:
            os.close(fd)
        self.passed += 1
        return id_

    def _released(self, unique: int, node: int, _body: memoryview) -> bytes:
        known = self._open.get(node)
        if known is not None:
            known[0] -= 1
            if not known[0]:
                del self._open[node]
                if known[1]:
                    fcntl.ioctl(self._fd, fuse.BACKING_CLOSE, fuse.backing_id.pack(known[1]))
        return fuse.reply(unique)


def _is_killed(pid: int) -> bool:
    """Say whether a process, or the thread of this id, is about to end by SIGKILL."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            pending = [int(line.split()[1], 16) for line in file if line.startswith(("SigPnd:", "ShdPnd:"))]
    except (OSError, ValueError):
        return True  # there is none of this id (any more)
    return any(mask & _SIGKILL for mask in pending)
