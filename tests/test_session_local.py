"""The local runner: what every runner owes, on the machine's own root and on images that are directories; and what is its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from processes import HANG, LONG, processes_that_say, until
from session_contract import DEAF, PLAIN, POLITE, Contract, container, hear, mount, of, pod, said

from sidecar.errors import ConfigurationError, Corrupt, DeadlinePassed, ParametersError, SourceMissing
from sidecar.parameters.dictionary import decode
from sidecar.process import Child
from sidecar.session.artifact import Artifact, Port
from sidecar.session.compose import Options, compose
from sidecar.session.folder import Folder
from sidecar.session.lead import Lead
from sidecar.session.local import LocalRunner
from sidecar.session.pod import expand, read_pod
from sidecar.session.runner import Manifest
from sidecar.session.sandboxed import Processes

TOP = Path(__file__).parent.parent
PROGRAMS = ("bash", "cat", "env", "id", "ls", "mkdir", "printf", "rm", "seq", "sh", "sleep", "touch", "wc")


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[LocalRunner]:
    runner = LocalRunner(str(tmp_path / "pods"), backoff=0.05)
    yield runner
    with suppress(ConfigurationError):  # it refuses its folder
        for each in runner.list():
            with suppress(SourceMissing, Corrupt):
                runner.stop(each.name, 0)


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image: a few programs of the machine's, what they are linked with, and no place for anything else."""
    image = tmp_path_factory.mktemp("an image, of a few: programs")
    needed = set()
    for name in PROGRAMS:
        path = shutil.which(name, path="/usr/bin:/bin")
        assert path is not None
        told = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        needed |= {path, *re.findall(r"(/\S+) \(0x", told)}
    for path in needed:
        (image / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, image / path[1:])
    for name in PROGRAMS:
        for place in ("bin", "usr/bin"):
            (image / place).mkdir(parents=True, exist_ok=True)
            if not (image / place / name).exists():
                (image / place / name).symlink_to(f"/{'usr/bin' if place == 'bin' else 'bin'}/{name}")
    (image / "usr" / "share").mkdir()
    (image / "tmp").mkdir()
    return image


def seen(image: Path) -> dict[str, tuple[int, int, int]]:
    """Return all that is in a directory, so that a change would be noticed."""
    found = {}
    for place, folders, files in os.walk(image):
        for name in (*folders, *files, "."):
            about = os.lstat(os.path.join(place, name))
            found[os.path.join(place, name)] = (about.st_mode, about.st_size, about.st_mtime_ns)
    return found


class TestOnTheMachinesOwnRoot(Contract):
    """What every runner owes."""

    @pytest.fixture
    def base(self) -> str:
        return "host"


class TestOnADirectory(Contract):
    """What every runner owes."""

    @pytest.fixture
    def base(self, directory: Path) -> Iterator[str]:
        was = seen(directory)
        yield str(directory)
        assert seen(directory) == was


@pytest.fixture
def begin(runner: LocalRunner) -> Callable[[Manifest], str]:
    def begin(manifest: Manifest) -> str:
        runner.start(manifest)
        return str(manifest["metadata"]["name"])

    return begin


def supervisor_of(runner: LocalRunner, name: str) -> int:
    return int(Path(runner.folder, name, "lease").read_text().split()[0])


# --- three artifacts ---------------------------------------------------------------------------------------------------

# Of the last artifact: tells all that it was given, and what the others brought.
PROGRAM = r"""#!/bin/bash
printf '%s\0' "$PWD" "$SERVER_CONFIG" "$(cat /opt/viewer/app/text)" "$(cat /opt/gdb/bin/tool)" "$@"
echo of the viewer > /var/log/session/viewer/log
"""


