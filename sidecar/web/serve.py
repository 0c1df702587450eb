"""Serves an application of ours by uvicorn: on the loopback, unless there is a token that whoever asks has to say."""

from __future__ import annotations

import ipaddress
import signal
from typing import Any

from sidecar.errors import ConfigurationError, Unreachable

# How long calls that run may go on once the server is to end.
GRACE = 25


def serve(application: Any, host: str, port: int, token: str) -> None:
    """Serve until SIGTERM or SIGINT.

    ConfigurationError where anybody on the network could ask, Unreachable where the address is not to be had.
    """
    import uvicorn

    if not token and not _is_loopback(host):
        raise ConfigurationError(f"{host} can be reached by others: expected a token, or the host 127.0.0.1")
    config = uvicorn.Config(
        application,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    server = uvicorn.Server(config)
    # Once it has ended as it was asked to, uvicorn sends itself the signal again, for whoever had a handler before.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        server.run()
    except SystemExit:
        # That is how uvicorn says, after its log, that the address cannot be bound.
        raise Unreachable(f"{host}:{port} cannot be listened to") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
