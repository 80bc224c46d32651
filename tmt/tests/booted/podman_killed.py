#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""bootc is killed in the middle of podman's pull: nothing runs on, nothing is staged, and the next
try succeeds. The machine is a unified one already.
"""

import os
import signal
import subprocess
import time

import booted
import podman_parts
import small_registry

STATES = "/sysroot/state/deploy"
_SIZE = 4 << 20
_BEGIN = 300.0


def kill_in_the_middle(registry: small_registry.Registry) -> None:
    with subprocess.Popen(["bootc", "upgrade"], stdin=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + _BEGIN
        while not registry.stalled.wait(0.2) and child.poll() is None:
            if time.monotonic() > deadline:
                child.kill()
                booted.failed(f"podman did not ask for the new layer in {_BEGIN:.0f} s")
        booted.expect_equal(child.poll(), None, "bootc's exit status in the middle of the pull")
        booted.expect_equal(len(podman_parts.servers()), 1, "podman's API servers meanwhile")
        child.send_signal(signal.SIGKILL)
        booted.expect_equal(child.wait(), -signal.SIGKILL, "how bootc ended")
    podman_parts.expect_no_server()


def check() -> None:
    podman_parts.mount_storage()
    found = booted.status()["status"]
    booted.expect_equal(found["staged"], None, "what is staged at the beginning")
    booted.expect("unified" in podman_parts.listed().values(), "the machine is a unified one")
    states, images = sorted(os.listdir(STATES)), podman_parts.bootc_images()
    fresh = podman_parts.new_image(found["booted"]["image"]["imageDigest"], "4", _SIZE)
    layer = small_registry.blobs_of(podman_parts.LAYOUT)[-1]
    with small_registry.serve(podman_parts.LAYOUT) as registry:
        registry.stall = layer
        kill_in_the_middle(registry)
        found = booted.status()["status"]
        booted.expect_equal(found["staged"], None, "what is staged")
        booted.expect(not os.path.exists("/run/reboot-required"), "no reboot is required")
        booted.expect_equal(sorted(os.listdir(STATES)), states, "the folders in state/deploy")
        booted.expect_equal(booted.mount_of("/run/bootc/esp"), {}, "a mounted ESP")
        booted.expect_equal(
            [one["Id"] for one in podman_parts.bootc_images()],
            [one["Id"] for one in images],
            "the images in bootc's storage",
        )
        registry.stall = None
        booted.told("bootc", "upgrade")
    podman_parts.expect_no_server()
    staged = booted.status()["status"]["staged"]
    booted.expect_equal(staged["image"]["imageDigest"], fresh, "the staged digest")


if __name__ == "__main__":
    booted.main(check)
