# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Stage an image: everything that the next shutdown needs to boot it, written in a safe order.

1. pull: layers, config, manifest, tag; the composefs image, whose digest is the deployment's id;
2. compare: the same id again, or a conflict in /etc, ends it here, and nothing was staged; nor is
   it when images that are bound to this one cannot be pulled;
3. the unit that finalizes at shutdown is started, and leftovers of an interrupted staging are
   removed; so is what was staged before, if the ESP has no room for the kernels of both;
4. kernel and initrd on the ESP (or a deployment's folder that has the very same ones); the state
   folder with the image's /etc, and the origin;
5. what will be the staged menu: the new deployment, then the booted one;
6. it takes the staged menu's place, and `/run/composefs/staged-deployment` names the new one.

Whatever ends it before the last step, the machine boots what it booted before, or what was staged
before. An exception takes all steps back; what a crash leaves is removed by the next staging.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from bootc import fs, paths
from bootc.boot import entries, kargs, menu
from bootc.composefs.collector import paused_collector
from bootc.composefs.erofs_reader import read_folder
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.composefs.stored import PulledImage
from bootc.deploy import image as images
from bootc.deploy import machine, messages, state
from bootc.deploy.bootable import Bootable, commit_bootable, write_etc
from bootc.deploy.bound import need_bound_images, pull_bound_images
from bootc.deploy.cleanup import clean_up
from bootc.deploy.etc_merge import need_mergeable, plan_merge
from bootc.deploy.etc_tree import read_live
from bootc.deploy.kernel import (
    boot_digest,
    find_shared,
    folder_size,
    free_space,
    kernel_size,
    known_boot_digest,
    list_kernel_folders,
    need_room,
    write_kernel,
)
from bootc.deploy.progress import Observer, Stage
from bootc.deploy.state import Origin, Staged
from bootc.deploy.sysroot import Deployment, Sysroot, read_deployments
from bootc.deploy.uki import Uki, named_image, uki_digest, write_uki
from bootc.errors import BootcError, advised, chain_text
from bootc.log import step
from bootc.oci.layout import ImageSource
from bootc.oci.model import this_platform
from bootc.oci.reference import ImageReference
from bootc.records import dataclass, replace
from bootc.spec import BootType
from bootc.tree import Directory

_log = logging.getLogger(__name__)
_MAKE_ROOM = "make room on the root file system, or on the ESP"
_HINTS = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EROFS: "a file system is damaged; if it is the ESP: unmount it, and fsck.vfat -a DEVICE",
}
"""What to do about an error of writing."""


class SameImageError(BootcError):
    """The image is that of a deployment that is there already."""

    def __init__(self, existing: Deployment, role: str, *, hint: str | None = None) -> None:
        super().__init__(
            f"Target image has the same fs-verity digest as the existing {role} deployment",
            hint=hint,
        )
        self.existing = existing
        self.role = role


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedImage:
    """What is staged now; `layers` tells, for people, what of the image is new."""

    id: str
    image: ImageReference
    digest: str
    version: str | None
    locked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _New:
    """The deployment that is being made; `folder`, of `EFI/Linux`, has its kernel already."""

    image: Bootable
    pulled: PulledImage
    boot_digest: str = ""
    folder: str | None = None


def check_image(facts: images.ImageFacts) -> None:
    """Refuse an image that this machine cannot run."""
    _, native = this_platform()
    if facts.architecture != native:
        raise BootcError(
            f"{facts.reference} is for {facts.architecture}, this machine is {native}",
            hint=f"use an image for {native}",
        )


def role_of(sysroot: Sysroot, deployment: Deployment, staged: Staged | None) -> str:
    """What a deployment is: booted, staged, rollback or other."""
    if deployment.id == sysroot.booted:
        return "booted"
    if staged is not None and deployment.id == staged.deployment:
        return "staged"
    rest = [one.id for one in read_deployments(sysroot) if not one.staged]
    others = [one for one in rest if one != sysroot.booted]
    return "rollback" if others[:1] == [deployment.id] else "other"


