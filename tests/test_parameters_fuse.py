"""What a user of the datamon fuse sidecar writes, and the options it means; what is wrong, and where."""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cli.parameters import parameters
from sidecar.errors import ParametersError
from sidecar.parameters.document import LIMIT
from sidecar.parameters.exports import export_lines, fuse_variables
from sidecar.parameters.fuse import Destination, FuseFlags, FuseOptions, Source, fuse_document, fuse_options
from sidecar.parameters.settings import Configured, explain, store_name
from sidecar.store.format import check_name

REPO, MESSAGE = "ransom-datamon-test-repo", "result of container coordination demo"
INPUT = Source("input", "/tmp/mount", REPO, "testlabel")
OUTPUT = Destination("output", "/tmp/upload", REPO, MESSAGE, "coordemo", "/tmp/bundleid.txt")
# As datamon's own writer of these files wrote them: every key, empty where it is not given.
DATAMON_YAML = """\
globalOpts:
  sleepInsteadOfExit: false
  coordPoint: /tmp/coord
  configBucketName: datamon-config-test-sdjfhga
  contextName: datamon-sidecar-test
bundles:
- name: input
  srcPath: /tmp/mount
  srcRepo: ransom-datamon-test-repo
  srcLabel: testlabel
  srcBundle: ""
  destPath: ""
  destRepo: ""
  destMessage: ""
  destLabel: ""
  destBundleID: ""
- name: output
  srcPath: ""
  destPath: /tmp/upload
  destRepo: ransom-datamon-test-repo
  destMessage: result of container coordination demo
  destLabel: coordemo
  destBundleID: /tmp/bundleid.txt
"""
# The command of the datamon documentation, as it stands there.
DATAMON_COMMANDS = (
    "config create",
    'bundle upload --path /tmp/upload --message "result of container coordination demo"'
    " --repo ransom-datamon-test-repo --label coordemo",
    "bundle mount --repo ransom-datamon-test-repo --label testlabel --mount /tmp/mount --stream",
)
SOURCE = ";:sp:/in;sr:r;sl:v1"
MOUNT = "bundle mount --repo r --label v1 --mount /in"
UPLOAD = "bundle upload --path /out --repo r --message m"
COMMANDS = "expected one of 'config create', 'bundle mount', 'bundle download', 'bundle upload'"


def configure(
    *commands: str, files: Mapping[str, str] = MappingProxyType({}), flags: FuseFlags | None = None, **environment: str
) -> Configured[FuseOptions]:
    def read_file(path: str) -> str:
        return files[path] if path in files else read_nothing(path)

    return fuse_options(flags or FuseFlags(coordination="/c", commands=commands), environment, read_file)


def read_nothing(path: str) -> str:
    raise FileNotFoundError(2, "No such file or directory", path)


def faults(*commands: str, **environment: str) -> list[str]:
    """Return what is wrong; `yaml` stands for dm_fuse_params."""
    if "yaml" in environment:
        environment["dm_fuse_params"] = environment.pop("yaml")
    try:
        fuse_options(FuseFlags(coordination="/c", commands=commands), environment, read_nothing)
    except ParametersError as error:
        return [str(fault) for fault in error.faults]
    return []


# --- what may be written -------------------------------------------------------------------------------------------


def test_the_command_of_the_documentation() -> None:
    configured = configure(*DATAMON_COMMANDS)
    assert configured.options == FuseOptions(
        "/c",
        sources=(Source("mount-1", "/tmp/mount", REPO, "testlabel"),),
        destinations=(Destination("upload-1", "/tmp/upload", REPO, MESSAGE, "coordemo"),),
    )
    assert configured.notes == ("-d #3: --stream is ignored: the battery decides how a bundle is presented",)


def test_a_file_that_datamon_wrote() -> None:
    configured = configure(flags=FuseFlags(), dm_fuse_params="/p.yaml", files={"/p.yaml": DATAMON_YAML})
    assert configured.options == FuseOptions(
        "/tmp/coord",
        config_bucket="datamon-config-test-sdjfhga",
        context="datamon-sidecar-test",
        sources=(INPUT,),
        destinations=(OUTPUT,),
    )


def test_a_document_may_stand_in_the_variable_itself() -> None:
    assert configure(flags=FuseFlags(), dm_fuse_params=DATAMON_YAML).options == fuse_document(DATAMON_YAML, "x").options


