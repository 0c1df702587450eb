"""The format of the store, sidecar/store/README.md, held from outside.

The stores in `golden` were written once, by `write_golden`, and are never written again: what is in them must be readable for
ever, and the code must go on writing the same bytes. `read_store` and `write_store` are a second implementation, made from
README.md with nothing but json, struct, zstandard and blake3; what one writes the other must read.
"""

from __future__ import annotations

import json
import os
import re
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import Corrupt, ParametersError
from sidecar.store import Reference, open_store, parse_reference
from sidecar.store.format import (
    LARGEST_TEXT,
    LATEST,
    Malformed,
    Piece,
    Segment,
    apply,
    check_text,
    decode_bundle,
    decode_manifest,
    decode_path,
    decode_record,
    encode_path,
    encode_record,
    id_milliseconds,
    is_id,
    make_id,
)
from sidecar.store.table import Chunks, Pieces
from sidecar.store.table import decode as decode_table
from sidecar.testing import read_tree

GOLDEN = Path(__file__).parent / "golden" / "store"
GOLDEN_COMPRESSED = GOLDEN.with_name("store-compressed")  # only read: zstd may write other frames one day
MOMENT = 1_767_322_800_123  # 2026-01-02T03:00:00.123Z


# --- a second implementation, from README.md alone -------------------------------------------------------------------


def hash_of(data: bytes) -> str:
    return blake3(data).hexdigest()


def canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def record(path: Path) -> dict[str, Any]:
    first, second, rest = path.read_bytes().split(b"\n")
    assert (second.decode(), rest) == (hash_of(first), b"")
    document: dict[str, Any] = json.loads(first)
    assert canonical(document) == first
    return document


