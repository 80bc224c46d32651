# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl oci copy`: an image from another repository into this one.

The global options name the destination, `--from` the source; `--hash`, if it is given, has to be
the algorithm of both. The image gets the tag `--name`, or none.
"""

from __future__ import annotations

import argparse

from bootc import log
from bootc.composefs.cli.common import Group, add_command, open_repository
from bootc.composefs.repository import Repository
from bootc.errors import BootcError


def _copy(args: argparse.Namespace) -> None:
    from bootc.composefs.copy_image import copy_image  # start-up time of the other commands

    with (
        open_repository(args) as repo,
        Repository.open(args.source, upgrade=not args.no_upgrade, insecure=args.insecure) as source,
    ):
        if args.hash is not None and args.hash != source.algorithm.value:
            raise BootcError(
                f"{args.source} is configured for {source.algorithm.identifier}, not {args.hash}",
                hint="leave --hash out",
            )
        with log.step(f"copy {args.image} from {args.source}"):
            done = copy_image(repo, source, args.image, tag=args.name, zerocopy=args.zerocopy)
    tagged = f", tagged as {args.name}" if args.name is not None else ""
    print(f"Copied image {args.image} from {args.source} to destination repo{tagged}")
    print(f"Manifest digest: {done.manifest_digest}")
    print(f"Manifest verity: {done.manifest_id}")
    print(f"Config digest:   {done.config_digest}")
    print(f"Config verity:   {done.config_id}")


def register(group: Group) -> None:
    made = add_command(group, "copy", _copy, "Copy an image from another repository.")
    made.add_argument("image", help="a tag, or @DIGEST of a manifest")
    made.add_argument(
        "--from", dest="source", metavar="PATH", required=True, help="the repository it is in"
    )
    made.add_argument("--name", metavar="TAG", help="its tag here (default: none)")
    made.add_argument(
        "--zerocopy",
        action="store_true",
        help="share the files, by reflink or hard link, or fail; needs one file system, one hash"
        " algorithm, and root for hard links",
    )
