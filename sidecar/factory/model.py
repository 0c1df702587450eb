"""What the factory tells of images, builds and pushes, and what may be done next. Pure.

    image       a name, a context directory and the digest of what is in it
    build       one making of an image for a target, oci or docker: the format of its manifest
    provider    where images are pushed to: a registry, or an OCI layout in a directory
    push        the bringing of one build to one provider

Builds and pushes are works: one is asked for, waits, is under way, and has come to an end, which never changes.

    PENDING ──> BUILDING or PUSHING ──> COMPLETE
        └──────────────┴──────────────> FAILED

An image has the status of its latest build; NEW where there is none. STALE and MISSING are found by looking: the context has
changed since that build, and what was built is no longer where images are kept. So nobody records them.

Times are microseconds since 1970, 0 for what has not happened. Percentages never fall, and are 100 of what is COMPLETE alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from sidecar.errors import ConfigurationError
from sidecar.heard import made

Kind = Literal["build", "push"]
Target = Literal["oci", "docker"]
Status = Literal["PENDING", "BUILDING", "PUSHING", "COMPLETE", "FAILED"]
ImageStatus = Literal["NEW", "PENDING", "BUILDING", "COMPLETE", "FAILED", "STALE", "MISSING"]
# absent: the provider says that it has none. unreachable: it says nothing, so nobody knows.
Presence = Literal["pushed", "pushing", "absent", "changed", "stale", "unreachable"]

TARGETS: tuple[Target, ...] = ("oci", "docker")
UNDER_WAY: tuple[Status, ...] = ("PENDING", "BUILDING", "PUSHING")
OVER: tuple[Status, ...] = ("COMPLETE", "FAILED")
# What a work that is under way is called.
BEGUN: Mapping[Kind, Status] = {"build": "BUILDING", "push": "PUSHING"}


@dataclass(frozen=True)
class Asked:
    """What is to be made: the `content` of an image for a `target`; or, of a push, the build `build` to be at `provider`.

    `site` is where: what is in a context or a store of images there is nowhere else. Whoever asks for what is asked already is
    given that: see `same`.
    """

    kind: Kind
    image: str
    target: Target
    content: str
    site: str
    provider: str = ""
    build: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def same(self) -> tuple[str, ...]:
        """What two works have in common that are one: of a build site, image, content, target and labels; of a push site, build
        and provider."""
        if self.kind == "build":
            labels = (part for label in sorted(self.labels.items()) for part in label)
            return ("build", self.site, self.image, self.target, self.content, *labels)
        return ("push", self.site, str(self.build), self.provider)


@dataclass(frozen=True)
class Work:
    """A build or a push, as it is recorded.

    `digest` is what came of it: of a build the id of the image where images are kept, of a push the manifest's at the provider;
    `reference` is its name there. `site` is where it is done, `worker` the lease of who does it, "" before that.
    """

    id: int
    kind: Kind
    image: str
    target: Target
    content: str
    status: Status
    percent: int = 0
    activity: str = ""
    error: str = ""
    site: str = ""
    provider: str = ""
    build: int = 0
    digest: str = ""
    reference: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    worker: str = ""
    asked: int = 0
    started: int = 0
    finished: int = 0

    @property
    def over(self) -> bool:
        """Whether it has come to its end."""
        return self.status in OVER

    def as_json(self) -> dict[str, Any]:
        """Return what others are told of it."""
        told = asdict(self)
        del told["worker"], told["percent"], told["activity"], told["error"]
        told["labels"] = dict(self.labels)
        told["percent_complete"] = self.percent
        told["status_detail"] = {"activity": self.activity, "error": self.error}
        return told

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> Self:
        """Return the work that others were told of; KeyError, TypeError or ValueError where it is none."""
        return made(cls, {**told, **told["status_detail"], "percent": told["percent_complete"]})


@dataclass(frozen=True)
class Provider:
    """Where images are pushed to. One of `registry`, a host with its port and maybe a path, and `layout`, a directory.

    A registry that is `plain` is spoken to by HTTP. `authfile` is the path of a file with credentials, never these themselves.
    """

    name: str
    registry: str = ""
    layout: str = ""
    plain: bool = False
    authfile: str = ""


@dataclass(frozen=True)
class Found:
    """What a provider has under the name of an image: the digest of its manifest, "" for none, and why it is not known."""

    digest: str = ""
    unreachable: str = ""


@dataclass(frozen=True)
class Action:
    """Something that makes sense now: build, or push to `provider`."""

    do: Kind
    image: str
    provider: str = ""
    build: int = 0


@dataclass(frozen=True)
class At:
    """How an image is at one provider; `push` is the latest, and `digest` what is there."""

    provider: str
    presence: Presence
    digest: str = ""
    push: Work | None = None
    reason: str = ""


@dataclass(frozen=True)
class Image:
    """An image, as it is now: what is in its context, its latest build, how it is at each provider, and what is on offer."""

    name: str
    content: str
    target: Target
    status: ImageStatus
    build: Work | None = None
    providers: tuple[At, ...] = ()
    actions: tuple[Action, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return what others are told of it."""
        return {
            "name": self.name,
            "content": self.content,
            "target": self.target,
            "status": self.status,
            "build": self.build.as_json() if self.build else None,
            "providers": [{**asdict(each), "push": each.push.as_json() if each.push else None} for each in self.providers],
            "actions": [asdict(each) for each in self.actions],
        }

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> Self:
        """Return the image that others were told of; KeyError, TypeError or ValueError where it is none."""
        at = tuple(replace(made(At, {**each, "push": None}), push=_work(each["push"])) for each in told["providers"])
        return replace(made(cls, {**told, "build": None, "providers": []}), build=_work(told["build"]), providers=at)


