# SPDX-License-Identifier: Apache-2.0 OR MIT
"""EROFS images against the digests of the ones that other implementations write."""

import hashlib
import stat as st
from pathlib import Path

import pytest

from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.dumpfile import format_dump, parse_dump
from bootc.composefs.erofs_format import (
    FormatVersion,
    filter_bit,
    object_path,
    parse_object_path,
    xxh32,
)
from bootc.composefs.erofs_image import read_superblock
from bootc.composefs.erofs_layout import chunk_layout, split_directory
from bootc.composefs.erofs_reader import read_image
from bootc.composefs.erofs_writer import image_pieces, write_image
from bootc.errors import BootcError
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
)

DUMPS = Path(__file__).parent.parent / "golden" / "dumps"
V0, V1, V2 = FormatVersion


def tree(**leaves: Content) -> Directory:
    entries: dict[bytes, Directory | Leaf] = {
        name.replace("_", "-").encode(): Leaf(Stat(), content) for name, content in leaves.items()
    }
    return Directory(Stat(0o755), entries)


SIMPLE = tree(
    blkdev=Device(st.S_IFBLK, 123),
    chrdev=Device(st.S_IFCHR, 123),
    fifo=Special(st.S_IFIFO),
    regular_external=External(1234, b"\x5a" * 32),
    regular_inline=Inline(b"hihi"),
    socket=Special(st.S_IFSOCK),
    symlink=Symlink(b"/target"),
)

PINNED = [
    (tree(), V0, "8f589e8f57ecb88823736b0d857ddca1e1068a23e264fad164b28f7038eb3682"),
    (tree(), V1, "14a26c957c84f6eb774b91205476adc13196c7c33b9dd97d08d43725ecb90b63"),
    (tree(), V2, "086b702a519b57d6ef5aea6f8b3f2be24355cd1fb835cd80fb4e3d388b24d5a5"),
    (SIMPLE, V0, "9f3f5620ee0c54708516467d0d58741e7963047c7106b245d94c298259d0fa01"),
    (SIMPLE, V1, "ad6db6427568a1e4fdc772cbab7b6063f5eb4b33cb62982a740ba9213e5962b5"),
    (SIMPLE, V2, "a8fcd41f8b313bede69f462f2af0a38d64b99a6333f5df884ea9ab4037fac722"),
]

# The plain SHA-256 of the whole image.
IMAGES = [
    ("bigfile-xattr", V0, "5bdb37d78dcf03b4ab1adc9a2d5212d3d95213b41628939f5fe3769f93d927cc"),
    ("bigfile", V0, "475838479da68b086445eca1f12dd30fc4513f3f88c66b40b58fd70f7495ea27"),
    (
        "honggfuzz-bigfile-with-acl",
        V0,
        "49fcb98c1d331c3f4b414d99d17aac0a6a7e1f8fe7de0d33bbe53064fa55e88b",
    ),
    (
        "honggfuzz-chardev-nonzero-size",
        V1,
        "3e7ca8195f29cfd0583ed761c8eead21892ef0ec61d1402aa7f7d84ef8316947",
    ),
    (
        "honggfuzz-long-symlink",
        V0,
        "7939aa24a6499de3796792d8ad220138453803ab5f20c96a8c815bf212d44ff7",
    ),
    ("longlink", V0, "6747c908f88fc6c18626027f204159f3c2a6225b45e4de2f2d5ebf969bf5f24a"),
    ("no-newline", V0, "99f02c3c63d0c4c14be6f63e87250adafc0e173a12354f50d9ba7cd320deeca7"),
    ("special", V0, "d344782ff962ab7d1c5533755c19c5bf3c3485f55bfaf228fc89524c7e2ba61e"),
    ("special", V1, "2b1dfb9ffe6938cb3134c339059572e38cbd8cc515d54758fdff55cad5a37427"),
]


@pytest.mark.parametrize(("root", "version", "expected"), PINNED)
def test_erofs_pinned_digests(root: Directory, version: FormatVersion, expected: str) -> None:
    image = write_image(root, version=version, algorithm=Algorithm.SHA256)
    assert len(image) % 4096 == 0
    assert digest_bytes(image, Algorithm.SHA256).hex() == expected


@pytest.mark.parametrize(("name", "version", "expected"), IMAGES)
def test_erofs_golden_dumps(name: str, version: FormatVersion, expected: str) -> None:
    root = parse_dump((DUMPS / f"{name}.dump").read_bytes())
    before = format_dump(root)
    image = write_image(root, version=version, algorithm=Algorithm.SHA256)
    assert hashlib.sha256(image).hexdigest() == expected
    assert format_dump(root) == before, "the writer changed the tree"


