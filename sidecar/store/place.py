"""Where bundles are when nobody says: one rule for the commands and for `bundle://`. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping

from sidecar.errors import ConfigurationError


def store_url(environment: Mapping[str, str]) -> str:
    """Return the URL of the store: SIDECAR_STORE, else `sidecar/store` in the user's data directory, as XDG finds that.

    ConfigurationError where neither SIDECAR_STORE, XDG_DATA_HOME nor HOME is set.
    """
    if environment.get("SIDECAR_STORE"):
        return environment["SIDECAR_STORE"]
    data = environment.get("XDG_DATA_HOME", "")
    # Relative paths in it are to be ignored, says the XDG base directory specification.
    if not os.path.isabs(data):
        home = environment.get("HOME", "")
        if not os.path.isabs(home):
            raise ConfigurationError("there is no HOME to keep a store in; name one with --store URL or SIDECAR_STORE")
        data = os.path.join(home, ".local", "share")
    return "file://" + os.path.join(data, "sidecar", "store")
