# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Images that are written and read again, and images that are damaged."""

import random
import stat as st
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from bootc.composefs.digest import Algorithm
from bootc.composefs.dumpfile import format_dump, parse_dump
from bootc.composefs.erofs_format import FormatVersion
from bootc.composefs.erofs_reader import collect_objects, find_leaf, read_folder, read_image
from bootc.composefs.erofs_writer import write_image
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

DUMPS = Path(__file__).parent.parent / "golden" / "dumps"

xattr_names = some.builds(
    bytes.__add__,
    some.sampled_from(
        [
            *(b"user.", b"trusted.", b"security.", b"lustre.", b"system.posix_acl_access"),
            *(b"trusted.overlay.", b"trusted.overlay.overlay.", b"other", b"trusted.z"),
        ]
    ),
    some.sampled_from([b"a", b"metacopy", b"redirect", b"origin", b"\xff" * 17]),
)
stats = some.builds(
    Stat,
    mode=some.integers(0, 0o7777),
    uid=some.sampled_from([0, 1000, 65535, 65536, 0xFFFFFFFF]),
    gid=some.sampled_from([0, 65536]),
    mtime=some.sampled_from([0, 5, -3, 1 << 40]),
    mtime_nsec=some.sampled_from([0, 7, 999999999]),
    xattrs=some.dictionaries(
        xattr_names, some.sampled_from([b"", b"x", b"y" * 300, b"z" * 3000]), max_size=3
    ),
)
contents: some.SearchStrategy[Content] = some.one_of(
    some.builds(Inline, some.sampled_from([0, 1, 64, 2048, 2049, 4096, 5000]).map(bytes)),
    some.builds(
        External, some.sampled_from([1, 99, 1 << 52]), some.binary(min_size=64, max_size=64)
    ),
    some.builds(External, some.just(7), some.none(), some.just(b"some/path")),
    some.builds(Sparse, some.sampled_from([1, 4096, 9000000000000000])),
    some.builds(Symlink, some.sampled_from([1, 100, 3000, 4095]).map(lambda n: b"t" * n)),
    some.builds(Device, some.sampled_from([st.S_IFCHR, st.S_IFBLK]), some.integers(0, 9)),
    some.builds(Special, some.sampled_from([st.S_IFIFO, st.S_IFSOCK])),
)
names = some.one_of(
    some.binary(min_size=1, max_size=255).filter(
        lambda name: name not in (b".", b"..") and b"/" not in name and b"\0" not in name
    ),
    some.sampled_from([b"00", b"ff", b"!", b"a"]),
)
leaves = some.builds(Leaf, stats, contents)
directories: some.SearchStrategy[Directory] = some.deferred(
    lambda: some.builds(
        Directory, stats, some.dictionaries(names, leaves | directories, max_size=6)
    )
)


def first_leaf(root: Directory) -> Leaf | None:
    return next((node for node in root.entries.values() if isinstance(node, Leaf)), None)


@settings(max_examples=40)
@given(root=directories, many=some.sampled_from([0, 0, 30, 400]), link=some.booleans())
def test_image_round_trip(root: Directory, many: int, link: bool) -> None:
    leaf = first_leaf(root)
    if link and leaf is not None and leaf.content != Device(st.S_IFCHR, 0):
        root.entries[b"!link"] = leaf
        root.entries[b"second"] = Directory(Stat(), {b"name": leaf})
    for number in range(many):
        root.entries[b"entry-%03d" % number] = Leaf(Stat(), Inline(b""))
    for version in (FormatVersion.V0, FormatVersion.V1):
        image = write_image(root, version=version)
        back = read_image(image)
        assert format_dump(back) == format_dump(root)
        assert write_image(back, version=version) == image
        assert len(collect_objects(image)) == len(digests(root))
        for name, node in back.entries.items():
            alone = read_folder(image, name)
            assert (alone is not None) == isinstance(node, Directory)
            if alone is not None and isinstance(node, Directory):
                assert format_dump(alone) == format_dump(node)
        for path, found in walk(back):
            alone_leaf = find_leaf(image, path.strip(b"/"))
            if isinstance(found, Leaf):
                assert alone_leaf is not None
                assert (alone_leaf.content, alone_leaf.stat) == (found.content, found.stat)
                assert find_leaf(image, path.strip(b"/") + b"/below") is None
            else:
                assert alone_leaf is None
        assert find_leaf(image, b"is/not/there") is None


