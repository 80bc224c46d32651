# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the tests with podman share: its storage on a disk, its servers, bootc's storage."""

import glob
import json
import os
import subprocess
import time
from typing import Any

import booted

STORAGE = "/var/lib/containers/storage"
DISK = "/dev/disk/by-id/virtio-storage"
FOLDER = "/var/lib/booted-podman"
LAYOUT = f"{FOLDER}/layout"
VERSION = "/usr/share/booted-podman/version"
DATA = "/usr/share/booted-podman/data"
BOOTC_STORAGE = "/usr/lib/bootc/storage"
PATIENCE = 30.0


def mount_storage() -> None:
    """podman's own storage is the one on the disk, with the image of this machine in it."""
    os.makedirs(STORAGE, exist_ok=True)
    if not os.path.ismount(STORAGE):
        booted.output("mount", DISK, STORAGE)


def stored_image() -> "tuple[str, str, str]":
    """(name, id, digest of the manifest) of the one image in podman's own storage."""
    [found] = json.loads(booted.output("podman", "images", "--format", "json"))
    [name] = found["Names"]
    return str(name), str(found["Id"]), str(found["Digest"])


def servers() -> "list[str]":
    """The API servers of podman that run."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if b"service" in words and any(os.path.basename(word) == b"podman" for word in words):
            found.append(b" ".join(words).decode())
    return found


def expect_no_server() -> None:
    """None is left; a killed one may take a moment."""
    deadline = time.monotonic() + PATIENCE
    while servers() and time.monotonic() < deadline:
        time.sleep(0.2)
    booted.expect_equal(servers(), [], "podman's API servers that run")
    booted.expect_equal(booted.mount_of("/run/bootc/storage"), {}, "what is mounted for podman")


def bootc_images() -> "list[dict[str, Any]]":
    """The images that podman lists in bootc's storage: in that alone, not in podman's own."""
    text = booted.output("bootc", "image", "cmd", "list", "--format", "json")
    # podman lists an image once for each of its names.
    return list({one["Id"]: one for one in json.loads(text)}.values())


def listed() -> "dict[str, str]":
    """The kind of each image that `bootc image list` shows."""
    text = booted.output("bootc", "image", "list", "--format", "json")
    return {one["image"]: one["image_type"] for one in json.loads(text)}


def has_reflinks() -> bool:
    return str(booted.mount_of("/sysroot")["fstype"]) in ("btrfs", "xfs")


def expect_shared(path: str) -> None:
    """A file of bootc's storage has its extents in common with an object of the repository."""
    said = booted.output("filefrag", "-v", path)
    extents = [line for line in said.splitlines() if line.strip()[:1].isdigit()]
    booted.expect(
        bool(extents) and all("shared" in line for line in extents), f"{path} shares its extents"
    )


def new_image(digest: str, version: str, size: int = 0) -> str:
    """Publish the image `digest` of the repository and one layer more; returns the new digest.

    The layer has `size` bytes that don't compress.
    """
    import derived_image

    files = {VERSION.lstrip("/"): f"{version}\n".encode()}
    if size:
        files[DATA.lstrip("/")] = os.urandom(size)
    return derived_image.derive(digest, LAYOUT, files)


def read_version() -> "str | None":
    if not os.path.exists(VERSION):
        return None
    with open(VERSION, encoding="utf-8") as file:
        return file.read().strip()


def passed_through(*argv: str) -> str:
    """What a program says that must succeed, stderr too."""
    print(f"$ {' '.join(argv)}", flush=True)
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout, flush=True)
    if done.returncode != 0:
        booted.failed(f"{' '.join(argv)}: exit status {done.returncode}")
    return done.stdout
