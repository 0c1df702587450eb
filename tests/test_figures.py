"""Figures for people: amounts, shares, counts and lengths of time, as every command prints them."""

from __future__ import annotations

import pytest

from sidecar.figures import amount, counted, duration, share


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1234, "1.2 kB"),
        (99_949, "99.9 kB"),
        (99_951, "100 kB"),
        (340_000_000_000, "340 GB"),
        (1_500_000, "1.5 MB"),
        (2_500_000_000_000, "2.5 TB"),
        (7_000_000_000_000_000, "7.0 PB"),
        (5_000_000_000_000_000_000, "5000 PB"),
        (1.5, "2 B"),
    ],
)
def test_an_amount_has_three_digits_and_a_unit_of_powers_of_1000(count: float, said: str) -> None:
    assert amount(count) == said


@pytest.mark.parametrize("power", range(1, 6))
def test_just_below_a_unit_an_amount_is_in_the_unit_below_and_never_1000_of_it(power: int) -> None:
    unit = ("B", "kB", "MB", "GB", "TB", "PB")
    assert amount(999 * 1000 ** (power - 1)) == f"999 {unit[power - 1]}"
    assert amount(1000**power - 1) == ("999 B" if power == 1 else f"1.0 {unit[power]}")
    assert amount(1000**power) == f"1.0 {unit[power]}"


@pytest.mark.parametrize(
    ("done", "total", "said"),
    [
        (0, 0, "0 B"),
        (1200, 0, "1.2 kB"),
        (0, 4_800_000, "0 B of 4.8 MB (0 %)"),
        (1_200_000, 4_800_000, "1.2 MB of 4.8 MB (25 %)"),
        (999, 1000, "999 B of 1.0 kB (99 %)"),
        (1000, 1000, "1.0 kB of 1.0 kB (100 %)"),
        (5, -1, "5 B"),
    ],
)
def test_a_share_tells_how_much_of_what_and_is_100_percent_only_when_all_is_done(done: int, total: int, said: str) -> None:
    assert share(done, total) == said


@pytest.mark.parametrize(("count", "said"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (1000, "1000 files")])
def test_one_thing_is_singular(count: int, said: str) -> None:
    assert counted(count, "file") == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 ms"),
        (0.0004, "0 ms"),
        (0.0041, "4 ms"),
        (0.999, "999 ms"),
        (0.9996, "1.0 s"),
        (1.24, "1.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (60, "1 min 0 s"),
        (184, "3 min 4 s"),
        (3599, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (172_799, "47 h 59 min"),
        (172_800, "2 d 0 h"),
        (360_000, "4 d 4 h"),
    ],
)
def test_a_length_of_time_is_in_the_units_that_a_person_would_use(seconds: float, said: str) -> None:
    assert duration(seconds) == said
