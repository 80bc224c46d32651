# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Carry out an install plan: file systems, image, state, boot files, boot loader, finish.

Everything is mounted in a mount namespace of our own and by context managers, so a failure at any
point leaves nothing mounted. The image's objects and its EROFS image come first and are synced
before the entry that boots them is written.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bootc import fs, paths
from bootc.boot import entries, kargs, systemd_boot
from bootc.boot import esp as esps
from bootc.composefs.pull import PulledImage, pull
from bootc.composefs.repository import Repository
from bootc.deploy import image as images
from bootc.deploy import state
from bootc.deploy.bootable import Bootable, commit_bootable, write_etc
from bootc.deploy.kernel import need_separate, write_kernel
from bootc.deploy.progress import Observer, Stage
from bootc.deploy.state import Origin
from bootc.deploy.unified import through_new_storage
from bootc.errors import BootcError
from bootc.install import filesystem as filesystems
from bootc.install.disk import apply_disk
from bootc.install.plan import InstallPlan, TargetPlan, check_free_space
from bootc.linux import mount
from bootc.log import show_size, step
from bootc.oci.layout import ImageSource
from bootc.spec import BootType
from bootc.tree import Directory, Leaf, Symlink

_log = logging.getLogger(__name__)

_LOADERS = "usr/lib/systemd/boot/efi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What is on the disk now."""

    image: str
    digest: str
    deployment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """The mounted file systems; `finalize` is whether to leave the root trimmed and clean."""

    root: str
    esp: str
    finalize: bool


def apply_install(
    plan: InstallPlan, source: ImageSource, *, observer: Observer | None = None
) -> Installed:
    """Do what the plan says. Call it in a process that has done nothing with threads yet."""
    tell = observer or Observer()
    tell.begin(source)
    mount.isolate_mounts()
    tell.stage(Stage.PREPARING)
    with _opened_target(plan) as target:
        installed = install_into(plan, source, target.root, target.esp, tell)
        tell.stage(Stage.FINALIZING)
        with step("write everything to the disk"):
            fs.sync_filesystem(target.esp)
            if target.finalize:
                filesystems.finish_root(target.root)
            else:
                fs.sync_filesystem(target.root)
    tell.end()
    return installed


@contextmanager
def _opened_target(plan: InstallPlan) -> Iterator[_Target]:
    destination = plan.destination
    with ExitStack() as stack:
        if isinstance(destination, TargetPlan):
            where = destination.esp_mount
            if destination.esp_node is not None:
                where = stack.enter_context(filesystems.temporary_folder())
                stack.enter_context(esps.mounted_esp(destination.esp_node, where))
            assert where is not None
            yield _Target(root=destination.root, esp=where, finalize=destination.finalize)
            return
        with step(f"partition {destination.device}"):
            nodes = apply_disk(destination)
        with step(f"make file systems on {nodes.esp} and {nodes.root}"):
            filesystems.make_esp(nodes.esp)
            filesystems.make_root(destination.filesystem, nodes.root, destination.root_uuid)
        kind = destination.filesystem.value
        root = stack.enter_context(filesystems.mounted_target(nodes.root, kind))
        where = stack.enter_context(filesystems.temporary_folder())
        stack.enter_context(esps.mounted_esp(nodes.esp, where))
        yield _Target(root=root, esp=where, finalize=True)


def install_into(
    plan: InstallPlan, source: ImageSource, root: str, esp: str, tell: Observer
) -> Installed:
    """Fill the mounted physical root and the mounted ESP."""
    secure = filesystems.want_verity(root)
    if not secure and not plan.allow_missing_verity:
        raise BootcError(
            f"the file system at {root} has no fs-verity",
            hint="use ext4 made with `-O verity`, or pass --allow-missing-verity",
        )
    available = os.statvfs(root)
    check_free_space(plan.image, available.f_bavail * available.f_frsize)
    with Repository.init(f"{root}/{paths.REPOSITORY}", secure=secure) as repo:
        with (
            step(f"pull {plan.image.reference} ({show_size(plan.image.download_size)})"),
            through_new_storage(
                root,
                plan.fetch_from or plan.image.reference,
                source,
                tell,
                repository=repo.path,
                names=(plan.image.reference, plan.target_image),
                unify=plan.unify,
            ) as (found, told),
        ):
            told.stage(Stage.PULLING)
            tag = f"{paths.TAG_PREFIX}{found.manifest_digest}"
            reference = plan.image.reference.imgref
            pulled = pull(repo, found, reference=reference, tag=tag, on_progress=told.report)
        told.stage(Stage.IMPORTING)
        with step("write the composefs image"):
            made = commit_bootable(repo, pulled)
        tell.stage(Stage.DEPLOYING)
        with step("write the state of the deployment"):
            _write_state(plan, repo, made, root)
        with step("write boot files"):
            digest = write_kernel(repo, need_separate(made.kernel), esp, made.id)
            _write_origin(plan, pulled, root, made.id, digest)
        with step("install systemd-boot"):
            _install_loader(repo, made.tree, esp)
        repo.sync()
        _write_entry(plan, repo, made.tree, esp, made.id)
    return Installed(
        image=str(plan.image.reference), digest=pulled.manifest_digest, deployment=made.id
    )


