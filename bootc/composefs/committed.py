# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The EROFS images that belong to a pulled image: plain and bootable, one for each format.

They are made in all formats that the repository wants. The config's split stream refers to each
(see `stored.image_key`), so that they live as long as the image does.

A disk takes as long to write a pull's layers down as it takes to make the plain images: so these
can be made and stored meanwhile, by `PlainImages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bootc.composefs.assemble import (
    ComposefsImage,
    XattrMode,
    assemble,
    assemble_layers,
    commit_data,
    commit_image,
    encode_image,
    publish_image,
    store_image,
    transform_for_boot,
)
from bootc.composefs.digest import digest_bytes
from bootc.composefs.repository import Repository
from bootc.composefs.stored import PulledImage, PulledLayer, attach_images, image_key
from bootc.errors import BootcError
from bootc.tree import Directory

_SEARCHED_VERSIONS = (1, 2)


class NoBootImageError(BootcError):
    """No bootable image has the expected digest; `tried` ways to make one gave others."""

    def __init__(self, reference: str, expected: str, tried: list[str]) -> None:
        super().__init__(
            f"no bootable image of {reference} has the digest {expected}; "
            f"they have {', '.join(tried)}",
            hint="check that the digest is this image's and has the repository's algorithm",
        )
        self.expected = expected
        self.tried = len(tried)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedImage:
    """A pulled image and the EROFS images in the repository's first format. An artifact has none.

    `boot_mode` and `boot_version` say how the bootable one was made.
    """

    pulled: PulledImage
    plain: ComposefsImage | None = None
    boot: ComposefsImage | None = None
    boot_mode: XattrMode = XattrMode.ALLOWLIST_ONLY
    boot_version: int = 1


class PlainImages:
    """The tree of a pull and its plain images, stored but not published.

    `make` is for `pull.pull`, as `meanwhile`. Where it fails nothing is made: `commit_pulled` does
    it again, and says why it can't be done.
    """

    def __init__(self, repo: Repository) -> None:
        self.root: Directory | None = None
        self.stored: dict[int, ComposefsImage] = {}
        """By version."""
        self._repo = repo

    def make(self, layers: Sequence[PulledLayer]) -> None:
        try:
            root = assemble_layers(self._repo, layers)
            for version in self._repo.erofs_versions:
                self.stored[version] = store_image(self._repo, root, version=version)
        except BootcError:
            self.stored.clear()
            return
        self.root = root


def commit_pulled(
    repo: Repository,
    pulled: PulledImage,
    *,
    plain_images: PlainImages | None = None,
    bootable: bool = False,
    expected: str | None = None,
    xattrs: XattrMode = XattrMode.ALLOWLIST_ONLY,
) -> CommittedImage:
    """Make the images of `pulled`. Nothing refers to them before all of them are stored.

    `plain_images` is what was made of this pull already, if anything was.
    `xattrs` is the bootable one's filter of extended attributes. With `expected`, a digest in
    hexadecimal, the bootable image is the one that has it, whichever filter and format that takes.
    Raises `NoBootImageError` if none has.
    """
    if not pulled.is_container:
        if bootable:
            raise BootcError(f"{pulled.reference} is an artifact: it cannot be booted")
        return CommittedImage(pulled=pulled)
    stored = {} if plain_images is None else plain_images.stored
    made_before = None if plain_images is None else plain_images.root
    root = assemble(repo, pulled) if made_before is None else made_before
    images: dict[str, bytes] = {}
    suffix: str | None = None

    def commit(boot: bool) -> ComposefsImage:
        made: list[ComposefsImage] = []
        for version in repo.erofs_versions:
            if not boot and version in stored:
                made.append(publish_image(repo, stored[version]))
            else:
                made.append(commit_image(repo, root, version=version))
            key = image_key(boot=boot, erofs_version=version, xattrs=suffix)
            images.setdefault(key, bytes.fromhex(made[-1].id))
        return made[0]

    plain = commit(boot=False)
    boot, mode, version = None, xattrs, repo.erofs_version
    if bootable and expected is not None:
        boot, mode, version = _find_boot_image(repo, pulled, expected)
        suffix = _suffix(mode)
        images[image_key(boot=True, erofs_version=version, xattrs=suffix)] = bytes.fromhex(boot.id)
    elif bootable:
        if xattrs is not XattrMode.ALLOWLIST_ONLY:
            root, suffix = assemble(repo, pulled, xattrs=xattrs), _suffix(xattrs)
        transform_for_boot(root, repo)
        boot = commit(boot=True)
    return CommittedImage(
        pulled=attach_images(repo, pulled, images),
        plain=plain,
        boot=boot,
        boot_mode=mode,
        boot_version=version,
    )


def _suffix(mode: XattrMode) -> str | None:
    return None if mode is XattrMode.ALLOWLIST_ONLY else mode.value


def _find_boot_image(
    repo: Repository, pulled: PulledImage, expected: str
) -> tuple[ComposefsImage, XattrMode, int]:
    tried: list[str] = []
    for mode in XattrMode:
        root = assemble(repo, pulled, xattrs=mode)
        transform_for_boot(root, repo)
        for version in _SEARCHED_VERSIONS:
            data = encode_image(repo, root, version=version)
            found = digest_bytes(data, repo.algorithm).hex()
            if found == expected.lower():
                return commit_data(repo, data), mode, version
            tried.append(f"{found} ({mode.value}, version {version})")
    raise NoBootImageError(pulled.reference, expected, tried)
