"""The local runner: what every runner owes, and what is its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from session_contract import Contract

from sidecar.errors import SourceMissing
from sidecar.session.local import LocalRunner


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[LocalRunner]:
    runner = LocalRunner(str(tmp_path / "pods"), backoff=0.05)
    yield runner
    for each in runner.list():
        with suppress(SourceMissing):
            runner.stop(each.name, 0)


@pytest.fixture
def base() -> str:
    return "host"


class TestWhatEveryRunnerOwes(Contract):
    pass
