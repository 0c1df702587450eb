"""What a user of the datamon postgres sidecar writes, and the options it means; what is wrong, and where."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.cli.parameters import parameters
from sidecar.errors import ParametersError
from sidecar.parameters.exports import export_lines, postgres_variables
from sidecar.parameters.fuse import Destination, Source
from sidecar.parameters.postgres import (
    ADMIN,
    CONFIG,
    DATABASE,
    POD,
    Database,
    PostgresFlags,
    PostgresOptions,
    postgres_document,
    postgres_options,
)
from sidecar.parameters.settings import WORDS_LIMIT, Configured, Field, explain

# The samples of the datamon documentation, as they stand there but for the first label, which had spaces.
FROM_NOTHING = """\
globalOpts:
  coordPoint: /tmp/coord
database:
  name: db1
  pgPort: "5430"
  # sidecar will create dbuser with super-user privileges
  owner: dbuser
  destRepo: example-repo
  destMessage: postgres sidecar coordination example (write only)
  destLabel: write-only
"""
READ_AND_SAVE = """\
globalOpts:
  coordPoint: /tmp/coord
database:
  name: db2
  pgPort: "5429"
  srcRepo: example-repo
  srcLabel: my-desired-point-in-time
  destRepo: example-repo
  destMessage: postgres sidecar coordination example (read-write)
"""
# A file of an older datamon.
SEVERAL = """\
globalOpts:
  sleepInsteadOfExit: true
  ignorePGVersionMismatch: false
  coordPoint: "/tmp/coord"
databases:
  - name: "db1"
    pgPort: 5430
    destRepo: "ransom-datamon-test-repo"
    destMessage: "postgres coordination example"
    destLabel: "pg-coord-example"
  - name: "db2"
    pgPort: 5429
    destRepo: "ransom-datamon-test-repo"
    destMessage: "postgres coordination example input"
    srcRepo: "ransom-datamon-test-repo"
    srcLabel: "pg-coord-example-input"
