"""The coordination directory under attack and in failure, with real processes: nothing hangs, nothing is followed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from processes import HANG, LONG, SHELLS, WRAP, Pod, Started, signals_of, unshare, until

from sidecar.coordination import signals
from sidecar.coordination.notation import decode, encode
from sidecar.coordination.protocol import DONE, RUNNING, WAITING, Exit, Problem, Record
from sidecar.coordination.signals import Directory, Watch, record_from_json, record_to_json
from sidecar.errors import Unreachable

NEVER = ("-b", "fuse", "--save", "never")
AT_ONCE = ("-b", "fuse", "--appear-timeout", "0")
NOBODY = 65534

LISTENING = pytest.mark.parametrize("listening", [(), ("--poll",)], ids=["inotify", "poll"])


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with Pod(tmp_path) as pod:
        yield pod


# --- full, read-only, deleted, missing ---------------------------------------------------------------------------------


def on_tmpfs(pod: Pod, options: str, first: str = ":") -> list[str]:
    """Return the words that run a command where the coordination directory is a tmpfs of its own; `first` is run before it."""
    script = f'mount -t tmpfs -o {options} none "{pod.coord}" && cd "{pod.coord}" && {{ {first}; }} && cd / && exec "$@"'
    return [*unshare("--mount"), "sh", "-c", script, "sh"]


def inside(pod: Pod, started: Started, name: str = "") -> Path:
    """Return the path below the coordination directory as `started` sees it."""
    return Path(f"/proc/{started.pid}/root{pod.coord}") / name


def fill(folder: Path) -> None:
    """Fill the file system that `folder` lies on; its last block too."""
    with open(folder / "fill", "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass


def test_a_full_directory_is_74_from_the_start(pod: Pod) -> None:
    started = pod.wrap(*NEVER, "--", "touch", pod.file("ran"), prefix=on_tmpfs(pod, "nr_inodes=3"))
    assert started.wait() == 74
    assert "the volume is full" in started.err
    assert not pod.file("ran").exists()


def test_a_command_that_cannot_be_claimed_because_the_directory_is_full_is_not_begun(pod: Pod) -> None:
    started = pod.wrap(*NEVER, "--", "touch", pod.file("ran"), prefix=on_tmpfs(pod, "size=64k"))
    until(lambda: inside(pod, started, ".sidecar/participants/application.json").exists(), "the wrapper waits", pod)
    fill(inside(pod, started))
    inside(pod, started, "mountdone").touch()
    assert started.wait() == 74
    assert "the volume is full" in started.err
    assert not pod.file("ran").exists()


@pytest.mark.parametrize(("own", "status"), [(0, 74), (3, 3)])
def test_a_directory_that_fills_up_lets_the_command_end_and_is_told(pod: Pod, own: int, status: int) -> None:
    script = f"dd if=/dev/zero of={pod.coord}/fill bs=4096 2>/dev/null; : > {pod.file('ended')}; exit {own}"
    started = pod.wrap("-b", "fuse", "--", "sh", "-c", script, prefix=on_tmpfs(pod, "size=64k", "touch mountdone"))
    assert started.wait() == status
    assert pod.file("ended").exists()
    assert "the volume is full" in started.err


def test_sigterm_ends_the_wait_also_in_a_full_directory(pod: Pod) -> None:
    started = pod.wrap(*NEVER, "--", "true", prefix=on_tmpfs(pod, "size=64k"))
    until(lambda: inside(pod, started, ".sidecar/participants/application.json").exists(), "the wrapper waits", pod)
    fill(inside(pod, started))
    started.send(signal.SIGTERM)
    assert started.wait() in (74, 143)
    assert "the volume is full" in started.err


@pytest.mark.parametrize(
    "first", [":", f"{WRAP} -q -c . -b fuse --appear-timeout 0 -- true || test $? = 75"], ids=["new", "used"]
)
def test_a_read_only_directory_is_74(pod: Pod, first: str) -> None:
    prefix = on_tmpfs(pod, "size=1m", f"{first}; touch mountdone; cd /; mount -o remount,ro,bind {pod.coord}")
    started = pod.wrap(*NEVER, "--", "touch", pod.file("ran"), prefix=prefix)
    assert started.wait() == 74
    assert "the volume is mounted read-only" in started.err
    assert not pod.file("ran").exists()


def test_a_missing_directory_is_74(pod: Pod) -> None:
    started = pod.wrap(*NEVER, "--", "true", coord=pod.folder / "missing")
    assert started.wait() == 74
    assert "mount the volume" in started.err


def test_a_file_in_the_place_of_the_directory_is_74(pod: Pod) -> None:
    pod.file("file").touch()
    assert pod.wrap(*NEVER, "--", "true", coord=pod.file("file")).wait() == 74


def delete(folder: Path) -> None:
    """Delete a folder. A state is heard before its line is in the log, which may come to be in what is half deleted."""
    while folder.exists():
        with suppress(OSError):
            shutil.rmtree(folder)


@LISTENING
@pytest.mark.parametrize("what", ["", ".sidecar", ".sidecar/participants", ".sidecar/leases", ".sidecar/tmp"])
def test_a_directory_that_is_deleted_while_a_battery_is_waited_for_is_74(pod: Pod, listening: Sequence[str], what: str) -> None:
    started = pod.wrap(*NEVER, *listening, "--", "true")
    pod.hear_state(WAITING)
    delete(pod.coord / what)
    assert started.wait() == 74
    assert "was deleted" in started.err


@LISTENING
@pytest.mark.parametrize(("own", "status"), [(0, 74), (3, 3)])
def test_a_directory_that_is_deleted_while_the_command_runs_lets_it_end(
    pod: Pod, listening: Sequence[str], own: int, status: int
) -> None:
    pod.say("mountdone")
    script = f"until [ -e {pod.file('go')} ]; do sleep 0.01; done; : > {pod.file('ended')}; exit {own}"
    started = pod.wrap("-b", "fuse", *listening, "--", "sh", "-c", script)
    pod.hear_state(RUNNING)
    delete(pod.coord)
    pod.file("go").touch()
    assert started.wait() == status
    assert pod.file("ended").exists()
    assert "was deleted" in started.err


@LISTENING
def test_a_directory_that_is_deleted_while_the_output_is_saved_is_74(pod: Pod, listening: Sequence[str]) -> None:
    pod.say("mountdone")
    started = pod.wrap("-b", "fuse", *listening, "--", "true")
    pod.hear("initupload")
    delete(pod.coord)
    assert started.wait() == 74


def test_signals_are_forwarded_and_the_grace_is_kept_after_the_directory_was_deleted(pod: Pod) -> None:
    pod.say("mountdone")
    script = f'trap "" TERM; : > {pod.file("up")}; sleep {LONG}; wait'
    started = pod.wrap("-b", "fuse", "--grace", "0.2", "--", "sh", "-c", script)
    pod.hear_file("up")
    delete(pod.coord)
    until(lambda: not listens(started), "it is noticed", pod)
    started.send(signal.SIGTERM)
    assert started.wait() == 137


def test_a_second_sigterm_shortens_the_grace_also_after_the_directory_was_deleted(pod: Pod) -> None:
    pod.say("mountdone")
    script = f'trap "echo term" TERM; trap "echo usr1" USR1; : > {pod.file("up")}; while :; do sleep 0.01; done'
    started = pod.wrap("-b", "fuse", "--grace", "1h", "--", "sh", "-c", script)
    pod.hear_file("up")
    delete(pod.coord)
    until(lambda: not listens(started), "it is noticed", pod)
    started.send(signal.SIGTERM)
    until(lambda: "term" in started.out, "the first has arrived", pod)
    started.send(signal.SIGTERM)
    assert started.wait(20) == 137


def test_a_command_that_runs_too_long_is_ended_also_after_the_directory_was_deleted(pod: Pod) -> None:
    pod.say("mountdone")
    script = f": > {pod.file('up')}; exec sleep {LONG}"
    started = pod.wrap("-b", "fuse", "--run-timeout", "2", "--", "sh", "-c", script)
    pod.hear_file("up")
    delete(pod.coord)
    assert started.wait(20) == 75


@LISTENING
def test_a_battery_whose_directory_is_deleted_ends_with_74(pod: Pod, listening: Sequence[str]) -> None:
    battery = pod.battery(forced_polling=bool(listening))
    pod.hear("mountdone")
    delete(pod.coord)
    assert battery.wait() == 74


# --- planted things ----------------------------------------------------------------------------------------------------

PLANTED = ("link to a file", "link to a folder", "dangling link", "FIFO", "folder", "socket")
MINE = '{"mine": true}'


def plant(pod: Pod, place: str, what: str) -> None:
    """Plant something at `place`; a link leads to a file or folder of the test's own."""
    path = pod.coord / place
    path.parent.mkdir(parents=True, exist_ok=True)
    pod.file("victim.file").write_text(MINE)
    pod.file("victim.folder").mkdir(exist_ok=True)
    match what:
        case "link to a file":
            path.symlink_to(pod.file("victim.file"))
        case "link to a folder":
            path.symlink_to(pod.file("victim.folder"))
        case "dangling link":
            path.symlink_to(pod.file("victim.new"))
        case "FIFO":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "socket":
            os.mknod(path, 0o600 | 0o140000)


