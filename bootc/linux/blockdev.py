# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Block devices through sysfs, ioctls and their own GPT: no udev and no lsblk needed.

GUID partition table (UEFI 2.10, chapter 5.3), little endian, at sector 1:

| offset | size | header |
|---|---|---|
| 0 | 8 | `EFI PART` |
| 16 | 4 | CRC32 of the header with this field zero; 12: the header's size |
| 72 | 8 | sector of the entries; 80: how many; 84: size of one; 88: CRC32 of them all |

| offset | size | entry |
|---|---|---|
| 0 | 16 | type GUID (zero: not in use); 16: the partition's own GUID |
| 32 | 8 | first sector; 40: last sector; 56: name, UTF-16-LE, 72 bytes |
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import time
import zlib

from bootc.errors import BootcError, FormatError
from bootc.records import dataclass

_BLKSSZGET = 0x1268
_BLKGETSIZE64 = 0x80081272
_BLKFLSBUF = 0x1261
_FITRIM = 0xC0185879
_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878

SYS_BLOCK = "/sys/class/block"
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")


@dataclass(frozen=True, slots=True, kw_only=True)
class GptPartition:
    """`type` and `uuid` in lower case with dashes; `start` and `size` in bytes."""

    number: int
    type: str
    uuid: str
    start: int
    size: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    """A line of /proc/self/mountinfo: `device` is `major:minor`, `options` those of the mount."""

    device: str
    root: str
    target: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]


def read_mounts(path: str = "/proc/self/mountinfo") -> list[Mounted]:
    """All mounts of this namespace, in the order they were made."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return [_parse_mount(line) for line in file if " - " in line]


def _parse_mount(line: str) -> Mounted:
    left, _, right = line.rstrip("\n").partition(" - ")
    _, _, device, root, target, options, *_ = left.split(" ")
    fstype, source, *rest = right.split(" ")
    return Mounted(
        device=device,
        root=_unescape(root),
        target=_unescape(target),
        options=tuple(options.split(",")),
        fstype=fstype,
        source=_unescape(source),
        super_options=tuple(rest[0].split(",")) if rest else (),
    )


def _unescape(text: str) -> str:
    for octal in ("040", "011", "012", "134"):
        text = text.replace(f"\\{octal}", chr(int(octal, 8)))
    return text


def find_mount(target: str, mounts: list[Mounted] | None = None) -> Mounted | None:
    """The topmost mount whose mount point is exactly `target`."""
    found = [item for item in (mounts or read_mounts()) if item.target == target]
    return found[-1] if found else None


def device_of(mount: Mounted) -> str:
    """`major:minor` of a mount's block device; btrfs shows an anonymous one in mountinfo."""
    if os.path.exists(f"/sys/dev/block/{mount.device}"):
        return mount.device
    try:
        return device_number(os.stat(mount.source).st_rdev)
    except OSError:
        return mount.device


def need_block_device(path: str) -> os.stat_result:
    """stat() of a block device, or the refusal of what is none."""
    try:
        info = os.stat(path)
    except OSError as error:
        raise BootcError(f"{path}: {error.strerror}", hint="`lsblk` shows the disks") from error
    if not stat.S_ISBLK(info.st_mode):
        raise BootcError(f"{path} is not a block device", hint="`lsblk` shows the disks")
    return info


def device_number(rdev: int) -> str:
    return f"{os.major(rdev)}:{os.minor(rdev)}"


def size_of(path: str) -> int:
    """Bytes of a block device (or of a regular file)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return os.fstat(fd).st_size
        room = bytearray(8)
        fcntl.ioctl(fd, _BLKGETSIZE64, room)
        return int.from_bytes(room, "little")
    finally:
        os.close(fd)


def _sector_size(fd: int) -> int:
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return 512
    room = bytearray(4)
    fcntl.ioctl(fd, _BLKSSZGET, room)
    return int.from_bytes(room, "little")


def read_gpt(path: str) -> list[GptPartition] | None:
    """The partitions of a disk or an image file, or None when it has no GPT.

    Raises `FormatError` when the table is there but damaged.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sector = _sector_size(fd)
        return _parse_gpt(fd, sector, path)
    finally:
        os.close(fd)


