# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Random images of several layers, the same for the same generator.

The first layer is a small system: folders that a bootable image needs, often an SELinux policy,
boot entries or a kernel, and a random tar. The others change it as layers do: whiteouts (for what
is there or not, in any order), opaque folders, directories over directories, files over
directories, hard links to what an earlier layer brought, times with fractions, attributes.
"""

from __future__ import annotations

import random
from pathlib import Path

from tests import ocibuild
from tests.interop.random_tars import make_tar

_POLICY = b"etc/selinux/targeted/contexts/files/"
_LABELS = (b"usr_t", b"bin_t", b"lib_t", b"etc_t", b"default_t", b"man_t")
_REGEXES = (
    b"/.*",
    b"/usr(/.*)?",
    b"/(usr/)?[a-m]+",
    b"/usr/.*\\.?[0-9]",
    b"/etc(/.*)?",
    b"/usr/[^/]+",
    b"/usr/a|/usr/b",
    b"/run",
    b"/boot(/.*)?",
    b"/usr/.+/.+",
    b"/opt/d1(/.*)?",
)
_TYPES = (b"", b"", b"--", b"-d", b"-l", b"-p", b"-c", b"-b", b"-s")


def make_image(layout: Path, rng: random.Random) -> str:
    """Write an OCI layout; returns the reference."""
    tars = [_system(rng), *(_change(rng) for _ in range(rng.choice((0, 0, 1, 1, 2, 4))))]
    if rng.random() < 0.2:
        tars.append(rng.choice(tars[1:] or tars))
    return ocibuild.write_layout(layout, tars, how=rng.choice(("none", "gzip", "zstd")))


def _stamp(rng: random.Random) -> bytes:
    """A PAX header with a time, and perhaps attributes, for the next member; or nothing."""
    records: list[tuple[bytes, bytes]] = []
    if rng.random() < 0.5:
        records.append((b"mtime", b"%d.%d" % (rng.randrange(1 << 33), rng.randrange(10**9))))
    for name in (b"security.capability", b"user.x", b"security.selinux", b"trusted.overlay.y"):
        if rng.random() < 0.15:
            records.append((b"SCHILY.xattr." + name, rng.randbytes(rng.choice((0, 1, 20)))))
    return ocibuild.pax_items(*records) if records else b""


def _file(rng: random.Random, path: bytes, data: bytes | None = None) -> bytes:
    size = rng.choice((0, 5, 64, 65, 3000, 5000))
    return _stamp(rng) + ocibuild.member(path, rng.randbytes(size) if data is None else data)


def _folder(rng: random.Random, path: bytes) -> bytes:
    return _stamp(rng) + ocibuild.folder(path, rng.choice((0o755, 0o700, 0o1777)))


def _system(rng: random.Random) -> bytes:
    parts = [_folder(rng, b"./")] if rng.random() < 0.5 else []
    folders = [
        b"usr",
        b"boot",
        b"sysroot",
        b"run",
        b"etc",
        b"opt",
        b"opt/d0",
        b"opt/d1",
        b"usr/lib",
    ]
    parts += [_folder(rng, path) for path in folders]
    parts += [_file(rng, b"opt/d%d/f%d" % (rng.randrange(2), number)) for number in range(4)]
    parts += [_file(rng, b"run/lock"), _file(rng, b"boot/x")]
    if rng.random() < 0.6:
        parts.append(_policy(rng))
    if rng.random() < 0.5:
        parts += [ocibuild.folder(path) for path in (b"usr/lib/modules", b"usr/lib/modules/6.1")]
        parts.append(_file(rng, b"usr/lib/modules/6.1/vmlinuz", rng.randbytes(200)))
        if rng.random() < 0.8:
            parts.append(_file(rng, b"usr/lib/modules/6.1/initramfs.img", rng.randbytes(300)))
    if rng.random() < 0.3:
        parts += [ocibuild.folder(path) for path in (b"boot/loader", b"boot/loader/entries")]
        text = b"title x\nlinux /boot/x\n" + rng.choice(
            (b"", b"options a b=c\n", b"options  b=1 b=2\n")
        )
        parts.append(_file(rng, b"boot/loader/entries/x.conf", text))
    # A tar ends where two blocks of zeros come, so the random one is the last.
    return b"".join(parts) + make_tar(rng)


def _policy(rng: random.Random) -> bytes:
    lines = [b"# rules"]
    for _ in range(rng.choice((1, 4, 12))):
        label = b"system_u:object_r:%s:s0" % rng.choice(_LABELS)
        words = (rng.choice(_REGEXES), rng.choice(_TYPES), rng.choice((label, label, b"<<none>>")))
        lines.append(b"\t".join(word for word in words if word))
    rules = b"\n".join(lines) + b"\n"
    folders = _POLICY.rstrip(b"/").split(b"/")
    parts = [ocibuild.folder(b"/".join(folders[: end + 1])) for end in range(1, len(folders))]
    parts.append(_file(rng, b"etc/selinux/config", b"SELINUX=enforcing\nSELINUXTYPE=targeted\n"))
    parts.append(_file(rng, _POLICY + b"file_contexts", rules))
    if rng.random() < 0.5:
        parts.append(_file(rng, _POLICY + b"file_contexts.local", b"/opt/d0/.*\tlocal:x:y\n"))
    if rng.random() < 0.5:
        parts.append(_file(rng, _POLICY + b"file_contexts.subs_dist", b"/opt/d1 /usr/lib\n"))
    return b"".join(parts)


def _change(rng: random.Random) -> bytes:
    parts: list[bytes] = []
    for number in range(rng.choice((1, 4, 12))):
        base = b"opt/d%d" % rng.randrange(2)
        name = base + b"/f%d" % rng.randrange(4)
        match rng.randrange(9):
            case 0:
                parts.append(ocibuild.header(base + b"/.wh.f%d" % rng.randrange(4)))
            case 1:
                parts.append(ocibuild.header(base + b"/.wh..wh..opq"))
            case 2:
                parts.append(_folder(rng, base))
            case 3:
                parts.append(_file(rng, name))
            case 4:
                parts.append(_folder(rng, base + b"/sub%d" % number))
                parts.append(_file(rng, base + b"/sub%d/x" % number))
            case 5:
                parts.append(_stamp(rng))
                parts.append(ocibuild.header(base + b"/s%d" % number, 0, b"2", link=b"../x"))
            case 6:
                # A link may dangle: then both refuse the image.
                target = rng.choice((b"run/lock", b"boot/x", b"etc/selinux/config", name))
                if target == b"run/lock" or rng.random() < 0.1:
                    parts.append(ocibuild.header(base + b"/h%d" % number, 0, b"1", link=target))
            case 7:
                numbers = {"major": b"0000001\0", "minor": b"0000003\0"}
                parts.append(ocibuild.header(base + b"/c%d" % number, 0, b"3", numbers=numbers))
            case _:
                parts.append(_folder(rng, b"usr"))
    # Without an end, and with no content last, the reference stores a layer that it can't read.
    return b"".join(parts) + ocibuild.END
