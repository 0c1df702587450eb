"""The battery: the function service, on the loopback of the pod, in a thread of the battery's own process.

So whatever kills the server kills the battery, whose lease tells the application; and where the server ends by itself, `watch`
does. Workers are begun by that thread, with which they end (see sidecar.functions.worker): so it ends last.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import uvicorn

from sidecar.errors import ConfigurationError, PeerFailed, Unreachable
from sidecar.functions.answer import MOST
from sidecar.functions.runtimes import find_runtimes
from sidecar.functions.service import Service
from sidecar.web.functions import application
from sidecar_function_battery import handover
from sidecar_function_battery.options import FunctionBatteryOptions

HOST = "127.0.0.1"
# How long connections that were cut may take to be gone, in seconds; they take milliseconds.
_CUT = 3


class FunctionBattery:
    """One life of the battery; see sidecar.batteries.Battery and Watched."""

    def __init__(self, options: FunctionBatteryOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._closed = False
        self._serving: _Serving | None = None

    def ready(self) -> Mapping[str, Any]:
        """Serve; return where, and where the token is."""
        options = self._options
        runtimes = find_runtimes(options.runtimes)
        if not runtimes:
            raise ConfigurationError(f"there is no runtime in {', '.join(options.runtimes)}")
        at_once = options.at_once or 2 * (os.cpu_count() or 1)
        service = Service(runtimes, at_once, replace(MOST, wall=float(options.timeout)))
        token = secrets.token_urlsafe(32)
        with self._lock:
            if self._closed:
                raise PeerFailed("closed before it was ready")
            self._serving = _Serving(application(service, token), options.port)
            self._serving.start()
        self._serving.wait_until_it_listens()
        url = f"http://{HOST}:{self._serving.port}"
        handover.hand_over(options.folder, url, token, options.client)
        if self._closed:
            handover.take_back(options.folder)
            raise PeerFailed("closed before it was ready")
        return {
            "url": url,
            "tokenFile": os.path.join(options.folder, handover.TOKEN),
            "runtimes": [each.name for each in runtimes],
        }

    def watch(self) -> None:
        """Return once it was closed; PeerFailed where the server ended by itself."""
        assert self._serving is not None
        self._serving.join()
        if not self._closed:
            raise PeerFailed(f"the function server ended: {self._serving.problem or 'it does not say why'}")

    def save(self) -> Mapping[str, Any]:
        """There is nothing to keep: what ran is over, and said what it had to say."""
        return {}

    def close(self) -> None:
        """End the server, and all workers, at once."""
        with self._lock:
            self._closed = True
        if self._serving is not None:
            self._serving.end()
            handover.take_back(self._options.folder)


class _Serving(threading.Thread):
    """uvicorn, in a thread of its own; `problem` is what ended it, if anything did that nobody asked for."""

    def __init__(self, app: Any, port: int) -> None:
        super().__init__(name="function server", daemon=True)
        try:
            self._listening = socket.create_server((HOST, port), backlog=2048)
        except OSError as error:
            raise Unreachable(f"{HOST}:{port} cannot be listened to: {error.strerror}") from None
        self.port: int = self._listening.getsockname()[1]
        self.problem = ""
        self._server = uvicorn.Server(
            uvicorn.Config(
                app, log_config=None, log_level="warning", server_header=False, lifespan="off", timeout_graceful_shutdown=_CUT
            )
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = threading.Event()

    def run(self) -> None:
        try:
            with self._listening:
                asyncio.run(self._serve())
        except BaseException as error:  # whoever watches tells the application
            self.problem = f"{type(error).__name__}: {error}"
        finally:
            self._begun.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun.set()
        await self._server.serve([self._listening])

    def wait_until_it_listens(self) -> None:
        """Return once it begins to listen, until when the kernel does so for it; PeerFailed where it has ended."""
        self._begun.wait()
        if not self.is_alive():
            raise PeerFailed(f"the function server could not be begun: {self.problem or 'it was closed'}")

    def end(self) -> None:
        """Cut all connections, whose calls end with them, and return when nothing of it is left."""
        self._begun.wait()
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._cut)
        self.join()

    def _cut(self) -> None:
        self._server.should_exit = True
        for server in getattr(self._server, "servers", ()):
            server.close()
        # A call whose client has gone is ended.
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
