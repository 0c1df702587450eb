"""A cluster comes to be: from a bundle, or new; either way it is made beside its place, and gets its name once it is whole.

Whichever it is, it is then adopted: a server in single-user mode, which asks no one for a password and obeys none of the
settings of roles and databases, gives ADMIN a password that only this life knows. So a foreign bundle, whose superuser is
called something else, needs nothing but that; and if the bundle was not clean, that is where it recovers, with nobody else
there.

A new cluster is copied from a template where there is one, which takes a third of initdb's time; the copy gets an identity of
its own, so that no two clusters share the number that replication and archives go by.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from sidecar.batteries.postgres.configuration import ADMIN, scram_verifier, server_arguments
from sidecar.batteries.postgres.control import wal_with_identity, with_identity
from sidecar.batteries.postgres.installations import Installation
from sidecar.batteries.postgres.postmaster import Server, hold, read_control
from sidecar.batteries.postgres.programs import Account, Cancelled, environment, run
from sidecar.batteries.postgres.stage import Task
from sidecar.errors import Corrupt, PeerFailed, Unreachable
from sidecar.store import Bundle, Entry, Store
from sidecar.store.durable import finish
from sidecar.store.format import LINK

DEFAULT_LOCALE = "C.UTF-8"
_ZEROS = bytes(1 << 16)
# Never restored: a server would take itself for one that runs, or wait for another to follow.
_REFUSED = {"postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal", "backup_manifest"}


def restore(task: Task, store: Store, bundle: Bundle) -> None:
    """Have the cluster that a bundle holds; every byte is verified, all of it is on disk before it has its name."""
    partial = task.stage.partial
    _check_entries(bundle, store.manifest(bundle))
    _make_directory(partial)  # ours until it is whole: nobody else gets into it meanwhile
    store.populate(bundle, partial, task.progress, select=_is_wanted, durable=True, cancelled=task.cancelled)
    version_of(partial)
    read_control(partial)
    own(partial, task.who)
    sync(partial)


def _check_entries(bundle: Bundle, entries: Sequence[Entry]) -> None:
    """Corrupt where a bundle is no cluster, or would have a server write elsewhere."""
    links = [entry.path for entry in entries if entry.type == LINK]
    if links:
        named = ", ".join(map(repr, links[:3]))
        raise Corrupt(f"{bundle.reference} holds links ({named}), which would lead a server out of its directory; it is refused")
    if "PG_VERSION" not in {entry.path for entry in entries}:
        raise Corrupt(f"{bundle.reference} holds no cluster of PostgreSQL: it has no file PG_VERSION")


def _is_wanted(entry: Entry) -> bool:
    return entry.path not in _REFUSED and not os.path.basename(entry.path).startswith(".s.PGSQL.")


def version_of(data: str) -> int:
    """Return the major version of a cluster. Corrupt where it is none."""
    path = f"{data}/PG_VERSION"
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            return int(file.read(16))
    except (OSError, ValueError):
        raise Corrupt(f"{path} does not say which version of PostgreSQL this is of; the bundle holds no cluster") from None


def create(task: Task, installation: Installation, locale: str, templates: str) -> None:
    """Have a new, empty cluster, with page checksums, UTF-8, and ADMIN as its superuser."""
    partial, who = task.stage.partial, task.who
    _make_directory(partial, who)
    template = template_of(templates, installation, locale)
    if template and not os.path.isdir(template):
        template = _prepare(template, installation, who, locale, task.cancelled)
    if template and _is_ours(template):
        copy(template, partial, who)
        _give_identity(partial)
    else:
        initdb(partial, installation, who, locale, task.cancelled)
    sync(partial)


def initdb(data: str, installation: Installation, who: Account, locale: str, cancelled: Cancelled) -> None:
    """Make a cluster in an empty directory of the account's. What is written is not synced yet."""
    locale = locale or DEFAULT_LOCALE
    argv = [installation.program("initdb"), "-D", data, "-U", ADMIN, "-E", "UTF8", f"--locale={locale}", "-k", "-N"]
    try:
        run([*argv, "-A", "scram-sha-256", "--auth-local=peer"], who, environment(installation.bindir, data), cancelled=cancelled)
    except PeerFailed as error:
        hint = ""
        if "could not look up effective user ID" in str(error):
            hint = f"; add an account with uid {who.uid} to the image, or prepare a template in it"
        raise PeerFailed(f"a new cluster cannot be made: {error}{hint}") from None


def template_of(templates: str, installation: Installation, locale: str) -> str:
    """Return where the template of such clusters is or would be; "" where none are kept."""
    return f"{templates}/{installation.version}-{locale or DEFAULT_LOCALE}" if templates else ""


