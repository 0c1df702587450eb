"""The folder of this machine's pods: whose it must be, what others do in it meanwhile, and what it is after a death."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from processes import HANG, LONG, processes_that_say, until
from session_contract import DEAF, POLITE, container, hear, mount, pod

from sidecar.cli.runners import to_start
from sidecar.errors import ConfigurationError, Corrupt, DeadlinePassed, ParametersError, SourceMissing, Unreachable
from sidecar.process import Child, Identity, identity
from sidecar.session import folder as folders
from sidecar.session import led, sandboxed
from sidecar.session.folder import Folder, on_its_way, write_supervisor
from sidecar.session.local import LocalRunner
from sidecar.session.machine import Machine
from sidecar.session.pod import Terms
from sidecar.session.podman import PodmanRunner
from sidecar.session.runner import Manifest, Status


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[LocalRunner]:
    runner = LocalRunner(str(tmp_path / "pods"), backoff=0.05)
    yield runner
    with suppress(ConfigurationError):  # it refuses its folder
        for each in runner.names():
            with suppress(SourceMissing, Corrupt):
                runner.stop(each, 0)


def begin(runner: LocalRunner, manifest: Manifest) -> str:
    runner.start(manifest)
    return str(manifest["metadata"]["name"])


def put(runner: LocalRunner, manifest: Manifest, engine: str = LocalRunner.ENGINE) -> Folder:
    """Put a pod there that nothing leads."""
    folder = Folder(os.path.join(runner.folder, manifest["metadata"]["name"]))
    for path in (runner.folder, folder.path):
        Path(path).mkdir(0o700, exist_ok=True)
    folder.write("pod.json", {"engine": engine, "pod": manifest, "terms": asdict(Terms()), "backoff": 0})
    folder.publish(Status(folder.name, "", "Pending", ()))
    return folder


# --- whose it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["others may enter", "another's", "a link"])
def test_a_folder_that_is_not_this_users_alone_is_neither_read_nor_is_anything_ended_that_it_names(
    runner: LocalRunner, tmp_path: Path, whose: str
) -> None:
    name = put(runner, pod(container("one", "host", "true"))).name
    if whose == "others may enter":
        os.chmod(runner.folder, 0o755)
    elif whose == "another's":
        os.chown(runner.folder, 10001, 10001)
    else:
        os.rename(runner.folder, tmp_path / "elsewhere")
        os.symlink(tmp_path / "elsewhere", runner.folder)
    machine = Machine(runner.folder)
    for asked in (runner, PodmanRunner(runner.folder), machine):
        for ask, given in (("list", ()), ("status", (name,)), ("wait", (name, 0)), ("logs", (name, "one")), ("stop", (name,))):
            with pytest.raises(ConfigurationError, match="of this user's alone"):
                getattr(asked, ask)(*given)
    assert os.path.exists(os.path.join(runner.folder, name, "pod.json"))


def test_a_folder_that_is_not_there_is_empty(runner: LocalRunner) -> None:
    assert (runner.list(), Machine(runner.folder).list()) == ([], [])
    with pytest.raises(SourceMissing):
        runner.stop("x")
    assert not os.path.exists(runner.folder)


# --- what others do meanwhile ------------------------------------------------------------------------------------------


def test_who_stops_a_pod_that_another_has_stopped_leaves_the_next_of_its_name_alone(
    runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = pod(container("one", "host", POLITE))
    name = begin(runner, manifest)
    found = Folder.supervisor

    def late(folder: Folder, deadline: float) -> int | None:
        monkeypatch.setattr(Folder, "supervisor", found)
        runner.stop(name, 0)
        runner.start(manifest)
        return None

    monkeypatch.setattr(Folder, "supervisor", late)
    with pytest.raises(SourceMissing):
        runner.stop(name)
    hear(runner, name, "one", "ready")
    assert runner.stop(name).containers[0].exit == 3


def test_of_two_that_stop_a_pod_at_once_one_is_told_how_it_ended_and_the_other_that_there_is_none(runner: LocalRunner) -> None:
    name = begin(runner, pod(container("one", "host", POLITE)))
    hear(runner, name, "one", "ready")
    stopping = f"""
