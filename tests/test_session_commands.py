"""`sidecar session` from the shell: what it prints where, and how it ends."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from processes import BIN
from test_session_compose import AROUND, CATALOG, IDS

from sidecar import __version__
from sidecar.batteries.companion import Around, fuse, postgres
from sidecar.errors import ParametersError
from sidecar.session.catalog import find, read_catalog
from sidecar.session.compose import COORDINATION, Options, compose

BUNDLES = "bundles: [{name: in, srcPath: /input, srcRepo: weather, srcLabel: latest}]\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "catalog.yaml").write_text(CATALOG.replace("%config title%", "here"))
    (tmp_path / "fuse.yaml").write_text(BUNDLES)
    return tmp_path


def run(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "sidecar", "session", *words], cwd=place, capture_output=True, text=True, timeout=60)


def composed(place: Path, *words: str, ids: tuple[str, ...] = IDS) -> subprocess.CompletedProcess[str]:
    asked = [word for each in ids for word in ("--artifact", each)]
    return run(place, "compose", "--image", "example/base:12", "--catalog", "catalog.yaml", *asked, *words)


def test_it_prints_the_pod_of_the_library_as_yaml_and_as_json(place: Path) -> None:
    options = Options(wrapper=f"localhost/sidecar/wrapper:{__version__}")
    catalog = read_catalog((place / "catalog.yaml").read_text())
    expected = compose("example/base:12", find(catalog, IDS), (), options).pod
    for words, read in ((), yaml.safe_load), (("-o", "json"), json.loads):
        ran = composed(place, *words)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert read(ran.stdout) == expected


def test_the_same_request_is_the_same_bytes(place: Path) -> None:
    assert composed(place).stdout == composed(place).stdout


def test_it_prints_a_template_for_argo(place: Path) -> None:
    found = yaml.safe_load(composed(place, "--id", "6f1c", "-o", "argo").stdout)
    assert (found["kind"], found["metadata"]["name"]) == ("WorkflowTemplate", "session-6f1c")
    (made,) = found["spec"]["templates"]
    assert made["name"] == found["spec"]["entrypoint"] == "session"
    assert made["container"]["image"] == "example/base:12"


def test_it_prints_a_job(place: Path) -> None:
    found = yaml.safe_load(composed(place, "--id", "6f1c", "-o", "job").stdout)
    assert (found["kind"], found["metadata"]["name"]) == ("Job", "session-6f1c")
    assert found["spec"]["template"]["spec"] == yaml.safe_load(composed(place, "--id", "6f1c").stdout)["spec"]


def test_the_response_tells_the_ports_and_log_directories(place: Path) -> None:
    found = json.loads(composed(place, "-o", "response", "--id", "6f1c").stdout)
    assert (found["session"], found["pod"]) == ("6f1c", "session-6f1c")
    assert [port["port"] for port in found["ports"]] == [8000, 2345, 9000, 9000]
    assert found["logDirectories"] == [{"path": "/var/log/session/viewer", "artifact": 1}]


def test_a_battery_is_woven_in_with_its_parameters(place: Path) -> None:
    ran = composed(place, "--battery", "fuse=fuse.yaml", "--store", "file:///store", "--store-claim", "bundles", ids=IDS[2:])
    assert ran.returncode == 0, ran.stderr
    spec = yaml.safe_load(ran.stdout)["spec"]
    application, battery = spec["containers"]
    assert application["command"][:5] == ["/sidecar/wrapper/wrap_application", "-c", COORDINATION, "-b", "fuse"]
    assert battery["image"] == f"localhost/sidecar/fuse-sidecar:{__version__}"
    variables = {each["name"]: each["value"] for each in battery["env"]}
    assert variables["dm_fuse_bd_in"] == ";:sp:/input;sr:weather;sl:latest"
    assert variables["SIDECAR_STORE"] == "file:///store"
    assert {"name": "store", "persistentVolumeClaim": {"claimName": "bundles"}} in spec["volumes"]
    shared = [mount["name"] for mount in application["volumeMounts"] if mount["mountPath"] == "/input"]
    assert shared == [mount["name"] for mount in battery["volumeMounts"] if mount["mountPath"] == "/input"]


def test_a_session_without_artifacts_runs_the_command_behind_the_dashes(place: Path) -> None:
    words = ("sh", "-c", "echo --image $HOME")
    ran = run(place, "compose", "--image", "example/any", "--read-only", "--grace", "2m", "--", *words)
    assert ran.returncode == 0, ran.stderr
    spec = yaml.safe_load(ran.stdout)["spec"]
    (application,) = spec["containers"]
    assert application["command"] == ["sh", "-c", "echo --image $$HOME"]
    assert application["securityContext"]["readOnlyRootFilesystem"] is True
    assert spec["terminationGracePeriodSeconds"] == 130
    assert "initContainers" not in spec


def test_a_command_alone_is_started_too(place: Path) -> None:
    started = ("start", "--image", "host", "--folder", "pods", "--wait", "--", "sh", "-c", 'echo "$0 $(id -u)"; exit 4', "$(x)")
    ran = run(place, *started)
    assert (ran.returncode, ran.stdout, ran.stderr) == (4, "$(x) 10001\n", "")
    assert run(place, "list", "--folder", "pods").stdout == ""


def test_bundles_are_mounted_and_batteries_are_native_where_that_is_asked_for(place: Path) -> None:
    (place / "fuse.yaml").write_text(BUNDLES.replace("/input", "/input/in"))
    ran = run(place, "compose", "--image", "any", "--battery", "fuse=fuse.yaml", "--mount", "--native-sidecars", "--", "true")
    assert ran.returncode == 0, ran.stderr
    spec = yaml.safe_load(ran.stdout)["spec"]
    battery, (application,) = spec["initContainers"][-1], spec["containers"]
    assert (battery["restartPolicy"], battery["securityContext"]["privileged"]) == ("Always", True)
    assert "--native" in battery["command"]
    assert "--rejoin-timeout" in application["command"]
    propagation = [mount.get("mountPropagation") for mount in (*battery["volumeMounts"], *application["volumeMounts"])]
    assert [each for each in propagation if each] == ["Bidirectional", "HostToContainer"]


def test_an_executable_that_is_not_run_is_warned_of_on_stderr(place: Path) -> None:
    assert composed(place).stderr == ""
    with (place / "catalog.yaml").open("a") as file:
        file.write("  other@1: {image: example/other, executable: run}\n")
    ran = composed(place, ids=("other@1", IDS[2]))
    assert ran.returncode == 0
    assert ran.stderr.startswith("sidecar: warning: artifact 1 (other@1): its executable is not run")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--artifact", "gdb@12"), 65, "artifact 4: gdb@12: unknown artifact; did you mean 'gdb@13'?"),
        (("--artifact", IDS[2]), 65, "artifact 4 (streamer@7): ports: 9000/TCP is opened by artifact 3 (streamer@7) already"),
        (("--battery", "fuse"), 2, "--battery expects KIND=FILE"),
        (("--battery", "nothing=fuse.yaml"), 78, "there is no battery 'nothing'"),
        (("--battery", "fuse=missing.yaml"), 2, "missing.yaml cannot be read"),
        (("--battery", "fuse=fuse.yaml", "--store", "gs://b", "--store-claim", "c"), 65, "store that is a directory"),
        (("--catalog", "missing.yaml"), 2, "missing.yaml cannot be read"),
        (("--user", "me"), 2, "--user expects a number"),
        (("--", "true"), 2, "--artifact and a command: expected one of them"),
        (("--launch", "all"), 2, "is not one of"),
        (("--memory", "much"), 65, "session: memory: expected a quantity such as 100m or 10Gi, not 'much'"),
        (("--battery", "fuse=fuse.yaml", "--mount"), 65, "fuse.yaml: srcPath: a bundle is mounted in a folder of a volume"),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_its_status(place: Path, words: tuple[str, ...], status: int, said: str) -> None:
    ran = composed(place, *words)
    assert (ran.returncode, ran.stdout) == (status, "")
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "expected --artifact ID, or a command behind `--`"),
        (("--artifact", "gdb@13"), "--artifact expects a --catalog FILE"),
    ],
)
def test_a_session_of_nothing_and_artifacts_of_no_catalog_are_refused(place: Path, words: tuple[str, ...], said: str) -> None:
    ran = run(place, "compose", "--image", "base", *words)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert said in ran.stderr


def test_two_catalogs_are_one_unless_they_contradict_each_other(place: Path) -> None:
    (place / "more.yaml").write_text("artifacts: {trace@1: {image: example/trace}}\n")
    assert composed(place, "--catalog", "more.yaml", ids=("trace@1", IDS[2])).returncode == 0
    (place / "more.yaml").write_text("artifacts: {gdb@13: {image: example/another}}\n")
    ran = composed(place, "--catalog", "more.yaml")
    assert (ran.returncode, "more.yaml: artifacts.gdb@13" in ran.stderr) == (65, True)


def test_a_battery_that_has_nothing_to_do_is_refused() -> None:
    with pytest.raises(ParametersError, match="neither a source nor a destination"):
        fuse("bundles: []", "mine.yaml", AROUND)


def test_a_fault_in_parameters_has_its_line() -> None:
    with pytest.raises(ParametersError, match=r"mine\.yaml line 2: srcRepo"):
        fuse("bundles:\n- {name: x, srcPath: /input}\n", "mine.yaml", AROUND)
    with pytest.raises(ParametersError, match=r"mine\.yaml line 1"):
        postgres("databases: [{name: db1, pgPort: x}]", "mine.yaml", AROUND)


def test_a_battery_says_where_participants_meet_whatever_its_parameters_say() -> None:
    around = Around("/elsewhere")
    found = fuse("globalOpts: {coordPoint: /tmp/coord}\n" + BUNDLES, "fuse.yaml", around)
    assert found.container["command"][found.container["command"].index("-c") + 1] == "/elsewhere"
    assert {"name": "dm_fuse_opts", "value": ";:c:/elsewhere"} in found.container["env"]