@pytest.mark.parametrize(
    "text", ["{globalOpts: {coordPoint: /c}, bundles: []}", "bundles: []", "globalOpts:\n  coordPoint: /c", "bundles:"]
)
def test_a_document_is_told_from_a_path(text: str) -> None:
    assert all(fault.startswith("bundles: neither") for fault in faults(yaml=text))


@pytest.mark.parametrize("path", ["/p.yaml", "p.yaml", " /p.yaml\n", "/odd: name.yaml"])
def test_a_path_is_told_from_a_document(path: str) -> None:
    assert configure(dm_fuse_params=path, files={path.strip(): DATAMON_YAML}).options.sources == (INPUT,)


def test_variables() -> None:
    configured = configure(
        flags=FuseFlags(),
        dm_fuse_opts=";:c:/tmp/coord;S;b:bucket;a:dev;n:Ann Onym;e:ann@example.org",
        dm_fuse_bd_input=";:sp:/tmp/mount;sr:r;sb:1INzQ5TV4vAAfU2PbRFgPfnzEwR",
        dm_fuse_bd_output="|=dp=/tmp/upload|dr=r|dm=all; of: it|dl=l|dif=/tmp/id",
        dm_fuse_bd_empty="",
        PATH="/bin",
    )
    assert configured.options == FuseOptions(
        "/tmp/coord",
        stay=True,
        config_bucket="bucket",
        context="dev",
        contributor="Ann Onym <ann@example.org>",
        sources=(Source("input", "/tmp/mount", "r", bundle="1INzQ5TV4vAAfU2PbRFgPfnzEwR"),),
        destinations=(Destination("output", "/tmp/upload", "r", "all; of: it", "l", "/tmp/id"),),
    )


def test_commands_are_split_as_a_shell_splits_them() -> None:
    configured = configure(
        "config create --name 'Ann Onym' --email=ann@example.org --config bucket --context dev",
        "  bundle\tupload --path=/out --repo 'r' --message='it''s \"m\"'  --bundle-id-file /id",
        "bundle mount --repo r --mount /in --bundle 0123 --stream=false --concurrency-factor 3 --cache-size=50MB",
    )
    assert configured.options == FuseOptions(
        "/c",
        config_bucket="bucket",
        context="dev",
        contributor="Ann Onym <ann@example.org>",
        sources=(Source("mount-1", "/in", "r", bundle="0123"),),
        destinations=(Destination("upload-1", "/out", "r", 'its "m"', "", "/id"),),
    )


def test_a_mount_command_without_label_and_bundle_takes_the_latest() -> None:
    assert configure("bundle mount --repo r --mount /in").options.sources == (Source("mount-1", "/in", "r"),)


def test_a_download_command_is_a_source_that_is_never_mounted() -> None:
    configured = configure(
        "bundle download --repo r --label v1 --destination /in --concurrency-factor 3", MOUNT.replace("/in", "/m")
    )
    assert configured.options.sources == (
        Source("download-1", "/in", "r", "v1", populate=True),
        Source("mount-1", "/m", "r", "v1"),
    )
    assert ("bundles.download-1.srcPopulate", "true", "-d #1") in explain(configured)


@pytest.mark.parametrize("command", ["bundle download --repo r --destination /in", "bundle mount --repo r --mount /in"])
def test_a_source_may_be_a_part_of_its_bundle(command: str) -> None:
    configured = configure(f"{command} --name-filter '^2026/.*[.]csv$' --files 2026/ --files=/read.me")
    (source,) = configured.options.sources
    assert (source.name_filter, source.files) == ("^2026/.*[.]csv$", ("2026", "read.me"))
    shown = {key.rpartition(".")[2]: value for key, value, _ in explain(configured)}
    assert (shown["srcNameFilter"], shown["srcFiles"]) == ("^2026/.*[.]csv$", "2026 read.me")


@pytest.mark.parametrize("flags", ["", "--name-filter= --files=", "--name-filter '' --files '' --files ''"])
def test_an_empty_filter_is_as_none(flags: str) -> None:
    assert configure(f"{MOUNT} {flags}").options.sources == (Source("mount-1", "/in", "r", "v1"),)


@given(
    st.lists(st.text(st.characters(exclude_characters="/"), min_size=1).filter(lambda name: name not in (".", "..")), max_size=4)
)
def test_files_may_have_any_name(names: list[str]) -> None:
    flags = " ".join(f"--files={shlex.quote(name)}" for name in names)
    assert configure(f"{MOUNT} {flags}").options.sources[0].files == tuple(names)


