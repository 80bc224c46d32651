# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the kit leaves in podman's storage. Needs root and podman."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc.errors import ProcessError
from vmtests import podman

pytestmark = pytest.mark.root

NAME = f"localhost/bootc-host-test:{os.getpid()}"


@pytest.fixture
def image(tmp_path: Path) -> Iterator[str]:
    """An image of one file."""
    (tmp_path / "file").write_text("content")
    with tarfile.open(tmp_path / "layer.tar", "w") as tar:
        tar.add(tmp_path / "file", "file")
    podman.podman("import", "--quiet", str(tmp_path / "layer.tar"), NAME)
    yield NAME
    podman.podman("rmi", "--force", NAME, check=False)


def _containers() -> list[str]:
    listed = podman.podman("ps", "--all", "--external", "--format", "{{.Image}}")
    return listed.stdout.split()


def test_a_failing_build_leaves_neither_container_nor_name(image: str, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text("ARG BASE\nFROM ${BASE}\nCOPY none /\n")
    with podman.build_base(image) as base:
        argv = ["build", "--isolation=chroot", "--layers=false", "--pull=never"]
        argv += ["--build-arg", f"BASE={base}", str(tmp_path)]
        with pytest.raises(ProcessError):
            podman.podman(*argv)
        podman.podman("create", "--name", f"bootc-left-{os.getpid()}", base, "/none")
        assert base in _containers()
    assert base not in _containers()
    assert podman.find_image(base) is None
    assert podman.find_image(image) is not None
