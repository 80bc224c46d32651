# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What an install reads from an image's documents and tree, and the copying of folders."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc.boot.entries import OsRelease
from bootc.composefs.repository import Repository
from bootc.deploy import image, kernel
from bootc.deploy.uki import Uki
from bootc.errors import BootcError
from bootc.oci.reference import ImageReference, Transport
from bootc.tree import (
    Directory,
    External,
    Inline,
    Leaf,
    Node,
    Sparse,
    Special,
    Stat,
    Symlink,
)

REFERENCE = ImageReference(image="/x", transport=Transport.OCI)
LAYER = "application/vnd.oci.image.layer.v1.tar"


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "repo", secure=False) as found:
        yield found


def _file(data: bytes = b"", mode: int = 0o644) -> Leaf:
    return Leaf(Stat(mode=mode, uid=os.getuid(), gid=os.getgid()), Inline(data))


def _tree(files: dict[str, Node]) -> Directory:
    root = Directory(Stat(mode=0o755, uid=os.getuid(), gid=os.getgid()))
    for path, node in files.items():
        here = root
        *folders, name = path.encode().split(b"/")
        for folder in folders:
            below = here.entries.setdefault(folder, Directory(root.stat.copy()))
            assert isinstance(below, Directory)
            here = below
        here.entries[name] = node
    return root


def test_facts() -> None:
    digest = "sha256:" + "0" * 64
    manifest = {
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest,
            "size": 2,
        },
        "layers": [
            {"mediaType": f"{LAYER}+gzip", "digest": digest, "size": 100},
            {"mediaType": LAYER, "digest": digest, "size": 10},
        ],
    }
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": {"containers.bootc": "1"}},
        "rootfs": {"type": "layers", "diff_ids": [digest, digest]},
    }
    facts = image.read_facts(
        REFERENCE, digest, json.dumps(manifest).encode(), json.dumps(config).encode()
    )
    assert (facts.download_size, facts.disk_size) == (110, 210)
    assert facts.is_labelled_bootable
    assert facts.architecture == "amd64"


def test_find_kernel() -> None:
    vmlinuz, initrd = _file(b"k"), _file(b"i")
    tree = _tree(
        {
            "usr/lib/modules/6.12/vmlinuz": vmlinuz,
            "usr/lib/modules/6.12/initramfs.img": initrd,
            "usr/lib/modules/extra/x.ko": _file(),
        }
    )
    assert kernel.find_kernel(tree) == kernel.Kernel(version="6.12", vmlinuz=vmlinuz, initrd=initrd)


def test_a_unified_kernel_image_is_not_installed_yet() -> None:
    file = _file(b"MZ")
    names = ["boot/EFI/Linux/1.efi", "boot/EFI/Linux/1.addon.efi", "usr/lib/modules/1/vmlinuz"]
    found = kernel.find_kernel(_tree(dict.fromkeys(names, file)))
    assert found == Uki(name="1.efi", file=file)
    with pytest.raises(BootcError, match="cannot be installed yet") as caught:
        kernel.need_separate(found)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["usr/bin/sh"], "has no kernel"),
        (["usr/lib/modules/1/x.ko"], "has no kernel"),
        (["usr/lib/modules/1/vmlinuz"], "no initramfs.img beside its kernel in usr/lib/modules/1"),
        (["usr/lib/modules/1/vmlinuz", "usr/lib/modules/2/vmlinuz"], "several kernels: 1, 2"),
        (["boot/EFI/Linux/1.efi", "boot/EFI/Linux/2.efi"], "several unified kernel images: 1"),
    ],
)
def test_images_that_cannot_boot(names: list[str], problem: str) -> None:
    with pytest.raises(BootcError, match=problem) as caught:
        kernel.find_kernel(_tree({name: _file() for name in names}))
    assert caught.value.hint


def test_os_release_and_kargs(repo: Repository) -> None:
    tree = _tree(
        {
            "usr/lib/os-release": _file(b'ID=debian\nVERSION_ID="13"\n'),
            "usr/lib/bootc/kargs.d/20-b.toml": _file(b'kargs = ["b"]'),
            "usr/lib/bootc/kargs.d/10-a.toml": _file(b'kargs = ["a"]'),
            "usr/lib/bootc/kargs.d/README": _file(b"?"),
        }
    )
    assert image.read_os_release(repo, tree) == OsRelease(os_id="debian", version="13")
    assert image.read_os_release(repo, _tree({})) == OsRelease()
    assert image.read_kargs_d(repo, tree, "x86_64") == ["a", "b"]
    assert image.read_kargs_d(repo, _tree({}), "x86_64") == []


def test_write_tree(repo: Repository, tmp_path: Path) -> None:
    big = bytes(range(256)) * 300
    shared = _file(b"shared")
    shared.stat.mtime, shared.stat.mtime_nsec = 1_700_000_000, 123
    tree = _tree(
        {
            "conf/private": _file(b"secret", 0o600),
            "conf/big": Leaf(_file().stat, External(len(big), repo.ensure_object(big))),
            "hole": Leaf(_file().stat, Sparse(3_000_000)),
            "link": Leaf(_file().stat, Symlink(b"../elsewhere")),
            "fifo": Leaf(_file().stat, Special(0o010000)),
            "socket": Leaf(_file().stat, Special(0o140000)),
            "one": shared,
            "two": shared,
        }
    )
    conf = tree.find_directory("conf")
    assert conf is not None
    conf.stat.mode = 0o2750
    shared.stat.xattrs[b"user.test"] = b"yes"
    target = tmp_path / "etc"
    image.write_tree(repo, tree, str(target))
    assert (target / "conf/big").read_bytes() == big
    assert (target / "conf").stat().st_mode & 0o7777 == 0o2750
    assert (target / "conf/private").stat().st_mode & 0o7777 == 0o600
    assert (target / "hole").stat().st_size == 3_000_000
    assert os.readlink(target / "link") == "../elsewhere"
    assert (target / "fifo").is_fifo()
    assert not (target / "socket").exists()
    assert (target / "one").samefile(target / "two")
    assert (target / "one").stat().st_mtime_ns == 1_700_000_000_000_000_123
    assert os.getxattr(target / "one", "user.test") == b"yes"
    with pytest.raises(FileExistsError):
        image.write_tree(repo, tree, str(target))
