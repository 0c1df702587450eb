"""The description of the whole server as OpenAPI 3.1: what may be asked of each of its parts, and what is answered. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from sidecar.factory.model import TARGETS, ImageStatus, Kind, Presence, Status
from sidecar.functions.answer import MIB, MOST, Limits
from sidecar.web.description import description

Schema = dict[str, Any]
# Numbers are those of a database.
LARGEST = (1 << 63) - 1
# Whoever is asked to end a session waits as long: in seconds.
LONGEST_GRACE = 3600
_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "integer", "minimum": 0, "maximum": LARGEST}


def contract(*, images: bool, functions: Sequence[str] | None, most: Limits = MOST) -> Schema:
    """Return the description of a server that has `images` or not, and these `functions`, or none at all (None)."""
    found = description(functions or (), most, MIB)
    if functions is None:
        found["paths"] = {path: each for path, each in found["paths"].items() if not path.startswith("/v1/")}
        found["components"]["schemas"] = {"Errors": found["components"]["schemas"]["Errors"]}
    found["info"]["title"] = "sidecar"
    found["paths"] |= {**_RUNS, **_SESSIONS, **_EVENTS, **(_IMAGES if images else {})}
    found["components"]["schemas"] |= {**_SCHEMAS, **(_OF_IMAGES if images else {})}
    return found


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_none(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _enum(words: Sequence[str]) -> Schema:
    return {"type": "string", "enum": list(words)}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


_WHY = {
    400: "Something is not of its form; each field is told.",
    401: "The bearer token is missing, or not known.",
    403: "A browser asks for another page, or another user asks, and there is no token.",
    404: "There is none of that name; `exist` names those that there are.",
    409: "It contradicts what is there.",
    413: "More than is taken.",
    429: "As many as may be do.",
    503: "The store cannot be read or written now.",
}


def _said(
    summary: str, answers: Mapping[int, tuple[str, Schema | None]], *refused: int, elsewhere: bool = False, **more: Any
) -> Schema:
    """Return an operation; `answers` are a sentence and what is in it, by media type."""
    told: Schema = {"307": {"description": "It is of the other kind: see Location."}} if elsewhere else {}
    for status, (sentence, content) in answers.items():
        told[str(status)] = {"description": sentence, **({"content": content} if content else {})}
    for status in sorted({401, 403, 503, *refused}):
        told[str(status)] = {"description": _WHY[status], "content": _json(_ref("Errors"))}
    return {"summary": summary, "responses": told, **more}


def _named(name: str, where: str = "path", schema: Schema = _TEXT, *, needed: bool = True) -> Schema:
    return {"name": name, "in": where, "required": needed, "schema": schema}


def _body(schema: Schema, *, needed: bool = True) -> Schema:
    return {"required": needed, "content": _json(schema)}


_LOG = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_RUN = [_named("instance", "query"), _named("name", "query")]
_RUNS: Schema = {
    "/v1/runs": {
        "get": _said(
            "What ran at most once, the latest last.",
            {
                200: (
                    "As many as one answer holds; `before` asks for those before them.",
                    _json(_object(runs=_list(_ref("Run")), before=_NUMBER)),
                )
            },
            400,
            parameters=[_named("name", "query", needed=False), _named("before", "query", _NUMBER, needed=False)],
        )
    },
    "/v1/runs/one": {"get": _said("One run.", {200: ("It.", _json(_ref("Run")))}, 400, 404, parameters=_RUN)},
    "/v1/runs/log": {
        "get": _said(
            "What a run wrote, as written; X-Next-Offset is where the next piece begins.",
            {
                200: (
                    "Both streams as they were read, or one: behind `offset`, no more than the `last` bytes, or a piece of that.",
                    _LOG,
                )
            },
            400,
            404,
            parameters=[
                *_RUN,
                _named("source", "query", _enum(["stdout", "stderr"]), needed=False),
                _named("offset", "query", _NUMBER, needed=False),
                _named("last", "query", _NUMBER, needed=False),
            ],
        )
    },
    "/v1/runs/pieces": {
        "get": _said(
            "What a run wrote, piece by piece, in the order in which it was read.",
            {200: ("The next behind the number `after`.", _json(_object(run=_ref("Run"), pieces=_list(_ref("Piece")))))},
            400,
            404,
            parameters=[*_RUN, _named("after", "query", _NUMBER, needed=False)],
        )
    },
}

_POD = _named("name")
_SESSION = _json(_ref("Session"))
_SESSIONS: Schema = {
    "/v1/sessions": {
        "get": _said(
            "The sessions of this machine, and whether a volume of the next one may be an image.",
            {200: ("All, by name.", _json(_object(image_volumes={"type": "boolean"}, sessions=_list(_ref("Session")))))},
        ),
        "post": _said(
            "Begin a session: its pod, as `sidecar session compose -o json` prints it.",
            {201: ("It has begun; Location says where it is.", _SESSION)},
            400,
            409,
            413,
            requestBody=_body({**_object(pod={"type": "object"}), "additionalProperties": False}),
        ),
    },
    "/v1/sessions/{name}": {
        "get": _said("How a session stands.", {200: ("So.", _SESSION)}, 404, parameters=[_POD]),
        "delete": _said(
            "End a session, and remove all that is of it.",
            {200: ("How it ended.", _SESSION)},
            400,
            404,
            409,
            429,
            parameters=[_POD, _named("grace", "query", {**_NUMBER, "maximum": LONGEST_GRACE}, needed=False)],
        ),
    },
    "/v1/sessions/{name}/logs/{container}": {
        "get": _said(
            "What a container wrote so far, in all its lives; X-Next-Offset is where the next piece begins.",
            {200: ("As written, behind `offset`, no more than the `last` bytes of it, or a piece of that.", _LOG)},
            400,
            404,
            parameters=[
                _POD,
                _named("container"),
                _named("offset", "query", _NUMBER, needed=False),
                _named("last", "query", _NUMBER, needed=False),
            ],
        )
    },
    "/v1/sessions/{name}/coordination": {
        "get": _said(
            "Who is how far, and waits for whom.",
            {200: ("As `sidecar status --json` tells it.", _json({"type": "object"}))},
            404,
            parameters=[_POD],
        )
    },
}

_EVENTS: Schema = {
    "/v1/events": {
        "get": _said(
            "What changes, as it changes; first all that there is.",
            {200: ("Events work, session, run and gone.", {"text/event-stream": {"schema": _TEXT}})},
            429,
        )
    }
}

_ID = _named("id", schema={"type": "integer", "minimum": 1, "maximum": LARGEST})


def _works(path: str, kind: Kind) -> Schema:
    """Return the paths of the works of one kind."""
    work, plural = _json(_ref("Work")), path.rpartition("/")[2]
    return {
        path: {
            "get": _said(
                f"The latest {plural}, the newest first.",
                {200: ("They.", _json(_object(**{plural: _list(_ref("Work"))})))},
                parameters=[_named("image", "query", needed=False)],
            )
        },
        f"{path}/{{id}}": {
            "get": _said(f"How a {kind} stands.", {200: ("So.", work)}, 400, 404, elsewhere=True, parameters=[_ID]),
            "delete": _said(
                f"Stop a {kind} that waits or is under way: it is FAILED then, and may be asked for again. What is over stays.",
                {200: ("It, as it ended.", work)},
                400,
                404,
                elsewhere=True,
                parameters=[_ID],
            ),
        },
        f"{path}/{{id}}/log": {
            "get": _said(
                f"What a {kind} has said, from `offset` on; X-Next-Offset is where the next piece begins.",
                {200: ("A piece of it.", {"text/plain": {"schema": _TEXT}})},
                400,
                404,
                elsewhere=True,
                parameters=[_ID, _named("offset", "query", _NUMBER, needed=False)],
            )
        },
    }


_ACCEPTED = {202: ("It is asked for, or was; Location says where it is.", _json(_ref("Work")))}
_IMAGES: Schema = {
    "/v1/images": {
        "get": _said(
            "Which images there are, built, stale, and where they are pushed.",
            {200: ("All.", _json(_object(images=_list(_ref("Image")))))},
            409,
        )
    },
    "/v1/images/{name}": {
        "get": _said("One image.", {200: ("It.", _json(_ref("Image")))}, 404, 409, parameters=[_named("name")])
    },
    "/v1/images/{name}/builds": {
        "post": _said(
            "Build an image. The same content for the same target is the same build.",
            _ACCEPTED,
            400,
            404,
            409,
            413,
            parameters=[_named("name")],
            requestBody=_body(
                {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "target": _enum(TARGETS),
                        "labels": {"type": "object", "additionalProperties": _TEXT},
                    },
                },
                needed=False,
            ),
        )
    },
    **_works("/v1/builds", "build"),
    "/v1/builds/{id}/pushes": {
        "post": _said(
            "Push a build that is complete to a provider.",
            _ACCEPTED,
            400,
            404,
            409,
            413,
            parameters=[_ID],
            requestBody=_body({**_object(provider=_TEXT), "additionalProperties": False}),
        )
    },
    **_works("/v1/pushes", "push"),
    "/v1/providers": {"get": _said("Where images go.", {200: ("All.", _json(_object(providers=_list(_ref("Provider")))))}, 409)},
    "/v1/catalog/check": {
        "post": _said(
            "Which images a manifest names, and how ours are.",
            {200: ("Each with its line.", _json(_object(images=_list(_ref("Named")))))},
            400,
            409,
            413,
            requestBody={"required": True, "content": {"text/plain": {"schema": _TEXT}, **_json({})}},
        )
    },
}

_SCHEMAS: Schema = {
    "Run": {
        "type": "object",
        "required": ["id", "name", "instance", "state", "claimed_at", "started_at", "finished_at", "status", "command"],
        "properties": {
            "id": _NUMBER,
            "name": _TEXT,
            "instance": _TEXT,
            "state": _enum(["running", "finished", "failed-to-start", "unknown"]),
            "claimed_at": _TEXT,
            "started_at": _or_none(_TEXT),
            "finished_at": _or_none(_TEXT),
            "status": _or_none(_NUMBER),
            "command": _list(_TEXT),
        },
    },
    "Piece": {
        "type": "object",
        "required": ["number", "stream", "at"],
        "properties": {
            "number": _NUMBER,
            "stream": _enum(["stdout", "stderr"]),
            "at": _TEXT,
            "text": _TEXT,
            "base64": {"type": "string", "contentEncoding": "base64"},
        },
    },
    "Session": _object(
        name=_TEXT,
        session=_TEXT,
        phase=_enum(["Pending", "Running", "Succeeded", "Failed", "Unknown"]),
        containers=_list(
            _object(
                name=_TEXT,
                state=_enum(["waiting", "running", "exited"]),
                exit=_or_none(_NUMBER),
                restarts=_NUMBER,
                reason=_TEXT,
            )
        ),
        reason=_TEXT,
        actions=_list(_ref("Action")),
    ),
    "Action": {
        "type": "object",
        "required": ["do", "method", "href", "body"],
        "properties": {"do": _enum(["build", "push", "stop"]), "method": _TEXT, "href": _TEXT, "body": {"type": "object"}},
    },
}

_OF_IMAGES: Schema = {
    "Work": _object(
        id=_NUMBER,
        kind=_enum(get_args(Kind)),
        site=_TEXT,
        image=_TEXT,
        target=_enum(TARGETS),
        content=_TEXT,
        status=_enum(get_args(Status)),
        percent_complete={"type": "integer", "minimum": 0, "maximum": 100},
        status_detail=_object(activity=_TEXT, error=_TEXT),
        provider=_TEXT,
        build=_NUMBER,
        digest=_TEXT,
        reference=_TEXT,
        labels={"type": "object", "additionalProperties": _TEXT},
        asked=_NUMBER,
        started=_NUMBER,
        finished=_NUMBER,
    ),
    "Image": _object(
        name=_TEXT,
        content=_TEXT,
        target=_enum(TARGETS),
        status=_enum(get_args(ImageStatus)),
        build=_or_none(_ref("Work")),
        providers=_list(
            _object(provider=_TEXT, presence=_enum(get_args(Presence)), digest=_TEXT, push=_or_none(_ref("Work")), reason=_TEXT)
        ),
        actions=_list(_ref("Action")),
    ),
    "Named": _object(reference=_TEXT, line=_NUMBER, note=_TEXT, image=_or_none(_ref("Image"))),
    "Provider": _object(name=_TEXT, registry=_TEXT, layout=_TEXT, plain={"type": "boolean"}),
}
