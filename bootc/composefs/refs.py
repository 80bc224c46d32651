# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The symbolic links of a repository: what is published, and under which names.

    images/<hex digest>          -> ../objects/xx/yyyy…
    images/refs/<name>           -> ../<hex digest>, with one `..` more for each `/` in the name
    streams/<content id>         -> ../objects/xx/yyyy…
    streams/refs/<name>          -> ../<content id>, likewise

Targets are relative and as short as possible. A link is made or replaced in one step and its
directory is synced. In the name of an OCI tag below `streams/refs/oci`, `%` is written `%25` and
`/` `%2F`. Nothing but links may lie here, and `refs`, which holds links and directories of links.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from bootc import fs
from bootc.composefs.digest import Algorithm
from bootc.composefs.objects import object_path
from bootc.errors import BootcError, FormatError
from bootc.records import dataclass

TEMPORARY = ".symlink-"
"""How the names of links begin that an interrupted replacement may leave in the repository."""
IMAGES = "images"
STREAMS = "streams"
REFS = "refs"
_NAME_MAX = 255
_DEPTH_MAX = 64


class NotFoundError(BootcError):
    """A stream, image or reference that isn't in the repository."""


def escape_tag(name: str) -> str:
    """The file name of a tag. Raises `BootcError` for a name that can't be one."""
    escaped = name.replace("%", "%25").replace("/", "%2F")
    if not name or name.startswith("@") or "\0" in name or name in (".", ".."):
        raise BootcError(f"{name!r} is no valid tag name")
    if len(os.fsencode(escaped)) > _NAME_MAX:
        raise BootcError(f"the tag name {name[:40]!r}… is longer than a file name can be")
    return escaped


def unescape_tag(name: str) -> str:
    return name.replace("%2F", "/").replace("%25", "%")


def check_content_id(content_id: str) -> str:
    """`content_id` if it can be a name in `streams`."""
    if not content_id or "/" in content_id or "\0" in content_id or content_id in (".", "..", REFS):
        raise BootcError(f"{content_id!r} is no valid content identifier")
    return content_id


def check_ref_name(name: str) -> str:
    """`name` if it can be a path below a `refs`."""
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise BootcError(f"{name!r} is no valid name of a reference")
    return name


def parse_digest(text: str, algorithm: Algorithm) -> bytes | None:
    """The digest that hexadecimal `text` is, or None."""
    if len(text) != 2 * algorithm.size:
        return None
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        return None
    return digest if len(digest) == algorithm.size else None


def parse_target(target: str, algorithm: Algorithm) -> bytes | None:
    """The digest of the object that a link's target `…objects/xx/yyyy…` leads to, or None."""
    parts = target.split("/")
    if len(parts) < 3 or parts[-3] != "objects" or len(parts[-2]) != 2:
        return None
    return parse_digest(parts[-2] + parts[-1], algorithm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Something below `images` or `streams`: `target` is None when it is no symbolic link."""

    path: str
    target: str | None
    mode: int = 0

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def leads_to(self) -> str:
        """The last component of the target, which says what a reference refers to."""
        return (self.target or "").rsplit("/", 1)[-1]


class Links:
    """The links below the repository directory `fd`, which is borrowed; `path` is for messages."""

    def __init__(self, fd: int, path: str, algorithm: Algorithm) -> None:
        self._fd = fd
        self._path = path
        self._algorithm = algorithm

    def make_directory(self, path: str) -> None:
        """Make `path` and its parents, durably, where they don't exist."""
        try:
            os.mkdir(path, 0o755, dir_fd=self._fd)
        except FileExistsError:
            return
        except FileNotFoundError:
            # In the repository itself, too, if it was removed meanwhile.
            if "/" not in path:
                raise
            self.make_directory(os.path.dirname(path))
            self.make_directory(path)
            return
        fs.sync_directory(os.path.dirname(path) or ".", dir_fd=self._fd)

    def publish(self, path: str, target: str) -> None:
        """Make the link `path` lead to `target`; both are relative to the repository."""
        folder = os.path.dirname(path)
        try:
            self.make_directory(folder)
            fs.replace_symlink(
                os.path.relpath(target, folder), path, dir_fd=self._fd, prefix=TEMPORARY
            )
        except OSError as error:
            raise BootcError(
                f"cannot make the link {self._path}/{path}: {error.strerror}"
            ) from error

    def publish_object(self, path: str, digest: bytes) -> None:
        self.publish(path, f"objects/{object_path(digest)}")

    def remove(self, path: str) -> bool:
        """Remove a link, durably; False if there is none."""
        try:
            os.unlink(path, dir_fd=self._fd)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise BootcError(f"cannot remove {self._path}/{path}: {error.strerror}") from error
        fs.sync_directory(os.path.dirname(path), dir_fd=self._fd)
        return True

    def target(self, path: str) -> str | None:
        """The target of the link `path`, or None if there is no link."""
        try:
            return os.readlink(path, dir_fd=self._fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTDIR):
                return None
            raise

    def object_of(self, path: str) -> bytes | None:
        """The digest of the object that `path` leads to, or None if there is no link."""
        target = self.target(path)
        if target is None:
            return None
        digest = parse_target(target, self._algorithm)
        if digest is None:
            raise FormatError(f"{self._path}/{path}", None, f"does not lead to an object: {target}")
        return digest

    def entries(self, category: str) -> Iterator[Found]:
        """What lies in `images` or `streams` itself, but for `refs`, sorted by name."""
        for found in self._list(category):
            if found.name != REFS:
                yield found

    def references(self, folder: str) -> Iterator[Found]:
        """Everything below the directory `folder` that is no directory, sorted by name."""
        yield from self._walk(folder, 0)

    def _walk(self, folder: str, depth: int) -> Iterator[Found]:
        for found in self._list(folder):
            if stat.S_ISDIR(found.mode) and depth < _DEPTH_MAX:
                yield from self._walk(found.path, depth + 1)
            else:
                yield found

    def _list(self, folder: str) -> list[Found]:
        try:
            with fs.open_directory(folder, dir_fd=self._fd) as here:
                names = sorted(os.listdir(here))
                return [found for name in names if (found := _look(here, folder, name)) is not None]
        except FileNotFoundError:
            return []
        except NotADirectoryError as error:
            raise FormatError(f"{self._path}/{folder}", None, "is no directory") from error


def _look(folder_fd: int, folder: str, name: str) -> Found | None:
    path = f"{folder}/{name}"
    try:
        return Found(path=path, target=os.readlink(name, dir_fd=folder_fd))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return Found(path=path, target=None, mode=os.lstat(name, dir_fd=folder_fd).st_mode)
