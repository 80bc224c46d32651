# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`mkcomposefs SOURCE IMAGE`: an image of a directory or of a dump file, byte for byte as the C
tool of this name makes it. Specification: mkcomposefs(1).

Digests are sha256. A directory's contents of more than 64 bytes go to the digest store, if one is
named. Options about what of a directory is taken mean nothing for a dump file. It is read strictly
(see dumpfile) when the environment has CFS_PARSE_STRICT.

Format versions: the image is written as the lowest one, 0, and as 1 when it contains whiteouts and
the highest one is at least 1. As soon as one of `--min-version` and `--max-version` is given, the
other one defaults to 0, and a highest one below the lowest is raised to it.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bootc.composefs.cli import classic
from bootc.composefs.cli.classic import UsageError
from bootc.composefs.collector import paused_collector
from bootc.composefs.digest import Algorithm
from bootc.composefs.erofs_format import FormatVersion
from bootc.composefs.erofs_writer import ImageDraft, has_whiteouts
from bootc.composefs.scan import ScanOptions, Xattrs, find_digest, scan_directory, store_files
from bootc.errors import BootcError
from bootc.tree import Directory

USAGE = """\
usage: mkcomposefs [OPTIONS] SOURCE IMAGE
  --from-file           SOURCE is a dump file (- for the standard input), not a directory
  --digest-store=DIR    store the contents of files in this directory
  --print-digest        print the image's fs-verity digest
  --print-digest-only   print it, and write no IMAGE (which isn't given, then)
  --use-epoch           set all modification times to zero
  --skip-devices        leave block and character devices out
  --skip-xattrs         leave extended attributes out
  --user-xattrs         take only extended attributes that begin with user.
  --min-version=N       lowest format version (default: 0)
  --max-version=N       highest format version (default: 1, or 0 if --min-version is given)
  --threads=N           processes that compute digests and copy (default: one per processor)
IMAGE may be - for the standard output.
"""
_NAMES = (
    *("from-file", "digest-store=", "print-digest", "print-digest-only", "use-epoch"),
    *("skip-devices", "skip-xattrs", "user-xattrs", "min-version=", "max-version=", "threads="),
)
_NUMBER = re.compile(r"\s*[+-]?[0-9]+\Z", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeOptions:
    """The command line; `image` is None for `--print-digest-only`."""

    source: str
    image: str | None
    from_file: bool = False
    digest_store: str | None = None
    print_digest: bool = False
    use_epoch: bool = False
    skip_devices: bool = False
    skip_xattrs: bool = False
    user_xattrs: bool = False
    min_version: int = 0
    max_version: int = 1
    threads: int | None = None


def parse_options(argv: Sequence[str]) -> MakeOptions:
    """Read the command line. Raises `UsageError`, and `BootcError` for a bad value."""
    options, operands = classic.split_options(argv, _NAMES)
    given = dict(options)
    if not operands:
        raise UsageError("no SOURCE is given")
    only = "--print-digest-only" in given
    if len(operands) > 2:
        raise UsageError("there are more operands than SOURCE and IMAGE")
    if only and len(operands) == 2:
        raise UsageError("no IMAGE is written with --print-digest-only: leave it out")
    if not only and len(operands) == 1:
        raise UsageError("no IMAGE is given")
    if "--skip-xattrs" in given and "--user-xattrs" in given:
        raise BootcError("--skip-xattrs and --user-xattrs contradict each other")
    lowest, highest = _number(given, "--min-version"), _number(given, "--max-version")
    if lowest is None and highest is None:
        highest = 1
    threads = _number(given, "--threads")
    if threads is not None and threads < 1:
        raise BootcError(f"--threads={given['--threads']}: at least one is needed")
    return MakeOptions(
        source=operands[0],
        image=None if only else operands[1],
        from_file="--from-file" in given,
        digest_store=given.get("--digest-store"),
        print_digest=only or "--print-digest" in given,
        use_epoch="--use-epoch" in given,
        skip_devices="--skip-devices" in given,
        skip_xattrs="--skip-xattrs" in given,
        user_xattrs="--user-xattrs" in given,
        min_version=lowest or 0,
        max_version=max(highest or 0, lowest or 0),
        threads=threads,
    )


def _number(given: dict[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not _NUMBER.match(text):
        raise BootcError(f"{name}={text}: not a number")
    return int(text)


def choose_version(options: MakeOptions, root: Directory) -> FormatVersion:
    """The version that the image gets."""
    if not 0 <= options.min_version <= 1 or options.max_version > 1:
        raise BootcError("there are only the format versions 0 and 1")
    if options.max_version > options.min_version and has_whiteouts(root):
        return FormatVersion.V1
    return FormatVersion(options.min_version)


def draft_image(options: MakeOptions) -> ImageDraft:
    """The image of SOURCE; with a digest store, its contents are in there after this."""
    drafts: list[ImageDraft] = []

    def draft(root: Directory) -> None:
        version = choose_version(options, root)
        drafts.append(ImageDraft(root, version=version, algorithm=Algorithm.SHA256, like_c=True))

    if options.from_file:
        draft(_read_file(options.source))
    else:
        _scan(options, draft)
    return drafts[0]


def _read_file(source: str) -> Directory:
    from bootc.composefs.dumpfile import read_dump  # a quarter of the time that all imports take

    strict = "CFS_PARSE_STRICT" in os.environ
    if source == "-":
        return read_dump(sys.stdin.buffer, "standard input", strict=strict)
    with open(source, "rb") as file:
        return read_dump(file, source, strict=strict)


def _scan(options: MakeOptions, meanwhile: Callable[[Directory], None]) -> None:
    if not stat.S_ISDIR(os.lstat(options.source).st_mode):
        raise BootcError(
            f"{options.source} is not a directory", hint="a dump file is read with --from-file"
        )
    xattrs = Xattrs.NONE if options.skip_xattrs else Xattrs.ALL
    taken = ScanOptions(
        xattrs=Xattrs.USER if options.user_xattrs else xattrs,
        devices=not options.skip_devices,
        times=not options.use_epoch,
        links=False,
    )
    processes = options.threads
    keep = find_digest(Algorithm.SHA256, processes=processes)
    if options.digest_store is not None:
        keep = store_files(options.digest_store, processes=processes)
    scan_directory(options.source, keep, taken, meanwhile=meanwhile)


def make(argv: Sequence[str]) -> None:
    """Do what the command line says."""
    options = parse_options(argv)
    with contextlib.ExitStack() as stack:
        # Trees are large and have no cycles.
        stack.enter_context(paused_collector())
        writers: list[Callable[[bytes], None]] = []
        if options.image is not None:
            # First, so that a name that can't be written isn't found out after all the work.
            writers.append(stack.enter_context(classic.output(options.image, standard=True)))
        hasher = Algorithm.SHA256.hasher()
        if options.print_digest:
            writers.append(hasher.update)
        for piece in draft_image(options).blocks():
            for write in writers:
                write(piece)
    if options.print_digest:
        print(hasher.digest().hex())


def main(argv: Sequence[str]) -> int:
    """Run the tool and return the exit status."""
    return classic.run("mkcomposefs", USAGE, make, argv)


def entry() -> None:
    """The console script."""
    classic.script(main)
