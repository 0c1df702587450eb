"""The runner of a cluster: what every runner owes, against a simulated API server whose pods really run; and what is its own.

No cluster took part. The server is kubernetes_api's: it looks at every request, and refuses what a real one would by its schemas.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kubernetes.client import ApiClient, Configuration, V1Pod
from kubernetes_api import Api, Cut, Event, Late, Lost, Plan, Refusal, Reset, Then
from processes import HANG
from session_contract import PLAIN, POLITE, Contract, container, hear, mount, of, pod, running, said
from test_session_local import artifacts, check_told

from sidecar.errors import ConfigurationError, DeadlinePassed, Fault, ParametersError, SidecarError, SourceMissing, Unreachable
from sidecar.session import cluster, kubelet, kubernetes
from sidecar.session.cluster import MARK, Failed, TooLate, Trouble
from sidecar.session.compose import Options, compose
from sidecar.session.kubelet import Told, end_of, status_of
from sidecar.session.kubernetes import KubernetesRunner, as_v1pod
from sidecar.session.runner import ENDED, Container, Manifest, Runner, Status

PODS = "/api/v1/namespaces/sessions/pods"
GOLDEN = {each.stem: yaml.safe_load(each.read_text()) for each in (Path(__file__).parent / "golden" / "session").glob("*.yaml")}
SESSIONS = sorted(name for name, manifest in GOLDEN.items() if manifest["kind"] == "Pod")
# Whose image cannot be pulled: such a pod is there, and never begins.
NOWHERE = "example/nowhere:1"
OURS = {"app.kubernetes.io/managed-by": "sidecar"}
TOKEN = "a-token-of-the-tests"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Api(tmp_path, TOKEN) as api:
        yield api
    assert api.wrong == []


@pytest.fixture
def runner(api: Api) -> KubernetesRunner:
    runner = KubernetesRunner("sessions", client=api.client(), patience=5)
    as_any_other: Runner = runner  # that it is one, mypy knows
    assert as_any_other is runner
    return runner


class TestOnACluster(Contract):
    """What every runner owes; but for what a cluster does not keep."""

    @pytest.fixture
    def base(self) -> str:
        return "host"

    def test_what_fails_is_begun_again_until_it_does_not_and_its_volumes_stay(
        self, runner: Runner, begin: Any, base: str
    ) -> None:
        # As the contract has it, but for the log: of three lives a cluster keeps two.
        script = "echo life >> /v/lives; echo $(wc -l < /v/lives); [ $(wc -l < /v/lives) -gt 2 ] || exit 4"
        one = container("one", base, script.replace("$", "$$"), volumeMounts=[mount("v", "/v")])
        name = begin(pod(one, restartPolicy="OnFailure"))
        status = runner.wait(name, HANG)
        assert status.phase == "Succeeded"
        assert (of(status, "one").exit, of(status, "one").restarts) == (0, 2)
        assert said(runner, name, "one").split() == ["2", "3"]


@pytest.fixture
def begin(runner: KubernetesRunner) -> Callable[[Manifest], str]:
    def begin(manifest: Manifest) -> str:
        runner.start(manifest)
        return str(manifest["metadata"]["name"])

    return begin


def idle(name: str = "") -> Manifest:
    """Return a pod that is there and does nothing."""
    return pod(container("one", NOWHERE, "true"), name=name)


def in_background(work: Callable[[], object]) -> Callable[[], Any]:
    """Begin `work` beside the test; return what returns its outcome, or raises it."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((work(), None))
        except Exception as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def outcome() -> Any:
        thread.join(HANG)
        value, error = found[0]
        if error is not None:
            raise error
        return value

    return outcome


# --- what is asked -----------------------------------------------------------------------------------------------------


def test_what_is_sent_is_this(api: Api, runner: KubernetesRunner) -> None:
    manifest = idle("p")
    runner.start(manifest)
    runner.status("p")
    runner.list()
    with pytest.raises(DeadlinePassed):
        runner.wait("p", 1)
    assert list(runner.logs("p", "one")) == []
    runner.stop("p", 1.2)
    sent = [(each.verb, each.path, each.query) for each in api.requests]
    (created,) = api.asked("POST")
    versions = [each.query.pop("resourceVersion") for each in api.asked("WATCH")]
    until, until_gone = (int(each.query.pop("timeoutSeconds")) for each in api.asked("WATCH"))
    assert (until, 60 < until_gone <= 122) == (1, True)
    watch = {"watch": "true", "fieldSelector": "metadata.name=p", "allowWatchBookmarks": "true"}
    assert sent == [
        ("POST", PODS, {"fieldValidation": "Strict"}),
        ("GET", f"{PODS}/p", {}),
        ("LIST", PODS, {"labelSelector": "app.kubernetes.io/managed-by=sidecar", "limit": "500"}),
        ("GET", f"{PODS}/p", {}),
        ("WATCH", PODS, watch),
        ("GET", f"{PODS}/p", {}),
        ("LOG", f"{PODS}/p/log", {"container": "one", "timestamps": "true"}),
        ("GET", f"{PODS}/p", {}),
        ("DELETE", f"{PODS}/p", {}),
        ("WATCH", PODS, watch),
    ]
    assert all(version.isdecimal() for version in versions)
    mark = created.body["metadata"]["annotations"].pop(MARK)
    assert len(mark) == 36
    labels = {**manifest["metadata"]["labels"], **OURS}
    assert created.body == {**manifest, "metadata": {"name": "p", "labels": labels, "annotations": {}}}
    (deleted,) = api.asked("DELETE")
    assert deleted.body == {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": {"uid": deleted.body["preconditions"]["uid"]},
        "gracePeriodSeconds": 2,
    }
    bearer, accept = {"Authorization": f"Bearer {TOKEN}"}, {"Accept": "application/json"}
    for each in api.requests:
        typed = {} if each.body is None else {"Content-Type": "application/json"}
        assert each.headers == {**bearer, **accept, **typed}


def test_a_manifest_is_not_changed_by_being_begun(runner: KubernetesRunner) -> None:
    manifest = idle()
    before = json.dumps(manifest)
    runner.start(manifest)
    assert json.dumps(manifest) == before


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "%2e%2e", "a?b", "a#b", "x" * 254])
def test_what_is_no_name_is_never_asked_for(api: Api, runner: KubernetesRunner, name: str) -> None:
    # `..` would be the namespace, nothing all of its pods.
    for ask in (runner.status, runner.wait, runner.stop, lambda name: list(runner.logs(name, "one"))):
        with pytest.raises(SourceMissing):
            ask(name)
    assert api.requests == []


@pytest.mark.parametrize("namespace", ["..", "a/b", "a.b", "UPPER", "a?b"])
def test_what_is_no_namespace_is_refused(api: Api, namespace: str) -> None:
    with pytest.raises(ConfigurationError, match="namespace"):
        KubernetesRunner(namespace, client=api.client())


def test_three_artifacts_run_as_one_container(runner: KubernetesRunner, tmp_path: Path) -> None:
    session = compose("host", artifacts(tmp_path / "images", PLAIN), (), Options(delivery="image"))
    runner.start(session.pod)
    name = session.pod["metadata"]["name"]
    status = runner.wait(name, HANG)
    assert (status.phase, status.session) == ("Succeeded", session.id), said(runner, name, "application")
    check_told(said(runner, name, "application"), PLAIN)
    assert [each.name for each in runner.list()] == [name]
    assert runner.stop(name).phase == "Succeeded"


# --- a pod is begun once, or not at all --------------------------------------------------------------------------------


