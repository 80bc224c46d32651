# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Garbage collection: removes the objects, images and streams that nothing refers to.

Roots are the references below `images/refs` and `streams/refs`, and what the caller adds. Kept are

* of an image: its object and every object that it names;
* of a stream: its object, the objects that it consists of, and the object of each named ref. A
  named ref that is a stream again is followed. One that is an EROFS image made of this stream is
  not: its files are those of the layers, which have refs of their own.

What is to be deleted is deleted for ever, so everything is read and verified before: a reference
that leads nowhere, a stream or an image that is missing, damaged or of another algorithm, a file
that has no business where it is: each is one error, and nothing was deleted.

The repository is locked exclusively meanwhile, so nothing can be lost that a writer has stored and
not yet published. Links go first, durably, objects after them: an interruption at any point leaves
a sound repository. Temporary files of writers that were killed go, too.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import nullcontext, suppress

from bootc import fs, log
from bootc.composefs import initialize, metadata, objects, refs
from bootc.composefs.digest import Algorithm, digest_fd
from bootc.composefs.erofs_image import read_superblock
from bootc.composefs.locks import GiveUp
from bootc.composefs.objects import SHARDS
from bootc.composefs.refs import IMAGES, REFS, STREAMS, Found, escape_tag, parse_digest
from bootc.composefs.repository import OCI_REFS, NotFoundError, Repository
from bootc.composefs.splitstream import read_splitstream
from bootc.errors import BootcError, FormatError
from bootc.linux import fsverity
from bootc.records import dataclass

_HINT = "`cfsctl fsck` shows everything that is wrong; nothing was deleted"
_IMAGE_KEY = "composefs.image"
_MAGIC = b"SplitStream"
_OLD_MAGIC_AT = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class GcResult:
    """What was removed, or would be: objects, their sizes together, links to them."""

    objects_removed: int = 0
    objects_bytes: int = 0
    images_pruned: int = 0
    streams_pruned: int = 0


def collect_garbage(
    repo: Repository,
    *,
    roots: Iterable[str] = (),
    ignore: Collection[str] = (),
    dry_run: bool = False,
    give_up: GiveUp | None = None,
) -> GcResult:
    """Remove what neither a reference nor `roots` needs; with `dry_run` only say what that is.

    A root is the digest of an image in hexadecimal, the content id of a stream, or a reference of
    either that begins with `refs/`. `ignore`: tags that are as good as gone. `give_up` may end the
    wait for others that use the repository (`GivenUpError`); what has begun is finished. Raises
    `NotFoundError` for a root that isn't there, `BootcError` if this process has the repository
    open a second time.
    """
    if not dry_run:
        repo.need_writable()
    with nullcontext() if dry_run else repo.exclusive(give_up):
        marks = _Marks(repo)
        marks.follow_references(
            {f"{STREAMS}/{REFS}/{OCI_REFS}/{escape_tag(tag)}" for tag in ignore}
        )
        for root in roots:
            marks.follow_root(root)
        dead = _find_dead(repo, marks.live)
        links = {category: marks.unused(category) for category in (IMAGES, STREAMS)}
        result = GcResult(
            objects_removed=sum(len(names) for names in dead.values()),
            objects_bytes=_sizes(repo, dead),
            images_pruned=len(links[IMAGES]),
            streams_pruned=len(links[STREAMS]),
        )
        if not dry_run:
            _remove(repo, links, dead)
    return result


