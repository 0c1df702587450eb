"""The directory of a database: who may have it, what is remembered of it, and what is never touched."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from sidecar.batteries.postgres.programs import Account
from sidecar.batteries.postgres.stage import BEGUN, MAKING, OVER, STOPPED, Stage
from sidecar.errors import ConfigurationError, Corrupt, Unreachable

ME = Account(os.geteuid(), os.getegid())


def owned(path: Path, session: str = "one") -> Stage:
    stage = Stage(str(path / "db"), session)
    stage.own(ME)
    return stage


def left(path: Path, step: str, session: str = "one", **notes: Any) -> None:
    """Leave a directory as a life does that was killed after it had reached a step."""
    stage = owned(path, session)
    os.mkdir(stage.data)
    Path(stage.data, "row").write_text("precious")
    stage.reach(step, **notes)
    stage.release()


def rows(path: Path) -> list[Path]:
    return list(path.glob("db/row"))


def test_a_new_directory_is_made_and_nothing_was_done_in_it(tmp_path: Path) -> None:
    stage = owned(tmp_path / "deep" / "er")
    assert (stage.step, stage.notes, stage.exists) == (MAKING, {}, False)


def test_the_private_socket_is_in_a_directory_that_nobody_else_may_enter(tmp_path: Path) -> None:
    stage = owned(tmp_path)
    assert stat.S_IMODE(os.stat(stage.socket(5432)).st_mode) == 0o700


def test_a_second_battery_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    first = owned(tmp_path)
    with pytest.raises(ConfigurationError, match="belongs to another battery that runs"):
        owned(tmp_path)
    first.release()
    owned(tmp_path).release()


@pytest.mark.parametrize("step", [MAKING, BEGUN, STOPPED, OVER])
def test_a_later_life_of_the_same_session_finds_the_step_and_the_cluster(tmp_path: Path, step: str) -> None:
    left(tmp_path, step, bundle="b")
    stage = owned(tmp_path)
    assert (stage.step, stage.notes) == (step, {"bundle": "b"})
    assert rows(tmp_path)


@pytest.mark.parametrize("step", [BEGUN, STOPPED])
def test_what_another_session_did_not_archive_is_refused_and_not_touched(tmp_path: Path, step: str) -> None:
    left(tmp_path, step, kept=True)
    with pytest.raises(ConfigurationError, match=r"another session that .*was not archived; move it"):
        owned(tmp_path, "two")
    assert rows(tmp_path)
    owned(tmp_path, "one").release()


@pytest.mark.parametrize(
    ("step", "notes"), [(MAKING, {}), (OVER, {}), (BEGUN, {"kept": False})], ids=["never used", "archived", "not to be kept"]
)
def test_what_another_session_does_not_need_any_more_gives_way(tmp_path: Path, step: str, notes: dict[str, Any]) -> None:
    left(tmp_path, step, **notes)
    stage = owned(tmp_path, "two")
    assert (stage.step, stage.notes, stage.exists) == (MAKING, {}, False)


def test_a_cluster_without_a_journal_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    with pytest.raises(ConfigurationError, match="not this battery's"):
        owned(tmp_path)
    assert (tmp_path / "db").exists()


def test_a_journal_that_cannot_be_read_is_no_licence_to_begin_anew(tmp_path: Path) -> None:
    left(tmp_path, BEGUN)
    (tmp_path / "db.sidecar" / "journal.json").write_text('{"step": "begun"')
    with pytest.raises(Corrupt, match="cannot be read"):
        owned(tmp_path)
    assert rows(tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", "null", '"x"', '{"step": "nonsense", "session": "one", "notes": {}}', '{"step": "begun"}']
)
def test_a_journal_that_is_none_of_ours_is_told(tmp_path: Path, text: str) -> None:
    left(tmp_path, BEGUN)
    (tmp_path / "db.sidecar" / "journal.json").write_text(text)
    with pytest.raises(Corrupt):
        owned(tmp_path)


def test_a_cluster_that_was_in_use_and_is_gone_is_told(tmp_path: Path) -> None:
    left(tmp_path, BEGUN)
    (tmp_path / "db" / "row").unlink()
    (tmp_path / "db").rmdir()
    with pytest.raises(Corrupt, match="is gone"):
        owned(tmp_path)


def test_links_in_the_place_of_our_files_are_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    left(tmp_path, OVER)
    for name in ("journal.json", "secret"):
        path = tmp_path / "db.sidecar" / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    stage = Stage(str(tmp_path / "db"), "one")
    with pytest.raises(Corrupt):
        stage.own(ME)
    assert stage.read("secret") == ""
    stage.write("secret", "new", 0o600)
    assert target.read_text() == "precious"


def test_the_journal_is_whole_whoever_reads_it(tmp_path: Path) -> None:
    stage = owned(tmp_path)
    stage.reach(BEGUN, a=1)
    stage.note(b=2)
    journal = json.loads((tmp_path / "db.sidecar" / "journal.json").read_text())
    assert journal == {"session": "one", "step": BEGUN, "notes": {"a": 1, "b": 2}}
    assert stat.S_IMODE(os.stat(tmp_path / "db.sidecar" / "journal.json").st_mode) == 0o600


def test_the_reserve_is_there_once_and_is_given_back_once(tmp_path: Path) -> None:
    stage = owned(tmp_path)
    stage.keep_ballast(1 << 20)
    stage.keep_ballast(1 << 20)
    assert os.stat(f"{stage.home}/ballast").st_blocks * 512 >= 1 << 20
    assert stage.drop_ballast()
    assert not stage.drop_ballast()


def test_no_reserve_is_taken_from_a_disk_that_has_little_left(tmp_path: Path) -> None:
    stage = owned(tmp_path)
    stage.keep_ballast(1 << 60)
    assert not stage.drop_ballast()


def test_a_directory_that_is_too_deep_for_a_socket_is_told(tmp_path: Path) -> None:
    stage = owned(tmp_path / ("x" * 90))
    with pytest.raises(ConfigurationError, match="choose a shorter dataDir"):
        stage.socket(5432)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run as somebody else")
def test_a_way_that_is_closed_to_the_servers_account_is_told(tmp_path: Path) -> None:
    stage = Stage(str(tmp_path / "db"), "one")
    with pytest.raises(ConfigurationError, match=r"may not enter .*choose another dataDir"):
        stage.own(Account(65532, 65532))


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unreachable, match="another dataDir"):
        owned(tmp_path / "file")
