"""Three artifacts, each an image from scratch that holds its files alone, of which the last tells what it was given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from containers import Machine

from sidecar.session.artifact import Artifact, Port

# Of the last artifact: tells all that it was given, and what the others brought.
PROGRAM = r"""#!/bin/bash
printf '%s\0' "$PWD" "$SERVER_CONFIG" "$(cat /opt/viewer/app/text)" "$(cat /opt/gdb/bin/tool)" "$@"
"""
HARD = ["a b", "it's", '"q"', "$(x)", "$HOME", "$(SERVER_CONFIG)", "`id`", "two\nlines", ";", "é ☃", "", "*", "\\", "!", "$$"]


def build_images(machine: Machine, folder: Path) -> dict[str, str]:
    """Make the images of what is written to `folder`, by whose name they are told from others'; return their names."""
    (folder / "text").write_text("of the viewer\n")
    (folder / "tool").write_text("of the debugger\n")
    (folder / "program").write_text(PROGRAM)
    (folder / "program").chmod(0o755)
    held = {
        "viewer": {"app/text": folder / "text"},
        "gdb": {"usr/bin/tool": folder / "tool"},
        "program": {"bin/program": folder / "program", "share/data": folder / "text"},
    }
    return {name: machine.build(f"{name}-{folder.name}", files) for name, files in held.items()}


def artifacts(images: dict[str, str], arguments: Sequence[str]) -> list[Artifact]:
    """Return the artifacts; the last one's program is given `arguments`, as they are."""
    return [
        Artifact(images["viewer"], "/opt/viewer", directory="app", server_config={"title": "it's a; demo"}, logs=("viewer",)),
        Artifact(images["gdb"], "/opt/gdb", path="usr", ports=(Port(2345),)),
        Artifact(
            images["program"],
            directory="share",
            executable="bin/program",
            arguments=tuple(each.replace("%", "%%") for each in arguments),
            server_config={"hdr": True},
        ),
    ]
