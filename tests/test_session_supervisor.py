"""What leads a pod of plain processes: signals that come early, programs that cannot be begun, long times, a full disk.

Each in a process of its own, whose signals and children are its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import HANG, LONG, processes_that_say
from session_contract import POLITE, container, hear, of, pod

from sidecar.session.local import LocalRunner

FOREGROUND = """
import os, signal, sys
from sidecar import process
from sidecar.coordination.signals import Directory
from sidecar.session import foreground

def run(batteries, application, looked=lambda: None):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs tests may have it ignored
    signals = process.SignalQueue()
    BEFORE
    with Directory(sys.argv[1]) as directory:
        return foreground.run(directory, batteries, application, sys.argv[1], signals, looked)
"""


def told(place: Path, script: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Return what a process said that runs `script`, in which `run` runs batteries and an application around `place`."""
    code = FOREGROUND.replace("BEFORE", before or "pass") + script
    return subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, timeout=HANG)


@pytest.mark.parametrize("number", [1, 2, 15])
def test_a_signal_that_comes_before_anything_was_begun_ends_all_of_it(tmp_path: Path, number: int) -> None:
    token = f"early-{os.getpid()}-{os.urandom(4).hex()}"
    sleeps = ["sh", "-c", f"sleep {LONG}; : {token}"]
    ran = told(tmp_path, f"sys.exit(run({{'fuse': {sleeps}}}, {sleeps}))", f"os.kill(os.getpid(), {number})")
    assert ran.returncode == 128 + number, ran.stderr
    assert processes_that_say(token) == []


@pytest.mark.parametrize("wrong", ["missing", "log"])
def test_where_a_battery_cannot_be_begun_the_application_is_not(tmp_path: Path, wrong: str) -> None:
    if wrong == "log":
        (tmp_path / "fuse.log").mkdir()
    battery = ["/no/such/battery"] if wrong == "missing" else ["true"]
    ran = told(tmp_path, f"run({{'fuse': {battery}}}, ['touch', {str(tmp_path / 'begun')!r}])")
    assert ran.returncode == 1
    assert "NotStarted: fuse could not be begun: " in ran.stderr
    assert ("/no/such/battery" if wrong == "missing" else "fuse.log") in ran.stderr
    assert not (tmp_path / "begun").exists()


def test_an_application_that_cannot_be_begun_ends_the_batteries(tmp_path: Path) -> None:
    token = f"left-{os.getpid()}-{os.urandom(4).hex()}"
    ran = told(tmp_path, f"run({{'fuse': ['sh', '-c', 'sleep {LONG}; : {token}']}}, ['/no/such/wrapper'])")
    assert "NotStarted: application could not be begun: " in ran.stderr
    assert processes_that_say(token) == []


def test_whatever_looks_on_fails_nobody_is_left(tmp_path: Path) -> None:
    token = f"left-{os.getpid()}-{os.urandom(4).hex()}"
    sleeps = ["sh", "-c", f"sleep {LONG}; : {token}"]
    ran = told(tmp_path, f"def looked(): raise ValueError('seen')\nrun({{'fuse': {sleeps}}}, {sleeps}, looked)")
    assert "ValueError: seen" in ran.stderr
    assert processes_that_say(token) == []


def test_a_grace_of_a_month_is_one(tmp_path: Path) -> None:
    runner = LocalRunner(str(tmp_path / "pods"))
    month = 30 * 24 * 3600
    runner.start(pod(container("one", "host", POLITE), name="patient", terminationGracePeriodSeconds=month))
    hear(runner, "patient", "one", "ready")
    assert of(runner.stop("patient"), "one").exit == 3


def test_a_pod_goes_on_though_how_it_stands_cannot_be_told_and_that_is_told_later() -> None:
    script = """
from sidecar import process
from sidecar.session.foreground import _Processes
from sidecar.session.lead import Lead
from sidecar.session.pod import Pod, Program
from sidecar.session.supervisor import Supervisor

told, full = [], [True, True]
def publish(status):
    if full.pop() if full else False:
        raise OSError(28, "No space left on device")
    told.append(status.phase)
programs = (Program("application", "", ("sleep", "1.5")),)
lead = Lead(Pod("p", "", (), programs, {}, "Never"), 0)
Supervisor(lead, _Processes(), lambda name: "/dev/null", process.SignalQueue(), lambda *_: None, publish).run()
print(told)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=HANG)
    assert (ran.returncode, ran.stdout) == (0, "['Running', 'Succeeded']\n") or ran.stdout == "['Succeeded']\n", ran.stderr
    assert "how the pod stands cannot be told: No space left on device" in ran.stderr
