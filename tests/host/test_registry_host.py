# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The test registry with clients that are not ours: skopeo, and our proxy through skopeo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bootc import __version__, process
from bootc.deploy.source import proxy_options, skopeo_version
from bootc.errors import BootcError
from bootc.oci.layout import LayoutSource
from bootc.oci.model import read_manifest, verify_digest
from bootc.oci.proxy import ProxyOptions, ProxySource
from tests.ocibuild import END, member, write_layout
from vmtests.registry import Fault, FaultKind, On, Registry, serve

BIG = bytes(range(256)) * 1000


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    folder = tmp_path / "layout"
    folder.mkdir()
    write_layout(folder, [member(b"usr/big", BIG) + END], how="gzip", tag="1")
    return folder


@pytest.fixture
def registry(layout: Path) -> Iterator[Registry]:
    with serve(layout) as running:
        yield running


def copy(registry: Registry, target: Path) -> process.Completed:
    argv = ["skopeo", "copy", "--src-tls-verify=false", f"docker://{registry.address}/os:1"]
    return process.run([*argv, f"oci:{target}:1"], timeout=60, check=False)


def read_layer(reference: str) -> tuple[str, bytes]:
    """The digest of an image's manifest, and its first layer as it is stored."""
    with ProxySource(reference, ProxyOptions(insecure=True)) as source:
        layer = read_manifest(source.manifest, reference).layers[0]
        with source.open_blob(layer.digest) as blob:
            return source.manifest_digest, b"".join(iter(lambda: blob.read(1 << 16), b""))


@pytest.mark.parametrize("fault", [None, FaultKind.TOKEN])
def test_skopeo_copies_the_image_as_it_is(
    registry: Registry, layout: Path, tmp_path: Path, fault: FaultKind | None
) -> None:
    registry.faults = () if fault is None else (Fault(kind=fault),)
    done = copy(registry, tmp_path / "copy")
    assert done.status == 0, done.stderr
    wanted, found = LayoutSource(str(layout), "1"), LayoutSource(str(tmp_path / "copy"), "1")
    assert found.manifest_digest == wanted.manifest_digest
    assert any(agent.startswith("skopeo/") for agent in registry.agents())
    assert any(request.path.startswith("/token") for request in registry.requests) == bool(fault)


def test_registry_is_told_who_pulls_as_far_as_skopeo_passes_it_on(registry: Registry) -> None:
    version = skopeo_version()
    options = replace(proxy_options(version), insecure=True)
    with ProxySource(f"docker://{registry.address}/os:1", options) as source:
        layer = read_manifest(source.manifest, "manifest").layers[0]
        with source.open_blob(layer.digest) as blob:
            assert blob.read(1)
    named = {agent.startswith(f"bootc/{__version__} ") for agent in registry.agents()}
    assert named == {version >= (1, 19)}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(kind=FaultKind.UNAUTHORIZED), "nauthorized|authentication required"),
        (Fault(kind=FaultKind.NOT_FOUND), "name unknown"),
        (Fault(kind=FaultKind.BAD_GATEWAY), "502|bad gateway"),
        (Fault(kind=FaultKind.WRONG_CONTENT, on=On.BLOBS, at=100), "corrupted blob|digest"),
        (Fault(kind=FaultKind.TRUNCATE, on=On.BLOBS, at=100), "EOF|corrupted blob|digest"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_our_proxy_tells_what_the_registry_did(registry: Registry, fault: Fault, said: str) -> None:
    registry.faults = (fault,)
    with pytest.raises(BootcError, match=said):
        read_layer(f"docker://{registry.address}/os:1")


def test_our_proxy_reads_the_image(registry: Registry, layout: Path) -> None:
    registry.faults = (Fault(kind=FaultKind.TOO_MANY, on=On.MANIFESTS, times=1),)
    reference = f"docker://{registry.address}/os:1"
    wanted = LayoutSource(str(layout), "1")
    digest, data = read_layer(reference)
    assert digest == wanted.manifest_digest
    layer = read_manifest(wanted.manifest, "manifest").layers[0]
    verify_digest(data, layer.digest, "layer")
    assert [request.status for request in registry.requests].count(429) == 1
