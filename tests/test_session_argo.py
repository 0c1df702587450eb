"""A session as a template of Argo Workflows: the same containers, volumes and commands as its pod, and valid."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hera.workflows import DAG, Task, Workflow
from hera.workflows.models import TemplateRef, WorkflowTemplate
from test_manifests import closed
from test_session_compose import AROUND, FUSE, PODS, POSTGRES, every_pod, session

from sidecar.batteries.companion import Companion, fuse
from sidecar.errors import ParametersError
from sidecar.session.argo import hera_template, template, workflow_template
from sidecar.session.artifact import Artifact
from sidecar.session.compose import Session, compose


@every_pod
def test_a_session_is_a_template_of_argo(name: str) -> None:
    document = workflow_template({name: session(name)}, "sessions")
    jsonschema.Draft202012Validator(closed(WorkflowTemplate.model_json_schema(by_alias=True))).validate(document)


@every_pod
def test_its_pod_is_the_one_that_was_composed(name: str) -> None:
    made, spec = template(session(name), "node"), session(name).pod["spec"]
    application, *batteries = spec["containers"]
    assert {"name": "application", **made["container"]} == application
    assert made.get("sidecars", []) == batteries
    assert made.get("initContainers", []) == spec.get("initContainers", [])
    assert made.get("volumes", []) == spec.get("volumes", [])
    assert made["securityContext"] == spec["securityContext"]
    assert json.loads(made["podSpecPatch"]) == {
        "terminationGracePeriodSeconds": spec["terminationGracePeriodSeconds"],
        "enableServiceLinks": False,
    }
    assert "automountServiceAccountToken" not in made  # Argo refuses that without an account for its executor


@every_pod
def test_its_pods_are_the_workflows_and_no_sessions_that_a_runner_has_begun(name: str) -> None:
    assert set(template(session(name), "node")["metadata"]["labels"]) == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}


def test_a_node_of_a_dag_is_a_session() -> None:
    sessions = {"prepare": session("one-and-postgres"), "stream": session("three-and-fuse")}
    with Workflow(name="two-sessions", entrypoint="dag") as workflow, DAG(name="dag"):
        prepare, stream = (Task(name=name, template_ref=TemplateRef(name="sessions", template=name)) for name in sessions)
        prepare >> stream
    built: Any = workflow.to_dict()
    tasks = built["spec"]["templates"][0]["dag"]["tasks"]
    named = {each["name"] for each in workflow_template(sessions, "sessions")["spec"]["templates"]}
    assert {task["templateRef"]["template"] for task in tasks} == named
    assert tasks[1]["depends"] == "prepare"


def test_hera_takes_it_as_a_template_of_its_own() -> None:
    made = hera_template(session("three-and-both-batteries"), "node")
    assert made.container.image == "example/base:12"
    assert [each.name for each in made.sidecars] == [FUSE.container["name"], POSTGRES.container["name"]]


def test_what_argo_would_expand_is_refused_with_its_place() -> None:
    held = compose("base", [Artifact("i", executable="run", arguments=("{{workflow.name}}",), environment={"A": "{{x}}"})])
    with pytest.raises(ParametersError) as refused:
        template(held, "node")
    assert [str(fault).partition(": holds")[0] for fault in refused.value.faults] == [
        "node: spec.containers[0].args[0]",
        "node: spec.containers[0].env[0].value",
    ]


# --- parameters --------------------------------------------------------------------------------------------------------

NEXT = fuse("bundles: [{name: in, srcPath: /input, srcRepo: warm, srcBundle: WARM}]", "next.yaml", AROUND)


def second(*batteries: Companion, command: tuple[str, ...] = ("sort", "WARM", "COLD")) -> Session:
    return compose("base", (), batteries or (NEXT,), command=command)


def texts(made: dict[str, Any]) -> list[str]:
    """Return the lines of a template that hold something which Argo expands."""
    return sorted(line.strip() for line in json.dumps(made, indent=0).splitlines() if "{{" in line)


def test_a_parameter_takes_the_place_of_its_example_wherever_it_is_said() -> None:
    made = template(second(), "node", inputs={"bundle": "WARM", "other": "COLD"})
    assert made["inputs"] == {"parameters": [{"name": "bundle"}, {"name": "other"}]}
    assert texts(made) == [
        '"value": ";:sp:/input;sr:warm;sb:{{inputs.parameters.bundle}}"',
        '"{{inputs.parameters.bundle}}",',
        '"{{inputs.parameters.other}}"',
    ]
    assert "WARM" not in json.dumps(made)


def test_an_output_is_the_text_of_a_file() -> None:
    made = template(second(), "node", outputs={"bundle": "/sidecar/coordination/bundle-id"})
    assert made["outputs"] == {"parameters": [{"name": "bundle", "valueFrom": {"path": "/sidecar/coordination/bundle-id"}}]}
    assert "inputs" not in made


@pytest.mark.parametrize(
    ("inputs", "outputs", "place"),
    [
        ({"bundle": "NOWHERE"}, {}, "inputs.bundle"),
        ({"a b": "WARM"}, {}, "inputs.a b"),
        ({"bundle": ""}, {}, "inputs.bundle"),
        ({"one": "WARM", "two": "WARM"}, {}, "inputs.one"),
        ({}, {"bundle": "bundle-id"}, "outputs.bundle"),
        ({}, {"bundle": "/{{x}}"}, "outputs.bundle"),
        ({}, {"a}}": "/x"}, "outputs.a}}"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(inputs: dict[str, str], outputs: dict[str, str], place: str) -> None:
    with pytest.raises(ParametersError) as refused:
        template(second(), "node", inputs=inputs, outputs=outputs)
    assert refused.value.faults[0].key == place


def test_an_example_that_holds_another_is_replaced_whole() -> None:
    made = template(second(command=("echo", "WARMEST", "WARM")), "node", inputs={"warm": "WARM", "warmest": "WARMEST"})
    assert made["container"]["args"] == ["echo", "{{inputs.parameters.warmest}}", "{{inputs.parameters.warm}}"]


def test_a_brace_in_front_of_a_parameter_is_refused() -> None:
    with pytest.raises(ParametersError, match=r"args\[1\]: holds '{' in front of a parameter"):
        template(second(command=("echo", "{WARM}")), "node", inputs={"bundle": "WARM"})


def test_every_other_tag_is_refused_where_there_are_parameters_too() -> None:
    held = second(command=("echo", "WARM", "{{inputs.parameters.bundle}}", "{{workflow.name}}"))
    with pytest.raises(ParametersError) as refused:
        template(held, "node", inputs={"bundle": "WARM"})
    assert [fault.key for fault in refused.value.faults] == ["spec.containers[0].args[2]", "spec.containers[0].args[3]"]


# --- sets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [each for each in PODS if each != "three-and-native-sidecars"])
def test_in_a_set_the_application_begins_behind_what_were_init_containers_and_batteries_at_once(name: str) -> None:
    made, spec = template(session(name), "node", container_set=True), session(name).pod["spec"]
    assert not {"container", "sidecars", "initContainers"} & set(made)
    containers = made["containerSet"]["containers"]
    inits = [each["name"] for each in spec.get("initContainers", ())]
    assert [each["name"] for each in containers] == [*inits, "main", *(each["name"] for each in spec["containers"][1:])]
    expected = [[], *([each] for each in inits)] + [[] for _ in spec["containers"][1:]]
    assert [each.get("dependencies", []) for each in containers] == expected
    document = workflow_template({name: session(name)}, "sessions")
    document["spec"]["templates"] = [made]
    jsonschema.Draft202012Validator(closed(WorkflowTemplate.model_json_schema(by_alias=True))).validate(document)


def test_a_set_knows_no_native_sidecars() -> None:
    with pytest.raises(ParametersError, match="fuse is a native sidecar, which a set does not know"):
        template(session("three-and-native-sidecars"), "node", container_set=True)


def test_hera_takes_parameters_and_sets_too() -> None:
    made = hera_template(second(), "node", inputs={"bundle": "WARM"}, outputs={"id": "/x"}, container_set=True)
    assert [each.name for each in made.inputs.parameters] == ["bundle"]
    assert made.outputs.parameters[0].value_from.path == "/x"
    assert [each.name for each in made.container_set.containers] == ["wrapper", "main", "fuse"]


def test_a_workflow_template_of_nothing_is_refused() -> None:
    with pytest.raises(ParametersError, match="at least one session"):
        workflow_template({}, "sessions")