@pytest.mark.parametrize(("flag", "skips"), [("", False), (" --skip-on-error", True), (" --skip-on-error=false", False)])
def test_an_upload_may_leave_out_what_cannot_be_read(flag: str, skips: bool) -> None:
    configured = configure(f"bundle upload{flag} --path /out --repo r --message m")
    assert configured.options.destinations == (Destination("upload-1", "/out", "r", "m", skip_on_error=skips),)


def test_what_tunes_the_datamon_binary_is_ignored_with_a_note() -> None:
    configured = configure(f"{MOUNT} --prefetch 3 --cpuprof --loglevel=debug", f"{UPLOAD} --concurrency-factor 7")
    assert [note.partition(":")[0] + note.partition(":")[2].partition(" is")[0] for note in configured.notes] == [
        "-d #1 --prefetch",
        "-d #1 --cpuprof",
        "-d #1 --loglevel",
        "-d #2 --concurrency-factor",
    ]


def test_values_of_a_document_are_taken_as_they_are_written() -> None:
    configured = fuse_document(
        """
globalOpts: {coordPoint: /c, sleepInsteadOfExit: yes, contextName: ~}
bundles:
- {name: 007, srcPath: /in, srcRepo: on, srcLabel: 1.10}
- {name: out, destPath: /out, destRepo: 2020-01-01, destMessage: "two\\nlines", destLabel: }
""",
        "x",
    )
    assert configured.options.stay is True
    assert configured.options.context == ""
    assert configured.options.sources == (Source("007", "/in", "on", "1.10"),)
    assert configured.options.destinations == (Destination("out", "/out", "2020-01-01", "two\nlines"),)


def test_paths_are_normalized() -> None:
    options = configure("bundle mount --repo r --mount //in/./a//").options
    assert options.sources[0].path == "/in/a"


def test_a_bundle_id_file_is_that_of_the_only_upload() -> None:
    flags = FuseFlags(coordination="/c", bundle_id_file="/id", commands=(MOUNT, UPLOAD))
    assert configure(flags=flags).options.destinations[0].bundle_id_file == "/id"
    flags = FuseFlags(coordination="/c", bundle_id_file="/id", commands=(UPLOAD, UPLOAD))
    with pytest.raises(ParametersError, match="-i: there are 2 destinations: expected one where a file"):
        configure(flags=flags)
    flags = FuseFlags(coordination="/c", bundle_id_file="/id", commands=(f"{UPLOAD} --bundle-id-file /other",))
    with pytest.raises(ParametersError, match="-i: the destination 'upload-1' has the bundle id file '/other' already"):
        configure(flags=flags)


def test_one_directory_may_be_saved_twice() -> None:
    assert len(configure(UPLOAD, "bundle upload --path /out --repo other --message m").options.destinations) == 2


# --- which value counts, and where it came from --------------------------------------------------------------------


def test_flags_come_before_variables_and_variables_before_the_file() -> None:
    configured = configure(
        flags=FuseFlags(coordination="/flag"),
        dm_fuse_opts=";:c:/variable;b:variable",
        dm_fuse_bd_input=";:sp:/variable",
        dm_fuse_params=DATAMON_YAML,
    )
    assert explain(configured) == [
        ("coordPoint", "/flag", "-c"),
        ("sleepInsteadOfExit", "false", "dm_fuse_params line 2"),
        ("configBucketName", "variable", "dm_fuse_opts"),
        ("contextName", "datamon-sidecar-test", "dm_fuse_params line 5"),
        ("bundles.input.srcPath", "/variable", "dm_fuse_bd_input"),
        ("bundles.input.srcRepo", "ransom-datamon-test-repo", "dm_fuse_params line 9"),
        ("bundles.input.srcLabel", "testlabel", "dm_fuse_params line 10"),
        ("bundles.output.destPath", "/tmp/upload", "dm_fuse_params line 19"),
        ("bundles.output.destRepo", "ransom-datamon-test-repo", "dm_fuse_params line 20"),
        ("bundles.output.destMessage", "result of container coordination demo", "dm_fuse_params line 21"),
        ("bundles.output.destLabel", "coordemo", "dm_fuse_params line 22"),
        ("bundles.output.destBundleID", "/tmp/bundleid.txt", "dm_fuse_params line 23"),
    ]


def test_the_origin_of_a_value_is_its_flag_command_file_or_default() -> None:
    configured = configure(MOUNT, dm_fuse_params="/p.yaml", files={"/p.yaml": "globalOpts:\n\n  contextName: dev\n"})
    assert explain(configured) == [
        ("coordPoint", "/c", "-c"),
        ("sleepInsteadOfExit", "false", "default"),
        ("contextName", "dev", "/p.yaml line 3"),
        ("bundles.mount-1.srcPath", "/in", "-d #1"),
        ("bundles.mount-1.srcRepo", "r", "-d #1"),
        ("bundles.mount-1.srcLabel", "v1", "-d #1"),
    ]


