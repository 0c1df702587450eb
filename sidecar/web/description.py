"""The description of the function service as OpenAPI 3.1: what may be asked, and what is answered. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sidecar.functions.answer import MOST_WORKERS, WORDS, Asked, Limits

DEFAULTS = Asked(b"")
_STATUSES = ["ok", "error", "timeout", "output-limit", "file-limit", "signalled", "worker-failed", "lost"]


def description(names: Sequence[str], most: Limits, body: int) -> dict[str, Any]:
    """Return the description of a service whose functions have these names; calls may take `most`, and be of `body` bytes."""
    function = {
        "name": "function",
        "in": "path",
        "required": True,
        "description": "The language, or LANGUAGE:VERSION; without a version it is the highest.",
        "schema": {"type": "string", **({"enum": names} if names else {})},
    }
    invoke = {
        "operationId": "invoke",
        "summary": "Run source code. A program's own failure is an answer, too.",
        "parameters": [function],
        "requestBody": {
            "required": True,
            "content": {
                "text/plain": {"schema": {"type": "string", "minLength": 1, "description": "The source."}},
                "application/json": {"schema": _ref("Call")},
            },
        },
        "responses": {
            "200": _json("What came of it.", _ref("Answer")),
            "400": _errors("Something is not of its form."),
            "401": _errors("The bearer token is missing, or not known."),
            "403": _errors("A browser asks for another page, and there is no token."),
            "404": _errors("There is no such function."),
            "409": _errors("It was to run once, and is run twice on purpose here."),
            "413": _errors(f"More than {body} bytes."),
            "415": _errors("Neither text/plain nor application/json."),
            "429": _errors("As many calls as may run do: see Retry-After."),
            "503": _errors("No worker could run it; how each failed is told."),
        },
    }
    listed = {
        "operationId": "functions",
        "summary": "Which functions there are.",
        "responses": {
            "200": _json(
                "The languages, each with its versions, the highest first.",
                _object({"functions": {"type": "array", "items": _ref("Function")}}),
            ),
            "401": _errors("The bearer token is missing, or not known."),
            "403": _errors("A browser asks for another page, and there is no token."),
        },
    }
    none = {"description": "Yes."}
    return {
        "openapi": "3.1.0",
        "info": {"title": "sidecar functions", "version": "1"},
        "paths": {
            "/v1/functions": {"get": listed},
            "/v1/functions/{function}/invocations": {"post": invoke},
            "/healthz": {"get": {"summary": "Whether it lives.", "responses": {"204": none}}},
            "/readyz": {
                "get": {
                    "summary": "Whether it can run anything.",
                    "responses": {"204": none, "503": {"description": "No runtime is installed."}},
                }
            },
        },
        "components": {
            "schemas": {
                "Call": _call(most),
                "Answer": _answer(),
                "Function": _object({"language": {"type": "string"}, "versions": {"type": "array", "items": {"type": "string"}}}),
                "Errors": {
                    "type": "object",
                    "required": ["errors"],
                    "properties": {
                        "errors": {
                            "type": "array",
                            "minItems": 1,
                            "items": _object({"field": {"type": "string"}, "message": {"type": "string"}}),
                        }
                    },
                },
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def usual(most: Limits) -> float:
    """Return how long a call may take that does not say, in seconds."""
    return min(DEFAULTS.limits.wall, most.wall)


def _call(most: Limits) -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "required": ["source"],
        "additionalProperties": False,
        "properties": {
            "source": {"type": "string", "minLength": 1},
            "args": {
                "type": "array",
                "items": {"type": "string", "pattern": "^[^\\u0000]*$"},
                "description": f"{WORDS} bytes at most, without the character NUL.",
            },
            "stdin": text,
            "context": {"description": "Anything; the program finds it as JSON in $CONTEXT."},
            "timeout": {"type": "number", "exclusiveMinimum": 0, "maximum": most.wall, "default": usual(most)},
            "workers": {"type": "integer", "minimum": 1, "maximum": MOST_WORKERS, "default": DEFAULTS.workers},
            "delay": {"type": "number", "minimum": 0, "maximum": most.wall, "default": 0},
        },
    }


def _answer() -> dict[str, Any]:
    status = {"type": "string", "enum": _STATUSES}
    worker = {"worker": {"type": "integer"}, "status": status, "wall_ms": {"type": "number"}, "reason": {"type": "string"}}
    exact = {"type": "string", "contentEncoding": "base64", "description": "What it wrote, where that is no UTF-8."}
    found = _object(
        {
            "language": {"type": "string"},
            "version": {"type": "string"},
            "status": status,
            "code": {"type": ["integer", "null"]},
            "signal": {"type": ["integer", "null"]},
            "stdout": {"type": "string"},
            "stderr": {"type": "string"},
            "wall_ms": {"type": "number"},
            "worker": {"type": "integer"},
            "workers": {"type": "array", "items": _object(worker)},
        }
    )
    found["properties"] |= {"stdout_base64": exact, "stderr_base64": exact}
    return found


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(said: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": said, "content": {"application/json": {"schema": schema}}}


def _errors(said: str) -> dict[str, Any]:
    return _json(said, _ref("Errors"))
