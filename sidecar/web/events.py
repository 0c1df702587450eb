"""What changes, as it changes: a stream of events (text/event-stream) that a page listens to.

    event: work       data: a build or a push
    event: session    data: a session, with what its coordination directory tells, if it has one
    event: run        data: a run
    event: gone       data: {"kind": …, "id": …}

First all that there is is told, then `ready`, then what is other than it was. Nothing is kept for who is not there: the stores
tell all of it again to who comes back. It is looked at anew every `PAUSE` seconds, for other processes change it as well.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sidecar.errors import Fault, SidecarError
from sidecar.web.refusal import errors

Thing = tuple[str, str, dict[str, Any]]
"""A kind, an id, and what is told of it."""

PAUSE = 0.5
# Who listens takes a thread's time twice a second.
MOST = 32
_HEARTBEAT = 15.0


def routes(looks: Iterable[Callable[[], Iterable[Thing]]], ending: Callable[[], bool]) -> list[Route]:
    """Return the route of the events; each of `looks` returns all that there is of one kind, `ending` whether it is to end."""
    return [Route("/v1/events", _Events(tuple(looks), ending).listen)]


class _Events:
    def __init__(self, looks: tuple[Callable[[], Iterable[Thing]], ...], ending: Callable[[], bool]) -> None:
        self._looks, self._ending = looks, ending
        self._listening = 0

    async def listen(self, _: Request) -> Response:
        if self._listening >= MOST:
            return errors(429, [Fault("request", "", f"{MOST} listen already")])
        return StreamingResponse(self._events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _events(self) -> AsyncIterator[bytes]:
        self._listening += 1
        try:
            told: dict[tuple[str, str], str] = {}
            silent = 0.0
            first = True
            while not self._ending():
                said = b"".join(await run_in_threadpool(lambda: list(self._changes(told))))
                if first:
                    said, first = said + b"event: ready\ndata: {}\n\n", False
                silent = 0.0 if said else silent + PAUSE
                if silent >= _HEARTBEAT:
                    # Whoever has gone is noticed by writing to them.
                    said, silent = b": still here\n\n", 0.0
                if said:
                    yield said
                await asyncio.sleep(PAUSE)
        finally:
            self._listening -= 1

    def _changes(self, told: dict[tuple[str, str], str]) -> Iterator[bytes]:
        """Yield the events of what is other than it was `told`, and note it there."""
        there = set()
        for look in self._looks:
            try:
                found = list(look())
            except SidecarError:
                # A store that cannot be read now is no reason to say that all of it is gone.
                found = []
                there |= set(told)
            for kind, name, thing in found:
                there.add((kind, name))
                text = json.dumps(thing)
                if told.get((kind, name)) != text:
                    told[kind, name] = text
                    yield f"event: {kind}\ndata: {text}\n\n".encode()
        for kind, name in set(told) - there:
            del told[kind, name]
            yield f"event: gone\ndata: {json.dumps({'kind': kind, 'id': name})}\n\n".encode()