def test_a_name_that_is_taken_is_refused_and_nothing_is_deleted(api: Api, runner: KubernetesRunner, begin: Any) -> None:
    name = begin(idle())
    was = api.pods[name]
    with pytest.raises(ConfigurationError, match=f"{name} already in namespace sessions"):
        runner.start(idle(name))
    assert api.pods[name] == was
    assert [each.verb for each in api.requests] == ["POST", "POST"]


@pytest.mark.parametrize(
    "plan",
    [
        Reset(),
        Lost(),
        Lost(Refusal(504, "Timeout")),
        Cut(0),
        Refusal(500, "InternalError"),
        Refusal(503),
        Refusal(504, "Timeout"),
        Refusal(429),
        Refusal(200, raw=b"<p>"),
    ],
    ids=["reset", "lost", "lost with 504", "cut", "500", "503", "504", "429", "no API"],
)  # fmt: skip
@pytest.mark.parametrize("how_often", [1, 2])
def test_a_pod_whose_creation_is_not_answered_is_begun_once(
    api: Api, runner: KubernetesRunner, plan: Plan, how_often: int
) -> None:
    api.fail("POST", *[plan] * how_often)
    manifest = idle()
    runner.start(manifest)
    made = [kind for _, kind, _ in api._events if kind == "ADDED"]
    assert (made, list(api.pods)) == (["ADDED"], [manifest["metadata"]["name"]])
    marks = {each.body["metadata"]["annotations"][MARK] for each in api.asked("POST")}
    assert {each["metadata"]["annotations"][MARK] for each in api.pods.values()} == marks
    if isinstance(plan, Lost | Cut):
        assert len(api.asked("POST")) == 1  # It was looked for, and found.


def test_after_an_answer_that_was_lost_somebody_elses_pod_is_not_taken_for_ours(
    api: Api, runner: KubernetesRunner, begin: Any
) -> None:
    name = begin(idle())
    was = api.pods[name]
    for plans in ([Refusal(503)], [Reset(), Refusal(503)]):
        api.fail("POST", *plans)
        with pytest.raises(ConfigurationError, match="already"):
            runner.start(idle(name))
    assert api.pods == {name: was}
    assert not api.asked("DELETE")


def test_a_quota_that_somebody_else_changed_meanwhile_is_no_name_that_is_taken(api: Api, runner: KubernetesRunner) -> None:
    api.fail("POST", Refusal(409, "Conflict", "Operation cannot be fulfilled on resourcequotas: the object has been modified"))
    runner.start(idle("p"))
    assert list(api.pods) == ["p"]


def test_who_cannot_know_whether_a_pod_was_begun_says_so(api: Api) -> None:
    runner = KubernetesRunner("sessions", client=api.client(), patience=0.3)
    api.fail("POST", Lost())
    api.fail("GET", *[Refusal(503)] * 50)
    with pytest.raises(Unreachable, match="whether pod p was begun is not known"):
        runner.start(idle("p"))
    assert list(api.pods) == ["p"]


def test_a_runner_takes_no_other_pod_for_the_one_that_it_began(api: Api, runner: KubernetesRunner, begin: Any) -> None:
    name = begin(idle())
    begun = api.asked("POST")[0].body
    api.remove(name)
    with api._changed:
        api.create(begun)  # As `kubectl replace --force` does: all is the same, and the pod is another one.
    for ask in (runner.status, runner.wait, runner.stop, lambda name: list(runner.logs(name, "one", follow=True))):
        with pytest.raises(SourceMissing, match="begun here is gone"):
            ask(name)
    assert (list(api.pods), api.asked("DELETE")) == ([name], [])
    another = KubernetesRunner("sessions", client=api.client())
    assert another.stop(name).phase == "Failed"
    runner.start(idle(name))
    assert runner.stop(name).phase == "Failed"
    another.start(idle(name))
    assert runner.status(name).phase == "Pending"


@pytest.mark.parametrize("after", [Refusal(401, "Unauthorized"), Refusal(403, "Forbidden", "no get")], ids=["401", "403"])
def test_who_may_not_look_for_what_may_have_been_begun_says_so(api: Api, runner: KubernetesRunner, after: Refusal) -> None:
    api.fail("POST", Lost())
    api.fail("GET", after)
    with pytest.raises(ConfigurationError, match="whether pod p was begun is not known"):
        runner.start(idle("p"))
    assert list(api.pods) == ["p"]


def test_a_refusal_after_an_answer_that_was_lost_says_that_it_may_have_been_begun(api: Api, runner: KubernetesRunner) -> None:
    api.fail("POST", Reset(), Refusal(422, "Invalid", causes=CAUSES))
    with pytest.raises(ParametersError) as raised:
        runner.start(idle("p"))
    told = [str(each) for each in raised.value.faults]
    assert len(told) == 3
    assert "whether pod p was begun is not known" in told[2]


def test_a_refusal_of_what_was_asked_once_says_that_it_was_not_begun(api: Api, runner: KubernetesRunner) -> None:
    api.fail("POST", Refusal(403, "Forbidden", "exceeded quota"))
    with pytest.raises(ConfigurationError, match=r"p cannot be begun.*exceeded quota"):
        runner.start(idle("p"))


# --- errors, by who can put them right ---------------------------------------------------------------------------------

CAUSES = (("spec.containers[0].ports[0].containerPort", "must be between 1 and 65535"), ("metadata.labels", "must be no joke"))


