# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Making, ensuring, upgrading and resetting repositories; imports, counters, locks, refusals."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.metadata import Metadata, read_metadata
from bootc.composefs.objects import ObjectCounts, object_path
from bootc.composefs.repository import NotFoundError, OpenStatus, Repository
from bootc.errors import BootcError, FormatError

SHA256, SHA512 = Algorithm.SHA256, Algorithm.SHA512
DATA = b"some content" * 1000


@pytest.fixture
def where(tmp_path: Path) -> Path:
    path = tmp_path / "repo"
    with Repository.init(path, algorithm=SHA256, secure=False):
        return path


def edit(path: Path, **changes: object) -> None:
    meta = path / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | changes))


# -- meta.json


def test_metadata_of_several_formats(tmp_path: Path) -> None:
    with Repository.init(
        tmp_path / "r", algorithm=SHA256, secure=False, erofs_version=2, extra_versions=(1, 0, 2)
    ) as repo:
        assert repo.erofs_versions == (2, 0, 1)
        assert repo.erofs_version == 2
    text = (tmp_path / "r/meta.json").read_bytes()
    assert b'"default": 2,\n    "extra": [\n      0,\n      1\n    ]' in text
    assert b'"read-only-compatible": []' in text
    assert read_metadata(text, "x").to_json().encode() == text
    with Repository.open(tmp_path / "r", erofs_version=1) as repo:
        assert repo.erofs_versions == (1,)
    with pytest.raises(BootcError, match="no EROFS version 3"):
        Metadata.fresh(SHA256, default=3)


@pytest.mark.parametrize("bad", [[True], [1.5], ["1"], [7]])
def test_metadata_refuses_odd_extra_formats(where: Path, bad: list[object]) -> None:
    edit(where, erofs_formats={"default": 1, "extra": bad})
    with pytest.raises(FormatError, match=r"erofs_formats\.extra"):
        Repository.open(where)


def test_metadata_that_is_no_file_or_too_large_is_refused(where: Path) -> None:
    meta = where / "meta.json"
    meta.unlink()
    os.mkfifo(meta)
    with pytest.raises(FormatError, match="no regular file"):
        Repository.open(where)
    meta.unlink()
    meta.symlink_to("elsewhere")
    with pytest.raises(BootcError, match=r"cannot read .*meta\.json"):
        Repository.open(where)
    meta.unlink()
    with open(meta, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="no regular file of at most"):
        Repository.open(where)


def test_unknown_read_only_feature_allows_reading_and_no_writing(where: Path) -> None:
    with Repository.open(where) as repo:
        digest = repo.ensure_object(DATA)
        repo.write_stream("s", b"stream")
        repo.write_image(b"image", "name")
        repo.tag("s", "tag")
    edit(where, features={"read-only-compatible": ["v1_erofs", "newer"]})
    before = sorted(str(path) for path in where.rglob("*"))
    with Repository.open(where) as repo:
        assert repo.read_object(digest) == DATA
        assert repo.find_tag("tag") == "s"
        for write in (
            lambda: repo.ensure_object(b"x"),
            lambda: repo.ensure_object_from(io.BytesIO(b"x")),
            lambda: repo.write_stream("t", b"x"),
            lambda: repo.publish_streams({"t": digest}),
            lambda: repo.write_image(b"x", "n"),
            lambda: repo.name_image(digest, "n"),
            lambda: repo.tag("s", "other"),
            lambda: repo.untag("tag"),
        ):
            with pytest.raises(BootcError, match=r"read-only: .* cannot write: newer"):
                write()
    assert sorted(str(path) for path in where.rglob("*")) == before


# -- Old repositories


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_old_repository_is_upgraded(tmp_path: Path, algorithm: Algorithm) -> None:
    path = tmp_path / "repo"
    with Repository.init(path, algorithm=algorithm, secure=False) as repo:
        repo.write_stream("s", DATA)
    (path / "meta.json").unlink()
    with pytest.raises(BootcError, match="old format") as caught:
        Repository.open(path)
    assert caught.value.hint is not None
    assert not (path / "meta.json").exists()
    with Repository.open(path, upgrade=True) as repo:
        assert (repo.algorithm, repo.secure, repo.erofs_version) == (algorithm, False, 1)
        assert repo.read_stream("s") == DATA
    assert read_metadata((path / "meta.json").read_bytes(), "x") == Metadata.fresh(algorithm)


def test_old_repository_that_does_not_tell_its_algorithm(tmp_path: Path) -> None:
    path = tmp_path / "repo"
    (path / "objects/ab").mkdir(parents=True)
    with pytest.raises(BootcError, match="no objects that tell"):
        Repository.open(path, upgrade=True)
    for length in (62, 126):
        (path / "objects/ab" / ("c" * length)).touch()
    with pytest.raises(BootcError, match="more than one algorithm") as caught:
        Repository.open(path, upgrade=True)
    assert "--reset-metadata" in (caught.value.hint or "")
    assert not (path / "meta.json").exists()


