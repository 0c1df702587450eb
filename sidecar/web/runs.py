"""What ran at most once, over HTTP: read alone.

    GET /v1/runs?name=…&before=…                     the latest, in the order in which they were claimed: of a name, before an id
    GET /v1/runs/one?instance=…&name=…               one
    GET /v1/runs/log?instance=…&name=…&source=…      what it wrote, as written: stdout, stderr or both, from `offset` on
    GET /v1/runs/pieces?instance=…&name=…&after=…    what it wrote, each piece with its stream and time, behind a number

An instance's name holds slashes, so it is said in the query.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.errors import Fault, ParametersError, SourceMissing
from sidecar.once.facts import STDERR, STDOUT, Run
from sidecar.once.ledger import Ledger
from sidecar.once.told import as_json, piece_as_json
from sidecar.web.asked import number_of
from sidecar.web.refusal import Told

Found = TypeVar("Found")
# So many are told at once, and no more once they are so many bytes: each is read with its variables, and may be large.
_LATEST, _LARGE = 200, 4 << 20
_SOURCES = {"stdout": STDOUT, "stderr": STDERR, "": 0}
_PIECE = 1 << 20


def routes(state: str) -> list[Route]:
    """Return the routes of the ledger in the folder `state`."""
    web = _Runs(state)
    return [
        Route("/v1/runs", web.all),
        Route("/v1/runs/one", web.one),
        Route("/v1/runs/log", web.log),
        Route("/v1/runs/pieces", web.pieces),
    ]


def runs_of(state: str, before: int = 0, name: str = "") -> list[Run]:
    """Return the latest runs of a ledger, see Ledger.runs; none where there is no ledger yet."""
    try:
        with Ledger(state, make=False) as ledger:
            return ledger.runs(_LATEST, before, name)
    except SourceMissing:
        return []


class _Runs:
    def __init__(self, state: str) -> None:
        self._state = state

    async def all(self, request: Request) -> Response:
        """Answer as many as one answer holds; `before` is where those before them are to be had, 0 where there are none."""
        before, name = number_of(request.query_params.get("before"), "before"), request.query_params.get("name", "")
        found = await run_in_threadpool(runs_of, self._state, before, name)
        told: list[dict[str, Any]] = []
        size = 0
        for each in reversed(found):
            told.insert(0, _told(each))
            size += len(json.dumps(told[0]))
            if size > _LARGE:
                break
        left = len(told) < len(found) or len(found) == _LATEST
        return Told({"runs": told, "before": told[0]["id"] if left else 0})

    async def one(self, request: Request) -> Response:
        return Told(_told(await self._ask(request, lambda _, run: run)))

    async def log(self, request: Request) -> Response:
        """Answer a piece of what a run wrote behind `offset`; X-Next-Offset is where the next begins."""
        said = request.query_params
        source = said.get("source", "")
        if source not in _SOURCES:
            raise ParametersError([Fault("request", "source", "expected stdout or stderr")])
        offset = number_of(said.get("offset"), "offset")
        last = number_of(said["last"], "last") if "last" in said else None
        behind, found = await self._ask(request, lambda ledger, run: ledger.piece(run, offset, _PIECE, last, _SOURCES[source]))
        return Response(found, headers={"X-Next-Offset": str(behind)}, media_type="application/octet-stream")

    async def pieces(self, request: Request) -> Response:
        """Answer the next pieces behind `after`, with the run that they are of, as it was before."""
        after = number_of(request.query_params.get("after"), "after")
        run, found = await self._ask(request, lambda ledger, run: (run, ledger.pieces(run, after)))
        return Told({"run": _told(run), "pieces": [piece_as_json(each) for each in found]})

    async def _ask(self, request: Request, question: Callable[[Ledger, Run], Found]) -> Found:
        named = _named(request)

        def answer() -> Found:
            with Ledger(self._state, make=False) as ledger:
                return question(ledger, ledger.get(*named))

        return await run_in_threadpool(answer)


def _told(run: Run) -> dict[str, Any]:
    return {"id": run.id, **as_json(run)}


def _named(request: Request) -> tuple[str, str]:
    missing = [
        Fault("request", each, "expected, it is missing") for each in ("instance", "name") if each not in request.query_params
    ]
    if missing:
        raise ParametersError(missing)
    return request.query_params["instance"], request.query_params["name"]
