"""Who may build and who may write: slots of builders, and layouts that are one builder's at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import memory
import pytest
from processes import until
from workshop import Workshop, microseconds

from sidecar.errors import SidecarError, Unreachable
from sidecar.factory import builder
from sidecar.factory.builder import see_to
from sidecar.factory.model import Asked
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


# --- layouts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def layout(shop: Workshop) -> Path:
    shop.define("providers: {archive: {layout: ../state/archive}}")
    shop.image("app", "")
    path = shop.folder / "state" / "archive"
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_who_may_read_a_layout_keeps_nobody_from_pushing(shop: Workshop, layout: Path) -> None:
    build = shop.built("app")
    layout.chmod(0o755)
    reads = os.open(layout, os.O_RDONLY)
    try:
        fcntl.flock(reads, fcntl.LOCK_EX)
        assert shop.push(build, "archive").status == "COMPLETE"
    finally:
        os.close(reads)
    assert (layout / "sidecar.lock").stat().st_mode & 0o777 == 0o600


def test_a_push_says_that_it_waits_for_another_and_goes_on_after_it(shop: Workshop, layout: Path) -> None:
    build = shop.built("app")
    writes = os.open(layout / "sidecar.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(writes, fcntl.LOCK_EX)
        asked = Asked("push", "app", "oci", build.content, build.site, "archive", build.id)
        work = shop.records.ask(asked, microseconds())
        see_to(shop.site, shop.records)
        until(lambda: shop.records.get(work.id).activity == f"waits for whoever writes to {layout}", "it waits")
    finally:
        os.close(writes)
    assert shop.over(work).status == "COMPLETE"


def test_who_waits_for_a_layout_gives_up_and_says_so(tmp_path: Path) -> None:
    waited: list[None] = []
    with (
        builder._alone(str(tmp_path), lambda: None),
        pytest.raises(SidecarError, match=rf"writing to {tmp_path} for 0.1 s: see who has .*/sidecar\.lock open"),
        builder._alone(str(tmp_path), lambda: waited.append(None), 0.1),
    ):
        raise AssertionError
    assert waited


def test_a_link_in_the_place_of_a_layouts_lock_is_not_followed(shop: Workshop, layout: Path) -> None:
    target = shop.folder / "target"
    (layout / "sidecar.lock").symlink_to(target)
    assert "Too many levels of symbolic links" in shop.push(shop.built("app"), "archive").error
    assert not target.exists()
