# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Writes a tree as an EROFS image, byte for byte as composefs does; the layout is in erofs_format.

What epoch 1 (V0, V1) changes on the way, none of it in the caller's tree:

* `trusted.overlay.X` of a node becomes `trusted.overlay.overlay.X`;
* a file whose data isn't in the image gets `trusted.overlay.metacopy` (its digest) and
  `trusted.overlay.redirect` (its path in the object directory);
* a whiteout of the user's (character device 0) becomes an empty file marked as one, and its
  directory (that of its home, see tree.Leaf) is marked to contain some; from V1 on the directory is
  marked opaque `x`, too;
* the root is opaque, and hides the object directories with 256 whiteouts.

Epoch 2 does the first two only. An inode is compact, in epoch 1, when its time is the earliest of
all and its numbers fit; V2 has extended inodes only, without nanoseconds.
"""

from __future__ import annotations

import stat as st
from collections.abc import Iterable, Iterator
from itertools import accumulate
from struct import Struct

from bootc.composefs.collector import paused_collector
from bootc.composefs.digest import Algorithm
from bootc.composefs.erofs_format import (
    BLOCK,
    CHUNK_BASED,
    COMPACT,
    COMPAT,
    COMPOSEFS_MAGIC,
    DIRENT,
    EROFS_MAGIC,
    EXTENDED,
    FILE_TYPE,
    FLAG_ACL,
    FLAT_INLINE,
    FLAT_PLAIN,
    HEADER,
    INODES_AT,
    OPAQUE,
    OPAQUE_MARKS,
    SLOT,
    SUPERBLOCK,
    SUPERBLOCK_AT,
    V2_INLINE_MAX,
    V2_SYMLINK_MAX,
    WHITEOUT_MARKS,
    WHITEOUTS_MARKS,
    FormatVersion,
)
from bootc.composefs.erofs_layout import (
    STUB,
    Inodes,
    Shape,
    chunk_layout,
    order_inodes,
    place_epoch1,
    place_epoch2,
    split_directory,
)
from bootc.composefs.erofs_xattrs import AttributeTable
from bootc.errors import BootcError
from bootc.tree import (
    Content,
    Device,
    Directory,
    External,
    Inline,
    Leaf,
    Sparse,
    Symlink,
)

_PIECE = 1 << 20
_RUN = 4096
_U32 = 0xFFFFFFFF
_U64 = 0xFFFFFFFFFFFFFFFF


def write_image(
    root: Directory,
    *,
    version: FormatVersion = FormatVersion.V1,
    algorithm: Algorithm = Algorithm.SHA512,
    like_c: bool = False,
) -> bytes:
    """The image of a tree, which is left as it is. `algorithm` is the one of its digests.

    Of epoch 1 composefs-rs, which cfsctl and bootc must agree with, and the C tools (`like_c`) have
    two readings. To C the oldest times, which compact inodes have, are those before 1970; a user's
    own mark on a directory with whiteouts is replaced by the format's; no inode has more than 128
    shared attributes. To composefs-rs times before 1970 are the newest, and such a mark is added.

    Raises `BootcError` when the tree holds something that no image can (a name with a slash, a
    device number of more than 32 bits, a digest of another algorithm, a directory in two places).
    """
    with paused_collector():
        draft = ImageDraft(root, version=version, algorithm=algorithm, like_c=like_c)
        draft.settle()
        return b"".join(draft.pieces())


def image_pieces(
    root: Directory,
    *,
    version: FormatVersion = FormatVersion.V1,
    algorithm: Algorithm = Algorithm.SHA512,
    like_c: bool = False,
) -> Iterator[bytes]:
    """The same image in pieces of whole blocks, which are made as they are asked for.

    Whatever can't be written is refused before the first piece.
    """
    draft = ImageDraft(root, version=version, algorithm=algorithm, like_c=like_c)
    return draft.blocks()


def _whole_blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces cut anew, each a multiple of the block size and few of them small."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _PIECE:
            data = b"".join(waiting)
            cut = size - size % BLOCK
            yield data[:cut]
            waiting = [data[cut:]]
            size -= cut
    if size:
        yield b"".join(waiting)


def has_whiteouts(root: Directory) -> bool:
    """Whether the tree contains whiteouts (character device 0), which V1 images mark better."""
    directories = [root]
    for directory in directories:
        for node in directory.entries.values():
            if isinstance(node, Directory):
                directories.append(node)
            elif _is_whiteout(node.content):
                return True
    return False


class ImageDraft:
    """One image on its way from tree to bytes; the lists have an item per inode, in order.

    The digests of contents may be missing (`External.digest` is None) until `settle`: so a half of
    the work is done while they are still computed. Nothing else of the tree may change any more.
    """

    def __init__(
        self,
        root: Directory,
        *,
        version: FormatVersion = FormatVersion.V1,
        algorithm: Algorithm = Algorithm.SHA512,
        like_c: bool = False,
    ) -> None:
        """Arguments and errors are those of `write_image`."""
        self.version = version
        self.like_c = like_c
        self.epoch = version.epoch
        self.inodes: Inodes = order_inodes(root, self.epoch)
        self.shape = Shape()
        self.table = AttributeTable(self.epoch, algorithm, like_c=like_c)
        self.modes: list[int] = []
        self.links: list[int] = []
        self.sizes: list[int] = []
        self.extras: list[int] = []  # i_u, where it isn't a block address
        self.splits: dict[int, list[int]] = {}
        self.attribute_sizes: list[int] = []

        with paused_collector():
            for index, node in enumerate(self.inodes.nodes):
                if isinstance(node, Directory):
                    self._add_directory(index, node)
                else:
                    self._add_leaf(index, node)
            self.types = bytes([FILE_TYPE[mode & 0o170000] for mode in self.modes])
            self.compact = self._find_compact()

    def blocks(self) -> Iterator[bytes]:
        """The image in pieces of whole blocks; whatever can't be written is refused before them."""
        with paused_collector():
            self.settle()
        return _whole_blocks(self.pieces())

    def settle(self) -> None:
        """All digests are there: decide where everything lies."""
        shape = self.shape
        if self.epoch == 2:
            for index, node in enumerate(self.inodes.nodes):
                content = node.content if isinstance(node, Leaf) else None
                if isinstance(content, External) and content.digest is not None:
                    shape.tails[index] = 4
        self.attribute_sizes = self.table.share()
        shape.heads = [
            (32 if small else 64) + size
            for small, size in zip(self.compact, self.attribute_sizes, strict=True)
        ]
        (place_epoch1 if self.epoch == 1 else place_epoch2)(shape)

    # -- What there is of every inode

    def _append(self, mode: int, links: int, size: int, layout: int, tail: int) -> None:
        self.modes.append(mode)
        self.links.append(links)
        self.sizes.append(size)
        self.extras.append(0)
        shape = self.shape
        shape.layouts.append(layout)
        shape.tails.append(tail)
        shape.blocks.append(0)
        shape.is_link.append(False)

    def _add_directory(self, index: int, node: Directory) -> None:
        names, _ = self.inodes.children[index]
        split, tail = split_directory(names)
        self.splits[index] = split
        links = 2
        has_whiteout = False
        for child in node.entries.values():
            if isinstance(child, Directory):
                links += 1
            elif _is_whiteout(child.content) and (child.home is None or child.home[0] is node):
                has_whiteout = True
        extra: dict[bytes, bytes] = {}
        if self.epoch == 1:
            if has_whiteout:
                extra.update(WHITEOUTS_MARKS)
                if self.version >= FormatVersion.V1:
                    extra.update(OPAQUE_MARKS)
            if index == 0:
                extra[OPAQUE] = b"y"
        self.table.add(node.stat.xattrs, extra)
        mode = st.S_IFDIR | (node.stat.mode & 0o7777)
        size = BLOCK * len(split) + tail
        self._append(mode, links, size, FLAT_INLINE if tail else FLAT_PLAIN, tail)
        self.shape.blocks[-1] = len(split)

    def _add_leaf(self, index: int, node: Leaf) -> None:
        content, stat = node.content, node.stat
        links = node.nlink if node.nlink is not None else self.inodes.links.get(index, 1)
        mode = node.kind | (stat.mode & 0o7777)
        if isinstance(content, External | Sparse) and (content.size or self.epoch == 2):
            self.table.add_file(node)
            self._append(mode, links, content.size, CHUNK_BASED, 0)
            if self.epoch == 1:
                self.extras[-1], count = chunk_layout(content.size)
                self.shape.tails[-1] = 4 * count
            else:
                self.extras[-1] = 31
            return
        extra: dict[bytes, bytes] = {}
        if self.epoch == 1 and _is_whiteout(content):
            extra = WHITEOUT_MARKS
            mode = st.S_IFREG | (stat.mode & 0o7777)
        self.table.add(stat.xattrs, extra)
        if isinstance(content, Inline):
            self._check_v2(len(content.data), V2_INLINE_MAX)
            blocks, tail = divmod(len(content.data), BLOCK)
            if self.epoch == 1 and tail > BLOCK // 2:
                blocks, tail = blocks + 1, 0
            layout = FLAT_INLINE if tail else FLAT_PLAIN
            self._append(mode, links, len(content.data), layout, tail)
            self.shape.blocks[-1] = blocks
        elif isinstance(content, Symlink):
            self._check_v2(len(content.target), V2_SYMLINK_MAX)
            size = len(content.target)
            self._append(mode, links, size, FLAT_INLINE, size)
            self.shape.is_link[-1] = True
        else:
            self._append(mode, links, 0, FLAT_PLAIN, 0)
            if isinstance(content, Device):
                if not 0 <= content.rdev <= _U32:
                    raise BootcError(f"the device number {content.rdev:#x} has more than 32 bits")
                self.extras[-1] = content.rdev

    def _check_v2(self, size: int, limit: int) -> None:
        if self.epoch == 2 and size > limit:
            raise BootcError(
                f"contents of {size} bytes in a V2 image, which takes {limit}",
                hint="store the content as an object, or write the image as V1",
            )

    def _find_compact(self) -> bytes:
        """Which inodes are compact (1) or not. Sets `oldest`, the time that these have."""
        stats = [node.stat for node in self.inodes.nodes]
        self.oldest = (0, 0)
        if self.epoch == 2:
            return bytes(len(stats))
        seconds = min([stat.mtime for stat in stats])
        if seconds < 0 and not self.like_c:
            seconds = min([stat.mtime for stat in stats], key=lambda second: second & _U64)
        nanoseconds = min([stat.mtime_nsec for stat in stats if stat.mtime == seconds])
        self.oldest = seconds, nanoseconds
        return bytes(
            [
                stat.mtime == seconds
                and stat.mtime_nsec == nanoseconds
                and links <= 0xFFFF
                and stat.uid <= 0xFFFF
                and stat.gid <= 0xFFFF
                and size <= _U32
                for links, stat, size in zip(self.links, stats, self.sizes, strict=True)
            ]
        )

    # -- Bytes

    def pieces(self) -> Iterator[bytes]:
        """The bytes of the image, in order."""
        shape = self.shape
        base, start = (shape.end // BLOCK, shape.end % BLOCK) if self.epoch == 1 else (0, shape.end)
        attributes = self.table.place(start)
        area = self.table.shared_area
        data_at = -(-(shape.end + len(area)) // BLOCK)
        yield HEADER.pack(
            COMPOSEFS_MAGIC, 1, FLAG_ACL if self._has_acl() else 0, int(self.version)
        ).ljust(SUPERBLOCK_AT, b"\0")
        yield self._superblock(base, data_at + sum(shape.blocks))
        at = INODES_AT
        zeros = bytes(BLOCK)
        columns = (
            shape.positions, self._heads(data_at), attributes, shape.tails, shape.blocks,
            shape.layouts,
        )  # fmt: skip
        run: list[bytes] = []
        for index, (position, head, xattrs, tail, count, layout) in enumerate(
            zip(*columns, strict=True)
        ):
            if position != at:
                run.append(zeros[: position - at])
            run += (head, xattrs)
            at = position + len(head) + len(xattrs) + tail
            if tail:
                if layout == CHUNK_BASED:
                    run.append(b"\xff" * tail)
                else:
                    run.append(self._content(index)[BLOCK * count :])
            if len(run) > _RUN:
                yield b"".join(run)
                run.clear()
        yield b"".join(run)
        yield zeros[: shape.end - at]
        yield area
        yield zeros[: data_at * BLOCK - shape.end - len(area)]
        for index, count in enumerate(shape.blocks):
            if count:
                if shape.layouts[index] == CHUNK_BASED:
                    yield b"\xff" * (BLOCK * count)
                else:
                    yield self._content(index)[: BLOCK * count].ljust(BLOCK * count, b"\0")

    def _content(self, index: int) -> bytes:
        """What the image holds of an inode's data."""
        node = self.inodes.nodes[index]
        if isinstance(node, Directory):
            return self._directory(index)
        content = node.content
        return content.target if isinstance(content, Symlink) else _inline(content)

    def _has_acl(self) -> bool:
        return self.epoch == 1 and self.table.has_acl

    def _superblock(self, attribute_block: int, blocks: int) -> bytes:
        seconds, nanoseconds = self.oldest
        return SUPERBLOCK.pack(
            EROFS_MAGIC, 0, COMPAT, 12, 0,
            self.shape.positions[0] // SLOT, len(self.inodes.nodes),
            seconds & _U64, nanoseconds, blocks,
            0, attribute_block, b"", b"", 0, b"",
        )  # fmt: skip

    def _heads(self, address: int) -> Iterator[bytes]:
        """The header of every inode; `address`: the block at which the data begin."""
        shape, epoch = self.shape, self.epoch
        pack_small, pack_large = COMPACT.pack, EXTENDED.pack
        columns = (
            self.compact, self.inodes.nodes, self.modes, self.links, self.sizes, self.extras,
            self.attribute_sizes, shape.layouts, shape.blocks, shape.positions,
        )  # fmt: skip
        for index, (
            small, node, mode, links, size, extra, attributes, layout, count, position,
        ) in enumerate(zip(*columns, strict=True)):  # fmt: skip
            stat = node.stat
            if count:
                # A chunk array that became a block: the format overwrites half of the address.
                extra = (address & 0xFFFF0000) | extra if layout == CHUNK_BASED else address
                address += count
            words = (attributes - 8) // 4 if attributes else 0
            if small:
                yield pack_small(
                    layout, words, mode, links, size, 0, extra, index, stat.uid, stat.gid, 0
                )
            else:
                number, nanoseconds = index, stat.mtime_nsec
                if epoch == 2:
                    number, nanoseconds = position // SLOT, 0
                yield pack_large(
                    layout | 1, words, mode, 0, size, extra, number, stat.uid, stat.gid,
                    stat.mtime & _U64, nanoseconds, links,
                )  # fmt: skip

    def _directory(self, index: int) -> bytes:
        """The blocks and the tail of a directory, every block but the tail padded."""
        names, children = self.inodes.children[index]
        positions, types = self.shape.positions, self.types
        counts = self.splits[index]
        parts: list[bytes] = []
        begin = 0
        for count in (*counts, len(names) - sum(counts)):
            if not count:
                continue
            some = names[begin : begin + count]
            entries: list[int] = []
            offsets = accumulate(map(len, some), initial=12 * count)
            for child, offset in zip(children[begin : begin + count], offsets, strict=False):
                entries += (positions[child] // SLOT, offset, types[child])
            block = _dirents(count).pack(*entries) + b"".join(some)
            begin += count
            parts.append(block.ljust(BLOCK, b"\0") if begin < len(names) else block)
        return b"".join(parts)


def _inline(content: Content) -> bytes:
    return content.data if isinstance(content, Inline) else b""


def _is_whiteout(content: Content) -> bool:
    """Whether it is a whiteout of the user's."""
    return (
        isinstance(content, Device)
        and content.rdev == 0
        and content.kind == st.S_IFCHR
        and content is not STUB
    )


_DIRENTS: dict[int, Struct] = {}


def _dirents(count: int) -> Struct:
    """The packer of so many directory entries; a block holds no more than 315."""
    packer = _DIRENTS.get(count)
    if packer is None:
        packer = _DIRENTS[count] = Struct("<" + DIRENT.format[1:] * count)
    return packer