def test_init_of_an_old_repository_takes_its_own_algorithm_only(where: Path) -> None:
    with Repository.open(where) as repo:
        repo.write_stream("s", DATA)
    (where / "meta.json").unlink()
    with pytest.raises(BootcError, match="old repository with fsverity-sha256-12"):
        Repository.init(where, algorithm=SHA512, secure=False)
    with Repository.init(where, algorithm=SHA256, secure=False) as repo:
        assert repo.read_stream("s") == DATA


def test_ensure_makes_opens_and_upgrades(tmp_path: Path) -> None:
    path = tmp_path / "repo"
    repo, status = Repository.ensure(path, algorithm=SHA256, secure=False, erofs_version=2)
    repo.ensure_object(DATA)
    repo.close()
    assert status is OpenStatus.CREATED
    # What is there stays as it is, though other things are asked for.
    repo, status = Repository.ensure(path, secure=True, erofs_version=1)
    assert (status, repo.erofs_version, repo.secure) == (OpenStatus.OPENED, 2, False)
    repo.close()
    (path / "meta.json").unlink()
    repo, status = Repository.ensure(path, algorithm=SHA256)
    assert (status, repo.algorithm) == (OpenStatus.UPGRADED, SHA256)
    repo.close()
    with pytest.raises(BootcError, match="not fsverity-sha512-12"):
        Repository.ensure(path, algorithm=SHA512)


def test_reset_keeps_objects_and_nothing_else(where: Path) -> None:
    with Repository.open(where) as repo:
        stream = repo.write_stream("s", DATA)
        repo.tag("s", "tag")
        repo.write_image(b"image", "a/b")
    Repository.reset_metadata(where)
    assert os.listdir(where) == ["objects"]
    with Repository.init(where, algorithm=SHA256, secure=False, erofs_version=2) as repo:
        assert repo.read_object(stream) == DATA
        assert repo.find_stream("s") is None
        assert list(repo.image_refs()) == list(repo.tags()) == []


def test_reset_waits_for_nobody_of_its_own_process(where: Path) -> None:
    with Repository.open(where), pytest.raises(BootcError, match="in this process"):
        Repository.reset_metadata(where)
    assert (where / "meta.json").exists()


# -- Objects


def test_objects_are_counted_by_how_they_came(where: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"file" * 100)
    with Repository.open(where) as repo:
        assert repo.counts() == ObjectCounts()
        repo.ensure_object(DATA)
        before = repo.counts()
        repo.ensure_object(DATA)
        repo.ensure_object_from(io.BytesIO(b"stream" * 100))
        with open(source, "rb") as file:
            digest = repo.import_object(file.fileno())
            assert repo.import_object(file.fileno()) == digest
        counts = repo.counts() - before
    assert digest == digest_bytes(b"file" * 100, SHA256)
    # A file system with reflinks shares the extents, another one copies.
    assert counts.reflinked + counts.copied == 1
    assert counts == ObjectCounts(
        written=1,
        existing=2,
        reflinked=counts.reflinked,
        copied=counts.copied,
        new_bytes=1000,
        existing_bytes=len(DATA) + 400,
    )
    assert counts.new == 2


