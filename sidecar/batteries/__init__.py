"""What a battery is, and how one is found by name.

A battery is a kind of sidecar: it has something ready before the application starts and keeps what the application made
after it has ended. `coordination.host` drives it; a battery knows nothing of signals, leases or the application.
Kinds are entry points of the group `sidecar.batteries`, so a third party's needs no change here: `wrap_battery KIND` runs one of
any kind, and what its parameters mean is its own affair. Importing this package imports none of them: FUSE, psycopg and friends
are paid for by the container that runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from sidecar.errors import ConfigurationError

if TYPE_CHECKING:
    from sidecar.batteries.companion import Around, Companion

Options = TypeVar("Options")

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how many bytes are done, and how many there are in all (0: not known yet)."""


class Battery(Protocol):
    """One battery in its own container. Each method is called at most once.

    `ready` and `save` run in a thread of their own. Where the pod ends first, `close` is called while one of them is
    still running: it makes them end soon.
    """

    def ready(self) -> Mapping[str, Any]:
        """Return, with its payload, when the application may lean on it; raise where it never can."""

    def save(self) -> Mapping[str, Any]:
        """Keep what the application made; return where. Called only where the policy says so."""

    def close(self) -> None:
        """Let go of everything. Called last, whatever happened before."""


class Watched(Battery, Protocol):
    """A battery that may fail while the application runs, and can tell: one that has `watch`. The application hears it then."""

    def watch(self) -> None:
        """Return once `close` was called; raise where what `ready` gave is no more. Runs after `ready`, in another thread."""


@dataclass(frozen=True)
class Place:
    """Where one life of a battery is: `folder` is its own in the coordination directory, beside its signals.

    The directory is shared, and so are records and payloads, which everybody who can enter it may read. What is secret goes into
    a file in `folder`, for its reader alone; the payload says where. `earlier` is what `ready` returned in an earlier life, None
    where there was none; others may have written it.
    """

    folder: str
    earlier: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Kind(Generic[Options]):
    """A kind of battery: what it is called, what may be said of it, and how one is made from that.

    `companion` is for pods that are composed: a pure function from a parameters document, what the document is called, and what
    is around, to the container; see sidecar.batteries.companion. A kind without one cannot be woven into a session.

    `read` makes options of such a document, what it is called, and the place; ParametersError with every fault. A kind without
    one has a command of its own, in the place of `wrap_battery`.
    """

    name: str
    options: type[Options]
    open: Callable[[Options, Progress], Battery]
    companion: Callable[[str, str, Around], Companion] | None = None
    read: Callable[[str, str, Place], Options] | None = None


def find(name: str) -> Kind[Any]:
    """Return the kind called `name`; ConfigurationError where none is installed, naming those that are."""
    found = entry_points(group="sidecar.batteries")
    for entry in found:
        if entry.name == name:
            try:
                kind = entry.load()
            except (ImportError, AttributeError) as error:
                raise ConfigurationError(f"the battery {name!r} cannot be loaded from {entry.value}: {error}") from None
            if not isinstance(kind, Kind):
                raise ConfigurationError(f"the entry point {entry.value} of battery {name!r} is not a Kind")
            return kind
    installed = ", ".join(sorted(entry.name for entry in found)) or "none"
    raise ConfigurationError(f"there is no battery {name!r}; installed: {installed}")
