# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Find the block device of the root, without udev: by superblocks and GUID partition tables.

Standard library only and little of it: the initrd packs this file. Sources: UEFI 2.10 chapter 5.3
(GPT), the kernel's ext4, XFS and btrfs format documents, the Discoverable Partitions Specification.

| format | magic | UUID | label |
|---|---|---|---|
| ext2-4 | 0xef53 (LE) at 1080 | 1128 | 1144, 16 bytes |
| XFS | `XFSB` at 0 | 32 | 108, 12 bytes |
| btrfs | `_BHRfS_M` at 65600 | 65568 | 65835, 256 bytes |
| EROFS | 0xe0f5e1e2 (LE) at 1024 | 1072 | 1088, 16 bytes |

GPT: the header in block 1 (`EFI PART`, CRC-32 of itself at 16), the entries where it says: type and
unique GUID (16 bytes each, the first three fields little-endian), first and last block, flags,
72 bytes of UTF-16 name.
"""

import binascii
import os
import struct
import time

SYS_BLOCK = "/sys/class/block"

ROOT_TYPES = {
    "x86_64": "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    "i686": "44479540-f297-41b2-9af7-d131d5f0458a",
    "aarch64": "b921b045-1df0-41c3-af44-4c6f280d3fae",
    "armv7l": "69dad710-2ce4-4e3c-b16c-21a1d49abed3",
    "ppc64le": "c31c45e6-3f39-412e-80fb-4809c4980599",
    "s390x": "5eead9a9-fe09-4a1e-a1d7-520d00531306",
    "riscv64": "72ec70a6-cf74-40e6-bd49-4bda08e8f224",
    "loongarch64": "77055800-792c-4f94-b39a-98c91b762bb6",
}
"""The Discoverable Partitions' type of the root, by `uname -m`."""

FLAG_READ_ONLY = 1 << 60
FLAG_NO_AUTO = 1 << 63

_BY_LINK = {
    "/dev/disk/by-uuid/": "UUID",
    "/dev/disk/by-label/": "LABEL",
    "/dev/disk/by-partuuid/": "PARTUUID",
    "/dev/disk/by-partlabel/": "PARTLABEL",
}


class RootDeviceError(Exception):
    """No device, or more than one, is the root: which was looked for, and what there is."""


class Device:
    """A block device and what identifies it; a field that is not known is empty."""

    __slots__ = ("flags", "fstype", "label", "name", "partlabel", "parttype", "partuuid", "uuid")

    def __init__(self, name: str) -> None:
        self.name = name
        self.fstype = self.uuid = self.label = ""
        self.parttype = self.partuuid = self.partlabel = ""
        self.flags = 0

    @property
    def path(self) -> str:
        """The device node."""
        return f"/dev/{self.name}"

    def __str__(self) -> str:
        known = [self.fstype, self.uuid and f"UUID={self.uuid}", self.label and f"({self.label})"]
        return " ".join([self.path, *(text for text in known if text)])


class Partition:
    """An entry of a GUID partition table."""

    __slots__ = ("flags", "name", "number", "type", "uuid")

    def __init__(self, number: int, kind: str, uuid: str, flags: int, name: str) -> None:
        self.number = number
        self.type = kind
        self.uuid = uuid
        self.flags = flags
        self.name = name


def guid_text(raw: bytes, *, little: bool = False) -> str:
    """A 16-byte UUID as text; `little` for GPT's mixed order."""
    if little:
        raw = raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:]
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def probe(start: bytes) -> tuple[str, str, str]:
    """(type, UUID, label) of the file system whose first 68 KiB are `start`; empty: not known."""
    if start[1080:1082] == b"\x53\xef":
        journal, incompatible = struct.unpack_from("<II", start, 1116)
        ext4 = incompatible & 0x2C0  # extents, 64bit, flex_bg
        kind = "ext4" if ext4 else "ext3" if journal & 4 else "ext2"
        return kind, guid_text(start[1128:1144]), _text(start[1144:1160])
    if start[:4] == b"XFSB":
        return "xfs", guid_text(start[32:48]), _text(start[108:120])
    if start[65600:65608] == b"_BHRfS_M":
        return "btrfs", guid_text(start[65568:65584]), _text(start[65835:66091])
    if start[1024:1028] == b"\xe2\xe1\xf5\xe0":
        return "erofs", guid_text(start[1072:1088]), _text(start[1088:1104])
    return "", "", ""


