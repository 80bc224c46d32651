# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl`'s commands about the repository itself."""

from __future__ import annotations

import argparse
import os

from bootc import jsonutil
from bootc.composefs.cli.common import (
    SHORT,
    Group,
    add_command,
    open_repository,
    print_table,
    repository_path,
)
from bootc.composefs.repository import Repository, read_algorithm


def _init(args: argparse.Namespace) -> None:
    path = args.path if args.path is not None else repository_path(args)
    existed = os.path.lexists(os.path.join(path, "meta.json"))
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    algorithm = read_algorithm(args.algorithm, "--algorithm")
    version = 1 if args.erofs_version is None else args.erofs_version
    with Repository.init(
        path, algorithm=algorithm, secure=not args.insecure, erofs_version=version
    ) as repo:
        if existed:
            print(f"Repository already initialized at {path}")
            return
        print(f"Initialized composefs repository at {path}")
        print(f"  algorithm: {repo.algorithm.identifier}")
        print(f"  verity:    {'required' if repo.secure else 'not required (insecure)'}")


def _images(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        rows = list(repo.image_refs())
    if args.json:
        print(
            jsonutil.pretty({"images": [{"name": name, "digest": hexa} for name, hexa in rows]}),
            end="",
        )
        return
    shown = [(name, hexa if args.no_trunc else hexa[:SHORT]) for name, hexa in rows]
    print_table([("NAME", "DIGEST"), *shown])


def register(commands: Group) -> None:
    init = add_command(commands, "init", _init, "Make a repository.")
    init.add_argument("path", nargs="?")
    init.add_argument("--algorithm", default="fsverity-sha512-12")
    init.add_argument("--insecure", action="store_true", help="do without fs-verity")
    images = add_command(commands, "images", _images, "List the named images.")
    images.add_argument("--json", action="store_true")
    images.add_argument("--no-trunc", action="store_true")
