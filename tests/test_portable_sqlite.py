"""`_sqlite3` of the portable wrapper, beside CPython's: asked the same, they answer the same.

tests/sqlite_answers.py is run by this Python, and built into a static executable as the portable wrapper is. Each has a folder of
its own; where both open one database, as the containers of a pod do, they are in the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from processes import Pod
from test_portable import SOURCES, contained

ANSWERS = Path(__file__).parent / "sqlite_answers.py"
# SQLite's own numbers, which do not change.
BUSY, READONLY, CORRUPT, FULL, CANTOPEN, TOOBIG, CONSTRAINT, MISMATCH, NOTADB = 5, 8, 11, 13, 14, 18, 19, 20, 26
WAIT = 60.0

Request = list[Any]


@pytest.fixture(scope="session")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executable that is made as `make wrapper` makes it, but for what it runs."""
    path = tmp_path_factory.mktemp("static") / "answers"
    words: list[str | Path] = ["/usr/bin/python3", "-I", SOURCES / "build.py", path, "--portable", ANSWERS]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"CC": "gcc"})
    return path


class Peer:
    """A process that answers requests, in a folder."""

    def __init__(self, folder: Path, *words: str | Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.process = subprocess.Popen(words, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def say(self, *requests: Request) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(json.dumps(each).encode() + b"\n" for each in requests))
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, *request: Any) -> Any:
        self.say(list(request))
        return self.hear()


@pytest.fixture
def peers(static: Path, tmp_path: Path) -> Iterator[tuple[Peer, Peer]]:
    """CPython's and the portable wrapper's, each in a folder of its own."""
    with ExitStack() as stack:
        cpython = stack.enter_context(Peer(tmp_path / "cpython", sys.executable, ANSWERS))
        portable = stack.enter_context(Peer(tmp_path / "portable", static))
        yield cpython, portable


@pytest.fixture
def together(static: Path, tmp_path: Path) -> Iterator[tuple[Peer, Peer]]:
    """Both in one folder, with one database in WAL mode that has a table."""
    with ExitStack() as stack:
        cpython = stack.enter_context(Peer(tmp_path / "both", sys.executable, ANSWERS))
        portable = stack.enter_context(Peer(tmp_path / "both", static))
        for peer in (cpython, portable):
            assert peer.ask("connect", "c", "ledger", WAIT) is None
            assert peer.ask("run", "c", "PRAGMA journal_mode=WAL")["rows"] == [["wal"]]
        cpython.ask("run", "c", "CREATE TABLE entries(number INTEGER PRIMARY KEY, who TEXT)")
        yield cpython, portable


def answers(peers: tuple[Peer, Peer], *requests: Request) -> list[Any]:
    """Return what both answer; it is the same."""
    found = []
    for number, request in enumerate(requests):
        expected, given = (peer.ask(*request) for peer in peers)
        assert given == expected, f"request {number}, {request}"
        found.append(given)
    return found


def last(peers: tuple[Peer, Peer], *requests: Request) -> Any:
    return answers(peers, *requests)[-1]


MEMORY = ["connect", "c", ":memory:"]
FILE = ["connect", "c", "ledger"]
OTHER = ["connect", "other", "ledger"]
TABLE = ["run", "c", "CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE NOT NULL, c CHECK (c < 10))"]
TWO = ["run", "c", "INSERT INTO t(b) VALUES (1), (2)"]


# --- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        0,
        -1,
        127,
        2**31,
        2**63 - 1,
        -(2**63),
        True,
        "",
        "text",
        "a\0b",
        "\0",
        "é \U0001f600 \uffff",
        "'; DROP TABLE t; --",
        "x" * 100_000,
        {"bytes": ""},
        {"bytes": "00"},
        {"bytes": "ff00fe00"},
        {"bytes": bytes(range(256)).hex() * 500},
        {"float": "1.5"},
        {"float": "-0.0"},
        {"float": "inf"},
        {"float": "nan"},
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_value_comes_back_as_it_was_given(peers: tuple[Peer, Peer], value: Any) -> None:
    select = ["run", "c", "SELECT ?, typeof(?1), length(?1), quote(?1)", value]
    [[given, *_]] = last(peers, MEMORY, select)["rows"]
    assert given == (None if value == {"float": "nan"} else value)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30, "\ud800", ["list"], {"of": "no kind"}], ids=repr)
