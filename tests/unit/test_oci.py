# SPDX-License-Identifier: Apache-2.0 OR MIT
"""References, documents and layouts of OCI images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bootc.errors import BootcError, FormatError
from bootc.oci.layout import LayoutSource, open_source
from bootc.oci.model import (
    Compression,
    Descriptor,
    choose_manifest,
    layer_compression,
    read_config,
    read_manifest,
    verify_digest,
)
from bootc.oci.reference import ImageReference, Transport, parse_imgref
from tests.ocibuild import system_tar, write_blob, write_layout


@pytest.mark.parametrize(
    ("text", "transport", "name"),
    [
        ("docker://quay.io/a/b:c", Transport.REGISTRY, "quay.io/a/b:c"),
        ("registry:quay.io/a/b", Transport.REGISTRY, "quay.io/a/b"),
        ("oci:/path:tag", Transport.OCI, "/path:tag"),
        ("oci-archive:/path.tar", Transport.OCI_ARCHIVE, "/path.tar"),
        ("containers-storage:localhost/x", Transport.CONTAINERS_STORAGE, "localhost/x"),
        ("dir:/x", Transport.DIR, "/x"),
    ],
)
def test_reference_is_read_and_spelled_for_skopeo(
    text: str, transport: Transport, name: str
) -> None:
    found = parse_imgref(text)
    assert found == ImageReference(transport=transport, image=name)
    assert found.imgref == text.replace("registry:", "docker://")


@pytest.mark.parametrize("text", ["", "quay.io/a/b", "oci:", "docker://", "ftp:x"])
def test_reference_without_a_transport_is_refused(text: str) -> None:
    with pytest.raises(BootcError) as caught:
        parse_imgref(text)
    assert "docker://" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "path", "tag"),
    [
        ("/a/b:c", "/a/b", "c"),
        ("/a/b", "/a/b", None),
        ("/a:b/c", "/a:b/c", None),
        ("rel:tag", "rel", "tag"),
        ("/a/b:", "/a/b", None),
    ],
)
def test_reference_of_a_layout_splits_at_the_last_colon(
    name: str, path: str, tag: str | None
) -> None:
    assert ImageReference(transport=Transport.OCI, image=name).layout() == (path, tag)


def test_layer_types() -> None:
    oci = "application/vnd.oci.image.layer.v1.tar"
    assert layer_compression(oci) is Compression.NONE
    assert layer_compression(f"{oci}+gzip") is Compression.GZIP
    assert layer_compression(f"{oci}+zstd") is Compression.ZSTD
    docker = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    assert layer_compression(docker) is Compression.GZIP
    with pytest.raises(BootcError):
        layer_compression("application/vnd.tar-diff")


def test_manifest_for_this_platform_is_chosen() -> None:
    def descriptor(architecture: str) -> Descriptor:
        return Descriptor(
            media_type="m",
            digest=f"sha256:{architecture}",
            size=1,
            platform=("linux", architecture),
        )

    both = [descriptor("arm64"), descriptor("amd64")]
    assert choose_manifest(both, "x", platform=("linux", "amd64")) is both[1]
    with pytest.raises(BootcError, match=r"linux/s390x, only: linux/arm64, linux/amd64"):
        choose_manifest(both, "x", platform=("linux", "s390x"))


def test_layout_is_read_and_verified(tmp_path: Path) -> None:
    reference = write_layout(tmp_path, [system_tar()], tag="v1")
    with open_source(reference) as source:
        manifest = read_manifest(source.manifest, "manifest")
        config = read_config(source.config, "config")
        assert manifest.is_container
        assert manifest.config.digest == source.config_digest
        assert config.diff_ids == (manifest.layers[0].digest,)
        assert config.version == "1"
        with source.open_blob(manifest.layers[0].digest) as blob:
            assert blob.read() == system_tar()
    assert LayoutSource(str(tmp_path)).manifest_digest == source.manifest_digest
    with pytest.raises(BootcError) as caught:
        LayoutSource(str(tmp_path), "v2")
    assert "v1" in (caught.value.hint or "")


def test_layout_with_a_nested_index(tmp_path: Path) -> None:
    write_layout(tmp_path, [system_tar()])
    index = json.loads((tmp_path / "index.json").read_text())
    inner = write_blob(tmp_path, json.dumps(index).encode())
    nested = {"mediaType": "application/vnd.oci.image.index.v1+json", **inner}
    (tmp_path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [nested]}))
    assert LayoutSource(str(tmp_path)).manifest_digest == index["manifests"][0]["digest"]


def test_layout_with_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    write_layout(tmp_path, [system_tar()])
    digest = json.loads((tmp_path / "index.json").read_text())["manifests"][0]["digest"]
    blob = tmp_path / "blobs/sha256" / digest.removeprefix("sha256:")
    blob.write_bytes(blob.read_bytes() + b" ")
    with pytest.raises(FormatError, match="has the digest"):
        LayoutSource(str(tmp_path))


@pytest.mark.parametrize(
    "index",
    [
        "{}",
        "[]",
        "nonsense",
        '{"manifests": [{"mediaType": "x", "digest": "sha256:../../etc/passwd", "size": 1}]}',
        '{"manifests": [{"mediaType": "x", "digest": "sha256:ab", "size": 1}]}',
        '{"manifests": [{"mediaType": "x", "size": 1}]}',
        '{"manifests": []}',
    ],
)
def test_layout_with_a_bad_index_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(BootcError):
        LayoutSource(str(tmp_path))


def test_digest_mismatch_names_both() -> None:
    with pytest.raises(FormatError, match="expected sha256:00"):
        verify_digest(b"x", "sha256:" + "00" * 32, "thing")
