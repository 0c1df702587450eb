"""What keeps a store sound: uploads that announce themselves, checking what is there, and removing what no bundle refers to.

An object that no bundle refers to may be garbage, or may be what an upload in flight has just found and is about to refer to. Who
cannot tell these apart must not remove. So uploads and prunes announce themselves, each *before* it looks whether there are
others: of two that begin at once at least one sees the other. A prune that sees an upload withdraws. An upload that sees a
prune waits until it is over. Announcements expire, for their makers may be killed; who lives renews his, and who finds that he
has let it expire (he was suspended, say) does not commit.

Nobody takes a lock, and readers need not care: what a bundle refers to is never removed.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from blake3 import blake3

from sidecar.errors import Corrupt, DeadlinePassed, NotSaved, SidecarError, Unreachable
from sidecar.store import format as form
from sidecar.store.format import CHUNK, Announced, Bundle, Malformed, Piece, Table, object_name
from sidecar.store.objects import Objects
from sidecar.store.work import Buffers, Meter, Window
from sidecar.values import asdict, value

if TYPE_CHECKING:
    from sidecar.store.bundles import Store

Result = TypeVar("Result")

LIFE = 3600.0  # seconds: how long a killed upload can keep others from pruning
_RENEWAL = 600.0
_MARGIN = 300.0  # clocks differ
_LOOK_AGAIN = 0.2  # seconds between two looks whether a prune is over: nothing tells
_OBJECT = re.compile(r"objects/([0-9a-f]{2})/(\1[0-9a-f]{62})")
_MANIFEST = re.compile(r"manifests/([0-9a-f]{2})/(\1[0-9a-f]{62})")


class Announcement:
    """Tells others that an upload or a prune is under way, from entering it to leaving it."""

    def __init__(self, objects: Objects, kind: str, repo: str = "") -> None:
        """Say nothing yet."""
        self._objects, self._kind, self._repo = objects, kind, repo
        self._who = f"{os.uname().nodename}:{os.getpid()}".encode("utf-8", "backslashreplace").decode()
        self._said: Announced | None = None
        self._due = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> Announcement:
        self._say()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._said is not None:
            # Whoever could not be told that it is over waits for the announcement to expire.
            with suppress(Unreachable):
                self._objects.remove(form.announcement_name(self._said.id))

    def renew(self) -> None:
        """Announce it anew where that is due. From any thread, often."""
        if time.monotonic() < self._due or not self._lock.acquire(blocking=False):
            return
        try:
            before = self._said
            self._say()
            if before is not None:
                self._objects.remove(form.announcement_name(before.id))
        finally:
            self._lock.release()

    def check_held(self) -> None:
        """Raise NotSaved where the announcement has expired: what was found in the store may be gone by now."""
        if self._said is None or _now() > self._said.expires - _MARGIN * 1000:
            raise NotSaved("this upload was suspended for so long that what it relies on may have been pruned; begin again")

    def others(self, kind: str) -> list[Announced]:
        """Return the announcements of a kind that have not expired."""
        found = (_announced(self._objects, name) for name in self._objects.names("uploads") if form.is_id(name))
        now = _now()
        return [each for each in found if each is not None and each.kind == kind and each.expires + _MARGIN * 1000 > now]

    def wait_for_prunes(self, check: Callable[[], None]) -> None:
        """Return once nobody prunes; `check` is called now and then, and may raise."""
        never = threading.Event()
        while self.others("prune"):
            check()
            never.wait(_LOOK_AGAIN)

    def _say(self) -> None:
        self._due = time.monotonic() + _RENEWAL
        now = _now()
        id_ = form.make_id(now, os.urandom(10))
        said = Announced(id_, self._kind, self._repo, self._who, form.format_time(now), now + int(LIFE * 1000))
        self._objects.create(form.announcement_name(id_), form.encode_record(asdict(said)), durable=False)
        self._said = said


def _announced(objects: Objects, id_: str) -> Announced | None:
    """Return an announcement; None where it is over. One that cannot be read counts as an upload, and lives as long as one."""
    try:
        return form.decode_announcement(objects.get(form.announcement_name(id_), form.LARGEST_RECORD), id_)
    except FileNotFoundError:
        return None
    except Malformed:
        begun = form.id_milliseconds(id_)
        return Announced(id_, "upload", "", "someone unknown", form.format_time(begun), begun + int(LIFE * 1000))


# --- what bundles refer to -------------------------------------------------------------------------------------------


class _Needed:
    """What bundles refer to: for each object how long it must be, and the first bundle and file that need it."""

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}
        self.first: dict[str, tuple[Bundle, str]] = {}
        self.manifests: set[str] = set()
        self.collected: set[str] = set()
        self.bundles = 0

    def add(self, bundle: Bundle, path: str, object_: str, end: int) -> None:
        if end > self.ends.get(object_, 0):
            self.ends[object_] = end
        self.first.setdefault(object_, (bundle, path))


def _collect(store: Store, meter: Meter, told: Callable[[SidecarError], None]) -> _Needed:
    """Return what all bundles refer to; `told` is given what is damaged or missing, and raises or returns."""
    needed = _Needed()
    for repo in store._repos():
        _try(told, partial(store._repo, repo))
        for id_ in store._ids(repo):
            meter.check()
            bundle = _try(told, partial(store._bundle, repo, id_))
            if bundle is not None and bundle.manifest not in needed.collected:
                _try(told, partial(_collect_bundle, store, bundle, needed))
            needed.bundles += 1
    return needed


def _collect_bundle(store: Store, bundle: Bundle, needed: _Needed) -> None:
    needed.collected.add(bundle.manifest)
    loaded = store._load(bundle)
    needed.manifests |= {bundle.manifest, loaded.base.hash}
    for entry in loaded.entries:
        for piece in _referred(entry.pieces):
            needed.add(bundle, entry.path, piece.object, piece.end)


def _referred(pieces: object) -> Iterator[Piece]:
    if isinstance(pieces, Table):
        yield from (segment.piece for segment in pieces.segments)
    yield from pieces  # type: ignore[misc]


def _try(told: Callable[[SidecarError], None], call: Callable[[], Result]) -> Result | None:
    try:
        return call()
    except FileNotFoundError as error:
        told(Corrupt(f"{error.filename or error} is missing, and was there a moment ago"))
    except Corrupt as error:
        told(error)
    return None


# --- checking --------------------------------------------------------------------------------------------------------


@value
class Checked:
    """What a check has found: how much there is, what no bundle refers to, and every fault, a line each."""

    repositories: int
    bundles: int
    objects: int
    bytes: int
    unneeded: int
    unneeded_bytes: int
    faults: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Return it as a dictionary that json.dumps takes."""
        return asdict(self)


