"""The commands `sidecar bundle`, `sidecar repo` and `sidecar label`, as they are typed: what they print, and how they end."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from processes import make_long_to_save

from sidecar.cli.bundle import bundle, label, repo
from sidecar.cli.entry import run
from sidecar.cli.main import COMMANDS, cli
from sidecar.cli.progress import Progress
from sidecar.cli.store import store as store_group
from sidecar.cli.store_option import store_url
from sidecar.errors import ConfigurationError
from sidecar.store import Store
from sidecar.testing import read_tree

SIDECAR = str(Path(sys.executable).parent / "sidecar")
HANG = 60.0  # seconds after which a process hangs; no measure of speed
ID = re.compile("[0-9a-z]{26}")


class Ended(NamedTuple):
    """How a command ended: its exit status and what it printed."""

    status: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def sidecar(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command `sidecar` with a store of its own."""
    monkeypatch.setenv("SIDECAR_STORE", f"file://{tmp_path}/store")

    def typed(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["sidecar", *map(str, arguments)])
        return Ended(run(cli, "sidecar"), *capsys.readouterr())

    return typed


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "a").write_text("hello")
    (top / "link").symlink_to("a")
    os.utime(top / "a", ns=(0, 1_767_322_800_123_000_000))
    (top / "a").chmod(0o640)
    return top


def uploaded(sidecar: Command, tree: Path, *arguments: object) -> str:
    """Upload and return the id."""
    ended = sidecar("bundle", "upload", tree, "--repo", "weather", *arguments)
    assert ended.status == 0, ended.err
    return ended.out.strip().partition("@")[2]


# --- bundle ----------------------------------------------------------------------------------------------------------


def test_upload_prints_how_to_name_the_bundle_and_nothing_else(sidecar: Command, tree: Path, store: Store) -> None:
    ended = sidecar("bundle", "upload", tree, "--repo", "weather", "--label", "latest", "--message", "é", "--contributor", "me")
    saved = store.resolve("weather", label="latest")
    assert ended == Ended(0, f"weather@{saved.id}\n", "1 file, 1 directory, 1 link, 5 B, 5 B of them new\n")
    assert (saved.message, saved.contributor, saved.label) == ("é", "me", "latest")


def test_upload_prints_the_record_for_programs(sidecar: Command, tree: Path, store: Store) -> None:
    ended = sidecar("bundle", "upload", tree, "--repo", "weather", "--json")
    assert json.loads(ended.out) == store.resolve("weather").as_json()


def test_what_cannot_be_kept_ends_with_73_or_is_left_out_and_counted(sidecar: Command, tree: Path, store: Store) -> None:
    os.mkfifo(tree / "pipe")
    ended = sidecar("bundle", "upload", tree, "--repo", "weather")
    assert (ended.status, ended.out) == (73, "")
    assert ended.err == "sidecar: 'pipe' is a socket, pipe or device, which no bundle can hold\n"
    ended = sidecar("bundle", "upload", tree, "--repo", "weather", "--skip-errors")
    assert ended.status == 0
    assert ended.err.endswith("; 1 left out\n")


@pytest.mark.parametrize("name", ["latest", "by-id", "bare"])
def test_download_takes_a_label_an_id_or_the_latest(name: str, sidecar: Command, tree: Path, tmp_path: Path) -> None:
    id_ = uploaded(sidecar, tree, "--label", "latest")
    reference = {"latest": "weather@latest", "by-id": f"weather@{id_}", "bare": "weather"}[name]
    ended = sidecar("bundle", "download", reference, tmp_path / "new" / "in")
    assert (ended.status, ended.out) == (0, f"weather@{id_}\n")
    assert read_tree(str(tmp_path / "new" / "in")) == read_tree(str(tree))


def test_a_label_that_does_not_exist_ends_with_66_and_the_labels_that_do(sidecar: Command, tree: Path, tmp_path: Path) -> None:
    for each in ("latest", "published"):
        uploaded(sidecar, tree, "--label", each)
    for command in (("download", "weather@lastest", tmp_path / "in"), ("show", "weather@lastest"), ("verify", "weather@lastest")):
        ended = sidecar("bundle", *command)
        assert (ended.status, ended.out) == (66, "")
        assert ended.err.startswith("sidecar: ")
        assert ended.err.endswith("repository 'weather' has no label 'lastest'; labels there: latest, published\n")
    assert not (tmp_path / "in").exists()


