# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Brings an old install into today's form: kernel folders and UKIs get the prefix of bootc.

    EFI/Linux/<id>/{vmlinuz,initrd}   becomes   EFI/Linux/bootc_composefs-<id>/{vmlinuz,initrd}
    EFI/Linux/bootc/<id>.efi          becomes   EFI/Linux/bootc/bootc_composefs-<id>.efi
    EFI/Linux/bootc/<id>.efi.extra.d  becomes   EFI/Linux/bootc/bootc_composefs-<id>.efi.extra.d

Without the prefix nobody can tell bootc's files on the ESP from others', and they are never
removed. vfat has no links, and a rename would leave the entry without its kernel until the menu is
written. So each is copied, then the menu is exchanged for one that names the copy, then the old one
is removed: at any moment each entry has its files. What an interruption leaves, a half copy or an
old folder that no entry names any more, is dealt with by the next run.

All entries are in the new menu in their order, those with a prefix and those of other systems as
they are. Nothing is done while a deployment is staged (its menu comes in the place of this one at
shutdown; the next start migrates), when an entry of ours cannot be read, or when the ESP has no
room for one more kernel: the old form boots as well. That is only told.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from bootc import fs, paths
from bootc.boot import bls, entries, menu
from bootc.deploy import messages
from bootc.deploy.sysroot import Sysroot, open_booted
from bootc.errors import BootcError
from bootc.log import step

_log = logging.getLogger(__name__)

_ID = re.compile(r"[0-9a-f]{64}(?:[0-9a-f]{64})?")
_UKIS = f"{paths.ESP_KERNELS}/bootc"
_ADDONS = ".extra.d"
_ENTRY_MAX = 1 << 20


@contextmanager
def open_for_change(*, wait: bool = True) -> Iterator[Sysroot]:
    """The running machine's system, to be changed, and brought into today's form if it is old.

    Raises what `open_booted` raises.
    """
    with open_booted(writable=True, wait=wait) as sysroot:
        try:
            migrate(sysroot)
        except (BootcError, OSError) as error:
            # What is not migrated boots as well.
            _log.warning("the boot files were not brought into today's form: %s", error)
        yield sysroot


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A file or folder of the ESP and its new place; both relative to the ESP."""

    old: str
    new: str


def plan_migration(sysroot: Sysroot) -> tuple[Move, ...]:
    """What the entries of the menu name without the prefix, each once."""
    if sysroot.esp is None:
        return ()
    found: dict[str, Move] = {}
    for _, entry in _read_ours(sysroot.esp):
        move = _move_of(entry)
        if move is not None:
            found.setdefault(move.old, move)
    return tuple(found.values())


def migrate(sysroot: Sysroot) -> bool:
    """Migrate what there is to migrate; whether something was. Needs a writable sysroot."""
    if sysroot.esp is None:
        return False
    moves = plan_migration(sysroot)
    if moves and os.path.exists(sysroot.staged_file):
        _skip("a deployment is staged; the next start migrates")
        return False
    done = False
    if not os.path.exists(sysroot.staged_file) and menu.discard_staged(sysroot.esp):
        # It may be the old menu that was exchanged before a power cut.
        _log.info(
            "removed a staged menu that nothing waits for", extra={"MESSAGE_ID": messages.MIGRATED}
        )
        done = True
    for move in moves:
        done |= _migrate_one(sysroot.esp, move)
    done |= _remove_old(sysroot.esp)
    return done


def _skip(why: str) -> None:
    _log.warning(
        "boot files of an older version are left as they are: %s",
        why,
        extra={"MESSAGE_ID": messages.SKIPPED},
    )


def _read_ours(esp: str) -> list[tuple[str, bls.Entry]]:
    """(file name, entry) of our entries in the menu's order, also UKIs without a prefix."""
    folder = f"{esp}/{paths.ENTRIES}"
    found: list[tuple[str, bls.Entry]] = []
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    for name in names:
        if not name.endswith(".conf") or not os.path.isfile(f"{folder}/{name}"):
            continue
        with open(f"{folder}/{name}", encoding="utf-8", errors="replace") as file:
            text = file.read(_ENTRY_MAX)
        try:
            entry = bls.parse(text, f"{folder}/{name}")
        except BootcError:
            continue
        if _is_ours(entry):
            found.append((name, entry))
    return bls.menu_order(found)


def _is_ours(entry: bls.Entry) -> bool:
    if _move_of(entry) is not None:
        return True
    try:
        entries.deployment_of(entry, "entry")
    except BootcError:
        return False
    return True


