# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Layers of a store back to tars, and into repositories; and every way in which a store can lie."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import os
import random
import stat
import sys
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from bootc import process
from bootc.composefs.blobs import Readable
from bootc.composefs.digest import Algorithm
from bootc.composefs.dirfdstream import FileBacked, StreamWriter, read_chunks
from bootc.composefs.dirfdstream_import import PipeReader, receive_layer
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.composefs.storage_layers import write_stored_layer
from bootc.composefs.stored import PulledImage
from bootc.deploy.source import open_image
from bootc.errors import BootcError, FormatError
from bootc.oci.layout import LocalStorage, open_source
from bootc.oci.reference import OSTREE_REMOTE, parse_imgref
from bootc.oci.tarstream import BLOCK
from bootc.storage import tarsplit
from bootc.storage.crc64 import crc64
from bootc.storage.layer import open_layer
from bootc.storage.opener import Opener
from bootc.storage.records import big_data_name
from bootc.storage.source import StorageSource, find_stored
from bootc.storage.store import LayerIndex, Store, Unsupported
from bootc.storage.tarsplit import read_tarsplit
from tests.ocibuild import (
    END,
    folder,
    header,
    member,
    padded,
    pax,
    sha256,
    system_tar,
    write_layout,
)
from tests.storagebuild import Line, StoreBuilder

FIRST = folder(b"usr") + END
"""A layer below the one that is wrong: a pull may keep it, so that the next need not read it."""
BIG = bytes(range(256)) * 20_000
"""5,120,000 bytes: more than goes through memory."""


def odd_tar() -> bytes:
    """Members of every kind that matters here, padding that is no zeros, bytes after the end."""
    return (
        folder(b"./")
        + folder(b"usr")
        + member(b"usr/empty")
        + member(b"usr/64", b"x" * 64)
        + header(b"usr/65", 65)
        + b"y" * 65
        + b"PADDING".ljust(447, b"!")
        + member(b"usr/512", b"z" * 512)
        + pax(path=b"usr/" + b"long" * 50)
        + member(b"ignored", b"p" * 700)
        + header(b"usr/hard", 0, b"1", link=b"usr/512")
        + header(b"usr/soft", 0, b"2", link=b"/usr/512")
        + member(b"usr/.wh.gone")
        + member(b"usr/not-utf8-\xff", b"n" * 3000)
        + END
        + b"\0" * 9000
        + b"after the end"
    )


def store_with(tmp_path: Path, *tars: bytes, how: str = "gzip") -> StoreBuilder:
    store = StoreBuilder(root=tmp_path / "store")
    store.add_image(list(tars), "localhost/image:1", how=how)
    store.write()
    return store


def rebuilt(store: StoreBuilder, number: int = 0) -> bytes:
    stores = (Store(root=str(store.root)),)
    layer = LayerIndex(stores).find(str(store.layers[number]["id"]))
    assert layer is not None
    with Opener() as opener, open_layer(layer, stores, opener) as reader:
        return b"".join(reader.read_tar())


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


def pulled(repo: Repository, imgref: str, **options: bool) -> PulledImage:
    with open_source(imgref) as source:
        return pull(
            repo, source, reference=imgref, tag="t", zerocopy=options.get("zerocopy", False)
        )


def nothing_is_published(repo: Repository) -> bool:
    """No tag, manifest or config, and no layer but `FIRST`."""
    streams = Path(repo.path) / "streams"
    found = set(os.listdir(streams)) if streams.exists() else set()
    return not list(repo.tags()) and found <= {"refs", f"oci-layer-{sha256(FIRST)}"}


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


# -- Lies


Change = Callable[[list[Line]], None]


def content_line(lines: list[Line]) -> Line:
    return next(line for line in lines if line.get("size"))


def rename(name: str) -> Change:
    def change(lines: list[Line]) -> None:
        content_line(lines)["name"] = name

    return change


def resize(size: object) -> Change:
    def change(lines: list[Line]) -> None:
        content_line(lines)["size"] = size

    return change


def replace(**fields: object) -> Change:
    def change(lines: list[Line]) -> None:
        lines[0].update(fields)

    return change


def set_crc(lines: list[Line]) -> None:
    content_line(lines)["payload"] = base64.b64encode(b"x").decode()


