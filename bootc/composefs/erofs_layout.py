# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Which inodes an EROFS image has, in which order, and where their bytes lie: numbers, no bytes.

Order. Epoch 1: breadth first, children by bytewise name, and 256 whiteouts `00` … `ff` in the root
unless the name is taken. Epoch 2: depth first, no such whiteouts. A hard-linked leaf is one inode,
numbered where its first name in depth-first order is met, or its `home` in epoch 1.

Place, epoch 1. Inodes follow each other from 1152, each at a multiple of 32, and none of them lets
its tail (the data behind the attributes) cross a block:

* a symbolic link that would begin in one block and end in another moves to the next block; one
  whose inode takes a block or more (4096 bytes) has its target in a data block instead;
* any other inode moves so far that its tail begins with the next block, if the tail fits there;
  else the tail becomes a data block and the inode moves to the next block.

Place, epoch 2: an inode with inline data whose tail touches a block's end moves behind it; the
comparison reads one byte too far, as the writers of those images did.
"""

from __future__ import annotations

import stat as st
from collections.abc import Iterator
from dataclasses import dataclass, field

from bootc.composefs.erofs_format import (
    BLOCK,
    CHUNK_BITS_MAX,
    CHUNKS_MAX,
    FLAT_INLINE,
    FLAT_PLAIN,
    INODES_AT,
    NAME_MAX,
    SELINUX,
    SLOT,
    STUBS,
)
from bootc.errors import BootcError
from bootc.tree import Device, Directory, Leaf, Node

STUB = Device(st.S_IFCHR, 0)
"""The content of the whiteouts that the format adds; told from a user's by identity."""


@dataclass(slots=True)
class Inodes:
    """The inodes of an image in their order; indices are places in `nodes`.

    `children` has, for the index of every directory, its names in order and their inodes' indices,
    `.` and `..` among them. `links` counts the names of leaves that have several.
    """

    nodes: list[Node] = field(default_factory=list)
    children: dict[int, tuple[list[bytes], list[int]]] = field(default_factory=dict)
    links: dict[int, int] = field(default_factory=dict)


def order_inodes(root: Directory, epoch: int) -> Inodes:
    """List the inodes of a tree. Raises `BootcError` for names that no file system can have."""
    links = _count_links(root)
    inodes = Inodes()
    if epoch == 1:
        _order_breadth_first(root, inodes, _first_names(root, links) if links else {})
    else:
        _order_depth_first(root, inodes)
    index = {id(node): place for place, node in enumerate(inodes.nodes)} if links else {}
    inodes.links = {index[leaf]: count for leaf, count in links.items()}
    return inodes


def _count_links(root: Directory) -> dict[int, int]:
    """id → number of names, for leaves that have several. Checks names, and that it is a tree."""
    directories = [root]
    leaves: list[int] = []
    for directory in directories:
        if not directory.entries:
            continue
        together = b"".join(directory.entries)
        if b"/" in together or b"\0" in together:
            raise BootcError("a file name in the tree contains a slash or a zero byte")
        for name, node in directory.entries.items():
            if not name or len(name) > NAME_MAX or name == b"." or name == b"..":
                raise BootcError(
                    f"a file name in the tree is empty, a dot name or too long: {name[:80]!r}"
                )
            if isinstance(node, Directory):
                directories.append(node)
                if len(directories) % 4096 == 0:
                    _check_distinct(directories)
            else:
                leaves.append(id(node))
    _check_distinct(directories)
    if len(set(leaves)) == len(leaves):
        return {}
    counts: dict[int, int] = {}
    for leaf in leaves:
        counts[leaf] = counts.get(leaf, 0) + 1
    return {leaf: count for leaf, count in counts.items() if count > 1}


def _check_distinct(directories: list[Directory]) -> None:
    if len(set(map(id, directories))) != len(directories):
        raise BootcError("a directory occurs twice in the tree")


def _depth_first(root: Directory) -> Iterator[tuple[Directory, bytes, Node]]:
    """(parent, name, node) of everything below the root, before what is in it, names sorted."""
    stack = [(root, iter(root.sorted()))]
    while stack:
        parent, entries = stack[-1]
        following = next(entries, None)
        if following is None:
            stack.pop()
            continue
        name, node = following
        yield parent, name, node
        if isinstance(node, Directory):
            stack.append((node, iter(node.sorted())))


def _first_names(root: Directory, links: dict[int, int]) -> dict[int, tuple[int, bytes]]:
    """id of a leaf with several names → (id of the directory, name) of the first one."""
    first: dict[int, tuple[int, bytes]] = {}
    for parent, name, node in _depth_first(root):
        if id(node) in links and id(node) not in first:
            first[id(node)] = id(parent), name
            home = node.home if isinstance(node, Leaf) else None
            if home is not None and home[0].entries.get(home[1]) is node:
                first[id(node)] = id(home[0]), home[1]
    return first


def _with_stubs(root: Directory) -> dict[bytes, Node]:
    stat = root.stat.copy()
    stat.mode = 0o644
    stat.xattrs = {SELINUX: stat.xattrs[SELINUX]} if SELINUX in stat.xattrs else {}
    entries: dict[bytes, Node] = {name: Leaf(stat, STUB) for name in STUBS}
    entries.update(root.entries)
    return entries


