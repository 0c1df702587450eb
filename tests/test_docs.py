"""The README is true: each command in it is run as printed, and what it prints stands there.

Blocks of the language `console` are run, in order, in one directory of their own with a home of their own. In what they print,
ids, times, durations and temporary places are made equal first. Which of the lines come by which `sidecar run` tells how far it
is depends on how fast the machine is; each must be one that the README shows.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MADE_EQUAL = (
    (r"\b[0-9a-hjkmnp-tv-z]{26}\b", "ID"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
    (r"\b[\d.]+ (ms|s)\b", "T"),
    (r"/tmp/sidecar-\w+", "KEPT"),
    (r" {2,}", "  "),
)
LIVE = re.compile(r"sidecar: (application|fuse): ")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language in the README."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


def examples() -> list[tuple[str, str]]:
    """Return each command of the README and what it is said to print."""
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, printed = part.partition("\n")
            found.append((command, printed))
    return found


def equal(text: str, place: Path) -> tuple[list[str], set[str]]:
    """Return the lines of a text without what differs from run to run, sorted, for two streams have no order; live ones apart."""
    for folder, name in (("work", "/tmp/example"), ("home", "/home/you"), ("tmp", "/tmp")):
        text = text.replace(str(place / folder), name)
    for pattern, name in MADE_EQUAL:
        text = re.sub(pattern, name, text)
    lines = [line.rstrip() for line in text.splitlines()]
    return sorted(line for line in lines if not LIVE.match(line)), {line for line in lines if LIVE.match(line)}


def run(command: str, place: Path) -> str:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "LC_ALL": "C.UTF-8",
    }
    # Not a shell for each: what one of them starts in the background must be waited for.
    done = subprocess.run(
        ["bash", "-c", f"{command}\nwait"],
        cwd=place / "work",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    return done.stdout


def test_what_the_readme_prints_is_what_its_commands_print(tmp_path: Path) -> None:
    for name in ("work", "home", "tmp"):
        (tmp_path / name).mkdir()
    pending = ""
    for command, printed in examples():
        if command.endswith("&"):
            pending = command + "\n"
            continue
        said = run(pending + command, tmp_path)
        pending = ""
        (lines, live), (shown, shown_live) = equal(said, tmp_path), equal(printed, tmp_path)
        assert lines == shown, f"$ {command}\n{said}"
        assert live <= shown_live, f"$ {command}\n{said}"


def test_the_readme_has_examples() -> None:
    assert len(examples()) > 10


@pytest.mark.parametrize("page", ["README.md", "DESIGN.md", "CHANGELOG.md", "wrappers/README.md", "sidecar/store/README.md"])
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


def test_every_make_target_that_is_named_exists() -> None:
    named = {a or b for a, b in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", (ROOT / "README.md").read_text(), re.M)}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert named <= targets
