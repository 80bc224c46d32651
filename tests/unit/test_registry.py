# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The test registry, asked with the standard library's HTTP client: answers, faults, its end."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from bootc.errors import BootcError
from tests.ocibuild import END, member, write_layout
from vmtests.derived import add_layer, layer_of
from vmtests.registry import Fault, FaultKind, On, Registry, serve

BIG = bytes(range(256)) * 1000


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    folder = tmp_path / "layout"
    folder.mkdir()
    write_layout(folder, [member(b"usr/big", BIG) + END], tag="1")
    return folder


@pytest.fixture
def registry(layout: Path) -> Iterator[Registry]:
    before = threading.active_count()
    with serve(layout) as running:
        yield running
    assert threading.active_count() == before


def ask(
    registry: Registry, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", registry.port, timeout=10)
    try:
        connection.request(method, path, headers={"User-Agent": "test/1", **(headers or {})})
        answer = connection.getresponse()
        return (
            answer.status,
            {key.lower(): text for key, text in answer.getheaders()},
            answer.read(),
        )
    finally:
        connection.close()


def manifest_of(registry: Registry, tag: str = "1") -> dict[str, object]:
    status, _, data = ask(registry, f"/v2/os/manifests/{tag}")
    assert status == 200
    value = json.loads(data)
    assert isinstance(value, dict)
    return value


def layer_path(registry: Registry) -> str:
    layers = manifest_of(registry)["layers"]
    assert isinstance(layers, list)
    return f"/v2/os/blobs/{layers[-1]['digest']}"


def test_an_image_can_be_read_by_its_tag(registry: Registry) -> None:
    assert ask(registry, "/v2/")[0] == 200
    assert json.loads(ask(registry, "/v2/os/tags/list")[2]) == {"name": "os", "tags": ["1"]}
    status, headers, data = ask(registry, "/v2/os/manifests/1")
    assert status == 200
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert headers["docker-content-digest"] == digest
    assert headers["content-type"] == "application/vnd.oci.image.manifest.v1+json"
    assert ask(registry, f"/v2/os/manifests/{digest}")[2] == data
    path = layer_path(registry)
    assert f"sha256:{hashlib.sha256(ask(registry, path)[2]).hexdigest()}" == path.rsplit("/")[-1]
    assert registry.agents() == {"test/1"}


def test_head_and_ranges(registry: Registry) -> None:
    path = layer_path(registry)
    whole = ask(registry, path)[2]
    status, headers, data = ask(registry, path, "HEAD")
    assert (status, headers["content-length"], data) == (200, str(len(whole)), b"")
    registry.forget()
    status, headers, data = ask(registry, path, headers={"Range": "bytes=1000-"})
    assert (status, data) == (206, whole[1000:])
    assert headers["content-range"] == f"bytes 1000-{len(whole) - 1}/{len(whole)}"
    assert ask(registry, path, headers={"Range": "bytes=10-19"})[2] == whole[10:20]
    assert ask(registry, path, headers={"Range": "bytes=999999-"})[0] == 416
    assert registry.moved_bytes() == len(whole) - 1000 + 10


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v2/os/manifests/2", "MANIFEST_UNKNOWN"),
        (f"/v2/os/blobs/sha256:{'0' * 64}", "BLOB_UNKNOWN"),
        ("/v2/os/blobs/sha256:..", "BLOB_UNKNOWN"),
        ("/v2/other/manifests/1", "NAME_UNKNOWN"),
        ("/v2/os/blobs/../../index.json", "NAME_UNKNOWN"),
        ("/", "NAME_UNKNOWN"),
    ],
)
def test_what_is_not_there(registry: Registry, path: str, code: str) -> None:
    status, _, data = ask(registry, path)
    assert status == 404
    assert json.loads(data)["errors"][0]["code"] == code


@pytest.mark.parametrize(
    ("kind", "status", "header"),
    [
        (FaultKind.UNAUTHORIZED, 401, ("www-authenticate", "Basic")),
        (FaultKind.NOT_FOUND, 404, None),
        (FaultKind.TOO_MANY, 429, ("retry-after", "1")),
        (FaultKind.BAD_GATEWAY, 502, None),
    ],
)
def test_refusals_as_often_as_said(
    registry: Registry, kind: FaultKind, status: int, header: tuple[str, str] | None
) -> None:
    registry.faults = (Fault(kind=kind, on=On.MANIFESTS, times=2),)
    for _ in range(2):
        answer = ask(registry, "/v2/os/manifests/1")
        assert answer[0] == status
        assert header is None or answer[1][header[0]].startswith(header[1])
    assert ask(registry, "/v2/os/manifests/1")[0] == 200


