# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The documents of a store: `overlay-images/images.json` and `overlay-layers/layers.json`.

Both are arrays of objects. Of an image: `id`, `digest` (of its manifest), `names`, `layer` (the
top one), `big-data-names`. Of a layer: `id`, `parent`, `diff-digest` and `diff-size` (of the tar),
`compressed-diff-digest`, `flags`; a layer with the flag `incomplete` is one that podman had not
finished making, or deleting. Ids are 64 hexadecimal digits, and they become names of folders; so
anything else is refused.

A big datum is the file `overlay-images/ID/KEY`; a key with other characters than `.`, digits and
lowercase letters is written as `=` and its base64.
"""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass

from bootc.errors import BootcError, FormatError
from bootc.jsonutil import Reader, read_object
from bootc.oci.model import check_digest

DOCUMENT_MAX = 64 << 20
_ID = re.compile(r"[0-9a-f]{64}\Z")
_PLAIN_KEY = re.compile(r"[.0-9a-z]+\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    id: str
    digest: str | None
    names: tuple[str, ...]
    layer: str | None
    data: tuple[str, ...]
    """The keys of its big data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """`diff_digest` and `diff_size` are those of the layer's tar, where the store knows them."""

    id: str
    parent: str | None
    diff_digest: str | None
    diff_size: int | None
    incomplete: bool


def read_images(path: str) -> tuple[ImageRecord, ...]:
    """The images of `images.json`; none if the file does not exist."""
    found = []
    for item in _items(path):
        names = item.texts("names") if item.has("names") else []
        data = item.texts("big-data-names") if item.has("big-data-names") else []
        layer = item.optional_text("layer") or None
        found.append(
            ImageRecord(
                id=_check_id(item, "id"),
                digest=item.optional_text("digest"),
                names=tuple(names),
                layer=None if layer is None else _check_id(item, "layer"),
                data=tuple(data),
            )
        )
    return tuple(found)


def read_layers(path: str) -> dict[str, LayerRecord]:
    """The layers of `layers.json` by id; none if the file does not exist."""
    found: dict[str, LayerRecord] = {}
    for item in _items(path):
        digest = item.optional_text("diff-digest") or None
        if digest is not None:
            check_digest(digest, path, f"{item.path}.diff-digest")
        flags = item.optional_table("flags")
        layer = LayerRecord(
            id=_check_id(item, "id"),
            parent=_check_id(item, "parent") if item.optional_text("parent") else None,
            diff_digest=digest,
            diff_size=item.integer("diff-size") if item.has("diff-size") else None,
            incomplete=flags is not None and flags.value.get("incomplete") is True,
        )
        found[layer.id] = layer
    return found


def big_data_name(key: str) -> str:
    """The name of the file that holds the big datum `key`."""
    if _PLAIN_KEY.match(key):
        return key
    return "=" + base64.b64encode(key.encode()).decode()


def read_document(path: str) -> bytes:
    """A whole file of bounded size. Raises `FileNotFoundError`, or `BootcError` for the rest."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            data = file.read(DOCUMENT_MAX + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BootcError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > DOCUMENT_MAX:
        raise FormatError(path, None, f"is larger than {DOCUMENT_MAX >> 20} MiB")
    return data


def _items(path: str) -> list[Reader]:
    try:
        data = read_document(path)
    except FileNotFoundError:
        return []
    # `Reader`s are of objects, these documents are arrays.
    return list(read_object(b'{"":' + (data.strip() or b"[]") + b"}", path).tables(""))


def _check_id(item: Reader, key: str) -> str:
    text = item.text(key)
    if not _ID.match(text):
        raise FormatError(item.source, f"{item.path}.{key}", f"{text[:80]!r} is no id")
    return text
