"""What is asked over HTTP, read: methods, bodies of JSON whose fields are known, and numbers. All faults are told at once."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.errors import Fault, ParametersError
from sidecar.web.contract import LARGEST
from sidecar.web.guard import body_of

# A manifest of a cluster's is bounded at a mebibyte and a half (etcd); what is asked for here is smaller.
MOST = 2 << 20


def by_method(path: str, **endpoints: Callable[[Request], Awaitable[Response]]) -> Route:
    """Return one route for all methods of a path: of several, each would answer what it allows as if there were no other."""

    async def answer(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, answer, methods=list(endpoints))


async def object_of(request: Request, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return the object that a request's body is, whose fields are of these kinds; no body is an empty one.

    ParametersError with every field that is not of its kind, or not known.
    """
    body = await body_of(request, MOST)
    try:
        given = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise ParametersError([Fault("request", "body", f"expected JSON: {error}")]) from None
    if not isinstance(given, dict):
        raise ParametersError([Fault("request", "body", "expected an object")])
    known = ", ".join(kinds) or "none"
    found = [Fault("request", _whole(each), f"unknown; fields: {known}") for each in given if each not in kinds]
    for name, kind in kinds.items():
        if name in given and (not isinstance(given[name], kind) or (isinstance(given[name], bool) and kind is not bool)):
            found.append(Fault("request", name, f"expected {_KINDS[kind]}"))
    found += [
        Fault("request", where, "expected whole characters: there is half a surrogate pair in it") for where in _halves(given)
    ]
    if found:
        raise ParametersError(found)
    return given


_KINDS = {str: "a text", dict: "an object", bool: "true or false", int: "a whole number"}


def number_of(text: str | None, field: str, default: int = 0) -> int:
    """Return a whole number of a path or a query; ParametersError where it is none, or negative."""
    if text is None:
        return default
    digits = text.lstrip("0") or "0"
    # No number of so many digits is looked at: Python refuses to read those of thousands.
    if not (text.isascii() and text.isdecimal()) or len(digits) > len(str(LARGEST)) or int(digits) > LARGEST:
        raise ParametersError([Fault("request", field, "expected a whole number")])
    return int(digits)


def _halves(given: Any) -> list[str]:
    """Return the fields in which there is a text that no UTF-8 can say."""
    found = []
    for name, value in given.items():
        try:
            json.dumps({name: value}, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            found.append(_whole(name))
    return found


def _whole(name: str) -> str:
    """Return a name that can be written, of a field that may have none."""
    return name.encode(errors="replace").decode()
