"""Databases as versioned artifacts: the battery `postgres`.

battery.py puts all together. Pure: control.py (what a cluster says of itself), contents.py (what of it is archived),
configuration.py (what a server is told). stage.py owns the directory and remembers what was done in it; clusters.py has a
cluster made, copied or restored; postmaster.py is one life of a server and programs.py runs the others; sessions.py speaks SQL;
pages.py checks checksums; archive.py makes bundles; handover.py tells the application how to connect; upgrade.py, logical.py
and verification.py are what their names say; installations.py finds PostgreSQL.

Importing this imports none of psycopg and numpy: they are paid for where the battery is opened.
"""

from __future__ import annotations

from typing import Any

from sidecar.batteries import Battery, Kind, Progress, companion


def open_battery(options: Any, progress: Progress) -> Battery:
    """Return the battery of a battery.PostgresBatteryOptions."""
    from sidecar.batteries.postgres.battery import PostgresBattery

    return PostgresBattery(options, progress)


KIND: Kind[Any] = Kind("postgres", object, open_battery, companion.postgres)
