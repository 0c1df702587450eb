"""A session as a template of Argo Workflows, so that a node of a DAG, or a step, is a session. Pure.

Argo makes a pod of a template: `container` is the application, `sidecars` are the batteries, which Argo ends once the application
has; by then its output is safe, for the wrapper waits for that. In a `containerSet` all are equals, and a battery that fails is a
failed node. What a template has no field for goes by `podSpecPatch`.

Argo expands `{{…}}` wherever it stands and knows no way to write it as it is, so a session that holds one is refused. The
parameters of a template are therefore said by example: each by a text that stands in the session and whose place the parameter
takes. So the session is checked with a value of its kind, and is a pod as well. Whoever gives a value answers for it: it is put
into what was encoded and quoted for the example. Names and ids of a store are safe everywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from sidecar.errors import Fault, ParametersError
from sidecar.parameters.settings import raise_any
from sidecar.session.compose import Manifest, Session

# Of a pod's specification, what a template has a field for; and what it has none for.
# Not automountServiceAccountToken: Argo's own executor, in the same pod, needs a token.
_SAME = ("volumes", "initContainers", "securityContext")
_PATCHED = ("terminationGracePeriodSeconds", "enableServiceLinks")
_CONTAINERS = ("initContainers", "containers")
# By Argo's rule the name of the container that outputs are read from, in a set too.
_MAIN = "main"
# What a container of a set needs besides: Argo runs its own executor in it.
_OF_A_SET = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}}
_PARAMETER = re.compile(r"[a-zA-Z0-9_-]+")


def template(
    session: Session,
    name: str,
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    container_set: bool = False,
) -> Manifest:
    """Return the template called `name` whose pod is the session's; ParametersError where Argo would expand what it holds.

    `inputs` are its parameters: of each the text, in commands and in the values of variables, whose place it takes. `outputs` are
    files of the application's container, by the name of the parameter that each one's text is.
    """
    inputs, outputs = inputs or {}, outputs or {}
    _check(session, name, inputs, outputs)
    spec = _with_parameters(session.pod["spec"], name, inputs)
    patch = {key: spec[key] for key in _PATCHED if key in spec}
    parameters = {
        "inputs": [{"name": each} for each in inputs],
        "outputs": [{"name": each, "valueFrom": {"path": path}} for each, path in outputs.items()],
    }
    found = {
        "name": name,
        "metadata": {"labels": session.pod["metadata"]["labels"]},
        **{key: {"parameters": each} for key, each in parameters.items() if each},
        **{key: spec[key] for key in _SAME if key in spec},
        "podSpecPatch": json.dumps(patch),
    }
    application, *batteries = spec["containers"]
    if container_set:
        found["containerSet"] = {"containers": _set(name, found.pop("initContainers", []), application, batteries)}
    else:
        found["container"] = {key: value for key, value in application.items() if key != "name"}
        found["sidecars"] = batteries
    return {key: value for key, value in found.items() if value != []}


def workflow_template(sessions: Mapping[str, Session], name: str) -> Manifest:
    """Return a WorkflowTemplate with a template for each session; ParametersError.

    A workflow names one by `templateRef: {name: NAME, template: …}`; run by itself it runs the first.
    """
    if not sessions:
        raise ParametersError([Fault(name, "templates", "expected at least one session")])
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTemplate",
        "metadata": {"name": name},
        "spec": {"entrypoint": next(iter(sessions)), "templates": [template(each, key) for key, each in sessions.items()]},
    }


def hera_template(
    session: Session,
    name: str,
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    container_set: bool = False,
) -> Any:
    """Return the template as a model of hera's, for workflows that are written in Python. ConfigurationError without hera."""
    try:
        from hera.workflows.models import Template
    except ImportError:
        from sidecar.errors import ConfigurationError

        raise ConfigurationError("hera is not installed: pip install 'sidecar-toolkit[argo]'") from None
    made = template(session, name, inputs=inputs, outputs=outputs, container_set=container_set)
    return Template.model_validate(made)


def _set(name: str, inits: list[Manifest], application: Manifest, batteries: list[Manifest]) -> list[Manifest]:
    """Return the containers of a set: what were initContainers one after another, the application behind them."""
    native = [each["name"] for each in inits if "restartPolicy" in each]
    raise_any([Fault(name, "containerSet", f"{each} is a native sidecar, which a set does not know") for each in native])
    found = [{**each, "resources": _OF_A_SET} for each in inits] + [{**application, "name": _MAIN}]
    for before, each in pairwise(found):
        each["dependencies"] = [before["name"]]
    return [*found, *batteries]


def _with_parameters(spec: Manifest, name: str, inputs: Mapping[str, str]) -> Manifest:
    """Return a pod's specification in which tags stand in the place of the examples; ParametersError where none stands."""
    if not inputs:
        return spec
    tags = {text: f"{{{{inputs.parameters.{each}}}}}" for each, text in inputs.items()}
    examples = re.compile("|".join(map(re.escape, sorted(tags, key=len, reverse=True))))

    def put(text: str) -> str:
        return examples.sub(lambda found: tags[found[0]], text)

    def container(found: Manifest) -> Manifest:
        said: Manifest = {key: [put(word) for word in found[key]] for key in ("command", "args") if key in found}
        variables = [{**each, "value": put(each["value"])} if "value" in each else each for each in found.get("env", ())]
        return {**found, **said, **({"env": variables} if variables else {})}

    made = {**spec, **{key: [container(each) for each in spec[key]] for key in _CONTAINERS if key in spec}}
    there = list(_texts(made, ""))
    lost = [each for each, example in inputs.items() if not any(tags[example] in text for _, text in there)]
    faults = [Fault(name, f"inputs.{each}", f"{inputs[each]!r}, whose place it takes, stands nowhere") for each in lost]
    # Of three braces Argo takes the first two.
    faults += [Fault(name, place, "holds '{' in front of a parameter") for place, text in there if "{{{" in text]
    raise_any(faults)
    return made


def _check(session: Session, name: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    faults = [
        Fault(name, place, "holds '{{', which Argo expands and has no way to write")
        for place, text in _texts(session.pod, "")
        if "{{" in text
    ]
    for each, example in inputs.items():
        if not _PARAMETER.fullmatch(each) or not example:
            faults.append(
                Fault(name, f"inputs.{each}", "expected a name of letters, digits, - and _, and a text that it replaces")
            )
        elif list(inputs.values()).count(example) > 1:
            faults.append(Fault(name, f"inputs.{each}", f"{example!r} is replaced by another one already"))
    for each, path in outputs.items():
        if not _PARAMETER.fullmatch(each) or not path.startswith("/") or "{{" in path:
            faults.append(Fault(name, f"outputs.{each}", f"expected a name and the path of a file, not {path!r}"))
    raise_any(faults)


def _texts(thing: object, place: str) -> Iterator[tuple[str, str]]:
    """Yield every text in plain data, and its place."""
    if isinstance(thing, str):
        yield place, thing
    elif isinstance(thing, dict):
        for key, value in thing.items():
            yield from _texts(value, f"{place}.{key}".lstrip("."))
    elif isinstance(thing, list):
        for number, value in enumerate(thing):
            yield from _texts(value, f"{place}[{number}]")
