"""The runners whose pods are led by a process of this machine: what they share, which is all but what a container is.

What begins a pod returns; one process stays with each, and holds the lease of the pod's folder (see folder, and supervisor). A
runner names the module of its engine, whose `engine(folder, pod, asked)` that process calls.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import FileIO
from typing import Any

from sidecar import linux
from sidecar.coordination.signals import HOUSE
from sidecar.errors import (
    ConfigurationError,
    Corrupt,
    DeadlinePassed,
    Fault,
    ParametersError,
    SidecarError,
    SourceMissing,
    Unreachable,
)
from sidecar.process import SIGKILL, SIGTERM, SignalQueue, identity
from sidecar.session.folder import Folder, discard, on_its_way, tidy, write_supervisor
from sidecar.session.lead import Lead
from sidecar.session.pod import Pod, Terms, is_name, read_pod
from sidecar.session.runner import ENDED, Container, Status
from sidecar.session.supervisor import Supervisor

BACKOFF = 10.0
_SUPERVISE = "import sys; from sidecar.session.led import supervise; supervise(sys.argv[1], int(sys.argv[2]))"
# How much longer than it gives the pod's programs a supervisor may take before it is ended itself.
_PATIENCE = 30.0
# No grace is longer: what waits for its end counts milliseconds in 31 bits.
_LONGEST_GRACE = 1e6
_IN_MODIFY = 0x2
_CHUNK = 1 << 16


class LedRunner:
    """Keeps its pods in `folder`, which is made, for this user alone; those of others there are none of its own."""

    # The module of what begins its containers, by which its pods are told from others'.
    ENGINE = ""
    image_volumes = False

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(folder)

    def list(self) -> list[Status]:
        """Return the pods that are there, by name."""
        found = []
        for name in self.names():
            with suppress(SourceMissing):  # it was removed meanwhile
                try:
                    found.append(self.status(name))
                except Corrupt as error:
                    found.append(Status(name, "", "Unknown", (), str(error)))
        return found

    def names(self) -> tuple[str, ...]:
        """Return the names of this runner's pods."""
        return tuple(each for each in self.folders() if self.has(each))

    def folders(self) -> tuple[str, ...]:
        """Return the names of what may be a pod, whoever began it."""
        if not self._check_folder():
            return ()
        found = (each for each in sorted(os.listdir(self.folder)) if is_name(each))
        return tuple(each for each in found if os.path.isdir(os.path.join(self.folder, each)))

    def has(self, name: str) -> bool:
        """Tell whether a pod is there, and is this runner's."""
        try:
            return self.engine_of(name) == self.ENGINE
        except (Corrupt, SourceMissing):
            return False

    def engine_of(self, name: str) -> str:
        """Return the module of what begins a pod's containers; SourceMissing where there is no pod, Corrupt where it is none."""
        folder = Folder(os.path.join(self.folder, name))
        # A name becomes a path: what can be none of a pod is none.
        if not is_name(name) or not self._check_folder() or not os.path.isdir(folder.path):
            raise folder.missing()
        try:
            asked = folder.read("pod.json")
        except SourceMissing:
            if os.path.isdir(folder.path):
                raise folder.odd("pod.json") from None
            raise
        if not isinstance(asked, dict) or not isinstance(asked.get("engine"), str):
            raise folder.odd("pod.json")
        return str(asked["engine"])

    def status(self, name: str) -> Status:
        """Return how a pod stands."""
        return self._status(self._pod(name))

    def wait(self, name: str, timeout: float | None = None) -> Status:
        """Return when a pod has ended."""
        pod = self._pod(name)
        if not pod.wait(timeout):
            raise DeadlinePassed(f"pod {name} has not ended within {timeout:g} s", name)
        return self._status(pod)

    def logs(self, name: str, container: str, *, follow: bool = False) -> Iterator[bytes]:
        """Yield what a container wrote; to `follow` is to go on until it has ended for good."""
        pod = self._pod_with(name, container)
        return _follow(pod, container) if follow else _read(pod, container)

    def piece(self, name: str, container: str, offset: int, most: int, last: int | None = None) -> tuple[int, bytes]:
        """Return a piece, of `most` bytes, of what a container wrote so far behind `offset`, and where the next one begins.

        Of that it is the beginning; with `last` no more than so many bytes stand before the end, as it is now, and what is before
        these is left out. An offset behind the end is the end.
        """
        with _log(self._pod_with(name, container), container) as file:
            size = os.fstat(file.fileno()).st_size
            begin = min(max(offset, 0 if last is None else size - last), size)
            file.seek(begin)
            found = file.read(most)
        return begin + len(found), found

    def coordination(self, name: str) -> str:
        """Return where a pod's coordination directory is: the emptyDir in which participants have met. "" where there is none."""
        pod = self._pod(name)
        empty = (each for each, volume in pod_of(pod.read("pod.json")).volumes.items() if volume.kind == "empty")
        found = (pod.volume(each) for each in empty)
        return next((each for each in found if os.path.isdir(os.path.join(each, HOUSE))), "")

    def stop(self, name: str, grace: float | None = None) -> Status:
        """End a pod, remove all that is of it, and return how it ended.

        DeadlinePassed where what begins it does not come to its end, as where it pulls an image for long.
        """
        pod = self._pod(name)
        with pod.opened() as held:
            try:
                given = min(pod_of(pod.read("pod.json")).grace if grace is None else grace, _LONGEST_GRACE)
            except (KeyError, TypeError, ParametersError):
                raise pod.odd("pod.json") from None
            try:
                supervisor = pod.supervisor(time.monotonic() + given + _PATIENCE)
            except TimeoutError:
                raise DeadlinePassed(f"pod {name} is still being begun; stop it later", name) from None
            if supervisor is not None:
                try:
                    if grace is not None:
                        pod.write("grace.json", grace, held=held)
                    _end_supervisor(supervisor, given + _PATIENCE)
                finally:
                    os.close(supervisor)
            with pod.alone(held):
                self._end(pod, given)
                status = self._status(pod)
                self._remove(pod)
                return status

    # --- what runners do differently

    def _prepare(self, folder: Folder, pod: Pod, asked: Mapping[str, Any]) -> None:
        """Make what there is to be of a pod besides its folder."""

    def _status(self, folder: Folder) -> Status:
        """Return how a pod stands."""
        return folder.status()

    def _end(self, folder: Folder, grace: float) -> None:
        """End what still runs of a pod that nothing leads any more."""

    def _let_go(self, folder: Folder) -> None:
        """Remove what there is of a pod besides its folder, once nothing leads it any more."""

    # --- beginning

    def _begin(self, pod: Pod, asked: dict[str, Any]) -> None:
        """Begin the pod. `asked` becomes pod.json: `pod` is the manifest, `backoff` seconds, `terms` what is honoured of it, and
        what else the engine is to know."""
        asked["engine"] = self.ENGINE
        self._make_folder()
        tidy(self.folder)
        fresh = Folder(on_its_way(self.folder))
        os.mkdir(fresh.path, 0o700)
        try:
            lease = self._fill(fresh, pod, asked)
            try:
                # Onto a folder that holds anything, the kernel renames nothing: whoever comes second is told so.
                os.rename(fresh.path, os.path.join(self.folder, pod.name))
            except OSError as error:
                os.close(lease)
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise Unreachable(f"pod {pod.name} cannot be kept in {self.folder}: {error.strerror}") from None
                raise ConfigurationError(f"there is a pod {pod.name} already; stop it, or give this one another name") from None
        except BaseException:
            discard(fresh.path)
            raise
        folder = Folder(os.path.join(self.folder, pod.name))
        with folder.opened() as held:
            try:
                try:
                    make_paths(pod)
                    self._prepare(folder, pod, asked)
                    self._lead(folder, lease)
                finally:
                    os.close(lease)
            except BaseException:
                self._undo(folder, held)
                raise

    def _undo(self, folder: Folder, held: int) -> None:
        """Leave nothing of a pod that was not begun to the end, not even what leads it already."""
        with suppress(TimeoutError):
            supervisor = folder.supervisor(time.monotonic() + _PATIENCE)
            if supervisor is not None:
                try:
                    _end_supervisor(supervisor, 0)
                finally:
                    os.close(supervisor)
        with suppress(SourceMissing), folder.alone(held):  # who stopped it meanwhile has removed it
            self._remove(folder)

    def _remove(self, folder: Folder) -> None:
        self._let_go(folder)
        folder.remove()

    def _make_folder(self) -> None:
        try:
            # What else is kept above it, such as runs, is nobody else's either.
            os.makedirs(os.path.dirname(self.folder), 0o700, exist_ok=True)
            with suppress(FileExistsError):
                os.mkdir(self.folder, 0o700)
        except OSError as error:
            raise Unreachable(f"pods cannot be kept in {self.folder}: {error.strerror}") from None
        self._check_folder()

    def _check_folder(self) -> bool:
        """Tell whether there is a folder of pods; ConfigurationError where others may have put into it what is told and run."""
        try:
            about = os.lstat(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise Unreachable(f"pods cannot be kept in {self.folder}: {error.strerror}") from None
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077:
            raise ConfigurationError(
                f"pods cannot be kept in {self.folder}: expected a directory of this user's alone (mode 0700)"
            )
        return True

    def _fill(self, fresh: Folder, pod: Pod, asked: dict[str, Any]) -> int:
        """Put all into a pod's folder that is there from its beginning; return its lease, which is held."""
        for path in (fresh.layer, *(os.path.join(fresh.path, each) for each in ("logs", "volumes"))):
            os.mkdir(path, 0o700)
        for name, volume in pod.volumes.items():
            if volume.kind == "empty":
                os.mkdir(fresh.volume(name), 0o700)
        everybody = [each.name for each in (*pod.inits, *pod.programs)]
        for path in (*map(fresh.log, everybody), os.path.join(fresh.path, "supervisor.log")):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        fresh.write("pod.json", asked)
        fresh.publish(Status(pod.name, pod.session, "Pending", tuple(Container(each, "waiting") for each in everybody)))
        return fresh.take_lease()

    def _lead(self, pod: Folder, lease: int) -> None:
        """Have a process of its own lead the pod: in its own session, without a terminal, with nothing of ours but the lease."""
        try:
            with open(os.path.join(pod.path, "supervisor.log"), "ab") as log:
                ran = subprocess.run(
                    [sys.executable, "-P", "-c", _SUPERVISE, pod.path, str(lease)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    cwd="/",
                    start_new_session=True,
                    pass_fds=(lease,),
                    check=False,
                )
        except OSError as error:
            raise Unreachable(f"pod {pod.name} cannot be begun: {error.strerror}") from None
        if ran.returncode:
            raise Unreachable(f"pod {pod.name} cannot be begun: {pod.why()}")

    def _pod_with(self, name: str, container: str) -> Folder:
        """Return the folder of one of this runner's pods that has such a container."""
        pod = self._pod(name)
        names = [each.name for each in pod.status().containers]
        if container not in names:
            raise SourceMissing(f"there is no container {container} in pod {name}", names)
        return pod

    def _pod(self, name: str) -> Folder:
        """Return the folder of one of this runner's pods."""
        try:
            if self.engine_of(name) == self.ENGINE:
                return Folder(os.path.join(self.folder, name))
        except SourceMissing:
            pass
        raise SourceMissing(f"there is no pod {name}", self.names())


def _end_supervisor(supervisor: int, patience: float) -> None:
    """Ask a supervisor to end its pod; return when it has ended, which it has no longer than `patience` seconds for."""
    with suppress(ProcessLookupError):
        if patience:
            signal.pidfd_send_signal(supervisor, SIGTERM)
        if not select.select([supervisor], [], [], patience)[0]:
            signal.pidfd_send_signal(supervisor, SIGKILL)
            select.select([supervisor], [], [])


def pod_of(asked: Mapping[str, Any]) -> Pod:
    """Return the pod that pod.json says."""
    return read_pod(asked["pod"], Terms(**asked["terms"]))


def absolute(claims: Mapping[str, str] | None) -> dict[str, str]:
    """Return the directories that stand for claims as whoever leads a pod finds them, wherever it is."""
    return {name: os.path.abspath(path) for name, path in (claims or {}).items()}


def missing_paths(pod: Pod) -> list[Fault]:
    """Return every path of the machine that a pod is to have and that is not there."""
    there = {"": os.path.exists, "File": os.path.isfile, "Directory": os.path.isdir}
    return [
        Fault(f"volume {name}", "hostPath", f"there is no {each.of_type.lower() or 'path'} {each.source}")
        for name, each in pod.volumes.items()
        if each.kind == "host" and each.of_type in there and not there[each.of_type](each.source)
    ]


def make_paths(pod: Pod) -> None:
    """Make the paths of the machine that a pod says are to be made."""
    for each in pod.volumes.values():
        try:
            if each.of_type == "DirectoryOrCreate":
                os.makedirs(each.source, exist_ok=True)
        except OSError as error:
            raise Unreachable(f"{each.source} cannot be made: {error.strerror}") from None


def supervise(path: str, lease: int) -> None:
    """Return when a process of its own leads the pod in the folder `path`; in that, which takes `lease` over, when it is over.

    What is raised there is told to stderr, which is the folder's supervisor.log.
    """
    # Else each container would hold it, and a supervisor be thought alive that is dead.
    os.set_inheritable(lease, False)
    pid = os.fork()
    # By both: whoever is killed, it is known who holds the lease.
    who = identity(pid or os.getpid())
    if who is not None:
        write_supervisor(lease, who)
    if pid:
        return
    folder = Folder(path)
    asked = folder.read("pod.json")
    pod = pod_of(asked)
    engine = importlib.import_module(asked["engine"]).engine(folder, pod, asked)
    lead = Lead(pod, asked["backoff"])

    def heard(_: Supervisor, number: int) -> None:
        if number == SIGTERM:
            lead.end(time.monotonic(), _grace(folder, pod))
        if number == signal.SIGIO and not os.path.exists(path):
            # Removed by hand: nobody else would ever end its containers.
            lead.end(time.monotonic(), pod.grace)

    def publish(status: Status) -> None:
        with suppress(SourceMissing):
            folder.publish(status)

    signals = SignalQueue()
    with suppress(OSError):  # a kernel without it
        # Names that come and go beside it are told by a signal, which wakes a supervisor as all others do.
        beside = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.fcntl(beside, fcntl.F_NOTIFY, fcntl.DN_DELETE | fcntl.DN_RENAME | fcntl.DN_MULTISHOT)
    Supervisor(lead, engine, folder.log, signals, heard, publish).run()


def _grace(folder: Folder, pod: Pod) -> float:
    try:
        return float(folder.read("grace.json"))
    except SidecarError:
        return pod.grace


# --- logs --------------------------------------------------------------------------------------------------------------


def _read(pod: Folder, container: str) -> Iterator[bytes]:
    with _log(pod, container) as file:
        while data := file.read(_CHUNK):
            yield data


def _log(pod: Folder, container: str) -> FileIO:
    try:
        return open(pod.log(container), "rb", buffering=0)
    except FileNotFoundError:
        raise pod.missing() from None


def _follow(pod: Folder, container: str) -> Iterator[bytes]:
    changes = linux.inotify_init()
    watched = [changes]
    try:
        with _log(pod, container) as file:
            try:
                linux.inotify_add_watch(changes, os.fsencode(pod.log(container)), _IN_MODIFY)
                linux.inotify_add_watch(changes, os.fsencode(pod.path), linux.IN_MOVED_TO)
            except FileNotFoundError:
                raise pod.missing() from None
            supervisor = pod.supervisor()
            if supervisor is not None:
                watched.append(supervisor)
            ended = False
            while True:
                over = ended or _is_over(pod, container)
                while data := file.read(_CHUNK):
                    yield data
                if over:
                    return
                ended = supervisor in select.select(watched, [], [])[0]
                with suppress(BlockingIOError):
                    os.read(changes, _CHUNK)
    finally:
        for fd in watched:
            os.close(fd)


def _is_over(pod: Folder, container: str) -> bool:
    """Tell whether a container will write nothing any more."""
    try:
        status = pod.status()
    except SourceMissing:
        return True
    return status.phase in ENDED or any(each.name == container and each.state == "exited" for each in status.containers)
