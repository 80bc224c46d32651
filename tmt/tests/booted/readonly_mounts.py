#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""readonly_mounts.py usr|etc|var: what can be written, and where it goes."""

import errno
import os
import sys

import booted


def check_usr() -> None:
    for folder in ("/usr", "/usr/bin", "/usr/lib", "/usr/local"):
        # /usr/local may lead to /var, where machines may install things of their own.
        if os.path.isdir(folder) and not os.path.islink(folder):
            path = f"{folder}/booted-test"
            booted.expect_equal(
                booted.refusal(path), errno.EROFS, f"errno of a new file in {folder}"
            )
    try:
        os.close(os.open("/usr/lib/os-release", os.O_WRONLY))
    except OSError as error:
        booted.expect_equal(error.errno, errno.EROFS, "errno of opening os-release for writing")
    else:
        booted.failed("/usr/lib/os-release can be opened for writing")


def check_etc() -> None:
    digest, _ = booted.booted_digest()
    mount = booted.mount_of("/etc")
    print(mount)
    booted.expect("rw" in mount.get("options", []), "/etc is a mount of its own, read-write")
    if mount["fstype"] != "overlay":
        # On a file system with subvolumes the path has one of them before it.
        own = f"/state/deploy/{digest}/etc"
        booted.expect(mount["fsroot"].endswith(own), f"/etc binds {mount['fsroot']}, must be {own}")
    booted.expect_equal(booted.refusal("/etc/booted-test"), None, "errno of a new file in /etc")


def check_var() -> None:
    mount = booted.mount_of("/var")
    print(mount)
    booted.expect("rw" in mount.get("options", []), "/var is a mount of its own, read-write")
    booted.expect(mount["fsroot"].endswith("/state/os/default/var"), "/var is the shared state")
    booted.expect(
        os.stat("/var").st_dev == os.stat("/sysroot").st_dev, "/var lies on the physical root"
    )
    booted.expect_equal(booted.refusal("/var/booted-test"), None, "errno of a new file in /var")


if __name__ == "__main__":
    booted.main({"usr": check_usr, "etc": check_etc, "var": check_var}[sys.argv[1]])
