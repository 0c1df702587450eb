"""`sidecar image`: which images are built and pushed, how far that is, what went wrong, and what is on offer.

Each command parses, calls a factory, and prints. The factory is this machine's, or a server's, which answers the same. Works
go on whatever becomes of the command that asked for them: who waits for one only looks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from sidecar.cli.entry import complain, printable
from sidecar.cli.listing import json_option, print_json, print_table
from sidecar.cli.works import AnyFactory, called, wait
from sidecar.errors import DATA, IO, OK, UNAVAILABLE, SidecarError, SourceMissing, UsageError
from sidecar.factory.model import TARGETS, At, Conflict, Image, Named, Work

if TYPE_CHECKING:
    from sidecar.factory.factory import Factory

Function = TypeVar("Function", bound=Callable[..., Any])
DEFINITION = "images/factory.yaml"
# Of what is not there: as diff says that there is a difference.
MISSING = 1
_TO_PUSH = ("absent", "changed", "stale")
_MANIFESTS = (".yaml", ".yml", ".json")
_COLOURS = {
    **dict.fromkeys(("COMPLETE", "pushed"), "green"),
    **dict.fromkeys(("FAILED", "unreachable"), "red"),
    **dict.fromkeys(("PENDING", "BUILDING", "PUSHING", "pushing"), "cyan"),
    **dict.fromkeys(("NEW", "STALE", "MISSING", "absent", "changed", "stale"), "yellow"),
}
# How many works are listed, and how often, in seconds, it is looked for what a work has said.
_LISTED = 20
_PAUSE = 0.2


# --- options -----------------------------------------------------------------------------------------------------------

factory_option = click.option(
    "--factory",
    metavar="FILE",
    envvar="SIDECAR_FACTORY",
    show_envvar=True,
    default=DEFINITION,
    show_default=True,
    help="Which images there are, and where they go.",
)


def open_factory(factory: str) -> Factory:
    """Return the factory of this machine; what it keeps is where SIDECAR_STATE says."""
    from sidecar.factory.factory import Factory  # 60 ms, which help is not to pay
    from sidecar.factory.records import state_of
    from sidecar.state import state_folder

    state = state_of(os.environ)
    own = {name: value for name, value in os.environ.items() if name != "SIDECAR_STATE"}
    return Factory(factory, state, state_folder(own) if "://" in state else "")


def _asked(factory: str) -> AnyFactory:
    """Return who is asked: the server that the command line names, or else the factory of this machine."""
    from sidecar.cli.server import server

    client = server()
    if client is None:
        return open_factory(factory)
    if click.get_current_context().get_parameter_source("factory") is ParameterSource.COMMANDLINE:
        raise UsageError("--factory: a server has its own; expected one of --server and --factory")
    return client.images


def _completed(what: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return what completes the name of an image or a provider."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from sidecar.factory.context import open_definition

        try:
            names = getattr(open_definition(ctx.params.get("factory") or DEFINITION), what)
        except SidecarError:
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]

    return complete


def _works_completed(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    try:
        with open_factory(ctx.params.get("factory") or DEFINITION) as opened:
            works = opened.works()
    except SidecarError:
        return []
    return [CompletionItem(str(work.id), help=called(work)) for work in works if str(work.id).startswith(incomplete)]


_number = click.argument("number", metavar="WORK", type=click.IntRange(1), shell_complete=_works_completed)


def _push_option(text: str) -> Callable[[Function], Function]:
    return click.option(
        "--push", "providers", metavar="PROVIDER", multiple=True, shell_complete=_completed("providers"), help=text
    )


def _ending(own: str, example: str, *, data: str = "", missing: str = "", io: str = "") -> str:
    return (
        f"\b\nExit status: {own}\n2 usage; 65 factory.yaml is malformed{data}; 66 there is no factory.yaml{missing};\n"
        f"74 the records cannot be read or written{io}; 78 it cannot be done here.\nExample:  {example}"
    )


# --- commands ----------------------------------------------------------------------------------------------------------


@click.group(epilog="Example:  sidecar image check -f k8s-examples --apply")
def image() -> None:
    """Tell which images are built and pushed, how far that is, and what went wrong; build and push them.

    factory.yaml says which images there are. What is built, by whom and when, is recorded where SIDECAR_STATE says: a directory,
    or a database, postgresql://….
    """


@image.command("list", epilog=_ending("0;", "sidecar image list"))
@factory_option
@json_option
def list_(factory: str, as_json: bool) -> None:
    """List the images: built or not, where they are pushed, and what is on offer. Python: factory.factory.Factory.images."""
    with _asked(factory) as asked:
        images = asked.images()
        providers = [each.name for each in asked.providers()]
    if as_json:
        print_json([each.as_json() for each in images])
    elif images:
        _print([("IMAGE", "STATUS", *providers, "OFFER"), *((each.name, *_standing(each, providers)) for each in images)])
        _tell_reasons(images, providers)


@image.command(
    epilog=_ending(
        "0 all of ours are built as they are, and pushed; 1 some are not; 69 a build or push has failed (--apply);",
        "sidecar image check -f k8s-examples/job/job.yaml --push here --apply",
        data=", a manifest is no YAML, or names no image",
        missing=", or provider",
        io=",\nor a provider does not tell what it has",
    )
)
@click.option(
    "-f",
    "--file",
    "files",
    metavar="FILE",
    multiple=True,
    required=True,
    help="A manifest, a directory of them, or -; repeatable.",
)
@click.option("--apply", "applying", is_flag=True, help="Build and push what is missing, and wait for it.")
@_push_option("Where they are to be; repeatable.  [default: at all providers]")
@factory_option
@json_option
def check(files: tuple[str, ...], applying: bool, providers: tuple[str, ...], factory: str, as_json: bool) -> int:
    """Tell of each image that manifests name whether it is ours, built, and pushed. Python: factory.factory.Factory.check.

    Manifests are of any kind that has containers: pods, Jobs, Argo Workflows; YAML or JSON, several in a file.
    """
    texts = dict(_manifests(files))
    with _asked(factory) as asked:
        counting = _counting(asked, providers)
        rows = [(name, each) for name, text in texts.items() for each in asked.check(text, name)]
        failed = False
        if applying:
            failed = not _apply(asked, rows, counting)
            rows = [(name, each) for name, text in texts.items() for each in asked.check(text, name)]
    if as_json:
        print_json([{"manifest": name, **each.as_json()} for name, each in rows])
    elif rows:
        _print_checked(rows, counting)
    if not rows:
        complain("sidecar", f"{', '.join(files)}: no image is named")
        return DATA
    return UNAVAILABLE if failed else _checked([each for _, each in rows], counting)


@image.command(
    epilog=_ending(
        "0; 69 a build or push has failed;",
        "sidecar image build app --push here",
        data=", or a label is",
        missing=", image or provider",
    )
)
@click.argument("names", nargs=-1, metavar="[IMAGE]...", shell_complete=_completed("images"))
@click.option("--all", "all_", is_flag=True, help="All images.")
@click.option("--target", type=click.Choice(TARGETS), help="The format of its manifest.  [default: as factory.yaml says]")
@click.option("--label", "labels", metavar="NAME=VALUE", multiple=True, help="A label for the image and its build; repeatable.")
@_push_option("Push it there when it is built; repeatable.")
@click.option("--no-wait", "leaving", is_flag=True, help="End at once; `status` tells how far it is.")
@factory_option
@json_option
def build(
    names: tuple[str, ...],
    all_: bool,
    target: str | None,
    labels: tuple[str, ...],
    providers: tuple[str, ...],
    leaving: bool,
    factory: str,
    as_json: bool,
) -> int:
    """Build images as they are now. Python: factory.factory.Factory.build.

    What is built already is not built again, and what is being built is waited for. Images of ours that one is built on come
    first.
    """
    if bool(names) is all_:
        raise UsageError("expected the names of images, or --all")
    if leaving and providers:
        raise UsageError("--no-wait: what is not built cannot be pushed; expected one of --no-wait and --push")
    told = dict(map(_label, labels))
    with _asked(factory) as asked:
        _counting(asked, providers)
        chosen = [each.name for each in asked.images()] if all_ else names
        works = [asked.build(name, target or "", told) for name in chosen]
        if not leaving:
            works = _waited(asked, works)
        if providers:
            complete = [work for work in works if work.status == "COMPLETE"]
            works += _waited(asked, [asked.push(work.id, provider) for work in complete for provider in providers])
    return _ended(works, as_json)


@image.command(
    epilog=_ending("0; 69 a push has failed; 78 it is not built;", "sidecar image push app here", missing=", image or provider")
)
@click.argument("name", metavar="IMAGE", shell_complete=_completed("images"))
@click.argument("providers", metavar="PROVIDER...", nargs=-1, required=True, shell_complete=_completed("providers"))
@click.option("--no-wait", "leaving", is_flag=True, help="End at once; `status` tells how far it is.")
@factory_option
@json_option
def push(name: str, providers: tuple[str, ...], leaving: bool, factory: str, as_json: bool) -> int:
    """Push what was built of an image last. Python: factory.factory.Factory.push."""
    with _asked(factory) as asked:
        found = asked.image(name)
        if found.build is None:
            raise Conflict(f"{name} is not built: sidecar image build {name}")
        if found.status == "STALE":
            complain("sidecar", f"warning: the context of {name} has changed since build {found.build.id}")
        works = [asked.push(found.build.id, provider) for provider in providers]
        if not leaving:
            works = _waited(asked, works)
    return _ended(works, as_json)


@image.command(
    epilog=_ending(
        "0; 69 a work has failed that was waited for (--watch);", "sidecar image status 7 --watch", missing=", or work"
    )
)
@click.argument("number", metavar="[WORK]", type=click.IntRange(1), required=False, shell_complete=_works_completed)
@click.option("--watch", is_flag=True, help="Show how far it is until it is over; without WORK, all that is under way.")
@factory_option
@json_option
def status(number: int | None, watch: bool, factory: str, as_json: bool) -> int:
    """Tell how far builds and pushes are: the latest, or one of them. Python: factory.factory.Factory.works and work."""
    with _asked(factory) as asked:
        works = asked.works() if number is None else [asked.work(number)]
        if watch:
            works = _waited(asked, [work for work in works if number is not None or not work.over])
    if watch:
        return _ended(works, as_json)
    if as_json:
        print_json([work.as_json() for work in works[:_LISTED]] if number is None else works[0].as_json())
    elif number is not None:
        print_table([row for row in _described(works[0]) if row[1]])
    elif works:
        _print([("WORK", "KIND", "IMAGE", "PROVIDER", "STATUS", "%", "ASKED", "WHAT"), *map(_row, works[:_LISTED])])
    return OK


@image.command(epilog=_ending("0;", "sidecar image log 7 --follow", missing=", or work"))
@_number
@click.option("--follow", is_flag=True, help="Until it is over.")
@factory_option
def log(number: int, follow: bool, factory: str) -> None:
    """Print what a build or push has said. Python: factory.factory.Factory.log."""
    offset = 0
    with _asked(factory) as asked:
        while True:
            over = not follow or asked.work(number).over
            while piece := asked.log(number, offset):
                offset += len(piece)
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            if over:
                return
            time.sleep(_PAUSE)


@image.command(
    # factory.yaml is not read.
    epilog="\b\nExit status: 0;\n2 usage; 66 there is no such work; 74 the records cannot be read or written;\n"
    "78 it cannot be done here.\nExample:  sidecar image stop 7"
)
@_number
@factory_option
@json_option
def stop(number: int, factory: str, as_json: bool) -> None:
    """End a build or push that waits or is under way, of any site. Python: factory.factory.Factory.stop.

    It is FAILED then, with the error `stopped`, and may be asked for again. What is over stays as it ended.
    """
    with _asked(factory) as asked:
        work = asked.stop(number)
    if as_json:
        print_json(work.as_json())
    else:
        click.echo(printable(f"{called(work)}: {work.status} {work.error or work.digest}".rstrip()))


# --- asking ------------------------------------------------------------------------------------------------------------


def _counting(asked: AnyFactory, providers: Sequence[str]) -> list[str]:
    """Return the providers that count: those that are named, each of which there is, or all."""
    there = [each.name for each in asked.providers()]
    for name in providers:
        if name not in there:
            raise SourceMissing(f"there is no provider {name}; there is {', '.join(there) or 'none at all'}", there)
    return [*providers] or there


def _apply(asked: AnyFactory, rows: Iterable[tuple[str, Named]], providers: Sequence[str]) -> bool:
    """Build and push what is missing of the images that manifests name; tell whether all that could be begun has succeeded."""
    images = {each.image.name: each.image for _, each in rows if each.image}
    builds = [asked.build(name) for name, found in images.items() if found.status != "COMPLETE"]
    works = _waited(asked, builds)
    pushes = []
    for name in images:
        found = asked.image(name)
        if found.status == "COMPLETE" and found.build is not None:
            missing = [
                at.provider for at in found.providers if at.provider in providers and at.presence in (*_TO_PUSH, "pushing")
            ]
            pushes += [asked.push(found.build.id, provider) for provider in missing]
    works += _waited(asked, pushes)
    for work in works:
        _tell_failure(work)
    return all(work.status == "COMPLETE" for work in works)


def _waited(asked: AnyFactory, works: Sequence[Work]) -> list[Work]:
    try:
        return wait(asked, works)
    except KeyboardInterrupt:
        complain("sidecar", f"what was asked for goes on; see: sidecar image status --watch{_how_to_stop(works)}")
        raise


def _how_to_stop(works: Sequence[Work]) -> str:
    """Return what is said of ending works, those that were not over when they were asked for; "" where all were."""
    numbers = [str(work.id) for work in works if not work.over]
    return f"; to end it: sidecar image stop {' or '.join(numbers)}" if numbers else ""


def _checked(rows: Iterable[Named], providers: Sequence[str]) -> int:
    ours = [each for each in rows if each.image]
    at = [at for each in ours if each.image for at in each.image.providers if at.provider in providers]
    if any(each.note or (each.image and each.image.status != "COMPLETE") for each in ours) or any(
        each.presence not in ("pushed", "unreachable") for each in at
    ):
        return MISSING
    return IO if any(each.presence == "unreachable" for each in at) else OK


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--label expects NAME=VALUE, not {text!r}")
    return name, value


def _manifests(files: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the manifests that are named, or lie below a directory that is, with their text."""
    for file in files:
        if os.path.isdir(file):
            below = [os.path.join(at, name) for at, _, names in os.walk(file) for name in names if name.endswith(_MANIFESTS)]
            yield from ((path, _text(path)) for path in sorted(below))
        else:
            yield file, _text(file)


