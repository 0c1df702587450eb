"""The digest of what an image is made of: what changes it, what does not, and what it is never led to."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import memory
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sidecar import __version__
from sidecar.errors import ParametersError, SourceMissing
from sidecar.factory.buildah import Buildah
from sidecar.factory.context import (
    Ignore,
    _class_end,
    _Pattern,
    containerfiles,
    digest,
    digests,
    ignore_file,
    open_definition,
    tree_digest,
)
from sidecar.factory.definition import Definition

FACTORY = "images: {app: {context: ., directory: app}, web: {base: app}, other: {directory: other}}\n"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """Three images: one of the whole folder, one built on it, and one that has nothing to do with them."""
    for name in ("app", "web", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "Containerfile").write_text("FROM scratch\nCOPY . /\n")
    (tmp_path / "file").write_text("one")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "factory.yaml").write_text(FACTORY)
    (tmp_path / ".dockerignore").write_text("factory.yaml\n.dockerignore\nweb\nother\n")
    return tmp_path


def read(top: Path) -> Definition:
    return open_definition(str(top / "factory.yaml"))


def now(top: Path) -> dict[str, str]:
    return digests(read(top))


def test_the_same_context_has_the_same_digest_wherever_and_whenever_it_is(
    top: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = now(top)
    copy = tmp_path_factory.mktemp("copy") / "elsewhere"
    subprocess.run(["cp", "-r", "--no-preserve=timestamps", top, copy], check=True)
    assert now(copy) == before
    assert all(each.startswith("blake3:") for each in before.values())
    assert {name: digest(read(top), name) for name in before} == before


def test_a_touched_time_changes_nothing(top: Path) -> None:
    before = now(top)
    os.utime(top / "file", (1, 1))
    os.utime(top, (1, 1))
    assert now(top) == before


def rename(top: Path) -> None:
    (top / "file").rename(top / "renamed")


def relink(top: Path) -> None:
    (top / "link").unlink()
    (top / "link").symlink_to("elsewhere")


def make_a_folder_of_it(top: Path) -> None:
    (top / "link").unlink()
    (top / "link").mkdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "contents": lambda top: (top / "file").write_text("two"),
    "the right to execute": lambda top: (top / "file").chmod(0o755),
    "a name": rename,
    "where a link leads": relink,
    "a kind": make_a_folder_of_it,
    "a further file": lambda top: (top / "further").touch(),
    "a further folder, empty": lambda top: (top / "further").mkdir(),
    "a fifo": lambda top: os.mkfifo(top / "fifo"),
    "the Containerfile": lambda top: (top / "app" / "Containerfile").write_text("FROM scratch\n"),
    "what is ignored": lambda top: (top / ".dockerignore").write_text("web\nother\n"),
    "an argument": lambda top: (top / "factory.yaml").write_text(FACTORY.replace("y: app", "y: app, arguments: {A: 1}")),
    "the target": lambda top: (top / "factory.yaml").write_text(FACTORY.replace("y: app", "y: app, target: docker")),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_all_that_a_build_gets_is_told_apart_and_passed_on_to_what_is_built_on_it(top: Path, what: str) -> None:
    before = now(top)
    CHANGES[what](top)
    after = now(top)
    assert {name for name in before if before[name] != after[name]} == {"app", "web"}


CAPABILITY = bytes.fromhex("0000000200040000000000000000000000000000")


@pytest.mark.parametrize(("name", "value"), [("user.mark", b"one"), ("security.capability", CAPABILITY)])
@pytest.mark.parametrize("of", ["file", "folder"])
def test_extended_attributes_are_told_apart_as_they_are_in_the_image(top: Path, name: str, value: bytes, of: str) -> None:
    (top / "folder").mkdir()
    found = [now(top)["app"]]
    os.setxattr(top / of, name, value)
    found.append(now(top)["app"])
    os.setxattr(top / of, name, value.replace(b"one", b"two").replace(b"\x04", b"\x20"))
    found.append(now(top)["app"])
    assert len(set(found)) == 3
    os.removexattr(top / of, name)
    assert now(top)["app"] == found[0]


def test_what_is_ignored_changes_nothing(top: Path) -> None:
    before = now(top)["app"]
    (top / "web" / "more").write_text("more")
    assert now(top)["app"] == before


def test_a_containerfile_may_have_an_ignore_file_of_its_own(top: Path) -> None:
    assert ignore_file(read(top).images["app"]) == str(top / ".dockerignore")
    assert ignore_file(read(top).images["other"]) == ""
    (top / "app" / "Containerfile.dockerignore").write_text("file\n")
    assert ignore_file(read(top).images["app"]) == str(top / "app" / "Containerfile.dockerignore")


def test_what_a_build_mounts_counts_although_it_is_ignored(top: Path) -> None:
    (top / "app" / "Containerfile").write_text("FROM scratch\nRUN --mount=type=bind,source=web,target=/web make\n")
    before = now(top)["app"]
    (top / "other" / "more").write_text("more")
    assert now(top)["app"] == before
    (top / "web" / "more").write_text("more")
    assert now(top)["app"] != before


@pytest.mark.parametrize("source", ["source=$WHERE", "source=link/..", "source=link", "target=/x", "source=../.."])
def test_a_mount_that_may_be_anything_counts_as_the_whole_context(top: Path, source: str) -> None:
    (top / "link").unlink()
    (top / "link").symlink_to("/")
    (top / "app" / "Containerfile").write_text(f"FROM scratch\nRUN --mount=type=bind,{source} make\n")
    before = now(top)["app"]
    (top / "web" / "more").write_text("more")
    assert now(top)["app"] != before


def test_another_target_is_another_content(top: Path) -> None:
    definition = read(top)
    assert digest(definition, "app", "oci") == digest(definition, "app") != digest(definition, "app", "docker")


def test_what_is_not_there_is_missing(top: Path) -> None:
    with pytest.raises(SourceMissing, match=r"there is no .*/nothing\.yaml"):
        open_definition(str(top / "nothing.yaml"))
    with pytest.raises(SourceMissing, match="there is no image nothing"):
        digest(read(top), "nothing")
    definition = read(top)
    shutil.rmtree(top / "other")
    with pytest.raises(SourceMissing, match=r"there is no .*/other"):
        digest(definition, "other")


def test_a_folder_elsewhere_is_an_image_if_it_is_named_and_has_a_containerfile(top: Path) -> None:
    (top / "below").mkdir()
    (top / "below" / "factory.yaml").write_text("images: {here: {directory: ../app}}")
    assert open_definition(str(top / "below" / "factory.yaml")).images["here"].context == str(top / "app")
    (top / "below" / "factory.yaml").write_text("images: {here: {directory: ..}}")
    with pytest.raises(ParametersError, match=r"images.here: there is no Containerfile in \.\."):
        open_definition(str(top / "below" / "factory.yaml"))


def test_folders_with_a_containerfile_are_found_and_hidden_ones_and_links_are_not(tmp_path: Path) -> None:
    for name in ("a", "b/c", ".hidden", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "Dockerfile").touch()
    (tmp_path / "a" / "Containerfile").touch()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "Containerfile").symlink_to("/etc/shadow")
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "Containerfile")
    (tmp_path / "Containerfile").touch()
    assert containerfiles(str(tmp_path)) == {"a": "Containerfile", "b/c": "Dockerfile", "elsewhere": "Dockerfile"}


@pytest.mark.parametrize("sign", ["overlay-images", "vfs-images", "state.sqlite3", "oci-layout"])
def test_no_folder_is_an_image_in_which_a_factory_keeps_images_or_records(tmp_path: Path, sign: str) -> None:
    for name in ("app/inner", "kept", "kept/overlay/ab/diff/src", "kept-not"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "Containerfile").touch()
    (tmp_path / "kept" / sign).touch()
    assert set(containerfiles(str(tmp_path))) == {"app/inner", "kept-not"}


def test_this_projects_images_are_of_this_version_and_each_folder_is_one() -> None:
    top = Path(__file__).parent.parent
    definition = open_definition(str(top / "images" / "factory.yaml"))
    assert definition.tag == __version__
    folders = {str(top / "images" / each) for each in containerfiles(str(top / "images"))}
    assert {os.path.dirname(each.file) for each in definition.images.values()} == {*folders, str(top / "batteries" / "function")}
    # A folder that no line says anything of would be called by its path.
    assert {name for name in definition.images if name.startswith("runtimes-")} == set()
    assert {definition.images[name].target for name in definition.images if name.startswith("runtime-")} == {"docker"}
    assert definition.bases("function-battery") == ["runtime-base", "runtime-python-3.11"]


# --- hostile trees -----------------------------------------------------------------------------------------------------


def test_no_link_is_followed_and_nothing_is_opened_that_would_wait(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("one")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, leads in {
        "out": "../outside",
        "file": "../outside/secret",
        "loop": "loop",
        "up": ".",
        "proc": "/proc/kmsg",
    }.items():
        (tree / name).symlink_to(leads)
    os.mkfifo(tree / "fifo")
    if os.geteuid() == 0:
        os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
        os.mknod(tree / "disk", 0o60666, os.makedev(7, 200))
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(tree)
        listening.bind("socket")
        os.chdir(here)
        before = tree_digest(str(tree))
    (outside / "secret").write_text("two")
    assert tree_digest(str(tree)) == before


def test_devices_are_told_apart_and_never_opened(tmp_path: Path) -> None:
    found = set()
    for kind, major in ((0o20666, 1), (0o20666, 5), (0o60666, 7)):
        os.mknod(tmp_path / "device", kind, os.makedev(major, 3))
        found.add(tree_digest(str(tmp_path)))
        (tmp_path / "device").unlink()
    assert len(found) == 3


@given(
    st.lists(
        st.binary(min_size=1, max_size=40).filter(lambda name: not {b"/"[0], 0} & {*name} and name not in (b".", b"..")),
        unique=True,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_names_may_be_any_bytes(tmp_path: Path, names: list[bytes]) -> None:
    tree = os.fsencode(tmp_path / os.urandom(8).hex())
    os.mkdir(tree)
    for name in names:
        os.close(os.open(os.path.join(tree, name), os.O_CREAT | os.O_WRONLY, 0o644))
    before = tree_digest(os.fsdecode(tree))
    assert tree_digest(os.fsdecode(tree)) == before
    if names:
        os.unlink(os.path.join(tree, names[0]))
        assert tree_digest(os.fsdecode(tree)) != before


def test_where_one_name_ends_and_the_next_begins_is_told_apart(tmp_path: Path) -> None:
    found = set()
    for number, files in enumerate(({"a": "b", "c": ""}, {"a": "", "bc": ""}, {"ab": "", "c": ""}, {"a/b": "c"}, {"a": "bc"})):
        tree = tmp_path / str(number)
        for name, said in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(said)
        found.add(tree_digest(str(tree)))
    assert len(found) == 5


def test_folders_that_never_end_are_refused(tmp_path: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    with pytest.raises(ParametersError, match="nested more than 200 deep"):
        tree_digest(str(tmp_path))
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_many_files_take_no_descriptors_and_little_memory(tmp_path: Path, count: int) -> None:
    for number in range(count):
        if number % 1000 == 0:
            (tmp_path / str(number // 1000)).mkdir()
        (tmp_path / str(number // 1000) / str(number)).write_bytes(b"%d" % number)
    code = (
        "import resource, sys; from sidecar.factory.context import tree_digest\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)); resource.setrlimit(resource.RLIMIT_AS, (400 << 20,) * 2)\n"
        "print(tree_digest(sys.argv[1]))"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == tree_digest(str(tmp_path))


def test_what_changes_while_it_is_read_is_read_as_it_may_be(tmp_path: Path) -> None:
    code = (
        "import os, sys\nos.chdir(sys.argv[1])\nprint(flush=True)\nwhile True:\n"
        "    os.mkdir('x'); os.rmdir('x'); os.symlink('/', 'x'); os.unlink('x'); os.mkfifo('x'); os.unlink('x')\n"
        "    open('x', 'w').close(); os.unlink('x')\n"
    )
    with subprocess.Popen(["python3", "-c", code, tmp_path], stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        end = time.monotonic() + 1
        try:
            while time.monotonic() < end:
                tree_digest(str(tmp_path))
        finally:
            busy.kill()


# --- what is ignored, beside buildah itself ----------------------------------------------------------------------------

PATHS = (
    "a", "ab", "a.c", "b", "d/a", "d/b", "d/a b", "d/e/a", "d/e/b", "d/e/f/a", "e/d/e/a", ".h/a", "x/]", "x/[b]", "x/d/a",
    "x/y/d/b",
)  # fmt: skip
PARTS = (
    "a", "b", "d", "e", "f", "x", ".h", "*", "**", "?", "a*", "*b", "?b", "[ab]", "[^a]", "[a-b]", "*.c", "**a", "**b", "d**",
    r"\*", ".", "..", "a b",
)  # fmt: skip
PATTERN = st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map("/".join)
LINE = st.builds(
    "{}{}{}".format, st.sampled_from(["", "", "!", "!", "/", "! ", "  ", "#"]), PATTERN, st.sampled_from(["", "/", " "])
)


@pytest.fixture(scope="module")
def copied() -> Iterator[Callable[[str], set[str] | str]]:
    """What buildah copies from a tree with this ignore file, or why it does not."""
    with memory.folder() as top:
        yield copied_in(top)


def copied_in(top: Path) -> Callable[[str], set[str] | str]:
    for path in PATHS:
        (top / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (top / "tree" / path).write_text(path)
    (top / "Containerfile").write_text("FROM scratch\nCOPY . /\n")
    buildah = Buildah(str(top / "images"))
    buildah.prepare()

    def copied(text: str) -> set[str] | str:
        (top / "ignore").write_text(text)
        ran = buildah.run(
            *("build", "--quiet", "--no-cache", "--isolation=chroot", f"--output=type=local,dest={top}/out"),
            *(f"--ignorefile={top}/ignore", f"--file={top}/Containerfile", f"{top}/tree"),
            check=False,
        )
        found = {str(path.relative_to(top / "out")) for path in (top / "out").rglob("*") if path.is_file()}
        shutil.rmtree(top / "out", ignore_errors=True)
        return ran.stderr if ran.returncode else found

    return copied


def kept(text: str) -> set[str]:
    ignore = Ignore(text)
    above = {path: [path.rsplit("/", n)[0] for n in range(1, path.count("/") + 1)] for path in PATHS}
    return {path for path in PATHS if not ignore.ignores(path) and all(map(ignore.may_hold, above[path]))}


@pytest.mark.parametrize(
    "text",
    [
        "a\n#b\n\n  ab  \n",
        "*\n!d/e/b\n!x",
        "d\n!d/e",
        "**/d\n!x",
        "**/a",
        "/d/../b\n/\n.",
        "d/*\n!d/a b",
        "[^a]",
        "x/\\]\nx/[[]b]",
        "d**",
        "!a\na",
    ],
)
def test_what_is_ignored_is_what_buildah_ignores(copied: Callable[[str], set[str] | str], text: str) -> None:
    assert kept(text) == copied(text)


@pytest.mark.parametrize("text", ["[a-", "\\", "!", "a\\", "a/[", "[]"])
def test_what_buildah_takes_for_no_pattern_is_none(copied: Callable[[str], set[str] | str], text: str) -> None:
    with pytest.raises(ParametersError, match=r"\.dockerignore line 2: "):
        Ignore(f"a\n{text}\n")
    assert isinstance(copied(f"a\n{text}\n"), str)


@given(st.lists(LINE, min_size=1, max_size=4).map("\n".join))
@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate], derandomize=True)
def test_nothing_is_left_out_that_a_build_might_get(copied: Callable[[str], set[str] | str], text: str) -> None:
    found = copied(text)
    assert isinstance(found, set)
    assert found <= kept(text)
    # Where something is taken back, buildah may not look where it would find that.
    assert "!" in text or found == kept(text)


def expression(pattern: str) -> str:
    """What a pattern means, as a regular expression."""
    found, at = "", 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*" and pattern[at : at + 1] == "*":
            at += 1 + (pattern[at + 1 : at + 2] == "/")
            found += ".*" if at == len(pattern) else "(?:.*/)?"
        elif character in "*?":
            found += "[^/]*" if character == "*" else "[^/]"
        elif character == "[":
            end = _class_end(pattern, at)
            found += f"[{pattern[at:end]}]"
            at = end + 1
        else:
            at += character == "\\"
            found += re.escape(pattern[at - 1])
    return found


SYMBOLS = ("a", "b", "/", "*", "**", "**/", "?", "[^a]", "[ab]", r"\*", "\n")


@given(st.lists(st.sampled_from(SYMBOLS), max_size=8).map("".join), st.text("ab/*\n", max_size=8))
@settings(max_examples=3000, deadline=None, derandomize=True)
def test_a_pattern_matches_what_its_regular_expression_matches(pattern: str, path: str) -> None:
    assert _Pattern(pattern).matches(path) == bool(re.compile(expression(pattern), re.DOTALL).fullmatch(path))


@pytest.mark.parametrize(
    "pattern", ["*a" * 30 + "b", "**/" * 30 + "b", "**a" * 30 + "b", "**/a*/" * 30 + "b", "[^b]*" * 30 + "b"]
)
@pytest.mark.parametrize("path", ["a" * 3000, "a/" * 1500])
def test_whatever_an_ignore_file_says_each_character_of_a_path_is_looked_at_once(pattern: str, path: str) -> None:
    looked = _Pattern(pattern)
    steps = 0

    def step(*_: object) -> object:
        nonlocal steps
        steps += 1
        return step

    before = sys.gettrace()
    sys.settrace(step)  # type: ignore[arg-type]
    try:
        found = looked.matches(path)
    finally:
        sys.settrace(before)
    assert not found
    # So many lines of the matcher a character, none of which takes longer the longer the path is.
    assert steps <= 30 * (len(path) + 1)


def test_an_ignore_file_that_is_too_long_to_be_held_against_each_path_is_refused() -> None:
    with pytest.raises(ParametersError, match="expected at most 65536 characters"):
        Ignore("a\n" * 40_000)
