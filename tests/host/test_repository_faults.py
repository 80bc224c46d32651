# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A repository whose writers are killed, or whose file system fails, at every step.

strace counts the system calls of a run that change something, then kills the program at the first,
the second, … of each kind, or lets that call fail. After every one of them `fsck` has to find
nothing, what was published before must be there, and the same work has to succeed when it is done
again. Processes that write and collect at the same time are tested, too, and a full file system.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bootc import process
from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.fsck import check_repository
from bootc.composefs.gc import collect_garbage
from bootc.composefs.objects import object_path
from bootc.composefs.repository import Repository

TOP = Path(__file__).resolve().parents[2]
CHANGING = (
    "mkdirat",
    "mkdir",
    "linkat",
    "symlinkat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "syncfs",
    "fsync",
    "write",
    "copy_file_range",
    "ftruncate",
)
HEAD = """
import sys, os
from bootc.composefs import Algorithm, Directory, External, Leaf, Repository, Stat, write_image
from bootc.composefs.splitstream import OCI_LAYER, SplitStreamWriter
from bootc.errors import BootcError, chain_text
path = sys.argv[1]

def store(repo, name, content):
    digest = repo.ensure_object(content)
    stream = SplitStreamWriter(repo.algorithm, OCI_LAYER)
    stream.inline(b"header")
    stream.external(digest, len(content))
    repo.write_stream("oci-layer-" + name, stream.finish())
    repo.tag("oci-layer-" + name, "tag")
    root = Directory(Stat(0o755))
    root.entries[b"file"] = Leaf(Stat(0o644), External(len(content), digest))
    repo.write_image(write_image(root, algorithm=repo.algorithm), "image/name")

def run(work):
    try:
        work()
    except (BootcError, OSError) as error:
        # The message is what is judged; a failing stderr is strace's doing.
        sys.exit("error: " + chain_text(error))
"""
WRITE = """
def work():
    with Repository.open(path) as repo:
        store(repo, "new", b"new content" * 900)
        with open(sys.argv[2], "rb") as file:
            repo.import_object(file.fileno())
        repo.untag("tag")
        repo.tag("oci-layer-new", "tag")
"""
COLLECT = """
from bootc.composefs.gc import collect_garbage
def work():
    with Repository.open(path) as repo:
        collect_garbage(repo)
"""
RESET = """
def work():
    Repository.reset_metadata(path)
    Repository.init(path, algorithm=Algorithm.SHA256, secure=False).close()
"""
ENSURE = """
def work():
    repo, _ = Repository.ensure(path, algorithm=Algorithm.SHA256, secure=False)
    repo.close()
"""
WORKS = {"write": WRITE, "collect": COLLECT, "reset": RESET, "ensure": ENSURE}


class Lab:
    """A repository with something in it and garbage beside it, copied for each run."""

    def __init__(self, folder: Path, work: str, fake: Mapping[str, str] | None = None) -> None:
        self.fake = fake or {}
        self.strace = process.need_program("strace", hint="apt-get install -y strace")
        self.folder = folder
        self.name = work
        self.program = folder / "program.py"
        self.program.write_text(HEAD + WORKS[work] + "run(work)\n")
        self.source = folder / "source"
        self.source.write_bytes(b"imported" * 1000)
        self.original = folder / "original"
        self.path = folder / "repo"
        with Repository.init(self.original, algorithm=Algorithm.SHA256, secure=False) as repo:
            repo.writable_objects()
        self.make("'old', b'old content' * 500")
        if work == "collect":
            self.make("'gone', b'garbage' * 700")
            self.make("'old', b'old content' * 500")
        if work == "ensure":
            (self.original / "meta.json").unlink()

    def make(self, what: str) -> None:
        script = HEAD + f"with Repository.open(path) as repo: store(repo, {what})"
        process.run([sys.executable, "-c", script, str(self.original)], cwd=TOP)

    def run(self, *options: str) -> process.Completed:
        """The work, on a fresh copy, under strace."""
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.original, self.path, symlinks=True)
        return self.go(self.strace, "-f", "-qq", "-o", str(self.folder / "log"), *options)

    def go(self, *prefix: str) -> process.Completed:
        argv = [*prefix, sys.executable, str(self.program), str(self.path), str(self.source)]
        env = {"PYTHONPATH": str(TOP), "PYTHONDONTWRITEBYTECODE": "1", **self.fake}
        return process.run(argv, env=env, check=False, timeout=120)

    def count_calls(self) -> dict[str, int]:
        """How often the work makes each of the calls that change something."""
        done = self.run("-e", f"trace={','.join(f'?{name}' for name in CHANGING)}")
        assert (done.status, done.stderr) == (0, "")
        found: dict[str, int] = {}
        for line in (self.folder / "log").read_text().splitlines():
            match = re.match(r"(?:\d+ +)?(\w+)\(", line)
            if match is not None:
                found[match[1]] = found.get(match[1], 0) + 1
        return found

    def check(self, what: str) -> None:
        """Nothing is damaged, what was there is there, and the work can be done again."""
        with Repository.ensure(self.path, algorithm=Algorithm.SHA256, secure=False)[0] as repo:
            report = check_repository(repo, workers=1)
            assert report.findings == (), what
            if self.name != "reset":
                assert repo.find_stream("oci-layer-old") is not None, what
                assert [name for name, _ in repo.image_refs()] == ["image/name"], what
                if self.name != "write":
                    assert repo.find_tag("tag") == "oci-layer-old", what
        again = self.go()
        assert (again.status, again.stderr) == (0, ""), what
        with Repository.open(self.path) as repo:
            collect_garbage(repo)
            assert check_repository(repo, workers=1).findings == (), what
        names = [path.name for path in self.path.rglob(".*")]
        assert names == [], what


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=ENOSPC", "error=EIO"])
def test_repository_survives_a_fault_at_every_step(tmp_path: Path, work: str, fault: str) -> None:
    run_with_faults(Lab(tmp_path, work), fault)