def test_a_value_that_sqlite_cannot_hold_is_refused(peers: tuple[Peer, Peer], value: Any) -> None:
    kind = {int: "OverflowError", str: "UnicodeEncodeError"}.get(type(value), "ProgrammingError")
    assert last(peers, MEMORY, ["run", "c", "SELECT ?", value])["error"][0] == kind


@pytest.mark.parametrize("given", [(), (1,), (1, 2, 3)], ids=len)
def test_as_many_values_as_placeholders_or_it_is_refused(peers: tuple[Peer, Peer], given: tuple[int, ...]) -> None:
    found = last(peers, MEMORY, ["run", "c", "SELECT ?, ?", *given])
    assert (found["error"][0], found["code"]) == ("ProgrammingError", None)


def test_values_without_placeholders_are_refused(peers: tuple[Peer, Peer]) -> None:
    assert last(peers, MEMORY, ["run", "c", "SELECT 1", 1])["error"][0] == "ProgrammingError"


def test_text_that_is_no_utf8_is_an_operational_error_when_it_is_fetched(peers: tuple[Peer, Peer]) -> None:
    """What it says is another thing: CPython quotes the text."""
    answers(peers, MEMORY, ["execute", "c", "SELECT CAST(x'ff41' AS TEXT)"])
    one, other = (peer.ask("fetchone", "c") for peer in peers)
    assert one["error"] == other["error"] == ["OperationalError", "DatabaseError", "Error"]
    assert one["code"] is other["code"] is None


# --- rows and counts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "count"),
    [
        ("INSERT INTO t(b) VALUES (3), (4), (5)", 3),
        ("insert or ignore into t(b) values (1)", 0),
        ("  \n\tINSERT INTO t(b) VALUES (3)", 1),
        ("REPLACE INTO t(a, b) VALUES (1, 9)", 1),
        ("UPDATE t SET b = b + 100", 2),
        ("UPDATE t SET b = b + 100 WHERE a = 2", 1),
        ("UPDATE t SET b = b + 100 WHERE a = 7", 0),
        ("DELETE FROM t", 2),
        ("DELETE FROM t WHERE a = 1", 1),
        ("INSERT INTO t(b) VALUES (3), (4) RETURNING a, b", 2),
        ("UPDATE t SET b = b + 100 RETURNING b", 2),
        ("WITH new(b) AS (SELECT 8) INSERT INTO t(b) SELECT b FROM new", -1),
        ("SELECT * FROM t", -1),
        ("SELECT * FROM t WHERE a = 7", -1),
        ("CREATE TABLE other(a)", -1),
        ("DROP TABLE t", -1),
        ("PRAGMA user_version", -1),
        ("PRAGMA user_version = 3", -1),
        ("PRAGMA cache_size = -64", -1),
        ("BEGIN IMMEDIATE", -1),
        ("EXPLAIN QUERY PLAN SELECT 1", -1),
        ("VALUES (1, 'a'), (NULL, x'00')", -1),
        ("SELECT 1;", -1),
        ("SELECT 1; -- and no more", -1),
    ],
)
def test_rows_and_counts_are_those_of_the_statement(peers: tuple[Peer, Peer], sql: str, count: int) -> None:
    found = answers(peers, MEMORY, TABLE, TWO, ["execute", "c", sql], ["fetchall", "c"], ["fetchone", "c"], ["rowcount", "c"])
    assert found[-1] == found[-3]["rowcount"] == count
    answers(peers, ["run", "c", "SELECT * FROM t ORDER BY a"], ["in_transaction", "c"])


def test_rows_are_fetched_one_by_one_all_that_are_left_or_by_iteration(peers: tuple[Peer, Peer]) -> None:
    three = ["execute", "c", "VALUES (1), (2), (3)"]
    found = answers(peers, MEMORY, three, *[["fetchone", "c"]] * 5)
    assert [each["row"] for each in found[2:]] == [[1], [2], [3], None, None]
    assert last(peers, three, ["fetchone", "c"], ["fetchall", "c"])["rows"] == [[2], [3]]
    assert last(peers, three, ["fetchone", "c"], ["iterate", "c"]) == [[2], [3]]
    assert last(peers, ["fetchall", "c"])["rows"] == []


