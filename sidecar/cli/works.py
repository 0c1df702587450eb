"""How far builds and pushes are, for people, on stderr: bars where that is a terminal, else a line for each thing begun."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from sidecar.cli.entry import complain, printable
from sidecar.factory.model import Image, Named, Provider, Work

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

# How often, in seconds, it is asked how far a work is: records call nobody.
_PAUSE = 0.2


class AnyFactory(Protocol):
    """The factory of this machine (see factory.factory.Factory), or that of a server."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def images(self) -> list[Image]: ...

    def image(self, name: str) -> Image: ...

    def providers(self) -> list[Provider]: ...

    def check(self, manifest: str, name: str = ..., /) -> list[Named]: ...

    def build(self, name: str, target: str = ..., labels: Mapping[str, str] | None = ...) -> Work: ...

    def push(self, build: int, provider: str) -> Work: ...

    def works(self, kind: str = ..., image: str = ...) -> list[Work]: ...

    def work(self, number: int) -> Work: ...

    def stop(self, number: int) -> Work: ...

    def log(self, number: int, offset: int = ...) -> bytes: ...


def wait(factory: AnyFactory, works: Iterable[Work]) -> list[Work]:
    """Return works when all are over, and show meanwhile how far they are."""
    latest = {work.id: work for work in works}
    with Shown() as shown:
        while True:
            shown([*latest.values()])
            left = [number for number, work in latest.items() if not work.over]
            if not left:
                return [*latest.values()]
            time.sleep(_PAUSE)
            latest |= {number: factory.work(number) for number in left}


class Shown:
    """Shows works as they are whenever it is called. A context manager; bars are drawn a last time, and stay."""

    def __init__(self) -> None:
        self._terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._said: dict[int, str] = {}
        self._bars: Bars | None = None
        self._tasks: dict[int, TaskID] = {}

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, works: Sequence[Work]) -> None:
        """Show works."""
        for work in works:
            if self._terminal:
                self._draw(work)
            elif (said := f"{work.status} {work.activity}".strip()) != self._said.get(work.id):
                self._said[work.id] = said
                # Of what is over, its end is told by whoever waited for it.
                if not work.over:
                    complain("sidecar", f"{called(work)}: {said}" + (f" ({work.percent} %)" if work.percent else ""))

    def _draw(self, work: Work) -> None:
        if self._bars is None:
            self._bars = _bars()
            self._bars.start()
        if work.id not in self._tasks:
            self._tasks[work.id] = self._bars.add_task(printable(called(work)), total=100, said="")
        said = work.status if work.over else work.activity or work.status
        self._bars.update(self._tasks[work.id], completed=work.percent, said=printable(said))


def called(work: Work) -> str:
    """Return what a work is called for people."""
    return f"{work.kind} {work.id} of {work.image}" + (f" to {work.provider}" if work.provider else "")


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    # What a build says was written by others: no markup may be read out of it, and it takes one line.
    said = TextColumn("{task.fields[said]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    columns = (TextColumn("{task.description}", markup=False), BarColumn(20), TaskProgressColumn(), said)
    return Bars(*columns, console=Console(stderr=True), expand=True)