def test_a_bundle_id_in_a_variable_replaces_the_label_in_the_file() -> None:
    configured = configure(dm_fuse_bd_input=";:sb:0123", dm_fuse_params=DATAMON_YAML)
    assert configured.options.sources == (Source("input", "/tmp/mount", "ransom-datamon-test-repo", "", "0123"),)


def test_an_empty_value_is_as_none() -> None:
    configured = configure(dm_fuse_bd_input=";:sl:;sp:", dm_fuse_params=DATAMON_YAML)
    assert configured.options.sources == (INPUT,)


def test_bundles_of_commands_come_before_the_others_which_stand_by_name() -> None:
    variables = {"dm_fuse_bd_b": ";:sp:/b;sr:r;sl:l", "dm_fuse_bd_a": ";:sp:/a;sr:r;sl:l"}
    commands = ("bundle mount --repo r --mount /z", "bundle mount --repo r --mount /y")
    options = fuse_options(FuseFlags(coordination="/c", commands=commands), variables, read_nothing).options
    assert [source.name for source in options.sources] == ["mount-1", "mount-2", "a", "b"]


# --- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dictionary", "expected"),
    [
        (";:sr:r;sl:l", "dm_fuse_bd_x: sp: expected the path of source 'x', it is missing"),
        (";:sp:/in;sl:l", "dm_fuse_bd_x: sr: expected the repository of source 'x', it is missing"),
        (";:sp:/in;sr:r", "dm_fuse_bd_x: sl: expected a label or a bundle id of source 'x', it is missing"),
        (
            ";:sp:/in;sr:r;sl:l;sb:b",
            "dm_fuse_bd_x: sb: source 'x' has a bundle id and also the label 'l': expected one of the two",
        ),
        (";:dr:r;dm:m", "dm_fuse_bd_x: dp: expected the path of destination 'x', it is missing"),
        (";:dp:/out;dm:m", "dm_fuse_bd_x: dr: expected the repository of destination 'x', it is missing"),
        (";:dp:/out;dr:r", "dm_fuse_bd_x: dm: expected the message of destination 'x', it is missing"),
        (";:", "dm_fuse_bd_x: bundle 'x' is neither a source nor a destination: expected one"),
        (
            ";:sp:/in;sr:r;sl:l;dp:/out;dr:r;dm:m",
            "dm_fuse_bd_x: dp: bundle 'x' is a source and also a destination: expected one, and another name for the other",
        ),
        (";:sp:in;sr:r;sl:l", "dm_fuse_bd_x: sp: expected an absolute path, one that begins with '/', not 'in'"),
        (";:sp:/a/../b;sr:r;sl:l", "dm_fuse_bd_x: sp: expected a path without '..', not '/a/../b'"),
        (";:sp:/.;sr:r;sl:l", "dm_fuse_bd_x: sp: expected a directory below '/', not '/' itself"),
        (f";:sp:/{'a' * 4095};sr:r;sl:l", "dm_fuse_bd_x: sp: expected a path of at most 4095 characters, not 4096"),
        (";:sp:/a\nb;sr:r;sl:l", "dm_fuse_bd_x: sp: expected a path without control characters, not '/a\\nb'"),
        (";:sp:/a;sr:r/s;sl:l", "dm_fuse_bd_x: sr: expected a name of letters, digits and - _ . +, not 'r/s' with '/'"),
        (";:sp:/a;sr:.r;sl:l", "dm_fuse_bd_x: sr: expected a name that begins with neither '.' nor '-', not '.r'"),
        (";:sp:/a;sr:r;sl:a..b", "dm_fuse_bd_x: sl: expected a name without '..', not 'a..b'"),
        (";:dp:/o;dr:r;dm:m;dl:a b", "dm_fuse_bd_x: dl: expected a name of letters, digits and - _ . +, not 'a b' with ' '"),
        (";:dp:/o;dr:r;dm:\ud800", "dm_fuse_bd_x: dm: expected a text in UTF-8"),
        (";:dp:/o;dr:r;dm:m;dif:/d/", "dm_fuse_bd_x: dif: expected the path of a file, not of a directory, '/d/'"),
        (";:sp;sr:r;sl:l", "dm_fuse_bd_x: sp: expected a value behind the key-value separator"),
        (f"{SOURCE};srcRepo:r", "dm_fuse_bd_x: srcRepo: unknown option; here it is written 'sr'"),
        (f"{SOURCE};dfi:r", "dm_fuse_bd_x: dfi: unknown option; did you mean 'dif'?"),
        (f"{SOURCE};Q", "dm_fuse_bd_x: Q: unknown option; expected sp, sr, sl, sb, dp, dr, dm, dl, dif"),
        (";;a", "dm_fuse_bd_x: both separators are ';': expected another one at character 2"),
    ],
)
def test_a_bundle_that_breaks_a_rule_is_refused_at_its_place(dictionary: str, expected: str) -> None:
    assert expected in faults(dm_fuse_bd_x=dictionary)


