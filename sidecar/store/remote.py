"""Bytes by name in an object store, through fsspec: gs://, s3://, memory://, any URL it knows.

A put is all or nothing, and durable once it is answered: that is the services' own promise. What they do not promise is to
answer. So every request has a time limit and is made again, after a pause that doubles and is drawn at random (many who were
refused together must not come back together), until a deadline: then Unreachable, with the last error. The clients' own
retries are switched off: gcsfs would try six times for half a minute, and s3fs five times what botocore does five times, and
neither would say why. What can never be right at a later time, a permission that is missing, say, is not tried again.

A request that was cut off may have been carried out. For `put` that does not matter; `create` looks whether what stands there
is what it was to write.
"""

from __future__ import annotations

import errno
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from sidecar.errors import ConfigurationError, Unreachable
from sidecar.store.format import MIB

_logger = logging.getLogger(__name__)

# memory:// looks whether something stands there, and then writes; services do both at once.
_creating = threading.Lock()

_TEMPORARY = {408, 425, 429}  # and whatever the service says is its own fault, 500 and above
_AGAIN = {errno.EIO, errno.EBUSY, errno.EAGAIN, errno.EPIPE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED}
_CLIENTS = {"aiohttp", "botocore", "urllib3", "requests", "http"}  # errors of theirs without a status are of the connection
_LEAST = 1.0  # seconds for the last attempt's answer
_NEVER = (PermissionError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Patience:
    """How long a store is waited for, in seconds."""

    request: float = 60.0
    """An answer; more for a large body, a second for each `slowest` bytes of it."""
    slowest: int = MIB // 4
    whole: float = 300.0
    """From the first attempt to the end of the last, but for a second."""
    pause: float = 0.5
    longest_pause: float = 20.0


def open_remote(url: str, patience: Patience, options: dict[str, Any]) -> RemoteObjects:
    """Return the objects below an fsspec URL. ConfigurationError, Unreachable: see objects.open_objects."""
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0]
    try:
        filesystem, root = url_to_fs(url, **(_options(scheme) | options))
    except (ValueError, ImportError) as error:
        raise ConfigurationError(f"{url}: {error}") from error
    except Exception as error:
        raise Unreachable(f"{url}: {error}") from error
    _have_one_attempt(filesystem)
    return RemoteObjects(url, filesystem, root, patience)


