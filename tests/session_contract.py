"""What every runner of sessions owes, tried on one: a class of tests, which a test module inherits from and gives two fixtures.

runner    the runner; a container that ends waits a moment for its second life, no more
base      the reference of an image that holds bash and what Debian calls essential
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from processes import HANG, LONG, until

from sidecar.errors import ConfigurationError, DeadlinePassed, ParametersError, SourceMissing
from sidecar.session.runner import Container, Manifest, Runner, Status

HARD = ["a b", "it's", '"q"', "$$(x)", "$$HOME", "`id`", "two\nlines", ";", "é ☃", "", "*", "\\", "!", "-n", "--", "{}", "%s"]
PLAIN = [each.replace("$$", "$") for each in HARD]
# As a program that may be asked to end, and as one that does not hear.
POLITE = f"trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.02; done; exit {LONG}"
DEAF = "trap '' TERM; echo ready; while :; do sleep 0.02; done"

Begin = Callable[[Manifest], str]


def container(name: str, image: str, script: str, **more: Any) -> Manifest:
    """Return a container that runs a script."""
    return {"name": name, "image": image, "command": ["/bin/sh", "-c", script], **more}


def pod(*containers: Manifest, inits: tuple[Manifest, ...] = (), name: str = "", **spec: Any) -> Manifest:
    """Return a pod, whose volumes are emptyDirs of the names that are mounted."""
    used = {mount["name"]: None for each in (*inits, *containers) for mount in each.get("volumeMounts", ())}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name or f"pod-{uuid.uuid4()}", "labels": {"app.kubernetes.io/instance": "of-the-tests"}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": int(HANG),
            "volumes": [{"name": each, "emptyDir": {}} for each in used],
            "initContainers": list(inits),
            "containers": list(containers),
            **spec,
        },
    }


def mount(volume: str, path: str, **more: Any) -> Manifest:
    """Return the mount of a volume."""
    return {"name": volume, "mountPath": path, **more}


def said(runner: Runner, name: str, container: str) -> str:
    """Return what a container has written so far."""
    return b"".join(runner.logs(name, container)).decode()


def hear(runner: Runner, name: str, container: str, text: str) -> None:
    """Return when a container has written `text`."""
    heard = b""
    for data in runner.logs(name, container, follow=True):
        heard += data
        if text.encode() in heard:
            return
    raise AssertionError(f"{container} ended and never said {text!r}: {heard!r}; {runner.status(name)}")


def of(status: Status, name: str) -> Container:
    """Return one container of a pod."""
    (found,) = [each for each in status.containers if each.name == name]
    return found


def running(runner: Runner, name: str, container: str, restarts: int = 0) -> Status:
    """Return how a pod stands once it tells that a container runs, after so many restarts: what it writes may be heard before."""

    def told() -> bool:
        found = of(runner.status(name), container)
        return (found.state, found.restarts) == ("running", restarts)

    until(told, f"{container} is told to run, after {restarts} restarts")
    return runner.status(name)


class Contract:
    """The tests."""

    @pytest.fixture
    def begin(self, runner: Runner) -> Iterator[Begin]:
        """Start pods, and stop at the end whichever are left."""
        names = []

        def begin(manifest: Manifest) -> str:
            runner.start(manifest)
            names.append(manifest["metadata"]["name"])
            return str(names[-1])

        yield begin
        for name in names:
            with suppress(SourceMissing):
                runner.stop(name, 0)

    @pytest.fixture
    def run(self, runner: Runner, begin: Begin) -> Callable[[Manifest], Status]:
        """Start a pod and return how it ended."""
        return lambda manifest: runner.wait(begin(manifest), HANG)

    # --- how it ends

    def test_a_pod_whose_containers_all_end_well_has_succeeded(self, run: Any, base: str) -> None:
        status = run(pod(container("one", base, "true"), container("two", base, "true")))
        assert (status.phase, status.session) == ("Succeeded", "of-the-tests")
        assert status.containers == (Container("one", "exited", 0), Container("two", "exited", 0))

    @pytest.mark.parametrize("number", [1, 77, 255])
    def test_a_status_arrives_and_one_that_is_not_0_fails_the_pod(self, run: Any, base: str, number: int) -> None:
        status = run(pod(container("one", base, f"exit {number}"), container("two", base, "true")))
        assert status.phase == "Failed"
        assert [each.exit for each in status.containers] == [number, 0]

    def test_a_command_that_is_not_there_fails_and_says_why(self, runner: Runner, begin: Begin, base: str) -> None:
        status = runner.wait(begin(pod({"name": "one", "image": base, "command": ["/no/such/command"]})), HANG)
        assert status.phase == "Failed"
        assert "/no/such/command" in of(status, "one").reason
        assert of(status, "one").exit != 0

    def test_who_waits_for_a_pod_that_goes_on_is_told_so(self, runner: Runner, begin: Begin, base: str) -> None:
        name = begin(pod(container("one", base, POLITE)))
        with pytest.raises(DeadlinePassed):
            runner.wait(name, 0.05)

    # --- init containers

    def test_init_containers_run_in_turn_and_before_all_others(self, runner: Runner, begin: Begin, base: str) -> None:
        at = {"volumeMounts": [mount("v", "/v")]}
        inits = tuple(container(name, base, f"ls /v; echo {name} > /v/{name}", **at) for name in ("a", "b", "c"))
        name = begin(pod(container("last", base, "cat /v/a /v/b /v/c", **at), inits=inits))
        status = runner.wait(name, HANG)
        assert status.phase == "Succeeded"
        assert [each.name for each in status.containers] == ["a", "b", "c", "last"]
        assert said(runner, name, "c").split() == ["a", "b"]
        assert said(runner, name, "last").split() == ["a", "b", "c"]

    def test_one_that_fails_ends_the_pod_and_nothing_after_it_begins(self, runner: Runner, begin: Begin, base: str) -> None:
        inits = (container("good", base, "true"), container("bad", base, "exit 9"), container("never", base, "echo begun"))
        name = begin(pod(container("last", base, "echo begun"), inits=inits))
        status = runner.wait(name, HANG)
        assert status.phase == "Failed"
        assert [each.exit for each in status.containers] == [0, 9, None, None]
        assert of(status, "last").state == "waiting"

    def test_a_native_sidecar_runs_beside_the_others_and_does_not_hold_the_pod(
        self, runner: Runner, begin: Begin, base: str
    ) -> None:
        at = {"volumeMounts": [mount("v", "/v")]}
        sidecar = container("beside", base, f"touch /v/up; {POLITE}", restartPolicy="Always", **at)
        name = begin(pod(container("one", base, "until [ -e /v/up ]; do sleep 0.02; done; echo done", **at), inits=(sidecar,)))
        status = runner.wait(name, HANG)
        assert status.phase == "Succeeded"
        assert of(status, "beside").state == "exited"
        assert said(runner, name, "one") == "done\n"

    # --- what a program is given

    def test_every_argument_arrives_as_it_is(self, runner: Runner, begin: Begin, base: str) -> None:
        name = begin(pod({"name": "one", "image": base, "command": ["/usr/bin/printf", "%s\\0"], "args": HARD}))
        assert runner.wait(name, HANG).phase == "Succeeded"
        assert said(runner, name, "one").split("\0") == [*PLAIN, ""]

    def test_its_environment_is_what_the_pod_says_and_nothing_of_the_machines(
        self, runner: Runner, begin: Begin, base: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OF_THE_MACHINE", "secret")
        env = [{"name": "A", "value": "a b\n'\"é$$"}, {"name": "B", "value": "[$(A)]"}, {"name": "EMPTY"}]
        name = begin(pod({"name": "one", "image": base, "command": ["/usr/bin/env", "-0"], "env": env}))
        assert runner.wait(name, HANG).phase == "Succeeded"
        found = dict(each.split("=", 1) for each in said(runner, name, "one").split("\0") if each)
        assert (found["A"], found["B"], found["EMPTY"]) == ("a b\n'\"é$", "[a b\n'\"é$]", "")
        assert "OF_THE_MACHINE" not in found
        assert "/bin" in found["PATH"].split(":")

    def test_variables_are_expanded_as_a_kubelet_does(self, runner: Runner, begin: Begin, base: str) -> None:
        words = ["$(A)", "x$(A)y$(B)", "$$(A)", "$$$(A)", "$(NONE)", "$(A", "$", "$A"]
        env = [{"name": "A", "value": "a a"}, {"name": "B", "value": "$(LATER)"}, {"name": "LATER", "value": "l"}]
        one = {"name": "one", "image": base, "command": ["/usr/bin/printf", "%s\\0"], "args": words, "env": env}
        name = begin(pod(one))
        assert runner.wait(name, HANG).phase == "Succeeded"
        assert said(runner, name, "one").split("\0")[:-1] == [
            "a a", "xa ay$(LATER)", "$(A)", "$a a", "$(NONE)", "$(A", "$", "$A",
        ]  # fmt: skip

    def test_it_runs_in_its_working_directory(self, runner: Runner, begin: Begin, base: str) -> None:
        name = begin(pod(container("one", base, "pwd", workingDir="/usr/share"), container("two", base, "pwd", workingDir="/")))
        runner.wait(name, HANG)
        assert (said(runner, name, "one"), said(runner, name, "two")) == ("/usr/share\n", "/\n")

    def test_it_is_who_it_is_to_be(self, runner: Runner, begin: Begin, base: str) -> None:
        own = {"securityContext": {"runAsUser": 10002, "runAsGroup": 10003}}
        name = begin(
            pod(
                container("one", base, "id -u; id -g"),
                container("two", base, "id -u; id -g", **own),
                securityContext={"runAsUser": 10001, "runAsGroup": 10001},
            )
        )
        runner.wait(name, HANG)
        assert (said(runner, name, "one").split(), said(runner, name, "two").split()) == (["10001"] * 2, ["10002", "10003"])

    def test_it_is_the_first_of_its_processes_and_sees_no_others(self, runner: Runner, begin: Begin, base: str) -> None:
        name = begin(pod({"name": "one", "image": base, "command": ["/bin/sh", "-c", "echo $$$$; echo /proc/[0-9]*"]}))
        runner.wait(name, HANG)
        assert said(runner, name, "one") == "1\n/proc/1\n"

    def test_it_has_no_descriptors_but_its_three(self, runner: Runner, begin: Begin, base: str) -> None:
        # As PID 1: what a shell opens for itself is not looked at.
        name = begin(pod({"name": "one", "image": base, "command": ["/bin/ls", "/proc/self/fd"]}))
        runner.wait(name, HANG)
        assert said(runner, name, "one").split() == ["0", "1", "2", "3"]  # 3 is the directory that it lists

    # --- volumes

    def test_what_one_container_writes_another_reads(self, runner: Runner, begin: Begin, base: str) -> None:
        writes = container("writes", base, "echo it > /a/file", volumeMounts=[mount("v", "/a")])
        reads = container(
            "reads",
            base,
            "until [ -s /opt/b/c/file ]; do sleep 0.02; done; cat /opt/b/c/file",
            volumeMounts=[mount("v", "/opt/b/c")],
        )
        name = begin(pod(writes, reads))
        assert runner.wait(name, HANG).phase == "Succeeded"
        assert said(runner, name, "reads") == "it\n"

    def test_a_volume_in_memory_is_one_too(self, runner: Runner, begin: Begin, base: str) -> None:
        one = container("one", base, "echo it > /v/file && cat /v/file", volumeMounts=[mount("v", "/v")])
        name = begin(pod(one, volumes=[{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]))
        assert runner.wait(name, HANG).phase == "Succeeded"
        assert said(runner, name, "one") == "it\n"

    def test_what_is_mounted_read_only_is(self, runner: Runner, begin: Begin, base: str) -> None:
        init = container("init", base, "echo it > /v/file", volumeMounts=[mount("v", "/v")])
        script = "exec 2> /dev/null; cat /v/file; echo x > /v/file || echo x > /v/new || rm -f /v/file || echo refused"
        one = container("one", base, script, volumeMounts=[mount("v", "/v", readOnly=True)])
        name = begin(pod(one, inits=(init,)))
        runner.wait(name, HANG)
        lines = said(runner, name, "one").splitlines()
        assert (lines[0], lines[-1]) == ("it", "refused")

    def test_a_part_of_a_volume_is_mounted_by_itself(self, runner: Runner, begin: Begin, base: str) -> None:
        init = container("init", base, "mkdir -p /v/a/b; echo it > /v/a/b/file", volumeMounts=[mount("v", "/v")])
        one = container("one", base, "cd /part; echo *; cat file", volumeMounts=[mount("v", "/part", subPath="a/b")])
        name = begin(pod(one, inits=(init,)))
        assert runner.wait(name, HANG).phase == "Succeeded"
        assert said(runner, name, "one") == "file\nit\n"

    def test_what_is_not_read_only_has_room_to_write_and_a_root_that_is_has_none(
        self, runner: Runner, begin: Begin, base: str
    ) -> None:
        script = "exec 2> /dev/null; touch /tmp/x && echo written || echo refused; touch /etc/x; rm -f /tmp/x; true"
        name = begin(
            pod(
                container("one", base, script),
                container("two", base, script, securityContext={"readOnlyRootFilesystem": True}),
            )
        )
        runner.wait(name, HANG)
        assert said(runner, name, "one").splitlines()[-1] == "written"
        assert said(runner, name, "two").splitlines()[-1] == "refused"

    def test_a_path_of_the_machine_is_mounted(self, runner: Runner, begin: Begin, base: str, tmp_path: Path) -> None:
        (tmp_path / "it").write_text("of the machine\n")
        volumes = [{"name": "v", "hostPath": {"path": str(tmp_path), "type": "Directory"}}]
        name = begin(pod(container("one", base, "cat /v/it", volumeMounts=[mount("v", "/v", readOnly=True)]), volumes=volumes))
        assert runner.wait(name, HANG).phase == "Succeeded"
        assert said(runner, name, "one") == "of the machine\n"

    # --- being begun again

    def test_what_fails_is_begun_again_until_it_does_not_and_its_volumes_stay(
        self, runner: Runner, begin: Begin, base: str
    ) -> None:
        script = "echo life >> /v/lives; echo $(wc -l < /v/lives); [ $(wc -l < /v/lives) -gt 2 ] || exit 4"
        one = container("one", base, script.replace("$", "$$"), volumeMounts=[mount("v", "/v")])
        name = begin(pod(one, restartPolicy="OnFailure"))
        status = runner.wait(name, HANG)
        assert status.phase == "Succeeded"
        assert (of(status, "one").exit, of(status, "one").restarts) == (0, 2)
        assert said(runner, name, "one").split() == ["1", "2", "3"]

    def test_what_is_to_run_always_is_begun_again_also_after_it_ended_well(self, runner: Runner, begin: Begin, base: str) -> None:
        script = f"echo >> /v/lives; [ $(wc -l < /v/lives) -gt 2 ] || exit 0; {POLITE}"
        one = container("one", base, script.replace("$", "$$"), volumeMounts=[mount("v", "/v")])
        name = begin(pod(one, inits=(container("init", base, "true"),), restartPolicy="Always"))
        hear(runner, name, "one", "ready")
        status = running(runner, name, "one", restarts=2)
        assert status.phase == "Running"
        # An init container has its turn once.
        assert of(status, "init") == Container("init", "exited", 0)

    def test_an_init_container_that_fails_is_begun_again_where_the_pod_says_so(
        self, runner: Runner, begin: Begin, base: str
    ) -> None:
        init = container("init", base, "[ -e /v/x ] || { touch /v/x; exit 4; }", volumeMounts=[mount("v", "/v")])
        status = runner.wait(begin(pod(container("one", base, "true"), inits=(init,), restartPolicy="OnFailure")), HANG)
        assert status.phase == "Succeeded"
        assert (of(status, "init").exit, of(status, "init").restarts) == (0, 1)

    # --- being stopped

    def test_what_is_stopped_is_asked_first(self, runner: Runner, begin: Begin, base: str) -> None:
        name = begin(pod(container("one", base, POLITE), container("two", base, POLITE)))
        for each in ("one", "two"):
            hear(runner, name, each, "ready")
        status = runner.stop(name)
        assert (status.phase, [each.exit for each in status.containers]) == ("Failed", [3, 3])

    def test_what_does_not_hear_is_killed(self, runner: Runner, begin: Begin, base: str) -> None:
        name = begin(pod(container("one", base, DEAF), container("two", base, POLITE)))
        for each in ("one", "two"):
            hear(runner, name, each, "ready")
        status = runner.stop(name, 1)
        assert (status.phase, [each.exit for each in status.containers]) == ("Failed", [128 + 9, 3])

    def test_what_is_stopped_is_gone_and_its_name_is_free(self, runner: Runner, begin: Begin, base: str) -> None:
        manifest = pod(container("one", base, "ls -A /v; echo it > /v/file", volumeMounts=[mount("v", "/v")]))
        name = begin(manifest)
        runner.wait(name, HANG)
        assert runner.stop(name).phase == "Succeeded"
        for ask in (runner.status, runner.wait, runner.stop, lambda name: list(runner.logs(name, "one"))):
            with pytest.raises(SourceMissing):
                ask(name)
        assert name not in [each.name for each in runner.list()]
        begin(manifest)
        assert runner.wait(name, HANG).phase == "Succeeded"
        assert said(runner, name, "one") == ""

    def test_a_pod_that_waits_to_begin_again_can_be_stopped(self, runner: Runner, begin: Begin, base: str) -> None:
        name = begin(pod(container("one", base, "echo ready; exit 5"), restartPolicy="Always"))
        hear(runner, name, "one", "ready")
        status = runner.stop(name, 1)
        assert of(status, "one").state == "exited"

    # --- names, lists and logs

    def test_a_name_that_is_taken_is_refused_and_its_pod_left_alone(self, runner: Runner, begin: Begin, base: str) -> None:
        name = begin(pod(container("one", base, POLITE)))
        hear(runner, name, "one", "ready")
        with pytest.raises(ConfigurationError, match=name):
            runner.start(pod(container("other", base, "true"), name=name))
        status = running(runner, name, "one")
        assert (status.phase, [each.name for each in status.containers]) == ("Running", ["one"])
        assert of(status, "one").restarts == 0

    def test_pods_are_listed_and_do_not_know_each_other(self, runner: Runner, begin: Begin, base: str) -> None:
        one, two = begin(pod(container("c", base, POLITE))), begin(pod(container("c", base, POLITE)))
        for each in (one, two):
            hear(runner, each, "c", "ready")
            running(runner, each, "c")
        assert {one, two} <= {each.name for each in runner.list() if each.phase == "Running"}
        assert runner.stop(one).phase == "Failed"
        assert runner.status(two).phase == "Running"

    @pytest.mark.parametrize("name", ["nothing", "..", "", "a/b", "../x", "-h"])
    def test_a_pod_that_is_not_there_is_missing(self, runner: Runner, name: str) -> None:
        for ask in (runner.status, runner.wait, runner.stop, lambda name: list(runner.logs(name, "one"))):
            with pytest.raises(SourceMissing):
                ask(name)

    def test_a_container_that_is_not_there_is_missing(self, runner: Runner, begin: Begin, base: str) -> None:
        name = begin(pod(container("one", base, "true")))
        with pytest.raises(SourceMissing, match="other"):
            list(runner.logs(name, "other"))

    def test_a_log_has_both_streams_of_all_lives_byte_by_byte(self, runner: Runner, begin: Begin, base: str) -> None:
        script = r"printf '\000\377out'; printf 'err\n' >&2; [ -e /v/x ] || { touch /v/x; exit 1; }"
        one = container("one", base, script, volumeMounts=[mount("v", "/v")])
        name = begin(pod(one, restartPolicy="OnFailure"))
        runner.wait(name, HANG)
        assert b"".join(runner.logs(name, "one")) == b"\0\xffouterr\n" * 2

    def test_who_follows_a_log_hears_it_as_it_is_written_and_to_its_end(
        self, runner: Runner, begin: Begin, base: str, tmp_path: Path
    ) -> None:
        one = container(
            "one", base, "echo first; until [ -e /v/go ]; do sleep 0.02; done; seq 20000", volumeMounts=[mount("v", "/v")]
        )
        # The second goes on: the end of a log is its container's, not its pod's.
        two = container("two", base, POLITE)
        name = begin(pod(one, two, volumes=[{"name": "v", "hostPath": {"path": str(tmp_path)}}]))
        heard = runner.logs(name, "one", follow=True)
        assert next(heard) == b"first\n"
        (tmp_path / "go").touch()
        assert b"".join(heard).split() == [str(n).encode() for n in range(1, 20001)]
        assert runner.status(name).phase == "Running"

    # --- what is not honoured

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"spec": {"hostPID": True}}, "hostPID"),
            ({"spec": {"volumes": [{"name": "v", "nfs": {"server": "s", "path": "/"}}]}}, "nfs"),
            ({"container": {"lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}}, "lifecycle"),
            ({"container": {"livenessProbe": {"exec": {"command": ["x"]}}}}, "livenessProbe"),
            ({"container": {"envFrom": [{"configMapRef": {"name": "x"}}]}}, "envFrom"),
            ({"container": {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}}, "valueFrom"),
            ({"container": {"volumeMounts": [{"name": "none", "mountPath": "/v"}]}, "spec": {"volumes": []}}, "none"),
            ({"kind": "Deployment"}, "Deployment"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_a_runner_does_not_honour_it_refuses_by_name(
        self, runner: Runner, base: str, change: Manifest, named: str
    ) -> None:
        manifest = pod(container("one", base, "true", **change.get("container", {})), **change.get("spec", {}))
        manifest["kind"] = change.get("kind", "Pod")
        with pytest.raises(ParametersError, match=named):
            runner.start(manifest)
        assert manifest["metadata"]["name"] not in [each.name for each in runner.list()]

    @pytest.mark.parametrize("name", ["..", "a/b", ".hidden", "UPPER", "a b", "x" * 254, "-x", "a\n"])
    def test_a_name_that_is_none_of_kubernetes_is_refused(self, runner: Runner, base: str, name: str) -> None:
        with pytest.raises(ParametersError, match="name"):
            runner.start(pod(container("one", base, "true"), name=name))
