"""A server, maybe of another machine, asked over HTTP: the library's own methods, which give back the same and raise the same.

    Client(url, token).images                a factory.Factory, but for where it is
    Client(url, token).sessions              a session.runner.Runner
    Client(url, token).runs                  a once.ledger.Ledger, as far as it tells of runs
    Client(url, token).functions             a functions.service.Service, which waits for its answers

Whatever the server refuses is raised as what the library would have raised. It alone is asked: no proxy of the environment's
stands in between, and the token goes nowhere else. What it answers is not trusted to be of its form (Corrupt).
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from sidecar.errors import (
    ConfigurationError,
    Corrupt,
    DeadlinePassed,
    Fault,
    ParametersError,
    SidecarError,
    SourceMissing,
    Unreachable,
)
from sidecar.factory.model import Image, Kind, Named, Provider, Work
from sidecar.functions.answer import MOST_WORKERS, Answer, Asked, Ran
from sidecar.heard import made, text, texts, whole
from sidecar.once.facts import Piece, Run
from sidecar.once.told import of_json as run_of_json
from sidecar.once.told import piece_of_json
from sidecar.session.runner import ENDED, Manifest, Status

Found = TypeVar("Found")
# What answers at once does so in this time, in seconds: the server asks providers, which have two of their own.
PATIENCE = 30.0
# To end a session takes as long as its containers are given.
_GRACE = 600.0
_LARGEST = 64 << 20
_PIECE = 1 << 16
_PAUSE = 0.5


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """A server at `url`; `token` is said to it. ConfigurationError where the address is of no server."""

    def __init__(self, url: str, token: str = "") -> None:
        try:
            self._at = urlsplit(url)
            port = self._at.port
        except ValueError as error:
            raise ConfigurationError(f"{url!r} is no address of a server: {error}") from None
        if self._at.scheme not in ("http", "https") or not self._at.hostname or self._at.username or self._at.query:
            raise ConfigurationError(f"{url!r} is no address of a server: expected one such as http://127.0.0.1:8080")
        self._host, self._port = self._at.hostname, port
        self._token = token
        self.images = _Images(self)
        self.sessions = _Sessions(self)
        self.runs = _Runs(self)
        self.functions = _Functions(self)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        text: str | None = None,
        patience: float = PATIENCE,
        refused: Callable[[_Answer, str], SidecarError] | None = None,
    ) -> _Answer:
        """Return the answer to a request; what it refuses is raised, as `refused` says where it is none of the usual."""
        data = None if body is None and text is None else (text if text is not None else json.dumps(body)).encode()
        headers = {"Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json" if text is None else "text/plain; charset=utf-8"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        kind = http.client.HTTPSConnection if self._at.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=patience)
        try:
            connection.request(method, self._at.path.rstrip("/") + path, data, headers)
            answer = connection.getresponse()
            said = answer.read(_LARGEST + 1)
        except (ValueError, http.client.InvalidURL) as error:
            # A name that no path can say, or an address that no resolver takes; what it is may be secret, and is not told.
            raise ConfigurationError(f"{method} cannot be asked of {self._at.hostname}: {type(error).__name__}") from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unreachable(f"{self._at.scheme}://{self._at.netloc} does not answer: {why}") from None
        finally:
            connection.close()
        if len(said) > _LARGEST:
            raise Unreachable(f"{path} answers with more than {_LARGEST >> 20} MiB")
        found = _Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, said)
        if answer.status >= 400:
            raise (refused or _refused)(found, path)
        return found

    def get(self, path: str, make: Callable[[Any], Found], **query: str) -> Found:
        """Return what `make` makes of what is told at a path."""
        return self.made(self.ask("GET", path + (f"?{urlencode(query, errors='surrogateescape')}" if query else "")), make)

    def made(self, answer: _Answer, make: Callable[[Any], Found]) -> Found:
        """Return what `make` makes of an answer; Corrupt where that is not of the form that is known here."""
        try:
            return make(json.loads(answer.body))
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError, OverflowError):
            raise Corrupt(f"{self._at.netloc} answers with what is not known here: is that a server of this version?") from None


def _said(name: str) -> str:
    """Return a name as a part of a path; any bytes that a command line may hold."""
    return quote(name.encode(errors="surrogateescape"), safe="")


def _refused(answer: _Answer, path: str) -> SidecarError:
    """Return what the library would have raised."""
    try:
        told = json.loads(answer.body)
    except (ValueError, RecursionError):
        told = None
    told = told if isinstance(told, dict) else {}
    found = told.get("errors")
    listed = found if isinstance(found, list) else []
    faults = [
        Fault("server", str(each.get("field", "")), str(each.get("message", ""))) for each in listed if isinstance(each, dict)
    ]
    message = "; ".join(each.problem for each in faults) or (
        f"{path} is not served there" if answer.status in (404, 405) else f"{path} answers {answer.status}"
    )
    match answer.status:
        case 400 | 413 | 415 | 422:
            return ParametersError(faults or [Fault("server", "", message)])
        case 401 | 403:
            return ConfigurationError(f"the server refuses: {message}; it is to be asked with its token in SIDECAR_TOKEN")
        case 404 | 405:
            exist = told.get("exist")
            return SourceMissing(message, [str(each) for each in exist] if isinstance(exist, list) else ())
        case 409:
            return ConfigurationError(message)
    return Unreachable(message)


class _Part:
    """A part of a server, which is let go of as the library's are: there is nothing to close, each request has a connection."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of nothing."""


