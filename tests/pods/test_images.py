"""What is in the images, and what is not: whoever runs them depends on nothing else, and trusts them with nothing else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from composed import MEMORY, NONROOT, SIDECAR
from containers import TOP, Machine, image

from sidecar import __version__

OURS = {"fuse-sidecar": "wrap_datamon", "pg-sidecar": "wrap_datamon_pg"}
# Where a container may write, when all else is read-only.
HARDENED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=none", "--rm")


def configuration(machine: Machine, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.podman("image", "inspect", image(name)).stdout)[0]
    return found


def ran(machine: Machine, name: str, *command: str, options: Sequence[str] = HARDENED, check: bool = True) -> str:
    """Run a command in a container of an image, and return what it said."""
    entry = f"--entrypoint={json.dumps([command[0]])}"
    return machine.podman("run", *options, entry, image(name), *command[1:], check=check).stdout


@cache
def files(machine: Machine, name: str) -> Mapping[str, str]:
    """Return each file of an image with its mode and kind, as find(1) prints them."""
    container = machine.run("buildah", "from", "--pull-never", image(name)).stdout.strip()
    where = machine.run("buildah", "mount", container).stdout.strip()
    lines = machine.run("find", where, "-mindepth", "1", "-printf", "/%P\\t%y %m\\n").stdout.splitlines()
    machine.run("buildah", "rm", container)
    return MappingProxyType(dict(line.split("\t") for line in lines))


def test_the_wrappers_image_holds_that_one_file(machine: Machine) -> None:
    assert files(machine, "wrapper") == {"/wrap_application": "f 555"}
    assert configuration(machine, "wrapper")["Size"] <= 10_000_000
    assert configuration(machine, "wrapper")["Config"]["Entrypoint"] == ["/wrap_application"]
    said = machine.podman("run", *HARDENED, f"--memory={MEMORY}", image("wrapper"), "--version").stdout
    assert said == f"wrap_application {__version__}\n"


@pytest.mark.parametrize("name", [*OURS, "demo-app", "demo-artifacts", "wrapper"])
def test_no_image_runs_as_root(machine: Machine, name: str) -> None:
    user = SIDECAR if name in OURS else NONROOT
    assert configuration(machine, name)["Config"]["User"] == f"{user}:{user}"


@pytest.mark.parametrize("name", [*OURS, "demo-app"])
def test_images_hold_no_keys_no_lists_of_packages_and_no_mirror(machine: Machine, name: str) -> None:
    there = files(machine, name)
    wanted = [path for path, about in there.items() if about.startswith("f")]
    assert not [path for path in wanted if path.startswith(("/var/lib/apt/lists/", "/var/cache/apt/", "/var/log/", "/wheels"))]
    assert not [path for path in wanted if path.startswith("/etc/ssl/private/") or path.endswith((".key", "/pip"))]
    assert ran(machine, name, "cat", "/etc/apt/sources.list", "/etc/apt/apt.conf") == ""
    assert "/etc/apt/sources.list.d/0000sources.list" not in there


@pytest.mark.parametrize("name", OURS)
def test_a_sidecars_image_runs_read_only_with_no_right_and_holds_the_commands(machine: Machine, name: str) -> None:
    assert configuration(machine, name)["Config"]["Entrypoint"] == [OURS[name]]
    for command in ("sidecar", OURS[name]):
        assert __version__ in ran(machine, name, command, "--version")
    assert ran(machine, name, "id", "-un") == "sidecar\n"
    script = "import fsspec, gcsfs, s3fs, blake3, zstandard, sidecar.store; print(sidecar.store.__file__)"
    assert ran(machine, name, "python", "-c", script).startswith("/opt/sidecar/lib/")


@pytest.mark.parametrize("name", OURS)
def test_every_module_was_compiled_where_nothing_can_be_written(machine: Machine, name: str) -> None:
    there = files(machine, name)
    lines = ran(machine, name, "sh", "-c", "python -v -c 'import asyncio, sidecar.cli.main, sidecar.store' 2>&1").splitlines()
    assert len([line for line in lines if line.startswith("# code object from ") and line.endswith(".pyc'")]) > 100
    assert not [line for line in lines if line.startswith("# code object from ") and line.endswith(".py'")]
    assert not [line for line in lines if "wrote" in line]
    modules = [path for path in there if path.startswith("/opt/sidecar/lib/") and "/sidecar/" in path and path.endswith(".py")]
    assert len(modules) > 50
    compiled = {path.replace("/__pycache__/", "/").partition(".cpython-")[0] for path in there if "/__pycache__/" in path}
    assert [path for path in modules if path.removesuffix(".py") not in compiled] == []


def test_what_is_compiled_is_believed_without_a_look_at_times(machine: Machine) -> None:
    script = (
        "import importlib.util, json, pathlib, sidecar.store, zstandard\n"
        "for module in (json, sidecar.store, zstandard):\n"
        "    print(int.from_bytes(pathlib.Path(module.__cached__).read_bytes()[4:8], 'little'))\n"
    )
    assert ran(machine, "fuse-sidecar", "python", "-c", script).split() == ["1", "1", "1"]


def test_the_postgres_image_has_all_that_a_cluster_takes(machine: Machine) -> None:
    programs = ("postgres", "initdb", "pg_dump", "pg_upgrade", "pg_amcheck", "psql")
    script = f"cd /usr/lib/postgresql/*/bin && ls {' '.join(programs)}"
    assert set(ran(machine, "pg-sidecar", "sh", "-ec", script).split()) == set(programs)
    assert "postgres" not in ran(machine, "fuse-sidecar", "ls", "/usr/lib")


def test_the_demo_application_holds_a_shell_and_psql_and_neither_python_nor_anything_of_ours(machine: Machine) -> None:
    assert ran(machine, "demo-app", "sh", "-c", "psql --version").startswith("psql (PostgreSQL)")
    there = files(machine, "demo-app")
    assert not [path for path in there if "python" in path.rpartition("/")[2] and "/share/" not in path]
    assert not [path for path in there if "sidecar" in path]


def test_the_artifacts_hold_their_files_and_nothing_that_could_run_them(machine: Machine) -> None:
    there = {path for path, about in files(machine, "demo-artifacts").items() if about.startswith("f")}
    assert there == {"/units/bin/fahrenheit", "/report/bin/report", "/report/share/heading", "/bars/bin/bars"}


def test_containerfiles_name_no_registry_and_take_their_base_as_an_argument() -> None:
    for path in sorted([*(TOP / "images").glob("*/Containerfile"), *(TOP / "batteries").glob("*/Containerfile")]):
        text = path.read_text()
        bases = {line.split()[1] for line in text.splitlines() if line.startswith("FROM ")}
        assert bases <= {"${BASE}", "scratch"}, path
        assert ("ARG BASE" in text) == ("${BASE}" in bases)


def test_a_machines_limits_are_not_exceeded(tmp_path: Path) -> None:
    script = 'ulimit -n 1000; ulimit -u 2000; exec "$0" "$1" "$1/store"'
    subprocess.run(["bash", "-c", script, TOP / "images" / "configure", tmp_path], check=True)
    assert '["nofile=1000:1000", "nproc=2000:2000"]' in (tmp_path / "containers.conf").read_text()


def test_without_a_store_of_images_none_is_read(tmp_path: Path) -> None:
    subprocess.run([TOP / "images" / "configure", tmp_path, tmp_path / "store"], check=True)
    assert "additionalimagestores = []" in (tmp_path / "storage.conf").read_text()
