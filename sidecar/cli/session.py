"""`sidecar session`: a pod composed from a base image and any number of artifacts.

Each command parses, makes one call of sidecar.session, and prints: the manifest or the response on stdout, warnings on stderr.
"""

from __future__ import annotations

import math
import signal
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, TypeVar

import click

from sidecar import __version__
from sidecar.batteries import find as find_battery
from sidecar.batteries.companion import Around, Companion
from sidecar.cli.arguments import Seconds
from sidecar.cli.entry import complain, printable
from sidecar.cli.listing import json_option, print_json, print_table
from sidecar.cli.manifests import print_yaml
from sidecar.cli.runners import WHERE, begun, to_start, which_ran, which_runs
from sidecar.errors import (
    UNAVAILABLE,
    ConfigurationError,
    Fault,
    Interrupted,
    ParametersError,
    SidecarError,
    SourceMissing,
    UsageError,
)
from sidecar.figures import counted
from sidecar.session.argo import workflow_template
from sidecar.session.artifact import Artifact
from sidecar.session.catalog import find, read_catalog
from sidecar.session.compose import APPLICATION, COORDINATION, DELIVERIES, Delivery, Options, Session
from sidecar.session.compose import compose as compose_session
from sidecar.session.job import job
from sidecar.session.plan import LAUNCHES
from sidecar.session.runner import Container, Runner

Function = TypeVar("Function", bound=Callable[..., Any])


@click.group(epilog="Example:  sidecar session compose --image base:12 --catalog catalog.yaml --artifact streamer@7")
def session() -> None:
    """Compose a pod from a base image and a list of artifacts, each an entry of a catalog; and run it."""


def _request(function: Function) -> Function:
    """Give a command the options that say what is in a session; its argument `asked` holds them."""
    options = [
        click.option(
            "--image", metavar="IMAGE", required=True, help="The base image; it has /bin/bash where there are artifacts."
        ),
        click.option("--catalog", "catalogs", metavar="FILE", multiple=True, help="What ids mean; repeatable."),
        click.option("--artifact", "artifacts", metavar="ID", multiple=True, help="An artifact, in its order; repeatable."),
        click.option(
            "--battery", "batteries", metavar="KIND=FILE", multiple=True, help="A battery, and its parameters: fuse=fuse.yaml."
        ),
        click.option(
            "--store", metavar="URL", default="", help="Where bundles are: gs://bucket/folder, or file:///store with a claim."
        ),
        click.option(
            "--store-claim", "claim", metavar="NAME", default="", help="The PersistentVolumeClaim that a file:// store is on."
        ),
        click.option(
            "--mount", is_flag=True, help="Bundles are mounted, not downloaded: that battery's container is privileged."
        ),
        click.option("--native-sidecars", "native", is_flag=True, help="Batteries are initContainers that are restarted."),
        click.option(
            "--grace", type=Seconds(), metavar="T", default="50s", show_default=True, help="What ending and saving may take."
        ),
        click.option("--launch", type=click.Choice(LAUNCHES), default="last", show_default=True, help="Whose programs are run."),
        click.option(
            "--delivery", type=click.Choice(DELIVERIES), help="How files get there.  [default: copy; image with the runner local]"
        ),
        click.option(
            "--user", metavar="UID", default="10001", show_default=True, help="Who all containers run as; `image`: as it says."
        ),
        click.option("--read-only", is_flag=True, help="The application's root is read-only."),
        click.option("--cpu", metavar="Q", default="", help="What the application asks for, such as 500m."),
        click.option("--memory", metavar="Q", default="", help="What the application asks for and gets at most: 512Mi."),
        click.option("--disk", metavar="Q", default="", help="How much may be in a volume, of those that files come to: 10Gi."),
        click.option(
            "--id", "session_id", metavar="ID", default="", help="The session's id.  [default: follows from what is in it]"
        ),
        click.option(
            "--images", metavar="PREFIX", default="localhost/sidecar", show_default=True, help="Where our own images are."
        ),
        click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD ARG...]"),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _composed(asked: Mapping[str, Any], delivery: Delivery, session_id: str) -> Session:
    """Return the session that is asked for, and tell its warnings."""
    if asked["artifacts"] and asked["command"]:
        raise UsageError("--artifact and a command: expected one of them, for the last artifact says what runs")
    if not asked["artifacts"] and not asked["command"]:
        raise UsageError("expected --artifact ID, or a command behind `--`")
    if asked["artifacts"] and not asked["catalogs"]:
        raise UsageError("--artifact expects a --catalog FILE, which says what it is")
    wrapper, grace = f"{asked['images']}/wrapper:{__version__}", math.ceil(asked["grace"])
    options = Options(
        asked["launch"],
        delivery,
        _user(asked["user"]),
        grace + 10,
        wrapper=wrapper,
        **{key: asked[key] for key in ("read_only", "cpu", "memory", "disk")},
    )
    where = (COORDINATION, asked["store"], asked["claim"], asked["images"], __version__)
    around = Around(*where, grace=grace, mount=asked["mount"], native=asked["native"])
    found = compose_session(
        asked["image"],
        find(_catalog(asked["catalogs"]), asked["artifacts"]),
        [_battery(each, around) for each in asked["batteries"]],
        options,
        session=session_id,
        names=asked["artifacts"],
        command=asked["command"],
    )
    for warning in found.warnings:
        complain("sidecar", f"warning: {warning}")
    return found


