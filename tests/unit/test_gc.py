# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Garbage collection: what is kept, what goes, and that doubt keeps everything."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bootc.composefs.digest import Algorithm
from bootc.composefs.erofs_format import FormatVersion
from bootc.composefs.erofs_reader import collect_objects
from bootc.composefs.erofs_writer import write_image
from bootc.composefs.fsck import check_repository
from bootc.composefs.gc import GcResult, collect_garbage, find_image_objects
from bootc.composefs.objects import object_path
from bootc.composefs.repository import NotFoundError, Repository
from bootc.composefs.splitstream import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, SplitStreamWriter
from bootc.errors import BootcError, FormatError
from bootc.tree import Directory, External, Inline, Leaf, Stat


class Store:
    """A repository with a named image, a tagged manifest → config → layer, and garbage."""

    def __init__(self, path: Path, algorithm: Algorithm) -> None:
        self.path = path
        self.algorithm = algorithm
        with Repository.init(path, algorithm=algorithm, secure=False) as repo:
            self.file = repo.ensure_object(b"file of the image" * 10)
            self.image = self.add_image(repo, self.file, "os")
            self.content = repo.ensure_object(b"content of the layer" * 10)
            layer = SplitStreamWriter(algorithm, OCI_LAYER)
            layer.external(self.content, 200)
            self.layer = repo.write_stream("oci-layer-sha256:1", layer.finish())
            self.boot_file = repo.ensure_object(b"file that only the boot image has" * 10)
            self.boot = self.add_image(repo, self.boot_file, None)
            config = SplitStreamWriter(algorithm, OCI_CONFIG)
            config.named_ref("sha256:1", self.layer)
            config.named_ref("composefs.image.boot.v1", self.boot)
            config.inline(b"{}")
            self.config = repo.write_stream("oci-config-sha256:2", config.finish())
            manifest = SplitStreamWriter(algorithm, OCI_MANIFEST)
            manifest.named_ref("config:sha256:2", self.config)
            manifest.inline(b"{}")
            self.manifest = repo.write_stream("oci-manifest-sha256:3", manifest.finish())
            repo.tag("oci-manifest-sha256:3", "app")

    def add_image(self, repo: Repository, digest: bytes, name: str | None) -> bytes:
        root = Directory(Stat(0o755))
        root.entries[b"file"] = Leaf(Stat(0o644), External(170, digest))
        return repo.write_image(write_image(root, algorithm=self.algorithm), name)

    def add_garbage(self) -> int:
        """Add a stream, an image and an object; returns their bytes."""
        with Repository.open(self.path) as repo:
            before = repo.counts()
            lost = repo.ensure_object(b"nobody's" * 20)
            self.add_image(repo, lost, None)
            stream = SplitStreamWriter(self.algorithm, OCI_LAYER)
            stream.external(lost, 160)
            repo.write_stream("oci-layer-sha256:9", stream.finish())
            return (repo.counts() - before).new_bytes

    def objects(self) -> set[bytes]:
        with Repository.open(self.path) as repo:
            return {bytes.fromhex(name) for name in repo.objects.names()}

    def object_file(self, digest: bytes) -> Path:
        return self.path / "objects" / object_path(digest)


@pytest.fixture(params=list(Algorithm), ids=str)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "repo", request.param)


def collect(store: Store, *roots: str, dry_run: bool = False) -> GcResult:
    with Repository.open(store.path) as repo:
        return collect_garbage(repo, roots=roots, dry_run=dry_run)


def assert_sound(path: Path) -> None:
    with Repository.open(path) as repo:
        assert check_repository(repo, workers=1).findings == ()


def test_gc_keeps_what_references_need_and_nothing_else(store: Store) -> None:
    size = store.add_garbage()
    wanted = {store.file, store.image, store.content, store.layer, store.boot}
    wanted |= {store.config, store.manifest}
    told = collect(store, dry_run=True)
    assert len(store.objects()) == len(wanted) + 4
    result = collect(store)
    assert told == result
    boot_file = len(b"file that only the boot image has" * 10)
    # The files of an image that only a config refers to are kept through layers, or not at all.
    assert result == GcResult(
        objects_removed=4, objects_bytes=size + boot_file, images_pruned=1, streams_pruned=1
    )
    assert store.objects() == wanted
    assert collect(store) == GcResult()


def test_gc_of_a_store_whose_layers_have_all_files_leaves_it_sound(store: Store) -> None:
    with Repository.open(store.path) as repo:
        layer = SplitStreamWriter(store.algorithm, OCI_LAYER)
        layer.external(store.boot_file, 330)
        repo.write_stream("oci-layer-sha256:4", layer.finish())
        repo.name_stream("oci-layer-sha256:4", "kept")
    store.add_garbage()
    collect(store)
    assert_sound(store.path)
    assert store.boot_file in store.objects()


def test_gc_keeps_additional_roots(store: Store) -> None:
    store.add_garbage()
    with Repository.open(store.path) as repo:
        unnamed = next(
            entry.name
            for entry in repo.links.entries("images")
            if entry.name not in (store.image.hex(), store.boot.hex())
        )
    kept = collect(store, unnamed, "oci-layer-sha256:9", store.boot.hex(), "refs/os")
    assert kept == GcResult()
    assert_sound(store.path)
    with Repository.open(store.path) as repo, pytest.raises(NotFoundError, match="typo"):
        collect_garbage(repo, roots=["typo"])
    assert len(store.objects()) == 11


def test_gc_follows_a_stream_that_was_replaced_under_its_name(store: Store) -> None:
    with Repository.open(store.path) as repo:
        config = SplitStreamWriter(store.algorithm, OCI_CONFIG)
        config.inline(b"{} ")
        repo.write_stream("oci-config-sha256:2", config.finish())
    collect(store)
    assert {store.config, store.layer, store.content} <= store.objects()