class _Marks:
    """The objects that are needed, found by following links from the roots."""

    def __init__(self, repo: Repository) -> None:
        self.live: set[bytes] = set()
        self._repo = repo
        # References first: what they lead to stays, so that it is among the links read after them
        # even if others write, as they may during a dry run.
        self._references = {
            category: list(repo.links.references(f"{category}/{REFS}"))
            for category in (IMAGES, STREAMS)
        }
        self._linked = {category: self._read_links(category) for category in (IMAGES, STREAMS)}
        self._streams = set(self._linked[STREAMS].values())
        self._followed: set[bytes] = set()

    def _read_links(self, category: str) -> dict[str, bytes]:
        """What the links in `images` or `streams` lead to, by their names."""
        found = {}
        for entry in self._repo.links.entries(category):
            if entry.target is None:
                raise self._refuse(entry, "is no symbolic link")
            digest = refs.parse_target(entry.target, self._repo.algorithm)
            if digest is None:
                raise self._refuse(entry, f"does not lead to an object: {entry.target}")
            found[entry.name] = digest
        return found

    def _refuse(self, entry: Found, problem: str) -> FormatError:
        return FormatError(f"{self._repo.path}/{entry.path}", None, problem, hint=_HINT)

    def unused(self, category: str) -> list[str]:
        """The names of links whose object is not needed."""
        return [name for name, digest in self._linked[category].items() if digest not in self.live]

    def follow_references(self, ignore: Collection[str]) -> None:
        for category, references in self._references.items():
            for entry in references:
                if entry.path in ignore:
                    continue
                if entry.target is None:
                    raise self._refuse(entry, "is no symbolic link")
                if entry.leads_to not in self._linked[category]:
                    raise self._refuse(entry, f"leads to {entry.leads_to}, which isn't there")
                self._follow(category, entry.leads_to)

    def follow_root(self, name: str) -> None:
        found = False
        for category in (IMAGES, STREAMS):
            target = name
            if name.startswith(f"{REFS}/"):
                path = self._repo.links.target(f"{category}/{refs.check_ref_name(name)}")
                target = (path or "").rsplit("/", 1)[-1]
            if target in self._linked[category]:
                self._follow(category, target)
                found = True
        if not found:
            raise NotFoundError(
                f"there is no image or stream {name} in {self._repo.path} to be kept",
                hint="nothing was deleted; give the digest of an image or the name of a stream",
            )

    def _follow(self, category: str, name: str) -> None:
        digest = self._linked[category][name]
        try:
            if category == IMAGES:
                self._follow_image(digest, name)
            else:
                self._follow_stream(digest, name)
        except OSError as error:
            problem = error.strerror or str(error)
            raise BootcError(f"cannot read {category}/{name}: {problem}", hint=_HINT) from error
        except BootcError as error:
            problem = f"cannot tell what {category}/{name} needs"
            raise BootcError(problem, hint=_HINT) from error

    def _follow_image(self, digest: bytes, name: str) -> None:
        if digest in self._followed:
            return
        self._followed.add(digest)
        self.live.add(digest)
        data = read_verified(self._repo, digest)
        self.live |= find_image_objects(data, self._repo.algorithm, f"{IMAGES}/{name}")

    def _follow_stream(self, top: bytes, name: str) -> None:
        left = [(top, f"{STREAMS}/{name}")]
        while left:
            digest, source = left.pop()
            self.live.add(digest)
            if digest in self._followed:
                continue
            self._followed.add(digest)
            stream = read_splitstream(read_verified(self._repo, digest), source)
            if stream.algorithm is not self._repo.algorithm:
                raise FormatError(source, "header", f"the algorithm is {stream.algorithm}")
            self.live.update(stream.object_refs)
            self.live.update(stream.stream_refs)
            for ref, target in stream.named_refs.items():
                if not ref.startswith(_IMAGE_KEY) and self._is_stream(target):
                    left.append((target, f"{source}: {ref}"))

    def _is_stream(self, digest: bytes) -> bool:
        """Whether the object of a named ref is a stream, linked or replaced by a newer one."""
        if digest in self._streams:
            return True
        fd = self._repo.open_object(digest)
        try:
            head = os.pread(fd, 32, 0)
            return head.startswith(_MAGIC) or head[_OLD_MAGIC_AT:].startswith(_MAGIC)
        finally:
            os.close(fd)


