"""The command behind `wrap_datamon_pg`: the postgres battery, configured as the datamon sidecar was: flags, environment, YAML.

Each database is a participant of its own. Where several are configured, each has a process of its own, this very command with
--only; this one starts them, passes signals on, and reaps them.
"""

from __future__ import annotations

import logging
import os
import secrets
import select
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import click

from sidecar import __version__, batteries, process
from sidecar.cli.entry import complain
from sidecar.cli.hosting import (
    battery_store_option,
    finish,
    host_options,
    life,
    print_config,
    read_parameters,
    say_failed,
    store_of,
)
from sidecar.cli.start import program
from sidecar.cli.wrap_application import STAY, write_termination_message
from sidecar.coordination import host, protocol
from sidecar.coordination.application import ENDING, Ending
from sidecar.coordination.notation import decode
from sidecar.coordination.signals import Directory
from sidecar.errors import UNAVAILABLE, ConfigurationError, SidecarError
from sidecar.parameters.postgres import Database, PostgresFlags, PostgresOptions, named, postgres_options
from sidecar.parameters.settings import explain
from sidecar.values import replace

NAME = "wrap_datamon_pg"


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
The databases are configured in YAML (--config FILE, SIDECAR_CONFIG, or /config/pgparams.yaml), in SIDECAR_DATABASE_KEY,
or in dm_pg_db_NAME. How to connect stands in DIR/NAME/dsn, the password in DIR/NAME/pgpass; so, in the application:
  psql "$(cat /tmp/coord/db1/dsn)"
