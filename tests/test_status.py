"""`sidecar status`: what is told of a pod from its files alone, while it goes on, afterwards, and whatever stands there."""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import BIN, FUSE, HANG, SHELLS, Pod, Started, unshare, until
from rich.cells import cell_len
from rich.console import Console

from sidecar.cli.entry import run
from sidecar.cli.main import cli
from sidecar.cli.status import table, timeline
from sidecar.coordination import protocol
from sidecar.coordination.protocol import (
    APPLICATION,
    DONE,
    EXITED,
    FAILED,
    FOREVER,
    PREPARING,
    READY,
    RUNNING,
    SAVING,
    WAITING,
    Exit,
    Limits,
    Problem,
    Record,
    Seen,
    Since,
)
from sidecar.coordination.report import DIED, EXPECTED, SCRIPT, Participant, Phase, Report, Waits, explanation, look, report_of
from sidecar.coordination.signals import Directory, record_to_json
from sidecar.values import replace

SIDECAR = str(BIN / "sidecar")
T = 1_700_000_000.0  # when all began
NOW = T + 100.0
DB = protocol.battery_of_database("db")
BATTERIES = {b.name: b for b in (FUSE, DB)}
PEERS = tuple((b.name, b.kind) for b in (FUSE, DB))


# --- what is made of what was seen -------------------------------------------------------------------------------------


def application(*times: tuple[str, float], **said: Any) -> Record:
    """Return the record of an application that entered these states so many seconds after T."""
    said = {"peers": (("fuse", "fuse"),), "save": protocol.ON_SUCCESS, **said}
    return record(APPLICATION, APPLICATION, *times, **said)


def record(name: str, kind: str, *times: tuple[str, float], **said: Any) -> Record:
    entered = tuple((state, T + when) for state, when in times)
    return Record(name, kind, "0" * 16, **{"state": times[-1][0], "times": entered, "born": T, **said})


def fuse(*times: tuple[str, float], **said: Any) -> Record:
    return record("fuse", "fuse", *times, **said)


def living(said: Record, **signals: bool) -> Seen:
    return Seen(said, True, **signals)


def dead(said: Record, **signals: bool) -> Seen:
    return Seen(said, False, **signals)


def report(
    seen: Mapping[str, Seen],
    *,
    now: float = NOW,
    progress: Mapping[str, Mapping[str, Any]] | None = None,
    events: Sequence[Mapping[str, Any]] = (),
) -> Report:
    return report_of("/coord", now, {n: b for n, b in BATTERIES.items() if n in seen}, seen, progress or {}, events)


def event(by: str, when: float, what: str = "says mountdone", state: str = READY) -> dict[str, Any]:
    return {"time": T + when, "by": by, "state": state, "what": what}


def of(found: Report, name: str) -> Participant:
    participant = found.participant(name)
    assert participant is not None
    return participant


def said_of(found: Report, name: str) -> str:
    return explanation(of(found, name), found)


def test_who_never_appeared_is_waited_for_by_name_with_what_it_was_to_say_since_when_and_until_when() -> None:
    found = report({APPLICATION: living(application((WAITING, 10))), "fuse": Seen()})
    assert of(found, APPLICATION).waits == (Waits("fuse", "to appear and say mountdone", T + 10, T + 610),)
    assert said_of(found, APPLICATION) == (
        "waits for fuse to appear and say mountdone, for 1 min 30 s and at most 8 min 30 s more"
    )
    assert of(found, "fuse").standing == EXPECTED
    assert said_of(found, "fuse") == "has not appeared"


def test_who_is_waited_for_without_end_is_waited_for_at_most_not_at_all() -> None:
    found = report({APPLICATION: living(application((WAITING, 10))), "fuse": living(fuse((PREPARING, 20)))})
    assert of(found, APPLICATION).waits[0].until == FOREVER
    assert "at most" not in said_of(found, APPLICATION)


def test_the_last_sign_of_life_of_who_is_waited_for_is_told() -> None:
    seen = {APPLICATION: living(application((WAITING, 10))), "fuse": living(fuse((PREPARING, 20)))}
    assert said_of(report(seen), APPLICATION).endswith("; its last sign of life was 1 min 20 s ago")
    heard = report(seen, events=[event("fuse", 40)])
    assert said_of(heard, APPLICATION).endswith("; its last sign of life was 1 min 0 s ago")
    progress = {"fuse": {"time": T + 99, "what": "weather", "done": 1, "total": 2}}
    assert said_of(report(seen, progress=progress), APPLICATION).endswith("; its last sign of life was 1.0 s ago")


def test_all_who_are_waited_for_are_named() -> None:
    found = report(
        {
            APPLICATION: living(application((WAITING, 0), peers=PEERS)),
            "fuse": Seen(),
            DB.name: living(record(DB.name, "postgres", (PREPARING, 1))),
        }
    )
    assert [w.name for w in of(found, APPLICATION).waits] == ["fuse", "postgres-db"]
    assert said_of(found, APPLICATION).count("waits for") == 2


def test_a_battery_that_prepares_tells_how_far_it_is() -> None:
    progress = {"fuse": {"time": T + 30, "what": "weather", "done": 1_200_000, "total": 4_800_000}}
    found = report({"fuse": living(fuse((PREPARING, 20)))}, progress=progress)
    assert said_of(found, "fuse") == "weather: 1.2 MB of 4.8 MB (25 %)"
    assert of(found, "fuse").progress == progress["fuse"]


def test_a_battery_without_progress_tells_how_long_it_is_at_it() -> None:
    found = report({"fuse": living(fuse((PREPARING, 20), limits=Limits(ready=100.0)))})
    assert said_of(found, "fuse") == "to be ready for 1 min 20 s and at most 20.0 s more"


def test_a_battery_that_serves_tells_how_it_is_doing_and_whom_it_waits_for() -> None:
    progress = {"fuse": {"time": T + 50, "what": "serving 2 clients", "done": 1_200_000, "total": 0}}
    found = report({"fuse": living(fuse((PREPARING, 20), (READY, 40)))}, progress=progress)
    assert said_of(found, "fuse").startswith("serving 2 clients: 1.2 MB; waits for application")


@pytest.mark.parametrize(
    ("seen", "when"),
    [
        (living(fuse((PREPARING, 20), (READY, 40))), 30),
        (living(fuse((PREPARING, 20), (READY, 40), (SAVING, 60))), 30),
        (living(fuse((PREPARING, 0), (DONE, 60), saved=True)), 70),
        (Seen(), 50),
    ],
    ids=["of the phase before", "of an earlier phase", "of one that is done", "of nobody"],
)
def test_progress_that_is_not_of_the_present_phase_is_not_told(seen: Seen, when: float) -> None:
    progress = {"fuse": {"time": T + when, "what": "weather", "done": 1, "total": 2}}
    found = report({"fuse": seen}, progress=progress)
    assert of(found, "fuse").progress is None
    assert "weather" not in said_of(found, "fuse")


