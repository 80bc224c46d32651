# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Interface files: what the parser takes, what it refuses and where, what the types hold."""

from __future__ import annotations

import random

import pytest

from bootc.errors import FormatError
from bootc.varlink.idl import DEPTH_MAX, TEXT_MAX, parse
from bootc.varlink.standard import SERVICE, TRANSPORT
from bootc.varlink.types import Array, Enum, Map, Mismatch, Named, Optional, Primitive, Struct, Type

WHOLE = """# About the thing.
# Two lines.
interface org.example.some-thing.v1

# not about anything

# What it is.
type Kind (one, two_2)
type Item (
  name: string, # said behind
  kind: ?Kind,
  sizes: []int,
  labels: [string]?string,
  deep: ?[]?[string][]Item,
  inner: (x: float, y: (a, b)),
  raw: object,
  what: any
)
type Empty ()

# Do it.
method Do (item: Item, flag: bool) -> (items: []Item)
method Nothing()->()

# It was bad.
error Bad (why: string)
"""


def test_a_whole_interface() -> None:
    made = parse(WHOLE)
    assert made.name == "org.example.some-thing.v1"
    assert made.text == WHOLE
    assert made.documentation == "About the thing.\nTwo lines."
    assert list(made.types) == ["Kind", "Item", "Empty"]
    assert list(made.methods) == ["Do", "Nothing"]
    assert made.comments == {"Kind": "What it is.", "Item": "", "Empty": "", "Bad": "It was bad."}
    assert made.methods["Do"].documentation == "Do it."
    assert str(made.methods["Do"].parameters) == "(item: Item, flag: bool)"
    assert str(made.methods["Nothing"].reply) == "()"
    assert str(made.types["Item"]) == (
        "(name: string, kind: ?Kind, sizes: []int, labels: [string]?string,"
        " deep: ?[]?[string][]Item, inner: (x: float, y: (a, b)), raw: object, what: any)"
    )
    assert isinstance(made.types["Kind"], Enum)


