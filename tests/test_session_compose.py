"""A session's pod: what artifacts become in it, whole, and everything that a request can have wrong, at once."""

from __future__ import annotations

import posixpath
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sidecar.batteries.companion import Around, Companion, fuse, literal, postgres
from sidecar.errors import ParametersError
from sidecar.parameters.dictionary import decode
from sidecar.session.artifact import Artifact, Port
from sidecar.session.catalog import find, read_catalog
from sidecar.session.compose import Options, Session, compose
from sidecar.session.job import job
from sidecar.session.place import CLOSED, below, clashes, mount_path
from sidecar.session.plan import Plan, plan
from sidecar.session.variables import LIMIT, Variables

GOLDEN = Path(__file__).parent / "golden" / "session"
VERSIONS = ("1.33", "1.34", "1.36")
CATALOG = """\
artifacts:
  viewer@1.4:
    image: example/viewer:1.4
    workingDirectory: app
    ports: [{name: http, port: 8000}]
    serverConfig: {title: demo of 'it'}
    logDirectories: [viewer]
  gdb@13: {image: "example/gdb:13", mountPath: /opt/gdb, path: usr, ports: [2345], mountPaths: {/opt/share: share/gdb}}
  streamer@7:
    image: example/streamer:7
    workingDirectory: share
    executable: bin/stream
    args: [--root, ./share, --port, "%port stream%", "it's $(x) $HOME; \\"q\\"\\n", ""]
    ports: [{name: stream, port: 9000}, {name: control, port: 9000, protocol: UDP}]
    serverConfig: {bitrate: 20, hdr: , url: "http://%config title%:%port stream%"}
    environment: {LEVEL: "%config bitrate%0 %%"}
"""
IDS = ("viewer@1.4", "gdb@13", "streamer@7")
PROGRAM = Artifact("example/program:1", mount_path="/opt/program", executable="bin/run")
AROUND = Around("/sidecar/coordination", "file:///store", "store")
BUNDLES = """\
bundles: [{name: in, srcPath: /input, srcRepo: weather, srcLabel: latest},
{name: out, destPath: /output, destRepo: results, destMessage: $(x) it's}]
"""
DATABASES = "databases: [{name: db1, pgPort: 5430, owner: u, databases: [shop]}, {name: db2, pgPort: 5431, owner: u}]"
FUSE = fuse(BUNDLES, "fuse.yaml", AROUND)
POSTGRES = postgres(DATABASES, "pg.yaml", AROUND)
MOUNTING = fuse(BUNDLES.replace("/input", "/input/weather"), "fuse.yaml", replace(AROUND, mount=True))
NATIVE = replace(AROUND, native=True)
COMMAND = ("python3", "-c", "print('$(HOME) {}')")


def catalog() -> dict[str, Artifact]:
    return read_catalog(CATALOG.replace("%config title%", "here"))


def faults(*artifacts: Artifact, **how: Any) -> list[str]:
    """Return everything that is wrong with a request."""
    with pytest.raises(ParametersError) as refused:
        plan("a session", artifacts, **how)
    return [str(fault) for fault in refused.value.faults]


def planned(*artifacts: Artifact, **how: Any) -> Plan:
    return plan("a session", artifacts, **how)


# --- whole pods --------------------------------------------------------------------------------------------------------

