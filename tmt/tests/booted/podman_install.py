#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`podman run --privileged --pid=host … IMAGE bootc install to-disk`: what is installed on another
disk is the container's own image, out of the machine's container storage.
"""

import json
import os
import subprocess

import booted
import podman_parts
import readonly_status
import schema_check

DISK = "/dev/disk/by-id/virtio-spare"
MOUNT = "/run/booted-podman-spare"
RUN = ("podman", "run", "--rm", "--network=host", "--privileged")
HOST = (*RUN, "--pid=host")
FOLDERS = ("-v", "/dev:/dev", "-v", "/var/lib/containers:/var/lib/containers")
INSTALL = ("bootc", "install", "to-disk", "--composefs-backend", "--filesystem", "ext4")


def check() -> None:
    podman_parts.mount_storage()
    name, image_id, digest = podman_parts.stored_image()
    print(f"{name} {image_id} {digest}", flush=True)
    said = booted.refused(*RUN, *FOLDERS, name, *INSTALL, DISK)
    booted.expect("--pid=host" in said, "without the host's processes it says what to add")
    said = podman_parts.passed_through(*HOST, name, *INSTALL, "--dry-run", DISK)
    booted.expect(f"digest {digest}" in said, "the image is found without the host's folders, too")
    try:
        said = podman_parts.passed_through(*HOST, *FOLDERS, name, *INSTALL, DISK)
        booted.expect(digest in said, "the installer tells the digest of the stored image")
        look(name, digest)
    finally:
        subprocess.run(["umount", MOUNT], stderr=subprocess.DEVNULL)
        # Two disks with a root would hinder the next boot of this machine.
        subprocess.run(["sfdisk", "--quiet", "--delete", DISK])
        booted.output("udevadm", "settle")
    left = json.loads(booted.output("podman", "ps", "--all", "--format", "json"))
    booted.expect_equal(left, [], "the containers that are left")
    _, still, _ = podman_parts.stored_image()
    booted.expect_equal(still, image_id, "the image that is still in the storage")


def look(name: str, digest: str) -> None:
    booted.output("udevadm", "settle")
    columns = "PATH,PARTLABEL,MOUNTPOINTS"
    text = booted.output("lsblk", "--json", "--list", "--output", columns, DISK)
    parts = {one["partlabel"]: one for one in json.loads(text)["blockdevices"] if one["partlabel"]}
    booted.expect_equal(sorted(parts), ["BIOS-BOOT", "EFI-SYSTEM", "root"], "the partitions")
    mounted = [part["mountpoints"] for part in parts.values() if any(part["mountpoints"])]
    booted.expect_equal(mounted, [], "what of the disk is mounted after the install")
    os.makedirs(MOUNT, exist_ok=True)
    booted.output("mount", "-o", "ro", parts["root"]["path"], MOUNT)
    document = json.loads(booted.told("bootc", "status", "--json", "--sysroot", MOUNT))
    found = schema_check.problems(document, readonly_status.load_schema())
    booted.expect(not found, f"the status is valid {'; '.join(found)}".rstrip())
    [other] = document["status"]["otherDeployments"]
    booted.expect_equal(other["image"]["imageDigest"], digest, "the digest of the installed image")
    booted.expect_equal(other["image"]["image"]["image"], name, "the image that updates come from")


if __name__ == "__main__":
    booted.main(check)