@pytest.mark.parametrize(
    ("refusal", "kind", "told"),
    [
        (Refusal(401, "Unauthorized", "Unauthorized"), ConfigurationError, "does not know who asks"),
        (Refusal(403, "Forbidden", 'pods is forbidden: User "u" cannot create'), ConfigurationError, 'User "u" cannot create'),
        (Refusal(404, "NotFound", 'namespaces "sessions" not found'), SourceMissing, 'namespaces "sessions" not found'),
        (Refusal(400, "BadRequest", 'unknown field "spec.x"'), ParametersError, 'unknown field "spec.x"'),
        (Refusal(422, "Invalid", "is invalid", causes=CAUSES), ParametersError, "must be no joke"),
        (Refusal(422, "Invalid", "is invalid"), ParametersError, "is invalid"),
        (Refusal(413, raw=b"<html>"), ParametersError, "Too Large"),
        (Refusal(500, "InternalError", "etcd"), Unreachable, "etcd"),
        (Refusal(503, raw=b"<html>bad gateway</html>"), Unreachable, "status 503"),
        (Refusal(429, "TooManyRequests", headers={"Retry-After": "3600"}), Unreachable, "status 429"),
        (Refusal(418, raw=b"[]"), Unreachable, "status 418"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Refusal) else "",
)
@pytest.mark.parametrize("verb", ["POST", "LIST"])
def test_a_refusal_is_told_to_whoever_can_put_it_right(
    api: Api, verb: str, refusal: Refusal, kind: type[SidecarError], told: str
) -> None:
    runner = KubernetesRunner("sessions", client=api.client(), patience=0.3)
    api.fail(verb, *[refusal] * 50)
    with pytest.raises(kind) as raised:
        runner.start(idle()) if verb == "POST" else runner.list()
    assert type(raised.value) is kind
    assert told in str(raised.value)


def test_every_cause_of_a_refusal_is_told_with_its_field(api: Api, runner: KubernetesRunner) -> None:
    api.fail("POST", Refusal(422, "Invalid", "is invalid", causes=CAUSES))
    with pytest.raises(ParametersError) as raised:
        runner.start(idle())
    assert raised.value.faults == tuple(Fault("pod", *each) for each in CAUSES)


def test_a_field_that_kubernetes_does_not_know_is_refused_and_does_not_vanish(api: Api, runner: KubernetesRunner) -> None:
    manifest = idle()
    manifest["spec"]["containers"][0]["comand"] = ["x"]
    with pytest.raises(ParametersError, match="comand"):
        runner.start(manifest)
    assert api.pods == {}


def test_a_token_stands_in_no_error(api: Api) -> None:
    echo = f"you sent Authorization: Bearer {TOKEN}"
    runner = KubernetesRunner("sessions", client=api.client(), patience=0)
    for refusal in (
        Refusal(401, "Unauthorized", echo),
        Refusal(403, "Forbidden", echo),
        Refusal(404, "NotFound", echo),
        Refusal(422, "Invalid", echo, causes=((f"a.{TOKEN}", echo),)),
        Refusal(503, "", echo),
    ):
        api.fail("POST", refusal)
        with pytest.raises(SidecarError) as raised:
            runner.start(idle())
        assert TOKEN not in str(raised.value) + repr(raised.value) + repr(getattr(raised.value, "faults", ""))
    with pytest.raises(ConfigurationError) as unsendable:
        KubernetesRunner("sessions", client=api.client(token=f"{TOKEN}\n")).list()
    assert TOKEN not in str(unsendable.value)
    assert unsendable.value.__cause__ is None


@pytest.mark.parametrize(
    ("user", "secrets"), [("who:p%40ss", ["p%40ss", "p@ss"]), ("a-token", ["a-token"]), ("a:b:c@d", ["b:c@d"])]
)
def test_who_asks_stands_in_no_error_where_the_address_says_it(api: Api, user: str, secrets: list[str]) -> None:
    host = api.url.replace("://", f"://{user}@") + "/path"
    client = ApiClient(Configuration(host=host, retries=False))
    runner = KubernetesRunner("sessions", client=client, patience=0)
    for refusal in (Refusal(503, message=f"you asked {host}"), Refusal(403, message=f"not {secrets[-1]}")):
        told = runner._cluster.told(Failed(refusal.status, runner._cluster._clean(refusal.message)), "it")
        assert not [each for each in (user, *secrets) if each in str(told)]
        assert f"{api.url}/path" in str(told)


def test_who_asks_a_proxy_stands_in_no_error(api: Api) -> None:
    configuration = Configuration(host=api.url, retries=False)
    configuration.proxy, configuration.no_proxy = "http://who:short@127.0.0.1:9", ""
    runner = KubernetesRunner("sessions", client=ApiClient(configuration), patience=0)
    assert "short" not in runner._cluster._clean("to http://who:short@127.0.0.1:9: short")


@pytest.mark.parametrize(
    ("verb", "raw"),
    [
        (verb, raw)
        for verb in ("GET", "LIST", "POST", "DELETE", "WATCH")
        for raw in (b"[]", b"{}", b"null", b'"ok"', b"[" * 100_000, b'{"metadata": {"name": "p"}, "spec": {}}')
        if verb != "DELETE" or raw[:1] != b"{"  # What a deletion is answered with is an object, and not looked at.
    ],
    ids=lambda value: str(value)[:9],
)
def test_what_is_no_api_servers_answer_is_told_as_such(api: Api, begin: Any, verb: str, raw: bytes) -> None:
    name = begin(idle())
    runner = KubernetesRunner("sessions", client=api.client(), patience=0.1)
    api.fail(verb, *[Refusal(200, raw=raw + b"\n")] * 50)
    asks: dict[str, Callable[[], object]] = {
        "GET": lambda: runner.status(name),
        "LIST": runner.list,
        "POST": lambda: runner.start(idle()),
        "DELETE": lambda: runner.stop(name),
        "WATCH": lambda: runner.wait(name),
    }
    with pytest.raises(Unreachable, match="what answers is no API server"):
        asks[verb]()


@pytest.mark.parametrize(
    "wrong",
    [
        {"metadata": {"labels": ["x"]}},
        {"metadata": {"labels": {"app.kubernetes.io/instance": 7}}},
        {"metadata": {"uid": None}},
        {"spec": {"containers": [{"name": "one"}, {"name": "one"}]}},
        {"spec": {"containers": ["one"]}},
        {"spec": {"terminationGracePeriodSeconds": "long"}},
        {"status": []},
        {"status": {"phase": ["x"]}},
        {"status": {"containerStatuses": [{}]}},
        {"status": {"containerStatuses": [{"name": "one", "state": {"terminated": {"exitCode": "x"}}}]}},
        {"status": {"containerStatuses": [{"name": "one", "lastState": "x"}]}},
        {"status": {"conditions": [{"type": "PodScheduled", "status": "False", "message": 7}]}},
    ],
)
def test_a_pod_that_is_none_is_told_as_such(api: Api, begin: Any, wrong: Manifest) -> None:
    name = begin(idle())
    runner = KubernetesRunner("sessions", client=api.client(), patience=0)
    found = {
        key: ({**each, **wrong.get(key, {})} if wrong.get(key) != [] else []) if isinstance(each, dict) else each
        for key, each in api.pods[name].items()
    }
    for verb, answer in (("GET", found), ("LIST", {"metadata": {}, "items": [found]})):
        api.fail(verb, Refusal(200, raw=json.dumps(answer).encode()))
        with pytest.raises(Unreachable, match="what answers is no API server"):
            runner.status(name) if verb == "GET" else runner.list()
    api.fail("WATCH", *[Event("MODIFIED", found)] * 2)
    with pytest.raises(Unreachable, match="what answers is no API server"):
        runner.wait(name)


def test_what_is_null_in_a_pod_is_not_there(api: Api, runner: KubernetesRunner, begin: Any) -> None:
    name = begin(idle())
    found = api.pods[name]
    nothing = {**found, "metadata": {**found["metadata"], "labels": None, "annotations": None}, "status": None}
    api.fail("GET", Refusal(200, raw=json.dumps(nothing).encode()))
    assert runner.status(name) == Status(name, "", "Pending", (Container("one", "waiting"),))


@pytest.mark.parametrize("code", ["x", None, [], {}, 1.5])
def test_a_watch_that_tells_an_error_of_no_number_is_begun_again(
    api: Api, runner: KubernetesRunner, begin: Any, tmp_path: Path, code: object
) -> None:
    (tmp_path / "go").touch()
    api.fail("WATCH", Event("ERROR", {"code": code, "message": ["x"]}))
    assert runner.wait(begin(gated(tmp_path)), HANG).phase == "Failed"


@pytest.mark.parametrize("details", [[], "x", {"causes": "x"}, {"causes": ["x", 1]}, {"causes": {}}])
def test_causes_that_are_none_do_not_hide_what_is_refused(api: Api, runner: KubernetesRunner, details: object) -> None:
    answer = {"kind": "Status", "message": "no such thing", "details": details}
    api.fail("POST", Refusal(422, raw=json.dumps(answer).encode()))
    with pytest.raises(ParametersError, match="no such thing"):
        runner.start(idle())


def certified(folder: Path) -> ssl.SSLContext:
    """Return what a server of this machine shows that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
    pem, private = folder / "certificate.pem", folder / "key.pem"
    pem.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    return context


@pytest.mark.parametrize("retries", [False, None, 1], ids=["asks once", "as it comes", "asks again"])
def test_a_server_that_nobody_vouches_for_is_no_server_that_is_away(tmp_path: Path, retries: Any) -> None:
    class Answer(BaseHTTPRequestHandler):
        pass

    context = certified(tmp_path)

    class Server(ThreadingHTTPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            with suppress(OSError):
                context.wrap_socket(request, server_side=True).close()

    with Server(("127.0.0.1", 0), Answer) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        try:
            configuration = Configuration(host=f"https://127.0.0.1:{server.server_address[1]}", retries=retries)
            runner = KubernetesRunner("sessions", client=ApiClient(configuration), patience=0)
            for ask in (runner.list, lambda: runner.start(idle()), lambda: runner.wait("p")):
                with pytest.raises(ConfigurationError, match="not who it is to be"):
                    ask()
        finally:
            server.shutdown()
            serving.join()


def test_a_token_that_is_not_known_is_told(api: Api) -> None:
    with pytest.raises(ConfigurationError, match="does not know who asks"):
        KubernetesRunner("sessions", client=api.client(token="another")).list()


def test_a_server_that_is_not_there_is_told(api: Api) -> None:
    client = ApiClient(Configuration(host="http://127.0.0.1:9", retries=False))
    runner = KubernetesRunner("sessions", client=client, patience=0.2)
    for ask in (lambda: runner.start(idle()), runner.list, lambda: runner.stop("p"), lambda: runner.wait("p")):
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
            ask()


@pytest.mark.parametrize("plan", [Reset(), Cut(0), Refusal(429, headers={"Retry-After": "0"}), Refusal(500), Refusal(503)])
def test_what_fails_for_a_moment_is_asked_again(api: Api, runner: KubernetesRunner, begin: Any, plan: Plan) -> None:
    name = begin(idle())
    for verb in ("GET", "LIST", "DELETE"):
        api.fail(verb, plan, plan)
    assert runner.status(name).phase == "Pending"
    assert [each.name for each in runner.list()] == [name]
    assert runner.stop(name, 1).phase == "Failed"
    assert api.pods == {}


class Clock:
    """Time that passes only where it is slept."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cluster, "time", clock)
    monkeypatch.setattr(cluster, "random", SimpleNamespace(uniform=lambda low, high: high))
    return clock


def test_attempts_become_rarer_and_come_to_an_end(clock: Clock) -> None:
    trouble = Trouble(30)
    with suppress(Failed):
        for _ in range(100):
            trouble.wait(Failed(503, ""))
    assert clock.slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8, 8]
    trouble.over()
    trouble.wait(Failed(503, ""))
    assert clock.slept[-1] == 0.1


