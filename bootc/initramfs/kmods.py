# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Which kernel modules the tiny initrd holds, uncompressed, and in what order they load.

`modules.dep` has a line `path: path…` for each module, with all that it needs; `modules.builtin`
lists what needs no loading. Names compare with `-` as `_`.
"""

from __future__ import annotations

import gzip
import lzma
import os
from dataclasses import dataclass

from bootc.errors import BootcError, FormatError
from bootc.initramfs import rootpath
from bootc.initramfs.cpio import Node, Tree

FOLDER = "usr/lib/bootc-initrd/modules"
_SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A packed module; `at_start` ones are loaded before the root is looked for."""

    name: str
    path: str
    needs: tuple[str, ...]
    at_start: bool


def module_name(path: str) -> str:
    """The module's name as the kernel writes it."""
    base = os.path.basename(path)
    for suffix in _SUFFIXES:
        base = base.removesuffix(suffix)
    return base.replace("-", "_")


def only_kernel(root: str) -> str:
    """The version of the one kernel in `root`."""
    folder = os.path.join(root, rootpath.resolve(root, "usr/lib/modules")[0])
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = [name for name in names if os.path.exists(f"{folder}/{name}/modules.dep")]
    if len(found) != 1:
        said = ", ".join(found) or "none with a modules.dep"
        raise BootcError(
            f"{root}/usr/lib/modules holds not one kernel but: {said}",
            hint="name the kernel with --kver",
        )
    return found[0]


def plan_modules(dependencies: str, builtin: str, names: list[str], source: str) -> list[Module]:
    """The modules to pack for `names`, each after those that it needs. Built-in ones are skipped.

    `dependencies` and `builtin` are the texts of modules.dep and modules.builtin; a name that is
    in neither is an error. File systems load on demand, as do those that are only needed.
    """
    paths: dict[str, str] = {}
    needs: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(dependencies.splitlines(), start=1):
        path, colon, rest = line.partition(":")
        if not colon:
            raise FormatError(source, f"line {number}", "has no colon")
        paths[module_name(path)] = path
        needs[module_name(path)] = tuple(module_name(word) for word in rest.split())
    inside = {module_name(line) for line in builtin.splitlines()}
    wanted = [name.replace("-", "_") for name in names]
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in order or name in inside:
            return
        if name not in paths:
            raise BootcError(f"{source} has no module {name}, and it is not built in")
        for needed in needs[name]:
            visit(needed)
        order[name] = None

    for name in wanted:
        visit(name)
    return [
        Module(
            name=name,
            path=paths[name],
            needs=tuple(needed for needed in needs[name] if needed in order),
            at_start=name in wanted and not paths[name].startswith("kernel/fs/"),
        )
        for name in order
    ]


def _decompress(path: str, data: bytes) -> bytes:
    try:
        if path.endswith(".xz"):
            return lzma.decompress(data)
        if path.endswith(".gz"):
            return gzip.decompress(data)
        if path.endswith(".zst"):
            import zstandard  # a package: only where modules are packed that way

            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except (lzma.LZMAError, OSError, EOFError) as error:
        raise FormatError(path, None, f"does not decompress: {error}") from error
    return data


def module_tree(root: str, kver: str, names: list[str]) -> Tree:
    """The modules `names` of kernel `kver` with what they need, and the index of `tiny_init`."""
    folder = f"usr/lib/modules/{kver}"
    if not rootpath.exists(root, f"{folder}/modules.dep"):
        raise BootcError(
            f"{root}/{folder} has no modules.dep", hint=f"run: depmod -b {root} {kver}"
        )
    dependencies = rootpath.read(root, f"{folder}/modules.dep").decode()
    builtin = rootpath.read(root, f"{folder}/modules.builtin").decode()
    source = os.path.join(root, folder, "modules.dep")
    modules = plan_modules(dependencies, builtin, names, source)
    tree: Tree = {}
    index = ""
    for module in modules:
        data = _decompress(module.path, rootpath.read(root, f"{folder}/{module.path}"))
        tree[f"{FOLDER}/{module.name}.ko"] = Node.file(data)
        index += " ".join(["start" if module.at_start else "demand", module.name, *module.needs])
        index += "\n"
    tree[f"{FOLDER}/index"] = Node.file(index.encode())
    return tree