BAD = {
    "": ("line 1, column 1", "expected the word interface, found the end of the text"),
    "inferface a.b": ("line 1, column 1", "expected the word interface"),
    "interface ab": ("line 1, column 11", "the interface's name"),
    "interface a..b": ("line 1, column 11", "the interface's name"),
    "interface a.b-": ("line 1, column 11", "the interface's name"),
    "interface 1a.b": ("line 1, column 11", "the interface's name"),
    "interface a.b type A ()": ("line 1, column 15", "expected the end of the line"),
    "interface a.b\ntype A () type B ()": ("line 2, column 11", "expected the end of the line"),
    "interface a.b\nfunction F()": ("line 2, column 1", "expected method, type or error"),
    "interface a.b\nmethod f() -> ()": ("line 2, column 8", "begins with a capital"),
    "interface a.b\nmethod F_a() -> ()": ("line 2, column 8", "begins with a capital"),
    "interface a.b\nmethod F() ()": ("line 2, column 12", "expected '->', found '('"),
    "interface a.b\nmethod F() -> (": ("line 2, column 16", "found the end of the text"),
    "interface a.b\nmethod F(a) -> ()": ("line 2, column 9", "each field needs a type"),
    "interface a.b\nerror E": ("line 2, column 8", "expected '('"),
    "interface a.b\nerror E (a)": ("line 2, column 9", "each field needs a type"),
    "interface a.b\ntype A string": ("line 2, column 8", "expected '('"),
    "interface a.b\ntype A (a, b: int)": ("line 2, column 13", "as in an enum"),
    "interface a.b\ntype A (a: int, b)": ("line 2, column 18", "expected ':' and a type"),
    "interface a.b\ntype A (a: int,)": ("line 2, column 16", "expected the name of a field"),
    "interface a.b\ntype A (a: int b: int)": ("line 2, column 16", "expected ')'"),
    "interface a.b\ntype A (a: int, a: int)": ("line 2, column 17", "two fields a"),
    "interface a.b\ntype A (a, a)": ("line 2, column 12", "two fields a"),
    "interface a.b\ntype A (_a: int)": ("line 2, column 9", "the name of a field"),
    "interface a.b\ntype A (a_: int)": ("line 2, column 9", "the name of a field"),
    "interface a.b\ntype A (a__b: int)": ("line 2, column 9", "the name of a field"),
    "interface a.b\ntype A (a: ??int)": ("line 2, column 13", "a type after '?'"),
    "interface a.b\ntype A (a: int[])": ("line 2, column 15", "expected ')'"),
    "interface a.b\ntype A (a: [int]string)": ("line 2, column 12", "'[' has no meaning here"),
    "interface a.b\ntype A (a: integer)": ("line 2, column 12", "expected a type"),
    "interface a.b\ntype A (a: B)": ("line 2, column 12", "there is no type B"),
    "interface a.b\ntype A ()\nerror A ()": ("line 3, column 7", "two members A"),
    "interface a.b\n\ttype A ($: int)": ("line 2, column 10", "'$' has no meaning here"),
    "interface a.b\ntype A (a: A)": ("line 2, column 6", "type A holds itself"),
    "interface a.b\ntype A (b: B)\ntype B (c: (a: A))": ("line 2, column 6", "A holds itself"),
    "interface a.b\ntype A (x: " + "(x: " * 40: (None, "at most 32 types"),
    "interface a.b\ntype A (x: " + "[]" * 40: (None, "at most 32 types"),
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_refused_and_where(text: str) -> None:
    where, problem = BAD[text]
    with pytest.raises(FormatError) as caught:
        parse(text, "some.varlink")
    assert caught.value.source == "some.varlink"
    assert problem in caught.value.message
    assert where is None or caught.value.where == where


def test_limits_of_an_interface() -> None:
    with pytest.raises(FormatError, match="longer than"):
        parse("interface a.b\n" + "#" * TEXT_MAX)
    chain = "".join(f"type A{n} (x: A{n + 1})\n" for n in range(5000))
    with pytest.raises(FormatError, match="more than 100 types hold each other"):
        parse(f"interface a.b\n{chain}type A5000 ()\n")
    deep = "[]" * (DEPTH_MAX - 1)
    assert parse(f"interface a.b\ntype A (x: {deep}int)").types


def test_types_that_hold_themselves_behind_something_are_allowed() -> None:
    made = parse("interface a.b\ntype A (a: ?A, b: []A, c: [string]A, d: B)\ntype B (e: ?A)\n")
    value: dict[str, object] = {"b": [], "c": {}, "d": {}}
    made.types["A"].check({**value, "a": {**value, "d": {"e": None}}})


def bad(kind: Type, value: object) -> tuple[str, str]:
    with pytest.raises(Mismatch) as caught:
        kind.check(value)
    return caught.value.path, caught.value.problem


@pytest.mark.parametrize(
    ("name", "good", "wrong"),
    [
        ("bool", [True, False], [0, 1, "true", None, [], {}]),
        ("int", [0, -1, -(1 << 63), (1 << 64) - 1], [1.0, True, "1", 1 << 64, -(1 << 63) - 1]),
        ("float", [0, 1.5, -1e300], [True, "1", None, float("inf"), float("nan")]),
        ("string", ["", "\u00e9\0"], [1, None, ["a"], b"bytes"]),
        ("object", [{}, {"a": None}], [[], None, "x", 1]),
        ("any", [{}, [], 0, "", False], [None]),
    ],
)
def test_primitives(name: str, good: list[object], wrong: list[object]) -> None:
    kind = Primitive(name)
    for value in good:
        kind.check(value)
    for value in wrong:
        path, problem = bad(kind, value)
        assert path == ""
        assert problem


def test_paths_lead_to_what_is_bad() -> None:
    made = parse(WHOLE)
    item = {
        "name": "n",
        "sizes": [1, 2],
        "labels": {"a": "b", "c": None},
        "inner": {"x": 1, "y": "a"},
        "raw": {},
        "what": 3,
    }
    check = made.methods["Do"].parameters
    check.check({"item": item, "flag": True})
    assert bad(check, {"item": {**item, "sizes": [1, "2"]}, "flag": True}) == (
        "item.sizes[1]",
        "is a string, not an integer",
    )
    assert bad(check, {"item": {**item, "labels": {"a b": 1}}, "flag": True})[0] == (
        "item.labels.a b"
    )
    deep = [None, {"k": [item, {**item, "kind": "three"}]}]
    path, problem = bad(check, {"item": {**item, "deep": deep}, "flag": True})
    assert path == "item.deep[1].k[1].kind"
    assert problem == "is 'three', not one of one, two_2"
    assert bad(check, {"item": item}) == ("flag", "is missing")
    assert bad(check, {"item": item, "flag": True, "x": 1}) == ("x", "is not known here")
    assert bad(check, {"item": {**item, "inner": {"x": 1, "y": "c"}}, "flag": True})[0] == (
        "item.inner.y"
    )
    assert bad(check, [])[0] == ""
    with pytest.raises(Mismatch, match=r"^the value is null, not an object$"):
        check.check(None)
    assert bad(Array(Primitive("int")), {})[1] == "is an object, not an array"
    assert bad(Map(Primitive("int")), [])[1] == "is an array, not an object"
    assert bad(Enum(("a",)), ["a"])[1] == "is 'an array', not one of a"


def random_type(rng: random.Random, depth: int, names: list[str]) -> Type:
    how = rng.randrange(8 if depth else 3)
    if how < 2:
        return Primitive(rng.choice(sorted(Primitive.NAMES)))
    if how == 2:
        return Named(rng.choice(names))
    inner = random_type(rng, depth - 1, names)
    if how == 3:
        return inner if isinstance(inner, Optional) else Optional(inner)
    if how == 4:
        return Array(inner)
    if how == 5:
        return Map(inner)
    if how == 6:
        return Enum(tuple(f"v{n}" for n in range(rng.randrange(1, 4))))
    fields = {f"f_{n}": random_type(rng, depth - 1, names) for n in range(rng.randrange(4))}
    return Struct(fields)


def test_what_is_written_reads_as_the_same() -> None:
    """`str` of a type is its text, whatever the type is."""
    rng = random.Random(5)
    names = ["A", "B"]
    for _ in range(300):
        fields = {f"x{n}": Optional(Array(random_type(rng, 4, names))) for n in range(3)}
        struct = Struct(fields)
        text = f"interface a.b\ntype A {struct}\ntype B (one)\nmethod M {struct} -> {struct}\n"
        made = parse(text)
        assert str(made.methods["M"].parameters) == str(made.types["A"]) == str(struct)


def test_the_own_interfaces() -> None:
    assert SERVICE.name == "org.varlink.service"
    assert set(SERVICE.errors) == {
        "InterfaceNotFound",
        "MethodNotFound",
        "MethodNotImplemented",
        "InvalidParameter",
        "PermissionDenied",
        "ExpectedMore",
    }
    assert TRANSPORT.methods == {}
