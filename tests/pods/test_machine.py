"""What containers.py promises: containers of its own, volumes as a kubelet makes them, and nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from composed import SIDECAR
from containers import Machine, Manifest, image, in_bytes
from processes import HANG, gone, processes, until

# Plays a pod, says under which id the machine's first process is known here, and waits to be killed.
PLAYS = """
import json, sys, time
from containers import Machine
machine = Machine()
machine.play([json.loads(sys.argv[1])])
print(machine.pid, machine.folder, flush=True)
time.sleep(600)
"""


def pod(script: str, *, volumes: list[Manifest] | None = None, mounts: list[Manifest] | None = None, **spec: Any) -> Manifest:
    """Return a pod that runs a script."""
    container = {"name": "one", "image": image("demo-app"), "command": ["sh", "-ec", script], "volumeMounts": mounts or []}
    spec = {"restartPolicy": "Never", "containers": [container], "volumes": volumes or [], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}


def test_nothing_runs_on_when_the_test_process_is_killed(tmp_path: Path) -> None:
    script = f"exec sleep {10**6 + os.getpid()}"  # found by its argument
    manifest = json.dumps(pod(script))
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parent}", "TMPDIR": str(tmp_path)}
    started = subprocess.Popen([sys.executable, "-c", PLAYS, manifest], stdout=subprocess.PIPE, text=True, env=environment)
    assert started.stdout is not None
    with started.stdout as told:
        first, folder = told.readline().split()
    assert len(running(script)) == 1
    started.kill()
    started.wait(HANG)
    until(lambda: gone(int(first)) and not running(script), "everything has ended")
    mounts = Path("/proc/self/mounts").read_text()
    assert folder not in mounts


def running(script: str) -> list[int]:
    """Return the processes that run the last words of a script."""
    words = script.removeprefix("exec ").replace(" ", "\0").encode()
    found = []
    for pid in processes():
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().strip(b"\0") == words:
                found.append(pid)
        except OSError:
            pass
    return found


def test_two_machines_know_nothing_of_each_other(machine: Machine) -> None:
    with Machine() as other:
        played = machine.play([pod("sleep 600")])
        assert played.of("one") in machine.podman("ps", "--format={{.Names}}").stdout
        assert other.podman("ps", "--all", "--quiet").stdout == ""
        folder = other.folder
    assert not folder.exists()
    assert played.status("one").running


def test_what_is_mounted_in_there_is_not_seen_here(machine: Machine, tmp_path: Path) -> None:
    machine.run("mount", "-t", "tmpfs", "none", tmp_path)
    (machine.seen(tmp_path) / "there").touch()
    assert os.listdir(tmp_path) == []
    machine.run("umount", tmp_path)


def test_volumes_are_as_a_kubelet_makes_them(machine: Machine) -> None:
    volumes = [
        {"name": "disk", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ]
    mounts = [{"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"}]
    script = "stat -c '%n %a %u %g' /disk /memory; head -c 2M /dev/zero >/memory/file || stat -c %s /memory/file"
    first = machine.play([pod(script, volumes=volumes, mounts=mounts)])
    assert first.wait() == {"one": 0}
    assert first.out("one").splitlines() == ["/disk 777 0 0", "/memory 1777 0 0", str(1 << 20)]
    # Of another pod with volumes of the same names, nothing is there.
    second = machine.play([pod("ls /disk /memory", volumes=volumes, mounts=mounts)])
    assert second.wait() == {"one": 0}
    assert second.out("one").split() == ["/disk:", "/memory:"]


def test_the_group_of_the_pods_volumes_is_the_one_it_says(machine: Machine) -> None:
    context = {"runAsUser": SIDECAR, "fsGroup": 4711}
    mounts = [{"name": "disk", "mountPath": "/disk"}]
    played = machine.play(
        [pod("stat -c '%a %g' /disk", volumes=[{"name": "disk", "emptyDir": {}}], mounts=mounts, securityContext=context)]
    )
    assert played.wait() == {"one": 0}
    assert played.out("one") == "2777 4711\n"


def test_statuses_logs_and_messages_are_told_apart(machine: Machine) -> None:
    played = machine.play([pod("echo out; echo err >&2; echo why >/dev/termination-log; exit 5")])
    assert played.wait() == {"one": 5}
    assert (played.out("one"), played.err("one"), played.termination_message("one")) == ("out\n", "err\n", "why\n")


def test_a_pod_that_ends_is_told_and_killed_after_its_grace(machine: Machine) -> None:
    deaf = machine.play([pod("trap '' TERM; echo up; while :; do sleep 0.05; done", terminationGracePeriodSeconds=1)])
    deaf.until(lambda: deaf.out("one") == "up\n", "it runs")
    assert deaf.terminate() == {"one": 137}


def test_a_crash_is_followed_by_the_next_life_and_a_kill_is_not(machine: Machine) -> None:
    played = machine.play([pod("echo up; sleep 600", restartPolicy="OnFailure")])
    played.until(lambda: played.out("one") == "up\n", "it runs")
    played.crash("one")
    played.until(lambda: played.out("one") == "up\nup\n", "it runs again")
    assert played.status("one").restarts == 1
    played.kill("one", signal.SIGKILL)
    played.until(lambda: not played.status("one").running, "it is over")
    assert played.status("one").exit == 137


@pytest.mark.parametrize(("quantity", "size"), [("16Mi", 16 << 20), ("1Gi", 1 << 30), ("1500", 1500), (7, 7), ("2k", 2000)])
def test_quantities_are_read_as_kubernetes_does(quantity: str | int, size: int) -> None:
    assert in_bytes(quantity) == size
