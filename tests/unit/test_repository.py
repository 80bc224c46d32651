# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The repository on disk. These tests run on file systems without fs-verity, so insecurely."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.objects import WRITTEN_EARLY, object_path
from bootc.composefs.repository import NotFoundError, Repository
from bootc.errors import BootcError, FormatError
from bootc.linux import libc


def files_below(path: Path) -> set[str]:
    return {
        str(found.relative_to(path))
        for found in path.rglob("*")
        if found.is_symlink() or found.is_file()
    }


@pytest.fixture
def where(tmp_path: Path) -> Path:
    path = tmp_path / "repo"
    with Repository.init(path, algorithm=Algorithm.SHA256, secure=False):
        return path


def test_repository_init_writes_the_metadata_that_others_read(where: Path) -> None:
    assert (where / "meta.json").read_text() == (
        '{\n  "version": 1,\n  "algorithm": "fsverity-sha256-12",\n  "features": {\n'
        '    "compatible": [],\n    "read-only-compatible": [\n      "v1_erofs"\n    ],\n'
        '    "incompatible": []\n  },\n  "erofs_formats": {\n    "default": 1\n  }\n}\n'
    )
    assert where.stat().st_mode & 0o7777 == 0o700
    with Repository.open(where) as repo:
        assert (repo.algorithm, repo.secure, repo.erofs_version) == (Algorithm.SHA256, False, 1)


def test_repository_init_twice_is_fine_but_not_as_another_kind(where: Path) -> None:
    with Repository.init(where, algorithm=Algorithm.SHA256, secure=False):
        pass
    with pytest.raises(BootcError, match="fsverity-sha256-12"):
        Repository.init(where, algorithm=Algorithm.SHA512, secure=False)
    with pytest.raises(BootcError, match="insecure one"):
        Repository.init(where, algorithm=Algorithm.SHA256, secure=True)


def test_repository_that_cannot_be_secure_leaves_nothing() -> None:
    # /dev/shm is a tmpfs, which has no fs-verity on any kernel.
    path = Path("/dev/shm") / f"bootc-test-{os.getpid()}"
    with pytest.raises(BootcError, match="no fs-verity") as caught:
        Repository.init(path, secure=True)
    assert caught.value.hint is not None
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "where_bad"),
    [
        ({"version": 2}, ".version"),
        ({"algorithm": "fsverity-md5-12"}, ".algorithm"),
        ({"features": {"incompatible": ["new"]}}, ".features.incompatible"),
        ({"erofs_formats": {"default": 9}}, ".erofs_formats.default"),
        ({"erofs_formats": {"default": 1, "extra": "x"}}, ".erofs_formats.extra"),
        ({"algorithm": 5}, ".algorithm"),
    ],
)
def test_repository_refuses_metadata_it_would_handle_wrongly(
    where: Path, change: dict[str, object], where_bad: str
) -> None:
    meta = where / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | change))
    with pytest.raises(FormatError) as caught:
        Repository.open(where)
    assert caught.value.where == where_bad


def test_repository_metadata_of_older_kinds(where: Path) -> None:
    meta = where / "meta.json"
    meta.write_text('{"version": 1, "algorithm": "fsverity-sha512-12", "unknown": 1}')
    with Repository.open(where) as repo:
        assert repo.erofs_version == 2
    meta.write_text(
        '{"version": 1, "algorithm": "fsverity-sha512-12",'
        '"features": {"read-only-compatible": ["v1_erofs", "other"]}}'
    )
    with Repository.open(where) as repo:
        assert repo.erofs_version == 1


def test_repository_open_of_what_is_none_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BootcError) as caught:
        Repository.open(tmp_path)
    assert "init" in (caught.value.hint or "")
    with pytest.raises(BootcError):
        Repository.open(tmp_path / "missing")


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_objects_lie_where_their_digest_says(tmp_path: Path, algorithm: Algorithm) -> None:
    data = b"content" * 1000
    with Repository.init(tmp_path / "r", algorithm=algorithm, secure=False) as repo:
        digest = repo.ensure_object(data)
        assert digest == digest_bytes(data, algorithm)
        assert repo.ensure_object_from(io.BytesIO(data), len(data)) == digest
        assert repo.ensure_object(data) == digest
        assert repo.read_object(digest) == data
        with pytest.raises(BootcError, match="6 bytes for an object of 7"):
            repo.ensure_object_from(io.BytesIO(b"shorts"), 7)
        with pytest.raises(BootcError, match="missing"):
            repo.read_object(bytes(algorithm.size))
    path = tmp_path / "r/objects" / object_path(digest)
    assert path.read_bytes() == data
    assert files_below(tmp_path / "r/objects") == {object_path(digest)}


