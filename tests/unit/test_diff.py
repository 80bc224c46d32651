# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Differences of trees: each aspect alone, names on one side only, hard links, and no surprise."""

from __future__ import annotations

import copy
import stat as st
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as some

from bootc.composefs import (
    Aspect,
    Change,
    Content,
    Device,
    Difference,
    Directory,
    External,
    FormatVersion,
    Inline,
    Leaf,
    Node,
    Sparse,
    Special,
    Stat,
    Symlink,
    diff_trees,
    read_image,
    walk,
    write_image,
)


def sample() -> Directory:
    linked = Leaf(Stat(0o644), External(5000, b"d" * 64))
    usr = Directory(
        Stat(0o755),
        {b"file": Leaf(Stat(0o644, 1, 2, 3, 4, {b"user.a": b"b"}), Inline(b"text"))},
    )
    usr.entries |= {b"one": linked, b"two": linked}
    return Directory(Stat(0o755), {b"usr": usr, b"link": Leaf(Stat(), Symlink(b"usr/file"))})


def told(before: Directory, after: Directory) -> list[tuple[bytes, str, tuple[Aspect, ...]]]:
    return [(item.path, item.change.value, item.aspects) for item in diff_trees(before, after)]


def file_of(root: Directory) -> Leaf:
    found = root.find("usr/file")
    assert isinstance(found, Leaf)
    return found


def test_diff_of_equal_trees_is_empty() -> None:
    assert told(sample(), sample()) == []


def _mode(leaf: Leaf) -> None:
    leaf.stat.mode = 0o4644


def _user(leaf: Leaf) -> None:
    leaf.stat.uid = 9


def _group(leaf: Leaf) -> None:
    leaf.stat.gid = 9


def _seconds(leaf: Leaf) -> None:
    leaf.stat.mtime = -1


def _nanoseconds(leaf: Leaf) -> None:
    leaf.stat.mtime_nsec = 5


def _xattr(leaf: Leaf) -> None:
    leaf.stat.xattrs[b"user.a"] = b"c"


def _bytes(leaf: Leaf) -> None:
    leaf.content = Inline(b"Text")


def _outside(leaf: Leaf) -> None:
    leaf.content = External(4, b"d" * 64)


def _kind(leaf: Leaf) -> None:
    leaf.content = Symlink(b"text")


@pytest.mark.parametrize(
    ("change", "aspect"),
    [
        (_mode, Aspect.MODE),
        (_user, Aspect.OWNER),
        (_group, Aspect.OWNER),
        (_seconds, Aspect.MTIME),
        (_nanoseconds, Aspect.MTIME),
        (_xattr, Aspect.XATTRS),
        (_bytes, Aspect.CONTENT),
        (_outside, Aspect.CONTENT),
        (_kind, Aspect.KIND),
    ],
)
def test_diff_names_the_one_aspect(change: Callable[[Leaf], None], aspect: Aspect) -> None:
    after = sample()
    change(file_of(after))
    assert told(sample(), after) == [(b"/usr/file", "changed", (aspect,))]
    assert told(after, sample()) == [(b"/usr/file", "changed", (aspect,))]


def test_diff_gives_the_nodes_of_both_sides() -> None:
    before, after = sample(), sample()
    _mode(file_of(after))
    (found,) = diff_trees(before, after)
    assert found == Difference(
        path=b"/usr/file",
        change=Change.CHANGED,
        aspects=(Aspect.MODE,),
        before=file_of(before),
        after=file_of(after),
    )


def test_diff_of_a_directory_on_one_side_brings_what_is_below() -> None:
    after = sample()
    after.entries[b"opt"] = Directory(
        Stat(), {b"b": Directory(Stat()), b"a-b": Leaf(Stat(), Sparse(1))}
    )
    added = [(b"/opt", "added", ()), (b"/opt/a-b", "added", ()), (b"/opt/b", "added", ())]
    assert told(sample(), after) == added
    assert told(after, sample()) == [(path, "removed", ()) for path, _, _ in added]


def test_diff_of_a_file_that_became_a_directory() -> None:
    after = sample()
    after.entries[b"link"] = Directory(Stat(), {b"x": Leaf(Stat(), Special(st.S_IFIFO))})
    assert told(sample(), after) == [
        (b"/link", "changed", (Aspect.KIND,)),
        (b"/link/x", "added", ()),
    ]
    assert told(after, sample()) == [
        (b"/link", "changed", (Aspect.KIND,)),
        (b"/link/x", "removed", ()),
    ]


def test_diff_sees_a_hard_link_that_was_broken() -> None:
    after = sample()
    usr = after.entries[b"usr"]
    assert isinstance(usr, Directory)
    usr.entries[b"two"] = copy.copy(usr.entries[b"one"])
    assert told(sample(), after) == [
        (b"/usr/one", "changed", (Aspect.LINKS,)),
        (b"/usr/two", "changed", (Aspect.LINKS,)),
    ]


def test_diff_sees_the_root_itself() -> None:
    after = sample()
    after.stat.mode = 0o700
    assert told(sample(), after) == [(b"/", "changed", (Aspect.MODE,))]


CONTENTS = some.one_of(
    some.builds(Inline, some.binary(max_size=80)),
    some.builds(External, some.integers(1, 2**40), some.binary(min_size=64, max_size=64)),
    some.builds(Sparse, some.integers(1, 2**40)),
    some.builds(Symlink, some.from_regex(rb"[a-z]{1,40}", fullmatch=True)),
    some.builds(Device, some.just(st.S_IFBLK), some.integers(0, 2**32 - 1)),
)
STATS = some.builds(
    Stat, some.integers(0, 0o7777), some.integers(0, 70000), some.just(0), some.integers(0, 2**33)
)
NAMES = some.from_regex(rb"[a-m]{3}", fullmatch=True)


def leaf(stat: Stat, content: Content) -> Node:
    return Leaf(stat, content)


NODES: some.SearchStrategy[Node] = some.recursive(
    some.builds(leaf, STATS, CONTENTS),
    lambda below: some.builds(Directory, STATS, some.dictionaries(NAMES, below, max_size=5)),
    max_leaves=12,
)
TREES = some.builds(Directory, STATS, some.dictionaries(NAMES, NODES, max_size=5))


def patched(before: Directory, differences: list[Difference]) -> list[tuple[bytes, Stat, object]]:
    """What `before` is with the differences applied: its names, with their metadata and content."""
    names = dict(walk(before))
    for item in differences:
        if item.after is None:
            del names[item.path]
        else:
            names[item.path] = item.after
    return described(names.items())


def described(names: Iterable[tuple[bytes, Node]]) -> list[tuple[bytes, Stat, object]]:
    return sorted(
        (path, node.stat, node.content if isinstance(node, Leaf) else None) for path, node in names
    )


@given(TREES, TREES)
def test_diff_is_all_that_makes_one_tree_of_the_other(before: Directory, after: Directory) -> None:
    differences = list(diff_trees(before, after))
    assert patched(before, differences) == described(walk(after))
    assert differences or write_image(before) == write_image(after)


@given(TREES)
def test_diff_of_a_tree_and_its_image_is_empty(root: Directory) -> None:
    read = read_image(write_image(root, version=FormatVersion.V1))
    assert list(diff_trees(root, read)) == []
