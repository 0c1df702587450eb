"""A sandbox: what bwrap is told of it, and what a command sees in the one that bwrap makes of that."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sidecar.sandbox import Bind, Link, Sandbox, Scratch, command_line, in_layer, layer_of, options

# What a command of the machine's needs; the root of Debian, and of those who have not merged /usr.
SYSTEM = tuple(
    Link(os.readlink(path), path) if os.path.islink(path) else Bind(path, path)
    for path in ("/bin", "/etc", "/lib", "/lib64", "/usr")
    if os.path.lexists(path)
)


def run(sandbox: Sandbox, command: Sequence[str], layer: tuple[str, str] | None = None) -> tuple[str, list[dict[str, int]]]:
    """Return what a command writes in a sandbox, and what bwrap says of it."""
    told = os.memfd_create("options")
    os.pwrite(told, b"".join(each.encode() + b"\0" for each in options(sandbox)), 0)
    read, write = os.pipe()
    line = command_line("bwrap", told, write, command)
    ran = subprocess.run(
        in_layer(*layer, line) if layer else line, pass_fds=(told, write), capture_output=True, text=True, check=False
    )
    os.close(write)
    os.close(told)
    with open(read) as file:
        records = [json.loads(record) for record in file]
    return ran.stdout + ran.stderr, records


def test_a_sandbox_becomes_these_options() -> None:
    entries = (
        Bind("/usr", "/usr"),
        Link("usr/bin", "/bin"),
        Scratch("/opt", sealed=True),
        Bind("/v", "/opt/v", False),
        Scratch("/tmp"),
    )
    sandbox = Sandbox(entries, {"A": "a b", "E": ""}, "/opt/v", 10001, 10002, "pod")
    assert options(sandbox) == [
        "--unshare-user", "--uid", "10001", "--gid", "10002",
        "--unshare-pid", "--as-pid-1", "--die-with-parent", "--unshare-ipc", "--cap-drop", "ALL",
        "--unshare-uts", "--hostname", "pod",
        "--proc", "/proc", "--dev", "/dev",
        "--ro-bind", "/usr", "/usr",
        "--symlink", "usr/bin", "/bin",
        "--perms", "0755", "--tmpfs", "/opt",
        "--bind", "/v", "/opt/v",
        "--perms", "1777", "--tmpfs", "/tmp",
        "--remount-ro", "/opt",
        "--remount-ro", "/",
        "--chdir", "/opt/v", "--clearenv", "--setenv", "A", "a b", "--setenv", "E", "",
    ]  # fmt: skip


def test_one_with_a_layer_has_that_for_its_root_before_all_else() -> None:
    said = options(Sandbox((Bind("/v", "/v"),), layer="/l", sealed=False))
    assert said[said.index("--bind") :][:3] == ["--bind", "/l", "/"]
    assert said.index("--bind") < said.index("--proc") < said.index("--ro-bind")
    assert "--remount-ro" not in said


def test_a_name_that_is_longer_than_a_hosts_may_be_is_cut() -> None:
    said = options(Sandbox((), hostname="x" * 62 + "-" + "y" * 9))
    assert said[said.index("--hostname") + 1] == "x" * 62


def test_no_variable_stands_on_the_command_line() -> None:
    assert command_line("bwrap", 5, 6, ["sh", "-c", ":"]) == [
        "bwrap",
        "--args",
        "5",
        "--json-status-fd",
        "6",
        "--",
        "sh",
        "-c",
        ":",
    ]


def test_a_command_sees_what_is_there_and_can_write_where_it_may(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "shut").mkdir()
    entries = (
        *SYSTEM,
        Scratch("/opt", sealed=True),
        Scratch("/tmp"),
        Bind(str(tmp_path / "open"), "/opt/open", read_only=False),
        Bind(str(tmp_path / "shut"), "/opt/shut"),
    )
    script = (
        "id -u; pwd; echo $A; hostname; for each in / /opt /opt/open /opt/shut /tmp /usr; do touch $each/x && echo $each; done"
    )
    told, records = run(
        Sandbox(entries, {"PATH": "/usr/bin:/bin", "A": "a  b"}, "/opt", 4711, 4711, "host"),
        ["sh", "-c", f"({script}) 2>/dev/null"],
    )
    assert told.splitlines() == ["4711", "/opt", "a b", "host", "/opt/open", "/tmp"]
    assert records[-1] == {"exit-code": 1}
    assert os.listdir(tmp_path / "open") == ["x"]


def test_a_command_has_no_privileges_and_no_way_to_any() -> None:
    script = (
        "grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs)' /proc/self/status; mount -t tmpfs none /tmp 2>/dev/null && echo mounted"
    )
    told, _ = run(Sandbox((*SYSTEM, Scratch("/tmp")), {"PATH": "/usr/bin:/bin"}), ["sh", "-c", script])
    assert dict(line.split(":\t") for line in told.splitlines()) == {
        **dict.fromkeys(("CapPrm", "CapEff", "CapBnd"), "0" * 16),
        "NoNewPrivs": "1",
    }


def test_bwrap_says_how_a_command_ended_and_nothing_of_one_that_was_not_begun() -> None:
    sandbox = Sandbox(SYSTEM, {"PATH": "/usr/bin:/bin"})
    assert run(sandbox, ["sh", "-c", "exit 1"])[1][-1] == {"exit-code": 1}
    assert run(sandbox, ["sh", "-c", "kill -9 $(sh -c 'echo $PPID')"])[1][-1] == {"exit-code": 0}  # a PID 1 does not kill itself
    told, records = run(sandbox, ["no such command"])
    assert "no such command" in told
    assert not any("exit-code" in record for record in records)


def test_what_is_written_in_a_layer_is_gone_with_it(tmp_path: Path) -> None:
    image, folder = tmp_path / "an image, of: one", tmp_path / "its layer, too"
    (image / "held").mkdir(parents=True)
    (image / "held" / "file").write_text("of the image")
    folder.mkdir()
    sandbox = Sandbox(SYSTEM, {"PATH": "/usr/bin:/bin"}, layer=layer_of(str(folder)), sealed=False)
    script = "cat /held/file; rm -r /held; mkdir /held; touch /held/new /new; echo; ls / /held"
    told, records = run(sandbox, ["sh", "-c", script], (str(folder), str(image)))
    assert told.splitlines()[0] == "of the image"
    assert {"new", "held"} <= set(told.splitlines())
    assert records[-1] == {"exit-code": 0}
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == [image.name, "held", "file", folder.name]
