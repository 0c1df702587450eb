"""What may lean on what: the layers of the package, what is pure, where the world is touched, and what a start pays for."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import pytest

from sidecar.batteries import Kind, find
from sidecar.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sidecar"

# Each layer may import what stands below it, and nothing above. Modules of one line may import each other, without a cycle.
LAYERS = (
    ("cli", "testing"),  # parse, one call, print; and the contracts for those who write stores and batteries
    ("web",),  # the same over HTTP
    # what a pod is made of, and where one is started; source code that was just handed over; which images are built and pushed
    ("session", "functions", "factory"),
    ("coordination",),
    ("batteries",),
    ("mount",),  # a bundle as a read-only file system
    ("store",),
    ("once",),
    ("process", "sandbox", "state"),
    ("linux",),  # what both processes and signals ask of the kernel
    ("parameters",),
    ("errors", "exits"),
    (
        "values",
        "figures",
        "heard",
        "sidecar",
    ),  # leaves: they import nothing of ours. `sidecar` is __init__.py, which holds the version
)
# Who alone may import a module that is below many, and why.
RESERVED_FOR = {
    "figures": ({"cli", "coordination.report"}, "figures are for people; report explains to them, all other modules decide"),
    "linux": (
        {
            *("process", "coordination.signals", "store.second", "batteries.postgres.programs"),
            *("session.led", "session.folder", "session.podman"),
        },
        "all else asks those",
    ),
    "sidecar": ({"cli"}, "the version is for people"),
    "once": ({"cli", "coordination", "web"}, "a battery and a store do as often as they are asked what they are asked"),
    "process": ({"cli", "coordination", "factory", "once", "session"}, "a battery and a store start no containers' commands"),
    "testing": (set(), "it is for tests, ours and others'"),
}
# Inside coordination, top to bottom; one line's modules do not know each other.
# host shares a few lines with application, which does not know it.
COORDINATION = (("host", "report"), ("application",), ("memory",), ("signals",), ("notation", "protocol"))

# What a battery from outside may lean on, of all that is here: those of `batteries/` keep to it.
FOR_BATTERIES = {
    *("batteries", "batteries.companion", "errors", "figures", "parameters", "store", "testing"),
    *("functions.answer", "functions.runtimes", "functions.service", "web.functions"),
}

# Modules that decide and touch nothing. They may import these of the standard library, each of which computes and no more
# (shlex's split does not read; datetime has constants and arithmetic, its clock is looked for below; uuid's uuid5 is a hash); and
# two others, to compute.
PURE = (
    "batteries/companion.py",
    "batteries/postgres/configuration.py",
    "batteries/postgres/contents.py",
    "batteries/postgres/control.py",
    "batteries/postgres/visibility.py",
    "coordination/protocol.py",
    "mount/protocol.py",
    "once/asked.py",
    "parameters/*.py",
    "session/artifact.py",
    "session/catalog.py",
    "session/compose.py",
    "session/kubelet.py",
    "session/job.py",
    "session/lead.py",
    "session/place.py",
    "session/plan.py",
    "session/pod.py",
    "session/runner.py",
    "session/variables.py",
    "store/format.py",
    "store/reference.py",
    "factory/definition.py",
    "factory/manifests.py",
    "factory/model.py",
    "factory/transcript.py",
    "functions/answer.py",
    "functions/confinement.py",
    "functions/hedge.py",
    "functions/syscalls.py",
    "web/contract.py",
    "web/description.py",
    "web/overview.py",
    "web/page.py",
    "errors.py",
    "exits.py",
    "figures.py",
    "heard.py",
    "sandbox.py",
    "values.py",
)
COMPUTES = {
    "__future__", "base64", "codecs", "collections", "dataclasses", "datetime", "difflib", "functools", "hashlib", "hmac",
    "itertools", "json", "math", "posixpath", "re", "shlex", "string", "struct", "typing", "unicodedata", "uuid",
}  # fmt: skip
PURE_OF_OTHERS = {
    "parameters/document.py": {"yaml"},
    "factory/definition.py": {"yaml"},
    "factory/manifests.py": {"yaml"},
    "session/catalog.py": {"yaml"},
    "store/format.py": {"blake3"},
}
# Names that reach the world without an import.
REACHES = {"open", "input", "print", "exec", "eval", "compile", "__import__", "breakpoint"}
CLOCKS = {"now", "today", "utcnow"}

# The process's environment, its output and its exit are the commands' affair. Exceptions, each with its reason.
FOR_THE_CLI = {
    "os.environ",
    "os.environb",
    "os.getenv",
    "print",
    "sys.exit",
    "click.echo",
    "sys.stdout",
    "sys.stderr",
    "sys.argv",
    "input",
}
ELSEWHERE = {
    "once/ledger.py": {
        "os.environ": "whoever calls Ledger() has no command line of ours that could say where it is and in which instance",
    },
    "store/filesystem.py": {
        "os.environ": "whoever hands bundle:// to pandas has no command line of ours that could say where the store is",
    },
    "process.py": {
        "os.environ": "a command is begun with the environment that we were given, and nobody above knows how Python changed it",
        "sys.stdout": "what is buffered is written before fork, or the child would write it a second time",
    },
}

# What costs more than a start of the wrapper may: a third of it each, or more.
HEAVY = (
    "argparse", "asyncio", "blake3", "click", "dataclasses", "enum", "fsspec", "importlib.metadata", "inspect", "json", "logging",
    "re", "rich", "subprocess", "tempfile", "threading", "traceback", "typing", "watchdog", "yaml",
)  # fmt: skip

SAYS_NOTHING = {"base", "common", "core", "helper", "helpers", "manager", "misc", "tools", "util", "utils"}


# --- the modules -------------------------------------------------------------------------------------------------------


class Module(NamedTuple):
    """One file of the package: its path below it, its name without `sidecar.`, and what it says."""

    path: str
    name: str
    tree: ast.Module

    @property
    def place(self) -> str:
        """The part of the package that it belongs to; `sidecar` for its __init__."""
        return self.name.split(".")[0] or "sidecar"


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE).as_posix()
        name = path.removesuffix(".py").removesuffix("__init__").rstrip("/").replace("/", ".")
        found.append(Module(path, name, ast.parse(file.read_text())))
    return tuple(found)


def imports(module: Module, *, only_running: bool = False) -> Iterator[str]:
    """Yield the full name of each module that `module` imports, anywhere in it; where only type checkers look, too."""
    known = {("sidecar." + each.name).rstrip(".") for each in modules()}
    nodes = set(ast.walk(module.tree))
    if only_running:
        guarded = [node for node in nodes if isinstance(node, ast.If) and dotted(node.test) == "TYPE_CHECKING"]
        nodes -= {inner for node in guarded for each in node.body for inner in ast.walk(each)}
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.path}:{node.lineno}: import by the full name"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module


def ours(module: Module, *, only_running: bool = False) -> Iterator[str]:
    """Yield the names, without `sidecar.`, of the modules of ours that `module` imports."""
    for name in imports(module, only_running=only_running):
        if name == "sidecar" or name.startswith("sidecar."):
            yield name.removeprefix("sidecar").lstrip(".")


def place(name: str) -> str:
    return name.split(".")[0] or "sidecar"


def level(of: str, layers: tuple[tuple[str, ...], ...]) -> int:
    found = [number for number, layer in enumerate(layers) if of in layer]
    assert found, f"{of!r} has no place among the layers"
    return found[0]


def is_below(name: str, parts: set[str]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


def dotted(node: ast.expr) -> str:
    """Return `os.environ` for that expression, "" for what is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


