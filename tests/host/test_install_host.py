# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A whole install into a loop-mounted ext4, with a folder as the ESP and a fake bootctl.

It runs in a process of its own, because an install gives its process a mount namespace.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootc import process
from bootc.composefs.repository import Repository
from bootc.deploy import state
from bootc.deploy.unified import find_stored
from bootc.linux import blockdev
from bootc.podman.claims import claim_name
from bootc.podman.storage import find_storage
from tests.ocibuild import END, folder, member, write_layout
from vmtests import podman

pytestmark = pytest.mark.root

PROGRAM = """
import sys
from bootc.errors import BootcError
from bootc.deploy.image import read_facts
from bootc.deploy.unified import NOT_UNIFIED, Unify
from bootc.install.plan import InstallPlan, TargetPlan
from bootc.install.run import apply_install
from bootc.oci.layout import open_source
from bootc.oci.reference import parse_imgref
from bootc.spec import Bootloader

reference, root, esp = sys.argv[1:4]
with open_source(reference) as source:
    image = parse_imgref(reference)
    plan = InstallPlan(
        image=read_facts(image, source.manifest_digest, source.manifest, source.config),
        target_image=parse_imgref("docker://quay.io/x/y:1"),
        bootloader=Bootloader.SYSTEMD,
        destination=TargetPlan(root=root, esp_node=None, esp_mount=esp, finalize=False),
        root_kargs=("rw",),
        cli_kargs=("quiet",),
        karg_deletes=(),
        allow_missing_verity="verity-wanted" not in sys.argv,
        root_ssh_authorized_keys="ssh-ed25519 AAAA me\\n",
        unify=Unify(wanted=True, allow_copy=True) if "unified" in sys.argv else NOT_UNIFIED,
    )
    try:
        print(apply_install(plan, source).deployment)
    except BootcError as error:
        print(error.message)
        sys.exit(1)
"""
BOOTCTL = """#!/bin/sh
echo "$@" >> "$BOOTCTL_LOG"
case $1 in
  --version) echo "systemd 257 (257.9)" ;;
  install) cat "$3/usr/lib/systemd/boot/efi/systemd-bootx64.efi" > /dev/null || exit 1
    grep -q '^ID=' "$3/etc/os-release" || exit 1
    mkdir -p "$3$5/EFI/BOOT" ;;
esac
"""
KVER = b"usr/lib/modules/6.12"


