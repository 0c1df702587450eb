"""The pods of one namespace, as the API server of a cluster has them: asked for, begun, watched, deleted.

The official client brings the configuration, the credentials and the transport, but not its models: a pod is sent as it is,
whatever version of Kubernetes a field is of, and what is wrong with it the server says.

What goes wrong on the way is tried again, for as long as `patience` says and not before the server wants to be asked again. That
is safe for what reads; for a deletion, which names the uid of what it means; and for a creation, since each leaves a mark on its
pod, by which what was begun is known though the answer was lost. No error holds a credential.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote

from sidecar.errors import ConfigurationError, Fault, ParametersError, SidecarError, SourceMissing, Unreachable
from sidecar.session import kubelet
from sidecar.session.runner import Manifest

Answer = TypeVar("Answer")
States = Generator[tuple[Manifest, bool], None, None]
# Which creation a pod is of: so whatever has it was begun here, not by kubectl or by a Job.
MARK = "sidecar/begun-by"
# Seconds until a server is to have been found, and to have answered.
_CONNECT, _ANSWER = 10.0, 60.0
# A watch is begun again after so long, in case its connection is dead and nobody knows.
_WATCH, _LATE = 240.0, 30.0
# What ends sooner than this has not worked.
_LASTED = 1.0
_SHORTEST, _LONGEST = 0.1, 8.0
_PAGE = 500
_TRANSIENT = (0, 408, 429, 500, 502, 503, 504)
_GONE = 410
# No object of a cluster is nearly so large: etcd takes 1.5 MiB.
_LONG = 1 << 24
_NO_SERVER = "what answers is no API server"


class Failed(Exception):
    """A request that failed: with the status of the answer, 0 where there was none, and with what the answer says."""

    def __init__(self, status: int, message: str, answer: Manifest | None = None, after: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.message, self.after = status, message, after
        self.answer = answer or {}
        self.reason = str(self.answer.get("reason", ""))

    @property
    def transient(self) -> bool:
        """Whether the same request may well do a moment later."""
        return self.status in _TRANSIENT


class TooLate(Exception):
    """The deadline of whoever asked has passed."""


class Trouble:
    """A row of failures: how long it lasts already, and how long to wait before the next attempt."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.over()

    def over(self) -> None:
        """Note that something worked."""
        self._until, self._pause = 0.0, _SHORTEST

    def heard(self) -> None:
        """Note that something was told, whatever came then: patience begins anew, and the pauses go on."""
        self._until = math.inf

    def wait(self, failed: Failed, deadline: float | None = None) -> None:
        """Return when the next attempt may be made; raise `failed` where none is, and TooLate at the deadline."""
        now = time.monotonic()
        self._until = self._until or now + self._patience
        # Of many that failed at once, not all come again at once.
        pause = max(failed.after, self._pause * random.uniform(0.5, 1))
        if not failed.transient or now + pause > self._until:
            raise failed
        if deadline is not None and now + pause > deadline:
            time.sleep(max(0.0, deadline - now))
            raise TooLate
        time.sleep(pause)
        if self._until == math.inf:
            self._until = 0.0
        self._pause = min(self._pause * 2, _LONGEST)