def live_deployments(sysroot: Sysroot) -> list[Deployment]:
    """Those that exist: of the staged ones only the one that the mark in /run names."""
    mark = state.read_staged(sysroot.staged_file)
    return [
        one
        for one in read_deployments(sysroot)
        if not one.staged or (mark is not None and one.id == mark.deployment)
    ]


def stage(
    sysroot: Sysroot,
    source: ImageSource,
    target: ImageReference,
    *,
    locked: bool = False,
    observer: Observer | None = None,
) -> StagedImage:
    """Stage the image that `source` offers; updates of it will come from `target`.

    `locked` keeps it from being finalized at shutdown. Raises `SameImageError` if a deployment has
    the same id, and `BootcError`; then what was staged before is staged still, but for a failure in
    the last step, or on an ESP that has no room for both kernels: then nothing is.
    """
    check_image(images.read_facts(target, source.manifest_digest, source.manifest, source.config))
    sysroot.need_esp()
    booted = find_booted(sysroot)
    tell = observer or Observer()
    tell.begin(source)
    with Repository.open(sysroot.repository, upgrade=True, insecure=booted.insecure) as repo:
        repo.need_writable()
        new = _store(repo, source, target, tell)
        mark = state.read_staged(sysroot.staged_file)
        for one in live_deployments(sysroot):
            if one.id == new.image.id:
                raise SameImageError(one, role_of(sysroot, one, mark))
        tell.stage(Stage.MERGING)
        with step("compare /etc"):
            old = repo.read_image(booted.id)
            need_mergeable(
                plan_merge(
                    _etc_of(old, booted.id),
                    read_live(f"{sysroot.current}/etc", algorithm=repo.algorithm),
                    new.image.etc,
                )
            )
        bound = need_bound_images(repo, new.image.tree)
        tell.stage(Stage.DEPLOYING)
        pull_bound_images(sysroot, bound)
        new = _with_kernel(sysroot, repo, new, booted, old)
        machine.arm_finalize(sysroot)
        _make_room(sysroot, new)
        remove_leftovers(sysroot, new.image.id)
        with step("write the new deployment"), _undone_on_failure(sysroot, new.image.id):
            _deploy(sysroot, repo, booted, new, target)
            _replace_staged(sysroot, Staged(deployment=new.image.id, locked=locked))
            if not locked:
                machine.mark_reboot_required(sysroot, new.pulled.manifest_digest)
    return StagedImage(
        id=new.image.id,
        image=target,
        digest=new.pulled.manifest_digest,
        version=images.image_version(source.manifest, source.config, str(target)),
        locked=locked,
    )


def find_booted(sysroot: Sysroot) -> Deployment:
    """The booted deployment, which must have a boot entry: that is kept as the way back."""
    booted = sysroot.need_booted()
    for one in read_deployments(sysroot):
        if one.id == booted and one.entry is not None and not one.staged:
            return one
    raise BootcError(
        f"the booted deployment {booted[:16]}… has no entry in the boot menu",
        hint=f"its file in {paths.ENTRIES} of the ESP is missing or damaged: write it again from "
        "/proc/cmdline",
    )


def _store(
    repo: Repository,
    source: ImageSource,
    target: ImageReference,
    tell: Observer,
) -> _New:
    tell.stage(Stage.PULLING)
    tag = f"{paths.TAG_PREFIX}{source.manifest_digest}"
    retry = "try again: layers that are complete are kept"
    with step(f"pull {target}"), advised("the image was not pulled", retry):
        pulled = pull(repo, source, reference=target.imgref, tag=tag, on_progress=tell.report)
    _log.info(
        "Pulled %s, %s: %s",
        target,
        pulled.manifest_digest,
        pulled.stats,
        extra={"MESSAGE_ID": messages.PULL},
    )
    tell.stage(Stage.IMPORTING)
    with step("write the composefs image"), paused_collector():
        image = commit_bootable(repo, pulled)
        repo.sync()
    return _New(image=image, pulled=pulled)


def pristine_etc(repo: Repository, deployment: str) -> Directory:
    """/etc as the image of a deployment has it; read from the image, not from a mount."""
    return _etc_of(repo.read_image(deployment), deployment)


