"""The sessions of this machine over HTTP, and what their coordination directories tell.

    GET    /v1/sessions                          how all stand
    POST   /v1/sessions                          {pod: its manifest} -> 201, and Location
    GET    /v1/sessions/{name}
    DELETE /v1/sessions/{name}[?grace=SECONDS]   ended and removed; how it ended
    GET    /v1/sessions/{name}/logs/{container}[?offset=BYTES]   what it wrote so far behind that, or a piece of it
    GET    /v1/sessions/{name}/coordination      who is how far and waits for whom, as `sidecar status --json`

What a session writes can be without end, so it is asked for in pieces; who follows one asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sidecar.coordination.report import look
from sidecar.coordination.signals import Directory
from sidecar.errors import Fault, ParametersError, SourceMissing
from sidecar.session.machine import Machine
from sidecar.session.runner import Manifest, Runner, Status
from sidecar.web.asked import by_method, number_of, object_of

_PIECE = 1 << 20


def routes(machine: Machine, runner: Callable[[], Runner]) -> list[Route]:
    """Return the routes of the sessions that `machine` tells of; `runner` returns what begins one."""
    web = _Sessions(machine, runner)
    return [
        by_method("/v1/sessions", GET=web.all, POST=web.start),
        by_method("/v1/sessions/{name}", GET=web.one, DELETE=web.stop),
        Route("/v1/sessions/{name}/logs/{container}", web.logs),
        Route("/v1/sessions/{name}/coordination", web.coordination),
    ]


def session_as_json(status: Status) -> dict[str, Any]:
    """Return how a session stands, with what may be done."""
    stop = {"do": "stop", "method": "DELETE", "href": f"/v1/sessions/{quote(status.name, safe='')}", "body": {}}
    return {**asdict(status), "actions": [stop]}


def coordination_of(machine: Machine, name: str) -> dict[str, Any]:
    """Return what the coordination directory of a session tells; SourceMissing where it has none."""
    folder = machine.coordination(name)
    if not folder:
        raise SourceMissing(f"pod {name} has no coordination directory")
    with Directory(folder) as directory:
        # Where it is on this machine helps nobody elsewhere.
        return {**look(directory).as_json(), "directory": name}


def _behind(written: Iterator[bytes], offset: int) -> bytes:
    """Return what is written behind so many bytes, or a piece of that."""
    found = bytearray()
    for each in written:
        found += each[offset:]
        offset = max(0, offset - len(each))
        if len(found) >= _PIECE:
            break
    return bytes(found)


class _Sessions:
    def __init__(self, machine: Machine, runner: Callable[[], Runner]) -> None:
        self._machine, self._runner = machine, runner

    async def all(self, _: Request) -> Response:
        found = await run_in_threadpool(self._machine.list)
        return JSONResponse({"sessions": [session_as_json(each) for each in found]})

    async def start(self, request: Request) -> Response:
        asked = await object_of(request, {"pod": dict})
        if "pod" not in asked:
            raise ParametersError([Fault("request", "pod", "expected a manifest, it is missing")])
        name = await run_in_threadpool(self._start, asked["pod"])
        found = await run_in_threadpool(self._machine.status, name)
        return JSONResponse(session_as_json(found), 201, headers={"Location": f"/v1/sessions/{quote(name, safe='')}"})

    def _start(self, pod: Manifest) -> str:
        self._runner().start(pod)
        return str(pod["metadata"]["name"])

    async def one(self, request: Request) -> Response:
        return JSONResponse(session_as_json(await run_in_threadpool(self._machine.status, request.path_params["name"])))

    async def stop(self, request: Request) -> Response:
        said = request.query_params.get("grace")
        grace = None if said is None else float(number_of(said, "grace"))
        found = await run_in_threadpool(self._machine.stop, request.path_params["name"], grace)
        return JSONResponse({**session_as_json(found), "actions": []})

    async def logs(self, request: Request) -> Response:
        name, container = request.path_params["name"], request.path_params["container"]
        offset = number_of(request.query_params.get("offset"), "offset")
        found = await run_in_threadpool(lambda: _behind(self._machine.logs(name, container), offset))
        return Response(found, media_type="application/octet-stream")

    async def coordination(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(coordination_of, self._machine, request.path_params["name"]))
