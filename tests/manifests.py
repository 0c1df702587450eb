"""The manifests of `k8s-examples/`, and the pods that they become.

A Pod is itself, a Job is its template; a node of a Workflow's DAG is the pod that Argo makes of the node's template: its
container is called main, its sidecars are containers like it, and so are all of a containerSet. What a folder holds for the tests
is told in k8s-examples/README.md; other YAML than manifests is what they are made of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sidecar.store import Store

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "k8s-examples"


class Pod(NamedTuple):
    """A pod's name and specification, and the ConfigMaps of its manifest by name."""

    name: str
    spec: dict[str, Any]
    config_maps: dict[str, dict[str, str]]

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All of its containers, those of its beginning first."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


class Once(yaml.SafeLoader):
    """Reads YAML in which no key stands twice: the later one would silently count."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; ValueError where a key stands twice."""
        keys = [key.value for key, _ in node.value]
        if len(set(keys)) < len(keys):
            raise ValueError(f"a key stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def manifests(folder: Path = EXAMPLES) -> list[Path]:
    """Return every manifest of the examples."""
    return sorted(path for path in folder.rglob("*.yaml") if re.search(r"^kind: ", path.read_text(), re.M))


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a manifest, or of the manifests that a page shows."""
    text = path.read_text()
    if path.suffix == ".md":
        text = "---\n".join(re.findall(r"^```yaml\n(apiVersion:.*?)^```$", text, re.M | re.S))
    return [document for document in yaml.load_all(text, Once) if document]


def pods(path: Path) -> list[Pod]:
    """Return the pods that a manifest becomes."""
    found = documents(path)
    config_maps = {each["metadata"]["name"]: each["data"] for each in found if each["kind"] == "ConfigMap"}
    specs: list[tuple[str, dict[str, Any]]] = []
    for each in found:
        name = each["metadata"]["name"]
        match each["kind"]:
            case "Pod":
                specs.append((name, each["spec"]))
            case "Job":
                specs.append((name, each["spec"]["template"]["spec"]))
            case "Workflow":
                specs.extend(
                    (f"{name}-{step['name']}", pod_of(each, template, arguments)) for step, template, arguments in steps(each)
                )
    return [Pod(name, spec, config_maps) for name, spec in specs]


# --- Argo --------------------------------------------------------------------------------------------------------------


def steps(
    workflow: Mapping[str, Any], outputs: Mapping[str, str] | None = None
) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, str]]]:
    """Yield each task of a workflow's DAG, those that others depend on first, its template, and the arguments that it is given.

    `outputs` is looked into for `tasks.NAME.outputs.parameters.PARAMETER` when a task is asked for; without it, an id stands in.
    """
    templates = {each["name"]: each for each in workflow["spec"]["templates"]}
    tasks = {each["name"]: each for each in templates[workflow["spec"]["entrypoint"]]["dag"]["tasks"]}
    order = TopologicalSorter({name: re.findall(r"[\w-]+", each.get("depends", "")) for name, each in tasks.items()})
    for task in map(tasks.__getitem__, order.static_order()):
        given = {each["name"]: each["value"] for each in task.get("arguments", {}).get("parameters", ())}
        if outputs is None:
            stand_in = re.sub(r"\{\{tasks\.[^}]+\}\}", "0" * 26, json.dumps(given))
            yield task, templates[task["template"]], json.loads(stand_in)
        else:
            yield task, templates[task["template"]], expand(given, outputs)


def expand(value: Any, values: Mapping[str, str]) -> Any:
    """Return a value of a template with every `{{NAME}}` in it replaced; KeyError where there is no such name."""
    if isinstance(value, str):
        return re.sub(r"\{\{([^}]+)\}\}", lambda found: values[found[1].strip()], value)
    if isinstance(value, dict):
        return {key: expand(each, values) for key, each in value.items()}
    return [expand(each, values) for each in value] if isinstance(value, list) else value


def pod_of(workflow: Mapping[str, Any], template: Mapping[str, Any], arguments: Mapping[str, str]) -> dict[str, Any]:
    """Return the specification of the pod that Argo makes of a template, without Argo's own containers."""
    names = {f"inputs.parameters.{name}": value for name, value in arguments.items()}
    assert {each["name"] for each in template.get("inputs", {}).get("parameters", ())} == set(arguments)
    for each in (workflow["spec"], template):
        # By Argo's rule: its executor is in the pod and needs a token, that of the pod or one of its own.
        if each.get("automountServiceAccountToken") is False:
            assert each.get("executor", {}).get("serviceAccountName"), (
                "must not be empty if automountServiceAccountToken is false"
            )
    made = expand(dict(template), {**names, "workflow.name": workflow["metadata"]["name"]})
    if "containerSet" in made:
        containers = made["containerSet"]["containers"]
    else:
        containers = [{"name": "main", **made["container"]}, *made.get("sidecars", ())]
    spec = {key: made[key] for key in ("securityContext", "volumes") if key in made}
    spec |= {"restartPolicy": "Never", "initContainers": made.get("initContainers", []), "containers": containers}
    patch: dict[str, Any] = json.loads(made.get("podSpecPatch", "{}"))
    return spec | patch


# --- bundles -----------------------------------------------------------------------------------------------------------


def files_below(folder: Path) -> dict[str, bytes]:
    """Return the content of each file below a folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def put_inputs(example: str, store: Store) -> None:
    """Have in a store what the bundles in `input/` of an example are."""
    for folder in sorted((EXAMPLES / example).glob("input/*@*")):
        repo, _, label = folder.name.partition("@")
        store.save(folder, repo, label=label)


def expected(example: str) -> dict[str, dict[str, bytes]]:
    """Return what must have come of an example, by REPO@LABEL."""
    return {folder.name: files_below(folder) for folder in sorted((EXAMPLES / example).glob("expected/*@*"))}


def content(store: Store, reference: str, folder: Path) -> dict[str, bytes]:
    """Return what is in the bundle REPO@LABEL, every byte of which is verified; it is put into `folder` for that."""
    repo, _, label = reference.partition("@")
    store.populate(store.resolve(repo, label=label), folder)
    return files_below(folder)
