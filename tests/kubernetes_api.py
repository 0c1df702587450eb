"""An API server of Kubernetes, simulated: real HTTP on this machine, and pods that really run: its kubelet is the local runner.

    with Api(tmp_path, "token") as api:
        api.fail("POST", Refusal(503))            # the next POST is answered so
        KubernetesRunner("sessions", client=api.client()).start(pod)

It looks at what is sent more closely than a real one: what it would never be asked stands in `wrong`, which is to be empty. All
that was asked stands in `requests`. A pod whose image is no directory stays Pending, as where an image cannot be pulled. What the
local runner does not honour is answered as a field that is invalid (422). Several lines of a log have one time, as a container
runtime has it that reads many at once.
"""

from __future__ import annotations

import copy
import json
import os
import re
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import kubernetes_validate
from kubelet_engine import lives_of

from sidecar import linux
from sidecar.errors import Fault, ParametersError, SourceMissing
from sidecar.session.folder import Folder
from sidecar.session.local import LocalRunner
from sidecar.session.pod import GRACE
from sidecar.session.runner import ENDED, Container, Manifest, Status

VERSION = "1.37"
_IN_MODIFY = 0x2
_LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?")
# What may be asked, and how.
_QUERIES: dict[str, set[str]] = {
    "POST": {"fieldValidation"},
    "DELETE": set(),
    "GET": set(),
    "LIST": {"labelSelector", "limit", "continue"},
    "WATCH": {"watch", "fieldSelector", "labelSelector", "resourceVersion", "allowWatchBookmarks", "timeoutSeconds"},
    "LOG": {"container", "previous", "follow", "timestamps", "sinceTime"},
}


@dataclass(frozen=True)
class Request:
    """What was asked: LIST, WATCH and LOG are the GETs that are no single pod's."""

    verb: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any = None


@dataclass(frozen=True)
class Refusal:
    """An answer other than the one that is asked for."""

    status: int
    reason: str = ""
    message: str = "refused by the test"
    headers: dict[str, str] = field(default_factory=dict)
    causes: tuple[tuple[str, str], ...] = ()
    raw: bytes = b""

    def body(self) -> bytes:
        """Return the API's object for it."""
        causes = [{"field": key, "message": message, "reason": "FieldValueInvalid"} for key, message in self.causes]
        status: Manifest = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message}
        status |= {"reason": self.reason, "code": self.status, "details": {"kind": "pods", "causes": causes}}
        return self.raw or json.dumps(status).encode()


class Reset:
    """The connection ends without an answer, and nothing is done."""


@dataclass(frozen=True)
class Lost:
    """It is done, and the connection ends without an answer; or with one that does not tell."""

    told: Refusal | None = None


@dataclass(frozen=True)
class Cut:
    """An answer ends after so many of its parts, of a log in the middle of a line; and as if that were all where it ends well."""

    after: int
    well: bool = False


