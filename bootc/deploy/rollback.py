# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`rollback`: the deployment after the booted one in the menu comes first; once more undoes it.

Any number of entries is kept, in their order. What is staged is dropped: it was made on top of the
system that is being left.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from bootc.boot import menu
from bootc.deploy import machine, messages
from bootc.deploy.stage import clean_up_after, find_booted, forget_staged
from bootc.deploy.sysroot import Deployment, Sysroot, read_deployments
from bootc.errors import BootcError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackPlan:
    """`order`: the menu to be. `reverting`: a rollback was queued, and isn't any more."""

    order: tuple[Deployment, ...]
    reverting: bool
    drops_staged: bool

    @property
    def lines(self) -> tuple[str, ...]:
        lines = []
        if self.drops_staged:
            lines.append("notice: Discarding the staged deployment")
        if self.reverting:
            return (
                *lines,
                "notice: Reverting queued rollback state",
                "Next boot: current deployment",
            )
        return (*lines, "Next boot: rollback deployment")


def decide_rollback(
    booted: Deployment, found: tuple[Deployment, ...], *, staged: bool
) -> RollbackPlan:
    """From the deployments in the menu's order to the menu to be.

    Raises `BootcError` when there is none to go back to.
    """
    shown = [one for one in found if one.entry is not None and not one.staged]
    rest = [one for one in shown if one.id != booted.id]
    if shown and shown[0].id != booted.id:
        return RollbackPlan(order=(booted, *rest), reverting=True, drops_staged=staged)
    target = next((one for one in rest if one.origin is not None), None)
    if target is None:
        raise BootcError(
            "No rollback available" + (": its origin file is missing or damaged" if rest else ""),
            hint="what is staged is dropped by bootc delete-deployment ID; bootc status has its id"
            if staged
            else "there is one after an update; bootc status shows what is deployed",
        )
    others = [one for one in rest if one.id != target.id]
    return RollbackPlan(order=(target, booted, *others), reverting=False, drops_staged=staged)


def rollback(sysroot: Sysroot) -> RollbackPlan:
    """Queue the rollback deployment for the next boot, or undo that."""
    esp = sysroot.need_esp()
    booted = find_booted(sysroot)
    is_staged = os.path.exists(sysroot.staged_file)
    plan = decide_rollback(booted, read_deployments(sysroot), staged=is_staged)
    _need_kernel(esp, plan.order[0])
    forget_staged(sysroot)
    menu.write_staged(esp, [one.entry for one in plan.order if one.entry is not None])
    menu.exchange(esp)
    if not plan.reverting:
        first = plan.order[0]
        digest = first.origin.manifest_digest if first.origin is not None else None
        machine.mark_reboot_required(sysroot, digest or first.id)
    machine.announce(sysroot)
    if plan.drops_staged:
        clean_up_after(sysroot)
    _log.info("Next boot: %s", plan.order[0].id, extra={"MESSAGE_ID": messages.ROLLBACK})
    return plan


def _need_kernel(esp: str, deployment: Deployment) -> None:
    """Refuse to put first what could not be started."""
    entry = deployment.entry
    assert entry is not None
    for path in (entry.linux, entry.efi, entry.uki, *entry.initrd):
        if path and not os.path.isfile(f"{esp}/{path.lstrip('/')}"):
            raise BootcError(
                f"the deployment {deployment.id[:16]}… cannot boot: {path} is not on the ESP",
                hint=f"remove it: bootc delete-deployment {deployment.id[:16]}",
            )