def test_a_statement_without_columns_is_stepped_to_its_end(peers: tuple[Peer, Peer]) -> None:
    """As CPython's is from 3.12 on. That of 3.11 ends at the first step, and gives one free page back."""
    grown = ["run", "c", "INSERT INTO t(b) VALUES (zeroblob(1000000))"]
    answers(peers, FILE, ["run", "c", "PRAGMA auto_vacuum=INCREMENTAL"], TABLE, grown, ["run", "c", "DELETE FROM t"])
    _, portable = peers
    assert portable.ask("run", "c", "PRAGMA freelist_count")["rows"][0][0] > 200
    assert "error" not in portable.ask("run", "c", "PRAGMA incremental_vacuum")
    assert portable.ask("run", "c", "PRAGMA freelist_count")["rows"] == [[0]]


def test_the_count_of_what_returns_rows_is_there_when_the_last_is_fetched(peers: tuple[Peer, Peer]) -> None:
    returning = ["execute", "c", "INSERT INTO t(b) VALUES (1), (2) RETURNING a"]
    found = answers(peers, MEMORY, TABLE, returning, ["fetchone", "c"], ["fetchone", "c"])
    assert [each["rowcount"] for each in found[2:]] == [0, 0, 2]


def test_the_last_row_number_is_that_of_the_connection(peers: tuple[Peer, Peer]) -> None:
    found = answers(
        peers,
        MEMORY,
        TABLE,
        TWO,
        ["run", "c", "SELECT 1"],
        ["run", "c", "INSERT INTO t(a, b) VALUES (?, 3)", 2**62],
        ["run", "c", "DELETE FROM t"],
    )
    assert [each["lastrowid"] for each in found[1:]] == [0, 2, 2, 2**62, 2**62]


def test_an_error_behind_the_first_row_is_raised_by_the_fetch_and_ends_the_statement(peers: tuple[Peer, Peer]) -> None:
    fails = ["execute", "c", "SELECT abs(column1) FROM (VALUES (1), (-9223372036854775807 - 1), (3))"]
    found = answers(peers, FILE, TABLE, fails, ["fetchone", "c"], ["fetchone", "c"], ["fetchall", "c"])
    assert found[3]["says"] == "integer overflow"
    assert found[4]["row"] is None
    assert last(peers, OTHER, ["run", "other", "BEGIN EXCLUSIVE"])["in_transaction"]


# --- transactions ------------------------------------------------------------------------------------------------------


def test_a_statement_is_its_own_transaction_and_one_that_has_begun_is_told(peers: tuple[Peer, Peer]) -> None:
    found = answers(
        peers,
        FILE,
        TABLE,
        TWO,
        ["in_transaction", "c"],
        ["run", "c", "BEGIN"],
        ["run", "c", "INSERT INTO t(b) VALUES (3)"],
        ["in_transaction", "c"],
        ["run", "c", "ROLLBACK"],
        ["in_transaction", "c"],
        OTHER,
        ["run", "other", "SELECT b FROM t"],
    )
    assert (found[3], found[6], found[8]) == (False, True, False)
    assert found[-1]["rows"] == [[1], [2]]


def test_savepoints_and_what_is_rolled_back_to_them(peers: tuple[Peer, Peer]) -> None:
    sql = ["SAVEPOINT one", "INSERT INTO t(b) VALUES (3)", "SAVEPOINT two", "DELETE FROM t", "ROLLBACK TO two", "RELEASE one"]
    found = last(peers, FILE, TABLE, TWO, *[["run", "c", each] for each in sql], ["run", "c", "SELECT b FROM t"])
    assert found["rows"] == [[1], [2], [3]]


def test_a_failed_statement_undoes_itself_and_not_the_transaction(peers: tuple[Peer, Peer]) -> None:
    found = answers(
        peers,
        FILE,
        TABLE,
        ["run", "c", "BEGIN IMMEDIATE"],
        TWO,
        ["run", "c", "INSERT INTO t(b) VALUES (8), (9), (1)"],
        ["in_transaction", "c"],
        ["run", "c", "COMMIT"],
        ["run", "c", "SELECT b FROM t"],
    )
    assert (found[4]["code"] & 0xFF, found[5], found[-1]["rows"]) == (CONSTRAINT, True, [[1], [2]])


def test_what_is_open_when_the_connection_closes_is_rolled_back(peers: tuple[Peer, Peer]) -> None:
    begun = [FILE, TABLE, ["run", "c", "BEGIN"], TWO, ["close", "c"]]
    assert last(peers, *begun, OTHER, ["run", "other", "SELECT * FROM t"])["rows"] == []


