"""What is recorded of works, and what whoever keeps records owes: a folder does, in SQLite, and a PostgreSQL server does.

Whatever is asked for, begun or over is committed when the method that says so returns, and is the same for every process that
asks. What a work says while it is under way, and its log, may be lost to a power cut, not to the death of any process.

A worker holds its lease from before it claims a work until after it has recorded the end. So a work that is under way and whose
lease nobody holds is nobody's: `bury` fails it, and whoever reads calls that first.

Records may be of several sites, see sidecar.factory.site: whoever looks sees the works of all, and does those of its own.

All methods raise Unreachable where the records cannot be read or written, and SourceMissing for a work that there is not. Records
may be used by several threads, and by those at once; what was forked opens its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, Self

from sidecar.errors import ConfigurationError
from sidecar.factory.model import Asked, Kind, Status, Work
from sidecar.factory.records_sql import LOG_ENDS as LOG_ENDS
from sidecar.factory.records_sql import LOG_LIMIT as LOG_LIMIT
from sidecar.factory.records_sql import new_worker as new_worker
from sidecar.state import state_folder

_DATABASES = ("postgresql://", "postgres://")


class Records(Protocol):
    """Records of builds and pushes. Times are microseconds since 1970."""

    def ask(self, asked: Asked, at: int, *, anew: bool = False) -> Work:
        """Return the work that makes what is asked: the latest of the same, unless that has failed; else a new one, PENDING.

        Whoever asks `anew` is not given one that is COMPLETE: what it made is gone.
        """

    def get(self, id: int) -> Work:  # noqa: A002
        """Return the work of that number. SourceMissing."""

    def find(self, kind: Kind | str = "", image: str = "", status: Sequence[Status] = (), limit: int = 100) -> list[Work]:
        """Return works, newest first: of a kind, of an image, of any of those statuses; "" and () are all."""

    def latest(
        self, kind: Kind, image: str, site: str, provider: str = "", content: str = "", status: Status | str = ""
    ) -> Work | None:
        """Return the newest work of a kind for an image at a site; to a provider, of a content or status, where one is named."""

    def waiting(self, site: str | None = None) -> int:
        """Return how many works of a site are PENDING, or of all sites."""

    def claim(self, worker: str, at: int, site: str) -> Work | None:
        """Begin the PENDING work that was asked for first at a site, for whoever holds the lease `worker`, and return it."""

    def progress(self, id: int, percent: int, activity: str) -> bool:  # noqa: A002
        """Record how far a work is, at most 99 and never less than before, and what it does; False where it is not under way."""

    def finish(self, id: int, digest: str, reference: str, at: int) -> bool:  # noqa: A002
        """Record that a work is COMPLETE; False where it is not under way, as one that was buried."""

    def fail(self, id: int, error: str, at: int) -> bool:  # noqa: A002
        """Record that a work, PENDING or under way, has FAILED; False where it is over.

        Anybody may, of any site: its worker is told by the next thing that it records.
        """

    def say(self, id: int, data: bytes) -> bool:  # noqa: A002
        """Append to the log of a work; False where it is over. Of more than LOG_LIMIT bytes the first are kept, then LOG_ENDS."""

    def log(self, id: int, offset: int = 0, limit: int = 1 << 20) -> bytes:  # noqa: A002
        """Return what a work has said so far from that byte on, at most `limit` bytes of it. SourceMissing."""

    def lease(self, worker: str) -> AbstractContextManager[None]:
        """Hold the lease of that name, which `new_worker` made and nobody ever held, until the end of the block."""

    def alive(self, worker: str) -> bool:
        """Tell whether somebody holds that lease."""

    def bury(self, at: int) -> list[Work]:
        """Fail the works under way whose worker is not alive, and return them as they are now."""

    def close(self) -> None:
        """Let go of them."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def state_of(environment: Mapping[str, str]) -> str:
    """Return where records are when nobody says: SIDECAR_STATE, which may be a database's URL, else as `state_folder` has it.

    A URL may hold a password: it is handed on in an environment, never on a command line.
    """
    said = environment.get("SIDECAR_STATE", "")
    return said if said.startswith(_DATABASES) else state_folder(environment)


def open_records(state: str) -> Records:
    """Open the records in a folder, or in the database of a postgresql:// URL; they are made where there are none.

    ConfigurationError where a newer version wrote them, where the URL is none, and where psycopg is not installed.
    """
    if state.startswith(_DATABASES):
        try:
            from sidecar.factory.records_postgres import PostgresRecords
        except ImportError:
            raise ConfigurationError("psycopg is not installed: pip install 'sidecar-toolkit[postgres]'") from None
        return PostgresRecords(state)
    if "://" in state:
        raise ConfigurationError("records are kept in a directory, or in the database of a URL that begins with postgresql://")
    from sidecar.factory.records_sqlite import SqliteRecords

    return SqliteRecords(state)