def nothing_was_followed(pod: Pod) -> bool:
    return (
        pod.file("victim.file").read_text() == MINE
        and os.listdir(pod.file("victim.folder")) == []
        and not pod.file("victim.new").exists()
    )


@pytest.mark.parametrize("what", PLANTED)
@pytest.mark.parametrize("place", ["mountdone", ".sidecar/participants/fuse.json", ".sidecar/leases/fuse"])
def test_what_is_planted_in_the_place_of_something_to_hear_says_nothing(pod: Pod, place: str, what: str) -> None:
    plant(pod, place, what)
    started = pod.wrap(*AT_ONCE, "--", "true")
    assert started.wait() == 75
    assert nothing_was_followed(pod)


@pytest.mark.parametrize("what", PLANTED)
@pytest.mark.parametrize("place", ["initupload", ".sidecar/participants/application.json"])
def test_what_is_planted_in_the_place_of_something_to_say_is_replaced_or_told(pod: Pod, place: str, what: str) -> None:
    plant(pod, place, what)
    pod.say("mountdone")
    started = pod.wrap("-b", "fuse", "--", "true")
    if what == "folder":
        assert started.wait() == 74
        assert "somebody planted a folder there" in started.err
    else:
        pod.hear("initupload")
        assert not (pod.coord / place).is_symlink()
        pod.say("uploaddone")
        assert started.wait() == 0
    assert nothing_was_followed(pod)


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_in_the_place_of_the_last_word_is_not_taken_for_it(pod: Pod, what: str) -> None:
    plant(pod, "uploaddone", what)
    pod.say("mountdone")
    started = pod.wrap("-b", "fuse", "--save-timeout", "0.3", "--", "true")
    assert started.wait() == (74 if what == "folder" else 73)
    assert nothing_was_followed(pod)


