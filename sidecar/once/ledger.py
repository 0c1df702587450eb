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
from sidecar.once.asked import Asked, Variable, differences
from sidecar.once.claim import HASTE, Claim
from sidecar.once.facts import FAILED_TO_START, FINISHED, LIMIT, RUNNING, UNKNOWN, OtherRun, Piece, Run, now, remedy
from sidecar.once.rows import insert, run_of, with_words, write_end
from sidecar.state import State, state_folder
from sidecar.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    from sidecar.once.run import Result

# How many pieces of output are read at once; each has at most 64 KiB, what a pipe holds.
_WINDOW = 64


class Ledger:
    """The ledger in the directory `folder`: $SIDECAR_STATE or `sidecar` in the user's state directory where none is named.

    Raises what State raises, and makes it where State does. May be used by several threads, not at once, and by any number of
    processes.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, make: bool = True) -> None:
        self.state = State(os.fspath(folder) if folder is not None else state_folder(os.environ), make=make)
        self.folder = self.state.folder

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
        try:
            f"{instance}{name}".encode()
        except UnicodeEncodeError:
            return None  # bytes that no run is called
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

    def runs(self, latest: int = -1, before: int = 0, name: str = "") -> list[Run]:
        """Return all runs, in the order in which they were claimed; or so many of them, those that were claimed last.

        Of those alone that were claimed `before` the one of that id, unless it is 0, and that are called `name`, unless it is "".
        """
        rows = self.state.read(
            "SELECT * FROM run WHERE (? = 0 OR id < ?) AND (? = '' OR name = ?) ORDER BY id DESC LIMIT ?",
            (before, before, name, name, latest),
        )
        return [self._settled(run_of(row)) for row in reversed(rows)]

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

    def piece(self, run: Run, offset: int, most: int, last: int | None = None, stream: int = 0) -> tuple[int, bytes]:
        """Return a piece of what a run wrote to a stream, or to both (0), and where the next begins, in bytes of that.

        From byte `offset` on, or from where the `last` bytes that there are begin, if that is behind it; at most `most` bytes.
        """
        of = (run.id, stream, stream)
        whole = int(self.state.read("SELECT total(length(bytes)) FROM output WHERE run = ? AND (? = 0 OR stream = ?)", of)[0][0])
        first = min(max(offset, 0 if last is None else whole - last), whole)
        if first == whole:
            return whole, b""
        found = self.state.read(
            "SELECT number, ends - size FROM "
            "(SELECT number, length(bytes) AS size, sum(length(bytes)) OVER (ORDER BY number) AS ends "
            "FROM output WHERE run = ? AND (? = 0 OR stream = ?)) WHERE ends > ? AND ends - size < ? ORDER BY number",
            (*of, first, min(first + most, whole)),
        )
        if not found:
            return first, b""  # it was forgotten meanwhile
        (number, begins), (end, _) = found[0], found[-1]
        rows = self.state.read(
            "SELECT bytes FROM output WHERE run = ? AND (? = 0 OR stream = ?) AND number BETWEEN ? AND ? ORDER BY number",
            (*of, number, end),
        )
        data = b"".join(row[0] for row in rows)[first - begins :][:most]
        return first + len(data), data

    def _settled_one(self, sql: str, parameters: Sequence[object]) -> Run | None:
        rows = self.state.read(sql, parameters)
        return self._settled(run_of(rows[0])) if rows else None

    def _settled(self, run: Run) -> Run:
        """Return `run` with its variables and, where it says that it is running and its owner is dead, what that means."""
        run = replace(run, variables=self._variables(run.id))
        if run.state != RUNNING or lease.lives(self.state.fd, run.lease, run.owner):
            return run
        rows = self.state.read("SELECT * FROM run WHERE id = ?", (run.id,))
        again = replace(run_of(rows[0]), variables=run.variables) if rows else run
        if again.state != RUNNING:
            return again
        return self._with_last_words(again) or replace(again, state=UNKNOWN)

    def _with_last_words(self, run: Run) -> Run | None:
        """Return `run` as its owner left it where the ledger took no more, and carry that into the ledger now."""
        said = with_words(run, lease.read_words(self.state.fd, run.lease))
        if said is not None:
            try:
                with self.state.write(patience=HASTE) as transaction:
                    write_end(transaction, said)
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
                number = insert(transaction, asked, me, at, name)
                fd = lease.take(self.state.fd, name)
        except BaseException as error:
            if fd >= 0:
                lease.drop(self.state.fd, name)
                os.close(fd)
            if isinstance(error, OSError):
                raise Unreachable(f"cannot claim {asked.name} in {self.folder}: {error.strerror}") from None
            raise
        run = Run(number, name, asked.instance, asked.name, RUNNING, asked.kept_command, asked.directory, me, at)
        if asked.environment:
            run = replace(run, variables=self._variables(number))
        return Claim(self.state, asked, run, fd)

    def complete(self, run: Run, exit_: Exit, finished: int) -> Run:
        """Write how a run of unknown outcome ended, for somebody who knows it from elsewhere, and return it. Unreachable."""
        # What was not begun has a reason, and no other status in its place.
        begun = not exit_.reason or exit_.instead
        ended = replace(run, state=FINISHED if begun else FAILED_TO_START, exit=exit_, finished=max(finished, run.started))
        with self.state.write() as transaction:
            write_end(transaction, ended)
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
