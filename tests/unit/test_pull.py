# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Pulling layouts into repositories, good ones and damaged ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootc.composefs.blobs import CHUNK
from bootc.composefs.digest import Algorithm
from bootc.composefs.layers import SPOOL
from bootc.composefs.progress import Done, Event, Progress, Skipped, Started
from bootc.composefs.pull import PulledImage, pull
from bootc.composefs.repository import Repository
from bootc.composefs.splitstream import read_splitstream
from bootc.composefs.stored import (
    attach_images,
    layer_content_id,
    load_image,
    load_images,
    open_stream,
)
from bootc.errors import BootcError, FormatError
from bootc.oci.layout import open_source
from tests.ocibuild import END, folder, header, member, sha256, system_tar, write_layout


def pull_layout(repo: Repository, reference: str, events: list[Event] | None = None) -> PulledImage:
    report = events.append if events is not None else None
    with open_source(reference) as source:
        return pull(repo, source, reference=reference, tag="test", on_progress=report)


def reassembled(repo: Repository, diff_id: str) -> bytes:
    stream = open_stream(repo, layer_content_id(diff_id))
    parts = [
        part if isinstance(part, bytes) else repo.read_object(stream.object_refs[part])
        for part in stream.chunks()
    ]
    data = b"".join(parts)
    assert len(data) == stream.total_size
    return data


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, secure=False)


