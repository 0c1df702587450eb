"""Times and sizes as people write them, which are the same in every command."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cli.arguments import parse_size
from sidecar.cli.measures import seconds, size
from sidecar.errors import UsageError

UNITS = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0), ("5000", 5000), ("5000B", 5000), ("5 B", 5), ("500M", 500_000_000), ("10GB", 10_000_000_000),
        ("10GiB", 10 << 30), ("10 gib", 10 << 30), (" 1.5k ", 1500), ("0.5KiB", 512), ("1T", 10**12), ("1.9", 1),
    ],
)  # fmt: skip
def test_a_size_is_in_powers_of_1000_or_with_an_i_of_1024(text: str, expected: int) -> None:
    assert size(text, "--keep") == expected
    assert parse_size(text) == expected


@given(st.integers(0, 8000), st.sampled_from(sorted(UNITS)), st.sampled_from(["", "B", "b"]), st.sampled_from(["", " "]))
def test_a_whole_number_of_a_unit_is_that_many(number: int, unit: str, bytes_: str, space: str) -> None:
    assert size(f"{number}{space}{unit}{bytes_}", "--keep") == number * UNITS[unit]


@pytest.mark.parametrize(
    "text",
    ["", " ", "B", "k", "KiB", "-1", "+1", "1e3", "1,5k", ".5k", "1.2.3", "0x10", "1 0", "1i", "5iB", "1X", "1kk", "1Bk", "5BB",
     "nan", "inf", "9" * 16, "much"],
)  # fmt: skip
def test_what_is_no_size_is_misuse_and_is_told(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        size(text, "--keep")
    assert str(refused.value) == f"--keep expects a size like 500M, 10G or 10GiB, not {text!r}"
    with pytest.raises(click.BadParameter) as told:
        parse_size(text)
    assert told.value.message == f"expected a size like 500M, 10G or 10GiB, not {text!r}"


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200), ("1.5h", 5400), ("7d", 604800)]
)
def test_a_time_is_in_seconds_or_as_its_unit_says(text: str, expected: float) -> None:
    assert seconds(text, "--grace") == expected


@pytest.mark.parametrize("text", ["", "s", "-1s", "1y", "nan", "inf", "1e10", "two"])
def test_what_is_no_time_is_misuse_and_is_told(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        seconds(text, "--grace")
    assert str(refused.value) == f"--grace expects a time like 90, 90s, 15m or 2h, not {text!r}"
