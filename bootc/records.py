# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`dataclass` and `replace` for records on the path of `bootc status`, where start-up time is felt.

The library's `dataclass` makes methods out of source text, and imports a parser for it: half a
millisecond a class, and five before the first. This one makes closures. It does a part, and refuses
the rest: frozen, with slots, without base classes; fields are given by name, or also in their order
(`kw_only=False`); a default is a value. To type checkers, and to the library's `fields`, `asdict`
and `replace`, its classes are the library's.

What is made by the thousand takes the library's: there, making an object is faster.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import replace as replace
else:

    def dataclass(*, frozen, slots, kw_only=False):
        """As the library's, with what the module says."""
        if not (frozen and slots):
            raise TypeError("a record is frozen and has slots")
        return lambda cls: _made(cls, kw_only)

    def replace(record, **changes):
        """A record like this one but for the changes."""
        return record.__replace__(**changes)


def _made(cls: type, kw_only: bool) -> type:
    if cls.__bases__ != (object,):
        raise TypeError(f"{cls.__name__}: a record has no base classes")
    names = tuple(cls.__annotations__)
    space = {
        key: value
        for key, value in cls.__dict__.items()
        if key not in names and key not in ("__dict__", "__weakref__")
    }
    defaults = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
    for name, method in _methods(names, defaults, 0 if kw_only else len(names)).items():
        space.setdefault(name, method)
    space["__slots__"] = names
    space["__match_args__"] = () if kw_only else names
    space["__dataclass_fields__"] = _Fields(cls, kw_only)
    made: type = type(cls.__name__, (), space)
    made.__qualname__ = cls.__qualname__
    return made


class _Fields:
    """The library's description of a record's fields, made when it is asked for."""

    def __init__(self, cls: type, kw_only: bool) -> None:
        self._cls = cls
        self._kw_only = kw_only

    def __get__(self, instance: object, owner: type) -> object:
        import dataclasses  # start-up time: that is why this module is there

        names = self._cls.__annotations__
        space = {name: self._cls.__dict__[name] for name in names if name in self._cls.__dict__}
        same = type(owner.__name__, (), {**space, "__annotations__": names})
        made: type = dataclasses.dataclass(frozen=True, kw_only=self._kw_only)(same)
        return {field.name: field for field in dataclasses.fields(made)}


def _methods(
    names: tuple[str, ...], defaults: dict[str, object], positional: int
) -> dict[str, object]:
    put = object.__setattr__

    def __init__(self: object, *args: object, **values: object) -> None:
        if args:
            if len(args) > positional:
                raise TypeError(f"{type(self).__name__}: {len(args)} fields without a name")
            for name, value in zip(names, args, strict=False):
                if name in values:
                    raise TypeError(f"{type(self).__name__}: {name} is given twice")
                values[name] = value
        for name in names:
            if name in values:
                put(self, name, values.pop(name))
            elif name in defaults:
                put(self, name, defaults[name])
            else:
                raise TypeError(f"{type(self).__name__}: {name} is missing")
        if values:
            raise TypeError(f"{type(self).__name__} has no {', '.join(values)}")

    def content(self: object) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in names])

    def __repr__(self: object) -> str:
        said = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__qualname__}({said})"

    def __eq__(self: object, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return content(self) == content(other)

    def __hash__(self: object) -> int:
        return hash(content(self))

    def __setattr__(self: object, name: str, value: object) -> None:
        raise _frozen(f"cannot assign to field {name!r}")

    def __delattr__(self: object, name: str) -> None:
        raise _frozen(f"cannot delete field {name!r}")

    def __replace__(self: object, **changes: object) -> object:
        return type(self)(**{**dict(zip(names, content(self), strict=True)), **changes})

    def __reduce__(self: object) -> tuple[object, ...]:
        return _rebuilt, (type(self), dict(zip(names, content(self), strict=True)))

    methods = [__init__, __repr__, __eq__, __hash__, __setattr__, __delattr__]
    return {method.__name__: method for method in [*methods, __replace__, __reduce__]}


def _rebuilt(cls: type, values: dict[str, object]) -> object:
    """What a pickle, or copy.copy, makes a record from."""
    return cls(**values)


def _frozen(message: str) -> AttributeError:
    from dataclasses import FrozenInstanceError

    return FrozenInstanceError(message)