def check(store: Store, objects: Objects, meter: Meter, *, read_data: bool) -> Checked:
    """Look at every record and manifest, and whether what they refer to is there; with `read_data` hash every object."""
    faults: dict[str, None] = {}

    def told(error: SidecarError) -> None:
        faults[str(error)] = None

    if not _try(told, store._is_store):
        return Checked(0, 0, 0, 0, 0, 0, tuple(faults))
    needed = _collect(store, meter, told)
    for repo in store._repos():
        _check_labels(store, repo, told)
    there = {found[2]: size for name, size in objects.sizes("objects") if (found := _OBJECT.fullmatch(name))}

    def blame(object_: str, problem: str) -> None:
        bundle, path = needed.first[object_]
        faults[str(store.reader(bundle).damaged(path, object_, problem))] = None

    for object_, end in needed.ends.items():
        if object_ not in there:
            blame(object_, "is missing")
        elif there[object_] < end:
            blame(object_, "ends early")
    if read_data:
        wanted = {object_: there[object_] for object_ in needed.ends if object_ in there}
        for object_ in _hash_all(objects, wanted, meter):
            blame(object_, "does not hold what its name says")
    unneeded = [size for object_, size in there.items() if object_ not in needed.ends]
    counts = (len(store._repos()), needed.bundles, len(there), sum(there.values()), len(unneeded), sum(unneeded))
    return Checked(*counts, tuple(faults))


