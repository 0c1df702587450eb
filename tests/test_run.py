"""`sidecar run`: the main job with local processes, what it says, how it ends, and what it leaves of the terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from processes import BIN, LONG, Pod, Started, children_of, gone, make_long_to_save, processes, session_of, state_of, until

from sidecar.coordination.protocol import PREPARING, READY, RUNNING, SAVING, WAITING
from sidecar.store import Bundle, Store, open_store

SIDECAR = str(BIN / "sidecar")
# Copies what is in `in` to `out` and prints one line.
COPY = ("sh", "-c", "cp in/* out; echo copied")


class Job(Pod):
    """A folder that commands run in, with `out` in it, and a store that holds weather@latest."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.coord.rmdir()  # `sidecar run` makes it
        self.out, self.temporary = folder / "out", folder / "tmp"
        self.out.mkdir()
        self.temporary.mkdir()
        self.store: Store = open_store(f"file://{folder}/store")
        self.weather = self.put("1,2\n", "latest")
        self.environment = {"HOME": str(folder / "home"), "SIDECAR_STORE": self.store.url, "TMPDIR": str(self.temporary)}

    def __enter__(self) -> Self:
        return self

    def put(self, text: str, label: str = "", repo: str = "weather") -> Bundle:
        """Keep a bundle whose file `january.csv` holds `text`."""
        folder = self.folder / "made"
        folder.mkdir(exist_ok=True)
        (folder / "january.csv").write_text(text)
        return self.store.save(folder, repo, label=label)

    def run(self, *arguments: str | Path, env: Mapping[str, str] | None = None, **how: Any) -> Started:
        """Start `sidecar run ARGUMENTS…` in the folder."""
        return self.start(SIDECAR, "run", *arguments, env={**self.environment, **(env or {})}, cwd=self.folder, **how)

    def kept(self, repo: str = "results") -> list[Bundle]:
        """Return the bundles of a repository."""
        return self.store.bundles(repo) if repo in [each.name for each in self.store.repos()] else []

    def files(self, bundle: Bundle) -> list[str]:
        return [entry.path for entry in self.store.manifest(bundle) if entry.path]

    @contextmanager
    def preparing_held(self) -> Iterator[None]:
        """Nobody gets to populate `in`: two who do so at once take turns, and this is one of them."""
        (self.folder / "in").mkdir(exist_ok=True)
        fd = os.open(self.folder / "in", os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def saving_lasts(self) -> None:
        """Have a file among the output that takes very long to save."""
        make_long_to_save(self.out / "huge")

    def child(self, started: Started, program: str) -> int:
        """Return the process of `sidecar run` that runs `program`, once it is there."""

        def found() -> list[int]:
            return [pid for pid in children_of(started.pid) if f"sidecar.cli.{program}".encode() in arguments_of(pid)]

        until(lambda: bool(found()), f"{program} runs", self)
        return found()[0]


def arguments_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def left_of(started: Started) -> list[int]:
    """Return the processes of its session that still run."""
    return [pid for pid in processes() if session_of(pid) == started.pid and state_of(pid) not in ("Z", "")]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    with Job(tmp_path) as job:
        yield job


BRING, KEEP = ("--source", "weather@latest:in"), ("--dest", "out:results@daily")


# --- the main job ------------------------------------------------------------------------------------------------------


def test_a_command_gets_its_input_runs_and_has_its_output_saved(job: Job) -> None:
    started = job.run(*BRING, *KEEP, "--", *COPY)
    assert started.wait() == 0
    bundle = job.store.resolve("results", label="daily")
    assert job.files(bundle) == ["january.csv"]
    assert (job.out / "january.csv").read_text() == "1,2\n"


def test_stdout_is_exactly_that_of_the_command(job: Job) -> None:
    started = job.run(*BRING, *KEEP, "--", "printf", "a\\0b without a newline")
    assert started.wait() == 0
    assert started.out == "a\0b without a newline"


def test_it_says_where_the_output_went(job: Job) -> None:
    started = job.run(*BRING, *KEEP, "--", *COPY)
    assert started.wait() == 0
    bundle = job.store.resolve("results", label="daily")
    last = started.err.splitlines()[-1]
    assert last.startswith(f"sidecar: {job.out} is saved as results@daily: bundle {bundle.id}, 1 file, 4 B, in ")


def test_it_says_who_waits_for_whom_in_plain_lines_where_there_is_no_terminal(job: Job) -> None:
    with job.preparing_held():
        started = job.run("-c", job.coord, *BRING, *KEEP, "--", *COPY)
        until(lambda: "application: waits for fuse" in started.err, "the wait is told", job)
    assert started.wait() == 0
    assert "\x1b" not in started.err
    told = [line.removeprefix("sidecar: ") for line in started.err.splitlines()]
    assert all(line.startswith(("application: ", "fuse: ", f"{job.out} is saved")) for line in told)
    assert any(line.startswith("application: the command ended with status 0 after ") for line in told)


def test_a_quiet_run_says_nothing(job: Job) -> None:
    started = job.run("-q", *BRING, *KEEP, "--", *COPY)
    assert started.wait() == 0
    assert started.err == ""


def test_the_temporary_directory_is_removed_after_success(job: Job) -> None:
    assert job.run(*BRING, *KEEP, "--", *COPY).wait() == 0
    assert os.listdir(job.temporary) == []


def test_the_directory_that_was_named_is_kept(job: Job) -> None:
    assert job.run("-c", "coord", *BRING, *KEEP, "--", *COPY).wait() == 0
    assert (job.coord / "uploaddone").exists()
    assert (job.coord / "fuse.log").exists()


def test_the_temporary_directory_is_kept_after_a_failure_and_named(job: Job) -> None:
    started = job.run(*BRING, *KEEP, "--", "false")
    assert started.wait() == 1
    (name,) = os.listdir(job.temporary)
    place = job.temporary / name
    assert started.err.splitlines()[-1] == f"sidecar: what happened: sidecar status --events {place}"
    shown = job.start(SIDECAR, "status", "--events", place, env=job.environment)
    assert shown.wait() == 0
    assert "the command ended with status 1" in shown.out


def test_in_a_directory_that_has_served_a_run_the_command_is_not_run_again_and_that_is_told(job: Job) -> None:
    append = ("sh", "-c", "echo x >> out/runs")
    assert job.run("-c", job.coord, *KEEP, "--", *append).wait() == 0
    again = job.run("-c", job.coord, *KEEP, "--", *append)
    assert again.wait() == 0
    assert "a command has run already and ended with status 0; it is not run again" in again.err
    assert (job.out / "runs").read_text() == "x\n"
    assert len(job.kept()) == 1


def test_the_report_is_the_json_of_status(job: Job) -> None:
    assert job.run("-c", job.coord, "--report", "report.json", *BRING, *KEEP, "--", *COPY).wait() == 0
    report = json.loads(job.file("report.json").read_text())
    shown = job.start(SIDECAR, "status", "--json", job.coord, env=job.environment)
    assert shown.wait() == 0
    status = json.loads(shown.out)
    assert report.pop("time") <= status.pop("time")
    assert report == status
    assert report["over"] is True
    assert [p["standing"] for p in report["participants"]] == ["done", "done"]


@pytest.mark.parametrize(("command", "status"), [("true", 74), ("false", 1)])
def test_a_report_that_cannot_be_written_is_one_line_and_74_where_the_command_succeeded(
    job: Job, command: str, status: int
) -> None:
    started = job.run("-q", "--report", "no/such/report.json", *KEEP, "--", command)
    assert started.wait() == status
    assert "sidecar: the report cannot be written: no/such/report.json: No such file" in started.err
    assert "Traceback" not in started.err


# --- what is brought and what is kept ----------------------------------------------------------------------------------


def test_sources_are_named_by_label_by_bundle_and_as_the_latest(job: Job) -> None:
    second, third = job.put("second\n"), job.put("third\n")
    assert second.id != third.id
    sources = ("--source", "weather@latest:a", "--source", f"weather@{second.id}:b", "--source", "weather:c")
    started = job.run(*sources, "--", "cat", "a/january.csv", "b/january.csv", "c/january.csv")
    assert started.wait() == 0
    assert started.out == "1,2\nsecond\nthird\n"


def test_destinations_have_a_label_or_none_and_one_message(job: Job) -> None:
    dests = ("--dest", "out:results@daily", "--dest", "more:others", "--message", "two things")
    assert job.run(*dests, "--", "touch", "out/a", "more/b").wait() == 0
    (one,), (other,) = job.kept(), job.kept("others")
    assert (job.files(one), job.files(other)) == (["a"], ["b"])
    assert {one.message, other.message} == {"two things"}
    assert (job.store.labels("results"), job.store.labels("others")) == ({"daily": one.id}, {})


def test_without_a_message_a_bundle_is_said_to_be_the_output_of_the_command(job: Job) -> None:
    assert job.run(*KEEP, "--", "/usr/bin/touch", "out/a").wait() == 0
    assert job.kept()[0].message == "output of touch"


def test_paths_may_be_absolute_and_hold_blanks_quotes_and_colons(job: Job) -> None:
    strange = job.folder / "a 'b' \"c\":d"
    started = job.run("--dest", f"{strange}:results", "--message", 'it\'s "mine"', "--", "touch", str(strange / "x"))
    assert started.wait() == 0
    assert [job.files(bundle) for bundle in job.kept()] == [["x"]]
    assert job.kept()[0].message == 'it\'s "mine"'


def test_the_store_may_be_named(job: Job) -> None:
    assert job.run("--store", "other-store", *KEEP, "--", "true").wait() == 0
    assert len(open_store(f"file://{job.folder}/other-store").bundles("results")) == 1
    assert job.kept() == []


def test_where_nobody_names_a_store_it_is_in_the_data_directory_of_the_user(job: Job) -> None:
    assert job.run(*KEEP, "--", "true", env={"SIDECAR_STORE": "", "XDG_DATA_HOME": ""}).wait() == 0
    assert len(open_store(f"file://{job.folder}/home/.local/share/sidecar/store").bundles("results")) == 1


# --- the status of the command -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"), [("exit 1", 1), ("exit 7", 7), ("exit 126", 126), ("exit 255", 255), ("kill -TERM $$", 143)]
)
def test_the_status_of_the_command_passes_through_exactly_and_nothing_is_saved(job: Job, script: str, status: int) -> None:
    assert job.run("-q", *KEEP, "--", "sh", "-c", script).wait() == status
    assert job.kept() == []


