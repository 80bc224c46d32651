# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The OCI documents we read: descriptors, manifests, indexes and configs. Source: OCI image-spec.

A digest is `sha256:` (or `sha384:`, `sha512:`) and lowercase hexadecimal, of the document's bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from bootc.errors import BootcError, FormatError
from bootc.jsonutil import Reader, read_object

if TYPE_CHECKING:
    from hashlib import _Hash

INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
PLAIN_LAYER = "application/vnd.oci.image.layer.v1.tar"
DELTA = "application/vnd.io.github.containers.oci-delta.v1"
"""The artifact type of an image given as the difference to another one."""

_SIZES = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+\Z")


class Compression(StrEnum):
    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


_LAYER = re.compile(
    r"application/vnd\.(oci\.image\.layer\.(nondistributable\.)?v1\.tar(?P<oci>|\+gzip|\+zstd)"
    r"|docker\.image\.rootfs\.(foreign\.)?diff\.tar(?P<docker>|\.gzip|\.zstd))\Z"
)


def layer_compression(media_type: str) -> Compression:
    """How a layer of `media_type` is packed. Raises `BootcError` when it is no tar layer."""
    found = _LAYER.match(media_type)
    if found is None:
        raise BootcError(f"layers of the type {media_type!r} are not supported")
    suffix = (found["oci"] or found["docker"] or "").lstrip("+.")
    return Compression(suffix or "none")


def check_digest(text: str, source: str, where: str) -> str:
    """`text`, if it is a well-formed digest of an algorithm that we know."""
    algorithm, _, value = text.partition(":")
    if _SIZES.get(algorithm) != len(value) or not _HEX.match(value):
        raise FormatError(source, where, f"{text[:100]!r} is no digest")
    return text


def digest_hasher(digest: str) -> _Hash:
    """A new hash object of the algorithm that `digest` names."""
    return hashlib.new(digest.partition(":")[0])


def verify_digest(data: bytes, digest: str, what: str) -> None:
    """Raise `FormatError` unless `data` has this digest."""
    hasher = digest_hasher(digest)
    hasher.update(data)
    found = f"{hasher.name}:{hasher.hexdigest()}"
    if found != digest:
        raise FormatError(what, None, f"has the digest {found}, expected {digest}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A reference to a blob. `platform` is (os, architecture) where an index says it."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: tuple[str, str] | None = None


def read_descriptor(item: Reader) -> Descriptor:
    size = item.integer("size")
    if size < 0:
        raise FormatError(item.source, f"{item.path}.size", "is negative")
    platform = item.optional_table("platform")
    return Descriptor(
        media_type=item.text("mediaType"),
        digest=check_digest(item.text("digest"), item.source, f"{item.path}.digest"),
        size=size,
        annotations=_texts(item, "annotations"),
        platform=None if platform is None else (platform.text("os"), platform.text("architecture")),
    )


def _texts(item: Reader, key: str) -> dict[str, str]:
    table = item.optional_table(key)
    return {} if table is None else {name: table.text(name) for name in table.value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]
    artifact_type: str | None = None
    subject: str | None = None

    @property
    def is_container(self) -> bool:
        """Whether this is an image of an operating system, and no other artifact."""
        return self.config.media_type in (CONFIG, DOCKER_CONFIG)


def read_manifest(data: bytes, source: str) -> Manifest:
    top = read_object(data, source)
    if top.integer("schemaVersion") != 2:
        raise FormatError(source, ".schemaVersion", f"{top.integer('schemaVersion')} is not 2")
    subject = top.optional_table("subject")
    return Manifest(
        config=read_descriptor(top.table("config")),
        layers=tuple(read_descriptor(item) for item in top.tables("layers")),
        annotations=_texts(top, "annotations"),
        artifact_type=top.optional_text("artifactType"),
        subject=None if subject is None else read_descriptor(subject).digest,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """An image config, as far as we use it."""

    architecture: str
    os: str
    diff_ids: tuple[str, ...]
    labels: Mapping[str, str]
    created: str | None
    version: str | None


def read_config(data: bytes, source: str) -> Config:
    top = read_object(data, source)
    diff_ids = top.table("rootfs").texts("diff_ids")
    for index, diff_id in enumerate(diff_ids):
        check_digest(diff_id, source, f".rootfs.diff_ids[{index}]")
    inner = top.optional_table("config")
    labels = {} if inner is None else _texts(inner, "Labels")
    return Config(
        architecture=top.text("architecture"),
        os=top.text("os"),
        diff_ids=tuple(diff_ids),
        labels=labels,
        created=top.optional_text("created"),
        version=labels.get("org.opencontainers.image.version"),
    )


_MACHINES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
    "armv7l": "arm",
    "i686": "386",
}


def this_platform() -> tuple[str, str]:
    """(os, architecture) of this machine in OCI's names."""
    machine = os.uname().machine
    return "linux", _MACHINES.get(machine, machine)


def choose_manifest(
    descriptors: list[Descriptor], source: str, *, platform: tuple[str, str] | None = None
) -> Descriptor:
    """The descriptor of an index for this platform; a single one without a platform will do."""
    wanted = platform or this_platform()
    for descriptor in descriptors:
        if descriptor.platform == wanted:
            return descriptor
    if len(descriptors) == 1 and descriptors[0].platform is None:
        return descriptors[0]
    offered = ", ".join("/".join(item.platform) for item in descriptors if item.platform)
    raise BootcError(f"{source} has no image for {'/'.join(wanted)}, only: {offered or 'none'}")