def test_disk_begins_with_large_objects_before_they_are_synced(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    begin = libc.start_writing

    def count(fd: int) -> None:
        begun.append(os.fstat(fd).st_size)
        begin(fd)

    monkeypatch.setattr(libc, "start_writing", count)
    with Repository.init(where, algorithm=Algorithm.SHA256, secure=False) as repo:
        sealed = repo.writable_objects().measures
        for size in (WRITTEN_EARLY - 1, WRITTEN_EARLY, WRITTEN_EARLY, WRITTEN_EARLY + 1):
            repo.ensure_object(bytes(size))
    # To enable fs-verity writes a file anyway.
    assert begun == ([] if sealed else [WRITTEN_EARLY, WRITTEN_EARLY + 1])


def test_object_that_a_power_cut_truncated_is_replaced(where: Path) -> None:
    data = b"x" * 5000
    with Repository.open(where) as repo:
        digest = repo.ensure_object(data)
    path = where / "objects" / object_path(digest)
    path.write_bytes(b"")
    with Repository.open(where) as repo:
        assert repo.ensure_object(data) == digest
    assert path.read_bytes() == data
    path.write_bytes(b"")
    with Repository.open(where) as repo:
        assert repo.ensure_object_from(io.BytesIO(data)) == digest
    assert path.read_bytes() == data
    assert files_below(where) == {"meta.json", f"objects/{object_path(digest)}"}


def test_streams_images_and_tags_are_relative_links(where: Path) -> None:
    with Repository.open(where) as repo:
        stream = repo.write_stream("oci-manifest-sha256:ab", b"stream")
        repo.tag("oci-manifest-sha256:ab", "quay.io/x%y:1")
        image = repo.write_image(b"image", "my/name")
        assert repo.find_stream("oci-manifest-sha256:ab") == stream
        assert repo.read_stream("oci-manifest-sha256:ab") == b"stream"
        assert list(repo.tags()) == [("quay.io/x%y:1", "oci-manifest-sha256:ab")]
        assert repo.find_tag("quay.io/x%y:1") == "oci-manifest-sha256:ab"
        assert repo.find_tag("other") is None
        assert repo.find_image("my/name") == image
        assert repo.find_image(image.hex()) == image
        assert repo.find_image("nothing") is None
        assert repo.has_image(image)
        assert list(repo.image_refs()) == [("my/name", image.hex())]
    links = {
        "streams/oci-manifest-sha256:ab": f"../objects/{object_path(stream)}",
        "streams/refs/oci/quay.io%2Fx%25y:1": "../../oci-manifest-sha256:ab",
        f"images/{image.hex()}": f"../objects/{object_path(image)}",
        "images/refs/my/name": f"../../{image.hex()}",
    }
    for path, target in links.items():
        assert os.readlink(where / path) == target
        assert (where / path).resolve().is_file()


def test_link_is_replaced_in_one_step_and_leaves_nothing(where: Path) -> None:
    with Repository.open(where) as repo:
        repo.write_stream("oci-manifest-sha256:1", b"one")
        repo.write_stream("oci-manifest-sha256:2", b"two")
        repo.tag("oci-manifest-sha256:1", "tag")
        repo.tag("oci-manifest-sha256:2", "tag")
        assert repo.find_tag("tag") == "oci-manifest-sha256:2"
        with pytest.raises(NotFoundError):
            repo.tag("oci-manifest-sha256:3", "tag")
        repo.untag("tag")
        with pytest.raises(NotFoundError):
            repo.untag("tag")
    assert sorted(path.name for path in where.iterdir()) == ["meta.json", "objects", "streams"]


@pytest.mark.parametrize("name", ["", "@x", ".", "..", "a\0b"])
def test_tag_names_that_cannot_be(where: Path, name: str) -> None:
    with Repository.open(where) as repo, pytest.raises(BootcError, match="valid tag"):
        repo.find_tag(name)


def test_broken_link_to_no_object_is_reported(where: Path) -> None:
    with Repository.open(where) as repo:
        repo.write_stream("s", b"data")
        os.unlink(where / "streams/s")
        os.symlink("../objects/nonsense", where / "streams/s")
        with pytest.raises(FormatError, match="does not lead to an object"):
            repo.find_stream("s")


def test_repository_closes_every_descriptor(where: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Repository.open(where) as repo:
        repo.ensure_object(b"x" * 100)
    assert len(os.listdir("/proc/self/fd")) == before