def many_members(lines: list[Line]) -> None:
    for number in range(5000):
        lines.insert(1, {"type": 1, "name": f"{number}"})
    for number, line in enumerate(lines):
        line["position"] = number


LIES: list[tuple[Change, str]] = [
    (rename("../../../../etc/passwd"), "is not one of a file"),
    (rename("usr/../../x"), "is not one of a file"),
    (rename("/etc/passwd"), "etc/passwd: the file is missing"),
    (rename("out/passwd"), "leads through a symbolic link"),
    (rename("link"), "leads through a symbolic link"),
    (rename("usr"), "is no regular file"),
    (rename("usr/bin/large/x"), "leads through a symbolic link, or through what is no directory"),
    (rename("fifo"), "is no regular file"),
    (rename("x" * 5000), "is not one of a file"),
    (rename("."), "is not one of a file"),
    (rename("a\0b"), "is not one of a file"),
    (rename("\ud800"), "the name is no text|is not JSON"),
    (rename(""), "is not one of a file"),
    (resize(3), "the file has 4 bytes, tar-split says 3"),
    (resize(1 << 40), "the file has 4 bytes, tar-split says 1099511627776"),
    (resize(1 << 70), "the bad size"),
    (resize(-1), "the bad size"),
    (resize("4"), "the bad size"),
    (resize(True), "the bad size"),
    (set_crc, "a CRC of 1 bytes"),
    (replace(type=3), "line 1: has the unknown type 3"),
    (replace(type="2"), "line 1: has the unknown type '2'"),
    (replace(payload="!!!!"), "the payload is no base64"),
    (replace(payload=7), "the payload is no base64"),
    (replace(position=9), "line 1: has the position 9"),
    (replace(payload=""), "bad header checksum|has the digest|more members|too early"),
    (many_members, "more members than headers"),
]


@pytest.mark.parametrize(("change", "problem"), LIES)
def test_a_tar_split_that_lies(tmp_path: Path, change: Change, problem: str) -> None:
    store = store_with(tmp_path, system_tar())
    layer = str(store.layers[0]["id"])
    (store.diff(layer) / "out").symlink_to("/etc")
    (store.diff(layer) / "link").symlink_to("usr/bin/small")
    os.mkfifo(store.diff(layer) / "fifo")
    lines = store.lines(layer)
    change(lines)
    store.rewrite(layer, lines)
    expect_refusal(tmp_path, store, problem)


def expect_refusal(tmp_path: Path, store: StoreBuilder, problem: str) -> None:
    """A pull fails by one line, publishes nothing, and leaves no descriptor open."""
    with Repository.init(tmp_path / "r", algorithm=Algorithm.SHA256, secure=False) as repo:
        repo.writable_objects()
        before = sorted(os.listdir("/proc/self/fd"))
        with pytest.raises(BootcError, match=problem) as caught:
            pulled(repo, store.imgref("image:1"))
        assert "\n" not in str(caught.value)
        assert nothing_is_published(repo)
        assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "neither gzip nor zstd"),
        (b"not packed at all", "neither gzip nor zstd"),
        (gzip.compress(b"{}")[:-9], "cut off|cannot be unpacked"),
        (gzip.compress(b"\xff\xfe\n"), "line 1: is not JSON"),
        (gzip.compress(b"[]\n"), "line 1: is no JSON object"),
        (gzip.compress(b"{} {}\n"), "line 1: is not JSON"),
        (gzip.compress(b"[" * 100_000), "line 1: is not JSON"),
        (gzip.compress(b'{"type": 2, "payload": "'), "line 1: is not JSON"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 30, "cannot be unpacked"),
        (b"\x1f\x8b" + b"\0" * 30, "cannot be unpacked"),
    ],
)
def test_a_tar_split_that_is_damaged(tmp_path: Path, data: bytes, problem: str) -> None:
    store = store_with(tmp_path, system_tar())
    store.split(str(store.layers[0]["id"])).write_bytes(data)
    expect_refusal(tmp_path, store, problem)


