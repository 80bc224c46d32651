# SPDX-License-Identifier: Apache-2.0 OR MIT
r"""Dump files: a tree as text, one line per name. Specification: composefs-dump(5).

    PATH SIZE MODE NLINK UID GID RDEV MTIME PAYLOAD CONTENT DIGEST [KEY=VALUE …]

Fields are separated by one space. MODE is octal with the type; `@` before it makes a hard link to
the earlier path in PAYLOAD, and the other fields don't count. MTIME is `seconds.nanoseconds`, the
second part a plain number (`1.5` is 5 ns). PAYLOAD: path of the object, or target of a symbolic
link. CONTENT: the bytes of a regular file that lie in the image, SIZE of them. DIGEST: hexadecimal
fs-verity digest of the object. `-` means none, in these three.

Escapes: `\\ \n \r \t \xHH`; written for everything outside of 0x21-0x7e, for `=` in attributes, and
for a value that is just `-`.

Errors are `FormatError`s that name the line and the field: unknown escapes, numbers out of range,
paths that aren't absolute and plain, a parent that isn't there yet or isn't a directory, a name
given twice, a link to nothing or to a directory, contents that don't fit the type, and the limits
below. Sizes, link counts and device numbers that mean nothing for a type are not looked at.
"""

from __future__ import annotations

import re
import stat as st
from collections.abc import Iterator
from typing import NoReturn

from bootc.composefs.collector import paused_collector
from bootc.composefs.erofs_format import NAME_MAX, object_path
from bootc.errors import FormatError
from bootc.tree import (
    Content,
    Device,
    Directory,
    External,
    Inline,
    Leaf,
    Node,
    Sparse,
    Special,
    Stat,
    Symlink,
    walk,
)

INLINE_MAX = 5000
PATH_MAX = 4096
FIELDS = (
    *("path", "size", "mode", "nlink", "uid", "gid"),
    *("rdev", "mtime", "payload", "content", "digest"),
)

