"""The bytes of the store: ids, names, records, manifests. README.md of this folder is the specification.

Rule 1: whatever is written to a store or read from one gets its form here.
Rule 2: this module knows no file, clock, randomness, process or environment.
Rule 3: what is read is not trusted. `decode_*` return something well-formed (paths stay below the top, hashes are hashes) or
raise Malformed; a correct hash only says that the writer wrote it, not that the writer meant well.
"""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from blake3 import blake3

from sidecar.errors import Fault, ParametersError
from sidecar.values import asdict, value

VERSION = 1
MIB = 1 << 20
CHUNK = 8 * MIB  # one request to an object store: long enough that latency does not count, short enough to retry
SMALL = 1 * MIB  # up to here a chunk is packed: an object each would cost a request, a sync and an inode each
PACK = 32 * MIB
SMALLEST_CUT = 4 << 10  # below, a chunk's place takes more room than what it saves
LARGEST_CHUNK = 64 * MIB  # what a reader must be able to hold
LARGEST_SEGMENT = 1 << 16  # chunks in one segment of a table: 4 MiB of table
LARGEST_OBJECT = 1 << 40  # beyond this an offset is a lie, and near 2^63 the kernel would not take it
LARGEST_RECORD = 1 * MIB  # a reader stops there; what people write into one is bounded by LARGEST_TEXT
LARGEST_TEXT = 64 << 10
LARGEST_MANIFEST = 4 << 30  # a bound for what a damaged record may make us allocate; 20 million files fit

FILE, DIRECTORY, LINK = "file", "directory", "link"
RESERVED = ".sidecar-populating"
LATEST = 253_402_300_799_999  # the last millisecond of the year 9999: no id of ours carries a later one

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_HASH = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(f"[0-7][{_ALPHABET}]{{25}}")
_NUMBER = re.compile(r"[0-9]{8}|[1-9][0-9]{8,17}")
_ESCAPE = re.compile(rb"%([0-9A-F]{2})")
_text = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


class Malformed(ValueError):
    """Bytes that are not what the format says; the message tells what is wrong, not where it was read."""


class Piece(NamedTuple):
    """A chunk and where it lies. `pack` is "" where the chunk is an object of its own, as it is.

    `stored` is the length of the zstd frame that it lies there as, 0 where it lies there as it is.
    """

    hash: str
    length: int
    pack: str = ""
    offset: int = 0
    stored: int = 0

    @property
    def object(self) -> str:
        """The hash that names the object the chunk is read from."""
        return self.pack or self.hash

    @property
    def end(self) -> int:
        """Where it ends in its object."""
        return self.offset + (self.stored or self.length)