def fit_for_v2(root: Directory) -> None:
    """Cut what images of version 2 don't have: nanoseconds, long contents and links."""
    for _, node in walk(root):
        node.stat.mtime_nsec = 0
        if isinstance(node, Leaf) and isinstance(node.content, Inline):
            node.content = Inline(node.content.data[:512])
        elif isinstance(node, Leaf) and isinstance(node.content, Symlink):
            node.content = Symlink(node.content.target[:1024])


@settings(max_examples=60)
@given(root=directories, link=some.booleans())
def test_image_round_trip_of_version_2(root: Directory, link: bool) -> None:
    leaf = first_leaf(root)
    if link and leaf is not None:
        root.entries[b"!link"] = leaf
    fit_for_v2(root)
    image = write_image(root, version=FormatVersion.V2)
    back = read_image(image)
    assert format_dump(back) == format_dump(root)
    assert write_image(back, version=FormatVersion.V2) == image
    assert len(collect_objects(image)) == len(digests(root))


@settings(max_examples=60)
@given(root=directories, version=some.sampled_from(FormatVersion), like_c=some.booleans())
def test_dump_tree_image_round_trip(root: Directory, version: FormatVersion, like_c: bool) -> None:
    """The text of a tree makes the tree, and the tree of the text the same image."""
    if version is FormatVersion.V2:
        fit_for_v2(root)
    text = format_dump(root)
    again = parse_dump(text)
    assert format_dump(again) == text
    image = write_image(root, version=version, like_c=like_c)
    assert write_image(again, version=version, like_c=like_c) == image
    assert format_dump(read_image(image)) == text


def digests(root: Directory) -> set[bytes | None]:
    found: set[bytes | None] = set()
    todo = [root]
    for directory in todo:
        for node in directory.entries.values():
            if isinstance(node, Directory):
                todo.append(node)
            elif isinstance(node.content, External):
                found.add(node.content.digest)
    return found - {None}


@pytest.mark.parametrize("version", list(FormatVersion))
@pytest.mark.parametrize("name", ["no-newline", "honggfuzz-bigfile-with-acl", "bigfile-xattr"])
def test_image_of_dump_round_trip(name: str, version: FormatVersion) -> None:
    text = (DUMPS / f"{name}.dump").read_bytes()
    root = parse_dump(text)
    image = write_image(root, version=version, algorithm=Algorithm.SHA256)
    assert format_dump(read_image(memoryview(image))) == format_dump(root)


def test_image_objects() -> None:
    digest, named = b"\1" * 32, b"\2" * 32
    root = Directory(Stat())
    root.entries[b"a"] = Leaf(Stat(), External(100, digest))
    root.entries[b"b"] = Leaf(Stat(), External(100, None, b"02/" + b"02" * 31))
    root.entries[b"c"] = Leaf(Stat(), External(100, None, b"not/an/object"))
    root.entries[b"d"] = Leaf(Stat(), Inline(b"x"))
    for version in FormatVersion:
        image = write_image(root, version=version, algorithm=Algorithm.SHA256)
        assert collect_objects(image) == {digest, named}


def test_image_whiteouts_come_back() -> None:
    root = Directory(Stat(0o755, xattrs={b"trusted.overlay.origin": b"y"}))
    root.entries[b"gone"] = Leaf(Stat(0o600, xattrs={b"user.x": b"1"}), Device(st.S_IFCHR, 0))
    root.entries[b"0a"] = Leaf(Stat(0o600), Device(st.S_IFCHR, 0))
    image = write_image(root)
    assert b"overlay.whiteouts" in image
    assert format_dump(read_image(image)) == format_dump(root)
    plain = Directory(Stat(xattrs={b"user.overlay.opaque": b"x", b"trusted.overlay.opaque": b"y"}))
    assert format_dump(read_image(write_image(plain))) == format_dump(plain)


# -- Bad images