def _etc_of(data: bytes, deployment: str) -> Directory:
    etc = read_folder(data, b"etc", deployment[:16])
    if etc is None:
        raise BootcError(f"the image {deployment[:16]}… has no /etc")
    return etc


def _deploy(
    sysroot: Sysroot, repo: Repository, booted: Deployment, new: _New, target: ImageReference
) -> None:
    """Kernel, state and origin, then the menu to stage; all of it is on the disk afterwards."""
    assert booted.entry is not None
    esp = sysroot.need_esp()
    kernel, digest = new.image.kernel, new.boot_digest
    if isinstance(kernel, Uki):
        write_uki(repo, kernel, esp, new.image.id)
    elif new.folder is None:
        digest = write_kernel(repo, kernel, esp, new.image.id)
    write_etc(repo, new.image, state.make_skeleton(sysroot.root, new.image.id))
    origin = Origin(
        image=target,
        boot_type=BootType.UKI if isinstance(kernel, Uki) else BootType.BLS,
        boot_digest=digest,
        manifest_digest=new.pulled.manifest_digest,
    )
    state.write_origin(sysroot.root, new.image.id, origin)
    sync_all(sysroot)
    release = images.read_os_release(repo, new.image.tree)
    if isinstance(kernel, Uki):
        entry = entries.make_uki_entry(release, new.image.id, key=machine.uki_key(sysroot))
    else:
        arguments = kernel_arguments(
            booted,
            new.image.id,
            images.read_live_kargs_d(sysroot.current, kargs.architecture()),
            images.read_kargs_d(repo, new.image.tree, kargs.architecture()),
        )
        entry = entries.make_entry(release, new.image.id, arguments, kernel_folder=new.folder)
    menu.prepare_staged(esp, [entry, booted.entry])


def _replace_staged(sysroot: Sysroot, mark: Staged) -> None:
    """The prepared menu and `mark` in the place of what was staged.

    There is no step for both: for the moment between them nothing is staged.
    """
    esp = sysroot.need_esp()
    state.clear_staged(sysroot.staged_file)
    menu.put_staged(esp)
    state.write_staged(mark, sysroot.staged_file)
    if mark.locked:
        machine.clear_reboot_required(sysroot)
    menu.discard_next(esp)


def _with_kernel(
    sysroot: Sysroot, repo: Repository, new: _New, booted: Deployment, image: bytes
) -> _New:
    """With the boot digest, and the folder of a deployment of the menu that has the same kernel.

    Where there is none, refuse a kernel that doesn't fit on the ESP as long as what is staged can
    stay staged. What no deployment of the menu starts is removed before the kernel is written.
    `image` is the EROFS image of the booted deployment.
    """
    kernel, digest = new.image.kernel, None
    if isinstance(kernel, Uki):
        _need_uki_that_boots(repo, kernel, booted)
        digest = uki_digest(repo, kernel)
    elif booted.is_uki and not booted.arguments:
        raise BootcError(
            f"the kernel arguments of the booted deployment {booted.id[:16]}… are not known: its "
            "unified kernel image cannot be read",
            hint="bootc internals fsck says what is wrong with it",
        )
    elif booted.origin is not None and not booted.is_uki:
        digest = known_boot_digest(kernel, image, booted.origin.boot_digest)
    if digest is None:
        assert not isinstance(kernel, Uki)
        digest = boot_digest(repo, kernel)
    esp = sysroot.need_esp()
    kept = [one for one in read_deployments(sysroot) if not one.staged]
    same = [
        one.kernel_folder
        for one in kept
        if not one.is_uki and one.origin is not None and one.origin.boot_digest == digest
    ]
    folder = None
    if not isinstance(kernel, Uki):
        folder = find_shared(esp, [name for name in same if name is not None], digest)
    if folder is None:
        need_room(kernel, esp, freed=_unused_kernels(esp, kept))
    return replace(new, boot_digest=digest, folder=folder)