@pytest.mark.parametrize("what", [what for what in PLANTED if what != "folder"])
@pytest.mark.parametrize(
    "place", [".sidecar", ".sidecar/participants", ".sidecar/leases", ".sidecar/tmp", ".sidecar/progress", "db"]
)
def test_what_is_planted_in_the_place_of_a_folder_is_74(pod: Pod, place: str, what: str) -> None:
    plant(pod, place, what)
    started = pod.wrap("-b", "postgres", "-d", "db", "--", "true")
    assert started.wait() == 74
    assert "somebody planted" in started.err
    assert nothing_was_followed(pod)


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_in_the_place_of_our_lease_is_74(pod: Pod, what: str) -> None:
    plant(pod, ".sidecar/leases/application", what)
    started = pod.wrap(*NEVER, "--", "true")
    assert started.wait() == 74
    assert "planted" in started.err
    assert nothing_was_followed(pod)


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_in_the_place_of_the_event_log_costs_only_the_log(pod: Pod, what: str) -> None:
    plant(pod, ".sidecar/events.jsonl", what)
    pod.say("mountdone")
    assert pod.wrap(*NEVER, "--", "true").wait() == 0
    assert nothing_was_followed(pod)


HOSTILE = ["../x", "a/b", "/x", ".x", "..", ".", ".sidecar", "a\x01b", "a\x7fb", "\x1b[2J", "x" * 129, "é" * 65]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("flag", ["-b", "-d"])
def test_a_hostile_name_is_refused_with_2_before_anything_is_touched(pod: Pod, flag: str, name: str) -> None:
    arguments = ("-b", name) if flag == "-b" else ("-b", "postgres", "-d", name)
    assert pod.wrap(*arguments, "--", "true").wait() == 2
    assert os.listdir(pod.coord) == []
    assert {path.name.split(".")[-1] for path in pod.folder.iterdir()} == {"coord", "out", "err"}


@pytest.mark.parametrize("name", ["x" * 128, "é" * 64, "a b", "$(reboot)", "*", "-x", "ä\u202eb"])
def test_an_unusual_name_is_a_name(pod: Pod, name: str) -> None:
    b = signals_of(name)
    started = pod.wrap("-b", name, "--", "true")
    pod.hear_state(WAITING)
    pod.say(b.ready)
    pod.hear(b.save)
    pod.say(b.saved)
    assert started.wait() == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("-b", "fuse", "-b", "postgres", "-d", "mountdone"),
        ("-b", "fuse", "-b", "postgres", "-d", "initupload"),
        ("-b", "fuse", "-b", "postgres", "-d", "uploaddone"),
        ("-b", "fuse", "-b", "uploaddone"),
        ("-b", "x", "-b", "postgres", "-d", "x"),
        ("-b", "postgres-x", "-b", "postgres", "-d", "x"),
    ],
    ids=" ".join,
)
def test_two_batteries_that_would_take_each_others_place_are_refused_with_2(pod: Pod, arguments: Sequence[str]) -> None:
    assert pod.wrap(*arguments, "--appear-timeout", "0", "--", "true").wait() == 2


# --- nonsense ----------------------------------------------------------------------------------------------------------

A_RECORD = Record(
    "fuse",
    "fuse",
    "0123456789abcdef",
    state="ready",
    exit=Exit(3, reason="why"),
    error=Problem(69, "fuse", "é\ud800"),
    times=(("ready", 1.5),),
    payload={"a": [1, 2.5, None, {"b": "c"}]},
)
WRITTEN = encode(record_to_json(A_RECORD)).encode()


def with_(**changes: str) -> bytes:
    """Return the record with the raw JSON of some of its keys changed."""
    parts = {key: encode(value) for key, value in record_to_json(A_RECORD).items()} | changes
    return ("{" + ", ".join(f'"{key}": {value}' for key, value in parts.items()) + "}").encode()


