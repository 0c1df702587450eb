"""What is applied on top of a base image: an artifact, as a catalog or a program describes it. Pure.

An artifact is an image whose files appear at its mount path in the session's container, and what it brings besides: ports,
configuration of the server, places to write, a program to run. It has no name; whoever asks lists artifacts in their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Protocol = Literal["TCP", "UDP", "SCTP"]


@dataclass(frozen=True)
class Port:
    """A port that the container opens; `name` is what the response, and `%port NAME%`, know it by."""

    number: int
    name: str = ""
    protocol: Protocol = "TCP"


@dataclass(frozen=True)
class Artifact:
    """One artifact. `reference` names its image, and the directory `path` in there is what is mounted.

    Paths that are not absolute are meant below the mount path: `directory`, where its program runs; `executable`, if it holds a
    slash (one without is looked up along PATH); and `arguments` that begin with ./ or ../. `mounts` are further places where its
    files appear, each the path in the container and the directory below `path`. `logs` are directories that it writes to, below
    /var/log/session where they are not absolute. `%NAME%` in arguments, `environment` and `server_config` is a variable, whose
    value is the last artifact's.
    """

    reference: str
    mount_path: str = ""
    path: str = ""
    directory: str = ""
    executable: str = ""
    arguments: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    server_config: Mapping[str, str | Literal[True]] = field(default_factory=dict)
    mounts: tuple[tuple[str, str], ...] = ()
    logs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