def test_an_application_that_runs_is_waited_for_by_its_batteries_and_by_itself() -> None:
    mine = application((WAITING, 0), (RUNNING, 40), started=True, limits=Limits(run=90.0))
    found = report({APPLICATION: living(mine), "fuse": living(fuse((PREPARING, 1), (READY, 2)), ready=True)})
    assert of(found, APPLICATION).standing == RUNNING
    assert said_of(found, APPLICATION) == "to end for 1 min 0 s and at most 30.0 s more"
    assert of(found, "fuse").waits == (Waits(APPLICATION, "to end", T + 2, FOREVER),)
    assert said_of(found, "fuse") == "waits for application to end, for 1 min 38 s; its last sign of life was 1 min 0 s ago"


def test_a_command_that_is_over_waits_for_the_save() -> None:
    mine = application((RUNNING, 0), (EXITED, 90), started=True, exit=Exit(0), limits=Limits(save=60.0))
    keeping = fuse((READY, 0), (SAVING, 91))
    found = report({APPLICATION: living(mine), "fuse": living(keeping, ready=True, save=True)})
    assert of(found, APPLICATION).waits == (Waits("fuse", "to say uploaddone", T + 90, T + 150),)
    assert said_of(found, APPLICATION) == (
        "the command ended with status 0; waits for fuse to say uploaddone, for 10.0 s and at most 50.0 s more; "
        "its last sign of life was 9.0 s ago"
    )
    assert said_of(found, "fuse") == "to be done saving for 9.0 s"


@pytest.mark.parametrize(
    ("ended", "status"), [(Exit(0), 0), (Exit(3), 3), (Exit(0, 15), 143), (Exit(0, 9, "it ran too long", 75), 75)]
)
def test_an_application_that_is_done_tells_the_status_that_it_ended_with(ended: Exit, status: int) -> None:
    found = report({APPLICATION: dead(application((RUNNING, 0), (EXITED, 1), (DONE, 2), started=True, exit=ended))})
    assert of(found, APPLICATION).standing == DONE
    assert said_of(found, APPLICATION) == f"the command ended with status {status}"


def test_a_battery_that_has_saved_tells_its_bundles() -> None:
    kept = {"repo": "results", "label": "daily", "bundle": "01k", "files": 2, "bytes": 36_900}
    unlabelled = {"repo": "other", "label": "", "bundle": "02k", "files": 1, "bytes": 12}
    payload = {"destinations": [kept, unlabelled]}
    found = report({"fuse": dead(fuse((SAVING, 0), (DONE, 1), saved=True, payload=payload), saved=True)})
    assert said_of(found, "fuse") == "saved: results@daily = 01k, 2 files, 36.9 kB; other = 02k, 1 file, 12 B"


def test_a_battery_of_another_kind_tells_the_beginning_of_what_it_says() -> None:
    found = report({"fuse": dead(fuse((SAVING, 0), (DONE, 1), saved=True, payload={"url": "x" * 1000}))})
    assert said_of(found, "fuse").startswith('saved: {"url": "xxx')
    assert len(said_of(found, "fuse")) < 250


def test_a_battery_that_kept_nothing_says_so() -> None:
    assert said_of(report({"fuse": dead(fuse((READY, 0), (DONE, 1)))}), "fuse") == "done; nothing was kept"


def test_a_failure_names_its_reason_its_status_and_for_programs_its_culprit() -> None:
    problem = Problem(69, "fuse", "fuse failed: repository 'weather' has no label 'newest'")
    found = report({APPLICATION: dead(application((WAITING, 0), (FAILED, 1), error=problem))})
    assert of(found, APPLICATION).standing == FAILED
    assert said_of(found, APPLICATION) == "fuse failed: repository 'weather' has no label 'newest' (exit status 69)"
    assert found.as_json()["participants"][0]["record"]["error"]["culprit"] == "fuse"


def test_a_failure_without_a_reason_is_one_all_the_same() -> None:
    assert said_of(report({"fuse": dead(fuse((FAILED, 0)))}), "fuse") == "failed"


def test_who_died_without_a_word_is_told_with_the_last_that_it_said_and_how_long_ago() -> None:
    found = report({"fuse": dead(fuse((PREPARING, 0), (READY, 40)))})
    assert of(found, "fuse").standing == DIED
    assert said_of(found, "fuse") == "died without a word; the last it said was 'ready', 1 min 0 s ago"
    assert of(found, "fuse").waits == ()


def test_who_died_before_it_said_anything_is_dead_too() -> None:
    found = report({"fuse": Seen(None, False)})
    assert of(found, "fuse").standing == DIED
    assert said_of(found, "fuse") == "died before it said anything"


def test_who_published_its_last_word_did_not_die_however_free_its_lease() -> None:
    assert of(report({"fuse": dead(fuse((DONE, 0)))}), "fuse").standing == DONE
    assert of(report({"fuse": dead(fuse((FAILED, 0)))}), "fuse").standing == FAILED


@pytest.mark.parametrize(
    ("signals", "said"),
    [
        ({"ready": True}, "a script; it has said mountdone"),
        ({"ready": True, "save": True}, "a script; it has said mountdone; it was told initupload"),
        ({"ready": True, "save": True, "saved": True}, "a script; it has said mountdone, uploaddone; it was told initupload"),
    ],
)
def test_a_script_is_known_by_the_signals_that_are_of_its_own_saying(signals: dict[str, bool], said: str) -> None:
    found = report({"fuse": Seen(None, None, **signals)})
    assert of(found, "fuse").standing == SCRIPT
    assert said_of(found, "fuse") == said


def test_a_signal_that_others_said_to_it_makes_nobody_appear() -> None:
    found = report({"fuse": Seen(None, None, save=True)})
    assert of(found, "fuse").standing == EXPECTED


def test_a_script_that_is_ready_is_waited_for_when_the_command_is_over() -> None:
    mine = application((RUNNING, 0), (EXITED, 90), started=True, exit=Exit(0))
    found = report({APPLICATION: living(mine), "fuse": Seen(None, None, ready=True, save=True)})
    assert [(w.name, w.what) for w in of(found, APPLICATION).waits] == [("fuse", "to say uploaddone")]


def test_a_battery_beside_a_script_waits_for_it_to_appear_and_knows_when_it_is_over() -> None:
    found = report({"fuse": living(fuse((PREPARING, 0), (READY, 1)), ready=True)})
    assert [(w.name, w.what, w.until) for w in of(found, "fuse").waits] == [(APPLICATION, "to appear", T + 600)]
    told = report({"fuse": living(fuse((PREPARING, 0), (READY, 1)), ready=True, save=True)})
    assert of(told, "fuse").waits == ()


def test_each_phase_lasts_until_the_next_and_the_present_one_until_now() -> None:
    times = ((PREPARING, 0.0), (READY, 1.5), (SAVING, 60.0))
    assert of(report({"fuse": living(fuse(*times))}), "fuse").phases == (
        Phase(PREPARING, T, 1.5),
        Phase(READY, T + 1.5, 58.5),
        Phase(SAVING, T + 60, 40.0),
    )


