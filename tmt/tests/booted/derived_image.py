# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Makes the next version of the image that runs, in the guest and without a registry.

An OCI layout is written whose manifest is that of the running image and one small layer more. The
blobs of the other layers are not in it: the composefs repository has these layers, so nobody reads
them. Equal files make an equal image.
"""

import json
from collections.abc import Mapping
from typing import Any

import oci_files

EVERYWHERE = ("etc", "usr", "usr/lib", "usr/lib/bootc", "usr/share")
"""Folders that every image here has."""


def derive(
    manifest_digest: str,
    layout: str,
    files: "Mapping[str, bytes]",
    *,
    repository: str = "/sysroot/composefs",
) -> str:
    """Write the layout, tag `latest`; returns the digest of the new manifest."""
    from bootc.composefs.repository import Repository
    from bootc.composefs.stored import load_image

    with Repository.open(repository) as repo:
        image = load_image(repo, f"@{manifest_digest}")
    manifest: dict[str, Any] = json.loads(image.manifest)
    config: dict[str, Any] = json.loads(image.config)
    layer = oci_files.make_tar(files, without=EVERYWHERE)
    config["rootfs"]["diff_ids"].append(oci_files.digest_of(layer))
    config.setdefault("history", []).append({"created_by": "booted test"})
    added = {"mediaType": oci_files.LAYER, **oci_files.write_blob(layout, layer)}
    manifest["layers"].append(added)
    manifest["config"].update(oci_files.write_blob(layout, json.dumps(config).encode()))
    return oci_files.write_image(layout, manifest)
