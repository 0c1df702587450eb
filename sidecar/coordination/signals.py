"""Facts as files: how participants say and hear things in the coordination directory, and how a death is heard.

    <directory>/mountdone …            the signals; existence is what they say. Ours hold JSON, a shell script's are empty
    <directory>/<db>/dbstarted …
    <directory>/.sidecar/participants/<name>.json     a record each
                         leases/<name>                flock(LOCK_EX), held for a whole life; never unlinked or renamed
                         progress/<name>.json         how far it is: for people only, nothing is decided by it
                         events.jsonl                 one line for each thing said: for people only
                         tmp/                         everything is published by rename from here

Say: write a unique file in tmp, rename it. Hear: watch, then read, then wait, then read again; a slow poll never stops, because
inotify is silent, without any error, on gVisor, virtiofs and NFS.

Why flock: the kernel drops it on any death, also SIGKILL and the OOM killer. POSIX locks will not do (they go when any descriptor
of the file is closed). A lease file comes into being already locked (link of a locked file), so one that is free tells that
somebody held it and is gone. Whoever waits for a death blocks in flock(LOCK_SH), in a thread of its own, and lets go at once; a
restarted holder may therefore find the lock taken for some microseconds, and tries again.

The directory is shared by containers of different trust. Everything is opened relative to a held descriptor with O_NOFOLLOW; only
regular files count; reads are bounded; the shared folders are sticky (1777), so nobody replaces what another uid has said.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import os
import select
import stat
import time

from sidecar import linux
from sidecar.coordination.notation import decode, encode
from sidecar.coordination.protocol import APPLICATION, FOREVER, Battery, Exit, Limits, Problem, Record, Seen
from sidecar.errors import ConfigurationError, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, Self

FORMAT = 1
HOUSE = ".sidecar"
FOLDERS = ("participants", "leases", "progress", "tmp")
# A record or a signal is some hundred bytes; more than this was not written by us.
LONGEST = 256 * 1024
# How often everything is read again although inotify said nothing, and how often where it is known to be of no use. Reading costs
# 0.2 ms, so the first is 0.02 % of a core and the second 0.4 %.
BACKSTOP = 1.0
POLLING = 0.05
# A lease is found taken only by another living participant, or for some microseconds by a waiter; this tells them apart.
LEASE_PATIENCE = 2.0

# What comes of reading as ours what is not: of another type, incomplete, or a number that is too large.
_NONSENSE = (ValueError, TypeError, KeyError, AttributeError, OverflowError)

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY
_NEW = os.O_WRONLY | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def new_incarnation() -> str:
    """Return a random id for one life of a participant: PIDs and host names repeat in a pod."""
    return os.urandom(8).hex()


class Directory:
    """The coordination directory, held open. Its methods raise Unreachable, naming the path and what to do about it."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        try:
            # The directory itself may be named through a link: whoever configured the path chose it.
            self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except OSError as error:
            raise Unreachable(
                f"the coordination directory {self.path} cannot be opened: {error.strerror}; "
                "mount the volume that the pod's containers share there"
            ) from None
        self._folders: dict[str, int] = {}
        self._written = 0

    def close(self) -> None:
        """Let go of every descriptor."""
        for fd in self._folders.values():
            os.close(fd)
        self._folders.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exists(self) -> bool:
        """Tell whether the directory and our folders still stand: a deleted one can be held open for ever and hears nothing."""
        return all(os.fstat(fd).st_nlink > 0 for fd in (self.fd, *self._folders.values()))

    # --- folders

    def make(self, signals: Iterable[str]) -> None:
        """Make our own folders and those that `signals` lie in, where they are missing."""
        for folder in (HOUSE, *(f"{HOUSE}/{name}" for name in FOLDERS), *{s.rpartition("/")[0] for s in signals} - {""}):
            self._make(folder)

    def _make(self, folder: str) -> None:
        parent, _, name = folder.rpartition("/")
        try:
            at = self._folder(parent)
            # Without the umask, which would take the others' write permission away: another user's participant may come between
            # mkdir and chmod. chmod all the same, for a default ACL takes it away as well.
            umask = os.umask(0)
            try:
                os.mkdir(name, 0o1777, dir_fd=at)
            except FileExistsError:
                self._folder(folder)
                return
            finally:
                os.umask(umask)
            fd = self._folder(folder)
            if stat.S_IMODE(os.fstat(fd).st_mode) != 0o1777:
                os.fchmod(fd, 0o1777)
        except OSError as error:
            raise self._cannot("make the folder", folder, error) from None

    def _folder(self, folder: str) -> int:
        """Return a descriptor of `folder`; opened link by link, none of them followed."""
        if not folder:
            return self.fd
        if folder not in self._folders:
            parent, _, name = folder.rpartition("/")
            self._folders[folder] = os.open(name, _FOLDER, dir_fd=self._folder(parent))
        return self._folders[folder]

    def _at(self, path: str) -> tuple[int, str]:
        folder, _, name = path.rpartition("/")
        return self._folder(folder), name

    def _cannot(self, do: str, path: str, error: OSError) -> Unreachable:
        remedy = {
            errno.ENOSPC: "; the volume is full",
            errno.EDQUOT: "; the volume is full",
            errno.EROFS: "; the volume is mounted read-only",
            errno.EACCES: "; another user made it, without write permission for this one",
            errno.EPERM: "; it belongs to another user",
            errno.ELOOP: "; somebody planted a link there",
            errno.ENOTDIR: "; somebody planted something there that is no folder",
            errno.EISDIR: "; somebody planted a folder there",
            errno.ENOENT: "; the coordination directory was deleted",
        }.get(error.errno or 0, "")
        return Unreachable(f"cannot {do} {self.path}/{path}: {error.strerror}{remedy}")

    def identity(self) -> str:
        """Return the random id of this directory, given to it when it is first asked for: its path names others elsewhere."""
        self.make(())
        path = f"{HOUSE}/id"
        if not self.said(path):
            self._give_id(path)
        try:
            about = os.stat("id", dir_fd=self._folder(HOUSE), follow_symlinks=False)
        except OSError as error:  # taken away meanwhile, or the directory with it
            raise self._cannot("read", path, error) from None
        if about.st_uid not in (0, os.geteuid(), os.fstat(self.fd).st_uid):
            raise Unreachable(f"{self.path}/{path} is user {about.st_uid}'s, who may give this directory another's id")
        found = (self.read(path) or b"").decode(errors="replace").strip()
        if not 0 < len(found) <= 64 or not found.isalnum():
            raise Unreachable(f"{self.path}/{path} is no id; somebody planted it")
        return found

    def ledger(self) -> str:
        """Return where the ledger of runs is when nobody says: in here, for this outlives each container."""
        self.make(())
        return os.path.join(self.path, HOUSE, "state")

    def _give_id(self, path: str) -> None:
        tmp = f"id.{os.urandom(8).hex()}"
        try:
            house = self._folder(f"{HOUSE}/tmp")
            fd = os.open(tmp, _NEW, 0o644, dir_fd=house)
            try:
                os.fchmod(fd, 0o644)
                os.write(fd, new_incarnation().encode())
                # Not renamed: of two that are asked at once, one id must stay.
                os.link(tmp, "id", src_dir_fd=house, dst_dir_fd=self._folder(HOUSE), follow_symlinks=False)
            except FileExistsError:
                pass
            finally:
                os.close(fd)
                os.unlink(tmp, dir_fd=house)
        except OSError as error:
            raise self._cannot("write", path, error) from None

    # --- saying

    def publish(self, path: str, thing: Mapping[str, Any]) -> None:
        """Put `thing` at `path` as JSON, atomically, in the place of whatever stood there."""
        self._written += 1
        # Unique per process and writer: a fixed name would be shared by two lives of one participant.
        tmp = f"{path.replace('/', '+')}.{os.getpid()}.{self._written}.{os.urandom(4).hex()}"
        try:
            house, (folder, name) = self._folder(f"{HOUSE}/tmp"), self._at(path)
            try:
                fd = os.open(tmp, _NEW, 0o644, dir_fd=house)
                try:
                    os.fchmod(fd, 0o644)
                    data = (encode(thing) + "\n").encode()
                    while data:
                        data = data[os.write(fd, data) :]
                finally:
                    os.close(fd)
                os.rename(tmp, name, src_dir_fd=house, dst_dir_fd=folder)
            except OSError:
                try:
                    os.unlink(tmp, dir_fd=house)
                except OSError:
                    pass
                raise
        except OSError as error:
            raise self._cannot("write", path, error) from None

    def publish_record(self, record: Record) -> None:
        """Publish what a participant says of itself."""
        self.publish(f"{HOUSE}/participants/{record.name}.json", record_to_json(record))

    def publish_progress(self, name: str, what: str, done: int, total: int) -> None:
        """Publish how far a participant is, in bytes: for people, so a failure to write is none."""
        try:
            self.publish(f"{HOUSE}/progress/{name}.json", {"time": time.time(), "what": what, "done": done, "total": total})
        except Unreachable:
            pass

    def say(self, signal: str, record: Record, payload: Mapping[str, Any] | None = None) -> None:
        """Leave `signal`, for good, on behalf of the participant whose record this is."""
        self.publish(
            signal,
            {"by": record.name, "incarnation": record.incarnation, "time": time.time(), "payload": dict(payload or {})},
        )
        self.tell(record, f"says {signal}")

    def unsay(self, signal: str) -> None:
        """Take away a signal that an earlier life left and that is not true of this one."""
        try:
            folder, name = self._at(signal)
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._cannot("take away", signal, error) from None

    def tell(self, record: Record, what: str) -> None:
        """Append a line to the event log: for people, so a failure to write is none."""
        line = {
            "time": time.time(),
            "by": record.name,
            "incarnation": record.incarnation,
            "state": record.state,
            "what": what[:1000],
        }
        try:
            folder = self._folder(HOUSE)
            # Not O_CREAT alone: with fs.protected_regular=1 that is refused for another user's file in a sticky folder.
            try:
                fd = os.open(
                    "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder
                )
            except FileNotFoundError:
                fd = os.open("events.jsonl", _NEW | os.O_APPEND, 0o666, dir_fd=folder)
                os.fchmod(fd, 0o666)
            try:
                os.write(fd, (encode(line) + "\n").encode())
            finally:
                os.close(fd)
        except OSError:
            pass

    # --- hearing

    def read(self, path: str) -> bytes | None:
        """Return what the regular file at `path` holds; None where there is none, or one that is too long to be ours."""
        try:
            folder, name = self._at(path)
            fd = os.open(name, _READ, dir_fd=folder)
        except OSError:
            return None
        try:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode) or about.st_size > LONGEST:
                return None
            parts, left = [], LONGEST
            while left > 0 and (part := os.read(fd, min(left, 65536))):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
        except OSError:
            return None
        finally:
            os.close(fd)

    def said(self, signal: str) -> bool:
        """Tell whether `signal` is there: as a regular file, not through a link."""
        try:
            folder, name = self._at(signal)
            return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        except OSError:
            return False

    def record(self, name: str) -> Record | None:
        """Return the record of participant `name`; None where there is none, or one that makes no sense."""
        data = self.read(f"{HOUSE}/participants/{name}.json")
        if data is None:
            return None
        try:
            record = record_from_json(decode(data))
        except _NONSENSE:
            return None
        return record if record.name == name else None

    def alive(self, name: str) -> bool | None:
        """Tell whether the lease of `name` is held; None where there is none."""
        try:
            folder, file = self._at(f"{HOUSE}/leases/{name}")
            fd = os.open(file, _READ, dir_fd=folder)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return None
        else:
            return False
        finally:
            os.close(fd)

    def look(self, name: str, battery: Battery | None) -> Seen:
        """Return what participant `name` has said, its signals being those of `battery`.

        Its last record is published before its lease goes. So: lease gone, read the record once more; another incarnation by now,
        look again.
        """
        record = self.record(name)
        while True:
            alive = self.alive(name)
            if alive is not False:
                break
            again = self.record(name)
            if (again and again.incarnation) == (record and record.incarnation):
                record = again
                break
            record = again
        if battery is None:
            return Seen(record, alive)
        return Seen(record, alive, self.said(battery.ready), self.said(battery.save), self.said(battery.saved))

    def look_at_application(self, battery: Battery) -> Seen:
        """Return what the application has said to `battery`."""
        return self.look(APPLICATION, battery)

    def names(self) -> list[str]:
        """Return the names of all participants that have a record or a lease."""
        found: set[str] = set()
        for folder, ending in (("participants", ".json"), ("leases", "")):
            try:
                files = os.listdir(self._folder(f"{HOUSE}/{folder}"))
            except OSError:
                continue
            found.update(f.removesuffix(ending) for f in files if f.endswith(ending) and not f.startswith("."))
        return sorted(found)

    def databases(self) -> list[str]:
        """Return the names of the databases of which something was said."""
        said = ("dbstarted", "initdbupload", "dbuploaddone")
        try:
            folders = [f for f in os.listdir(self.fd) if not f.startswith(".")]
        except OSError:
            return []
        return sorted(folder for folder in folders if any(self.said(f"{folder}/{name}") for name in said))

    def progress(self, name: str) -> Mapping[str, Any] | None:
        """Return what participant `name` last published of how far it is: time, what, done and total in bytes."""
        data = self.read(f"{HOUSE}/progress/{name}.json")
        try:
            thing = decode(data or b"")
            return {
                "time": _seconds(thing["time"]),
                "what": str(thing["what"]),
                "done": int(thing["done"]),
                "total": int(thing["total"]),
            }
        except _NONSENSE:
            return None

    def events(self) -> list[dict[str, Any]]:
        """Return the last events of the log, oldest first: time, by, state and what, each of the type that `tell` gives it."""
        found = []
        for line in self._tail(f"{HOUSE}/events.jsonl", LONGEST).split(b"\n"):
            try:
                thing = decode(line)
                found.append({"time": _seconds(thing["time"]), **{k: str(thing[k]) for k in ("by", "state", "what")}})
            except _NONSENSE:
                continue  # torn by a full disk, or cut off in front
        return sorted(found, key=lambda event: event["time"])

    def _tail(self, path: str, size: int) -> bytes:
        try:
            folder, name = self._at(path)
            fd = os.open(name, _READ, dir_fd=folder)
        except OSError:
            return b""
        try:
            about = os.fstat(fd)
            return os.pread(fd, size, max(0, about.st_size - size)) if stat.S_ISREG(about.st_mode) else b""
        except OSError:
            return b""
        finally:
            os.close(fd)

    # --- leases

    def lease(self, name: str) -> int:
        """Take the lease of participant `name` for this life and return its descriptor, which holds it until it is closed.

        Raises ConfigurationError where another living participant holds it: two containers go by one name.
        """
        path = f"{HOUSE}/leases/{name}"
        try:
            leases, house = self._folder(f"{HOUSE}/leases"), self._folder(f"{HOUSE}/tmp")
            try:
                fd = os.open(name, _READ, dir_fd=leases)
            except FileNotFoundError:
                tmp = f"lease.{name}.{os.urandom(8).hex()}"
                fd = os.open(tmp, _NEW, 0o644, dir_fd=house)
                os.fchmod(fd, 0o644)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                try:
                    os.link(tmp, name, src_dir_fd=house, dst_dir_fd=leases, follow_symlinks=False)
                    return fd
                except FileExistsError:
                    os.close(fd)
                    fd = os.open(name, _READ, dir_fd=leases)
                finally:
                    os.unlink(tmp, dir_fd=house)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                raise Unreachable(f"{self.path}/{path} is no regular file; somebody planted it")
            until = time.monotonic() + LEASE_PATIENCE
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return fd
                except BlockingIOError:
                    if time.monotonic() > until:
                        os.close(fd)
                        raise ConfigurationError(
                            f"another {name} is alive in {self.path}; "
                            "each participant needs a name, and each pod a coordination directory, of its own"
                        ) from None
                    time.sleep(0.002)
        except OSError as error:
            raise self._cannot("take the lease", path, error) from None


