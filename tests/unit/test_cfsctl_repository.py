# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`cfsctl`'s commands about the repository, run as a program: output, errors and exit statuses."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from bootc import process
from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.erofs_writer import write_image
from bootc.composefs.objects import object_path
from bootc.composefs.repository import Repository
from bootc.composefs.splitstream import OCI_BLOB, SplitStreamWriter
from bootc.tree import Directory, External, Inline, Leaf, Stat, Symlink

TOP = Path(__file__).resolve().parents[2]
ARGV = (sys.executable, "-m", "bootc.composefs.cli.main")
CONTENT = b"content" * 100
DIGEST = digest_bytes(CONTENT, Algorithm.SHA256)


def cfsctl(*argv: str | Path, stdin: bytes | None = None) -> process.Completed:
    return process.run([*ARGV, *map(str, argv)], cwd=TOP, stdin=stdin, check=False)


def make_image() -> bytes:
    root = Directory(Stat(0o755))
    usr = root.entries[b"usr"] = Directory(Stat(0o755))
    usr.entries[b"file"] = usr.entries[b"hard"] = Leaf(Stat(0o644), External(700, DIGEST))
    usr.entries[b"small"] = Leaf(Stat(0o600, 1, 2, 3), Inline(b"hi\n"))
    usr.entries[b"link"] = Leaf(Stat(0o777), Symlink(b"file"))
    return write_image(root, algorithm=Algorithm.SHA256)


class Store:
    def __init__(self, path: Path) -> None:
        self.path = path
        with Repository.init(path, algorithm=Algorithm.SHA256, secure=False) as repo:
            repo.ensure_object(CONTENT)
            self.image = repo.write_image(make_image(), "my/os").hex()
            stream = SplitStreamWriter(Algorithm.SHA256, OCI_BLOB)
            stream.inline(b"before ")
            stream.external(DIGEST, len(CONTENT))
            stream.inline(b" after")
            repo.write_stream("oci-blob-x", stream.finish())
            repo.tag("oci-blob-x", "a/b")

    def run(self, *argv: str, stdin: bytes | None = None) -> process.Completed:
        return cfsctl("--repo", self.path, *argv, stdin=stdin)

    def ok(self, *argv: str, stdin: bytes | None = None) -> str:
        done = self.run(*argv, stdin=stdin)
        assert (done.status, done.stderr) == (0, "")
        return done.stdout

    def refused(self, *argv: str, stdin: bytes | None = None) -> str:
        done = self.run(*argv, stdin=stdin)
        assert (done.status, done.stdout) == (1, "")
        lines = done.stderr.splitlines()
        assert lines[0].startswith("error: ")
        assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: "))
        return done.stderr


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "repo")


# -- init


def test_cfsctl_init_says_what_it_made_or_found(tmp_path: Path) -> None:
    path = tmp_path / "a/b/repo"
    done = cfsctl("init", "--insecure", "--algorithm", "fsverity-sha256-12", path)
    assert done.stdout == (
        f"Initialized composefs repository at {path}\n"
        "  algorithm: fsverity-sha256-12\n"
        "  verity:    not required (insecure)\n"
    )
    again = cfsctl("--hash", "sha256", "--repo", path, "--insecure", "init")
    assert again.stdout == f"Repository already initialized at {path}\n"
    other = cfsctl("--repo", path, "init", "--insecure")
    assert (other.status, other.stdout) == (1, "")
    assert "already a repository with fsverity-sha256-12" in other.stderr
    taken = cfsctl("--repo", path, "init", "--ensure", "--erofs-version", "2")
    assert taken.stdout == (
        f"Repository already initialized at {path} (existing configuration preserved)\n"
    )
    anew = cfsctl("--repo", path, "init", "--insecure", "--reset-metadata", "--erofs-version", "2")
    assert anew.stdout.startswith("Initialized composefs repository")
    value = json.loads((path / "meta.json").read_text())
    assert (value["algorithm"], value["erofs_formats"]) == ("fsverity-sha512-12", {"default": 2})


