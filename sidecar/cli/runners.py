"""Where sessions run, as the commands are told: on this machine, in sandboxes or in containers, or in a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from sidecar.cli.server import server
from sidecar.errors import UsageError
from sidecar.session.local import LocalRunner
from sidecar.session.machine import Machine
from sidecar.session.podman import PodmanRunner
from sidecar.session.runner import Runner
from sidecar.state import state_folder

Function = TypeVar("Function", bound=Callable[..., Any])

LOCAL, PODMAN, KUBERNETES = RUNNERS = ("local", "podman", "kubernetes")

# The options that only some runners have, with what they are called there.
_OWN = {
    LOCAL: {"images_here": "--image-dir", "claims": "--claim-dir", "folder": "--folder"},
    PODMAN: {"claims": "--claim-dir", "network": "--network", "folder": "--folder"},
    KUBERNETES: {"namespace": "--namespace", "context": "--context"},
}
_FOLDER = click.option(
    "--folder",
    metavar="DIR",
    default="",
    help="Where this machine's pods are kept: a directory of yours alone, which is made.  "
    "[default: sessions, where `sidecar once` keeps its state]",
)
_CLUSTER = (
    click.option("-n", "--namespace", metavar="NAME", default="", help="The cluster's.  [default: the context's]"),
    click.option("--context", metavar="NAME", default="", help="That of the kubeconfig.  [default: its current one]"),
)


# What `to_start` is told.
WHERE = ("runner", *dict.fromkeys(key for options in _OWN.values() for key in options))


def which_runs(function: Function) -> Function:
    """Give a command the options that say where a session is to run; its argument `where` holds them."""
    options = (
        click.option("--runner", type=click.Choice(RUNNERS), default=LOCAL, show_default=True, help="Where it runs."),
        click.option(
            "--image-dir", "images_here", metavar="IMAGE=DIR", multiple=True, help="The directory that an image is: local alone."
        ),
        click.option(
            "--claim-dir", "claims", metavar="CLAIM=DIR", multiple=True, help="The directory that a claim is: not in a cluster."
        ),
        click.option("--network", metavar="NAME", default="", help="What podman's --network says, such as none."),
        *_CLUSTER,
        _FOLDER,
    )
    return _with(function, options)


def which_ran(function: Function) -> Function:
    """Give a command the options that say where a session was begun; of a machine, both runners' are one list."""
    return _with(
        function,
        (
            click.option(
                "--runner",
                type=click.Choice(RUNNERS),
                default=LOCAL,
                help="kubernetes, where it runs there.  [default: this machine, local and podman alike]",
            ),
            *_CLUSTER,
            _FOLDER,
        ),
    )


def to_start(runner: str, **where: Any) -> Runner:
    """Return the runner that is asked for, or that of a server; UsageError with an option that it has not."""
    if (there := server()) is not None:
        _refuse("a server", {**where, "runner": runner if runner != LOCAL else ""}, {})
        return there.sessions
    return to_start_here(runner, **where)


def to_start_here(runner: str, **where: Any) -> Runner:
    """Return the runner that is asked for, whatever server commands are to ask; UsageError with an option that it has not."""
    _refuse(runner, where, _OWN[runner])
    if runner == KUBERNETES:
        return _cluster(where)
    claims = dict(_equals("--claim-dir", "CLAIM=DIR, such as store=/srv/store", each) for each in where["claims"])
    if runner == PODMAN:
        return PodmanRunner(_folder(where), network=where["network"], claims=claims)
    images = dict(_equals("--image-dir", "IMAGE=DIR, such as example/base:12=/srv/base", each) for each in where["images_here"])
    return LocalRunner(_folder(where), images, claims=claims)


def begun(runner: str, **where: Any) -> Machine | Runner:
    """Return what tells of the sessions that were begun where it is asked for."""
    if (there := server()) is not None:
        _refuse("a server", {**where, "runner": runner if runner != LOCAL else ""}, {})
        return there.sessions
    if runner == KUBERNETES:
        _refuse(runner, where, _OWN[KUBERNETES])
        return _cluster(where)
    _refuse("this machine", where, _OWN[LOCAL])
    return Machine(_folder(where))


def _with(function: Function, options: Sequence[Callable[[Function], Function]]) -> Function:
    for option in reversed(options):
        function = option(function)
    return function


def _refuse(runner: str, where: Mapping[str, Any], own: Mapping[str, str]) -> None:
    every = {"runner": "--runner", **{key: flag for options in _OWN.values() for key, flag in options.items()}}
    for key, flag in every.items():
        if where.get(key) and key not in own:
            raise UsageError(f"{flag} is not an option of {runner}")


def _cluster(where: Mapping[str, Any]) -> Runner:
    from sidecar.session.kubernetes import KubernetesRunner

    return KubernetesRunner(where["namespace"], context=where["context"])


def _folder(where: Mapping[str, Any]) -> str:
    return where["folder"] or os.path.join(state_folder(os.environ), "sessions")


def _equals(flag: str, form: str, text: str) -> tuple[str, str]:
    # Of the first: neither an image nor a claim has one in its name, and a directory may.
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise UsageError(f"{flag} expects {form}, not {text!r}")
    return name, os.path.abspath(folder)
