"""What stands in front of every application of ours: who may ask, how long it took, and how much may be sent."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import time
import uuid
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidecar.web.peer import is_held_here, socket_of

_logger = logging.getLogger(__name__)
# How much of what is refused is read, in bytes.
_HEARD = 1 << 20
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
        self._known: set[int] = set()

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


def _is_ours(scope: Scope, known: set[int]) -> bool:
    """Tell whether the other end of a connection is a process of this user's or root's, beside this one.

    Its process is looked for once for each socket, which are `known` then: that takes milliseconds.
    """
    client, server = scope.get("client"), scope.get("server")
    inode = socket_of(client, server) if client and server else None
    if inode is None:
        return False
    if inode not in known and is_held_here(inode):
        if len(known) >= _KNOWN:
            known.clear()
        known.add(inode)
    return inode in known


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
