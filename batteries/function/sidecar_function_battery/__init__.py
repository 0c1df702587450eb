"""The battery `function`: an application has code that was just handed over run in sandboxes, by a service beside it.

A distribution of its own: nothing of sidecar-toolkit knows its name. options.py is what may be said of it; battery.py serves;
handover.py is how the application learns where, and the token. Importing this imports neither a server nor a framework.
"""

from __future__ import annotations

from sidecar.batteries import Battery, Kind, Progress
from sidecar.errors import ConfigurationError
from sidecar_function_battery.options import FunctionBatteryOptions, companion, read

__all__ = ["KIND", "FunctionBatteryOptions", "open_battery"]


def open_battery(options: FunctionBatteryOptions, progress: Progress) -> Battery:  # noqa: ARG001
    """Return the battery; see battery.FunctionBattery. Beginning it takes no time that could be told of."""
    try:
        from sidecar_function_battery.battery import FunctionBattery
    except ImportError as error:
        raise ConfigurationError(f"the server is not installed: pip install 'sidecar-toolkit[server]' ({error})") from None
    return FunctionBattery(options)


KIND = Kind("function", FunctionBatteryOptions, open_battery, companion, read)