def _move_of(entry: bls.Entry) -> Move | None:
    """What has to be moved for this entry."""
    uki = entry.efi or entry.uki
    if uki is not None:
        folder, _, name = uki.strip("/").rpartition("/")
        if folder == _UKIS and name.endswith(".efi") and _ID.fullmatch(name[: -len(".efi")]):
            return Move(old=f"{folder}/{name}", new=f"{folder}/{paths.BOOT_PREFIX}{name}")
        return None
    if entry.linux is None or "composefs" not in (entry.options or ""):
        return None
    folder = os.path.dirname(entry.linux.strip("/"))
    parent, _, name = folder.rpartition("/")
    if parent == paths.ESP_KERNELS and _ID.fullmatch(name):
        return Move(old=folder, new=f"{parent}/{paths.BOOT_PREFIX}{name}")
    return None


def _renamed(entry: bls.Entry, move: Move) -> bls.Entry:
    """The entry with its files in their new place."""

    def name(path: str) -> str:
        if path.strip("/") == move.old:
            return f"/{move.new}"
        if path.strip("/").startswith(f"{move.old}/"):
            return f"/{move.new}{path.strip('/').removeprefix(move.old)}"
        return path

    return replace(
        entry,
        linux=name(entry.linux) if entry.linux else None,
        initrd=tuple(name(path) for path in entry.initrd),
        efi=name(entry.efi) if entry.efi else None,
        uki=name(entry.uki) if entry.uki else None,
    )


def _migrate_one(esp: str, move: Move) -> bool:
    ours = _read_ours(esp)
    damaged = _unreadable(esp, {name for name, _ in ours})
    if damaged:
        _skip(f"the entry {damaged[0]} cannot be read")
        return False
    sources = [part for part in (move.old, move.old + _ADDONS) if os.path.exists(f"{esp}/{part}")]
    if move.old not in sources:
        _skip(f"{move.old} is not there")
        return False
    need = sum(_size_of(f"{esp}/{part}") for part in sources)
    room = os.statvfs(esp)
    if need > room.f_bavail * room.f_frsize:
        _skip(f"the ESP has no room for a copy of {move.old} ({need} bytes)")
        return False
    with step(f"give {move.old} the prefix {paths.BOOT_PREFIX}"):
        if not _is_used(esp, move.new):
            for part in sources:
                _copy(f"{esp}/{part}", f"{esp}/{move.new}{part.removeprefix(move.old)}")
        fs.sync_filesystem(esp)
        menu.write_staged(esp, [_renamed(entry, move) for _, entry in ours])
        menu.exchange(esp)
    _log.info(
        "%s is %s now, with its entries",
        move.old,
        move.new,
        extra={"MESSAGE_ID": messages.MIGRATED},
    )
    return True


def _is_used(esp: str, path: str) -> bool:
    """Whether an entry names this file or folder already, and it is there: then it is whole."""
    return f"/{path}" in _all_texts(esp) and os.path.exists(f"{esp}/{path}")


def _unreadable(esp: str, ours: set[str]) -> list[str]:
    """Files named like our entries that are none: writing the menu anew would drop them."""
    return [
        name
        for name in sorted(os.listdir(f"{esp}/{paths.ENTRIES}"))
        if name.startswith(entries.NAME_PREFIX) and name.endswith(".conf") and name not in ours
    ]


def _copy(source: str, target: str) -> None:
    """Copy a file or folder; what is there is a half copy of an interrupted run."""
    if os.path.isdir(source):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def _size_of(path: str) -> int:
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def _remove_old(esp: str) -> bool:
    """Remove what has no prefix and is named by no entry, if a migrated copy of it is there."""
    try:
        texts = _all_texts(esp)
    except OSError as error:
        _skip(f"the menu cannot be read: {error.strerror}")
        return False
    removed = False
    for folder, suffix in ((paths.ESP_KERNELS, ""), (_UKIS, ".efi")):
        try:
            names = sorted(os.listdir(f"{esp}/{folder}"))
        except FileNotFoundError:
            continue
        for name in names:
            base = name.removesuffix(_ADDONS)
            is_ours = base.endswith(suffix) and _ID.fullmatch(base.removesuffix(suffix))
            copy = f"{esp}/{folder}/{paths.BOOT_PREFIX}{name}"
            if not is_ours or f"/{base}" in texts or not os.path.exists(copy):
                continue
            path = f"{esp}/{folder}/{name}"
            if os.path.isdir(path):
                fs.remove_tree(path)
            else:
                fs.remove_file(path)
            _log.info(
                "removed %s/%s, which has a copy with a prefix",
                folder,
                name,
                extra={"MESSAGE_ID": messages.MIGRATED},
            )
            removed = True
    return removed


def _all_texts(esp: str) -> str:
    """All entries, ours or not, of the menu and the staged one, as one text."""
    found: list[str] = []
    for folder in (paths.ENTRIES, paths.ENTRIES_STAGED):
        where = f"{esp}/{folder}"
        try:
            names = os.listdir(where)
        except FileNotFoundError:
            continue
        for name in names:
            if os.path.isfile(f"{where}/{name}"):
                with open(f"{where}/{name}", encoding="utf-8", errors="replace") as file:
                    found.append(file.read(_ENTRY_MAX))
    return "\n".join(found)
