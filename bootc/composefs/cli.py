# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl`: a composefs repository from the command line, with the output of the original tool.

Errors are one line on stderr (a hint is a second one) and exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from bootc import __version__, jsonutil, log
from bootc.composefs.assemble import (
    XattrMode,
    assemble,
    commit_image,
    encode_image,
    transform_for_boot,
    transform_for_oci,
)
from bootc.composefs.digest import digest_bytes
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository, read_algorithm
from bootc.composefs.scan import find_digest, scan_directory, store_content
from bootc.composefs.stored import attach_images, image_key, load_image, load_images
from bootc.errors import BootcError, chain_text
from bootc.jsonutil import Json
from bootc.oci.layout import open_source
from bootc.oci.model import read_config, read_manifest
from bootc.oci.reference import parse_imgref
from bootc.tree import Directory

_SHORT = 12


def _repository_path(args: argparse.Namespace) -> str:
    if args.repo is not None:
        return str(args.repo)
    if args.user or (not args.system and os.getuid() != 0):
        home = os.environ.get("HOME")
        if not home:
            raise BootcError("HOME is not set", hint="name the repository with --repo")
        return os.path.join(home, ".var/lib/composefs")
    return "/sysroot/composefs"


def _open(args: argparse.Namespace) -> Repository:
    repo = Repository.open(_repository_path(args))
    try:
        if args.hash is not None and args.hash != repo.algorithm.value:
            raise BootcError(f"{repo.path} uses {repo.algorithm.value}, not {args.hash}")
        if args.require_verity and not repo.secure:
            raise BootcError(
                f"{repo.path} does not require fs-verity", hint="leave --require-verity out"
            )
    except BaseException:
        repo.close()
        raise
    return repo


def _init(args: argparse.Namespace) -> None:
    path = args.path if args.path is not None else _repository_path(args)
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


def _oci_pull(args: argparse.Namespace) -> None:
    tag = args.name if args.name is not None else args.image
    parse_imgref(args.image)
    with _open(args) as repo, log.step(f"pull {args.image}"), open_source(args.image) as source:
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


def _oci_images(args: argparse.Namespace) -> None:
    with _open(args) as repo:
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
        digest = str(row["manifest_digest"]).removeprefix("sha256:")[:_SHORT]
        table.append((str(row["name"]), digest, str(row["architecture"]), str(row["layer_count"])))
    _print_table(table)


def _oci_compute_id(args: argparse.Namespace) -> None:
    with _open(args) as repo:
        root = assemble(repo, load_image(repo, args.image), xattrs=XattrMode(args.xattrs))
        if args.bootable:
            transform_for_boot(root, repo)
        print(digest_bytes(encode_image(repo, root), repo.algorithm).hex())


def _oci_inspect(args: argparse.Namespace) -> None:
    with _open(args) as repo:
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


def _oci_tag(args: argparse.Namespace) -> None:
    with _open(args) as repo:
        repo.tag(f"oci-manifest-{args.manifest_digest}", args.name)


def _oci_untag(args: argparse.Namespace) -> None:
    with _open(args) as repo:
        repo.untag(args.name)


def _images(args: argparse.Namespace) -> None:
    with _open(args) as repo:
        rows = list(repo.image_refs())
    if args.json:
        print(
            jsonutil.pretty({"images": [{"name": name, "digest": hexa} for name, hexa in rows]}),
            end="",
        )
        return
    shown = [(name, hexa if args.no_trunc else hexa[:_SHORT]) for name, hexa in rows]
    _print_table([("NAME", "DIGEST"), *shown])


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


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
    with _open(args) as repo:
        image = commit_image(repo, _scan(args, repo, store=True), name=args.name)
        print(f"{repo.algorithm.value}:{image.id}")


def _compute_id(args: argparse.Namespace) -> None:
    with _open(args) as repo:
        data = encode_image(repo, _scan(args, repo, store=False))
        print(digest_bytes(data, repo.algorithm).hex())


def _tree_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bootable", action="store_true", help="transform it for booting")
    parser.add_argument(
        "--xattrs", choices=[mode.value for mode in XattrMode], default="allowlist-only"
    )


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

    def command(
        group: argparse._SubParsersAction[argparse.ArgumentParser],
        name: str,
        run: Callable[[argparse.Namespace], None],
        text: str,
    ) -> argparse.ArgumentParser:
        made = group.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    init = command(commands, "init", _init, "Make a repository.")
    init.add_argument("path", nargs="?")
    init.add_argument("--algorithm", default="fsverity-sha512-12")
    init.add_argument("--insecure", action="store_true", help="do without fs-verity")
    images = command(commands, "images", _images, "List the named images.")
    images.add_argument("--json", action="store_true")
    images.add_argument("--no-trunc", action="store_true")
    for name, run, text in (
        ("create-image", _create_image, "Store a directory as an image."),
        ("compute-id", _compute_id, "Print the digest of a directory's image."),
    ):
        made = command(commands, name, run, text)
        made.add_argument("path")
        if run is _create_image:
            made.add_argument("name", nargs="?")
        made.add_argument("--no-propagate-usr-to-root", action="store_true")
        _tree_options(made)
    group = commands.add_parser("oci", help="OCI images").add_subparsers(
        metavar="COMMAND", required=True
    )
    made = command(group, "pull", _oci_pull, "Pull an image.")
    made.add_argument("image", help="oci:PATH[:TAG], docker://NAME, …")
    made.add_argument("name", nargs="?", help="its tag, if not IMAGE")
    made.add_argument("--bootable", action="store_true", help="make the bootable image, too")
    made.add_argument("--expected-digest", metavar="HEX")
    command(group, "images", _oci_images, "List the tagged images.").add_argument(
        "--json", action="store_true"
    )
    made = command(group, "compute-id", _oci_compute_id, "Print the digest of an image's tree.")
    made.add_argument("image", help="a tag, or @DIGEST of a manifest")
    _tree_options(made)
    made = command(group, "inspect", _oci_inspect, "Show an image's documents.")
    made.add_argument("image")
    made.add_argument("--manifest", action="store_true", help="the raw manifest only")
    made.add_argument("--config", action="store_true", help="the raw config only")
    made = command(group, "tag", _oci_tag, "Give an image a tag.")
    made.add_argument("manifest_digest")
    made.add_argument("name")
    command(group, "untag", _oci_untag, "Remove a tag.").add_argument("name")
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
