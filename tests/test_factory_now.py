"""Which build counts as an image's, whatever else was asked for, and what is told while others build."""

from __future__ import annotations

from collections.abc import Iterator

import memory
import pytest
from factory_places import Place, gated, new_place
from processes import until

from sidecar.factory.buildah import Buildah
from sidecar.factory.factory import Factory
from sidecar.factory.model import Work

APP = "localhost/sidecar/app:0.1.0"


@pytest.fixture
def place() -> Iterator[Place]:
    with memory.folder() as top, new_place(top / "place") as found:
        yield found


@pytest.fixture
def factory(place: Place) -> Iterator[Factory]:
    with opened(place) as factory:
        yield factory


def opened(place: Place) -> Factory:
    return Factory(str(place.images / "factory.yaml"), str(place.state))


def over(factory: Factory, work: Work) -> Work:
    until(lambda: factory.work(work.id).over, f"{work} is over")
    return factory.work(work.id)


# --- what ends while somebody looks ------------------------------------------------------------------------------------


@pytest.fixture
def ending(place: Place, factory: Factory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """A build that comes to its end right after anybody has looked which images there are."""
    gate = gated(place)
    work = factory.build("slow")
    until(lambda: "usleep" in factory.work(work.id).activity, "it is being built")
    look = Buildah.images
    with opened(place) as other:

        def look_and_stay(buildah: Buildah) -> dict[str, tuple[str, ...]]:
            found = look(buildah)
            gate.touch()
            until(lambda: other.work(work.id).over, "it is over")
            return found

        monkeypatch.setattr(Buildah, "images", look_and_stay)
        yield work
    gate.touch()


def test_what_is_built_while_somebody_looks_is_not_missing(factory: Factory, ending: Work) -> None:
    found = factory.image("slow")
    assert (found.status, found.actions) == ("BUILDING", ())
    assert factory.image("slow").status == "COMPLETE"


def test_what_is_built_while_somebody_asks_for_it_is_not_built_again(factory: Factory, ending: Work) -> None:
    assert factory.build("slow").id == ending.id
    assert len(factory.works()) == 1
