"""`sidecar bundle`, `sidecar repo`, `sidecar label`: what a store holds, from the shell.

Each command parses, makes one call of sidecar.store.Store, and prints: data on stdout, talk and progress on stderr. What is
printed for people was written by others, so it goes through `printable`; `--json` is for programs, and its keys are stable.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Sequence

import click

from sidecar.cli.entry import printable
from sidecar.cli.progress import Progress
from sidecar.cli.store_option import store_option
from sidecar.errors import SidecarError
from sidecar.figures import amount
from sidecar.store import Bundle, Entry, Reference, Store, check_name, open_store, parse_reference


def _ref(text: str) -> Reference:
    try:
        return parse_reference(text)
    except SidecarError as error:
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


_json = click.option("--json", "as_json", is_flag=True, help="Print it as JSON, for programs.")
_contributor = click.option("--contributor", envvar="SIDECAR_CONTRIBUTOR", default="", help="Who signs it.", show_envvar=True)


def _ending(statuses: str, example: str) -> str:
    """Return the last lines of a command's help."""
    return f"\b\nExit status: 0; {statuses}; 2 usage; 74 the store cannot be reached.\nExample:  {example}"


def _find(store: Store, reference: Reference) -> Bundle:
    return store.resolve(reference.repo, label=reference.label, bundle=reference.bundle)


def _print_json(document: object) -> None:
    click.echo(json.dumps(document))


