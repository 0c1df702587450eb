"""Which build counts as an image's, whatever else was asked for, and what is told while others build."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from factory_places import Place, gated
from processes import forked, until

from sidecar.errors import Unreachable
from sidecar.factory.buildah import Buildah
from sidecar.factory.factory import Factory
from sidecar.factory.model import Asked, Work
from sidecar.factory.records import open_records

NOBODY = 65534
APP = "localhost/sidecar/app:0.1.0"


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


# --- which build counts ------------------------------------------------------------------------------------------------


def built(factory: Factory, name: str = "app", target: str = "", **labels: str) -> Work:
    work = over(factory, factory.build(name, target, labels))
    assert work.status == "COMPLETE", work.error
    return work


def called(place: Place) -> str:
    """Return the id of the image that has the name of `app`."""
    names = Buildah(str(place.state / "images")).images()
    (found,) = (image for image in names if APP in names[image])
    return found


def test_a_build_with_other_labels_is_another_and_the_last_counts(place: Place, factory: Factory) -> None:
    plain, labelled = built(factory), built(factory, team="data")
    assert (labelled.id > plain.id, labelled.labels) == (True, {"team": "data"})
    assert (factory.image("app").build, called(place)) == (labelled, labelled.digest)
    assert built(factory, team="data") == labelled
    again = built(factory)
    assert (again.labels, factory.image("app").build, called(place)) == ({}, again, again.digest)


def test_a_base_that_is_built_with_labels_is_built_on_as_it_is(place: Place, factory: Factory) -> None:
    place.image("upper", "ARG BASE", "FROM ${BASE}", "COPY file /upper")
    place.define(upper="{base: app}")
    base = built(factory, team="data")
    built(factory, "upper")
    assert factory.works("build", "app") == [base]
    assert factory.image("app").build == base


def test_a_change_that_is_taken_back_gives_the_name_back(place: Place, factory: Factory) -> None:
    file = place.images / "app" / "file"
    first = built(factory)
    file.write_text("changed")
    second = built(factory)
    assert called(place) == second.digest != first.digest
    file.write_text("app")
    assert built(factory) == first
    assert (called(place), factory.image("app").build) == (first.digest, first)


def test_an_image_that_is_built_for_another_target_alone_is_complete(place: Place, factory: Factory) -> None:
    docker = built(factory, target="docker")
    found = factory.image("app")
    assert (found.status, found.build, found.content) == ("COMPLETE", docker, docker.content)
    over(factory, factory.push(docker.id, "archive"))
    assert {at.provider: at.presence for at in factory.image("app").providers}["archive"] == "pushed"
    (place.images / "app" / "file").write_text("changed")
    assert factory.image("app").status == "STALE"


def test_of_two_targets_the_one_that_was_asked_for_last_counts(factory: Factory) -> None:
    built(factory)
    docker = built(factory, target="docker")
    assert factory.image("app").build == docker
    oci = built(factory)
    assert (oci.target, factory.image("app").build) == ("oci", oci)


def test_where_a_push_has_failed_what_was_pushed_before_is_stale_and_not_changed(place: Place, factory: Factory) -> None:
    first = built(factory)
    assert over(factory, factory.push(first.id, "archive")).status == "COMPLETE"
    (place.images / "app" / "file").write_text("changed")
    second = built(factory)
    lock = place.folder / "archive" / "sidecar.lock"
    lock.unlink()
    lock.mkdir()
    assert over(factory, factory.push(second.id, "archive")).status == "FAILED"
    (at,) = (at for at in factory.image("app").providers if at.provider == "archive")
    assert (at.presence, at.push and at.push.status) == ("stale", "FAILED")


# --- who may look ------------------------------------------------------------------------------------------------------


def test_a_store_that_only_root_may_see_is_told_to_others_with_its_path(place: Place, factory: Factory) -> None:
    place.define()
    text = (place.images / "factory.yaml").read_text()
    (place.images / "factory.yaml").write_text(f"store: ../state/images\n{text}")
    built(factory)
    theirs = place.folder / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    (place.state / "images").chmod(0o700)
    for folder in (place.folder.parent, place.folder, place.state):
        folder.chmod(0o755)
    hear, tell = os.pipe()

    def look() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with Factory(str(place.images / "factory.yaml"), str(theirs / "state")) as other:
            try:
                other.images()
            except Unreachable as error:
                os.write(tell, str(error).encode())

    pid = forked(look)
    os.close(tell)
    with open(hear) as told:
        said = told.read()
    os.waitpid(pid, 0)
    assert said.startswith(f"images cannot be looked at: {place.state}/images/")
    assert said.endswith(": Permission denied")


# --- what is watched ---------------------------------------------------------------------------------------------------


def test_whoever_watches_waits_for_all_that_is_under_way_however_much_was_asked_for_since(place: Place, factory: Factory) -> None:
    gate = gated(place)
    slow = factory.build("slow")
    done = built(factory)
    with open_records(str(place.state)) as records:
        for number in range(120):
            work = records.ask(Asked("build", f"other{number}", "oci", "content", "elsewhere"), 1)
            records.fail(work.id, "of no account", 1)
    works = factory.works()
    assert [work.id for work in works] == sorted((work.id for work in works), reverse=True)
    assert (works[-1].id, done.id in {work.id for work in works}) == (slow.id, False)
    watched = subprocess.Popen(
        place.command("status", "--watch"), cwd=place.folder, env=place.environment, stderr=subprocess.PIPE, text=True
    )
    with watched:
        assert watched.stderr is not None
        assert watched.stderr.readline().startswith(f"sidecar: build {slow.id} of slow: BUILDING")
        gate.touch()
        watched.stderr.read()
    assert watched.returncode == 0