import sys
from sidecar.errors import SourceMissing
from sidecar.session.local import LocalRunner
sys.stdin.read()
try:
    LocalRunner({runner.folder!r}).stop({name!r})
except SourceMissing:
    sys.exit(9)
"""
    read, write = os.pipe()
    racing = [subprocess.Popen([sys.executable, "-c", stopping], stdin=read) for _ in range(3)]
    os.close(read)
    os.close(write)
    assert sorted(each.wait(HANG) for each in racing) == [0, 9, 9]
    assert os.listdir(runner.folder) == []


def test_threads_that_replace_a_file_at_once_do_not_take_it_from_each_other(runner: LocalRunner) -> None:
    folder = put(runner, pod(container("one", "host", "true")))

    def write(number: int) -> None:
        for _ in range(100):
            folder.write("grace.json", number)

    with ThreadPoolExecutor(8) as many:
        list(many.map(write, range(8)))
    assert folder.read("grace.json") in range(8)
    assert sorted(os.listdir(folder.path)) == ["grace.json", "pod.json", "status.json"]


def test_a_grace_longer_than_the_kernel_waits_ends_a_pod_as_any_other(runner: LocalRunner) -> None:
    for given in ({"grace": 1e12}, {}):
        name = begin(runner, pod(container("one", "host", POLITE), terminationGracePeriodSeconds=10**12))
        hear(runner, name, "one", "ready")
        assert runner.stop(name, **given).containers[0].exit == 3


def test_a_pod_whose_folder_is_removed_by_hand_ends(runner: LocalRunner) -> None:
    token = f"token-{uuid.uuid4()}"
    name = begin(runner, pod(container("one", "host", f": {token}; {POLITE}")))
    hear(runner, name, "one", "ready")
    shutil.rmtree(os.path.join(runner.folder, name))
    until(lambda: not processes_that_say(token), "its processes are gone")


def test_what_a_pod_wrote_that_is_stopped_before_it_is_read_is_missing(runner: LocalRunner) -> None:
    name = begin(runner, pod(container("one", "host", "echo it")))
    runner.wait(name, HANG)
    read, followed = runner.logs(name, "one"), runner.logs(name, "one", follow=True)
    runner.stop(name)
    for pieces in (read, followed):
        with pytest.raises(SourceMissing, match="there is no pod"):
            next(pieces)


# --- who leads it ------------------------------------------------------------------------------------------------------


def test_who_is_interrupted_while_a_pod_is_begun_leaves_nothing_of_it(
    runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = f"token-{uuid.uuid4()}"
    run = subprocess.run

    def interrupted(*given: Any, **how: Any) -> None:
        run(*given, **how)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.start(pod(container("one", "host", f": {token}; {DEAF}")))
    assert os.listdir(runner.folder) == []
    until(lambda: not processes_that_say(token), "no process is left")
    assert not processes_that_say(runner.folder)


def test_who_leads_a_pod_in_another_pid_namespace_is_told_and_no_process_of_its_number_is_touched(runner: LocalRunner) -> None:
    folder = put(runner, pod(container("one", "host", "true")))
    lease = folder.take_lease()
    with subprocess.Popen(["sleep", LONG]) as other:
        here = identity(other.pid)
        assert here is not None
        write_supervisor(lease, Identity(here.pid, here.ticks, here.boot, here.namespace + 1))
        try:
            with pytest.raises(Unreachable, match=f"another PID namespace .{here.namespace + 1}"):
                runner.stop(folder.name, 0)
            with pytest.raises(Unreachable, match="another PID namespace"):
                runner.wait(folder.name, 0)
            assert other.poll() is None
        finally:
            other.kill()
            os.close(lease)


def test_a_pod_that_is_still_being_begun_is_not_stopped_before_its_time_is_over(
    runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(led, "_PATIENCE", 0.02)
    folder = put(runner, pod(container("one", "host", "true")))
    lease = folder.take_lease()
    with pytest.raises(DeadlinePassed, match="still being begun"):
        runner.stop(folder.name, 0)
    os.close(lease)
    assert "what began it died" in runner.stop(folder.name, 0).reason


# --- what is no pod, and what was left ---------------------------------------------------------------------------------


def test_a_folder_that_is_no_pods_is_listed_as_such_beside_the_others(runner: LocalRunner) -> None:
    good = put(runner, pod(container("one", "host", "true"), name="good"))
    for number, text in enumerate(["", "[]", "{}", "{", '{"engine": 1}']):
        odd = Path(runner.folder, f"odd-{number}")
        odd.mkdir()
        (odd / "pod.json").write_text(text)
    Path(runner.folder, "without").mkdir()
    put(runner, pod(container("one", "host", "true"), name="newer"), "sidecar.session.of_tomorrow")
    put(runner, pod(container("one", "host", "true"), name="status")).write("status.json", [])
    machine = Machine(runner.folder)
    found = {each.name: each for each in machine.list()}
    assert sorted(found) == ["good", "newer", *(f"odd-{n}" for n in range(5)), "status", "without"]
    assert (found.pop("good").phase, {each.phase for each in found.values()}) == ("Failed", {"Unknown"})
    for name in ("odd-0", "odd-3", "status", "without"):
        path = os.path.join(runner.folder, name)
        assert f"{path}, and remove it by hand" in found[name].reason
        with pytest.raises(Corrupt, match="remove it by hand"):
            machine.status(name)
    with pytest.raises(ConfigurationError, match="of_tomorrow"):
        machine.stop("newer")
    assert [each.name for each in runner.list()] == ["good", "status"]
    assert machine.stop(good.name).phase == "Failed"


def test_the_pods_that_there_are_instead_are_those_of_all_runners(runner: LocalRunner) -> None:
    put(runner, pod(container("one", "host", "true"), name="mine"))
    put(runner, pod(container("one", "host", "true"), name="contained"), PodmanRunner.ENGINE)
    with pytest.raises(SourceMissing) as missing:
        Machine(runner.folder).status("other")
    assert missing.value.exist == ("contained", "mine")


def test_what_one_that_was_killed_left_on_its_way_is_removed_by_the_next_and_what_is_on_its_way_is_not(
    runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(runner, pod(container("one", "host", "true")))
    left, held, other = on_its_way(runner.folder), on_its_way(runner.folder), os.path.join(runner.folder, ".of-somebody")
    for path in (left, held, other):
        os.mkdir(path, 0o700)
    lease = Folder(held).take_lease()
    again = begin(runner, pod(container("one", "host", "true")))
    assert os.path.exists(left)  # whoever makes it may have begun just now
    monkeypatch.setattr(folders, "_FORGOTTEN", 0)
    third = begin(runner, pod(container("one", "host", "true")))
    os.close(lease)
    there = {first, again, third, os.path.basename(held), ".of-somebody"}
    assert set(os.listdir(runner.folder)) == there


def test_what_is_mounted_in_a_pods_folder_is_kept_also_where_a_link_leads_there(tmp_path: Path) -> None:
    (tmp_path / "real" / "a pod" / "volumes" / "v").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    told = """