PODS: dict[str, tuple[tuple[str, ...], tuple[Companion, ...], Options]] = {
    "one": (IDS[2:], (), Options()),
    "two": ((IDS[0], IDS[2]), (), Options()),
    "three": (IDS, (), Options()),
    "three-as-image-volumes": (IDS, (), Options(delivery="image")),
    "three-and-fuse": (IDS, (FUSE,), Options()),
    "three-and-both-batteries": (IDS, (FUSE, POSTGRES), Options()),
    "one-and-postgres": (IDS[2:], (POSTGRES,), Options()),
    "three-and-fuse-as-image-volumes": (IDS, (FUSE,), Options(delivery="image", user=None)),
    "three-and-native-sidecars": (IDS, (fuse(BUNDLES, "fuse.yaml", NATIVE), postgres(DATABASES, "pg.yaml", NATIVE)), Options()),
    "command": ((), (), Options(read_only=True)),
    "command-and-fuse": ((), (FUSE,), Options(grace=120)),
    "command-and-a-mount": ((), (MOUNTING,), Options(read_only=True, cpu="100m", memory="256Mi", disk="10Gi")),
}
every_pod = pytest.mark.parametrize("name", PODS)


def session(name: str) -> Session:
    ids, batteries, options = PODS[name]
    return compose("example/base:12", find(catalog(), ids), batteries, options, command=() if ids else COMMAND)


def pod(name: str) -> dict[str, Any]:
    return session(name).pod


@every_pod
def test_a_session_becomes_this_pod(name: str) -> None:
    assert pod(name) == yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())


@every_pod
@pytest.mark.parametrize("version", VERSIONS)
def test_its_pod_is_one_of_kubernetes(name: str, version: str) -> None:
    kubernetes_validate.validate(pod(name), version, strict=True)


def test_a_session_becomes_this_job() -> None:
    made = job(session("three-and-both-batteries"))
    assert made == yaml.safe_load((GOLDEN / "job.yaml").read_text())


@every_pod
@pytest.mark.parametrize("version", VERSIONS)
def test_its_job_is_one_of_kubernetes_and_its_pod_the_session(name: str, version: str) -> None:
    made = job(session(name))
    kubernetes_validate.validate(made, version, strict=True)
    assert made["spec"]["template"]["spec"] == pod(name)["spec"]


@every_pod
def test_what_is_composed_is_nobodys_until_a_runner_begins_it(name: str) -> None:
    made = job(session(name))
    for labels in (pod(name)["metadata"]["labels"], made["metadata"]["labels"], made["spec"]["template"]["metadata"]["labels"]):
        assert labels == {"app.kubernetes.io/name": "session", "app.kubernetes.io/instance": session(name).id}


