"""Native sidecars, in real containers and the order of the kubelet, which is simulated: the order, then what comes of it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from containers import Machine, Manifest, documents, image
from kubelet import KubeletPod, make_long_to_save
from manifests import EXAMPLES, content, expected, put_inputs

from sidecar.batteries.companion import literal
from sidecar.session.compose import COORDINATION
from sidecar.store import Store, open_store

EXAMPLE = "native-sidecars"
TERM, KILL = signal.SIGTERM, signal.SIGKILL
# What the application's script is where a test wants to be there while it runs.
WAITS = f"touch {COORDINATION}/runs; until [ -e {COORDINATION}/go ]; do sleep 0.02; done"
SQL = f'psql -v ON_ERROR_STOP=1 -qAt "$(cat {COORDINATION}/db/dsn) dbname=weather" -c'


# --- the order itself, with containers that only tell what happens to them -----------------------------------------------


def telling(name: str, script: str = "sleep 600 & wait", **more: Any) -> Manifest:
    """Return a container that appends to /shared/log when it begins, when it gets SIGTERM, and that ends as `script` does."""
    lines = f"trap 'echo {name} is told >>/shared/log; exit 0' TERM; echo {name} begins >>/shared/log; {script}"
    mounts = [{"name": "shared", "mountPath": "/shared"}]
    return {"name": name, "image": image("demo-app"), "command": ["sh", "-c", lines], "volumeMounts": mounts, **more}


def native(name: str, script: str = "sleep 600 & wait", **more: Any) -> Manifest:
    return telling(name, script, restartPolicy="Always", **more)


def pod_of(first: list[Manifest], main: list[Manifest], **spec: Any) -> list[Manifest]:
    spec = {"restartPolicy": "Never", "volumes": [{"name": "shared", "emptyDir": {}}], **spec}
    spec |= {"initContainers": first, "containers": main}
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "order"}, "spec": spec}]


def log_of(pod: KubeletPod) -> list[str]:
    log = pod.file("shared", "log")
    return log.read_text().splitlines() if log.exists() else []


def test_init_containers_begin_one_after_another_and_native_sidecars_end_last_one_first(machine: Machine) -> None:
    first = [telling("one", "echo one ends >>/shared/log"), native("two"), telling("three", ":"), native("four")]
    pod = KubeletPod(machine, pod_of(first, [telling("main", "exit 3")]), {})
    assert pod.wait()["main"] == 3
    assert pod.phase == "Failed"
    begins = [f"{name} begins" for name in ("two", "three", "four", "main")]
    assert log_of(pod) == ["one begins", "one ends", *begins, "four is told", "two is told"]


def test_a_startup_probe_holds_back_who_comes_after(machine: Machine) -> None:
    probe = {"exec": {"command": ["test", "-e", "/shared/started"]}, "periodSeconds": 1}
    first = [native("slow", "echo main may begin >>/shared/log; touch /shared/started; sleep 600 & wait", startupProbe=probe)]
    pod = KubeletPod(machine, pod_of(first, [telling("main", ":")]), {})
    assert pod.wait()["main"] == 0
    assert log_of(pod) == ["slow begins", "main may begin", "main begins", "slow is told"]


def test_an_init_container_that_fails_keeps_the_others_from_beginning(machine: Machine) -> None:
    pod = KubeletPod(machine, pod_of([native("before"), telling("fails", "exit 5"), native("after")], [telling("main", ":")]), {})
    assert pod.wait("fails") == {"fails": 5}
    assert pod.phase == "Failed"
    assert log_of(pod) == ["before begins", "fails begins", "before is told"]


def test_a_native_sidecar_that_ends_comes_back_though_the_pod_never_restarts_and_its_status_counts_for_nothing(
    machine: Machine,
) -> None:
    dies = "if [ ! -e /shared/died ]; then touch /shared/died; exit 9; fi; touch /shared/back; sleep 600 & wait"
    main = telling("main", "until [ -e /shared/back ]; do sleep 0.02; done")
    pod = KubeletPod(machine, pod_of([native("dies", dies)], [main]), {})
    assert pod.wait()["main"] == 0
    assert (pod.phase, pod.begun["dies"]) == ("Succeeded", 2)


def test_a_pod_that_is_deleted_tells_the_containers_first_and_the_sidecars_after_them(machine: Machine) -> None:
    pod = KubeletPod(machine, pod_of([native("one"), native("two")], [telling("main"), telling("other")]), {})
    pod.until(lambda: "other begins" in "\n".join(log_of(pod)) and "main begins" in log_of(pod), "all run")
    pod.delete()
    assert pod.wait("main", "other") == {"main": 0, "other": 0}
    assert sorted(log_of(pod)[4:6]) == ["main is told", "other is told"]
    assert log_of(pod)[6:] == ["two is told", "one is told"]


def test_who_does_not_end_within_the_grace_period_is_killed(machine: Machine) -> None:
    deaf = "trap '' TERM; echo main is deaf >>/shared/log; until false; do sleep 0.05; done"
    pod = KubeletPod(machine, pod_of([native("one")], [telling("main", deaf)], terminationGracePeriodSeconds=1), {})
    pod.until(lambda: "main is deaf" in log_of(pod), "main runs")
    pod.delete()
    assert pod.wait("main") == {"main": 137}
    assert pod.signals[0] == (TERM, "main")
    assert {(KILL, "main"), (TERM, "one")} <= set(pod.signals)


def test_a_sidecar_that_does_not_end_is_killed_and_the_pod_has_succeeded_all_the_same(machine: Machine) -> None:
    deaf = "trap '' TERM; touch /shared/deaf; until false; do sleep 0.05; done"
    main = telling("main", "until [ -e /shared/deaf ]; do sleep 0.02; done")
    pod = KubeletPod(machine, pod_of([native("one"), native("two", deaf)], [main], terminationGracePeriodSeconds=1), {})
    assert pod.wait("two") == {"two": 137}
    assert pod.phase == "Succeeded"
    assert pod.signals[0] == (TERM, "two")
    assert sorted(pod.signals[1:]) == [(KILL, "two"), (TERM, "one")]


# --- the example -------------------------------------------------------------------------------------------------------


class Run:
    """The example, edited where a test needs that, and its store."""

    def __init__(self, machine: Machine, folder: Path, place: Path) -> None:
        self.machine, self.folder, self.place = machine, folder, place
        self.store: Store = open_store(f"file://{place}")
        put_inputs(EXAMPLE, self.store)

    def play(self, script: str = "", edit: Callable[[str], str] = lambda text: text) -> KubeletPod:
        """Play the example; `script` takes the place of the application's, where it is given."""
        (pod,) = documents(edit((EXAMPLES / EXAMPLE / "pod.yaml").read_text()))
        if script:
            (application,) = pod["spec"]["containers"]
            assert application["args"][:2] == ["sh", "-c"]
            application["args"][2] = literal(script)
        self.pod = KubeletPod(self.machine, [pod], {"store": self.place})
        return self.pod

    def until_it_runs(self) -> None:
        self.pod.until(self.pod.file("coordination", "runs").exists, "the application runs")

    def go(self) -> None:
        self.pod.file("coordination", "go").touch()

    def saved(self, reference: str) -> dict[str, bytes]:
        return content(self.store, reference, self.folder / reference)

    @property
    def kept(self) -> set[str]:
        """The repositories that the run has made."""
        return {repo.name for repo in self.store.repos()} - {"weather"}

    def asked(self, query: str) -> str:
        """Return what the database in weather-db@latest answers, in a pod of its own."""

        def read(text: str) -> str:
            dest = ";m:the week as a table;l:latest;r:weather-db"
            assert dest in text
            return text.replace(dest, ";sr:weather-db;sl:latest")

        pod = self.play(f'{SQL} "{query}"', read)
        assert pod.wait("application") == {"application": 0}, pod.told()
        return pod.out("application")