def _prepare(template: str, installation: Installation, who: Account, locale: str, cancelled: Cancelled) -> str:
    """Have a template made; return its path, "" where it cannot be kept."""
    temporary = f"{template}.{secrets.token_hex(4)}"
    try:
        os.makedirs(os.path.dirname(template), mode=0o711, exist_ok=True)
        _make_directory(temporary, who)
    except (OSError, Unreachable):
        return ""
    try:
        initdb(temporary, installation, who, locale, cancelled)
        with suppress(OSError):  # another was quicker
            os.rename(temporary, template)
    except PeerFailed:
        return ""  # the account may not enter there, or it is full; what else is wrong is met again where the cluster is to be
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return template


def _is_ours(template: str) -> bool:
    """Say whether nobody else can have written a template, or taken its place."""
    for path in (template, os.path.dirname(template)):
        try:
            told = os.lstat(path)
        except OSError:
            return False
        allowed = {0, os.geteuid()} if path != template else None
        if not stat.S_ISDIR(told.st_mode) or told.st_mode & 0o022 or (allowed is not None and told.st_uid not in allowed):
            return False
    return True


def copy(source: str, target: str, who: Account) -> None:
    """Copy a cluster that no server runs on into a directory. Zeros at the end of a file are not written but allocated."""
    for folder, names, files in os.walk(source):
        there = target + folder[len(source) :]
        for name in names:
            os.mkdir(f"{there}/{name}", 0o700)
            who.own(f"{there}/{name}")
        for name in files:
            _copy_file(f"{folder}/{name}", f"{there}/{name}", who)


def _copy_file(source: str, target: str, who: Account) -> None:
    old = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        new = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(old).st_size
            if size:
                # A hole would do, were the disk never full: where a server writes to one then, it panics.
                os.posix_fallocate(new, 0, size)
            while piece := os.read(old, 1 << 16):
                if piece != _ZEROS[: len(piece)]:
                    os.write(new, piece)
                else:
                    os.lseek(new, len(piece), os.SEEK_CUR)
            who.own(new)
        finally:
            os.close(new)
    finally:
        os.close(old)


def _give_identity(data: str) -> None:
    """Make a copy of a template another cluster than the template's other copies."""
    control = read_control(data)
    # As initdb does it: the time, and something that differs within a second.
    system = int(time.time()) << 32 | secrets.randbits(32)
    _change(f"{data}/global/pg_control", lambda old: with_identity(old, system, secrets.token_bytes(32)))
    _change(f"{data}/pg_wal/{control.redo_segment}", lambda old: wal_with_identity(old, system))


def _change(path: str, change: Callable[[bytes], bytes]) -> None:
    with open(path, "r+b") as file:
        changed = change(file.read(8192))
        file.seek(0)
        file.write(changed)


def adopt(server: Server, hear: Callable[[str], None], cancelled: Cancelled) -> None:
    """Have ADMIN be a superuser with the server's password; an unclean cluster recovers on the way, else PeerFailed."""
    # One round is as good as many: this password is random, and no client but ours comes with it.
    verifier = scram_verifier(server.password, secrets.token_bytes(16), 1)
    rights = "SUPERUSER LOGIN VALID UNTIL 'infinity' CONNECTION LIMIT -1"
    sql = f"CREATE ROLE {ADMIN};\nALTER ROLE {ADMIN} WITH {rights} PASSWORD '{verifier}';\n"
    installation, places = server.installation, server.places
    argv = [installation.program("postgres"), "--single", *server_arguments(places, installation.major, server.settings)]
    lock = hold(places, cancelled)
    try:
        run(
            [*argv, "-c", "log_min_error_statement=panic", "-c", "log_min_messages=log", "template1"],
            server.account,
            environment(installation.bindir, places.home),
            text=sql,
            cancelled=cancelled,
            hear=hear,
            pass_fds=(lock,),
        )
    finally:
        os.close(lock)


def sync(path: str) -> None:
    """Have all that was written to the file system of `path` on its disk."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            finish(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise Unreachable(f"{path} cannot be synced: {error.strerror}") from None


def _make_directory(path: str, who: Account | None = None) -> None:
    try:
        os.mkdir(path, 0o700)
        if who is not None:
            who.own(path)
    except OSError as error:
        raise Unreachable(f"{path} cannot be made: {error.strerror}") from None


def own(top: str, who: Account) -> None:
    """Give a restored cluster to the account; PostgreSQL wants the top to be nobody else's. No link is followed.

    Another database's server runs as the same account, and what is given to it it may exchange for a link: hence by descriptors.
    """
    for _, names, files, fd in os.fwalk(top):
        for name in (*names, *files):
            who.own(name, fd)
        who.own(fd)
    os.chmod(top, 0o700)
