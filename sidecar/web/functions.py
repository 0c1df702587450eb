"""Functions over HTTP: the calls of functions.service.Service, as a web application (ASGI).

    GET  /v1/functions                              which there are
    POST /v1/functions/{language}[:{version}]/invocations      the source itself, as text/plain, or JSON: see description

What is not of its form is 400 with each field, what is too large 413; 429 and 503 say when to try again, or how each worker
failed. A program's failure is an answer (200). Nothing of a call is kept, and a call whose client has gone is ended.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from sidecar.errors import Fault, ParametersError, SourceMissing
from sidecar.functions.answer import MIB, Answer, Asked, Limits
from sidecar.functions.service import Full, NobodyAnswered, Service
from sidecar.web.description import DEFAULTS, description, usual
from sidecar.web.guard import Guard, TooLarge, body_of
from sidecar.web.measures import Measures
from sidecar.web.page import PAGE
from sidecar.web.refusal import Told, always, errors
from sidecar.web.serve import POLICY

_TEXT = ("text/plain", "application/octet-stream", "")
_GONE = 499
_FIELDS = ("source", "args", "stdin", "context", "timeout", "workers", "delay")


def application(service: Service, token: str = "", body: int = MIB) -> Starlette:
    """Return the application; where there is a `token`, whoever calls a function or asks for the measures has to say it.

    What is posted may be of `body` bytes.
    """
    described = description(names_of(service), service.limits, body)
    ready = 204 if service.runtimes else 503
    app = Starlette(
        routes=[
            Route("/", _page),
            Route("/openapi.json", always(JSONResponse(described))),
            Route("/healthz", always(Response(status_code=204))),
            Route("/readyz", always(Response(status_code=ready))),
            *routes(service, body),
        ]
    )
    app.add_middleware(Guard, token=token, open_to_all=("/", "/openapi.json", "/healthz", "/readyz"))
    return app


def routes(service: Service, body: int = MIB) -> list[Route]:
    """Return the routes of a service: its functions, and what is measured of them."""
    measures = Measures()
    web = _Functions(service, body, measures)
    return [
        Route("/metrics", lambda _: Response(measures.text(), media_type=measures.media_type)),
        Route("/v1/functions", web.functions),
        Route("/v1/functions/{function}/invocations", web.invoke, methods=["POST"]),
    ]


def names_of(service: Service) -> list[str]:
    """Return what its functions may be called."""
    names = [*(each.language for each in service.runtimes), *(each.name for each in service.runtimes)]
    return list(dict.fromkeys(names))


async def _page(_: Request) -> Response:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})


class _Functions:
    def __init__(self, service: Service, body: int, measures: Measures) -> None:
        self.service, self.body, self.measures = service, body, measures

    async def functions(self, _: Request) -> Response:
        return Told({"functions": self._names()})

    async def invoke(self, request: Request) -> Response:
        began = time.monotonic()
        response: Response
        try:
            asked = self._read(request, await body_of(request, self.body))
            answer = await self._call(request, asked)
        except TooLarge as error:
            response = errors(413, [Fault("call", "body", str(error))])
        except _Unsupported as error:
            response = errors(415, [Fault("call", "Content-Type", str(error))])
        except _Contradiction as error:
            response = errors(409, [Fault("call", error.field, str(error))])
        except ParametersError as error:
            response = errors(400, error.faults)
        except SourceMissing as error:
            response = errors(404, [Fault("call", "function", str(error))], functions=self._names())
        except Full as full:
            response = errors(429, [Fault("call", "", str(full))])
            response.headers["Retry-After"] = str(math.ceil(full.seconds))
        except NobodyAnswered as nobody:
            workers = [{"worker": each.worker, "status": each.status, "reason": each.reason} for each in nobody.workers]
            response = errors(503, [Fault("call", "", "no worker could run it")], workers=workers)
            response.headers["Retry-After"] = "1"
        except ClientDisconnect:
            # Nobody reads it; so proxies note it in their logs.
            response = Response(status_code=_GONE)
        else:
            response = Told(answer.as_json())
            self.measures.answered(answer, time.monotonic() - began)
        if response.status_code != 200:
            self.measures.refused(response.status_code)
        return response

    def _names(self) -> list[dict[str, Any]]:
        found: dict[str, list[str]] = {}
        for each in self.service.runtimes:
            found.setdefault(each.language, []).append(each.version)
        return [{"language": language, "versions": versions} for language, versions in found.items()]

    def _read(self, request: Request, body: bytes) -> Asked:
        if "idempotency-key" in request.headers:
            raise _Contradiction("Idempotency-Key", "code is run twice on purpose here; what is to run once, `sidecar once` runs")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            asked = _from_json(body, self.service.limits)
        elif kind in _TEXT:
            asked = Asked(body, limits=_limits(usual(self.service.limits)))
        else:
            raise _Unsupported(f"expected text/plain, which is the source, or application/json, not {kind}")
        return asked

    async def _call(self, request: Request, asked: Asked) -> Answer:
        """Return the answer; ClientDisconnect where nobody waits for it any more."""
        call = asyncio.ensure_future(self.service.call(request.path_params["function"], asked))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({call, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise ClientDisconnect
            return call.result()
        finally:
            for each in (call, gone):
                each.cancel()
            await asyncio.gather(call, gone, return_exceptions=True)


class _Unsupported(Exception):
    pass


class _Contradiction(Exception):
    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _from_json(body: bytes, most: Limits) -> Asked:
    """Return what a body asks for; ParametersError with each field that is not of its form."""
    try:
        given = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ParametersError([Fault("call", "body", f"expected JSON: {error}")]) from None
    if not isinstance(given, dict):
        raise ParametersError([Fault("call", "body", "expected an object")])
    found = [Fault("call", key, f"expected one of {', '.join(_FIELDS)}") for key in given if key not in _FIELDS]
    reader = _Reader(given, found)
    source, stdin = reader.text("source", needed=True), reader.text("stdin")
    arguments = reader.texts("args")
    wall, delay = reader.number("timeout", usual(most)), reader.number("delay", 0.0)
    workers = reader.whole("workers", DEFAULTS.workers)
    context = json.dumps(given["context"], ensure_ascii=False) if given.get("context") is not None else ""
    reader.utf8("context", context)
    if found:
        raise ParametersError(found)
    return Asked(source.encode(), tuple(arguments), stdin.encode(), context, _limits(wall), workers, delay)


def _limits(wall: float) -> Limits:
    """Return the limits of a call that may take so long; it may compute all the time."""
    return replace(Limits(), wall=wall, cpu=max(Limits().cpu, math.ceil(wall)))


class _Reader:
    def __init__(self, given: Mapping[str, Any], faults: list[Fault]) -> None:
        self.given, self.faults = given, faults

    def text(self, key: str, *, needed: bool = False) -> str:
        value = self.given.get(key, "")
        if needed and key not in self.given:
            self.faults.append(Fault("call", key, "expected, it is missing"))
        elif not isinstance(value, str):
            self.faults.append(Fault("call", key, "expected a text"))
        else:
            return self.utf8(key, value)
        return ""

    def texts(self, key: str) -> list[str]:
        value = self.given.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            self.faults.append(Fault("call", key, "expected a list of texts"))
            return []
        return [self.utf8(key, each) for each in value]

    def utf8(self, key: str, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            self.faults.append(Fault("call", key, "expected a text of whole characters: there is half a surrogate pair in it"))
            return ""
        return text

    def number(self, key: str, default: float) -> float:
        value = self.given.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**31:
            self.faults.append(Fault("call", key, "expected a number of seconds"))
            return default
        return float(value)

    def whole(self, key: str, default: int) -> int:
        value = self.number(key, default)
        if value != int(value):
            self.faults.append(Fault("call", key, "expected a whole number"))
            return default
        return int(value)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")
