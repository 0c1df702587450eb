"""What whoever keeps records of builds and pushes owes: a class of tests, which a test module inherits from and gives a fixture.

place    where records are kept; none at first
"""

from __future__ import annotations

import os
import random
import select
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import HANG, forked, until

from sidecar.errors import SourceMissing, Unreachable
from sidecar.factory import records_sql
from sidecar.factory.model import BEGUN, UNDER_WAY, Asked, Kind, Work
from sidecar.factory.records import LOG_ENDS, LOG_LIMIT, Records, new_worker

HERE, ELSEWHERE = "here:/images/factory.yaml#1", "é there:/images/factory.yaml#2"
APP = Asked("build", "app", "oci", "blake3:1", HERE, labels={"team": "a", "é\0\udcff": '"'})
OTHER = Asked("build", "other", "docker", "blake3:2", HERE)
PUSH = Asked("push", "app", "oci", "blake3:1", HERE, "here", 1)


class Place(ABC):
    """Where records are kept."""

    # Whether the death of a process is known when whoever killed it has waited for it.
    at_once = True

    @abstractmethod
    def open(self) -> Records:
        """Open the records there."""

    @abstractmethod
    def empty(self) -> None:
        """Forget all that was recorded, while nobody has the records open."""

    def buried(self, records: Records, at: int = 1) -> list[Work]:
        """Return what is buried now that somebody has died who had begun a work."""
        if self.at_once:
            return records.bury(at)
        found: list[Work] = []

        def some() -> bool:
            found.extend(records.bury(at))
            return bool(found)

        until(some, "a dead builder's work to be buried")
        return found


@contextmanager
def killed(work: Callable[[Callable[[], None]], object]) -> Iterator[int]:
    """Begin `work` in a process, wait until it has called what it is given, and kill it when the block is over."""
    hear, tell = os.pipe()

    def tell_and_stay() -> None:
        os.write(tell, b"!")
        signal.pause()

    pid = forked(lambda: work(tell_and_stay))
    os.close(tell)
    try:
        assert os.read(hear, 1) == b"!"
        yield pid
    finally:
        os.close(hear)
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL


def told_by(count: int, work: Callable[[int], object]) -> list[bytes]:
    """Do `work` in so many processes, none of which begins before all are there; return what each writes to what it is given."""
    waiting, release = os.pipe()
    hears, pids = [], []
    for _ in range(count):
        hear, tell = os.pipe()

        def wait_and_work(tell: int = tell) -> None:
            os.close(release)
            os.read(waiting, 1)
            work(tell)

        pids.append(forked(wait_and_work))
        os.close(tell)
        hears.append(hear)
    os.close(release)
    os.close(waiting)
    said = []
    for hear in hears:
        with os.fdopen(hear, "rb") as file:
            said.append(file.read())
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * count
    return said


def under_way(records: Records) -> list[Work]:
    return records.find(status=("BUILDING", "PUSHING"))


