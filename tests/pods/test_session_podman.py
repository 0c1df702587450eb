"""The runner of containers: what every runner owes, in real containers; and what is its own."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from containers import Machine, image
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from processes import HANG, LONG, processes_that_say, until
from session_artifacts import HARD, artifacts, build_images
from session_contract import DEAF, POLITE, Contract, container, hear, mount, of, pod, running, said

from sidecar.batteries.companion import Around, fuse
from sidecar.errors import ConfigurationError, ParametersError, SourceMissing, Unreachable
from sidecar.parameters.dictionary import decode
from sidecar.session.compose import COORDINATION, Options, compose
from sidecar.session.folder import Folder
from sidecar.session.pod import Terms, expand, read_pod
from sidecar.session.podman import PodmanRunner, _as_yaml, _run, play
from sidecar.session.runner import Manifest
from sidecar.store import open_store

BASE = image("demo-app")


def left(machine: Machine) -> list[str]:
    """Return what podman has: containers, pods, volumes."""
    asked = (["ps", "--all", "--external", "--format={{.Names}}"], ["pod", "ps", "--quiet"], ["volume", "ls", "--quiet"])
    return [line for words in asked for line in machine.podman(*words).stdout.splitlines()]


@pytest.fixture
def runner(machine: Machine, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PodmanRunner]:
    """Of each test's own; what it leaves is found."""
    for key in ("CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF"):
        monkeypatch.setenv(key, machine.environment[key])
    # The images' user is not root, and is to find what a test puts there.
    tmp_path.chmod(0o755)
    words = ("nsenter", f"--target={machine.pid}", "--mount", "--pid", "--", "podman")
    runner = PodmanRunner(str(tmp_path / "pods"), words, network="none", claims={"store": str(store)}, backoff=0.05)
    yield runner
    for each in runner.list():
        with suppress(SourceMissing):
            runner.stop(each.name, 0)
    assert left(machine) == []
    assert runner.folder not in machine.run("cat", "/proc/self/mountinfo").stdout
    assert not os.path.exists(runner.folder) or os.listdir(runner.folder) == []


@pytest.fixture
def wrapped(runner: PodmanRunner, tmp_path: Path) -> Path:
    """A file of lines that a shell reads before it becomes the runner's podman: whatever may become of that."""
    script, before = tmp_path / "podman", tmp_path / "before"
    script.write_text(f'#!/bin/sh\n[ ! -e {before} ] || . {before}\nexec {shlex.join(runner.podman)} "$@"\n')
    script.chmod(0o755)
    runner.podman = (str(script),)
    return before


@pytest.fixture
def base() -> str:
    return BASE


class TestInContainers(Contract):
    """What every runner owes."""


def begin(runner: PodmanRunner, manifest: Manifest) -> str:
    runner.start(manifest)
    return str(manifest["metadata"]["name"])


def supervisor_of(runner: PodmanRunner, name: str) -> int:
    return int(Path(runner.folder, name, "lease").read_text().split()[0])


def children_of(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


# --- three artifacts, and a battery ------------------------------------------------------------------------------------

# What YAML, or one of its parsers, has an opinion of.
HARDER = ["😀", "\x7f\x80\x85", "\u2028", "\ufeff", "\uffff", "\x01\t\r", "# no", "- no", "{", "~", "yes", "1e3", " ", "\n\n "]


@pytest.fixture
def images(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return build_images(machine, tmp_path_factory.mktemp("artifacts"))


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12), max_size=8))
@example([*HARD, *HARDER])
def test_three_artifacts_run_as_one_container_and_whatever_their_arguments_are_they_arrive(
    runner: PodmanRunner, images: dict[str, str], arguments: list[str]
) -> None:
    given = [each.lstrip(".") for each in arguments]  # else they would be paths
    options = Options(wrapper=image("wrapper"), user=10001)
    session = compose(BASE, artifacts(images, given), (), options, session=str(uuid.uuid4()))
    name = begin(runner, session.pod)
    status = runner.wait(name, HANG)
    told = said(runner, name, "application")
    assert (status.phase, status.session) == ("Succeeded", session.id), told
    runner.stop(name)
    cwd, config, viewer, gdb, *found, end = told.split("\0")
    assert re.fullmatch(r"/artifacts/[0-9a-f-]{36}/share", cwd)
    assert decode(config) == {"title": "it's a; demo", "hdr": True}
    assert (viewer, gdb, found, end) == ("of the viewer", "of the debugger", given, "")


