"""Bundles that a privileged sidecar mounts, seen by an application that is not; and the same bundle without any privilege."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from composed import NONROOT, application, fuse, pod
from containers import Machine, Pod, image
from manifests import EXAMPLES, content, put_inputs

from sidecar.store import Store, open_store

MOUNTED = "bundle mount --repo source --label latest --mount /data/in"
KEPT = "bundle upload --path /out --repo results --label latest --message made"
# What the application does: compares what it sees, tells how it sees it, and writes where a battery keeps it.
SCRIPT = """\
grep ' /data/in ' /proc/self/mounts | cut -d' ' -f3
cd /data/in && sha256sum one sub/two | tee /out/sums
"""
# The same until a file says that it is to end.
WAITS = "cat one >/dev/null; touch /out/up; until [ -e /out/go ]; do sleep 0.02; done"


@pytest.fixture
def bundles(store: Path, tmp_path: Path) -> Store:
    """The store, with a bundle of a small and a large file."""
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "one").write_bytes(b"one\n")
    (source / "sub" / "two").write_bytes(random.Random(1).randbytes(5 << 20))
    found = open_store(f"file://{store}")
    found.save(source, "source", label="latest")
    return found


def play(machine: Machine, store: Path, script: str, *, privileged: bool, options: tuple[str, ...] = ()) -> Pod:
    """Play a pod whose application runs a script that sees the bundle at /data/in and writes to /data/out."""
    command = ("-b", "fuse", "--", "sh", "-ec", f"{script}")
    wrapped = application(image("demo-app"), *command, propagation="HostToContainer" if privileged else "None")
    return machine.play([pod(wrapped, fuse(MOUNTED, KEPT, options=options, privileged=privileged))], claims={"store": store})


@pytest.mark.parametrize(
    ("privileged", "options", "kind"),
    [(True, (), "fuse.sidecar\n"), (True, ("--populate",), ""), (False, (), ""), (False, ("--populate",), "")],
    ids=["privileged", "privileged and told to download", "unprivileged", "unprivileged and told to download"],
)
def test_a_bundle_is_mounted_where_the_sidecar_may_mount_and_else_downloaded(
    machine: Machine, store: Path, bundles: Store, tmp_path: Path, privileged: bool, options: tuple[str, ...], kind: str
) -> None:
    played = play(machine, store, SCRIPT, privileged=privileged, options=options)
    assert played.wait() == {"application": 0, "fuse": 0}, played.told()
    sums = content(bundles, "results@latest", tmp_path / "here")["sums"]
    assert played.out("application") == kind + sums.decode()


def test_the_application_reads_a_mount_as_another_user_and_cannot_write_to_it(
    machine: Machine, store: Path, bundles: Store
) -> None:
    script = "id -u; cat /data/in/one; touch /data/in/new 2>/coord/error || tail -c 22 /coord/error"
    wrapped = application(image("demo-app"), "-b", "fuse", "--", "sh", "-ec", script, propagation="HostToContainer", user=NONROOT)
    played = machine.play([pod(wrapped, fuse(MOUNTED, privileged=True))], claims={"store": store})
    assert played.wait() == {"application": 0, "fuse": 0}, played.told()
    assert played.out("application") == "65532\none\nRead-only file system\n"


def test_when_the_pod_is_over_nothing_is_mounted_any_more(machine: Machine, store: Path, bundles: Store) -> None:
    played = play(machine, store, f"cd /data/in; {WAITS}", privileged=True)
    where = f" {played.volumes['data']}/in fuse"
    mounts = Path(f"/proc/{machine.pid}/mounts")
    played.until(played.file("out", "up").exists, "the application runs")
    assert where in mounts.read_text()
    played.file("out", "go").touch()
    assert played.wait() == {"application": 0, "fuse": 0}, played.told()
    assert where not in mounts.read_text()


def test_an_application_whose_mount_died_gets_an_error_and_no_empty_directory(
    machine: Machine, store: Path, bundles: Store
) -> None:
    played = play(machine, store, f"cd /data/in; {WAITS}; cat sub/two >/dev/null", privileged=True)
    played.until(played.file("out", "up").exists, "the application runs")
    played.kill("fuse")
    played.file("out", "go").touch()
    statuses = played.wait()
    assert statuses["application"] == 1
    assert "Transport endpoint is not connected" in played.err("application")
    assert statuses["fuse"] == 137
    assert "results" not in {repo.name for repo in bundles.repos()}


def test_the_next_life_of_a_sidecar_that_was_killed_mounts_again(machine: Machine, store: Path, bundles: Store) -> None:
    again = "until cat /data/in/one 2>/dev/null; do sleep 0.02; done"
    command = ("-b", "fuse", "--", "sh", "-ec", f"(cd /data/in; {WAITS}); {again}")
    wrapped = application(image("demo-app"), *command, propagation="HostToContainer")
    manifest = pod(wrapped, fuse(MOUNTED, KEPT, privileged=True), restart="OnFailure")
    played = machine.play([manifest], claims={"store": store})
    played.until(played.file("out", "up").exists, "the application runs")
    played.crash("fuse")
    played.file("out", "go").touch()
    assert played.wait() == {"application": 0, "fuse": 0}, played.told()
    assert played.status("fuse").restarts == 1
    assert played.out("application") == "one\n"


def test_the_example_that_mounts_does_mount(machine: Machine, store: Path) -> None:
    put_inputs("fuse-in-and-out", open_store(f"file://{store}"))
    text = (EXAMPLES / "fuse-in-and-out" / "mounted.yaml").read_text()
    script = "sort -t, -nk2 /input/weather/week.csv"
    assert script in text
    played = machine.play(
        text.replace(script, f"grep -q '/input/weather fuse' /proc/mounts && {script}"), claims={"store": store}
    )
    assert played.wait() == {"application": 0, "fuse": 0}, played.told()
