"""`wrap_application --once`: a restarted application container runs nothing again, writes again what was written, and goes on.

`make test` runs this with the portable wrapper as well, by SIDECAR_WRAP.
"""

from __future__ import annotations

import fcntl
import os
import random
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import BIN, HANG, WRAP, Pod, Started, unshare, until

from sidecar.coordination.protocol import DONE, EXITED, FAILED, RUNNING
from sidecar.once.facts import FAILED_TO_START, FINISHED, UNKNOWN, Run
from sidecar.once.ledger import Ledger

PIPE = 64 << 10  # what one holds
ONCE = ("-b", "fuse", "--once", "app")
ALONE = (*ONCE, "--save", "never", "-q")
# Writes 1 MiB of any bytes to stdout, and now and then to stderr; leaves a byte for each time it was run.
WRITES = """
import os, random, sys
os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND), b"x")
some = random.Random(1)
for number in range(64):
    os.write(1, some.randbytes(16384))
    os.write(2, b"%d\\n" % number)
sys.exit(7)
"""


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with Pod(tmp_path) as pod:
        yield pod


def ledger_of(pod: Pod) -> Path:
    return pod.coord / ".sidecar" / "state"


def runs(pod: Pod) -> list[Run]:
    with Ledger(ledger_of(pod)) as ledger:
        return ledger.runs()


def out_of(started: Started) -> bytes:
    return started._out.read_bytes()


