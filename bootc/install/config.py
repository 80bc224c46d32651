# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The install configuration: TOML fragments `bootc/install/*.toml`.

They lie under /usr/lib, /usr/local/lib, /etc and /run; a later folder's file hides an earlier one
of the same name, and the files count in the order of their names. The only table is `[install]`:

| key | type | of several files |
|---|---|---|
| `root-fs-type`, `filesystem.root.type` | ext4, btrfs, xfs | the last; the second spelling wins |
| `block` | array of direct, tpm2-luks | the last; its first item is the default |
| `kargs`, `karg-deletes` | array of strings | all, one after the other |
| `match-architectures` | array of strings | skips the file on other machines |
| `root-mount-spec`, `boot-mount-spec`, `stateroot`, `bootloader` | string | the last |
| `discoverable-partitions`, `enforce-container-sigpolicy` | bool | the last |
| `ostree.bls-append-except-default`, `bootupd.skip-boot-uuid` | string, bool | the last |

An unknown key is an error.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from bootc.boot.kargs import architecture
from bootc.errors import FormatError
from bootc.install.options import BlockSetup, RootFilesystem
from bootc.jsonutil import Json
from bootc.paths import INSTALL_CONFIG_DIRS
from bootc.spec import Bootloader

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallConfig:
    """All fragments, merged; None is what no file sets."""

    root_filesystem: RootFilesystem | None = None
    block: tuple[BlockSetup, ...] | None = None
    kargs: tuple[str, ...] = ()
    karg_deletes: tuple[str, ...] = ()
    root_mount_spec: str | None = None
    boot_mount_spec: str | None = None
    stateroot: str | None = None
    bootloader: Bootloader | None = None
    discoverable_partitions: bool | None = None
    enforce_container_sigpolicy: bool | None = None
    bls_append_except_default: str | None = None
    skip_boot_uuid: bool | None = None

    def to_json(self, *, everything: bool) -> Json:
        """The form of `install print-configuration`; kargs only with `everything`."""
        found: dict[str, Json] = {}
        if self.root_filesystem is not None:
            found["filesystem"] = {"root": {"type": self.root_filesystem.value}}
            found["root-fs-type"] = self.root_filesystem.value
        if self.block is not None:
            found["block"] = [item.value for item in self.block]
        plain: dict[str, str | bool | None] = {
            "root-mount-spec": self.root_mount_spec,
            "boot-mount-spec": self.boot_mount_spec,
            "stateroot": self.stateroot,
            "bootloader": self.bootloader.value if self.bootloader else None,
            "discoverable-partitions": self.discoverable_partitions,
            "enforce-container-sigpolicy": self.enforce_container_sigpolicy,
        }
        found |= {key: value for key, value in plain.items() if value is not None}
        if self.bls_append_except_default is not None:
            found["ostree"] = {"bls-append-except-default": self.bls_append_except_default}
        if self.skip_boot_uuid is not None:
            found["bootupd"] = {"skip-boot-uuid": self.skip_boot_uuid}
        if everything:
            found["kargs"] = list(self.kargs)
            found["karg-deletes"] = list(self.karg_deletes)
        return found


def load_config(
    root: str = "", *, arch: str | None = None, folders: Sequence[str] = INSTALL_CONFIG_DIRS
) -> InstallConfig:
    """Read and merge the fragments below `root`."""
    files: dict[str, str] = {}
    for folder in folders:
        directory = f"{root}{folder}/bootc/install"
        if os.path.isdir(directory):
            for name in os.listdir(directory):
                if name.endswith(".toml"):
                    files[name] = f"{directory}/{name}"
    config = InstallConfig()
    for name in sorted(files):
        with open(files[name], encoding="utf-8") as file:
            config = merge_fragment(config, file.read(), files[name], arch or architecture())
    return config


