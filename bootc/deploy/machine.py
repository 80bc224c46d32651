# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What is asked of the running system: to finalize at shutdown, to reboot, to tell others of it.

`/run/reboot-required` is the mark that reboot managers (kured) look for; ours holds the digest of
the image that waits.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from bootc import fs, paths, process
from bootc.deploy.sysroot import Sysroot
from bootc.errors import BootcError, ProcessError
from bootc.spec import Bootloader

FINALIZE_UNIT = "bootc-finalize-staged.service"
_PARKED = 3600.0
_UKI_SINCE = 258


def arm_finalize(sysroot: Sysroot) -> None:
    """Start the unit whose stop, at shutdown, finalizes what is staged. Nothing on a mock."""
    if not sysroot.live:
        return
    try:
        process.run(["systemctl", "start", "--quiet", FINALIZE_UNIT], timeout=120)
    except ProcessError as error:
        raise BootcError(
            "the unit that finalizes updates at shutdown could not be started",
            hint=f"systemctl status {FINALIZE_UNIT}",
        ) from error


def uki_key(sysroot: Sysroot) -> str:
    """The key of a boot entry that starts a unified kernel image: `uki`, or what all know, `efi`.

    systemd-boot knows `uki` from 258 on, grub doesn't.
    """
    if sysroot.bootloader is not Bootloader.SYSTEMD or process.find_program("bootctl") is None:
        return "efi"
    said = process.run(["bootctl", "--version"], timeout=60, check=False).stdout.split()
    version = int(said[1]) if len(said) > 1 and said[1].isdecimal() else 0
    return "uki" if version >= _UKI_SINCE else "efi"


def mark_reboot_required(sysroot: Sysroot, digest: str) -> None:
    """Tell reboot managers that this image waits."""
    fs.write_atomic(_mark(sysroot), f"{digest}\n")


def clear_reboot_required(sysroot: Sysroot) -> None:
    """Nothing waits any more."""
    with suppress(FileNotFoundError):
        os.unlink(_mark(sysroot))


def announce(sysroot: Sysroot) -> None:
    """Let those who wait for a new status look again: `bootc-status-updated.path` watches this."""
    folder = f"{sysroot.root}/{os.path.dirname(paths.STORAGE)}"
    os.makedirs(folder, mode=0o755, exist_ok=True)
    os.utime(folder)


def _mark(sysroot: Sysroot) -> str:
    return f"{sysroot.run}/reboot-required"


def request_reboot(reason: str, *, soft: bool = False) -> None:
    """Ask systemd for a reboot, or a soft one; this returns, and what runs is ended soon.

    The request is made by a unit of its own, so it is carried out even when we are ended first.
    """
    verb = "soft-reboot" if soft else "reboot"
    process.run(
        ["systemd-run", "--quiet", "--", "systemctl", verb, f"--message={reason}"], timeout=120
    )


def reboot(reason: str, *, soft: bool = False) -> None:
    """Ask systemd for a reboot, or a soft one, then wait to be ended by it."""
    request_reboot(reason, soft=soft)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_PARKED)
    raise BootcError(
        f"the machine did not {'soft-' * soft}reboot within {_PARKED:.0f} s",
        hint="systemctl list-jobs",
    )
