# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Disk images that hold only what is written: made empty or over another image, and made plain."""

from __future__ import annotations

from pathlib import Path

from bootc import process
from vmtests.domain import DiskFormat

_CONVERT_LIMIT = 600.0
"""Seconds: a disk of gigabytes on a slow machine."""


def make_qcow2(
    path: Path,
    *,
    size: int | None = None,
    backing: Path | None = None,
    backing_format: DiskFormat = DiskFormat.QCOW2,
) -> None:
    """A new qcow2 file: empty of `size` bytes, or an overlay of `backing`."""
    argv = [_qemu_img(), "create", "-q", "-f", "qcow2"]
    if backing is not None:
        argv += ["-b", str(backing.resolve()), "-F", str(backing_format)]
    argv.append(str(path))
    if size is not None:
        argv.append(str(size))
    process.run(argv, timeout=60)


def convert_to_raw(source: Path, target: Path) -> None:
    """The qcow2 image `source`, with all that it stands on, as a sparse raw image."""
    argv = [_qemu_img(), "convert", "-f", "qcow2", "-O", "raw", str(source), str(target)]
    process.run(argv, timeout=_CONVERT_LIMIT)


def _qemu_img() -> str:
    return process.need_program(
        "qemu-img", hint="install it: apt-get install qemu-utils, dnf install qemu-img"
    )
