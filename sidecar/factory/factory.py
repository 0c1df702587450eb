"""The factory, as commands, pages and other programs ask it: which images are built and pushed, how far that is, what went wrong.

Nothing is remembered here. What is in a context, in the store of images and at a provider is looked at whenever it is asked for;
what was asked for, and what came of it, is in the records, which every process sees alike. Whoever asks for anything first
has the dead buried and a builder begun for what waits: so no work waits for somebody who is not there any more.

Works of all sites that share the records are told of; how an image is, is told of this one, where what it is made of lies.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Self

from sidecar.errors import ConfigurationError, Fault, ParametersError, Unreachable
from sidecar.factory.builder import see_to
from sidecar.factory.context import digest, digests, open_definition
from sidecar.factory.definition import Definition
from sidecar.factory.manifests import ours, parts, read_manifest
from sidecar.factory.model import (
    TARGETS,
    UNDER_WAY,
    Asked,
    At,
    Conflict,
    Found,
    Image,
    Kind,
    Named,
    Provider,
    Target,
    Work,
    image_status,
    offers,
    presence,
)
from sidecar.factory.provider import WITHIN, look
from sidecar.factory.records import open_records
from sidecar.factory.site import SLOTS, Site

# The error of what somebody has stopped; nobody knows who it was.
STOPPED = "stopped"
# How often at most providers are asked again because a push has come to its end meanwhile.
_TRIES = 3
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,253}[A-Za-z0-9])?")
_LABELS = 64
_VALUE = 4096
_OURS = "sidecar."
# By provider and image.
_Pushes = dict[tuple[str, str], tuple[Work | None, Work | None]]


class Factory:
    """The images that the file `definition` defines, and the works that are recorded in `state`.

    `state` is a folder, or a postgresql:// URL; then `folder` is where this machine keeps images. `machine` is which one it is,
    if it does not say so itself. A registry has `within` seconds to answer each question. May be used by several threads.
    """

    def __init__(
        self, definition: str, state: str, folder: str = "", *, slots: int = SLOTS, within: float = WITHIN, machine: str = ""
    ) -> None:
        if "://" in state and not folder:
            raise ConfigurationError("the state is a database: expected a folder of this machine's for its images, too")
        place = os.path.abspath(folder or state)
        self._site = Site(state if "://" in state else place, os.path.abspath(definition), place, slots, machine)
        self._within = within
        self._records = open_records(self._site.state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the records. What was asked for goes on."""
        self._records.close()

    # --- images

    def images(self) -> list[Image]:
        """Return all images, by name, as they are now."""
        definition = self._defined()
        return self._looked_at(definition, digests(definition))

    def image(self, name: str) -> Image:
        """Return one image, as it is now; SourceMissing where there is none of that name."""
        definition = self._defined()
        return self._looked_at(definition, {name: digest(definition, name)})[0]

    def providers(self) -> list[Provider]:
        """Return where images may be pushed to."""
        return [*self._defined().providers.values()]

    def check(self, manifest: str, name: str = "manifest") -> list[Named]:
        """Return the images that a manifest names, those of ours as they are now; `name` is what faults call it.

        ParametersError where it is no YAML; [] where it names none.
        """
        named = read_manifest(manifest, name)
        definition = self._defined()
        repositories = {image: definition.of(image) for image in definition.images}
        meant = {each.reference: ours(each.reference, repositories) for each in named}
        contents = {image: digest(definition, image) for image in sorted({*filter(None, meant.values())})}
        images = {image.name: image for image in self._looked_at(definition, contents)}
        return [
            Named(each.reference, each.line, image, _note(definition, each.reference, image))
            if (image := images.get(meant[each.reference]))
            else each
            for each in named
        ]

    # --- works

    def build(self, name: str, target: str = "", labels: Mapping[str, str] | None = None) -> Work:
        """Have an image built as its context is now, and before it those of ours that it is built on; return at once.

        Whoever asks for what is being built, or is built and there, is given that work. `target` is oci or docker, the image's
        own where it is not said; `labels` become the image's.
        """
        definition = self._defined()
        recipe = definition.image(name)
        faults = [*_target_faults(target), *_label_faults(labels or {})]
        if faults:
            raise ParametersError(faults)
        if target == "oci" and recipe.target == "docker":
            raise Conflict(
                f"{name} is made for docker alone: in the other format it would lose what it says to whoever builds on it"
            )
        for base in definition.bases(name):
            self._ask_for_base(definition, base)
        chosen: Target = "docker" if target == "docker" else recipe.target
        work = self._ask(definition, name, chosen, labels or {})
        see_to(self._site, self._records)
        return work

    def push(self, build: int, provider: str) -> Work:
        """Have what a build made pushed to a provider; return at once. Conflict where it is not built, or gone.

        Whoever asks for what is being pushed, or is there, is given that work.
        """
        definition = self._defined()
        to = definition.provider(provider)
        work = self._records.get(build)
        if work.kind != "build":
            raise Conflict(f"work {build} is a push: expected a build")
        if work.status != "COMPLETE":
            raise Conflict(f"build {build} of {work.image} is {work.status}: only what is built can be pushed")
        site = self._site.name()
        if work.site != site:
            raise Conflict(f"build {build} of {work.image} is at {work.site}, where it can be pushed; this is {site}")
        definition.image(work.image)
        if work.digest not in self._there(definition):
            raise Conflict(f"what build {build} made is not there any more: build {work.image} again")
        latest = self._records.latest("push", work.image, site, provider)
        found = Found()
        if latest is not None and latest.status == "COMPLETE" and latest.build == build:
            found = self._found(definition, [work.image], [to])[provider, work.image]
        # What we put there may have been removed, or something else be there since, of ours or not.
        kept = latest is not None and bool(found.digest) and found.digest == latest.digest
        asked = Asked("push", work.image, work.target, work.content, site, provider, build, work.labels)
        pushed = self._records.ask(asked, _now(), anew=not kept)
        see_to(self._site, self._records)
        return pushed

    def works(self, kind: Kind | str = "", image: str = "") -> list[Work]:
        """Return the latest builds and pushes of all sites, and all that wait or are under way, newest first; of a kind and of an
        image, where that is said."""
        self._attend()
        # In this order: what ends meanwhile is as it ended.
        works = {work.id: work for work in self._records.find(kind, image, UNDER_WAY, sys.maxsize)}
        works |= {work.id: work for work in self._records.find(kind, image)}
        return sorted(works.values(), key=lambda work: work.id, reverse=True)

    def work(self, number: int) -> Work:
        """Return a build or push as it is now; SourceMissing where there is none of that number."""
        self._attend()
        return self._records.get(number)

    def stop(self, number: int, kind: Kind | str = "") -> Work:
        """End a build or push that waits or is under way: it is FAILED then, with the error `stopped`. Return it as it ended.

        What is over stays as it ended. That of another site ends as well: whoever does it hears of it from the records, within
        about a second, and kills its buildah. One that is not of `kind`, where that is said, is returned as it is. SourceMissing
        where there is none of that number.
        """
        # No builder is begun for it: where none can be begun, that is what there may be to stop.
        self._records.bury(_now())
        work = self._records.get(number)
        if work.over or (kind and work.kind != kind):
            return work
        self._records.fail(number, STOPPED, _now())
        return self._records.get(number)

    def log(self, number: int, offset: int = 0) -> bytes:
        """Return what a work has said so far from that byte on, a piece of it."""
        self._attend()
        return self._records.log(number, offset)

    # ---

    def _defined(self) -> Definition:
        self._attend()
        return open_definition(self._site.definition)

    def _attend(self) -> None:
        self._records.bury(_now())
        see_to(self._site, self._records)

    def _ask(self, definition: Definition, name: str, target: Target, labels: Mapping[str, str]) -> Work:
        asked = Asked("build", name, target, digest(definition, name, target), self._site.name(), labels=labels)
        work = self._records.ask(asked, _now())
        if work.status != "COMPLETE":
            return work
        newest, _ = self._newest(definition, name, digest(definition, name))
        # What is COMPLETE was there before: so whoever looks for it there looks afterwards.
        there = self._there(definition)
        # Where it was built with other labels since, that is what is pushed, and what others build on.
        if newest is None or newest.id != work.id or work.digest not in there:
            return self._records.ask(asked, _now(), anew=True)
        if definition.local(name) not in there[work.digest]:
            # Something else was built since, and that was taken back.
            self._site.buildah(definition).name(work.digest, definition.local(name))
        return work

    def _ask_for_base(self, definition: Definition, name: str) -> None:
        """Have an image built that another is built on, unless it is; with which labels is of no account."""
        base = self._records.latest("build", name, self._site.name(), content=digest(definition, name))
        if base is None or base.status == "FAILED" or (base.over and base.digest not in self._there(definition)):
            self._ask(definition, name, definition.image(name).target, {})

    def _newest(self, definition: Definition, name: str, content: str) -> tuple[Work | None, str]:
        """Return the build that counts of an image with that content, and what the content is for the target of that build.

        One of what is there now, if there is any: a change that is taken back needs no other build.
        """
        newest = self._records.latest("build", name, self._site.name())
        if newest is None:
            return None, content
        other = newest.target != definition.image(name).target
        now = digest(definition, name, newest.target) if other else content
        if newest.content == now:
            return newest, now
        same = self._records.latest("build", name, self._site.name(), content=content)
        return (same, content) if same is not None else (newest, now)

    def _there(self, definition: Definition) -> Mapping[str, tuple[str, ...]]:
        """Return the ids of the images that are there, each with its names."""
        try:
            return self._site.buildah(definition).images()
        except OSError as error:
            raise Unreachable(f"images cannot be looked at: {error.filename}: {error.strerror}") from None

    def _looked_at(self, definition: Definition, contents: Mapping[str, str]) -> list[Image]:
        if not contents:
            return []
        pushes = self._pushes(definition, contents)
        for _ in range(_TRIES):
            found = self._found(definition, contents, definition.providers.values())
            # A push that has come to its end meanwhile has put something else there than was found.
            before, pushes = pushes, self._pushes(definition, contents)
            if _ends(before) == _ends(pushes):
                break
        builds = {name: self._newest(definition, name, content) for name, content in contents.items()}
        # Last: what is COMPLETE was there before.
        there = self._there(definition)
        images = []
        for name, (build, content) in builds.items():
            status = image_status(build, content, build is not None and build.digest in there)
            at = tuple(
                At(
                    to,
                    presence(push, put, found[to, name], build, content),
                    found[to, name].digest,
                    push,
                    found[to, name].unreachable,
                )
                for to in definition.providers
                for push, put in [pushes[to, name]]
            )
            images.append(Image(name, content, definition.image(name).target, status, build, at, offers(name, status, build, at)))
        return images

    def _pushes(self, definition: Definition, names: Iterable[str]) -> _Pushes:
        """Return the latest push of each image to each provider, and the latest of those that are COMPLETE."""
        site, pushes = self._site.name(), {}
        for to, name in product(definition.providers, names):
            push = self._records.latest("push", name, site, to)
            failed = push is not None and push.status == "FAILED"
            pushes[to, name] = push, self._records.latest("push", name, site, to, status="COMPLETE") if failed else push
        return pushes

    def _found(self, definition: Definition, names: Iterable[str], providers: Iterable[Provider]) -> dict[tuple[str, str], Found]:
        wanted = {to: {name: definition.reference(name, to) for name in names} for to in providers}
        return look(wanted, self._within)


