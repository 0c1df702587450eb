"""Works in two tables of SQL that SQLite and PostgreSQL both have: what may happen to a work, and what may not.

Whoever keeps them says how a statement is carried out and who is alive. A statement has ? where values stand, and neither % nor
another ?. Each rule stands in the WHERE of the statement that it is about, not in what was read before: between the two others
write. `ask` and `claim`, which look before they write, are alone meanwhile; so is `fail`, for what it ends may be what `claim`
sees waiting.

The columns stand in sidecar.state and in records_postgres.
"""

# ruff: noqa: S608  what is put into statements are words of this module, values never

from __future__ import annotations

import json
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

from sidecar.errors import SourceMissing
from sidecar.factory.model import BEGUN, Asked, Kind, Status, Work

Row = tuple[Any, ...]
Execute = Callable[..., list[Row]]

# How much is kept of what a work says, and what stands behind it where it said more.
LOG_LIMIT = 16 << 20
LOG_ENDS = b"\n... the log was cut here: no more of it is kept\n"
# How much of it a row holds at most.
_PIECE = 256 << 10
# How much is kept of what is shown in one place.
_TEXT = 8192

_COLUMNS = (
    "id", "site", "kind", "image", "target", "content", "status", "percent", "activity", "error", "provider", "build",
    "digest", "reference", "labels", "worker", "asked", "started", "finished",
)  # fmt: skip
_ALL = ", ".join(_COLUMNS)
_SELECT = f"SELECT {_ALL} FROM work"
_UNDER_WAY = f"status IN ({', '.join(repr(status) for status in BEGUN.values())})"
_BEGUN = f"CASE kind {' '.join(f'WHEN {kind!r} THEN {status!r}' for kind, status in BEGUN.items())} END"
_DIED = "the builder died"
# What both databases have as a number.
_LARGEST = (1 << 63) - 1


_WORKER = re.compile(r"[0-9a-f]{32}")


def new_worker() -> str:
    """Return a name that no other lease has."""
    return os.urandom(16).hex()


def is_worker(name: str) -> bool:
    """Tell whether `new_worker` may have made this name."""
    return _WORKER.fullmatch(name) is not None


def check_worker(name: str) -> None:
    """ValueError where `new_worker` has not made this name."""
    if not is_worker(name):
        raise ValueError(f"{name!r} is no name that new_worker made")


