# SPDX-License-Identifier: Apache-2.0 OR MIT
"""At shutdown: what is staged becomes what is booted next.

1. this machine's changes of /etc are merged into the new deployment's /etc, and synced;
2. the staged menu takes the place of the menu, in one step, and is synced;
3. the mark in /run goes, and with it the kernels that no entry starts any more.

Interrupted before 2 the old system boots, after 2 the new one. Doing it again does what is left,
and never exchanges the menus back.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass

from bootc import paths
from bootc.boot import entries, menu
from bootc.composefs.repository import Repository
from bootc.deploy import machine, messages, state
from bootc.deploy.etc_merge import apply_merge, plan_merge
from bootc.deploy.etc_tree import read_live
from bootc.deploy.stage import clean_up_after, pristine_etc, sync_all
from bootc.deploy.sysroot import Sysroot, read_menu
from bootc.errors import BootcError
from bootc.log import step

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalized:
    """The deployment that boots next."""

    id: str


def finalize_staged(sysroot: Sysroot) -> Finalized | None:
    """Finalize what is staged; None when nothing is, or when it is only downloaded.

    Raises `BootcError` when /etc cannot be merged, or when parts of the staged deployment are
    missing; the menu is untouched then.
    """
    mark = state.read_staged(sysroot.staged_file)
    if mark is None or mark.locked:
        return None
    new = mark.deployment
    esp = sysroot.need_esp()
    if _ids(sysroot, paths.ENTRIES)[:1] != [new]:
        _need_whole(sysroot, new)
        with step("merge /etc"):
            merge_etc(sysroot, new)
        sync_all(sysroot)
        with step("exchange the boot entries"):
            menu.exchange(esp)
    menu.discard_staged(esp)
    state.clear_staged(sysroot.staged_file)
    machine.clear_reboot_required(sysroot)
    machine.announce(sysroot)
    clean_up_after(sysroot, prune=False)
    _log.info("Finalized %s", new, extra={"MESSAGE_ID": messages.FINALIZE})
    return Finalized(id=new)


def _ids(sysroot: Sysroot, folder: str) -> list[str]:
    return [entries.deployment_of(entry, name).digest for name, entry in read_menu(sysroot, folder)]


def _need_whole(sysroot: Sysroot, new: str) -> None:
    """Refuse to make a deployment the next one that could not boot."""
    hint = "the system stays as it is; stage again: bootc upgrade"
    if _ids(sysroot, paths.ENTRIES_STAGED)[:1] != [new]:
        raise BootcError(f"the staged deployment {new[:16]}… has no staged boot entry", hint=hint)
    name, entry = read_menu(sysroot, paths.ENTRIES_STAGED)[0]
    files = [path for path in (entry.linux, entry.efi, entry.uki, *entry.initrd) if path]
    missing = [path for path in files if not os.path.isfile(f"{sysroot.esp}/{path.lstrip('/')}")]
    where = f"{sysroot.root}/{paths.state_dir(new)}/etc"
    if not os.path.isdir(where):
        missing.append(where)
    if missing:
        raise BootcError(
            f"the staged deployment {new[:16]}… is not whole, {name}: {', '.join(missing)} is "
            "missing",
            hint=hint,
        )


def merge_etc(sysroot: Sysroot, new: str) -> None:
    """Carry the changes of the running /etc into that of the deployment `new`."""
    current = f"{sysroot.current}/etc"
    target = f"{sysroot.root}/{paths.state_dir(new)}/etc"
    with Repository.open(sysroot.repository, upgrade=True, insecure=sysroot.insecure) as repo:
        plan = plan_merge(
            pristine_etc(repo, sysroot.need_booted()),
            read_live(current, algorithm=repo.algorithm),
            read_live(target, algorithm=repo.algorithm),
        )
    apply_merge(plan, current, target)
    with suppress(FileNotFoundError):
        os.unlink(f"{target}/.updated")
