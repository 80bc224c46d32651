# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Logs that QEMU itself writes are read and replayed to the disk that QEMU left."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootc import process
from vmtests.blklog import count_entries, open_log
from vmtests.qcow2 import convert_to_raw
from vmtests.replay import Fate, Point, open_replay

COMMANDS = [
    "write -P 17 0 64k",
    "write -P 34 1M 512",
    "flush",
    "write -z 32k 16k",
    "write -P 51 -f 40k 1k",
    "discard 1M 64k",
    "aio_write -P 68 2M 1M",
    "aio_write -P 85 3M 512k",
    "aio_flush",
    "write -P 102 512 1536",
]


@pytest.mark.parametrize("sector", [512, 4096])
def test_log_of_qemu_replays_to_the_disk_of_qemu(tmp_path: Path, sector: int) -> None:
    base, disk, path = tmp_path / "base.qcow2", tmp_path / "disk.qcow2", tmp_path / "log"
    qemu_img = process.need_program("qemu-img", hint="apt-get install qemu-utils")
    process.run([qemu_img, "create", "-q", "-f", "qcow2", str(base), "4M"], timeout=30)
    process.run(["qemu-io", "-f", "qcow2", "-c", "write -P 255 0 4M", str(base)], timeout=30)
    process.run(
        [qemu_img, "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(disk)],
        timeout=30,
    )
    path.touch()
    options = {
        "driver": "blklogwrites",
        "discard": "unmap",
        "log-sector-size": str(sector),
        "file.driver": "qcow2",
        "file.discard": "unmap",
        "file.file.filename": str(disk),
        "log.driver": "raw",
        "log.file.filename": str(path),
    }
    image = ",".join(f"{key}={value}" for key, value in options.items())
    argv = ["qemu-io", "--image-opts", image]
    process.run([*argv, *(word for one in COMMANDS for word in ("-c", one))], timeout=60)

    convert_to_raw(base, tmp_path / "base.raw")
    convert_to_raw(disk, tmp_path / "after.raw")
    with (
        open_log(path) as log,
        open_replay(log, tmp_path / "base.raw", tmp_path) as replay,
    ):
        count = len(log.entries)
        assert count == count_entries(path)
        assert log.sector_size == sector
        writes = [(one.offset, one.size) for one in log.entries if one.is_write]
        assert writes[0] == (0, 65536)
        assert sum(one.is_discard for one in log.entries) == 1
        assert sum(one.is_flush for one in log.entries) >= 2
        for fate in (Fate.LOST, Fate.KEPT):
            # qemu-io flushes when it closes the disk: nothing is open at the end.
            replay.make(Point(entries=count, seed=0, fate=fate), tmp_path / "image")
            assert (tmp_path / "image").read_bytes() == (tmp_path / "after.raw").read_bytes()