@pytest.mark.parametrize(
    "fake",
    [{"FAKE_NO_TMPFILE": "1"}, {"FAKE_NO_TMPFILE": "1", "FAKE_NO_FLAGS": "1", "FAKE_VERITY": "1"}],
    ids=["no tmpfile", "no tmpfile, no flags, verity"],
)
def test_repository_survives_on_other_file_systems(
    tmp_path: Path, file_system_library: Path, fake: dict[str, str]
) -> None:
    preloaded = {"LD_PRELOAD": str(file_system_library), **fake}
    run_with_faults(Lab(tmp_path, "write", preloaded), "signal=SIGKILL")


def run_with_faults(lab: Lab, fault: str) -> None:
    """Do the work as often as it makes calls, each time with the fault at another one."""
    calls = lab.count_calls()
    work = lab.name
    assert sum(calls.values()) >= {"write": 20, "collect": 7, "reset": 8, "ensure": 4}[work]
    failed = 0
    for name, count in calls.items():
        for number in range(1, count + 1):
            what = f"{name} {number} of {count}: {fault}"
            done = lab.run("-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={number}")
            if fault.startswith("signal"):
                assert done.status != 0, what
            elif done.status != 0:
                # One line that says what and where, never a traceback.
                lines = done.stderr.splitlines()
                assert len(lines) == 1, (what, done.stderr)
                assert lines[0].startswith("error: "), what
                assert re.search(r"No space left|Input/output error", lines[0]), (what, lines)
            failed += done.status != 0
            lab.check(what)
    assert failed >= sum(calls.values()) // 2


def test_two_writers_and_a_collector_at_once(tmp_path: Path) -> None:
    path = tmp_path / "repo"
    with Repository.init(path, algorithm=Algorithm.SHA256, secure=False):
        pass
    writer = """
number = int(sys.argv[2])
for turn in range(12):
    with Repository.open(path) as repo:
        # Both write the same contents, replace each other's tags, and drop them again.
        store(repo, "%d" % (turn % 3), b"content %d" % (turn % 4) * 200)
        own = "own/%d" % number
        repo.tag("oci-layer-%d" % (turn % 3), own)
        stream = repo.read_stream(repo.find_tag(own))
        if turn % 2:
            repo.untag(own)
"""
    collector = """
from bootc.composefs.gc import collect_garbage
for turn in range(12):
    with Repository.open(path) as repo:
        collect_garbage(repo)
"""
    env = {"PYTHONPATH": str(TOP)}
    commands = [(writer, "1"), (writer, "2"), (collector, "3")]
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                process.running(
                    [sys.executable, "-c", HEAD + script, str(path), number],
                    env=env,
                    stderr=process.PIPE,
                )
            )
            for script, number in commands
        ]
        for child in children:
            _, said = child.communicate(timeout=300)
            text = said.decode()
            # The story of waiting for each other is told; an error would be a traceback.
            assert child.returncode == 0, text
            assert "Traceback" not in text
    with Repository.open(path) as repo:
        assert check_repository(repo, workers=1).findings == ()
        assert repo.find_tag("tag") is not None
        collect_garbage(repo)
        assert check_repository(repo, workers=1).findings == ()


@contextmanager
def small_file_system(folder: Path, kilobytes: int) -> Iterator[Path]:
    folder.mkdir()
    process.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)])
    try:
        yield folder
    finally:
        process.run(["umount", str(folder)])


@pytest.mark.root
@pytest.mark.parametrize("kilobytes", [1100, 1300, 1700, 2500])
def test_full_file_system_is_one_error_and_no_damage(tmp_path: Path, kilobytes: int) -> None:
    script = HEAD + (
        "run(lambda: [store(Repository.open(path), str(n), os.urandom(200_000)) "
        "for n in range(20)])"
    )
    with small_file_system(tmp_path / "small", kilobytes) as folder:
        path = folder / "repo"
        with Repository.init(path, algorithm=Algorithm.SHA256, secure=False):
            pass
        done = process.run(
            [sys.executable, "-c", script, str(path)], env={"PYTHONPATH": str(TOP)}, check=False
        )
        assert done.status == 1
        assert re.fullmatch(r"error: cannot .*: No space left on device\n", done.stderr)
        with Repository.open(path) as repo:
            assert check_repository(repo, workers=1).findings == ()
            tag = repo.find_tag("tag")
            before = set(repo.objects.names())
            # Collecting works on a full file system, and makes room.
            collect_garbage(repo)
            assert set(repo.objects.names()) <= before
            assert repo.find_tag("tag") == tag
            assert check_repository(repo, workers=1).findings == ()


