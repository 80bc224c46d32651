# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A store on disk, with the driver overlay, as podman 4 and 5 keep it.

    overlay/ID/diff                 the layer's files; `lower`: "l/SHORT:l/SHORT…", `link`: its own
    overlay/l/SHORT                 a symbolic link to ../ID/diff
    overlay-layers/layers.json      the layers; layers.lock; ID.tar-split.gz
    overlay-images/images.json      the images; images.lock; ID/… manifests and configs

An image's layers may lie in another store than the image (additional image stores), so layers are
looked for in all of them.

What cannot be read like this (another driver, layers without their own files) raises `Unsupported`:
skopeo may know how.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bootc.errors import BootcError, FormatError
from bootc.storage.locks import LOCK_TIMEOUT, Pause, shared_lock
from bootc.storage.records import (
    ImageRecord,
    LayerRecord,
    big_data_name,
    read_document,
    read_images,
    read_layers,
)

DRIVER = "overlay"
_OTHERS = ("vfs", "btrfs", "zfs", "aufs", "devmapper", "windowsfilter")
_LINK = re.compile(rb"l/([0-9A-Za-z]{1,64})\Z")
_TARGET = re.compile(r"\.\./([0-9a-f]{64})/diff\Z")
_LOWER_MAX = 64 << 10
_CHAIN_MAX = 1000


class Unsupported(BootcError):
    """It may be fine, but it is nothing that is read here."""


