"""The pods of this machine, whichever of its runners began them: a name belongs to one pod, and its folder tells whose it is."""

from __future__ import annotations

from collections.abc import Iterator

from sidecar.errors import ConfigurationError, Corrupt, SourceMissing
from sidecar.session.led import LedRunner
from sidecar.session.local import LocalRunner
from sidecar.session.podman import PodmanRunner
from sidecar.session.runner import Status


class Machine:
    """Tells of the pods in `folder`, and ends them; for their beginning there are the runners (see runner.Runner)."""

    def __init__(self, folder: str) -> None:
        self._runners: tuple[LedRunner, ...] = (LocalRunner(folder), PodmanRunner(folder))

    def list(self) -> list[Status]:
        """Return the pods that are there, by name."""
        found = [status for each in self._runners for status in each.list()]
        return sorted([*found, *self._odd()], key=lambda status: status.name)

    def status(self, name: str) -> Status:
        """Return how a pod stands."""
        return self._of(name).status(name)

    def wait(self, name: str, timeout: float | None = None) -> Status:
        """Return when a pod has ended."""
        return self._of(name).wait(name, timeout)

    def logs(self, name: str, container: str, *, follow: bool = False) -> Iterator[bytes]:
        """Yield what a container wrote."""
        return self._of(name).logs(name, container, follow=follow)

    def piece(self, name: str, container: str, offset: int, most: int, last: int | None = None) -> tuple[int, bytes]:
        """Return a piece of what a container wrote, and where the next one begins (see LedRunner)."""
        return self._of(name).piece(name, container, offset, most, last)

    def coordination(self, name: str) -> str:
        """Return where a pod's coordination directory is, "" where none of its volumes is one."""
        return self._of(name).coordination(name)

    def stop(self, name: str, grace: float | None = None) -> Status:
        """End a pod, remove all that is of it, and return how it ended."""
        return self._of(name).stop(name, grace)

    def _of(self, name: str) -> LedRunner:
        first, *_ = self._runners
        try:
            engine = first.engine_of(name)
        except SourceMissing as error:
            raise SourceMissing(str(error), sorted(each for runner in self._runners for each in runner.names())) from None
        found = {each.ENGINE: each for each in self._runners}.get(engine)
        if found is None:
            raise ConfigurationError(f"pod {name} was begun by {engine}, which is not known here: a newer version began it")
        return found

    def _odd(self) -> Iterator[Status]:
        """Yield what is no pod of a runner's here, by its name and with what to do about it."""
        for name in self._runners[0].folders():
            try:
                self._of(name)
            except (ConfigurationError, Corrupt) as error:
                yield Status(name, "", "Unknown", (), str(error))
            except SourceMissing:
                pass  # it was removed meanwhile
