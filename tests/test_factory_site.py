"""Where works are done: several definitions with one folder, several machines with one database, real builds on it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import quote

import memory
import pytest
import servers
from factory_contract import told_by
from factory_places import Place, gated, new_place
from processes import gone, until
from servers import Cluster

from sidecar.errors import Unreachable
from sidecar.factory.context import digest, open_definition
from sidecar.factory.factory import Factory
from sidecar.factory.model import Asked, Conflict, Work
from sidecar.factory.records import open_records
from sidecar.factory.site import FOLDER, Site, machine_id

ONE, TWO = "1" * 32, "2" * 32


def over(factory: Factory, work: Work) -> Work:
    until(lambda: factory.work(work.id).over, f"{work} is over")
    return factory.work(work.id)


# --- what a site is called ---------------------------------------------------------------------------------------------


def site(folder: Path, definition: str = "/images/factory.yaml", machine: str = ONE) -> Site:
    return Site(str(folder), definition, str(folder), machine=machine)


def test_a_site_is_called_by_its_host_and_definition_and_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = site(tmp_path).name()
    assert name.startswith(f"{socket.gethostname()}:/images/factory.yaml#")
    monkeypatch.setattr(socket, "gethostname", lambda: "another")  # as in the next container
    assert site(tmp_path).name() == Site("postgresql://elsewhere", "/images/factory.yaml", str(tmp_path), 7, ONE).name() == name


def test_another_machine_folder_or_definition_is_another_site(tmp_path: Path) -> None:
    names = {
        site(tmp_path / "a").name(),
        site(tmp_path / "b").name(),
        site(tmp_path / "a", machine=TWO).name(),
        site(tmp_path / "a", machine="").name(),
        site(tmp_path / "a", "/images/other.yaml").name(),
    }
    assert len(names) == (5 if machine_id() != ONE else 4)


def test_machines_that_are_called_alike_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    path = tmp_path / "state"
    first = site(path).name()
    path.rename(tmp_path / "of the other")
    assert site(path).name() != first
    shutil.rmtree(path)
    (tmp_path / "of the other").rename(path)
    assert site(path).name() == first


def test_a_folder_that_was_copied_to_another_machine_is_another_site(tmp_path: Path) -> None:
    first = site(tmp_path / "state").name()
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    (tmp_path / "state").rename(tmp_path / "away")
    (tmp_path / "copy").rename(tmp_path / "state")
    assert site(tmp_path / "state", machine=TWO).name() != first


def test_a_folder_that_is_reached_by_a_link_is_the_same_site(tmp_path: Path) -> None:
    for name in ("state", "project"):
        (tmp_path / name).mkdir()
        (tmp_path / f"link-to-{name}").symlink_to(name)
    assert (
        site(tmp_path / "state", str(tmp_path / "project" / "factory.yaml")).name()
        == site(tmp_path / "link-to-state", str(tmp_path / "link-to-project" / "factory.yaml")).name()
    )


def test_a_definition_that_is_a_link_is_where_the_link_is(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "factory.yaml").symlink_to("../a/factory.yaml")
    assert site(tmp_path, str(tmp_path / "a/factory.yaml")).name() != site(tmp_path, str(tmp_path / "b/factory.yaml")).name()


@pytest.mark.parametrize("definition", ["/x" * 2000 + "/factory.yaml", "/\udcff/\n\x1b[31m\0/factory.yaml", "/é/factory.yaml"])
def test_a_name_can_be_shown_and_kept_whatever_the_definition_is_called(tmp_path: Path, definition: str) -> None:
    name = site(tmp_path, definition.replace("\0", "")).name()
    assert name.isprintable()
    assert len(name) < 200
    assert name.rpartition("#")[0].endswith("/factory.yaml")
    with open_records(str(tmp_path / "state")) as records:
        work = records.ask(Asked("build", "app", "oci", "c", name), 1)
        assert (work.site, records.waiting(name)) == (name, 1)


def test_twenty_who_are_the_first_to_ask_are_told_one_name(tmp_path: Path) -> None:
    said = told_by(20, lambda tell: os.write(tell, site(tmp_path / "state").name().encode()))
    assert {*said} == {site(tmp_path / "state").name().encode()}
    assert os.listdir(tmp_path / "state" / FOLDER) == ["site"]


@pytest.mark.parametrize("said", ["", "garbage", "host 1", "a" * 100_000])
def test_a_folder_whose_name_was_damaged_is_refused(tmp_path: Path, said: str) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "site").write_text(said)
    with pytest.raises(Unreachable, match="remove it"):
        site(tmp_path).name()


def test_a_link_or_a_pipe_in_the_place_of_the_name_is_not_followed(tmp_path: Path) -> None:
    named = tmp_path / FOLDER / "site"
    site(tmp_path).name()
    named.rename(tmp_path / "moved")
    named.symlink_to(tmp_path / "moved")
    with pytest.raises(Unreachable):
        site(tmp_path).name()
    named.unlink()
    os.mkfifo(named)
    with pytest.raises(Unreachable):
        site(tmp_path).name()


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    with pytest.raises(Unreachable, match="another user's"):
        site(folder).name()


def test_a_machine_without_an_id_or_with_none_that_counts_has_none(tmp_path: Path) -> None:
    for said in (None, "", "uninitialized\n", "x" * 32, "1" * 31, "1" * 33, "\xff"):
        path = tmp_path / "machine-id"
        path.unlink(missing_ok=True)
        if said is not None:
            path.write_text(said)
        assert machine_id(str(path)) == ""
    path.write_text(f"{ONE}\n")
    assert machine_id(str(path)) == ONE


# --- several definitions, one folder -----------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path, place: Place) -> Place:
    """A place with the same image, whose state is that of `place`."""
    found = Place(tmp_path / "other")
    found.state = place.state
    found.image("app")
    found.define()
    return found


def opened(place: Place) -> Factory:
    return Factory(str(place.images / "factory.yaml"), str(place.state))


def asked(place: Place, site: Site, image: str = "app") -> Asked:
    """Return what it is to build an image of a place."""
    return Asked("build", image, "oci", digest(open_definition(str(place.images / "factory.yaml")), image), site.name())


def test_two_definitions_with_one_folder_do_each_their_own(place: Place, other: Place) -> None:
    (other.images / "app" / "file").write_text("other")
    with opened(place) as one, opened(other) as two:
        first, second = one.build("app"), two.build("app")
        assert len({first.id, second.id}) == len({first.site, second.site}) == 2
        first, second = over(one, first), over(two, second)
        assert (first.status, second.status, first.digest != second.digest) == ("COMPLETE", "COMPLETE", True), (first, second)
        assert [each.id for each in one.works()] == [each.id for each in two.works()] == [second.id, first.id]
        assert [one.image("app").build, two.image("app").build] == [first, second]
        assert [one.build("app"), two.build("app")] == [first, second]


def test_what_another_definition_asked_for_is_neither_begun_nor_taken_for_ones_own(place: Place, other: Place) -> None:
    elsewhere = Site(str(place.state), str(other.images / "factory.yaml"), str(place.state))
    with open_records(str(place.state)) as records, opened(place) as one:
        waits = records.ask(asked(other, elsewhere), 1)  # of the same name and content
        assert one.image("app").status == "NEW"
        mine = over(one, one.build("app"))
        assert mine.status == "COMPLETE"
        assert one.work(waits.id) == waits
    with opened(other) as two:
        assert over(two, waits).status == "COMPLETE"


def test_a_definition_whose_builders_are_all_at_work_keeps_no_other_waiting(place: Place, other: Place) -> None:
    gate = gated(place)
    with opened(other) as two, Factory(str(place.images / "factory.yaml"), str(place.state), slots=1) as one:
        slow = one.build("slow")
        until(lambda: one.work(slow.id).status == "BUILDING", "it is being built")
        done = over(two, two.build("app"))
        assert done.status == "COMPLETE"
        assert one.work(slow.id).status == "BUILDING"
        gate.touch()
        assert over(one, slow).status == "COMPLETE"


def test_what_another_definition_built_is_pushed_there(place: Place, other: Place) -> None:
    with opened(place) as one, opened(other) as two:
        built = over(one, one.build("app"))
        with pytest.raises(Conflict, match=r"at .*/place/images/factory\.yaml#"):
            two.push(built.id, "archive")
        assert over(one, one.push(built.id, "archive")).status == "COMPLETE"
        assert two.image("app").status == "NEW"


# --- several machines, one database ------------------------------------------------------------------------------------

numbers = count(1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with servers.new_cluster(servers.installation()) as cluster, cluster.running():
        yield cluster


@pytest.fixture
def url(cluster: Cluster) -> str:
    name = f"sites{next(numbers)}"
    cluster.query(f"CREATE DATABASE {name}")
    return f"postgresql://postgres@/{name}?host={quote(str(cluster.socket), safe='')}"


class Machine:
    """A machine: a place, whose folder of images is its own, and the factory of it, whose records are in a database."""

    def __init__(self, place: Place, url: str, id_: str) -> None:
        self.place = place
        self.definition = str(place.images / "factory.yaml")
        self.site = Site(url, self.definition, str(place.state), machine=id_)
        self.factory = Factory(self.definition, url, str(place.state), machine=id_)

    def built(self, image: str = "app") -> Work:
        return over(self.factory, self.factory.build(image))

    def has(self, work: Work) -> bool:
        return work.digest in self.site.buildah(open_definition(self.definition)).images()


@contextmanager
def machine(folder: Path, url: str, id_: str) -> Iterator[Machine]:
    with new_place(folder) as place:
        made = Machine(place, url, id_)
        with made.factory:
            yield made


@pytest.fixture
def machines(url: str) -> Iterator[tuple[Machine, Machine]]:
    with memory.folder() as top, machine(top / "one", url, ONE) as one, machine(top / "two", url, TWO) as two:
        (two.place.images / "app" / "file").write_text("of the other machine")
        yield one, two


def test_two_machines_with_one_database_build_each_their_own_and_see_both(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    first, second = one.factory.build("app"), two.factory.build("app")
    first, second = over(two.factory, first), over(one.factory, second)
    assert (first.status, second.status) == ("COMPLETE", "COMPLETE"), (first, second)
    assert (first.site, second.site) == (one.site.name(), two.site.name())
    assert [(each.has(first), each.has(second)) for each in machines] == [(True, False), (False, True)]
    assert one.factory.works() == two.factory.works() == [second, first]
    assert [each.factory.image("app").build for each in machines] == [first, second]
    assert [each.factory.image("app").status for each in machines] == ["COMPLETE", "COMPLETE"]
    assert one.factory.log(second.id) == two.factory.log(second.id) != b""


def test_what_was_asked_for_on_one_machine_waits_for_its_own_builder(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    with open_records(one.site.state) as records:
        waits = records.ask(asked(one.place, one.site), 1)  # and nobody is begun to build it
    assert two.built().status == "COMPLETE"
    assert two.factory.work(waits.id) == waits
    assert over(one.factory, waits).status == "COMPLETE"
    assert one.has(over(one.factory, waits))


def test_the_same_content_is_built_on_each_machine_that_asks_for_it(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    (two.place.images / "app" / "file").write_text("app")
    first = one.built()
    assert two.factory.image("app").content == first.content
    assert two.factory.image("app").status == "NEW"
    with pytest.raises(Conflict, match="where it can be pushed"):
        two.factory.push(first.id, "archive")
    second = two.built()
    assert (second.status, second.id != first.id, two.has(second)) == ("COMPLETE", True, True)


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory.folder() as top:
        yield top


def test_with_a_database_an_image_is_built_on_another_pushed_and_found_at_its_provider(folder: Path, url: str) -> None:
    with machine(folder / "one", url, ONE) as one:
        one.place.image("upper", "ARG BASE", "FROM ${BASE}", "COPY . /")
        one.place.define(upper="{base: app}")
        work = one.built("upper")
        assert (work.status, work.percent) == ("COMPLETE", 100), one.factory.log(work.id)
        assert [(each.image, each.status) for each in one.factory.works()] == [("upper", "COMPLETE"), ("app", "COMPLETE")]
        assert b"\nCOMMIT\n" in one.factory.log(work.id)
        pushed = over(one.factory, one.factory.push(work.id, "archive"))
        assert pushed.status == "COMPLETE", pushed.error
        at = {each.provider: each for each in one.factory.image("upper").providers}
        assert (at["archive"].presence, at["archive"].digest) == ("pushed", pushed.digest)
        until(lambda: not builders_of(one), "nobody builds any more")
    with machine(folder / "two", url, ONE) as another:  # called alike, as containers of one image are
        assert another.factory.image("app").status == "NEW"
        assert len(another.factory.works()) == 3


def test_a_builder_that_is_killed_on_one_machine_is_missed_by_the_other(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    gated(one.place)
    slow = one.factory.build("slow")
    until(lambda: "usleep" in one.factory.work(slow.id).activity, "it is being built")
    assert two.factory.work(slow.id).status == "BUILDING"
    # Whoever looked before it was claimed has begun another, which finds nothing to do.
    until(lambda: len(builders_of(one)) == 1, "one of those who were begun is left")
    (builder,) = builders_of(one)
    os.kill(builder, signal.SIGKILL)
    until(lambda: gone(builder), "it is dead")
    failed = over(two.factory, slow)
    assert (failed.status, failed.error.startswith("the builder died at STEP 3/")) == ("FAILED", True), failed
    (one.place.folder / "gate" / "open").touch()
    again = one.built("slow")
    assert (again.status, again.id > slow.id) == ("COMPLETE", True)


def builders_of(machine: Machine) -> list[int]:
    """Return the processes that have a slot of a machine."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened = [os.readlink(fd) for fd in (process / "fd").iterdir()]
            if any(each.startswith(f"{machine.site.folder}/{FOLDER}/slot-") for each in opened):
                found.append(int(process.name))
        except OSError:
            continue
    return found