NONSENSE = {
    "nothing": b"",
    "a blank": b" \n",
    "torn": WRITTEN[: len(WRITTEN) // 2],
    "its end is missing": WRITTEN[:-1],
    "more behind it": WRITTEN + b"{}",
    "NULs": b"\0" * 4096,
    "no UTF-8": b"\xff\xfe" + WRITTEN,
    "random": os.urandom(4096),
    "huge": b'{"x": "' + b"x" * (512 * 1024) + b'"}',
    "deep lists": b"[" * 200_000,
    "deep dictionaries": b'{"a":' * 50_000,
    "a deep payload": with_(payload='{"a": ' + "[" * 900 + "]" * 900 + "}"),
    "a number": b"1",
    "null": b"null",
    "a list": b"[]",
    "an empty dictionary": b"{}",
    "another's": with_(name='"other"'),
    "an endless number": with_(life="1e999"),
    "an endless number in the payload": with_(payload='{"a": -1e999}'),
    "no number": with_(life="NaN"),
    "a time that is none": with_(times='[["ready", "nan"]]'),
    "a time that is too large": with_(times=f'[["ready", 1{"0" * 400}]]'),
    "a time without end": with_(times='[["ready", "inf"]]'),
    "times that are none": with_(times='["ready"]'),
    "a status that is none": with_(exit='{"status": 0, "code": 256, "signal": 0, "reason": "", "instead": 0}'),
    "a negative status": with_(exit='{"status": 0, "code": -1, "signal": 0, "reason": "", "instead": 0}'),
    "a signal that is none": with_(exit='{"status": 0, "code": 0, "signal": 1e9, "reason": "", "instead": 0}'),
    "an error that is none": with_(error='"bad"'),
    "an error with a huge status": with_(error=f'{{"status": 1{"0" * 300}, "culprit": "", "reason": ""}}'),
    "a huge life": with_(life="9" * 4000),
    "a life of more digits than a number has": with_(life="9" * 5000),
    "a payload that is none": with_(payload="[1]"),
}


def test_the_record_that_nonsense_is_made_of_makes_sense(pod: Pod) -> None:
    (pod.coord / ".sidecar/participants").mkdir(parents=True)
    (pod.coord / ".sidecar/participants/fuse.json").write_bytes(WRITTEN)
    assert pod.record("fuse") == A_RECORD
    assert record_from_json(decode(with_())) == A_RECORD


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_in_the_place_of_a_batterys_record_says_nothing(pod: Pod, nonsense: str) -> None:
    (pod.coord / ".sidecar/participants").mkdir(parents=True)
    (pod.coord / ".sidecar/participants/fuse.json").write_bytes(NONSENSE[nonsense])
    started = pod.wrap(*AT_ONCE, "--", "true")
    assert started.wait() == 75, started.err
    assert "Traceback" not in started.err
    assert "fuse" in started.err


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_in_the_place_of_our_own_record_is_replaced(pod: Pod, nonsense: str) -> None:
    (pod.coord / ".sidecar/participants").mkdir(parents=True)
    (pod.coord / ".sidecar/participants/application.json").write_bytes(NONSENSE[nonsense].replace(b'"fuse"', b'"application"'))
    pod.say("mountdone")
    started = pod.wrap(*NEVER, "--", "sh", "-c", "exit 4")
    assert started.wait() == 4, started.err
    record = pod.record()
    assert record is not None
    assert (record.state, record.life) == (DONE, 1)


@pytest.mark.parametrize("content", ["", "{", "\0" * 9, "x" * 1_000_000, "[" * 100_000])
def test_a_signal_is_heard_whatever_it_holds(pod: Pod, content: str) -> None:
    started = pod.wrap("-b", "fuse", "--", "true")
    (pod.coord / "mountdone").write_text(content)
    pod.hear("initupload")
    (pod.coord / "uploaddone").write_text(content)
    assert started.wait() == 0


def test_a_record_that_is_torn_anywhere_says_nothing(pod: Pod) -> None:
    (pod.coord / ".sidecar/participants").mkdir(parents=True)
    path = pod.coord / ".sidecar/participants/fuse.json"
    for end in range(len(WRITTEN)):
        path.write_bytes(WRITTEN[:end])
        assert pod.record("fuse") is None, WRITTEN[:end]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(key=st.sampled_from(sorted(record_to_json(A_RECORD))), value=JSON)
@example(key="payload", value=[[None, None]])
def test_a_record_with_any_value_anywhere_is_read_as_one_that_can_be_written_or_says_nothing(key: str, value: object) -> None:
    with tempfile.TemporaryDirectory() as folder, Directory(folder) as directory:
        directory.make(())
        Path(folder, ".sidecar/participants/fuse.json").write_text(json.dumps({**record_to_json(A_RECORD), key: value}))
        record = directory.record("fuse")
        if record is not None:
            directory.publish_record(record)
            assert directory.record("fuse") == record


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=100).map(str.encode) | JSON.map(lambda thing: json.dumps(thing).encode()))
def test_any_bytes_are_json_or_a_value_error(data: bytes) -> None:
    try:
        ours = decode(data)
    except ValueError:
        return
    assert json.loads(data) == ours
    assert decode(encode(ours).encode()) == ours