def test_a_tar_split_cut_off_anywhere(tmp_path: Path) -> None:
    store = store_with(tmp_path, system_tar())
    path = store.split(str(store.layers[0]["id"]))
    data = path.read_bytes()
    with Repository.init(tmp_path / "r", algorithm=Algorithm.SHA256, secure=False) as repo:
        for size in range(0, len(data), 7):
            path.write_bytes(data[:size])
            with pytest.raises(FormatError):
                pulled(repo, store.imgref("image:1"))
        assert nothing_is_published(repo)


def test_a_huge_payload_takes_no_memory(tmp_path: Path) -> None:
    """A line of a gigabyte, packed into one megabyte."""
    bomb = tmp_path / "bomb.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(b'{"type": 2, "payload": "')
        for _ in range(64):
            file.write(b"A" * (16 << 20))
    tracemalloc.start()
    try:
        with (
            bomb.open("rb") as file,
            pytest.raises(FormatError, match="line 1: is longer than 24 MiB"),
        ):
            list(read_tarsplit(file, "bomb"))
        assert tracemalloc.get_traced_memory()[1] < 3 * tarsplit.LINE_MAX
    finally:
        tracemalloc.stop()


def test_endless_bytes_end_at_the_limit(tmp_path: Path) -> None:
    store = store_with(tmp_path, system_tar())
    layer = str(store.layers[0]["id"])
    zeros = base64.b64encode(bytes(1 << 20)).decode()
    lines = store.lines(layer)[:-1]
    lines += [{"type": 2, "payload": zeros} for _ in range(64)]
    for number, line in enumerate(lines):
        line["position"] = number
    store.rewrite(layer, lines)
    with (
        Repository.init(tmp_path / "r", algorithm=Algorithm.SHA256, secure=False) as repo,
        open_source(store.imgref("image:1")) as source,
    ):
        with pytest.raises(FormatError, match="unpacks to more than 1048576 bytes"):
            pull(repo, source, reference="x", tag="t", unpacked_max=1 << 20)
        assert nothing_is_published(repo)


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    store = store_with(tmp_path, system_tar())
    path = store.diff(str(store.layers[0]["id"])) / "usr/bin/large"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    expect_refusal(tmp_path, store, r"usr/bin/large: the file was changed: it has another CRC-64")


def test_a_wrong_crc_is_told_where_it_is_asked_for(tmp_path: Path) -> None:
    store = store_with(tmp_path, system_tar())
    layer = str(store.layers[0]["id"])
    lines = store.lines(layer)
    content_line(lines)["payload"] = base64.b64encode(bytes(8)).decode()
    store.rewrite(layer, lines)
    with pytest.raises(FormatError, match="usr/bin/small: the file was changed"):
        rebuilt(store)


def test_a_changed_header_is_a_wrong_digest(tmp_path: Path) -> None:
    tar = system_tar()
    store = store_with(tmp_path, tar)
    layer = str(store.layers[0]["id"])
    lines = store.lines(layer)
    lines[-1]["payload"] = base64.b64encode(padded(b"") + END + bytes(BLOCK)).decode()
    store.rewrite(layer, lines)
    expect_refusal(tmp_path, store, "has the digest sha256:.* expected sha256:|too early")


def test_a_missing_file(tmp_path: Path) -> None:
    store = store_with(tmp_path, system_tar())
    (store.diff(str(store.layers[0]["id"])) / "usr/bin/large").unlink()
    expect_refusal(tmp_path, store, "usr/bin/large: the file is missing")


def test_half_deleted_layers(tmp_path: Path) -> None:
    store = store_with(tmp_path, system_tar())
    store.layers[0]["flags"] = {"incomplete": True}
    store.write()
    expect_refusal(tmp_path, store, "is incomplete: podman was interrupted")
    del store.layers[0]["flags"]
    store.write()
    path = store.diff(str(store.layers[0]["id"]))
    path.rename(path.parent / "gone")
    (tmp_path / "r").rename(tmp_path / "r1")
    expect_refusal(tmp_path, store, "cannot open .*diff: No such file")
    store.layers.clear()
    store.write()
    (tmp_path / "r").rename(tmp_path / "r2")
    expect_refusal(tmp_path, store, "the layer [0-9a-f]{64} is missing")