def _ends(pushes: _Pushes) -> dict[tuple[str, str], bool]:
    return {key: push is not None and push.over for key, (push, _) in pushes.items()}


def _note(definition: Definition, reference: str, image: Image) -> str:
    """Return in what an image that a manifest names is not the one that is made here, "" for nothing."""
    said = parts(reference)
    if said.digest:
        there = {at.digest for at in image.providers}
        return "" if said.digest in there else f"no provider has {said.digest}"
    tag = said.tag or "latest"
    return "" if tag == definition.tag else f"{tag} is not made here: {definition.tag} is"


def _target_faults(target: str) -> list[Fault]:
    return [] if target in ("", *TARGETS) else [Fault("build", "target", f"expected {' or '.join(TARGETS)}, not {target!r}")]


def _label_faults(labels: Mapping[str, str]) -> list[Fault]:
    faults = [Fault("build", "labels", f"{len(labels)} of them: expected at most {_LABELS}")] if len(labels) > _LABELS else []
    for name, value in labels.items():
        if not _LABEL.fullmatch(name) or name.startswith(_OURS):
            faults.append(
                Fault(
                    "build",
                    f"labels.{name[:64]}",
                    f"expected letters and digits, with . _ / and - between them, not beginning with {_OURS}",
                )
            )
        elif len(value) > _VALUE or not value.isprintable():
            faults.append(Fault("build", f"labels.{name}", f"expected a value of one line, of at most {_VALUE} characters"))
    return faults


def _now() -> int:
    return time.time_ns() // 1000
