"""What a battery tells of the bundles that it restored or made: in its payload, and in a file."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from functools import partial
from typing import Any

from sidecar.errors import NotSaved
from sidecar.parameters.fuse import Destination, Source
from sidecar.store import Bundle, open_shared


def told_of(of: Source | Destination, bundle: Bundle) -> dict[str, Any]:
    """Return what stands in a payload of a source or destination and its bundle."""
    return {
        "name": of.name,
        "path": of.path,
        "repo": of.repo,
        "label": of.label,
        "bundle": bundle.id,
        "files": bundle.files,
        "bytes": bundle.bytes,
    }


def write_bundle_id(path: str, bundle: Bundle) -> None:
    """Write a file with the id of a bundle, that has all of its content from the moment it has its name."""
    folder, name = os.path.split(os.path.abspath(path))
    temporary = f".{name[:200]}.{secrets.token_hex(4)}"
    try:
        fd = open_shared(folder, make=True)
        try:
            with open(temporary, "x", encoding="utf-8", opener=partial(os.open, mode=0o666, dir_fd=fd)) as file:
                file.write(bundle.id + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=fd)
            os.close(fd)
    except OSError as error:
        # The bundle is safe, yet whoever was promised its id is not told: that is not a success.
        raise NotSaved(f"{path}: the bundle's id {bundle.id} cannot be written: {error.strerror}") from error
