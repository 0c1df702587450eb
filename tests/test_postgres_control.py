"""What pg_control says, against what pg_controldata of the same version says of the same file; and clusters made of a copy."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import Cluster, installation, new_cluster, new_folder, run

from sidecar.batteries.postgres.control import SIZE, Malformed, crc32c, decode_control, wal_with_identity, with_identity


class Said(NamedTuple):
    """What pg_controldata prints."""

    system: int
    version: int
    catalog: int
    condition: str
    timeline: int
    redo_segment: str


# Clusters with page checksums and segments of 4 MiB: the beginning of the file, whose rest is zero bytes, and what is said of it.
SAMPLES = {
    "PostgreSQL 15, stopped": (
        "hC_o1%#Z<V6a@ePC3g)B0RR9100000%#Z<V000002o<yd000002o<yd000000RR910RR910RR9100000)B*qi000001T_Ev0RR91"
        "00000%mM%a0RR910RR910RR9100000%#Z<V0000000000000000000000000=mP)%00000000000000000000000000000000000"
        "0000000000000000RR9100000WB>pF2mk;83IG5A00000KmY&$000002mk;800000ht@Jd03ZMW0006203ZMW002M$KmY&$AOHXW"
        "%m)Af00;m80RR910RR91g&xTbW&*ulp^2-wWA^$4iNQR6YSw?<@lMqe#N!nkMDeRO00000",
        Said(7710603243042325382, 1300, 202209061, "shut down", 1, "000000010000000000000002"),
    ),
    "PostgreSQL 15, running": (
        "hC_o1%#Z<V6a@ePC3g)B1^@s600000&X56X00000U;sb?00000C;&hK000000RR910RR910RR9100000*8%_l000000AK(B0RR91"
        "00000%mM%a0RR910RR910RR9100000&X56X000000000000000*8%_l00000=mP)%00000000000000000000000000000000000"
        "0000000000000000RR9100000WB>pF2mk;83IG5A00000KmY&$000002mk;800000ht@Jd03ZMW0006203ZMW002M$KmY&$AOHXW"
        "%m)Af00;m80RR910RR91g&xTbW&*ulp^2-wWA^$4iNQR6YSw?<@lMqe#N!nk*!GKX00000",
        Said(7710603243042325382, 1300, 202209061, "in production", 1, "000000010000000000000005"),
    ),
    "PostgreSQL 15, crashed": (
        "hC_o1%#Z<V6a@ePC3g)B1^@s600000&X56X00000U;sb?00000C;&hK000000RR910RR910RR9100000*8%_l000000AK(B0RR91"
        "00000%mM%a0RR910RR910RR9100000&X56X000000000000000*8%_l00000=mP)%00000000000000000000000000000000000"
        "0000000000000000RR9100000WB>pF2mk;83IG5A00000KmY&$000002mk;800000ht@Jd03ZMW0006203ZMW002M$KmY&$AOHXW"
        "%m)Af00;m80RR910RR91g&xTbW&*ulp^2-wWA^$4iNQR6YSw?<@lMqe#N!nk*!GKX00000",
        Said(7710603243042325382, 1300, 202209061, "in production", 1, "000000010000000000000005"),
    ),
    "PostgreSQL 17, stopped": (
        "l;aw_%#Z<Vqy_*0iFptV0RR9100000&5!|W00000Kv=8*00000Kv=8*000000RR910RR910RR910RR91;sO8w00000<}m;O0RR91"
        "00000+5!Lo0RR910RR910RR9100000&5!|W0000000000000000000000000=mP)%00000000000000000000000000000000000"
        "0000000000000000RR9100000WB>pF2mk;83IG5A00000KmY&$000002mk;800000ht@Jd03ZMW0006203ZMW002M$KmY&$AOHXW"
        "%m)Af00;m80RR910RR91<d1Exb=!reh1Bqh5vasWa3^+?%u<e`TX1(5Tq`F_0E(Ji00000",
        Said(7710603246038606740, 1700, 202406281, "shut down", 1, "000000010000000000000002"),
    ),
    "PostgreSQL 18, stopped": (
        "qJs)?&5!|W2nPTFGXN3{0RR9100000&X56X00000X!NcC00000X!NcC000000RR910RR910RR910RR91@B#n;00000@G$@Y0RR91"
        "00000=mG!$0RR910RR910RR9100000&X56X0000000000000000000000000=mP)%00000000000000000000000000000000000"
        "0000000000000000RR9100000WB>pF2mk;83IG5A00000KmY&$000002mk;800000ht@Jd03ZMW0006203ZMW002M$KmY&$AOHXW"
        "%m)Af00;m80RR910RR910n%<-m8S{)US(I~ye=fz`Fci*%y{VA<19}%x<#x|JOBUyZ{<>v",
        Said(7710603249074209698, 1800, 202506291, "shut down", 1, "000000010000000000000002"),
    ),
    "PostgreSQL 18, running": (
        "qJs)?&5!|W2nPTFGXN3{1^@s600000&yWFY00000fB--N00000C;&hK000000RR910RR910RR910RR91^8x?>000000AK(B0RR91"
        "00000=mG!$0RR910RR910RR9100000&yWFY000000000000000^8x?>00000=mP)%00000000000000000000000000000000000"
        "0000000000000000RR9100000WB>pF2mk;83IG5A00000KmY&$000002mk;800000ht@Jd03ZMW0006203ZMW002M$KmY&$AOHXW"
        "%m)Af00;m80RR910RR910n%<-m8S{)US(I~ye=fz`Fci*%y{VA<19}%x<#x|JOBUy%LL|}",
        Said(7710603249074209698, 1800, 202506291, "in production", 1, "000000010000000000000005"),
    ),
}


def file_of(sample: str) -> bytes:
    return base64.b85decode(SAMPLES[sample][0]).ljust(SIZE, b"\0")


@pytest.mark.parametrize("sample", SAMPLES)
def test_what_it_says_is_what_pg_controldata_says(sample: str) -> None:
    said, found = SAMPLES[sample][1], decode_control(file_of(sample))
    assert (found.system, found.version, found.catalog) == said[:3]
    assert (found.condition, found.timeline, found.redo_segment) == said[3:]
    assert (found.block, found.segment, found.checksums) == (8192, 4 << 20, True)


@pytest.mark.parametrize("sample", SAMPLES)
def test_only_a_cluster_that_was_shut_down_is_clean(sample: str) -> None:
    assert decode_control(file_of(sample)).is_clean == sample.endswith("stopped")


@pytest.mark.parametrize("sample", SAMPLES)
def test_one_bit_that_is_another_makes_it_malformed_wherever_it_is(sample: str) -> None:
    data = file_of(sample)
    for at in range(292 if "18" in sample else 288):
        with pytest.raises(Malformed):
            decode_control(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])


@pytest.mark.parametrize("length", [0, 1, 296, SIZE - 1, SIZE + 1])
def test_a_file_of_another_length_is_malformed(length: int) -> None:
    with pytest.raises(Malformed, match=f"it has {length} bytes"):
        decode_control(file_of("PostgreSQL 15, stopped").ljust(length, b"\0")[:length])


@given(st.sampled_from(list(SAMPLES)), st.dictionaries(st.integers(0, 287), st.integers(0, 255), min_size=1, max_size=20))
def test_whatever_the_bytes_they_say_something_or_are_malformed(sample: str, changed: dict[int, int]) -> None:
    """Also where the checksum is right: whoever made the bundle can compute one."""
    data = bytearray(file_of(sample))
    for at, byte in changed.items():
        data[at] = byte
    at = 292 if "18" in sample else 288
    data[at : at + 4] = crc32c(bytes(data[:at])).to_bytes(4, "little")
    try:
        found = decode_control(bytes(data))
    except Malformed:
        return
    assert found.condition
    assert re.fullmatch("[0-9A-F]{24}", found.redo_segment)


def test_the_checksum_is_castagnolis() -> None:
    """The check value of CRC-32C, RFC 3720 appendix B.4."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


