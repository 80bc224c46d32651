#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""An image that wants a transient /etc gets one: what is written there is on no disk."""

import os

import booted
import derived_image
import upkeep_parts

LAYOUT = f"{upkeep_parts.FOLDER}/transient"
CONFIG = "usr/lib/composefs/setup-root-conf.toml"
NEXT = "/run/nextroot"


def check() -> None:
    running = booted.status()["status"]["booted"]
    settings = {CONFIG: b"[etc]\ntransient = true\n"}
    derived_image.derive(running["image"]["imageDigest"], LAYOUT, settings)
    booted.told("bootc", "switch", "--transport", "oci", f"{LAYOUT}:latest")
    new = str(booted.verity(booted.status()["status"]["staged"]))
    # Its root is set up by the program, and with the settings, that a boot would use.
    booted.told("bootc", "internals", "prep-soft-reboot", new)
    found = booted.mount_of(f"{NEXT}/etc")
    booted.expect_equal(found.get("fstype"), "overlay", "the next /etc")
    booted.expect("rw" in found["options"], "it can be written to")
    name = "booted-upkeep-transient"
    with open(f"{NEXT}/etc/{name}", "w", encoding="utf-8") as file:
        file.write("for now\n")
    state = f"/sysroot/state/deploy/{new}/etc"
    booted.expect(os.path.isdir(state), "the deployment has an /etc on the disk, too")
    booted.expect(not os.path.exists(f"{state}/{name}"), "which does not have what was written")
    booted.expect(not os.path.exists(f"/etc/{name}"), "nor has the /etc that is in use")
    booted.expect_equal(booted.mount_of(f"{NEXT}/var").get("fstype") is not None, True, "a /var")
    booted.told("bootc", "internals", "prep-soft-reboot", "--reset")
    booted.expect_equal(booted.mount_of(NEXT), {}, "the mount after the reset")
    booted.told("bootc", "delete-deployment", new)
    booted.expect_equal(booted.status()["status"]["booted"], running, "what is booted")


if __name__ == "__main__":
    booted.main(check)
