# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The tar parser: what GNU tar and Python write, and what nobody should."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as some

from bootc.errors import FormatError
from bootc.oci.tarstream import Entry, read_tar
from bootc.tree import Device, Directory, External, Inline, Leaf, Special, Symlink
from tests.ocibuild import END, folder, header, member, padded, pax, pax_items


class MemoryInput:
    """A tar in memory; external contents are dropped, their digest is their first 32 bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def offset(self) -> int:
        return self.at

    def _take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise FormatError("test", len(self.data), "the tar ends too early")
        self.at += size
        return self.data[self.at - size : self.at]

    def header(self) -> bytes:
        return self._take(512) if self.at < len(self.data) else b""

    def inline(self, size: int) -> bytes:
        return self._take(size + -size % 512)[:size]

    def external(self, leaf: Leaf, size: int) -> None:
        leaf.content = External(size, self._take(size + -size % 512)[:32])

    def drain(self) -> None:
        self.at = len(self.data)


def parse(data: bytes) -> list[Entry]:
    return list(read_tar(MemoryInput(data), "test"))


def leaf_of(entry: Entry) -> Leaf:
    assert isinstance(entry.node, Leaf)
    return entry.node


def test_tar_of_pythons_three_formats_reads_the_same() -> None:
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        long = "d" * 90 + "/" + "n" * 95
        with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
            for name, type_ in (("./", tarfile.DIRTYPE), ("d" * 90 + "/", tarfile.DIRTYPE)):
                info = tarfile.TarInfo(name)
                info.type = type_
                info.mode = 0o4755
                info.mtime = 1700000000
                tar.addfile(info)
            info = tarfile.TarInfo(long)
            info.size = 100
            info.uid = 1234
            tar.addfile(info, io.BytesIO(b"x" * 100))
        root, parent, long_entry = parse(file.getvalue())
        assert root.path == b""
        assert isinstance(root.node, Directory)
        assert root.node.stat.mode == 0o4755
        assert root.node.stat.mtime == 1700000000
        assert parent.path == b"d" * 90
        assert long_entry.path == long.encode()
        assert leaf_of(long_entry).content == External(100, b"x" * 32)
        assert leaf_of(long_entry).stat.uid == 1234


def test_tar_kinds() -> None:
    devices = {"major": b"0000010\0", "minor": b"0000003\0"}
    entries = parse(
        member(b"small", b"s" * 64)
        + member(b"large", b"l" * 65)
        + header(b"link", 0, b"2", link=b"../small")
        + header(b"hard", 0, b"1", link=b"/./small")
        + header(b"char", 0, b"3", numbers=devices)
        + header(b"block", 0, b"4", numbers=devices)
        + header(b"fifo", 0, b"6")
        + member(b"empty")
        + END
        + b"trailing bytes are not looked at"
    )
    contents = {entry.path: entry.node.content for entry in entries if isinstance(entry.node, Leaf)}
    assert contents == {
        b"small": Inline(b"s" * 64),
        b"large": External(65, b"l" * 32),
        b"link": Symlink(b"../small"),
        b"char": Device(stat.S_IFCHR, os.makedev(8, 3)),
        b"block": Device(stat.S_IFBLK, os.makedev(8, 3)),
        b"fifo": Special(stat.S_IFIFO),
        b"empty": Inline(b""),
    }
    assert entries[3] == Entry(b"hard", None, b"small")


def test_tar_names_in_order_of_precedence() -> None:
    gnu = member(b"././@LongLink", b"from-gnu\0", b"L")
    both = gnu + pax(path=b"from-pax") + member(b"from-header") + END
    assert [entry.path for entry in parse(both)] == [b"from-pax"]
    assert [entry.path for entry in parse(gnu + member(b"from-header"))] == [b"from-gnu"]
    assert [entry.path for entry in parse(header(b"name", prefix=b"pre/fix"))] == [b"pre/fix/name"]
    old = header(b"name", prefix=b"pre", magic=b"ustar  \0")
    assert [entry.path for entry in parse(old)] == [b"name"]
    # An extension counts for one member only.
    assert [entry.path for entry in parse(gnu + member(b"a") + member(b"b"))] == [b"from-gnu", b"b"]


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        (b"/etc/passwd", b"etc/passwd"),
        (b"./etc//x/.", b"etc/x"),
        (b".hidden/.x", b".hidden/.x"),
        (b"a/b///", b"a/b"),
        (b"...", b"..."),
    ],
)
def test_tar_paths_become_normal(raw: bytes, normal: bytes) -> None:
    assert [entry.path for entry in parse(member(raw))] == [normal]


def test_tar_pax_metadata() -> None:
    extension = pax_items(
        (b"mtime", b"1700000000.5"),
        (b"uid", b"4294967297"),
        (b"SCHILY.xattr.security.capability", b"\x01\0=\n\xff"),
        (b"LIBARCHIVE.xattr.user.x", b"ignored"),
        (b"size", b"70"),
    )
    (entry,) = parse(extension + header(b"f", 0) + padded(b"z" * 70) + END)
    found = leaf_of(entry).stat
    assert (found.mtime, found.mtime_nsec, found.uid) == (1700000000, 500000000, 1)
    assert found.xattrs == {b"security.capability": b"\x01\0=\n\xff"}
    assert leaf_of(entry).content == External(70, b"z" * 32)


def test_tar_global_pax_has_no_effect() -> None:
    data = bytearray(pax(path=b"global"))
    data[156:157] = b"g"
    data[148:156] = b" " * 8
    data[148:156] = b"%07o\0" % sum(data[:512])
    assert [entry.path for entry in parse(bytes(data) + member(b"real"))] == [b"real"]


def test_tar_binary_numbers() -> None:
    numbers = {"uid": b"\x80" + bytes(3) + (70000).to_bytes(4, "big"), "gid": b"  17 \0  "}
    (entry,) = parse(header(b"f", numbers=numbers))
    assert (leaf_of(entry).stat.uid, leaf_of(entry).stat.gid) == (70000, 0o17)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (header(b"../etc"), "`..` component"),
        (header(b"a/../../b"), "`..` component"),
        (header(b"f", kind=b"S"), "sparse"),
        (pax_items((b"GNU.sparse.major", b"1")) + header(b"f"), "sparse"),
        (header(b"f", kind=b"V"), "unknown type"),
        (header(b"d", 512, b"5") + bytes(512), "with a size"),
        (header(b"l", 0, b"2"), "symlink with a target"),
        (pax(linkpath=b"a\0b") + header(b"l", 0, b"2"), "target b'a.x00b' has a NUL byte"),
        (header(b"h", 0, b"1"), "hard link to nothing"),
        (header(b"/", 0, b"0"), "root is a regular file"),
        (header(b".", 0, b"2", link=b"x"), "root is no directory"),
        (header(b"f", numbers={"uid": b"\xff" * 8}), "negative"),
        (header(b"f", numbers={"size": b"0o17\0\0\0\0\0\0\0\0"}), "bad number"),
        (header(b"f", numbers={"size": b"99999999999\0"}), "bad number"),
        (header(b"f", numbers={"size": b"-1\0\0\0\0\0\0\0\0\0\0"}), "bad number"),
        (header(b"f").replace(b"f", b"g", 1), "checksum"),
        (b"\x01" * 512, "bad number"),
        (bytes(512) + member(b"f"), "single zero block"),
        (pax(path=b"x"), "without an entry"),
        (pax(path=b"x") + END, "without an entry"),
        (pax(path=b"x") + pax(path=b"y") + header(b"f"), "two PAX"),
        (header(b"x", 2 << 20, b"x"), "extension header of"),
        (member(b"x", b"99 a=b\n", b"x") + header(b"f"), "bad PAX record"),
        (member(b"x", b"0 a=b\n", b"x") + header(b"f"), "bad PAX record"),
        (member(b"x", b"6 abc\n", b"x") + header(b"f"), "without a key"),
        (pax(mtime=b"-5") + header(b"f"), "bad PAX mtime"),
        (pax(mtime=b"5.x") + header(b"f"), "bad PAX mtime"),
        (pax(size=b"99999999999999999999") + header(b"f"), "bad PAX size"),
        (pax(path=b"a\0b") + header(b"f"), "NUL"),
        (pax(path=b"n" * 256) + header(b"f"), "more than 255"),
        (pax(path=b"n/" * 2100) + header(b"f"), "a path of"),
        (pax_items((b"SCHILY.xattr.", b"x")) + header(b"f"), "attribute name"),
        (header(b"f", 1000), "too early"),
        (header(b"f", 10), "too early"),
        (header(b"f")[:300], "too early"),
        (header(b"c", 0, b"3", numbers={"major": b"7777777\0"}), "too large"),
    ],
)
def test_tar_hostile_input_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem) as caught:
        parse(folder(b"first") + data)
    assert isinstance(caught.value.where, int)
    assert caught.value.where >= 512


@given(some.binary(max_size=2048), some.integers(0, 2047))
def test_tar_random_damage_gives_format_errors_only(noise: bytes, at: int) -> None:
    good = pax(path=b"p", mtime=b"1.5") + member(b"f", b"x" * 700) + folder(b"d") + END
    damaged = good[:at] + noise + good[at + len(noise) :]
    with contextlib.suppress(FormatError):
        parse(damaged)