def as_bytes(text: str) -> bytes:
    return re.sub(rb"%([0-9A-F]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode())


def read_store(store: Path, repo: str, label: str) -> dict[bytes, tuple[Any, ...]]:
    """Return what the bundle at a label holds: by path, its type, and what a reader gets of it."""
    assert record(store / "format") == {"format": "sidecar-store", "version": 1}
    number = max(os.listdir(store / "repos" / repo / "labels" / label), key=int)
    move = record(store / "repos" / repo / "labels" / label / number)
    bundle = record(store / "repos" / repo / "bundles" / move["bundle"])
    return read_manifest(store, bundle["manifest"], bundle["manifest_bytes"])


def read_manifest(store: Path, name: str, length: int) -> dict[bytes, tuple[Any, ...]]:
    data = inflate((store / "manifests" / name[:2] / name).read_bytes())
    assert (len(data), hash_of(data)) == (length, name)
    manifest = json.loads(data)
    assert manifest["version"] == 1
    tree = read_manifest(store, *manifest["base"]) if "base" in manifest else {}
    for path in manifest.get("removed", ()):
        del tree[as_bytes(path)]
    return tree | {as_bytes(entry["path"]): said(entry, manifest["packs"], store / "objects") for entry in manifest["entries"]}


def inflate(frame: bytes) -> bytes:
    data: bytes = zstandard.ZstdDecompressor().decompress(frame)
    assert zstandard.frame_content_size(frame) == len(data)
    return data


def said(entry: dict[str, Any], packs: list[str], objects: Path) -> tuple[Any, ...]:
    if entry["type"] == "link":
        return "link", entry["mtime"], as_bytes(entry["target"])
    if entry["type"] == "directory":
        return "directory", oct(entry["mode"]), entry["mtime"]
    chunks = entry["data"] if "data" in entry else [c for each in entry["table"] for c in chunks_of(each, packs, objects)]
    content = b"".join(chunk_at(chunk, objects) for chunk in named(chunks, packs))
    assert len(content) == entry["size"]
    return "file", oct(entry["mode"]), entry["mtime"], content


def named(chunks: list[list[Any]], packs: list[str]) -> list[list[Any]]:
    return [[*chunk[:2], packs[chunk[2]], *chunk[3:]] if len(chunk) > 2 and type(chunk[2]) is int else chunk for chunk in chunks]


def chunks_of(segment: list[Any], packs: list[str], objects: Path) -> list[list[Any]]:
    """Return the chunks that a segment of a table lists, with the names of their objects."""
    count, size, *chunk = segment
    data = chunk_at(named([chunk], packs)[0], objects)
    n, p = struct.unpack_from("<II", data)
    names = [data[8 + 32 * i :][:32].hex() for i in range(p)]
    lengths, stored, places, offsets = (
        struct.unpack_from(f"<{n}{kind}", data, 8 + 32 * p + at * n) for kind, at in (("I", 0), ("I", 4), ("I", 8), ("Q", 12))
    )
    hashes = [data[8 + 32 * p + 20 * n + 32 * i :][:32].hex() for i in range(n)]
    assert (n, sum(lengths), len(data)) == (count, size, 8 + 32 * p + 52 * n)
    return [
        [hashes[i], lengths[i], *((names[places[i]], offsets[i], stored[i]) if places[i] != 2**32 - 1 else ())] for i in range(n)
    ]


def chunk_at(chunk: list[Any], objects: Path) -> bytes:
    hash_, length, name, offset, stored = [*chunk, chunk[0], 0, 0][:5] if len(chunk) == 2 else [*chunk, 0][:5]
    whole = (objects / name[:2] / name).read_bytes()
    assert hash_of(whole) == name
    data = whole[offset:][: stored or length]
    assert len(data) == (stored or length)
    data = inflate(data) if stored else data
    assert (len(data), hash_of(data)) == (length, hash_)
    return data


def write_store(store: Path, files: dict[str, bytes], id_: str) -> None:
    """Write a store with one bundle `data@main`: files at the top, a chunk each, the manifest at a level that we do not use."""

    def put(path: str, data: bytes) -> None:
        (store / path).parent.mkdir(parents=True, exist_ok=True)
        (store / path).write_bytes(data)

    def say(path: str, **keys: Any) -> None:
        line = canonical(keys)
        put(path, line + b"\n" + hash_of(line).encode() + b"\n")

    entries = []
    for name, content in sorted(files.items(), key=lambda each: each[0].encode()):
        hash_ = hash_of(content)
        put(f"objects/{hash_[:2]}/{hash_}", content)
        data = [[hash_, len(content)]] if content else []
        entries.append({"path": name, "type": "file", "mode": 0o600, "mtime": 10**18, "size": len(content), "data": data})
    manifest = canonical({"entries": entries, "packs": [], "version": 1})
    name = hash_of(manifest)
    put(f"manifests/{name[:2]}/{name}", zstandard.ZstdCompressor(level=19).compress(manifest))
    now = "2026-01-02T03:00:00.123Z"
    say("format", format="sidecar-store", version=1)
    say("repos/data/repo", description="", name="data", time=now)
    size = sum(map(len, files.values()))
    counts = {"files": len(files), "directories": 0, "links": 0, "skipped": 0, "stored": size, "bytes": size}
    texts = {"message": "", "contributor": "", "label": "", "parent": "", "a key of the future": "ignored"}
    where = {"repo": "data", "id": id_, "time": now, "manifest": name, "manifest_bytes": len(manifest)}
    say(f"repos/data/bundles/{id_}", **counts, **texts, **where)
    say("repos/data/labels/main/00000001", repo="data", label="main", number=1, bundle=id_, contributor="", time=now)


def tree_at(top: Path) -> dict[bytes, tuple[Any, ...]]:
    tree = {os.fsencode(path): what for path, what in read_tree(str(top)).items()}
    return {path: (*what[:2], os.fsencode(what[2])) if what[0] == "link" else what for path, what in tree.items()}


# --- the golden store ------------------------------------------------------------------------------------------------


def make_tree(top: Path, more: bytes = b"") -> None:
    """Make the tree of the golden store: each kind of entry, and names that are no text."""
    (top / "empty directory").mkdir(parents=True)
    (top / "sub").mkdir()
    (top / "sub" / "large").write_bytes(bytes(range(256)) * 20 + more)
    (top / "sub" / "small").write_bytes(b"small" + more)
    (top / "same").write_bytes(b"small" + more)
    (top / "empty").touch()
    (top / "run").write_bytes(b"#!/bin/sh\n")
    (top / "link").symlink_to("sub/100%")
    (top / os.fsdecode(b"\xff\n%")).write_bytes(b"odd")
    (top / "épée").write_bytes(b"a name of two scripts")
    modes = {"run": 0o755, "sub": 0o2750, "empty directory": 0o555}
    for number, path in enumerate(sorted(top.rglob("*"), key=os.fsencode, reverse=True)):
        if not path.is_symlink():
            path.chmod(modes.get(path.name, 0o644))
        os.utime(path, ns=(0, MOMENT * 1_000_000 - number * 10**15), follow_symlinks=False)


def write_golden(where: Path, monkeypatch: pytest.MonkeyPatch, *, compressed: bool = False) -> None:
    """Write the golden store below `where`: three bundles, each on top of the one before, and a label that was moved back.

    The manifest of the third tells how it differs from that of the second.
    """
    moments, numbers = iter(range(MOMENT, MOMENT + 100)), iter(range(100))
    monkeypatch.setattr("sidecar.store.bundles._now", lambda: next(moments))
    monkeypatch.setattr("sidecar.store.bundles._random", lambda: bytes([next(numbers)]) * 10)
    # Small enough to be kept here; how files are cut is not of the format.
    monkeypatch.setattr("sidecar.store.upload.CHUNK", 4096)
    monkeypatch.setattr("sidecar.store.upload.SMALL", 1024)
    monkeypatch.setattr("sidecar.store.upload.SMALLEST_CUT", 1)
    if not compressed:
        # The frames of another release of zstd may be others, and so the names of what holds them.
        monkeypatch.setattr("sidecar.store.upload.compress", lambda data: None)
    store = open_store(str(where / "store"))
    store.create_repo("weather", "daily\n\u2028observations")
    make_tree(where / "tree")
    by = "Someone <s@example.org>"
    first = store.save(where / "tree", "weather", label="latest", message="first", contributor=by, chunk_size=cut)
    make_tree(where / "tree2", b", and more")
    store.save(where / "tree2", "weather", label="latest", message='second: "\x7f\x01', chunk_size=cut)
    store.set_label("weather", "latest", first.id)
    make_tree(where / "tree3", b", and more")
    (where / "tree3" / "run").write_bytes(b"#!/bin/zsh\n")
    os.utime(where / "tree3" / "run", ns=(0, MOMENT))
    (where / "tree3" / "empty").unlink()
    store.save(where / "tree3", "weather", label="next", chunk_size=cut)


def cut(path: str, size: int) -> int:
    """Have one file in so many chunks that it has a table."""
    return 64 if path == "sub/large" else 0


def contents(store: Path) -> dict[str, bytes]:
    """Return every file of a store by its name. Manifests are inflated: their level is free, and zstd's output its own affair."""
    found = {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}
    return {name: inflate(data) if name.startswith("manifests/") else data for name, data in found.items()}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patched:
        write_golden(tmp_path, patched)
    return tmp_path


def test_the_bytes_that_are_written_are_those_of_the_golden_store(written: Path) -> None:
    assert contents(written / "store") == contents(GOLDEN)


def test_a_manifest_is_canonical_like_every_other_document(written: Path) -> None:
    manifests = [data for name, data in contents(written / "store").items() if name.startswith("manifests/")]
    assert len(manifests) == 3
    for data in manifests:
        assert canonical(json.loads(data)) == data


@pytest.mark.parametrize("golden", [GOLDEN, GOLDEN_COMPRESSED])
def test_the_golden_stores_are_read(golden: Path, written: Path) -> None:
    store = open_store(str(golden))
    first, second, third = store.bundles("weather")
    assert store.resolve("weather", label="latest") == first
    assert [move.bundle for move in store.label_history("weather", "latest")] == [first.id, second.id, first.id]
    assert (first.time, first.message, second.parent) == ("2026-01-02T03:00:00.125Z", "first", first.id)
    assert third.manifest_bytes < second.manifest_bytes / 2
    for bundle, tree in ((first, "tree"), (second, "tree2"), (third, "tree3")):
        assert store.verify(bundle) == bundle.bytes
        store.populate(bundle, written / "back" / tree)
        # A set-group-id bit is kept in the store and does not come back.
        assert read_tree(str(written / "back" / tree)) == read_tree(str(written / tree))
    assert {entry.mode for entry in store.manifest(first) if entry.path == "sub"} == {0o2750}


@pytest.mark.parametrize("golden", [GOLDEN, GOLDEN_COMPRESSED])
def test_a_reader_made_from_the_specification_reads_the_golden_stores(golden: Path, written: Path) -> None:
    for label, tree in (("latest", "tree"), ("next", "tree3")):
        read = read_store(golden, "weather", label)
        expected = tree_at(written / tree)
        assert read.pop(b"sub") == ("directory", "0o2750", expected.pop(b"sub")[2])
        assert read == expected
        assert b"\xff\n%" in read


def test_every_name_in_the_golden_stores_is_the_hash_of_what_it_names() -> None:
    for name, data in [*contents(GOLDEN).items(), *contents(GOLDEN_COMPRESSED).items()]:
        if name.startswith(("objects/", "manifests/")):
            _, two, hash_ = name.split("/")
            assert (two, hash_) == (hash_[:2], hash_of(data))


# --- each reads what the other writes --------------------------------------------------------------------------------

NAMES = st.binary(min_size=1, max_size=8).filter(lambda name: not {*b"/\0"} & {*name} and name not in (b".", b".."))


@given(files=st.dictionaries(NAMES, st.binary(max_size=5000), max_size=6), links=st.dictionaries(NAMES, NAMES, max_size=2))
@settings(max_examples=20, deadline=None)
def test_a_reader_made_from_the_specification_reads_what_we_write(files: dict[bytes, bytes], links: dict[bytes, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        (top / "tree").mkdir()
        for name, content in files.items():
            (top / "tree" / os.fsdecode(name)).write_bytes(content)
        for name, target in links.items():
            with suppress(FileExistsError):
                (top / "tree" / os.fsdecode(name)).symlink_to(os.fsdecode(target))
        open_store(str(top / "store")).save(top / "tree", "data", label="main")
        assert read_store(top / "store", "data", "main") == tree_at(top / "tree")


def test_we_read_what_a_writer_made_from_the_specification_writes(tmp_path: Path) -> None:
    files = {"a": b"hello", "b": b"", "é%25": b"x" * 3_000_000}
    write_store(tmp_path / "store", files, "01kdy9eyr00000000000000000")
    store = open_store(str(tmp_path / "store"))
    bundle = store.resolve("data", label="main")
    assert store.verify(bundle) == 3_000_005
    store.populate(bundle, tmp_path / "back")
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == {
        "a": b"hello",
        "b": b"",
        "é%": b"x" * 3_000_000,
    }


def test_we_go_on_where_another_writer_left_off(tmp_path: Path) -> None:
    write_store(tmp_path / "store", {"a": b"hello"}, "01kdy9eyr00000000000000000")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_bytes(b"hello")
    (tmp_path / "tree" / "b").write_bytes(b"new")
    bundle = open_store(str(tmp_path / "store")).save(tmp_path / "tree", "data", label="main")
    assert (bundle.parent, bundle.stored) == ("01kdy9eyr00000000000000000", 3)
    assert read_store(tmp_path / "store", "data", "main") == tree_at(tmp_path / "tree")


def test_a_manifest_that_another_compressed_otherwise_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    store = open_store(str(tmp_path / "store"))
    bundle = store.save(tmp_path / "tree", "data")
    path = tmp_path / "store" / "manifests" / bundle.manifest[:2] / bundle.manifest
    path.chmod(0o644)
    path.write_bytes(zstandard.ZstdCompressor(level=19).compress(inflate(path.read_bytes())))
    before = path.stat().st_ino, path.read_bytes()
    assert store.save(tmp_path / "tree", "data").manifest == bundle.manifest
    assert (path.stat().st_ino, path.read_bytes()) == before


# --- what is refused -------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {
        "path": st.sampled_from(["a", "..", "a/b", "%", "%FF", ""]) | JSON,
        "type": st.sampled_from(["file", "link", "directory"]) | JSON,
    },
    optional={
        "mode": st.integers() | JSON,
        "mtime": st.integers() | JSON,
        "size": st.integers(0, 9) | JSON,
        "target": st.text(max_size=3) | JSON,
        "data": st.lists(st.lists(JSON, max_size=5), max_size=2) | JSON,
        "table": st.lists(st.lists(JSON, max_size=7), max_size=2) | JSON,
    },
)
MANIFESTS = st.fixed_dictionaries(
    {"version": st.just(1) | JSON, "packs": st.lists(st.just("0" * 64), max_size=2) | JSON, "entries": st.lists(ENTRIES) | JSON},
    optional={"base": st.just(["0" * 64, 5]) | JSON, "removed": st.lists(st.sampled_from(["a", "..", "/"]) | JSON) | JSON},
)

BYTES = st.binary(max_size=200) | JSON.map(lambda each: json.dumps(each).encode())


def no_table(path: str, segments: tuple[Segment, ...]) -> Pieces:
    return Pieces(segments, lambda segment: Chunks())


@given(BYTES | MANIFESTS.map(lambda each: json.dumps(each).encode()))
def test_whatever_the_bytes_they_are_a_manifest_or_malformed_and_nothing_else_happens(data: bytes) -> None:
    with suppress(Malformed):
        manifest = decode_manifest(data, no_table)
        for entry in manifest.entries if manifest.base is None else apply(manifest, ()):
            assert not entry.path.startswith("/")
            assert not {"", ".", ".."} & set(entry.path.split("/"))


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda data: struct.pack("<II", 1, 1) + data), st.integers(1, 3))
def test_whatever_the_bytes_they_are_a_table_or_malformed_and_nothing_else_happens(data: bytes, count: int) -> None:
    with suppress(Malformed):
        decode_table(data, Segment(count, 5, Piece("0" * 64, len(data))))