def test_object_that_a_size_limit_cut_off_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "repo"
    with Repository.init(path, algorithm=Algorithm.SHA256, secure=False):
        pass
    script = HEAD + (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "run(lambda: store(Repository.open(path), 'big', b'x' * 100_000))"
    )
    done = process.run(
        [sys.executable, "-c", script, str(path)], env={"PYTHONPATH": str(TOP)}, check=False
    )
    assert done.status == 1
    assert done.stderr == f"error: cannot store an object in {path}: File too large\n"
    with Repository.open(path) as repo:
        assert list(repo.objects.names()) == []
        assert check_repository(repo, workers=1).findings == ()


def test_published_things_are_synced_before_their_names(tmp_path: Path) -> None:
    lab = Lab(tmp_path, "write")
    done = lab.run("-e", "trace=linkat,symlinkat,renameat,renameat2,rename,syncfs,fsync", "-y")
    assert done.status == 0
    log = (tmp_path / "log").read_text().splitlines()
    events: list[str] = []
    for line in log:
        if not line.endswith(" = 0"):
            continue  # a link that is to be replaced is there already
        if "syncfs(" in line:
            events.append("sync")
        elif re.search(r"linkat\(.*objects/", line) and "symlinkat" not in line:
            events.append("object")
        elif ("symlinkat(" in line and ".symlink-" not in line) or "rename" in line:
            events.append("name")
        elif "fsync(" in line:
            events.append("directory")
    told = "".join({"sync": "S", "object": "O", "name": "N", "directory": "D"}[e] for e in events)
    # Between an object and the next name there is a sync, and each name's directory is synced.
    assert "N" in told
    assert re.search(r"O[^S]*N", told) is None, told
    assert re.search(r"N(?!D)", told) is None, told


@pytest.mark.parametrize(
    ("what", "kinds"),
    [
        ("content", ["object-check-failed"]),
        ("image", ["object-check-failed", "image-read-failed"]),
        ("stream", ["object-check-failed", "stream-read-failed"]),
    ],
)
def test_fsck_tells_what_cannot_be_read(tmp_path: Path, what: str, kinds: list[str]) -> None:
    lab = Lab(tmp_path, "write")
    with Repository.open(lab.original) as repo:
        stream = repo.find_stream("oci-layer-old")
        found = {
            "content": digest_bytes(b"old content" * 500, repo.algorithm),
            "image": repo.find_image("image/name"),
            "stream": stream,
        }[what]
        assert found is not None
    path = lab.original / "objects" / object_path(found)
    calls = "read,pread64"
    done = process.run(
        [
            *(lab.strace, "-f", "-qq", "-o", "/dev/null", "-P", str(path)),
            *("-e", f"trace={calls}", "-e", f"inject={calls}:error=EIO"),
            *(sys.executable, "-m", "bootc.composefs.cli.main", "--repo", str(lab.original)),
            *("fsck", "--json"),
        ],
        cwd=TOP,
    )
    errors = json.loads(done.stdout)["errors"]
    assert [error.split(": ")[1] for error in errors] == kinds
    assert all(error.endswith(": Input/output error") for error in errors)
    # The collector must know what an image and a stream need. A content's content it needs not.
    done = process.run(
        [
            *(lab.strace, "-f", "-qq", "-o", "/dev/null", "-P", str(path)),
            *("-e", f"trace={calls}", "-e", f"inject={calls}:error=EIO"),
            *(sys.executable, "-m", "bootc.composefs.cli.main", "--repo", str(lab.original), "gc"),
        ],
        cwd=TOP,
        check=False,
    )
    assert done.status == (0 if what == "content" else 1)
    if what != "content":
        assert re.search(r"error: cannot read .*: Input/output error\n", done.stderr)
        assert "nothing was deleted" in done.stderr


def test_fsck_and_dry_runs_find_nothing_wrong_while_others_write(tmp_path: Path) -> None:
    path = tmp_path / "repo"
    with Repository.init(path, algorithm=Algorithm.SHA256, secure=False):
        pass
    script = """
for turn in range(60):
    with Repository.open(path) as repo:
        store(repo, str(turn), b"content %d" % turn * 50)
        repo.untag("tag")
"""
    with process.running(
        [sys.executable, "-c", HEAD + script, str(path)], env={"PYTHONPATH": str(TOP)}
    ) as child:
        checks = 0
        while child.poll() is None:
            with Repository.open(path) as repo:
                assert check_repository(repo, workers=1).findings == ()
                collect_garbage(repo, dry_run=True)
            checks += 1
        assert child.returncode == 0
    assert checks > 1