@pytest.mark.parametrize("seen", [dead(fuse((READY, 5), (DONE, 7))), dead(fuse((READY, 5), (SAVING, 7)))], ids=["done", "died"])
def test_the_last_phase_of_who_is_over_takes_no_time(seen: Seen) -> None:
    assert [phase.seconds for phase in of(report({"fuse": seen}), "fuse").phases] == [2.0, 0.0]


def test_several_lives_are_told_in_the_phases_of_all_and_the_number_of_the_last() -> None:
    mine = fuse((PREPARING, 0), (PREPARING, 30), (READY, 31), life=2, born=T + 30)
    found = report({"fuse": living(mine, ready=True)})
    assert [phase.state for phase in of(found, "fuse").phases] == [PREPARING, PREPARING, READY]
    assert "fuse (life 2)" in drawn(found)
    # A wait begins in this life, not in the first.
    assert of(found, "fuse").waits == (Waits(APPLICATION, "to appear", T + 31, T + 630),)


def test_a_clock_that_went_backwards_makes_no_phase_negative() -> None:
    found = report({"fuse": living(fuse((PREPARING, 50), (READY, 40)))}, now=T)
    assert all(phase.seconds >= 0 for phase in of(found, "fuse").phases)
    assert "-" not in said_of(found, "fuse")


@pytest.mark.parametrize(
    ("seen", "over"),
    [
        ({}, False),
        ({APPLICATION: dead(application((DONE, 1))), "fuse": dead(fuse((DONE, 1)))}, True),
        ({APPLICATION: dead(application((FAILED, 1))), "fuse": dead(fuse((FAILED, 1)))}, True),
        ({APPLICATION: dead(application((RUNNING, 1))), "fuse": dead(fuse((READY, 1)))}, True),
        ({APPLICATION: dead(application((DONE, 1))), "fuse": living(fuse((SAVING, 1)))}, False),
        ({APPLICATION: living(application((EXITED, 1))), "fuse": dead(fuse((DONE, 1)))}, False),
        ({APPLICATION: dead(application((FAILED, 1))), "fuse": Seen()}, True),
        ({APPLICATION: dead(application((DONE, 1))), "fuse": Seen(None, None, ready=True)}, True),
        ({APPLICATION: living(application((WAITING, 1))), "fuse": Seen()}, False),
        ({"fuse": dead(fuse((DONE, 1)))}, True),
        ({"fuse": Seen(None, None, ready=True, save=True)}, False),
        ({"fuse": Seen(None, None, ready=True, save=True, saved=True)}, True),
        ({"fuse": Seen(None, None, True, True, True), DB.name: Seen(None, None, True, True, False)}, False),
    ],
    ids=[
        "nobody", "done", "failed", "dead", "one saves", "one has not heard", "none came", "script left behind", "waiting",
        "beside a script", "a script waits", "a script has saved", "one script has saved",
    ],
)  # fmt: skip
def test_all_is_over_when_nobody_does_anything_any_more(seen: dict[str, Seen], over: bool) -> None:
    assert report(seen).over is over


APPLICATIONS = (
    application((WAITING, 1), peers=PEERS),
    application((WAITING, 1), (RUNNING, 2), started=True, peers=PEERS, limits=Limits(run=500.0)),
    application((RUNNING, 2), (EXITED, 50), started=True, exit=Exit(0), peers=PEERS, limits=Limits(save=500.0)),
    application((RUNNING, 2), (EXITED, 50), started=True, exit=Exit(1), peers=PEERS),
    application((WAITING, 1), (WAITING, 3), life=2, peers=PEERS, limits=Limits(appear=1000.0, rejoin=200.0)),
)
STANDINGS = (
    Seen(),
    Seen(None, True),
    Seen(None, False),
    Seen(None, None, ready=True),
    Seen(None, None, True, True, True),
    living(fuse((PREPARING, 5))),
    living(fuse((PREPARING, 5), (READY, 6))),
    living(fuse((READY, 5), (SAVING, 51))),
    dead(fuse((DONE, 60), saved=True)),
    dead(fuse((DONE, 60))),
    dead(fuse((FAILED, 60), error=Problem(66, "fuse", "no such label"))),
    dead(fuse((PREPARING, 5))),
)


@pytest.mark.parametrize("mine", APPLICATIONS, ids=lambda record: f"{record.state} {record.life}")
def test_an_application_waits_for_whom_the_protocol_itself_has_it_wait(mine: Record) -> None:
    since = Since(born=mine.born, phase=mine.last)
    for each in STANDINGS:
        for other in STANDINGS:
            its = replace(other, record=other.record and replace(other.record, name=DB.name, kind=DB.kind))
            seen = {APPLICATION: living(mine), "fuse": each, DB.name: its}
            step: Any = protocol.application_next(mine, seen, [FUSE, DB], now=NOW, since=since, limits=mine.limits, running=True)
            decided = [(w.name, w.what, w.since, w.until) for w in step.on] if isinstance(step, protocol.Wait) else []
            assert [(w.name, w.what, w.since, w.until) for w in of(report(seen), APPLICATION).waits] == decided


@pytest.mark.parametrize("mine", [s.record for s in STANDINGS if s.record], ids=lambda record: record.state)
def test_a_battery_waits_for_whom_the_protocol_itself_has_it_wait(mine: Record) -> None:
    for its in (Seen(), *map(living, APPLICATIONS), *map(dead, APPLICATIONS)):
        for save in (False, True):
            view = replace(its, save=save)
            step: Any = protocol.battery_next(
                mine, view, now=NOW, since=Since(born=mine.born, phase=mine.last), limits=mine.limits, working=True
            )
            decided = [(w.name, w.what, w.since, w.until) for w in step.on] if isinstance(step, protocol.Wait) else []
            found = report({"fuse": living(mine, save=save), **({APPLICATION: its} if its.record else {})})
            assert [(w.name, w.what, w.since, w.until) for w in of(found, "fuse").waits] == decided


KEYS = {"name", "kind", "standing", "alive", "last", "signals", "phases", "waits", "progress", "record"}


def test_the_keys_for_programs_are_always_there() -> None:
    found = report(
        {APPLICATION: living(application((WAITING, 0))), "fuse": living(fuse((PREPARING, 1))), DB.name: Seen()},
        progress={"fuse": {"time": T + 2, "what": "w", "done": 1, "total": 0}},
        events=[event("fuse", 1)],
    ).as_json()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    assert list(found) == ["directory", "time", "over", "participants", "events"]
    assert [p["name"] for p in found["participants"]] == [APPLICATION, "fuse", "postgres-db"]
    for participant in found["participants"]:
        assert participant.keys() == KEYS
        for phase in participant["phases"]:
            assert phase.keys() == {"state", "since", "seconds"}
        for wait in participant["waits"]:
            assert wait.keys() == {"for", "what", "since", "until"}
    assert found["participants"][0]["waits"][0]["until"] is None  # for ever
    assert found["participants"][1]["record"] == record_to_json(fuse((PREPARING, 1)))
    assert found["participants"][2]["last"] is None
    assert found["events"] == [event("fuse", 1)]


