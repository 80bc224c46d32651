# SPDX-License-Identifier: Apache-2.0 OR MIT
"""org.composefs.Oci over a socket: layers with their descriptors, and images made of them."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootc.composefs.dirfdstream import StreamWriter
from bootc.composefs.dirfdstream_export import join_exports
from bootc.composefs.pull import import_tar
from bootc.composefs.repository import Repository
from bootc.composefs.services.replies import OCI, REPOSITORY
from bootc.composefs.stored import layer_content_id, load_image
from bootc.varlink import VarlinkError
from tests.composefsserved import (
    TAR,
    Served,
    filled_repository,
    get_layer,
    is_error,
    make,
    put_layer,
    serving,
)
from tests.ocibuild import END, header, sha256, system_tar
from tests.varlinks import open_fds
from tests.waiting import wait_until


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    return filled_repository(tmp_path)


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("zerocopy", [False, True])
def test_an_image_goes_over_the_wire(
    served: Served, filled: Path, tmp_path: Path, more: bool, zerocopy: bool
) -> None:
    target = make(tmp_path / "target")
    ours, theirs = served.open(filled), served.open(target)
    documents = served.oci("Inspect", handle=ours, image="app")
    layers = []
    for diff_id in (sha256(system_tar()), sha256(TAR)):
        assert served.oci("HasLayer", handle=theirs, diff_id=diff_id) == {"present": False}
        with get_layer(served.client, ours, diff_id, more=more) as got:
            fds = [got.stream, *got.directories]
            put = put_layer(served.client, theirs, diff_id, fds, zerocopy=zerocopy)
        assert put["already_present"] is False
        if zerocopy:
            assert put["objects_copied"] == 0
        assert put["objects_reflinked"] + put["objects_hardlinked"] + put["objects_copied"] > 0
        told = served.oci("HasLayer", handle=theirs, diff_id=diff_id)
        assert told == {"present": True, "layer_verity": put["layer_verity"]}
        layers.append({"diff_id": diff_id, "layer_verity": put["layer_verity"]})
        with get_layer(served.client, ours, diff_id) as got:
            again = put_layer(served.client, theirs, diff_id, [got.stream, *got.directories])
        assert again["already_present"] is True
        assert again["objects_already_present"] > 0
    about = {
        "manifest_json": documents["manifest"],
        "config_json": documents["config"],
        "layers": layers,
    }
    done = served.oci("FinalizeImage", handle=theirs, **about, name="copied")
    assert served.oci("FinalizeImage", handle=theirs, **about) == done
    assert served.oci("Inspect", handle=theirs, image="copied") == documents
    assert served.oci("Check", handle=theirs)["ok"] is True
    with Repository.open(filled) as one, Repository.open(target) as other:
        image = load_image(one, "app")
        assert (
            load_image(other, "copied").manifest_id == image.manifest_id == done["manifest_verity"]
        )
        assert done["config_verity"] == image.config_id


KINDS = st.lists(st.sampled_from(("null", "memory", "event", "path", "socket")), max_size=20)


def dummy(kind: str) -> int:
    match kind:
        case "memory":
            return os.memfd_create("dummy")
        case "event":
            return os.eventfd(0)
        case "socket":
            return socket.socket(socket.AF_UNIX).detach()
        case _:
            return os.open("/dev/null", os.O_RDONLY if kind == "null" else os.O_PATH)


@settings(max_examples=25)
@given(before=KINDS, after=KINDS)
def test_dummies_at_random_slots_change_nothing(
    before: list[str], after: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The directory stands behind those of `before`; the other descriptors are anything."""
    folder = tmp_path_factory.mktemp("dummies")
    (folder / "large").write_bytes(b"L" * 70_000)
    was = open_fds()
    served = Served()
    handle = served.open(make(folder / "repo"))
    directory = os.open(folder, os.O_RDONLY)
    dirs = [*map(dummy, before), directory, *map(dummy, after)]
    reading, writing = os.pipe()
    writer = StreamWriter(writing)
    tar = io.BytesIO(TAR)
    writer.metadata(tar.read(512))
    writer.file(70_000, len(before), b"large")
    tar.seek(70_000, os.SEEK_CUR)
    writer.metadata(tar.read())
    writer.flush()
    os.close(writing)
    put = put_layer(served.client, handle, sha256(TAR), [reading, *dirs])
    assert put["already_present"] is False
    for fd in (reading, *dirs):
        os.close(fd)
    served.close()
    assert open_fds() == was