def test_a_table_is_what_was_written_and_one_chunk_at_a_wrong_place_makes_it_none() -> None:
    chunks = Chunks()
    for piece in (Piece("1" * 64, 7), Piece("2" * 64, 9, "3" * 64, 5), Piece("4" * 64, 9, "3" * 64, 14, 2)):
        chunks.append(piece)
    segment = Segment(3, 25, Piece("0" * 64, 1))
    again = decode_table(chunks.encode(), segment)
    assert [again[number] for number in range(3)] == [chunks[number] for number in range(3)]
    for wrong in (Piece("1" * 64, 7, "3" * 64, 1 << 40), Piece("1" * 64, 7, "3" * 64, 0, 7)):
        chunks.append(wrong)
        with pytest.raises(Malformed):
            decode_table(chunks.encode(), Segment(4, 32, segment.piece))
        chunks = decode_table(again.encode(), segment)
    for claimed in (segment._replace(chunks=2), segment._replace(size=24)):
        with pytest.raises(Malformed):
            decode_table(again.encode(), claimed)


@given(BYTES, st.booleans())
def test_whatever_the_bytes_they_are_a_record_or_malformed_and_nothing_else_happens(data: bytes, signed: bool) -> None:
    whole = data + b"\n" + hash_of(data).encode() + b"\n" if signed else data
    for decode in (decode_record, lambda raw: decode_bundle(raw, "data", "0" * 26)):
        with suppress(Malformed):
            decode(whole)


