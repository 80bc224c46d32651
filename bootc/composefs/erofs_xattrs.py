# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The extended attributes of an EROFS image that is being written.

Three steps, for the whole image each: `AttributeTable.add` and `add_file` take the attributes of
every inode, in inode order; `share` decides which lie once, in the shared area, and returns the
size of every inode's attributes; `place`, told where that area begins, returns their bytes.

An entry's encoding is injective, so equal attributes are equal bytes. Entries are shared when they
occur more than once in the image; epoch 1 shares at most 128 of an inode. Orders:

* epoch 1: attributes by full name; shared area descending by (name, length of value, value);
* epoch 2: metacopy, redirect, then by original name; shared area by (prefix, suffix, value).
"""

from __future__ import annotations

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
    split_name,
)
from bootc.errors import BootcError
from bootc.tree import External, Sparse


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


class _Group:
    """The attributes of all inodes that have the same ones, not counting an external file's two.

    An external file's own go between `before` and `between` (metacopy), and between that and
    `after` (redirect).
    """

    __slots__ = ("after", "before", "between", "count", "entries", "local", "mask", "own")

    def __init__(self, names: list[bytes], entries: list[bytes], epoch: int) -> None:
        self.count = 0
        self.entries = tuple(entries)
        low = 0 if epoch == 2 else sum(name < METACOPY for name in names)
        high = 0 if epoch == 2 else sum(name < REDIRECT for name in names)
        self.before = self.entries[:low]
        self.between = self.entries[low:high]
        self.after = self.entries[high:]
        self.mask = 0
        for name in names:
            self.mask |= filter_bit(*split_name(name, epoch))
        self.own: list[bytes] = []
        self.local = b""


class AttributeTable:
    """The attributes of all inodes of one image, from collection to bytes."""

    def __init__(self, epoch: int, algorithm: Algorithm) -> None:
        self.has_acl = False
        self.shared_area = b""
        self._epoch = epoch
        self._width = algorithm.size
        self._groups: dict[tuple[tuple[bytes, bytes], ...], _Group] = {}
        self._plain = self._intern({}, {})
        # An inode is a group, or the mask and the entries of a file that has an object.
        self._inodes: list[_Group | tuple[int, tuple[bytes, ...]]] = []
        self._split: list[tuple[int, list[bytes], bytes]] = []
        self._counts: dict[bytes, int] = {}
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
            values = escape(xattrs) | extra
            names = sorted(values)
            if self._epoch == 2:
                names = list(escape(dict.fromkeys(sorted(xattrs), b"")))
            entries = [encode_entry(name, values[name], self._epoch) for name in names]
            if not {PREFIXES[2], PREFIXES[3]}.isdisjoint(names):
                self.has_acl = True
            group = self._groups[key] = _Group(names, entries, self._epoch)
        return group

    def add(self, xattrs: dict[bytes, bytes], extra: dict[bytes, bytes]) -> None:
        """The next inode: a node's own attributes, and those that the format gives it."""
        group = self._intern(xattrs, extra) if xattrs or extra else self._plain
        group.count += 1
        self._inodes.append(group)

    def add_file(self, xattrs: dict[bytes, bytes], content: External | Sparse) -> None:
        """The next inode: a file whose data isn't in the image."""
        digest: bytes | None = None
        path: bytes | None = None
        if isinstance(content, External):
            digest, path = content.digest, content.payload
        if digest is None:
            metacopy = self._unknown
        elif len(digest) == self._width:
            metacopy = self._metacopy + digest
            if path is None:
                path = object_path(digest)
        else:
            raise BootcError(
                f"the digest of an object has {len(digest)} bytes instead of {self._width}",
                hint="write the image with the algorithm of the repository",
            )
        counts = self._counts
        counts[metacopy] = counts.get(metacopy, 0) + 1
        group = self._intern(xattrs, {}) if xattrs else self._plain
        group.count += 1
        mask = group.mask | self._masks[0]
        if not path:
            entries = (*group.before, metacopy, *group.between, *group.after)
        else:
            # As encode_entry does it; paths have one length, so the front is made once.
            head = self._redirects.get(len(path))
            if head is None:
                entry = encode_entry(REDIRECT, b"/" + path, self._epoch)
                padding = -(len(REDIRECT) - len(b"trusted.") + 1 + len(path)) % 4
                head = entry[: len(entry) - padding - len(path)], bytes(padding)
                self._redirects[len(path)] = head
            redirect = head[0] + path + head[1]
            counts[redirect] = counts.get(redirect, 0) + 1
            mask |= self._masks[1]
            entries = (*group.before, metacopy, *group.between, redirect, *group.after)
        self._inodes.append((mask, entries))

    def share(self) -> list[int]:
        """The size of every inode's attributes, in inode order. Fills `shared_area`."""
        counts = self._counts
        for group in self._groups.values():
            for entry in group.entries:
                counts[entry] = counts.get(entry, 0) + group.count
        shared = {entry for entry, count in counts.items() if count > 1}
        for group in self._groups.values():
            group.own, group.local = _divide(group.entries, shared, self._epoch)
        sizes: list[int] = []
        for inode in self._inodes:
            if isinstance(inode, _Group):
                mask, own, local = inode.mask, inode.own, inode.local
            else:
                mask = inode[0]
                own, local = _divide(inode[1], shared, self._epoch)
            self._split.append((mask, own, local))
            sizes.append(12 + 4 * len(own) + len(local) if mask else 0)
        if sizes and max(sizes) > XATTR_ROOM:
            raise BootcError(
                f"the extended attributes of an inode take more than {XATTR_ROOM} bytes"
            )
        if self._epoch == 1:
            self._order = sorted(shared, key=_name_and_value, reverse=True)
        else:
            self._order = sorted(shared, key=decode_entry)
        self.shared_area = b"".join(self._order)
        return sizes

    def place(self, start: int) -> list[bytes]:
        """The attribute bytes of every inode; `start`: bytes from the base block to the area."""
        ids: dict[bytes, bytes] = {}
        for entry in self._order:
            ids[entry] = (start // 4).to_bytes(4, "little")
            start += len(entry)
        blocks: list[bytes] = []
        pack = XATTR_HEADER.pack
        heads: dict[tuple[int, int], bytes] = {}
        for mask, own, local in self._split:
            if not mask:
                blocks.append(b"")
                continue
            key = (mask, len(own))
            head = heads.get(key)
            if head is None:
                head = heads[key] = pack(mask ^ 0xFFFFFFFF, len(own))
            blocks.append(b"".join((head, *[ids[entry] for entry in own], local)))
        return blocks


def _name_and_value(entry: bytes) -> tuple[bytes, int, bytes]:
    prefix, suffix, value = decode_entry(entry)
    return PREFIXES[prefix] + suffix, len(value), value


def _divide(
    entries: tuple[bytes, ...], shared: set[bytes], epoch: int
) -> tuple[list[bytes], bytes]:
    """(entries to refer to, bytes of those that stay in the inode)."""
    own = [entry for entry in entries if entry in shared]
    if not own:
        return own, b"".join(entries)
    own = own[: SHARED_MAX if epoch == 1 else 255]
    chosen = set(own)
    return own, b"".join([entry for entry in entries if entry not in chosen])
