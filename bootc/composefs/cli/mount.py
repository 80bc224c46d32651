# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl`'s commands about what is in an image, as a file system: mount, diff."""

from __future__ import annotations

import argparse

from bootc.composefs.cli.common import Group, add_command, open_repository
from bootc.composefs.mount import mount_image
from bootc.errors import BootcError


def _mount(args: argparse.Namespace) -> None:
    if args.fuse == "yes" or args.foreground:
        raise BootcError(
            "FUSE is not offered: images are mounted by the kernel", hint="leave --fuse out"
        )
    with (
        open_repository(args) as repo,
        mount_image(
            repo,
            args.name,
            upper=args.upperdir,
            work=args.workdir,
            read_write=args.read_write,
        ) as mount,
    ):
        mount.attach(args.mountpoint)


def register(commands: Group) -> None:
    made = add_command(commands, "mount", _mount, "Mount an image by the kernel; needs root.")
    made.add_argument("name", help="of the image: its digest or a reference")
    made.add_argument("mountpoint")
    made.add_argument("--upperdir", metavar="DIR", help="what is written goes here")
    made.add_argument("--workdir", metavar="DIR", help="an empty one, where --upperdir is")
    made.add_argument("--read-write", action="store_true", help="allow writing into --upperdir")
    made.add_argument(
        "--fuse",
        nargs="?",
        const="yes",
        default="auto",
        choices=["auto", "yes", "no"],
        help="FUSE is not offered: auto and no mean the kernel, yes is an error",
    )
    made.add_argument("--foreground", action="store_true", help=argparse.SUPPRESS)
