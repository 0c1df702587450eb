"""What is below one folder, copied into another: an artifact's files, from its own image onto a volume of the pod.

    wrap_application --copy SRC DIR

SRC is read as it lies in the image: mounts below it, among which is DIR, are none of it. DIR may be written to by others at the
same time, so nothing there is opened but relative to its folder's descriptor and never through a link, and a folder that is gone
back to (`..`) must be the one that it was: nothing outside DIR is ever written.

It may be killed at any moment and run again. A file is written under one name at the top of DIR, dressed with mode and times, and
renamed to its place: what has the size, the time and the mode of its original is whole. A folder is dressed when it is left.

Only two folders are open at a time, those where the walk is, so depth costs no descriptors; names of folders that are still to be
entered are kept as bytes, so that 100,000 of them cost 2 to 4 MB.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from sidecar.errors import SourceMissing, Unreachable, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Identity = tuple[int, int]

HALF_WAY = ".wrap_application.copy"
PIECE = 1 << 18
# What is asked of the kernel at a time: a signal is heard in between.
STRETCH = 1 << 26
# How many sockets and their like are named; all are counted.
NAMED = 20

_FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NEW = os.O_WRONLY | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_SET_ID = stat.S_ISUID | stat.S_ISGID


def copy_tree(source: str, target: str, at: int, tell: Callable[[str], None]) -> None:
    """Copy what is below `source` into the folder `target`, which is open as `at`, and tell how much it was.

    SourceMissing where there is no such source; Unreachable, with the path, where anything cannot be read or written.
    """
    try:
        top = os.open(source, _FOLDER & ~os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceMissing(f"{source!r} cannot be copied: {error.strerror}") from None
    except OSError as error:
        raise Unreachable(f"{source!r} cannot be copied: {error.strerror}") from None
    if _identity(os.fstat(top)) == _identity(os.fstat(at)):
        raise UsageError(f"{source!r} cannot be copied into itself")
    copying = _Copying(source, target, top, at, tell)
    try:
        copying.run()
    finally:
        copying.clear()
    tell(copying.summary())


class _Folder:
    """A folder on the way down to where the walk is: its original, who it is in the target, and what is left to enter."""

    __slots__ = ("about", "hides", "holds", "left", "name", "there")

    def __init__(self, name: str, about: os.stat_result, there: Identity) -> None:
        self.name, self.about, self.there = name, about, there
        self.left = bytearray()  # names that end in a slash
        self.hides = self.holds = False  # mounts, which are left out; anything else

    def next(self) -> str:
        """Return the folder below that is to be entered next, "" where there is none."""
        begin = self.left.rfind(b"/", 0, -1) + 1
        name = self.left[begin:-1]
        del self.left[begin:]
        return os.fsdecode(bytes(name))


class _Copying:
    def __init__(self, source: str, target: str, top: int, at: int, tell: Callable[[str], None]) -> None:
        self.source_name, self.target_name, self.tell = source, target, tell
        self.top = at
        self.source, self.target = top, os.dup(at)
        about = os.fstat(top)
        self.device, self.into = about.st_dev, _identity(os.fstat(at))
        self.mounts = _mounts_below(top)
        self.wrapper = None if self.mounts is not None else _wrapper()
        self.half_way = HALF_WAY
        while _about(self.half_way, top):
            self.half_way += "_"
        self.way = [_Folder("", about, self.into)]
        self.now = ""  # the entry of the folder that is being copied
        # What has further names: where its copy is, which file that is, and how many names may still come.
        self.linked: dict[Identity, tuple[str, Identity, int]] = {}
        self.root = os.geteuid() == 0
        self.by_kernel = True
        self.files = self.bytes = self.there = self.others = 0

    def run(self) -> None:
        """Walk the source, the files of a folder first."""
        try:
            self.fill()
            while True:
                name = self.way[-1].next()
                if name:
                    self.enter(name)
                    self.fill()
                elif len(self.way) > 1:
                    self.leave()
                else:
                    return
        except OSError as error:
            below = "/".join([*(folder.name for folder in self.way[1:]), *filter(None, [self.now])])
            source, target = (os.path.join(top, below) for top in (self.source_name, self.target_name))
            raise Unreachable(f"{source!r} cannot be copied to {target!r}: {error.strerror}") from None

    def clear(self) -> None:
        """Take away what this life or an earlier one left half-way."""
        try:
            os.unlink(self.half_way, dir_fd=self.top)
        except OSError:
            pass

    def summary(self) -> str:
        there = f", {self.there} of them there already" if self.there else ""
        others = f"; {self.others} sockets, FIFOs or devices left out" if self.others else ""
        return f"{self.source_name!r} is in {self.target_name!r}: {self.files} files, {self.bytes} bytes{there}{others}"

    # --- folders -------------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Copy what is in the folder where the walk is, and note the folders in it."""
        folder = self.way[-1]
        names = tuple(each.name for each in self.way[1:])
        mounts = () if self.mounts is None else self.mounts.get(names, ())
        with os.scandir(self.source) as entries:
            for entry in entries:
                self.now = entry.name
                about = entry.stat(follow_symlinks=False)
                kind = stat.S_IFMT(about.st_mode)
                if entry.name in mounts or (kind == stat.S_IFDIR and self.is_elsewhere(about)):
                    folder.hides = True
                    continue
                if kind == stat.S_IFDIR:
                    folder.left += os.fsencode(entry.name) + b"/"
                    continue
                folder.holds = True
                if kind in (stat.S_IFREG, stat.S_IFLNK):
                    self.take(names, entry.name, about)
                else:
                    self.leave_out(names, entry.name)
        self.now = ""

    def is_elsewhere(self, about: os.stat_result) -> bool:
        """Tell whether a folder is the target, or one of another volume.

        A file's st_dev says nothing: on an overlay of two file systems it is not that of its folder.
        """
        if _identity(about) == self.into:
            return True
        return self.mounts is None and (about.st_dev != self.device or _identity(about) == self.wrapper)

    def enter(self, name: str) -> None:
        self.now = name
        source = os.open(name, _FOLDER, dir_fd=self.source)
        target = _folder(name, self.target)
        self.way.append(_Folder(name, os.fstat(source), _identity(os.fstat(target))))
        self.now = ""
        self.go(source, target)

    def leave(self) -> None:
        # First the way up: what is dressed may be closed to us.
        source = os.open("..", _FOLDER, dir_fd=self.source)
        target = os.open("..", _FOLDER, dir_fd=self.target)
        folder, above = self.way[-1], self.way[-2]
        if _identity(os.fstat(target)) != above.there:
            raise OSError(errno.EBUSY, "the folder was moved meanwhile")
        # Where the runtime made a folder to mount something in, the image has none.
        if folder.hides and not folder.holds and _is_removed(folder.name, target):
            above.hides = True
        else:
            self.dress(self.target, folder.about)
            above.holds = True
        self.way.pop()
        self.go(source, target)

    def go(self, source: int, target: int) -> None:
        os.close(self.source)
        os.close(self.target)
        self.source, self.target = source, target

    # --- files ---------------------------------------------------------------------------------------------------------

    def leave_out(self, names: tuple[str, ...], name: str) -> None:
        self.others += 1
        if self.others <= NAMED:
            self.tell(f"{os.path.join(self.source_name, *names, name)!r} is left out: it is a socket, a FIFO or a device")

    def take(self, names: tuple[str, ...], name: str, about: os.stat_result) -> None:
        """Copy a file or a symbolic link, unless it is there."""
        self.files += 1
        if about.st_nlink > 1 and self.link(name, about):
            return
        if self.is_there(name, about):
            self.there += 1
        else:
            if stat.S_ISLNK(about.st_mode):
                self.put_link(name, about)
            else:
                self.put_file(name, about)
            os.rename(self.half_way, name, src_dir_fd=self.top, dst_dir_fd=self.target)
        if stat.S_ISREG(about.st_mode):
            self.bytes += about.st_size
        if about.st_nlink > 1:
            copied = os.stat(name, dir_fd=self.target, follow_symlinks=False)
            self.linked[_identity(about)] = "/".join([*names, name]), _identity(copied), about.st_nlink - 1

    def is_there(self, name: str, about: os.stat_result) -> bool:
        there = _about(name, self.target)
        if there is None or stat.S_IFMT(there.st_mode) != stat.S_IFMT(about.st_mode):
            return False
        if there.st_mtime_ns != about.st_mtime_ns or (self.root and not _same_owner(there, about)):
            return False
        if stat.S_ISLNK(about.st_mode):
            return os.readlink(name, dir_fd=self.target) == os.readlink(name, dir_fd=self.source)
        return there.st_size == about.st_size and stat.S_IMODE(there.st_mode) == _mode(about, there)

    def link(self, name: str, about: os.stat_result) -> bool:
        """Make `name` a further name of what has been copied under another; False where it has not been, or cannot have two."""
        if _identity(about) not in self.linked:
            return False
        path, copied, names_left = self.linked.pop(_identity(about))
        if names_left > 1:
            self.linked[_identity(about)] = path, copied, names_left - 1
        there = _about(name, self.target)
        if there is not None and _identity(there) == copied:
            self.there += 1
            return True
        *folders, last = path.split("/")
        at = os.dup(self.top)
        try:
            for folder in folders:
                below = os.open(folder, _FOLDER, dir_fd=at)
                os.close(at)
                at = below
            self.clear()
            os.link(last, self.half_way, src_dir_fd=at, dst_dir_fd=self.top, follow_symlinks=False)
        except OSError:
            return False  # moved away, too many names, a file system without: what is wrong shows when it is copied by itself
        finally:
            os.close(at)
        linked = _about(self.half_way, self.top)
        if linked is None or _identity(linked) != copied:
            return False
        os.rename(self.half_way, name, src_dir_fd=self.top, dst_dir_fd=self.target)
        return True

    def put_link(self, name: str, about: os.stat_result) -> None:
        to = os.readlink(name, dir_fd=self.source)
        self.clear()
        os.symlink(to, self.half_way, dir_fd=self.top)
        if self.root:
            _give(lambda: os.chown(self.half_way, about.st_uid, about.st_gid, dir_fd=self.top, follow_symlinks=False))
        os.utime(self.half_way, ns=(about.st_atime_ns, about.st_mtime_ns), dir_fd=self.top, follow_symlinks=False)

    def put_file(self, name: str, about: os.stat_result) -> None:
        source = os.open(name, _READ, dir_fd=self.source)
        try:
            target = self.new()
            try:
                self.pour(source, target, about)
                self.dress(target, about)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def new(self) -> int:
        try:
            return os.open(self.half_way, _NEW, 0o600, dir_fd=self.top)
        except FileExistsError:
            os.unlink(self.half_way, dir_fd=self.top)
            return os.open(self.half_way, _NEW, 0o600, dir_fd=self.top)

    def dress(self, target: int, about: os.stat_result) -> None:
        """Give what was copied the mode and times of its original, and its owner where we may."""
        if self.root:
            _give(lambda: os.fchown(target, about.st_uid, about.st_gid))
        os.fchmod(target, _mode(about, os.fstat(target)))
        os.utime(target, ns=(about.st_atime_ns, about.st_mtime_ns))

    def pour(self, source: int, target: int, about: os.stat_result) -> None:
        """Copy contents; holes stay holes."""
        for begin, end in _stretches(source, about):
            place = begin
            while place < end:
                count = self.copied_by_kernel(source, target, place, min(end - place, STRETCH))
                if not count:
                    piece = os.pread(source, min(end - place, PIECE), place)
                    if not piece:
                        raise OSError(errno.EIO, "it became shorter meanwhile")
                    count = os.pwrite(target, piece, place)
                place += count
        os.ftruncate(target, about.st_size)

    def copied_by_kernel(self, source: int, target: int, place: int, count: int) -> int:
        """Return how much the kernel has copied; 0 where it does not, which between these two file systems is for good."""
        if not self.by_kernel:
            return 0
        try:
            return os.copy_file_range(source, target, count, place, place)
        except OSError:
            self.by_kernel = False  # and what is wrong with the file itself shows when it is read and written
            return 0