def names_used(module: Module) -> set[str]:
    """Return the plain and dotted names that a module uses, its `from` imports among them."""
    used = {dotted(node) for node in ast.walk(module.tree) if isinstance(node, ast.Name | ast.Attribute)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom):
            used |= {f"{node.module}.{alias.name}" for alias in node.names}
    return used


def pure_modules() -> list[Module]:
    found = [module for module in modules() if any(Path(module.path).match(pattern) for pattern in PURE)]
    for pattern in PURE:
        assert any(Path(module.path).match(pattern) for module in found), f"there is no {pattern} any more"
    return found


every_pure_module = pytest.mark.parametrize("module", pure_modules(), ids=lambda module: module.path)


# --- what leans on what ------------------------------------------------------------------------------------------------


def test_imports_go_down_only() -> None:
    above = [
        f"{module.path} imports {name}, which does not stand below it"
        for module in modules()
        for name in ours(module)
        if place(name) != module.place and level(place(name), LAYERS) <= level(module.place, LAYERS)
    ]
    assert not above, "\n".join(above)


@pytest.mark.parametrize(
    ("reserved", "who", "why"), [(name, *said) for name, said in RESERVED_FOR.items()], ids=list(RESERVED_FOR)
)
def test_what_is_for_some_alone_is_imported_by_them_alone(reserved: str, who: set[str], why: str) -> None:
    others = [module for module in modules() if module.place != reserved and not is_below(module.name, who)]
    importing = [module.path for module in others if reserved in map(place, ours(module))]
    assert not importing, f"{', '.join(importing)}: {why}"