@session.command(
    epilog="""\b
Exit status: 0; 2 usage; 65 the catalog, the request or a battery's parameters are malformed, every fault with its place;
78 there is no such battery.
Example:  sidecar session compose --image base:12 --catalog catalog.yaml --artifact viewer@1.4 --artifact streamer@7""",
)
@_request
@click.option(
    "-o",
    "--output",
    type=click.Choice(["yaml", "json", "job", "argo", "response"]),
    default="yaml",
    show_default=True,
    help="The pod; a Job; a WorkflowTemplate of Argo's; or what whoever asked is told: ports, log directories.",
)
def compose(output: str, session_id: str, delivery: Delivery | None, **asked: Any) -> None:
    """Print the pod of a session: the same request is the same pod, byte by byte. Python: sidecar.session.compose.compose.

    Without artifacts the image runs CMD.
    """
    _print(_composed(asked, delivery or "copy", session_id), output)


# --- running it --------------------------------------------------------------------------------------------------------

_name = click.argument("name", metavar="POD")


def _ending(statuses: str, example: str) -> str:
    others = "2 usage; 74 the folder, or the cluster, cannot be read or written; 78 no cluster is configured."
    return f"\b\nExit status: {statuses} {others}\nExample:  {example}"


@session.command(
    epilog="""\b
Exit status: 0, or with --wait that of the application; 2 usage; 65 the catalog, the request or the pod is malformed, or has what
cannot be run there; 78 there is such a session already, or no bubblewrap, podman or cluster; 74 it cannot be begun.
Example:  sidecar session start --image host --catalog catalog.yaml --artifact streamer@7 --wait""",
)
@_request
@which_runs
@click.option(
    "--wait", "waiting", is_flag=True, help="Print what the application writes, end as it does, and remove the session."
)
def start(
    waiting: bool,
    session_id: str,
    delivery: Delivery | None,
    **asked: Any,
) -> int:
    """Run a session, and print its ports and log directories. Python: the runners of sidecar.session.

    On this machine (local) containers are sandboxes, and an image is a directory: that of --image-dir, or the reference itself,
    an absolute path; `host` is this machine's own root. podman has containers, and images, and a cluster has all.
    """
    where = {key: asked.pop(key) for key in WHERE}
    runner = to_start(**where)
    delivery = delivery or ("image" if runner.image_volumes else "copy")
    found = _composed(asked, delivery, session_id or str(uuid.uuid4()))
    name = found.pod["metadata"]["name"]
    with _interrupted_by_signals():
        try:
            runner.start(found.pod)
        except (KeyboardInterrupt, Interrupted):
            complain("sidecar", f"whether pod {name} was begun is not known; look for it by `sidecar session show {name}`")
            raise
        if waiting:
            return _attend(runner, name)
    print_json(found.as_json())
    return 0


def _attend(runner: Runner, name: str) -> int:
    """Tell what the application writes; return how it ended, the session being removed. What goes on is left alone."""
    try:
        try:
            _write(runner.logs(name, APPLICATION, follow=True))
        except SidecarError as error:
            if isinstance(error, Interrupted):
                raise
            complain("sidecar", f"warning: what the application writes cannot be told: {error}")
        status = runner.wait(name)
    # A reader that is gone ends a command as a signal does.
    except (KeyboardInterrupt, Interrupted, BrokenPipeError):
        _stop(runner, name)
        raise
    except SourceMissing:
        raise
    except BaseException:
        complain("sidecar", f"pod {name} was not stopped")
        raise
    with suppress(SourceMissing):
        runner.stop(name)
    if status.reason:
        complain("sidecar", status.reason)
    ended = [each.exit for each in status.containers if each.name == APPLICATION]
    return next((each for each in ended if each is not None), UNAVAILABLE)