@pytest.mark.parametrize("name", ["a/b", ".a", "-a", "a..b", "..", "a\nb", "", "x" * 101])
def test_a_name_that_could_not_be_part_of_a_path_is_refused(name: str) -> None:
    assert any(
        fault.startswith(f"dm_fuse_bd_{name}: name: expected a name ") for fault in faults(**{f"dm_fuse_bd_{name}": SOURCE})
    )


@pytest.mark.parametrize(
    ("bundles", "expected"),
    [
        ({"a": "sp:/in", "b": "sp:/in"}, "dm_fuse_bd_b: sp: /in is or lies in /in, which source 'a' has for itself"),
        ({"a": "sp:/in", "b": "sp:/in/"}, "dm_fuse_bd_b: sp: /in is or lies in /in, which source 'a' has for itself"),
        ({"a": "sp:/in/x", "b": "sp:/in"}, "dm_fuse_bd_a: sp: /in/x is or lies in /in, which source 'b' has for itself"),
        ({"a": "sp:/in", "b": "dp:/in"}, "dm_fuse_bd_b: dp: /in is or lies in /in, which source 'a' has for itself"),
        ({"a": "sp:/in", "b": "dp:/in/out"}, "dm_fuse_bd_b: dp: /in/out is or lies in /in, which source 'a' has for itself"),
        (
            {"a": "sp:/in", "b": "dp:/out;dif:/in/id"},
            "dm_fuse_bd_b: dif: /in/id is or lies in /in, which source 'a' has for itself",
        ),
        (
            {"a": "dp:/a;dif:/id", "b": "dp:/b;dif:/id"},
            "dm_fuse_bd_b: dif: the bundle id of 'a' is written there: expected another file",
        ),
        (
            {"a": "dp:/out;dif:/in/id", "b": "sp:/in"},
            "dm_fuse_bd_a: dif: /in/id is or lies in /in, which source 'b' has for itself",
        ),
        ({"a": "sp:/in", "b": "dp:/input"}, ""),
        ({"a": "sp:/data/in", "b": "dp:/data"}, ""),
    ],
)
def test_nothing_is_written_where_a_source_is(bundles: Mapping[str, str], expected: str) -> None:
    rest = {"s": ";sr:r;sl:l", "d": ";dr:r;dm:m"}
    variables = {f"dm_fuse_bd_{name}": f";:{text}{rest[text[0]]}" for name, text in bundles.items()}
    assert faults(**variables) == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("bundle mount --repo r", "--mount: expected the path of source 'mount-1', it is missing"),
        ("bundle mount --mount /in", "--repo: expected the repository of source 'mount-1', it is missing"),
        (f"{MOUNT} --bundle b", "--bundle: source 'mount-1' has a bundle id and also the label 'v1': expected one of the two"),
        ("bundle upload --path /out --repo r", "--message: expected the message of destination 'upload-1', it is missing"),
        (f"{UPLOAD} --labl x", "--labl: unknown flag of 'bundle upload'; did you mean '--label'?"),
        (
            f"{UPLOAD} --files list.txt",
            "--files: not supported: all that is in --path is saved; have only what is to be kept in there",
        ),
        (f"{UPLOAD} --skip-on-error=maybe", "--skip-on-error: expected true or false, not 'maybe'"),
        (f"{MOUNT} --skip-on-error", "--skip-on-error: unknown flag of 'bundle mount'; expected --repo, "),
        (f"{MOUNT} --name-filter '(a'", "--name-filter: '(a' is no regular expression: missing ), unterminated subpattern"),
        (f"{MOUNT} --name-filter '{'(' * 9999}{')' * 9999}'", "--name-filter: '(((("),
        (
            f"{MOUNT} --name-filter 'a{{99999999999999999999}}'",
            "--name-filter: 'a{99999999999999999999}' is no regular expression",
        ),
        (f"{MOUNT} --name-filter '\\pL'", "--name-filter: '\\\\pL' is no regular expression: bad escape \\p"),
        (
            f"{MOUNT} --name-filter '[[:digit:]]+'",
            "--name-filter: [:digit:] is no class of characters here: expected [0-9], [A-Za-z] or the like in '[[:digit:]]+'",
        ),
        (f"{MOUNT} --name-filter a --name-filter b", "--name-filter: given twice"),
        (f"{MOUNT} --files", "--files: expected a value, as in --files VALUE or --files=VALUE"),
        (f"{MOUNT} --files ../x", "--files: expected a path in the bundle, such as 2026/january.csv, not '../x'"),
        (f"{MOUNT} --files a --files /", "--files: expected a path in the bundle, such as 2026/january.csv, not '/'"),
        ("bundle download --repo r", "--destination: expected the path of source 'download-1', it is missing"),
        ("bundle download", "--repo: expected the repository of source 'download-1', it is missing"),
        (
            "bundle download --repo r --destination in",
            "--destination: expected an absolute path, one that begins with '/', not 'in'",
        ),
        (
            "bundle download --repo r --destination /x --mount /in",
            "--mount: unknown flag of 'bundle download'; expected --repo, ",
        ),
        (f"{MOUNT} --label v2", "--label: given twice"),
        (f"{MOUNT} extra", "extra: unexpected word: 'bundle mount' takes flags only"),
        ("bundle mount --repo r --label --mount /in", "--label: expected a value, as in --label VALUE or --label=VALUE"),
        (f"{MOUNT} --bundle", "--bundle: expected a value, as in --bundle VALUE or --bundle=VALUE"),
        ("bundle mount --repo 'r", 'cannot be split into words: no closing quotation in "bundle mount --repo \'r"'),
        ("bundle list --repo r", f"the command 'bundle list' is not known: {COMMANDS}"),
        ("", f"the command '' is not known: {COMMANDS}"),
        ("config create --name Ann", "--name: the contributor's email is missing: expected both or neither"),
        ("config create --email ann --name Ann", "--email: expected an e-mail address, not 'ann'"),
    ],
)
def test_a_command_that_cannot_be_followed_is_refused_by_its_number(command: str, expected: str) -> None:
    assert any(fault.startswith(f"-d #2: {expected}") for fault in faults("config create", command)), faults(command)