# What cfsctl 0.9.4 and mkcomposefs 1.0.8 don't agree on, and the digests of what each writes.
OLD = "/ 0 40755 2 0 0 0 5.7 - - -\n/old 0 100644 1 0 0 0 -5.0 - - -\n"
MARKED = """\
/ 0 40755 3 0 0 0 5.7 - - -
/d 0 40755 2 0 0 0 5.0 - - - trusted.overlay.opaque=a user.overlay.opaque=zz user.overlay.whiteouts=
/d/w 0 20644 1 0 0 0 9.0 - - -
"""
DISAGREED = [
    (OLD, V0, False, "e267f9ab2ff1c0124fd5bd1c2c6cff88e54c97f8d8f33099dbce5a1c5b802fa5"),
    (OLD, V1, False, "eff0c3fb3cb2074175ba8a0029f619cb848a90147b5fe08656790b838709ea21"),
    (OLD, V0, True, "8edfebd5f7c75a60d513c505d7e7a47b4d62093bae0c363383a3f1012eb616af"),
    (OLD, V1, True, "8f08286a9067712b715e7b5925d0df4c0b4e804fd52f71c21da229abc620b66f"),
    (MARKED, V0, False, "2cd64e61f3e4a6459bce91556a8b532c2a7f8bd8005f3ce99c53762256242342"),
    (MARKED, V1, False, "60929aae6eab7bb62cc841e2d81ba82eb02c17ef3db5014ae66c000e618035b5"),
    (MARKED, V0, True, "7450c32bd06e0aecdc6b17037ec28e465e72457b7cfc86760b9a8e5aa683dabc"),
    (MARKED, V1, True, "06adf26023d8466c373e9c04595cb7fa258d2cee60e78af91c1790199ac043a9"),
]


@pytest.mark.parametrize(("dump", "version", "like_c", "expected"), DISAGREED)
def test_erofs_two_readings(dump: str, version: FormatVersion, like_c: bool, expected: str) -> None:
    root = parse_dump(dump.encode())
    image = write_image(root, algorithm=Algorithm.SHA256, version=version, like_c=like_c)
    assert digest_bytes(image, Algorithm.SHA256).hex() == expected


def test_erofs_oldest_time() -> None:
    root = parse_dump(OLD.encode())
    for like_c, oldest in ((True, (-5, 0)), (False, (5, 7))):
        image = write_image(root, like_c=like_c)
        found = read_superblock(image, "image")
        assert (found.mtime, found.mtime_nsec) == oldest
        assert format_dump(read_image(image)) == format_dump(root)


def test_erofs_insertion_order_does_not_matter() -> None:
    backwards = Directory(SIMPLE.stat, dict(reversed(SIMPLE.entries.items())))
    for version in FormatVersion:
        one, two = (
            write_image(tree, algorithm=Algorithm.SHA256, version=version)
            for tree in (backwards, SIMPLE)
        )
        assert one == two


@pytest.mark.parametrize("version", list(FormatVersion))
@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({b"a/b": Leaf(Stat(), Inline(b""))}, "slash"),
        ({b"a\0": Leaf(Stat(), Inline(b""))}, "zero byte"),
        ({b"..": Directory(Stat())}, "dot name"),
        ({b"": Directory(Stat())}, "empty"),
        ({b"x" * 256: Directory(Stat())}, "too long"),
        ({b"d": Leaf(Stat(), Device(st.S_IFBLK, 1 << 32))}, "32 bits"),
        ({b"f": Leaf(Stat(), External(9, bytes(32)))}, "32 bytes instead of 64"),
        ({b"f": Leaf(Stat(xattrs={b"user." + b"x" * 256: b""}), Inline(b""))}, "too long"),
        ({b"f": Leaf(Stat(xattrs={b"user.x": bytes(65536)}), Inline(b""))}, "too long"),
    ],
)
def test_erofs_refuses(
    entries: dict[bytes, Directory | Leaf], problem: str, version: FormatVersion
) -> None:
    with pytest.raises(BootcError, match=problem):
        write_image(Directory(Stat(0o755), entries), version=version)


def test_erofs_refuses_loops() -> None:
    root = tree()
    root.entries[b"again"] = root
    with pytest.raises(BootcError, match="twice"):
        write_image(root)


def test_erofs_refuses_files_beyond_their_chunks() -> None:
    assert chunk_layout(1) == (0, 1)
    assert chunk_layout(4097) == (1, 1)
    assert chunk_layout(1 << 53) == (31, 1024)
    with pytest.raises(BootcError, match="too large"):
        write_image(tree(big=Sparse((1 << 53) + 1)))


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([1, 2], ([], 27)),
        ([200] * 9, ([], 1908)),
        ([200] * 10, ([10], 0)),
        ([200] * 19, ([19], 0)),
        ([200] * 20, ([19], 212)),
        ([200] * 38, ([19, 19], 0)),
    ],
)
def test_erofs_directory_blocks(lengths: list[int], expected: tuple[list[int], int]) -> None:
    assert split_directory([b"x" * length for length in lengths]) == expected


