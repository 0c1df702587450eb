"""What the factory tells of images and what it offers, decided without looking at anything."""

import json
from dataclasses import replace

from sidecar.factory.model import Action, Asked, At, Found, Image, ImageStatus, Work, image_status, offers, presence

BUILD = Work(1, "build", "app", "oci", "content", "COMPLETE", 100, digest="id")
PUSH = Work(2, "push", "app", "oci", "content", "COMPLETE", 100, provider="here", build=1, digest="sha256:1")
THERE = Found("sha256:1")


def test_an_image_has_the_status_of_its_latest_build() -> None:
    assert image_status(None, "content", False) == "NEW"
    assert image_status(replace(BUILD, status="PENDING"), "content", False) == "PENDING"
    assert image_status(replace(BUILD, status="BUILDING"), "other", False) == "BUILDING"
    assert image_status(replace(BUILD, status="FAILED"), "other", True) == "FAILED"
    assert image_status(BUILD, "content", True) == "COMPLETE"


def test_what_has_changed_since_is_stale_and_what_is_gone_is_missing() -> None:
    assert image_status(BUILD, "other", True) == image_status(BUILD, "other", False) == "STALE"
    assert image_status(BUILD, "content", False) == "MISSING"


def test_a_provider_that_says_nothing_is_never_said_to_lack_an_image() -> None:
    assert presence(PUSH, PUSH, Found(unreachable="refused"), BUILD, "content") == "unreachable"
    assert presence(None, None, Found(unreachable="refused"), None, "content") == "unreachable"
    assert presence(PUSH, PUSH, Found(), BUILD, "content") == "absent"


def test_what_is_there_is_pushed_changed_or_stale() -> None:
    assert presence(PUSH, PUSH, THERE, BUILD, "content") == "pushed"
    assert presence(PUSH, PUSH, Found("sha256:2"), BUILD, "content") == "changed"
    assert presence(None, None, THERE, BUILD, "content") == "changed"
    assert presence(PUSH, PUSH, THERE, replace(BUILD, id=3), "content") == "stale"
    assert presence(PUSH, PUSH, THERE, BUILD, "touched") == "stale"
    assert presence(replace(PUSH, status="PUSHING"), None, Found(), BUILD, "content") == "pushing"


def test_a_push_that_has_failed_has_put_nothing_there() -> None:
    failed = replace(PUSH, id=5, status="FAILED", digest="")
    assert presence(failed, None, THERE, BUILD, "content") == "changed"
    assert presence(failed, PUSH, THERE, BUILD, "content") == "pushed"
    assert presence(replace(failed, build=4), PUSH, THERE, replace(BUILD, id=4), "content") == "stale"
    assert presence(failed, PUSH, Found("sha256:2"), BUILD, "content") == "changed"


def test_offered_is_what_makes_sense() -> None:
    lacking = [
        At("here", "absent"),
        At("there", "unreachable"),
        At("archive", "stale"),
        At("other", "pushed"),
        At("on", "pushing"),
    ]
    again: tuple[ImageStatus, ...] = ("NEW", "FAILED", "STALE", "MISSING")
    under_way: tuple[ImageStatus, ...] = ("PENDING", "BUILDING")
    for status in again:
        assert offers("app", status, BUILD, lacking) == (Action("build", "app"),)
    for status in under_way:
        assert offers("app", status, BUILD, lacking) == ()
    assert offers("app", "COMPLETE", BUILD, lacking) == (Action("push", "app", "here", 1), Action("push", "app", "archive", 1))


def test_builds_are_one_for_image_content_target_and_labels_pushes_for_build_and_provider() -> None:
    build = Asked("build", "app", "oci", "content", "site", labels={"a": "b", "c": "d"})
    assert build.same == replace(build, labels={"c": "d", "a": "b"}).same
    others = (replace(build, target="docker"), replace(build, content="other"), replace(build, labels={"a": "b"}))
    assert (
        len({each.same for each in (build, *others, replace(build, labels={}), replace(build, labels={"a": "c", "c": "d"}))}) == 6
    )
    push = Asked("push", "app", "oci", "content", "site", "here", 1)
    assert push.same == replace(push, labels={"a": "b"}).same
    assert len({push.same, replace(push, provider="there").same, replace(push, build=2).same}) == 3


def test_what_is_asked_for_at_two_sites_is_two_works() -> None:
    for asked in (Asked("build", "app", "oci", "content", "site"), Asked("push", "app", "oci", "content", "site", "here", 1)):
        assert asked.same != replace(asked, site="other").same
        assert {*asked.same} - {*replace(asked, site="other").same} == {"site"}


def test_what_others_are_told_is_understood_by_them() -> None:
    failed = replace(PUSH, status="FAILED", error="refused", activity="Copying blob 1/3", labels={"a": "b"}, site="s", finished=7)
    at = (At("here", "changed", "sha256:2", failed), At("there", "unreachable", reason="no route"))
    image = Image("a/b", "content", "docker", "COMPLETE", BUILD, at, (Action("push", "a/b", "here", 1), Action("build", "a/b")))
    told = json.loads(json.dumps(image.as_json()))
    assert Image.of_json(told) == image
    assert Image.of_json(Image("app", "", "oci", "NEW").as_json()) == Image("app", "", "oci", "NEW")


def test_others_are_told_status_percent_detail_and_site() -> None:
    told = replace(BUILD, activity="STEP 3/6", site="host:/factory.yaml#1", worker="lease").as_json()
    assert told["site"] == "host:/factory.yaml#1"
    assert told["status_detail"] == {"activity": "STEP 3/6", "error": ""}
    assert (told["status"], told["percent_complete"]) == ("COMPLETE", 100)
    assert not {"worker", "percent"} & told.keys()
