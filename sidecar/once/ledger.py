"""The ledger of runs: who claimed which, how it ended, what it wrote. Facts only; running and replaying is sidecar.once.run's.

`unknown` stands nowhere: it is what a row that says `running` means once its owner is dead. A row that is read as running is read
again after the owner was found dead, because an owner writes the end before it lets go of its lease.
"""

from __future__ import annotations

import os

from sidecar import process
from sidecar.errors import DeadlinePassed, SidecarError, SourceMissing, Unreachable
from sidecar.exits import Exit
from sidecar.once import lease
from sidecar.once.asked import Asked, Variable, differences, hash_of
from sidecar.once.facts import (
    FAILED_TO_START,
    FINISHED,
    LIMIT,
    RUNNING,
    STDERR,
    STDOUT,
    UNKNOWN,
    Heard,
    OtherRun,
    Piece,
    Run,
    Written,
    now,
    remedy,
)
from sidecar.process import Identity
from sidecar.state import State, state_folder
from sidecar.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, Self

    from sidecar.once.run import Result
    from sidecar.state import Row, Transaction

# How many pieces of output are read at once; each has at most 64 KiB, what a pipe holds.
_WINDOW = 64
# How long a program's output and its end wait for others that write, in seconds: another process may have been stopped while it
# did, and the end of a container does not wait. The output is tried again, the end stands in the lease then.
HASTE = 2.0


