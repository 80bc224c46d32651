# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl`: a composefs repository from the command line, with the output of the original tool.

Errors are one line on stderr (a hint is a second one) and exit status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bootc import __version__, log
from bootc.composefs.cli import oci, repository, trees
from bootc.errors import BootcError, chain_text


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cfsctl", description="Manage a composefs repository.")
    parser.add_argument("--version", action="version", version=f"cfsctl {__version__}")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--repo", metavar="PATH", help="the repository")
    where.add_argument("--user", action="store_true", help="~/.var/lib/composefs")
    where.add_argument("--system", action="store_true", help="/sysroot/composefs")
    parser.add_argument("--hash", choices=["sha256", "sha512"], help="refuse any other hash")
    parser.add_argument("--erofs-version", type=int, choices=[0, 1, 2], help="for init")
    parser.add_argument("--require-verity", action="store_true", help="refuse insecure ones")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (repository, trees, oci):
        module.register(commands)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    args = make_parser().parse_args(argv)
    log.setup()
    try:
        args.run(args)
    except (BootcError, OSError) as error:
        print(f"error: {chain_text(error)}", file=sys.stderr)
        if isinstance(error, BootcError) and error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


def entry() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))
