# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl oci import-layer` and `cfsctl oci layer`: single layers, in and out.

A layer is named by its diff id, the digest of the tar. The tar comes back bit for bit.
"""

from __future__ import annotations

import argparse
import os
import sys

from bootc import jsonutil
from bootc.composefs.cli.common import Group, add_command, open_repository
from bootc.composefs.dumpfile import dump_lines, escape
from bootc.composefs.repository import NotFoundError, Repository
from bootc.composefs.splitstream import SplitStream
from bootc.composefs.stored import layer_content_id, open_stream
from bootc.composefs.stored_layers import read_bytes, read_stored_layer, verify_layer
from bootc.errors import BootcError
from bootc.oci.model import check_digest
from bootc.tree import Directory, Stat


def _digest(text: str) -> str:
    return check_digest(text, "the command line", "DIFF_ID")


def _import_layer(args: argparse.Namespace) -> None:
    from bootc.composefs.pull import import_tar

    diff_id = _digest(args.digest)
    with (
        open_repository(args) as repo,
        os.fdopen(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as tar,
    ):
        verity = import_tar(repo, tar, diff_id, name=args.name)
        print(f"{repo.algorithm.value}:{verity.hex()}")


def _layer(args: argparse.Namespace) -> None:
    diff_id = _digest(args.layer)
    plain = not (args.json or args.dumpfile)
    if plain and sys.stdout.isatty():
        raise BootcError("a tar is not for a terminal", hint="send stdout to a file, or --dumpfile")
    with open_repository(args) as repo:
        content_id = layer_content_id(diff_id)
        verity = repo.find_stream(content_id)
        if verity is None:
            raise NotFoundError(
                f"there is no layer {diff_id} in {repo.path}",
                hint="`cfsctl oci inspect --config IMAGE` lists an image's diff ids",
            )
        stream = open_stream(repo, content_id)
        if args.json:
            print(jsonutil.pretty(_describe(repo, stream, diff_id, verity)), end="")
        elif args.dumpfile:
            _print_members(stream)
        else:
            if not repo.secure:
                verify_layer(repo, stream, diff_id)
            for piece in read_bytes(repo, stream):
                sys.stdout.buffer.write(piece)


def _describe(
    repo: Repository, stream: SplitStream, diff_id: str, verity: bytes
) -> dict[str, jsonutil.Json]:
    inline = sum(len(chunk) for chunk in stream.chunks() if isinstance(chunk, bytes))
    return {
        "diffId": diff_id,
        "verity": verity.hex(),
        "size": stream.total_size,
        "entryCount": sum(1 for _ in read_stored_layer(stream)),
        "splitstream": {
            "externalObjects": len(stream.object_refs),
            "externalSize": stream.total_size - inline,
            "inlineSize": inline,
        },
    }


def _print_members(stream: SplitStream) -> None:
    for entry in read_stored_layer(stream):
        if entry.node is None:
            print(f"/{escape(entry.path)} 0 @120000 - - - - 0.0 /{escape(entry.link)} - -")
            continue
        # A tree of this member alone, its whole path as its name, or of the root alone.
        alone = Directory(Stat(), {entry.path: entry.node}) if entry.path else entry.node
        assert isinstance(alone, Directory)
        *_, line = dump_lines(alone)
        print(line)


def register(group: Group) -> None:
    made = add_command(group, "import-layer", _import_layer, "Store a tar, unpacked, from stdin.")
    made.add_argument("digest", metavar="DIFF_ID", help="the tar's digest")
    made.add_argument("name", nargs="?", help="a reference to it")
    made = add_command(group, "layer", _layer, "Give back a layer's tar, or describe it.")
    made.add_argument("layer", metavar="DIFF_ID")
    how = made.add_mutually_exclusive_group()
    how.add_argument("--dumpfile", action="store_true", help="its members as dump file lines")
    how.add_argument("--json", action="store_true", help="its sizes")
