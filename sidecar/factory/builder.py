"""Who builds and pushes: a process of its own, which outlives whoever asked, and ends when nothing waits.

    <folder>/                         see sidecar.factory.site
        builders/slot-<digest>-<n>    locked by a builder that works: so there are never more than so many at once;
                                      what it said that could not even record why it failed

Whoever has asked for a work calls `see_to`, which begins a builder if one may be begun, and hands it the slot locked: nobody else
finds it free meanwhile. The file begins with a line that the builder removes when it has seen what waits. Where the line is there
and nobody has the slot, the builder ended before that, and whoever looks is told what it said.

A builder takes the works of its site in the order in which they were asked for, until none waits, gives its slot back, and looks
once more: what was asked for when all slots were taken is seen by those who have them. So each site has slots of its own: who
builds elsewhere does not see it.

A builder holds a lease (see records) from before it claims a work until after it has recorded the end, and buildah ends with it.
So a work that is under way is being done by somebody who is alive, or it is failed by whoever looks. And a builder whose work was
stopped, or that was taken for dead, as where a database was away, is told so by the records: by what it records itself, and while
it records nothing by a look now and then. It kills buildah, removes what that has left, and takes what waits.

The context is looked at before and after: what was built of something else than was asked for is none of it. An image is given
its name after that: one of a work that failed, or was stopped, has none. It stays, as what the next build may take layers of: to
remove it buildah would remove what it is built on as well, where that has no name any more.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict

from sidecar import process
from sidecar.errors import SidecarError, Unreachable
from sidecar.factory.buildah import Buildah, shown
from sidecar.factory.context import digest, ignore_file, open_definition
from sidecar.factory.definition import Definition, Recipe
from sidecar.factory.model import Work
from sidecar.factory.records import Records, new_worker, open_records
from sidecar.factory.site import Site
from sidecar.factory.transcript import BuildTranscript, PushTranscript

# What the process that is begun does: it leaves whoever began it, at once, and reads what no other user may see.
_BUILD = (
    "import os, sys; said = sys.stdin.read(); os.fork() and os._exit(0); "
    "from sidecar.factory.builder import build_all; build_all(said)"
)
# How often, in seconds, what is said is recorded, and whether a base is built is looked at: records call nobody.
_PAUSE = 0.05
# How often, in seconds, it is looked whether a work was stopped of which nothing is recorded.
_LOOK = 1.0
_PIECE = 1 << 16
# What stands before what a builder says until it has seen what waits; how long, in seconds, nobody tries again where one ended
# before that, and how much is told of what it said.
_BEGUN = b"begun\n"
_AGAIN = 5.0
_TOLD = 500
# For how long, in seconds, the end of a work is recorded again and again where the records cannot be reached.
_PATIENCE = 60.0
# The file of a layout by which one writes at a time, and for how long, in seconds, another waits: longer than a push takes.
_LOCK = "sidecar.lock"
_LAYOUT_PATIENCE = 900.0


def see_to(site: Site, records: Records) -> bool:
    """Have a builder begin, if a work waits and not all are at work; tell whether one was begun."""
    # What a place is called stands in files: where nothing waits anywhere, as at most looks, they are not read.
    if not records.waiting() or not records.waiting(site.name()):
        return False
    number, slot = _take_slot(site)
    if slot < 0:
        return False
    try:
        # The builder that had it until now may have done what waited.
        if not records.waiting(site.name()):
            return False
        if problem := _ended_early(slot):
            raise Unreachable(f"no builder can be begun: {problem}")
        try:
            os.ftruncate(slot, 0)
            os.pwrite(slot, _BEGUN, 0)
            with open(site.slot(number), "ab") as told:
                begun = subprocess.run(
                    [sys.executable, "-P", "-c", _BUILD],
                    input=json.dumps([asdict(site), slot]).encode(),
                    stdout=subprocess.DEVNULL,
                    stderr=told,
                    cwd="/",
                    start_new_session=True,
                    pass_fds=(slot,),
                    check=False,
                )
        except OSError as error:
            raise Unreachable(f"no builder can be begun: {error.strerror}") from None
        if begun.returncode:
            problem = _ended_early(slot) or f"{sys.executable} ended with status {begun.returncode}"
            raise Unreachable(f"no builder can be begun: {problem}")
        return True
    finally:
        os.close(slot)


def build_all(said: str) -> None:
    """Do what waits, as a builder, in a process of its own; `said` is the site, and the slot that it was given."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    # Whoever ignores it would not be told how a child ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    told, slot = json.loads(said)
    os.set_inheritable(slot, False)
    site = Site(**told)
    with open_records(site.state) as records:
        while slot >= 0:
            try:
                worker = new_worker()
                with records.lease(worker):
                    builder = Builder(site, records)
                    work = records.claim(worker, _now(), site.name())
                    os.ftruncate(slot, 0)
                    while work is not None:
                        builder.do(work)
                        work = records.claim(worker, _now(), site.name())
            finally:
                os.close(slot)
            if not records.waiting(site.name()):
                return
            _, slot = _take_slot(site)


