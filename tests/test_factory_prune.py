"""What is old is forgotten, and a real buildah removes its images: what goes, what stays, and that what stays can be used."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import memory
import pytest
from processes import until
from workshop import Workshop

from sidecar.errors import SourceMissing
from sidecar.factory.factory import Factory
from sidecar.factory.model import Conflict, Pruned, Work

PROVIDERS = "providers: {archive: {layout: ../state/archive}}\n"
MIB = 1 << 20


@pytest.fixture
def shop() -> Iterator[Workshop]:
    with memory.folder() as top, Workshop(top) as shop:
        shop.define(PROVIDERS)
        yield shop


@pytest.fixture
def factory(shop: Workshop) -> Iterator[Factory]:
    with Factory(shop.site.definition, shop.site.state) as factory:
        yield factory


def built(factory: Factory, name: str, **files: bytes) -> Work:
    """Return a build that is COMPLETE, of a context in which files are these."""
    for file, content in files.items():
        Path(os.path.dirname(factory._site.definition), name, file).write_bytes(content)
    return over(factory, factory.build(name))


def over(factory: Factory, work: Work) -> Work:
    until(lambda: factory.work(work.id).over, f"{work} is over")
    found = factory.work(work.id)
    assert found.status == "COMPLETE", found
    return found


def numbers(pruned: Pruned) -> list[int]:
    return sorted(work.id for work in pruned.works)


def kept_on_disk(shop: Workshop) -> int:
    """Return how many bytes the store of images takes."""
    return sum(os.lstat(os.path.join(at, name)).st_size for at, _, names in os.walk(shop.buildah.store) for name in names)


def in_archive(shop: Workshop, push: Work) -> list[str]:
    """Return the layers of an image as they are in the layout, all of which are there."""
    blobs = shop.folder / "state" / "archive" / "blobs"
    manifest = json.loads((blobs / push.digest.replace(":", "/")).read_text())
    digests = [each["digest"] for each in manifest["layers"]]
    assert all((blobs / each.replace(":", "/")).stat().st_size for each in digests)
    return digests


def test_of_three_builds_the_newest_stays_and_can_be_used_and_the_rest_gives_back_its_disk(
    shop: Workshop, factory: Factory
) -> None:
    shop.image("app", "COPY large /large\nRUN echo built\n")
    works = [built(factory, "app", large=os.urandom(8 * MIB)) for _ in range(3)]
    shop.idle()
    before = kept_on_disk(shop)
    assert factory.prune(3600) == Pruned()
    would = factory.prune(0, dry_run=True)
    assert (numbers(would), {*would.images}) == ([1, 2], {work.digest for work in works[:2]})
    assert kept_on_disk(shop) == before
    assert factory.prune(0) == would
    assert [work.id for work in factory.works()] == [3]
    for number in (1, 2):
        with pytest.raises(SourceMissing, match=f"no work {number}"):
            factory.log(number)
    there = shop.buildah.images()
    assert works[2].digest in there
    assert not {work.digest for work in works[:2]} & there.keys()
    # The steps of their builds as well, which are as large again.
    assert kept_on_disk(shop) < before / 2
    assert factory.image("app").status == "COMPLETE"
    assert factory.build("app") == works[2]
    assert in_archive(shop, over(factory, factory.push(3, "archive")))
    assert factory.prune(0) == Pruned()


def test_what_a_kept_image_is_built_on_stays_a_part_of_it_although_it_is_gone(shop: Workshop, factory: Factory) -> None:
    shop.define(f"{PROVIDERS}images: {{app: {{base: ours}}}}")
    shop.image("ours", "COPY large /large\nRUN echo ours\n")
    shop.image("app", "RUN echo app >/app\n", base="ours")
    base = built(factory, "ours", large=b"one")
    app = over(factory, factory.build("app"))
    built(factory, "ours", large=b"two")
    gone = factory.prune(0)
    assert (numbers(gone), gone.images) == ([base.id], (base.digest,))
    there = shop.buildah.images()
    assert base.digest not in there
    assert app.digest in there
    assert factory.image("app").status == "STALE"
    assert len(in_archive(shop, over(factory, factory.push(app.id, "archive")))) >= 2
    # And it is built on the other.
    assert over(factory, factory.build("app")).digest != app.digest


def test_a_change_that_is_taken_back_needs_no_other_build_although_others_came_after_it(shop: Workshop, factory: Factory) -> None:
    shop.image("app", "COPY word /word\n")
    first, second, third = (built(factory, "app", word=word) for word in (b"one", b"two", b"three"))
    (shop.contexts / "app" / "word").write_bytes(b"one")
    assert numbers(factory.prune(0)) == [second.id]
    assert factory.image("app").status == "COMPLETE"
    assert factory.build("app") == first
    assert third.digest in shop.buildah.images()


def test_what_is_pushed_stays_whatever_was_built_since(shop: Workshop, factory: Factory) -> None:
    shop.image("app", "COPY word /word\n")
    first = built(factory, "app", word=b"one")
    push = over(factory, factory.push(first.id, "archive"))
    second, third = (built(factory, "app", word=word) for word in (b"two", b"three"))
    assert numbers(factory.prune(0)) == [second.id]
    assert {work.id for work in factory.works()} == {first.id, push.id, third.id}
    again = over(factory, factory.push(third.id, "archive"))
    assert numbers(factory.prune(0)) == [first.id, push.id]
    assert {work.id for work in factory.works()} == {third.id, again.id}


def test_nothing_is_removed_while_something_is_built(shop: Workshop, factory: Factory) -> None:
    (shop.folder / "gate").mkdir()
    shop.define("volumes: {../gate: /gate}")
    shop.image("app", "COPY word /word\n")
    first, second = (built(factory, "app", word=word) for word in (b"one", b"two"))
    shop.image("slow", "RUN echo begun; until [ -e /gate/on ]; do sleep 0.05; done\n")
    slow = shop.ask("slow")
    shop.hears(slow, b"\nbegun\n")
    with pytest.raises(Conflict, match="something is built or pushed here"):
        factory.prune(0)
    assert numbers(factory.prune(0, dry_run=True)) == [first.id]
    assert {first.digest, second.digest} <= shop.buildah.images().keys()
    assert factory.work(first.id) == first
    (shop.folder / "gate" / "on").touch()
    over(factory, slow)
    shop.idle()
    assert numbers(factory.prune(0)) == [first.id]


def test_images_that_no_work_here_has_made_are_left_alone(shop: Workshop, factory: Factory) -> None:
    shop.image("app", "COPY word /word\n")
    built(factory, "app", word=b"one")
    shop.idle()
    shop.buildah.run("from", "--name=theirs", "scratch")
    shop.buildah.run("commit", "--rm", "theirs", "localhost/theirs:1")
    shop.buildah.run("tag", "localhost/theirs:1", "localhost/also-theirs:1")
    (theirs,) = (id_ for id_, names in shop.buildah.images().items() if "localhost/theirs:1" in names)
    built(factory, "app", word=b"two")
    assert len(factory.prune(0).images) == 1
    assert {*shop.buildah.images()[theirs]} == {"localhost/theirs:1", "localhost/also-theirs:1"}


def test_an_image_that_was_given_other_names_or_is_gone_already_hinders_nobody(shop: Workshop, factory: Factory) -> None:
    shop.image("app", "COPY word /word\n")
    works = [built(factory, "app", word=word) for word in (b"one", b"two", b"three")]
    shop.buildah.run("tag", works[0].digest, "localhost/one:1")
    shop.buildah.run("tag", works[0].digest, "localhost/one:2")
    shop.buildah.run("rmi", works[1].digest)
    gone = factory.prune(0)
    assert (numbers(gone), gone.images) == ([1, 2], (works[0].digest,))
    assert works[0].digest not in shop.buildah.images()


def test_what_another_site_has_done_stays_with_its_images(shop: Workshop, factory: Factory) -> None:
    shop.image("app", "COPY word /word\n")
    works = [built(factory, "app", word=word) for word in (b"one", b"two")]
    (shop.contexts / "other.yaml").write_text("")
    with Factory(str(shop.contexts / "other.yaml"), shop.site.state) as other:
        theirs = [built(other, "app", word=word) for word in (b"three", b"four")]
        shop.idle()
        assert numbers(factory.prune(0)) == [works[0].id]
        assert {work.digest for work in theirs} <= shop.buildah.images().keys()
        assert numbers(other.prune(0)) == [theirs[0].id]
        assert {work.id for work in factory.works()} == {works[1].id, theirs[1].id}


def test_what_is_kept_stays_also_where_all_that_was_built_on_it_is_removed(shop: Workshop, factory: Factory) -> None:
    shop.define(f"{PROVIDERS}images: {{app: {{base: ours}}}}")
    shop.image("ours", "COPY word /word\n")
    shop.image("app", "RUN echo app >/app\n", base="ours")
    base = built(factory, "ours", word=b"one")
    app = over(factory, factory.build("app"))
    over(factory, factory.push(base.id, "archive"))
    built(factory, "ours", word=b"two")
    over(factory, factory.build("app"))
    # It is pushed, and so it is kept, although its name is another's by now.
    assert shop.buildah.images()[base.digest] == ()
    assert numbers(factory.prune(0)) == [app.id]
    assert base.digest in shop.buildah.images()
    assert factory.work(base.id) == base
    # And goes with its push, whatever it was called meanwhile.
    newest = factory.image("ours").build
    assert newest is not None
    over(factory, factory.push(newest.id, "archive"))
    assert factory.prune(0).images == (base.digest,)
    assert base.digest not in shop.buildah.images()