def test_who_is_told_something_and_cut_off_each_time_asks_ever_more_rarely_and_goes_on(clock: Clock) -> None:
    trouble = Trouble(5)
    for _ in range(12):
        trouble.heard()
        trouble.wait(Failed(0, ""))
    assert clock.slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8, 8, 8, 8, 8]
    trouble.over()
    trouble.wait(Failed(0, ""))
    assert clock.slept[-1] == 0.1
    for _ in range(4):
        trouble.wait(Failed(0, ""))
    with pytest.raises(Failed):
        trouble.wait(Failed(0, ""))


def test_watches_that_tell_one_thing_each_are_begun_ever_more_rarely(
    api: Api, runner: KubernetesRunner, begin: Any, clock: Clock
) -> None:
    name = begin(idle())
    api.fail("WATCH", *[Event("MODIFIED", api.pods[name])] * 8, Refusal(403))
    with pytest.raises(ConfigurationError):
        runner.wait(name)
    assert clock.slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8]


def test_a_watch_that_never_comes_to_the_end_of_a_line_is_not_kept(api: Api, begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_LONG", 1000)
    name = begin(idle())
    runner = KubernetesRunner("sessions", client=api.client(), patience=0)
    api.fail("WATCH", Refusal(200, raw=b"x" * 1001))
    with pytest.raises(Unreachable, match="what answers is no API server"):
        runner.wait(name)


def test_a_server_that_says_when_is_asked_then_and_not_before(clock: Clock) -> None:
    Trouble(30).wait(Failed(429, "", after=7))
    assert clock.slept == [7]
    with pytest.raises(Failed):
        Trouble(30).wait(Failed(429, "", after=31))
    with pytest.raises(TooLate):
        Trouble(30).wait(Failed(429, "", after=20), clock.now + 3)
    assert clock.slept == [7, 3]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 418, 422])
def test_what_will_not_get_better_is_not_asked_again(clock: Clock, status: int) -> None:
    with pytest.raises(Failed):
        Trouble(30).wait(Failed(status, ""))
    assert clock.slept == []


# --- waiting -----------------------------------------------------------------------------------------------------------


def gated(tmp_path: Path, script: str = "exit 5", **more: Any) -> Manifest:
    """Return a pod that ends once `go` is in a folder of the machine."""
    one = container("one", "host", f"until [ -e /v/go ]; do sleep 0.02; done; {script}", volumeMounts=[mount("v", "/v")])
    return pod(one, volumes=[{"name": "v", "hostPath": {"path": str(tmp_path)}}], **more)


def test_who_waits_asks_once_and_is_told(api: Api, runner: KubernetesRunner, begin: Any, tmp_path: Path) -> None:
    name = begin(gated(tmp_path))
    waiting = in_background(lambda: runner.wait(name))
    api.await_request("WATCH")
    (tmp_path / "go").touch()
    assert of(waiting(), "one").exit == 5
    assert [each.verb for each in api.requests] == ["POST", "GET", "WATCH"]


@pytest.mark.parametrize(
    "plans",
    [
        [Reset()],
        [Refusal(500, "InternalError"), Refusal(503), Refusal(429)],
        [Cut(0), Cut(0), Cut(1)],
        [Refusal(410, "Expired")],
        [Event("ERROR", json.loads(Refusal(410, "Expired").body()))],
        [Event("ERROR", json.loads(Refusal(500, "InternalError").body())), Reset()],
        [Event("BOOKMARK", {"metadata": {"resourceVersion": "101"}})],
        [Refusal(200, raw=b"<html>"), Refusal(200, raw=b"")],
    ],
    ids=["reset", "refused", "cut", "410", "too old", "error", "bookmark", "no API"],
)
def test_a_watch_that_fails_is_begun_again(
    api: Api, runner: KubernetesRunner, begin: Any, tmp_path: Path, plans: list[Plan]
) -> None:
    api.fail("WATCH", *plans)
    name = begin(gated(tmp_path))
    waiting = in_background(lambda: runner.wait(name))
    api.await_request("WATCH", len(plans) + (0 if isinstance(plans[0], Cut) else 1))
    (tmp_path / "go").touch()
    assert waiting().phase == "Failed"
    assert len(api.asked("GET")) <= 2  # once more where what happened since is not known


def test_a_watch_goes_on_from_what_the_last_one_told(api: Api, begin: Any, tmp_path: Path) -> None:
    name = begin(gated(tmp_path))
    # Each tells something: so they may end at once for longer than patience lasts.
    runner = KubernetesRunner("sessions", client=api.client(), patience=0.3)
    versions = [str(number) for number in range(1001, 1005)]
    api.fail("WATCH", *[Event("BOOKMARK", {"metadata": {"resourceVersion": version}}) for version in versions])
    waiting = in_background(lambda: runner.wait(name))
    api.await_request("WATCH", 5)
    with api._changed:
        api._version = 2000
    (tmp_path / "go").touch()
    assert waiting().phase == "Failed"
    assert [each.query["resourceVersion"] for each in api.asked("WATCH")][1:5] == versions