def test_a_repository_or_bundle_that_does_not_exist_ends_with_66_and_those_that_do(sidecar: Command, tree: Path) -> None:
    assert sidecar("bundle", "list", "weather").status == 66
    id_ = uploaded(sidecar, tree)
    assert sidecar("bundle", "list", "whether").err.endswith("repositories there: weather\n")
    assert sidecar("bundle", "show", f"weather@{'0' * 26}").err.endswith(f"bundles there: {id_}\n")


def test_list_shows_each_bundle_with_the_labels_that_point_at_it(sidecar: Command, tree: Path) -> None:
    first = uploaded(sidecar, tree, "--label", "old", "--message", "one")
    second = uploaded(sidecar, tree, "--label", "latest", "--message", "two")
    sidecar("label", "set", "weather", "published", f"weather@{second}")
    lines = sidecar("bundle", "list", "weather").out.splitlines()
    assert [line.split() for line in lines] == [
        [first, lines[0].split()[1], "1", "5", "B", "old", "one"],
        [second, lines[1].split()[1], "1", "5", "B", "latest,published", "two"],
    ]
    listed = json.loads(sidecar("bundle", "list", "weather", "--json").out)
    assert [(each["id"], each["labels"]) for each in listed] == [(first, ["old"]), (second, ["latest", "published"])]
    sidecar("repo", "create", "empty")
    assert sidecar("bundle", "list", "empty") == Ended(0, "", "")


def test_show_tells_what_is_known(sidecar: Command, tree: Path, store: Store) -> None:
    id_ = uploaded(sidecar, tree, "--message", "nightly run")
    shown = dict(line.split(maxsplit=1) for line in sidecar("bundle", "show", "weather").out.splitlines() if " " in line)
    assert (shown["id"], shown["message"], shown["bytes"]) == (id_, "nightly run", "5")
    assert json.loads(sidecar("bundle", "show", "weather", "--json").out) == store.resolve("weather").as_json()


def test_files_are_listed_as_ls_does(sidecar: Command, tree: Path) -> None:
    uploaded(sidecar, tree)
    lines = sidecar("bundle", "files", "weather").out.splitlines()
    assert lines[0] == "-rw-r-----  5  2026-01-02T03:00:00.123Z  a"
    assert re.fullmatch(r"lrwxrwxrwx     \S+  link -> a", lines[1])
    assert re.fullmatch(r"drwx\S+     \S+  sub", lines[2])
    entries = json.loads(sidecar("bundle", "files", "weather", "--json").out)
    assert entries[0] == {"path": "a", "type": "file", "mode": 0o640, "mtime": 1_767_322_800_123_000_000, "size": 5}
    assert entries[1] | {"mtime": 0} == {"path": "link", "type": "link", "mtime": 0, "target": "a"}
    assert set(entries[2]) == {"path", "type", "mode", "mtime"}


def test_what_others_wrote_cannot_steer_the_terminal(sidecar: Command, tree: Path) -> None:
    (tree / "\x1b[31mred\n").touch()
    (Path(os.fsdecode(os.fsencode(tree) + b"/\xff"))).touch()
    uploaded(sidecar, tree, "--message", "\x1b]0;title\x07\nsecond line")
    for command in (("list", "weather"), ("show", "weather"), ("files", "weather")):
        shown = sidecar("bundle", *command).out
        assert not set(shown) & {"\x1b", "\x07"}
    paths = [each["path"] for each in json.loads(sidecar("bundle", "files", "weather", "--json").out)]
    assert paths[0] == "\x1b[31mred\n"
    assert paths[-1] == "%FF"


def test_verify_says_that_a_bundle_is_whole_or_what_is_damaged(sidecar: Command, tree: Path, tmp_path: Path) -> None:
    id_ = uploaded(sidecar, tree)
    assert sidecar("bundle", "verify", "weather").out == f"weather@{id_} is whole: 1 file, 1 directory, 1 link, 5 B\n"
    (object_,) = (tmp_path / "store" / "objects").glob("*/*")
    object_.chmod(0o644)
    object_.write_text("jello")
    ended = sidecar("bundle", "verify", "weather")
    assert ended.status == 65
    assert object_.name in ended.err
    assert "'a'" in ended.err


