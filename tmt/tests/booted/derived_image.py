# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Makes the next version of the image that runs, in the guest and without a registry.

An OCI layout is written whose manifest is that of the running image and one small layer more. The
blobs of the other layers are not in it: the composefs repository has these layers, so nobody reads
them. Equal files make an equal image.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from typing import Any

LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"


EVERYWHERE = ("etc", "usr", "usr/lib", "usr/lib/bootc", "usr/share")
"""Folders that every image here has."""


def make_layer(files: "Mapping[str, bytes]") -> bytes:
    """A tar of these files and of their folders."""
    folders: set[str] = set()
    for name in files:
        while name := os.path.dirname(name):
            if name not in EVERYWHERE:
                folders.add(name)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(folders | set(files)):
            member = tarfile.TarInfo(name)
            if name in folders:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            else:
                member.mode, member.size = 0o644, len(files[name])
                tar.addfile(member, io.BytesIO(files[name]))
    return buffer.getvalue()


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
    layer = make_layer(files)
    config["rootfs"]["diff_ids"].append(_digest(layer))
    config.setdefault("history", []).append({"created_by": "booted test"})
    manifest["layers"].append({"mediaType": LAYER, **_write_blob(layout, layer)})
    manifest["config"].update(_write_blob(layout, json.dumps(config).encode()))
    found = _write_blob(layout, json.dumps(manifest).encode())
    media_type = manifest.get("mediaType", MANIFEST)
    entry = {"mediaType": media_type, **found, "annotations": {REF_NAME: "latest"}}
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]})
    for name, text in (("index.json", index), ("oci-layout", '{"imageLayoutVersion":"1.0.0"}')):
        with open(f"{layout}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    return str(found["digest"])


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _write_blob(layout: str, data: bytes) -> "dict[str, Any]":
    digest = _digest(data)
    folder = f"{layout}/blobs/sha256"
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/{digest.removeprefix('sha256:')}", "wb") as file:
        file.write(data)
    return {"digest": digest, "size": len(data)}
