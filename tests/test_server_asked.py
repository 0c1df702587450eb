"""`sidecar --server` for what ran once and for functions: the commands print what they print of this machine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import BIN, HANG, until
from served import served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from sidecar.errors import OutcomeUnknown, ParametersError, SourceMissing, Unreachable
from sidecar.exits import Exit
from sidecar.functions.answer import Answer, Asked, Limits, Ran
from sidecar.functions.runtimes import find_runtimes
from sidecar.functions.service import Full, NobodyAnswered, Service
from sidecar.once import Ledger
from sidecar.once.asked import Variable
from sidecar.once.facts import FAILED_TO_START, FINISHED, RUNNING, UNKNOWN, Piece, Run, Written
from sidecar.once.run import follow
from sidecar.once.told import as_json, of_json, piece_as_json, piece_of_json
from sidecar.process import Identity
from sidecar.session.local import LocalRunner
from sidecar.session.machine import Machine
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


def test_a_server_and_a_ledger_of_ones_own_are_not_asked_together(here: Here) -> None:
    refused = here.run("--server", here.url, "once", "list", "--state", here.state)
    assert (refused.returncode, b"expected one of --server and --state" in refused.stderr) == (2, True)


_texts = st.text(st.characters(codec="utf-8"), max_size=8)
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
    st.builds(Identity, st.integers(1, 99), st.integers(0), _texts, st.just(0)),
    _moments,
    st.just(0) | _moments,
    _moments,
    st.builds(Exit, st.integers(0, 255), st.sampled_from([0, 9, 15]), _texts, st.sampled_from([0, 69, 137])),
    st.builds(Written, st.integers(0), st.integers(0)),
    st.builds(Written, st.integers(0), st.integers(0)),
    _texts,
    st.lists(st.builds(Variable, _texts, _texts), max_size=3, unique_by=lambda each: each.name).map(tuple),
)


@given(run=_runs)
def test_whoever_was_told_of_a_run_tells_the_same(run: Run) -> None:
    assert as_json(of_json(as_json(run))) == as_json(run)


@given(st.builds(Piece, st.integers(1), st.sampled_from([1, 2]), _moments, st.binary(max_size=20)))
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


def test_whoever_was_told_an_answer_tells_the_same() -> None:
    won = Ran(2, "error", 3, None, b"out", b"err", 0.25)
    answer = Answer("bash", "5.2", won, (Ran(1, "lost", wall=0.5), won))
    assert Answer.of_json(answer.as_json()).as_json() == answer.as_json()


def test_a_server_of_functions_alone_is_asked_as_well() -> None:
    with served(functions_alone(Service(find_runtimes([str(RUNTIMES)])), TOKEN)) as url:
        client = Client(url, TOKEN)
        answer = client.functions.call("bash", Asked(b"echo it", limits=replace(Limits(), wall=60.0)))
        assert (answer.won.stdout, answer.language) == (b"it\n", "bash")
        with pytest.raises(SourceMissing, match="is not served there"):
            client.runs.runs()
