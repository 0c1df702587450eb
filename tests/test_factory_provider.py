"""What a provider says that it has: real registries and layouts, and whatever else may stand in their place."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from registries import CONFIG, LAYER, MANIFEST, PASSWORD, USER, Registry, registry

from sidecar.factory.model import Found, Provider
from sidecar.factory.provider import LIMIT, look

DIGEST = f"sha256:{'0' * 64}"
SECRET = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
SHORT = 0.3  # seconds, for who will never answer
AMPLE = 30.0  # seconds, for who does


def found(provider: Provider, reference: str = "sidecar/app:1", within: float = AMPLE) -> Found:
    return look({provider: {"app": f"{provider.registry}/{reference}" if provider.registry else reference}}, within)[
        provider.name, "app"
    ]


# --- registries --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("closed"), closed=True) as running:
        yield running


def provider_at(host: str, **options: Any) -> Provider:
    return Provider("here", registry=host, plain=True, **options)


def test_a_registry_tells_the_digest_of_what_was_pushed(running: Registry) -> None:
    digest = running.push("sidecar/app", "1")
    assert found(provider_at(running.host)) == Found(digest)


def test_what_was_pushed_again_has_another_digest(running: Registry) -> None:
    first, second = running.push("sidecar/twice", "1"), running.push("sidecar/twice", "1", b"other")
    assert first != second
    assert found(provider_at(running.host), "sidecar/twice:1") == Found(second)


def test_an_image_below_a_folder_of_a_registry_is_found_there(running: Registry) -> None:
    digest = running.push("team/sidecar/app", "1")
    assert found(provider_at(f"{running.host}/team")) == Found(digest)


@pytest.mark.parametrize("reference", ["sidecar/nothing:1", "sidecar/known:2"])
def test_a_repository_or_a_tag_that_a_registry_does_not_have_is_absent(running: Registry, reference: str) -> None:
    running.push("sidecar/known", "1")
    assert found(provider_at(running.host), reference) == Found()


def test_what_was_deleted_in_the_registry_is_absent(running: Registry) -> None:
    running.push("sidecar/deleted", "1")
    running.delete("sidecar/deleted", "1")
    assert found(provider_at(running.host), "sidecar/deleted:1") == Found()


def test_a_registry_that_is_stopped_is_unreachable_and_tells_again_when_it_is_back(tmp_path: Path) -> None:
    with registry(tmp_path) as here:
        digest = here.push("sidecar/app", "1")
        here.stop()
        assert found(provider_at(here.host)) == Found(unreachable="connection refused")
        here.start()
        assert found(provider_at(here.host)) == Found(digest)


def test_a_registry_that_hangs_is_unreachable_in_time_and_no_other_waits_for_it(tmp_path: Path, running: Registry) -> None:
    digest = running.push("sidecar/app", "1")
    with registry(tmp_path) as here:
        here.hang()
        names = {f"image-{number}": f"{here.host}/sidecar/app:{number}" for number in range(100)}
        hung = replace(provider_at(here.host), name="hung")
        answers = look({hung: names, provider_at(running.host): {"app": f"{running.host}/sidecar/app:1"}}, 1.0)
    assert answers.pop(("here", "app")) == Found(digest)
    assert answers == {("hung", name): Found(unreachable="no answer within 1 s") for name in names}


def test_a_closed_registry_answers_whoever_has_credentials(closed: Registry, tmp_path: Path) -> None:
    digest = closed.push("sidecar/app", "1")
    file = auth(tmp_path, {closed.host: {"auth": SECRET}})
    assert found(provider_at(closed.host, authfile=file)) == Found(digest)
    assert found(provider_at(closed.host, authfile=file), "sidecar/nothing:1") == Found()


def test_credentials_may_be_for_a_folder_of_a_registry(closed: Registry, tmp_path: Path) -> None:
    digest = closed.push("sidecar/app", "1")
    wrong = base64.b64encode(b"user:wrong").decode()
    file = auth(tmp_path, {closed.host: {"auth": wrong}, f"{closed.host}/sidecar": {"auth": SECRET}})
    assert found(provider_at(closed.host, authfile=file)) == Found(digest)


def auth(folder: Path, known: object) -> str:
    (folder / "auth.json").write_text(json.dumps({"auths": known}))
    return str(folder / "auth.json")


def test_a_closed_registry_is_unreachable_without_credentials_that_it_takes(closed: Registry, tmp_path: Path) -> None:
    closed.push("sidecar/app", "1")
    assert found(provider_at(closed.host)) == Found(unreachable="it refuses to tell: no credentials are configured")
    other = auth(tmp_path, {"other.example": {"auth": SECRET}})
    assert found(provider_at(closed.host, authfile=other)).unreachable.startswith("it refuses to tell")
    wrong = auth(tmp_path, {closed.host: {"auth": base64.b64encode(b"user:wrong").decode()}})
    assert found(provider_at(closed.host, authfile=wrong)) == Found(unreachable="it refuses to tell")


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "[" * 100_000, '{"auths": {"HOST": {"auth": "%"}}}', "\x00"])
def test_an_authfile_that_is_none_is_named_and_what_is_in_it_is_not(closed: Registry, tmp_path: Path, text: str) -> None:
    (tmp_path / "auth.json").write_text(text.replace("HOST", closed.host))
    why = found(provider_at(closed.host, authfile=str(tmp_path / "auth.json"))).unreachable
    assert why == f"its authfile {tmp_path / 'auth.json'} is none"


def test_an_authfile_that_is_not_there_is_named(closed: Registry, tmp_path: Path) -> None:
    why = found(provider_at(closed.host, authfile=str(tmp_path / "nothing"))).unreachable
    assert why == f"its authfile {tmp_path / 'nothing'} cannot be read: No such file or directory"


def test_a_registry_without_tls_is_not_spoken_to_without_it_unless_it_is_said_to_be_plain(running: Registry) -> None:
    why = found(Provider("here", registry=running.host)).unreachable
    assert "ssl" in why


def test_over_tls_a_registry_is_believed_whose_certificate_is_trusted_and_no_other(tmp_path: Path) -> None:
    with registry(tmp_path, encrypted=True) as here:
        digest = here.push("sidecar/app", "1")
        assert found(Provider("here", registry=here.host)).unreachable.startswith("its certificate is not trusted: ")
        code = (
            "import sys; from sidecar.factory.model import Provider; from sidecar.factory.provider import look; "
            "print(look({Provider('here', sys.argv[1]): {'app': f'{sys.argv[1]}/sidecar/app:1'}}, 30)['here', 'app'].digest)"
        )
        trusting = os.environ | {"SSL_CERT_FILE": str(here.certificate)}
        ran = subprocess.run([sys.executable, "-c", code, here.host], env=trusting, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == (f"{digest}\n", "")


def test_a_host_that_nobody_knows_is_unreachable() -> None:
    assert found(provider_at("registry.invalid")).unreachable
    assert found(provider_at(f"{'a' * 70}.invalid")).unreachable


# --- what is no registry -----------------------------------------------------------------------------------------------

Answer = Callable[[BaseHTTPRequestHandler], None]


class Liar:
    """A server that answers as it is told; `heard` are the requests that came, and whether they brought credentials."""

    def __init__(self, answer: Answer) -> None:
        self.heard: list[tuple[str, str, str]] = []
        liar = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                liar.heard.append((self.command, self.path, self.headers.get("Authorization", "")))
                answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def liar() -> Iterator[Callable[[Answer], Liar]]:
    made: list[Liar] = []

    def make(answer: Answer) -> Liar:
        made.append(Liar(answer))
        return made[-1]

    yield make
    for each in made:
        each.close()


def say(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for key, value in headers.items():
        handler.send_header(key.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


UNKNOWN = b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}'


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (500, b"", "it answers 500"),
        (503, b"", "it answers 503"),
        (429, b"", "it answers 429"),
        (204, b"", "it answers 204"),
        (403, b"", "it refuses to tell: no credentials are configured"),
        (401, b"", "it refuses to tell: no credentials are configured"),
        (301, b"", "it answers 301"),
        (404, b"", "it answers as no registry does"),
        (404, b"<html>not found</html>", "it answers as no registry does"),
        (404, b"[" * 100_000, "it answers as no registry does"),
        (404, b'{"errors": [{"code": "SOMETHING"}, 1, null]}', "it answers as no registry does"),
        (404, b" " * (LIMIT + 1), f"it answers with more than {LIMIT} bytes"),
        (200, b"", "it answers as no registry does"),
        (200, b"<html>welcome</html>", "it answers as no registry does"),
        (200, b" " * (LIMIT + 1), f"it answers with more than {LIMIT} bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_answers_otherwise_is_unreachable_and_never_absent(
    liar: Callable[[Answer], Liar], status: int, body: bytes, why: str
) -> None:
    assert found(provider_at(liar(lambda handler: say(handler, status, body)).host)) == Found(unreachable=why)


def test_absent_is_what_a_registry_says_in_its_own_words(liar: Callable[[Answer], Liar]) -> None:
    assert found(provider_at(liar(lambda handler: say(handler, 404, UNKNOWN)).host)) == Found()


def test_of_a_registry_that_does_not_tell_it_the_digest_is_that_of_what_it_hands_out(liar: Callable[[Answer], Liar]) -> None:
    manifest = b'{"schemaVersion": 2}'
    there = liar(lambda handler: say(handler, 200, manifest, Docker_Content_Digest="sha256:nonsense"))
    assert found(provider_at(there.host)) == Found(f"sha256:{sha256(manifest).hexdigest()}")


@pytest.mark.parametrize(
    "said",
    [b"nonsense\r\n\r\n", b"", b"HTTP/1.1 two hundred\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000, b"\x00\xff" * 9],
)
def test_what_does_not_speak_http_is_unreachable(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            taken, _ = listening.accept()
            with taken:
                taken.recv(4096)
                taken.sendall(said)

        threading.Thread(target=serve, daemon=True).start()
        assert found(provider_at(f"127.0.0.1:{listening.getsockname()[1]}")).unreachable


def test_an_answer_that_comes_letter_by_letter_is_none(liar: Callable[[Answer], Liar]) -> None:
    gone = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        try:
            while not gone.wait(0.05):
                handler.wfile.write(b"H")
                handler.wfile.flush()
        except OSError:
            gone.set()

    assert found(provider_at(liar(drip).host), within=SHORT) == Found(unreachable=f"no answer within {SHORT} s")
    # Its connection is cut, so that no thread is left with it.
    assert gone.wait(AMPLE)


def test_a_redirection_is_followed_without_credentials(liar: Callable[[Answer], Liar], tmp_path: Path) -> None:
    there = liar(lambda handler: say(handler, 200, Docker_Content_Digest=DIGEST))

    def lead(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers.get("Authorization"):
            say(handler, 307, Location=f"http://{there.host}/elsewhere")
        else:
            say(handler, 401, WWW_Authenticate='Basic realm="x"')

    first = liar(lead)
    file = auth(tmp_path, {first.host: {"auth": SECRET}})
    assert found(provider_at(first.host, authfile=file)) == Found(DIGEST)
    assert [authorized for _, _, authorized in first.heard] == ["", f"Basic {SECRET}"]
    assert there.heard == [("HEAD", "/elsewhere", "")]


def test_redirections_come_to_an_end(liar: Callable[[Answer], Liar]) -> None:
    round_and_round = liar(lambda handler: say(handler, 302, Location="/again"))
    assert found(provider_at(round_and_round.host)) == Found(unreachable="it redirects again and again")
    assert len(round_and_round.heard) < 10


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/", "//[", "http://127.0.0.1:nonsense/", "http:///"])
def test_a_redirection_to_nowhere_is_unreachable(liar: Callable[[Answer], Liar], target: str) -> None:
    assert found(provider_at(liar(lambda handler: say(handler, 302, Location=target)).host)).unreachable


def by_token(token: Callable[[BaseHTTPRequestHandler], None]) -> Answer:
    """Return how a registry answers that takes the token `good` for looking into sidecar/app, which it says where to get."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/token"):
            token(handler)
        elif handler.headers.get("Authorization") == "Bearer good":
            say(handler, 200, Docker_Content_Digest=DIGEST)
        else:
            host = handler.headers["Host"]
            say(handler, 401, WWW_Authenticate=f'Bearer realm="http://{host}/token?a=b",service="it & that",scope="x"')

    return answer