def test_a_fault_of_one_blob_leaves_the_others(registry: Registry) -> None:
    path = layer_path(registry)
    config = manifest_of(registry)["config"]
    assert isinstance(config, dict)
    digest = path.rsplit("/")[-1]
    registry.faults = (Fault(kind=FaultKind.BAD_GATEWAY, on=On.BLOBS, digest=digest),)
    assert ask(registry, path)[0] == 502
    assert ask(registry, f"/v2/os/blobs/{config['digest']}")[0] == 200
    assert ask(registry, "/v2/os/manifests/1")[0] == 200


def test_token_is_wanted_and_given(registry: Registry) -> None:
    registry.faults = (Fault(kind=FaultKind.TOKEN),)
    status, headers, _ = ask(registry, "/v2/")
    assert status == 401
    wanted = f'Bearer realm="http://{registry.address}/token",service="test"'
    assert headers["www-authenticate"] == wanted
    assert ask(registry, "/v2/os/manifests/1")[0] == 401
    token = json.loads(ask(registry, "/token?service=test")[2])["token"]
    given = {"Authorization": f"Bearer {token}"}
    assert ask(registry, "/v2/", headers=given)[0] == 200
    assert ask(registry, "/v2/os/manifests/1", headers=given)[0] == 200


def test_truncated_blob(registry: Registry) -> None:
    path = layer_path(registry)
    registry.faults = (Fault(kind=FaultKind.TRUNCATE, on=On.BLOBS, at=1000),)
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(registry, path)
    assert len(caught.value.partial) == 1000
    # Whoever goes on from there gets nothing more: the fault is about the blob.
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(registry, path, headers={"Range": "bytes=1000-"})
    assert caught.value.partial == b""


def test_wrong_content_has_the_right_length(registry: Registry) -> None:
    path = layer_path(registry)
    right = ask(registry, path)[2]
    registry.faults = (Fault(kind=FaultKind.WRONG_CONTENT, on=On.BLOBS, at=700),)
    wrong = ask(registry, path)[2]
    assert len(wrong) == len(right)
    assert [
        place for place, pair in enumerate(zip(right, wrong, strict=True)) if pair[0] != pair[1]
    ] == [700]


def test_tag_is_swapped_after_its_manifest_was_read(registry: Registry, layout: Path) -> None:
    second = add_layer(layout, layer_of({"usr/new": b"new"}), base="1", tag="2")
    registry.faults = (Fault(kind=FaultKind.SWAP, on=On.MANIFESTS, digest=second, times=1),)
    assert ask(registry, "/v2/os/manifests/1", "HEAD")[1]["docker-content-digest"] != second
    registry.faults = (Fault(kind=FaultKind.SWAP, on=On.MANIFESTS, digest=second),)
    first = manifest_of(registry)
    assert manifest_of(registry) != first
    assert ask(registry, "/v2/os/manifests/1")[1]["docker-content-digest"] == second


def test_stall_sends_so_much_and_ends_with_the_registry(layout: Path) -> None:
    before = threading.active_count()
    with serve(layout) as registry:
        path = layer_path(registry)
        registry.faults = (Fault(kind=FaultKind.STALL, on=On.BLOBS, at=5000),)
        connection = http.client.HTTPConnection("127.0.0.1", registry.port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        assert len(answer.read(5000)) == 5000
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    connection.close()
    assert threading.active_count() == before


def test_no_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BootcError, match="no OCI layout"), serve(tmp_path):
        pass


def test_derived_image_has_all_layers_and_one_more(registry: Registry, layout: Path) -> None:
    tar = layer_of({"usr/lib/x": b"x", "usr/lib/a": b"a"})
    assert tar == layer_of({"usr/lib/a": b"a", "usr/lib/x": b"x"})
    digest = add_layer(layout, tar, base="1", tag="2")
    assert digest == add_layer(layout, tar, base="1", tag="2")
    assert registry.tags()["2"] == digest
    first, second = manifest_of(registry), manifest_of(registry, "2")
    assert isinstance(first["layers"], list)
    assert isinstance(second["layers"], list)
    assert second["layers"][:-1] == first["layers"]
    assert ask(registry, f"/v2/os/blobs/{second['layers'][-1]['digest']}")[2] == tar
    config = second["config"]
    assert isinstance(config, dict)
    found = json.loads(ask(registry, f"/v2/os/blobs/{config['digest']}")[2])
    assert found["rootfs"]["diff_ids"][-1] == f"sha256:{hashlib.sha256(tar).hexdigest()}"
    assert found["config"]["Labels"]["org.opencontainers.image.version"] == "2"
    with pytest.raises(BootcError, match="0 images with the tag 7"):
        add_layer(layout, tar, base="7", tag="8")
