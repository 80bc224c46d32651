# SPDX-License-Identifier: Apache-2.0 OR MIT
r"""What `composefs-info` prints of a tree that was read from an image.

`dump`: a dump file (see dumpfile) as the C tool writes it. Unlike `dumpfile.dump_lines`, a
directory's SIZE is that of its entries in the image, the further names of a file are lines with all
its metadata whose MODE begins with `@` and whose PAYLOAD is the first name, and attributes have the
order of the inode. Directories that contain whiteouts have the opaque attributes that the format
gives them. So the tree is one that was read `as_is`.

`ls`: `PATH`, and behind a tab `-> TARGET` for a link, `@ PATH` of the object for a file that has
one, and nothing for a directory, whose name ends in `/`; the root isn't listed. Spaces in a name
are not escaped.

`names` limits both to these entries of the root; `dump` still has the root's own line.
"""

from __future__ import annotations

import stat as st
from collections.abc import Collection, Iterator

from bootc.composefs.dumpfile import escape
from bootc.composefs.erofs_format import (
    BLOCK,
    ESCAPED,
    OVERLAY,
    STUBS,
    WHITEOUT_MARKS,
    WHITEOUTS_MARKS,
    FormatVersion,
    object_path,
)
from bootc.composefs.erofs_layout import split_directory
from bootc.tree import (
    Device,
    Directory,
    External,
    Inline,
    Leaf,
    Node,
    Sparse,
    Special,
    Symlink,
    walk,
)


def _unescaped(name: bytes) -> bytes:
    return OVERLAY + name[len(ESCAPED) :] if name.startswith(ESCAPED) else name


_HIDDEN = frozenset(_unescaped(name) for name in (*WHITEOUT_MARKS, *WHITEOUTS_MARKS))


def _walk(root: Directory, names: Collection[bytes]) -> Iterator[tuple[bytes, Node]]:
    if names:
        entries = {name: node for name, node in root.entries.items() if name in names}
        root = Directory(root.stat, entries)
    return walk(root)


def object_of(node: Node) -> bytes | None:
    """The path of a file's object below the directory of objects, or None."""
    if not isinstance(node, Leaf) or not isinstance(node.content, External):
        return None
    content = node.content
    if content.payload is not None or content.digest is None:
        return content.payload or None
    return object_path(content.digest)


def list_objects(root: Directory, names: Collection[bytes] = ()) -> set[bytes]:
    """The paths of all objects that the tree, or these entries of its root, refers to."""
    found = {object_of(node) for _, node in _walk(root, names)}
    return {path for path in found if path is not None}


def ls_lines(root: Directory, names: Collection[bytes] = ()) -> Iterator[str]:
    """The lines of `composefs-info ls`, without their newlines."""
    seen: set[int] = set()
    for path, node in _walk(root, names):
        text = escape(path).replace("\\x20", " ")
        backing = object_of(node)
        if isinstance(node, Directory):
            if path != b"/":
                yield f"{text}/\t"
        elif isinstance(node.content, Symlink) and id(node) not in seen:
            yield f"{text}\t-> {_plain(node.content.target)}"
        elif backing is not None and id(node) not in seen:
            yield f"{text}\t@ {_plain(backing)}"
        else:
            yield text
        seen.add(id(node))


def _plain(data: bytes) -> str:
    return "-" if data == b"-" else escape(data)


def info_lines(
    root: Directory, version: FormatVersion, names: Collection[bytes] = ()
) -> Iterator[str]:
    """The lines of `composefs-info dump`, without their newlines."""
    links: dict[int, int] = {}
    for _, node in walk(root):
        if isinstance(node, Leaf):
            links[id(node)] = links.get(id(node), 0) + 1
    first: dict[int, str] = {}
    for path, node in _walk(root, names):
        name = escape(path)
        xattrs = {key: value for key, value in node.stat.xattrs.items() if key not in _HIDDEN}
        if isinstance(node, Directory):
            entries = root.entries if path == b"/" else node.entries
            nlink = 2 + sum(isinstance(child, Directory) for child in entries.values())
            rest = f"{_directory_size(entries, version, path)} {st.S_IFDIR | node.stat.mode:o}"
            fields = (rest, nlink, 0, "- - -")
        else:
            nlink = node.nlink if node.nlink is not None else links[id(node)]
            fields = _describe(node, nlink, first.get(id(node)))
            first.setdefault(id(node), name)
        yield _line(name, fields, node, xattrs)


def _line(
    name: str, fields: tuple[str, int, int, str], node: Node, xattrs: dict[bytes, bytes]
) -> str:
    size_and_mode, nlink, rdev, rest = fields
    stat = node.stat
    attributes = "".join(
        f" {escape(key, attribute=True)}={escape(value, attribute=True)}"
        for key, value in xattrs.items()
    )
    return (
        f"{name} {size_and_mode} {nlink} {stat.uid} {stat.gid} {rdev}"
        f" {stat.mtime}.{stat.mtime_nsec} {rest}{attributes}"
    )


def _directory_size(entries: dict[bytes, Node], version: FormatVersion, path: bytes) -> int:
    names = {b".", b"..", *entries}
    if path == b"/" and version.epoch == 1:
        names.update(STUBS)
    blocks, tail = split_directory(sorted(names))
    return BLOCK * len(blocks) + tail


def _describe(node: Leaf, nlink: int, first: str | None) -> tuple[str, int, int, str]:
    """("SIZE MODE", links, device number, "PAYLOAD CONTENT DIGEST") of a leaf.

    `first`: the name, escaped, that this is another name for.
    """
    content = node.content
    size, rdev, payload, data, digest = 0, 0, "-", "-", "-"
    backing = object_of(node)
    if backing is not None:
        payload = escape(backing)
    match content:
        case Inline(data=inline):
            size, data = len(inline), escape(inline)
        case External(size=size, digest=known):
            digest = "-" if known is None else known.hex()
        case Sparse(size=size):
            pass
        case Symlink(target=target):
            size, payload = len(target), escape(target)
        case Device(rdev=rdev):
            pass
        case Special():
            pass
    mode = f"{node.kind | node.stat.mode:o}"
    if first is not None:
        mode, payload = f"@{mode}", first
    return f"{size} {mode}", nlink, rdev, f"{payload} {data} {digest}"
