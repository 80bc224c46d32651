# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Layers made to harm: each is refused in one line, quickly, and nothing of it can be found."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from bootc import process
from bootc.composefs import layers
from bootc.composefs.assemble import assemble, encode_image
from bootc.composefs.digest import Algorithm
from bootc.composefs.fsck import check_repository
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.composefs.stored import load_image
from bootc.errors import BootcError, FormatError
from bootc.oci.layout import open_source
from bootc.tree import Directory, Inline, Leaf, walk
from tests.ocibuild import (
    END,
    TYPES,
    folder,
    header,
    member,
    padded,
    pax,
    pax_items,
    sha256,
    system_tar,
    write_blob,
    write_layout,
)

MIB = 1 << 20


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, secure=False)


def tree_of(repo: Repository, layout: Path, *tars: bytes, limit: int | None = None) -> Directory:
    reference = write_layout(layout, list(tars), how="gzip")
    with open_source(reference) as source:
        pulled = pull(repo, source, reference=reference, tag="t", unpacked_max=limit)
    return assemble(repo, pulled)


def refused(repo: Repository, layout: Path, *tars: bytes, limit: int | None = None) -> str:
    """The error's text. It is one line; the repository is sound after it."""
    with repo:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(BootcError) as caught:
            tree_of(repo, layout, *tars, limit=limit)
        repo.objects.close()
        assert len(os.listdir("/proc/self/fd")) <= before + 1
        assert check_repository(repo).ok
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


BASE = folder(b"usr") + folder(b"etc")


@pytest.mark.parametrize(
    ("tar", "problem"),
    [
        (member(b"usr/../../etc/passwd", b"x"), "`..` component"),
        (member(b"/../etc/passwd", b"x"), "`..` component"),
        (pax(path=b"a/../../b") + member(b"x"), "`..` component"),
        (header(b"usr/h", 0, b"1", link=b"../../etc/shadow"), "`..` component"),
        (header(b"usr/h", 0, b"1", link=b"usr"), "is a directory"),
        (header(b"usr/h", 0, b"1", link=b"usr/h"), "is missing"),
        (header(b"usr/h", 0, b"1", link=b"usr/later") + member(b"usr/later"), "is missing"),
        (member(b"gone/x", b"x"), "not in the image"),
        (header(b"usr/link", 0, b"2", link=b"/etc") + member(b"usr/link/x", b"x"), "not in the"),
        (member(b"usr/f", b"x") + member(b"usr/f/below", b"x"), "not in the image"),
        (header(b"usr/.wh...", 0), "whiteout of nothing"),
        (header(b"usr/null", 512, b"3") + bytes(512), "with a size"),
        (header(b"usr/fifo", 1, b"6") + bytes(512), "with a size"),
        (header(b"usr/dir", 5, b"5") + bytes(512), "with a size"),
        (header(b"usr/s", 7, b"2", link=b"x") + bytes(512), "with a size"),
        (header(b"big", numbers={"size": b"\x80" + bytes(3) + b"\x80" + bytes(7)}), "too large"),
        (header(b"big", numbers={"size": b"\xff" * 12}), "negative"),
        (
            header(b"big", numbers={"size": b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7}),
            "unpacks to",
        ),
        (pax(size=b"9223372036854775807") + header(b"big"), "unpacks to more than"),
        (pax(size=b"9223372036854775808") + header(b"big"), "bad PAX size"),
        (pax(size=b"-1") + header(b"big"), "bad PAX size"),
        (header(b"big", 10 << 30), "too early"),
        (header(b"pax", 2 * MIB, b"x") + bytes(2 * MIB), "extension header of"),
        (header(b"L", 9 << 30, b"L"), "extension header of"),
        (b"".join(pax(path=b"x") for _ in range(2)) + header(b"x"), "two PAX"),
        (member(b"usr/x", b"x" * 100)[:700], "too early"),
        (pax(path=b"n/" * 2100) + header(b"f"), "a path of"),
        (pax(path=b"n" * 256) + header(b"f"), "more than 255"),
    ],
)
def test_what_no_layer_may_say(repo: Repository, tmp_path: Path, tar: bytes, problem: str) -> None:
    assert problem in refused(repo, tmp_path / "oci", BASE + tar)


