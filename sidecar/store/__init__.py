"""Bundles of files in repositories, below any fsspec URL. README.md of this folder is the format.

    store = open_store("file:///srv/store")
    bundle = store.save("out", "results", label="latest", message="nightly run")
    store.populate(store.resolve("results", label="latest"), "in")

format.py and table.py decide what bytes mean and reference.py how people name a bundle (all pure); compress.py makes them
fewer; objects.py has bytes by name; tree.py opens directories without following links; upload.py and download.py move content;
places.py knows what is stored already; selection.py says which part of a bundle is wanted; upkeep.py keeps prunes and uploads
apart; bundles.py puts all together, in the order that the promises rest on.
"""

from sidecar.store.bundles import Accept, Store, open_store
from sidecar.store.download import Reader
from sidecar.store.format import RESERVED, Bundle, Change, Entry, Move, Piece, Repo, check_name, encode_path, is_id
from sidecar.store.reference import Reference, parse_reference
from sidecar.store.remote import Patience
from sidecar.store.tree import open_shared
from sidecar.store.upkeep import Checked, Pruned
from sidecar.store.work import Progress, Stopped

__all__ = [
    "RESERVED",
    "Accept",
    "Bundle",
    "Change",
    "Checked",
    "Entry",
    "Move",
    "Patience",
    "Piece",
    "Progress",
    "Pruned",
    "Reader",
    "Reference",
    "Repo",
    "Stopped",
    "Store",
    "check_name",
    "encode_path",
    "is_id",
    "open_shared",
    "open_store",
    "parse_reference",
]