def test_what_happened_while_no_watch_was_there_is_not_missed(
    api: Api, runner: KubernetesRunner, begin: Any, tmp_path: Path
) -> None:
    (tmp_path / "go").touch()
    name = begin(gated(tmp_path))
    assert runner.wait(name, HANG).phase == "Failed"
    # As somebody who began to wait before all that, and whose watch is too old by now.
    was = {**api.pods[name], "metadata": {**api.pods[name]["metadata"], "resourceVersion": "1"}, "status": {"phase": "Pending"}}
    api.forget()
    states = [kubelet.status_of(each).phase for each, _ in zip_until_ended(runner._cluster.states(was))]
    assert states == ["Pending", "Failed"]


def zip_until_ended(states: Any) -> Iterator[tuple[Manifest, bool]]:
    for state in states:
        yield state
        if state[0]["status"]["phase"] in ENDED:
            return


def test_a_watch_that_never_works_comes_to_an_end(api: Api, begin: Any) -> None:
    name = begin(idle())
    runner = KubernetesRunner("sessions", client=api.client(), patience=0.5)
    for plan in (Refusal(503), Reset(), Cut(0)):
        api.fail("WATCH", *[plan] * 100)
        with pytest.raises(Unreachable, match="cannot be watched"):
            runner.wait(name)
        api._plans.clear()
    api.fail("WATCH", *[Refusal(503)] * 100)
    with pytest.raises(DeadlinePassed):
        runner.wait(name, 0.2)


def test_a_cluster_that_forgets_all_at_once_is_not_asked_for_ever(api: Api, begin: Any) -> None:
    name = begin(idle())
    runner = KubernetesRunner("sessions", client=api.client(), patience=0.5)
    for verb, ask in (("WATCH", lambda: runner.wait(name)), ("LIST", runner.list)):
        api.fail(verb, *[Refusal(410, "Expired", "too old")] * 100)
        with pytest.raises(Unreachable, match="too old"):
            ask()


@pytest.mark.parametrize("plan", [Reset(), Refusal(503)])
def test_a_deadline_holds_though_the_cluster_does_not_answer(api: Api, begin: Any, plan: Plan) -> None:
    name = begin(idle())
    patient = KubernetesRunner("sessions", client=api.client(), patience=3600)
    for verb in ("GET", "WATCH"):
        api.fail(verb, *[plan] * 1000)
        with pytest.raises(DeadlinePassed, match=name):
            patient.wait(name, 0.2)
        api._plans.clear()


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_who_waits_for_a_pod_that_has_ended_is_told_however_short_the_wait(
    api: Api, runner: KubernetesRunner, begin: Any, timeout: float
) -> None:
    name = begin(pod(container("one", "host", "exit 3")))
    runner.wait(name, HANG)
    api.fail("GET", Late(0.3))
    assert of(runner.wait(name, timeout), "one").exit == 3


def test_a_pod_that_somebody_removes_is_no_longer_waited_for(api: Api, runner: KubernetesRunner, begin: Any) -> None:
    name = begin(pod(container("one", "host", POLITE)))
    running(runner, name, "one")
    waiting = in_background(lambda: runner.wait(name))
    api.await_request("WATCH")
    api.remove(name)
    with pytest.raises(SourceMissing, match="removed while it was waited for"):
        waiting()


def test_a_pod_that_is_replaced_by_another_while_nobody_looks_is_gone(api: Api, runner: KubernetesRunner, begin: Any) -> None:
    for too_old in (False, True):
        name = begin(idle())
        was = api.pods[name]
        api.remove(name)
        was["metadata"]["resourceVersion"] = str(api._version)  # as if a bookmark had come
        runner.start(idle(name))
        if too_old:
            api.forget()
        assert list(runner._cluster.states(was)) == [(was, False), (was, True)]


def test_a_pod_that_somebody_stops_while_it_is_waited_for_has_ended(api: Api, runner: KubernetesRunner, begin: Any) -> None:
    name = begin(pod(container("one", "host", POLITE)))
    hear(runner, name, "one", "ready")
    waiting = in_background(lambda: runner.wait(name))
    api.await_request("WATCH")
    assert runner.stop(name) == waiting()