def test_absolute_paths_stay_in_the_tree(repo: Repository, tmp_path: Path) -> None:
    tar = BASE + member(b"/etc/passwd", b"ours") + member(b"//usr//x", b"") + END
    with repo:
        root = tree_of(repo, tmp_path / "oci", tar)
    assert [path for path, _ in walk(root)] == [b"/", b"/etc", b"/etc/passwd", b"/usr", b"/usr/x"]


def test_of_two_members_with_one_name_the_last_counts(repo: Repository, tmp_path: Path) -> None:
    tar = BASE + member(b"etc/x", b"1") + header(b"etc/y", 0, b"1", link=b"etc/x")
    tar += member(b"etc/x", b"2") + folder(b"etc", 0o700) + END
    with repo:
        root = tree_of(repo, tmp_path / "oci", tar)
    found = {path: node.content for path, node in walk(root) if isinstance(node, Leaf)}
    assert found == {b"/etc/x": Inline(b"2"), b"/etc/y": Inline(b"1")}


def test_what_follows_the_end_is_kept_and_not_read(repo: Repository, tmp_path: Path) -> None:
    tar = BASE + END + b"\xffgarbage" + member(b"../../x") + bytes(1000)
    with repo:
        root = tree_of(repo, tmp_path / "oci", tar)
        assert [path for path, _ in walk(root)] == [b"/", b"/etc", b"/usr"]
        again = assemble(repo, load_image(repo, "t"))
        assert encode_image(repo, again) == encode_image(repo, root)


def bomb(size: int) -> bytes:
    """A layer that is a thousand times as large as it looks."""
    return BASE + header(b"usr/zeros", size) + bytes(size + -size % 512) + END


@pytest.mark.parametrize("place", ["content", "after the end"])
def test_a_bomb_is_not_unpacked_to_its_end(repo: Repository, tmp_path: Path, place: str) -> None:
    tar = bomb(64 * MIB) if place == "content" else BASE + END + bytes(64 * MIB)
    said = refused(repo, tmp_path / "oci", tar, limit=MIB)
    assert f"unpacks to more than {MIB} bytes" in said


def test_a_bomb_in_a_bomb_is_only_a_file(repo: Repository, tmp_path: Path) -> None:
    inner = gzip.compress(bytes(MIB))
    with repo:
        root = tree_of(repo, tmp_path / "oci", BASE + member(b"usr/x.gz", inner), limit=MIB)
    assert isinstance(root.find("usr/x.gz"), Leaf)


def test_headers_without_end_are_refused(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "INLINE_RUN_MAX", MIB)
    tar = BASE + b"".join(header(b"usr/%d" % number) for number in range(6000))
    said = refused(repo, tmp_path / "oci", tar)
    assert "more than 1 MiB follow each other" in said


def test_global_headers_without_end_are_refused(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "INLINE_RUN_MAX", 2 * MIB)
    data = b"c" * (MIB - 600)
    block = bytearray(header(b"g", len(data), b"g"))
    tar = BASE + (bytes(block) + padded(data)) * 4
    assert "follow each other" in refused(repo, tmp_path / "oci", tar)


def test_members_are_not_kept_when_they_are_too_many(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "ENTRIES_KEPT", 3)
    reference = write_layout(tmp_path / "oci", [system_tar()])
    with repo:
        with open_source(reference) as source:
            pulled = pull(repo, source, reference=reference, tag="t")
        assert pulled.layers[0].entries is None
        assert assemble(repo, pulled).find("usr/bin/large") is not None


def rewrite_manifest(layout: Path, size: int) -> None:
    """Let the manifest say that its layer has this size."""
    index = json.loads((layout / "index.json").read_text())
    name = layout / "blobs/sha256" / index["manifests"][0]["digest"][7:]
    manifest = json.loads(name.read_bytes())
    manifest["layers"][0]["size"] = size
    index["manifests"][0] |= write_blob(layout, json.dumps(manifest).encode())
    (layout / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        (100, "is longer than the 100 bytes"),
        (1 << 20, "ends too early: it should be 1048576 bytes long"),
        (1 << 62, "Insufficient free space"),
    ],
)
def test_a_blob_has_the_size_that_the_manifest_says(
    repo: Repository, tmp_path: Path, size: int, problem: str
) -> None:
    reference = write_layout(tmp_path / "oci", [system_tar()])
    rewrite_manifest(tmp_path / "oci", size)
    with repo, open_source(reference) as source, pytest.raises(BootcError, match=problem):
        pull(repo, source, reference=reference, tag="t")
    assert not (tmp_path / "repo/streams").exists()


