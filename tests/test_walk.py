"""The run that wrappers/README.md walks through is one that happens: what the files hold after each step is what stands there.

    python tests/test_walk.py      prints the blocks anew

Each step shows what is new or has changed, without ids, times and places. The battery is held (SIGSTOP) where a step would pass
too fast to be seen.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from processes import BIN, Pod, until

from sidecar.coordination.signals import Directory
from sidecar.store import open_store

PAGE = Path(__file__).parent.parent / "wrappers" / "README.md"
SECTION = "## A run, step by step"
# What of a record a reader of the walk has use for; the rest of it stands in the table of its keys.
TOLD = ("state", "started", "exit", "saved", "error")
OF_A_BUNDLE = ("repo", "label", "bundle")


def walk(folder: Path) -> list[dict[str, str]]:
    """Run an application with a fuse battery, and return what the coordination directory holds after each step."""
    for name in ("source", "in", "out"):
        (folder / name).mkdir()
    (folder / "source" / "week.csv").write_text("mon,12\ntue,19\n")
    open_store(f"file://{folder}/store").save(folder / "source", "weather", label="latest")
    found = []
    with Pod(folder) as pod:
        script = f"cp {folder}/in/week.csv {folder}/out && until [ -e {folder}/go ]; do sleep 0.01; done"
        application = pod.wrap("-b", "fuse", "--", "sh", "-c", script)
        pod.hear_state("waiting")
        found.append(shown(pod.coord))
        bring = f"bundle mount --repo weather --label latest --mount {folder}/in"
        keep = f"bundle upload --path {folder}/out --repo results --label daily --message 'the week again'"
        battery = pod.start(
            BIN / "wrap_datamon", "-c", pod.coord, "--store", f"file://{folder}/store", "--populate", "-d", bring, "-d", keep
        )
        pod.hear_state("running")
        until(lambda: (folder / "out" / "week.csv").exists(), "the command runs", pod)
        battery.send(signal.SIGSTOP)
        found.append(shown(pod.coord))
        (folder / "go").touch()
        pod.hear("initupload")
        found.append(shown(pod.coord))
        battery.send(signal.SIGCONT)
        assert (application.wait(), battery.wait()) == (0, 0), application.err + battery.err
        found.append(shown(pod.coord))
    return found


def shown(coord: Path) -> dict[str, str]:
    """Return what each file of a coordination directory holds."""
    found = {}
    for path in sorted(each for each in coord.rglob("*") if each.is_file()):
        name = str(path.relative_to(coord))
        match path.parent.name:
            case "leases":
                with Directory(str(coord)) as directory:
                    found[name] = "locked" if directory.alive(path.name) else "free"
            case "participants":
                record = json.loads(path.read_text())
                found[name] = written({key: record[key] for key in TOLD if record.get(key)})
            case ".sidecar" | "tmp" | "progress":
                pass  # events, which are for people; what is being written
            case _:
                found[name] = written(json.loads(path.read_text()))
    return found


def written(value: Any) -> str:
    """Return what a file holds without what differs from run to run, bundles by the keys that name them."""

    def short(told: Any) -> Any:
        if isinstance(told, dict):
            return {key: short(each) for key, each in told.items() if "repo" not in told or key in OF_A_BUNDLE}
        return [short(each) for each in told] if isinstance(told, list) else told

    text = re.sub(r'"[0-9a-hjkmnp-tv-z]{26}"', '"…"', json.dumps(short(value)))
    return re.sub(r'"(incarnation|time)": ("[0-9a-f]{16}"|[\d.]+)', r'"\1": …', text)


def blocks(steps: list[dict[str, str]]) -> list[str]:
    """Return what is new or has changed in each step, a line for each file."""
    found = []
    for before, after in zip([{}, *steps], steps, strict=False):
        new = {name: what for name, what in after.items() if before.get(name) != what}
        found.append("".join(f"{name:<40}  {what}\n" for name, what in new.items()))
    return found


def test_what_the_files_hold_after_each_step_is_what_the_page_shows(tmp_path: Path) -> None:
    section = PAGE.read_text().partition(SECTION)[2].partition("\n## ")[0]
    assert re.findall(r"^```\n(.*?)^```$", section, re.M | re.S) == blocks(walk(tmp_path))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        sys.stdout.write("\n".join(f"```\n{block}```\n" for block in blocks(walk(Path(place)))))
        sys.stdout.flush()
        os._exit(0)