def _tar(*, kernel: bool = True) -> bytes:
    names = (
        b"usr",
        b"usr/lib",
        b"usr/lib/modules",
        KVER,
        b"usr/lib/systemd",
        b"usr/lib/systemd/boot",
        b"usr/lib/systemd/boot/efi",
        b"boot",
        b"sysroot",
        b"etc",
        b"var",
        b"var/lib",
        b"run",
        b"usr/lib/bootc",
        b"usr/lib/bootc/kargs.d",
    )
    folders = b"".join(folder(name) for name in names)
    boot = member(KVER + b"/vmlinuz", b"kernel" * 100) + member(KVER + b"/initramfs.img", b"ird")
    return (
        folder(b"./")
        + folders
        + (boot if kernel else b"")
        + member(b"usr/lib/os-release", b'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian 13"\n')
        + member(b"usr/lib/bootc/kargs.d/10-x.toml", b'kargs = ["from=image"]')
        + member(b"usr/lib/systemd/boot/efi/systemd-bootx64.efi", b"MZ")
        + member(b"etc/hostname", b"box\n")
        + member(b"etc/large", b"0123456789" * 100)
        + member(b"var/lib/state", b"kept")
        + END
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    root: Path
    esp: Path
    bin: Path

    def install(self, reference: str, *more: str) -> process.Completed:
        env = {"PATH": f"{self.bin}:{os.environ['PATH']}", "BOOTCTL_LOG": str(self.bin / "log")}
        argv = [sys.executable, "-c", PROGRAM, reference, str(self.root), str(self.esp), *more]
        return process.run(argv, env=env, check=False, timeout=120)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    found = Target(root=tmp_path / "root", esp=tmp_path / "esp", bin=tmp_path / "bin")
    for path in (found.root, found.esp, found.bin):
        path.mkdir()
    (found.bin / "bootctl").write_text(BOOTCTL)
    (found.bin / "bootctl").chmod(0o755)
    image = tmp_path / "root.ext4"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    process.run(["mkfs.ext4", "-q", "-O", "verity", str(image)])
    process.run(["mount", "-o", "loop", str(image), str(found.root)])
    try:
        yield found
    finally:
        process.run(["umount", str(found.root)])


def _mounts() -> list[str]:
    return [mount.target for mount in blockdev.read_mounts()]


def test_install_into_a_file_system(target: Target, tmp_path: Path) -> None:
    reference = write_layout(tmp_path / "oci", [_tar()], how="gzip")
    before = _mounts()
    done = target.install(reference)
    assert done.status == 0, done.stderr + done.stdout
    deployment = done.stdout.splitlines()[-1]
    assert _mounts() == before
    home = target.root / "state/deploy" / deployment
    assert (home / "etc/hostname").read_text() == "box\n"
    assert (home / "etc/large").read_bytes() == b"0123456789" * 100
    assert "/root/.ssh/authorized_keys" in (home / "etc/tmpfiles.d/bootc-root-ssh.conf").read_text()
    assert (home / "var/lib/state").read_text() == "kept"
    origin = state.read_origin(str(target.root), deployment)
    assert origin is not None
    assert str(origin.image) == "quay.io/x/y:1"
    assert (
        origin.boot_digest
        == (process.run(["sha256sum"], stdin=b"kernel" * 100 + b"ird").stdout.split()[0])
    )
    with Repository.open(target.root / "composefs") as repo:
        assert repo.has_image(bytes.fromhex(deployment))
        tags = [tag for tag, _ in repo.tags()]
    assert tags == [f"localhost/bootc-{origin.manifest_digest}"]
    assert (target.root / "composefs").stat().st_mode & 0o777 == 0o700
    files = f"/EFI/Linux/bootc_composefs-{deployment}"
    assert (target.esp / files[1:] / "initrd").read_bytes() == b"ird"
    entry = (target.esp / "loader/entries/bootc_debian-13-1.conf").read_text()
    assert entry == (
        f"title Debian 13\nversion 13\nlinux {files}/vmlinuz\ninitrd {files}/initrd\n"
        f"options rw quiet composefs=?{deployment} from=image\nsort-key bootc-debian-0\n"
    )
    said = (target.bin / "log").read_text()
    assert "--esp-path /efi --no-variables --random-seed no" in said


def test_install_with_unified_storage(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in podman.environment().items():
        monkeypatch.setenv(name, value)
    reference = write_layout(tmp_path / "oci", [_tar()], how="gzip")
    before = _mounts()
    done = target.install(reference, "unified")
    assert done.status == 0, done.stderr + done.stdout
    assert _mounts() == before
    storage = find_storage(str(target.root))
    assert storage is not None
    origin = state.read_origin(str(target.root), done.stdout.splitlines()[-1])
    assert origin is not None
    assert origin.manifest_digest is not None
    [image] = storage.images()
    assert image.digest == origin.manifest_digest
    assert {"quay.io/x/y:1", claim_name(origin.manifest_digest)} <= set(image.names)
    assert find_stored(storage.images(), origin.image, None) == image
    with Repository.open(target.root / "composefs") as repo:
        assert [tag for tag, _ in repo.tags()] == [claim_name(origin.manifest_digest)]
    assert os.path.samefile(target.root / "ostree/bootc/storage", storage.path)


def test_no_kernel_and_nothing_to_boot(target: Target, tmp_path: Path) -> None:
    reference = write_layout(tmp_path / "oci", [_tar(kernel=False)])
    before = _mounts()
    done = target.install(reference)
    assert done.status == 1
    assert "the image has no kernel" in done.stdout
    assert _mounts() == before
    assert not any(target.esp.iterdir())


def test_without_verity_nothing_is_written(target: Target, tmp_path: Path) -> None:
    reference = write_layout(tmp_path / "oci", [_tar()])
    done = target.install(reference, "verity-wanted")
    if done.status == 0:
        pytest.skip("this kernel has fs-verity")
    assert "has no fs-verity" in done.stdout
    assert os.listdir(target.root) == ["lost+found"]