def _write_state(plan: InstallPlan, repo: Repository, made: Bootable, root: str) -> None:
    """/etc and /var of the deployment, from the image."""
    folder = state.make_skeleton(root, made.id)
    write_etc(repo, made, folder)
    var = made.tree.find_directory("var")
    if var is not None and not os.listdir(f"{root}/{paths.STATE_VAR}"):
        images.write_tree(repo, var, f"{root}/{paths.STATE_VAR}")
    if plan.root_ssh_authorized_keys is not None:
        _write_ssh_keys(plan.root_ssh_authorized_keys, made.tree, f"{folder}/etc")


def _write_ssh_keys(keys: str, tree: Directory, etc: str) -> None:
    """A tmpfiles.d line that gives root these keys at every boot."""
    node = tree.find("root")
    home = "/root"
    if isinstance(node, Leaf) and isinstance(node.content, Symlink):
        home = os.path.normpath(os.path.join("/", os.fsdecode(node.content.target)))
    text = base64.b64encode(keys.encode()).decode()
    line = f"f~ {home}/.ssh/authorized_keys 600 root root - {text}\n"
    os.makedirs(f"{etc}/tmpfiles.d", exist_ok=True)
    fs.write_atomic(f"{etc}/tmpfiles.d/bootc-root-ssh.conf", line)


def _write_origin(
    plan: InstallPlan, pulled: PulledImage, root: str, deployment: str, boot_digest: str
) -> None:
    origin = Origin(
        image=plan.target_image,
        boot_type=BootType.BLS,
        boot_digest=boot_digest,
        manifest_digest=pulled.manifest_digest,
    )
    state.write_origin(root, deployment, origin)


def kernel_arguments(plan: InstallPlan, deployment: str, image_kargs: list[str]) -> list[str]:
    """The whole command line, in the order root, config, user, composefs, the image's own."""
    composefs = kargs.ComposefsArg(digest=deployment, insecure=plan.allow_missing_verity)
    first = [*kargs.without(plan.root_kargs, plan.karg_deletes), *plan.cli_kargs, str(composefs)]
    own = kargs.without(image_kargs, plan.karg_deletes)
    return kargs.diff([], own).apply(first)


def _write_entry(
    plan: InstallPlan, repo: Repository, tree: Directory, esp: str, deployment: str
) -> None:
    release = images.read_os_release(repo, tree)
    image_kargs = images.read_kargs_d(repo, tree, kargs.architecture())
    args = kernel_arguments(plan, deployment, image_kargs)
    [(name, entry)] = entries.arrange([entries.make_entry(release, deployment, args)])
    folder = f"{esp}/{paths.ENTRIES}"
    os.makedirs(folder, exist_ok=True)
    fs.write_atomic(f"{folder}/{name}", entry.to_text())
    _log.info("boot entry %s", name)


def _install_loader(repo: Repository, tree: Directory, esp: str) -> None:
    """systemd-boot of the image by the bootctl that is running here.

    bootctl sees a root with nothing in it but the image's boot loaders and the ESP.
    """
    loaders = tree.find_directory(_LOADERS)
    if loaders is None:
        raise BootcError(
            f"the image has no {_LOADERS}",
            hint="install systemd-boot-efi (Debian) or systemd-boot-unsigned (Fedora) in it",
        )
    with filesystems.temporary_folder() as root:
        os.makedirs(f"{root}/{os.path.dirname(_LOADERS)}")
        images.write_tree(repo, loaders, f"{root}/{_LOADERS}")
        for folder in ("efi", "etc", "tmp"):
            os.mkdir(f"{root}/{folder}")
        # Where nothing has a machine id, as in a container, bootctl asks for the system's name.
        fs.write_atomic(f"{root}/etc/os-release", "ID=bootc\n")
        with mount.mounted(esp, f"{root}/efi", None, flags=mount.MS_BIND):
            systemd_boot.install(root, "/efi")
