"""How long it takes to compose the pod of many artifacts, and that it stays linear: `make bench-session`.

Beside it, what writing that very pod as JSON and as YAML takes, for scale: nobody else composes pods from lists of artifacts.
It is a benchmark, no test: it prints whether the target was met, and ends with 0 either way.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable

import yaml
from coordination import Target, machine, print_rows

from sidecar.session.artifact import Artifact, Port
from sidecar.session.compose import compose

SIZES = (10, 100, 1000, 2000)
SAMPLES = 9
# Of 1,000 artifacts each may cost so many times what each of 100 does.
LINEAR = 1.5


def artifacts(count: int) -> list[Artifact]:
    """Return artifacts each of which has something of everything; the last one's port is in the arguments of all."""
    last = count - 1
    return [
        Artifact(
            f"example/tool:{i}",
            f"/opt/tools/{i}",
            directory="share",
            executable="bin/run",
            arguments=("./data", "two words", "%port last%"),
            ports=(Port(1000 + i, "last" if i == last else f"p{i}"),),
            server_config={f"key{i}": f"value {i}"},
            logs=(f"log{i}",),
            environment={f"E{i}": "%mount path%"},
        )
        for i in range(count)
    ]


def median(work: Callable[[], object]) -> float:
    """Return the median of how long `work` takes, in milliseconds of processor time."""
    taken = []
    for _ in range(SAMPLES):
        began = time.process_time_ns()
        work()
        taken.append((time.process_time_ns() - began) / 1e6)
    return statistics.median(taken)


def main() -> None:
    print(", ".join(f"{key} {value}" for key, value in machine(os.getcwd()).items()), end="\n\n")
    rows = [("artifacts", "composed (ms)", "each (us)", "as JSON (ms)", "as YAML (ms)"), ("---", "---:", "---:", "---:", "---:")]
    each: dict[int, float] = {}
    for count in SIZES:
        asked = artifacts(count)
        pod = compose("example/base", asked).pod
        composed = median(lambda asked=asked: compose("example/base", asked))  # type: ignore[misc]
        each[count] = composed / count * 1000
        written = median(lambda pod=pod: json.dumps(pod))  # type: ignore[misc]
        dumped = median(lambda pod=pod: yaml.safe_dump(pod)) if count <= 1000 else None  # type: ignore[misc]
        shown = f"{dumped:.1f}" if dumped is not None else ""
        rows.append((f"{count}", f"{composed:.1f}", f"{each[count]:.0f}", f"{written:.1f}", shown))
    print_rows(rows)
    target = Target("each of 1,000 artifacts beside each of 100", LINEAR, "times", each[1000] / each[100])
    print(f"{target.what}: {target.found:.2f} {target.unit}, target {target.limit:g}: {'met' if target.met else 'missed'}")


if __name__ == "__main__":
    main()
