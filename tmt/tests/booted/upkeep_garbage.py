#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Deployments that share a kernel come and go; what is left is what is needed, tags of others too.

Boot 1 stages version 2 and tags an image of an application. Boot 2 runs it, and updates to 3.
Boot 3 runs 3: version 1 is gone, but not its kernel, which 2 and 3 start from.
"""

import os

import booted
import derived_image
import upkeep_parts

LAYOUT = f"{upkeep_parts.FOLDER}/garbage"
APP = "quay.io/example/app:latest"
FILE = "usr/share/booted-upkeep/version"


def files(version: str) -> "dict[str, bytes]":
    return {FILE: version.encode() * 1000}


def tags() -> "dict[str, str]":
    from bootc.composefs.repository import Repository

    with Repository.open(booted.REPOSITORY) as repo:
        return dict(repo.tags())


def tag(name: str, content_id: str) -> None:
    from bootc.composefs.repository import Repository

    with (
        upkeep_parts.writable_system() as sysroot,
        Repository.open(sysroot.repository) as repo,
    ):
        repo.tag(content_id, name)


def check_clean() -> None:
    booted.told("bootc", "internals", "composefs-gc", "--assert-no-op", "--prune-repo")


def first() -> None:
    found = upkeep_parts.show(booted.status())["status"]["booted"]
    digest = found["image"]["imageDigest"]
    booted.told("bootc", "internals", "composefs-gc", "--prune-repo")
    tag(APP, f"oci-manifest-{digest}")
    derived_image.derive(digest, LAYOUT, files("2"))
    folders = upkeep_parts.kernel_folders()
    booted.told("bootc", "switch", "--transport", "oci", f"{LAYOUT}:latest")
    booted.expect_equal(upkeep_parts.kernel_folders(), folders, "the kernels, with one staged")
    check_clean()
    record = {"digest": digest, "first": booted.verity(found), "folders": folders}
    upkeep_parts.save("garbage", record)
    booted.reboot()


def second() -> None:
    record = upkeep_parts.saved("garbage")
    status = upkeep_parts.show(booted.status())["status"]
    booted.expect_equal(booted.verity(status["rollback"]), record["first"], "the rollback")
    derived_image.derive(record["digest"], LAYOUT, files("3"))
    booted.told("bootc", "upgrade")
    check_clean()
    record["second"] = booted.verity(status["booted"])
    upkeep_parts.save("garbage", record)
    booted.reboot()


def third() -> None:
    record = upkeep_parts.saved("garbage")
    status = upkeep_parts.show(booted.status())["status"]
    booted.expect_equal(booted.verity(status["rollback"]), record["second"], "the rollback")
    booted.told("bootc", "internals", "composefs-gc", "--prune-repo")
    booted.expect_equal(upkeep_parts.kernel_folders(), record["folders"], "the kernels")
    states = sorted(os.listdir("/sysroot/state/deploy"))
    wanted = sorted([booted.verity(status["booted"]), record["second"]], key=str)
    booted.expect_equal(states, wanted, "the state folders")
    found = tags()
    booted.expect(APP in found, f"the tag {APP} is there")
    old = f"localhost/bootc-{record['digest']}"
    booted.expect(old not in found, f"the tag {old} is gone")
    booted.told("bootc", "delete-deployment", record["second"])
    booted.expect_equal(booted.status()["status"]["rollback"], None, "the rollback")
    booted.expect_equal(upkeep_parts.kernel_folders(), record["folders"], "the kernels")
    check_clean()
    said = booted.told("bootc", "internals", "fsck")
    booted.expect("ok: deployments" in said and "ok: composefs" in said, "the system is whole")


if __name__ == "__main__":
    booted.main([first, second, third][booted.reboot_count()])
