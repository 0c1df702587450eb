"""The sessions of this machine over HTTP, and what their coordination directories tell.

    GET    /v1/sessions                          how all stand, and whether a volume of the next one may be an image
    POST   /v1/sessions                          {pod: its manifest} -> 201, and Location
    GET    /v1/sessions/{name}
    DELETE /v1/sessions/{name}[?grace=SECONDS]   ended and removed; how it ended
    GET    /v1/sessions/{name}/logs/{container}[?offset=BYTES][&last=BYTES]
                                                 what it wrote so far behind `offset`, no more than the `last` of it, or a piece
                                                 of that; X-Next-Offset is where the next one begins
    GET    /v1/sessions/{name}/coordination      who is how far and waits for whom, as `sidecar status --json`

What a session writes can be without end, so it is asked for in pieces; who follows one asks again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.coordination.report import look
from sidecar.coordination.signals import Directory
from sidecar.errors import Fault, ParametersError, SourceMissing
from sidecar.session.machine import Machine
from sidecar.session.runner import Manifest, Runner, Status
from sidecar.web.asked import by_method, number_of, object_of
from sidecar.web.contract import LONGEST_GRACE
from sidecar.web.refusal import Told, errors

_PIECE = 1 << 20
# So many may be ended at once, each by a thread that waits as long as its containers are given.
_MOST_ENDING = 32


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


def _grace(said: str | None) -> float | None:
    """Return how long containers are given; None leaves that to their pod."""
    if said is None:
        return None
    found = number_of(said, "grace")
    if found > LONGEST_GRACE:
        raise ParametersError([Fault("request", "grace", f"expected at most {LONGEST_GRACE} seconds")])
    return float(found)


class _Sessions:
    def __init__(self, machine: Machine, runner: Callable[[], Runner]) -> None:
        self._machine, self._runner = machine, runner
        # Not of the threads that all else is answered by: whoever ends many sessions would keep everybody from asking.
        self._enders, self._ending = CapacityLimiter(_MOST_ENDING), 0

    async def all(self, _: Request) -> Response:
        found = await run_in_threadpool(self._machine.list)
        told = {"image_volumes": self._runner().image_volumes, "sessions": [session_as_json(each) for each in found]}
        return Told(told)

    async def start(self, request: Request) -> Response:
        asked = await object_of(request, {"pod": dict})
        if "pod" not in asked:
            raise ParametersError([Fault("request", "pod", "expected a manifest, it is missing")])
        name = await run_in_threadpool(self._start, asked["pod"])
        found = await run_in_threadpool(self._machine.status, name)
        return Told(session_as_json(found), 201, headers={"Location": f"/v1/sessions/{quote(name, safe='')}"})

    def _start(self, pod: Manifest) -> str:
        self._runner().start(pod)
        return str(pod["metadata"]["name"])

    async def one(self, request: Request) -> Response:
        return Told(session_as_json(await run_in_threadpool(self._machine.status, request.path_params["name"])))

    async def stop(self, request: Request) -> Response:
        name, grace = request.path_params["name"], _grace(request.query_params.get("grace"))
        # Refused, not put off: whoever would kill a session is not to wait for those that are given time.
        if self._ending >= _MOST_ENDING:
            return errors(429, [Fault("request", "", f"{_MOST_ENDING} are being ended already")])
        self._ending += 1
        try:
            found = await to_thread.run_sync(self._machine.stop, name, grace, limiter=self._enders)
        finally:
            self._ending -= 1
        return Told({**session_as_json(found), "actions": []})

    async def logs(self, request: Request) -> Response:
        name, container = request.path_params["name"], request.path_params["container"]
        said = request.query_params
        offset = number_of(said.get("offset"), "offset")
        last = number_of(said["last"], "last") if "last" in said else None
        behind, found = await run_in_threadpool(self._machine.piece, name, container, offset, _PIECE, last)
        return Response(found, headers={"X-Next-Offset": str(behind)}, media_type="application/octet-stream")

    async def coordination(self, request: Request) -> Response:
        return Told(await run_in_threadpool(coordination_of, self._machine, request.path_params["name"]))
