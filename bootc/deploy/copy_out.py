# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`bootc image copy-to-storage`: give the machine's container storage an image that is deployed.

An image that bootc's container storage holds is copied from there. Any other one is put together
from the repository, as an OCI layout in /var/tmp: with its own config, so that it keeps its id, and
a new manifest, because the layers are not packed any more. skopeo carries it over.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from bootc import process
from bootc.composefs.repository import Repository
from bootc.composefs.stored import PulledImage, load_image, read_stream_object
from bootc.composefs.stored_layers import read_bytes
from bootc.deploy.stage import live_deployments
from bootc.deploy.sysroot import Deployment, Sysroot
from bootc.deploy.unified import find_stored, find_unified_storage
from bootc.errors import BootcError, FormatError
from bootc.jsonutil import Json, canonical
from bootc.log import show_size, step
from bootc.oci.model import CONFIG, MANIFEST, PLAIN_LAYER

DEFAULT_TARGET = "localhost/bootc"
_LONG = 4 * 3600.0
_SKOPEO = "install skopeo (apt-get install skopeo, dnf install skopeo), in the image, too"


def copy_to_storage(
    sysroot: Sysroot, *, source: str | None = None, target: str = DEFAULT_TARGET
) -> str:
    """Copy a deployed image, the booted one by default, to the machine's storage as `target`.

    `source` is the reference that `bootc status` shows. Returns the new reference.
    """
    skopeo = process.need_program("skopeo", hint=_SKOPEO)
    wanted = _find_deployment(sysroot, source)
    assert wanted.origin is not None
    digest = wanted.origin.manifest_digest
    destination = f"containers-storage:{target}"
    storage = find_unified_storage(sysroot)
    if storage is not None:
        found = next(
            (one for one in storage.images() if digest is not None and one.digest == digest), None
        ) or find_stored(storage.images(), wanted.origin.image, digest)
        if found is not None and digest in (None, found.digest):
            where = f"[overlay@{storage.path}+{storage.runroot}]"
            _copy(skopeo, f"containers-storage:{where}{found.id}", destination)
            return destination
    if digest is None:
        raise BootcError(
            f"the origin of {wanted.origin.image} does not say which manifest it was",
            hint="after the next update it does",
        )
    with (
        Repository.open(sysroot.repository, insecure=sysroot.insecure) as repo,
        _layout(repo, load_image(repo, f"@{digest}")) as layout,
    ):
        _copy(skopeo, f"oci:{layout}", destination)
    return destination


def _find_deployment(sysroot: Sysroot, source: str | None) -> Deployment:
    known = [one for one in live_deployments(sysroot) if one.origin is not None]
    for one in known:
        assert one.origin is not None
        if source is None and one.id == sysroot.booted:
            return one
        if source is not None and source in (str(one.origin.image), one.origin.image.imgref):
            return one
    if source is None:
        raise BootcError(
            "nobody knows which image is booted: its origin file is missing or damaged",
            hint="--source names the image of another deployment",
        )
    names = ", ".join(str(one.origin.image) for one in known if one.origin is not None)
    raise BootcError(f"no deployment is of {source}", hint=f"these are deployed: {names}")


def _copy(skopeo: str, source: str, target: str) -> None:
    with step(f"copy to {target}"):
        argv = [skopeo, "--insecure-policy", "copy", "--quiet", "--remove-signatures"]
        process.run([*argv, source, target], timeout=_LONG)


@contextmanager
def _layout(repo: Repository, image: PulledImage) -> Iterator[str]:
    """The image as an OCI layout, as long as the block."""
    with tempfile.TemporaryDirectory(prefix="bootc-copy-", dir="/var/tmp") as folder:
        write_layout(repo, image, folder)
        yield folder


def write_layout(repo: Repository, image: PulledImage, folder: str) -> str:
    """Write an image of the repository as an OCI layout; returns its new manifest's digest.

    Raises `FormatError` if a layer isn't what its diff id says.
    """
    blobs = f"{folder}/blobs/sha256"
    os.makedirs(blobs)
    layers: list[Json] = []
    with step("put the image together"):
        for layer in image.layers:
            stream = read_stream_object(repo, layer.digest, layer.diff_id)
            size = 0
            hasher = hashlib.sha256()
            path = f"{blobs}/{layer.diff_id.partition(':')[2]}"
            with open(path, "wb", buffering=0) as file:
                for piece in read_bytes(repo, stream):
                    hasher.update(piece)
                    size += file.write(piece)
            if f"sha256:{hasher.hexdigest()}" != layer.diff_id:
                raise FormatError(
                    f"layer {layer.diff_id}",
                    None,
                    f"comes out of the repository as sha256:{hasher.hexdigest()} "
                    f"({show_size(size)})",
                    hint="bootc internals fsck tells what is damaged",
                )
            layers.append({"mediaType": PLAIN_LAYER, "digest": layer.diff_id, "size": size})
    config = _write_blob(blobs, image.config)
    manifest = canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config, "size": len(image.config)},
            "layers": layers,
        }
    ).encode()
    digest = _write_blob(blobs, manifest)
    entry: Json = {"mediaType": MANIFEST, "digest": digest, "size": len(manifest)}
    for name, text in (
        ("index.json", canonical({"schemaVersion": 2, "manifests": [entry]})),
        ("oci-layout", '{"imageLayoutVersion":"1.0.0"}'),
    ):
        with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    return digest


def _write_blob(blobs: str, data: bytes) -> str:
    name = hashlib.sha256(data).hexdigest()
    with open(f"{blobs}/{name}", "wb") as file:
        file.write(data)
    return f"sha256:{name}"