def _unused_kernels(esp: str, deployments: Sequence[Deployment]) -> int:
    """Bytes on the ESP of kernels that none of these has."""
    used = {one.kernel_folder for one in deployments}
    return sum(folder_size(esp, name) for name in list_kernel_folders(esp) if name not in used)


def _make_room(sysroot: Sysroot, new: _New) -> None:
    """Give up what is staged if the kernels and menus of both don't fit on the ESP together."""
    esp = sysroot.need_esp()
    need = menu.staged_size(esp)
    if new.folder is None:
        need += kernel_size(new.image.kernel)
    if need > free_space(esp) + _unused_kernels(esp, live_deployments(sysroot)):
        forget_staged(sysroot)


def _need_uki_that_boots(repo: Repository, uki: Uki, booted: Deployment) -> None:
    """Refuse a UKI that wants what this machine has not; nobody can change what it says."""
    if booted.insecure and not named_image(repo, uki).insecure:
        raise BootcError(
            "the image's unified kernel image demands fs-verity (composefs=…), and this system "
            "was installed without (composefs=?…)",
            hint="build it with composefs=?, or install it anew where there is fs-verity",
        )


def kernel_arguments(
    booted: Deployment, deployment: str, old_kargs: list[str], new_kargs: list[str]
) -> list[str]:
    """The booted entry's arguments with the new deployment in the old one's place, and with what
    changed between the kargs.d of the two images."""
    composefs = str(kargs.ComposefsArg(digest=deployment, insecure=booted.insecure))
    kept: list[str] = []
    for arg in booted.arguments:
        if arg.partition("=")[0] not in ("composefs", "composefs.digest"):
            kept.append(arg)
        elif composefs not in kept:
            kept.append(composefs)
    return kargs.diff(old_kargs, new_kargs).apply(kept)


def forget_staged(sysroot: Sysroot) -> bool:
    """Nothing is staged any more; whether something was. Its files are leftovers from now on."""
    found = state.clear_staged(sysroot.staged_file)
    machine.clear_reboot_required(sysroot)
    if sysroot.esp is not None:
        menu.discard_staged(sysroot.esp)
    return found


def remove_leftovers(sysroot: Sysroot, deployment: str) -> None:
    """Remove what an interrupted staging of `deployment` left; it may not be staged itself.

    That is a staged menu that no mark belongs to, its state folder, and kernels that no entry
    starts.
    """
    if not os.path.exists(sysroot.staged_file):
        menu.discard_staged(sysroot.need_esp())
    menu.discard_next(sysroot.need_esp())
    found = read_deployments(sysroot)
    if deployment not in {one.id for one in found}:
        with suppress(FileNotFoundError):
            shutil.rmtree(f"{sysroot.root}/{paths.state_dir(deployment)}")
    clean_up(sysroot, prune=False)


def clean_up_after(sysroot: Sysroot, *, prune: bool = True) -> None:
    """Remove what nothing needs any more. What was to be done is done: a failure is a warning."""
    try:
        clean_up(sysroot, prune=prune)
    except (BootcError, OSError) as error:
        _log.warning("old images were not removed: %s", chain_text(error))


@contextmanager
def _undone_on_failure(sysroot: Sysroot, deployment: str) -> Iterator[None]:
    """Take back what was written when the block fails, or is interrupted.

    What was staged before is staged still, if the new deployment hasn't begun to replace it.
    """
    before = state.read_staged(sysroot.staged_file)
    try:
        yield
    except BaseException as error:
        if before is None or state.read_staged(sysroot.staged_file) != before:
            state.clear_staged(sysroot.staged_file)
            machine.clear_reboot_required(sysroot)
        # The reason of the failure is what has to be told; the next staging tidies up the rest.
        with suppress(OSError, BootcError):
            remove_leftovers(sysroot, deployment)
        if isinstance(error, OSError):
            raise BootcError(
                f"the new deployment cannot be written; the system stays as it is: {error}",
                hint=_HINTS.get(error.errno or 0, "try again"),
            ) from error
        raise


def sync_all(sysroot: Sysroot) -> None:
    """Bring the physical root and the ESP to their disks."""
    for path in (sysroot.root, sysroot.need_esp()):
        fs.sync_filesystem(path)
