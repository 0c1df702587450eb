"""What the kernel and a FUSE server say to each other: structs as bytes, both ways. Pure.

Written from include/uapi/linux/fuse.h (Linux 6.18), as far as a read-only file system needs it. All fields lie where C would put
them, so `=` (this machine's byte order, no padding) describes them. A reply to an older kernel is shorter in one place only,
INIT, and there no kernel that has READDIRPLUS (3.9) minds the longer one: it reads as much as it knows.

Rule: nothing here knows a descriptor, a file or a bundle.
"""

from __future__ import annotations

import struct

ROOT = 1  # FUSE_ROOT_ID
MAJOR, MINOR = 7, 40  # 7.40 brought passthrough; with an older kernel the older minor counts

# enum fuse_opcode
LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 5, 14, 15, 17, 18
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, ACCESS, INTERRUPT, DESTROY = 25, 26, 27, 28, 29, 34, 36, 38
BATCH_FORGET, READDIRPLUS = 42, 44

# Flags of INIT; those from bit 32 on travel in flags2.
ASYNC_READ, DO_READDIRPLUS, PARALLEL_DIROPS = 1 << 0, 1 << 13, 1 << 18
NO_OPEN_SUPPORT, MAX_PAGES, CACHE_SYMLINKS, NO_OPENDIR_SUPPORT = 1 << 17, 1 << 22, 1 << 23, 1 << 24
INIT_EXT, PASSTHROUGH = 1 << 30, 1 << 37

# FOPEN_*: of the reply to OPEN.
KEEP_CACHE, NOFLUSH, OPEN_PASSTHROUGH = 1 << 1, 1 << 5, 1 << 7

# ioctls of /dev/fuse, _IOW(229, 1, struct fuse_backing_map) and _IOW(229, 2, uint32_t).
BACKING_OPEN, BACKING_CLOSE = 0x4010E501, 0x4004E502

FOREVER = 1 << 30  # seconds for which names and attributes hold: 34 years. Bundles never change.
PAGES = 256  # of 4 KiB in one READ: 1 MiB, the kernel's own limit (fs.fuse.max_pages_limit)
LARGEST_READ = PAGES * 4096
LARGEST_WRITE = 4096  # none is ever asked for; the buffer that requests are read into need not be larger then
BUFFER = 8192  # FUSE_MIN_READ_BUFFER: the kernel refuses to hand requests over to a smaller one

_ATTR = "6Q10I"  # fuse_attr: ino size blocks, atime mtime ctime, their nanoseconds, mode nlink uid gid rdev blksize flags
_ENTRY = "4Q2I" + _ATTR  # fuse_entry_out: nodeid generation entry_valid attr_valid, their nanoseconds, attr

in_header = struct.Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
out_header = struct.Struct("=IiQ")  # len error unique
init_in = struct.Struct("=5I")  # major minor max_readahead flags flags2 (flags2 since 7.36)
init_out = struct.Struct(
    "=4I2H2I2H2IH22x"
)  # ... max_background congestion max_write time_gran max_pages align flags2 depth timeout
entry_out = struct.Struct("=" + _ENTRY)
attr_out = struct.Struct("=Q2I" + _ATTR)  # attr_valid, its nanoseconds, padding, attr
read_in = struct.Struct("=QQI")  # fh offset size; READ, READDIR and READDIRPLUS alike
open_out = struct.Struct("=QIi")  # fh open_flags backing_id
statfs_out = struct.Struct("=5Q4I24x")  # blocks bfree bavail files ffree, bsize namelen frsize padding spare
interrupt_in = struct.Struct("=Q")  # unique
dirent = struct.Struct("=QQII")  # ino off namelen type
direntplus = struct.Struct("=" + _ENTRY + "QQII")  # entry_out, dirent
backing_map = struct.Struct("=iIQ")  # fd flags padding
backing_id = struct.Struct("=I")

assert (in_header.size, out_header.size, init_out.size) == (40, 16, 64)
assert (entry_out.size, attr_out.size, statfs_out.size, direntplus.size) == (128, 104, 80, 152)

PADDING = [b"\0" * (-length % 8) for length in range(8)]  # after a name: entries of directories begin at multiples of 8


def reply(unique: int, payload: bytes = b"") -> bytes:
    """Return the answer to request `unique`."""
    return out_header.pack(16 + len(payload), 0, unique) + payload


def refusal(unique: int, error: int) -> bytes:
    """Return the answer that request `unique` fails with an errno."""
    return out_header.pack(16, -error, unique)


def init_reply(unique: int, minor: int, readahead: int, flags: int) -> bytes:
    """Return the answer to INIT: what of `flags`, 64 bits, is used."""
    depth = 1 if flags & PASSTHROUGH else 0  # how many file systems may lie below a file that is passed through: none but its own
    return reply(
        unique,
        init_out.pack(
            MAJOR, min(minor, MINOR), readahead, flags & 0xFFFFFFFF, 64, 48, LARGEST_WRITE, 1, PAGES, 0, flags >> 32, depth, 0
        ),
    )
