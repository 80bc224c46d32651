# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl oci`: images pulled from elsewhere."""

from __future__ import annotations

import argparse
import json
import sys

from bootc import jsonutil, log
from bootc.composefs.assemble import (
    XattrMode,
    assemble,
    commit_image,
    encode_image,
    transform_for_boot,
)
from bootc.composefs.cli.common import (
    SHORT,
    Group,
    add_command,
    open_repository,
    print_table,
    tree_options,
)
from bootc.composefs.digest import digest_bytes
from bootc.composefs.pull import pull
from bootc.composefs.stored import attach_images, image_key, load_image, load_images
from bootc.errors import BootcError
from bootc.jsonutil import Json
from bootc.oci.layout import open_source
from bootc.oci.model import read_config, read_manifest
from bootc.oci.reference import parse_imgref


def _pull(args: argparse.Namespace) -> None:
    tag = args.name if args.name is not None else args.image
    parse_imgref(args.image)
    with (
        open_repository(args) as repo,
        log.step(f"pull {args.image}"),
        open_source(args.image) as source,
    ):
        pulled = pull(repo, source, reference=args.image, tag=tag)
        root = assemble(repo, pulled)
        version = repo.erofs_version
        plain = commit_image(repo, root)
        images = {image_key(boot=False, erofs_version=version): bytes.fromhex(plain.id)}
        boot = None
        if args.bootable:
            transform_for_boot(root, repo)
            boot = commit_image(repo, root)
            images[image_key(boot=True, erofs_version=version)] = bytes.fromhex(boot.id)
        pulled = attach_images(repo, pulled, images)
    print(f"manifest {pulled.manifest_digest}")
    print(f"config   {pulled.config_digest}")
    print(f"verity   {pulled.manifest_id}")
    print(f"tagged   {tag}")
    if boot is not None:
        print(f"Boot image: {boot.id}")
    if args.expected_digest is not None and (boot or plain).id != args.expected_digest:
        raise BootcError(f"the image has the digest {(boot or plain).id}, not the expected one")


def _images(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        images = list(load_images(repo))
    rows: list[dict[str, Json]] = []
    for image in images:
        config = read_config(image.config, image.config_digest)
        rows.append(
            {
                "name": image.reference,
                "manifest_digest": image.manifest_digest,
                "is_container": True,
                "architecture": config.architecture,
                "os": config.os,
                "created": config.created,
                "layer_count": len(read_manifest(image.manifest, image.manifest_digest).layers),
                "referrer_count": 0,
            }
        )
    if args.json:
        print(jsonutil.pretty({"images": list(rows)}), end="")
        return
    table = [("NAME", "DIGEST", "ARCH", "LAYERS")]
    for row in rows:
        digest = str(row["manifest_digest"]).removeprefix("sha256:")[:SHORT]
        table.append((str(row["name"]), digest, str(row["architecture"]), str(row["layer_count"])))
    print_table(table)


def _compute_id(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        root = assemble(repo, load_image(repo, args.image), xattrs=XattrMode(args.xattrs))
        if args.bootable:
            transform_for_boot(root, repo)
        print(digest_bytes(encode_image(repo, root), repo.algorithm).hex())


def _inspect(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        image = load_image(repo, args.image)
    if args.manifest or args.config:
        sys.stdout.write((image.manifest if args.manifest else image.config).decode())
        return
    value: dict[str, Json] = {
        "manifest": json.loads(image.manifest),
        "config": json.loads(image.config),
        "referrers": [],
    }
    for key, digest in image.images.items():
        field = "composefs_boot_erofs" if ".boot" in key else "composefs_erofs"
        value[field] = digest.hex()
    print(jsonutil.pretty(value), end="")


def _tag(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        repo.tag(f"oci-manifest-{args.manifest_digest}", args.name)


def _untag(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        repo.untag(args.name)


def register(commands: Group) -> None:
    group = commands.add_parser("oci", help="OCI images").add_subparsers(
        metavar="COMMAND", required=True
    )
    made = add_command(group, "pull", _pull, "Pull an image.")
    made.add_argument("image", help="oci:PATH[:TAG], docker://NAME, …")
    made.add_argument("name", nargs="?", help="its tag, if not IMAGE")
    made.add_argument("--bootable", action="store_true", help="make the bootable image, too")
    made.add_argument("--expected-digest", metavar="HEX")
    add_command(group, "images", _images, "List the tagged images.").add_argument(
        "--json", action="store_true"
    )
    made = add_command(group, "compute-id", _compute_id, "Print the digest of an image's tree.")
    made.add_argument("image", help="a tag, or @DIGEST of a manifest")
    tree_options(made)
    made = add_command(group, "inspect", _inspect, "Show an image's documents.")
    made.add_argument("image")
    made.add_argument("--manifest", action="store_true", help="the raw manifest only")
    made.add_argument("--config", action="store_true", help="the raw config only")
    made = add_command(group, "tag", _tag, "Give an image a tag.")
    made.add_argument("manifest_digest")
    made.add_argument("name")
    add_command(group, "untag", _untag, "Remove a tag.").add_argument("name")
