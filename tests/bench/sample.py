# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the rows measure on: a scratch folder, a large file, and a tree like an operating system's.

The tree that is made has 25,200 inodes and about 790 MB: 2,000 directories, 20,000 regular files
whose sizes are spread as in a distribution's root (half of them below 4 KiB, a few of megabytes), a
tenth of them equal to another one, symbolic links, hard links. What the files hold packs like a
distribution's (gzip leaves 0.45 of it, and 0.42 of a Debian with podman and vim), as unpacking is
much of what reading a layer costs. The same seed makes the same tree.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import stat
from dataclasses import dataclass
from pathlib import Path

from bootc.errors import BootcError
from tests.bench.frame import MIB, in_process

FOLDERS = 2000
FILES = 20_000
LINKS = 3600
WORDS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What one run of the benchmarks works with. `given` is the tree of --tree."""

    folder: Path
    given: Path | None = None

    def file(self, size: int) -> Path:
        """A file of `size` random bytes, made when it is first asked for."""
        path = self.folder / f"random-{size}"
        if not path.exists():
            with open(path, "wb") as file:
                left = size
                while left:
                    left -= file.write(os.urandom(min(left, MIB)))
        return path

    def tree(self) -> Path:
        """A root file system of at least 25,000 inodes and 500 MB. It is only read."""
        if self.given is not None:
            if not self.given.is_dir():
                raise BootcError(
                    f"{self.given} is no directory", hint="give --tree an unpacked root file system"
                )
            return self.given
        path = self.folder / "tree"
        if not path.exists():
            in_process(f"sample:make_tree(Path({str(path)!r}))")
        return path

    def scratch(self, name: str) -> Path:
        """A folder of this row, on the same file system as the tree that is made."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path


_NUMBERS = itertools.count()


def retire(path: Path) -> None:
    """Put a tree that a run made out of the way. It takes no room, but nothing is deleted.

    For minutes ext4 passes over each inode that was just deleted whenever it looks for a free one:
    runs that begin by deleting what the one before made would measure that, more than their own
    work. So files become empty; what is shared with another tree or sealed stays as it is.
    """
    if not path.exists():
        return
    place = path.parent / "retired" / f"{path.name}-{next(_NUMBERS)}"
    place.parent.mkdir(exist_ok=True)
    path.rename(place)
    for folder, _, names in os.walk(place):
        for name in names:
            file = os.path.join(folder, name)
            found = os.lstat(file)
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size:
                with contextlib.suppress(OSError):
                    os.truncate(file, 0)


def make_contents(rng: random.Random, size: int) -> bytes:
    """`size` bytes of words that are drawn by Zipf's law: the n-th has the chance 1/n."""
    words = [rng.randbytes(rng.randint(3, 12)) for _ in range(WORDS)]
    chances = list(itertools.accumulate(1 / (rank + 1) for rank in range(WORDS)))
    # Each has three bytes at least.
    return b"".join(rng.choices(words, cum_weights=chances, k=size // 3 + 1))[:size]


def make_tree(root: Path, *, seed: int = 1, files: int = FILES) -> None:
    """Make a tree; `files` scales everything in it."""
    rng = random.Random(seed)
    contents = make_contents(rng, 16 * MIB)
    folders = [root, root / "usr", root / "boot", root / "sysroot", root / "run", root / "etc"]
    for folder in folders:
        folder.mkdir()
    while len(folders) < FOLDERS * files // FILES:
        parent = rng.choice(folders[-400:])
        if len(parent.parts) - len(root.parts) < 9:
            folder = parent / f"folder-{len(folders)}"
            folder.mkdir()
            folders.append(folder)
    made: list[Path] = []
    for number in range(files):
        path = rng.choice(folders[5:] or folders) / f"file-{number}.{rng.choice('abcdef') * 3}"
        if made and rng.random() < 0.1:
            path.write_bytes(rng.choice(made[-50:]).read_bytes())
        else:
            size = min(int(rng.lognormvariate(8.2, 2.2)), 15 * MIB)
            at = rng.randrange(MIB)
            path.write_bytes(b"%d " % number + contents[at : at + size])
        path.chmod(rng.choice((0o644, 0o644, 0o755, 0o600)))
        os.utime(path, ns=(0, 1_600_000_000_000_000_000 + rng.randrange(10**17)))
        made.append(path)
    for number in range(LINKS * files // FILES):
        path = rng.choice(folders) / f"link-{number}"
        if rng.random() < 0.1:
            path.hardlink_to(rng.choice(made))
        else:
            path.symlink_to(f"../{rng.choice(made).name}")
