# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Removes what no deployment needs: kernels, state folders, tags, and objects of the repository.

Alive is what an entry of the menu names, the booted deployment, and, of the staged menu, the
deployment that the mark in /run names. An entry that cannot be parsed keeps alive what its text
mentions, and everything if it mentions nothing: damage must not cost a deployment that could be
repaired. From this follows what goes:

1. a staged menu without a mark (a power cut came before the shutdown), and a mark without a
   staged entry or state folder;
2. folders `EFI/Linux/bootc_composefs-…` that no entry starts a kernel from, and unified kernel
   images `EFI/Linux/bootc/bootc_composefs-….efi`, with their addons, that no entry starts;
3. folders of `state/deploy` without an entry;
4. tags `localhost/bootc-<manifest digest>` of images that are of no deployment. The tags of those
   that are are made where they are missing. Other tags are left alone;
5. what in the repository nothing leads to any more;
6. images of bootc's container storage that were pulled for deployments which are gone
   (`stored_images`).

It happens in this order, each step durable before the next, and each only removes what the steps
before it left without a name: so an interruption leaves nothing that dangles. If the booted
deployment were among what goes, nothing is done at all.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable

from bootc import fs, paths
from bootc.boot import entries, menu
from bootc.composefs.gc import GcResult, collect_garbage
from bootc.composefs.repository import Repository
from bootc.composefs.stored import load_image, manifest_content_id
from bootc.deploy import legacy, messages, state
from bootc.deploy.kernel import (
    deployment_of_kernel,
    has_short_name,
    list_kernel_folders,
    remove_kernel,
)
from bootc.deploy.state import Staged
from bootc.deploy.stored_images import NO_IMAGES, StoragePlan, apply_storage, plan_storage
from bootc.deploy.sysroot import Deployment, Sysroot, read_deployments, read_menu
from bootc.deploy.unified import find_unified_storage
from bootc.errors import BootcError, chain_text
from bootc.log import step
from bootc.records import dataclass, replace

_log = logging.getLogger(__name__)

_ID = re.compile(r"[0-9a-f]{64}(?:[0-9a-f]{64})?")
_MENTION = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{128}|[0-9a-f]{64})(?![0-9a-f])")
_ENTRY_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupPlan:
    """What is to be done; `prune` is whether more than the kernels was looked at.

    `roots` and `tags_made` protect: images (ids) and streams that the repository has to keep, and
    manifest digests that get their tag.
    """

    prune: bool
    staged_menu: bool = False
    staged_mark: bool = False
    kernels: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    tags_made: tuple[str, ...] = ()
    tags_removed: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    storage: StoragePlan = NO_IMAGES

    @property
    def removes(self) -> bool:
        """Whether anything outside of the repository's objects goes."""
        return bool(
            self.staged_menu
            or self.staged_mark
            or self.kernels
            or self.states
            or self.tags_removed
            or self.storage.removes
        )

    def describe(self) -> list[str]:
        """A line for each thing that goes or is made."""
        lines = [f"Kernel: {name}" for name in self.kernels]
        lines += [f"State: {name}" for name in self.states]
        lines += [f"Tag: {name}" for name in self.tags_removed]
        lines += self.storage.describe()
        if self.staged_menu:
            lines.insert(0, f"Staged menu: {paths.ENTRIES_STAGED}")
        if self.staged_mark:
            lines.insert(0, "Staged mark")
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupResult:
    """The plan, and what went of the repository (None if that was not looked at)."""

    plan: CleanupPlan
    collected: GcResult | None

    @property
    def is_no_op(self) -> bool:
        return not self.plan.removes and self.collected in (None, GcResult())


def clean_up(
    sysroot: Sysroot, *, prune: bool = True, dry_run: bool = False, assert_no_op: bool = False
) -> CleanupResult:
    """Remove what no deployment needs; without `prune` only kernels.

    `dry_run` changes nothing and says what would go. `assert_no_op` changes nothing either, and
    raises `BootcError` if anything would go. Nobody else may have the repository open.
    """
    only_look = dry_run or assert_no_op
    if not prune:
        plan = _plan_kernels(sysroot)
        if not only_look:
            apply_kernels(plan, sysroot)
        return _checked(CleanupResult(plan=plan, collected=None), assert_no_op)
    _need_repository(sysroot, only_look)
    with Repository.open(sysroot.repository, upgrade=True, insecure=sysroot.insecure) as repo:
        plan = plan_cleanup(sysroot, repo)
        if not only_look:
            apply_cleanup(plan, sysroot, repo)
        collected = collect_garbage(
            repo, roots=plan.roots, ignore=plan.tags_removed, dry_run=only_look
        )
    if not only_look:
        _apply_storage(plan.storage, sysroot)
    return _checked(CleanupResult(plan=plan, collected=collected), assert_no_op)


