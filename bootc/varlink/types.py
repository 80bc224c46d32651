# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The types of an interface file, and whether a JSON value is of one.

    bool int float string object any   []T (array)   [string]T (map)   ?T (maybe null or missing)
    (field: T, …) (struct)   (one, two) (enum, a JSON string)   Name (a type of the same interface)

A struct has no field but its own, and each that is no `?T` must be there. An `int` is one of 64
bits, signed or not. A number with a fraction or an exponent is a `float`, and an `int` is one, too.

`check` raises `Mismatch`, whose `path` leads to the bad value: `layers[3].diff_id`. The classes are
plain ones because a program that a socket activates parses its interfaces at each start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1


class Mismatch(Exception):
    """A value that isn't of its type: where it lies in the parameters, and what is wrong."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = ""

    def inside(self, step: str) -> None:
        """The value lies inside of another one; `step` is the way from that one to it."""
        joint = "" if not self.path or self.path.startswith("[") else "."
        self.path = f"{step}{joint}{self.path}"

    def __str__(self) -> str:
        return f"{self.path or 'the value'} {self.problem}"


class Type:
    """A type. `str()` is how an interface file writes it."""

    __slots__ = ()

    def check(self, value: object) -> None:
        """Raises `Mismatch`."""
        raise NotImplementedError

    def parts(self) -> Iterator[Type]:
        """The types that this one is made of."""
        return iter(())


class Primitive(Type):
    """bool, int, float, string; object, any JSON object; any, any JSON value but null."""

    __slots__ = ("name",)
    NAMES = frozenset(("bool", "int", "float", "string", "object", "any"))

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name

    def check(self, value: object) -> None:
        kind = type(value)
        name = self.name
        if name == "string":
            good = kind is str
        elif name == "int":
            good = kind is int
            if isinstance(value, int) and not _INT_MIN <= value <= _INT_MAX:
                raise Mismatch("is no integer of 64 bits")
        elif name == "bool":
            good = kind is bool
        elif name == "object":
            good = kind is dict
        elif name == "float":
            good = kind is float or kind is int
            if isinstance(value, float) and not abs(value) < float("inf"):
                raise Mismatch("is no finite number")
        else:
            good = value is not None
        if not good:
            raise Mismatch(f"is {_kind(value)}, not {_NAMED[name]}")


_NAMED = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "string": "a string",
    "object": "an object",
    "any": "a value",
}


class Optional(Type):
    """`?T`: T, or null; a field of this type may be missing."""

    __slots__ = ("item",)

    def __init__(self, item: Type) -> None:
        self.item = item

    def __str__(self) -> str:
        return f"?{self.item}"

    def check(self, value: object) -> None:
        if value is not None:
            self.item.check(value)

    def parts(self) -> Iterator[Type]:
        yield self.item


class Array(Type):
    """`[]T`."""

    __slots__ = ("item",)

    def __init__(self, item: Type) -> None:
        self.item = item

    def __str__(self) -> str:
        return f"[]{self.item}"

    def check(self, value: object) -> None:
        if not isinstance(value, list):
            raise Mismatch(f"is {_kind(value)}, not an array")
        check = self.item.check
        index = 0
        try:
            for item in value:
                check(item)
                index += 1
        except Mismatch as error:
            error.inside(f"[{index}]")
            raise

    def parts(self) -> Iterator[Type]:
        yield self.item


class Map(Type):
    """`[string]T`: a JSON object with any keys."""

    __slots__ = ("item",)

    def __init__(self, item: Type) -> None:
        self.item = item

    def __str__(self) -> str:
        return f"[string]{self.item}"

    def check(self, value: object) -> None:
        if not isinstance(value, dict):
            raise Mismatch(f"is {_kind(value)}, not an object")
        for key, item in value.items():
            try:
                self.item.check(item)
            except Mismatch as error:
                error.inside(key)
                raise

    def parts(self) -> Iterator[Type]:
        yield self.item


class Struct(Type):
    """`(name: T, …)`, also the parameters and the reply of a method, and those of an error."""

    __slots__ = ("fields", "required")

    def __init__(self, fields: Mapping[str, Type]) -> None:
        self.fields = dict(fields)
        self.required = [n for n, t in self.fields.items() if not isinstance(t, Optional)]

    def __str__(self) -> str:
        return f"({', '.join(f'{name}: {item}' for name, item in self.fields.items())})"

    def check(self, value: object) -> None:
        if not isinstance(value, dict):
            raise Mismatch(f"is {_kind(value)}, not an object")
        fields = self.fields
        key = ""
        try:
            for key, item in value.items():
                found = fields.get(key)
                if found is None:
                    raise Mismatch("is not known here")
                found.check(item)
            for key in self.required:
                if key not in value:
                    raise Mismatch("is missing")
        except Mismatch as error:
            error.inside(key)
            raise

    def parts(self) -> Iterator[Type]:
        return iter(self.fields.values())


class Enum(Type):
    """`(one, two)`."""

    __slots__ = ("names",)

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __str__(self) -> str:
        return f"({', '.join(self.names)})"

    def check(self, value: object) -> None:
        if value not in self.names:
            shown = value if isinstance(value, str) and len(value) < 80 else _kind(value)
            raise Mismatch(f"is {shown!r}, not one of {', '.join(self.names)}")


class Named(Type):
    """A type of the interface, by its name; the parser fills in `target`."""

    __slots__ = ("name", "target")

    def __init__(self, name: str) -> None:
        self.name = name
        self.target: Type = self

    def __str__(self) -> str:
        return self.name

    def check(self, value: object) -> None:
        self.target.check(value)

    def parts(self) -> Iterator[Type]:
        yield self.target


def _kind(value: object) -> str:
    """What JSON calls a value, for a person."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")