def drawn(found: Report, width: int = 120) -> str:
    """Return a report as it is drawn in so many columns."""
    console = Console(file=io.StringIO(), width=width, highlight=False, force_terminal=False)
    for each in (table(found), *timeline(found, width)):
        console.print(each)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


ANY_TEXT = st.text(max_size=300)
ANY_TIME = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**12), 10**12).map(float)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=10,
)
BUNDLES = st.fixed_dictionaries(dict.fromkeys(("repo", "label", "bundle", "files", "bytes"), ANY_JSON))
PAYLOADS = st.dictionaries(
    st.sampled_from(["sources", "destinations", "x"]), st.lists(BUNDLES, max_size=2) | ANY_JSON, max_size=3
)
STATES = st.sampled_from([WAITING, RUNNING, EXITED, PREPARING, READY, SAVING, DONE, FAILED]) | ANY_TEXT
ANY_LIMITS = st.builds(Limits, **dict.fromkeys(("appear", "ready", "run", "save", "rejoin", "grace"), ANY_TIME))


def any_record(name: str, kind: str) -> st.SearchStrategy[Record]:
    return st.builds(
        Record,
        st.just(name),
        st.just(kind),
        ANY_TEXT,
        life=st.integers(0, 1 << 31),
        state=STATES,
        started=st.booleans(),
        exit=st.none() | st.builds(Exit, st.integers(0, 255), st.integers(0, 64), ANY_TEXT, st.integers(0, 255)),
        error=st.none() | st.builds(Problem, st.integers(0, 255), ANY_TEXT, ANY_TEXT),
        save=st.sampled_from(["", *protocol.POLICIES]) | ANY_TEXT,
        saved=st.booleans(),
        times=st.lists(st.tuples(STATES, ANY_TIME), max_size=80).map(tuple),
        payload=PAYLOADS,
        born=ANY_TIME,
        limits=ANY_LIMITS,
        peers=st.lists(st.tuples(st.sampled_from(["fuse", "x"]), ANY_TEXT), max_size=3).map(tuple),
    )


def any_seen(name: str, kind: str) -> st.SearchStrategy[Seen]:
    three = st.sampled_from([None, True, False])
    return st.builds(Seen, st.none() | any_record(name, kind), three, st.booleans(), st.booleans(), st.booleans())


ANY_PROGRESS = st.fixed_dictionaries(
    {"time": st.floats(), "what": ANY_TEXT, "done": st.integers(), "total": st.integers(-(10**400), 10**400)}
)
ANY_EVENT = st.fixed_dictionaries({"time": st.floats(), "by": ANY_TEXT | st.just("fuse"), "state": ANY_TEXT, "what": ANY_TEXT})


def test_a_timeline_has_one_scale_and_says_how_long_each_state_lasted_in_all_lives() -> None:
    mine = application((WAITING, 0), (RUNNING, 25), (EXITED, 75), (DONE, 100), started=True, exit=Exit(0))
    its = fuse((PREPARING, 0), (READY, 10), (PREPARING, 20), (READY, 25), (SAVING, 75), (DONE, 100), saved=True, life=2)
    lines = [line.plain.rstrip() for line in timeline(report({APPLICATION: dead(mine), "fuse": dead(its)}), 160)]
    assert re.fullmatch(r" +\d\d:\d\d:\d\d\.000 +1 min 40 s", lines[1])
    bars = [line[13:73] for line in lines[2:]]
    assert bars == [
        "·" * 15 + "█" * 30 + "▒" * 15,
        "░" * 6 + "─" * 6 + "░" * 3 + "─" * 30 + "▓" * 15,
    ]
    assert [line[75:] for line in lines[2:]] == [
        "· waiting 25.0 s  █ running 50.0 s  ▒ exited 25.0 s",
        "░ preparing 15.0 s  ─ ready 1 min 0 s  ▓ saving 25.0 s",
    ]


def test_what_does_not_fit_beside_the_timeline_goes_on_below_and_nothing_is_left_out() -> None:
    mine = application((WAITING, 0), (RUNNING, 25), (EXITED, 75), (DONE, 100), started=True, exit=Exit(0))
    shown = drawn(report({APPLICATION: dead(mine)}), 80)
    assert max(map(len, shown.splitlines())) <= 80
    for said in ("· waiting 25.0 s", "█ running 50.0 s", "▒ exited 25.0 s"):
        assert said in shown


@settings(deadline=None, max_examples=150)
@given(
    any_seen(APPLICATION, APPLICATION),
    any_seen("fuse", "fuse"),
    ANY_PROGRESS,
    st.lists(ANY_EVENT, max_size=3),
    st.integers(20, 160),
)
def test_whatever_anybody_said_it_is_explained_in_bounds(
    mine: Seen, its: Seen, progress: dict[str, Any], events: list[dict[str, Any]], width: int
) -> None:
    found = report({APPLICATION: mine, "fuse": its}, progress={"fuse": progress}, events=events)
    for participant in found.participants:
        assert len(explanation(participant, found)) <= 1000
        assert len(participant.phases) <= 64
        assert len(participant.standing) <= 40
    json.dumps(found.as_json(), allow_nan=False)
    shown = drawn(found, width)
    assert all(c.isprintable() for c in shown.replace("\n", ""))
    assert max(map(cell_len, shown.splitlines())) <= width


# --- real processes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with Pod(tmp_path) as pod:
        yield pod


def wait_for(pod: Pod, name: str) -> str:
    """Return a shell command that ends once the test made the file `name`."""
    return f"until [ -f '{pod.file(name)}' ]; do sleep 0.01; done"


