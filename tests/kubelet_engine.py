"""The containers of the simulated cluster: the local runner's, of which is noted where in its log each life begins, and when.

A kubelet has a log for each life, the local runner one for all.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from sidecar.session.folder import Folder
from sidecar.session.pod import Pod, Program
from sidecar.session.sandboxed import Processes, Sandboxes


def note_of(folder: Folder, container: str) -> str:
    """Return the path of the file that has a line for each life of a container: where its log begins, and when it did, in ns."""
    return os.path.join(folder.path, f"lives.{container}")


def lives_of(folder: Folder, container: str) -> list[tuple[int, int]]:
    """Return where and when the lives of a container begin."""
    try:
        with open(note_of(folder, container)) as file:
            return [(at, when) for at, when in map(json.loads, file)]
    except FileNotFoundError:
        return []


class Noted(Sandboxes):
    """Begins containers, and notes it before."""

    def begin(self, program: Program, log: str) -> Processes:
        """Begin a container."""
        with open(note_of(self.folder, program.name), "a") as file:
            file.write(json.dumps([os.path.getsize(log), time.time_ns()]) + "\n")
        return super().begin(program, log)


def engine(folder: Folder, pod: Pod, asked: Any) -> Noted:
    """Return what begins the containers of a pod."""
    return Noted(folder, pod, asked)
