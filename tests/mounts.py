"""Bundles that tests mount, by a server in a process of its own, and the check that nothing stays mounted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from processes import BIN, HANG

from sidecar.store import Store

SIDECAR = str(BIN / "sidecar")


class Mounted:
    """`sidecar bundle mount` of the repository `r` in a process of its own, with `environment` besides this one's."""

    def __init__(
        self,
        store: Store,
        point: Path,
        *options: str,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.point = point
        command = [*prefix, SIDECAR, "bundle", "mount", "r", str(point), "--store", store.url, "--json", *options]
        env = os.environ | dict(environment or {})
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.told: dict[str, Any] = json.loads(line)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.err = self.process.communicate(timeout=HANG)[1]
        return self.process.returncode

    def __enter__(self) -> Mounted:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            assert self.end() == 0


def cat(path: Path) -> bytes:
    """Read a file in another process: this one may be the server."""
    return subprocess.run(["cat", path], stdout=subprocess.PIPE, check=True, timeout=HANG).stdout


@contextlib.contextmanager
def nothing_left_below(folder: Path) -> Iterator[None]:
    """Before: there is FUSE. Afterwards: no mount."""
    assert os.path.exists("/dev/fuse"), "these tests mount: load the kernel's fuse module, or give the container /dev/fuse"
    yield
    left = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]
    for line in left:
        subprocess.run(["umount", "-l", line.split()[4]], check=False)
    assert not left
