#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A soft reboot into a staged deployment: userspace is the new one, the kernel goes on running."""

import os

import booted
import derived_image
import upkeep_parts

LAYOUT = f"{upkeep_parts.FOLDER}/soft"
FILE = "/usr/share/booted-upkeep/soft"
MARK = "/etc/booted-upkeep-soft"
NEXT = "/run/nextroot"


def uptime() -> float:
    with open("/proc/uptime", encoding="ascii") as file:
        return float(file.read().split()[0])


def before() -> None:
    found = upkeep_parts.show(booted.status())["status"]["booted"]
    booted.expect(not found["softRebootCapable"], "nobody soft-reboots into what runs")
    digest = found["image"]["imageDigest"]
    derived_image.derive(digest, LAYOUT, {FILE.lstrip("/"): b"new\n"})
    with open(MARK, "w", encoding="utf-8") as file:
        file.write("mine\n")
    booted.told("bootc", "switch", "--transport", "oci", f"{LAYOUT}:latest")
    staged = booted.status()["status"]["staged"]
    booted.expect(staged["softRebootCapable"], "the staged deployment can be soft-rebooted into")
    new = str(booted.verity(staged))
    said = booted.refused("bootc", "internals", "prep-soft-reboot", str(booted.verity(found)))
    booted.expect("it is the one that runs" in said, "the running one is refused, with a reason")
    booted.expect_equal(booted.mount_of(NEXT), {}, "the mount there")
    booted.told("bootc", "internals", "prep-soft-reboot", new)
    booted.expect_equal(booted.mount_of(NEXT).get("source"), f"composefs:{new}", "the next root")
    booted.expect(os.path.exists(f"{NEXT}{FILE}"), "the next root has the new file")
    booted.told("bootc", "internals", "prep-soft-reboot", "--reset")
    booted.expect_equal(booted.mount_of(NEXT), {}, "the mount after the reset")
    booted.told("bootc", "internals", "prep-soft-reboot", new)
    record = {"new": new, "old": booted.verity(found), "kernel": booted.boot_id(), "up": uptime()}
    upkeep_parts.save("soft", record)
    upkeep_parts.soft_reboot()


def after() -> None:
    record = upkeep_parts.saved("soft")
    booted.expect_equal(booted.boot_id(), record["kernel"], "the kernel's boot id")
    booted.expect(uptime() > record["up"], "the kernel has gone on running")
    status = upkeep_parts.show(booted.status())["status"]
    booted.expect_equal(booted.verity(status["booted"]), record["new"], "what is booted")
    booted.expect_equal(booted.verity(status["rollback"]), record["old"], "the rollback")
    booted.expect_equal(status["staged"], None, "what is staged")
    booted.expect(not status["rollbackQueued"], "no rollback is queued")
    booted.expect(os.path.exists(FILE), "the new file is there")
    booted.expect(os.path.exists(MARK), "/etc was merged on the way")
    os.unlink(MARK)
    booted.reboot()


def at_last() -> None:
    record = upkeep_parts.saved("soft")
    booted.expect(booted.boot_id() != record["kernel"], "the kernel has restarted")
    status = booted.status()["status"]
    booted.expect_equal(booted.verity(status["booted"]), record["new"], "what is booted")
    booted.expect(not os.path.exists(MARK), "what was removed stays so")


if __name__ == "__main__":
    booted.main([before, after, at_last][booted.reboot_count()])
