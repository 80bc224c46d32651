# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Images, dump files and split streams against the reference's cfsctl.

    nox -s interop -- composefs reference [--seed S] [--count N]

* directories: N random ones; the ids that both compute, of each version and algorithm, as they are
  and as the root of an operating system (with /usr, and both ways to filter attributes);
* create-image: into a repository of each; the images' ids and the objects;
* dump files: the images that both make of random ones, and ours, of each version, read by theirs;
* layers: random tars; imported by each, the split streams read by the other one.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import random
import shutil
import stat as st
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bootc import process
from bootc.composefs.assemble import XattrMode, transform_for_oci
from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.dumpfile import dump_lines, format_dump, parse_dump
from bootc.composefs.erofs_format import V2_INLINE_MAX, V2_SYMLINK_MAX, FormatVersion
from bootc.composefs.erofs_reader import read_image
from bootc.composefs.erofs_writer import write_image
from bootc.composefs.repository import Repository
from bootc.composefs.scan import find_digest, scan_directory
from bootc.composefs.splitstream import read_splitstream
from bootc.composefs.stored_layers import read_bytes
from bootc.errors import BootcError
from bootc.tree import (
    Content,
    Device,
    Directory,
    External,
    Inline,
    Leaf,
    Sparse,
    Symlink,
    walk,
)
from tests.interop import tally
from tests.interop.programs import need_reference
from tests.interop.random_dumps import make_dump
from tests.interop.random_tars import make_tar
from tests.interop.random_trees import make_tree
from tests.interop.tally import Tally