def test_what_a_command_that_failed_has_made_is_saved_under_always(job: Job) -> None:
    started = job.run("--save", "always", *KEEP, "--", "sh", "-c", "touch out/half; exit 7")
    assert started.wait() == 7
    assert [job.files(bundle) for bundle in job.kept()] == [["half"]]
    assert f"is saved as results@daily: bundle {job.kept()[0].id}" in started.err


def test_nothing_is_saved_under_never(job: Job) -> None:
    started = job.run("--save", "never", *KEEP, "--", "touch", "out/a")
    assert started.wait() == 0
    assert job.kept() == []
    assert "is saved as" not in started.err


@pytest.mark.parametrize(
    ("command", "status", "reason"),
    [("no-such-command", 127, "no-such-command: not found"), ("./out", 126, "./out: cannot be executed: Permission denied")],
)
def test_a_command_that_cannot_be_begun_is_127_or_126_with_the_reason(job: Job, command: str, status: int, reason: str) -> None:
    started = job.run(*KEEP, "--", command)
    assert started.wait() == status
    assert reason in started.err
    assert job.kept() == []


# --- bad input ---------------------------------------------------------------------------------------------------------


def test_a_source_that_does_not_exist_is_66_with_the_labels_that_do(job: Job) -> None:
    started = job.run("--source", "weather@tomorrow:in", *KEEP, "--", "touch", "ran")
    assert started.wait() == 66
    assert "repository 'weather' has no label 'tomorrow'; labels there: latest" in started.err
    assert not job.file("ran").exists()
    assert job.kept() == []