def _text(path: str) -> str:
    try:
        if path == "-":
            return sys.stdin.buffer.read().decode()
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected text in UTF-8") from None


# --- telling -----------------------------------------------------------------------------------------------------------


def _ended(works: Sequence[Work], as_json: bool) -> int:
    """Print how works ended, and return the status to end with."""
    if as_json:
        print_json([work.as_json() for work in works])
    for work in works:
        _tell_failure(work)
        if not as_json and work.status != "FAILED":
            click.echo(printable(f"{called(work)}: {work.status} {work.digest}".rstrip()))
    return UNAVAILABLE if any(work.status == "FAILED" for work in works) else OK


def _tell_failure(work: Work) -> None:
    if work.status == "FAILED":
        complain("sidecar", f"{called(work)} has failed: {work.error}; see: sidecar image log {work.id}")


def _standing(found: Image, providers: Sequence[str]) -> list[str]:
    """Return the cells of an image: its status, how it is at each provider, and what is on offer."""
    at = {each.provider: each for each in found.providers}
    offers = [each.do if each.do == "build" else each.provider for each in found.actions if each.provider in ("", *providers)]
    offer = f"push {', '.join(offers)}" if offers and offers != ["build"] else " ".join(offers)
    return [_status(found), *(_at(at[name]) if name in at else "" for name in providers), offer]


