#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The signature policy that the origin asks for is enforced: by skopeo, and by bootc where the
policy would take anything. What is refused stages nothing."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import booted
import derived_image

LAYOUT = "/var/lib/booted-update/policy"
POLICY = "/etc/containers/policy.json"
ENFORCED = ("bootc", "switch", "--enforce-container-sigpolicy", "--transport", "oci")
NEEDS = (1, 14)
"""The version of skopeo that looks at the policy when others read images through it."""


@contextmanager
def policy(kind: str) -> "Iterator[None]":
    """A policy that asks this of images in our folder, and nothing of others."""
    old = None
    if os.path.exists(POLICY):
        with open(POLICY, encoding="utf-8") as file:
            old = file.read()
    os.makedirs(os.path.dirname(POLICY), exist_ok=True)
    anything = [{"type": "insecureAcceptAnything"}]
    document = {"default": anything, "transports": {"oci": {LAYOUT: [{"type": kind}]}}}
    with open(POLICY, "w", encoding="utf-8") as file:
        json.dump(document, file)
    try:
        yield
    finally:
        if old is None:
            os.unlink(POLICY)
        else:
            with open(POLICY, "w", encoding="utf-8") as file:
                file.write(old)


def nothing_staged() -> None:
    booted.expect_equal(booted.status()["status"]["staged"], None, "what is staged")


def check() -> None:
    said = booted.output("skopeo", "--version").split()[2]
    version = tuple(int(part) for part in said.split(".")[:2])
    booted.expect(version >= NEEDS, f"skopeo {said} looks at the policy")
    before = booted.status()
    image = before["status"]["booted"]["image"]
    derived_image.derive(image["imageDigest"], LAYOUT, {"usr/share/booted-policy": b"1"})
    with policy("reject"):
        said = booted.refused(*ENFORCED, f"{LAYOUT}:latest")
        booted.expect("reject" in said and "hint: " in said, "a switch is refused, and says why")
        nothing_staged()
        # Only the origin: where updates come from, and that they are to be verified.
        booted.told(*ENFORCED, "--mutate-in-place", f"{LAYOUT}:latest")
        found = booted.status()["spec"]["image"]
        booted.expect_equal(found["signature"], "containerPolicy", "the signature in the status")
        said = booted.refused("bootc", "upgrade")
        booted.expect("reject" in said, "an upgrade is refused by what the origin says")
        said = booted.refused("bootc", "upgrade", "--check")
        booted.expect("reject" in said, "so is a look at it")
        nothing_staged()
    with policy("insecureAcceptAnything"):
        said = booted.refused("bootc", "upgrade")
        booted.expect("accepts anything" in said, "a policy that asks for nothing is refused")
        nothing_staged()
    reference = image["image"]
    argv = ["bootc", "switch", "--mutate-in-place", "--transport", reference["transport"]]
    booted.told(*argv, reference["image"])
    booted.expect_equal(booted.status(), before, "the status")


if __name__ == "__main__":
    booted.main(check)
