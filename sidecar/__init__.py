"""Containers of one pod coordinate through files on a shared volume.

Nothing is imported here: `wrap_application` pays for every import at the start of each container.
"""

__version__ = "0.1.0"
