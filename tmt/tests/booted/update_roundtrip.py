#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""switch, reboot, upgrade, rollback that drops what is staged, reboot: and every status is true."""

import json
import os

import booted
import derived_image

LAYOUT = "/var/lib/booted-update/roundtrip"
STATE = "/var/lib/booted-update/roundtrip.json"
MARK = "/etc/booted-update-mark"
VERSION = "/usr/share/booted-update/version"


def files(version: str) -> "dict[str, bytes]":
    return {VERSION.lstrip("/"): f"{version}\n".encode()}


def read_version() -> "str | None":
    if not os.path.exists(VERSION):
        return None
    with open(VERSION, encoding="utf-8") as file:
        return file.read().strip()


def switch() -> None:
    found = booted.status()["status"]
    digest = found["booted"]["image"]["imageDigest"]
    original = booted.verity(found["booted"])
    new = derived_image.derive(digest, LAYOUT, files("2"))
    with open(MARK, "w", encoding="utf-8") as file:
        file.write("mine\n")
    said = booted.told("bootc", "switch", "--transport", "oci", f"{LAYOUT}:latest")
    booted.expect("Queued for next boot: oci:" in said, "switch says what is queued")
    found = booted.status()["status"]
    booted.expect_equal(booted.verity(found["booted"]), original, "what is booted")
    booted.expect(found["staged"] is not None, "something is staged")
    booted.expect_equal(found["staged"]["image"]["imageDigest"], new, "the staged digest")
    booted.expect(not found["staged"]["downloadOnly"], "it is not only downloaded")
    unit = booted.output("systemctl", "is-active", "bootc-finalize-staged.service", check=False)
    booted.expect_equal(unit.strip(), "active", "the unit that finalizes at shutdown")
    with open("/run/reboot-required", encoding="utf-8") as file:
        booted.expect_equal(file.read().strip(), new, "the digest in /run/reboot-required")
    with open(STATE, "w", encoding="utf-8") as file:
        record = {
            "digest": digest,
            "original": original,
            "second": booted.verity(found["staged"]),
        }
        json.dump(record, file)
    booted.reboot()


def upgrade_and_rollback(record: "dict[str, str]") -> None:
    found = booted.status()["status"]
    print(json.dumps(found, indent=1), flush=True)
    booted.expect_equal(booted.verity(found["booted"]), record["second"], "what is booted")
    booted.expect_equal(booted.verity(found["rollback"]), record["original"], "the rollback")
    booted.expect_equal(found["staged"], None, "what is staged")
    booted.expect_equal(read_version(), "2", VERSION)
    booted.expect(os.path.exists(MARK), f"{MARK} was carried over")
    said = booted.told("bootc", "upgrade")
    booted.expect("No update available." in said, "there is no update")
    new = derived_image.derive(record["digest"], LAYOUT, files("3"))
    said = booted.told("bootc", "upgrade", "--check")
    booted.expect("Update available for: oci:" in said and new in said, "--check tells the update")
    booted.expect_equal(booted.status()["status"]["staged"], None, "what --check has staged")
    booted.told("bootc", "upgrade")
    staged = booted.status()["status"]["staged"]
    booted.expect_equal(staged and staged["image"]["imageDigest"], new, "the staged digest")
    said = booted.told("bootc", "upgrade")
    booted.expect("Staged update present, not changed." in said, "upgrade again changes nothing")
    said = booted.told("bootc", "rollback")
    booted.expect("Next boot: rollback deployment" in said, "rollback says what boots next")
    found = booted.status()
    booted.expect_equal(found["status"]["staged"], None, "what is staged after the rollback")
    booted.expect(found["status"]["rollbackQueued"], "the rollback is queued")
    booted.expect_equal(found["spec"]["bootOrder"], "rollback", "the boot order")
    booted.reboot()


def back(record: "dict[str, str]") -> None:
    found = booted.status()["status"]
    booted.expect_equal(booted.verity(found["booted"]), record["original"], "what is booted")
    booted.expect_equal(booted.verity(found["rollback"]), record["second"], "the rollback")
    booted.expect(not found["rollbackQueued"], "no rollback is queued any more")
    booted.expect_equal(read_version(), None, VERSION)
    booted.told("bootc", "rollback")
    booted.expect(booted.status()["status"]["rollbackQueued"], "a rollback is queued again")
    said = booted.told("bootc", "rollback")
    booted.expect("Next boot: current deployment" in said, "the second one undoes the first")
    booted.expect(not booted.status()["status"]["rollbackQueued"], "nothing is queued")
    os.unlink(MARK)


def check() -> None:
    count = booted.reboot_count()
    if count == 0:
        switch()
        return
    with open(STATE, encoding="utf-8") as file:
        record = json.load(file)
    [upgrade_and_rollback, back][count - 1](record)


if __name__ == "__main__":
    booted.main(check)
