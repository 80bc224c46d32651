# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A machine's description, and the libvirt domain XML made from it: a function of values only.

The choices, all measured under TCG: q35, virtio-blk with `cache='unsafe'` (NVMe cannot be saved to
memory images), virtio-rng, no USB and no balloon, `cpu maximum` (an older model costs 1.7 times),
no network ROM, the serial console into a file. Everything is plain XML, credentials too (SMBIOS
type 11 strings `io.systemd.credential.binary:NAME=BASE64`); the SSH forward is added to the running
machine, so that the kernel chooses the port.

The exception is a disk whose writes are logged, for tests of power cuts: libvirt knows no such
filter, and gives its own block nodes numbers that nobody can foretell. So that disk is handed to
QEMU whole, as `qemu:commandline`.
"""

from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from bootc.errors import BootcError

NETDEV = "hostnet0"
"""libvirt's name for QEMU's back end of the first interface."""
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
"""XML namespace of arguments that libvirt passes on to QEMU."""
_LOGGED_SLOT = 0x1D
"""The PCI slot of the first logged disk, where libvirt puts nothing of its own."""
METADATA = "https://bootc.dev/kit/machine/1"
"""XML namespace of our `<metadata>`."""
_MAC = "52:54:00:b0:07:0c"


class Accel(StrEnum):
    KVM = "kvm"
    TCG = "tcg"

    @property
    def domain_type(self) -> str:
        return "kvm" if self is Accel.KVM else "qemu"

    @property
    def cpu_mode(self) -> str:
        return "host-passthrough" if self is Accel.KVM else "maximum"


# TCG runs string instructions byte by byte. Without these flags the kernel copies words, and
# copying from the page cache is three to eight times faster.
_SLOW_EMULATED = ("erms", "fsrm")


class DiskFormat(StrEnum):
    RAW = "raw"
    QCOW2 = "qcow2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A virtio disk: the first is /dev/vda. `bootindex` counts from 1, for firmware.

    `write_log` is an empty file that takes the log of all writes (`vmtests.blklog`); such a machine
    cannot be saved.
    """

    path: Path
    format: DiskFormat = DiskFormat.RAW
    serial: str | None = None
    readonly: bool = False
    bootindex: int | None = None
    write_log: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectKernel:
    """QEMU loads the kernel itself; no boot loader, no firmware menu."""

    kernel: Path
    cmdline: str
    initrd: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Uefi:
    """Boot from a disk through UEFI. `vars` is this machine's own copy; `secure` needs SMM."""

    code: Path
    vars: Path
    secure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """Everything that decides how a machine looks from inside."""

    name: str
    boot: DirectKernel | Uefi
    console: Path
    disks: tuple[Disk, ...] = ()
    memory_mib: int = 1024
    vcpus: int = 2
    accel: Accel = Accel.TCG
    authorized_key: str | None = None
    """A public key line for root, or None for no access."""
    credentials: Mapping[str, bytes] = field(default_factory=dict)
    emulator: Path | None = None
    machine: str = "q35"
    cx16: bool = True
    """False hides cmpxchg16b, whose flags QEMU before 8.1 computes wrongly."""
    tags: Mapping[str, str] = field(default_factory=dict)


def _missing_features(spec: MachineSpec) -> tuple[str, ...]:
    """CPU features that the guest is not to see."""
    slow = _SLOW_EMULATED if spec.accel is Accel.TCG else ()
    return slow if spec.cx16 else (*slow, "cx16")


def domain_xml(spec: MachineSpec) -> str:
    """The domain XML for `spec`, indented, with a newline at its end."""
    _check(spec)
    root = ET.Element("domain", type=spec.accel.domain_type)
    _text(root, "name", spec.name)
    if spec.tags:
        ET.register_namespace("kit", METADATA)
        machine = ET.SubElement(ET.SubElement(root, "metadata"), f"{{{METADATA}}}machine")
        for name, value in sorted(spec.tags.items()):
            _text(machine, f"{{{METADATA}}}tag", value, name=name)
    _text(root, "memory", str(spec.memory_mib), unit="MiB")
    _text(root, "vcpu", str(spec.vcpus))
    _add_sysinfo(root, spec)
    _add_os(root, spec)
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    if isinstance(spec.boot, Uefi) and spec.boot.secure:
        ET.SubElement(features, "smm", state="on")
    cpu = ET.SubElement(root, "cpu", mode=spec.accel.cpu_mode)
    for name in _missing_features(spec):
        ET.SubElement(cpu, "feature", policy="disable", name=name)
    ET.SubElement(root, "clock", offset="utc")
    _text(root, "on_poweroff", "destroy")
    _text(root, "on_reboot", "restart")
    _text(root, "on_crash", "destroy")
    _add_devices(root, spec)
    _add_logged_disks(root, spec)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def credential_strings(spec: MachineSpec) -> list[str]:
    """The SMBIOS type 11 strings that hand systemd its credentials."""
    wanted = dict(spec.credentials)
    if spec.authorized_key is not None:
        wanted["ssh.authorized_keys.root"] = spec.authorized_key.encode()
    return [
        f"io.systemd.credential.binary:{name}={base64.b64encode(value).decode()}"
        for name, value in sorted(wanted.items())
    ]