def test_rows_that_are_not_fetched_hold_their_lock_until_they_are_left(peers: tuple[Peer, Peer]) -> None:
    write = ["run", "other", "INSERT INTO t(b) VALUES (3)"]
    found = answers(peers, FILE, OTHER, TABLE, TWO, ["execute", "c", "SELECT * FROM t"], write, ["leave", "c"], write)
    assert found[-3]["code"] == BUSY
    assert found[-1]["rowcount"] == 1


def test_a_connection_that_is_closed_before_its_rows_are_fetched(peers: tuple[Peer, Peer]) -> None:
    answers(peers, FILE, OTHER, TABLE, TWO, ["execute", "c", "SELECT * FROM t"], ["close", "c"], ["fetchone", "c"])
    assert last(peers, ["leave", "c"], ["run", "other", "BEGIN EXCLUSIVE"])["in_transaction"]


def test_a_closed_connection_refuses_everything_but_another_close(peers: tuple[Peer, Peer]) -> None:
    found = answers(
        peers,
        FILE,
        ["execute", "c", "SELECT 1"],
        ["close", "c"],
        ["close", "c"],
        ["rowcount", "c"],
        ["fetchone", "c"],
        ["fetchall", "c"],
        ["iterate", "c"],
        ["in_transaction", "c"],
        ["run", "c", "SELECT 1"],
    )
    assert found[3:5] == [None, -1]
    assert [each["error"][0] for each in found[5:]] == ["ProgrammingError"] * 5


# --- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "kind", "code"),
    [
        ("SELEC 1", "OperationalError", 1),
        ("SELECT * FROM missing", "OperationalError", 1),
        ("SELECT missing FROM t", "OperationalError", 1),
        ("COMMIT", "OperationalError", 1),
        ("SELECT abs(-9223372036854775807 - 1)", "OperationalError", 1),
        ("SELECT load_extension('./no.so')", "OperationalError", 1),
        ("INSERT INTO t(a, b) VALUES (1, 7)", "IntegrityError", CONSTRAINT | 6 << 8),
        ("INSERT INTO t(b) VALUES (1)", "IntegrityError", CONSTRAINT | 8 << 8),
        ("INSERT INTO t(b) VALUES (NULL)", "IntegrityError", CONSTRAINT | 5 << 8),
        ("INSERT INTO t(b, c) VALUES (7, 10)", "IntegrityError", CONSTRAINT | 1 << 8),
        ("INSERT INTO t(a, b) VALUES ('no number', 7)", "IntegrityError", MISMATCH),
        ("SELECT zeroblob(2000000000)", "DataError", TOOBIG),
        ("SELECT 1; SELECT 2", "ProgrammingError", None),
        ("SELECT 1; nonsense", "ProgrammingError", None),
        ("SELECT 1\0", "ProgrammingError", None),
        ("SELECT '\ud800'", "UnicodeEncodeError", None),
        ("ATTACH '/missing/file' AS other", "OperationalError", CANTOPEN),
    ],
)
def test_an_error_has_its_class_its_code_and_its_message(peers: tuple[Peer, Peer], sql: str, kind: str, code: int) -> None:
    found = last(peers, MEMORY, TABLE, TWO, ["run", "c", sql])
    assert (found["error"][0], found["code"]) == (kind, code)
    assert last(peers, ["run", "c", "SELECT * FROM t"])["rows"] == [[1, 1, None], [2, 2, None]]


@pytest.mark.parametrize("how", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "INSERT INTO t(b) VALUES (3)"])
@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_database_that_is_locked_is_busy(peers: tuple[Peer, Peer], mode: str, how: str) -> None:
    answers(peers, FILE, TABLE, ["run", "c", f"PRAGMA journal_mode={mode}"], OTHER, ["run", "c", "BEGIN IMMEDIATE"])
    found = last(peers, ["run", "other", how])
    assert (found["error"], found["code"]) == (["OperationalError", "DatabaseError", "Error"], BUSY)
    assert found["says"] == "database is locked"
    assert "error" not in last(peers, ["run", "c", "COMMIT"], ["run", "other", how])


def test_a_read_that_became_old_cannot_become_a_write(peers: tuple[Peer, Peer]) -> None:
    begun = [FILE, TABLE, ["run", "c", "PRAGMA journal_mode=WAL"], OTHER, ["run", "c", "BEGIN"], ["run", "c", "SELECT * FROM t"]]
    found = last(peers, *begun, ["run", "other", "INSERT INTO t(b) VALUES (5)"], TWO)
    assert found["code"] == BUSY | 2 << 8


