"""`sidecar bundle`, `sidecar repo`, `sidecar label`: what a store holds, from the shell.

Each command parses, makes one call of sidecar.store.Store, and prints: data on stdout, talk and progress on stderr. What is
printed for people was written by others, so it goes through `printable`; `--json` is for programs, and its keys are stable.
"""

from __future__ import annotations

import re
import stat

import click

from sidecar.cli.arguments import parse_ref
from sidecar.cli.listing import json_option, print_json, print_table
from sidecar.cli.mount import mount
from sidecar.cli.progress import Progress
from sidecar.cli.store_option import store_option
from sidecar.errors import SidecarError
from sidecar.figures import amount
from sidecar.parameters.settings import regular_expression
from sidecar.store import Bundle, Entry, Reference, Store, check_name, encode_path, open_store
from sidecar.store.selection import selection


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(regular_expression(text))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _repository(text: str) -> str:
    return _name("repository", text)


def _label(text: str) -> str:
    return _name("label", text) if text else ""


def _name(what: str, text: str) -> str:
    try:
        return check_name(what, text)
    except SidecarError as error:
        raise click.BadParameter(str(error)) from None


_contributor = click.option("--contributor", envvar="SIDECAR_CONTRIBUTOR", default="", help="Who signs it.", show_envvar=True)


def ending(statuses: str, example: str) -> str:
    """Return the last lines of a command's help."""
    return f"\b\nExit status: 0; {statuses}; 2 usage; 74 the store cannot be reached.\nExample:  {example}"


def _find(store: Store, reference: Reference) -> Bundle:
    return store.resolve(reference.repo, label=reference.label, bundle=reference.bundle)


# --- bundle --------------------------------------------------------------------------------------------------------


@click.group(epilog="Example:  sidecar bundle upload results --repo experiments --label latest")
def bundle() -> None:
    """Keep, fetch and look at bundles: directories as they were at one moment, never changed afterwards.

    REF is REPO (its latest bundle), REPO@LABEL, or REPO@ID with the 26 digits of a bundle's id.
    """


@bundle.command(
    epilog=ending(
        "73 something in it cannot be kept", "sidecar bundle upload out --repo experiments --label latest --message 'seed 7'"
    )
)
@click.argument("path", type=click.Path())
@click.option("--repo", type=_repository, metavar="REPO", required=True, help="The repository; created where there is none.")
@click.option("--label", type=_label, metavar="LABEL", default="", help="A label to point at the new bundle.")
@click.option("--message", default="", help="What this is, for those who find it.")
@_contributor
@click.option("--skip-errors", is_flag=True, help="Leave out, and count, what cannot be kept: sockets, unreadable files.")
@store_option
@json_option
def upload(
    path: str, repo: str, label: str, message: str, contributor: str, skip_errors: bool, store: str, as_json: bool
) -> None:
    """Keep the directory PATH as a new bundle, and print its REPO@ID. Python: Store.save."""
    with Progress() as progress:
        saved = open_store(store).save(
            path, repo, label=label, message=message, contributor=contributor, skip_errors=skip_errors, progress=progress
        )
    if as_json:
        print_json(saved.as_json())
        return
    click.echo(saved.reference)
    left_out = f"; {saved.skipped} left out" if saved.skipped else ""
    click.echo(f"{_held(saved)}, {amount(saved.stored)} of them new{left_out}", err=True)


@bundle.command(
    epilog=ending("66 no such bundle; 65 it is damaged; 74 DEST cannot be written", "sidecar bundle download weather@latest in")
)
@click.argument("ref", type=parse_ref)
@click.argument("dest", type=click.Path())
@click.option("--files", "paths", metavar="PATH", multiple=True, help="Only this file, or what is in this directory; repeatable.")
@click.option("--name-filter", type=_pattern, metavar="REGEX", help="Only paths in which this regular expression is found.")
@click.option("--skip-errors", is_flag=True, help="Leave out, and count, files that are damaged in the store.")
@store_option
@json_option
def download(
    ref: Reference,
    dest: str,
    paths: tuple[str, ...],
    name_filter: re.Pattern[str] | None,
    skip_errors: bool,
    store: str,
    as_json: bool,
) -> None:
    """Have the bundle REF in directory DEST, every byte verified, and print its REPO@ID. Python: Store.populate.

    What is there already with the same size, time and mode is left alone, and so is what the bundle does not name.
    """
    opened = open_store(store)
    found = _find(opened, ref)
    with Progress() as progress:
        left_out = opened.populate(found, dest, progress, select=selection(paths, name_filter), skip_errors=skip_errors)
    if as_json:
        print_json(found.as_json() | {"left_out": [encode_path(path) for path in left_out]})
        return
    click.echo(found.reference)
    click.echo(_held(found) + (f"; {len(left_out)} left out" if left_out else ""), err=True)


