"""What stands in front of every application of ours: who may ask, how long it took, and how much may be sent."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import os
import struct
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_logger = logging.getLogger(__name__)
# How much of what is refused is read, in bytes.
_HEARD = 1 << 20
_ESTABLISHED = "01"
_KNOWN = 1024


class TooLarge(Exception):
    """More was sent than is taken."""


class Guard:
    """Asks for the bearer token, if there is one, but for paths that are `open_to_all`; and puts X-Call-Id and X-Duration-Seconds
    on each answer.

    Where there is none, whoever is on this machine may ask: so what another page has a browser ask is refused, by its Origin, and
    so is a name that was made to mean the loopback, for answers would be read by it. If it is `own`, only processes of the
    server's user and of root may ask then: the kernel tells whose the other end of a connection on the loopback is.
    """

    def __init__(self, app: ASGIApp, token: str, open_to_all: Sequence[str], own: bool = False) -> None:
        self._app, self._token, self._open, self._own = app, token.encode(), frozenset(open_to_all), own
        self._known: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, call = time.monotonic(), str(uuid.uuid4())

        async def say(message: Message) -> None:
            if message["type"] == "http.response.start":
                took = f"{time.monotonic() - began:.6f}".encode()
                path = scope.get("raw_path", b"").decode("latin-1")
                # What is asked for is in the form in which it was sent, and so of one line.
                _logger.info("%s %s %s %s %s", call, scope["method"], path, message["status"], took.decode())
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-call-id", call.encode()),
                    (b"x-duration-seconds", took),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        if self._token and scope["path"] not in self._open and not self._knows(scope):
            await _refuse(receive, say, 401, "Authorization", "expected a bearer token that is known here")
        elif not self._token and (problem := _of_another_page(scope)):
            await _refuse(receive, say, 403, problem, "is another page's, and there is no token here that it could know")
        elif self._own and not self._token and not _is_ours(scope, self._known):
            await _refuse(receive, say, 403, "", "is another user's, and there is no token here that they could know")
        else:
            await self._app(scope, receive, say)

    def _knows(self, scope: Scope) -> bool:
        said = [value for name, value in scope["headers"] if name == b"authorization"]
        kind, _, token = said[0].partition(b" ") if len(said) == 1 else (b"", b"", b"")
        # As long for any token: how much of one is right is not to be learnt by trying.
        return hmac.compare_digest(token.strip(), self._token) and kind.lower() == b"bearer"


def is_loopback(host: str) -> bool:
    """Tell whether a name is one of this machine's alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def body_of(request: Request, most: int) -> bytes:
    """Return what was sent, of `most` bytes; TooLarge, also where it only says so, before it is read."""
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said[:20]) > most:
        raise TooLarge(f"expected at most {most} bytes")
    read = bytearray()
    async for data in request.stream():
        read += data
        if len(read) > most:
            raise TooLarge(f"expected at most {most} bytes")
    return bytes(read)


def _of_another_page(scope: Scope) -> str:
    """Return the header that says that a browser asks for somebody else's page; "" where none does."""
    said = {name: value.decode("latin-1") for name, value in scope["headers"]}
    host, origin = said.get(b"host", ""), said.get(b"origin")
    if not is_loopback(_parts(f"//{host}").hostname or ""):
        return "Host"
    return "Origin" if origin is not None and _parts(origin).netloc != host else ""


def _is_ours(scope: Scope, known: set[str]) -> bool:
    """Tell whether the other end of a connection is a process of this user's or root's, which stands where this one does.

    What is in a sandbox or a container of ours is the same user to the kernel, and on the loopback of the same machine; it is
    told by its PID namespace. Of a socket that was closed the kernel says that it is root's, so its process is looked for, too:
    once for each socket, which are `known` then, for that takes milliseconds.
    """
    client, server = scope.get("client"), scope.get("server")
    if client is None or server is None:
        return False
    socket = _socket_of(client, server)
    if socket is None:
        return False
    if socket not in known and _is_held_here(f"socket:[{socket}]"):
        if len(known) >= _KNOWN:
            known.clear()
        known.add(socket)
    return socket in known


def _socket_of(client: tuple[str, int], server: tuple[str, int]) -> str | None:
    """Return the inode of the open socket of this user's or root's with these addresses; None where there is none."""
    for table, sought in (
        ("tcp", _pair(client, server)),
        ("tcp6", _pair(client, server)),
        ("tcp6", _pair(client, server, _MAPPED)),
    ):
        try:
            with open(f"/proc/net/{table}") as file:
                for line in file:
                    said = line.split()
                    if said[1:3] == sought:
                        ours = said[3] == _ESTABLISHED and int(said[7]) in (0, os.geteuid())
                        return said[9] if ours else None
        except OSError:
            pass
    return None


def _is_held_here(socket: str) -> bool:
    """Tell whether a process of this PID namespace has that socket; the newest are asked first."""
    here = os.stat("/proc/self/ns/pid").st_ino
    for pid in sorted((int(each) for each in os.listdir("/proc") if each.isdecimal()), reverse=True):
        if socket in _opened(pid):
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


# What stands in front of an address of four bytes where a socket of sixteen has it.
_MAPPED = bytes(10) + b"\xff\xff"


def _pair(client: tuple[str, int], server: tuple[str, int], before: bytes = b"") -> list[str]:
    return [_as_in_proc(*client, before), _as_in_proc(*server, before)]


def _as_in_proc(host: str, port: int, before: bytes = b"") -> str:
    """Return an address as the kernel writes it: in words of 32 bits, each in the machine's own order."""
    packed = before + ipaddress.ip_address(host).packed
    words = struct.unpack(f"!{len(packed) // 4}I", packed)
    return "".join(f"{int.from_bytes(word.to_bytes(4, 'big'), sys.byteorder):08X}" for word in words) + f":{port:04X}"


def _parts(address: str) -> SplitResult:
    """Return the parts of an address; none of what is no address."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


async def _refuse(receive: Receive, send: Send, status: int, field: str, message: str) -> None:
    # Who still sends when the connection is closed is told that it was reset, and not why.
    left = _HEARD
    while left > 0 and (said := await receive())["type"] == "http.request":
        left -= len(said.get("body", b""))
        if not said.get("more_body"):
            break
    body = json.dumps({"errors": [{"field": field, "message": message}]}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
