"""`wrap_application`: parse, one library call, exit.

It stands at the start of every application container, so it parses by hand: `argparse` and `getopt` cost 7 ms of import each, a
third of what the whole start may take. Nothing here may import `click`, `re`, `enum` or `typing`.
"""

from __future__ import annotations

import os
import sys

from sidecar import __version__, process
from sidecar.cli.measures import seconds, size
from sidecar.coordination import application, protocol
from sidecar.coordination.memory import KEEP, Once
from sidecar.coordination.signals import Directory
from sidecar.errors import SidecarError, UsageError
from sidecar.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

NAME = "wrap_application"
STAY = 600.0
# What Kubernetes keeps of a termination message.
MESSAGE_LIMIT = 4096

HELP = f"""\
usage: wrap_application -c DIR -b KIND [-b KIND ...] [-d "DB ..."] [-s] [options] [--] CMD [ARG ...]

Wait until every battery is ready, run CMD, tell the batteries, and end when its output is safe.
Python: sidecar.coordination.application.run

  -c DIR                  the coordination directory, on a volume that the pod's containers share
  -b KIND                 a kind of battery to wait for: fuse, postgres, or a plugin's; may be repeated
  -d "DB ..."             the names of the databases, for -b postgres; may be repeated
  -s                      stay {STAY:g} s instead of exiting (for debugging); a signal ends it
      --stay SECONDS      stay that long instead of exiting
      --save POLICY       on-success (default), always, never: when batteries keep what CMD made
      --appear-timeout T  how long a battery may take to appear (default 600)
      --ready-timeout T   how long one that has appeared may take to be ready (default: no limit)
      --run-timeout T     how long CMD may run; then SIGTERM, --grace, SIGKILL (default: no limit)
      --save-timeout T    how long saving may take (default: no limit)
      --rejoin-timeout T  how long a battery that died may take to come back (default 0)
      --grace T           what is left after SIGTERM, for CMD and for saving (default 25)
      --fail-fast         stop CMD when a battery fails while it runs
      --once NAME         keep what CMD writes and how it ends: restarted, this writes the same again and goes on from there
      --instance I        where NAME is one and the same (default $POD_UID/$CONTAINER_NAME, else the coordination directory)
      --state DIR         where that is kept (default $SIDECAR_STATE, else in the coordination directory)
      --keep SIZE         how much of each of stdout and stderr is kept (default 4MiB)
      --poll              read the directory every 50 ms and do without inotify
      --termination-log F where the reason of a failure goes (default /dev/termination-log, where it exists)
  -q, --quiet             say nothing on stderr but errors
      --install DIR       by itself, and only of the static executable (make wrapper): put it into DIR, for any image
      --copy SRC DIR      likewise: put what is below SRC, in an image that may hold nothing else, into DIR
  -h, --help              this text
      --version           the version

T is in seconds, or with a unit: 90, 90s, 15m, 2h.

EXIT STATUS
  CMD's own, exactly; 128+n where signal n ended it; 126 it cannot be executed; 127 it was not found. Where CMD did
  not fail: 2 usage, 69 a battery failed or died, 73 the output was not saved, 74 the coordination directory cannot be
  read or written, 75 a deadline passed, 78 another wrapper is alive in DIR, 125 CMD ran before and its end is unknown.

EXAMPLE
  wrap_application -c /tmp/coord -b fuse -b postgres -d "db1 db2" -- python3 train.py --epochs 3
"""

_VALUED = {
    "-c": "directory",
    "-b": "kinds",
    "-d": "databases",
    "--save": "save",
    "--appear-timeout": "appear",
    "--ready-timeout": "ready",
    "--run-timeout": "run",
    "--save-timeout": "save_timeout",
    "--rejoin-timeout": "rejoin",
    "--grace": "grace",
    "--stay": "stay",
    "--termination-log": "log",
    "--once": "once",
    "--instance": "instance",
    "--state": "state",
    "--keep": "keep",
}
_PLAIN = {"-s": "s", "--fail-fast": "fail_fast", "--poll": "poll", "-q": "quiet", "--quiet": "quiet"}


class Arguments:
    """What the command line said."""

    def __init__(self) -> None:
        self.values: dict[str, list[str]] = {}
        self.plain: set[str] = set()
        self.command: list[str] = []

    def last(self, name: str, default: str) -> str:
        return self.values.get(name, [default])[-1]