@pytest.mark.parametrize("how", ["none", "gzip", "zstd"])
def test_pull_stores_layers_bit_for_bit(repo: Repository, tmp_path: Path, how: str) -> None:
    # Contents around every limit of the reader: the chunk, the spool, the block.
    sizes = [
        0,
        1,
        64,
        65,
        511,
        512,
        513,
        CHUNK - 512,
        CHUNK,
        CHUNK + 1,
        SPOOL,
        SPOOL + 1,
        SPOOL + 700,
    ]
    first = b"".join(
        member(b"f%d" % size, os.urandom(size // 2) + bytes(size - size // 2)) for size in sizes
    )
    tars = [first + END + bytes(CHUNK + 77), system_tar(), member(b"last", b"no end" * 20)]
    events: list[Event] = []
    with repo:
        pulled = pull_layout(repo, write_layout(tmp_path / "oci", tars, how=how), events)
        assert [layer.diff_id for layer in pulled.layers] == [sha256(tar) for tar in tars]
        for tar in tars:
            assert reassembled(repo, sha256(tar)) == tar
        loaded = load_image(repo, "test")
        assert loaded.manifest == pulled.manifest
        assert loaded.config == pulled.config
        assert loaded.manifest_id == pulled.manifest_id
        assert [layer.digest for layer in loaded.layers] == [item.digest for item in pulled.layers]
        by_digest = load_image(repo, f"@{pulled.manifest_digest}")
        assert by_digest.config_id == pulled.config_id
        assert [image.reference for image in load_images(repo)] == ["test"]
    for tar in tars:
        mine = [event for event in events if getattr(event, "id", None) == sha256(tar)]
        assert isinstance(mine[0], Started)
        last, done = mine[-2:]
        assert isinstance(last, Progress)
        assert isinstance(done, Done)
        assert mine[0].total == last.total == last.fetched == done.transferred
    order = [event.total or 0 for event in events if isinstance(event, Started)]
    assert order == sorted(order, reverse=True), "the largest first"


def test_pull_again_reads_no_layer_and_keeps_the_images(repo: Repository, tmp_path: Path) -> None:
    reference = write_layout(tmp_path / "oci", [system_tar()])
    with repo:
        first = pull_layout(repo, reference)
        image = repo.write_image(b"an image")
        first = attach_images(repo, first, {"composefs.image.v1": image})
        assert attach_images(repo, first, {"composefs.image.v1": image}) is first
        for blob in (tmp_path / "oci/blobs/sha256").iterdir():
            if blob.name in first.layers[0].diff_id:
                blob.unlink()
        events: list[Event] = []
        second = pull_layout(repo, reference, events)
        assert events == [Skipped(id=first.layers[0].diff_id)]
        assert second.images == {"composefs.image.v1": image}
        assert second.manifest_id == first.manifest_id
        assert second.layers[0].entries is None


def test_pull_config_and_manifest_refer_to_what_they_name(repo: Repository, tmp_path: Path) -> None:
    with repo:
        pulled = pull_layout(repo, write_layout(tmp_path / "oci", [system_tar()]))
        diff_id, digest = pulled.layers[0].diff_id, pulled.layers[0].digest
        manifest = read_splitstream(repo.read_object(bytes.fromhex(pulled.manifest_id)), "m")
        config = read_splitstream(repo.read_object(bytes.fromhex(pulled.config_id)), "c")
        config_ref = bytes.fromhex(pulled.config_id)
        assert manifest.content_type == b"ocimanif"
        assert manifest.stream_refs == [config_ref, digest]
        assert manifest.named_refs == {
            f"config:{pulled.config_digest}": config_ref,
            diff_id: digest,
        }
        assert repo.read_object(manifest.only_object()) == pulled.manifest
        assert config.content_type == b"ociconfg"
        assert config.named_refs == {diff_id: digest}
        assert repo.read_object(config.only_object()) == pulled.config
        assert config.total_size == len(pulled.config)


def layer_file(layout: Path, tar: bytes) -> Path:
    return layout / "blobs/sha256" / sha256(tar).removeprefix("sha256:")


@pytest.mark.parametrize(
    "damage",
    ["flip a byte of a content", "flip a byte of a header", "cut", "append", "wrong diff id"],
)
def test_pull_of_a_damaged_layer_publishes_nothing(
    repo: Repository, tmp_path: Path, damage: str
) -> None:
    tar = system_tar(os.urandom(SPOOL + 5))
    wrong = [sha256(b"other")] if damage == "wrong diff id" else None
    reference = write_layout(tmp_path / "oci", [tar], diff_ids=wrong)
    blob = layer_file(tmp_path / "oci", tar)
    data = bytearray(tar)
    match damage:
        case "flip a byte of a content":
            data[-SPOOL] ^= 1
        case "flip a byte of a header":
            data[3] ^= 1
        case "cut":
            del data[-SPOOL:]
        case "append":
            data += b"x"
        case _:
            assert wrong
    blob.write_bytes(data)
    before = len(os.listdir("/proc/self/fd"))
    with repo:
        with pytest.raises(FormatError, match=r"has the digest|it should be"):
            pull_layout(repo, reference)
        repo.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    assert sorted(os.listdir(tmp_path / "repo")) == ["meta.json", "objects"]
    assert not any(name.startswith(".") for name in os.listdir(tmp_path / "repo/objects"))


def test_pull_names_the_offset_of_a_bad_tar(repo: Repository, tmp_path: Path) -> None:
    bad = folder(b"usr") + member(b"usr/x", b"x" * 100) + header(b"usr/y", 0, b"V") + END
    with repo, pytest.raises(FormatError, match="unknown type") as caught:
        pull_layout(repo, write_layout(tmp_path / "oci", [bad]))
    assert caught.value.where == 512 * 3


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_pull_of_a_truncated_compressed_layer_is_refused(
    repo: Repository, tmp_path: Path, how: str
) -> None:
    reference = write_layout(tmp_path / "oci", [system_tar()], how=how)
    for blob in (tmp_path / "oci/blobs/sha256").iterdir():
        data = blob.read_bytes()
        if not data.startswith(b"{"):
            blob.write_bytes(data[:-20])
    with repo, pytest.raises(FormatError):
        pull_layout(repo, reference)
    assert not os.path.lexists(tmp_path / "repo/streams")


def test_pull_keeps_the_layers_it_completed(repo: Repository, tmp_path: Path) -> None:
    good, bad = system_tar(), member(b"x", b"y" * 100) + END
    reference = write_layout(tmp_path / "oci", [good, bad])
    blob = layer_file(tmp_path / "oci", bad)
    blob.write_bytes(bad[:-1] + b"!")
    with repo:
        with pytest.raises(FormatError), open_source(reference) as source:
            pull(repo, source, reference=reference, tag="test", readers=1)
        assert repo.find_stream(layer_content_id(sha256(good))) is not None
        assert list(repo.tags()) == []
        blob.write_bytes(bad)
        events: list[Event] = []
        pull_layout(repo, reference, events)
        assert events[0] == Skipped(id=sha256(good))


def test_pull_refuses_what_does_not_fit_together(repo: Repository, tmp_path: Path) -> None:
    tar = system_tar()
    reference = write_layout(tmp_path / "oci", [tar], diff_ids=[sha256(tar)] * 2)
    with repo, pytest.raises(BootcError, match="1 layers, the config 2"):
        pull_layout(repo, reference)
