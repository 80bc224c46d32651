# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the commands of `cfsctl` share: finding and opening the repository, tables, options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

from bootc.composefs.repository import Repository
from bootc.errors import BootcError

SHORT = 12
"""Characters of a digest in a table."""
Group: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    group: Group, name: str, run: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    """A subcommand whose work is `run`."""
    made = group.add_parser(name, help=text, description=text)
    made.set_defaults(run=run)
    return made


def repository_path(args: argparse.Namespace) -> str:
    if args.repo is not None:
        return str(args.repo)
    if args.user or (not args.system and os.getuid() != 0):
        home = os.environ.get("HOME")
        if not home:
            raise BootcError("HOME is not set", hint="name the repository with --repo")
        return os.path.join(home, ".var/lib/composefs")
    return "/sysroot/composefs"


def open_repository(args: argparse.Namespace) -> Repository:
    """The repository that the global options name, opened as they say."""
    path = repository_path(args)
    if args.no_repo:
        raise BootcError("this command needs a repository", hint="leave --no-repo out")
    repo = Repository.open(
        path,
        upgrade=not args.no_upgrade,
        erofs_version=args.erofs_version,
        insecure=args.insecure,
    )
    try:
        if args.hash is not None and args.hash != repo.algorithm.value:
            raise BootcError(
                f"{path} is configured for {repo.algorithm.identifier}, not {args.hash}",
                hint="leave --hash out",
            )
        if args.require_verity and not repo.secure:
            raise BootcError(
                f"{path} does not require fs-verity",
                hint="leave --require-verity out, or make a secure one with `cfsctl init`",
            )
    except BaseException:
        repo.close()
        raise
    return repo


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def tree_options(parser: argparse.ArgumentParser) -> None:
    from bootc.composefs.assemble import XattrMode  # what it imports, most commands never need

    parser.add_argument("--bootable", action="store_true", help="transform it for booting")
    parser.add_argument(
        "--xattrs", choices=[mode.value for mode in XattrMode], default="allowlist-only"
    )


def mount_options(parser: argparse.ArgumentParser) -> None:
    """The options of the commands that mount; `attach_image` honours them."""
    parser.add_argument("--upperdir", metavar="DIR", help="what is written goes here")
    parser.add_argument("--workdir", metavar="DIR", help="an empty one, where --upperdir is")
    parser.add_argument("--read-write", action="store_true", help="allow writing into --upperdir")
    parser.add_argument(
        "--fuse",
        nargs="?",
        const="yes",
        default="auto",
        choices=["auto", "yes", "no"],
        help="FUSE is not offered: auto and no mean the kernel, yes is an error",
    )
    parser.add_argument("--foreground", action="store_true", help=argparse.SUPPRESS)


def refuse_fuse(args: argparse.Namespace) -> None:
    if args.fuse == "yes" or args.foreground:
        raise BootcError(
            "FUSE is not offered: images are mounted by the kernel", hint="leave --fuse out"
        )


def attach_image(args: argparse.Namespace, repo: Repository, name: str) -> None:
    """Mount the image `name` at `args.mountpoint`, as the `mount_options` say."""
    from bootc.composefs.mount import mount_image

    with mount_image(
        repo, name, upper=args.upperdir, work=args.workdir, read_write=args.read_write
    ) as mount:
        mount.attach(args.mountpoint)