COUNT = 500
ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".bootc" / "interop"
OURS = (sys.executable, "-m", "bootc.composefs.cli.main")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How an image is made of a directory."""

    version: FormatVersion
    algorithm: Algorithm
    system: bool
    xattrs: XattrMode

    def options(self) -> list[str]:
        if not self.system:
            return ["--no-propagate-usr-to-root"]
        return ["--xattrs", self.xattrs.value]

    def global_options(self) -> list[str]:
        hashing = ["--hash", self.algorithm.value]
        return ["--no-repo", *hashing, "--erofs-version", str(self.version.value)]

    def __str__(self) -> str:
        return " ".join([*self.global_options()[1:], *self.options()])


def run(*argv: str | bytes, stdin: bytes | None = None) -> process.Completed:
    """Run a program whatever becomes of it. (A byte string is a path.)"""
    return process.run([os.fsdecode(word) for word in argv], stdin=stdin, check=False, cwd=ROOT)


def our_tree(path: bytes, form: Form) -> Directory:
    root = scan_directory(os.fsdecode(path), find_digest(form.algorithm))
    if form.system:
        transform_for_oci(root, xattrs=form.xattrs)
    return root


def our_id(path: bytes, form: Form) -> str:
    """The id that our library computes, or the refusal."""
    try:
        image = write_image(our_tree(path, form), version=form.version, algorithm=form.algorithm)
    except BootcError as error:
        return f"refused: {error}"
    return digest_bytes(image, form.algorithm).hex()


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bootc-interop-") as folder:
        yield Path(folder)


def compare_directories(found: Tally, rng: random.Random, count: int) -> None:
    reference = need_reference()
    with scratch() as folder:
        for number in range(count):
            path = os.fsencode(folder / f"tree-{number}")
            os.mkdir(path)
            system = rng.random() < 0.5
            make_tree(path, rng, system=system)
            for form in _forms(rng, system=system):
                _compare_directory(found, reference, path, form, cli=number % 20 == 0)
            shutil.rmtree(path)


def _forms(rng: random.Random, *, system: bool) -> Iterator[Form]:
    """Each version with one of the algorithms."""
    for version in FormatVersion:
        yield Form(
            version=version,
            algorithm=rng.choice(list(Algorithm)),
            system=system and rng.random() < 0.7,
            xattrs=rng.choice(list(XattrMode)),
        )


def _compare_directory(found: Tally, reference: str, path: bytes, form: Form, *, cli: bool) -> None:
    name = f"directory, {form.version.name}"
    done = run(reference, *form.global_options(), "compute-id", *form.options(), path)
    theirs = done.stdout.strip()
    ours = our_id(path, form)
    if done.status != 0:
        if ours.startswith("refused"):
            found.refuse(name)
        else:
            found.differ(name, f"{_keep(path)} {form}: only theirs refused: {done.stderr.strip()}")
        return
    if ours != theirs:
        lines = run(reference, *form.global_options(), "create-dumpfile", *form.options(), path)
        _differ(found, name, f"{_keep(path)} {form}", _dump(path, form), lines.stdout)
        return
    found.check(name).same += 1
    if cli:
        mine = run(*OURS, *form.global_options(), "compute-id", *form.options(), path)
        found.compare("directory, by our command", mine.stdout.strip(), theirs, f"{form}")


def _dump(path: bytes, form: Form) -> str:
    try:
        return "".join(f"{line}\n" for line in dump_lines(our_tree(path, form)))
    except BootcError as error:
        return f"refused: {error}\n"


def _differ(found: Tally, name: str, where: str, ours: str, theirs: str) -> None:
    """Note a difference with the first lines that differ."""
    lines = difflib.unified_diff(
        theirs.splitlines(), ours.splitlines(), "theirs", "ours", "", "", 0, ""
    )
    shown = [line[:200] for line in lines][:8] or ["(the dump files are equal)"]
    found.differ(name, "\n  ".join([where, *shown]))


def _keep(path: bytes) -> str:
    """Where the directory is kept for a second look."""
    target = KEPT / os.fsdecode(os.path.basename(path))
    if not target.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        process.run(["cp", "-a", os.fsdecode(path), str(target)])
    return str(target)


def compare_stored(found: Tally, rng: random.Random, count: int) -> None:
    """create-image of a directory into a repository of each."""
    reference = need_reference()
    with scratch() as folder:
        for number in range(count):
            path = folder / "tree"
            path.mkdir()
            make_tree(os.fsencode(path), rng, system=True)
            version, algorithm = rng.choice(list(FormatVersion)), rng.choice(list(Algorithm))
            ids: list[str] = []
            repos: list[str] = []
            for name, program in (("ours", OURS), ("theirs", (reference,))):
                repo = str(folder / f"{name}-{number}")
                repos.append(repo)
                start = (*program, "--erofs-version", str(version.value), "--repo", repo)
                run(*start, "init", "--insecure", "--algorithm", algorithm.identifier)
                done = run(*start, "create-image", str(path), "name")
                ids.append(done.stdout.strip() or done.stderr.strip())
            where = f"create-image {number}, {version.name} {algorithm}"
            if found.compare("create-image: id", ids[0], ids[1], where):
                mine, theirs = _objects(repos[0]), _objects(repos[1])
                found.compare("create-image: objects", mine, theirs, where)
                listing = ("image-objects", ids[0].partition(":")[2])
                of_mine = run(reference, "--repo", repos[0], *listing).stdout.split()
                of_theirs = run(*OURS, "--repo", repos[1], *listing).stdout.split()
                found.compare(
                    "create-image: image-objects, of the other's",
                    sorted(of_theirs),
                    sorted(of_mine),
                    where,
                )
                checked = run(reference, "--repo", repos[0], "fsck")
                found.compare("create-image: their fsck of ours", checked.status, 0, where)
                checked = run(*OURS, "--repo", repos[1], "fsck")
                found.compare("create-image: our fsck of theirs", checked.status, 0, where)
            shutil.rmtree(path)


def _objects(repo: str) -> list[str]:
    return sorted(str(path.relative_to(repo)) for path in Path(repo, "objects").glob("*/*"))


def compare_dumps(found: Tally, rng: random.Random, count: int) -> None:
    """Random dump files: the images that both make of them, and ours read by the reference.

    By the name of mkcomposefs the reference makes V0 and V1.
    """
    reference = need_reference()
    with scratch() as folder:
        make, info, file = (folder / name for name in ("mkcomposefs", "composefs-info", "image"))
        make.symlink_to(reference)
        info.symlink_to(reference)
        for _ in range(count):
            seed = rng.getrandbits(32)
            for version in FormatVersion:
                text = _comparable_dump(seed, version)
                try:
                    image = write_image(
                        parse_dump(text), version=version, algorithm=Algorithm.SHA256
                    )
                except BootcError as error:
                    found.differ(f"dump, {version.name}", f"seed {seed}: ours refused: {error}")
                    continue
                file.write_bytes(image)
                _compare_read(found, str(info), file, version, seed)
                if version is not FormatVersion.V2:
                    digest = digest_bytes(image, Algorithm.SHA256).hex()
                    options = ("--from-file", "--print-digest-only", f"--min-version={version}")
                    done = run(str(make), *options, "-", stdin=text)
                    if done.status != 0:
                        found.differ(f"dump, {version.name}", f"seed {seed}: {done.stderr[:300]}")
                    else:
                        theirs = done.stdout.strip()
                        found.compare(f"dump, {version.name}", digest, theirs, f"seed {seed}")


def _comparable_dump(seed: int, version: FormatVersion) -> bytes:
    """A random dump file without what the reference refuses or tells in another way: longer files
    and links than it takes, whiteouts with several names, times before 1970, objects whose path
    doesn't follow from their digest, whiteouts in the root (it takes those called `00` … `ff` for
    the format's own) and the marks of whiteouts (they vanish when it reads them)."""
    root = parse_dump(make_dump(seed))
    links: dict[int, int] = {}
    top = set(map(id, root.entries.values()))
    for _, node in walk(root):
        stat = node.stat
        if stat.mtime < 0 or not _MARKS.isdisjoint(stat.xattrs):
            node.stat = stat.copy()
            node.stat.mtime = abs(stat.mtime)
            for name in _MARKS:
                node.stat.xattrs.pop(name, None)
        if isinstance(node, Leaf):
            node.nlink = None
            node.content = _comparable(node.content)
            links[id(node)] = links.get(id(node), 0) + 1
    for _, node in walk(root):
        if (
            isinstance(node, Leaf)
            and node.content == _WHITEOUT
            and (links[id(node)] > 1 or id(node) in top)
        ):
            node.content = Device(st.S_IFCHR, 259)
    return format_dump(root)