class _Images(_Part):
    """The methods of factory.Factory."""

    def images(self) -> list[Image]:
        """Return all images, as they are now."""
        return self._client.get("/v1/images", lambda told: [Image.of_json(each) for each in told["images"]])

    def image(self, name: str) -> Image:
        """Return one image; SourceMissing."""
        return self._client.get(f"/v1/images/{_said(name)}", Image.of_json)

    def build(self, name: str, target: str = "", labels: Mapping[str, str] | None = None) -> Work:
        """Ask for a build, and return it."""
        asked = {**({"target": target} if target else {}), **({"labels": dict(labels)} if labels else {})}
        return self._asked(f"/v1/images/{_said(name)}/builds", asked)

    def push(self, build: int, provider: str) -> Work:
        """Ask for a push, and return it."""
        return self._asked(f"/v1/builds/{build}/pushes", {"provider": provider})

    def works(self, kind: Kind | str = "", image: str = "") -> list[Work]:
        """Return the latest works, of a kind or of an image, the newest first."""
        paths = {"build": ("builds",), "push": ("pushes",)}.get(kind, ("builds", "pushes"))
        query = {"image": image} if image else {}
        found: list[Work] = []
        for path in paths:
            found += self._client.get(f"/v1/{path}", partial(_works, path), **query)
        return sorted(found, key=lambda each: each.id, reverse=True)

    def work(self, number: int) -> Work:
        """Return one work; SourceMissing."""
        return self._client.made(self._of(number, ""), Work.of_json)

    def stop(self, number: int) -> Work:
        """End a work that is not over, and return it as it ended; SourceMissing."""
        return self._client.made(self._of(number, "", "DELETE"), Work.of_json)

    def log(self, number: int, offset: int = 0) -> bytes:
        """Return what a work has said behind `offset`, or a piece of that."""
        return self._of(number, f"/log?offset={offset}").body

    def providers(self) -> list[Provider]:
        """Return where images go."""
        return self._client.get("/v1/providers", lambda told: [made(Provider, each) for each in told["providers"]])

    def check(self, manifest: str, name: str = "manifest") -> list[Named]:  # noqa: ARG002
        """Return the images that a manifest names."""
        answer = self._client.ask("POST", "/v1/catalog/check", text=manifest)
        return self._client.made(answer, lambda told: [Named.of_json(each) for each in told["images"]])

    def _asked(self, path: str, body: object) -> Work:
        return self._client.made(self._client.ask("POST", path, body), Work.of_json)

    def _of(self, number: int, rest: str, method: str = "GET") -> _Answer:
        """Return what is answered of a work: numbers are of builds and of pushes."""
        answer = self._client.ask(method, f"/v1/builds/{number}{rest}")
        return self._client.ask(method, f"/v1/pushes/{number}{rest}") if answer.status == 307 else answer


