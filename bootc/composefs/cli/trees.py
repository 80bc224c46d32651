# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl`'s commands about directories: images made of them."""

from __future__ import annotations

import argparse

from bootc.composefs.assemble import (
    XattrMode,
    commit_image,
    encode_image,
    transform_for_boot,
    transform_for_oci,
)
from bootc.composefs.cli.common import Group, add_command, open_repository, tree_options
from bootc.composefs.digest import digest_bytes
from bootc.composefs.repository import Repository
from bootc.composefs.scan import find_digest, scan_directory, store_content
from bootc.tree import Directory


def _scan(args: argparse.Namespace, repo: Repository, *, store: bool) -> Directory:
    algorithm = repo.algorithm
    keep = store_content(repo) if store else find_digest(algorithm)
    root = scan_directory(args.path, keep)
    if not args.no_propagate_usr_to_root:
        transform_for_oci(root, xattrs=XattrMode(args.xattrs))
    if args.bootable:
        transform_for_boot(root, repo)
    return root


def _create_image(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        image = commit_image(repo, _scan(args, repo, store=True), name=args.name)
        print(f"{repo.algorithm.value}:{image.id}")


def _compute_id(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        data = encode_image(repo, _scan(args, repo, store=False))
        print(digest_bytes(data, repo.algorithm).hex())


def register(commands: Group) -> None:
    create = add_command(commands, "create-image", _create_image, "Store a directory as an image.")
    compute = add_command(
        commands, "compute-id", _compute_id, "Print the digest of a directory's image."
    )
    for made in (create, compute):
        made.add_argument("path")
        if made is create:
            made.add_argument("name", nargs="?")
        made.add_argument("--no-propagate-usr-to-root", action="store_true")
        tree_options(made)
