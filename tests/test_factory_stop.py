"""Builds and pushes that somebody stops, whatever real builders are at: what is told of them, and what is left."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import memory
import pytest
from processes import gone, processes_that_say, until
from registries import registry
from workshop import Workshop, microseconds

from sidecar.errors import SourceMissing
from sidecar.factory.builder import see_to
from sidecar.factory.factory import Factory
from sidecar.factory.model import UNDER_WAY, Asked, Work

# Longer than any test, and found by what it says: what a build has begun in the background.
SLEEPER = f"sleep 300.{os.getpid()}"
HANGS = f"RUN setsid {SLEEPER} & echo begun; until [ -e /gate/on ]; do sleep 0.05; done\n"


@pytest.fixture
def shop() -> Iterator[Workshop]:
    with memory.folder() as top, Workshop(top) as shop:
        (shop.folder / "gate").mkdir()
        shop.define("volumes: {../gate: /gate}")
        yield shop


@pytest.fixture
def factory(shop: Workshop) -> Iterator[Factory]:
    with Factory(shop.site.definition, shop.site.state) as factory:
        yield factory


def hanging(shop: Workshop, name: str = "app") -> Work:
    """Return a build that hangs, and says nothing more."""
    shop.image(name, f"ENV name={name}\n{HANGS}")
    work = shop.ask(name)
    shop.hears(work, b"\nbegun\n")
    return work


def open_gate(shop: Workshop) -> None:
    (shop.folder / "gate" / "on").touch()


def left(shop: Workshop) -> dict[str, object]:
    """Return what is left of builds, once nobody builds."""
    shop.idle()
    found = {
        "processes": [pid for pid in processes_that_say(SLEEPER.removeprefix("sleep ")) if not gone(pid)],
        "containers": shop.containers(),
        "folders": os.listdir(os.path.join(shop.buildah.store, "factory", "builds")),
        "mounts": shop.mounts(),
    }
    return {what: each for what, each in found.items() if each}


@contextmanager
def builder_that(shop: Workshop, differs: str) -> Iterator[subprocess.Popen[bytes]]:
    """Have a builder begin that differs from others by that statement. It has ended when the block is left."""
    slot = os.open(shop.site.slot(0), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(slot, fcntl.LOCK_EX)
    code = f"import os, sys, time\nfrom sidecar.factory import builder, buildah\n{differs}\nbuilder.build_all(sys.stdin.read())"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=(slot,)) as begun:
        os.close(slot)
        assert begun.stdin is not None
        begun.stdin.write(json.dumps([asdict(shop.site), slot]).encode())
        begun.stdin.close()
        try:
            yield begun
        finally:
            for work in shop.records.find(status=UNDER_WAY):
                shop.records.fail(work.id, "the test is over", microseconds())
            open_gate(shop)


def stopped_elsewhere(shop: Workshop, work: Work) -> Work:
    """Stop a work in a process of its own, and return what that was told."""
    code = (
        "import json, sys; from sidecar.factory.factory import Factory\n"
        "print(json.dumps(Factory(*sys.argv[1:3]).stop(int(sys.argv[3])).as_json()))"
    )
    words = [sys.executable, "-c", code, shop.site.definition, shop.site.state, str(work.id)]
    return Work.of_json(json.loads(subprocess.run(words, capture_output=True, check=True).stdout))


def test_a_build_that_hangs_is_stopped_from_another_process_and_nothing_of_it_is_left(shop: Workshop) -> None:
    work = hanging(shop)
    told = stopped_elsewhere(shop, work)
    assert (told.status, told.error, told.finished > work.asked) == ("FAILED", "stopped", True)
    assert left(shop) == {}
    over = shop.records.get(work.id)
    assert over.as_json() == told.as_json()
    assert b"\nbegun\n" in shop.records.log(work.id)
    open_gate(shop)
    again = shop.built("app")
    assert (again.status, again.content, again.id > work.id) == ("COMPLETE", work.content, True)
    assert shop.records.get(work.id) == over


def test_a_build_that_never_ceases_to_say_something_is_stopped_where_that_cannot_be_kept(
    shop: Workshop, factory: Factory
) -> None:
    shop.image("app", "RUN until [ -e /gate/on ]; do echo on; sleep 0.02; done\n")
    work = shop.records.ask(shop.asked("app"), microseconds())
    with builder_that(shop, "from sidecar.state import State; State.room = lambda _: 0"):
        until(lambda: "RUN" in shop.records.get(work.id).activity, "it is under way")
        assert factory.stop(work.id).error == "stopped"
        assert left(shop) == {}
    assert factory.log(work.id) == b""


# Until the gate is opened a builder waits: before it looks again at the context, or when the image was given its name.
LOOKS = """
digest, looks = builder.digest, []
def waits(*asked):
    looks.append(asked)
    while len(looks) == 2 and not os.path.exists({gate!r}):
        open({begun!r}, "w").close()
        time.sleep(0.01)
    return digest(*asked)
