"""How the application learns where the service is: two files beside the battery's signals, on the volume that is shared.

    url      where it is, for everybody who can enter the directory
    token    for its reader alone (0600), and made anew in each life of the battery

What records and signals say, everybody may read, `sidecar status` prints and logs keep: so the token is in none of them, only the
path of its file. Others write to that volume. A file is made under a name that nobody knows, and renamed; no link is followed.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress

from sidecar.errors import Unreachable
from sidecar.store import open_shared

URL, TOKEN = "url", "token"


def hand_over(folder: str, url: str, token: str, client: int | None) -> None:
    """Write both files; the token is for `client`, a uid, alone (None: for ourselves). Unreachable."""
    try:
        fd = open_shared(folder, make=True)
        try:
            # The token first: whoever finds an address may ask at once.
            _write(fd, TOKEN, token, 0o600, client)
            _write(fd, URL, url, 0o644, None)
        finally:
            os.close(fd)
    except OSError as error:
        raise Unreachable(f"{folder}: how to call functions cannot be told there: {error.strerror}") from None


def take_back(folder: str) -> None:
    """Remove both files, as far as they are there."""
    with suppress(OSError):
        fd = open_shared(folder)
        try:
            for name in (URL, TOKEN):
                with suppress(OSError):
                    os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)


def _write(folder: int, name: str, text: str, mode: int, owner: int | None) -> None:
    temporary = f".{name}.{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fchmod(fd, mode)
            if owner is not None:
                os.fchown(fd, owner, -1)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
