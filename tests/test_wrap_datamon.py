"""`wrap_datamon` as a container runs it: configured in every way, beside every application, ended and restarted at every step."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from processes import BIN, LONG, PID_1, SHELLS, Pod, Started, children_of, make_long_to_save, until

from sidecar.coordination.protocol import DONE, FAILED, PREPARING, READY, RUNNING, SAVING, WAITING
from sidecar.store import Bundle, Store, open_store
from sidecar.testing import read_tree

WRAP_DATAMON = str(BIN / "wrap_datamon")


class Job(Pod):
    """A pod around a store of files, with the folders `in` and `out`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.source, self.out = folder / "in", folder / "out"
        self.out.mkdir()
        self.store: Store = open_store(f"file://{folder}/store")
        self.environment = {"HOME": str(folder / "home"), "SIDECAR_STORE": self.store.url}

    def __enter__(self) -> Self:
        return self

    @property
    def bring(self) -> tuple[str, ...]:
        return ("-d", f"bundle mount --repo weather --label latest --mount {self.source} --stream")

    @property
    def keep(self) -> tuple[str, ...]:
        return ("-d", f"bundle upload --path {self.out} --message 'made by a test' --repo results --label daily")

    def put(self, text: str, label: str = "latest", repo: str = "weather") -> Bundle:
        """Keep a bundle whose file `january.csv` holds `text`."""
        folder = self.folder / "made"
        folder.mkdir(exist_ok=True)
        (folder / "january.csv").write_text(text)
        return self.store.save(folder, repo, label=label)

    def datamon(
        self,
        *arguments: str | Path,
        coord: bool = True,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        without: Sequence[str] = (),
        populate: bool = True,
    ) -> Started:
        """Start `wrap_datamon --populate -c COORD ARGUMENTS…`, behind `prefix`; `without` these variables.

        A source that is mounted is the matter of test_mount_pod.py: this one can be held while it is prepared.
        """
        where: tuple[str | Path, ...] = ("-c", self.coord) if coord else ()
        where = ("--populate", *where) if populate else where
        unset = ("env", *(word for name in without for word in ("-u", name))) if without else ()
        return self.start(*prefix, *unset, WRAP_DATAMON, *where, *arguments, env={**self.environment, **(env or {})})

    def kept(self, repo: str = "results") -> list[Bundle]:
        """Return the bundles of a repository."""
        return self.store.bundles(repo) if repo in [each.name for each in self.store.repos()] else []

    def content(self, repo: str = "results", label: str = "daily") -> dict[str, Any]:
        """Return the tree of a labelled bundle."""
        again = self.folder / f"again-{repo}-{label}"
        self.store.populate(self.store.resolve(repo, label=label), again)
        return {path: entry for path, entry in read_tree(str(again)).items() if path}

    def hear_life(self, life: int) -> None:
        """Return when the battery is in this life."""
        until(lambda: (record := self.record("fuse")) is not None and record.life == life, f"life {life} begins", self)

    @contextmanager
    def preparing_held(self) -> Iterator[None]:
        """Nobody gets to populate the source: two who do so at once take turns, and this is one of them."""
        self.source.mkdir(exist_ok=True)
        fd = os.open(self.source, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def saving_lasts(self) -> Path:
        """Have a file among the output that takes very long to save."""
        path = self.out / "huge"
        make_long_to_save(path)
        return path


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    with Job(tmp_path) as job:
        job.put("1,2\n")
        yield job


def said(job: Job, signal_: str) -> dict[str, Any]:
    """Return the payload of a signal."""
    thing: dict[str, Any] = json.loads((job.coord / signal_).read_text())["payload"]
    return thing


def told_once(started: Started, reason: str) -> bool:
    return [reason in line for line in started.err.splitlines()].count(True) == 1


# --- the handshake -----------------------------------------------------------------------------------------------------


def test_sources_are_there_before_the_command_starts_and_destinations_are_saved_after(job: Job) -> None:
    application = job.wrap("-b", "fuse", "--", "cp", str(job.source / "january.csv"), str(job.out / "copy.csv"))
    battery = job.datamon(*job.bring, *job.keep)
    assert application.wait() == 0
    assert battery.wait() == 0
    assert list(job.content()) == ["copy.csv"]
    assert (job.folder / "again-results-daily" / "copy.csv").read_text() == "1,2\n"
    bundle = job.store.resolve("results", label="daily")
    assert (bundle.message, bundle.files, bundle.bytes) == ("made by a test", 1, 4)


def test_the_record_and_the_signals_name_the_bundles(job: Job) -> None:
    weather = job.store.resolve("weather", label="latest")
    battery = job.datamon(*job.bring, *job.keep)
    record = job.hear_state(READY, "fuse")
    sources = [
        {
            "name": "mount-1",
            "path": str(job.source),
            "repo": "weather",
            "label": "latest",
            "bundle": weather.id,
            "files": 1,
            "bytes": 4,
            "mode": "populate",
        }
    ]
    assert dict(record.payload or {}) == {"sources": sources}
    job.hear("mountdone")
    assert said(job, "mountdone") == {"sources": sources}
    assert job.wrap("-b", "fuse", "--", "touch", str(job.out / "x")).wait() == 0
    assert battery.wait() == 0
    record = job.hear_state(DONE, "fuse")
    (told,) = (record.payload or {})["destinations"]
    assert record.saved
    assert (told["repo"], told["label"], told["bundle"]) == ("results", "daily", job.kept()[0].id)
    assert said(job, "uploaddone")["destinations"] == [told]


def test_the_id_of_the_uploaded_bundle_is_written_to_a_file(job: Job) -> None:
    path = job.file("id")
    battery = job.datamon(*job.keep, "-i", path)
    assert job.wrap("-b", "fuse", "--", "true").wait() == 0
    assert battery.wait() == 0
    assert path.read_text() == job.store.resolve("results", label="daily").id + "\n"


def test_a_label_moves_to_the_new_bundle_and_the_old_one_stays(job: Job) -> None:
    old = job.put("old\n", "daily", "results")
    (job.out / "new").touch()
    battery = job.datamon(*job.keep)
    assert job.wrap("-b", "fuse", "--", "true").wait() == 0
    assert battery.wait() == 0
    moves = [move.bundle for move in job.store.label_history("results", "daily")]
    assert moves == [old.id, job.store.resolve("results", label="daily").id]
    assert [bundle.id for bundle in job.kept()] == moves


def test_without_label_or_bundle_a_mount_takes_the_latest(job: Job) -> None:
    latest = job.put("newer\n", "other")
    battery = job.datamon("-d", f"bundle mount --repo weather --mount {job.source}", "--save", "never")
    assert job.wrap("-b", "fuse", "--save", "never", "--", "grep", "-q", "newer", str(job.source / "january.csv")).wait() == 0
    assert battery.wait() == 0
    assert said(job, "mountdone")["sources"][0]["bundle"] == latest.id


@pytest.mark.parametrize("command", ["download --destination", "mount --mount"])
def test_only_the_files_that_a_command_asks_for_are_brought(job: Job, command: str) -> None:
    (job.folder / "made" / "2026").mkdir()
    (job.folder / "made" / "2026" / "two\nlines").touch()
    job.put("1,2\n")
    part = "--name-filter '^2026/|[.]csv$' --files january.csv --files 2026"
    battery = job.datamon("-d", f"bundle {command} {job.source} --repo weather --label latest {part}", populate=False)
    seen = job.file("seen")
    listing = f"cd {job.source} && find . -type f -print0 | sort -z > {seen}"
    assert job.wrap("-b", "fuse", "--save", "never", "--", "sh", "-c", listing).wait() == 0
    assert battery.wait() == 0
    assert seen.read_bytes().split(b"\0") == [b"./2026/two\nlines", b"./january.csv", b""]
    assert said(job, "mountdone")["sources"][0]["mode"] == "populate"
    assert said(job, "mountdone")["sources"][0]["selected"] == 2


def test_a_file_that_is_not_in_the_bundle_is_66_and_the_application_hears_of_it(job: Job) -> None:
    application = job.wrap("-b", "fuse", "--", "touch", str(job.file("ran")))
    job.hear_state(WAITING)
    battery = job.datamon("-d", f"bundle download --repo weather --label latest --destination {job.source} --files list.txt")
    assert battery.wait() == 66
    assert told_once(battery, "has no file or directory 'list.txt'")
    assert application.wait() == 69
    assert "has no file or directory 'list.txt'" in application.err
    assert not job.source.exists()


def test_an_expression_that_does_not_compile_is_65_and_named(job: Job) -> None:
    battery = job.datamon("-d", f"bundle mount --repo weather --mount {job.source} --name-filter '(a'")
    assert battery.wait() == 65
    assert told_once(battery, "-d #1: --name-filter: '(a' is no regular expression: ")
    assert not job.source.exists()


@pytest.mark.parametrize("flag", ["", " --skip-on-error"])
def test_what_cannot_be_kept_is_left_out_where_that_was_asked_for_and_else_73(job: Job, flag: str) -> None:
    battery = job.datamon("-d", job.keep[1] + flag)
    application = job.wrap("-b", "fuse", "--", "sh", "-c", f"cd {job.out} && mkfifo pipe && : > made")
    assert application.wait() == battery.wait() == (0 if flag else 73)
    assert "'pipe'" in battery.err
    assert len(job.kept()) == (1 if flag else 0)
    if flag:
        assert list(job.content()) == ["made"]
        assert said(job, "uploaddone")["destinations"][0]["skipped"] == 1


def test_it_works_where_inotify_is_silent(job: Job) -> None:
    battery = job.datamon(*job.bring, *job.keep, "--poll")
    assert job.wrap("-b", "fuse", "--poll", "--", "touch", str(job.out / "x")).wait() == 0
    assert battery.wait() == 0
    assert len(job.kept()) == 1


@pytest.mark.parametrize("shell", SHELLS)
def test_an_application_that_is_a_shell_script_gets_its_input_and_has_its_output_saved(job: Job, shell: str) -> None:
    battery = job.datamon(*job.bring, *job.keep)
    command = ("cp", str(job.source / "january.csv"), str(job.out))
    assert job.shell_application(shell, ["fuse"], *command).wait() == 0
    assert battery.wait() == 0
    assert list(job.content()) == ["january.csv"]


@pytest.mark.parametrize("shell", SHELLS)
def test_after_a_shell_script_that_failed_without_a_word_it_waits_until_it_is_told_to_end(job: Job, shell: str) -> None:
    battery = job.datamon(*job.bring, *job.keep, "--grace", "0.1")
    assert job.shell_application(shell, ["fuse"], "sh", "-c", "exit 3").wait() == 3
    record = job.hear_state(READY, "fuse")
    assert record.error is None
    assert battery.running
    battery.send(signal.SIGTERM)
    assert battery.wait() == 143
    assert job.kept() == []


# --- configuring -------------------------------------------------------------------------------------------------------


def yaml(job: Job, label: str = "latest") -> str:
    return f"""\
globalOpts:
  coordPoint: {job.coord}
bundles:
  - {{name: input, srcPath: {job.source}, srcRepo: weather, srcLabel: {label}}}
  - {{name: output, destPath: {job.out}, destRepo: results, destMessage: made by a test, destLabel: daily}}
"""


def environment(job: Job) -> dict[str, str]:
    return {
        "dm_fuse_opts": f";:c:{job.coord}",
        "dm_fuse_bd_input": f";:sp:{job.source};sr:weather;sl:latest",
        "dm_fuse_bd_output": f";:dp:{job.out};dr:results;dm:made by a test;dl:daily",
    }


@pytest.mark.parametrize("way", ["commands", "environment", "a file", "a document"])
def test_each_way_of_configuring_gives_the_same_job(job: Job, way: str) -> None:
    job.file("parameters.yaml").write_text(yaml(job))
    match way:
        case "commands":
            battery = job.datamon("-d", "config create", *job.bring, *job.keep)
        case "environment":
            battery = job.datamon(coord=False, env=environment(job))
        case "a file":
            battery = job.datamon(coord=False, env={"dm_fuse_params": str(job.file("parameters.yaml"))})
        case _:
            battery = job.datamon(coord=False, env={"dm_fuse_params": yaml(job)})
    assert job.wrap("-b", "fuse", "--", "cp", str(job.source / "january.csv"), str(job.out)).wait() == 0
    assert battery.wait() == 0
    assert list(job.content()) == ["january.csv"]
    assert [bundle.message for bundle in job.kept()] == ["made by a test"]


def test_the_environment_counts_before_the_file_and_the_flags_before_both(job: Job) -> None:
    v2 = job.put("v2\n", "v2")
    other = job.file("other")
    other.mkdir()
    battery = job.datamon(
        env={
            "dm_fuse_params": yaml(job, "v1-that-does-not-exist"),
            "dm_fuse_opts": f";:c:{other}",
            "dm_fuse_bd_input": ";:sl:v2",
        }
    )
    assert job.wrap("-b", "fuse", "--", "true").wait() == 0
    assert battery.wait() == 0
    assert said(job, "mountdone")["sources"][0]["bundle"] == v2.id
    assert os.listdir(other) == []


def test_print_config_prints_every_value_with_its_origin(job: Job) -> None:
    path = job.file("parameters.yaml")
    path.write_text(yaml(job))
    shown = job.datamon("--print-config", "-s", env={"dm_fuse_params": str(path), "dm_fuse_bd_input": ";:sl:v2"})
    assert shown.wait() == 0
    assert shown.err == ""
    lines = {key: (value, origin) for key, value, origin in (re.split("  +", line) for line in shown.out.splitlines())}
    assert lines == {
        "coordPoint": (str(job.coord), "-c"),
        "sleepInsteadOfExit": ("true", "-s"),
        "bundles.input.srcPath": (str(job.source), f"{path} line 4"),
        "bundles.input.srcRepo": ("weather", f"{path} line 4"),
        "bundles.input.srcLabel": ("v2", "dm_fuse_bd_input"),
        "bundles.output.destPath": (str(job.out), f"{path} line 5"),
        "bundles.output.destRepo": ("results", f"{path} line 5"),
        "bundles.output.destMessage": ("made by a test", f"{path} line 5"),
        "bundles.output.destLabel": ("daily", f"{path} line 5"),
        "store": (job.store.url, "SIDECAR_STORE"),
    }


@pytest.mark.parametrize(
    ("flags", "variables", "origin"),
    [
        (["--store", "memory://x"], {}, "--store"),
        ([], {"SIDECAR_STORE": "memory://x"}, "SIDECAR_STORE"),
        ([], {"SIDECAR_STORE": ""}, "default"),
    ],
)
def test_print_config_tells_where_the_store_comes_from(
    job: Job, flags: list[str], variables: dict[str, str], origin: str
) -> None:
    shown = job.datamon(*job.bring, "--print-config", *flags, env=variables)
    assert shown.wait() == 0
    line = shown.out.splitlines()[-1].split()
    expected = f"file://{job.folder}/home/.local/share/sidecar/store" if origin == "default" else "memory://x"
    assert line == ["store", expected, origin]


def test_print_config_touches_nothing(tmp_path: Path) -> None:
    with Job(tmp_path) as job:
        before = read_tree(str(tmp_path))
        shown = job.datamon(*job.bring, *job.keep, "-i", job.file("id"), "--print-config")
        assert shown.wait() == 0
        after = {path: entry for path, entry in read_tree(str(tmp_path)).items() if not path.startswith("0.wrap_datamon.")}
        assert {path for path in after if path} == {path for path in before if path}
        assert os.listdir(job.coord) == []


def test_print_config_of_what_is_malformed_is_65_and_touches_nothing(job: Job) -> None:
    shown = job.datamon("-d", "bundle mount --repo weather", "--print-config")
    assert shown.wait() == 65
    assert shown.out == ""
    assert os.listdir(job.coord) == []


# --- bad input ---------------------------------------------------------------------------------------------------------


def malformed(way: str, job: Job) -> tuple[list[str], dict[str, str], list[str]]:
    """Return flags, environment, and how each line begins that tells a fault."""
    path = job.file("parameters.yaml")
    document = yaml(job).replace("srcRepo: weather, ", "").replace("destLabel", "destLable")
    match way:
        case "commands":
            commands = ["-d", "bundle mount --repo weather", "-d", "bundle upload --path out --repo results"]
            return commands, {}, ["-d #1: --mount: ", "-d #2: --path: ", "-d #2: --message: "]
        case "environment":
            variables = {"dm_fuse_bd_input": ";:sp:in;sr:weather;sx:1", "dm_fuse_bd_output": ";;"}
            return (
                [],
                variables,
                ["dm_fuse_bd_input: sx: ", "dm_fuse_bd_output: ", "dm_fuse_bd_input: sp: ", "dm_fuse_bd_input: sl: "],
            )
        case "a file":
            path.write_text(document)
            return [], {"dm_fuse_params": str(path)}, [f"{path} line 5: destLable: ", f"{path} line 4: srcRepo: "]
        case _:
            return [], {"dm_fuse_params": document}, ["dm_fuse_params line 5: destLable: ", "dm_fuse_params line 4: srcRepo: "]


@pytest.mark.parametrize("way", ["commands", "environment", "a file", "a document"])
def test_malformed_parameters_are_65_and_each_fault_is_one_line_with_its_place(job: Job, way: str) -> None:
    flags, variables, places = malformed(way, job)
    log = job.file("log")
    log.touch()
    battery = job.datamon(*flags, "--termination-log", log, env=variables)
    assert battery.wait() == 65
    lines = [line.removeprefix("wrap_datamon: ") for line in battery.err.splitlines()]
    assert len(lines) == len(places), battery.err
    for place in places:
        assert any(line.startswith(place) for line in lines), (place, lines)
    assert log.read_text().splitlines() == lines


@pytest.mark.parametrize("where", ["-c", "dm_fuse_opts"])
def test_an_application_hears_at_once_that_the_parameters_of_its_battery_are_malformed(job: Job, where: str) -> None:
    application = job.wrap("-b", "fuse", "--", "touch", str(job.file("ran")))
    job.hear_state(WAITING)
    variables = {"dm_fuse_opts": f";:c:{job.coord}"} if where == "dm_fuse_opts" else {}
    assert job.datamon("-d", "bundle mount --repo weather", coord=where == "-c", env=variables).wait() == 65
    assert application.wait() == 69
    assert "fuse failed: -d #1: --mount: " in application.err
    assert not job.file("ran").exists()


def test_a_source_that_does_not_exist_is_66_with_the_labels_that_do(job: Job) -> None:
    job.put("2\n", "yesterday")
    log = job.file("log")
    log.touch()
    application = job.wrap("-b", "fuse", "--", "touch", str(job.file("ran")))
    job.hear_state(WAITING)
    missing = f"bundle mount --repo weather --label tomorrow --mount {job.source}"
    battery = job.datamon("-d", missing, *job.keep, "--termination-log", log)
    assert battery.wait() == 66
    assert told_once(battery, "has no label 'tomorrow'; labels there: latest, yesterday")
    assert "labels there: latest, yesterday" in log.read_text()
    assert application.wait() == 69
    assert "fuse failed: " in application.err
    assert "labels there: latest, yesterday" in application.err
    assert not job.file("ran").exists()
    assert job.kept() == []


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("--repo wether --label latest", "no repository 'wether'; repositories there: weather"),
        ("--repo weather --bundle 00000000000000000000000000", "has no bundle '00000000000000000000000000'"),
    ],
)
def test_a_repository_or_bundle_that_does_not_exist_is_66_with_those_that_do(job: Job, reference: str, expected: str) -> None:
    battery = job.datamon("-d", f"bundle mount {reference} --mount {job.source}")
    assert battery.wait() == 66
    assert told_once(battery, expected)


