# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The build id: proves which code is running.

It is the SHA-256, in hexadecimal, over all `.py` files of the package in the order of their
relative names (as bytes, `/` between components): for each file its name, a zero byte, its size as
eight bytes little endian, and its content.
"""

from __future__ import annotations

import hashlib
import os

import bootc


def build_id(package: str | None = None) -> str:
    """The build id of the package folder, ours by default."""
    root = package or os.path.dirname(os.path.abspath(bootc.__file__))
    names = sorted(
        os.fsencode(os.path.relpath(os.path.join(folder, name), root))
        for folder, _, files in os.walk(root)
        for name in files
        if name.endswith(".py")
    )
    hasher = hashlib.sha256()
    for name in names:
        with open(os.path.join(os.fsencode(root), name), "rb") as file:
            data = file.read()
        hasher.update(name + b"\0" + len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()
