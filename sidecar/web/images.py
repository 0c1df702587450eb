"""Images, builds and pushes over HTTP: the calls of factory.Factory, and what is on offer as requests that can be sent.

    GET  /v1/images                       all, each with its builds' end, its providers, and `actions`
    GET  /v1/images/{name}
    POST /v1/images/{name}/builds         {target, labels} -> 202, and Location: the build
    GET  /v1/builds[/{id}[/log]]
    POST /v1/builds/{id}/pushes           {provider} -> 202, and Location: the push
    GET  /v1/pushes[/{id}[/log]]
    DELETE /v1/builds/{id}, /v1/pushes/{id}   stop it -> 200: it, as it ended
    GET  /v1/providers
    POST /v1/catalog/check                a manifest, YAML or JSON -> the images that it names

What takes long is a work, which a builder does: asking returns at once, and asking again for the same is the same work. One that
is stopped is over when that is answered, and its record stays; its builder ends what it does within about a second. A factory
is opened for each request, in a thread of its own, for neither stores nor providers answer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from sidecar.errors import Fault, ParametersError
from sidecar.factory.model import Action, Image, Kind, Work
from sidecar.web.asked import by_method, number_of, object_of
from sidecar.web.guard import body_of
from sidecar.web.refusal import Told

if TYPE_CHECKING:
    from sidecar.factory.factory import Factory

Opened = Callable[[], "AbstractContextManager[Factory]"]
Found = TypeVar("Found")
# To compose YAML takes a microsecond for each byte at least, and nobody else is answered well meanwhile.
_MANIFEST = 256 << 10
_PATHS: dict[Kind, str] = {"build": "builds", "push": "pushes"}


def routes(opened: Opened) -> list[Route]:
    """Return the routes of a factory, which `opened` opens."""
    web = _Images(opened)
    found = [
        Route("/v1/images", web.images),
        Route("/v1/images/{name}", web.image),
        Route("/v1/images/{name}/builds", web.build, methods=["POST"]),
        Route("/v1/builds/{id}/pushes", web.push, methods=["POST"]),
        Route("/v1/providers", web.providers),
        Route("/v1/catalog/check", web.check, methods=["POST"]),
    ]
    for kind, path in _PATHS.items():
        works = _Works(web, kind)
        found += [
            Route(f"/v1/{path}", works.all),
            by_method(f"/v1/{path}/{{id}}", GET=works.one, DELETE=works.stop),
            Route(f"/v1/{path}/{{id}}/log", works.log),
        ]
    return found


def image_as_json(image: Image) -> dict[str, Any]:
    """Return an image as it is told, with what is on offer as requests."""
    actions = [{**asdict(each), "method": "POST", **_request(each)} for each in image.actions]
    return {**image.as_json(), "actions": actions}


def _request(action: Action) -> dict[str, Any]:
    if action.do == "build":
        return {"href": f"/v1/images/{quote(action.image, safe='')}/builds", "body": {}}
    return {"href": f"/v1/builds/{action.build}/pushes", "body": {"provider": action.provider}}


class _Images:
    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    async def ask(self, question: Callable[[Factory], Found]) -> Found:
        """Return the answer of a factory of its own."""

        def answer() -> Found:
            with self._opened() as factory:
                return question(factory)

        return await run_in_threadpool(answer)

    async def images(self, _: Request) -> Response:
        found = await self.ask(lambda factory: factory.images())
        return Told({"images": [image_as_json(each) for each in found]})

    async def image(self, request: Request) -> Response:
        return Told(image_as_json(await self.ask(lambda factory: factory.image(request.path_params["name"]))))

    async def build(self, request: Request) -> Response:
        asked = await object_of(request, {"target": str, "labels": dict})
        labels = _labels(asked.get("labels", {}))
        name, target = request.path_params["name"], asked.get("target", "")
        return _accepted(await self.ask(lambda factory: factory.build(name, target, labels)))

    async def push(self, request: Request) -> Response:
        asked = await object_of(request, {"provider": str})
        if "provider" not in asked:
            raise ParametersError([Fault("request", "provider", "expected, it is missing")])
        number = number_of(request.path_params["id"], "id")
        return _accepted(await self.ask(lambda factory: factory.push(number, asked["provider"])))

    async def providers(self, _: Request) -> Response:
        found = await self.ask(lambda factory: factory.providers())
        # Where the credentials are is the server's own affair.
        told = [{key: value for key, value in asdict(each).items() if key != "authfile"} for each in found]
        return Told({"providers": told})

    async def check(self, request: Request) -> Response:
        body = await body_of(request, _MANIFEST)
        if not body:
            raise ParametersError([Fault("request", "body", "expected a manifest, it is empty")])
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise ParametersError([Fault("request", "body", f"expected UTF-8: {error.reason}")]) from None
        found = await self.ask(lambda factory: factory.check(text, "request"))
        told = [{**each.as_json(), "image": each.image and image_as_json(each.image)} for each in found]
        return Told({"images": told})


class _Works:
    """The works of one kind."""

    def __init__(self, web: _Images, kind: Kind) -> None:
        self._web, self._kind = web, kind

    async def all(self, request: Request) -> Response:
        image = request.query_params.get("image", "")
        found = await self._web.ask(lambda factory: factory.works(self._kind, image))
        return Told({_PATHS[self._kind]: [each.as_json() for each in found]})

    async def one(self, request: Request) -> Response:
        work = await self._get(request)
        return Told(work.as_json()) if work.kind == self._kind else _elsewhere(work, "")

    async def stop(self, request: Request) -> Response:
        number = number_of(request.path_params["id"], "id")
        # It is not looked at before: whoever looks has a builder begun, and is refused where none can be.
        work = await self._web.ask(lambda factory: factory.stop(number, self._kind))
        return Told(work.as_json()) if work.kind == self._kind else _elsewhere(work, "")

    async def log(self, request: Request) -> Response:
        """Answer a piece of the log behind `offset`; X-Next-Offset is where the next begins."""
        offset = number_of(request.query_params.get("offset"), "offset")
        work = await self._get(request)
        if work.kind != self._kind:
            return _elsewhere(work, f"/log?offset={offset}")
        found = await self._web.ask(lambda factory: factory.log(work.id, offset))
        return Response(found, headers={"X-Next-Offset": str(offset + len(found))}, media_type="text/plain; charset=utf-8")

    async def _get(self, request: Request) -> Work:
        number = number_of(request.path_params["id"], "id")
        return await self._web.ask(lambda factory: factory.work(number))


def _elsewhere(work: Work, rest: str) -> Response:
    """Answer that a number is of the other kind: both are counted as one."""
    return RedirectResponse(f"/v1/{_PATHS[work.kind]}/{work.id}{rest}")


def _accepted(work: Work) -> Response:
    return Told(work.as_json(), 202, headers={"Location": f"/v1/{_PATHS[work.kind]}/{work.id}"})


def _labels(given: dict[str, Any]) -> dict[str, str]:
    faults = [Fault("request", f"labels.{key}", "expected a text") for key, value in given.items() if not isinstance(value, str)]
    if faults:
        raise ParametersError(faults)
    return given
