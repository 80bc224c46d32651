# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Which SELinux policy a running system and an image have.

The policy is the file with the highest number in `/etc/selinux/TYPE/policy`, TYPE by
`/etc/selinux/config`: of the running system the live one, of the others that of the image. Files
are known by their fs-verity digests, so the policy of an image is not read, and of its EROFS only
the folders on the way are.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable

from bootc.composefs.digest import Algorithm, digest_bytes, digest_fd
from bootc.composefs.erofs_format import METACOPY
from bootc.composefs.erofs_image import ErofsImage, Inode
from bootc.composefs.repository import Repository
from bootc.errors import BootcError

_log = logging.getLogger(__name__)
_CONFIG = "etc/selinux/config"
_POLICY = "policy."
_CONFIG_MAX = 1 << 20


def policy_of_root(root: str, algorithm: Algorithm = Algorithm.SHA512) -> bytes | None:
    """The digest of the policy in the file tree at `root`, or None when it has none."""
    try:
        with open(f"{root}/{_CONFIG}", "rb") as file:
            kind = _policy_type(file.read(_CONFIG_MAX))
        if kind is None:
            return None
        folder = f"{root}/etc/selinux/{kind}/policy"
        name = _highest(os.listdir(folder))
        if name is None:
            return None
        fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return digest_fd(fd, algorithm)
    finally:
        os.close(fd)


def policy_of_image(repo: Repository, deployment: str) -> bytes | None:
    """The digest of the policy in a deployment's image, or None when it has none."""
    image = ErofsImage(repo.read_image(deployment), deployment[:16])
    data = read_file(repo, image, _CONFIG, _CONFIG_MAX)
    kind = None if data is None else _policy_type(data)
    folder = _find(image, f"etc/selinux/{kind}/policy") if kind else None
    if folder is None or not stat.S_ISDIR(folder.mode):
        return None
    numbers = {os.fsdecode(name): nid for name, nid, _ in image.entries(folder)}
    name = _highest(numbers)
    if name is None:
        return None
    found = image.inode(numbers[name])
    if not stat.S_ISREG(found.mode):
        return None
    digest = _digest_of(found)
    if digest is not None:
        return digest
    return digest_bytes(image.data(found, image.super.size), repo.algorithm)


def read_file(repo: Repository, image: ErofsImage, path: str, limit: int) -> bytes | None:
    """The first `limit` bytes of a regular file of the image, or None when there is none."""
    found = _find(image, path)
    if found is None or not stat.S_ISREG(found.mode):
        return None
    digest = _digest_of(found)
    if digest is None:
        return image.data(found, limit)
    fd = repo.open_object(digest)
    with os.fdopen(fd, "rb") as file:
        return file.read(limit)


def has_same_policy(repo: Repository, booted: bytes | None, deployment: str) -> bool:
    """Whether the image's policy is `booted`; what cannot be read is another one."""
    try:
        return policy_of_image(repo, deployment) == booted
    except (BootcError, OSError) as error:
        _log.warning("the SELinux policy of %s cannot be read: %s", deployment, error)
        return False


def _policy_type(config: bytes) -> str | None:
    for line in config.decode("utf-8", "replace").splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip() == "SELINUXTYPE":
            name = value.strip()
            return name if name and "/" not in name and name not in (".", "..") else None
    return None


def _highest(names: Iterable[str]) -> str | None:
    found = [
        (int(name.removeprefix(_POLICY)), name)
        for name in names
        if name.startswith(_POLICY) and name.removeprefix(_POLICY).isdecimal()
    ]
    return max(found)[1] if found else None


def _find(image: ErofsImage, path: str) -> Inode | None:
    """The inode at `path`; no symbolic link is followed."""
    inode = image.inode(image.super.root)
    for part in path.encode().split(b"/"):
        if not stat.S_ISDIR(inode.mode):
            return None
        for name, nid, _ in image.entries(inode):
            if name == part:
                inode = image.inode(nid)
                break
        else:
            return None
    return inode


def _digest_of(inode: Inode) -> bytes | None:
    """The digest of a file whose content is an object."""
    value = inode.xattrs.get(METACOPY)
    return value[4:] if value and len(value) > 4 else None
