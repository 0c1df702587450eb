"""Commands as the datamon binary takes them: `-d 'bundle mount --repo R --label L --mount M --stream'`.

Three are known: `config create`, at most once, and `bundle mount` and `bundle upload`, any number of times. Each is one text that
is split as a shell splits it. What a flag asked of the datamon binary and we do anyway, or have no use for, is ignored with a
note; a flag that would change what is read or saved and that we do not have is refused by name.
A mount is named mount-1, mount-2, … and an upload upload-1, …, in the order of the commands.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from sidecar.errors import Fault
from sidecar.parameters.settings import Layer, Section, Setting, unknown

_TUNING = "it tunes the datamon binary"
_ELSEWHERE = "give it once for all commands, as -a CONTEXT and -b BUCKET or with 'config create'"
_IGNORED_ANYWHERE = {"--loglevel": _TUNING, "--format": _TUNING, "--concurrency-factor": _TUNING}
_SWITCHES = {
    "--stream": "the battery decides how a bundle is presented",
    "--daemonize": _TUNING,
    "--cpuprof": _TUNING,
    "--metrics": _TUNING,
    "--upgrade": "nothing is upgraded while a pod runs",
    "--verify-hash": "every byte is verified",
    "--verify-blob-hash": "every byte is verified",
}


@dataclass(frozen=True)
class Command:
    """One known command: its flags and the fields they set, what is ignored and why, what is refused and why."""

    name: str
    flags: Mapping[str, str]
    ignored: Mapping[str, str]
    refused: Mapping[str, str]


_KNOWN = (
    Command(
        "config create",
        {
            "--name": "contributor.name",
            "--email": "contributor.email",
            "--config": "configBucketName",
            "--context": "contextName",
        },
        {**_IGNORED_ANYWHERE, "--credential": "the store finds its credentials in the environment"},
        {},
    ),
    Command(
        "bundle mount",
        {"--repo": "srcRepo", "--label": "srcLabel", "--bundle": "srcBundle", "--mount": "srcPath"},
        {**_IGNORED_ANYWHERE, "--cache-size": _TUNING, "--prefetch": _TUNING, "--destination": "nothing is staged"},
        {"--config": _ELSEWHERE, "--context": _ELSEWHERE},
    ),
    Command(
        "bundle upload",
        {
            "--path": "destPath",
            "--message": "destMessage",
            "--repo": "destRepo",
            "--label": "destLabel",
            "--bundle-id-file": "destBundleID",
        },
        _IGNORED_ANYWHERE,
        {
            "--config": _ELSEWHERE,
            "--context": _ELSEWHERE,
            "--files": "the whole directory is saved",
            "--skip-on-error": "a bundle is saved whole or not at all",
        },
    ),
)


def read_commands(commands: Sequence[str], layer: Layer, notes: list[str], faults: list[Fault]) -> None:
    """Add to `layer` what `commands` say; faults are at `-d #1`, `-d #2`, …"""
    numbers = {"bundle mount": count(1), "bundle upload": count(1)}
    config = ""
    for number, text in enumerate(commands, 1):
        where = f"-d #{number}"
        command, words = _split(text, where, faults)
        if command is None:
            continue
        if command.name in numbers:
            name = f"{command.name.removeprefix('bundle ')}-{next(numbers[command.name])}"
            section = layer.named[name] = Section(where, "flag")
        else:
            if config:
                faults.append(Fault(where, command.name, f"given twice, first as {config}: expected at most one"))
            section, config = layer.pod, config or where
        for flag, value in _flags(command, words, where, notes, faults):
            section.put(Setting(command.flags[flag], value, where, flag), faults)


def _split(text: str, where: str, faults: list[Fault]) -> tuple[Command | None, list[str]]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        faults.append(Fault(where, "", f"cannot be split into words: {str(error).lower()} in {text!r}"))
        return None, []
    name = " ".join(words[:2])
    for command in _KNOWN:
        if command.name == name:
            return command, words[2:]
    expected = "expected one of 'config create', 'bundle mount', 'bundle upload'"
    faults.append(Fault(where, "", f"the command {name!r} is not known: {expected}"))
    return None, []


def _flags(
    command: Command, words: Sequence[str], where: str, notes: list[str], faults: list[Fault]
) -> Iterator[tuple[str, str]]:
    """Yield each flag that sets something and its value."""
    rest = list(words)
    seen: set[str] = set()
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        problem = "given twice" if flag in seen else _problem(command, flag)
        seen.add(flag)
        if flag not in _SWITCHES and not equals and not problem.startswith("unexpected"):
            # `--label --mount M` is a forgotten value, never a label named --mount.
            if rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            elif not problem:
                problem = f"expected a value, as in {flag} VALUE or {flag}=VALUE"
        if problem:
            faults.append(Fault(where, flag, problem))
        elif flag in command.flags:
            yield flag, value
        else:
            notes.append(f"{where}: {flag} is ignored: {_SWITCHES.get(flag) or command.ignored[flag]}")


def _problem(command: Command, flag: str) -> str:
    if not flag.startswith("-"):
        return f"unexpected word: {command.name!r} takes flags only"
    if flag in command.refused:
        return f"not supported: {command.refused[flag]}"
    if flag in command.flags or flag in command.ignored or flag in _SWITCHES:
        return ""
    return unknown(f"flag of {command.name!r}", flag, [*command.flags, *command.ignored, *_SWITCHES])
