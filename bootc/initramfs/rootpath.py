# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Paths inside of another root: resolved as if that root were ours, and copied with their links."""

from __future__ import annotations

import os
import stat

from bootc.errors import BootcError
from bootc.initramfs.cpio import Node, Tree

_MAX_LINKS = 40


def resolve(root: str, path: str) -> tuple[str, dict[str, str]]:
    """`path` without symlinks, and each link that was followed (its resolved path → its target).

    Both are relative to `root`; what does not exist resolves to itself.
    """
    links: dict[str, str] = {}
    done: list[str] = []
    todo = [part for part in path.split("/") if part]
    followed = 0
    while todo:
        part = todo.pop(0)
        if part == ".":
            continue
        if part == "..":
            del done[-1:]
            continue
        here = "/".join([*done, part])
        try:
            target = os.readlink(os.path.join(root, here))
        except OSError:
            done.append(part)
            continue
        followed += 1
        if followed > _MAX_LINKS:
            raise BootcError(f"{path}: too many symbolic links in {root}")
        links[here] = target
        if target.startswith("/"):
            done = []
        todo[:0] = [piece for piece in target.split("/") if piece]
    return "/".join(done), links


def exists(root: str, path: str) -> bool:
    """Whether `path` is there, as seen from `root`."""
    return os.path.lexists(os.path.join(root, resolve(root, path)[0]))


def read(root: str, path: str) -> bytes:
    """The content of `path` as seen from `root`."""
    with open(os.path.join(root, resolve(root, path)[0]), "rb") as file:
        return file.read()


def add_file(tree: Tree, root: str, path: str) -> bytes:
    """Put `path` of `root` into `tree` with the symlinks on its way; returns its content."""
    real, links = resolve(root, path)
    for link, target in links.items():
        tree[link] = Node.symlink(target)
    full = os.path.join(root, real)
    data = read(root, real)
    executable = os.stat(full).st_mode & stat.S_IXUSR
    tree[real] = Node.file(data, 0o755 if executable else 0o644)
    return data
