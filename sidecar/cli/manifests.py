"""Manifests as YAML, that every reader reads as it was meant, and people can read.

Readers differ in what a plain text is: `y` is a boolean in YAML 1.1, `0o17` a number in YAML 1.2, and what Go's reader, which is
kubectl's, takes for a number is a matter of its version. PyYAML quotes only what it would read otherwise itself. So all texts are
quoted but those that nobody takes for anything else: words and paths, options, and quantities.
"""

from __future__ import annotations

import re
import sys
from typing import Any, TextIO

import yaml

_PLAIN = re.compile(r"(--?)?[A-Za-z][ -~]*|--|/[ -~]*|[1-9][0-9]*([ms]|[KMGT]i)")
_OTHERWISE = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "inf", "infinity", "nan"}
# PyYAML would write them as they are, and readers make another break of them, or none.
_BREAKS = re.compile("[\x85\u2028\u2029]")


def print_yaml(document: object, file: TextIO | None = None) -> None:
    """Print a manifest, on stdout unless there is a `file`."""
    yaml.dump(document, file or sys.stdout, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=130)


class _Dumper(yaml.SafeDumper):
    """Writes each thing where it stands, not as an alias of another, and texts of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style: str | None = "'"
    if _BREAKS.search(text):
        style = '"'
    elif "\n" in text:
        style = "|"
    elif _PLAIN.fullmatch(text) and text.lstrip("-").lower() not in _OTHERWISE:
        style = None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent)