def test_a_full_database_is_an_operational_error(peers: tuple[Peer, Peer]) -> None:
    insert = ["run", "c", "INSERT INTO t(b) VALUES (zeroblob(100000))"]
    assert last(peers, FILE, TABLE, ["run", "c", "PRAGMA max_page_count=8"], insert)["code"] == FULL
    assert last(peers, TWO)["rowcount"] == 2


def test_what_may_only_be_read_is_an_operational_error(peers: tuple[Peer, Peer]) -> None:
    assert last(peers, FILE, TABLE, ["run", "c", "PRAGMA query_only=1"], TWO)["code"] == READONLY


def test_a_database_whose_name_has_gone_is_not_written_to(peers: tuple[Peer, Peer]) -> None:
    answers(peers, FILE, TABLE)
    for peer in peers:
        (peer.folder / "ledger").unlink()
    assert last(peers, TWO)["code"] == READONLY | 4 << 8


@pytest.mark.parametrize("path", ["missing/ledger", ".", "", "ledger\0", "\ud800"], ids=repr)
def test_what_cannot_be_opened(peers: tuple[Peer, Peer], path: str) -> None:
    found = last(peers, ["connect", "c", path])
    if path in ("missing/ledger", "."):
        assert found["code"] & 0xFF == CANTOPEN


def test_a_name_that_is_no_utf8_is_opened(peers: tuple[Peer, Peer]) -> None:
    answers(peers, ["connect", "c", "\udcff"], TABLE, TWO, ["close", "c"])
    for peer in peers:
        assert os.listdir(os.fsencode(peer.folder)) == [b"\xff"]


def test_a_file_that_is_no_database_is_refused_and_left_alone(peers: tuple[Peer, Peer]) -> None:
    for peer in peers:
        (peer.folder / "ledger").write_bytes(b"no database" * 1000)
    found = answers(peers, FILE, ["run", "c", "PRAGMA user_version"], TABLE)
    assert [each["code"] for each in found[1:]] == [NOTADB] * 2
    assert found[-1]["error"] == ["DatabaseError", "Error"]
    for peer in peers:
        assert (peer.folder / "ledger").read_bytes() == b"no database" * 1000


def test_a_damaged_database_is_a_database_error(peers: tuple[Peer, Peer]) -> None:
    answers(peers, FILE, TABLE, TWO, ["close", "c"])
    for peer in peers:
        whole = (peer.folder / "ledger").read_bytes()
        (peer.folder / "ledger").write_bytes(whole[:4096] + b"\xff" * 4096 + whole[8192:])
    found = last(peers, FILE, ["run", "c", "SELECT * FROM t"])
    assert (found["error"], found["code"] & 0xFF) == (["DatabaseError", "Error"], CORRUPT)


# --- with others at the same time --------------------------------------------------------------------------------------


def test_one_connection_is_used_by_two_threads_one_after_the_other(peers: tuple[Peer, Peer]) -> None:
    insert = ["run in a thread", "c", "INSERT INTO t(b) VALUES (7)"]
    found = answers(peers, FILE, TABLE, ["run", "c", "BEGIN"], insert, ["join", "c"], TWO, ["run", "c", "COMMIT"])
    assert found[-3]["in_transaction"]
    assert last(peers, ["run", "c", "SELECT count(*) FROM t"])["rows"] == [[3]]


def test_one_thread_waits_for_a_lock_and_another_works_on(peers: tuple[Peer, Peer]) -> None:
    """Did the one that waits hold the interpreter, the other could not let go of the lock."""
    patient = [["connect", name, "ledger", WAIT] for name in ("c", "other")]
    answers(peers, *patient, TABLE, ["run", "c", "BEGIN IMMEDIATE"])
    answers(peers, ["run in a thread", "other", "BEGIN IMMEDIATE"], TWO, ["run", "c", "COMMIT"])
    assert last(peers, ["join", "other"])["in_transaction"]