def test_there_is_at_most_one_config_command() -> None:
    assert faults("config create", MOUNT, "config create") == [
        "-d #3: config create: given twice, first as -d #1: expected at most one"
    ]


def test_a_flag_and_a_command_do_not_contradict_each_other() -> None:
    flags = FuseFlags(coordination="/c", context="dev", commands=("config create --context prod", MOUNT))
    with pytest.raises(ParametersError, match="-d #1: --context: 'prod' contradicts 'dev' of -a: expected one of the two"):
        configure(flags=flags)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "line 1: no YAML: expected the node content, but found '<stream end>'"),
        ("bundles:\n\t- x", "line 2: no YAML: found character '\\t' that cannot start any token"),
        ("bundles: \x01", "line 1: no YAML: the character U+0001 is not allowed"),
        ("- a\n- b", "line 1: expected a mapping with the keys globalOpts, bundles"),
        ("bundles: {}\nglobalOpts: x\n", "line 1: bundles: expected a list, each item beginning with '- '"),
        ("bundles: []\nglobalOpts: x\n", "line 2: expected a mapping with the keys coordPoint, sleepInsteadOfExit,"),
        ("globalOpts:\n  coordPont: /c\n", "line 2: coordPont: unknown key; did you mean 'coordPoint'?"),
        ("globalOpts:\n  CoordPoint: /c\n", "line 2: CoordPoint: unknown key; did you mean 'coordPoint'?"),
        ("bundle: []\nx: 1", "line 2: x: unknown key; expected globalOpts, bundles"),
        ("globalOpts:\n  coordPoint: /c\n  coordPoint: /d\n", "line 3: coordPoint: given twice, first in line 2"),
        ("globalOpts:\n  coordPoint: [/c]\n", "line 2: coordPoint: expected a single value"),
        ("globalOpts:\n  coordPoint: !file /c\n", "line 2: coordPoint: expected a single value"),
        ("globalOpts:\n  <<: {coordPoint: /c}\n", "line 2: <<: merging is not supported: expected the keys themselves"),
        ("globalOpts:\n  sleepInsteadOfExit: maybe\n", "line 2: sleepInsteadOfExit: expected true or false, not 'maybe'"),
        ("bundles:\n- srcPath: /in\n", "line 2: name: expected a name, it is missing"),
        ("bundles:\n- name: a\n- name: a\n", "line 3: name: the name 'a' is given twice, first at dm_fuse_params line 2"),
        ("bundles:\n- name: a/b\n", "line 2: name: expected a name without '/', not 'a/b'"),
        ("bundles:\n- name: a\n  srcRepo: r\n", "line 2: srcPath: expected the path of source 'a', it is missing"),
        ("--- {}\n--- {}\n", "line 2: no YAML: but found another document"),
    ],
)
def test_a_document_that_cannot_be_read_is_refused_by_its_line(text: str, expected: str) -> None:
    assert any(fault.startswith(f"dm_fuse_params {expected}") for fault in faults(MOUNT, yaml=text)), faults(MOUNT, yaml=text)


