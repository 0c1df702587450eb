"""A bundle as a read-only file system of fsspec: `bundle://repo@label/path`, `bundle://repo@ID/path`, `bundle://repo/path`.

    pandas.read_csv("bundle://weather@latest/2026/january.csv", storage_options={"store": "file:///srv/store"})

The first part of a path names the bundle, as in every command; without label and id it is the latest. Which bundle a label
points at is asked once by each file system object, so that one program sees one bundle (fsspec keeps such objects, by their
options). Links lead to other entries of the same bundle, never out of it: one that does is listed, and opening it fails.

Every byte is verified before it is handed out. `store` is the URL of the store; where it is missing, `place.store_url` says.
"""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from sidecar.errors import Corrupt, SidecarError, SourceMissing, Unreachable
from sidecar.store.bundles import Store, open_store
from sidecar.store.cache import Cache
from sidecar.store.format import DIRECTORY, FILE, LINK, Bundle
from sidecar.store.place import store_url
from sidecar.store.reader import MEMORY, Reader, open_reader
from sidecar.store.reference import Reference, parse_reference

Answer = TypeVar("Answer")

_LINKS = 40  # as many as the kernel follows
_GIB = 1 << 30
_READ_ONLY = "a bundle is never changed; write to a directory, and keep that with `sidecar bundle upload`"


class BundleFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Reads bundles of one store; see the module."""

    protocol = "bundle"
    root_marker = ""

    def __init__(
        self,
        store: str = "",
        *,
        store_options: dict[str, Any] | None = None,
        memory: int = MEMORY,
        cache: str = "",
        cache_size: int = 10 * _GIB,
        **options: Any,
    ) -> None:
        """Read the store at URL `store`, whose client is given `store_options`.

        Each bundle keeps up to `memory` bytes, and the directory `cache`, if there is one, up to `cache_size`.
        """
        super().__init__(**options)
        self._store: Store = open_store(store or store_url(os.environ), **(store_options or {}))
        self._memory = memory
        self._cache = Cache(cache, cache_size) if cache else None
        self._lock = threading.Lock()
        self._bundles: dict[str, Bundle] = {}
        self._readers: dict[str, Reader] = {}

    # --- what fsspec asks for --------------------------------------------------------------------------------------

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List a directory, or the one file at `path`. The root lists the repositories."""
        path = self._strip_protocol(path)
        if not path:
            found: list[dict[str, Any]] = [_folder(each.name) for each in self._telling("", self._store.repos)]
        else:
            reader, prefix, node = self._find(path)
            children = reader.tree.children.get(node)
            if children is None:
                found = [self._describe(reader, node, path, prefix)]
            else:
                found = [self._describe(reader, child, f"{path}/{os.fsdecode(name)}", prefix) for name, child in children.items()]
                for each in found:
                    if each["islink"] and each["type"] == "directory":
                        each["type"] = "link"  # so that whoever walks the tree does not walk in circles
        return found if detail else [each["name"] for each in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return name, size, type, mode and times; of a link, size, type and mode of what it leads to in the bundle."""
        path = self._strip_protocol(path)
        if not path:
            return _folder("")
        reader, prefix, node = self._find(path, follow=False)
        return self._describe(reader, node, path, prefix)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_options: Any) -> bytes:
        """Return a file's bytes, or those from `start` to `end`, counted from its end where they are negative."""
        path = self._strip_protocol(path)
        reader, _, node = self._find_file(path)
        first, last, _ = slice(start, end).indices(reader.tree.entry(node).size)
        return self._telling(path, lambda: reader.read(node, first, max(0, last - first)))

    def get_file(self, rpath: str, lpath: Any, callback: Any = None, outfile: Any = None, **options: Any) -> None:
        """Fetch a file, or make a directory; a link that leads to no file of the bundle is made as the link that it is."""
        path = self._strip_protocol(rpath)
        target = self.info(path).get("destination")
        if target is not None and not self.isfile(path) and isinstance(lpath, str | os.PathLike):
            with suppress(FileExistsError):
                os.symlink(target, lpath)
            return
        more = {} if callback is None else {"callback": callback}
        super().get_file(path, lpath, outfile=outfile, **more, **options)

    def modified(self, path: str) -> Any:
        """Return when a file was last modified, before it was saved."""
        return self.info(path)["LastModified"]

    def checksum(self, path: str) -> str:
        """Return a text that is the same only while the content is: bundles do not change, so it names bundle and path."""
        path = self._strip_protocol(path)
        name, _, rest = path.partition("/")
        return f"{self._bundle(name).reference}/{rest}"

    def ukey(self, path: str) -> str:
        """Return the same: what caches of fsspec go by."""
        return self.checksum(path)

    def invalidate_cache(self, path: str | None = None) -> None:  # noqa: ARG002
        """Ask again where labels point."""
        with self._lock:
            self._bundles.clear()

    def _open(self, path: str, mode: str = "rb", **options: Any) -> BundleFile:
        if mode != "rb":
            raise OSError(errno.EROFS, _READ_ONLY, path)
        reader, _, node = self._find_file(path)
        return BundleFile(self, path, reader, node, **options)

    def _refuse(self, *args: Any, **_: Any) -> Any:
        raise OSError(errno.EROFS, _READ_ONLY, str(args[0]) if args else None)

    mkdir = makedirs = rmdir = rm = rm_file = _rm = mv = cp_file = pipe_file = put_file = touch = _refuse

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return os.fspath(path).removeprefix("bundle://").strip("/")

    # --- finding ---------------------------------------------------------------------------------------------------

    def _bundle(self, name: str) -> Bundle:
        with self._lock:
            bundle = self._bundles.get(name)
        if bundle is None:
            wanted = self._telling(name, lambda: parse_reference(name))
            bundle = self._telling(name, lambda: self._resolve(wanted))
            with self._lock:
                bundle = self._bundles.setdefault(name, bundle)
        return bundle

    def _resolve(self, wanted: Reference) -> Bundle:
        return self._store.resolve(wanted.repo, label=wanted.label, bundle=wanted.bundle)

    def _reader(self, name: str) -> Reader:
        bundle = self._bundle(name)
        with self._lock:
            reader = self._readers.get(bundle.id)
        if reader is None:
            opened = self._telling(name, lambda: open_reader(self._store, bundle, memory=self._memory, cache=self._cache))
            with self._lock:
                reader = self._readers.setdefault(bundle.id, opened)
        return reader

    def _find(self, path: str, *, follow: bool = True) -> tuple[Reader, str, int]:
        """Return the reader, the name of the bundle, and the node at a path. FileNotFoundError."""
        prefix, _, rest = path.partition("/")
        reader = self._reader(prefix)
        return reader, prefix, _walk(reader, rest, path, follow=follow)

    def _find_file(self, path: str) -> tuple[Reader, str, int]:
        reader, prefix, node = self._find(path)
        if reader.tree.entry(node).type != FILE:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return reader, prefix, node

    def _describe(self, reader: Reader, node: int, path: str, prefix: str) -> dict[str, Any]:
        entry = reader.tree.entry(node)
        shown = entry
        if entry.type == LINK:
            try:
                shown = reader.tree.entry(_walk(reader, entry.path, path))
            except OSError:
                shown = entry  # it leads nowhere in this bundle
        described: dict[str, Any] = {
            "name": path,
            "size": shown.size if shown.type == FILE else 0,
            "type": {FILE: "file", DIRECTORY: "directory"}.get(shown.type, "other"),
            "mode": shown.mode,
            "mtime": entry.mtime / 1e9,
            "LastModified": datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=entry.mtime // 1_000_000_000),
            "islink": entry.type == LINK,
            "bundle": self._bundles[prefix].id,
        }
        if entry.type == LINK:
            described["destination"] = entry.target
        return described

    def _telling(self, path: str, ask: Callable[[], Answer]) -> Answer:
        """Return what `ask()` returns; its errors as those that programs expect of a file system, with the same words."""
        try:
            return ask()
        except SourceMissing as error:
            raise FileNotFoundError(errno.ENOENT, str(error), path) from error
        except (Corrupt, Unreachable) as error:
            raise OSError(errno.EIO, str(error), path) from error
        except SidecarError as error:
            raise OSError(errno.EINVAL, str(error), path) from error


class BundleFile(AbstractBufferedFile):  # type: ignore[misc]
    """One file of a bundle, open for reading. It needs no buffer of its own: the reader has one, and reads ahead."""

    def __init__(self, fs: BundleFileSystem, path: str, reader: Reader, node: int, **_: Any) -> None:
        """Open what `fs` has found."""
        self.loc = 0
        super().__init__(fs, path, "rb", cache_type="none", size=reader.tree.entry(node).size)
        self._reader, self._node = reader, node

    def _fetch_range(self, start: int, end: int) -> bytes:
        told: bytes = self.fs._telling(self.path, lambda: self._reader.read(self._node, start, end - start))
        return told

    def read(self, length: int | None = -1) -> bytes:
        """Return up to `length` bytes, all that are left where it is negative."""
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        left = self.size - self.loc
        data = self._fetch_range(self.loc, self.loc + (left if length is None or length < 0 else min(length, left)))
        self.loc += len(data)
        return data

    def readline(self, size: int | None = -1) -> bytes:
        """Return a line; a buffered reader does that better, and fsspec's own asks for a byte at a time."""
        begin, limit = self.loc, -1 if size is None else size
        parts: list[bytes] = []
        while True:
            part = self.read(io.DEFAULT_BUFFER_SIZE)
            at = part.find(b"\n")
            parts.append(part if at < 0 else part[: at + 1])
            if at >= 0 or not part:
                break
        line = b"".join(parts)
        line = line[:limit] if limit >= 0 else line
        self.loc = begin + len(line)
        return line


def _folder(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _walk(reader: Reader, rest: str, path: str, *, follow: bool = True) -> int:
    """Return the node at `rest` below the top, through links that stay in the bundle. OSError, of `path`, where there is none.

    A link's `..` is resolved against the directories that it was reached through, as the kernel does it; above the top there is
    nothing, and an absolute target is outside.
    """
    tree = reader.tree
    waiting = [*reversed(_parts(rest))]
    node, links = 1, 0
    while waiting:
        name = waiting.pop()
        if name == b"..":
            node = tree.parents[node]
            if not node:
                raise OSError(errno.EXDEV, "the link leads out of the bundle", path)
            continue
        found = tree.children.get(node, {}).get(name, 0)
        if not found:
            number = errno.ENOENT if node in tree.children else errno.ENOTDIR
            raise OSError(number, os.strerror(number), path)
        entry = tree.entry(found)
        if entry.type == LINK and (follow or waiting):
            links += 1
            if links > _LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if entry.target.startswith("/"):
                raise OSError(errno.EXDEV, "the link leads out of the bundle", path)
            waiting += reversed(_parts(entry.target))
            continue
        node = found
    return node


def _parts(path: str) -> Sequence[bytes]:
    return [part for part in os.fsencode(path).split(b"/") if part not in (b"", b".")]