def test_a_registry_that_wants_a_token_is_shown_one_that_credentials_bought(
    liar: Callable[[Answer], Liar], tmp_path: Path
) -> None:
    here = liar(by_token(lambda handler: say(handler, 200, b'{"token": "good"}')))
    assert found(provider_at(here.host, authfile=auth(tmp_path, {here.host: {"auth": SECRET}}))) == Found(DIGEST)
    assert here.heard == [
        ("HEAD", "/v2/sidecar/app/manifests/1", ""),
        ("GET", "/token?a=b&service=it+%26+that&scope=repository%3Asidecar%2Fapp%3Apull", f"Basic {SECRET}"),
        ("HEAD", "/v2/sidecar/app/manifests/1", "Bearer good"),
    ]


def test_a_token_for_anybody_needs_no_credentials(liar: Callable[[Answer], Liar]) -> None:
    here = liar(by_token(lambda handler: say(handler, 200, b'{"access_token": "good"}')))
    assert found(provider_at(here.host)) == Found(DIGEST)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b""),
        (500, b""),
        (200, b""),
        (200, b"{}"),
        (200, b'{"token": 1}'),
        (200, b'{"token": "bad"}'),
        (200, b'{"token": "a\\r\\nb: c"}'),
    ],
)
def test_a_token_that_is_none_is_no_answer(liar: Callable[[Answer], Liar], status: int, body: bytes) -> None:
    here = liar(by_token(lambda handler: say(handler, status, body)))
    assert found(provider_at(here.host)).unreachable