def test_room_is_needed_for_missing_layers_alone(repo: Repository, tmp_path: Path) -> None:
    """Spec §14, 19: upstream's check of free space counts every layer of the image."""
    reference = write_layout(tmp_path / "oci", [system_tar()])
    with repo:
        with open_source(reference) as source:
            first = pull(repo, source, reference=reference, tag="t")
        rewrite_manifest(tmp_path / "oci", 1 << 62)
        with open_source(reference) as source:
            second = pull(repo, source, reference=reference, tag="t")
    assert second.layers[0].diff_id == first.layers[0].diff_id
    assert second.manifest_digest != first.manifest_digest


def test_a_wrong_diff_id_is_told_from_a_damaged_blob(repo: Repository, tmp_path: Path) -> None:
    tar = system_tar()
    reference = write_layout(tmp_path / "oci", [tar], how="gzip", diff_ids=[sha256(b"other")])
    with repo, open_source(reference) as source, pytest.raises(FormatError) as caught:
        pull(repo, source, reference=reference, tag="t")
    assert "decompressed" in caught.value.source
    assert sha256(tar) in str(caught.value)


def test_rubbish_after_a_gzip_member_is_refused(repo: Repository, tmp_path: Path) -> None:
    tar = system_tar()
    blob = gzip.compress(tar) + b"rubbish"
    reference = write_layout(tmp_path / "oci", [tar], how="gzip")
    layout = tmp_path / "oci"
    index = json.loads((layout / "index.json").read_text())
    old = json.loads((layout / "blobs/sha256" / index["manifests"][0]["digest"][7:]).read_bytes())
    old["layers"] = [{"mediaType": TYPES["gzip"], **write_blob(layout, blob)}]
    index["manifests"][0] |= write_blob(layout, json.dumps(old).encode())
    (layout / "index.json").write_text(json.dumps(index))
    with repo, open_source(reference) as source, pytest.raises(FormatError, match="gzip"):
        pull(repo, source, reference=reference, tag="t")


def test_attributes_that_no_image_can_hold(repo: Repository, tmp_path: Path) -> None:
    many = pax_items(*((b"SCHILY.xattr.user.%d" % n, bytes(60000)) for n in range(15)))
    with repo:
        root = tree_of(repo, tmp_path / "oci", BASE + many + header(b"usr/x") + END)
        # Such attributes don't come into an image; where they are kept they are refused.
        encode_image(repo, root)
        node = root.find("usr/x")
        assert node is not None
        assert node.stat.xattrs == {}
        node.stat.xattrs = {b"user.%d" % n: bytes([n]) * 60000 for n in range(15)}
        with pytest.raises(BootcError):
            encode_image(repo, root)


@pytest.mark.parametrize("delay", [0.15, 0.25, 0.35, 0.5])
def test_a_killed_pull_leaves_a_sound_repository(
    repo: Repository, tmp_path: Path, delay: float
) -> None:
    tars = [
        BASE + b"".join(member(b"usr/%d-%d" % (n, i), os.urandom(300)) for i in range(900)) + END
        for n in range(4)
    ]
    reference = write_layout(tmp_path / "oci", tars, how="gzip")
    repo.close()
    program = [sys.executable, "-m", "bootc.composefs.cli.main", "--repo", str(tmp_path / "repo")]
    with process.running([*program, "oci", "pull", reference, "t"], stderr=process.PIPE) as child:
        assert child.stderr is not None
        child.stderr.readline()
        signal.sigtimedwait([], delay)
        child.send_signal(signal.SIGKILL)
        child.wait(60)
    with Repository.open(tmp_path / "repo") as again:
        report = check_repository(again)
        assert report.ok, report.to_text()
        assert not any(name.startswith(".") for name in os.listdir(tmp_path / "repo"))
    done = process.run([*program, "oci", "pull", reference, "t"])
    assert "tagged   t" in done.stdout
