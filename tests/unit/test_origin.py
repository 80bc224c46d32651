# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Deployment state: origin files, the staged mark, the skeleton."""

import os
from pathlib import Path

import pytest

from bootc import paths
from bootc.deploy import state
from bootc.deploy.state import Origin, Staged
from bootc.errors import FormatError
from bootc.oci.reference import ImageReference, Transport
from bootc.spec import BootType

ID = "ab" * 64
REGISTRY = ImageReference(image="quay.io/x/y:latest", transport=Transport.REGISTRY)
ORIGIN = Origin(
    image=REGISTRY,
    boot_type=BootType.BLS,
    boot_digest="cd" * 32,
    manifest_digest="sha256:" + "0" * 64,
)
TEXT = f"""\
[origin]
container-image-reference=ostree-unverified-image:docker://quay.io/x/y:latest

[boot]
boot_type=bls
digest={"cd" * 32}

[image]
manifest_digest=sha256:{"0" * 64}
"""


def test_text() -> None:
    assert ORIGIN.to_text() == TEXT
    assert state.parse_origin(TEXT, "x.origin") == ORIGIN


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("ostree-unverified-registry:quay.io/x/y:latest", REGISTRY),
        ("ostree-unverified-image:registry:quay.io/x/y:latest", REGISTRY),
        (
            "ostree-unverified-image:oci:/var/image:tag",
            ImageReference(image="/var/image:tag", transport=Transport.OCI),
        ),
        (
            "ostree-unverified-image:containers-storage:localhost/bootc",
            ImageReference(image="localhost/bootc", transport=Transport.CONTAINERS_STORAGE),
        ),
    ],
)
def test_references(reference: str, expected: ImageReference) -> None:
    text = f"[origin]\ncontainer-image-reference={reference}\n[boot]\nboot_type=uki\n"
    found = state.parse_origin(text, "x.origin")
    assert found == Origin(
        image=expected, boot_type=BootType.UKI, boot_digest=None, manifest_digest=None
    )


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("nothing", "line 1"),
        ("[origin]\n=value\n", "line 2"),
        ("[boot]\nboot_type=bls\n", "origin.container-image-reference"),
        (
            "[origin]\ncontainer-image-reference=ostree-unverified-image:nope\n[boot]\nboot_type=bls\n",
            "origin.container-image-reference",
        ),
        (
            "[origin]\ncontainer-image-reference=what:ever\n[boot]\nboot_type=bls\n",
            "origin.container-image-reference",
        ),
        ("[origin]\ncontainer-image-reference=ostree-unverified-registry:x\n", "boot.boot_type"),
    ],
)
def test_bad_origins(text: str, where: str | None) -> None:
    with pytest.raises(FormatError) as caught:
        state.parse_origin(text, "x.origin")
    assert (caught.value.source, caught.value.where) == ("x.origin", where)


def test_staged_mark(tmp_path: Path) -> None:
    mark = tmp_path / "staged"
    assert state.read_staged(str(mark)) is None
    mark.write_text(f'{{"depl_id": "{ID}", "finalization_locked": true}}')
    assert state.read_staged(str(mark)) == Staged(deployment=ID, locked=True)
    mark.write_text('{"depl_id": 1}')
    with pytest.raises(FormatError, match="depl_id"):
        state.read_staged(str(mark))


def test_skeleton_and_origin_on_disk(tmp_path: Path) -> None:
    root = str(tmp_path)
    (tmp_path / "composefs").mkdir(mode=0o700)
    folder = state.make_skeleton(root, ID)
    assert os.readlink(f"{folder}/var") == "../../os/default/var"
    assert os.path.samefile(f"{folder}/var", f"{root}/{paths.STATE_VAR}")
    assert os.path.realpath(f"{root}/ostree/bootc") == f"{root}/composefs/bootc"
    assert state.list_deployments(root) == [ID]
    assert state.read_origin(root, ID) is None
    state.write_origin(root, ID, ORIGIN)
    assert state.read_origin(root, ID) == ORIGIN
    assert os.stat(f"{root}/{paths.origin_file(ID)}").st_mode & 0o777 == 0o644
    assert sorted(os.listdir(folder)) == [f"{ID}.origin", "var"]


def test_no_deployments(tmp_path: Path) -> None:
    assert state.list_deployments(str(tmp_path)) == []
