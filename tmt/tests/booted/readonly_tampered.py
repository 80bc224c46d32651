#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The kernel refuses what was tampered with: contents of a store, and the image itself.

A secure repository lies on an ext4 of its own, and that in a file, so that the test can write to it
behind the file system's back. Each file of the image is damaged in a way of its own; the one that
was left alone has to be readable from the same mount. Without verity the kernel gives out what was
put there, which shows that it is verity that refuses.
"""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import booted

WORK = "/var/tmp/bootc-tampered"
DISK = f"{WORK}/disk"
HERE = f"{WORK}/fs"
REPO = f"{HERE}/repo"
OBJECTS = f"{REPO}/objects"
TARGET = f"{WORK}/target"
SIZE = 20_000
NAMES = ("whole", "plain", "other", "device")


def content(name: str) -> bytes:
    """Bytes that lie nowhere else on that disk."""
    return (f"content of {name} ".encode() * SIZE)[:SIZE]


@contextmanager
def workplace() -> Iterator[None]:
    shutil.rmtree(WORK, ignore_errors=True)
    for path in (HERE, TARGET):
        os.makedirs(path)
    try:
        yield
    finally:
        shutil.rmtree(WORK)


@contextmanager
def mounted(target: str, *argv: str) -> Iterator[None]:
    """What `argv` mounts at `target`, as long as the block."""
    booted.output(*argv)
    try:
        yield
    finally:
        booted.output("umount", target)


def read(name: str) -> "bytes | str":
    """The content of a file of the mounted image, or the name of the errno that refuses it."""
    try:
        with open(f"{TARGET}/{name}", "rb") as file:
            return file.read()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def refused(*argv: str) -> str:
    """The stderr of a command that must fail with exit status 1."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    booted.expect_equal(done.returncode, 1, f"exit status of {' '.join(argv)}")
    return done.stderr.strip()


def make_repository() -> str:
    """A secure repository with one image, `image`; its digest."""
    source = f"{WORK}/source"
    os.makedirs(source)
    for name in NAMES:
        with open(f"{source}/{name}", "wb") as file:
            file.write(content(name))
    said = booted.output("cfsctl", "--repo", REPO, "init")
    booted.expect(
        "verity:    required" in said, f"the repository demands verity: {said.splitlines()}"
    )
    command = ("create-image", "--no-propagate-usr-to-root", source, "image")
    booted.output("cfsctl", "--repo", REPO, *command)
    (image,) = json.loads(booted.output("cfsctl", "--repo", REPO, "images", "--json"))["images"]
    return str(image["digest"])


def find_objects() -> "dict[str, str]":
    """The path of each file's object."""
    names = {content(name): name for name in NAMES}
    found: dict[str, str] = {}
    for folder, _, files in os.walk(OBJECTS):
        for file in files:
            with open(f"{folder}/{file}", "rb") as reading:
                name = names.get(reading.read())
            if name is not None:
                found[name] = f"{folder}/{file}"
    booted.expect_equal(sorted(found), sorted(NAMES), "the files that are objects")
    return found


def replace(objects: "dict[str, str]") -> None:
    """Put other files in the place of objects: one without verity, one with its own verity."""
    os.unlink(objects["plain"])
    with open(objects["plain"], "wb") as file:
        file.write(content("wrong"))
    os.unlink(objects["other"])
    os.link(objects["whole"], objects["other"])


def damage_disk() -> None:
    """Change a byte of an object where the file system does not see it."""
    with open(DISK, "r+b") as disk:
        data = disk.read()
        place = data.find(content("device"))
        booted.expect(place > 0, f"the object lies on the disk, at {place}")
        disk.seek(place + SIZE // 2)
        disk.write(b"X")
        os.fsync(disk.fileno())


def check_files(digest: str) -> None:
    image = f"{REPO}/images/{digest}"
    with mounted(TARGET, "cfsctl", "--repo", REPO, "mount", "image", TARGET):
        options = booted.mount_of(TARGET).get("options", [])
        booted.expect("verity=require" in options, f"the mount demands verity: {options}")
        booted.expect(read("whole") == content("whole"), "what was left alone can be read")
        for name in ("plain", "other", "device"):
            booted.expect_equal(read(name), "EIO", f"reading {name}")
    tried = ("-o", f"basedir={OBJECTS},tryverity", image, TARGET)
    with mounted(TARGET, "mount.composefs", *tried):
        booted.expect_equal(read("plain"), "EIO", "reading plain by a mount that tries verity")
    unchecked = ("-o", f"basedir={OBJECTS}", image, TARGET)
    with mounted(TARGET, "mount.composefs", *unchecked):
        booted.expect(
            read("plain") == content("wrong"), "without verity, a wrong file is given out"
        )
        booted.expect_equal(read("device"), "EIO", "reading device, whose own verity is still on")


def check_image(digest: str) -> None:
    image = f"{REPO}/images/{digest}"
    options = f"basedir={OBJECTS},digest="
    with mounted(TARGET, "mount.composefs", "-o", options + digest, image, TARGET):
        booted.expect(read("whole") == content("whole"), "an image with the right digest mounts")
    wrong = "0" * len(digest)
    said = refused("mount.composefs", "-o", options + wrong, image, TARGET)
    booted.expect("Image has wrong fs-verity" in said, f"another digest is refused: {said}")
    path = os.path.realpath(image)
    shutil.copyfile(path, f"{path}.copy")
    os.rename(f"{path}.copy", path)
    said = refused("mount.composefs", "-o", options + digest, image, TARGET)
    booted.expect("Image has no fs-verity" in said, f"an image without verity is refused: {said}")
    said = refused("cfsctl", "--repo", REPO, "mount", "image", TARGET)
    booted.expect("verity" in said, f"cfsctl refuses it, too: {said.splitlines()}")
    booted.expect_equal(booted.mount_of(TARGET), {}, "what is mounted after the refusals")


def check() -> None:
    with workplace():
        with open(DISK, "wb") as file:
            file.truncate(64 << 20)
        booted.output("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "verity", DISK)
        disk = ("mount", "-o", "loop", DISK, HERE)
        with mounted(HERE, *disk):
            digest = make_repository()
            with mounted(TARGET, "cfsctl", "--repo", REPO, "mount", "image", TARGET):
                for name in NAMES:
                    booted.expect(read(name) == content(name), f"{name} can be read at first")
            replace(find_objects())
        damage_disk()
        with mounted(HERE, *disk):
            check_files(digest)
            check_image(digest)


if __name__ == "__main__":
    booted.main(check)