class _Sessions(_Part):
    """The methods of session.runner.Runner."""

    @property
    def image_volumes(self) -> bool:
        """Whether a volume may be an image: that is as the server's runner is."""
        return self._client.get("/v1/sessions", lambda told: bool(told["image_volumes"]))

    def start(self, pod: Manifest) -> None:
        """Begin the pod, and return."""
        self._client.ask("POST", "/v1/sessions", {"pod": pod})

    def list(self) -> list[Status]:
        """Return the pods that are there, by name."""
        return self._client.get("/v1/sessions", lambda told: [_status(each) for each in told["sessions"]])

    def status(self, name: str) -> Status:
        """Return how a pod stands; SourceMissing."""
        return self._client.get(f"/v1/sessions/{_said(name)}", _status)

    def wait(self, name: str, timeout: float | None = None) -> Status:
        """Return when a pod has ended; DeadlinePassed."""
        end = None if timeout is None else time.monotonic() + timeout
        while (found := self.status(name)).phase not in ENDED:
            if end is not None and time.monotonic() >= end:
                raise DeadlinePassed(f"pod {name} has not ended within {timeout:g} s", name)
            time.sleep(_PAUSE)
        return found

    def logs(self, name: str, container: str, *, follow: bool = False) -> Iterator[bytes]:
        """Yield what a container wrote; to `follow` asks again and again until it has ended for good."""
        path = f"/v1/sessions/{_said(name)}/logs/{_said(container)}"
        told = 0
        while True:
            over = not follow or _is_over(self.status(name), container)
            while written := self._client.ask("GET", f"{path}?offset={told}").body:
                yield written
                told += len(written)
            if over:
                return
            time.sleep(_PAUSE)

    def stop(self, name: str, grace: float | None = None) -> Status:
        """End a pod, remove all that is of it, and return how it ended."""
        query = "" if grace is None else f"?grace={int(grace)}"
        path = f"/v1/sessions/{_said(name)}{query}"
        return self._client.made(self._client.ask("DELETE", path, patience=_GRACE + (grace or 0)), _status)


class _Runs(_Part):
    """The methods of once.ledger.Ledger that tell of runs."""

    folder = ""

    def runs(self, latest: int = -1, before: int = 0, name: str = "") -> list[Run]:
        """Return all runs, in the order in which they were claimed, or those of them that are asked for."""
        found: list[Run] = []
        while latest < 0 or len(found) < latest:
            asked = {"before": str(before), "name": name}
            runs, left = self._client.get(
                "/v1/runs", lambda told: ([run_of_json(each) for each in told["runs"]], whole(told, "before")), **asked
            )
            found = runs + found
            # Each answer is of some before the last one: whoever tells otherwise would be asked for ever.
            if not runs or not left or (before and left >= before):
                break
            before = left
        return found if latest < 0 else found[max(0, len(found) - latest) :]

    def get(self, instance: str, name: str) -> Run:
        """Return the run of that name; SourceMissing."""
        return self._client.get("/v1/runs/one", run_of_json, instance=instance, name=name)

    def again(self, run: Run) -> Run | None:
        """Return how it stands with a run by now; None where it was forgotten."""
        try:
            found = self.get(run.instance, run.name)
        except SourceMissing:
            return None
        return found if found.id == run.id else None

    def pieces(self, run: Run, after: int = 0) -> list[Piece]:
        """Return the next pieces of what a run wrote, behind number `after`; none where there are no more, so far."""
        named = {"instance": run.instance, "name": run.name, "after": str(after)}

        def made(told: Any) -> tuple[Run, list[Piece]]:
            pieces = [piece_of_json(each) for each in told["pieces"]]
            numbers = [after, *(each.number for each in pieces)]
            if any(number >= following for number, following in pairwise(numbers)):
                raise ValueError("pieces go back")
            return run_of_json(told["run"]), pieces

        try:
            found, pieces = self._client.get("/v1/runs/pieces", made, **named)
        except SourceMissing:
            return []
        # Where it was forgotten meanwhile, and ran again, that is another's output.
        return pieces if found.id == run.id else []

    def output(self, run: Run) -> Iterator[Piece]:
        """Yield what a run has written so far, in the order in which it was read."""
        after = 0
        while pieces := self.pieces(run, after):
            yield from pieces
            after = pieces[-1].number


