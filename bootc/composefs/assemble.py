# SPDX-License-Identifier: Apache-2.0 OR MIT
"""From layers to the tree of an image, and from the tree to an EROFS image in the repository.

Merging: members act at once, in the order of the stream. A hard link shares the leaf that its
target is at that moment; `.wh.NAME` removes NAME, `.wh..wh..opq` empties its directory, whatever
layer put it there; a directory over a directory replaces the metadata only, anything else replaces
the node. A missing parent is an error.

For OCI images the root then gets the metadata of /usr (layers rarely say what it is), /run is
emptied, and of the extended attributes only `security.capability` stays, because how an image
was built must not change its identity. For booting /boot and /sysroot are emptied, too, as they
are mount points, and SELinux labels come from the image's own policy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Protocol

from bootc.composefs.collector import paused_collector
from bootc.composefs.erofs_format import FormatVersion
from bootc.composefs.erofs_writer import ImageDraft, write_image
from bootc.composefs.refs import check_ref_name
from bootc.composefs.repository import Repository
from bootc.composefs.selinux import load_policy, relabel
from bootc.composefs.stored import (
    PulledImage,
    PulledLayer,
    layer_content_id,
    read_stream_object,
)
from bootc.composefs.stored_layers import read_stored_layer, verify_layer
from bootc.errors import BootcError, FormatError
from bootc.oci.tarstream import Entry
from bootc.records import dataclass
from bootc.tree import Directory, External, Inline, Leaf, Node, Stat, walk

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_CAPABILITY = b"security.capability"


class XattrMode(StrEnum):
    """Which extended attributes an OCI image keeps."""

    ALLOWLIST_ONLY = "allowlist-only"
    KEEP_USER = "keep-user-xattrs"

    def keeps(self, name: bytes) -> bool:
        return name == _CAPABILITY or (self is XattrMode.KEEP_USER and name.startswith(b"user."))


class Contents(Protocol):
    """Where the contents of a tree's files are: a repository, or the directory that was scanned."""

    def read_object(self, digest: bytes) -> bytes:
        """The content with this fs-verity digest. Raises `BootcError` when it isn't there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposefsImage:
    """An EROFS image in a repository: its fs-verity digest in hexadecimal and its size."""

    id: str
    size: int


def assemble(
    repo: Repository, pulled: PulledImage, *, xattrs: XattrMode = XattrMode.ALLOWLIST_ONLY
) -> Directory:
    """The tree of a pulled image, as `transform_for_oci` leaves it; `pulled` is not modified."""
    if not pulled.is_container:
        raise BootcError(
            f"{pulled.reference} is an artifact, not an image of a file system",
            hint="`cfsctl oci images` tells images and artifacts apart",
        )
    return assemble_layers(repo, pulled.layers, trusted=pulled.trusted, xattrs=xattrs)


def assemble_layers(
    repo: Repository,
    layers: Iterable[PulledLayer],
    *,
    trusted: bool = True,
    xattrs: XattrMode = XattrMode.ALLOWLIST_ONLY,
) -> Directory:
    """The tree of these layers, which must be stored, but need not be published yet.

    Those that aren't `trusted` are verified when they have to be read.
    """
    root = Directory(Stat())
    for layer in layers:
        source = layer_content_id(layer.diff_id)
        entries: Iterable[Entry]
        if layer.entries is not None:
            entries = layer.entries
        else:
            stream = read_stream_object(repo, layer.digest, source)
            if not trusted:
                verify_layer(repo, stream, layer.diff_id)
            entries = read_stored_layer(stream)
        merge_layer(root, entries, source)
    transform_for_oci(root, xattrs=xattrs)
    return root


def merge_layer(root: Directory, entries: Iterable[Entry], source: str) -> None:
    """Apply the members of one layer to `root`. The entries stay as they are."""
    merger = _Merger(root, source)
    for entry in entries:
        merger.add(entry)


class _Merger:
    def __init__(self, root: Directory, source: str) -> None:
        self._root = root
        self._source = source
        # Members come folder by folder, so the last parent is nearly always the next one.
        self._folder_path: bytes | None = None
        self._folder = root

    def add(self, entry: Entry) -> None:
        path, node = entry.path, entry.node
        if not path:
            assert isinstance(node, Directory)
            self._root.stat = node.stat.copy()
            return
        folder_path, _, name = path.rpartition(b"/")
        if folder_path != self._folder_path:
            self._folder = self._find_folder(folder_path, path)
            self._folder_path = folder_path
        entries = self._folder.entries
        if name.startswith(_WHITEOUT):
            self._whiteout(entries, name, path)
            return
        old = entries.get(name)
        new: Node
        match node:
            case Directory():
                if isinstance(old, Directory):
                    old.stat = node.stat.copy()
                    return
                new = Directory(node.stat.copy())
            case Leaf():
                new = Leaf(node.stat.copy(), node.content)
            case None:
                new = self._find_target(entry)
        entries[name] = new
        if isinstance(old, Directory):
            self._folder_path = None

    def _whiteout(self, entries: dict[bytes, Node], name: bytes, path: bytes) -> None:
        if name == _OPAQUE:
            entries.clear()
            return
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise FormatError(self._source, _shown(path), "a whiteout of nothing")
        entries.pop(hidden, None)

    def _find_folder(self, folder_path: bytes, path: bytes) -> Directory:
        folder = self._root.find_directory(folder_path)
        if folder is None:
            raise FormatError(
                self._source, _shown(path), "the directory it lies in is not in the image"
            )
        return folder

    def _find_target(self, entry: Entry) -> Leaf:
        target = self._root.find(entry.link)
        if not isinstance(target, Leaf):
            what = "is missing" if target is None else "is a directory"
            raise FormatError(
                self._source,
                _shown(entry.path),
                f"the hard link's target /{_text(entry.link)} {what}",
            )
        return target


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _shown(path: bytes) -> str:
    return f"/{_text(path)}"


def _usr(root: Directory) -> Directory:
    usr = root.find_directory(b"usr")
    if usr is None:
        raise BootcError("the image has no /usr", hint="check that it holds an operating system")
    return usr


def transform_for_oci(root: Directory, *, xattrs: XattrMode = XattrMode.ALLOWLIST_ONLY) -> None:
    """Make the identity of a tree independent of how its layers were built."""
    usr = _usr(root)
    root.stat = usr.stat.copy()
    run = root.find_directory(b"run")
    if run is not None:
        run.entries.clear()
        run.stat.mtime = usr.stat.mtime
        run.stat.mtime_nsec = usr.stat.mtime_nsec
    for _, node in walk(root):
        if node.stat.xattrs:
            node.stat.xattrs = {
                name: value for name, value in node.stat.xattrs.items() if xattrs.keeps(name)
            }


def transform_for_boot(root: Directory, repo: Contents) -> None:
    """Turn the tree of an image into the tree that is booted. Its boot files are gone then."""
    usr = _usr(root)
    for name in (b"boot", b"sysroot"):
        folder = root.find_directory(name)
        if folder is None:
            raise BootcError(
                f"the image has no directory /{name.decode()}",
                hint=f"add an empty directory /{name.decode()} to the image",
            )
        folder.entries.clear()
        folder.stat.mtime = usr.stat.mtime
        folder.stat.mtime_nsec = usr.stat.mtime_nsec
    relabel(root, load_policy(root, lambda leaf, path: read_file(repo, leaf, path)))


def read_file(repo: Contents, leaf: Leaf, path: str) -> bytes:
    """The content of a regular file of the tree; `path` names it in errors."""
    match leaf.content:
        case Inline(data=data):
            return data
        case External(digest=digest) if digest is not None:
            return repo.read_object(digest)
        case _:
            raise BootcError(f"{path} in the image is no regular file")


def encode_image(repo: Repository, root: Directory, *, version: int | None = None) -> bytes:
    """The EROFS image of a tree in the format `version`, else in the repository's."""
    wanted = FormatVersion(repo.erofs_version if version is None else version)
    return write_image(root, version=wanted, algorithm=repo.algorithm)