def _print_table(rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print rows in columns as wide as what they hold; those numbered in `right` are flush right, the last is not padded."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = (cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row))
        click.echo("  ".join(cells).rstrip())


# --- bundle --------------------------------------------------------------------------------------------------------


@click.group(epilog="Example:  sidecar bundle upload results --repo experiments --label latest")
def bundle() -> None:
    """Keep, fetch and look at bundles: directories as they were at one moment, never changed afterwards.

    REF is REPO (its latest bundle), REPO@LABEL, or REPO@ID with the 26 digits of a bundle's id.
    """


@bundle.command(
    epilog=_ending(
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
@_json
def upload(
    path: str, repo: str, label: str, message: str, contributor: str, skip_errors: bool, store: str, as_json: bool
) -> None:
    """Keep the directory PATH as a new bundle, and print its REPO@ID. Python: Store.save."""
    with Progress() as progress:
        saved = open_store(store).save(
            path, repo, label=label, message=message, contributor=contributor, skip_errors=skip_errors, progress=progress
        )
    if as_json:
        _print_json(saved.as_json())
        return
    click.echo(saved.reference)
    left_out = f"; {saved.skipped} left out" if saved.skipped else ""
    click.echo(f"{_held(saved)}, {amount(saved.stored)} of them new{left_out}", err=True)


@bundle.command(
    epilog=_ending("66 no such bundle; 65 it is damaged; 74 DEST cannot be written", "sidecar bundle download weather@latest in")
)
@click.argument("ref", type=_ref)
@click.argument("dest", type=click.Path())
@store_option
@_json
def download(ref: Reference, dest: str, store: str, as_json: bool) -> None:
    """Have the bundle REF in directory DEST, every byte verified, and print its REPO@ID. Python: Store.populate.

    What is there already with the same size, time and mode is left alone, and so is what the bundle does not name.
    """
    opened = open_store(store)
    found = _find(opened, ref)
    with Progress() as progress:
        opened.populate(found, dest, progress)
    if as_json:
        _print_json(found.as_json())
        return
    click.echo(found.reference)
    click.echo(_held(found), err=True)


@bundle.command("list", epilog=_ending("66 there is no such repository", "sidecar bundle list weather"))
@click.argument("repo", type=_repository)
@store_option
@_json
def list_bundles(repo: str, store: str, as_json: bool) -> None:
    """List the bundles of REPO, oldest first, with the labels that point at them. Python: Store.bundles."""
    opened = open_store(store)
    bundles, labels = opened.bundles(repo), opened.labels(repo)
    pointing = {each.id: [label for label, id_ in labels.items() if id_ == each.id] for each in bundles}
    if as_json:
        _print_json([each.as_json() | {"labels": pointing[each.id]} for each in bundles])
        return
    _print_table(
        [
            (each.id, each.time, str(each.files), amount(each.bytes), ",".join(pointing[each.id]), each.message)
            for each in bundles
        ],
        right=(2, 3),
    )


@bundle.command(epilog=_ending("66 there is no such bundle", "sidecar bundle show weather@latest --json"))
@click.argument("ref", type=_ref)
@store_option
@_json
def show(ref: Reference, store: str, as_json: bool) -> None:
    """Show what is known of the bundle REF. Python: Store.resolve."""
    found = _find(open_store(store), ref).as_json()
    if as_json:
        _print_json(found)
    else:
        _print_table([(key, str(value)) for key, value in found.items()])


@bundle.command(epilog=_ending("66 there is no such bundle; 65 it is damaged", "sidecar bundle files weather@latest"))
@click.argument("ref", type=_ref)
@store_option
@_json
def files(ref: Reference, store: str, as_json: bool) -> None:
    """List what the bundle REF holds: mode, size, time (UTC) and path. Python: Store.manifest."""
    opened = open_store(store)
    entries = opened.manifest(_find(opened, ref))
    if as_json:
        _print_json([entry.as_json() for entry in entries])
    else:
        _print_table([_line(entry) for entry in entries], right=(1,))


@bundle.command(epilog=_ending("66 there is no such bundle; 65 it is damaged", "sidecar bundle verify weather@latest"))
@click.argument("ref", type=_ref)
@store_option
def verify(ref: Reference, store: str) -> None:
    """Read every byte of the bundle REF and compare it with its hash. Python: Store.verify."""
    opened = open_store(store)
    found = _find(opened, ref)
    with Progress() as progress:
        opened.verify(found, progress)
    click.echo(f"{found.reference} is whole: {_held(found)}")


def _held(of: Bundle) -> str:
    counted = (_counted(of.files, "file"), _counted(of.directories, "directory"), _counted(of.links, "link"))
    return ", ".join([*filter(None, counted), amount(of.bytes)])


def _counted(count: int, what: str) -> str:
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


@repo.command(epilog=_ending("78 there is one of this name", "sidecar repo create weather --description 'daily observations'"))
@click.argument("name", type=_repository)
@click.option("--description", default="", help="What its bundles are.")
@click.option("--exist-ok", is_flag=True, help="Do not mind one that exists; it keeps its description.")
@store_option
def create(name: str, description: str, exist_ok: bool, store: str) -> None:
    """Create the repository NAME. Python: Store.create_repo."""
    click.echo(open_store(store).create_repo(name, description, exist_ok=exist_ok).name)


@repo.command("list", epilog=_ending("65 a record is damaged", "sidecar repo list --json"))
@store_option
@_json
def list_repos(store: str, as_json: bool) -> None:
    """List the repositories. Python: Store.repos."""
    found = open_store(store).repos()
    if as_json:
        _print_json([each.as_json() for each in found])
    else:
        _print_table([(each.name, each.time, each.description) for each in found])


# --- label ---------------------------------------------------------------------------------------------------------


@click.group(epilog="Example:  sidecar label list weather")
def label() -> None:
    """Move and list labels: names in a repository that point at one of its bundles."""


@label.command("set", epilog=_ending("66 there is no such bundle", "sidecar label set weather published weather@latest"))
@click.argument("repo", type=_repository)
@click.argument("label", type=_label)
@click.argument("ref", type=_ref)
@_contributor
@store_option
@_json
def set_label(repo: str, label: str, ref: Reference, contributor: str, store: str, as_json: bool) -> None:
    """Point LABEL of REPO at the bundle REF, which is of the same repository. Python: Store.set_label."""
    if ref.repo != repo:
        raise click.BadParameter(f"a label of {repo!r} can only point at its own bundles, {repo}@..., not at {str(ref)!r}")
    opened = open_store(store)
    move = opened.set_label(repo, label, _find(opened, ref).id, contributor=contributor)
    if as_json:
        _print_json(move.as_json())
    else:
        click.echo(f"{repo}@{label} is {move.bundle}")


@label.command("list", epilog=_ending("66 there is no such repository", "sidecar label list weather"))
@click.argument("repo", type=_repository)
@store_option
@_json
def list_labels(repo: str, store: str, as_json: bool) -> None:
    """List the labels of REPO, and the bundles they point at. Python: Store.labels."""
    found = open_store(store).labels(repo)
    if as_json:
        _print_json(found)
    else:
        _print_table(sorted(found.items()))


@label.command(epilog=_ending("66 there is no such label", "sidecar label history weather latest"))
@click.argument("repo", type=_repository)
@click.argument("label", type=_label)
@store_option
@_json
def history(repo: str, label: str, store: str, as_json: bool) -> None:
    """List every move of LABEL, oldest first: when, where to, by whom. Python: Store.label_history."""
    moves = open_store(store).label_history(repo, label)
    if as_json:
        _print_json([move.as_json() for move in moves])
    else:
        _print_table([(str(move.number), move.time, move.bundle, move.contributor) for move in moves], right=(0,))
