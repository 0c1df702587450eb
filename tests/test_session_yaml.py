"""Manifests as YAML: whoever reads them, with the rules of YAML 1.1, of YAML 1.2 or of Go, reads the texts that were written."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.cli.manifests import print_yaml

# What one of the readers takes for a boolean, null, a number, a time, or a sign of YAML's own.
OTHERWISE = (
    "y", "Y", "yes", "Yes", "YES", "n", "N", "no", "No", "NO", "on", "On", "ON", "off", "Off", "OFF", "true", "True", "TRUE",
    "tRue", "false", "False", "FALSE", "null", "Null", "NULL", "nUll", "~", "<<", "=", "1", "-1", "+1", "1e3", "1E3", "12e4",
    "1e+3", "1.e5", "+.5e3", "1_0e2", "12e03", "1_000", "1.", ".5", "-.5", "08", "0_8", "017", "0o17", "0o8", "0x1F", "0x1p4",
    "0b1", "-0b1", "1e", "0x", "inf", "Inf", "INF", "infinity", "-inf", "-Infinity", "+inf", "nan", "NaN", "-nan", ".inf",
    ".Inf", "-.inf", "+.INF", ".NaN", ".nan", "1:20", "190:20:30", "-1:20.5", "2001-12-14", "2001-12-14T21:59:43Z",
    "12345678-1234-5678-9abc-123456789012", "12345678e1234567", "---", "...",
)  # fmt: skip
# What people would not quote, and need not.
PLAIN = (
    "fuse",
    "-c",
    "--populate",
    "--",
    "/",
    "/sidecar/wrapper",
    "localhost/sidecar/wrapper:0.1.0",
    "50s",
    "100m",
    "512Mi",
    "-nk2",
)
WORDS = re.compile(r"[-+.]*(y|n|yes|no|on|off|true|false|null|none|inf|infinity|nan)", re.I)
FIRST = re.compile(r"/|[a-z]|--?[a-z]|--$|[1-9][0-9]*([ms]|[KMGT]i)$", re.I)

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.text("0123456789eExXoObB+-._yYnNinfaINFA:ptT~", max_size=8),
    st.text("ab -:#'\"|>\t\n\x85\u2028é", max_size=200),
    st.sampled_from(OTHERWISE),
)


def printed(document: Any) -> str:
    out = io.StringIO()
    print_yaml(document, out)
    return out.getvalue()


def plain(text: str) -> list[str]:
    """Return the scalars of a document that stand there without quotes, and not as a block."""
    return [token.value for token in yaml.scan(text) if isinstance(token, yaml.ScalarToken) and token.plain]


@pytest.mark.parametrize("text", OTHERWISE)
def test_what_any_reader_takes_for_something_else_is_quoted_as_a_value_and_as_a_key(text: str) -> None:
    assert printed({text: [text]}) == f"'{text}':\n- '{text}'\n"


@pytest.mark.parametrize("text", PLAIN)
def test_what_nobody_takes_for_anything_else_stands_as_it_is(text: str) -> None:
    assert printed([text]) == f"- {text}\n"


@settings(max_examples=400, deadline=None)
@given(texts)
@example("a\n\x85b")
@example("\u2028")
def test_every_text_is_read_as_it_was_written_and_without_quotes_only_where_it_can_be_nothing_else(text: str) -> None:
    document = {text: [text, {"key": text}]}
    made = printed(document)
    assert yaml.safe_load(made) == document
    for each in plain(made):
        assert FIRST.match(each), each
        assert not WORDS.fullmatch(each), each
        assert each.isascii()


def test_a_text_of_several_lines_stands_as_such() -> None:
    assert printed({"script": "set -e\ncd /x\nexec run"}) == "script: |-\n  set -e\n  cd /x\n  exec run\n"


def test_numbers_and_truths_that_are_meant_stay_what_they_are() -> None:
    assert printed({"user": 10001, "hardened": True}) == "user: 10001\nhardened: true\n"
    assert yaml.safe_load(printed({"user": 10001, "name": "10001"})) == {"user": 10001, "name": "10001"}
