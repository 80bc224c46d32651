#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""upkeep_status.py concurrent|sysroot: many at once, and of a system that does not run."""

import json
import os
import subprocess
import sys

import booted
import oci_files
import progress_records
import readonly_status
import schema_check
import upkeep_parts

TINY = f"{upkeep_parts.FOLDER}/tiny"
DISK = f"{upkeep_parts.FOLDER}/disk.img"
MOUNT = "/run/booted-upkeep-mount"
LOADER = "/usr/lib/systemd/boot/efi"


def check_concurrent() -> None:
    argv = ["bootc", "status", "--json"]
    running = [
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    texts = [one.communicate()[0] for one in running]
    booted.expect_equal([one.returncode for one in running], [0] * 10, "their exit statuses")
    booted.expect_equal(len(set(texts)), 1, "number of different documents")
    found = schema_check.problems(json.loads(texts[0]), readonly_status.load_schema())
    booted.expect(not found, f"the document is valid {'; '.join(found)}".rstrip())


def tiny_layer() -> bytes:
    """A system that never boots, but has all that an install asks for."""
    files = {
        "usr/lib/os-release": b"ID=tiny\nPRETTY_NAME=Tiny\nVERSION_ID=7\n",
        "usr/lib/modules/1/vmlinuz": b"no kernel" * 100,
        "usr/lib/modules/1/initramfs.img": b"no initrd" * 100,
        "etc/tiny": b"tiny\n",
    }
    for name in os.listdir(LOADER):
        with open(f"{LOADER}/{name}", "rb") as file:
            files[f"{LOADER.lstrip('/')}/{name}"] = file.read()
    folders = ("boot", "dev", "proc", "run", "sys", "sysroot", "tmp", "var")
    return oci_files.make_tar(files, folders=folders)


def write_tiny_image(architecture: str) -> str:
    """An OCI layout of that system; returns its manifest's digest."""
    layer = tiny_layer()
    config = {
        "architecture": architecture,
        "os": "linux",
        "created": "2026-01-02T03:04:05Z",
        "config": {"Labels": {"containers.bootc": "1", "org.opencontainers.image.version": "7"}},
        "rootfs": {"type": "layers", "diff_ids": [oci_files.digest_of(layer)]},
    }
    stored = oci_files.write_blob(TINY, json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": oci_files.MANIFEST,
        "config": {"mediaType": oci_files.CONFIG, **stored},
        "layers": [{"mediaType": oci_files.LAYER, **oci_files.write_blob(TINY, layer)}],
    }
    return oci_files.write_image(TINY, manifest)


def check_sysroot() -> None:
    running = booted.status()["status"]["booted"]
    digest = write_tiny_image(running["image"]["architecture"])
    with open(DISK, "wb") as file:
        file.truncate(3 << 30)
    device = booted.output("losetup", "--find", "--show", "--partscan", DISK).strip()
    try:
        install_and_look(device, digest)
    finally:
        subprocess.run(["umount", MOUNT], stderr=subprocess.DEVNULL)
        subprocess.run(["losetup", "--detach", device])
        os.unlink(DISK)


def install_and_look(device: str, digest: str) -> None:
    records = progress_records.told_progress(
        "bootc",
        "install",
        "to-disk",
        "--composefs-backend",
        "--source-imgref",
        f"oci:{TINY}:latest",
        "--target-imgref",
        "quay.io/example/tiny:latest",
        "--filesystem",
        "ext4",
        "--esp-size",
        "256M",
        device,
    )
    tasks = progress_records.tasks_of(records)
    booted.expect_equal(tasks, ["staging", "pulling", "importing"], "the tasks, as they began")
    parts = booted.output(
        "lsblk", "--list", "--noheadings", "--output", "NAME,PARTTYPENAME", device
    )
    print(parts, flush=True)
    roots = [line.split()[0] for line in parts.splitlines() if " root" in line.lower()]
    booted.expect_equal(len(roots), 1, "number of root partitions")
    os.makedirs(MOUNT, exist_ok=True)
    booted.output("mount", "-o", "ro", f"/dev/{roots[0]}", MOUNT)
    text = booted.told("bootc", "status", "--json", "--sysroot", MOUNT)
    document = upkeep_parts.show(json.loads(text))
    found = schema_check.problems(document, readonly_status.load_schema())
    booted.expect(not found, f"the document is valid {'; '.join(found)}".rstrip())
    status = document["status"]
    for slot in ("booted", "staged", "rollback"):
        booted.expect_equal(status[slot], None, slot)
    others = status["otherDeployments"]
    booted.expect_equal(len(others), 1, "number of other deployments")
    image = others[0]["image"]
    booted.expect_equal(image["imageDigest"], digest, "its image's digest")
    booted.expect_equal(image["image"]["image"], "quay.io/example/tiny:latest", "its image")
    booted.expect_equal((image["version"], image["timestamp"]), ("7", "2026-01-02T03:04:05Z"), "it")
    said = booted.refused("bootc", "status", "--sysroot", "/usr")
    booted.expect("is not the root of a system that bootc installed" in said, "/usr is refused")


if __name__ == "__main__":
    booted.main({"concurrent": check_concurrent, "sysroot": check_sysroot}[sys.argv[1]])