def _need_repository(sysroot: Sysroot, only_look: bool) -> None:
    if only_look and not os.path.exists(f"{sysroot.repository}/meta.json"):
        # To open it would upgrade it.
        raise BootcError(
            f"{sysroot.repository} is a repository of an old format: without a change it cannot "
            "be looked at",
            hint="`cfsctl fsck` upgrades it, as does any upgrade",
        )


def _checked(result: CleanupResult, assert_no_op: bool) -> CleanupResult:
    if assert_no_op and not result.is_no_op:
        gone = result.collected or GcResult()
        told = "; ".join(
            [
                *result.plan.describe(),
                *([f"{gone.objects_removed} objects"] if gone.objects_removed else []),
                *([f"{gone.images_pruned} images"] if gone.images_pruned else []),
                *([f"{gone.streams_pruned} streams"] if gone.streams_pruned else []),
            ]
        )
        raise BootcError(
            f"there is garbage: {told}",
            hint="`bootc internals composefs-gc --prune-repo` removes it",
        )
    return result


# -- Planning


def plan_cleanup(sysroot: Sysroot, repo: Repository) -> CleanupPlan:
    """Look at everything. Raises `BootcError` when the booted deployment would be hit."""
    kernels = _plan_kernels(sysroot)
    known = read_deployments(sysroot)
    staged = _staged(sysroot, known)
    mark_exists = os.path.exists(sysroot.staged_file)
    live = [one for one in known if not one.staged or one is staged]
    if staged is None and menu.has_staged(sysroot.need_esp()):
        # What only the stale staged menu starts goes with it.
        kernels = replace(_plan_kernels(sysroot, with_staged=False), staged_menu=True)
    states = state.list_deployments(sysroot.root)
    mentioned, doubtful = _mentioned(sysroot, with_staged=staged is not None)
    alive = {one.id for one in live} | mentioned
    orphans = tuple(name for name in states if name not in alive and _is_ours(sysroot, name))
    if doubtful:
        orphans = ()
    if sysroot.booted in orphans:
        raise _booted_is_hit(sysroot)
    manifests = _manifests(repo, sysroot, live)
    tags = {tag: content_id for tag, content_id in repo.tags() if tag.startswith(paths.TAG_PREFIX)}
    wanted = {f"{paths.TAG_PREFIX}{digest}": digest for digest in manifests}
    made = tuple(
        digest for tag, digest in wanted.items() if tags.get(tag) != manifest_content_id(digest)
    )
    made_of = _images_of(repo, manifests)
    return replace(
        kernels,
        prune=True,
        staged_mark=mark_exists and staged is None,
        states=orphans,
        tags_made=made,
        tags_removed=() if doubtful else tuple(tag for tag in tags if tag not in wanted),
        roots=(
            *(name for name in sorted(alive - made_of) if _has_image(repo, name)),
            *(manifest_content_id(digest) for digest in manifests),
        ),
        storage=NO_IMAGES if doubtful else _plan_storage(sysroot, live),
    )


def _plan_storage(sysroot: Sysroot, live: Iterable[Deployment]) -> StoragePlan:
    """Nothing, with a warning, when a deployment's image isn't known, or the storage is damaged."""
    origins = [one.origin for one in live]
    try:
        storage = find_unified_storage(sysroot)
        if storage is None or None in origins:
            return NO_IMAGES
        return plan_storage(storage.images(), [one for one in origins if one is not None])
    except (BootcError, OSError) as error:
        _log.warning("bootc's container storage is left as it is: %s", chain_text(error))
        return NO_IMAGES


def _is_ours(sysroot: Sysroot, name: str) -> bool:
    """Whether a name in state/deploy is a deployment's; nothing goes that holds a /var itself."""
    if not _ID.fullmatch(name):
        return False
    var = f"{sysroot.root}/{paths.state_dir(name)}/var"
    if os.path.isdir(var) and not os.path.islink(var):
        _log.warning("%s is a folder and no link; %s is left alone", var, name)
        return False
    return True


def _plan_kernels(sysroot: Sysroot, *, with_staged: bool = True) -> CleanupPlan:
    esp = sysroot.need_esp()
    known = read_deployments(sysroot)
    for one in known:
        if one.id == sysroot.booted and (one.entry is None or one.staged):
            raise _booted_is_hit(sysroot)
    used = {one.kernel_folder for one in known if with_staged or not one.staged}
    mentioned, doubtful = _mentioned(sysroot, with_staged=with_staged)
    if doubtful:
        _log.warning("an entry of the boot menu is damaged: all deployments are kept for now")
        return CleanupPlan(prune=False)
    found = [name for name in list_kernel_folders(esp) if name not in used]
    if any(name and not os.path.exists(f"{esp}/{paths.ESP_KERNELS}/{name}") for name in used):
        # What lost its long name may be a kernel that somebody wants to give it back.
        found = [name for name in found if not has_short_name(name)]
    return CleanupPlan(
        prune=False,
        kernels=tuple(name for name in found if deployment_of_kernel(name) not in mentioned),
    )


