"""Repositories, bundles and labels: what a store answers, and in which order it writes.

The order is the promise: objects, manifest, bundle record, label record, each durable before the next is begun. The bundle's
record is the commit. Nothing here is ever rewritten, so there is nothing to lock; two who save at once each make a bundle, and
two who move a label at once each make a move.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from sidecar.errors import ConfigurationError, Corrupt, SourceMissing
from sidecar.store import download, upkeep
from sidecar.store import format as form
from sidecar.store.format import DIRECTORY, FILE, LINK, Base, Bundle, Change, Entry, Malformed, Move, Piece, Repo, Segment, Table
from sidecar.store.manifests import Loaded, Manifests
from sidecar.store.objects import Objects, open_objects
from sidecar.store.places import Known
from sidecar.store.remote import Patience
from sidecar.store.table import Pieces
from sidecar.store.upkeep import Announcement, Checked, Pruned
from sidecar.store.upload import ChunkSize, How, Inspect, LeaveOut, Uploaded, upload
from sidecar.store.work import Cancelled, Meter, Progress

_LISTED = 20  # names in an error message; more are counted
_logger = logging.getLogger(__name__)

Record = TypeVar("Record")
Accept = Callable[[Bundle, Cancelled], None]


def open_store(url: str, *, patience: Patience | None = None, **options: Any) -> Store:
    """Return the store at a URL (`file:///srv/store`, `memory://x`, any fsspec URL) or plain path.

    Nothing is read or written yet. `options` go to fsspec; `patience` is how long a service that does not answer is waited for.
    ConfigurationError where the URL means nothing to anyone here, or
    where names of files could not be told from bytes.
    """
    if sys.getfilesystemencoding() != "utf-8":
        # In it, names would be other text here than they are in the manifest, and other bytes again where that is read.
        raise ConfigurationError(f"file names are {sys.getfilesystemencoding()} here; set PYTHONUTF8=1, or a UTF-8 locale")
    return Store(open_objects(url, patience=patience, **options))


class Store:
    """Bundles in repositories. Safe in several threads and processes at once.

    Every method may raise Unreachable, and Corrupt where a record or manifest is not what was written.
    """

    def __init__(self, objects: Objects) -> None:
        """Keep bundles in `objects`; most callers want open_store."""
        self.url = objects.url
        self._objects = objects
        self._manifests = Manifests(objects)
        self._format_seen = False

    # --- repositories ----------------------------------------------------------------------------------------------

    def create_repo(self, name: str, description: str = "", *, exist_ok: bool = True) -> Repo:
        """Create a repository and return it. One that exists keeps its description; ConfigurationError unless `exist_ok`."""
        if (repo := self._new_repo(name, description)) is not None:
            return repo
        if not exist_ok:
            raise ConfigurationError(f"{self.url}: there is a repository {name!r} already")
        return self._repo(name)

    def repo(self, name: str) -> Repo:
        """Return what is known of a repository. SourceMissing, listing those there are, where there is no such repository."""
        self._need_repo(name)
        return self._repo(name)

    def repos(self) -> list[Repo]:
        """Return the repositories, by name."""
        return [self._repo(name) for name in self._repos()] if self._is_store() else []

    # --- bundles ---------------------------------------------------------------------------------------------------

    def save(
        self,
        path: str | os.PathLike[str],
        repo: str,
        *,
        label: str = "",
        message: str = "",
        contributor: str = "",
        progress: Progress | None = None,
        skip_errors: bool = False,
        reuse: bool = False,
        shared: bool = False,
        chunk_size: ChunkSize | None = None,
        leave_out: LeaveOut | None = None,
        inspect: Inspect | None = None,
        inspected: Callable[[], None] | None = None,
        base: Bundle | None = None,
        accept: Accept | None = None,
        cancelled: Cancelled | None = None,
    ) -> Bundle:
        """Keep the directory at `path` as a new bundle of `repo`, point `label` at it, and return it, all durable.

        The repository is created where it is missing. With `reuse`, a bundle that the label points at or that is the latest is
        returned instead of a second one, if it holds the same tree with the same message and contributor: for callers that
        cannot know whether they were killed before or after. `shared` tells that others write to the volume: on the way to
        `path`, symbolic links are then followed on the file system of `/` only; below it they never are. `chunk_size`, given
        path and size of a file, returns how it is to be cut, from 4 KiB to 16 MiB, 0 as usual: pages of a database, say, of
        which few will change. `cancelled` is asked often, from several threads; Stopped then.

        What `leave_out`, given a path below `path`, is true for is not in the bundle, nor is what lies below it; it is not even
        looked at, may be of any type, and does not count as skipped.

        `inspect` is given path, offset and bytes of all that is read of files, by several threads but one at a time, for the
        blocks of one file in any order. They are the very bytes that are then hashed and kept, to be read during the call only.
        A block begins at a multiple of its file's chunk size and is one chunk or, of small ones, as many as 4 MiB hold. Holes
        may be left out: they are zeros. A file that changes while it is read is read again, and all of it inspected again.
        `inspected` is called once, when all was given. Both may raise NotSaved, or any other SidecarError: the save ends with
        that, and nothing becomes visible.

        `base` is a bundle of any repository of this store, such as the one that `path` was populated from: what it holds is
        not stored again either. Where it is missing or damaged that is logged, and it is not used.

        `accept` is given the new bundle when all of it is in the store and nobody sees it yet: it can be read as any other. It
        may take its time, asking the other thing it is given, which is true once it is to end, every few seconds; what it
        raises ends the save, and nothing becomes visible.

        ParametersError where repo or label cannot be names, or a text is too long for a record.
        NotSaved where something is no file, directory or link, cannot be read, or keeps changing while it is read; with
        `skip_errors` it is left out, counted in the bundle, and logged.
        """
        form.check_name("repository", repo)
        if label:
            form.check_name("label", label)
        message = form.check_text("message", message)
        contributor = form.check_text("contributor", contributor)
        self._new_repo(repo)
        self._objects.sweep()
        with Announcement(self._objects, "upload", repo) as announcement:
            meter = Meter(f"saving to {repo}", progress, cancelled, announcement.renew)
            announcement.wait_for_prunes(meter.check)
            parents = self._parents(repo, label)
            parent = parents[0] if parents else None
            befores = [loaded for each in _distinct(parent, base) if (loaded := self._before(each)) is not None]
            how = How(
                chunk_size=chunk_size,
                leave_out=leave_out,
                inspect=inspect,
                inspected=inspected,
                skip_errors=skip_errors,
                shared=shared,
            )
            uploaded = upload(self._objects, os.fspath(path), _known(befores), meter, how)
            # A manifest may be told as a difference from any other of its store: `prune` and `check` look at all repositories.
            before = befores[0] if befores else None
            data = self._manifests.encode(uploaded.entries, before)
            manifest = self._manifests.put(data, before)
            said = (manifest, message, contributor)
            bundle = next((each for each in parents if reuse and (each.manifest, each.message, each.contributor) == said), None)
            if bundle is None:
                stated = Base(manifest, len(data))
                bundle = _describe(uploaded, stated, parent, repo=repo, label=label, message=message, contributor=contributor)
            else:
                # Whoever committed it may have died before that was durable; asking for the size has the next flush see to it.
                self._objects.size(form.bundle_name(repo, bundle.id))
            self._objects.flush()
            meter.check()
            if accept is not None and bundle not in parents:
                accept(bundle, partial(_asked, announcement, cancelled))
            announcement.check_held()
            if bundle not in parents:
                self._commit(bundle)
        if label:
            self._point(repo, label, bundle.id, contributor)
        return bundle

    def _commit(self, bundle: Bundle) -> None:
        if not self._objects.create(form.bundle_name(bundle.repo, bundle.id), form.encode_record(bundle.as_json())):
            raise Corrupt(f"{self.url}: there is a bundle {bundle.id} already; the random numbers here repeat themselves")

    def resolve(self, repo: str, *, label: str = "", bundle: str = "") -> Bundle:
        """Return the bundle with an id, or the one a label points at, or the latest of the repository.

        SourceMissing where there is none; it lists what there is. ConfigurationError where both label and id are given and
        the label points elsewhere.
        """
        self._need_repo(repo)
        if label:
            pointed = self._move(repo, label, self._need_moves(repo, label)[-1]).bundle
            if bundle and bundle != pointed:
                raise ConfigurationError(f"{repo}: label {label!r} points at {pointed}, not at {bundle}")
            bundle = pointed
        ids = self._ids(repo)
        if bundle and bundle not in ids:
            raise _missing(f"{self.url}: repository {repo!r} has no bundle {bundle!r}", "bundles", ids[::-1])
        if not ids:
            raise _missing(f"{self.url}: repository {repo!r} holds no bundle yet", "bundles", ())
        return self._bundle(repo, bundle or ids[-1])

    def bundles(self, repo: str) -> list[Bundle]:
        """Return the bundles of a repository, oldest first. SourceMissing where there is no such repository."""
        self._need_repo(repo)
        return [self._bundle(repo, each) for each in self._ids(repo)]

    def manifest(self, bundle: Bundle) -> tuple[Entry, ...]:
        """Return the entries of a bundle, ascending by the bytes of their paths; every parent directory is among them."""
        return self._load(bundle).entries

    def _load(self, bundle: Bundle) -> Loaded:
        return self._manifests.load(bundle, self._where(bundle), partial(_table, self.reader(bundle)))

    def reader(self, bundle: Bundle) -> download.Reader:
        """Return what reads the chunks of a bundle, verified: see Reader. Safe in several threads; keep one as long as needed."""
        return download.Reader(self._objects, self._where(bundle))

    def chunk(self, bundle: Bundle, path: str, piece: Piece) -> bytes:
        """Return the verified bytes of a chunk of file `path`, as they were in the file, to keep.

        Corrupt, naming repository, bundle, file and object, where they are missing or others.
        """
        return bytes(self.reader(bundle).chunk(path, piece))

    def populate(
        self,
        bundle: Bundle,
        path: str | os.PathLike[str],
        progress: Progress | None = None,
        *,
        select: Callable[[Entry], bool] | None = None,
        skip_errors: bool = False,
        shared: bool = False,
        durable: bool = False,
        cancelled: Cancelled | None = None,
    ) -> tuple[str, ...]:
        """Have the bundle's tree in directory `path`, which is made where it is missing. Every byte is verified.

        With `select`, of the entries only those for which it is true, and the directories that lead to them. With
        `skip_errors` files that are damaged in the store are left out, and logged; their paths are returned.

        Files appear whole or not at all. What is there with the same type, size, mtime and mode is left alone, and so is what
        the bundle does not name. Corrupt names file and object. Unreachable where `path` cannot be written, or holds something
        of another type, a symbolic link above all, where the bundle has an entry. Stopped once `cancelled` says so. With
        `durable`, all on the file system of `path` is on its disk when this returns. `shared`: see `save`.
        """
        meter = Meter(f"populating from {bundle.repo}", progress, cancelled)
        entries = self.manifest(bundle)
        if select is not None:
            entries = _selected(entries, select)
        how = download.How(self._objects.parallel, shared, durable, skip_errors)
        return download.populate(self.reader(bundle), entries, os.fspath(path), meter, how)

    def diff(self, before: Bundle, after: Bundle) -> list[Change]:
        """Return how the tree of one bundle differs from another's, by path. Nothing but the manifests is read."""
        old, new = ({entry.path: entry for entry in self.manifest(each)} for each in (before, after))
        changes = [Change(path, old.get(path), new.get(path)) for path in sorted({*old, *new}, key=os.fsencode)]
        return [each for each in changes if each.before != each.after and (each.what != "touched" or _touched(each))]

    def verify(self, bundle: Bundle, progress: Progress | None = None, *, cancelled: Cancelled | None = None) -> int:
        """Read everything a bundle refers to, and return its size in bytes. Corrupt, a line for each object, where it differs."""
        meter = Meter(f"verifying {bundle.repo}", progress, cancelled)
        entries = self.manifest(bundle)
        reader = self.reader(bundle)
        download.verify(reader, entries, meter, self._objects.parallel)
        return bundle.bytes

    # --- upkeep ----------------------------------------------------------------------------------------------------

    def check(self, progress: Progress | None = None, *, read_data: bool = False, cancelled: Cancelled | None = None) -> Checked:
        """Look at every record and manifest, and whether all that they refer to is there; with `read_data` hash every object.

        Nothing is raised for what is damaged: it is in `faults`, a line each that names repository, bundle, file and object.
        """
        return upkeep.check(self, self._objects, Meter("checking", progress, cancelled), read_data=read_data)

    def prune(self, progress: Progress | None = None, *, dry_run: bool = False, cancelled: Cancelled | None = None) -> Pruned:
        """Remove what no bundle refers to, such as what killed uploads left; with `dry_run` only count it.

        DeadlinePassed, naming the first, while uploads are under way: they may be about to refer to it. Uploads that begin
        meanwhile wait. Corrupt, and nothing is removed, where a bundle cannot be read.
        """
        return upkeep.prune(self, self._objects, Meter("pruning", progress, cancelled), dry_run=dry_run)

    # --- labels ----------------------------------------------------------------------------------------------------

    def labels(self, repo: str) -> dict[str, str]:
        """Return what each label points at, by name. SourceMissing where there is no such repository."""
        self._need_repo(repo)
        return {label: self._move(repo, label, numbers[-1]).bundle for label, numbers in self._labels(repo)}

    def label_history(self, repo: str, label: str) -> list[Move]:
        """Return every move of a label, oldest first. SourceMissing, listing the labels there are, where it never was set."""
        self._need_repo(repo)
        return [self._move(repo, label, number) for number in self._need_moves(repo, label)]

    def set_label(self, repo: str, label: str, bundle: str, *, contributor: str = "") -> Move:
        """Point a label at a bundle's id, durably; where it points there already, nothing is written. Return the last move."""
        form.check_name("label", label)
        contributor = form.check_text("contributor", contributor)
        return self._point(repo, label, self.resolve(repo, bundle=bundle).id, contributor)

    def _point(self, repo: str, label: str, bundle: str, contributor: str) -> Move:
        number = 0
        while True:
            last = self._last_move(repo, label)
            if last is not None and last.bundle == bundle:
                return last
            # One more than what was tried: a listing may not show yet what stood in the way.
            number = max(number, *self._numbers(repo, label), 0) + 1
            move = Move(repo, label, number, bundle, contributor, form.format_time(_now()))
            # Where another has made this move by now, ours is the next one.
            if self._objects.create(form.move_name(repo, label, number), form.encode_record(move.as_json())):
                return move

    # --- reading records -------------------------------------------------------------------------------------------

    def _is_store(self) -> bool:
        """Say whether the store was ever written to; ConfigurationError where a later program wrote it."""
        if not self._format_seen:
            try:
                data = self._get("format")
            except FileNotFoundError:
                return False
            document = _decode(f"{self.url}: format", form.decode_record, data)
            if document.get("format") != "sidecar-store":
                raise Corrupt(f"{self.url}: format: it is not a sidecar store")
            if document.get("version") != form.VERSION:
                raise ConfigurationError(
                    f"{self.url} has format version {document.get('version')}; this program knows {form.VERSION}"
                )
            self._format_seen = True
        return True

    def _need_repo(self, repo: str) -> None:
        form.check_name("repository", repo)
        if not self._is_store():
            raise _missing(f"{self.url}: no repository {repo!r}; nothing was ever stored there", "repositories", ())
        try:
            self._repo(repo)
        except FileNotFoundError:
            raise _missing(f"{self.url}: no repository {repo!r}", "repositories", self._repos()) from None

    def _get(self, name: str) -> bytes:
        # Cut off at the limit, a record does not hash to its second line.
        return self._objects.get(name, form.LARGEST_RECORD)

    def _record(self, where: str, name: str) -> bytes:
        try:
            return self._get(name)
        except FileNotFoundError:
            raise Corrupt(f"{where} is missing, and was there a moment ago") from None

    def _new_repo(self, name: str, description: str = "") -> Repo | None:
        """Have a repository; return it where it is new."""
        form.check_name("repository", name)
        description = form.check_text("description", description)
        if not self._is_store():
            self._objects.create("format", form.encode_format())
            self._is_store()  # where another was quicker, what it made may be of another version
        repo = Repo(name, description, form.format_time(_now()))
        return repo if self._objects.create(f"repos/{name}/repo", form.encode_record(repo.as_json())) else None

    def _repos(self) -> list[str]:
        """Return the names of the repositories. One that was killed while it was made has a directory, but no record."""
        names = (name for name in self._objects.names("repos") if form.is_name("repository", name))
        return [name for name in names if "repo" in self._objects.names(f"repos/{name}")]

    def _repo(self, name: str) -> Repo:
        data = self._get(f"repos/{name}/repo")
        return _decode(f"{self.url}: repos/{name}/repo", lambda raw: form.decode_repo(raw, name), data)

    def _ids(self, repo: str) -> list[str]:
        return [name for name in self._objects.names(f"repos/{repo}/bundles") if form.is_id(name)]

    def _bundle(self, repo: str, bundle: str) -> Bundle:
        name = form.bundle_name(repo, bundle)
        where = f"{self.url}: repository {repo!r}, bundle {bundle}: {name}"
        return _decode(where, lambda raw: form.decode_bundle(raw, repo, bundle), self._record(where, name))

    def _labels(self, repo: str) -> Iterator[tuple[str, list[int]]]:
        """Yield each label that was ever set, with the numbers of its moves."""
        for label in self._objects.names(f"repos/{repo}/labels"):
            if form.is_name("label", label) and (numbers := self._numbers(repo, label)):
                yield label, numbers

    def _numbers(self, repo: str, label: str) -> list[int]:
        names = self._objects.names(f"repos/{repo}/labels/{label}")
        return sorted(number for name in names if (number := form.move_number(name)))

    def _need_moves(self, repo: str, label: str) -> list[int]:
        form.check_name("label", label)
        numbers = self._numbers(repo, label)
        if not numbers:
            labels = (name for name, _ in self._labels(repo))
            raise _missing(f"{self.url}: repository {repo!r} has no label {label!r}", "labels", labels)
        return numbers

    def _move(self, repo: str, label: str, number: int) -> Move:
        name = form.move_name(repo, label, number)
        where = f"{self.url}: repository {repo!r}, label {label!r}: {name}"
        return _decode(where, lambda raw: form.decode_move(raw, repo, label, number), self._record(where, name))

    def _last_move(self, repo: str, label: str) -> Move | None:
        """Return where a label points, if anywhere; a move that is damaged is no reason not to make the next."""
        numbers = self._numbers(repo, label)
        try:
            return self._move(repo, label, numbers[-1]) if numbers else None
        except Corrupt as error:
            _logger.warning("%s; it is passed over", error)
            return None

    def _parents(self, repo: str, label: str) -> list[Bundle]:
        """Return what the label points at, if anything, then the latest bundle, if any."""
        ids = self._ids(repo)
        wanted = ids[-1:]
        pointed = self._last_move(repo, label) if label else None
        if pointed is not None and pointed.bundle in ids:
            wanted = list(dict.fromkeys([pointed.bundle, *wanted]))
        parents = []
        for each in wanted:
            try:
                parents.append(self._bundle(repo, each))
            except Corrupt as error:
                # What was lost before is no reason to lose what is new.
                _logger.warning("%s; it is passed over", error)
        return parents

    def _before(self, bundle: Bundle) -> Loaded | None:
        """Return what a bundle holds that was there before; None where there is no telling."""
        try:
            return self._load(bundle)
        except Corrupt as error:
            # Likewise: all of it is stored again.
            _logger.warning("%s; nothing of it is used again", error)
            return None

    def _where(self, bundle: Bundle) -> str:
        return f"{self.url}: repository {bundle.repo!r}, bundle {bundle.id}"