# --- repo and label --------------------------------------------------------------------------------------------------


def test_a_repository_is_made_once_and_listed(sidecar: Command) -> None:
    assert sidecar("repo", "create", "weather", "--description", "daily").out == "weather\n"
    assert sidecar("repo", "create", "weather").status == 78
    assert sidecar("repo", "create", "weather", "--exist-ok").status == 0
    assert sidecar("repo", "list").out.split()[::2] == ["weather", "daily"]
    (listed,) = json.loads(sidecar("repo", "list", "--json").out)
    assert (listed["name"], listed["description"], set(listed)) == ("weather", "daily", {"name", "description", "time"})


def test_a_label_is_moved_and_every_move_is_kept(sidecar: Command, tree: Path) -> None:
    first, second = uploaded(sidecar, tree), uploaded(sidecar, tree)
    for reference in ("weather", f"weather@{first}", "weather@best"):
        assert sidecar("label", "set", "weather", "best", reference, "--contributor", "me").status == 0
    assert sidecar("label", "list", "weather").out == f"best  {first}\n"
    assert json.loads(sidecar("label", "list", "weather", "--json").out) == {"best": first}
    history = [line.split() for line in sidecar("label", "history", "weather", "best").out.splitlines()]
    assert [(number, id_, by) for number, _, id_, by in history] == [("1", second, "me"), ("2", first, "me")]
    moves = json.loads(sidecar("label", "history", "weather", "best", "--json").out)
    assert [move["bundle"] for move in moves] == [second, first]
    assert set(moves[0]) == {"repo", "label", "number", "bundle", "contributor", "time"}


def test_a_label_cannot_point_into_another_repository(sidecar: Command, tree: Path) -> None:
    uploaded(sidecar, tree)
    ended = sidecar("label", "set", "other", "best", "weather")
    assert ended.status == 2
    assert "weather" in ended.err


def test_one_repository_and_one_label_are_shown(sidecar: Command, tree: Path) -> None:
    id_ = uploaded(sidecar, tree, "--label", "best", "--contributor", "me")
    shown = dict(line.rsplit(maxsplit=1) for line in sidecar("repo", "show", "weather").out.splitlines() if "  " in line)
    assert (shown["bundles"], shown["latest"], shown["label best"]) == ("1", id_, id_)
    told = json.loads(sidecar("repo", "show", "weather", "--json").out)
    assert (told["name"], told["bundles"], told["latest"], told["labels"]) == ("weather", 1, id_, {"best": id_})
    assert json.loads(sidecar("label", "show", "weather", "best", "--json").out)["bundle"] == id_
    assert id_ in sidecar("label", "show", "weather", "best").out
    assert sidecar("repo", "show", "whether").status == sidecar("label", "show", "weather", "worst").status == 66


# --- parts and differences -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "populated"),
    [
        (("--files", "deep/er"), {"deep", "deep/er", "deep/er/b.csv", "deep/er/c"}),
        (("--name-filter", r"\.csv$"), {"a.csv", "deep", "deep/er", "deep/er/b.csv"}),
        (("--files", "/deep/", "--files", "a.csv", "--name-filter", "csv"), {"a.csv", "deep", "deep/er", "deep/er/b.csv"}),
        (("--files", "nothing"), set()),
    ],
)
def test_download_takes_only_the_files_that_are_asked_for(
    options: tuple[str, ...], populated: set[str], sidecar: Command, tmp_path: Path
) -> None:
    (tmp_path / "tree" / "deep" / "er").mkdir(parents=True)
    for name in ("a.csv", "deep/er/b.csv", "deep/er/c", "deep/d"):
        (tmp_path / "tree" / name).write_text(name)
    uploaded(sidecar, tmp_path / "tree")
    assert sidecar("bundle", "download", "weather", tmp_path / "in", *options).status == 0
    assert set(read_tree(str(tmp_path / "in"))) == populated


def test_download_leaves_out_what_is_damaged_where_errors_are_to_be_skipped(sidecar: Command, tree: Path, tmp_path: Path) -> None:
    uploaded(sidecar, tree)
    (object_,) = (tmp_path / "store" / "objects").glob("*/*")
    object_.chmod(0o644)
    object_.write_text("jello")
    assert sidecar("bundle", "download", "weather", tmp_path / "in").status == 65
    ended = sidecar("bundle", "download", "weather", tmp_path / "in", "--skip-errors")
    assert ended.status == 0
    assert ended.err.endswith("; 1 left out\n")
    ended = sidecar("bundle", "download", "weather", tmp_path / "in", "--skip-errors", "--json")
    assert json.loads(ended.out)["left_out"] == ["a"]


