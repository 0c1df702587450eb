"""Containers that are killed, each in each phase of a pod: who lives says who died and ends, and no good bundle is lost.

The pod has an application, the fuse battery (results@latest) and the postgres battery (shop@latest). Before it runs, both labels
name a bundle of an earlier run. `podman kill` ends a container for good; a crash is followed by the next life where the restart
policy says so; the end of the whole pod is SIGTERM to all of its containers.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from composed import application, fuse, pod, postgres
from containers import Machine, Manifest, Pod, image
from manifests import content

from sidecar.store import Store, open_store
from sidecar.store.format import CHUNK

OLD = {"file": b"of an earlier run\n"}
KEPT = "bundle upload --path /out --repo results --label latest --message made"
# What the application does; a test says when it goes on.
WAITS = "touch /coord/runs; until [ -e /coord/go ]; do sleep 0.02; done"
FILES = "echo once >>/data/lives; echo new >/out/file"
ROWS = """psql -v ON_ERROR_STOP=1 -qAt "$(cat /coord/db/dsn) dbname=shop" -c "
    CREATE TABLE sold AS SELECT n, md5(n::text) FROM generate_series(1, 300000) n" """
PARTICIPANTS = {"application": "application", "fuse": "fuse", "postgres": "postgres-db"}
EVERYBODY = list(PARTICIPANTS)
# The database is not ready before a test says so.
HOLD = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "hold"},
    "data": {"hold.sql": "\\! touch /coord/held; until [ -e /coord/release ]; do sleep 0.02; done\n"},
}


def make_long_to_save(path: Path) -> None:
    """Make a file that takes a second to save and little room: a page in each chunk of a large hole, for holes are not read."""
    with path.open("wb") as file:
        for number in range(400):
            os.pwrite(file.fileno(), b"page", number * CHUNK)


class Run:
    """A pod of a test, its store, and what its participants say."""

    def __init__(self, machine: Machine, store: Path, folder: Path) -> None:
        self.machine, self.place, self.folder = machine, store, folder
        self.store: Store = open_store(f"file://{store}")
        old = folder / "old"
        old.mkdir()
        for name, data in OLD.items():
            (old / name).write_bytes(data)
        self.old = {repo: self.store.save(old, repo, label="latest").id for repo in ("results", "shop")}

    def play(self, *manifest: Manifest) -> Pod:
        self.pod = self.machine.play(manifest, claims={"store": self.place})
        return self.pod

    def record(self, container: str) -> dict[str, Any]:
        """Return what a container's participant says of itself; nothing where it has said nothing yet."""
        path = self.pod.file("coord", f".sidecar/participants/{PARTICIPANTS[container]}.json")
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            found = {}
        return found

    def until_it_is(self, container: str, state: str, life: int = 1) -> None:
        def met() -> bool:
            record = self.record(container)
            return (record.get("state"), record.get("life")) == (state, life)

        self.pod.until(met, f"{container} is {state}")

    def until_everybody_waits(self) -> None:
        """Return when the fuse battery is ready, the database is held, and the application waits for it."""
        self.pod.until(self.pod.file("coord", "held").exists, "the database is held")
        self.until_it_is("application", "waiting")
        self.until_it_is("fuse", "ready")

    def until_it_runs(self) -> None:
        self.pod.until(self.pod.file("coord", "runs").exists, "the application runs")

    def say(self, name: str) -> None:
        self.pod.file("coord", name).touch()

    def until_it_saves(self, container: str) -> None:
        """Have a battery save for seconds, and return when it does."""
        if container == "fuse":
            make_long_to_save(self.pod.file("out", "long"))
        self.say("go")
        self.until_it_is(container, "saving")

    @property
    def begun(self) -> int:
        """How often the application's command was begun."""
        path = self.pod.file("data", "lives")
        return len(path.read_text().splitlines()) if path.exists() else 0

    def saved(self) -> set[str]:
        """Return the repositories whose label has moved; the bundle that it named before is whole in any case."""
        for repo, bundle in self.old.items():
            where = self.folder / f"{repo}-before"
            self.store.populate(self.store.resolve(repo, bundle=bundle), where)
            assert {path.name: path.read_bytes() for path in where.iterdir()} == OLD
            shutil.rmtree(where)
        return {repo for repo, bundle in self.old.items() if self.store.labels(repo)["latest"] != bundle}


@pytest.fixture
def run(machine: Machine, store: Path, tmp_path: Path) -> Run:
    return Run(machine, store, tmp_path)


def three(restart: str = "Never", *, held: bool = False) -> tuple[Manifest, ...]:
    """Return the pod with the application and both batteries; where it is `held`, all others wait for the database."""
    database = postgres(
        name="db", owner="shop", databases="shop", destRepo="shop", destLabel="latest", destMessage="made",
        **({"initScripts": "/config/hold.sql"} if held else {}),
    )  # fmt: skip
    database["volumeMounts"].append({"name": "config", "mountPath": "/config"})
    command = ("-b", "fuse", "-b", "postgres", "-d", "db", "--", "sh", "-ec", f"{FILES}; {ROWS}; {WAITS}")
    config = {"name": "config", "configMap": {"name": "hold"}}
    return HOLD, pod(application(image("demo-app"), *command), fuse(KEPT), database, restart=restart, volumes=[config])


