# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What this machine has changed in /etc, against its image and against what is staged."""

from __future__ import annotations

from bootc.composefs.erofs_reader import read_image
from bootc.composefs.repository import Repository
from bootc.deploy import state
from bootc.deploy.etc_merge import MergePlan, plan_merge
from bootc.deploy.etc_tree import read_live
from bootc.deploy.sysroot import Sysroot
from bootc.errors import BootcError
from bootc.tree import Directory


def read_etc_changes(sysroot: Sysroot) -> MergePlan:
    """The changes; with conflicts when something is staged. No mount is needed, nothing changes."""
    with Repository.open(sysroot.repository, insecure=sysroot.insecure) as repo:
        mark = state.read_staged(sysroot.staged_file)
        return plan_merge(
            _etc_of(repo, sysroot.need_booted()),
            read_live(f"{sysroot.current}/etc", algorithm=repo.algorithm),
            _etc_of(repo, mark.deployment) if mark else None,
        )


def _etc_of(repo: Repository, deployment: str) -> Directory:
    etc = read_image(repo.read_image(deployment), deployment[:16]).find_directory("etc")
    if etc is None:
        raise BootcError(f"the image {deployment[:16]}… has no /etc")
    return etc
