"""Every example runs as it stands in k8s-examples/, in real containers: its statuses, its log, and its bundles, byte for byte.

What is to come out is told by files beside the manifests, as k8s-examples/README.md says. Those that podman cannot play are run
by the simulations of kubelet.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from containers import Machine
from manifests import EXAMPLES, content, expected, manifests, put_inputs

from sidecar.coordination.protocol import DONE
from sidecar.store import open_store

SIMULATED = {"argo": "test_kubelet_argo.py", "native-sidecars": "test_kubelet.py"}
# These do not end, and no store is behind them.
SERVICES = {"functions-deployment": "test_functions_scale.py", "functions-knative": "test_functions_scale.py"}


def stories() -> list[tuple[str, list[Path]]]:
    """Return each example's folder with the manifests that are run one after another on one store."""
    found = []
    for folder in sorted(path for path in EXAMPLES.iterdir() if path.is_dir() and path.name not in SIMULATED | SERVICES):
        paths = manifests(folder)
        numbered = [path for path in paths if path.name[0].isdigit()]
        found += [(folder.name, [path]) for path in paths if path not in numbered]
        found += [(folder.name, numbered)] if numbered else []
    return found


@pytest.mark.parametrize(("example", "paths"), stories(), ids=lambda value: value if isinstance(value, str) else value[0].stem)
def test_the_example_ends_well_and_leaves_what_it_says(
    example: str, paths: list[Path], machine: Machine, store: Path, tmp_path: Path
) -> None:
    bundles = open_store(f"file://{store}")
    put_inputs(example, bundles)
    for path in paths:
        pod = machine.play(path.read_text(), claims={"store": store})
        statuses = pod.wait()
        assert statuses == dict.fromkeys(pod.containers, 0), pod.told()
        log = EXAMPLES / example / "expected" / f"{path.stem}.log"
        if log.exists():
            assert pod.out("application") == log.read_text()
        assert {name: pod.termination_message(name) for name in pod.containers} == dict.fromkeys(pod.containers, "")
        records = list(pod.file("coordination", ".sidecar/participants").iterdir())
        assert {each.stem: json.loads(each.read_text())["state"] for each in records} == {each.stem: DONE for each in records}
        pod.remove()
    for reference, files in expected(example).items():
        assert content(bundles, reference, tmp_path / reference) == files


def test_every_example_is_run_here_or_by_a_simulation() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir()} == {example for example, _ in stories()} | set(
        SIMULATED | SERVICES
    )
    for example, tests in (SIMULATED | SERVICES).items():
        assert f'"{example}"' in (Path(__file__).parent / tests).read_text()


def test_every_example_says_what_comes_of_it() -> None:
    for example, paths in stories():
        logs = [path for path in paths if (EXAMPLES / example / "expected" / f"{path.stem}.log").exists()]
        assert expected(example) or logs, example
