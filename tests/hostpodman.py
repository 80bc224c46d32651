# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The podman of this machine, and a registry that it pulls from. Needs root."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootc.linux import mount
from tests.ocibuild import write_layout
from vmtests import podman
from vmtests.registry import Registry, serve

_REGISTRIES = "/etc/containers/registries.conf.d"


def use_podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """podman and skopeo with the kit's settings and a default storage of this test alone."""
    for name, value in podman.environment().items():
        monkeypatch.setenv(name, value)
    storage = tmp_path / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{tmp_path}/default"\n'
        f'runroot = "{tmp_path}/default-run"\n'
    )
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(storage))


@contextmanager
def served_registry(
    tmp_path: Path, layers: list[bytes], *, how: str = "none", tag: str = "latest"
) -> Iterator[Registry]:
    """A registry with an image of these layers; podman trusts it in this mount namespace."""
    layout = tmp_path / "published"
    layout.mkdir()
    write_layout(layout, layers, how=how, tag=tag)
    with serve(layout) as running:
        settings = tmp_path / "registries"
        settings.mkdir()
        (settings / "test.conf").write_text(
            f'[[registry]]\nlocation = "{running.address}"\ninsecure = true\n'
        )
        # The tests have a mount namespace of their own (conftest).
        with mount.mounted(str(settings), _REGISTRIES, None, flags=mount.MS_BIND):
            yield running
