# SPDX-License-Identifier: Apache-2.0 OR MIT
"""One tree, four ways: the id of the directory and of the OCI image that tar makes of it, by us
and by the reference, of each version and algorithm. `fsck.erofs` accepts the images.

The trees are random ones; COMPOSEFS_TREE may name an unpacked root file system, which comes first.
What tar can't say is removed from the trees: sockets, second names of devices and fifos, times
before 1970.
"""

from __future__ import annotations

import os
import random
import stat as st
import sys
from collections.abc import Iterator
from pathlib import Path

from bootc import process
from bootc.composefs.assemble import XattrMode
from bootc.composefs.digest import Algorithm
from bootc.composefs.erofs_format import FormatVersion
from bootc.composefs.erofs_writer import write_image
from bootc.errors import BootcError
from tests import ocibuild
from tests.interop import tally
from tests.interop.compare_reference import OURS, Form, our_tree, run, scratch
from tests.interop.programs import need_reference
from tests.interop.random_trees import make_tree
from tests.interop.tally import Tally

COUNT = 20
TREE = "COMPOSEFS_TREE"
_FSCK_HINT = "apt-get install -y erofs-utils (Fedora: dnf install -y erofs-utils)"


def layer_of(tree: Path, file: Path) -> bytes:
    """The tar of a tree, with what a layer can say."""
    tar = process.need_program("tar", hint="apt-get install -y tar")
    options = (
        "--format=posix",
        "--xattrs",
        "--xattrs-include=security.capability",
        "--numeric-owner",
    )
    argv = [
        tar,
        "-C",
        str(tree),
        *options,
        "--sort=name",
        "--one-file-system",
        "-cf",
        str(file),
        ".",
    ]
    process.run(argv, timeout=1800)
    return file.read_bytes()


def trees(rng: random.Random, count: int, folder: Path) -> Iterator[Path]:
    named = os.environ.get(TREE)
    if named:
        if not Path(named, "usr").is_dir():
            raise BootcError(f"{named}, from {TREE}, has no usr", hint="name a root file system")
        yield Path(named)
    for number in range(count):
        path = folder / f"tree-{number}"
        path.mkdir()
        make_tree(os.fsencode(path), rng, system=True)
        _adapt(os.fsencode(path))
        yield path


def _adapt(root: bytes) -> None:
    """Remove sockets and second names of special files, and move times before 1970."""
    for folder, _, files in os.walk(root, topdown=False):
        for path in (*(os.path.join(folder, name) for name in files), folder):
            stat = os.lstat(path)
            plain = st.S_ISDIR(stat.st_mode) or st.S_ISREG(stat.st_mode) or st.S_ISLNK(stat.st_mode)
            if st.S_ISSOCK(stat.st_mode) or (not plain and stat.st_nlink > 1):
                os.unlink(path)
        for name in os.listdir(folder):
            _move(os.path.join(folder, name))
    _move(root)


def _move(path: bytes) -> None:
    found = os.lstat(path)
    if found.st_mtime_ns < 0:
        os.utime(path, ns=(0, -found.st_mtime_ns), follow_symlinks=False)


def compare_tree(found: Tally, tree: Path, folder: Path) -> None:
    reference = need_reference()
    fsck = process.need_program("fsck.erofs", hint=_FSCK_HINT)
    layout = folder / "layout"
    source = ocibuild.write_layout(layout, [layer_of(tree, folder / "layer.tar")], how="zstd")
    for algorithm in Algorithm:
        ids: dict[str, dict[FormatVersion, str]] = {}
        for who, program in (("ours", OURS), ("theirs", (reference,))):
            repo = ("--repo", str(folder / f"{who}-{algorithm}"))
            run(*program, *repo, "init", "--insecure", f"--algorithm={algorithm.identifier}")
            done = run(*program, *repo, "oci", "pull", source, "name")
            pulled = found.compare(
                f"oci pull, {who}", done.status, 0, f"{tree}: {done.stderr[:300]}"
            )
            for version in FormatVersion:
                form = Form(
                    version=version,
                    algorithm=algorithm,
                    system=True,
                    xattrs=XattrMode.ALLOWLIST_ONLY,
                )
                made = run(
                    *program, *form.global_options(), "compute-id", *form.options(), str(tree)
                )
                ids.setdefault(f"directory, {who}", {})[version] = _identity(made)
                if pulled:
                    image = (
                        "--erofs-version",
                        str(version.value),
                        *repo,
                        "oci",
                        "compute-id",
                        "name",
                    )
                    made = run(*program, *image)
                    ids.setdefault(f"OCI image, {who}", {})[version] = _identity(made)
        expected = ids.pop("directory, theirs")
        for way, by_version in ids.items():
            for version, identity in by_version.items():
                where = f"{tree}, {version.name} {algorithm}"
                found.compare(f"id: {way}", identity, expected[version], where)
    for version in FormatVersion:
        form = Form(
            version=version,
            algorithm=Algorithm.SHA256,
            system=True,
            xattrs=XattrMode.ALLOWLIST_ONLY,
        )
        root = our_tree(os.fsencode(tree), form)
        image_file = folder / "image"
        image_file.write_bytes(write_image(root, version=version, algorithm=Algorithm.SHA256))
        done = process.run([fsck, str(image_file)], check=False)
        found.compare("fsck.erofs", done.status, 0, f"{tree}, {version.name}: {done.stderr[-300:]}")


def _identity(done: process.Completed) -> str:
    if done.status != 0:
        raise BootcError(f"compute-id failed: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def compare(found: Tally, rng: random.Random, count: int) -> None:
    if os.geteuid() != 0:
        raise BootcError("only root can make directories with everything", hint="run it as root")
    with scratch() as folder:
        for number, tree in enumerate(trees(rng, count, folder)):
            work = folder / f"work-{number}"
            work.mkdir()
            compare_tree(found, tree, work)


if __name__ == "__main__":
    sys.exit(tally.main("compare_os", compare, count=COUNT))