def test_a_job_fails_at_once_for_what_a_battery_says_and_never_for_what_the_application_says() -> None:
    rules = job(session("three-and-both-batteries"))["spec"]["podFailurePolicy"]["rules"]
    named = [rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule]
    assert named == ["fuse", "postgres"]
    native = job(session("three-and-native-sidecars"))["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in native] == ["Ignore"]  # the kubelet starts such a battery again, whatever its status


def test_the_same_request_is_the_same_pod_and_another_is_another() -> None:
    one, same = (compose("base", find(catalog(), IDS)) for _ in range(2))
    assert one == same
    others = (compose("base:2", find(catalog(), IDS)), compose("base", find(catalog(), (IDS[1], IDS[0], IDS[2]))))
    assert len({one.id, *(other.id for other in others)}) == 3


def test_the_same_artifact_twice_is_two_volumes() -> None:
    tool = Artifact("example/tool:1")
    volumes = compose("base", [tool, tool, PROGRAM]).pod["spec"]["volumes"]
    names = [each["name"] for each in volumes]
    assert len(names) == len(set(names)) == 4  # and the wrapper's


def test_a_fourth_artifact_is_an_entry_in_the_catalog() -> None:
    more = read_catalog(CATALOG.replace("%config title%", "here") + "  trace@1: {image: example/trace:1, ports: [9411]}\n")
    session = compose("base", find(more, (*IDS[:2], "trace@1", IDS[2])))
    assert [(o.port.number, o.artifact) for o in session.ports] == [(8000, 1), (2345, 2), (9411, 3), (9000, 4), (9000, 4)]
    assert len(session.pod["spec"]["initContainers"]) == 5


def test_the_response_tells_ports_and_log_directories_and_whose_they_are() -> None:
    session = compose("base", find(catalog(), IDS), session="6f1c")
    assert session.as_json() == {
        "session": "6f1c",
        "pod": "session-6f1c",
        "ports": [
            {"name": "http", "port": 8000, "protocol": "TCP", "artifact": 1},
            {"name": "", "port": 2345, "protocol": "TCP", "artifact": 2},
            {"name": "stream", "port": 9000, "protocol": "TCP", "artifact": 3},
            {"name": "control", "port": 9000, "protocol": "UDP", "artifact": 3},
        ],
        "logDirectories": [{"path": "/var/log/session/viewer", "artifact": 1}],
        "warnings": [],
    }


# --- what it runs ------------------------------------------------------------------------------------------------------


def test_the_directory_the_executable_and_arguments_are_meant_below_the_mount_path() -> None:
    found = planned(
        Artifact("i", "/opt/x", directory="a/b", executable="bin/run", arguments=("./f", "../x/f", "-o", "/abs", "a/b", "."))
    )
    assert found.script == "set -e\ncd /opt/x/a/b\nexec /opt/x/bin/run /opt/x/f /opt/x/f -o /abs a/b ."


def test_an_executable_without_a_slash_is_looked_up_and_an_absolute_one_stays() -> None:
    assert planned(Artifact("i", "/opt/x", executable="python3")).script.endswith("exec python3")
    assert planned(Artifact("i", "/opt/x", executable="/usr/bin/env")).script.endswith("exec /usr/bin/env")


def test_only_the_last_artifacts_executable_is_run_and_others_are_warned_of() -> None:
    found = planned(Artifact("one", "/opt/one", executable="first"), Artifact("two", "/opt/two"), PROGRAM)
    assert found.script == "set -e\ncd /opt/one\ncd /opt/two\ncd /opt/program\nexec /opt/program/bin/run"
    assert [warning.partition(":")[0] for warning in found.warnings] == ["artifact 1 (one)"]


def test_stacked_runtimes_are_run_each_in_its_directory_and_the_last_takes_the_shells_place() -> None:
    found = planned(
        Artifact("one", "/opt/one", executable="first", arguments=("a b",)), Artifact("two", "/opt/two"), PROGRAM, launch="each"
    )
    assert found.script == "set -e\ncd /opt/one\nfirst 'a b'\ncd /opt/two\ncd /opt/program\nexec /opt/program/bin/run"
    assert found.warnings == ()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12), max_size=4))
@example(["a b", "it's", '"q"', "$(x)", "$HOME", "`id`", "two\nlines", ";", "é ☃", "", "*", "\\", "!"])
def test_bash_hands_every_argument_to_the_program_as_it_is(arguments: list[str]) -> None:
    assume(not any("%" in each or each.startswith(("./", "../")) or each == ".." for each in arguments))
    found = planned(Artifact("i", "/opt/x", directory="/", executable="printf", arguments=("%%s\\0", *arguments)))
    ran = subprocess.run(["/bin/bash", "-c", found.script], capture_output=True, check=True)
    assert ran.stdout.split(b"\0")[:-1] == [each.encode() for each in arguments] or (not arguments and ran.stdout == b"\0")


def test_kubernetes_expands_nothing_of_ours() -> None:
    assert literal("$(x) $$ $") == "$$(x) $$$$ $$"
    session = compose("base", [Artifact("i", executable="run", arguments=("$(PATH)",), environment={"A": "$(PATH)"})])
    (application,) = session.pod["spec"]["containers"]
    assert application["args"][0].endswith("exec run '$$(PATH)'")
    assert application["env"] == [{"name": "A", "value": "$$(PATH)"}]


# --- variables ---------------------------------------------------------------------------------------------------------