def test_inside_coordination_imports_go_down_too() -> None:
    inside = {module.name.partition(".")[2]: module for module in modules() if module.name.startswith("coordination.")}
    above = [
        f"{name} imports {other}"
        for name, module in inside.items()
        for other in (each.partition(".")[2] for each in ours(module) if each.startswith("coordination."))
        if level(other, COORDINATION) <= level(name, COORDINATION)
    ]
    assert not above, "\n".join(above)


def test_no_module_imports_itself_by_way_of_others() -> None:
    # The name of a type is no import: a module may be called with what its caller makes.
    graph = {module.name: set(ours(module, only_running=True)) - {module.name} for module in modules()}

    def follow(name: str, behind: tuple[str, ...]) -> None:
        assert name not in behind, " → ".join([*behind, name])
        for each in graph[name] & unseen:
            follow(each, (*behind, name))
        unseen.discard(name)

    # main names its commands by text, so that completion may name main.
    unseen = set(graph)
    for name in sorted(graph):
        if name in unseen:
            follow(name, ())


def outside() -> dict[str, str]:
    """Return what the modules of each distribution in `batteries/` say, by the name of the package."""
    packages = {file.parent for file in (ROOT / "batteries").glob("*/*/__init__.py")}
    return {package.name: "\n".join(file.read_text() for file in package.rglob("*.py")) for package in packages}


def test_a_battery_from_outside_leans_on_what_is_meant_for_it_alone() -> None:
    said = outside()
    assert said
    for package, text in said.items():
        found = {ours for module in ast.walk(ast.parse(text)) for ours in imported(module)}
        others = {name for name in found if not is_below(name, FOR_BATTERIES)}
        assert not others, f"{package} imports {', '.join(sorted(others))}"


