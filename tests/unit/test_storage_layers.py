# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Layers of a store back to tars, into repositories and into splitdirfdstreams."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import stat
import threading
from pathlib import Path
from typing import cast

import pytest

from bootc.composefs.blobs import Readable
from bootc.composefs.digest import Algorithm
from bootc.composefs.dirfdstream import FileBacked, StreamWriter, read_chunks
from bootc.composefs.dirfdstream_import import PipeReader, receive_layer
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.composefs.storage_layers import write_stored_layer
from bootc.deploy.source import open_image
from bootc.errors import BootcError, FormatError
from bootc.oci.layout import open_source
from bootc.oci.reference import OSTREE_REMOTE, parse_imgref
from bootc.storage.crc64 import crc64
from bootc.storage.records import big_data_name
from bootc.storage.source import StorageSource, find_stored
from tests.ocibuild import (
    END,
    folder,
    member,
    sha256,
    system_tar,
    write_layout,
)
from tests.storagebuild import (
    BIG,
    StoreBuilder,
    nothing_is_published,
    odd_tar,
    pulled,
    rebuilt,
    store_with,
)


def slow_crc64(data: bytes) -> int:
    """The definition, bit by bit."""
    crc = (1 << 64) - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xD800000000000000 if crc & 1 else 0)
    return crc ^ (1 << 64) - 1


def test_crc64_is_the_defined_one() -> None:
    assert crc64(b"123456789") == 0xB90956C775A41001
    source = random.Random(1)
    for size in [*range(300), 1000, 4097, 32767, 32768, 32769, 70_001]:
        data = source.randbytes(size)
        assert crc64(data) == slow_crc64(data), size
        cut = source.randrange(size + 1)
        assert crc64(data[cut:], crc64(data[:cut])) == slow_crc64(data), (size, cut)


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_the_exact_tar_comes_back(tmp_path: Path, how: str) -> None:
    tar = odd_tar()
    assert rebuilt(store_with(tmp_path, tar, how=how)) == tar


def test_a_metacopy_stub_is_read_from_below(tmp_path: Path) -> None:
    first = folder(b"usr") + member(b"usr/a", BIG) + END
    second = folder(b"usr") + member(b"usr/a", BIG) + END + bytes(512)
    store = store_with(tmp_path, first, second)
    stub = store.diff(str(store.layers[1]["id"])) / "usr/a"
    stub.write_bytes(b"")
    os.truncate(stub, len(BIG))
    os.setxattr(stub, "user.overlay.metacopy", b"")
    assert stub.stat().st_blocks * 512 < len(BIG)
    assert rebuilt(store, 1) == second
    moved = store.diff(str(store.layers[0]["id"])) / "usr/b"
    (moved.parent / "a").rename(moved)
    os.setxattr(stub, "user.overlay.redirect", b"/usr/b")
    assert rebuilt(store, 1) == second
    moved.unlink()
    with pytest.raises(FormatError, match="the file is missing"):
        rebuilt(store, 1)


# -- Into a repository


def can_clone(repo: Repository, path: Path) -> bool:
    store = repo.writable_objects()
    with path.open("rb") as file:
        found = store.clone(file.fileno())
    if found is not None:
        store.discard(found)
    return found is not None


@pytest.mark.parametrize("algorithm", [Algorithm.SHA256, Algorithm.SHA512])
def test_equals_the_pull_of_a_layout(tmp_path: Path, algorithm: Algorithm) -> None:
    tars = [system_tar(BIG), odd_tar()]
    store = store_with(tmp_path, *tars)
    layout = write_layout(tmp_path / "oci", tars)
    with (
        Repository.init(tmp_path / "a", algorithm=algorithm, secure=False) as ours,
        Repository.init(tmp_path / "b", algorithm=algorithm, secure=False) as theirs,
    ):
        one = pulled(ours, store.imgref("image:1"))
        two = pulled(theirs, layout)
        assert [layer.diff_id for layer in one.layers] == [sha256(tar) for tar in tars]
        # Even the split streams are the same, byte for byte.
        assert [layer.digest for layer in one.layers] == [layer.digest for layer in two.layers]
        assert one.manifest_digest == store.images[0]["digest"]
        assert one.config_digest == f"sha256:{store.images[0]['id']}"


