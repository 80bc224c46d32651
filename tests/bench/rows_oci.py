# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Pulling images: against skopeo's copy into container storage and the reference's pull, and the
memory that a large layer takes.

The image is one gzip layer of the sample tree, in an OCI layout on the file system on which
everything is stored. No side syncs less than the other: skopeo does not sync at all, ours and the
reference once. The repositories do without fs-verity, which neither container storage nor most
hosts have. The large layers are tars of compressible files of 700 bytes to 64 MiB; the one of 5 GiB
has about 150,000 members, of which the image is made, too.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from bootc import process
from bootc.composefs.digest import Algorithm
from bootc.composefs.repository import Repository
from bootc.errors import BootcError
from tests.bench.frame import Make, Row, Side
from tests.bench.sample import Setup, retire
from tests.interop.programs import need_reference
from tests.ocibuild import END, TYPES, folder, header, write_blob

_ENTRY = "import sys; from bootc.composefs.cli.main import entry; sys.exit(entry())"
_ENV = {"BOOTC_LOG": "warning", "RUST_BACKTRACE": "0"}
_SIZES = (700, 3000, 9000, 30_000, 120_000)
_LARGE = 64 << 20
_EVERY = 200
_RARELY = 20_000
"""Of so many files one is large, in layers with as many inodes as their size allows."""
_PIECE = 1 << 20


def rows(setup: Setup) -> dict[str, Make]:
    """The rows of this module."""
    return {
        "oci pull, a gzip layer, skopeo copy": functools.partial(_skopeo, setup),
        "oci pull, a gzip layer, the reference": functools.partial(_reference, setup),
        "oci pull, a layer of 1 GiB": functools.partial(_memory, setup, 1),
        "oci pull, a layer of 5 GiB": functools.partial(_memory, setup, 5),
    }


def _ours(setup: Setup, layout: Path) -> Side:
    repo = setup.folder / "oci-ours"
    argv = (sys.executable, "-c", _ENTRY, "--repo", str(repo), "oci", "pull", f"oci:{layout}", "t")
    env = {**_ENV, "PYTHONPYCACHEPREFIX": str(setup.folder / "pyc"), "PYTHONDONTWRITEBYTECODE": ""}
    prepare = functools.partial(new_repository, repo)
    return Side(label="cfsctl oci pull", argv=argv, env=env, prepare=prepare)


def new_repository(path: Path) -> None:
    """An empty, insecure repository instead of what was there; everything is on the disk."""
    retire(path)
    Repository.init(path, algorithm=Algorithm.SHA256, secure=False).close()
    os.sync()


def _skopeo(setup: Setup) -> Row:
    skopeo = process.need_program(
        "skopeo", hint="apt-get install -y skopeo (Fedora: dnf install -y skopeo)"
    )
    layout = _layout(setup)
    stored = setup.folder / "oci-skopeo"
    target = f"containers-storage:[overlay@{stored}/graph+{stored}/run]localhost/bench:1"
    # The overlay driver leaves its folder mounted on itself: in a mount namespace that goes, too.
    unshare = process.need_program("unshare", hint="apt-get install -y util-linux")
    copy = (skopeo, "--insecure-policy", "copy", "--quiet", f"oci:{layout}", target)
    argv = (unshare, "--mount", *copy)
    prepare = functools.partial(_retire_storage, stored)
    theirs = Side(label="skopeo copy", argv=argv, prepare=prepare)
    return Row(ours=_ours(setup, layout), theirs=theirs, ratio_max=0.4)


def _retire_storage(path: Path) -> None:
    retire(path)
    os.sync()


def _reference(setup: Setup) -> Row:
    program = need_reference()
    layout = _layout(setup)
    repo = setup.folder / "oci-theirs"
    argv = (program, "--repo", str(repo), "oci", "pull", f"oci:{layout}:latest", "t")
    prepare = functools.partial(new_repository, repo)
    theirs = Side(label="the reference", argv=argv, env=_ENV, prepare=prepare)
    return Row(ours=_ours(setup, layout), theirs=theirs, ratio_max=1.2)


def _memory(setup: Setup, gibibytes: int) -> Row:
    layout = setup.folder / f"layer-{gibibytes}"
    if not layout.exists():
        _write_layout(layout, _large_tar(gibibytes << 30, every=_RARELY))
    return Row(ours=_ours(setup, layout), rss_max=200, runs=2)


def _layout(setup: Setup) -> Path:
    """The sample tree as an image of one gzip layer."""
    layout = setup.folder / "layer-tree"
    if not layout.exists():
        tar = process.need_program("tar", hint="apt-get install -y tar")
        argv = [tar, "-C", str(setup.tree()), "--numeric-owner", "--format=pax", "-c", "."]
        with process.running(argv, stdout=process.PIPE) as child:
            assert child.stdout is not None
            _write_layout(layout, iter(functools.partial(child.stdout.read, _PIECE), b""))
            if child.wait(600) != 0:
                shutil.rmtree(layout)
                raise BootcError("tar failed to pack the sample tree")
    return layout


def _large_tar(size: int, *, every: int = _EVERY) -> Iterator[bytes]:
    """A tar of about `size` bytes: files that begin with something of their own, then zeros."""
    yield folder(b"usr")
    done = number = 0
    while done < size:
        length = _LARGE if number % every == 0 else _SIZES[number % len(_SIZES)]
        yield header(b"usr/%08d" % number, length)
        for at in range(0, length, _PIECE):
            piece = min(_PIECE, length - at)
            yield (b"%d %d" % (number, at)).ljust(piece, b"\0")
        yield bytes(-length % 512)
        done += length + 512
        number += 1
    yield END


def _write_layout(layout: Path, tar: Iterator[bytes]) -> None:
    """Write an OCI layout of one layer, gzipped on the way, in constant memory."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    plain, packed = hashlib.sha256(), hashlib.sha256()
    with open(layout / "blob", "wb") as file:
        for piece in tar:
            plain.update(piece)
            out = packer.compress(piece)
            packed.update(out)
            file.write(out)
        out = packer.flush()
        packed.update(out)
        file.write(out)
        size = file.tell()
    (layout / "blob").rename(blobs / packed.hexdigest())
    diff_ids = [f"sha256:{plain.hexdigest()}"]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    layer = {"mediaType": TYPES["gzip"], "digest": f"sha256:{packed.hexdigest()}", "size": size}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            **write_blob(layout, json.dumps(config).encode()),
        },
        "layers": [layer],
    }
    entry = {
        "mediaType": manifest["mediaType"],
        **write_blob(layout, json.dumps(manifest).encode()),
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
