"""What a server is told, in the place of whatever the bundle says: arguments, configuration, host-based access. Pure.

A bundle is data. Its postgresql.conf, pg_hba.conf and pg_ident.conf are not read, for ours are named on the command line. Its
postgresql.auto.conf *is* read, wherever the others lie, so what is dangerous there (whatever loads a library, runs a command,
opens the server to others, or gives up durability) is set on the command line, which is stronger. What roles and databases have
of their own (ALTER ROLE … SET) is stronger still: see `sessions.Admin.disarm`.

Access has two phases. CLOSED lets in nobody but ADMIN: before the application may, and after it has ended. OPEN lets clients in
from this pod alone. ADMIN, the battery's own superuser, comes over a socket and with a password in either phase, though its
socket lies in a directory of its own: another container that runs as the same user may connect to the one on the shared volume,
and with `peer` it would be the superuser.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import pbkdf2_hmac, sha256

from sidecar.parameters.postgres import ADMIN as ADMIN
from sidecar.values import value

SOCKET_PATH = 107  # sizeof(sockaddr_un.sun_path), without the zero
ITERATIONS = 4096  # PostgreSQL's own; some clients refuse fewer

# Set on the command line of every server. In the order of the manual's chapter; the number is the first major that knows it.
_OWN: tuple[tuple[int, str, str], ...] = (
    (0, "dynamic_library_path", "$libdir"),
    (0, "shared_preload_libraries", ""),
    (0, "session_preload_libraries", ""),
    (0, "local_preload_libraries", ""),
    (0, "jit_provider", "llvmjit"),
    (18, "oauth_validator_libraries", ""),
    (18, "extension_control_path", "$system"),
    (0, "archive_mode", "off"),
    (0, "archive_command", ""),
    (15, "archive_library", ""),
    (0, "restore_command", ""),
    (0, "archive_cleanup_command", ""),
    (0, "recovery_end_command", ""),
    (0, "primary_conninfo", ""),
    (0, "synchronous_standby_names", ""),
    (0, "ssl", "off"),
    (0, "ssl_passphrase_command", ""),
    (0, "krb_server_keyfile", ""),
    (0, "fsync", "on"),
    (0, "full_page_writes", "on"),
    (0, "synchronous_commit", "on"),
    (0, "data_sync_retry", "off"),
    (0, "zero_damaged_pages", "off"),
    (0, "ignore_checksum_failure", "off"),
    (14, "ignore_invalid_pages", "off"),
    (0, "allow_system_table_mods", "off"),
    (0, "restart_after_crash", "on"),
    (0, "log_destination", "stderr"),
    (0, "logging_collector", "off"),
    (0, "password_encryption", "scram-sha-256"),
    # How far a recovery is, every so often: for whoever waits for it.
    (15, "log_startup_progress_interval", "1s"),
)
# What a session of ours insists on, for it is stronger than what roles and databases have of their own.
_SESSION: tuple[tuple[int, str, str], ...] = (
    (0, "session_preload_libraries", ""),
    (0, "local_preload_libraries", ""),
    (0, "role", "none"),
    (0, "search_path", "pg_catalog"),
    (0, "statement_timeout", "0"),
    (0, "lock_timeout", "0"),
    (0, "idle_in_transaction_session_timeout", "0"),
    (14, "idle_session_timeout", "0"),
    (17, "transaction_timeout", "0"),
    (0, "default_transaction_read_only", "off"),
    (0, "synchronous_commit", "on"),
    (17, "event_triggers", "off"),  # one that fails at a login would keep us out
)


@value
class Places:
    """Where a server has things: its data, our files for it, its private socket, and the clients' ("" for none)."""

    data: str
    home: str
    socket: str
    clients: str = ""

    @property
    def configuration(self) -> str:
        return f"{self.home}/postgresql.conf"

    @property
    def hba(self) -> str:
        return f"{self.home}/pg_hba.conf"

    @property
    def ident(self) -> str:
        return f"{self.home}/pg_ident.conf"


def server_arguments(places: Places, major: int, settings: Mapping[str, str]) -> list[str]:
    """Return a server's arguments: where its files are, and what is not for a bundle to say. `settings` are the operator's."""
    files = {
        "config_file": places.configuration,
        "hba_file": places.hba,
        "ident_file": places.ident,
        "data_directory": places.data,
        "external_pid_file": f"{places.socket}/pid",  # it cannot be switched off, and is removed in the end: not /dev/null
    }
    own = {name: text for since, name, text in _OWN if major >= since}
    # The operator may well load a library; a bundle may not.
    given = {**own, **settings, **files}
    return ["-D", places.data, *(part for name, text in given.items() for part in ("-c", f"{name}={text}"))]


