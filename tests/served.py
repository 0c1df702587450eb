"""A server of ours for tests: the application that `sidecar serve` serves, in a thread, on a port of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from processes import HANG
from starlette.applications import Starlette


@contextmanager
def served(application: Starlette) -> Iterator[str]:
    """Serve an application until the end of the block; the value is its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            application, log_config=None, lifespan="off", proxy_headers=False, timeout_graceful_shutdown=int(HANG)
        )
        server = uvicorn.Server(config)
        application.state.ending = lambda: server.should_exit
        # Signals are the tests' own: a server beside the main thread hears none.
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(HANG)
            assert not thread.is_alive()
