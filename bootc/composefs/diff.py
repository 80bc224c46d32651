# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What distinguishes two trees: a pure function, in one pass over both, in the order of the paths.

Two names are compared by all that an image records of them, so two trees without a difference have
the same image. A name that stands for a directory on one side only brings what is below it with it.

Hard links have no name of their own: a `Leaf` that has several names in one tree is known by its
first one, and `LINKS` says that a name has another such companion, or none, in the other tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from bootc.tree import Directory, Leaf, Node, walk


class Change(StrEnum):
    """What happened to a name, from the first tree to the second."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


class Aspect(StrEnum):
    """In what a changed name differs."""

    KIND = "kind"
    """It is a directory here and a regular file there, for instance."""
    CONTENT = "content"
    """Bytes of a file, target of a link, number of a device."""
    MODE = "mode"
    """Permission bits, with set-id and sticky."""
    OWNER = "owner"
    MTIME = "mtime"
    XATTRS = "xattrs"
    LINKS = "links"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One name that isn't the same in both; `before` and `after` are its nodes, if it has them.

    `aspects` is empty unless the name is in both.
    """

    path: bytes
    change: Change
    aspects: tuple[Aspect, ...] = ()
    before: Node | None = None
    after: Node | None = None


def diff_trees(before: Directory, after: Directory) -> Iterator[Difference]:
    """The differences from `before` to `after`, depth first, names bytewise sorted, root as `/`."""
    firsts = _first_names(before), _first_names(after)
    stack: list[Iterator[_Pair]] = [iter([(b"/", before, after)])]
    while stack:
        pair = next(stack[-1], None)
        if pair is None:
            stack.pop()
            continue
        path, old, new = pair
        if old is None or new is None:
            change = Change.ADDED if old is None else Change.REMOVED
            yield Difference(path=path, change=change, before=old, after=new)
        else:
            aspects = tuple(_compare(old, new, firsts))
            if aspects:
                yield Difference(
                    path=path, change=Change.CHANGED, aspects=aspects, before=old, after=new
                )
        if isinstance(old, Directory) or isinstance(new, Directory):
            stack.append(_pairs(path, old, new))


_Pair = tuple[bytes, Node | None, Node | None]
_Firsts = dict[int, bytes]


def _pairs(path: bytes, old: Node | None, new: Node | None) -> Iterator[_Pair]:
    """The names in either directory; what is none is an empty one."""
    olds = old.entries if isinstance(old, Directory) else {}
    news = new.entries if isinstance(new, Directory) else {}
    base = path if path == b"/" else path + b"/"
    for name in sorted(olds.keys() | news.keys()):
        yield base + name, olds.get(name), news.get(name)


def _first_names(root: Directory) -> _Firsts:
    """By the identity of each leaf with several names: the first of them."""
    firsts: _Firsts = {}
    linked: set[int] = set()
    for path, node in walk(root):
        if isinstance(node, Leaf):
            if id(node) in firsts:
                linked.add(id(node))
            else:
                firsts[id(node)] = path
    return {key: firsts[key] for key in linked}


def _compare(old: Node, new: Node, firsts: tuple[_Firsts, _Firsts]) -> Iterator[Aspect]:
    if isinstance(old, Directory) or isinstance(new, Directory):
        if type(old) is not type(new):
            yield Aspect.KIND
    elif old.kind != new.kind:
        yield Aspect.KIND
    elif old.content != new.content:
        yield Aspect.CONTENT
    left, right = old.stat, new.stat
    if left.mode != right.mode:
        yield Aspect.MODE
    if (left.uid, left.gid) != (right.uid, right.gid):
        yield Aspect.OWNER
    if (left.mtime, left.mtime_nsec) != (right.mtime, right.mtime_nsec):
        yield Aspect.MTIME
    if left.xattrs != right.xattrs:
        yield Aspect.XATTRS
    if firsts[0].get(id(old)) != firsts[1].get(id(new)):
        yield Aspect.LINKS