@pytest.mark.parametrize("key", ["srcNameFilter", "srcFiles", "srcPopulate", "destSkipOnError"])
def test_what_only_commands_say_is_no_key_of_a_document_or_a_dictionary(key: str) -> None:
    assert f"dm_fuse_params line 3: {key}: unknown key" in faults(yaml=f"bundles:\n- name: a\n  {key}: x\n")[0]
    assert f"dm_fuse_bd_a: {key}: unknown option" in faults(dm_fuse_bd_a=f";:{key}:x")[0]


def test_a_document_that_cannot_be_read_is_not_told_to_lack_things_too() -> None:
    with pytest.raises(ParametersError) as caught:
        fuse_document("a: [", "x")
    assert len(caught.value.faults) == 1


def test_a_bundle_without_a_name_is_checked_all_the_same() -> None:
    with pytest.raises(ParametersError) as caught:
        fuse_document("globalOpts: {coordPoint: /c}\nbundles:\n- srcPath: in\n  srcRepo: r\n  srcLabel: l\n", "x")
    assert [str(fault) for fault in caught.value.faults] == [
        "x line 3: name: expected a name, it is missing",
        "x line 3: srcPath: expected an absolute path, one that begins with '/', not 'in'",
    ]


def test_a_file_that_is_not_there_is_named() -> None:
    assert "dm_fuse_params: /p.yaml: cannot be read: No such file or directory" in faults(MOUNT, yaml="/p.yaml")


def test_hostile_documents_cost_what_their_text_costs() -> None:
    letters = "abcdefghijklmnopqrstu"
    bomb = "a: &a [x, x]\n" + "".join(
        f"{letter}: &{letter} [{', '.join([f'*{before}'] * 9)}]\n" for before, letter in itertools.pairwise(letters)
    )
    assert "expected globalOpts, bundles" in "".join(faults(MOUNT, yaml=bomb + "bundles: *u\n"))
    assert faults(MOUNT, yaml="globalOpts: &a\n  contributor: *a\n")
    assert "nested too deeply" in faults(MOUNT, yaml="a: " + "[" * 20000)[0]
    assert "at most 4095 characters" in faults(dm_fuse_bd_a=f";:sp:{'/a' * LIMIT};sr:r;sl:l")[0]
    assert f"expected at most {LIMIT}" in faults(MOUNT, yaml="#\n" + " " * LIMIT + "\n#")[0]


def test_misspelt_variables_are_faults() -> None:
    assert faults(MOUNT, dm_fuse_opt=";:S") == ["dm_fuse_opt: unknown variable; did you mean 'dm_fuse_opts'?"]
    assert faults(MOUNT, dm_fuse_bdinput=SOURCE, dm_pg_opt="x")[0].startswith("dm_fuse_bdinput: unknown variable; did you mean")


def test_something_must_be_configured() -> None:
    with pytest.raises(ParametersError) as caught:
        configure(flags=FuseFlags())
    assert [fault.where for fault in caught.value.faults] == ["coordination directory", "bundles"]
    assert caught.value.status == 65


def test_all_faults_are_told_at_once_each_at_its_place() -> None:
    found = faults(
        "bundle mount --repo r --mount in",
        "bundle copy",
        dm_fuse_opts=";:c:/c;S:maybe",
        dm_fuse_bd_a=";:sp:/a;sr:r;sl:l;sb:b",
        yaml="bundles:\n- name: b\n  destPath: /b\n  destRepo: r\n  destmessage: m\n",
    )
    assert found == [
        f"-d #2: the command 'bundle copy' is not known: {COMMANDS}",
        "dm_fuse_params line 5: destmessage: unknown key; did you mean 'destMessage'?",
        "dm_fuse_opts: S: expected true or false, not 'maybe'",
        "-d #1: --mount: expected an absolute path, one that begins with '/', not 'in'",
        "dm_fuse_bd_a: sb: source 'a' has a bundle id and also the label 'l': expected one of the two",
        "dm_fuse_params line 2: destMessage: expected the message of destination 'b', it is missing",
    ]


