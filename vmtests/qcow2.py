# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Disk images that hold only what is written: empty ones, and overlays of another image."""

from __future__ import annotations

from pathlib import Path

from bootc import process
from vmtests.domain import DiskFormat


def make_qcow2(
    path: Path,
    *,
    size: int | None = None,
    backing: Path | None = None,
    backing_format: DiskFormat = DiskFormat.QCOW2,
) -> None:
    """A new qcow2 file: empty of `size` bytes, or an overlay of `backing`."""
    program = process.need_program(
        "qemu-img", hint="install it: apt-get install qemu-utils, dnf install qemu-img"
    )
    argv = [program, "create", "-q", "-f", "qcow2"]
    if backing is not None:
        argv += ["-b", str(backing.resolve()), "-F", str(backing_format)]
    argv.append(str(path))
    if size is not None:
        argv.append(str(size))
    process.run(argv, timeout=60)