def two(script: str = WAITS, *options: str, restart: str = "Never", battery: Sequence[str] = ()) -> Manifest:
    """Return the pod with the application and the fuse battery."""
    wrapped = application(image("demo-app"), "-b", "fuse", *options, "--", "sh", "-ec", f"{FILES}; {script}")
    return pod(wrapped, fuse(KEPT, options=battery), restart=restart)


# --- for good ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", EVERYBODY)
def test_whoever_is_killed_before_the_application_runs_ends_the_pod_and_is_named(run: Run, victim: str) -> None:
    played = run.play(*three(held=True))
    run.until_everybody_waits()
    played.kill(victim)
    assert played.wait() == {name: 137 if name == victim else 69 for name in EVERYBODY}, played.told()
    for name in set(EVERYBODY) - {victim}:
        assert PARTICIPANTS[victim] in played.termination_message(name)
    assert run.begun == 0
    assert run.saved() == set()


@pytest.mark.parametrize("victim", ["fuse", "postgres"])
def test_a_battery_that_is_killed_while_the_application_runs_lets_it_end_and_costs_its_own_output(run: Run, victim: str) -> None:
    played = run.play(*three())
    run.until_it_runs()
    played.kill(victim)
    run.say("go")
    other = "postgres" if victim == "fuse" else "fuse"
    assert played.wait() == {"application": 73, victim: 137, other: 0}, played.told()
    assert PARTICIPANTS[victim] in played.termination_message("application")
    assert run.record("application")["exit"]["status"] == 0
    assert run.saved() == {"shop" if victim == "fuse" else "results"}


def test_an_application_that_is_killed_while_it_runs_costs_all_output_and_is_named(run: Run) -> None:
    played = run.play(*three())
    run.until_it_runs()
    played.kill("application")
    # By the policy there is nothing to keep, so the batteries have done what they were to do.
    assert played.wait() == {"application": 137, "fuse": 0, "postgres": 0}, played.told()
    for name in ("fuse", "postgres"):
        assert "the application died without a word; the last it said was 'running'" in played.err(name)
    assert run.saved() == set()


@pytest.mark.parametrize("victim", ["fuse", "postgres"])
def test_a_battery_that_is_killed_while_it_saves_costs_its_own_output(run: Run, victim: str) -> None:
    played = run.play(*three())
    run.until_it_runs()
    run.until_it_saves(victim)
    played.kill(victim)
    other = "postgres" if victim == "fuse" else "fuse"
    assert played.wait() == {"application": 73, victim: 137, other: 0}, played.told()
    assert PARTICIPANTS[victim] in played.termination_message("application")
    assert run.saved() == {"shop" if victim == "fuse" else "results"}


def test_an_application_that_is_killed_while_its_output_is_saved_has_it_saved(run: Run) -> None:
    played = run.play(*three())
    run.until_it_runs()
    run.until_it_saves("fuse")
    played.kill("application")
    assert played.wait() == {"application": 137, "fuse": 0, "postgres": 0}, played.told()
    assert run.saved() == {"results", "shop"}


@pytest.mark.parametrize("absent", ["fuse", "application"])
def test_who_was_killed_before_it_said_a_word_is_waited_for_no_longer_than_was_said(run: Run, absent: str) -> None:
    manifest = two(WAITS, "--appear-timeout", "1", battery=("--appear-timeout", "1"))
    (silent,) = [each for each in manifest["spec"]["containers"] if each["name"] == absent]
    silent["command"] = ["sleep", "600"]
    silent["image"] = image("demo-app")
    played = run.play(manifest)
    played.kill(absent)
    (other,) = {"fuse", "application"} - {absent}
    assert played.wait() == {absent: 137, other: 75}, played.told()
    assert absent in played.termination_message(other)
    assert run.saved() == set()


# --- with a next life --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", EVERYBODY)
def test_whoever_crashes_before_the_application_runs_comes_back_and_it_is_begun_once(run: Run, victim: str) -> None:
    played = run.play(*three("OnFailure", held=True))
    run.until_everybody_waits()
    played.crash(victim)
    run.until_it_is(victim, {"application": "waiting", "fuse": "ready", "postgres": "preparing"}[victim], life=2)
    run.say("release")
    run.say("go")
    assert played.wait() == dict.fromkeys(EVERYBODY, 0), played.told()
    assert played.status(victim).restarts >= 1
    assert run.begun == 1
    assert run.saved() == {"results", "shop"}