# --- other users -------------------------------------------------------------------------------------------------------

# Everything is imported before the user changes: the interpreter may lie where only the first user comes.
AS_NOBODY = """
import json, os, sys
from sidecar.cli import wrap_application
from sidecar.coordination import signals
from sidecar.coordination.protocol import Record
from sidecar.coordination.signals import Directory
from sidecar.errors import Unreachable
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
code, sys.argv = sys.argv[1], sys.argv[1:]
exec(code)
"""
WRAPPER = "wrap_application.main()"


def as_nobody(pod: Pod, code: str, *arguments: str | Path) -> Started:
    """Run Python code as another user: through sudo, as the Makefile does, where the tests do not run as root."""
    return pod.python(AS_NOBODY, code, *arguments, prefix=() if os.getuid() == 0 else ("sudo", "-n", "--preserve-env=PYTHONPATH"))


@pytest.fixture
def common() -> Iterator[Pod]:
    """A pod whose directory other users come to, as an emptyDir: pytest's own are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="sidecar-"))
    folder.chmod(0o755)
    with Pod(folder) as pod:
        pod.coord.chmod(0o777)
        yield pod
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("first", ["battery", "application"])
@pytest.mark.parametrize("umask", ["022", "077"])
def test_participants_of_different_users_work_together(common: Pod, first: str, umask: str) -> None:
    before = os.umask(int(umask, 8))
    try:
        if first == "battery":
            battery = common.battery("postgres-db")
            common.hear("db/dbstarted")
        started = as_nobody(common, WRAPPER, "-c", common.coord, "-b", "postgres", "-d", "db", "--", "/bin/sh", "-c", "id -u")
        if first == "application":
            common.hear_state(WAITING)
            battery = common.battery("postgres-db")
    finally:
        os.umask(before)
    assert started.wait() == 0, started.err
    assert battery.wait() == 0, battery.err
    assert started.out == f"{NOBODY}\n"
    assert {event["by"] for event in common.events()} == {"application", "postgres-db"}


def test_a_shell_battery_of_another_user_works_with_ours(common: Pod) -> None:
    started = as_nobody(common, WRAPPER, "-c", common.coord, "-b", "postgres", "-d", "db", "--", "/bin/true")
    common.hear_state(WAITING)
    common.shell_battery("sh", "postgres-db")
    assert started.wait() == 0, started.err


def test_users_that_come_at_the_same_time_make_the_folders_together(common: Pod) -> None:
    for number in range(200):
        (common.coord / str(number)).mkdir()
        (common.coord / str(number)).chmod(0o777)
    make = """
os.umask(0o077)
while not os.path.exists(f"{sys.argv[1]}/go"):
    pass
for number in range(200):
    with Directory(f"{sys.argv[1]}/{number}") as directory:
        directory.make(["db/x"])
        directory.publish_record(Record(str(os.getuid()), "", ""))
"""
    mine = common.python(f"import os, sys\nfrom sidecar.coordination.signals import *\n{make}", common.coord)
    theirs = as_nobody(common, make, common.coord)
    common.say("go")
    assert (mine.wait(), theirs.wait()) == (0, 0), mine.err + theirs.err


IDENTITY = "print(Directory(sys.argv[1]).identity())"


def test_an_id_that_another_user_gave_to_our_directory_is_refused(common: Pod) -> None:
    """He would give it that of another directory, and another's runs with it."""
    assert as_nobody(common, IDENTITY, common.coord).wait() == 0
    with Directory(str(common.coord)) as directory, pytest.raises(Unreachable, match=f"id is user {NOBODY}'s"):
        directory.identity()


def test_an_id_that_we_gave_to_our_directory_is_everybody_s(common: Pod) -> None:
    with Directory(str(common.coord)) as directory:
        ours = directory.identity()
    theirs = as_nobody(common, IDENTITY, common.coord)
    assert (theirs.wait(), theirs.out) == (0, f"{ours}\n"), theirs.err


def test_whoever_owns_a_directory_may_give_it_its_id(common: Pod) -> None:
    made = f"os.mkdir(sys.argv[1], 0o777); os.chmod(sys.argv[1], 0o777); {IDENTITY}"
    theirs = as_nobody(common, made, common.coord / "theirs")
    assert theirs.wait() == 0, theirs.err
    with Directory(str(common.coord / "theirs")) as directory:
        assert f"{directory.identity()}\n" == theirs.out
    as_nobody(common, "import shutil; shutil.rmtree(sys.argv[1])", common.coord / "theirs").wait()