"""
DB1 = Database(
    "db1",
    5430,
    "/pg_stage/db1",
    destination=Destination(
        "db1", "/pg_stage/db1", "ransom-datamon-test-repo", "postgres coordination example", "pg-coord-example"
    ),
)
DB2 = Database(
    "db2",
    5429,
    "/pg_stage/db2",
    source=Source("db2", "/pg_stage/db2", "ransom-datamon-test-repo", "pg-coord-example-input"),
    destination=Destination("db2", "/pg_stage/db2", "ransom-datamon-test-repo", "postgres coordination example input"),
)


def configure(
    environment: Mapping[str, str], files: Mapping[str, str] | None = None, flags: PostgresFlags | None = None
) -> Configured[PostgresOptions]:
    def read_file(path: str) -> str:
        if files is None or path not in files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return files[path]

    return postgres_options(flags or PostgresFlags(), environment, read_file)


def faults(environment: Mapping[str, str], text: str = "") -> list[str]:
    """Return what is wrong with an environment and the text of the file at /p."""
    try:
        configure({**environment, "SIDECAR_CONFIG": "/p"} if text else environment, {"/p": text})
    except ParametersError as error:
        return [str(fault) for fault in error.faults]
    return []


# --- what may be written -------------------------------------------------------------------------------------------


def test_a_database_from_nothing_that_is_saved() -> None:
    where = "/pg_stage/db1"
    to = Destination("db1", where, "example-repo", "postgres sidecar coordination example (write only)", "write-only")
    assert postgres_document(FROM_NOTHING, "x").options == PostgresOptions(
        "/tmp/coord", databases=(Database("db1", 5430, where, "dbuser", None, to),)
    )


def test_the_file_is_at_the_usual_place_or_where_it_is_said_to_be() -> None:
    expected = postgres_document(READ_AND_SAVE, "x").options
    assert configure({}, {CONFIG: READ_AND_SAVE}).options == expected
    assert configure({"SIDECAR_CONFIG": "/p.yaml"}, {CONFIG: FROM_NOTHING, "/p.yaml": READ_AND_SAVE}).options == expected
    flags = PostgresFlags(config="/flag.yaml")
    assert configure({"SIDECAR_CONFIG": "/p"}, {"/flag.yaml": READ_AND_SAVE}, flags).options == expected


def test_a_file_that_is_named_must_be_there() -> None:
    assert faults({"SIDECAR_CONFIG": "/no"}) == ["SIDECAR_CONFIG: /no: cannot be read: No such file or directory"]


def test_a_usual_file_that_cannot_be_read_is_a_fault() -> None:
    def refuse(path: str) -> str:
        raise PermissionError(13, "Permission denied", path)

    with pytest.raises(ParametersError, match=f"the configuration file: {CONFIG}: cannot be read: Permission denied"):
        postgres_options(PostgresFlags(), {}, refuse)


def test_a_list_of_databases() -> None:
    assert postgres_document(SEVERAL, "x").options == PostgresOptions("/tmp/coord", stay=True, databases=(DB1, DB2))


def test_variables_with_dictionaries() -> None:
    configured = configure(
        {
            "dm_pg_opts": ";:c:/coord;S;V:false",
            "dm_pg_db_db2": ";:p:5429;m:postgres coordination example input;r:ransom-datamon-test-repo"
            ";sl:pg-coord-example-input;sr:ransom-datamon-test-repo",
            "dm_pg_db_db3": "|=p=5428|sr=r|sb=0123|dd=/data|o=ann",
        }
    )
    assert configured.options == PostgresOptions(
        "/coord",
        stay=True,
        databases=(DB2, Database("db3", 5428, "/data/db3", "ann", Source("db3", "/data/db3", "r", "", "0123"))),
    )


@pytest.mark.parametrize("prefix", ["SIDECAR_GLOBALOPTS_COORDPOINT", "SIDECAR_GLOBALOPTS_COORD_POINT"])
def test_variables_in_capitals(prefix: str) -> None:
    configured = configure(
        {
            prefix: "/coord",
            "SIDECAR_GLOBALOPTS_SLEEPINSTEADOFEXIT": "true",
            "SIDECAR_GLOBALOPTS_SLEEP_TIMEOUT": "7",
            "SIDECAR_GLOBALOPTS_CONTRIBUTOR_NAME": "Ann",
            "SIDECAR_GLOBALOPTS_CONTRIBUTOR_EMAIL": "ann@example.org",
            "SIDECAR_DATABASE_NAME": "db9",
            "SIDECAR_DATABASE_PGPORT": "5430",
            "SIDECAR_DATABASE_DATA_DIR": "/data/",
            "SIDECAR_DATABASE_SRCREPO": "r",
            "SIDECAR_DATABASE_SRC_BUNDLE": "0123",
            "SIDECAR_DATABASE_OWNER": "",
            "SIDECAR_STORE": "file:///store",
        }
    )
    source = Source("db9", "/data/db9", "r", "", "0123")
    assert configured.options == PostgresOptions(
        "/coord",
        stay=True,
        stay_seconds=7,
        contributor="Ann <ann@example.org>",
        databases=(Database("db9", 5430, "/data/db9", "postgres", source),),
    )


def test_with_nothing_configured_there_is_one_database_that_is_not_saved() -> None:
    configured = configure({})
    assert configured.options == PostgresOptions("/tmp/coord", databases=(Database("db", 5432, "/pg_stage/db"),))
    assert configured.notes == ("database 'db' has neither a source nor a destination: it is created empty and not saved",)
    assert postgres_document("", "x").options == configured.options
    assert postgres_document("database:\n", "x").options == configured.options
    assert postgres_document("databases: []\n", "x").options == configured.options


def test_a_source_without_label_and_bundle_is_the_latest() -> None:
    assert configure({"dm_pg_db_a": ";:sr:r"}).options.databases[0].source == Source("a", "/pg_stage/a", "r")


def test_what_has_no_meaning_here_is_ignored_with_a_note() -> None:
    configured = postgres_document("globalOpts:\n  pollInterval: 1\n" + SEVERAL.partition("\n")[2], "p")
    assert configured.notes == ("p line 2: pollInterval is ignored: nothing is polled by the second",)


# --- which value counts, and where it came from --------------------------------------------------------------------


def test_flags_come_before_variables_and_variables_before_the_file_and_the_defaults() -> None:
    configured = configure(
        {"dm_pg_opts": ";:c:/variable;V", "SIDECAR_DATABASE_SRCLABEL": "v2"},
        {CONFIG: READ_AND_SAVE},
        PostgresFlags(coordination="/flag", stay=True),
    )
    assert explain(configured) == [
        ("coordPoint", "/flag", "-c"),
        ("sleepInsteadOfExit", "true", "-s"),
        ("sleepTimeout", "600", "default"),
        ("ignorePGVersionMismatch", "true", "dm_pg_opts"),
        ("user", "postgres", "default"),
        ("databases.db2.pgPort", "5429", f"{CONFIG} line 5"),
        ("databases.db2.dataDir", "/pg_stage", "default"),
        ("databases.db2.owner", "postgres", "default"),
        ("databases.db2.srcRepo", "example-repo", f"{CONFIG} line 6"),
        ("databases.db2.srcLabel", "v2", "SIDECAR_DATABASE_SRCLABEL"),
        ("databases.db2.destRepo", "example-repo", f"{CONFIG} line 8"),
        ("databases.db2.destMessage", "postgres sidecar coordination example (read-write)", f"{CONFIG} line 9"),
        ("databases.db2.archive", "physical", "default"),
        ("databases.db2.upgrade", "auto", "dm_pg_opts"),
        ("databases.db2.freeze", "auto", "default"),
        ("databases.db2.verify", "pages", "default"),
        ("databases.db2.superuser", "false", "default"),
        ("databases.db2.trust", "false", "default"),
        ("databases.db2.pgVersion", "0", "default"),
    ]


def test_the_name_in_capitals_renames_the_only_database_and_picks_one_of_a_list() -> None:
    renamed = configure({"SIDECAR_DATABASE_NAME": "other"}, {CONFIG: READ_AND_SAVE}).options.databases
    assert [(each.name, each.port, each.data_dir) for each in renamed] == [("other", 5429, "/pg_stage/other")]
    picked = configure({"SIDECAR_DATABASE_NAME": "db2", "SIDECAR_DATABASE_PGPORT": "7"}, {CONFIG: SEVERAL}).options.databases
    assert [(each.name, each.port) for each in picked] == [("db1", 5430), ("db2", 7)]
    assert faults({"SIDECAR_DATABASE_PGPORT": "7"}, SEVERAL) == [
        "SIDECAR_DATABASE: name: expected SIDECAR_DATABASE_NAME beside a list of databases, it is missing"
    ]


def test_a_dictionary_replaces_what_the_file_says_of_its_database() -> None:
    databases = configure({"dm_pg_db_db2": ";:sb:0123"}, {CONFIG: SEVERAL}).options.databases
    assert databases[0] == DB1
    assert databases[1].source == Source("db2", "/pg_stage/db2", "ransom-datamon-test-repo", "", "0123")


def test_two_kinds_of_variables_do_not_contradict_each_other() -> None:
    assert faults({"dm_pg_opts": ";:c:/a", "SIDECAR_GLOBALOPTS_COORDPOINT": "/b"}) == [
        "SIDECAR_GLOBALOPTS_COORDPOINT: coordPoint: '/b' contradicts '/a' of dm_pg_opts: expected one of the two"
    ]
    assert faults({"SIDECAR_DATABASE_PGPORT": "1", "SIDECAR_DATABASE_PG_PORT": "2"}) == [
        "SIDECAR_DATABASE_PG_PORT: pgPort: '2' contradicts '1' of SIDECAR_DATABASE_PGPORT: expected one of the two"
    ]
    assert faults({"dm_pg_opts": ";:c:/a", "SIDECAR_GLOBALOPTS_COORDPOINT": "/a"}) == []


# --- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dictionary", "expected"),
    [
        ("p:0", "p: expected a port number from 1 to 65535, not '0'"),
        ("p:65536", "p: expected a port number from 1 to 65535, not '65536'"),
        ("p:5432x", "p: expected a port number from 1 to 65535, not '5432x'"),
        ("p:\u0665", "p: expected a port number from 1 to 65535, not '\u0665'"),
        ("sr:r;sl:l;sb:b", "sb: database 'x' has a bundle id and also the label 'l': expected one of the two"),
        ("sl:l", "sr: expected the repository of the source of database 'x', it is missing"),
        ("r:r", "m: expected the message of the destination of database 'x', it is missing"),
        ("m:m", "r: expected the repository of the destination of database 'x', it is missing"),
        ("l:l;r:r;m:m;dif:id", "dif: expected an absolute path, one that begins with '/', not 'id'"),
        ("dd:data", "dd: expected an absolute path, one that begins with '/', not 'data'"),
        ("o:a\nb", "o: expected a text without control characters, not '\\n'"),
        ("sp:/in", "sp: unknown option; did you mean 'p'?"),
        ("pgPort:1", "pgPort: unknown option; here it is written 'p'"),
    ],
)
def test_a_database_that_breaks_a_rule_is_refused_at_its_place(dictionary: str, expected: str) -> None:
    assert faults({"dm_pg_db_x": f";:{dictionary}"}) == [f"dm_pg_db_x: {expected}"]


@pytest.mark.parametrize("name", ["a/b", "..", ".sidecar", "a b", "a\tb", "mountdone", "uploaddone"])
def test_a_name_that_could_not_be_a_folder_of_the_coordination_directory_is_refused(name: str) -> None:
    assert any(": name: " in fault or "expected a name" in fault for fault in faults({f"dm_pg_db_{name}": ";:p:1"}))
    assert any("expected a name" in fault for fault in faults({"SIDECAR_DATABASE_NAME": name}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("globalOpts:\n  coordPont: /c", "/p line 2: coordPont: unknown key; did you mean 'coordPoint'?"),
        ("globalOpts:\n  sleepTimeout: soon", "/p line 2: sleepTimeout: expected a whole number of seconds, not 'soon'"),
        ("database: []", "/p line 1: expected a mapping with the keys name, pgPort,"),
        ("databases: {}", "/p line 1: databases: expected a list, each item beginning with '- '"),
        ("databases:\n- pgPort: 1", "/p line 2: name: expected a name, it is missing"),
        ("database: {}\ndatabases: []", "/p line 2: databases: given beside database: expected one of the two"),
        (
            "databases:\n- name: a\n- name: b",
            "/p line 3: pgPort: database 'b' has port 5432, and so has 'a': expected another one",
        ),
        (
            "databases:\n- {name: a, pgPort: 1}\n- {name: b, pgPort: 2, dataDir: /pg_stage/a}",
            "/p line 3: dataDir: /pg_stage/a/b of database 'b' lies in /pg_stage/a of 'a': expected another directory",
        ),
        ("database: {name: a b}", "/p line 1: name: database 'a b': expected a name without spaces"),
        ("database: {name: a/b}", "/p line 1: name: expected a name without '/', not 'a/b'"),
    ],
)
def test_a_document_that_cannot_be_followed_is_refused_by_its_line(text: str, expected: str) -> None:
    found = faults({}, text)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_misspelt_variables_are_faults() -> None:
    assert faults({"SIDECAR_DATABASE_PORT": "1", "SIDECAR_GLOBALOPTS_COORDPOIN": "/c", "dm_pg_dbx": ";:p:1"}) == [
        "dm_pg_dbx: unknown variable; did you mean 'dm_pg_db_<name>'?",
        "SIDECAR_DATABASE_PORT: unknown variable; did you mean 'SIDECAR_DATABASE_PGPORT'?",
        "SIDECAR_GLOBALOPTS_COORDPOIN: unknown variable; did you mean 'SIDECAR_GLOBALOPTS_COORDPOINT'?",
    ]


def test_all_faults_are_told_at_once_each_at_its_place() -> None:
    environment = {"dm_pg_opts": ";:c:c;V:maybe", "SIDECAR_DATABASE_PGPORT": "x", "dm_pg_db_other": ";;"}
    assert faults(environment, "database:\n  name: db\n  destRepo: r\n  srcrepo: r\n") == [
        "dm_pg_db_other: both separators are ';': expected another one at character 2",
        "/p line 4: srcrepo: unknown key; did you mean 'srcRepo'?",
        "dm_pg_opts: c: expected an absolute path, one that begins with '/', not 'c'",
        "dm_pg_opts: V: expected true or false, not 'maybe'",
        "SIDECAR_DATABASE_PGPORT: pgPort: expected a port number from 1 to 65535, not 'x'",
        "SIDECAR_DATABASE: destMessage: expected the message of the destination of database 'db', it is missing",
    ]


VARIABLES = st.sampled_from(["dm_pg_opts", "dm_pg_db_a", "SIDECAR_DATABASE_NAME", "SIDECAR_DATABASE_PGPORT"])


@given(st.dictionaries(VARIABLES, st.text()), st.text())
def test_whatever_is_written_means_options_or_faults(environment: dict[str, str], text: str) -> None:
    with suppress(ParametersError):
        configure(environment, {CONFIG: text})


# --- what a server is to be ----------------------------------------------------------------------------------------

# All that may be said of a server beside its place and its bundles: the samples of the following tests say the same.
FULL = Database(
    "d",
    5432,
    "/pg_stage/d",
    "app owner",
    databases=("app", 'a "b"', "it's"),
    settings=(("auto_explain.log_timing", "on"), ("search_path", ""), ("work_mem", "64MB = more")),
    init_scripts=("/sql/1 schema.sql", "/sql/2.sql"),
    archive="logical",
    upgrade="check",
    freeze="always",
    verify="restore",
    superuser=True,
    trust=True,
    password_file="/run/secrets/owner",
    major=17,
    locale="de_DE.UTF-8@euro",
)
FULL_YAML = """\
globalOpts: {user: pg_run-9}
database:
  name: d
  owner: app owner
  databases:
    - app
    - a "b"
    - it's
  settings:
    work_mem: 64MB = more
    Auto_Explain.Log_timing: on
    search_path: ""
  initScripts: [/sql/1 schema.sql, /sql//2.sql]
  archive: logical
  upgrade: check
  freeze: always
  verify: restore
  superuser: yes
  trust: true
  passwordFile: /run/secrets/owner
  pgVersion: 17
  locale: de_DE.UTF-8@euro
"""
FULL_WORDS = {
    "databases": """app 'a "b"' "it's\"""",
    "settings": "work_mem='64MB = more' Auto_Explain.Log_timing=on search_path=",
    "initScripts": "'/sql/1 schema.sql' /sql//2.sql",
    "archive": "logical",
    "upgrade": "check",
    "freeze": "always",
    "verify": "restore",
    "superuser": "1",
    "trust": "on",
    "passwordFile": "/run/secrets/owner",
    "pgVersion": "17",
    "locale": "de_DE.UTF-8@euro",
}
CODES = ("db", "set", "is", "a", "u", "f", "v", "su", "tr", "pf", "pv", "lc")