class SqlRecords(ABC):
    """Records in tables; see sidecar.factory.records.Records for what each method owes."""

    def __init__(self) -> None:
        # A connection is one thread's at a time.
        self._mine = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what whoever keeps them says

    @abstractmethod
    def _read(self, sql: str, *parameters: object) -> list[Row]:
        """Return the rows that a statement finds."""

    @abstractmethod
    def _writing(self, *, durable: bool, alone: bool) -> AbstractContextManager[Execute]:
        """Yield what carries out statements of one transaction; nobody else's that is `alone` goes on meanwhile."""

    @abstractmethod
    def _check_room(self, size: int) -> None:
        """Unreachable where keeping so many bytes would take the room that ends need."""

    @abstractmethod
    def lease(self, worker: str) -> AbstractContextManager[None]:
        """Hold a lease until the end of the block."""

    @abstractmethod
    def alive(self, worker: str) -> bool:
        """Tell whether somebody holds a lease."""

    @abstractmethod
    def _drop(self, worker: str) -> None:
        """Remove what is left of a dead worker's lease."""

    @abstractmethod
    def close(self) -> None:
        """Let go of them."""

    # --- asking

    def get(self, id: int) -> Work:  # noqa: A002
        """Return one work."""
        rows = self._reading(f"{_SELECT} WHERE id = ?", id) if 0 < id <= _LARGEST else []
        if not rows:
            raise SourceMissing(f"there is no work {id}")
        return _work(rows[0])

    def find(self, kind: str = "", image: str = "", status: Sequence[Status] = (), limit: int = 100) -> list[Work]:
        """Return works, newest first."""
        where: dict[str, str] = {"kind": kind, "image": image}
        conditions = [f"{name} = ?" for name, value in where.items() if value]
        values = [_text(value) for value in where.values() if value]
        if status:
            conditions.append(f"status IN ({', '.join('?' * len(status))})")
        which = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        most = max(0, min(limit, _LARGEST))
        return [_work(row) for row in self._reading(f"{_SELECT} {which} ORDER BY id DESC LIMIT ?", *values, *status, most)]

    def latest(
        self, kind: Kind, image: str, site: str, provider: str = "", content: str = "", status: Status | str = ""
    ) -> Work | None:
        """Return the newest work for an image."""
        where: dict[str, str] = {"provider": provider, "content": content, "status": status}
        named = {"kind": kind, "image": _text(image), "site": _text(site)}
        named |= {name: _text(value) for name, value in where.items() if value}
        conditions = " AND ".join(f"{name} = ?" for name in named)
        rows = self._reading(f"{_SELECT} WHERE {conditions} ORDER BY id DESC LIMIT 1", *named.values())
        return _work(rows[0]) if rows else None

    def waiting(self, site: str | None = None) -> int:
        """Return how many are PENDING."""
        counted = "SELECT count(*) FROM work WHERE status = 'PENDING'"
        found = self._reading(counted) if site is None else self._reading(f"{counted} AND site = ?", _text(site))
        return int(found[0][0])

    def log(self, id: int, offset: int = 0, limit: int = 1 << 20) -> bytes:  # noqa: A002
        """Return a part of what a work has said."""
        self.get(id)
        first = max(0, min(offset, LOG_LIMIT * 2))
        last = first + max(0, min(limit, LOG_LIMIT * 2))
        rows = self._reading(
            "SELECT at, bytes FROM work_log WHERE work = ? AND at > ? AND at < ? ORDER BY at", id, first - _PIECE, last
        )
        return b"".join(bytes(data)[max(0, first - at) : max(0, last - at)] for at, data in rows)

    # --- saying

    def ask(self, asked: Asked, at: int, *, anew: bool = False) -> Work:
        """Return the latest of the same, or a new one."""
        same = json.dumps(asked.same)
        with self._changing(alone=True) as execute:
            rows = execute(f"{_SELECT} WHERE same = ? ORDER BY id DESC LIMIT 1", same)
            if rows:
                found = _work(rows[0])
                if found.status != "FAILED" and not (anew and found.status == "COMPLETE"):
                    return found
            told = (asked.site, asked.kind, asked.image, asked.target, asked.content, asked.provider)
            rows = execute(
                "INSERT INTO work (same, site, kind, image, target, content, provider, build, labels, status, asked) "
                f"VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'PENDING', ?) RETURNING {_ALL}",
                *(same, *map(_text, told), asked.build, json.dumps(dict(asked.labels)), at),
            )
            return _work(rows[0])

    def claim(self, worker: str, at: int, site: str) -> Work | None:
        """Begin the first that is PENDING."""
        with self._changing(alone=True) as execute:
            rows = execute(
                f"UPDATE work SET status = {_BEGUN}, worker = ?, started = ? "
                f"WHERE id = (SELECT min(id) FROM work WHERE status = 'PENDING' AND site = ?) RETURNING {_ALL}",
                *(worker, at, _text(site)),
            )
        return _work(rows[0]) if rows else None

    def progress(self, id: int, percent: int, activity: str) -> bool:  # noqa: A002
        """Record how far a work is."""
        now = max(0, min(percent, 99))
        return self._change(
            "UPDATE work SET percent = CASE WHEN percent < ? THEN ? ELSE percent END, activity = ? "
            f"WHERE id = ? AND {_UNDER_WAY}",
            *(now, now, _text(activity), id),
            durable=False,
        )

    def finish(self, id: int, digest: str, reference: str, at: int) -> bool:  # noqa: A002
        """Record that a work is COMPLETE."""
        return self._change(
            "UPDATE work SET status = 'COMPLETE', percent = 100, activity = '', digest = ?, reference = ?, finished = ? "
            f"WHERE id = ? AND {_UNDER_WAY}",
            *(_text(digest), _text(reference), at, id),
        )

    def fail(self, id: int, error: str, at: int) -> bool:  # noqa: A002
        """Record that a work has FAILED."""
        return self._change(
            f"UPDATE work SET status = 'FAILED', error = ?, finished = ? WHERE id = ? AND (status = 'PENDING' OR {_UNDER_WAY})",
            *(_text(error), at, id),
            alone=True,
        )

    def say(self, id: int, data: bytes) -> bool:  # noqa: A002
        """Append to the log of a work."""
        self._check_room(len(data))
        with self._changing(durable=False) as execute:
            rows = execute(f"UPDATE work SET said = said + ? WHERE id = ? AND {_UNDER_WAY} RETURNING said", len(data), id)
            if rows:
                for at, piece in _kept(int(rows[0][0]) - len(data), data):
                    execute("INSERT INTO work_log (work, at, bytes) VALUES (?, ?, ?)", id, at, piece)
        return bool(rows)

    def bury(self, at: int) -> list[Work]:
        """Fail what is under way and nobody's."""
        buried = []
        for id_, worker in self._reading(f"SELECT id, worker FROM work WHERE {_UNDER_WAY} ORDER BY id"):
            if self.alive(worker):
                continue
            # It was dead when it was looked at, so it says nothing more: what it said is its last.
            with self._changing() as execute:
                rows = execute(
                    "UPDATE work SET status = 'FAILED', finished = ?, "
                    "error = CASE WHEN activity = '' THEN ? ELSE ? || activity END "
                    f"WHERE id = ? AND {_UNDER_WAY} RETURNING {_ALL}",
                    *(at, f"{_DIED} before it began", f"{_DIED} at ", id_),
                )
            self._drop(worker)
            buried += [_work(row) for row in rows]
        return buried

    # --- one thread at a time

    def _reading(self, sql: str, *parameters: object) -> list[Row]:
        with self._mine:
            return self._read(sql, *parameters)

    @contextmanager
    def _changing(self, *, durable: bool = True, alone: bool = False) -> Iterator[Execute]:
        with self._mine, self._writing(durable=durable, alone=alone) as execute:
            yield execute

    def _change(self, sql: str, *parameters: object, durable: bool = True, alone: bool = False) -> bool:
        """Carry out one statement about one work, and tell whether it was about any."""
        with self._changing(durable=durable, alone=alone) as execute:
            return bool(execute(f"{sql} RETURNING id", *parameters))


def _kept(at: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield what is kept of `data`, before which `at` bytes were said, in rows with where they stand."""
    kept = data[: max(0, LOG_LIMIT - at)]
    for start in range(0, len(kept), _PIECE):
        yield at + start, kept[start : start + _PIECE]
    if at <= LOG_LIMIT < at + len(data):
        yield LOG_LIMIT, LOG_ENDS


def _work(row: Row) -> Work:
    said = dict(zip(_COLUMNS, row, strict=True))
    return Work(**(said | {"labels": json.loads(said["labels"])}))


def _text(said: str) -> str:
    """Return `said` as both databases take it, and not too long: neither takes half a character, PostgreSQL takes no NUL."""
    clean = "".join("\ufffd" if "\ud800" <= c <= "\udfff" or c == "\0" else c for c in said)
    return clean if len(clean) <= _TEXT else clean[: _TEXT - 1] + "…"