def test_another_user_cannot_replace_what_we_have_said(common: Pod) -> None:
    battery = common.battery("postgres-db")
    common.hear("db/dbstarted")
    attack = """
coord = sys.argv[1]
mine = coord + "/mine"
done = []
def attempt(what, call):
    try:
        call()
    except (OSError, Unreachable):
        return
    done.append(what)
for said in (".sidecar/participants/postgres-db.json", ".sidecar/leases/postgres-db", "db/dbstarted", ".sidecar"):
    open(mine, "w").close()
    path = f"{coord}/{said}"
    attempt(f"replace {said}", lambda: os.replace(mine, path))
    attempt(f"remove {said}", lambda: os.unlink(path))
    attempt(f"open {said}", lambda: open(path, "r+"))
    attempt(f"change {said}", lambda: os.chmod(path, 0o777))
for folder in (".sidecar/participants", ".sidecar/leases", ".sidecar/tmp"):
    attempt(f"move {folder}", lambda: os.rename(f"{coord}/{folder}", coord + "/moved"))
with Directory(coord) as directory:
    attempt("publish", lambda: directory.publish_record(Record("postgres-db", "postgres", "0", state="failed")))
    attempt("say", lambda: directory.say("db/dbstarted", Record("x", "x", "x")))
    attempt("unsay", lambda: directory.unsay("db/dbstarted"))
    attempt("lease", lambda: (setattr(signals, "LEASE_PATIENCE", 0), directory.lease("postgres-db")))
    assert directory.alive("postgres-db") is True
print(json.dumps(done))
"""
    attacker = as_nobody(common, attack, common.coord)
    status = attacker.wait()
    assert status == 0 or "another postgres-db is alive" in attacker.err, attacker.err
    assert (attacker.out or "[]").strip() == "[]"
    record = common.record("postgres-db")
    assert record is not None
    assert record.state == "ready"
    assert battery.running


def test_a_directory_that_another_user_closed_is_74(common: Pod) -> None:
    common.coord.chmod(0o755)
    started = as_nobody(common, WRAPPER, "-c", common.coord, "-b", "fuse", "--", "/bin/true")
    assert started.wait() == 74
    assert "another user made it" in started.err


def test_a_command_is_not_found_past_a_folder_of_the_path_that_may_not_be_searched(common: Pod) -> None:
    common.file("closed").mkdir(0o700)
    code = f"os.environ['PATH'] = '{common.file('closed')}:/usr/bin:/bin'; {WRAPPER}"
    common.say("mountdone")
    missing = as_nobody(common, code, "-c", common.coord, *NEVER, "--", "no-such-command")
    assert missing.wait() == 127


# --- listening ---------------------------------------------------------------------------------------------------------


def listens(started: Started) -> bool:
    """Tell whether a process has an inotify instance."""
    folder = Path(f"/proc/{started.pid}/fd")
    return any(
        os.readlink(folder / name) == "anon_inode:inotify" for name in os.listdir(folder) if os.path.lexists(folder / name)
    )


def without_inotify(what: str) -> list[str]:
    """Return the words that run a command whose user has no inotify instances, or watches, left."""
    return ["unshare", "--user", "--map-root-user", "sh", "-c", f'echo 0 > /proc/sys/user/{what} && exec "$@"', "sh"]


@pytest.mark.parametrize("shell", SHELLS)
@LISTENING
def test_a_whole_pod_of_shell_batteries_ends_well(pod: Pod, listening: Sequence[str], shell: str) -> None:
    started = pod.wrap("-b", "fuse", "-b", "postgres", "-d", "a b", *listening, "--", "echo", "ran")
    pod.hear_state(WAITING)
    if not listening:
        until(lambda: listens(started), "it listens", pod)
    batteries = [pod.shell_battery(shell, name) for name in ("fuse", "postgres-a", "postgres-b")]
    assert started.wait() == 0
    assert [battery.wait() for battery in batteries] == [0, 0, 0]
    assert started.out == "ran\n"


@LISTENING
def test_a_whole_pod_of_our_batteries_ends_well(pod: Pod, listening: Sequence[str]) -> None:
    started = pod.wrap("-b", "fuse", "-b", "postgres", "-d", "a b", *listening, "--", "echo", "ran")
    names = ("fuse", "postgres-a", "postgres-b")
    batteries = [pod.battery(name, forced_polling=bool(listening)) for name in names]
    assert started.wait() == 0
    assert [battery.wait() for battery in batteries] == [0, 0, 0]
    assert started.out == "ran\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_an_application_of_shell_ends_well_with_our_batteries(pod: Pod, shell: str) -> None:
    started = pod.shell_application(shell, ["fuse", "postgres-db"], "echo", "ran")
    batteries = [pod.battery(name) for name in ("fuse", "postgres-db")]
    assert started.wait() == 0
    assert [battery.wait() for battery in batteries] == [0, 0]
    assert started.out == "ran\n"


