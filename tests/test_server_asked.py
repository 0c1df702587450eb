"""`sidecar --server` for what ran once and for functions: the commands print what they print of this machine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import BIN, HANG, until
from served import served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from sidecar.errors import Corrupt, OutcomeUnknown, ParametersError, SourceMissing, Unreachable
from sidecar.exits import Exit
from sidecar.factory.model import Action, At, Image, Named, Provider, Work
from sidecar.functions.answer import Answer, Asked, Limits, Ran
from sidecar.functions.runtimes import find_runtimes
from sidecar.functions.service import Full, NobodyAnswered, Service
from sidecar.once import Ledger
from sidecar.once.asked import Asked as AskedOnce
from sidecar.once.asked import Variable
from sidecar.once.facts import FAILED_TO_START, FINISHED, RUNNING, UNKNOWN, Piece, Run, Written
from sidecar.once.rows import insert
from sidecar.once.run import follow
from sidecar.once.told import as_json, of_json, piece_as_json, piece_of_json
from sidecar.process import Identity
from sidecar.session.local import LocalRunner
from sidecar.session.machine import Machine
from sidecar.session.runner import Container, Status
from sidecar.web.client import Client
from sidecar.web.functions import application as functions_alone
from sidecar.web.refusal import Told, errors
from sidecar.web.server import Parts, application

RUNTIMES = Path(__file__).parent.parent / "images" / "runtimes"
INSTANCE = "a pod/a container"
TOKEN = "a token of the tests"


class Here:
    """A folder with a ledger, and a server of it, with the runtimes of this tree."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.url = folder, str(folder / "state"), ""

    def application(self) -> Starlette:
        sessions = str(self.folder / "sessions")
        runner = LocalRunner(sessions)
        service = Service(find_runtimes([str(RUNTIMES)]), most=0)
        return application(Parts(self.state, Machine(sessions), lambda: runner, service=service))

    def run(self, *words: str, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "SIDECAR_STATE": self.state, "SIDECAR_RUNTIMES": str(RUNTIMES), **variables}
        return subprocess.run(
            [BIN / "sidecar", *words], input=stdin, capture_output=True, timeout=HANG, env=environment, cwd=self.folder
        )

    def both(self, *words: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """Return the status and what is printed, which are the same of this machine and of the server."""
        here, there = self.run(*words, stdin=stdin), self.run("--server", self.url, *words, stdin=stdin)
        told = (here.returncode, here.stdout, here.stderr)
        assert told == (there.returncode, there.stdout, there.stderr)
        return told


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    found = Here(tmp_path)
    with served(found.application()) as found.url:
        yield found


@pytest.fixture
def ledger(here: Here) -> Iterator[Ledger]:
    with Ledger(here.state) as found:
        yield found


# --- what ran once -----------------------------------------------------------------------------------------------------


def test_what_ran_once_is_printed_as_it_is_there(here: Here, ledger: Ledger) -> None:
    ledger.run_once("it", ["sh", "-c", "echo out; exit 3"], instance=INSTANCE, env={"A": "b", "S": "secret"}, redact=["S"])
    ledger.run_once("missing", ["/nowhere"], instance=INSTANCE)
    ledger.run_once("killed", ["sh", "-c", "kill -KILL $$"], instance=INSTANCE)
    for name in ("it", "missing", "killed"):
        status, printed, _ = here.both("once", "show", name, "--instance", INSTANCE)
        assert (status, INSTANCE.encode() in printed, b"secret" in printed) == (0, True, False)
        here.both("once", "show", name, "--instance", INSTANCE, "--json")
    assert here.both("once", "list")[1].count(b"\n") == 4
    assert len(json.loads(here.both("once", "list", "--json")[1])) == 3


def test_what_a_run_wrote_comes_byte_by_byte_on_the_stream_that_it_went_to(here: Here, ledger: Ledger) -> None:
    script = r"printf 'a\377\0'; printf 'e\303' >&2; head -c 300000 /dev/zero; printf '\251' >&2"
    ledger.run_once("it", ["sh", "-c", script], instance=INSTANCE)
    words = ("once", "logs", "it", "--instance", INSTANCE)
    assert here.both(*words) == (0, b"a\xff" + bytes(300_001), b"e\xc3\xa9")
    here.both(*words, "--json")
    here.both(*words, "--timestamps", "--stderr")


def test_a_run_is_followed_there_until_it_has_ended(here: Here, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    words = ["once", "run", "--name", "it", "--instance", INSTANCE, "--", "sh", "-c", "echo one; read l <fifo; echo $l; exit 7"]
    environment = {**os.environ, "SIDECAR_STATE": here.state}
    runs = Client(here.url).runs
    with subprocess.Popen([BIN / "sidecar", *words], env=environment, cwd=tmp_path, stdout=subprocess.PIPE):
        until(lambda: any(list(runs.output(run)) for run in runs.runs()), "it has written")
        assert runs.get(INSTANCE, "it").state == RUNNING
        there: list[str | Path] = [BIN / "sidecar", "--server", here.url, "once", "logs", "it", "--follow"]
        with subprocess.Popen(there, stdout=subprocess.PIPE) as following:
            assert following.stdout is not None
            assert following.stdout.readline() == b"one\n"
            (tmp_path / "fifo").write_text("two\n")
            assert following.stdout.read() == b"two\n"
            assert following.wait(HANG) == 0
    assert runs.get(INSTANCE, "it").exit == Exit(7)


def test_what_was_forgotten_and_ran_again_is_not_taken_for_what_is_followed(here: Here, ledger: Ledger) -> None:
    ledger.run_once("it", ["echo", "first"], instance=INSTANCE)
    runs = Client(here.url).runs
    first = runs.get(INSTANCE, "it")
    ledger.forget(INSTANCE, "it")
    assert runs.again(first) is None
    ledger.run_once("it", ["echo", "second"], instance=INSTANCE)
    assert runs.again(first) is None
    assert list(runs.output(first)) == []
    with pytest.raises(OutcomeUnknown, match="forgotten"):
        follow(runs, first, lambda _: None)


def test_where_this_is_counts_for_nothing_there_and_several_of_a_name_are_asked_for_by_instance(
    here: Here, ledger: Ledger
) -> None:
    ledger.run_once("it", ["echo", "it"], instance=INSTANCE)
    ask = ("--server", here.url, "once")
    assert here.run(*ask, "logs", "it").stdout == b"it\n"
    missing = here.run(*ask, "show", "that")
    assert (missing.returncode, b"runs there: it\n" in missing.stderr) == (66, True)
    ledger.run_once("it", ["echo", "other"], instance="other")
    several = here.run(*ask, "show", "it")
    assert (several.returncode, several.stderr) == (
        2,
        b"sidecar: 'it' is several runs there: --instance 'a pod/a container' or other\n",
    )
    assert here.run(*ask, "logs", "it", "--instance", "other").stdout == b"other\n"


@pytest.mark.parametrize(
    "words", [("run", "--name", "it", "--", "echo", "it"), ("forget", "it"), ("prune", "--older-than", "1d")]
)
def test_what_changes_a_ledger_is_done_here_and_asked_of_no_server(here: Here, words: tuple[str, ...]) -> None:
    refused = here.run("--server", here.url, "once", *words)
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert f"--server: {words[0]} is done here".encode() in refused.stderr


def test_a_server_of_the_environment_is_not_asked_for_what_ran_here(here: Here, ledger: Ledger) -> None:
    ledger.run_once("it", ["true"], instance=INSTANCE)
    listed = here.run("once", "list", "--json", SIDECAR_SERVER="http://127.0.0.1:1")
    assert (listed.returncode, len(json.loads(listed.stdout))) == (0, 1)


@pytest.mark.parametrize("flag", ["--state", "-c"])
def test_a_server_and_a_ledger_of_ones_own_are_not_asked_together(here: Here, flag: str) -> None:
    refused = here.run("--server", here.url, "once", "list", flag, here.state)
    assert (refused.returncode, f"expected one of --server and {flag}".encode() in refused.stderr) == (2, True)


def test_of_more_runs_than_one_answer_holds_all_are_told(here: Here, ledger: Ledger) -> None:
    # To run them would take a minute. A hundred are larger than one answer may be.
    with ledger.state.write() as transaction:
        for number in range(450):
            command = ("true", "\x01" * 20_000 * (number < 100))
            asked_for = AskedOnce(f"at {number // 440}", f"r{number % 440}", command, "/", kept_command=command)
            insert(transaction, asked_for, Identity(1, 1, "b", 0), number + 1, "")
        transaction.execute("UPDATE run SET state = 'finished', finished = claimed")
    assert [run.name for run in ledger.runs()] == [run.name for run in Client(here.url).runs.runs()]
    assert [run.name for run in Client(here.url).runs.runs(3)] == ["r7", "r8", "r9"]
    assert here.both("once", "list")[1].count(b"\n") == 451
    several = here.run("--server", here.url, "once", "show", "r0")
    assert (several.returncode, b"--instance 'at 0' or 'at 1'" in several.stderr) == (2, True)
    assert here.run("--server", here.url, "once", "show", "r20").returncode == 0


def test_who_is_no_server_of_ours_has_not_told_that_nothing_ran(here: Here) -> None:
    assert here.both("once", "list")[:2] == (0, b"")
    missing = here.run("--server", f"{here.url}/nothing", "once", "list")
    assert (missing.returncode, b"is not served there" in missing.stderr) == (66, True)


def test_a_run_whose_end_nobody_knows_is_told_with_where_something_can_be_done_about_it(here: Here, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    words = ["once", "run", "--name", "it", "--instance", INSTANCE, "--", "sh", "-c", "read l <fifo"]
    environment = {**os.environ, "SIDECAR_STATE": here.state}
    runs = Client(here.url).runs
    with subprocess.Popen([BIN / "sidecar", *words], env=environment, cwd=tmp_path) as killed:
        until(lambda: any(run.started for run in runs.runs()), "it runs")
        killed.kill()
    until(lambda: runs.get(INSTANCE, "it").state == UNKNOWN, "it is dead")
    told = here.run("--server", here.url, "once", "logs", "it", "--follow")
    remedy = f"for another run, where its ledger is: sidecar once forget --instance '{INSTANCE}' -- it"
    assert (told.returncode, remedy.encode() in told.stderr) == (125, True)
    here.both("once", "show", "it", "--instance", INSTANCE, "--json")


def test_what_is_forgotten_while_it_is_followed_is_told_as_it_is_here(here: Here, ledger: Ledger) -> None:
    # More than one answer has: 64 pieces, each of what a pipe holds at most.
    ledger.run_once("it", ["head", "-c", str(128 << 16), "/dev/zero"], instance=INSTANCE)
    runs = Client(here.url).runs

    def forget(piece: Piece) -> None:
        if piece.number == 1:
            ledger.forget(INSTANCE, "it")

    with pytest.raises(OutcomeUnknown, match="forgotten"):
        follow(runs, runs.get(INSTANCE, "it"), forget)


def test_a_name_that_no_run_can_have_is_one_that_is_not_there(here: Here, ledger: Ledger) -> None:
    ledger.run_once("it", ["true"], instance=INSTANCE)
    for words in ((), ("--server", here.url)):
        assert here.run(*words, "once", "show", os.fsdecode(b"\xff")).returncode == 66


_texts = st.text(st.characters(codec="utf-8"), max_size=8)
_numbers = st.integers(0, 2**63 - 1)
_moments = st.integers(1, 4_000_000_000_000_000)
_runs = st.builds(
    Run,
    st.just(0),
    st.just(""),
    _texts,
    _texts,
    st.sampled_from([RUNNING, FINISHED, FAILED_TO_START, UNKNOWN]),
    st.lists(_texts, max_size=3).map(tuple),
    _texts,
    st.builds(Identity, st.integers(1, 99), _numbers, _texts, st.just(0)),
    _moments,
    st.just(0) | _moments,
    _moments,
    st.builds(Exit, st.integers(0, 255), st.sampled_from([0, 9, 15]), _texts, st.sampled_from([0, 69, 137])),
    st.builds(Written, _numbers, _numbers),
    st.builds(Written, _numbers, _numbers),
    _texts,
    st.lists(st.builds(Variable, _texts, _texts), max_size=3, unique_by=lambda each: each.name).map(tuple),
)


@given(run=_runs)
def test_whoever_was_told_of_a_run_tells_the_same(run: Run) -> None:
    assert as_json(of_json(as_json(run))) == as_json(run)


@given(st.builds(Piece, _numbers, st.sampled_from([1, 2]), _moments, st.binary(max_size=20)))
def test_whoever_was_told_of_a_piece_has_it(piece: Piece) -> None:
    assert piece_of_json(json.loads(json.dumps(piece_as_json(piece)))) == piece


# --- functions ---------------------------------------------------------------------------------------------------------


def test_a_source_is_run_there_with_the_streams_and_the_status_of_its_program(here: Here) -> None:
    source = 'printf "[%s]" "$@"; cat; printf "%s" "$CONTEXT"; echo err >&2; exit 7'
    (here.folder / "it.sh").write_text(source)
    words = ("function", "run", "--timeout", "60s", "--context", '{"a": 1}', "bash:5", "it.sh", "--", "a b", "é")
    assert here.both(*words, stdin=b"in") == (7, '[a b][é]in{"a": 1}'.encode(), b"err\n")


def test_runtimes_of_a_server_are_listed(here: Here) -> None:
    assert here.both("function", "list")[1].split()[:4] == [b"LANGUAGE", b"VERSION", b"bash", b"5.2"]
    here.both("function", "list", "--json")


@pytest.mark.parametrize(("source", "status"), [(b"kill -TERM $$", 143), (b"while :; do :; done", 75)])
def test_how_a_program_was_ended_there_is_the_status(here: Here, source: bytes, status: int) -> None:
    assert here.both("function", "run", "--timeout", "2s", "--workers", "1", "bash", "-", stdin=source)[0] == status


def test_a_runtime_that_is_not_there_is_told_with_those_that_are(here: Here) -> None:
    assert here.both("function", "run", "cobol", "-", stdin=b"x")[0] == 66


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (Asked(b"\xff"), "source"),
        (Asked(b"x", stdin=b"\xff"), "stdin"),
        (Asked(b"x", ("\udcff",)), "args"),
        (Asked(b"x", context="{"), "context"),
        (Asked(b"x", context="\udcff"), "context"),
    ],
)
def test_what_no_request_can_say_is_refused_before_it_is_asked(asked: Asked, field: str) -> None:
    with pytest.raises(ParametersError) as refused:
        Client("http://127.0.0.1:1").functions.call("bash", asked)
    assert [fault.key for fault in refused.value.faults] == [field]


def test_more_than_a_server_takes_is_told_with_the_field(here: Here) -> None:
    refused = here.run("--server", here.url, "function", "run", "--timeout", "1000s", "bash", "-", stdin=b"x")
    assert (refused.returncode, b"timeout: expected more than 0 and at most 60 seconds" in refused.stderr) == (65, True)


def test_a_server_and_runtimes_of_ones_own_are_not_asked_together(here: Here) -> None:
    refused = here.run("--server", here.url, "function", "list", "--runtimes", str(RUNTIMES))
    assert (refused.returncode, b"expected one of --server and --runtimes" in refused.stderr) == (2, True)
    # What the command line says counts before what the environment does.
    assert here.run("function", "list", "--runtimes", str(RUNTIMES), SIDECAR_SERVER="http://127.0.0.1:1").returncode == 0


def test_a_server_of_functions_is_begun_here_and_asked_of_no_server(here: Here) -> None:
    refused = here.run("--server", here.url, "function", "serve")
    assert (refused.returncode, b"--server: serve is done here" in refused.stderr) == (2, True)


def test_what_a_program_writes_comes_byte_by_byte(here: Here) -> None:
    assert here.both("function", "run", "--timeout", "60s", "bash", "-", stdin=rb"printf 'a\377\0'; printf '\303' >&2") == (
        0,
        b"a\xff\0",
        b"\xc3",
    )


def test_a_call_is_asked_for_as_it_is_and_waited_for_as_long_as_it_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def ask(_: Client, *words: Any, **how: Any) -> Any:
        asked.append((*words, how["patience"]))
        raise Unreachable("enough")

    monkeypatch.setattr(Client, "ask", ask)
    call = Asked(b"x", ("a",), b"in", '{"a": 1}', replace(Limits(), wall=40.0), 2, 39.0)
    with pytest.raises(Unreachable):
        Client("http://127.0.0.1:1").functions.call("bash:5", call)
    ((method, path, body, patience),) = asked
    assert (method, path) == ("POST", "/v1/functions/bash%3A5/invocations")
    assert body == {
        "source": "x", "args": ["a"], "stdin": "in", "context": {"a": 1}, "timeout": 40.0, "workers": 2, "delay": 39.0,
    }  # fmt: skip
    assert patience > 5 * (40 + 39)


def answering(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> Starlette:
    async def answer(_: Request) -> Told:
        return Told(body, status, headers=headers)

    return Starlette(routes=[Route("/v1/functions/{name}/invocations", answer, methods=["POST"])])


def test_why_nobody_ran_it_is_raised_as_the_library_would() -> None:
    with served(answering(429, {"errors": []}, {"Retry-After": "3"})) as url, pytest.raises(Full) as full:
        Client(url).functions.call("bash", Asked(b"x"))
    assert full.value.seconds == 3
    failed = {"errors": [], "workers": [{"worker": 1, "status": "worker-failed", "reason": "no memory"}]}
    with served(answering(503, failed)) as url, pytest.raises(NobodyAnswered, match="1: no memory"):
        Client(url).functions.call("bash", Asked(b"x"))
    told = json.loads(bytes(errors(503, []).body))
    with served(answering(503, told)) as url, pytest.raises(Unreachable):
        Client(url).functions.call("bash", Asked(b"x"))


WRONG: tuple[Any, ...] = (None, True, -1, 10**400, 1.5, "x", "\ud800", [], [1], {}, {"x": 1})


def otherwise(told: Any) -> Iterator[Any]:
    """Yield what is told with each of its parts in turn missing, and of another kind."""
    if isinstance(told, dict):
        for name in told:
            yield {key: value for key, value in told.items() if key != name}
            for each in (*WRONG, *otherwise(told[name])):
                yield {**told, name: each}
    elif isinstance(told, list):
        for number, part in enumerate(told):
            for each in (*WRONG, *otherwise(part)):
                yield [*told[:number], each, *told[number + 1 :]]


MAYBE = ("exit", "build", "push", "image", "started_at", "finished_at", "status", "exit_code", "signal", "code", "a")


def alike(one: Any, other: Any, name: str = "") -> bool:
    """Tell whether two answers are of the same kinds, as far as both tell the same."""
    if one is None or other is None:
        return one is other or name in MAYBE
    if isinstance(other, dict):
        return isinstance(one, dict) and all(alike(one[key], other[key], key) for key in one.keys() & other.keys())
    if isinstance(other, list | tuple):
        return isinstance(one, list | tuple) and (not other or all(alike(each, other[0]) for each in one))
    return type(one) is type(other)


class Said:
    """A server that says what it is told to, whatever it is asked."""

    def __init__(self) -> None:
        self.body = b""
        self.state = SimpleNamespace()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": self.body})


def test_whatever_a_server_answers_is_known_or_told_as_what_is_not() -> None:
    run = as_json(
        Run(1, "", "i", "n", FINISHED, ("true",), "/", Identity(1, 2, "b", 0), 1, 1, 1, Exit(0), variables=(Variable("a", "b"),))
    )
    piece = piece_as_json(Piece(1, 1, 1, b"x"))
    won = Ran(1, "ok", 0, None, b"out", b"err", 0.25)
    work = Work(1, "build", "app", "oci", "blake3:1", "COMPLETE", 100, labels={"a": "b"})
    provider = Provider("here", layout="archive")
    at = At("here", "pushed", "sha256:1", replace(work, kind="push"))
    image = Image("app", "blake3:1", "oci", "COMPLETE", work, (at,), (Action("push", "app", "here", 1),))
    session = Status("pod", "id", "Running", (Container("one", "exited", 0),))
    said = Said()
    with served(cast(Starlette, said)) as url:
        client = Client(url)
        known = of_json({**run, "id": 7})
        questions: list[tuple[Any, Any]] = [
            ({"runs": [{"id": 7, **run}], "before": 0}, lambda: [as_json(each) for each in client.runs.runs()]),
            ({"id": 7, **run}, lambda: as_json(client.runs.get("i", "n"))),
            ({"run": {"id": 7, **run}, "pieces": [piece]}, lambda: [piece_as_json(each) for each in client.runs.pieces(known)]),
            (Answer("bash", "5.2", won, (won,)).as_json(), lambda: client.functions.call("bash", Asked(b"x")).as_json()),
            ({"functions": [{"language": "bash", "versions": ["5.2"]}]}, lambda: client.functions.runtimes),
            (work.as_json(), lambda: client.images.work(1).as_json()),
            ({"builds": [work.as_json()]}, lambda: [each.as_json() for each in client.images.works("build")]),
            (image.as_json(), lambda: client.images.image("app").as_json()),
            ({"images": [Named("app:1", 3, image).as_json()]}, lambda: [each.as_json() for each in client.images.check("x")]),
            ({"providers": [asdict(provider)]}, lambda: [asdict(each) for each in client.images.providers()]),
            (asdict(session), lambda: asdict(client.sessions.status("pod"))),
            ({"sessions": [asdict(session)], "image_volumes": True}, lambda: [asdict(each) for each in client.sessions.list()]),
        ]
        for told, question in questions:
            said.body = json.dumps(told).encode()
            meant, refused = question(), 0
            assert meant
            for each in otherwise(told):
                said.body = json.dumps(each).encode()
                try:
                    taken = question()
                    assert alike(taken, meant), (each, taken)
                    # It can be said to anybody.
                    json.dumps(taken, ensure_ascii=False).encode(errors="surrogateescape")
                except Corrupt:
                    refused += 1
            assert refused
        said.body = json.dumps({"run": {"id": 7, **run}, "pieces": [piece, piece]}).encode()
        with pytest.raises(Corrupt):
            client.runs.pieces(known)


def test_whoever_was_told_an_answer_tells_the_same() -> None:
    won = Ran(2, "error", 3, None, b"\xff", b"err", 0.25)
    answer = Answer("bash", "5.2", won, (Ran(1, "lost", wall=0.5), won))
    assert Answer.of_json(answer.as_json()).as_json() == answer.as_json()


def test_a_server_of_functions_alone_is_asked_as_well() -> None:
    with served(functions_alone(Service(find_runtimes([str(RUNTIMES)])), TOKEN)) as url:
        client = Client(url, TOKEN)
        answer = client.functions.call("bash", Asked(b"echo it", limits=replace(Limits(), wall=60.0)))
        assert (answer.won.stdout, answer.language) == (b"it\n", "bash")
        with pytest.raises(SourceMissing, match="is not served there"):
            client.runs.runs()