def test_variables_are_the_last_artifacts_wherever_they_stand() -> None:
    first = Artifact(
        "i", "/opt/first", environment={"A": "%mount path% %working directory% %executable% %args% %port x% %config k% 100%%"}
    )
    last = Artifact(
        "j",
        "/opt/last",
        directory="d",
        executable="bin/e",
        arguments=("a b", "%config k%"),
        ports=(Port(80, "x"),),
        server_config={"k": "v%mount path%"},
    )
    assert (
        dict(planned(first, last).environment)["A"] == "/opt/last /opt/last/d /opt/last/bin/e 'a b' v/opt/last 80 v/opt/last 100%"
    )


def test_those_of_another_artifact_are_not_known() -> None:
    first = Artifact("i", "/opt/first", ports=(Port(80, "mine"),), environment={"A": "%port mine%"})
    (problem,) = faults(first, PROGRAM)
    assert problem.startswith("artifact 1 (i): environment.A: %port mine%: unknown variable")


@pytest.mark.parametrize(
    ("text", "said"),
    [("%nonsense%", "unknown variable"), ("100%", "a percent sign stands alone"), ("%config a%", "refers to itself")],
)
def test_a_variable_that_has_no_value_is_a_fault(text: str, said: str) -> None:
    (problem,) = faults(Artifact("i", executable="run", arguments=(text,), server_config={"a": "%config b%", "b": "%config a%"}))[
        -1:
    ]
    assert any(
        said in each
        for each in faults(
            Artifact("i", executable="run", arguments=(text,), server_config={"a": "%config b%", "b": "%config a%"})
        )
    )
    assert problem


def test_values_that_hold_each_other_twice_come_to_an_end() -> None:
    known = {str(n): f"%{n + 1}%%{n + 1}%" for n in range(200)}
    assert Variables({**known, "200": ""}).expand("%0%") == ""
    with pytest.raises(ValueError, match=f"at most {LIMIT}"):
        Variables({**known, "200": "x"}).expand("%0%")


# --- configuration, ports, logs ----------------------------------------------------------------------------------------


def test_the_configuration_of_all_is_one_serialized_dictionary() -> None:
    one = Artifact("i", "/opt/i", server_config={"a": "x;y:z", "flag": True})
    two = Artifact("j", "/opt/j", executable="run", server_config={"b": "", "a": "x;y:z"})
    assert decode(dict(planned(one, two).environment)["SERVER_CONFIG"]) == {"a": "x;y:z", "flag": True, "b": ""}


def test_what_contradicts_itself_names_both() -> None:
    one = Artifact("i", "/opt/i", server_config={"a": "1"}, environment={"E": "1"}, ports=(Port(80, "x"), Port(81)), logs=("l",))
    two = Artifact(
        "j",
        "/opt/j",
        executable="run",
        server_config={"a": "2"},
        environment={"E": "2"},
        ports=(Port(80), Port(82, "x")),
        logs=("l",),
    )
    found = faults(one, two)
    assert [each.partition(": ")[2].partition(": ")[0] for each in found] == [
        "logDirectories", "ports", "ports", "environment.E", "serverConfig.a",
    ]  # fmt: skip
    assert all(each.startswith("artifact 2 (j)") and "artifact 1 (i)" in each for each in found)


def test_one_number_may_be_open_for_two_protocols() -> None:
    assert len(planned(Artifact("i", executable="run", ports=(Port(53), Port(53, protocol="UDP")))).ports) == 2


# --- paths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/etc", "/usr/bin", "/proc/x", "/dev", "/lib/x", "relative", "/a/../b", "/a:b", "/a\nb", "/sys/fs"]
)
def test_where_nothing_may_be_mounted(path: str) -> None:
    with pytest.raises(ValueError, match=r"expected|system"):
        mount_path(path)


@pytest.mark.parametrize("path", ["/opt/tool", "/usr/share/tool", "/srv/a b", "/data/", "//data//x"])
def test_where_something_may_be_mounted(path: str) -> None:
    assert mount_path(path) == "/" + posixpath.normpath(path).lstrip("/")