def test_gc_removes_what_killed_writers_left(store: Store) -> None:
    left = [".symlink-abc", ".tmp-meta-abc", "objects/.tmp-object-abc"]
    for name in left:
        (store.path / name).touch()
    (store.path / ".removed-abc/deep").mkdir(parents=True)
    (store.path / "objects/notes").touch()
    collect(store, dry_run=True)
    assert all((store.path / name).exists() for name in left)
    collect(store)
    assert sorted(os.listdir(store.path)) == ["images", "meta.json", "objects", "streams"]
    assert not (store.path / "objects/.tmp-object-abc").exists()
    assert (store.path / "objects/notes").exists()


@pytest.mark.parametrize("what", ["manifest", "config", "layer", "image"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "changed", "empty"])
def test_gc_deletes_nothing_when_something_is_damaged(store: Store, what: str, damage: str) -> None:
    store.add_garbage()
    path = store.object_file(getattr(store, what))
    data = path.read_bytes()
    before = store.objects()
    if damage == "missing":
        path.unlink()
        before.remove(getattr(store, what))
    elif damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    with pytest.raises(BootcError) as caught:
        collect(store)
    assert caught.value.hint is not None
    assert "nothing was deleted" in caught.value.hint
    assert store.objects() == before


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("streams/refs/oci/lost", "../../oci-manifest-sha256:77"),
        ("images/refs/lost", "../abcd"),
        ("streams/odd", "../meta.json"),
        ("images/file", None),
        ("streams/refs/file", None),
        ("objects/00/short", None),
    ],
)
def test_gc_deletes_nothing_around_what_has_no_business_there(
    store: Store, path: str, target: str | None
) -> None:
    store.add_garbage()
    before = store.objects()
    place = store.path / path
    if target is None:
        place.touch()
    else:
        place.symlink_to(target)
    with pytest.raises(BootcError, match=r"/repo/"):
        collect(store)
    if target is not None or not path.startswith("objects"):
        assert store.objects() == before
    else:
        place.unlink()
        assert store.objects() == before


def test_gc_removes_objects_of_the_algorithm_that_a_reset_left(tmp_path: Path) -> None:
    path = tmp_path / "repo"
    with Repository.init(path, algorithm=Algorithm.SHA512, secure=False) as repo:
        repo.ensure_object(b"x" * 100)
    Repository.reset_metadata(path)
    with Repository.init(path, algorithm=Algorithm.SHA256, secure=False) as repo:
        assert collect_garbage(repo).objects_removed == 1


def test_gc_refuses_a_second_handle_of_its_own_process(store: Store) -> None:
    with Repository.open(store.path) as repo, Repository.open(store.path) as other:
        with pytest.raises(BootcError, match="open 1 more time in this process"):
            collect_garbage(repo)
        assert collect_garbage(repo, dry_run=True).objects_removed == 1
        other.close()
        collect_garbage(repo)
        # The handle goes on working, with a shared lock.
        repo.ensure_object(b"new" * 50)
        with Repository.open(store.path):
            pass


def test_gc_refuses_a_repository_of_a_newer_kind(store: Store) -> None:
    meta = store.path / "meta.json"
    value = json.loads(meta.read_text())
    value["features"]["read-only-compatible"].append("newer")
    meta.write_text(json.dumps(value))
    with pytest.raises(BootcError, match="features that this program cannot write: newer"):
        collect(store)
    assert collect(store, dry_run=True).objects_removed == 1


@pytest.mark.parametrize("version", list(FormatVersion))
@pytest.mark.parametrize("algorithm", list(Algorithm), ids=str)
def test_gc_finds_what_the_reader_finds_in_an_image(
    algorithm: Algorithm, version: FormatVersion
) -> None:
    root = Directory(Stat(0o755))
    wanted = set()
    for number in range(600):
        digest = algorithm.function(b"%d" % number).digest()
        # Digests with all bytes, names and attributes of all lengths, shared ones, hard links.
        xattrs = {b"user.n%d" % (number % 9): b"v" * (number % 50)} if number % 3 else {}
        leaf = Leaf(Stat(0o644, mtime=number, xattrs=xattrs), External(number + 1, digest))
        root.entries[b"f" * (number % 90 + 1) + b"%d" % number] = leaf
        wanted.add(digest)
        if not number % 7:
            root.entries[b"hard%d" % number] = leaf
    bare = algorithm.function(b"bare").digest()
    path = object_path(bare).encode()
    root.entries[b"no-digest"] = Leaf(Stat(), External(5, None, path))
    wanted.add(bare)
    # A text that looks like the beginning of an attribute must not hide the real one behind it.
    trap = b"overlay.metacopy" + bytes((0, 4 + algorithm.size, 0, algorithm.kernel))
    root.entries[b"trap"] = Leaf(Stat(), Inline(trap))
    for number, base in enumerate((b"a\0b/", b"x" * 300 + b"/", b"/", b"\n/")):
        digest = bytes((number,)) * algorithm.size
        wanted.add(digest)
        root.entries[b"strange%d" % number] = Leaf(
            Stat(), External(9, None, base + object_path(digest).encode())
        )
    data = write_image(root, version=version, algorithm=algorithm)
    assert collect_objects(data) == wanted
    assert find_image_objects(data, algorithm, "image") >= wanted
    assert len(find_image_objects(data, algorithm, "image")) <= len(wanted) + 1
    with pytest.raises(FormatError, match="unknown version"):
        find_image_objects(data[:12] + b"\x09" + data[13:], algorithm, "image")
