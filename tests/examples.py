"""What makes the manifests of `k8s-examples/`: the commands that the page of each folder shows.

    python tests/examples.py    writes all of them anew, in place; `make examples` is this

They stand in blocks of the language `console`, and are run in the page's folder by bash, with the commands of this environment
first on the path. None prints anything: each writes a manifest into the folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
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


if __name__ == "__main__":
    for each in sorted(EXAMPLES.glob("*/README.md")):
        run(each)
