"""Which workers are begun for one call, and which of them answers: the rules, without any process."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from sidecar.functions.answer import MOST_WORKERS, Ran, Status
from sidecar.functions.hedge import Bucket, Hedge, Next

ALWAYS = lambda: True  # noqa: E731
NEVER = lambda: False  # noqa: E731


def ran(number: int, status: str = "ok", code: int | None = 0) -> Ran:
    return Ran(number, cast(Status, status), code if status in ("ok", "error") else None)


def failed(number: int) -> Ran:
    return Ran(number, "worker-failed", reason="because")


def test_all_are_begun_at_once_and_the_first_that_ends_well_wins() -> None:
    hedge = Hedge(2, 0, ALWAYS)
    assert hedge.next(0) == Next(begin=2)
    assert hedge.next(0) == Next()
    hedge.ended(ran(2))
    assert hedge.next(1) == Next(done=True, won=ran(2))


def test_with_a_delay_each_is_begun_that_long_after_the_one_before() -> None:
    hedge = Hedge(3, 0.5, ALWAYS)
    assert hedge.next(10) == Next(begin=1)
    assert hedge.next(10.25) == Next(until=10.5)
    assert hedge.next(10.5) == Next(begin=1)
    assert hedge.next(10.75) == Next(until=11)
    assert hedge.next(11.25) == Next(begin=1)
    assert hedge.next(12) == Next()


def test_who_fails_is_followed_at_once_although_there_is_a_delay() -> None:
    for worker in (failed(1), ran(1, "error", 3)):
        hedge = Hedge(2, 60, ALWAYS)
        assert hedge.next(0) == Next(begin=1)
        hedge.ended(worker)
        assert hedge.next(1) == Next(begin=1)


def test_a_program_that_fails_answers_only_when_nobody_may_do_better() -> None:
    hedge = Hedge(2, 0, ALWAYS)
    hedge.next(0)
    hedge.ended(ran(1, "error", 3))
    assert hedge.next(0) == Next()
    hedge.ended(ran(2))
    assert hedge.next(0).won == ran(2)


def test_two_programs_that_fail_alike_settle_it_and_nobody_tries_again() -> None:
    hedge = Hedge(3, 0, ALWAYS)
    hedge.next(0)
    hedge.ended(ran(1, "error", 3))
    hedge.ended(ran(2, "error", 4))
    assert hedge.next(0) == Next()
    hedge.ended(ran(3, "error", 4))
    assert hedge.next(0) == Next(done=True, won=ran(3, "error", 4))


def test_programs_that_fail_differently_are_answered_by_the_first() -> None:
    hedge = Hedge(2, 0, ALWAYS)
    hedge.next(0)
    hedge.ended(ran(2, "timeout"))
    hedge.ended(ran(1, "error", 1))
    assert hedge.next(0) == Next(done=True, won=ran(2, "timeout"))


def test_a_worker_that_failed_is_no_answer_and_the_other_is_the_fallback() -> None:
    hedge = Hedge(2, 0, ALWAYS)
    hedge.next(0)
    hedge.ended(failed(1))
    assert hedge.next(0) == Next()
    hedge.ended(ran(2, "error", 9))
    assert hedge.next(0).won == ran(2, "error", 9)


def test_when_all_have_failed_others_are_begun_but_no_more_than_five_in_all() -> None:
    hedge = Hedge(2, 0, ALWAYS)
    begun, number = [], 0
    while not (now := hedge.next(0)).done:
        begun.append(now.begin)
        for _ in range(now.begin):
            number += 1
            hedge.ended(failed(number))
    assert begun == [2, 2, 1]
    assert now.won is None
    assert [each.worker for each in hedge.ran] == [1, 2, 3, 4, 5]


def test_without_a_token_nobody_is_begun_beyond_the_first() -> None:
    hedge = Hedge(2, 0, NEVER)
    hedge.next(0)
    hedge.ended(failed(1))
    hedge.ended(failed(2))
    assert hedge.next(0) == Next(done=True)


def test_a_bucket_holds_so_many_tokens_and_fills_at_its_rate() -> None:
    bucket = Bucket(size=2, rate=0.5)
    assert [bucket.take(0) for _ in range(3)] == [True, True, False]
    assert [bucket.take(1), bucket.take(2), bucket.take(3)] == [False, True, False]
    assert [bucket.take(1000) for _ in range(3)] == [True, True, False]


@given(st.integers(1, MOST_WORKERS), st.floats(0, 1), st.data())
def test_every_call_ends_with_an_answer_if_any_program_ended_and_never_with_more_than_five_workers(
    workers: int, delay: float, data: st.DataObject
) -> None:
    hedge = Hedge(workers, delay, lambda: data.draw(st.booleans()))
    kinds = st.sampled_from(["ok", "error", "timeout", "worker-failed"])
    now, begun = 0.0, 0
    running: list[int] = []
    for _ in range(100):
        step = hedge.next(now)
        if step.done:
            break
        running += range(begun + 1, begun + step.begin + 1)
        begun += step.begin
        if step.begin:
            continue
        if step.until is not None and data.draw(st.booleans()):
            now = step.until
        else:
            assert running, "nobody runs, and nothing is to be done"
            number = running.pop(data.draw(st.integers(0, len(running) - 1)))
            status = data.draw(kinds)
            hedge.ended(failed(number) if status == "worker-failed" else ran(number, status, data.draw(st.integers(0, 2))))
    assert step.done
    assert begun <= MOST_WORKERS
    answers = [each for each in hedge.ran if each.answers]
    assert (step.won is not None) == bool(answers)
    if any(each.status == "ok" for each in answers):
        assert step.won is not None
        assert step.won.status == "ok" or sum(step.won.agrees(each) for each in answers) > 1