class _Lost(Exception):
    """The work is not this builder's any more: somebody has stopped it, or took this builder for dead."""


class Builder:
    """Does works, one after the other."""

    def __init__(self, site: Site, records: Records) -> None:
        self._site = site
        self._records = records

    def do(self, work: Work) -> None:
        """Do a work that was claimed, record how it ended, and remove what it has left; where others build, they will."""
        with ExitStack() as last:
            try:
                definition = open_definition(self._site.definition)
                buildah = self._site.buildah(definition)
                buildah.prepare()
                buildah.clean()
                last.callback(_clean, buildah)
                made = (self._build if work.kind == "build" else self._push)(work, definition, buildah)
            except _Lost:
                pass
            except (SidecarError, OSError) as error:
                problem = str(error)
                self._record(lambda: self._records.fail(work.id, problem, _now()))
            except Exception as error:
                problem = f"a fault of the builder itself: {error!r}"
                self._record(lambda: self._records.fail(work.id, problem, _now()))
                raise
            else:
                if not self._record(lambda: self._records.finish(work.id, *made, _now())) and work.kind == "build":
                    self._give_back(work, *made, buildah)

    def _build(self, work: Work, definition: Definition, buildah: Buildah) -> tuple[str, str]:
        recipe = definition.image(work.image)
        if digest(definition, work.image, work.target) != work.content:
            raise _Failed("its context has changed since it was asked for")
        base = self._base(work, definition, recipe, buildah) if recipe.of_ours else recipe.base
        labels = {**work.labels, "sidecar.build": str(work.id), "sidecar.content-digest": work.content}
        with buildah.at_work(self._waiting(work, "removes what builds have left")) as folder:
            made = os.path.join(folder, "id")
            command = buildah.build(
                definition, recipe, target=work.target, ignore=ignore_file(recipe), base=base, labels=labels, id_file=made
            )
            if problem := self._run(work, command, buildah.environment(folder), BuildTranscript()):
                raise _Failed(problem)  # the folder stays: if it was killed, it may have left more
            image = _said(made)
        if digest(open_definition(self._site.definition), work.image, work.target) != work.content:
            raise _Failed("its context has changed while it was built")
        self._look(work)
        buildah.name(image, definition.local(work.image))
        return image, definition.local(work.image)

    def _give_back(self, work: Work, image: str, name: str, buildah: Buildah) -> None:
        """Give its name back to who had it, where the work was stopped between its name and its end."""
        with suppress(SidecarError):
            there = buildah.images()
            last = self._records.latest("build", work.image, work.site, status="COMPLETE")
            if last is not None and last.digest in there and name in there.get(image, ()):
                buildah.name(last.digest, name)

    def _push(self, work: Work, definition: Definition, buildah: Buildah) -> tuple[str, str]:
        provider = definition.provider(work.provider)
        build = self._records.get(work.build)
        if build.digest not in buildah.images():
            raise _Failed(f"what build {build.id} made is not there any more: build {work.image} again")
        reference = definition.reference(work.image, provider)

        cleaned = self._waiting(work, "removes what builds have left")
        written = self._waiting(work, f"writes to {provider.layout}")
        with ExitStack() as held:
            folder = held.enter_context(buildah.at_work(cleaned))
            held.enter_context(_alone(provider.layout, written))
            if provider.layout:
                held.enter_context(buildah.writing(provider.layout))
            made = os.path.join(folder, "digest")
            command = buildah.push(build.digest, provider, reference, digest_file=made)
            transcript = PushTranscript(buildah.layers(build.digest))
            if problem := self._run(work, command, buildah.environment(folder), transcript):
                raise _Failed(problem)
            pushed = _said(made)
        return pushed, reference

    def _base(self, work: Work, definition: Definition, recipe: Recipe, buildah: Buildah) -> str:
        """Return the id of the image of ours that one is built on, once that is built. Its name may be another's by now."""
        content = digest(definition, recipe.base)
        while True:
            self._records.bury(_now())
            base = self._records.latest("build", recipe.base, self._site.name(), content=content)
            if base is None or base.status == "PENDING":
                # It would be waited for by one who keeps others from building it.
                raise _Failed(f"{recipe.base}, which it is built on, is not built: build that first")
            if base.status == "FAILED":
                raise _Failed(f"{recipe.base}, which it is built on, has failed: {base.error}")
            if base.over:
                break
            self._progress(work, 0, f"waits for {recipe.base}")
            time.sleep(_PAUSE)
        if base.digest not in buildah.images():
            raise _Failed(f"{recipe.base}, which it is built on, is not there any more: build that first")
        return base.digest

    # --- a child

    def _run(
        self, work: Work, command: list[str], environment: dict[str, str], transcript: BuildTranscript | PushTranscript
    ) -> str:
        """Return why a command of buildah's has failed, "" where it has not; what it says is recorded."""
        self._say(work, f"$ {shown(command)}\n".encode())
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                child = process.spawn(command, environment, streams=(writing, writing), background=True)
            finally:
                os.close(writing)
            try:
                self._hear(work, reading, transcript)
            except BaseException:
                child.send(process.SIGKILL)
                raise
            finally:
                process.wait(child)
                # That is who keeps buildah alone, and has killed it: it is dead when nobody has this open any more.
                while select.select([reading], [], [], _LOOK)[0] and os.read(reading, _PIECE):
                    pass
        finally:
            os.close(reading)
        return transcript.error(child.code, child.signal) if child.code or child.signal else ""

    def _hear(self, work: Work, reading: int, transcript: BuildTranscript | PushTranscript) -> None:
        """Record what is said, at once where nothing was said of late: each record is a transaction."""
        heard, due, moved, ended = b"", 0.0, False, False
        asked = time.monotonic()
        while not ended or heard:
            patience = max(0.0, due - time.monotonic()) if heard else _LOOK
            if not ended and select.select([reading], [], [], patience)[0]:
                data = os.read(reading, _PIECE)
                ended = not data
                heard += data
                moved = transcript.hear(data) or moved
            if heard and (ended or len(heard) >= _PIECE or time.monotonic() >= due):
                answered = moved and self._progress(work, transcript.percent, transcript.activity)
                answered = self._say(work, heard) or answered
                asked = time.monotonic() if answered else asked
                heard, moved, due = b"", False, time.monotonic() + _PAUSE
            # Where what is said cannot be kept, as on a disk that is nearly full, nobody is told by saying it.
            if time.monotonic() - asked >= _LOOK:
                self._look(work)
                asked = time.monotonic()

    # --- recording

    def _look(self, work: Work) -> None:
        with suppress(Unreachable):
            if self._records.get(work.id).over:
                raise _Lost

    # What cannot be recorded now is not worth a build: the end is, and tells what could not be. So these tell whether it was.

    def _progress(self, work: Work, percent: int, activity: str) -> bool:
        with suppress(Unreachable):
            if not self._records.progress(work.id, percent, activity):
                raise _Lost
            return True
        return False

    def _waiting(self, work: Work, whom: str) -> Callable[[], None]:
        """Return what records for whom a work waits, and hears whether it was stopped."""

        def waits() -> None:
            self._progress(work, 0, f"waits for whoever {whom}")

        return waits

    def _say(self, work: Work, data: bytes) -> bool:
        with suppress(Unreachable):
            if not self._records.say(work.id, data):
                raise _Lost
            return True
        return False

    def _record(self, end: Callable[[], bool]) -> bool:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return end()
            except Unreachable:
                if time.monotonic() > until:
                    raise
            time.sleep(1)