def _booted_is_hit(sysroot: Sysroot) -> BootcError:
    return BootcError(
        f"the booted deployment {sysroot.need_booted()[:16]}… has no boot entry, so nobody can say "
        "what it needs; nothing was removed",
        hint=f"write its entry in {paths.ENTRIES} of the ESP again; /proc/cmdline has the options",
    )


def _staged(sysroot: Sysroot, known: tuple[Deployment, ...]) -> Deployment | None:
    """The deployment that waits for the shutdown, if all that it needs is there."""
    mark = _read_mark(sysroot)
    if mark is None:
        return None
    for one in known:
        if one.id == mark.deployment and one.id != sysroot.booted and one.origin is not None:
            return one
    return None


def _read_mark(sysroot: Sysroot) -> Staged | None:
    try:
        return state.read_staged(sysroot.staged_file)
    except (BootcError, OSError) as error:
        _log.warning("what is staged cannot be told: %s", error)
        return None


def _mentioned(sysroot: Sysroot, *, with_staged: bool) -> tuple[set[str], bool]:
    """What looks like a deployment's id in the files of the menu that cannot be read as entries.

    And whether there is one, named as ours are, that does not even tell that.
    """
    found: set[str] = set()
    doubtful = False
    for folder in (paths.ENTRIES, paths.ENTRIES_STAGED) if with_staged else (paths.ENTRIES,):
        where = f"{sysroot.need_esp()}/{folder}"
        read = {name for name, _ in read_menu(sysroot, folder)}
        try:
            names = os.listdir(where)
        except FileNotFoundError:
            continue
        for name in names:
            if name in read:
                continue
            ids = _ids_in(f"{where}/{name}")
            found.update(ids)
            is_ours = name.startswith(entries.NAME_PREFIX) and name.endswith(".conf")
            doubtful |= is_ours and not ids and folder == paths.ENTRIES
    return found, doubtful


def _ids_in(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            return _MENTION.findall(file.read(_ENTRY_MAX).decode("utf-8", "replace"))
    except OSError:
        return []


def _manifests(repo: Repository, sysroot: Sysroot, live: Iterable[Deployment]) -> list[str]:
    """The manifest digests of these deployments, as far as the repository has them."""
    found: list[str] = []
    for one in live:
        digest = legacy.find_manifest_digest(repo, sysroot.root, one)
        if digest is None or repo.find_stream(manifest_content_id(digest)) is None:
            _log.warning("the image of deployment %s is not in the repository", one.id)
        elif digest not in found:
            found.append(digest)
    return found


def _images_of(repo: Repository, manifests: Iterable[str]) -> set[str]:
    """The ids of the EROFS images that were made of these OCI images, and that they keep.

    Their files are those of the layers. To search each for the objects that it names would be most
    of the work of a collection, and find nothing else.
    """
    found: set[str] = set()
    for digest in manifests:
        try:
            image = load_image(repo, f"@{digest}")
        except (BootcError, OSError) as error:
            _log.debug("the EROFS images of %s are looked at themselves: %s", digest, error)
            continue
        found.update(one.hex() for one in image.images.values())
    return found


def _has_image(repo: Repository, name: str) -> bool:
    return len(name) == 2 * repo.algorithm.size and repo.has_image(bytes.fromhex(name))


# -- Carrying it out


def apply_cleanup(plan: CleanupPlan, sysroot: Sysroot, repo: Repository) -> None:
    """Steps 1 to 4: everything but the repository's objects."""
    for digest in plan.tags_made:
        repo.tag(manifest_content_id(digest), f"{paths.TAG_PREFIX}{digest}")
    if plan.staged_mark:
        state.clear_staged(sysroot.staged_file)
        _tell("the mark of a staged deployment that is not there")
    if plan.staged_menu:
        menu.discard_staged(sysroot.need_esp())
        _tell("a staged menu that nothing waits for")
    apply_kernels(plan, sysroot)
    if plan.states:
        folder = f"{sysroot.root}/{paths.STATE_DEPLOY}"
        with step(f"remove the state of {len(plan.states)} deployments"):
            for name in plan.states:
                shutil.rmtree(f"{folder}/{name}")
                _tell(f"the state of deployment {name}")
        fs.sync_directory(folder)
    for tag in plan.tags_removed:
        repo.untag(tag)


def _apply_storage(plan: StoragePlan, sysroot: Sysroot) -> None:
    storage = find_unified_storage(sysroot) if plan != NO_IMAGES else None
    if storage is not None:
        apply_storage(plan, storage)


def apply_kernels(plan: CleanupPlan, sysroot: Sysroot) -> None:
    """Remove the kernels of the plan."""
    for name in plan.kernels:
        remove_kernel(sysroot.need_esp(), name)
        _tell(f"the kernel {'image' if name.endswith('.efi') else 'folder'} {name}")


def _tell(what: str) -> None:
    _log.info("removed %s", what, extra={"MESSAGE_ID": messages.REMOVED})