@pytest.fixture
def run(machine: Machine, tmp_path: Path, store: Path) -> Run:
    return Run(machine, tmp_path, store)


def test_the_example_brings_and_saves_what_it_says(run: Run) -> None:
    pod = run.play()
    assert pod.wait() == {"wrapper": 0, "fuse": 0, "postgres": 0, "application": 0}
    assert pod.phase == "Succeeded"
    for reference, files in expected(EXAMPLE).items():
        assert run.saved(reference) == files
    assert run.asked("SELECT count(*), sum(celsius) FROM days") == "3|46\n"


def test_the_sidecars_are_done_when_they_are_told_to_end(run: Run) -> None:
    pod = run.play()
    pod.until(lambda: bool(pod.signals), "the application is over")
    for name in ("fuse", "postgres-db"):
        record = pod.record(name)
        assert record is not None
        assert (record.state, record.saved) == ("done", True)
    pod.wait()
    assert pod.signals == [(TERM, "postgres"), (TERM, "fuse")]
    assert list(pod.begun) == ["wrapper", "fuse", "postgres", "application"]


@pytest.mark.parametrize("battery", ["fuse", "postgres"])
def test_a_sidecar_that_is_killed_while_the_application_runs_comes_back_and_saves(run: Run, battery: str) -> None:
    pod = run.play(f"""
        sql() {{ {SQL} "$1"; }}
        sql 'CREATE TABLE days AS SELECT 7 AS n' && {WAITS} && sql 'INSERT INTO days VALUES (8)' && echo kept >/output/file
    """)
    run.until_it_runs()
    name = "fuse" if battery == "fuse" else "postgres-db"
    pod.crash(battery)
    pod.until(lambda: (record := pod.record(name)) is not None and (record.state, record.life) == ("ready", 2), "it is back")
    run.go()
    assert pod.wait("application") == {"application": 0}, pod.told()
    assert (pod.phase, pod.begun[battery]) == ("Succeeded", 2)
    assert run.saved("results@hottest") == {"file": b"kept\n"}
    assert run.asked("SELECT sum(n) FROM days") == "15\n"