class RecordsContract:
    """The tests."""

    @pytest.fixture
    def records(self, place: Place) -> Iterator[Records]:
        with place.open() as records:
            yield records

    # --- asking

    def test_what_is_asked_for_is_pending_and_is_the_same_for_who_asks_again(self, records: Records) -> None:
        work = records.ask(APP, 7)
        assert work == replace(Work(work.id, "build", "app", "oci", "blake3:1", "PENDING"), site=HERE, labels=APP.labels, asked=7)
        assert records.ask(replace(APP, labels=dict([*APP.labels.items()][::-1])), 8) == work
        assert records.get(work.id) == work
        assert records.waiting(HERE) == 1
        push = records.ask(PUSH, 9)
        assert (push.kind, push.provider, push.build, push.id > work.id) == ("push", "here", 1, True)
        assert records.find() == [push, work]

    @pytest.mark.parametrize(
        "asked", [replace(APP, image="b"), replace(APP, target="docker"), replace(APP, content="c"), replace(PUSH, provider="p"),
         replace(APP, site=ELSEWHERE), replace(PUSH, site=ELSEWHERE)],
    )  # fmt: skip
    def test_another_image_target_content_provider_or_site_is_another_work(self, records: Records, asked: Asked) -> None:
        first = {records.ask(APP, 1).id, records.ask(PUSH, 1).id}
        assert records.ask(asked, 2).id not in first

    def test_what_is_complete_is_not_made_again_unless_it_is_asked_for_anew_and_then_once(self, records: Records) -> None:
        first = records.ask(APP, 1)
        with self.begun(records):
            assert records.finish(first.id, "sha256:1", "app:1", 3)
        assert records.ask(APP, 4).id == first.id
        again = records.ask(APP, 5, anew=True)
        assert (again.id > first.id, again.status) == (True, "PENDING")
        assert records.ask(APP, 6, anew=True) == again == records.ask(APP, 7)

    def test_what_has_failed_is_made_again_and_its_record_stays(self, records: Records) -> None:
        first = records.ask(APP, 1)
        assert records.fail(first.id, "no such base", 2)
        again = records.ask(APP, 3)
        assert again.id > first.id
        assert records.get(first.id) == replace(first, status="FAILED", error="no such base", finished=2)
        assert records.latest("build", "app", HERE) == again

    def test_fifty_threads_that_ask_for_the_same_are_given_one_work(self, records: Records) -> None:
        given_, gate = [], threading.Barrier(50)

        def ask() -> None:
            gate.wait(HANG)
            given_.append(records.ask(APP, 1))

        threads = [threading.Thread(target=ask) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG)
        assert len(given_) == 50
        assert {work.id for work in given_} == {work.id for work in records.find()} == {given_[0].id}

    def test_fifty_processes_that_ask_for_the_same_of_records_that_there_are_not_are_given_one_work(self, place: Place) -> None:
        def ask(tell: int) -> None:
            with place.open() as records:
                os.write(tell, b"%d" % records.ask(APP, 1).id)

        said = told_by(50, ask)
        with place.open() as records:
            assert set(said) == {b"%d" % work.id for work in records.find()}
            assert len(records.find()) == 1

    # --- finding

    def test_works_are_found_by_kind_image_and_status_newest_first(self, records: Records) -> None:
        a, b, c = records.ask(APP, 1), records.ask(OTHER, 2), records.ask(PUSH, 3)
        records.fail(b.id, "e", 4)
        b = records.get(b.id)
        assert records.find() == [c, b, a]
        assert records.find(limit=2) == [c, b]
        assert records.find("build") == [b, a]
        assert records.find(image="app") == [c, a]
        assert records.find("push", "other") == []
        assert records.find(status=("FAILED", "COMPLETE")) == [b]
        assert records.latest("push", "app", HERE, "here") == c
        assert records.latest("push", "app", HERE, "there") is None
        assert records.latest("push", "app", HERE, "here", status="COMPLETE") is None
        later = records.ask(replace(APP, content="blake3:3"), 5)
        assert records.latest("build", "app", HERE) == later
        assert records.latest("build", "app", HERE, content="blake3:1") == a

    @pytest.mark.parametrize("number", [0, -1, 99, 1 << 31, 1 << 63, 10**30])
    def test_a_work_that_there_is_not_is_missing(self, records: Records, number: int) -> None:
        for ask in (records.get, records.log):
            with pytest.raises(SourceMissing, match=f"no work {number}"):
                ask(number)

    def test_names_that_no_image_can_have_find_nothing(self, records: Records) -> None:
        records.ask(APP, 1)
        for name in ("\0", "\udcff", "'; DROP TABLE work; --", "%", "?", "é" * 100_000):
            assert records.find(image=name) == records.find(name) == []
            assert records.latest("build", name, HERE) is None

    # --- doing

    @contextmanager
    def begun(self, records: Records) -> Iterator[Work]:
        """Begin the next work, and be alive meanwhile."""
        worker = new_worker()
        with records.lease(worker):
            work = records.claim(worker, 2, HERE)
            assert work is not None
            yield work

    def test_works_are_begun_in_the_order_in_which_they_were_asked_for(self, records: Records) -> None:
        asked = [records.ask(each, 1) for each in (APP, PUSH, OTHER)]
        with ExitStack() as stack:
            for work in asked:
                begun = stack.enter_context(self.begun(records))
                status = BEGUN[work.kind]
                assert begun == replace(work, status=status, worker=begun.worker, started=2) == records.get(work.id)
            assert records.claim(begun.worker, 3, HERE) is None
            assert records.waiting(HERE) == 0

    def test_works_of_two_sites_are_seen_by_all_and_begun_by_their_own_only(self, records: Records) -> None:
        theirs = records.ask(replace(APP, site=ELSEWHERE), 1)
        ours = records.ask(APP, 2)
        assert (theirs.site, ours.site) == (ELSEWHERE, HERE)
        assert records.find() == [ours, theirs]
        assert (records.waiting(HERE), records.waiting(ELSEWHERE), records.waiting(""), records.waiting()) == (1, 1, 0, 2)
        worker = new_worker()
        with records.lease(worker):
            assert records.claim(worker, 3, "") is None
            begun = records.claim(worker, 3, HERE)
            assert begun is not None
            assert begun.id == ours.id  # although it was asked for later
            assert records.claim(worker, 4, HERE) is None
            assert records.latest("build", "app", HERE) == begun
            assert records.latest("build", "app", ELSEWHERE) == theirs
            assert records.latest("build", "app", "") is None
            assert (records.waiting(HERE), records.waiting(ELSEWHERE)) == (0, 1)
            records.finish(ours.id, "d", "r", 5)
        assert records.ask(replace(APP, site=ELSEWHERE), 6) == theirs

    def test_a_dead_builder_of_another_site_is_buried_too(self, records: Records) -> None:
        records.ask(replace(APP, site=ELSEWHERE), 1)
        worker = new_worker()
        with records.lease(worker):
            assert records.claim(worker, 2, ELSEWHERE) is not None
        assert [each.status for each in records.bury(3)] == ["FAILED"]

    def test_how_far_it_is_is_told_never_falls_and_is_100_only_of_what_is_complete(self, records: Records) -> None:
        records.ask(APP, 1)
        with self.begun(records) as work:
            told = []
            for percent in (-5, 40, 20, 0, 99, 100, 1 << 70):
                assert records.progress(work.id, percent, f"STEP {percent}")
                now = records.get(work.id)
                told.append(now.percent)
                assert now.activity == f"STEP {percent}"
            assert told == [0, 40, 40, 40, 99, 99, 99]
            assert records.finish(work.id, "sha256:1", "here/app:1", 9)
        done = records.get(work.id)
        assert (done.status, done.percent, done.activity) == ("COMPLETE", 100, "")
        assert (done.digest, done.reference, done.finished) == ("sha256:1", "here/app:1", 9)

    @pytest.mark.parametrize("status", ["COMPLETE", "FAILED"])
    def test_an_end_never_changes(self, records: Records, status: str) -> None:
        records.ask(APP, 1)
        with self.begun(records) as work:
            records.say(work.id, b"said")
            end = (work.id, "d", "r", 3) if status == "COMPLETE" else (work.id, "e", 3)
            assert (records.finish if status == "COMPLETE" else records.fail)(*end)
            over = records.get(work.id)
            assert over.status == status
            assert not records.progress(work.id, 50, "more")
            assert not records.finish(work.id, "other", "other", 4)
            assert not records.fail(work.id, "other", 4)
            assert not records.say(work.id, b"more")
        assert records.bury(5) == []
        assert records.get(work.id) == over
        assert records.log(work.id) == b"said"

    def test_what_waits_is_neither_under_way_nor_complete_but_may_fail(self, records: Records) -> None:
        work = records.ask(APP, 1)
        assert not records.progress(work.id, 50, "more")
        assert not records.finish(work.id, "d", "r", 2)
        assert not records.say(work.id, b"more")
        assert records.get(work.id) == work
        assert records.fail(work.id, "its base has failed", 2)
        assert records.waiting(HERE) == 0

    def test_texts_that_are_no_text_are_kept_as_far_as_they_can_be_told(self, records: Records) -> None:
        records.ask(APP, 1)
        with self.begun(records) as work:
            records.progress(work.id, 1, "STEP a\0b\udcff")
            assert records.get(work.id).activity == "STEP a\ufffdb\ufffd"
            records.fail(work.id, "é" * 1_000_000, 3)
        error = records.get(work.id).error
        assert len(error) < 10_000
        assert error.endswith("é…")

    def test_each_work_is_begun_by_one_of_eight_processes(self, place: Place) -> None:
        with place.open() as records:
            asked = [records.ask(replace(APP, content=str(number)), number).id for number in range(40)]

        def claim(tell: int) -> None:
            worker = new_worker()
            with place.open() as records, records.lease(worker):
                while (work := records.claim(worker, 1, HERE)) is not None:
                    os.write(tell, b"%d " % work.id)
                    records.finish(work.id, "d", "r", 2)

        said = [[int(each) for each in one.split()] for one in told_by(8, claim)]
        assert sorted(number for one in said for number in one) == asked
        assert all(one == sorted(one) for one in said)

    @pytest.mark.parametrize("other", ["begins", "ends"])
    def test_a_work_that_one_stops_while_another_begins_or_ends_it_is_as_each_was_told(self, place: Place, other: str) -> None:
        with place.open() as records:
            asked = [records.ask(replace(APP, content=str(number)), 1).id for number in range(300)]
        roles, give = os.pipe()
        os.write(give, b"sd")

        def stop(records: Records, tell: int) -> None:
            os.write(tell, b"".join(b"%d " % number for number in asked if records.fail(number, "stopped", 3)))

        def do(records: Records, tell: int) -> None:
            worker = new_worker()
            with records.lease(worker):
                while (work := records.claim(worker, 2, HERE)) is not None:
                    if other == "ends" and records.finish(work.id, "d", "r", 4):
                        os.write(tell, b"-%d " % work.id)

        def race(tell: int) -> None:
            with place.open() as records:
                (stop if os.read(roles, 1) == b"s" else do)(records, tell)

        told = [int(each) for said in told_by(2, race) for each in said.split()]
        os.close(roles)
        os.close(give)
        with place.open() as records:
            now = {number: records.get(number) for number in asked}
        assert {number for number, work in now.items() if work.status == "FAILED"} == {number for number in told if number > 0}
        assert {number for number, work in now.items() if work.status == "COMPLETE"} == {-number for number in told if number < 0}
        assert sorted(map(abs, told)) == asked
        assert {(work.error, work.finished) for work in now.values()} <= {("stopped", 3), ("", 4)}

    # --- the log

    def test_the_log_is_read_from_anywhere(self, records: Records) -> None:
        records.ask(APP, 1)
        whole = random.Random(1).randbytes(700_000)
        with self.begun(records) as work:
            assert records.log(work.id) == b""
            for start, end in ((0, 1), (1, 1), (1, 300_000), (300_000, 700_000)):
                records.say(work.id, whole[start:end])
                assert records.log(work.id) == whole[:end]
        for offset, limit in ((0, 0), (5, 10), (262_143, 3), (299_999, 2), (699_999, 5), (700_000, 5), (10**30, 10**30)):
            assert records.log(work.id, offset, limit) == whole[offset : offset + limit]
        assert records.log(work.id, -5, 3) == whole[:3]
        assert records.log(work.id, 0, -1) == b""

    def test_a_log_that_grows_too_large_is_cut_with_a_word(self, records: Records) -> None:
        records.ask(APP, 1)
        data = b"0123456789abcdef" * 65536
        with self.begun(records) as work:
            for _ in range(LOG_LIMIT // len(data) - 1):
                assert records.say(work.id, data)
            assert records.say(work.id, data + b"too much")
            assert records.say(work.id, data)
        assert records.log(work.id, LOG_LIMIT - 3) == b"def" + LOG_ENDS
        assert records.log(work.id, 0, 10**9) == data * (LOG_LIMIT // len(data)) + LOG_ENDS

    @pytest.mark.parametrize("sizes", [(100,), (100, 1), (99, 1, 1, 1), (101,), (50, 500, 500)])
    def test_a_log_is_cut_at_its_bound_however_it_was_said(
        self, records: Records, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
    ) -> None:
        monkeypatch.setattr(records_sql, "LOG_LIMIT", 100)
        records.ask(APP, 1)
        with self.begun(records) as work:
            for size in sizes:
                records.say(work.id, b"x" * size)
        assert records.log(work.id) == b"x" * 100 + (LOG_ENDS if sum(sizes) > 100 else b"")

    # --- who is alive

    def test_who_holds_a_lease_is_alive_until_it_lets_go(self, records: Records, place: Place) -> None:
        worker = new_worker()
        assert not records.alive(worker)
        with records.lease(worker), place.open() as others:
            assert records.alive(worker)
            assert others.alive(worker)
            with pytest.raises(Unreachable), others.lease(worker):
                pass
            assert records.alive(worker)
        assert not records.alive(worker)

    @pytest.mark.parametrize("name", ["", "..", "../state.sqlite3", "slot-1", "x" * 32, "A" * 32, "0" * 33, "\0"])
    def test_a_name_that_is_none_of_a_lease_is_nobodys(self, records: Records, name: str) -> None:
        assert not records.alive(name)
        with pytest.raises(ValueError, match="no name"), records.lease(name):
            pass

    def test_what_is_under_way_is_left_to_who_is_alive(self, records: Records, place: Place) -> None:
        records.ask(APP, 1)
        with self.begun(records) as work, place.open() as others:
            assert others.bury(3) == records.bury(3) == []
            assert records.progress(work.id, 50, "STEP 2/4")

    def test_what_is_under_way_and_nobodys_is_failed_with_what_was_said_last(self, records: Records) -> None:
        for asked in (APP, OTHER, PUSH):
            records.ask(asked, 1)
        with self.begun(records) as silent, self.begun(records) as said:
            records.progress(said.id, 50, "STEP 4/6: RUN make")
            said = records.get(said.id)
        pending = records.find(status=("PENDING",))
        buried = records.bury(9)
        assert buried == [
            replace(silent, status="FAILED", error="the builder died before it began", finished=9),
            replace(said, status="FAILED", error="the builder died at STEP 4/6: RUN make", finished=9),
        ]
        assert buried == [records.get(silent.id), records.get(said.id)]
        assert records.bury(10) == []
        assert records.find(status=("PENDING",)) == pending

    def test_what_is_found_dead_by_eight_processes_at_once_is_buried_by_one(self, place: Place) -> None:
        worker = new_worker()
        with place.open() as records:
            numbers = [records.ask(replace(APP, content=str(number)), 1).id for number in range(5)]
            with records.lease(worker):
                while records.claim(worker, 2, HERE) is not None:
                    pass

        def bury(tell: int) -> None:
            with place.open() as records:
                os.write(tell, b"".join(b"%d " % work.id for work in records.bury(3)))

        said = b"".join(told_by(8, bury)).split()
        assert sorted(map(int, said)) == numbers

    def do(self, records: Records, reached: Callable[[str], object]) -> None:
        """Do all that a builder does, and tell before each next step that the one before is done."""
        worker = new_worker()
        with records.lease(worker):
            reached("lease")
            work = records.claim(worker, 2, HERE)
            assert work is not None
            reached("claim")
            for percent, said in ((30, "say"), (60, "say more")):
                records.progress(work.id, percent, f"STEP {percent}")
                reached("progress" if percent == 30 else "more")
                records.say(work.id, b"line\n")
                reached(said)
            records.finish(work.id, "d", "r", 3)
            reached("finish")

    @pytest.mark.parametrize("step", ["lease", "claim", "progress", "say", "more", "say more", "finish"])
    def test_a_builder_that_is_killed_is_buried_by_the_next_who_reads(self, place: Place, step: str) -> None:
        with place.open() as records:
            number = records.ask(APP, 1).id

        def build(stay: Callable[[], None]) -> None:
            with place.open() as records:
                self.do(records, lambda reached: stay() if reached == step else None)

        with killed(build), place.open() as records:
            assert records.bury(8) == []  # it is alive
        with place.open() as records:
            before = records.get(number)
            if step in ("lease", "finish"):
                assert records.bury(9) == []
                assert before.status == ("PENDING" if step == "lease" else "COMPLETE")
                return
            said, lines = {
                "claim": ("before it began", 0),
                "progress": ("at STEP 30", 0),
                "say": ("at STEP 30", 1),
                "more": ("at STEP 60", 1),
                "say more": ("at STEP 60", 2),
            }[step]
            error = f"the builder died {said}"
            assert place.buried(records, 9) == [replace(before, status="FAILED", error=error, finished=9)]
            assert records.log(number) == b"line\n" * lines
            assert records.ask(APP, 10).id > number

    def test_killed_at_whatever_moment_a_builder_leaves_nothing_under_way_and_its_log_whole(self, place: Place) -> None:
        moments = random.Random(4)
        with place.open() as records:
            for _ in range(12):
                number = records.ask(APP, 1, anew=True).id
                hear, tell = os.pipe()

                def build(hear: int = hear, tell: int = tell) -> None:
                    os.close(hear)
                    with place.open() as own:
                        os.write(tell, b"!")
                        self.do(own, lambda _: None)

                pid = forked(build)
                os.close(tell)
                assert os.read(hear, 1) == b"!"
                select.select([hear], [], [], moments.uniform(0, 0.03))  # or until it is done
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                os.close(hear)
                self.check_after(place, records, number)

    def check_after(self, place: Place, records: Records, number: int) -> None:
        found = records.get(number)
        if found.status not in ("PENDING", "COMPLETE"):
            place.buried(records)
        assert under_way(records) == []
        found = records.get(number)
        assert found.status in ("PENDING", "COMPLETE", "FAILED")
        assert (found.status == "FAILED") == found.error.startswith("the builder died ")
        assert (found.percent == 100) == (found.status == "COMPLETE")
        assert (b"line\n" * 2).startswith(records.log(number))
        assert found.status != "COMPLETE" or records.log(number) == b"line\n" * 2

    def test_a_program_that_a_killed_builder_has_begun_does_not_keep_it_alive(self, place: Place) -> None:
        with place.open() as records:
            records.ask(APP, 1)

        def build(stay: Callable[[], None]) -> None:
            worker = new_worker()
            with place.open() as records, records.lease(worker):
                records.claim(worker, 2, HERE)
                if not os.fork():
                    os.execvp("sleep", ["sleep", "2"])
                stay()

        with killed(build):
            pass
        with place.open() as records:
            assert len(place.buried(records)) == 1

    # --- closed, and compared

    def test_what_was_closed_is_unreachable(self, place: Place) -> None:
        records = place.open()
        records.close()
        records.close()
        calls: Mapping[str, Callable[[], object]] = {
            "ask": lambda: records.ask(APP, 1),
            "find": records.find,
            "say": lambda: records.say(1, b"x"),
            "bury": lambda: records.bury(1),
        }
        for call in calls.values():
            with pytest.raises(Unreachable, match="was closed"):
                call()

    # Each class that inherits it is another executor; nothing is kept that one would replay for another.
    @settings(
        max_examples=40,
        deadline=None,
        database=None,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
            HealthCheck.differing_executors,
        ],
    )
    @given(st.lists(st.one_of(*(st.tuples(st.just(name), *how) for name, how in (
        ("ask", (st.integers(0, 3), st.booleans())),
        ("claim", (st.integers(0, 2),)),
        ("progress", (st.integers(1, 5), st.integers(-20, 120))),
        ("finish", (st.integers(1, 5),)),
        ("fail", (st.integers(1, 5),)),
        ("say", (st.integers(1, 5), st.binary(max_size=40))),
        ("leave", (st.integers(0, 2),)),
        ("bury", ()),
    ))), max_size=40))  # fmt: skip
    def test_whatever_is_called_they_are_as_a_plain_list_of_works_is(self, place: Place, calls: list[tuple[Any, ...]]) -> None:
        place.empty()
        with place.open() as records, Plain(records) as plain:
            percents: dict[int, int] = {}
            for at, (name, *parameters) in enumerate(calls, 1):
                getattr(plain, name)(at, *parameters)
                found = records.find(limit=1000)
                assert found == plain.works[::-1]
                assert [records.log(work.id) for work in plain.works] == plain.logs
                assert records.waiting(HERE) == len([work for work in found if work.status == "PENDING"])
                for work in found:
                    assert work.percent >= percents.get(work.id, 0)
                    assert (work.percent == 100) == (work.status == "COMPLETE")
                    percents[work.id] = work.percent


class Plain:
    """A list of works that is changed as the contract has it, and records to which the same is done; both answer the same.

    Works are numbered from 1, in the order in which they were asked for.
    """

    KINDS: tuple[tuple[Kind, str], ...] = (("build", "a"), ("build", "b"), ("push", "a"), ("push", "b"))

    def __init__(self, records: Records) -> None:
        self.records = records
        self.works: list[Work] = []
        self.logs: list[bytes] = []
        self._alive = {new_worker(): ExitStack() for _ in range(3)}
        self._names = list(self._alive)

    def __enter__(self) -> Plain:
        for name, stack in self._alive.items():
            stack.enter_context(self.records.lease(name))
        return self

    def __exit__(self, *_: object) -> None:
        for stack in self._alive.values():
            stack.close()

    def ask(self, at: int, which: int, anew: bool) -> None:
        kind, image = self.KINDS[which]
        asked = Asked(kind, image, "oci", "c", HERE, "here" * (kind == "push"), which)
        same = [work for work in self.works if (work.kind, work.image) == (kind, image)]
        if not same or same[-1].status == "FAILED" or (anew and same[-1].status == "COMPLETE"):
            number = len(self.works) + 1
            made = Work(number, kind, image, "oci", "c", "PENDING", site=HERE, provider=asked.provider, build=which, asked=at)
            self.works.append(made)
            self.logs.append(b"")
            same = self.works[-1:]
        assert self.records.ask(asked, at, anew=anew) == same[-1]

    def claim(self, at: int, who: int) -> None:
        name = self._names[who]
        if name not in self._alive:
            return
        pending = [work for work in self.works if work.status == "PENDING"]
        expected = None
        if pending:
            first = pending[0]
            expected = replace(first, status=BEGUN[first.kind], worker=name, started=at)
            self.works[first.id - 1] = expected
        assert self.records.claim(name, at, HERE) == expected

    def progress(self, at: int, number: int, percent: int) -> None:
        def changed(work: Work) -> Work:
            return replace(work, percent=max(work.percent, min(percent, 99)), activity=f"at {at}")

        self._change(number, UNDER_WAY[1:], changed, self.records.progress(number, percent, f"at {at}"))

    def finish(self, at: int, number: int) -> None:
        def changed(work: Work) -> Work:
            return replace(work, status="COMPLETE", percent=100, activity="", digest="d", reference="r", finished=at)

        self._change(number, UNDER_WAY[1:], changed, self.records.finish(number, "d", "r", at))

    def fail(self, at: int, number: int) -> None:
        def changed(work: Work) -> Work:
            return replace(work, status="FAILED", error="e", finished=at)

        self._change(number, UNDER_WAY, changed, self.records.fail(number, "e", at))

    def say(self, at: int, number: int, data: bytes) -> None:
        def changed(work: Work) -> Work:
            self.logs[work.id - 1] += data
            return work

        self._change(number, UNDER_WAY[1:], changed, self.records.say(number, data))

    def _change(self, number: int, status: tuple[str, ...], changed: Callable[[Work], Work], told: bool) -> None:
        there = number <= len(self.works) and self.works[number - 1].status in status
        if there:
            self.works[number - 1] = changed(self.works[number - 1])
        assert told == there

    def leave(self, at: int, who: int) -> None:
        if stack := self._alive.pop(self._names[who], None):
            stack.close()

    def bury(self, at: int) -> None:
        buried = []
        for work in self.works:
            if work.status in UNDER_WAY[1:] and work.worker not in self._alive:
                said = f"at {work.activity}" if work.activity else "before it began"
                buried.append(replace(work, status="FAILED", error=f"the builder died {said}", finished=at))
                self.works[work.id - 1] = buried[-1]
        assert self.records.bury(at) == buried
