# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Whether a deployment can follow the running one without a new kernel: by a soft reboot.

It can if the kernel and initrd are the same (the boot digests of the origins), the kernel
arguments are, apart from `composefs=`, and, where SELinux is on, the policy that is loaded is the
one that the other image has (see selinux_policy).
"""

from __future__ import annotations

import os

from bootc.boot import kargs
from bootc.deploy.sysroot import Deployment

_ENFORCE = "/sys/fs/selinux/enforce"


def is_selinux_on() -> bool:
    """Whether this kernel has a policy loaded."""
    return os.path.exists(_ENFORCE)


def has_same_kernel(booted: Deployment, other: Deployment) -> bool:
    """Whether kernel, initrd and arguments are the same, as entries and origins have them."""
    if booted.origin is None or other.origin is None:
        return False
    digest = booted.origin.boot_digest
    if digest is None or digest != other.origin.boot_digest:
        return False
    if booted.entry is None or other.entry is None:
        return False
    without = ["composefs", "composefs.digest"]
    if booted.is_uki is not other.is_uki:
        return False
    mine, theirs = booted.arguments, other.arguments
    return sorted(kargs.without(mine, without)) == sorted(kargs.without(theirs, without))