@pytest.mark.parametrize("first", [0, 1], ids=["cpython first", "portable first"])
def test_each_waits_for_the_other_and_sees_what_it_wrote(together: tuple[Peer, Peer], first: int) -> None:
    one, other = together[first], together[1 - first]
    one.ask("run", "c", "BEGIN IMMEDIATE")
    one.ask("run", "c", "INSERT INTO entries(who) VALUES ('one')")
    other.ask("connect", "impatient", "ledger")
    assert other.ask("run", "impatient", "BEGIN IMMEDIATE")["code"] == BUSY
    assert other.ask("run", "impatient", "SELECT * FROM entries")["rows"] == []
    other.say(["run", "c", "BEGIN IMMEDIATE"])
    one.ask("run", "c", "COMMIT")
    assert other.hear()["in_transaction"]
    assert other.ask("run", "c", "SELECT who FROM entries")["rows"] == [["one"]]


def test_both_write_at_once_and_nothing_is_lost(together: tuple[Peer, Peer]) -> None:
    times = 100
    for peer, who in zip(together, ("cpython", "portable"), strict=True):
        change = ["run", "c", "INSERT INTO entries(who) SELECT ? || count(*) FROM entries", who]
        peer.say(*[["run", "c", "BEGIN IMMEDIATE"], change, ["run", "c", "COMMIT"]] * times)
    for peer in together:
        assert [each for each in (peer.hear() for _ in range(3 * times)) if "error" in each] == []
    for peer in together:
        assert peer.ask("run", "c", "PRAGMA integrity_check")["rows"] == [["ok"]]
        rows = peer.ask("run", "c", "SELECT who FROM entries ORDER BY number")["rows"]
        assert [who.removeprefix("cpython").removeprefix("portable") for [who] in rows] == [str(n) for n in range(2 * times)]


@pytest.mark.parametrize("killed", [0, 1], ids=["cpython killed", "portable killed"])
def test_what_one_had_not_committed_when_it_was_killed_the_other_does_not_see(together: tuple[Peer, Peer], killed: int) -> None:
    one, other = together[killed], together[1 - killed]
    one.ask("run", "c", "INSERT INTO entries(who) VALUES ('committed')")
    one.ask("run", "c", "BEGIN IMMEDIATE")
    one.ask("run", "c", "INSERT INTO entries(who) VALUES ('not committed')")
    one.process.kill()
    one.process.wait()
    assert other.ask("run", "c", "BEGIN IMMEDIATE")["in_transaction"]
    assert other.ask("run", "c", "SELECT who FROM entries")["rows"] == [["committed"]]


# --- in a container ----------------------------------------------------------------------------------------------------


def test_in_a_root_that_holds_nothing_it_keeps_a_ledger_with_32_mib_of_addresses(static: Path, tmp_path: Path) -> None:
    """As nobody, without /tmp, /proc and /etc: 16 MiB are written in pieces, read again, sorted, and compacted."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "answers").write_bytes(static.read_bytes())
    (tmp_path / "shared" / "answers").chmod(0o555)
    for name in ("coord", "shared"):
        (tmp_path / "root" / name).mkdir(parents=True)
    sql = [
        "PRAGMA temp_store=MEMORY",
        "PRAGMA journal_mode=WAL",
        "PRAGMA synchronous=FULL",
        "PRAGMA cache_size=-256",
        "CREATE TABLE output(number INTEGER PRIMARY KEY, bytes BLOB)",
        "BEGIN IMMEDIATE",
        *["INSERT INTO output(bytes) VALUES (randomblob(65536))"] * 256,
        "COMMIT",
        "SELECT sum(length(bytes)) FROM output",
        "SELECT length(max(key)) FROM (SELECT hex(substr(bytes, 1, 4096)) AS key FROM output ORDER BY key LIMIT 256)",
        "DELETE FROM output WHERE number % 2",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA integrity_check",
    ]
    requests = [["connect", "c", "/coord/ledger", WAIT], *[["run", "c", each] for each in sql], ["close", "c"]]
    with Pod(tmp_path) as pod:
        pod.coord.chmod(0o777)
        started = contained(pod, tmp_path / "root", tmp_path / "shared", "/shared/answers", stdin=-1)
        started.popen.communicate(b"".join(json.dumps(each).encode() + b"\n" for each in requests))
        assert started.wait() == 0, started.err
        found = [json.loads(line) for line in started.out.splitlines()]
        assert os.listdir(pod.coord) == ["ledger"]
    assert len(found) == len(requests)
    assert [each for each in found if each and "error" in each] == []
    assert found[2]["rows"] == [["wal"]]
    assert found[-6]["rows"] == [[256 * 65536]]
    assert found[-5]["rows"] == [[2 * 4096]]
    assert found[-2]["rows"] == [["ok"]]
