# SPDX-License-Identifier: Apache-2.0 OR MIT
"""How the tiny initrd finds its root, its modules and its init."""

from __future__ import annotations

import binascii
import os
import struct
import uuid
from pathlib import Path

import pytest

from bootc import process
from bootc.initramfs import rootdev, tiny_init
from bootc.initramfs.rootdev import Device, RootDeviceError

ROOT = rootdev.ROOT_TYPES["x86_64"]
ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"


def _gpt(partitions: list[tuple[str, str, str, int]]) -> bytes:
    """A disk's first 34 blocks with (type, uuid, name, flags) partitions."""
    table = bytearray(128 * 128)
    for index, (kind, unique, name, flags) in enumerate(partitions):
        guids = uuid.UUID(kind).bytes_le + uuid.UUID(unique).bytes_le
        entry = guids + struct.pack("<QQQ", 2048, 4096, flags) + name.encode("utf-16-le")
        table[index * 128 : index * 128 + len(entry)] = entry
    tail = struct.pack("<QIII", 2, 128, 128, binascii.crc32(table))
    disk = bytes(16) + struct.pack("<QQQQ", 1, 0, 34, 999) + bytes(16) + tail
    header = b"EFI PART" + struct.pack("<III", 0x10000, 92, 0) + bytes(4) + disk[16:]
    checksum = binascii.crc32(header)
    header = header[:16] + struct.pack("<I", checksum) + header[20:]
    return bytes(512) + header.ljust(512, b"\0") + table


def _disk(tmp_path: Path, data: bytes) -> list[rootdev.Partition]:
    path = tmp_path / "disk"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return rootdev.read_partitions(fd)
    finally:
        os.close(fd)


def test_gpt_entries_are_read(tmp_path: Path) -> None:
    unique = "01234567-89ab-cdef-0123-456789abcdef"
    entries = [(ESP, str(uuid.uuid4()), "ESP", 0), (ROOT, unique, "root-é", rootdev.FLAG_NO_AUTO)]
    found = _disk(tmp_path, _gpt(entries))
    assert [part.number for part in found] == [1, 2]
    assert (found[1].type, found[1].uuid, found[1].name) == (ROOT, unique, "root-é")
    assert found[1].flags == rootdev.FLAG_NO_AUTO


@pytest.mark.parametrize("offset", [512, 530, 1024])
def test_damaged_gpt_is_no_table(tmp_path: Path, offset: int) -> None:
    disk = bytearray(_gpt([(ROOT, str(uuid.uuid4()), "root", 0)]))
    disk[offset] ^= 1
    assert _disk(tmp_path, bytes(disk)) == []
    assert _disk(tmp_path, bytes(100)) == []


def test_gpt_as_sfdisk_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, 8 << 20)
    script = f"label: gpt\nsize=1MiB,type=U,name=ESP\nsize=2MiB,type={ROOT},name=root\n"
    process.run(["sfdisk", "-q", str(path)], stdin=script)
    fd = os.open(path, os.O_RDONLY)
    try:
        found = rootdev.read_partitions(fd)
    finally:
        os.close(fd)
    assert [(part.type, part.name) for part in found] == [(ESP, "ESP"), (ROOT, "root")]


def _probe(path: Path) -> tuple[str, str, str]:
    with path.open("rb") as file:
        return rootdev.probe(file.read(68 << 10))


IDENTITY = "3c6f6a1e-0d3f-4b51-9b5b-7d4a1f6d2a11"


@pytest.mark.parametrize(
    ("kind", "argv", "size"),
    [
        ("ext4", ["mke2fs", "-q", "-t", "ext4", "-U", IDENTITY, "-L", "my root"], 4),
        ("ext2", ["mke2fs", "-q", "-t", "ext2", "-U", IDENTITY, "-L", "my root"], 4),
        ("btrfs", ["mkfs.btrfs", "-q", "-U", IDENTITY, "-L", "my root"], 120),
        ("xfs", ["mkfs.xfs", "-q", "-m", f"uuid={IDENTITY}", "-L", "my root"], 320),
    ],
)
def test_file_systems_are_recognised(tmp_path: Path, kind: str, argv: list[str], size: int) -> None:
    if process.find_program(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed")
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, size << 20)
    process.run([*argv, str(path)])
    assert _probe(path) == (kind, IDENTITY, "my root")


