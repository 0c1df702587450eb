"""What a user says of the postgres battery, from every place where it can be said, as PostgresOptions.

    flags         -c -s -V --user --trust and the YAML file's path
    environment   dm_pg_opts (c S V t n e u) and dm_pg_db_<name> (p m l r sl sr sb, dd o dif, db set is a u f v su tr pf pv lc);
                  SIDECAR_GLOBALOPTS_<KEY> and SIDECAR_DATABASE_<KEY>, the keys being those of the YAML in capitals, with or
                  without _ between their words: SIDECAR_GLOBALOPTS_COORDPOINT, SIDECAR_GLOBALOPTS_COORD_POINT
    file          YAML at SIDECAR_CONFIG, else at /config/pgparams.yaml where there is one
    defaults      /tmp/coord; one database db on port 5432 in /pg_stage, of the user postgres

of a database's server, in YAML and as dm_pg_db_<name>:
    databases db       the databases that are created in it where they are missing, a list
    settings set       settings of the server, NAME: VALUE; in variables NAME=VALUE NAME='VALUE with spaces'
    initScripts is     paths of SQL scripts that run once, where the cluster is created, a list
    archive a          physical or logical
    upgrade u          never, check or auto: what becomes of a source of another major version
    freeze f           auto, always or never
    verify v           pages or restore
    superuser su       whether the owner is one
    trust tr           whether clients need no password
    passwordFile pf    the path of a file that holds the owner's password
    pgVersion pv       the major version, 12 to 18; 0 is the one that is found
    locale lc          of a cluster that is created; C.UTF-8 without it

The strongest comes first, and counts value by value. (The script of old let the file replace the environment; here it is the
other way round, as everywhere else.) SIDECAR_DATABASE_* are of the file's `database`, which SIDECAR_DATABASE_NAME renames; beside
a list `databases`, SIDECAR_DATABASE_NAME says which one is meant. Two things may be said of all databases at once: --trust, which
is stronger than what is said of one, and ignorePGVersionMismatch, which is `upgrade: auto` for those that say nothing of it.

The rules: ports differ, data directories do not lie in each other; a source has a repository and not both a label and a bundle id
(the latest where it has neither); a destination has a repository and a message. Without a source a database is created empty;
without a destination it is not saved. What the battery has to decide itself is no setting: see _OWNED.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sidecar.errors import Fault, ParametersError
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
# What lies beside the directory of a database called NAME is called NAME and this.
_OURS = (".partial", ".sidecar")
# The superuser that the battery has for itself in every cluster.
ADMIN = "sidecar"
# NAMEDATALEN and LOCALE_NAME_BUFLEN, without the zero; a user's name is what useradd takes.
_SQL_NAME, _LOCALE, _USER = 63, 127, 32
_MAJORS = range(12, 19)


@dataclass(frozen=True)
class Database:
    """One database server: its cluster lies in `data_dir` (dataDir/name) and listens on `port`.

    The paths of `source` and `destination` are `data_dir`; None is created empty, or not saved. `owner` is the role that owns
    `databases`, which are created where they are missing. `init_scripts` are paths of SQL scripts that run where the cluster is
    created. `settings` are the server's, (name, value) in order of name. `major` 0 is the version that is found, `locale` ""
    is C.UTF-8, and `password_file` "" leaves it to the battery to make a password.
    """

    name: str
    port: int
    data_dir: str
    owner: str = "postgres"
    source: Source | None = None
    destination: Destination | None = None
    databases: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    init_scripts: tuple[str, ...] = ()
    archive: str = "physical"
    upgrade: str = "never"
    freeze: str = "auto"
    verify: str = "pages"
    superuser: bool = False
    trust: bool = False
    password_file: str = ""
    major: int = 0
    locale: str = ""


@dataclass(frozen=True)
class PostgresOptions:
    """What the postgres battery does. `contributor` is "Name <email>" or ""; databases stand in the order of their names.

    `stay_seconds` is how long it stays where `stay` is asked for. `ignore_version`: a source of another major version of
    Postgres is no error; what that makes of a database stands in its `upgrade`. `user` is the account that servers run as where
    the battery itself is root.
    """

    coordination: str
    stay: bool = False
    stay_seconds: int = 600
    ignore_version: bool = False
    contributor: str = ""
    databases: tuple[Database, ...] = ()
    user: str = "postgres"


@dataclass(frozen=True)
class PostgresFlags:
    """What stands on the command line: -c, -s, -V, the path of the YAML file, --user, and --trust; "" is not given."""

    coordination: str = ""
    stay: bool = False
    ignore_version: bool = False
    config: str = ""
    user: str = ""
    trust: bool = False


# --- what a value may be -------------------------------------------------------------------------------------------

# Settings that a user does not have, and why.
_WHERE_IT_LISTENS = "the battery decides where a server listens"
_WHERE_FILES_ARE = "the battery decides where a server's files are"
_WHO_MAY_CONNECT = "the battery decides who may connect"
_LOG = "the battery reads what a server writes to its standard error"
_OWNED = {
    "listen_addresses": _WHERE_IT_LISTENS,
    "port": "it is the database's pgPort",
    "unix_socket_directories": _WHERE_IT_LISTENS,
    "unix_socket_permissions": _WHO_MAY_CONNECT,
    "unix_socket_group": _WHO_MAY_CONNECT,
    "hba_file": _WHO_MAY_CONNECT,
    "ident_file": _WHO_MAY_CONNECT,
    "config_file": _WHERE_FILES_ARE,
    "data_directory": "it is the database's dataDir and name",
    "external_pid_file": _WHERE_FILES_ARE,
    "logging_collector": _LOG,
    "log_destination": _LOG,
    "ssl_passphrase_command": "a server listens to its own pod alone and has no key with a passphrase",
}
# Without these a committed row may be lost.
_ALWAYS_ON = ("fsync", "full_page_writes")


def sql_name(value: str) -> str:
    """Return a name as SQL has it between double quotes."""
    if not 0 < len(of.text(value).encode()) <= _SQL_NAME:
        raise ValueError(f"expected a name of 1 to {_SQL_NAME} bytes, not {value!r}")
    return value


def role(value: str) -> str:
    """Return the name of a role that is not Postgres's or the battery's own."""
    if value == ADMIN:
        raise ValueError(f"the battery itself is the role {ADMIN!r}: expected another name")
    if value in ("public", "none") or value.startswith("pg_"):
        raise ValueError(f"Postgres keeps the name {value!r} for itself: expected another, one that does not begin with 'pg_'")
    return sql_name(value)


def server_setting(value: str) -> tuple[str, str]:
    """Return the name of a server's setting, in small letters, and its value, given NAME=VALUE."""
    given, text = of.pair(value)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", given):
        raise ValueError(f"expected the name of a setting, such as work_mem or auto_explain.log_timing, not {given!r}")
    name = given.lower()
    if name in _OWNED:
        raise ValueError(f"{name} cannot be set: {_OWNED[name]}")
    if name in _ALWAYS_ON and text != "on":
        raise ValueError(f"{name} stays on, or a row that was committed could be lost: expected 'on', not {text!r}")
    if any(c in "\r\n" for c in of.message(text)):
        raise ValueError(f"expected a value of one line for {name}, not {text!r}")
    return name, text


