# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`delete-deployment`: one deployment goes, with its entry, its /etc and what only it needs.

The entry goes first and durably, so nothing that is shown in the menu ever lacks a part.
"""

from __future__ import annotations

import logging
import os
import shutil

from bootc import fs, paths
from bootc.deploy import machine, messages, state
from bootc.deploy.stage import clean_up_after, forget_staged, live_deployments, role_of
from bootc.deploy.sysroot import Deployment, Sysroot, read_deployments
from bootc.errors import BootcError

_log = logging.getLogger(__name__)


def delete_deployment(sysroot: Sysroot, name: str) -> str:
    """Delete the deployment whose id is `name`, or begins with it; returns what it was.

    The booted one is refused. A rollback that was queued is queued no more by deleting it.
    """
    mark = state.read_staged(sysroot.staged_file)
    victim = find_deployment(live_deployments(sysroot), name)
    role = role_of(sysroot, victim, mark)
    if role == "booted":
        raise BootcError(
            "Cannot delete the booted deployment",
            hint="boot another one first: bootc rollback, and reboot",
        )
    if role == "staged":
        forget_staged(sysroot)
    elif victim.file is not None:
        fs.remove_file(f"{sysroot.need_esp()}/{paths.ENTRIES}/{victim.file}")
    if victim.id not in {one.id for one in read_deployments(sysroot)}:
        folder = f"{sysroot.root}/{paths.state_dir(victim.id)}"
        if os.path.isdir(folder):
            shutil.rmtree(folder)
    clean_up_after(sysroot)
    machine.announce(sysroot)
    _log.info("Deleted %s", victim.id, extra={"MESSAGE_ID": messages.DELETE})
    return f"Deleted the {role} deployment {victim.id}"


def find_deployment(found: list[Deployment], name: str) -> Deployment:
    """The one deployment whose id is `name`, or begins with it (8 digits at least)."""
    fits = [one for one in found if one.id == name] or [
        one for one in found if len(name) >= 8 and one.id.startswith(name)
    ]
    if len(fits) == 1:
        return fits[0]
    problem = "is no deployment" if not fits else "fits several deployments"
    known = ", ".join(one.id[:16] for one in found)
    raise BootcError(f"{name or 'an empty id'} {problem}", hint=f"there are: {known}")