def _look_at(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise TooLate


class Cluster:
    """The pods of `namespace`, by `client`, an ApiClient."""

    def __init__(self, client: Any, namespace: str, patience: float) -> None:
        self._client, self.namespace, self._patience = client, namespace, patience

    # --- single requests

    def get(self, name: str, deadline: float | None = None) -> Manifest:
        """Return a pod; SourceMissing, and TooLate at the deadline."""
        found = self.find(name, deadline)
        if found is None:
            raise self.missing(name)
        return found

    def find(self, name: str, deadline: float | None = None) -> Manifest | None:
        """Return a pod, None where there is none; TooLate at the deadline."""
        try:
            return self._persistent(lambda: self._json(kubelet.read_pod, "GET", name, deadline=deadline), deadline)
        except Failed as failed:
            if failed.status == 404:
                return None
            raise self.told(failed, f"pod {name} cannot be read") from None

    def missing(self, name: str) -> SourceMissing:
        """Return what is raised where there is no pod of that name."""
        return SourceMissing(f"there is no pod {name} in namespace {self.namespace}")

    def labelled(self, selector: str) -> list[Manifest]:
        """Return the pods that have the labels."""

        def all_pages() -> list[Manifest]:
            found: list[Manifest] = []
            query = {"labelSelector": selector, "limit": str(_PAGE)}
            while True:
                page, token = self._persistent(partial(self._json, kubelet.read_list, "GET", query=query))
                found += page
                if not token:
                    return found
                query = {**query, "continue": token}

        trouble = Trouble(self._patience)
        while True:
            try:
                return all_pages()
            except Failed as failed:
                if failed.status != _GONE:
                    raise self.told(failed, "pods cannot be listed") from None
                # The pages are older than what the cluster keeps: they are begun again.
                self._wait(trouble, Failed(0, failed.message), None, "pods cannot be listed")

    def create(self, pod: Manifest, mark: str) -> Manifest:
        """Begin a pod that has the mark of this creation; return it. ConfigurationError where there is another of its name."""
        name = pod["metadata"]["name"]
        maybe = False

        def once() -> Manifest:
            nonlocal maybe
            if maybe and (found := self._found(name)) is not None:
                return self._is_marked(found, mark)
            try:
                return self._json(kubelet.read_pod, "POST", query={"fieldValidation": "Strict"}, body=pod)
            except Failed as failed:
                if failed.status == 409 and failed.reason == "Conflict":
                    # Not the name: the quota was changed by somebody else meanwhile.
                    raise Failed(429, failed.message) from None
                if failed.status == 409:
                    # After an answer that was lost it may be ours that is there already.
                    if maybe and (found := self._found(name)) is not None:
                        return self._is_marked(found, mark)
                    raise self._taken(name) from None
                maybe = maybe or (failed.transient and failed.status != 429)
                raise

        try:
            return self._persistent(once)
        except Failed as failed:
            if not maybe:
                raise self.told(failed, f"pod {name} cannot be begun") from None
            what = f"whether pod {name} was begun is not known; look for it before you begin it again"
            error = self.told(failed, what)
            if isinstance(error, ParametersError):
                error = ParametersError([*error.faults, Fault("pod", "", what)])
            raise error from None

    def delete(self, name: str, uid: str, grace: int | None) -> bool:
        """Ask for the end of the pod of that uid; tell whether it was there."""
        options: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        attempts = 0

        def once() -> None:
            nonlocal attempts
            attempts += 1
            self._json(kubelet.read_object, "DELETE", name, body=options)

        try:
            self._persistent(once)
        except Failed as failed:
            # It is gone, or another one has its name now: after an answer that was lost, by our doing.
            if failed.status in (404, 409):
                return attempts > 1
            raise self.told(failed, f"pod {name} cannot be stopped") from None
        return True

    def log(
        self, name: str, container: str, *, since: str = "", former: bool = False, follow: bool = False
    ) -> Generator[bytes, None, None]:
        """Yield one life's log, each line with its time; nothing where there is none. Failed, also on the way.

        First, once the answer has begun, nothing of it.
        """
        query = {"container": container, "timestamps": "true"}
        query |= {"sinceTime": since} if since else {}
        query |= {"previous": "true"} if former else {}
        query |= {"follow": "true"} if follow else {}
        try:
            yield from self._stream(f"{name}/log", query, (_CONNECT, _WATCH + _LATE if follow else _ANSWER))
        except Failed as failed:
            # 400: it has not begun, or there was no life before.
            if failed.status not in (400, 404):
                raise

    def states(self, pod: Manifest, deadline: float | None = None) -> States:
        """Yield a pod as it is, and again whenever it has changed; as the last, and with True, as it was when it was removed.

        TooLate at the deadline.
        """
        name, uid, version = pod["metadata"]["name"], pod["metadata"]["uid"], pod["metadata"]["resourceVersion"]
        trouble = Trouble(self._patience)
        yield pod, False
        while True:
            _look_at(deadline)
            try:
                with closing(self._watch(name, version, deadline, trouble)) as events:
                    for kind, seen in events:
                        version = seen["metadata"]["resourceVersion"]
                        if kind == "BOOKMARK":
                            continue
                        if seen["metadata"]["uid"] != uid:  # its end was missed, and another has its name
                            yield pod, True
                            return
                        pod = seen
                        yield pod, kind == "DELETED"
                        if kind == "DELETED":
                            return
                        _look_at(deadline)
            except Failed as failed:
                _look_at(deadline)
                gone = failed.status == _GONE
                self._wait(trouble, Failed(0, failed.message) if gone else failed, deadline, f"pod {name} cannot be watched")
                if not gone:
                    continue
                # What has changed since then the cluster does not keep any more.
                found = self.find(name, deadline)
                if found is None or found["metadata"]["uid"] != uid:
                    yield pod, True
                    return
                pod, version = found, found["metadata"]["resourceVersion"]
                yield pod, False

    def _wait(self, trouble: Trouble, failed: Failed, deadline: float | None, what: str) -> None:
        try:
            trouble.wait(failed, deadline)
        except Failed:
            raise self.told(failed, what) from None

    # --- doing it

    def _found(self, name: str) -> Manifest | None:
        try:
            return self._json(kubelet.read_pod, "GET", name)
        except Failed as failed:
            if failed.status == 404:
                return None
            raise

    def _is_marked(self, found: Manifest, mark: str) -> Manifest:
        if found["metadata"].get("annotations", {}).get(MARK) != mark:
            raise self._taken(found["metadata"]["name"])
        return found

    def _taken(self, name: str) -> ConfigurationError:
        return ConfigurationError(
            f"there is a pod {name} already in namespace {self.namespace}; stop it, or give this one another name"
        )

    def _persistent(self, ask: Callable[[], Answer], deadline: float | None = None) -> Answer:
        """Return the answer; what is transient is tried again. TooLate at the deadline."""
        trouble = Trouble(self._patience)
        while True:
            try:
                return ask()
            except Failed as failed:
                _look_at(deadline)
                trouble.wait(failed, deadline)

    def _json(
        self,
        read: Callable[[Any], Answer],
        method: str,
        name: str = "",
        *,
        query: dict[str, str] | None = None,
        body: Manifest | None = None,
        deadline: float | None = None,
    ) -> Answer:
        """Return what `read` makes of the answer. A deadline that is near, or past, still leaves it some seconds."""
        import urllib3

        left = _ANSWER if deadline is None else min(_ANSWER, max(_CONNECT, deadline - time.monotonic()))
        response = self._request(method, name, query or {}, body, (min(_CONNECT, left), left))
        with closing(response):
            try:
                return read(json.loads(response.read()))
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise Failed(0, self._clean(error)) from None
            except (ValueError, RecursionError):
                raise Failed(0, _NO_SERVER) from None
            finally:
                response.release_conn()

    def _watch(
        self, name: str, version: str, deadline: float | None, trouble: Trouble
    ) -> Generator[tuple[str, Manifest], None, None]:
        """Yield what happens to a pod after `version`, until the watch ends; Failed."""
        left = _WATCH if deadline is None else min(_WATCH, max(0.01, deadline - time.monotonic()))
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(left) + 1),
        }
        late = left if left < _WATCH else left + _LATE
        rest, began = b"", 0.0
        try:
            for part in self._stream("", query, (min(_CONNECT, late), late)):
                began = began or time.monotonic()
                *lines, rest = (rest + part).split(b"\n")
                if len(rest) > _LONG:
                    raise Failed(0, _NO_SERVER)
                for line in filter(None, lines):
                    yield self._event(line)
                    trouble.heard()
        finally:
            # One that only lasted well may have been cut because it was idle: that is no trouble.
            if began and time.monotonic() - began >= _LASTED:
                trouble.over()
        if time.monotonic() - began < _LASTED:
            raise Failed(0, "a watch ended at once")

    def _event(self, line: bytes) -> tuple[str, Manifest]:
        try:
            kind, seen = kubelet.read_event(json.loads(line))
        except (ValueError, RecursionError):
            raise Failed(0, _NO_SERVER) from None
        if kind == "ERROR":
            code = seen.get("code")
            raise Failed(code if isinstance(code, int) else 0, self._clean(seen.get("message", "")), seen)
        return kind, seen

    def _stream(self, name: str, query: dict[str, str], timeout: tuple[float, float]) -> Iterator[bytes]:
        """Yield an answer as it comes; first, once it has begun, nothing of it."""
        import urllib3

        response = self._request("GET", name, query, None, timeout)
        try:
            yield b""
            yield from response.stream(None, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Failed(0, self._clean(error)) from None
        finally:
            response.close()

    def _request(self, method: str, name: str, query: dict[str, str], body: Manifest | None, timeout: tuple[float, float]) -> Any:
        """Return the answer of the server, whose body has not been read."""
        import urllib3
        from kubernetes.client.exceptions import ApiException

        path = f"/api/v1/namespaces/{self.namespace}/pods" + (f"/{name}" if name else "")
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            asked = self._client.param_serialize(
                method, path, query_params=list(query.items()), header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            response = self._client.call_api(*asked, _request_timeout=timeout).response
            if 200 <= response.status <= 299:
                return response
            with closing(response):
                raise self._failure(response.status, response.reason, response.headers, response.read())
        except ApiException as error:  # of the client, which did not come to ask
            raise self._unasked(error.reason) from None
        except (urllib3.exceptions.LocationValueError, urllib3.exceptions.ProxySchemeUnknown) as error:
            raise ConfigurationError(f"the address of the API server is none: {self._clean(error)}") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unasked(error) from None
        except ValueError:
            # Of a header, which would stand in the message.
            raise ConfigurationError("the credentials for the API server cannot be sent: they hold what no header may") from None

    def _unasked(self, error: object) -> Exception:
        """Return the failure of a request that was not answered; of one that the client made again, the reason stands in it."""
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return ConfigurationError(f"the API server is not who it is to be: {self._clean(error)}")
        return Failed(0, self._clean(error))

    def _failure(self, status: int, reason: str, headers: Any, body: bytes) -> Failed:
        try:
            answer = json.loads(body)
            answer = answer if isinstance(answer, dict) and answer.get("kind") == "Status" else {}
        except (ValueError, RecursionError):
            answer = {}
        after = str(headers.get("Retry-After", ""))
        message = self._clean(str(answer.get("message") or reason or "no reason is given"))
        return Failed(status, message, answer, float(after) if after.isdecimal() else 0.0)

    # --- what is told

    def told(self, failed: Failed, what: str) -> SidecarError:
        """Return a failure as the error that says who can put it right."""
        where = f"the cluster at {_without_user(self._client.configuration.host)}"
        if failed.status == 401:
            return ConfigurationError(f"{what}: {where} does not know who asks: {failed.message}")
        if failed.status == 403:
            return ConfigurationError(f"{what}: {where} refuses it: {failed.message}")
        if failed.status == 404:
            return SourceMissing(f"{what}: {failed.message}")
        if failed.status in (400, 405, 413, 415, 422):
            causes = kubelet.causes_of(failed.answer) or [("", failed.message)]
            return ParametersError(
                Fault("pod", self._clean(field), self._clean(message or failed.message)) for field, message in causes
            )
        return Unreachable(f"{what}: {where}: {failed.message}" + (f" (status {failed.status})" if failed.status else ""))

    def _clean(self, said: object) -> str:
        """Return a text without our credentials, which whatever stands between us and the server may have repeated."""
        text = str(said)
        configuration = self._client.configuration
        secrets = [*configuration.api_key.values(), configuration.password, configuration.access_token]
        secrets += [*_users(configuration.host), *_users(configuration.proxy)]
        parts = {part for secret in secrets for part in str(secret or "").split()} - {"Bearer", "Basic"}
        for part in sorted(parts, key=len, reverse=True):
            text = text.replace(part, "…")
        return text


def _without_user(address: str) -> str:
    scheme, slashes, rest = address.rpartition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}"


def _users(address: str | None) -> list[str]:
    """Return who asks by an address that says so, in all its forms: a name without a password may be a token."""
    user, at, _ = (address or "").rpartition("://")[2].partition("/")[0].rpartition("@")
    name, colon, password = user.partition(":")
    secret = password if colon else name
    return [each for each in (user, unquote(user), secret, unquote(secret)) if at and each]