# --- real clusters -----------------------------------------------------------------------------------------------------

SETTINGS = {"max_connections": 41, "max_worker_processes": 7, "max_wal_senders": 5, "max_prepared_transactions": 3,
            "max_locks_per_transaction": 77}  # fmt: skip
SYSTEM, NONCE = 0x0123456789ABCDEF, bytes(range(32))


@pytest.fixture(scope="module", params=[12, 14, 15, 17, 18])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster of each major that has run with settings of its own, stopped cleanly."""
    major = request.param
    with new_cluster(installation(0 if major == 15 else major), "--wal-segsize=2") as made:
        with made.running(*(f"{name}={value}" for name, value in SETTINGS.items())):
            made.query("create table one as select i from generate_series(1, 1000) i")
        yield made


def control_file(cluster: Cluster) -> bytes:
    return (cluster.data / "global" / "pg_control").read_bytes()


def said(cluster: Cluster) -> dict[str, str]:
    """Return what pg_controldata says. With 12 it does not come; that of 15 reads the same layout."""
    of = cluster if cluster.installed.has("pg_controldata") else Cluster(installation(), cluster.data)
    lines = of.say("pg_controldata").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_what_it_says_of_a_real_cluster_is_what_pg_controldata_says(cluster: Cluster) -> None:
    told, found = said(cluster), decode_control(control_file(cluster))
    for name, value in {
        "Database system identifier": found.system,
        "pg_control version number": found.version,
        "Catalog version number": found.catalog,
        "Database cluster state": found.condition,
        "Latest checkpoint's REDO WAL file": found.redo_segment,
        "Latest checkpoint's TimeLineID": found.timeline,
        "Database block size": found.block,
        "Bytes per WAL segment": found.segment,
        "Data page checksum version": int(found.checksums),
        "Blocks per segment of large relation": found.relation_segment,
        "max_connections setting": found.max_connections,
        "max_worker_processes setting": found.max_workers,
        "max_wal_senders setting": found.max_senders,
        "max_prepared_xacts setting": found.max_prepared,
        "max_locks_per_xact setting": found.max_locks,
        "Mock authentication nonce": found.nonce.hex(),
    }.items():
        assert told[name] == str(value), name
    limits = (found.max_connections, found.max_workers, found.max_senders, found.max_prepared, found.max_locks)
    assert limits == tuple(SETTINGS.values())


def test_a_copy_with_an_identity_of_its_own_is_another_cluster_with_the_same_rows(cluster: Cluster) -> None:
    with new_folder() as folder:
        copy = Cluster(cluster.installed, folder / "data")
        run(["cp", "-a", str(cluster.data), str(copy.data)])
        found = decode_control(control_file(copy))
        (copy.data / "global" / "pg_control").write_bytes(with_identity(control_file(copy), SYSTEM, NONCE))
        assert decode_control(control_file(copy)).nonce == NONCE
        segment = copy.data / "pg_wal" / found.redo_segment
        with segment.open("r+b") as file:
            page = wal_with_identity(file.read(8192), SYSTEM)
            file.seek(0)
            file.write(page)
        told = said(copy)
        assert (told["Database system identifier"], told["Mock authentication nonce"]) == (str(SYSTEM), NONCE.hex())
        with copy.running():
            assert copy.query("select count(*) from one") == [(1000,)]
            assert copy.query("select system_identifier from pg_control_system()") == [(SYSTEM,)]
            copy.query("insert into one values (1); checkpoint")
        assert "recovery" not in copy.log
        assert decode_control(control_file(copy)).system == SYSTEM
        assert decode_control(control_file(cluster)).system == found.system != SYSTEM


def test_nothing_else_changes_with_the_identity(cluster: Cluster) -> None:
    data = control_file(cluster)
    found = decode_control(data)
    assert with_identity(data, found.system, found.nonce) == data
    changed = with_identity(data, SYSTEM, NONCE)
    assert len(changed) == SIZE
    assert with_identity(changed, found.system, found.nonce) == data


def test_a_damaged_control_file_gets_no_identity(cluster: Cluster) -> None:
    data = bytearray(control_file(cluster))
    data[100] ^= 1
    with pytest.raises(Malformed):
        with_identity(bytes(data), SYSTEM, NONCE)


def test_only_the_identity_of_a_log_changes(cluster: Cluster) -> None:
    found = decode_control(control_file(cluster))
    page = (cluster.data / "pg_wal" / found.redo_segment).read_bytes()[:8192]
    assert page[24:32] == struct.pack("<Q", found.system)
    assert wal_with_identity(page, SYSTEM) == page[:24] + struct.pack("<Q", SYSTEM) + page[32:]


def test_a_page_that_is_not_the_first_of_a_log_gets_no_identity(cluster: Cluster) -> None:
    log = (cluster.data / "pg_wal" / decode_control(control_file(cluster)).redo_segment).read_bytes()
    for page in (log[8192:16384], bytes(8192), log[:8191], b"", log[:2] + b"\0" + log[3:8192], b"\xff\xff" + log[2:8192]):
        with pytest.raises(Malformed):
            wal_with_identity(page, SYSTEM)


@pytest.mark.parametrize("sample", ["PostgreSQL 15, stopped", "PostgreSQL 18, stopped"])
@pytest.mark.parametrize(
    ("before_the_end", "names"),
    [
        (8193, ["000000010000000000000002"]),
        (8192, ["000000010000000000000002", "000000010000000000000003"]),
        (8, ["000000010000000000000002", "000000010000000000000003"]),
        (0, ["000000010000000000000003"]),
    ],
)
def test_a_checkpoint_at_the_end_of_a_segment_needs_the_next_one_as_well(
    sample: str, before_the_end: int, names: list[str]
) -> None:
    data = bytearray(file_of(sample))
    struct.pack_into("<Q", data, 40, (3 << 22) - before_the_end)
    assert list(decode_control(signed(data)).log_segments) == names


def test_the_names_of_segments_count_in_two_parts() -> None:
    """4 GiB hold 1024 segments of 4 MiB."""
    data = bytearray(file_of("PostgreSQL 15, stopped"))
    struct.pack_into("<Q", data, 40, (7 << 32) - 100)
    assert decode_control(signed(data)).log_segments == ("0000000100000006000003FF", "000000010000000700000000")


@pytest.mark.parametrize(("at", "number"), [(180, -1), (192, -2), (220, 0), (228, 3 << 20), (216, 100), (16, 7)])
def test_impossible_numbers_are_malformed(at: int, number: int) -> None:
    data = bytearray(file_of("PostgreSQL 15, stopped"))
    struct.pack_into("<i", data, at, number)
    with pytest.raises(Malformed):
        decode_control(signed(data))


def signed(data: bytearray) -> bytes:
    """Return a control file with the checksum of what is in it, wherever its version has that."""
    at = 292 if struct.unpack_from("<I", data, 8) == (1800,) else 288
    return bytes(data[:at]) + crc32c(bytes(data[:at])).to_bytes(4, "little") + bytes(data[at + 4 :])
