"""How a command ended: for a record in the coordination directory and for the ledger of runs alike. Pure."""

from __future__ import annotations

from sidecar.values import value


@value
class Exit:
    """How the command ended. Where it was we who ended it, `reason` says why and `instead` is the status to end with."""

    code: int
    signal: int = 0
    reason: str = ""
    instead: int = 0

    @property
    def status(self) -> int:
        """The status a shell would give: 128 + n where signal n ended it."""
        return self.instead or (128 + self.signal if self.signal else self.code)

    @property
    def success(self) -> bool:
        return self.status == 0 and not self.reason