@pytest.mark.parametrize("mounted", [False, True], ids=["downloaded", "mounted"])
def test_a_battery_brings_its_bundle_to_a_session_and_keeps_what_it_makes(
    runner: PodmanRunner, store: Path, tmp_path: Path, mounted: bool
) -> None:
    kept = open_store(f"file://{store}")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "week.csv").write_text("mon,12\n")
    kept.save(tmp_path / "in", "weather", label="latest")
    document = """bundles:
      - {name: in, srcPath: /input/weather, srcRepo: weather, srcLabel: latest}
      - {name: out, destPath: /output, destRepo: results, destMessage: "it's $(x)", destLabel: latest}
    """
    tag = image("x").rpartition(":")[2]
    around = Around(COORDINATION, "file:///store", "store", tag=tag, mount=mounted, native=mounted)
    battery = fuse(document, "fuse.yaml", around)
    command = ("cp", "/input/weather/week.csv", "/output/copy")
    for path in (store, *store.rglob("*")):
        os.chown(path, -1, 10001)
        path.chmod(path.stat().st_mode | 0o060)
    options = Options(wrapper=image("wrapper"), user=10001)
    session = compose(BASE, [], [battery], options, command=command)
    name = begin(runner, session.pod)
    status = runner.wait(name, HANG)
    assert status.phase == "Succeeded", (status, *(said(runner, name, each.name) for each in status.containers))
    assert [each.exit for each in status.containers] == [0] * len(status.containers)
    (bundle,) = kept.bundles("results")
    assert bundle.message == "it's $(x)"
    kept.populate(bundle, tmp_path / "out")
    assert (tmp_path / "out" / "copy").read_text() == "mon,12\n"


# --- its end -----------------------------------------------------------------------------------------------------------


def test_containers_whose_supervisor_was_killed_are_told_as_they_are_and_asked_and_ended_by_stop(
    runner: PodmanRunner, machine: Machine
) -> None:
    containers = (container("one", BASE, POLITE), container("two", BASE, "exit 6"), container("three", BASE, DEAF))
    name = begin(runner, pod(*containers))
    for each in ("one", "three"):
        hear(runner, name, each, "ready")
    until(lambda: of(runner.status(name), "two").exit == 6, "the other container has ended")
    os.kill(supervisor_of(runner, name), signal.SIGKILL)
    status = runner.wait(name, HANG)
    assert (status.phase, "supervisor died" in status.reason) == ("Failed", True)
    assert [(each.state, each.exit) for each in status.containers] == [("running", None), ("exited", 6), ("running", None)]
    assert [each for each in left(machine) if each.endswith("-one")]
    ended = runner.stop(name, 1)
    assert (ended.phase, [each.exit for each in ended.containers]) == ("Failed", [3, 6, 128 + 9])


