# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Checks a repository: meta.json, every object, every stream, every image. Nothing is changed.

What is wrong is a list of findings, each with a kind (`Kind`), a path in the repository and mostly
a detail; as text `fsck: KIND: PATH: DETAIL`. The order is metadata, objects, streams,
images, sorted by name within each. Others may write meanwhile.

* Objects are read completely. The kernel must have measured the digest that is the name, and finds
  no damaged block. An object without verity is an error in a secure repository; in another one its
  digest is computed. With `metadata_only` the contents are not read.
* Streams and images: the link leads to an object, that opens verified and parses, and all objects
  that it names are there. References lead to something.

As a whole: `FsckReport.to_json` has the fields of the varlink reply, `to_text` the lines that
`cfsctl fsck` prints.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from bootc.composefs import refs
from bootc.composefs.digest import digest_fd
from bootc.composefs.erofs_reader import collect_objects
from bootc.composefs.forked import cpu_count, map_forked
from bootc.composefs.metadata import META, load_metadata
from bootc.composefs.objects import SHARDS
from bootc.composefs.refs import IMAGES, REFS, STREAMS, Found
from bootc.composefs.repository import Repository
from bootc.composefs.splitstream import SplitStream, read_splitstream
from bootc.errors import BootcError, FormatError, chain_text
from bootc.jsonutil import Json
from bootc.linux import fsverity

_CHUNK = 1 << 20
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_TYPES = {
    stat.S_IFREG: "RegularFile",
    stat.S_IFDIR: "Directory",
    stat.S_IFLNK: "Symlink",
    stat.S_IFCHR: "CharacterDevice",
    stat.S_IFBLK: "BlockDevice",
    stat.S_IFIFO: "Fifo",
    stat.S_IFSOCK: "Socket",
}


class Kind(StrEnum):
    """What can be wrong."""

    OBJECT_INVALID_NAME = "object-invalid-name"
    OBJECT_OPEN_FAILED = "object-open-failed"
    OBJECT_DIGEST_MISMATCH = "object-digest-mismatch"
    OBJECT_VERITY_FAILED = "object-verity-failed"
    OBJECT_VERITY_MISSING = "object-verity-missing"
    ENTRY_NOT_SYMLINK = "entry-not-symlink"
    BROKEN_SYMLINK = "broken-symlink"
    STAT_FAILED = "stat-failed"
    UNEXPECTED_FILE_TYPE = "unexpected-file-type"
    STREAM_OPEN_FAILED = "stream-open-failed"
    MISSING_OBJECT_REF = "missing-object-ref"
    STREAM_READ_FAILED = "stream-read-failed"
    MISSING_NAMED_REF = "missing-named-ref"
    OBJECT_CHECK_FAILED = "object-check-failed"
    IMAGE_OPEN_FAILED = "image-open-failed"
    IMAGE_READ_FAILED = "image-read-failed"
    IMAGE_INVALID = "image-invalid"
    IMAGE_MISSING_OBJECT = "image-missing-object"
    METADATA_PARSE_FAILED = "metadata-parse-failed"
    METADATA_ALGORITHM_MISMATCH = "metadata-algorithm-mismatch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    kind: Kind
    path: str
    detail: str = ""

    def __str__(self) -> str:
        detail = f": {self.detail}" if self.detail else ""
        return f"fsck: {self.kind.value}: {self.path}{detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FsckReport:
    """The result of a check. "Corrupted" counts objects, streams and images, not findings.

    A stream or an image that needs an object which isn't there is not corrupted itself.
    """

    has_metadata: bool
    objects_checked: int
    objects_corrupted: int
    streams_checked: int
    streams_corrupted: int
    images_checked: int
    images_corrupted: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.findings

    def _count(self, *kinds: Kind) -> int:
        return sum(finding.kind in kinds for finding in self.findings)

    @property
    def broken_links(self) -> int:
        return self._count(Kind.BROKEN_SYMLINK)

    @property
    def missing_objects(self) -> int:
        return self._count(
            Kind.MISSING_OBJECT_REF, Kind.MISSING_NAMED_REF, Kind.IMAGE_MISSING_OBJECT
        )

    def to_json(self) -> dict[str, Json]:
        return {
            "ok": self.ok,
            "has_metadata": self.has_metadata,
            "objects_checked": self.objects_checked,
            "objects_corrupted": self.objects_corrupted,
            "streams_checked": self.streams_checked,
            "streams_corrupted": self.streams_corrupted,
            "images_checked": self.images_checked,
            "images_corrupted": self.images_corrupted,
            "broken_links": self.broken_links,
            "missing_objects": self.missing_objects,
            "errors": [str(finding) for finding in self.findings],
        }

    def to_text(self) -> str:
        """Lines, each with its newline."""
        bad = self._count(Kind.METADATA_PARSE_FAILED, Kind.METADATA_ALGORITHM_MISMATCH)
        lines = [f"{META}: {'error' if bad else 'ok' if self.has_metadata else 'absent'}"]
        for what, checked, corrupted in (
            ("objects", self.objects_checked, self.objects_corrupted),
            ("streams", self.streams_checked, self.streams_corrupted),
            ("images", self.images_checked, self.images_corrupted),
        ):
            lines.append(f"{what}: {checked - corrupted}/{checked} ok")
        if self.broken_links:
            lines.append(f"broken symlinks: {self.broken_links}")
        if self.missing_objects:
            lines.append(f"missing objects: {self.missing_objects}")
        lines.append(f"status: {len(self.findings)} error(s)" if self.findings else "status: ok")
        lines += [f"  - {finding}" for finding in self.findings]
        return "".join(f"{line}\n" for line in lines)