@pytest.mark.parametrize("what", ["max_inotify_instances", "max_inotify_watches"])
def test_without_inotify_the_directory_is_polled(pod: Pod, what: str) -> None:
    started = pod.wrap("-b", "fuse", "--", "echo", "ran", prefix=without_inotify(what))
    pod.hear_state(WAITING)
    assert not listens(started)
    battery = pod.shell_battery()
    assert started.wait() == 0
    assert battery.wait() == 0
    assert started.out == "ran\n"


def test_without_inotify_the_death_of_a_battery_is_noticed(pod: Pod) -> None:
    battery = pod.battery(prepare=f": > {pod.file('up')}; sleep {LONG}")
    started = pod.wrap("-b", "fuse", "--", "true", prefix=without_inotify("max_inotify_instances"))
    pod.hear_state(WAITING)
    pod.hear_file("up")
    battery.kill()
    assert started.wait() == 69


@LISTENING
def test_a_signal_that_was_there_before_is_heard(pod: Pod, listening: Sequence[str]) -> None:
    pod.say("mountdone")
    assert pod.wrap(*NEVER, *listening, "--", "true").wait() == 0


@pytest.mark.parametrize("gap", ["before the watch", "before the first look", "before the wait"])
def test_a_signal_in_the_gap_between_watching_and_waiting_is_heard(pod: Pod, monkeypatch: pytest.MonkeyPatch, gap: str) -> None:
    monkeypatch.setattr(signals, "BACKSTOP", HANG * 10)  # the slow poll would hear it as well
    with Directory(str(pod.coord)) as directory:
        directory.make(["mountdone"])

        def at(now: str) -> None:
            if now == gap:
                pod.say("mountdone")

        at("before the watch")
        watch = Watch(directory, [])
        at("before the first look")
        heard = directory.said("mountdone")
        at("before the wait")
        while not heard:
            watch.wait(HANG * 10)
            heard = directory.said("mountdone")
        watch.close()


@LISTENING
def test_signals_that_an_earlier_use_left_are_not_taken_for_answers(pod: Pod, listening: Sequence[str]) -> None:
    pod.say("mountdone", "initupload", "uploaddone")
    started = pod.wrap("-b", "fuse", *listening, "--", "echo", "ran")
    until(lambda: not (pod.coord / "uploaddone").exists(), "the stale answer is taken away", pod)
    pod.hear("initupload")
    assert started.running
    pod.say("uploaddone")
    assert started.wait() == 0
    assert started.out == "ran\n"


@pytest.mark.parametrize("status", [0, 3])
def test_a_command_that_has_run_in_an_earlier_life_is_not_run_again(pod: Pod, status: int) -> None:
    pod.say("mountdone")
    command = (*NEVER, "--", "sh", "-c", f"echo ran; exit {status}")
    assert pod.wrap(*command).wait() == status
    again = pod.wrap(*command)
    assert again.wait() == status
    assert again.out == ""
    assert "has run already" in again.err


def test_a_command_whose_end_is_not_known_is_not_run_again(pod: Pod) -> None:
    pod.say("mountdone")
    first = pod.wrap("-b", "fuse", "--", "sleep", LONG)
    pod.hear_state(RUNNING)
    first.kill()
    again = pod.wrap("-b", "fuse", "--", "touch", pod.file("ran"))
    assert again.wait() == 125
    assert not pod.file("ran").exists()


def test_a_command_that_was_not_begun_in_an_earlier_life_is_run(pod: Pod) -> None:
    first = pod.wrap(*NEVER, "--", "true")
    pod.hear_state(WAITING)
    first.kill()
    pod.say("mountdone")
    again = pod.wrap(*NEVER, "--", "echo", "ran")
    assert again.wait() == 0
    assert again.out == "ran\n"


# --- leases ------------------------------------------------------------------------------------------------------------


def test_a_second_wrapper_on_one_directory_is_78_and_disturbs_nothing(pod: Pod) -> None:
    first = pod.wrap(*NEVER, "--", "echo", "first")
    record = pod.hear_state(WAITING)
    second = pod.wrap(*NEVER, "--", "echo", "second")
    assert second.wait() == 78
    assert "another application is alive" in second.err
    assert pod.record() == record
    pod.say("mountdone")
    assert first.wait() == 0
    assert (first.out, second.out) == ("first\n", "")


def test_of_many_wrappers_that_start_at_once_one_runs_its_command(pod: Pod) -> None:
    script = f"echo ran >> {pod.file('runs')}; until [ -e {pod.file('go')} ]; do sleep 0.01; done"
    many = [pod.wrap(*NEVER, "--", "sh", "-c", script) for _ in range(5)]
    pod.say("mountdone")
    until(lambda: sum(not each.running for each in many) == 4, "four are refused", pod)
    pod.file("go").touch()
    assert sorted(each.wait() for each in many) == [0, 78, 78, 78, 78]
    assert pod.file("runs").read_text() == "ran\n"


