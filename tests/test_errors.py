"""Errors and exit statuses: each error has one, and whatever lists them says the same numbers."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
import pytest

from sidecar import errors
from sidecar.cli.datamon import command as wrap_datamon
from sidecar.cli.image import MISSING
from sidecar.cli.run import run
from sidecar.cli.wrap_application import HELP
from sidecar.errors import Fault, ParametersError, SidecarError
from sidecar.process import NotStarted

ROOT = Path(__file__).parent.parent
STATUSES = {
    errors.UsageError("said"): 2,
    ParametersError([Fault("here", "key", "wrong")]): 65,
    errors.ConfigurationError("said"): 78,
    errors.SourceMissing("said", ["a"]): 66,
    errors.Corrupt("said"): 65,
    errors.PeerFailed("said", "fuse"): 69,
    errors.NotSaved("said", "fuse"): 73,
    errors.Unreachable("said"): 74,
    errors.DeadlinePassed("said", "fuse"): 75,
    errors.OutcomeUnknown("said"): 125,
    errors.Interrupted(15, "said"): 143,
}
# The command's own endings besides what it returns itself: not executable, not found.
OF_THE_COMMAND = {errors.NOT_EXECUTABLE, errors.NOT_FOUND}
# Only where a container is begun again, or a directory is used again, can it be found that the command was begun before.
OF_A_LATER_LIFE = {errors.UNKNOWN}
# No error, but what was asked for: as diff says that there is a difference.
OF_AN_ANSWER = {MISSING}
OURS = {errors.USAGE, *STATUSES.values()} - {143}


def numbers(text: str) -> set[int]:
    """Return the exit statuses that `text` lists: each a number before what it means."""
    return {int(number) for number in re.findall(r"(?<![\d+-])\b(\d{1,3})\b(?=[ ,:;]|\s\|)", text)} - {0}


@pytest.mark.parametrize(("error", "status"), STATUSES.items(), ids=lambda value: type(value).__name__)
def test_each_error_ends_with_its_status(error: SidecarError, status: int) -> None:
    assert error.status == status


def test_every_error_is_in_the_table_above_and_in_the_tree_of_its_module() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SidecarError)}
    assert kinds - {SidecarError} == {type(error) for error in STATUSES}
    tree = dict(re.findall(r"[├└]── (\w+) (\d+)", errors.__doc__ or ""))
    assert tree.pop("Interrupted") == "128"  # and n
    assert {name: int(number) for name, number in tree.items()} == {
        type(error).__name__: status for error, status in STATUSES.items() if not isinstance(error, errors.Interrupted)
    }


def test_an_error_that_nobody_foresaw_has_a_status_of_no_other_meaning() -> None:
    assert SidecarError.status not in {*STATUSES.values(), *OF_THE_COMMAND, 0, 1}


def test_the_numbers_are_those_of_sysexits_and_of_the_shell() -> None:
    assert (errors.DATA, errors.NO_INPUT, errors.UNAVAILABLE) == (os.EX_DATAERR, os.EX_NOINPUT, os.EX_UNAVAILABLE)
    assert (errors.NOT_SAVED, errors.IO, errors.DEADLINE) == (os.EX_CANTCREAT, os.EX_IOERR, os.EX_TEMPFAIL)
    assert errors.CONFIG == os.EX_CONFIG
    assert (errors.NOT_EXECUTABLE, errors.NOT_FOUND) == (126, 127)


def test_what_could_not_be_begun_ends_as_in_a_shell() -> None:
    assert NotStarted(errors.NOT_FOUND, "said").status == 127
    assert NotStarted(errors.NOT_EXECUTABLE, "said").status == 126


def test_the_readme_lists_every_status_once_and_no_other() -> None:
    section = (ROOT / "README.md").read_text().partition("## Exit statuses")[2].partition("\n## ")[0]
    rows = [int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)]
    assert rows == sorted(OURS | OF_AN_ANSWER)
    assert {126, 127} <= {int(number) for number in re.findall(r"\d+", section)}


def test_the_help_of_wrap_application_lists_the_statuses_that_it_ends_with() -> None:
    text = HELP.partition("EXIT STATUS")[2].partition("EXAMPLE")[0]
    # Parameters and sources are its batteries' business.
    assert numbers(text) == (OURS | OF_THE_COMMAND) - {errors.DATA, errors.NO_INPUT}


@pytest.mark.parametrize("command", [run, wrap_datamon], ids=["sidecar run", "wrap_datamon"])
def test_the_help_of_what_runs_a_battery_lists_the_statuses_that_it_ends_with(command: click.Command) -> None:
    text = (command.epilog or "").partition("Exit status:")[2].partition("Example:")[0]
    assert numbers(text) - OF_A_LATER_LIFE == OURS - OF_A_LATER_LIFE


def test_a_parameters_error_says_each_fault_in_a_line_of_its_own_in_the_order_found() -> None:
    faults = [Fault("params.yaml:3", "bundles[0].srcRepo", "expected a name"), Fault("dm_fuse_opts", "", "is empty")]
    error = ParametersError(iter(faults))
    assert str(error).splitlines() == ["params.yaml:3: bundles[0].srcRepo: expected a name", "dm_fuse_opts: is empty"]
    assert list(error.faults) == faults


def test_faults_are_equal_that_say_the_same() -> None:
    assert Fault("a", "b", "c") == Fault("a", "b", "c") != Fault("a", "b", "d")
    assert len({Fault("a", "b", "c"), Fault("a", "b", "c")}) == 1
    assert Fault("a", "b", "c") != "a: b: c"
    assert repr(Fault("a", "b", "c")) == "Fault('a: b: c')"


def test_errors_carry_what_they_are_about() -> None:
    assert errors.SourceMissing("no label", iter(["latest", "daily"])).exist == ("latest", "daily")
    assert errors.PeerFailed("died", "fuse").culprit == errors.NotSaved("died", "fuse").culprit == "fuse"
    assert errors.DeadlinePassed("late", "postgres-db").culprit == "postgres-db"
    assert errors.Interrupted(2, "stopped").number == 2


def test_an_output_that_was_not_saved_is_the_fault_of_a_peer() -> None:
    assert issubclass(errors.NotSaved, errors.PeerFailed)
