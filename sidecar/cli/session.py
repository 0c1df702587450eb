"""`sidecar session`: a pod composed from a base image and any number of artifacts.

Each command parses, makes one call of sidecar.session, and prints: the manifest or the response on stdout, warnings on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click
import yaml

from sidecar import __version__
from sidecar.batteries import find as find_battery
from sidecar.batteries.companion import Around, Companion
from sidecar.cli.entry import complain
from sidecar.cli.listing import print_json
from sidecar.errors import ConfigurationError, Fault, ParametersError, UsageError
from sidecar.session.argo import workflow_template
from sidecar.session.artifact import Artifact
from sidecar.session.catalog import find, read_catalog
from sidecar.session.compose import COORDINATION, DELIVERIES, Delivery, Options, Session
from sidecar.session.compose import compose as compose_session
from sidecar.session.plan import LAUNCHES, Launch


@click.group(epilog="Example:  sidecar session compose --image base:12 --catalog catalog.yaml --artifact streamer@7")
def session() -> None:
    """Compose a pod from a base image and a list of artifacts, each an entry of a catalog."""


@session.command(
    epilog="""\b
Exit status: 0; 2 usage; 65 the catalog, the request or a battery's parameters are malformed, every fault with its place;
78 there is no such battery.
Example:  sidecar session compose --image base:12 --catalog catalog.yaml --artifact viewer@1.4 --artifact streamer@7""",
)
@click.option("--image", metavar="IMAGE", required=True, help="The base image; it has /bin/bash.")
@click.option(
    "--catalog", "catalogs", metavar="FILE", multiple=True, required=True, help="What ids of artifacts mean; repeatable."
)
@click.option(
    "--artifact", "artifacts", metavar="ID", multiple=True, required=True, help="One more artifact, in order; the last runs."
)
@click.option("--battery", "batteries", metavar="KIND=FILE", multiple=True, help="A battery, and its parameters: fuse=fuse.yaml.")
@click.option("--store", metavar="URL", default="", help="Where bundles are: gs://bucket/folder, or file:///store with a claim.")
@click.option("--store-claim", "claim", metavar="NAME", default="", help="The PersistentVolumeClaim that a file:// store is on.")
@click.option("--launch", type=click.Choice(LAUNCHES), default="last", show_default=True, help="Whose programs are run.")
@click.option(
    "--delivery", type=click.Choice(DELIVERIES), default="copy", show_default=True, help="How files come: copied, or mounted."
)
@click.option("--user", metavar="UID", default="10001", show_default=True, help="Who all containers run as; `image`: as it says.")
@click.option("--id", "session_id", metavar="ID", default="", help="The session's id.  [default: follows from what is in it]")
@click.option("--images", metavar="PREFIX", default="localhost/sidecar", show_default=True, help="Where our own images are.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["yaml", "json", "argo", "response"]),
    default="yaml",
    show_default=True,
    help="The pod; a WorkflowTemplate of Argo's; or what whoever asked is told: ports, log directories.",
)
def compose(
    image: str,
    catalogs: tuple[str, ...],
    artifacts: tuple[str, ...],
    batteries: tuple[str, ...],
    store: str,
    claim: str,
    launch: Launch,
    delivery: Delivery,
    user: str,
    session_id: str,
    images: str,
    output: str,
) -> None:
    """Print the pod of a session: the same request is the same pod, byte by byte. Python: sidecar.session.compose.compose."""
    options = Options(launch, delivery, _user(user), wrapper=f"{images}/wrapper:{__version__}")
    around = Around(COORDINATION, store, claim, images, __version__, grace=options.grace - 10)
    found = compose_session(
        image,
        find(_catalog(catalogs), artifacts),
        [_battery(each, around) for each in batteries],
        options,
        session=session_id,
        names=artifacts,
    )
    for warning in found.warnings:
        complain("sidecar", f"warning: {warning}")
    _print(found, output)


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
        _print_yaml(workflow_template({"session": found}, found.pod["metadata"]["name"]))
    elif output == "json":
        print_json(found.pod)
    elif output == "response":
        print_json(found.as_json())
    else:
        _print_yaml(found.pod)


def _print_yaml(document: object) -> None:
    yaml.dump(document, sys.stdout, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=130)


class _Dumper(yaml.SafeDumper):
    """Writes each thing where it stands, not as an alias of another, and texts of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent)
