# SPDX-License-Identifier: Apache-2.0 OR MIT
r"""Dump files: a tree as text, one line per name. Specification: composefs-dump(5).

    PATH SIZE MODE NLINK UID GID RDEV MTIME PAYLOAD CONTENT DIGEST [KEY=VALUE …]

Fields are separated by one space. MODE is octal with the type. MTIME is `seconds.nanoseconds`, the
second part a plain number (`1.5` is 5 ns). PAYLOAD: path of the object, or target of a symbolic
link. CONTENT: the bytes of a regular file that lie in the image, SIZE of them. DIGEST: hexadecimal
fs-verity digest of the object. `-` means none, in these three. The first line is the root's; a
directory's line comes before those of what it contains.

`@` before MODE makes a hard link: PAYLOAD is the path of the other name, whose line may come before
or after this one and may itself be a hard link; all other fields but PATH don't count.

Escapes: `\\ \n \r \t \xHH`; written for everything outside of 0x21-0x7e, for `=` in attributes, and
for a value that is just `-`.

Read as the C tools do:

* of MODE the low 16 bits count, of up to 64;
* paths may lack the first slash and repeat slashes between names;
* fields that are missing at the end of a line are empty. Empty CONTENT is content of 0 bytes;
* CONTENT has SIZE bytes for whatever type has it, and takes precedence over PAYLOAD and DIGEST;
  a digest without a payload is a file without redirection;
* PAYLOAD, CONTENT and DIGEST of a type that has no use for them, sizes that mean nothing for a type
  and the root's name are not looked at. Of two attributes with one name the last one counts;
* strict (the tools': CFS_PARSE_STRICT is set): the last line has a newline, only devices have a
  device number, a symbolic link's SIZE is its length, and it has no content.

Errors are `FormatError`s that name the line and the field: unknown escapes, zero bytes, numbers out
of range (where C would wrap them), malformed digests and the limits below. Memory is bounded by
what the tree takes: nodes with equal metadata share one `Stat`, so replace it, don't change it.
"""

from __future__ import annotations

import re
import stat as st
from binascii import unhexlify
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NoReturn

from bootc.composefs.collector import paused_collector
from bootc.composefs.erofs_format import CHUNK_BITS_MAX, CHUNKS_MAX, NAME_MAX, object_path
from bootc.errors import FormatError
from bootc.tree import (
    Content,
    Device,
    Directory,
    External,
    Inline,
    Leaf,
    Sparse,
    Special,
    Stat,
    Symlink,
    walk,
)

INLINE_MAX = 5000
PATH_MAX = 4096
LINE_MAX = 1 << 20
"""Bytes; a line can't be longer when all its fields keep their limits."""
SIZE_MAX = CHUNKS_MAX << CHUNK_BITS_MAX
XATTR_NAME_MAX = 255
XATTRS_MAX = 32767 - 12
"""Of all names and values of a file and 7 more bytes for each, as C counts."""
FIELDS = (
    *("path", "size", "mode", "nlink", "uid", "gid"),
    *("rdev", "mtime", "payload", "content", "digest"),
)
_PATH, _SIZE, _MODE, _NLINK, _UID, _GID, _RDEV, _MTIME, _PAYLOAD, _CONTENT, _DIGEST, _REST = range(
    12
)
_CHUNK = 1 << 20
_CACHED = 1 << 16
_CACHED_LINE = 512
_NO_NAMES = (b"", b".", b"..")

