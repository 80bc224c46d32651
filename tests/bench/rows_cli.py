# SPDX-License-Identifier: Apache-2.0 OR MIT
"""How long a command takes to begin: beside an interpreter that has nothing to do.

The limits are absolute, in seconds. They hold on an idle machine: where the interpreter alone takes
more than 10 ms, the ratio tells more. Byte code is kept, as it is for an installed program.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from bootc.composefs import Algorithm, Directory, Inline, Leaf, Repository, Stat, write_image
from tests.bench.frame import Make, Row, Side
from tests.bench.sample import Setup

IMAGES = 100
_CFSCTL = "bootc.composefs.cli.main"
_ENTRY = "import sys; from {module} import entry; sys.exit(entry())"


def rows(setup: Setup) -> dict[str, Make]:
    """The rows of this module."""
    return {
        "bootc --version": functools.partial(_row, setup, "bootc.cli.main", ("--version",), 0.03),
        "cfsctl --version": functools.partial(_row, setup, _CFSCTL, ("--version",), 0.03),
        f"cfsctl images, {IMAGES} of them": functools.partial(_images, setup),
    }


def _row(setup: Setup, module: str, arguments: tuple[str, ...], seconds: float) -> Row:
    env = {"PYTHONPYCACHEPREFIX": str(setup.folder / "pyc"), "PYTHONDONTWRITEBYTECODE": ""}
    argv = (sys.executable, "-c", _ENTRY.format(module=module), *arguments)
    nothing = (sys.executable, "-c", "pass")
    return Row(
        ours=Side(label=arguments[-1], argv=argv, env=env),
        theirs=Side(label="python3 -c pass", argv=nothing, env=env),
        value_max=seconds,
    )


def _images(setup: Setup) -> Row:
    path = setup.folder / "images"
    if not path.exists():
        _make_images(path)
    return _row(setup, _CFSCTL, ("--repo", str(path), "images"), 0.08)


def _make_images(path: Path) -> None:
    with Repository.init(path, algorithm=Algorithm.SHA512, secure=False) as repo:
        for number in range(IMAGES):
            root = Directory(Stat(0o755), {b"n": Leaf(Stat(), Inline(b"%d" % number))})
            repo.write_image(write_image(root, algorithm=repo.algorithm), f"image/{number}")