def test_what_may_be_linked_is_linked_and_nothing_is_changed(tmp_path: Path) -> None:
    names = [b"plain", b"setuid", b"private", b"shared", b"large"]
    tar = b"".join(member(name, name * (2 << 20 if name == b"large" else 100)) for name in names)
    store = store_with(tmp_path, tar + END)
    files = store.diff(str(store.layers[0]["id"]))
    for name, mode in (("setuid", 0o4755), ("private", 0o600), ("shared", 0o666)):
        (files / name).chmod(mode)
    before = {name: (files / name).stat() for name in os.listdir(files)}
    with Repository.init(tmp_path / "r", algorithm=Algorithm.SHA256, secure=False) as repo:
        pulled(repo, store.imgref("image:1"))
        counts = repo.counts()
        if can_clone(repo, files / "plain"):
            assert counts.reflinked == 5
        else:
            assert counts.hardlinked == 2
            links = {name: (files / name).stat().st_nlink for name in before}
            assert links == {"plain": 2, "large": 2, "setuid": 1, "private": 1, "shared": 1}
        for path in (tmp_path / "r/objects").glob("??/*"):
            assert not path.stat().st_mode & (stat.S_ISUID | stat.S_IWGRP | stat.S_IWOTH)
    for name, old in before.items():
        new = (files / name).stat()
        assert (new.st_mode, new.st_mtime_ns, new.st_size) == (
            old.st_mode,
            old.st_mtime_ns,
            old.st_size,
        )


def test_zerocopy_refuses_what_would_have_to_be_copied(tmp_path: Path) -> None:
    store = store_with(tmp_path, member(b"plain", b"p" * 100) + END)
    path = store.diff(str(store.layers[0]["id"])) / "plain"
    with Repository.init(tmp_path / "r", algorithm=Algorithm.SHA256, secure=False) as repo:
        pulled(repo, store.imgref("image:1"), zerocopy=True)
        assert repo.counts().copied == 0
    path.chmod(0o600)
    with Repository.init(tmp_path / "s", algorithm=Algorithm.SHA256, secure=False) as repo:
        if not can_clone(repo, path):
            with pytest.raises(BootcError, match="neither reflinked nor safely hard-linked"):
                pulled(repo, store.imgref("image:1"), zerocopy=True)
            assert nothing_is_published(repo)


def test_layers_in_an_additional_store(tmp_path: Path) -> None:
    first, second = system_tar(), member(b"usr/second", b"2" * 600) + END
    store = store_with(tmp_path, first, second)
    below = StoreBuilder(root=tmp_path / "below")
    below.layers.append(store.layers.pop(0))
    below.write()
    base = str(below.layers[0]["id"])
    (store.root / "overlay" / base).rename(below.root / "overlay" / base)
    store.split(base).rename(below.split(base))
    store.write()
    options = f"overlay.imagestore={below.root}"
    imgref = f"containers-storage:[overlay@{store.root}:{options}]localhost/image:1"
    with Repository.init(tmp_path / "r", algorithm=Algorithm.SHA256, secure=False) as repo:
        assert len(pulled(repo, imgref).layers) == 2
    with (
        pytest.raises(BootcError, match=f"the layer {base} is missing"),
        open_source(store.imgref("image:1")),
    ):
        pass


def test_a_blob_is_the_tar(tmp_path: Path) -> None:
    tar = odd_tar()
    store = store_with(tmp_path, tar)
    with open_source(store.imgref("image:1")) as source:
        digest = json.loads(source.manifest)["layers"][0]["digest"]
        with source.open_blob(digest) as blob:
            assert blob.read() == tar
        with pytest.raises(BootcError, match="not kept as it was"), source.open_blob(sha256(b"")):
            pass