class _Functions(_Part):
    """What functions.service.Service does, but a call is waited for."""

    @property
    def runtimes(self) -> tuple[tuple[str, str], ...]:
        """Which there are, by language and version."""
        return self._client.get(
            "/v1/functions",
            lambda told: tuple(
                (text(each, "language"), version) for each in told["functions"] for version in texts(each, "versions")
            ),
        )

    def call(self, runtime: str, asked: Asked) -> Answer:
        """Return what came of running a source; SourceMissing, ParametersError, Full, NobodyAnswered.

        Of the limits the time alone is asked for, in seconds. What is no UTF-8 cannot be asked, nor a context that is not JSON
        (ParametersError).
        """
        answer = self._client.ask(
            "POST",
            f"/v1/functions/{_said(runtime)}/invocations",
            _invocation(asked),
            # As long as all that may run it take, one after the other.
            patience=PATIENCE + MOST_WORKERS * (asked.limits.wall + asked.delay),
            refused=_not_run,
        )
        return self._client.made(answer, Answer.of_json)


def _invocation(asked: Asked) -> dict[str, object]:
    """Return the body of a call; ParametersError with all that it cannot say."""
    faults: list[Fault] = []

    def decoded(key: str, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            faults.append(Fault("call", key, "expected UTF-8, which is what a server is sent"))
            return ""

    told: dict[str, object] = {
        "source": decoded("source", asked.source),
        "args": [decoded("args", each.encode(errors="surrogateescape")) for each in asked.arguments],
        "stdin": decoded("stdin", asked.stdin),
        "timeout": asked.limits.wall,
        "workers": asked.workers,
        "delay": asked.delay,
    }
    if asked.context:
        try:
            told["context"] = json.loads(asked.context)
        except (ValueError, RecursionError):
            faults.append(Fault("call", "context", "expected JSON, which is what a server is sent"))
    if faults:
        raise ParametersError(list(dict.fromkeys(faults)))
    return told


def _not_run(answer: _Answer, path: str) -> SidecarError:
    """Return why a call was not answered; of what is no matter of functions, as usual."""
    from sidecar.functions.service import Full, NobodyAnswered

    if answer.status == 429:
        seconds = answer.headers.get("retry-after", "")
        return Full(float(seconds) if seconds.isascii() and seconds.isdecimal() else 1.0)
    if answer.status == 503:
        try:
            return NobodyAnswered([made(Ran, each) for each in json.loads(answer.body)["workers"]])
        except (ValueError, RecursionError, LookupError, TypeError):
            pass  # it is the server's own: a store that cannot be read
    return _refused(answer, path)


def _works(path: str, told: Mapping[str, Any]) -> list[Work]:
    return [Work.of_json(each) for each in told[path]]


def _is_over(pod: Status, container: str) -> bool:
    return pod.phase in ENDED or any(each.name == container and each.state == "exited" for each in pod.containers)


def _status(told: Mapping[str, Any]) -> Status:
    return made(Status, told)