@dataclass(frozen=True)
class Late:
    """It is done, and answered after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Then:
    """Before it is done, this is."""

    do: Callable[[], object]


@dataclass(frozen=True)
class Event:
    """A watch is answered by this and its end."""

    type: str
    object: Manifest


Plan = Refusal | Reset | Lost | Cut | Event | Late | Then


class _Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


class _Over(Exception):
    """The connection is to be closed."""


class Kubelet(LocalRunner):
    """The local runner, which notes the lives of its containers."""

    ENGINE = "kubelet_engine"


class Api:
    """The server, its pods, and what it was asked. PYTHONPATH is to lead to this folder, for the processes that lead the pods."""

    def __init__(self, folder: Path, token: str, namespace: str = "sessions", backoff: float = 0.05) -> None:
        self.token, self.namespace = token, namespace
        self.kubelet = Kubelet(str(folder / "pods"), backoff=backoff)
        self.requests: list[Request] = []
        self.wrong: list[str] = []
        self.page = 500
        self.stuck = False  # nodes let go of nothing
        self.pods: dict[str, Manifest] = {}
        self._plans: list[tuple[str, Plan]] = []
        self._events: list[tuple[int, str, Manifest]] = []
        self._version, self._oldest = 100, 0
        self._changed = threading.Condition()
        self._exits: dict[tuple[str, str, int], int] = {}
        self.connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closed, self._close = os.pipe()
        self.closing = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Api:
        self._spawn(lambda: self._server.serve_forever(0.05))
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.kubelet.list():
            with suppress(SourceMissing):
                self.kubelet.stop(each.name, 0)
        with self._changed:
            self.closing = True
            self._changed.notify_all()
            os.write(self._close, b"x")
            for connection in list(self.connections):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # Clients keep theirs, for whatever they will ask next.
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()
        os.close(self._closed)
        os.close(self._close)

    def client(self, token: str = "") -> Any:
        """Return a client of this server."""
        from kubernetes.client import ApiClient, Configuration

        configuration = Configuration(host=self.url, retries=False)
        configuration.api_key = {"authorization": f"Bearer {token or self.token}"}
        return ApiClient(configuration)

    def kubeconfig(self, path: Path, namespace: str = "sessions") -> str:
        """Write a kubeconfig that leads here by its context `here`, and return its path."""
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "elsewhere",
            "clusters": [
                {"name": "c", "cluster": {"server": self.url}},
                {"name": "e", "cluster": {"server": "http://127.0.0.1:9"}},
            ],
            "users": [{"name": "u", "user": {"token": self.token}}],
            "contexts": [
                {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": namespace}},
                {"name": "elsewhere", "context": {"cluster": "e", "user": "u"}},
            ],
        }
        path.write_text(json.dumps(document))
        return str(path)

    def fail(self, verb: str, *plans: Plan) -> None:
        """Have the next requests of a verb answered so, one after the other."""
        self._plans += [(verb, plan) for plan in plans]

    def forget(self) -> None:
        """Keep nothing of what happened so far: watches that begin before now are too old."""
        with self._changed:
            self._version += 1
            self._oldest = self._version

    def asked(self, verb: str) -> list[Request]:
        """Return the requests of a verb."""
        return [each for each in self.requests if each.verb == verb]

    def await_request(self, verb: str, count: int = 1) -> None:
        """Return when there were so many requests of a verb."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.asked(verb)) >= count, 60), self.requests

    def change(self, name: str, **status: Any) -> None:
        """Say of a pod what is said of it by somebody else."""
        with self._changed:
            pod = self.pods[name]
            self._publish("MODIFIED", {**pod, "status": {**pod["status"], **status}})

    def remove(self, name: str) -> None:
        """Remove a pod from one moment to the next, as somebody who forces it does."""
        with self._changed:
            self._publish("DELETED", self.pods[name])
        with suppress(SourceMissing):
            self.kubelet.stop(name, 0)

    # --- what is asked

    def joins(self, connection: socket.socket) -> None:
        """Note a connection; one that comes too late is ended."""
        with self._changed:
            self.connections.add(connection)
            if self.closing:
                connection.shutdown(socket.SHUT_RDWR)

    def begins(self, request: Request) -> Plan | None:
        """Note a request; return what is planned for it."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            if unknown := set(request.query) - _QUERIES[request.verb]:
                self.wrong.append(f"{request.verb} {request.path}: {unknown}")
            for number, (verb, plan) in enumerate(self._plans):
                if verb == request.verb:
                    del self._plans[number]
                    return plan
        return None

    def create(self, pod: Manifest) -> Manifest:
        """Begin a pod."""
        _check(pod)
        metadata = pod["metadata"]
        name = metadata["name"]
        if metadata.get("namespace", self.namespace) != self.namespace:
            raise _Refused(Refusal(400, "BadRequest", "the namespace of the provided object does not match the namespace sent"))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        known = {"uid": str(uuid.uuid4()), "creationTimestamp": now, "namespace": self.namespace}
        made = copy.deepcopy({**pod, "metadata": {**metadata, **known}, "status": {"phase": "Pending"}})
        with self._changed:
            if name in self.pods:
                raise _Refused(Refusal(409, "AlreadyExists", f'pods "{name}" already exists'))
            try:
                self.kubelet.start(pod)
            except ParametersError as error:
                if any(each.key != "image" for each in error.faults):
                    raise _Refused(_invalid(name, error.faults)) from None
                made["status"] = _cannot_be_pulled(made, "ErrImagePull")
                self._publish("ADDED", made)
                begun = self.pods[name]
                self._publish("MODIFIED", {**made, "status": _cannot_be_pulled(made, "ImagePullBackOff")})
                return begun
            self._publish("ADDED", made)
            self._spawn(lambda: self._lead(name, made["metadata"]["uid"]))
            return self.pods[name]

    def get(self, name: str) -> Manifest:
        """Return a pod."""
        with self._changed:
            if name not in self.pods:
                raise _Refused(Refusal(404, "NotFound", f'pods "{name}" not found'))
            return self.pods[name]

    def delete(self, name: str, options: Any) -> Manifest:
        """Begin the end of a pod."""
        with self._changed:
            pod = self.get(name)
            asked = (options or {}).get("preconditions", {}).get("uid", "")
            if not asked:
                self.wrong.append(f"DELETE {name} without a uid: it may be another pod by now")
            if asked and asked != pod["metadata"]["uid"]:
                raise _Refused(Refusal(409, "Conflict", f'Operation cannot be fulfilled on pods "{name}": the UID differs'))
            grace = (options or {}).get("gracePeriodSeconds", pod["spec"].get("terminationGracePeriodSeconds", GRACE))
            if not grace:
                self.wrong.append(f"DELETE {name} at once: nobody knows whether it still runs")
            if not self._is_on_its_node(name):
                # As a real server does where there is nobody whom it could ask.
                self._publish("DELETED", pod)
                with suppress(SourceMissing):
                    self.kubelet.stop(name, 0)
                return pod
            stamp = {"deletionTimestamp": pod["metadata"]["creationTimestamp"], "deletionGracePeriodSeconds": grace}
            going = {**pod, "metadata": {**pod["metadata"], **stamp}}
            self._publish("MODIFIED", going)
            if not self.stuck:
                self._spawn(lambda: self._end(name, pod["metadata"]["uid"], grace))
            return going

    def _is_on_its_node(self, name: str) -> bool:
        """Tell whether a pod was begun and has not ended."""
        return self.kubelet.has(name) and self.pods[name]["status"]["phase"] not in ENDED

    def page_of(self, query: dict[str, str]) -> Manifest:
        """Return a page of a list."""
        with self._changed:
            at = int(query.get("continue", 0))
            limit = min(self.page, int(query.get("limit", 500)))
            found = [pod for _, pod in sorted(self.pods.items()) if _is_selected(pod, query)]
            more = {"continue": str(at + limit)} if at + limit < len(found) else {}
            metadata = {"resourceVersion": str(self._version), **more}
            return {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": found[at : at + limit]}

    def events(self, query: dict[str, str]) -> Iterator[bytes]:
        """Yield what happens to the pods that are asked for."""
        since, until = int(query["resourceVersion"]), time.monotonic() + int(query["timeoutSeconds"])
        while True:
            with self._changed:
                if since < self._oldest:
                    yield _line("ERROR", json.loads(Refusal(410, "Expired", f"too old resource version: {since}").body()))
                    return
                found = [each for each in self._events if each[0] > since]
                if not found:
                    left = until - time.monotonic()
                    if left <= 0 or self.closing:
                        if query.get("allowWatchBookmarks") == "true":
                            metadata = {"resourceVersion": str(self._version), "creationTimestamp": None}
                            yield _line("BOOKMARK", {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": {}})
                        return
                    self._changed.wait(left)
                    continue
            since = found[-1][0]
            for _, kind, pod in found:
                if _is_selected(pod, query):
                    yield _line(kind, pod)

    # --- logs

    def log(self, name: str, query: dict[str, str]) -> Iterator[bytes]:
        """Yield the log of one life, as a kubelet does; _Refused before it begins."""
        pod, container = self.get(name), query["container"]
        if container not in [each["name"] for each in _containers(pod)]:
            raise _Refused(Refusal(400, "BadRequest", f"container {container} is not valid for pod {name}"))
        folder = Folder(os.path.join(self.kubelet.folder, name))
        lives = lives_of(folder, container)
        if not lives:
            raise _Refused(Refusal(400, "BadRequest", f'container "{container}" in pod "{name}" is waiting to start'))
        number = len(lives) - 1
        if query.get("previous") == "true":
            waits = _has_ended(folder, container, number) == "waiting"
            number = number if waits else number - 1
            if number < 0:
                raise _Refused(
                    Refusal(400, "BadRequest", f'previous terminated container "{container}" in pod "{name}" not found')
                )
        since = query.get("sinceTime", "")
        after = int(datetime.fromisoformat(since).timestamp()) * 10**9 if since else 0
        lines = self._lines(folder, container, number, follow=query.get("follow") == "true")
        return _timed(lines, lives[number][1], after, timed=query.get("timestamps") == "true")

    def _lines(self, folder: Folder, container: str, number: int, *, follow: bool) -> Iterator[bytes]:
        """Yield the whole lines of one life, and its last as it is."""
        changes, rest = linux.inotify_init(), b""
        try:
            with open(folder.log(container), "rb", buffering=0) as file:
                linux.inotify_add_watch(changes, os.fsencode(folder.log(container)), _IN_MODIFY)
                linux.inotify_add_watch(changes, os.fsencode(folder.path), linux.IN_MOVED_TO)
                at = lives_of(folder, container)[number][0]
                while True:
                    over = bool(_has_ended(folder, container, number))
                    ends = [each for each, _ in lives_of(folder, container)[number + 1 : number + 2]]
                    while data := os.pread(file.fileno(), min(1 << 16, ends[0] - at if ends else 1 << 16), at):
                        at += len(data)
                        *lines, rest = (rest + data).split(b"\n")
                        yield from (line + b"\n" for line in lines)
                    if over and rest:
                        yield rest
                    if over or not follow or self.closing:
                        return
                    # A supervisor that ends says so before, but not that of a pod that is being removed.
                    select.select([changes, self._closed], [], [], 0.2)
                    with suppress(BlockingIOError):
                        os.read(changes, 1 << 16)
        except (FileNotFoundError, IndexError):
            return  # It was removed.
        finally:
            os.close(changes)

    # --- the kubelet

    def _lead(self, name: str, uid: str) -> None:
        """Tell how a pod stands, whenever that changes, until it has ended."""
        folder = Folder(os.path.join(self.kubelet.folder, name))
        changes = linux.inotify_init()
        try:
            linux.inotify_add_watch(changes, os.fsencode(folder.path), linux.IN_MOVED_TO)
            supervisor = folder.supervisor()
            while True:
                status = folder.status()
                self._tell(uid, status)
                if status.phase in ENDED or self.closing:
                    break
                select.select([changes, self._closed, *([] if supervisor is None else [supervisor])], [], [])
                with suppress(BlockingIOError):
                    os.read(changes, 1 << 16)
            if supervisor is not None:
                os.close(supervisor)
        except (SourceMissing, FileNotFoundError):
            pass  # It was removed.
        finally:
            os.close(changes)

    def _end(self, name: str, uid: str, grace: float) -> None:
        with suppress(SourceMissing):
            self._tell(uid, self.kubelet.stop(name, grace))
        with self._changed:
            if name in self.pods and self.pods[name]["metadata"]["uid"] == uid:
                self._publish("DELETED", self.pods[name])

    def _tell(self, uid: str, status: Status) -> None:
        with self._changed:
            pod = self.pods.get(status.name)
            if pod is None or pod["metadata"]["uid"] != uid:
                return
            said: Manifest = {"phase": status.phase}
            inits = len(pod["spec"].get("initContainers") or ())
            all_of = [self._container(pod, each) for each in status.containers]
            said |= {"initContainerStatuses": all_of[:inits], "containerStatuses": all_of[inits:]}
            if said != pod["status"]:
                self._publish("MODIFIED", {**pod, "status": said})

    def _container(self, pod: Manifest, container: Container) -> Manifest:
        uid, name, number = pod["metadata"]["uid"], container.name, container.restarts
        begun = container.state != "waiting" or container.exit is not None
        if container.state != "running" and container.exit is not None:
            self._exits[uid, name, number] = container.exit

        def terminated(life: int) -> Manifest:
            status = self._exits.get((uid, name, life), 1)
            found = {
                "exitCode": status,
                "reason": "Error" if status else "Completed",
                "containerID": f"test://{uid}/{name}/{life}",
            }
            if life == number and "could not be begun" in container.reason:
                found |= {"reason": "StartError", "message": container.reason}
            return {"terminated": found}

        last = number - 1
        if container.state == "running":
            state: Manifest = {"running": {"startedAt": pod["metadata"]["creationTimestamp"]}}
        elif container.state == "exited":
            state = terminated(number)
        else:
            state = {"waiting": {"reason": "CrashLoopBackOff" if begun else "PodInitializing"}}
            last = number if begun else -1
        return {
            "name": name,
            "image": "of the test",
            "imageID": "",
            "ready": container.state == "running",
            "restartCount": number,
            "state": state,
            "lastState": terminated(last) if last >= 0 else {},
        }

    def _publish(self, kind: str, pod: Manifest) -> None:
        with self._changed:
            self._version += 1
            name = pod["metadata"]["name"]
            pod = copy.deepcopy({**pod, "metadata": {**pod["metadata"], "resourceVersion": str(self._version)}})
            if kind == "DELETED":
                self.pods.pop(name, None)
            else:
                self.pods[name] = pod
            self._events.append((self._version, kind, pod))
            self._changed.notify_all()

    def _spawn(self, work: Callable[[], object]) -> None:
        thread = threading.Thread(target=work)
        self._threads.append(thread)
        thread.start()


def _check(pod: Any) -> None:
    """Refuse what a real server would of a pod, by its schema."""
    if not isinstance(pod, dict) or pod.get("kind") != "Pod" or pod.get("apiVersion") != "v1":
        kind = pod.get("kind") if isinstance(pod, dict) else pod
        raise _Refused(Refusal(400, "BadRequest", f"{kind} in version v1 cannot be handled as a Pod"))
    try:
        kubernetes_validate.validate(pod, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        message = f"strict decoding error: {list(error.absolute_path)}: {error.message[:300]}"
        raise _Refused(Refusal(400, "BadRequest", message)) from None
    if twice := list(_twice(pod)):
        raise _Refused(_invalid(pod["metadata"]["name"], twice))
    labels = pod["metadata"].get("labels", {})
    if bad := [
        Fault("pod", "metadata.labels", f"Invalid value: {each!r}") for each in labels.values() if not _LABEL.fullmatch(each)
    ]:
        raise _Refused(_invalid(pod["metadata"]["name"], bad))


def _twice(pod: Manifest) -> Iterator[Fault]:
    """Yield what is there more than once, and may not be."""
    names = set()
    for key in ("initContainers", "containers"):
        for number, each in enumerate(pod["spec"].get(key) or ()):
            place, paths = f"spec.{key}[{number}]", set()
            if each["name"] in names:
                yield Fault("pod", f"{place}.name", f'Duplicate value: "{each["name"]}"')
            names.add(each["name"])
            for at, mount in enumerate(each.get("volumeMounts") or ()):
                if mount["mountPath"] in paths:
                    path = mount["mountPath"]
                    yield Fault("pod", f"{place}.volumeMounts[{at}].mountPath", f'Invalid value: "{path}": must be unique')
                paths.add(mount["mountPath"])


def _invalid(name: str, faults: Any) -> Refusal:
    causes = tuple((each.key, each.problem) for each in faults)
    return Refusal(422, "Invalid", f'Pod "{name}" is invalid: ' + ", ".join(": ".join(each) for each in causes), causes=causes)


def _cannot_be_pulled(pod: Manifest, reason: str) -> Manifest:
    def waiting(each: Manifest) -> Manifest:
        message = f'Back-off pulling image "{each["image"]}"'
        state = {"waiting": {"reason": reason, "message": message}}
        return {"name": each["name"], "image": each["image"], "imageID": "", "ready": False, "restartCount": 0, "state": state}

    return {"phase": "Pending", "containerStatuses": [waiting(each) for each in pod["spec"]["containers"]]}


def _containers(pod: Manifest) -> list[Manifest]:
    return [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]


def _has_ended(folder: Folder, container: str, number: int) -> str:
    """Return how a life of a container stands where it is over, "" where it is not."""
    try:
        status = folder.status()
    except SourceMissing:
        return "exited"
    (said,) = [each for each in status.containers if each.name == container]
    if said.restarts > number or len(lives_of(folder, container)) > number + 1 or status.phase in ENDED:
        return "exited"
    over = said.restarts == number and said.state != "running" and said.exit is not None
    return said.state if over else ""


def _timed(lines: Iterator[bytes], began: int, after: int, *, timed: bool) -> Iterator[bytes]:
    """Yield lines with the times at which they were written, for which their order stands here: three have the same."""
    for number, line in enumerate(lines):
        written = began + number // 3
        second, nano = divmod(written, 10**9)
        if written >= after:
            stamp = f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{nano:09}Z ".encode()
            yield stamp + line if timed else line


def _is_selected(pod: Manifest, query: dict[str, str]) -> bool:
    labels, wanted = pod["metadata"].get("labels", {}), query.get("labelSelector", "")
    key, _, value = wanted.partition("=")
    field_key, _, name = query.get("fieldSelector", "").partition("=")
    assert field_key in ("", "metadata.name")
    return (not wanted or labels.get(key) == value) and (not field_key or pod["metadata"]["name"] == name)


def _line(kind: str, pod: Manifest) -> bytes:
    return json.dumps({"type": kind, "object": pod}).encode() + b"\n"


# --- HTTP --------------------------------------------------------------------------------------------------------------


def _handler(api: Api) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 120

        def setup(self) -> None:
            super().setup()
            api.joins(self.connection)

        def finish(self) -> None:
            api.connections.discard(self.connection)
            super().finish()

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer()

        do_POST = do_DELETE = do_PUT = do_PATCH = do_GET

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = self._read(body)
            try:
                plan = api.begins(request)
                if isinstance(plan, Reset):
                    raise _Over
                if isinstance(plan, Refusal):
                    raise _Refused(plan)
                if isinstance(plan, Then):
                    plan.do()
                if isinstance(plan, Event):
                    self._stream(iter([_line(plan.type, plan.object)]), None)
                elif request.verb in ("WATCH", "LOG"):
                    parts = api.events(request.query) if request.verb == "WATCH" else api.log(self._name(), request.query)
                    self._stream(parts, plan if isinstance(plan, Cut) else None)
                else:
                    status, found = self._do(request)
                    if isinstance(plan, Late):
                        time.sleep(plan.seconds)
                    if isinstance(plan, Lost):
                        raise _Over if plan.told is None else _Refused(plan.told)
                    self._send(status, json.dumps(found).encode(), {}, cut=isinstance(plan, Cut))
            except _Refused as refused:
                self._send(refused.refusal.status, refused.refusal.body(), refused.refusal.headers)
            except (_Over, OSError):
                self.close_connection = True

        def _read(self, body: bytes) -> Request:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            headers = {key: self.headers[key] for key in ("Authorization", "Accept", "Content-Type") if key in self.headers}
            verb = self.command
            prefix = f"/api/v1/namespaces/{api.namespace}/pods"
            rest = parts.path.removeprefix(prefix)
            if verb == "GET" and rest == "":
                verb = "WATCH" if query.get("watch") == "true" else "LIST"
            elif verb == "GET" and rest.endswith("/log"):
                verb = "LOG"
            return Request(verb, unquote(parts.path), query, headers, json.loads(body) if body else None)

        def _name(self) -> str:
            found = re.fullmatch(rf"/api/v1/namespaces/{api.namespace}/pods/([^/]+)(/log)?", unquote(urlsplit(self.path).path))
            if found is None:
                api.wrong.append(f"{self.command} {self.path} is no pod's")
                raise _Refused(Refusal(404, "NotFound", "the server could not find the requested resource"))
            return found.group(1)

        def _do(self, request: Request) -> tuple[int, Manifest]:
            if request.headers.get("Authorization") != f"Bearer {api.token}":
                raise _Refused(Refusal(401, "Unauthorized", "Unauthorized"))
            if request.headers.get("Accept") != "application/json":
                api.wrong.append(f"{request.verb} {request.path} accepts {request.headers.get('Accept')}")
            if request.body is not None and request.headers.get("Content-Type") != "application/json":
                raise _Refused(Refusal(415, "UnsupportedMediaType", "the body of the request was in an unknown format"))
            if request.verb == "POST":
                if request.path != f"/api/v1/namespaces/{api.namespace}/pods":
                    raise _Refused(Refusal(404, "NotFound", "the server could not find the requested resource"))
                return 201, api.create(request.body)
            if request.verb == "LIST":
                return 200, api.page_of(request.query)
            return 200, api.delete(self._name(), request.body) if request.verb == "DELETE" else api.get(self._name())

        def _send(self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = cut

        def _stream(self, parts: Iterator[bytes], cut: Cut | None) -> None:
            if self.headers.get("Authorization") != f"Bearer {api.token}":
                raise _Refused(Refusal(401, "Unauthorized", "Unauthorized"))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number, part in enumerate(parts if cut != Cut(0) else ()):
                # In the middle of a line, too: of what is asked to end well, of the last that there is to be.
                over = cut is not None and number == cut.after - cut.well
                part = part[:-2] if over else part
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                if over:
                    break
            if cut is not None and not cut.well:
                raise _Over
            self.wfile.write(b"0\r\n\r\n")

    return Handler