def test_a_store_that_cannot_be_reached_is_74(job: Job) -> None:
    job.file("store-that-is-a-file").touch()
    application = job.wrap("-b", "fuse", "--", "true")
    battery = job.datamon(*job.bring, "--store", f"file://{job.folder}/store-that-is-a-file/store")
    assert battery.wait() == 74
    assert "store-that-is-a-file" in battery.err
    assert application.wait() == 69
    assert "store-that-is-a-file" in application.err


def test_a_coordination_directory_that_is_missing_is_74(job: Job) -> None:
    log = job.file("log")
    log.touch()
    battery = job.datamon("-c", job.folder / "missing", *job.bring, "--termination-log", log, coord=False)
    assert battery.wait() == 74
    assert told_once(battery, f"{job.folder}/missing cannot be opened")
    assert f"{job.folder}/missing cannot be opened" in log.read_text()


def test_a_store_of_no_known_kind_is_78(job: Job) -> None:
    application = job.wrap("-b", "fuse", "--", "true")
    battery = job.datamon(*job.bring, "--store", "nosuch://x")
    assert battery.wait() == 78
    assert "nosuch" in battery.err
    assert application.wait() == 69


def test_no_place_for_a_store_is_78_and_the_application_hears_of_it(job: Job) -> None:
    application = job.wrap("-b", "fuse", "--", "true")
    battery = job.datamon(*job.bring, without=["HOME", "XDG_DATA_HOME", "SIDECAR_STORE"])
    assert battery.wait() == 78
    assert told_once(battery, "name one with --store URL or SIDECAR_STORE")
    assert application.wait() == 69
    assert "name one with --store URL or SIDECAR_STORE" in application.err