@pytest.mark.parametrize("victim", ["fuse", "postgres"])
def test_a_battery_that_crashes_while_the_application_runs_comes_back_and_saves(run: Run, victim: str) -> None:
    played = run.play(*three("OnFailure"))
    run.until_it_runs()
    played.crash(victim)
    run.until_it_is(victim, "ready", life=2)
    run.say("go")
    assert played.wait() == dict.fromkeys(EVERYBODY, 0), played.told()
    assert {name: played.status(name).restarts for name in EVERYBODY} == {name: int(name == victim) for name in EVERYBODY}
    assert run.begun == 1
    assert run.saved() == {"results", "shop"}


@pytest.mark.parametrize("victim", EVERYBODY)
def test_whoever_crashes_while_output_is_saved_comes_back_and_it_is_saved(run: Run, victim: str) -> None:
    played = run.play(*three("OnFailure"))
    run.until_it_runs()
    run.until_it_saves("postgres" if victim == "postgres" else "fuse")
    played.crash(victim)
    assert played.wait() == dict.fromkeys(EVERYBODY, 0), played.told()
    assert played.status(victim).restarts >= 1
    assert run.begun == 1
    assert run.saved() == {"results", "shop"}


def test_an_application_that_crashes_while_it_runs_is_not_begun_again_and_nothing_is_saved(run: Run) -> None:
    played = run.play(two(restart="OnFailure"))
    run.until_it_runs()
    played.crash("application")
    played.until(lambda: played.status("application").restarts >= 3, "it has come back three times")
    played.until(lambda: played.status("application").exit == 125, "it says what it cannot know")
    assert "the command was begun in an earlier life" in played.termination_message("application")
    assert played.wait("fuse") == {"fuse": 0}
    assert run.begun == 1
    assert run.saved() == set()


def test_with_once_an_application_that_crashes_when_it_has_run_writes_the_same_again_and_one_bundle_is_saved(run: Run) -> None:
    script = f"echo the result; echo a warning >&2; {WAITS}; exit 0"
    played = run.play(two(script, "-q", "--once", "app", restart="OnFailure"))
    run.until_it_runs()
    run.until_it_saves("fuse")
    # The battery goes by the record, which is there before the signal is.
    played.until(played.file("coord", "initupload").exists, "the battery is asked")
    played.crash("application")
    assert played.wait() == {"application": 0, "fuse": 0}, played.told()
    assert played.status("application").restarts == 1
    assert run.begun == 1
    assert played.out("application") == "the result\n" * 2
    assert played.err("application") == "a warning\n" * 2
    assert len(run.store.bundles("results")) == 2  # that of before, and this
    assert run.saved() == {"results"}
    assert content(run.store, "results@latest", run.folder / "new")["file"] == b"new\n"


def test_with_once_an_application_that_crashes_while_it_runs_is_not_begun_again_and_it_is_said_how_it_could_be(run: Run) -> None:
    played = run.play(two(WAITS, "-q", "--once", "app", restart="OnFailure"))
    run.until_it_runs()
    played.crash("application")
    played.until(lambda: played.status("application").restarts >= 2, "it has come back twice")
    played.until(lambda: played.status("application").exit == 125, "it says what it cannot know")
    assert run.begun == 1
    assert run.saved() == set()


# --- the end of the pod ------------------------------------------------------------------------------------------------


def test_a_pod_that_ends_while_it_waits_ends_at_once(run: Run) -> None:
    played = run.play(*three(held=True))
    run.until_everybody_waits()
    assert played.terminate() == {"application": 143, "fuse": 69, "postgres": 69}, played.told()
    for name in EVERYBODY:
        assert "signal 15 came before the command was begun" in played.termination_message(name)
    assert run.saved() == set()


def test_a_pod_that_ends_has_what_the_application_leaves_in_its_grace_saved(run: Run) -> None:
    played = run.play(two(f"trap 'echo at the end >/out/file; exit 0' TERM; {WAITS}"))
    run.until_it_runs()
    assert played.terminate() == {"application": 0, "fuse": 0}, played.told()
    assert run.saved() == {"results"}
    assert content(run.store, "results@latest", run.folder / "new") == {"file": b"at the end\n"}


def test_a_pod_that_ends_saves_nothing_of_an_application_that_sigterm_ends(run: Run) -> None:
    played = run.play(two())
    run.until_it_runs()
    statuses = played.terminate()
    assert statuses["application"] == 143, played.told()
    assert statuses["fuse"] in (0, 143), played.told()
    assert run.saved() == set()


def test_a_pod_that_ends_has_an_application_that_does_not_listen_killed_by_its_wrapper(run: Run) -> None:
    played = run.play(two(f"trap '' TERM; {WAITS}", "--grace", "1", battery=("--grace", "1")))
    run.until_it_runs()
    statuses = played.terminate()
    assert statuses["application"] == 137
    assert run.record("application")["exit"]["signal"] == signal.SIGKILL
    assert run.saved() == set()


def test_a_pod_that_ends_while_it_saves_is_saved(run: Run) -> None:
    played = run.play(*three())
    run.until_it_runs()
    run.until_it_saves("fuse")
    assert played.terminate() == dict.fromkeys(EVERYBODY, 0), played.told()
    assert run.saved() == {"results", "shop"}