def _options(scheme: str) -> dict[str, Any]:
    # A client of our own: others in this process may want theirs to remember listings and to retry.
    ours: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme in ("gs", "gcs"):
        return ours | {"cache_timeout": 0}
    if scheme in ("s3", "s3a"):
        return ours | {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
    return {}


def _have_one_attempt(filesystem: Any) -> None:
    """Switch off the retries of gcsfs (a decorator's) and s3fs (a number)."""
    once = getattr(getattr(type(filesystem), "_request", None), "__wrapped__", None)
    if once is not None:
        filesystem._request = partial(once, filesystem)
    if isinstance(getattr(filesystem, "retries", None), int):
        filesystem.retries = 1


class RemoteObjects:
    """Any fsspec file system; see objects.Objects."""

    parallel = 4  # each holds a chunk in memory three times while it arrives; with 5 and others busy, memory peaked at 332 MiB
    pack = 8 * MIB  # a client holds it a second and a third time
    sealing = 2

    def __init__(self, url: str, filesystem: Any, root: str, patience: Patience | None = None) -> None:
        """Serve what lies below `root` of an fsspec file system."""
        self.url = url
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._patience = patience or Patience()
        self._pausing = threading.Event()

    def put(self, name: str, data: bytes | memoryview, *, anew: bool = False) -> bool:
        """See Objects."""
        if not anew:
            with suppress(FileNotFoundError):
                if self.size(name) == len(data):
                    return False
        self._ask(name, "pipe_file", bytes(data), size=len(data))
        return True

    def create(self, name: str, data: bytes, *, durable: bool = True) -> bool:  # noqa: ARG002
        """See Objects."""
        with nullcontext() if self._fs.async_impl else _creating:
            try:
                self._ask(name, "pipe_file", data, mode="create")
            except FileExistsError:
                # It may be ours, of an attempt whose answer was lost: aiohttp makes such a request again without a word.
                return self.get(name, len(data) + 1) == data
            return True

    def size(self, name: str) -> int:
        """See Objects."""
        return int(self._ask(name, "info")["size"])

    def get(self, name: str, limit: int) -> bytes:
        """See Objects."""
        return bytes(self._ask(name, "cat_file", start=0, end=limit))[:limit]

    def read(self, name: str, offset: int, view: memoryview) -> int:
        """See Objects."""
        data = self._ask(name, "cat_file", start=offset, end=offset + len(view), size=len(view))
        have = min(len(data), len(view))
        view[:have] = data[:have]
        return have

    def names(self, folder: str) -> list[str]:
        """See Objects."""
        try:
            found = self._ask(folder, "ls", detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for name in (each.rstrip("/").rpartition("/")[2] for each in found) if name)

    def sizes(self, folder: str) -> Iterator[tuple[str, int]]:
        """See Objects."""
        try:
            found: dict[str, Any] = self._ask(folder, "find", detail=True)
        except FileNotFoundError:
            return
        start = len(self._fs._strip_protocol(self._path(folder))) + 1
        for path, told in found.items():
            yield f"{folder}/{path[start:]}", int(told["size"])

    def remove(self, name: str) -> None:
        """See Objects."""
        with suppress(FileNotFoundError):
            self._ask(name, "rm_file")

    def flush(self) -> None:
        """See Objects."""

    def sweep(self) -> None:
        """Nothing is left by killed writers."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _ask(self, name: str, what: str, *arguments: Any, size: int = 0, **named: Any) -> Any:
        """Make a request, as often as it takes. FileNotFoundError, FileExistsError, Unreachable."""
        patience, begin = self._patience, time.monotonic()
        pause, attempt, limit = patience.pause, 0, patience.request + size / patience.slowest
        while True:
            attempt += 1
            limit = min(limit, max(_LEAST, begin + patience.whole - time.monotonic()))
            try:
                return self._once(what, limit, self._path(name), *arguments, **named)
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as error:  # every client has its own
                if (status := _status(error)) == 416:  # the object ends before what was asked for
                    return b""
                said = f"{type(error).__name__}: {error}" if str(error) else f"no answer within {limit:.0f} s"
                if not _is_temporary(error, status):
                    raise Unreachable(f"{self.url}: {name}: {said}") from error
                wait = random.uniform(pause / 2, pause)
                spent = time.monotonic() - begin
                if spent + wait > patience.whole:
                    tries = f"{attempt} attempts in {spent:.0f} s, the last one: "
                    raise Unreachable(f"{self.url}: {name}: {tries}{said}") from error
                _logger.info("%s: %s: %s; attempt %d follows", self.url, name, said, attempt + 1)
                self._pausing.wait(wait)
                pause = min(2 * pause, patience.longest_pause)

    def _once(self, what: str, limit: float, *arguments: Any, **named: Any) -> Any:
        call: Callable[..., Any] | None = getattr(self._fs, "_" + what, None) if self._fs.async_impl else None
        if call is None:
            return getattr(self._fs, what)(*arguments, **named)
        from fsspec.asyn import sync

        # With a limit, what is too late is also cancelled: nothing goes on in the background.
        return sync(self._fs.loop, call, *arguments, timeout=limit, **named)


def _status(error: BaseException) -> int:
    """Return the HTTP status that an error carries; 0 where there is none."""
    told = [getattr(error, "code", None), getattr(error, "status", None)]
    cause: BaseException | None = error
    while cause is not None:  # s3fs makes an OSError of botocore's; other causes' numbers are about something else
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            told.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        cause = cause.__cause__
    return next((int(text) for text in map(str, told) if text.isdigit() and 300 <= int(text) < 600), 0)


def _is_temporary(error: Exception, status: int) -> bool:
    """Say whether the same request may succeed a little later."""
    if isinstance(error, _NEVER):
        return False
    if status:
        return status >= 500 or status in _TEMPORARY
    if isinstance(error, TimeoutError | ConnectionError | EOFError):
        return True
    if isinstance(error, OSError) and error.errno in _AGAIN:
        return True
    return any(kind.__module__.partition(".")[0] in _CLIENTS for kind in type(error).__mro__)
