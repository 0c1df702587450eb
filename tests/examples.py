"""What makes the manifests of `k8s-examples/`: the commands that the page of each folder shows.

    python tests/examples.py    writes all of them anew, in place; `make examples` is this

They stand in blocks of the language `console`, and are run in the page's folder by bash, with the commands of this environment
first on the path. None prints anything: each writes a manifest into the folder. What `>` empties before its command has failed is
a file of a copy: a manifest is replaced, and at once, when all commands have ended well.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "k8s-examples"


def commands(page: Path) -> list[str]:
    """Return the commands that a page shows, those of several lines too."""
    blocks: list[str] = re.findall(r"^```console\n(.*?)^```$", page.read_text(), re.M | re.S)
    return [command.rstrip("\n") for block in blocks for command in re.split(r"^\$ ", block, flags=re.M)[1:]]


def run(page: Path) -> None:
    """Run the commands of a page in its folder; an AssertionError where one fails, or prints."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    for command in commands(page):
        words = ["bash", "-euo", "pipefail", "-c", command]
        done = subprocess.run(words, cwd=page.parent, env=environment, capture_output=True, text=True, timeout=120)
        said = done.stdout + done.stderr
        assert (done.returncode, said) == (0, ""), f"{page}: {command}\nends with {done.returncode}\n{said}"


def write(examples: Path = EXAMPLES) -> None:
    """Make the manifests of all pages anew; an AssertionError, and nothing is changed, where a command fails."""
    with tempfile.TemporaryDirectory(prefix="examples-") as place:
        copy = Path(place) / examples.name
        shutil.copytree(examples, copy)
        for page in sorted(copy.glob("*/README.md")):
            run(page)
        for made in sorted(copy.glob("*/*.yaml")):
            old = examples / made.relative_to(copy)
            if not old.exists() or old.read_bytes() != made.read_bytes():
                new = old.with_name(f".{old.name}")
                shutil.copyfile(made, new)
                new.replace(old)


if __name__ == "__main__":
    write()