def artifacts(folder: Path, arguments: list[str]) -> list[Artifact]:
    """Make three artifacts' images, each a directory that holds its files and nothing else."""
    held = {
        "viewer/app/text": "of the viewer\n",
        "gdb/usr/bin/tool": "of the debugger\n",
        "program/bin/program": PROGRAM,
        "program/share/data": "",
    }
    for path, text in held.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    (folder / "program/bin/program").chmod(0o755)
    return [
        Artifact(
            str(folder / "viewer"), "/opt/viewer", directory="app", server_config={"title": "it's a; demo"}, logs=("viewer",)
        ),
        Artifact(str(folder / "gdb"), "/opt/gdb", path="usr", ports=(Port(2345),)),
        Artifact(
            str(folder / "program"),
            directory="share",
            executable="bin/program",
            arguments=tuple(each.replace("%", "%%") for each in arguments),
            server_config={"hdr": True},
        ),
    ]


def check_told(told: str, arguments: list[str]) -> None:
    cwd, config, viewer, gdb, *found, end = told.split("\0")
    assert re.fullmatch(r"/artifacts/[0-9a-f-]{36}/share", cwd)
    assert decode(config) == {"title": "it's a; demo", "hdr": True}
    assert (viewer, gdb, found, end) == ("of the viewer", "of the debugger", arguments, "")


@pytest.mark.parametrize("on", ["host", "directory"])
def test_three_artifacts_run_as_one_container(runner: LocalRunner, tmp_path: Path, on: str, directory: Path) -> None:
    base = "host" if on == "host" else str(directory)
    session = compose(base, artifacts(tmp_path / "images", PLAIN), (), Options(delivery="image"))
    runner.start(session.pod)
    name = session.pod["metadata"]["name"]
    status = runner.wait(name, HANG)
    assert (status.phase, status.session) == ("Succeeded", session.id), said(runner, name, "application")
    check_told(said(runner, name, "application"), PLAIN)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12), max_size=4))
@example(["a b", "it's", '"q"', "$(x)", "$HOME", "$(SERVER_CONFIG)", "`id`", "two\nlines", ";", "é ☃", "", "*", "\\", "!", "$$"])
def test_whatever_its_arguments_are_they_arrive(runner: LocalRunner, tmp_path: Path, arguments: list[str]) -> None:
    given = [each.lstrip(".") for each in arguments]  # else they would be paths
    session = compose("host", artifacts(tmp_path / "images", given), (), Options(delivery="image"), session=str(uuid.uuid4()))
    runner.start(session.pod)
    name = session.pod["metadata"]["name"]
    runner.wait(name, HANG)
    check_told(said(runner, name, "application"), given)
    runner.stop(name)


def test_artifacts_that_are_copied_run_as_well(runner: LocalRunner, tmp_path: Path) -> None:
    subprocess.run(["make", "--silent", "-C", TOP, "wrapper"], check=True, stdout=subprocess.DEVNULL)
    (tmp_path / "wrapper").mkdir()
    shutil.copy(TOP / "build" / "wrap_application", tmp_path / "wrapper")
    options = Options(delivery="copy", wrapper=str(tmp_path / "wrapper"))
    session = compose("host", artifacts(tmp_path / "images", PLAIN), (), options)
    runner.start(session.pod)
    name = session.pod["metadata"]["name"]
    status = runner.wait(name, HANG)
    assert status.phase == "Succeeded", [(each.name, said(runner, name, each.name)) for each in status.containers]
    check_told(said(runner, name, "application"), PLAIN)


# --- nothing is left, and nothing but the pod is touched ---------------------------------------------------------------


@pytest.mark.parametrize("on", ["host", "directory"])
def test_what_is_stopped_leaves_no_process_no_mount_and_no_file(
    runner: LocalRunner, begin: Any, on: str, directory: Path
) -> None:
    token, base = f"token-{uuid.uuid4()}", "host" if on == "host" else str(directory)
    # Children that left their session and will not hear go with the first.
    script = f"(trap '' TERM HUP; sleep {LONG}) & echo {token}; mkdir -p /v/a/b; touch /v/a/b/c; chmod 0 /v/a/b /v/a; {DEAF}"
    script = script if on == "host" else script.replace("chmod 0 /v/a/b /v/a;", "")
    name = begin(pod(container("one", base, script, volumeMounts=[mount("v", "/v")])))
    hear(runner, name, "one", "ready")
    assert processes_that_say(token)
    assert name not in Path("/proc/self/mountinfo").read_text()
    runner.stop(name, 0)
    assert not processes_that_say(token)
    assert not processes_that_say(runner.folder)
    assert os.listdir(runner.folder) == []


