# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`composefs-dump SOURCE DESTINATION`: read an image and write it again, in its own version.

The bytes are equal when nothing but the format decided how they lie; so this tests reader and
writer against each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from bootc.composefs.cli import classic
from bootc.composefs.cli.classic import UsageError
from bootc.composefs.cli.composefs_info import load_image
from bootc.composefs.digest import Algorithm
from bootc.composefs.erofs_writer import write_image

USAGE = "usage: composefs-dump SOURCE DESTINATION\n"


def dump(argv: Sequence[str]) -> None:
    """Do what the command line says."""
    _, operands = classic.split_options(argv, ())
    if len(operands) != 2:
        raise UsageError("a SOURCE and a DESTINATION are needed, and nothing else")
    version, root = load_image(operands[0])
    data = write_image(root, version=version, algorithm=Algorithm.SHA256, like_c=True)
    with classic.output(operands[1]) as write:
        write(data)


def main(argv: Sequence[str]) -> int:
    """Run the tool and return the exit status."""
    return classic.run("composefs-dump", USAGE, dump, argv)


def entry() -> None:
    """The console script."""
    classic.script(main)