@bundle.command("list", epilog=ending("66 there is no such repository", "sidecar bundle list weather"))
@click.argument("repo", type=_repository)
@store_option
@json_option
def list_bundles(repo: str, store: str, as_json: bool) -> None:
    """List the bundles of REPO, oldest first, with the labels that point at them. Python: Store.bundles."""
    opened = open_store(store)
    bundles, labels = opened.bundles(repo), opened.labels(repo)
    pointing = {each.id: [label for label, id_ in labels.items() if id_ == each.id] for each in bundles}
    if as_json:
        print_json([each.as_json() | {"labels": pointing[each.id]} for each in bundles])
        return
    print_table(
        [
            (each.id, each.time, str(each.files), amount(each.bytes), ",".join(pointing[each.id]), each.message)
            for each in bundles
        ],
        right=(2, 3),
    )


@bundle.command(epilog=ending("66 there is no such bundle", "sidecar bundle show weather@latest --json"))
@click.argument("ref", type=parse_ref)
@store_option
@json_option
def show(ref: Reference, store: str, as_json: bool) -> None:
    """Show what is known of the bundle REF. Python: Store.resolve."""
    found = _find(open_store(store), ref).as_json()
    if as_json:
        print_json(found)
    else:
        print_table([(key, str(value)) for key, value in found.items()])


@bundle.command(epilog=ending("66 there is no such bundle; 65 it is damaged", "sidecar bundle files weather@latest"))
@click.argument("ref", type=parse_ref)
@store_option
@json_option
def files(ref: Reference, store: str, as_json: bool) -> None:
    """List what the bundle REF holds: mode, size, time (UTC) and path. Python: Store.manifest."""
    opened = open_store(store)
    entries = opened.manifest(_find(opened, ref))
    if as_json:
        print_json([entry.as_json() for entry in entries])
    else:
        print_table([_line(entry) for entry in entries], right=(1,))


@bundle.command(epilog=ending("66 there is no such bundle; 65 it is damaged", "sidecar bundle verify weather@latest"))
@click.argument("ref", type=parse_ref)
@store_option
@json_option
def verify(ref: Reference, store: str, as_json: bool) -> None:
    """Read every byte of the bundle REF and compare it with its hash. Python: Store.verify."""
    opened = open_store(store)
    found = _find(opened, ref)
    with Progress() as progress:
        opened.verify(found, progress)
    if as_json:
        print_json(found.as_json())
        return
    click.echo(f"{found.reference} is whole: {_held(found)}")


@bundle.command(epilog=ending("66 there is no such bundle; 65 one is damaged", "sidecar bundle diff weather@published weather"))
@click.argument("before", type=parse_ref)
@click.argument("after", type=parse_ref)
@store_option
@json_option
def diff(before: Reference, after: Reference, store: str, as_json: bool) -> None:
    """List how AFTER differs from BEFORE: added, removed, changed, or touched (mode or time alone). Python: Store.diff."""
    opened = open_store(store)
    changes = opened.diff(_find(opened, before), _find(opened, after))
    if as_json:
        print_json([change.as_json() for change in changes])
    else:
        print_table([(change.what, change.path) for change in changes])


def _held(of: Bundle) -> str:
    held = (counted(of.files, "file"), counted(of.directories, "directory"), counted(of.links, "link"))
    return ", ".join([*filter(None, held), amount(of.bytes)])


def counted(count: int, what: str) -> str:
    """Return 1 file, 2 directories; "" for none."""
    many = what if count == 1 else what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{count} {many}" if count else ""


def _line(entry: Entry) -> tuple[str, str, str, str]:
    mode = stat.filemode(entry.mode | _TYPES[entry.type])
    length = str(entry.size) if entry.type == "file" else ""
    return mode, length, entry.time, entry.path + (f" -> {entry.target}" if entry.target else "")


_TYPES = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "link": stat.S_IFLNK | 0o777}


# --- repo ----------------------------------------------------------------------------------------------------------


@click.group(epilog="Example:  sidecar repo list")
def repo() -> None:
    """Make and list repositories: named lines of bundles."""


