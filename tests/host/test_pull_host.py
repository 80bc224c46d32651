# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Pulls of what GNU tar and skopeo make of a real tree."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from bootc import process
from bootc.composefs.assemble import assemble, commit_image, encode_image, transform_for_oci
from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.fsck import check_repository
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.composefs.scan import find_digest, scan_directory, store_content
from bootc.errors import BootcError
from bootc.oci.layout import open_source
from bootc.tree import walk
from tests.ocibuild import END, folder, member, write_layout

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand real files, with everything that a tar can say about some more."""
    root = tmp_path_factory.mktemp("tree")
    (root / "usr").mkdir()
    process.run(["cp", "-a", "/etc", "/usr/lib/systemd", str(root / "usr")])
    odd = root / "usr/odd"
    odd.mkdir(mode=0o1777)
    (odd / "empty").touch()
    (odd / ("long" * 60)).write_bytes(b"l" * 65)
    os.link(odd / ("long" * 60), odd / "hard")
    (odd / os.fsdecode(b"not-utf8-\xff")).write_bytes(b"x" * 64)
    (odd / "link").symlink_to("t" * 300)
    os.mkfifo(odd / "fifo", 0o600)
    os.mknod(odd / "null", 0o20644, os.makedev(1, 3))
    (odd / "setuid").write_bytes(b"#!")
    os.chown(odd / "setuid", 70000, 3_000_000)
    (odd / "setuid").chmod(0o4755)
    os.utime(odd / "setuid", ns=(0, 1_234_567_890_123_456_789))
    with (odd / "large").open("wb") as file:
        file.write(os.urandom(9_000_001))
    os.setxattr(odd / "large", "user.note", b"kept only if asked for")
    return root


def pack(tree: Path, layout: Path, how: str, kind: str = "pax") -> str:
    options = ["--pax-option=delete=atime,delete=ctime", "--xattrs"] if kind == "pax" else []
    tar = layout.parent / "layer.tar"
    argv = ["tar", "-C", str(tree), f"--format={kind}", *options, "--numeric-owner"]
    process.run([*argv, "-cf", str(tar), "."])
    try:
        return write_layout(layout, [tar.read_bytes()], how=how)
    finally:
        tar.unlink()


def pulled_id(repo: Repository, reference: str) -> str:
    with open_source(reference) as source:
        pulled = pull(repo, source, reference=reference, tag=reference)
    return commit_image(repo, assemble(repo, pulled)).id


@pytest.mark.parametrize("how", ["none", "gzip", "zstd"])
def test_pulled_layer_is_the_directory_it_was_made_of(tree: Path, tmp_path: Path, how: str) -> None:
    reference = pack(tree, tmp_path / "oci", how)
    with Repository.init(tmp_path / "r", algorithm=Algorithm.SHA512, secure=False) as repo:
        found = pulled_id(repo, reference)
        root = scan_directory(tree, store_content(repo))
        transform_for_oci(root)
        assert commit_image(repo, root).id == found
        root = scan_directory(tree, find_digest(repo.algorithm))
        transform_for_oci(root)
        assert digest_bytes(encode_image(repo, root), repo.algorithm).hex() == found


def test_gnu_tar_differs_in_nothing_but_nanoseconds(tree: Path, tmp_path: Path) -> None:
    reference = pack(tree, tmp_path / "oci", "none", kind="gnu")
    with Repository.init(tmp_path / "r", algorithm=Algorithm.SHA256, secure=False) as repo:
        with open_source(reference) as source:
            pulled = pull(repo, source, reference=reference)
        root = assemble(repo, pulled)
        scanned = scan_directory(tree, find_digest(repo.algorithm))
        transform_for_oci(scanned)
        for _, node in walk(scanned):
            node.stat.mtime_nsec = 0
        assert encode_image(repo, root) == encode_image(repo, scanned)


@pytest.mark.skipif(process.find_program("skopeo") is None, reason="needs skopeo")
@pytest.mark.parametrize("transport", ["dir", "oci-archive"])
def test_skopeo_proxy_gives_the_same_image(tree: Path, tmp_path: Path, transport: str) -> None:
    reference = pack(tree, tmp_path / "oci", "gzip")
    copy = f"{transport}:{tmp_path / 'copy'}"
    process.run(["skopeo", "--insecure-policy", "copy", "--quiet", reference, copy])
    with Repository.init(tmp_path / "r", algorithm=Algorithm.SHA256, secure=False) as repo:
        with open_source(reference) as ours, open_source(copy) as theirs:
            assert theirs.manifest_digest == ours.manifest_digest
            assert theirs.config == ours.config
        by_skopeo = pulled_id(repo, copy)
    with Repository.init(tmp_path / "r2", algorithm=Algorithm.SHA256, secure=False) as repo:
        assert pulled_id(repo, reference) == by_skopeo


@pytest.mark.skipif(process.find_program("skopeo") is None, reason="needs skopeo")
def test_skopeo_proxy_failures_are_reported(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(BootcError, match="no such file"), open_source(f"dir:{tmp_path / 'none'}"):
        pass
    reference = pack(tree, tmp_path / "oci", "none")
    copy = f"dir:{tmp_path / 'copy'}"
    process.run(["skopeo", "--insecure-policy", "copy", "--quiet", reference, copy])
    with open_source(copy) as source:
        layer = json.loads(source.manifest)["layers"][0]["digest"]
        # Giving up half-way leaves the connection usable.
        with source.open_blob(layer) as blob:
            assert len(blob.read(1000)) == 1000
        with source.open_blob(layer) as blob:
            assert len(blob.read(1000)) == 1000


def test_a_full_file_system_ends_a_pull_in_one_line(tmp_path: Path) -> None:
    tars = [
        folder(b"usr")
        + b"".join(
            member(b"usr/%d-%d" % (layer, number), b"%d %d " % (layer, number) * 4000)
            for number in range(400)
        )
        + END
        for layer in range(3)
    ]
    reference = write_layout(tmp_path / "oci", tars, how="gzip")
    small = tmp_path / "small"
    small.mkdir()
    process.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(small)])
    try:
        with Repository.init(small / "r", algorithm=Algorithm.SHA256, secure=False) as repo:
            with (
                open_source(reference) as source,
                pytest.raises(BootcError, match="No space left") as caught,
            ):
                pull(repo, source, reference=reference, tag="t", unpacked_max=1 << 30)
            assert "make room" in str(caught.value.hint)
            assert check_repository(repo).ok
            assert list(repo.tags()) == []
            assert not any(name.startswith(".") for name in os.listdir(small / "r/objects"))
        process.run(["mount", "-o", "remount,size=64m", str(small)])
        with Repository.open(small / "r") as repo, open_source(reference) as source:
            pull(repo, source, reference=reference, tag="t")
            assert check_repository(repo).ok
    finally:
        process.run(["umount", str(small)])


def cfsctl(*args: str) -> process.Completed:
    script = "from bootc.composefs.cli.main import entry; entry()"
    return process.run([sys.executable, "-c", script, *args], check=False)


def test_cfsctl_round_trip(tree: Path, tmp_path: Path) -> None:
    reference = pack(tree, tmp_path / "oci", "zstd")
    repo = f"--repo={tmp_path / 'r'}"
    made = cfsctl(repo, "init", "--insecure", "--algorithm=fsverity-sha256-12")
    assert made.stdout == (
        f"Initialized composefs repository at {tmp_path / 'r'}\n"
        "  algorithm: fsverity-sha256-12\n  verity:    not required (insecure)\n"
    )
    pulled = cfsctl(repo, "oci", "pull", reference, "name")
    assert pulled.status == 0, pulled.stderr
    said = dict(line.split(maxsplit=1) for line in pulled.stdout.splitlines())
    assert said["tagged"] == "name"
    listed = json.loads(cfsctl(repo, "oci", "images", "--json").stdout)["images"]
    assert [(image["name"], image["manifest_digest"]) for image in listed] == [
        ("name", said["manifest"])
    ]
    computed = cfsctl(repo, "oci", "compute-id", "name").stdout
    assert cfsctl(repo, "compute-id", str(tree)).stdout == computed
    created = cfsctl(repo, "create-image", str(tree), "dir/name").stdout
    assert created == f"sha256:{computed}"
    assert "dir/name" in cfsctl(repo, "images", "--no-trunc").stdout
    failed = cfsctl(repo, "oci", "compute-id", "other")
    assert failed.status == 1
    assert failed.stderr.startswith("error: there is no image other")
    assert "Traceback" not in failed.stderr
