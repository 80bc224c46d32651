# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Interface files: what a varlink interface says, read strictly.

Source: varlink.org/Interface-Definition. The grammar, where `_` is blanks, line ends and comments:

    file      = _ "interface" interface-name EOL { member EOL }
    member    = "method" Name struct "->" struct
              | "type" Name ( struct | enum )
              | "error" Name struct
    struct    = "(" [ field ":" type { "," field ":" type } ] ")"
    enum      = "(" field { "," field } ")"
    type      = [ "?" ] ( { "[]" | "[string]" } ( primitive | Name | struct | enum ) )
    primitive = "bool" | "int" | "float" | "string" | "object" | "any"
    comment   = "#" up to the end of the line

`?` may stand before each element type, but not twice in a row. Names of members begin with a
capital; a field is letters, digits and single `_` inside. An interface's name has two parts or
more, joined by dots, of letters, digits and inner `-`. Each member begins on a line of its own.

Refused, with line and column: what the grammar does not allow, a name that is there twice, a type
that isn't there, a type that holds itself without `?`, `[]` or `[string]` between (no value could
be of it), a text of more than 1 MiB, types nested more than 32 deep, more than 100 types that hold
each other.
"""

from __future__ import annotations

import re

from bootc.errors import FormatError
from bootc.varlink.types import Array, Enum, Map, Named, Optional, Primitive, Struct, Type

# `typing` is not imported when the program runs: start-up time is felt.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

TEXT_MAX = 1 << 20
DEPTH_MAX = 32
CHAIN_MAX = 100

_TOKEN = re.compile(r"[ \t\r]*(?:(#[^\n]*)|(\n)|(->|\[\]|\[string\]|[?():,])|([A-Za-z0-9_.-]+))")
_INTERFACE = re.compile(r"[A-Za-z](?:-*[A-Za-z0-9])*(?:\.[A-Za-z0-9](?:-*[A-Za-z0-9])*)+")
_MEMBER = re.compile(r"[A-Z][A-Za-z0-9]*")
_FIELD = re.compile(r"[A-Za-z](?:_?[A-Za-z0-9])*")
_MARKS = frozenset(("->", "[]", "[string]", "?", "(", ")", ":", ","))


class Method:
    """A method: what it takes and what it gives."""

    __slots__ = ("documentation", "name", "parameters", "reply")

    def __init__(self, name: str, parameters: Struct, reply: Struct, documentation: str) -> None:
        self.name = name
        self.parameters = parameters
        self.reply = reply
        self.documentation = documentation


class Interface:
    """An interface: its members by name, in the order of the text, and the text itself.

    `documentation` is the comment right before the word `interface`; that of a type or an error is
    in `comments`, by name.
    """

    def __init__(self, name: str, text: str, documentation: str) -> None:
        self.name = name
        self.text = text
        self.documentation = documentation
        self.methods: dict[str, Method] = {}
        self.types: dict[str, Struct | Enum] = {}
        self.errors: dict[str, Struct] = {}
        self.comments: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<interface {self.name}>"


def parse(text: str, source: str = "the interface") -> Interface:
    """Read an interface file. Raises `FormatError`, which names `source`, line and column."""
    if len(text) > TEXT_MAX:
        raise FormatError(source, None, f"is longer than {TEXT_MAX} characters")
    return _Parser(text, source).interface()


class _Parser:
    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self._source = source
        self._named: list[tuple[Named, int]] = []
        self._type_places: dict[str, int] = {}
        # The tokens, their places, and whether a line ended (or the text began) before each.
        self._tokens: list[str] = []
        self._places: list[int] = []
        self._fresh: list[bool] = []
        self._comments: dict[int, str] = {}
        self._at = 0
        self._scan()

    def _scan(self) -> None:
        text, at, fresh = self._text, 0, True
        comment: list[str] = []
        blank = True
        match = _TOKEN.match
        while found := match(text, at):
            at = found.end()
            said, end, mark, word = found.groups()
            if said is not None:
                if blank:
                    comment.append(said[1:].strip())
            elif end is not None:
                if blank and not text[text.rfind("\n", 0, at - 1) + 1 : at].strip():
                    comment = []
                fresh = blank = True
            else:
                if comment and fresh:
                    self._comments[len(self._tokens)] = "\n".join(comment)
                comment = []
                self._tokens.append(mark or word)
                self._places.append(found.end() - len(mark or word))
                self._fresh.append(fresh)
                fresh = blank = False
        if text[at:].strip(" \t\r"):
            at += len(text[at:]) - len(text[at:].lstrip(" \t\r"))
            self._refuse(at, f"{text[at]!r} has no meaning here")
        self._tokens.append("")
        self._places.append(len(text))
        self._fresh.append(True)

    def _refuse(self, place: int, problem: str) -> NoReturn:
        line = self._text.count("\n", 0, place) + 1
        column = place - self._text.rfind("\n", 0, place)
        raise FormatError(self._source, f"line {line}, column {column}", problem)

    def _wrong(self, want: str) -> NoReturn:
        token = self._tokens[self._at]
        found = repr(token) if token else "the end of the text"
        self._refuse(self._places[self._at], f"expected {want}, found {found}")

    def _next(self) -> str:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _mark(self, mark: str) -> None:
        if self._tokens[self._at] != mark:
            self._wrong(repr(mark))
        self._at += 1

    def _name(self, pattern: re.Pattern[str], want: str) -> str:
        if not pattern.fullmatch(self._tokens[self._at]):
            self._wrong(want)
        return self._next()

    def _line_end(self) -> None:
        if not self._fresh[self._at]:
            self._wrong("the end of the line")

    def interface(self) -> Interface:
        documentation = self._comments.get(0, "")
        if self._tokens[0] != "interface":
            self._wrong("the word interface")
        self._at = 1
        made = Interface(
            self._name(_INTERFACE, "the interface's name, like org.example.thing"),
            self._text,
            documentation,
        )
        self._line_end()
        while self._tokens[self._at]:
            self._member(made)
            self._line_end()
        for named, place in self._named:
            found = made.types.get(named.name)
            if found is None:
                self._refuse(place, f"there is no type {named.name}")
            named.target = found
        self._refuse_endless(made)
        return made

    def _member(self, made: Interface) -> None:
        documentation = self._comments.get(self._at, "")
        kind = self._tokens[self._at]
        if kind not in ("method", "type", "error"):
            self._wrong("method, type or error")
        self._at += 1
        place = self._places[self._at]
        name = self._name(_MEMBER, f"the {kind}'s name, which begins with a capital")
        if name in made.methods or name in made.types or name in made.errors:
            self._refuse(place, f"there are two members {name}")
        if kind == "method":
            parameters = self._struct()
            self._mark("->")
            made.methods[name] = Method(name, parameters, self._struct(), documentation)
            return
        made.comments[name] = documentation
        if kind == "error":
            made.errors[name] = self._struct()
        else:
            self._type_places[name] = place
            made.types[name] = self._composite(1)

    def _struct(self) -> Struct:
        place = self._places[self._at]
        found = self._composite(1)
        if not isinstance(found, Struct):
            self._refuse(place, "these are the names of an enum, and each field needs a type")
        return found

    def _composite(self, depth: int) -> Struct | Enum:
        if depth > DEPTH_MAX:
            self._wrong(f"at most {DEPTH_MAX} types inside of each other")
        self._mark("(")
        fields: dict[str, Type] = {}
        names: list[str] = []
        while self._tokens[self._at] != ")" or names:
            place = self._places[self._at]
            name = self._name(_FIELD, "the name of a field")
            if name in names:
                self._refuse(place, f"there are two fields {name}")
            is_enum = self._tokens[self._at] != ":"
            if names and is_enum != (not fields):
                self._wrong("':' and a type" if is_enum else "',' or ')', as in an enum")
            names.append(name)
            if not is_enum:
                self._at += 1
                fields[name] = self._type(depth)
            if self._tokens[self._at] != ",":
                break
            self._at += 1
        self._mark(")")
        return Enum(tuple(names)) if names and not fields else Struct(fields)

    def _type(self, depth: int) -> Type:
        wrappers: list[str] = []
        while self._tokens[self._at] in ("?", "[]", "[string]"):
            if wrappers[-1:] == ["?"] == [self._tokens[self._at]]:
                self._wrong("a type after '?'")
            wrappers.append(self._next())
            if len(wrappers) > DEPTH_MAX:
                self._wrong(f"at most {DEPTH_MAX} types inside of each other")
        made = self._element(depth)
        for wrapper in reversed(wrappers):
            if wrapper == "?":
                made = Optional(made)
            else:
                made = Array(made) if wrapper == "[]" else Map(made)
        return made

    def _element(self, depth: int) -> Type:
        token, place = self._tokens[self._at], self._places[self._at]
        if token == "(":
            return self._composite(depth + 1)
        if token in Primitive.NAMES:
            self._at += 1
            return Primitive(token)
        named = Named(self._name(_MEMBER, "a type"))
        self._named.append((named, place))
        return named

    def _refuse_endless(self, made: Interface) -> None:
        """Refuse types that no finite value could be of."""
        done: set[str] = set()

        def visit(item: Type, inside: tuple[str, ...]) -> str | None:
            if isinstance(item, Named):
                if item.name in inside:
                    return item.name
                if item.name in done:
                    return None
                if len(inside) > CHAIN_MAX:
                    place = self._type_places[item.name]
                    self._refuse(place, f"more than {CHAIN_MAX} types hold each other")
                done.add(item.name)
                return visit(item.target, (*inside, item.name))
            if isinstance(item, Struct):
                return next((n for p in item.parts() if (n := visit(p, inside))), None)
            return None

        for name, target in made.types.items():
            if name not in done:
                done.add(name)
                if endless := visit(target, (name,)):
                    self._refuse(self._type_places[endless], f"type {endless} holds itself")
