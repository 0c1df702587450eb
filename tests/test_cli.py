"""The commands as they are typed: help, usage, completion, what becomes of output, and how errors end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from processes import BIN, Pod

from sidecar import __version__, errors
from sidecar.cli.battery import command as wrap_battery
from sidecar.cli.datamon import command as wrap_datamon
from sidecar.cli.entry import printable, run
from sidecar.cli.main import COMMANDS, cli
from sidecar.errors import Fault, ParametersError, SidecarError

HANG = 60.0  # seconds after which a process hangs; no measure of speed
SIDECAR = str(BIN / "sidecar")


class Ended(NamedTuple):
    """How a command ended: its exit status and what it printed."""

    status: int
    out: str
    err: str


def typed(*words: str | Path, **environment: str) -> Ended:
    """Return how a command ended, typed where there is no terminal."""
    ran = subprocess.run(
        [str(BIN / words[0]), *map(str, words[1:])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
        timeout=HANG,
    )
    return Ended(ran.returncode, ran.stdout, ran.stderr)


def commands(group: click.Command = cli, path: tuple[str, ...] = ("sidecar",)) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield each command of `sidecar` with the words that name it, groups before what they hold."""
    yield path, group
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from commands(command, (*path, name))


EVERY = dict([*commands(), (("wrap_battery",), wrap_battery), (("wrap_datamon",), wrap_datamon)])
LEAVES = {words: command for words, command in EVERY.items() if not isinstance(command, click.Group)}


every_command = pytest.mark.parametrize("words", EVERY, ids=" ".join)


# --- help --------------------------------------------------------------------------------------------------------------


def test_without_arguments_sidecar_shows_its_help_and_that_is_no_success() -> None:
    status, out, err = typed("sidecar")
    assert (status, out) == (errors.USAGE, "")
    assert err.startswith("Usage: sidecar [OPTIONS] COMMAND")
    assert all(name in err for name in COMMANDS)


@pytest.mark.parametrize("name", ["bundle", "repo", "label", "parameters"])
def test_a_group_without_a_command_shows_its_help_and_that_is_no_success(name: str) -> None:
    status, out, err = typed("sidecar", name)
    assert (status, out) == (errors.USAGE, "")
    assert err.startswith(f"Usage: sidecar {name} ")


@pytest.mark.parametrize("words", [*EVERY, ("wrap_application",)], ids=" ".join)
def test_every_command_has_help_on_stdout_and_that_is_a_success(words: tuple[str, ...]) -> None:
    status, out, err = typed(*words, "--help")
    assert (status, err) == (0, "")
    assert out.lower().startswith(f"usage: {' '.join(words)} ")


@pytest.mark.parametrize("words", [("sidecar",), ("wrap_application",), ("wrap_datamon",)], ids=" ".join)
def test_help_has_a_short_name_too(words: tuple[str, ...]) -> None:
    assert typed(*words, "-h") == typed(*words, "--help")


@pytest.mark.parametrize("words", [("sidecar",), *LEAVES, ("wrap_application",)], ids=" ".join)
def test_help_ends_in_an_example_that_can_be_copied_as_it_stands(words: tuple[str, ...]) -> None:
    text = typed(*words, "--help", COLUMNS="80").out
    example = re.split(r"^ *example:?", text, flags=re.IGNORECASE | re.MULTILINE)[-1]
    assert example != text, f"no example:\n{text}"
    # The last thing said; but for the Python call that does the same. One command, over several lines where each ends in \.
    lines = [line.strip() for line in example.partition("\n\n")[0].strip().splitlines()]
    assert all(line.endswith("\\") for line in lines[:-1]), lines
    assert " ".join(words) in lines[0], lines
    rest = example.partition("\n\n")[2].strip()
    assert not rest or rest.startswith("Python: "), rest


@pytest.mark.parametrize(
    "words", [words for words in LEAVES if words[1:2] not in (("parameters",), ("completion",))], ids=" ".join
)
def test_help_lists_the_exit_statuses(words: tuple[str, ...]) -> None:
    text = typed(*words, "--help").out.partition("Exit status:")[2]
    assert text
    named = {int(number) for number in re.findall(r"(?<![\w@:/.-])\d{1,3}(?![\w/.-])", text.partition("Example:")[0])}
    assert named <= {
        0,
        1,
        errors.NOT_EXECUTABLE,
        errors.NOT_FOUND,
        *(kind.status for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SidecarError)),
    }
    assert named & {66, 73, 74, 65, 78}


@every_command
def test_every_option_and_every_command_says_what_it_does(words: tuple[str, ...]) -> None:
    command = EVERY[words]
    assert command.help
    silent = [each.opts[0] for each in command.params if isinstance(each, click.Option) and not each.help and not each.hidden]
    assert not silent