def test_cfsctl_init_of_an_old_repository(store: Store) -> None:
    (store.path / "meta.json").unlink()
    assert store.ok("init", "--ensure", "--insecure") == (
        f"Upgraded legacy repository at {store.path}\n"
    )
    assert store.ok("fsck").endswith("status: ok\n")


def test_cfsctl_init_refuses_what_does_not_go_together(tmp_path: Path) -> None:
    for argv in (
        ["init", "--ensure", "--reset-metadata", str(tmp_path / "r")],
        ["init", "--erofs-version", "3", str(tmp_path / "r")],
    ):
        assert cfsctl(*argv).status == 2
    wrong = cfsctl("--hash", "sha256", "init", "--algorithm", "fsverity-sha512-12", tmp_path / "r")
    assert wrong.status == 1
    wrong = cfsctl("init", "--algorithm", "fsverity-sha512-16", tmp_path / "r")
    assert "unknown algorithm" in wrong.stderr
    assert not (tmp_path / "r").exists()


# -- The repository that is opened


def test_cfsctl_upgrades_old_repositories_unless_told_not_to(store: Store) -> None:
    (store.path / "meta.json").unlink()
    assert "old format" in store.refused("--no-upgrade", "images")
    assert not (store.path / "meta.json").exists()
    assert "my/os" in store.ok("images")
    assert (store.path / "meta.json").exists()


def test_cfsctl_refuses_another_kind_of_repository(store: Store, tmp_path: Path) -> None:
    assert "configured for fsverity-sha256-12, not sha512" in store.refused(
        "--hash", "sha512", "images"
    )
    assert store.ok("--hash", "sha256", "images", "--json")
    assert "does not require fs-verity" in store.refused("--require-verity", "images")
    assert "needs a repository" in store.refused("--no-repo", "images")
    missing = cfsctl("--repo", tmp_path / "none", "images")
    assert "cfsctl --repo" in missing.stderr.splitlines()[1]
    nothing = cfsctl("--repo", tmp_path, "images")
    assert "is not a composefs repository" in nothing.stderr


# -- Images and streams


def test_cfsctl_images(store: Store, tmp_path: Path) -> None:
    for name in ("images", "list-images"):
        lines = store.ok(name).splitlines()
        assert [line.split() for line in lines] == [
            ["NAME", "DIGEST"],
            ["my/os", store.image[:12]],
        ]
    assert store.image in store.ok("images", "--no-trunc")
    assert store.ok("images", "--json") == (
        '{\n  "images": [\n    {\n      "name": "my/os",\n      "digest": '
        f'"{store.image}"\n    }}\n  ]\n}}\n'
    )
    with Repository.init(tmp_path / "empty", secure=False):
        pass
    assert cfsctl("--repo", tmp_path / "empty", "images").stdout == "No images found\n"


def test_cfsctl_cat(store: Store) -> None:
    for name in ("oci-blob-x", "refs/oci/a%2Fb"):
        assert store.ok("cat", name) == f"before {CONTENT.decode()} after"
    assert "no stream" in store.refused("cat", "nothing")


def test_cfsctl_import_image(store: Store, tmp_path: Path) -> None:
    assert store.ok("import-image", "copy", stdin=make_image()) == f"sha256:{store.image}\n"
    assert "copy" in store.ok("images")
    assert "not a composefs image" in store.refused("import-image", "bad", stdin=b"x" * 9000)
    assert "ends within its headers" in store.refused("import-image", "bad", stdin=b"")
    assert "bad" not in store.ok("images")


def test_cfsctl_image_objects(store: Store) -> None:
    for name in (store.image, "my/os", "refs/my/os"):
        assert store.ok("image-objects", name) == f"sha256:{DIGEST.hex()}\n"
    assert "no image nothing" in store.refused("image-objects", "nothing")


