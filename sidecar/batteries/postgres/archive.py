"""Bundles of clusters: what one says of itself before it is fetched, and how a directory becomes one.

A physical bundle is the data directory itself, less what pg_basebackup leaves out, with one segment of the log, as a cleanly
shut down cluster needs no more. RECORD lies in it beside PG_VERSION: what nobody can read from the outside without a server of
its version. It informs people and decides which way a restore goes; nothing in it is obeyed. The same content has the same
record, so an archive that is repeated after a kill makes no second bundle.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sidecar.batteries import Progress
from sidecar.batteries.postgres.contents import chunk_size, leave_out, tablespaces
from sidecar.batteries.postgres.control import Control
from sidecar.batteries.postgres.pages import Pages
from sidecar.batteries.postgres.programs import Account, Cancelled
from sidecar.errors import ConfigurationError, Corrupt, NotSaved
from sidecar.parameters.fuse import Destination
from sidecar.store import Accept, Bundle, Entry, Store
from sidecar.store.format import FILE
from sidecar.values import value

RECORD = "sidecar.json"
PHYSICAL, LOGICAL = "physical", "logical"
_LONGEST = 4 << 20  # bytes of a record; each database and extension has a line


@value
class Described:
    """What a bundle says of itself: its `kind`, PHYSICAL or LOGICAL, the `major` version of PostgreSQL, and what is in RECORD."""

    kind: str
    major: int
    record: Mapping[str, Any]


def describe(store: Store, bundle: Bundle) -> Described:
    """Return what a bundle says of itself. Corrupt where it holds no database."""
    entries = {entry.path: entry for entry in store.manifest(bundle)}
    record = _record(bundle, _content(store, bundle, entries.get(RECORD)))
    if record.get("kind") == LOGICAL:
        return Described(LOGICAL, _major(bundle, record.get("major")), record)
    version = _content(store, bundle, entries.get("PG_VERSION"))
    if not version:
        raise Corrupt(f"{bundle.reference} holds no database: it has neither PG_VERSION nor a {RECORD} that says what it is")
    return Described(PHYSICAL, _major(bundle, version.strip().decode(errors="replace")), record)


def _content(store: Store, bundle: Bundle, entry: Entry | None) -> bytes:
    """Return a small file of a bundle; nothing where it is missing."""
    if entry is None or entry.type != FILE:
        return b""
    if entry.size > _LONGEST:
        raise Corrupt(f"{bundle.reference}, file {entry.path!r}: {entry.size} bytes are too many for what it is")
    return b"".join(store.chunk(bundle, entry.path, piece) for piece in entry.pieces)


def _record(bundle: Bundle, text: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(text or b"{}")
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{bundle.reference}, file {RECORD!r}: {error}") from None
    if not isinstance(record, dict):
        raise Corrupt(f"{bundle.reference}, file {RECORD!r}: it is no JSON object")
    return record


def _major(bundle: Bundle, said: object) -> int:
    try:
        return int(str(said))
    except ValueError:
        raise Corrupt(f"{bundle.reference} says that it is of PostgreSQL {said!r}, which is no version") from None


def keep(
    store: Store,
    data: str,
    control: Control,
    destination: Destination,
    label: str,
    *,
    contributor: str,
    base: Bundle | None,
    accept: Accept | None = None,
    progress: Progress,
    cancelled: Cancelled,
) -> Bundle:
    """Keep a cluster that was shut down as a bundle, and return it. NotSaved where a page of it is corrupt; Stopped."""
    pages = Pages(control)
    return store.save(
        data,
        destination.repo,
        label=label,
        message=destination.message,
        contributor=contributor,
        progress=progress,
        reuse=True,
        chunk_size=chunk_size,
        leave_out=leave_out(control),
        inspect=pages,
        inspected=pages.finish,
        base=base,
        accept=accept,
        cancelled=cancelled,
    )


def check_whole(data: str, control: Control) -> None:
    """ConfigurationError where part of a cluster lies elsewhere, and would be in no bundle: with links, none is restored."""
    try:
        names = os.listdir(f"{data}/pg_tblspc")
    except OSError as error:
        raise Corrupt(f"{data}/pg_tblspc: {error.strerror}") from None
    elsewhere = tablespaces(names)
    if elsewhere:
        problem = f"{data} has tablespaces ({', '.join(elsewhere)}), which lie elsewhere and would be in no bundle"
        raise ConfigurationError(f"{problem}; ALTER … SET TABLESPACE pg_default, then DROP TABLESPACE")
    left_out = leave_out(control)
    for folder, folders, files in os.walk(data):
        for name in (*folders, *files):
            path = os.path.relpath(f"{folder}/{name}", data)
            if os.path.islink(f"{folder}/{name}") and not left_out(path):
                raise ConfigurationError(f"{data} has a link, {path!r}, and what it leads to would be in no bundle; remove it")


def write_record(data: str, record: Mapping[str, Any], who: Account) -> None:
    """Have the record in a directory; one that says the same is left as it is, times and all."""
    text = json.dumps({"format": 1, **record}, indent=1, sort_keys=True) + "\n"
    folder = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if _read_at(folder) == text.encode():
            return
        temporary = f".{RECORD}.{secrets.token_hex(4)}"
        try:
            # The directory is the server's, and a superuser of its databases may have put anything there: no link is followed.
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=folder)
            with open(fd, "w", encoding="utf-8") as file:
                who.own(fd)
                file.write(text)
            os.rename(temporary, RECORD, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
    except OSError as error:
        raise NotSaved(f"{data}/{RECORD} cannot be written: {error.strerror}") from None
    finally:
        os.close(folder)


def _read_at(folder: int) -> bytes:
    try:
        with open(os.open(RECORD, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder), "rb") as file:
            return file.read(_LONGEST)
    except OSError:
        return b""
