# SPDX-License-Identifier: Apache-2.0 OR MIT
"""org.composefs.Oci: GetLayer of podman's storage."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootc import process
from bootc.composefs.dirfdstream import FileBacked, read_chunks
from bootc.composefs.dirfdstream_export import join_exports
from bootc.composefs.pull import import_tar
from bootc.composefs.repository import Repository
from bootc.composefs.services.replies import OCI
from tests.composefsserved import Served, get_layer, is_error, make, put_layer, serving
from tests.ocibuild import END, member, sha256, system_tar
from tests.storagebuild import StoreBuilder, odd_tar, store_with
from tests.varlinks import open_fds
from tests.waiting import wait_until

PRIVATE = b"p" * 3000
PLAIN = b"q" * 3000
TAR = member(b"private", PRIVATE) + member(b"folder/plain", PLAIN) + END
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


def about(store: StoreBuilder, number: int = 0) -> dict[str, Any]:
    storage = {"storage_path": str(store.root), "layer_id": str(store.layers[number]["id"])}
    return {"storage": storage}


@pytest.mark.parametrize("more", [False, True])
def test_a_layer_of_podmans_is_stored_as_its_tar_is(
    served: Served, tmp_path: Path, more: bool
) -> None:
    """The second lies over another; no handle is needed to ask."""
    tars = [system_tar(), odd_tar()]
    store = store_with(tmp_path, *tars)
    handle = served.open(make(tmp_path / "repo"))
    with Repository.open(make(tmp_path / "expected")) as repo:
        for number, tar in enumerate(tars):
            with open(tmp_path / "tar", "w+b") as file:
                file.write(tar)
                file.seek(0)
                expected = import_tar(repo, file, sha256(tar))
            with get_layer(served.client, 0, None, more=more, **about(store, number)) as got:
                put = put_layer(served.client, handle, sha256(tar), [got.stream, *got.directories])
            assert put["layer_verity"] == expected.hex()
            assert put["already_present"] is False


@pytest.mark.parametrize("may_read_all", [False, True])
def test_what_the_receiver_could_not_open_comes_in_the_stream(
    served: Served, tmp_path: Path, may_read_all: bool
) -> None:
    store = store_with(tmp_path, TAR)
    (store.diff(str(store.layers[0]["id"])) / "private").chmod(0o600)
    params = {**about(store), "consumer_has_cap_dac_override": may_read_all}
    with (
        get_layer(served.client, 0, None, **params) as got,
        open(os.dup(got.stream), "rb", buffering=0) as stream,
    ):
        chunks = list(read_chunks(stream))
        names = {
            chunk.name: os.stat(chunk.name, dir_fd=got.directories[chunk.index]).st_size
            for chunk, _ in chunks
            if isinstance(chunk, FileBacked)
        }
        contents = [
            data for chunk, data in chunks if not isinstance(chunk, FileBacked) and chunk.content
        ]
    files = {b"private": 3000, b"folder/plain": 3000}
    assert names == (files if may_read_all else {b"folder/plain": 3000})
    assert contents == ([] if may_read_all else [PRIVATE])


def test_what_cannot_be_given_away_is_a_typed_error(served: Served, tmp_path: Path) -> None:
    store = store_with(tmp_path, TAR)

    def fails(**storage: object) -> Any:
        params = {
            "storage": {**about(store)["storage"], **storage},
            "consumer_has_cap_dac_override": False,
        }
        return served.fails("GetLayer", handle=0, params=params)

    for path in ("", "relative", "/x\0y", str(tmp_path), str(tmp_path / "none")):
        assert is_error(fails(storage_path=path), "InvalidRequest"), path
    (tmp_path / "vfs/vfs-layers").mkdir(parents=True)
    (tmp_path / "vfs/vfs-layers/layers.json").write_text("[]")
    assert is_error(fails(storage_path=str(tmp_path / "vfs")), "InvalidRequest")
    for layer in ("", "x", "../x", "0" * 64, "a\0b"):
        assert is_error(fails(layer_id=layer), "NoSuchLayer", diff_id=layer)
    split = store.split(str(store.layers[0]["id"]))
    data = split.read_bytes()
    split.unlink()
    assert is_error(fails(), "InvalidRequest")
    split.write_bytes(data)
    store.layers[0]["flags"] = {"incomplete": True}
    store.write()
    error = fails()
    assert is_error(error, "InternalError")
    assert "is incomplete" in error.parameters["message"]


def test_a_layer_that_was_changed_is_not_taken(served: Served, tmp_path: Path) -> None:
    store = store_with(tmp_path, TAR)
    handle = served.open(make(tmp_path / "repo"))
    (store.diff(str(store.layers[0]["id"])) / "private").write_bytes(b"X" * 3000)
    with get_layer(served.client, 0, None, **about(store)) as got:
        fds = (got.stream, *got.directories)
        error = served.fails("PutLayer", fds, handle=handle, diff_id=sha256(TAR), zerocopy=False)
    assert is_error(error, "DiffIdMismatch", expected=sha256(TAR))
    assert served.oci("HasLayer", handle=handle, diff_id=sha256(TAR)) == {"present": False}


def test_the_storage_is_locked_until_the_layer_was_received(served: Served, tmp_path: Path) -> None:
    store = store_with(tmp_path, TAR)
    lock = store.root / "overlay-layers/layers.lock"

    def is_locked() -> bool:
        argv = [sys.executable, "-c", HOLDER.replace("EX", "EX | fcntl.LOCK_NB"), str(lock)]
        return process.run(argv, check=False).status != 0

    assert not is_locked()
    with get_layer(served.client, 0, None, **about(store)):
        assert is_locked()
    join_exports()
    assert not is_locked()


def test_a_client_that_leaves_ends_the_wait_for_podman(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    store = store_with(tmp_path, TAR)
    served.oci("GetInfo")  # the connection is accepted now
    before = len(open_fds())
    argv = [sys.executable, "-c", HOLDER, str(store.root / "overlay-layers/layers.lock")]
    with process.running(argv, stdin=process.PIPE, stdout=process.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        client = socket.socket(socket.AF_UNIX)
        client.connect(served.listener.getsockname())
        parameters = {
            "handle": 0,
            "params": {**about(store), "consumer_has_cap_dac_override": False},
        }
        message = {"method": f"{OCI}.GetLayer", "parameters": parameters, "more": True}
        client.sendall(json.dumps(message).encode() + b"\0")
        wait_until(lambda: "wait for whoever is writing" in caplog.text)
        client.close()
        wait_until(lambda: len(open_fds()) <= before + 2)
