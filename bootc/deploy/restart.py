# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What comes after a change: the reboot into it, or the restart of userspace alone.

Whoever changes what is deployed also has to give up the root that was assembled for a soft reboot
before: it is not what is to be booted any more.
"""

from __future__ import annotations

import logging
import os
from enum import StrEnum

from bootc.deploy import soft_reboot, state
from bootc.deploy.rollback import RollbackPlan
from bootc.deploy.sysroot import Sysroot
from bootc.deploy.update import Outcome

_log = logging.getLogger(__name__)
FOR_UPDATE = "Rebooting to update the system"
FOR_ROLLBACK = "Rebooting to roll the system back"


class SoftReboot(StrEnum):
    """Whether userspace alone is restarted: or fail, or where that can be done."""

    REQUIRED = "required"
    AUTO = "auto"


def check(soft: SoftReboot | None) -> None:
    """Refuse what systemd cannot do before anything is changed."""
    if soft is not None:
        soft_reboot.check_systemd()


def prepare_staged(soft: SoftReboot | None, sysroot: Sysroot, outcome: Outcome) -> bool:
    """Make the next root of what is staged, if that is wanted; whether it was made."""
    mark = state.read_staged(sysroot.staged_file)
    if not outcome.ready or mark is None:
        if outcome.changed:
            forget_next_root()
        return False
    return prepare(soft, sysroot, mark.deployment)


def prepare_rollback(soft: SoftReboot | None, sysroot: Sysroot, plan: RollbackPlan) -> bool:
    """Make the next root of what is booted next, if that is wanted and isn't what runs already."""
    return prepare(None if plan.reverting else soft, sysroot, plan.order[0].id)


def prepare(soft: SoftReboot | None, sysroot: Sysroot, deployment: str) -> bool:
    """Make the next root of `deployment`, if that is wanted; whether it was made."""
    forget_next_root()
    if soft is None:
        return False
    if soft is SoftReboot.AUTO:
        reason = soft_reboot.why_not(sysroot, deployment)
        if reason is not None:
            _log.info("A whole reboot is needed: %s", reason)
            return False
    _log.info("%s", soft_reboot.prepare(sysroot, deployment))
    return True


def forget_next_root() -> None:
    """Give up what was prepared for a soft reboot, if anything was."""
    if os.path.ismount(soft_reboot.NEXT_ROOT):
        soft_reboot.reset_live()
