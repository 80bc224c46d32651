# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Random image layers, the same for the same generator, as Python's tarfile packs them.

Ustar, GNU and PAX; long names and targets, attributes, hard links, devices, whiteouts, contents
around the inline limit, and now and then no end marker or something behind it.
"""

from __future__ import annotations

import io
import random
import tarfile

_TYPES = (tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE)
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-_. é"


def make_tar(rng: random.Random) -> bytes:
    """A tar whose members have their folders before them, so that it makes a tree."""
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    packed = io.BytesIO()
    folders, files = ["usr"], list[str]()
    taken = {"usr"}
    with tarfile.open(fileobj=packed, mode="w", format=form) as tar:
        top = tarfile.TarInfo("usr")
        top.type, top.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(top)
        for _ in range(rng.choice((0, 3, 20, 80))):
            path = f"{rng.choice(folders)}/{_name(rng, form)}"
            limit = 90 if form == tarfile.USTAR_FORMAT else 900
            if path in taken or len(path.encode()) > limit:
                continue
            taken.add(path)
            member = _member(rng, path, form, files)
            content = rng.randbytes(member.size)
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
            if member.isdir():
                folders.append(path)
            elif member.isreg():
                files.append(path)
    data = packed.getvalue()
    how = rng.random()
    if how < 0.1:
        # tarfile pads to 10 KiB; what is behind the two zero blocks belongs to the layer, too.
        return data + rng.randbytes(rng.choice((1, 512, 700)))
    if how < 0.2:
        return data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512) + bytes(1024)
    return data


def _name(rng: random.Random, form: int) -> str:
    if rng.random() < 0.05:
        return rng.choice((".wh.gone", ".wh..wh..opq", "...", "-", "00"))
    size = rng.choice((1, 8, 30, 30 if form == tarfile.USTAR_FORMAT else 120))
    while (name := "".join(rng.choices(_LETTERS, k=size))) in (".", ".."):
        pass
    return name


def _member(rng: random.Random, path: str, form: int, files: list[str]) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.mode = rng.choice((0o644, 0o755, 0o4711, 0, 0o7777))
    member.uid, member.gid = (rng.choice((0, 0, 1000, 65536, 0o7777777)) for _ in range(2))
    member.mtime = rng.choice((0, 1, 1 << 31, rng.randrange(1 << 33)))
    if form == tarfile.PAX_FORMAT and rng.random() < 0.3:
        member.pax_headers = {
            "mtime": rng.choice(("1.5", "12.000000001", f"{rng.randrange(1 << 33)}.25")),
            "SCHILY.xattr.user.x": rng.choice(("", "1", "y" * 300)),
            "SCHILY.xattr.security.selinux": "system_u:object_r:usr_t:s0\0",
        }
    kind = rng.random()
    if kind < 0.6 or path.rpartition("/")[2].startswith(".wh."):
        member.size = rng.choice((0, 1, 63, 64, 65, 511, 512, 513, 5000))
    elif kind < 0.75:
        member.type = tarfile.DIRTYPE
    else:
        member.type = rng.choice(_TYPES)
        if member.islnk():
            if files:
                member.linkname = rng.choice(files)
            else:
                member.type = tarfile.FIFOTYPE
        elif member.issym():
            member.linkname = "t" * rng.choice((1, 90, 90 if form == tarfile.USTAR_FORMAT else 800))
        elif not member.isfifo():
            member.devmajor, member.devminor = rng.randrange(256), rng.randrange(256)
    return member