def test_commands_are_listed_in_the_order_in_which_one_comes_to_need_them() -> None:
    listed = re.findall(r"^  (\w+)  ", typed("sidecar", "--help").out.partition("Commands:")[2], re.MULTILINE)
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("program", ["sidecar", "wrap_application", "wrap_datamon"])
def test_the_version_is_that_of_the_package(program: str) -> None:
    assert typed(program, "--version") == (0, f"{program} {__version__}\n", "")


# --- usage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("sidecar", "nonsense"), "nonsense"),
        (("sidecar", "--nonsense"), "--nonsense"),
        (("sidecar", "bundle", "nonsense"), "nonsense"),
        (("sidecar", "status"), "DIRECTORY"),
        (("sidecar", "status", "--nonsense", "."), "--nonsense"),
        (("sidecar", "status", ".", "and more"), "and more"),
        (("sidecar", "completion", "tcsh"), "tcsh"),
        (("sidecar", "run"), "CMD"),
        (("sidecar", "run", "--", "true"), "--source"),
        (("sidecar", "run", "--dest", "nowhere", "--", "true"), "DIR:REPO"),
        (("sidecar", "bundle", "upload", "."), "--repo"),
        (("sidecar", "bundle", "show", "a@b@c"), "a@b@c"),
        (("sidecar", "parameters", "fuse", "no such file"), "no such file"),
        (("wrap_datamon", "--nonsense"), "--nonsense"),
        (("wrap_datamon", "--grace", "soon"), "soon"),
        (("wrap_application", "--nonsense"), "--nonsense"),
        (("wrap_application", "-b", "fuse", "--", "true"), "-c DIR"),
        (("wrap_application", "-c", ".", "-b", "fuse"), "CMD"),
        (("wrap_application", "-c", ".", "-b", "fuse", "--grace", "soon", "true"), "soon"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_not_of_its_form_ends_with_2_and_one_line_that_tells_what_was_expected(
    words: tuple[str, ...], expected: str
) -> None:
    status, out, err = typed(*words)
    assert (status, out) == (errors.USAGE, "")
    assert re.fullmatch(rf"{words[0]}: [^\n]*{re.escape(expected)}[^\n]*\n", err), err


def test_what_is_repeated_of_a_command_line_is_no_command_to_the_terminal() -> None:
    status, _, err = typed("sidecar", "x\x1b[2Jy\nz")
    assert status == errors.USAGE
    assert err.count("\n") == 1
    assert "\x1b" not in err


# --- errors ------------------------------------------------------------------------------------------------------------


def ending(error: BaseException, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ended:
    """Return how a command ends that raises `error`."""

    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["sidecar"])
    return Ended(run(failing, "sidecar"), *capsys.readouterr())


@pytest.mark.parametrize(
    "error",
    [
        errors.UsageError("say what"),
        errors.ConfigurationError("say what"),
        errors.SourceMissing("say what"),
        errors.Corrupt("say what"),
        errors.PeerFailed("say what"),
        errors.NotSaved("say what"),
        errors.Unreachable("say what"),
        errors.DeadlinePassed("say what"),
        errors.OutcomeUnknown("say what"),
        errors.Interrupted(15, "say what"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_ends_with_its_status_and_one_line(
    error: SidecarError, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ending(error, capsys, monkeypatch) == (error.status, "", "sidecar: say what\n")


def test_malformed_parameters_end_with_65_and_a_line_for_each_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ParametersError([Fault("a.yaml:1", "bundles", "expected a list"), Fault("a.yaml:2", "", "expected a mapping")])
    status, out, err = ending(error, capsys, monkeypatch)
    assert (status, out) == (65, "")
    assert err.splitlines() == ["sidecar: a.yaml:1: bundles: expected a list", "sidecar: a.yaml:2: expected a mapping"]


def test_what_an_error_quotes_stays_in_its_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, err = ending(errors.Corrupt("a\nb\x1b[2J\x07\u202e\x9b"), capsys, monkeypatch)
    assert status == 65
    assert err == "sidecar: a b\ufffd[2J\ufffd\ufffd\ufffd\n"


def test_an_interrupted_command_ends_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ending(KeyboardInterrupt(), capsys, monkeypatch).status == 130


def test_a_fault_of_ours_is_not_hidden(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        ending(ZeroDivisionError(), capsys, monkeypatch)
    with pytest.raises(FileNotFoundError):
        ending(FileNotFoundError(2, "no such file", "x"), capsys, monkeypatch)


@pytest.mark.parametrize("text", ["plain", "Käse · 日本", ""])
def test_what_can_be_printed_is_printed_as_it_is(text: str) -> None:
    assert printable(text) == text


# --- where the output goes ---------------------------------------------------------------------------------------------

# Each prints something on stdout.
PRINTING = [
    ("--help",),
    ("--version",),
    ("completion", "bash"),
    ("status", "{coord}"),
    ("status", "{coord}", "--json"),
    ("status", "{coord}", "--events"),
    ("status", "{coord}", "--watch"),
    ("status", "{coord}", "--watch", "--json"),
    ("repo", "list", "--json"),
]
printing = pytest.mark.parametrize("words", PRINTING, ids=" ".join)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    """A pod that is over."""
    with Pod(tmp_path) as pod:
        pod.say("mountdone")
        assert pod.wrap("-b", "fuse", "--save", "never", "--", "true").wait() == 0
        yield pod


def printed_to(stdout: str, words: tuple[str, ...], pod: Pod) -> Ended:
    """Return how `sidecar WORDS` ends whose stdout is what the shell's redirection `stdout` makes of it; out is empty."""
    command = [SIDECAR, *(word.replace("{coord}", str(pod.coord)) for word in words)]
    ran = subprocess.run(
        ["sh", "-c", f'"$@" {stdout}', "sh", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "SIDECAR_STORE": str(pod.folder / "store")},
        timeout=HANG,
    )
    return Ended(ran.returncode, ran.stdout, ran.stderr)


@printing
def test_a_reader_that_goes_away_ends_a_command_as_the_signal_would_and_nothing_is_said(words: tuple[str, ...], pod: Pod) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        ran = subprocess.run(
            [SIDECAR, *(word.replace("{coord}", str(pod.coord)) for word in words)],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "SIDECAR_STORE": str(pod.folder / "store")},
            timeout=HANG,
        )
    finally:
        os.close(theirs)
    assert (ran.returncode, ran.stderr) == (141, "")


@printing
def test_a_full_disk_ends_a_command_with_74_and_one_line(words: tuple[str, ...], pod: Pod) -> None:
    assert printed_to(">/dev/full", words, pod) == (
        errors.IO,
        "",
        "sidecar: the output cannot be written: No space left on device\n",
    )


@printing
def test_a_closed_stdout_is_nobody_who_listens_and_no_failure(words: tuple[str, ...], pod: Pod) -> None:
    assert printed_to(">&-", words, pod) == (0, "", "")


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("words", "status"),
    [((), 2), (("nonsense",), 2), (("status", "{coord}/nothing"), 74), (("status", "{coord}"), 0)],
    ids=["help", "usage", "error", "success"],
)
def test_a_reason_that_nobody_can_hear_leaves_the_status_as_it_is(
    words: tuple[str, ...], status: int, stderr: str, pod: Pod
) -> None:
    assert printed_to(stderr, words, pod).status == status


# --- completion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_accepts_its_completion_script(shell: str, tmp_path: Path) -> None:
    ended = typed("sidecar", "completion", shell)
    assert (ended.status, ended.err) == (0, "")
    script = tmp_path / "completion"
    script.write_text(ended.out)
    read = subprocess.run([shell, "-n", script], capture_output=True, text=True, timeout=HANG)
    assert (read.returncode, read.stderr) == (0, "")


def test_the_script_of_fish_asks_for_fish_and_registers_sidecar() -> None:
    status, out, err = typed("sidecar", "completion", "fish")
    assert (status, err) == (0, "")
    assert "_SIDECAR_COMPLETE=fish_complete" in out
    assert re.search(r"^complete .*--command sidecar", out, re.MULTILINE)
    assert len(re.findall(r"^(?:function|end)\b", out, re.MULTILINE)) == 2


def completed(words: str, shell: str = "bash") -> list[str]:
    """Return what completes the last of `words`, as the completion script asks for it."""
    ended = typed("sidecar", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1), _SIDECAR_COMPLETE=f"{shell}_complete")
    assert (ended.status, ended.err) == (0, "")
    return ended.out.split("\n")


def test_the_name_of_a_command_is_completed() -> None:
    assert completed("sidecar sta") == ["plain,status", ""]
    assert [line.removeprefix("plain,") for line in completed("sidecar ") if line] == list(COMMANDS)
    assert completed("sidecar bundle up") == ["plain,upload", ""]


def test_options_and_choices_are_completed() -> None:
    assert completed("sidecar status --w") == ["plain,--watch", ""]
    assert completed("sidecar completion z") == ["plain,zsh", ""]


def test_zsh_is_told_what_a_command_does() -> None:
    kind, name, said = completed("sidecar sta", "zsh")[:3]
    assert (kind, name) == ("plain", "status")
    assert said != "_"


def test_bash_completes_what_is_typed(tmp_path: Path) -> None:
    """The whole of it: bash reads the script and calls the function that it registers."""
    script = tmp_path / "script"
    script.write_text(
        'eval "$(sidecar completion bash)"\n'
        "complete -p sidecar\n"
        'COMP_WORDS=(sidecar sta); COMP_CWORD=1; _sidecar_completion sidecar sta sidecar; echo "${COMPREPLY[@]}"\n'
    )
    ran = subprocess.run(
        ["bash", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        timeout=HANG,
    )
    assert ran.stderr == ""
    registered, reply = ran.stdout.splitlines()
    assert "_sidecar_completion" in registered
    assert reply == "status"