def database(text: str) -> Database:
    """Return the only database of a document, which is what the text says of it."""
    return postgres_document(f"database:\n  {text}", "p").options.databases[0]


def wrong(text: str) -> list[str]:
    """Return what is wrong with a document of what is said of one database; it is the second line of p."""
    with pytest.raises(ParametersError) as caught:
        database(text)
    return [str(fault) for fault in caught.value.faults]


def test_all_that_a_server_is_to_be_can_be_said_in_yaml() -> None:
    options = postgres_document(FULL_YAML, "p").options
    assert (options.user, options.databases) == ("pg_run-9", (FULL,))


def test_all_that_a_server_is_to_be_can_be_said_in_a_dictionary() -> None:
    entries = [f"{code}|{text}" for code, text in zip(CODES, FULL_WORDS.values(), strict=True)]
    options = configure({"dm_pg_opts": ";:u:pg_run-9", "dm_pg_db_d": ";|" + ";".join(["o|app owner", *entries])}).options
    assert (options.user, options.databases) == ("pg_run-9", (FULL,))
    switched = configure({"dm_pg_db_d": ";:su;tr"}).options.databases[0]
    assert (switched.superuser, switched.trust) == (True, True)


def test_all_that_a_server_is_to_be_can_be_said_in_capitals() -> None:
    environment = {f"SIDECAR_DATABASE_{key.upper()}": text for key, text in FULL_WORDS.items()}
    environment |= {"SIDECAR_DATABASE_NAME": "d", "SIDECAR_DATABASE_OWNER": "app owner", "SIDECAR_GLOBALOPTS_USER": "pg_run-9"}
    options = configure(environment).options
    assert (options.user, options.databases) == ("pg_run-9", (FULL,))
    assert configure({"SIDECAR_DATABASE_INIT_SCRIPTS": "/a"}).options.databases[0].init_scripts == ("/a",)


