# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Records that are cheap to declare are what the library's dataclasses are."""

import copy
import dataclasses
import pickle

import pytest

from bootc import records


@records.dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A record."""

    one: int
    two: str = "2"
    three: tuple[int, ...] = ()

    @property
    def twice(self) -> int:
        return 2 * self.one


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TheLibrarys:
    one: int
    two: str = "2"
    three: tuple[int, ...] = ()


@records.dataclass(frozen=True, slots=True)
class InOrder:
    one: int
    two: str = "2"


@records.dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    one: int

    def __repr__(self) -> str:
        return "mine"


def test_fields_have_their_values_and_defaults() -> None:
    made = Named(one=1, three=(3,))
    assert (made.one, made.two, made.three, made.twice) == (1, "2", (3,), 2)
    assert Named.__doc__ == "A record."
    assert InOrder(1, two="x") == InOrder(1, "x")


def test_records_are_compared_by_class_and_content() -> None:
    assert Named(one=1) == Named(one=1)
    assert Named(one=1) != Named(one=2)
    other: object = TheLibrarys(one=1)
    assert Named(one=1) != other
    assert len({Named(one=1), Named(one=1), Named(one=2)}) == 2


def test_a_record_looks_like_the_librarys() -> None:
    want = repr(TheLibrarys(one=1)).replace("TheLibrarys", "Named")
    assert repr(Named(one=1)) == want
    assert repr(Shown(one=1)) == "mine"


@pytest.mark.parametrize("name", ["one", "new"])
def test_a_record_cannot_be_changed(name: str) -> None:
    made = Named(one=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, name, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(made, name)
    assert not hasattr(made, "__dict__")


def test_wrong_arguments_are_refused() -> None:
    wrong: list[tuple[type, tuple[object, ...], dict[str, object]]] = [
        (Named, (), {}),
        (Named, (1,), {}),
        (Named, (), {"one": 1, "four": 4}),
        (InOrder, (1, "2", 3), {}),
        (InOrder, (1,), {"one": 1}),
        (InOrder, (), {"two": "2"}),
    ]
    for cls, args, values in wrong:
        with pytest.raises(TypeError):
            cls(*args, **values)


def test_records_are_replaced_copied_and_pickled() -> None:
    made = Named(one=1, two="x")
    assert records.replace(made, one=5) == Named(one=5, two="x")
    assert dataclasses.replace(made, one=5) == Named(one=5, two="x")
    assert copy.copy(made) == copy.deepcopy(made) == made
    assert pickle.loads(pickle.dumps(made)) == made


def test_the_library_knows_the_fields() -> None:
    assert dataclasses.is_dataclass(Named)
    assert [one.name for one in dataclasses.fields(Named)] == ["one", "two", "three"]
    assert dataclasses.asdict(Named(one=1)) == {"one": 1, "two": "2", "three": ()}


def test_positions_match_where_fields_have_an_order() -> None:
    match InOrder(1, "x"):
        case InOrder(one, two):
            assert (one, two) == (1, "x")


def test_what_is_not_supported_is_refused() -> None:
    wanted: list[dict[str, bool]] = [
        {"frozen": False, "slots": True},
        {"frozen": True, "slots": False},
    ]
    for options in wanted:
        with pytest.raises(TypeError, match="frozen and has slots"):
            records.dataclass(**options)
    with pytest.raises(TypeError, match="no base classes"):
        records.dataclass(frozen=True, slots=True)(type("Below", (InOrder,), {}))
