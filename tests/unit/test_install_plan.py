# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Install plans: what is decided, what is refused, the kernel command line, the source."""

from dataclasses import replace
from pathlib import Path

import pytest

from bootc.deploy.image import ImageFacts
from bootc.errors import BootcError
from bootc.install import plan as plans
from bootc.install import verbs
from bootc.install.config import InstallConfig
from bootc.install.disk import DiskPlan
from bootc.install.options import (
    MIB,
    BlockSetup,
    DiskOptions,
    FilesystemOptions,
    InstallOptions,
    RootFilesystem,
)
from bootc.install.plan import InstallPlan, TargetPlan
from bootc.install.run import kernel_arguments
from bootc.oci.model import this_platform
from bootc.oci.reference import ImageReference, Transport, parse_imgref
from bootc.spec import Bootloader
from tests.ocibuild import write_layout
from tests.sysroots import ImageContent

ID = "ab" * 64
REFERENCE = ImageReference(image="/x:tag", transport=Transport.OCI)
IMAGE = ImageFacts(
    reference=REFERENCE,
    digest="sha256:" + "0" * 64,
    architecture=this_platform()[1],
    labels=(),
    download_size=143 * MIB,
    disk_size=300 * MIB,
)
PLAN = InstallPlan(
    image=IMAGE,
    target_image=REFERENCE,
    bootloader=Bootloader.SYSTEMD,
    destination=TargetPlan(root="/mnt", esp_node=None, esp_mount="/mnt/boot", finalize=True),
    root_kargs=("rw", "install=1"),
    cli_kargs=("quiet", "console=ttyS0"),
    karg_deletes=(),
    allow_missing_verity=False,
    root_ssh_authorized_keys=None,
)
EXT4 = InstallConfig(root_filesystem=RootFilesystem.EXT4)


