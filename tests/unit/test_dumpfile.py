# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Dump files: what is read and written, and what is refused, by line and field."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from bootc.composefs.dumpfile import format_dump, parse_dump
from bootc.errors import FormatError
from bootc.tree import External, Inline, Leaf, Sparse, Symlink

DUMPS = Path(__file__).parent.parent / "golden" / "dumps"
ROOT = b"/ 0 40755 2 0 0 0 0.0 - - -\n"


@pytest.mark.parametrize("path", sorted(DUMPS.glob("should-fail-*.dump")), ids=lambda p: p.stem)
def test_dump_must_fail(path: Path) -> None:
    with pytest.raises(FormatError, match=r"should-fail.* at line [12], "):
        parse_dump(path.read_bytes(), path.name)


@pytest.mark.parametrize(
    ("line", "where"),
    [
        (b"/a 0 100644 1 0 0 0 0.0 - -", "digest"),
        (b"a 0 100644 1 0 0 0 0.0 - - -", "path"),
        (b"/a/b 0 100644 1 0 0 0 0.0 - - -", "path"),
        (b"/a/ 0 100644 1 0 0 0 0.0 - - -", "path"),
        (b"/. 0 40755 1 0 0 0 0.0 - - -", "path"),
        (b"/a\\x00 0 100644 1 0 0 0 0.0 - - -", "path"),
        (b"/ 0 40755 2 0 0 0 0.0 - - -", "path"),
        (b"/a\\q 0 100644 1 0 0 0 0.0 - - -", "path"),
        (b"/a\\ 0 100644 1 0 0 0 0.0 - - -", "path"),
        (b"/a -1 100644 1 0 0 0 0.0 - - -", "size"),
        (b"/a 9223372036854775808 100644 1 0 0 0 0.0 - - -", "size"),
        (b"/a 0 100894 1 0 0 0 0.0 - - -", "mode"),
        (b"/a 0 1100644 1 0 0 0 0.0 - - -", "mode"),
        (b"/a 0 100644 x 0 0 0 0.0 - - -", "nlink"),
        (b"/a 0 100644 1 4294967296 0 0 0.0 - - -", "uid"),
        (b"/a 0 20644 1 0 0 9999999999 0.0 - - -", "rdev"),
        (b"/a 0 100644 1 0 0 0 0 - - -", "mtime"),
        (b"/a 0 100644 1 0 0 0 0.1000000000 - - -", "mtime"),
        (b"/a 0 100644 1 0 0 0 9223372036854775808.0 - - -", "mtime"),
        (b"/a 3 100644 1 0 0 0 0.0 - ab -", "content"),
        (b"/a 2 100644 1 0 0 0 0.0 x/y ab -", "content"),
        (b"/a 2 100644 1 0 0 0 0.0 - - zz", "digest"),
        (b"/a 2 100644 1 0 0 0 0.0 - - abcd", "digest"),
        (b"/a 0 120777 1 0 0 0 0.0 - - -", "payload"),
        (b"/a 0 10644 1 0 0 0 0.0 - x -", "content"),
        (b"/a 0 @100644 - - - - 0.0 /nothing - -", "payload"),
        (b"/a 0 @100644 - - - - 0.0 / - -", "payload"),
        (b"/a 0 100644 1 0 0 0 0.0 - - - user.x", "attribute 1"),
        (b"/a 0 100644 1 0 0 0 0.0 - - - user.x=1 user.x=2", "attribute 2"),
        (b"/a 0 100644 1 0 0 0 0.0 - - - user." + b"x" * 251 + b"=", "attribute 1"),
    ],
)
def test_dump_refuses_with_line_and_field(line: bytes, where: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_dump(ROOT + b"\n" + line + b"\n", "the dump")
    assert caught.value.where == f"line 3, {where}"
    assert caught.value.source == "the dump"


def test_dump_needs_a_root() -> None:
    with pytest.raises(FormatError, match="no line for the root"):
        parse_dump(b"\n")
    with pytest.raises(FormatError, match="first line is not the root"):
        parse_dump(b"/a 0 100644 1 0 0 0 0.0 - - -")
    with pytest.raises(FormatError, match="root is not a directory"):
        parse_dump(b"/ 0 100644 1 0 0 0 0.0 - - -")


def test_dump_reads_all_kinds() -> None:
    name = "ab" * 64
    text = (
        "/ 0 41777 3 1 2 0 -5.6 - - - security.selinux=x\\x00 user.a\\x3db=\n"
        "/- 1 100644 1 0 0 0 1.5 - \\x2d -\n"
        "/dir 0 40755 2 0 0 0 0.0 - - -\n"
        "/dir/e\\x20f 2 120777 2 0 0 0 0.0 -x - -\n"
        f"/ext 70 100644 1 0 0 0 0.0 ab/{name[2:]} - {name}\n"
        f"/moved 70 100644 1 0 0 0 0.0 else/where - {name}\n"
        "/named 70 100644 1 0 0 0 0.0 some/path - -\n"
        "/second 0 @120000 - - - - 0.0 /dir/e\\x20f - -\n"
        "/sparse 5 100644 1 0 0 0 0.0 - - -\n"
    )
    root = parse_dump(text.encode())
    assert (root.stat.mode, root.stat.mtime, root.stat.mtime_nsec) == (0o1777, -5, 6)
    assert root.stat.xattrs == {b"security.selinux": b"x\0", b"user.a=b": b""}
    contents = {k: node.content for k, node in root.entries.items() if isinstance(node, Leaf)}
    digest = bytes.fromhex(name)
    assert contents == {
        b"-": Inline(b"-"),
        b"ext": External(70, digest),
        b"moved": External(70, digest, b"else/where"),
        b"named": External(70, None, b"some/path"),
        b"second": Symlink(b"-x"),
        b"sparse": Sparse(5),
    }
    assert root.find("second") is root.find(b"dir/e f")
    assert format_dump(root).decode() == text


@settings(max_examples=300, deadline=None)
@given(line=some.binary(max_size=90), at=some.integers(0, 400), data=some.binary(max_size=4))
def test_dump_garbage_is_a_format_error(line: bytes, at: int, data: bytes) -> None:
    text = (DUMPS / "no-newline.dump").read_bytes()
    for damaged in (text + b"\n" + line, text[:at] + data + text[at + len(data) :]):
        try:
            root = parse_dump(damaged)
        except FormatError:
            continue
        assert format_dump(parse_dump(format_dump(root))) == format_dump(root)