@pytest.mark.parametrize("on", ["host", "directory"])
def test_a_supervisor_that_is_killed_is_seen_at_once_and_takes_all_with_it(
    runner: LocalRunner, begin: Any, on: str, directory: Path
) -> None:
    token, base = f"token-{uuid.uuid4()}", "host" if on == "host" else str(directory)
    name = begin(pod(container("one", base, f": {token}; sleep {LONG} & {DEAF}"), container("two", base, "exit 6")))
    hear(runner, name, "one", "ready")
    until(lambda: of(runner.status(name), "two").exit == 6, "the other container has ended")
    os.kill(supervisor_of(runner, name), signal.SIGKILL)
    status = runner.wait(name, HANG)
    assert (status.phase, [each.exit for each in status.containers]) == ("Failed", [137, 6])
    assert "supervisor died" in status.reason
    until(lambda: not processes_that_say(token), "no process is left")
    assert runner.stop(name).phase == "Failed"
    assert os.listdir(runner.folder) == []


def test_a_pod_outlives_whoever_began_it_and_has_nothing_of_theirs(runner: LocalRunner, tmp_path: Path) -> None:
    manifest = pod(container("one", "host", POLITE))
    began = f"""
import json, sys
from sidecar.session.local import LocalRunner
LocalRunner({runner.folder!r}).start(json.loads(sys.stdin.read()))
"""
    read, write = os.pipe()
    ran = subprocess.run(
        [sys.executable, "-c", began], input=json.dumps(manifest), text=True, pass_fds=(write,), check=False, timeout=HANG
    )
    os.close(write)
    assert ran.returncode == 0
    name = manifest["metadata"]["name"]
    hear(runner, name, "one", "ready")
    # The other end of what it was given: nobody has it any more.
    assert os.read(read, 1) == b""
    os.close(read)
    supervisor = supervisor_of(runner, name)
    assert os.getsid(supervisor) not in (os.getsid(0), ran.args and os.getpid())
    assert os.readlink(f"/proc/{supervisor}/cwd") == "/"
    assert of(runner.stop(name), "one").exit == 3


def test_mounts_make_no_place_for_themselves_on_the_machine(runner: LocalRunner, begin: Any) -> None:
    # One in each directory that a host has, and that may be written by root.
    token = f"token-{uuid.uuid4()}"
    paths = [f"/{token}", f"/opt/{token}", f"/usr/share/{token}/deep/er", f"/var/log/{token}", f"/etc/{token}", f"/home/{token}"]
    mounts = [mount(f"v{number}", path) for number, path in enumerate(paths)]
    name = begin(pod(container("one", "host", "touch " + " ".join(f"{path}/x" for path in paths), volumeMounts=mounts)))
    status = runner.wait(name, HANG)
    assert status.phase == "Succeeded", said(runner, name, "one")
    places = ["/", "/opt", "/usr/share", "/var/log", "/etc", "/home"]
    assert not [place for place in places if token in os.listdir(place)]
    assert [sorted(os.listdir(os.path.join(runner.folder, name, "volumes", each["name"]))) for each in mounts] == [["x"]] * 6


def test_the_machines_root_cannot_be_written_and_what_others_keep_in_tmp_is_not_seen(
    runner: LocalRunner, begin: Any, tmp_path: Path
) -> None:
    script = (
        f"ls /tmp /run; for each in / /etc /usr /opt /var /root {tmp_path}; do touch $$each/x && echo wrote $$each; done; true"
    )
    name = begin(pod(container("one", "host", script)))
    runner.wait(name, HANG)
    lines = said(runner, name, "one").splitlines()
    assert not [line for line in lines if line.startswith("wrote")]
    assert [line for line in lines if not line.startswith("touch:")] == ["/run:", "", "/tmp:"]