def test_pieces_name_files_below_directories(tmp_path: Path) -> None:
    """What a layer is given away from: bytes, and files in the folders that `directories` lists."""
    store = store_with(tmp_path, system_tar(), odd_tar())
    image = find_stored(store.imgref("image:1").removeprefix("containers-storage:"))
    with StorageSource(image) as source, source.open_layer(sha256(odd_tar())) as reader:
        directories = reader.directories
        assert len(directories) == 2
        tar = b""
        for piece in reader.pieces():
            if isinstance(piece, bytes):
                tar += piece
                continue
            os.close(piece.fd)
            fd = os.open(piece.name, os.O_RDONLY, dir_fd=directories[piece.index])
            with os.fdopen(fd, "rb") as file:
                data = file.read()
            assert len(data) == piece.size
            tar += data
    assert tar == odd_tar()


def test_an_image_with_several_manifests(tmp_path: Path) -> None:
    """Pulled from two places whose manifests differ: `manifest` is the last, a digest pins one."""
    store = store_with(tmp_path, system_tar())
    image = store.images[0]
    kept = store.root / "overlay-images" / str(image["id"])
    first = (kept / "manifest").read_bytes()
    second = first + b" "
    (kept / "manifest").write_bytes(second)
    key = f"manifest-{sha256(second)}"
    (kept / big_data_name(key)).write_bytes(second)
    names = image["big-data-names"]
    assert isinstance(names, list)
    names.append(key)
    store.write()
    with open_source(store.imgref("image:1")) as source:
        assert source.manifest == second
    with open_source(store.imgref(f"localhost/image@{sha256(first)}")) as source:
        assert source.manifest == first


@pytest.mark.parametrize("may_read_all", [False, True])
def test_a_layer_is_given_away_as_a_splitdirfdstream(tmp_path: Path, may_read_all: bool) -> None:
    """What others may not read goes inline; the receiver gets the same layer either way."""
    tar = system_tar(BIG)
    store = store_with(tmp_path, tar)
    files = store.diff(str(store.layers[0]["id"]))
    (files / "usr/bin/large").chmod(0o600)
    (files / "boot").chmod(0o700)
    image = find_stored(store.imgref("image:1").removeprefix("containers-storage:"))
    stream = tmp_path / "stream"
    with StorageSource(image) as source, source.open_layer(sha256(tar)) as reader:
        with stream.open("wb") as file:
            write_stored_layer(reader, StreamWriter(file.fileno()), [5], may_read_all=may_read_all)
        with stream.open("rb") as sent:
            chunks = [chunk for chunk, _ in read_chunks(cast(Readable, sent))]
        names = {chunk.name for chunk in chunks if isinstance(chunk, FileBacked)}
        assert {chunk.index for chunk in chunks if isinstance(chunk, FileBacked)} == {5}
        closed = {b"usr/bin/large", b"boot/vmlinuz"}
        assert closed & names == (closed if may_read_all else set())
        assert b"usr/big" in names
        out, into = os.pipe()

        def send() -> None:
            with os.fdopen(into, "wb") as pipe:
                pipe.write(stream.read_bytes())

        sender = threading.Thread(target=send)
        sender.start()
        with Repository.init(tmp_path / "r", algorithm=Algorithm.SHA256, secure=False) as repo:
            slots = [0, 0, 0, 0, 0, *reader.directories]
            received = receive_layer(repo, PipeReader(out), slots, sha256(tar))
        sender.join()
        os.close(out)
    with (
        Repository.init(tmp_path / "s", algorithm=Algorithm.SHA256, secure=False) as repo,
        open_source(write_layout(tmp_path / "oci", [tar])) as layout,
    ):
        assert pull(repo, layout, reference="x").layers[0].digest == received.digest


def test_updates_read_it_directly_unless_signatures_are_wanted(tmp_path: Path) -> None:
    store = store_with(tmp_path, system_tar())
    image = parse_imgref(store.imgref("image:1"))
    assert isinstance(open_image(image), StorageSource)
    # A policy that verifies is skopeo's to obey; where there is none that is said, not passed over.
    with pytest.raises(BootcError):
        open_image(dataclasses.replace(image, signature=OSTREE_REMOTE + "x"))
