#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""An entry without origin, half an entry, no origin at all: status tells what is there still."""

import os
import time

import booted
import upkeep_parts

NO_ORIGIN = "d264f924dadb4c31bff0412107d391fb"
GHOST = "ab" * 64


def journal_has(message_id: str, text: str) -> bool:
    """Whether the journal of this boot has such a message; it may take a moment."""
    for _ in range(20):
        said = booted.output(
            "journalctl", "-b", "--no-pager", "-o", "cat", f"MESSAGE_ID={message_id}", check=False
        )
        if text in said:
            return True
        time.sleep(0.5)
    return False


def check() -> None:
    before = upkeep_parts.show(booted.status())
    digest = booted.verity(before["status"]["booted"])
    ghost = "bootc_ghost-1-0.conf"
    half = "bootc_half-1-0.conf"
    with upkeep_parts.writable_system() as sysroot:
        folder = f"{sysroot.esp}/loader/entries"
        own = next(name for name in os.listdir(folder) if name.startswith("bootc_"))
        with open(f"{folder}/{own}", encoding="utf-8") as file:
            text = file.read()
        with open(f"{folder}/{ghost}", "w", encoding="utf-8") as file:
            file.write(text.replace(str(digest), GHOST))
        with open(f"{folder}/{half}", "w", encoding="utf-8") as file:
            file.write("title half\noptions composefs=")
    try:
        booted.expect_equal(booted.status(), before, "the status with both")
        booted.expect(journal_has(NO_ORIGIN, GHOST), "the journal names the entry without origin")
        booted.told("bootc", "internals", "composefs-gc", "--prune-repo")
        booted.expect_equal(booted.status(), before, "the status after the garbage went")
        without_origin(str(digest))
    finally:
        with upkeep_parts.writable_system() as sysroot:
            for name in (ghost, half):
                os.unlink(f"{sysroot.esp}/loader/entries/{name}")
    booted.expect_equal(booted.status(), before, "the status in the end")


def without_origin(digest: str) -> None:
    origin = f"state/deploy/{digest}/{digest}.origin"
    with upkeep_parts.writable_system() as sysroot:
        os.rename(f"{sysroot.root}/{origin}", f"{sysroot.root}/{origin}.away")
    try:
        found = booted.status()["status"]["booted"]
        booted.expect_equal(booted.verity(found), digest, "what is booted, without its origin")
        booted.expect_equal(found["image"], None, "its image")
        said = booted.refused("bootc", "upgrade")
        booted.expect("hint: " in said and "bootc switch" in said, "upgrade says what to do")
    finally:
        with upkeep_parts.writable_system() as sysroot:
            os.rename(f"{sysroot.root}/{origin}.away", f"{sysroot.root}/{origin}")


if __name__ == "__main__":
    booted.main(check)
