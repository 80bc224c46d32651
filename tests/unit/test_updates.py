# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Updates of an image: what is in them, and that the registry has them at once."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from bootc.errors import BootcError
from bootc.jsonutil import read_object
from tests.ocibuild import END, member, write_layout
from vmtests.disk import BaseDisk
from vmtests.registry import serve
from vmtests.session import Session
from vmtests.tree import OCI_TAG
from vmtests.updates import MARK, TAG, Updates, deployment_of, find_initrd, manifest_of

INITRD = "usr/lib/modules/6.1/initramfs.img"


def make_layout(folder: Path, *layers: bytes) -> Path:
    folder.mkdir()
    write_layout(folder, list(layers), tag=OCI_TAG)
    return folder


@pytest.fixture
def updates(tmp_path: Path) -> Iterator[Updates]:
    old = member(f"./{INITRD}".encode(), b"old") + END
    new = member(f"./{INITRD}".encode(), b"new") + END
    layout = make_layout(tmp_path / "layout", old, new)
    with serve(layout) as registry:
        yield Updates(
            session=cast(Session, None),
            base=cast(BaseDisk, None),
            layout=layout,
            initrd=find_initrd(layout),
            registry=registry,
            folder=tmp_path / "machine",
        )


def newest_layer(updates: Updates, manifest: str) -> dict[str, bytes]:
    """The files of the last layer of the image with this manifest."""
    blobs = updates.layout / "blobs/sha256"
    path = blobs / manifest.removeprefix("sha256:")
    layers = list(read_object(path.read_bytes(), str(path)).tables("layers"))
    data = (blobs / layers[-1].text("digest").removeprefix("sha256:")).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {item.name: tar.extractfile(item) for item in tar}
        return {name: file.read() for name, file in files.items() if file is not None}


def test_initrd_is_that_of_the_topmost_layer(updates: Updates) -> None:
    assert updates.initrd == (INITRD, b"new")


def test_image_without_an_initrd_is_refused(tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "layout", member(b"usr/x", b"x") + END)
    with pytest.raises(BootcError, match="has no initrd"):
        find_initrd(layout)


def test_updates_differ_and_every_other_has_another_initrd(updates: Updates) -> None:
    first = updates.publish()
    assert updates.registry.tags()[TAG] == first
    second = updates.publish()
    assert updates.registry.tags()[TAG] == second != first
    assert updates.number == 2
    files = newest_layer(updates, first)
    assert files[MARK] == b"1\n"
    assert files[INITRD].rstrip(b"\0") == b"new"
    assert len(files[INITRD]) > 3
    assert INITRD not in newest_layer(updates, second)
    sizes = updates.layer_sizes()
    assert len(sizes) == 3
    assert 1 << 20 < sizes[-1] < 2 << 20


def test_fresh_machine_has_files_of_its_own(updates: Updates, tmp_path: Path) -> None:
    updates.publish()
    other = updates.fresh(tmp_path / "other")
    assert other.folder != updates.folder
    assert other.reference == updates.reference
    assert other.number == 1


def test_status_is_read_by_its_entries() -> None:
    text = """{"booted": {"composefs": {"verity": "ab"}, "image": {"imageDigest": "sha256:1"}},
               "staged": null, "rollback": {"composefs": {"verity": "cd"}, "image": null}}"""
    status = read_object(text.encode(), "status")
    assert [deployment_of(status, key) for key in ("booted", "staged", "rollback")] == [
        "ab",
        None,
        "cd",
    ]
    assert [manifest_of(status, key) for key in ("booted", "staged", "rollback")] == [
        "sha256:1",
        None,
        None,
    ]
