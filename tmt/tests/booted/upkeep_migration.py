#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Make the machine an install of an older bootc, boot that, let it be migrated, and boot again."""

import os

import booted
import upkeep_parts

PREFIX = "bootc_composefs-"


def make_old() -> None:
    """Take the prefix from the kernel folders and the entries."""
    before = upkeep_parts.show(booted.status())
    with upkeep_parts.writable_system() as sysroot:
        base = f"{sysroot.esp}/EFI/Linux"
        for name in sorted(os.listdir(base)):
            if name.startswith(PREFIX):
                os.rename(f"{base}/{name}", f"{base}/{name.removeprefix(PREFIX)}")
        folder = f"{sysroot.esp}/loader/entries"
        for name in sorted(os.listdir(folder)):
            with open(f"{folder}/{name}", encoding="utf-8") as file:
                text = file.read()
            if PREFIX in text:
                with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
                    file.write(text.replace(PREFIX, ""))
        os.sync()
    print(upkeep_parts.entries(), flush=True)
    booted.expect_equal(booted.status(), before, "the status of the old install")
    upkeep_parts.save("migration", {"status": before, "boot": booted.boot_id()})
    booted.reboot()


def migrate() -> None:
    record = upkeep_parts.saved("migration")
    booted.expect(booted.boot_id() != record["boot"], "it is another boot")
    booted.expect_equal(booted.status(), record["status"], "the status of the old install")
    names = upkeep_parts.kernel_folders()
    booted.expect(not any(name.startswith(PREFIX) for name in names), "no kernel has the prefix")
    count = len(upkeep_parts.entries())
    booted.told("bootc", "internals", "composefs-gc")
    check(count)
    booted.told("bootc", "internals", "composefs-gc")
    check(count)
    booted.expect_equal(booted.status(), record["status"], "the status of the migrated install")
    booted.reboot()


def check(count: int) -> None:
    found = upkeep_parts.entries()
    print(found, flush=True)
    booted.expect_equal(len(found), count, "number of entries")
    for name, text in found.items():
        if "composefs=" in text:
            booted.expect(PREFIX in text, f"{name} names a kernel with the prefix")
    names = upkeep_parts.kernel_folders()
    booted.expect(all(name.startswith(PREFIX) for name in names), f"all have the prefix: {names}")


def after() -> None:
    booted.expect_equal(
        booted.status(), upkeep_parts.saved("migration")["status"], "the status in the end"
    )


if __name__ == "__main__":
    booted.main([make_old, migrate, after][booted.reboot_count()])
