# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The boot entries that an image brings along, and how one of them gets into a boot partition.

Looked for in this order (each folder sorted by name):

1. `/boot/loader/entries/*.conf`: Boot Loader Specification, type 1. Each `linux`, `initrd` and
   `efi` path in it must be a file of the image, from the image's root on;
2. `*.efi` in /boot/EFI/Linux and below it, and in /usr/lib/modules/VERSION: unified kernel images
   (type 2). Addons (`*.addon.efi`) are none;
3. `/usr/lib/modules/VERSION/vmlinuz` with `initramfs.img` beside it, which must be there: an entry
   is made up for it.

A type 1 entry keeps its lines as they are. The argument that names the composefs image, and then
each further one, replaces the first of the same key in the first `options` line, or is appended to
it; without such a line there will be one at the end. With an entry id, the entry is `ID.conf` and
its files lie in the folder `/ID`; without, everything has the name that it has in the image.

A unified kernel image has its arguments inside, often signed: they must name the composefs image
already, and no others can be added.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bootc import fs
from bootc.composefs.assemble import read_file
from bootc.composefs.repository import Repository
from bootc.errors import BootcError, FormatError
from bootc.tree import Directory, External, Inline, Leaf

_ENTRIES = "boot/loader/entries"
_UKIS = "boot/EFI/Linux"
_MODULES = "usr/lib/modules"
_PATHS = ("linux", "initrd", "efi")


@dataclass(frozen=True, slots=True, kw_only=True)
class Type1:
    """An entry's lines, without their newlines, and the files that it names by their paths."""

    name: str
    lines: tuple[str, ...]
    files: Mapping[str, Leaf]


@dataclass(frozen=True, slots=True, kw_only=True)
class Type2:
    """A unified kernel image; `name` is its path below EFI/Linux."""

    name: str
    image: Leaf


BootEntry = Type1 | Type2


def find_entries(repo: Repository, root: Directory) -> Iterator[BootEntry]:
    """The boot entries of an image that is not transformed for booting yet.

    Raises `FormatError` or `BootcError` for a bad one when it is its turn: whoever wants the first
    is not kept from it by a later one.
    """
    yield from _type1(repo, root)
    yield from _type2(root)
    yield from _kernels(root)


def _is_file(node: object) -> bool:
    return isinstance(node, Leaf) and isinstance(node.content, Inline | External)


def _leaves(folder: Directory | None, suffix: bytes) -> Iterator[tuple[str, Leaf]]:
    for name, node in folder.sorted() if folder is not None else ():
        if isinstance(node, Leaf) and _is_file(node) and name.endswith(suffix):
            yield os.fsdecode(name), node


def _type1(repo: Repository, root: Directory) -> Iterator[Type1]:
    for name, leaf in _leaves(root.find_directory(_ENTRIES), b".conf"):
        where = f"/{_ENTRIES}/{name}"
        try:
            lines = tuple(read_file(repo, leaf, where).decode().removesuffix("\n").split("\n"))
        except UnicodeDecodeError as error:
            raise FormatError(where, error.start, "is not UTF-8") from error
        files: dict[str, Leaf] = {}
        for line in lines:
            key, value = _split(line)
            if key not in _PATHS:
                continue
            found = root.find(value)
            if not isinstance(found, Leaf) or not _is_file(found):
                raise FormatError(where, key, f"{value} is no file of the image")
            files[value] = found
        yield Type1(name=name, lines=lines, files=files)


def _split(line: str) -> tuple[str, str]:
    """(key, value) of a line; the key is empty if no blank follows one."""
    for at, char in enumerate(line):
        if char in " \t":
            return line[:at], line[at:].lstrip()
    return "", ""


def _type2(root: Directory) -> Iterator[Type2]:
    stack = [("", root.find_directory(_UKIS))]
    while stack:
        base, folder = stack.pop()
        if folder is None:
            continue
        for name, leaf in _leaves(folder, b".efi"):
            if not name.endswith(".addon.efi"):
                yield Type2(name=base + name, image=leaf)
        stack += [
            (f"{base}{os.fsdecode(name)}/", node)
            for name, node in reversed(folder.sorted())
            if isinstance(node, Directory) and not name.endswith(b".extra.d")
        ]
    for _, folder in _versions(root):
        for name, leaf in _leaves(folder, b".efi"):
            if not name.endswith(".addon.efi"):
                yield Type2(name=name, image=leaf)


def _versions(root: Directory) -> Iterator[tuple[str, Directory]]:
    modules = root.find_directory(_MODULES)
    for name, node in modules.sorted() if modules is not None else ():
        if isinstance(node, Directory):
            yield os.fsdecode(name), node


def _kernels(root: Directory) -> Iterator[Type1]:
    for version, folder in _versions(root):
        vmlinuz, initrd = folder.find("vmlinuz"), folder.find("initramfs.img")
        if not isinstance(vmlinuz, Leaf):
            continue
        if not isinstance(initrd, Leaf):
            raise BootcError(
                f"the image has no /{_MODULES}/{version}/initramfs.img",
                hint="make one with dracut when the image is built",
            )
        files = {f"/{version}/vmlinuz": vmlinuz, f"/{version}/initramfs.img": initrd}
        lines = (
            "# File created by composefs",
            "title todoOS",
            "version 0-todo",
            f"linux /{version}/vmlinuz",
            f"initrd /{version}/initramfs.img",
        )
        yield Type1(name=f"{version}.conf", lines=lines, files=files)


