"""Functions: source that was just handed over runs in real sandboxes, and what is hostile of it can do nothing but fail.

Here with the interpreters of this machine; in the images of runtimes it is tests/pods/test_functions_images.py.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from function_attacks import ATTACKS, STUBS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import processes_that_say, until

from sidecar.errors import ConfigurationError, ParametersError, SourceMissing
from sidecar.functions.answer import Answer, Asked, Limits
from sidecar.functions.runtimes import choose, find_runtimes
from sidecar.functions.service import Full, NobodyAnswered, Service
from sidecar.functions.syscalls import refusals

RUNTIMES = Path(__file__).parent.parent / "images" / "runtimes"
# Of those that run here without an image: what every Debian holds, and Python is there anyhow.
HERE = ("bash", "perl", "python")
# No test is to fail for the clock: what is to pass has a minute, whatever else the machine does.
LONG = Limits(wall=60, cpu=60)

Call = Callable[..., Answer]


@pytest.fixture
def service() -> Service:
    return Service(find_runtimes([str(RUNTIMES)]))


@pytest.fixture
def call(service: Service) -> Call:
    """Run a source and return the answer."""

    def call(runtime: str, source: str | bytes, **more: Any) -> Answer:
        data = source.encode() if isinstance(source, str) else source
        return asyncio.run(service.call(runtime, Asked(data, **{"limits": LONG, **more})))

    return call


# --- what a program is given, and what comes of it ---------------------------------------------------------------------


def test_a_program_has_its_arguments_its_input_and_its_context_and_the_streams_are_told_apart(call: Call) -> None:
    source = """