def test_a_container_writes_into_a_layer_that_its_next_life_does_not_have(
    runner: LocalRunner, begin: Any, directory: Path
) -> None:
    writes = "echo it > /usr/share/x; echo it > /bin/y; rm /bin/seq; mkdir /bin/seq"
    script = f"cat /usr/share/x /bin/y; {writes}; [ -e /v/x ] || {{ touch /v/x; exit 1; }}"
    one = container("one", str(directory), script, volumeMounts=[mount("v", "/v")])
    was = seen(directory)
    name = begin(pod(one, restartPolicy="OnFailure"))
    status = runner.wait(name, HANG)
    assert (status.phase, of(status, "one").restarts) == ("Succeeded", 1)
    assert said(runner, name, "one").count("No such file") == 4
    assert seen(directory) == was


def test_a_link_in_an_image_leads_nowhere_but_into_the_image(
    runner: LocalRunner, begin: Any, tmp_path: Path, directory: Path
) -> None:
    image = tmp_path / "image"
    shutil.copytree(directory, image, symlinks=True)
    (tmp_path / "outside").mkdir()
    (image / "out").symlink_to(tmp_path / "outside")
    (image / "up").symlink_to("../../../..")
    (image / "old").symlink_to(f"/oldroot{tmp_path}/outside")
    (image / "usr" / "share" / "out").symlink_to("/out")
    mounts = [mount("a", "/usr/share/out/a"), mount("b", f"/up{tmp_path}/outside/b"), mount("c", "/old/c")]
    name = begin(pod(container("one", str(image), "touch /usr/share/out/a/x /out/a/y /old/c/x", volumeMounts=mounts)))
    assert runner.wait(name, HANG).phase == "Succeeded", said(runner, name, "one")
    assert os.listdir(tmp_path / "outside") == []