def _parse_gpt(fd: int, sector: int, source: str) -> list[GptPartition] | None:
    raw = os.pread(fd, sector, sector)
    if len(raw) < _HEADER.size or not raw.startswith(b"EFI PART"):
        return None
    fields = _HEADER.unpack_from(raw)
    size, crc, first_entry, count, width, entries_crc = (
        fields[2],
        fields[3],
        fields[10],
        fields[11],
        fields[12],
        fields[13],
    )
    if not 92 <= size <= sector or zlib.crc32(raw[:16] + bytes(4) + raw[20:size]) != crc:
        raise FormatError(source, sector, "the partition table's header is damaged")
    if width < 128 or count > 1024 or width > 4096:
        raise FormatError(source, sector, "the partition table's size is not plausible")
    table = os.pread(fd, count * width, first_entry * sector)
    if zlib.crc32(table) != entries_crc:
        raise FormatError(source, first_entry * sector, "the partition table is damaged")
    found = []
    for index in range(count):
        kind, own, first, last, _, name = _ENTRY.unpack_from(table, index * width)
        if kind != bytes(16):
            found.append(
                GptPartition(
                    number=index + 1,
                    type=_guid(kind),
                    uuid=_guid(own),
                    start=first * sector,
                    size=(last - first + 1) * sector,
                    name=name.decode("utf-16-le", "replace").split("\0", 1)[0],
                )
            )
    return found


def _guid(raw: bytes) -> str:
    """The text form; the first three groups are stored little endian."""
    first, second, third = struct.unpack_from("<IHH", raw)
    return f"{first:08x}-{second:04x}-{third:04x}-{raw[8:10].hex()}-{raw[10:].hex()}"


def disk_of(device: str) -> str | None:
    """The name of the disk under a partition or disk `major:minor`, one level up; None if none."""
    path = os.path.realpath(f"/sys/dev/block/{device}")
    if not os.path.isdir(path):
        return None
    if os.path.exists(f"{path}/partition"):
        return os.path.basename(os.path.dirname(path))
    return os.path.basename(path)


def backing_disks(device: str) -> list[str]:
    """The names of all disks below `major:minor`, through LVM, RAID and LUKS, nearest first."""
    path = os.path.realpath(f"/sys/dev/block/{device}")
    try:
        slaves = sorted(os.listdir(f"{path}/slaves"))
    except OSError:
        slaves = []
    if not slaves:
        disk = disk_of(device)
        return [disk] if disk else []
    found: list[str] = []
    for name in slaves:
        with open(f"{path}/slaves/{name}/dev", encoding="ascii") as file:
            found += [disk for disk in backing_disks(file.read().strip()) if disk not in found]
    return found


def partition_names(disk: str) -> dict[int, str]:
    """Partition number → kernel name, as the kernel sees the disk now."""
    found: dict[int, str] = {}
    base = f"{SYS_BLOCK}/{disk}"
    for name in os.listdir(base):
        try:
            with open(f"{base}/{name}/partition", encoding="ascii") as file:
                found[int(file.read())] = name
        except OSError:
            continue
    return found


def holders(disk: str) -> list[str]:
    """What lies on top of the disk or of its partitions: device mapper, RAID."""
    found: list[str] = []
    for name in (disk, *partition_names(disk).values()):
        try:
            found += os.listdir(f"{SYS_BLOCK}/{name}/holders")
        except OSError:
            continue
    return sorted(set(found))


def is_readonly(device: str) -> bool:
    """Whether the block device `major:minor` takes no writes."""
    try:
        with open(f"/sys/dev/block/{device}/ro", encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


def wait_for_node(path: str, *, timeout: float = 10.0) -> None:
    """Wait until the device node exists; `BootcError` when it does not come."""
    end = time.monotonic() + timeout
    while not os.path.exists(path):
        if time.monotonic() > end:
            raise BootcError(
                f"{path} did not appear in {timeout:.0f} s", hint="is /dev a devtmpfs?"
            )
        time.sleep(0.02)


def trim(path: str) -> int | None:
    """Discard the free space of the mounted file system; bytes, or None where there is no trim."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        room = bytearray(struct.pack("=QQQ", 0, 2**64 - 1, 0))
        fcntl.ioctl(fd, _FITRIM, room)
        length: int = struct.unpack("=QQQ", room)[1]
        return length
    except OSError:
        return None
    finally:
        os.close(fd)


def freeze_and_thaw(path: str) -> None:
    """Write out the journal of the mounted file system, so that the next mount has no recovery."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _FIFREEZE, 0)
        fcntl.ioctl(fd, _FITHAW, 0)
    finally:
        os.close(fd)