import os, sys
print(sys.argv[1:], sys.stdin.read(), os.environ["CONTEXT"])
print("err", file=sys.stderr)
"""
    answer = call("python", source, arguments=("a b", "$(x)", "", "é"), stdin=b"in\n", context='{"x": 1}')
    assert (answer.language, answer.won.status, answer.won.code, answer.won.signal) == ("python", "ok", 0, None)
    assert answer.won.stdout.decode() == "['a b', '$(x)', '', 'é'] in\n {\"x\": 1}\n"
    assert answer.won.stderr == b"err\n"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8), max_size=4),
    st.binary(max_size=64),
)
def test_arguments_and_input_arrive_byte_by_byte(call: Call, arguments: list[str], stdin: bytes) -> None:
    source = 'printf "%s\\0" "$@"; echo; cat'
    answer = call("bash", source, arguments=tuple(arguments), stdin=stdin, workers=1)
    given = b"".join(each.encode() + b"\0" for each in arguments) if arguments else b"\0"
    assert answer.won.stdout == given + b"\n" + stdin


@pytest.mark.parametrize("language", HERE)
def test_every_language_runs_what_it_is_handed(call: Call, language: str) -> None:
    sources = {"bash": "echo $((6*7)); exit 3", "perl": "print 6*7, qq(\\n); exit 3", "python": "print(6*7); exit(3)"}
    answer = call(language, sources[language])
    assert (answer.won.status, answer.won.code, answer.won.stdout) == ("error", 3, b"42\n")


def test_a_source_is_bytes_whatever_they_are(call: Call) -> None:
    assert call("bash", b"printf '\\xff\\n' # \xff\xfe").won.stdout == b"\xff\n"
    assert call("python", b"print(1)\n\xff").won.status == "error"
    assert call("bash", b"\n").won.status == "ok"


def test_all_that_is_wrong_with_a_call_is_told_at_once(service: Service) -> None:
    asked = Asked(b"", ("a\0",), context="x" * (1 << 17), limits=Limits(wall=61), workers=6, delay=-1)
    with pytest.raises(ParametersError) as told:
        asyncio.run(service.call("bash", asked))
    assert [each.key for each in told.value.faults] == ["source", "args", "context", "timeout", "workers", "delay"]


@pytest.mark.parametrize("number", [1, 9, 11, 15])
def test_a_signal_that_ends_a_program_is_told(call: Call, number: int) -> None:
    answer = call("bash", f"kill -{number} $$")
    assert (answer.won.status, answer.won.code, answer.won.signal) == ("signalled", None, number)


def test_a_program_that_takes_too_long_is_ended_with_all_that_it_began(call: Call) -> None:
    token = f"attacked-{os.getpid()}-{os.urandom(4).hex()}"
    answer = call("bash", f"echo begun; sleep 600 {token} & sleep 600 & wait", limits=Limits(wall=0.5, cpu=60))
    assert (answer.won.status, answer.won.stdout) == ("timeout", b"begun\n")
    assert processes_that_say(token) == []


def test_a_program_that_computes_too_long_is_ended(call: Call) -> None:
    answer = call("bash", "while :; do :; done", limits=Limits(wall=60, cpu=1), workers=1)
    assert answer.won.status == "timeout"


def test_output_is_kept_up_to_its_limit_and_no_further(call: Call) -> None:
    limits = Limits(wall=60, cpu=60, output=1000)
    answer = call("bash", "while :; do echo out; echo err >&2; done", limits=limits, workers=1)
    assert answer.won.status == "output-limit"
    assert max(len(answer.won.stdout), len(answer.won.stderr)) == 1000
    exact = call("bash", "head -c 1000 /dev/zero", limits=limits)
    assert (exact.won.status, exact.won.stdout) == ("ok", bytes(1000))


def test_a_file_that_grows_beyond_its_limit_ends_the_program(call: Call) -> None:
    answer = call("bash", "exec head -c 20000000 /dev/zero > /tmp/x", limits=LONG)
    assert (answer.won.status, answer.won.signal) == ("file-limit", 25)


def test_what_a_program_leaves_running_is_gone_when_the_answer_comes(call: Call) -> None:
    token = f"attacked-{os.getpid()}-{os.urandom(4).hex()}"
    answer = call("bash", f"(exec -a {token} sleep 600) & disown; (setsid bash -c 'exec -a {token} sleep 600') & echo done")
    assert answer.won.stdout == b"done\n"
    assert processes_that_say(token) == []


def test_the_same_source_leaves_nothing_to_the_next_run_of_it(call: Call) -> None:
    source = "ls -A /tmp /dev/shm; touch /tmp/x /dev/shm/x"
    assert call("bash", source).won.stdout == call("bash", source).won.stdout == b"/dev/shm:\n\n/tmp:\n"


# --- more than one worker ----------------------------------------------------------------------------------------------


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that workers' users can go to, which they cannot where pytest keeps its own."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def faulty(open_to_all: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Service]:
    """Return a service of which each worker counts, from 1 on, and does as a script says that gets the number as $n."""

    def faulty(script: str) -> Service:
        bwrap, count = open_to_all / "bwrap", open_to_all / "count"
        real = shutil.which("bwrap")
        bwrap.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
        bwrap.chmod(0o755)
        monkeypatch.setenv("PATH", f"{open_to_all}:{os.environ['PATH']}")
        service = Service(find_runtimes([str(RUNTIMES)]))
        # Counted from here on: the service has tried its sandbox.
        count.mkdir()
        count.chmod(0o777)
        counted = f"n=1; until mkdir {count}/$n 2>/dev/null; do n=$((n+1)); done"
        bwrap.write_text(f'#!/bin/sh\n{counted}\n{script}\nexec {real} "$@"\n')
        return service

    return faulty


def asked(source: str, **more: Any) -> Asked:
    return Asked(source.encode(), **{"limits": LONG, **more})


def test_where_one_worker_is_stalled_the_other_answers_and_nothing_of_it_is_left(faulty: Callable[[str], Service]) -> None:
    token = f"stalled-{os.getpid()}-{os.urandom(4).hex()}"
    service = faulty(f"[ $n != 1 ] || exec sh -c 'sleep 600; : {token}'")
    answer = asyncio.run(service.call("bash", asked("echo it")))
    assert (answer.won.status, answer.won.stdout) == ("ok", b"it\n")
    assert sorted(each.status for each in answer.workers) == ["lost", "ok"]
    assert processes_that_say(token) == []


def test_where_one_worker_fails_the_other_answers(faulty: Callable[[str], Service]) -> None:
    answer = asyncio.run(faulty("[ $n != 1 ] || { echo broken >&2; exit 1; }").call("bash", asked("sleep 0.1; echo it; exit 5")))
    assert (answer.won.status, answer.won.code, answer.won.stdout) == ("error", 5, b"it\n")
    (failed,) = [each for each in answer.workers if each.status == "worker-failed"]
    assert failed.reason == "broken"


def test_where_both_fail_twice_the_last_that_may_be_begun_answers(faulty: Callable[[str], Service]) -> None:
    answer = asyncio.run(faulty("[ $n = 5 ] || exit 1").call("bash", asked("echo it")))
    assert answer.won.stdout == b"it\n"
    assert [each.worker for each in answer.workers] == [1, 2, 3, 4, 5]


def test_where_all_fail_each_is_told_and_five_were_begun(faulty: Callable[[str], Service], open_to_all: Path) -> None:
    service = faulty("echo broken $n >&2; exit 1")
    with pytest.raises(NobodyAnswered) as told:
        asyncio.run(service.call("bash", asked("echo it")))
    assert sorted(each.reason for each in told.value.workers) == [f"broken {number}" for number in range(1, 6)]
    assert len(os.listdir(open_to_all / "count")) == 5


def test_a_program_that_fails_is_begun_by_no_more_than_were_asked_for(
    faulty: Callable[[str], Service], open_to_all: Path
) -> None:
    answer = asyncio.run(faulty("").call("bash", asked("exit 7")))
    assert answer.won.code == 7
    assert len(os.listdir(open_to_all / "count")) == 2


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_as_many_run_it_as_are_asked_for(call: Call, workers: int) -> None:
    answer = call("bash", "exit 1", workers=workers)
    assert 1 <= len(answer.workers) <= workers


def test_who_is_told_to_stop_waiting_leaves_nothing(service: Service) -> None:
    token = f"attacked-{os.getpid()}-{os.urandom(4).hex()}"

    async def give_up() -> None:
        running = asyncio.create_task(service.call("bash", asked(f"exec -a {token} sleep 600")))
        while not processes_that_say(token):
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert processes_that_say(token) == []

    asyncio.run(give_up())


def test_a_worker_that_cannot_be_watched_is_ended_and_has_failed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    token = f"unwatched-{os.getpid()}-{os.urandom(4).hex()}"

    def none_left(pid: int) -> int:
        until(lambda: Path(f"/proc/{pid}/stat").read_text().startswith(f"{pid} (bwrap) S"), "bwrap waits")
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", none_left)
    with pytest.raises(NobodyAnswered) as told:
        asyncio.run(service.call("bash", asked("sleep 600", arguments=(token,))))
    assert {each.reason for each in told.value.workers} == {"could not be begun: Too many open files"}
    assert processes_that_say(token) == []


def test_workers_are_ended_at_whatever_moment_of_their_beginning(service: Service) -> None:
    token = f"attacked-{os.getpid()}-{os.urandom(4).hex()}"

    async def give_up() -> None:
        for number in range(30):
            running = asyncio.create_task(service.call("bash", asked(f"exec -a {token} sleep 600", workers=1)))
            await asyncio.sleep(number * 0.0007)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert processes_that_say(token) == []

    asyncio.run(give_up())
    # Nor what never came to be a program.
    until(lambda: not [pid for pid in processes_that_say("--json-status-fd") if _parent(pid) == os.getpid()], "no worker is left")


def test_as_many_calls_as_may_run_do_and_the_next_is_told_when_to_try_again() -> None:
    async def crowd() -> None:
        service = Service(find_runtimes([str(RUNTIMES)]), most=2)
        running = [asyncio.create_task(service.call("bash", asked("read -r line < /dev/zero; sleep 600"))) for _ in range(2)]
        while service.running < 2:
            await asyncio.sleep(0)
        with pytest.raises(Full) as told:
            await service.call("bash", asked("echo it"))
        assert told.value.seconds > 0
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        assert (await service.call("bash", asked("echo it"))).won.stdout == b"it\n"

    asyncio.run(crowd())


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root has no users to give")
def test_workers_that_run_at_a_time_have_a_user_each_and_do_not_count_for_each_other(service: Service) -> None:
    forks = "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; echo $i; kill $(jobs -p)"

    async def together() -> list[Answer]:
        calls = [service.call("bash", asked(forks, workers=1)) for _ in range(4)]
        return await asyncio.gather(*calls)

    assert [answer.won.stdout for answer in asyncio.run(together())] == [b"40\n"] * 4


# --- hostile programs --------------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of somebody who listens on the machine's loopback, and on an abstract socket that tells the port."""
    with socket.create_server(("127.0.0.1", 0)) as listens, socket.socket(socket.AF_UNIX) as abstract:
        port = listens.getsockname()[1]
        abstract.bind(f"\0attacked-{port}")
        abstract.listen()
        yield port


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("language", HERE)
def test_a_hostile_program_can_do_nothing_but_fail(
    call: Call, language: str, attack: str, listener: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "attacked")
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    secret.chmod(0o666)
    script, prints = ATTACKS[attack]
    answer = call(language, STUBS[language], arguments=(script, str(listener), str(secret)), workers=1)
    assert (answer.won.stdout.decode(), answer.won.status) in ((prints, answer.won.status),), answer.won
    assert answer.won.status in ("ok", "error", "signalled", "file-limit"), answer.won
    # And whoever comes next does not notice.
    assert call(language, {"bash": "echo 1", "perl": "print 1", "python": "print(1)"}[language]).won.status == "ok"
    assert secret.read_text() == "secret\n"


