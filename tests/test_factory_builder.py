"""Builds and pushes by real builders and buildah: how far they are, how they end, and what is left when somebody is killed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import memory
import pytest
from processes import gone, until
from workshop import Workshop, microseconds

from sidecar.factory.buildah import Buildah
from sidecar.factory.builder import see_to
from sidecar.factory.model import Asked, Work
from sidecar.factory.records import open_records

# Longer than any test, and killed with what waits for it.
LONG = "sleep 300"


@pytest.fixture
def shop() -> Iterator[Workshop]:
    with memory.folder() as top, Workshop(top) as shop:
        yield shop


def labels_of(shop: Workshop, work: Work) -> dict[str, str]:
    found: dict[str, str] = json.loads(shop.buildah.run("inspect", "--type=image", work.digest).stdout)["OCIv1"]["config"][
        "Labels"
    ]
    return found


# --- how far, and how it ends ------------------------------------------------------------------------------------------


def test_a_build_is_followed_from_step_to_step_and_is_100_only_when_it_is_complete(shop: Workshop) -> None:
    gate = "RUN echo {n}; until [ -e /gate/{n} ]; do sleep 0.05; done\n"
    (shop.folder / "gate").mkdir()
    shop.define("volumes: {../gate: /gate}")
    shop.image("app", "".join(gate.format(n=f"at-{n}") for n in range(3)))
    work = shop.ask("app")
    seen: list[int] = []
    for n in range(3):
        shop.hears(work, f"\nat-{n}\n".encode())
        now = shop.records.get(work.id)
        assert (now.status, f"at-{n}" in now.activity) == ("BUILDING", True)
        seen.append(now.percent)
        (shop.folder / "gate" / f"at-{n}").touch()
    over = shop.over(work)
    assert over.status == "COMPLETE", shop.told(work)
    assert 0 < seen[0] < seen[1] < seen[2] < over.percent == 100
    assert shop.buildah.images()[over.digest] == ("localhost/app:latest",)
    assert over.reference == "localhost/app:latest"


def test_percent_never_falls_whoever_looks(shop: Workshop) -> None:
    shop.image("app", "RUN echo one\nRUN echo two\nRUN echo three\n")
    work = shop.ask("app")
    seen = []
    with open_records(shop.site.state) as others:
        until(lambda: (seen.append(others.get(work.id)) or seen[-1]).over, "it is over")  # type: ignore[func-returns-value]
    percents = [each.percent for each in seen]
    assert percents == sorted(percents)
    assert {each.percent == 100 for each in seen if not each.over} <= {False}
    assert len({*percents} - {0, 100}) >= 2


def test_a_step_that_fails_is_told_with_its_exit_status_and_the_log_tells_the_rest(shop: Workshop) -> None:
    shop.image("app", "RUN echo fine\nRUN echo what is wrong >&2; exit 7\n")
    work = shop.built("app")
    assert work.status == "FAILED"
    assert work.error == "STEP 4/6: RUN echo what is wrong >&2; exit 7: exit status 7"
    assert 0 < work.percent < 100
    assert b"\nwhat is wrong\n" in shop.records.log(work.id)
    assert shop.containers() == []
    shop.image("app", "RUN echo fine\n")
    assert shop.built("app").status == "COMPLETE"
    assert shop.records.get(work.id) == work


def test_a_containerfile_that_is_none_is_told(shop: Workshop) -> None:
    (shop.image("app", "") / "Containerfile").write_text("FROM scratch\nNONSENSE\n")
    assert "NONSENSE" in shop.built("app").error.upper()
    (shop.contexts / "app" / "Containerfile").write_text("FROM localhost/nothing\n")
    assert "localhost/nothing" in shop.built("app").error


@pytest.mark.parametrize(
    "entry", ["", "images: {app: {arguments: {LEVEL: 3}}}", "images: {app: {base: 'localhost:1/team/os:1'}}"]
)
def test_what_an_image_is_built_on_is_fetched_where_it_is_not_here(shop: Workshop, entry: str) -> None:
    shop.define(entry)
    shop.image("app", "", base="given")
    if "base" not in entry:
        (shop.contexts / "app" / "Containerfile").write_text("# not localhost/team\nFROM localhost:1/team/os:1\n")
    assert "connection refused" in shop.built("app").error


@pytest.mark.parametrize("steps", ["FROM localhost/team/os", "ARG ON=localhost/team/os\nFROM $ON", "FROM $GIVEN"])
def test_what_can_only_be_of_this_machine_is_fetched_from_nowhere(shop: Workshop, steps: str) -> None:
    shop.define("images: {app: {arguments: {GIVEN: localhost/team/os}}}")
    (shop.image("app", "") / "Containerfile").write_text(f"ARG GIVEN\n{steps}\n")
    work = shop.built("app")
    assert "localhost/team/os: image not known" in work.error
    assert b"Trying to pull" not in shop.records.log(work.id)


def test_labels_are_written_into_the_image(shop: Workshop) -> None:
    shop.image("app", "")
    work = shop.built("app", labels={"team": 'a "b" $c\\', "sidecar.build": "forged"})
    labels = labels_of(shop, work)
    assert labels["team"] == 'a "b" $c\\'
    assert (labels["sidecar.build"], labels["sidecar.content-digest"]) == (str(work.id), work.content)


def test_an_image_is_built_on_one_of_ours_when_that_is_built(shop: Workshop) -> None:
    shop.define("images: {app: {base: ours, target: docker}}")
    shop.image("ours", "RUN echo from ours >/told\n")
    shop.image("app", "RUN cat /told\n", base="ours")
    first, second = shop.ask("ours"), shop.ask("app")
    assert shop.over(second).status == "COMPLETE", shop.told(second)
    assert b"\nfrom ours\n" in shop.records.log(second.id)
    assert shop.records.get(first.id).finished <= shop.records.get(second.id).finished


def test_what_is_built_on_one_that_failed_fails(shop: Workshop) -> None:
    shop.define("images: {app: {base: ours}}")
    shop.image("ours", "RUN exit 3\n")
    shop.image("app", "RUN true\n", base="ours")
    shop.ask("ours")
    assert shop.built("app").error == "ours, which it is built on, has failed: STEP 3/5: RUN exit 3: exit status 3"


def test_what_is_built_on_one_that_nobody_asked_for_says_so(shop: Workshop) -> None:
    shop.define("images: {app: {base: ours}}")
    shop.image("ours", "")
    shop.image("app", "RUN true\n", base="ours")
    assert shop.built("app").error == "ours, which it is built on, is not built: build that first"


def test_what_has_changed_since_it_was_asked_for_is_not_built(shop: Workshop) -> None:
    folder = shop.image("app", "")
    asked = shop.asked("app")
    (folder / "more").touch()
    work = shop.records.ask(asked, microseconds())
    see_to(shop.site, shop.records)
    assert shop.over(work).error == "its context has changed since it was asked for"


def test_what_changes_while_it_is_built_is_not_complete(shop: Workshop) -> None:
    folder = shop.image("app", "RUN echo begun; until [ -e /gate/on ]; do sleep 0.05; done\n")
    (shop.folder / "gate").mkdir()
    shop.define("volumes: {../gate: /gate}")
    work = shop.ask("app")
    shop.hears(work, b"\nbegun\n")
    (folder / "more").touch()
    (shop.folder / "gate" / "on").touch()
    assert shop.over(work).error == "its context has changed while it was built"
    (shop.folder / "gate" / "on").touch()
    assert shop.built("app").status == "COMPLETE"


def test_the_name_of_an_image_stays_with_what_is_complete(shop: Workshop) -> None:
    (shop.folder / "gate").mkdir()
    shop.define("volumes: {../gate: /gate}")
    shop.image("app", "")
    complete = shop.built("app")
    folder = shop.image("app", "RUN echo begun; until [ -e /gate/on ]; do sleep 0.05; done\n")
    work = shop.ask("app")
    shop.hears(work, b"\nbegun\n")
    (folder / "more").touch()
    (shop.folder / "gate" / "on").touch()
    assert shop.over(work).error == "its context has changed while it was built"
    assert {each: names for each, names in shop.buildah.images().items() if names} == {complete.digest: (complete.reference,)}
    again = shop.built("app")
    assert {each: names for each, names in shop.buildah.images().items() if names} == {again.digest: (again.reference,)}


def test_images_are_known_by_id_also_after_they_are_removed(shop: Workshop) -> None:
    shop.image("app", "")
    work = shop.built("app")
    buildah = shop.buildah
    assert work.digest in buildah.images()
    subprocess.run(["buildah", "rmi", work.digest], env=buildah.environment(), check=True, capture_output=True)
    assert work.digest not in buildah.images()
    assert shop.ask("app") == work
    again = shop.built("app", anew=True)
    assert (again.status, again.id != work.id) == ("COMPLETE", True)


def test_a_store_of_another_place_is_used_where_the_definition_names_one(shop: Workshop) -> None:
    shop.define("store: ../state/elsewhere")
    shop.image("app", "")
    assert shop.built("app").status == "COMPLETE"
    assert (shop.folder / "state" / "elsewhere" / "factory").is_dir()
    assert not (shop.folder / "state" / "images").exists()


def test_the_same_content_gives_the_same_layers_where_a_time_is_given(shop: Workshop) -> None:
    shop.define("timestamp: 315532800")
    shop.image("app", "RUN date >/dev/null; echo x >/y\n")
    found = []
    for store in ("one", "two"):
        shop.define(f"timestamp: 315532800\nstore: ../state/{store}\n")
        work = shop.built("app", anew=True)
        found.append(json.loads(shop.buildah.run("inspect", "--type=image", work.digest).stdout)["OCIv1"]["rootfs"])
    assert found[0] == found[1]


# --- pushes ------------------------------------------------------------------------------------------------------------


def test_a_build_is_pushed_to_a_layout_and_its_digest_is_the_one_that_is_there(shop: Workshop) -> None:
    shop.define("repository: team/{image}\ntag: 1\nproviders: {archive: {layout: ../state/archive}}")
    shop.image("app", "")
    shop.image("other", "")
    works = [shop.push(shop.built(name), "archive") for name in ("app", "other")]
    assert [work.status for work in works] == ["COMPLETE", "COMPLETE"], shop.told(works[0])
    index = json.loads((shop.folder / "state" / "archive" / "index.json").read_text())
    there = {each["annotations"]["org.opencontainers.image.ref.name"]: each["digest"] for each in index["manifests"]}
    assert there == {work.reference: work.digest for work in works}
    assert set(there) == {"team/app:1", "team/other:1"}


def test_what_a_push_has_left_that_was_killed_is_gone_after_the_next(shop: Workshop) -> None:
    shop.define("providers: {archive: {layout: ../state/archive}}")
    shop.image("app", "")
    archive = shop.folder / "state" / "archive"
    archive.mkdir(parents=True)
    (archive / "oci-put-blob123456").write_text("half of it")
    assert shop.push(shop.built("app"), "archive").status == "COMPLETE"
    assert sorted(os.listdir(archive)) == ["blobs", "index.json", "oci-layout", "sidecar.lock"]


def test_a_layout_whose_list_of_images_is_a_link_is_not_written_to(shop: Workshop) -> None:
    shop.define("providers: {archive: {layout: ../state/archive}}")
    shop.image("app", "")
    archive = shop.folder / "state" / "archive"
    archive.mkdir(parents=True)
    (shop.folder / "elsewhere").write_text('{"manifests": []}')
    (archive / "index.json").symlink_to(shop.folder / "elsewhere")
    assert shop.push(shop.built("app"), "archive").error == f"{archive} cannot be cleared: Too many levels of symbolic links"
    assert (shop.folder / "elsewhere").read_text() == '{"manifests": []}'
    assert not any(b"manifests" in each.read_bytes() for each in archive.iterdir() if not each.is_symlink())


def test_the_store_is_nobody_elses_whatever_the_umask(shop: Workshop) -> None:
    buildah = Buildah(str(shop.folder / "state" / "elsewhere"))
    code = "import os, sys; from sidecar.factory.buildah import Buildah; os.umask(0); Buildah(sys.argv[1]).prepare()"
    subprocess.run([sys.executable, "-c", code, buildah.store], check=True)
    for folder in ("", "factory", "factory/builds"):
        assert os.stat(os.path.join(buildah.store, folder)).st_mode & 0o777 == 0o700


def test_pushes_to_one_layout_at_once_are_all_there(shop: Workshop) -> None:
    shop.define("providers: {archive: {layout: ../state/archive}}")
    builds = []
    for name in ("a", "b", "c", "d"):
        shop.image(name, f"ENV name={name}\n")
        builds.append(shop.built(name))
    asked = [shop.records.ask(_pushed(build), microseconds()) for build in builds]
    see_to(shop.site, shop.records)
    see_to(shop.site, shop.records)
    assert {shop.over(work).status for work in asked} == {"COMPLETE"}
    index = json.loads((shop.folder / "state" / "archive" / "index.json").read_text())
    assert len(index["manifests"]) == 4


def _pushed(build: Work) -> Asked:
    return Asked("push", build.image, build.target, build.content, build.site, "archive", build.id)


def test_a_push_to_where_nobody_listens_fails_and_says_why(shop: Workshop) -> None:
    shop.define('providers: {here: {registry: "localhost:1", plain: true}}')
    shop.image("app", "")
    work = shop.push(shop.built("app"), "here")
    assert work.status == "FAILED"
    assert "connection refused" in work.error


def test_a_push_of_what_is_gone_says_so(shop: Workshop) -> None:
    shop.define("providers: {archive: {layout: ../state/archive}}")
    shop.image("app", "")
    build = shop.built("app")
    shop.buildah.run("rmi", build.digest)
    assert shop.push(build, "archive").error == f"what build {build.id} made is not there any more: build app again"


# --- who builds --------------------------------------------------------------------------------------------------------


def test_twelve_that_are_asked_for_at_once_are_done_in_order_and_never_more_than_two_at_once(shop: Workshop) -> None:
    for n in range(12):
        shop.image(f"app-{n:02}", f"ENV n={n}\n")
    works = [shop.ask(f"app-{n:02}") for n in range(12)]
    most = 0
    while any(not shop.records.get(work.id).over for work in works):
        most = max(most, len(shop.records.find(status=("BUILDING",))))
    over = [shop.records.get(work.id) for work in works]
    assert {work.status for work in over} == {"COMPLETE"}
    assert [work.started for work in over] == sorted(work.started for work in over)
    assert 1 <= most <= 2
    assert 1 <= len({work.worker for work in over}) <= 4


def test_a_builder_outlives_whoever_asked(shop: Workshop) -> None:
    shop.image("app", "RUN echo begun; until [ -e /gate/on ]; do sleep 0.05; done\n")
    (shop.folder / "gate").mkdir()
    shop.define("volumes: {../gate: /gate}")
    code = (
        "import json, os, sys; from sidecar.factory.builder import see_to; from sidecar.factory.model import Asked\n"
        "from sidecar.factory.records import open_records; from sidecar.factory.site import Site\n"
        "site, asked = Site(**json.loads(sys.argv[1])), Asked(*json.loads(sys.argv[2]))\n"
        "records = open_records(site.state); print(records.ask(asked, 1).id); see_to(site, records); sys.stdout.flush()\n"
        "os.killpg(0, 9)"
    )
    asked = shop.asked("app")
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(json.dumps, (vars(shop.site), [*vars(asked).values()]))],
        capture_output=True, text=True, start_new_session=True, check=False,
    )  # fmt: skip
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    work = shop.records.get(int(ran.stdout))
    shop.hears(work, b"\nbegun\n")
    (shop.folder / "gate" / "on").touch()
    assert shop.over(work).status == "COMPLETE"


def test_no_builder_begins_where_nothing_waits_or_all_are_at_work(shop: Workshop) -> None:
    assert not see_to(shop.site, shop.records)
    shop.image("app", "")
    held = []
    shop.built("app")
    shop.idle()
    for number in range(shop.site.slots):
        held.append(os.open(shop.site.slot(number), os.O_RDWR | os.O_CREAT))
        fcntl.flock(held[-1], fcntl.LOCK_EX)
    again = shop.records.ask(shop.asked("app"), microseconds(), anew=True)
    assert not see_to(shop.site, shop.records)
    for each in held:
        os.close(each)
    assert see_to(shop.site, shop.records)
    assert shop.over(again).status == "COMPLETE"


def test_what_a_build_began_in_the_background_ends_with_it(shop: Workshop) -> None:
    shop.image("app", f"RUN setsid {LONG}.{os.getpid()} & echo begun\n")
    assert shop.built("app").status == "COMPLETE"
    shop.idle()
    assert not _sleepers()


def _sleepers() -> list[int]:
    from processes import processes_that_say

    return [pid for pid in processes_that_say(f"300.{os.getpid()}") if not gone(pid)]


# --- the builder is killed ---------------------------------------------------------------------------------------------

# What has been said when the builder is killed, and how many more of its lines are waited for.
MOMENTS = {
    "before anything is said": "",
    "when buildah begins": "$ buildah",
    "at the first step": "STEP 1/",
    "while files are copied": "STEP 2/",
    "before a command": "STEP 3/",
    "in a command": "\nfirst\n",
    "in another": "\nsecond\n",
    "after a command": "\nSTEP 5/",
    "at the last step": 'LABEL "sidecar.content-digest',
    "when all is built": "COMMIT",
}
SOON_OVER = ("after a command", "at the last step", "when all is built")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_builder_that_is_killed_leaves_a_failed_build_and_nothing_else(shop: Workshop, moment: str) -> None:
    wait = f"setsid {LONG}.{os.getpid()} & sleep 0.2"
    shop.image("app", f"RUN echo first; {wait}\nRUN echo second; {wait}\n")
    said = MOMENTS[moment].encode()
    work = shop.ask("app")
    until(lambda: (bool(shop.builders()) and said in shop.records.log(work.id)) or shop.records.get(work.id).over, "it is said")
    killed = shop.builders()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    for pid in killed:
        until(lambda pid=pid: gone(pid), "it is dead")  # type: ignore[misc]
    until(lambda: not shop.processes() and not _sleepers(), "buildah and what it began are dead")
    with open_records(shop.site.state) as others:
        buried = others.bury(microseconds())
        now = others.get(work.id)
        # After the last command a build may be faster than whoever kills its builder, and at the beginning not be claimed yet.
        late, early = now.over and moment in SOON_OVER, now.status == "PENDING" and moment == "before anything is said"
        assert now.status == "FAILED" or late or early, shop.told(work)
        if now.status == "FAILED":
            assert [each.id for each in buried] == [work.id]
            assert now.error.startswith("the builder died")
    assert not shop.mounts()
    again = shop.over(shop.ask("app", anew=True))
    assert again.status == "COMPLETE", shop.told(again)
    shop.idle()
    assert shop.containers() == []
    assert os.listdir(os.path.join(shop.buildah.store, "factory", "builds")) == []
    assert not shop.mounts()


def test_where_buildah_alone_is_killed_the_error_says_so_and_what_it_left_is_removed(shop: Workshop) -> None:
    shop.image("app", f"RUN echo begun; {LONG}\n")
    work = shop.ask("app")
    shop.hears(work, b"\nbegun\n")
    (killed,) = [pid for pid in shop.processes() if _is_build(pid)]
    os.kill(killed, signal.SIGKILL)
    assert shop.over(work).error == f"buildah was ended by signal 9, at STEP 3/5: RUN echo begun; {LONG}"
    shop.idle()
    assert shop.containers() == []
    assert os.listdir(os.path.join(shop.buildah.store, "factory", "builds")) == []


def _is_build(pid: int) -> bool:
    """Tell whether a process is the command that was given, not what began it, nor what it began."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().startswith(b"buildah\0build\0")


