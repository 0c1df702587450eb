"""Killed at any moment, a pod with a database loses no row that was acknowledged: real servers, clients, kills and restarts.

Each session restores what the one before archived, has clients insert rows and write down each commit once it is acknowledged,
and kills the server, one of its processes, the battery, the application's wrapper, or two of them, at random moments; what a
restart policy would start again is started again. In the end every row that was written down is in the bundle.

The short form kills about a dozen times; the long form, `make test-long`, two hundred. A failure tells the seed.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import psycopg
import pytest
from postgres_pods import LABEL, REPO, DatabasePod, new_place
from processes import HANG, children_of, until

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS kept (session int, client int, n int, text text, PRIMARY KEY (session, client, n))",
    "CREATE UNLOGGED TABLE IF NOT EXISTS unlogged (session int, client int, n int, text text)",
)
INSERT = "INSERT INTO {} VALUES (%s, %s, %s, %s)"
CLIENTS = 2
# In what phase of a session kills come, and how many seconds into it: about as long as it takes, and longer.
BEGINNING, SERVING, ENDING = "beginning", "serving", "ending"
WITHIN = {BEGINNING: 1.2, SERVING: 0.6, ENDING: 0.8}
SERVER, PROCESS, BATTERY, WRAPPER = "the server", "a process of the server", "the battery", "the wrapper"
VICTIMS = ((SERVER,), (PROCESS,), (BATTERY,), (WRAPPER,), (BATTERY, SERVER), (BATTERY, WRAPPER))
LIVES = 12  # more than that many times nothing is started again in one session

Acknowledged = tuple[int, int, int]


class Client(threading.Thread):
    """Inserts rows, one a transaction, until it is told to end; connects again where it is cut off. What was acknowledged
    stands in a file, each line of which is on the disk before the next row is inserted."""

    def __init__(self, pod: DatabasePod, session: int, number: int) -> None:
        super().__init__(daemon=True)
        self.pod, self.session, self.number = pod, session, number
        self.path = pod.file(f"acknowledged-{number}")
        self.over = threading.Event()
        self.n = 0

    def run(self) -> None:
        with open(self.path, "ab", buffering=0) as file:
            while not self.over.is_set():
                with suppress(psycopg.Error, FileNotFoundError), self.pod.connect() as connection:
                    self._insert(connection, file.fileno())
                self.over.wait(0.005)

    def _insert(self, connection: psycopg.Connection[object], acknowledged: int) -> None:
        while not self.over.is_set():
            self.n += 1  # never twice, whatever became of it
            row = (self.session, self.number, self.n)
            with connection.transaction():
                for table in ("kept", "unlogged"):
                    connection.execute(INSERT.format(table).encode(), (*row, text_of(row)))
            os.write(acknowledged, f"{self.n}\n".encode())
            os.fdatasync(acknowledged)

    def acknowledged(self) -> set[Acknowledged]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return {(self.session, self.number, int(line)) for line in lines}

    def is_busy(self) -> bool:
        """Say whether enough was acknowledged for a loss to be noticed."""
        return len(self.acknowledged()) > 20


def text_of(row: Acknowledged) -> str:
    """Return what stands in a row: nobody else would put it there."""
    return blake2b(repr(row).encode()).hexdigest()


def found(connection: psycopg.Connection[object], table: str) -> set[Acknowledged]:
    """Return the rows of a table, each of which is what was inserted."""
    rows = connection.execute(f"SELECT session, client, n, text FROM {table}".encode()).fetchall()
    keys = {(row[0], row[1], row[2]) for row in rows}  # type: ignore[index]
    assert len(keys) == len(rows)
    assert all(row[3] == text_of(row[:3]) for row in rows)  # type: ignore[index]
    return keys


class Campaign:
    """Sessions one after the other, of one store."""

    def __init__(self, top: Path, templates: Path, seed: int) -> None:
        self.pods = DatabasePod(top, templates)
        self.chance = random.Random(seed)
        self.kept: set[Acknowledged] = set()  # must be in the latest bundle
        self.tried: list[str] = []
        self.kills = 0

    def run(self, kills: int) -> None:
        number = 0
        while self.kills < kills:
            number += 1
            with self.pods.next(f"s{number}") as pod:
                _Session(self, pod, number).run(min(self.chance.randint(1, 4), kills - self.kills))


class _Session:
    def __init__(self, campaign: Campaign, pod: DatabasePod, number: int) -> None:
        self.campaign, self.pod, self.number = campaign, pod, number
        self.chance = campaign.chance
        self.crashed = False
        self.before = set(pod.bundles())

    def run(self, kills: int) -> None:
        plan = dict.fromkeys(WITHIN, 0)
        for _ in range(kills):
            plan[self.chance.choice(list(WITHIN))] += 1
        self._start_battery()
        self._start_wrapper()
        self._kill(BEGINNING, plan)
        self._until_started()
        if self._application_is_over():  # a kill that was to come while all begins came when the command had just begun
            self._until_archived()
            self._check(set())
            return
        self._look_back()
        clients = [Client(self.pod, self.number, each) for each in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            until(lambda: self._application_is_over() or all(map(Client.is_busy, clients)), "clients insert", self.pod)
            self._kill(SERVING, plan)
            self.pod.release()
            self._kill(ENDING, plan)
            self._until_archived()
        finally:
            for client in clients:
                client.over.set()
            for client in clients:
                client.join(HANG)
        assert not any(client.is_alive() for client in clients)
        self._check({row for client in clients for row in client.acknowledged()})

    # --- containers, and a kubelet that starts them again

    def _start_battery(self) -> None:
        repo, label = (REPO, LABEL) if self.before else (None, None)
        self.battery = self.pod.serve("--rejoin-timeout", "60", databases=["shop"], srcRepo=repo, srcLabel=label)

    def _start_wrapper(self) -> None:
        self.wrapper = self.pod.application("--rejoin-timeout", "60", "--save", "always")

    def _restart_what_ended(self) -> None:
        """Start again what has failed; what has succeeded is over."""
        if self.battery.popen.poll():
            self._start_battery()
        if self.wrapper.popen.poll() and not self._application_is_over():
            self._start_wrapper()
        assert len(self.pod.started) <= LIVES, self.said

    def _application_is_over(self) -> bool:
        """Say whether its wrapper has nothing left to do: its command ran, its end is not known, and that is no one's success."""
        record = self.pod.record()
        return record is not None and record.error is not None and record.error.status == 125

    def _until_started(self) -> None:
        def started() -> bool:
            self._restart_what_ended()
            record = self.pod.record("postgres-db1")
            return self._application_is_over() or (record is not None and record.state == "ready")

        until(started, "the database is started", self.pod)

    def _until_archived(self) -> None:
        def over() -> bool:
            self._restart_what_ended()
            return not self.battery.running and not self.wrapper.running

        until(over, "battery and wrapper have ended", self.pod)

    # --- kills

    def _kill(self, phase: str, plan: dict[str, int]) -> None:
        for _ in range(plan[phase]):
            # Any moment will do: this is when the kill comes, not what is waited for.
            time.sleep(self.chance.random() * WITHIN[phase])
            victims = self.chance.choice(VICTIMS)
            step = self.pod.journal().get("step", "-")
            self.campaign.tried.append(f"s{self.number}: {' and '.join(victims)}, {phase}, at step {step}")
            for victim in victims:
                self._kill_one(victim)
            self.campaign.kills += 1
            self._restart_what_ended()

    def _kill_one(self, victim: str) -> None:
        if victim == BATTERY and self.battery.running:
            self.battery.kill()
        elif victim == WRAPPER and self.wrapper.running:
            self.wrapper.kill()
        elif victim in (SERVER, PROCESS) and (pid := self.pod.postmaster()):
            self.crashed = True
            children = children_of(pid)
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(children) if victim == PROCESS and children else pid, signal.SIGKILL)

    # --- what must hold

    def _look_back(self) -> None:
        """See that what is restored holds what must be in the bundle; have a new database hold our tables."""

        def there() -> bool:
            """Say whether a server was there for all of it; the one that was may have been killed."""
            with suppress(psycopg.OperationalError, FileNotFoundError), self.pod.connect(dbname="shop") as connection:
                for statement in SCHEMA:
                    connection.execute(statement.encode())
                assert found(connection, "kept") >= self.campaign.kept, self.said
                return True
            return False

        until(there, "clients find what they left", self.pod)

    def _check(self, acknowledged: set[Acknowledged]) -> None:
        assert self.battery.popen.returncode == 0, self.said
        assert self.pod.postmaster() == 0
        new = set(self.pod.bundles()) - self.before
        assert new == {self.pod.bundle().id}, self.said
        self.pod.check()
        record = self.pod.record("postgres-db1")
        assert record is not None
        assert record.saved
        assert record.payload is not None
        assert record.payload["destinations"][0]["bundle"] == self.pod.bundle().id
        assert (self.pod.coord / "db1" / "dbuploaddone").exists()
        if not self.campaign.kept | acknowledged:
            return  # nobody has come to make the tables yet
        with self.pod.restored(dbname="shop") as connection:
            kept, unlogged = found(connection, "kept"), found(connection, "unlogged")
        missing = (self.campaign.kept | acknowledged) - kept
        assert not missing, f"{len(missing)} of {len(acknowledged)} acknowledged rows are missing; {self.said}"
        if self.crashed:
            assert unlogged <= kept
        else:
            assert acknowledged <= unlogged, f"nothing crashed, and unlogged rows are missing; {self.said}"
        self.campaign.kept = kept

    @property
    def said(self) -> str:
        said = "\n".join(f"--- {each.popen.args!r} ({each.popen.poll()}):\n{each.err}" for each in self.pod.started)
        return "\n".join([*self.campaign.tried, said])


@pytest.fixture(scope="session")
def templates() -> Iterator[Path]:
    with new_place() as place:
        yield place


def check(seed: int, kills: int, templates: Path) -> None:
    with new_place() as top:
        campaign = Campaign(top, templates, seed)
        try:
            campaign.run(kills)
        except BaseException:
            print(f"seed {seed}, after {campaign.kills} kills:", *campaign.tried, sep="\n")
            raise


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_acknowledged_row_is_missing_whoever_is_killed(seed: int, templates: Path) -> None:
    check(seed, 4, templates)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 110))
def test_no_acknowledged_row_is_missing_in_two_hundred_kills(seed: int, templates: Path) -> None:
    check(seed, 20, templates)