def _status(found: Image) -> str:
    build = found.build
    if build is None:
        return found.status
    if not build.over:
        return f"{found.status} {build.percent} %"
    return f"{found.status} {_when(build.finished)}" if build.status == "COMPLETE" else f"{found.status} (work {build.id})"


def _at(at: At) -> str:
    if at.push is not None and at.presence == "pushing":
        return f"pushing {at.push.percent} %"
    failed = at.push is not None and at.push.status == "FAILED"
    return at.presence + (f" (work {at.push.id} failed)" if failed and at.push else "")


def _print_checked(rows: Sequence[tuple[str, Named]], providers: Sequence[str]) -> None:
    table: dict[str, tuple[str, ...]] = {}
    for name, each in rows:
        cells = _standing(each.image, providers) if each.image else [""] * (len(providers) + 2)
        table.setdefault(
            each.reference, (each.reference, each.image.name if each.image else "not ours", *cells, f"{name}:{each.line}")
        )
    _print([("REFERENCE", "IMAGE", "STATUS", *providers, "OFFER", "WHERE"), *table.values()])
    for name, each in rows:
        if each.note:
            complain("sidecar", f"{name} line {each.line}: {each.reference}: {each.note}")
    _tell_reasons([each.image for _, each in rows if each.image], providers)


