# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl oci`: images pulled from elsewhere.

An image is named by its tag or by `@DIGEST`. For `compute-id` and `dump` that is the digest of the
config (the manifest's will do, too), for the others the manifest's. What is asked for by digest is
verified against it, layers included, unless the verity digest of the stream is given as well; what
is asked for by tag is believed as far as the repository itself is.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from bootc import jsonutil, log
from bootc.composefs.assemble import XattrMode, assemble, encode_image, transform_for_boot
from bootc.composefs.cli import oci_boot, oci_copy, oci_layers, varlink
from bootc.composefs.cli.common import (
    SHORT,
    Group,
    add_command,
    open_repository,
    print_table,
    tree_options,
)
from bootc.composefs.described import describe_image, inspect_image
from bootc.composefs.digest import digest_bytes
from bootc.composefs.dumpfile import dump_lines
from bootc.composefs.progress import (
    Done,
    Event,
    Message,
    OnProgress,
    Progress,
    Skipped,
    Started,
)
from bootc.composefs.repository import Repository
from bootc.composefs.stored import (
    load_image,
    load_images,
    load_named,
    manifest_content_id,
)
from bootc.errors import BootcError
from bootc.oci.model import check_digest
from bootc.tree import Directory

_log = logging.getLogger(__name__)
_REPORT_EVERY = 5.0
_LOCAL_FETCH = ("disabled", "auto", "if-possible", "zerocopy", "zero-copy")


def _reporter() -> OnProgress:
    """Says on stderr what a person should know, and every few seconds how far the pull is."""
    totals: dict[str, int] = {}
    fetched: dict[str, int] = {}
    last = time.monotonic()

    def report(event: Event) -> None:
        nonlocal last
        match event:
            case Message(text=text):
                _log.info("%s", text)
            case Started(id=id, total=total):
                totals[id] = total or 0
            case Progress(id=id, fetched=done):
                fetched[id] = done
                if time.monotonic() - last >= _REPORT_EVERY:
                    last = time.monotonic()
                    mebibytes = [sum(found.values()) >> 20 for found in (fetched, totals)]
                    _log.info("  %d of %d MiB of the layers that were begun", *mebibytes)
            case Skipped() | Done():
                pass

    return report


def _pull(args: argparse.Namespace) -> None:
    # What a pull needs, and nothing else here: threads, zstandard, the proxy.
    from bootc.composefs.committed import PlainImages, commit_pulled
    from bootc.composefs.pull import pull
    from bootc.oci.layout import LocalStorage, open_source
    from bootc.oci.proxy import ProxyOptions

    if args.expected_digest is not None and not args.bootable:
        raise BootcError("--expected-digest is about the bootable image", hint="add --bootable")
    zerocopy = args.local_fetch.startswith("zero")
    local = LocalStorage.AUTO
    if args.local_fetch == "disabled":
        local = LocalStorage.SKOPEO
    elif zerocopy:
        local = LocalStorage.NATIVE
    tag = args.name if args.name is not None else args.image
    options = ProxyOptions(
        authfile=args.authfile, insecure=args.tls_verify == "false", user_agent=args.user_agent
    )
    with open_repository(args) as repo:
        images = PlainImages(repo)
        with (
            log.step(f"pull {args.image}"),
            open_source(args.image, options, local=local) as source,
        ):
            pulled = pull(
                repo,
                source,
                reference=args.image,
                unpacked_max=args.layer_max,
                zerocopy=zerocopy,
                on_progress=_reporter(),
                meanwhile=images.make,
            )
        with log.step("write the composefs image"):
            done = commit_pulled(
                repo,
                pulled,
                plain_images=images,
                bootable=args.bootable,
                expected=args.expected_digest,
            )
        repo.tag(manifest_content_id(pulled.manifest_digest), tag)
    print(f"manifest {done.pulled.manifest_digest}")
    print(f"config   {done.pulled.config_digest}")
    print(f"verity   {done.pulled.manifest_id}")
    print(f"tagged   {tag}")
    print(f"objects  {done.pulled.stats}")
    if done.boot is not None:
        print(f"Boot image: {done.boot.id}")


def _images(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        rows = [describe_image(repo, image) for image in load_images(repo)]
    if args.json:
        print(jsonutil.pretty({"images": list(rows)}), end="")
        return
    table = [("NAME", "DIGEST", "ARCH", "LAYERS", "REFS")]
    for row in rows:
        digest = str(row["manifest_digest"]).removeprefix("sha256:")[:SHORT]
        kind = str(row["architecture"]) if row["is_container"] else "artifact"
        counts = (str(row["layer_count"]), str(row["referrer_count"]))
        table.append((str(row["name"]), digest, kind, *counts))
    print_table(table)


def _tree(args: argparse.Namespace, repo: Repository) -> Directory:
    image = load_named(repo, args.image, args.verity)
    root = assemble(repo, image, xattrs=XattrMode(args.xattrs))
    if args.bootable:
        transform_for_boot(root, repo)
    return root


def _compute_id(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        data = encode_image(repo, _tree(args, repo))
        print(digest_bytes(data, repo.algorithm).hex())


def _dump(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        for line in dump_lines(_tree(args, repo)):
            print(line)


def _inspect(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        image = load_image(repo, args.image)
        value = inspect_image(repo, image)
    if args.manifest or args.config:
        sys.stdout.buffer.write((image.manifest if args.manifest else image.config) + b"\n")
        return
    print(jsonutil.pretty(value), end="")


def _tag(args: argparse.Namespace) -> None:
    digest = check_digest(args.manifest_digest.removeprefix("@"), "the command line", "DIGEST")
    with open_repository(args) as repo:
        repo.tag(manifest_content_id(digest), args.name)
    print(f"Tagged {digest} as {args.name}")


def _untag(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        repo.untag(args.name)
    print(f"Removed tag {args.name}")


def _size(text: str) -> int:
    """`5000000000`, `5G`: bytes, with a binary suffix if there is one."""
    number, suffix = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    powers = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
    if not number.isdigit() or suffix not in powers:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 5000000000 or 5G")
    return int(number) << powers[suffix]


def register(commands: Group) -> None:
    group = commands.add_parser("oci", help="OCI images").add_subparsers(
        metavar="COMMAND", required=True
    )
    made = add_command(group, "pull", _pull, "Pull an image.")
    made.add_argument("image", help="oci:PATH[:TAG], docker://NAME, …")
    made.add_argument("name", nargs="?", help="its tag, if not IMAGE")
    made.add_argument("--bootable", action="store_true", help="make the bootable image, too")
    made.add_argument(
        "--expected-digest", metavar="HEX", help="find the bootable image that has it"
    )
    made.add_argument(
        "--local-fetch",
        choices=_LOCAL_FETCH,
        default="auto",
        help="how containers-storage is read: auto (directly, or by skopeo where that cannot be),"
        " zerocopy (directly, and nothing is copied), disabled (by skopeo)",
    )
    made.add_argument("--authfile", metavar="FILE", help="credentials for the registry")
    made.add_argument("--tls-verify", choices=["true", "false"], default="true")
    made.add_argument("--user-agent", metavar="TEXT", help="needs skopeo 1.19")
    made.add_argument(
        "--layer-max",
        type=_size,
        metavar="SIZE",
        help="what a layer may unpack to; default: the size of the repository's file system",
    )
    add_command(group, "images", _images, "List the tagged images.").add_argument(
        "--json", action="store_true"
    )
    for name, run, text in (
        ("compute-id", _compute_id, "Print the digest of the image of an image's tree."),
        ("dump", _dump, "Print an image's tree as a dump file."),
    ):
        made = add_command(group, name, run, text)
        made.add_argument("image", help="a tag, or @DIGEST of a config")
        made.add_argument("verity", nargs="?", help="what the split stream has to be")
        tree_options(made)
    made = add_command(group, "inspect", _inspect, "Show an image's documents.")
    made.add_argument("image", help="a tag, or @DIGEST of a manifest")
    which = made.add_mutually_exclusive_group()
    which.add_argument("--manifest", action="store_true", help="the raw manifest only")
    which.add_argument("--config", action="store_true", help="the raw config only")
    made = add_command(group, "tag", _tag, "Give an image a tag.")
    made.add_argument("manifest_digest", metavar="DIGEST", help="of the manifest")
    made.add_argument("name")
    add_command(group, "untag", _untag, "Remove a tag.").add_argument("name")
    oci_layers.register(group)
    oci_boot.register(group)
    oci_copy.register(group)
    varlink.register(group)