def add_argument(lines: Sequence[str], argument: str) -> list[str]:
    """An entry's lines with a kernel argument; see the module for where it goes."""
    found = list(lines)
    for number, line in enumerate(found):
        key, value = _split(line)
        if key != "options":
            continue
        name, equals, _ = argument.partition("=")
        start = line[: len(line) - len(value)]
        words = value.split(" ")
        for at, word in enumerate(words):
            if word == argument or (equals and word.startswith(name + equals)):
                words[at] = argument
                break
        else:
            words.append(argument)
        found[number] = start + " ".join(words)
        return found
    return [*found, f"options {argument}"]


def relocate(entry: Type1, entry_id: str) -> Type1:
    """The entry under another name, with its files in a folder of that name."""
    lines: list[str] = []
    files: dict[str, Leaf] = {}
    for line in entry.lines:
        key, value = _split(line)
        if key in _PATHS:
            moved = f"/{entry_id}/{value.rpartition('/')[2]}"
            files[moved] = entry.files[value]
            line = line[: len(line) - len(value)] + moved
        lines.append(line)
    return Type1(name=f"{entry_id}.conf", lines=tuple(lines), files=files)


def write_entry(
    repo: Repository,
    entry: BootEntry,
    bootdir: str,
    karg: str,
    *,
    entry_id: str | None = None,
    cmdline: Sequence[str] = (),
) -> None:
    """Write an entry, after its files, into the boot partition at `bootdir`. Durable.

    `karg` names the composefs image, `cmdline` are more arguments.
    """
    if entry_id is not None and ("/" in entry_id or entry_id in ("", ".", "..")):
        raise BootcError(f"{entry_id!r} is no entry id", hint="leave the slashes out")
    if not os.path.isdir(bootdir):
        raise BootcError(f"{bootdir} is no directory", hint="name a mounted one with --bootdir")
    match entry:
        case Type1():
            moved = entry if entry_id is None else relocate(entry, entry_id)
            lines: Sequence[str] = moved.lines
            for argument in (karg, *cmdline):
                lines = add_argument(lines, argument)
            for path, leaf in moved.files.items():
                _write(bootdir, path, read_file(repo, leaf, path))
            text = "\n".join(lines) + "\n"
            _write(bootdir, f"loader/entries/{moved.name}", text.encode())
        case Type2():
            if cmdline:
                raise BootcError(
                    "arguments cannot be added to a unified kernel image", hint="leave them out"
                )
            data = read_file(repo, entry.image, entry.name)
            check_uki(data, karg, entry.name)
            name = entry.name if entry_id is None else f"{entry_id}.efi"
            _write(bootdir, f"EFI/Linux/{name}", data)


def check_uki(data: bytes, karg: str, source: str) -> None:
    """Raise `BootcError` unless a unified kernel image's arguments name the composefs image."""
    section = pe_section(data, ".cmdline", source)
    words = [] if section is None else section.rstrip(b"\0").decode("utf-8", "replace").split()
    wanted = karg.rpartition(":")[2].rpartition("=")[2].removeprefix("?")
    for word in words:
        key, _, value = word.partition("=")
        if key in ("composefs", "composefs.digest"):
            found = value.rpartition(":")[2].removeprefix("?")
            if found == wanted:
                return
            raise BootcError(
                f"{source} is made for the image {found}, this one is {wanted}",
                hint="build the unified kernel image anew for this image",
            )
    raise BootcError(
        f"the arguments in {source} name no composefs image",
        hint="build it with the argument that `cfsctl compute-karg` prints",
    )


def pe_section(data: bytes, name: str, source: str) -> bytes | None:
    """A section of a PE file, or None. The offsets are those of the PE/COFF specification."""
    try:
        (at,) = struct.unpack_from("<I", data, 0x3C)
        magic, _, count, _, _, _, optional = struct.unpack_from("<4sHHIIIH", data, at)
        if magic != b"PE\0\0":
            raise FormatError(source, at, "is no PE file")
        table = at + 24 + optional
        for number in range(count):
            label, size, _, _, start = struct.unpack_from("<8sIIII", data, table + 40 * number)
            if label.rstrip(b"\0") == name.encode():
                if start + size > len(data):
                    raise FormatError(source, table + 40 * number, f"{name} ends beyond the file")
                return data[start : start + size]
    except struct.error as error:
        raise FormatError(source, None, "is too short for a PE file") from error
    return None


def make_state(folder: str, image_id: str) -> None:
    """The directories for /var and the upper layer of /etc, beside the repository in `folder`."""
    base = os.path.join(folder, "state/deploy", image_id)
    for name in ("var", "etc/upper", "etc/work"):
        os.makedirs(os.path.join(base, name), exist_ok=True)
    fs.sync_directory(os.path.join(base, "etc"))
    fs.sync_directory(base)
    fs.sync_directory(os.path.dirname(base))


def _write(folder: str, path: str, data: bytes) -> None:
    where = os.path.join(folder, path.lstrip("/"))
    parts = path.strip("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise BootcError(f"the boot entry names the file {path!r}", hint="use a plain path")
    os.makedirs(os.path.dirname(where), exist_ok=True)
    fs.write_atomic(where, data, mode=0o644)
