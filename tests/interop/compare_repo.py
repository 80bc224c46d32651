# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Repositories against the reference's cfsctl: what one made is checked and collected by both.

    nox -s interop -- composefs repo [--seed S] [--count N]

Every round one of the two programs fills an insecure repository of a random algorithm and version
with images of directories, OCI images and garbage. Then both tell what they find:

* `fsck`, its text and its JSON, `images --json`, `image-objects`, `cat` of every stream;
* `gc` in a copy for each: the counters, and every file and link that is left;
* `gc` of each, which has to wait while the other one has a transaction open;
* `fsck` of the repository after one of a number of damages: counters, kinds and paths. (What is
  wrong exactly is told in other words.)

The reference is named by the environment variable CFSCTL_REFERENCE, see `programs`.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bootc import process
from bootc.composefs.digest import Algorithm
from tests import ocibuild
from tests.interop import tally
from tests.interop.programs import need_reference
from tests.interop.tally import Tally

COUNT = 40
WAITING = 3.0
"""Seconds for which a collector that has to wait is watched."""
ROOT = Path(__file__).resolve().parents[2]
OURS = (sys.executable, "-m", "bootc.composefs.cli.main")


class Programs:
    """Both programs, and the repository that they are asked about."""

    def __init__(self, repo: Path) -> None:
        self.theirs: tuple[str, ...] = (need_reference(),)
        self.repo = repo

    def run(self, program: tuple[str, ...], *argv: str, repo: Path | None = None) -> str:
        """What it says: its output, and "failed" when it did."""
        done = process.run(
            [*program, "--repo", str(repo or self.repo), *argv],
            cwd=ROOT,
            check=False,
            env={"RUST_BACKTRACE": "0", "BOOTC_LOG": "warning"},
        )
        return done.stdout if done.status == 0 else f"{done.stdout}failed"

    def both(self, found: Tally, name: str, where: str, *argv: str, sort: bool = False) -> None:
        said = [self.run(program, *argv) for program in (OURS, self.theirs)]
        if sort:
            said = ["\n".join(sorted(text.splitlines())) for text in said]
        found.compare(name, said[0], said[1], f"{where} {' '.join(argv)}")


def compare(found: Tally, rng: random.Random, count: int) -> None:
    need_reference()
    with tempfile.TemporaryDirectory(prefix="bootc-interop-", dir="/var/tmp") as folder:
        for number in range(count):
            round_folder = Path(folder) / str(number)
            round_folder.mkdir()
            _round(found, rng, round_folder, f"round {number}")
            if number == 0:
                _compare_locks(found, Programs(round_folder / "repo"), "round 0")
            shutil.rmtree(round_folder)


def _round(found: Tally, rng: random.Random, folder: Path, where: str) -> None:
    programs = Programs(folder / "repo")
    maker = rng.choice((OURS, programs.theirs))
    algorithm, version = rng.choice(list(Algorithm)), rng.choice(("1", "1", "2"))
    maker_name = "ours" if maker == OURS else "theirs"
    where = f"{where}, made by {maker_name}, {algorithm.value}, V{version}"
    init = ("init", "--insecure", "--algorithm", algorithm.identifier, "--erofs-version", version)
    found.compare("init", "failed" in programs.run(maker, *init), False, where)
    _fill(programs, maker, rng, folder)
    for argv in (["fsck"], ["fsck", "--json"], ["fsck", "--metadata-only"], ["images", "--json"]):
        programs.both(found, " ".join(argv), where, *argv, sort=argv[0] == "images")
    for image in _links(programs.repo / "images"):
        programs.both(found, "image-objects", where, "image-objects", image, sort=True)
    for stream in _links(programs.repo / "streams"):
        programs.both(found, "cat", where, "cat", stream)
    _compare_gc(found, programs, rng, folder, where)
    for name in rng.sample(list(DAMAGES), 3):
        _compare_damage(found, programs, rng, folder, f"{where}, {name}", DAMAGES[name])


def _compare_locks(found: Tally, programs: Programs, where: str) -> None:
    repo = ("--repo", str(programs.repo))
    for name, holder, collector in (
        ("gc of theirs waits for ours", OURS, programs.theirs),
        ("gc of ours waits for theirs", programs.theirs, OURS),
    ):
        with process.running([*holder, *repo, "transaction"], cwd=ROOT):
            if not _wait(lambda: _is_locked(programs.repo), 60):
                found.differ(name, f"{where}: the transaction took no lock")
                continue
            with process.running(
                [*collector, *repo, "gc"], cwd=ROOT, stdout=process.PIPE, stderr=process.PIPE
            ) as child:
                ended = _wait(functools.partial(_has_ended, child.poll), WAITING)
                found.compare(name, ended, False, where)


