# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Merging layers, and what is done to the tree of an image."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootc.composefs.assemble import (
    XattrMode,
    assemble,
    commit_image,
    merge_layer,
    transform_for_boot,
    transform_for_oci,
)
from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.erofs_reader import collect_objects
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.composefs.stored import load_image
from bootc.errors import BootcError, FormatError
from bootc.oci.layout import open_source
from bootc.oci.tarstream import Entry
from bootc.tree import Directory, External, Inline, Leaf, Stat, walk
from tests.ocibuild import END, folder, header, member, system_tar, write_layout


def directory(path: bytes, mode: int = 0o755, mtime: int = 0) -> Entry:
    return Entry(path, Directory(Stat(mode, mtime=mtime)))


def file(path: bytes, data: bytes = b"") -> Entry:
    return Entry(path, Leaf(Stat(0o644), Inline(data)))


def merged(*layers: list[Entry]) -> Directory:
    root = Directory(Stat())
    for number, layer in enumerate(layers):
        merge_layer(root, layer, f"layer {number}")
    return root


def paths(root: Directory) -> list[bytes]:
    return [path for path, _ in walk(root)]


def test_merge_directory_over_directory_replaces_the_metadata_only() -> None:
    root = merged([directory(b"d"), file(b"d/f")], [directory(b"d", 0o700), directory(b"", 0o711)])
    assert paths(root) == [b"/", b"/d", b"/d/f"]
    found = root.find_directory(b"d")
    assert found is not None
    assert found.stat.mode == 0o700
    assert root.stat.mode == 0o711


def test_merge_anything_else_replaces() -> None:
    root = merged([directory(b"d"), file(b"d/f"), file(b"x")], [file(b"d"), directory(b"x")])
    assert paths(root) == [b"/", b"/d", b"/x"]
    assert isinstance(root.find(b"d"), Leaf)
    with pytest.raises(FormatError, match="not in the image"):
        merged([directory(b"d"), file(b"d/f"), file(b"d"), file(b"d/g")])


def test_merge_whiteouts_act_at_once() -> None:
    lower = [directory(b"d"), file(b"d/a"), file(b"d/b"), file(b"e")]
    assert paths(merged(lower, [file(b"d/.wh.a"), file(b".wh.e"), file(b".wh.none")])) == [
        b"/",
        b"/d",
        b"/d/b",
    ]
    opaque = [file(b"d/early"), file(b"d/.wh..wh..opq"), file(b"d/late")]
    assert paths(merged(lower, opaque)) == [b"/", b"/d", b"/d/late", b"/e"]
    # A removed directory is gone for those who come later, although it was just in use.
    with pytest.raises(FormatError, match="not in the image"):
        merged(lower, [file(b"d/x"), file(b".wh.d"), file(b"d/y")])
    with pytest.raises(FormatError, match="whiteout of nothing"):
        merged(lower, [file(b".wh.")])


def test_merge_hard_links_share_what_is_there_at_that_moment() -> None:
    root = merged([file(b"a", b"1"), Entry(b"b", None, b"a")], [file(b"a", b"2")])
    one, two = root.find(b"a"), root.find(b"b")
    assert isinstance(one, Leaf)
    assert isinstance(two, Leaf)
    assert (one.content, two.content) == (Inline(b"2"), Inline(b"1"))
    same = merged([file(b"a"), Entry(b"b", None, b"a")])
    assert same.find(b"a") is same.find(b"b")
    with pytest.raises(FormatError, match="/gone is missing"):
        merged([Entry(b"b", None, b"gone")])
    with pytest.raises(FormatError, match="is a directory"):
        merged([directory(b"d"), Entry(b"b", None, b"d")])


def test_merge_leaves_the_entries_alone() -> None:
    layer = [directory(b"usr"), Entry(b"f", Leaf(Stat(xattrs={b"user.x": b"1"}), Inline(b"")))]
    transform_for_oci(merged(layer))
    again = merged(layer).find(b"f")
    assert again is not None
    assert again.stat.xattrs == {b"user.x": b"1"}


def test_transform_for_oci() -> None:
    xattrs = {b"security.capability": b"c", b"user.x": b"u", b"security.selinux": b"s"}
    usr = Stat(0o751, 1, 2, 1000, 5, dict(xattrs))
    layer = [
        Entry(b"usr", Directory(usr)),
        directory(b"run", mtime=77),
        file(b"run/lock"),
    ]
    root = merged(layer)
    transform_for_oci(root)
    assert root.stat == Stat(0o751, 1, 2, 1000, 5, {b"security.capability": b"c"})
    run = root.find_directory(b"run")
    assert run is not None
    assert (run.entries, run.stat.mtime, run.stat.mtime_nsec) == ({}, 1000, 5)
    root = merged(layer)
    transform_for_oci(root, xattrs=XattrMode.KEEP_USER)
    assert set(root.stat.xattrs) == {b"security.capability", b"user.x"}
    with pytest.raises(BootcError, match="no /usr"):
        transform_for_oci(merged([directory(b"etc")]))


def test_transform_for_boot_needs_its_mount_points(tmp_path: Path) -> None:
    with Repository.init(tmp_path / "r", secure=False) as repo:
        for missing in (b"boot", b"sysroot"):
            present = {b"boot", b"sysroot", b"usr"} - {missing}
            root = merged([directory(name) for name in sorted(present)])
            with pytest.raises(BootcError, match=f"no directory /{missing.decode()}"):
                transform_for_boot(root, repo)
        layer = [
            directory(b"usr", mtime=9),
            directory(b"boot"),
            file(b"boot/x"),
            directory(b"sysroot"),
        ]
        layer.append(Entry(b"f", Leaf(Stat(xattrs={b"security.selinux": b"l"}), Inline(b""))))
        root = merged(layer)
        transform_for_boot(root, repo)
        assert paths(root) == [b"/", b"/boot", b"/f", b"/sysroot", b"/usr"]
        boot, labelled = root.find(b"boot"), root.find(b"f")
        assert boot is not None
        assert labelled is not None
        assert (boot.stat.mtime, boot.stat.mtime_nsec) == (9, 0)
        assert labelled.stat.xattrs == {}


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_assemble_gives_the_same_image_from_memory_and_from_the_store(
    tmp_path: Path, algorithm: Algorithm
) -> None:
    second = folder(b"usr/bin") + header(b"usr/bin/.wh.soft") + member(b"usr/new", b"n" * 99) + END
    reference = write_layout(tmp_path / "oci", [system_tar(), second], how="zstd")
    with Repository.init(tmp_path / "r", algorithm=algorithm, secure=False) as repo:
        with open_source(reference) as source:
            pulled = pull(repo, source, reference=reference, tag="t")
        root = assemble(repo, pulled)
        image = commit_image(repo, root, name="t")
        assert commit_image(repo, assemble(repo, load_image(repo, "t"))) == image
        assert b"/usr/bin/soft" not in paths(root)
        new, hard = root.find(b"usr/new"), root.find(b"usr/bin/hard")
        assert isinstance(new, Leaf)
        assert isinstance(hard, Leaf)
        assert hard is root.find(b"usr/bin/large")
        assert new.content == External(99, digest_bytes(b"n" * 99, algorithm))
        data = repo.read_object(bytes.fromhex(image.id))
        assert len(data) == image.size
        for digest in collect_objects(data):
            repo.read_object(digest)
        transform_for_boot(root, repo)
        assert commit_image(repo, root).id != image.id
        assert b"/boot/vmlinuz" not in paths(root)