def test_a_link_in_a_volume_leads_no_part_of_it_out(runner: LocalRunner, begin: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    at = [mount("v", "/v")]
    inits = (container("init", "host", f"ln -s {tmp_path} /v/part", volumeMounts=at),)
    for part in ("part", "part/secret"):
        one = container("one", "host", "cat /part /part/*", volumeMounts=[mount("v", "/part", subPath=part)])
        status = runner.wait(begin(pod(one, inits=inits)), HANG)
        assert status.phase == "Failed"
        assert "leads through a link" in of(status, "one").reason


def test_a_caller_without_privileges_needs_none(tmp_path: Path) -> None:
    manifest = pod(
        container("one", "host", "id -u; cat /opt/a/b/it", volumeMounts=[mount("v", "/opt/a/b")]),
        inits=(
            container(
                "init",
                "host",
                "cd /usr/share/c; echo it > it; mkdir -p a/b; chmod 0 a/b a",
                volumeMounts=[mount("v", "/usr/share/c")],
            ),
        ),
        securityContext={"runAsUser": 10001},
    )
    told = f"""
import json, os, sys
from sidecar.session.local import LocalRunner
assert os.getuid() == 1234
assert "CapEff:\\t0000000000000000" in open("/proc/self/status").read()
runner = LocalRunner({str(tmp_path / "pods")!r})
manifest = json.loads(sys.argv[1])
name = manifest["metadata"]["name"]
runner.start(manifest)
runner.wait(name, {HANG})
for each in ("init", "one"):
    os.writev(1, list(runner.logs(name, each)) or [b""])
assert runner.stop(name).phase == "Succeeded"
"""
    unprivileged = ["unshare", "--user", "--map-user", "1234", "--map-group", "1234"]
    ran = subprocess.run(
        [*unprivileged, sys.executable, "-c", told, json.dumps(manifest)], capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("10001\nit\n", "", 0)
    # Also what its programs closed to it.
    assert os.listdir(tmp_path / "pods") == []


def test_a_name_is_a_name_and_no_way_to_a_folder(runner: LocalRunner, begin: Any) -> None:
    name = begin(pod(container("one", "host", POLITE)))
    for way in (f"./{name}", f"{name}/", f"../pods/{name}", f"{name}/../{name}", os.path.join(runner.folder, name)):
        for ask in (runner.status, runner.stop):
            with pytest.raises(SourceMissing):
                ask(way)
    assert [each.name for each in runner.list()] == [name]


def test_a_pod_that_is_stopped_while_it_begins_leaves_nothing(runner: LocalRunner, begin: Any, directory: Path) -> None:
    token = f"token-{uuid.uuid4()}"
    for number in range(8):
        base = ("host", str(directory))[number % 2]
        assert runner.stop(begin(pod(container("one", base, f": {token}; {DEAF}"))), 0.003 * number).phase == "Failed"
        assert not processes_that_say(token)
    assert os.listdir(runner.folder) == []


def test_who_waits_for_a_pod_that_is_still_being_begun_is_told_when_its_time_is_over(runner: LocalRunner) -> None:
    name = "begun-for-long"
    folder = Folder(os.path.join(runner.folder, name))
    for path in (runner.folder, folder.path):
        os.mkdir(path, 0o700)
    folder.write("pod.json", {"engine": LocalRunner.ENGINE})
    lease = folder.take_lease()  # of whoever pulls images, and has no supervisor yet
    with pytest.raises(DeadlinePassed):
        runner.wait(name, 0.02)
    os.close(lease)


@pytest.mark.parametrize("lengths", [(1,), (63, 1), (63, 63, 63, 61)])
def test_a_name_may_be_as_long_as_kubernetes_has_it(runner: LocalRunner, begin: Any, lengths: tuple[int, ...]) -> None:
    name = ".".join("x" * each for each in lengths)
    begin(pod(container("one", "host", "true"), name=name))
    assert runner.wait(name, HANG).phase == "Succeeded"
    assert runner.stop(name).name == name
    assert os.listdir(runner.folder) == []


# --- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image": "example/nothing:1"}, "example/nothing:1 is no directory"),
        ({"image": "relative"}, "relative is no directory"),
        ({"command": None}, "expected a command"),
        ({"securityContext": {"privileged": True}}, "privileges"),
        ({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}, "privileges"),
        ({"volumeMounts": [mount("v", "/v"), mount("v", "/v/w")]}, "lies in"),
        ({"volumeMounts": [mount("v", "/")]}, "the sandbox's own"),
        ({"volumeMounts": [mount("v", "/proc/x")]}, "the sandbox's own"),
        ({"volumeMounts": [mount("v", "/v/../../w")]}, "absolute"),
        ({"volumeMounts": [mount("v", "/v", subPath="../w")]}, "below the volume"),
        ({"volumeMounts": [mount("v", "/v", mountPropagation="Bidirectional")]}, "mountPropagation"),
    ],
)
def test_what_cannot_be_here_is_refused_and_nothing_is_left(runner: LocalRunner, change: Manifest, problem: str) -> None:
    one = {**container("one", "host", "true"), **change}
    with pytest.raises(ParametersError, match=re.escape(problem)):
        runner.start(pod(one, volumes=[{"name": "v", "emptyDir": {}}]))
    assert runner.list() == []
    assert not os.path.exists(runner.folder)


