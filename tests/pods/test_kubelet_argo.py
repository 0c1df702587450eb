"""The Argo examples, in real containers and the order of Argo, which is simulated: the second node reads the first one's output.

Each test runs with the template that has sidecars and with the one that has a containerSet.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from containers import Machine, Manifest, documents
from kubelet import ArgoStep, make_long_to_save, run_workflow
from manifests import EXAMPLES, content, expected, put_inputs, steps

from sidecar.batteries.companion import literal
from sidecar.session.compose import COORDINATION
from sidecar.store import Store, open_store

EXAMPLE = "argo"
WAITS = f"touch {COORDINATION}/runs; until [ -e {COORDINATION}/go ]; do sleep 0.02; done"


class Run:
    """One of the examples and its store."""

    def __init__(self, machine: Machine, file: str, place: Path) -> None:
        self.machine, self.place = machine, place
        (self.workflow,) = documents((EXAMPLES / EXAMPLE / file).read_text())
        self.store: Store = open_store(f"file://{place}")
        put_inputs(EXAMPLE, self.store)

    def all(self) -> dict[str, ArgoStep]:
        return run_workflow(self.machine, self.workflow, {"store": self.place})

    def only(self, name: str, outputs: Mapping[str, str] | None = None, script: str = "") -> ArgoStep:
        """Return one of the nodes, not begun yet; `script` takes the place of its own, where it is given."""
        workflow = self.changed(name, script) if script else self.workflow
        _, template, arguments = next(each for each in steps(workflow, outputs) if each[0]["name"] == name)
        return ArgoStep(self.machine, workflow, template, arguments, {"store": self.place})

    def changed(self, name: str, script: str, source: str = "") -> Manifest:
        """Return the workflow in which a node runs another script, and its battery brings another source, where one is given."""
        (template,) = [each for each in self.workflow["spec"]["templates"] if each["name"] == name]
        if "containerSet" in template:
            _, main, battery = template["containerSet"]["containers"]
        else:
            main, (battery,) = template["container"], template["sidecars"]
        assert main["args"][:2] == ["sh", "-c"]
        main["args"][2] = literal(script)
        if source:
            (said,) = [each for each in battery["env"] if each["name"] == "dm_fuse_bd_days"]
            said["value"] = f";:sp:/input/days;{source}"
        return self.workflow

    @property
    def kept(self) -> set[str]:
        """The repositories that the run has made."""
        return {repo.name for repo in self.store.repos()} - {"weather"}


@pytest.fixture(params=["sidecars.yaml", "container-set.yaml"])
def run(machine: Machine, store: Path, request: pytest.FixtureRequest) -> Run:
    return Run(machine, request.param, store)


def source_of(step: ArgoStep) -> tuple[str, str]:
    """Return the repository and id of the bundle that a step's battery has brought."""
    record = step.record("fuse")
    assert record is not None
    assert record.payload is not None
    (source,) = record.payload["sources"]
    return source["repo"], source["bundle"]


def test_both_steps_succeed_and_bring_and_save_what_the_example_says(run: Run, tmp_path: Path) -> None:
    ran = run.all()
    assert {name: step.phase for name, step in ran.items()} == {"warm": "Succeeded", "hottest": "Succeeded"}
    for step in ran.values():
        assert set(step.wait().values()) == {0}
        assert (signal.SIGKILL, "fuse") not in step.signals
    for reference, files in expected(EXAMPLE).items():
        assert content(run.store, reference, tmp_path / reference) == files
    assert source_of(ran["hottest"]) == ("warm", ran["warm"].outputs()["bundle"])
    assert run.store.labels("warm") == {"latest": ran["warm"].outputs()["bundle"]}


def test_the_second_step_reads_the_first_ones_bundle_though_the_label_has_moved_meanwhile(run: Run, tmp_path: Path) -> None:
    first = run.only("warm", {})
    first.wait()
    other = tmp_path / "other"
    other.mkdir()
    (other / "warm.csv").write_text("sun,99\n")
    run.store.save(other, "warm", label="latest")
    second = run.only("hottest", {"tasks.warm.outputs.parameters.bundle": first.outputs()["bundle"]})
    second.wait()
    assert second.phase == "Succeeded"
    assert content(run.store, "results@hottest", tmp_path / "got") == expected(EXAMPLE)["results@hottest"]


def test_a_step_that_fails_ends_the_workflow_and_leaves_no_bundle(run: Run) -> None:
    ran = run_workflow(run.machine, run.changed("warm", script="echo half > /output/warm.csv; exit 3"), {"store": run.place})
    assert list(ran) == ["warm"]
    assert ran["warm"].phase == "Failed"
    assert ran["warm"].wait()["main"] == 3
    assert run.kept == set()


def test_a_step_whose_battery_is_killed_fails_though_its_command_succeeds(run: Run) -> None:
    step = run.only("warm", {}, WAITS)
    step.until(step.file("coordination", "runs").exists, "the command runs")
    step.crash("fuse")
    step.file("coordination", "go").touch()
    statuses = step.wait()
    assert step.phase == "Failed"
    assert statuses["fuse"] == 137
    # In a set Argo ends the others as soon as one has failed, and the wrapper passes that on.
    assert statuses["main"] in ((73,) if not step.is_set else (73, 143))
    assert run.kept == set()


def test_a_step_whose_battery_is_killed_while_it_saves_fails_and_leaves_no_bundle(run: Run) -> None:
    step = run.only("warm", {}, WAITS)
    step.until(step.file("coordination", "runs").exists, "the command runs")
    make_long_to_save(step.place("/output/long"))
    step.file("coordination", "go").touch()
    step.until_it_saves("fuse")
    step.crash("fuse")
    statuses = step.wait()
    assert (step.phase, statuses["fuse"]) == ("Failed", 137)
    assert statuses["main"] == 73
    assert not run.kept or run.store.bundles("warm") == []


def test_a_step_whose_source_does_not_exist_fails_before_its_command_is_begun(run: Run) -> None:
    workflow = run.changed("warm", f"touch {COORDINATION}/runs", "sr:weather;sl:newest")
    ran = run_workflow(run.machine, workflow, {"store": run.place})
    assert list(ran) == ["warm"]
    step = ran["warm"]
    assert step.phase == "Failed"
    assert step.wait()["fuse"] == 66
    assert not step.file("coordination", "runs").exists()
    assert "'weather' has no label 'newest'" in step.termination_message("fuse")


def test_in_a_containerset_main_is_begun_when_the_wrapper_is_there_and_the_others_at_once(machine: Machine, store: Path) -> None:
    run = Run(machine, "container-set.yaml", store)
    step = run.only("warm", {})
    step.wait()
    assert list(step.begun) == ["wrapper", "fuse", "main"]
