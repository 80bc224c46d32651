# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Writes OCI layouts: tars of layers, blobs, and the index of one image, tag `latest`."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Collection, Mapping
from typing import Any

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"


def make_tar(
    files: "Mapping[str, bytes]",
    *,
    folders: "Collection[str]" = (),
    without: "Collection[str]" = (),
) -> bytes:
    """A tar of these files, of their folders (not those in `without`), and of other `folders`."""
    wanted = set(folders)
    for name in files:
        while name := os.path.dirname(name):
            if name not in without:
                wanted.add(name)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(wanted | set(files)):
            member = tarfile.TarInfo(name)
            if name in wanted:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            else:
                member.mode, member.size = 0o644, len(files[name])
                tar.addfile(member, io.BytesIO(files[name]))
    return buffer.getvalue()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def write_blob(layout: str, data: bytes) -> "dict[str, Any]":
    """Write a blob; returns its digest and size, for a descriptor."""
    digest = digest_of(data)
    folder = f"{layout}/blobs/sha256"
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/{digest.removeprefix('sha256:')}", "wb") as file:
        file.write(data)
    return {"digest": digest, "size": len(data)}


def write_image(layout: str, manifest: "Mapping[str, Any]") -> str:
    """Write a manifest whose blobs are there, and the index; returns the manifest's digest."""
    found = write_blob(layout, json.dumps(manifest).encode())
    media_type = manifest.get("mediaType", MANIFEST)
    entry = {"mediaType": media_type, **found, "annotations": {REF_NAME: "latest"}}
    for name, document in (
        ("index.json", {"schemaVersion": 2, "manifests": [entry]}),
        ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
    ):
        with open(f"{layout}/{name}", "w", encoding="utf-8") as file:
            json.dump(document, file)
    return str(found["digest"])