def test_cfsctl_dump_files(store: Store) -> None:
    path = object_path(DIGEST)
    file = f"/usr/file 700 100644 2 0 0 0 0.0 {path} - {DIGEST.hex()}\n"
    assert store.ok("dump-files", "my/os", "/usr/file") == file
    # Each argument is a listing of its own: a second name is shown in full, too.
    assert store.ok("dump-files", "my/os", "/usr/hard", "/usr/small") == (
        file.replace("/usr/file", "/usr/hard") + "/usr/small 3 100600 1 1 2 0 3.0 - hi\\n -\n"
    )
    assert store.ok("dump-files", "my/os", "/usr/") == (
        f"/usr 0 40755 2 0 0 0 0.0 - - -\n{file}"
        "/usr/hard 0 @120000 - - - - 0.0 /usr/file - -\n"
        "/usr/link 4 120777 1 0 0 0 0.0 file - -\n"
        "/usr/small 3 100600 1 1 2 0 3.0 - hi\\n -\n"
    )
    assert store.ok("dump-files", "my/os", "/").startswith("/ 0 40755 3 0 0 0 0.0 - - -\n/usr ")
    assert store.ok("dump-files", "my/os") == ""
    paths = store.ok("dump-files", "--backing-path-only", "my/os", "/usr/hard", "/usr/small")
    assert paths == f"/usr/hard {path}\n/usr/small inline\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["/usr/file", "/nothing"], "/nothing not found"),
        (["usr"], "no absolute path"),
        (["/usr/../usr"], "no absolute path"),
        (["--backing-path-only", "/usr"], "/usr is a directory"),
        (["--backing-path-only", "/usr/file/x"], "/usr/file/x not found"),
    ],
)
def test_cfsctl_dump_files_refuses_and_prints_nothing(
    store: Store, argv: list[str], said: str
) -> None:
    assert said in store.refused("dump-files", "my/os", *argv)


# -- gc, fsck, transaction


def test_cfsctl_gc(store: Store) -> None:
    with Repository.open(store.path) as repo:
        repo.ensure_object(b"garbage" * 10)
        lost = repo.write_image(write_image(Directory(Stat()), algorithm=Algorithm.SHA256))
        size = len(repo.read_object(lost)) + 70
    told = f"Objects: 2 removed ({size} bytes)\nPruned symlinks: 1 images, 0 streams\n"
    assert store.ok("gc", "-n") == "Dry run (no files deleted):\n" + told
    assert store.ok("gc", "-n", "-r", lost.hex()).endswith("Objects: 1 removed (70 bytes)\n")
    assert "to be kept" in store.refused("gc", "--root", "typo")
    done = store.run("gc")
    assert (done.status, done.stdout) == (0, told)
    assert store.ok("gc", "--root", "oci-blob-x") == "Objects: 0 removed (0 bytes)\n"
    assert store.ok("fsck").endswith("status: ok\n")


def test_cfsctl_fsck(store: Store) -> None:
    sound = "meta.json: ok\nobjects: {0}/{0} ok\nstreams: 1/1 ok\nimages: 1/1 ok\nstatus: ok\n"
    assert store.ok("fsck") == sound.format(3)
    assert store.ok("fsck", "--metadata-only") == sound.format(0)
    (store.path / "objects" / object_path(DIGEST)).write_bytes(b"damaged")
    done = store.run("fsck")
    assert done.status == 1
    assert done.stderr == "error: repository integrity check failed\n"
    assert "  - fsck: object-digest-mismatch: objects/" in done.stdout
    value = json.loads(store.ok("fsck", "--json"))
    assert (value["ok"], value["objects_corrupted"]) == (False, 1)


def test_cfsctl_transaction_keeps_the_collector_out_until_it_ends(store: Store) -> None:
    fd = os.open(store.path, os.O_RDONLY)
    argv = [*ARGV, "--repo", str(store.path), "transaction"]
    try:
        with process.running(argv, cwd=TOP) as child:
            while not _is_locked(fd):
                assert child.poll() is None
            assert store.ok("images", "--json")
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == -signal.SIGTERM
        assert not _is_locked(fd)
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False