def _distinct(*bundles: Bundle | None) -> list[Bundle]:
    """Return those there are of some bundles, of those that hold the same tree one."""
    return list({each.manifest: each for each in bundles if each is not None}.values())


def _asked(announcement: Announcement, cancelled: Cancelled | None) -> bool:
    """Keep what was uploaded from being pruned, and say whether it is given up."""
    announcement.renew()
    return cancelled is not None and cancelled()


def _known(befores: list[Loaded]) -> Known:
    """Return where the chunks of bundles lie; what several hold is the first one's."""
    chunks: dict[str, Piece] = {}
    tables: dict[str, tuple[Pieces, ...]] = {}
    for entry in chain.from_iterable(before.entries for before in reversed(befores)):
        if isinstance(entry.pieces, Pieces):
            tables[entry.path] = (entry.pieces, *tables.get(entry.path, ()))
            chunks |= {segment.piece.hash: segment.piece for segment in entry.pieces.segments}
        else:
            chunks |= {piece.hash: piece for piece in entry.pieces}
    return Known(chunks, tables)


def _selected(entries: tuple[Entry, ...], select: Callable[[Entry], bool]) -> tuple[Entry, ...]:
    chosen = {entry.path for entry in entries if select(entry)}
    leading = {path[:at] for path in chosen for at, char in enumerate(path) if char == "/"}
    return tuple(entry for entry in entries if entry.path in chosen or entry.path in leading)