@pytest.mark.parametrize("battery", ["fuse", "postgres"])
def test_a_sidecar_that_is_killed_before_it_is_ready_comes_back_and_the_application_begins_once(run: Run, battery: str) -> None:
    pod = run.play("echo once >>/output/lines")
    pod.until(lambda: battery in pod.begun and pod.look()[battery].running, f"{battery} runs")
    pod.crash(battery)
    assert pod.wait("application") == {"application": 0}, pod.told()
    assert pod.begun[battery] == 2
    assert run.saved("results@hottest") == {"lines": b"once\n"}


def test_a_sidecar_that_is_killed_while_it_saves_comes_back_and_saves(run: Run) -> None:
    pod = run.play(WAITS)
    run.until_it_runs()
    make_long_to_save(pod.place("/output/long"))
    run.go()
    pod.until_it_saves("fuse")
    pod.crash("fuse")
    assert pod.wait("application") == {"application": 0}, pod.told()
    assert pod.begun["fuse"] == 2
    (label,) = run.store.labels("results").values()
    assert [entry.path for entry in run.store.manifest(run.store.resolve("results", bundle=label))] == ["long"]


def test_a_source_that_does_not_exist_ends_the_pod_with_the_reason_though_the_sidecar_is_begun_again_and_again(run: Run) -> None:
    def edit(text: str) -> str:
        for old, new in (("sl:latest", "sl:newest"), ("timeout\n    - 60s", "timeout\n    - 1s"), ("- 100s", "- 5s")):
            assert old in text
            text = text.replace(old, new)
        return text

    pod = run.play(edit=edit)
    assert pod.wait("application") == {"application": 69}, pod.told()
    assert pod.phase == "Failed"
    assert "'weather' has no label 'newest'; labels there: latest" in pod.termination_message("application")
    assert run.kept == set()


def test_an_application_that_fails_ends_the_pod_with_its_own_status_and_nothing_is_saved(run: Run) -> None:
    pod = run.play("echo half >/output/file; exit 7")
    assert pod.wait()["application"] == 7
    assert pod.phase == "Failed"
    assert (KILL, "fuse") not in pod.signals
    assert run.kept == set()


def test_an_application_whose_wrapper_is_killed_fails_the_pod_and_nothing_is_saved(run: Run) -> None:
    pod = run.play(f"echo half >/output/file; {WAITS}")
    run.until_it_runs()
    pod.crash("application")
    assert pod.wait("application") == {"application": 137}
    assert pod.phase == "Failed"
    assert run.kept == set()


def test_a_pod_that_is_deleted_saves_what_the_application_leaves_in_its_grace(run: Run) -> None:
    pod = run.play(f"trap 'echo at the end >/output/file; exit 0' TERM; {WAITS}")
    run.until_it_runs()
    pod.delete()
    assert pod.wait()["application"] == 0, pod.told()
    assert pod.signals == [(TERM, "application"), (TERM, "postgres"), (TERM, "fuse")]
    assert run.saved("results@hottest") == {"file": b"at the end\n"}


def test_a_pod_that_is_deleted_while_it_saves_is_saved(run: Run) -> None:
    pod = run.play(WAITS)
    run.until_it_runs()
    make_long_to_save(pod.place("/output/long"))
    run.go()
    pod.until_it_saves("fuse")
    pod.delete()
    assert pod.wait("application") == {"application": 0}, pod.told()
    assert pod.signals == [(TERM, "application"), (TERM, "postgres"), (TERM, "fuse")]
    assert run.store.labels("results")


def test_a_pod_that_is_deleted_and_whose_application_does_not_listen_saves_nothing_and_ends_in_its_grace(run: Run) -> None:
    def short(text: str) -> str:
        assert "--grace\n    - 100s" in text
        return text.replace("--grace\n    - 100s", "--grace\n    - 1s")

    pod = run.play(f"trap '' TERM; echo half >/output/file; {WAITS}", short)
    run.until_it_runs()
    pod.delete()
    assert pod.wait("application") == {"application": 137}
    assert pod.signals == [(TERM, "application"), (TERM, "postgres"), (TERM, "fuse")]  # the wrapper has killed it, nobody else
    assert run.kept == set()
