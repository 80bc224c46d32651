# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The domain XML against goldens; `UPDATE_GOLDENS=1` rewrites them."""

from __future__ import annotations

import base64
import json
import os
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from bootc.errors import BootcError
from vmtests.domain import (
    QEMU,
    Accel,
    DirectKernel,
    Disk,
    DiskFormat,
    MachineSpec,
    Uefi,
    domain_xml,
    restored_xml,
    target_name,
)

GOLDENS = Path(__file__).parent.parent / "golden" / "domain"

DIRECT = MachineSpec(
    name="bootc-test",
    console=Path("/state/console.log"),
    disks=(Disk(path=Path("/state/disk.qcow2"), format=DiskFormat.QCOW2),),
    boot=DirectKernel(
        kernel=Path("/image/vmlinuz"),
        initrd=Path("/image/initrd"),
        cmdline='console=ttyS0 root=/dev/vda x="a<b>&c"',
    ),
    authorized_key="ssh-ed25519 AAAA test",
)
UEFI = MachineSpec(
    name="bootc-dev",
    console=Path("/state/console.log"),
    disks=(
        Disk(path=Path("/state/disk.qcow2"), format=DiskFormat.QCOW2, serial="root", bootindex=1),
        Disk(path=Path("/image/source.raw"), readonly=True, serial="source"),
    ),
    boot=Uefi(code=Path("/fw/code.fd"), vars=Path("/state/vars.fd"), secure=True),
    accel=Accel.KVM,
    memory_mib=2048,
    vcpus=4,
    emulator=Path("/usr/bin/qemu-system-x86_64"),
    credentials={"system.hostname": b"dev"},
    tags={"image": "sha256:1234", "kit.owner": "77"},
)
SPECS = {
    "direct-tcg": DIRECT,
    "direct-old-qemu": replace(DIRECT, cx16=False, disks=(), authorized_key=None),
    "uefi-secure-kvm": UEFI,
    "write-log": replace(
        UEFI,
        disks=(
            replace(UEFI.disks[0], write_log=Path("/state/writes.log")),
            Disk(path=Path("/state/more.raw"), write_log=Path('/state/more "writes".log')),
        ),
    ),
}


@pytest.mark.parametrize("name", sorted(SPECS))
def test_domain_xml_is_the_golden(name: str) -> None:
    xml = domain_xml(SPECS[name])
    path = GOLDENS / f"{name}.xml"
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(xml)
    assert xml == path.read_text()


def test_logged_disk_is_all_in_arguments_for_qemu() -> None:
    root = ET.fromstring(domain_xml(SPECS["write-log"]))
    assert root.find("devices/disk") is None
    arguments = [one.get("value", "") for one in root.iter(f"{{{QEMU}}}arg")]
    assert arguments[::2] == ["-blockdev", "-blockdev", "-device"] * 2
    values = [json.loads(value) for value in arguments[1::2]]
    assert values[1]["log"]["filename"] == "/state/writes.log"
    assert values[2]["bootindex"] == 1
    assert values[4]["log"]["filename"] == '/state/more "writes".log'
    assert {values[2]["addr"], values[5]["addr"]} == {"0x1d", "0x1c"}
    # The filter itself must see flushes, or the log would have none.
    assert ["cache" in value for value in values] == [True, False, False] * 2


def test_domain_xml_does_not_depend_on_the_order_of_mappings() -> None:
    turned = replace(UEFI, tags=dict(reversed(list(UEFI.tags.items()))))
    assert domain_xml(turned) == domain_xml(UEFI)


def test_key_becomes_a_credential() -> None:
    root = ET.fromstring(domain_xml(DIRECT))
    text = root.findtext("sysinfo/oemStrings/entry", "")
    name, _, value = text.partition("=")
    assert name == "io.systemd.credential.binary:ssh.authorized_keys.root"
    assert base64.b64decode(value) == b"ssh-ed25519 AAAA test"


def test_kernel_command_line_survives_quoting() -> None:
    root = ET.fromstring(domain_xml(DIRECT))
    assert root.findtext("os/cmdline") == 'console=ttyS0 root=/dev/vda x="a<b>&c"'


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "-a", "x" * 52])
def test_bad_machine_names_are_refused(name: str) -> None:
    with pytest.raises(BootcError, match="no machine name"):
        domain_xml(replace(DIRECT, name=name))


def test_uefi_without_a_disk_is_refused() -> None:
    with pytest.raises(BootcError, match="needs a disk"):
        domain_xml(replace(UEFI, disks=()))


def test_log_of_the_writes_to_a_read_only_disk_is_refused() -> None:
    disk = replace(UEFI.disks[1], write_log=Path("/state/log"))
    with pytest.raises(BootcError, match="no writes to log"):
        domain_xml(replace(UEFI, disks=(disk,)))


def test_disk_targets() -> None:
    assert [target_name(0), target_name(25)] == ["vda", "vdz"]
    with pytest.raises(BootcError):
        target_name(26)


SAVED = """<domain type='qemu' id='3'><name>x</name>
<os><nvram template='/fw/vars.fd'>/old/vars.fd</nvram></os><devices>
<disk type='file' device='disk'><source file='/old/disk0.qcow2' index='2'/>
<backingStore type='file'><format type='raw'/><source file='/old/base'/><backingStore/>
</backingStore><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='disk'><source file='/keep.raw'/><backingStore/>
<target dev='vdb' bus='virtio'/></disk>
<serial type='file'><source path='/old/console'/></serial>
<console type='file'><source path='/old/console'/></console></devices></domain>"""


def test_restored_xml_points_at_new_files_and_forgets_the_backing_chain() -> None:
    xml = restored_xml(
        SAVED, disks={"vda": Path("/new/d")}, console=Path("/new/c"), nvram=Path("/new/v")
    )
    root = ET.fromstring(xml)
    sources = [source.attrib for source in root.iterfind("devices/disk/source")]
    assert sources == [{"file": "/new/d"}, {"file": "/keep.raw"}]
    assert not list(root.iter("backingStore"))
    assert [s.get("path") for s in root.iterfind("devices/*[@type='file']/source[@path]")] == [
        "/new/c",
        "/new/c",
    ]
    nvram = root.find("os/nvram")
    assert nvram is not None
    assert nvram.text == "/new/v"
    assert nvram.get("template") is None


def test_restored_xml_keeps_nvram_that_is_not_given() -> None:
    root = ET.fromstring(restored_xml(SAVED, disks={}, console=Path("/c")))
    assert root.findtext("os/nvram") == "/old/vars.fd"
