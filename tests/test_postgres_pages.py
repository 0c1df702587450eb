"""Which pages are not what PostgreSQL wrote, against what its own pg_checksums says of the same files."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import Cluster, installation, new_cluster, new_folder, run

from sidecar.batteries.postgres.contents import relation_block
from sidecar.batteries.postgres.control import Control, decode_control
from sidecar.batteries.postgres.pages import _STARTS as STARTS
from sidecar.batteries.postgres.pages import Pages, check
from sidecar.errors import NotSaved
from sidecar.values import replace

PAGE = 8192


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster with a table of a megabyte and its forks, stopped cleanly."""
    with new_cluster(installation()) as made:
        with made.running():
            made.query("create table one as select i, md5(i::text) as text from generate_series(1, 15000) i")
            made.query("create index on one (text)")
            made.query("create unlogged table two as select i from generate_series(1, 10) i")
            made.query("vacuum one")
        yield made


@pytest.fixture(scope="module")
def control(cluster: Cluster) -> Control:
    return decode_control((cluster.data / "global" / "pg_control").read_bytes())


@pytest.fixture(scope="module")
def table(cluster: Cluster) -> Path:
    """The largest file of a relation."""
    return max(relations(cluster.data), key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def pages(table: Path) -> bytes:
    return table.read_bytes()


def relations(data: Path) -> list[Path]:
    paths = [Path(folder, name) for folder, _, names in os.walk(data) for name in names]
    return [path for path in paths if relation_block(str(path.relative_to(data))) is not None]


def flipped(data: bytes, *bits: int) -> memoryview:
    changed = bytearray(data)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return memoryview(changed).toreadonly()


def test_every_page_of_a_healthy_cluster_is_right(cluster: Cluster) -> None:
    files = relations(cluster.data)
    assert sum(path.stat().st_size for path in files) > 20 << 20
    assert {re.sub("[0-9.]", "", path.name) for path in files} == {"", "_fsm", "_vm", "_init"}
    for path in files:
        assert check(memoryview(path.read_bytes()), 0) == [], path


@pytest.mark.parametrize("major", [12, 14, 17, 18])
def test_every_page_of_every_major_is_right(major: int) -> None:
    with new_cluster(installation(major)) as made:
        assert sum(path.stat().st_size for path in relations(made.data)) > 15 << 20
        for path in relations(made.data):
            assert check(memoryview(path.read_bytes()), 0) == [], path


def test_the_pages_that_pg_checksums_finds_are_found(cluster: Cluster, table: Path) -> None:
    """Some in the middle, the first and the last one of a file; also in a second segment, which begins at block 131072."""
    name = table.relative_to(cluster.data)
    with new_folder() as folder:
        copy = Cluster(cluster.installed, folder / "data")
        run(["cp", "-a", cluster.data, copy.data])
        pages = bytearray(table.read_bytes())
        last = len(pages) // PAGE - 1
        for page in (0, 5, 77, last):
            pages[page * PAGE + 100 + page] ^= 4
        (copy.data / name).write_bytes(pages)
        (copy.data / f"{name}.1").write_bytes(table.read_bytes())
        shutil.copystat(table, copy.data / f"{name}.1")
        os.chown(copy.data / f"{name}.1", table.stat().st_uid, table.stat().st_gid)
        said = pg_checksums(copy)
        assert set(said[str(name)]) == {0, 5, 77, last}
        assert check(memoryview(pages), 0) == sorted(said[str(name)])
        # The same bytes elsewhere: the number of the block is in the checksum.
        assert check(memoryview(table.read_bytes()), 131072) == sorted(131072 + block for block in said[f"{name}.1"])
        assert len(said[f"{name}.1"]) == last + 1


def pg_checksums(cluster: Cluster) -> dict[str, list[int]]:
    """Return what it says of a cluster: by file, the pages counted from its beginning."""
    with pytest.raises(AssertionError) as failed:
        cluster.say("pg_checksums", "--check")
    found: dict[str, list[int]] = {}
    for path, block in re.findall(r'failed in file "(.*?)", block ([0-9]+):', str(failed.value)):
        found.setdefault(os.path.relpath(path, cluster.data), []).append(int(block))
    return found


@given(st.integers(), st.integers(0, 2**32 - 1), st.integers(1, 65535))
def test_of_any_page_at_any_number_one_checksum_alone_is_right(seed: int, number: int, said: int) -> None:
    page = bytearray(random.Random(seed).randbytes(PAGE))
    right = checksum(page, number)
    page[8:10] = right.to_bytes(2, "little")
    assert check(memoryview(page), number) == []
    page[8:10] = said.to_bytes(2, "little")
    assert check(memoryview(page), number) == ([] if said == right else [number])


def checksum(page: bytearray, number: int) -> int:
    """Return the checksum of a page, a number at a time."""
    words = [*struct.unpack("<2048I", page), *[0] * 64]
    words[2] &= 0xFFFF0000
    folded = number
    for column, state in enumerate(STARTS.tolist()):
        for word in words[column::32]:
            mixed = state ^ word
            state = (mixed * 16777619 ^ mixed >> 17) & 0xFFFFFFFF
        folded ^= state
    return folded % 65535 + 1


def test_pages_of_zeros_are_new_and_right() -> None:
    assert check(memoryview(bytes(700 * PAGE)), 3) == []


def test_a_page_that_says_it_is_new_and_is_not_of_zeros_is_wrong(cluster: Cluster) -> None:
    """The server refuses it, too; pg_checksums does not look at it."""
    assert check(flipped(bytes(3 * PAGE), 8 * PAGE + 8 * 4000), 10) == [11]


def test_a_part_of_a_page_at_the_end_is_passed_over_as_servers_do(pages: bytes) -> None:
    assert check(memoryview(pages)[: 3 * PAGE - 1], 0) == []
    assert check(memoryview(flipped(pages, 8 * PAGE))[: 3 * PAGE + 1], 0) == [1]
    assert check(memoryview(b"x"), 7) == []
    assert check(memoryview(b""), 0) == []


def test_a_view_may_begin_at_any_page_and_any_address(pages: bytes) -> None:
    whole = flipped(pages, 8 * (40 * PAGE + 3))
    shifted = memoryview(b"\0\0\0" + whole)[3:]
    for view in (whole, shifted):
        assert check(view[9 * PAGE : 50 * PAGE], 9) == [40]


def test_more_pages_than_are_done_at_a_time_are_all_looked_at(pages: bytes) -> None:
    count = 1100
    some = (pages[:PAGE] + bytes(PAGE)) * (count // 2)
    assert check(memoryview(some), 0) == [number for number in range(count) if number and not number % 2]


def test_the_last_block_that_there_can_be_is_right_as_well(pages: bytes) -> None:
    assert check(memoryview(bytes(2 * PAGE)), 2**32 - 2) == []


def test_what_is_corrupt_is_not_saved_and_told_with_its_page(control: Control, pages: bytes) -> None:
    """At once where there are many pages; those of small files are looked at together, in the end at the latest."""
    inspect = Pages(control)
    inspect("base/5/16384", 0, memoryview(pages))
    with pytest.raises(NotSaved, match=r"^page 12 of base/5/16384 is corrupt: .*pg_dump"):
        inspect("base/5/16384", 8 * PAGE, flipped(pages, 8 * PAGE * 12)[8 * PAGE :])
    inspect("base/5/16384.2", 6 * PAGE, memoryview(random.Random(1).randbytes(PAGE)))
    with pytest.raises(NotSaved, match=r"^page 262150 of base/5/16384.2 is corrupt"):
        inspect.finish()


def test_of_many_corrupt_pages_a_few_are_named(control: Control, pages: bytes) -> None:
    for count in (8, 200):
        wrong = memoryview(random.Random(1).randbytes(count * PAGE))
        with pytest.raises(NotSaved, match=rf"^pages 1, 2, 3, 4, 5 and {count - 5} more of base/5/16384_vm are corrupt"):
            look_at(Pages(control), [("base/5/16384_vm", PAGE, wrong)])


@pytest.mark.parametrize("victim", [0, 1, 99, 511, 512, 599])
def test_a_page_of_any_of_many_small_files_is_found_and_told_with_its_file(control: Control, pages: bytes, victim: int) -> None:
    """Files of a page, two or three, whose first one is not that of their relation; more than are looked at together."""
    files = []
    for file in range(600):
        some = flipped(pages, 8 * PAGE * (5 + file % 3) + 999) if file == victim else memoryview(pages)
        files.append((f"base/5/{20000 + file}", 5 * PAGE, some[5 * PAGE : (6 + file % 3) * PAGE]))
    with pytest.raises(NotSaved, match=rf"^page {5 + victim % 3} of base/5/{20000 + victim} is corrupt"):
        look_at(Pages(control), files)


def look_at(pages: Pages, files: Iterable[tuple[str, int, memoryview]]) -> None:
    """Have files inspected in memory that is used again for each, as those who read them do."""
    room = bytearray()
    for path, offset, view in files:
        room[:] = view
        with memoryview(room) as again:
            pages(path, offset, again.toreadonly())
    pages.finish()


def test_small_files_that_are_right_are_right_together(control: Control, cluster: Cluster) -> None:
    files = [(str(path.relative_to(cluster.data)), 0, memoryview(path.read_bytes())) for path in relations(cluster.data)]
    look_at(Pages(control), files)


@pytest.mark.parametrize(
    "path", ["PG_VERSION", "global/pg_control", "global/pg_filenode.map", "base/5/PG_VERSION", "pg_xact/0000"]
)
def test_what_is_no_relation_is_not_looked_at(control: Control, path: str) -> None:
    inspect = Pages(control)
    inspect(path, 0, memoryview(b"anything" * PAGE))
    inspect.finish()


def test_a_cluster_without_checksums_is_not_looked_at(control: Control) -> None:
    inspect = Pages(replace(control, checksums=False))
    inspect("base/5/16384", 0, memoryview(b"anything" * PAGE))
    inspect.finish()