class Watch:
    """Wakes its owner when something may have changed in the directory, when a peer dies, or when a descriptor can be read.

    It tells that something may have changed, never what: its owner reads everything again. One inotify instance for all (there
    are 128 a user and node). `forced_polling` does without inotify and without blocking on leases, as where neither works.
    """

    def __init__(self, directory: Directory, folders: Iterable[str], *, forced_polling: bool = False) -> None:
        self._directory = directory
        self._folders = ("", f"{HOUSE}/participants", f"{HOUSE}/leases", *{f for f in folders if f})
        self._inotify = -1
        self._polling = forced_polling
        self._forced = forced_polling
        self._guarded: set[str] = set()
        self._bell, self._ring = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._extra: set[int] = set()
        if not forced_polling:
            self._listen()

    def close(self) -> None:
        """Stop watching. A thread that waits for a death keeps its own descriptors and goes with the process."""
        if self._inotify >= 0:
            os.close(self._inotify)
            self._inotify = -1

    def add(self, fd: int) -> None:
        """Wake for `fd` too, whenever it can be read."""
        self._poll.register(fd, select.POLLIN)
        self._extra.add(fd)

    def _listen(self) -> None:
        mask = (
            linux.IN_CREATE
            | linux.IN_MOVED_TO
            | linux.IN_CLOSE_WRITE
            | linux.IN_ATTRIB
            | linux.IN_DELETE  # a folder that is held open, as ours are, does not tell of its own deletion
            | linux.IN_DELETE_SELF
            | linux.IN_MOVE_SELF
        )
        try:
            self._inotify = linux.inotify_init()
            for folder in self._folders:
                path = os.fsencode(os.path.join(self._directory.path, folder))
                linux.inotify_add_watch(self._inotify, path, mask | linux.IN_ONLYDIR)
            self._poll.register(self._inotify, select.POLLIN)
            self._polling = False
        except OSError:
            # EMFILE: the user's 128 instances are taken. ENOSPC: its watches are. ENOENT: a folder is gone: reading tells.
            self.close()
            self._polling = True

    def guard(self, name: str, alive: bool | None) -> None:
        """Wake when participant `name`, seen `alive`, dies."""
        if not alive or self._forced or name in self._guarded:
            return
        try:
            folder, file = self._directory._at(f"{HOUSE}/leases/{name}")
            fd = os.open(file, _READ, dir_fd=folder)
        except OSError:
            return
        self._guarded.add(name)
        _thread.start_new_thread(self._wait_for_death, (name, fd))

    def _wait_for_death(self, name: str, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        except OSError:
            pass  # No locks here; the backstop reads the lease.
        finally:
            os.close(fd)
        self._guarded.discard(name)
        try:
            os.write(self._ring, b"!")
        except OSError:
            pass

    def wait(self, seconds: float) -> None:
        """Return when something may have changed, at the latest after `seconds`."""
        limit = max(0.0, min(seconds, POLLING if self._polling else BACKSTOP))
        for fd, _ in self._poll.poll(limit * 1000 + 0.999 if limit else 0):
            if fd == self._inotify:
                self._drain_inotify()
            elif fd == self._bell:
                self._drain(fd)

    def _drain(self, fd: int) -> bytes:
        try:
            return os.read(fd, 65536)
        except BlockingIOError:
            return b""

    def _drain_inotify(self) -> None:
        data, at = self._drain(self._inotify), 0
        again = False
        while at + 16 <= len(data):
            mask = int.from_bytes(data[at + 4 : at + 8], "little")
            again |= bool(
                mask & (linux.IN_IGNORED | linux.IN_UNMOUNT | linux.IN_MOVE_SELF | linux.IN_DELETE_SELF | linux.IN_Q_OVERFLOW)
            )
            at += 16 + int.from_bytes(data[at + 12 : at + 16], "little")
        if again:
            # A watched folder was moved, deleted or unmounted, or events were lost: watch anew, before its owner reads.
            self._poll.unregister(self._inotify)
            self.close()
            self._listen()


def follow(
    directory: Directory, watch_folders: Iterable[str], step: Callable[[Watch], float | None], *, forced_polling: bool = False
) -> None:
    """Call `step` until it returns None, each time that something may have changed; it returns how long it may be at most.

    The watch stands before `step` first reads, so nothing said in between is missed.
    """
    watch = Watch(directory, watch_folders, forced_polling=forced_polling)
    try:
        while (seconds := step(watch)) is not None:
            watch.wait(seconds)
            if not directory.exists():
                raise Unreachable(f"the coordination directory {directory.path} was deleted while it was in use")
    finally:
        watch.close()


# --- records as JSON ---------------------------------------------------------------------------------------------------


def record_to_json(record: Record) -> dict[str, Any]:
    """Return what a record's file holds."""
    e, p = record.exit, record.error
    return {
        "format": FORMAT,
        "name": record.name,
        "kind": record.kind,
        "incarnation": record.incarnation,
        "life": record.life,
        "state": record.state,
        "started": record.started,
        "exit": None
        if e is None
        else {"status": e.status, "code": e.code, "signal": e.signal, "reason": e.reason, "instead": e.instead},
        "error": None if p is None else {"status": p.status, "culprit": p.culprit, "reason": p.reason},
        "save": record.save,
        "saved": record.saved,
        "times": [list(entry) for entry in record.times],
        "payload": dict(record.payload or {}),
        "born": record.born,
        "limits": {n: None if (t := getattr(record.limits, n)) == FOREVER else t for n in Limits.__match_args__},
        "peers": [list(entry) for entry in record.peers],
    }


def _from_0_to(last: int, thing: Any) -> int:
    number = int(thing)
    if not 0 <= number <= last:
        raise ValueError(f"{number} is not within 0 and {last}")
    return number


def _seconds(thing: Any) -> float:
    number = float(thing)
    if not abs(number) < FOREVER:
        raise ValueError(f"{number} is no time")
    return number


def record_from_json(thing: Any) -> Record:
    """Return the record that a file holds; one of _NONSENSE where it makes no sense."""
    e, p = thing["exit"], thing["error"]
    return Record(
        name=str(thing["name"]),
        kind=str(thing["kind"]),
        incarnation=str(thing["incarnation"]),
        life=_from_0_to(1 << 31, thing["life"]),
        state=str(thing["state"]),
        started=thing["started"] is True,
        exit=None
        if e is None
        else Exit(_from_0_to(255, e["code"]), _from_0_to(64, e["signal"]), str(e["reason"]), _from_0_to(255, e["instead"])),
        error=None if p is None else Problem(_from_0_to(255, p["status"]), str(p["culprit"]), str(p["reason"])),
        save=str(thing["save"]),
        saved=thing["saved"] is True,
        times=tuple((str(state), _seconds(when)) for state, when in thing["times"]),
        payload=dict(thing["payload"].items()),  # of pairs, too, dict() would make one, whose keys may be anything
        born=_seconds(thing["born"]),
        limits=Limits(**{n: FOREVER if (t := thing["limits"][n]) is None else _seconds(t) for n in Limits.__match_args__}),
        peers=tuple((str(name), str(kind)) for name, kind in thing["peers"]),
    )
