# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The programs of others that ours are compared with, and where they are looked for.

* The C tools (mkcomposefs, composefs-info, composefs-dump): C_MKCOMPOSEFS_PATH names its
  mkcomposefs, the others lie beside it; else PATH.
* The reference's cfsctl: CFSCTL_REFERENCE, else PATH.

Our own programs, which may be on PATH by the same names, are passed over.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bootc.errors import BootcError

C_TOOLS = "C_MKCOMPOSEFS_PATH"
REFERENCE = "CFSCTL_REFERENCE"
_HINTS = {
    C_TOOLS: (
        "install Debian's package composefs (forky or newer; its files unpacked anywhere will do),"
        f" and let {C_TOOLS} name its mkcomposefs"
    ),
    REFERENCE: (
        "cargo install composefs-ctl --root FOLDER (cargo >= 1.88, libssl-dev, pkg-config), and"
        f" let {REFERENCE} be FOLDER/bin/cfsctl"
    ),
}


def need_c_tool(name: str = "mkcomposefs") -> str:
    """The path of one of the C tools. Raises `BootcError` that says how to get it."""
    return _need(C_TOOLS, name, beside="mkcomposefs")


def need_reference() -> str:
    """The path of the reference's cfsctl. Raises `BootcError` that says how to get it."""
    return _need(REFERENCE, "cfsctl", beside="cfsctl")


def _need(variable: str, name: str, *, beside: str) -> str:
    named = os.environ.get(variable)
    if named:
        path = Path(named) if name == beside else Path(named).parent / name
        if os.access(path, os.X_OK):
            return str(path)
        raise BootcError(f"{path}, from {variable}, is no program", hint=_HINTS[variable])
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = Path(folder) / name
        if os.access(path, os.X_OK) and not _is_ours(path):
            return str(path)
    raise BootcError(
        f"{name} of the {'C tools' if variable == C_TOOLS else 'reference'} is not on PATH",
        hint=_HINTS[variable],
    )


def _is_ours(path: Path) -> bool:
    """Whether it is a script of a Python package, as ours are."""
    if path.parent == Path(sys.executable).parent:
        return True
    with open(path, "rb") as file:
        first = file.readline(200)
    return first.startswith(b"#!") and b"python" in first