def _order_breadth_first(
    root: Directory, inodes: Inodes, first: dict[int, tuple[int, bytes]]
) -> None:
    nodes = inodes.nodes
    nodes.append(root)
    queue: list[tuple[int, int, dict[bytes, Node]]] = [(0, 0, _with_stubs(root))]
    late: list[tuple[list[int], int, int]] = []
    place: dict[int, int] = {}
    for own, parent, entries in queue:
        names = sorted((*entries, b".", b".."))
        indices: list[int] = []
        for name in names:
            node = entries.get(name)
            if node is None:
                indices.append(own if name == b"." else parent)
                continue
            index = len(nodes)
            if isinstance(node, Directory):
                queue.append((index, own, node.entries))
            elif first and id(node) in first:
                if first[id(node)] != (id(nodes[own]), name):
                    late.append((indices, len(indices), id(node)))
                    indices.append(-1)
                    continue
                place[id(node)] = index
            indices.append(index)
            nodes.append(node)
        inodes.children[own] = (names, indices)
    for indices, position, leaf in late:
        indices[position] = place[leaf]


def _order_depth_first(root: Directory, inodes: Inodes) -> None:
    nodes = inodes.nodes
    nodes.append(root)
    index = {id(root): 0}
    parents = [0]
    for parent, _, node in _depth_first(root):
        if id(node) not in index:
            index[id(node)] = len(nodes)
            nodes.append(node)
            parents.append(index[id(parent)])
    for own, node in enumerate(nodes):
        if isinstance(node, Directory):
            names = sorted((*node.entries, b".", b".."))
            special = {b".": own, b"..": parents[own]}
            inodes.children[own] = (
                names,
                [
                    special[name] if name in special else index[id(node.entries[name])]
                    for name in names
                ],
            )


def split_directory(names: list[bytes]) -> tuple[list[int], int]:
    """(number of entries in every data block, bytes in the inode's tail) of a directory.

    The entries that are left after the data blocks are those of the tail.
    """
    total = 12 * len(names) + sum(map(len, names))
    if total <= BLOCK:
        return ([len(names)], 0) if total > BLOCK // 2 else ([], total)
    counts: list[int] = []
    begin = used = 0
    for place, name in enumerate(names):
        cost = 12 + len(name)
        if used + cost > BLOCK:
            counts.append(place - begin)
            begin, used = place, 0
        used += cost
    if used > BLOCK // 2:
        counts.append(len(names) - begin)
        used = 0
    return counts, used


def chunk_layout(size: int) -> tuple[int, int]:
    """(chunk format, number of chunks) of a file whose data isn't in the image, epoch 1."""
    bits = min(max((size - 1).bit_length(), 12), CHUNK_BITS_MAX)
    count = (size + (1 << bits) - 1) >> bits
    if count > CHUNKS_MAX:
        raise BootcError(f"a file of {size} bytes is too large for an image")
    return bits - 12, count


@dataclass(slots=True)
class Shape:
    """What placing needs to know of all inodes, and, from `place_…`, where they lie.

    `heads`: bytes before the tail; `tails` and `blocks` may change: a tail can become a block.
    """

    layouts: list[int] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)
    tails: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    is_link: list[bool] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    end: int = INODES_AT


def place_epoch1(shape: Shape) -> None:
    """Fill `positions` and `end`, and turn tails that fit nowhere into blocks."""
    tails, blocks, layouts = shape.tails, shape.blocks, shape.layouts
    position = INODES_AT
    for index, (head, tail) in enumerate(zip(shape.heads, tails, strict=True)):
        position = (position + SLOT - 1) & -SLOT
        if shape.is_link[index]:
            if position // BLOCK != (position + head + tail - 1) // BLOCK:
                position = (position + BLOCK - 1) & -BLOCK
            if head + tail >= BLOCK:
                tails[index] = tail = 0
                blocks[index] = 1
                layouts[index] = FLAT_PLAIN
        elif tail:
            room = BLOCK - (position + head) % BLOCK
            if room < tail:
                extra = (room + SLOT - 1) & -SLOT
                if tail <= BLOCK - (position + head + extra) % BLOCK:
                    position += extra
                else:
                    tails[index] = tail = 0
                    blocks[index] += 1
                    position = (position + BLOCK - 1) & -BLOCK
                    if layouts[index] == FLAT_INLINE:
                        layouts[index] = FLAT_PLAIN
        shape.positions.append(position)
        position += head + tail
    shape.end = (position + SLOT - 1) & -SLOT


def place_epoch2(shape: Shape) -> None:
    """Fill `positions` and `end`."""
    position = INODES_AT
    for layout, head, tail in zip(shape.layouts, shape.heads, shape.tails, strict=True):
        position = (position + SLOT - 1) & -SLOT
        if layout == FLAT_INLINE:
            start = position + head
            end = start - 1
            if end // BLOCK != (start + tail) // BLOCK:
                position = (position + BLOCK - end % BLOCK + SLOT - 1) & -SLOT
        shape.positions.append(position)
        position += head + tail
    shape.end = (position + SLOT - 1) & -SLOT