@pytest.mark.parametrize("text", ["..", "../y", "a/../../y", "./../..", "../xy"])
def test_a_path_that_leaves_its_mount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="leaves the mount"):
        below("/opt/x", text)
    assert any("leaves the mount" in each for each in faults(Artifact("i", "/opt/x", directory=text, executable="run")))


NAMES = st.sampled_from(["a", "b", "ab", "opt", "x", "..", ".", "", "proc", "etc"])
PATHS = st.lists(NAMES, max_size=5).map("/".join)


@settings(max_examples=300, deadline=None)
@given(mounts=st.lists(PATHS.map("/opt/{}".format), min_size=1, max_size=6), inner=st.lists(PATHS, max_size=3))
def test_no_accepted_mounts_lie_in_each_other_and_no_accepted_path_leaves_its_mount(mounts: list[str], inner: list[str]) -> None:
    artifacts = [
        Artifact(f"i{n}", mount, directory=path, executable="run")
        for n, (mount, path) in enumerate(zip(mounts, [*inner, *[""] * 6], strict=False))
    ]
    try:
        found = planned(*artifacts, taken=[("/opt/x", "the wrapper")])
    except ParametersError:
        return
    paths = ["/opt/x", *(each.mount for each in found.placed)]
    for number, one in enumerate(paths):
        assert not any(other == one or other.startswith(f"{one}/") for at, other in enumerate(paths) if at != number)
        assert not any(one == each or one.startswith(f"{each}/") for each in CLOSED)
    for each in found.placed:
        if not each.artifact.directory.startswith("/"):
            assert posixpath.normpath(each.directory) == each.mount or posixpath.normpath(each.directory).startswith(
                f"{each.mount}/"
            )


@settings(deadline=None)
@given(st.lists(PATHS.map(lambda path: posixpath.normpath("/t/" + path.replace("..", "c"))), max_size=8))
def test_clashes_are_those_of_every_pair(paths: list[str]) -> None:
    found = {inner for _, inner in clashes(paths)}
    apart = [each for number, each in enumerate(paths) if number not in found]
    assert not any(one != other and other.startswith(f"{one}/") for one in apart for other in apart)
    assert len(set(apart)) == len(apart)
    for outer, inner in clashes(paths):
        assert paths[inner] == paths[outer] or paths[inner].startswith(f"{paths[outer]}/")


def test_the_wrapper_and_the_batteries_have_their_places_too() -> None:
    for path, whose in (("/sidecar/wrapper", "the wrapper"), ("/sidecar", "the wrapper"), ("/input/x", "the battery fuse")):
        with pytest.raises(ParametersError, match=whose):
            compose("base", [Artifact("i", path, executable="run")], [FUSE])


# --- everything at once ------------------------------------------------------------------------------------------------


def test_a_bad_request_is_told_whole_and_with_its_places() -> None:
    bad = Artifact(
        "",
        "/etc",
        directory="../..",
        ports=(Port(0, "UPPER"),),
        mounts=(("rel", "../x"),),
        logs=("..",),
        environment={"a b": "%"},
    )
    with pytest.raises(ParametersError) as refused:
        compose("", [bad], names=["bad@1"])
    told = [(fault.where, fault.key) for fault in refused.value.faults]
    keys = [
        "image",
        "mountPath",
        "workingDirectory",
        "mountPaths",
        "mountPaths",
        "executable",
        "logDirectories",
        "ports",
        "ports",
        "environment",
        "environment.a b",
    ]
    assert told[0] == ("session", "image")
    assert {where for where, _ in told[1:]} == {"artifact 1 (bad@1)"}
    assert sorted(key for _, key in told[1:]) == sorted(keys)


def test_a_session_of_nothing_is_refused() -> None:
    assert faults() == ["session: artifacts: expected at least one artifact, or a command"]


