"""`sidecar image`, as it is typed: real images, built by buildah, pushed to a real registry and to an OCI layout."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import memory
import pytest
from factory_places import BUSYBOX, Place, gated, pod
from processes import HANG
from registries import Registry, registry

from sidecar.errors import DATA, IO, NO_INPUT, UNAVAILABLE, USAGE, ConfigurationError, ParametersError, SourceMissing
from sidecar.factory.factory import Factory
from sidecar.factory.model import Conflict

EXAMPLES = Path(__file__).parent.parent / "k8s-examples"
MISSING = 1
APP = "localhost/sidecar/app:0.1.0"


@pytest.fixture
def here() -> Iterator[Registry]:
    with memory.folder() as top, registry(top / "registry") as running:
        yield running


# --- from a context to a provider --------------------------------------------------------------------------------------


def test_what_is_not_built_is_new_and_its_build_is_on_offer(place: Place) -> None:
    ended = place.type("list")
    assert (ended.status, ended.rows) == (0, [["app", "NEW", "unreachable", "absent", "build"]])
    assert ended.err == "sidecar: here is unreachable: connection refused\n"


def test_what_is_built_is_complete_and_its_push_is_on_offer_where_it_is_absent(place: Place, here: Registry) -> None:
    place.define(host=here.host)
    ended = place.type("build", "app")
    assert ended.status == 0, ended.err
    assert re.fullmatch(r"build 1 of app: COMPLETE sha256:[0-9a-f]{64}\n", ended.out)
    ((name, status, *rest),) = place.type("list").rows
    assert (name, rest) == ("app", ["absent", "absent", "push here, archive"])
    assert re.fullmatch(r"COMPLETE \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", status)


def test_what_is_pushed_has_the_digest_that_the_registry_and_the_layout_answer(place: Place, here: Registry) -> None:
    place.define(host=here.host)
    ended = place.type("build", "app", "--push", "here", "--push", "archive", "--json")
    assert ended.status == 0, ended.err
    assert [each["status"] for each in ended.json] == ["COMPLETE"] * 3
    at = place.of("app")["at"]
    assert {each["presence"] for each in at.values()} == {"pushed"}
    assert at["here"]["digest"] == here.digest("sidecar/app", "0.1.0")
    (entry,) = json.loads((place.folder / "archive" / "index.json").read_text())["manifests"]
    assert at["archive"]["digest"] == entry["digest"]
    assert place.of("app")["actions"] == []


def test_what_is_built_already_is_not_built_again(place: Place) -> None:
    first, second = (place.type("build", "app", "--json").json for _ in range(2))
    assert first == second


def test_a_build_that_many_ask_for_at_once_is_one(place: Place) -> None:
    with ThreadPoolExecutor(4) as threads:
        ended = [*threads.map(lambda _: place.type("build", "app", "--json"), range(8))]
    assert {each.status for each in ended} == {0}
    assert {each.json[0]["id"] for each in ended} == {1}


def test_an_image_that_is_built_on_another_of_ours_has_that_built_first(place: Place) -> None:
    place.image("onto", "ARG BASE", "FROM ${BASE}", "COPY file /more")
    place.define(onto="{base: app}")
    assert place.type("build", "onto").status == 0
    works = place.type("status", "--json").json
    assert [(each["image"], each["status"]) for each in reversed(works)] == [("app", "COMPLETE"), ("onto", "COMPLETE")]
    # And what it is built on is a part of it.
    (place.images / "app" / "file").write_text("other")
    assert [place.of(name)["status"] for name in ("app", "onto")] == ["STALE", "STALE"]


def test_an_image_is_built_on_what_its_base_is_now_although_that_was_built_before_something_else(place: Place) -> None:
    context = place.image("onto", "ARG BASE", "FROM ${BASE}", "COPY more /", more="")
    place.define(onto="{base: app}")
    for number, text in enumerate(("app", "other", "app")):
        (place.images / "app" / "file").write_text(text)
        (context / "more").write_text(str(number))
        assert place.type("build", "onto").status == 0
        below, layers = (place.layers(place.of(name)["build"]["digest"]) for name in ("app", "onto"))
        assert layers[: len(below)] == below


def test_all_images_are_built_by_one_command(place: Place) -> None:
    place.image("other")
    assert place.type("build", "--all").status == 0
    assert [row[1].split()[0] for row in place.type("list").rows] == ["COMPLETE", "COMPLETE"]


def test_labels_are_the_builds_and_the_images(place: Place) -> None:
    work = place.type("build", "app", "--label", "team=data", "--label", "org.example/x=a=b", "--json").json[0]
    assert work["labels"] == {"team": "data", "org.example/x": "a=b"}
    place.type("push", "app", "archive")
    blobs = [path.read_text(errors="replace") for path in (place.folder / "archive" / "blobs" / "sha256").iterdir()]
    (config,) = (json.loads(text) for text in blobs if '"rootfs"' in text)
    assert config["config"]["Labels"].items() >= {
        ("team", "data"), ("org.example/x", "a=b"), ("sidecar.build", "1"), ("sidecar.content-digest", work["content"]),
    }  # fmt: skip


# --- what becomes of it ------------------------------------------------------------------------------------------------


def test_a_touched_file_makes_an_image_stale_and_a_touched_time_does_not(place: Place) -> None:
    place.type("build", "app", "--push", "archive")
    file = place.images / "app" / "file"
    os.utime(file, (1, 1))
    assert (place.of("app")["status"], place.presence()["archive"]) == ("COMPLETE", "pushed")
    file.write_text("changed")
    assert (place.of("app")["status"], place.presence()["archive"]) == ("STALE", "stale")
    assert [each["do"] for each in place.of("app")["actions"]] == ["build"]
    # A change that is taken back needs no other build.
    file.write_text("app")
    assert (place.of("app")["status"], place.presence()["archive"]) == ("COMPLETE", "pushed")


def test_what_was_built_and_is_gone_is_missing_and_built_anew(place: Place) -> None:
    place.type("build", "app")
    place.buildah("rmi", "--all", "--force")
    assert place.of("app")["status"] == "MISSING"
    assert place.type("push", "app", "archive").status == 78
    assert place.type("build", "app", "--json").json[0]["id"] == 2
    assert place.of("app")["status"] == "COMPLETE"


def test_a_tag_that_is_deleted_in_the_registry_is_absent_and_pushed_again(place: Place, here: Registry) -> None:
    place.define(host=here.host)
    place.type("build", "app", "--push", "here")
    here.delete("sidecar/app", "0.1.0")
    assert place.presence()["here"] == "absent"
    assert {"do": "push", "image": "app", "provider": "here", "build": 1} in place.of("app")["actions"]
    ended = place.type("push", "app", "here", "--json")
    assert (ended.status, ended.json[0]["id"]) == (0, 3), ended.err
    assert place.presence()["here"] == "pushed"
    # Where it is there, it is not pushed once more.
    assert place.type("push", "app", "here", "--json").json == ended.json


def test_what_another_has_pushed_there_is_changed(place: Place, here: Registry) -> None:
    place.define(host=here.host)
    place.type("build", "app", "--push", "here")
    here.push("sidecar/app", "0.1.0")
    assert place.presence()["here"] == "changed"
    assert place.type("push", "app", "here").status == 0
    assert place.presence()["here"] == "pushed"


def test_a_registry_that_is_stopped_or_hangs_is_unreachable_and_never_absent(place: Place, here: Registry) -> None:
    place.define(host=here.host)
    place.type("build", "app", "--push", "here")
    here.hang()
    assert place.presence()["here"] == "unreachable"
    here.stop()
    assert place.presence()["here"] == "unreachable"
    assert [each["provider"] for each in place.of("app")["actions"]] == ["archive"]
    ended = place.type("check", "-f", "-", "--push", "here", given=pod(APP))
    assert (ended.status, ended.err) == (IO, "sidecar: here is unreachable: connection refused\n")
    here.start()
    assert place.type("check", "-f", "-", "--push", "here", given=pod(APP)).status == 0


def test_a_push_to_who_does_not_answer_fails_and_says_so(place: Place) -> None:
    ended = place.type("build", "app", "--push", "here")
    assert ended.status == UNAVAILABLE
    assert "sidecar: push 2 of app to here has failed: " in ended.err
    assert "refused" in ended.err


def test_a_build_that_fails_names_the_step_and_its_exit_status_and_is_tried_again_when_asked_for(place: Place) -> None:
    context = place.image("bad", "FROM scratch", "COPY busybox /bin/", 'RUN ["/bin/busybox", "sh", "-c", "echo why >&2; exit 7"]')
    shutil.copy(BUSYBOX, context)
    ended = place.type("build", "bad")
    assert ended.status == UNAVAILABLE
    assert re.search(r"^sidecar: build 1 of bad has failed: .*STEP 3/\d.*7.*; see: sidecar image log 1$", ended.err, re.M), (
        ended.err
    )
    assert "why\n" in place.type("log", "1").out
    assert place.of("bad")["status"] == "FAILED"
    assert place.type("build", "bad", "--json").json[0]["id"] == 2
    # That it went well in the end does not take away how it went before.
    (context / "Containerfile").write_text("FROM scratch\nCOPY busybox /bin/\n")
    assert place.type("build", "bad").status == 0
    assert [each["status"] for each in place.type("status", "--json").json] == ["COMPLETE", "FAILED", "FAILED"]


# --- manifests ---------------------------------------------------------------------------------------------------------


def test_a_manifest_is_checked_and_what_is_missing_is_built_and_pushed(place: Place, here: Registry) -> None:
    place.define(host=here.host)
    place.image("unnamed")
    (place.folder / "pod.yaml").write_text(pod("other:1", APP))
    ended = place.type("check", "-f", "pod.yaml")
    assert ended.status == MISSING
    assert ended.out.splitlines()[0].split() == ["REFERENCE", "IMAGE", "STATUS", "here", "archive", "OFFER", "WHERE"]
    assert ended.rows == [["other:1", "not ours", "pod.yaml:4"], [APP, "app", "NEW", "absent", "absent", "build", "pod.yaml:5"]]
    applied = place.type("check", "-f", "pod.yaml", "--apply")
    assert applied.status == 0, applied.err
    assert [cell.split()[0] for cell in applied.rows[1][2:5]] == ["COMPLETE", "pushed", "pushed"]
    assert here.digest("sidecar/app", "0.1.0")
    assert place.type("check", "-f", "pod.yaml").status == 0
    assert place.of("unnamed")["status"] == "NEW"
    # Nothing is missing, so nothing is done.
    assert place.type("check", "-f", "pod.yaml", "--apply").err == ""
    assert len(place.type("status", "--json").json) == 3


def test_only_the_providers_that_are_named_count_and_are_pushed_to(place: Place) -> None:
    (place.folder / "pod.yaml").write_text(pod(APP))
    assert place.type("check", "-f", "pod.yaml", "--push", "archive", "--apply").status == 0
    assert place.presence() == {"here": "unreachable", "archive": "pushed"}
    assert place.type("check", "-f", "pod.yaml", "--push", "archive").status == 0
    assert place.type("check", "-f", "pod.yaml").status == IO


def test_what_fails_while_it_is_applied_is_told_and_the_rest_is_done(place: Place) -> None:
    place.image("bad", "FROM scratch", "COPY nothing /")
    (place.folder / "pod.yaml").write_text(pod(APP, "sidecar/bad:0.1.0"))
    ended = place.type("check", "-f", "pod.yaml", "--push", "archive", "--apply")
    assert ended.status == UNAVAILABLE
    assert "of bad has failed: " in ended.err
    assert [row[2].split()[0] for row in ended.rows] == ["COMPLETE", "FAILED"]
    assert place.presence()["archive"] == "pushed"


def test_an_image_of_ours_in_another_version_is_not_the_one_that_is_made_here(place: Place) -> None:
    place.type("build", "app", "--push", "archive")
    for reference, told in (
        ("mirror.example/sidecar/app:0.0.9", "0.0.9 is not made here: 0.1.0 is"),
        ("sidecar/app", "latest is not made here: 0.1.0 is"),
        (f"sidecar/app@sha256:{'0' * 64}", f"no provider has sha256:{'0' * 64}"),
    ):
        ended = place.type("check", "-f", "-", "--push", "archive", given=pod(reference))
        assert (ended.status, ended.err) == (MISSING, f"sidecar: - line 4: {reference}: {told}\n")
    digest = place.of("app")["at"]["archive"]["digest"]
    assert place.type("check", "-f", "-", "--push", "archive", given=pod(f"sidecar/app@{digest}")).status == 0


def test_the_examples_name_images_of_ours_and_each_is_told_with_its_line(place: Place) -> None:
    for name in ("wrapper", "demo-app", "demo-artifacts", "fuse-sidecar", "pg-sidecar"):
        place.image(name)
    ended = place.type("check", "-f", EXAMPLES, "--json")
    assert ended.status == MISSING, ended.err
    assert len({each["manifest"] for each in ended.json}) > 10
    for each in ended.json:
        line = Path(each["manifest"]).read_text().splitlines()[each["line"] - 1]
        assert each["reference"] in line
        assert "sidecar/" not in each["reference"] or each["image"] is None or each["image"]["name"] in each["reference"]
    named = {each["image"]["name"] for each in ended.json if each["image"]}
    assert named == {"wrapper", "demo-app", "demo-artifacts", "fuse-sidecar", "pg-sidecar"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind: Pod\nspec: {\n", "sidecar: - line 3: no YAML: "),
        ("kind: ConfigMap\ndata: {image: 'app:1'}\n", "sidecar: -: no image is named"),
        ("", "sidecar: -: no image is named"),
    ],
)
def test_what_is_no_manifest_ends_with_65_and_is_told(place: Place, text: str, told: str) -> None:
    ended = place.type("check", "-f", "-", given=text)
    assert (ended.status, ended.out) == (DATA, "")
    assert ended.err.startswith(told)
    assert ended.err.count("\n") == 1


def test_what_a_manifest_names_is_no_command_to_the_terminal(place: Place) -> None:
    ended = place.type("check", "-f", "-", given='containers: [{image: "a\\e[2J\\nb"}]')
    assert ended.rows[0][0] == "a\ufffd[2J b"
    assert "\x1b" not in ended.out + ended.err


# --- how far it is -----------------------------------------------------------------------------------------------------


def until(place: Place, number: int, status: str) -> dict[str, Any]:
    """Return a work as soon as it has a status, and something is said of it."""
    end = time.monotonic() + HANG
    while True:
        told = place.type("status", str(number), "--json")
        if told.status == 0:
            work: dict[str, Any] = told.json
            if work["status"] == status and (work["finished"] or "RUN" in work["status_detail"]["activity"]):
                return work
        assert time.monotonic() < end, told
        time.sleep(0.05)  # records call nobody


def test_what_goes_on_is_told_and_outlives_who_asked_for_it(place: Place) -> None:
    opened = gated(place)
    asking = subprocess.Popen(
        place.command("build", "slow"), cwd=place.folder, env=place.environment, stderr=subprocess.PIPE, text=True
    )
    try:
        work = until(place, 1, "BUILDING")
        assert 0 < work["percent_complete"] < 100
        assert "STEP 3/" in work["status_detail"]["activity"]
        assert place.of("slow")["status"] == "BUILDING"
        ((number, kind, image, status, *_),) = place.type("status").rows
        assert (number, kind, image, status) == ("1", "build", "slow", "BUILDING")
        assert place.type("push", "slow", "archive").status == 78
        asking.kill()
        asking.wait(HANG)
        with subprocess.Popen(
            place.command("status", "--watch"), cwd=place.folder, env=place.environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        ) as watching:  # fmt: skip
            assert watching.stderr is not None
            assert watching.stderr.readline().startswith("sidecar: build 1 of slow: BUILDING STEP 3/")
            opened.touch()
            out, _ = watching.communicate(timeout=HANG)
        assert watching.returncode == 0
        assert out.startswith("build 1 of slow: COMPLETE sha256:")
    finally:
        opened.touch()
        asking.kill()
        asking.communicate()


def test_who_is_interrupted_says_that_it_goes_on(place: Place) -> None:
    opened = gated(place)
    with subprocess.Popen(
        place.command("build", "slow"), cwd=place.folder, env=place.environment, stderr=subprocess.PIPE, text=True
    ) as asking:
        try:
            until(place, 1, "BUILDING")
            asking.send_signal(signal.SIGINT)
            _, err = asking.communicate(timeout=HANG)
        finally:
            opened.touch()
    assert asking.returncode == 130
    assert err.endswith(
        "sidecar: what was asked for goes on; see: sidecar image status --watch; to end it: sidecar image stop 1\n"
    )
    assert until(place, 1, "COMPLETE")["percent_complete"] == 100


def test_what_is_stopped_needs_no_factory_yaml_and_its_help_tells_of_no_status_for_one(place: Place) -> None:
    gated(place)
    place.type("build", "slow", "--no-wait")
    until(place, 1, "BUILDING")
    (place.images / "factory.yaml").unlink()
    assert "FAILED stopped" in place.type("stop", "1").out
    assert place.type("stop", "2").status == NO_INPUT
    assert "factory.yaml" not in place.type("stop", "--help").out.partition("Exit status")[2]


def test_who_waits_for_what_another_stops_is_told_so(place: Place) -> None:
    gated(place)
    with subprocess.Popen(
        place.command("build", "slow"), cwd=place.folder, env=place.environment, stderr=subprocess.PIPE, text=True
    ) as asking:
        until(place, 1, "BUILDING")
        ended = place.type("stop", "1")
        assert (ended.status, ended.out, ended.err) == (0, "build 1 of slow: FAILED stopped\n", "")
        _, err = asking.communicate(timeout=HANG)
    assert asking.returncode == UNAVAILABLE
    assert err.endswith("sidecar: build 1 of slow has failed: stopped; see: sidecar image log 1\n")
    assert place.type("stop", "1").out == ended.out


def test_without_waiting_a_build_is_asked_for_and_its_log_can_be_followed(place: Place) -> None:
    opened = gated(place)
    ended = place.type("build", "slow", "--no-wait")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out in ("build 1 of slow: PENDING\n", "build 1 of slow: BUILDING\n")
    with subprocess.Popen(
        place.command("log", "1", "--follow"), cwd=place.folder, env=place.environment, stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        assert any("STEP 3/" in line for line in iter(following.stdout.readline, ""))
        opened.touch()
        rest, _ = following.communicate(timeout=HANG)
    assert "\nafter\n" in rest
    assert place.type("log", "1").out.endswith(rest)


def test_one_work_is_described(place: Place) -> None:
    place.type("build", "app", "--label", "team=data")
    described = dict(re.split(" {2,}", line) for line in place.type("status", "1").out.splitlines())
    assert described.keys() == {
        *("work", "status", "target", "digest", "reference", "content", "site", "labels", "asked", "begun", "ended"),
    }
    assert described["site"].partition("#")[0].endswith("/place/images/factory.yaml")
    assert (described["work"], described["status"], described["labels"]) == ("build 1 of app", "COMPLETE (100 %)", "team=data")
    assert described["reference"] == APP


def in_terminal(place: Place, *words: str) -> tuple[int, str]:
    """Return the exit status of what is typed at a terminal, and what that got."""
    ours, theirs = pty.openpty()
    environment = {key: value for key, value in place.environment.items() if key != "NO_COLOR"} | {"TERM": "xterm-256color"}
    with subprocess.Popen(
        place.command(*words), cwd=place.folder, env=environment | {"COLUMNS": "160"}, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            shown += data
    os.close(ours)
    return process.returncode, shown.decode()


def test_at_a_terminal_works_are_bars_and_tables_have_colours(place: Place) -> None:
    status, shown = in_terminal(place, "build", "app", "--push", "archive")
    assert status == 0
    assert "build 1 of app" in shown
    assert "push 2 of app to archive" in shown
    assert "━" in shown
    assert "100%" in shown
    status, shown = in_terminal(place, "list")
    assert status == 0
    assert re.search(r"\x1b\[32mCOMPLETE", shown)
    assert re.search(r"\x1b\[31munreachable", shown)
    assert re.search(r"\x1b\[32mpushed", shown)


# --- what is asked for wrongly -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("build",), USAGE, "expected the names of images, or --all"),
        (("build", "app", "--all"), USAGE, "expected the names of images, or --all"),
        (("build", "ap"), NO_INPUT, "there is no image ap; there is app, special"),
        (("build", "app", "--push", "nowhere"), NO_INPUT, "there is no provider nowhere; there is here, archive"),
        (("build", "app", "--push", "here", "--no-wait"), USAGE, "--no-wait"),
        (("build", "app", "--label", "x"), USAGE, "NAME=VALUE"),
        (("build", "app", "--label", "sidecar.build=7"), DATA, "build: labels.sidecar.build: "),
        (("build", "app", "--label", "a b=7"), DATA, "build: labels.a b: "),
        (("build", "app", "--target", "squashfs"), USAGE, "squashfs"),
        (("build", "special", "--target", "oci"), 78, "special is made for docker alone"),
        (("push", "app", "here"), 78, "app is not built: sidecar image build app"),
        (("push", "nothing", "here"), NO_INPUT, "there is no image nothing"),
        (("status", "7"), NO_INPUT, "there is no work 7"),
        (("status", "0"), USAGE, "0"),
        (("log", "7"), NO_INPUT, "there is no work 7"),
        (("stop", "7"), NO_INPUT, "there is no work 7"),
        (("stop",), USAGE, "WORK"),
        (("check", "-f", "nothing.yaml"), USAGE, "nothing.yaml cannot be read: No such file or directory"),
        (("check",), USAGE, "--file"),
        (("list", "--factory", "nothing.yaml"), NO_INPUT, "nothing.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_told_in_one_line(place: Place, words: Sequence[str], status: int, told: str) -> None:
    place.image("special")
    place.define(special="{target: docker}")
    ended = place.type(*words)
    assert (ended.status, ended.out) == (status, "")
    assert re.fullmatch(rf"sidecar: [^\n]*{re.escape(told)}[^\n]*\n", ended.err), ended.err
    assert place.type("status", "--json").json == []


def test_a_definition_that_is_malformed_is_told_with_every_line(place: Place) -> None:
    place.define("tag: '!'\nimages:\n  nothing: {}\n")
    ended = place.type("list")
    assert ended.status == DATA
    assert [re.sub(r".*factory.yaml ", "", line).split(":")[0] for line in ended.err.splitlines()] == ["line 1", "line 3"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("build ", ["app", "other"]),
        ("build o", ["other"]),
        ("push ", ["app", "other"]),
        ("push app a", ["archive"]),
        ("build app --push ", ["here", "archive"]),
        ("check --push h", ["here"]),
        ("status ", ["1"]),
        ("log ", ["1"]),
        ("stop ", ["1"]),
        ("", ["list", "check", "build", "push", "status", "log", "stop"]),
    ],
)
def test_names_of_images_and_providers_and_numbers_of_works_are_completed(place: Place, words: str, names: list[str]) -> None:
    place.image("other")
    place.type("build", "app", "--no-wait")
    typed = f"sidecar image {words}"
    ended = place.type(COMP_WORDS=typed, COMP_CWORD=str(len(typed.split(" ")) - 1), _SIDECAR_COMPLETE="bash_complete")
    assert sorted(line.removeprefix("plain,") for line in ended.out.split()) == sorted(names)


# --- the library -------------------------------------------------------------------------------------------------------


def test_a_program_is_told_what_the_command_prints(place: Place) -> None:
    place.type("build", "app", "--push", "archive")
    with Factory(str(place.images / "factory.yaml"), str(place.state)) as factory:
        assert [each.as_json() for each in factory.images()] == place.type("list", "--json").json
        assert [each.as_json() for each in factory.works()] == place.type("status", "--json").json
        assert factory.log(1).decode() == place.type("log", "1").out
        assert [each.name for each in factory.providers()] == ["here", "archive"]
        (named,) = factory.check(pod(APP), "pod.yaml")
        assert {"manifest": "-", **named.as_json()} == place.type("check", "-f", "-", "--json", given=pod(APP)).json[0]


def test_a_program_is_refused_with_what_it_can_tell_apart(place: Place) -> None:
    place.type("build", "app", "--push", "archive")
    with Factory(str(place.images / "factory.yaml"), str(place.state)) as factory:
        for number in (0, -1, 7, 1 << 80):
            with pytest.raises(SourceMissing):
                factory.work(number)
        with pytest.raises(SourceMissing):
            factory.push(1, "nowhere")
        with pytest.raises(Conflict, match="work 2 is a push"):
            factory.push(2, "archive")
        with pytest.raises(ParametersError):
            factory.build("app", "squashfs")
        with pytest.raises(ParametersError):
            factory.build("app", labels={str(number): "" for number in range(65)})
        with pytest.raises(ParametersError):
            factory.build("app", labels={"a": "b\nc"})
        with pytest.raises(SourceMissing, match="app"):
            factory.image("../app")


def test_a_state_that_is_a_database_needs_a_folder_for_the_images_of_this_machine() -> None:
    with pytest.raises(ConfigurationError):
        Factory("factory.yaml", "postgresql://somewhere.invalid/x")


def test_importing_the_command_does_not_pay_for_the_factory() -> None:
    code = "import sys, sidecar.cli.image; sys.exit('sidecar.factory.factory' in sys.modules or 'blake3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=HANG).returncode == 0
