# SPDX-License-Identifier: Apache-2.0 OR MIT
"""How long machines take: the installed system beside a plain boot of the same tree.

Emulation makes seconds depend on the machine that runs this, so the targets are ratios. On the
machine on which the limits in seconds were set, a plain boot took 11.9 s and `objects` 7.3 s: there
the ratios here mean 16 s to a login, 2 s to a restored one and 62 s for an install, which with a
boot of 13 s is 75 s from image to disk.
Needs root, podman, QEMU and libvirt; the first run builds the image and installs it.
"""

from __future__ import annotations

import functools
import sys

from tests.bench.frame import Make, Row, Side
from tests.bench.sample import Setup


def rows(_setup: Setup) -> dict[str, Make]:
    """The rows of this module."""
    return {
        "boot, UEFI and composefs": functools.partial(_row, "installed", "tree", ratio=1.34),
        "restore from memory": functools.partial(_row, "restored", "tree", ratio=0.17),
        "install": functools.partial(_row, "install", "objects", ratio=8.5),
    }


def _row(ours: str, theirs: str, *, ratio: float) -> Row:
    return Row(ours=_side(ours), theirs=_side(theirs), ratio_max=ratio)


def _side(kind: str) -> Side:
    argv = (sys.executable, "-m", "tests.bench.machine_times", kind)
    return Side(label=kind, argv=argv, value=lambda said: float(said.split()[-1]))