def merge_fragment(config: InstallConfig, text: str, source: str, arch: str) -> InstallConfig:
    """`config` with one more fragment on top."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(source, None, f"is not TOML: {error}") from error
    top = _Table(document, source, "")
    table = top.table("install")
    top.no_more()
    if table is None:
        return config
    wanted = table.strings("match-architectures")
    spelled = table.text("root-fs-type")
    root_type = _root_type(table) or spelled
    block = table.strings("block")
    loader = table.text("bootloader")
    ostree, bootupd = table.table("ostree"), table.table("bootupd")
    kargs, deletes = table.strings("kargs") or (), table.strings("karg-deletes") or ()
    new = InstallConfig(
        root_filesystem=_choice(RootFilesystem, root_type, source, "root-fs-type")
        or config.root_filesystem,
        block=config.block
        if block is None
        else tuple(_need(BlockSetup, item, source, "block") for item in block),
        kargs=(*config.kargs, *kargs),
        karg_deletes=(*config.karg_deletes, *deletes),
        root_mount_spec=_last(table.text("root-mount-spec"), config.root_mount_spec),
        boot_mount_spec=_last(table.text("boot-mount-spec"), config.boot_mount_spec),
        stateroot=_last(table.text("stateroot"), config.stateroot),
        bootloader=_choice(Bootloader, loader, source, "bootloader") or config.bootloader,
        discoverable_partitions=_last(
            table.flag("discoverable-partitions"), config.discoverable_partitions
        ),
        enforce_container_sigpolicy=_last(
            table.flag("enforce-container-sigpolicy"), config.enforce_container_sigpolicy
        ),
        bls_append_except_default=_last(
            ostree.text("bls-append-except-default") if ostree else None,
            config.bls_append_except_default,
        ),
        skip_boot_uuid=_last(
            bootupd.flag("skip-boot-uuid") if bootupd else None, config.skip_boot_uuid
        ),
    )
    for part in (table, ostree, bootupd):
        if part is not None:
            part.no_more()
    return new if wanted is None or arch in wanted else config


def _last(new: T | None, old: T | None) -> T | None:
    return old if new is None else new


def _root_type(table: _Table) -> str | None:
    filesystem = table.table("filesystem")
    if filesystem is None:
        return None
    root = filesystem.table("root")
    filesystem.no_more()
    if root is None:
        return None
    kind = root.text("type")
    root.no_more()
    return kind


class _Table:
    """A TOML table that knows which of its keys were asked for."""

    def __init__(self, values: dict[str, object], source: str, path: str) -> None:
        self._left = dict(values)
        self._source = source
        self._path = path

    def _bad(self, key: str, problem: str) -> FormatError:
        return FormatError(self._source, f"{self._path}{key}", problem)

    def text(self, key: str) -> str | None:
        found = self._left.pop(key, None)
        if found is not None and not isinstance(found, str):
            raise self._bad(key, "expected a string")
        return found

    def flag(self, key: str) -> bool | None:
        found = self._left.pop(key, None)
        if found is not None and not isinstance(found, bool):
            raise self._bad(key, "expected true or false")
        return found

    def strings(self, key: str) -> tuple[str, ...] | None:
        found = self._left.pop(key, None)
        if found is None:
            return None
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise self._bad(key, "expected an array of strings")
        return tuple(found)

    def table(self, key: str) -> _Table | None:
        found = self._left.pop(key, None)
        if found is None:
            return None
        if not isinstance(found, dict):
            raise self._bad(key, "expected a table")
        return _Table(found, self._source, f"{self._path}{key}.")

    def no_more(self) -> None:
        for key in self._left:
            raise self._bad(key, "is not known")


def _choice(kind: type[E], text: str | None, source: str, key: str) -> E | None:
    return None if text is None else _need(kind, text, source, key)


def _need(kind: type[E], text: str, source: str, key: str) -> E:
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(item.value for item in kind)
        raise FormatError(source, f"install.{key}", f"{text!r} is not one of {known}") from None