def test_no_two_things_are_called_the_same() -> None:
    for fields in (POD, DATABASE):
        for names in ([each.key.lower() for each in fields], [each.code for each in fields if each.code]):
            assert len(set(names)) == len(names)


def test_a_server_is_by_default_as_careful_as_it_can_be_and_as_cheap() -> None:
    assert database("name: d") == Database("d", 5432, "/pg_stage/d")
    assert Database("d", 5432, "/pg_stage/d") == Database(
        "d",
        5432,
        "/pg_stage/d",
        "postgres",
        None,
        None,
        (),
        (),
        (),
        "physical",
        "never",
        "auto",
        "pages",
        False,
        False,
        "",
        0,
        "",
    )
    assert (PostgresOptions("/c").user, PostgresFlags()) == ("postgres", PostgresFlags(user="", trust=False))


def test_a_single_value_is_a_list_of_one() -> None:
    assert database("databases: my db").databases == ("my db",)
    assert database("initScripts: /my script.sql").init_scripts == ("/my script.sql",)


@pytest.mark.parametrize("nothing", ["", "~", "null", "[]", "''", "[~, null]"])
def test_a_list_of_nothing_is_not_given(nothing: str) -> None:
    configured = postgres_document(f"database: {{databases: {nothing}, initScripts: {nothing}}}", "p")
    assert configured.options.databases[0] == Database("db", 5432, "/pg_stage/db")
    assert not [key for key, _, _ in explain(configured) if key.endswith(("databases", "initScripts"))]


