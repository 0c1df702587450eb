"""The battery `fuse`: bundles are files before the application starts; directories are bundles after it has ended.

In this mode sources are populated: downloaded into their directories, each byte verified. A restarted battery finds what it
left, and rewrites nothing under a running application. A save that is repeated after a kill makes no second bundle where the
first one was complete. `close` may come while either runs; it makes them end at the next chunk.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sidecar.batteries import Kind, Progress
from sidecar.errors import NotSaved, Unreachable
from sidecar.store import Bundle, Store, open_store


@dataclass(frozen=True)
class Source:
    """A bundle that is in directory `path` before the application starts; the latest where neither label nor id is given."""

    name: str
    path: str
    repo: str
    label: str = ""
    bundle: str = ""


@dataclass(frozen=True)
class Destination:
    """A directory that is kept as a bundle after the application has ended; its id is written to `bundle_id_file`."""

    name: str
    path: str
    repo: str
    message: str
    label: str = ""
    bundle_id_file: str = ""


@dataclass(frozen=True)
class FuseBatteryOptions:
    """`store` is the URL that holds the sources' bundles and takes the destinations'; `contributor` signs the latter."""

    store: str
    sources: tuple[Source, ...] = ()
    destinations: tuple[Destination, ...] = ()
    contributor: str = ""


class FuseBattery:
    """See sidecar.batteries.Battery for what each method promises."""

    def __init__(self, options: FuseBatteryOptions, progress: Progress) -> None:
        """Nothing is read, written or reached yet, but the store's URL must mean something: ConfigurationError."""
        self._options = options
        self._progress = progress
        self._store: Store = open_store(options.store)
        self._closed = threading.Event()

    def ready(self) -> Mapping[str, Any]:
        """Populate every source and make every destination; return which bundle each source turned out to be.

        SourceMissing before the first byte is fetched where any of them does not exist.
        """
        resolved = [
            (each, self._store.resolve(each.repo, label=each.label, bundle=each.bundle)) for each in self._options.sources
        ]
        # Before the download, which may take an hour: what will not be writable then is not now.
        for destination in self._options.destinations:
            _make_writable(destination.path)
        for source, bundle in resolved:
            self._store.populate(bundle, source.path, self._progress, cancelled=self._closed.is_set)
        return {
            "sources": [{**_told(source, bundle), "mode": "populate"} for source, bundle in resolved],
        }

    def save(self) -> Mapping[str, Any]:
        """Keep every destination as a bundle; return which. NotSaved, naming the destination, where one cannot be kept."""
        return {"destinations": [_told(each, self._save(each)) for each in self._options.destinations]}

    def close(self) -> None:
        """Make `ready` and `save` end soon, if they run."""
        self._closed.set()

    def _save(self, destination: Destination) -> Bundle:
        try:
            bundle = self._store.save(
                destination.path,
                destination.repo,
                label=destination.label,
                message=destination.message,
                contributor=self._options.contributor,
                progress=self._progress,
                reuse=True,
                cancelled=self._closed.is_set,
            )
        except NotSaved as error:
            raise NotSaved(f"destination {destination.name!r}, {destination.path}: {error}", error.culprit) from error
        if destination.bundle_id_file:
            _write_whole(destination.bundle_id_file, bundle.id + "\n")
        return bundle


def open_battery(options: FuseBatteryOptions, progress: Progress) -> FuseBattery:
    """Return the battery; see FuseBattery."""
    return FuseBattery(options, progress)


KIND = Kind("fuse", FuseBatteryOptions, open_battery)


def _told(of: Source | Destination, bundle: Bundle) -> dict[str, Any]:
    return {
        "name": of.name,
        "path": of.path,
        "repo": of.repo,
        "label": of.label,
        "bundle": bundle.id,
        "files": bundle.files,
        "bytes": bundle.bytes,
    }


def _make_writable(path: str) -> None:
    """Have a directory at `path` that can be written; Unreachable where that is not so. access(2) does not know full disks."""
    probe = os.path.join(path, f".sidecar-probe-{secrets.token_hex(4)}")
    try:
        os.makedirs(path, exist_ok=True)
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        os.unlink(probe)
    except OSError as error:
        raise Unreachable(f"{path} cannot be written: {error.strerror}") from error


def _write_whole(path: str, text: str) -> None:
    """Write a file that has all of its content from the moment it has its name."""
    temporary = f"{path}.{secrets.token_hex(4)}"
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        # The bundle is safe, yet whoever was promised its id is not told: that is not a success.
        raise NotSaved(f"{path}: the bundle's id {text.strip()} cannot be written: {error.strerror}") from error