class _Failed(SidecarError):
    """What was asked for cannot be made; the message is the error of the work."""


def _clean(buildah: Buildah) -> None:
    # How the work ended is recorded; who cannot remove what is left tells the next of it, who begins with that.
    with suppress(SidecarError):
        buildah.clean()


def _take_slot(site: Site) -> tuple[int, int]:
    """Return the number and the locked file of a slot that was free, -1 for both where none is."""
    try:
        for number in range(site.slots):
            slot = os.open(site.slot(number), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                if _locked(slot):
                    return number, slot
                os.close(slot)
            except OSError:
                os.close(slot)
                raise
    except OSError as error:
        raise Unreachable(f"builders cannot be counted in {site.folder}: {error.strerror}") from None
    return -1, -1


def _ended_early(slot: int) -> str:
    """Return what a builder said last that had this slot, and ended just now without having seen what waits; "" for none.

    Who was killed says nothing: then another may be begun at once.
    """
    size = os.fstat(slot).st_size
    if os.pread(slot, len(_BEGUN), 0) != _BEGUN or abs(time.time() - os.fstat(slot).st_mtime) > _AGAIN:
        return ""
    said = os.pread(slot, _PIECE, max(len(_BEGUN), size - _PIECE)).decode(errors="replace").strip()
    return "".join(each if each.isprintable() else "?" for each in said.rpartition("\n")[2][:_TOLD])


@contextmanager
def _alone(layout: str, waits: Callable[[], None], patience: float = _LAYOUT_PATIENCE) -> Iterator[None]:
    """Be the only one who writes to a layout: its list of images is read, changed and written. `waits` is called meanwhile.

    The lock is a file that nobody else may open: of a folder that others may read they can have the lock, and keep it.
    """
    if not layout:
        yield
        return
    os.makedirs(layout, exist_ok=True)
    path = os.path.join(layout, _LOCK)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + patience
        while not _locked(fd):
            if time.monotonic() > until:
                raise _Failed(f"somebody else has been writing to {layout} for {patience:g} s: see who has {path} open")
            waits()
            time.sleep(_PAUSE)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _said(path: str) -> str:
    with open(path) as file:
        return file.read(1024).strip()


def _now() -> int:
    return time.time_ns() // 1000
