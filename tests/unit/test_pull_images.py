# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The images of a pull that are made while the disk writes its layers down."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from bootc.composefs.committed import CommittedImage, PlainImages, commit_pulled
from bootc.composefs.digest import Algorithm
from bootc.composefs.pull import PulledLayer, pull
from bootc.composefs.repository import Repository
from bootc.composefs.stored import layer_content_id
from bootc.errors import BootcError
from bootc.linux import libc
from bootc.oci.layout import open_source
from tests.ocibuild import END, member, sha256, system_tar, write_layout


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, secure=False)


def more_tar() -> bytes:
    return member(b"usr/more", b"more" * 1000) + END


def commit(repo: Repository, reference: str, *, early: bool) -> CommittedImage:
    images = PlainImages(repo)
    with open_source(reference) as source:
        pulled = pull(
            repo,
            source,
            reference=reference,
            readers=1,
            meanwhile=images.make if early else None,
        )
    assert bool(images.stored) is early
    return commit_pulled(repo, pulled, plain_images=images, bootable=True)


def test_images_made_meanwhile_are_those_made_afterwards(tmp_path: Path) -> None:
    reference = write_layout(tmp_path / "oci", [system_tar(), more_tar()])
    found = []
    for name in ("early", "late"):
        path = tmp_path / name
        with Repository.init(path, algorithm=Algorithm.SHA256, secure=False) as repo:
            done = commit(repo, reference, early=name == "early")
            assert done.plain is not None
            assert done.boot is not None
            assert repo.has_image(bytes.fromhex(done.plain.id))
            stored = sorted(repo.objects.names())
            found.append((done.plain, done.boot, done.pulled.images, done.pulled.stats, stored))
    assert found[0] == found[1]


def test_the_last_layer_is_published_after_the_others_and_the_work_meanwhile(
    repo: Repository, tmp_path: Path
) -> None:
    tars = [system_tar(), more_tar()]
    reference = write_layout(tmp_path / "oci", tars)
    seen: list[list[bool]] = []

    def published() -> list[bool]:
        return [repo.find_stream(layer_content_id(sha256(tar))) is not None for tar in tars]

    def meanwhile(layers: Sequence[PulledLayer]) -> None:
        assert [layer.diff_id for layer in layers] == [sha256(tar) for tar in tars]
        for layer in layers:
            repo.read_object(layer.digest)
        seen.append(published())

    with repo:
        for _ in range(2):
            with open_source(reference) as source:
                pull(repo, source, reference=reference, readers=1, meanwhile=meanwhile)
        # The larger layer comes first; the second pull stores nothing.
        assert sorted(seen[0]) == [False, True]
        assert len(seen) == 1
        assert published() == [True, True]


def test_a_tree_that_cannot_be_made_is_an_error_of_the_commit(
    repo: Repository, tmp_path: Path
) -> None:
    reference = write_layout(tmp_path / "oci", [member(b"nowhere/file", b"x" * 100) + END])
    images = PlainImages(repo)
    with repo, open_source(reference) as source:
        pulled = pull(repo, source, reference=reference, tag="t", meanwhile=images.make)
        assert [tag for tag, _ in repo.tags()] == ["t"]
        assert images.root is None
        with pytest.raises(BootcError, match="nowhere"):
            commit_pulled(repo, pulled, plain_images=images)


def is_unsynced(repo: Repository) -> bool:
    return repo.objects.changed


def test_what_is_stored_while_the_disk_writes_is_synced_later(repo: Repository) -> None:
    with repo:
        repo.ensure_object(b"one" * 100)
        with repo.syncing():
            pass
        assert not is_unsynced(repo)
        repo.ensure_object(b"two" * 100)
        with repo.syncing():
            repo.ensure_object(b"three" * 100)
        assert is_unsynced(repo)
        with repo.syncing():
            repo.sync()
        assert not is_unsynced(repo)


def test_a_disk_that_fails_to_write_meanwhile_publishes_nothing(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = write_layout(tmp_path / "oci", [system_tar()])

    def full(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    images = PlainImages(repo)
    with repo, open_source(reference) as source:
        monkeypatch.setattr(libc, "syncfs", full)
        with pytest.raises(BootcError, match="Input/output error"):
            pull(repo, source, reference=reference, tag="t", meanwhile=images.make)
        assert images.stored
        assert repo.objects.changed
        assert list(repo.tags()) == []
        assert not (tmp_path / "repo/images").exists()
        assert repo.find_stream(layer_content_id(sha256(system_tar()))) is None
