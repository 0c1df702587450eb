"""Runs as the store's rows, and as the last words in a lease."""

from __future__ import annotations

import os

from sidecar.exits import Exit
from sidecar.once.asked import Asked, hash_of
from sidecar.once.facts import RUNNING, Piece, Run, Written
from sidecar.process import Identity
from sidecar.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from sidecar.state import Row, Transaction


def run_of(row: Row) -> Run:
    """Return the run that a row is; its variables stand elsewhere."""
    # In the order of the schema: a migration appends.
    (
        number,
        lease_name,
        instance,
        name,
        state,
        command,
        directory,
        pid,
        ticks,
        boot,
        namespace,
        claimed,
        started,
        finished,
        *rest,
    ) = row
    code, signal, reason, instead, out, out_kept, err, err_kept, cut, *_ = rest
    return Run(
        number,
        lease_name,
        instance,
        name,
        state,
        tuple(os.fsdecode(word) for word in command.split(b"\0")),
        os.fsdecode(directory),
        Identity(pid, ticks, boot, namespace),
        claimed,
        started,
        finished,
        Exit(code, signal, reason, instead),
        Written(out, out_kept),
        Written(err, err_kept),
        cut,
    )


def insert(transaction: Transaction, asked: Asked, me: Identity, at: int, lease_name: str) -> int:
    """Write a claim, and return the number of its run."""
    cursor = transaction.execute(
        "INSERT INTO run (lease, instance, name, state, command, directory, pid, ticks, boot, namespace, claimed) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            lease_name,
            asked.instance,
            asked.name,
            RUNNING,
            b"\0".join(os.fsencode(word) for word in asked.kept_command),
            os.fsencode(asked.directory),
            me.pid,
            me.ticks,
            me.boot,
            me.namespace,
            at,
        ),
    )
    number = int(cursor.lastrowid or 0)
    effective = dict(asked.environment)
    for name, kept in asked.kept_environment:
        salt = os.urandom(16) if name in asked.redacted else None
        hashed = hash_of(effective[name], salt) if salt is not None else None
        shown = None if salt is not None else os.fsencode(kept)
        transaction.execute("INSERT INTO variable VALUES (?, ?, ?, ?, ?)", (number, os.fsencode(name), shown, salt, hashed))
    return number


def insert_pieces(transaction: Transaction, number: int, pieces: Sequence[Piece]) -> None:
    """Write pieces of what a run wrote; those that are there already stay as they are."""
    for piece in pieces:
        transaction.execute(
            "INSERT OR IGNORE INTO output VALUES (?, ?, ?, ?, ?)", (number, piece.number, piece.stream, piece.at, piece.bytes)
        )


_ENDS = (
    "state", "started", "finished", "code", "signal", "reason", "instead", "stdout", "stdout_kept", "stderr", "stderr_kept",
    "cut",
)  # fmt: skip


def _ends(run: Run) -> tuple[Any, ...]:
    e = run.exit
    wrote = (run.stdout.total, run.stdout.kept, run.stderr.total, run.stderr.kept)
    return (run.state, run.started, run.finished, e.code, e.signal, as_text(e.reason), e.instead, *wrote, as_text(run.cut))


def as_text(said: str) -> str:
    """Return `said` as SQLite takes it, and as it is printed the first time: names of files in it may be no Unicode."""
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in said)


def write_end(transaction: Transaction, run: Run) -> None:
    """Write how a run ended, unless that was done."""
    transaction.execute(
        "UPDATE run SET state = ?, started = ?, finished = ?, code = ?, signal = ?, reason = ?, instead = ?, "
        "stdout = ?, stdout_kept = ?, stderr = ?, stderr_kept = ?, cut = ? WHERE id = ? AND state = ?",
        (*_ends(run), run.id, RUNNING),
    )


def write_sums(transaction: Transaction, run: Run) -> None:
    """Write how much a run wrote, and how much of it is kept."""
    transaction.execute(
        "UPDATE run SET stdout = ?, stdout_kept = ?, stderr = ?, stderr_kept = ?, cut = ? WHERE id = ?",
        (run.stdout.total, run.stdout.kept, run.stderr.total, run.stderr.kept, run.cut, run.id),
    )


def words_of(run: Run) -> str:
    """Return how a run ended, as one line for its lease."""
    # Tabs, which stand in no reason of ours that matters. The longest last, for the room has an end.
    parts = [str(each).replace("\t", " ").replace("\n", " ") for each in _ends(run)]
    reason = parts.pop(_ENDS.index("reason"))
    return "\t".join(["end", *parts, reason])


def with_words(run: Run, words: str) -> Run | None:
    """Return `run` with the end that last words tell; None where they tell none."""
    what, *parts = words.split("\t")
    if what != "end" or len(parts) != len(_ENDS):
        return None
    try:
        state, started, finished, code, signal, instead, out, out_kept, err, err_kept, cut, reason = parts
        return replace(
            run,
            state=state,
            started=int(started),
            finished=int(finished),
            exit=Exit(int(code), int(signal), reason, int(instead)),
            stdout=Written(int(out), int(out_kept)),
            stderr=Written(int(err), int(err_kept)),
            cut=cut,
        )
    except ValueError:
        return None
