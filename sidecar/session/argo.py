"""A session as a template of Argo Workflows, so that a node of a DAG, or a step, is a session. Pure.

Argo makes a pod of a template: `container` is the application, `sidecars` are the batteries, which Argo ends once the application
has; by then its output is safe, for the wrapper waits for that. What a template has no field for goes by `podSpecPatch`.

Argo expands `{{…}}` wherever it stands and knows no way to write it as it is, so a session that holds one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sidecar.errors import Fault, ParametersError
from sidecar.session.compose import Manifest, Session

# Of a pod's specification, what a template has a field for; and what it has none for.
_SAME = ("volumes", "initContainers", "securityContext", "automountServiceAccountToken")
_PATCHED = ("terminationGracePeriodSeconds", "enableServiceLinks")


def template(session: Session, name: str) -> Manifest:
    """Return the template called `name` whose pod is the session's; ParametersError where Argo would expand what it holds."""
    _refuse_tags(session.pod, name)
    spec = session.pod["spec"]
    application, *batteries = spec["containers"]
    patch = {key: spec[key] for key in _PATCHED if key in spec}
    found = {
        "name": name,
        "metadata": {"labels": session.pod["metadata"]["labels"]},
        **{key: spec[key] for key in _SAME if key in spec},
        "podSpecPatch": json.dumps(patch),
        "container": {key: value for key, value in application.items() if key != "name"},
        "sidecars": batteries,
    }
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


def hera_template(session: Session, name: str) -> Any:
    """Return the template as a model of hera's, for workflows that are written in Python. ConfigurationError without hera."""
    try:
        from hera.workflows.models import Template
    except ImportError:
        from sidecar.errors import ConfigurationError

        raise ConfigurationError("hera is not installed: pip install 'sidecar-toolkit[argo]'") from None
    return Template.model_validate(template(session, name))


def _refuse_tags(pod: Manifest, name: str) -> None:
    faults = [
        Fault(name, place, "holds '{{', which Argo expands and has no way to write")
        for place, text in _texts(pod, "")
        if "{{" in text
    ]
    if faults:
        raise ParametersError(faults)


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
