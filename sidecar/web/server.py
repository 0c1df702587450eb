"""One server for all that goes on: images, builds and pushes; runs; sessions and their coordination; functions; and a page.

Each part is a module of routes over calls of the library; what is put together here is which parts there are. Without a token
only this user's processes may ask: what is built and started runs as this user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from sidecar.errors import SidecarError
from sidecar.functions.answer import MOST
from sidecar.functions.service import Service
from sidecar.once.told import as_json
from sidecar.session.machine import Machine
from sidecar.session.runner import Runner
from sidecar.web import events, functions, images, runs, sessions
from sidecar.web.contract import contract
from sidecar.web.guard import Guard
from sidecar.web.overview import PAGE
from sidecar.web.refusal import HANDLERS, always
from sidecar.web.serve import POLICY

OPEN_TO_ALL = ("/", "/openapi.json", "/healthz", "/readyz")


@dataclass(frozen=True)
class Parts:
    """What is served: the ledger in the folder `state`; sessions of `machine`, that `runner` begins; the factory that `opened`
    opens, if there is one; and a service of functions, if there is one."""

    state: str
    machine: Machine
    runner: Callable[[], Runner]
    opened: images.Opened | None = None
    service: Service | None = None


def application(parts: Parts, token: str = "") -> Starlette:
    """Return the application; where there is a `token`, whoever asks has to say it."""
    named = None if parts.service is None else functions.names_of(parts.service)
    most = MOST if parts.service is None else parts.service.limits
    described = contract(images=parts.opened is not None, functions=named, most=most)
    looks = [lambda: _runs(parts.state), lambda: _sessions(parts.machine)]
    routes = [
        Route("/", _page),
        Route("/openapi.json", always(JSONResponse(described))),
        Route("/healthz", always(Response(status_code=204))),
        Route("/readyz", always(Response(status_code=204))),
        *runs.routes(parts.state),
        *sessions.routes(parts.machine, parts.runner),
    ]
    if parts.opened is not None:
        opened = parts.opened
        routes += images.routes(opened)
        looks.append(lambda: _works(opened))
    if parts.service is not None:
        routes += functions.routes(parts.service)
    app = Starlette(exception_handlers=HANDLERS)
    app.state.ending = lambda: False
    # A name that is empty is nobody's, and not the list of all.
    app.router.redirect_slashes = False
    app.router.routes += [*routes, *events.routes(looks, lambda: app.state.ending())]
    app.add_middleware(Guard, token=token, open_to_all=OPEN_TO_ALL, own=True)
    return app


async def _page(_: Request) -> Response:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})


def _works(opened: images.Opened) -> Iterator[events.Thing]:
    with opened() as factory:
        for each in factory.works():
            yield "work", str(each.id), each.as_json()


def _runs(state: str) -> Iterator[events.Thing]:
    for each in runs.runs_of(state):
        yield "run", f"{each.instance}\0{each.name}", as_json(each)


def _sessions(machine: Machine) -> Iterator[events.Thing]:
    for each in machine.list():
        try:
            coordination: dict[str, Any] | None = _still(sessions.coordination_of(machine, each.name))
        except SidecarError:
            # There is none, or none that can be read: whose container made it so is no reason to tell of no session at all.
            coordination = None
        yield "session", each.name, {**sessions.session_as_json(each), "coordination": coordination}


def _still(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report without what changes although nothing happens: the time, and how long a phase that goes on has taken."""
    participants = []
    for each in report["participants"]:
        phases = [dict(phase) for phase in each["phases"]]
        if phases and each["alive"]:
            phases[-1]["seconds"] = None
        participants.append({**each, "phases": phases, "record": None})
    return {"over": report["over"], "participants": participants}