class NoStoreError(BootcError):
    """There is no container storage where it was looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A graph root that has the folders of the driver overlay."""

    root: str

    def path(self, *names: str) -> str:
        return os.path.join(self.root, *names)

    def images(self) -> tuple[ImageRecord, ...]:
        """The images, read under their lock."""
        with self.images_locked():
            return read_images(self.path("overlay-images/images.json"))

    def layers(self) -> dict[str, LayerRecord]:
        """The layers by id. Hold `layers_locked` for as long as they have to be there."""
        return read_layers(self.path("overlay-layers/layers.json"))

    @contextmanager
    def images_locked(self, *, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
        with shared_lock(self.path("overlay-images/images.lock"), timeout=timeout):
            yield

    @contextmanager
    def layers_locked(
        self, *, timeout: float = LOCK_TIMEOUT, pause: Pause = time.sleep
    ) -> Iterator[None]:
        path = self.path("overlay-layers/layers.lock")
        with shared_lock(path, timeout=timeout, pause=pause):
            yield

    def big_data(self, image: ImageRecord, key: str) -> bytes:
        """A manifest or config of an image, as it is stored; its digest is not verified here."""
        path = self.path("overlay-images", image.id, big_data_name(key))
        try:
            return read_document(path)
        except FileNotFoundError:
            raise BootcError(
                f"{self.root}: {key} of the image {image.id[:12]} is missing ({path})",
                hint="the image is damaged: remove it and pull it again with podman",
            ) from None

    def diff(self, layer: str) -> str:
        """The path of a layer's files."""
        return self.path("overlay", layer, "diff")

    def lower_links(self, layer: str) -> list[bytes]:
        """The short names of the layers below, from the next one on down."""
        path = self.path("overlay", layer, "lower")
        try:
            text = read_document(path)
        except FileNotFoundError:
            return []
        links = text.strip().split(b":") if text.strip() else []
        if len(text) > _LOWER_MAX or len(links) > _CHAIN_MAX:
            raise FormatError(path, None, f"names {len(links)} layers")
        found = []
        for link in links:
            match = _LINK.match(link)
            if match is None:
                raise FormatError(path, None, f"{link[:80]!r} is no l/NAME")
            found.append(match[1])
        return found

    def linked(self, short: bytes) -> str | None:
        """The id of the layer that `overlay/l/SHORT` stands for, or None."""
        path = self.path("overlay/l", short.decode())
        try:
            target = os.readlink(path)
        except OSError:
            return None
        match = _TARGET.match(target)
        if match is None:
            raise FormatError(path, None, f"leads to {target[:120]!r}, not to a layer")
        return match[1]


def open_stores(roots: Sequence[str], driver: str = "") -> tuple[Store, ...]:
    """The stores in these graph roots; those that don't exist are passed over.

    Raises `Unsupported` when there is no store of the driver overlay, but perhaps one of another,
    `NoStoreError` when there is none.
    """
    stores = [
        Store(root=root)
        for root in roots
        if all(os.path.isdir(os.path.join(root, f"{DRIVER}{part}")) for part in ("", "-layers"))
    ]
    others = [name for name in _OTHERS for root in roots if _has_driver(root, name)]
    if driver not in ("", DRIVER) and (not stores or driver in others):
        raise Unsupported(f"the store {roots[0]} uses the driver {driver}, not {DRIVER}")
    if not stores:
        if others:
            raise Unsupported(f"the store {roots[0]} uses the driver {others[0]}, not {DRIVER}")
        raise NoStoreError(
            f"there is no container storage in {', '.join(roots)}",
            hint="`podman info` shows where yours is; CONTAINERS_STORAGE_CONF names its conf",
        )
    return tuple(stores)


def _has_driver(root: str, name: str) -> bool:
    return os.path.exists(os.path.join(root, f"{name}-layers/layers.json"))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    """A layer and the store that it lies in."""

    store: Store
    record: LayerRecord


class LayerIndex:
    """The layers of several stores, in their order, as they were when they were read."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)
        self._layers = [store.layers() for store in stores]

    def find(self, layer_id: str) -> StoredLayer | None:
        for store, layers in zip(self.stores, self._layers, strict=True):
            if (record := layers.get(layer_id)) is not None:
                return StoredLayer(store=store, record=record)
        return None

    def find_diff(self, diff_id: str) -> StoredLayer | None:
        """A complete layer whose tar has this digest."""
        for store, layers in zip(self.stores, self._layers, strict=True):
            for record in layers.values():
                if record.diff_digest == diff_id and not record.incomplete:
                    return StoredLayer(store=store, record=record)
        return None

    def chain(self, top: str | None) -> list[StoredLayer]:
        """The layer `top` and those below it, the lowest first."""
        found: list[StoredLayer] = []
        wanted = top
        while wanted is not None:
            layer = self.find(wanted)
            if layer is None:
                raise BootcError(
                    f"{self.stores[0].root}: the layer {wanted} is missing",
                    hint="the image is damaged: remove it and pull it again with podman",
                )
            found.append(layer)
            if len(found) > _CHAIN_MAX:
                raise BootcError(f"{layer.store.root}: the layers of {top} never end")
            wanted = layer.record.parent
        return found[::-1]


def find_image_layers(
    index: LayerIndex, top: str | None, diff_ids: Sequence[str]
) -> list[StoredLayer]:
    """The layers of an image whose top layer is `top`, in the order of its `diff_ids`.

    The chain is believed where it has the right number of layers and doesn't contradict; else each
    is found by its diff id: which layer it is doesn't matter, its tar is the same.
    """
    chain = index.chain(top)
    aligned = len(chain) == len(diff_ids)
    found: list[StoredLayer] = []
    for number, diff_id in enumerate(diff_ids):
        layer = chain[number] if aligned else None
        if layer is None or layer.record.diff_digest not in (None, diff_id):
            layer = index.find_diff(diff_id)
        if layer is None:
            raise BootcError(
                f"{index.stores[0].root}: there is no layer {diff_id}",
                hint="the image is damaged: remove it and pull it again with podman",
            )
        need_complete(layer)
        found.append(layer)
    return found


def need_complete(layer: StoredLayer) -> None:
    """Raise `BootcError` for a layer that podman is not done with."""
    if layer.record.incomplete:
        raise BootcError(
            f"{layer.store.root}: the layer {layer.record.id} is incomplete: podman was"
            " interrupted while it made or deleted it",
            hint="run any podman command that writes, which cleans up, then pull again",
        )


@contextmanager
def all_layers_locked(
    stores: Sequence[Store], *, timeout: float = LOCK_TIMEOUT, pause: Pause = time.sleep
) -> Iterator[None]:
    """Nothing is deleted from these stores as long as the block runs."""
    with ExitStack() as stack:
        for store in stores:
            stack.enter_context(store.layers_locked(timeout=timeout, pause=pause))
        yield