def imported(node: ast.AST) -> Iterator[str]:
    """Yield the names, without `sidecar.`, of what an import takes of ours."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
    yield from (name.removeprefix("sidecar").lstrip(".") for name in names if name == "sidecar" or name.startswith("sidecar."))


def test_nothing_of_ours_knows_a_battery_from_outside() -> None:
    for package in outside():
        assert not [module.path for module in modules() if package in (PACKAGE / module.path).read_text()]


def test_the_leaves_import_nothing_of_ours() -> None:
    for module in modules():
        if module.place in LAYERS[-1]:
            assert not list(ours(module)), module.path


# --- what is pure ------------------------------------------------------------------------------------------------------


@every_pure_module
def test_what_decides_imports_nothing_that_touches_the_outside_world(module: Module) -> None:
    allowed = COMPUTES | PURE_OF_OTHERS.get(module.path, set())
    foreign = {name for name in imports(module) if name.split(".")[0] not in {"sidecar", *allowed}}
    assert not foreign, f"{module.path} imports {', '.join(sorted(foreign))}"


@every_pure_module
def test_what_decides_leans_on_nothing_that_does(module: Module) -> None:
    pure = {each.name for each in pure_modules()} | {"parameters"}
    assert set(ours(module)) <= pure, f"{module.path} imports {', '.join(sorted(set(ours(module)) - pure))}"


@every_pure_module
def test_what_decides_opens_prints_and_asks_the_time_of_nothing(module: Module) -> None:
    called = [node.func for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
    assert not {each.id for each in called if isinstance(each, ast.Name)} & REACHES, module.path
    assert not {each.attr for each in called if isinstance(each, ast.Attribute)} & CLOCKS, module.path


# --- where the world is touched ----------------------------------------------------------------------------------------


def test_the_environment_the_output_and_the_exit_are_the_commands_affair() -> None:
    used = {module.path: names_used(module) & FOR_THE_CLI for module in modules() if module.place != "cli"}
    assert {path: names for path, names in used.items() if names} == {path: set(why) for path, why in ELSEWHERE.items()}


def test_every_exception_is_of_a_module_that_there_is() -> None:
    paths, names = {module.path for module in modules()}, {module.name for module in modules()}
    assert set(ELSEWHERE) <= paths
    assert set(PURE_OF_OTHERS) <= paths
    assert set(RESERVED_FOR) <= {module.place for module in modules()}
    assert {who for whose, _ in RESERVED_FOR.values() for who in whose} <= names


# --- how it reads ------------------------------------------------------------------------------------------------------


def test_every_module_says_what_it_is() -> None:
    # An empty __init__ only makes its folder a package.
    assert not [module.path for module in modules() if module.tree.body and not ast.get_docstring(module.tree)]


def test_every_public_function_and_class_says_what_it_does() -> None:
    silent = [
        f"{module.path}:{node.lineno}: {node.name}"
        for module in modules()
        if module.place != "cli"
        for node in public(module.tree)
        if not ast.get_docstring(node) and not says_it_by_its_name(node)
    ]
    assert not silent, "\n".join(silent)


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(tree: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    """Yield what a module or a class defines for others, methods included."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def says_it_by_its_name(node: Definition) -> bool:
    """Tell whether a definition is a property, or no more than one expression."""
    if isinstance(node, ast.ClassDef):
        return False
    is_property = any(dotted(decorator) == "property" for decorator in node.decorator_list)
    return is_property or (len(node.body) == 1 and isinstance(node.body[0], ast.Return))


def test_modules_are_named_for_what_they_are() -> None:
    assert not [module.path for module in modules() if set(module.name.split(".")) & SAYS_NOTHING]


# --- what a start pays for ---------------------------------------------------------------------------------------------


def loaded(code: str, *arguments: str) -> set[str]:
    """Return what is loaded when the process that runs `code` ends, of Python's modules that none of its own start needs.

    Isolated and without `site`, so that nothing of it is loaded for another reason; and however it ends.
    """
    watch = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}]
leave = os._exit
def tell(status):
    os.write(2, b'\\nloaded ' + ' '.join(sys.modules).encode())
    leave(status)