@LISTENING
def test_a_battery_that_is_killed_is_noticed_by_the_application(pod: Pod, listening: Sequence[str]) -> None:
    battery = pod.battery(prepare=f": > {pod.file('up')}; sleep {LONG}")
    started = pod.wrap("-b", "fuse", *listening, "--", "true")
    pod.hear_state(WAITING)
    pod.hear_file("up")
    battery.kill()
    assert started.wait() == 69
    assert "fuse died without a word" in started.err


@LISTENING
def test_a_battery_that_is_killed_while_saving_is_73(pod: Pod, listening: Sequence[str]) -> None:
    battery = pod.battery(keep=f": > {pod.file('up')}; sleep {LONG}")
    started = pod.wrap("-b", "fuse", *listening, "--", "true")
    pod.hear_file("up")
    battery.kill()
    assert started.wait() == 73
    assert "fuse died without a word" in started.err


@LISTENING
@pytest.mark.parametrize("state", [WAITING, RUNNING])
def test_an_application_that_is_killed_is_noticed_by_the_batteries(pod: Pod, listening: Sequence[str], state: str) -> None:
    prepare = f"until [ -e {pod.file('go')} ]; do sleep 0.01; done"
    battery = pod.battery(prepare=prepare, keep="echo kept", forced_polling=bool(listening))
    started = pod.wrap("-b", "fuse", "--", "sleep", LONG)
    pod.hear_state(WAITING)
    if state == RUNNING:
        pod.file("go").touch()
        pod.hear_state(RUNNING)
    started.kill()
    pod.file("go").touch()
    battery.wait()
    assert "the application died without a word" in battery.err
    assert "kept" not in battery.out


def test_a_lease_is_free_as_soon_as_its_holder_is_killed(pod: Pod) -> None:
    first = pod.wrap(*NEVER, "--", "true")
    pod.hear_state(WAITING)
    assert pod.alive() is True
    first.kill()
    assert pod.alive() is False
    assert pod.alive("fuse") is None


def test_the_lease_does_not_live_on_in_what_the_command_left_behind(pod: Pod) -> None:
    pod.say("mountdone")
    started = pod.wrap(*NEVER, "--", "sh", "-c", f"sleep {LONG} & exit 0")
    assert started.wait() == 0
    assert pod.alive() is False


# --- handshakes --------------------------------------------------------------------------------------------------------

# One of two that answer each other: says mine.0, waits for theirs.0, takes it away, says mine.1, … The slow poll is off, so that
# a wake-up that is lost is a hang.
HANDSHAKES = """
import os, sys
from sidecar.coordination import signals
from sidecar.coordination.protocol import Record
from sidecar.coordination.signals import Directory, Watch

signals.BACKSTOP = 1e6
coord, mine, theirs, how, many = sys.argv[1:]
me = Record(mine, mine, "0")
with Directory(coord) as directory:
    directory.make(())
    watch = Watch(directory, [])
    assert watch._inotify >= 0
    for number in range(int(many)):
        if mine == "b":
            while not directory.said(f"{theirs}.{number}"):
                watch.wait(1e6)
            directory.unsay(f"{theirs}.{number}")
        if how == "say":
            directory.say(f"{mine}.{number}", me)
        else:
            os.close(os.open(f"{coord}/{mine}.{number}", os.O_WRONLY | os.O_CREAT, 0o644))
        if mine == "a":
            while not directory.said(f"{theirs}.{number}"):
                watch.wait(1e6)
            directory.unsay(f"{theirs}.{number}")
"""


def shake_hands(pod: Pod, how: str, many: int, seconds: float) -> None:
    peers = [pod.python(HANDSHAKES, pod.coord, mine, theirs, how, str(many)) for mine, theirs in ("ab", "ba")]
    assert [peer.wait(seconds) for peer in peers] == [0, 0], [peer.err for peer in peers]
    assert not [name for name in os.listdir(pod.coord) if not name.startswith(".")]


@pytest.mark.parametrize(("how", "many"), [("say", 10_000), ("touch", 2_000)])
def test_no_wake_up_is_lost_in_ten_thousand_handshakes(pod: Pod, how: str, many: int) -> None:
    shake_hands(pod, how, many, 110)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", ["say", "touch"])
def test_no_wake_up_is_lost_in_a_hundred_thousand_handshakes(pod: Pod, how: str) -> None:
    shake_hands(pod, how, 100_000, 1700)


def test_a_battery_of_a_later_life_whose_application_never_ran_ends_with_sigterm_at_once(pod: Pod) -> None:
    """It would wait for another life of the application; but SIGTERM is the end of the pod, and there will be none."""
    assert pod.wrap("-b", "fuse", "-b", "other", "--appear-timeout", "0.2", "--", "true").wait() == 75
    assert pod.battery().wait() == 69
    again = pod.battery(limits={"grace": 300.0})
    until(lambda: (pod.record("fuse") or Record("", "", "")).life == 2, "it is begun again", pod)
    pod.hear_state("ready", "fuse")
    again.send(signal.SIGTERM)
    assert again.wait() == 69
    assert "the application failed" in again.err