def _stop(runner: Runner, name: str) -> None:
    """End a session whose waiting was interrupted; who interrupts that as well is not made to wait for its grace."""
    with suppress(SourceMissing):
        try:
            runner.stop(name)
        except KeyboardInterrupt:
            complain("sidecar", f"pod {name} is killed")
            runner.stop(name, 0)


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Have the signals that end a process raise Interrupted, once: what stops a session is not to be left in its middle."""

    def end(number: int, _: object) -> None:
        for each in former:
            signal.signal(each, lambda *_: None)
        raise Interrupted(number, f"ended by signal {number}")

    former = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    for each, handler in former.items():
        if handler is not signal.SIG_IGN:  # as nohup has it
            signal.signal(each, end)
    try:
        yield
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)


@session.command("list", epilog=_ending("0;", "sidecar session list"))
@which_ran
@json_option
def list_(as_json: bool, **where: Any) -> None:
    """List the sessions of this machine, or of a cluster. Python: Runner.list."""
    found = begun(**where).list()
    if as_json:
        print_json([asdict(each) for each in found])
    elif found:
        rows = ((each.name, each.phase, ", ".join(map(_standing, each.containers))) for each in found)
        print_table([("POD", "PHASE", "CONTAINERS"), *rows])


@session.command(epilog=_ending("0; 66 there is no such session;", "sidecar session show session-6f1c --json"))
@_name
@which_ran
@json_option
def show(name: str, as_json: bool, **where: Any) -> None:
    """Tell how a session stands. Python: Runner.status."""
    found = begun(**where).status(name)
    if as_json:
        print_json(asdict(found))
        return
    rows = [("pod", found.name), ("session", found.session), ("phase", found.phase), ("why", found.reason)]
    rows += [(each.name, _standing(each)) for each in found.containers]
    print_table([row for row in rows if row[1]])


@session.command(epilog=_ending("0; 66 there is no such session or container;", "sidecar session logs session-6f1c --follow"))
@_name
@click.argument("container", metavar="[CONTAINER]", default=APPLICATION)
@click.option("--follow", is_flag=True, help="Until it has ended.")
@which_ran
def logs(name: str, container: str, follow: bool, **where: Any) -> None:
    """Print what a container wrote in all its lives; the application's where none is named. Python: Runner.logs."""
    _write(begun(**where).logs(name, container, follow=follow))


@session.command(epilog=_ending("0; 66 there is no such session;", "sidecar session stop session-6f1c"))
@_name
@click.option("--grace", type=Seconds(), metavar="T", help="How long its containers have after SIGTERM.  [default: the pod's]")
@which_ran
@json_option
def stop(name: str, grace: float | None, as_json: bool, **where: Any) -> None:
    """End a session, remove all that is of it, and tell how it ended. Python: Runner.stop."""
    found = begun(**where).stop(name, grace)
    if as_json:
        print_json(asdict(found))
    else:
        click.echo(f"{printable(found.name)}: {found.phase}: {', '.join(map(_standing, found.containers))}")


def _standing(container: Container) -> str:
    state = f"exit {container.exit}" if container.state == "exited" else container.state
    lives = f", {counted(container.restarts, 'restart')}" if container.restarts else ""
    return f"{container.name} {state}{lives}" + (f" ({container.reason})" if container.reason else "")


def _write(pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


# --- what is asked for -------------------------------------------------------------------------------------------------


def _catalog(paths: Sequence[str]) -> dict[str, Artifact]:
    found: dict[str, Artifact] = {}
    for path in paths:
        for key, artifact in read_catalog(_text(path), path).items():
            if found.setdefault(key, artifact) != artifact:
                raise ParametersError(
                    [Fault(path, f"artifacts.{key}", "is another artifact in a catalog before: expected one of them")]
                )
    return found


def _battery(text: str, around: Around) -> Companion:
    kind, equals, path = text.partition("=")
    if not equals or not path:
        raise UsageError(f"--battery expects KIND=FILE, such as fuse=fuse.yaml, not {text!r}")
    companion = find_battery(kind).companion
    if companion is None:
        raise ConfigurationError(f"the battery {kind!r} does not say what its container is")
    return companion(_text(path), path, around)


def _user(text: str) -> int | None:
    if text == "image":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 11):
        raise UsageError(f"--user expects a number, or `image`, not {text!r}")
    return int(text)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected text in UTF-8") from None


def _print(found: Session, output: str) -> None:
    if output == "argo":
        print_yaml(workflow_template({"session": found}, found.pod["metadata"]["name"]))
    elif output == "job":
        print_yaml(job(found))
    elif output == "json":
        print_json(found.pod)
    elif output == "response":
        print_json(found.as_json())
    else:
        print_yaml(found.pod)