def stream_of(data: bytes) -> int:
    """The read end of a pipe with a short stream."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading


def metadata(data: bytes) -> bytes:
    return struct.pack("<BI", 0, len(data)) + data


Bad = Callable[[Path], list[int]]
BAD_DESCRIPTORS: dict[str, Bad] = {
    "none": lambda folder: [],
    "the pipe alone": lambda folder: [stream_of(metadata(TAR[:512]))],
    "no pipe": lambda folder: [os.open(folder, os.O_RDONLY), os.open(folder, os.O_RDONLY)],
    "a file for the directory": lambda folder: [
        stream_of(metadata(TAR[:512]) + struct.pack("<BQII", 2, 70_000, 0, 5) + b"large"),
        os.open("/dev/null", os.O_RDONLY),
    ],
    "an index too large": lambda folder: [
        stream_of(metadata(TAR[:512]) + struct.pack("<BQII", 2, 70_000, 1, 5) + b"large"),
        os.open(folder, os.O_RDONLY),
    ],
    "a way out": lambda folder: [
        stream_of(metadata(TAR[:512]) + struct.pack("<BQII", 2, 70_000, 0, 8) + b"../large"),
        os.open(folder, os.O_RDONLY),
    ],
    "a link out": lambda folder: [
        stream_of(metadata(TAR[:512]) + struct.pack("<BQII", 2, 70_000, 0, 4) + b"link"),
        os.open(folder, os.O_RDONLY),
    ],
    "longer than said": lambda folder: [
        stream_of(
            metadata(header(b"large", 69_999)) + struct.pack("<BQII", 2, 69_999, 0, 5) + b"large"
        ),
        os.open(folder, os.O_RDONLY),
    ],
    "shorter than said": lambda folder: [
        stream_of(
            metadata(header(b"large", 70_001)) + struct.pack("<BQII", 2, 70_001, 0, 5) + b"large"
        ),
        os.open(folder, os.O_RDONLY),
    ],
    "cut off in a chunk": lambda folder: [
        stream_of(metadata(TAR[:512])[:-1]),
        os.open(folder, os.O_RDONLY),
    ],
    "no stream": lambda folder: [stream_of(b"\7" * 70), os.open(folder, os.O_RDONLY)],
}


@pytest.mark.parametrize("kind", list(BAD_DESCRIPTORS))
@pytest.mark.parametrize("zerocopy", [False, True])
def test_bad_layers_are_invalid_requests(
    served: Served, tmp_path: Path, kind: str, zerocopy: bool
) -> None:
    path = make(tmp_path / "repo")
    handle = served.open(path)
    with Repository.open(path) as repo:
        repo.writable_objects()
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "large").write_bytes(b"L" * 70_000)
    (folder / "link").symlink_to("/etc/passwd")
    about = {"handle": handle, "diff_id": sha256(TAR), "zerocopy": zerocopy}
    counts = []
    for _ in range(3):
        fds = BAD_DESCRIPTORS[kind](folder)
        assert is_error(served.fails("PutLayer", tuple(fds), **about), "InvalidRequest")
        for fd in fds:
            os.close(fd)
        counts.append(len(open_fds()))
    assert counts[1] == counts[2], "nothing is left open"
    assert not (path / "streams").exists()
    assert served.oci("HasLayer", handle=handle, diff_id=sha256(TAR)) == {"present": False}


def test_a_wrong_digest_is_told(served: Served, tmp_path: Path) -> None:
    handle = served.open(make(tmp_path / "repo"))
    pipe = stream_of(metadata(END))
    about = {"handle": handle, "diff_id": sha256(TAR), "zerocopy": False}
    error = served.fails("PutLayer", (pipe, pipe), **about)
    os.close(pipe)
    assert is_error(error, "DiffIdMismatch", expected=sha256(TAR), actual=sha256(END))
    for text in ("", "x", "sha256:0", "md5:00"):
        assert is_error(served.fails("HasLayer", handle=handle, diff_id=text), "InvalidDigest")
        error = served.fails("PutLayer", handle=handle, diff_id=text, zerocopy=False)
        assert is_error(error, "InvalidDigest")


def test_what_get_layer_refuses(served: Served, filled: Path) -> None:
    handle = served.open(filled)
    missing = sha256(b"missing")
    storage = {"storage_path": "/x", "layer_id": "y"}
    for params, name in (
        ({"diff_id": missing}, "NoSuchLayer"),
        ({"diff_id": "x"}, "InvalidDigest"),
        ({}, "InvalidRequest"),
        ({"storage": storage}, "InvalidRequest"),
        ({"diff_id": sha256(TAR), "storage": storage}, "InvalidRequest"),
    ):
        about = {**params, "consumer_has_cap_dac_override": False}
        assert is_error(served.fails("GetLayer", handle=handle, params=about), name)


def test_unexpected_descriptors_are_refused(served: Served, filled: Path) -> None:
    handle = served.open(filled)
    fd = os.open("/dev/null", os.O_RDONLY)
    error = served.fails("ListImages", (fd,), handle=handle)
    assert is_error(error, "WrongDescriptors", received=1)
    erofs = served.oci("Inspect", handle=handle, image="app")["composefs_erofs"]
    for options, fds in (
        ({}, (fd,)),
        ({"overlay": True}, ()),
        ({"overlay": True}, (fd,)),
        ({"overlay": True}, (fd, fd)),
        ({"overlay": True}, (fd, fd, fd)),
        ({"read_write": True}, ()),
    ):
        about = {"handle": handle, "options": options}
        assert is_error(served.fails("Mount", fds, name=erofs, **about), "InvalidSpec")
        error = served.fails("OciMount", fds, image="app", bootable=False, **about)
        assert is_error(error, "InvalidRequest")
    error = served.fails("OciMount", image="app", bootable=True, handle=handle, options={})
    assert is_error(error, "NoSuchImage"), "it has no bootable one"
    os.close(fd)


def finalize(served: Served, handle: int, layers: object, **change: str) -> VarlinkError:
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}}
    config["rootfs"] = {"type": "layers", "diff_ids": [sha256(TAR)]}
    config_json = json.dumps(config)
    described = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": sha256(config_json.encode()),
        "size": len(config_json),
    }
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sha256(TAR)}
    manifest = {
        "schemaVersion": 2,
        "config": described,
        "layers": [{**layer, "size": len(TAR)}],
    }
    given = {"manifest_json": json.dumps(manifest), "config_json": config_json, **change}
    return served.fails("FinalizeImage", handle=handle, layers=layers, **given)


def test_an_image_has_to_fit_its_layers(served: Served, tmp_path: Path) -> None:
    path = make(tmp_path / "repo")
    handle = served.open(path)
    layer = {"diff_id": sha256(TAR), "layer_verity": "00" * 32}
    assert is_error(finalize(served, handle, [layer]), "NoSuchLayer", diff_id=sha256(TAR))
    with Repository.open(path) as repo:
        verity = import_tar(repo, io.BytesIO(TAR), sha256(TAR)).hex()
        import_tar(repo, io.BytesIO(END), sha256(END))
        other = repo.find_stream(layer_content_id(sha256(END)))
    assert other is not None
    good = {"diff_id": sha256(TAR), "layer_verity": verity}
    for layers in (
        [layer],
        [],
        [good, good],
        [{"diff_id": sha256(END), "layer_verity": other.hex()}],
    ):
        assert is_error(finalize(served, handle, layers), "InvalidRequest")
    bad = [{**good, "layer_verity": "xyz"}]
    assert is_error(finalize(served, handle, bad), "InvalidDigest")
    assert is_error(finalize(served, handle, [{**good, "diff_id": "x"}]), "InvalidDigest")
    for change in (
        {"config_json": "{}"},
        {"manifest_json": "{}"},
        {"manifest_json": "no JSON"},
        {"name": "@bad"},
    ):
        assert is_error(finalize(served, handle, [good], **change), "InvalidRequest"), change
    assert served.oci("ListImages", handle=handle) == {"images": []}
    assert not list((path / "streams").glob("oci-manifest-*"))
    assert not list((path / "streams").glob("oci-config-*"))


def test_a_client_that_leaves_in_the_middle_stores_nothing(served: Served, tmp_path: Path) -> None:
    path = make(tmp_path / "repo")
    with Repository.open(path) as repo:
        repo.writable_objects()
    fds = len(open_fds())
    reading, writing = os.pipe()
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(served.listener.getsockname())
    for method, about in (
        (f"{REPOSITORY}.OpenRepository", {"path": str(path)}),
        (f"{OCI}.PutLayer", {"diff_id": sha256(TAR), "zerocopy": False}),
    ):
        if method.endswith("PutLayer"):
            about["handle"] = json.loads(sock.recv(9999)[:-1])["parameters"]["handle"]
            os.write(writing, metadata(TAR[:9000]))
            message = json.dumps({"method": method, "parameters": about}).encode() + b"\0"
            socket.send_fds(sock, [message], [reading, reading])
        else:
            sock.send(json.dumps({"method": method, "parameters": about}).encode() + b"\0")
    wait_until(lambda: len(open_fds()) > fds + 250)
    sock.close()
    os.close(reading)
    wait_until(lambda: len(open_fds()) <= fds + 1)
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"x")
    os.close(writing)
    assert not (path / "streams").exists()


def test_a_receiver_may_outlive_its_connection(
    served: Served, filled: Path, tmp_path: Path
) -> None:
    """The repository stays open, and locked, until the layer has been received."""
    fds = len(open_fds())
    with served.connect() as other:
        opened = other.call(f"{REPOSITORY}.OpenRepository", {"path": str(filled)})
        got = get_layer(other, opened.parameters["handle"], sha256(TAR))
    handle = served.open(filled)
    error = served.fails("Gc", handle=handle, dry_run=False, roots=[])
    assert "is open 1 more time" in error.parameters["message"]
    target = served.open(make(tmp_path / "target"))
    with got:
        put_layer(served.client, target, sha256(TAR), [got.stream, *got.directories])
    join_exports()
    assert served.repository("Gc", handle=handle, dry_run=False, roots=[])["dry_run"] is False
    for number in (handle, target):
        served.repository("CloseRepository", handle=number)
    wait_until(lambda: len(open_fds()) == fds)


def test_many_calls_leave_nothing(served: Served, filled: Path) -> None:
    handle = served.open(filled)
    served.oci("ListImages", handle=handle)
    before = len(open_fds()), threading.active_count()
    for _ in range(300):
        served.oci("ListImages", handle=handle)
        with get_layer(served.client, handle, sha256(TAR), more=False):
            pass
    join_exports()
    wait_until(lambda: (len(open_fds()), threading.active_count()) <= before)
