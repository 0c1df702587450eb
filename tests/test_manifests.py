"""Every example is what its page says that makes it, what Kubernetes and Argo accept, what our programs accept, and safe to copy.

The schemas are the official ones of several versions of Kubernetes; of Argo Workflows they are those of hera's models, in which
nothing else than what is there is allowed. Neither knows what a value means: the rest of this file looks at that.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import examples
import jsonschema
import kubernetes_validate
import pytest
from jsonschema.exceptions import best_match
from manifests import EXAMPLES, Pod, documents, manifests, pods

from sidecar import __version__
from sidecar.cli import wrap_application
from sidecar.cli.measures import seconds
from sidecar.coordination.protocol import Limits, batteries_of
from sidecar.parameters.settings import store_name

BIN = Path(sys.executable).parent
README = EXAMPLES.parent / "README.md"
# The first is the oldest of the schemas. Native sidecars are on by default since 1.29, pod failure policies are ours since 1.26.
VERSIONS = ("1.25", "1.29", "1.33", "1.37")
BATTERIES = {"wrap_datamon": "fuse", "wrap_datamon_pg": "postgres"}
ABOVE = 5  # seconds that a pod must have beside the grace of its containers: for the kubelet, and for last words
CLOSED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}

# Sessions end; these serve, and are written by hand.
SERVICES = ("functions-deployment", "functions-knative")


def of_knative(document: dict[str, Any]) -> bool:
    return bool(document["apiVersion"].startswith("serving.knative.dev/"))


of_kubernetes = [README] + [
    path for path in manifests() if documents(path)[-1]["kind"] != "Workflow" and not of_knative(documents(path)[-1])
]
of_argo = [path for path in manifests() if documents(path)[-1]["kind"] == "Workflow"]
with_pods = pytest.mark.parametrize(
    "pod",
    [pytest.param(pod, id=f"{path.parent.name}-{pod.name}") for path in manifests() for pod in pods(path)],
)
# The one of the README is short, and must work all the same.
with_every_pod = pytest.mark.parametrize(
    "pod",
    [pytest.param(pod, id=f"{path.parent.name}-{pod.name}") for path in (README, *manifests()) for pod in pods(path)],
)


def oldest(document: dict[str, Any]) -> str:
    """Return the oldest of VERSIONS that knows what a document asks for."""
    if document["kind"].startswith("MutatingAdmissionPolicy"):
        return "1.37"
    if '"restartPolicy": "Always"' in json.dumps(document) or "podFailurePolicy" in document.get("spec", {}):
        return "1.29"
    return VERSIONS[0]


# --- what they are made of --------------------------------------------------------------------------------------------


def is_written(path: Path) -> bool:
    """Tell whether a manifest is written by hand."""
    return path.parts[0] in ("store.yaml", *SERVICES)


def test_every_manifest_is_what_the_command_that_its_page_shows_makes_byte_for_byte(tmp_path: Path) -> None:
    there = {path.relative_to(EXAMPLES): path.read_bytes() for path in manifests() if not is_written(path.relative_to(EXAMPLES))}
    copy = tmp_path / "k8s-examples"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in there:
        (copy / path).unlink()
    for page in sorted(copy.glob("*/README.md")):
        examples.run(page)
    made = {path.relative_to(copy): path.read_bytes() for path in manifests(copy) if not is_written(path.relative_to(copy))}
    assert set(made) == set(there)
    for path, text in there.items():
        assert made[path].decode() == text.decode(), path


def test_a_command_that_fails_leaves_every_manifest_as_it_was(tmp_path: Path) -> None:
    story = tmp_path / "story"
    story.mkdir()
    for name in ("one.yaml", "two.yaml"):
        (story / name).write_text("kind: Old\n")
    page = "```console\n$ echo 'kind: New' > one.yaml\n$ echo 'kind: New' > two.yaml{}\n```\n"
    (story / "README.md").write_text(page.format(" && false"))
    with pytest.raises(AssertionError, match="ends with 1"):
        examples.write(tmp_path)
    assert [path.read_text() for path in sorted(story.glob("*.yaml"))] == ["kind: Old\n"] * 2
    (story / "README.md").write_text(page.format(""))
    examples.write(tmp_path)
    assert {path.name: path.read_text() for path in story.iterdir() if path.name != "README.md"} == {
        "one.yaml": "kind: New\n",
        "two.yaml": "kind: New\n",
    }


# --- schemas -----------------------------------------------------------------------------------------------------------


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema in which nothing is allowed that it does not name."""

    def close(node: object) -> None:
        if isinstance(node, dict):
            if "properties" in node:
                node["additionalProperties"] = False
            for each in node.values():
                close(each)
        elif isinstance(node, list):
            for each in node:
                close(each)

    close(schema)
    return schema


