#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A system that never boots is installed onto a loop device; its status is told twice alike.

A first client is killed while it is installed: nothing stays mounted.
"""

import json
import os
import subprocess

import booted
import readonly_status
import schema_check
import upkeep_status
import varlink_parts
from varlink_parts import INSTALL

DISK = "/var/lib/booted-varlink-disk.img"
MOUNT = "/run/booted-varlink-mount"


def check() -> None:
    running = booted.status()["status"]["booted"]
    digest = upkeep_status.write_tiny_image(running["image"]["architecture"])
    with open(DISK, "wb") as file:
        file.truncate(3 << 30)
    device = booted.output("losetup", "--find", "--show", "--partscan", DISK).strip()
    try:
        install(device, digest)
        look(device, digest)
    finally:
        subprocess.run(["umount", MOUNT], stderr=subprocess.DEVNULL)
        subprocess.run(["losetup", "--detach", device])
        os.unlink(DISK)


def install(device: str, digest: str) -> None:
    options = {
        "sourceImgref": f"oci:{upkeep_status.TINY}:latest",
        "targetImgref": "quay.io/example/tiny:latest",
        "composefsBackend": True,
    }
    disk = {"device": device, "filesystem": "ext4", "espSize": 256 << 20}
    planned = varlink_parts.call(
        f"{INSTALL}.ToDisk", {**disk, "options": {**options, "dryRun": True}}
    )
    booted.expect(f"digest {digest}" in planned["plan"], "the plan names the digest")
    given = {**disk, "options": options}
    varlink_parts.kill_in_the_middle(f"{INSTALL}.ToDisk", given, "staging")
    mounted = booted.output("lsblk", "--noheadings", "--output", "MOUNTPOINTS", device).split()
    booted.expect_equal(mounted, [], "what of the disk is mounted after a killed client")
    given = {**given, "wipe": True}
    replies = varlink_parts.call_more(f"{INSTALL}.ToDisk", given, "--more")
    tasks = varlink_parts.tasks_of(replies)
    booted.expect_equal(tasks, ["staging", "pulling", "importing"], "the tasks that were told")
    last = replies[-2]["progress"]
    booted.expect_equal(last["steps"], last["stepsTotal"], "the steps that were done")
    booted.expect_equal(replies[-1]["installed"]["imageDigest"], digest, "the installed digest")
    # Once more without `wipe`: the disk isn't empty, and stays as it is.
    varlink_parts.expect_error(
        f"{INSTALL}.ToDisk", {**disk, "options": options}, f"{INSTALL}.Failed"
    )


def look(device: str, digest: str) -> None:
    parts = booted.output(
        "lsblk", "--list", "--noheadings", "--output", "NAME,PARTTYPENAME", device
    )
    roots = [line.split()[0] for line in parts.splitlines() if " root" in line.lower()]
    booted.expect_equal(len(roots), 1, "number of root partitions")
    os.makedirs(MOUNT, exist_ok=True)
    booted.output("mount", "-o", "ro", f"/dev/{roots[0]}", MOUNT)
    document = json.loads(booted.told("bootc", "status", "--json", "--sysroot", MOUNT))
    said = varlink_parts.call("containers.bootc.GetStatusForSysroot", {"sysroot": MOUNT})
    booted.expect(said["host"] == document, "the same status of the sysroot")
    found = schema_check.problems(said["host"], readonly_status.load_schema())
    booted.expect(not found, f"the reply is valid {'; '.join(found)}".rstrip())
    [other] = said["host"]["status"]["otherDeployments"]
    booted.expect_equal(other["image"]["imageDigest"], digest, "its image's digest")


if __name__ == "__main__":
    booted.main(check)
