"""The serialized dictionary: what it means, what is none, and that writing and reading it are inverse."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ParametersError
from sidecar.parameters.dictionary import decode, encode

Options = dict[str, str | Literal[True]]

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
# Few characters, so that values, options and separators meet.
CROWDED = st.text("ab;:|,.= \n'", max_size=6)
OPTIONS = st.dictionaries((TEXT | CROWDED).filter(bool), TEXT | CROWDED | st.just(True), max_size=8)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (";:a;b:c", {"a": True, "b": "c"}),
        (",=a=1,b", {"a": "1", "b": True}),
        ("|/sp/tmp/mount|x", {"sp": "tmp/mount", "x": True}),
        (";:url:http://x:80/", {"url": "http://x:80/"}),
        (";:a:", {"a": ""}),
        (";:a::", {"a": ":"}),
        (";:", {}),
        (";:a;", {"a": True}),
        (";:a;b:c;", {"a": True, "b": "c"}),
        (";:a.b:c.d", {"a.b": "c.d"}),
        ("\n\ta\tb", {"a": "b"}),
        ("éèaèb", {"a": "b"}),
        ("01c1/tmp/coord0S", {"c": "/tmp/coord", "S": True}),
    ],
)
def test_a_dictionary_is_read_by_the_separators_that_it_begins_with(text: str, options: Options) -> None:
    assert decode(text) == options


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ["where: the entry separator is missing at character 1: expected something like ';:a;b:c'"]),
        (";", ["where: the key-value separator is missing at character 2: expected something like ';:a;b:c'"]),
        (";;a", ["where: both separators are ';': expected another one at character 2"]),
        (".:a", ["where: '.' at character 1 cannot be a separator"]),
        (";.a", ["where: '.' at character 2 cannot be a separator"]),
        (";:a;a:b", ["where: a: given at character 3 and again at character 5"]),
        (";::x", ["where: the option at character 3 has no name"]),
        (";:;", ["where: the option at character 3 has no name", "where: the option at character 4 has no name"]),
        (";:a;;b", ["where: the option at character 5 has no name"]),
        (";:a;;", ["where: the option at character 5 has no name", "where: the option at character 6 has no name"]),
        (
            ";:a;:b;c;a:d",
            ["where: the option at character 5 has no name", "where: a: given at character 3 and again at character 10"],
        ),
    ],
)
def test_every_fault_is_told_with_its_position(text: str, faults: list[str]) -> None:
    with pytest.raises(ParametersError) as caught:
        decode(text, "where")
    assert [str(fault) for fault in caught.value.faults] == faults
    assert caught.value.status == 65


@given(OPTIONS)
def test_what_is_written_is_read_again(options: Options) -> None:
    assert decode(encode(options)) == options
    assert list(decode(encode(options))) == list(options)


@given(OPTIONS)
def test_separators_occur_in_no_option_and_no_value(options: Options) -> None:
    text = encode(options)
    entry, pair = text[0], text[1]
    assert entry != pair
    assert "." not in (entry, pair)
    for name, value in options.items():
        assert entry not in name
        assert pair not in name
        if value is not True:
            assert entry not in value
            assert pair not in value


@given(TEXT | CROWDED)
def test_any_text_is_a_dictionary_or_an_error(text: str) -> None:
    try:
        options = decode(text)
    except ParametersError:
        return
    assert decode(encode(options)) == options


def test_the_usual_separators_are_written_where_they_can_be() -> None:
    assert encode({"a": True, "b": "c"}) == ";:a;b:c"
    assert encode({}) == ";:"
    assert encode({"c": "a;b"}) == ":|c|a;b"


def test_what_cannot_be_written_is_an_error() -> None:
    everything = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
    with pytest.raises(ParametersError, match="x: cannot be serialized: its options and values use every character"):
        encode({"a": everything}, "x")
    with pytest.raises(ParametersError, match="x: an option has no name"):
        encode({"": "a"}, "x")


def test_a_value_may_hold_the_pair_separator_where_no_other_character_is_left() -> None:
    all_but_one = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000)))).replace(";", "")
    assert decode(encode({"a": all_but_one})) == {"a": all_but_one}