def _table(reader: download.Reader, path: str, segments: tuple[Segment, ...]) -> Table:
    return Pieces(segments, partial(reader.table, path))


def _decode(where: str, decode: Callable[[bytes], Record], data: bytes) -> Record:
    try:
        return decode(data)
    except Malformed as error:
        raise Corrupt(f"{where}: {error}") from None


def _describe(
    uploaded: Uploaded, manifest: Base, parent: Bundle | None, *, repo: str, label: str, message: str, contributor: str
) -> Bundle:
    """Return the record of a new bundle; its id sorts after its parent's."""
    milliseconds = _now()
    if parent:
        milliseconds = min(max(milliseconds, form.id_milliseconds(parent.id) + 1), form.LATEST)
    return Bundle(
        repo=repo,
        id=form.make_id(milliseconds, _random()),
        time=form.format_time(milliseconds),
        message=message,
        contributor=contributor,
        label=label,
        parent=parent.id if parent else "",
        manifest=manifest.hash,
        manifest_bytes=manifest.bytes,
        files=_count(uploaded.entries, FILE),
        directories=_count(uploaded.entries, DIRECTORY),
        links=_count(uploaded.entries, LINK),
        bytes=sum(entry.size for entry in uploaded.entries),
        stored=uploaded.stored,
        skipped=uploaded.skipped,
    )


def _touched(change: Change) -> bool:
    one, other = change.before, change.after
    return one is not None and other is not None and (one.mode, one.mtime) != (other.mode, other.mtime)


def _missing(message: str, what: str, exist: Iterable[str]) -> SourceMissing:
    exist = list(exist)
    listed = ", ".join(exist[:_LISTED]) or "none"
    more = f" and {len(exist) - _LISTED} more" if len(exist) > _LISTED else ""
    return SourceMissing(f"{message}; {what} there: {listed}{more}", exist)


def _count(entries: Iterable[Entry], type_: str) -> int:
    return sum(entry.type == type_ for entry in entries)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _random() -> bytes:
    return os.urandom(10)