@pytest.mark.parametrize("nothing", ["", "~", "{}", "{work_mem: }", "{work_mem: ~}"])
def test_a_mapping_of_nothing_is_not_given(nothing: str) -> None:
    assert database(f"settings: {nothing}").settings == ()


def test_a_list_of_spaces_in_a_variable_is_empty() -> None:
    assert configure({"SIDECAR_DATABASE_DATABASES": " \t"}).options.databases[0].databases == ()


def test_values_of_settings_stand_as_they_are_written() -> None:
    text = "settings: {a: on, b: 1.10, c: 0x1F, d: 2026-01-02, e: '', f: '~', g: \"#\", h: 'x\ty'}"
    assert database(text).settings == (
        ("a", "on"), ("b", "1.10"), ("c", "0x1F"), ("d", "2026-01-02"), ("e", ""), ("f", "~"), ("g", "#"), ("h", "x\ty"),
    )  # fmt: skip


def test_words_of_a_variable_are_split_and_not_evaluated() -> None:
    words = r"""a\ b "c d" 'e f'g $HOME $(touch\ x) `id` ~ * #h ; | & > {1,2}"""
    assert configure({"SIDECAR_DATABASE_DATABASES": words}).options.databases[0].databases == (
        "a b", "c d", "e fg", "$HOME", "$(touch x)", "`id`", "~", "*", "#h", ";", "|", "&", ">", "{1,2}",
    )  # fmt: skip


def test_lists_and_mappings_are_shown_as_variables_have_them() -> None:
    shown = {key: (value, where) for key, value, where in explain(postgres_document(FULL_YAML, "p"))}
    assert shown["user"] == ("pg_run-9", "p line 1")
    assert shown["databases.d.databases"] == ("app 'a \"b\"' 'it'\"'\"'s'", "p line 6")
    settings = "auto_explain.log_timing=on search_path= 'work_mem=64MB = more'"
    assert shown["databases.d.settings"] == (settings, "p line 10")
    assert shown["databases.d.initScripts"] == ("'/sql/1 schema.sql' /sql/2.sql", "p line 13")
    assert shown["databases.d.passwordFile"] == ("/run/secrets/owner", "p line 20")
    again = {"dm_pg_db_d": f"\x01\x02set\x02{settings}\x01is\x02{shown['databases.d.initScripts'][0]}"}
    assert configure(again).options.databases[0].settings == FULL.settings
    assert configure(again).options.databases[0].init_scripts == FULL.init_scripts


def test_a_stronger_list_or_mapping_replaces_a_weaker_one() -> None:
    found = configure({"dm_pg_db_d": ";:db:other;set:work_mem=1MB"}, {CONFIG: FULL_YAML}).options.databases[0]
    assert found == replace(FULL, databases=("other",), settings=(("work_mem", "1MB"),))


@pytest.mark.parametrize("value", ["true", "on", "1"])
def test_who_ignores_versions_has_sources_of_other_versions_upgraded(value: str) -> None:
    text = "globalOpts: {ignorePGVersionMismatch: %s}\ndatabases: [{name: a}, {name: b, pgPort: 1, upgrade: %s}]"
    configured = postgres_document(text % (value, "never"), "p")
    assert [each.upgrade for each in configured.options.databases] == ["auto", "never"]
    assert ("databases.a.upgrade", "auto", "p line 1") in explain(configured)
    assert [each.upgrade for each in postgres_document(text % ("no", "check"), "p").options.databases] == ["never", "check"]
    flagged = configure({"dm_pg_db_b": ";:u:check"}, {CONFIG: text % ("no", "never")}, PostgresFlags(ignore_version=True))
    assert [each.upgrade for each in flagged.options.databases] == ["auto", "check"]
    assert ("databases.a.upgrade", "auto", "-V") in explain(flagged)


def test_trust_is_asked_for_of_one_database_or_by_a_flag_of_all() -> None:
    text = "databases: [{name: a}, {name: b, pgPort: 1, trust: true}, {name: c, pgPort: 2, trust: false}]"
    assert [each.trust for each in postgres_document(text, "p").options.databases] == [False, True, False]
    flagged = configure({"dm_pg_db_a": ";:tr:false"}, {CONFIG: text}, PostgresFlags(trust=True))
    assert [each.trust for each in flagged.options.databases] == [True, True, True]
    assert [where for key, _, where in explain(flagged) if key.endswith(".trust")] == ["--trust"] * 3
    assert configure({}, flags=PostgresFlags(trust=True)).options.databases[0].trust


def test_trust_is_no_option_of_the_pod_that_a_file_could_give_all_its_databases() -> None:
    assert faults({}, "globalOpts: {trust: true}")[0].startswith("/p line 1: trust: unknown key")
    assert faults({"dm_pg_opts": ";:tr"})[0].startswith("dm_pg_opts: tr: unknown option")


