# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Every way in which a store can lie, be locked, or be none of ours to read."""

from __future__ import annotations

import base64
import gzip
import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from bootc import process
from bootc.composefs.digest import Algorithm
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.errors import BootcError, FormatError
from bootc.oci.layout import LocalStorage, open_source
from bootc.oci.tarstream import BLOCK
from bootc.storage import tarsplit
from bootc.storage.source import StorageSource, find_stored
from bootc.storage.store import Unsupported
from bootc.storage.tarsplit import read_tarsplit
from tests.ocibuild import (
    END,
    member,
    padded,
    system_tar,
)
from tests.storagebuild import (
    FIRST,
    Line,
    StoreBuilder,
    nothing_is_published,
    odd_tar,
    pulled,
    rebuilt,
    store_with,
)

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


def test_an_image_without_a_tar_split_goes_through_skopeo(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That is known before anything is read; an image beside it is read."""
    store = store_with(tmp_path, member(b"a", b"a" * 100) + END)
    store.add_image([member(b"b", b"b" * 100) + END], "localhost/other:1")
    store.write()
    split = store.split(str(store.layers[0]["id"]))
    split.unlink()
    imgref = store.imgref("image:1")
    with pytest.raises(Unsupported, match=r"tar-split\.gz is missing"):
        open_source(imgref, local=LocalStorage.NATIVE)
    assert not isinstance(open_source(imgref), StorageSource)
    assert [record.getMessage() for record in caplog.records] == [
        f"{split} is missing: the layer's tar cannot be built: reading {imgref} through skopeo"
    ]
    with open_source(store.imgref("other:1")) as source:
        assert isinstance(source, StorageSource)


def test_an_artifact_goes_through_skopeo(tmp_path: Path) -> None:
    store = store_with(tmp_path, END)
    [record] = store.images
    path = store.root / "overlay-images" / str(record["id"]) / "manifest"
    manifest = json.loads(path.read_text())
    manifest["config"]["mediaType"] = "application/x-thing"
    path.write_text(json.dumps(manifest))
    assert not isinstance(open_source(store.imgref("image:1")), StorageSource)