def session_options(major: int) -> str:
    """Return what libpq is to ask of a server for a session of ours, as its `options`."""
    return " ".join(f"-c {name}={text}" for since, name, text in _SESSION if major >= since)


def network_arguments(places: Places, port: int, *, listen: bool) -> list[str]:
    """Return the arguments that say where a server listens: at sockets, and on the loopback where `listen`."""
    sockets = [each for each in (places.socket, places.clients) if each]
    given = {
        "port": str(port),
        "listen_addresses": "127.0.0.1" if listen else "",
        "unix_socket_directories": ",".join(map(_listed, sockets)),
        "unix_socket_permissions": "0777",
        "unix_socket_group": "",
    }
    return [part for name, text in given.items() for part in ("-c", f"{name}={text}")]


def _listed(folder: str) -> str:
    """Return a directory as it stands in a list of them."""
    return '"{}"'.format(folder.replace('"', '""'))


def socket_fits(folder: str, port: int) -> bool:
    """Say whether the path of a server's socket in `folder` is short enough for the kernel."""
    return len(f"{folder}/.s.PGSQL.{port}".encode()) <= SOCKET_PATH


def postgresql_conf(*, shared_memory: bool, prepared: int = 0) -> str:
    """Return what may be set by ALTER SYSTEM as well.

    `shared_memory` says whether /dev/shm is large enough to be used. `prepared` is how many transactions may have been prepared
    when the cluster was last in use: with fewer it would not start.

    The log is compressed: what a short session writes is pages it touches, whole, and the segment they are in is archived. After
    200 rows were updated, 4.2 MB of 7.6 that were stored again were of the log.
    """
    lines = [
        "# Written at every start. Settings: `settings` of the database, or ALTER SYSTEM.",
        "lc_messages = 'C'",
        "timezone = 'UTC'",
        "log_timezone = 'UTC'",
        "log_line_prefix = '%m [%p] '",
        "log_checkpoints = off",
        "datestyle = 'iso'",
        "wal_compression = on",
        f"max_prepared_transactions = {prepared}",
    ]
    if not shared_memory:
        lines.append("dynamic_shared_memory_type = mmap")
    return "\n".join(lines) + "\n"


CLOSED = f"""\
# Nobody but the battery.
local all {ADMIN} scram-sha-256
local all all reject
host all all all reject
"""


def open_hba(*, trust: bool) -> str:
    """Return the access that clients of this pod have."""
    method = "trust" if trust else "scram-sha-256"
    return f"""\
# Clients of this pod, over its loopback and the socket. The battery's own superuser comes by a socket alone.
local all {ADMIN} scram-sha-256
local replication all reject
local all all {method}
host all {ADMIN} all reject
host replication all all reject
host all all 127.0.0.1/32 {method}
host all all ::1/128 {method}
host all all all reject
"""


def scram_verifier(password: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """Return what a server keeps of a password of printable ASCII (RFC 5803). Passwords themselves are never sent."""
    salted = pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    client, server = (hmac.digest(salted, name, "sha256") for name in (b"Client Key", b"Server Key"))
    encoded = (b64encode(each).decode() for each in (salt, sha256(client).digest(), server))
    return "SCRAM-SHA-256${}:{}${}:{}".format(iterations, *encoded)


def conninfo(parameters: Mapping[str, str | int]) -> str:
    """Return a libpq connection string."""
    return " ".join(f"{name}={_quoted(str(text))}" for name, text in parameters.items())


def _quoted(text: str) -> str:
    if text and all(c.isalnum() or c in "/._-:" for c in text):
        return text
    return "'{}'".format(text.replace("\\", "\\\\").replace("'", "\\'"))


def passfile(entries: Iterable[tuple[str, int, str, str]]) -> str:
    """Return a libpq password file: a line for each (host, port, user, password), for all databases."""
    return "".join(
        ":".join([_escaped(host), str(port), "*", _escaped(user), _escaped(password)]) + "\n"
        for host, port, user, password in entries
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(":", "\\:")