@pytest.mark.parametrize(
    "line",
    [
        b'{"a":1,"a":1}',
        b'{"b":1,"a":1}',
        b'{"a": 1}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\u0041"}',
        '{"a":1}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{",
        b"[]",
    ],
)
def test_a_record_that_is_not_canonical_is_refused_although_its_hash_is_right(line: bytes) -> None:
    with pytest.raises(Malformed):
        decode_record(line + b"\n" + hash_of(line).encode() + b"\n")


def test_a_chunk_beyond_any_end_is_refused() -> None:
    chunk = ["0" * 64, 5, 0, 2**63 - 1]
    entry = {"path": "a", "type": "file", "mode": 0, "mtime": 0, "size": 5, "data": [chunk]}
    with pytest.raises(Malformed, match="beyond"):
        decode_manifest(canonical({"version": 1, "packs": ["0" * 64], "entries": [entry]}), no_table)


def test_a_record_longer_than_any_is_not_read_to_its_end(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.create_repo("data")
    path = tmp_path / "store" / "repos" / "data" / "repo"
    path.chmod(0o644)
    path.write_bytes(encode_record({"name": "data", "description": "x" * (1 << 21), "time": ""}))
    with pytest.raises(Corrupt, match="repos/data/repo"):
        store.repos()


def test_a_text_too_long_for_a_record_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ParametersError, match="message"):
        open_store(str(tmp_path / "store")).save(tmp_path, "data", message="x" * (LARGEST_TEXT + 1))
    assert not (tmp_path / "store").exists()
    assert check_text("message", os.fsdecode(b"a\xff")) == "a\\udcff"


