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
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sidecar.errors import Fault, SidecarError
from sidecar.web.refusal import errors

Thing = tuple[str, str, dict[str, Any]]
"""A kind, an id, and what is told of it."""

PAUSE = 0.5
# Who listens is told what one look has found.
MOST = 32
_HEARTBEAT = 15.0


def routes(looks: Iterable[Callable[[], Iterable[Thing]]], ending: Callable[[], bool]) -> list[Route]:
    """Return the route of the events; each of `looks` returns all that there is of one kind, `ending` whether it is to end."""
    return [Route("/v1/events", _Events(tuple(looks), ending).listen)]


class _Events:
    def __init__(self, looks: tuple[Callable[[], Iterable[Thing]], ...], ending: Callable[[], bool]) -> None:
        self._looks, self._ending = looks, ending
        self.listening = 0
        # What was seen last, and when; of each look, for the next may fail.
        self._seen: dict[tuple[str, str], str] = {}
        self._before: dict[int, list[tuple[str, str, str]]] = {}
        self._at = -PAUSE
        self._one = asyncio.Lock()

    async def listen(self, _: Request) -> Response:
        if self.listening >= MOST:
            return errors(429, [Fault("request", "", f"{MOST} listen already")])
        return _Stream(self)

    async def stream(self) -> AsyncIterator[bytes]:
        told: dict[tuple[str, str], str] = {}
        silent, first = 0.0, True
        while not self._ending():
            said = b"".join(_changes(told, await self._look()))
            if first:
                said, first = said + b"event: ready\ndata: {}\n\n", False
            silent = 0.0 if said else silent + PAUSE
            if silent >= _HEARTBEAT:
                # Whoever has gone is noticed by writing to them.
                said, silent = b": still here\n\n", 0.0
            if said:
                yield said
            await asyncio.sleep(PAUSE)

    async def _look(self) -> dict[tuple[str, str], str]:
        """Return all that there is, as text by kind and id; those who listen look once for all of them."""
        async with self._one:
            if time.monotonic() - self._at >= PAUSE / 2:
                self._seen = await run_in_threadpool(self._all)
                self._at = time.monotonic()
            return self._seen

    def _all(self) -> dict[tuple[str, str], str]:
        found: dict[tuple[str, str], str] = {}
        for number, look in enumerate(self._looks):
            try:
                things = [(kind, name, json.dumps(thing)) for kind, name, thing in look()]
            except SidecarError:
                # A store that cannot be read now is no reason to say that all of it is gone.
                things = self._before.get(number, [])
            self._before[number] = things
            found |= {(kind, name): text for kind, name, text in things}
        return found


def _changes(told: dict[tuple[str, str], str], seen: Mapping[tuple[str, str], str]) -> Iterator[bytes]:
    """Yield the events of what is other than it was `told`, and note it there."""
    for (kind, name), text in seen.items():
        if told.get((kind, name)) != text:
            told[kind, name] = text
            yield f"event: {kind}\ndata: {text}\n\n".encode()
    for kind, name in set(told) - set(seen):
        del told[kind, name]
        yield f"event: gone\ndata: {json.dumps({'kind': kind, 'id': name})}\n\n".encode()


class _Stream(StreamingResponse):
    """The events of one who listens, who counts from the answer's beginning to its end, whichever way that comes."""

    def __init__(self, events: _Events) -> None:
        super().__init__(events.stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._events = events
        events.listening += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._events.listening -= 1
