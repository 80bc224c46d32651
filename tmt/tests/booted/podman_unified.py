#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""set-unified, switch, reboot, upgrade, reboot: each image comes by podman and is shared."""

import glob
import json
import os
from typing import Any

import booted
import podman_parts
import small_registry

STATE = f"{podman_parts.FOLDER}/unified.json"
SETTINGS = f"{podman_parts.FOLDER}/storage.conf"
_SIZE = 4 << 20
EMPTY = f"{podman_parts.FOLDER}/empty"
STORES = f"""[storage]
driver = "overlay"
graphroot = "{EMPTY}"
runroot = "/run/booted-podman"
[storage.options]
additionalimagestores = ["{podman_parts.BOOTC_STORAGE}"]
"""


def expect_unified(*names: str) -> None:
    found = podman_parts.listed()
    for name in names:
        booted.expect_equal(found.get(name), "unified", f"the kind of {name} ({found})")


def expect_stored(digests: "list[str]") -> None:
    """podman lists these images in bootc's storage, and no others."""
    images = podman_parts.bootc_images()
    print(json.dumps(images, indent=1), flush=True)
    claims = sorted(
        name.partition("bootc-")[2]
        for image in images
        for name in image["Names"]
        if name.startswith("localhost/bootc-sha256:")
    )
    booted.expect_equal(claims, sorted(digests), "the images that bootc claims")
    booted.expect_equal(len(images), len(digests), "the number of images in bootc's storage")


def expect_pulled_by_podman(registry: small_registry.Registry, layers: "list[str]") -> None:
    """Of the layers podman got the new one, once; nobody got another one."""
    got = [(digest, agent) for digest, agent in registry.blobs if digest in layers]
    booted.expect_equal([digest for digest, _ in got], [layers[-1]], "the layers that were sent")
    booted.expect("skopeo" not in got[0][1], f"it was podman that pulled ({got[0][1]})")


def start() -> None:
    podman_parts.mount_storage()
    found = booted.status()["status"]
    image = found["booted"]["image"]["image"]
    name = f"{image['transport']}:{image['image']}"
    allow = [] if podman_parts.has_reflinks() else ["--allow-copy"]
    if allow:
        said = booted.refused("bootc", "image", "set-unified")
        booted.expect("has no reflinks" in said and "--allow-copy" in said, "copies want a word")
        made = os.path.exists(f"{podman_parts.BOOTC_STORAGE}/overlay-images")
        booted.expect(not made, "nothing was begun")
    said = booted.told("bootc", "image", "set-unified", *allow)
    booted.expect(said.startswith("Unified: "), "set-unified says what it did")
    booted.expect(
        booted.told("bootc", "image", "set-unified").startswith("Unified already"),
        "the second time there is nothing to do",
    )
    podman_parts.expect_no_server()
    expect_unified(name)
    [stored] = podman_parts.bootc_images()
    digest = stored["Digest"]
    booted.expect_equal(digest, found["booted"]["image"]["imageDigest"], "the stored digest")
    expect_stored([digest])
    check_run(stored["Id"])

    second = podman_parts.new_image(found["booted"]["image"]["imageDigest"], "2", _SIZE)
    with small_registry.serve(podman_parts.LAYOUT) as registry:
        said = booted.told("bootc", "switch", small_registry.REFERENCE)
        booted.expect("Queued for next boot" in said, "switch says what is queued")
        expect_pulled_by_podman(registry, small_registry.blobs_of(podman_parts.LAYOUT))
    podman_parts.expect_no_server()
    staged = booted.status()["status"]["staged"]
    booted.expect_equal(staged["image"]["imageDigest"], second, "the staged digest")
    expect_stored([digest, second])
    expect_unified(small_registry.REFERENCE, name)
    check_extents()
    with open(STATE, "w", encoding="utf-8") as file:
        record = {
            "first": found["booted"]["image"]["imageDigest"],
            "second": second,
            "staged": booted.verity(staged),
        }
        json.dump(record, file)
    booted.reboot()


def check_extents() -> None:
    """Of what came by podman; what set-unified finds in the repository stays there as it is."""
    files = glob.glob(f"{podman_parts.BOOTC_STORAGE}/overlay/*/diff{podman_parts.DATA}")
    booted.expect_equal(len(files), 1, "the files of the new layer in bootc's storage")
    if podman_parts.has_reflinks():
        podman_parts.expect_shared(files[0])


def check_run(image: str) -> None:
    """podman runs what is in bootc's storage without a copy, as an additional store of its own."""
    with open(SETTINGS, "w", encoding="utf-8") as file:
        file.write(STORES)
    podman = ["env", f"CONTAINERS_STORAGE_CONF={SETTINGS}", "podman"]
    said = booted.told(*podman, "run", "--rm", "--network=host", image, "bootc", "--version")
    booted.expect_equal(said, booted.output("bootc", "--version"), "the version in the container")
    layers = glob.glob(f"{EMPTY}/overlay/*/diff")
    booted.expect_equal(layers, [], "the layers that podman has besides")


def check_booted(version: str, digest: str, staged: str) -> None:
    found = booted.status()["status"]
    print(json.dumps(found, indent=1), flush=True)
    booted.expect_equal(booted.verity(found["booted"]), staged, "what is booted")
    booted.expect_equal(found["booted"]["image"]["imageDigest"], digest, "the booted digest")
    booted.expect_equal(podman_parts.read_version(), version, podman_parts.VERSION)
    booted.expect_equal(
        found["booted"]["image"]["image"]["image"], small_registry.REFERENCE, "what is followed"
    )
    podman_parts.expect_no_server()


def upgrade(record: "dict[str, Any]") -> None:
    podman_parts.mount_storage()
    check_booted("2", record["second"], record["staged"])
    third = podman_parts.new_image(record["second"], "3")
    with small_registry.serve(podman_parts.LAYOUT) as registry:
        booted.told("bootc", "upgrade")
        expect_pulled_by_podman(registry, small_registry.blobs_of(podman_parts.LAYOUT))
        said = booted.told("bootc", "upgrade")
        booted.expect("Staged update present" in said, "upgrade again changes nothing")
    podman_parts.expect_no_server()
    staged = booted.status()["status"]["staged"]
    booted.expect_equal(staged["image"]["imageDigest"], third, "the staged digest")
    expect_unified(small_registry.REFERENCE)
    with open(STATE, "w", encoding="utf-8") as file:
        json.dump({**record, "third": third, "staged": booted.verity(staged)}, file)
    booted.reboot()


def finish(record: "dict[str, Any]") -> None:
    check_booted("3", record["third"], record["staged"])
    # The image of before the switch: no deployment has it any more, and bootc had brought it.
    booted.told("bootc", "internals", "composefs-gc", "--prune-repo")
    expect_stored([record["second"], record["third"]])


def check() -> None:
    os.makedirs(podman_parts.FOLDER, exist_ok=True)
    count = booted.reboot_count()
    if count == 0:
        start()
        return
    with open(STATE, encoding="utf-8") as file:
        record = json.load(file)
    [upgrade, finish][count - 1](record)


if __name__ == "__main__":
    booted.main(check)