SMALL = Directory(Stat(0o755, xattrs={b"user.x": b"1", b"security.selinux": b"label"}))
SMALL.entries[b"dir"] = Directory(Stat(), {b"sub": Directory(Stat())})
SMALL.entries[b"file"] = Leaf(Stat(mtime=5), External(100, b"\x5a" * 64))
SMALL.entries[b"inline"] = Leaf(Stat(), Inline(b"hihi" * 12))
SMALL.entries[b"link"] = Leaf(Stat(), Symlink(b"/target"))


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (0, b"\0", "offset 0: not a composefs image"),
        (4, b"\2", "offset 4: unknown version 2"),
        (12, b"\3", "offset 4: unknown version 1, 3"),
        (1024, b"\0", "offset 1024: not an EROFS superblock"),
        (1032, b"\x0e", "unknown features"),
        (1036, b"\x09", "blocks of 2"),
        (1037, b"\1", "a feature that composefs doesn't use"),
        (1060, b"\xff", "ends before its 255 blocks do"),
        (1104, b"\1", "unknown features"),
        (1112, b"\1", "a feature that composefs doesn't use"),
        (1038, b"\xff\xff", "outside of the image"),
        (1152, b"\x02", "unknown inode format"),
        (1156, b"\x00\x80", "the root is not a directory"),
        (1158, b"\x09\x00", "9 links, but 1 subdirectories"),
        (1168, b"\xff\xff\xff\xff", "outside of the image"),
    ],
)
def test_image_damage_is_named(offset: int, value: bytes, problem: str) -> None:
    image = bytearray(write_image(SMALL))
    image[offset : offset + len(value)] = value
    with pytest.raises(FormatError, match=problem):
        read_image(bytes(image), "broken.img")


def test_image_truncated() -> None:
    image = write_image(SMALL)
    for size in (0, 31, 1151, 1152, 4096, len(image) - 1):
        with pytest.raises(FormatError, match="ends"):
            read_image(image[:size])


def test_image_validation_wants_all_stubs() -> None:
    image = write_image(SMALL)
    start = image.index(b"..000102")
    renamed = image[: start + 2] + b"0" + b"/" + image[start + 4 :]
    with pytest.raises(FormatError, match="bad name"):
        read_image(renamed)
    renamed = image[: start + 2] + b"0!" + image[start + 4 :]
    read_image(renamed)
    with pytest.raises(FormatError, match="outside of the root"):
        collect_objects(renamed)


def test_image_stubs_are_counted() -> None:
    root = Directory(Stat())
    image = write_image(root)
    # The entry of `ff` becomes one of another name, and of a fifo instead of a whiteout.
    name = image.rindex(b"fdfeff") + 4
    renamed = bytearray(image)
    renamed[name : name + 2] = b"fg"
    fifo = image.rindex(b"\xa4\x21")
    renamed[fifo : fifo + 2] = b"\xa4\x11"
    block = name // 4096 * 4096
    first = int.from_bytes(image[block + 8 : block + 10], "little")
    renamed[block + first - 2] = 5
    assert list(read_image(bytes(renamed)).entries) == [b"fg"]
    with pytest.raises(FormatError, match="hide all object directories"):
        collect_objects(bytes(renamed))


def test_image_depth_is_limited() -> None:
    root = node = Directory(Stat())
    for _ in range(2047):
        child = Directory(Stat())
        node.entries[b"d"] = child
        node = child
    image = write_image(root)
    assert read_image(image).find(b"/d" * 2047) is not None
    node.entries[b"d"] = Directory(Stat())
    with pytest.raises(FormatError, match="2048 deep"):
        read_image(write_image(root))


def test_image_damage_never_escapes() -> None:
    """Damaged anywhere, an image is read or refused; nothing else comes out."""
    rng = random.Random(2)
    sources: list[str] = []
    for version in (FormatVersion.V1, FormatVersion.V2):
        whole = write_image(SMALL, version=version)
        used = len(whole.rstrip(b"\0"))
        for _ in range(150):
            image = bytearray(whole)
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(1152, used)
                value = rng.choice([0, 1, 0xFF, 0x7F, 1 << 31, (1 << 32) - 1, rng.getrandbits(32)])
                struct.pack_into("<I", image, at, value)
            try:
                format_dump(read_image(bytes(image)))
                collect_objects(bytes(image))
            except FormatError as error:
                sources.append(error.source)
    assert len(sources) > 50
    assert set(sources) == {"image"}
