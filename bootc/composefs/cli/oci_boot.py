# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl oci mount`, `oci prepare-boot` and `oci fsck`: images in use, and whether they are sound.

`prepare-boot` makes the bootable image, writes the image's boot files and its entry into the boot
partition, and the directories for /var and /etc beside the repository (`bootc install` keeps its
state otherwise). It prints nothing.
"""

from __future__ import annotations

import argparse
import os

from bootc import jsonutil
from bootc.composefs.cli.common import (
    Group,
    add_command,
    attach_image,
    mount_options,
    open_repository,
    refuse_fuse,
)
from bootc.composefs.described import erofs_image_name
from bootc.composefs.stored import load_image, load_named
from bootc.errors import BootcError


def _mount(args: argparse.Namespace) -> None:
    refuse_fuse(args)
    named = f"@{args.image}" if args.image.startswith("sha256:") else args.image
    with open_repository(args) as repo:
        name = erofs_image_name(repo, load_image(repo, named), boot=args.bootable)
        attach_image(args, repo, name)


def _prepare_boot(args: argparse.Namespace) -> None:
    from bootc.composefs.assemble import assemble, commit_image, transform_for_boot
    from bootc.composefs.bootfiles import find_entries, make_state, write_entry
    from bootc.composefs.erofs_format import FormatVersion
    from bootc.composefs.karg import format_karg

    with open_repository(args) as repo:
        root = assemble(repo, load_named(repo, args.image, args.verity))
        entry = next(find_entries(repo, root), None)
        if entry is None:
            raise BootcError(
                f"{args.image} has neither boot entries nor a kernel",
                hint="a kernel belongs at /usr/lib/modules/VERSION/vmlinuz",
            )
        transform_for_boot(root, repo)
        image = commit_image(repo, root)
        karg = format_karg(
            bytes.fromhex(image.id),
            algorithm=repo.algorithm,
            version=FormatVersion(repo.erofs_version),
            insecure=not repo.secure,
        )
        write_entry(repo, entry, args.bootdir, karg, entry_id=args.entry_id, cmdline=args.cmdline)
        make_state(os.path.dirname(os.path.abspath(repo.path)), image.id)


def _fsck(args: argparse.Namespace) -> None:
    from bootc.composefs.oci_fsck import check_images

    with open_repository(args) as repo:
        report = check_images(repo, image=args.image)
    if args.json:
        print(jsonutil.pretty(report.to_json()), end="")
        return
    print(report.to_text(), end="", flush=True)
    if not report.ok:
        raise BootcError("OCI integrity check failed")


def register(group: Group) -> None:
    made = add_command(group, "mount", _mount, "Mount the EROFS image of an image; needs root.")
    made.add_argument("image", help="a tag, or DIGEST of a manifest")
    made.add_argument("mountpoint")
    made.add_argument("--bootable", action="store_true", help="mount the bootable one")
    mount_options(made)
    made = add_command(
        group, "prepare-boot", _prepare_boot, "Make the bootable image and write its boot entry."
    )
    made.add_argument("image", help="a tag, or @DIGEST of a config")
    made.add_argument("verity", nargs="?", help="what the split stream has to be")
    made.add_argument("--bootdir", metavar="DIR", default="/boot", help="the boot partition")
    made.add_argument("--entry-id", metavar="ID", help="of the entry, and of its files' folder")
    made.add_argument(
        "--cmdline", metavar="ARGS", action="append", default=[], help="more kernel arguments"
    )
    made = add_command(group, "fsck", _fsck, "Check images, and the repository with them.")
    made.add_argument("image", nargs="?", help="only this one: a tag, or @DIGEST")
    made.add_argument("--json", action="store_true", help="as JSON, with exit status 0")
