"""Serves an application of ours by uvicorn: on the loopback, unless there is a token that whoever asks has to say."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

from sidecar.errors import ConfigurationError, Unreachable
from sidecar.web.guard import is_loopback

# Of a page, of which nothing but what stands in it is run or asked: whatever a program prints cannot become a part of it.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"
# How long calls that run may go on once the server is to end.
GRACE = 25


def serve(application: Any, host: str, port: int, token: str, begun: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `begun` is told the address once it is listened to: port 0 is any that is free.

    ConfigurationError where anybody on the network could ask, Unreachable where the address is not to be had.
    """
    import uvicorn

    if not token and not is_loopback(host):
        raise ConfigurationError(f"{host} can be reached by others: expected a token, or the host 127.0.0.1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = uvicorn.Config(
        application,
        host=host,
        port=port,
        log_config=None,
        # Whoever says in a header that they are somebody else is not believed.
        proxy_headers=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    server = uvicorn.Server(config)
    # Answers that have no end of their own ask for this.
    application.state.ending = lambda: server.should_exit
    try:
        listening = listen(host, port)
    except OSError as error:
        raise Unreachable(f"{host}:{port} cannot be listened to: {error.strerror}") from None
    begun(f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/")
    # Once it has ended as it was asked to, uvicorn sends itself the signal again, for whoever had a handler before.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    with listening:
        server.run([listening])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; port 0 is any that is free."""
    kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.create_server(address[:2], family=kind, backlog=2048)
    # Which its connections inherit. asyncio does so for sockets that say they are TCP's, which this one does not; without it the
    # body of an answer is kept back until whoever asked acknowledges its head, 40 ms later, wherever a connection is used again.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
