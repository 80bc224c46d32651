# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What is done about an ESP that a power cut left: `fsck.vfat -a` until it finds nothing more, and,
when it is mounted, the end marks with names behind them, which fsck.vfat doesn't mind."""

from __future__ import annotations

import logging
import os
import shlex
from contextlib import suppress

from bootc import fs, process
from bootc.boot import fat
from bootc.errors import FormatError
from bootc.log import step

_log = logging.getLogger(__name__)
_CHECK_LIMIT, _CHECKS = 300.0, 8
"""Seconds, and how often at most."""
_FSCK_REPAIRED = 1
_MAX_FILLED = 1000


def repair(node: str) -> list[str]:
    """Let fsck.vfat repair an ESP that was not unmounted, and isn't mounted anywhere now.

    It runs until it finds nothing more: of two names of one folder it empties the later one first,
    and removes that the next time. The files that it makes in the root of what has no name any more
    are returned: who mounts the ESP should remove them.
    """
    try:
        with open(node, "rb", buffering=0) as device:
            if not fat.is_dirty(device.fileno()):
                return []
    except (FormatError, OSError):
        return []  # the mount will tell
    program = process.find_program("fsck.vfat")
    if program is None:
        _log.warning("the ESP %s was not unmounted, and fsck.vfat (dosfstools) is missing", node)
        return []
    try:
        # Nobody can mount it meanwhile.
        claim = os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError:
        return []  # it is mounted (EBUSY); whatever else is wrong, the mount will tell
    try:
        with step(f"check the ESP {node}, which was not unmounted"):
            before = fat.root_files(claim)
            sound = _check([program, "-a", node])
            return sorted(fat.root_files(claim) - before) if sound else []
    except (FormatError, OSError) as error:
        _log.warning("the ESP %s cannot be repaired: %s", node, error)
        return []
    finally:
        os.close(claim)


def fill_gaps(node: str, target: str) -> None:
    """Take away every end mark that has names behind it, on an ESP that is mounted at `target`.

    Behind such a mark the boot loader sees nothing (`fat.find_gaps`). A new file gets a folder's
    first free slot: as many files as there are up to the mark are made, and removed again, which
    leaves slots that are marked as removed. systemd may have checked and mounted the ESP before us,
    so this must not need it to be free.
    """
    try:
        with open(node, "rb", buffering=0) as device:
            gaps = fat.find_gaps(device.fileno())
            for path, slots in gaps.items():
                _log.info("the ESP's folder /%s has names behind its end; filling the gap", path)
                _fill(f"{target}/{path}", slots)
            left = fat.find_gaps(device.fileno()) if gaps else {}
    except (FormatError, OSError) as error:
        _log.warning("the folders of the ESP %s cannot be repaired: %s", node, error)
        return
    if left:
        _log.warning(
            "the boot loader cannot see all of the ESP's folders %s: copy what is in them, remove "
            "them, and put it there again",
            ", ".join(f"/{path}" for path in left),
        )


def _fill(folder: str, slots: int) -> None:
    """The names are short ones, which need one slot each."""
    files = [f"{folder}/BOOTC{number:03}.GAP" for number in range(min(slots, _MAX_FILLED))]
    try:
        for file in files:
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    finally:
        for file in files:
            with suppress(FileNotFoundError):
                os.unlink(file)
        fs.sync_filesystem(folder)


def _check(argv: list[str]) -> bool:
    """Whether the file system is sound now."""
    lines: list[str] = []
    for _ in range(_CHECKS):
        done = process.run(argv, timeout=_CHECK_LIMIT, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        # The first line is the program's name, the last how full the file system is.
        _log.debug("fsck.vfat: %s", "; ".join(line.strip() for line in lines[1:-1]))
        if not done.status:
            return True
        if done.status != _FSCK_REPAIRED:
            break
    _log.warning("the ESP cannot be repaired: %s: %s", shlex.join(argv), "; ".join(lines[-3:]))
    return False