def find_image_objects(data: bytes, algorithm: Algorithm, source: str) -> set[bytes]:
    """The digests of all objects that an image may need: some more for a strange image, never less.

    `data` is known to be what was stored, so nothing is to be validated but that this is a version
    whose attributes lie there as they are. They are searched for, wherever they may be: the tree,
    which is most of the work of reading an image, doesn't matter. Raises `FormatError`.
    """
    read_superblock(data, source)
    size = algorithm.size
    head = bytes((0, 4 + size, 0, algorithm.kernel))
    # Looked at ahead, so that no match can hide another one.
    metacopy = re.compile(
        rb"overlay\.metacopy(?=%s(.{%d}))" % (re.escape(head), size), flags=re.DOTALL
    )
    found = set(metacopy.findall(data))
    # A redirect ends with the object's path; what is before it may be long, and anything.
    for match in re.finditer(rb"/([0-9a-fA-F]{%d})" % (2 * size - 2), data):
        begin = match.start() - 2
        try:
            found.add(bytes.fromhex((data[begin : begin + 2] + match[1]).decode("ascii")))
        except ValueError:
            continue
    return {digest for digest in found if len(digest) == size}


def read_verified(repo: Repository, digest: bytes) -> bytes:
    """The content of an object that is certainly the right one.

    Without fs-verity the digest is computed. Raises `BootcError` if it isn't the name.
    """
    fd = repo.open_object(digest)
    with os.fdopen(fd, "rb") as file:
        if fsverity.measure(fd) is None:
            found = digest_fd(fd, repo.algorithm)
            if found != digest:
                raise BootcError(
                    f"{repo.objects.path}/{objects.object_path(digest)}: the content has the "
                    f"digest {found.hex()}"
                )
        return file.read()


def _find_dead(repo: Repository, live: set[bytes]) -> dict[str, list[str]]:
    """The names of objects that are not needed, by shard."""
    needed = {digest.hex() for digest in live}
    dead = {}
    for shard in SHARDS:
        names = [name for name in repo.objects.shard(shard) if shard + name not in needed]
        for name in names:
            _check_name(repo, shard, name)
        if names:
            dead[shard] = names
    return dead


def _check_name(repo: Repository, shard: str, name: str) -> None:
    """Refuse a file that isn't an object. What `reset_metadata` left of another algorithm is."""
    text = shard + name
    sound = text == text.lower() and any(
        parse_digest(text, algorithm) is not None for algorithm in type(repo.algorithm)
    )
    if not sound:
        raise FormatError(
            f"{repo.objects.path}/{shard}/{name}",
            None,
            "the name is no digest",
            hint="move the file out of the repository; nothing was deleted",
        )


def _sizes(repo: Repository, dead: dict[str, list[str]]) -> int:
    total = 0
    for shard, names in dead.items():
        with fs.open_directory(f"objects/{shard}", dir_fd=repo.fd) as fd:
            for name in names:
                total += os.stat(name, dir_fd=fd, follow_symlinks=False).st_size
    return total


def _remove(repo: Repository, links: dict[str, list[str]], dead: dict[str, list[str]]) -> None:
    count = sum(len(names) for names in dead.values())
    try:
        for category, names in links.items():
            if names:
                with fs.open_directory(category, dir_fd=repo.fd) as fd:
                    for name in names:
                        os.unlink(name, dir_fd=fd)
                    os.fsync(fd)
        with log.step(f"remove {count} objects") if count else nullcontext():
            for shard, names in dead.items():
                with fs.open_directory(f"objects/{shard}", dir_fd=repo.fd) as fd:
                    for name in names:
                        os.unlink(name, dir_fd=fd)
        for folder, name in _leftovers(repo):
            with suppress(FileNotFoundError):
                _remove_leftover(repo.fd, f"{folder}/{name}")
    except OSError as error:
        raise BootcError(f"cannot remove garbage of {repo.path}: {error.strerror}") from error


def _leftovers(repo: Repository) -> Iterator[tuple[str, str]]:
    """(directory, name) of what writers left that were killed."""
    own = {
        ".": (refs.TEMPORARY, metadata.TEMPORARY, initialize.REMOVED),
        "objects": (objects.TEMPORARY,),
    }
    for folder, prefixes in own.items():
        with suppress(FileNotFoundError), fs.open_directory(folder, dir_fd=repo.fd) as fd:
            yield from ((folder, name) for name in os.listdir(fd) if name.startswith(prefixes))


def _remove_leftover(repo_fd: int, path: str) -> None:
    try:
        os.unlink(path, dir_fd=repo_fd)
    except IsADirectoryError:
        shutil.rmtree(path, dir_fd=repo_fd)