@repo.command(epilog=ending("78 there is one of this name", "sidecar repo create weather --description 'daily observations'"))
@click.argument("name", type=_repository)
@click.option("--description", default="", help="What its bundles are.")
@click.option("--exist-ok", is_flag=True, help="Do not mind one that exists; it keeps its description.")
@store_option
@json_option
def create(name: str, description: str, exist_ok: bool, store: str, as_json: bool) -> None:
    """Create the repository NAME. Python: Store.create_repo."""
    created = open_store(store).create_repo(name, description, exist_ok=exist_ok)
    if as_json:
        print_json(created.as_json())
    else:
        click.echo(created.name)


@repo.command("list", epilog=ending("65 a record is damaged", "sidecar repo list --json"))
@store_option
@json_option
def list_repos(store: str, as_json: bool) -> None:
    """List the repositories. Python: Store.repos."""
    found = open_store(store).repos()
    if as_json:
        print_json([each.as_json() for each in found])
    else:
        print_table([(each.name, each.time, each.description) for each in found])


@repo.command("show", epilog=ending("66 there is no such repository", "sidecar repo show weather"))
@click.argument("name", type=_repository)
@store_option
@json_option
def show_repo(name: str, store: str, as_json: bool) -> None:
    """Show a repository: what it is, how many bundles it holds, its labels. Python: Store.repo, bundles, labels."""
    opened = open_store(store)
    found, bundles, labels = opened.repo(name), opened.bundles(name), opened.labels(name)
    latest = bundles[-1].id if bundles else ""
    if as_json:
        print_json(found.as_json() | {"bundles": len(bundles), "latest": latest, "labels": labels})
        return
    rows = [(key, str(value)) for key, value in found.as_json().items()]
    pointing = [(f"label {label}", id_) for label, id_ in sorted(labels.items())]
    print_table([*rows, ("bundles", str(len(bundles))), ("latest", latest), *pointing])


# --- label ---------------------------------------------------------------------------------------------------------


@click.group(epilog="Example:  sidecar label list weather")
def label() -> None:
    """Move and list labels: names in a repository that point at one of its bundles."""


@label.command("set", epilog=ending("66 there is no such bundle", "sidecar label set weather published weather@latest"))
@click.argument("repo", type=_repository)
@click.argument("label", type=_label)
@click.argument("ref", type=parse_ref)
@_contributor
@store_option
@json_option
def set_label(repo: str, label: str, ref: Reference, contributor: str, store: str, as_json: bool) -> None:
    """Point LABEL of REPO at the bundle REF, which is of the same repository. Python: Store.set_label."""
    if ref.repo != repo:
        raise click.BadParameter(f"a label of {repo!r} can only point at its own bundles, {repo}@..., not at {str(ref)!r}")
    opened = open_store(store)
    move = opened.set_label(repo, label, _find(opened, ref).id, contributor=contributor)
    if as_json:
        print_json(move.as_json())
    else:
        click.echo(f"{repo}@{label} is {move.bundle}")


@label.command("list", epilog=ending("66 there is no such repository", "sidecar label list weather"))
@click.argument("repo", type=_repository)
@store_option
@json_option
def list_labels(repo: str, store: str, as_json: bool) -> None:
    """List the labels of REPO, and the bundles they point at. Python: Store.labels."""
    found = open_store(store).labels(repo)
    if as_json:
        print_json(found)
    else:
        print_table(sorted(found.items()))


@label.command("show", epilog=ending("66 there is no such label", "sidecar label show weather latest"))
@click.argument("repo", type=_repository)
@click.argument("label", type=_label)
@store_option
@json_option
def show_label(repo: str, label: str, store: str, as_json: bool) -> None:
    """Show where LABEL points, since when, and who moved it there. Python: Store.label_history."""
    move = open_store(store).label_history(repo, label)[-1]
    if as_json:
        print_json(move.as_json())
    else:
        print_table([(key, str(value)) for key, value in move.as_json().items()])


@label.command(epilog=ending("66 there is no such label", "sidecar label history weather latest"))
@click.argument("repo", type=_repository)
@click.argument("label", type=_label)
@store_option
@json_option
def history(repo: str, label: str, store: str, as_json: bool) -> None:
    """List every move of LABEL, oldest first: when, where to, by whom. Python: Store.label_history."""
    moves = open_store(store).label_history(repo, label)
    if as_json:
        print_json([move.as_json() for move in moves])
    else:
        print_table([(str(move.number), move.time, move.bundle, move.contributor) for move in moves], right=(0,))


bundle.add_command(mount)