def test_a_pod_that_is_evicted_has_failed_and_says_why(api: Api, runner: KubernetesRunner, begin: Any) -> None:
    name = begin(pod(container("one", "host", POLITE)))
    running(runner, name, "one")
    waiting = in_background(lambda: runner.wait(name))
    api.await_request("WATCH")
    api.change(name, phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
    assert (waiting().phase, waiting().reason) == ("Failed", "Evicted: The node was low on resource: memory.")


def test_an_image_that_cannot_be_pulled_is_told(runner: KubernetesRunner, begin: Any) -> None:
    name = begin(idle())
    why = f'ImagePullBackOff: Back-off pulling image "{NOWHERE}"'
    assert runner.status(name) == Status(name, "of-the-tests", "Pending", (Container("one", "waiting", None, 0, why),))
    with pytest.raises(DeadlinePassed, match="one waits: ImagePullBackOff"):
        runner.wait(name, 0.05)
    assert list(runner.logs(name, "one")) == []
    assert runner.stop(name, 1).phase == "Failed"


# --- stopping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grace", "sent"), [(None, None), (0, 1), (0.2, 1), (2.5, 3), (7, 7)])
def test_a_grace_is_sent_in_whole_seconds_and_never_none(
    api: Api, runner: KubernetesRunner, begin: Any, grace: float | None, sent: int | None
) -> None:
    runner.stop(begin(idle()), grace)
    (deleted,) = api.asked("DELETE")
    assert deleted.body.get("gracePeriodSeconds") == sent


def test_a_pod_that_is_not_ours_is_left_alone(api: Api, runner: KubernetesRunner) -> None:
    theirs = idle("theirs")
    with api._changed:
        api.create(theirs)
    with pytest.raises(ConfigurationError, match="none of ours"):
        runner.stop("theirs")
    assert runner.list() == []
    assert runner.status("theirs").phase == "Pending"
    assert (list(api.pods), api.asked("DELETE")) == (["theirs"], [])


def test_what_kubectl_makes_of_a_composed_pod_is_kubectls(api: Api, runner: KubernetesRunner) -> None:
    composed = compose("host", (), (), command=["true"]).pod
    composed["metadata"]["labels"] |= OURS
    with api._changed:
        api.create(composed)
    name = composed["metadata"]["name"]
    assert runner.list() == []
    with pytest.raises(ConfigurationError, match="none of ours"):
        runner.stop(name)
    assert runner.status(name).name == name
    assert (list(api.pods), api.asked("DELETE")) == ([name], [])


def test_a_pod_that_is_said_to_be_somebody_elses_is_not_begun(api: Api, runner: KubernetesRunner) -> None:
    manifest = idle()
    manifest["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "helm"}
    with pytest.raises(ParametersError, match="managed-by"):
        runner.start(manifest)
    nameless: Manifest
    for nameless in ({}, {"metadata": {}}, {"metadata": {"generateName": "x-"}}):
        with pytest.raises(ParametersError, match=r"metadata\.name"):
            runner.start({**idle(), "metadata": {}} | nameless)
    assert api.requests == []


def test_another_pod_that_has_the_name_by_now_is_not_deleted(api: Api, runner: KubernetesRunner, begin: Any) -> None:
    name = begin(idle())
    stale = runner._cluster.get(name)["metadata"]["uid"]
    api.remove(name)
    runner.start(idle(name))
    assert runner._cluster.delete(name, stale, None) is False
    assert list(api.pods) == [name]
    api.fail("DELETE", Refusal(409, "Conflict"))
    with pytest.raises(SourceMissing):
        runner.stop(name)


@pytest.mark.parametrize("plan", [Lost(), Lost(Refusal(500)), Reset(), Cut(0), Refusal(503)])
def test_a_pod_whose_deletion_is_not_answered_is_stopped_once(api: Api, runner: KubernetesRunner, begin: Any, plan: Plan) -> None:
    name = begin(pod(container("one", "host", POLITE)))
    hear(runner, name, "one", "ready")
    api.fail("DELETE", plan)
    api.fail("WATCH", Cut(1), Reset())
    status = runner.stop(name)
    assert (status.phase, of(status, "one").exit) == ("Failed", 3)
    assert api.pods == {}


def test_what_no_container_was_begun_of_is_removed_at_once(api: Api, runner: KubernetesRunner, begin: Any) -> None:
    # A real server asks no node then: there is no time at which it is being deleted.
    pending, over = begin(idle()), begin(pod(container("one", "host", "true")))
    runner.wait(over, HANG)
    assert (runner.stop(pending).phase, runner.stop(over).phase) == ("Failed", "Succeeded")
    assert [kind for _, kind, each in api._events if "deletionTimestamp" in each["metadata"]] == []
    assert api.pods == {}


def test_what_may_not_be_there_twice_is_refused_with_its_place(api: Api, runner: KubernetesRunner) -> None:
    one = container("one", "host", "true", volumeMounts=[mount("v", "/v"), mount("w", "/v")])
    with pytest.raises(ParametersError) as raised:
        runner.start(pod(one, container("two", "host", "true"), inits=(container("two", "host", "true"),)))
    assert [each.key for each in raised.value.faults] == [
        "spec.containers[0].volumeMounts[1].mountPath",
        "spec.containers[1].name",
    ]
    assert api.pods == {}


def test_a_node_that_does_not_let_go_is_told(
    api: Api, runner: KubernetesRunner, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "_GOING", -0.7)
    name = begin(pod(container("one", "host", POLITE)))
    hear(runner, name, "one", "ready")
    api.stuck = True
    with pytest.raises(DeadlinePassed, match="has not let go"):
        runner.stop(name, 1)
    assert runner.status(name).reason == "it is being deleted"


# --- lists -------------------------------------------------------------------------------------------------------------


def test_a_list_is_read_page_by_page_and_holds_what_is_ours(api: Api, runner: KubernetesRunner, begin: Any) -> None:
    names = sorted(begin(idle()) for _ in range(5))
    with api._changed:
        api.create(idle("theirs"))
    api.page = 2
    assert [each.name for each in runner.list()] == names
    assert [each.query.get("continue") for each in api.asked("LIST")] == [None, "2", "4"]


def test_a_list_whose_pages_are_too_old_is_begun_again(api: Api, runner: KubernetesRunner, begin: Any) -> None:
    names = sorted(begin(idle()) for _ in range(3))
    api.page = 2
    answers = iter([None, Refusal(410, "Expired")])
    plans = api.begins
    api.begins = lambda request: plans(request) or (next(answers, None) if request.verb == "LIST" else None)  # type: ignore[method-assign]
    assert [each.name for each in runner.list()] == names
    assert [each.query.get("continue") for each in api.asked("LIST")] == [None, "2", None, "2"]


# --- logs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plans", [[Cut(0), Cut(1), Cut(50), Cut(399)], [Reset(), Refusal(500), Refusal(503)]], ids=["cut", "refused"]
)
@pytest.mark.parametrize("follow", [False, True])
def test_a_log_whose_connection_breaks_is_told_on_from_there(
    api: Api, runner: KubernetesRunner, begin: Any, plans: list[Plan], follow: bool
) -> None:
    name = begin(pod(container("one", "host", "seq 400; printf 'no end'")))
    runner.wait(name, HANG)
    api.fail("LOG", *plans)
    told = b"".join(runner.logs(name, "one", follow=follow))
    assert told.decode() == "".join(f"{n}\n" for n in range(1, 401)) + "no end"


def test_who_follows_hears_all_lives_that_come_once_each(api: Api, runner: KubernetesRunner, begin: Any, tmp_path: Path) -> None:
    # Each life ends when it is told to: so all are heard, though a cluster keeps but two.
    script = (
        "echo >> /v/lives; n=$(wc -l < /v/lives); echo life $n; until [ -e /v/go$n ]; do sleep 0.02; done; echo over $n;"
        " [ $n -gt 3 ] || exit 1"
    )
    one = container("one", "host", script.replace("$", "$$"), volumeMounts=[mount("v", "/v")])
    name = begin(pod(one, volumes=[{"name": "v", "hostPath": {"path": str(tmp_path)}}], restartPolicy="OnFailure"))
    heard = b""
    for data in runner.logs(name, "one", follow=True):
        heard += data
        for life in range(1, 5):
            if f"life {life}\n".encode() in heard:
                (tmp_path / f"go{life}").touch()
    assert heard.decode() == "".join(f"life {n}\nover {n}\n" for n in range(1, 5))
    # Of each life was asked once or twice; and not all the time.
    assert len(api.asked("LOG")) <= 16


def test_a_log_that_ends_though_its_container_runs_on_is_asked_for_again(
    api: Api, runner: KubernetesRunner, begin: Any, tmp_path: Path
) -> None:
    # As where a proxy lets go of what is idle, or a kubelet is begun again.
    one = container("one", "host", "echo one; until [ -e /v/go ]; do sleep 0.02; done; echo two", volumeMounts=[mount("v", "/v")])
    name = begin(pod(one, volumes=[{"name": "v", "hostPath": {"path": str(tmp_path)}}]))
    running(runner, name, "one")
    api.fail("LOG", Cut(1, well=True), Cut(1, well=True))
    heard = in_background(lambda: b"".join(runner.logs(name, "one", follow=True)))
    api.await_request("LOG", 3)
    (tmp_path / "go").touch()
    assert heard() == b"one\ntwo\n"


def test_who_follows_before_a_container_begins_hears_it_from_its_beginning(
    runner: KubernetesRunner, begin: Any, tmp_path: Path
) -> None:
    init = container("init", "host", "until [ -e /v/go ]; do sleep 0.02; done", volumeMounts=[mount("v", "/v")])
    volumes = [{"name": "v", "hostPath": {"path": str(tmp_path)}}]
    name = begin(pod(container("one", "host", "echo here"), inits=(init,), volumes=volumes))
    heard = in_background(lambda: list(runner.logs(name, "one", follow=True)))
    assert list(runner.logs(name, "one")) == []
    (tmp_path / "go").touch()
    assert heard() == [b"here\n"]


@pytest.mark.parametrize("begun", [True, False])
def test_who_follows_is_let_go_when_the_pod_is_removed(api: Api, runner: KubernetesRunner, begin: Any, begun: bool) -> None:
    name = begin(pod(container("one", "host", POLITE)) if begun else idle())
    if begun:
        hear(runner, name, "one", "ready")
    heard = in_background(lambda: b"".join(runner.logs(name, "one", follow=True)))
    api.await_request("LOG" if begun else "WATCH", 2 if begun else 1)
    runner.stop(name, 1)
    assert heard() in ((b"ready\n", b"ready\nasked\n") if begun else (b"",))


@pytest.mark.parametrize("plans", [[Cut(1)], [Cut(1), Reset()], []], ids=["cut", "twice", "at first"])
@pytest.mark.parametrize("follow", [True, False])
def test_nobody_is_told_the_log_of_another_pod_that_took_the_name(
    api: Api, runner: KubernetesRunner, begin: Any, plans: list[Plan], follow: bool
) -> None:
    name = begin(pod(container("one", "host", "echo mine; echo too")))
    runner.wait(name, HANG)

    def replace() -> None:
        api.remove(name)
        with api._changed:
            api.create(pod(container("one", "host", "echo theirs"), name=name))
        another = KubernetesRunner("sessions", client=api.client())
        hear(another, name, "one", "theirs")

    api.fail("LOG", *plans, Then(replace))
    heard = b"".join(runner.logs(name, "one", follow=follow))
    assert heard == (b"mine\n" if plans else b"")


def test_a_log_that_is_refused_is_told(api: Api, runner: KubernetesRunner, begin: Any) -> None:
    name = begin(pod(container("one", "host", "true")))
    runner.wait(name, HANG)
    api.fail("LOG", Refusal(403, "Forbidden", "cannot get resource pods/log"))
    with pytest.raises(ConfigurationError, match="pods/log"):
        list(runner.logs(name, "one"))


def stamped(lines: list[bytes]) -> bytes:
    """Return lines as a kubelet tells them: some at the same second, with fractions of any length."""
    second, fractions = "2026-01-31T23:59:{:02}{}Z ", ("", ".0001", ".05", ".051", ".1", ".123456789", ".9")
    return b"".join(second.format(number // 7, fractions[number % 7]).encode() + line for number, line in enumerate(lines))


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"")), max_size=30),
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 40)), max_size=5),
)
@example([b"", b"2026-01-31T23:59:00Z not a time", b" "], [(30, 1), (60, 3)])
def test_however_often_an_answer_breaks_off_each_line_is_told_once(lines: list[bytes], breaks: list[tuple[int, int]]) -> None:
    whole = stamped([line + b"\n" for line in lines])
    told, heard = Told(), b""

    def parts(end: int, size: int) -> Iterator[bytes]:
        yield b""
        for at in range(0, min(end, len(whole)), size):
            yield whole[at : min(end, at + size)]
        if end < len(whole):
            raise Failed(0, "it broke off")

    for end, size in [*breaks, (len(whole), 7)]:
        try:
            for each in told.fresh(parts(end, size)):
                heard += each
        except Failed:
            pass
    assert heard == b"".join(line + b"\n" for line in lines)


