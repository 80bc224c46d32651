# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What this machine has changed in /etc, against its image and against what is staged."""

from __future__ import annotations

from bootc.composefs.repository import Repository
from bootc.deploy import state
from bootc.deploy.etc_merge import MergePlan, plan_merge
from bootc.deploy.etc_tree import read_live
from bootc.deploy.stage import pristine_etc
from bootc.deploy.sysroot import Sysroot


def read_etc_changes(sysroot: Sysroot) -> MergePlan:
    """The changes; with conflicts when something is staged. No mount is needed, nothing changes."""
    with Repository.open(sysroot.repository, insecure=sysroot.insecure) as repo:
        mark = state.read_staged(sysroot.staged_file)
        return plan_merge(
            pristine_etc(repo, sysroot.need_booted()),
            read_live(f"{sysroot.current}/etc", algorithm=repo.algorithm),
            pristine_etc(repo, mark.deployment) if mark else None,
        )
