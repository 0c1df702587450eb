"""What outlives the application's container of its command: the ledger of runs (sidecar.once), for `wrap_application --once`.

The ledger is claimed before the record says that the command was begun, and told the end after the record was: peers act on the
record, so it must not know less. In between, the record names the claim, and a life that finds an end there which the ledger
misses puts it in. Whatever cannot be written to the ledger once the command runs is told, and stops nothing.

This module imports sidecar.once where it is called: 12 ms, for those alone who ask for it.
"""

from __future__ import annotations

import _thread

from sidecar import errors, process
from sidecar.coordination.protocol import APPLICATION, EXITED, Exit, Problem, Record
from sidecar.values import replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.coordination.signals import Directory
    from sidecar.once.asked import Asked
    from sidecar.once.claim import Claim
    from sidecar.once.facts import Run
    from sidecar.once.ledger import Ledger
    from sidecar.once.recorder import Recorder

# How much of each stream is kept when nobody says, in bytes: most coordination directories are in the container's memory.
KEEP = 4 << 20


@value
class Once:
    """Under which name the command runs at most once. Without an `instance` it is the coordination directory's id, and without
    a `folder` for the ledger it is one in there, which outlives the container."""

    name: str
    instance: str = ""
    folder: str = ""
    keep: int = KEEP


class Memory:
    """The ledger as one life of the application's container sees it. `wake` is called, from any thread, when there is news."""

    def __init__(
        self, once: Once, directory: Directory, command: Sequence[str], tell: Callable[[str], None], wake: Callable[[], None]
    ) -> None:
        self._once, self._directory, self._command, self._tell, self._wake = once, directory, command, tell, wake
        self._ledger: Ledger | None = None
        self._asked: Asked | None = None
        self._claim: Claim | None = None
        self._recorder: Recorder | None = None
        # That what an earlier life wrote is written again, where there is such.
        self.replayed = True

    # --- what is there already

    def recall(self, me: Record) -> Record | Problem:
        """Open the ledger; return the record with what only the ledger knew, or why nothing can be run.

        What an earlier life wrote is written again from here on, in a thread: whoever reads it may not.
        """
        from sidecar.once.asked import as_it_is
        from sidecar.once.facts import FAILED_TO_START, FINISHED, UNKNOWN, unknown
        from sidecar.once.instance import instance_of, working_directory
        from sidecar.once.ledger import Ledger

        try:
            instance = self._once.instance or instance_of({}, self._directory.identity())
            self._asked = as_it_is(instance, self._once.name, self._command, working_directory())
            self._ledger = Ledger(self._once.folder or self._directory.ledger())
            found = self._ledger.find(self._asked.instance, self._asked.name)
            if found is None:
                return me
            self._ledger.compare(self._asked, found)
            if found.state == UNKNOWN and me.exit is not None and (me.payload or {}).get("run") == found.lease:
                ended = max((when for state, when in me.times if state == EXITED), default=me.last)
                found = self._ledger.complete(found, me.exit, int(ended * 1e6))
            if found.state == UNKNOWN and not me.started:
                raise unknown(found, self._ledger.folder)
        except errors.SidecarError as error:
            if not me.started or isinstance(error, errors.OutcomeUnknown):
                return Problem(error.status, APPLICATION, str(error))
            self._tell(str(error))  # What the record knows is enough to go on with.
            return me
        if me.started and found.state in (FINISHED, FAILED_TO_START):
            self._replay(found)
            if me.exit is None:
                return replace(me, exit=found.exit, state=EXITED)
        return me

    def claim(self) -> Exit | Problem | None:
        """Claim the command. Return how it ended, where it ran already; why it must not be begun; None where it is ours."""
        from sidecar.once.facts import RUNNING, UNKNOWN, Run, unknown

        assert self._ledger is not None
        assert self._asked is not None
        try:
            found = self._ledger.claim(self._asked)
            if isinstance(found, Run) and found.state == UNKNOWN:
                raise unknown(found, self._ledger.folder)
        except errors.SidecarError as error:
            return Problem(error.status, APPLICATION, str(error))
        if not isinstance(found, Run):
            self._claim = found
            return None
        if found.state == RUNNING:
            return Problem(errors.UNKNOWN, APPLICATION, f"{found.name} runs elsewhere and is not begun a second time")
        self._replay(found)
        return found.exit

    @property
    def claimed(self) -> str:
        """What the claim is called in the record, for the life that may have to put its end into the ledger."""
        return self._claim.run.lease if self._claim is not None else ""

    def withdraw(self) -> None:
        """Give the claim back: nothing was begun."""
        if self._claim is not None:
            try:
                self._claim.withdraw()
            except errors.SidecarError as error:
                self._tell(str(error))

    def _replay(self, run: Run) -> None:
        self._tell(f"{run.name} ran in an earlier life and ended with status {run.exit.status}; this is what it wrote")
        self.replayed = False
        try:
            _thread.start_new_thread(self._write_again, (run,))
        except RuntimeError as error:
            self._replay_ends(run, str(error))

    def _write_again(self, run: Run) -> None:
        from sidecar.once.recorder import writer

        assert self._ledger is not None
        problem = ""
        try:
            write = writer((1, 2))
            for piece in self._ledger.output(run):
                write(piece)
        except (OSError, errors.SidecarError) as error:
            problem = str(error)
        self._replay_ends(run, problem)

    def _replay_ends(self, run: Run, problem: str) -> None:
        if problem:
            self._tell(f"what {run.name} wrote cannot be written again: {problem}")
        if run.cut:
            self._tell(f"not all that {run.name} wrote is kept: {run.cut}")
        self.replayed = True
        self._wake()

    # --- what is made

    def begin(self) -> process.Child:
        """Begin the command, and pass on and keep what it writes. NotStarted, OSError; RuntimeError, no thread."""
        from sidecar.once.recorder import Recorder

        assert self._claim is not None
        recorder = Recorder(self._claim, (1, 2), self._once.keep)
        try:
            recorder.start(self._wake)
            child = process.spawn(self._command, streams=recorder.streams)
        except BaseException:
            recorder.abort()
            raise
        finally:
            recorder.begun()
        self._recorder = recorder
        recorder.note_begun()
        return child

    def ended(self) -> None:
        """The command has ended: there is no more to come than what was written."""
        if self._recorder is not None:
            self._recorder.ended()

    @property
    def heard(self) -> bool:
        """Whether all that the command wrote is read and passed on."""
        return self._recorder is None or self._recorder.done

    def keep_last(self) -> None:
        """Keep the last of what the command wrote, before the record says that it has ended."""
        if self._claim is not None and self._recorder is not None:
            self._claim.keep_last(self._recorder.close())
            if self._recorder.lost:
                self._tell(self._recorder.lost)

    def finish(self, exit_: Exit, *, begun: bool) -> None:
        """Write how the command ended, which the record says by now."""
        from sidecar.once.facts import FAILED_TO_START, FINISHED

        if self._claim is None:
            return
        try:
            self._claim.finish(exit_, state=FINISHED if begun else FAILED_TO_START)
        except errors.SidecarError as error:
            self._tell(str(error))  # A later life puts it in.
