"""Options as `export NAME='value'` lines, which `eval` in any POSIX shell turns into the environment that configures the same.

    eval "$(sidecar parameters fuse < fuse-params.yaml)"

The variables and their options are those of datamon's sidecar_param. What those scripts did not know has options of our own,
written where it is not the default: in dm_pg_opts `t` (sleepTimeout), `n` and `e` (contributor) and `u` (user), in
dm_pg_db_<name> `dd` (dataDir), `o` (owner), `dif`, and all that parameters.postgres has beyond the script; the scripts ignore
them. A variable of a shell has a name of ASCII letters, digits and _; a bundle or database of another name is a fault.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from sidecar.errors import Fault
from sidecar.parameters.dictionary import encode
from sidecar.parameters.fuse import Destination, FuseOptions, Source
from sidecar.parameters.postgres import DATABASE, POD, Database, PostgresOptions
from sidecar.parameters.settings import Configured, Field, join, raise_any

_LETTERS = frozenset(string.ascii_letters + string.digits + "_")

# A value that is "" or False is not written.
Dictionary = dict[str, str | bool]


def fuse_variables(configured: Configured[FuseOptions]) -> dict[str, str]:
    """Return the variables that configure the same; ParametersError with every bundle that a shell cannot name."""
    options = configured.options
    pod: Dictionary = {
        "c": options.coordination,
        "S": options.stay,
        "b": options.config_bucket,
        "a": options.context,
        **_contributor(options.contributor),
    }
    bundles = {each.name: _source(each) for each in options.sources}
    bundles |= {each.name: _destination(each) for each in options.destinations}
    _check_names("bundles", bundles, configured)
    return {"dm_fuse_opts": _encode(pod)} | {f"dm_fuse_bd_{name}": _encode(bundle) for name, bundle in bundles.items()}


def postgres_variables(configured: Configured[PostgresOptions]) -> dict[str, str]:
    """Return the variables that configure the same; ParametersError with every database that a shell cannot name."""
    options = configured.options
    pod: Dictionary = {
        "c": options.coordination,
        "S": options.stay,
        "t": _unless_default(str(options.stay_seconds), POD, "t"),
        "V": "true" if options.ignore_version else "",
        "u": _unless_default(options.user, POD, "u"),
        **_contributor(options.contributor),
    }
    databases = {each.name: _database(each, ignore_version=options.ignore_version) for each in options.databases}
    _check_names("databases", databases, configured)
    return {"dm_pg_opts": _encode(pod)} | {f"dm_pg_db_{name}": _encode(database) for name, database in databases.items()}


def export_lines(variables: Mapping[str, str]) -> list[str]:
    """Return a line `export NAME='value'` of each variable; a line may hold line breaks within its quotes."""
    # A single quote cannot be escaped within single quotes: they end, it comes in double quotes, they begin again.
    return [f"export {name}='{value.replace(chr(39), _QUOTED_QUOTE)}'" for name, value in variables.items()]


_QUOTED_QUOTE = "'\"'\"'"


def _source(source: Source) -> Dictionary:
    return {"sp": source.path, "sr": source.repo, "sl": source.label, "sb": source.bundle}


def _destination(destination: Destination) -> Dictionary:
    return {
        "dp": destination.path,
        "dr": destination.repo,
        "dm": destination.message,
        "dl": destination.label,
        "dif": destination.bundle_id_file,
    }


def _database(database: Database, *, ignore_version: bool) -> Dictionary:
    options: Dictionary = {
        "p": str(database.port),
        "dd": _unless_default(database.data_dir.removesuffix(f"/{database.name}"), DATABASE, "dd"),
        "o": _unless_default(database.owner, DATABASE, "o"),
    }
    options |= {
        "db": join(database.databases),
        "set": join("=".join(pair) for pair in database.settings),
        "is": join(database.init_scripts),
        "a": _unless_default(database.archive, DATABASE, "a"),
        "u": "" if database.upgrade == ("auto" if ignore_version else "never") else database.upgrade,
        "f": _unless_default(database.freeze, DATABASE, "f"),
        "v": _unless_default(database.verify, DATABASE, "v"),
        "su": database.superuser,
        "tr": database.trust,
        "pf": database.password_file,
        "pv": _unless_default(str(database.major), DATABASE, "pv"),
        "lc": database.locale,
    }
    if database.source:
        options |= {"sr": database.source.repo, "sl": database.source.label, "sb": database.source.bundle}
    if database.destination:
        to = database.destination
        options |= {"m": to.message, "l": to.label, "r": to.repo, "dif": to.bundle_id_file}
    return options


def _contributor(contributor: str) -> Dictionary:
    name, _, email = contributor.removesuffix(">").rpartition(" <")
    return {"n": name, "e": email}


def _unless_default(value: str, fields: Iterable[Field], code: str) -> str:
    return "" if any(each.code == code and each.default == value for each in fields) else value


def _encode(options: Dictionary) -> str:
    written: dict[str, str | Literal[True]] = {option: value for option, value in options.items() if value}
    return encode(written)


def _check_names(what: str, names: Mapping[str, object], configured: Configured[Any]) -> None:
    raise_any(
        Fault(
            _place(f"{what}.{name}.", configured),
            "name",
            f"{name!r} cannot be part of a shell variable: expected letters, digits and _",
        )
        for name in names
        if not _LETTERS.issuperset(name)
    )


def _place(prefix: str, configured: Configured[Any]) -> str:
    found = (each.where for each in configured.settings if each.key.startswith(prefix) and each.where != "default")
    return next(found, prefix.rstrip("."))
