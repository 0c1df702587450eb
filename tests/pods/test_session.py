"""Sessions in real containers: artifacts whose images hold their files and nothing else, on a base that knows none of them."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from containers import Machine, image
from session_artifacts import HARD, artifacts, build_images

from sidecar.batteries.companion import Around, fuse
from sidecar.parameters.dictionary import decode
from sidecar.session.artifact import Artifact
from sidecar.session.compose import COORDINATION, Options, Session, compose
from sidecar.store import open_store

OPTIONS = Options(wrapper=image("wrapper"))


@pytest.fixture
def images(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return build_images(machine, tmp_path_factory.mktemp("artifacts"))


def mounts_of(session: Session) -> list[str]:
    return [mount["mountPath"] for mount in session.pod["spec"]["containers"][0]["volumeMounts"]]


def test_three_artifacts_run_as_one_container_and_every_argument_arrives(machine: Machine, images: dict[str, str]) -> None:
    session = compose(image("demo-app"), artifacts(images, HARD), (), OPTIONS)
    pod = machine.play([session.pod])
    assert pod.wait() == {"application": 0}, pod.told()
    cwd, config, viewer, gdb, *arguments, end = pod.out("application").split("\0")
    assert end == ""
    assert arguments == HARD
    (mount,) = [path for path in mounts_of(session) if path.startswith("/artifacts/")]
    assert cwd == f"{mount}/share"
    assert decode(config) == {"title": "it's a; demo", "hdr": True}
    assert (viewer, gdb) == ("of the viewer", "of the debugger")


def test_a_battery_brings_its_bundle_to_a_session_and_keeps_what_it_makes(
    machine: Machine, images: dict[str, str], store: Path, tmp_path: Path
) -> None:
    kept = open_store(f"file://{store}")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "week.csv").write_text("mon,12\n")
    kept.save(tmp_path / "in", "weather", label="latest")
    document = """bundles:
      - {name: in, srcPath: /input, srcRepo: weather, srcLabel: latest}
      - {name: out, destPath: /output, destRepo: results, destMessage: "it's $(x)", destLabel: latest}
    """
    tag = image("x").rpartition(":")[2]
    battery = fuse(document, "fuse.yaml", Around(COORDINATION, "file:///store", "store", tag=tag))
    program = Artifact(images["program"], "/opt/program", executable="bash", arguments=("-c", "cp /input/week.csv /output/copy"))
    session = compose(image("demo-app"), [program], [battery], OPTIONS)
    pod = machine.play([session.pod], claims={"store": store})
    assert pod.wait() == {"application": 0, "fuse": 0}, pod.told()
    (bundle,) = kept.bundles("results")
    assert bundle.message == "it's $(x)"
    kept.populate(bundle, tmp_path / "out")
    assert (tmp_path / "out" / "copy").read_text() == "mon,12\n"


def test_a_command_is_run_by_an_image_that_holds_nothing_else_and_what_it_writes_is_kept(
    machine: Machine, store: Path, tmp_path: Path
) -> None:
    app = tmp_path / "app"
    subprocess.run(["gcc", "-static", "-Os", "-s", Path(__file__).parent / "application.c", "-o", app], check=True)
    name = machine.build(f"only-{tmp_path.name}", {"app": app})
    document = "bundles: [{name: out, destPath: /output, destRepo: results, destMessage: m, destLabel: latest}]"
    battery = fuse(document, "fuse.yaml", Around(COORDINATION, "file:///store", "store", tag=image("x").rpartition(":")[2]))
    command = ["/app", "write", "/output/file", "it's $(PATH) $HOME\n;"]
    session = compose(name, (), [battery], replace(OPTIONS, read_only=True), command=command)
    pod = machine.play([session.pod], claims={"store": store})
    assert pod.wait() == {"application": 0, "fuse": 0}, pod.told()
    kept = open_store(f"file://{store}")
    kept.populate(kept.resolve("results", label="latest"), tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == command[-1]
    alone = machine.play([compose(name, (), (), OPTIONS, command=["/app", "exit", "7"]).pod])
    assert alone.wait() == {"application": 7}