def test_the_user_of_a_flag_comes_before_others() -> None:
    configured = configure({"dm_pg_opts": ";:u:b"}, {CONFIG: "globalOpts: {user: c}"}, PostgresFlags(user="a"))
    assert (configured.options.user, explain(configured)[4]) == ("a", ("user", "a", "--user"))
    with pytest.raises(ParametersError, match="--user: expected the name of a user"):
        configure({}, flags=PostgresFlags(user="A"))


def test_what_is_given_and_not_needed_is_told() -> None:
    assert postgres_document("database: {srcRepo: r, initScripts: /a, trust: 1, passwordFile: /b}", "p").notes == (
        "database 'db' has a source: initScripts are not run, nothing is created",
        "database 'db' asks for no password: passwordFile is not needed",
    )


@pytest.mark.parametrize("name", ["a", "a b", "a'b", 'a"b', "a;b", "$(touch x)", "-x", "..", "a/b", "ä" * 31, "x" * 63, "Public"])
def test_names_of_roles_and_databases_are_those_that_sql_takes_between_quotes(name: str) -> None:
    found = database(f"{{owner: {json.dumps(name)}, databases: [{json.dumps(name)}]}}")
    assert (found.owner, found.databases) == (name, (name,))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x" * 64, f"expected a name of 1 to 63 bytes, not {'x' * 64!r}"),
        ("ä" * 32, f"expected a name of 1 to 63 bytes, not {'ä' * 32!r}"),
        ("a\0b", "expected a text without control characters, not '\\x00'"),
        ("a\nb", "expected a text without control characters, not '\\n'"),
        ("a\x1b[2J", "expected a text without control characters, not '\\x1b'"),
        ("a\x85", "expected a text without control characters, not '\\x85'"),
        ("a\ud800", "expected a text in UTF-8"),
    ],
)
def test_names_of_roles_and_databases_that_sql_does_not_take_are_refused(name: str, expected: str) -> None:
    assert wrong(f"{{owner: {json.dumps(name)}, databases: [ok, {json.dumps(name)}]}}") == [
        f"p line 2: owner: {expected}",
        f"p line 2: databases: {expected}",
    ]


def test_a_database_without_a_name_is_refused() -> None:
    assert wrong("databases: ['']") == ["p line 2: databases: expected a name of 1 to 63 bytes, not ''"]
    assert faults({"SIDECAR_DATABASE_DATABASES": "a ''"}) == [
        "SIDECAR_DATABASE_DATABASES: databases: expected a name of 1 to 63 bytes, not ''"
    ]


@pytest.mark.parametrize("name", ["pg_", "pg_monitor", "public", "none"])
def test_an_owner_of_a_name_that_postgres_keeps_is_refused(name: str) -> None:
    expected = f"Postgres keeps the name {name!r} for itself: expected another, one that does not begin with 'pg_'"
    assert wrong(f"owner: {name}") == [f"p line 2: owner: {expected}"]


def test_an_owner_of_the_name_of_the_battery_is_refused() -> None:
    assert wrong(f"owner: {ADMIN}") == ["p line 2: owner: the battery itself is the role 'sidecar': expected another name"]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("listen_addresses=*", "listen_addresses cannot be set: the battery decides where a server listens"),
        ("port=1", "port cannot be set: it is the database's pgPort"),
        ("unix_socket_directories=/", "unix_socket_directories cannot be set: the battery decides where a server listens"),
        ("unix_socket_permissions=0777", "unix_socket_permissions cannot be set: the battery decides who may connect"),
        ("unix_socket_group=x", "unix_socket_group cannot be set: the battery decides who may connect"),
        ("hba_file=/x", "hba_file cannot be set: the battery decides who may connect"),
        ("ident_file=/x", "ident_file cannot be set: the battery decides who may connect"),
        ("config_file=/x", "config_file cannot be set: the battery decides where a server's files are"),
        ("data_directory=/x", "data_directory cannot be set: it is the database's dataDir and name"),
        ("external_pid_file=/x", "external_pid_file cannot be set: the battery decides where a server's files are"),
        ("logging_collector=on", "logging_collector cannot be set: the battery reads what a server writes to its standard error"),
        ("log_destination=csvlog", "log_destination cannot be set: the battery reads what a server writes to its standard error"),
        (
            "ssl_passphrase_command=id",
            "ssl_passphrase_command cannot be set: a server listens to its own pod alone and has no key with a passphrase",
        ),
        ("fsync=off", "fsync stays on, or a row that was committed could be lost: expected 'on', not 'off'"),
        ("full_page_writes=0", "full_page_writes stays on, or a row that was committed could be lost: expected 'on', not '0'"),
        ("fsync=", "fsync stays on, or a row that was committed could be lost: expected 'on', not ''"),
    ],
)
def test_a_setting_that_is_for_the_battery_to_decide_is_refused_and_said_why(setting: str, expected: str) -> None:
    name, _, value = setting.partition("=")
    assert wrong(f"settings: {{{name.upper()}: {json.dumps(value)}}}") == [f"p line 2: settings: {expected}"]
    assert faults({"dm_pg_db_x": f";:set:{shlex.quote(setting)}"}) == [f"dm_pg_db_x: set: {expected}"]


def test_settings_that_are_always_on_may_be_said_to_be() -> None:
    assert database("settings: {fsync: on, FULL_PAGE_WRITES: on}").settings == (("fsync", "on"), ("full_page_writes", "on"))