# --- names -----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=20))
def test_a_byte_string_is_written_as_text_in_one_way_only(raw: bytes) -> None:
    path = raw.decode("utf-8", "surrogateescape")
    text = encode_path(path)
    assert decode_path(text) == path
    assert as_bytes(text) == raw
    text.encode()


@pytest.mark.parametrize("text", ["%", "%2", "%zz", "%ff", "%41", "%C3%A9", "\ud800", "%00%"])
def test_a_second_way_to_write_a_byte_string_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_path(text)


@given(st.integers(0, LATEST), st.binary(min_size=10, max_size=10))
def test_an_id_sorts_by_its_time_and_is_of_its_form(milliseconds: int, random: bytes) -> None:
    id_ = make_id(milliseconds, random)
    assert is_id(id_)
    assert id_milliseconds(id_) == milliseconds
    assert make_id(milliseconds + 1, b"\0" * 10) > id_


def test_an_id_later_than_the_year_9999_is_none() -> None:
    assert not is_id(make_id(LATEST + 1, bytes(10)))
    assert not is_id("7" + "z" * 25)


ID = "01kdy9eyr00000000000000000"


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("weather", Reference("weather")),
        ("weather@latest", Reference("weather", "latest")),
        (f"weather@{ID}", Reference("weather", "", ID)),
        (f"weather@{ID[:-1]}", Reference("weather", ID[:-1])),
        ("météo@v1.2+x", Reference("météo", "v1.2+x")),
    ],
)
def test_a_bundle_is_named_by_its_repository_and_a_label_or_its_id(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize("text", ["", "@", "a@", "@b", "a@b@c", "a:b", "a/b", "../a", "a@..", "a@-b", "a b", "a\n", "a@b:c"])
def test_what_names_no_bundle_is_told_with_what_was_expected(text: str) -> None:
    with pytest.raises(ParametersError, match="expected REPO, REPO@LABEL or REPO@BUNDLE-ID"):
        parse_reference(text)


def test_a_label_that_could_be_taken_for_an_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParametersError, match="bundle id"):
        open_store(str(tmp_path / "store")).save(tmp_path, "data", label=ID)
