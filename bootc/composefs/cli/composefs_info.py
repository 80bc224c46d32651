# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`composefs-info COMMAND IMAGE…`: what is in an image. Specification: composefs-info(1).

    ls               names, link targets and objects
    dump             a dump file
    objects          paths of the objects of all images, sorted, each once
    missing-objects  those of them that aren't below --basedir
    measure-file     fs-verity digests (sha256) of any files

`--filter NAME`, which may be repeated, takes only these entries of the root. See listing for the
formats.
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bootc import fs
from bootc.composefs.cli import classic
from bootc.composefs.cli.classic import UsageError
from bootc.composefs.digest import Algorithm, digest_fd
from bootc.composefs.erofs_format import FormatVersion
from bootc.composefs.erofs_image import read_superblock
from bootc.composefs.erofs_reader import read_image
from bootc.composefs.listing import info_lines, list_objects, ls_lines
from bootc.errors import BootcError
from bootc.tree import Directory

USAGE = """\
usage: composefs-info [OPTIONS] COMMAND IMAGE...
  ls               list names, link targets and objects
  dump             print a dump file
  objects          list the objects that the images refer to
  missing-objects  list those that are not below the base directory
  measure-file     print the fs-verity digests of files
  --basedir=DIR    the directory of the objects, for missing-objects
  --filter=NAME    take only this entry of the root (may be repeated)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoOptions:
    """The options."""

    names: frozenset[bytes]
    basedir: str | None


def load_image(path: str) -> tuple[FormatVersion, Directory]:
    """(version, tree) of the image file `path`."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise BootcError(f"{path}: the file is empty, so it is no image")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            version = read_superblock(view, path).version
            return version, read_image(view, path, as_is=True)


def _print(lines: Sequence[str]) -> None:
    # Whole: an image that turns out to be damaged must not leave half of a list.
    sys.stdout.write("".join([line + "\n" for line in lines]))


def _ls(paths: Sequence[str], options: InfoOptions) -> None:
    for path in paths:
        _print(list(ls_lines(load_image(path)[1], options.names)))


def _dump(paths: Sequence[str], options: InfoOptions) -> None:
    for path in paths:
        version, root = load_image(path)
        _print(list(info_lines(root, version, options.names)))


def _find_objects(paths: Sequence[str], options: InfoOptions) -> list[bytes]:
    found: set[bytes] = set()
    for path in paths:
        found |= list_objects(load_image(path)[1], options.names)
    return sorted(found)


def _objects(paths: Sequence[str], options: InfoOptions) -> None:
    _print([os.fsdecode(path) for path in _find_objects(paths, options)])


def _missing_objects(paths: Sequence[str], options: InfoOptions) -> None:
    missing = _find_objects(paths, options)
    if options.basedir is not None:
        with fs.open_directory(options.basedir) as base:
            missing = [path for path in missing if not _exists(path, base)]
    _print([os.fsdecode(path) for path in missing])


def _exists(path: bytes, base: int) -> bool:
    try:
        os.stat(path.lstrip(b"/"), dir_fd=base)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _measure_file(paths: Sequence[str], options: InfoOptions) -> None:
    for path in paths:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BootcError(f"{path} is not a regular file")
            _print([digest_fd(file.fileno(), Algorithm.SHA256).hex()])


COMMANDS: dict[str, Callable[[Sequence[str], InfoOptions], None]] = {
    "ls": _ls,
    "dump": _dump,
    "objects": _objects,
    "missing-objects": _missing_objects,
    "measure-file": _measure_file,
}


def info(argv: Sequence[str]) -> None:
    """Do what the command line says."""
    given, operands = classic.split_options(argv, ("basedir=", "filter="))
    names = [value for name, value in given if name == "--filter"]
    for name in names:
        if "/" in name:
            raise BootcError(f"--filter={name}: a filter is a name in the root, not a path")
    if not operands:
        raise UsageError("no COMMAND is given")
    command = COMMANDS.get(operands[0])
    if command is None:
        raise UsageError(f"there is no command {operands[0]!r}")
    if len(operands) == 1:
        raise UsageError("no IMAGE is given")
    options = InfoOptions(
        names=frozenset(map(os.fsencode, names)), basedir=dict(given).get("--basedir")
    )
    command(operands[1:], options)


def main(argv: Sequence[str]) -> int:
    """Run the tool and return the exit status."""
    return classic.run("composefs-info", USAGE, info, argv)


def entry() -> None:
    """The console script."""
    classic.script(main)