def test_import_by_hard_link_shares_the_file(where: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    with Repository.open(where) as repo, open(source, "rb") as file:
        digest = repo.import_object(file.fileno(), zerocopy=True)
        assert repo.read_object(digest) == DATA
        made = (where / "objects" / object_path(digest)).stat()
        assert (made.st_ino == source.stat().st_ino) == (repo.counts().hardlinked == 1)
        assert repo.counts().copied == 0


def test_zerocopy_import_from_another_file_system_is_refused(where: Path) -> None:
    source = Path("/dev/shm") / f"bootc-test-{os.getpid()}"
    source.write_bytes(DATA)
    try:
        with Repository.open(where) as repo, open(source, "rb") as file:
            with pytest.raises(BootcError, match="neither reflinked nor hard-linked") as caught:
                repo.import_object(file.fileno(), zerocopy=True)
            assert "copy" in (caught.value.hint or "")
            assert repo.import_object(file.fileno(), hardlink=True) == digest_bytes(DATA, SHA256)
            assert repo.counts() == ObjectCounts(copied=1, new_bytes=len(DATA))
    finally:
        source.unlink()
    with Repository.open(where) as repo:
        assert list(repo.objects.names()) == [digest_bytes(DATA, SHA256).hex()]


def test_import_of_what_is_no_file_is_refused(where: Path, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with Repository.open(where) as repo, pytest.raises(BootcError, match="no regular file"):
            repo.import_object(fd)
    finally:
        os.close(fd)


def test_import_of_a_file_that_procfs_makes_up_takes_all_of_it(where: Path) -> None:
    expected = Path("/proc/self/limits").read_bytes()
    with Repository.open(where) as repo, open("/proc/self/limits", "rb") as file:
        assert repo.read_object(repo.import_object(file.fileno())) == expected


def test_object_that_is_a_fifo_is_refused_at_once(where: Path) -> None:
    digest = digest_bytes(DATA, SHA256)
    with Repository.open(where) as repo:
        repo.writable_objects()
        os.mkfifo(where / "objects" / object_path(digest))
        with pytest.raises(BootcError, match="no regular file"):
            repo.read_object(digest)


def test_many_threads_store_the_same_objects(where: Path) -> None:
    contents = [b"%d" % number * 1000 for number in range(40)]
    with Repository.open(where) as repo:
        store = repo.writable_objects()
        threads = [
            threading.Thread(target=lambda: [store.store(data) for data in contents])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts = repo.counts()
        assert counts.written == 40
        assert counts.existing == 120
        assert set(store.names()) == {digest_bytes(data, SHA256).hex() for data in contents}


# -- Names


@pytest.mark.parametrize("name", ["", "/x", "x/", "a//b", "a/../b", ".", "a\0b"])
def test_names_that_would_lead_out_of_refs_are_refused(where: Path, name: str) -> None:
    with Repository.open(where) as repo:
        with pytest.raises(BootcError, match="no valid name"):
            repo.write_image(b"image", name)
        assert not (where / "images").exists()
        assert not (where / "objects").exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", "refs", "a\0b"])
def test_content_ids_that_cannot_be(where: Path, name: str) -> None:
    with Repository.open(where) as repo, pytest.raises(BootcError, match="content identifier"):
        repo.write_stream(name, b"data")


def test_tag_that_is_too_long_for_a_file_name(where: Path) -> None:
    with Repository.open(where) as repo:
        repo.write_stream("s", b"data")
        with pytest.raises(BootcError, match="longer than a file name"):
            repo.tag("s", "/" * 86)
        repo.tag("s", "/" * 85)
        assert [name for name, _ in repo.tags()] == ["/" * 85]


def test_image_is_found_and_opened_by_each_of_its_names(where: Path) -> None:
    with Repository.open(where) as repo:
        digest = repo.write_image(b"an image", "a/b")
        for name, verified in ((digest.hex(), False), ("a/b", True), ("refs/a/b", True)):
            opened = repo.open_image(name)
            os.close(opened.fd)
            assert (opened.digest, opened.verified) == (digest, verified)
            assert repo.read_image(name) == b"an image"
        for name in ("nothing", "refs/nothing", "refs", "", "..", "../meta.json", "0" * 64):
            with pytest.raises(NotFoundError):
                repo.open_image(name)
        # What is an object, but not published as an image, is not opened as one.
        other = repo.ensure_object(b"no image")
        with pytest.raises(NotFoundError):
            repo.open_image(other.hex())


def test_stream_is_resolved_by_each_of_its_names(where: Path) -> None:
    with Repository.open(where) as repo:
        repo.write_stream("s", b"data")
        repo.tag("s", "a/b")
        assert repo.resolve_stream("s") == repo.resolve_stream("refs/oci/a%2Fb") == "s"
        for name in ("t", "refs/oci/t"):
            with pytest.raises(NotFoundError):
                repo.resolve_stream(name)
        with pytest.raises(BootcError):
            repo.resolve_stream("refs/../../meta.json")


# -- Locks


def is_locked(path: Path, kind: int) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_repository_is_locked_while_it_is_open(where: Path) -> None:
    assert not is_locked(where, fcntl.LOCK_EX)
    with Repository.open(where) as repo, Repository.open(where) as other:
        assert is_locked(where, fcntl.LOCK_EX)
        assert not is_locked(where, fcntl.LOCK_SH)
        other.close()
        with repo.exclusive():
            assert is_locked(where, fcntl.LOCK_SH)
        assert not is_locked(where, fcntl.LOCK_SH)
        assert is_locked(where, fcntl.LOCK_EX)
    assert not is_locked(where, fcntl.LOCK_EX)


def test_repository_that_cannot_be_opened_is_not_left_locked(where: Path) -> None:
    edit(where, version=9)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FormatError):
        Repository.open(where)
    assert not is_locked(where, fcntl.LOCK_EX)
    assert len(os.listdir("/proc/self/fd")) == before
    edit(where, version=1)
    with Repository.open(where) as repo, repo.exclusive():
        pass


def test_directory_that_is_removed_meanwhile_is_an_error(where: Path) -> None:
    with Repository.open(where) as repo:
        shutil.rmtree(where)
        with pytest.raises(BootcError):
            repo.ensure_object(DATA)