@pytest.fixture
def bootctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name is on PATH."""
    for name in ("bootctl", "sfdisk", "mkfs.fat", "mkfs.ext4"):
        fake = tmp_path / name
        fake.write_text("#!/bin/sh\nexit 1\n")
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_order_of_kernel_arguments() -> None:
    args = kernel_arguments(PLAN, ID, ["console=ttyS0", "image=1"])
    assert args == ["rw", "install=1", "quiet", "console=ttyS0", f"composefs={ID}", "image=1"]


def test_deletions_spare_the_command_line() -> None:
    plan = replace(PLAN, karg_deletes=("install", "image=1", "quiet"), allow_missing_verity=True)
    args = kernel_arguments(plan, ID, ["image=1", "image=2"])
    assert args == ["rw", "quiet", "console=ttyS0", f"composefs=?{ID}", "image=2"]


def test_plan_for_people() -> None:
    assert PLAN.describe() == (
        "image oci:/x:tag (143 MiB to read)\n"
        f"  digest {IMAGE.digest}\n"
        "  updates come from oci:/x:tag\n"
        "file system at /mnt\n"
        "  ESP: mounted at /mnt/boot\n"
        "boot loader systemd\n"
        "kernel arguments rw install=1 quiet console=ttyS0 composefs=<digest>\n"
    )


PLAIN = InstallOptions()
DISK = DiskOptions(device="/dev/null")


def _refused(
    *,
    options: InstallOptions = PLAIN,
    disk: DiskOptions = DISK,
    config: InstallConfig = EXT4,
    image: ImageFacts = IMAGE,
) -> BootcError:
    with pytest.raises(BootcError) as caught:
        plans.plan_to_disk(options, disk, config, image)
    assert caught.value.hint
    return caught.value


def test_no_root_file_system_type() -> None:
    error = _refused(config=InstallConfig())
    assert "which root file system" in error.message
    assert "--filesystem" in (error.hint or "")


@pytest.mark.parametrize("loader", [Bootloader.GRUB, Bootloader.GRUB_CC, Bootloader.NONE])
def test_other_boot_loaders(loader: Bootloader) -> None:
    assert f"boot loader {loader}" in _refused(options=InstallOptions(bootloader=loader)).message
    assert "cannot be installed yet" in _refused(config=replace(EXT4, bootloader=loader)).message


def test_block_setup() -> None:
    luks = DiskOptions(device="/dev/null", block_setup=BlockSetup.TPM2_LUKS)
    assert "does not allow --block-setup tpm2-luks" in _refused(disk=luks).message
    both = replace(EXT4, block=(BlockSetup.TPM2_LUKS, BlockSetup.DIRECT))
    assert "cannot be done yet" in _refused(config=both).message


def test_unified_storage_needs_reflinks_or_leave_to_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "podman").write_text("#!/bin/sh\n")
    (tmp_path / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    wanted = InstallOptions(unified_storage=True)
    memory = TargetPlan(root="/dev/shm", esp_node=None, esp_mount="/x", finalize=True)
    for kind, has_reflinks in (("ext4", False), ("btrfs", True), ("xfs", True)):
        disk = DiskPlan(
            device="/dev/x",
            disk="x",
            size=1,
            wipe=False,
            partitions=(),
            filesystem=RootFilesystem(kind),
            root_uuid="",
        )
        if has_reflinks:
            assert plans._check_unified(wanted, disk).wanted
        else:
            with pytest.raises(BootcError, match="ext4 has no reflinks") as caught:
                plans._check_unified(wanted, disk)
            assert "--allow-copy" in str(caught.value.hint)
    with pytest.raises(BootcError, match="the file system at /dev/shm has no reflinks"):
        plans._check_unified(wanted, memory)
    allowed = plans._check_unified(replace(wanted, allow_copy=True), memory)
    assert (allowed.wanted, allowed.allow_copy) == (True, True)
    plan = replace(PLAN, unify=allowed)
    assert "stored in bootc's container storage, too (each file twice)" in plan.describe()
    assert not plans._check_unified(PLAIN, memory).wanted


def test_unified_storage_needs_podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TargetPlan(root="/dev/shm", esp_node=None, esp_mount="/x", finalize=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BootcError, match="podman is not on PATH") as caught:
        plans._check_unified(InstallOptions(unified_storage=True), target)
    assert "install podman" in str(caught.value.hint)


def test_foreign_architecture() -> None:
    error = _refused(image=replace(IMAGE, architecture="vax"))
    assert "the image is for vax" in error.message


def test_no_bootctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bootc.process.find_program", lambda name: None)
    error = _refused()
    assert error.message == "bootctl is not on PATH"
    assert "systemd-boot" in (error.hint or "")


@pytest.mark.usefixtures("bootctl")
def test_not_a_disk() -> None:
    assert "/dev/null is not a block device" in _refused().message


@pytest.mark.usefixtures("bootctl")
def test_target_must_be_a_mount_point(tmp_path: Path) -> None:
    with pytest.raises(BootcError, match="is not the mount point"):
        plans.plan_to_filesystem(
            InstallOptions(), FilesystemOptions(root=str(tmp_path)), EXT4, IMAGE
        )


def test_free_space() -> None:
    plans.check_free_space(IMAGE, 143 * MIB)
    with pytest.raises(BootcError) as caught:
        plans.check_free_space(IMAGE, 100 * MIB)
    assert caught.value.message == (
        "Insufficient free space for oci:/x:tag (available: 100 MiB required: 143 MiB)"
    )


def test_target_image() -> None:
    named = InstallOptions(target_imgref="quay.io/x/y:1")
    none = InstallConfig()
    assert str(plans._target_image(named, none, IMAGE)) == "quay.io/x/y:1"
    local = replace(named, target_transport="containers-storage")
    assert plans._target_image(local, none, IMAGE).imgref == "containers-storage:quay.io/x/y:1"
    assert plans._target_image(InstallOptions(), none, IMAGE) == REFERENCE


@pytest.mark.parametrize(
    ("options", "config"),
    [
        (InstallOptions(enforce_sigpolicy=True), InstallConfig()),
        (InstallOptions(), InstallConfig(enforce_container_sigpolicy=True)),
    ],
)
def test_updates_that_a_policy_verifies(options: InstallOptions, config: InstallConfig) -> None:
    """Spec §14, 20: the origin keeps how updates are verified."""
    found = plans._target_image(options, config, IMAGE)
    assert found == replace(REFERENCE, signature="containerPolicy")


CONTAINER = (
    'engine="podman-5.4.2"\nname="x"\nid="1"\nimage="localhost/bootc:latest"\n'
    'imageid="abc"\nrootless=0\n'
)


def test_source_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skopeo = tmp_path / "skopeo"
    skopeo.write_text("#!/bin/sh\n")
    skopeo.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    env = tmp_path / "containerenv"
    env.write_text(CONTAINER)
    assert verbs.read_container(str(env)) == ("abc", "localhost/bootc:latest")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("podman-", "docker-", "engine is 'docker-5.4.2', not podman"),
        ("rootless=0", "rootless=1", "rootless"),
        ('imageid="abc"', 'imageid=""', "names no image"),
    ],
)
def test_containers_that_are_refused(tmp_path: Path, old: str, new: str, problem: str) -> None:
    env = tmp_path / "containerenv"
    env.write_text(CONTAINER.replace(old, new))
    with pytest.raises(BootcError, match=problem):
        verbs.read_container(str(env))


def test_a_container_without_privileges(tmp_path: Path) -> None:
    env = tmp_path / "containerenv"
    env.touch()
    with pytest.raises(BootcError, match="the container is not privileged") as caught:
        verbs.read_container(str(env))
    assert "--privileged --pid=host" in (caught.value.hint or "")


def test_a_container_that_was_not_given_the_storage(tmp_path: Path) -> None:
    where = f"[overlay@{tmp_path}/none+{tmp_path}/run]{'ab' * 32}"
    image = ImageReference(image=where, transport=Transport.CONTAINERS_STORAGE)
    with (
        pytest.raises(BootcError, match="image of this container cannot be read") as caught,
        verbs.opened_source(image, InstallOptions()),
    ):
        pass
    assert "-v /var/lib/containers:/var/lib/containers" in (caught.value.hint or "")
    with (
        pytest.raises(BootcError, match="no container storage"),
        verbs.opened_source(image, InstallOptions(source_imgref=image.imgref)),
    ):
        pass


def test_no_container_and_no_source(tmp_path: Path) -> None:
    with pytest.raises(BootcError, match="not a container") as caught:
        verbs.read_container(str(tmp_path / "missing"))
    assert "--source-imgref" in (caught.value.hint or "")


def test_where_updates_come_from_is_looked_at_when_asked_for(tmp_path: Path) -> None:
    write_layout(tmp_path, [ImageContent("1").tar()], tag="os")
    verbs.check_fetch(parse_imgref(f"oci:{tmp_path}:os"))
    with pytest.raises(BootcError, match="has no tag 'none'") as caught:
        verbs.check_fetch(parse_imgref(f"oci:{tmp_path}:none"))
    assert caught.value.hint == "tags there: os"
