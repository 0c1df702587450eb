"""Who may build and who may write: slots of builders, and layouts that are one builder's at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import memory
import pytest
from workshop import Workshop, microseconds

from sidecar.errors import Unreachable
from sidecar.factory.builder import see_to
from sidecar.factory.records import open_records


@pytest.fixture
def shop() -> Iterator[Workshop]:
    with memory.folder() as top, Workshop(top) as shop:
        yield shop


def test_eight_who_look_at_once_begin_no_more_builders_than_may_build(shop: Workshop) -> None:
    shop.image("app", "")
    work = shop.records.ask(shop.asked("app"), microseconds())

    def look(_: int) -> int:
        begun = 0
        with open_records(shop.site.state) as records:
            while not records.get(work.id).over:
                begun += see_to(shop.site, records)
        return begun

    with ThreadPoolExecutor(8) as threads:
        begun = sum(threads.map(look, range(8)))
    assert 1 <= begun <= shop.site.slots
    assert shop.over(work).status == "COMPLETE"


def test_a_builder_that_cannot_begin_is_told_of_and_another_is_begun_later(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.image("app", "")
    work = shop.records.ask(shop.asked("app"), microseconds())
    (tmp_path / "sidecar").mkdir()
    (tmp_path / "sidecar" / "__init__.py").write_text('raise RuntimeError("not \\x1b[31minstalled")\n')
    with monkeypatch.context() as broken:
        broken.setenv("PYTHONPATH", str(tmp_path))
        assert see_to(shop.site, shop.records)
        shop.idle()
    for _ in range(2):
        with pytest.raises(Unreachable, match=r"^no builder can be begun: RuntimeError: not \?\[31minstalled$"):
            see_to(shop.site, shop.records)
    os.utime(shop.site.slot(0), (1, 1))
    assert see_to(shop.site, shop.records)
    assert shop.over(work).status == "COMPLETE"
    shop.idle()
    assert Path(shop.site.slot(0)).read_text() == ""