def test_a_second_battery_in_the_directory_is_78_and_the_first_is_not_disturbed(job: Job) -> None:
    first = job.datamon(*job.keep)
    job.hear_state(READY, "fuse")
    second = job.datamon(*job.keep)
    assert second.wait() == 78
    assert "another fuse is alive" in second.err
    assert job.wrap("-b", "fuse", "--", "true").wait() == 0
    assert first.wait() == 0


WRONG = {
    "an unknown option": (["--fast"], "--fast"),
    "an unknown letter": (["-x"], "-x"),
    "an argument": (["bundle"], "unexpected extra argument (bundle)"),
    "no value": (["-d"], "Option '-d' requires an argument"),
    "a policy that is none": (["--save", "sometimes"], "'sometimes' is not one of"),
    "a time that is none": (["--grace", "soon"], "--grace expects a time like 90, 90s, 15m or 2h, not 'soon'"),
    "a negative time": (["--appear-timeout", "-1"], "--appear-timeout expects a time"),
    "an endless time": (["--save-timeout", "inf"], "--save-timeout expects a time"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_flags_are_2_and_one_line_that_says_what_was_expected(job: Job, wrong: str) -> None:
    flags, expected = WRONG[wrong]
    battery = job.datamon(*job.bring, *flags)
    assert battery.wait() == 2
    assert battery.out == ""
    assert battery.err.startswith("wrap_datamon: ")
    assert battery.err.count("\n") == 1
    assert expected in battery.err
    assert os.listdir(job.coord) == []


# --- policies ----------------------------------------------------------------------------------------------------------

# The application's policy, the battery's own, how the command ends, and whether its output is kept.
POLICIES = [
    ("on-success", "", 0, True),
    ("on-success", "", 5, False),
    ("always", "", 5, True),
    ("never", "", 0, False),
    ("on-success", "always", 5, True),
    ("always", "on-success", 5, False),
    ("always", "never", 0, False),
]


@pytest.mark.parametrize(("policy", "own", "status", "kept"), POLICIES)
def test_output_is_kept_by_the_policy_of_the_battery_or_else_of_the_application(
    job: Job, policy: str, own: str, status: int, kept: bool
) -> None:
    battery = job.datamon(*job.keep, *(["--save", own] if own else []))
    command = f"touch {job.out}/made; exit {status}"
    application = job.wrap("-b", "fuse", "--save", policy, "--", "sh", "-c", command)
    assert application.wait() == status
    assert battery.wait() == 0
    assert [list(job.content()) for _ in job.kept()] == ([["made"]] if kept else [])
    record = job.record("fuse")
    assert record is not None
    assert (record.state, record.saved) == (DONE, kept)


def test_an_application_that_is_killed_while_it_waits_ends_the_battery_with_69(job: Job) -> None:
    with job.preparing_held():
        battery = job.datamon(*job.bring, *job.keep)
        application = job.wrap("-b", "fuse", "--save", "always", "--", "true")
        job.hear_state(WAITING)
        job.hear_state(PREPARING, "fuse")
        application.kill()
        assert battery.wait() == 69
    assert told_once(battery, "the application died without a word")
    assert job.kept() == []


@pytest.mark.parametrize(("policy", "kept"), [("on-success", False), ("always", True)])
def test_what_an_application_that_was_killed_has_made_is_kept_only_under_always(job: Job, policy: str, kept: bool) -> None:
    battery = job.datamon(*job.keep)
    application = job.wrap("-b", "fuse", "--save", policy, "--", "sh", "-c", f": > {job.out}/half; exec sleep {LONG}")
    job.hear_file("out/half")
    application.kill()
    assert battery.wait() == 0
    assert [list(job.content()) for _ in job.kept()] == ([["half"]] if kept else [])


def test_output_that_cannot_be_saved_is_73_on_both_sides(job: Job) -> None:
    os.mkfifo(job.out / "pipe")
    battery = job.datamon(*job.keep)
    application = job.wrap("-b", "fuse", "--", "true")
    assert application.wait() == 73
    assert battery.wait() == 73
    for started in (application, battery):
        assert "'pipe' is a socket, pipe or device" in started.err
    assert job.kept() == []


# --- SIGTERM -----------------------------------------------------------------------------------------------------------


def test_sigterm_while_it_prepares_leaves_the_grace_and_then_143(job: Job) -> None:
    with job.preparing_held():
        battery = job.datamon(*job.bring, *job.keep, "--grace", "0.1")
        application = job.wrap("-b", "fuse", "--", "true")
        job.hear_state(PREPARING, "fuse")
        battery.send(signal.SIGTERM)
        assert battery.wait() == 143
    assert "SIGTERM came, and fuse was not ready within 0.1 s" in battery.err
    assert application.wait() == 69
    assert "fuse was not ready within 0.1 s" in application.err


def test_sigterm_while_it_prepares_does_not_keep_it_from_its_work_within_the_grace(job: Job) -> None:
    with job.preparing_held():
        battery = job.datamon(*job.bring, *job.keep, "--grace", "1h")
        application = job.wrap("-b", "fuse", "--", "cp", str(job.source / "january.csv"), str(job.out))
        job.hear_state(PREPARING, "fuse")
        job.hear_state(WAITING)
        battery.send(signal.SIGTERM)
        until(lambda: any("was sent signal 15" in event["what"] for event in job.events()), "it is noticed", job)
    assert application.wait() == 0
    assert battery.wait() == 0
    assert list(job.content()) == ["january.csv"]


def test_sigterm_when_it_is_ready_leaves_the_application_the_grace_and_then_143(job: Job) -> None:
    battery = job.datamon(*job.keep, "--grace", "0.1")
    application = job.wrap("-b", "fuse", "--", "sleep", LONG)
    job.hear_state(RUNNING)
    battery.send(signal.SIGTERM)
    assert battery.wait() == 143
    assert "SIGTERM came, and fuse was not told that the application is over within 0.1 s" in battery.err
    assert application.running
    assert job.kept() == []


def test_sigterm_when_it_is_ready_saves_what_is_made_within_the_grace(job: Job) -> None:
    battery = job.datamon(*job.keep, "--grace", "1h")
    script = f"until [ -e {job.folder}/go ]; do sleep 0.01; done; : > {job.out}/made"
    application = job.wrap("-b", "fuse", "--", "sh", "-c", script)
    job.hear_state(RUNNING)
    battery.send(signal.SIGTERM)
    until(lambda: any("was sent signal 15" in event["what"] for event in job.events()), "it is noticed", job)
    job.file("go").touch()
    assert application.wait() == 0
    assert battery.wait() == 0
    assert list(job.content()) == ["made"]


def test_sigterm_while_it_saves_leaves_the_grace_and_then_73(job: Job) -> None:
    job.saving_lasts()
    battery = job.datamon(*job.keep, "--grace", "0.1")
    application = job.wrap("-b", "fuse", "--", "true")
    job.hear_state(SAVING, "fuse")
    battery.send(signal.SIGTERM)
    assert battery.wait() == 73
    assert "SIGTERM came, and fuse was not done saving within 0.1 s" in battery.err
    assert application.wait() == 73
    assert job.kept() == []


def test_a_second_sigterm_shortens_the_grace(job: Job) -> None:
    job.saving_lasts()
    battery = job.datamon(*job.keep, "--grace", "1h")
    application = job.wrap("-b", "fuse", "--", "true")
    job.hear_state(SAVING, "fuse")
    battery.send(signal.SIGTERM)
    until(lambda: any("was sent signal 15" in event["what"] for event in job.events()), "the first is noticed", job)
    battery.send(signal.SIGTERM)
    assert battery.wait() == 73
    assert application.wait() == 73


def test_saving_that_takes_too_long_is_73(job: Job) -> None:
    job.saving_lasts()
    battery = job.datamon(*job.keep, "--save-timeout", "0.1")
    assert job.wrap("-b", "fuse", "--", "true").wait() == 73
    assert battery.wait() == 73
    assert "fuse was not done saving within 0.1 s" in battery.err


def test_preparing_that_takes_too_long_is_75(job: Job) -> None:
    with job.preparing_held():
        battery = job.datamon(*job.bring, "--ready-timeout", "0.1")
        assert battery.wait() == 75
    assert "fuse was not ready within 0.1 s" in battery.err


def test_an_application_that_does_not_appear_is_75(job: Job) -> None:
    battery = job.datamon(*job.keep, "--appear-timeout", "0.1")
    assert battery.wait() == 75
    assert "the application did not appear within 0.1 s" in battery.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_battery_that_stays_is_ended_by_a_signal_with_its_own_status(job: Job, number: int) -> None:
    battery = job.datamon(*job.keep, "-s", "--appear-timeout", "0.1")
    job.hear_state(FAILED, "fuse")
    assert battery.running
    battery.send(number)
    assert battery.wait() == 75


def catches(pid: int, number: int) -> bool:
    """Tell whether a process has a handler for signal `number`."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    return any(int(line.split()[1], 16) >> (number - 1) & 1 for line in lines if line.startswith("SigCgt:"))


@pytest.mark.parametrize("prefix", [(), PID_1], ids=["as a child", "as PID 1"])
def test_a_sigterm_right_after_the_start_ends_it_with_a_status(job: Job, prefix: Sequence[str]) -> None:
    battery = job.datamon(*job.keep, "--grace", "0.1", prefix=prefix)
    if prefix:
        until(lambda: bool(children_of(battery.pid)), "the namespace has its PID 1", job)
    pid = children_of(battery.pid)[0] if prefix else battery.pid
    until(lambda: catches(pid, signal.SIGTERM), "it hears SIGTERM", job)
    os.kill(pid, signal.SIGTERM)
    assert battery.wait() == 143
    assert "SIGTERM came" in battery.err


# --- a native sidecar --------------------------------------------------------------------------------------------------


def test_a_native_sidecar_stays_when_it_is_done_until_sigterm(job: Job) -> None:
    battery = job.datamon(*job.keep, "--native")
    assert job.wrap("-b", "fuse", "--", "true").wait() == 0
    job.hear("uploaddone")
    record = job.hear_state(DONE, "fuse")
    assert record.saved
    assert battery.running
    battery.send(signal.SIGTERM)
    assert battery.wait() == 0


def test_a_native_sidecar_that_kept_nothing_stays_too(job: Job) -> None:
    battery = job.datamon(*job.keep, "--native")
    assert job.wrap("-b", "fuse", "--", "false").wait() == 1
    job.hear_state(DONE, "fuse")
    assert battery.running
    battery.send(signal.SIGTERM)
    assert battery.wait() == 0
    assert job.kept() == []


def test_at_sigterm_a_native_sidecar_goes_by_what_the_application_has_said(job: Job) -> None:
    # The kubelet's order: the application's container ends, then the sidecar is sent SIGTERM, here before it has looked.
    battery = job.datamon(*job.keep, "--native")
    job.hear_state(READY, "fuse")
    battery.send(signal.SIGSTOP)
    application = job.wrap("-b", "fuse", "--", "touch", str(job.out / "made"))
    job.hear("initupload")
    battery.send(signal.SIGTERM)
    battery.send(signal.SIGCONT)
    assert battery.wait() == 0
    assert application.wait() == 0
    assert list(job.content()) == ["made"]


# --- restarts ----------------------------------------------------------------------------------------------------------


def test_killed_while_it_downloads_it_brings_the_rest_in_its_next_life(job: Job) -> None:
    many = job.folder / "many"
    for number in range(20):
        (many / str(number)).mkdir(parents=True)
        for file in range(20):
            (many / str(number) / str(file)).write_bytes(os.urandom(1000))
    job.store.save(many, "weather", label="latest")
    battery = job.datamon(*job.bring, *job.keep)
    until(lambda: any(job.source.glob("*/*")), "the first file is there", job)
    battery.kill()
    again = job.datamon(*job.bring, *job.keep)
    job.hear_life(2)
    assert job.wrap("-b", "fuse", "--", "diff", "-r", str(many), str(job.source)).wait() == 0
    assert again.wait() == 0
    assert read_tree(str(job.source)) == read_tree(str(many))


def test_killed_when_it_was_ready_it_brings_the_same_bundles_again_wherever_their_labels_point_by_now(job: Job) -> None:
    old = job.store.resolve("weather", label="latest")
    battery = job.datamon(*job.bring, *job.keep)
    job.hear("mountdone")
    application = job.wrap("-b", "fuse", "--", "sh", "-c", f"until [ -e {job.folder}/go ]; do sleep 0.01; done")
    job.hear_state(RUNNING)
    battery.kill()
    job.put("3,4\n")
    again = job.datamon(*job.bring, *job.keep)
    job.hear_life(2)
    job.hear("mountdone")
    assert (job.source / "january.csv").read_text() == "1,2\n"
    assert said(job, "mountdone")["sources"][0]["bundle"] == old.id
    job.file("go").touch()
    assert application.wait() == 0
    assert again.wait() == 0


def test_killed_while_it_uploads_it_makes_no_second_bundle_of_what_was_complete(job: Job) -> None:
    second = job.file("second")
    second.mkdir()
    (job.out / "small").touch()
    make_long_to_save(second / "large")
    more = ("-d", f"bundle upload --path {second} --message second --repo others --label daily")
    battery = job.datamon(*job.keep, *more)
    application = job.wrap("-b", "fuse", "--rejoin-timeout", "1h", "--", "true")
    until(lambda: len(job.kept()) == 1, "the first is complete", job)
    battery.kill()
    os.truncate(second / "large", 100)
    again = job.datamon(*job.keep, *more)
    assert application.wait() == 0
    assert again.wait() == 0
    assert [len(job.kept(repo)) for repo in ("results", "others")] == [1, 1]
    assert list(job.content("others")) == ["large"]


def test_restarted_after_it_was_done_it_ends_at_once_and_says_again_what_it_has_said(job: Job) -> None:
    assert job.datamon(*job.keep).running
    assert job.wrap("-b", "fuse", "--", "touch", str(job.out / "made")).wait() == 0
    assert job.started[0].wait() == 0
    (job.coord / "uploaddone").unlink()
    again = job.datamon(*job.keep)
    assert again.wait() == 0
    assert "fuse was done in an earlier life" in again.err
    assert said(job, "uploaddone")["saved"] is True
    assert len(job.kept()) == 1


def test_restarted_after_it_failed_it_serves_an_application_that_was_restarted_too(job: Job) -> None:
    battery = job.datamon(*job.bring, *job.keep, "--store", f"file://{job.folder}/no-store")
    assert battery.wait() == 66
    assert job.wrap("-b", "fuse", "--", "true").wait() == 69
    again = job.datamon(*job.bring, *job.keep)
    application = job.wrap("-b", "fuse", "--", "touch", str(job.out / "made"))
    assert application.wait() == 0
    assert again.wait() == 0
    assert len(job.kept()) == 1


def test_a_battery_whose_lease_was_left_by_a_killed_one_takes_it(job: Job) -> None:
    first = job.datamon(*job.keep)
    job.hear_state(READY, "fuse")
    assert job.alive("fuse") is True
    first.kill()
    assert job.alive("fuse") is False
    second = job.datamon(*job.keep)
    job.hear_life(2)
    assert job.alive("fuse") is True
    assert job.wrap("-b", "fuse", "--", "true").wait() == 0
    assert second.wait() == 0
    assert job.alive("fuse") is False