class Ledger:
    """The ledger in the directory `folder`: $SIDECAR_STATE or `sidecar` in the user's state directory where none is named.

    Raises what State raises, and makes it where State does. May be used by several threads, not at once, and by any number of
    processes.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, make: bool = True) -> None:
        self.state = State(os.fspath(folder) if folder is not None else state_folder(os.environ), make=make)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the store."""
        self.state.close()

    def run_once(
        self,
        name: str,
        command: Sequence[str],
        *,
        instance: str | None = None,
        env: Mapping[str, str] | None = None,
        redact: Sequence[str] = (),
        directory: str | None = None,
        wait: bool = True,
        limit: int = LIMIT,
    ) -> Result:
        """Run `command` unless it has run under this name, and return what came of it, then or now.

        `env` is given to it beside this process's own environment, `$(VAR)` being put in there and in the command; of the
        variables in `redact` a hash is kept. `instance` is what makes another container another: see instance_of. Its output is
        kept, up to `limit` bytes of each stream, and not passed on. Where it is running, this waits for its end, unless told not
        to (DeadlinePassed). Raises OtherRun where something else ran under the name, OutcomeUnknown where nobody knows how it
        ended, Unreachable where it cannot be claimed: then nothing is begun.

        It is killed should the thread that calls this end before it (PR_SET_PDEATHSIG goes by threads).
        """
        from sidecar.once.asked import ask
        from sidecar.once.instance import instance_of, working_directory
        from sidecar.once.run import run_once

        where = instance_of(os.environ) if instance is None else instance
        asked = ask(where, name, command, os.path.realpath(directory or working_directory()), env or {}, os.environ, redact)
        return run_once(self, asked, wait=wait, limit=limit)

    # --- asking

    def find(self, instance: str, name: str) -> Run | None:
        """Return the run of that name; None where there is none."""
        return self._settled_one("SELECT * FROM run WHERE instance = ? AND name = ?", (instance, name))

    def get(self, instance: str, name: str) -> Run:
        """Return the run of that name; SourceMissing, which tells those that there are."""
        found = self.find(instance, name)
        if found is None:
            known = [
                f"{n} of {i}" if i != instance else n for i, n in self.state.read("SELECT instance, name FROM run ORDER BY id")
            ]
            there = f"; runs there: {', '.join(known[-10:])}" if known else "; there are none"
            raise SourceMissing(f"{self.state.path}: no run {name!r} of {instance}{there}", known)
        return found

    def again(self, run: Run) -> Run | None:
        """Return how it stands with a run by now; None where it was forgotten."""
        return self._settled_one("SELECT * FROM run WHERE id = ?", (run.id,))

    def runs(self) -> list[Run]:
        """Return all runs, in the order in which they were claimed."""
        return [self._settled(_run(row)) for row in self.state.read("SELECT * FROM run ORDER BY id")]

    def pieces(self, run: Run, after: int = 0) -> list[Piece]:
        """Return the next pieces of what a run wrote, behind number `after`; none where there are no more, so far."""
        rows = self.state.read(
            "SELECT number, stream, at, bytes FROM output WHERE run = ? AND number > ? ORDER BY number LIMIT ?",
            (run.id, after, _WINDOW),
        )
        return [Piece(*row) for row in rows]

    def output(self, run: Run) -> Iterator[Piece]:
        """Yield what a run has written so far, in the order in which it was read."""
        after = 0
        while pieces := self.pieces(run, after):
            yield from pieces
            after = pieces[-1].number

    def _settled_one(self, sql: str, parameters: Sequence[object]) -> Run | None:
        rows = self.state.read(sql, parameters)
        return self._settled(_run(rows[0])) if rows else None

    def _settled(self, run: Run) -> Run:
        """Return `run` with its variables and, where it says that it is running and its owner is dead, what that means."""
        run = replace(run, variables=self._variables(run.id))
        if run.state != RUNNING or lease.lives(self.state.fd, run.lease, run.owner):
            return run
        rows = self.state.read("SELECT * FROM run WHERE id = ?", (run.id,))
        again = replace(_run(rows[0]), variables=run.variables) if rows else run
        if again.state != RUNNING:
            return again
        return self._with_last_words(again) or replace(again, state=UNKNOWN)

    def _with_last_words(self, run: Run) -> Run | None:
        """Return `run` as its owner left it where the ledger took no more, and carry that into the ledger now."""
        said = _from_words(run, lease.read_words(self.state.fd, run.lease))
        if said is not None:
            try:
                with self.state.write(patience=HASTE) as transaction:
                    _write_end(transaction, said)
                lease.drop(self.state.fd, run.lease)
            except SidecarError:
                pass  # The disk is still full, or others write; the words stand where they do.
        return said

    def _variables(self, number: int) -> tuple[Variable, ...]:
        rows = self.state.read("SELECT name, value, salt, hash FROM variable WHERE run = ? ORDER BY name", (number,))
        return tuple(Variable(os.fsdecode(n), os.fsdecode(v or b""), salt or b"", h or b"") for n, v, salt, h in rows)

    # --- claiming

    def claim(self, asked: Asked) -> Claim | Run:
        """Return the right to run what is asked for, or the run that has that name already.

        OtherRun where that is of something else. Unreachable where the claim cannot be written: then there is none.
        """
        found = self.find(asked.instance, asked.name)
        if found is None:
            claimed = self._claim(asked)
            if claimed is not None:
                return claimed
            found = self.get(asked.instance, asked.name)  # another was faster
        self.compare(asked, found)
        return found

    def compare(self, asked: Asked, run: Run) -> None:
        """Raise OtherRun where `run` is not of what is asked for."""
        if parts := differences(asked, run.command, run.directory, run.variables):
            raise OtherRun(
                f"{asked.name}: something else ran under this name in {asked.instance}: {'; '.join(parts)}; nothing is run "
                f"({remedy(run, self.state.folder)})",
                parts,
            )

    def _claim(self, asked: Asked) -> Claim | None:
        me = process.own_identity()
        if me is None or not me.boot:
            raise Unreachable("a run cannot be claimed without /proc: nobody could tell whether its owner is alive")
        at, fd, name = now(), -1, lease.new_name()
        try:
            with self.state.write() as transaction:
                if transaction.execute(
                    "SELECT 1 FROM run WHERE instance = ? AND name = ?", (asked.instance, asked.name)
                ).fetchone():
                    return None
                number = _insert(transaction, asked, me, at, name)
                fd = lease.take(self.state.fd, name)
        except BaseException as error:
            if fd >= 0:
                lease.drop(self.state.fd, name)
                os.close(fd)
            if isinstance(error, OSError):
                raise Unreachable(f"cannot claim {asked.name} in {self.state.folder}: {error.strerror}") from None
            raise
        run = Run(number, name, asked.instance, asked.name, RUNNING, asked.kept_command, asked.directory, me, at)
        if asked.environment:
            run = replace(run, variables=self._variables(number))
        return Claim(self, asked, run, fd)

    def complete(self, run: Run, exit_: Exit, finished: int) -> Run:
        """Write how a run of unknown outcome ended, for somebody who knows it from elsewhere, and return it. Unreachable."""
        # What was not begun has a reason, and no other status in its place.
        begun = not exit_.reason or exit_.instead
        ended = replace(run, state=FINISHED if begun else FAILED_TO_START, exit=exit_, finished=max(finished, run.started))
        with self.state.write() as transaction:
            _write_end(transaction, ended)
        lease.drop(self.state.fd, run.lease)
        return ended

    # --- forgetting

    def forget(self, instance: str, name: str) -> Run:
        """Forget a run, so that it may run again, and return it. SourceMissing; DeadlinePassed where it is running."""
        run = self.get(instance, name)
        if run.state == RUNNING:
            raise DeadlinePassed(
                f"{name} of {instance} is running (process {run.owner.pid}), and can be forgotten when it has ended", name
            )
        self._remove([run])
        return run

    def prune(self, before: int, *, dry_run: bool = False) -> list[Run]:
        """Forget the runs that ended before this moment, and return them.

        Those whose outcome is unknown are kept: they are forgotten one by one, by whoever knows what became of them.
        """
        old = [run for run in self.runs() if run.state in (FINISHED, FAILED_TO_START) and run.finished < before]
        if old and not dry_run:
            self._remove(old)
        return old

    def _remove(self, runs: Sequence[Run]) -> None:
        self._tidy()  # what is written now finds the room, then
        with self.state.write() as transaction:
            for run in runs:
                transaction.execute("DELETE FROM output WHERE run = ?", (run.id,))
                transaction.execute("DELETE FROM variable WHERE run = ?", (run.id,))
                transaction.execute("DELETE FROM run WHERE id = ?", (run.id,))
        for run in runs:
            lease.drop(self.state.fd, run.lease)
        self._tidy()

    def _tidy(self) -> None:
        try:
            self.state.read("PRAGMA wal_checkpoint(TRUNCATE)")
        except Unreachable:
            pass  # It is tidied by the next who finds room.