_WHITEOUT = Device(st.S_IFCHR, 0)
_MARKS = {
    prefix + name
    for prefix in (b"trusted.overlay.", b"user.overlay.")
    for name in (b"whiteout", b"whiteouts", b"opaque")
}


def _comparable(content: Content) -> Content:
    match content:
        case Inline(data=data):
            return Inline(data[:V2_INLINE_MAX])
        case Symlink(target=target):
            return Symlink(target[:V2_SYMLINK_MAX])
        case External(size=size, digest=digest):
            return External(size, digest) if digest is not None else Sparse(size)
        case _:
            return content


def _compare_read(found: Tally, info: str, file: Path, version: FormatVersion, seed: int) -> None:
    name = f"our image read by theirs, {version.name}"
    done = run(info, "dump", str(file))
    try:
        ours = format_dump(read_image(file.read_bytes())).decode()
    except BootcError as error:
        ours = f"refused: {error}"
    if done.status != 0:
        found.differ(name, f"seed {seed}: theirs refused: {done.stderr.strip()[:300]}")
    elif ours != done.stdout:
        _differ(found, name, f"seed {seed}", ours, done.stdout)
    else:
        found.check(name).same += 1


def compare_layers(found: Tally, rng: random.Random, count: int) -> None:
    """Random tars, imported by each: the split streams, and what the other one reads of them."""
    reference = need_reference()
    with scratch() as folder:
        for algorithm in Algorithm:
            repos = {"ours": str(folder / f"ours-{algorithm}"), "theirs": str(folder / algorithm)}
            for repo in repos.values():
                run(
                    reference,
                    "--repo",
                    repo,
                    "init",
                    "--insecure",
                    f"--algorithm={algorithm.identifier}",
                )
            for number in range(count // 2):
                tar = make_tar(rng)
                digest = f"sha256:{hashlib.sha256(tar).hexdigest()}"
                where = f"layer {number}, {algorithm}"
                imported = {
                    name: run(
                        *program, "--repo", repos[name], "oci", "import-layer", digest, stdin=tar
                    )
                    for name, program in (("ours", OURS), ("theirs", (reference,)))
                }
                states = {name: done.status for name, done in imported.items()}
                if all(states.values()):
                    found.refuse("layer: split stream")
                    continue
                if any(states.values()):
                    said = {name: done.stderr.strip()[:300] for name, done in imported.items()}
                    kept = KEPT / f"layer-{digest[7:19]}.tar"
                    KEPT.mkdir(parents=True, exist_ok=True)
                    kept.write_bytes(tar)
                    found.differ("layer: split stream", f"{where}: only one refused {kept}: {said}")
                    continue
                _compare_layer(found, reference, repos, digest, tar, where)


def _compare_layer(
    found: Tally, reference: str, repos: dict[str, str], digest: str, tar: bytes, where: str
) -> None:
    streams: list[tuple[object, ...]] = []
    for repo in (repos["ours"], repos["theirs"]):
        stream = read_splitstream(Path(repo, "streams", f"oci-layer-{digest}").read_bytes(), where)
        header = stream.content_type, stream.total_size, stream.object_refs, stream.named_refs
        streams.append((*header, list(stream.chunks())))
    found.compare("layer: split stream", streams[0], streams[1], where)
    with Repository.open(repos["theirs"]) as repo_of_theirs:
        stream = read_splitstream(repo_of_theirs.read_stream(f"oci-layer-{digest}"), where)
        read = b"".join(read_bytes(repo_of_theirs, stream))
    found.compare("layer: theirs read by ours", read == tar, True, where)
    # The door to processes gives text; a digest says as much.
    script = 'set -o pipefail; "$1" --repo "$2" cat "oci-layer-$3" | sha256sum'
    done = run("bash", "-c", script, "bash", reference, repos["ours"], digest)
    found.compare("layer: ours read by theirs", f"sha256:{done.stdout.split()[0]}", digest, where)


def compare(found: Tally, rng: random.Random, count: int) -> None:
    if os.geteuid() != 0:
        raise BootcError("only root can make directories with everything", hint="run it as root")
    compare_directories(found, rng, count)
    compare_stored(found, rng, count // 20)
    compare_dumps(found, rng, count)
    compare_layers(found, rng, count // 4)


if __name__ == "__main__":
    sys.exit(tally.main("compare_reference", compare, count=COUNT))
