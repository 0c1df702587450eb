"""Manifests in a store: read and verified, and written as a difference where that is shorter.

A manifest of 20,000 files is a megabyte, compressed; after a change of one file, so would be the next. So the next one may name a
base and tell how it differs. A base never has a base: a reader needs two files at most, however many bundles came before. Once
a difference is longer than half its base, a whole manifest is written, the base of those that follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from blake3 import blake3

from sidecar.errors import Corrupt
from sidecar.store import format as form
from sidecar.store.compress import decompress, pack_whole
from sidecar.store.format import Base, Bundle, Entry, MakeTable, Malformed, Manifest
from sidecar.store.objects import Objects
from sidecar.values import value

Result = TypeVar("Result")


@value
class Loaded:
    """A bundle's manifest: its entries, its bytes as they were read, and what the next one may be told as a difference from."""

    entries: tuple[Entry, ...]
    data: bytes
    base: Base
    base_entries: tuple[Entry, ...]


class Manifests:
    """The manifests of a store."""

    def __init__(self, objects: Objects) -> None:
        """Read and write them in `objects`."""
        self._objects = objects

    def load(self, bundle: Bundle, where: str, make_table: MakeTable) -> Loaded:
        """Return the manifest of a bundle. Corrupt, which begins with `where`, where it or its base is missing or damaged."""
        said = Base(bundle.manifest, bundle.manifest_bytes)
        data, manifest = self._decoded(said, where, make_table)
        if manifest.base is None:
            return Loaded(manifest.entries, data, said, manifest.entries)
        below = self._decoded(manifest.base, where, make_table)[1]
        if below.base is not None:
            raise Corrupt(f"{where}: {form.manifest_name(manifest.base.hash)}: it is a base, and has one")
        entries = _checked(f"{where}: {form.manifest_name(said.hash)}", lambda: form.apply(manifest, below.entries))
        return Loaded(entries, data, manifest.base, below.entries)

    def encode(self, entries: tuple[Entry, ...], before: Loaded | None) -> bytes:
        """Return the bytes of a manifest of `entries`, given the parent's: the very same where nothing differs."""
        if before is None:
            return form.encode_manifest(Manifest(entries))
        if entries == before.entries:
            return before.data
        data = form.encode_manifest(form.difference(entries, before.base, before.base_entries))
        return data if 2 * len(data) <= before.base.bytes else form.encode_manifest(Manifest(entries))

    def put(self, data: bytes, before: Loaded | None) -> str:
        """Have a manifest in the store, and return its hash; one that is there stays, whatever level it was compressed with."""
        hash_ = blake3(data).hexdigest()
        try:
            self._read(Base(hash_, len(data)))
            self._objects.size(form.manifest_name(hash_))  # has the next flush sync what leads to it
        except (FileNotFoundError, Malformed):
            # Also where its size is right: this one was read, and is known to be damaged.
            self._objects.put(form.manifest_name(hash_), pack_whole(data), anew=True)
        if before is not None:
            self._objects.size(form.manifest_name(before.base.hash))
        return hash_

    def _decoded(self, said: Base, where: str, make_table: MakeTable) -> tuple[bytes, Manifest]:
        name = f"{where}: {form.manifest_name(said.hash)}"
        try:
            data = _checked(name, lambda: self._read(said))
        except FileNotFoundError:
            raise Corrupt(f"{name} is missing") from None
        return data, _checked(name, lambda: form.decode_manifest(data, make_table))

    def _read(self, said: Base) -> bytes:
        """Return the bytes of a manifest. FileNotFoundError, Malformed."""
        # What cannot be made smaller becomes larger by a few bytes in each of zstd's blocks.
        frame = self._objects.get(form.manifest_name(said.hash), said.bytes + said.bytes // 100 + 1024)
        data = decompress(frame, said.bytes)
        if blake3(data).hexdigest() != said.hash:
            raise Malformed("it does not hold what its name says")
        return data


def _checked(where: str, call: Callable[[], Result]) -> Result:
    try:
        return call()
    except Malformed as error:
        raise Corrupt(f"{where}: {error}") from None
