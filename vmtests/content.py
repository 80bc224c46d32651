# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Content keys: what a built thing was made from, and which input changed since.

A key is a mapping input → digest. The thing keeps its mapping (an image as a label, a disk as a
file beside it), so that the reason for a rebuild can be told input by input.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Inputs:
    """Named inputs and the digest of each; `key` stands for all of them."""

    digests: Mapping[str, str]

    @property
    def key(self) -> str:
        """16 hex digits over every input, by name."""
        text = "\n".join(f"{name}={value}" for name, value in sorted(self.digests.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def changes(self, old: Mapping[str, str]) -> list[str]:
        """One line for each input that is new, gone or different from `old`."""
        lines = []
        for name in sorted({*self.digests, *old}):
            before, now = old.get(name), self.digests.get(name)
            if before == now:
                continue
            if before is None:
                lines.append(f"{name}: new")
            elif now is None:
                lines.append(f"{name}: gone")
            else:
                lines.append(f"{name}: {before} → {now}")
        return lines


def text_digest(text: str) -> str:
    """12 hex digits; a short text without blanks stands for itself."""
    if text and len(text) <= 40 and text.isprintable() and " " not in text:
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def files_digest(root: Path, names: Iterable[Path]) -> str:
    """12 hex digits over the names (relative to `root`), modes and contents of files."""
    total = hashlib.sha256()
    for path in sorted(names):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        mode = path.stat().st_mode & 0o111 != 0
        total.update(f"{path.relative_to(root)}\0{mode}\0{content}\n".encode())
    return total.hexdigest()[:12]


def package_files(package: Path) -> list[Path]:
    """The files that go into a wheel: all below `package` but compiled ones."""
    found = []
    for folder, folders, names in os.walk(package):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found += [Path(folder) / name for name in names if not name.endswith(".pyc")]
    return found