def test_credentials_never_leave_tls_behind(tmp_path: Path) -> None:
    """A registry that is asked over TLS may not have a token fetched without."""
    from sidecar.factory import provider as module

    asked = module._Registry(Provider("here", registry="registry.example"), AMPLE)
    with pytest.raises(module._UnknownError, match="where https is expected"):
        asked._token({"realm": "http://registry.example/token"}, "sidecar/app", f"Basic {SECRET}")


@pytest.mark.parametrize("status", [200, 401, 404, 500])
def test_no_reason_holds_credentials(liar: Callable[[Answer], Liar], tmp_path: Path, status: int) -> None:
    def echo(handler: BaseHTTPRequestHandler) -> None:
        told = handler.headers.get("Authorization", "")
        say(handler, status, told.encode(), WWW_Authenticate=f'Basic realm="{told}"', Docker_Content_Digest=told)

    here = liar(echo)
    why = found(provider_at(here.host, authfile=auth(tmp_path, {here.host: {"auth": SECRET}}))).unreachable
    assert why
    assert SECRET not in why
    assert PASSWORD not in why


# --- layouts -----------------------------------------------------------------------------------------------------------

Layout = dict[str, Any]


@contextmanager
def changed(path: Path) -> Iterator[Layout]:
    said = json.loads(path.read_text())
    yield said
    path.write_text(json.dumps(said))


