"""A factory of its own for a test: a definition, contexts, records, and real builders.

    with Workshop(tmp_path) as shop:
        shop.image("app", "RUN echo hello")       FROM scratch, with busybox as its shell
        work = shop.built("app")                  asked for, and waited for

Builders end by themselves when nothing waits. What is not over at the end of a test is failed, of which they hear.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from processes import gone, processes_that_say, until

from sidecar.factory.buildah import Buildah
from sidecar.factory.builder import see_to
from sidecar.factory.context import digest, open_definition
from sidecar.factory.definition import Definition
from sidecar.factory.model import UNDER_WAY, Asked, Target, Work
from sidecar.factory.records import Records, open_records
from sidecar.factory.site import Site

BUSYBOX = Path("/bin/busybox")
COMMANDS = ("cat", "date", "setsid", "sh", "sleep")
_FROM = "FROM scratch\nCOPY bin /bin\n"


def microseconds() -> int:
    return time.time_ns() // 1000


class Workshop:
    """A factory in a folder. What it has is gone when it is closed."""

    def __init__(self, folder: Path, slots: int = 2) -> None:
        self.folder = folder
        self.contexts = folder / "images"
        self.contexts.mkdir()
        self.site = Site(str(folder / "state"), str(self.contexts / "factory.yaml"), str(folder / "state"), slots)
        self.define("")
        self.records: Records = open_records(self.site.state)

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        # A builder that is killed would leave a buildah that removes what is left, when that is removed here.
        for work in self.records.find(status=UNDER_WAY, limit=1000):
            self.records.fail(work.id, "the test is over", microseconds())
        self.idle()
        self.records.close()
        assert not self.mounts(), "a mount was left"
        subprocess.run(["rm", "-rf", self.folder / "state"], check=True)

    # --- what is built

    def define(self, text: str) -> None:
        """Say what stands in factory.yaml."""
        (self.contexts / "factory.yaml").write_text(text)

    def image(self, name: str, steps: str, base: str = "") -> Path:
        """Make the context of an image, and return it."""
        folder = self.contexts / name
        folder.mkdir(exist_ok=True)
        if not base and not (folder / "bin").exists():
            (folder / "bin").mkdir()
            (folder / "bin" / "busybox").write_bytes(BUSYBOX.read_bytes())
            (folder / "bin" / "busybox").chmod(0o755)
            for command in COMMANDS:
                (folder / "bin" / command).symlink_to("busybox")
        (folder / "Containerfile").write_text(("ARG BASE\nFROM ${BASE}\n" if base else _FROM) + steps)
        return folder

    @property
    def definition(self) -> Definition:
        return open_definition(self.site.definition)

    @property
    def buildah(self) -> Buildah:
        return self.site.buildah(self.definition)

    # --- asking

    def asked(self, name: str, labels: Mapping[str, str] | None = None) -> Asked:
        """Return what it is to build an image as it is now."""
        definition = self.definition
        target: Target = definition.image(name).target
        return Asked("build", name, target, digest(definition, name), self.site.name(), labels=labels or {})

    def ask(self, name: str, *, anew: bool = False, labels: Mapping[str, str] | None = None) -> Work:
        """Ask for a build, and have a builder begin."""
        work = self.records.ask(self.asked(name, labels), microseconds(), anew=anew)
        see_to(self.site, self.records)
        return work

    def push(self, build: Work, provider: str) -> Work:
        """Ask for a push, and return it when it is over."""
        asked = Asked("push", build.image, build.target, build.content, build.site, provider, build.id)
        work = self.records.ask(asked, microseconds())
        see_to(self.site, self.records)
        return self.over(work)

    def built(self, name: str, *, anew: bool = False, labels: Mapping[str, str] | None = None) -> Work:
        """Ask for a build, and return it when it is over."""
        return self.over(self.ask(name, anew=anew, labels=labels))

    def over(self, work: Work) -> Work:
        """Return a work when it is over."""
        until(lambda: self.records.get(work.id).over, f"work {work.id} is over: {self.told(work)}")
        return self.records.get(work.id)

    def hears(self, work: Work, said: bytes) -> None:
        """Return when a work has said something that is not over yet."""
        until(lambda: said in self.records.log(work.id) or self.records.get(work.id).over, f"{said!r} is said")
        assert said in self.records.log(work.id), self.told(work)

    def told(self, work: Work) -> str:
        """Return all that is known of a work."""
        said = "".join(slot.read_text() for slot in Path(self.site.folder, "builders").glob("slot-*"))
        return f"{self.records.get(work.id)}\n{self.records.log(work.id).decode(errors='replace')}\n{said}"

    # --- who builds

    def builders(self) -> list[int]:
        """Return the processes that hold a lease."""
        found = []
        for lease in Path(self.site.folder, "builders").glob("[0-9a-f]" * 32):
            try:
                said = lease.read_text().split()
            except FileNotFoundError:
                continue
            if said and self.records.alive(lease.name):
                found.append(int(said[0]))
        return found

    def idle(self) -> None:
        """Return when nobody builds, and no process of a build is there any more."""
        for slot in Path(self.site.folder, "builders").glob("slot-*"):
            with slot.open("rb") as file:
                until(lambda file=file: free(file.fileno()), f"{slot.name} is given back")  # type: ignore[misc]
        until(lambda: not self.processes(), "no process of a build is left")

    def processes(self) -> list[int]:
        """Return the processes of builds: buildah, and what began it, name this folder."""
        return [pid for pid in processes_that_say(str(self.folder / "state")) if not gone(pid) and pid != os.getpid()]

    def mounts(self) -> list[str]:
        """Return the mounts of builds that all can see."""
        return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.folder / "state") in line]

    def containers(self) -> list[str]:
        """Return the containers in the store."""
        return self.buildah.run("containers", "--quiet").stdout.split()


def free(fd: int) -> bool:
    """Tell whether nobody holds the lock of a file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True