def test_artifacts_and_a_command_are_refused() -> None:
    assert faults(PROGRAM, command=["true"]) == [
        "session: command: expected none where there are artifacts: the last one says what runs"
    ]


@pytest.mark.parametrize(("command", "place"), [(["", "x"], "command[0]"), (["echo", "a\0b"], "command[1]")])
def test_a_command_that_cannot_be_run_is_refused(command: list[str], place: str) -> None:
    (fault,) = faults(command=command)
    assert fault.startswith(f"session: {place}: expected")


# --- ids, and batteries ------------------------------------------------------------------------------------------------


def refused(*batteries: Companion, **how: Any) -> list[str]:
    """Return everything that is wrong with a session."""
    artifacts = how.pop("artifacts", ())
    with pytest.raises(ParametersError) as error:
        compose("base", artifacts, batteries, how.pop("options", Options()), command=() if artifacts else ("true",), **how)
    return [str(fault) for fault in error.value.faults]


@pytest.mark.parametrize(
    "text", ["Upper", "a_b", "-", "a-", "a..b", ".a", "a.", "a b", "a/b", "é", "a\n", "x" * 56, f"{'x' * 28}.{'y' * 28}", "{{x}}"]
)
def test_an_id_that_no_pod_and_no_label_can_have_is_refused(text: str) -> None:
    (fault,) = refused(session=text)
    assert fault.startswith("session: id: expected at most 55 lower-case letters, digits, '-' and '.'")


@pytest.mark.parametrize("text", ["6f1c", "a.b", "a--b", "0", "x" * 55])
def test_an_id_that_a_pod_and_a_label_can_have_is_its_name_and_its_label(text: str) -> None:
    metadata = compose("base", (), session=text, command=["true"]).pod["metadata"]
    assert (metadata["name"], metadata["labels"]["app.kubernetes.io/instance"]) == (f"session-{text}", text)


def test_two_batteries_of_one_kind_are_refused() -> None:
    other = postgres("databases: [{name: db3, pgPort: 5432, owner: u, dataDir: /other}]", "other.yaml", AROUND)
    assert refused(POSTGRES, FUSE, other) == [
        "the battery postgres: name: 'postgres' is the container of the battery postgres already: expected one battery of a kind"
    ]


@pytest.mark.parametrize("name", ["application", "wrapper"])
def test_a_batterys_container_has_a_name_of_its_own(name: str) -> None:
    (fault,) = refused(Companion({"name": name, "image": "i"}))
    assert fault == f"the battery {name}: name: {name!r} is the container of the {name} already: expected one battery of a kind"


def test_volumes_of_one_name_are_one_volume_or_a_fault() -> None:
    def battery(name: str, **volume: Any) -> Companion:
        return Companion({"name": name, "image": "i"}, ({"name": "cache", **volume},))

    same = compose("base", (), [battery("a", emptyDir={}), battery("b", emptyDir={})], command=["true"])
    assert [each["name"] for each in same.pod["spec"]["volumes"]].count("cache") == 1
    (fault,) = refused(battery("a", emptyDir={}), battery("b", emptyDir={"medium": "Memory"}))
    assert fault == "the battery b: volumes.cache: is the name of another volume already"


@pytest.mark.parametrize("name", ["wrapper", "coordination", "shared-1", "log-x", "artifact-x"])
def test_a_batterys_volume_has_none_of_our_names(name: str) -> None:
    (fault,) = refused(Companion({"name": "b", "image": "i"}, ({"name": name, "emptyDir": {}},)))
    assert fault == f"the battery b: volumes.{name}: is the name of another volume already"


