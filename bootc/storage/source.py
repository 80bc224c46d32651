# SPDX-License-Identifier: Apache-2.0 OR MIT
"""An image of a store, ready to be pulled: `find_stored` finds it, `StorageSource` reads it.

The manifest is the one that podman got or made, so its digest is that of the image elsewhere. The
layers it names may have been compressed; those blobs are not in the store any more. What is there
are the layers' tars, and they are verified by the diff ids of the config.

As long as a `StorageSource` is open it holds the layers' locks of its stores, shared: podman waits
before it adds or deletes a layer (podman 4 with nearly everything, podman 5 even with `podman info`
now and then), so run no podman meanwhile, or `release` it first: the documents stay readable.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self, cast

from bootc.errors import BootcError, FormatError
from bootc.oci.model import (
    Compression,
    layer_compression,
    read_config,
    read_manifest,
    verify_digest,
)
from bootc.storage.layer import LayerReader, TarStream, need_tarsplit, open_layer
from bootc.storage.locks import LOCK_TIMEOUT
from bootc.storage.opener import Opener
from bootc.storage.options import find_options
from bootc.storage.records import ImageRecord
from bootc.storage.reference import choose_image, parse_reference
from bootc.storage.store import (
    LayerIndex,
    Store,
    StoredLayer,
    Unsupported,
    all_layers_locked,
    find_image_layers,
    open_stores,
)

_MANIFEST = "manifest"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image, the store that it lies in, and the key of the manifest that was asked for."""

    name: str
    store: Store
    stores: tuple[Store, ...]
    record: ImageRecord
    manifest_key: str = _MANIFEST


def find_stored(text: str) -> StoredImage:
    """Find what `containers-storage:` and `text` mean.

    Raises `BootcError`; `Unsupported` for what skopeo might read and this module does not.
    """
    reference = parse_reference(text)
    if reference.graphroot is not None:
        roots: tuple[str, ...] = (reference.graphroot, *reference.additional)
        driver = reference.driver
    else:
        options = find_options()
        roots, driver = options.roots, options.driver
    stores = open_stores(roots, driver)
    images = [store.images() for store in stores]
    number, record = choose_image(reference.name, images, ", ".join(store.root for store in stores))
    _, at, digest = reference.name.rpartition("@")
    wanted = f"manifest-{digest}"
    return StoredImage(
        name=reference.name,
        store=stores[number],
        stores=stores,
        record=record,
        manifest_key=wanted if at and wanted in record.data else _MANIFEST,
    )


class StorageSource:
    """See `layout.ImageSource`; beyond that `open_layer` gives a layer with its files."""

    manifest: bytes
    manifest_digest: str
    config: bytes
    config_digest: str

    def __init__(self, image: StoredImage, *, lock_timeout: float = LOCK_TIMEOUT) -> None:
        self._image = image
        self._timeout = lock_timeout
        self._stack = ExitStack()
        self._opener = Opener()
        self._layers: dict[str, StoredLayer] = {}
        self._blobs: dict[str, str] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(all_layers_locked(self._image.stores, timeout=self._timeout))
            stack.enter_context(self._opener)
            with self._image.store.images_locked(timeout=self._timeout):
                self._read_documents()
            self._find_layers()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def release(self) -> None:
        """Give up the locks and the layers; manifest and config were read already."""
        self._stack.close()

    def need_supported(self) -> None:
        """Raise `Unsupported` at once if `with` is going to. What else is wrong is told there."""
        try:
            self._read_documents()
            self._find_layers()
        except Unsupported:
            raise
        except (BootcError, OSError):
            pass  # without the locks it may be podman's writing

    def cancel(self) -> None:
        pass  # nobody waits here for anybody else's data

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The layers, each once, from the lowest on."""
        return tuple(self._layers)

    @contextmanager
    def open_layer(self, diff_id: str) -> Iterator[LayerReader]:
        """The layer with this diff id. Several threads may have layers open at once."""
        with open_layer(self._layers[diff_id], self._image.stores, self._opener) as reader:
            yield reader

    @contextmanager
    def open_blob(self, digest: str) -> Iterator[BinaryIO]:
        """A layer that the manifest has uncompressed, as the tar that it is."""
        diff_id = self._blobs.get(digest)
        if diff_id is None:
            raise BootcError(f"{self._what}: the blob {digest} is not kept as it was")
        with self.open_layer(diff_id) as reader, TarStream(reader) as stream:
            yield cast(BinaryIO, io.BufferedReader(stream, 1 << 20))

    @property
    def _what(self) -> str:
        return f"{self._image.store.root}: image {self._image.record.id[:12]}"

    def _read_documents(self) -> None:
        store, record = self._image.store, self._image.record
        self.manifest = store.big_data(record, self._image.manifest_key)
        source = f"{self._what}: manifest"
        manifest = read_manifest(self.manifest, source)
        if not manifest.is_container:
            raise Unsupported(f"{self._what} is an artifact, not an image")
        self.manifest_digest = _sha256(self.manifest)
        key = f"manifest-{self.manifest_digest}"
        if self._image.manifest_key == _MANIFEST:
            # One image may have been pulled by several manifests: `manifest` is the last one, the
            # record's digest that of the first.
            known = record.digest in (None, self.manifest_digest) or key in record.data
        else:
            known = self._image.manifest_key == key
        if not known:
            raise FormatError(
                source,
                None,
                f"has the digest {self.manifest_digest}, which is not one of the image's",
                hint="the image is damaged: remove it and pull it again with podman",
            )
        self.config_digest = manifest.config.digest
        self.config = store.big_data(record, self.config_digest)
        verify_digest(self.config, self.config_digest, f"{self._what}: config")

    def _find_layers(self) -> None:
        manifest = read_manifest(self.manifest, f"{self._what}: manifest")
        diff_ids = read_config(self.config, f"{self._what}: config").diff_ids
        index = LayerIndex(self._image.stores)
        found = find_image_layers(index, self._image.record.layer, diff_ids)
        for stored in found:
            need_tarsplit(stored)
        self._layers = dict(zip(diff_ids, found, strict=True))
        for layer, diff_id in zip(manifest.layers, diff_ids, strict=False):
            if layer_compression(layer.media_type) is Compression.NONE:
                self._blobs[layer.digest] = diff_id


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
