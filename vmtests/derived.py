# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Images derived from an image in an OCI layout: one more layer, under another tag.

That is what an update is: the layers of before, and what changed on top of them.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from bootc.errors import BootcError
from bootc.jsonutil import Json, Reader, canonical, read_object
from bootc.oci.layout import REF_NAME
from bootc.oci.model import CONFIG, MANIFEST, PLAIN_LAYER

VERSION = "org.opencontainers.image.version"


def layer_of(files: Mapping[str, bytes], *, mode: int = 0o644) -> bytes:
    """A tar of files by their paths (`usr/share/x`); equal input gives equal bytes."""
    room = io.BytesIO()
    with tarfile.open(fileobj=room, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in sorted(files.items()):
            item = tarfile.TarInfo(name)
            item.size, item.mode = len(data), mode
            tar.addfile(item, io.BytesIO(data))
    return room.getvalue()


def add_layer(layout: Path, tar: bytes, *, base: str, tag: str) -> str:
    """Add the image `tag` to the layout: that of the tag `base` and the layer `tar`.

    Its version is the tag. Returns the digest of the manifest.
    """
    index_file = layout / "index.json"
    items = list(read_object(index_file.read_bytes(), str(index_file)).tables("manifests"))
    found = [item for item in items if _tag_of(item) == base]
    if len(found) != 1:
        raise BootcError(f"{layout} has {len(found)} images with the tag {base}")
    manifest = _read(layout, found[0])
    if (manifest.optional_text("mediaType") or MANIFEST) != MANIFEST:
        raise BootcError(f"{layout}: {base} is no OCI image, but {manifest.text('mediaType')}")
    config = _read(layout, manifest.table("config"))
    layer = _add(layout, PLAIN_LAYER, tar)
    rootfs = config.table("rootfs")
    settings = config.optional_table("config")
    labels = settings.optional_table("Labels") if settings else None
    fresh_config: dict[str, Json] = {
        **{key: value for key, value in config.value.items() if key != "history"},
        "rootfs": {**rootfs.value, "diff_ids": [*rootfs.texts("diff_ids"), layer["digest"]]},
        "config": {
            **(settings.value if settings else {}),
            "Labels": {**(labels.value if labels else {}), VERSION: tag},
        },
    }
    fresh_manifest: dict[str, Json] = {
        **manifest.value,
        "config": _add(layout, CONFIG, canonical(fresh_config).encode()),
        "layers": [*(dict(item.value) for item in manifest.tables("layers")), layer],
    }
    made = _add(layout, MANIFEST, canonical(fresh_manifest).encode())
    kept: list[Json] = [dict(item.value) for item in items if _tag_of(item) != tag]
    entry: Json = {**made, "annotations": {REF_NAME: tag}}
    fresh = layout / "index.json.new"
    fresh.write_text(canonical({"schemaVersion": 2, "manifests": [*kept, entry]}))
    fresh.rename(index_file)
    return str(made["digest"])


def _tag_of(item: Reader) -> str | None:
    annotations = item.optional_table("annotations")
    return annotations.optional_text(REF_NAME) if annotations else None


def _read(layout: Path, descriptor: Reader) -> Reader:
    path = layout / "blobs" / descriptor.text("digest").replace(":", "/")
    return read_object(path.read_bytes(), str(path))


def _add(layout: Path, media_type: str, data: bytes) -> dict[str, Json]:
    """Write a blob; returns its descriptor."""
    name = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / name).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}
