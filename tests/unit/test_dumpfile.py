# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Dump files: what is read and written, and what is refused, by line and field."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from bootc.composefs.dumpfile import format_dump, parse_dump, read_dump
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
        (b"", "path"),
        (b" ", "path"),
        (b"/a", "mode"),
        (b"/a 5 100644 1 0 0 0 0.0 x/y", "content"),
        (b"/d/./a 0 100644 1 0 0 0 0.0 - - -", "path"),
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
        (b"/a 0 7777777777777777100644 1 0 0 0 0.0 - - -", "mode"),
        (b"/a 0 100644 x 0 0 0 0.0 - - -", "nlink"),
        (b"/a 0 100644 1 4294967296 0 0 0.0 - - -", "uid"),
        (b"/a 0 20644 1 0 0 9999999999 0.0 - - -", "rdev"),
        (b"/a 0 100644 1 0 0 0 0 - - -", "mtime"),
        (b"/a 0 100644 1 0 0 0 0.1000000000 - - -", "mtime"),
        (b"/a 0 100644 1 0 0 0 9223372036854775808.0 - - -", "mtime"),
        (b"/a 3 100644 1 0 0 0 0.0 - ab -", "content"),
        (b"/a 3 20644 1 0 0 5 0.0 - ab -", "content"),
        (b"/a 3 120644 1 0 0 5 0.0 x ab -", "content"),
        (b"/a - 20644 1 0 0 5 0.0 - - -", "size"),
        (b"/a 0 100644 1 0 0 0 0.0 a\\x00b - -", "payload"),
        (b"/a 0 100644 1 0 0 0 0.0 a\0b - -", "payload"),
        (b"/a 1 120644 1 0 0 0 0.0 a\\x00b - -", "payload"),
        (b"/a 9 100644 1 0 0 0 0.0 " + b"z" * 4096 + b" - -", "payload"),
        (b"/a 2 100644 1 0 0 0 0.0 - - zz", "digest"),
        (b"/a 2 100644 1 0 0 0 0.0 - - abcd", "digest"),
        (b"/a 0 120777 1 0 0 0 0.0 - - -", "payload"),
        (b"/a 0 10644 1 0 0 0 0.0 - x -", "content"),
        (b"/a 0 @40755 - - - - 0.0 /b - -", "mode"),
        (b"/a 0 @1 - - - - 0.0 /b - -", "mode"),
        (b"/a 0 @100644 - - - - 0.0 - - -", "payload"),
        (b"/a 0 @100644 - - - - 0.0 /a - -", "payload"),
        (b"/a 0 @100644 - - - - 0.0 /nothing - -", "payload"),
        (b"/a 0 @100644 - - - - 0.0 / - -", "payload"),
        (b"/a 0 100644 1 0 0 0 0.0 - - - user.x", "attribute 1"),
        (b"/a 0 100644 1 0 0 0 0.0 - - - user.x=1  user.y=2", "attribute 2"),
        (b"/a 0 100644 1 0 0 0 0.0 - - - user.x\\x00=1", "attribute 1"),
        (b"/a 0 100644 1 0 0 0 0.0 - - - user.x=" + b"v" * 32743, "attribute 1"),
        (b"/a 0 100644 1 0 0 0 0.0 - - - user." + b"x" * 251 + b"=", "attribute 1"),
    ],
)
def test_dump_refuses_with_line_and_field(line: bytes, where: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_dump(ROOT + line + b"\n", "the dump")
    assert caught.value.where == f"line 2, {where}"
    assert caught.value.source == "the dump"


def test_dump_needs_a_root() -> None:
    with pytest.raises(FormatError, match="no line for the root"):
        parse_dump(b"")
    with pytest.raises(FormatError, match="first line is not the root"):
        parse_dump(b"\n" + ROOT)
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


def test_dump_reads_what_c_composefs_reads() -> None:
    digest = "ab" * 32
    text = (
        "/ 0 40755 9 0 0 0 0.0 x y -\n".replace("y", "-")
        + "a 0 100644 1 0 0 7 0.0 x - -\n"
        + "//d 3 40755 9 0 0 0 0.0 x abc zz\n"
        + "/d//b 2 100644 1 0 0 0 0.0 x/y ab zz \n"
        + f"d/c 2 100644 1 0 0 0 0.0 - - {digest}\n"
        + "/d/l 77 120644 1 0 0 0 0.0 tgt - -  \n".replace("  ", " ")
        + "/d/s 2 100644 1 0 0 0 0.0 x/y -\n"
        + "/d/x 0 100644 1 0 0 0 0.0 - - - user.a=1 user.b=x=y user.a=2 "
    )
    root = parse_dump(text.encode())
    assert sorted(root.entries) == [b"a", b"d"]
    found = {
        name: node.content
        for name, node in (root.find_directory("d") or root).entries.items()
        if isinstance(node, Leaf)
    }
    assert found == {
        b"b": Inline(b"ab"),
        b"c": External(2, bytes.fromhex(digest), b""),
        b"l": Symlink(b"tgt"),
        b"s": External(2, None, b"x/y"),
        b"x": Inline(b""),
    }
    last = root.find("d/x")
    assert last is not None
    assert last.stat.xattrs == {b"user.a": b"2", b"user.b": b"x=y"}


@pytest.mark.parametrize(
    "line",
    [
        "/a 0 100644 1 0 0 0 0.0 - - -",
        "/a 0 100644 1 0 0 5 0.0 - - -\n",
        "/a 4 120644 1 0 0 0 0.0 abc - -\n",
        "/a 3 120644 1 0 0 0 0.0 abc abc -\n",
    ],
)
def test_dump_strict(line: str) -> None:
    text = ROOT + line.encode()
    parse_dump(text)
    with pytest.raises(FormatError, match="line 2"):
        parse_dump(text, strict=True)
    parse_dump(ROOT + b"/a 3 120644 1 0 0 0 0.0 abc - -\n", strict=True)


LINK = "/{} 0 @100644 1 0 0 0 0.0 /{} - -\n"
FILE = "/f 0 100644 1 0 0 0 0.0 - - -\n"


@pytest.mark.parametrize(
    "lines",
    [
        FILE + LINK.format("a", "f") + LINK.format("z", "a"),
        LINK.format("a", "f") + LINK.format("z", "a") + FILE,
        LINK.format("a", "z") + LINK.format("z", "//f") + FILE,
        LINK.format("z", "a") + FILE + LINK.format("a", "f/"),
    ],
)
def test_dump_hard_links_in_any_order(lines: str) -> None:
    root = parse_dump(ROOT + lines.encode())
    file = root.entries[b"f"]
    assert isinstance(file, Leaf)
    assert file.home == (root, b"f")
    assert root.entries == {b"a": file, b"f": file, b"z": file}


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (LINK.format("a", "b") + LINK.format("b", "a") + FILE, "line [23].*back to itself"),
        (LINK.format("a", "x") + FILE, "line 2, payload.*not listed"),
        (LINK.format("a", "f/g") + FILE, "line 2, payload.*not listed"),
        (FILE + LINK.format("a", "d") + "/d 0 40755 2 0 0 0 0.0 - - -\n", "line 3.*a directory"),
        (FILE + LINK.format("a", ""), "line 3.*not listed"),
    ],
)
def test_dump_hard_links_that_lead_nowhere(lines: str, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        parse_dump(ROOT + lines.encode())


def test_dump_many_hard_links_in_a_chain() -> None:
    count = 20000
    chain = "".join(LINK.format(n, n + 1) for n in range(count))
    root = parse_dump(ROOT + chain.encode() + FILE.replace("f", str(count)).encode())
    assert set(root.entries.values()) == {root.entries[b"0"]}
    circle = chain + LINK.format(count, 0)
    with pytest.raises(FormatError, match="back to itself"):
        parse_dump(ROOT + circle.encode())


def test_dump_line_without_end(tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(ROOT + b"/" + b"x" * (3 << 20))
    with (
        open(tmp_path / "dump", "rb") as file,
        pytest.raises(FormatError, match="line 2, path: the line is longer than 1048576 bytes"),
    ):
        read_dump(file, "dump")


def test_dump_is_read_in_pieces(tmp_path: Path) -> None:
    text = ROOT + b"".join(
        b"/%07d 64 100644 1 0 0 0 0.0 - %b -\n" % (number, b"x" * 64) for number in range(30000)
    )
    assert len(text) > 2 << 20
    (tmp_path / "dump").write_bytes(text)
    with open(tmp_path / "dump", "rb") as file:
        assert format_dump(read_dump(file, "dump")) == text


@settings(max_examples=300)
@given(line=some.binary(max_size=90), at=some.integers(0, 400), data=some.binary(max_size=4))
def test_dump_garbage_is_a_format_error(line: bytes, at: int, data: bytes) -> None:
    text = (DUMPS / "no-newline.dump").read_bytes()
    for damaged in (text + b"\n" + line, text[:at] + data + text[at + len(data) :]):
        try:
            root = parse_dump(damaged)
        except FormatError:
            continue
        assert format_dump(parse_dump(format_dump(root))) == format_dump(root)