@pytest.mark.parametrize("name", ["1a", "a-b", "a b", "$(touch x)", "ä", ".a", "--port", "a\nport", "work_mem\n"])
def test_a_setting_of_a_name_that_no_setting_has_is_refused(name: str) -> None:
    expected = f"expected the name of a setting, such as work_mem or auto_explain.log_timing, not {name!r}"
    assert wrong(f"settings: {{? {json.dumps(name)} : 1}}") == [f"p line 2: settings: {expected}"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\nb", "expected a value of one line for x, not 'a\\nb'"),
        ("a\r", "expected a value of one line for x, not 'a\\r'"),
        ("a\0", "expected a text without the character NUL"),
        ("a\ud800", "expected a text in UTF-8"),
    ],
)
def test_a_setting_of_a_value_that_no_setting_has_is_refused(value: str, expected: str) -> None:
    assert wrong(f"settings: {{x: {json.dumps(value)}}}") == [f"p line 2: settings: {expected}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("databases: {a: b}", "databases: expected a list, or a single value"),
        ("databases: [[a]]", "databases: expected a single value"),
        ("databases: [a, {b: c}]", "databases: expected a single value"),
        ("databases: [a, b, a]", "databases: 'a' is given twice: expected it once"),
        ("initScripts: [sql]", "initScripts: expected an absolute path, one that begins with '/', not 'sql'"),
        ("initScripts: [/a, //a]", "initScripts: '/a' is given twice: expected it once"),
        ("initScripts: /a/", "initScripts: expected the path of a file, not of a directory, '/a/'"),
        ("initScripts: /../a", "initScripts: expected a path without '..', not '/../a'"),
        ('initScripts: "/\\ud800"', "initScripts: expected a path that a file may have, not '/\\ud800'"),
        ("settings: a=1", "settings: expected a mapping, each line of it NAME: VALUE"),
        ("settings: [a=1]", "settings: expected a mapping, each line of it NAME: VALUE"),
        ("settings: {a: [1]}", "settings.a: expected a single value"),
        ("settings: {a: {b: 1}}", "settings.a: expected a single value"),
        ("settings: {a: 1, A: 2}", "settings: 'a' is given twice: expected it once"),
        ("settings: {a: 1, a: 1}", "a: given twice, first in line 2"),
        ("settings: {a=port: 1}", "settings: expected a name without '=', not 'a=port'"),
        ("settings: {'': 1}", "settings: expected a name"),
        ("settings: {[a]: 1}", "settings: expected a name"),
        ("settings: {<<: {a: 1}}", "<<: merging is not supported: expected the keys themselves"),
        ("archive: both", "archive: expected physical or logical, not 'both'"),
        ("archive: Logical", "archive: expected physical or logical, not 'Logical'"),
        ("upgrade: yes", "upgrade: expected never, check or auto, not 'yes'"),
        ("freeze: off", "freeze: expected auto, always or never, not 'off'"),
        ("verify: none", "verify: expected pages or restore, not 'none'"),
        ("superuser: maybe", "superuser: expected true or false, not 'maybe'"),
        ("trust: 2", "trust: expected true or false, not '2'"),
        ("passwordFile: secret", "passwordFile: expected an absolute path, one that begins with '/', not 'secret'"),
        *(
            (
                f"pgVersion: {value}",
                f"pgVersion: expected a major version of Postgres from 12 to 18, or 0 for the one that is found, not {value!r}",
            )
            for value in ("11", "19", "9.6", "17.2", "+17", "017", "-1", "\u0661\u0665")
        ),
        *(
            (
                f"locale: {json.dumps(value)}",
                f"locale: expected the name of a locale, such as C.UTF-8 or en_US.UTF-8, not {value!r}",
            )
            for value in ("a b", "../C", "C;id", "$(id)", "dé", "C\n", "-C", "C" * 128)
        ),
    ],
)
def test_what_a_server_cannot_be_is_refused_at_its_place(text: str, expected: str) -> None:
    assert wrong(text) == [f"p line 2: {expected}"]


@pytest.mark.parametrize("name", ["Postgres", "0a", "-a", "a b", "a;id", "$(id)", "ä", "a" * 33, "a\n", "1000"])
def test_an_account_of_another_name_than_accounts_have_is_refused(name: str) -> None:
    expected = f"user: expected the name of a user, at most 32 of a-z, 0-9, _ and -, not {name!r}"
    assert faults({}, f"globalOpts: {{user: {json.dumps(name)}}}") == [f"/p line 1: {expected}"]


def test_no_server_runs_as_root() -> None:
    assert faults({"dm_pg_opts": ";:u:root"}) == ["dm_pg_opts: u: root never runs a server: expected another user"]


def test_every_bad_item_of_a_list_is_told() -> None:
    assert faults({"dm_pg_db_x": ";:is:a /b c/;set:a port=1 fsync=off"}) == [
        "dm_pg_db_x: set: expected NAME=VALUE, not 'a'",
        "dm_pg_db_x: set: port cannot be set: it is the database's pgPort",
        "dm_pg_db_x: set: fsync stays on, or a row that was committed could be lost: expected 'on', not 'off'",
        "dm_pg_db_x: is: expected an absolute path, one that begins with '/', not 'a'",
        "dm_pg_db_x: is: expected the path of a file, not of a directory, 'c/'",
    ]


def test_a_list_whose_quotes_do_not_end_is_refused() -> None:
    assert faults({"dm_pg_db_x": ";:db:a 'b"}) == ['dm_pg_db_x: db: cannot be split into words: no closing quotation in "a \'b"']