def read_partitions(fd: int, block: int = 512) -> list[Partition]:
    """The partitions in the table of the disk `fd`; none when it has no sound GPT."""
    header = os.pread(fd, 92, block)
    if len(header) < 92 or header[:8] != b"EFI PART":
        return []
    size, checksum = struct.unpack_from("<II", header, 12)
    if size != 92 or binascii.crc32(header[:16] + bytes(4) + header[20:]) != checksum:
        return []
    first, count, stride, checksum = struct.unpack_from("<QIII", header, 72)
    if stride < 128 or count > 4096:
        return []
    table = os.pread(fd, count * stride, first * block)
    if binascii.crc32(table) != checksum:
        return []
    found: list[Partition] = []
    for number in range(count):
        entry = table[number * stride : (number + 1) * stride]
        if entry[:16] == bytes(16):
            continue
        flags = struct.unpack_from("<Q", entry, 48)[0]
        # No decode("utf-16-le"): the initrd holds no codec but UTF-8.
        name = "".join(map(chr, struct.unpack("<36H", entry[56:128]))).split("\0", 1)[0]
        kind, uuid = guid_text(entry[:16], little=True), guid_text(entry[16:32], little=True)
        found.append(Partition(number + 1, kind, uuid, flags, name))
    return found


def _read_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def scan(sys_block: str = SYS_BLOCK, dev: str = "/dev") -> list[Device]:
    """Every readable block device with a size, by name."""
    found: dict[str, Device] = {}
    tables: dict[str, list[Partition]] = {}
    for name in sorted(os.listdir(sys_block)):
        try:
            if _read_line(f"{sys_block}/{name}/size") in ("", "0"):
                continue
            fd = os.open(f"{dev}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        device = found[name] = Device(name)
        try:
            device.fstype, device.uuid, device.label = probe(os.pread(fd, 68 << 10, 0))
            if not os.path.exists(f"{sys_block}/{name}/partition"):
                block = int(_read_line(f"{sys_block}/{name}/queue/logical_block_size") or 512)
                tables[name] = read_partitions(fd, block)
        except OSError:
            continue
        finally:
            os.close(fd)
    for name, device in found.items():
        number = _read_line(f"{sys_block}/{name}/partition")
        disk = os.path.basename(os.path.dirname(os.path.realpath(f"{sys_block}/{name}")))
        for part in tables.get(disk, []) if number else []:
            if part.number == int(number):
                device.parttype, device.partuuid = part.type, part.uuid
                device.partlabel, device.flags = part.name, part.flags
    return list(found.values())


def matching(devices: list[Device], root: str | None, machine: str) -> list[Device]:
    """Those of `devices` that `root=` means; without it, the discoverable root partitions."""
    if not root or root == "gpt-auto":
        kind = ROOT_TYPES.get(machine, "?")
        return [one for one in devices if one.parttype == kind and not one.flags & FLAG_NO_AUTO]
    for start, tag in _BY_LINK.items():
        if root.startswith(start):
            root = f"{tag}={root[len(start) :]}"
    tag, equals, value = root.partition("=")
    if not equals:
        return [one for one in devices if one.path == root]
    lower = value.lower()
    match tag:
        case "UUID":
            return [one for one in devices if one.uuid == lower]
        case "LABEL":
            return [one for one in devices if one.label == value]
        case "PARTUUID":
            return [one for one in devices if one.partuuid == lower]
        case "PARTLABEL":
            return [one for one in devices if one.partlabel == value]
        case _:
            raise RootDeviceError(
                f"root={root}: not a device, UUID=, LABEL=, PARTUUID= or PARTLABEL="
            )


def describe_wanted(root: str | None) -> str:
    """What is looked for, for a message."""
    return f"root={root}" if root else "the discoverable root partition (no root= given)"


def find_root(root: str | None, *, patience: float = 10.0) -> Device:
    """Wait up to `patience` seconds for the one device that is the root."""
    deadline = time.monotonic() + patience
    machine = os.uname().machine
    while True:
        devices = scan()
        found = matching(devices, root, machine)
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(map(str, found))
            raise RootDeviceError(f"{describe_wanted(root)} is ambiguous: {names}")
        if time.monotonic() > deadline:
            there = ", ".join(map(str, devices)) or "no block device (is the disk's driver packed?)"
            raise RootDeviceError(
                f"{describe_wanted(root)} did not appear in {patience:.0f} s; there is {there}"
            )
        time.sleep(0.02)