class Entry(NamedTuple):
    """One entry of a bundle. `path` and `target` are as os.fsdecode gives them, `mtime` is in nanoseconds.

    `pieces` of a file of many chunks is a table.Pieces: it may read the store when it is looked into.
    """

    path: str
    type: str
    mode: int = 0
    mtime: int = 0
    size: int = 0
    pieces: Sequence[Piece] = ()
    target: str = ""

    @property
    def time(self) -> str:
        """The modification time as RFC 3339 in UTC, to the millisecond."""
        return format_time(self.mtime // 1_000_000)

    def as_json(self) -> dict[str, str | int]:
        """Return the entry as in a manifest, without its chunks: path and target are text, as `encode_path` writes them."""
        document: dict[str, str | int] = {"path": encode_path(self.path), "type": self.type, "mtime": self.mtime}
        if self.type == LINK:
            return document | {"target": encode_path(self.target)}
        return document | {"mode": self.mode} | ({"size": self.size} if self.type == FILE else {})


@value
class Bundle:
    """What a bundle's record says. Sizes are in bytes; `time` is RFC 3339 in UTC; `label` was asked for at the save."""

    repo: str
    id: str
    time: str
    message: str
    contributor: str
    label: str
    parent: str
    manifest: str
    manifest_bytes: int
    files: int
    directories: int
    links: int
    bytes: int
    stored: int
    skipped: int

    @property
    def reference(self) -> str:
        """The way to name exactly this bundle, REPO@ID; `parse_reference` reads it."""
        return f"{self.repo}@{self.id}"

    def as_json(self) -> dict[str, str | int]:
        """Return the record as a dictionary that json.dumps takes."""
        return asdict(self)


@value
class Move:
    """One move of a label: from `time` on it pointed at `bundle`."""

    repo: str
    label: str
    number: int
    bundle: str
    contributor: str
    time: str

    def as_json(self) -> dict[str, str | int]:
        """Return the record as a dictionary that json.dumps takes."""
        return asdict(self)


@value
class Announced:
    """What an announcement says: an "upload" or a "prune" is under way; it `expires` at so many milliseconds since 1970."""

    id: str
    kind: str
    repo: str
    who: str
    time: str
    expires: int


@value
class Change:
    """How an entry differs between two bundles; `before` or `after` is None where there is none."""

    path: str
    before: Entry | None
    after: Entry | None

    @property
    def what(self) -> str:
        """One of added, removed, changed (its content, target or type), touched (its mode or time)."""
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        one, other = self.before, self.after
        same = (one.type, one.size, one.target) == (other.type, other.size, other.target)
        return "touched" if same and _same_content(one.pieces, other.pieces) else "changed"

    def as_json(self) -> dict[str, Any]:
        """Return it as a dictionary that json.dumps takes; before and after are as in a manifest, None where there is none."""
        before, after = (each and each.as_json() for each in (self.before, self.after))
        return {"path": encode_path(self.path), "what": self.what, "before": before, "after": after}


def _same_content(one: Sequence[Piece], other: Sequence[Piece]) -> bool:
    """Say whether two lists of chunks are of the same bytes; those that were cut otherwise count as others."""
    if isinstance(one, Table) and isinstance(other, Table) and one.segments == other.segments:
        return True
    return len(one) == len(other) and all(mine.hash == theirs.hash for mine, theirs in zip(one, other, strict=True))


@value
class Repo:
    """What a repository's record says."""

    name: str
    description: str
    time: str

    def as_json(self) -> dict[str, str | int]:
        """Return the record as a dictionary that json.dumps takes."""
        return asdict(self)


# --- names, ids, times ---------------------------------------------------------------------------------------------


def check_name(what: str, name: str) -> str:
    """Return `name`, of a repository or label as `what` says; ParametersError where it cannot be one."""
    bad = next((c for c in name if not (c.isalnum() or c in "-_.+")), "")
    if not name:
        problem = "is empty"
    elif bad:
        problem = f"may hold letters, digits and - _ . + only, not {bad!r}"
    elif name[0] in ".-" or ".." in name:
        problem = "may not begin with '.' or '-' nor contain '..'"
    elif not unicodedata.is_normalized("NFC", name):
        problem = "is not in Unicode form NFC"
    elif len(name.encode()) > 100:
        problem = "is longer than 100 bytes"
    elif what == "label" and is_id(name):
        problem = "has the form of a bundle id, so no one could tell which is meant"
    else:
        return name
    raise ParametersError([Fault(f"{what} {name!r}", "", problem)])


def is_name(what: str, name: str) -> bool:
    """Say whether `check_name` would let `name` pass: other things may lie in a store (lost+found, .DS_Store)."""
    try:
        check_name(what, name)
    except ParametersError:
        return False
    return True


def check_text(what: str, text: str) -> str:
    """Return `text` as a record can hold it: bytes that are not UTF-8 are written as escapes. ParametersError where too long."""
    kept = text.encode("utf-8", "backslashreplace").decode()
    if len(kept.encode()) > LARGEST_TEXT:
        raise ParametersError([Fault(what, "", f"is longer than {LARGEST_TEXT} bytes")])
    return kept


def is_id(text: object) -> bool:
    """Say whether `text` has the form of a bundle id."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None and id_milliseconds(text) <= LATEST


def make_id(milliseconds: int, random: bytes) -> str:
    """Return the bundle id of a moment (milliseconds since 1970) and 10 random bytes."""
    number = milliseconds << 80 | int.from_bytes(random)
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def id_milliseconds(bundle: str) -> int:
    """Return the moment that a bundle id carries, in milliseconds since 1970."""
    number = 0
    for digit in bundle:
        number = number << 5 | _ALPHABET.index(digit)
    return number >> 80


def format_time(milliseconds: int) -> str:
    """Return milliseconds since 1970 as RFC 3339 in UTC."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"


def object_name(hash_: str) -> str:
    """Return where an object lies in the store."""
    return f"objects/{hash_[:2]}/{hash_}"


def manifest_name(hash_: str) -> str:
    """Return where a manifest lies in the store."""
    return f"manifests/{hash_[:2]}/{hash_}"


def bundle_name(repo: str, bundle: str) -> str:
    """Return where a bundle's record lies in the store."""
    return f"repos/{repo}/bundles/{bundle}"


def announcement_name(id_: str) -> str:
    """Return where it is said that an upload or a prune is under way."""
    return f"uploads/{id_}"


def move_name(repo: str, label: str, number: int) -> str:
    """Return where one move of a label lies in the store."""
    return f"repos/{repo}/labels/{label}/{number:08d}"


def move_number(name: str) -> int:
    """Return the number of the move whose record's name ends in `name`; 0 where that is no number."""
    return int(name) if _NUMBER.fullmatch(name) else 0


# --- byte strings as text ------------------------------------------------------------------------------------------


def encode_path(path: str) -> str:
    """Return a path, as os.fsdecode gives it, as text without surrogates: bytes that are not UTF-8 and '%' as %XX."""
    if "%" in path:
        path = path.replace("%", "%25")
    if path.isascii():
        return path
    raw = path.encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "percent-xx")