def status(pod: Pod, *options: str) -> str:
    """Return what `sidecar status` prints of the pod."""
    ran = subprocess.run(
        [SIDECAR, "status", str(pod.coord), *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANG
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    return ran.stdout


def as_json(pod: Pod) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(status(pod, "--json"))
    found["standings"] = {p["name"]: p["standing"] for p in found["participants"]}
    found["waits"] = {p["name"]: [(w["for"], w["what"]) for w in p["waits"]] for p in found["participants"]}
    return found


def rows(text: str) -> dict[str, list[str]]:
    """Return the columns of each row of the table, by participant: state, since, what."""
    lines = text.partition("\n\n")[0].splitlines()[1:]
    return {columns[0]: columns[1:] for line in lines if (columns := re.split(r"  +", line.strip()))}


def test_each_phase_of_a_handshake_is_explained_while_it_lasts(pod: Pod) -> None:
    wrapper = pod.wrap("-b", "fuse", "--", "sh", "-c", wait_for(pod, "command"))
    pod.hear_state(WAITING)
    found = as_json(pod)
    assert found["standings"] == {APPLICATION: WAITING, "fuse": EXPECTED}
    assert found["waits"][APPLICATION] == [("fuse", "to appear and say mountdone")]
    assert rows(status(pod))["fuse"] == ["expected", "has not appeared"]

    battery = pod.battery("fuse", wait_for(pod, "prepared"), wait_for(pod, "kept"))
    pod.hear_state(PREPARING, "fuse")
    found = as_json(pod)
    assert found["standings"] == {APPLICATION: WAITING, "fuse": PREPARING}
    assert found["waits"] == {APPLICATION: [("fuse", "to say mountdone")], "fuse": [("fuse", "to be ready")]}
    assert "waits for fuse to say mountdone, for " in " ".join(rows(status(pod))[APPLICATION])

    pod.file("prepared").touch()
    pod.hear_state(RUNNING)
    found = as_json(pod)
    assert found["standings"] == {APPLICATION: RUNNING, "fuse": READY}
    assert found["waits"] == {APPLICATION: [(APPLICATION, "to end")], "fuse": [(APPLICATION, "to end")]}
    assert rows(status(pod))["fuse"][0] == READY

    pod.file("command").touch()
    pod.hear_state(SAVING, "fuse")
    found = as_json(pod)
    assert found["standings"] == {APPLICATION: EXITED, "fuse": SAVING}
    assert found["waits"] == {APPLICATION: [("fuse", "to say uploaddone")], "fuse": [("fuse", "to be done saving")]}
    assert not found["over"]
    assert "the command ended with status 0; waits for fuse" in " ".join(rows(status(pod))[APPLICATION])

    pod.file("kept").touch()
    assert (wrapper.wait(), battery.wait()) == (0, 0)
    found = as_json(pod)
    assert found["standings"] == {APPLICATION: DONE, "fuse": DONE}
    assert found["waits"] == {APPLICATION: [], "fuse": []}
    assert found["over"]
    phases = {p["name"]: [phase["state"] for phase in p["phases"]] for p in found["participants"]}
    assert phases == {APPLICATION: [WAITING, RUNNING, EXITED, DONE], "fuse": [PREPARING, READY, SAVING, DONE]}
    assert {p["name"]: p["signals"] for p in found["participants"]}["fuse"] == ["mountdone", "initupload", "uploaddone"]
    text = status(pod, "--events")
    assert rows(text)[APPLICATION][-1] == "the command ended with status 0"
    log = re.findall(r"^\d\d:\d\d:\d\d\.\d{3}  (\w+) +(.*)", text, re.MULTILINE)
    assert log == [(e["by"], e["what"]) for e in found["events"]]
    said = [what for _, what in log if what.startswith("says")]
    assert said == ["says mountdone", "says initupload", "says uploaddone"]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_told_as_one_while_it_goes_on_and_afterwards(shell: str, pod: Pod) -> None:
    wrapper = pod.wrap("-b", "fuse", "--", "sh", "-c", wait_for(pod, "command"))
    battery = pod.shell_battery(shell, "fuse", ":", wait_for(pod, "kept"))
    pod.hear_state(RUNNING)
    assert rows(status(pod))["fuse"] == [SCRIPT, "a script; it has said mountdone"]
    pod.file("command").touch()
    pod.hear("initupload")
    assert rows(status(pod))["fuse"] == [SCRIPT, "a script; it has said mountdone; it was told initupload"]
    assert as_json(pod)["waits"][APPLICATION] == [("fuse", "to say uploaddone")]
    pod.file("kept").touch()
    assert (wrapper.wait(), battery.wait()) == (0, 0)
    assert "uploaddone" in rows(status(pod))["fuse"][-1]
    assert as_json(pod)["over"]


def test_two_scripts_are_over_once_the_battery_has_saved(pod: Pod) -> None:
    battery = pod.shell_battery("sh", "postgres-db", ":", wait_for(pod, "kept"))
    application = pod.shell_application("sh", ["postgres-db"], "true")
    pod.hear("db/initdbupload")
    assert (as_json(pod)["standings"], as_json(pod)["over"]) == ({"postgres-db": SCRIPT}, False)
    pod.file("kept").touch()
    assert (battery.wait(), application.wait()) == (0, 0)
    assert as_json(pod)["over"]


def test_a_battery_beside_a_script_is_explained_too(pod: Pod) -> None:
    battery = pod.battery("fuse")
    pod.hear_state(READY, "fuse")
    assert as_json(pod)["waits"] == {"fuse": [(APPLICATION, "to appear")]}
    application = pod.shell_application("sh", ["fuse"], "true")
    assert (battery.wait(), application.wait()) == (0, 0)
    assert as_json(pod)["over"]


def test_who_was_killed_is_told_to_have_died(pod: Pod) -> None:
    wrapper = pod.wrap("-b", "fuse", "--", "sh", "-c", wait_for(pod, "command"))
    battery = pod.battery("fuse")
    pod.hear_state(RUNNING)
    battery.kill()
    found = as_json(pod)
    assert found["standings"] == {APPLICATION: RUNNING, "fuse": DIED}
    assert not found["over"]
    assert rows(status(pod))["fuse"][-1].startswith("died without a word; the last it said was 'ready', ")
    wrapper.kill()
    found = as_json(pod)
    assert found["standings"] == {APPLICATION: DIED, "fuse": DIED}
    assert found["over"]
    assert [p["alive"] for p in found["participants"]] == [False, False]


def test_a_failure_is_told_with_its_reason(pod: Pod) -> None:
    battery = pod.battery("fuse", "exit 3")
    wrapper = pod.wrap("-b", "fuse", "--", "true")
    assert (battery.wait(), wrapper.wait()) == (69, 69)
    found = rows(status(pod))
    assert found["fuse"][0] == found[APPLICATION][0] == FAILED
    assert found[APPLICATION][-1].startswith("fuse failed: ")
    assert found[APPLICATION][-1].endswith("(exit status 69)")


def test_a_second_life_is_told_as_one(pod: Pod) -> None:
    first = pod.battery("fuse")
    pod.hear_state(READY, "fuse")
    first.kill()
    pod.battery("fuse")
    until(lambda: (record := pod.record("fuse")) is not None and (record.life, record.state) == (2, READY), "life 2 is ready")
    assert list(rows(status(pod))) == ["fuse (life 2)"]
    assert [p["state"] for p in as_json(pod)["participants"][0]["phases"]] == [PREPARING, READY, PREPARING, READY]


# --- watching ----------------------------------------------------------------------------------------------------------


def watch(pod: Pod, *options: str) -> Started:
    return pod.start(SIDECAR, "status", pod.coord, "--watch", *options)


def test_watching_prints_a_line_for_each_change_where_there_is_no_terminal_and_ends_when_all_is_over(pod: Pod) -> None:
    wrapper = pod.wrap("-b", "fuse", "--", "sh", "-c", wait_for(pod, "command"))
    watcher = watch(pod)
    until(lambda: "application waiting; fuse expected\n" in watcher.out, "the watcher tells who waits", pod)
    battery = pod.battery("fuse", ":", wait_for(pod, "kept"))
    until(lambda: "application running; fuse ready\n" in watcher.out, "the watcher tells that the command runs", pod)
    pod.file("command").touch()
    until(lambda: "application exited; fuse saving\n" in watcher.out, "the watcher tells who saves", pod)
    assert watcher.running
    pod.file("kept").touch()
    assert (watcher.wait(), wrapper.wait(), battery.wait()) == (0, 0, 0)
    lines = watcher.out.splitlines()
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}  [\w; -]+", line) for line in lines), lines
    said = [line.partition("  ")[2] for line in lines]
    assert all(before != after for before, after in itertools.pairwise(said)), "a line is a change"
    assert said[-1] == "application done; fuse done"
    assert watcher.err == ""


def test_watching_for_programs_prints_a_report_in_each_line_the_last_of_which_is_over(pod: Pod) -> None:
    pod.say("mountdone", "uploaddone")
    wrapper = pod.wrap("-b", "fuse", "--save", "never", "--", "sh", "-c", wait_for(pod, "command"))
    pod.hear_state(RUNNING)
    watcher = watch(pod, "--json")
    until(lambda: "\n" in watcher.out, "the watcher tells something", pod)
    pod.file("command").touch()
    assert (watcher.wait(), wrapper.wait()) == (0, 0)
    found = [json.loads(line) for line in watcher.out.splitlines()]
    assert [each["over"] for each in found] == [False] * (len(found) - 1) + [True]
    assert all(list(each) == ["directory", "time", "over", "participants", "events"] for each in found)
    assert found[-1].keys() == as_json(pod).keys() - {"standings", "waits"}


def test_watching_what_is_over_tells_it_once(pod: Pod) -> None:
    pod.say("mountdone")
    assert pod.wrap("-b", "fuse", "--save", "never", "--", "true").wait() == 0
    watcher = watch(pod)
    assert watcher.wait() == 0
    assert len(watcher.out.splitlines()) == 1


def test_watching_sees_somebody_die(pod: Pod) -> None:
    battery = pod.battery("fuse")
    pod.hear_state(READY, "fuse")
    watcher = watch(pod)
    until(lambda: "fuse ready\n" in watcher.out, "the watcher tells who is ready", pod)
    battery.kill()
    assert watcher.wait() == 0
    assert watcher.out.endswith("fuse died\n")


def test_watching_waits_for_the_first_to_appear_and_ends_with_the_directory(pod: Pod) -> None:
    watcher = watch(pod)
    until(lambda: "nobody has said anything\n" in watcher.out, "the watcher tells that nobody is there", pod)
    pod.say("mountdone")
    until(lambda: "fuse script\n" in watcher.out, "the watcher tells who appeared", pod)
    (pod.coord / "mountdone").unlink()
    pod.coord.rmdir()
    assert watcher.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_watcher_that_is_told_to_end_ends(number: int, pod: Pod) -> None:
    watcher = watch(pod)
    until(lambda: "\n" in watcher.out, "the watcher tells something", pod)
    watcher.send(number)
    assert watcher.wait() in (0, -number)
    assert "Traceback" not in watcher.err


def test_the_log_and_a_watch_are_not_to_be_had_together(pod: Pod) -> None:
    ended = pod.start(SIDECAR, "status", pod.coord, "--watch", "--events")
    assert ended.wait() == 2
    assert re.fullmatch(r"sidecar: [^\n]*--events[^\n]*\n", ended.err)


# --- where there is nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--json",), ("--watch",)], ids=" ".join)
@pytest.mark.parametrize("what", ["nothing", "a file"])
def test_what_is_no_directory_ends_with_74_and_one_line_that_names_it(what: str, options: tuple[str, ...], pod: Pod) -> None:
    path = pod.file("place")
    if what == "a file":
        path.touch()
    ended = pod.start(SIDECAR, "status", path, *options)
    assert ended.wait() == 74
    assert ended.out == ""
    assert re.fullmatch(rf"sidecar: [^\n]*{re.escape(str(path))}[^\n]*\n", ended.err)


def test_of_an_empty_directory_it_is_told_that_nobody_said_anything(pod: Pod) -> None:
    assert status(pod).strip() == f"nobody has said anything in {pod.coord}"
    found = json.loads(status(pod, "--json"))
    assert (found["participants"], found["events"], found["over"]) == ([], [], False)


# --- looking -----------------------------------------------------------------------------------------------------------


def everything_below(top: Path) -> dict[str, tuple[int, ...]]:
    """Return what the file system tells of each file below `top`, but for when it was last read."""
    found: dict[str, tuple[int, ...]] = {}
    for folder, folders, files in os.walk(top):
        for path in [folder, *(os.path.join(folder, name) for name in (*folders, *files))]:
            about = os.lstat(path)
            found[path] = (about.st_ino, about.st_mode, about.st_nlink, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    return found


def test_looking_changes_nothing(pod: Pod) -> None:
    battery = pod.battery("fuse")
    wrapper = pod.wrap("-b", "fuse", "-b", "plugin", "--", "true")
    until(lambda: len(pod.events()) >= 4 and pod.record("fuse") is not None and pod.record() is not None, "both said all", pod)
    pod.hear_state(READY, "fuse")
    pod.hear("mountdone")
    until(lambda: any(e["what"] == "says mountdone" for e in pod.events()), "it is in the log", pod)
    before = everything_below(pod.coord)
    for options in ((), ("--json",), ("--events",)):
        status(pod, *options)
    watcher = watch(pod, "--json")
    until(lambda: watcher.out.count("\n") >= 2, "the watcher looked twice", pod)
    assert everything_below(pod.coord) == before
    wrapper.kill()
    battery.kill()


def test_a_directory_that_is_mounted_read_only_can_be_looked_at(pod: Pod) -> None:
    pod.say("mountdone")
    assert pod.wrap("-b", "fuse", "--save", "never", "--", "true").wait() == 0
    script = (
        'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && ! touch "$1/x" 2>/dev/null || exit 99; '
        '"$2" status "$1" --json && "$2" status "$1" --events && "$2" status "$1" --watch'
    )
    ended = pod.start(*unshare("--mount"), "sh", "-c", script, "sh", pod.coord, SIDECAR)
    assert (ended.wait(), ended.err) == (0, "")
    first, _, rest = ended.out.partition("\n")
    assert json.loads(first)["over"]
    assert "the command ended with status 0" in rest


# --- what others planted -----------------------------------------------------------------------------------------------

CLEAR, TITLE, PASTE = "\x1b[2J", "\x1b]0;owned\x07", "\x9b31m\u202e\r\n\x00\x7f"
HOSTILE = CLEAR + TITLE + PASTE


def planted(**changes: Any) -> dict[str, Any]:
    said = record_to_json(fuse((PREPARING, 0), (READY, 1)))
    return {**said, **changes}


def nested(depth: int) -> bytes:
    return b'{"payload": ' + b"[" * depth + b"]" * depth + b"}"


def encoded(thing: Any) -> bytes:
    return json.dumps(thing).encode()


PARTICIPANT = ".sidecar/participants/fuse.json"
PROGRESS = ".sidecar/progress/fuse.json"
LOG = ".sidecar/events.jsonl"
HUGE_NUMBER = b"1" + b"0" * 400
PLANTED: dict[str, dict[str, bytes]] = {
    "escapes": {
        PARTICIPANT: encoded(
            planted(
                state=HOSTILE,
                kind=HOSTILE,
                incarnation=HOSTILE,
                times=[[HOSTILE, T], [HOSTILE, T + 1]],
                payload={"sources": [{"repo": HOSTILE, "label": HOSTILE, "bundle": HOSTILE, "files": HOSTILE, "bytes": 0}]},
            )
        )
    },
    "escapes in a failure": {
        PARTICIPANT: encoded(planted(state=FAILED, error={"status": 1, "culprit": HOSTILE, "reason": HOSTILE}))
    },
    "escapes in what was saved": {
        PARTICIPANT: encoded(
            planted(
                state=DONE,
                saved=True,
                payload={"destinations": [{"repo": HOSTILE, "label": HOSTILE, "bundle": HOSTILE, "files": 1, "bytes": 1}]},
            )
        )
    },
    "escapes in another payload": {PARTICIPANT: encoded(planted(state=DONE, saved=True, payload={HOSTILE: HOSTILE}))},
    "escapes in whom it waits for": {
        ".sidecar/participants/application.json": encoded(
            {**record_to_json(application((WAITING, 0))), "peers": [[HOSTILE, HOSTILE], [HOSTILE, "postgres"]]}
        )
    },
    "escapes in progress": {
        PARTICIPANT: encoded(planted(state=PREPARING)),
        PROGRESS: encoded({"time": T + 50, "what": HOSTILE, "done": 1, "total": 2}),
    },
    "escapes in the log": {LOG: encoded({"time": T, "by": HOSTILE, "state": HOSTILE, "what": HOSTILE}) + b"\n"},
    "escapes in names of files": {
        f".sidecar/leases/{HOSTILE}".replace("\0", ""): b"",
        f".sidecar/participants/{HOSTILE}.json".replace("\0", ""): encoded(planted(name=HOSTILE.replace("\0", ""))),
        f"{CLEAR}db/dbstarted": b"",
        "\udcff\udcfe/dbstarted": b"",
        ".sidecar/leases/\udcff": b"",
        "x" * 200 + "/dbstarted": b"",
    },
    "a record of another name and kind": {
        ".sidecar/participants/x.json": encoded(planted(name="x", kind="fuse")),
        ".sidecar/participants/postgres-.json": encoded(planted(name="postgres-", kind="postgres")),
        ".sidecar/participants/application.json": encoded(planted(name=APPLICATION, kind="fuse", peers=[[APPLICATION, "x"]])),
    },
    "a huge record": {PARTICIPANT: encoded(planted(payload={"x": "y" * 8_000_000}))},
    # Not by way of a million lists: it is made wherever tests are collected.
    "a million times": {
        PARTICIPANT: encoded(planted(times=[])).replace(b"[]", b"[%b]" % b", ".join([encoded([READY, T])] * 1_000_000), 1)
    },
    "as many times as a record can hold": {
        PARTICIPANT: encoded(planted(times=[["a", n] for n in range(20_000)])).replace(b", ", b","),
    },
    "long reasons": {PARTICIPANT: encoded(planted(state=FAILED, error={"status": 1, "culprit": "x", "reason": "w " * 100_000}))},
    "a long state": {PARTICIPANT: encoded(planted(state="s" * 200_000))},
    "many peers": {
        ".sidecar/participants/application.json": encoded(
            {**record_to_json(application((WAITING, 0))), "peers": [[f"p{n}", f"p{n}"] for n in range(1000)]}
        )
    },
    "many leases": {f".sidecar/leases/p{n}": b"" for n in range(500)},
    "no time": {PARTICIPANT: encoded(planted(times=[["a", "nan"], ["b", "inf"]], born="nan"))},
    "times without a date": {PARTICIPANT: encoded(planted(times=[["a", -1e308], ["b", 1e308], ["c", -1e18]], born=-1e308))},
    "times to come": {PARTICIPANT: encoded(planted(times=[[PREPARING, 4e9], [READY, 5e9]], born=4e9))},
    "limits without measure": {
        PARTICIPANT: encoded(planted(times=[[READY, -1e308]], limits=dict.fromkeys(Limits.__match_args__, -1e308))),
        ".sidecar/participants/application.json": encoded(
            {**record_to_json(application((WAITING, 0))), "limits": dict.fromkeys(Limits.__match_args__, 1e308)}
        ),
    },
    "progress without a time": {
        PARTICIPANT: encoded(planted(state=PREPARING)),
        PROGRESS: b'{"time": "nan", "what": "x", "done": 1, "total": 2}',
    },
    "progress without measure": {
        PARTICIPANT: encoded(planted(state=PREPARING)),
        PROGRESS: b'{"time": 1e300, "what": "x", "done": %b, "total": %b}' % (HUGE_NUMBER, HUGE_NUMBER),
    },
    "progress at a time without measure": {
        PARTICIPANT: encoded(planted(state=PREPARING)),
        PROGRESS: b'{"time": %b, "what": "x", "done": 1, "total": 2}' % HUGE_NUMBER,
    },
    "progress backwards": {
        PARTICIPANT: encoded(planted(state=PREPARING)),
        PROGRESS: encoded({"time": T + 50, "what": "x", "done": -5, "total": -1}),
    },
    "a log of anything": {
        LOG: b"\n".join(
            [
                b"",
                b"torn {",
                b"\xff\xfe",
                b"null",
                b"[]",
                b'{"time": "nan", "by": "fuse", "state": "a", "what": "b"}',
                b'{"time": "-inf", "by": "fuse", "state": "a", "what": "b"}',
                b'{"time": 1e300, "by": [], "state": {}, "what": null}',
                b'{"time": %b, "by": "fuse", "state": "a", "what": "b"}' % HUGE_NUMBER,
                b'{"time": -1e300, "by": "fuse", "state": "a", "what": "b"}',
                nested(200),
            ]
        )
    },
    "amounts without measure": {
        PARTICIPANT: encoded(
            planted(state=DONE, saved=True, payload={"sources": [{"repo": 1, "bundle": 2, "files": 3, "bytes": "huge"}]})
        ).replace(b'"huge"', HUGE_NUMBER)
    },
    "torn": {PARTICIPANT: encoded(planted())[:-20]},
    "garbage": {PARTICIPANT: bytes(range(256)) * 100},
    "nested": {PARTICIPANT: nested(50_000)},
    "empty": {PARTICIPANT: b"", PROGRESS: b"", LOG: b"", "mountdone": b""},
}  # fmt: skip


def plant(coord: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = os.path.join(coord, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)


def looked_at(coord: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `sidecar status` prints, having checked that it prints nothing that a terminal obeys."""
    shown = ""
    for options in ((), ("--events",)):
        monkeypatch.setattr(sys, "argv", ["sidecar", "status", str(coord), *options])
        assert run(cli, "sidecar") == 0
        shown, err = capsys.readouterr()
        assert err == ""
        assert all(c.isprintable() for c in shown.replace("\n", "")), shown
        assert len(shown) < 1_000_000
    monkeypatch.setattr(sys, "argv", ["sidecar", "status", str(coord), "--json"])
    assert run(cli, "sidecar") == 0
    out, _ = capsys.readouterr()
    assert json.loads(out, parse_constant=pytest.fail)["directory"] == str(coord)
    assert out.isascii()
    assert out.count("\n") == 1
    return shown


@pytest.mark.parametrize("alive", [False, True], ids=["of the dead", "of the living"])
@pytest.mark.parametrize("files", PLANTED.values(), ids=list(PLANTED))
def test_whatever_is_planted_is_looked_at_and_does_not_reach_the_terminal_raw(
    files: dict[str, bytes],
    alive: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with contextlib.ExitStack() as stack:
        if alive:
            directory = stack.enter_context(Directory(str(tmp_path)))
            directory.make(())
            for name in ("fuse", APPLICATION):
                stack.callback(os.close, directory.lease(name))
        plant(tmp_path, files)
        looked_at(tmp_path, monkeypatch, capsys)


WRONG: tuple[Any, ...] = (None, True, -1, 1e308, 1 << 70, "", "x", [], [[]], [["a"]], [[1, 2, 3]], [{}], {}, {"a": []})


@pytest.mark.parametrize("key", record_to_json(fuse((PREPARING, 0))))
def test_a_record_with_something_of_the_wrong_type_breaks_nothing(key: str, tmp_path: Path) -> None:
    with Directory(str(tmp_path)) as directory:
        directory.make(())
        lease = directory.lease("fuse")
        for state in (PREPARING, DONE, FAILED):
            for thing in WRONG:
                plant(tmp_path, {PARTICIPANT: encoded({**planted(state=state, saved=True), key: thing})})
                found = look(directory)
                json.dumps(found.as_json(), allow_nan=False)
                drawn(found)
        plant(tmp_path, {PARTICIPANT: encoded({k: v for k, v in planted().items() if k != key})})
        drawn(look(directory))
        os.close(lease)


@pytest.mark.parametrize("key", ["sources", "destinations", "repo", "label", "bundle", "files", "bytes"])
def test_a_payload_with_something_of_the_wrong_type_breaks_nothing(key: str) -> None:
    for thing in WRONG:
        bundle = {"repo": "r", "label": "", "bundle": "b", "files": 1, "bytes": 1, key: thing}
        payload = {"sources": [bundle], "destinations": [bundle], **({key: thing} if key.endswith("s") else {})}
        found = report({"fuse": dead(fuse((DONE, 0), saved=True, payload=payload))})
        assert said_of(found, "fuse").startswith("saved: ")


def test_what_is_no_regular_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("participants", "leases", "progress"):
        (tmp_path / ".sidecar" / folder).mkdir(parents=True)
    os.mkfifo(tmp_path / PARTICIPANT)
    os.mkfifo(tmp_path / ".sidecar/leases/fuse")
    os.mkfifo(tmp_path / PROGRESS)
    os.mkfifo(tmp_path / LOG)
    os.mkfifo(tmp_path / "mountdone")
    (tmp_path / ".sidecar/participants/a.json").mkdir()
    (tmp_path / ".sidecar/participants/b.json").symlink_to("/dev/zero")
    (tmp_path / ".sidecar/leases/c").symlink_to("nowhere")
    (tmp_path / "uploaddone").symlink_to("/etc/passwd")
    assert "died" not in looked_at(tmp_path, monkeypatch, capsys)


def test_our_folder_may_be_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mountdone").touch()
    for make in (lambda p: p.touch(), lambda p: p.symlink_to(tmp_path), lambda p: p.symlink_to(p.name), os.mkfifo):
        make(tmp_path / ".sidecar")
        assert "script" in looked_at(tmp_path, monkeypatch, capsys)
        (tmp_path / ".sidecar").unlink()


# --- on a terminal -----------------------------------------------------------------------------------------------------

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|4[0-7]|9[0-7]|10[0-7]|38|48)[;m]")
STYLE = re.compile(r"\x1b\[[0-9;]*m")


def on_a_terminal(*words: str | Path, columns: int = 80, **environment: str) -> str:
    """Return what a command writes to a terminal of so many columns."""
    given = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    environment = {**given, "TERM": "xterm-256color", **environment}
    child, terminal = pty.fork()
    if child == 0:
        try:
            os.execve(SIDECAR, ["sidecar", *map(str, words)], environment)
        finally:
            os._exit(127)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while part := os.read(terminal, 65536):
            shown += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, shown
    return shown.decode().replace("\r\n", "\n")


@pytest.fixture
def crowded(pod: Pod) -> Pod:
    """A pod that is over, of many databases with long names, one of which failed for a long reason."""
    with Directory(str(pod.coord)) as directory:
        directory.make(())
        names = [f"postgres-{'a_rather_long_name_of_a_database_' * 2}{n}" for n in range(5)]
        peers = tuple((name, "postgres") for name in names)
        directory.publish_record(
            application((WAITING, 0), (RUNNING, 2), (EXITED, 90), (DONE, 99), started=True, exit=Exit(0), peers=peers)
        )
        for name in names:
            directory.publish_record(record(name, "postgres", (PREPARING, 0), (READY, 1.5), (SAVING, 90), (DONE, 99), saved=True))
        reason = "the archive could not be written: 日本語のとても長い理由 " * 5 + "x" * 200
        directory.publish_record(fuse((PREPARING, 0), (READY, 1), (FAILED, 95), error=Problem(73, "fuse", reason), life=3))
    return pod


@pytest.mark.parametrize("columns", [80, 132])
def test_a_table_and_its_timeline_fit_the_terminal(columns: int, crowded: Pod) -> None:
    shown = STYLE.sub("", on_a_terminal("status", crowded.coord, "--events", columns=columns))
    assert "\x1b" not in shown
    assert max(map(cell_len, shown.splitlines())) <= columns
    # No name is so long that it hides the rest.
    assert re.search(r"^application +done +\d+ d \d+ h +the command ended", shown, re.MULTILINE)


def test_colours_are_used_on_a_terminal_and_not_where_nobody_wants_them(crowded: Pod) -> None:
    assert COLOUR.search(on_a_terminal("status", crowded.coord))
    assert not COLOUR.search(on_a_terminal("status", crowded.coord, NO_COLOR="1"))
    assert "\x1b" not in on_a_terminal("status", crowded.coord, TERM="dumb")
    assert "\x1b" not in status(crowded)


def test_what_is_watched_on_a_terminal_stays_there_in_its_last_state_with_the_timeline(crowded: Pod) -> None:
    shown = STYLE.sub("", on_a_terminal("status", crowded.coord, "--watch"))
    assert "PARTICIPANT" in shown
    assert "the command ended with" in shown
    assert "█ running" in shown
    assert shown.endswith("\n\x1b[?25h"), "what comes next begins a line of its own, and the cursor is there again"


def test_nothing_that_was_planted_reaches_a_terminal_raw(pod: Pod) -> None:
    for files in (PLANTED[name] for name in PLANTED if name.startswith("escapes")):
        plant(pod.coord, files)
        for options in ((), ("--events",)):
            shown = STYLE.sub("", on_a_terminal("status", pod.coord, *options))
            assert all(c.isprintable() for c in shown.replace("\n", ""))