def test_unknown_content_is_no_file_system() -> None:
    assert rootdev.probe(b"") == ("", "", "")
    assert rootdev.probe(bytes(68 << 10)) == ("", "", "")


def _devices() -> list[Device]:
    esp, root, other = Device("vda1"), Device("vda2"), Device("vdb")
    esp.parttype = ESP
    root.parttype, root.partuuid, root.partlabel = ROOT, "aa-1", "root"
    root.fstype, root.uuid, root.label = "ext4", "bb-2", "data"
    other.label, other.uuid = "data", "cc-3"
    return [esp, root, other]


@pytest.mark.parametrize(
    ("root", "names"),
    [
        (None, ["vda2"]),
        ("gpt-auto", ["vda2"]),
        ("/dev/vdb", ["vdb"]),
        ("/dev/vdc", []),
        ("UUID=BB-2", ["vda2"]),
        ("LABEL=data", ["vda2", "vdb"]),
        ("PARTUUID=AA-1", ["vda2"]),
        ("PARTLABEL=root", ["vda2"]),
        ("/dev/disk/by-uuid/cc-3", ["vdb"]),
        ("/dev/disk/by-partlabel/root", ["vda2"]),
    ],
)
def test_root_argument_names_devices(root: str | None, names: list[str]) -> None:
    assert [one.name for one in rootdev.matching(_devices(), root, "x86_64")] == names


def test_discoverable_root_heeds_the_machine_and_no_auto() -> None:
    devices = _devices()
    assert rootdev.matching(devices, None, "aarch64") == []
    devices[1].flags = rootdev.FLAG_NO_AUTO
    assert rootdev.matching(devices, None, "x86_64") == []


def test_unknown_root_tag_is_refused() -> None:
    with pytest.raises(RootDeviceError, match=r"root=NFS=x"):
        rootdev.matching(_devices(), "NFS=x", "x86_64")


def test_root_that_never_appears_tells_what_there_is() -> None:
    with pytest.raises(RootDeviceError, match=r"root=UUID=no-such did not appear in 0 s; there is"):
        rootdev.find_root("UUID=no-such", patience=0)


def test_module_index_gives_the_needs(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("start virtio_blk\ndemand libcrc32c\ndemand erofs libcrc32c\n")
    modules = tiny_init.Modules(str(tmp_path), ["erofs.a=1", "erofs.b=2", "other.c=3"])
    assert modules.parameters("erofs") == "a=1 b=2"
    modules.load("not-packed")
    with pytest.raises(FileNotFoundError, match=r"libcrc32c\.ko"):
        modules.load("erofs")


def test_no_modules_is_no_error(tmp_path: Path) -> None:
    tiny_init.Modules(str(tmp_path), []).load_start()


def test_init_is_found_inside_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin/init").symlink_to("/usr/lib/systemd/systemd")
    assert tiny_init.find_init([], str(tmp_path)) == "/sbin/init"
    with pytest.raises(tiny_init.InitError, match="the root has no /bin/own"):
        tiny_init.find_init(["init=/bin/own"], str(tmp_path))
    with pytest.raises(tiny_init.InitError, match="no /sbin/init nor /etc/init"):
        tiny_init.find_init([], str(tmp_path / "sbin"))


def test_emptying_goes_down_and_stays_on_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/file").write_text("x")
    (tmp_path / "usr/link").symlink_to("/etc")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        tiny_init.empty(fd, -1)
        assert (tmp_path / "usr/lib/file").exists()
        tiny_init.empty(fd, os.fstat(fd).st_dev)
    finally:
        os.close(fd)
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_process_may_run_it() -> None:
    with pytest.raises(SystemExit):
        tiny_init.main()
