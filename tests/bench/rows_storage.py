# SPDX-License-Identifier: Apache-2.0 OR MIT
"""An image of podman's storage into a repository: read directly, against read through skopeo.

The image is the sample tree as one layer, imported by podman into a store on the file system on
which the repositories are. Both sides are our `cfsctl oci pull`; what differs is `--local-fetch`.
The repositories do without fs-verity, which most hosts have not. Where the file system has no
reflinks, the direct way makes hard links; the other one always writes what it got.
"""

from __future__ import annotations

import functools
import shutil
import sys
from pathlib import Path

from bootc import process
from bootc.errors import BootcError
from tests.bench.frame import Make, Row, Side
from tests.bench.rows_oci import new_repository
from tests.bench.sample import Setup

_ENTRY = "import sys; from bootc.composefs.cli.main import entry; sys.exit(entry())"
_IMAGE = "localhost/bench:1"


def rows(setup: Setup) -> dict[str, Make]:
    """The rows of this module."""
    return {"oci pull, podman's storage, through skopeo": functools.partial(_pull, setup)}


def _pull(setup: Setup) -> Row:
    store = _store(setup)
    process.need_program("skopeo", hint="apt-get install -y skopeo (Fedora: dnf install -y skopeo)")
    ours = _side(setup, store, "auto", "cfsctl oci pull, directly")
    theirs = _side(setup, store, "disabled", "cfsctl oci pull, by skopeo")
    return Row(ours=ours, theirs=theirs, ratio_max=0.5, rss_max=150)


def _side(setup: Setup, store: Path, how: str, label: str) -> Side:
    repo = setup.folder / f"storage-{how}"
    imgref = f"containers-storage:[overlay@{store}/graph+{store}/run]{_IMAGE}"
    pull = ("oci", "pull", f"--local-fetch={how}", imgref, "t")
    # What skopeo leaves mounted goes with the mount namespace.
    unshare = process.need_program("unshare", hint="apt-get install -y util-linux")
    return Side(
        label=label,
        argv=(unshare, "--mount", sys.executable, "-c", _ENTRY, "--repo", str(repo), *pull),
        env={
            "BOOTC_LOG": "warning",
            "PYTHONPYCACHEPREFIX": str(setup.folder / "pyc"),
            "PYTHONDONTWRITEBYTECODE": "",
        },
        prepare=functools.partial(new_repository, repo),
    )


def _store(setup: Setup) -> Path:
    """A store of podman's with the sample tree as an image of one layer."""
    store = setup.folder / "storage"
    if not store.exists():
        podman = process.need_program("podman", hint="apt-get install -y podman")
        tar = process.need_program("tar", hint="apt-get install -y tar")
        unshare = process.need_program("unshare", hint="apt-get install -y util-linux")
        packed = setup.folder / "storage.tar"
        try:
            process.run([tar, "-C", str(setup.tree()), "--numeric-owner", "-cf", str(packed), "."])
            folders = ("--root", f"{store}/graph", "--runroot", f"{store}/run")
            driver = ("--storage-driver", "overlay")
            argv = (unshare, "--mount", podman, *folders, *driver, "import", str(packed), _IMAGE)
            process.run(argv)
        except BootcError:
            shutil.rmtree(store, ignore_errors=True)
            raise
        finally:
            packed.unlink(missing_ok=True)
    return store
