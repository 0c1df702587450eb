"""What pg_control says, against what pg_controldata of the same version says of the same file."""

from __future__ import annotations

import base64
import re
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.batteries.postgres.control import SIZE, Malformed, crc32c, decode_control


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