def test_a_path_of_the_machine_is_made_where_the_pod_says_so_and_runs(runner: LocalRunner, begin: Any, tmp_path: Path) -> None:
    def on(of_type: str, path: str, image: str = "host") -> Manifest:
        volume = {"name": "v", "hostPath": {"path": str(tmp_path / path), "type": of_type}}
        return pod(container("one", image, "touch /v/x", volumeMounts=[mount("v", "/v")]), volumes=[volume])

    for of_type in ("", "Directory", "File"):
        with pytest.raises(ParametersError, match="there is no"):
            runner.start(on(of_type, "missing"))
    with pytest.raises(ParametersError, match="is no directory"):
        runner.start(on("DirectoryOrCreate", "made", "no image"))
    assert os.listdir(tmp_path) == []
    assert runner.wait(begin(on("DirectoryOrCreate", "made/too")), HANG).phase == "Succeeded"
    assert os.listdir(tmp_path / "made" / "too") == ["x"]


def test_a_directory_stands_for_a_claim_and_a_claim_without_one_is_refused(tmp_path: Path) -> None:
    runner = LocalRunner(str(tmp_path / "pods"), claims={"store": str(tmp_path)})
    volume: Manifest = {"name": "v", "persistentVolumeClaim": {"claimName": "store"}}
    manifest = pod(container("one", "host", "echo it > /v/file", volumeMounts=[mount("v", "/v")]), volumes=[volume])
    runner.start(manifest)
    assert runner.wait(manifest["metadata"]["name"], HANG).phase == "Succeeded"
    runner.stop(manifest["metadata"]["name"])
    assert (tmp_path / "file").read_text() == "it\n"
    volume["persistentVolumeClaim"]["claimName"] = "other"
    with pytest.raises(ParametersError, match="no directory stands for other; there are store"):
        runner.start(manifest)
    with pytest.raises(ParametersError, match="persistentVolumeClaim"):
        LocalRunner(str(tmp_path / "pods")).start(manifest)


def test_every_fault_of_a_manifest_is_told_at_once_and_with_its_place() -> None:
    bad = container("one", "", "true", stdin=True, env=[{"name": "a=b", "value": 1}])
    manifest = pod(bad, bad, volumes=[{"name": "V", "emptyDir": {}}], restartPolicy="Sometimes", terminationGracePeriodSeconds=-1)
    with pytest.raises(ParametersError) as refused:
        read_pod({**manifest, "apiVersion": "v2"})
    keys = [fault.key for fault in refused.value.faults]
    assert keys == [
        "apiVersion",
        "spec.volumes[0].name",
        *(f"spec.containers[{n}].{key}" for n in (0, 1) for key in ("stdin", "env[0].value", "env[0]", "image")),
        "spec",
        "spec.restartPolicy",
        "spec.terminationGracePeriodSeconds",
    ]


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_a_folder_that_others_may_enter_is_refused(runner: LocalRunner, mode: int) -> None:
    os.mkdir(runner.folder)
    os.chmod(runner.folder, mode)
    with pytest.raises(ConfigurationError, match="0700"):
        runner.start(pod(container("one", "host", "true")))