builder.digest = waits
"""
NAMES = """
name = buildah.Buildah.name
def waits(*asked):
    name(*asked)
    while not os.path.exists({gate!r}):
        open({begun!r}, "w").close()
        time.sleep(0.01)
buildah.Buildah.name = waits
"""


@pytest.mark.parametrize("differs", [LOOKS, NAMES], ids=["when it is built", "when it has its name"])
def test_what_is_stopped_when_it_is_built_does_not_keep_the_name(shop: Workshop, factory: Factory, differs: str) -> None:
    shop.image("app", "RUN echo first\n")
    first = shop.built("app")
    shop.idle()
    shop.image("app", "RUN echo second\n")
    work = shop.records.ask(shop.asked("app"), microseconds())
    begun = shop.folder / "begun"
    with builder_that(shop, differs.format(gate=str(shop.folder / "gate" / "on"), begun=str(begun))):
        until(begun.exists, "it is built")
        assert factory.stop(work.id).error == "stopped"
        open_gate(shop)
        assert left(shop) == {}
    assert {each: names for each, names in shop.buildah.images().items() if names} == {first.digest: ("localhost/app:latest",)}
    second = shop.built("app")
    assert shop.buildah.images()[second.digest] == ("localhost/app:latest",)


def test_when_all_who_build_hang_and_are_stopped_what_waits_begins(shop: Workshop, factory: Factory) -> None:
    hung = [hanging(shop, name) for name in ("one", "two")]
    shop.image("third", "RUN echo third\n")
    third = shop.ask("third")
    assert shop.records.get(third.id).status == "PENDING"
    assert [factory.stop(work.id).error for work in hung] == ["stopped", "stopped"]
    assert shop.over(third).status == "COMPLETE"
    assert left(shop) == {}


def test_what_others_build_goes_on_beside_one_that_is_stopped(shop: Workshop, factory: Factory) -> None:
    hung, other = hanging(shop, "hung"), hanging(shop, "other")
    factory.stop(hung.id)
    shop.image("third", "RUN echo third\n")
    assert shop.built("third").status == "COMPLETE"
    assert shop.records.get(other.id).status == "BUILDING"
    open_gate(shop)
    assert shop.over(other).status == "COMPLETE"
    assert left(shop) == {}


def test_what_waits_is_stopped_and_never_begins(factory: Factory, shop: Workshop) -> None:
    hung = [hanging(shop, name) for name in ("one", "two")]
    shop.image("third", "")
    third = shop.ask("third")
    told = factory.stop(third.id)
    assert (told.status, told.error, told.started, told.worker) == ("FAILED", "stopped", 0, "")
    open_gate(shop)
    assert {shop.over(work).status for work in hung} == {"COMPLETE"}
    shop.idle()
    assert factory.work(third.id) == told
    assert factory.log(third.id) == b""


def test_what_is_over_stays_as_it_ended_and_what_there_is_not_is_missing(factory: Factory, shop: Workshop) -> None:
    shop.image("good", "")
    shop.image("bad", "RUN exit 3\n")
    works = [shop.built(name) for name in ("good", "bad")]
    assert [work.status for work in works] == ["COMPLETE", "FAILED"]
    for work in works:
        assert factory.stop(work.id) == factory.stop(work.id) == work
    for number in (0, -1, 99, 1 << 80):
        with pytest.raises(SourceMissing, match=f"no work {number}"):
            factory.stop(number)


def test_who_waits_for_what_it_is_built_on_is_stopped_and_that_goes_on(factory: Factory, shop: Workshop) -> None:
    shop.define("volumes: {../gate: /gate}\nimages: {app: {base: ours}}")
    shop.image("app", "RUN true\n", base="ours")
    base = hanging(shop, "ours")
    work = shop.ask("app")
    until(lambda: factory.work(work.id).activity == "waits for ours", "it waits")
    assert factory.stop(work.id).error == "stopped"
    shop.image("third", "")
    assert shop.built("third").status == "COMPLETE"
    assert factory.work(base.id).status == "BUILDING"
    # And what is built on one that is stopped has failed of that.
    again = shop.ask("app")
    until(lambda: factory.work(again.id).activity == "waits for ours", "it waits")
    factory.stop(base.id)
    assert shop.over(again).error == "ours, which it is built on, has failed: stopped"
    assert left(shop) == {}


def test_who_waits_for_whoever_removes_what_is_left_is_stopped(shop: Workshop, factory: Factory) -> None:
    shop.image("app", "")
    shop.buildah.prepare()
    removes = os.open(os.path.join(shop.buildah.store, "factory", "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(removes, fcntl.LOCK_EX)
        work = shop.ask("app")
        until(lambda: bool(shop.records.get(work.id).started), "it is claimed")
        assert factory.stop(work.id).error == "stopped"
        assert left(shop) == {}
    finally:
        os.close(removes)
    assert shop.built("app").status == "COMPLETE"


def asked_to(shop: Workshop, build: Work, provider: str) -> Work:
    """Ask for a push, and return it as it is now."""
    asked = Asked("push", build.image, build.target, build.content, build.site, provider, build.id)
    work = shop.records.ask(asked, microseconds())
    see_to(shop.site, shop.records)
    return work


def test_a_push_that_waits_for_who_writes_to_a_layout_is_stopped(shop: Workshop, factory: Factory) -> None:
    shop.define("providers: {archive: {layout: ../state/archive}}")
    shop.image("app", "")
    build = shop.built("app")
    archive = shop.folder / "state" / "archive"
    archive.mkdir()
    writes = os.open(archive / "sidecar.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(writes, fcntl.LOCK_EX)
        work = asked_to(shop, build, "archive")
        until(lambda: factory.work(work.id).activity.startswith("waits for"), "it waits")
        assert factory.stop(work.id).error == "stopped"
        assert left(shop) == {}
    finally:
        os.close(writes)
    assert shop.push(build, "archive").status == "COMPLETE"


# A push that comes to the moment at which buildah writes the list of what is in a layout, and hangs there.
SPOILS = """
def spoils(self, image, provider, reference, *, digest_file):
    script = 'cd "$1" && for each in oci-layout index.json oci-put-blob1; do : >$each; done; echo begun; sleep 300'
    return [*buildah._ALONE, "sh", "-c", script, "sh", provider.layout]
