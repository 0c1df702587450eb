"""Registries on this machine: Debian's `docker-registry serve`, each a process of its own on a free port; and what pushes to one.

with registry(folder) as here:
    here.push("sidecar/app", "1")     # without buildah: a manifest and what it names, by the registry's own protocol
    here.stop(); here.start()         # on the same port, with what was pushed
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml
from emulators import free_port

from sidecar import linux

PROGRAM = "/usr/bin/docker-registry"
STARTS = 60.0  # seconds after which a registry that does not answer never will
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
USER, PASSWORD = "user", "secret-of-the-registry"
# Of that password, by bcrypt, which is what a registry takes.
HASHED = "$2y$05$dhRTkem6SBWZgAIJalVQ2uYwwXB8YrtFfCzOjYmTnnZdmkJewD2DO"


class Registry:
    """A registry that keeps what it has in `folder`; who does not know USER and PASSWORD is refused where it is `closed`."""

    def __init__(self, folder: Path, *, closed: bool = False, **settings: Any) -> None:
        self.host = f"127.0.0.1:{free_port()}"
        self._folder = folder
        # One client: making one takes longer than all that it is asked here.
        self._client = httpx.Client(auth=(USER, PASSWORD) if closed else None, verify=False)
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        told: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "images")}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
            **settings,
        }
        if closed:
            (folder / "users").write_text(f"{USER}:{HASHED}\n")
            told["auth"] = {"htpasswd": {"realm": "here", "path": str(folder / "users")}}
        (folder / "config.yaml").write_text(yaml.safe_dump(told))

    @property
    def url(self) -> str:
        return f"http://{self.host}/v2/"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "serve", self._folder / "config.yaml"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.defpath},
                preexec_fn=_end_with_parent,
            )
        end = time.monotonic() + STARTS
        while True:
            with contextlib.suppress(httpx.TransportError):
                if self._client.get(self.url).status_code in (200, 401):
                    return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.01)  # it tells no one that it listens

    def stop(self) -> None:
        """Have it answer no more, whatever it is doing."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(STARTS)
            self._process = None

    def hang(self) -> None:
        """Have it take connections, and say nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def push(self, repository: str, tag: str, layer: bytes = b"layer") -> str:
        """Put an image there, and return its manifest's digest."""
        parts = []
        for kind, blob in ((CONFIG, b"{}"), (LAYER, layer)):
            begun = self._say("POST", f"{repository}/blobs/uploads/")
            digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
            self._say("PUT", begun.headers["Location"], params={"digest": digest}, content=blob)
            parts.append({"mediaType": kind, "digest": digest, "size": len(blob)})
        manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": parts[0], "layers": parts[1:]})
        said = self._say("PUT", f"{repository}/manifests/{tag}", content=manifest, headers={"Content-Type": MANIFEST})
        return str(said.headers["Docker-Content-Digest"])

    def digest(self, repository: str, tag: str) -> str:
        """Return the digest of what it has."""
        said = self._say("HEAD", f"{repository}/manifests/{tag}", headers={"Accept": f"{MANIFEST}, {DOCKER}"})
        return str(said.headers["Docker-Content-Digest"])

    def delete(self, repository: str, tag: str) -> None:
        """Remove an image."""
        self._say("DELETE", f"{repository}/manifests/{self.digest(repository, tag)}")

    def _say(self, method: str, path: str, **options: Any) -> httpx.Response:
        url = path if path.startswith("http") else self.url + path
        if "params" in options:  # which would take the place of what stands in the URL
            url = str(httpx.URL(url).copy_merge_params(options.pop("params")))
        said = self._client.request(method, url, **options)
        said.raise_for_status()
        return said


DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


@contextlib.contextmanager
def registry(folder: Path, *, closed: bool = False, **settings: Any) -> Iterator[Registry]:
    """Yield a registry that answers; it is gone afterwards."""
    found = Registry(folder, closed=closed, **settings)
    try:
        found.start()
        yield found
    finally:
        found.stop()


def _end_with_parent() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
