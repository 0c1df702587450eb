"""The battery `fuse`: bundles are files before the application starts; directories are bundles after it has ended.

A source is mounted, and its bytes are fetched as they are read; or populated, that is downloaded before the application starts,
where the options say so, where a mount is impossible or nobody else would see it, and where only a part of the bundle is wanted,
for a mount shows all of it. Which of the two it was, and why it was not the one that was asked for, is in the payload of `ready`
and in the log: they differ (a mount is read-only, and empty once the battery has ended), so it is never a silent choice. Either
way each byte is verified.

A restarted battery takes away the mount that its killed life left and mounts the same bundle again; what was populated it finds,
and rewrites nothing under a running application. The volumes are shared with the application, which may be less trusted: no
link that it may have planted is followed. A save that is repeated after a kill makes no second bundle where the first one was
complete. `close` may come while either runs; it makes them end at the next chunk, and unmounts.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sidecar.batteries import Kind, Progress, companion
from sidecar.batteries.bundles import told_of, write_bundle_id
from sidecar.errors import ConfigurationError, NotSaved, SourceMissing, Unreachable
from sidecar.parameters.fuse import Destination, Source
from sidecar.parameters.settings import regular_expression
from sidecar.store import RESERVED, Bundle, Stopped, Store, is_id, open_shared, open_store
from sidecar.store.selection import Select, selection

if TYPE_CHECKING:
    from sidecar.mount import Mount

__all__ = ["KIND", "Destination", "FuseBattery", "FuseBatteryOptions", "Source", "open_battery"]

_LEAST_MEMORY = 32 << 20
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FuseBatteryOptions:
    """`store` is the URL that holds the sources' bundles and takes the destinations'; `contributor` signs the latter.

    `populate`: download sources instead of mounting them. `cache` is a directory that keeps up to `cache_size` bytes of what is
    read of mounts, "" for none.

    `earlier` is what `ready` returned in an earlier life of the same pod: its sources are the same bundles again, wherever
    their labels point by now, for the application may be reading them.
    """

    store: str
    sources: tuple[Source, ...] = ()
    destinations: tuple[Destination, ...] = ()
    contributor: str = ""
    earlier: Mapping[str, Any] | None = None
    populate: bool = False
    cache: str = ""
    cache_size: int = 10 << 30


class FuseBattery:
    """See sidecar.batteries.Battery for what each method promises."""

    def __init__(self, options: FuseBatteryOptions, progress: Progress) -> None:
        """Nothing is read, written or reached yet, but the store's URL and filters must mean something: ConfigurationError."""
        self._options = options
        self._selections = {each: _selection(each) for each in options.sources}
        self._progress = progress
        self._store: Store = open_store(options.store)
        self._closed = threading.Event()
        self._mounting = threading.Lock()
        self._mounts: list[Mount] = []

    def ready(self) -> Mapping[str, Any]:
        """Bring every source and make every destination; return which bundle each source turned out to be, and how it is there.

        SourceMissing before the first byte is fetched where any of them, or a file that is asked for, does not exist.
        """
        resolved = [(each, self._resolve(each)) for each in self._options.sources]
        selected = {
            each: _look(self._store, each, bundle, select) for each, bundle in resolved if (select := self._selections[each])
        }
        # Before the download, which may take an hour: what will not be writable then is not now.
        for destination in self._options.destinations:
            _make_writable(destination.path)
            if destination.bundle_id_file:
                _make_writable(os.path.dirname(os.path.abspath(destination.bundle_id_file)))
        return {
            "sources": [
                {**told_of(source, bundle), **selected.get(source, {}), **self._bring(source, bundle)}
                for source, bundle in resolved
            ]
        }

    def save(self) -> Mapping[str, Any]:
        """Keep every destination as a bundle; return which. NotSaved, naming them, where some cannot be kept; the others are."""
        saved, failed = [], []
        for each in self._options.destinations:
            try:
                bundle = self._save(each)
                saved.append(told_of(each, bundle) | ({"skipped": bundle.skipped} if bundle.skipped else {}))
            except NotSaved as error:
                failed.append(str(error))
        if failed:
            others = (f"{told['name']!r} is saved as {told['repo']}@{told['bundle']}" for told in saved)
            raise NotSaved("; ".join([*failed, *others]))
        return {"destinations": saved}

    def close(self) -> None:
        """Make `ready` and `save` end soon, if they run, and unmount."""
        self._closed.set()
        with self._mounting:
            for mount in self._mounts:
                mount.close()
            self._mounts.clear()

    def _bring(self, source: Source, bundle: Bundle) -> dict[str, str]:
        """Have a bundle where its source wants it; return how."""
        reason: str | None = ""
        select = self._selections[source]
        if not (self._options.populate or source.populate):
            if select:
                reason = "only a part of the bundle is wanted"
            elif _said_earlier(source, self._options.earlier).get("mode") == "populate":
                reason = "it was populated in an earlier life, and what is there may be in use"
            else:
                reason = self._mount(source, bundle)
        if reason is None:
            return {"mode": "mount"}
        if reason:
            _logger.warning("source %r is populated, not mounted: %s", source.name, reason)
        from sidecar.mount import take_away

        # An earlier life may have mounted there, and been killed.
        take_away(source.path)
        self._store.populate(bundle, source.path, self._progress, select=select, shared=True, cancelled=self._closed.is_set)
        return {"mode": "populate"} | ({"not_mounted": reason} if reason else {})

    def _mount(self, source: Source, bundle: Bundle) -> str | None:
        """Mount a bundle; return why that cannot be, None where it was done."""
        from sidecar.mount import CannotMount, Mount, is_private, may_allow_other
        from sidecar.store.cache import Cache
        from sidecar.store.reader import MEMORY, open_reader

        try:
            if is_private(source.path):
                return (
                    f"{source.path} lies on a volume whose mounts other containers do not see (mountPropagation: Bidirectional)"
                )
            cache = Cache(self._options.cache, self._options.cache_size) if self._options.cache else None
            # All mounts of a sidecar keep together what a single one may.
            memory = max(MEMORY // len(self._options.sources), _LEAST_MEMORY)
            reader = open_reader(self._store, bundle, memory=memory, cache=cache)
            with self._mounting:
                if self._closed.is_set():
                    raise Stopped(f"mounting {bundle.repo}: told to stop")
                self._mounts.append(Mount(reader, source.path, allow_other=may_allow_other(), shared=True))
        except CannotMount as error:
            return str(error)
        return None

    def _resolve(self, source: Source) -> Bundle:
        earlier = _bundle_told(source, self._options.earlier)
        if earlier:
            return self._store.resolve(source.repo, bundle=earlier)
        return self._store.resolve(source.repo, label=source.label, bundle=source.bundle)

    def _save(self, destination: Destination) -> Bundle:
        try:
            bundle = self._store.save(
                destination.path,
                destination.repo,
                label=destination.label,
                message=destination.message,
                contributor=self._options.contributor,
                progress=self._progress,
                skip_errors=destination.skip_on_error,
                reuse=True,
                shared=True,
                cancelled=self._closed.is_set,
            )
        except NotSaved as error:
            raise NotSaved(f"destination {destination.name!r}, {destination.path}: {error}", error.culprit) from error
        if destination.bundle_id_file:
            write_bundle_id(destination.bundle_id_file, bundle)
        return bundle


def open_battery(options: FuseBatteryOptions, progress: Progress) -> FuseBattery:
    """Return the battery; see FuseBattery."""
    return FuseBattery(options, progress)


KIND = Kind("fuse", FuseBatteryOptions, open_battery, companion.fuse)


def _selection(source: Source) -> Select | None:
    """Return what says which entries of its bundle a source asks for; None where it is all of them."""
    try:
        pattern = re.compile(regular_expression(source.name_filter)) if source.name_filter else None
    except ValueError as error:
        raise ConfigurationError(f"source {source.name!r}: {error}") from None
    return selection(source.files, pattern)


def _look(store: Store, source: Source, bundle: Bundle, select: Select) -> dict[str, int]:
    """Return how much of a bundle its source asks for; SourceMissing where it names a file that is not there."""
    entries = store.manifest(bundle)
    paths = {entry.path for entry in entries}
    missing = next((path for path in source.files if path.strip("/") not in paths), None)
    if missing is not None:
        problem = f"{bundle.reference} has no file or directory {missing!r}; see sidecar bundle files {bundle.reference}"
        raise SourceMissing(f"source {source.name!r}: {problem}")
    selected = [entry for entry in entries if select(entry)]
    if not selected:
        _logger.warning("source %r: nothing of %s is wanted; its directory is empty", source.name, bundle.reference)
    return {"selected": sum(entry.type == "file" for entry in selected)}


def _bundle_told(source: Source, earlier: Mapping[str, Any] | None) -> str:
    """Return the id that an earlier life told of this very source, or ""."""
    return str(_said_earlier(source, earlier).get("bundle", ""))


def _said_earlier(source: Source, earlier: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return what an earlier life told of this very source, if anything. Others write where it was kept: it may be anything."""
    same = {key: getattr(source, key) for key in ("name", "path", "repo", "label")}
    sources = (earlier or {}).get("sources")
    for told in sources if isinstance(sources, list) else ():
        if not isinstance(told, Mapping) or {key: told.get(key) for key in same} != same:
            continue
        if is_id(told.get("bundle")) and source.bundle in ("", told["bundle"]):
            return told
    return {}


def _make_writable(path: str) -> None:
    """Have a directory at `path` that can be written; Unreachable where that is not so. access(2) does not know full disks."""
    try:
        fd = open_shared(path, make=True)
        try:
            # Of this name because it is never saved, should we be killed in between.
            with suppress(FileExistsError):
                os.mkdir(RESERVED, 0o700, dir_fd=fd)
                os.rmdir(RESERVED, dir_fd=fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise Unreachable(f"{path} cannot be written: {error.strerror}") from error
