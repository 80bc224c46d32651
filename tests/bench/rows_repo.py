# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Garbage collection and checking of a repository of 100,000 objects, beside a list of its files.

The objects belong to four layers of a tagged image and to a named EROFS image of 100,000 files, so
both are read. The collector has 5,000 objects to remove each time. The limits are absolute, in
seconds, for an idle machine.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from bootc import process
from bootc.composefs import (
    Algorithm,
    Directory,
    External,
    Leaf,
    Repository,
    Stat,
    write_image,
)
from bootc.composefs.splitstream import OCI_LAYER, OCI_MANIFEST, SplitStreamWriter
from tests.bench.frame import Make, Row, Side, in_process
from tests.bench.sample import Setup

OBJECTS = 100_000
DEAD = 5_000
_LAYERS = 4
_FOLDER = 1_000
_SIZE = 72
_ENTRY = "import sys; from bootc.composefs.cli.main import entry; sys.exit(entry())"


def rows(setup: Setup) -> dict[str, Make]:
    """The rows of this module."""
    return {
        f"cfsctl gc, {OBJECTS} objects, {DEAD} dead": functools.partial(_gc, setup),
        f"cfsctl fsck --metadata-only, {OBJECTS} objects": functools.partial(_fsck, setup),
    }


def _gc(setup: Setup) -> Row:
    path = _repository(setup)
    return _row(setup, path, ("gc",), 2.0, functools.partial(_add_dead, path))


def _fsck(setup: Setup) -> Row:
    return _row(setup, _repository(setup), ("fsck", "--metadata-only"), 3.0)


def _row(
    setup: Setup,
    path: Path,
    arguments: tuple[str, ...],
    seconds: float,
    prepare: functools.partial[None] | None = None,
) -> Row:
    find = process.need_program("find", hint="apt-get install -y findutils")
    env = {"PYTHONPYCACHEPREFIX": str(setup.folder / "pyc"), "PYTHONDONTWRITEBYTECODE": ""}
    argv = (sys.executable, "-c", _ENTRY, "--repo", str(path), *arguments)
    return Row(
        ours=Side(label=f"cfsctl {arguments[0]}", argv=argv, env=env, prepare=prepare),
        theirs=Side(label="find -type f", argv=(find, str(path), "-type", "f")),
        value_max=seconds,
    )


def _repository(setup: Setup) -> Path:
    path = setup.folder / "objects"
    if not path.exists():
        in_process(f"rows_repo:make_repository(Path({str(path)!r}))")
    return path


def make_repository(path: Path) -> None:
    """The repository that all rows have."""
    with Repository.init(path, algorithm=Algorithm.SHA512, secure=False) as repo:
        store = repo.writable_objects()
        digests = [store.store(_content(number)) for number in range(OBJECTS)]
        root = Directory(Stat(0o755))
        for begin in range(0, OBJECTS, _FOLDER):
            folder = root.entries[b"d%d" % begin] = Directory(Stat(0o755))
            for number in range(begin, begin + _FOLDER):
                folder.entries[b"f%d" % number] = Leaf(
                    Stat(0o644), External(_SIZE, digests[number])
                )
        repo.write_image(write_image(root, algorithm=repo.algorithm), "image")
        manifest = SplitStreamWriter(repo.algorithm, OCI_MANIFEST)
        for layer in range(_LAYERS):
            stream = SplitStreamWriter(repo.algorithm, OCI_LAYER)
            for number in range(layer, OBJECTS, _LAYERS):
                stream.inline(b"header" * 100)
                stream.external(digests[number], _SIZE)
            name = f"layer-{layer}"
            manifest.named_ref(name, repo.write_stream(f"oci-{name}", stream.finish()))
        manifest.inline(b"{}")
        repo.write_stream("oci-manifest-sha256:0", manifest.finish())
        repo.tag("oci-manifest-sha256:0", "image")


def _content(number: int) -> bytes:
    return (b"%09d" % number) * 8


def _add_dead(path: Path) -> None:
    with Repository.open(path) as repo:
        store = repo.writable_objects()
        for number in range(OBJECTS, OBJECTS + DEAD):
            store.store(_content(number))
        os.sync()
