"""Frozen value classes for what is loaded at every start, of `wrap_application` above all.

`@value` gives a class what `@dataclass(frozen=True, slots=True)` gives it (constructor, equality, hash, repr, pattern
matching) and nothing else. Importing `dataclasses` costs 16 ms here, more than the whole start of the wrapper may; type
checkers read `value` as a dataclass transform, so constructors are checked all the same. Imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")

    @dataclass_transform(frozen_default=True)
    def value(cls: type[T]) -> type[T]: ...

    def replace(old: T, /, **changes: Any) -> T: ...

    def asdict(old: object) -> dict[str, Any]: ...

else:

    def value(cls):
        """Make a frozen value class of `cls`: its annotations are the fields, its class attributes their defaults."""
        fields = tuple(cls.__annotations__)
        defaults = {name: cls.__dict__[name] for name in fields if name in cls.__dict__}
        put = object.__setattr__

        def __init__(self, *args, **kw):  # noqa: N807
            for name, given in zip(fields, args, strict=False):
                put(self, name, given)
            for name in fields[len(args) :]:
                if name in kw:
                    put(self, name, kw.pop(name))
                elif name in defaults:
                    put(self, name, defaults[name])
                else:
                    raise TypeError(f"{cls.__name__}() misses {name!r}")
            if kw or len(args) > len(fields):
                raise TypeError(f"{cls.__name__}() takes {fields}, not {tuple(kw) or args}")

        def parts(self):
            return tuple(getattr(self, name) for name in fields)

        def refuse(_self, *_):
            raise AttributeError(f"{cls.__name__} is frozen")

        body = {k: v for k, v in cls.__dict__.items() if k not in defaults and k not in ("__dict__", "__weakref__")}
        body |= {
            "__slots__": fields,
            "__match_args__": fields,
            "__init__": __init__,
            "__setattr__": refuse,
            "__delattr__": refuse,
            "__eq__": lambda self, other: type(other) is type(self) and parts(self) == parts(other),
            "__hash__": lambda self: hash((type(self).__name__, parts(self))),
            "__repr__": lambda self: f"{cls.__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in fields)})",
            "__getnewargs__": parts,
            "__reduce__": lambda self: (type(self), parts(self)),
        }
        return type(cls)(cls.__name__, cls.__bases__, body)

    def replace(old, /, **changes):
        """Return a copy of `old` with `changes`."""
        if not changes.keys() <= set(old.__slots__):
            raise TypeError(f"{type(old).__name__} has {old.__slots__}, not all of {tuple(changes)}")
        return type(old)(**{name: changes.get(name, getattr(old, name)) for name in old.__slots__})

    def asdict(old):
        """Return the fields of `old` and their values; a value that is an object itself stays one."""
        return {name: getattr(old, name) for name in old.__slots__}