def test_erofs_filter_and_hash() -> None:
    assert xxh32(b"", 0) == 0x02CC5D05
    assert xxh32(b"Nobody inspects the spammish repetition", 0) == 0xE2293B2F
    assert filter_bit(4, b"overlay.opaque") ^ 0xFFFFFFFF == 0xFFEFFFFF


def test_erofs_object_paths() -> None:
    assert parse_object_path(b"../objects/5a/" + b"5a" * 31) == b"\x5a" * 32
    assert parse_object_path(b"5A/" + b"5A" * 63) == b"\x5a" * 64
    for bad in (b"", b"5a" * 32, b"5/a" + b"5a" * 31, b"5a/" + b" a" * 31, b"x5a/" + b"5a" * 31):
        assert parse_object_path(bad) is None


@pytest.mark.parametrize(
    ("name", "flag", "flag_of_c"),
    [("access", 1, 1), ("default", 1, 1), ("accessX", 1, 0), ("", 0, 0)],
)
def test_erofs_acl_flag(name: str, flag: int, flag_of_c: int) -> None:
    root = Directory(Stat(xattrs={b"system.posix_acl_" + name.encode(): b"x"}))
    assert write_image(root)[8] == flag
    assert write_image(root, like_c=True)[8] == flag_of_c
    assert write_image(root, version=V2)[8] == 0


def test_erofs_v2_refuses_what_the_kernel_could_not_read() -> None:
    for content in (Inline(bytes(513)), Symlink(b"t" * 1025)):
        root = tree(leaf=content)
        write_image(root)
        with pytest.raises(BootcError, match="V2") as caught:
            write_image(root, version=V2)
        assert caught.value.hint is not None


def test_erofs_linked_whiteout_marks_the_directory_of_its_home() -> None:
    """As C composefs 1.0.8 writes it: a hard link to a whiteout marks nothing."""
    lines = (
        "/ 0 40755 2 0 0 0 0.0 - - -\n"
        "/a 0 40755 2 0 0 0 0.0 - - -\n"
        "/a/link 0 @20644 1 0 0 0 0.0 /b/w - -\n"
        "/b 0 40755 2 0 0 0 0.0 - - -\n"
        "/b/w 0 20644 2 0 0 0 0.0 - - -\n"
        "/c 0 100644 2 0 0 0 0.0 - - -\n"
    )
    expected = {
        V0: "a4eabcb368d37a6393de828aa4781fc5f0f234fbe24315905a9ebe204e886d5c",
        V1: "9fc6adc97d4447cd306122aef954c7bc55bb2bf13705685e54755fe5c4ef2919",
    }
    for version, digest in expected.items():
        image = write_image(parse_dump(lines.encode()), version=version, algorithm=Algorithm.SHA256)
        assert digest_bytes(image, Algorithm.SHA256).hex() == digest


@pytest.mark.parametrize("version", list(FormatVersion))
def test_erofs_pieces_are_the_image(version: FormatVersion) -> None:
    names = [b"%05d-%s" % (number, b"x" * 200) for number in range(12000)]
    root = Directory(Stat(0o755), {name: Leaf(Stat(uid=70000), Sparse(9)) for name in names})
    pieces = list(image_pieces(root, version=version))
    assert len(pieces) > 1
    assert all(len(piece) % 4096 == 0 for piece in pieces)
    assert b"".join(pieces) == write_image(root, version=version)


def test_erofs_pieces_refuse_before_the_first_one() -> None:
    with pytest.raises(BootcError, match="slash"):
        image_pieces(Directory(Stat(), {b"a/b": Leaf(Stat(), Inline(b""))}))


@pytest.mark.parametrize("version", list(FormatVersion))
def test_erofs_shared_objects_are_read_back(version: FormatVersion) -> None:
    """Equal digests and paths, in all combinations of where a path comes from."""
    first, second, third = (bytes([number]) * 32 for number in (1, 2, 3))
    contents: list[Content] = [
        External(100, first),
        External(100, first),
        External(100, first, object_path(second)),
        External(100, second),
        External(100, third, b"else/where"),
        External(100, None, b"else/where"),
        External(100, None, object_path(third)),
        External(100, third, b""),
        Sparse(100),
        Sparse(101),
    ]
    several = {b"user.%03d" % number: b"same" for number in range(300)}
    for xattrs in ({}, {b"security.x": b"1", b"user.y": b"2"}, several):
        root = Directory(
            Stat(0o755),
            {
                b"%02d" % number: Leaf(Stat(xattrs=xattrs), content)
                for number, content in enumerate(contents)
            },
        )
        image = write_image(root, version=version, algorithm=Algorithm.SHA256)
        assert format_dump(read_image(image)) == format_dump(root)
