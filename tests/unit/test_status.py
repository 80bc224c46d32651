# SPDX-License-Identifier: Apache-2.0 OR MIT
"""From boot entries, origins and the repository to the Host document."""

import json
from pathlib import Path

import pytest

from bootc import paths, status
from bootc.boot import bls
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.deploy import state
from bootc.deploy.state import Origin
from bootc.errors import BootcError
from bootc.oci.layout import open_source
from bootc.oci.reference import ImageReference, Transport
from bootc.spec import Bootloader, BootOrder, BootType, Host
from bootc.status import Found
from tests.ocibuild import system_tar, write_layout

A, B, C, D = (char * 128 for char in "abcd")
REFERENCE = ImageReference(image="quay.io/x/y:latest", transport=Transport.REGISTRY)


@pytest.mark.parametrize(
    ("source", "expected"), [(f"composefs:{A}", A), (f"transient:composefs={A}", A)]
)
def test_booted_deployment(source: str, expected: str) -> None:
    assert status.booted_deployment(source) == expected


def test_booted_without_composefs() -> None:
    with pytest.raises(BootcError, match="told to boot a composefs image, but / is '/dev/vda3'"):
        status.booted_deployment("/dev/vda3")


def test_cmdline(tmp_path: Path) -> None:
    file = tmp_path / "cmdline"
    file.write_text("rw quiet\n")
    assert status.find_cmdline(str(file)) is None
    file.write_text(f"rw composefs=?{A}\n")
    found = status.find_cmdline(str(file))
    assert found is not None
    assert (found.digest, found.insecure) == (A, True)


@pytest.fixture
def sysroot(tmp_path: Path) -> Path:
    """A physical root with one image in its repository and four deployments of it."""
    root = tmp_path / "sysroot"
    root.mkdir()
    reference = write_layout(tmp_path / "oci", [system_tar()])
    with (
        Repository.init(root / paths.REPOSITORY, secure=False) as repo,
        open_source(reference) as source,
    ):
        pulled = pull(repo, source, reference=reference, tag="t")
    for deployment in (A, B, C, D):
        state.make_skeleton(str(root), deployment)
        origin = Origin(
            image=REFERENCE,
            boot_type=BootType.BLS,
            boot_digest=("0" if deployment == D else "1") * 64,
            manifest_digest=pulled.manifest_digest,
        )
        state.write_origin(str(root), deployment, origin)
    return root


def _found(deployment: str, *, options: str = "rw", staged: bool = False) -> Found:
    text = f"{options} composefs={deployment}"
    entry = bls.Entry(version="1", linux="/k", options=text)
    return Found(deployment=deployment, entry=entry, insecure=False, is_staged=staged)


def _read(root: Path, found: list[Found], menu: list[str], mark: str | None = None) -> Host:
    path = root / "staged"
    if mark is not None:
        path.write_text(json.dumps({"depl_id": mark, "finalization_locked": True}))
    reader = status._Reader(A, Bootloader.SYSTEMD, str(root), staged_file=str(path))
    return reader.read(found, menu)


def test_one_deployment(sysroot: Path) -> None:
    host = _read(sysroot, [_found(A)], [A])
    booted = host.status.booted
    assert booted is not None
    assert booted.composefs is not None
    assert booted.image is not None
    assert (booted.image.version, booted.image.architecture) == ("1", "amd64")
    assert booted.composefs.verity == A
    assert booted.composefs.boot_digest == "1" * 64
    assert host.spec.image == REFERENCE
    assert host.status.staged is None
    assert host.status.rollback is None
    assert not host.status.rollback_queued


def test_staged_rollback_and_others(sysroot: Path) -> None:
    found = [_found(A), _found(C), _found(D), _found(B, staged=True)]
    host = _read(sysroot, found, [A, C, D], mark=B)
    assert host.status.staged is not None
    assert host.status.staged.composefs is not None
    assert host.status.staged.composefs.verity == B
    assert host.status.staged.download_only
    assert [entry.composefs.verity for entry in host.status.others if entry.composefs] == [D]
    assert host.status.rollback is not None
    assert host.status.rollback.soft_reboot_capable
    assert not host.status.others[0].soft_reboot_capable


def test_other_arguments_need_a_whole_reboot(sysroot: Path) -> None:
    host = _read(sysroot, [_found(A), _found(C, options="ro")], [A, C])
    assert host.status.rollback is not None
    assert not host.status.rollback.soft_reboot_capable


def test_rollback_is_queued_when_it_comes_first(sysroot: Path) -> None:
    host = _read(sysroot, [_found(C), _found(A)], [C, A])
    assert host.status.rollback_queued
    assert host.spec.boot_order is BootOrder.ROLLBACK


def test_entry_without_origin_is_left_out(sysroot: Path, caplog: pytest.LogCaptureFixture) -> None:
    (sysroot / paths.origin_file(C)).unlink()
    host = _read(sysroot, [_found(A), _found(C)], [A, C])
    assert host.status.rollback is None
    assert C in caplog.text
    ids = [getattr(record, "MESSAGE_ID", None) for record in caplog.records]
    assert "d264f924dadb4c31bff0412107d391fb" in ids


def test_booted_without_entry_or_origin_is_still_told(sysroot: Path) -> None:
    (sysroot / paths.origin_file(A)).unlink()
    host = _read(sysroot, [], [])
    assert host.status.booted is not None
    assert host.status.booted.image is None
    assert host.status.booted.composefs is not None
    assert host.status.booted.composefs.verity == A


def test_missing_image_is_a_warning(sysroot: Path, caplog: pytest.LogCaptureFixture) -> None:
    origin = state.read_origin(str(sysroot), A)
    assert origin is not None
    gone = Origin(
        image=REFERENCE,
        boot_type=BootType.BLS,
        boot_digest=None,
        manifest_digest="sha256:" + "0" * 64,
    )
    state.write_origin(str(sysroot), A, gone)
    host = _read(sysroot, [_found(A)], [A])
    assert host.status.booted is not None
    assert host.status.booted.image is None
    assert "is not in the repository" in caplog.text
