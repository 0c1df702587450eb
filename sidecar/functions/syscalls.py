"""The calls of the kernel that no program of a worker may make: a filter as the kernel takes it (seccomp, classic BPF). Pure.

Namespaces and limits do the confining. Refused here is what looks into other processes, or has been the way out of sandboxes
again and again while hardly a program needs it; the caller is told EPERM, as if it lacked a privilege. Calls of another
architecture, which have other numbers, end the program.
"""

from __future__ import annotations

import struct

_PERMISSION = 1
# AUDIT_ARCH_X86_64 and _AARCH64 of linux/audit.h; the numbers are those of asm/unistd_64.h, and of asm-generic/unistd.h.
_NAMES = (
    "ptrace", "process_vm_readv", "process_vm_writev", "add_key", "request_key", "keyctl", "bpf", "perf_event_open",
    "userfaultfd", "io_uring_setup", "mount", "umount2", "pivot_root", "setns", "kexec_load", "init_module", "finit_module",
    "open_by_handle_at", "swapon", "swapoff", "reboot", "quotactl", "fsopen", "move_mount", "open_tree", "mount_setattr",
)  # fmt: skip
_ARCHITECTURES: dict[str, tuple[int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        (101, 310, 311, 248, 249, 250, 321, 298, 323, 425, 165, 166, 155, 308, 246, 175, 313, 304, 167, 168, 169, 179, 430,
            429, 428, 442),
    ),
    "aarch64": (
        0xC00000B7,
        (117, 270, 271, 217, 218, 219, 280, 241, 282, 425, 40, 39, 41, 268, 104, 105, 273, 265, 224, 225, 142, 60, 430,
            429, 428, 442),
    ),
}  # fmt: skip
# Beyond these are x32's, which are x86_64's under other numbers.
_X32 = 0x4000_0000

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF_0000, 0x8000_0000, 0x0005_0000 | _PERMISSION
_NUMBER, _ARCHITECTURE = 0, 4


def refusals(machine: str) -> bytes:
    """Return the filter for a machine, as `os.uname` calls it; ValueError where its numbers are not known."""
    if machine not in _ARCHITECTURES:
        raise ValueError(f"the calls of {machine} are not known; expected {' or '.join(_ARCHITECTURES)}")
    architecture, numbers = _ARCHITECTURES[machine]
    said = [_say(_LOAD, _ARCHITECTURE), _say(_EQUAL, architecture, 1, 0), _say(_RETURN, _KILL), _say(_LOAD, _NUMBER)]
    # Each jumps to the last but none: over those that are left, and over what allows.
    left = len(numbers)
    said.append(_say(_AT_LEAST, _X32, left + 1, 0))
    said += [_say(_EQUAL, number, left - at, 0) for at, number in enumerate(numbers)]
    return b"".join([*said, _say(_RETURN, _ALLOW), _say(_RETURN, _REFUSE)])


def _say(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)
