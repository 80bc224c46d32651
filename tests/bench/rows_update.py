# SPDX-License-Identifier: Apache-2.0 OR MIT
"""How long `bootc upgrade` takes on a mock machine, whose image has 9,000 inodes and a kernel.

Of the new image one layer of 10 MB is another. Against it: to hash that layer and to write it, as
nothing that takes it could do without. What an upgrade does beside that depends on the inodes of
the image, not on what changed: merging the layers and making the EROFS image that is the
deployment's identity. The demand (1.5 times) is that of the project, and the table says how far
from it this is.

The other row is an upgrade that finds nothing new, less what a registry takes to answer.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from bootc import process
from tests.bench.frame import MIB, ROOT, Make, Row, Side
from tests.bench.sample import Setup
from tests.ocibuild import END, folder, member, write_layout
from tests.sysroots import MockMachine

RATIO_MAX = 1.5
NOTHING_NEW_MAX = 1.0
_FILES = 8100
_KERNEL, _INITRD = 12 * MIB, 15 * MIB
_BIG = 10 * MIB
_BIG_FILES = 20
_PROGRAM = """
import sys
from bootc import log
from bootc.cli import commands, parser, render
arguments = parser.parse(["upgrade", "--quiet"])
log.setup(level="warning")
from bootc.deploy import update
from bootc.deploy.sysroot import Sysroot
names = ("root", "esp", "run", "current", "booted")
sysroot = Sysroot(**dict(zip(names, sys.argv[2:])), insecure=True)
outcome = update.upgrade(sysroot, update.UpgradeOptions())
if outcome.changed != (sys.argv[1] == "new"):
    sys.exit(f"not what was to be measured: {outcome}")
"""
_HASH_AND_WRITE = """
import hashlib, os, sys
hasher = hashlib.sha256()
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb") as target:
    while piece := source.read(1 << 20):
        hasher.update(piece)
        target.write(piece)
    target.flush()
    os.fsync(target.fileno())
"""


def rows(setup: Setup) -> dict[str, Make]:
    """The rows of this module."""
    return {
        "bootc upgrade, a layer of 10 MB of 9,000 inodes": functools.partial(_upgrade, setup),
        "bootc upgrade, nothing new": functools.partial(_nothing_new, setup),
    }


def _upgrade(setup: Setup) -> Row:
    machine = _machine(setup.folder / "upgrade")
    kept = setup.folder / "upgrade-kept"
    kept.mkdir()
    _copy(machine.path, kept)
    layer = setup.folder / "upgrade-layer"
    layer.write_bytes(_image(machine, 2))
    program = (sys.executable, "-c", _HASH_AND_WRITE, str(layer), f"{layer}.new")
    return Row(
        ours=_side(setup, machine, "new", functools.partial(_copy, kept, machine.path)),
        theirs=Side(label="hash and write the layer", argv=program),
        ratio_max=RATIO_MAX,
    )


def _nothing_new(setup: Setup) -> Row:
    side = _side(setup, _machine(setup.folder / "upgrade-nothing"), "same")
    return Row(ours=side, value_max=NOTHING_NEW_MAX)


def _side(
    setup: Setup, machine: MockMachine, kind: str, prepare: Callable[[], None] | None = None
) -> Side:
    system = machine.sysroot
    parts = (system.root, system.need_esp(), system.run, system.current, system.need_booted())
    env = {"PYTHONPYCACHEPREFIX": str(setup.folder / "pyc"), "PYTHONDONTWRITEBYTECODE": ""}
    argv = (sys.executable, "-c", _PROGRAM, kind, *parts)
    return Side(label="bootc upgrade", argv=argv, env=env, prepare=prepare)


def _machine(path: Path) -> MockMachine:
    """A machine that runs the first image, as does where its updates come from."""
    machine = MockMachine(path)
    _image(machine, 1)
    machine.install(f"oci:{path}/images/updates:updates")
    return machine


def _image(machine: MockMachine, number: int) -> bytes:
    """Put an image where updates come from; its last layer, which is like no other's.

    By a process of its own: what this one has in memory is counted as that of all that it starts.
    """
    layout = machine.path / "images" / "updates"
    code = f"from tests.bench.rows_update import write; write({str(layout)!r}, {number})"
    process.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, timeout=600)
    return _last(number)


def write(layout: str, number: int) -> None:
    """An OCI layout with the image of that number, tagged `updates`."""
    Path(layout).mkdir(parents=True, exist_ok=True)
    write_layout(Path(layout), [_base(), _last(number)], tag="updates")


def _last(number: int) -> bytes:
    rng = random.Random(number)
    folders = [b"./", b"usr/", b"usr/lib/", b"usr/lib/app/"]
    files = [
        member(b"usr/lib/app/%d" % index, rng.randbytes(_BIG // _BIG_FILES))
        for index in range(_BIG_FILES)
    ]
    return b"".join([*map(folder, folders), *files, END])


def _base() -> bytes:
    """A layer of an operating system's shape: half of its files are below 4 KiB."""
    rng = random.Random(0)
    noise = rng.randbytes(MIB)
    modules = b"usr/lib/modules/6.1"
    release = b"ID=bench\nVERSION_ID=1\n"
    parts = [folder(b"./")]
    for name in (b"boot", b"etc", b"run", b"sysroot", b"usr", b"usr/lib", b"usr/lib/modules"):
        parts.append(folder(name + b"/"))
    parts += [
        folder(modules + b"/"),
        member(modules + b"/vmlinuz", rng.randbytes(_KERNEL)),
        member(modules + b"/initramfs.img", rng.randbytes(_INITRD)),
        member(b"usr/lib/os-release", release),
    ]
    for number in range(_FILES):
        top = b"etc" if number % 20 == 0 else b"usr/lib"
        if number % 20 < 2:
            parts.append(folder(b"%s/folder-%d/" % (top, number)))
        size = min(int(rng.lognormvariate(8.2, 2.0)), MIB // 2)
        at = rng.randrange(MIB // 2)
        name = b"%s/folder-%d/file-%d" % (top, number - number % 20 + (top != b"etc"), number)
        parts.append(member(name, b"%d " % number + noise[at : at + size]))
    return b"".join([*parts, END])


def _copy(source: Path, target: Path) -> None:
    """Make what an upgrade changes of a machine what it was."""
    for name in ("physical", "esp", "run"):
        shutil.rmtree(target / name, ignore_errors=True)
        shutil.copytree(source / name, target / name, symlinks=True)
    os.sync()
