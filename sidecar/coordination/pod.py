"""One pod made of local processes: batteries and the application's wrapper, each a process, around one directory.

They are the very programs that containers run, and nothing here takes part in their coordination: this module starts them,
passes signals on, reaps them, and calls back whenever something was said. Whoever dies, the others hear it from the directory,
and where it died too early to have left a trace there, this module leaves that trace. Should this process be killed, the kernel
takes all of them along.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping, Sequence

from sidecar import process
from sidecar.coordination.application import ENDING
from sidecar.coordination.protocol import APPLICATION, FAILED
from sidecar.coordination.signals import Directory, Watch, follow
from sidecar.errors import Unreachable

# How often `looked` is called at least, in seconds: a live view counts seconds.
TICK = 0.25


def run(
    directory: Directory,
    batteries: Mapping[str, Sequence[str]],
    application: Sequence[str],
    logs: str,
    signals: process.SignalQueue,
    looked: Callable[[], None],
) -> int:
    """Run the application's wrapper and the batteries, by name, until all have ended; return the wrapper's exit status.

    What a battery prints goes to `<logs>/<name>.log`. `looked` is called whenever something was said, and every TICK seconds.
    Raises process.NotStarted where one of them cannot be begun; the others are ended then.
    """
    directory.make(())
    children: dict[str, process.Child] = {}
    process.adopt_orphans()
    try:
        for name, command in batteries.items():
            children[name] = _start_battery(command, os.path.join(logs, f"{name}.log"))
        wrapper = children[APPLICATION] = process.spawn(application)
        _follow(directory, children, signals, looked)
    finally:
        _end(list(children.values()), signals)
    return 128 + wrapper.signal if wrapper.signal else wrapper.code


def _start_battery(command: Sequence[str], log: str) -> process.Child:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return process.spawn(command, streams=(output, output), background=True)
    finally:
        os.close(output)


def _follow(
    directory: Directory, children: Mapping[str, process.Child], signals: process.SignalQueue, looked: Callable[[], None]
) -> None:
    begun = given_up = False

    def step(watch: Watch) -> float | None:
        nonlocal begun, given_up
        if not begun:
            watch.add(signals.fd)
            begun = True
        for number in signals.drain():
            if number in ENDING:
                for child in children.values():
                    child.send(number)
        process.reap(*children.values())
        for name, child in children.items():
            if child.ended and directory.alive(name) is None:
                # It died before it took its lease. One that is free is what the others take for a death.
                os.close(directory.lease(name))
        if children[APPLICATION].ended and not given_up and (record := directory.record(APPLICATION)) is not None:
            given_up = record.state == FAILED
            if given_up:  # Nobody waits for the batteries any more: they are sent what the kubelet sends them.
                for child in children.values():
                    child.send(process.SIGTERM)
        looked()
        return None if all(child.ended for child in children.values()) else TICK

    try:
        follow(directory, (), step)
    except Unreachable:
        # It was deleted. Each participant notices, and a command that runs is let run to its end.
        _wait(list(children.values()), signals)


def _wait(children: Sequence[process.Child], signals: process.SignalQueue) -> None:
    """Return when all have ended; pass signals on meanwhile."""
    poll = select.poll()
    poll.register(signals.fd, select.POLLIN)
    while any(not child.ended for child in children):
        poll.poll(TICK * 1000)
        for number in signals.drain():
            if number in ENDING:
                for child in children:
                    child.send(number)
        process.reap(*children)


def _end(children: Sequence[process.Child], signals: process.SignalQueue) -> None:
    """End what still runs because starting another, or following them, failed."""
    for child in children:
        child.send(process.SIGTERM)
    until = time.monotonic() + 5.0
    while any(not child.ended for child in children):
        process.reap(*children)
        if time.monotonic() > until:
            for child in children:
                child.send(process.SIGKILL)
        time.sleep(0.01)
    signals.drain()
