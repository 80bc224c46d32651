#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What is only downloaded outlives no reboot and changes nothing; released, it boots: with its
kernel arguments, its new defaults in /etc and this machine's changes."""

import json
import os

import booted
import derived_image

LAYOUT = "/var/lib/booted-update/download"
STATE = "/var/lib/booted-update/download.json"
KARG = "booted.update=5"
DEFAULT = "/etc/booted-update-default"
MINE = "/etc/booted-update-mine"
FRAGMENT = "usr/lib/bootc/kargs.d/50-booted-update.toml"


def files(version: str) -> "dict[str, bytes]":
    found = {"usr/share/booted-update/version": f"{version}\n".encode()}
    if version == "5":
        found[FRAGMENT] = f'kargs = ["{KARG}"]\n'.encode()
        found[DEFAULT.lstrip("/")] = b"from the image\n"
    return found


def download() -> None:
    found = booted.status()["status"]
    digest = found["booted"]["image"]["imageDigest"]
    with open(MINE, "w", encoding="utf-8") as file:
        file.write("mine\n")
    with open("/etc/motd", "a", encoding="utf-8") as file:
        file.write("changed by booted-update\n")
    derived_image.derive(digest, LAYOUT, files("4"))
    booted.told("bootc", "switch", "--transport", "oci", f"{LAYOUT}:latest")
    new = derived_image.derive(digest, LAYOUT, files("5"))
    booted.told("bootc", "upgrade", "--download-only")
    staged = booted.status()["status"]["staged"]
    booted.expect_equal(staged["image"]["imageDigest"], new, "the staged digest")
    booted.expect(staged["downloadOnly"], "it is only downloaded")
    booted.expect(not os.path.exists("/run/reboot-required"), "no reboot is required")
    with open(STATE, "w", encoding="utf-8") as file:
        json.dump({"digest": new, "booted": booted.verity(found["booted"])}, file)
    booted.reboot()


def release(record: "dict[str, str]") -> None:
    found = booted.status()["status"]
    booted.expect_equal(booted.verity(found["booted"]), record["booted"], "what is booted")
    booted.expect_equal(found["staged"], None, "what is staged")
    booted.told("bootc", "switch", "--transport", "oci", f"{LAYOUT}:latest")
    booted.told("bootc", "upgrade", "--download-only")
    booted.expect(booted.status()["status"]["staged"]["downloadOnly"], "it is held back")
    said = booted.told("bootc", "upgrade", "--from-downloaded")
    booted.expect("will now be applied on reboot" in said, "it is released")
    booted.expect(not booted.status()["status"]["staged"]["downloadOnly"], "it is not held back")
    # Nothing is left to be done but the reboot, and that is bootc's.
    booted.reboot("bootc upgrade --from-downloaded --apply")


def applied(record: "dict[str, str]") -> None:
    found = booted.status()["status"]
    print(json.dumps(found, indent=1), flush=True)
    booted.expect_equal(found["booted"]["image"]["imageDigest"], record["digest"], "what is booted")
    booted.expect_equal(booted.verity(found["rollback"]), record["booted"], "the rollback")
    with open("/proc/cmdline", encoding="utf-8") as file:
        booted.expect(KARG in file.read().split(), f"the kernel was told {KARG}")
    with open(DEFAULT, encoding="utf-8") as file:
        booted.expect_equal(file.read(), "from the image\n", DEFAULT)
    booted.expect(os.path.exists(MINE), f"{MINE} was carried over")
    with open("/etc/motd", encoding="utf-8") as file:
        booted.expect("changed by booted-update" in file.read(), "/etc/motd was carried over")
    # The shutdown has no time for more than the kernels that no entry starts any more.
    booted.told("bootc", "internals", "composefs-gc", "--prune-repo")
    states = sorted(os.listdir("/sysroot/state/deploy"))
    wanted = sorted([str(booted.verity(found["booted"])), record["booted"]])
    booted.expect_equal(states, wanted, "the folders in state/deploy")


def check() -> None:
    count = booted.reboot_count()
    if count == 0:
        download()
        return
    with open(STATE, encoding="utf-8") as file:
        record = json.load(file)
    [release, applied][count - 1](record)


if __name__ == "__main__":
    booted.main(check)