def test_damaged_documents(tmp_path: Path) -> None:
    store = store_with(tmp_path, system_tar())
    image = store.root / "overlay-images" / str(store.images[0]["id"])
    config = next(path for path in image.iterdir() if path.name.startswith("=c2hhMjU2"))
    good = config.read_bytes()
    config.write_bytes(good + b" ")
    expect_refusal(tmp_path, store, "config: has the digest")
    config.unlink()
    (tmp_path / "r").rename(tmp_path / "r1")
    expect_refusal(tmp_path, store, "of the image [0-9a-f]{12} is missing")
    config.write_bytes(good)
    (image / "manifest").write_bytes((image / "manifest").read_bytes() + b"\n")
    (tmp_path / "r").rename(tmp_path / "r2")
    expect_refusal(tmp_path, store, "manifest: has the digest .* not one of the image")
    (image / "manifest").write_bytes(b"{")
    (tmp_path / "r").rename(tmp_path / "r3")
    expect_refusal(tmp_path, store, "is not JSON")


def test_a_chain_that_never_ends(tmp_path: Path) -> None:
    store = store_with(tmp_path, system_tar(), odd_tar())
    store.layers[0]["parent"] = store.layers[1]["id"]
    store.write()
    expect_refusal(tmp_path, store, "never end")


def test_links_that_lead_elsewhere(tmp_path: Path) -> None:
    store = store_with(tmp_path, FIRST, member(b"usr/x", b"x" * 100) + END)
    top = str(store.layers[1]["id"])
    (store.diff(top) / "usr/x").unlink()
    lower = store.root / "overlay" / top / "lower"
    good = lower.read_text()
    link = store.root / "overlay" / good
    link.unlink()
    link.symlink_to("../../../../etc")
    expect_refusal(tmp_path, store, "leads to '../../../../etc', not to a layer")
    lower.write_text("l/../../../etc")
    (tmp_path / "r").rename(tmp_path / "r1")
    expect_refusal(tmp_path, store, "is no l/NAME")
    lower.write_text("l/NONE")
    (tmp_path / "r").rename(tmp_path / "r2")
    expect_refusal(tmp_path, store, "the layer below it, l/NONE, is missing")


# -- Locks


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX)  # as podman does it: a POSIX lock
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("name", ["overlay-layers/layers.lock", "overlay-images/images.lock"])
def test_a_locked_store(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    store = store_with(tmp_path, system_tar())
    image = find_stored(store.imgref("image:1").removeprefix("containers-storage:"))
    lock = store.root / name
    argv = [sys.executable, "-c", HOLDER, str(lock)]
    with process.running(argv, stdin=process.PIPE, stdout=process.PIPE) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"held\n"
        with (
            pytest.raises(BootcError, match=f"{lock} is locked, for more than 0 s") as caught,
            StorageSource(image, lock_timeout=0.2),
        ):
            pass
        assert "fuser" in str(caught.value.hint)
        assert "wait for whoever is writing" in caplog.text
        child.stdin.close()
        # It lets go, and whoever waits goes on.
        with StorageSource(image, lock_timeout=60) as source:
            assert source.manifest_digest == store.images[0]["digest"]
            # Others may read meanwhile, but not write.
            other = [sys.executable, "-c", HOLDER.replace("LOCK_EX", "LOCK_SH | fcntl.LOCK_NB")]
            assert process.run([*other, str(lock)], stdin="").stdout == "held\n"
            if "layers" in name:
                other[-1] = other[-1].replace("LOCK_SH", "LOCK_EX")
                assert process.run([*other, str(lock)], stdin="", check=False).status != 0
    with suppress(FileNotFoundError):
        lock.unlink()
    with StorageSource(image) as source:
        assert source.config_digest == f"sha256:{store.images[0]['id']}"


# -- What skopeo is for


def test_what_is_refused_goes_through_skopeo(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layers = tmp_path / "store/vfs-layers"
    layers.mkdir(parents=True)
    (layers / "layers.json").write_text("[]")
    imgref = f"containers-storage:[{tmp_path}/store]localhost/x:1"
    source = open_source(imgref)
    assert not isinstance(source, StorageSource)
    assert [record.getMessage() for record in caplog.records] == [
        f"the store {tmp_path}/store uses the driver vfs, not overlay: reading {imgref} through"
        " skopeo"
    ]
    with pytest.raises(Unsupported):
        open_source(imgref, local=LocalStorage.NATIVE)


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
