"""What is to be run: `$(VAR)` put in, what of it is kept, and in what it differs from what ran under its name. Pure.

Of the environment only what was given for the run counts and is kept; what is inherited differs from container to container.
A redacted variable is kept as a hash. So that its value does not come back through another door, whatever refers to it is kept
with the reference standing: two runs are the same where both that text and the hash are.
"""

from __future__ import annotations

from sidecar.errors import UsageError
from sidecar.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

# Of a name or an instance, in characters: enough for any, and a line of `list`.
LONGEST_NAME = 250


@value
class Asked:
    """One run that is asked for. `environment` is what is given for it; `kept_…` is what others may read of it."""

    instance: str
    name: str
    command: tuple[str, ...]
    directory: str
    environment: tuple[tuple[str, str], ...] = ()
    redacted: frozenset[str] = frozenset()
    kept_command: tuple[str, ...] = ()
    kept_environment: tuple[tuple[str, str], ...] = ()


@value
class Variable:
    """A variable as it is kept: its value or, where it is redacted, the hash of that behind `salt`."""

    name: str
    value: str = ""
    salt: bytes = b""
    hash: bytes = b""

    def is_of(self, given: str) -> bool:
        """Tell whether `given` is its value."""
        return hash_of(given, self.salt) == self.hash if self.hash else given == self.value


def ask(
    instance: str,
    name: str,
    command: Sequence[str],
    directory: str,
    given: Mapping[str, str],
    inherited: Mapping[str, str],
    redact: Collection[str] = (),
) -> Asked:
    """Return the run that is asked for, `$(VAR)` put into the values `given`, in their order, and into the command.

    UsageError where a name is none, or one that is to be redacted is not given, or is referred to before it is: what is inherited
    under its name would be put in there, and would be in no hash.
    """
    asked = as_it_is(instance, name, command, directory)
    for each in redact:
        if each not in given:
            raise UsageError(f"{each} is to be redacted, but is not given to the run: -e {each}, or -e {each}=VALUE")
    effective: dict[str, str] = {}
    kept: dict[str, str] = {}
    for key, text in given.items():
        if not key or "=" in key or "\0" in key + text:
            raise UsageError(f"{key!r} is no name of a variable, or its value holds a NUL")
        for each in set(redact) - effective.keys() - {key}:
            if expand(text, lambda name, each=each: "" if name == each else None) != expand(text, lambda _: None):  # type: ignore[misc]
                raise UsageError(f"{each} is to be redacted, and {key} refers to it before it is given: expected -e {each} first")
        # The value before the names, for one may refer to what is inherited under its own: PATH=/opt/bin:$(PATH).
        now, then = expand(text, _within(effective, inherited)), expand(text, _within(kept, inherited), standing=redact)
        effective[key] = now
        kept[key] = f"$({key})" if key in redact else then
    return Asked(
        asked.instance,
        asked.name,
        tuple(expand(word, _within(effective, inherited)) for word in command),
        directory,
        tuple(effective.items()),
        frozenset(redact),
        tuple(expand(word, _within(kept, inherited), standing=redact) for word in command),
        tuple((key, "" if key in redact else text) for key, text in kept.items()),
    )


def as_it_is(instance: str, name: str, command: Sequence[str], directory: str) -> Asked:
    """Return the run of a command into which nothing is to be put; UsageError where a name is none."""
    as_name(instance, "an instance")
    as_name(name, "a run")
    if not command or not command[0] or any("\0" in word for word in command):
        raise UsageError("the command is missing or empty, or holds a NUL")
    return Asked(instance, name, tuple(command), directory, kept_command=tuple(command))


def as_name(text: str, what: str) -> str:
    """Return `text`, or raise UsageError: it is printed in lists."""
    if not 0 < len(text) <= LONGEST_NAME or not text.isprintable():
        raise UsageError(f"{text!r} is no name for {what}: 1 to {LONGEST_NAME} characters, all printable")
    return text


def _within(known: Mapping[str, str], inherited: Mapping[str, str]) -> Callable[[str], str | None]:
    return lambda name: known.get(name, inherited.get(name))


def expand(text: str, find: Callable[[str], str | None], *, standing: Collection[str] = ()) -> str:
    """Return `text` with each `$(NAME)` replaced by what `find` has for it, as Kubernetes does in commands and environments.

    One of which nothing is known stays; `$$(NAME)` stands for `$(NAME)`. Only there two dollars are one: Kubernetes makes one of
    them everywhere, which takes `$$` away from shells. Of the names `standing`, `$$(NAME)` stays as it is: `$(NAME)` stands for
    their values, and must not stand for itself as well.
    """
    parts, at = [], 0
    while (opening := text.find("$(", at)) >= 0 and (end := text.find(")", opening)) >= 0:
        first = opening
        while first > at and text[first - 1] == "$":
            first -= 1
        dollars, name = opening + 1 - first, text[opening + 2 : end]
        found = find(name) if dollars % 2 else None
        stays = not dollars % 2 and name in standing
        parts += [text[at:first], "$" * (dollars if stays else dollars // 2)]
        parts.append(found if found is not None else f"$({name})" if dollars % 2 else f"({name})")
        at = end + 1
    return "".join(parts) + text[at:]


def hash_of(text: str, salt: bytes) -> bytes:
    """Return the hash that is kept of a redacted value."""
    import hashlib  # 14 ms, which only those who redact pay

    return hashlib.blake2b(text.encode(errors="surrogateescape"), key=salt, digest_size=32).digest()


def differences(asked: Asked, command: Sequence[str], directory: str, variables: Sequence[Variable]) -> list[str]:
    """Return in what `asked` differs from what ran, one line each, without telling values that may be secret."""
    found = []
    if asked.kept_command[0] != command[0]:
        found.append(f"the command is {asked.kept_command[0]}, and was {command[0]}")
    arguments = [
        number for number in range(1, min(len(command), len(asked.command))) if asked.kept_command[number] != command[number]
    ]
    if arguments:
        found.append(f"argument {', '.join(map(str, arguments))} is another")
    if len(command) != len(asked.command):
        found.append(f"there are {len(asked.command) - 1} arguments, and were {len(command) - 1}")
    if directory != asked.directory:
        found.append(f"the working directory is {asked.directory}, and was {directory}")
    given, kept, were = dict(asked.environment), dict(asked.kept_environment), {each.name: each for each in variables}
    names = [name for name in given if name not in were] + [name for name in were if name not in given]
    for name in given.keys() & were.keys():
        same = were[name].is_of(given[name] if were[name].hash else kept[name])
        if bool(were[name].hash) != (name in asked.redacted) or not same:
            names.append(name)
    if names:
        found.append(f"the environment is another in {', '.join(sorted(names))}")
    return found
