"""What a user says of the postgres battery, from every place where it can be said, as PostgresOptions.

    flags         -c -s -V and the YAML file's path
    environment   dm_pg_opts (c S V t n e) and dm_pg_db_<name> (p m l r sl sr sb, dd o dif);
                  SIDECAR_GLOBALOPTS_<KEY> and SIDECAR_DATABASE_<KEY>, the keys being those of the YAML in capitals, with or
                  without _ between their words: SIDECAR_GLOBALOPTS_COORDPOINT, SIDECAR_GLOBALOPTS_COORD_POINT
    file          YAML at SIDECAR_CONFIG, else at /config/pgparams.yaml where there is one
    defaults      /tmp/coord; one database db on port 5432 in /pg_stage, of the user postgres

The strongest comes first, and counts value by value. (The script of old let the file replace the environment; here it is the
other way round, as everywhere else.) SIDECAR_DATABASE_* are of the file's `database`, which SIDECAR_DATABASE_NAME renames; beside
a list `databases`, SIDECAR_DATABASE_NAME says which one is meant.

The rules: ports differ, data directories do not lie in each other; a source has a repository and not both a label and a bundle id
(the latest where it has neither); a destination has a repository and a message. Without a source a database is created empty;
without a destination it is not saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sidecar.errors import Fault
from sidecar.parameters import settings as of
from sidecar.parameters.document import Document, ReadFile, read_text
from sidecar.parameters.environment import read_environment
from sidecar.parameters.fuse import Destination, Source
from sidecar.parameters.settings import (
    Configured,
    Field,
    Layer,
    Section,
    Setting,
    Values,
    by_name,
    check_name,
    contributor,
    merge,
    merge_named,
    read,
    unknown,
)

CONFIG = "/config/pgparams.yaml"
# What the pod's other participants say lies in the coordination directory under these names; a database's folder is there too.
_RESERVED = ("mountdone", "initupload", "uploaddone")


@dataclass(frozen=True)
class Database:
    """One database server: its cluster lies in `data_dir` (dataDir/name) and listens on `port`.

    The paths of `source` and `destination` are `data_dir`; None is created empty, or not saved. `owner` is a superuser that is
    made where the cluster is created.
    """

    name: str
    port: int
    data_dir: str
    owner: str = "postgres"
    source: Source | None = None
    destination: Destination | None = None


@dataclass(frozen=True)
class PostgresOptions:
    """What the postgres battery does. `contributor` is "Name <email>" or ""; databases stand in the order of their names.

    `stay_seconds` is how long it stays where `stay` is asked for. `ignore_version`: a source of another major version of
    Postgres is no error.
    """

    coordination: str
    stay: bool = False
    stay_seconds: int = 600
    ignore_version: bool = False
    contributor: str = ""
    databases: tuple[Database, ...] = ()


@dataclass(frozen=True)
class PostgresFlags:
    """What stands on the command line: -c, -s, -V, and the path of the YAML file; "" is not given."""

    coordination: str = ""
    stay: bool = False
    ignore_version: bool = False
    config: str = ""


POD = (
    Field("coordPoint", "c", of.path, "-c", default="/tmp/coord"),
    Field("sleepInsteadOfExit", "S", of.boolean, "-s", default="false", switch=True),
    Field("sleepTimeout", "t", of.seconds, default="600"),
    Field("ignorePGVersionMismatch", "V", of.boolean, "-V", default="false", switch=True),
    Field("contributor.name", "n", of.text),
    Field("contributor.email", "e", of.email),
    Field("pollInterval", "", of.text, ignored="nothing is polled by the second"),
)
_SOURCE = (
    Field("srcRepo", "sr", of.store_name),
    Field("srcLabel", "sl", of.store_name),
    Field("srcBundle", "sb", of.store_name),
)
_DESTINATION = (
    Field("destRepo", "r", of.store_name),
    Field("destMessage", "m", of.message),
    Field("destLabel", "l", of.store_name),
    Field("destBundleID", "dif", of.file_path),
)
DATABASE = (
    Field("pgPort", "p", of.port, default="5432"),
    Field("dataDir", "dd", of.path, default="/pg_stage"),
    Field("owner", "o", of.text, default="postgres"),
    *_SOURCE,
    *_DESTINATION,
)
_NAME = Field("name", "", of.thing_name)
_SOURCE_KEYS = [each.key for each in _SOURCE]
_DESTINATION_KEYS = [each.key for each in _DESTINATION]


def postgres_options(flags: PostgresFlags, environment: Mapping[str, str], read_file: ReadFile) -> Configured[PostgresOptions]:
    """Return what is configured, and where each value came from. ParametersError with every fault there is.

    A file that is not named may be missing: `read_file` raises FileNotFoundError.
    """
    faults: list[Fault] = []
    variables = read_environment(environment, "dm_pg_", "db_", POD, DATABASE, [], faults)
    single = _capitals(environment, "SIDECAR_DATABASE_", (_NAME, *DATABASE), faults)
    file = _file(flags.config, environment.get("SIDECAR_CONFIG", ""), read_file, faults)
    _put_all(_capitals(environment, "SIDECAR_GLOBALOPTS_", POD, faults), variables.pod, faults)
    _place(single, variables, file, faults)
    return _configured((_flags(flags, faults), variables, file.layer), faults)


def postgres_document(text: str, name: str) -> Configured[PostgresOptions]:
    """Return what a YAML document alone configures; `name` is what faults call it. ParametersError with every fault."""
    faults: list[Fault] = []
    file = _document(text, name, faults)
    variables = Layer(Section("environment", "key"))
    _place(Section("environment", "key"), variables, file, faults)
    return _configured((variables, file.layer), faults)


# --- the places ----------------------------------------------------------------------------------------------------


@dataclass
class _File:
    """What the file says; `single` is the name of its `database`, and `many` tells that its list `databases` has any."""

    layer: Layer
    single: str = ""
    many: bool = False


def _flags(flags: PostgresFlags, faults: list[Fault]) -> Layer:
    layer = Layer(Section("-c", "flag"))
    given = {
        "coordPoint": flags.coordination,
        "sleepInsteadOfExit": "true" if flags.stay else "",
        "ignorePGVersionMismatch": "true" if flags.ignore_version else "",
    }
    spelled = {each.key: each.flag for each in POD}
    for key, value in given.items():
        layer.pod.put(Setting(key, value, spelled[key]), faults)
    return layer


def _capitals(environment: Mapping[str, str], prefix: str, fields: Sequence[Field], faults: list[Fault]) -> Section:
    """Return the section that the variables SIDECAR_…_<KEY> are."""
    section = Section(prefix.rstrip("_"), "key")
    keys = {each.key.replace(".", "").upper(): each.key for each in fields}
    for variable, value in sorted(environment.items()):
        if variable.startswith(prefix):
            key = keys.get(variable.removeprefix(prefix).replace("_", ""))
            if key is None:
                problem = unknown("variable", variable, [prefix + each for each in keys])
                faults.append(Fault(variable, "", problem))
            else:
                section.put(Setting(key, value, variable, key), faults)
    return section


def _file(flag: str, variable: str, read_file: ReadFile, faults: list[Fault]) -> _File:
    path = flag or variable
    if path:
        text = read_text(path, "the configuration file" if flag else "SIDECAR_CONFIG", read_file, faults)
        return _document(text, path, faults)
    try:
        return _document(read_file(CONFIG), CONFIG, faults)
    except (FileNotFoundError, NotADirectoryError):
        return _File(Layer(Section(CONFIG, "key")))
    except (OSError, UnicodeDecodeError):
        return _document(read_text(CONFIG, "the configuration file", read_file, faults), CONFIG, faults)


def _document(text: str, name: str, faults: list[Fault]) -> _File:
    document = Document(text, name, faults)
    file = _File(Layer(Section(name, "key", torn=document.torn)))
    top = document.top(("globalOpts", "database", "databases"))
    if "globalOpts" in top:
        file.layer.pod = document.section(top["globalOpts"], POD)
    if "databases" in top:
        if "database" in top:
            problem = "given beside database: expected one of the two"
            faults.append(Fault(document.where(top["databases"]), "databases", problem))
        nodes = document.sequence(top["databases"], "databases")
        file.layer.named = by_name([document.section(node, (_NAME, *DATABASE)) for node in nodes], faults)
        file.many = bool(nodes)
    elif "database" in top:
        section = document.section(top["database"], (_NAME, *DATABASE))
        section.put(Setting("name", _name_of(section) or "db", "default", "name"), faults)
        file.single = _name_of(section)
        check_name(file.single, section.given["name"].where, faults)
        file.layer.named = {file.single: section}
    return file


def _place(single: Section, variables: Layer, file: _File, faults: list[Fault]) -> None:
    """Put what SIDECAR_DATABASE_* say where the database that they mean is; without any database, there is the default one."""
    name = _name_of(single)
    if single.given and not name and file.many:
        faults.append(Fault(single.where, "name", "expected SIDECAR_DATABASE_NAME beside a list of databases, it is missing"))
        return
    if not single.given and (file.single or file.many or variables.named or file.layer.pod.torn):
        return
    if name:
        check_name(name, single.given["name"].where, faults)
    if file.single and name not in ("", file.single):
        file.layer.named = {name: file.layer.named[file.single]}
    name = name or file.single or "db"
    _put_all(single, variables.named.setdefault(name, Section(single.where, "key")), faults)


def _put_all(section: Section, into: Section, faults: list[Fault]) -> None:
    for setting in section.given.values():
        into.put(setting, faults)


def _name_of(section: Section) -> str:
    return section.given["name"].value if "name" in section.given else ""


# --- the options ---------------------------------------------------------------------------------------------------


def _configured(layers: Sequence[Layer], faults: list[Fault]) -> Configured[PostgresOptions]:
    notes: list[str] = []
    pod = read(merge([layer.pod for layer in layers]), POD, "", notes, faults)
    databases = {
        name: read(section, DATABASE, f"databases.{name}.", notes, faults)
        for name, section in merge_named(layers, faults).items()
    }
    options = PostgresOptions(
        coordination=pod["coordPoint"],
        stay=pod["sleepInsteadOfExit"],
        stay_seconds=pod["sleepTimeout"],
        ignore_version=pod["ignorePGVersionMismatch"],
        contributor=contributor(pod, faults),
        databases=tuple(_database(name, values, notes, faults) for name, values in databases.items()),
    )
    _check_databases(databases, faults)
    of.raise_any(faults)
    settings = (*pod.settings, *(each for values in databases.values() for each in values.settings))
    return Configured(options, settings, tuple(notes))


def _database(name: str, values: Values, notes: list[str], faults: list[Fault]) -> Database:
    data_dir = _data_dir(name, values)
    source = _source(name, data_dir, values, faults)
    destination = _destination(name, data_dir, values, faults)
    if name in _RESERVED or any(c.isspace() for c in name):
        problem = f"database {name!r}: expected a name without spaces that is none of {', '.join(_RESERVED)}"
        faults.append(Fault(values.section.where, "name", problem))
    if source is None and destination is None:
        notes.append(f"database {name!r} has neither a source nor a destination: it is created empty and not saved")
    return Database(name, values["pgPort"], data_dir, values["owner"], source, destination)


def _data_dir(name: str, values: Values) -> str:
    return f"{values['dataDir']}/{name}"


def _source(name: str, path: str, values: Values, faults: list[Fault]) -> Source | None:
    if not values.given(_SOURCE_KEYS):
        return None
    values.require("srcRepo", f"the repository of the source of database {name!r}", faults)
    if values["srcLabel"] and values["srcBundle"]:
        problem = f"database {name!r} has a bundle id and also the label {values['srcLabel']!r}: expected one of the two"
        faults.append(values.wrong("srcBundle", problem))
    return Source(name, path, values["srcRepo"], values["srcLabel"], values["srcBundle"])


def _destination(name: str, path: str, values: Values, faults: list[Fault]) -> Destination | None:
    if not values.given(_DESTINATION_KEYS):
        return None
    values.require("destRepo", f"the repository of the destination of database {name!r}", faults)
    values.require("destMessage", f"the message of the destination of database {name!r}", faults)
    return Destination(name, path, values["destRepo"], values["destMessage"], values["destLabel"], values["destBundleID"])


def _check_databases(databases: Mapping[str, Values], faults: list[Fault]) -> None:
    ports: dict[int, str] = {}
    directories = {_data_dir(name, values): name for name, values in databases.items()}
    for name, values in databases.items():
        other = ports.setdefault(values["pgPort"], name)
        if other != name:
            problem = f"database {name!r} has port {values['pgPort']}, and so has {other!r}: expected another one"
            faults.append(values.wrong("pgPort", problem))
        path = _data_dir(name, values)
        around = next((top for top in of.lineage(path)[:-1] if top in directories), "")
        if around:
            problem = f"{path} of database {name!r} lies in {around} of {directories[around]!r}: expected another directory"
            faults.append(values.wrong("dataDir", problem))