def broken(whole: bytes, end: int, size: int = 1 << 16) -> Iterator[bytes]:
    """Yield an answer that breaks off."""
    for at in range(0, end, size):
        yield whole[at : min(end, at + size)]
    raise Failed(0, "it broke off")


def heard_of(told: Told, *answers: Iterable[bytes]) -> bytes:
    heard = b""
    for answer in answers:
        with suppress(Failed):
            for each in told.fresh(answer):
                heard += each
    return heard


def test_a_very_long_line_that_breaks_off_in_its_middle_is_told_whole_and_the_next_by_itself() -> None:
    long = b"".join(b"%06d" % number for number in range(500_000))
    whole = b"2026-01-01T00:00:00.5Z " + long + b"\n2026-01-01T00:00:00.6Z next\n"
    for ends in ([2_000_000], [1_100_000, 1_100_000, 2_900_000, 3_000_020]):
        assert heard_of(Told(), *(broken(whole, end) for end in ends), [whole], [whole]) == long + b"\nnext\n"


@pytest.mark.parametrize(
    "times",
    [(b"00.5", b"00.5", b"00.5"), (b"00.5", b"00.4", b"00.5"), (b"01.1", b"00.9", b"01.0"), (b"01.5", b"00.5000", b"00.6")],
    ids=["of one time", "overtaken", "overtaken across a second", "overtaken by almost a moment"],
)
def test_wherever_an_answer_breaks_off_lines_are_told_whatever_their_times(times: tuple[bytes, ...]) -> None:
    texts = (b"one\n", b"two\n", b"three\n")
    lines = [b"2026-01-01T00:00:" + at + b"Z " + text for at, text in zip(times, texts, strict=True)]
    whole = b"".join(lines)
    for end in range(len(whole) + 1):
        for well in (False, True):
            told = Told()
            first = heard_of(told, [whole[:end]] if well else broken(whole, end, 7))
            # As a server does: what is older than that it leaves out.
            since = told.since[:-1].encode()
            later = b"".join(each for each in lines if each[: len(since)] >= since)
            assert first + heard_of(told, [later]) == b"".join(texts), (end, well)


def test_a_last_line_without_an_end_is_told_once_though_another_life_begins_at_once() -> None:
    told = Told()
    former, last = b"2026-01-01T00:00:00.1Z no end", b"2026-01-01T00:00:00.2Z also"
    assert heard_of(told, [former], [last], [former], [last + b" this\n"]) == b"no endalso this\n"


def test_what_begins_like_a_time_and_is_none_is_told() -> None:
    line = b"2026-99-99T00:00:00Z text\n"
    assert heard_of(Told(), [line]) == line


def test_a_line_that_is_very_long_is_told_in_parts() -> None:
    part = b"x" * (1 << 19)
    line = b"2026-01-01T00:00:00.5+02:00 " + part * 5 + b"\nend"
    told = Told()
    found = list(told.fresh(line[at : at + 99_999] for at in range(0, len(line), 99_999)))
    assert b"".join(found) == part * 5 + b"\nend"
    assert max(map(len, found)) < 1 << 21
    assert told.since == "2025-12-31T21:59:59Z"
    assert list(told.fresh([line])) == []


# --- what a cluster says of a pod --------------------------------------------------------------------------------------


def seen(*statuses: Manifest, inits: tuple[Manifest, ...] = (), phase: str = "Running", **more: Any) -> Manifest:
    """Return a pod as the API has it, which says so of its containers."""
    spec = {"containers": [{"name": each["name"]} for each in statuses], "initContainers": [{"name": e["name"]} for e in inits]}
    status = {"phase": phase, "containerStatuses": list(statuses[::-1]), "initContainerStatuses": list(inits), **more}
    return {"metadata": {"name": "p", "uid": "u", "labels": {"app.kubernetes.io/instance": "s"}}, "spec": spec, "status": status}


def ended(name: str, exit: int, last: Manifest | None = None, restarts: int = 0, **more: Any) -> Manifest:  # noqa: A002
    state = {"terminated": {"exitCode": exit, "reason": "Error" if exit else "Completed", "containerID": "x", **more}}
    return {"name": name, "state": state, "lastState": last or {}, "restartCount": restarts}


@pytest.mark.parametrize(
    ("said_of", "container"),
    [
        (ended("c", 0), Container("c", "exited", 0)),
        (ended("c", 137), Container("c", "exited", 137)),
        (ended("c", 0, signal=9), Container("c", "exited", 137)),
        (ended("c", 137, reason="OOMKilled"), Container("c", "exited", 137, 0, "OOMKilled")),
        (ended("c", 66, message="no bundle x\n"), Container("c", "exited", 66, 0, "no bundle x")),
        (ended("c", 128, reason="StartError", message="none"), Container("c", "exited", 128, 0, "StartError: none")),
        ({"name": "c", "state": {"running": {}}}, Container("c", "running")),
        (
            {"name": "c", "state": {"running": {}}, "restartCount": 2, "lastState": ended("c", 4)["state"]},
            Container("c", "running", 4, 2),
        ),
        (
            {"name": "c", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}, "restartCount": 1,
             "lastState": ended("c", 4)["state"]},
            Container("c", "waiting", 4, 1, "CrashLoopBackOff: back-off 10s"),
        ),
        ({"name": "c", "state": {"waiting": {"reason": "ErrImagePull"}}}, Container("c", "waiting", None, 0, "ErrImagePull")),
        ({"name": "c"}, Container("c", "waiting")),
    ],
)  # fmt: skip
def test_a_container_is_told_as_it_stands(said_of: Manifest, container: Container) -> None:
    assert status_of(seen(said_of)).containers == (container,)