def restored_xml(
    xml: str, *, disks: Mapping[str, Path], console: Path, nvram: Path | None = None
) -> str:
    """A saved machine's XML, pointed at other files: `disks` maps targets (`vda`) to overlays.

    `<backingStore>` must go: with it QEMU opens an overlay without its base, and the guest reads
    nothing where it should read its root.
    """
    root = ET.fromstring(xml)
    for disk in root.iterfind("devices/disk"):
        for stale in disk.findall("backingStore"):
            disk.remove(stale)
        target, source = disk.find("target"), disk.find("source")
        path = None if target is None else disks.get(target.get("dev", ""))
        if path is not None and source is not None:
            source.set("file", str(path))
            source.attrib.pop("index", None)
    for element in root.iterfind("devices/*[@type='file']/source"):
        if element.get("path") is not None:
            element.set("path", str(console))
    variables = root.find("os/nvram")
    if variables is not None and nvram is not None:
        variables.text = str(nvram)
        variables.attrib.pop("template", None)
    return ET.tostring(root, encoding="unicode")


def _check(spec: MachineSpec) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,50}", spec.name):
        raise BootcError(
            f"{spec.name!r} is no machine name",
            hint="use at most 51 of a-z, 0-9, dot, dash and underscore, a letter or digit first",
        )
    if isinstance(spec.boot, Uefi) and not spec.disks:
        raise BootcError(f"{spec.name}: a UEFI machine needs a disk to boot from")
    for disk in spec.disks:
        if disk.write_log is not None and disk.readonly:
            raise BootcError(f"{disk.path} is read-only, so there are no writes to log")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _add_sysinfo(root: ET.Element, spec: MachineSpec) -> None:
    strings = credential_strings(spec)
    if strings:
        oem = ET.SubElement(ET.SubElement(root, "sysinfo", type="smbios"), "oemStrings")
        for entry in strings:
            _text(oem, "entry", entry)


def _add_os(root: ET.Element, spec: MachineSpec) -> None:
    os_ = ET.SubElement(root, "os")
    _text(os_, "type", "hvm", arch="x86_64", machine=spec.machine)
    match spec.boot:
        case DirectKernel(kernel=kernel, initrd=initrd, cmdline=cmdline):
            _text(os_, "kernel", str(kernel))
            if initrd is not None:
                _text(os_, "initrd", str(initrd))
            _text(os_, "cmdline", cmdline)
        case Uefi(code=code, vars=variables, secure=secure):
            flag = "yes" if secure else "no"
            _text(os_, "loader", str(code), readonly="yes", secure=flag, type="pflash")
            _text(os_, "nvram", str(variables))
    if credential_strings(spec):
        ET.SubElement(os_, "smbios", mode="sysinfo")


def _add_devices(root: ET.Element, spec: MachineSpec) -> None:
    devices = ET.SubElement(root, "devices")
    if spec.emulator is not None:
        _text(devices, "emulator", str(spec.emulator))
    for index, disk in enumerate(spec.disks):
        if disk.write_log is not None:
            continue
        element = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(element, "driver", name="qemu", type=disk.format, cache="unsafe")
        ET.SubElement(element, "source", file=str(disk.path))
        ET.SubElement(element, "target", dev=target_name(index), bus="virtio")
        if disk.serial is not None:
            _text(element, "serial", disk.serial)
        if disk.readonly:
            ET.SubElement(element, "readonly")
        if disk.bootindex is not None:
            ET.SubElement(element, "boot", order=str(disk.bootindex))
    ET.SubElement(devices, "controller", type="usb", model="none")
    interface = ET.SubElement(devices, "interface", type="user")
    ET.SubElement(interface, "mac", address=_MAC)
    ET.SubElement(interface, "model", type="virtio")
    ET.SubElement(interface, "rom", enabled="no")
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=str(spec.console))
    ET.SubElement(serial, "target", port="0")
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    ET.SubElement(devices, "memballoon", model="none")


def _add_logged_disks(root: ET.Element, spec: MachineSpec) -> None:
    """The disks whose writes are logged, as arguments for QEMU.

    Only the filter takes part in flushes: what lies below it is as unsafe as all our disks, and the
    log has its entry of the flush all the same.
    """
    logged = [(index, disk) for index, disk in enumerate(spec.disks) if disk.write_log is not None]
    if not logged:
        return
    ET.register_namespace("qemu", QEMU)
    command = ET.SubElement(root, f"{{{QEMU}}}commandline")
    cache = {"direct": False, "no-flush": True}
    for place, (index, disk) in enumerate(logged):
        name = target_name(index)
        content = {"driver": "file", "filename": str(disk.path), "cache": cache}
        log = {"driver": "file", "filename": str(disk.write_log), "cache": cache}
        device: dict[str, object] = {
            "driver": "virtio-blk-pci",
            "id": f"logged-{name}",
            "drive": f"filter-{name}",
            "bus": "pcie.0",
            "addr": f"{_LOGGED_SLOT - place:#x}",
            "write-cache": "on",
        }
        if disk.serial is not None:
            device["serial"] = disk.serial
        if disk.bootindex is not None:
            device["bootindex"] = disk.bootindex
        disk_node = {
            "node-name": f"disk-{name}",
            "driver": str(disk.format),
            "cache": cache,
            "file": content,
        }
        filter_node = {
            "node-name": f"filter-{name}",
            "driver": "blklogwrites",
            "file": f"disk-{name}",
            "log": log,
        }
        for option, value in (
            ("-blockdev", disk_node),
            ("-blockdev", filter_node),
            ("-device", device),
        ):
            ET.SubElement(command, f"{{{QEMU}}}arg", value=option)
            ET.SubElement(command, f"{{{QEMU}}}arg", value=json.dumps(value))


def target_name(index: int) -> str:
    """`vda` for the first disk."""
    if index >= 26:
        raise BootcError("a machine has at most 26 disks")
    return f"vd{chr(ord('a') + index)}"
