"""The original demo, with three servers at once: one from scratch, one restored and archived, one restored and thrown away.

Around a plain script that knows nothing but psql, with a fuse battery beside them; and a second run that starts from what the
first one left. The servers, the mount or folder, and the wrapper are the programs that containers run.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import BIN, HANG, Pod

from sidecar.store import Store, open_store

# What the application is: it makes, reads and changes tables, and writes what it saw into a file.
SCRIPT = """\
set -eu
coord=$1 input=$2 output=$3
query() { psql "$(cat "$coord/$1/dsn") dbname=$2" -v ON_ERROR_STOP=1 -qAtc "$3"; }
query db1 ledger 'CREATE TABLE IF NOT EXISTS entries (n int)'
query db1 ledger 'INSERT INTO entries SELECT generate_series(1, 1000)'
query db2 shop "UPDATE stock SET amount = amount - 1 WHERE name = 'tea'"
query db2 customers "INSERT INTO people SELECT 'somebody else'"
query db3 shop 'DROP TABLE stock'
{
    query db1 ledger 'SELECT count(*) FROM entries'
    query db2 shop 'SELECT amount FROM stock'
    query db2 customers 'SELECT count(*) FROM people'
    cat "$input/greeting"
} > "$output/seen"
"""


class Databases:
    """Pods with databases, around one store: each run has a coordination directory and data directories of its own."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.store: Store = open_store(f"file://{top}/store")
        self.ports = free_ports(3)
        self.runs = 0

    def run(self, databases: str, names: str, command: list[str], fuse: list[str] | None = None) -> Path:
        """Run `command` between databases, configured in YAML with `{top}` and `{p1}`; return where it coordinated."""
        self.runs += 1
        place = self.top / f"run{self.runs}"
        place.mkdir(mode=0o711)
        ports = {f"p{number}": port for number, port in enumerate(self.ports, 1)}
        text = f"globalOpts:\n  coordPoint: {place}/coord\ndatabases:\n" + databases.format(top=place, **ports)
        (place / "pg.yaml").write_text(text)
        environment = {"SIDECAR_STORE": self.store.url, "SIDECAR_TEMPLATES": str(self.top / "templates")}
        with Pod(place) as pod:
            servers = pod.start(BIN / "wrap_datamon_pg", "--config", place / "pg.yaml", env=environment)
            batteries = [servers]
            if fuse:
                batteries.append(pod.start(BIN / "wrap_datamon", "-c", pod.coord, *fuse, env=environment))
            kinds = ["-b", "fuse"] if fuse else []
            words = [word.replace("{coord}", str(pod.coord)) for word in command]
            application = pod.wrap(*kinds, "-b", "postgres", "-d", names, "--", *words)
            assert application.wait() == 0, application.err + servers.err
            assert [battery.wait(HANG) for battery in batteries] == [0] * len(batteries), servers.err
            return pod.coord


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on at the moment."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def databases() -> Iterator[Databases]:
    # Not tmp_path: servers run as another account where the tests are root's, and it may not enter there.
    top = Path(tempfile.mkdtemp(prefix="sidecar-"))
    top.chmod(0o711)
    yield Databases(top)
    for each in top.glob("run*/in"):
        subprocess.run(["umount", "-l", each], capture_output=True)
    shutil.rmtree(top)


SOURCE = """\
  - {{name: seed, pgPort: {p1}, dataDir: {top}/pg, owner: dbuser, databases: [shop, customers],
     destRepo: seeds, destLabel: v1, destMessage: what was there before}}
"""
SEED = """\
query() { psql "$(cat "$1/seed/dsn") dbname=$2" -v ON_ERROR_STOP=1 -qAtc "$3"; }
query "$1" shop "CREATE TABLE stock AS SELECT 'tea' AS name, 7 AS amount"
query "$1" customers "CREATE TABLE people AS SELECT 'somebody' AS name"
"""
FIRST = """\
  - {{name: db1, pgPort: {p1}, dataDir: {top}/pg, owner: dbuser, databases: [ledger],
     destRepo: ledgers, destLabel: latest, destMessage: from scratch}}
  - {{name: db2, pgPort: {p2}, dataDir: {top}/pg, owner: dbuser, srcRepo: seeds, srcLabel: v1,
     destRepo: shops, destLabel: latest, destMessage: changed, destBundleID: {top}/db2-bundle}}
  - {{name: db3, pgPort: {p3}, dataDir: {top}/pg, owner: dbuser, srcRepo: seeds, srcLabel: v1}}
"""
SECOND = """\
  - {{name: db1, pgPort: {p1}, dataDir: {top}/pg, owner: dbuser, srcRepo: ledgers, srcLabel: latest,
     destRepo: ledgers, destLabel: latest, destMessage: again}}
  - {{name: db2, pgPort: {p2}, dataDir: {top}/pg, owner: dbuser, srcRepo: shops, srcLabel: latest,
     destRepo: shops, destLabel: latest, destMessage: again}}
  - {{name: db3, pgPort: {p3}, dataDir: {top}/pg, owner: dbuser, srcRepo: seeds, srcLabel: v1}}
"""


def test_three_servers_at_once_and_a_second_run_from_the_bundles_of_the_first(databases: Databases) -> None:
    top = databases.top
    (top / "made").mkdir()
    (top / "made" / "greeting").write_text("hello\n")
    databases.store.save(top / "made", "greetings", label="latest")
    databases.run(SOURCE, "seed", ["sh", "-c", SEED, "sh", "{coord}"])

    def job(which: str) -> list[str]:
        """Run the script; return what it saw."""
        place = top / f"run{databases.runs + 1}"
        bring = f"bundle mount --repo greetings --label latest --mount {place}/in"
        keep = f"bundle upload --path {place}/out --message seen --repo seen --label latest"
        script = ["sh", "-c", SCRIPT, "sh", "{coord}", f"{place}/in", f"{place}/out"]
        databases.run(which, "db1 db2 db3", script, fuse=["-d", bring, "-d", keep])
        again = place / "again"
        databases.store.populate(databases.store.resolve("seen", label="latest"), again)
        return (again / "seen").read_text().splitlines()

    assert job(FIRST) == ["1000", "6", "2", "hello"]
    assert (top / "run2" / "db2-bundle").read_text().strip() == databases.store.labels("shops")["latest"]
    assert job(SECOND) == ["2000", "5", "3", "hello"]
    assert [len(databases.store.bundles(repo)) for repo in ("seeds", "ledgers", "shops")] == [1, 2, 2]
    assert databases.store.check(read_data=True).faults == ()


def test_an_application_written_in_python_connects_with_what_it_is_told(databases: Databases) -> None:
    check = "from pathlib import Path; import psycopg, sys; print(psycopg.connect(Path(sys.argv[1]).read_text()).info.user)"
    databases.run(SOURCE, "seed", [str(BIN / "python"), "-c", check, "{coord}/seed/dsn"])