def test_what_is_stopped_leaves_nothing_not_even_what_other_users_made_and_closed(
    runner: PodmanRunner, machine: Machine, tmp_path: Path
) -> None:
    script = f"(trap '' TERM HUP; sleep {LONG}) & mkdir -p /v/a/b; touch /v/a/b/c; chmod 0 /v/a/b /v/a; {DEAF}"
    volumes = [{"name": "v", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory"}}]
    mounts = [mount("v", "/v"), mount("m", "/m")]
    name = begin(runner, pod(container("one", BASE, script, volumeMounts=mounts), volumes=volumes))
    hear(runner, name, "one", "ready")
    assert len(left(machine)) == 4  # its container, the one that holds the pod, the network's, and the pod
    assert machine.podman("pod", "ps", "--quiet", "--filter=label=app.kubernetes.io/instance=of-the-tests").stdout
    runner.stop(name, 0)
    assert left(machine) == []
    assert os.listdir(runner.folder) == []


def test_a_pod_that_is_stopped_while_it_begins_leaves_nothing(runner: PodmanRunner, machine: Machine) -> None:
    for number in range(3):
        assert runner.stop(begin(runner, pod(container("one", BASE, DEAF))), 0.05 * number).phase == "Failed"
        assert left(machine) == []


def test_a_life_that_podman_does_not_follow_any_more_is_over(runner: PodmanRunner) -> None:
    name = begin(runner, pod(container("one", BASE, f"echo life; {DEAF}"), restartPolicy="OnFailure"))
    hear(runner, name, "one", "ready")
    for each in children_of(supervisor_of(runner, name)):
        os.kill(each, signal.SIGKILL)
    status = running(runner, name, "one", restarts=1)
    assert of(status, "one").exit == 128 + 9


def test_a_container_that_is_ended_behind_its_back_is_begun_again_as_any_other(runner: PodmanRunner, machine: Machine) -> None:
    name = begin(runner, pod(container("one", BASE, DEAF), restartPolicy="Always"))
    hear(runner, name, "one", "ready")
    (theirs,) = [each for each in left(machine) if each.endswith("-one")]
    machine.podman("kill", theirs)
    assert of(running(runner, name, "one", restarts=1), "one").exit == 128 + 9


def test_who_uses_more_memory_than_it_may_is_ended(runner: PodmanRunner) -> None:
    script = """cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2> /dev/null
    head -c 200000000 /dev/zero | tail -c 150000000 > /dev/null"""
    one = container("one", BASE, script, resources={"limits": {"memory": "32Mi"}})
    name = begin(runner, pod(one))
    assert of(runner.wait(name, HANG), "one").exit == 128 + 9
    assert said(runner, name, "one").split()[0] == str(32 << 20)


def test_what_a_container_left_mounted_in_a_volume_is_not_removed_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "a pod"
    (folder / "volumes" / "v").mkdir(parents=True)
    (tmp_path / "to").symlink_to(".")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    script = """
    mount --bind "$2/kept" "$2/a pod/volumes/v" && [ -e "$2/a pod/volumes/v/file" ] || exit 1
    "$1" -c 'import sys; from sidecar.session import folder, podman as p; p._unmount(folder.Folder(sys.argv[1]), [])' "$3"
    ! grep -q volumes /proc/self/mountinfo"""
    given = [sys.executable, str(tmp_path), str(tmp_path / "to" / "a pod")]
    words = ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh", *given]
    assert subprocess.run(words, check=False).returncode == 0


# --- a podman that fails, or does not answer ---------------------------------------------------------------------------


def test_a_podman_that_does_not_tell_how_a_container_stands_is_not_taken_for_none(runner: PodmanRunner, wrapped: Path) -> None:
    script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.02; done"
    names = [begin(runner, pod(container("one", BASE, script))) for _ in range(2)]
    for name in names:
        hear(runner, name, "one", "ready")
        running(runner, name, "one")
    wrapped.write_text("case $2 in inspect|exists) echo broken >&2; exit 125;; esac")
    try:
        os.kill(supervisor_of(runner, names[0]), signal.SIGTERM)
        status = runner.wait(names[0], HANG)
        assert (status.phase, of(status, "one").exit) == ("Succeeded", 0)
        os.kill(supervisor_of(runner, names[1]), signal.SIGKILL)
        found = of(runner.wait(names[1], HANG), "one")
        assert (found.state, found.exit) == ("running", None)
        assert "is not known: podman inspect: broken" in found.reason
    finally:
        wrapped.unlink()


def test_a_podman_that_does_not_answer_keeps_a_supervisor_from_nothing(
    runner: PodmanRunner, wrapped: Path, tmp_path: Path
) -> None:
    (tmp_path / "v").mkdir()
    volumes = [{"name": "v", "hostPath": {"path": str(tmp_path / "v")}}]
    script = "trap '' TERM; echo ready; until [ -e /v/go ]; do sleep 0.02; done; exit 5"
    one = container("one", BASE, POLITE)
    name = begin(runner, pod(one, container("two", BASE, script, volumeMounts=[mount("v", "/v")]), volumes=volumes))
    for each in ("one", "two"):
        hear(runner, name, each, "ready")
    wrapped.write_text(f'[ "$1" != kill ] || exec sleep {LONG}')
    try:
        os.kill(supervisor_of(runner, name), signal.SIGTERM)
        until(lambda: bool(processes_that_say(f"sleep\0{LONG}")), "podman is asked")
        (tmp_path / "v" / "go").touch()
        until(lambda: of(runner.status(name), "two").exit == 5, "the other's end is told meanwhile")
        assert of(runner.status(name), "one").state == "running"
    finally:
        wrapped.unlink()
    assert of(runner.wait(name, HANG), "one").exit == 3


def test_a_podman_that_takes_too_long_is_ended_with_all_that_it_began() -> None:
    token = f"token-{uuid.uuid4()}"
    with pytest.raises(Unreachable, match="has not answered within"):
        _run(["sh", "-c", f"sh -c 'sleep {LONG}; : {token}' & wait"], b"", 0.5)
    until(lambda: not processes_that_say(token), "what it began is gone")


def test_a_podman_ends_with_whoever_begins_a_pod_and_what_it_left_is_removed_by_stop(
    runner: PodmanRunner, wrapped: Path, tmp_path: Path, machine: Machine
) -> None:
    manifest = pod(container("one", BASE, "true"))
    here, go = tmp_path / "here", tmp_path / "go"
    for path in (here, go):
        os.mkfifo(path)
    wrapped.write_text(f'[ "$1 $2" != "kube play" ] || {{ echo $$ > {here}; read -r _ < {go}; }}')
    began = f"""
import json, sys
from sidecar.session.podman import PodmanRunner
PodmanRunner({runner.folder!r}, {runner.podman!r}, network="none").start(json.loads(sys.argv[1]))
"""
    with subprocess.Popen([sys.executable, "-c", began, json.dumps(manifest)]) as starter:
        podman = int(here.read_text())
        opened = os.pidfd_open(podman)
        starter.kill()
        starter.wait(HANG)
    ended = bool(select.select([opened], [], [], HANG)[0])
    if not ended:
        signal.pidfd_send_signal(opened, signal.SIGKILL)
    os.close(opened)
    assert ended
    name = manifest["metadata"]["name"]
    (status,) = runner.list()
    assert (status.name, status.phase, "what began it died" in status.reason) == (name, "Failed", True)
    wrapped.unlink()
    runner.stop(name)
    assert (left(machine), runner.list()) == ([], [])


# --- names, and what is there already ----------------------------------------------------------------------------------


def test_what_has_the_same_name_in_podman_is_not_touched(runner: PodmanRunner, machine: Machine) -> None:
    machine.podman("pod", "create", "--name=theirs", "--infra=false")
    machine.podman("create", "--name=theirs-one", BASE, "true")
    try:
        name = begin(runner, pod(container("one", BASE, "true"), name="theirs"))
        assert runner.wait(name, HANG).phase == "Succeeded"
        runner.stop(name)
        assert machine.podman("container", "inspect", "--format={{.State.Status}}", "theirs-one").stdout == "created\n"
    finally:
        machine.podman("pod", "rm", "theirs")
        machine.podman("rm", "theirs-one")


def test_a_name_may_be_as_long_as_kubernetes_has_it_and_a_machines_is_cut(runner: PodmanRunner) -> None:
    name = ".".join("x" * each for each in (62, 63, 63, 62))
    begin(runner, pod(container("one", BASE, "hostname"), name=name))
    assert runner.wait(name, HANG).phase == "Succeeded"
    assert said(runner, name, "one") == f"{'x' * 62}\n"


def test_an_image_that_is_not_there_is_told_by_its_name_and_nothing_is_left(runner: PodmanRunner, machine: Machine) -> None:
    one = container("one", "localhost/no/such:1", "true", imagePullPolicy="Never")
    with pytest.raises(Unreachable, match=r"localhost/no/such:1"):
        runner.start(pod(one))
    assert (left(machine), runner.list()) == ([], [])


def test_a_podman_that_is_not_there_or_does_not_work_is_told_before_anything_is_made(tmp_path: Path) -> None:
    for words, problem in ((("no-such-podman",), ConfigurationError), (("podman", "--no-such-option"), Unreachable)):
        runner = PodmanRunner(str(tmp_path / "pods"), words)
        with pytest.raises(problem, match=words[-1]):
            runner.start(pod(container("one", BASE, "true")))
        assert not os.path.exists(runner.folder)


# --- what of a manifest it makes good ----------------------------------------------------------------------------------


def test_a_container_without_a_command_runs_its_images(runner: PodmanRunner, machine: Machine) -> None:
    own = machine.build(f"own-{uuid.uuid4()}", {}, "--entrypoint", '["/bin/echo", "of the image"]', base=BASE)
    env = [{"name": "A", "value": "a"}]
    one = {"name": "one", "image": own, "args": ["$(A)", "$$(A)"], "env": env}
    name = begin(runner, pod(one))
    assert runner.wait(name, HANG).phase == "Succeeded"
    assert said(runner, name, "one") == "of the image a $(A)\n"


def test_an_empty_volume_is_everybodys_and_its_groups(runner: PodmanRunner) -> None:
    def user(number: int) -> Manifest:
        return {"securityContext": {"runAsUser": number, "runAsGroup": number}, "volumeMounts": [mount("v", "/etc/dpkg")]}

    first = container("first", BASE, "ls -A /etc/dpkg; touch /etc/dpkg/x; mkdir /etc/dpkg/y", **user(10001))
    one = container("one", BASE, "touch /etc/dpkg/z; stat -c '%n %g' /etc/dpkg/*", **user(10002))
    name = begin(runner, pod(one, inits=(first,), securityContext={"fsGroup": 10003}))
    assert runner.wait(name, HANG).phase == "Succeeded"
    assert said(runner, name, "first") == ""
    assert said(runner, name, "one").split() == [f"/etc/dpkg/{each}" if each != "g" else "10003" for each in "xgygzg"]


@pytest.mark.parametrize("user", ["0:0", "00:0", "+0", "bin", ""])
def test_who_may_be_root_is_refused_where_that_must_not_be(runner: PodmanRunner, machine: Machine, user: str) -> None:
    of_root = machine.build(f"root-{uuid.uuid4()}", {}, "--user", user, base=BASE)
    with pytest.raises(ParametersError, match="container two: runAsNonRoot"):
        runner.start(
            pod(container("one", BASE, "true"), container("two", of_root, "true"), securityContext={"runAsNonRoot": True})
        )
    assert (left(machine), runner.list()) == ([], [])


def test_its_secrets_stand_on_no_command_line_and_in_nobodys_reach(runner: PodmanRunner, wrapped: Path) -> None:
    secret = f"secret-{uuid.uuid4()}"
    wrapped.write_text(f"""printf '%s\\n' "$@" >> {wrapped}.said""")
    name = begin(runner, pod(container("one", BASE, POLITE, env=[{"name": "SECRET", "value": secret}])))
    hear(runner, name, "one", "ready")
    assert processes_that_say(secret) == []
    assert Path(runner.folder).stat().st_mode & 0o077 == 0
    assert Path(runner.folder, name).stat().st_mode & 0o077 == 0
    runner.stop(name)
    words = Path(f"{wrapped}.said").read_text()
    assert {"play", "start", "kill", "rm"} <= set(words.split())
    assert secret not in words


def test_a_link_in_a_volume_leads_no_part_of_it_out(runner: PodmanRunner, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    at = [mount("v", "/v")]
    init = container("init", BASE, f"ln -s {tmp_path} /v/part", volumeMounts=at)
    for part in ("part", "part/secret"):
        one = container("one", BASE, "cat /part /part/*", volumeMounts=[mount("v", "/part", subPath=part)])
        name = begin(runner, pod(one, inits=(init,)))
        status = runner.wait(name, HANG)
        assert (status.phase, said(runner, name, "one")) == ("Failed", "")
        assert "leads through a link" in of(status, "one").reason


def test_a_part_is_refused_where_another_container_could_put_a_link_in_its_way(runner: PodmanRunner) -> None:
    whole, part = [mount("v", "/v")], [mount("v", "/part", subPath="a/b")]
    one = container("one", BASE, "true", volumeMounts=part)
    for other in (
        pod(one, container("two", BASE, "true", volumeMounts=whole)),
        pod(one, container("two", BASE, "true", volumeMounts=[mount("v", "/v", subPath="a")])),
        pod(one, inits=(container("two", BASE, "true", restartPolicy="Always", volumeMounts=whole),)),
    ):
        with pytest.raises(ParametersError, match="where two runs at the same time"):
            runner.start(other)
    assert runner.list() == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"volumes": [{"name": "v", "image": {"reference": "localhost/x:1"}}]}, r"volumes\[0\].image"),
        ({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "other"}}]}, "no directory stands for other"),
        ({"volumes": [{"name": "v", "configMap": {"name": "x"}}]}, "configMap"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/no/such"}}]}, "there is no path /no/such"),
    ],
)
def test_a_volume_that_cannot_be_here_is_refused_by_name(runner: PodmanRunner, change: Manifest, problem: str) -> None:
    with pytest.raises(ParametersError, match=problem):
        runner.start(pod(container("one", BASE, "true", volumeMounts=[mount("v", "/v")]), **change))
    assert not os.path.exists(runner.folder)


# --- what podman is given ----------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_is_the_same_to_a_parser_of_yaml(text: str) -> None:
    assert yaml.safe_load(_as_yaml({"it": text})) == {"it": text}


@settings(deadline=None)
@given(st.text("$()AB x", max_size=12))
def test_a_podman_that_expands_commands_itself_is_given_what_it_leaves_as_it_is_to_be(text: str) -> None:
    env = [{"name": "A", "value": "a$"}]
    manifest = pod({"name": "one", "image": BASE, "command": ["echo"], "args": [text], "env": env})
    asked: dict[str, Any] = json.loads(json.dumps({"pod": manifest, "called": "it"}))
    read = read_pod(manifest, Terms(own_command=True))
    ((_, wanted), variables) = read.programs[0].command, read.programs[0].environment
    made = {dollar: play(Folder("/it"), read, asked, dollar)["spec"]["containers"][0]["args"][0] for dollar in ("$", "$$")}
    assert made["$"] == wanted
    assert expand(made["$$"], variables) == wanted
