# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Where images are read from: an OCI layout on disk and podman's storage natively, the rest
through skopeo.

OCI layout: `oci-layout`, `index.json` and `blobs/<algorithm>/<hex>`. A tag is the annotation
`org.opencontainers.image.ref.name` of a descriptor in the index.
"""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self, runtime_checkable

from bootc.errors import BootcError
from bootc.jsonutil import read_object
from bootc.oci.model import (
    DOCKER_LIST,
    INDEX,
    Descriptor,
    choose_manifest,
    read_descriptor,
    read_manifest,
    verify_digest,
)
from bootc.oci.proxy import ProxyOptions, ProxySource
from bootc.oci.reference import Transport, parse_imgref

if TYPE_CHECKING:
    from bootc.storage.layer import LayerReader

_log = logging.getLogger(__name__)

REF_NAME = "org.opencontainers.image.ref.name"
_DOCUMENT_MAX = 64 << 20


class ImageSource(Protocol):
    """An image that can be pulled; a context manager. Manifest and config are verified bytes."""

    @property
    def manifest(self) -> bytes: ...

    @property
    def manifest_digest(self) -> str: ...

    @property
    def config(self) -> bytes: ...

    @property
    def config_digest(self) -> str: ...

    def open_blob(self, digest: str) -> AbstractContextManager[BinaryIO]:
        """A layer of the manifest, as it is stored, unverified: whoever reads it verifies it.

        Several threads may have blobs open at once.
        """

    def cancel(self) -> None:
        """Wake whoever waits for a blob's data, with an error. Any thread may call it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class FilesSource(Protocol):
    """A source whose layers' contents are files of this machine (`storage.source`)."""

    def open_layer(self, diff_id: str) -> AbstractContextManager[LayerReader]:
        """A layer's tar, and the files that its contents are."""

    def release(self) -> None:
        """Let others change those files; manifest and config can be read still."""


class LocalStorage(StrEnum):
    """How `containers-storage:` is read."""

    AUTO = "auto"
    """Natively, or by skopeo where that cannot be."""
    NATIVE = "native"
    SKOPEO = "skopeo"


def open_source(
    imgref: str,
    options: ProxyOptions | None = None,
    *,
    local: LocalStorage = LocalStorage.AUTO,
) -> ImageSource:
    """Open the image that `imgref` (`oci:PATH[:TAG]`, `docker://…`, …) names; use it in `with`.

    `options` say how to talk to a registry.
    """
    reference = parse_imgref(imgref)
    if reference.transport is Transport.CONTAINERS_STORAGE and local is not LocalStorage.SKOPEO:
        # start-up time: most images come from elsewhere
        from bootc.storage.source import StorageSource, find_stored
        from bootc.storage.store import Unsupported

        try:
            source = StorageSource(find_stored(reference.image))
            source.need_supported()
            return source
        except Unsupported as refusal:
            if local is LocalStorage.NATIVE:
                raise
            _log.warning("%s: reading %s through skopeo", refusal, reference)
    if reference.transport is Transport.OCI:
        path, tag = reference.layout()
        return LayoutSource(path, tag)
    return ProxySource(reference.imgref, options)


class LayoutSource:
    """An image in an OCI layout directory."""

    def __init__(self, path: str, tag: str | None = None) -> None:
        self._path = path
        found = _find_manifest(path, tag)
        self.manifest_digest = found.digest
        self.manifest = self._read_document(found)
        config = read_manifest(self.manifest, f"{path}: manifest").config
        self.config_digest = config.digest
        self.config = self._read_document(config)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def cancel(self) -> None:
        pass

    def open_blob(self, digest: str) -> BinaryIO:
        return _open_blob(self._path, digest)

    def _read_document(self, descriptor: Descriptor) -> bytes:
        return _read_document(self._path, descriptor)


def _open_blob(path: str, digest: str) -> BinaryIO:
    name = os.path.join(path, "blobs", *digest.split(":", 1))
    try:
        return open(name, "rb", buffering=0)
    except OSError as error:
        raise BootcError(
            f"cannot read {name}: {error.strerror}",
            hint="the OCI layout is incomplete: copy the image again",
        ) from error


def _read_document(path: str, descriptor: Descriptor) -> bytes:
    if descriptor.size > _DOCUMENT_MAX:
        raise BootcError(f"{path}: {descriptor.digest} is too large for a document")
    with _open_blob(path, descriptor.digest) as file:
        data = file.read(_DOCUMENT_MAX + 1)
    verify_digest(data, descriptor.digest, f"{path}: {descriptor.media_type}")
    return data


def _find_manifest(path: str, tag: str | None) -> Descriptor:
    source = os.path.join(path, "index.json")
    try:
        with open(source, "rb") as file:
            index = file.read(_DOCUMENT_MAX)
    except OSError as error:
        raise BootcError(
            f"{path} is no OCI layout: cannot read {source}: {error.strerror}",
            hint="give the directory that holds index.json, as oci:DIRECTORY[:TAG]",
        ) from error
    found = [read_descriptor(item) for item in read_object(index, source).tables("manifests")]
    tags = [item.annotations.get(REF_NAME) for item in found]
    if tag is not None:
        found = [item for item, name in zip(found, tags, strict=True) if name == tag]
        if not found:
            raise BootcError(f"{path} has no tag {tag!r}", hint=f"tags there: {_listed(tags)}")
    elif len(found) > 1 and any(tags):
        raise BootcError(
            f"{path} holds {len(found)} images", hint=f"name one, oci:{path}:TAG: {_listed(tags)}"
        )
    chosen = choose_manifest(found, path) if len(found) != 1 else found[0]
    for _ in range(4):
        if chosen.media_type not in (INDEX, DOCKER_LIST):
            return chosen
        nested = read_object(_read_document(path, chosen), f"{path}: {chosen.digest}")
        chosen = choose_manifest(
            [read_descriptor(item) for item in nested.tables("manifests")], path
        )
    raise BootcError(f"{path}: indexes are nested too deeply")


def _listed(tags: list[str | None]) -> str:
    return ", ".join(sorted(tag for tag in tags if tag)) or "none"
