# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What is to be known of an image before it is deployed: its documents, and files of its tree."""

from __future__ import annotations

import os
import stat as st
from collections.abc import Iterator

from bootc import paths
from bootc.boot import kargs
from bootc.boot.entries import OsRelease, parse_os_release
from bootc.composefs.repository import Repository
from bootc.errors import BootcError
from bootc.oci import model
from bootc.oci.reference import ImageReference
from bootc.records import dataclass
from bootc.tree import (
    Device,
    Directory,
    External,
    Inline,
    Leaf,
    Sparse,
    Special,
    Stat,
    Symlink,
)

_CHUNK = 1 << 20
VERSION = "org.opencontainers.image.version"
BOOTABLE_LABELS = ("containers.bootc", "ostree.bootable")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What the manifest and config say; `disk_size` is a guess of the bytes it takes unpacked."""

    reference: ImageReference
    digest: str
    architecture: str
    labels: tuple[tuple[str, str], ...]
    download_size: int
    disk_size: int

    @property
    def is_labelled_bootable(self) -> bool:
        labels = dict(self.labels)
        return any(labels.get(key) for key in BOOTABLE_LABELS)


def read_facts(
    reference: ImageReference, digest: str, manifest: bytes, config: bytes
) -> ImageFacts:
    """Read an OCI manifest and its config."""
    top = model.read_manifest(manifest, f"manifest of {reference}")
    settings = model.read_config(config, f"config of {reference}")
    packed = [
        model.layer_compression(layer.media_type) is not model.Compression.NONE
        for layer in top.layers
    ]
    sizes = [layer.size for layer in top.layers]
    return ImageFacts(
        reference=reference,
        digest=digest,
        architecture=settings.architecture,
        labels=tuple(settings.labels.items()),
        download_size=sum(sizes),
        disk_size=sum(
            size * (2 if is_packed else 1) for size, is_packed in zip(sizes, packed, strict=True)
        ),
    )


def read_os_release(repo: Repository, root: Directory) -> OsRelease:
    """usr/lib/os-release of the image; the defaults without it."""
    leaf = root.find("usr/lib/os-release")
    if not isinstance(leaf, Leaf):
        return OsRelease()
    return parse_os_release(b"".join(read_leaf(repo, leaf)).decode("utf-8", "replace"))


def read_kargs_d(repo: Repository, root: Directory, arch: str) -> list[str]:
    """The kernel arguments that the image brings along."""
    folder = root.find_directory(paths.KARGS_D)
    files = [
        (f"/{paths.KARGS_D}/{os.fsdecode(name)}", b"".join(read_leaf(repo, node)).decode())
        for name, node in (folder.sorted() if folder else ())
        if isinstance(node, Leaf) and name.endswith(b".toml")
    ]
    return kargs.merge_fragments(files, arch)


def read_live_kargs_d(root: str, arch: str) -> list[str]:
    """The same of the file tree at `root`."""
    folder = f"{root}/{paths.KARGS_D}"
    files = []
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    for name in names:
        if name.endswith(".toml"):
            with open(f"{folder}/{name}", encoding="utf-8", errors="replace") as file:
                files.append((f"/{paths.KARGS_D}/{name}", file.read()))
    return kargs.merge_fragments(files, arch)


def image_version(manifest: bytes, config: bytes, source: str) -> str | None:
    """The version of an image: the manifest's annotation, else the config's label."""
    annotations = model.read_manifest(manifest, f"manifest of {source}").annotations
    settings = model.read_config(config, f"config of {source}")
    return annotations.get(VERSION) or settings.version or settings.labels.get("version")


def size_of(leaf: Leaf) -> int:
    """Bytes of a regular file."""
    match leaf.content:
        case Inline(data=data):
            return len(data)
        case External(size=size) | Sparse(size=size):
            return size
        case _:
            return 0


def read_leaf(repo: Repository, leaf: Leaf) -> Iterator[bytes]:
    """The content of a regular file in the image, in pieces."""
    match leaf.content:
        case Inline(data=data):
            yield data
        case External(digest=digest) if digest is not None:
            fd = repo.open_object(digest)
            try:
                while piece := os.read(fd, _CHUNK):
                    yield piece
            finally:
                os.close(fd)
        case Sparse(size=size):
            for start in range(0, size, _CHUNK):
                yield bytes(min(_CHUNK, size - start))
        case _:
            raise BootcError("a regular file of the image is something else")


def write_tree(repo: Repository, tree: Directory, target: str) -> None:
    """Copy a folder of the image to the new folder `target`, with owners, modes, times and xattrs.

    Hard links inside of it stay hard links.
    """
    _Writer(repo).directory(tree, os.fsencode(target))


class _Writer:
    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._links: dict[int, bytes] = {}

    def directory(self, tree: Directory, path: bytes) -> None:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if os.listdir(path):
                raise
        for name, node in tree.sorted():
            below = path + b"/" + name
            if isinstance(node, Directory):
                self.directory(node, below)
            else:
                self._leaf(node, below)
        _set_metadata(tree.stat, path, is_link=False)

    def _leaf(self, leaf: Leaf, path: bytes) -> None:
        first = self._links.setdefault(id(leaf), path)
        if first != path:
            os.link(first, path, follow_symlinks=False)
            return
        match leaf.content:
            case Symlink(target=target):
                os.symlink(target, path)
            case Device(kind=kind, rdev=rdev):
                os.mknod(path, kind | 0o600, rdev)
            case Special(kind=kind):
                if kind == st.S_IFSOCK:
                    del self._links[id(leaf)]
                    return
                os.mknod(path, kind | 0o600)
            case _:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                    for piece in read_leaf(self._repo, leaf):
                        file.write(piece)
        _set_metadata(leaf.stat, path, is_link=isinstance(leaf.content, Symlink))


def _set_metadata(stat: Stat, path: bytes, *, is_link: bool) -> None:
    if stat.uid or stat.gid:
        os.chown(path, stat.uid, stat.gid, follow_symlinks=False)
    if not is_link:
        os.chmod(path, stat.mode)
    for key, value in stat.xattrs.items():
        os.setxattr(path, key, value, follow_symlinks=False)
    stamp = stat.mtime * 1_000_000_000 + stat.mtime_nsec
    os.utime(path, ns=(stamp, stamp), follow_symlinks=False)
