# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Logs of writes for tests, made byte by byte so that they can be wrong on purpose."""

from __future__ import annotations

import struct
from pathlib import Path

from vmtests.blklog import MAGIC


def superblock(count: int, *, sector: int = 512, magic: int = MAGIC, version: int = 1) -> bytes:
    return struct.pack("<QQQI", magic, version, count, sector).ljust(max(sector, 28), b"\0")


def entry(
    start: int,
    data: bytes = b"",
    flags: int = 0,
    *,
    sector: int = 512,
    count: int | None = None,
    mark: bytes = b"",
) -> bytes:
    sectors = len(data) // sector if count is None else count
    head = struct.pack("<QQQQ", start, sectors, flags, len(mark)) + mark
    return head.ljust(sector, b"\0") + data


def write_log(path: Path, *entries: bytes, sector: int = 512) -> Path:
    path.write_bytes(superblock(len(entries), sector=sector) + b"".join(entries))
    return path
