"""Whose process is at the other end of a connection on this machine, as the kernel tells it.

It is asked by netlink (sock_diag(7)) for the one socket that has the addresses the other way round: /proc/net/tcp takes the
longer the more connections a machine has. The kernel says root of a socket that was closed, and nobody may believe that: so its
state counts as well, and its process is looked for. What is in a sandbox or a container of ours is the same user to the kernel,
and on the same loopback; it is told by its PID namespace.

What cannot be found out is not ours: another machine's, another kernel's, one that is gone.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

Address = tuple[str, int]

_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _REQUEST = 4, 20, 1
_ESTABLISHED = 1
# The cookie of a socket that may be any (INET_DIAG_NOCOOKIE).
_ANY = b"\xff" * 8
_HEADER = struct.Struct("=LHHLL")
# Family, protocol, extensions, states; then ports, addresses, interface and cookie (inet_diag_req_v2).
_ASKED = struct.Struct("=BBBxL")
_ID = struct.Struct("!HH16s16s4s8s")
# Family, state, timer, retransmissions; the id; expires, queues, user, inode (inet_diag_msg).
_TOLD = struct.Struct("=BBBB48sLLLLL")
# What stands in front of an address of four bytes where a socket of sixteen has it.
_MAPPED = bytes(10) + b"\xff\xff"


def socket_of(client: Address, server: Address) -> int | None:
    """Return the inode of the client's open socket, if it is this user's or root's."""
    pair = [(ipaddress.ip_address(host).packed, port) for host, port in (client, server)]
    kinds = [(socket.AF_INET, b""), (socket.AF_INET6, _MAPPED)] if len(pair[0][0]) == 4 else [(socket.AF_INET6, b"")]
    with suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as kernel:
        for family, before in kinds:
            (source, port), (to, to_port) = ((before + address, port) for address, port in pair)
            id_ = _ID.pack(port, to_port, source.ljust(16, b"\0"), to.ljust(16, b"\0"), bytes(4), _ANY)
            asked = _ASKED.pack(family, socket.IPPROTO_TCP, 0, 1 << _ESTABLISHED) + id_
            kernel.send(_HEADER.pack(_HEADER.size + len(asked), _SOCK_DIAG_BY_FAMILY, _REQUEST, 1, 0) + asked)
            told = kernel.recv(4096)
            if _HEADER.unpack_from(told)[1] != _SOCK_DIAG_BY_FAMILY or len(told) < _HEADER.size + _TOLD.size:
                continue
            _, state, *_, user, inode = _TOLD.unpack_from(told, _HEADER.size)
            return int(inode) if state == _ESTABLISHED and user in (0, os.geteuid()) and inode else None
    return None


def is_held_here(inode: int) -> bool:
    """Tell whether a process of this PID namespace has that socket; the newest are asked first."""
    name, here = f"socket:[{inode}]", os.stat("/proc/self/ns/pid").st_ino
    for pid in sorted((int(each) for each in os.listdir("/proc") if each.isdecimal()), reverse=True):
        if name in _opened(pid):
            try:
                return os.stat(f"/proc/{pid}/ns/pid").st_ino == here
            except OSError:
                return False
    return False


def _opened(pid: int) -> Iterator[str]:
    """Yield what a process has open, as far as that is to be seen."""
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for fd in descriptors:
        with suppress(OSError):
            yield os.readlink(f"/proc/{pid}/fd/{fd}")
