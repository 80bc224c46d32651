# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Compare our images, and what is printed of them, with the C tools' on random dump files.

    python -m tests.interop.compare_c [--count N] [--seed N]

Every file is written as V0 and as V1 by both, and the images have to be equal; then the C image is
printed by both `composefs-info` (dump, ls, objects), if that lies beside mkcomposefs, and every
tenth image goes through fsck.erofs, if there is one. A file that both refuse is no difference.

mkcomposefs is found by C_MKCOMPOSEFS_PATH, else on PATH. Seeds follow each other from --seed, which
is printed; a difference names its seed, and `--seed THAT --count 1` repeats it. Exit status 1 for a
difference or a missing tool.

Known and not counted as differences, but told:

* C fails with ERANGE where a whiteout, or its directory, already has an attribute that the format
  gives it: its count of bytes is too small. We write the image.
* C prints garbage behind the path of an object whose digest isn't known, and takes whatever has a
  user's attribute `trusted.overlay.whiteout` for a whiteout; such files aren't printed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootc import process
from bootc.composefs.digest import Algorithm
from bootc.composefs.dumpfile import parse_dump
from bootc.composefs.erofs_format import FormatVersion
from bootc.composefs.erofs_reader import read_image
from bootc.composefs.erofs_writer import write_image
from bootc.composefs.listing import info_lines, list_objects, ls_lines
from bootc.errors import BootcError, FormatError
from bootc.tree import Directory
from tests.interop.random_dumps import Maker

_VERSIONS = (FormatVersion.V0, FormatVersion.V1)
_HINT = "install composefs (Debian, Fedora: composefs), or set C_MKCOMPOSEFS_PATH"


@dataclass(slots=True)
class Counts:
    """What happened so far."""

    files: int = 0
    lines: int = 0
    equal: int = 0
    refused: int = 0
    c_fails: int = 0
    printed: int = 0
    checked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The programs; `info` and `fsck` may be missing."""

    make: str
    info: str | None
    fsck: str | None


def find_tools() -> Tools:
    """Find the programs. Raises `BootcError` if there is no mkcomposefs."""
    named = os.environ.get("C_MKCOMPOSEFS_PATH")
    if named is not None and not os.access(named, os.X_OK):
        raise BootcError(f"C_MKCOMPOSEFS_PATH={named}: not a program", hint=_HINT)
    make = named or process.need_program("mkcomposefs", hint=_HINT)
    beside = Path(make).with_name("composefs-info")
    info = str(beside) if beside.exists() else None
    usage = process.run([make, "--nonsense"], check=False)
    if "Usage: mkcomposefs [OPTIONS] SOURCE IMAGE" not in usage.stderr:
        raise BootcError(f"{make} is not the C tool", hint=_HINT)
    return Tools(make=make, info=info, fsck=process.find_program("fsck.erofs"))


def compare_file(tools: Tools, seed: int, folder: Path, counts: Counts) -> Iterator[str]:
    """Descriptions of what differs for the file of one seed."""
    maker = Maker(seed)
    text = maker.make()
    counts.files += 1
    counts.lines += text.count(b"\n")
    source, image = folder / "dump", folder / "image"
    source.write_bytes(text)
    for version in _VERSIONS:
        number = str(version.value)
        bounds = [f"--min-version={number}", f"--max-version={number}"]
        done = process.run(
            [tools.make, *bounds, "--from-file", str(source), str(image)], check=False
        )
        theirs = image.read_bytes() if done.status == 0 else None
        ours, problem = _write(text, version)
        if ours is None and theirs is None:
            counts.refused += 1
        elif theirs is None and maker.marks and "Numerical result out of range" in done.stderr:
            counts.c_fails += 1
        elif ours is None or theirs is None:
            yield f"V{number}: ours {problem or 'writes it'}, theirs {done.stderr.strip() or 'too'}"
        elif ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), -1)
            yield f"V{number}: the images differ at byte {at} ({len(ours)}, {len(theirs)} bytes)"
        else:
            counts.equal += 1
            if tools.info is not None and not (maker.unverified or maker.marks):
                counts.printed += 1
                yield from _compare_print(tools.info, version, image, theirs)
            if tools.fsck is not None and counts.equal % 10 == 0:
                counts.checked += 1
                process.run([tools.fsck, str(image)])


def _write(text: bytes, version: FormatVersion) -> tuple[bytes | None, str]:
    try:
        root = parse_dump(text, "dump")
        image = write_image(root, version=version, algorithm=Algorithm.SHA256, like_c=True)
        return image, ""
    except BootcError as error:
        return None, f"refuses: {error}"


def _compare_print(info: str, version: FormatVersion, image: Path, data: bytes) -> Iterator[str]:
    try:
        root = read_image(data, as_is=True)
    except FormatError as error:
        yield f"V{version.value}: cannot be read: {error}"
        return
    ways: dict[str, Callable[[Directory], list[str]]] = {
        "dump": lambda root: list(info_lines(root, version)),
        "ls": lambda root: list(ls_lines(root)),
        "objects": lambda root: [
            # As bootc.process decodes theirs.
            path.decode("utf-8", "replace")
            for path in sorted(list_objects(root))
        ],
    }
    for command, ours in ways.items():
        theirs = process.run([info, command, str(image)]).stdout
        mine = "".join(line + "\n" for line in ours(root))
        if mine != theirs:
            pairs = zip(mine.split("\n"), theirs.split("\n"), strict=False)
            first = next(((a, b) for a, b in pairs if a != b), ("(length)", "(length)"))
            yield f"V{version.value}, {command}: ours {first[0][:300]!r}, theirs {first[1][:300]!r}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare images with the C tools' ones.")
    parser.add_argument("--count", type=int, default=200, help="files (default: 200)")
    parser.add_argument("--seed", type=int, help="the first seed (default: any)")
    options = parser.parse_args(argv)
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    try:
        tools = find_tools()
    except BootcError as error:
        print(f"compare_c: {error} ({error.hint})", file=sys.stderr)
        return 1
    print(f"compare_c: seeds {first} to {first + options.count - 1}, {tools.make}", flush=True)
    counts = Counts()
    differences = 0
    with tempfile.TemporaryDirectory(prefix="bootc-compare-") as folder:
        for seed in range(first, first + options.count):
            for difference in compare_file(tools, seed, Path(folder), counts):
                differences += 1
                print(f"compare_c: seed {seed}: {difference}", file=sys.stderr, flush=True)
    print(
        f"compare_c: {counts.files} files, {counts.lines} lines: {counts.equal} images equal,"
        f" {differences} differences, {counts.refused} refused by both, {counts.c_fails} where C"
        f" fails, {counts.printed} printed by both, {counts.checked} checked by fsck.erofs"
    )
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