class Claim:
    """The right to run something, held until `finish`; whoever dies with it leaves a run of which nobody knows the outcome."""

    def __init__(self, ledger: Ledger, asked: Asked, run: Run, fd: int) -> None:
        self.ledger, self.asked, self.run, self._fd = ledger, asked, run, fd
        self._left: tuple[Piece, ...] = ()

    def begun(self) -> None:
        """Note that the program has begun."""
        self.run = replace(self.run, started=now())
        try:
            with self.ledger.state.write(durable=False, patience=HASTE) as transaction:
                transaction.execute("UPDATE run SET started = ? WHERE id = ?", (self.run.started, self.run.id))
        except SidecarError:
            pass  # It is written again with the end.

    def withdraw(self) -> None:
        """Give the claim back: nothing was begun. Unreachable."""
        try:
            with self.ledger.state.write() as transaction:
                transaction.execute("DELETE FROM variable WHERE run = ?", (self.run.id,))
                transaction.execute("DELETE FROM run WHERE id = ?", (self.run.id,))
            lease.drop(self.ledger.state.fd, self.run.lease)
        finally:
            os.close(self._fd)

    def keep(self, pieces: Sequence[Piece]) -> None:
        """Keep what the program wrote. Busy; SidecarError where it cannot be kept, or would take the room that others need."""
        state = self.ledger.state
        if sum(len(piece.bytes) for piece in pieces) > state.room():
            raise Unreachable(f"the disk that {state.folder} is on is nearly full")
        with state.write(durable=False, patience=HASTE) as transaction:
            _insert_pieces(transaction, self.run.id, pieces)

    def keep_last(self, heard: Heard) -> None:
        """Keep the last of what the program wrote, and how much it was, for `finish` or, should this process die, `complete`."""
        self._note(heard)
        try:
            with self.ledger.state.write(durable=False, patience=HASTE) as transaction:
                _insert_pieces(transaction, self.run.id, self._left)
                _write_sums(transaction, self.run)
            self._left = ()
        except SidecarError:
            pass  # It is tried again with the end.

    def finish(self, exit_: Exit, heard: Heard | None = None, *, state: str = FINISHED) -> Run:
        """Write how it ended and the last of what it wrote, and let go; return the run as it is kept.

        Where the ledger takes no more, the end stands in the lease, in room that was there before the program began. Unreachable
        where not even that can be.
        """
        if heard is not None:
            self._note(heard)
        self.run = replace(self.run, state=state, finished=now(), exit=replace(exit_, reason=_text(exit_.reason)))
        try:
            try:
                self._write()
            except SidecarError as error:
                self._leave_out(str(error))
                lease.write_words(self._fd, _words(self.run))
                self._write()
            lease.drop(self.ledger.state.fd, self.run.lease)
        except SidecarError:
            pass  # The last words are there.
        except OSError as error:
            raise Unreachable(
                f"how {self.run.name} ended cannot be written to {self.ledger.state.folder}: {error.strerror}"
            ) from None
        finally:
            os.close(self._fd)
        return self.run

    def _write(self) -> None:
        with self.ledger.state.write(patience=HASTE) as transaction:
            _insert_pieces(transaction, self.run.id, self._left)
            _write_end(transaction, self.run)

    def _note(self, heard: Heard) -> None:
        self._left = heard.pieces
        self.run = replace(self.run, stdout=heard.stdout, stderr=heard.stderr, cut=heard.cut)

    def _leave_out(self, why: str) -> None:
        lost = {stream: sum(len(p.bytes) for p in self._left if p.stream == stream) for stream in (STDOUT, STDERR)}
        out, err = self.run.stdout, self.run.stderr
        self.run = replace(
            self.run,
            stdout=replace(out, kept=out.kept - lost[STDOUT]),
            stderr=replace(err, kept=err.kept - lost[STDERR]),
            cut=self.run.cut or (why if self._left else ""),
        )
        self._left = ()


