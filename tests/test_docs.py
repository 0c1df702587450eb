"""The README is true: each command in it is run as printed, and what it prints stands there.

Blocks of the language `console` are run, in order, in one directory of their own with a home of their own. Other blocks that
begin with `# NAME.EXTENSION` are files there. In what they print,
ids, times, durations and temporary places are made equal first. Which of the lines come by which `sidecar run` tells how far it
is depends on how fast the machine is; each must be one that the README shows.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
POSTGRES = "sidecar/batteries/postgres/README.md"
MADE_EQUAL = (
    (r"\b[0-9a-hjkmnp-tv-z]{26}\b", "ID"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
    (r"\b\d{4}-\d\d-\d\d [\d:]{8}\b", "TIME"),
    (r"\b[\d.]+ (ms|s)\b", "T"),
    (r"\bhost:[\w.-]+", "HOST"),
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


def files() -> dict[str, str]:
    """Return the files of the README, by name."""
    found = re.findall(r"^```(?:yaml|sh)\n# ([a-z]+\.[a-z]+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    return dict(found)


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
        "XDG_CACHE_HOME": str(place / "home" / ".cache"),
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


@pytest.fixture
def place() -> Iterator[Path]:
    # Not tmp_path: servers run as another account where the tests are root's, and it may not enter there.
    top = Path(tempfile.mkdtemp(prefix="docs-"))
    top.chmod(0o711)
    for name in ("work", "home", "tmp"):
        (top / name).mkdir()
    for name, text in files().items():
        (top / "work" / name).write_text(text.replace("/tmp/example", str(top / "work")))
    yield top
    shutil.rmtree(top)


def test_what_the_readme_prints_is_what_its_commands_print(place: Path) -> None:
    pending = ""
    for command, printed in examples():
        if command.endswith("&"):
            pending = command + "\n"
            continue
        said = run(pending + command, place)
        pending = ""
        (lines, live), (shown, shown_live) = equal(said, place), equal(printed, place)
        assert lines == shown, f"$ {command}\n{said}"
        assert live <= shown_live, f"$ {command}\n{said}"


def test_the_readme_has_examples() -> None:
    assert len(examples()) > 10


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "DESIGN.md",
        "CHANGELOG.md",
        "wrappers/README.md",
        "sidecar/once/README.md",
        "sidecar/store/README.md",
        "batteries/function/README.md",
        POSTGRES,
    ],
)
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


def test_every_make_target_that_is_named_exists() -> None:
    named = {a or b for a, b in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", (ROOT / "README.md").read_text(), re.M)}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert named <= targets