import sys
from sidecar.errors import Unreachable
from sidecar.session.folder import Folder, discard
for remove in (lambda: Folder(sys.argv[1]).remove(), lambda: discard(sys.argv[1])):
    try:
        remove()
    except Unreachable as error:
        assert "volumes/v is mounted" in str(error), error
    else:
        raise AssertionError("it was removed")
"""
    script = 'mount --bind "$2/kept" "$2/link/a pod/volumes/v" && "$1" -c "$3" "$2/link/a pod" && [ -e "$2/kept/file" ]'
    words = ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh", sys.executable, str(tmp_path), told]
    ran = subprocess.run(words, check=False, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (tmp_path / "kept" / "file").exists()


def test_a_name_that_cannot_be_taken_for_another_reason_is_told_with_that(runner: LocalRunner) -> None:
    os.mkdir(runner.folder, 0o700)
    Path(runner.folder, "taken").touch()
    with pytest.raises(Unreachable, match="Not a directory"):
        runner.start(pod(container("one", "host", "true"), name="taken"))
    assert os.listdir(runner.folder) == ["taken"]


def test_who_may_not_have_a_name_makes_no_path_of_the_machine(runner: LocalRunner, tmp_path: Path) -> None:
    volume = {"name": "v", "hostPath": {"path": str(tmp_path / "made"), "type": "DirectoryOrCreate"}}
    one = container("one", "host", "true", volumeMounts=[mount("v", "/v")])
    begin(runner, pod(container("one", "host", "true"), name="taken"))
    with pytest.raises(ConfigurationError, match="already"):
        runner.start(pod(one, name="taken", volumes=[volume]))
    assert not (tmp_path / "made").exists()


# --- what of a manifest, and of a command line -------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["pod", "container"])
def test_who_would_be_root_unasked_is_refused_where_that_must_not_be(tmp_path: Path, of: str) -> None:
    said: Manifest = {"securityContext": {"runAsNonRoot": True}}
    one = container("one", "host", "id -u", **(said if of == "container" else {}))
    manifest = pod(one, **(said if of == "pod" else {}))
    told = f"""
