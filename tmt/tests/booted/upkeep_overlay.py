#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""usr-overlay: read-only, then writable, then, after a reboot, gone. The reboot is one that the
update service makes (see upkeep_service): so two things take the time of one."""

import errno
import os

import booted
import upkeep_service

MARK = "/usr/booted-upkeep"


def overlay() -> object:
    return booted.status()["status"]["usrOverlay"]


def before() -> None:
    booted.expect_equal(overlay(), None, "the overlay at first")
    booted.expect_equal(booted.refusal(MARK), errno.EROFS, "what refuses a file in /usr")
    booted.told("bootc", "usr-overlay", "--read-only")
    wanted = {"accessMode": "readOnly", "persistence": "transient"}
    booted.expect_equal(overlay(), wanted, "the overlay")
    booted.expect_equal(booted.refusal(MARK), errno.EROFS, "what refuses a file in /usr")
    said = booted.told("bootc", "usr-overlay")
    booted.expect("already" in said, "a second overlay is not mounted")
    # Lazily: this very program may have been started from it.
    booted.output("umount", "-l", "/usr")
    booted.expect_equal(overlay(), None, "the overlay after it was unmounted")
    booted.told("bootc", "usroverlay")
    wanted["accessMode"] = "readWrite"
    booted.expect_equal(overlay(), wanted, "the overlay")
    with open(MARK, "w", encoding="utf-8") as file:
        file.write("written\n")
    with open("/usr/lib/os-release", "a", encoding="utf-8") as file:
        file.write("# changed\n")
    said = booted.told("bootc", "status", "--format", "humanreadable")
    booted.expect("/usr overlay: transient, read/write" in said, "status shows it to people")
    upkeep_service.timer()
    upkeep_service.upgrade()


def after() -> None:
    upkeep_service.upgraded()
    booted.expect_equal(overlay(), None, "the overlay after the reboot")
    booted.expect(not os.path.exists(MARK), "what was written is gone")
    with open("/usr/lib/os-release", encoding="utf-8") as file:
        booted.expect("# changed" not in file.read(), "so is what was changed")


if __name__ == "__main__":
    booted.main([before, after][booted.reboot_count()])
