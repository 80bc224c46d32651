# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl`'s commands about directories: images made of them, their digests, their dump files.

A directory is taken for the root of an operating system (its root gets the metadata of /usr, /run
is emptied, extended attributes are filtered) unless `--no-propagate-usr-to-root` says that it is to
be taken as it is.

`create-image` makes an image in each format of the repository; the first one gets the name and is
printed. The other commands store nothing and need no repository. What they print mustn't depend on
the machine that they run on, which may be another than the one to be booted. So of a repository,
if there is one, they take the algorithm only; the version is 1 and verity is demanded, unless the
options say otherwise.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

from bootc.composefs.assemble import (
    XattrMode,
    commit_image,
    transform_for_boot,
    transform_for_oci,
)
from bootc.composefs.cli.common import (
    Group,
    add_command,
    open_repository,
    repository_path,
    tree_options,
)
from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.dumpfile import dump_lines
from bootc.composefs.erofs_format import FormatVersion
from bootc.composefs.erofs_writer import write_image
from bootc.composefs.karg import format_karg
from bootc.composefs.repository import Repository
from bootc.composefs.scan import find_digest, scan_directory, store_content
from bootc.errors import BootcError
from bootc.tree import Directory, External, Leaf, walk

_POLICY = "etc/selinux"


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Of an image: the algorithm of its digests, its version, whether verity may be missing."""

    algorithm: Algorithm
    version: FormatVersion
    insecure: bool

    def encode(self, root: Directory) -> bytes:
        return write_image(root, version=self.version, algorithm=self.algorithm)


class _ScannedContents:
    """Contents of the files below etc/selinux of a directory that was scanned but not stored."""

    def __init__(self, path: str, root: Directory) -> None:
        self._paths: dict[bytes, str] = {}
        policy = root.find_directory(_POLICY)
        for name, node in walk(policy) if policy is not None else ():
            content = node.content if isinstance(node, Leaf) else None
            if isinstance(content, External) and content.digest is not None:
                where = os.path.join(path, _POLICY, os.fsdecode(name).lstrip("/"))
                self._paths[content.digest] = where

    def read_object(self, digest: bytes) -> bytes:
        path = self._paths.get(digest)
        if path is None:
            raise BootcError(f"the content with the digest {digest.hex()} is not in {_POLICY}")
        with open(path, "rb") as file:
            return file.read()


def _format(args: argparse.Namespace) -> Format:
    return Format(
        algorithm=_algorithm(args),
        version=FormatVersion(1 if args.erofs_version is None else args.erofs_version),
        insecure=args.insecure,
    )


def _algorithm(args: argparse.Namespace) -> Algorithm:
    if args.hash:
        return Algorithm(args.hash)
    named = args.repo is not None or args.user or args.system
    if args.no_repo or not (named or os.path.exists(repository_path(args))):
        return Algorithm.SHA512
    with open_repository(args) as repo:
        return repo.algorithm


def _scan(args: argparse.Namespace, algorithm: Algorithm, repo: Repository | None) -> Directory:
    """The directory as the tree of the image; its contents are stored if there is a `repo`."""
    root = scan_directory(
        args.path, find_digest(algorithm) if repo is None else store_content(repo)
    )
    if not args.no_propagate_usr_to_root:
        transform_for_oci(root, xattrs=XattrMode(args.xattrs))
    if args.bootable:
        transform_for_boot(root, _ScannedContents(args.path, root) if repo is None else repo)
    return root


def _create_image(args: argparse.Namespace) -> None:
    if args.no_repo:
        raise BootcError(
            "create-image stores an image, so it needs a repository",
            hint="leave --no-repo out, or use compute-id",
        )
    with open_repository(args) as repo:
        root = _scan(args, repo.algorithm, repo)
        names = [args.name, *[None] * (len(repo.erofs_versions) - 1)]
        made = [
            commit_image(repo, root, name=name, version=version)
            for name, version in zip(names, repo.erofs_versions, strict=True)
        ]
    print(f"{repo.algorithm.value}:{made[0].id}")


def _compute_id(args: argparse.Namespace) -> None:
    form = _format(args)
    print(digest_bytes(form.encode(_scan(args, form.algorithm, None)), form.algorithm).hex())


def _compute_karg(args: argparse.Namespace) -> None:
    form = _format(args)
    digest = digest_bytes(form.encode(_scan(args, form.algorithm, None)), form.algorithm)
    print(
        format_karg(digest, algorithm=form.algorithm, version=form.version, insecure=form.insecure)
    )


def _create_dumpfile(args: argparse.Namespace) -> None:
    form = _format(args)
    for line in dump_lines(_scan(args, form.algorithm, None)):
        print(line)


def register(commands: Group) -> None:
    create = add_command(commands, "create-image", _create_image, "Store a directory as an image.")
    compute = add_command(
        commands, "compute-id", _compute_id, "Print the digest of a directory's image."
    )
    karg = add_command(
        commands,
        "compute-karg",
        _compute_karg,
        "Print the kernel argument that boots a directory's image.",
    )
    dump = add_command(
        commands, "create-dumpfile", _create_dumpfile, "Print a directory as a dump."
    )
    for made in (create, compute, karg, dump):
        made.add_argument("path", help="the directory")
        made.add_argument(
            "--no-propagate-usr-to-root",
            action="store_true",
            help="take the directory as it is, not as the root of an operating system",
        )
        if made is not karg:
            tree_options(made)
    karg.set_defaults(bootable=True, xattrs=XattrMode.ALLOWLIST_ONLY.value)
    create.add_argument("name", nargs="?", help="a reference to the image")
