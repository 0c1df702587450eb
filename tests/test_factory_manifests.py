"""Which images a manifest names: every kind of it, where each stands, and what is no manifest."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ParametersError
from sidecar.factory.manifests import Parts, ours, parts, read_manifest
from sidecar.factory.model import Named
from sidecar.parameters.document import LIMIT

EXAMPLES = Path(__file__).parent.parent / "k8s-examples"
MANIFESTS = sorted(path for path in EXAMPLES.rglob("*.yaml") if re.search("^kind: ", path.read_text(), re.M))
CONTAINER = {"name": "it", "image": "it:1"}
SPEC = {
    "initContainers": [{"name": "init", "image": "init:1"}],
    "containers": [CONTAINER],
    "ephemeralContainers": [{"name": "debug", "image": "debug:1"}],
    "volumes": [{"name": "tool", "image": {"reference": "tool:1", "pullPolicy": "Never"}}, {"name": "x", "emptyDir": {}}],
}
OF_A_POD = ["debug:1", "init:1", "it:1", "tool:1"]
KINDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "Pod": ({"spec": SPEC}, OF_A_POD),
    "Job": ({"spec": {"template": {"spec": SPEC}}}, OF_A_POD),
    "Deployment": ({"spec": {"selector": {}, "template": {"metadata": {"labels": {"image": "no"}}, "spec": SPEC}}}, OF_A_POD),
    "CronJob": ({"spec": {"jobTemplate": {"spec": {"template": {"spec": SPEC}}}}}, OF_A_POD),
    "List": ({"items": [{"kind": "Pod", "spec": SPEC}, {"kind": "Pod", "spec": {"containers": [CONTAINER]}}]}, OF_A_POD),
    "Workflow": (
        {
            "spec": {
                "templates": [
                    {"container": {"image": "one:1"}, "sidecars": [{"name": "s", "image": "side:1"}]},
                    {"script": {"image": "script:1", "source": "image: none:1"}},
                    {"containerSet": {"containers": [{"name": "set", "image": "set:1"}]}},
                    {"steps": [[{"name": "image", "template": "one"}]]},
                ]
            }
        },
        ["one:1", "script:1", "set:1", "side:1"],
    ),
    "CronWorkflow": ({"spec": {"workflowSpec": {"templates": [{"container": {"image": "cron:1"}}]}}}, ["cron:1"]),
    "ConfigMap": ({"data": {"image": "none:1", "containers": "- image: none:1"}}, []),
    "Secret": ({"metadata": {"annotations": {"image": "none:1"}}, "stringData": {"image": "none:1"}}, []),
    "CustomResourceDefinition": ({"spec": {"properties": {"image": {"type": "string"}, "containers": {"type": "array"}}}}, []),
}


def references(text: str) -> list[str]:
    return [each.reference for each in read_manifest(text)]


def faults(text: str) -> str:
    with pytest.raises(ParametersError) as raised:
        read_manifest(text, "pod.yaml")
    return str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_of_a_manifest_are_those_of_its_containers_and_volumes_whatever_its_kind(kind: str) -> None:
    body, images = KINDS[kind]
    assert sorted({*references(yaml.safe_dump({"kind": kind, **body}))}) == images


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_json_is_read_as_well_as_yaml(indent: int | str | None) -> None:
    assert sorted(references(json.dumps({"kind": "Pod", "spec": SPEC}, indent=indent))) == OF_A_POD


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_of_each_example_every_image_is_found_in_its_line(path: Path) -> None:
    text = path.read_text()
    written = [
        Named(found[1], number)
        for number, line in enumerate(text.splitlines(), 1)
        if (found := re.match(r"\s*(?:- )?(?:image|reference): (\S+)$", line))
    ]
    assert [*read_manifest(text)] == written
    assert bool(written) is (path.name not in ("store.yaml", "policy.yaml"))


def test_a_text_may_hold_several_documents_and_lines_count_from_its_top() -> None:
    pod = "kind: Pod\nspec:\n  containers:\n  - image: a:1\n"
    found = read_manifest(f"# first\n{pod}---\n---\n{pod}  - image: b:1\n")
    assert found == (Named("a:1", 5), Named("a:1", 11), Named("b:1", 12))


def test_what_is_not_given_is_no_image() -> None:
    assert (
        references("containers: [{image: }, {image: ''}, {image: null}, {image: [x]}, {image: {a: x}}, {name: x}, x, [y]]") == []
    )
    assert references("") == references("# nothing\n") == references("just a text") == references("- a\n- b\n") == []


def test_an_image_is_read_as_it_is_written() -> None:
    assert references("containers: [{image: 1.10}, {image: on}]") == ["1.10", "on"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind: Pod\nspec: {\n", "pod.yaml line 3: no YAML: "),
        ("kind: Pod\n\tspec: 1\n", "pod.yaml line 2: no YAML: "),
        ("a: 1\n---\nb: [\n---\n", "pod.yaml line 4: no YAML: "),
        ("image: {{ .Values.image }}\n  - x", "pod.yaml line 2: no YAML: "),
        ("a: b\nc: \x00\n", "pod.yaml line 2: no YAML: the character U+0000 is not allowed"),
        ("a: *nobody\n", "pod.yaml line 1: no YAML: "),
        ("[" * 100_000, "pod.yaml: no YAML that is meant: nested too deeply"),
        (" " * (LIMIT + 1), f"pod.yaml: {LIMIT + 1} characters: expected at most {LIMIT}"),
    ],
    ids=["unfinished", "tab", "second document", "template", "control character", "alias", "deep", "long"],
)
def test_what_is_no_yaml_is_told_with_its_line(text: str, told: str) -> None:
    assert faults(text).startswith(told)


def test_aliases_cost_what_they_take_to_write() -> None:
    # Expanded, ten to the power of thirty containers.
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 31)]
    bomb = "\n".join(["a0: &a0 {containers: [{image: 'boom:1'}]}", *levels])
    assert read_manifest(bomb) == (Named("boom:1", 1),)


def test_what_holds_itself_comes_to_an_end() -> None:
    assert references("a: &a {containers: [{image: 'it:1'}], again: *a}") == ["it:1"]
    assert references("containers: &c [*c, {image: 'it:1'}]") == ["it:1"]


def test_a_container_that_stands_elsewhere_too_is_a_container_where_it_is_one() -> None:
    assert references("anchors: [&c {image: 'it:1'}]\nspec: {containers: [*c]}") == ["it:1"]


@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_document_is_read(document: Any) -> None:
    assert references(yaml.safe_dump(document)) == []


@given(st.text())
def test_of_any_text_is_told_what_it_names_or_what_is_wrong_with_it(text: str) -> None:
    with suppress(ParametersError):
        assert all(each.reference for each in read_manifest(text))


@pytest.mark.parametrize(
    ("reference", "consists_of"),
    [
        ("base", Parts("", "base", "", "")),
        ("base:12", Parts("", "base", "12", "")),
        ("localhost/sidecar/wrapper:0.1.0", Parts("localhost", "sidecar/wrapper", "0.1.0", "")),
        ("registry:5000/wrapper", Parts("registry:5000", "wrapper", "", "")),
        ("registry.example/a/b/c:1@sha256:00", Parts("registry.example", "a/b/c", "1", "sha256:00")),
        ("sidecar/wrapper@sha256:00", Parts("", "sidecar/wrapper", "", "sha256:00")),
        ("[::1]:5000/wrapper:1", Parts("[::1]:5000", "wrapper", "1", "")),
        ("", Parts("", "", "", "")),
    ],
)
def test_a_reference_consists_of_host_repository_tag_and_digest(reference: str, consists_of: Parts) -> None:
    assert parts(reference) == consists_of


OURS = {"wrapper": "sidecar/wrapper", "deep": "team/sidecar/wrapper", "other": "other"}


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("localhost/sidecar/wrapper:0.1.0", "wrapper"),
        ("sidecar/wrapper", "wrapper"),
        ("registry:5000/mirror/sidecar/wrapper@sha256:00", "wrapper"),
        ("registry:5000/team/sidecar/wrapper", "deep"),
        ("registry.example/mirror/team/sidecar/wrapper", "deep"),
        ("other", "other"),
        ("sidecar/wrapper-2", ""),
        ("mysidecar/wrapper", ""),
        ("wrapper", ""),
        ("sidecar.example/wrapper", ""),
        ("{{inputs.parameters.image}}", ""),
        ("/", ""),
        ("", ""),
    ],
)
def test_an_image_is_ours_whose_repository_ends_with_that_of_one_of_ours(reference: str, name: str) -> None:
    assert ours(reference, OURS) == name
