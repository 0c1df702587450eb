"""`sidecar function`: what is run, what is printed, and with which status it ends."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from processes import BIN

RUNTIMES = Path(__file__).parent.parent / "images" / "runtimes"


def tell(*words: str, source: str = "", stdin: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = {key: value for key, value in os.environ.items() if key != "SIDECAR_RUNTIMES"}
    environment["SIDECAR_RUNTIMES"] = str(RUNTIMES)
    return subprocess.run(
        [BIN / "sidecar", "function", *words], input=stdin, capture_output=True, timeout=60, env=environment, cwd=cwd
    )


def test_the_programs_streams_and_status_are_the_commands_and_the_commands_input_is_the_programs(tmp_path: Path) -> None:
    (tmp_path / "it.sh").write_text('printf "[%s]" "$@"; cat; printf "\\377err" >&2; exit 7')
    ran = tell("run", "--timeout", "60s", "bash:5", "it.sh", "--", "a b", "--workers", "é", stdin=b"\0in", cwd=tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (7, "[a b][--workers][é]".encode() + b"\0in", b"\xfferr")


def test_a_source_may_come_by_standard_input() -> None:
    ran = tell("run", "--timeout", "60s", "python", "-", "x", stdin=b"import sys; print(sys.argv[1], repr(sys.stdin.read()))")
    assert (ran.returncode, ran.stdout) == (0, b"x ''\n")


def test_the_whole_answer_is_json() -> None:
    ran = tell("run", "--json", "--timeout", "60s", "--workers", "1", "bash", "-", stdin=b"echo it")
    answer = json.loads(ran.stdout)
    assert {key: answer[key] for key in ("language", "status", "code", "signal", "stdout", "stderr", "worker")} == {
        "language": "bash", "status": "ok", "code": 0, "signal": None, "stdout": "it\n", "stderr": "", "worker": 1,
    }  # fmt: skip
    assert [each["status"] for each in answer["workers"]] == ["ok"]


@pytest.mark.parametrize(
    ("source", "status", "told"),
    [
        (b"kill -TERM $$", 143, b""),
        (b"while :; do :; done", 75, b"the program was ended: timeout"),
        (b"while :; do echo; done", 137, b"the program was ended: output-limit"),
    ],
)
def test_how_a_program_was_ended_is_a_status(source: bytes, status: int, told: bytes) -> None:
    ran = tell("run", "--timeout", "2s", "--workers", "1", "bash", "-", stdin=source)
    assert ran.returncode == status, ran.stderr
    assert told in ran.stderr


def test_a_runtime_that_is_not_there_is_66_and_told_with_those_that_are() -> None:
    ran = tell("run", "cobol", "-")
    assert ran.returncode == 66
    assert b"there is no runtime 'cobol'; there are: bash:5.2, node:18, perl:5.36, php:8.2, python:3.11, ruby:3.1" in ran.stderr


def test_a_source_that_cannot_be_read_is_2(tmp_path: Path) -> None:
    ran = tell("run", "bash", "missing.sh", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (2, b"sidecar: missing.sh cannot be read: No such file or directory\n")


def test_runtimes_are_listed(tmp_path: Path) -> None:
    lines = [line.split() for line in tell("list").stdout.decode().splitlines()]
    assert lines[:3] == [["LANGUAGE", "VERSION"], ["bash", "5.2"], ["node", "18"]]
    (tmp_path / "cobol-85").mkdir()
    (tmp_path / "cobol-85" / "runtime.sh").touch()
    listed = json.loads(tell("list", "--json", "--runtimes", str(tmp_path)).stdout)
    assert listed == [{"language": "cobol", "version": "85"}]


def test_where_none_is_installed_it_is_said_how_to_name_them() -> None:
    bare = {key: value for key, value in os.environ.items() if key != "SIDECAR_RUNTIMES"}
    ran = subprocess.run([BIN / "sidecar", "function", "list"], capture_output=True, text=True, env=bare)
    assert (ran.returncode, "--runtimes" in ran.stderr) == (78, True)