def test_batteries_mount_nothing_where_nothing_may_be_mounted_and_all_of_it_is_told() -> None:
    bundles = BUNDLES.replace("/input", "/etc").replace("/output", "'/a:b'")
    databases = DATABASES.replace("owner: u}", "owner: u, dataDir: /lib/x}").replace("databases: [shop]", "dataDir: /usr/lib")
    around = replace(AROUND, store="file:///proc/store", claim="My_Store")
    batteries = (fuse(bundles, "fuse.yaml", around), postgres(databases, "pg.yaml", around))
    bad = Artifact("i", "/dev", executable="run")
    found = refused(*batteries, artifacts=(bad,), options=Options(disk="much"), session="UPPER")
    assert [": ".join(each.split(": ")[:2]) for each in found] == [
        "session: id",
        "session: disk",
        "the battery fuse: volumes.store",
        "the battery fuse: shared",
        "the battery fuse: shared",
        "the battery fuse: volumeMounts.store",
        "the battery postgres: volumes.store",
        "the battery postgres: volumeMounts.databases-1",
        "the battery postgres: volumeMounts.databases-2",
        "the battery postgres: volumeMounts.store",
        "artifact 1 (i): mountPath",
    ]


@pytest.mark.parametrize(
    ("store", "claim"),
    [("file:///store", "Store"), ("file:///store", "a/b"), ("file:///store", "x" * 254), ("file:///store", "-a")],
)
def test_a_claim_has_a_name_that_kubernetes_takes(store: str, claim: str) -> None:
    (fault,) = refused(fuse(BUNDLES, "fuse.yaml", replace(AROUND, store=store, claim=claim)))
    assert fault.startswith("the battery fuse: volumes.store: expected a claim's name")


@pytest.mark.parametrize("store", ["/input", "/input/store", "/sidecar/coordination", "/sidecar", "/output/x"])
def test_a_batterys_own_mounts_neither_are_nor_hold_nor_lie_in_another(store: str) -> None:
    (fault,) = refused(fuse(BUNDLES, "fuse.yaml", replace(AROUND, store=f"file://{store}")))
    assert fault.startswith(f"the battery fuse: volumeMounts.store: {store} and /")


def test_a_shared_path_in_the_coordination_directory_is_told_once() -> None:
    (fault,) = refused(fuse(BUNDLES.replace("/input", "/sidecar/coordination/input"), "fuse.yaml", AROUND))
    assert "/sidecar/coordination/input lies in /sidecar/coordination" in fault


def test_a_batterys_own_mount_may_be_where_another_container_has_something_else() -> None:
    inside = Artifact("i", "/store", executable="run")
    assert compose("base", [inside], [FUSE, POSTGRES]).pod["spec"]["containers"][0]["volumeMounts"]


# --- what of an image is delivered -------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivery", ["copy", "image"])
@pytest.mark.parametrize("path", ["../../etc", "..", "/..", "usr/../..", "a\0b"])
def test_nothing_outside_an_image_is_delivered(path: str, delivery: Any) -> None:
    (fault,) = refused(artifacts=(replace(PROGRAM, path=path),), options=Options(delivery=delivery))
    assert fault.startswith("artifact 1 (example/program:1): path: ")


def test_a_path_in_an_image_is_the_same_however_it_is_written_and_delivered() -> None:
    for path in ("usr/share", "/usr/share/", "usr//./share", "usr/lib/../share"):
        artifact = replace(PROGRAM, path=path)
        copied, shown = (compose("base", [artifact], options=Options(delivery=each)).pod["spec"] for each in ("copy", "image"))
        assert copied["initContainers"][1]["command"][2] == "/usr/share"
        assert shown["containers"][0]["volumeMounts"][0]["subPath"] == "usr/share"


def test_kubernetes_expands_nothing_of_a_path_in_an_image() -> None:
    artifact = replace(PROGRAM, path="$(PATH)/$$")
    copied, shown = (compose("base", [artifact], options=Options(delivery=each)).pod["spec"] for each in ("copy", "image"))
    assert copied["initContainers"][1]["command"][2] == "/$$(PATH)/$$$$"
    assert shown["containers"][0]["volumeMounts"][0]["subPath"] == "$(PATH)/$$"  # it is expanded in subPathExpr alone