# --- rows --------------------------------------------------------------------------------------------------------------


def _run(row: Row) -> Run:
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


def _insert(transaction: Transaction, asked: Asked, me: Identity, at: int, lease_name: str) -> int:
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


def _insert_pieces(transaction: Transaction, number: int, pieces: Sequence[Piece]) -> None:
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
    return (run.state, run.started, run.finished, e.code, e.signal, _text(e.reason), e.instead, *wrote, _text(run.cut))


def _text(said: str) -> str:
    """Return `said` as SQLite takes it, and as it is printed the first time: names of files in it may be no Unicode."""
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in said)


def _write_end(transaction: Transaction, run: Run) -> None:
    transaction.execute(
        "UPDATE run SET state = ?, started = ?, finished = ?, code = ?, signal = ?, reason = ?, instead = ?, "
        "stdout = ?, stdout_kept = ?, stderr = ?, stderr_kept = ?, cut = ? WHERE id = ? AND state = ?",
        (*_ends(run), run.id, RUNNING),
    )


def _write_sums(transaction: Transaction, run: Run) -> None:
    transaction.execute(
        "UPDATE run SET stdout = ?, stdout_kept = ?, stderr = ?, stderr_kept = ?, cut = ? WHERE id = ?",
        (run.stdout.total, run.stdout.kept, run.stderr.total, run.stderr.kept, run.cut, run.id),
    )


def _words(run: Run) -> str:
    # Tabs, which stand in no reason of ours that matters. The longest last, for the room has an end.
    parts = [str(each).replace("\t", " ").replace("\n", " ") for each in _ends(run)]
    reason = parts.pop(_ENDS.index("reason"))
    return "\t".join(["end", *parts, reason])


def _from_words(run: Run, words: str) -> Run | None:
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
