# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Images, dump files and split streams against the reference's cfsctl.

    nox -s interop -- composefs reference [--seed S] [--count N]

* directories: N random ones; the ids that both compute, of each version and algorithm, as they are
  and as the root of an operating system (with /usr, and both ways to filter attributes);
* create-image: into a repository of each; the images' ids and the objects;
* images: ours of random dump files, of each version, read by the reference and dumped again;
* layers: random tars; imported by each, the split streams read by the other one.
"""

from __future__ import annotations

import difflib
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bootc import process
from bootc.composefs.assemble import XattrMode, transform_for_oci
from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.dumpfile import dump_lines
from bootc.composefs.erofs_format import FormatVersion
from bootc.composefs.erofs_writer import write_image
from bootc.composefs.scan import find_digest, scan_directory
from bootc.errors import BootcError
from bootc.tree import Directory
from tests.interop import tally
from tests.interop.programs import need_reference
from tests.interop.random_trees import make_tree
from tests.interop.tally import Tally

COUNT = 500
ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".bootc" / "interop"
OURS = (sys.executable, "-m", "bootc.composefs.cli.main")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How an image is made of a directory."""

    version: FormatVersion
    algorithm: Algorithm
    system: bool
    xattrs: XattrMode

    def options(self) -> list[str]:
        if not self.system:
            return ["--no-propagate-usr-to-root"]
        return ["--xattrs", self.xattrs.value]

    def global_options(self) -> list[str]:
        hashing = ["--hash", self.algorithm.value]
        return ["--no-repo", *hashing, "--erofs-version", str(self.version.value)]

    def __str__(self) -> str:
        return " ".join([*self.global_options()[1:], *self.options()])


def run(*argv: str | bytes, stdin: bytes | None = None) -> process.Completed:
    """Run a program whatever becomes of it. (A byte string is a path.)"""
    return process.run([os.fsdecode(word) for word in argv], stdin=stdin, check=False, cwd=ROOT)


def our_tree(path: bytes, form: Form) -> Directory:
    root = scan_directory(os.fsdecode(path), find_digest(form.algorithm))
    if form.system:
        transform_for_oci(root, xattrs=form.xattrs)
    return root


def our_id(path: bytes, form: Form) -> str:
    """The id that our library computes, or the refusal."""
    try:
        image = write_image(our_tree(path, form), version=form.version, algorithm=form.algorithm)
    except BootcError as error:
        return f"refused: {error}"
    return digest_bytes(image, form.algorithm).hex()


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bootc-interop-") as folder:
        yield Path(folder)


def compare_directories(found: Tally, rng: random.Random, count: int) -> None:
    reference = need_reference()
    with scratch() as folder:
        for number in range(count):
            path = os.fsencode(folder / f"tree-{number}")
            os.mkdir(path)
            system = rng.random() < 0.5
            make_tree(path, rng, system=system)
            for form in _forms(rng, system=system):
                _compare_directory(found, reference, path, form, cli=number % 20 == 0)
            shutil.rmtree(path)


def _forms(rng: random.Random, *, system: bool) -> Iterator[Form]:
    """Each version with one of the algorithms."""
    for version in FormatVersion:
        yield Form(
            version=version,
            algorithm=rng.choice(list(Algorithm)),
            system=system and rng.random() < 0.7,
            xattrs=rng.choice(list(XattrMode)),
        )


def _compare_directory(found: Tally, reference: str, path: bytes, form: Form, *, cli: bool) -> None:
    name = f"directory, {form.version.name}"
    done = run(reference, *form.global_options(), "compute-id", *form.options(), path)
    theirs = done.stdout.strip()
    ours = our_id(path, form)
    if done.status != 0:
        if ours.startswith("refused"):
            found.refuse(name)
        else:
            found.differ(name, f"{_keep(path)} {form}: only theirs refused: {done.stderr.strip()}")
        return
    if ours != theirs:
        lines = run(reference, *form.global_options(), "create-dumpfile", *form.options(), path)
        _differ(found, name, f"{_keep(path)} {form}", _dump(path, form), lines.stdout)
        return
    found.check(name).same += 1
    if cli:
        mine = run(*OURS, *form.global_options(), "compute-id", *form.options(), path)
        found.compare("directory, by our command", mine.stdout.strip(), theirs, f"{form}")


def _dump(path: bytes, form: Form) -> str:
    try:
        return "".join(f"{line}\n" for line in dump_lines(our_tree(path, form)))
    except BootcError as error:
        return f"refused: {error}\n"


def _differ(found: Tally, name: str, where: str, ours: str, theirs: str) -> None:
    """Note a difference with the first lines that differ."""
    lines = difflib.unified_diff(
        theirs.splitlines(), ours.splitlines(), "theirs", "ours", "", "", 0, ""
    )
    shown = [line[:400] for line in lines][:8] or ["(the dump files are equal)"]
    found.differ(name, "\n  ".join([where, *shown]))


def _keep(path: bytes) -> str:
    """Where the directory is kept for a second look."""
    target = KEPT / os.fsdecode(os.path.basename(path))
    if not target.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        process.run(["cp", "-a", os.fsdecode(path), str(target)])
    return str(target)


def compare(found: Tally, rng: random.Random, count: int) -> None:
    if os.geteuid() != 0:
        raise BootcError("only root can make directories with everything", hint="run it as root")
    compare_directories(found, rng, count)


if __name__ == "__main__":
    sys.exit(tally.main("compare_reference", compare, count=COUNT))
