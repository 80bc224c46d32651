# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl`'s commands about the repository itself, its streams and its images.

Most commands are small and asked for often, so what only some of them need (reading images and
streams, garbage collection, checking) is imported by those.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from itertools import islice
from typing import TYPE_CHECKING

from bootc import jsonutil
from bootc.composefs.cli.common import (
    SHORT,
    Group,
    add_command,
    open_repository,
    print_table,
    repository_path,
)
from bootc.composefs.digest import Algorithm
from bootc.composefs.repository import OpenStatus, Repository, read_algorithm
from bootc.errors import BootcError

if TYPE_CHECKING:
    from bootc.tree import Directory

_CHUNK = 1 << 20
_BACKING = "--backing-path-only"
_KEPT = " (existing configuration preserved)"


def _init(args: argparse.Namespace) -> None:
    path = args.path if args.path is not None else repository_path(args)
    algorithm = None
    if args.algorithm is not None:
        algorithm = read_algorithm(args.algorithm, "--algorithm")
    if args.hash is not None:
        if algorithm not in (None, args.hash):
            raise BootcError(f"--hash {args.hash} and --algorithm {args.algorithm} differ")
        algorithm = Algorithm(args.hash)
    secure = not args.insecure
    version = 1 if args.erofs_version is None else args.erofs_version
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if args.ensure:
        repo, status = Repository.ensure(
            path, algorithm=algorithm, secure=secure, erofs_version=version
        )
        said = {
            OpenStatus.OPENED: f"Repository already initialized at {path}{_KEPT}",
            OpenStatus.UPGRADED: f"Upgraded legacy repository at {path}",
        }.get(status)
    else:
        if args.reset_metadata and os.path.lexists(path):
            Repository.reset_metadata(path)
        existed = os.path.lexists(os.path.join(path, "meta.json"))
        repo = Repository.init(
            path, algorithm=algorithm or Algorithm.SHA512, secure=secure, erofs_version=version
        )
        said = f"Repository already initialized at {path}" if existed else None
    with repo:
        if said is not None:
            print(said)
            return
        print(f"Initialized composefs repository at {path}")
        print(f"  algorithm: {repo.algorithm.identifier}")
        print(f"  verity:    {'required' if repo.secure else 'not required (insecure)'}")


def _transaction(args: argparse.Namespace) -> None:
    with open_repository(args):
        signal.pause()


def _cat(args: argparse.Namespace) -> None:
    from bootc.composefs.splitstream import read_splitstream

    with open_repository(args) as repo:
        content_id = repo.resolve_stream(args.name)
        stream = read_splitstream(repo.read_stream(content_id), content_id)
        out = sys.stdout.buffer
        for chunk in stream.chunks():
            if isinstance(chunk, bytes):
                out.write(chunk)
                continue
            with os.fdopen(repo.open_object(stream.object_refs[chunk]), "rb") as file:
                while piece := file.read(_CHUNK):
                    out.write(piece)


def _gc(args: argparse.Namespace) -> None:
    from bootc.composefs.gc import collect_garbage

    with open_repository(args) as repo:
        result = collect_garbage(repo, roots=args.root, dry_run=args.dry_run)
    if args.dry_run:
        print("Dry run (no files deleted):")
    print(f"Objects: {result.objects_removed} removed ({result.objects_bytes} bytes)")
    if result.images_pruned or result.streams_pruned:
        pruned = f"{result.images_pruned} images, {result.streams_pruned} streams"
        print(f"Pruned symlinks: {pruned}")


def _import_image(args: argparse.Namespace) -> None:
    from bootc.composefs.erofs_image import SIZE_MAX
    from bootc.composefs.erofs_reader import collect_objects

    if sys.stdin.buffer.isatty():
        raise BootcError("there is no image on stdin", hint="redirect a file: … <image.erofs")
    with open_repository(args) as repo:
        repo.need_writable()
        data = sys.stdin.buffer.read(SIZE_MAX + 1)
        # What is published may be mounted, so it is looked at before.
        collect_objects(data, "stdin")
        digest = repo.write_image(data, args.reference)
        print(f"{repo.algorithm.value}:{digest.hex()}")


def _images(args: argparse.Namespace) -> None:
    with open_repository(args) as repo:
        rows = list(repo.image_refs())
    if args.json:
        print(
            jsonutil.pretty({"images": [{"name": name, "digest": hexa} for name, hexa in rows]}),
            end="",
        )
    elif not rows:
        print("No images found")
    else:
        shown = [(name, hexa if args.no_trunc else hexa[:SHORT]) for name, hexa in rows]
        print_table([("NAME", "DIGEST"), *shown])


def _image_objects(args: argparse.Namespace) -> None:
    from bootc.composefs.erofs_reader import collect_objects

    with open_repository(args) as repo:
        for digest in sorted(collect_objects(repo.read_image(args.name), args.name)):
            print(f"{repo.algorithm.value}:{digest.hex()}")