@cache
def schema_of_argo() -> dict[str, Any]:
    """Return the schema of a Workflow, in which nothing is allowed that it does not name."""
    from hera.workflows.models import Workflow

    return closed(Workflow.model_json_schema(by_alias=True))


def fault(document: dict[str, Any], version: str = VERSIONS[-1]) -> str:
    """Return what is wrong with a document, "" for nothing."""
    if document["kind"] == "Workflow":
        error = best_match(jsonschema.Draft202012Validator(schema_of_argo()).iter_errors(document))
        while error is not None and error.context:
            error = best_match(error.context)
    else:
        try:
            for each in as_kubernetes(document) if of_knative(document) else [document]:
                kubernetes_validate.validate(each, version, strict=True)
            return ""
        except kubernetes_validate.ValidationError as refused:
            error = refused
        except (kubernetes_validate.SchemaNotFoundError, KeyError) as unknown:
            return repr(unknown)
    return "" if error is None else f"{list(error.absolute_path)}: {error.message[:300]}"


def as_kubernetes(service: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a Service of Knative's is made of, as far as Kubernetes knows it; a KeyError where more is in it, or less.

    Its schema in Kubernetes lets the specification of a pod be anything.
    """
    template = service["spec"]["template"]
    if [set(each) for each in (service, service["spec"], template)] != [
        {"apiVersion", "kind", "metadata", "spec"},
        {"template"},
        {"metadata", "spec"},
    ]:
        raise KeyError(*service)
    spec = copy.deepcopy(template["spec"])
    del spec["containerConcurrency"], spec["timeoutSeconds"]
    for container in spec["containers"]:
        for key in ("readinessProbe", "livenessProbe"):
            # Which port it is, Knative knows.
            container[key]["httpGet"]["port"] = 8080
    named = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": service["metadata"]}
    return [named, {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": spec}]


def test_every_service_of_knatives_is_made_of_what_kubernetes_knows_and_knative_takes() -> None:
    (service,) = [each for path in manifests() for each in documents(path) if of_knative(each)]
    assert [fault(service, version) for version in VERSIONS] == [""] * len(VERSIONS)
    spec = service["spec"]["template"]["spec"]
    # Of a pod and its containers Knative takes these alone, by its own list, whatever is configured.
    assert set(spec) <= {"containerConcurrency", "timeoutSeconds", "enableServiceLinks", "containers", "volumes"}
    (container,) = spec["containers"]
    assert set(container["securityContext"]) <= {"runAsUser", "readOnlyRootFilesystem", "capabilities"}
    assert not {"lifecycle", "startupProbe"} & set(container)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", of_kubernetes, ids=lambda path: str(path.relative_to(EXAMPLES.parent)))
def test_every_manifest_is_one_of_kubernetes(path: Path, version: str) -> None:
    for document in documents(path):
        if VERSIONS.index(version) >= VERSIONS.index(oldest(document)):
            assert fault(document, version) == ""
        else:
            assert fault(document, version)  # or we would ask for more than is needed


@pytest.mark.parametrize("path", of_argo, ids=lambda path: path.name)
def test_every_workflow_is_one_of_argo(path: Path) -> None:
    assert [fault(document) for document in documents(path)] == [""]


# Below these, names are the user's to choose.
CHOSEN = {"annotations", "data", "labels", "limits", "matchLabels", "requests", "selector"}


def keys(node: object, where: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of every key of a document whose name is not the user's to choose."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key not in ("apiVersion", "kind") and not CHOSEN & set(where):
                yield (*where, key)
            yield from keys(value, (*where, key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from keys(value, (*where, number))


def test_a_misspelt_key_is_refused_wherever_one_can_stand() -> None:
    seen = set()
    for document in (document for path in manifests() for document in documents(path)):
        for place in keys(document):
            kind = (document["kind"], *(part for part in place if isinstance(part, str)))
            if kind in seen:
                continue  # each takes a tenth of a second
            seen.add(kind)
            wrong = copy.deepcopy(document)
            node: Any = wrong
            for part in place[:-1]:
                node = node[part]
            node[str(place[-1]) + "x"] = node.pop(place[-1])
            assert fault(wrong), kind
    assert len(seen) > 100


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("spec: {a: 1, a: 2}\n")
    with pytest.raises(ValueError, match="twice"):
        documents(tmp_path / "twice.yaml")


# --- house rules -------------------------------------------------------------------------------------------------------


def mounts(container: dict[str, Any]) -> dict[str, str]:
    """Return which volume is mounted where in a container."""
    return {each["mountPath"]: each["name"] for each in container.get("volumeMounts", ())}


def words(container: dict[str, Any]) -> list[str]:
    return [*container["command"], *container.get("args", ())]


def program(container: dict[str, Any]) -> str:
    """Return the name of the program of ours that a container runs."""
    return next(name for word in words(container) if (name := word.rpartition("/")[2]).startswith("wrap_"))


def is_mounting(container: dict[str, Any]) -> bool:
    return any(each.get("mountPropagation") == "Bidirectional" for each in container["volumeMounts"])


@with_pods
def test_every_container_has_an_image_of_this_version_that_no_foreign_registry_is_asked_for(pod: Pod) -> None:
    for container in pod.containers:
        assert re.fullmatch(rf"localhost/sidecar/[a-z-]+:{re.escape(__version__)}", container["image"])
        assert container["imagePullPolicy"] == "IfNotPresent"


@pytest.mark.parametrize("page", ["README.md", "wrappers/README.md", "wrappers/MIGRATION.md", "k8s-examples/README.md"])
def test_pages_name_images_of_this_version(page: str) -> None:
    named = re.findall(r"localhost/sidecar/[a-z-]+:([^\s`,}]+)", (EXAMPLES.parent / page).read_text())
    assert set(named) <= {__version__}


@with_pods
def test_every_container_says_what_it_needs_and_what_it_may_have_at_most(pod: Pod) -> None:
    for container in pod.containers:
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


@with_pods
def test_nobody_has_a_privilege_but_who_mounts(pod: Pod) -> None:
    everybody = pod.spec["securityContext"]
    assert everybody["runAsNonRoot"] is True
    assert everybody["seccompProfile"] == {"type": "RuntimeDefault"}
    assert everybody["runAsUser"] == everybody["runAsGroup"] == everybody["fsGroup"] == 10001
    assert not any(pod.spec.get(key) for key in ("hostPID", "hostNetwork", "hostIPC", "shareProcessNamespace"))
    for container in pod.containers:
        security = container["securityContext"]
        if is_mounting(container):
            assert security == {"privileged": True, "runAsUser": 0, "runAsNonRoot": False, "readOnlyRootFilesystem": True}
            assert program(container) == "wrap_datamon"
        else:
            assert security == CLOSED


def test_beside_every_mount_stands_the_same_without_a_privilege() -> None:
    mounting = {path for path in manifests() for pod in pods(path) if any(map(is_mounting, pod.containers))}
    assert mounting
    for path in mounting:
        assert set(path.parent.glob("*.yaml")) - mounting


@with_pods
def test_every_volume_is_there_and_used_and_bounded(pod: Pod) -> None:
    used = {name for container in pod.containers for name in mounts(container).values()}
    assert used == {volume["name"] for volume in pod.spec["volumes"]}
    mounted_on = {m["name"] for c in pod.containers for m in c["volumeMounts"] if m.get("mountPropagation") == "Bidirectional"}
    for volume in pod.spec["volumes"]:
        if "emptyDir" in volume and volume["name"] not in mounted_on:
            assert "sizeLimit" in volume["emptyDir"], volume
        if "configMap" in volume:
            assert volume["configMap"]["name"] in pod.config_maps
        if volume["name"] == "store":
            assert volume["persistentVolumeClaim"]["claimName"] == documents(EXAMPLES / "store.yaml")[0]["metadata"]["name"]


@with_every_pod
def test_the_wrapper_that_is_installed_is_the_one_that_runs(pod: Pod) -> None:
    installer = next(each for each in pod.containers if each["command"][0] == "/wrap_application")
    *words, where = installer["command"]
    assert words == ["/wrap_application", "--install"]
    wrapper = mounts(installer)[where]
    for container in pod.containers:
        if program(container) == "wrap_application" and container is not installer:
            assert container["name"] in ("application", "main") or container["command"][1] == "--copy"
            assert container["command"][0] == f"{where}/wrap_application"
            assert mounts(container)[where] == wrapper


# --- what the programs say ---------------------------------------------------------------------------------------------


def configured(pod: Pod, container: dict[str, Any], folder: Path) -> dict[str, str]:
    """Return what `--print-config` prints of a battery's container; an AssertionError where it refuses."""
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    for each in container.get("envFrom", ()):
        environment |= pod.config_maps[each["configMapRef"]["name"]]
    environment |= {each["name"]: each["value"] for each in container.get("env", ())}
    arguments = [*words(container), "--print-config"]
    volumes = {each["name"]: each for each in pod.spec["volumes"]}
    for place, name in mounts(container).items():
        if "configMap" in volumes[name]:
            for file, text in pod.config_maps[volumes[name]["configMap"]["name"]].items():
                (folder / file).write_text(text)
            arguments = [word.replace(f"{place}/", f"{folder}/") for word in arguments]
            environment = {key: value.replace(f"{place}/", f"{folder}/") for key, value in environment.items()}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = (re.split(r" {2,}", line) for line in done.stdout.splitlines())
    return {line[0]: line[1] for line in lines}


def options_of(container: dict[str, Any]) -> wrap_application.Arguments:
    """Return what the application's wrapper is told."""
    assert container["command"][0].endswith("/wrap_application")
    return wrap_application.parse(words(container)[1:])


def application_of(pod: Pod) -> dict[str, Any]:
    return next(each for each in pod.spec["containers"] if each["name"] in ("application", "main"))


def batteries_in(pod: Pod) -> list[dict[str, Any]]:
    return [each for each in pod.containers if program(each) in BATTERIES]


@with_every_pod
def test_our_programs_accept_their_parameters_and_meet_in_one_directory_on_one_volume(pod: Pod, tmp_path: Path) -> None:
    application = application_of(pod)
    said = options_of(application)
    wrap_application.options_of(said)  # refuses values that make no sense
    batteries_of(said.values["kinds"], " ".join(said.values.get("databases", [])).split())
    assert said.command, "there is something to run"
    meeting = said.last("directory", "")
    shown = {each["name"]: configured(pod, each, tmp_path) for each in batteries_in(pod)}
    assert {config["coordPoint"] for config in shown.values()} == {meeting}
    # A directory below the volume's top would have to be made by somebody.
    assert len({mounts(each).get(meeting) for each in (application, *batteries_in(pod))} - {None}) == 1
    assert sorted(said.values["kinds"]) == sorted(BATTERIES[program(each)] for each in batteries_in(pod))
    databases = {key.split(".")[1] for config in shown.values() for key in config if key.startswith("databases.")}
    assert set(" ".join(said.values.get("databases", [])).split()) == databases


@with_every_pod
def test_paths_in_parameters_lie_on_volumes_that_who_needs_them_has(pod: Pod, tmp_path: Path) -> None:
    application = mounts(application_of(pod))

    def volume(path: str, mounted: dict[str, str]) -> str | None:
        there = [place for place in mounted if f"{path}/".startswith(f"{place}/")]
        return mounted[max(there, key=len)] if there else None

    for battery in batteries_in(pod):
        own = mounts(battery)
        shown = configured(pod, battery, tmp_path)
        assert shown["store"].startswith("file://")
        assert volume(shown["store"].removeprefix("file://"), own) == "store"
        for key, value in shown.items():
            if key.endswith((".srcPath", ".destPath")):
                assert volume(value, own) is not None, value
                assert volume(value, own) == volume(value, application), value
            if key.endswith(".dataDir"):
                assert volume(value, own) is not None
                assert volume(value, own) not in application.values(), "a server's files are its own"


@with_every_pod
def test_a_pod_is_given_longer_to_end_than_its_containers_take(pod: Pod) -> None:
    for container in (application_of(pod), *batteries_in(pod)):
        given = words(container)
        grace = given[given.index("--grace") + 1] if "--grace" in given else str(Limits().grace)
        assert seconds(grace, "--grace") + ABOVE <= pod.spec["terminationGracePeriodSeconds"]


@with_every_pod
def test_native_sidecars_are_told_that_they_are_and_others_are_not(pod: Pod) -> None:
    for container in batteries_in(pod):
        is_native = container.get("restartPolicy") == "Always"
        assert is_native == (container in pod.spec.get("initContainers", ()))
        assert is_native == ("--native" in words(container))


def test_what_a_job_goes_by_is_one_of_its_containers() -> None:
    jobs = [document["spec"] for path in manifests() for document in documents(path) if document["kind"] == "Job"]
    assert jobs
    for spec in jobs:
        names = {each["name"] for each in spec["template"]["spec"]["containers"]}
        for rule in spec["podFailurePolicy"]["rules"]:
            if "onExitCodes" in rule:
                assert rule["onExitCodes"]["containerName"] in names


# --- folders -----------------------------------------------------------------------------------------------------------


def folders() -> list[Path]:
    return sorted(path for path in EXAMPLES.iterdir() if path.is_dir() and path.name not in SERVICES)


@pytest.mark.parametrize("folder", folders(), ids=lambda path: path.name)
def test_every_folder_is_explained_and_says_what_comes_out(folder: Path) -> None:
    page = (folder / "README.md").read_text()
    assert len(page.splitlines()) <= 30
    made = list(folder.glob("*.yaml"))
    assert made
    for path in made:
        assert path.name in page
    assert any((folder / "expected").iterdir())
    for path in (folder / "expected").iterdir():
        if path.is_file():
            assert (folder / path.name).with_suffix(".yaml").exists()
    for path in (*folder.glob("expected/*@*"), *folder.glob("input/*@*")):
        assert all(store_name(part) for part in path.name.split("@"))
        assert any(each.is_file() for each in path.rglob("*"))
    assert f"({folder.name}/README.md)" in (EXAMPLES / "README.md").read_text()


def asked(folder: Path, tmp_path: Path) -> list[list[str]]:
    """Return the words of each kubectl and argo that the shell block of a page runs, as bash understands it."""
    (block,) = re.findall(r"^```sh\n(.*?)^```$", (folder / "README.md").read_text(), re.M | re.S)
    written = tmp_path / "asked"
    record = "".join(f"""{tool}() {{ printf '%s\\0' {tool} "$@" '' >> "$ASKED"; }}\n""" for tool in ("kubectl", "argo"))
    environment = {**os.environ, "ASKED": str(written)}
    subprocess.run(["bash", "-euc", record + block], cwd=folder, env=environment, check=True, timeout=60)
    return [line.split("\0") for line in written.read_text().removesuffix("\0\0").split("\0\0")]


@pytest.mark.parametrize("folder", folders(), ids=lambda path: path.name)
def test_what_a_page_has_one_do_is_in_order(folder: Path, tmp_path: Path) -> None:
    text, begun, ended = (folder / "README.md").read_text(), set(), set()
    assert "../store.yaml" in text
    for path in folder.glob("input/*@*"):
        (maker,) = EXAMPLES.glob(f"*/expected/{path.name}")
        assert path.name in text
        assert f"../{maker.parent.parent.name}" in text
    for tool, verb, *words in asked(folder, tmp_path):
        options = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
        names = [word for word in words if not word.startswith("-")]
        match tool, verb:
            case "kubectl", "apply":
                assert words[::2] == ["-f"] * (len(words) // 2)
                begun |= {f"{each['kind'].lower()}/{each['metadata']['name']}" for f in names for each in documents(folder / f)}
            case "kubectl", "wait":
                # Whatever comes of it; a phase or a condition of one kind would be waited for in vain by a pod that fails.
                assert options["--for"].startswith("jsonpath={.status.con")
                assert "=" not in options["--for"].replace("==", "").removeprefix("jsonpath=")
                assert options["--timeout"]
                assert set(names) <= begun
                ended |= set(names)
            case "kubectl", "logs":
                assert f"pod/{names[0]}" in ended
                assert names[1] == "application"
            case "kubectl", "get":
                assert "/".join(names[:2]) in ended
            case "argo", "submit":
                assert (folder / names[0]).exists()
                assert "--watch" in options
            case "kubectl", "create" | "config":
                assert folder.name == "argo"
            case _:
                raise AssertionError((tool, verb))
    assert begun - {"persistentvolumeclaim/store"} == ended


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_explained_and_what_its_page_has_one_apply_is_all_there_is(name: str, tmp_path: Path) -> None:
    folder = EXAMPLES / name
    page = (folder / "README.md").read_text()
    assert len(page.splitlines()) <= 30
    assert f"({name}/README.md)" in (EXAMPLES / "README.md").read_text()
    asks = asked(folder, tmp_path)
    made = [words for tool, verb, *words in asks if (tool, verb) == ("kubectl", "create")]
    # A secret on a command line could be read by all who are on the machine.
    assert made == [["secret", "generic", "functions", "--from-file=token=/dev/stdin"]]
    applied = {word for tool, verb, *words in asks if (tool, verb) == ("kubectl", "apply") for word in words if word != "-f"}
    assert applied == {path.name for path in folder.glob("*.yaml")}
    assert all(f"({each})" in page for each in applied)
    for document in (each for path in folder.glob("*.yaml") for each in documents(path)):
        if "template" in document["spec"]:
            (container,) = document["spec"]["template"]["spec"]["containers"]
            assert container["image"] == f"localhost/sidecar/runtime-python-3.11:{__version__}"
            (secret,) = [each["valueFrom"]["secretKeyRef"] for each in container["env"] if "valueFrom" in each]
            assert secret == {"name": "functions", "key": "token"}


def test_what_an_example_reads_another_one_has_made() -> None:
    made = {path.name: path for path in EXAMPLES.glob("*/expected/*@*")}
    for path in EXAMPLES.glob("*/input/*@*"):
        content = {each.relative_to(path): each.read_bytes() for each in path.rglob("*") if each.is_file()}
        there = made[path.name]
        assert content == {each.relative_to(there): each.read_bytes() for each in there.rglob("*") if each.is_file()}


@pytest.mark.parametrize(
    "page",
    [*sorted(EXAMPLES.rglob("*.md")), EXAMPLES.parent / "wrappers" / "MIGRATION.md"],
    ids=lambda path: str(path.relative_to(EXAMPLES.parent)),
)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
