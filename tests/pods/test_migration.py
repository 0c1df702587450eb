"""A pod of which only one side has come over from the datamon scripts: wrappers/MIGRATION.md says that this works.

The other side speaks as the scripts did (tests/processes.py), in a shell of its own container.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from containers import Machine, Manifest, documents, image
from manifests import EXAMPLES, content, expected, put_inputs
from processes import SH_APPLICATION, SH_BATTERY

from sidecar.session.compose import COORDINATION
from sidecar.store import open_store

EXAMPLE = "fuse-in-and-out"
READY, SAVE, SAVED = "mountdone", "initupload", "uploaddone"


def with_an_application_of_old(pod: Manifest) -> str:
    """Put a script in the place of the wrapper; return it."""
    container = pod["spec"]["containers"][0]
    assert container["name"] == "application"
    container["command"] = ["sh", "/scripts/script.sh", COORDINATION, READY, SAVE, SAVED]
    container["volumeMounts"].append({"name": "scripts", "mountPath": "/scripts"})
    return SH_APPLICATION


def with_a_battery_of_old(pod: Manifest) -> str:
    """Put a script in the place of the fuse battery; return it."""
    container = pod["spec"]["containers"][1]
    assert container["name"] == "fuse"
    prepare = "mkdir -p /input/weather && printf 'tue,19\\nwed,15\\n' >/input/weather/week.csv"
    keep = "cp /output/hottest.csv /store/kept"
    container["image"] = image("demo-app")
    container["command"] = ["sh", "/scripts/script.sh", COORDINATION, READY, SAVE, SAVED]
    container["args"] = [prepare, keep]
    container["volumeMounts"].append({"name": "scripts", "mountPath": "/scripts"})
    return SH_BATTERY


def played(machine: Machine, store: Path, change: Callable[[Manifest], str]) -> dict[str, int]:
    """Play the example with one of its sides changed; return the exit statuses."""
    (pod,) = documents((EXAMPLES / EXAMPLE / "downloaded.yaml").read_text())
    script = change(pod)
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "scripts"}, "data": {"script.sh": script}}
    pod["spec"]["volumes"].append({"name": "scripts", "configMap": {"name": "scripts"}})
    return machine.play([config, pod], claims={"store": store}).wait()


def test_an_application_of_old_finds_its_input_and_its_output_is_saved(machine: Machine, store: Path, tmp_path: Path) -> None:
    bundles = open_store(f"file://{store}")
    put_inputs(EXAMPLE, bundles)
    assert played(machine, store, with_an_application_of_old) == {"application": 0, "fuse": 0}
    for reference, files in expected(EXAMPLE).items():
        assert content(bundles, reference, tmp_path / reference) == files


def test_a_battery_of_old_is_waited_for_and_asked_to_save(machine: Machine, store: Path) -> None:
    assert played(machine, store, with_a_battery_of_old) == {"application": 0, "fuse": 0}
    assert (store / "kept").read_bytes() == b"tue,19\n"


def test_a_database_of_old_is_configured_by_its_variables_and_its_clients_go_on_without_a_password(
    machine: Machine, store: Path
) -> None:
    (pod,) = documents((EXAMPLES / "three-databases" / "1-open.yaml").read_text())
    application, sidecar = pod["spec"]["containers"]
    application["args"][2] = "psql -h localhost -p 5430 -U postgres -qAtc 'CREATE TABLE t AS SELECT 1'"
    sidecar["command"] = ["wrap_datamon_pg", "--trust"]
    # As the example of old had it, but for the place.
    sidecar["env"] = [each for each in sidecar["env"] if not each["name"].startswith("dm_pg_")] + [
        {"name": "dm_pg_opts", "value": f";:V:true;c:{COORDINATION}"},
        {"name": "dm_pg_db_db1", "value": ";:r:demo;l:latest;m:postgres coordination example;p:5430"},
    ]
    assert machine.play([pod], claims={"store": store}).wait() == {"application": 0, "postgres": 0}
    assert list(open_store(f"file://{store}").labels("demo")) == ["latest"]
