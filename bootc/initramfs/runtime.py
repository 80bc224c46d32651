# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The smallest Python that runs given modules: interpreter, shared libraries, compiled modules.

What is needed is found by asking the interpreter of the root itself (`trace`), so the result fits
it whatever Python runs this.
"""

from __future__ import annotations

import base64
import glob
import os
import sys

from bootc import process
from bootc.errors import BootcError
from bootc.initramfs import elf, rootpath
from bootc.initramfs.cpio import Node, Tree
from bootc.jsonutil import read_object

_DEFAULT_LIBRARIES = ("/lib", "/usr/lib", "/lib64", "/usr/lib64")
_PACKAGES = ("usr/lib/python3/dist-packages", "usr/lib/python3*/site-packages")
"""Where distributions put packages; -S keeps them off the interpreter's own path."""


def library_folders(root: str) -> list[str]:
    """The folders that the root's dynamic linker searches, in order."""
    folders: list[str] = []
    pending = ["/etc/ld.so.conf"]
    while pending:
        path = pending.pop(0)
        if not rootpath.exists(root, path):
            continue
        for line in rootpath.read(root, path).decode().splitlines():
            words = line.split("#")[0].split()
            if words[:1] == ["include"]:
                found = sorted(glob.glob(os.path.join(root, words[1].lstrip("/"))))
                pending += [name.removeprefix(root.rstrip("/")) for name in found]
            else:
                folders += words
    return [*dict.fromkeys([*folders, *_DEFAULT_LIBRARIES])]


def add_program(tree: Tree, root: str, path: str) -> None:
    """Put an ELF program or library into `tree` with all that its dynamic linker will load."""
    folders = library_folders(root)
    pending = [path]
    seen: set[str] = set()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        linkage = elf.read_linkage(rootpath.add_file(tree, root, path), path)
        if linkage.interpreter is not None:
            pending.append(linkage.interpreter)
        origin = os.path.dirname(path)
        own = [part.replace("${ORIGIN}", "$ORIGIN") for part in linkage.search]
        search = [*(part.replace("$ORIGIN", origin) for part in own), *folders]
        pending += [_find_library(root, name, search, path) for name in linkage.needed]


def _find_library(root: str, name: str, folders: list[str], wanted_by: str) -> str:
    for folder in folders:
        candidate = f"{folder}/{name}"
        if rootpath.exists(root, candidate):
            return candidate
    raise BootcError(f"{wanted_by} needs {name}, which is not in {root}")


def find_package(root: str) -> str:
    """The folder, as seen from `root`, that holds the package `bootc` there."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.path.realpath(root) == "/":
        return here
    for pattern in _PACKAGES:
        for folder in sorted(glob.glob(os.path.join(root, pattern))):
            if os.path.isdir(f"{folder}/bootc/initramfs"):
                return "/" + os.path.relpath(folder, root)
    raise BootcError(
        f"{root} holds no bootc package",
        hint=f"install bootc into {root}, or run this inside of it with --root /",
    )


def python_tree(root: str, modules: list[str]) -> Tree:
    """The interpreter of `root` and what it takes to import `modules` with `python3 -I -S`."""
    trace = os.path.join(os.path.dirname(os.path.abspath(__file__)), "trace.py")
    with open(trace, encoding="utf-8") as file:
        source = file.read()
    inside = os.path.realpath(root) == "/"
    python = [sys.executable] if inside else ["chroot", root, "/usr/bin/python3"]
    argv = [*python, "-I", "-S", "-", find_package(root), *modules]
    said = process.run(argv, stdin=source, timeout=60)
    document = read_object(said.stdout, "the module trace")
    tree: Tree = {}
    executable = document.text("executable")
    add_program(tree, root, executable)
    for path in document.texts("extensions"):
        add_program(tree, root, path)
    modules_found = document.table("modules")
    for path in modules_found.value:
        code = base64.b64decode(modules_found.text(path))
        tree[path.lstrip("/") + ".pyc"] = Node.file(code)
    stdlib = document.text("stdlib").lstrip("/")
    # The interpreter knows its prefix by this name; the module itself is frozen into it.
    tree.setdefault(f"{stdlib}/os.pyc", Node.file(b""))
    if executable != "/usr/bin/python3":
        tree.setdefault("usr/bin/python3", Node.symlink(executable))
    return tree
