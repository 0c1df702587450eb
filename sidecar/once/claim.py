"""The right to run something, and all that whoever has it writes: that it began, what it wrote, how it ended.

The end is written before the lease is let go. Where the ledger takes no more, it stands in the lease.
"""

from __future__ import annotations

import os

from sidecar.errors import SidecarError, Unreachable
from sidecar.exits import Exit
from sidecar.once import lease
from sidecar.once.asked import Asked
from sidecar.once.facts import FINISHED, STDERR, STDOUT, Heard, Piece, Run, now
from sidecar.once.rows import as_text, insert_pieces, words_of, write_end, write_sums
from sidecar.state import State
from sidecar.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# How long a program's output and its end wait for others that write, in seconds: another process may have been stopped while it
# did, and the end of a container does not wait. The output is tried again, the end stands in the lease then.
HASTE = 2.0


class Claim:
    """The right to run something, held until `finish`; whoever dies with it leaves a run of which nobody knows the outcome."""

    def __init__(self, state: State, asked: Asked, run: Run, fd: int) -> None:
        self._state, self.asked, self.run, self._fd = state, asked, run, fd
        self._left: tuple[Piece, ...] = ()

    def begun(self) -> None:
        """Note that the program has begun."""
        self.run = replace(self.run, started=now())
        try:
            with self._state.write(durable=False, patience=HASTE) as transaction:
                transaction.execute("UPDATE run SET started = ? WHERE id = ?", (self.run.started, self.run.id))
        except SidecarError:
            pass  # It is written again with the end.

    def withdraw(self) -> None:
        """Give the claim back: nothing was begun. Unreachable."""
        try:
            with self._state.write() as transaction:
                transaction.execute("DELETE FROM variable WHERE run = ?", (self.run.id,))
                transaction.execute("DELETE FROM run WHERE id = ?", (self.run.id,))
            lease.drop(self._state.fd, self.run.lease)
        finally:
            os.close(self._fd)

    def keep(self, pieces: Sequence[Piece]) -> None:
        """Keep what the program wrote. Busy; SidecarError where it cannot be kept, or would take the room that others need."""
        state = self._state
        if sum(len(piece.bytes) for piece in pieces) > state.room():
            raise Unreachable(f"the disk that {state.folder} is on is nearly full")
        with state.write(durable=False, patience=HASTE) as transaction:
            insert_pieces(transaction, self.run.id, pieces)

    def keep_last(self, heard: Heard) -> None:
        """Keep the last of what the program wrote, and how much it was, for `finish` or, should this process die, `complete`."""
        self._note(heard)
        try:
            with self._state.write(durable=False, patience=HASTE) as transaction:
                insert_pieces(transaction, self.run.id, self._left)
                write_sums(transaction, self.run)
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
        self.run = replace(self.run, state=state, finished=now(), exit=replace(exit_, reason=as_text(exit_.reason)))
        try:
            try:
                self._write()
            except SidecarError as error:
                self._leave_out(str(error))
                lease.write_words(self._fd, words_of(self.run))
                self._write()
            lease.drop(self._state.fd, self.run.lease)
        except SidecarError:
            pass  # The last words are there.
        except OSError as error:
            raise Unreachable(f"how {self.run.name} ended cannot be written to {self._state.folder}: {error.strerror}") from None
        finally:
            os.close(self._fd)
        return self.run

    def _write(self) -> None:
        with self._state.write(patience=HASTE) as transaction:
            insert_pieces(transaction, self.run.id, self._left)
            write_end(transaction, self.run)

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