def test_a_command_is_run_as_it_is_by_an_image_that_need_hold_no_bash() -> None:
    words = ["/program", "two words", "it's", "", "two\nlines"]
    (application,) = compose("example/program", (), command=words).pod["spec"]["containers"]
    assert application["command"] == words
    assert "args" not in application
    application = compose("example/program", (), [FUSE], command=words).pod["spec"]["containers"][0]
    assert (application["command"][-1], application["args"]) == ("--", words)


def test_every_volume_that_files_come_to_is_bounded_where_that_is_asked_for() -> None:
    volumes = compose("base", find(catalog(), IDS), [FUSE, POSTGRES], Options(disk="7Gi")).pod["spec"]["volumes"]
    limits = [each["emptyDir"]["sizeLimit"] for each in volumes if "emptyDir" in each]
    assert sorted(limits) == ["16Mi", "32Mi", *["7Gi"] * 7]  # three artifacts, a log, input, output, databases


def test_what_is_no_quantity_is_refused() -> None:
    with pytest.raises(ParametersError) as refused:
        compose("base", (), (), Options(cpu="much", memory="1 GB", disk="-1"), command=["true"])
    assert [fault.key for fault in refused.value.faults] == ["cpu", "memory", "disk"]


def test_batteries_whose_directories_lie_in_each_other_are_refused_for_a_command_too() -> None:
    inner = fuse("bundles: [{name: in, srcPath: /output/x, srcRepo: r, srcLabel: l}]", "other.yaml", AROUND)
    with pytest.raises(ParametersError, match="/output/x lies in /output"):
        compose("base", (), [FUSE, inner], command=["true"])


def test_a_bundle_is_mounted_in_a_folder_of_a_volume() -> None:
    with pytest.raises(ParametersError, match="expected a path like /input/input, not '/input'"):
        fuse(BUNDLES, "fuse.yaml", replace(AROUND, mount=True))


def test_what_is_only_saved_needs_no_privilege_where_bundles_are_mounted() -> None:
    document = "bundles: [{name: out, destPath: /output, destRepo: results, destMessage: m}]"
    assert fuse(document, "fuse.yaml", replace(AROUND, mount=True)) == fuse(document, "fuse.yaml", AROUND)


def test_two_bundles_in_one_folder_are_mounted_on_one_volume() -> None:
    document = "bundles: [{name: a, srcPath: /in/a, srcRepo: r, srcLabel: l}, {name: b, srcPath: /in/b, srcRepo: r, srcLabel: l}]"
    found = fuse(document, "fuse.yaml", replace(AROUND, mount=True))
    assert (found.shared, found.mounted) == (("/in",), ("/in",))


def test_an_artifact_that_is_not_in_the_catalog_is_told_with_what_was_meant() -> None:
    with pytest.raises(ParametersError) as refused:
        find(catalog(), ["viewer@1.5", "gdb@13", "nothing"])
    assert [str(fault) for fault in refused.value.faults] == [
        "artifact 1: viewer@1.5: unknown artifact; did you mean 'viewer@1.4'?",
        "artifact 3: nothing: unknown artifact; expected viewer@1.4, gdb@13, streamer@7",
    ]


def test_a_catalog_is_told_whole_and_with_its_lines() -> None:
    text = "artifacts:\n  a: {imag: x}\n  b:\n    image: [y]\n    ports: [x, {port: 1, protocol: ICMP}]\n    args: {a: b}\n"
    with pytest.raises(ParametersError) as refused:
        read_catalog(text)
    assert [fault.where for fault in refused.value.faults] == [f"catalog line {n}" for n in (2, 2, 4, 6, 5, 5)]


def test_what_bash_is_given_is_one_line_for_each_thing() -> None:
    assert shlex.split(planned(PROGRAM).script.splitlines()[-1]) == ["exec", "/opt/program/bin/run"]