def parse(argv: Sequence[str]) -> Arguments:
    """Return what `argv` says, up to `--` or the first word that is no option; UsageError where it is not of its form."""
    said, rest = Arguments(), list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            rest.insert(0, word)
            break
        if word in ("-h", "--help", "--version"):
            said.plain.add(word)
            return said
        flag, equals, given = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
        if flag in _VALUED:
            if not equals:
                if not rest:
                    raise UsageError(f"{flag} expects a value")
                given = rest.pop(0)
            said.values.setdefault(_VALUED[flag], []).append(given)
        elif flag in _PLAIN and not equals:
            said.plain.add(_PLAIN[flag])
        elif flag in _PLAIN and not word.startswith("--"):
            said.plain.add(_PLAIN[flag])
            rest.insert(0, "-" + given)
        else:
            raise UsageError(f"there is no option {flag}; see wrap_application --help")
    said.command = rest
    return said


def options_of(said: Arguments) -> application.Options:
    """Return the options of the library call that `said` names; UsageError where a value makes no sense."""
    limits = protocol.Limits()
    for name, flag in (
        ("appear", "--appear-timeout"),
        ("ready", "--ready-timeout"),
        ("run", "--run-timeout"),
        ("save", "--save-timeout"),
        ("rejoin", "--rejoin-timeout"),
        ("grace", "--grace"),
    ):
        given = said.values.get("save_timeout" if name == "save" else name)
        if given:
            limits = replace(limits, **{name: seconds(given[-1], flag)})
    save = said.last("save", protocol.ON_SUCCESS)
    if save not in protocol.POLICIES:
        raise UsageError(f"--save expects one of {', '.join(protocol.POLICIES)}, not {save!r}")
    stay = seconds(said.last("stay", str(STAY if "s" in said.plain else 0)), "--stay")
    return application.Options(save, limits, "fail_fast" in said.plain, "poll" in said.plain, stay, _once_of(said))


def _once_of(said: Arguments) -> Once | None:
    name, state, instance = (said.last(each, "") for each in ("once", "state", "instance"))
    if "once" not in said.values:
        for each in ("state", "instance", "keep"):
            if each in said.values:
                raise UsageError(f"--{each} is for --once NAME, which is missing")
        return None
    from sidecar.once.asked import as_name
    from sidecar.once.instance import pod_and_container

    as_name(name, "a run")
    instance = as_name(instance, "an instance") if "instance" in said.values else pod_and_container(os.environ)
    keep = size(said.last("keep", str(KEEP)), "--keep")
    return Once(name, instance, state or os.environ.get("SIDECAR_STATE", ""), keep)


def write_termination_message(path: str, text: str) -> None:
    """Leave `text` where Kubernetes looks for it, cut at its end to what is kept; a failure to do so is none."""
    data = text.encode(errors="replace")
    if len(data) > MESSAGE_LIMIT:
        data = data[: MESSAGE_LIMIT - 4].decode(errors="ignore").encode() + " …".encode()
    try:
        # Not created: kubelet makes it, and elsewhere nobody asked for it.
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
    except OSError:
        pass


def main() -> NoReturn:
    """The command `wrap_application`."""
    try:
        said = parse(sys.argv[1:])
        if said.plain & {"-h", "--help"}:
            _print(HELP)
            _leave(0)
        if "--version" in said.plain:
            _print(f"{NAME} {__version__}\n")
            _leave(0)
        if "directory" not in said.values:
            raise UsageError("-c DIR is missing: the coordination directory")
        if not said.last("directory", ""):
            raise UsageError("-c expects a directory, not '' (is the variable behind it set?)")
        if "kinds" not in said.values:
            raise UsageError("-b KIND is missing: the batteries to wait for, such as fuse or postgres")
        batteries = protocol.batteries_of(said.values["kinds"], " ".join(said.values.get("databases", [])).split())
        options = options_of(said)
        if not said.command or not said.command[0]:
            raise UsageError("CMD is missing: the command to run, behind --")
    except UsageError as error:
        _say(str(error))
        _leave(error.status)

    quiet = "quiet" in said.plain

    def tell(line: str) -> None:
        if not quiet:
            _say(line)

    log = said.last("log", "/dev/termination-log")
    if options.once is not None:
        process.fill_streams()  # before another file takes the place of one that is written to
    signals = process.SignalQueue()
    try:
        with Directory(said.last("directory", "")) as directory:
            ending = application.run(directory, batteries, said.command, options, signals, tell)
    except SidecarError as error:
        _say(str(error))
        write_termination_message(log, str(error))
        _leave(error.status)
    if ending.problem is not None:
        _say(ending.problem.reason)
        write_termination_message(log, ending.problem.reason)
    _leave(ending.status)


def _say(line: str) -> None:
    if sys.stderr is not None:  # as where it was closed when we started
        try:
            for part in line.split("\n"):  # a battery may have more than one fault to tell
                sys.stderr.write(f"{NAME}: {part}\n")
            sys.stderr.flush()
        except OSError:
            pass


def _print(text: str) -> None:
    if sys.stdout is not None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError:
            pass


def _leave(status: int) -> NoReturn:
    """End at once: threads that wait for deaths in a system call must not be waited for."""
    os._exit(status)


if __name__ == "__main__":
    main()