def test_leftovers_are_not_removed_while_others_build(shop: Workshop) -> None:
    shop.image("killed", f"RUN echo begun; {LONG}\n")
    shop.image("other", "RUN echo begun; until [ -e /gate/on ]; do sleep 0.05; done\n")
    (shop.folder / "gate").mkdir()
    shop.define("volumes: {../gate: /gate}")
    killed = shop.ask("killed")
    shop.hears(killed, b"\nbegun\n")
    (builder,) = shop.builders()
    other = shop.ask("other")
    shop.hears(other, b"\nbegun\n")
    os.kill(builder, signal.SIGKILL)
    until(lambda: gone(builder), "it is dead")
    assert [each.id for each in shop.records.bury(microseconds())] == [killed.id]
    assert not shop.buildah.clean()
    (shop.folder / "gate" / "on").touch()
    assert shop.over(other).status == "COMPLETE"
    shop.idle()
    assert shop.buildah.clean()
    assert shop.containers() == []


def test_a_builder_that_was_taken_for_dead_ends_what_it_does(shop: Workshop) -> None:
    shop.image("app", "RUN echo begun; while sleep 0.05; do echo on; done\n")
    work = shop.ask("app")
    shop.hears(work, b"\nbegun\n")
    assert shop.records.fail(work.id, "somebody says so", microseconds())
    until(lambda: not shop.processes(), "buildah has ended")
    shop.image("app", "RUN echo another\n")
    assert shop.built("app").status == "COMPLETE"
    shop.idle()
    assert shop.containers() == []
    assert shop.records.get(work.id).error == "somebody says so"