@given(st.text() | st.text("ab.-_+/\u0301é", max_size=8))
def test_a_name_is_refused_here_exactly_where_the_store_would_refuse_it_later(name: str) -> None:
    def refuses(check: Callable[..., str], *arguments: str) -> bool:
        try:
            check(*arguments)
        except (ValueError, ParametersError):
            return True
        return False

    assert refuses(store_name, name) == refuses(check_name, "label", name)


@given(st.dictionaries(st.sampled_from(["dm_fuse_opts", "dm_fuse_bd_a", "dm_fuse_params"]), st.text()), st.lists(st.text()))
def test_whatever_is_written_means_options_or_faults(environment: dict[str, str], commands: list[str]) -> None:
    with suppress(ParametersError):
        fuse_options(FuseFlags(coordination="/c", commands=commands), environment, read_nothing)


# --- for a shell ---------------------------------------------------------------------------------------------------

PRINT_ENVIRONMENT = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(b'='.join(each) for each in os.environb.items()))"


def environment_after(lines: str) -> dict[str, str]:
    """Return the environment of a child of a real sh that has evaluated `lines`."""
    command = ["/bin/sh", "-c", 'eval "$LINES"; unset LINES; exec "$@"', "sh", sys.executable, "-c", PRINT_ENVIRONMENT]
    out = subprocess.run(command, env={"LINES": lines}, capture_output=True, check=True).stdout
    return dict(os.fsdecode(entry).split("=", 1) for entry in out.split(b"\0"))


def yaml_string(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', width=9999).strip()


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])).filter(str.strip), st.text("'\"\\$`;:|,= ", min_size=1))
def test_variables_configure_the_same_whatever_a_message_holds(message: str, name: str) -> None:
    text = DATAMON_YAML.replace(MESSAGE, yaml_string(message))
    text = text.replace("/tmp/mount", yaml_string(f"/tmp/{name}"))
    configured = fuse_document(text, "x")
    assert fuse_options(FuseFlags(), fuse_variables(configured), read_nothing).options == configured.options


def test_the_lines_are_those_of_datamon() -> None:
    assert export_lines(fuse_variables(fuse_document(DATAMON_YAML, "x"))) == [
        "export dm_fuse_opts=';:c:/tmp/coord;b:datamon-config-test-sdjfhga;a:datamon-sidecar-test'",
        "export dm_fuse_bd_input=';:sp:/tmp/mount;sr:ransom-datamon-test-repo;sl:testlabel'",
        "export dm_fuse_bd_output=';:dp:/tmp/upload;dr:ransom-datamon-test-repo;dm:result of container coordination demo"
        ";dl:coordemo;dif:/tmp/bundleid.txt'",
    ]


def test_a_name_that_no_shell_variable_has_is_a_fault() -> None:
    configured = fuse_document(DATAMON_YAML.replace("name: input", "name: in-put").replace("name: output", "name: é"), "p.yaml")
    with pytest.raises(ParametersError) as caught:
        fuse_variables(configured)
    assert [str(fault) for fault in caught.value.faults] == [
        "p.yaml line 8: name: 'in-put' cannot be part of a shell variable: expected letters, digits and _",
        "p.yaml line 19: name: 'é' cannot be part of a shell variable: expected letters, digits and _",
    ]


def test_the_command_prints_the_lines_of_a_file_or_of_stdin(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(DATAMON_YAML)
    lines = "\n".join(export_lines(fuse_variables(fuse_document(DATAMON_YAML, "x")))) + "\n"
    for arguments, stdin in ((["fuse"], DATAMON_YAML), (["fuse", str(file)], "")):
        result = CliRunner().invoke(parameters, arguments, input=stdin)
        assert (result.exit_code, result.stdout) == (0, lines)


def test_the_command_raises_every_fault_with_its_line() -> None:
    result = CliRunner().invoke(parameters, ["fuse"], input="globalOpts:\n  coordPoint: x\nbundels: []\n")
    assert isinstance(result.exception, ParametersError)
    assert [fault.where for fault in result.exception.faults] == ["stdin line 3", "stdin line 2", "bundles"]
    assert "eval" in CliRunner().invoke(parameters, ["fuse", "--help"]).stdout