@dataclass(frozen=True)
class Named:
    """An image that a manifest names, in a line of it; `image` where it is one of ours, `note` where what it is is not meant."""

    reference: str
    line: int
    image: Image | None = None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return what others are told of it."""
        image = self.image.as_json() if self.image else None
        return {"reference": self.reference, "line": self.line, "image": image, "note": self.note}

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> Self:
        """Return what others were told that a manifest names; KeyError, TypeError or ValueError where it is none."""
        image = None if told["image"] is None else Image.of_json(told["image"])
        return replace(made(cls, {**told, "image": None}), image=image)


class Conflict(ConfigurationError):
    """What is asked for does not go with how things are: a push of what is not built, a target that an image is not made for."""


def _work(told: Mapping[str, Any] | None) -> Work | None:
    return None if told is None else Work.of_json(told)


def image_status(build: Work | None, content: str, there: bool) -> ImageStatus:
    """Return the status of an image whose latest build is `build`, whose context's digest is `content`, and which is `there`."""
    if build is None:
        return "NEW"
    if build.status == "FAILED" or not build.over:
        return "PENDING" if build.status == "PENDING" else "FAILED" if build.over else "BUILDING"
    if build.content != content:
        return "STALE"
    return "COMPLETE" if there else "MISSING"


def presence(push: Work | None, put: Work | None, found: Found, build: Work | None, content: str) -> Presence:
    """Return how an image is at a provider that says `found`.

    `push` is the latest there, `put` the latest that is COMPLETE: one that has failed has put nothing there. `build` is the
    newest of all.

    changed: something is there that we did not put there last. stale: what is there was not built of what the context holds now.
    """
    if push is not None and not push.over:
        return "pushing"
    if found.unreachable:
        return "unreachable"
    if not found.digest:
        return "absent"
    if put is None or put.digest != found.digest:
        return "changed"
    return "pushed" if build is not None and (put.build, build.content) == (build.id, content) else "stale"


def offers(image: str, status: ImageStatus, build: Work | None, at: Sequence[At]) -> tuple[Action, ...]:
    """Return what makes sense for an image: to build what is not built as it is, to push what is, where it is not.

    Nothing is offered to a provider of which nobody knows what it has.
    """
    if status in ("NEW", "FAILED", "STALE", "MISSING"):
        return (Action("build", image),)
    if status != "COMPLETE" or build is None:
        return ()
    return tuple(Action("push", image, each.provider, build.id) for each in at if each.presence in ("absent", "changed", "stale"))