def test_a_folder_that_is_a_link_is_refused(runner: LocalRunner, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(0o700)
    os.symlink(tmp_path / "elsewhere", runner.folder)
    with pytest.raises(ConfigurationError, match="directory of this user's"):
        runner.start(pod(container("one", "host", "true")))
    assert os.listdir(tmp_path / "elsewhere") == []


def test_what_is_kept_of_a_pod_is_for_its_user_alone_and_its_secrets_stand_on_no_command_line(
    runner: LocalRunner, begin: Any
) -> None:
    secret = f"secret-{uuid.uuid4()}"
    name = begin(pod(container("one", "host", POLITE, env=[{"name": "SECRET", "value": secret}])))
    hear(runner, name, "one", "ready")
    assert processes_that_say(secret) == []
    for place, folders, files in os.walk(runner.folder):
        for each in (*folders, *files, "."):
            assert not stat.S_IMODE(os.lstat(os.path.join(place, each)).st_mode) & 0o077, (place, each)


def test_of_two_that_begin_one_name_at_once_one_does(runner: LocalRunner) -> None:
    manifest = pod(container("one", "host", POLITE))
    began = f"""
import json, sys
from sidecar.errors import ConfigurationError
from sidecar.session.local import LocalRunner
manifest = json.loads(sys.argv[1])
sys.stdin.read()
try:
    LocalRunner({runner.folder!r}).start(manifest)
except ConfigurationError:
    sys.exit(9)
"""
    read, write = os.pipe()
    racing = [subprocess.Popen([sys.executable, "-c", began, json.dumps(manifest)], stdin=read) for _ in range(4)]
    os.close(read)
    os.close(write)
    assert sorted(each.wait(HANG) for each in racing) == [0, 9, 9, 9]
    assert os.listdir(runner.folder) == [manifest["metadata"]["name"]]


# --- what leads a pod decides ------------------------------------------------------------------------------------------


def lead(*containers: Manifest, backoff: float = 10, **spec: Any) -> Lead:
    return Lead(read_pod(pod(*containers, **spec)), backoff)


def test_the_time_between_two_lives_doubles_up_to_five_minutes_and_begins_anew_after_ten_that_went_well() -> None:
    led = lead(container("one", "host", "true"), restartPolicy="Always")
    (life,) = led.to_begin(0)
    now, waits = 0.0, []
    for lasts in (1, 1, 1, 1, 1, 1, 1, 600, 599):
        led.begun(life, now)
        now += lasts
        led.ended(life, 1, "", now)
        assert (life.state, life.reason) == ("waiting", "CrashLoopBackOff")
        assert led.to_begin(life.due - 0.001) == []
        assert led.to_begin(life.due) == [life]
        waits.append(life.due - now)
        now = life.due
    assert waits == [10, 20, 40, 80, 160, 300, 300, 10, 20]


def test_native_sidecars_end_after_all_others_and_in_reverse() -> None:
    sidecars = tuple(container(name, "host", "true", restartPolicy="Always") for name in ("a", "b"))
    led = lead(container("one", "host", "true"), inits=sidecars)
    for life in led.to_begin(0):
        led.begun(life, 0)
    led.end(5, 30)
    order = []
    while asked := led.to_end():
        order.append([each.program.name for each in asked])
        for life in asked:
            led.ended(life, 0, "", 6)
    assert order == [["one"], ["b"], ["a"]]
    assert led.over
    assert led.status().phase == "Succeeded"


def test_who_asks_again_with_less_patience_is_heard() -> None:
    led = lead(container("one", "host", "true"))
    for life in led.to_begin(0):
        led.begun(life, 0)
    led.end(0, 60)
    led.end(10, 100)  # with more, is not
    assert (led.to_kill(59), len(led.to_kill(60))) == ([], 1)
    led.end(10, 5)
    assert (led.to_kill(14), len(led.to_kill(15))) == ([], 1)


def test_nobody_is_asked_to_end_while_bwrap_still_makes_its_room(tmp_path: Path) -> None:
    for name, ready in (("bwrap", False), ("sleep", True)):
        shutil.copy("/bin/sleep", tmp_path / name)
        with subprocess.Popen([tmp_path / name, LONG]) as begun:
            comm = Path(f"/proc/{begun.pid}/comm")
            until(lambda comm=comm, name=name: comm.read_text() == f"{name}\n", f"{name} was begun")  # type: ignore[misc]
            bwrap = str(tmp_path / "bwrap")
            processes = Processes(Child(begun.pid), os.open(os.devnull, os.O_RDONLY), "", 0, bwrap)
            processes.pid, processes.command = begun.pid, os.pidfd_open(begun.pid)
            assert processes.ask() == ready
            if not ready:
                begun.kill()
            assert begun.wait(HANG) == (-signal.SIGTERM if ready else -signal.SIGKILL)
            os.close(processes.command)
            os.close(processes.said)


@settings(deadline=None)
@given(st.text("$()AB x", max_size=12))
def test_what_is_not_a_known_variable_stays_as_it_is(text: str) -> None:
    assert expand(text.replace("$", "$$"), {"A": "a"}) == text
    assert expand(expand(text, {}).replace("$", "$$"), {"A": "a"}) == expand(text, {})
