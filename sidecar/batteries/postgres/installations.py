"""Which PostgreSQL installations this machine has, and where their programs are.

A folder counts where its `postgres` says its version when it is run: names of folders and packages do not tell, and a program
that cannot be run (another architecture, a library that is missing) is no installation. The environment is not read here: whoever
calls adds the folder of PATH that holds `postgres`, if any. What lies in these folders is run, so they must be as trusted as
the programs themselves.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import subprocess
from collections.abc import Iterable, Sequence

from sidecar.errors import ConfigurationError
from sidecar.values import value

USUAL = ("/usr/lib/postgresql/*/bin",)  # Debian's, which is where the official images have theirs, too
_PATIENCE = 20.0  # seconds; it takes some milliseconds, and a minute would not help either
_SAID = re.compile(r"postgres \(PostgreSQL\) (([0-9]{1,3})(?:\.[0-9]{1,3}|devel|(?:alpha|beta|rc)[0-9]{1,2}))(?:\s|$)")
# Those that Debian has in postgresql-client-N.
_OF_THE_CLIENT = {
    "clusterdb", "createdb", "createuser", "dropdb", "dropuser", "pg_amcheck", "pg_basebackup", "pg_combinebackup", "pg_dump",
    "pg_dumpall", "pg_isready", "pg_receivewal", "pg_recvlogical", "pg_restore", "pg_verifybackup", "psql", "reindexdb",
    "vacuumdb",
}  # fmt: skip
_logger = logging.getLogger(__name__)


@value
class Installation:
    """The programs of one PostgreSQL, in `bindir`. `version` is as it says it, "15.18" or "18beta1"."""

    bindir: str
    version: str
    major: int

    def program(self, name: str) -> str:
        """Return the path of a program; ConfigurationError, with the package that has it, where it is missing."""
        if not self.has(name):
            package = f"postgresql-{'client-' if name in _OF_THE_CLIENT else ''}{self.major}"
            problem = f"PostgreSQL {self.version} in {self.bindir} has no {name}"
            raise ConfigurationError(f"{problem}: install all of it (Debian: apt-get install {package})")
        return os.path.join(self.bindir, name)

    def has(self, name: str) -> bool:
        """Say whether a program is there and may be run."""
        path = os.path.join(self.bindir, name)
        return os.path.isfile(path) and os.access(path, os.X_OK)


def find_installations(folders: Iterable[str] = (), usual: Sequence[str] = USUAL) -> list[Installation]:
    """Return the installations in `folders`, and where they usually are, the newest last.

    Of those of one version the first stands before the others. A folder without `postgres` is none; one whose `postgres` cannot
    be run is told in the log.
    """
    places = [*folders, *(path for pattern in usual for path in sorted(glob.glob(pattern)))]
    # A link in /usr/local/bin say, or in a folder of links, leads to the folder with the other programs.
    programs = dict.fromkeys(os.path.realpath(os.path.join(folder, "postgres")) for folder in places if folder)
    found = [installed for path in programs if os.path.isfile(path) and (installed := _ask(path))]
    return sorted(found, key=_age)


def choose(installations: Sequence[Installation], major: int) -> Installation:
    """Return the newest installation of a major version; ConfigurationError with what there is where there is none."""
    found = [each for each in installations if each.major == major]
    if not found:
        there = ", ".join(f"{each.version} in {each.bindir}" for each in installations) or "no other either"
        problem = f"PostgreSQL {major} is not installed (Debian: apt-get install postgresql-{major})"
        raise ConfigurationError(f"{problem}; there is {there}")
    return max(found, key=_age)


def _ask(path: str) -> Installation | None:
    """Return the installation of which `path` is the server; None where it does not say so."""
    try:
        ran = subprocess.run(
            [path, "--version"],
            env={"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _logger.warning("%s is left out: it cannot be run: %s", path, error)
        return None
    said = ran.stdout[:200].decode(errors="replace").strip()
    match = _SAID.match(said)
    if ran.returncode or match is None:
        problem = said or ran.stderr[:200].decode(errors="replace").strip()
        _logger.warning("%s is left out: asked for its version it ended with %d: %r", path, ran.returncode, problem)
        return None
    return Installation(os.path.dirname(path), match[1], int(match[2]))


def _age(installation: Installation) -> tuple[int, int]:
    """Return what sorts installations by age; what is not released yet comes before what is."""
    _, _, minor = installation.version.partition(".")
    return installation.major, int(minor) if minor else -1