def user(value: str) -> str:
    """Return the name of an account that is not root's."""
    if not re.fullmatch(r"[a-z_][a-z0-9_-]*", value) or len(value) > _USER:
        raise ValueError(f"expected the name of a user, at most {_USER} of a-z, 0-9, _ and -, not {value!r}")
    if value == "root":
        raise ValueError("root never runs a server: expected another user")
    return value


def major(value: str) -> int:
    """Return a major version of Postgres, 0 for the one that is found."""
    if value not in {str(each) for each in (0, *_MAJORS)}:
        expected = f"expected a major version of Postgres from {_MAJORS[0]} to {_MAJORS[-1]}, or 0 for the one that is found"
        raise ValueError(f"{expected}, not {value!r}")
    return int(value)


def locale(value: str) -> str:
    """Return the name of a locale."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@-]*", value) or len(value) > _LOCALE:
        raise ValueError(f"expected the name of a locale, such as C.UTF-8 or en_US.UTF-8, not {value!r}")
    return value


# --- the fields ----------------------------------------------------------------------------------------------------

POD = (
    Field("coordPoint", "c", of.path, "-c", default="/tmp/coord"),
    Field("sleepInsteadOfExit", "S", of.boolean, "-s", default="false", switch=True),
    Field("sleepTimeout", "t", of.seconds, default="600"),
    Field("ignorePGVersionMismatch", "V", of.boolean, "-V", default="false", switch=True),
    Field("contributor.name", "n", of.text),
    Field("contributor.email", "e", of.email),
    Field("user", "u", user, "--user", default="postgres"),
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
    Field("owner", "o", role, default="postgres"),
    *_SOURCE,
    *_DESTINATION,
    Field("databases", "db", sql_name, kind="words"),
    Field("settings", "set", server_setting, kind="pairs"),
    Field("initScripts", "is", of.file_path, kind="words"),
    Field("archive", "a", of.choice("physical", "logical"), default="physical"),
    Field("upgrade", "u", of.choice("never", "check", "auto"), default="never"),
    Field("freeze", "f", of.choice("auto", "always", "never"), default="auto"),
    Field("verify", "v", of.choice("pages", "restore"), default="pages"),
    Field("superuser", "su", of.boolean, default="false", switch=True),
    Field("trust", "tr", of.boolean, "--trust", default="false", switch=True),
    Field("passwordFile", "pf", of.file_path),
    Field("pgVersion", "pv", major, default="0"),
    Field("locale", "lc", locale),
)
_NAME = Field("name", "", of.thing_name)
_SOURCE_KEYS = [each.key for each in _SOURCE]
_DESTINATION_KEYS = [each.key for each in _DESTINATION]


def postgres_options(flags: PostgresFlags, environment: Mapping[str, str], read_file: ReadFile) -> Configured[PostgresOptions]:
    """Return what is configured, and where each value came from. ParametersError with every fault there is.

    A file that is not named may be missing: `read_file` raises FileNotFoundError.
    """
    faults: list[Fault] = []
    return _configured(_layers(flags, environment, read_file, faults), faults, _of_all(flags))


def named(flags: PostgresFlags, environment: Mapping[str, str], read_file: ReadFile) -> tuple[str, tuple[str, ...]]:
    """Return which coordination directory and databases are meant, whatever else is wrong: who waits for them is to be told.

    "" and none where that cannot be made out.
    """
    faults: list[Fault] = []
    try:
        layers = _layers(flags, environment, read_file, faults)
    except ParametersError:
        return "", ()
    given = merge([layer.pod for layer in layers]).given
    place = given["coordPoint"].value if "coordPoint" in given else POD[0].default
    return place, tuple(merge_named(layers, faults))


def _layers(
    flags: PostgresFlags, environment: Mapping[str, str], read_file: ReadFile, faults: list[Fault]
) -> tuple[Layer, Layer, Layer]:
    """Return what is said in each place, the strongest first."""
    variables = read_environment(environment, "dm_pg_", "db_", POD, DATABASE, [], faults)
    single = _capitals(environment, "SIDECAR_DATABASE_", (_NAME, *DATABASE), faults)
    file = _file(flags.config, environment.get("SIDECAR_CONFIG", ""), read_file, faults)
    _put_all(_capitals(environment, "SIDECAR_GLOBALOPTS_", POD, faults), variables.pod, faults)
    _place(single, variables, file, faults)
    return _flags(flags, faults), variables, file.layer


def postgres_document(text: str, name: str) -> Configured[PostgresOptions]:
    """Return what a YAML document alone configures; `name` is what faults call it. ParametersError with every fault."""
    faults: list[Fault] = []
    file = _document(text, name, faults)
    variables = Layer(Section("environment", "key"))
    _place(Section("environment", "key"), variables, file, faults)
    return _configured((variables, file.layer), faults, {})


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
        "user": flags.user,
    }
    spelled = {each.key: each.flag for each in POD}
    for key, value in given.items():
        layer.pod.put(Setting(key, value, spelled[key]), faults)
    return layer


def _of_all(flags: PostgresFlags) -> dict[str, Setting]:
    """Return what flags say of every database; it is stronger than what is said of one."""
    return {"trust": Setting("trust", "true", "--trust")} if flags.trust else {}


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


def _configured(layers: Sequence[Layer], faults: list[Fault], of_all: Mapping[str, Setting]) -> Configured[PostgresOptions]:
    notes: list[str] = []
    pod = read(merge([layer.pod for layer in layers]), POD, "", notes, faults)
    sections = merge_named(layers, faults)
    for section in sections.values():
        section.given = {**_implied(pod), **section.given, **of_all}
    databases = {name: read(section, DATABASE, f"databases.{name}.", notes, faults) for name, section in sections.items()}
    options = PostgresOptions(
        coordination=pod["coordPoint"],
        stay=pod["sleepInsteadOfExit"],
        stay_seconds=pod["sleepTimeout"],
        ignore_version=pod["ignorePGVersionMismatch"],
        contributor=contributor(pod, faults),
        databases=tuple(_database(name, values, notes, faults) for name, values in databases.items()),
        user=pod["user"],
    )
    _check_databases(databases, faults)
    of.raise_any(faults)
    settings = (*pod.settings, *(each for values in databases.values() for each in values.settings))
    return Configured(options, settings, tuple(notes))


def _implied(pod: Values) -> dict[str, Setting]:
    """Return what is said of the pod and means something for a database that says nothing of it."""
    if pod["ignorePGVersionMismatch"] is not True:
        return {}
    given = pod.section.given["ignorePGVersionMismatch"]
    return {"upgrade": Setting("upgrade", "auto", given.where, given.spelled)}


def _database(name: str, values: Values, notes: list[str], faults: list[Fault]) -> Database:
    data_dir = _data_dir(name, values)
    source = _source(name, data_dir, values, faults)
    destination = _destination(name, data_dir, values, faults)
    if name in _RESERVED or any(c.isspace() for c in name) or name.endswith(_OURS):
        expected = f"a name without spaces that is none of {', '.join(_RESERVED)} and does not end in {' or '.join(_OURS)}"
        problem = f"database {name!r}: expected {expected}"
        faults.append(Fault(values.section.where, "name", problem))
    if source is None and destination is None:
        notes.append(f"database {name!r} has neither a source nor a destination: it is created empty and not saved")
    if source and values["initScripts"]:
        notes.append(f"database {name!r} has a source: initScripts are not run, nothing is created")
    if values["trust"] is True and values["passwordFile"]:
        notes.append(f"database {name!r} asks for no password: passwordFile is not needed")
    return Database(
        name,
        values["pgPort"],
        data_dir,
        values["owner"],
        source,
        destination,
        databases=tuple(values["databases"]),
        settings=tuple(values["settings"]),
        init_scripts=tuple(values["initScripts"]),
        archive=values["archive"],
        upgrade=values["upgrade"],
        freeze=values["freeze"],
        verify=values["verify"],
        superuser=values["superuser"],
        trust=values["trust"],
        password_file=values["passwordFile"],
        major=values["pgVersion"],
        locale=values["locale"],
    )


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
