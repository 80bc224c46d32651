# SPDX-License-Identifier: Apache-2.0 OR MIT
"""podman's stores, read directly: against the images that went in, and against podman itself.

    STORAGE_PODMANS=podman:/opt/podman-5.4:/opt/podman-5.8 nox -s interop -- composefs storage

STORAGE_PODMANS names the podmans, separated by colons (default: the one on PATH). Each makes stores
from OCI layouts with plain, gzip and zstd layers, and builds one image. Compared are

* the diff id of each layer with the tar that is put together again, its CRCs included;
* manifest, config, layers, split streams and the composefs image with those of the layout;
* where podman says its stores are, by `podman info`, with configurations of several kinds.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bootc import process
from bootc.composefs.assemble import assemble, commit_image
from bootc.composefs.digest import Algorithm
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.oci.layout import LocalStorage, open_source
from bootc.storage.options import Rules, find_options
from bootc.storage.source import StorageSource, find_stored
from tests.interop import tally
from tests.interop.tally import Tally
from tests.ocibuild import END, folder, member, pax, system_tar, write_layout

PODMANS = "STORAGE_PODMANS"
_QUIET = {"PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}
_BUILD = "FROM scratch\nCOPY Containerfile /usr/copied\nCOPY Containerfile /usr/bin/large\n"
_ENV = ("CONTAINERS_STORAGE_CONF", "STORAGE_OPTS", "STORAGE_DRIVER", "XDG_CONFIG_HOME", "HOME")


def podmans() -> list[str]:
    """The podmans to compare with."""
    return [name for name in os.environ.get(PODMANS, "podman").split(":") if name]


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder with a short path: podman takes no run root of more than 50 characters."""
    with tempfile.TemporaryDirectory(prefix="cs-", dir="/tmp") as name:
        yield Path(name)


def _tars() -> list[bytes]:
    second = (
        folder(b"usr")
        + member(b"usr/second", b"q" * 5000)
        + pax(path=b"usr/" + b"long" * 50)
        + member(b"ignored", b"p" * 700)
        + member(b"usr/.wh.big")
        + END
        + bytes(9000)
    )
    return [system_tar(bytes(range(256)) * 20_000), second]


class Store:
    """A store that one podman fills."""

    def __init__(self, podman: str, top: Path) -> None:
        self.podman = podman
        self.top = top
        self.argv = [podman, "--root", f"{top}/graph", "--runroot", f"{top}/run"]
        self.argv += ["--storage-driver", "overlay"]

    def run(self, *argv: str) -> str:
        # What the driver mounts goes with the mount namespace.
        return process.run(["unshare", "--mount", *self.argv, *argv], env=_QUIET).stdout.strip()

    def imgref(self, name: str) -> str:
        return f"containers-storage:[overlay@{self.top}/graph+{self.top}/run]{name}"


def compare_podman(found: Tally, podman: str, top: Path) -> None:
    """Everything about one podman, in the new folder `top`."""
    top.mkdir()
    version = process.run([podman, "--version"], env=_QUIET).stdout.split()[2]
    for how in ("none", "gzip", "zstd"):
        store = Store(podman, top / how)
        layout = write_layout(top / f"oci-{how}", _tars(), how=how)
        _compare_image(found, store, layout, how, f"podman {version}, {how}")
        if how == "gzip":
            (top / "Containerfile").write_text(_BUILD)
            store.run("build", "-q", "--isolation=chroot", "-t", "localhost/built:1", str(top))
            _compare_layers(found, store.imgref("built:1"), f"podman {version}, built")
    _compare_places(found, podman, top, version)


def _compare_image(found: Tally, store: Store, layout: str, name: str, where: str) -> None:
    image = store.run("pull", "-q", layout).splitlines()[-1]
    store.run("tag", image, f"localhost/{name}:1")
    imgref = store.imgref(f"localhost/{name}:1")
    ours = _facts(imgref, store.top / "ours")
    found.compare("image", ours, _facts(layout, store.top / "theirs"), where)
    found.compare("id", ours["config"], f"sha256:{image}", where)
    _compare_layers(found, imgref, where)


def _facts(imgref: str, repo_path: Path) -> dict[str, object]:
    with (
        Repository.init(repo_path, algorithm=Algorithm.SHA256, secure=False) as repo,
        open_source(imgref, local=LocalStorage.NATIVE) as source,
    ):
        pulled = pull(repo, source, reference=imgref)
        return {
            "manifest": pulled.manifest_digest,
            "config": pulled.config_digest,
            "layers": [(layer.diff_id, layer.digest.hex()) for layer in pulled.layers],
            "tree": commit_image(repo, assemble(repo, pulled)).id,
        }


def _compare_layers(found: Tally, imgref: str, where: str) -> None:
    image = find_stored(imgref.removeprefix("containers-storage:"))
    with StorageSource(image) as source:
        for diff_id in source.diff_ids:
            hasher = hashlib.sha256()
            with source.open_layer(diff_id) as reader:
                for piece in reader.read_tar():
                    hasher.update(piece)
            found.compare("layer", f"sha256:{hasher.hexdigest()}", diff_id, where)


def _compare_places(found: Tally, podman: str, top: Path, version: str) -> None:
    """`podman info` against ours, in each of some configurations."""
    major, minor = (int(part) for part in version.split(".")[:2])
    rules = Rules.CLASSIC if (major, minor) < (5, 8) else Rules.DROP_INS
    conf = top / "conf"
    for name in ("home/.config/containers", "xdg/containers/storage.conf.d"):
        (conf / name).mkdir(parents=True)

    def put(name: str, *fields: str) -> str:
        lines = "\n".join(('driver = "overlay"', *fields))
        (conf / name).write_text(f"[storage]\n{lines}\n")
        return str(conf / name)

    def place(name: str) -> tuple[str, str]:
        return f'graphroot = "{conf}/{name}"', f'runroot = "{conf}/{name}-run"'

    put("home/.config/containers/storage.conf", *place("home"))
    put("xdg/containers/storage.conf", *place("xdg"))
    (conf / "xdg/containers/storage.conf.d/10.conf").write_text(
        f'[storage]\ngraphroot = "{conf}/drop-in"\n'
    )
    home = {"HOME": f"{conf}/home"}
    variables = put("variables.conf", 'graphroot = "$HOME/g-$UID"', f'runroot = "{conf}/r"')
    cases = {
        "a named file": {**home, "CONTAINERS_STORAGE_CONF": put("one.conf", *place("one"))},
        "variables": {**home, "CONTAINERS_STORAGE_CONF": variables},
        "XDG_CONFIG_HOME": {**home, "XDG_CONFIG_HOME": f"{conf}/xdg"},
    }
    if rules is Rules.DROP_INS:
        cases["the home of root"] = home
    for case, environ in cases.items():
        clean = [f"--unset={name}" for name in _ENV if name not in environ]
        argv = ["unshare", "--mount", "env", *clean]
        argv += [podman, "info", "--format", "{{.Store.GraphRoot}} {{.Store.RunRoot}}"]
        said = process.run(argv, env={**environ, **_QUIET}).stdout.strip()
        options = find_options(environ, uid=0, rules=rules)
        ours = f"{options.graphroot} {options.runroot}"
        found.compare("place", ours, said, f"podman {version}, {case}")


def compare(found: Tally, rng: random.Random, count: int) -> None:
    with scratch() as top:
        for number, podman in enumerate(podmans()):
            compare_podman(found, podman, top / str(number))


def main(argv: Sequence[str] | None = None) -> int:
    return tally.main("storage", compare, argv, count=1)


if __name__ == "__main__":
    sys.exit(main())
