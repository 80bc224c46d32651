# SPDX-License-Identifier: Apache-2.0 OR MIT
"""org.composefs.Oci: Pull over a socket."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc.composefs.repository import Repository
from bootc.composefs.services.replies import OCI, REPOSITORY
from tests.composefsserved import (
    TAR,
    Served,
    filled_repository,
    is_error,
    make,
    serving,
)
from tests.ocibuild import END, member, sha256, system_tar, write_layout
from tests.varlinks import open_fds
from tests.waiting import wait_until


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    return filled_repository(tmp_path)


def test_a_pull_tells_its_progress(served: Served, tmp_path: Path) -> None:
    reference = write_layout(tmp_path / "oci", [system_tar(), TAR])
    handle = served.open(make(tmp_path / "repo"))
    about = {"handle": handle, "image": reference, "local_fetch": "disabled", "bootable": True}
    replies = [
        reply.parameters for reply in served.client.stream(f"{OCI}.Pull", {**about, "name": "app"})
    ]
    assert all(len(reply) == 1 for reply in replies)
    kinds = [next(iter(reply)) for reply in replies]
    assert kinds.count("started") == kinds.count("done") == 2
    assert kinds[-1] == "completed"
    completed = replies[-1]["completed"]
    images = served.oci("ListImages", handle=handle)["images"]
    assert [item["manifest_digest"] for item in images] == [completed["manifest_digest"]]
    boot = served.oci("Inspect", handle=handle, image="app")["composefs_boot_erofs"]
    assert completed["boot_image"] == boot
    assert completed["boot_image_mode"] == "allowlist-only"
    assert completed["boot_image_format_version"] == "V1"
    again = served.oci("Pull", **about, expected_digest=boot)
    assert again["completed"]["boot_image"] == boot
    kept = served.oci("Pull", **about, xattrs="KeepUserXattrs")
    assert kept["completed"]["boot_image_mode"] == "keep-user-xattrs"
    error = served.fails("Pull", **about, expected_digest="00" * 32)
    assert is_error(error, "BootImageMismatch", expected="00" * 32, tried=4)
    assert len(served.oci("ListImages", handle=handle)["images"]) == 1, "no tag without a name"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"expected_digest": "00", "bootable": False}, "InvalidRequest"),
        ({"expected_digest": "00", "xattrs": "AllowlistOnly"}, "InvalidRequest"),
        ({"expected_digest": "xx"}, "InvalidDigest"),
        ({"image": "oci:/x\0y"}, "InvalidRequest"),
        ({"name": "@x"}, "InvalidRequest"),
        ({"storage_root": "/x"}, "InvalidRequest"),
        ({"image": "oci:/nowhere"}, "InternalError"),
    ],
)
def test_a_pull_that_cannot_work_is_refused(
    served: Served, tmp_path: Path, change: dict[str, object], name: str
) -> None:
    reference = write_layout(tmp_path / "oci", [system_tar()])
    handle = served.open(make(tmp_path / "repo"))
    about: dict[str, object] = {"image": reference, "local_fetch": "disabled", "bootable": True}
    assert is_error(served.fails("Pull", handle=handle, **{**about, **change}), name)
    assert served.oci("ListImages", handle=handle) == {"images": []}
    assert not (tmp_path / "repo/streams").exists()


def test_a_client_that_goes_away_ends_its_pull(served: Served, tmp_path: Path) -> None:
    """The blob is a FIFO in which nothing comes: the pull waits until it is woken."""
    reference = write_layout(tmp_path / "oci", [TAR])
    blob = tmp_path / "oci/blobs/sha256" / sha256(TAR).removeprefix("sha256:")
    os.rename(blob, tmp_path / "blob")
    big = member(b"f", b"x" * (48 << 20))
    path = make(tmp_path / "repo")
    reference = write_layout(tmp_path / "oci", [big + END, TAR])
    fds = len(open_fds())
    with served.connect() as other:
        opened = other.call(f"{REPOSITORY}.OpenRepository", {"path": str(path)})
        about = {
            "handle": opened.parameters["handle"],
            "image": reference,
            "name": "app",
            "local_fetch": "disabled",
            "bootable": False,
        }
        replies = other.stream(f"{OCI}.Pull", about)
        assert "started" in next(replies).parameters
    wait_until(lambda: len(open_fds()) <= fds)
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "pull"])
    with Repository.open(path) as repo:
        assert list(repo.tags()) == []
