# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The booted-memory cache believes no entry that is not exactly what was saved."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmtests import snapshot
from vmtests.domain import DirectKernel, Disk, MachineSpec


def make_entry(tmp_path: Path) -> tuple[Path, Path]:
    """A cache with the entry `k`, as a build leaves it; returns the cache and the base disk."""
    cache, base = tmp_path / "cache", tmp_path / "base.raw"
    base.write_bytes(b"base")
    folder = cache / "k"
    folder.mkdir(parents=True)
    (folder / "memory").write_bytes(b"memory" * 1000)
    (folder / "disk0.qcow2").write_bytes(b"disk")
    spec = MachineSpec(
        name="m",
        console=Path("/c"),
        boot=DirectKernel(kernel=Path("/k"), cmdline=""),
        disks=(Disk(path=base),),
    )
    snapshot._write_manifest(folder, spec, timings={"ready": 1.0}, identity="boot\n0")
    return cache, base


def test_a_whole_entry_is_found(tmp_path: Path) -> None:
    cache, _ = make_entry(tmp_path)
    found = snapshot.find_snapshot(cache, "k")
    assert found is not None
    assert found.memory.read_bytes().startswith(b"memory")
    assert snapshot._read_identity(found) == "boot\n0"


@pytest.mark.parametrize(
    "harm", ["bit", "short", "no memory", "no manifest", "bad manifest", "base"]
)
def test_a_harmed_entry_is_thrown_away(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache, base = make_entry(tmp_path)
    memory, manifest = cache / "k/memory", cache / "k/manifest.json"
    match harm:
        case "bit":
            data = bytearray(memory.read_bytes())
            data[3000] ^= 1
            memory.write_bytes(data)
        case "short":
            os.truncate(memory, 100)
        case "no memory":
            memory.unlink()
        case "no manifest":
            manifest.unlink()
        case "bad manifest":
            manifest.write_text(manifest.read_text()[:-20])
        case _:
            base.write_bytes(b"BASE")
            os.utime(base, ns=(1, 1))
    assert snapshot.find_snapshot(cache, "k") is None
    assert not (cache / "k").exists()
    assert "booting" in caplog.text


def test_an_entry_that_is_not_there_is_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert snapshot.find_snapshot(tmp_path, "k") is None
    assert caplog.text == ""


def test_prune_keeps_what_was_used_last(tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / f"k{number}"
        folder.mkdir()
        os.utime(folder, (number, number))
    (tmp_path / ".new-999999999-k").mkdir()
    (tmp_path / f".new-{os.getpid()}-k").mkdir()
    assert snapshot.prune_snapshots(tmp_path, keep=2) == ["k1", "k0"]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f".new-{os.getpid()}-k", "k2", "k3"]