def _check_labels(store: Store, repo: str, told: Callable[[SidecarError], None]) -> None:
    ids = set(store._ids(repo))
    for label, numbers in store._labels(repo):
        moves = [_try(told, partial(store._move, repo, label, number)) for number in numbers]
        if moves[-1] is not None and moves[-1].bundle not in ids:
            where = f"{store.url}: repository {repo!r}, label {label!r}: {form.move_name(repo, label, numbers[-1])}"
            told(Corrupt(f"{where}: it points at {moves[-1].bundle}, which is not there"))


def _hash_all(objects: Objects, wanted: dict[str, int], meter: Meter) -> list[str]:
    """Return the objects whose bytes do not hash to their names."""
    wrong: list[str] = []
    buffers = Buffers()
    meter.total = sum(wanted.values())

    def look(object_: str, size: int) -> tuple[int, str]:
        hashing = blake3()
        for offset in range(0, size, CHUNK):
            meter.check()
            view = buffers.view(min(CHUNK, size - offset))
            try:
                hashing.update(view[: objects.read(object_name(object_), offset, view)])
            except FileNotFoundError:
                break
        return size, "" if hashing.hexdigest() == object_ else object_

    def took(result: tuple[int, str]) -> None:
        meter.add(result[0])
        if result[1]:
            wrong.append(result[1])

    with Window[tuple[int, str]](objects.parallel) as window:
        for object_, size in wanted.items():
            window.give(partial(look, object_, size), took)
        window.drain()
    meter.finish()
    return wrong


# --- pruning ---------------------------------------------------------------------------------------------------------


@value
class Pruned:
    """What a prune has removed or, where `dry_run`, would have."""

    objects: int
    manifests: int
    bytes: int
    dry_run: bool

    def as_json(self) -> dict[str, object]:
        """Return it as a dictionary that json.dumps takes."""
        return asdict(self)


def prune(store: Store, objects: Objects, meter: Meter, *, dry_run: bool) -> Pruned:
    """Remove what no bundle refers to. DeadlinePassed while uploads are under way, Corrupt where a bundle cannot be read."""
    if not store._is_store():
        return Pruned(0, 0, 0, dry_run)
    with Announcement(objects, "prune") as announcement:
        uploads = announcement.others("upload")
        if uploads and not dry_run:
            first = min(uploads, key=lambda each: each.id)
            who = f"{first.who}, to repository {first.repo!r}, since {first.time}"
            until = form.format_time(first.expires)
            raise DeadlinePassed(
                f"{store.url}: {len(uploads)} under way: an upload by {who}; nothing was removed. "
                f"Prune later; if it was killed, after {until}",
                first.who,
            )

        def told(error: SidecarError) -> None:
            raise Corrupt(f"{error}; nothing was removed, as nobody can tell what this bundle refers to") from error

        needed = _collect(store, meter, told)
        garbage = [
            (name, size)
            for folder, form_, kept in (("objects", _OBJECT, needed.ends), ("manifests", _MANIFEST, needed.manifests))
            for name, size in objects.sizes(folder)
            if (found := form_.fullmatch(name)) and found[2] not in kept
        ]
        if not dry_run:
            _remove(objects, garbage, meter, announcement)
            objects.sweep()
    count = sum(name.startswith("objects/") for name, _ in garbage)
    return Pruned(count, len(garbage) - count, sum(size for _, size in garbage), dry_run)


def _remove(objects: Objects, garbage: list[tuple[str, int]], meter: Meter, announcement: Announcement) -> None:
    meter.total = sum(size for _, size in garbage)
    for name, size in garbage:
        announcement.renew()
        announcement.check_held()
        objects.remove(name)
        meter.add(size)
    meter.finish()
    for id_ in objects.names("uploads"):
        if form.is_id(id_) and (said := _announced(objects, id_)) and said.expires + 2 * _MARGIN * 1000 < _now():
            objects.remove(form.announcement_name(id_))


def _now() -> int:
    return time.time_ns() // 1_000_000