def test_a_diff_is_a_line_for_each_path_that_differs(sidecar: Command, tree: Path) -> None:
    first = uploaded(sidecar, tree)
    (tree / "new").touch()
    (tree / "a").write_text("other")
    uploaded(sidecar, tree)
    assert sidecar("bundle", "diff", f"weather@{first}", "weather").out == "changed  a\nadded    new\n"
    told = json.loads(sidecar("bundle", "diff", f"weather@{first}", "weather", "--json").out)
    assert [(each["what"], each["path"]) for each in told] == [("changed", "a"), ("added", "new")]
    assert told[1]["before"] is None


# --- store -----------------------------------------------------------------------------------------------------------


def as_typed(arguments: list[object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ended:
    monkeypatch.setattr(sys, "argv", ["store", *map(str, arguments)])
    return Ended(run(store_group, "sidecar"), *capsys.readouterr())


def test_a_store_is_checked_and_pruned(
    sidecar: Command, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded(sidecar, tree)
    (tmp_path / "store/objects/ab").mkdir(exist_ok=True)
    (tmp_path / "store/objects/ab" / ("ab" + "0" * 62)).write_bytes(b"garbage")
    ended = as_typed(["check"], capsys, monkeypatch)
    assert ended.status == 0
    assert ended.out.splitlines() == [
        "1 repository, 1 bundle, 2 objects, 12 B",
        "no bundle refers to 1 object, 7 B; see sidecar store prune",
    ]
    assert as_typed(["prune", "--dry-run"], capsys, monkeypatch).out == "would remove 1 object, 7 B\n"
    assert json.loads(as_typed(["prune", "--json"], capsys, monkeypatch).out) == {
        "objects": 1,
        "manifests": 0,
        "bytes": 7,
        "dry_run": False,
    }
    assert as_typed(["prune"], capsys, monkeypatch).out == "removed 0 B\n"
    (object_,) = (tmp_path / "store" / "objects").glob("*/*")
    object_.chmod(0o644)
    object_.write_text("jello")
    assert as_typed(["check"], capsys, monkeypatch).status == 0
    ended = as_typed(["check", "--read-data", "--json"], capsys, monkeypatch)
    assert ended.status == 65
    assert "'a'" in ended.err
    assert json.loads(ended.out)["faults"]


# --- how it is typed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("bundle", "show", "weather@"),
        ("bundle", "show", "@latest"),
        ("bundle", "show", "weather@a@b"),
        ("bundle", "show", "../../etc"),
        ("bundle", "upload", ".", "--repo", "a/b"),
        ("bundle", "upload", ".", "--repo", "a", "--label", "0" * 26),
        ("bundle", "upload", "."),
        ("bundle", "nonsense"),
        ("repo", "create", ".hidden"),
        ("label", "set", "weather", "a/b", "weather"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_one_line_that_says_what_was_expected(
    arguments: tuple[str, ...], sidecar: Command, tmp_path: Path
) -> None:
    ended = sidecar(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("sidecar: ")
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "store").exists()


def commands(group: click.Group) -> list[tuple[str, click.Command]]:
    return [(f"{group.name} {name}", command) for name, command in group.commands.items()]


GROUPS = [group for group in (bundle, repo, label, store_group) if group.name in COMMANDS]


@pytest.mark.parametrize(("name", "command"), [each for group in GROUPS for each in commands(group)])
def test_the_help_of_each_command_ends_in_an_example_that_is_of_its_form(
    name: str, command: click.Command, sidecar: Command
) -> None:
    ended = sidecar(*name.split(), "--help")
    assert ended.status == 0
    assert "--store URL" in ended.out
    exit_statuses, example = (line.strip() for line in ended.out.splitlines()[-2:])
    assert exit_statuses.startswith("Exit status: 0; ")
    assert example.startswith(f"Example:  sidecar {name}")
    command.make_context(name, shlex.split(example.removeprefix(f"Example:  sidecar {name}")))  # raises where it is not


def test_the_store_is_an_option_or_the_environments_or_in_the_users_data_directory(sidecar: Command, tmp_path: Path) -> None:
    assert sidecar("repo", "create", "here", "--store", tmp_path / "other").status == 0
    assert (tmp_path / "other" / "repos" / "here").is_dir()
    assert sidecar("repo", "list") == Ended(0, "", "")
    assert store_url({"SIDECAR_STORE": "gs://bucket/x", "HOME": "/home/me"}) == "gs://bucket/x"
    assert store_url({"SIDECAR_STORE": "", "XDG_DATA_HOME": "/data", "HOME": "/home/me"}) == "file:///data/sidecar/store"
    assert store_url({"XDG_DATA_HOME": "relative", "HOME": "/home/me"}) == "file:///home/me/.local/share/sidecar/store"
    with pytest.raises(ConfigurationError, match="--store"):
        store_url({})


def test_a_store_that_cannot_be_read_ends_with_74_and_one_of_no_known_kind_with_78(sidecar: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert sidecar("repo", "list", "--store", tmp_path / "file").status == 74
    assert sidecar("repo", "list", "--store", "nosuch://x").status == 78


# --- progress --------------------------------------------------------------------------------------------------------


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(terminal=False, interval=3600) as progress:
        for done in range(100):
            progress("saving to weather", done, 100)
    assert capsys.readouterr() == ("", "")
    with Progress(terminal=False, interval=0) as progress:
        progress("saving to weather", 1_200_000, 4_800_000)
        progress("looking\x1b", 12, 0)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "saving to weather: 1.2 MB of 4.8 MB (25 %)"
    assert "\x1b" not in err


def in_terminal(*arguments: object, **environment: str) -> tuple[int, bytes, bytes]:
    """Run `sidecar` with a terminal for stderr; return its exit status, stdout and what the terminal got."""
    ours, theirs = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    variables |= {"TERM": "xterm-256color"} | environment
    command = [SIDECAR, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=variables) as process:
        os.close(theirs)
        assert process.stdout is not None
        shown = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            shown += data
        out = process.stdout.read()
    os.close(ours)
    return process.returncode, out, shown


COLOUR = re.compile(rb"\x1b\[[0-9;]*3[0-9][0-9;]*m")


def test_on_a_terminal_there_is_a_bar_and_stdout_stays_clean(tree: Path, tmp_path: Path) -> None:
    status, out, shown = in_terminal("bundle", "upload", tree, "--repo", "weather", "--store", tmp_path / "store")
    assert status == 0
    assert re.fullmatch(rb"weather@[0-9a-z]{26}\n", out)
    assert b"saving to weather" in shown
    assert "━".encode() in shown
    assert COLOUR.search(shown)


def test_there_are_no_colours_where_the_user_wants_none(tree: Path, tmp_path: Path) -> None:
    status, _, shown = in_terminal("bundle", "upload", tree, "--repo", "w", "--store", tmp_path / "store", NO_COLOR="1")
    assert status == 0
    assert b"saving to w" in shown
    assert not COLOUR.search(shown)


def test_a_dumb_terminal_gets_no_bar(tree: Path, tmp_path: Path) -> None:
    _, _, shown = in_terminal("bundle", "upload", tree, "--repo", "w", "--store", tmp_path / "store", TERM="dumb")
    assert shown == b"1 file, 1 directory, 1 link, 5 B, 5 B of them new\r\n"


def test_rich_is_not_imported_where_there_is_no_bar(tree: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from sidecar.cli.bundle import bundle\n"
        f"bundle(['upload', {str(tree)!r}, '--repo', 'w', '--store', {str(tmp_path / 'store')!r}], standalone_mode=False)\n"
        "assert not any(name.partition('.')[0] == 'rich' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANG, capture_output=True)


def test_control_c_ends_an_upload_with_130_and_leaves_no_bundle(tree: Path, tmp_path: Path, store: Store) -> None:
    (tree / "an object of its own").write_bytes(os.urandom(2 << 20))  # that it is there tells that the upload is under way
    make_long_to_save(tree / "large")
    command: Any = [SIDECAR, "bundle", "upload", str(tree), "--repo", "weather", "--store", str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + HANG
        while not list((tmp_path / "store").glob("objects/*/*")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=HANG)
    assert (process.returncode, out) == (130, "")
    assert store.bundles("weather") == []
