"""A session as a template of Argo Workflows: the same containers, volumes and commands as its pod, and valid."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hera.workflows import DAG, Task, Workflow
from hera.workflows.models import TemplateRef, WorkflowTemplate
from test_manifests import closed
from test_session_compose import FUSE, POSTGRES, every_pod, session

from sidecar.errors import ParametersError
from sidecar.session.argo import hera_template, template, workflow_template
from sidecar.session.artifact import Artifact
from sidecar.session.compose import compose


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
    assert made["automountServiceAccountToken"] is False


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


def test_a_workflow_template_of_nothing_is_refused() -> None:
    with pytest.raises(ParametersError, match="at least one session"):
        workflow_template({}, "sessions")