def _has_ended(poll: Callable[[], int | None]) -> bool:
    return poll() is not None


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def _is_locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _fill(programs: Programs, maker: tuple[str, ...], rng: random.Random, folder: Path) -> None:
    for number in range(rng.randint(1, 3)):
        tree = folder / f"tree-{number}"
        (tree / "usr").mkdir(parents=True)
        for file in range(rng.randint(1, 9)):
            (tree / "usr" / f"file-{file}").write_bytes(rng.randbytes(rng.choice((3, 70, 9000))))
        name = [f"image/{number}"] if rng.random() < 0.6 else []
        programs.run(maker, "create-image", str(tree), *name)
    for number in range(rng.randint(1, 2)):
        tars = []
        for _ in range(rng.randint(1, 3)):
            members = [ocibuild.folder(b"./"), ocibuild.folder(b"usr/")]
            for file in range(rng.randint(1, 9)):
                content = rng.randbytes(rng.choice((0, 64, 65, 5000)))
                members.append(ocibuild.member(b"usr/%d" % file, content))
            tars.append(b"".join([*members, ocibuild.END]))
        how = rng.choice(("none", "gzip", "zstd"))
        reference = ocibuild.write_layout(folder / f"layout-{number}", tars, how=how)
        programs.run(maker, "oci", "pull", reference, f"app/{number}:1")
        if rng.random() < 0.4:
            programs.run(maker, "oci", "untag", f"app/{number}:1")


def _links(folder: Path) -> list[str]:
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_symlink())


def _compare_gc(
    found: Tally, programs: Programs, rng: random.Random, folder: Path, where: str
) -> None:
    images = _links(programs.repo / "images")
    roots = [word for image in images if rng.random() < 0.2 for word in ("-r", image)]
    dry = [programs.run(each, "gc", "-n", *roots) for each in (OURS, programs.theirs)]
    # The original doesn't foretell the links.
    found.compare("gc -n", dry[0].splitlines()[:2], dry[1].splitlines()[:2], where)
    said: list[str] = []
    left: list[list[str]] = []
    for name, program in (("ours", OURS), ("theirs", programs.theirs)):
        copy = folder / f"collected-by-{name}"
        shutil.copytree(programs.repo, copy, symlinks=True)
        said.append(programs.run(program, "gc", *roots, repo=copy))
        left.append(sorted(_listing(copy)))
    found.compare("gc", said[0], said[1], f"{where} {' '.join(roots)}")
    found.compare("gc, what is left", left[0], left[1], f"{where} {' '.join(roots)}")


def _listing(folder: Path) -> list[str]:
    """Every file and link, with its target; directories may be left empty."""
    found = []
    for path in folder.rglob("*"):
        if path.is_symlink():
            found.append(f"{path.relative_to(folder)} -> {os.readlink(path)}")
        elif path.is_file():
            found.append(str(path.relative_to(folder)))
    return found


Damage = Callable[[Path, random.Random], object]


def _objects(repo: Path) -> list[Path]:
    return sorted(path for path in (repo / "objects").rglob("*") if path.is_file())


def _published(repo: Path) -> list[Path]:
    links = [*(repo / "images").glob("*"), *(repo / "streams").glob("*")]
    return sorted(path.resolve() for path in links if path.is_symlink())


def _remove_object(repo: Path, rng: random.Random) -> None:
    rng.choice(_objects(repo)).unlink()


def _change_content(repo: Path, rng: random.Random) -> None:
    """Of an object that is neither an image nor a stream: those may be anything afterwards."""
    published = set(_published(repo))
    plain = [path for path in _objects(repo) if path.resolve() not in published]
    path = rng.choice([path for path in plain if b"schemaVersion" not in path.read_bytes()[:99]])
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


DAMAGES: dict[str, Damage] = {
    "an object is removed": _remove_object,
    "a published object is removed": lambda repo, rng: rng.choice(_published(repo)).unlink(),
    "a content is changed": _change_content,
    "a published object is emptied": lambda repo, rng: rng.choice(_published(repo)).write_bytes(
        b""
    ),
    "a file among the streams": lambda repo, rng: (repo / "streams" / "file").touch(),
    "a directory among the images": lambda repo, rng: (repo / "images" / "folder").mkdir(),
    "a file among the references": lambda repo, rng: (repo / "images/refs/file").touch(),
    "a link that leads nowhere": lambda repo, rng: (repo / "streams/lost").symlink_to("nowhere"),
    "a reference that leads nowhere": lambda repo, rng: (repo / "streams/refs/oci/lost").symlink_to(
        "../../nowhere"
    ),
    "a file that is no object": lambda repo, rng: (_objects(repo)[0].parent / "stray").write_bytes(
        b"x"
    ),
}


def _compare_damage(
    found: Tally,
    programs: Programs,
    rng: random.Random,
    folder: Path,
    where: str,
    damage: Damage,
) -> None:
    copy = folder / "damaged"
    shutil.copytree(programs.repo, copy, symlinks=True)
    for name in ("streams/refs/oci", "images/refs"):
        (copy / name).mkdir(parents=True, exist_ok=True)
    damage(copy, rng)
    said = [
        _summary(programs.run(each, "fsck", "--json", repo=copy))
        for each in (OURS, programs.theirs)
    ]
    found.compare("fsck of damage", said[0], said[1], where)
    shutil.rmtree(copy)


def _summary(text: str) -> object:
    """The report with each error as far as its path, sorted."""
    try:
        report = json.loads(text)
    except ValueError:
        return text
    report["errors"] = sorted(":".join(error.split(": ")[:3]) for error in report["errors"])
    return report


def main() -> int:
    return tally.main("repo", compare, count=COUNT)


if __name__ == "__main__":
    sys.exit(main())
