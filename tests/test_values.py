"""`value` makes of a class what a frozen dataclass with slots is, without the import."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest

from sidecar.coordination.protocol import Exit, Limits, Record, Wait, Waiting
from sidecar.values import replace, value


@value
class Point:
    """A point."""

    x: int
    y: int = 0

    @property
    def sum(self) -> int:
        return self.x + self.y

    def moved(self, by: int) -> Point:
        return replace(self, x=self.x + by)


@value
class Other:
    x: int
    y: int = 0


def test_fields_are_given_by_place_by_name_or_by_default() -> None:
    assert (Point(1).x, Point(1).y) == (1, 0)
    assert Point(1, 2) == Point(x=1, y=2) == Point(1, y=2)


@pytest.mark.parametrize(("args", "kw"), [((), {}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((), {"y": 1}), ((1,), {"x": 1})])
def test_a_constructor_refuses_what_a_function_would(args: tuple[int, ...], kw: dict[str, int]) -> None:
    with pytest.raises(TypeError, match=r"Point\(\)"):
        Point(*args, **kw)


def test_a_value_is_frozen() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match="Point is frozen"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="Point is frozen"):
        del point.x
    with pytest.raises(AttributeError):
        point.z = 2  # type: ignore[attr-defined]
    assert point == Point(1)
    assert not hasattr(point, "__dict__")


def test_values_are_equal_where_their_type_and_fields_are() -> None:
    assert Point(1, 2) == Point(1, 2)
    others: list[object] = [Point(2, 1), Other(1, 2), (1, 2), 1, None]
    assert all(Point(1, 2) != other for other in others)


def test_equal_values_hash_alike() -> None:
    assert hash(Point(1, 2)) == hash(Point(1, 2))
    assert {Point(1): "a"}[Point(1, 0)] == "a"
    assert len({Point(1), Point(1), Point(2), Other(1)}) == 3
    with pytest.raises(TypeError):
        hash(Point([]))  # type: ignore[arg-type]


def test_a_value_matches_patterns_by_place_and_by_name() -> None:
    match Point(1, 2):
        case Other():
            found = "other"
        case Point(1, y):
            found = f"point {y}"
    assert found == "point 2"
    match Wait((Waiting("fuse", "to be ready", 0.0, 1.0),), 1.0):
        case Wait((Waiting(name=name),), until):
            assert (name, until) == ("fuse", 1.0)


def test_replace_returns_a_copy_with_changes() -> None:
    point = Point(1, 2)
    assert replace(point, y=3) == Point(1, 3)
    assert replace(point) == point
    assert point == Point(1, 2)
    assert point.moved(5) == Point(6, 2)


def test_replace_refuses_what_is_no_field() -> None:
    with pytest.raises(TypeError):
        replace(Point(1), z=3)


@pytest.mark.parametrize("thing", [Record("a", "b", "c", exit=Exit(3), times=(("x", 1.0),)), Limits(appear=1.0), Exit(0, 9)])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_value_is_pickled_and_copied(thing: object, protocol: int) -> None:
    assert pickle.loads(pickle.dumps(thing, protocol)) == thing
    assert copy.copy(thing) == thing
    assert copy.deepcopy(thing) == thing


def test_a_value_shows_its_fields() -> None:
    assert repr(Point(1)) == "Point(x=1, y=0)"


def test_properties_methods_and_docstrings_stay() -> None:
    assert Point(1, 2).sum == 3
    assert Point.__doc__ == "A point."
    assert Point.__module__ == __name__
    assert Point.__qualname__ == Point.__name__ == "Point"


def test_a_value_does_not_pay_for_dataclasses() -> None:
    code = "import sys, sidecar.coordination.application; sys.exit('dataclasses' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


HEAVY = {"click", "re", "enum", "typing", "json", "subprocess", "threading", "dataclasses", "signal", "logging", "argparse"}


def test_the_wrapper_imports_nothing_heavy() -> None:
    code = "import sys; from sidecar.cli import wrap_application; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True, check=False)
    if said.returncode:  # an editable installation needs site, which imports what the .pth files do
        code = "import sys; before = {*sys.modules}; from sidecar.cli import wrap_application; print(*{*sys.modules} - before)"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(said.stdout.split())
