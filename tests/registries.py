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
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
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
    """A registry that keeps what it has in `folder`; who does not know USER and PASSWORD is refused where it is `closed`.

    Where it is `encrypted` it speaks TLS, with a certificate that nobody trusts who is not told to: see `certificate`.
    """

    def __init__(self, folder: Path, *, closed: bool = False, encrypted: bool = False) -> None:
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
        }
        self.certificate = folder / "certificate.pem"
        self._scheme = "http"
        if encrypted:
            _certify(self.certificate, folder / "key.pem")
            told["http"]["tls"] = {"certificate": str(self.certificate), "key": str(folder / "key.pem")}
            self._scheme = "https"
        if closed:
            (folder / "users").write_text(f"{USER}:{HASHED}\n")
            told["auth"] = {"htpasswd": {"realm": "here", "path": str(folder / "users")}}
        (folder / "config.yaml").write_text(yaml.safe_dump(told))

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self.host}/v2/"

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
def registry(folder: Path, *, closed: bool = False, encrypted: bool = False) -> Iterator[Registry]:
    """Yield a registry that answers; it is gone afterwards."""
    found = Registry(folder, closed=closed, encrypted=encrypted)
    try:
        found.start()
        yield found
    finally:
        found.stop()


def _certify(certificate: Path, key: Path) -> None:
    """Make a key, and a certificate of its own for this machine's loopback."""
    own = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(
        name, name, own.public_key(), x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=1)
    )
    made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate.write_bytes(made.sign(own, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _end_with_parent() -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
