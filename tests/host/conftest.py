# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What several tests of the host need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootc import process
from bootc.linux import mount
from tests.hostpodman import use_podman

SOURCE = Path(__file__).parent / "data/file_system.c"


@pytest.fixture(scope="session", autouse=True)
def _own_mounts() -> None:
    """Tests compare the mounts before and after; what others mount meanwhile isn't theirs."""
    if os.geteuid() == 0:
        mount.isolate_mounts()


@pytest.fixture(scope="session")
def file_system_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that, preloaded, makes the file system another one; its source says which."""
    compiler = process.need_program("cc", hint="apt-get install -y gcc libc6-dev")
    made = tmp_path_factory.mktemp("library") / "file_system.so"
    flags = ("-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror")
    process.run([compiler, *flags, "-o", str(made), str(SOURCE)])
    return made


@pytest.fixture
def own_podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """podman and skopeo with the kit's settings and a default storage of this test alone."""
    use_podman(tmp_path, monkeypatch)