def test_a_store_that_cannot_be_reached_is_74(job: Job) -> None:
    job.file("file").touch()
    started = job.run("--store", f"file://{job.folder}/file/store", *BRING, "--", "touch", "ran")
    assert started.wait() == 74
    assert "file/store" in started.err
    assert not job.file("ran").exists()


def test_a_store_of_no_known_kind_is_78(job: Job) -> None:
    started = job.run("--store", "nosuch://x", *BRING, "--", "true")
    assert started.wait() == 78
    assert "nosuch" in started.err


def test_a_destination_within_a_source_is_65_and_said_at_once(job: Job) -> None:
    started = job.run(*BRING, "--dest", "in/out:results", "--", "touch", "ran")
    assert started.wait() == 65
    assert f"{job.folder}/in/out is or lies in {job.folder}/in" in started.err
    assert not job.file("ran").exists()


def test_a_coordination_directory_that_cannot_be_made_is_74(job: Job) -> None:
    job.file("file").touch()
    started = job.run("-c", "file/coord", *KEEP, "--", "true")
    assert started.wait() == 74
    assert started.err == "sidecar: the coordination directory file/coord: Not a directory\n"


WRONG = {
    "nothing to bring and nothing to keep": (["--", "true"], "--source REPO@LABEL:DIR or --dest DIR:REPO[@LABEL] is needed"),
    "no command": ([*KEEP], "Missing argument 'CMD [ARG]...'"),
    "a source without a directory": (["--source", "weather@latest", "--", "true"], "--source expects REPO:DIR or REPO@LABEL:DIR"),
    "a source with an empty one": (["--source", "weather:", "--", "true"], "--source expects REPO:DIR or REPO@LABEL:DIR"),
    "a source without a repository": (["--source", ":in", "--", "true"], "--source expects REPO:DIR or REPO@LABEL:DIR"),
    "a repository that is a path": (["--source", "../x:in", "--", "true"], "expected REPO, REPO@LABEL or REPO@BUNDLE-ID"),
    "an empty label": (["--source", "weather@:in", "--", "true"], "expected REPO, REPO@LABEL or REPO@BUNDLE-ID"),
    "a destination without a repository": (["--dest", "out", "--", "true"], "--dest expects DIR:REPO or DIR:REPO@LABEL"),
    "a destination without a directory": (["--dest", ":results", "--", "true"], "--dest expects DIR:REPO or DIR:REPO@LABEL"),
    "a label with a slash": (["--dest", "out:results@a/b", "--", "true"], "expected REPO, REPO@LABEL or REPO@BUNDLE-ID"),
    "a destination that is a bundle": (["--dest", f"out:results@{'0' * 26}", "--", "true"], "names a bundle that exists"),
    "a policy that is none": ([*KEEP, "--save", "sometimes", "--", "true"], "'sometimes' is not one of"),
    "a time that is none": (
        [*KEEP, "--run-timeout", "soon", "--", "true"],
        "--run-timeout expects a time like 90, 90s, 15m or 2h",
    ),
    "a grace that is negative": ([*KEEP, "--grace", "-1", "--", "true"], "--grace expects a time like"),
    "an unknown option": ([*KEEP, "--fast", "--", "true"], "--fast"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_command_line_is_2_and_one_line_that_says_what_was_expected(job: Job, wrong: str) -> None:
    arguments, expected = WRONG[wrong]
    started = job.run(*arguments)
    assert started.wait() == 2
    assert started.out == ""
    assert started.err.startswith("sidecar: ")
    assert started.err.count("\n") == 1
    assert expected in started.err
    assert os.listdir(job.temporary) == []


# --- deadlines ---------------------------------------------------------------------------------------------------------


def test_a_command_that_runs_too_long_is_75_and_nothing_is_saved(job: Job) -> None:
    started = job.run("--run-timeout", "0.1", *KEEP, "--", "sleep", LONG)
    assert started.wait() == 75
    assert "the command ran longer than 0.1 s" in started.err
    assert job.kept() == []


def test_a_source_that_takes_too_long_is_75(job: Job) -> None:
    with job.preparing_held():
        started = job.run("--ready-timeout", "0.1", *BRING, *KEEP, "--", "touch", "ran")
        assert started.wait() == 75
    assert "not ready within 0.1 s" in started.err or "fuse was to say mountdone" in started.err
    assert not job.file("ran").exists()


def test_saving_that_takes_too_long_is_73_and_nothing_is_said_to_be_saved(job: Job) -> None:
    job.saving_lasts()
    started = job.run("--save-timeout", "0", *KEEP, "--", "true")
    assert started.wait() == 73
    assert job.kept() == []
    assert "is saved as" not in started.err


# --- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_command_and_ends_all_with_128_plus_n(job: Job, number: int) -> None:
    started = job.run("-c", job.coord, *KEEP, "--", "sh", "-c", f": > up; exec sleep {LONG}")
    job.hear_file("up")
    started.send(number)
    assert started.wait() == 128 + number
    assert left_of(started) == []
    assert job.kept() == []


def test_what_a_command_makes_of_sigterm_is_saved_where_it_succeeds(job: Job) -> None:
    script = "trap ': > out/made; exit 0' TERM; : > up; while :; do sleep 0.01; done"
    started = job.run(*KEEP, "--", "sh", "-c", script)
    job.hear_file("up")
    started.send(signal.SIGTERM)
    assert started.wait() == 0
    assert [job.files(bundle) for bundle in job.kept()] == [["made"]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_the_input_with_128_plus_n(job: Job, number: int) -> None:
    with job.preparing_held():
        started = job.run("-c", job.coord, "--grace", "0.1", *BRING, *KEEP, "--", "touch", "ran")
        until(job.coord.exists, "the directory is there", job)
        job.hear_state(WAITING)
        job.hear_state(PREPARING, "fuse")
        started.send(number)
        assert started.wait() == 128 + number
    assert left_of(started) == []
    assert not job.file("ran").exists()


def test_sigterm_while_it_saves_leaves_the_grace_and_then_73(job: Job) -> None:
    job.saving_lasts()
    started = job.run("-c", job.coord, "--grace", "0.1", *KEEP, "--", "true")
    until(job.coord.exists, "the directory is there", job)
    job.hear_state(SAVING, "fuse")
    started.send(signal.SIGTERM)
    assert started.wait() == 73
    assert left_of(started) == []


def test_sigterm_at_the_very_start_ends_it_and_leaves_no_process(job: Job) -> None:
    started = job.run("-c", job.coord, "--grace", "0.1", *KEEP, "--", "sleep", LONG)
    job.child(started, "wrap_datamon")
    started.send(signal.SIGTERM)
    assert started.wait() == 143
    assert left_of(started) == []


def test_where_it_is_killed_battery_wrapper_and_command_die_with_it(job: Job) -> None:
    started = job.run("-c", job.coord, *KEEP, "--", "sh", "-c", f"echo $$ > new; mv new pid; exec sleep {LONG}")
    command = int(job.hear_file("pid").read_text())
    pids = [job.child(started, "wrap_datamon"), job.child(started, "wrap_application"), command]
    started.kill()
    until(lambda: all(gone(pid) for pid in pids), "all are gone", job)
    assert job.kept() == []


# --- deaths ------------------------------------------------------------------------------------------------------------


def test_a_battery_that_dies_while_it_is_waited_for_is_69_and_told(job: Job) -> None:
    with job.preparing_held():
        started = job.run("-c", job.coord, *BRING, *KEEP, "--", "touch", "ran")
        battery = job.child(started, "wrap_datamon")
        job.hear_state(WAITING)
        job.hear_state(PREPARING, "fuse")
        os.kill(battery, signal.SIGKILL)
        assert started.wait() == 69
    assert "fuse died without a word" in started.err
    assert not job.file("ran").exists()


def test_a_battery_that_dies_before_it_has_said_a_word_is_69_and_told(job: Job) -> None:
    started = job.run("-c", job.coord, *BRING, *KEEP, "--", "touch", "ran")
    os.kill(job.child(started, "wrap_datamon"), signal.SIGKILL)
    assert started.wait() == 69
    assert "fuse died" in started.err
    assert not job.file("ran").exists()


def test_a_battery_that_dies_while_the_command_runs_lets_it_end_and_is_73(job: Job) -> None:
    started = job.run("-c", job.coord, *KEEP, "--", "sh", "-c", ": > up; until [ -e go ]; do sleep 0.01; done; echo ended")
    job.hear_file("up")
    battery = job.child(started, "wrap_datamon")
    os.kill(battery, signal.SIGKILL)
    until(lambda: "fuse: died" in started.err, "the death is told", job)
    assert started.running
    job.file("go").touch()
    assert started.wait() == 73
    assert started.out == "ended\n"
    assert "fuse died without a word; the last it said was 'ready'" in started.err
    assert "is saved as" not in started.err


def test_a_wrapper_that_dies_takes_the_command_along_and_the_battery_ends(job: Job) -> None:
    started = job.run("-c", job.coord, *KEEP, "--", "sleep", LONG)
    wrapper = job.child(started, "wrap_application")
    job.hear_state(RUNNING)
    os.kill(wrapper, signal.SIGKILL)
    assert started.wait() == 137
    assert left_of(started) == []
    assert job.kept() == []


def test_a_wrapper_that_dies_before_it_has_said_a_word_ends_the_battery(job: Job) -> None:
    started = job.run("-c", job.coord, *KEEP, "--", "sleep", LONG)
    os.kill(job.child(started, "wrap_application"), signal.SIGKILL)
    assert started.wait() == 137
    assert left_of(started) == []


def test_a_coordination_directory_that_is_deleted_does_not_end_the_command_and_is_74(job: Job) -> None:
    script = "rm -rf coord; until [ -e go ]; do sleep 0.01; done; echo ended"
    started = job.run("-c", job.coord, *KEEP, "--", "sh", "-c", script)
    battery = job.child(started, "wrap_datamon")
    until(lambda: gone(battery), "the battery has noticed", job)
    assert started.running
    job.file("go").touch()
    assert started.wait() == 74
    assert started.out == "ended\n"
    assert "was deleted while it was in use" in started.err
    assert "Traceback" not in started.err


def test_where_nobody_reads_its_messages_the_job_is_done_all_the_same(job: Job) -> None:
    r, w = os.pipe()
    os.close(r)
    started = job.run(*BRING, *KEEP, "--", *COPY, stderr=w)
    os.close(w)
    assert started.wait() == 0
    assert started.out == "copied\n"
    assert [job.files(bundle) for bundle in job.kept()] == [["january.csv"]]


# --- on a terminal -----------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 250, 30
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
_PART = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b([78D])|(.)", re.DOTALL)


class Screen:
    """What a VT100 makes of what is written to it, as far as it is needed here."""

    def __init__(self) -> None:
        self.above: list[str] = []
        self.rows = [self.blank() for _ in range(HEIGHT)]
        self.row = self.column = 0
        self.saved = (0, 0)
        self.margins = (0, HEIGHT - 1)

    @staticmethod
    def blank() -> list[str]:
        return [" "] * WIDTH

    def down(self) -> None:
        top, bottom = self.margins
        if self.row == bottom:
            gone = self.rows.pop(top)
            self.rows.insert(bottom, self.blank())
            if top == 0:
                self.above.append("".join(gone).rstrip())
        else:
            self.row = min(self.row + 1, HEIGHT - 1)

    def put(self, char: str) -> None:
        if self.column == WIDTH:
            self.column = 0
            self.down()
        self.rows[self.row][self.column] = char
        self.column += 1

    def control(self, numbers: list[int], letter: str) -> None:
        first = numbers[0] if numbers else 0
        match letter:
            case "A":
                self.row = max(self.margins[0] if self.row >= self.margins[0] else 0, self.row - max(1, first))
            case "H":
                self.row, self.column = max(1, first) - 1, (numbers[1] if len(numbers) > 1 else 1) - 1
            case "J":
                assert first == 0
                self.control([], "K")
                self.rows[self.row + 1 :] = [self.blank() for _ in self.rows[self.row + 1 :]]
            case "K":
                assert first == 0
                self.rows[self.row][self.column :] = [" "] * (WIDTH - self.column)
            case "r":
                self.margins = (numbers[0] - 1, numbers[1] - 1) if numbers else (0, HEIGHT - 1)
                self.row = self.column = 0
            case _:
                assert letter == "m", f"what does {letter!r} do?"

    def write(self, text: str) -> None:
        for numbers, letter, word, char in _PART.findall(text):
            if letter:
                self.control([int(number) for number in numbers.split(";") if number], letter)
            elif word == "7":
                self.saved = (self.row, self.column)
            elif word == "8":
                self.row, self.column = self.saved
            elif word == "D" or char == "\n":
                self.down()
            elif char == "\r":
                self.column = 0
            else:
                assert char.isprintable(), f"what does {char!r} do?"
                self.put(char)


class Terminal:
    """A terminal: what was written to it, and the screen that this makes."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        os.set_blocking(self.master, False)
        self._written = b""

    def close(self) -> None:
        for fd in (self.master, self.slave):
            os.close(fd)

    def start(self, job: Job, *arguments: str | Path, **env: str) -> Started:
        """Start `sidecar run ARGUMENTS…` with this as its controlling terminal."""
        size = {"TERM": "xterm", "COLUMNS": str(WIDTH), "LINES": str(HEIGHT), **env}
        return job.run(
            *arguments,
            env=size,
            prepare=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
        )

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    @property
    def written(self) -> str:
        """Everything that was written to it until now."""
        while True:
            try:
                self._written += os.read(self.master, 65536)
            except OSError:  # nothing more now
                return self._written.decode(errors="replace")

    @property
    def screen(self) -> list[str]:
        """The lines that have left it above, and those that it shows, without what is empty at the end."""
        screen = Screen()
        screen.write(self.written)
        return "\n".join([*screen.above, *("".join(row).rstrip() for row in screen.rows)]).rstrip("\n").split("\n")

    @property
    def scrolls_as_a_whole(self) -> bool:
        screen = Screen()
        screen.write(self.written)
        return screen.margins == (0, HEIGHT - 1)

    def shows(self, text: str) -> bool:
        return any(text in line for line in self.screen)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_the_command_owns_the_terminal(job: Job, terminal: Terminal) -> None:
    code = (
        "import os; print('terminals', [os.isatty(fd) for fd in (0, 1, 2)]); "
        "print('in front', os.tcgetpgrp(0) == os.getpgrp()); print('read', input())"
    )
    started = terminal.start(job, "-c", job.coord, *BRING, *KEEP, "--", "python3", "-c", code)
    until(lambda: terminal.shows("in front True"), "the command is in front", job)
    assert terminal.shows("terminals [True, True, True]")
    terminal.type("a line\n")
    until(lambda: terminal.shows("read a line"), "the command reads", job)
    assert started.wait() == 0


@pytest.mark.parametrize(("policy", "kept"), [("on-success", 0), ("always", 1)])
def test_control_c_ends_the_command_with_130_and_its_output_is_kept_by_policy(
    job: Job, terminal: Terminal, policy: str, kept: int
) -> None:
    started = terminal.start(job, "--save", policy, *KEEP, "--", "sh", "-c", f"echo up; exec sleep {LONG}")
    until(lambda: terminal.shows("up"), "the command is up", job)
    terminal.type("\x03")
    assert started.wait() == 130
    assert len(job.kept()) == kept
    assert left_of(started) == []


def test_control_c_ends_the_wait_with_130(job: Job, terminal: Terminal) -> None:
    with job.preparing_held():
        started = terminal.start(job, "-c", job.coord, "--grace", "0.1", *BRING, *KEEP, "--", "touch", "ran")
        until(lambda: terminal.shows("waits for fuse"), "the view is there", job)
        terminal.type("\x03")
        assert started.wait() == 130
    assert left_of(started) == []
    assert not job.file("ran").exists()
    assert terminal.shows("signal 2 came before the command was begun")


def test_control_c_while_it_saves_leaves_the_grace_and_then_73(job: Job, terminal: Terminal) -> None:
    job.saving_lasts()
    started = terminal.start(job, "--grace", "0.1", *KEEP, "--", "true")
    until(lambda: terminal.shows("saving to results"), "the saving is shown", job)
    terminal.type("\x03")
    assert started.wait() == 73
    assert left_of(started) == []
    assert job.kept() == []


def test_the_view_shows_who_waits_for_whom_and_leaves_nothing_behind(job: Job, terminal: Terminal) -> None:
    with job.preparing_held():
        started = terminal.start(job, "-c", job.coord, *BRING, *KEEP, "--", "sh", "-c", "seq 1 40")
        until(lambda: terminal.shows("PARTICIPANT") and terminal.shows("waits for fuse"), "the view is there", job)
    assert started.wait() == 0
    shown = terminal.screen
    assert shown[:-1] == [str(number) for number in range(1, 41)]
    assert " is saved as results@daily: bundle " in shown[-1]
    assert terminal.scrolls_as_a_whole


@pytest.mark.parametrize("before", [0, HEIGHT - 2, 2 * HEIGHT])
def test_what_the_command_prints_while_the_view_is_late_stays_whole(job: Job, terminal: Terminal, before: int) -> None:
    os.write(terminal.slave, b"before\n" * before)
    lines = [f"line {number} of the command" for number in range(20)]
    with job.preparing_held():
        script = f"printf '%s\\n' {' '.join(repr(line) for line in lines)}; : > printed; until [ -e go ]; do sleep 0.01; done"
        started = terminal.start(job, "-c", job.coord, *BRING, *KEEP, "--", "sh", "-c", script)
        until(lambda: terminal.shows("PARTICIPANT") and terminal.shows("waits for fuse"), "the view is there", job)
        started.send(signal.SIGSTOP)
    job.hear_file("printed")
    started.send(signal.SIGCONT)
    job.file("go").touch()
    assert started.wait() == 0
    assert terminal.screen[: before + len(lines)] == ["before"] * before + lines
    assert not terminal.shows("PARTICIPANT")
    assert terminal.scrolls_as_a_whole


def test_a_line_that_the_command_did_not_end_stays_while_its_output_is_saved(job: Job, terminal: Terminal) -> None:
    job.saving_lasts()
    started = terminal.start(job, "--grace", "0.1", *KEEP, "--", "printf", "no newline")
    until(lambda: terminal.shows("saving to results"), "the saving is shown", job)
    drawn = terminal.written.count("PARTICIPANT")
    until(lambda: terminal.written.count("PARTICIPANT") > drawn, "it is drawn anew", job)
    assert "no newline" in terminal.screen
    started.send(signal.SIGTERM)
    assert started.wait() == 73
    assert terminal.screen[0].startswith("no newline")
    assert not terminal.shows("PARTICIPANT")


def test_the_reason_of_a_failure_stays_on_the_terminal(job: Job, terminal: Terminal) -> None:
    with job.preparing_held():
        started = terminal.start(job, "--ready-timeout", "1", *BRING, "--", "true")
        until(lambda: terminal.shows("PARTICIPANT"), "the view is there", job)
        assert started.wait() == 75
    assert terminal.shows("fuse")
    assert terminal.shows("what happened: sidecar status --events")
    assert not terminal.shows("PARTICIPANT")


@pytest.mark.parametrize(("variable", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_there_are_no_colours_where_the_user_wants_none(
    job: Job, terminal: Terminal, variable: dict[str, str], coloured: bool
) -> None:
    job.saving_lasts()
    started = terminal.start(job, "--save-timeout", "0.5", *KEEP, "--", "true", **variable)
    assert started.wait() == 73
    assert "PARTICIPANT" in terminal.written
    assert bool(COLOUR.search(terminal.written)) is coloured


def test_a_dumb_terminal_gets_plain_lines(job: Job, terminal: Terminal) -> None:
    started = terminal.start(job, *BRING, *KEEP, "--", *COPY, TERM="dumb")
    assert started.wait() == 0
    assert "\x1b" not in terminal.written
    assert terminal.shows("fuse: ready after ")


def test_a_quiet_run_draws_nothing(job: Job, terminal: Terminal) -> None:
    started = terminal.start(job, "-q", *BRING, *KEEP, "--", *COPY)
    assert started.wait() == 0
    assert terminal.written == "copied\r\n"


def test_a_run_that_is_ready_is_shown_by_status_while_it_runs(job: Job) -> None:
    started = job.run("-c", job.coord, *KEEP, "--", "sh", "-c", ": > up; until [ -e go ]; do sleep 0.01; done")
    job.hear_file("up")
    job.hear_state(READY, "fuse")
    shown = job.start(SIDECAR, "status", job.coord, env=job.environment)
    assert shown.wait() == 0
    assert "running" in shown.out
    assert "ready" in shown.out
    job.file("go").touch()
    assert started.wait() == 0
