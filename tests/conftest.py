"""What the tests share: a store, a tree to save in it, and signals that are heard however the tests themselves were started."""

import random
import signal
from pathlib import Path

import pytest

from sidecar.store import Store, open_store

# A shell that puts the tests into the background has SIGINT and SIGQUIT ignored, nohup has SIGHUP; every child inherits that.
for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of files, not made yet."""
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two small files in a pack, one of two chunks, a link. Modules that look at other things have a tree of their own."""
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "one").write_bytes(b"one")
    (top / "two").write_bytes(random.Random(2).randbytes(3000))
    (top / "big").write_bytes(random.Random(1).randbytes(10 << 20))
    (top / "link").symlink_to("two")
    return top
