# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The packed initrd: archive bytes, library closure, modules, and that the packed Python runs."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from bootc import process
from bootc.errors import BootcError, FormatError
from bootc.initramfs import cpio, elf, kmods, pack, rootpath, runtime
from bootc.initramfs.cpio import Node

DEPENDENCIES = """kernel/drivers/block/virtio_blk.ko.xz:
kernel/lib/libcrc32c.ko.xz:
kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz
kernel/drivers/scsi/sd-mod.ko: kernel/drivers/scsi/scsi-core.ko
kernel/drivers/scsi/scsi-core.ko:
"""


def test_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    tree = {
        "usr/bin/tool": Node.file(b"hello", 0o755),
        "usr/bin/link": Node.symlink("tool"),
        "dev/console": Node.character_device(5, 1),
        "empty": Node.folder(),
    }
    data = cpio.write_archive(tree)
    assert data == cpio.write_archive(dict(reversed(tree.items())))
    assert len(data) % 4 == 0
    if process.find_program("cpio") is None:
        pytest.skip("cpio is not installed")
    archive = tmp_path / "archive"
    archive.write_bytes(data)
    said = process.run(["cpio", "--quiet", "-itv", "-F", str(archive)]).stdout.splitlines()
    found = {line.split()[-1] if "->" not in line else line.split()[-3]: line for line in said}
    assert list(found) == [
        "dev",
        "dev/console",
        "empty",
        "usr",
        "usr/bin",
        "usr/bin/link",
        "usr/bin/tool",
    ]
    assert found["usr/bin/tool"].startswith("-rwxr-xr-x")
    assert found["dev/console"].startswith("crw-------")
    assert "5,   1" in found["dev/console"]


def test_libraries_of_python_are_found() -> None:
    path = os.path.realpath(sys.executable)
    linkage = elf.read_linkage(Path(path).read_bytes(), path)
    assert linkage.interpreter is not None
    assert linkage.interpreter.startswith("/")
    assert any(name.startswith("libc.so") for name in linkage.needed)


@pytest.mark.parametrize("data", [b"#!/bin/sh\n", b"", b"\x7fELF\x02\x01" + bytes(20)])
def test_what_is_not_sound_elf_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="tool"):
        elf.read_linkage(data, "tool")


def test_paths_resolve_as_inside_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("/usr/lib")
    (tmp_path / "usr/lib/a.so").symlink_to("../lib/a.so.1")
    (tmp_path / "usr/lib/a.so.1").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    real, links = rootpath.resolve(str(tmp_path), "/lib/a.so")
    assert real == "usr/lib/a.so.1"
    assert links == {"lib": "/usr/lib", "usr/lib/a.so": "../lib/a.so.1"}
    assert rootpath.resolve(str(tmp_path), "../../etc")[0] == "etc"
    with pytest.raises(BootcError, match="too many symbolic links"):
        rootpath.resolve(str(tmp_path), "loop")


def test_modules_come_after_what_they_need() -> None:
    planned = kmods.plan_modules(
        DEPENDENCIES, "kernel/fs/ext4/ext4.ko\n", ["erofs", "virtio-blk", "ext4", "sd_mod"], "dep"
    )
    assert [(one.name, one.needs, one.at_start) for one in planned] == [
        ("libcrc32c", (), False),
        ("erofs", ("libcrc32c",), False),
        ("virtio_blk", (), True),
        ("scsi_core", (), False),
        ("sd_mod", ("scsi_core",), True),
    ]


def test_unknown_module_is_refused() -> None:
    with pytest.raises(BootcError, match="dep has no module nosuch"):
        kmods.plan_modules(DEPENDENCIES, "", ["nosuch"], "dep")
    with pytest.raises(FormatError, match="line 2"):
        kmods.plan_modules("a.ko:\nb.ko\n", "", ["a"], "dep")


@pytest.fixture
def kernel_root(tmp_path: Path) -> Path:
    """A tree with one kernel that has two modules."""
    folder = tmp_path / "usr/lib/modules/6.1"
    for path in ("kernel/drivers/block/virtio_blk.ko.xz", "kernel/lib/libcrc32c.ko.xz"):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_bytes(lzma.compress(path.encode()))
    (folder / "modules.dep").write_text(DEPENDENCIES)
    (folder / "modules.builtin").write_text("")
    return tmp_path


def test_modules_are_packed_uncompressed(kernel_root: Path) -> None:
    tree = kmods.module_tree(str(kernel_root), "6.1", ["virtio_blk"])
    assert tree[f"{kmods.FOLDER}/virtio_blk.ko"].data == b"kernel/drivers/block/virtio_blk.ko.xz"
    assert tree[f"{kmods.FOLDER}/index"].data == b"start virtio_blk\n"
    assert kmods.only_kernel(str(kernel_root)) == "6.1"


def test_kernel_must_be_named_when_there_are_two(kernel_root: Path) -> None:
    shutil.copytree(kernel_root / "usr/lib/modules/6.1", kernel_root / "usr/lib/modules/6.2")
    with pytest.raises(BootcError, match=r"6\.1, 6\.2") as caught:
        kmods.only_kernel(str(kernel_root))
    assert "--kver" in str(caught.value.hint)


def test_damaged_module_names_its_file(kernel_root: Path) -> None:
    path = kernel_root / "usr/lib/modules/6.1/kernel/drivers/block/virtio_blk.ko.xz"
    path.write_bytes(b"not xz")
    with pytest.raises(FormatError, match=r"virtio_blk\.ko\.xz"):
        kmods.module_tree(str(kernel_root), "6.1", ["virtio_blk"])


def test_writing_into_a_tree_follows_its_links_and_keeps_its_files(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    (tmp_path / "usr/lib/kept").write_text("theirs")
    tree = {
        "lib/new": Node.file(b"ours", 0o755),
        "lib/kept": Node.file(b"ours"),
        "usr/bin/a": Node.symlink("b"),
    }
    pack.write_into(str(tmp_path), tree)
    assert (tmp_path / "usr/lib/new").read_text() == "ours"
    assert stat.S_IMODE((tmp_path / "usr/lib/new").stat().st_mode) == 0o755
    assert (tmp_path / "usr/lib/kept").read_text() == "theirs"
    assert (tmp_path / "usr/bin/a").readlink() == Path("b")


def test_packed_python_imports_the_programs_and_nothing_from_outside(tmp_path: Path) -> None:
    """The packed tree has all that tiny_init takes: its interpreter sees only that tree."""
    tree = runtime.python_tree("/", ["bootc.initramfs.tiny_init"])
    assert tree == runtime.python_tree("/", ["bootc.initramfs.tiny_init"])
    names = {os.path.basename(path) for path in tree}
    assert {"tiny_init.pyc", "newmount.pyc", "utf_8.pyc"} <= names
    assert not names & {"argparse.pyc", "typing.pyc", "subprocess.pyc"}
    pack.write_into(str(tmp_path), tree)
    if os.geteuid() != 0:
        pytest.skip("chroot needs root")
    # A file: with -c Python 3.13 wants linecache, which no program of the initrd does.
    code = "import bootc.initramfs.tiny_init as t; print(t.__file__)"
    (tmp_path / "program").write_text(code)
    python = os.path.realpath(sys.executable)
    done = process.run(["chroot", str(tmp_path), python, "-I", "-S", "/program"])
    assert done.stdout.strip().endswith("/bootc/initramfs/tiny_init.pyc")


def test_command_line_errors_say_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack.main(["--root", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "holds not one kernel" in said
    assert "hint: name the kernel with --kver" in said
    assert not (tmp_path / "out").exists()
