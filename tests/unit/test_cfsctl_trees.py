# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl` about directories: which format it takes, what it stores, what it refuses."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bootc.composefs import (
    Algorithm,
    Directory,
    Repository,
    diff_trees,
    parse_dump,
    read_image,
)
from bootc.composefs.cli import main

Capture = pytest.CaptureFixture[str]
POLICY = "etc/selinux/test/contexts/files"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small operating system, with a policy that is too large to lie in the image."""
    top = tmp_path / "tree"
    for name in ("usr/bin", "run/lock", "boot/efi", "sysroot", POLICY):
        (top / name).mkdir(parents=True)
    (top / "usr/bin/tool").write_bytes(b"t" * 500)
    (top / "usr/bin/same").hardlink_to(top / "usr/bin/tool")
    (top / "etc/selinux/config").write_text("SELINUXTYPE=test\n")
    rules = "/.* system_u:object_r:any_t:s0\n/usr(/.*)? system_u:object_r:usr_t:s0\n"
    (top / POLICY / "file_contexts").write_text(rules + "# filler\n" * 20)
    (top / "usr").chmod(0o711)
    for folder, _, files in os.walk(top, topdown=False):
        for name in [*files, "."]:
            os.utime(f"{folder}/{name}", (1_000_000, 1_000_000))
    return top


@pytest.fixture
def where(tmp_path: Path) -> str:
    path = tmp_path / "repo"
    with Repository.init(path, algorithm=Algorithm.SHA256, secure=False):
        return str(path)


def said(capsys: Capture, *argv: object) -> str:
    """The stdout of a command that succeeds."""
    assert main.main([str(word) for word in argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(capsys: Capture, *argv: object) -> str:
    assert main.main([str(word) for word in argv]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_create_image_has_the_computed_id(tree: Path, where: str, capsys: Capture) -> None:
    for options in (
        [],
        ["--bootable"],
        ["--no-propagate-usr-to-root"],
        ["--xattrs", "keep-user-xattrs"],
    ):
        made = said(capsys, "--repo", where, "create-image", tree, "name", *options)
        computed = said(capsys, "--repo", where, "compute-id", tree, *options)
        assert made == f"sha256:{computed}"
        assert (
            said(capsys, "--no-repo", "--hash", "sha256", "compute-id", tree, *options) == computed
        )
        with Repository.open(where) as repo:
            assert dict(repo.image_refs()) == {"name": computed.strip()}


def test_commands_that_compute_store_nothing(tree: Path, where: str, capsys: Capture) -> None:
    before = sorted(Path(where).rglob("*"))
    for command in ("compute-id", "compute-karg", "create-dumpfile"):
        said(capsys, "--repo", where, command, tree)
    assert sorted(Path(where).rglob("*")) == before


@pytest.mark.parametrize("options", [[], ["--bootable"], ["--no-propagate-usr-to-root"]])
def test_dump_file_is_the_image(
    tree: Path, where: str, options: list[str], capsys: Capture
) -> None:
    said(capsys, "--repo", where, "create-image", tree, "name", *options)
    dumped = parse_dump(said(capsys, "--repo", where, "create-dumpfile", tree, *options).encode())
    with Repository.open(where) as repo:
        image = read_image(repo.read_image("name"))
    assert list(diff_trees(dumped, image)) == []


def test_bootable_tree_is_labelled_by_a_policy_that_is_not_stored(
    tree: Path, capsys: Capture
) -> None:
    dump = said(capsys, "--no-repo", "create-dumpfile", "--bootable", tree)
    root = parse_dump(dump.encode())
    for name, empty in (("boot", True), ("sysroot", True), ("run", True), ("usr", False)):
        folder = root.find_directory(name)
        assert isinstance(folder, Directory)
        assert (not folder.entries) is empty
    tool = root.find("usr/bin/tool")
    assert tool is not None
    assert tool.stat.xattrs[b"security.selinux"].startswith(b"system_u:object_r:usr_t:s0")
    assert root.stat.mode == 0o711


def test_kernel_argument_of_each_version(tree: Path, capsys: Capture) -> None:
    def karg(*options: str) -> str:
        return said(capsys, "--no-repo", *options, "compute-karg", tree).strip()

    digest = said(capsys, "--no-repo", "compute-id", "--bootable", tree).strip()
    assert karg() == f"composefs.digest=v1-sha512-12:{digest}"
    assert karg("--insecure") == f"composefs.digest=?v1-sha512-12:{digest}"
    assert re.fullmatch(r"composefs\.digest=v1-sha256-12:[0-9a-f]{64}", karg("--hash", "sha256"))
    assert karg("--erofs-version", "0").startswith("composefs.digest=v1-sha512-12:")
    assert re.fullmatch(r"composefs=[0-9a-f]{128}", karg("--erofs-version", "2"))
    assert re.fullmatch(r"composefs=\?[0-9a-f]{128}", karg("--erofs-version", "2", "--insecure"))


def test_kernel_argument_does_not_depend_on_the_security_of_a_repository(
    tree: Path, where: str, capsys: Capture
) -> None:
    with_repository = said(capsys, "--repo", where, "compute-karg", tree)
    assert with_repository == said(capsys, "--no-repo", "--hash", "sha256", "compute-karg", tree)
    assert "?" not in with_repository


def test_image_is_made_in_all_formats_of_the_repository(
    tree: Path, where: str, capsys: Capture
) -> None:
    meta = Path(where, "meta.json")
    meta.write_text(meta.read_text().replace('"default": 1', '"default": 1, "extra": [2]'))
    first = said(capsys, "--repo", where, "create-image", tree, "name").strip()
    second = said(capsys, "--repo", where, "--erofs-version", "2", "compute-id", tree).strip()
    assert first != f"sha256:{second}"
    with Repository.open(where) as repo:
        assert dict(repo.image_refs()) == {"name": first.removeprefix("sha256:")}
        assert repo.has_image(bytes.fromhex(second))


def test_refusals_about_directories(
    tree: Path, where: str, tmp_path: Path, capsys: Capture
) -> None:
    assert "stores an image" in refused(capsys, "--no-repo", "create-image", tree)
    missing = refused(capsys, "--no-repo", "compute-id", tmp_path / "missing")
    assert missing.startswith(f"error: cannot read {tmp_path / 'missing'}: No such file")
    assert "has no /usr" in refused(capsys, "--no-repo", "compute-id", tree / "usr")
    assert "nowhere" in refused(capsys, "--repo", tmp_path / "nowhere", "compute-id", tree)
    (tree / "boot/efi").rmdir()
    (tree / "boot").rmdir()
    assert "no directory /boot" in refused(capsys, "--no-repo", "compute-karg", tree)
    assert refused(capsys, "--repo", where, "create-image", "--bootable", tree, "name")
    with Repository.open(where) as repo:
        assert list(repo.image_refs()) == []
