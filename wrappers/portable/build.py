"""Build the portable wrapper: one static executable of the C files here, libpython, SQLite, and the Python modules that it needs.

    /usr/bin/python3 -I wrappers/portable/build.py FILE

Run it with the Python whose libpython is linked: what is frozen is that interpreter's own byte code. Debian and Ubuntu have the
static libraries in libpython3-dev and libsqlite3-dev. For another machine than this one, `--libpython` and `--libsqlite3` name
its libraries and `CC` its compiler; the Python must be of the same version. Which modules are needed is found by following
imports from portable.py, or, in tests, from the module that `--portable` puts in its place; those that main.c lists, and those
that every libpython holds frozen, need no source.
"""

from __future__ import annotations

import _imp
import argparse
import ast
import importlib.util
import marshal
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
C_SOURCES = (HERE / "main.c", HERE / "linux.c", HERE / "sqlite.c")
OURS = {
    "portable": HERE / "portable.py",
    "copy_tree": HERE / "copy_tree.py",
    "_json": HERE / "json_in_python.py",
    "_sqlite3": HERE / "sqlite_in_python.py",
}
# Begun with before any import of ours: how text is encoded.
FIRST = ("encodings", "encodings.aliases", "encodings.utf_8", "encodings.ascii", "encodings.latin_1")
# What is imported only where something else is missing, which is there; and only for other programs than this wrapper: its runs
# have no variables to hash, and their times go to nobody.
NEVER = {"ctypes", "json"} | {"hashlib", "datetime"}
# Not -O2: nothing here is compiled but some hundred lines. The sections are those of libpython, which has them where it can.
FLAGS = ("-static", "-no-pie", "-Os", "-s", "-Wl,--gc-sections", "-Wl,-z,noexecstack")
SYSTEM_LIBRARIES = ("-lm", "-ldl", "-lutil", "-lpthread")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="where the executable goes")
    parser.add_argument("--libpython", type=Path, default=library(), help="libpython3.*.a (default: %(default)s)")
    parser.add_argument("--include", type=Path, default=Path(sysconfig.get_path("include")), help="its headers")
    parser.add_argument("--libsqlite3", type=Path, default=sqlite(), help="libsqlite3.a (default: %(default)s)")
    parser.add_argument("--portable", type=Path, default=OURS["portable"], help="the module that it runs (default: %(default)s)")
    said = parser.parse_args()
    if not (said.libpython.is_file() and (said.include / "Python.h").is_file()):
        sys.exit(f"build.py: there is no {said.libpython} or no {said.include}/Python.h: apt-get install libpython3-dev")
    if not said.libsqlite3.is_file():
        sys.exit(f"build.py: there is no {said.libsqlite3}: apt-get install libsqlite3-dev")
    OURS["portable"] = said.portable
    build(said.file, [said.libpython, said.libsqlite3], said.include)
    print(f"{said.file}: {said.file.stat().st_size / 1e6:.1f} MB, of Python {sys.version.split()[0]}")


def library() -> Path:
    """Return where this interpreter's static library is, or would be."""
    return Path(sysconfig.get_config_var("LIBPL"), sysconfig.get_config_var("LIBRARY"))


def sqlite() -> Path:
    """Return where this machine's static SQLite is, or would be."""
    return Path("/usr/lib", sysconfig.get_config_var("MULTIARCH"), "libsqlite3.a")


def build(target: Path, libraries: list[Path], include: Path) -> None:
    """Make the executable `target`, atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        frozen, made = Path(folder, "frozen.c"), Path(folder, "made")
        frozen.write_text(in_c(modules_needed()))
        compiler = shlex.split(os.environ.get("CC", "cc"))
        sources = [*C_SOURCES, frozen, *libraries]
        headers = [f"-I{include}", "-idirafter", str(include.parent)]  # Debian's lead to those of one machine, beside them
        words: list[str | Path] = [*compiler, *FLAGS, *headers, *sources, *SYSTEM_LIBRARIES, "-o", made]
        ran = subprocess.run(words, capture_output=True, text=True)
        if ran.returncode:  # its warnings are of functions that look up users and load libraries, which nothing here calls
            sys.exit(f"{ran.stderr}build.py: {compiler[0]} failed")
        made.rename(target)


# --- which modules -----------------------------------------------------------------------------------------------------


def modules_needed() -> dict[str, Path]:
    """Return the modules that portable.py needs and libpython does not have: the names, and where their sources are."""
    built_in = set(re.findall(r'^ +\{"(\w+)", ', (HERE / "main.c").read_text(), re.MULTILINE))
    found: dict[str, Path] = {}
    left = ["portable", "_sqlite3", *FIRST]
    while left:
        name = left.pop()
        if name in found or name in built_in or name in NEVER or is_in_every_libpython(name):
            continue
        found[name] = source_of(name)
        left += [parent for parent in [name.rpartition(".")[0]] if parent]
        left += imports(ast.parse(found[name].read_text()), anywhere=is_ours(name))
    return found


def is_in_every_libpython(name: str) -> bool:
    """Tell whether the interpreter itself holds `name` frozen: it starts with os and a dozen others."""
    return _imp.is_frozen(name) and not name.startswith("__")


def is_ours(name: str) -> bool:
    return name in OURS or name.split(".")[0] == "sidecar"


def source_of(name: str) -> Path:
    if name in OURS:
        return OURS[name]
    if is_ours(name):
        path = TOP.joinpath(*name.split("."))
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = importlib.util.find_spec(name)
    if found is None or not (found.origin or "").endswith(".py"):
        sys.exit(f"build.py: {name} is imported and is no Python module of the standard library; see main.c")
    return Path(found.origin or "")


def imports(tree: ast.Module, *, anywhere: bool) -> Iterator[str]:
    """Yield what a module imports: `anywhere` in it, or when it is imported itself; not what is for type checkers only.

    Functions of the standard library import what their callers want of them; ours are called.
    """
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from imported_from(node)
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            left += node.orelse
        elif anywhere or not isinstance(node, ast.FunctionDef):
            left += ast.iter_child_nodes(node)


def imported_from(node: ast.ImportFrom) -> Iterator[str]:
    if node.level or node.module is None:
        return  # encodings imports its aliases so
    yield node.module
    if node.module.split(".")[0] == "sidecar":
        names = (f"{node.module}.{alias.name}" for alias in node.names)
        yield from (name for name in names if source_of(name).is_file())


# --- as C --------------------------------------------------------------------------------------------------------------


def in_c(modules: dict[str, Path]) -> str:
    """Return the table of frozen modules in C."""
    arrays, rows = [], []
    for number, (name, path) in enumerate(sorted(modules.items())):
        code = marshal.dumps(compile(path.read_bytes(), f"<frozen {name}>", "exec", dont_inherit=True, optimize=0))
        arrays.append(f"static const unsigned char code_{number}[] = {{{','.join(map(str, code))}}};")
        package = int(path.name == "__init__.py")
        rows.append(f'    {{.name = "{name}", .code = code_{number}, .size = sizeof code_{number}, .is_package = {package}}},')
    head = "#include <Python.h>\n"
    return "\n".join([head, *arrays, "const struct _frozen sidecar_frozen[] = {", *rows, "    {0},\n};\n"])


if __name__ == "__main__":
    main()