def test_the_filter_names_the_calls_by_the_numbers_of_the_kernels_headers() -> None:
    from sidecar.functions import syscalls

    headers = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}
    for machine, path in headers.items():
        if not os.path.exists(path):
            assert machine != os.uname().machine, path
            continue
        words = [line.split() for line in Path(path).read_text().splitlines()]
        numbers = {each[1]: each[2] for each in words if len(each) == 3 and each[0] == "#define" and each[1].startswith("__NR")}
        told = syscalls._ARCHITECTURES[machine][1]
        assert [numbers.get(f"__NR_{name}", numbers.get(f"__NR3264_{name}")) for name in syscalls._NAMES] == list(map(str, told))


def test_the_filter_of_a_machine_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="sparc"):
        refusals("sparc")
    assert len(refusals("x86_64")) % struct.calcsize("=HBBI") == 0


def test_where_workers_cannot_be_confined_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="bubblewrap"):
        Service(())
    for name in ("bwrap", "setpriv", "prlimit"):
        (tmp_path / name).write_text("#!/bin/sh\necho no namespaces here >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(ConfigurationError, match="no namespaces here"):
        Service(())


# --- runtimes ----------------------------------------------------------------------------------------------------------


def test_a_further_language_is_a_directory(tmp_path: Path) -> None:
    folder = tmp_path / "shout-1.0"
    folder.mkdir()
    (folder / "runtime.sh").write_text('#!/bin/sh\ntr a-z A-Z < "$1"\n')
    (folder / "runtime.sh").chmod(0o755)
    service = Service(find_runtimes([str(RUNTIMES), str(tmp_path)]))
    answer = asyncio.run(service.call("shout", asked("hello\n")))
    assert (answer.language, answer.version, answer.won.stdout) == ("shout", "1.0", b"HELLO\n")


def test_without_a_version_the_highest_counts_and_the_beginning_of_one_is_enough(tmp_path: Path) -> None:
    for name in ("a-1.9", "a-1.10", "a-1.10rc1", "b-2", "no", "c-x", "A-1", "a-1.9/deeper-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "runtime.sh").touch()
    (tmp_path / "d-1").mkdir()
    found = find_runtimes([str(tmp_path)])
    assert [each.name for each in found] == ["a:1.10", "a:1.10rc1", "a:1.9", "b:2"]
    assert choose(found, "a").version == "1.10"
    assert choose(found, "a:1.9").version == "1.9"
    assert choose(found, "a:1").version == "1.10"
    for unknown in ("a:2", "a:", "c", "", "a:1.1", "../a"):
        with pytest.raises(SourceMissing, match=r"a:1\.10, a:1\.10rc1, a:1\.9, b:2"):
            choose(found, unknown)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return 0