def check_repository(
    repo: Repository, *, metadata_only: bool = False, workers: int | None = None
) -> FsckReport:
    """Check everything. `workers` processes (default: one for each CPU) read the objects."""
    check = _Check(repo)
    has_metadata = check.metadata()
    if not metadata_only:
        check.all_objects(workers if workers is not None else cpu_count())
    check.links(STREAMS, check.stream)
    check.links(IMAGES, check.image)
    return FsckReport(
        has_metadata=has_metadata,
        objects_checked=check.checked["objects"],
        objects_corrupted=check.corrupted["objects"],
        streams_checked=check.checked[STREAMS],
        streams_corrupted=check.corrupted[STREAMS],
        images_checked=check.checked[IMAGES],
        images_corrupted=check.corrupted[IMAGES],
        findings=tuple(check.findings),
    )


def _counts() -> dict[str, int]:
    return {"objects": 0, STREAMS: 0, IMAGES: 0}


@dataclass(slots=True)
class _Check:
    repo: Repository
    findings: list[Finding] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=_counts)
    corrupted: dict[str, int] = field(default_factory=_counts)
    _names: frozenset[str] | None = None

    def add(self, kind: Kind, path: str, detail: str = "") -> None:
        self.findings.append(Finding(kind=kind, path=path, detail=detail))

    @property
    def names(self) -> frozenset[str]:
        """The hexadecimal digests of all objects that are there."""
        if self._names is None:
            self._names = (
                frozenset(self.repo.objects.names()) if _has_objects(self.repo) else frozenset()
            )
        return self._names

    def metadata(self) -> bool:
        """Whether there is meta.json. It was read when the repository was opened; it may change."""
        try:
            found = load_metadata(self.repo.fd, self.repo.path)
        except BootcError as error:
            self.add(Kind.METADATA_PARSE_FAILED, META, chain_text(error))
            return True
        if found is not None and found[0].algorithm is not self.repo.algorithm:
            self.add(Kind.METADATA_ALGORITHM_MISMATCH, META, found[0].algorithm.identifier)
        return found is not None

    # -- Objects

    def all_objects(self, workers: int) -> None:
        if not _has_objects(self.repo):
            return
        for answer in map_forked(self._shard, len(SHARDS), workers=workers):
            assert isinstance(answer, list)
            checked, found = answer
            self.checked["objects"] += checked
            self.corrupted["objects"] += len(found)
            for kind, path, detail in found:
                self.add(Kind(kind), path, detail)

    def _shard(self, number: int) -> Json:
        """[objects, [[kind, path, detail], …]] of one of the 256 directories."""
        shard = SHARDS[number]
        names = sorted(self.repo.objects.shard(shard))
        found: list[Json] = []
        for name in names:
            problem = self._object(shard, name)
            if problem is not None:
                found.append([problem[0].value, f"objects/{shard}/{name}", problem[1]])
        return [len(names), found]

    def _object(self, shard: str, name: str) -> tuple[Kind, str] | None:
        text = shard + name
        digest = refs.parse_digest(text, self.repo.algorithm)
        if digest is None or text != digest.hex():
            return Kind.OBJECT_INVALID_NAME, f"is no {self.repo.algorithm.value} digest"
        try:
            fd = os.open(f"objects/{shard}/{name}", _OPEN, dir_fd=self.repo.fd)
        except OSError as error:
            return Kind.OBJECT_OPEN_FAILED, error.strerror or str(error)
        try:
            return self._content(fd, digest)
        finally:
            os.close(fd)

    def _content(self, fd: int, digest: bytes) -> tuple[Kind, str] | None:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            return Kind.UNEXPECTED_FILE_TYPE, _type_name(mode)
        try:
            measured = fsverity.measure(fd)
        except OSError as error:
            return Kind.OBJECT_VERITY_FAILED, error.strerror or str(error)
        if measured is None and self.repo.secure:
            return Kind.OBJECT_VERITY_MISSING, ""
        try:
            if measured is None:
                found = digest_fd(fd, self.repo.algorithm)
            else:
                found = measured[1]
                # The kernel compares each block with the tree when it is read, not before.
                while os.read(fd, _CHUNK):
                    pass
        except OSError as error:
            kind = Kind.OBJECT_CHECK_FAILED if measured is None else Kind.OBJECT_VERITY_FAILED
            return kind, error.strerror or str(error)
        if found != digest:
            return Kind.OBJECT_DIGEST_MISMATCH, f"measured {found.hex()}"
        return None

    # -- Streams and images

    def links(self, category: str, check: Callable[[Found, bytes], bool]) -> None:
        """Check `streams` or `images`; `check` says whether what a link leads to is sound."""
        kind = Kind.STREAM_OPEN_FAILED if category == STREAMS else Kind.IMAGE_OPEN_FAILED
        for entry in self._list(category, self.repo.links.entries):
            self.checked[category] += 1
            if not self._link(entry, kind, check):
                self.corrupted[category] += 1
        for entry in self._list(f"{category}/{REFS}", self.repo.links.references):
            if entry.target is None:
                self.add(Kind.UNEXPECTED_FILE_TYPE, entry.path, _type_name(entry.mode))
            elif self._leads_somewhere(entry) and not self._is_sound_reference(category, entry):
                self.add(Kind.BROKEN_SYMLINK, entry.path, f"leads to {entry.target}")

    def _list(self, folder: str, found: Callable[[str], Iterable[Found]]) -> list[Found]:
        try:
            return list(found(folder))
        except FormatError:
            self.add(Kind.UNEXPECTED_FILE_TYPE, folder, "is no directory")
            return []

    def _link(self, entry: Found, kind: Kind, check: Callable[[Found, bytes], bool]) -> bool:
        if entry.target is None:
            self.add(Kind.ENTRY_NOT_SYMLINK, entry.path)
            return False
        leads = self._leads_somewhere(entry)
        if not leads:
            return leads is None
        digest = refs.parse_target(entry.target, self.repo.algorithm)
        if digest is None:
            self.add(kind, entry.path, f"does not lead to an object: {entry.target}")
            return False
        return check(entry, digest)

    def _leads_somewhere(self, entry: Found) -> bool | None:
        """Whether there is a file behind the link; None if the link was removed meanwhile."""
        try:
            os.stat(entry.path, dir_fd=self.repo.fd)
        except FileNotFoundError:
            if self.repo.links.target(entry.path) is None:
                return None
            self.add(Kind.BROKEN_SYMLINK, entry.path)
        except OSError as error:
            self.add(Kind.STAT_FAILED, entry.path, error.strerror or str(error))
        else:
            return True
        return False

    def _is_sound_reference(self, category: str, entry: Found) -> bool:
        """Whether a reference leads to an entry of its own category, not merely to a file."""
        folder = os.path.dirname(entry.path)
        target = os.path.normpath(os.path.join(folder, entry.target or ""))
        return target == f"{category}/{entry.leads_to}" and entry.leads_to != REFS

    def _read(self, entry: Found, digest: bytes, opening: Kind, reading: Kind) -> bytes | None:
        try:
            fd = self.repo.open_object(digest)
        except BootcError as error:
            self.add(opening, entry.path, chain_text(error))
            return None
        try:
            with os.fdopen(fd, "rb") as file:
                return file.read()
        except OSError as error:
            self.add(reading, entry.path, error.strerror or str(error))
            return None

    def stream(self, entry: Found, digest: bytes) -> bool:
        opening, reading = Kind.STREAM_OPEN_FAILED, Kind.STREAM_READ_FAILED
        data = self._read(entry, digest, opening, reading)
        if data is None:
            return False
        try:
            stream = read_splitstream(data, entry.path)
        except FormatError as error:
            self.add(opening, entry.path, _short(error, entry.path))
            return False
        if stream.algorithm is not self.repo.algorithm:
            self.add(opening, entry.path, f"the algorithm is {stream.algorithm.value}")
            return False
        missing = self._missing(stream.object_refs)
        for name in missing:
            self.add(Kind.MISSING_OBJECT_REF, entry.path, name)
        named = [(ref, target.hex()) for ref, target in stream.named_refs.items()]
        absent = set(self._missing(stream.named_refs.values()))
        broken = [(ref, name) for ref, name in named if name in absent]
        for ref, name in broken:
            self.add(Kind.MISSING_NAMED_REF, entry.path, f"ref {ref}: {name}")
        # What is missing is counted as such; the stream itself may be sound.
        return bool(missing or broken) or self._chunks(stream, entry)

    def _chunks(self, stream: SplitStream, entry: Found) -> bool:
        """Whether the content can be put together, and has the size that it is said to have."""
        size = 0
        used: dict[int, int] = {}
        try:
            for chunk in stream.chunks():
                if isinstance(chunk, int):
                    if chunk not in used:
                        used[chunk] = self._size(stream.object_refs[chunk])
                    size += used[chunk]
                else:
                    size += len(chunk)
        except FormatError as error:
            self.add(Kind.STREAM_READ_FAILED, entry.path, _short(error, entry.path))
            return False
        if size != stream.total_size:
            problem = f"{size} bytes of content, {stream.total_size} are said to be there"
            self.add(Kind.STREAM_READ_FAILED, entry.path, problem)
            return False
        return True

    def _size(self, digest: bytes) -> int:
        name = digest.hex()
        found = os.stat(
            f"objects/{name[:2]}/{name[2:]}", dir_fd=self.repo.fd, follow_symlinks=False
        )
        return found.st_size

    def image(self, entry: Found, digest: bytes) -> bool:
        if entry.name != digest.hex():
            self.add(Kind.IMAGE_OPEN_FAILED, entry.path, f"leads to the object {digest.hex()}")
            return False
        data = self._read(entry, digest, Kind.IMAGE_OPEN_FAILED, Kind.IMAGE_READ_FAILED)
        if data is None:
            return False
        try:
            needed = collect_objects(data, entry.path)
        except FormatError as error:
            self.add(Kind.IMAGE_INVALID, entry.path, _short(error, entry.path))
            return False
        for name in sorted(self._missing(needed)):
            self.add(Kind.IMAGE_MISSING_OBJECT, entry.path, name)
        return True

    def _missing(self, digests: Iterable[bytes]) -> list[str]:
        names = self.names
        absent = [name for digest in digests if (name := digest.hex()) not in names]
        # A writer may have stored it since the names were read.
        return [name for name in absent if not self._exists(name)]

    def _exists(self, name: str) -> bool:
        return os.access(f"objects/{name[:2]}/{name[2:]}", os.F_OK, dir_fd=self.repo.fd)


def _has_objects(repo: Repository) -> bool:
    return os.access("objects", os.F_OK, dir_fd=repo.fd)


def _type_name(mode: int) -> str:
    return _TYPES.get(stat.S_IFMT(mode), f"{mode:o}")


def _short(error: FormatError, source: str) -> str:
    """The message without the path, which stands before it."""
    return str(error).removeprefix(source).lstrip(": ")
