"""What ran at most once, over HTTP: read alone.

    GET /v1/runs                                     the latest, in the order in which they were claimed
    GET /v1/runs/one?instance=…&name=…               one
    GET /v1/runs/log?instance=…&name=…&source=…      what it wrote, as written: stdout, stderr or both, from `offset` on
    GET /v1/runs/pieces?instance=…&name=…&after=…    what it wrote, each piece with its stream and time, behind a number

An instance's name holds slashes, so it is said in the query.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

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
# Who wants more than that asks for one by its name: each is read with its variables.
_LATEST = 200
_SOURCES = {"stdout": (STDOUT, STDOUT), "stderr": (STDERR, STDERR), "": (STDOUT, STDERR)}
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


def runs_of(state: str) -> list[Run]:
    """Return the latest runs of a ledger; none where there is no ledger yet."""
    try:
        with Ledger(state, make=False) as ledger:
            return ledger.runs(_LATEST)
    except SourceMissing:
        return []


class _Runs:
    def __init__(self, state: str) -> None:
        self._state = state

    async def all(self, _: Request) -> Response:
        found = await run_in_threadpool(runs_of, self._state)
        return Told({"runs": [as_json(each) for each in found]})

    async def one(self, request: Request) -> Response:
        return Told(as_json(await self._ask(request, lambda _, run: run)))

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
        return Told({"run": as_json(run), "pieces": [piece_as_json(each) for each in found]})

    async def _ask(self, request: Request, question: Callable[[Ledger, Run], Found]) -> Found:
        named = _named(request)

        def answer() -> Found:
            with Ledger(self._state, make=False) as ledger:
                return question(ledger, ledger.get(*named))

        return await run_in_threadpool(answer)


def _named(request: Request) -> tuple[str, str]:
    missing = [
        Fault("request", each, "expected, it is missing") for each in ("instance", "name") if each not in request.query_params
    ]
    if missing:
        raise ParametersError(missing)
    return request.query_params["instance"], request.query_params["name"]