def _tell_reasons(images: Iterable[Image], providers: Sequence[str]) -> None:
    """Tell why it is not known what a provider has, once."""
    said = ((at.provider, at.reason) for each in images for at in each.providers if at.reason and at.provider in providers)
    for name, reason in dict.fromkeys(said):
        complain("sidecar", f"{name} is unreachable: {reason}")


def _row(work: Work) -> tuple[str, ...]:
    said = work.error if work.status == "FAILED" else work.activity
    asked = _when(work.asked)
    return (str(work.id), work.kind, work.image, work.provider, work.status, str(work.percent), asked, said)


def _described(work: Work) -> list[tuple[str, str]]:
    labels = " ".join(f"{name}={value}" for name, value in work.labels.items())
    return [
        ("work", called(work)),
        ("status", f"{work.status} ({work.percent} %)"),
        ("doing", work.activity),
        ("error", work.error),
        ("target", work.target),
        ("digest", work.digest),
        ("reference", work.reference),
        ("content", work.content),
        ("site", work.site),
        ("labels", labels),
        ("asked", _when(work.asked)),
        ("begun", _when(work.started)),
        ("ended", _when(work.finished)),
    ]


def _when(moment: int) -> str:
    return datetime.fromtimestamp(moment / 1_000_000).strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def _print(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns, in colours where that is a terminal."""
    if sys.stdout is None or not sys.stdout.isatty():
        print_table(rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in rows[0]:
        table.add_column(title, overflow="fold")
    for row in rows[1:]:
        table.add_row(*(Text(printable(cell), style=_COLOURS.get(cell.partition(" ")[0], "")) for cell in row))
    Console(highlight=False).print(table)