_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.?))", re.DOTALL)
_PLAIN = {b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_DECIMAL = re.compile(rb"[0-9]{1,20}\Z")
_OCTAL = re.compile(rb"[0-7]{1,22}\Z")
_TIME = re.compile(rb"(-?[0-9]{1,19})\.([0-9]{1,9})\Z")
_EMPTY = Inline(b"")


def parse_dump(data: bytes, source: str = "dump", *, strict: bool = False) -> Directory:
    """The tree that a dump file describes; `source` names it in errors."""
    return _parse(iter((data,)), source, strict)


def read_dump(file: BinaryIO, source: str, *, strict: bool = False) -> Directory:
    """Like `parse_dump`, from a file that is never wholly in memory."""
    return _parse(iter(lambda: file.read(_CHUNK), b""), source, strict)


def _parse(chunks: Iterator[bytes], source: str, strict: bool) -> Directory:
    parser = _Parser(source, strict)
    with paused_collector():
        rest = b""
        for chunk in chunks:
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            parser.add_lines(lines)
            if len(rest) > LINE_MAX:
                parser.line += 1
                parser.fail("path", f"the line is longer than {LINE_MAX} bytes")
        if rest:
            parser.add_lines([rest])
            if strict:
                parser.fail("digest", "the last line does not end with a newline")
        return parser.finish()


class _Parser:
    """A tree that grows line by line."""

    def __init__(self, source: str, strict: bool) -> None:
        self.source = source
        self.strict = strict
        self.line = 0
        self.root: Directory | None = None
        # By path, without the slash at the end: so the root is b"".
        self.directories: dict[bytes, Directory] = {}
        self.stats: dict[tuple[bytes, ...], tuple[int, Stat]] = {}
        self.xattrs: dict[bytes, dict[bytes, bytes]] = {b"": {}}
        # What stands for a hard link until all lines are there → (line, directory, name, target)
        self.links: dict[Leaf, tuple[int, Directory, bytes, bytes]] = {}

    def fail(self, field: str, problem: str) -> NoReturn:
        raise FormatError(self.source, f"line {self.line}, {field}", problem)

    def add_lines(self, lines: Iterable[bytes]) -> None:
        lines = iter(lines)
        if self.root is None:
            for line in lines:
                self.root = self.add_root(line)
                break
            else:
                return
        directories, stats = self.directories, self.stats
        base, parent = b"", self.root
        entries = parent.entries
        for line in lines:
            self.line += 1
            fields = line.split(b" ", _REST)
            if len(fields) < _REST:
                fields += [b""] * (_REST - len(fields))
            path = fields[_PATH]
            if b"\\" in path:
                path = self.unescape(path, "path")
            before, _, name = path.rpartition(b"/")
            if before != base:
                base, parent = before, self.find_parent(before, path)
                entries = parent.entries
            if name in entries or name in _NO_NAMES or len(name) > NAME_MAX or b"\0" in path:
                self.refuse_path(path, name in entries)
            if fields[_MODE][:1] == b"@":
                self.add_link(fields, parent, name)
                continue
            key = (fields[_MODE], fields[_UID], fields[_GID], fields[_MTIME], *fields[_REST:])
            known = stats.get(key)
            if known is None:
                known = self.stat(fields)
                if len(line) < _CACHED_LINE:
                    if len(stats) >= _CACHED:
                        stats.clear()
                    stats[key] = known
            kind, stat = known
            nlink = 1 if fields[_NLINK] == b"1" else self.number(fields, _NLINK, 32)
            if kind == st.S_IFREG:
                entries[name] = Leaf(stat, self.regular(fields), nlink)
            elif kind == st.S_IFDIR:
                self.check_content(fields)
                if len(path) > PATH_MAX:
                    self.refuse_path(path, False)
                entries[name] = directories[self.plain(base) + b"/" + name] = Directory(stat)
            else:
                entries[name] = Leaf(stat, self.special(kind, fields), nlink)

    def add_root(self, line: bytes) -> Directory:
        self.line += 1
        fields = line.split(b" ", _REST)
        fields += [b""] * (_REST - len(fields))
        if fields[_PATH] != b"/":
            self.fail("path", "the first line is not the root directory")
        kind, stat = self.stat(fields)
        if kind != st.S_IFDIR:
            self.fail("mode", "the root is not a directory")
        self.number(fields, _NLINK, 32)
        self.check_content(fields)
        root = self.directories[b""] = Directory(stat)
        return root

    def plain(self, path: bytes) -> bytes:
        """A directory's path with one slash before every name."""
        if path[:1] == b"/" and path[-1:] != b"/" and b"//" not in path:
            return path
        return b"".join([b"/" + name for name in path.split(b"/") if name])

    def find_parent(self, base: bytes, path: bytes) -> Directory:
        found = self.directories.get(base)
        if found is None:
            found = self.directories.get(self.plain(base))
        if found is None:
            self.fail("path", f"the parent of {path[:80]!r} is not a directory listed above")
        return found

    def refuse_path(self, path: bytes, known: bool) -> NoReturn:
        if not path:
            self.fail("path", "the path is empty")
        if path == b"/" or known:
            self.fail("path", f"{path[:80]!r} is there twice")
        if b"\0" in path or len(path) > PATH_MAX:
            self.fail("path", f"{path[:80]!r} is too long or contains a zero byte")
        self.fail("path", f"{path[:80]!r} has an empty, a dot or a too long component")

    # -- Hard links

    def add_link(self, fields: list[bytes], parent: Directory, name: bytes) -> None:
        kind = self.kind(fields[_MODE][1:], fields[_MODE])
        if kind == st.S_IFDIR:
            self.fail("mode", "a directory can't have a second name")
        target = self.optional(fields, _PAYLOAD)
        if not target:
            self.fail("payload", "a hard link has no target")
        leaf = Leaf(_NO_STAT, _EMPTY)
        self.links[leaf] = self.line, parent, name, target
        parent.entries[name] = leaf

    def finish(self) -> Directory:
        """The whole tree, its hard links resolved."""
        if self.root is None:
            raise FormatError(self.source, None, "there is no line for the root directory")
        resolved: dict[Leaf, Leaf] = {}
        for link in self.links:
            chain: dict[Leaf, None] = {}
            while link in self.links and link not in resolved:
                self.line, _, _, target = self.links[link]
                chain[link] = None
                link = self.find_target(target)
                if link in chain:
                    self.fail("payload", f"the hard link leads back to itself: {target[:80]!r}")
            leaf = resolved.get(link, link)
            resolved.update(dict.fromkeys(chain, leaf))
        for link, (_, parent, name, _) in self.links.items():
            parent.entries[name] = resolved[link]
        return self.root

    def find_target(self, target: bytes) -> Leaf:
        base, _, name = target.rstrip(b"/").rpartition(b"/")
        parent = self.directories.get(self.plain(base))
        node = parent.entries.get(name) if parent is not None else None
        if node is None:
            self.fail("payload", f"the hard link's target {target[:80]!r} is not listed")
        if isinstance(node, Directory):
            self.fail("payload", f"the hard link's target {target[:80]!r} is a directory")
        assert parent is not None
        if node not in self.links:
            node.home = parent, name
        return node

    # -- Fields

    def kind(self, text: bytes, shown: bytes) -> int:
        if not _OCTAL.match(text):
            self.fail("mode", f"{shown[:40]!r} is not an octal number")
        mode = int(text, 8)
        if mode >> 64:
            self.fail("mode", f"{shown!r} is too large")
        kind = st.S_IFMT(mode & 0xFFFF)
        if kind not in _KINDS:
            self.fail("mode", f"{shown!r} has no known file type")
        return kind

    def stat(self, fields: list[bytes]) -> tuple[int, Stat]:
        """(type, metadata) of a line."""
        kind = self.kind(fields[_MODE], fields[_MODE])
        time = _TIME.match(fields[_MTIME])
        if time is None or not -(1 << 63) <= int(time[1]) < 1 << 63:
            self.fail("mtime", f"{fields[_MTIME][:40]!r} is not SECONDS.NANOSECONDS")
        blob = fields[_REST] if len(fields) > _REST else b""
        xattrs = self.xattrs.get(blob)
        if xattrs is None:
            xattrs = self.attributes(blob)
            if len(blob) < _CACHED_LINE:
                if len(self.xattrs) >= _CACHED:
                    self.xattrs = {b"": {}}
                self.xattrs[blob] = xattrs
        return kind, Stat(
            int(fields[_MODE], 8) & 0o7777,
            self.number(fields, _UID, 32),
            self.number(fields, _GID, 32),
            int(time[1]),
            int(time[2]),
            xattrs,
        )

    def special(self, kind: int, fields: list[bytes]) -> Content:
        self.check_content(fields)
        if kind == st.S_IFLNK:
            target = self.optional(fields, _PAYLOAD)
            if not target or len(target) >= PATH_MAX or b"\0" in target:
                self.fail("payload", "a symbolic link's target is empty, too long or has zeros")
            if self.strict and (fields[_CONTENT] != b"-" or int(fields[_SIZE]) != len(target)):
                self.fail("size", "a symbolic link has content or a size that isn't its length")
            return Symlink(target)
        if kind in (st.S_IFCHR, st.S_IFBLK):
            return Device(kind, self.number(fields, _RDEV, 32))
        self.check_device(fields)
        return Special(kind)

    def regular(self, fields: list[bytes]) -> Content:
        if self.strict:
            self.check_device(fields)
        content, text = fields[_CONTENT], fields[_DIGEST]
        size = self.number(fields, _SIZE, 63)
        if content != b"-":
            return Inline(self.content(fields, size)) if size else self.empty(fields)
        if size > SIZE_MAX:
            self.fail("size", f"{size} bytes are more than the {SIZE_MAX} that an image can tell")
        digest: bytes | None = None
        if text not in (b"-", b""):
            digest = self.digest(text)
        payload = self.optional(fields, _PAYLOAD) or b""
        if b"\0" in payload or len(payload) >= PATH_MAX:
            self.fail("payload", f"{payload[:80]!r} is too long or contains a zero byte")
        if digest is not None:
            return External(size, digest, None if payload == object_path(digest) else payload)
        if payload:
            return External(size, None, payload)
        return Sparse(size) if size else _EMPTY

    def empty(self, fields: list[bytes]) -> Inline:
        self.content(fields, 0)
        return _EMPTY

    def check_content(self, fields: list[bytes]) -> None:
        """Check the contents of what can't have any."""
        size = self.number(fields, _SIZE, 63)
        if fields[_CONTENT] != b"-":
            self.content(fields, size)

    def check_device(self, fields: list[bytes]) -> None:
        if self.strict and fields[_RDEV].strip(b"0"):
            self.fail("rdev", "only a device has a device number")

    def content(self, fields: list[bytes], size: int) -> bytes:
        content = self.unescape(fields[_CONTENT], "content")
        if len(content) != size:
            self.fail("content", f"{len(content)} bytes, but the size is {size}")
        if size > INLINE_MAX:
            self.fail("content", f"{size} bytes, more than {INLINE_MAX}")
        return content

    def digest(self, text: bytes) -> bytes:
        try:
            digest = unhexlify(text)
        except ValueError:
            digest = b""
        if len(digest) not in (32, 64):
            self.fail("digest", f"{text[:140]!r} is not a digest in hexadecimal")
        return digest

    def attributes(self, blob: bytes) -> dict[bytes, bytes]:
        xattrs: dict[bytes, bytes] = {}
        total = 0
        parts = blob.split(b" ")
        if not parts[-1]:
            parts.pop()
        for place, field in enumerate(parts, 1):
            where = f"attribute {place}"
            key, equals, value = field.partition(b"=")
            name, content = self.unescape(key, where), self.unescape(value, where)
            total += len(name) + len(content) + 7
            if not equals or not name or b"\0" in name:
                self.fail(where, f"{field[:80]!r} is not NAME=VALUE")
            if len(name) > XATTR_NAME_MAX or total > XATTRS_MAX:
                self.fail(where, f"{name[:80]!r}: the name, or all attributes, are too long")
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

    def unescape(self, text: bytes, field: str) -> bytes:
        if b"\0" in text:
            self.fail(field, "a zero byte that isn't escaped")
        if b"\\" not in text:
            return text

        def replace(match: re.Match[bytes]) -> bytes:
            if match[1] is not None:
                return bytes((int(match[1], 16),))
            found = _PLAIN.get(match[2])
            return self.fail(field, f"unknown escape {match[0]!r}") if found is None else found

        return _ESCAPE.sub(replace, text)


_KINDS = frozenset(
    (st.S_IFREG, st.S_IFDIR, st.S_IFLNK, st.S_IFCHR, st.S_IFBLK, st.S_IFIFO, st.S_IFSOCK)
)
_NO_STAT = Stat()


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