def test_init_containers_come_first_and_all_in_the_manifests_order() -> None:
    found = status_of(seen(ended("b", 0), ended("a", 1), inits=(ended("z", 0), ended("y", 0)), phase="Failed"))
    assert [each.name for each in found.containers] == ["z", "y", "b", "a"]
    assert (found.session, found.phase) == ("s", "Failed")


def test_a_phase_that_is_not_known_is_told_so() -> None:
    found = seen(ended("c", 0), phase="Unknown", reason="NodeLost", message="Node n which was running pod p is unresponsive")
    assert (status_of(found).phase, status_of(found).reason.partition(":")[0]) == ("Unknown", "NodeLost")
    assert status_of({**found, "status": {}}) == Status("p", "s", "Pending", (Container("c", "waiting"),))


def test_why_a_pod_is_on_no_node_is_told() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
    assert status_of(seen(phase="Pending", conditions=[condition])).reason == "Unschedulable: 0/3 nodes are available"


def test_how_a_pod_ended_is_told_also_where_its_phase_does_not_say() -> None:
    assert end_of(seen(ended("a", 0), inits=(ended("i", 1),))).phase == "Succeeded"
    assert end_of(seen(ended("a", 0), ended("b", 3))).phase == "Failed"
    assert end_of(seen({"name": "a"}, phase="Pending")).phase == "Failed"
    evicted = end_of(seen({"name": "a", "state": {"running": {}}}, phase="Failed", reason="Evicted"))
    assert (evicted.phase, evicted.reason) == ("Failed", "Evicted")
    lost = end_of(seen({"name": "a", "state": {"running": {}}}))
    assert (lost.phase, lost.reason) == ("Unknown", "it was removed before its node had told how its containers ended")


@pytest.mark.parametrize(
    ("exit_", "asked", "init", "over"),
    [
        (0, {"restartPolicy": "Never"}, {}, True),
        (1, {"restartPolicy": "Never"}, {}, True),
        (0, {"restartPolicy": "OnFailure"}, {}, True),
        (1, {"restartPolicy": "OnFailure"}, {}, False),
        (0, {"restartPolicy": "Always"}, {}, False),
        (0, {}, {}, False),
        (0, {"restartPolicy": "Always"}, None, True),
        (1, {"restartPolicy": "Always"}, None, False),
        (0, {"restartPolicy": "Never"}, {"restartPolicy": "Always"}, False),
        (0, {"restartPolicy": "Never"}, {"restartPolicyRules": []}, False),
    ],
)
def test_a_container_is_over_when_nobody_will_begin_it_again(exit_: int, asked: Manifest, init: Any, over: bool) -> None:
    found = seen(inits=(ended("c", exit_),)) if init is None or init else seen(ended("c", exit_))
    for each in found["spec"]["initContainers"]:
        each.update(init or {})
    found["spec"].update(asked)
    assert kubelet.is_over(found, "c") is over
    assert kubelet.is_over({**found, "metadata": {**found["metadata"], "deletionTimestamp": "now"}}, "c")
    found["status"]["phase"] = "Failed"
    assert kubelet.is_over(found, "c")


# --- which cluster -----------------------------------------------------------------------------------------------------


def test_a_context_of_a_kubeconfig_is_asked_in_its_namespace(api: Api, tmp_path: Path) -> None:
    path = api.kubeconfig(tmp_path / "config")
    runner = KubernetesRunner(kubeconfig=path, context="here")
    assert (runner.namespace, runner.list()) == ("sessions", [])
    assert KubernetesRunner("other", kubeconfig=path, context="here").namespace == "other"
    assert KubernetesRunner(kubeconfig=path).namespace == "default"
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        KubernetesRunner(kubeconfig=path, patience=0).list()


@pytest.mark.parametrize(
    "text", ["", "[", "users: [{name: SECRET", "current-context: x\ncontexts: SECRET", "\0SECRET", "contexts: []"]
)
def test_a_kubeconfig_that_is_none_is_told_without_what_it_holds(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(ConfigurationError) as raised:
        KubernetesRunner(kubeconfig=str(tmp_path / "config"))
    assert "SECRET" not in str(raised.value)


def test_where_no_cluster_is_configured_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no cluster is configured"):
        KubernetesRunner(kubeconfig=str(tmp_path / "none"))
    told = "from sidecar.session.kubernetes import KubernetesRunner; KubernetesRunner()"
    ran = subprocess.run(
        [sys.executable, "-c", told], env={"HOME": str(tmp_path), "PATH": ""}, capture_output=True, text=True, check=False
    )
    assert "ConfigurationError: no cluster is configured" in ran.stderr
    with pytest.raises(ConfigurationError, match="beside it"):
        KubernetesRunner(client=object(), context="x")


def test_the_client_is_imported_where_it_is_used_and_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "import sys; import sidecar.session.kubernetes; sys.exit('kubernetes' in sys.modules or 'urllib3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    for ask in (KubernetesRunner, lambda: as_v1pod({})):
        with pytest.raises(ConfigurationError, match=r"sidecar-toolkit\[kubernetes\]"):
            ask()


# --- V1Pod -------------------------------------------------------------------------------------------------------------


def plain(pod: Any) -> Any:
    client: Any = ApiClient(Configuration())
    return client.sanitize_for_serialization(pod)


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_is_a_v1pod_and_back(name: str) -> None:
    manifest = GOLDEN[name]
    found = as_v1pod(manifest)
    assert isinstance(found, V1Pod)
    assert found.spec is not None
    assert found.spec.containers[0].name == "application"
    assert plain(found) == manifest


def test_there_are_sessions_to_try_that_with() -> None:
    assert len(SESSIONS) >= 8


NAMES = st.text("abc-.", min_size=1, max_size=5)
TEXTS = st.text(max_size=8)


@settings(deadline=None)
@given(
    st.dictionaries(NAMES, TEXTS, max_size=3),
    st.lists(st.fixed_dictionaries({"name": NAMES, "value": TEXTS}), max_size=3),
    st.lists(TEXTS, max_size=3),
    st.integers(0, 1 << 40),
)
def test_whatever_is_in_it_is_in_the_v1pod(labels: Manifest, env: list[Manifest], words: list[str], number: int) -> None:
    one = {"name": "one", "image": "i", "args": words, "env": env, "securityContext": {"runAsUser": number}}
    manifest = pod(one, container("two", "i", "true", resources={"limits": {"memory": "64Mi"}}))
    manifest["metadata"]["labels"] = labels
    assert plain(as_v1pod(manifest)) == manifest


def test_every_field_that_a_v1pod_has_not_is_named() -> None:
    manifest = idle()
    manifest["spec"]["containers"][0] |= {"comand": ["x"], "image_pull_policy": "Always", "stdin": None}
    manifest["spec"]["hostPid"] = True
    manifest["spec"]["terminationGracePeriodSeconds"] = "60"
    with pytest.raises(ParametersError) as raised:
        as_v1pod(manifest)
    assert {each.key for each in raised.value.faults} == {
        "spec.containers[0].comand",
        "spec.hostPid",
        "spec.terminationGracePeriodSeconds",
    }
    manifest = idle()
    manifest["spec"]["containers"][0] |= {"image_pull_policy": "Always"}
    with pytest.raises(ParametersError, match="image_pull_policy"):
        as_v1pod(manifest)
