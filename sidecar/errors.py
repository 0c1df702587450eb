"""What can go wrong, sorted by who can put it right, and the exit status of each.

    SidecarError
    ├── UsageError 2          you: the command line is not of its form
    ├── ParametersError 65    you: what is configured cannot be read; carries every fault with its place
    ├── ConfigurationError 78 you: two things that are configured contradict each other
    ├── SourceMissing 66      you: the bundle that is asked for does not exist; carries what does
    ├── Corrupt 65            the store's owner: data does not hash to what it was
    ├── PeerFailed 69         whoever runs the participant named: it failed, or died without a word
    ├── NotSaved 73           whoever runs the participant named: the output is not safe
    ├── Unreachable 74        whoever runs the volume or the store: it cannot be read or written
    ├── DeadlinePassed 75     the participant named did not say what it was to say in time
    ├── OutcomeUnknown 125    no one: it ran before, or may have run, and is not begun again
    └── Interrupted 128+n     signal n ended the wait

The command's own status always passes through (0-255; 128+n where signal n ended it, 126 not executable, 127 not found).
The numbers 64-78 are those of sysexits(3); 125 is the shell tools' "the tool itself failed". This module imports nothing:
`wrap_application` loads it at every start.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OK = 0
USAGE = 2
DATA = 65
NO_INPUT = 66
UNAVAILABLE = 69
NOT_SAVED = 73
IO = 74
DEADLINE = 75
CONFIG = 78
UNKNOWN = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127


class SidecarError(Exception):
    """Base of every error that a user is told about in one line; `status` is the exit status it ends with."""

    status = 70


class UsageError(SidecarError):
    """The command line is not of its form; the message says what was expected."""

    status = USAGE


class Fault:
    """One thing wrong with one parameter: where it stands, under which key, what is wrong and what was expected."""

    __slots__ = ("key", "problem", "where")

    def __init__(self, where: str, key: str, problem: str) -> None:
        self.where, self.key, self.problem = where, key, problem

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.problem}" if self.key else f"{self.where}: {self.problem}"

    def __repr__(self) -> str:
        return f"Fault({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fault) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


class ParametersError(SidecarError):
    """Parameters cannot be read. `faults` holds all of them, in the order in which they were found."""

    status = DATA

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults: Sequence[Fault] = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class ConfigurationError(SidecarError):
    """Two things that are configured contradict each other; neither is preferred."""

    status = CONFIG


class SourceMissing(SidecarError):
    """A bundle, label or repository that is to be read does not exist; `exist` names those that do."""

    status = NO_INPUT

    def __init__(self, message: str, exist: Iterable[str] = ()) -> None:
        self.exist: Sequence[str] = tuple(exist)
        super().__init__(message)


class Corrupt(SidecarError):
    """Data is not what it was when it was written; the message names repository, bundle, file and object."""

    status = DATA


class PeerFailed(SidecarError):
    """Another participant failed, or died without a word. `culprit` is its name."""

    status = UNAVAILABLE

    def __init__(self, message: str, culprit: str = "") -> None:
        self.culprit = culprit
        super().__init__(message)


class NotSaved(PeerFailed):
    """The output of the application is not safe. `culprit` is the battery that was to save it."""

    status = NOT_SAVED


class Unreachable(SidecarError):
    """The store or the coordination directory cannot be read or written."""

    status = IO


class DeadlinePassed(SidecarError):
    """`culprit` did not say in time what it was to say."""

    status = DEADLINE

    def __init__(self, message: str, culprit: str = "") -> None:
        self.culprit = culprit
        super().__init__(message)


class OutcomeUnknown(SidecarError):
    """The command was begun before and its end is not known; it is not begun again."""

    status = UNKNOWN


class Interrupted(SidecarError):
    """Signal `number` ended the wait before the command was begun."""

    def __init__(self, number: int, message: str) -> None:
        self.number = number
        self.status = 128 + number
        super().__init__(message)
