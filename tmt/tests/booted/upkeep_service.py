# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The timer can be enabled and waits; its service stages an update and reboots into it.

Of the test upkeep_overlay, which needs a reboot, too.
"""

import os
from typing import NoReturn

import booted
import derived_image
import upkeep_parts

LAYOUT = f"{upkeep_parts.FOLDER}/service"
FILE = "/usr/share/booted-upkeep/service"
TIMER = "bootc-fetch-apply-updates.timer"
SERVICE = "bootc-fetch-apply-updates.service"


def shown(unit: str, name: str) -> str:
    return booted.output("systemctl", "show", "--value", "-p", name, unit).strip()


def timer() -> None:
    """It is there and off; enabled it waits for its time; then it is off again."""
    state = booted.output("systemctl", "is-enabled", TIMER, check=False).strip()
    booted.expect_equal(state, "disabled", "the timer as it comes")
    booted.told("systemctl", "enable", "--now", TIMER)
    booted.expect_equal(shown(TIMER, "ActiveState"), "active", "the timer that was enabled")
    listed = booted.told("systemctl", "list-timers", "--no-pager", TIMER)
    booted.expect(SERVICE in listed, "systemctl list-timers has it, and what it starts")
    elapses = booted.output("systemctl", "show", "-p", "NextElapseUSecMonotonic", TIMER)
    booted.expect("=infinity" not in elapses, f"it is known when it elapses: {elapses.strip()}")
    booted.expect_equal(shown(SERVICE, "ActiveState"), "inactive", "the service until then")
    booted.told("systemctl", "disable", "--now", TIMER)


def upgrade() -> NoReturn:
    """Follow a folder of images here, put another one into it, and let the service reboot."""
    found = booted.status()["status"]["booted"]
    digest = found["image"]["imageDigest"]
    # The same image, taken from a folder here from now on; then there is another one in it.
    said = booted.told(
        "bootc", "switch", "--mutate-in-place", "--transport", "oci", f"{LAYOUT}:latest"
    )
    booted.expect("Updates will come from: oci:" in said, "only the origin was changed")
    booted.expect_equal(booted.status()["status"]["staged"], None, "what is staged")
    new = derived_image.derive(digest, LAYOUT, {FILE.lstrip("/"): b"new\n"})
    record = {"digest": new, "old": booted.verity(found), "boot": booted.boot_id()}
    upkeep_parts.save("service", record)
    booted.reboot(f"systemctl start --no-block {SERVICE}")


def upgraded() -> None:
    """After that reboot."""
    record = upkeep_parts.saved("service")
    booted.expect(booted.boot_id() != record["boot"], "it is another boot")
    found = upkeep_parts.show(booted.status())["status"]
    booted.expect_equal(found["booted"]["image"]["imageDigest"], record["digest"], "what is booted")
    booted.expect_equal(booted.verity(found["rollback"]), record["old"], "the rollback")
    booted.expect(os.path.exists(FILE), "the new file is there")
    state = booted.output("systemctl", "is-enabled", TIMER, check=False).strip()
    booted.expect_equal(state, "disabled", "the timer")
