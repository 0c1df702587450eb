"""The battery `postgres`: a database is restored or made, served, and archived.

    ready    own the directory → make the cluster (or find it) → adopt it → begin the server, closed → set it up → open it
    save     close it → end clients → freeze → checkpoint → shut down → it says so itself → archive → verify → label
    close    whatever runs ends soon; the server is shut down

Nothing is archived that does not say of itself, with a good checksum, that it was shut down (control.py). So a server that was
killed is begun again and recovers first, and what was acknowledged is in the bundle or there is no bundle. A life that finds
the directory in use by its own session goes on with what is there: see stage.py for the steps.

While the application runs, a thread watches the server. One that dies is begun again, and recovers; clients notice, as they do
anywhere, and connect again. Where it cannot be, the save fails with the reason.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sidecar.batteries import Progress
from sidecar.batteries.bundles import told_of, write_bundle_id
from sidecar.batteries.postgres import archive, clusters, logical, sessions, upgrade, verification
from sidecar.batteries.postgres.archive import LOGICAL, PHYSICAL, Described
from sidecar.batteries.postgres.configuration import (
    ADMIN,
    CLOSED,
    Places,
    open_hba,
    passfile,
    postgresql_conf,
    scram_verifier,
    socket_fits,
)
from sidecar.batteries.postgres.control import Control
from sidecar.batteries.postgres.handover import Way, hand_over
from sidecar.batteries.postgres.installations import Installation, choose, find_installations
from sidecar.batteries.postgres.postmaster import Postmaster, Server, hold, read_control
from sidecar.batteries.postgres.programs import Cancelled, account, environment, run
from sidecar.batteries.postgres.stage import BEGUN, MAKING, OVER, STOPPED, Stage, Task
from sidecar.errors import ConfigurationError, Corrupt, NotSaved, PeerFailed, SidecarError, Unreachable
from sidecar.parameters.fuse import Destination, Source
from sidecar.parameters.postgres import Database
from sidecar.store import Bundle, Stopped, is_id, open_store
from sidecar.values import replace

if TYPE_CHECKING:
    import psycopg

_STATUS = 5.0  # seconds between two looks at how the server is doing
_LIVES = 5  # how often a server that dies is begun again
_RECOVERED = 50  # crashes that are written down; a client that kills its own process every second makes more than anybody reads
_SHUTDOWN = 3600.0  # seconds; what ends it sooner is the pod's own patience
_CLOSING = 3.0  # seconds until a server that has to end soon is made to; the host gives us five
_MARGIN = 64 << 20  # bytes that must be free beside a cluster: four segments of its log, without which no server begins
_BALLAST = 48 << 20  # bytes kept in reserve: three segments, which a recovery and the checkpoint after it may need
_SHARED = 64 << 20  # bytes of /dev/shm that containers have by default; parallel queries need more
_PROMPTS = ("PostgreSQL stand-alone backend", "backend>")  # what a server in single-user mode says to a person
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PostgresBatteryOptions:
    """One database server. `store` is the URL of the bundles; `contributor` signs those that are made.

    `session` names this use of a coordination directory: a later life with the same one goes on where an earlier one ended.
    `clients` is the directory, on the volume that is shared, for the clients' socket and the files that tell how to connect;
    `reader` is the uid that may read the password, None for our own. `user` is whom servers run as where we are root, `folders`
    are where PostgreSQL is looked for besides the usual places, `templates` is a directory of prepared clusters ("" for none).
    `earlier` is what `ready` returned in an earlier life of the same pod.
    """

    store: str
    database: Database
    session: str
    clients: str
    reader: int | None = None
    contributor: str = ""
    user: str = "postgres"
    folders: tuple[str, ...] = ()
    templates: str = ""
    earlier: Mapping[str, Any] | None = None


class PostgresBattery:
    """See sidecar.batteries.Battery for what each method promises."""

    def __init__(self, options: PostgresBatteryOptions, progress: Progress) -> None:
        """Nothing is read, begun or reached yet, but the store's URL and the account must mean something: ConfigurationError."""
        self._options, self._database = options, options.database
        self._progress = progress
        self._store = open_store(options.store)
        self._who = account(options.user)
        self._stage = Stage(self._database.data_dir, options.session)
        self._closed = threading.Event()
        self._task = Task(self._stage, self._who, dict(self._database.settings), progress, self._closed.is_set)
        self._serving = threading.RLock()  # held by whoever begins or ends the server
        self._wanted = False  # whether a server that ends is to be begun again
        self._postmaster: Postmaster | None = None
        self._began = ""
        self._deaths = 0
        self._source: Bundle | None = None

    # --- ready

    def ready(self) -> Mapping[str, Any]:
        """Have the server running and open to the application; return how to connect, and what it was restored from."""
        stage = self._stage
        stage.own(self._who)
        if stage.step in (STOPPED, OVER):
            # The application was over when an earlier life stopped the server: there is nobody to be ready for.
            return dict(self._options.earlier or {})
        if stage.step == MAKING:
            self._make()
        elif not read_control(stage.data).is_clean:
            self._note_recovery("an earlier life of this container ended without shutting the server down")
        with self._serving:
            with closing(self._begin()) as connection:
                told = self._set_up(connection)
            self._open()
            self._wanted = True
        threading.Thread(target=self._watch, daemon=True, name="watch").start()
        return told

    def _make(self) -> None:
        """Have a cluster under its name that lets ADMIN in: restored, or new. What a killed life left of it is made anew."""
        stage, source = self._stage, self._database.source
        # A life that was killed may have left a server that still shuts down.
        upgrade.forget(stage)
        os.close(hold(self._places, self._closed.is_set))
        stage.begin_anew()
        stage.reach(MAKING, kept=self._database.destination is not None)
        if source is None:
            self._check_room(0)
            clusters.create(self._task, self._newest(), self._database.locale, self._options.templates)
        else:
            self._restore()
        stage.accept()
        self._adopt()

    def _restore(self) -> None:
        source = self._database.source
        assert source is not None
        bundle = self._resolve(source)
        described = archive.describe(self._store, bundle)
        self._stage.note(source=told_of(source, bundle), recovered=[])
        self._source = bundle
        self._check_room(bundle.bytes)
        installation = self._fitting(described, bundle)
        if described.kind == LOGICAL:
            logical.load(self._task, self._store, bundle, described, installation)
            return
        clusters.restore(self._task, self._store, bundle)
        self._stage.note(unclean=not read_control(self._stage.partial).is_clean)
        newest = self._newest()
        if self._database.upgrade == "auto" and installation.major > described.major:
            self._upgrade(bundle, described, installation)
        elif self._database.upgrade == "check" and newest.major > described.major:
            problem = upgrade.check(self._task, installation, newest)
            _logger.info("an upgrade to PostgreSQL %s %s", newest.version, f"would not do: {problem}" if problem else "would do")
            self._stage.note(upgradable={"to": newest.version, "problem": problem})

    def _upgrade(self, bundle: Bundle, described: Described, new: Installation) -> None:
        """Have what was restored be a cluster of a later major."""
        old = choose(self._installed, described.major)
        facts = upgrade.upgrade(self._task, old, new)
        _logger.info("%s is upgraded from PostgreSQL %s to %s", bundle.reference, facts["version"], new.version)
        self._stage.note(upgraded_from={"bundle": bundle.reference, **facts})

    def _resolve(self, source: Source) -> Bundle:
        chosen = self._stage.notes.get("source")
        # The bundle that an earlier life of this session chose, wherever the label points by now.
        if isinstance(chosen, Mapping) and is_id(chosen.get("bundle")) and chosen.get("repo") == source.repo:
            return self._store.resolve(source.repo, bundle=str(chosen["bundle"]))
        return self._store.resolve(source.repo, label=source.label, bundle=source.bundle)

    def _fitting(self, described: Described, bundle: Bundle) -> Installation:
        """Return the installation that is to run a bundle's cluster: of its version, unless an upgrade is asked for."""
        newest = self._newest()
        if newest.major > described.major and self._database.upgrade == "auto":
            return newest
        try:
            return choose(self._installed, described.major)
        except ConfigurationError as error:
            remedy = "" if newest.major < described.major else f"; or have it migrated to {newest.major} with upgrade: auto"
            raise ConfigurationError(f"{bundle.reference} is of PostgreSQL {described.major}: {error}{remedy}") from None

    def _adopt(self) -> None:
        password = secrets.token_urlsafe(24)
        self._write_configuration(CLOSED)
        clusters.adopt(self._server(password), self._hear, self._closed.is_set)
        self._stage.write("secret", password, 0o600)

    def _set_up(self, connection: psycopg.Connection[Any]) -> dict[str, Any]:
        """Do what has to be done before clients are let in, and return how they connect."""
        database, stage = self._database, self._stage
        password = "" if database.trust else self._owners_password()
        with sessions.told(f"setting up database {database.name!r}"):
            disarmed = sessions.disarm(connection)
            verifier = scram_verifier(password, secrets.token_bytes(16)) if password else None
            sessions.own(connection, database.owner, verifier, superuser=database.superuser)
            if stage.step == MAKING and database.source is None:
                sessions.give_default(connection, database.owner)
            sessions.create_databases(connection, database.databases, database.owner)
            names = sessions.databases(connection)
            if stage.step == MAKING and database.source is not None:
                renewed = sessions.renew_collations(self._connect, self._major, names, _logger.warning)
                stage.note(renewed=renewed)
        for each in disarmed:
            _logger.warning("what the bundle has set is taken away: %s", each)
        if stage.step == MAKING and database.source is None:
            self._initialise(names)
        way = Way(self._options.clients, database.port, self._clients, database.owner, password, self._default(names))
        hand_over(way, self._options.reader)
        return self._told(way, names)

    def _initialise(self, names: list[str]) -> None:
        """Run the scripts of a new cluster with psql, as its superuser. What one of them refuses ends it."""
        for path in self._database.init_scripts:
            self._say(f"running {path}")
            try:
                with open(path, encoding="utf-8") as file:
                    text = file.read()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(
                    f"initScripts: {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"
                ) from None
            psql = [self._running().program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-"]
            with self._client_environment() as env:
                env["PGDATABASE"] = self._default(names)  # with -d, `host=…` would be taken for where to connect
                try:
                    run(psql, self._who, env, text=text, cancelled=self._closed.is_set, hear=_logger.info)
                except PeerFailed as error:
                    raise PeerFailed(f"initScripts: {path}: {error}") from None

    @contextmanager
    def _client_environment(self) -> Iterator[dict[str, str]]:
        """Within it, what PostgreSQL's own clients need to come in as ADMIN: no secret is in an argument or a variable."""
        socket, port = self._places.socket, self._database.port
        password = self._stage.read("secret")
        self._stage.write("passfile", passfile([(socket, port, ADMIN, password)]), 0o600, self._who)
        more = {"PGHOST": socket, "PGPORT": str(port), "PGUSER": ADMIN, "PGPASSFILE": f"{self._stage.home}/passfile"}
        try:
            yield environment(self._running().bindir, self._stage.home, more)
        finally:
            self._stage.remove("passfile")

    def _told(self, way: Way, names: list[str]) -> dict[str, Any]:
        notes = self._stage.notes
        told: dict[str, Any] = {
            "database": self._database.name,
            "host": "127.0.0.1",
            "port": way.port,
            "socket": way.socket,
            "user": way.user,
            "dbname": way.database,
            "passfile": way.passfile,
            "dsn": way.dsn,
            "version": self._running().version,
            "databases": names,
        }
        if "source" in notes:
            told["sources"] = [notes["source"]]
        for key in ("unclean", "upgradable", "upgraded_from", "renewed", "recovered"):
            if notes.get(key):
                told[key] = notes[key]
        return told

    def _default(self, names: list[str]) -> str:
        wanted = [*self._database.databases, "postgres", self._database.owner, *names]
        return next(name for name in wanted if name in names)

    def _owners_password(self) -> str:
        """Return the owner's password: from its file, or of an earlier life, whose clients know it; or a new one."""
        if self._database.password_file:
            return _read_password(self._database.password_file)
        kept = self._stage.read("owner-secret")
        if not kept:
            kept = secrets.token_urlsafe(24)
            self._stage.write("owner-secret", kept, 0o600)
        return kept

    def _open(self) -> None:
        """Let clients in. From here on there may be rows that are nowhere else, and the journal says so first."""
        kept = self._database.destination is not None or self._stage.notes.get("kept") is not False
        self._stage.reach(BEGUN, kept=kept)
        self._write_configuration(open_hba(trust=self._database.trust))
        assert self._postmaster is not None
        self._postmaster.reload()

    # --- the server

    def _begin(self) -> psycopg.Connection[Any]:
        """Begin the server with nobody let in, and return ADMIN's connection to it. A full disk is relieved once."""
        try:
            return self._begin_once()
        except Unreachable as error:
            if not self._stage.drop_ballast():
                raise
            _logger.warning("%s; the reserve is given up", error)
            return self._begin_once()

    def _begin_once(self) -> psycopg.Connection[Any]:
        self._write_configuration(CLOSED)
        self._postmaster = Postmaster(self._server(self._stage.read("secret")), self._hear)
        connection = self._postmaster.start(self._closed.is_set)
        with sessions.told("looking"):
            self._began = sessions.began(connection)
        self._stage.keep_ballast(_BALLAST)
        return connection

    def _server(self, password: str) -> Server:
        return Server(self._running(), self._places, self._who, self._database.port, password, self._task.settings)

    def _hear(self, line: str) -> None:
        if not line or line.startswith(_PROMPTS):
            return
        _logger.info("%s", line)
        if "redo in progress" in line:
            self._progress(f"recovering: {line.rpartition('LOG:')[2].strip()}", 0, 0)

    def _connect(self, database: str) -> psycopg.Connection[Any]:
        assert self._postmaster is not None
        return self._postmaster.connect(database)

    def _write_configuration(self, hba: str) -> None:
        stage = self._stage
        prepared = read_control(stage.data).max_prepared
        stage.write("postgresql.conf", postgresql_conf(shared_memory=_shared_memory() > _SHARED, prepared=prepared), 0o644)
        stage.write("pg_hba.conf", hba, 0o644)
        stage.write("pg_ident.conf", "", 0o644)

    @property
    def _places(self) -> Places:
        return self._stage.places(self._database.port, self._clients)

    @property
    def _clients(self) -> str:
        """The directory of the clients' socket; "" where its path would be too long."""
        folder = os.path.abspath(self._options.clients)
        return folder if socket_fits(folder, self._database.port) else ""

    @cached_property
    def _installed(self) -> list[Installation]:
        return find_installations(self._options.folders)

    def _newest(self) -> Installation:
        """Return what new clusters are of, and upgrades lead to."""
        installed = self._installed
        if not installed and not self._database.major:
            raise ConfigurationError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
        return choose(installed, self._database.major or installed[-1].major)

    def _running(self) -> Installation:
        return choose(self._installed, clusters.version_of(self._stage.data))

    @property
    def _major(self) -> int:
        return clusters.version_of(self._stage.data)

    def _check_room(self, needed: int) -> None:
        folder = os.path.dirname(self._stage.data)
        free = _free(folder)
        if free < needed + _MARGIN:
            problem = f"the volume of {folder} has {free >> 20} MiB free, and {(needed + _MARGIN) >> 20} MiB are needed"
            raise Unreachable(f"{problem}; make it larger")

    def _watch(self) -> None:
        """Begin a server again that died, and say now and then how it is doing."""
        began = self._log_position()
        while True:
            postmaster = self._postmaster
            assert postmaster is not None
            died = postmaster.ended.wait(_STATUS)
            with self._serving:
                if not self._wanted:
                    return
                if died and self._postmaster is postmaster and not self._begin_again():
                    return
            if not died:
                self._say_how(began)

    def _begin_again(self) -> bool:
        self._deaths += 1
        try:
            if self._deaths > _LIVES:
                raise PeerFailed(f"the server of {self._database.name!r} died {self._deaths} times")
            _logger.warning("the server died and is begun again")
            self._stage.drop_ballast()  # a full disk may be why, and would have not even this written down
            self._note_recovery("the server died while the application ran")
            self._begin().close()
            self._open()
        except SidecarError as error:
            _logger.warning("the server died and cannot be begun again: %s", error)
            self._wanted = False
            return False
        return True

    def _log_position(self) -> int:
        with suppress(SidecarError), sessions.told("looking"), closing(self._connect("postgres")) as connection:
            return sessions.activity(connection).log
        return 0

    def _look_for_crash(self, connection: psycopg.Connection[Any]) -> None:
        with self._serving:
            if self._wanted:
                self._note_crash(connection)

    def _say_how(self, began: int) -> None:
        with suppress(SidecarError), sessions.told("looking"), closing(self._connect("postgres")) as connection:
            self._look_for_crash(connection)
            now = sessions.activity(connection)
            mib = (now.log - began) / (1 << 20)
            clients = "1 client" if now.clients == 1 else f"{now.clients} clients"
            self._progress(f"serving {clients}, {mib:.1f} MiB of log written", now.size, 0)

    # --- save

    def save(self) -> Mapping[str, Any]:
        """Archive the database, and return as which bundle; where there is no destination, only stop it."""
        stage, destination = self._stage, self._database.destination
        if stage.step == OVER:
            return self._kept()
        if destination is None:
            self._stop_serving()
            if self._postmaster is not None and not self._postmaster.ended.is_set():
                with suppress(PeerFailed):  # how it ended makes no difference to anybody
                    self._postmaster.stop(_SHUTDOWN)
            self._end(None)
            return self._kept()
        try:
            if stage.step != STOPPED:
                self._finish()
            told = self._archive()
        except NotSaved:
            raise
        except (PeerFailed, Unreachable, ConfigurationError, Corrupt, Stopped) as error:
            kept = f"all of it is kept in {stage.data}, and another life of this container tries again"
            raise NotSaved(f"database {self._database.name!r} is not archived: {error}; {kept}") from error
        self._end(told)
        return self._kept()

    def _kept(self) -> dict[str, Any]:
        told = self._stage.notes.get("destination")
        return {"destinations": [told] if told else []}

    def _end(self, told: dict[str, Any] | None) -> None:
        """Write down that it is over; what was kept for another life is needed no more."""
        self._stage.reach(OVER, destination=told)
        self._stage.drop_ballast()
        logical.forget(self._stage)
        for name in ("secret", "owner-secret"):
            self._stage.remove(name)

    def _stop_serving(self) -> None:
        """From here on a server that ends stays so."""
        with self._serving:
            self._wanted = False

    def _finish(self) -> None:
        """Shut the server down for good, with everything in the cluster. One that crashes meanwhile recovers first."""
        self._stop_serving()
        self._stage.drop_ballast()
        with self._serving:
            for life in range(_LIVES):
                try:
                    self._shut_down()
                    return
                except PeerFailed as error:
                    if life == _LIVES - 1 or self._closed.is_set() or not self._has_crashed():
                        raise
                    _logger.warning("the server crashed while it was to be shut down: %s", error)

    def _shut_down(self) -> None:
        """Shut the server down, closed, frozen and after a checkpoint; before, learn what it is."""
        connection = self._still_there() or self._recover()
        with closing(connection), sessions.told(f"finishing database {self._database.name!r}"):
            self._note_crash(connection)
            self._write_configuration(CLOSED)
            assert self._postmaster is not None
            self._postmaster.reload()
            sessions.end_clients(connection, self._closed.is_set)
            names = sessions.databases(connection)
            record = self._record(connection, names)
            if self._is_logical:
                self._dump(record)
            else:
                # What was prepared has its tables locked, for ever, and keeps rows from being frozen.
                policy = "never" if record["prepared"] else self._database.freeze
                sessions.freeze(self._connect, names, policy, self._say, self._closed.is_set)
            self._say("checkpoint")
            sessions.checkpoint(connection)
        self._say("shutting down")
        self._postmaster.stop(_SHUTDOWN)
        control = read_control(self._stage.data)
        if not control.is_clean:
            raise PeerFailed(f"the cluster says of itself that it is {control.condition!r}, not 'shut down'; nothing is archived")
        archive.check_whole(self._stage.data, control)
        archive.write_record(self._stage.data, record, self._who)
        self._stage.reach(STOPPED)

    @property
    def _is_logical(self) -> bool:
        return self._database.archive == LOGICAL

    def _dump(self, record: Mapping[str, Any]) -> None:
        assert self._postmaster is not None
        logical.dump(self._task, self._postmaster.server, self._connect, self._installed, record)

    def _still_there(self) -> psycopg.Connection[Any] | None:
        """Return a connection to the server; None where it is gone, or lets us in no more and was shut down."""
        if self._postmaster is None or self._postmaster.ended.is_set():
            return None
        try:
            return self._connect("postgres")
        except PeerFailed as error:
            # Its clients have taken every connection, or a superuser among them our password.
            _logger.warning("%s; it is begun again", error)
        self._postmaster.stop(_SHUTDOWN)
        self._adopt()
        return None

    def _recover(self) -> psycopg.Connection[Any]:
        """Begin the server again: what it has not written yet is in its log."""
        if not read_control(self._stage.data).is_clean:
            self._note_recovery("the server was not running when it was to be archived")
        return self._begin()

    def _note_recovery(self, why: str) -> None:
        """Write down that there was a crash: what is not in the log, rows of unlogged tables, is gone."""
        told = [*self._stage.notes.get("recovered", ()), why]
        self._stage.note(recovered=told[:_RECOVERED])

    def _note_crash(self, connection: psycopg.Connection[Any]) -> None:
        began = sessions.began(connection)
        if began != self._began:
            self._began = began
            self._note_recovery("a process of the server was killed, and all of them began again")

    def _has_crashed(self) -> bool:
        """Say whether the server is gone, or has recovered from the end of one of its processes."""
        assert self._postmaster is not None
        if not self._postmaster.ended.is_set():
            with suppress(PeerFailed), sessions.told("looking"), closing(self._connect("postgres")) as connection:
                return sessions.began(connection) != self._began
        return self._postmaster.ended.is_set()

    def _record(self, connection: psycopg.Connection[Any], names: list[str]) -> dict[str, Any]:
        control = read_control(self._stage.data)
        notes = self._stage.notes
        return {
            "kind": PHYSICAL,
            "major": self._major,
            "system": str(control.system),
            "checksums": control.checksums,
            **sessions.facts(self._connect, self._major, names),
            "prepared": sessions.prepared(connection),
            "slots": sessions.slots(connection),
            **{key: notes[key] for key in ("recovered", "upgraded_from") if notes.get(key)},
        }

    def _archive(self) -> dict[str, Any]:
        stage, destination = self._stage, self._database.destination
        assert destination is not None
        control = read_control(stage.data)
        if not control.is_clean:
            raise PeerFailed(f"the cluster is {control.condition!r}, though it was shut down; nothing is archived")
        bundle = self._keep(control, destination)
        if destination.bundle_id_file:
            write_bundle_id(destination.bundle_id_file, bundle)
        recovered = len(stage.notes.get("recovered") or ())
        return {**told_of(destination, bundle), "stored": bundle.stored, **({"recovered": recovered} if recovered else {})}

    def _keep(self, control: Control, destination: Destination) -> Bundle:
        how: Any = {
            "contributor": self._options.contributor,
            "base": self._base(),
            "accept": self._verify if self._database.verify == "restore" else None,
            "progress": self._progress,
            "cancelled": self._closed.is_set,
        }
        if self._is_logical:
            return logical.keep(self._stage, self._store, destination, destination.label, **how)
        return archive.keep(self._store, self._stage.data, control, destination, destination.label, **how)

    def _verify(self, bundle: Bundle, cancelled: Cancelled) -> None:
        """See that a bundle that nobody gets yet can be restored and is sound."""
        installation = self._newest() if self._is_logical else self._running()
        verification.verify(replace(self._task, cancelled=cancelled), self._store, bundle, installation)

    def _base(self) -> Bundle | None:
        """Return the bundle that the cluster was restored from: most of its pages are still that."""
        source = self._stage.notes.get("source")
        if self._source is None and isinstance(source, Mapping):
            with suppress(SidecarError):
                self._source = self._store.resolve(str(source["repo"]), bundle=str(source["bundle"]))
        return self._source

    def _say(self, what: str) -> None:
        self._progress(what, 0, 0)

    # --- close

    def close(self) -> None:
        """Make `ready` and `save` end soon, if they run, and shut the server down."""
        self._closed.set()
        # Not under the lock: whoever holds it may wait for a statement that ends with the server alone.
        self._wanted = False
        postmaster = self._postmaster
        if postmaster is not None:
            with suppress(SidecarError):
                postmaster.stop(_CLOSING)
        self._stage.release()


def _free(path: str) -> int:
    told = os.statvfs(path)
    return told.f_bavail * told.f_frsize


def _shared_memory() -> int:
    try:
        told = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return told.f_blocks * told.f_frsize


def _read_password(path: str) -> str:
    """Return the password in a file of one line; ConfigurationError where it is none that may be sent to every version."""
    try:
        with open(path, encoding="utf-8") as file:
            password = file.read(4096).rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"passwordFile {path}: it cannot be read: {getattr(error, 'strerror', None) or 'no text'}"
        ) from None
    if not password or not password.isascii() or not password.isprintable():
        raise ConfigurationError(f"passwordFile {path}: expected one line of printable ASCII")
    return password
