"""How errors are told over HTTP: `{"errors": [{"field": …, "message": …}]}`, with the status that says who can put it right."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sidecar.errors import (
    ConfigurationError,
    Corrupt,
    DeadlinePassed,
    Fault,
    ParametersError,
    SidecarError,
    SourceMissing,
    Unreachable,
    UsageError,
)
from sidecar.web.guard import TooLarge

# The first that an error is one of; what is in none is our fault.
_STATUSES: tuple[tuple[type[SidecarError], int], ...] = (
    (ParametersError, 400),
    (UsageError, 400),
    (SourceMissing, 404),
    # What is asked for contradicts what is there.
    (ConfigurationError, 409),
    (DeadlinePassed, 409),
    (Corrupt, 500),
    # The store, or the disk that it is on.
    (Unreachable, 503),
)


# What is wrong with all of what was sent is wrong with no field.
_WHOLE = ("request", "call", "build")


class Told(JSONResponse):
    """Plain data as JSON of ASCII alone: half a character of somebody's command, or of what a program wrote, is told as it is."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def errors(status: int, faults: Iterable[Fault], **more: Any) -> JSONResponse:
    """Return an answer that tells what is wrong, each with the field or the line that it is wrong with."""
    told = [{"field": each.key or ("" if each.where in _WHOLE else each.where), "message": each.problem} for each in faults]
    return Told({"errors": told, **more}, status)


def refusal(error: SidecarError, **more: Any) -> JSONResponse:
    """Return the answer that an error comes to; a missing thing's names those that are there."""
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
    if isinstance(error, ParametersError):
        return errors(status, error.faults, **more)
    if isinstance(error, SourceMissing) and error.exist:
        more = {"exist": list(error.exist), **more}
    return errors(status, [Fault("request", "", str(error))], **more)


async def refuse(_: Request, error: Exception) -> JSONResponse:
    """Answer an error that a route raised."""
    if isinstance(error, TooLarge):
        return errors(413, [Fault("request", "body", str(error))])
    assert isinstance(error, SidecarError)
    return refusal(error)


def always(response: Response) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint of one answer, for which no thread is needed: all of them may be busy."""

    async def answer(_: Request) -> Response:
        return response

    return answer


HANDLERS: dict[Any, Any] = {SidecarError: refuse, TooLarge: refuse}
"""What an application does with the errors that its routes raise."""