_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.?))", re.DOTALL)
_PLAIN = {b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_DECIMAL = re.compile(rb"[0-9]{1,20}\Z")
_OCTAL = re.compile(rb"[0-7]{1,7}\Z")
_TIME = re.compile(rb"(-?[0-9]{1,19})\.([0-9]{1,9})\Z")


def parse_dump(data: bytes, source: str = "dump", *, inline_max: int = INLINE_MAX) -> Directory:
    """The tree that a dump file describes; `source` names it in errors."""
    with paused_collector():
        return _Parser(source, inline_max).parse(data)


class _Parser:
    def __init__(self, source: str, inline_max: int) -> None:
        self.source = source
        self.inline_max = inline_max
        self.line = 0
        self.root: Directory | None = None
        self.nodes: dict[bytes, Node] = {}

    def fail(self, field: str, problem: str) -> NoReturn:
        raise FormatError(self.source, f"line {self.line}, {field}", problem)

    def parse(self, data: bytes) -> Directory:
        for self.line, line in enumerate(data.split(b"\n"), 1):
            if line.strip():
                self.add_line(line)
        if self.root is None:
            raise FormatError(self.source, None, "there is no line for the root directory")
        return self.root

    def add_line(self, line: bytes) -> None:
        fields = line.split(b" ")
        if len(fields) < len(FIELDS):
            self.fail(FIELDS[len(fields)], f"the line has {len(fields)} fields instead of 11")
        path = self.unescape(fields[0], "path")
        self.check_path(path)
        node: Node
        if fields[2].startswith(b"@"):
            node = self.find_target(self.optional(fields, 8))
        else:
            node = self.make_node(fields)
        if path == b"/":
            if not isinstance(node, Directory):
                self.fail("mode", "the root is not a directory")
            self.root = node
        else:
            parent, _, name = path.rpartition(b"/")
            directory = self.nodes.get(parent or b"/")
            if not isinstance(directory, Directory):
                self.fail("path", f"the parent of {path!r} is not a directory listed above")
            directory.entries[name] = node
        self.nodes[path] = node

    def check_path(self, path: bytes) -> None:
        if path in self.nodes:
            self.fail("path", f"{path!r} is there twice")
        if path == b"/":
            return
        if self.root is None:
            self.fail("path", "the first line is not the root directory")
        if len(path) > PATH_MAX or b"\0" in path or not path.startswith(b"/"):
            self.fail("path", f"{path[:80]!r} is too long, contains a zero byte or isn't absolute")
        # The parent is in the tree, so only the last component is new.
        name = path.rpartition(b"/")[2]
        if name in (b"", b".", b"..") or len(name) > NAME_MAX:
            self.fail("path", f"{path[:80]!r} has an empty, a dot or a too long component")

    def find_target(self, target: bytes | None) -> Leaf:
        node = self.nodes.get(target) if target is not None else None
        if node is None:
            self.fail("payload", f"the hard link's target {target!r} is not listed above")
        if isinstance(node, Directory):
            self.fail("payload", f"the hard link's target {target!r} is a directory")
        return node

    def make_node(self, fields: list[bytes]) -> Node:
        if not _OCTAL.match(fields[2]):
            self.fail("mode", f"{fields[2][:40]!r} is not an octal number")
        mode = int(fields[2], 8)
        time = _TIME.match(fields[7])
        if time is None or not -(1 << 63) <= int(time[1]) < 1 << 63:
            self.fail("mtime", f"{fields[7][:40]!r} is not SECONDS.NANOSECONDS")
        stat = Stat(
            mode & 0o7777,
            self.number(fields, 4, 32),
            self.number(fields, 5, 32),
            int(time[1]),
            int(time[2]),
            self.attributes(fields[len(FIELDS) :]),
        )
        nlink = self.number(fields, 3, 32)
        kind = st.S_IFMT(mode)
        if mode >> 16:
            self.fail("mode", f"{fields[2]!r} is too large")
        if kind == st.S_IFDIR:
            self.refuse(fields, 8, 9, 10)
            return Directory(stat)
        return Leaf(stat, self.content(kind, fields), nlink)

    def content(self, kind: int, fields: list[bytes]) -> Content:
        if kind == st.S_IFREG:
            return self.regular(fields)
        if kind == st.S_IFLNK:
            self.refuse(fields, 9, 10)
            target = self.optional(fields, 8)
            if not target or len(target) >= PATH_MAX or b"\0" in target:
                self.fail("payload", "a symbolic link's target is empty, too long or has zeros")
            return Symlink(target)
        if kind not in (st.S_IFCHR, st.S_IFBLK, st.S_IFIFO, st.S_IFSOCK):
            self.fail("mode", f"{fields[2]!r} has no known file type")
        self.refuse(fields, 8, 9, 10)
        if kind in (st.S_IFCHR, st.S_IFBLK):
            return Device(kind, self.number(fields, 6, 32))
        return Special(kind)

    def regular(self, fields: list[bytes]) -> Content:
        size = self.number(fields, 1, 63)
        payload, content, text = (self.optional(fields, place) for place in (8, 9, 10))
        if content is not None:
            if payload is not None or text is not None:
                self.fail("content", "a file has both contents and an object")
            if len(content) != size:
                self.fail("content", f"{len(content)} bytes, but the size is {size}")
            if size > self.inline_max:
                self.fail("content", f"more than {self.inline_max} bytes")
            return Inline(content)
        if text is not None:
            digest = self.digest(text)
            return External(
                size, digest, None if payload == object_path(digest) else payload or b""
            )
        if payload is not None:
            return External(size, None, payload)
        return Sparse(size) if size else Inline(b"")

    def digest(self, text: bytes) -> bytes:
        try:
            digest = bytes.fromhex(text.decode("ascii"))
        except ValueError:
            digest = b""
        if len(digest) * 2 != len(text) or len(digest) not in (32, 64):
            self.fail("digest", f"{text[:140]!r} is not a digest in hexadecimal")
        return digest

    def attributes(self, fields: list[bytes]) -> dict[bytes, bytes]:
        xattrs: dict[bytes, bytes] = {}
        total = 0
        for place, field in enumerate(fields, 1):
            where = f"attribute {place}"
            key, equals, value = field.partition(b"=")
            name, content = self.unescape(key, where), self.unescape(value, where)
            total += len(name) + 1
            if not equals or not name or name in xattrs or b"\0" in name:
                self.fail(where, f"{field[:80]!r} is not NAME=VALUE, or its name is there twice")
            if len(name) > 255 or len(content) > 0xFFFF or total > 0xFFFF:
                self.fail(where, f"{name[:80]!r}: the name, the value or all names are too long")
            xattrs[name] = content
        return xattrs

    def number(self, fields: list[bytes], place: int, bits: int) -> int:
        text = fields[place]
        if not _DECIMAL.match(text) or int(text) >> bits:
            self.fail(FIELDS[place], f"{text[:40]!r} is not a number of {bits} bits")
        return int(text)

    def optional(self, fields: list[bytes], place: int) -> bytes | None:
        text = fields[place]
        return None if text == b"-" else self.unescape(text, FIELDS[place])

    def refuse(self, fields: list[bytes], *places: int) -> None:
        for place in places:
            if fields[place] != b"-":
                self.fail(FIELDS[place], f"must be `-` for a file of mode {fields[2]!r}")

    def unescape(self, text: bytes, field: str) -> bytes:
        if b"\\" not in text:
            return text

        def replace(match: re.Match[bytes]) -> bytes:
            if match[1] is not None:
                return bytes((int(match[1], 16),))
            found = _PLAIN.get(match[2])
            return self.fail(field, f"unknown escape {match[0]!r}") if found is None else found

        return _ESCAPE.sub(replace, text)


_NAMED = {0x5C: "\\\\", 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}
_TABLE = [
    _NAMED.get(byte) or (chr(byte) if 0x21 <= byte <= 0x7E else f"\\x{byte:02x}")
    for byte in range(256)
]
_SPECIAL = re.compile(rb"[^\x21-\x5b\x5d-\x7e]")


def escape(data: bytes, *, attribute: bool = False) -> str:
    """A field as a dump file has it; `attribute`: a key or a value of an extended attribute."""
    if not attribute and data in (b"", b"-"):
        return "\\x2d" if data else "-"
    if _SPECIAL.search(data):
        text = "".join([_TABLE[byte] for byte in data])
    else:
        text = data.decode("ascii")
    return text.replace("=", "\\x3d") if attribute else text


def dump_lines(root: Directory) -> Iterator[str]:
    """The lines, without their newlines, of a tree's dump file."""
    links: dict[int, int] = {}
    for _, node in walk(root):
        if isinstance(node, Leaf):
            links[id(node)] = links.get(id(node), 0) + 1
    first: dict[int, str] = {}
    for path, node in walk(root):
        name = escape(path)
        if isinstance(node, Leaf) and links[id(node)] > 1:
            if id(node) in first:
                yield f"{name} 0 @120000 - - - - 0.0 {first[id(node)]} - -"
                continue
            first[id(node)] = name
        stat = node.stat
        size, rdev, rest = 0, 0, "- - -"
        if isinstance(node, Directory):
            mode = st.S_IFDIR | stat.mode
            nlink = 2 + sum(isinstance(child, Directory) for child in node.entries.values())
        else:
            mode = node.kind | stat.mode
            nlink = node.nlink if node.nlink is not None else links[id(node)]
            size, rdev, rest = _describe(node.content)
        attributes = "".join(
            f" {escape(key, attribute=True)}={escape(value, attribute=True)}"
            for key, value in sorted(stat.xattrs.items())
        )
        yield (
            f"{name} {size} {mode:o} {nlink} {stat.uid} {stat.gid} {rdev}"
            f" {stat.mtime}.{stat.mtime_nsec} {rest}{attributes}"
        )


def _describe(content: Content) -> tuple[int, int, str]:
    """(size, device number, PAYLOAD CONTENT DIGEST) of a leaf."""
    match content:
        case Inline(data=data):
            return len(data), 0, f"- {escape(data)} -"
        case External(size=size, digest=digest, payload=payload):
            if payload is None:
                payload = object_path(digest) if digest is not None else b""
            return size, 0, f"{escape(payload)} - {digest.hex() if digest is not None else '-'}"
        case Sparse(size=size):
            return size, 0, "- - -"
        case Symlink(target=target):
            return len(target), 0, f"{escape(target)} - -"
        case Device(rdev=rdev):
            return 0, rdev, "- - -"
        case Special():
            return 0, 0, "- - -"


def format_dump(root: Directory) -> bytes:
    """The dump file of a tree."""
    return "".join([line + "\n" for line in dump_lines(root)]).encode("ascii")
