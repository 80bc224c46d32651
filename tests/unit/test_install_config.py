# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Install configuration: merging fragments, refusing what isn't known; sizes."""

from pathlib import Path

import pytest

from bootc.errors import BootcError, FormatError
from bootc.install.config import InstallConfig, load_config, merge_fragment
from bootc.install.options import MIB, BlockSetup, RootFilesystem, parse_size
from bootc.log import show_size
from bootc.spec import Bootloader


def _merge(*texts: str, arch: str = "x86_64") -> InstallConfig:
    config = InstallConfig()
    for number, text in enumerate(texts):
        config = merge_fragment(config, text, f"{number}.toml", arch)
    return config


def test_scalars_of_later_files_win_and_lists_grow() -> None:
    config = _merge(
        '[install]\nroot-fs-type = "xfs"\nkargs = ["a"]\nkarg-deletes = ["x"]\nbootloader = "grub"',
        '[install]\nroot-fs-type = "ext4"\nkargs = ["b"]\nblock = ["direct", "tpm2-luks"]',
        '[install]\ndiscoverable-partitions = false\nroot-mount-spec = ""',
    )
    assert config.root_filesystem is RootFilesystem.EXT4
    assert config.kargs == ("a", "b")
    assert config.karg_deletes == ("x",)
    assert config.block == (BlockSetup.DIRECT, BlockSetup.TPM2_LUKS)
    assert config.bootloader is Bootloader.GRUB
    assert config.discoverable_partitions is False
    assert config.root_mount_spec == ""


def test_the_second_spelling_of_the_root_type_wins() -> None:
    config = _merge('[install]\nroot-fs-type = "xfs"\nfilesystem.root.type = "btrfs"')
    assert config.root_filesystem is RootFilesystem.BTRFS


def test_other_architectures_are_skipped_but_read() -> None:
    text = '[install]\nmatch-architectures = ["aarch64"]\nkargs = ["arm"]'
    assert _merge(text) == InstallConfig()
    assert _merge(text, arch="aarch64").kargs == ("arm",)
    with pytest.raises(FormatError, match="is not known"):
        _merge('[install]\nmatch-architectures = ["aarch64"]\nkarg = ["arm"]')


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[install", "is not TOML"),
        ("[other]\n", "other: is not known"),
        ('[install]\nfilesystem.root.kind = "x"', "install.filesystem.root.kind: is not known"),
        ('[install]\nroot-fs-type = "zfs"', "'zfs' is not one of ext4, btrfs, xfs"),
        ("[install]\nkargs = [1]", "install.kargs: expected an array of strings"),
        ('[install]\ndiscoverable-partitions = "no"', "expected true or false"),
        ('[install]\nblock = ["lvm"]', "'lvm' is not one of"),
        ("[install]\nroot-mount-spec = 3", "expected a string"),
        ("install = 1", "expected a table"),
    ],
)
def test_bad_fragments_of_install_config(text: str, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        _merge(text)


def test_folders_hide_files_of_the_same_name(tmp_path: Path) -> None:
    for folder, name, text in (
        ("usr/lib", "50-a.toml", 'kargs = ["vendor"]'),
        ("usr/lib", "90-z.toml", 'kargs = ["last"]'),
        ("etc", "50-a.toml", 'kargs = ["admin"]'),
        ("etc", "60-skip.conf", "not read"),
    ):
        where = tmp_path / folder / "bootc/install"
        where.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(f"[install]\n{text}\n")
    assert load_config(str(tmp_path), arch="x86_64").kargs == ("admin", "last")
    assert load_config(str(tmp_path / "none"), arch="x86_64") == InstallConfig()


def test_configuration_as_json() -> None:
    config = _merge('[install]\nroot-fs-type = "ext4"\nkargs = ["a"]')
    assert config.to_json(everything=False) == {
        "filesystem": {"root": {"type": "ext4"}},
        "root-fs-type": "ext4",
    }
    everything = config.to_json(everything=True)
    assert isinstance(everything, dict)
    assert everything["kargs"] == ["a"]


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512 * MIB), ("20G", 20480 * MIB), ("1T", 1 << 40), ("3MiB", 3 * MIB)]
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5G", "1K", "G"])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(BootcError, match="is not a size"):
        parse_size(text)


def test_show_size() -> None:
    assert (show_size(100 * MIB), show_size(1536 * MIB)) == ("100 MiB", "1.5 GiB")
    assert show_size(3000) == "3 KiB"
