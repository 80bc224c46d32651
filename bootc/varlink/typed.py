# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Python types of an interface, for type checkers.

    python -m bootc.varlink.typed org.example.clock.varlink > clock_types.py

    def now(call: Call) -> Reply:
        parameters: NowParameters = call.parameters
        reply: NowReply = {"time": 1}
        return Reply(reply)

The module has a TypedDict for each struct and, as `MParameters` and `MReply`, for each method M; a
Literal for each enum; and for each error a function that makes it. A struct that has no name is
called after its field. At run time only those functions are there: the types cost nothing. A name
that Python or the module needs itself gets a `_` at its end.
"""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Sequence

from bootc.varlink.idl import Interface, parse
from bootc.varlink.types import Array, Enum, Map, Named, Optional, Primitive, Struct, Type

_PYTHON = {
    "bool": "bool",
    "int": "int",
    "float": "float",
    "string": "str",
    "object": "dict[str, Any]",
    "any": "Any",
}
_OWN = frozenset(("Any", "Literal", "NotRequired", "TypedDict", "VarlinkError", "TYPE_CHECKING"))


def python_types(interface: Interface) -> str:
    """The text of the module."""
    return _Writer(interface).text()


class _Writer:
    def __init__(self, interface: Interface) -> None:
        self._interface = interface
        self._taken = {*_OWN, *interface.types}
        self._blocks: list[str] = []

    def text(self) -> str:
        found = self._interface
        for name, kind in found.types.items():
            if isinstance(kind, Enum):
                self._blocks.append(f"{_safe(name)} = {_literal(kind)}")
            else:
                self._struct(_safe(name), kind)
        for method in found.methods.values():
            self._struct(self._free(f"{method.name}Parameters"), method.parameters)
            self._struct(self._free(f"{method.name}Reply"), method.reply)
        errors = [self._error(name, kind) for name, kind in found.errors.items()]
        lines = [
            "# SPDX-License-Identifier: Apache-2.0 OR MIT",
            f'"""Types of {found.name}, made by bootc.varlink.typed: change that interface."""',
            "",
            "from __future__ import annotations",
            "",
        ]
        if errors:
            lines += ["from bootc.varlink.message import VarlinkError", ""]
        lines += ["TYPE_CHECKING = False", "if TYPE_CHECKING:"]
        lines += ["    from typing import Any, Literal, NotRequired, TypedDict"]
        for block in self._blocks:
            lines += ["", *(f"    {line}" for line in block.split("\n"))]
        for error in errors:
            lines += ["", "", error]
        return "\n".join(lines) + "\n"

    def _free(self, name: str) -> str:
        while name in self._taken or keyword.iskeyword(name):
            name += "_"
        self._taken.add(name)
        return name

    def _struct(self, name: str, kind: Struct) -> None:
        fields: list[tuple[str, str]] = []
        for field, item in kind.fields.items():
            python = self._type(item, f"{name}{field[:1].upper()}{field[1:]}")
            fields.append((field, f"NotRequired[{python}]" if _is_optional(item) else python))
        if any(keyword.iskeyword(field) for field, _ in fields):
            pairs = "".join(f'    "{field}": "{python}",\n' for field, python in fields)
            self._blocks.append(f'{name} = TypedDict("{name}", {{\n{pairs}}})')
        else:
            body = [f"    {field}: {python}" for field, python in fields] or ["    pass"]
            self._blocks.append("\n".join([f"class {name}(TypedDict):", *body]))

    def _type(self, kind: Type, name: str) -> str:
        match kind:
            case Primitive():
                return _PYTHON[kind.name]
            case Named():
                return _safe(kind.name)
            case Optional():
                return f"{self._type(kind.item, name)} | None"
            case Array():
                return f"list[{self._type(kind.item, name)}]"
            case Map():
                return f"dict[str, {self._type(kind.item, name)}]"
            case Enum():
                return _literal(kind)
            case Struct():
                free = self._free(name)
                self._struct(free, kind)
                return free
            case _:
                raise TypeError(f"no Python type for {kind}")

    def _error(self, name: str, kind: Struct) -> str:
        full = f"{self._interface.name}.{name}"
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        function = self._free(words)
        arguments = [
            (field, _argument(field), self._type(item, f"{name}{field[:1].upper()}{field[1:]}"))
            for field, item in kind.fields.items()
        ]
        signature = ", ".join(f"{argument}: {python}" for _, argument, python in arguments)
        values = ", ".join(f'"{field}": {argument}' for field, argument, _ in arguments)
        star = "*, " if signature else ""
        return "\n".join(
            [
                f"def {function}({star}{signature}) -> VarlinkError:",
                f'    return VarlinkError("{full}", {{{values}}})',
            ]
        )


def _is_optional(kind: Type) -> bool:
    return isinstance(kind, Optional)


def _literal(kind: Enum) -> str:
    names = ", ".join(f'"{name}"' for name in kind.names)
    return f"Literal[{names}]"


def _safe(name: str) -> str:
    return f"{name}_" if name in _OWN or keyword.iskeyword(name) else name


def _argument(field: str) -> str:
    return f"{field}_" if keyword.iskeyword(field) else field


def main(argv: Sequence[str]) -> int:
    for path in argv:
        with open(path, encoding="utf-8") as file:
            sys.stdout.write(python_types(parse(file.read(), path)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
