# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The boot menu entries of deployments: their names, their content and the files they start.

On the ESP, for systemd-boot:

    EFI/Linux/bootc_composefs-<id>/{vmlinuz,initrd}
    loader/entries/bootc_<os id>-<version>-<priority>.conf

The priority is 1 for the new deployment and 0 for the one before. In the os id `-` becomes `_`,
because grub reads the file name as name-version-release. systemd-boot sorts by sort-key,
ascending: `bootc-<os id>-0` first.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from enum import IntEnum

from bootc import paths
from bootc.boot import bls, kargs
from bootc.errors import BootcError, FormatError

DEFAULT_OS_ID = "bootc"


class Rank(IntEnum):
    """Which of the two entries; the value is the priority in the file name."""

    PRIMARY = 1
    SECONDARY = 0

    @property
    def sort_suffix(self) -> str:
        return "0" if self is Rank.PRIMARY else "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class OsRelease:
    """What boot menus need of os-release(5)."""

    os_id: str = DEFAULT_OS_ID
    title: str | None = None
    version: str | None = None


def parse_os_release(text: str) -> OsRelease:
    """Read os-release; lines that aren't `KEY=value` in shell quoting are skipped."""
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


def entry_name(release: OsRelease, deployment: str, rank: Rank) -> str:
    """The file name of a deployment's entry."""
    version = re.sub(r"[^A-Za-z0-9.+~_]", "_", release.version or deployment)
    return f"bootc_{release.os_id.replace('-', '_')}-{version}-{int(rank)}.conf"


def sort_key(release: OsRelease, rank: Rank) -> str:
    return f"bootc-{release.os_id}-{rank.sort_suffix}"


def kernel_dir(deployment: str) -> str:
    """The folder of kernel and initrd, below the ESP."""
    return f"{paths.ESP_KERNELS}/{paths.BOOT_PREFIX}{deployment}"


def make_entry(
    release: OsRelease, deployment: str, args: list[str], rank: Rank = Rank.PRIMARY
) -> bls.Entry:
    """The entry that starts `deployment` with the kernel arguments `args`."""
    folder = f"/{kernel_dir(deployment)}"
    return bls.Entry(
        title=release.title or deployment,
        version=release.version or deployment,
        linux=f"{folder}/vmlinuz",
        initrd=(f"{folder}/initrd",),
        options=kargs.join(args),
        sort_key=sort_key(release, rank),
    )


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

    Entries of other systems (no `composefs=`, no UKI of ours) are left out.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return []
    try:
        found = []
        for name in os.listdir(fd):
            if name.endswith(".conf"):
                file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)
                with os.fdopen(file, encoding="utf-8", errors="replace") as stream:
                    found.append((name, stream.read()))
    finally:
        os.close(fd)
    entries = [(name, _parse_ours(text, f"{folder}/{name}")) for name, text in found]
    return bls.menu_order((name, entry) for name, entry in entries if entry is not None)


def _parse_ours(text: str, source: str) -> bls.Entry | None:
    if "composefs" not in text:
        return None
    entry = bls.parse(text, source)
    try:
        deployment_of(entry, source)
    except BootcError:
        return None
    return entry
