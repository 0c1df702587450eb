"""Commands as the datamon binary takes them: `-d 'bundle mount --repo R --label L --mount M --stream'`.

These are known: `config create`, at most once, and `bundle mount`, `bundle download` and `bundle upload`, any number of times.
Each is one text that is split as a shell splits it. What a flag asked of the datamon binary and we do anyway, or have no use
for, is ignored with a note; a flag that would change what is read or saved and that we do not have is refused by name.
A mount is named mount-1, mount-2, …, a download download-1, … and an upload upload-1, …, in the order of the commands.

A download is a source that is never mounted. Of a source, `--name-filter REGEX` and `--files PATH` (the only flag that may be
repeated: a file, or all that is in a directory, by its path in the bundle) ask for a part. datamon has the former for downloads,
and the latter for uploads alone, where it names a list of files; that one is refused.
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
_TRUTHS = {"--skip-on-error"}
_REPEATABLE = {"--files"}


@dataclass(frozen=True)
class Command:
    """One known command: its flags and the fields they set, what is ignored and why, what is refused and why.

    `implied` is a field that the command itself makes true.
    """

    name: str
    flags: Mapping[str, str]
    ignored: Mapping[str, str]
    refused: Mapping[str, str]
    implied: str = ""


_BUNDLE = {"--repo": "srcRepo", "--label": "srcLabel", "--bundle": "srcBundle"}
_PART = {"--name-filter": "srcNameFilter", "--files": "srcFiles"}
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
        {**_BUNDLE, "--mount": "srcPath", **_PART},
        {**_IGNORED_ANYWHERE, "--cache-size": _TUNING, "--prefetch": _TUNING, "--destination": "nothing is staged"},
        {"--config": _ELSEWHERE, "--context": _ELSEWHERE},
    ),
    Command(
        "bundle download",
        {**_BUNDLE, "--destination": "srcPath", **_PART},
        _IGNORED_ANYWHERE,
        {"--config": _ELSEWHERE, "--context": _ELSEWHERE},
        implied="srcPopulate",
    ),
    Command(
        "bundle upload",
        {
            "--path": "destPath",
            "--message": "destMessage",
            "--repo": "destRepo",
            "--label": "destLabel",
            "--bundle-id-file": "destBundleID",
            "--skip-on-error": "destSkipOnError",
        },
        _IGNORED_ANYWHERE,
        {
            "--config": _ELSEWHERE,
            "--context": _ELSEWHERE,
            "--files": "all that is in --path is saved; have only what is to be kept in there",
        },
    ),
)


def read_commands(commands: Sequence[str], layer: Layer, notes: list[str], faults: list[Fault]) -> None:
    """Add to `layer` what `commands` say; faults are at `-d #1`, `-d #2`, …"""
    numbers = {each.name: count(1) for each in _KNOWN if each.name.startswith("bundle ")}
    config = ""
    for number, text in enumerate(commands, 1):
        where = f"-d #{number}"
        command, words = _split(text, where, faults)
        if command is None:
            continue
        if command.name in numbers:
            name = f"{command.name.removeprefix('bundle ')}-{next(numbers[command.name])}"
            spelled = {key: flag for flag, key in command.flags.items()}
            section = layer.named[name] = Section(where, "flag", spelled=spelled)
            if command.implied:
                section.put(Setting(command.implied, "true", where, command.name), faults)
        else:
            if config:
                faults.append(Fault(where, command.name, f"given twice, first as {config}: expected at most one"))
            section, config = layer.pod, config or where
        given: dict[str, list[str]] = {}
        for flag, value in _flags(command, words, where, notes, faults):
            given.setdefault(flag, []).append(value)
        for flag, values in given.items():
            text = shlex.join(filter(None, values)) if flag in _REPEATABLE else values[0]
            section.put(Setting(command.flags[flag], text, where, flag), faults)


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
    expected = "expected one of " + ", ".join(repr(command.name) for command in _KNOWN)
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
        problem = "given twice" if flag in seen - _REPEATABLE else _problem(command, flag)
        seen.add(flag)
        if flag in _TRUTHS and not equals:
            value = "true"
        elif flag not in _SWITCHES and not equals and not problem.startswith("unexpected"):
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
