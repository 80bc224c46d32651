#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The root is a composefs overlay of the digest that the kernel was given, with verity enforced."""

import errno

import booted


def check() -> None:
    digest, enforced = booted.booted_digest()
    root = booted.mount_of("/")
    print(root)
    booted.expect_equal(root["fstype"], "overlay", "type of the root file system")
    booted.expect_equal(root["source"], f"composefs:{digest}", "source of the root mount")
    booted.expect_equal(
        booted.status()["status"]["booted"]["composefs"]["verity"], digest, "digest in the status"
    )
    if enforced:
        booted.expect("verity=require" in root["options"], "the overlay requires verity")
    else:
        print("note composefs=? on the command line: verity is not required here")
    booted.expect("ro" in root["options"], "the root is mounted read-only")
    booted.expect_equal(booted.refusal("/booted-test"), errno.EROFS, "errno of a new file in /")
    physical = booted.mount_of("/sysroot")
    booted.expect(bool(physical), "the physical root is mounted at /sysroot")
    booted.expect("ro" in physical["options"], "/sysroot is mounted read-only")


if __name__ == "__main__":
    booted.main(check)