def put(folder: Path, data: bytes) -> Layout:
    digest = sha256(data).hexdigest()
    (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    (folder / "blobs" / "sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout that holds sidecar/app:1, of one layer."""
    folder = tmp_path / "layout"
    config, layer = put(folder, b"{}"), put(folder, b"layer")
    manifest = {"schemaVersion": 2, "config": {"mediaType": CONFIG, **config}, "layers": [{"mediaType": LAYER, **layer}]}
    entry = {"mediaType": MANIFEST, **put(folder, json.dumps(manifest).encode())}
    other = {**entry, "annotations": {"org.opencontainers.image.ref.name": "sidecar/other:1"}}
    own = {**entry, "annotations": {"org.opencontainers.image.ref.name": "sidecar/app:1"}}
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry, other, own]}))
    return folder


def in_layout(folder: Path, reference: str = "sidecar/app:1") -> Found:
    return found(Provider("archive", layout=str(folder)), reference)


def blob(folder: Path, data: bytes) -> Path:
    return folder / "blobs" / "sha256" / sha256(data).hexdigest()


def manifest_of(folder: Path) -> Path:
    (entry, *_) = json.loads((folder / "index.json").read_text())["manifests"]
    return folder / "blobs" / str(entry["digest"]).replace(":", "/")


