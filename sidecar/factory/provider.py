"""What a provider has under the names of images: a registry is asked over HTTP, an OCI layout is read.

What one must know to change it. `Found()`, nothing there, is said only where the provider itself says so: a registry's 404 with a
registry's error in it, a layout that is whole and has no such name, or is not there yet. All else is `unreachable`, with
a reason: nobody may push over something only because it could not be seen.

Each question has `within` seconds from its beginning to its end, names resolved and tokens fetched, and the questions to all
providers together MOST. A timeout of the socket bounds neither a resolver nor an answer that comes letter by letter, so providers
are asked by threads of their own, which are left behind where they take longer: they end with their connection, which is cut.

Credentials come from the authfile, go to the registry and to where it has tokens fetched, over TLS unless the registry is said
to be plain, never along a redirection to elsewhere, and stand in no error. Answers, and files of a layout, are read up to LIMIT.
In a layout no link is followed: its folder is named by whoever has the factory, what is in it by anybody who could write there.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import http.client
import json
import os
import queue
import re
import socket
import ssl
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NoReturn
from urllib.parse import urlencode, urljoin, urlsplit

from sidecar.factory.model import Found, Provider

WITHIN = 2.0
MOST = 10.0
LIMIT = 4 << 20

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_CHALLENGE = re.compile(r'([A-Za-z]+)="((?:[^"\\]|\\.)*)"')
_ACCEPTED = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
_REDIRECTED = (301, 302, 303, 307, 308)
# From a registry to where it keeps its manifests, and from there to another place once more.
_REDIRECTIONS = 3
# Under which annotation a layout says what a manifest in it is called.
_NAME = "org.opencontainers.image.ref.name"


def look(wanted: Mapping[Provider, Mapping[str, str]], within: float = WITHIN) -> dict[tuple[str, str], Found]:
    """Return what providers have: by provider and image, of those that are `wanted` there by their reference at it."""
    answers: queue.SimpleQueue[tuple[_Asker, str, Found]] = queue.SimpleQueue()
    askers = [_Asker(provider, names, within, answers) for provider, names in wanted.items()]
    for asker in askers:
        threading.Thread(target=asker.ask, daemon=True).start()
    found: dict[tuple[str, str], Found] = {}
    begun = time.monotonic()
    end = dict.fromkeys(askers, begun + within)
    while end:
        try:
            asker, image, answer = answers.get(timeout=max(0.0, min(end.values()) - time.monotonic()))
        except queue.Empty:
            now = time.monotonic()
            for asker in [each for each, until in end.items() if until <= now]:
                del end[asker]
                asker.leave()
            continue
        if not image:
            end.pop(asker, None)
        elif asker in end:
            found[asker.provider.name, image] = answer
            end[asker] = min(time.monotonic() + within, begun + MOST)
    silent = Found(unreachable=f"no answer within {within:g} s")
    return {
        (each.provider.name, image): found.get((each.provider.name, image), silent) for each in askers for image in each.names
    }


class _Asker:
    """Asks one provider for one image after another, in a thread."""

    def __init__(
        self,
        provider: Provider,
        names: Mapping[str, str],
        within: float,
        answers: queue.SimpleQueue[tuple[_Asker, str, Found]],
    ) -> None:
        self.provider, self.names, self._answers = provider, names, answers
        self._place: _Registry | _Layout = _Registry(provider, within) if provider.registry else _Layout(provider)
        self._left = False

    def ask(self) -> None:
        """Ask for all, unless it is left meanwhile; the answer for "" is the end of it."""
        for image, reference in self.names.items():
            if self._left:
                break
            try:
                answer = Found(self._place.digest(reference))
            except _UnknownError as error:
                answer = Found(unreachable=str(error))
            except ssl.SSLCertVerificationError as error:
                answer = Found(unreachable=f"its certificate is not trusted: {error.verify_message}")
            except TimeoutError:
                break  # It would not answer the others, either.
            except OSError as error:
                answer = Found(unreachable=(error.strerror or str(error) or type(error).__name__).lower())
            except (http.client.HTTPException, ValueError, RecursionError):
                answer = Found(unreachable="it answers as no registry does")
            self._answers.put((self, image, answer))
        self._answers.put((self, "", Found()))
        self._place.close()

    def leave(self) -> None:
        """Wait for no more answers; from any thread."""
        self._left = True
        self._place.cut()


class _UnknownError(Exception):
    """It is not known what is there; the message says why."""


# --- registries --------------------------------------------------------------------------------------------------------


class _Registry:
    """One registry, as images are looked for in it."""

    def __init__(self, provider: Provider, within: float) -> None:
        self._provider, self._within = provider, within
        self._host = provider.registry.partition("/")[0]
        self._url = f"{'http' if provider.plain else 'https'}://{self._host}"
        self._connection: http.client.HTTPConnection | None = None

    def digest(self, reference: str) -> str:
        """Return the digest of what is there, "" where the registry says that there is nothing."""
        repository, _, tag = reference.partition("/")[2].rpartition(":")
        url = f"{self._url}/v2/{repository}/manifests/{tag}"
        headers = {"Accept": _ACCEPTED, "User-Agent": "sidecar"}
        answer = self._ask("HEAD", url, headers)
        if answer.status == 401:
            headers["Authorization"] = self._authorization(answer, repository)
            answer = self._ask("HEAD", url, headers)
        if answer.status == 200:
            said = answer.getheader("Docker-Content-Digest", "")
            return said if _DIGEST.fullmatch(said) else self._hashed(url, headers)
        if answer.status == 404:
            # So would any server say that is no registry: that has more to say, to those who want to hear.
            self._check_missing(self._ask("GET", url, headers))
            return ""
        if answer.status in (401, 403):
            raise _UnknownError("it refuses to tell" + ("" if self._provider.authfile else ": no credentials are configured"))
        raise _UnknownError(f"it answers {answer.status}")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def cut(self) -> None:
        """Have whoever waits for an answer wait no longer."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _hashed(self, url: str, headers: Mapping[str, str]) -> str:
        """Return the digest of a manifest of which the registry does not tell it."""
        answer = self._ask("GET", url, headers)
        body = _body(answer)
        if answer.status != 200 or _object(body).get("schemaVersion") != 2:
            raise _UnknownError("it answers as no registry does")
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def _check_missing(self, answer: http.client.HTTPResponse) -> None:
        errors = _object(_body(answer)).get("errors")
        codes = [each.get("code") for each in errors if isinstance(each, dict)] if isinstance(errors, list) else []
        if answer.status != 404 or not {"MANIFEST_UNKNOWN", "NAME_UNKNOWN", "NOT_FOUND"} & {str(each) for each in codes}:
            raise _UnknownError("it answers as no registry does")

    def _ask(self, method: str, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Return an answer, after redirections; credentials go to the registry alone."""
        for _ in range(_REDIRECTIONS + 1):
            own = url.startswith(f"{self._url}/")
            sent = {key: value for key, value in headers.items() if own or key != "Authorization"}
            answer = self._send(method, url, sent)
            target = answer.getheader("Location", "")
            if answer.status not in _REDIRECTED or not target:
                return answer
            url = urljoin(url, target)
        raise _UnknownError("it redirects again and again")

    def _send(self, method: str, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and self._provider.plain):
            raise _UnknownError(f"it leads to {parts.scheme or 'nowhere'}, where https is expected")
        self.close()
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = connection = kind(parts.netloc.rpartition("@")[2], timeout=self._within)
        connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), headers=dict(headers))
        return connection.getresponse()

    # --- credentials

    def _authorization(self, refused: http.client.HTTPResponse, repository: str) -> str:
        """Return what the registry wants to be told by whoever looks into a repository."""
        own = self._credentials(repository)
        for said in refused.headers.get_all("WWW-Authenticate", []):
            scheme, _, rest = said.strip().partition(" ")
            if scheme.lower() == "bearer":
                return f"Bearer {self._token(dict(_CHALLENGE.findall(rest)), repository, own)}"
            if scheme.lower() == "basic" and own:
                return own
        raise _UnknownError("it refuses to tell: no credentials are configured" if not own else "it refuses to tell")

    def _token(self, challenge: Mapping[str, str], repository: str, own: str) -> str:
        asked = {"service": challenge.get("service", ""), "scope": f"repository:{repository}:pull"}
        realm = urlsplit(challenge.get("realm", ""))
        query = "&".join(filter(None, (realm.query, urlencode({key: value for key, value in asked.items() if value}))))
        answer = self._send("GET", realm._replace(query=query).geturl(), {"Authorization": own} if own else {})
        if answer.status != 200:
            raise _UnknownError(f"it refuses to tell: its tokens' server answers {answer.status}")
        found = _object(_body(answer))
        token = found.get("token") or found.get("access_token")
        if not isinstance(token, str):
            raise _UnknownError("it refuses to tell: its tokens' server answers without one")
        return token

    def _credentials(self, repository: str) -> str:
        """Return the credentials of the authfile, the most special ones of those that fit; "" without an authfile."""
        path = self._provider.authfile
        if not path:
            return ""
        try:
            with open(path, "rb") as file:
                known = _object(file.read(LIMIT)).get("auths")
            return self._fitting(known, repository) if isinstance(known, dict) else ""
        except OSError as error:
            raise _UnknownError(f"its authfile {path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise _UnknownError(f"its authfile {path} is none") from None

    def _fitting(self, known: Mapping[str, Any], repository: str) -> str:
        place = f"{self._host}/{repository}"
        while place:
            entry = known.get(place)
            if isinstance(entry, dict) and isinstance(entry.get("auth"), str):
                # Whatever stands there: newlines would be headers of their own.
                return "Basic " + base64.b64encode(base64.b64decode(entry["auth"], validate=True)).decode()
            place = place.rpartition("/")[0]
        return ""


def _body(answer: http.client.HTTPResponse) -> bytes:
    body = answer.read(LIMIT + 1)
    if len(body) > LIMIT:
        raise _UnknownError(f"it answers with more than {LIMIT} bytes")
    return body


def _object(body: bytes) -> dict[str, Any]:
    """Return a JSON object; ValueError or RecursionError where it is none."""
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError("no object")  # noqa: TRY004
    return found


# --- layouts -----------------------------------------------------------------------------------------------------------


class _Layout:
    """One OCI layout, as images are looked for in it."""

    def __init__(self, provider: Provider) -> None:
        self._path = provider.layout

    def digest(self, reference: str) -> str:
        """Return the digest of what has this name, "" where there is none, or what it consists of is not all there."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return ""  # A push makes it.
        except OSError as error:
            raise _UnknownError(f"{self._path} cannot be read: {error.strerror}") from None
        try:
            return self._find(fd, reference)
        finally:
            os.close(fd)

    def close(self) -> None:
        pass

    def cut(self) -> None:
        pass

    def _find(self, fd: int, reference: str) -> str:
        index = self._read(fd, "index.json")
        if index is None:
            return ""
        entries = self._parsed(index, "index.json").get("manifests")
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            self._damaged("index.json")
        for entry in entries:
            names = entry.get("annotations")
            if isinstance(names, dict) and names.get(_NAME) == reference:
                return self._whole(fd, entry)
        return ""

    def _whole(self, fd: int, entry: dict[str, Any]) -> str:
        """Return the digest of a manifest if it is what its digest says and all that it names is there, else ""."""
        digest = entry.get("digest")
        body = self._read(fd, self._blob(digest, "index.json"))
        if body is None:
            return ""
        algorithm, _, expected = str(digest).partition(":")
        if hashlib.new(algorithm, body).hexdigest() != expected:
            self._damaged(self._blob(digest, ""))
        manifest = self._parsed(body, str(digest))
        layers = manifest.get("layers", [])
        for part in (*([manifest["config"]] if "config" in manifest else []), *(layers if isinstance(layers, list) else [])):
            size = self._size(fd, self._blob(part.get("digest") if isinstance(part, dict) else None, str(digest)))
            if size is None:
                return ""
            if size != part.get("size"):
                self._damaged(str(part["digest"]))
        return str(digest)

    def _blob(self, digest: object, said: str) -> str:
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            self._damaged(said)
        return f"blobs/{str(digest).replace(':', '/')}"

    def _read(self, fd: int, path: str) -> bytes | None:
        """Return a file of the layout; None where it is not there."""
        with self._open(fd, path) as file:
            if file is None:
                return None
            body = b""
            while len(body) <= LIMIT and (piece := os.read(file, LIMIT + 1 - len(body))):
                body += piece
        if len(body) > LIMIT:
            self._damaged(path)
        return body

    def _size(self, fd: int, path: str) -> int | None:
        """Return how many bytes a file has; None where it is not there."""
        with self._open(fd, path) as file:
            return None if file is None else os.fstat(file).st_size

    @contextmanager
    def _open(self, fd: int, path: str) -> Iterator[int | None]:
        """Have a regular file of the layout open, by no link; None where it is not there."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with ExitStack() as opened:
            at = fd
            try:
                *folders, name = path.split("/")
                for part, kind in (*((each, os.O_DIRECTORY) for each in folders), (name, 0)):
                    at = os.open(part, flags | kind, dir_fd=at)
                    opened.callback(os.close, at)
            except FileNotFoundError:
                yield None
                return
            except OSError as error:
                why = "goes by a link" if error.errno in (errno.ELOOP, errno.ENOTDIR) else f"cannot be read: {error.strerror}"
                raise _UnknownError(f"{self._path}/{path} {why}") from None
            if not stat.S_ISREG(os.fstat(at).st_mode):
                raise _UnknownError(f"{self._path}/{path} is no file")
            yield at

    def _parsed(self, body: bytes, path: str) -> dict[str, Any]:
        try:
            return _object(body)
        except (ValueError, RecursionError):
            self._damaged(path)

    def _damaged(self, path: str) -> NoReturn:
        raise _UnknownError(f"{self._path} is damaged: see {path} in it")