def test_a_list_that_a_few_aliases_make_huge_is_refused_for_what_it_costs() -> None:
    long, aliases = "x" * 60_000, ", *a" * 10_000
    for text in (f"databases: [&a {long}{aliases}]", f"initScripts: [&a /{long}{aliases}]"):
        assert ": expected at most 131072 characters, not " in wrong(text)[0]
    many = "".join(f", a{number}: *a" for number in range(10_000))
    assert "settings: expected at most 131072 characters, not " in wrong(f"settings: {{a: &a {long}{many}}}")[0]
    assert faults({"dm_pg_db_x": ";:db:" + "x" * (WORDS_LIMIT + 1)})[0].endswith("not 131073")


# No surrogates: they are no text.
TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=15)


def quoted(text: str) -> str:
    """Return a text between the double quotes of YAML, which has a form for every character."""
    return '"{}"'.format("".join(f"\\U{ord(c):08x}" for c in text))


@given(st.lists(TEXTS, unique=True))
@example(["a b", "'", '"', "\\", "$(touch x)", "#", "~", "[]", " "])
def test_any_list_of_yaml_arrives_as_it_is(names: list[str]) -> None:
    assert database(f"databases: [{', '.join(map(quoted, names))}]").databases == tuple(names)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_.]{0,9}_x", fullmatch=True), TEXTS))
@example({"a_x": "$(touch x)", "b_x": "=", "c_x": " '\"\\"})
def test_any_mapping_of_yaml_arrives_as_it_is(settings: dict[str, str]) -> None:
    text = ", ".join(f"{name}: {quoted(value)}" for name, value in settings.items())
    assert database(f"settings: {{{text}}}").settings == tuple(sorted(settings.items()))


def said(environment: Mapping[str, str], text: str) -> str:
    """Return all that is said of a configuration: its values, or what is wrong with it."""
    try:
        return "\n".join(value for _, value, _ in explain(configure(environment, {CONFIG: text})))
    except ParametersError as error:
        return str(error)


@pytest.mark.parametrize("field", [*DATABASE, *POD], ids=lambda field: field.key)
@pytest.mark.parametrize("form", ["{}", "/{}", "'{}'", "'/{}'", "'name={}'", "{}@host"])
def test_a_command_within_any_parameter_stays_text(
    field: Field, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = form.format("$(touch${IFS}x)")
    variable, capitals, top = (
        ("dm_pg_db_db", "DATABASE", "database") if field in DATABASE else ("dm_pg_opts", "GLOBALOPTS", "globalOpts")
    )
    node = f"{{name: {quoted(text)}}}" if field.kind == "pairs" else quoted(text)
    for part in reversed(field.key.split(".")):
        node = f"{{{part}: {node}}}"
    ways = [
        said({f"SIDECAR_{capitals}_{field.key.replace('.', '').upper()}": text}, ""),
        said({}, f"{top}: {node}"),
        *([said({variable: f";|{field.code}|{text}"}, "")] if field.code else []),
    ]
    # Half of a pair, such as a label without a repository, is told by what is missing.
    assert all("$(touch${IFS}x)" in way or "missing" in way for way in ways)
    assert list(tmp_path.iterdir()) == []


# --- for a shell ---------------------------------------------------------------------------------------------------

PRINT_ENVIRONMENT = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(b'='.join(each) for each in os.environb.items()))"


@pytest.mark.parametrize("text", [FROM_NOTHING, READ_AND_SAVE.replace("(", "it's $(id) `id` \"\\ ;|:("), SEVERAL, ""])
def test_exported_lines_configure_the_same(text: str) -> None:
    configured = postgres_document(text, "x")
    lines = "\n".join(export_lines(postgres_variables(configured)))
    command = ["/bin/sh", "-c", 'eval "$LINES"; unset LINES; exec "$@"', "sh", sys.executable, "-c", PRINT_ENVIRONMENT]
    out = subprocess.run(command, env={"LINES": lines}, capture_output=True, check=True).stdout
    environment = dict(os.fsdecode(entry).split("=", 1) for entry in out.split(b"\0"))
    assert configure(environment).options == configured.options


def test_every_option_is_exported() -> None:
    text = """
globalOpts:
  {coordPoint: /c, sleepInsteadOfExit: 1, sleepTimeout: 5, ignorePGVersionMismatch: on, contributor: {name: A, email: a@b}}
database: {name: d, pgPort: 1, dataDir: /d, owner: o, srcRepo: r, srcBundle: b, destRepo: s, destMessage: m,
  destLabel: l, destBundleID: /id}
"""
    configured = postgres_document(text, "x")
    assert export_lines(postgres_variables(configured)) == [
        "export dm_pg_opts=';:c:/c;S;t:5;V:true;n:A;e:a@b'",
        "export dm_pg_db_d=';:p:1;dd:/d;o:o;sr:r;sb:b;m:m;l:l;r:s;dif:/id'",
    ]
    assert configure(postgres_variables(configured)).options == configured.options


def test_a_name_that_no_shell_variable_has_is_a_fault() -> None:
    with pytest.raises(ParametersError) as caught:
        postgres_variables(postgres_document("database:\n  name: a-b\n  pgPort: 1\n", "p"))
    assert [str(fault) for fault in caught.value.faults] == [
        "p line 3: name: 'a-b' cannot be part of a shell variable: expected letters, digits and _"
    ]


def test_the_command_prints_the_lines() -> None:
    result = CliRunner().invoke(parameters, ["postgres"], input=SEVERAL)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == export_lines(postgres_variables(postgres_document(SEVERAL, "x")))
    failed = CliRunner().invoke(parameters, ["postgres"], input="database:\n  pgPort: x\n")
    assert str(failed.exception) == "stdin line 2: pgPort: expected a port number from 1 to 65535, not 'x'"
