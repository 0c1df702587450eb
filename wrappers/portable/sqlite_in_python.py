"""`_sqlite3` in the portable wrapper: the part of CPython's own that a ledger needs, over the calls of sqlite.c.

No static library of CPython's module is published. What is here does as that does, errors and their codes included
(tests/test_portable_sqlite.py asks both the same): autocommit alone; statements that begin with their keyword; `?` for values.
A connection may be used by any thread, by one at a time.
"""

from __future__ import annotations

import _sidecar_sqlite

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

_CHANGING = ("INSERT", "UPDATE", "DELETE", "REPLACE")


class Error(Exception):
    """Whatever went wrong. What SQLite refused bears its extended code as `sqlite_errorcode`."""


class DatabaseError(Error):
    pass


class DataError(DatabaseError):
    pass


class IntegrityError(DatabaseError):
    pass


class OperationalError(DatabaseError):
    pass


class ProgrammingError(DatabaseError):
    pass


# By SQLite's primary codes: ERROR, PERM to LOCKED, READONLY to IOERR, FULL to SCHEMA; TOOBIG; CONSTRAINT and MISMATCH.
_CLASSES = dict.fromkeys((1, 3, 4, 5, 6, 8, 9, 10, 13, 14, 15, 16, 17), OperationalError) | {
    18: DataError,
    19: IntegrityError,
    20: IntegrityError,
}


def _asked(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except _sidecar_sqlite.Misused as misused:
        raise ProgrammingError(*misused.args) from None
    except _sidecar_sqlite.Refused as refused:
        code, message = refused.args
        error = _CLASSES.get(code & 0xFF, DatabaseError)(message)
        error.sqlite_errorcode = code
        raise error from None


def connect(database: str, timeout: float = 5.0, *, isolation_level: None, check_same_thread: bool) -> Connection:
    """Open the database at the path `database`, made where it is missing; wait `timeout` seconds for the locks of others."""
    if isolation_level is not None or check_same_thread:
        raise ValueError("autocommit, in any thread, is the only way here")
    return Connection(_asked(_sidecar_sqlite.open, database, int(timeout * 1000)))


class Connection:
    def __init__(self, database: Any) -> None:
        self._database = database

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        """Begin a statement: to its first row, or its end."""
        return Cursor(self._database, sql, tuple(parameters))

    @property
    def in_transaction(self) -> bool:
        return bool(_asked(self._database.in_transaction))

    def close(self) -> None:
        self._database.close()


class Cursor:
    """A statement that has begun. It stands on the row that comes next, and holds its locks until there is none."""

    def __init__(self, database: Any, sql: str, parameters: tuple[Any, ...]) -> None:
        self._database = database
        self._statement = _asked(database.prepare, sql)
        self._changes = sql.lstrip()[:7].upper().startswith(_CHANGING)
        self.rowcount = 0 if self._changes else -1
        _asked(self._statement.bind, parameters)
        self._step()
        self.lastrowid: int = database.last_insert_rowid()

    def _step(self) -> None:
        self._on_row = False
        self._on_row = _asked(self._statement.step)
        if self._changes and not self._on_row:
            self.rowcount = self._database.changes()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self

    def __next__(self) -> tuple[Any, ...]:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def fetchone(self) -> tuple[Any, ...] | None:
        _asked(self._database.check)
        if not self._on_row:
            return None
        try:
            row: tuple[Any, ...] = self._statement.row()
        except UnicodeDecodeError as error:
            raise OperationalError(f"Could not decode to UTF-8: {error}") from None
        self._step()
        return row

    def fetchall(self) -> list[tuple[Any, ...]]:
        return list(self)
