# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The extended attributes of an EROFS image that is being written.

Three steps, for the whole image each: `AttributeTable.add` and `add_file` take the attributes of
every inode, in inode order; `share` decides which lie once, in the shared area, and returns the
size of every inode's attributes; `place`, told where that area begins, yields their bytes.

Most inodes of a system have an object, and with it two attributes that no other inode has: metacopy
(the digest) and redirect (the path). So these aren't kept: sizes follow from lengths, and the bytes
are made when they are written. Inodes whose other attributes are equal are one `_Group`.

An entry's encoding is injective, so equal attributes are equal bytes. Entries are shared when they
occur more than once in the image; epoch 1 shares at most 128 of an inode. Orders:

* epoch 1: attributes by full name; shared area descending by (name, length of value, value);
* epoch 2: metacopy, redirect, then by original name; shared area by (prefix, suffix, value).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TypeAlias

from bootc.composefs.digest import Algorithm
from bootc.composefs.erofs_format import (
    ESCAPED,
    METACOPY,
    OVERLAY,
    PREFIXES,
    REDIRECT,
    SHARED_MAX,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_ROOM,
    filter_bit,
    object_path,
    parse_object_path,
    split_name,
)
from bootc.errors import BootcError
from bootc.tree import External, Leaf, Sparse


def encode_entry(name: bytes, value: bytes, epoch: int) -> bytes:
    """One attribute as it lies in an inode or in the shared area."""
    prefix, suffix = split_name(name, epoch)
    if len(suffix) > 255 or len(value) > 0xFFFF:
        raise BootcError(
            f"extended attribute {name[:80]!r} is too long for an image"
            f" (name {len(suffix)} of 255, value {len(value)} of 65535 bytes)"
        )
    size = 4 + len(suffix) + len(value)
    return XATTR_ENTRY.pack(len(suffix), prefix, len(value)) + suffix + value + bytes(-size % 4)


def decode_entry(entry: bytes) -> tuple[int, bytes, bytes]:
    """(prefix, suffix, value) of an encoded entry that `encode_entry` made."""
    length, prefix, size = XATTR_ENTRY.unpack_from(entry)
    return prefix, entry[4 : 4 + length], entry[4 + length : 4 + length + size]


