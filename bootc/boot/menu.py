# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The menu of the ESP and the one that is to replace it.

    loader/entries            what the firmware's boot loader shows
    loader/entries.staged     the same for after the next shutdown: all of it, with the entries of
                              other systems
    loader/entries.staged.next
                              what is going to be the staged menu, or was; nobody reads it

The first two are exchanged in one step (RENAME_EXCHANGE), which vfat can do from Linux 6.0 on.
Elsewhere files are written one by one, and there is always something to boot. The ESP is synced
before and after, and what goes loses its name before its content is free.

The exchange changes two entries of one folder. A disk whose sectors are smaller than that may keep
one of them at a power cut: what boots is a whole menu, the old or the new, but two names lead to it
then. Who removes one of them empties the other, so such a twin is put aside instead.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence

from bootc import fs, paths
from bootc.boot import bls, entries
from bootc.linux import libc

_log = logging.getLogger(__name__)
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_NEXT = f"{paths.ENTRIES_STAGED}.next"
_FOLDER_BLOCKS = 4
"""The folder itself, two new entries, and the temporary file that a file is at first."""
_FILE_MAX = 1 << 20
"""Bytes; what is larger in a folder of entries is no entry."""


def write_staged(esp: str, wanted: Sequence[bls.Entry]) -> None:
    """Write the staged menu: these entries in this order, and the other systems' as they are.

    One that is there is replaced when the new one is whole.
    """
    prepare_staged(esp, wanted)
    put_staged(esp)
    discard_next(esp)


def prepare_staged(esp: str, wanted: Sequence[bls.Entry]) -> None:
    """Write, and sync, what `put_staged` makes the staged menu; that stays what it is."""
    discard_next(esp)
    folder = f"{esp}/{_NEXT}"
    os.makedirs(folder)
    for name, data in _foreign_files(esp):
        fs.write_atomic(f"{folder}/{name}", data)
    for name, entry in entries.arrange(wanted):
        fs.write_atomic(f"{folder}/{name}", entry.to_text())
    fs.sync_directory(os.path.dirname(folder))


def staged_size(esp: str) -> int:
    """Bytes of the ESP, at most, that `prepare_staged` takes, in whole blocks."""
    block = os.statvfs(esp).f_frsize
    files = _files(f"{esp}/{paths.ENTRIES}")
    return (sum(-(-len(data) // block) for _, data in files) + _FOLDER_BLOCKS) * block


def put_staged(esp: str) -> None:
    """Make what was prepared the staged menu; the one before is what `discard_next` removes.

    It is not synced: a power cut forgets what is staged, and `exchange` syncs before it begins.
    """
    staged = f"{esp}/{paths.ENTRIES_STAGED}"
    if os.path.isdir(staged):
        with fs.open_directory(os.path.dirname(staged)) as fd:
            if _exchanged(fd, os.path.basename(_NEXT), os.path.basename(staged)):
                return
        _discard(esp, paths.ENTRIES_STAGED)
    os.rename(f"{esp}/{_NEXT}", staged)


def _exchanged(loader: int, one: str, other: str) -> bool:
    """Exchange two folders in one step; False where the file system cannot."""
    try:
        libc.renameat2(loader, one, loader, other, libc.RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def _foreign_files(esp: str) -> list[tuple[str, bytes]]:
    ours = (entries.NAME_PREFIX, f".{entries.NAME_PREFIX}")
    found = _files(f"{esp}/{paths.ENTRIES}")
    return [(name, data) for name, data in found if not name.startswith(ours)]


def _files(folder: str) -> list[tuple[str, bytes]]:
    found = []
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    for name in names:
        path = f"{folder}/{name}"
        if os.path.isfile(path) and os.path.getsize(path) <= _FILE_MAX:
            with open(path, "rb") as file:
                found.append((name, file.read()))
    return found


def discard_staged(esp: str) -> bool:
    """Remove the staged menu, or what an interruption left of it; whether there was one."""
    discard_next(esp)
    return _discard(esp, paths.ENTRIES_STAGED)


def discard_next(esp: str) -> None:
    """Remove what `prepare_staged` wrote, or the menu that `put_staged` replaced."""
    _discard(esp, _NEXT)


def _discard(esp: str, name: str) -> bool:
    folder = f"{esp}/{name}"
    if not os.path.isdir(folder):
        return False
    for other in (paths.ENTRIES, paths.ENTRIES_STAGED, _NEXT):
        if other != name and _is_twin(folder, f"{esp}/{other}"):
            _put_aside(folder, other)
            return True
    fs.remove_tree(folder)
    return True


def _is_twin(one: str, other: str) -> bool:
    """Whether two names lead to the same folder: what is made in one of them is seen in both."""
    if _files(one) != _files(other) or not os.path.isdir(other):
        return False
    name = fs.temporary_name(".twin-")
    # Not a folder: a full ESP has room for a name, but not for a block.
    os.close(os.open(f"{one}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        return name in os.listdir(other)
    finally:
        os.unlink(f"{one}/{name}")


def _put_aside(folder: str, other: str) -> None:
    aside = fs.temporary_name(f"{folder}.twin-")
    os.rename(folder, aside)
    fs.sync_filesystem(os.path.dirname(folder))
    _log.warning(
        "a power cut left %s and %s as one folder on the ESP; the first is put aside as %s; repair "
        "the ESP when it is not mounted: fsck.vfat -a",
        os.path.basename(folder),
        other,
        os.path.basename(aside),
    )


def has_staged(esp: str) -> bool:
    return os.path.isdir(f"{esp}/{paths.ENTRIES_STAGED}")


def exchange(esp: str) -> None:
    """Put the staged menu in the place of the menu, durably, and remove the old one."""
    loader = f"{esp}/{os.path.dirname(paths.ENTRIES)}"
    now, staged = (os.path.basename(name) for name in (paths.ENTRIES, paths.ENTRIES_STAGED))
    os.makedirs(f"{loader}/{now}", exist_ok=True)
    fs.sync_filesystem(loader)
    with fs.open_directory(loader) as fd:
        if not _exchanged(fd, staged, now):
            _log.info("the ESP cannot exchange folders; the entries are written one by one")
            exchange_by_file(loader)
    fs.sync_filesystem(loader)
    discard_staged(esp)


def exchange_by_file(loader: str) -> None:
    """Make `entries` what `entries.staged` is, in steps; after each one the menu can be booted.

    What the staged menu lacks goes last. An interruption is mended by doing it again.
    """
    staged = f"{loader}/{os.path.basename(paths.ENTRIES_STAGED)}"
    now = f"{loader}/{os.path.basename(paths.ENTRIES)}"
    wanted = sorted(os.listdir(staged))
    for name in wanted:
        with open(f"{staged}/{name}", "rb") as file:
            fs.write_atomic(f"{now}/{name}", file.read())
    for name in os.listdir(now):
        if name not in wanted:
            fs.remove_file(f"{now}/{name}")
