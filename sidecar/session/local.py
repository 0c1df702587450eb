"""The runner of this machine: a pod's containers are processes, each in a sandbox of bubblewrap, and its volumes are directories.

An image is a directory: one that `images` names, one that the reference itself names, being an absolute path; or `host`, which is
the machine's own root. Neither is ever written (see root).

A sandbox is no virtual machine. Whatever user a container is given, to the machine it is the caller: it can read what the caller
can, of its image and of its volumes. It shares the machine's network. Its limits, and the sizes of its volumes, are not kept; an
emptyDir in memory is one on disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict

from sidecar.errors import ConfigurationError, Fault, ParametersError
from sidecar.session.led import BACKOFF, LedRunner, absolute, missing_paths
from sidecar.session.pod import Pod, Terms, read_pod
from sidecar.session.runner import Manifest

HOST = "host"


class LocalRunner(LedRunner):
    """Runs pods on this machine; they are kept in `folder`, which is made, for this user alone.

    `images` are the directories that references stand for, `claims` those that stand for persistent volume claims, by name. A
    container that ends waits `backoff` seconds for its second life.
    """

    ENGINE = "sidecar.session.sandboxed"
    # Images are directories here.
    image_volumes = True

    def __init__(
        self,
        folder: str,
        images: Mapping[str, str] | None = None,
        backoff: float = BACKOFF,
        claims: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        self.images = dict(images or {})
        self.claims = absolute(claims)
        self.backoff = backoff

    def start(self, pod: Manifest) -> None:
        """Begin the pod, and return (see runner.Runner)."""
        terms = Terms(images=self.image_volumes, claims=self.claims, user=os.getuid())
        asked = read_pod(pod, terms)
        images = self._images(asked)
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise ConfigurationError("bubblewrap is needed to run a pod on this machine: apt-get install bubblewrap")
        own = {"images": images, "bwrap": bwrap}
        self._begin(asked, {"pod": pod, "terms": asdict(terms), "backoff": self.backoff, **own})

    def _images(self, pod: Pod) -> dict[str, str]:
        """Return the directories of a pod's images; ParametersError with all that are missing, and with what a hostPath lacks."""
        faults, found = [], {}
        wanted = [(f"container {each.name}", each.image) for each in (*pod.inits, *pod.programs)]
        wanted += [(f"volume {name}", each.source) for name, each in pod.volumes.items() if each.kind == "image"]
        for where, reference in wanted:
            directory = self.images.get(reference, "/" if reference == HOST else reference)
            if os.path.isabs(directory) and os.path.isdir(directory):
                found[reference] = directory
            else:
                expected = "expected host, the absolute path of a directory" + "".join(f", {each}" for each in self.images)
                faults.append(Fault(where, "image", f"{reference} is no directory; {expected}"))
        if faults := [*faults, *missing_paths(pod)]:
            raise ParametersError(faults)
        return found
