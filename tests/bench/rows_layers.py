# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Layers between repositories: GetLayer → PutLayer over varlink, beside a pull of the same layer.

The layer is a tar of 700 MiB (BENCH_LAYER_MIB says another size) of files of 700 bytes to 64 MiB,
as `rows_oci` makes them, in an OCI layout that isn't compressed. Side A is a client that hands the
descriptors of GetLayer to PutLayer, of a server that runs already, as one does that systemd
activated; side B is `oci pull`. So on both sides one interpreter is started. Both begin with an
empty repository without fs-verity and end with a layer that is on the disk.

The row with reflinks makes a btrfs in a file, mounted at a loop device, so it needs root. Both
sides compute the same digests, and A does little else; docs/varlink-composefs.md says why it can't
reach the 0.25 that were wanted.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from bootc import process
from bootc.composefs.digest import Algorithm
from bootc.composefs.pull import import_tar
from bootc.composefs.repository import Repository
from bootc.errors import BootcError
from tests.bench.frame import Make, Row, Side
from tests.bench.rows_oci import _large_tar
from tests.bench.sample import Setup, retire
from tests.ocibuild import TYPES, write_blob

SIZE = int(os.environ.get("BENCH_LAYER_MIB", "700"))
_START_LIMIT = 30.0
_ENTRY = "import sys; from bootc.composefs.cli.main import entry; sys.exit(entry())"
_RELAY = """
import sys
from bootc.composefs.dirfdstream_fds import Incoming
from bootc.varlink import Client

address, source, target, diff_id = sys.argv[1:]
oci, repository = "org.composefs.Oci", "org.composefs.Repository"
with Client.connect(address) as client:
    handles = [
        client.call(f"{repository}.OpenRepository", {"path": path}).parameters["handle"]
        for path in (source, target)
    ]
    params = {"diff_id": diff_id, "consumer_has_cap_dac_override": False}
    fds = []
    for reply in client.stream(f"{oci}.GetLayer", {"handle": handles[0], "params": params}):
        fds += reply.fds.take_all()
        count = reply.parameters["dir_count"]
    asked = {"handle": handles[1], "diff_id": diff_id, "zerocopy": False}
    with Incoming(fds, count) as got:
        client.call(f"{oci}.PutLayer", asked, [got.stream, *got.directories])
"""


def rows(setup: Setup) -> dict[str, Make]:
    """The rows of this module."""
    return {
        "GetLayer to PutLayer, copied": functools.partial(_copied, setup),
        "GetLayer to PutLayer, reflinked": functools.partial(_reflinked, setup),
    }


def _copied(setup: Setup) -> Row:
    return _row(setup.scratch("layers"), setup, ratio_max=1.0)


def _reflinked(setup: Setup) -> Row:
    if os.geteuid() != 0:
        raise BootcError("only root can mount a file system", hint="run it as root")
    mkfs = process.need_program("mkfs.btrfs", hint="apt-get install -y btrfs-progs")
    mount = process.need_program("mount", hint="apt-get install -y mount")
    image = setup.folder / "btrfs"
    image.touch()
    os.truncate(image, (SIZE << 20) * 6 + (1 << 30))
    process.run([mkfs, "-q", str(image)])
    # Not in the scratch folder, which is removed while this is still mounted.
    folder = Path(tempfile.mkdtemp(prefix="bootc-bench-", dir=setup.folder.parent))
    process.run([mount, "-o", "loop", str(image), str(folder)])
    atexit.register(_unmount, folder)
    return _row(folder, setup, ratio_max=0.25)


def _unmount(folder: Path) -> None:
    process.run(["umount", str(folder)])
    folder.rmdir()


def _row(folder: Path, setup: Setup, *, ratio_max: float) -> Row:
    layout, source = folder / "layout", folder / "source"
    diff_id = _write_layout(layout)
    if not source.exists():
        Repository.init(source, algorithm=Algorithm.SHA256, secure=False).close()
        blob = layout / "blobs/sha256" / diff_id.removeprefix("sha256:")
        with Repository.open(source) as repo, open(blob, "rb", buffering=0) as tar:
            import_tar(repo, tar, diff_id)
    env = {
        "BOOTC_LOG": "warning",
        "PYTHONPYCACHEPREFIX": str(setup.folder / "pyc"),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    ours, theirs = folder / "sent", folder / "pulled"
    address = f"unix:{_serve(env)}"
    relay = (sys.executable, "-c", _RELAY, address, str(source), str(ours), diff_id)
    pulling = ("--repo", str(theirs), "oci", "pull", f"oci:{layout}", "t")
    empty = functools.partial(_empty, ours, theirs)
    return Row(
        ours=Side(label="GetLayer, PutLayer", argv=relay, env=env, prepare=empty),
        theirs=Side(
            label="cfsctl oci pull",
            argv=(sys.executable, "-c", _ENTRY, *pulling),
            env=env,
            prepare=empty,
        ),
        ratio_max=ratio_max,
    )


def _serve(env: Mapping[str, str]) -> str:
    """The socket of a server that runs until this program ends."""
    stack = ExitStack()
    atexit.register(stack.close)
    path = stack.enter_context(tempfile.TemporaryDirectory(prefix="bootc-bench-")) + "/socket"
    argv = [sys.executable, "-m", "bootc.composefs.cli.main", "varlink", "--address", path]
    child = stack.enter_context(process.running(argv, env=env))
    deadline = time.monotonic() + _START_LIMIT
    while not os.path.exists(path):
        if child.poll() is not None or time.monotonic() > deadline:
            raise BootcError("the server does not start", hint=shlex.join(argv))
        time.sleep(0.02)
    return path


def _empty(*repositories: Path) -> None:
    for path in repositories:
        retire(path)
        Repository.init(path, algorithm=Algorithm.SHA256, secure=False).close()
    os.sync()


def _write_layout(layout: Path) -> str:
    """The layer as an image, in constant memory; returns its diff id."""
    known = layout / "diff-id"
    if known.exists():
        return known.read_text()
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    digest = hashlib.sha256()
    size = 0
    with open(layout / "blob", "wb") as file:
        pieces: Iterator[bytes] = _large_tar(SIZE << 20)
        for piece in pieces:
            digest.update(piece)
            size += file.write(piece)
    (layout / "blob").rename(blobs / digest.hexdigest())
    diff_id = f"sha256:{digest.hexdigest()}"
    rootfs = {"type": "layers", "diff_ids": [diff_id]}
    config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            **write_blob(layout, json.dumps(config).encode()),
        },
        "layers": [{"mediaType": TYPES["none"], "digest": diff_id, "size": size}],
    }
    entry = {
        "mediaType": manifest["mediaType"],
        **write_blob(layout, json.dumps(manifest).encode()),
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    known.write_text(diff_id)
    return diff_id
