# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The boot menu entries of deployments: their names, their content and the files they start.

On the ESP, for systemd-boot:

    EFI/Linux/bootc_composefs-<id>/{vmlinuz,initrd}
    EFI/Linux/bootc/bootc_composefs-<id>.efi      or this, a unified kernel image
    loader/entries/bootc_<os id>-<version>-<priority>.conf

The priority is 1 for the new deployment and 0 for the one before; with more, it goes down to 0. In
the os id `-` becomes `_`, because grub reads the file name as name-version-release. systemd-boot
sorts by sort-key, ascending: `bootc-<os id>-0` first. What would make the name longer than a file
system takes is cut off: first the version's end, then the os id's. The priority tells names apart.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence

from bootc import paths
from bootc.boot import bls, kargs
from bootc.errors import BootcError, FormatError
from bootc.records import dataclass, replace

DEFAULT_OS_ID = "bootc"
NAME_PREFIX = "bootc_"
"""Before the names of our entries' files."""
_FILE_MAX = 1 << 20
_NAME_MAX = 240
"""Names have 255 characters at most, on vfat as elsewhere; a file that is written has 14 more."""
_OS_ID_MAX = 64
_UNSAFE = r"[^A-Za-z0-9.+~_]"
_SORT_KEY = r"bootc-(.+)-[0-9]+"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OsRelease:
    """What boot menus need of os-release(5)."""

    os_id: str = DEFAULT_OS_ID
    title: str | None = None
    version: str | None = None


def parse_os_release(text: str) -> OsRelease:
    """Read os-release; lines that aren't `KEY=value` in shell quoting are skipped."""
    import shlex  # start-up time: `status` reads entries only

    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if not equals or key.startswith("#"):
            continue
        try:
            words = shlex.split(value)
        except ValueError:
            continue
        found[key] = words[0] if words else ""
    return OsRelease(
        os_id=found.get("ID") or DEFAULT_OS_ID,
        title=found.get("PRETTY_NAME") or None,
        version=found.get("VERSION_ID") or found.get("VERSION") or None,
    )


def arrange(wanted: Sequence[bls.Entry]) -> list[tuple[str, bls.Entry]]:
    """(file name, entry) that make `wanted` the order of the menu.

    The OS id is everywhere that of the first entry: the sort key begins with it, and two systems
    would be sorted by their names.
    """
    os_id = os_id_of(wanted[0]) if wanted else DEFAULT_OS_ID
    last = max(len(wanted), 2) - 1
    width = len(str(last))
    return [
        (
            _file_name(os_id, entry.version, f"{last - place:0{width}}"),
            _placed(entry, os_id, f"{place:0{width}}"),
        )
        for place, entry in enumerate(wanted)
    ]


def _file_name(os_id: str, version: str, priority: str) -> str:
    begin = f"{NAME_PREFIX}{re.sub(_UNSAFE, '_', os_id)[:_OS_ID_MAX]}-"
    end = f"-{priority}.conf"
    return f"{begin}{re.sub(_UNSAFE, '_', version)[: _NAME_MAX - len(begin) - len(end)]}{end}"


def _placed(entry: bls.Entry, os_id: str, place: str) -> bls.Entry:
    return replace(entry, sort_key=f"bootc-{os_id}-{place}")


def os_id_of(entry: bls.Entry) -> str:
    """The OS id in the sort key of an entry of ours."""
    match = re.fullmatch(_SORT_KEY, entry.sort_key or "")
    return match[1] if match else DEFAULT_OS_ID


def kernel_dir(deployment: str) -> str:
    """The folder of kernel and initrd, below the ESP."""
    return f"{paths.ESP_KERNELS}/{paths.BOOT_PREFIX}{deployment}"


def make_entry(
    release: OsRelease, deployment: str, args: list[str], *, kernel_folder: str | None = None
) -> bls.Entry:
    """The entry that starts `deployment` with the kernel arguments `args`, as the first of a menu.

    `kernel_folder` is the folder of `EFI/Linux` with the kernel, if not the deployment's own.
    """
    folder = f"/{kernel_dir(deployment)}"
    if kernel_folder is not None:
        folder = f"/{paths.ESP_KERNELS}/{kernel_folder}"
    entry = bls.Entry(
        title=release.title or deployment,
        version=release.version or deployment,
        linux=f"{folder}/vmlinuz",
        initrd=(f"{folder}/initrd",),
        options=kargs.join(args),
    )
    return _placed(entry, release.os_id, "0")


def make_uki_entry(release: OsRelease, deployment: str, *, key: str) -> bls.Entry:
    """The entry that starts the deployment's unified kernel image, as the first of a menu.

    `key` is `uki`, which systemd-boot knows from 258 on, or `efi`, which all boot loaders know.
    """
    path = f"/{paths.uki_file(deployment)}"
    entry = bls.Entry(
        title=release.title or deployment,
        version=release.version or deployment,
        efi=path if key == "efi" else None,
        uki=path if key == "uki" else None,
    )
    return _placed(entry, release.os_id, "0")


def deployment_of(entry: bls.Entry, source: str) -> kargs.ComposefsArg:
    """Which deployment an entry starts, by its `composefs=` argument or its UKI's name."""
    path = entry.efi or entry.uki
    if path is not None:
        name = os.path.basename(path)
        if name.startswith(paths.BOOT_PREFIX) and name.endswith(".efi"):
            digest = name.removeprefix(paths.BOOT_PREFIX).removesuffix(".efi")
            return kargs.ComposefsArg(digest=digest, insecure=False)
        raise FormatError(source, "efi", f"{path} is not named after a deployment")
    found = kargs.find_composefs(entry.arguments)
    if found is None:
        raise FormatError(source, "options", "has no composefs= argument")
    return found


def read_entries(directory: int, folder: str = paths.ENTRIES) -> list[tuple[str, bls.Entry]]:
    """(file name, entry) below the ESP's directory fd, in menu order; [] without the folder.

    Entries of other systems (no `composefs=`, no UKI of ours) are left out, so are, with a warning,
    those that are damaged.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return []
    try:
        found = []
        for name in os.listdir(fd):
            if name.endswith(".conf"):
                text = _read_file(fd, name)
                if text is not None:
                    found.append((name, text))
    finally:
        os.close(fd)
    entries = [(name, _parse_ours(text, f"{folder}/{name}")) for name, text in found]
    return bls.menu_order((name, entry) for name, entry in entries if entry is not None)


def _read_file(folder: int, name: str) -> str | None:
    """The text of an entry's file; None, and a warning, if it cannot be read."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            data = os.read(fd, _FILE_MAX)
        finally:
            os.close(fd)
    except OSError as error:
        _log.warning("the boot entry %s cannot be read: %s", name, error.strerror)
        return None
    return data.decode("utf-8", "replace")


def _parse_ours(text: str, source: str) -> bls.Entry | None:
    if "composefs" not in text:
        return None
    try:
        entry = bls.parse(text, source)
        deployment_of(entry, source)
    except BootcError as error:
        if os.path.basename(source).startswith(NAME_PREFIX):
            _log.warning("the boot entry %s is left out: %s", source, error)
        return None
    return entry
