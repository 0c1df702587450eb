"""What a user of the datamon postgres sidecar writes, and the options it means; what is wrong, and where."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cli.parameters import parameters
from sidecar.errors import ParametersError
from sidecar.parameters.exports import export_lines, postgres_variables
from sidecar.parameters.fuse import Destination, Source
from sidecar.parameters.postgres import (
    CONFIG,
    Database,
    PostgresFlags,
    PostgresOptions,
    postgres_document,
    postgres_options,
)
from sidecar.parameters.settings import Configured, explain

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
            "dm_pg_opts": ";:c:/coord;S;V:true",
            "dm_pg_db_db2": ";:p:5429;m:postgres coordination example input;r:ransom-datamon-test-repo"
            ";sl:pg-coord-example-input;sr:ransom-datamon-test-repo",
            "dm_pg_db_db3": "|=p=5428|sr=r|sb=0123|dd=/data|o=ann",
        }
    )
    assert configured.options == PostgresOptions(
        "/coord",
        stay=True,
        ignore_version=True,
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
        ("databases.db2.pgPort", "5429", f"{CONFIG} line 5"),
        ("databases.db2.dataDir", "/pg_stage", "default"),
        ("databases.db2.owner", "postgres", "default"),
        ("databases.db2.srcRepo", "example-repo", f"{CONFIG} line 6"),
        ("databases.db2.srcLabel", "v2", "SIDECAR_DATABASE_SRCLABEL"),
        ("databases.db2.destRepo", "example-repo", f"{CONFIG} line 8"),
        ("databases.db2.destMessage", "postgres sidecar coordination example (read-write)", f"{CONFIG} line 9"),
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