def _dump_files(args: argparse.Namespace) -> None:
    from bootc.composefs.erofs_reader import read_image

    with open_repository(args) as repo:
        root = read_image(repo.read_image(args.image), args.image)
    _count_links(root)
    # All of them first, so that a wrong one leaves nothing half-printed.
    files = [file for file in args.files if file != _BACKING]
    short = args.backing_path_only or len(files) < len(args.files)
    show = _backing_path if short else _dump
    for lines in [show(root, path) for path in files]:
        print("\n".join(lines))


def _count_links(root: Directory) -> None:
    """Let each file know how many names it has in the whole image."""
    from bootc.tree import Leaf, walk

    for _, node in walk(root):
        if isinstance(node, Leaf):
            node.nlink = (node.nlink or 0) + 1


def _parts(path: str) -> list[bytes]:
    parts = [part for part in os.fsencode(path).split(b"/") if part not in (b"", b".")]
    if b".." in parts or not path.startswith("/"):
        raise BootcError(f"{path!r} is no absolute path in an image")
    return parts


def _dump(root: Directory, path: str) -> list[str]:
    """The lines of a dump file for what is at `path` and below it."""
    from bootc.composefs.dumpfile import dump_lines
    from bootc.tree import Directory, Stat

    parts = _parts(path)
    node = root.find(b"/".join(parts))
    if node is None:
        raise BootcError(f"{path} not found")
    if not parts:
        return list(dump_lines(root))
    top = folder = Directory(Stat())
    for part in parts[:-1]:
        below = Directory(Stat())
        folder.entries[part] = below
        folder = below
    folder.entries[parts[-1]] = node
    return list(islice(dump_lines(top), len(parts), None))


def _backing_path(root: Directory, path: str) -> list[str]:
    """Where the content of the file at `path` is: in the image, or in this object."""
    from bootc.composefs.erofs_format import object_path
    from bootc.tree import Directory, External

    node = root.find(b"/".join(_parts(path)))
    if node is None:
        raise BootcError(f"{path} not found")
    if isinstance(node, Directory):
        raise BootcError(f"{path} is a directory")
    content = node.content
    where = b"inline"
    if isinstance(content, External):
        where = content.payload or object_path(content.digest or b"")
    return [f"{path} {os.fsdecode(where)}"]


def _fsck(args: argparse.Namespace) -> None:
    from bootc.composefs.fsck import check_repository

    with open_repository(args) as repo:
        report = check_repository(repo, metadata_only=args.metadata_only)
    if args.json:
        print(jsonutil.pretty(report.to_json()), end="")
        return
    print(report.to_text(), end="", flush=True)
    if not report.ok:
        raise BootcError("repository integrity check failed")


def register(commands: Group) -> None:
    made = add_command(commands, "init", _init, "Make a repository.")
    made.add_argument("path", nargs="?", help="where, if not --repo, --user or --system")
    made.add_argument("--algorithm", metavar="NAME", help="default: fsverity-sha512-12")
    made.add_argument(
        "--insecure",
        action="store_true",
        default=argparse.SUPPRESS,
        help="do without fs-verity",
    )
    how = made.add_mutually_exclusive_group()
    how.add_argument(
        "--reset-metadata",
        action="store_true",
        help="remove streams and images of an existing one, keep the objects, make it anew",
    )
    how.add_argument(
        "--ensure", action="store_true", help="take an existing one as it is configured"
    )
    made.add_argument(
        "--erofs-version",
        type=int,
        choices=[0, 1, 2],
        default=argparse.SUPPRESS,
        help="of its images (default: 1)",
    )
    add_command(
        commands, "transaction", _transaction, "Keep garbage collection out until this is ended."
    )
    made = add_command(commands, "cat", _cat, "Write the content of a stream to stdout.")
    made.add_argument("name", help="its content id, or refs/NAME")
    made = add_command(commands, "gc", _gc, "Remove what nothing refers to.")
    made.add_argument(
        "-r",
        "--root",
        action="append",
        default=[],
        metavar="NAME",
        help="keep this image or stream, too",
    )
    made.add_argument("-n", "--dry-run", action="store_true", help="only say what would go")
    made = add_command(commands, "import-image", _import_image, "Store the image on stdin.")
    made.add_argument("reference", help="its name")
    for name in ("images", "list-images"):
        made = add_command(commands, name, _images, "List the named images.")
        made.add_argument("--json", action="store_true")
        made.add_argument("--no-trunc", action="store_true", help="show whole digests")
    made = add_command(commands, "image-objects", _image_objects, "List an image's objects.")
    made.add_argument("name", help="its digest, or refs/NAME")
    made = add_command(commands, "dump-files", _dump_files, "Tell about files in an image.")
    made.add_argument("image", help="its digest, or refs/NAME")
    # argparse of 3.11 takes an option after IMAGE for the end of an optional list.
    made.add_argument(
        "files", nargs="...", metavar="FILE", help="a file, or a directory for all in it"
    )
    made.add_argument(
        _BACKING, action="store_true", help="only the object that a file's content is"
    )
    made = add_command(commands, "fsck", _fsck, "Check the repository.")
    made.add_argument("--json", action="store_true", help="as JSON, with exit status 0")
    made.add_argument("--metadata-only", action="store_true", help="do not read the objects")