def test_a_layout_tells_the_digest_of_what_has_the_name(layout: Path) -> None:
    assert in_layout(layout) == Found(f"sha256:{manifest_of(layout).name}")


def test_what_has_no_such_name_in_a_layout_is_absent(layout: Path) -> None:
    assert in_layout(layout, "sidecar/app:2") == Found()


def test_in_a_layout_that_is_not_there_or_empty_all_is_absent(tmp_path: Path) -> None:
    assert in_layout(tmp_path / "nothing") == Found()
    assert in_layout(tmp_path) == Found()


@pytest.mark.parametrize("name", [b"{}", b"layer"])
def test_an_image_of_which_something_is_missing_is_absent(layout: Path, name: bytes) -> None:
    blob(layout, name).unlink()
    assert in_layout(layout) == Found()
    manifest_of(layout).unlink()
    assert in_layout(layout) == Found()
    shutil.rmtree(layout / "blobs")
    assert in_layout(layout) == Found()


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "[]", "{}", "[" * 100_000, '{"manifests": 1}', '{"manifests": [1]}', "\x00", " " * (LIMIT + 1)],
    ids=lambda value: str(value)[:20],
)
def test_an_index_that_is_none_is_damage_and_not_absence(layout: Path, text: str) -> None:
    (layout / "index.json").write_text(text)
    assert in_layout(layout) == Found(unreachable=f"{layout} is damaged: see index.json in it")


@pytest.mark.parametrize(
    "digest", [None, 1, "", "sha256:", "sha256:../../../etc/passwd", "md5:" + "0" * 32, "sha256:" + "A" * 64]
)
def test_a_digest_that_is_none_is_damage(layout: Path, digest: object) -> None:
    with changed(layout / "index.json") as index:
        index["manifests"][2]["digest"] = digest
    assert in_layout(layout) == Found(unreachable=f"{layout} is damaged: see index.json in it")


def test_a_manifest_that_was_changed_is_damage(layout: Path) -> None:
    path = manifest_of(layout)
    path.write_bytes(path.read_bytes() + b" ")
    assert in_layout(layout) == Found(unreachable=f"{layout} is damaged: see blobs/sha256/{path.name} in it")


def test_a_layer_that_was_cut_is_damage(layout: Path) -> None:
    os.truncate(blob(layout, b"layer"), 2)
    assert in_layout(layout) == Found(unreachable=f"{layout} is damaged: see sha256:{blob(layout, b'layer').name} in it")


@pytest.mark.parametrize("path", ["index.json", "blobs", "blobs/sha256"])
def test_a_link_in_a_layout_is_not_followed(layout: Path, tmp_path: Path, path: str) -> None:
    (layout / path).rename(tmp_path / "elsewhere")
    (layout / path).symlink_to(tmp_path / "elsewhere")
    assert in_layout(layout).unreachable.endswith("goes by a link")


def test_a_link_in_the_place_of_a_layer_is_not_followed(layout: Path, tmp_path: Path) -> None:
    path = blob(layout, b"layer")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert in_layout(layout).unreachable.endswith("goes by a link")


@pytest.mark.parametrize("path", ["index.json", "blobs/sha256/" + sha256(b"layer").hexdigest()])
def test_what_is_no_file_is_not_waited_for(layout: Path, path: str) -> None:
    (layout / path).unlink()
    os.mkfifo(layout / path)
    assert in_layout(layout) == Found(unreachable=f"{layout}/{path} is no file")


def test_what_cannot_be_entered_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert in_layout(tmp_path / "file").unreachable == f"{tmp_path / 'file'} cannot be read: Not a directory"
    (tmp_path / "loop").symlink_to("loop")
    assert in_layout(tmp_path / "loop").unreachable.endswith("Too many levels of symbolic links")


def test_nobody_to_ask_is_nothing_to_tell() -> None:
    assert look({}) == {}
    assert look({Provider("here", registry="127.0.0.1:1", plain=True): {}}) == {}