def held(fd: int) -> int:
    """Return how many bytes a pipe holds."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def appends(pod: Pod, then: str = "") -> tuple[str, ...]:
    """Return a command that leaves a byte for each time it was run."""
    return ("sh", "-c", f"printf x >> {pod.file('bytes')}; {then}")


def bytes_left(pod: Pod) -> str:
    path = pod.file("bytes")
    return path.read_text() if path.exists() else ""


# --- again -------------------------------------------------------------------------------------------------------------


def test_the_second_life_writes_what_the_first_wrote_and_ends_as_it_did(pod: Pod) -> None:
    pod.say("mountdone")
    command = (sys.executable, "-ISc", WRITES, pod.file("bytes"))
    lives = [pod.wrap(*ALONE, "--", *command) for _ in range(3) if not pod.started or pod.started[-1].wait() == 7]
    assert [life.wait() for life in lives] == [7, 7, 7]
    assert bytes_left(pod) == "x"
    assert len(out_of(lives[0])) == 1 << 20
    assert out_of(lives[1]) == out_of(lives[2]) == out_of(lives[0])
    assert lives[1].err == lives[2].err == lives[0].err == "".join(f"{number}\n" for number in range(64))


@pytest.mark.parametrize(("then", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -KILL $$", 137)])
def test_the_end_of_the_command_is_given_back(pod: Pod, then: str, status: int) -> None:
    pod.say("mountdone")
    for _ in range(2):
        assert pod.wrap(*ALONE, "--", *appends(pod, then)).wait() == status
    assert bytes_left(pod) == "x"


def test_a_command_that_was_not_found_is_not_looked_for_again(pod: Pod) -> None:
    pod.say("mountdone")
    tool = pod.file("tool")
    assert pod.wrap(*ALONE, "--", tool).wait() == 127
    shutil.copy("/bin/true", tool)
    again = pod.wrap(*ALONE, "--", tool)
    assert again.wait() == 127
    assert f"{tool}: not found" in again.err


def test_an_end_that_only_the_ledger_knows_is_gone_on_from(pod: Pod) -> None:
    """The container was killed when the ledger had been told, and the record had not."""
    pod.say("mountdone")
    assert pod.wrap(*ALONE, "--", *appends(pod, "echo done; exit 4")).wait() == 4
    record = pod.coord / ".sidecar" / "participants" / "application.json"
    text = record.read_text()
    assert '"state": "done"' in text
    begin, end = text.index('"exit": {'), text.index('"error"')
    record.write_text((text[:begin] + '"exit": null, ' + text[end:]).replace('"state": "done"', '"state": "running"'))
    again = pod.wrap(*ALONE, "--", *appends(pod, "echo done; exit 4"))
    assert again.wait() == 4
    assert again.out == "done\n"
    assert bytes_left(pod) == "x"
    found = pod.record()
    assert found is not None
    assert found.state == DONE


def test_an_end_that_only_the_record_knows_is_put_into_the_ledger(pod: Pod) -> None:
    """The container was killed when the record had been told, and the ledger had not."""
    pod.say("mountdone")
    assert pod.wrap(*ALONE, "--", *appends(pod, "echo done; exit 4")).wait() == 4
    with Ledger(ledger_of(pod)) as ledger, ledger.state.write() as transaction:
        transaction.execute("UPDATE run SET state = 'running', code = 0, finished = 0")
    assert [run.state for run in runs(pod)] == [UNKNOWN]
    again = pod.wrap(*ALONE, "--", *appends(pod, "echo done; exit 4"))
    assert again.wait() == 4
    assert again.out == "done\n"
    run = runs(pod)[0]
    assert (run.state, run.exit.code) == (FINISHED, 4)
    assert run.started <= run.finished
    assert bytes_left(pod) == "x"


def test_a_ledger_that_outlives_the_directory_keeps_the_command_from_running_in_another(pod: Pod, tmp_path: Path) -> None:
    pod.say("mountdone")
    given = ("--state", tmp_path / "state", "--instance", "a pod/app")
    assert pod.wrap(*ALONE, *given, "--", *appends(pod, "echo first; exit 5")).wait() == 5
    (tmp_path / "other").mkdir()
    with Pod(tmp_path / "other") as other:
        other.say("mountdone")
        again = other.wrap(*ALONE, *given, "--", *appends(pod, "echo first; exit 5"))
        assert again.wait() == 5
        assert again.out == "first\n"
        record = other.record()
        assert record is not None
        assert record.started
    assert bytes_left(pod) == "x"
    assert not ledger_of(pod).exists()


def test_the_pod_and_the_container_are_the_instance_where_the_manifest_tells_them(pod: Pod) -> None:
    pod.say("mountdone")
    told = {"POD_UID": "6f1c", "CONTAINER_NAME": "app", "SIDECAR_STATE": str(pod.file("state"))}
    assert pod.wrap(*ALONE, "--", "true", env=told).wait() == 0
    with Ledger(pod.file("state")) as ledger:
        assert [run.instance for run in ledger.runs()] == ["6f1c/app"]


def test_another_directory_is_another_instance(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with Pod(tmp_path / "other") as other:
        for each in (pod, other):
            each.say("mountdone")
            assert each.wrap(*ALONE, "--state", tmp_path / "state", "--", *appends(pod)).wait() == 0
    assert bytes_left(pod) == "xx"


def test_the_handshake_goes_on_where_it_was_and_the_output_is_saved_once(pod: Pod) -> None:
    """The container dies when the battery has been asked; its next life waits for that same saving."""
    battery = pod.battery(keep=f"printf s >> {pod.file('saved')}; until [ -e {pod.file('go')} ]; do sleep 0.01; done")
    first = pod.wrap(*ONCE, "-q", "--", *appends(pod, "echo made"))
    pod.hear("initupload")
    pod.hear_file("saved")
    first.kill()
    second = pod.wrap(*ONCE, "-q", "--", *appends(pod, "echo made"))
    until(lambda: second.out == "made\n", "the second life writes what the first wrote", pod)
    pod.file("go").touch()
    assert second.wait() == battery.wait() == 0
    assert bytes_left(pod) == "x"
    assert pod.file("saved").read_text() == "s"


# --- not again ---------------------------------------------------------------------------------------------------------


def test_a_command_whose_end_nobody_knows_is_not_begun_again(pod: Pod) -> None:
    pod.say("mountdone")
    first = pod.wrap(*ALONE, "--", *appends(pod, "sleep 300"))
    until(lambda: bytes_left(pod) == "x", "the command runs", pod)
    first.kill()
    assert [run.state for run in runs(pod)] == [UNKNOWN]
    for _ in range(2):
        assert pod.wrap(*ALONE, "--", *appends(pod, "sleep 300")).wait() == 125
    assert bytes_left(pod) == "x"


def test_in_another_directory_such_a_command_is_not_begun_either_and_it_is_said_how_it_could_be(pod: Pod, tmp_path: Path) -> None:
    given = ("--state", tmp_path / "state", "--instance", "i")
    pod.say("mountdone")
    first = pod.wrap(*ALONE, *given, "--", *appends(pod, "sleep 300"))
    until(lambda: bytes_left(pod) == "x", "the command runs", pod)
    first.kill()
    (tmp_path / "other").mkdir()
    with Pod(tmp_path / "other") as other:
        other.say("mountdone")
        again = other.wrap(*ALONE, *given, "--", *appends(pod, "sleep 300"))
        assert again.wait() == 125
        assert "its outcome is unknown" in again.err
        assert f"sidecar once forget --state {tmp_path / 'state'} --instance i -- app" in again.err
        assert other.hear_state(FAILED).error is not None


def test_a_command_that_runs_elsewhere_is_not_begun_a_second_time(pod: Pod, tmp_path: Path) -> None:
    given = ("--state", tmp_path / "state", "--instance", "i")
    pod.say("mountdone")
    first = pod.wrap(*ALONE, *given, "--", *appends(pod, "sleep 300"))
    until(lambda: bytes_left(pod) == "x", "the command runs", pod)
    (tmp_path / "other").mkdir()
    with Pod(tmp_path / "other") as other:
        other.say("mountdone")
        assert other.wrap(*ALONE, *given, "--", *appends(pod, "sleep 300")).wait() == 125
    assert first.running
    first.send(signal.SIGTERM)
    assert first.wait() == 143
    assert bytes_left(pod) == "x"


def test_another_command_under_the_name_is_refused_and_not_run(pod: Pod, tmp_path: Path) -> None:
    given = ("--state", tmp_path / "state", "--instance", "i")
    pod.say("mountdone")
    assert pod.wrap(*ALONE, *given, "--", "sh", "-c", "exit 0").wait() == 0
    (tmp_path / "other").mkdir()
    with Pod(tmp_path / "other") as other:
        other.say("mountdone")
        again = other.wrap(*ALONE, *given, "--", *appends(pod))
        assert again.wait() == 125
        assert "argument 2 is another" in again.err
    assert bytes_left(pod) == ""


@pytest.mark.parametrize("why", ["others may enter", "a link", "no store"])
def test_where_the_ledger_cannot_be_kept_nothing_is_run_and_the_peers_are_told(pod: Pod, why: str) -> None:
    pod.say("mountdone")
    state = pod.file("state")
    if why == "a link":
        state.symlink_to(pod.folder)
    else:
        state.mkdir(mode=0o777 if why == "others may enter" else 0o700)
        state.chmod(0o777 if why == "others may enter" else 0o700)
        if why == "no store":
            (state / "state.sqlite3").write_bytes(b"no store" * 100)
            (state / "state.sqlite3").chmod(0o600)
    started = pod.wrap(*ALONE, "--state", state, "--", *appends(pod))
    assert started.wait() == (65 if why == "no store" else 74)
    assert str(state) in started.err
    record = pod.record()
    assert record is not None
    assert (record.state, record.started) == (FAILED, False)
    assert bytes_left(pod) == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--state", "/x"), ("--instance", "i"), ("--keep", "1M"), ("--once", ""), ("--once", "a\nb"),
        ("--once", "a", "--instance", ""), ("--once", "a", "--keep", "much"), ("--once", "a", "--keep", "-1"),
    ],
    ids=[
        "a state without a name", "an instance without a name", "a size without a name", "no name", "a line feed",
        "no instance", "no size", "less than nothing",
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_2(pod: Pod, arguments: tuple[str, ...]) -> None:
    assert pod.wrap("-b", "fuse", *arguments, "--", *appends(pod)).wait() == 2
    assert bytes_left(pod) == ""


def test_the_ledger_is_its_owners_alone(pod: Pod) -> None:
    pod.say("mountdone")
    assert pod.wrap(*ALONE, "--", "true", prepare=lambda: (os.umask(0), None)[1]).wait() == 0
    found = [ledger_of(pod), *ledger_of(pod).rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in found} == {0}


def test_another_command_in_a_later_life_is_refused_and_not_given_what_the_first_wrote(pod: Pod) -> None:
    pod.say("mountdone")
    assert pod.wrap(*ALONE, "--", *appends(pod, "echo first")).wait() == 0
    again = pod.wrap(*ALONE, "--", *appends(pod, "exit 9"))
    assert again.wait() == 125
    assert again.out == ""
    assert "argument 2 is another" in again.err
    assert bytes_left(pod) == "x"


def test_no_more_than_was_said_is_kept_of_a_stream_and_a_replay_tells_so(pod: Pod) -> None:
    pod.say("mountdone")
    given = (*ONCE, "--save", "never", "--keep", "1kB", "--", *appends(pod, "head -c 5000 /dev/zero; echo all >&2; exit 3"))
    first = pod.wrap(*given)
    assert first.wait() == 3
    assert out_of(first) == bytes(5000)
    run = runs(pod)[0]
    assert (run.stdout.total, run.stdout.kept, run.stderr.total, run.stderr.kept) == (5000, 1000, 4, 4)
    again = pod.wrap(*given)
    assert again.wait() == 3
    assert out_of(again) == bytes(1000)
    assert "not all that app wrote is kept: no more than 1000 bytes" in again.err
    assert bytes_left(pod) == "x"


def test_four_mebibytes_of_a_stream_are_kept_where_nothing_is_said(pod: Pod) -> None:
    pod.say("mountdone")
    assert pod.wrap(*ALONE, "--", *appends(pod, "head -c 5000000 /dev/zero")).wait() == 0
    assert (runs(pod)[0].stdout.total, runs(pod)[0].stdout.kept) == (5_000_000, 4 << 20)


def test_the_end_in_a_record_is_not_that_of_a_run_which_another_claimed(pod: Pod) -> None:
    pod.say("mountdone")
    given = ("--state", pod.file("state"), "--instance", "i")
    assert pod.wrap(*ALONE, *given, "--", *appends(pod, "exit 4")).wait() == 4
    with Ledger(pod.file("state")) as ledger, ledger.state.write() as transaction:
        transaction.execute("UPDATE run SET state = 'running', lease = 'of another'")
    assert pod.wrap(*ALONE, *given, "--", *appends(pod, "exit 4")).wait() == 4
    with Ledger(pod.file("state")) as ledger:
        assert [run.state for run in ledger.runs()] == [UNKNOWN]
    assert bytes_left(pod) == "x"


def test_what_is_printed_to_have_another_run_gives_another_run(pod: Pod) -> None:
    pod.say("mountdone")
    first = pod.wrap(*ALONE, "--", *appends(pod, "sleep 300"))
    until(lambda: bytes_left(pod) == "x", "the command runs", pod)
    first.kill()
    (pod.folder / "other").mkdir()
    with Pod(pod.folder / "other") as other:
        other.say("mountdone")
        given = ("--state", ledger_of(pod), "--instance", runs(pod)[0].instance)
        refused = other.wrap(*ALONE, *given, "--", *appends(pod, "sleep 300"))
        assert refused.wait() == 125
        words = shlex.split(refused.err[refused.err.index("sidecar once") : refused.err.rindex(")")])
        assert other.start(BIN / words[0], *words[1:]).wait() == 0
    assert runs(pod) == []


# --- an init all the same ----------------------------------------------------------------------------------------------


def test_a_signal_reaches_the_command_also_where_nobody_reads_what_it_writes(pod: Pod) -> None:
    pod.say("mountdone")
    read, write = os.pipe()
    try:
        script = f"trap 'touch {pod.file('heard')}; exit 6' TERM; cat /dev/zero & touch {pod.file('up')}; wait"
        started = pod.wrap(*ALONE, "--grace", "1", "--", "sh", "-c", script, stdout=write)
        pod.hear_file("up")
        until(lambda: held(read) == PIPE, "nobody reads", pod)
        started.send(signal.SIGTERM)
        pod.hear_file("heard")
        assert started.wait() == 6
    finally:
        os.close(read)
        os.close(write)
    run = runs(pod)[0]
    assert (run.state, run.exit.code) == (FINISHED, 6)
    assert run.cut


def test_a_reader_that_goes_away_does_not_stop_the_command(pod: Pod) -> None:
    pod.say("mountdone")
    read, write = os.pipe()
    os.close(read)
    try:
        started = pod.wrap(*ALONE, "--", *appends(pod, "head -c 1000000 /dev/zero; echo err >&2; exit 2"), stdout=write)
        assert started.wait() == 2
    finally:
        os.close(write)
    assert started.err == "err\n"
    assert runs(pod)[0].stdout.kept == 1_000_000


def test_a_replay_that_nobody_reads_keeps_nobody_waiting_and_ends_with_sigterm(pod: Pod) -> None:
    battery = pod.battery(keep=f"touch {pod.file('saved')}; until [ -e {pod.file('go')} ]; do sleep 0.01; done")
    command = appends(pod, "head -c 300000 /dev/zero")
    first = pod.wrap(*ONCE, "-q", "--", *command)
    pod.hear_file("saved")
    first.kill()
    read, write = os.pipe()
    try:
        second = pod.wrap(*ONCE, "-q", "--grace", "0.2", "--", *command, stdout=write)
        until(lambda: held(read) == PIPE, "nobody reads", pod)
        pod.file("go").touch()
        pod.hear_state(DONE)
        assert battery.wait() == 0
        assert second.running
        second.send(signal.SIGTERM)
        assert second.wait() == 0
    finally:
        os.close(read)
        os.close(write)
    assert bytes_left(pod) == "x"


def test_what_is_kept_leaves_the_handshake_its_room(pod: Pod) -> None:
    """The coordination directory is in memory, and smaller than what the command writes."""
    coord = shlex.quote(str(pod.coord))
    command = shlex.join(["-b", "fuse", "-q", "--once", "app", "--keep", "64MiB", "--", "head", "-c", "20000000", "/dev/zero"])
    script = f"""
        mount -t tmpfs -o size=8m none {coord} && touch {coord}/mountdone || exit
        {WRAP} -c {coord} {command} >/dev/null &
        until [ -e {coord}/initupload ]; do kill -0 $! || exit; sleep 0.01; done
        touch {coord}/uploaddone
        wait $! || exit
        {BIN}/sidecar once show -c {coord} app && {BIN}/sidecar once forget -c {coord} app"""
    started = pod.start(*unshare("--mount"), "sh", "-c", script)
    assert started.wait() == 0, started.err
    assert "nearly full" in started.out
    assert "is forgotten: exit 0" in started.out


def test_a_working_directory_that_is_gone_is_told(pod: Pod) -> None:
    pod.say("mountdone")
    gone = pod.file("gone")
    shell = ["sh", "-c", f'mkdir {gone} && cd {gone} && rmdir {gone} && exec "$@"', "sh"]
    started = pod.wrap(*ALONE, "--", *appends(pod), prefix=shell)
    assert started.wait() == 74
    assert "the working directory is gone" in started.err
    assert bytes_left(pod) == ""


def test_a_name_that_is_no_unicode_and_not_found_is_told_each_time(pod: Pod) -> None:
    pod.say("mountdone")
    for _ in range(2):
        assert pod.wrap(*ALONE, "--", os.fsdecode(b"/no/such\xff")).wait() == 127
    assert [run.state for run in runs(pod)] == [FAILED_TO_START]


def test_streams_that_are_closed_spoil_nothing(pod: Pod) -> None:
    pod.say("mountdone")
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    assert pod.wrap(*ALONE, "--", *appends(pod, "echo out; echo err >&2"), prefix=shell).wait() == 0
    again = pod.wrap(*ALONE, "--", *appends(pod, "echo out; echo err >&2"))
    assert again.wait() == 0
    assert (again.out, again.err) == ("out\n", "err\n")
    assert bytes_left(pod) == "x"


def test_what_a_process_left_behind_holds_open_is_not_waited_for(pod: Pod) -> None:
    pod.say("mountdone")
    assert pod.wrap(*ALONE, "--", "sh", "-c", "echo out; sleep 300 & exit 1").wait() == 1


def test_a_command_that_runs_too_long_is_remembered_so(pod: Pod) -> None:
    pod.say("mountdone")
    for _ in range(2):
        started = pod.wrap(*ALONE, "--run-timeout", "0.1", "--", *appends(pod, "exec sleep 300"))
        assert started.wait() == 75
        assert "ran longer than" in started.err
    assert bytes_left(pod) == "x"


# --- killed at any moment ----------------------------------------------------------------------------------------------


def whole_pod(pod: Pod, seed: int) -> None:
    """Restart the application's container, killed at a random moment each time, until one life comes to its end."""
    some = random.Random(seed)
    keep = f"printf s >> {pod.file('saved')}"
    battery = pod.battery(keep=keep, limits={"rejoin": HANG})
    command = appends(pod, "echo out; echo err >&2; echo more")
    for _ in range(some.randint(1, 4)):
        life = pod.wrap(*ONCE, "-q", "--", *command)
        try:
            life.popen.wait(some.uniform(0, 0.12))
        except subprocess.TimeoutExpired:
            life.kill()
        if not life.running and life.popen.returncode >= 0:
            break
    last = pod.wrap(*ONCE, "-q", "--", *command)
    status = last.wait()
    assert len(bytes_left(pod)) <= 1
    assert status in (0, 125)
    record = pod.record()
    assert record is not None
    if status == 0:
        assert bytes_left(pod) == "x"
        assert battery.wait() == 0
        assert pod.file("saved").read_text() == "s"
        assert last.out == "out\nmore\n"
        assert last.err == "err\n"
    else:
        assert record.state == FAILED
        assert not pod.file("saved").exists()


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(n, marks=pytest.mark.long) for n in range(8, 100))])
def test_whenever_the_container_is_killed_the_command_ran_at_most_once_and_the_output_is_saved_once(pod: Pod, seed: int) -> None:
    whole_pod(pod, seed)


def test_the_states_between_are_those_of_any_run(pod: Pod) -> None:
    pod.say("mountdone")
    started = pod.wrap(*ALONE, "--", "sh", "-c", f"until [ -e {pod.file('go')} ]; do sleep 0.01; done")
    pod.hear_state(RUNNING)
    pod.file("go").touch()
    assert started.wait() == 0
    record = pod.record()
    assert record is not None
    assert [state for state, _ in record.times] == ["waiting", RUNNING, EXITED, DONE]