os._exit = tell
{code}
tell(0)
"""
    ran = subprocess.run([sys.executable, "-ISc", watch, *arguments], capture_output=True, text=True, timeout=60)
    return set(ran.stderr.rpartition("\nloaded ")[2].split())


def test_importing_sidecar_imports_nothing_else_of_ours() -> None:
    found = loaded("import sidecar")
    assert {name for name in found if name.startswith("sidecar")} == {"sidecar"}
    assert not found & set(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "{coord}", "-b", "fuse", "--save", "never", "--", "true"),
        ("-c", "{coord}", "-b", "fuse", "--save", "never", "--", "false"),
        ("-c", "{coord}", "-b", "fuse", "--save", "never", "--once", "n", "--", "echo", "kept"),
        ("-c", "{coord}", "-b", "fuse", "-b", "plugin", "--appear-timeout", "0", "--", "true"),
        ("-c", "{coord}/nothing", "-b", "fuse", "--", "true"),
        ("-c", "{coord}", "-b", "fuse", "--nonsense"),
        ("--help",),
    ],
    ids=["runs", "fails", "runs once", "waits", "finds no directory", "is misused", "helps"],
)
def test_wrap_application_never_imports_what_is_heavy(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "mountdone").touch()
    start = "from sidecar.cli.wrap_application import main; main()"
    found = loaded(start, *(each.replace("{coord}", str(tmp_path)) for each in arguments))
    assert "sidecar.cli.wrap_application" in found
    assert not {name for name in found if is_below(name, set(HEAVY))}
    assert not {name for name in found if is_below(name, {"sidecar.store", "sidecar.batteries", "sidecar.parameters"})}


@pytest.mark.parametrize(
    "module", ["sidecar.cli.main", "sidecar.cli.status", "sidecar.batteries", "sidecar.testing", "sidecar.store"]
)
def test_what_only_some_stores_and_terminals_need_is_imported_by_nobody_else(module: str) -> None:
    """fsspec is for stores elsewhere, rich for a terminal, watchdog for a live view: whoever needs one imports it then."""
    code = f"import {module}, sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    assert not {name for name in ran.stdout.split() if is_below(name, {"fsspec", "rich", "watchdog", "matplotlib", "pandas"})}


# --- entry points ------------------------------------------------------------------------------------------------------


def project() -> dict[str, dict[str, dict[str, str]]]:
    found: dict[str, dict[str, dict[str, str]]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def resolved(entry: str) -> object:
    module, _, name = entry.partition(":")
    found: object = getattr(importlib.import_module(module), name)
    return found


@pytest.mark.parametrize(("name", "entry"), project()["scripts"].items())
def test_every_command_of_the_project_is_there(name: str, entry: str) -> None:
    assert callable(resolved(entry))
    assert (Path(sys.executable).parent / name).exists(), f"{name} is not installed"


@pytest.mark.parametrize(("name", "entry"), project()["entry-points"]["sidecar.batteries"].items())
def test_every_battery_of_the_project_is_there_and_found(name: str, entry: str) -> None:
    kind = resolved(entry)
    assert isinstance(kind, Kind)
    assert kind.name == name
    assert find(name) is kind
    assert name in {each.name for each in entry_points(group="sidecar.batteries")}


@pytest.mark.parametrize(("name", "entry"), [(name, entry) for name, (entry, _) in COMMANDS.items()])
def test_every_subcommand_is_there_and_goes_by_its_name(name: str, entry: str) -> None:
    assert getattr(resolved(entry), "name", None) == name


# --- files -------------------------------------------------------------------------------------------------------------

# Somebody's home, or where somebody keeps the checkout. `/home/me`, `/home/you` and root's own `bin` are nobody's.
SOMEBODYS = re.compile(r"(?<![\w.~-])/(?:home/(?!(?:me|you)\b)\w|Users/\w|root/(?!bin\b)[\w.]|work/(?:main|shared)\b)")
NOT_TRACKED = {".git", ".venv", "build", "dist", "__pycache__", ".hypothesis", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


def tracked() -> list[Path]:
    """Return the files that git tracks; where this is no checkout, those that it would."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, timeout=60)
    except FileNotFoundError:
        pass
    else:
        if listed.returncode == 0 and listed.stdout:
            return [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_TRACKED]
        found += [Path(folder, name) for name in files]
    return found


def texts() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        try:
            yield path.relative_to(ROOT), path.read_bytes().decode()
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # no text; or deleted and not committed yet


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    found = [
        f"{path}:{number}: {line.strip()}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if SOMEBODYS.search(line)
    ]
    assert not found, "\n".join(found)


def test_that_would_be_noticed() -> None:
    for where in ("home/jo/x", "Users/jo", "root/x", "work/main"):
        assert SOMEBODYS.search(f'path = "/{where}"'), where
    for top, rest in (("", "home/me"), ("~", "home/x"), ("", "work/in"), ("", "srv/store"), ("", "workshop/maintenance")):
        assert not SOMEBODYS.search(f'path = "{top}/{rest}"'), rest
    assert {path.name for path, _ in texts()} >= {"README.md", "pyproject.toml", "errors.py"}