def decode_path(text: str) -> str:
    """Return the path that `encode_path` wrote so; Malformed where it cannot have written this."""
    if "%" not in text and text.isascii():
        return text
    raw = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), text.encode())
    path = raw.decode("utf-8", "surrogateescape")
    # Two spellings of one name would be two names to whoever compares text, and one to the kernel.
    if encode_path(path) != text:
        raise Malformed(f"{text!r} is not how its bytes are written")
    return path


def _as_percent(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    bad = error.object[error.start : error.end]
    return "".join(f"%{byte:02X}" for byte in bad), error.end


codecs.register_error("percent-xx", _as_percent)


# --- records -------------------------------------------------------------------------------------------------------


def canonical(document: Mapping[str, Any]) -> bytes:
    """Return the one way to write a document of strings, integers, lists and dictionaries."""
    return _text(document).encode()


def encode_record(document: Mapping[str, Any]) -> bytes:
    """Return a record's two lines: the document, and its hash."""
    line = canonical(document)
    return line + b"\n" + blake3(line).hexdigest().encode() + b"\n"


def decode_record(data: bytes) -> dict[str, Any]:
    """Return the document of a record; Malformed where it is not what was written."""
    line, _, rest = data.partition(b"\n")
    if rest != blake3(line).hexdigest().encode() + b"\n":
        raise Malformed("its second line is not the hash of its first")
    document = _parse(line)
    # One way to write it: no key twice, no surrogates that could not be printed, nothing that another reader sees otherwise.
    try:
        written = canonical(document)
    except ValueError as error:
        raise Malformed(f"it is not canonical JSON: {error}") from None
    if written != line:
        raise Malformed("it is not canonical JSON")
    return document


def _parse(data: bytes) -> dict[str, Any]:
    try:
        # Decoded here: given bytes, json.loads guesses at UTF-16 and UTF-32, and lets surrogates pass.
        document = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Malformed("it is not a JSON object")
    return document


def encode_format() -> bytes:
    """Return the record that makes a tree a store."""
    return encode_record({"format": "sidecar-store", "version": VERSION})


def decode_repo(data: bytes, name: str) -> Repo:
    """Return what the record of repository `name` says; Malformed where it is another's or damaged."""
    fields = _fields(data, {"description": str, "name": str, "time": str})
    return Repo(**_same(fields, name=name))


def decode_bundle(data: bytes, repo: str, bundle: str) -> Bundle:
    """Return what the record of a bundle says; Malformed where it is another's or damaged."""
    kinds: dict[str, type] = {"stored": int, "skipped": int, "manifest_bytes": int}
    kinds |= dict.fromkeys(("files", "directories", "links", "bytes"), int)
    kinds |= dict.fromkeys(("repo", "id", "time", "message", "contributor", "label", "parent", "manifest"), str)
    found = Bundle(**_same(_fields(data, kinds), repo=repo, id=bundle))
    if not _HASH.fullmatch(found.manifest) or found.manifest_bytes > LARGEST_MANIFEST:
        raise Malformed("its manifest has no hash, or an impossible size")
    return found


def decode_move(data: bytes, repo: str, label: str, number: int) -> Move:
    """Return what the record of one move of a label says; Malformed where it is another's or damaged."""
    kinds = {"repo": str, "label": str, "number": int, "bundle": str, "contributor": str, "time": str}
    found = Move(**_same(_fields(data, kinds), repo=repo, label=label, number=number))
    if not is_id(found.bundle):
        raise Malformed(f"{found.bundle!r} is not a bundle id")
    return found


def decode_announcement(data: bytes, id_: str) -> Announced:
    """Return what the record of an announcement says; Malformed where it is another's or damaged."""
    kinds = {"id": str, "kind": str, "repo": str, "who": str, "time": str, "expires": int}
    found = Announced(**_same(_fields(data, kinds), id=id_))
    if found.expires > LATEST:
        raise Malformed("it expires when no one is left to care")
    return found


def _fields(data: bytes, kinds: Mapping[str, type]) -> dict[str, Any]:
    document = decode_record(data)
    for key, kind in kinds.items():
        value = document.get(key)
        # type(), not isinstance(): to Python, true is an integer.
        if type(value) is not kind or (type(value) is int and value < 0):
            raise Malformed(f"its {key!r} is missing or not of its type")
    return {key: document[key] for key in kinds}


def _same(fields: dict[str, Any], **expected: str | int) -> dict[str, Any]:
    """A record that was copied to another name hashes well, and is a lie: what it says it is must be where it lies."""
    for key, said in expected.items():
        if fields[key] != said:
            raise Malformed(f"it says {key} {fields[key]!r} and lies where {said!r} belongs")
    return fields


# --- manifests -----------------------------------------------------------------------------------------------------


class Segment(NamedTuple):
    """A part of a file's list of chunks: how many, how many bytes of the file they are, and the chunk that holds the list."""

    chunks: int
    size: int
    piece: Piece


class Table(Sequence[Piece]):
    """The list of a file's chunks where it is not in the manifest: its segments are read when they are looked into."""

    segments: tuple[Segment, ...]


MakeTable = Callable[[str, tuple[Segment, ...]], Table]


class Base(NamedTuple):
    """The manifest that another one is told as a difference from, and its length."""

    hash: str
    bytes: int


class Manifest(NamedTuple):
    """What a manifest says: all entries or, where it has a base, those that differ from it, and the paths that are gone."""

    entries: tuple[Entry, ...]
    base: Base | None = None
    removed: tuple[str, ...] = ()


def difference(entries: Sequence[Entry], base: Base, before: Iterable[Entry]) -> Manifest:
    """Return `entries` as a manifest that tells how they differ from those of `base`."""
    old = {entry.path: entry for entry in before}
    changed = tuple(entry for entry in entries if old.pop(entry.path, None) != entry)
    return Manifest(changed, base, tuple(old))


def apply(manifest: Manifest, before: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return all entries of a manifest that has a base with the entries `before`. Malformed where they are no tree."""
    entries = {entry.path: entry for entry in before}
    for path in manifest.removed:
        if entries.pop(path, None) is None:
            raise Malformed(f"it removes {path!r}, which its base has not")
    entries |= {entry.path: entry for entry in manifest.entries}
    merged = tuple(sorted(entries.values(), key=lambda entry: entry.path.encode("utf-8", "surrogateescape")))
    _check_tree(merged)
    return merged


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest, whose entries are ascending by the bytes of their paths."""
    packs: dict[str, int] = {}
    entries = ",".join([_entry_text(entry, packs) for entry in manifest.entries])
    members = {"entries": f"[{entries}]", "packs": _text(list(packs)), "version": _text(VERSION)}
    if manifest.base is not None:
        members |= {"base": _text(list(manifest.base)), "removed": _text(list(map(encode_path, manifest.removed)))}
    return ("{" + ",".join(f'"{name}":{members[name]}' for name in sorted(members)) + "}").encode()


def _entry_text(entry: Entry, packs: dict[str, int]) -> str:
    """Return an entry as `canonical` would write it, in a third of the time; of 20,000 files that is a tenth of their saving."""
    if entry.type != FILE:
        return _text(entry.as_json())
    said = f'"mode":{entry.mode},"mtime":{entry.mtime},"path":{_text(encode_path(entry.path))},"size":{entry.size}'
    if isinstance(entry.pieces, Table):
        segments = [f"[{each.chunks},{each.size},{_piece_text(each.piece, packs)}]" for each in entry.pieces.segments]
        return f'{{{said},"table":[{",".join(segments)}],"type":"file"}}'
    chunks = [f"[{_piece_text(piece, packs)}]" for piece in entry.pieces]
    return f'{{"data":[{",".join(chunks)}],{said},"type":"file"}}'


def _piece_text(piece: Piece, packs: dict[str, int]) -> str:
    hash_, length, pack, offset, stored = piece
    if not pack:
        return f'"{hash_}",{length}'
    number = packs.setdefault(pack, len(packs))
    return f'"{hash_}",{length},{number},{offset},{stored}' if stored else f'"{hash_}",{length},{number},{offset}'


def decode_manifest(data: bytes, make_table: MakeTable) -> Manifest:
    """Return what a manifest says. Malformed where a path leaves the top, or anything else is not as it must be.

    `make_table` returns what stands for the chunks of a file, given its path and segments; it may read them later.
    """
    document = _parse(data)
    try:
        packs = document["packs"]
        if document["version"] != VERSION:
            raise Malformed(f"its version is {document['version']!r}, not {VERSION}")
        for pack in packs:
            _check_hash(pack)
        entries = tuple([_entry(each, packs, make_table) for each in document["entries"]])
        base = _base(document["base"]) if "base" in document else None
        removed = tuple(map(decode_path, document["removed"])) if base is not None else ()
    except Malformed:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise Malformed(f"it is not a manifest: {type(error).__name__} {error}") from None
    if base is None:
        _check_tree(entries)
    elif len({entry.path for entry in entries} | {*removed}) != len(entries) + len(removed):
        raise Malformed("it says two things of one path")
    return Manifest(entries, base, removed)


def _base(document: Sequence[Any]) -> Base:
    hash_, length = document
    _check_hash(hash_)
    if _number(length) > LARGEST_MANIFEST:
        raise Malformed("its base has an impossible size")
    return Base(hash_, length)


def _entry(document: Mapping[str, Any], packs: Sequence[str], make_table: MakeTable) -> Entry:
    kind, path, mtime = document["type"], decode_path(document["path"]), _number(document["mtime"], signed=True)
    if kind == LINK:
        target = decode_path(document["target"])
        if not target or "\0" in target:
            raise Malformed(f"the link {path!r} points nowhere")
        return Entry(path, LINK, 0, mtime, 0, (), target)
    mode = _number(document["mode"])
    if mode > 0o7777:
        raise Malformed(f"the mode of {path!r} has more than twelve bits")
    if kind == DIRECTORY:
        return Entry(path, DIRECTORY, mode, mtime)
    if kind != FILE:
        raise Malformed(f"{path!r} is of unknown type {kind!r}")
    if ("data" in document) == ("table" in document):
        raise Malformed(f"the file {path!r} has not one of 'data' and 'table'")
    size = _number(document["size"])
    pieces: Sequence[Piece]
    if "table" in document:
        segments = tuple(_segment(each, packs) for each in document["table"])
        total, pieces = sum(segment.size for segment in segments), make_table(path, segments)
    else:
        pieces = tuple([_piece(chunk, packs) for chunk in document["data"]])
        total = sum([piece.length for piece in pieces])
    if size != total:
        raise Malformed(f"the chunks of {path!r} do not add up to its size")
    return Entry(path, FILE, mode, mtime, size, pieces)


def _segment(document: Sequence[Any], packs: Sequence[str]) -> Segment:
    count, size = _number(document[0]), _number(document[1])
    if not 0 < count <= LARGEST_SEGMENT or not count <= size <= count * LARGEST_CHUNK:
        raise Malformed(f"{document!r} is not a segment of a table")
    return Segment(count, size, _piece(document[2:], packs))


def _piece(chunk: Sequence[Any], packs: Sequence[str]) -> Piece:
    count = len(chunk)
    if count not in (2, 4, 5):
        raise Malformed(f"{chunk!r} is not a chunk")
    hash_, length = chunk[0], chunk[1]
    if type(length) is not int or not 0 < length <= LARGEST_CHUNK:
        raise Malformed(f"{chunk!r} is not a chunk")
    _check_hash(hash_)
    if count == 2:
        return Piece(hash_, length)
    pack, offset, stored = chunk[2], chunk[3], 0
    if type(pack) is not int or pack < 0 or type(offset) is not int or offset < 0:
        raise Malformed(f"{chunk!r} lies nowhere")
    if count == 5:
        stored = chunk[4]
        if type(stored) is not int or not 0 < stored < length:
            raise Malformed(f"{chunk!r} is longer compressed than not")
    if offset + (stored or length) > LARGEST_OBJECT:
        raise Malformed(f"{chunk!r} lies beyond the end of any object")
    return Piece(hash_, length, packs[pack], offset, stored)


def _number(value: Any, *, signed: bool = False) -> int:
    if type(value) is not int or not (-(1 << 63) if signed else 0) <= value < 1 << 63:
        raise Malformed(f"{value!r} is not a number of 63 bits")
    return value


def _check_hash(value: Any) -> None:
    # Hashes become names in the store: one of the form ../../x must not.
    if type(value) is not str or not _HASH.fullmatch(value):
        raise Malformed(f"{value!r} is not a hash")


def _check_tree(entries: Sequence[Entry]) -> None:
    before = b""
    directories = {""}
    for entry in entries:
        path = entry.path
        raw = path.encode("utf-8", "surrogateescape")
        if raw <= before:
            raise Malformed(f"{path!r} is empty, twice there or out of order")
        parent, _, name = path.rpartition("/")
        if name in ("", ".", "..") or "\0" in name or path == RESERVED:
            raise Malformed(f"{path!r} is not a path below the top")
        # Each parent passed this very check, so no part of a path is `..` and none is a link or a file.
        if parent not in directories or path.startswith("/"):
            raise Malformed(f"{path!r} lies in no directory of the manifest")
        if entry.type == DIRECTORY:
            directories.add(path)
        before = raw
