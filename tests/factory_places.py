"""A folder with a factory.yaml, contexts below it and a state, in which tests type `sidecar image`, and serve all of that."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from processes import BIN, HANG, gone

from sidecar.factory.buildah import Buildah

BUSYBOX = "/bin/busybox"


class Ended(NamedTuple):
    """How a command ended: its exit status and what it printed."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The cells of a table that was printed, without its titles."""
        return [re.split(" {2,}", line) for line in self.out.splitlines()[1:]]

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Place:
    """A folder with a factory.yaml, contexts below it, and a state: typed there, `sidecar image` knows of all that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.state = folder / "state"
        self.images.mkdir(parents=True)

    def image(self, name: str, *lines: str, **files: str) -> Path:
        """Make a context that is built in no time: of files, without a command."""
        context = self.images / name
        context.mkdir()
        for file, text in (files or {"file": name}).items():
            (context / file).write_text(text)
        said = lines or ("FROM scratch", "COPY . /")
        (context / "Containerfile").write_text("\n".join(said) + "\n")
        return context

    def define(self, text: str = "", host: str = "127.0.0.1:9", **entries: str) -> None:
        """Write factory.yaml; with a registry at `host`, and a layout."""
        listed = "".join(f"  {name}: {entry}\n" for name, entry in entries.items())
        self.images.joinpath("factory.yaml").write_text(
            text
            or f"""\
repository: sidecar/{{image}}
tag: 0.1.0
images:
{listed or "  {}"}
providers:
  here: {{registry: "{host}", plain: true}}
  archive: {{layout: ../archive}}
"""
        )

    def type(self, *words: str | Path, given: str = "", **environment: str) -> Ended:
        """Return how `sidecar image WORDS` ended, typed in the folder."""
        ran = subprocess.run(
            self.command(*words),
            input=given,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment | environment,
            timeout=HANG,
        )
        return Ended(ran.returncode, ran.stdout, ran.stderr)

    def command(self, *words: str | Path) -> list[str]:
        return [str(BIN / "sidecar"), "image", *map(str, words)]

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SIDECAR_")}
        return kept | {"SIDECAR_STATE": str(self.state)}

    def buildah(self, *words: str) -> None:
        """Have buildah do something to the images that were built."""
        Buildah(str(self.state / "images")).run(*words)

    def layers(self, image: str) -> list[str]:
        """Return the layers of the image of an id, lowest first."""
        told = Buildah(str(self.state / "images")).run("inspect", "--type=image", "--format={{.OCIv1.RootFS.DiffIDs}}", image)
        return told.stdout.strip(" []\n").split()

    def stored(self) -> dict[str, str]:
        """Return the environment by which buildah finds what was built."""
        return Buildah(str(self.state / "images")).environment()

    def builders(self) -> list[int]:
        """Return the processes that build, of those that have said so."""
        leases = (each.read_text().split() for each in (self.state / "builders").glob("[0-9a-f]" * 32))
        return [int(said[0]) for said in leases if said and not gone(int(said[0]))]

    def of(self, name: str) -> dict[str, Any]:
        """Return an image as `list --json` tells it, its providers by their names."""
        (found,) = (each for each in self.type("list", "--json").json if each["name"] == name)
        return {**found, "at": {each["provider"]: each for each in found["providers"]}}

    def presence(self, name: str = "app") -> dict[str, str]:
        return {to: each["presence"] for to, each in self.of(name)["at"].items()}


@contextmanager
def new_place(folder: Path) -> Iterator[Place]:
    """Make a place with the image `app`. At its end nobody builds there any more, and nothing is mounted."""
    found = Place(folder)
    found.image("app")
    found.define()
    try:
        yield found
    finally:
        # A test that failed before it let a build go on.
        if (gate := folder / "gate").is_dir():
            (gate / "open").touch()
    end = time.monotonic() + HANG
    while left := [entry for entry in _descriptors() if str(found.state) in entry[1]]:
        assert time.monotonic() < end, f"a builder goes on: {left}"
        time.sleep(0.02)  # it is nobody's child
    assert str(found.folder) not in Path("/proc/mounts").read_text()


def _descriptors() -> Iterator[tuple[str, str]]:
    """Yield what other processes than this one have open, each with the number of the process."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid():
                yield from ((process.name, os.readlink(fd)) for fd in (process / "fd").iterdir())
        except OSError:
            continue


def pod(*images: str) -> str:
    return "kind: Pod\nspec:\n  containers:\n" + "".join(
        f"  - {{name: c{n}, image: '{each}'}}\n" for n, each in enumerate(images)
    )


def gated(place: Place) -> Path:
    """Make an image whose build goes on when the file that is returned is there, which is outside of it."""
    context = place.image(
        "slow",
        "FROM scratch",
        "COPY busybox /bin/",
        'RUN ["/bin/busybox", "sh", "-c", "until [ -e /gate/open ]; do /bin/busybox usleep 10000; done"]',
        'RUN ["/bin/busybox", "echo", "after"]',
    )
    shutil.copy(BUSYBOX, context)
    gate = place.folder / "gate"
    gate.mkdir()
    text = (place.images / "factory.yaml").read_text()
    place.images.joinpath("factory.yaml").write_text(f"volumes: {{../gate: /gate}}\n{text}")
    return gate / "open"
