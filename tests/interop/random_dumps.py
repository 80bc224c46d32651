# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Random dump files, the same for the same seed, with whatever the format can say.

Directories with none to 5,000 entries; names of 1 to 255 bytes that need not be UTF-8, sort around
`.` and `..`, or are called like the whiteouts of the root; every attribute prefix, shared and
unshared values, overlayfs' own names; files with objects, without digests, sparse ones up to the
largest size, inline ones of 0 to 4,999 bytes; links up to 4,095 bytes; devices, whiteouts, fifos
and sockets; hard links, before and behind their target; times that are equal, mixed, or negative.

Lines come depth first and sorted in most files, as dump files do, and in the order in which they
were made in the others.
"""

from __future__ import annotations

import random
import stat as st
from dataclasses import dataclass, field

from bootc.composefs.dumpfile import escape

_ODD_NAMES = (
    b"!",
    b"#",
    b"+",
    b"-",
    b"...",
    b".a",
    b"..b",
    b"00",
    b"ff",
    b"a0",
    b"AB",
    b"0",
    b"a=b",
)
_NAME_BYTES = bytes(byte for byte in range(1, 256) if byte != 0x2F)
_PLAIN_BYTES = b"abcdefghijklmnopqrstuvwxyz0123456789._-"
_PREFIXES = (
    *(b"user.", b"trusted.", b"security.", b"system.posix_acl_access"),
    *(b"system.posix_acl_default", b"lustre.", b"system.", b""),
)
_OVERLAY = (b"metacopy", b"redirect", b"origin", b"overlay.opaque", b"x")
_MARKS = (b"whiteout", b"whiteouts", b"opaque")
_LARGEST = 1 << 53


@dataclass(slots=True)
class _Entry:
    path: bytes
    target: int | None = None
    """Of a hard link: the number of the entry that it is another name of."""


@dataclass(slots=True)
class Maker:
    """One dump file.

    `unverified`: some files have an object but no digest of it. `marks`: some attributes are those
    that whiteouts and their directories get.
    """

    seed: int
    random: random.Random = field(init=False)
    entries: list[_Entry] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    taken: set[bytes] = field(default_factory=set)
    unverified: bool = False
    marks: bool = False
    times: list[tuple[int, int]] = field(default_factory=list)
    pool: list[tuple[bytes, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def make(self) -> bytes:
        """The text of the file."""
        rnd = self.random
        self.unverified = rnd.random() < 0.2
        self.marks = rnd.random() < 0.1
        self.times = self._pick_times()
        self.pool = [self._attribute() for _ in range(rnd.randrange(12))]
        self.lines.append(self._line(b"/", st.S_IFDIR))
        self.entries.append(_Entry(b"/"))
        total = rnd.choice((0, 3, 10, 30, 100, 300, 1000))
        if rnd.random() < 0.02:
            total = rnd.choice((4000, 6000))
        directories = [b"/"]
        while len(self.entries) < total:
            self._fill(rnd.choice(directories), directories, total)
        body = list(zip(self.entries[1:], self.lines[1:], strict=True))
        if rnd.random() < 0.8:
            body.sort(key=lambda item: item[0].path.split(b"/"))
        text = b"\n".join([self.lines[0], *(line for _, line in body)])
        return text if rnd.random() < 0.1 else text + b"\n"

    def _pick_times(self) -> list[tuple[int, int]]:
        rnd = self.random
        count = rnd.choice((1, 1, 2, 50))
        low, high = rnd.choice(((0, 0), (0, 2**31), (-(2**40), 2**40), (-5, 5)))
        return [
            (rnd.randint(low, high), rnd.choice((0, 0, 1, rnd.randrange(10**9))))
            for _ in range(count)
        ]

    def _fill(self, parent: bytes, directories: list[bytes], total: int) -> None:
        """Add some entries to one directory."""
        rnd = self.random
        count = rnd.choice((1, 2, 5, 20, 100, 300))
        if rnd.random() < 0.03:
            count = 5000
        length = rnd.choice((1, 8, 30, 255))
        for _ in range(min(count, total - len(self.entries))):
            path = (b"" if parent == b"/" else parent) + b"/" + self._name(length)
            if path in self.taken or len(path) > 4000:
                continue
            self.taken.add(path)
            self._add(path, directories)

    def _add(self, path: bytes, directories: list[bytes]) -> None:
        rnd = self.random
        target = rnd.randrange(len(self.entries))
        linked = self.entries[target].path
        if rnd.random() < 0.08 and linked not in directories:
            mode = rnd.choice((b"100644", b"120000", b"20644"))
            fields = [_field(path), b"0", b"@" + mode, b"1 0 0 0 0.0", _field(linked), b"- -"]
            self.lines.append(b" ".join(fields))
            self.entries.append(_Entry(path, target))
            return
        kind = rnd.choices(
            (st.S_IFREG, st.S_IFDIR, st.S_IFLNK, st.S_IFCHR, st.S_IFBLK, st.S_IFIFO, st.S_IFSOCK),
            (60, 12, 12, 6, 2, 2, 2),
        )[0]
        self.lines.append(self._line(path, kind))
        self.entries.append(_Entry(path))
        if kind == st.S_IFDIR:
            directories.append(path)

    def _name(self, length: int) -> bytes:
        rnd = self.random
        if rnd.random() < 0.05:
            return rnd.choice(_ODD_NAMES)
        if rnd.random() < 0.05:
            length = 255
        alphabet = _NAME_BYTES if rnd.random() < 0.2 else _PLAIN_BYTES
        size = rnd.randint(1, length)
        while (name := bytes(rnd.choices(alphabet, k=size))) in (b".", b".."):
            pass
        return name

    # -- Lines

    def _line(self, path: bytes, kind: int) -> bytes:
        rnd = self.random
        size, rdev, rest = 0, 0, b"- - -"
        if kind == st.S_IFREG:
            size, rest = self._regular()
        elif kind == st.S_IFLNK:
            length = rnd.choice((1, 5, 40, rnd.randint(1, 4095)))
            target = bytes(
                rnd.choices(_NAME_BYTES if rnd.random() < 0.1 else _PLAIN_BYTES, k=length)
            )
            size, rest = length, _field(target) + b" - -"
        elif kind == st.S_IFDIR:
            size = rnd.choice((0, 4096))
        elif kind in (st.S_IFCHR, st.S_IFBLK):
            rdev = 0 if rnd.random() < 0.6 else rnd.randrange(1 << 32)
        mode = kind | rnd.choice((0o644, 0o755, 0o4711, 0o1777, 0, rnd.randrange(0o10000)))
        links = rnd.choice((1, 1, 1, 1, 0, 2, 70000))
        owners = [rnd.choice((0, 0, 0, 1000, 65535, 65536, 2**32 - 1)) for _ in range(2)]
        seconds, nanoseconds = rnd.choice(self.times)
        numbers = f"{size} {mode:o} {links} {owners[0]} {owners[1]} {rdev} {seconds}.{nanoseconds}"
        fields = [_field(path), numbers.encode(), rest, *self._attributes()]
        return b" ".join(fields)

    def _regular(self) -> tuple[int, bytes]:
        rnd = self.random
        which = rnd.random()
        if which < 0.35:
            length = rnd.choice((0, 1, 5, 64, 2048, 2049, 4095, 4096, rnd.randrange(5000)))
            if rnd.random() < 0.5:
                length = rnd.randrange(100)
            alphabet = bytes(range(256)) if rnd.random() < 0.3 else _PLAIN_BYTES
            content = bytes(rnd.choices(alphabet, k=length))
            if not length:
                return 0, b"- - -"
            return length, b"- " + _field(content) + b" -"
        size = rnd.choice((1, 100, 4096, 4097, 1 << 40, rnd.randrange(1 << 30)))
        if rnd.random() < 0.05:
            size = rnd.choice((1 << 43, (1 << 43) + 1, 1 << 48, 1 << 52, _LARGEST))
        if which < 0.42:
            return size, b"- - -"
        digest = rnd.choice((b"ab" * 32, rnd.randbytes(32).hex().encode()))
        payload = digest[:2] + b"/" + digest[2:]
        if which < 0.46:
            payload = rnd.choice(
                (b"-", b"other/path", _field(rnd.randbytes(9).replace(b"\0", b"x")))
            )
        if self.unverified and which < 0.55:
            return size, payload + b" - -"
        return size, payload + b" - " + digest

    # -- Attributes

    def _attributes(self) -> list[bytes]:
        rnd = self.random
        if rnd.random() < 0.5:
            return []
        chosen = dict(rnd.choices(self.pool, k=rnd.randrange(4))) if self.pool else {}
        while rnd.random() < 0.2:
            name, value = self._attribute()
            chosen[name] = value
        if rnd.random() < 0.005:
            chosen |= {b"user.%d" % number: b"same" for number in range(rnd.randrange(260))}
        return [
            escape(name, attribute=True).encode() + b"=" + escape(value, attribute=True).encode()
            for name, value in chosen.items()
        ]

    def _attribute(self) -> tuple[bytes, bytes]:
        rnd = self.random
        if rnd.random() < 0.15:
            names = _OVERLAY + _MARKS if self.marks else _OVERLAY
            name = rnd.choice((b"trusted.overlay.", b"user.overlay.")) + rnd.choice(names)
        else:
            name = rnd.choice(_PREFIXES)
            if not name.startswith(b"system.posix") or rnd.random() < 0.1:
                alphabet = _NAME_BYTES if rnd.random() < 0.1 else _PLAIN_BYTES
                longest = rnd.choice((1, 10, 255 - len(name)))
                name += bytes(rnd.choices(alphabet, k=rnd.randint(1, longest)))
        length = rnd.choice((0, 1, 5, 30, rnd.randrange(300)))
        if rnd.random() < 0.01:
            length = rnd.randrange(8000)
        # C composefs-info does not see an entry of 4 bytes that is the last one of its inode.
        return name, rnd.randbytes(length or name in _PREFIXES)


def _field(data: bytes) -> bytes:
    return escape(data).encode()


def make_dump(seed: int) -> bytes:
    """The dump file of this seed."""
    return Maker(seed).make()