T is in seconds, or with a unit: 90, 90s, 15m, 2h.
Exit status: 0 archived, or nothing to archive; 2 usage; 65 malformed parameters or corrupt data; 66 a source does
not exist; 69 the server could not be run, or the application died before it ran; 73 the database was not archived;
74 the store, the directory or the volume cannot be reached or written; 75 a deadline passed; 78 contradictory
configuration, a version that is not installed among them.
Example:
  SIDECAR_DATABASE_NAME=db1 SIDECAR_DATABASE_PGPORT=5430 SIDECAR_DATABASE_OWNER=dbuser \\
  SIDECAR_DATABASE_DESTREPO=results SIDECAR_DATABASE_DESTMESSAGE='nightly run' wrap_datamon_pg -c /tmp/coord""",
)
@click.version_option(__version__, "--version", message="%(prog)s %(version)s")
@click.option(
    "-c",
    "coordination",
    metavar="DIR",
    default="",
    help="The coordination directory, on a volume that the pod's containers share.",
)
@click.option("--config", metavar="FILE", default="", help="The YAML file.  [default: $SIDECAR_CONFIG]")
@click.option("-V", "ignore_version", is_flag=True, help="Migrate a source of an older PostgreSQL (upgrade: auto).")
@click.option("-s", "stay", is_flag=True, help=f"Stay {STAY:g} s instead of exiting (for debugging); a signal ends it.")
@click.option("--user", metavar="NAME", default="", help="Whom servers run as where this is root.  [default: postgres]")
@click.option("--trust", is_flag=True, help="Let every process of the pod in without a password.")
@click.option(
    "--client-uid", metavar="UID", type=click.IntRange(0), help="Who may read the password.  [default: whoever runs this]"
)
@click.option("--bindir", metavar="DIR[:DIR]...", default="", help="Where PostgreSQL is, besides the usual places and PATH.")
@click.option("--only", metavar="NAME", default="", help="Serve this one of the databases that are configured.")
@battery_store_option
@host_options
@click.pass_obj
def command(
    signals: process.SignalQueue,
    /,
    coordination: str,
    config: str,
    ignore_version: bool,
    stay: bool,
    user: str,
    trust: bool,
    client_uid: int | None,
    bindir: str,
    only: str,
    store: str,
    **given: Any,
) -> int:
    """Have databases running before the application starts, restored from bundles, and archive them after it has ended.

    What is said twice counts by its place: flags, environment, file, defaults.
    """
    flags = PostgresFlags(coordination, stay, ignore_version, config, user, trust)
    how = life(given, stay=stay)
    try:
        try:
            configured = postgres_options(flags, os.environ, read_parameters)
            url, store_from = store_of(store)
        except SidecarError as error:
            if not given["print_config"]:
                _say_failed(error, flags, how, signals)
            raise
        if given["print_config"]:
            print_config([*explain(configured), ("store", url, store_from)])
            return 0
        for note in configured.notes if not only else ():
            complain(NAME, note)
        options = configured.options
        how = replace(how, stay=float(options.stay_seconds) if options.stay else 0.0)
        databases = _wanted(options, only)
        if len(databases) > 1:
            return _serve_each(databases, signals)
        more = {"folders": _folders(bindir), "reader": client_uid, "templates": _templates()}
        ending = _serve(options, databases[0], url, how, signals, more)
    except SidecarError as error:
        write_termination_message(given["termination_log"], str(error))
        raise
    return finish(_name(only), ending, given["termination_log"])


def _say_failed(error: SidecarError, flags: PostgresFlags, how: host.Options, signals: process.SignalQueue) -> None:
    """Have the application hear at once what is wrong, of each database that can be made out, where the place to meet can."""
    place, names = named(flags, os.environ, read_parameters)
    for name in names if os.path.isabs(place) else ():
        with suppress(SidecarError):  # a name that is none
            say_failed(protocol.battery_of_database(name), error, place, how, signals)


def _wanted(options: PostgresOptions, only: str) -> tuple[Database, ...]:
    found = tuple(each for each in options.databases if only in ("", each.name))
    if not found:
        there = ", ".join(each.name for each in options.databases) or "none"
        raise ConfigurationError(f"--only {only}: there is no such database; configured: {there}")
    return found


def _serve(
    options: PostgresOptions,
    database: Database,
    store: str,
    how: host.Options,
    signals: process.SignalQueue,
    more: Mapping[str, Any],
) -> Ending:
    # libpq takes from these what is not said; we say all that we mean.
    for name in [each for each in os.environ if each.startswith("PG")]:
        del os.environ[name]
    # numpy, which verifies pages, would begin a thread for each processor of the node, for what nobody asks of it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    logging.basicConfig(format=f"{_name(database.name)}: %(message)s", level=logging.INFO)
    participant = protocol.battery_of_database(database.name)
    with Directory(options.coordination) as directory:

        def make(progress: batteries.Progress) -> batteries.Battery:
            from sidecar.batteries.postgres.battery import PostgresBatteryOptions

            kind = batteries.find("postgres")
            battery = PostgresBatteryOptions(
                store,
                database,
                # The lease is held by now, so nobody else names it.
                _session(directory, database.name),
                os.path.join(os.path.abspath(options.coordination), database.name),
                contributor=options.contributor,
                user=options.user,
                earlier=_earlier(directory, participant),
                **more,
            )
            return kind.open(battery, progress)

        tell = f"{_name(database.name)}"
        return host.serve(directory, participant, make, how, signals, lambda line: complain(tell, line))


def _session(directory: Directory, database: str) -> str:
    """Return the name of this use of the coordination directory, the same in all lives of the battery."""
    path = f"{database}/session"
    try:
        said = decode(directory.read(path) or b"")["session"]
        if isinstance(said, str) and said:
            return said
    except (ValueError, KeyError, TypeError):
        pass
    session = secrets.token_hex(16)
    directory.publish(path, {"session": session})
    return session


def _earlier(directory: Directory, participant: protocol.Battery) -> Mapping[str, Any] | None:
    record = directory.record(participant.name)
    return record.payload if record is not None else None


def _name(database: str) -> str:
    return f"{NAME} {database}".strip()


def _folders(bindir: str) -> tuple[str, ...]:
    """Return where PostgreSQL is looked for first: what was said, then PATH."""
    found = shutil.which("postgres")
    return (*(each for each in bindir.split(":") if each), *([os.path.dirname(os.path.realpath(found))] if found else []))


def _templates() -> str:
    """Return where prepared clusters are kept: SIDECAR_TEMPLATES, else in the user's cache; "" where that has none."""
    if "SIDECAR_TEMPLATES" in os.environ:
        return os.environ["SIDECAR_TEMPLATES"]
    # Root's servers are another account's, which may not enter root's home.
    home = "/var/cache" if os.geteuid() == 0 else os.path.join(os.environ.get("HOME", ""), ".cache")
    cache = os.environ.get("XDG_CACHE_HOME") or home
    return os.path.join(cache, "sidecar", "postgres") if os.path.isabs(cache) else ""


def _serve_each(databases: tuple[Database, ...], signals: process.SignalQueue) -> int:
    """Serve each database in a process of its own; return the status of the first, by name, that failed.

    Where one failed for itself, the application never runs, and the others end with UNAVAILABLE: that is not what went wrong.
    """
    process.adopt_orphans()
    children = {
        each.name: process.spawn(
            [*program("wrap_datamon_pg"), *sys.argv[1:], "--only", each.name], streams=(2, 2), background=True
        )
        for each in databases
    }
    poll = select.poll()
    poll.register(signals.fd, select.POLLIN)
    while any(not child.ended for child in children.values()):
        for number in signals.drain():
            if number in ENDING:
                for child in children.values():
                    child.send(number)
        process.reap(*children.values())
        poll.poll(1000)
    statuses = [128 + child.signal if child.signal else child.code for child in children.values()]
    failed = sorted(filter(None, statuses), key=UNAVAILABLE.__eq__)
    return failed[0] if failed else 0