import json, os, sys
from sidecar.errors import ParametersError
from sidecar.session.local import LocalRunner
runner, manifest = LocalRunner({str(tmp_path / "pods")!r}), json.loads(sys.argv[1])
name = manifest["metadata"]["name"]
try:
    runner.start(manifest)
except ParametersError as error:
    sys.exit(str(error))
runner.wait(name, {HANG})
print(b"".join(runner.logs(name, "one")).decode())
runner.stop(name)
"""
    for user, out in (("0", ""), ("1234", "1234\n\n")):
        words = ["unshare", "--user", "--map-user", user, "--map-group", user, sys.executable, "-c", told, json.dumps(manifest)]
        ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=HANG)
        assert (ran.stdout, "runAsNonRoot" in ran.stderr) == (out, user == "0"), ran.stderr


@pytest.mark.parametrize("of", ["pod", "container"])
def test_a_seccomp_profile_that_would_not_be_kept_is_refused_by_name(runner: LocalRunner, of: str) -> None:
    for profile in ({"type": "Localhost", "localhostProfile": "mine.json"}, {"type": "Of tomorrow"}):
        said: Manifest = {"securityContext": {"seccompProfile": profile}}
        one = container("one", "host", "true", **(said if of == "container" else {}))
        for each in (runner, PodmanRunner(runner.folder)):
            with pytest.raises(ParametersError, match=r"seccompProfile\.type: expected RuntimeDefault or Unconfined"):
                each.start(pod(one, **(said if of == "pod" else {})))


def test_a_program_that_is_called_as_the_one_that_makes_its_room_is_asked_to_end(runner: LocalRunner, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    shutil.copy("/bin/bash", tmp_path / "v" / "bwrap")
    one = {**container("one", "host", "", volumeMounts=[mount("v", "/v")]), "command": ["/v/bwrap", "-c", POLITE]}
    name = begin(runner, pod(one, volumes=[{"name": "v", "hostPath": {"path": str(tmp_path / "v")}}]))
    hear(runner, name, "one", "ready")
    assert runner.stop(name).containers[0].exit == 3


@pytest.mark.parametrize("very", [False, True], ids=["called so", "the very program"])
def test_who_makes_rooms_is_told_by_its_file_and_not_asked_for_a_little_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, very: bool
) -> None:
    for name in ("bwrap", "other"):
        shutil.copy("/bin/sleep", tmp_path / name)
    with subprocess.Popen([tmp_path / "bwrap", LONG]) as begun:
        until(lambda: os.path.samefile(f"/proc/{begun.pid}/exe", tmp_path / "bwrap"), "it was begun")
        bwrap = str(tmp_path / ("bwrap" if very else "other"))
        processes = sandboxed.Processes(Child(begun.pid), os.open(os.devnull, os.O_RDONLY), "", 0, bwrap)
        processes.pid, processes.command = begun.pid, os.pidfd_open(begun.pid)
        try:
            assert processes.ask() is not very
            monkeypatch.setattr(sandboxed, "_PATIENCE", 0)
            assert processes.ask()
            assert begun.wait(HANG) == -signal.SIGTERM
        finally:
            begun.kill()
            os.close(processes.command)
            os.close(processes.said)


def test_a_directory_may_have_an_equals_sign_in_its_name(tmp_path: Path) -> None:
    given = {"images_here": ("base=/srv/a=b",), "claims": ("store=/srv/c=d",), "folder": str(tmp_path)}
    runner = to_start("local", **given)
    assert isinstance(runner, LocalRunner)
    assert (runner.images, runner.claims) == ({"base": "/srv/a=b"}, {"store": "/srv/c=d"})