def escape(xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The attributes of a node under the names that keep overlayfs from acting on them."""
    return {
        (ESCAPED + name[len(OVERLAY) :] if name.startswith(OVERLAY) else name): value
        for name, value in xattrs.items()
    }


_ACLS = {PREFIXES[2], PREFIXES[3]}
_Parts: TypeAlias = "tuple[list[bytes], list[bytes], list[bytes]]"


class _Group:
    """The attributes of all inodes that have the same ones, not counting an external file's two.

    Those stand between `parts[0]` and `parts[1]` (metacopy), and between that and `parts[2]`
    (redirect). `own` refers to shared entries, `local` are the bytes of the others, by part.
    """

    __slots__ = ("count", "ids", "local", "mask", "own", "own_count", "parts", "size")

    def __init__(self, names: list[bytes], entries: list[bytes], epoch: int) -> None:
        self.count = 0
        low = 0 if epoch == 2 else sum(name < METACOPY for name in names)
        high = 0 if epoch == 2 else sum(name < REDIRECT for name in names)
        self.parts = entries[:low], entries[low:high], entries[high:]
        self.mask = 0
        for name in names:
            self.mask |= filter_bit(*split_name(name, epoch))

    def divide(self, shared: set[bytes], limit: int) -> None:
        """Decide which entries of an inode that has only these are shared."""
        chosen = set([entry for entry in chain(*self.parts) if entry in shared][:limit])
        first, second, third = ([entry for entry in part if entry in chosen] for part in self.parts)
        self.own: _Parts = first, second, third
        before, between, after = (
            b"".join([entry for entry in part if entry not in chosen]) for part in self.parts
        )
        self.local = before, between, after
        self.own_count = sum(map(len, self.own))
        self.size = 12 + 4 * self.own_count + sum(map(len, self.local))


class _Objects:
    """What external files refer to, and which of that occurs more than once.

    A file whose path follows from its digest (nearly all) only adds its digest to a set.
    """

    def __init__(self) -> None:
        self.unknown = 0
        self._seen: set[bytes] = set()
        self._again: set[bytes] = set()
        self._digests: dict[bytes, int] = {}
        self._paths: dict[bytes, int] = {}
        self.shared_digests = self._again
        self.shared_paths: set[bytes] = set()
        self.shared_plain = self._again
        """Digests whose own path is shared."""

    def add(self, digest: bytes | None, path: bytes | None) -> None:
        """A file; `path` is None when it follows from the digest, and empty when there is none."""
        if path is None and digest is not None:
            (self._again if digest in self._seen else self._seen).add(digest)
            return
        if digest is None:
            self.unknown += 1
        else:
            self._digests[digest] = self._digests.get(digest, 0) + 1
        if path:
            self._paths[path] = self._paths.get(path, 0) + 1

    def count(self) -> None:
        """Fill the three sets, now that all files are there."""
        if not (self._digests or self._paths):
            return
        self.shared_digests = self._again | {
            digest for digest, count in self._digests.items() if count > 1 or digest in self._seen
        }
        self.shared_plain = set(self._again)
        self.shared_paths = set()
        for path, count in self._paths.items():
            digest = parse_object_path(path)
            if digest in self._seen and object_path(digest) == path:
                self.shared_plain.add(digest)
            elif count > 1:
                self.shared_paths.add(path)


class AttributeTable:
    """The attributes of all inodes of one image, from collection to bytes."""

    def __init__(self, epoch: int, algorithm: Algorithm, *, like_c: bool = False) -> None:
        self.has_acl = False
        self.shared_area = b""
        self._epoch = epoch
        self._like_c = like_c
        self._limit = SHARED_MAX if like_c else 255
        self._width = algorithm.size
        self._groups: dict[tuple[tuple[bytes, bytes], ...], _Group] = {}
        self._plain = self._intern({}, {})
        self._inodes: list[_Group] = []
        self._leaves: list[Leaf | None] = []
        self._files: list[External | Sparse | None] = []
        self._objects = _Objects()
        self._order: list[bytes] = []
        self._redirects: dict[int, tuple[bytes, bytes]] = {}
        known = bytes((0, 4 + self._width, 0, algorithm.kernel)) + bytes(self._width)
        self._metacopy = encode_entry(METACOPY, known, epoch)[: -self._width]
        self._unknown = encode_entry(METACOPY, b"", epoch)
        self._masks = tuple(filter_bit(*split_name(name, epoch)) for name in (METACOPY, REDIRECT))

    def _intern(self, xattrs: dict[bytes, bytes], extra: dict[bytes, bytes]) -> _Group:
        key = (*xattrs.items(), (b"", b""), *extra.items())
        group = self._groups.get(key)
        if group is None:
            values = [*escape(dict(sorted(xattrs.items()))).items(), *extra.items()]
            if self._epoch == 1:
                # To C `extra` replaces what a user has, else it comes on top of that.
                chosen = dict(values).items() if self._like_c else values
                values = sorted(chosen, key=lambda item: (item[0], len(item[1]), item[1]))
            names = [name for name, _ in values]
            entries = [encode_entry(name, value, self._epoch) for name, value in values]
            if self._like_c:
                self.has_acl |= not _ACLS.isdisjoint(names)
            else:
                self.has_acl |= any(split_name(name, self._epoch)[0] in (2, 3) for name in names)
            group = self._groups[key] = _Group(names, entries, self._epoch)
        return group

    def add(self, xattrs: dict[bytes, bytes], extra: dict[bytes, bytes]) -> None:
        """The next inode: a node's own attributes, and those that the format gives it."""
        group = self._intern(xattrs, extra) if xattrs or extra else self._plain
        group.count += 1
        self._inodes.append(group)
        self._leaves.append(None)

    def add_file(self, node: Leaf) -> None:
        """The next inode: a file whose data isn't in the image. Its digest is asked for later."""
        xattrs = node.stat.xattrs
        group = self._intern(xattrs, {}) if xattrs else self._plain
        group.count += 1
        self._inodes.append(group)
        self._leaves.append(node)

    def _settle(self) -> None:
        """Take the contents of all files as they are now."""
        width, add = self._width, self._objects.add
        for node in self._leaves:
            content = None if node is None else node.content
            if isinstance(content, External):
                self._files.append(content)
                digest = content.digest
                if digest is not None and len(digest) != width:
                    raise BootcError(
                        f"the digest of an object has {len(digest)} bytes instead of {width}",
                        hint="write the image with the algorithm of the repository",
                    )
                add(digest, content.payload)
            elif isinstance(content, Sparse):
                self._files.append(content)
                self._objects.unknown += 1
            else:
                self._files.append(None)
        self._leaves.clear()

    def _redirect(self, path: bytes) -> bytes:
        return encode_entry(REDIRECT, b"/" + path, self._epoch)

    def share(self) -> list[int]:
        """The size of every inode's attributes, in inode order. Fills `shared_area`.

        From here on the contents of the files have to stay as they are.
        """
        self._settle()
        counts: dict[bytes, int] = {}
        for group in self._groups.values():
            for entry in chain(*group.parts):
                counts[entry] = counts.get(entry, 0) + group.count
        shared = {entry for entry, count in counts.items() if count > 1}
        for group in self._groups.values():
            group.divide(shared, self._limit)
        objects = self._objects
        objects.count()
        shared.update([self._metacopy + digest for digest in objects.shared_digests])
        shared.update([self._redirect(object_path(digest)) for digest in objects.shared_plain])
        shared.update([self._redirect(path) for path in objects.shared_paths])
        if objects.unknown > 1:
            shared.add(self._unknown)
        self._shared = shared
        key = _name_and_value if self._epoch == 1 else decode_entry
        self._order = sorted(shared, key=key, reverse=self._epoch == 1)
        self.shared_area = b"".join(self._order)
        sizes = self._sizes()
        if sizes and max(sizes) > XATTR_ROOM:
            raise BootcError(
                f"the extended attributes of an inode take more than {XATTR_ROOM} bytes"
            )
        return sizes

    def _sizes(self) -> list[int]:
        sizes: list[int] = []
        local = len(self._unknown), len(self._metacopy) + self._width, 4, 8
        lengths: dict[int, int] = {0: 0}
        for group, file in zip(self._inodes, self._files, strict=True):
            if file is None:
                sizes.append(group.size if group.mask else 0)
                continue
            usual = self._find_usual(group, file)
            if usual is None:
                _, own, rest = self._divide(group, file)
                sizes.append(12 + 4 * len(own) + len(rest))
                continue
            kind, _, path = usual
            length = lengths.get(len(path))
            if length is None:
                length = lengths[len(path)] = len(self._redirect(path))
            sizes.append(group.size + local[kind] + length)
        return sizes

    def _find_usual(
        self, group: _Group, file: External | Sparse
    ) -> tuple[int, bytes, bytes] | None:
        """(kind, digest, path) of a file, or None if neither is true of it: its digest and path, if
        it has them, aren't shared; or both are, and the path is the digest's own.

        `kind` says how its metacopy is stored: _UNKNOWN, _KNOWN or _SHARED; or _BOTH are shared.
        """
        objects = self._objects
        path = b""
        if isinstance(file, External):
            digest = file.digest
            if file.payload is None and digest is not None:
                shared = (digest in objects.shared_plain) + (digest in objects.shared_digests)
                if not shared:
                    return _KNOWN, digest, object_path(digest)
                fits = shared == 2 and group.own_count + 2 <= self._limit
                return (_BOTH, digest, b"") if fits else None
            path = file.payload or b""
            if path in objects.shared_paths or digest in objects.shared_digests:
                return None
            if path and objects.shared_plain and parse_object_path(path) in objects.shared_plain:
                return None
            if digest is not None:
                return _KNOWN, digest, path
        if objects.unknown < 2:
            return _UNKNOWN, b"", path
        return (_SHARED, b"", path) if group.own_count < self._limit else None

    def _divide(self, group: _Group, file: External | Sparse) -> tuple[int, list[bytes], bytes]:
        """(mask, entries to refer to, bytes of the others) of a file without data in the image."""
        digest, path = None, b""
        if isinstance(file, External):
            digest, path = file.digest, file.payload or b""
            if file.payload is None and digest is not None:
                path = object_path(digest)
        mask = group.mask | self._masks[0]
        entries = [*group.parts[0], self._unknown if digest is None else self._metacopy + digest]
        entries += group.parts[1]
        if path:
            mask |= self._masks[1]
            entries.append(self._redirect(path))
        entries += group.parts[2]
        own = [entry for entry in entries if entry in self._shared][: self._limit]
        chosen = set(own)
        return mask, own, b"".join([entry for entry in entries if entry not in chosen])

    def place(self, start: int) -> Iterator[bytes]:
        """The attribute bytes of every inode; `start`: bytes from the base block to the area."""
        ids: dict[bytes, bytes] = {}
        for entry in self._order:
            ids[entry] = (start // 4).to_bytes(4, "little")
            start += len(entry)
        whole: dict[_Group, bytes] = {self._plain: b""}
        around: dict[tuple[_Group, int, int], tuple[bytes, bytes, bytes]] = {}
        pairs: dict[bytes, tuple[bytes, bytes]] = {}
        for group, file in zip(self._inodes, self._files, strict=True):
            if file is None:
                block = whole.get(group)
                if block is None:
                    block = _head(group.mask, group.own, ids) + b"".join(group.local)
                    if group.count > 1:
                        whole[group] = block
                yield block
                continue
            usual = self._find_usual(group, file)
            if usual is None:
                mask, entries, local = self._divide(group, file)
                head = XATTR_HEADER.pack(mask ^ 0xFFFFFFFF, len(entries))
                yield b"".join((head, *[ids[entry] for entry in entries], local))
                continue
            kind, digest, path = usual
            if kind == _BOTH:
                pair = pairs.get(digest)
                if pair is None:
                    redirect = self._redirect(object_path(digest))
                    pair = pairs[digest] = ids[self._metacopy + digest], ids[redirect]
                yield self._refer(group, pair, ids)
                continue
            key = group, kind, len(path)
            found = around.get(key)
            if found is None:
                found = self._around(group, kind, path, ids)
                if group.count > 1:
                    around[key] = found
            yield b"".join((found[0], digest, found[1], path, found[2]))

    def _refer(self, group: _Group, pair: tuple[bytes, bytes], ids: dict[bytes, bytes]) -> bytes:
        """The attributes of a file whose metacopy and redirect, of these ids, are shared."""
        mask = (group.mask | self._masks[0] | self._masks[1]) ^ 0xFFFFFFFF
        if not group.own_count:
            return XATTR_HEADER.pack(mask, 2) + b"".join((*pair, *group.local))
        before, between, after = ([ids[entry] for entry in part] for part in group.own)
        words = (*before, pair[0], *between, pair[1], *after)
        return XATTR_HEADER.pack(mask, len(words)) + b"".join((*words, *group.local))

    def _around(
        self, group: _Group, kind: int, path: bytes, ids: dict[bytes, bytes]
    ) -> tuple[bytes, bytes, bytes]:
        """What stands before the digest, between it and the path, and behind the path."""
        mask, own = group.mask | self._masks[0], group.own
        metacopy = (self._unknown, self._metacopy, b"")[kind]
        if kind == _SHARED:
            own = [*own[0], self._unknown], own[1], own[2]
        redirect = padding = b""
        if path:
            mask |= self._masks[1]
            entry = self._redirect(path)
            padding = bytes(-(len(REDIRECT) - len(b"trusted.") + 1 + len(path)) % 4)
            redirect = entry[: len(entry) - len(padding) - len(path)]
        before, between, after = group.local
        head = _head(mask, own, ids)
        return head + before + metacopy, between + redirect, padding + after


_UNKNOWN, _KNOWN, _SHARED, _BOTH = range(4)


def _head(mask: int, own: _Parts, ids: dict[bytes, bytes]) -> bytes:
    words = [ids[entry] for entry in chain(*own)]
    return XATTR_HEADER.pack(mask ^ 0xFFFFFFFF, len(words)) + b"".join(words)


def _name_and_value(entry: bytes) -> tuple[bytes, int, bytes]:
    prefix, suffix, value = decode_entry(entry)
    return PREFIXES[prefix] + suffix, len(value), value
