# SPDX-License-Identifier: Apache-2.0 OR MIT
"""OCI images against the reference's cfsctl: both pull them, and then say what they have.

    nox -s interop -- composefs oci [--seed S] [--count N]

Each round makes a random image (see `random_images`) and two insecure repositories of a random
algorithm and version. Compared are

* what `oci pull` prints, with `--bootable` or without;
* `compute-id` (each filter of attributes; bootable) and `dump`, by tag and by the config's digest;
* `images --json`, `inspect` and its two documents;
* of each layer the tar, `layer --json`, and that the tar has the digest;
* the split streams of layers and config, and all objects but what is about the manifest: the
  reference puts the manifest's references in the order of a hash table, so its digest varies;
* what `prepare-boot` writes;
* `oci fsck` of each repository by the other program.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bootc import process
from bootc.composefs.assemble import XattrMode
from bootc.composefs.digest import Algorithm
from tests.interop import tally
from tests.interop.programs import need_reference
from tests.interop.random_images import make_image
from tests.interop.tally import Tally

COUNT = 60
ROOT = Path(__file__).resolve().parents[2]
OURS = (sys.executable, "-m", "bootc.composefs.cli.main")
_REFUSED = "refused"


class Side:
    """One program and its repository."""

    def __init__(self, program: tuple[str, ...], folder: Path) -> None:
        self.program = program
        self.folder = folder
        self.repo = folder / "repo"
        folder.mkdir()

    def run(self, *argv: str, repo: Path | None = None) -> str:
        """What it says, or that it refused."""
        done = process.run(
            [*self.program, "--repo", str(repo or self.repo), *argv],
            cwd=ROOT,
            check=False,
            env={"RUST_BACKTRACE": "0", "BOOTC_LOG": "warning"},
        )
        return done.stdout if done.status == 0 else _REFUSED

    def layer(self, diff_id: str) -> str:
        """The digest of the layer's tar."""
        argv = [*self.program, "--repo", str(self.repo), "oci", "layer", diff_id]
        path = self.folder / "layer"
        with open(path, "wb") as out, process.running(argv, stdout=out, cwd=ROOT) as child:
            status = child.wait(600)
        return f"{status} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"

    def links(self, category: str) -> dict[str, str]:
        folder = self.repo / category
        return {
            path.name: os.readlink(path)
            for path in (folder.iterdir() if folder.exists() else ())
            if path.is_symlink() and not path.name.startswith("oci-manifest-")
        }

    def objects(self) -> set[str]:
        """The objects that are still referred to, but for the manifest's split stream."""
        manifests = {
            "".join(os.readlink(path).split("/")[-2:])
            for path in (self.repo / "streams").glob("oci-manifest-*")
        }
        return {
            path.parent.name + path.name for path in (self.repo / "objects").glob("*/*")
        } - manifests

    def boot_files(self, tag: str, *argv: str) -> dict[str, bytes] | str:
        folder = self.folder / "boot"
        process.run(["rm", "-rf", str(folder)])
        folder.mkdir()
        said = self.run("oci", "prepare-boot", tag, "--bootdir", str(folder), *argv)
        if said == _REFUSED:
            return said
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }


def has_duplicates(layout: Path) -> bool:
    """Whether the layout's only image has a layer twice."""
    index = json.loads((layout / "index.json").read_text())
    name = index["manifests"][0]["digest"].removeprefix("sha256:")
    layers = json.loads((layout / "blobs/sha256" / name).read_text())["layers"]
    return len({layer["digest"] for layer in layers}) < len(layers)


def compare(found: Tally, rng: random.Random, count: int) -> None:
    reference = need_reference()
    for number in range(count):
        with tempfile.TemporaryDirectory(prefix="bootc-interop-") as folder:
            sides = [Side(OURS, Path(folder) / "ours"), Side((reference,), Path(folder) / "theirs")]
            _compare_image(found, rng, Path(folder), sides, number)


def _compare_image(
    found: Tally, rng: random.Random, folder: Path, sides: list[Side], number: int
) -> None:
    algorithm, version = rng.choice(list(Algorithm)), rng.choice((1, 2))
    reference = make_image(folder / "oci", rng)
    bootable = rng.random() < 0.7
    where = f"image {number} ({algorithm.value}, version {version}, bootable {bootable})"
    ours, theirs = sides
    said: list[str] = []
    unsure = ["verity"]
    if has_duplicates(folder / "oci"):
        # The reference imports a layer as often as the image has it, and counts its objects anew.
        unsure.append("objects")
    for side in sides:
        options = ("--insecure", "--algorithm", algorithm.identifier)
        side.run("--erofs-version", str(version), "init", *options)
        pulled = side.run("oci", "pull", reference, "t", *(["--bootable"] if bootable else []))
        lines = pulled.splitlines(keepends=True)
        said.append("".join(line for line in lines if line.split()[0] not in unsure))
    if said == [_REFUSED, _REFUSED]:
        found.refuse("pull")
        return
    if not found.compare("pull", said[0], said[1], where) or _REFUSED in said:
        return
    _compare_answers(found, sides, reference, where)
    for category in ("streams", "images"):
        found.compare(category, ours.links(category), theirs.links(category), where)
    for side in sides:
        # What was made before the images were attached is garbage now.
        side.run("gc")
    found.compare("objects", ours.objects(), theirs.objects(), where)
    for arguments in ([], ["--entry-id=x", "--cmdline=b=2"]):
        files = [side.boot_files("t", *arguments) for side in sides]
        if files == [_REFUSED, _REFUSED]:
            found.refuse("prepare-boot")
        else:
            found.compare("prepare-boot", files[0], files[1], where)
    for side, other in ((ours, theirs), (theirs, ours)):
        good = side.run("oci", "fsck", repo=other.repo).splitlines()[-1:]
        name = "fsck of theirs" if side is ours else "fsck of ours"
        found.compare(name, good, ["oci images: 1/1 ok"], where)


def _compare_answers(found: Tally, sides: list[Side], reference: str, where: str) -> None:
    def both(name: str, *argv: str) -> None:
        answers = [side.run(*argv) for side in sides]
        if answers == [_REFUSED, _REFUSED]:
            found.refuse(name)
        else:
            found.compare(name, answers[0], answers[1], where)

    config = json.loads(sides[0].run("oci", "inspect", "--config", "t"))
    digest = hashlib.sha256(sides[0].run("oci", "inspect", "--config", "t")[:-1].encode())
    for name in ("t", f"@sha256:{digest.hexdigest()}"):
        for mode in XattrMode:
            both("compute-id", "oci", "compute-id", name, "--xattrs", mode.value)
            both("compute-id --bootable", "oci", "compute-id", name, "--bootable", "--xattrs", mode)
        both("dump", "oci", "dump", name)
    both("dump --bootable", "oci", "dump", "--bootable", "t")
    both("images --json", "oci", "images", "--json")
    both("inspect", "oci", "inspect", "t")
    both("inspect --manifest", "oci", "inspect", "t", "--manifest")
    both("tag", "oci", "untag", "t")
    index = json.loads((Path(reference.split(":")[1]) / "index.json").read_text())
    both("tag", "oci", "tag", index["manifests"][0]["digest"], "t")
    for diff_id in dict.fromkeys(config["rootfs"]["diff_ids"]):
        both("layer --json", "oci", "layer", "--json", diff_id)
        tars = [side.layer(diff_id) for side in sides]
        found.compare("layer", tars, [f"0 {diff_id}"] * 2, where)


def main(argv: Sequence[str] | None = None) -> int:
    return tally.main("oci", compare, argv, count=COUNT)


if __name__ == "__main__":
    sys.exit(main())
