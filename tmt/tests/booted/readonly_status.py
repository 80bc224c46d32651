#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""readonly_status.py json|yaml|human: the three forms of `bootc status` on a composefs machine."""

import json
import os
import sys
from typing import Any

import booted
import plain_yaml
import schema_check

SCHEMA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "host-v1.schema.json")


def load_schema() -> "dict[str, Any]":
    with open(SCHEMA, encoding="utf-8") as file:
        schema: dict[str, Any] = json.load(file)
    return schema


def check_json() -> None:
    text = booted.output("bootc", "status", "--json")
    document = json.loads(text)
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    booted.expect(text == canonical, "the JSON is canonical: sorted keys, no blanks, no newline")
    found = schema_check.problems(document, load_schema())
    booted.expect(not found, f"the document satisfies the schema {'; '.join(found)}".rstrip())
    booted.expect_equal(document["apiVersion"], "org.containers.bootc/v1", "apiVersion")
    booted.expect_equal(document["kind"], "BootcHost", "kind")
    digest, enforced = booted.booted_digest()
    entry = document["status"]["booted"]
    booted.expect(entry is not None, "status.booted is set")
    composefs = entry["composefs"]
    booted.expect(composefs is not None, "status.booted.composefs is set")
    booted.expect_equal(composefs["verity"], digest, "status.booted.composefs.verity")
    booted.expect_equal(composefs["missingVerityAllowed"], not enforced, "missingVerityAllowed")
    image = entry["image"]
    booted.expect(image is not None, "status.booted.image is set")
    booted.expect(image["imageDigest"].startswith("sha256:"), "imageDigest is a sha256 digest")
    booted.expect_equal(len(image["imageDigest"]), len("sha256:") + 64, "length of imageDigest")
    booted.expect(bool(image["image"]["image"]), f"the image is {image['image']['image']}")


def check_yaml() -> None:
    text = booted.output("bootc", "status", "--format", "yaml")
    booted.expect_equal(plain_yaml.load(text), booted.status(), "the YAML document")
    # Standard output is no terminal here, and then YAML is the default.
    booted.expect(booted.output("bootc", "status") == text, "YAML is the default off a terminal")


def check_human() -> None:
    text = booted.output("bootc", "status", "--format", "humanreadable")
    print(text)
    entry = booted.status()["status"]["booted"]
    heads = [line for line in text.splitlines() if "Booted image: " in line]
    booted.expect_equal(len(heads), 1, "number of lines for the booted image")
    booted.expect(heads[0].endswith(entry["image"]["image"]["image"]), "it names the image")
    booted.expect(entry["image"]["imageDigest"] in text, "it gives the image's digest")
    booted.expect(entry["composefs"]["verity"] in text, "it gives the composefs digest")
    booted.expect("\x1b" not in text, "it has no escape sequences off a terminal")


if __name__ == "__main__":
    booted.main({"json": check_json, "yaml": check_yaml, "human": check_human}[sys.argv[1]])
