"""buildah, with a store of images of its own: what it is told to build and to push, what it keeps, and what it has left behind.

    <store>/                      as containers/storage lays it out
        factory/containers.conf   limits that this machine can set
        factory/storage.conf      the store and its driver
        factory/lock              shared by whoever builds, taken alone by whoever removes what is left
        factory/builds/<random>   the temporary files of one build or push; removed when buildah has done what it was to do
        factory/run-<boot>        what the store takes to be gone after a reboot

Needs root. A build has mounts and processes of its own, in namespaces: whatever ends buildah or whoever began it, nothing of it
goes on. What a build leaves that was killed, itself or with its builder, is a container in the store, and its folder in `builds`,
which tells of that. Nobody else has containers in this store: so when nobody builds, all of them are removed.

Commands are isolated by chroot, which needs no runtime and no limits that a machine may not let us set. The driver is overlay,
where that works, or vfs, which copies each layer; a store keeps the one that it began with.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from sidecar import process
from sidecar.errors import ConfigurationError, Unreachable
from sidecar.factory.context import names_local
from sidecar.factory.definition import LOCAL, Definition, Recipe
from sidecar.factory.model import Provider, Target

_FOLDER = "factory"
_OWN_MOUNTS = ("unshare", "--mount")
# The shell tells by which signal buildah was ended, which unshare does not: it would have to end by the same one.
_ALONE = (*_OWN_MOUNTS, "--pid", "--mount-proc", "--fork", "--kill-child", "sh", "-c", '"$@"; exit $?', "sh")
# What containers/image calls a part of an image before all of it is in a layout.
_UNFINISHED = "oci-put-blob"
# What it empties before it writes it, and what a layout without images has there. While one pushes there is a copy of each, put
# back where buildah was killed at that moment: nobody would find any image there any more, and no push would succeed.
_REPLACED = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": b'{"schemaVersion": 2, "manifests": []}'}
_COPY = ".sidecar-"
_DRIVERS = ("overlay", "vfs")
# podman and buildah allow themselves at most so many.
_PROCESSES = 32768
# How often, in seconds, it is looked whether the store's lock is free.
_PAUSE = 0.05
# How long buildah may take for what is a look at its store.
_PATIENCE = 120.0


class Buildah:
    """buildah, whose images are in the folder `store`. Nothing is made there before `prepare`."""

    def __init__(self, store: str) -> None:
        self.store = os.path.abspath(store)
        self._own = os.path.join(self.store, _FOLDER)
        # The images as they were, and what told that they have not changed since.
        self._seen: tuple[tuple[int, int, int], dict[str, tuple[str, ...]]] | None = None

    # --- commands

    def build(
        self,
        definition: Definition,
        recipe: Recipe,
        *,
        target: Target,
        ignore: str,
        base: str,
        labels: Mapping[str, str],
        id_file: str,
    ) -> list[str]:
        """Return the command that builds an image, without a name; it leaves the image's id in the file `id_file`."""
        command = ["buildah", "build", "--layers", "--force-rm", "--isolation=chroot", f"--format={target}"]
        # What is of this machine alone is nowhere else: a server that happens to be here shall not be asked for it.
        here = base.startswith((f"{LOCAL}/", "sha256:")) or names_local(recipe)
        command.append("--pull-never" if here else "--pull=false")
        if definition.timestamp is not None:
            command.append(f"--timestamp={definition.timestamp}")
        command += [f"--volume={outside}:{inside}:ro" for outside, inside in definition.volumes]
        arguments = {**({"BASE": base} if base else {}), **recipe.arguments}
        command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
        command += [f"--label={name}={value}" for name, value in labels.items()]
        command += [f"--ignorefile={ignore or os.devnull}", f"--file={recipe.file}", f"--iidfile={id_file}"]
        return [*_ALONE, *command, recipe.context]

    def push(self, image: str, provider: Provider, reference: str, *, digest_file: str) -> list[str]:
        """Return the command that pushes the image of an id; it leaves the digest of the manifest in the file `digest_file`."""
        command = ["buildah", "push", f"--digestfile={digest_file}"]
        if provider.layout:
            return [*_ALONE, *command, image, f"oci:{provider.layout}:{reference}"]
        command += ["--tls-verify=false"] if provider.plain else []
        command += [f"--authfile={provider.authfile}"] if provider.authfile else []
        return [*_ALONE, *command, image, f"docker://{reference}"]

    @contextmanager
    def writing(self, layout: str) -> Iterator[None]:
        """Have a layout be whole before a push and after it, without what one leaves that is killed; for who alone writes to it.

        Unreachable where that cannot be before. Where it is not after, as when the builder is killed, the next push sees to it.
        """
        try:
            _clear(layout)
            for name, empty in _REPLACED.items():
                _keep(layout, name, empty)
        except OSError as error:
            raise Unreachable(f"{layout} cannot be cleared: {error.strerror}") from None
        try:
            yield
        finally:
            with suppress(OSError):
                _clear(layout)

    def environment(self, temporary: str = "") -> dict[str, str]:
        """Return the environment of each command; `temporary` is the folder for its files."""
        found = process.environment_given()
        for name in [each for each in found if each.startswith(("BUILDAH_", "STORAGE_"))]:
            del found[name]
        found["CONTAINERS_CONF"] = os.path.join(self._own, "containers.conf")
        found["CONTAINERS_STORAGE_CONF"] = os.path.join(self._own, "storage.conf")
        # No command shall look further for credentials than a provider says: not in the home of whoever runs this.
        found["REGISTRY_AUTH_FILE"] = os.path.join(self._own, "auth.json")
        if temporary:
            found["TMPDIR"] = temporary
        return found

    # --- the store

    def prepare(self) -> None:
        """Make the store, where there is none, and what buildah is told of it. ConfigurationError where buildah cannot build."""
        if os.geteuid() != 0:
            raise ConfigurationError("building takes root: buildah has to mount, and to change into other roots")
        if missing := [each for each in ("buildah", "unshare") if shutil.which(each) is None]:
            raise ConfigurationError(f"{missing[0]} is not installed: it is in Debian's package {_package(missing[0])}")
        try:
            # makedirs gives what is in between the mode that the umask leaves.
            for folder in (self.store, self._own, os.path.join(self._own, "builds")):
                os.makedirs(folder, mode=0o700, exist_ok=True)
            self._write(
                "containers.conf", f"{_limits()}[network]\nnetwork_config_dir = {_quoted(os.path.join(self._own, 'networks'))}\n"
            )
            self._write("auth.json", "{}\n")
            there = [each for each in _DRIVERS if os.path.isdir(os.path.join(self.store, f"{each}-images"))]
            if there:
                self._write("storage.conf", self._storage(there[0]))
                return
            for driver in _DRIVERS:
                self._write("storage.conf", self._storage(driver))
                if (ran := self.run("images", "--quiet", check=False)).returncode == 0:
                    return
        except OSError as error:
            raise Unreachable(f"images cannot be kept in {self.store}: {error.strerror}") from None
        raise Unreachable(f"images cannot be kept in {self.store}: {ran.stderr.strip() or 'buildah does not say why'}")

    def images(self) -> dict[str, tuple[str, ...]]:
        """Return the ids of the images that are there, as `sha256:…`, each with its names."""
        # containers/storage replaces this file whenever an image comes, goes or is called something else.
        for driver in _DRIVERS:
            with suppress(FileNotFoundError):
                about = os.stat(os.path.join(self.store, f"{driver}-images", "images.json"))
                break
        else:
            return {}
        now = about.st_ino, about.st_mtime_ns, about.st_size
        if self._seen is None or self._seen[0] != now:
            if not os.path.exists(os.path.join(self._own, "storage.conf")):
                self.prepare()  # a store that others have made
            found = json.loads(self.run("images", "--all", "--no-trunc", "--json").stdout or "[]")
            self._seen = now, {_id(each["id"]): tuple(each["names"] or ()) for each in found}
        return self._seen[1]

    def name(self, image: str, name: str) -> None:
        """Give the image of an id a name, which another may have had until now."""
        self.run("tag", image, name)

    def layers(self, image: str) -> int:
        """Return how many layers the image of an id has."""
        return int(self.run("inspect", "--type=image", "--format={{len .OCIv1.RootFS.DiffIDs}}", image).stdout)

    # --- builds

    @contextmanager
    def at_work(self, waits: Callable[[], None]) -> Iterator[str]:
        """Yield a folder for the temporary files of one build or push. Where anything is raised it stays, and tells of it.

        `waits` is called again and again while somebody removes what is left.
        """
        with self._lock(fcntl.LOCK_SH, waits):
            folder = os.path.join(self._own, "builds", os.urandom(8).hex())
            os.mkdir(folder, 0o700)
            yield folder
            shutil.rmtree(folder, ignore_errors=True)

    def clean(self) -> bool:
        """Remove what builds have left that did not end by themselves; False where others build, and there may be some."""
        builds = os.path.join(self._own, "builds")
        try:
            if not os.listdir(builds):
                return True
            with self._lock(fcntl.LOCK_EX):
                self.run("rm", "--all")
                for each in os.listdir(builds):
                    shutil.rmtree(os.path.join(builds, each))
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            raise Unreachable(f"{builds} cannot be emptied: {error.strerror}") from None
        return True

    @contextmanager
    def _lock(self, how: int, waits: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the lock of the store. Where another has it, `waits` is called until that has let go; without, BlockingIOError."""
        fd = os.open(os.path.join(self._own, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(fd, how | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if waits is None:
                        raise
                waits()
                time.sleep(_PAUSE)
            yield
        finally:
            os.close(fd)

    def _write(self, name: str, text: str) -> None:
        """Write a file that others may be reading, if it says something else."""
        path = os.path.join(self._own, name)
        with suppress(FileNotFoundError), open(path) as file:
            if file.read() == text:
                return
        fresh = f"{path}.{os.urandom(8).hex()}"
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
        os.rename(fresh, path)

    def _storage(self, driver: str) -> str:
        run = os.path.join(self._own, f"run-{process.boot()}")
        return (
            f"[storage]\ndriver = {_quoted(driver)}\ngraphroot = {_quoted(self.store)}\nrunroot = {_quoted(run)}\n"
            "[storage.options]\nadditionalimagestores = []\n"
        )

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Have buildah do something else in its store; Unreachable where it fails, unless that is not to be checked."""
        try:
            # It mounts the store on itself, and leaves that so: in a namespace that is gone with it.
            ran = subprocess.run(
                [*_OWN_MOUNTS, "buildah", *arguments],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PATIENCE,
                check=False,
            )
        except FileNotFoundError:
            raise ConfigurationError("unshare is not installed: it is in Debian's package util-linux") from None
        except subprocess.TimeoutExpired:
            raise Unreachable(f"buildah has not answered for {_PATIENCE:g} s, asked for what is in {self.store}") from None
        if check and ran.returncode:
            raise Unreachable(f"buildah {arguments[0]}: {ran.stderr.strip() or f'ended with status {ran.returncode}'}")
        return ran


def _clear(layout: str) -> None:
    """Remove what was left in a layout by who was killed, and put back what that has spoilt."""
    for name in _REPLACED:
        path, copy = os.path.join(layout, name), os.path.join(layout, f"{_COPY}{name}")
        if os.path.lexists(copy):
            # What is not there was removed by others, or never written.
            if os.path.lexists(path) and not _whole(path):
                os.rename(copy, path)
            else:
                os.unlink(copy)
    for name in os.listdir(layout):
        if name.startswith((_UNFINISHED, f"{_COPY}new-")):
            os.unlink(os.path.join(layout, name))


def _keep(layout: str, name: str, empty: bytes) -> None:
    """Keep a copy of a file that is about to be replaced, on the disk; of one that is spoilt there is none to keep."""
    try:
        now = _whole(os.path.join(layout, name))
    except FileNotFoundError:
        now = empty
    if not now:
        return
    fresh = os.path.join(layout, f"{_COPY}new-{name}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644), "wb") as file:
        file.write(now)
        file.flush()
        os.fsync(file.fileno())
    os.rename(fresh, os.path.join(layout, f"{_COPY}{name}"))


def _whole(path: str) -> bytes:
    """Return an object of JSON, which is on the disk then; b"" where the file is none.

    By no link, which anybody may have put there who writes to that folder: a copy would show what it leads to.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        said = file.read()
        try:
            if not isinstance(json.loads(said), dict):
                return b""
        except (ValueError, RecursionError):
            return b""
        os.fsync(file.fileno())
        return said


def _limits() -> str:
    """Return the limits of what a build runs: those of this machine, where buildah would ask for more than it may."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    processes = _PROCESSES if most == resource.RLIM_INFINITY else min(most, _PROCESSES)
    return f'[containers]\ndefault_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]\n'


def _quoted(text: str) -> str:
    """Return a basic string of TOML."""
    return json.dumps(text)


def _id(id_: str) -> str:
    return id_ if id_.startswith("sha256:") else f"sha256:{id_}"


def _package(command: str) -> str:
    return {"unshare": "util-linux"}.get(command, command)


def shown(command: Sequence[str]) -> str:
    """Return a command as the log tells it."""
    import shlex

    return shlex.join(command[len(_ALONE) :] if tuple(command[: len(_ALONE)]) == _ALONE else command)