# --- what the system says ----------------------------------------------------------------------------------------------


def _identity(about: os.stat_result) -> Identity:
    return about.st_dev, about.st_ino


def _about(name: str, at: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _same_owner(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_uid, one.st_gid) == (other.st_uid, other.st_gid)


def _mode(about: os.stat_result, there: os.stat_result) -> int:
    """Return the mode of a copy: what runs as its owner does so only where that is the owner whom the original had."""
    mode = stat.S_IMODE(about.st_mode)
    return mode if _same_owner(about, there) else mode & ~_SET_ID


def _give(chown: Callable[[], None]) -> None:
    """Call `chown`; a root that may not, without the capability or with few ids, keeps what it copies, like anyone."""
    try:
        chown()
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise


def _folder(name: str, at: int) -> int:
    """Return the folder `name` in `at`, open and ours to write in; it is made where it is missing, or is no folder."""
    try:
        os.mkdir(name, 0o700, dir_fd=at)
    except FileExistsError:
        there = os.stat(name, dir_fd=at, follow_symlinks=False)
        if not stat.S_ISDIR(there.st_mode):
            os.unlink(name, dir_fd=at)
            os.mkdir(name, 0o700, dir_fd=at)
    found = os.open(name, _FOLDER, dir_fd=at)
    # An earlier life has left it, or it is not ours.
    there = os.fstat(found)
    if there.st_uid == os.geteuid() and there.st_mode & 0o700 != 0o700:
        os.fchmod(found, stat.S_IMODE(there.st_mode) | 0o700)
    return found


def _is_removed(name: str, at: int) -> bool:
    try:
        os.rmdir(name, dir_fd=at)
    except OSError:
        return False
    return True


def _stretches(fd: int, about: os.stat_result) -> Iterator[tuple[int, int]]:
    """Yield where a file has contents, from where to where."""
    size, place = about.st_size, 0
    if about.st_blocks * 512 >= size:
        if size:
            yield 0, size
        return
    while place < size:
        try:
            begin = os.lseek(fd, place, os.SEEK_DATA)
            end = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != errno.ENXIO:  # not known here; ENXIO: a hole up to the end
                yield place, size
            return
        if begin < end:
            yield begin, end
        place = end if end > place else size


def _mounts_below(top: int) -> dict[tuple[str, ...], set[str]] | None:
    """Return what is mounted below the folder `top`, names by folder; None where /proc does not tell.

    A mount that is hidden under another one has that for its parent, and is left aside.
    """
    try:
        path = os.readlink(f"/proc/self/fd/{top}")
        rows = [line.split() for line in _lines("/proc/self/mountinfo")]
    except OSError:
        return None
    if not rows:
        return None
    ours = _mount_of(top)
    prefix = path.rstrip("/") + "/"
    found: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        point = _unescaped(row[4])
        if point.startswith(prefix) and point != prefix and (not ours or row[1] == ours):
            *folders, name = point[len(prefix) :].split("/")
            found.setdefault(tuple(folders), set()).add(name)
    return found


def _mount_of(fd: int) -> bytes:
    """Return the id of the mount on which a descriptor is open, b"" where that is not told."""
    try:
        lines = _lines(f"/proc/self/fdinfo/{fd}")
    except OSError:
        return b""
    return next((line.split()[1] for line in lines if line.startswith(b"mnt_id:")), b"")


def _lines(path: str) -> list[bytes]:
    with open(path, "rb") as file:
        return file.read().splitlines()


def _unescaped(word: bytes) -> str:
    """Return a path of mountinfo, where spaces and their like are backslashes with three octal digits."""
    first, *rest = word.split(b"\\")
    return os.fsdecode(first + b"".join(bytes([int(each[:3], 8)]) + each[3:] for each in rest))


def _wrapper() -> Identity | None:
    """Return the folder of this executable, where it is its volume: one that holds nothing else."""
    folder, name = os.path.split(sys.executable)
    try:
        return _identity(os.stat(folder)) if os.listdir(folder) == [name] else None
    except OSError:
        return None