def commit_image(
    repo: Repository, root: Directory, *, name: str | None = None, version: int | None = None
) -> ComposefsImage:
    """Store the EROFS image of a tree, and make it mountable (by `name`, too)."""
    if name is not None:
        check_ref_name(name)
    return publish_image(repo, store_image(repo, root, version=version), name=name)


def store_image(repo: Repository, root: Directory, *, version: int | None = None) -> ComposefsImage:
    """Store the EROFS image of a tree. It is not mountable yet, and need not be on the disk."""
    wanted = FormatVersion(repo.erofs_version if version is None else version)
    with paused_collector():
        pieces = ImageDraft(root, version=wanted, algorithm=repo.algorithm).blocks()
        return _store(repo, pieces)


def commit_data(repo: Repository, data: bytes, *, name: str | None = None) -> ComposefsImage:
    """Store an EROFS image, and make it mountable."""
    if name is not None:
        check_ref_name(name)
    return publish_image(repo, _store(repo, (data,)), name=name)


def _store(repo: Repository, pieces: Iterable[bytes]) -> ComposefsImage:
    with _storing(repo):
        digest, size = repo.store_pieces(pieces)
    return ComposefsImage(id=digest.hex(), size=size)


def publish_image(
    repo: Repository, image: ComposefsImage, *, name: str | None = None
) -> ComposefsImage:
    """Make a stored image mountable, by `name`, too."""
    with _storing(repo):
        repo.publish_image(bytes.fromhex(image.id), name)
    return image


@contextmanager
def _storing(repo: Repository) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BootcError(
            f"cannot store an image in {os.path.join(repo.path, 'images')}: {error.strerror}"
        ) from error