buildah.Buildah.push = spoils
"""


@pytest.mark.parametrize("others", [True, False], ids=["others are there", "the first"])
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_push_that_ends_while_the_layout_is_written_leaves_it_as_it_was(
    shop: Workshop, factory: Factory, how: str, others: bool
) -> None:
    shop.define("providers: {archive: {layout: ../state/archive}}")
    archive = shop.folder / "state" / "archive"
    for name in ("app", "other"):
        shop.image(name, f"ENV name={name}\n")
    if others:
        other = shop.push(shop.built("other"), "archive")
        assert other.status == "COMPLETE"
    before = (archive / "index.json").read_text() if others else ""
    build = shop.built("app")
    shop.idle()
    asked = Asked("push", build.image, build.target, build.content, build.site, "archive", build.id)
    work = shop.records.ask(asked, microseconds())
    with builder_that(shop, SPOILS) as builder:
        shop.hears(work, b"\nbegun\n")
        if how == "stopped":
            factory.stop(work.id)
        else:
            builder.kill()
        assert left(shop).keys() <= {"folders"}
    if how == "stopped":
        assert {*os.listdir(archive)} - {"blobs"} == {"index.json", "oci-layout", "sidecar.lock"}
        assert json.loads((archive / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
        assert (archive / "index.json").read_text() == before or not others
    pushed = shop.push(build, "archive")
    assert pushed.status == "COMPLETE", shop.told(pushed)
    assert sorted(os.listdir(archive)) == ["blobs", "index.json", "oci-layout", "sidecar.lock"]
    assert {image.name: image.providers[0].presence for image in factory.images()} == {
        "app": "pushed",
        "other": "pushed" if others else "absent",
    }


def test_a_push_to_a_registry_that_hangs_is_stopped_and_nothing_of_it_is_left(
    shop: Workshop, factory: Factory, tmp_path: Path
) -> None:
    with registry(tmp_path / "registry") as there:
        shop.define(f'providers: {{there: {{registry: "{there.host}", plain: true}}}}')
        shop.image("app", "")
        build = shop.built("app")
        shop.idle()
        there.hang()
        work = asked_to(shop, build, "there")
        shop.hears(work, b"$ buildah push")
        assert factory.stop(work.id).error == "stopped"
        assert left(shop) == {}


@pytest.mark.parametrize("first", ["stopped", "killed"])
def test_where_the_builder_is_killed_as_well_one_of_both_is_told_and_nothing_is_left(
    shop: Workshop, factory: Factory, first: str
) -> None:
    work = hanging(shop)
    (builder,) = shop.builders()
    if first == "stopped":
        factory.stop(work.id)
    os.kill(builder, signal.SIGKILL)
    told = factory.stop(work.id)
    assert told.status == "FAILED"
    assert told.error == "stopped" or (first == "killed" and told.error.startswith("the builder died at STEP"))
    until(lambda: gone(builder), "it is dead")
    open_gate(shop)
    assert shop.built("app").status == "COMPLETE"
    assert left(shop) == {}
    assert factory.work(work.id) == told


def test_what_another_site_does_is_stopped_from_here(shop: Workshop, tmp_path: Path) -> None:
    work = hanging(shop)
    (tmp_path / "factory.yaml").touch()
    with Factory(str(tmp_path / "factory.yaml"), shop.site.state) as elsewhere:
        assert elsewhere.stop(work.id).error == "stopped"
    assert left(shop) == {}


def test_what_waits_where_no_builder_can_begin_is_stopped(
    shop: Workshop, factory: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.image("app", "")
    work = shop.records.ask(shop.asked("app"), microseconds())
    (tmp_path / "sidecar").mkdir()
    (tmp_path / "sidecar" / "__init__.py").write_text("raise RuntimeError('not installed')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert see_to(shop.site, shop.records)
    shop.idle()
    assert factory.stop(work.id).error == "stopped"
